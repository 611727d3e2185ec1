"""decode_heatmaps: the NumPy twin of the decode kernel (see :mod:`edgepose.kernels.reference`).

Sub-pixel refinement: Zhang et al., "Distribution-Aware Coordinate Representation" (DARK, CVPR 2020), and Huang et al.,
"The Devil is in the Details" (UDP, CVPR 2020), in the numerical form of MMPose 1.3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._decode_arguments import Refinement, check_cells_to_frame, check_channel_ranges, check_flip, check_refinement
from ._flip import merge_flipped

__all__ = ["decode_heatmaps"]

NO_PEAK = -1.0  # the location, in x and y, of a map without a value above 0
DARK_FLOOR = 1e-10  # DARK takes the logarithm of max(value, 1e-10)
UDP_FLOOR, UDP_CEILING = 1e-3, 50.0  # UDP of min(max(value, 1e-3), 50)
MARGIN = 1e-3  # relative; keeps the float32 rounding of the blur (1e-6) on the safe side of a floor or ceiling
HALF_INFINITY = 0x7C00  # the bits of +inf in float16; larger ones, as int16, are NaN
# Cells for each unit of a logarithm: 8 on a clean peak of sigma 2. Below this the local window stays within 3e-4 px of
# MMPose on noise (at 2e4: 4e-2 px), above it MMPose's own operations are repeated.
MAX_AMPLIFICATION = 2e2


def decode_heatmaps(
    heatmaps: ArrayLike,  # (N, K, h, w) float32 or float16
    *,
    refinement: Refinement = "none",
    blur_kernel: int = 11,
    flipped: ArrayLike | None = None,  # (N, K, h, w) float32 or float16, of the mirrored crops
    flip_indices: ArrayLike | None = None,  # (K,) int
    flip_shift: bool = False,
    channel_ranges: ArrayLike | None = None,  # (N, 2) int, [begin, end)
    cells_to_frame: ArrayLike | None = None,  # (N, 2, 3) float64, heatmap cells -> frame px
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The peak of each heatmap, refined below the size of a cell.

    The peak is the first maximum in row-major order. NaN counts as minus infinity. A map without a value above 0 has
    no peak: its location is (-1, -1) and its score 0, whatever the refinement. A result is never NaN and depends on
    its own map only.

    Args:
        heatmaps: (N, K, h, w), any strides. float32 and float16; float64, integers and lists are rounded to
            float32. N and K may be 0; an empty list is N = K = 0.
        refinement: ``"none"``: the peak's cell.
            ``"shift"``: a quarter of a cell towards the larger neighbour, in x and y each; neither the outermost cells
            nor x = 1 or y = 1 move in that direction (MMPose's guard).
            ``"dark"``: one Newton step on the logarithm of the blurred map with differences two cells wide; peaks less
            than two cells from the border stay. ``"dark_udp"``: the same with differences one cell wide and edge
            padding, at every peak.
            Both use the raw maximum to rescale the blurred map, as MMPose does. Neither step is limited: on noise a
            point can leave its map. Where the step is not finite, or the maximum is infinite, the peak stays.
            NaN and infinities count as 0 in the blur.
        blur_kernel: the width of the Gaussian of ``dark`` and ``dark_udp``, odd, cells; 11 means sigma 2.
        flipped: the flip test: the network's own maps of the mirrored crops. What is decoded then is the mean of both
            in float32, see :func:`merge_flipped`; flip_indices and flip_shift are its ``flip_indices`` and ``shift``.
        flip_indices: needed with ``flipped``, without it of no effect, as ``flip_shift``.
        channel_ranges: the channels [begin, end) to decode of each instance, for a model that serves several
            categories. The others are not read: location (-1, -1) and score 0.
        cells_to_frame: locations are mapped through it in float64, those without a peak too. None: heatmap cells.

    Returns:
        locations: (N, K, 2) float32, (x, y), frame px or heatmap cells; an integer is a pixel's or cell's centre.
        scores: (N, K) float32, the raw maximum of the map, not blurred nor clipped; infinite if the maximum is.

    Raises:
        ValueError: an argument of a shape or value that does not fit. TypeError: heatmaps that are not real numbers.
    """
    array = _check_heatmaps("heatmaps", heatmaps)
    blur_kernel = check_refinement(refinement, blur_kernel)
    count, channels, height, width = array.shape
    matrices = check_cells_to_frame(cells_to_frame, count)
    chosen = _chosen(check_channel_ranges(channel_ranges, count, channels), channels)
    if flipped is not None:
        mirrored = _check_heatmaps("flipped", flipped)
        indices = check_flip(flip_indices, array.shape, mirrored.shape)
        array = _merge(array, mirrored, indices, bool(flip_shift), chosen)
    elif chosen is not None:
        array = array[chosen]
    maps = np.ascontiguousarray(array).reshape(-1, height, width)
    locations, scores = _decode(maps, refinement, blur_kernel)
    if chosen is not None:
        every = np.full((count, channels, 2), NO_PEAK), np.zeros((count, channels), np.float32)
        every[0][chosen], every[1][chosen] = locations, scores
        locations, scores = every
    locations, scores = locations.reshape(count, channels, 2), scores.reshape(count, channels)
    if matrices is not None:
        locations = locations @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]
    return locations.astype(np.float32), scores


