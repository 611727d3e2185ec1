"""How the twins look at frames: plain bilinear, and OpenCV 4's fixed-point arithmetic, in NumPy and by cv2.remap."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["FRACTION_BITS", "REMAP_LIMIT", "Sampling", "fixed_point_axes", "sample_crops"]

Sampling = Literal["linear", "opencv4", "area"]

COORDINATE_BITS = 10  # OpenCV 4 rounds the two terms of a coordinate to 1/1024 px each ...
FRACTION_BITS = 5  # ... and their sum to 1/32 px
WEIGHT_BITS = 15  # the four weights of a pixel sum to 2**15
AT_ONCE = 8  # crops: those of 256x192 px then take 3.5 MB, which stay in a cache, and 6 threads may share them
MOST_KEPT = 1 << 23  # bytes
REMAP_LIMIT = 32766  # cv2.remap takes coordinates as int16, so frames and crops must stay below 2**15 - 1
SANE_COORDINATE = float(1 << 50)  # beyond this float64 no longer resolves 1/1024 px; far outside of any frame

Image = NDArray[np.uint8]  # (H, W, 3) BGR


def sample_crops(
    images: Iterable[Image],  # N: the frame, or what "area" leaves of it; packed rows, but for "linear"
    inverses: NDArray[np.float64],  # (N, 2, 3) crop px -> px of the image
    width: int,
    height: int,
    sampling: Sampling,
) -> Iterator[NDArray[Any]]:
    """Each crop, (h, w, 3) BGR: uint8 levels, under "linear" float32. It is valid until the next one is asked for."""
    if sampling == "linear":
        for image, inverse in zip(images, inverses, strict=True):
            yield _sample_linear(image, inverse, width, height)
    elif max(width, height) > REMAP_LIMIT or not _remap_is_exact():
        for image, inverse in zip(images, inverses, strict=True):
            yield _sample_opencv4(image, inverse, width, height)
    else:
        yield from _sample_by_remap(images, inverses, width, height)


def _sample_linear(
    frame: NDArray[np.uint8], inverse: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float32]:
    """One crop (h, w, 3) float32 BGR: the sum of four taps, each weight (float32) 0 outside of the frame."""
    x, y = np.arange(width), np.arange(height)[:, None]
    axes = []
    for (per_x, per_y, offset), limit in zip(inverse, (frame.shape[1], frame.shape[0]), strict=True):
        position = per_x * x + (per_y * y + offset)
        cell = np.floor(position)
        fraction = (position - cell).astype(np.float32)
        cell = np.clip(cell, -2, limit).astype(np.int64)  # -2 and limit have no tap in the frame
        axes.append((_tap(cell, 1 - fraction, limit), _tap(cell + 1, fraction, limit)))
    crop = np.zeros((height, width, 3), np.float32)
    for row, row_weight in axes[1]:
        for column, column_weight in axes[0]:
            crop += frame[row, column] * (column_weight * row_weight)[..., None]
    return crop


def _tap(cell: NDArray[np.int64], weight: NDArray[Any], limit: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """A cell that is safe to read, and its weight: 0 where the cell asked for is outside of [0, limit)."""
    inside = (cell >= 0) & (cell < limit)
    return np.clip(cell, 0, limit - 1), np.where(inside, weight, weight.dtype.type(0))


# OpenCV 4 -----------------------------------------------------------------------------------------


def fixed_point_axes(
    inverse: NDArray[np.float64], width: int, height: int
) -> tuple[tuple[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]:
    """OpenCV 4's coordinates: ((x cell, x fraction), (y cell, y fraction)), the fraction in 1/32 px.

    Each array is int32 or int64, (h, w), or (1, w) or (h, 1) where it does not depend on the other axis (crops without
    rotation).
    """
    x, y = (_cells_and_fractions(of_axis[0]) for of_axis in _positions(inverse[None], width, height))
    return x, y


def _cells_and_fractions(positions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return positions >> FRACTION_BITS, positions & ((1 << FRACTION_BITS) - 1)


def _positions(inverses: NDArray[np.float64], width: int, height: int) -> list[NDArray[Any]]:
    """x and y of the pixels of N crops, 1/32 px: int32 or int64, (N, h, w), or shorter by axes that do not matter."""
    scale = float(1 << COORDINATE_BITS)
    found = []
    for per_x, per_y, offset in inverses.transpose(1, 2, 0)[..., None]:  # (N, 1) each
        x, y = np.arange(width if per_x.any() else 1), np.arange(height if per_y.any() else 1)
        columns, rows = _to_int(per_x * x * scale), _to_int((per_y * y + offset) * scale)
        rows += 1 << (COORDINATE_BITS - FRACTION_BITS - 1)
        if len(x) > 1 < len(y) and np.abs(rows).max() + np.abs(columns).max() < 1 << 31:
            rows, columns = rows.astype(np.int32), columns.astype(np.int32)  # 2 million px: half the memory to write
        found.append((rows[:, :, None] + columns[:, None]) >> (COORDINATE_BITS - FRACTION_BITS))
    return found


def _to_int(values: NDArray[np.float64]) -> NDArray[Any]:
    """Round half to even, as OpenCV's saturate_cast does."""
    return np.rint(np.clip(values, -SANE_COORDINATE, SANE_COORDINATE)).astype(np.int64)


