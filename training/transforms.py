"""Random variation of a crop: geometry first (one resampling in all), then light, colour and dirt.

Everything is drawn from the generator that the caller gives, so a sample is repeatable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.geometry import transform_points
from edgepose.kernels.reference import crop_warp
from edgepose.spec import ModelSpec
from edgepose.training.holders import draw_holders

__all__ = ["Augmentation", "augmented_crop"]

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """How much to vary a crop. Angles in degrees, lengths as a fraction of the crop; a probability of 0 is off."""

    flip: float = 0.5
    rotation: float = 30.0  # maximum; normally distributed with a third of it as standard deviation
    scale: tuple[float, float] = (0.7, 1.3)
    shift: float = 0.10
    shear: float = 0.10
    elastic: float = 0.5  # probability of a smooth warp
    elastic_strength: float = 0.02
    black_outside: float = 0.5  # probability that what lies outside the frame is black, as the runtime has it
    color: float = 0.8
    invert_light: float = 0.03
    gray: float = 0.08
    low_contrast: float = 0.0  # probability that little light is left between the darkest and the brightest
    far: float = 0.0  # probability of a garment that covers few pixels: the camera stands away
    blur: float = 0.15
    noise: float = 0.25
    jpeg: float = 0.15
    shadow: float = 0.25
    hold: float = 0.0  # probability of a hanger, grippers or pegs where the garment would hang; see `draw_holders`
    erase: float = 0.3  # probability of one to three opaque patches
    border: float = 0.15  # probability that the frame ends inside the crop


def augmented_crop(
    frame: Image,  # (H, W, 3) uint8 BGR
    affine: Affine,  # (2, 3) frame px -> crop px
    keypoints: Array,  # (K, 2) frame px
    visible: Array,  # (K,)
    spec: ModelSpec,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
) -> tuple[Image, Array, Array]:
    """Crop a frame, varied: (h, w, 3) uint8 BGR, keypoints (K, 2) float32 crop px, visible (K,) float32.

    Without an augmentation this is exactly the runtime's crop.
    """
    if augmentation is None:
        crop = crop_warp(frame, affine[None], spec.input_size, sampling=spec.sampling)[0]
        return crop, transform_points(keypoints[None], affine[None])[0].astype(np.float32), visible.copy()
    a = augmentation
    flipped = rng.random() < a.flip
    affine = random_affine(spec.input_size, a, flipped, rng) @ np.vstack([affine, [0, 0, 1]])
    points = transform_points(keypoints[None], affine[None])[0].astype(np.float32)
    strength = a.elastic_strength * rng.uniform(0.2, 1.0) if rng.random() < a.elastic else 0.0
    w, h = spec.input_size
    crop = np.zeros((h, w, 3), np.uint8) if rng.random() < a.black_outside else random_background((w, h), rng)
    points = elastic_warp(frame, affine, points, crop, strength, rng)
    visible = visible.copy()
    if flipped:
        order = list(spec.flip_indices)
        points, visible = points[order], visible[order]
    if a.hold and rng.random() < a.hold:
        draw_holders(crop, points, visible, rng)
    if rng.random() < a.border:
        cut_border(crop, rng)
    crop = vary_light(crop, a, rng)
    if rng.random() < a.erase:
        erase_patches(crop, rng)
    return crop, points, visible


def random_affine(size: tuple[int, int], a: Augmentation, flipped: bool, rng: np.random.Generator) -> Affine:
    """A random (2, 3) map of crop px to crop px about the crop's centre."""
    w, h = size
    angle = np.deg2rad(np.clip(rng.normal(0, a.rotation / 3), -a.rotation, a.rotation))
    scale = np.exp(rng.uniform(np.log(a.scale[0]), np.log(a.scale[1])))
    aspect = np.exp(rng.normal(0, 0.06))
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, rng.normal(0, a.shear / 2)], [0, 1]])
    linear = linear @ np.diag([scale * aspect * (-1 if flipped else 1), scale / aspect])
    centre = np.array([(w - 1) / 2, (h - 1) / 2])
    shift = rng.uniform(-a.shift, a.shift, 2) * (w, h)
    return np.hstack([linear, (centre + shift - linear @ centre)[:, None]])


