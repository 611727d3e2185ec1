"""How a stream reads its sources: StreamOptions and ReconnectPolicy."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgepose.arguments import check_choice, check_number, check_whole
from edgepose.errors import InputError

__all__ = ["Backend", "OnError", "Policy", "ReconnectPolicy", "StreamOptions"]

Policy = Literal["auto", "newest", "every"]
Backend = Literal["auto", "opencv", "pyav", "nvdec"]
OnError = Literal["continue", "raise"]

_LONGEST_QUEUE = 64
_MOST_DOUBLINGS = 64  # of a delay; keeps the power below finite


@dataclass(frozen=True)
class ReconnectPolicy:
    """When a live source that was lost is opened again: exponential back-off with jitter.

    The delay before attempt n (from 0) is ``min(max_delay, first_delay * factor**n)``, times a random number from
    ``1 - jitter`` to ``1 + jitter``, so that many streams do not knock at one server at the same moment. The first
    frame that arrives sets n to 0 again. With the defaults a source is back at most half as long after its return as
    it was away, jitter aside, and never more than 15 s.

    Attributes:
        max_attempts: so many failures in a row, and the source has failed for good; None: it is tried for ever, as a
            camera that has worked may be off for a night; 0: never opened again.
        first_attempts: the same for a source that has not given a single frame yet, if that is less: its address may
            be wrong. 8 take about 25 s, and what each attempt itself takes.
        first_delay: s.
        factor: at least 1.
        max_delay: s.
        jitter: 0 to 1.

    Raises:
        InputError: a value is outside of its range.
    """

    max_attempts: int | None = None
    first_attempts: int | None = 8
    first_delay: float = 0.5
    factor: float = 1.5
    max_delay: float = 15.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        for name in ("max_attempts", "first_attempts"):
            if getattr(self, name) is not None:
                check_whole(f"ReconnectPolicy.{name}", getattr(self, name), least=0)
        check_number("ReconnectPolicy.first_delay", self.first_delay, least=0)
        check_number("ReconnectPolicy.factor", self.factor, least=1)
        check_number("ReconnectPolicy.max_delay", self.max_delay, least=0)
        check_number("ReconnectPolicy.jitter", self.jitter, least=0, most=1)

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait before an attempt, counted from 0."""
        plain = min(self.max_delay, self.first_delay * self.factor ** min(attempt, _MOST_DOUBLINGS))
        return plain * rng.uniform(1 - self.jitter, 1 + self.jitter)

    def exhausted(self, failures: int, *, worked: bool) -> bool:
        """Whether so many failures in a row are the end; ``worked``: the source has given a frame before."""
        limits = (self.max_attempts,) if worked else (self.max_attempts, self.first_attempts)
        return any(limit is not None and failures > limit for limit in limits)


@dataclass(frozen=True)
class StreamOptions:
    """How a stream reads its sources.

    Attributes:
        policy: what happens to frames that arrive faster than they are processed. ``newest``: a slot of one, the older
            frame is dropped and counted. ``every``: a queue that makes the reader wait. ``auto``: ``newest`` for live
            sources, ``every`` for files, folders and iterators. A file with ``newest`` plays in real time.
        backend: what reads files and URLs. ``auto``: PyAV where it is installed, else OpenCV. Cameras are always
            OpenCV's. ``nvdec`` decodes on the GPU and hands over device frames.
        queue: frames that wait in a queue of ``every``, 1 to 64.
        timeout: seconds without a frame after which a live source counts as stalled and is opened again.
        open_timeout: seconds that opening a live source may take, its first frame included.
        reconnect: when a lost live source is opened again.
        on_error: ``continue``: a source that has failed for good is logged, its error stands in the stats, the others
            go on, and the error is raised at the end if the stream delivered nothing at all. ``raise``: it ends the
            stream with its error. An exception in an iterator of yours is raised in either case.
        max_batch: the largest number of frames in one round; None: one of each source.
        fps: frames a second of what has no time stamps: a folder of photos, or an iterator of plain frames. None: 25
            for a folder, as FFmpeg has it, and the time of arrival for an iterator.
        gpu: number of the GPU that decodes, with ``nvdec``.
        open_options: options of FFmpeg's protocols and demuxers, for instance ``{"rtsp_transport": "udp"}``; PyAV only.

    Raises:
        InputError: a value is outside of its range.
    """

    policy: Policy = "auto"
    backend: Backend = "auto"
    queue: int = 3
    timeout: float = 5.0
    open_timeout: float = 10.0
    reconnect: ReconnectPolicy = field(default_factory=ReconnectPolicy)
    on_error: OnError = "continue"
    max_batch: int | None = None
    fps: float | None = None
    gpu: int = 0
    open_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, ("auto", "newest", "every"))
        check_choice("backend", self.backend, ("auto", "opencv", "pyav", "nvdec"))
        check_choice("on_error", self.on_error, ("continue", "raise"))
        check_whole("queue", self.queue, most=_LONGEST_QUEUE)
        check_whole("gpu", self.gpu, least=0)
        check_number("timeout", self.timeout, least=0.01)
        check_number("open_timeout", self.open_timeout, least=0.01)
        if self.max_batch is not None:
            check_whole("max_batch", self.max_batch, least=1)
        if self.fps is not None:
            check_number("fps", self.fps, least=1e-3)
        if not isinstance(self.reconnect, ReconnectPolicy):
            raise InputError(f"reconnect must be a ReconnectPolicy, got {type(self.reconnect).__name__}")
        if self.open_options and self.backend not in ("auto", "pyav"):
            raise InputError(f"open_options are PyAV's: they do not go with backend={self.backend!r}")
