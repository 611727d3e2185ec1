"""What a stream tells of itself: counters and states of its sources, latencies by stage."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["STAGES", "LatencyWindow", "Percentiles", "Rate", "SourceState", "SourceStats", "StreamStats"]

SourceState = Literal["opening", "running", "stalled", "reconnecting", "ended", "failed", "closed"]

# The first three add up to `total`; the others are parts of `inference`, as the result's Timings tell them.
STAGES = ("queue", "inference", "tracking", "total", "detect", "crop", "network", "decode")

WINDOW = 512  # latest frames that percentiles are made of
RATE_FRAMES = 32  # latest frames that a rate is made of


@dataclass(frozen=True)
class Percentiles:
    """Of the latest frames (512 at most), ms."""

    p50: float
    p95: float
    p99: float
    count: int


@dataclass(frozen=True)
class SourceStats:
    """One source at one moment.

    Attributes:
        number: its place among the sources.
        name: path, address without password, ``camera 0``, or a type.
        kind: ``camera``, ``file``, ``url``, ``gstreamer``, ``folder``, ``photo``, ``iterator`` or ``callable``.
        backend: what reads it; empty until it is open.
        policy: ``newest`` or ``every``; empty while that depends on what will be opened.
        state: ``stalled``: no frame for ``timeout`` seconds from something that cannot be opened again.
        read: frames that the reader handed over.
        dropped: those that a newer one replaced.
        delivered: those that came out of the stream.
        waiting: those that wait now.
        reconnects: how often it was opened again.
        hanging: threads that were given up, because they were blocked, and have not ended yet.
        read_fps, fps: frames a second handed over, and delivered.
        last_error: the last thing that went wrong, also if it was overcome; None: nothing.
    """

    number: int
    name: str
    kind: str
    backend: str
    policy: str
    state: SourceState
    read: int
    dropped: int
    delivered: int
    waiting: int
    reconnects: int
    hanging: int
    read_fps: float
    fps: float
    last_error: str | None


@dataclass(frozen=True)
class StreamStats:
    """A stream at one moment.

    Attributes:
        sources: in their order.
        latency: by stage (``STAGES``), ms. ``queue``: from the reader's handing over, or of a recording from taking
            the frame, to the start of the round; ``inference``: from there to the results; ``tracking``: tracker and
            smoother, the round's sources before this one included; ``total``: their sum, ``StreamItem.latency``.
            ``detect``, ``crop``, ``network`` and ``decode`` as in :class:`~edgepose.Timings`. Stages without a value
            are left out.
        rounds: how often the predictor was called.
        elapsed: s since the stream was opened.
        threads: reader threads that are alive, the hanging ones too.
    """

    sources: tuple[SourceStats, ...]
    latency: dict[str, Percentiles]
    rounds: int
    elapsed: float
    threads: int

    @property
    def read(self) -> int:
        """Frames that the readers handed over."""
        return sum(source.read for source in self.sources)

    @property
    def dropped(self) -> int:
        """Frames that newer ones replaced."""
        return sum(source.dropped for source in self.sources)

    @property
    def delivered(self) -> int:
        """Frames that came out of the stream."""
        return sum(source.delivered for source in self.sources)

    @property
    def fps(self) -> float:
        """Frames a second delivered now, over all sources."""
        return sum(source.fps for source in self.sources)

    @property
    def last_error(self) -> str | None:
        """The last error of the first source that has one."""
        return next((source.last_error for source in self.sources if source.last_error), None)


class Rate:
    """Events a second, of the latest ones; it falls when they stop."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=RATE_FRAMES)

    def add(self, now: float) -> None:
        """Count an event."""
        self._times.append(now)

    def at(self, now: float) -> float:
        """Events a second at a moment."""
        if len(self._times) < 2:
            return 0.0
        first, last = self._times[0], self._times[-1]
        usual = (last - first) / (len(self._times) - 1)
        end = last if now - last <= 2 * usual else now
        return (len(self._times) - 1) / (end - first) if end > first else 0.0


class LatencyWindow:
    """The latest latencies of each stage, ms."""

    def __init__(self) -> None:
        self._latest: dict[str, deque[float]] = {stage: deque(maxlen=WINDOW) for stage in STAGES}

    def add(self, **stages: float) -> None:
        """Add one frame's; names are those of ``STAGES``."""
        for stage, value in stages.items():
            self._latest[stage].append(value)

    def percentiles(self) -> dict[str, Percentiles]:
        """Of each stage that has a value."""
        return {stage: _percentiles(values) for stage, values in self._latest.items() if values}


def _percentiles(values: deque[float]) -> Percentiles:
    p50, p95, p99 = np.percentile(np.array(values), (50, 95, 99))
    return Percentiles(float(p50), float(p95), float(p99), len(values))
