"""What one run of a pose network needs of its own while it is under way: pinned memory for its record and results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.kernels._call import FRAME, call_size, call_views

__all__ = ["Chunk"]


class Chunk:
    """Room for ``crops`` crops.

    Attributes:
        record: (call_size(crops),) uint8 pinned, see kernels/_call.py.
        results: (crops, K, 3) float32 pinned: x, y, score.
        marks: four events around the three stages, where no graph hides them; else None.
    """

    def __init__(
        self,
        crops: int,
        keypoints: int,
        pinned: Callable[[int], NDArray[np.uint8]],
        marks: list[Any] | None = None,
    ) -> None:
        self.record = pinned(call_size(crops))
        self.results = pinned(crops * keypoints * 12).view(np.float32).reshape(crops, keypoints, 3)
        self.record_address, self.results_address = self.record.ctypes.data, self.results.ctypes.data
        self.marks = marks
        self._header, instances = call_views(self.record, crops)
        size = instances.dtype.itemsize
        # An instance begins with its frame: copied as bytes, at a tenth of the cost of a copy by fields.
        self._frames = self.record[call_size(0) :].reshape(crops, size)[:, : FRAME.itemsize]
        self._sample, self._place, self._first = (instances[name] for name in ("sample", "place", "first"))
        self._halvings, self._channels = instances["halvings"], instances["channels"]
        self._owner = instances["owner"]
        self._all_channels = (0, keypoints)

    def write(
        self,
        frames: NDArray[np.void],  # (B,) FRAME: where the frames of the call are
        owners: NDArray[np.int32],  # (n,)
        samples: NDArray[np.float64],  # (n, 2, 3), and
        first: NDArray[np.int64],  # (n, 2), and
        halvings: NDArray[np.int64],  # (n,): as plan_crops makes them
        places: NDArray[np.float64],  # (n, 2, 3) heatmap cells -> frame px
        channels: NDArray[np.int32] | None,  # (n, 2); None: all
    ) -> int:
        """Fill the record for n crops; returns how many bytes of it there are."""
        count = len(owners)
        self._header["count"] = self._header["total"] = count
        self._frames[:count] = frames.view(np.uint8).reshape(len(frames), FRAME.itemsize)[owners]
        self._owner[:count] = owners
        self._sample[:count] = samples
        self._place[:count] = places
        self._first[:count] = first
        self._halvings[:count] = halvings
        self._channels[:count] = self._all_channels if channels is None else channels
        return call_size(count)
