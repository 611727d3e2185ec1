"""Figures of detectors: average precision at an overlap of 0.5, by class and regardless of it, precision and recall.

As COCO's evaluation at one threshold (Lin et al. 2014): detections of all images in the order of their scores, each
taking the still free object of its class that it overlaps most, if by enough. The area under the precision-recall
curve is exact ("all-point", as Pascal VOC has it since 2010), not read off at 101 recalls: the two differ by less than
0.01 except where objects are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError

__all__ = ["DetectionFigures", "ImageResult", "average_precision", "box_overlaps", "evaluate_detections"]

Array = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]


@dataclass(frozen=True)
class ImageResult:
    """What was found in an image, and what is in it. Boxes are x1, y1, x2, y2 px.

    Attributes:
        boxes, scores, labels: (N, 4), (N,), (N,) of the detections.
        true_boxes, true_labels: (G, 4), (G,) of the objects; label -1: its class is not known, any will do.
    """

    boxes: Array
    scores: Array
    labels: Integers
    true_boxes: Array
    true_labels: Integers


@dataclass(frozen=True)
class DetectionFigures:
    """Attributes:
    mean_ap: over the classes that occur; NaN where no object's class is known.
    ap: class number -> AP of each class that occurs.
    agnostic_ap: AP where every detection may answer for every object.
    precision, recall: of the detections from a score on, whatever the class; precision is NaN where there are none.
    type_accuracy: of the objects whose class is known and that those detections found, how many got their class.
    objects: class number -> how many occur.
    all_objects: those of unknown class too.
    images: evaluated.
    """

    mean_ap: float
    ap: dict[int, float]
    agnostic_ap: float
    precision: float
    recall: float
    type_accuracy: float
    objects: dict[int, int]
    all_objects: int
    images: int


def evaluate_detections(
    results: Sequence[ImageResult], *, overlap: float = 0.5, score: float = 0.3
) -> DetectionFigures:
    """All figures over some images.

    Args:
        results: of each image.
        overlap: IoU from which a detection answers for an object.
        score: from which precision, recall and type_accuracy count a detection; AP counts all.

    Raises:
        InputError: there is no object, or overlap is not in (0, 1].
    """
    if not 0 < overlap <= 1:
        raise InputError(f"overlap must be above 0 and at most 1, got {overlap!r}")
    total = sum(len(result.true_labels) for result in results)
    if not total:
        raise InputError("there is no object in any image: nothing to evaluate on")
    known = np.concatenate([result.true_labels for result in results])
    classes = sorted({int(label) for label in known if label >= 0})
    ap = {}
    for number in classes:
        parts = [_of_class(result, number) for result in results]
        ap[number] = _ap(parts, overlap)
    sure = [_from_score(result, score) for result in results]
    agreed, compared = _type_matches(sure, overlap)
    matches = np.concatenate([match(r.boxes, r.scores, r.true_boxes, overlap) for r in sure])
    found = int((matches >= 0).sum())
    return DetectionFigures(
        mean_ap=float(np.mean(list(ap.values()))) if ap else float("nan"),
        ap=ap,
        agnostic_ap=_ap(results, overlap),
        precision=found / len(matches) if len(matches) else float("nan"),
        recall=found / total,
        type_accuracy=agreed / compared if compared else float("nan"),
        objects={number: int((known == number).sum()) for number in classes},
        all_objects=total,
        images=len(results),
    )


def average_precision(scores: Array, correct: npt.NDArray[np.bool_], objects: int) -> float:
    """Area under the precision-recall curve, precision made non-increasing first.

    Args:
        scores: (N,) of all detections; equal ones keep their order.
        correct: (N,) whether each answers for an object.
        objects: how many there are, at least 1.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(correct[order])
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((precision * correct[order]).sum() / objects)


def match(boxes: Array, scores: Array, true_boxes: Array, overlap: float) -> npt.NDArray[np.int64]:
    """(N,) the object that each detection answers for, or -1: best score first, the free object it overlaps most."""
    taken = np.full(len(boxes), -1, np.int64)
    if not len(true_boxes):
        return taken
    overlaps = box_overlaps(boxes, true_boxes)
    for n in np.argsort(-scores, kind="stable"):
        best = int(overlaps[n].argmax())
        if overlaps[n, best] >= overlap:
            taken[n] = best
            overlaps[:, best] = -1
    return taken


def box_overlaps(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """IoU of boxes (N, 4) and (G, 4): (N, G)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    whole = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None] - shared
    return np.asarray(shared / np.maximum(whole, 1e-12))


def _ap(results: Sequence[ImageResult], overlap: float) -> float:
    scores = np.concatenate([result.scores for result in results])
    correct = np.concatenate([match(r.boxes, r.scores, r.true_boxes, overlap) >= 0 for r in results])
    return average_precision(scores, correct, sum(len(result.true_boxes) for result in results))


def _from_score(result: ImageResult, score: float) -> ImageResult:
    kept = result.scores >= score
    return replace(result, boxes=result.boxes[kept], scores=result.scores[kept], labels=result.labels[kept])


def _of_class(result: ImageResult, number: int) -> ImageResult:
    """Only the detections and objects of a class; what answers for an object of unknown class is left out of it."""
    chosen, objects = result.labels == number, result.true_labels == number
    unknown = result.true_boxes[result.true_labels < 0]
    if len(unknown) and len(result.boxes):
        chosen &= box_overlaps(result.boxes, unknown).max(1) < 0.5
    return ImageResult(
        result.boxes[chosen], result.scores[chosen], result.labels[chosen],
        result.true_boxes[objects], result.true_labels[objects],
    )  # fmt: skip


def _type_matches(results: Sequence[ImageResult], overlap: float) -> tuple[int, int]:
    agreed = compared = 0
    for result in results:
        taken = match(result.boxes, result.scores, result.true_boxes, overlap)
        for label, found in zip(result.labels, taken, strict=True):
            if found >= 0 and result.true_labels[found] >= 0:
                compared += 1
                agreed += int(label == result.true_labels[found])
    return agreed, compared
