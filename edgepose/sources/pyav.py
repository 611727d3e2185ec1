"""Files and URLs through PyAV, FFmpeg's libraries for Python (an extra: its wheels hold parts under the GPL)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgepose.errors import MissingDependencyError, SourceError
from edgepose.sources.opencv import DEFAULT_FPS, missing_frames
from edgepose.sources.reader import Captured, without_password

__all__ = ["PyAVReader"]

MOST_DAMAGED = 250  # packets in a row; then a live source is better opened again


class PyAVReader:
    """The first video stream of a file or URL, upright as its display matrix says.

    Damaged packets are skipped and counted in ``note``; a frame has the size that it has in the stream, and it may
    change from one to the next.

    Args:
        target: path or URL.
        live: whether it is; of a URL it is found out: what has a duration is a recording.
        open_timeout, timeout: s that opening, and waiting for data, may take.
        options: of FFmpeg's protocol and demuxer. RTSP goes through TCP if they do not say otherwise.

    Raises:
        SourceError: it does not open, or holds no video.
        MissingDependencyError: PyAV is not installed.
    """

    backend = "pyav"

    def __init__(
        self, target: str, *, url: bool, live: bool, open_timeout: float, timeout: float, options: Mapping[str, str]
    ) -> None:
        self._av = _import_av()
        self._name = without_password(target)
        settings = {"rtsp_transport": "tcp"} if target.startswith(("rtsp://", "rtsps://")) else {}
        limits = (open_timeout, timeout) if url else None
        try:
            self._container = self._av.open(target, options={**settings, **options}, timeout=limits)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{self._name} cannot be opened: {_reason(error)}") from error
        streams = self._container.streams.video
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing known"
            self._container.close()
            raise SourceError(f"{self._name} holds no video stream, only {kinds}")
        self._stream = streams[0]
        # Only HTTP serves recordings too; what has a duration is one.
        self.live = live and not (self._container.duration and target.lower().startswith("http"))
        # Frame threading decodes n frames at once, and gives each n - 1 frames late: not for what is live.
        self._stream.thread_type = "SLICE" if self.live else "AUTO"
        self._start = float(self._stream.start_time * self._stream.time_base) if self._stream.start_time else 0.0
        self._fps = float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_FPS)
        self._announced = int(self._stream.frames)
        if not self._announced and self._container.duration and self._stream.average_rate:  # µs; some containers
            self._announced = int(self._container.duration * 1e-6 * self._fps)
        self._count = self._damaged = 0
        self._cancelled = self._ended = False
        self._frames = self._decode()

    @property
    def note(self) -> str | None:
        """How many packets were damaged, or that the file is cut off."""
        if self._damaged:
            return f"{self._damaged} damaged packets were skipped"
        if self.live or not self._ended:
            return None
        return missing_frames(self._count, self._announced)

    def read(self) -> Captured | None:
        """The next frame."""
        try:
            captured = next(self._frames, None)
        except (self._av.FFmpegError, OSError) as error:
            raise SourceError(f"{self._name} was lost: {_reason(error)}") from error
        if captured is None:
            self._ended = True
            if self._count == 0 and not self._cancelled:
                raise SourceError(f"{self._name} opens, but not one frame of it can be decoded")
        return captured

    def _decode(self) -> Iterator[Captured]:
        in_a_row = 0
        for packet in self._container.demux(self._stream):
            if self._cancelled:
                return
            try:
                frames = packet.decode()
            except self._av.error.InvalidDataError:
                self._damaged += 1
                in_a_row += 1
                if self.live and in_a_row >= MOST_DAMAGED:
                    raise
                continue
            in_a_row = 0
            for frame in frames:
                yield self._captured(frame)

    def _captured(self, frame: Any) -> Captured:
        number, self._count = self._count, self._count + 1
        image = frame.to_ndarray(format="bgr24")
        if turns := round(frame.rotation / 90) % 4:  # anticlockwise, as NumPy turns
            image = np.ascontiguousarray(np.rot90(image, turns))
        if self.live:
            return Captured(image)
        return Captured(image, number / self._fps if frame.time is None else float(frame.time) - self._start)

    def cancel(self) -> None:
        """Ends a read at the next packet; a silent server is given up after the time limit."""
        self._cancelled = True

    def close(self) -> None:
        """Close decoder and file."""
        self._frames.close()  # type: ignore[attr-defined]  # it is a generator
        self._container.close()


def _import_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise MissingDependencyError(
            "backend='pyav' needs PyAV: pip install 'edgepose[av]'; or read with backend='opencv'"
        ) from error


def _reason(error: Exception) -> str:
    if type(error).__name__ == "ExitError":  # what FFmpeg says when PyAV's time limit ends a call
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
