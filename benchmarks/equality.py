"""Equality before time: how far the landmarks of each way are from those of another, independent one.

Distances are in px of the crop: there a network's answers are as exact as they are, however large the box is in its
frame. The reference is the first of REFERENCES that runs, PyTorch's where it is installed. Of our code only matrices
stand between the frame and its landmarks, from boxes to crops and from cells back to the frame; the tests hold those
against MMPose's own figures. Landmarks whose peak is below SURE in the reference are left out, and counted: a garment
without sleeves has no cuffs, and where they are is noise in every way.

What differs between ways that mean the same: sums in another order (1e-6 of a heatmap), and the crop. OpenCV 5 rounds
bilinear interpolation otherwise than OpenCV 4, on which the published models were trained and whose arithmetic ours
repeats, so that levels of a crop differ by up to four. That moves landmarks by hundredths of a px, and where two peaks
of a heatmap are about equally high, one in a hundred from one to the other, which spoils a mean. So a way with crops
of its own is judged twice: by the median and by how many landmarks stay within 1 px against the others, and by median
and mean against what the model says on the same crops, run and decoded by code of others. rtmlib's crops are half a px
beside everybody's, so only the latter judges it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.records import Label, Row
from edgepose.benchmarks.scenes import Scene
from edgepose.benchmarks.ways import OURS, Explained, OwnCrops, Way, key_of
from edgepose.errors import InputError
from edgepose.result import MIN_SCORE

__all__ = ["LIMITS", "REFERENCES", "SURE", "Agreement", "Limit", "Verdict", "check", "compare", "crop_distances"]

REFERENCES = ("pytorch", "onnxruntime batched", OURS)  # at fp32
CHANGE, SAME_CROPS, AS_RETURNED = "landmark change", "landmark change, same crops", "landmark change, as returned"
SURE = MIN_SCORE  # of a peak: what the library itself draws, and tracks

Key = tuple[str, str]  # name and precision of a way


@dataclass(frozen=True)
class Limit:
    """At which distances landmarks count as equal.

    Attributes:
        median, mean: px of the crop, at most.
        within: per cent of the landmarks that are less than 1 px apart, at least.
    """

    median: float
    mean: float = math.inf
    within: float = 0.0


# A hundredth of a heatmap's cell in the middle, and no outliers that would move the mean: a peak that jumps to another
# place moves by tens of px. INT8 is another network: its mean is held, nothing else.
WITHIN = 90.0  # %: of a way with crops of its own, where single peaks may jump
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


class Verdict(NamedTuple):
    """What :func:`check` found.

    Attributes:
        rows: distances by way and frame, px of the crop.
        unequal: of the ways whose landmarks are others, what to tell.
        failed: of the ways that did not answer, or not in the form of :class:`edgepose.benchmarks.ways.Way`, the same.
    """

    rows: list[Row]
    unequal: dict[Key, str]
    failed: dict[Key, str]


def check(model: BenchModel, ways: Mapping[Key, Way], scenes: Sequence[Scene]) -> Verdict:
    """Run every way on the same scenes and hold its landmarks against the reference's.

    Distances are told for each size of frames, and judged over all of them: a few landmarks decide nothing.

    Args:
        model: what all of them run. Landmarks of random weights are noise: their distances are told, not judged.
        ways: opened, by name and precision.
        scenes: with one box or more each, of any sizes.

    Returns:
        Rows in px with labels way, model, precision, frame (``1920x1080``), statistic ``landmark change`` and
        ``against``, the reference; of a way with crops of its own also ``landmark change, same crops``, of one that
        puts points beside what it meant ``landmark change, as returned``.

    Raises:
        InputError: none of REFERENCES is among the ways, or no landmark is sure.
        Exception: what ours raises.
    """
    found = Verdict([], {}, {})
    answers: dict[Key, _Answers] = {}
    for key, way in ways.items():
        try:
            answers[key] = _Answers(way, scenes, model.spec.num_keypoints)
        except Exception as error:
            if key[0] == OURS:
                raise
            found.failed[key] = f"{model.name}: {key_of(*key)} failed: {type(error).__name__}: {error}"
    name = next((name for name in REFERENCES if (name, "fp32") in answers), None)
    if name is None:
        raise InputError(f"landmarks are held against one of {', '.join(REFERENCES)} at fp32; none of them runs here")
    reference = _Reference(answers[name, "fp32"], scenes, model)
    for key, answer in answers.items():
        labels: dict[str, Label] = {"way": key[0], "model": model.name, "precision": key[1], "against": name}
        statistics = answer.statistics
        if key == (name, "fp32"):
            statistics = {what: pair for what, pair in statistics.items() if pair[1] is not None}
        for what, (points, expected) in statistics.items():
            for frame in dict.fromkeys(reference.frames):
                values = reference.agreement(points, expected, frame).values()
                found.rows.append(Row({**labels, "frame": frame, "statistic": what}, "px", values))
        fault = _fault(answer, reference, LIMITS[key[1]], name)
        if fault and model.trained:
            found.unequal[key] = f"{model.name}: the landmarks of {key_of(*key)} are others than {fault}"
    return found


class _Answers:
    """Of one way, for each scene.

    Attributes:
        statistics: by name the keypoints (N, K, 2) of each scene, frame px, and what they are held against; None: the
            reference's.
        scores: (N, K) of each scene.
        own_crops, explained: whether the way is an OwnCrops, an Explained.
    """

    def __init__(self, way: Way, scenes: Sequence[Scene], channels: int) -> None:
        both = [way(*scene) for scene in scenes]
        keypoints = [np.asarray(points, np.float64) for points, _ in both]
        self.scores = [np.asarray(scores) for _, scores in both]
        for points, peaks, scene in zip(keypoints, self.scores, scenes, strict=True):
            wanted = (len(scene.boxes), channels)
            if points.shape != (*wanted, 2) or peaks.shape != wanted:
                raise InputError(
                    f"a way returns keypoints {(*wanted, 2)} and scores {wanted} of {wanted[0]} boxes, "
                    f"got {points.shape} and {peaks.shape}"
                )
        self.statistics: dict[str, tuple[list[NDArray[np.float64]], list[NDArray[np.float64]] | None]] = {}
        self.own_crops, self.explained = isinstance(way, OwnCrops), isinstance(way, Explained)
        if isinstance(way, Explained):
            self.statistics[AS_RETURNED] = keypoints, None
            keypoints = [way.explained(points, scene.boxes) for points, scene in zip(keypoints, scenes, strict=True)]
        self.statistics[CHANGE] = keypoints, None
        if isinstance(way, OwnCrops):
            self.statistics[SAME_CROPS] = keypoints, [np.asarray(way.meant(*scene), np.float64) for scene in scenes]


def _fault(answer: _Answers, reference: _Reference, limit: Limit, name: str) -> str:
    """From what a way's landmarks are too far, over all scenes; empty: from nothing."""
    checks = {CHANGE: (f"{name}'s", limit)}
    if answer.own_crops:  # a peak that jumps because a level differs by one is no fault of the way
        checks = {SAME_CROPS: ("the model's on the same crops", limit)}
        if not answer.explained:
            checks[CHANGE] = f"{name}'s", Limit(limit.median, within=WITHIN)
    for what, (other, most) in checks.items():
        apart = reference.agreement(*answer.statistics[what])
        if not (apart.median <= most.median and apart.mean <= most.mean and apart.within >= most.within):
            limits = f"limits {most.median:g} and {most.mean:g}" if most.mean < math.inf else f"limit {most.median:g}"
            near = f", {apart.within:.0f} % within 1 px ({most.within:g} % at least)" if most.within else ""
            return f"{other}: median {apart.median:.3g}, mean {apart.mean:.3g} px of the crop ({limits}){near}"
    return ""


class _Reference:
    """What the reference finds, and what it is sure of. Of random weights everything is compared: nothing is judged.

    Attributes:
        frames: the size of each scene's frame, as rows name it.
    """

    def __init__(self, answers: _Answers, scenes: Sequence[Scene], model: BenchModel) -> None:
        self._model, self._boxes = model, [scene.boxes for scene in scenes]
        self.frames = [f"{scene.frame.shape[1]}x{scene.frame.shape[0]}" for scene in scenes]
        self._keypoints, _ = answers.statistics[CHANGE]
        self._scores = answers.scores if model.trained else [np.ones_like(scores) for scores in answers.scores]

    def agreement(
        self,
        found: Sequence[NDArray[np.floating]],
        expected: Sequence[NDArray[np.floating]] | None = None,
        frame: str | None = None,
    ) -> Agreement:
        """Of the keypoints of each scene with others (None: the reference's own), in frames of one size or in all."""
        others = self._keypoints if expected is None else expected
        chosen = [index for index, size in enumerate(self.frames) if frame in (None, size)]
        distances = [crop_distances(found[i], others[i], self._boxes[i], self._model) for i in chosen]
        return compare(np.concatenate(distances), np.concatenate([self._scores[i] for i in chosen]))
