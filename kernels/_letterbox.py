"""letterbox: the NumPy twin of the kernel that makes a detector's input (see :mod:`edgepose.kernels.reference`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._crop import (
    Sampling,
    _check_frame,
    _check_out,
    _halve,
    _readable_by_opencv,
    check_normalisation,
    check_sampling,
    check_size,
)
from ._placement import Picture, Resize, picture_of
from ._sampling import FRACTION_BITS, REMAP_LIMIT, fixed_point_axes

__all__ = ["check_pad", "letterbox"]


def letterbox(
    frame: NDArray[np.uint8],  # (H, W, 3) uint8 BGR, any strides
    input_size: Sequence[int],  # (w, h) of the input, px
    *,
    resize: Resize = "letterbox",
    pad: float = 114,  # level, 0-255, whole
    sampling: Sampling = "linear",
    mean: ArrayLike | None = None,  # (3,) RGB, 0-255
    std: ArrayLike | None = None,  # (3,) RGB, 0-255
    out: NDArray[np.float32] | None = None,  # (3, h, w) float32, C-contiguous
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Resize a whole frame to a detector's input: bilinear, the frame's border repeated, ``pad`` around the picture.

    The outer edges of frame and picture meet, as in ``cv2.resize``: input pixel u shows the frame at
    ``(u + 0.5 - left) / scale - 0.5``. Where the picture lies is told by ``edgepose.geometry.letterbox_placement``.

    Args:
        frame: (H, W, 3) uint8 BGR. Views with any strides work; those that OpenCV cannot read are copied once.
        input_size: (w, h) of the input.
        resize: ``"letterbox"``: at the frame's aspect, in the middle; ``"letterbox_corner"``: at the top left;
            ``"stretch"``: over all of the input.
        pad: level of what the picture leaves free, normalised like the picture.
        sampling: as in :func:`~edgepose.kernels.reference.crop_warp`: ``"linear"`` (``cv2.resize`` rounds its weights
            to 1/2048, and so differs by up to one level), ``"opencv4"`` with 1/32 px, ``"area"`` on the frame halved
            as long as a pixel of the picture then still spans two pixels of it, in both directions.
        mean, std: both or neither. Without them the result is uint8 BGR, "linear" rounded half to even. With them it is
            ``(level - mean) / std`` in float32, RGB; level is not rounded under "linear".
        out: where to write the normalised input, in place; needs ``mean`` and ``std``.

    Returns:
        (h, w, 3) uint8 BGR without mean and std, else (3, h, w) float32 RGB (``out`` itself if it was given).

    Raises:
        ValueError: a shape, a size or a value that does not fit.
        TypeError: a frame that is not uint8, or an ``out`` that is not float32.
    """
    width, height = check_size(input_size)
    _check_frame(frame)
    check_sampling(sampling)
    check_pad(pad)
    normalise = check_normalisation(mean, std)
    if normalise is None and out is not None:
        raise ValueError("out takes a normalised input: give mean and std with it, or leave it away")
    look = _look((frame.shape[1], frame.shape[0]), (width, height), resize, sampling)
    picture = look.picture
    rows = slice(picture.top, picture.top + picture.height)
    columns = slice(picture.left, picture.left + picture.width)
    levels = _sample(_readable_by_opencv(frame), look, sampling)
    if normalise is None:
        image = np.full((height, width, 3), pad, np.uint8)
        image[rows, columns] = levels if levels.dtype == np.uint8 else np.rint(levels, out=levels)
        return image
    means, stds = normalise
    tensor = np.empty((3, height, width), np.float32) if out is None else out
    _check_out(tensor, (3, height, width))
    if (picture.width, picture.height) != (width, height):
        tensor[...] = (np.float32(pad) - means) / stds
    for plane, level, mean_of, std_of in zip(tensor, reversed(cv2.split(levels)), means, stds, strict=True):
        part = plane[rows, columns]
        np.subtract(level, mean_of, out=part, dtype=np.float32)  # subtract, then divide: crop_warp's order of rounding
        np.divide(part, std_of, out=part)
    return tensor


def check_pad(pad: float) -> None:
    """Raises ValueError unless it is a whole level from 0 to 255."""
    if pad not in range(256):
        raise ValueError(f"pad must be a whole level from 0 to 255, got {pad!r}")


BAND = 32  # rows at a time
Axis = tuple[NDArray[Any], NDArray[Any]]  # (n,) cells of the first tap, int64, and fractions to the second


class _Look(NamedTuple):
    """How the pixels of a picture look at a frame, halved so often."""

    picture: Picture
    halvings: int
    x: Axis
    y: Axis
    cells: tuple[NDArray[np.int16], ...] | None  # (h, w, 2) of each tap, inside of the frame; None where int16 ends
    fractions: NDArray[np.uint16] | None  # (h, w) for cv2.remap


