"""Readers of what the caller holds: iterators, callables, photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from edgepose.errors import InputError
from edgepose.media import read_photo
from edgepose.sources.reader import Captured

__all__ = ["CallableReader", "IteratorReader", "PhotoReader", "is_frame", "is_timed_frame"]

PHOTO_FPS = 25.0  # FFmpeg's for numbered pictures


def is_frame(value: Any) -> bool:
    """Whether a value is an array, in host or device memory (by NumPy's, CUDA's or DLPack's protocol)."""
    return any(hasattr(value, name) for name in ("__array_interface__", "__cuda_array_interface__", "__dlpack__"))


def is_timed_frame(value: Any) -> bool:
    """Whether a value is ``(frame, time)``."""
    return isinstance(value, tuple) and len(value) == 2 and is_frame(value[0]) and isinstance(value[1], Real)


class IteratorReader:
    """Frames, or (frame, seconds), of an iterator; exceptions in it go through.

    Args:
        frames: the iterator. A frame waits in a queue: do not write to it once it was given.
        fps: gives plain frames the times 0, 1 / fps, ...; None: they have the time of their arrival.
        live: whether its frames come at their own pace.
    """

    backend = "python"
    note = None

    def __init__(self, frames: Iterator[Any], fps: float | None = None, *, live: bool = False) -> None:
        self.live = live
        self._frames = frames
        self._fps = fps
        self._count = 0

    def read(self) -> Captured | None:
        """The iterator's next frame."""
        for value in self._frames:
            return self._captured(value)
        return None

    def _captured(self, value: Any) -> Captured:
        number, self._count = self._count, self._count + 1
        if is_frame(value):
            return Captured(value, None if self._fps is None else number / self._fps)
        if is_timed_frame(value):
            return Captured(value[0], float(value[1]))
        raise InputError(
            f"an iterator of frames must give arrays, (H, W, 3) uint8 BGR, or (frame, seconds); "
            f"its value {number} is {_described(value)}"
        )

    def cancel(self) -> None:
        """Nothing can make an iterator return."""

    def close(self) -> None:
        """Close it, if it is a generator."""
        close = getattr(self._frames, "close", None)
        if callable(close):
            close()


class CallableReader(IteratorReader):
    """A function that gives a frame at each call, or (frame, seconds), and None at the end."""

    def __init__(self, function: Callable[[], Any], first: Any, fps: float | None = None) -> None:
        super().__init__(_calls(function, first), fps, live=True)


def _calls(function: Callable[[], Any], first: Any) -> Iterator[Any]:
    value = first
    while value is not None:
        yield value
        value = function()


class PhotoReader:
    """Photos, one after the other; times 0, 1 / fps, ... Those that cannot be read are left out, and ``note`` says so.

    Raises:
        InputError: not one of them can be read.
    """

    backend = "opencv"
    live = False
    note: str | None = None

    def __init__(self, photos: Sequence[Path], fps: float | None = None) -> None:
        self._photos = photos
        self._fps = fps or PHOTO_FPS
        self._next = self._unreadable = 0

    def read(self) -> Captured | None:
        """The next photo."""
        while self._next < len(self._photos):
            number, self._next = self._next, self._next + 1
            try:
                return Captured(read_photo(self._photos[number]), number / self._fps)
            except InputError as error:
                self._unreadable += 1
                self.note = f"{self._unreadable} of {len(self._photos)} photos were left out: {error}"
                if self._unreadable == len(self._photos):
                    raise
        return None

    def cancel(self) -> None:
        """A photo is read in no time."""

    def close(self) -> None:
        """Nothing is open."""


def _described(value: Any) -> str:
    if value is None:
        return "None (cv2.imread returns it for an unreadable file)"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: {', '.join(type(item).__name__ for item in value[:4])}"
    return f"of type {type(value).__name__}"
