"""PCK, AUC and EPE against MMPose 1.3.2's recorded figures, and the corners of their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.training.metrics import auc, epe, pck, pck_per_keypoint

DATA = Path(__file__).parents[1] / "data" / "reference"
VECTORS = np.load(DATA / "metrics.npz")
RESULTS = json.loads((DATA / "metrics.json").read_text())["results"]


@pytest.mark.parametrize("name", RESULTS)
def test_matches_mmpose(name):
    predicted, truth, visible, boxes = (VECTORS[f"{name}/{key}"] for key in ("pred", "gt", "visible", "bbox"))
    result = RESULTS[name]
    # Counts must agree exactly, their means to float64 rounding: worst seen 1.4e-17.
    assert pck(predicted, truth, visible, boxes) == pytest.approx(result["PCK"], abs=1e-9)
    assert auc(predicted, truth, visible) == pytest.approx(result["AUC"], abs=1e-9)
    # MMPose sums float32: worst seen 2e-6 px.
    assert epe(predicted, truth, visible) == pytest.approx(result["EPE"], abs=1e-4)
    fractions = np.nan_to_num(pck_per_keypoint(predicted, truth, visible, boxes), nan=-1)
    np.testing.assert_allclose(fractions, VECTORS[f"{name}/pck_per_keypoint"], atol=1e-12)


def sample(error_x, box=(0.0, 0.0, 100.0, 50.0)):
    truth = np.full((len(error_x), 1, 2), 40, np.float32)
    predicted = truth + np.array([[[error, 0]] for error in error_x], np.float32)
    return predicted, truth, np.ones((len(error_x), 1)), np.tile(np.float32(box), (len(error_x), 1))


def test_thresholds_are_strict_and_relative_to_the_longer_side():
    predicted, truth, visible, boxes = sample([0, 4, 5, 6])
    assert pck(predicted, truth, visible, boxes, threshold=0.05) == 0.5
    assert auc(predicted[:1], truth[:1], visible[:1]) == pytest.approx(0.95)
    assert auc(predicted[1:2], truth[1:2], visible[1:2], normalizer=8, steps=2) == 0.0  # 4 px is at, not below, 0.5
    assert epe(predicted, truth, visible) == pytest.approx(15 / 4)


def test_macro_and_micro_averages():
    predicted, truth = np.zeros((3, 2, 2)), np.zeros((3, 2, 2))
    predicted[0, 1] = 90
    visible, boxes = [[1, 1], [1, 0], [2, 0]], [[0, 0, 10, 10]] * 3
    assert pck(predicted, truth, visible, boxes) == 0.5
    np.testing.assert_array_equal(pck_per_keypoint(predicted, truth, visible, boxes), [1, 0])
    assert epe(predicted, truth, visible) == pytest.approx(np.hypot(90, 90) / 4)


def test_nan_is_a_miss_and_makes_epe_nan():
    predicted, truth, visible, boxes = sample([0, np.nan])
    assert pck(predicted, truth, visible, boxes) == 0.5
    assert auc(predicted, truth, visible) == pytest.approx(0.475)
    assert np.isnan(epe(predicted, truth, visible))


def test_empty_boxes_and_nothing_visible():
    predicted, truth, visible, boxes = sample([0, 1, 2])
    boxes[1] = 0
    boxes[2] = (50, 50, 0, 0)  # MMPose takes 1e6 px for a negative side
    predicted[1] = np.nan
    assert pck(predicted, truth, visible, boxes) == 1.0
    assert pck(predicted, truth, visible * 0, boxes) == 0.0
    assert np.isnan(pck_per_keypoint(predicted, truth, visible * 0, boxes)).all()
    empty = np.zeros((0, 4, 2)), np.zeros((0, 4, 2)), np.zeros((0, 4))
    assert pck(*empty, np.zeros((0, 4))) == auc(*empty) == epe(*empty) == 0.0


def test_wrong_shapes():
    points, visible, boxes = np.zeros((2, 3, 2)), np.ones((2, 3)), np.ones((2, 4))
    with pytest.raises(InputError, match=r"truth \(N, K, 2\)"):
        pck(points, points[:1], visible, boxes)
    with pytest.raises(InputError, match=r"visible \(N, K\)"):
        epe(points, points, visible[0])
    with pytest.raises(InputError, match=r"boxes must have the shape \(2, 4\)"):
        pck(points, points, visible, boxes[:1])
    with pytest.raises(InputError, match="above 0"):
        auc(points, points, visible, steps=0)
