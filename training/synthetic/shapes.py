"""What a garment template is made of: pieces of cloth, seams, and the curves that bound them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CATEGORY_OF",
    "GARMENT_TYPES",
    "Array",
    "Item",
    "Line",
    "Part",
    "Side",
    "Template",
    "arc",
    "at",
    "between",
    "chance",
    "join",
    "mirror",
    "mirrored",
    "neckline",
    "points",
    "polygons",
    "ribbon",
    "spline",
]

Array = NDArray[np.float64]

CATEGORY_OF: dict[str, Literal["upper", "lower", "full"]] = {
    "short_sleeved_shirt": "upper",
    "long_sleeved_shirt": "upper",
    "short_sleeved_outwear": "upper",
    "long_sleeved_outwear": "upper",
    "vest": "upper",
    "sling": "upper",
    "shorts": "lower",
    "trousers": "lower",
    "skirt": "lower",
    "short_sleeved_dress": "full",
    "long_sleeved_dress": "full",
    "vest_dress": "full",
    "sling_dress": "full",
}
GARMENT_TYPES = tuple(CATEGORY_OF)


@dataclass(frozen=True)
class Part:
    """A piece of cloth. ``role``: cloth, inner (the lining seen through an opening) or trim (ribs, collars, belts)."""

    polygon: Array  # (N, 2) garment units
    role: str = "cloth"
    angle: float = 0.0  # turn of the cloth's grain, radians
    shade: float = 1.0  # brightness factor
    shadow: float = 0.0  # strength of the shadow on what lies below, 0..1


@dataclass(frozen=True)
class Line:
    """A seam, stitch, zip or row of buttons (``dots``). ``shade`` < 1 is darker, > 1 lighter than the cloth."""

    points: Array  # (N, 2) garment units
    width: float = 0.004  # garment units; the dots' diameter
    shade: float = 0.7
    dots: bool = False


Item = Part | Line


@dataclass(frozen=True)
class Template:
    """One garment, ready to be warped and drawn."""

    garment_type: str
    items: tuple[Part | Line, ...]  # in drawing order
    landmarks: Array  # (8, 2) garment units, zero where absent
    visible: Array  # (8,) 1 or 0
    chest: tuple[float, float, float]  # x, y and half-width of the area that may carry a print
    hangs_from: Array  # (2, 2) the two ends of a hanger's bar

    @property
    def category(self) -> Literal["upper", "lower", "full"]:
        return CATEGORY_OF[self.garment_type]


@dataclass(frozen=True)
class Side:
    """One half of an upper garment, drawn on the right; the left is mirrored."""

    neck: Array
    shoulder: Array
    armpit: Array
    waist: Array
    hem: Array
    flank: Array  # armpit -> hem


def points(*rows: ArrayLike) -> Array:
    return np.array(rows, float).reshape(-1, 2)


def at(x: float, y: float) -> Array:
    """One point, (2,)."""
    return np.array([x, y], float)


def arc(start: ArrayLike, end: ArrayLike, bulge: float = 0.0, count: int = 10) -> Array:
    """A parabola from start to end; ``bulge`` > 0 swells to the outside of an outline that runs clockwise."""
    p, q = np.asarray(start, float), np.asarray(end, float)
    t = np.linspace(0.0, 1.0, count)[:, None]
    normal = np.array([q[1] - p[1], p[0] - q[0]])
    return p + t * (q - p) + 4 * t * (1 - t) * bulge * normal


def spline(knots: Array, per_span: int = 6) -> Array:
    """Catmull-Rom through every knot."""
    k = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.linspace(0.0, 1.0, per_span, endpoint=False)[None, :, None]
    a, b, c, d = (k[i : len(k) - 3 + i, None, :] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([curve.reshape(-1, 2), knots[-1:]])


def join(*curves: Array) -> Array:
    return np.concatenate(curves)


def mirror(curve: Array, side: int) -> Array:
    return curve * (side, 1.0)


def between(p: ArrayLike, q: ArrayLike, t: float) -> Array:
    return np.asarray(p, float) * (1 - t) + np.asarray(q, float) * t


def neckline(left: Array, right: Array, dip: float, power: float, count: int = 19) -> Array:
    """From the left to the right neck point; power 1 is a V, 2 round, 4 square."""
    t = np.sin(np.linspace(-np.pi / 2, np.pi / 2, count))
    return (
        between(left, right, 0.5)
        + t[:, None] * (right - left) / 2
        + at(0, 1) * (dip * (1 - np.abs(t) ** power))[:, None]
    )


def mirrored(item: Item, side: int) -> Item:
    """The item on the other half of the garment for ``side`` -1, unchanged for 1."""
    if isinstance(item, Line):
        return Line(mirror(item.points, side), item.width, item.shade, item.dots)
    return Part(mirror(item.polygon, side), item.role, item.angle * side, item.shade, item.shadow)


def ribbon(start: Array, end: Array, width: float) -> Array:
    """A band whose upper end is rounded over ``start``."""
    along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-6)
    across = np.array([-along[1], along[0]]) * width / 2
    return join(points(end - across), arc(start - across, start + across, -0.1, 5), points(end + across))


def polygons(template: Template) -> Sequence[Array]:
    """The outlines of every part, for fitting the garment into a picture."""
    return [item.polygon for item in template.items if isinstance(item, Part)]


def chance(rng: np.random.Generator, p: float) -> bool:
    return bool(rng.random() < p)
