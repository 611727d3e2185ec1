"""Average precision, matching and recall against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.training.detection.metrics import (
    ImageResult,
    average_precision,
    box_overlaps,
    evaluate_detections,
    match,
)

A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)


def image(found: list[tuple[tuple[float, ...], float, int]], truth: list[tuple[tuple[float, ...], int]]) -> ImageResult:
    return ImageResult(
        np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in found], np.float32),
        np.array([label for _, _, label in found], np.int64),
        np.array([box for box, _ in truth], np.float32).reshape(-1, 4),
        np.array([label for _, label in truth], np.int64),
    )


def test_overlaps_by_hand() -> None:
    half = (0.0, 0.0, 10.0, 5.0)  # half of A: 50 / 100
    moved = (5.0, 0.0, 15.0, 10.0)  # 50 shared, 150 in all
    found = box_overlaps(np.array([half, moved, B]), np.array([A]))
    assert found[:, 0] == pytest.approx([0.5, 1 / 3, 0.0])


def test_average_precision_by_hand() -> None:
    # Right, wrong, right, wrong; three objects. Precision 1, 1/2, 2/3, 1/2; made non-increasing 1, 2/3, 2/3, 1/2.
    # Each right one adds a third of recall: (1 + 2/3) / 3.
    scores, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, correct, 3) == pytest.approx(5 / 9)
    order = np.array([2, 0, 3, 1])
    assert average_precision(scores[order], correct[order], 3) == pytest.approx(5 / 9)  # the order of input is nothing
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0


def test_an_object_is_found_once_by_the_best_score() -> None:
    boxes = np.array([A, A, B])
    assert match(boxes, np.array([0.5, 0.9, 0.3]), np.array([A, B]), 0.5).tolist() == [-1, 0, 1]


def test_a_detection_takes_the_object_that_it_overlaps_most() -> None:
    near = (1.0, 0.0, 11.0, 10.0)
    assert match(np.array([A]), np.array([0.9]), np.array([near, A]), 0.5).tolist() == [1]
    # A is taken; the second detection has to be content with the other one, which it overlaps by 9 / 11
    assert match(np.array([A, A]), np.array([0.9, 0.8]), np.array([near, A]), 0.5).tolist() == [1, 0]


def test_an_overlap_of_exactly_the_threshold_counts() -> None:
    half = np.array([(0.0, 0.0, 10.0, 5.0)])
    assert match(half, np.ones(1), np.array([A]), 0.5).tolist() == [0]
    assert match(half, np.ones(1), np.array([A]), 0.51).tolist() == [-1]


def test_all_figures_of_two_images_by_hand() -> None:
    # Image 1: A is a 0 and found as 0; B is a 1 and found as 0. Image 2: A is a 1 and found as 1; a ghost of 0.
    results = [
        image([(A, 0.9, 0), (B, 0.8, 0)], [(A, 0), (B, 1)]),
        image([(A, 0.6, 1), (B, 0.7, 0)], [(A, 1)]),
    ]
    figures = evaluate_detections(results)
    assert figures.ap[0] == pytest.approx(1.0)  # the right one comes first of 0.9, 0.8, 0.7
    assert figures.ap[1] == pytest.approx(0.5)  # one of two, at precision 1
    assert figures.mean_ap == pytest.approx(0.75)
    # Without classes: 0.9 right, 0.8 right, 0.7 wrong, 0.6 right: precision 1, 1, -, 3/4, each a third of recall
    assert figures.agnostic_ap == pytest.approx((1 + 1 + 0.75) / 3)
    assert (figures.precision, figures.recall) == (pytest.approx(3 / 4), pytest.approx(1.0))
    assert figures.type_accuracy == pytest.approx(2 / 3)
    assert (figures.objects, figures.all_objects, figures.images) == ({0: 1, 1: 2}, 3, 2)


def test_precision_and_recall_count_from_a_score_on() -> None:
    results = [image([(A, 0.9, 0), (B, 0.4, 1)], [(A, 0), (B, 0)]), image([(A, 0.5, 0)], [])]
    figures = evaluate_detections(results, score=0.45)
    assert (figures.precision, figures.recall, figures.type_accuracy) == (0.5, 0.5, 1.0)
    lower = evaluate_detections(results, score=0.4)
    assert (lower.precision, lower.recall, lower.type_accuracy) == (pytest.approx(2 / 3), 1.0, 0.5)
    assert lower.agnostic_ap == figures.agnostic_ap  # which counts all
    assert math.isnan(evaluate_detections(results, score=0.95).precision)


def test_an_object_of_unknown_class_counts_without_classes_only() -> None:
    figures = evaluate_detections([image([(A, 0.9, 0), (B, 0.8, 0)], [(A, -1), (B, 0)])])
    assert figures.ap == {0: pytest.approx(1.0)}  # the detection on A is no false one of class 0: nobody knows
    assert figures.agnostic_ap == pytest.approx(1.0)
    assert figures.objects == {0: 1}
    assert figures.all_objects == 2
    alone = evaluate_detections([image([(A, 0.9, 0)], [(A, -1)])])
    assert math.isnan(alone.mean_ap)
    assert math.isnan(alone.type_accuracy)
    assert alone.agnostic_ap == pytest.approx(1.0)


def test_an_image_without_objects_makes_its_detections_false() -> None:
    results = [image([(A, 0.9, 0)], []), image([(A, 0.8, 0)], [(A, 0)])]
    assert evaluate_detections(results).mean_ap == pytest.approx(0.5)
    assert evaluate_detections([image([], [(A, 0)])]).agnostic_ap == 0.0


def test_wrong_requests_are_named() -> None:
    with pytest.raises(InputError, match="no object in any image"):
        evaluate_detections([image([(A, 0.9, 0)], [])])
    with pytest.raises(InputError, match="above 0 and at most 1"):
        evaluate_detections([image([], [(A, 0)])], overlap=0.0)
