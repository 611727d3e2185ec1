"""Things that hold a garment up: hangers, grippers and pegs, drawn over a crop as augmentation."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["draw_holders"]

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]

PAIRS = ((0, 1), (4, 5))  # collars, waistline: what garment-landmarks' garments hang from
SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def draw_holders(crop: Image, keypoints: Array, visible: Array, rng: np.random.Generator) -> None:
    """Draw a hanger, or one or two grippers or pegs, where the garment would hang; in place.

    Args:
        crop: (h, w, 3) uint8 BGR.
        keypoints: (8, 2) crop px, in the order of ``garment-landmarks``.
        visible: (8,) 0 where a landmark is not there.
        rng: the source of every choice.
    """
    pairs = [pair for pair in PAIRS if visible[list(pair)].all()]
    if not pairs:
        return
    left, right = (keypoints[i].astype(np.float64) for i in pairs[0])
    width = float(np.linalg.norm(right - left))
    if width < 8:
        return
    across = (right - left) / width
    up = np.array([across[1], -across[0]])  # away from the garment in an upright picture
    up = up if up[1] < 0 else -up
    if pairs[0] == (0, 1) and rng.random() < 0.4:
        _hanger(crop, left, right, up, width, rng)
        return
    # A gripper holds a shoulder, beyond the collar, or a corner of the waistband
    outward = rng.uniform(0.1, 0.9) if pairs[0] == (0, 1) else rng.uniform(-0.25, 0.05)
    for point, direction in ((left, -across), (right, across)):
        if rng.random() < 0.85:
            _gripper(crop, point + direction * outward * width - up * 0.05 * width, up, width, rng)


def _hanger(crop: Image, left: Array, right: Array, up: Array, width: float, rng: np.random.Generator) -> None:
    """A triangle's upper two sides, hidden by the cloth below the collar, and a hook."""
    color, thickness = _color(rng), max(1, round(width * rng.uniform(0.03, 0.12)))
    middle = (left + right) / 2
    neck = middle + up * width * rng.uniform(0.05, 0.4)
    for point in (left, right):
        _line(crop, neck, point + (point - middle) * rng.uniform(-0.1, 0.1), color, thickness)
    top = neck + up * width * rng.uniform(0.3, 1.0)
    _line(crop, neck, top, color if rng.random() < 0.4 else _metal(rng), max(1, thickness // 2))


def _gripper(crop: Image, point: Array, up: Array, width: float, rng: np.random.Generator) -> None:
    """Two fingers over the cloth's edge, and perhaps the arm that they belong to."""
    angle = rng.normal(0, 0.4)
    up = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ up
    color, finger = _color(rng), max(2, round(width * rng.uniform(0.08, 0.3)))
    tip, palm = point - up * finger * rng.uniform(0.0, 0.8), point + up * finger * rng.uniform(1.0, 2.5)
    _line(crop, tip, palm, color, finger)
    if rng.random() < 0.6:
        _line(crop, palm, palm + up * 4 * width, _color(rng), round(finger * rng.uniform(1.2, 2.5)))


def _line(crop: Image, a: Array, b: Array, color: tuple[int, int, int], thickness: int) -> None:
    scaled = [tuple(int(v) for v in np.clip(np.rint(p * (1 << SHIFT)), -(1 << 20), 1 << 20)) for p in (a, b)]
    cv2.line(crop, scaled[0], scaled[1], color, thickness, cv2.LINE_AA, SHIFT)
    light = tuple(min(255, c + 40) for c in color)
    cv2.line(crop, scaled[0], scaled[1], light, max(1, thickness // 4), cv2.LINE_AA, SHIFT)


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    """Mostly black, grey or metal, sometimes wood or anything else."""
    kind = rng.random()
    if kind < 0.6:
        return _metal(rng)
    if kind < 0.8:
        shade = rng.uniform(0.4, 1.0)
        return (int(90 * shade), int(140 * shade), int(190 * shade))
    return tuple(int(v) for v in rng.integers(0, 256, 3))  # type: ignore[return-value]


def _metal(rng: np.random.Generator) -> tuple[int, int, int]:
    level = int(rng.integers(10, 230))
    return (level, level, level)
