"""From boxes to crops and back: affine matrices in NumPy.

One convention everywhere: an integer coordinate is the centre of a pixel (or of a heatmap cell), x before y, sizes are
(w, h). A point goes

    heatmap cells --heatmap_to_crop--> crop px --invert_affines, transform_points--> frame px

and both codecs end at the image points that MMPose 1.3.2 computes by way of its scale and centre:

    msra   the crop's affine scales by w / box width (isotropic), a cell is w / heatmap width crop px.
    udp    affine and cells measure from pixel centre to pixel centre: (w - 1) / box width, (w - 1) / (heatmap w - 1).
           (Huang et al., "The Devil is in the Details: Delving into Unbiased Data Processing", CVPR 2020.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import InputError
from edgepose.kernels._placement import Placement, Resize, centre_and_scale, locate
from edgepose.spec import Codec, ModelSpec

__all__ = [
    "cells_to_frame",
    "centre_affines",
    "crop_affines",
    "crop_transforms",
    "crops_see_frame",
    "heatmap_to_crop",
    "invert_affines",
    "letterbox_placement",
    "transform_points",
    "validate_boxes",
]


def validate_boxes(boxes: ArrayLike) -> NDArray[np.float32]:
    """Boxes as an array (N, 4) float32, xyxy, frame px; N may be 0. They may reach beyond the frame.

    Raises InputError, naming the first bad row, unless every value is finite and x1 < x2 and y1 < y2 in float32.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            array = np.asarray(boxes, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"boxes must be numbers of shape (N, 4), xyxy in px: {error}") from error
    if array.size == 0 and array.shape in ((0,), (0, 4)):
        return np.zeros((0, 4), np.float32)
    if array.ndim != 2 or array.shape[1] != 4:
        hint = "; wrap a single box in a list" if array.shape == (4,) else ""
        raise InputError(f"boxes must have the shape (N, 4), xyxy in px, got {array.shape}{hint}")
    with np.errstate(over="ignore", invalid="ignore"):
        sides = array[:, 2:] - array[:, :2]
        if ((sides > 0) & (sides < np.inf)).all():  # then the corners are finite too
            return array
    for bad, fault in (
        (~(np.isfinite(array).all(axis=1) & np.isfinite(sides).all(axis=1)), "is not finite"),
        ((sides <= 0).any(axis=1), "is inverted or has no area: expected x1 < x2 and y1 < y2"),
    ):
        if bad.any():
            row = int(bad.argmax())
            raise InputError(f"box {row} {fault}, got {array[row].tolist()}; correct it or leave it out")
    return array


def crop_affines(
    boxes: ArrayLike,  # (N, 4) xyxy, frame px
    input_size: Sequence[int],  # (w, h) of the crop, px
    codec: Codec = "msra",
    padding: float = 1.25,
    *,
    rotation: ArrayLike = 0.0,  # () or (N,) degrees
) -> NDArray[np.float64]:  # (N, 2, 3) frame px -> crop px
    """The affine of each box's crop: the box, enlarged ``padding`` times about its centre and widened to the aspect
    ratio of ``input_size``, fills the crop.

    The arithmetic is MMPose's, float32 where it uses float32, so that crops match to the bit: ``msra`` fits three
    float32 points (within about 3e-4 px of the closed form), ``udp`` rounds the closed form to float32.

    ``rotation`` is for augmentation, in degrees. As in MMPose, the same angle turns ``msra`` and ``udp`` crops in
    opposite directions. Unlike MMPose, the inverse affine undoes it.

    Returns (N, 2, 3) float64, C-contiguous; N may be 0.
    Raises InputError: boxes as in :func:`validate_boxes`, sizes, codec, padding or rotation that do not fit, or a box
    too small for float32 at its distance from the origin.
    """
    array = validate_boxes(boxes)
    width, height = _check_size("input_size", input_size, codec)
    enlarged = _floats("padding", padding)
    if enlarged.shape != () or not (np.isfinite(enlarged) and enlarged > 0):
        raise InputError(f"padding must be a finite number above 0, got {padding!r}")
    angles = _floats("rotation", rotation)
    if angles.shape not in ((), (len(array),)) or not np.isfinite(angles).all():
        raise InputError(f"rotation must be one finite angle or {len(array)} of them, got shape {angles.shape}")
    if not angles.any():
        return _upright_affines(array, width, height, codec, enlarged)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what is not finite is refused below
        centre, scale_x, scale_y = centre_and_scale(array, width, height, enlarged)
    scales = np.stack([scale_x, scale_y], axis=1)
    affines = centre_affines(centre, scales, (width, height), codec, rotation=angles)
    _check_finite(affines, array)
    return affines


