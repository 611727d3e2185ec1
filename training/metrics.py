"""PCK, AUC and EPE as MMPose 1.3.2 computes them for the fashion data sets. All coordinates are frame px.

One step makes distances out of landmarks (:func:`measure`), the next names what is averaged over them
(:func:`statistics`), so that a figure, its value for one landmark or one category, and its confidence interval
(:mod:`edgepose.training.bootstrap`) are the same sums over other rows. Distances are rounded to float32 before they are
compared, as MMPose does, so that counts agree exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import InputError

__all__ = [
    "Distances",
    "Statistic",
    "auc",
    "epe",
    "figure",
    "figure_by_keypoint",
    "measure",
    "pck",
    "pck_per_keypoint",
    "statistics",
]

NEVER = np.float32(1e6)  # MMPose divides by this where a normaliser is negative: such a keypoint counts as found
AUC_PIXELS, AUC_STEPS = 30.0, 20


@dataclass(frozen=True, eq=False)
class Distances:
    """How far N objects' predicted landmarks are from their labels; all arrays (N, K).

    Attributes:
        relative: float32, distance over the longer side of the object's true box.
        pixels: float32, distance in frame px.
        passed: int32, how many of AUC's 20 thresholds lie above the distance.
        visible: bool, the landmark is labelled; the other arrays say nothing where it is not.
        boxed: bool, visible, and the box has a longer side: what PCK counts.
    """

    relative: NDArray[np.float32]
    pixels: NDArray[np.float32]
    passed: NDArray[np.int32]
    visible: NDArray[np.bool_]
    boxed: NDArray[np.bool_]

    def rows(self, chosen: ArrayLike) -> Distances:
        """The distances of some objects, by mask or by number."""
        return Distances(*(getattr(self, field.name)[chosen] for field in fields(self)))


class Statistic(NamedTuple):
    """A figure before it is averaged.

    Attributes:
        name: as a ModelSpec's metrics call it.
        values: (N, K) what is averaged.
        counts: (N, K) bool, over which landmarks.
        macro: average over the objects of each landmark first, then over the landmarks; else over all at once.
    """

    name: str
    values: NDArray[np.generic]
    counts: NDArray[np.bool_]
    macro: bool


def measure(
    predicted: ArrayLike,  # (N, K, 2) frame px
    truth: ArrayLike,  # (N, K, 2) frame px
    visible: ArrayLike,  # (N, K) anything but 0 counts
    boxes: ArrayLike,  # (N, 4) xyxy, frame px, ground truth without padding
) -> Distances:
    """Distances of N objects' landmarks. Raises InputError for shapes that do not fit."""
    error, seen = _errors(predicted, truth, visible)
    side = _longer_sides(boxes, len(seen))
    return Distances(
        relative=_distances(error, np.where(side < 0, side.dtype.type(NEVER), side)),
        pixels=_distances(error, np.ones(len(seen), np.float32)),
        passed=_passed(_distances(error, np.full(len(seen), AUC_PIXELS)), AUC_STEPS),
        visible=seen,
        boxed=seen & (side != 0)[:, None],
    )


def statistics(distances: Distances, thresholds: Sequence[float] = (0.2, 0.05)) -> list[Statistic]:
    """PCK at each threshold, AUC, EPE (px) and the mean error over the longer side, in this order."""
    d = distances
    return [
        *(Statistic(f"PCK@{t:g}", d.relative < np.float32(t), d.boxed, macro=True) for t in thresholds),
        Statistic("AUC", d.passed / AUC_STEPS, d.visible, macro=True),
        Statistic("EPE", d.pixels, d.visible, macro=False),
        Statistic("mean_error/longer_side", d.relative, d.boxed, macro=False),
    ]


def figure(statistic: Statistic) -> float:
    """The statistic over all objects and landmarks; 0 if nothing counts.

    float32 values that are averaged all at once are added in float32, landmark by landmark, as MMPose's EPE is.
    """
    if statistic.macro:
        fractions = figure_by_keypoint(statistic)
        valid = fractions[~np.isnan(fractions)]
        return float(valid.mean()) if len(valid) else 0.0
    values = statistic.values.T[statistic.counts.T]
    return float(values.sum()) / len(values) if len(values) else 0.0


