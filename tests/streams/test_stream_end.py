"""Stream: errors, and a clean stop, whatever ends it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_fakes import (
    FakePredictor,
    Gate,
    QuietPredictor,
    frames,
    number_of,
    numbered,
    reader_threads,
    wait_for,
)

from edgepose.errors import InputError, SourceError
from edgepose.stream import Stream
from edgepose.stream_options import ReconnectPolicy, StreamOptions

# --- errors ---


def test_an_exception_in_the_callers_iterator_is_raised_with_its_traceback(predictor: FakePredictor) -> None:
    def breaks() -> Iterator[np.ndarray]:
        yield numbered(0)
        yield numbered(1)
        raise ZeroDivisionError("mine")

    seen: list[tuple[int, int]] = []
    stream = Stream(predictor, [breaks(), frames(100_000)], tracking=False)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        seen.extend((item.source, item.index) for item in stream)
    assert [index for source, index in seen if source == 0] == [0, 1]  # what came before it is delivered
    assert "breaks" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    stats = stream.stats
    assert (stats.sources[0].state, stats.sources[1].state) == ("failed", "closed")
    assert "ZeroDivisionError: mine" in str(stats.last_error)


def test_an_iterator_of_no_frames_says_what_came(predictor: FakePredictor) -> None:
    with pytest.raises(InputError, match="its value 1 is of type str"):
        list(Stream(predictor, iter([numbered(0), "frame"])))


def test_an_error_of_the_predictor_closes_the_stream() -> None:
    def fails(given: list[Any]) -> None:
        raise RuntimeError("the network failed")

    stream = Stream(FakePredictor(work=fails), frames(100), tracking=False)
    with pytest.raises(RuntimeError, match="network failed"):
        next(stream)
    assert stream.stats.threads == 0
    assert list(stream) == []


def test_a_failed_source_leaves_the_others_alone_unless_told_otherwise(
    predictor: FakePredictor, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with Stream(predictor, [broken, frames(40)], tracking=False) as stream:
        assert len(list(stream)) == 40
    assert stream.stats.sources[0].state == "failed"
    assert "broken.mp4" in str(stream.stats.last_error)
    with pytest.raises(SourceError, match=r"broken\.mp4"):
        list(Stream(predictor, [broken, frames(100_000)], tracking=False, options=StreamOptions(on_error="raise")))
    with pytest.raises(SourceError, match=r"broken\.mp4"):  # nothing was delivered at all
        list(Stream(predictor, broken))


def test_a_callable_that_opens_an_iterator_is_called_again(predictor: FakePredictor) -> None:
    opened = []

    def camera() -> Iterator[np.ndarray]:
        opened.append(len(opened))

        def run(number: int) -> Iterator[np.ndarray]:
            yield numbered(number)
            if number < 2:
                raise ConnectionResetError("gone")

        return run(opened[-1])

    options = StreamOptions(policy="every", reconnect=ReconnectPolicy(first_delay=0.001))
    with Stream(predictor, camera, tracking=False, options=options) as stream:
        assert [(item.index, number_of(item.frame)) for item in stream] == [(0, 0), (1, 1), (2, 2)]
    assert stream.stats.sources[0].reconnects == 2
    assert "gone" in str(stream.stats.last_error)


def test_a_source_that_does_not_return_fails_after_its_attempts(predictor: FakePredictor) -> None:
    tries = []

    def camera() -> Iterator[np.ndarray]:
        tries.append(1)
        raise OSError("no such device")

    options = StreamOptions(reconnect=ReconnectPolicy(max_attempts=3, first_delay=0.001))
    stream = Stream(predictor, camera, tracking=False, options=options)
    with pytest.raises(OSError, match="no such device"):
        list(stream)
    assert len(tries) == 4  # the first, and three attempts
    assert stream.stats.sources[0].state == "failed"


# --- the end ---


def test_leaving_the_block_ends_all_threads_within_a_second(predictor: FakePredictor) -> None:
    stream = Stream(predictor, [frames(100_000) for _ in range(8)], tracking=False)
    with stream:
        next(stream)
        assert len(reader_threads()) == 8
        begin = time.monotonic()
    assert time.monotonic() - begin < 1
    assert reader_threads() == []
    assert {source.state for source in stream.stats.sources} == {"closed"}


def test_a_forgotten_stream_ends_its_threads(predictor: FakePredictor) -> None:
    for _ in Stream(predictor, [frames(100_000), frames(100_000)], tracking=False):
        break
    gc.collect()
    wait_for(lambda: not reader_threads(), 1.0)
    assert predictor.pending == 0


def test_ctrl_c_in_the_wait_closes_the_stream() -> None:
    def interrupted(given: list[Any]) -> None:
        raise KeyboardInterrupt

    stream = Stream(FakePredictor(work=interrupted), frames(100), tracking=False)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert reader_threads() == []


def test_close_from_another_thread_ends_the_iteration(predictor: FakePredictor) -> None:
    gate = Gate()
    stream = Stream(predictor, iter(gate), tracking=False)
    timer = threading.Timer(0.1, stream.close)
    timer.start()
    begin = time.monotonic()
    assert list(stream) == []
    assert time.monotonic() - begin < 2
    gate.let()
    timer.join()


def test_stop_lets_what_is_under_way_come(predictor: FakePredictor) -> None:
    stream = Stream(predictor, frames(100_000), tracking=False)
    assert next(stream).index == 0
    under_way = predictor.pending
    threading.Thread(target=stream.stop).run()
    assert [item.index for item in stream] == list(range(1, 1 + under_way))
    assert reader_threads() == []


def test_an_iterator_that_blocks_hangs_neither_close_nor_the_process(tmp_path: Path) -> None:
    script = tmp_path / "blocks.py"
    script.write_text(
        "import signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job begins without
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from stream_fakes import FakePredictor\n"
        "from edgepose.stream import Stream\n"
        "inside = threading.Event()\n"
        "def blocks():\n"
        "    inside.set()\n"
        "    yield threading.Event().wait()\n"
        "stream = Stream(FakePredictor(), blocks(), tracking=False)\n"
        "assert inside.wait(5)\n"
        "begin = time.monotonic()\n"
        "stream.close()\n"
        "assert time.monotonic() - begin < 1.5, 'close took too long'\n"
        "assert stream.stats.sources[0].hanging == 1, stream.stats\n"
        "print('closed')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "closed\n"
    assert "1 reader threads are blocked" in done.stderr
    assert "edgepose-source-0.0" in done.stderr


def test_an_interrupt_at_any_call_leaves_no_lock_and_no_thread() -> None:
    """As Ctrl+C may come: after the n-th call, of Python or of C, that the consumer's thread makes."""
    for moment in range(1, 500, 7):
        calls = 0

        def interrupt(frame: Any, event: str, _: Any) -> None:
            nonlocal calls
            calls += event in ("return", "c_return")
            if calls == moment:  # noqa: B023
                sys.setprofile(None)
                raise KeyboardInterrupt

        sources = [frames(100_000), frames(100_000)]
        stream = Stream(QuietPredictor(), sources, tracking=False, policy="newest" if moment % 2 else "every")
        sys.setprofile(interrupt)
        try:
            for _ in stream:
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        stream.close()
        wait_for(lambda: not reader_threads(), 2.0)
        told: list[Any] = []
        asker = threading.Thread(target=lambda: told.append(stream.stats), daemon=True)  # noqa: B023
        asker.start()
        asker.join(5)
        assert told, f"a lock is left locked after call {moment}"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX timers")