@lru_cache(maxsize=8)
def _look(frame_size: tuple[int, int], input_size: tuple[int, int], resize: Resize, sampling: Sampling) -> _Look:
    """Made once for the frames of a stream: its arrays take half of the time of a frame."""
    picture = picture_of(frame_size, input_size, resize)
    halvings = 0
    if sampling == "area":
        while all(side >= 4 * shown << halvings for side, shown in zip(frame_size, picture[:2], strict=True)):
            halvings += 1
    inverse = np.zeros((2, 3))
    for axis in range(2):
        step = frame_size[axis] / (picture[axis] << halvings)
        inverse[axis, axis] = step
        inverse[axis, 2] = (0.5 - picture[2 + axis]) * step - 0.5
    first = picture.left, picture.top
    if sampling == "linear":
        x, y = (_float_axis(inverse[axis, axis], inverse[axis, 2], first[axis], picture[axis]) for axis in range(2))
    else:
        axes = fixed_point_axes(inverse, *input_size)
        parts = [slice(first[axis], first[axis] + picture[axis]) for axis in range(2)]
        x, y = (
            (cell.ravel()[part].astype(np.int64), fraction.ravel()[part])
            for (cell, fraction), part in zip(axes, parts, strict=True)
        )
    if max(*frame_size, *input_size) > REMAP_LIMIT:
        return _Look(picture, halvings, x, y, None, None)
    limits = [(side + (1 << halvings) - 1) >> halvings for side in frame_size]
    cells, fractions = [], None
    if sampling == "linear":
        for row, column in _TAPS:
            cells.append(_cell_map(np.clip(x[0] + column, 0, limits[0] - 1), np.clip(y[0] + row, 0, limits[1] - 1)))
    else:  # cv2.remap repeats the border
        cells.append(_cell_map(x[0], y[0]))
        fractions = (y[1][:, None] << FRACTION_BITS | x[1]).astype(np.uint16)
    return _Look(picture, halvings, x, y, tuple(cells), fractions)


_TAPS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column)


def _float_axis(step: float, offset: float, first: int, count: int) -> Axis:
    position = step * np.arange(first, first + count) + offset
    cell = np.floor(position)
    return cell.astype(np.int64), (position - cell).astype(np.float32)


def _cell_map(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int16]:
    cells = np.empty((len(y), len(x), 2), np.int16)
    cells[..., 0], cells[..., 1] = x, y[:, None]
    return cells


def _sample(frame: NDArray[np.uint8], look: _Look, sampling: Sampling) -> NDArray[Any]:
    """The picture (h, w, 3) BGR: uint8, under "linear" float32."""
    for _ in range(look.halvings):
        frame = _halve(frame)
    if sampling == "linear":
        return _sample_linear(frame, look)
    if look.cells is None or look.fractions is None or not _remap_is_exact():
        return _sample_fixed_point(frame, look)
    return _remap(frame, look.cells[0], look.fractions)


def _remap(frame: NDArray[np.uint8], cells: NDArray[np.int16], fractions: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return cv2.remap(  # type: ignore[return-value]  # cv2's stubs know no dtype
        frame, cells, fractions, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _sample_linear(frame: NDArray[np.uint8], look: _Look) -> NDArray[np.float32]:
    """The sum of four taps, in crop_warp's order: weights and sum in float32. In bands that stay in the cache."""
    (x, right), (y, lower) = look.x, look.y
    right, lower = np.repeat(right, 3), lower[:, None]  # for the three channels of a pixel
    weights = ((1 - lower, 1 - right), (1 - lower, right), (lower, 1 - right), (lower, right))
    total = np.empty((len(y), 3 * len(x)), np.float32)
    weight, product = np.empty((2, min(BAND, len(y)), 3 * len(x)), np.float32)
    for first in range(0, len(y), BAND):
        band = slice(first, min(first + BAND, len(y)))
        part, band_weight, band_product = total[band], weight[: band.stop - first], product[: band.stop - first]
        for number, ((row, column), (of_row, of_column)) in enumerate(zip(_TAPS, weights, strict=True)):
            if look.cells is None:
                tap = _gather(frame, x + column, y[band] + row)
            else:
                tap = _nearest(frame, look.cells[number][band])
            np.multiply(of_column, of_row[band], out=band_weight)
            into = band_product if number else part
            np.multiply(tap.reshape(into.shape), band_weight, out=into, dtype=np.float32)
            if number:
                part += band_product
    return total.reshape(len(y), len(x), 3)


def _nearest(frame: NDArray[np.uint8], cells: NDArray[np.int16]) -> NDArray[np.uint8]:
    return cv2.remap(frame, cells, None, cv2.INTER_NEAREST)  # type: ignore[call-overload, no-any-return]


def _sample_fixed_point(frame: NDArray[np.uint8], look: _Look) -> NDArray[np.uint8]:
    """What cv2.remap computes with integer maps, with NumPy alone and for any size."""
    (x, right), (y, lower) = look.x, look.y
    whole = 1 << FRACTION_BITS
    total = np.full((len(y), len(x), 3), 1 << (2 * FRACTION_BITS - 1), np.int64)
    for row, column in _TAPS:
        weight = (lower if row else whole - lower)[:, None] * (right if column else whole - right)
        total += _gather(frame, x + column, y + row) * weight[..., None].astype(np.int64)
    return (total >> 2 * FRACTION_BITS).astype(np.uint8)


def _gather(frame: NDArray[np.uint8], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The pixels (len(y), len(x), 3) at columns x of rows y, those outside of the frame moved to its border."""
    height, width = frame.shape[:2]
    return frame[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)]


@lru_cache(maxsize=1)
def _remap_is_exact() -> bool:
    """Whether this build of OpenCV keeps integer maps in integers, with repeated borders; see _sampling's."""
    frame = np.random.default_rng(0).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    looks = [_look((41, 37), size, "stretch", "opencv4") for size in ((64, 64), (19, 23), (45, 38))]
    return all(
        np.array_equal(_remap(frame, look.cells[0], look.fractions), _sample_fixed_point(frame, look))
        for look in looks
        if look.cells is not None and look.fractions is not None
    )
