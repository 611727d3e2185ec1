"""PCK, AUC and EPE as MMPose 1.3.2 computes them for the fashion data sets. All coordinates are frame px.

Distances are rounded to float32 before they are compared, as MMPose does, so that counts agree exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import InputError

__all__ = ["auc", "epe", "pck", "pck_per_keypoint"]

NEVER = np.float32(1e6)  # MMPose divides by this where a normaliser is negative: such a keypoint counts as found


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
    return _macro(pck_per_keypoint(predicted, truth, visible, boxes, threshold))


def pck_per_keypoint(
    predicted: ArrayLike, truth: ArrayLike, visible: ArrayLike, boxes: ArrayLike, threshold: float = 0.2
) -> NDArray[np.float64]:
    """The fractions (K,) whose mean is :func:`pck`, with NaN for keypoints that are never visible."""
    array = np.asarray(boxes)
    error, mask = _errors(predicted, truth, visible)
    if array.shape != (len(mask), 4):
        raise InputError(f"boxes must have the shape ({len(mask)}, 4), xyxy, got {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    side = (array[:, 2:] - array[:, :2]).max(axis=1)
    distances = _distances(error, np.where(side < 0, side.dtype.type(NEVER), side))
    return _fractions(distances, mask & (side != 0)[:, None], threshold)


def auc(
    predicted: ArrayLike,  # (N, K, 2) frame px
    truth: ArrayLike,  # (N, K, 2) frame px
    visible: ArrayLike,  # (N, K)
    normalizer: float = 30.0,  # px
    steps: int = 20,
) -> float:
    """Area under the PCK curve: the mean of PCK at 0, 1/steps, ..., (steps - 1)/steps times ``normalizer`` px.

    The comparison is strict, so the threshold 0 always scores 0 and a perfect prediction gets (steps - 1) / steps.
    Raises InputError for shapes that do not fit, or a normalizer or steps not above 0.
    """
    if not (normalizer > 0 and steps >= 1):
        raise InputError(f"normalizer and steps must be above 0, got {normalizer} and {steps}")
    error, mask = _errors(predicted, truth, visible)
    distances = _distances(error, np.full(len(mask), normalizer, np.float64))
    return float(np.mean([_macro(_fractions(distances, mask, step / steps)) for step in range(steps)]))


def epe(predicted: ArrayLike, truth: ArrayLike, visible: ArrayLike) -> float:
    """End-point error: the mean distance in px over all visible keypoints of all samples; 0 if there are none.

    A NaN among them makes it NaN. Raises InputError for shapes that do not fit.
    """
    error, mask = _errors(predicted, truth, visible)
    distances = _distances(error, np.ones(len(mask), np.float32))[mask]
    return float(distances.mean(dtype=np.float64)) if len(distances) else 0.0


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


def _distances(error: NDArray[np.floating], side: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, K) float32: |error| / side (N,)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.linalg.norm(error / side[:, None, None], axis=-1).astype(np.float32)


def _fractions(distances: NDArray[np.float32], mask: NDArray[np.bool_], threshold: float) -> NDArray[np.float64]:
    """(K,) the fraction of the visible distances (N, K) below the threshold, NaN where none is visible."""
    counts = mask.sum(axis=0)
    hits = (mask & (distances < np.float32(threshold))).sum(axis=0)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def _macro(fractions: NDArray[np.float64]) -> float:
    valid = fractions[~np.isnan(fractions)]
    return float(valid.mean()) if len(valid) else 0.0
