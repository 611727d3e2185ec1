"""What can be told about a running stream at any moment, for the terminal and the page of `edgepose stream`."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgepose.stream import StreamItem
    from edgepose.stream_stats import Percentiles, SourceStats, StreamStats

__all__ = ["DONE", "STAGES", "StreamMonitor"]

STAGES = ("queue", "detect", "crop", "network", "decode", "other", "tracking")  # as time goes; no overlaps
DONE = ("ended", "failed")  # states of a source that came to its end by itself
WINDOW = 10.0  # s; percentiles are of the frames delivered within it
MAX_WINDOW = 600  # frames; bounds the work of the percentiles for fast sources
HISTORY = 60  # s of the latency's course, one value a second
# A source counts as stalled in what is shown long before the stream gives it up: after 2 s without a frame, or 10 of
# its usual intervals if that is longer, as one picture every 5 s is no stall.
STALL = 2.0
STALL_INTERVALS = 10


@dataclass
class _Seen:
    """What was delivered of one source."""

    rows: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_WINDOW))  # arrival s, latency ms
    history: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=HISTORY + 1))  # second, median ms
    second: int = -1  # the one that is not over
    latencies: list[float] = field(default_factory=list)  # within it

    def close_second(self, now: int) -> None:
        """Note the median of a second that is over."""
        if now != self.second and self.latencies:
            self.history.append((self.second, round(median(self.latencies), 2)))
            self.latencies = []
        self.second = now

    frame_size: tuple[int, int] | None = None
    objects: int = 0
    index: int | None = None


class StreamMonitor:
    """Watches the items that a stream delivers. Any thread may ask for a :meth:`snapshot`.

    Args:
        stats: gives the stream's own figures, for instance ``lambda: stream.stats``.
        clock: s, monotonic.
    """

    def __init__(self, stats: Callable[[], StreamStats], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stats = stats
        self._clock = clock
        self._start = clock()
        self._lock = threading.Lock()
        self._seen: dict[int, _Seen] = {}

    def add(self, item: StreamItem) -> None:
        """Count a delivered frame."""
        now = self._clock()
        with self._lock:
            seen = self._seen.setdefault(item.source, _Seen())
            seen.rows.append((now, item.latency))
            seen.frame_size, seen.objects, seen.index = item.result.frame_size, len(item.result), item.index
            seen.close_second(int(now - self._start))
            seen.latencies.append(item.latency)

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON::

            {"uptime_s": 12.4, "ended": false,
             "stages_ms": {"queue": {"p50": 1.1, "p95": 2.0}, "detect": ..., ...},
             "sources": [
                {"source": 0, "name": "clip.mp4", "kind": "file", "backend": "pyav", "policy": "every",
                 "state": "running", "error": null, "silent_s": 0.03,
                 "read": 310, "delivered": 305, "dropped": 5, "reconnects": 0, "fps_in": 25.0, "fps_out": 24.6,
                 "frame": 304, "objects": 1, "frame_size": [1280, 720],
                 "latency_ms": {"p50": 18.2, "p95": 24.9}, "history_ms": [null, 18.1, ...]}, ...]}

        ``stages_ms`` is of all sources together, as a stream runs them together; the stages are those of
        :class:`edgepose.stream_stats.StreamStats`, with what is left of ``inference`` as ``other``. ``latency_ms`` is
        of the 10 s before the newest frame, null before the first; ``history_ms`` the median of each of the last 60 s,
        null for a second without frames; ``silent_s`` the time since the last frame. ``state`` is the stream's, but
        ``stalled`` from the moment that can be seen, not only when the stream acts on it.
        """
        now, stats = self._clock(), self._stats()
        with self._lock:  # only to copy: the stream's thread must not wait for the sums below
            for seen in self._seen.values():
                seen.close_second(int(now - self._start))
            known = {n: replace(s, rows=s.rows.copy(), history=s.history.copy()) for n, s in self._seen.items()}
        sources = [self._source(source, known.get(source.number, _Seen()), now) for source in stats.sources]
        return {
            "uptime_s": round(now - self._start, 2),
            "ended": all(source["state"] in DONE for source in sources),
            "stages_ms": _stages(stats.latency),
            "sources": sources,
        }

    def _source(self, source: SourceStats, seen: _Seen, now: float) -> dict[str, Any]:
        rows = np.array(seen.rows, np.float64).reshape(-1, 2)
        silent = now - float(rows[-1, 0]) if len(rows) else None
        state: str = source.state
        if state == "running" and source.waiting == 0 and silent is not None and silent > _patience(rows[:, 0]):
            state = "stalled"
        latest = rows[rows[:, 0] > rows[-1, 0] - WINDOW, 1] if len(rows) else rows[:, 1]
        return {
            "source": source.number,
            "name": source.name,
            "kind": source.kind,
            "backend": source.backend,
            "policy": source.policy,
            "state": state,
            "error": source.last_error,
            "silent_s": None if silent is None else round(silent, 2),
            "read": source.read,
            "delivered": source.delivered,
            "dropped": source.dropped,
            "reconnects": source.reconnects,
            "fps_in": round(source.read_fps, 2),
            "fps_out": round(source.fps, 2),
            "frame": seen.index,
            "objects": seen.objects,
            "frame_size": None if seen.frame_size is None else list(seen.frame_size),
            "latency_ms": _percentiles(latest),
            "history_ms": self._history(seen, now),
        }

    def _history(self, seen: _Seen, now: float) -> list[float | None]:
        second = int(now - self._start)
        medians = dict(seen.history)
        return [medians.get(then) for then in range(max(0, second - HISTORY), second)]


def _stages(latency: dict[str, Percentiles]) -> dict[str, dict[str, float]]:
    """The stages side by side: those within ``inference`` in its place."""
    found = {name: _pair(latency[name]) for name in STAGES if name in latency}
    if whole := latency.get("inference"):
        inside = [found[name] for name in ("detect", "crop", "network", "decode") if name in found]
        # Of percentiles, not of each frame: close enough for what is left, and never below 0.
        found["other"] = {key: round(max(0.0, getattr(whole, key) - sum(p[key] for p in inside)), 3) for key in _PAIR}
    return {name: found[name] for name in STAGES if name in found}


_PAIR = ("p50", "p95")


def _pair(percentiles: Percentiles) -> dict[str, float]:
    return {key: round(getattr(percentiles, key), 3) for key in _PAIR}


def _patience(arrivals: NDArray[np.float64]) -> float:
    usual = float(np.median(np.diff(arrivals))) if len(arrivals) > 1 else 0.0
    return max(STALL, STALL_INTERVALS * usual)


def _percentiles(values: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p95 = np.percentile(values, (50, 95))
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}
