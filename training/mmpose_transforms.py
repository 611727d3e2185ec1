"""The training crops of MMPose 1.3.2: box centre and scale, random flip, random shift, scale and rotation, one warp.

Everything happens to the affine, so that the frame is sampled once. Order, units and distributions are MMPose's
(``GetBBoxCenterScale``, ``RandomFlip``, ``RandomBBoxTransform``, ``TopdownAffine``); the random generator is NumPy's,
given by the caller, instead of a global one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.geometry import centre_affines, transform_points, validate_boxes
from edgepose.spec import ModelSpec

__all__ = ["Draw", "MMPoseAugmentation"]

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

_NORMAL = NormalDist()
_LOW, _HIGH = _NORMAL.cdf(-1.0), _NORMAL.cdf(1.0)


class Draw(NamedTuple):
    """What one sample drew.

    Attributes:
        flipped: mirror the frame.
        shift: (x, y), in units of the padded box's width and height.
        scale: of the padded box; above 1 the garment gets smaller.
        rotation: degrees.
    """

    flipped: bool = False
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    rotation: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MMPoseAugmentation:
    """How much to vary a crop; the defaults are MMPose's. All amounts are the largest ones.

    Shift, scale and rotation follow a normal distribution of standard deviation ``amount``, cut off at +- ``amount``.
    There is no half-body crop: the fashion data sets name no upper and lower body, so MMPose's never applies to them.

    Attributes:
        flip: probability of a mirror image.
        shift: as a fraction of the padded box's sides.
        shift_probability: see ``shift``; else the box stays where it is.
        scale: the padded box grows or shrinks by 1 - scale to 1 + scale.
        scale_probability: see ``scale``.
        rotation: degrees.
        rotation_probability: see ``rotation``.

    Raises:
        InputError: a probability outside 0 to 1, or an amount that is negative, not finite, or, of scale, 1 or more.
    """

    flip: float = 0.5
    shift: float = 0.16
    shift_probability: float = 0.3
    scale: float = 0.5
    scale_probability: float = 1.0
    rotation: float = 80.0
    rotation_probability: float = 0.6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            most = 1.0 if field.name == "flip" or field.name.endswith("probability") else np.inf
            if not (0 <= value <= most and np.isfinite(value)):
                wanted = "0 to 1" if most == 1 else "at least 0 and finite"
                raise InputError(f"MMPoseAugmentation: {field.name} must be {wanted}, got {value!r}")
        if self.scale >= 1:
            raise InputError(f"MMPoseAugmentation: scale must be below 1 (a box must keep an area), got {self.scale!r}")

    def draw(self, rng: np.random.Generator) -> Draw:
        """Eight random numbers, whatever is switched off, so that one option does not change another's stream."""
        flipped = rng.random() < self.flip
        x, y, scale, rotation = truncated_normal(rng.random(4)).tolist()
        shifts, scales, rotates = rng.random(3) < (
            self.shift_probability,
            self.scale_probability,
            self.rotation_probability,
        )
        return Draw(
            flipped,
            (x * self.shift, y * self.shift) if shifts else (0.0, 0.0),
            1 + scale * self.scale if scales else 1.0,
            rotation * self.rotation if rotates else 0.0,
        )

    def transform(
        self,
        box: Array,  # (4,) xyxy frame px
        frame_size: tuple[int, int],  # (W, H) px
        keypoints: Array,  # (K, 2) frame px; NaN stays NaN
        visible: Array,  # (K,)
        spec: ModelSpec,
        rng: np.random.Generator,
    ) -> tuple[Affine, Array, Array]:
        """Draw once, and apply it.

        Returns:
            affine (2, 3) float64 frame px -> crop px, a mirror included; keypoints (K, 2) float32 crop px, left and
            right exchanged where mirrored; visible (K,), exchanged likewise. A landmark that falls outside of the crop
            stays visible, as in MMPose: the codec then decides whether its Gaussian still reaches the map.
        """
        drawn = self.draw(rng)
        affine = drawn_affine(box, frame_size, spec, drawn)
        order = list(spec.flip_indices) if drawn.flipped else slice(None)
        points = transform_points(keypoints[None], affine[None])[0].astype(np.float32)
        return affine, points[order], visible[order].copy()


def truncated_normal(uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Numbers that are uniform on [0, 1) -> standard normal ones between -1 and 1, through the inverse distribution
    function (as SciPy's ``truncnorm`` does), rounded to float32 as MMPose does."""
    return np.array([_NORMAL.inv_cdf(_LOW + u * (_HIGH - _LOW)) for u in uniform], np.float32)


def drawn_affine(box: Array, frame_size: tuple[int, int], spec: ModelSpec, drawn: Draw) -> Affine:
    """(2, 3) float64, frame px -> crop px, for a box (4,) xyxy and what was drawn.

    MMPose's order: pad, mirror the centre (x -> W - 1 - x), shift by fractions of the padded box *before* it is scaled,
    scale, widen to the crop's aspect ratio, rotate; in float32 where MMPose is. The frame itself is not mirrored: the
    mirror is the first factor of the affine.

    Raises:
        InputError: not a box, or too small for float32 at its distance from the origin.
    """
    x0, y0, x1, y1 = validate_boxes(box[None])[0]
    width = frame_size[0]
    centre = np.array([(x0 + x1) * np.float32(0.5), (y0 + y1) * np.float32(0.5)], np.float32)
    sides = np.array([x1 - x0, y1 - y0], np.float32) * np.float32(spec.padding)
    if drawn.flipped:
        centre[0] = np.float32(width) - centre[0] - np.float32(1)
    centre += np.array(drawn.shift, np.float32) * sides
    sides *= np.float32(drawn.scale)
    aspect = np.float32(spec.input_size[0] / spec.input_size[1])
    if sides[0] > sides[1] * aspect:
        sides[1] = sides[0] / aspect
    else:
        sides[0] = sides[1] * aspect
    affine = centre_affines(centre[None], sides[None], spec.input_size, spec.codec, rotation=drawn.rotation)[0]
    if not np.isfinite(affine).all():
        raise InputError(f"the box {box.tolist()} is too small, too large or too far from the origin for float32")
    if not drawn.flipped:
        return affine
    mirror = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(affine @ mirror)
