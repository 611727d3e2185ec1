"""Drawn figures that wear cut-out garments: a head, arms and legs where the landmarks say, nothing finer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.training.detection.garments import GARMENT_TYPES, Garment

__all__ = ["FigureItem", "draw_body", "outfit"]

Image = npt.NDArray[np.uint8]
Affine = npt.NDArray[np.float64]
Point = npt.NDArray[np.float64]

COLLAR, SLEEVE, WAIST, HEM = (0, 1), (2, 3), (4, 5), (6, 7)
SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass(frozen=True)
class FigureItem:
    """A garment and where it lies, (2, 3) of its px -> scene px; or limbs, as lines of (from, to, thickness) px."""

    garment: Garment | None
    matrix: Affine
    limbs: tuple[tuple[Point, Point, float], ...] = ()
    color: tuple[float, float, float] = (0, 0, 0)

    def body_mask(self, size: int) -> Image:
        """(size, size) uint8, 255 where the limbs are."""
        mask = np.zeros((size, size), np.uint8)
        for start, end, thickness in self.limbs:
            cv2.line(mask, _fixed(start), _fixed(end), 255, max(1, round(thickness)), cv2.LINE_AA, SHIFT)
        return mask


def _fixed(point: Point) -> tuple[int, int]:
    """In OpenCV's fixed-point coordinates."""
    x, y = np.clip(np.rint(point * (1 << SHIFT)), -(1 << 20), 1 << 20)
    return int(x), int(y)


def draw_body(image: Image, item: FigureItem, rng: np.random.Generator) -> None:
    """Draw limbs, lit from one side, in place."""
    size = image.shape[0]
    alpha = item.body_mask(size).astype(np.float32) / 255
    light = np.linspace(rng.uniform(0.6, 1.1), rng.uniform(0.6, 1.1), size)[None, :, None]
    skin = np.clip(light * np.array(item.color), 0, 255)
    skin = np.broadcast_to(skin, image.shape).astype(np.uint8)
    image[:] = cv2.blendLinear(np.ascontiguousarray(skin), image, alpha, 1 - alpha)


def outfit(
    pieces: Sequence[Garment], size: int, middle: float, share: float, rng: np.random.Generator
) -> list[FigureItem]:
    """What to draw, first to last, for one figure; empty where no piece has the landmarks that it takes.

    Args:
        pieces: garments to choose from.
        size: of the scene, px.
        middle: the figure's x, px.
        share: of the scene's width that is the figure's.
        rng: the source of every choice.
    """
    kinds = {kind: [g for g in pieces if g.category == kind and _complete(g)] for kind in ("upper", "lower", "full")}
    dressed = bool(kinds["full"]) and (not kinds["upper"] or rng.random() < 0.35)
    top = (kinds["full"] if dressed else kinds["upper"])[:1]
    if not top:
        return []
    upper = top[0]
    torso = size * float(rng.uniform(0.2, 0.42)) * (1.6 if dressed else 1.0) * (0.85 if share < 1 else 1.0)
    collar, hem = _middle(upper, COLLAR), _middle(upper, HEM)
    turn = float(rng.normal(0, 0.08))
    spot = np.array([middle + rng.normal(0, 0.08 * size * share), size * rng.uniform(0.05, 0.32)])
    matrix = _hung(upper, collar, hem, torso, turn, spot, rng)
    down = np.array([-np.sin(turn), np.cos(turn)])
    items = [FigureItem(upper, matrix)]
    unit = torso / 1.6 if dressed else torso
    ends = [matrix[:, :2] @ upper.keypoints[k] + matrix[:, 2] for k in HEM]
    long_legs = 0.55
    if not dressed and kinds["lower"] and rng.random() < 0.85:
        lower = kinds["lower"][0]
        waist, feet = _middle(lower, WAIST), _middle(lower, HEM)
        wide = float(np.linalg.norm(ends[1] - ends[0])) * rng.uniform(0.65, 1.0)
        scale = wide / max(float(np.linalg.norm(lower.keypoints[5] - lower.keypoints[4])), 1.0)
        length = float(np.clip(scale * np.linalg.norm(feet - waist), 0.4 * torso, 1.9 * torso))
        at = (ends[0] + ends[1]) / 2 - down * torso * rng.uniform(-0.01, 0.2)
        place = _hung(lower, waist, feet, length, turn + float(rng.normal(0, 0.03)), at, rng)
        items.insert(0 if rng.random() < 0.75 else 1, FigureItem(lower, place))  # over the top: tucked in
        ends = [place[:, :2] @ lower.keypoints[k] + place[:, 2] for k in HEM]
        long_legs = 0.12 if lower.label == GARMENT_TYPES.index("trousers") else 0.55
    color = np.array([150, 175, 215]) * rng.uniform(0.3, 1.1) + rng.normal(0, 6, 3)
    skin = tuple(float(v) for v in np.clip(color, 10, 250))
    limbs = _limbs(upper, matrix, ends, down, unit, long_legs, rng)
    hair = tuple(float(v) for v in rng.choice([[20, 20, 25], [30, 50, 80], [90, 150, 190], [140, 140, 140]]))
    head = matrix[:, :2] @ collar + matrix[:, 2] - down * unit * 0.3
    crown = (head - down * 0.06 * unit, head - down * 0.02 * unit, unit * rng.uniform(0.3, 0.45))
    nothing = np.eye(2, 3)
    body = [FigureItem(None, nothing, (crown,), hair)] if rng.random() < 0.9 else []
    return [*body, FigureItem(None, nothing, limbs, skin), *items]


