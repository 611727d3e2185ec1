"""Stream: frames of one source or several, processed as they come.

    with predictor.stream(["rtsp://camera/1", 0, "video.mp4"]) as stream:
        for frame, result in stream:
            ...
    print(stream.stats)

A thread for each source opens and reads it. The consumer's own thread does the rest: each round takes at most one
frame of each source, those first whose source has waited longest, gives them to the predictor in one call, and then
tracks and smooths each source by itself. A source that is slow, stalled or lost delays none of the others.

How far ahead it works. Where every frame counts (files) and a GPU works beside the host, the next round is submitted
before the last one's results are fetched, at most two at a time, so that the upload of one overlaps the network of the
other. The boxes of a source that is tracked come from the frame that is under way: its next frame is only staged, which
is to say uploaded, meanwhile. Where the newest frame counts (cameras), one round is under way and nothing is staged: a
frame that waits behind another grows old, and the newer one that arrives in that time would be the better one.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgepose.errors import InputError
from edgepose.result import PoseResult
from edgepose.sources import Bell, Feed, Waiting, find_source, split_sources
from edgepose.stream_lanes import Boxes, Lane, Plan, Round, Taken, boxes_of, open_lane
from edgepose.stream_options import Policy, StreamOptions
from edgepose.stream_stats import STAGES, LatencyWindow, StreamStats

if TYPE_CHECKING:
    from edgepose.predictor import Predictor
    from edgepose.smooth import OneEuro
    from edgepose.track import Tracking

__all__ = ["Stream", "StreamItem"]

log = logging.getLogger("edgepose.stream")

END_WITHIN = 0.8  # s that threads have to end in when a stream is closed; those blocked in a driver end later
LONGEST_WAIT = 0.5  # s; on Windows a wait is not interrupted by Ctrl+C


@dataclass(frozen=True, eq=False)
class StreamItem:
    """One frame and its landmarks; ``frame, result = item`` works too.

    Attributes:
        frame: as the source gave it.
        result: its landmarks.
        index: the frame's number in its source, from 0; frames that were dropped count.
        time: s, increases within a source. Of a recording: its time stamp there. Of a live source: when it arrived, on
            the monotonic clock (``time.monotonic``).
        source: number of the source.
        latency: ms to the finished result from the moment when the reader handed the frame over. Of a recording (a
            file, a folder, not played in real time) from the moment when the stream took it: readers run ahead there,
            and what waits does not grow old.
    """

    frame: Any
    result: PoseResult
    index: int
    time: float
    source: int
    latency: float

    def __iter__(self) -> Iterator[Any]:
        return iter((self.frame, self.result))


class Stream:
    """Iterates :class:`StreamItem`, in the order of each source. One thread consumes it; any may ask for ``stats``.

    Leaving the ``with`` block, the end, an error and garbage collection close it.

    Args:
        predictor: stays open; other threads may use it at the same time.
        source: a source or a list of sources: camera index (``0`` or ``"0"``), video file, photo, folder of photos, URL
            (rtsp, rtmp, http, udp, tcp, srt), GStreamer pipeline (``"v4l2src ! ..."``), iterable of frames or of
            (frame, seconds), or a callable that returns a frame at each call, None at the end; a callable that returns
            an iterator is called again when that one was lost with an OSError.
        boxes: where to look in every frame, (N, 4) xyxy, frame px; or a function that gets the frame and returns that;
            or a mapping from a source's number to one of the two. None: the predictor's detector finds them.
        categories: N names, what the boxes show; with ``boxes``.
        tracking: True or :class:`~edgepose.Tracking`: detect now and then, follow in between, give ids. False: detect
            in every frame. None: track what is a video; not photos, nor where ``boxes`` are given.
        smoothing: True or :class:`~edgepose.OneEuro`: smooth the landmarks of what is tracked.
        policy: short for ``StreamOptions(policy=...)``.
        options: how sources are read.

    Raises:
        InputError: a source or an option is not usable; a file does not exist, a folder holds no photos.
        SourceError: (while iterating) the sources failed, see ``StreamOptions.on_error``.
        MissingDependencyError: (while iterating) a backend is not installed.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: Any,
        *,
        boxes: Boxes | Mapping[int, Boxes] | None = None,
        categories: Sequence[str] | None = None,
        tracking: Tracking | bool | None = None,
        smoothing: OneEuro | bool = False,
        policy: Policy | None = None,
        options: StreamOptions | None = None,
    ) -> None:
        self._options = _options(options, policy)
        found = [find_source(one, self._options) for one in split_sources(source)]
        if categories is not None and boxes is None:
            raise InputError("categories say what given boxes show: pass boxes too, or neither")
        if smoothing and tracking is False:
            raise InputError("smoothing needs to know which object is which: do not pass tracking=False with it")
        self._predictor, self._categories = predictor, categories
        # Without a device, a second call would only delay the first one's results.
        self._works_ahead = predictor.overlaps
        self._lock, self._bell = threading.RLock(), Bell()
        self._turn = threading.RLock()  # held by the consumer's thread while it works, and by what takes it over
        feeds = [Feed(one, number, self._options, self._lock, self._bell) for number, one in enumerate(found)]
        given = boxes_of(boxes, len(feeds))
        self._lanes = [
            open_lane(feed, of, predictor, tracking, smoothing) for feed, of in zip(feeds, given, strict=True)
        ]
        self._ready: deque[StreamItem] = deque()
        self._pending: deque[Round] = deque()
        self._latency = LatencyWindow()
        self._rounds = 0
        self._opened = monotonic()
        self._elapsed: float | None = None
        # Holds no reference to self: neither do the threads, so that a forgotten stream is collected, and stops.
        self._stop = weakref.finalize(self, _stop, feeds, self._pending, self._turn, os.getpid())
        for feed in feeds:
            feed.start()

    @property
    def stats(self) -> StreamStats:
        """Counters, states and latencies at this moment."""
        with self._lock:
            now = monotonic()
            feeds = [lane.feed for lane in self._lanes]
            return StreamStats(
                sources=tuple(feed.stats(now) for feed in feeds),
                latency=self._latency.percentiles(),
                rounds=self._rounds,
                elapsed=now - self._opened if self._elapsed is None else self._elapsed,
                threads=sum(len(feed.threads()) for feed in feeds),
            )

    def stop(self) -> None:
        """Let the iteration end soon: no more frames are taken, those under way still come. Any thread may call it."""
        with self._lock:
            for lane in self._lanes:
                lane.feed.close()

    def close(self) -> None:
        """Stop the threads, within a second; those that are blocked in a driver are left to end by themselves.

        Iterating ends. Any thread may call it; from another than the consumer's it waits for the frames under way.
        Closing twice is fine.
        """
        if self._elapsed is None:
            self._elapsed = monotonic() - self._opened
        self._stop()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> StreamItem:
        try:
            with self._turn:
                item = self._next()
                if item is None:
                    self._raise_at_end()
        except BaseException:  # KeyboardInterrupt too
            self.close()
            raise
        if item is None:
            self.close()
            raise StopIteration
        return item

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats
        states = ", ".join(f"{source.name}: {source.state}" for source in stats.sources)
        return f"<Stream of {states}; {stats.delivered} frames delivered, {stats.dropped} dropped>"

    # --- rounds ---

    def _next(self) -> StreamItem | None:
        """The next item; None at the end."""
        if not self._stop.alive:  # closed; another thread may have done it
            return None
        while not self._ready:
            self._raise_failures()
            while len(self._pending) < self._depth() and (taken := self._take()):
                self._submit(taken)
            if self._pending:
                self._stage_ahead()
                self._finish(self._pending.popleft())
            elif not self._wait():
                return None
        item = self._ready.popleft()
        with self._lock:
            self._lanes[item.source].feed.count_delivered()
        return item

    def _depth(self) -> int:
        """How many rounds may be under way: see the module's text."""
        if not self._works_ahead:
            return 1
        with self._lock:
            return 1 if [lane for lane in self._lanes if lane.feed.newest and not lane.feed.done] else 2

    def _take(self) -> list[tuple[Lane, Taken]]:
        """A round: at most one frame of each source, the source that has waited longest first."""
        under_way = {id(lane) for pending in self._pending for lane in pending.lanes if lane.tracker is not None}
        with self._lock:
            now = monotonic()
            for lane in self._lanes:
                lane.feed.watch(now)
            lanes = [lane for lane in self._lanes if lane.ready and id(lane) not in under_way]
            lanes.sort(key=lambda lane: lane.feed.waiting_since)
            return [(lane, self._take_from(lane)) for lane in lanes[: self._options.max_batch]]

    @staticmethod
    def _take_from(lane: Lane) -> Taken:
        taken, lane.staged = lane.staged, None
        if taken is not None:
            return taken
        waiting = lane.feed.take()
        return Taken(waiting, waiting.frame)

    def _stage_ahead(self) -> None:
        """Upload the next frames of those tracked sources that a frame is under way of."""
        if not self._works_ahead:
            return
        for lane in [lane for pending in self._pending for lane in pending.lanes]:
            if lane.tracker is None or lane.staged is not None:
                continue
            with self._lock:
                waiting = lane.feed.take() if lane.feed.ready and not lane.feed.newest else None
            if waiting is not None:
                lane.staged = Taken(waiting, self._predictor.stage(waiting.frame))

    def _submit(self, taken: list[tuple[Lane, Taken]]) -> None:
        started = monotonic()
        lanes, frames = [lane for lane, _ in taken], [one.waiting for _, one in taken]
        plans = [self._plan(lane, waiting) for lane, waiting in zip(lanes, frames, strict=True)]
        pending = self._predictor.submit(
            [one.view for _, one in taken],
            [plan.boxes for plan in plans],
            categories=[plan.categories for plan in plans],
        )
        self._rounds += 1
        self._pending.append(Round(lanes, frames, plans, pending, started))

    def _plan(self, lane: Lane, waiting: Waiting) -> Plan:
        if lane.boxes is not None:
            return Plan(lane.boxes(waiting.frame) if callable(lane.boxes) else lane.boxes, self._categories)
        expected = lane.tracker.next_boxes(waiting.time) if lane.tracker is not None else None
        if expected is None:
            return Plan(None, None)
        boxes, categories = expected
        return Plan(boxes, categories or None, followed=True)

    def _finish(self, done: Round) -> None:
        results = done.pending.results()
        finished = monotonic()
        for lane, waiting, result, plan in zip(done.lanes, done.frames, results, done.plans, strict=True):
            if lane.tracker is not None:
                result = lane.tracker.update(result, waiting.time, detected=not plan.followed)  # noqa: PLW2901
            if lane.smoother is not None:
                result = lane.smoother.smooth(result, waiting.time)  # noqa: PLW2901
            end = monotonic()
            with self._lock:
                self._latency.add(
                    queue=(done.started - waiting.arrived) * 1e3,
                    inference=(finished - done.started) * 1e3,
                    tracking=(end - finished) * 1e3,
                    total=(end - waiting.arrived) * 1e3,
                    **_stages(result),
                )
            latency = (end - waiting.arrived) * 1e3
            number = lane.feed.number
            self._ready.append(StreamItem(waiting.frame, result, waiting.index, waiting.time, number, latency))

    def _wait(self) -> bool:
        """Wait until a frame or an error is there; False: nothing will come any more."""
        feeds = [lane.feed for lane in self._lanes]
        while True:
            with self._lock:
                self._bell.silence()
                now = monotonic()
                again = min([feed.watch(now) for feed in feeds])
                # Lists, not generators: a KeyboardInterrupt in one that any() has left early would be lost.
                if True in [lane.ready for lane in self._lanes] or self._failure() is not None:
                    return True
                if False not in [feed.done for feed in feeds]:
                    return False
            self._bell.wait(min(max(0.0, again - now), LONGEST_WAIT))

    # --- errors ---

    def _failure(self) -> BaseException | None:
        """The error of a source that ends the stream; the frames before it come first."""
        for lane in self._lanes:
            feed = lane.feed
            fatal = feed.users_error or self._options.on_error == "raise"
            if feed.error is not None and fatal and not lane.ready and not self._is_pending(lane):
                return feed.error
        return None

    def _is_pending(self, lane: Lane) -> bool:
        return True in [lane in pending.lanes for pending in self._pending]

    def _raise_failures(self) -> None:
        with self._lock:
            error = self._failure()
        if error is not None:
            raise error

    def _raise_at_end(self) -> None:
        with self._lock:
            errors = [lane.feed.error for lane in self._lanes if lane.feed.error is not None]
            delivered = any(lane.feed.delivered for lane in self._lanes)
        if errors and not delivered:
            raise errors[0]


