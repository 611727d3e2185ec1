"""What goes up to the GPU and comes down: pinned memory, its copies in device memory, and the copying itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.kernels._call import call_size, call_views
from edgepose.kernels._crop import CropPlan
from edgepose.pipelines.device_frames import FrameView

__all__ = ["Chunk", "Located", "WindowUpload"]

PIECE = 1 << 20  # bytes of the frame that are copied to pinned memory while the piece before is being uploaded
FIRST_WINDOW = 1920 * 1080 * 3  # bytes: a larger window makes the memory grow

Pinned = Callable[[int], NDArray[np.uint8]]
# Address of pixel (left, top), bytes to the next row, pixel and channel; left and top of what is in device memory, px.
Located = tuple[int, int, int, int, int, int]


class Chunk:
    """What the boxes of one run of the network need of their own, in pinned memory.

    Attributes:
        record: (call_size(crops),) uint8, see kernels/_call.py.
        results: (crops, K, 3) float32: x, y, score.
    """

    def __init__(self, crops: int, keypoints: int, pinned: Pinned) -> None:
        self.record = pinned(call_size(crops))
        self.results = pinned(crops * keypoints * 12).view(np.float32).reshape(crops, keypoints, 3)
        self.record_address, self.results_address = self.record.ctypes.data, self.results.ctypes.data
        self._header, instances = call_views(self.record, crops)
        self._sample, self._place, self._first = (instances[name] for name in ("sample", "place", "first"))
        self._halvings, self._channels = instances["halvings"], instances["channels"]
        self._all_channels = (0, keypoints)

    def write(
        self,
        part: slice,
        size: tuple[int, int],
        located: Located,
        plan: CropPlan,
        places: NDArray[np.float64],
        channels: NDArray[np.int32] | None,
    ) -> None:
        """Fill the record for the boxes ``part`` of a frame of ``size`` (w, h) that lies at ``located``."""
        count = part.stop - part.start
        address, row, pixel, channel, left, top = located
        self._header[()] = (address, row, pixel, channel, *size, left, top, count, 0)
        self._sample[:count] = plan.samples[part]
        self._place[:count] = places[part]
        self._first[:count] = plan.first[part]
        self._halvings[:count] = plan.halvings[part]
        self._channels[:count] = self._all_channels if channels is None else channels[part]


class WindowUpload:
    """The part of a host frame that the crops see: staged in pinned memory, uploaded in pieces while it is staged.

    Args:
        pinned, device: allocate so many bytes, in pinned and in device memory (a CuPy array).
        copy: ``copy(target, source, size)`` puts a copy to the device on the stream.
    """

    def __init__(self, pinned: Pinned, device: Callable[[int], Any], copy: Callable[[int, int, int], None]) -> None:
        self._pinned, self._device, self._copy = pinned, device, copy
        self._allocate(FIRST_WINDOW)

    def _allocate(self, size: int) -> None:
        staging, target = self._pinned(size), self._device(size)  # both, or neither
        self._staging, self._target = staging, target
        self._staging_address, self._target_address = staging.ctypes.data, int(target.data.ptr)

    def send(self, frame: FrameView, window: tuple[int, int, int, int]) -> Located:
        """Upload the window xyxy of a host frame; nothing may be under way in these buffers, and nothing is waited for.

        Rows are packed, but to whole 32-bit words: that is how the crop kernel likes to read.
        """
        assert frame.host is not None
        left, top, right, bottom = window
        view = frame.host[top:bottom, left:right]
        rows, width, channels = view.shape
        row_bytes = -(-width * channels // 4) * 4
        if rows * row_bytes > len(self._staging):
            self._allocate(max(rows * row_bytes, frame.host.size))  # the whole frame: a box may come nearer every frame
        pixels = np.ndarray(view.shape, np.uint8, self._staging.data, 0, (row_bytes, channels, 1))
        step = max(1, PIECE // max(row_bytes, 1))
        for first in range(0, rows, step):
            piece = view[first : first + step]
            np.copyto(pixels[first : first + step], piece)
            start = first * row_bytes
            self._copy(self._target_address + start, self._staging_address + start, len(piece) * row_bytes)
        _, pixel, channel = frame.strides
        address = self._target_address + (channels - 1 if channel < 0 else 0)
        return address, row_bytes, pixel, channel, left, top