def figure_by_keypoint(statistic: Statistic) -> NDArray[np.float64]:
    """(K,) the statistic of each landmark, NaN where it never counts (or where a value is NaN)."""
    total = np.where(statistic.counts, statistic.values, 0).sum(axis=0, dtype=np.float64)
    counts = statistic.counts.sum(axis=0)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def pck(
    predicted: ArrayLike,  # (N, K, 2) frame px
    truth: ArrayLike,  # (N, K, 2) frame px
    visible: ArrayLike,  # (N, K) anything but 0 counts
    boxes: ArrayLike,  # (N, 4) xyxy, frame px, ground truth without padding
    threshold: float = 0.2,
) -> float:
    """Percentage of correct keypoints, as a fraction 0 to 1.

    A visible keypoint is correct if its error is below (not at) ``threshold`` times the longer side of its box.
    The result is the mean over keypoints of each one's fraction, so a rare keypoint weighs as much as a frequent one;
    keypoints that are never visible are left out. NaN counts as a miss, samples whose box has no longer side (0) are
    left out, and the result is 0 if nothing is visible. Raises InputError for shapes that do not fit.
    """
    return figure(statistics(measure(predicted, truth, visible, boxes), [threshold])[0])


def pck_per_keypoint(
    predicted: ArrayLike, truth: ArrayLike, visible: ArrayLike, boxes: ArrayLike, threshold: float = 0.2
) -> NDArray[np.float64]:
    """The fractions (K,) whose mean is :func:`pck`, with NaN for keypoints that are never visible."""
    return figure_by_keypoint(statistics(measure(predicted, truth, visible, boxes), [threshold])[0])


def auc(
    predicted: ArrayLike,  # (N, K, 2) frame px
    truth: ArrayLike,  # (N, K, 2) frame px
    visible: ArrayLike,  # (N, K)
    normalizer: float = AUC_PIXELS,  # px
    steps: int = AUC_STEPS,
) -> float:
    """Area under the PCK curve: the mean of PCK at 0, 1/steps, ..., (steps - 1)/steps times ``normalizer`` px.

    The comparison is strict, so the threshold 0 always scores 0 and a perfect prediction gets (steps - 1) / steps.
    Raises InputError for shapes that do not fit, or a normalizer or steps not above 0.
    """
    if not (normalizer > 0 and steps >= 1):
        raise InputError(f"normalizer and steps must be above 0, got {normalizer} and {steps}")
    error, seen = _errors(predicted, truth, visible)
    passed = _passed(_distances(error, np.full(len(seen), normalizer, np.float64)), steps)
    return figure(Statistic("AUC", passed / steps, seen, macro=True))


def epe(predicted: ArrayLike, truth: ArrayLike, visible: ArrayLike) -> float:
    """End-point error: the mean distance in px over all visible keypoints of all samples; 0 if there are none.

    A NaN among them makes it NaN. Raises InputError for shapes that do not fit.
    """
    error, seen = _errors(predicted, truth, visible)
    return figure(Statistic("EPE", _distances(error, np.ones(len(seen), np.float32)), seen, macro=False))


def _errors(
    predicted: ArrayLike, truth: ArrayLike, visible: ArrayLike
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """predicted - truth (N, K, 2) in the arguments' own precision, and the mask (N, K) of what counts."""
    found, true = (a if a.dtype.kind == "f" else a.astype(np.float64) for a in map(np.asarray, (predicted, truth)))
    seen = np.asarray(visible)
    if found.ndim != 3 or found.shape[2] != 2 or true.shape != found.shape or seen.shape != found.shape[:2]:
        raise InputError(
            "expected predicted (N, K, 2), truth (N, K, 2) and visible (N, K), "
            f"got {found.shape}, {true.shape} and {seen.shape}"
        )
    error = found - true
    return (error if error.dtype.kind == "f" else error.astype(np.float64)), seen.astype(bool)


def _longer_sides(boxes: ArrayLike, count: int) -> NDArray[np.floating]:
    """(N,) the longer side of each box, in its own precision."""
    array = np.asarray(boxes)
    if array.shape != (count, 4):
        raise InputError(f"boxes must have the shape ({count}, 4), xyxy, got {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    return (array[:, 2:] - array[:, :2]).max(axis=1)


def _distances(error: NDArray[np.floating], side: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, K) float32: |error| / side (N,)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.linalg.norm(error / side[:, None, None], axis=-1).astype(np.float32)


def _passed(distances: NDArray[np.float32], steps: int) -> NDArray[np.int32]:
    """(N, K) how many of the thresholds 0, 1/steps, … are above a distance; none for NaN."""
    passed = np.zeros(distances.shape, np.int32)
    for step in range(steps):
        passed += distances < np.float32(step / steps)
    return passed