def _stop(feeds: list[Feed], pending: deque[Round], turn: threading.RLock, process: int) -> None:
    """End the threads; take back what the predictor has got."""
    if os.getpid() != process:  # a fork: it has none of the threads, and their locks may be locked for ever
        return
    for feed in feeds:
        feed.close()  # wakes the consumer
    try:
        with turn:
            while pending:
                _discard(pending.popleft())
    finally:  # another Ctrl+C, while the network still runs
        deadline = monotonic() + END_WITHIN
        hanging = [thread.name for feed in feeds for thread in feed.join(deadline)]
        if hanging:
            log.warning("%d reader threads are blocked and end later: %s", len(hanging), ", ".join(hanging))


def _discard(unwanted: Round) -> None:
    """Give the predictor its buffers back."""
    try:
        unwanted.pending.results()
    except Exception as error:  # nobody waits for these results; whatever closed the stream is raised
        log.warning("a round that was under way when the stream was closed failed: %s", error)


def _options(options: StreamOptions | None, policy: Policy | None) -> StreamOptions:
    if options is not None and not isinstance(options, StreamOptions):
        raise InputError(f"options must be a StreamOptions, got {type(options).__name__}")
    options = options or StreamOptions()
    if policy is None:
        return options
    if options.policy not in ("auto", policy):
        raise InputError(f"policy={policy!r} contradicts options, which say {options.policy!r}")
    return replace(options, policy=policy)


def _stages(result: PoseResult) -> dict[str, float]:
    """The times of the network's stages that the result knows, ms."""
    timings = result.timings
    return {part.name: getattr(timings, part.name) for part in fields(timings) if part.name in STAGES[4:]}
