"""PCK, AUC and EPE against MMPose 1.3.2's recorded figures, and the corners of their definitions."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.training import bootstrap
from edgepose.training.metrics import (
    Statistic,
    auc,
    epe,
    figure,
    figure_by_keypoint,
    measure,
    pck,
    pck_per_keypoint,
    statistics,
)

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
    # MMPose sums float32 distances landmark by landmark, and so do we: worst seen 0.
    assert epe(predicted, truth, visible) == pytest.approx(result["EPE"], abs=1e-9)
    fractions = np.nan_to_num(pck_per_keypoint(predicted, truth, visible, boxes), nan=-1)
    np.testing.assert_allclose(fractions, VECTORS[f"{name}/pck_per_keypoint"], atol=1e-12)


@pytest.mark.parametrize("name", RESULTS)
def test_every_threshold_of_the_recorded_auc_curves(name):
    predicted, truth, visible = (VECTORS[f"{name}/{key}"] for key in ("pred", "gt", "visible"))
    boxes = np.tile(np.float32([0, 0, 30, 30]), (len(visible), 1))  # AUC is PCK with a side of 30 px
    found = [pck(predicted, truth, visible, boxes, step / 20) for step in range(20)]
    # Counts agree exactly: worst seen 0.
    np.testing.assert_allclose(found, RESULTS[name].get("auc_curve", [0] * 20), atol=1e-12)


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


def test_statistics_are_the_metrics_and_their_parts():
    predicted, truth, visible, boxes = (VECTORS[f"s1_masked_K6/{key}"] for key in ("pred", "gt", "visible", "bbox"))
    found = {s.name: s for s in statistics(measure(predicted, truth, visible, boxes), (0.2, 0.1))}
    assert list(found) == ["PCK@0.2", "PCK@0.1", "AUC", "EPE", "mean_error/longer_side"]
    assert figure(found["PCK@0.1"]) == pck(predicted, truth, visible, boxes, 0.1)
    assert figure(found["AUC"]) == auc(predicted, truth, visible)
    assert figure(found["EPE"]) == epe(predicted, truth, visible)
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    relative = np.linalg.norm(predicted - truth, axis=-1) / side[:, None]
    # One float32 sum and one float64 sum of 89 numbers: worst seen 2e-9.
    assert figure(found["mean_error/longer_side"]) == pytest.approx(
        relative[visible > 0].mean(dtype=np.float64), abs=1e-7
    )
    for k in range(6):
        one = np.s_[:, k : k + 1]
        args = predicted[one], truth[one], visible[one]
        # Means of the same numbers in another order: worst seen 4e-6 px in EPE's float32 sum.
        assert figure_by_keypoint(found["AUC"])[k] == pytest.approx(auc(*args), abs=1e-12)
        assert figure_by_keypoint(found["EPE"])[k] == pytest.approx(epe(*args), abs=2e-5)


# The bootstrap -------------------------------------------------------------------------------------


def synthetic(count=60, keypoints=4, seed=0, noise=5.0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 200, (count, keypoints, 2))
    predicted = truth + rng.normal(0, noise, truth.shape) * rng.gamma(1, 1, (count, 1, 1))
    visible = rng.random((count, keypoints)) < np.linspace(0.05, 1, keypoints)  # the first landmark is rare
    return predicted, truth, visible, np.tile([0.0, 0, 200, 100], (count, 1))


def test_each_resample_is_averaged_as_the_metric_is():
    predicted, truth, visible, boxes = synthetic(count=12)
    visible[:, 0] = np.arange(12) == 3
    images = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7])
    drawn = bootstrap.resample(statistics(measure(predicted, truth, visible, boxes)), images, resamples=40, seed=3)
    rng = np.random.default_rng(3)
    choices = rng.integers(8, size=(40, 8))
    absent = 0
    for number, choice in enumerate(choices):
        rows = np.concatenate([np.flatnonzero(images == image) for image in choice])
        args = predicted[rows], truth[rows], visible[rows]
        absent += not visible[rows, 0].any()
        # Sums of the same numbers in another order; EPE is averaged in float32 here: worst seen 2e-16 and 1.4e-6 px.
        assert drawn[1].figures[number] == pytest.approx(pck(*args, boxes[rows], 0.05), abs=1e-12)
        assert drawn[2].figures[number] == pytest.approx(auc(*args), abs=1e-12)
        assert drawn[3].figures[number] == pytest.approx(epe(*args), abs=1e-5)
        expected = pck_per_keypoint(*args, boxes[rows], 0.05)
        np.testing.assert_allclose(drawn[1].by_keypoint[number], expected, atol=1e-12)
    assert 0 < absent < 40  # the rare landmark was missing in some resamples: left out there, as the metric does


def test_intervals_are_repeatable_and_do_not_depend_on_blocks(monkeypatch):
    made, images = statistics(measure(*synthetic())), np.arange(60) // 2
    first = bootstrap.resample(made, images, resamples=200, seed=1)
    assert not np.array_equal(first[1].figures, bootstrap.resample(made, images, resamples=200, seed=2)[1].figures)
    monkeypatch.setattr(bootstrap, "_DRAWS", 7 * 30)
    again = bootstrap.resample(made, images, resamples=200, seed=1)
    for a, b in zip(first, again, strict=True):
        # The same draws; a matrix product of another size may add in another order: worst seen 4e-16 relative.
        np.testing.assert_allclose(a.figures, b.figures, rtol=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Two landmarks found in 70 and 90 % of all images, 60 of which are at hand, 300 times."""
    covered, runs = 0, 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        hits = rng.random((60, 2)) < [0.7, 0.9]
        (drawn,) = bootstrap.resample([Statistic("PCK", hits, np.ones_like(hits), True)], np.arange(60), seed=seed)
        low, high = bootstrap.interval(drawn.figures, 60)
        covered += low <= 0.8 <= high
    # Seen: 0.977; more than 0.95 because shares of 120 landmarks are steps of 0.008. The standard error is 0.01.
    assert 0.92 <= covered / runs <= 0.99


