"""Equality before time: how far the landmarks of each way are from those of another, independent one.

Distances are in px of the crop: there a network's answers are as exact as they are, however large the box is in its
frame. The reference is the first of REFERENCES that runs, PyTorch's where it is installed: no code of ours stands
between the frame and its landmarks but the matrices of the crops. Landmarks whose peak is below SURE in the reference
are left out, and counted: a garment without sleeves has no cuffs, and where they are is noise in every way.

What differs between ways that mean the same: sums in another order (1e-6 of a heatmap), and the crop. OpenCV 5 rounds
bilinear interpolation otherwise than OpenCV 4, on which the published models were trained and whose arithmetic ours
repeats, so that levels of a crop differ by up to four. That moves landmarks by hundredths of a px, and where two peaks
of a heatmap are about equally high, one in a hundred from one to the other, which spoils a mean. So a way with crops
of its own is judged twice: by the median against the others, and by median and mean against what the model says on the
same crops, found by code of others. rtmlib's crops are half a px beside everybody's, so only the latter judges it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.records import Label, Row
from edgepose.benchmarks.scenes import Scene
from edgepose.benchmarks.ways import OURS, Explained, OwnCrops, Way, key_of
from edgepose.errors import InputError
from edgepose.result import MIN_SCORE

__all__ = ["LIMITS", "REFERENCES", "SURE", "Agreement", "Limit", "check", "compare", "crop_distances"]

REFERENCES = ("pytorch", "onnxruntime batched", OURS)  # at fp32
SURE = MIN_SCORE  # of a peak: what the library itself draws, and tracks


@dataclass(frozen=True)
class Limit:
    """The largest distances, px of the crop, at which landmarks count as equal."""

    median: float
    mean: float


# A hundredth of a heatmap's cell in the middle, and no outliers that would move the mean: a peak that jumps to another
# place moves by tens of px. INT8 is another network: its mean is held, nothing else.
LIMITS = {"fp32": Limit(0.05, 0.5), "int8": Limit(0.5, 0.5)}


@dataclass(frozen=True)
class Agreement:
    """How far the landmarks of a way are from the reference's.

    Attributes:
        median, mean, p99, worst: distances, px of the crop.
        within: per cent of the landmarks that are less than 1 px apart.
        compared, left_out: how many landmarks; left out is what the reference itself is not sure of.
    """

    median: float
    mean: float
    p99: float
    worst: float
    within: float
    compared: int
    left_out: int

    def values(self) -> dict[str, float]:
        """For a row of a record."""
        return {
            "median": self.median,
            "mean": self.mean,
            "p99": self.p99,
            "worst": self.worst,
            "within 1 px, %": self.within,
            "compared": self.compared,
            "left out": self.left_out,
        }


def crop_distances(
    keypoints: NDArray[np.floating],  # (N, K, 2) frame px
    reference: NDArray[np.floating],  # (N, K, 2) frame px
    boxes: NDArray[np.float32],  # (N, 4) xyxy, frame px
    model: BenchModel,
) -> NDArray[np.float64]:  # (N, K)
    """Distances, px of the crops of these boxes."""
    affines = geometry.crop_affines(boxes, model.spec.input_size, model.spec.codec, model.spec.padding)
    ours, theirs = (geometry.transform_points(points, affines) for points in (keypoints, reference))
    return np.asarray(np.linalg.norm(ours - theirs, axis=-1))


def compare(distances: NDArray[np.float64], scores: NDArray[np.floating]) -> Agreement:
    """Distances of any shape, and the reference's scores of the same shape.

    Raises:
        InputError: no landmark is sure, so that there is nothing to compare.
    """
    sure = np.asarray(scores) >= SURE
    kept = np.asarray(distances)[sure]
    if not kept.size:
        raise InputError(f"no landmark of the reference has a peak of at least {SURE}: nothing to compare")
    median, p99 = np.percentile(kept, (50, 99))
    within = 100 * float((kept < 1).mean())
    return Agreement(
        float(median), float(kept.mean()), float(p99), float(kept.max()), within, kept.size, int((~sure).sum())
    )


def check(
    model: BenchModel, ways: Mapping[tuple[str, str], Way], scenes: Sequence[Scene], frame: str
) -> tuple[list[Row], dict[tuple[str, str], str]]:
    """Run every way on the same scenes and hold its landmarks against the reference's.

    Args:
        model: what all of them run. Landmarks of random weights are noise: their distances are told, not judged.
        ways: opened, by name and precision.
        scenes: with one box or more each.
        frame: their size, as rows name it.

    Returns:
        Rows in px with labels way, model, precision, frame, statistic ``landmark change`` and ``against``, the
        reference; of a way with crops of its own also ``landmark change, same crops``, of one that puts points beside
        what it meant ``landmark change, as returned``. And what to tell of the ways whose landmarks are others.

    Raises:
        InputError: none of REFERENCES is among the ways, or no landmark is sure.
    """
    name = next((name for name in REFERENCES if (name, "fp32") in ways), None)
    if name is None:
        raise InputError(f"landmarks are held against one of {', '.join(REFERENCES)} at fp32; none of them runs here")
    reference = _Reference(ways[name, "fp32"], scenes, model)
    rows: list[Row] = []
    unequal: dict[tuple[str, str], str] = {}
    for (way_name, precision), way in ways.items():
        if (way_name, precision) == (name, "fp32"):
            continue
        labels: dict[str, Label] = {"way": way_name, "model": model.name, "precision": precision, "frame": frame}
        labels |= {"statistic": "landmark change", "against": name}
        found, fault = _judge(way, reference, scenes, LIMITS[precision], name)
        rows += [Row({**labels, "statistic": key}, "px", agreement.values()) for key, agreement in found.items()]
        if fault and model.trained:
            key = key_of(way_name, precision)
            unequal[way_name, precision] = f"{model.name}, {frame}: the landmarks of {key} are others than {fault}"
    return rows, unequal


def _judge(
    way: Way, reference: _Reference, scenes: Sequence[Scene], limit: Limit, name: str
) -> tuple[dict[str, Agreement], str]:
    """How far a way's landmarks are apart, by statistic; and from what they are too far, empty: from nothing."""
    keypoints = [np.asarray(way(*scene)[0], np.float64) for scene in scenes]
    told = {}
    if isinstance(way, Explained):
        told["landmark change, as returned"] = reference.agreement(keypoints)
        keypoints = [way.explained(points, scene.boxes) for points, scene in zip(keypoints, scenes, strict=True)]
    told["landmark change"] = whole = reference.agreement(keypoints)
    checks = [(f"{name}'s", whole, limit)]
    if isinstance(way, OwnCrops):
        meant = [np.asarray(way.meant(*scene), np.float64) for scene in scenes]
        told["landmark change, same crops"] = same = reference.agreement(keypoints, meant)
        checks = [("the model's on the same crops", same, limit)]
        if not isinstance(way, Explained):
            checks.append((f"{name}'s", whole, Limit(limit.median, math.inf)))
    for other, apart, most in checks:
        if not (apart.median <= most.median and apart.mean <= most.mean):
            limits = f"limits {most.median:g} and {most.mean:g}"
            return told, f"{other}: median {apart.median:.3g}, mean {apart.mean:.3g} px of the crop ({limits})"
    return told, ""


class _Reference:
    """What the reference finds, and what it is sure of. Of random weights everything is compared: nothing is judged."""

    def __init__(self, way: Way, scenes: Sequence[Scene], model: BenchModel) -> None:
        self._model, self._boxes = model, np.concatenate([scene.boxes for scene in scenes])
        answers = [way(*scene) for scene in scenes]
        self._keypoints = [points for points, _ in answers]
        scores = np.concatenate([scores for _, scores in answers])
        self._scores = scores if model.trained else np.ones_like(scores)

    def agreement(
        self, found: Sequence[NDArray[np.floating]], expected: Sequence[NDArray[np.floating]] | None = None
    ) -> Agreement:
        """Of the keypoints of each scene with others; None: the reference's own."""
        others = np.concatenate(self._keypoints if expected is None else expected)
        return compare(crop_distances(np.concatenate(found), others, self._boxes, self._model), self._scores)
