"""Cameras for `edgepose bench streams`: frames at a steady pace, kept as a driver or a thread that reads keeps them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic

import numpy as np
from numpy.typing import NDArray

__all__ = ["Buffer", "Camera"]

DRIVER_BUFFERS = 4  # as OpenCV asks V4L2 for

Frame = NDArray[np.uint8]  # (H, W, 3) BGR


class Buffer:
    """Frames that nobody has taken yet.

    Args:
        newest: keep one frame, the newest, as a thread does that reads all the time. False: keep DRIVER_BUFFERS, and
            drop what comes while they are full, as a driver without a free buffer does.
    """

    def __init__(self, newest: bool) -> None:
        self._newest = newest
        self._frames: deque[tuple[Frame, float]] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame, time: float) -> None:
        """A frame that was captured at ``time``, s."""
        if self._newest:
            self._frames.clear()
        if len(self._frames) < DRIVER_BUFFERS:
            self._frames.append((frame.copy(), time))

    def take(self) -> tuple[Frame, float]:
        """The oldest that is kept."""
        return self._frames.popleft()


class Camera:
    """Iterates (frame, when it was captured on the monotonic clock, s), in real time; films from now on.

    Args:
        frames: what it sees, over and over.
        fps: frames a second.
        seconds: how long it films.
        newest: see :class:`Buffer`.
    """

    def __init__(self, frames: Sequence[Frame], fps: float, seconds: float, *, newest: bool = False) -> None:
        self._frames, self._period, self._end = frames, 1 / fps, monotonic() + seconds
        self._buffer = Buffer(newest)
        self._changed = threading.Condition()
        self._filming = True
        threading.Thread(target=self._film, daemon=True).start()

    def _film(self) -> None:
        number, due = 0, monotonic()
        pause = threading.Event()
        while due < self._end:
            pause.wait(max(0.0, due - monotonic()))
            with self._changed:
                self._buffer.put(self._frames[number % len(self._frames)], monotonic())
                self._changed.notify_all()
            number, due = number + 1, due + self._period
        with self._changed:
            self._filming = False
            self._changed.notify_all()

    def __iter__(self) -> Iterator[tuple[Frame, float]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._buffer) or not self._filming)
                if not len(self._buffer):
                    return
                item = self._buffer.take()
            yield item