def _sample_by_remap(
    images: Iterable[Image], inverses: NDArray[np.float64], width: int, height: int
) -> Iterator[NDArray[np.uint8]]:
    """cv2.remap with integer maps is the second half of OpenCV 4's warpAffine.

    Crops of one image that follow each other become one tall picture: OpenCV gives each thread 2**16 pixels, so that
    a crop alone would be the work of one.
    """
    if not len(inverses):
        return
    at_once = min(AT_ONCE, len(inverses), max(1, REMAP_LIMIT // height))
    cells, fractions, levels = _scratch(at_once, height, width)
    pairs = cells.view(np.int32)[..., 0]
    shown: Image = np.empty(0, np.uint8)  # what the crops look at whose maps are written ...
    waiting = 0  # ... and how many they are

    def sampled() -> NDArray[np.uint8]:
        tall = cv2.remap(
            shown,
            cells[:waiting].reshape(waiting * height, width, 2),
            fractions[:waiting].reshape(waiting * height, width),
            cv2.INTER_LINEAR,
            dst=levels[:waiting].reshape(waiting * height, width, 3),
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        return tall.reshape(waiting, height, width, 3)  # type: ignore[return-value]  # cv2's stubs know no dtype

    upright = not (inverses[:, 0, 1].any() or inverses[:, 1, 0].any())
    maps = _map_parts(inverses, width, height) if upright else _each_map_parts(inverses, width, height)
    for image, inverse, (columns, rows, x, y) in zip(images, inverses, maps, strict=True):
        if waiting and (image is not shown or waiting == at_once):
            yield from sampled()
            waiting = 0
        if max(image.shape) > REMAP_LIMIT:
            yield _sample_opencv4(image, inverse, width, height)
            continue
        np.bitwise_or(rows, columns, out=pairs[waiting])
        np.bitwise_or(y, x, out=fractions[waiting])
        shown, waiting = image, waiting + 1
    if waiting:
        yield from sampled()


_kept = threading.local()


def _scratch(count: int, height: int, width: int) -> tuple[NDArray[np.int16], NDArray[np.uint16], NDArray[np.uint8]]:
    """For ``count`` crops: cells (count, h, w, 2) of x and y, fractions (count, h, w), levels (count, h, w, 3).

    Each thread keeps them, up to MOST_KEPT, for its next crops of that size: to get fresh memory takes longer than to
    fill it. So a thread cannot use the crops of two calls of :func:`sample_crops` in turns.
    """
    arrays: tuple[NDArray[np.int16], NDArray[np.uint16], NDArray[np.uint8]] | None = getattr(_kept, "arrays", None)
    if arrays is None or len(arrays[0]) < count or arrays[0].shape[1:3] != (height, width):
        shape = (count, height, width)
        arrays = np.empty((*shape, 2), np.int16), np.empty(shape, np.uint16), np.empty((*shape, 3), np.uint8)
        _kept.arrays = arrays if sum(array.nbytes for array in arrays) <= MOST_KEPT else None
    cells, fractions, levels = arrays
    return cells[:count], fractions[:count], levels[:count]


def _each_map_parts(inverses: NDArray[np.float64], width: int, height: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """Of rotated crops one by one, since the parts are as large as crops."""
    for index in range(len(inverses)):
        yield from _map_parts(inverses[index : index + 1], width, height)


def _map_parts(inverses: NDArray[np.float64], width: int, height: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """For each crop what its maps are the bitwise or of: the cells' x and y, int32, and the fractions' x and y, uint16.

    Each is (h, w), or (1, w) or (h, 1); the int32 is a pixel's pair of int16 in cv2's map, the other one of them 0.
    """
    parts: list[NDArray[Any]] = []
    fractions: list[NDArray[Any]] = []
    for axis, positions in enumerate(_positions(inverses, width, height)):
        cells, fraction = _cells_and_fractions(positions)
        pairs = np.zeros((*cells.shape, 2), np.int16)
        pairs[..., axis] = np.clip(cells, -2, REMAP_LIMIT)  # beyond an image on either side: no tap in it
        parts.append(pairs.view(np.int32)[..., 0])
        fractions.append((fraction << FRACTION_BITS * axis).astype(np.uint16))
    return zip(*parts, *fractions, strict=True)


def _sample_opencv4(image: Image, inverse: NDArray[np.float64], width: int, height: int) -> NDArray[np.uint8]:
    """The same in integers with NumPy alone, for any size: the specification of ``sampling="opencv4"``."""
    whole = 1 << FRACTION_BITS
    axes = []
    for (cell, fraction), limit in zip(
        fixed_point_axes(inverse, width, height), (image.shape[1], image.shape[0]), strict=True
    ):
        axes.append((_tap(cell, whole - fraction, limit), _tap(cell + 1, fraction, limit)))
    total = np.full((height, width, 3), 1 << (WEIGHT_BITS - 1), np.int64)
    for row, row_weight in axes[1]:
        for column, column_weight in axes[0]:
            weight = (column_weight * row_weight) << (WEIGHT_BITS - 2 * FRACTION_BITS)
            total += image[row, column] * weight[..., None]
    return (total >> WEIGHT_BITS).astype(np.uint8)


@lru_cache(maxsize=1)
def _remap_is_exact() -> bool:
    """Whether this build of OpenCV keeps integer maps in integers (x86 wheels of 4.12 and 5.0 do; a vendor's may not).

    Decided once, on a small frame, rotated and not, beyond all four borders; about 2 ms on an idle core.
    """
    frame = np.random.default_rng(0).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    inverses = np.array([[[0.9, 0.31, -6.0], [-0.29, 0.83, 7.0]], [[1.03125, 0.0, -9.5], [0.0, 0.96875, -8.25]]])
    return all(
        np.array_equal(next(_sample_by_remap([frame], inverse[None], 64, 64)), _sample_opencv4(frame, inverse, 64, 64))
        for inverse in inverses
    )