def centre_affines(
    centres: NDArray[np.float32],  # (N, 2) frame px
    scales: NDArray[np.float32],  # (N, 2) width and height, frame px, at the aspect ratio of input_size
    input_size: Sequence[int],  # (w, h) of the crop, px
    codec: Codec = "msra",
    *,
    rotation: ArrayLike = 0.0,  # () or (N,) degrees
) -> NDArray[np.float64]:  # (N, 2, 3) frame px -> crop px
    """:func:`crop_affines` for what MMPose calls centre and scale: augmentation moves and scales those, not boxes.

    What is not finite in float32 comes out as not finite.
    """
    width, height = input_size
    radians = np.broadcast_to(np.deg2rad(_floats("rotation", rotation)), (len(centres),))
    affine = _rotated_msra_affine if codec == "msra" else _rotated_udp_affine
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return affine(centres, scales, radians, width, height)


def crop_transforms(boxes: NDArray[np.float32], spec: ModelSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What :func:`crop_affines` and :func:`invert_affines` give for validated boxes (N, 4), bit for bit, at once.

    For the loops of real time: the checks and the rotation cost more than the arithmetic.
    Raises InputError for a box that is too small, too large or too far from the origin for float32.
    """
    affines = _upright_affines(boxes, *spec.input_size, spec.codec, np.float64(spec.padding))
    inverses = np.zeros_like(affines)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        a, d = affines[:, 0, 0], affines[:, 1, 1]
        unit = 1.0 / (a * d)
        per_x, per_y = unit * d, unit * a
        inverses[:, 0, 0], inverses[:, 1, 1] = per_x, per_y
        np.multiply(-per_x, affines[:, 0, 2], out=inverses[:, 0, 2])
        np.multiply(-per_y, affines[:, 1, 2], out=inverses[:, 1, 2])
    _check_finite(inverses, boxes)
    return affines, inverses


def _upright_affines(
    boxes: NDArray[np.float32], width: int, height: int, codec: Codec, padding: NDArray[np.float64] | np.float64
) -> NDArray[np.float64]:
    """(N, 2, 3) of crops without rotation."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what is not finite is refused below
        centre, scale_x, scale_y = centre_and_scale(boxes, width, height, padding)
        affine = _msra_affine if codec == "msra" else _udp_affine
        affines = affine(centre[:, 0], centre[:, 1], scale_x, scale_y, width, height)
    _check_finite(affines, boxes)
    return affines


def _check_finite(affines: NDArray[np.float64], boxes: NDArray[np.float32]) -> None:
    if np.isfinite(affines).all():
        return
    row = int((~np.isfinite(affines).all(axis=(1, 2))).argmax())
    raise InputError(f"box {row} is too small, too large or too far from the origin for float32: {boxes[row].tolist()}")


def _msra_affine(
    cx: NDArray[np.float32],
    cy: NDArray[np.float32],
    scale: NDArray[np.float32],
    _: NDArray[np.float32],
    width: int,
    height: int,
) -> NDArray[np.float64]:
    """:func:`_rotated_msra_affine` for an angle of 0, bit for bit: what each predict does, so with fewer operations."""
    side = (cx + scale.astype(np.float64) * -0.5).astype(np.float32)
    third = cy + (cx - side)
    x, y = side - cx.astype(np.float64), third - cy.astype(np.float64)
    unit = 0.5 * width / (x * y)
    affines = np.zeros((len(cx), 2, 3))
    per_x, per_y = unit * -y, unit * x
    affines[:, 0, 0], affines[:, 1, 1] = per_x, per_y
    affines[:, 0, 2], affines[:, 1, 2] = 0.5 * width - per_x * cx, 0.5 * height - per_y * cy
    return affines


def _udp_affine(
    cx: NDArray[np.float32],
    cy: NDArray[np.float32],
    scale_x: NDArray[np.float32],
    scale_y: NDArray[np.float32],
    width: int,
    height: int,
) -> NDArray[np.float64]:
    """:func:`_rotated_udp_affine` for an angle of 0, bit for bit."""
    affines = np.zeros((len(cx), 2, 3))
    for row, (centre, scale, side) in enumerate(((cx, scale_x, width), (cy, scale_y, height))):
        wide = scale.astype(np.float64)
        per = (side - 1) / wide
        affines[:, row, row], affines[:, row, 2] = per, per * (0.5 * wide - centre)
    return affines.astype(np.float32).astype(np.float64)


def _rotated_msra_affine(
    centre: NDArray[np.float32], scale: NDArray[np.float32], radians: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float64]:
    """Maps the scaled box's centre, the middle of its left side and a third point, square to the two, to the crop."""
    half = scale[:, 0].astype(np.float64) * -0.5
    side = (centre + np.stack([half * np.cos(radians), half * np.sin(radians)], axis=1)).astype(np.float32)
    towards = centre - side
    third = side + np.stack([-towards[:, 1], towards[:, 0]], axis=1)
    origin = centre.astype(np.float64)
    x1, y1 = (side - origin).T
    x2, y2 = (third - origin).T
    # The three crop points are the centre, (-w/2, 0) and (-w/2, w/2) from it: solve for the matrix between them.
    unit = 0.5 * width / (x1 * y2 - x2 * y1)
    linear = np.stack([unit * (y1 - y2), unit * (x2 - x1), -unit * y1, unit * x1], axis=1).reshape(-1, 2, 2)
    offset = np.array([0.5 * width, 0.5 * height]) - (linear @ origin[:, :, None])[:, :, 0]
    return np.concatenate([linear, offset[:, :, None]], axis=2)


def _rotated_udp_affine(
    centre: NDArray[np.float32], scale: NDArray[np.float32], radians: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float64]:
    """Maps the centres of the outermost pixels to the borders of the scaled box."""
    (cx, cy), (sx, sy) = centre.T.astype(np.float64), scale.T.astype(np.float64)
    cos, sin, kx, ky = np.cos(radians), np.sin(radians), (width - 1) / sx, (height - 1) / sy
    rows = [
        kx * cos, -kx * sin, kx * (-cx * cos + cy * sin + 0.5 * sx),
        ky * sin, ky * cos, ky * (-cx * sin - cy * cos + 0.5 * sy),
    ]  # fmt: skip
    return np.stack(rows, axis=1).reshape(-1, 2, 3).astype(np.float32).astype(np.float64)


def invert_affines(affines: ArrayLike) -> NDArray[np.float64]:
    """(N, 2, 3) a -> b into (N, 2, 3) float64 b -> a. Raises InputError for a shape, or a matrix without inverse."""
    matrices = _check_affines(affines)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        (a, b, tx), (c, d, ty) = matrices.transpose(1, 2, 0)
        unit = 1.0 / (a * d - b * c)
        a, b, c, d = unit * d, -unit * b, -unit * c, unit * a
        inverses = np.stack([a, b, -a * tx - b * ty, c, d, -c * tx - d * ty], axis=1).reshape(-1, 2, 3)
    bad = ~np.isfinite(inverses).all(axis=(1, 2))
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"affine {row} is not finite or cannot be inverted: {matrices[row].tolist()}")
    return inverses