def _limbs(
    upper: Garment, matrix: Affine, ends: list[Point], down: Point, unit: float, legs: float, rng: np.random.Generator
) -> tuple[tuple[Point, Point, float], ...]:
    """Head, neck, arms and legs; ``unit`` is a torso's length, px."""
    left, right = (matrix[:, :2] @ upper.keypoints[k] + matrix[:, 2] for k in COLLAR)
    neck = (left + right) / 2
    limbs = [
        (neck + down * 0.1 * unit, neck - down * 0.2 * unit, 0.18 * unit),
        (neck - down * 0.24 * unit, neck - down * 0.34 * unit, unit * rng.uniform(0.24, 0.32)),
    ]
    bare = upper.label < 0 or not GARMENT_TYPES[upper.label].startswith("long")
    for side, root in zip(SLEEVE, (left, right), strict=True):
        if upper.visible[side]:
            cuff = matrix[:, :2] @ upper.keypoints[side] + matrix[:, 2]
            along = (cuff - root) / max(float(np.linalg.norm(cuff - root)), 1e-6) + 0.8 * down + rng.normal(0, 0.3, 2)
            along /= max(float(np.linalg.norm(along)), 1e-6)
            reach = unit * (rng.uniform(0.4, 0.75) if bare else 0.14)
            limbs.append((cuff - 0.05 * unit * along, cuff + reach * along, unit * rng.uniform(0.09, 0.14)))
    middle = (ends[0] + ends[1]) / 2
    for end in ends:
        foot = middle + (end - middle) * (0.55 if legs > 0.2 else 1.0)
        limbs.append((foot - down * 0.1 * unit, foot + down * legs * 1.6 * unit, unit * rng.uniform(0.12, 0.18)))
    return tuple(limbs)


def _hung(
    garment: Garment, top: Point, bottom: Point, length: float, turn: float, spot: Point, rng: np.random.Generator
) -> Affine:
    """(2, 3) that takes ``top`` to ``spot`` and hangs ``bottom`` ``length`` px below it, ``turn`` radians off."""
    along = bottom - top
    angle = turn - (np.arctan2(along[1], along[0]) - np.pi / 2)
    scale = length / max(float(np.linalg.norm(along)), 1.0)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    linear = np.array([[cos, -sin], [sin, cos]])
    if rng.random() < 0.5:  # mirrored about the garment's own axis
        axis = along / max(float(np.linalg.norm(along)), 1e-6)
        linear = linear @ (2 * np.outer(axis, axis) - np.eye(2))
    return np.hstack([linear, (spot - linear @ top)[:, None]])


def _complete(garment: Garment) -> bool:
    pairs = WAIST if garment.category == "lower" else COLLAR
    return bool(garment.visible[[*pairs, *HEM]].all())


def _middle(garment: Garment, pair: tuple[int, int]) -> Point:
    return np.asarray(garment.keypoints[list(pair)].mean(0), np.float64)
