"""plan_crops: the NumPy twin of the kernel that turns detections into a call's crops (see :mod:`.reference`)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._call import DETECTION, FRAME, INSTANCE
from ._crop import Sampling, check_sampling, check_size
from ._crop import plan_crops as plan_affines
from ._placement import centre_and_scale

__all__ = ["CropGeometry", "check_geometry", "check_model", "plan_crops", "upright_inverses"]


class CropGeometry(NamedTuple):
    """What a pose model's spec says about its crops; the fields are ModelSpec's.

    Attributes:
        input_size: (w, h) of a crop, px.
        heatmap_size: (w, h) cells.
        codec: "msra" or "udp".
        padding: a box is enlarged so many times.
        sampling: "linear", "opencv4" or "area".
    """

    input_size: tuple[int, int]
    heatmap_size: tuple[int, int]
    codec: Literal["msra", "udp"]
    padding: float
    sampling: Sampling

    def cell_steps(self) -> tuple[float, float]:
        """Crop px from heatmap cell to heatmap cell, in x and y."""
        less = int(self.codec == "udp")  # udp counts the steps between the outermost centres
        x, y = ((side - less) / (cells - less) for side, cells in zip(self.input_size, self.heatmap_size, strict=True))
        return x, y


def check_geometry(geometry: CropGeometry) -> None:
    """Raises ValueError for values that do not fit."""
    check_sampling(geometry.sampling)
    if geometry.codec not in ("msra", "udp"):
        raise ValueError(f'codec must be "msra" or "udp", got {geometry.codec!r}')
    least = min(*check_size(geometry.input_size), *check_size(geometry.heatmap_size))
    if least < (2 if geometry.codec == "udp" else 1):
        raise ValueError(f"udp needs sizes of at least 2, got {geometry.input_size} and {geometry.heatmap_size}")
    if not (np.isfinite(geometry.padding) and geometry.padding > 0):
        raise ValueError(f"padding must be a finite number above 0, got {geometry.padding!r}")


def check_model(model: int) -> None:
    """Raises ValueError for a negative number, which stands for no model."""
    if model < 0:
        raise ValueError(f"model must be at least 0 (-1 in categories stands for none), got {model}")


def plan_crops(
    counts: NDArray[np.int32],  # (B,) detections of each frame
    detections: NDArray[np.void],  # (B, M) DETECTION of _call.py
    frames: NDArray[np.void],  # (B,) FRAME of _call.py
    categories: NDArray[np.int32],  # (C, 3) of each label: first channel, end channel, model (-1: none)
    *,
    model: int,
    geometry: CropGeometry,
) -> NDArray[np.void]:
    """The crops that one pose model makes of the detections of B frames: frame by frame, each frame's in their order.

    Bit for bit what ``edgepose.geometry.crop_transforms`` and ``cells_to_frame`` and the crop kernel's own plan give.
    A box too small, too large or too far from the origin for float32, which those refuse, gets a crop that is black and
    has no channels: its landmarks score 0 and lie at the box's centre.

    Args:
        categories: a detection gets a crop where the model of its label is ``model``; labels of C and above get none.

    Returns:
        (n,) INSTANCE of _call.py. The kernel writes as many as there is room for, and says how many there would be.

    Raises:
        ValueError, TypeError: a shape, a dtype or a value that does not fit.
    """
    check_geometry(geometry)
    check_model(model)
    for name, array, dtype in (("detections", detections, DETECTION), ("frames", frames, FRAME)):
        if array.dtype != dtype:
            raise TypeError(f"{name} must be records of {dtype.names}, got {array.dtype}")
    if detections.ndim != 2 or not len(counts) == len(detections) == len(frames):
        raise ValueError(
            f"counts, detections and frames must be (B,), (B, M) and (B,), "
            f"got {counts.shape}, {detections.shape} and {frames.shape}"
        )
    there = np.arange(detections.shape[1]) < counts[:, None]
    labels = detections["label"]
    known = there & (labels >= 0) & (labels < len(categories))
    table = categories[np.where(known, labels, 0)]  # (B, M, 3)
    owners, places = np.nonzero(known & (table[..., 2] == model))
    chosen = detections[owners, places]
    inverses, bad = upright_inverses(chosen["box"], geometry)
    instances = np.zeros(len(chosen), INSTANCE)
    instances["owner"], instances["channels"] = owners, table[owners, places, :2]
    steps = np.append(geometry.cell_steps(), 1.0)
    for owner in np.unique(owners):
        mine = owners == owner
        frame = frames[owner]
        part = instances[mine]
        part[list(FRAME.names or ())] = frame
        plan = plan_affines(
            inverses[mine], geometry.input_size, (int(frame["width"]), int(frame["height"])), geometry.sampling
        )
        part["sample"], part["first"], part["halvings"] = plan.samples, plan.first, plan.halvings
        part["place"] = inverses[mine] * steps
        instances[mine] = part
    instances["channels"][bad, 1] = instances["channels"][bad, 0]
    if bad.any():
        box = chosen["box"][bad]
        instances["place"][bad] = 0
        with np.errstate(over="ignore"):
            instances["place"][bad, :, 2] = (box[:, :2] + box[:, 2:]) * np.float32(0.5)
        instances["sample"][bad], instances["first"][bad], instances["halvings"][bad] = BLACK, 0, 0
    return instances


BLACK = (0.0, 0.0, -8.0)  # every pixel of a crop lies 8 px to the left and above the frame


def upright_inverses(
    boxes: NDArray[np.float32],  # (N, 4) xyxy, frame px
    geometry: CropGeometry,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(N, 2, 3) crop px -> frame px, and (N,) whether float32 does not hold the box's affine: then it is the identity.

    The arithmetic is that of ``edgepose.geometry.crop_transforms``, operation by operation.
    """
    width, height = geometry.input_size
    inverses = np.zeros((len(boxes), 2, 3))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        centre, *scales = centre_and_scale(boxes, width, height, geometry.padding)
        cx, cy = centre.T
        if geometry.codec == "msra":
            side = (cx + scales[0].astype(np.float64) * -0.5).astype(np.float32)
            third = cy + (cx - side)
            x, y = side - cx.astype(np.float64), third - cy.astype(np.float64)
            unit = 0.5 * width / (x * y)
            steps = [unit * -y, unit * x]
            offsets = [0.5 * width - steps[0] * cx, 0.5 * height - steps[1] * cy]
        else:
            steps, offsets = [], []
            for centre, scale, pixels in ((cx, scales[0], width), (cy, scales[1], height)):
                span = scale.astype(np.float64)
                step = (pixels - 1) / span
                steps.append(step.astype(np.float32).astype(np.float64))
                offsets.append((step * (0.5 * span - centre)).astype(np.float32).astype(np.float64))
        inverse_unit = 1.0 / (steps[0] * steps[1])
        for axis in range(2):
            inverses[:, axis, axis] = inverse_unit * steps[1 - axis]
            inverses[:, axis, 2] = -inverses[:, axis, axis] * offsets[axis]
        bad = np.asarray(~(np.isfinite(inverses).all(axis=(1, 2)) & np.isfinite([*steps, *offsets]).all(axis=0)))
    inverses[bad] = np.eye(2, 3)
    return inverses, bad
