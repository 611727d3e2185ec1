"""The flip test: undo the mirror on heatmaps and average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["flip_heatmaps", "merge_flipped"]


def flip_heatmaps(
    heatmaps: NDArray[Any],  # (N, K, h, w) floating, of the mirrored crop
    flip_indices: ArrayLike,  # (K,) int, channel k of the result is channel flip_indices[k] of the input
    *,
    shift: bool,
) -> NDArray[Any]:
    """Heatmaps (N, K, h, w) of a mirrored crop -> heatmaps of the crop itself, a new array of the same dtype.

    The columns are reversed and the channels swapped. With ``shift`` every column then moves one cell to the right
    and column 0 stays as it is, which is MMPose's ``shift_heatmap`` for models of the ``msra`` codec: their cells
    are input/heatmap pixels apart, so a mirrored crop lands up to one cell to the left. Leave it off for ``udp``.

    Raises ValueError for a shape or for indices that do not fit.
    """
    if heatmaps.ndim != 4:
        raise ValueError(f"heatmaps must have the shape (N, K, h, w), got {heatmaps.shape}")
    channels = heatmaps.shape[1]
    indices = np.asarray(flip_indices, dtype=np.int64)
    if indices.shape != (channels,) or np.any((indices < 0) | (indices >= channels)):
        raise ValueError(
            f"flip_indices must hold {channels} channel numbers from 0 to {channels - 1}, one for each heatmap, "
            f"got shape {indices.shape}: {indices.tolist()[:20]}"
        )
    flipped = heatmaps[:, indices, :, ::-1]  # indexing with an array copies, so the shift below touches no argument
    if not shift:
        return np.ascontiguousarray(flipped)
    shifted = np.empty(flipped.shape, flipped.dtype)
    shifted[..., :1] = flipped[..., :1]
    shifted[..., 1:] = flipped[..., :-1]
    return shifted


def merge_flipped(
    heatmaps: NDArray[Any],  # (N, K, h, w) float32 or float16, of the crop
    flipped: NDArray[Any],  # (N, K, h, w) float32 or float16, of the mirrored crop
    flip_indices: Sequence[int] | NDArray[np.integer[Any]],  # (K,)
    *,
    shift: bool,
) -> NDArray[np.float32]:
    """Flip test: ``0.5 * (heatmaps + flip_heatmaps(flipped))`` -> (N, K, h, w) float32, a new array.

    ``flipped`` are the network's own maps for the mirrored crop; see :func:`flip_heatmaps` for ``shift``.
    The mean is taken in float32 whatever the input's precision. Raises ValueError where the shapes differ.
    """
    if heatmaps.shape != flipped.shape:
        raise ValueError(f"heatmaps {heatmaps.shape} and flipped {flipped.shape} must have one shape (N, K, h, w)")
    merged = flip_heatmaps(flipped, flip_indices, shift=shift).astype(np.float32, copy=False)
    merged += heatmaps
    merged *= np.float32(0.5)
    return merged