def random_background(size: tuple[int, int], rng: np.random.Generator) -> Image:
    """(h, w, 3) uint8: a smooth or coarse mixture of a few random colours."""
    w, h = size
    cells = int(rng.choice([1, 2, 4, 24]))
    colours = np.clip(rng.integers(0, 256, 3) + rng.normal(0, 25, (cells + 1, cells + 1, 3)), 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(colours, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8)


def elastic_warp(
    frame: Image, affine: Affine, points: Array, crop: Image, strength: float, rng: np.random.Generator
) -> Array:
    """Draw the frame over ``crop``, in place, through an affine and a smooth random warp of ``strength`` crop widths.

    Returns:
        The points (K, 2), given in affine crop px, where the warp takes them (by fixed-point iteration).
    """
    h, w = crop.shape[:2]
    target = pixel_grid((w, h))
    result = points
    if strength > 0:
        cells = int(rng.integers(3, 7))
        coarse = rng.normal(0, strength * w, (cells + 1, cells, 2)).astype(np.float32)
        field = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
        target = target + field
        for _ in range(8):  # the crop shows at p what lies at p + field(p): solve p + field(p) = point
            at = np.clip(np.rint(np.nan_to_num(result)), 0, (w - 1, h - 1)).astype(int)
            result = points - field[at[:, 1], at[:, 0]]
    source = cv2.transform(target, cv2.invertAffineTransform(affine).astype(np.float32))
    cv2.remap(frame, source, None, cv2.INTER_LINEAR, dst=crop, borderMode=cv2.BORDER_TRANSPARENT)
    return result.astype(np.float32)


@lru_cache(maxsize=4)
def pixel_grid(size: tuple[int, int]) -> Array:
    """(h, w, 2) float32: x and y of each pixel; read-only."""
    w, h = size
    grid = np.stack(np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)), -1)
    grid.flags.writeable = False
    return grid


def cut_border(crop: Image, rng: np.random.Generator) -> None:
    """Blacken a strip at one side, in place: what a crop looks like whose box touches the frame's border."""
    h, w = crop.shape[:2]
    side, depth = int(rng.integers(4)), rng.uniform(0.02, 0.12)
    if side == 0:
        crop[: int(depth * h)] = 0
    elif side == 1:
        crop[h - int(depth * h) :] = 0
    elif side == 2:
        crop[:, : int(depth * w)] = 0
    else:
        crop[:, w - int(depth * w) :] = 0


def vary_light(crop: Image, a: Augmentation, rng: np.random.Generator) -> Image:
    """Colour, exposure, shadows, blur, noise and compression."""
    h, w = crop.shape[:2]
    image = crop
    if rng.random() < a.color:
        image = _vary_color(image, rng)
    if rng.random() < a.gray:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < a.invert_light:
        image = 255 - image
    if rng.random() < a.shadow:
        cells = int(rng.integers(2, 5))
        field = cv2.resize(
            rng.uniform(0.55, 1.25, (cells, cells)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC
        )
        product = image * field[..., None]
        image = np.clip(product, 0, 255, out=product).astype(np.uint8)
    if a.low_contrast and rng.random() < a.low_contrast:
        span, level = rng.uniform(0.15, 0.5), rng.uniform(0, 1)
        image = (image * span + (1 - span) * 255 * level).astype(np.uint8)
    if a.far and rng.random() < a.far:
        f = rng.uniform(0.15, 0.4)
        small = cv2.resize(image, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)
    if rng.random() < a.blur:
        if rng.random() < 0.7:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6))
        else:
            f = rng.uniform(0.35, 0.8)
            small = cv2.resize(image, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)
    if rng.random() < a.noise:
        sigma = rng.uniform(2, 14)
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= sigma
        noise += image
        image = np.clip(noise, 0, 255, out=noise).astype(np.uint8)
    if rng.random() < a.jpeg:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 85))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    return image


def _vary_color(image: Image, rng: np.random.Generator) -> Image:
    levels = np.arange(256, dtype=np.float32)
    hue = rng.normal(0, 12) if rng.random() < 0.6 else rng.uniform(0, 180)
    tables = np.stack([(levels + hue) % 180, np.clip(levels * rng.uniform(0.4, 1.5), 0, 255), levels], -1)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), tables.astype(np.uint8)[None])
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    levels = levels / 255
    curve = levels ** np.exp(rng.normal(0, 0.25))
    curve = (curve - 0.5) * rng.uniform(0.65, 1.35) + 0.5 + rng.normal(0, 0.08)
    gains = np.exp(rng.normal(0, 0.06, 3))
    table = np.clip(curve[:, None] * gains * 255, 0, 255).astype(np.uint8)  # (256, 3)
    return np.asarray(cv2.LUT(image, table[None]), np.uint8)


def erase_patches(crop: Image, rng: np.random.Generator) -> None:
    """Cover parts with flat colour, noise, or another part of the same crop, in place."""
    h, w = crop.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        ph, pw = int(h * rng.uniform(0.04, 0.22)), int(w * rng.uniform(0.04, 0.28))
        y, x = int(rng.integers(0, h - ph)), int(rng.integers(0, w - pw))
        kind = rng.random()
        if kind < 0.4:
            crop[y : y + ph, x : x + pw] = rng.integers(0, 256, 3)
        elif kind < 0.6:
            crop[y : y + ph, x : x + pw] = rng.integers(0, 256, (ph, pw, 3))
        else:
            v, u = int(rng.integers(0, h - ph)), int(rng.integers(0, w - pw))
            crop[y : y + ph, x : x + pw] = crop[v : v + ph, u : u + pw].copy()