def transform_points(points: ArrayLike, affines: ArrayLike) -> NDArray[np.float64]:
    """Points (N, K, 2), each row through its own affine (N, 2, 3) -> (N, K, 2) float64. N and K may be 0.

    NaN points stay NaN. Raises InputError for shapes that do not fit.
    """
    matrices = _check_affines(affines)
    array = _floats("points", points)
    if array.shape == (0,) and len(matrices) == 0:
        array = array.reshape(0, 0, 2)
    if array.ndim != 3 or array.shape[2] != 2 or len(array) != len(matrices):
        raise InputError(f"points must have the shape ({len(matrices)}, K, 2), one row an affine, got {array.shape}")
    return array @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]


def heatmap_to_crop(
    locations: ArrayLike,  # (..., 2) heatmap cells
    codec: Codec,
    input_size: Sequence[int],  # (w, h) px
    heatmap_size: Sequence[int],  # (w, h) cells
) -> NDArray[np.float64]:
    """Heatmap cells (..., 2) -> crop px (..., 2) float64.

    ``msra`` multiplies by input / heatmap (4 for 192x256 and 48x64), ``udp`` by (input - 1) / (heatmap - 1).
    Raises InputError for a shape, codec or size that does not fit.
    """
    array = _floats("locations", locations)
    if array.shape == (0,):
        array = array.reshape(0, 2)
    if array.shape[-1:] != (2,):
        raise InputError(f"locations must have the shape (..., 2), got {array.shape}")
    size = np.array(_check_size("input_size", input_size, codec), np.float64)
    cells = np.array(_check_size("heatmap_size", heatmap_size, codec), np.float64)
    return array * (size / cells if codec == "msra" else (size - 1) / (cells - 1))