def _check_heatmaps(name: str, heatmaps: ArrayLike) -> NDArray[Any]:
    """(N, K, h, w) float16 or float32."""
    array = np.asarray(heatmaps)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, float32 or float16 by preference, got {array.dtype}")
    if array.shape == (0,):
        array = array.reshape(0, 0, 1, 1)
    if array.ndim != 4 or 0 in array.shape[2:]:
        raise ValueError(f"{name} must have the shape (N, K, h, w), h and w at least 1, got {array.shape}")
    return array if array.dtype in (np.float32, np.float16) else array.astype(np.float32)


# The maps that are decoded: numbers of instances and channels, (M,) each.
_Chosen = tuple[NDArray[np.int64], NDArray[np.int64]]


def _chosen(ranges: NDArray[np.int64] | None, channels: int) -> _Chosen | None:
    """The maps within the ranges (N, 2), None for all."""
    if ranges is None:
        return None
    numbers = np.arange(channels)
    instances, columns = np.nonzero((numbers >= ranges[:, :1]) & (numbers < ranges[:, 1:]))
    return instances, columns


def _merge(
    maps: NDArray[Any], mirrored: NDArray[Any], indices: NDArray[np.int64], shift: bool, chosen: _Chosen | None
) -> NDArray[np.float32]:
    """The flip test: (N, K, h, w) float32, or (M, 1, h, w) of the chosen maps."""
    if chosen is not None:
        instances, columns = chosen
        maps, mirrored = maps[chosen][:, None], mirrored[instances, indices[columns]][:, None]
        indices = np.zeros(1, np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        return merge_flipped(maps, mirrored, indices, shift=shift)


def _decode(
    maps: NDArray[Any], refinement: Refinement, blur_kernel: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """(M, h, w) -> locations (M, 2) in cells, scores (M,)."""
    peaks, scores = _find_peaks(maps)
    locations = np.full((len(maps), 2), NO_PEAK)
    rows = np.flatnonzero(scores > 0)  # the maps that have a peak
    found = peaks[rows]  # (M, 2) int64, x and y
    locations[rows] = found
    if refinement == "shift":
        locations[rows] += _quarter_shift(maps, rows, found)
    elif refinement != "none":
        finite = np.isfinite(scores[rows])
        rows, found = rows[finite], found[finite]
        locations[rows] += _newton_step(
            maps, rows, found, scores[rows], udp=refinement == "dark_udp", blur_kernel=blur_kernel
        )
    return locations, scores


def _find_peaks(maps: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(M, h, w) -> the first maxima (M, 2) int64 (x, y) and their values (M,) float32, 0 where none is above 0."""
    count, height, width = maps.shape
    flat = maps.reshape(count, height * width)
    if flat.dtype == np.float16:
        # NumPy compares halves one by one. As int16 their bits sort alike for all values above 0, any other value is
        # below those, and NaN is above or below all: the maximum is right for every map that has a peak.
        bits = flat.view(np.int16)
        index = bits.argmax(axis=1)
        suspect = np.take_along_axis(bits, index[:, None], axis=1)[:, 0] > HALF_INFINITY
    else:
        index = flat.argmax(axis=1)  # the first NaN if there is one
        suspect = np.isnan(np.take_along_axis(flat, index[:, None], axis=1)[:, 0])
    if suspect.any():
        cleaned = flat[suspect]
        cleaned[np.isnan(cleaned)] = -np.inf
        index[suspect] = cleaned.argmax(axis=1)
    scores = np.take_along_axis(flat, index[:, None], axis=1)[:, 0].astype(np.float32)
    scores[~(scores > 0)] = 0  # NaN too
    y, x = np.divmod(index, width)
    return np.stack([x, y], axis=1), scores


def _quarter_shift(maps: NDArray[Any], rows: NDArray[np.int64], peaks: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, 2) cells: +-0.25 towards the larger neighbour in x and in y, 0 between equal ones and at the guards."""
    height, width = maps.shape[1:]
    x, y = peaks.T
    offsets = np.zeros((len(rows), 2), np.float32)
    guards = (x > 1) & (x < width - 1) & (y > 0), (y > 1) & (y < height - 1) & (x > 0)
    for axis, (step_x, step_y) in enumerate(((1, 0), (0, 1))):
        moves = guards[axis]
        row, column, line = rows[moves], x[moves], y[moves]
        after = np.nan_to_num(maps[row, line + step_y, column + step_x], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        before = np.nan_to_num(maps[row, line - step_y, column - step_x], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        offsets[moves, axis] = 0.25 * ((after > before).astype(np.float32) - (after < before))
    return offsets


def _newton_step(
    maps: NDArray[Any],
    rows: NDArray[np.int64],
    peaks: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    udp: bool,
    blur_kernel: int,
) -> NDArray[np.float64]:
    """(M, 2) cells: the refinement of ``dark`` and ``dark_udp`` for the peaks (M, 2) of maps[rows].

    MMPose blurs the whole map and rescales it by score / maximum of the blurred map, a factor of at least 1 when that
    maximum is above 0. Under the logarithm it is a constant that drops out of the derivatives, unless it lifts a value
    over the floor or the ceiling. Where that is excluded, only the window that the derivatives look at is blurred.
    The other maps, and those whose step magnifies rounding (noise, plateaus), go MMPose's way in every operation.
    """
    offsets = np.zeros((len(rows), 2))
    height, width = maps.shape[1:]
    if udp:
        moves = np.arange(len(rows))
        reach, floor, ceiling = 1, UDP_FLOOR, UDP_CEILING
    else:
        x, y = peaks.T
        moves = np.flatnonzero((x > 1) & (x < width - 2) & (y > 1) & (y < height - 2))
        reach, floor, ceiling = 2, DARK_FLOOR, np.inf
    if len(moves) == 0:
        return offsets
    rows, peaks, scores = rows[moves], peaks[moves], scores[moves]
    differentiate = _udp_derivatives if udp else _dark_derivatives
    window = _blurred_window(maps, rows, peaks, reach, blur_kernel)
    values = window.reshape(len(rows), -1)
    sure = (values.min(axis=1) > floor * (1 + MARGIN)) & (scores < ceiling * (1 - MARGIN))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        step, amplification = _solve(*differentiate(np.log(np.clip(window.astype(np.float64), floor, ceiling))))
        local = sure & (amplification < MAX_AMPLIFICATION)
        if udp:  # a blurred map that stays below the floor is flat: its step is 0 whatever the factor
            flat = (scores < floor * (1 - MARGIN)) & (values.max(axis=1) > 0)
            step[flat] = 0
            local |= flat
        whole = np.flatnonzero(~local)
        if len(whole):
            rescaled = _whole_map_windows(
                maps, rows[whole], peaks[whole], scores[whole], reach=reach, blur_kernel=blur_kernel
            )
            logs = np.log(np.clip(rescaled, np.float32(floor), np.float32(ceiling)))
            step[whole] = _solve(*differentiate(logs))[0]
    step[~np.isfinite(step).all(axis=1)] = 0
    offsets[moves] = step
    return offsets


# First and second derivatives (dx, dy, dxx, dxy, dyy), each (M,) of the dtype of the logarithms.
_Derivatives = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def _dark_derivatives(logs: NDArray[Any]) -> _Derivatives:
    """Of the logarithms (M, 5, 5) around the peaks, differences two cells wide."""
    at = _reader(logs)
    dx = 0.5 * (at(1, 0) - at(-1, 0))
    dy = 0.5 * (at(0, 1) - at(0, -1))
    dxx = 0.25 * (at(2, 0) - 2 * at(0, 0) + at(-2, 0))
    dxy = 0.25 * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))
    dyy = 0.25 * (at(0, 2) - 2 * at(0, 0) + at(0, -2))
    return dx, dy, dxx, dxy, dyy


def _udp_derivatives(logs: NDArray[Any]) -> _Derivatives:
    """Of the logarithms (M, 3, 3) around the peaks; the mixed one uses a single diagonal, as MMPose does."""
    at = _reader(logs)
    dx = 0.5 * (at(1, 0) - at(-1, 0))
    dy = 0.5 * (at(0, 1) - at(0, -1))
    dxx = at(1, 0) - 2 * at(0, 0) + at(-1, 0)
    dyy = at(0, 1) - 2 * at(0, 0) + at(0, -1)
    dxy = 0.5 * (at(1, 1) - at(1, 0) - at(0, 1) + at(0, 0) + at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1))
    ridge = float(np.finfo(np.float32).eps)  # keeps the Hessian of a flat map regular
    return dx, dy, dxx.astype(np.float64) + ridge, dxy, dyy.astype(np.float64) + ridge


def _reader(window: NDArray[Any]) -> Callable[[int, int], NDArray[Any]]:
    """at(x, y): the values (M,) of the windows (M, d, d) at an offset from their centres."""
    centre = window.shape[1] // 2
    return lambda x, y: window[:, centre + y, centre + x]


def _solve(
    dx: NDArray[Any], dy: NDArray[Any], dxx: NDArray[Any], dxy: NDArray[Any], dyy: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The step -inverse([[dxx, dxy], [dxy, dyy]]) @ [dx, dy] (M, 2), and how much it magnifies rounding (M,).

    Both are NaN or infinite where the Hessian is singular.
    """
    dx, dy, dxx, dxy, dyy = (value.astype(np.float64) for value in (dx, dy, dxx, dxy, dyy))
    determinant = dxx * dyy - dxy * dxy
    step = -np.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=1) / determinant[:, None]
    inverse_norm = (np.maximum(np.abs(dxx), np.abs(dyy)) + np.abs(dxy)) / np.abs(determinant)
    return step, inverse_norm * (1 + np.abs(step).max(axis=1))


def _gaussian(blur_kernel: int) -> NDArray[np.float32]:
    """(blur_kernel,) float32 weights, sigma as OpenCV derives it: 0.3 * ((blur_kernel - 1) / 2 - 1) + 0.8."""
    return np.asarray(cv2.getGaussianKernel(blur_kernel, 0, cv2.CV_32F), np.float32)[:, 0]


@lru_cache(maxsize=32)
def _axis_weights(
    length: int, blur_kernel: int, reach: int, *, transposed: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The blur along one axis of ``length`` cells, for a peak at each of them, without leaving the axis.

    Returns the first cell (length,) of the span of input cells, and the weights (length, 2 * reach + 1, span): row j
    of weights[p] makes the blurred value at cell p + j - reach (column j, if transposed). Cells outside of the axis
    count as 0 in the blur, and as the outermost cell among the blurred values (zero padding, then edge padding).
    """
    radius = (blur_kernel - 1) // 2
    span = min(2 * (radius + reach) + 1, length)
    peaks = np.arange(length)
    first = np.clip(peaks - radius - reach, 0, length - span)
    blurred = np.clip(peaks[:, None] + np.arange(-reach, reach + 1), 0, length - 1)
    taps = (first[:, None] + np.arange(span))[:, None, :] - blurred[:, :, None] + radius
    weights = np.append(_gaussian(blur_kernel), np.float32(0))
    matrices = weights[np.where((taps < 0) | (taps >= blur_kernel), blur_kernel, taps)]
    return first, np.ascontiguousarray(matrices.transpose(0, 2, 1)) if transposed else matrices


def _blurred_window(
    maps: NDArray[Any], rows: NDArray[np.int64], peaks: NDArray[np.int64], reach: int, blur_kernel: int
) -> NDArray[np.float32]:
    """(M, d, d) float32, d = 2 * reach + 1: the blurred maps[rows] around the peaks (M, 2)."""
    height, width = maps.shape[1:]
    first_x, weights_x = _axis_weights(width, blur_kernel, reach, transposed=True)
    first_y, weights_y = _axis_weights(height, blur_kernel, reach)
    x, y = peaks.T
    flat, span = maps.reshape(-1), weights_x.shape[1]
    runs = np.lib.stride_tricks.sliding_window_view(flat, span)  # every run of span cells, a view
    starts = (rows * height + first_y[y]) * width + first_x[x]
    patches = runs[starts[:, None] + np.arange(weights_y.shape[2]) * width].astype(np.float32, copy=False)
    across, down = weights_x[x], weights_y[y]
    with np.errstate(invalid="ignore", over="ignore"):
        blurred = down @ (patches @ across)  # x first, then y, as OpenCV does
        broken = ~np.isfinite(blurred).all(axis=(1, 2))
        if broken.any():
            cleaned = np.nan_to_num(patches[broken], nan=0, posinf=0, neginf=0)
            blurred[broken] = down[broken] @ (cleaned @ across[broken])
    return np.asarray(blurred, np.float32)


def _whole_map_windows(
    maps: NDArray[Any],
    rows: NDArray[np.int64],
    peaks: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    reach: int,
    blur_kernel: int,
) -> NDArray[np.float32]:
    """As _blurred_window, but each map blurred as a whole by OpenCV and rescaled to its raw maximum (M,)."""
    around = np.arange(-reach, reach + 1)
    columns = np.clip(peaks[:, :1] + around, 0, maps.shape[2] - 1)
    lines = np.clip(peaks[:, 1:] + around, 0, maps.shape[1] - 1)
    windows = np.empty((len(rows), len(around), len(around)), np.float32)
    height, width = maps.shape[1:]
    radius = blur_kernel // 2
    for number, row in enumerate(rows):
        # Padded as MMPose does it: the width decides which columns OpenCV leaves to code that rounds differently.
        padded = np.zeros((height + 2 * radius, width + 2 * radius), np.float32)
        inner = slice(radius, radius + height), slice(radius, radius + width)
        padded[inner] = maps[row]
        blurred = cv2.GaussianBlur(padded, (blur_kernel, blur_kernel), 0)[inner]
        if not np.isfinite(blurred.sum()):
            padded[~np.isfinite(padded)] = 0
            blurred = cv2.GaussianBlur(padded, (blur_kernel, blur_kernel), 0)[inner]
        factor = scores[number] / blurred.max()
        windows[number] = blurred[lines[number, :, None], columns[number]] * factor
    return windows
