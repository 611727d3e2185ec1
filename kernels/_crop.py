"""crop_warp: the NumPy twin of the crop kernel (see :mod:`edgepose.kernels.reference`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["CropPlan", "Sampling", "check_normalisation", "check_sampling", "check_size", "crop_warp", "plan_crops"]

Sampling = Literal["linear", "opencv4", "area"]

COORDINATE_BITS = 10  # OpenCV 4 rounds the two terms of a coordinate to 1/1024 px each ...
FRACTION_BITS = 5  # ... and their sum to 1/32 px
WEIGHT_BITS = 15  # the four weights of a pixel sum to 2**15
REMAP_LIMIT = 32766  # cv2.remap takes coordinates as int16, so frames and crops must stay below 2**15 - 1
LEAST_SPAN = 2  # "area" leaves a crop pixel this many frame px: what models see that were trained on photos of 500 px
SANE_COORDINATE = float(1 << 50)  # beyond this float64 no longer resolves 1/1024 px; far outside of any frame
SANE_REACH = float(1 << 39)  # px: where no term of a coordinate comes near SANE_COORDINATE (in 1/1024 px)
MOST_HALVINGS = 62  # blocks of 2**62 px: more than any frame has
BESIDE = np.array([[-1.0], [3.0]])  # cells around a crop's outermost positions that hold their taps, however rounded
WINDOW_STEP = 4  # px: windows begin and end at multiples, so that rows of BGR are whole 32-bit words


def crop_warp(
    frame: NDArray[np.uint8],  # (H, W, 3) uint8 BGR, any strides
    affines: ArrayLike,  # (N, 2, 3) float64, frame px -> crop px
    input_size: Sequence[int],  # (w, h) of a crop, px
    *,
    sampling: Sampling = "linear",
    mean: ArrayLike | None = None,  # (3,) RGB, 0-255
    std: ArrayLike | None = None,  # (3,) RGB, 0-255
    out: NDArray[np.float32] | None = None,  # (N, 3, h, w) float32, C-contiguous
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Cut N crops out of a frame: bilinear, and 0 for every tap outside of the frame.

    An integer coordinate is a pixel's centre; crop pixel (u, v) shows the frame at the inverse affine of (u, v).

    Args:
        frame: (H, W, 3) uint8 BGR. Views with any strides work; those that OpenCV cannot read are copied once.
        affines: (N, 2, 3), frame px -> crop px, as :func:`edgepose.geometry.crop_affines` makes them. N may be 0,
            also as an empty list.
        input_size: (w, h) of a crop.
        sampling: ``"linear"`` is plain bilinear: coordinates in float64, weights and sum in float32.
            ``"opencv4"`` is the fixed-point arithmetic of OpenCV 4's ``warpAffine`` (INTER_LINEAR, BORDER_CONSTANT),
            bit for bit, whichever OpenCV is installed: 1/32 px fractions and a result rounded to whole levels. The
            published checkpoints were trained on it. (OpenCV itself overflows where a crop reaches beyond 2 million
            px; here such pixels are outside of the frame, so 0.)
            ``"area"`` first halves the frame (means of 2x2 pixels) as often as a crop pixel still spans at least two
            pixels of what is left, then samples as ``"opencv4"`` does: a large photo, shrunk, looks like a small one.
            The other two look at 4 pixels of the frame for each of the crop, however many lie between them.
        mean, std: both or neither. Without them the result is uint8 BGR, "linear" rounded to the nearest level, half
            to even. With them it is ``(level - mean) / std`` in float32, RGB, where level is a whole number under
            "opencv4" and "area", and the *unrounded* bilinear value under "linear".
        out: where to write the normalised crops, in place and without a copy; needs ``mean`` and ``std``.

    Returns:
        (N, h, w, 3) uint8 BGR without mean and std, else (N, 3, h, w) float32 RGB (``out`` itself if it was given).

    Raises:
        ValueError: a shape, a size or a value that does not fit, an affine that is not finite or cannot be inverted.
        TypeError: a frame that is not uint8, or an ``out`` that is not float32.
    """
    width, height = check_size(input_size)
    _check_frame(frame)
    inverses = _invert(affines)
    count = len(inverses)
    check_sampling(sampling)
    normalise = check_normalisation(mean, std)
    if sampling != "linear":
        frame = _readable_by_opencv(frame)
    sample = _SAMPLERS[sampling]
    plan = plan_crops(inverses, (width, height), (frame.shape[1], frame.shape[0]), sampling)
    if normalise is None:
        if out is not None:
            raise ValueError("out takes normalised crops: give mean and std with it, or leave it away")
        crops = np.empty((count, height, width, 3), np.uint8)
        for index, crop in enumerate(crops):
            levels = sample(_halved(frame, plan, index), plan.samples[index], width, height)
            np.copyto(crop, levels if levels.dtype == np.uint8 else np.rint(levels), casting="unsafe")
        return crops
    means, stds = normalise
    tensor = np.empty((count, 3, height, width), np.float32) if out is None else out
    _check_out(tensor, (count, 3, height, width))
    for index, planes in enumerate(tensor):
        levels = sample(_halved(frame, plan, index), plan.samples[index], width, height)
        rgb = levels.transpose(2, 0, 1)[::-1]
        np.subtract(rgb, means, out=planes, dtype=np.float32)  # subtract, then divide: MMPose's order of rounding
        np.divide(planes, stds, out=planes)
    return tensor


