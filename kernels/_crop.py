"""crop_warp: the NumPy twin of the crop kernel (see :mod:`edgepose.kernels.reference`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._sampling import Sampling, sample_crops

__all__ = ["CropPlan", "Sampling", "check_normalisation", "check_sampling", "check_size", "crop_warp", "plan_crops"]

LEAST_SPAN = 2  # "area" leaves a crop pixel this many frame px: what models see that were trained on photos of 500 px
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
    plan = plan_crops(inverses, (width, height), (frame.shape[1], frame.shape[0]), sampling)
    images = (_halved(frame, plan, index) for index in range(count))
    sampled = sample_crops(images, plan.samples, width, height, sampling)
    if normalise is None:
        if out is not None:
            raise ValueError("out takes normalised crops: give mean and std with it, or leave it away")
        crops = np.empty((count, height, width, 3), np.uint8)
        for crop, levels in zip(crops, sampled, strict=True):
            np.copyto(crop, levels if levels.dtype == np.uint8 else np.rint(levels), casting="unsafe")
        return crops
    tensor = np.empty((count, 3, height, width), np.float32) if out is None else out
    _check_out(tensor, (count, 3, height, width))
    _normalise(sampled, *normalise, tensor)
    return tensor


def _normalise(
    sampled: Iterable[NDArray[Any]],  # N of (h, w, 3) BGR, uint8 or float32
    means: NDArray[np.float32],  # (3, 1, 1) RGB
    stds: NDArray[np.float32],  # (3, 1, 1) RGB
    out: NDArray[np.float32],  # (N, 3, h, w)
) -> None:
    """Subtract, then divide: MMPose's order of rounding. Of whole levels there are 256, so a table holds the results,
    and ``out`` is written once: as long as it is in no cache, that is what takes the time.
    """
    tables = (np.arange(256, dtype=np.float32) - means[:, 0]) / stds[:, 0]
    split: list[NDArray[Any]] = []
    for levels, planes in zip(sampled, out, strict=True):
        split = split or [np.empty(levels.shape[:2], levels.dtype) for _ in range(3)]
        rgb = reversed(cv2.split(levels, split))
        for plane, level, mean, std, table in zip(planes, rgb, means, stds, tables, strict=True):
            if level.dtype != np.uint8:
                np.subtract(level, mean, out=plane)
                np.divide(plane, std, out=plane)
            elif not np.may_share_memory(filled := cv2.LUT(level, table, dst=plane), plane):
                plane[...] = filled  # an OpenCV that would not write there


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
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}, got {sampling!r}")


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
