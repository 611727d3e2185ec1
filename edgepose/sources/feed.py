"""Feed: one source, its reader's thread, and the frames of it that wait."""

from __future__ import annotations

import logging
import random
import threading
import traceback
from collections import deque
from dataclasses import dataclass, replace
from math import isfinite
from time import monotonic
from typing import Any

from edgepose.errors import EdgePoseError, InputError, MissingDependencyError, SourceError
from edgepose.sources.bell import Bell
from edgepose.sources.opening import Source
from edgepose.sources.reader import Captured, Reader
from edgepose.stream_options import StreamOptions
from edgepose.stream_stats import Rate, SourceState, SourceStats

__all__ = ["Feed", "Waiting"]

log = logging.getLogger("edgepose.stream")

MOST_HANGING = 4  # threads of one source that are blocked for good; then it has failed
FRAME_STEP = 0.04  # s between two frames whose time stamps run backwards


@dataclass(frozen=True)
class Waiting:
    """A frame that waits to be processed.

    Attributes:
        frame: as the reader gave it.
        index: its number in the source, dropped frames counted.
        time: s, see ``StreamItem.time``.
        arrived: s, monotonic clock: when the reader handed it over; of a recording, when it was taken.
    """

    frame: Any
    index: int
    time: float
    arrived: float