def check_size(input_size: Sequence[int]) -> tuple[int, int]:
    """(w, h), both whole and at least 1."""
    try:
        width, height = (int(side) for side in input_size)
        fits = all(whole == side and whole >= 1 for whole, side in zip((width, height), input_size, strict=True))
    except (TypeError, ValueError, OverflowError):  # not a pair, not numbers, NaN, infinite
        fits = False
    if not fits:
        raise ValueError(f"input_size must be two whole numbers (w, h) of at least 1, got {input_size!r}")
    return width, height


def check_sampling(sampling: str) -> None:
    """Raises ValueError for a sampling that there is not."""
    if sampling not in _SAMPLERS:
        raise ValueError(f"sampling must be one of {', '.join(_SAMPLERS)}, got {sampling!r}")


def _check_frame(frame: NDArray[np.uint8]) -> None:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        kind = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
        raise TypeError(f"frame must be a NumPy array of uint8, got {kind}")
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"frame must have the shape (H, W, 3), H and W at least 1, got {frame.shape}")


def _readable_by_opencv(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame itself if its rows are packed, else one copy (OpenCV would make its own for each crop, or refuse)."""
    row, column, channel = frame.strides
    packed = channel == 1 and column == 3 and row >= 3 * frame.shape[1]
    return frame if packed else np.ascontiguousarray(frame)


def check_normalisation(
    mean: ArrayLike | None, std: ArrayLike | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Two (3, 1, 1) float32 columns, or None without normalisation."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("mean and std belong together: give both (RGB, 0-255) or neither")
    means, stds = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if means.shape != (3,) or stds.shape != (3,) or not np.isfinite(means).all() or not np.isfinite(stds).all():
        raise ValueError(f"mean and std must each be three finite numbers (RGB, 0-255), got {mean} and {std}")
    if np.any(stds <= 0):
        raise ValueError(f"std must be above 0, got {std}")
    return means[:, None, None], stds[:, None, None]


def _check_out(out: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != np.float32:
        kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out must be a NumPy array of float32, got {kind}")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writeable, C-contiguous array of shape {shape}, got shape {out.shape}")


def _invert(affines: ArrayLike) -> NDArray[np.float64]:
    """(N, 2, 3), crop px -> frame px, in the order of operations of OpenCV 4: its rounding is part of the contract."""
    matrices = np.asarray(affines, np.float64)
    if matrices.shape == (0,):
        matrices = matrices.reshape(0, 2, 3)
    if matrices.ndim != 3 or matrices.shape[1:] != (2, 3):
        raise ValueError(f"affines must have the shape (N, 2, 3), got {matrices.shape}")
    (a, b, tx), (c, d, ty) = matrices.transpose(1, 2, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 1.0 / (a * d - b * c)
        a, b, c, d = d * scale, b * -scale, c * -scale, a * scale
        inverses = np.stack([a, b, -a * tx - b * ty, c, d, -c * tx - d * ty], axis=-1).reshape(-1, 2, 3)
    bad = ~np.isfinite(inverses).all(axis=(1, 2))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"affine {row} is not finite or cannot be inverted: {matrices[row].tolist()}")
    return inverses


class CropPlan(NamedTuple):
    """How N crops look at a frame; the CUDA kernel and its twin follow the same.

    Attributes:
        samples: (N, 2, 3) float64, crop px -> px of the frame, halved ``halvings`` times and moved to ``first``.
        first: (N, 2) int64, (x, y) of the halved frame that ``samples`` call (0, 0).
        halvings: (N,) int64, 0 but for sampling="area".
        seen: (N, 4) int64 xyxy frame px: no crop reads a pixel outside of its own; empty where left >= right or
            top >= bottom.
        window: xyxy frame px, end exclusive: what all of them read together, (0, 0, 0, 0) for nothing.
    """

    samples: NDArray[np.float64]
    first: NDArray[np.int64]
    halvings: NDArray[np.int64]
    seen: NDArray[np.int64]
    window: tuple[int, int, int, int]


def plan_crops(
    inverses: NDArray[np.float64],  # (N, 2, 3) crop px -> frame px
    size: tuple[int, int],  # (w, h) of a crop, px
    frame_size: tuple[int, int],  # (W, H) px
    sampling: Sampling,
) -> CropPlan:
    """How often "area" halves the frame for each crop, and which pixels are read. Arguments as crop_warp checks them.

    A crop that "area" would halve and that reaches beyond 2**39 px of the halved frame is black.
    """
    count = len(inverses)
    first, halvings = np.zeros((count, 2), np.int64), np.zeros(count, np.int64)
    samples = inverses
    cells = limits = np.array(frame_size, np.float64)  # of the frame, halved or not
    with np.errstate(over="ignore", invalid="ignore"):
        steps = inverses[:, :, :2] * np.array((size[0] - 1.0, size[1] - 1.0))
        reach = np.empty((count, 2, 2))  # (least, greatest), (x, y) of all that a crop's pixels look at
        np.add.reduce(np.minimum(steps, 0.0), axis=2, out=reach[:, 0])
        np.add.reduce(np.maximum(steps, 0.0), axis=2, out=reach[:, 1])
        reach += inverses[:, None, :, 2]
        if sampling == "area":
            span = np.minimum.reduce(np.hypot(inverses[:, 0, :2], inverses[:, 1, :2]), axis=1)
            exponents = np.frexp(span / LEAST_SPAN)[1] - 1  # of 2: exactly floor(log2)
            halvings = np.minimum(np.maximum(exponents, 0), MOST_HALVINGS).astype(np.int64)
        reduced = bool(halvings.any())
        if reduced:
            block = np.ldexp(1.0, halvings)[:, None, None]  # frame px for each px of the halved frame
            reach /= block
            cells = np.ceil(limits / block)
        sane = np.abs(reach) < SANE_REACH
        if not sane.all():  # what rounding may do to such coordinates is anyone's guess
            reach = np.where(sane, reach, [[-np.inf], [np.inf]])
        bounds = np.minimum(np.maximum(np.floor(reach) + BESIDE, 0.0), cells)
    if reduced:
        some = halvings > 0
        first[some] = bounds[some, 0]
        samples = inverses / block
        samples[:, :, 2] -= (block[:, 0] - 1) / (2 * block[:, 0]) + first
        blind = some & ~(sane.all(axis=1) & (bounds[:, 0] < bounds[:, 1])).all(axis=1)
        if blind.any():  # no tap in the frame
            samples[blind] = [0.0, 0.0, -8.0]
            halvings[blind], first[blind], bounds[blind] = 0, 0, 0
        bounds = np.minimum(bounds * block, limits)
    seen = bounds.reshape(count, 4).astype(np.int64)
    return CropPlan(samples, first, halvings, seen, _window(seen, frame_size))


def _window(seen: NDArray[np.int64], frame_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The smallest rectangle around all that are not empty, from and to multiples of WINDOW_STEP in x."""
    rows = [row for row in seen.tolist() if row[0] < row[2] and row[1] < row[3]]
    if not rows:
        return 0, 0, 0, 0
    lefts, tops, rights, bottoms = zip(*rows, strict=True)
    right = -(-max(rights) // WINDOW_STEP) * WINDOW_STEP
    return min(lefts) // WINDOW_STEP * WINDOW_STEP, min(tops), min(right, frame_size[0]), max(bottoms)


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


def _fixed_point_axes(
    inverse: NDArray[np.float64], width: int, height: int
) -> tuple[tuple[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]:
    """OpenCV 4's coordinates: ((x cell, x fraction), (y cell, y fraction)), the fraction in 1/32 px.

    Each array is int32 or int64, (h, w), or (1, w) or (h, 1) where it does not depend on the other axis (crops without
    rotation).
    """
    scale = float(1 << COORDINATE_BITS)
    x, y = np.arange(width), np.arange(height)
    axes = []
    columns: NDArray[Any]
    rows: NDArray[Any]
    for per_x, per_y, offset in inverse:
        columns = _to_int(per_x * x * scale)
        rows = _to_int((per_y * y + offset) * scale) + (1 << (COORDINATE_BITS - FRACTION_BITS - 1))
        if (rows == rows[0]).all():
            rows = rows[:1]
        elif (columns == 0).all():
            columns = columns[:1]
        if np.abs(rows).max() + np.abs(columns).max() < 1 << 31:  # 2 million px: half the memory to write
            rows, columns = rows.astype(np.int32), columns.astype(np.int32)
        position = (rows[:, None] + columns) >> (COORDINATE_BITS - FRACTION_BITS)
        axes.append((position >> FRACTION_BITS, position & ((1 << FRACTION_BITS) - 1)))
    return axes[0], axes[1]


def _to_int(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round half to even, as OpenCV's saturate_cast does."""
    return np.rint(np.clip(values, -SANE_COORDINATE, SANE_COORDINATE)).astype(np.int64)


def _sample_opencv4(
    frame: NDArray[np.uint8], inverse: NDArray[np.float64], width: int, height: int
) -> NDArray[np.uint8]:
    """One crop (h, w, 3) uint8 BGR. cv2.remap with integer maps is the second half of OpenCV 4's warpAffine."""
    if max(*frame.shape, width, height) > REMAP_LIMIT or not _remap_is_exact():
        return _sample_opencv4_numpy(frame, inverse, width, height)
    return _sample_opencv4_remap(frame, inverse, width, height)


def _sample_opencv4_remap(
    frame: NDArray[np.uint8], inverse: NDArray[np.float64], width: int, height: int
) -> NDArray[np.uint8]:
    """The fast path, for frames and crops of at most REMAP_LIMIT px."""
    (x, x_fraction), (y, y_fraction) = _fixed_point_axes(inverse, width, height)
    cells = np.empty((height, width, 2), np.int16)
    cells[..., 0] = np.clip(x, -2, frame.shape[1])  # a cell at -2 or at the limit has no tap in the frame
    cells[..., 1] = np.clip(y, -2, frame.shape[0])
    fractions = np.empty((height, width), np.uint16)
    np.bitwise_or(y_fraction << FRACTION_BITS, x_fraction, out=fractions, casting="unsafe")
    crop = cv2.remap(frame, cells, fractions, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return crop  # type: ignore[return-value]  # cv2's stubs know no dtype


def _sample_opencv4_numpy(
    frame: NDArray[np.uint8], inverse: NDArray[np.float64], width: int, height: int
) -> NDArray[np.uint8]:
    """The same in integers with NumPy alone, for any size: the specification of ``sampling="opencv4"``."""
    whole = 1 << FRACTION_BITS
    axes = []
    for (cell, fraction), limit in zip(
        _fixed_point_axes(inverse, width, height), (frame.shape[1], frame.shape[0]), strict=True
    ):
        axes.append((_tap(cell, whole - fraction, limit), _tap(cell + 1, fraction, limit)))
    total = np.full((height, width, 3), 1 << (WEIGHT_BITS - 1), np.int64)
    for row, row_weight in axes[1]:
        for column, column_weight in axes[0]:
            weight = (column_weight * row_weight) << (WEIGHT_BITS - 2 * FRACTION_BITS)
            total += frame[row, column] * weight[..., None]
    return (total >> WEIGHT_BITS).astype(np.uint8)


def _halved(frame: NDArray[np.uint8], plan: CropPlan, index: int) -> NDArray[np.uint8]:
    """What a crop samples: the frame, or the part of the halved frame that it sees."""
    if not plan.halvings[index]:
        return frame
    left, top, right, bottom = plan.seen[index]
    part = frame[top:bottom, left:right]
    for _ in range(plan.halvings[index]):
        part = _halve(part)
    return np.ascontiguousarray(part)


def _halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) -> (ceil(h / 2), ceil(w / 2), 3): means of 2x2 pixels, half rounded up; an odd last line is doubled."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = cv2.copyMakeBorder(  # type: ignore[assignment]
            image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE
        )
    return cv2.resize(  # type: ignore[return-value]
        image, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA
    )


_SAMPLERS: dict[str, Callable[[NDArray[np.uint8], NDArray[np.float64], int, int], NDArray[Any]]] = {
    "linear": _sample_linear,
    "opencv4": _sample_opencv4,
    "area": _sample_opencv4,  # of the halved frame
}


@lru_cache(maxsize=1)
def _remap_is_exact() -> bool:
    """Whether this build of OpenCV keeps integer maps in integers (x86 wheels of 4.12 and 5.0 do; a vendor's may not).

    Decided once, on a small frame, rotated and not, beyond all four borders; about 2 ms on an idle core.
    """
    frame = np.random.default_rng(0).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    inverses = np.array([[[0.9, 0.31, -6.0], [-0.29, 0.83, 7.0]], [[1.03125, 0.0, -9.5], [0.0, 0.96875, -8.25]]])
    return all(
        np.array_equal(_sample_opencv4_remap(frame, inverse, 64, 64), _sample_opencv4_numpy(frame, inverse, 64, 64))
        for inverse in inverses
    )