def test_a_program_that_is_interrupted_at_random_moments() -> None:
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run(
        [sys.executable, script, "40", "1"], capture_output=True, text=True, timeout=60, check=False, cwd=script.parent
    )
    assert done.stdout == "40 []\n", done.stdout + done.stderr


def test_close_from_another_thread_takes_nothing_away_that_is_in_use() -> None:
    """It comes while a frame is staged, after which the round under way is fetched."""

    class Closing(FakePredictor):
        def stage(self, frame: Any) -> Any:
            closer.start()
            closer.join(0.2)  # it waits for this thread's turn to end
            return super().stage(frame)

    stream = Stream(Closing(), [(numbered(number), number / 10) for number in range(50)], tracking=True)
    closer = threading.Thread(target=stream.close)
    wait_for(lambda: stream.stats.read >= 3)
    assert [item.index for item in stream] == [0]
    closer.join()
    assert reader_threads() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_leaves_the_stream_alone(predictor: FakePredictor) -> None:
    """A child has the locks as they were, and none of the threads that would unlock them."""
    held, go = threading.Event(), threading.Event()

    def hold(lock: Any) -> None:
        with lock:
            held.set()
            go.wait(10)

    with Stream(predictor, frames(100_000), tracking=False) as stream:
        next(stream)
        holder = threading.Thread(target=hold, args=(stream._lock,))
        holder.start()
        held.wait(10)
        child = os.fork()
        if child == 0:
            signal.alarm(5)  # kills it, where it waits for the lock
            stream.close()
            os._exit(0)
        go.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        holder.join()
        assert next(stream).index == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_while_it_waits_ends_the_process_at_once(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import signal, sys, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job begins without
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from stream_fakes import FakePredictor, numbered\n"
        "from edgepose.stream import Stream\n"
        "def camera():\n"
        "    yield numbered(0)\n"
        "    threading.Event().wait()\n"
        "for item in Stream(FakePredictor(), camera(), tracking=False):\n"
        "    print('first', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    # 0.8 s for the thread that is blocked for good, and the end of the interpreter; seen: 0.97 s
    assert time.monotonic() - begin < 3


def test_8000_frames_leave_no_memory_and_no_threads() -> None:
    """One object kept for each frame would be 6,000 blocks of Python's memory between the two looks."""
    frame = numbered(0)
    threads = threading.active_count()
    blocks = []
    with Stream(QuietPredictor(), [(frame for _ in range(4000)) for _ in range(2)], tracking=False) as stream:
        for count, _ in enumerate(stream, 1):
            if count in (2000, 8000):
                gc.collect()
                blocks.append(sys.getallocatedblocks())
    assert stream.stats.delivered == 8000
    assert blocks[1] - blocks[0] < 2000  # seen: -87 to -50
    assert threading.active_count() == threads