def crops_see_frame(
    inverses: NDArray[np.float64],  # (N, 2, 3) crop px -> frame px, without rotation
    input_size: tuple[int, int],  # (w, h) of the crop, px
    frame_size: tuple[int, int],  # (W, H) px
) -> NDArray[np.bool_]:  # (N,)
    """Whether a crop overlaps the frame, the outer halves of its outermost pixels included."""
    step, first = inverses[:, (0, 1), (0, 1)], inverses[:, :, 2]  # (N, 2): of a crop px, of crop px 0; frame px
    low, high = first - 0.5 * step, first + (np.array(input_size) - 0.5) * step
    return np.asarray(((high > -0.5) & (low < np.array(frame_size) - 0.5)).all(axis=1))


def letterbox_placement(
    frame_size: Sequence[int],  # (W, H) px
    input_size: Sequence[int],  # (w, h) of a detector's input, px
    resize: Resize = "letterbox",
) -> Placement:
    """Where ``kernels.reference.letterbox`` puts a frame: (scale_x, scale_y, left, top), float64.

    Input px = frame px * scale + offset in edge coordinates, as COCO's boxes are: 0 is the first pixel's outer edge.
    ``left`` and ``top`` are whole. The scales are those of the picture after its size was rounded to whole pixels, so
    that boxes go back exactly:

    * ``letterbox``: the frame's aspect, in the middle. The side that does not decide is rounded to the nearest pixel,
      an odd pixel of padding lies to the right or below (as YOLOv5 and its successors do it).
    * ``letterbox_corner``: at the top left, that side rounded down (YOLOX).
    * ``stretch``: the picture fills the input.

    Raises InputError for sizes that are not whole numbers of at least 1, or a resize that there is not.
    """
    frame, picture = _check_size("frame_size", frame_size, "msra"), _check_size("input_size", input_size, "msra")
    try:
        return locate(frame, picture, resize)
    except ValueError as error:
        raise InputError(str(error)) from None


def cells_to_frame(inverses: NDArray[np.float64], spec: ModelSpec) -> NDArray[np.float64]:
    """(N, 2, 3) crop px -> frame px into (N, 2, 3) heatmap cells -> frame px."""
    return np.asarray(inverses * _cell_steps(spec.codec, spec.input_size, spec.heatmap_size))


@lru_cache(maxsize=32)
def _cell_steps(codec: Codec, input_size: tuple[int, int], heatmap_size: tuple[int, int]) -> NDArray[np.float64]:
    """(3,): crop px from cell to cell in x and y, and 1."""
    return np.append(heatmap_to_crop([1.0, 1.0], codec, input_size, heatmap_size), 1.0)


def _check_affines(affines: ArrayLike) -> NDArray[np.float64]:
    matrices = _floats("affines", affines)
    if matrices.shape == (0,):
        return np.zeros((0, 2, 3))
    if matrices.ndim != 3 or matrices.shape[1:] != (2, 3):
        raise InputError(f"affines must have the shape (N, 2, 3), got {matrices.shape}")
    return matrices


def _floats(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be numbers, got {values!r}: {error}") from None


def _check_size(name: str, size: Sequence[int], codec: Codec) -> tuple[int, int]:
    """(w, h) as whole numbers: at least 1, for udp 2, since it counts the steps between pixels."""
    if codec not in ("msra", "udp"):
        raise InputError(f'codec must be "msra" or "udp", got {codec!r}')
    least = 1 if codec == "msra" else 2
    try:
        width, height = (int(side) for side in size)
        fits = all(whole == side and whole >= least for whole, side in zip((width, height), size, strict=True))
    except (TypeError, ValueError, OverflowError):  # not a pair, not numbers, NaN, infinite
        fits = False
    if not fits:
        raise InputError(f"{name} must be two whole numbers (w, h) of at least {least}, got {size!r}")
    return width, height
