"""Keypoints -> training heatmaps: the ``msra``, ``dark`` and ``udp`` codecs in the numerical form of MMPose 1.3.2.

    msra   a Gaussian patch around the nearest cell (Xiao et al., "Simple Baselines", ECCV 2018)
    dark   a Gaussian over the whole map at the exact position (Zhang et al., "DARK", CVPR 2020)
    udp    a patch around the nearest cell, with the Gaussian at the exact position (Huang et al., "UDP", CVPR 2020)

Decoding is :func:`edgepose.kernels.reference.decode_heatmaps`: ``shift`` for msra, ``dark`` and ``dark_udp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import InputError

__all__ = ["cell_size", "encode"]

FAR_AWAY = 1e6  # cells; a keypoint beyond is as far outside as one here, and still fits an integer


def encode(
    keypoints: ArrayLike,  # (K, 2) crop px
    visible: ArrayLike,  # (K,) 0 to 1
    *,
    codec: Literal["msra", "dark", "udp"],
    input_size: Sequence[int],  # (w, h) px
    heatmap_size: Sequence[int],  # (w, h) cells
    sigma: float = 2.0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One heatmap for each keypoint, and its weight in the loss.

    Args:
        keypoints: (K, 2) crop px, an integer is a pixel's centre. Values at keypoints that are not visible don't
            matter and may be NaN.
        visible: (K,); from 0.5 on a keypoint gets a Gaussian.
        codec: ``"udp"`` measures a crop from pixel centre to pixel centre, so a cell is (input - 1) / (heatmap - 1)
            px; for the others it is input / heatmap px.
        sigma: of the Gaussian, in cells; patches reach 3 sigma.

    Returns:
        heatmaps (K, h, w) float32, peak at most 1; weights (K,) float32: ``visible`` as given, but 0 where a visible
        keypoint's 3 sigma patch misses the map. As in MMPose, a patch that ends just before cell 0 still counts as a
        hit (weight kept, empty map), and positions round towards zero, so cells -1.5 to -0.5 count as cell 0.

    Raises:
        InputError: a shape, size, codec or sigma that does not fit, or a visible keypoint that is not finite.
    """
    points, seen = np.asarray(keypoints, np.float32), np.asarray(visible, np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or seen.shape != points.shape[:1]:
        raise InputError(f"expected keypoints (K, 2) and visible (K,), got {points.shape} and {seen.shape}")
    if codec not in ("msra", "dark", "udp"):
        raise InputError(f'codec must be "msra", "dark" or "udp", got {codec!r}')
    if not sigma > 0:
        raise InputError(f"sigma must be above 0, got {sigma}")
    drawn = seen >= 0.5
    bad = drawn & ~np.isfinite(points).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"keypoint {row} is visible but not finite: {points[row].tolist()}; mark it as not visible")
    cells = cell_size(codec, input_size, heatmap_size)
    limits = np.array(heatmap_size, np.int64)
    positions = np.clip(np.where(drawn[:, None], points, 0) / cells, -FAR_AWAY, FAR_AWAY).astype(np.float32)

    radius = sigma * 3
    if codec == "dark":
        first, end, peaks = positions - radius, positions + radius + 1, positions
    else:
        nearest = (positions + np.float32(0.5)).astype(np.int64)  # towards zero, as MMPose does
        first, end = (nearest - radius).astype(np.int64), (nearest + radius + 1).astype(np.int64)
        peaks = first + (2 * radius + 1) // 2
        if codec == "udp":
            peaks = peaks + (positions - nearest)
    inside = ((first < limits) & (end >= 0)).all(axis=1)
    weights = np.where(drawn & ~inside, np.float32(0), seen)

    profiles = []  # exp(-d^2 / 2 sigma^2) is the product of one profile in x and one in y
    for axis, length in enumerate(limits):
        x = np.arange(length)
        profile = np.exp(-((x - peaks[:, axis, None].astype(np.float64)) ** 2) / (2 * sigma**2))
        if codec != "dark":
            profile[(x < first[:, axis, None]) | (x >= end[:, axis, None])] = 0
        profile[~(drawn & inside)] = 0
        profiles.append(profile)
    return (profiles[1][:, :, None] * profiles[0][:, None, :]).astype(np.float32), weights


def cell_size(codec: str, input_size: Sequence[int], heatmap_size: Sequence[int]) -> NDArray[np.float32]:
    """(2,) float32: crop px for each heatmap cell, in x and y. Raises InputError for sizes that do not fit."""
    least = 2 if codec == "udp" else 1
    for name, size in (("input_size", tuple(input_size)), ("heatmap_size", tuple(heatmap_size))):
        if len(size) != 2 or any(int(side) != side or side < least for side in size):
            raise InputError(f"{name} must be two whole numbers (w, h) of at least {least}, got {size}")
    size, cells = np.array(input_size, np.float64), np.array(heatmap_size, np.float64)
    return ((size - 1) / (cells - 1) if codec == "udp" else size / cells).astype(np.float32)
