"""The arguments of decode_heatmaps, checked alike for the twin and for the CUDA kernel."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Refinement", "check_cells_to_frame", "check_channel_ranges", "check_flip", "check_refinement"]

Refinement = Literal["none", "shift", "dark", "dark_udp"]


def check_refinement(refinement: str, blur_kernel: int) -> int:
    """blur_kernel as an int. Raises ValueError for a refinement or a kernel that there is not."""
    if refinement not in ("none", "shift", "dark", "dark_udp"):
        raise ValueError(f'refinement must be "none", "shift", "dark" or "dark_udp", got {refinement!r}')
    if int(blur_kernel) != blur_kernel or blur_kernel < 1 or blur_kernel % 2 == 0:
        raise ValueError(f"blur_kernel must be an odd whole number of at least 1, got {blur_kernel}")
    return int(blur_kernel)


def check_flip(flip_indices: ArrayLike | None, shape: tuple[int, ...], mirrored: tuple[int, ...]) -> NDArray[np.int64]:
    """flip_indices as (K,) int64, for heatmaps and flipped of these shapes. Raises ValueError where they do not fit."""
    if mirrored != shape:
        raise ValueError(f"heatmaps {shape} and flipped {mirrored} must have one shape (N, K, h, w)")
    if flip_indices is None:
        raise ValueError("flipped needs flip_indices: the channel that each heatmap becomes in the mirror")
    indices, channels = np.asarray(flip_indices), shape[1]
    if indices.size == 0:
        indices = indices.astype(np.int64)
    if indices.shape != (channels,) or indices.dtype.kind not in "iu" or not _within(indices, 0, channels - 1):
        raise ValueError(
            f"flip_indices must hold {channels} channel numbers from 0 to {channels - 1}, one for each heatmap, "
            f"got shape {indices.shape}: {indices.tolist()[:20]}"
        )
    return indices.astype(np.int64)


def check_channel_ranges(channel_ranges: ArrayLike | None, count: int, channels: int) -> NDArray[np.int64] | None:
    """channel_ranges as (count, 2) int64, None for None. Raises ValueError where they do not fit."""
    if channel_ranges is None:
        return None
    ranges = np.asarray(channel_ranges)
    if count == 0 and ranges.size == 0:
        return np.zeros((0, 2), np.int64)
    fits = ranges.shape == (count, 2) and ranges.dtype.kind in "iu" and _within(ranges, 0, channels)
    if not fits or np.any(ranges[:, 0] > ranges[:, 1]):
        raise ValueError(
            f"channel_ranges must be ({count}, 2) integers, 0 <= begin <= end <= {channels} in each row, "
            f"got shape {ranges.shape}: {ranges.tolist()[:10]}"
        )
    return ranges.astype(np.int64)


def check_cells_to_frame(cells_to_frame: ArrayLike | None, count: int) -> NDArray[np.float64] | None:
    """cells_to_frame as (count, 2, 3) float64, None for None. Raises ValueError where they do not fit."""
    if cells_to_frame is None:
        return None
    matrices = np.asarray(cells_to_frame, np.float64)
    if count == 0 and matrices.size == 0:
        return np.zeros((0, 2, 3))
    if matrices.shape != (count, 2, 3) or not np.isfinite(matrices).all():
        raise ValueError(f"cells_to_frame must be ({count}, 2, 3) finite numbers, got shape {matrices.shape}")
    return matrices


def _within(values: NDArray[Any], low: int, high: int) -> bool:
    return not values.size or bool(low <= values.min() and values.max() <= high)