class _Attempt:
    """One thread that opens and reads the source. What it brings counts only while it is ``Feed._attempt``."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.reader: Reader | None = None
        self.thread = threading.Thread()


class Feed:
    """One source of a stream. All its state is guarded by the lock that the stream's sources share.

    Args:
        lock: the shared lock, re-entrant (a handler of log messages may ask for statistics).
        bell: rung when a frame waits or the source is done.
    """

    def __init__(self, source: Source, number: int, options: StreamOptions, lock: threading.RLock, bell: Bell) -> None:
        self.source, self.number = source, number
        self.error: BaseException | None = None  # why it failed for good
        self.users_error = False  # whether that came out of the caller's own code
        self.waiting_since = 0.0  # since when a frame has waited without one of this source being taken
        self.delivered = 0
        self._options = options
        self._label = f"source {number} ({source.kind})"  # the reader's messages name it
        self._lock, self._bell = lock, bell
        self._space = threading.Condition(lock)  # only readers wait for it: no Ctrl+C reaches their threads
        self._waiting: deque[Waiting] = deque()
        self._state: SourceState = "opening"
        self._policy = self._early_policy()
        self._backend = ""
        self._last_error: str | None = None
        self._read = self._dropped = self._reconnects = self._failures = self._attempts = 0
        self._read_rate, self._rate = Rate(), Rate()
        self._rng = random.Random()
        self._attempt: _Attempt | None = None
        self._threads: list[threading.Thread] = []
        self._given_up: list[threading.Thread] = []  # those of them whose frames are ignored
        self._busy = False  # the thread waits for space or for a frame's time: no stall
        self._since = monotonic()  # of opening, or of the last frame
        self._first_frame = True  # of this attempt
        self._read_ahead = False  # a recording: what waits has not aged
        self._origin: float | None = None  # monotonic clock minus media time, of a file that plays in real time
        self._shift, self._last_time = 0.0, float("-inf")

    # --- the consumer's side; all but start, close and join under the shared lock ---

    def start(self) -> None:
        """Start reading."""
        with self._lock:
            self._begin(0.0)

    @property
    def ready(self) -> bool:
        """Whether a frame waits."""
        return bool(self._waiting)

    @property
    def done(self) -> bool:
        """Whether no frame will come any more; waiting ones may be left."""
        return self._state in ("ended", "failed", "closed")

    @property
    def newest(self) -> bool:
        """Whether older frames are dropped."""
        return self._policy == "newest"

    def take(self) -> Waiting:
        """The frame that has waited longest."""
        waiting = self._waiting.popleft()
        self.waiting_since = monotonic()
        self._space.notify_all()
        return replace(waiting, arrived=self.waiting_since) if self._read_ahead else waiting

    def count_delivered(self) -> None:
        """One more frame left the stream."""
        self.delivered += 1
        self._rate.add(monotonic())

    def watch(self, now: float) -> float:
        """Look after a reader that says nothing; returns the moment when to look again."""
        if self._busy or self._attempt is None or self._state not in ("opening", "running"):
            return float("inf")
        limit = self._options.open_timeout if self._first_frame and self.source.live else self._options.timeout
        if now < self._since + limit:
            return self._since + limit
        if self.source.reopens and self._backend_is_live():
            self._abandon(SourceError(f"{self.source.name} gave no frame for {limit:g} s"))
        else:
            self._state = "stalled"
            self._note_error(f"{self.source.name} gave no frame for {limit:g} s")
        return float("inf")

    def stats(self, now: float) -> SourceStats:
        """Its counters and state."""
        return SourceStats(
            number=self.number,
            name=self.source.name,
            kind=self.source.kind,
            backend=self._backend,
            policy=self._policy,
            state=self._state,
            read=self._read,
            dropped=self._dropped,
            delivered=self.delivered,
            waiting=len(self._waiting),
            reconnects=self._reconnects,
            hanging=len(self._hanging()),
            read_fps=self._read_rate.at(now),
            fps=self._rate.at(now),
            last_error=self._last_error,
        )

    def close(self) -> None:
        """Tell the thread to end; returns at once."""
        with self._lock:
            attempt, self._attempt = self._attempt, None
            if not self.done:
                self._state = "closed"
            self._waiting.clear()
            self._retire(attempt)
            self._space.notify_all()
            self._bell.ring()

    def join(self, deadline: float) -> list[threading.Thread]:
        """Wait for its threads until a moment of the monotonic clock; those that are blocked beyond it."""
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))
        return self.threads()

    def threads(self) -> list[threading.Thread]:
        """Those that are alive."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return list(self._threads)

    def _hanging(self) -> list[threading.Thread]:
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        return list(self._given_up)

    def _early_policy(self) -> str:
        """Known before an address is opened, but for those that may be live or a recording."""
        if self._options.policy != "auto":
            return self._options.policy
        if self.source.kind == "url":
            return ""
        return "newest" if self.source.live else "every"

    def _backend_is_live(self) -> bool:
        reader = self._attempt.reader if self._attempt is not None else None
        return self.source.live if reader is None else reader.live

    # --- attempts; under the lock ---

    def _begin(self, delay: float) -> None:
        attempt = _Attempt(delay)
        name = f"edgepose-source-{self.number}.{self._attempts}"
        # A daemon, as the last resort: a thread that hangs in a driver must not keep the process from ending.
        attempt.thread = threading.Thread(target=self._run, args=(attempt,), name=name, daemon=True)
        self._attempts += 1
        self._attempt = attempt
        self._threads = [*self.threads(), attempt.thread]
        self._busy, self._since, self._first_frame = True, monotonic(), True
        attempt.thread.start()

    def _retire(self, attempt: _Attempt | None) -> None:
        if attempt is not None:
            self._given_up.append(attempt.thread)
            if attempt.reader is not None:
                attempt.reader.cancel()

    def _abandon(self, error: SourceError) -> None:
        """The reader is blocked: leave its thread to itself, and begin anew."""
        self._retire(self._attempt)
        if len(self._hanging()) > MOST_HANGING:
            names = ", ".join(thread.name for thread in self._hanging())
            self._fail(SourceError(f"{error}, and {len(self._hanging())} threads hang in {self._backend}: {names}"))
            return
        delay = self._count_failure(error)
        if delay is not None:
            self._begin(delay)

    def _count_failure(self, error: BaseException) -> float | None:
        """The delay before the source is opened again; None: it has failed for good."""
        self._failures += 1
        if self._options.reconnect.exhausted(self._failures, worked=self._read > 0):
            self._fail(error)
            return None
        delay = self._options.reconnect.delay(self._failures - 1, self._rng)
        self._reconnects += 1
        self._state = "reconnecting"
        self._note_error(f"{error}; opened again in {delay:.2f} s (attempt {self._failures})")
        return delay

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self.users_error = self.source.kind in ("iterator", "callable") and not isinstance(error, SourceError)
        self._attempt, self._state = None, "failed"
        self._last_error = _told(error)
        log.error("%s failed for good: %s", self._label, self._last_error)
        self._bell.ring()

    def _note_error(self, text: str) -> None:
        self._last_error = text
        log.warning("%s: %s", self._label, text)

    # --- the reader's thread ---

    def _run(self, attempt: _Attempt) -> None:
        """Open, read, and again after a loss, as long as the attempt is in charge."""
        delay: float | None = attempt.delay
        while delay is not None and self._pause(attempt, monotonic() + delay):
            try:
                delay = self._read_once(attempt)
            except (InputError, MissingDependencyError) as error:
                return self._end(attempt, error)
            except (SourceError, OSError) as error:
                if not self._may_reopen(attempt):
                    return self._end(attempt, error)
                delay = self._lost(attempt, error)
            except BaseException as error:  # of the caller's iterator: it is raised where the stream is consumed
                return self._end(attempt, error)
        return None

    def _read_once(self, attempt: _Attempt) -> float | None:
        """Open the source and read it to its end; the delay before it is opened again, None for never."""
        with self._lock:
            if self._attempt is not attempt:
                return None
            self._busy, self._since, self._first_frame = False, monotonic(), True
            self._state = "opening"
        reader = self.source.open()
        try:
            if not self._opened(attempt, reader):
                return None
            while (captured := reader.read()) is not None:
                if not self._put(attempt, captured, reader.live):
                    return None
            live, note = reader.live, reader.note
        finally:
            reader.close()
        if live and self.source.reopens and self.source.kind != "callable":
            return self._lost(attempt, SourceError(f"{self.source.name} ended the connection"))
        self._end(attempt, None, note)
        return None

    def _opened(self, attempt: _Attempt, reader: Reader) -> bool:
        with self._lock:
            if self._attempt is not attempt:
                return False
            attempt.reader = reader
            self._backend = reader.backend
            if not self._policy:
                self._policy = "newest" if reader.live else "every"
            own = self.source.kind in ("iterator", "callable")  # of the caller: they may well be a camera
            self._read_ahead = not (self.newest or reader.live or own)
            return True

    def _put(self, attempt: _Attempt, captured: Captured, live: bool) -> bool:
        """Let a frame wait; False: the attempt is no longer in charge."""
        arrived = monotonic()
        with self._lock:
            if self._attempt is not attempt:
                return False
            time = self._time(captured, arrived)
            self._busy = True
        in_charge = True
        paced = self.source.kind not in ("iterator", "callable")  # those come at a pace of their own, whatever it is
        if self.newest and not live and paced and captured.time is not None:
            if self._origin is None:
                self._origin = arrived - time
            in_charge = self._pause(attempt, self._origin + time)
            arrived = monotonic()
        with self._lock:
            while in_charge and not self.newest and len(self._waiting) >= self._options.queue:
                self._space.wait()
                in_charge = self._attempt is attempt
            if not in_charge or self._attempt is not attempt:
                return False
            if not self._waiting:
                self.waiting_since = monotonic()
            elif self.newest:
                self._waiting.clear()
                self._dropped += 1
            self._waiting.append(Waiting(captured.frame, self._read, time, arrived))
            self._read += 1
            self._failures = 0
            self._busy, self._first_frame, self._since, self._state = False, False, monotonic(), "running"
            self._read_rate.add(self._since)
            self._bell.ring()
        return True

    def _time(self, captured: Captured, arrived: float) -> float:
        """The frame's time; times increase within a source."""
        if captured.time is None:
            time = arrived
        elif self.source.kind in ("iterator", "callable"):
            time = captured.time
            if not isfinite(time) or time <= self._last_time:
                raise InputError(
                    f"the times of frames must be finite and increase: {time} came after {self._last_time}"
                )
        else:  # recordings that were joined start at 0 again; some cameras' files run backwards for a frame
            time = captured.time + self._shift
            if time <= self._last_time:
                self._shift += self._last_time + FRAME_STEP - time
                time = self._last_time + FRAME_STEP
        self._last_time = time
        return time

    def _pause(self, attempt: _Attempt, until: float) -> bool:
        """Wait until a moment; False: the attempt is no longer in charge."""
        with self._lock:
            while self._attempt is attempt and (left := until - monotonic()) > 0:
                self._space.wait(left)
            return self._attempt is attempt

    def _may_reopen(self, attempt: _Attempt) -> bool:
        """A camera that was never there will not come; a server may."""
        if not self.source.reopens or (self.source.kind == "camera" and self._read == 0):
            return False
        return attempt.reader is None or attempt.reader.live

    def _lost(self, attempt: _Attempt, error: BaseException) -> float | None:
        with self._lock:
            if self._attempt is not attempt:
                return None
            attempt.reader, self._busy = None, True
            return self._count_failure(error)

    def _end(self, attempt: _Attempt, error: BaseException | None, note: str | None = None) -> None:
        with self._lock:
            if self._attempt is not attempt:
                return
            if error is not None:
                self._fail(error)
                return
            self._attempt, self._state = None, "ended"
            if note:
                self._note_error(note)
            self._bell.ring()


def _told(error: BaseException) -> str:
    """What went wrong; of a foreign exception also its type and place."""
    if isinstance(error, EdgePoseError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({frame.filename}:{frame.lineno})" for frame in last)
    return f"{type(error).__name__}: {error}{place}"
