"""A program that is interrupted again and again at random moments while it consumes a stream: see test_stream_end.py.

Prints how often, and what was wrong.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
import time

from stream_fakes import QuietPredictor, numbered, reader_threads, wait_for

from edgepose.stream import Stream
from edgepose.stream_options import StreamOptions

LONGEST = 0.03  # s until the signal, from when the stream is opened
FRAMES = [numbered(number) for number in range(4)]


class Alarm:
    """Raises KeyboardInterrupt in the main thread, as Ctrl+C does, once, after a while."""

    def __init__(self) -> None:
        self.rung = False
        signal.signal(signal.SIGALRM, self._ring)

    def set(self, after: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, after)

    def _ring(self, number: int, frame: object) -> None:
        self.rung = True
        raise KeyboardInterrupt


def paced(pause: float) -> object:
    while True:
        time.sleep(pause)
        yield FRAMES[0]


def endless() -> object:
    while True:
        yield FRAMES[1]


def once(rng: random.Random) -> str:
    """What was wrong; empty: nothing."""
    alarm, predictor = Alarm(), QuietPredictor()
    sources = [endless(), paced(0.001), paced(0.02)][rng.randrange(3) :]
    stream = Stream(predictor, sources, options=StreamOptions(policy=rng.choice(["newest", "every"])), tracking=False)
    ended = 0.0
    try:
        alarm.set(rng.uniform(0.001, LONGEST))
        try:
            with stream:
                for _ in stream:
                    pass
        finally:
            ended = time.monotonic()
            while not alarm.rung:
                time.sleep(0.001)
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        return f"{type(error).__name__} instead of KeyboardInterrupt: {error}"
    lasted = time.monotonic() - ended
    if lasted > 0.5:
        return f"waited {lasted} s"
    stats: list[object] = []
    asker = threading.Thread(target=lambda: stats.append(stream.stats), daemon=True)
    asker.start()
    asker.join(2)
    if not stats:
        return "a lock was left locked"
    try:
        wait_for(lambda: not reader_threads(), 2.0)
    except AssertionError:
        return f"threads are left: {reader_threads()}"
    return f"{predictor.pending} calls were left" if predictor.pending > 1 else ""


def main() -> None:
    logging.disable()
    count, rng = int(sys.argv[1]), random.Random(int(sys.argv[2]))
    wrong = [text for text in (once(rng) for _ in range(count)) if text]
    print(count, wrong, flush=True)


main()
