"""Which box of this frame is which object of the last one: overlap, landmarks, position, and the best assignment."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "assign",
    "box_size",
    "centres",
    "duplicates",
    "landmark_similarity",
    "load_solver",
    "overlaps",
    "position_gain",
]

Floats = NDArray[np.float64]

SIMILARITY_SPREAD = 0.2  # sizes: landmarks this far apart count 1/e
SHARED = 3  # landmarks that two objects must both show before their distance says something
DUPLICATE_DISTANCE = 0.06  # sizes: nearer landmarks on average, and two boxes show one object
DUPLICATE_CONTACT = 0.2  # IoU of two boxes below which they show two objects, whatever the landmarks say
DUPLICATE_OVERLAP = 0.85  # IoU of two boxes without landmarks to compare, above which they show one object
SIZE_RATIO = 2.0  # an object found again by position has at most this many times its old size, or one over it


def box_size(boxes: Floats) -> Any:  # (..., 4) xyxy -> (...) px
    """The size of an object, to measure distances by: the geometric mean of its box's sides, at least 1 px."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return np.maximum(np.sqrt(sides[..., 0] * sides[..., 1]), 1.0)


def centres(boxes: Floats) -> Floats:  # (..., 4) xyxy -> (..., 2)
    """The middle of each box."""
    middle: Floats = (boxes[..., :2] + boxes[..., 2:]) / 2
    return middle


def overlaps(first: Floats, second: Floats) -> Floats:  # (A, 4), (B, 4) xyxy -> (A, B)
    """Intersection over union of each pair of boxes; 0 where both are empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.maximum(high - low, 0).prod(axis=-1)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    iou: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return iou


def assign(gain: Floats) -> list[tuple[int, int]]:  # (A, B), 0 or less: the pair is not allowed
    """The pairs with the largest sum of gains, each row and column at most once.

    A pair that is not allowed gains nothing, so one good match is never given up for two poor ones.
    """
    if not (gain > 0).any():
        return []
    rows, columns = load_solver()(np.maximum(gain, 0), maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if gain[row, column] > 0]


def load_solver() -> Any:
    """SciPy's ``linear_sum_assignment``. It takes 0.2 s to load: not at import, but before the first frame."""
    return importlib.import_module("scipy.optimize").linear_sum_assignment  # scipy has no type hints


def landmark_similarity(
    points: tuple[Floats, Floats],  # (A, K, 2) and (B, K, 2) frame px
    visible: tuple[NDArray[np.bool_], NDArray[np.bool_]],  # (A, K) and (B, K)
    size: Floats,  # (A,) px
) -> Floats:  # (A, B)
    """1 where the landmarks coincide, falling to 0 with their distance; NaN where too few are shared to tell."""
    shared = visible[0][:, None] & visible[1][None]
    square = ((points[0][:, None] - points[1][None]) ** 2).sum(axis=-1)
    near = np.exp(-square / (SIMILARITY_SPREAD * size[:, None, None]) ** 2)
    count = shared.sum(axis=-1)
    total = np.where(shared, near, 0).sum(axis=-1)
    similarity: Floats = np.where(count >= SHARED, total / np.maximum(count, 1), np.nan)
    return similarity


def position_gain(lost: Floats, velocity: Floats, age: Floats, boxes: Floats, reach: float) -> Floats:
    """How well boxes lie where lost objects were, or would be by now.

    Args:
        lost: (A, 4) xyxy, where each object was seen last, frame px.
        velocity: (A, 2) px/s.
        age: (A,) s since then.
        boxes: (B, 4) xyxy, frame px.
        reach: the largest distance between the centres, in sizes of the lost object.

    Returns:
        (A, B): 1 at the place itself, 0 at ``reach`` or for another size.
    """
    before, now = box_size(lost)[:, None], box_size(boxes)[None]
    there = centres(boxes)[None]
    last = centres(lost)[:, None]
    later = last + (velocity * age[:, None])[:, None]
    distance = np.minimum(np.linalg.norm(there - last, axis=-1), np.linalg.norm(there - later, axis=-1)) / before
    alike = np.maximum(now / before, before / now) <= SIZE_RATIO
    gain: Floats = np.where(alike, np.maximum(1 - distance / reach, 0), 0.0)
    return gain


def duplicates(
    boxes: Floats,  # (N, 4) xyxy, frame px
    points: Floats,  # (N, K, 2) frame px
    visible: NDArray[np.bool_],  # (N, K)
    categories: list[str],
) -> NDArray[np.bool_]:  # (N, N)
    """Which boxes show the same object: their landmarks lie on one another.

    Where too few landmarks are shared to tell, boxes of one category that nearly coincide. A jacket over a shirt stays
    two objects: where categories have landmarks of their own, none are shared.
    """
    overlap = overlaps(boxes, boxes) * ~np.eye(len(boxes), dtype=bool)
    if not (overlap > DUPLICATE_CONTACT).any():
        return np.zeros(overlap.shape, np.bool_)
    size = box_size(boxes)
    shared = visible[:, None] & visible[None]
    number = shared.sum(axis=-1)
    length = np.linalg.norm(points[:, None] - points[None], axis=-1)
    distance = np.where(shared, length, 0).sum(axis=-1) / np.maximum(number, 1)
    seen = visible.sum(axis=-1)
    enough = number >= np.maximum(SHARED, np.minimum(seen[:, None], seen[None]) / 2)
    names = np.array(categories, object)
    nearly = (overlap > DUPLICATE_OVERLAP) & (names[:, None] == names[None])
    same = np.where(enough, distance < DUPLICATE_DISTANCE * np.minimum(size[:, None], size[None]), nearly)
    return np.asarray(same & (overlap > DUPLICATE_CONTACT), dtype=np.bool_)