def test_objects_of_one_image_are_drawn_together():
    hits = np.repeat(np.random.default_rng(0).random((20, 1)) < 0.5, 10, axis=0)  # 20 photos of ten like garments
    made = [Statistic("PCK", hits, np.ones_like(hits), True)]
    together, apart = (
        np.ptp(bootstrap.interval(bootstrap.resample(made, images)[0].figures, 20))
        for images in (np.arange(200) // 10, np.arange(200))
    )
    assert together > 2.5 * apart  # in theory the square root of 10


def test_one_image_has_no_interval_and_nan_stays_nan():
    predicted, truth, visible, boxes = synthetic(count=5)
    drawn = bootstrap.resample(statistics(measure(predicted, truth, visible, boxes)), np.zeros(5), resamples=10)
    assert np.isnan(bootstrap.interval(drawn[0].figures, 1)).all()
    predicted[0, 3] = np.nan
    assert visible[0, 3]
    made = statistics(measure(predicted, truth, visible, boxes))
    drawn = bootstrap.resample(made, np.arange(5), resamples=10)
    assert np.isnan(figure(made[3]))
    assert np.isnan(bootstrap.interval(drawn[3].figures, 5)).all()
    assert np.isfinite(bootstrap.interval(drawn[0].figures, 5)).all()
    with pytest.raises(InputError, match="one image for each of the 5 objects"):
        bootstrap.resample(made, np.zeros(4))
    with pytest.raises(InputError, match="at least one resample"):
        bootstrap.resample(made, np.zeros(5), resamples=0)


def test_a_paired_comparison_sees_what_two_intervals_do_not():
    predicted, truth, visible, boxes = synthetic(noise=12)
    better = truth + (predicted - truth) * 0.8
    made, other = (statistics(measure(p, truth, visible, boxes)) for p in (better, predicted))
    found = bootstrap.compare(made, other, np.arange(60))
    assert found["EPE"].beyond_chance
    assert found["EPE"].high < 0
    assert found["EPE"].p_value == pytest.approx(2 / 1001)  # no resample on the other side: the least it can be
    alone = [bootstrap.interval(bootstrap.resample(m, np.arange(60))[3].figures, 60) for m in (made, other)]
    assert alone[0][1] > alone[1][0]  # the two intervals overlap all the same
    same = bootstrap.compare(made, made, np.arange(60))["AUC"]
    assert (same.low, same.high, same.p_value, same.beyond_chance) == (0, 0, 1, False)
    with pytest.raises(InputError, match="the same labels"):
        bootstrap.compare(made, statistics(measure(better, truth, ~visible, boxes)), np.arange(60))


def test_a_thousand_resamples_of_two_thousand_objects_take_less_than_a_second():
    made = statistics(measure(*synthetic(count=2000, keypoints=8)), (0.05, 0.1, 0.2))
    start = time.process_time()
    bootstrap.resample(made, np.arange(2000))
    # Processor time, so that neighbours do not count; seen: 0.1 s.
    assert time.process_time() - start < 1
