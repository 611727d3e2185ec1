"""The One-Euro filter: against the paper's scalar form, its jitter and lag, and when it starts anew."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgepose import InputError, ModelSpec, PoseResult
from edgepose.smooth import OneEuro, Smoother

K = 4
SPEC = ModelSpec(
    name="four",
    input_size=(96, 128),
    heatmap_size=(24, 32),
    keypoint_names=("a", "b", "c", "d"),
    flip_indices=(0, 1, 2, 3),
)
FPS = 30.0
BOX = np.array([0, 0, 100, 400], np.float32)  # size 200 px


def result_of(
    points: np.ndarray, ids: list[int] | None = None, scores: Any = 0.9, boxes: np.ndarray | None = None
) -> PoseResult:
    points = points if points.ndim == 3 else points[None]
    boxes = np.repeat(BOX[None], len(points), axis=0) if boxes is None else boxes
    numbers = np.array(ids or range(1, len(points) + 1), np.int64)
    return PoseResult(points, np.broadcast_to(scores, points.shape[:2]), boxes, SPEC, (1000, 1000), track_ids=numbers)


def smooth_path(path: np.ndarray, parameters: OneEuro | None = None, fps: float = FPS) -> np.ndarray:
    """(T, K, 2) -> (T, K, 2)"""
    smoother = Smoother(parameters)
    return np.array([smoother.smooth(result_of(p), i / fps).keypoints[0] for i, p in enumerate(path)], np.float64)


def moving(speed: float, frames: int = 240) -> np.ndarray:
    """(T, K, 2) a path back and forth at most ``speed`` sizes/s, two seconds a turn."""
    time = np.arange(frames) / FPS
    along = 200 * speed / np.pi * np.sin(np.pi * time)
    start = np.array([[300, 300], [350, 300], [300, 400], [350, 500]], np.float64)
    return start[None] + along[:, None, None] * np.array([0.8, 0.6])


def lag_in_frames(delayed: np.ndarray, path: np.ndarray) -> float:
    """The shift of the true path, frames, at which the two correlate best."""
    times = np.arange(len(path))
    inside = slice(10, len(path) - 10)
    shifts = np.arange(-1, 4, 0.02)
    flat_delayed, flat = delayed.reshape(len(path), -1), path.reshape(len(path), -1)
    correlations = []
    for shift in shifts:
        shifted = np.stack([np.interp(times - shift, times, column) for column in flat.T], axis=1)
        correlations.append(np.corrcoef(shifted[inside].ravel(), flat_delayed[inside].ravel())[0, 1])
    return float(shifts[int(np.argmax(correlations))])


# The filter --------------------------------------------------------------------------------------------


def scalar_one_euro(values: list[float], times: list[float], p: OneEuro, size: float) -> list[float]:
    """The paper's algorithm for one number at a time, written apart from the code under test."""

    def weight(cutoff: float, step: float) -> float:
        return 1 / (1 + 1 / (2 * math.pi * cutoff * step))

    hat, speed_hat, out = values[0], 0.0, [values[0]]
    for value, before, now in zip(values[1:], times, times[1:], strict=False):
        step = now - before
        speed = (value - hat) / step / size
        a = weight(p.d_cutoff, step)
        speed_hat = a * speed + (1 - a) * speed_hat
        a = weight(p.min_cutoff + p.beta * abs(speed_hat), step)
        hat = a * value + (1 - a) * hat
        out.append(hat)
    return out


def test_equals_the_papers_form_at_a_varying_frame_rate() -> None:
    random = np.random.default_rng(0)
    times = np.cumsum(random.uniform(0.01, 0.1, 60)).tolist()
    xs = np.cumsum(random.normal(0, 4, (60, K)), axis=0) + 300  # motion along x: |v| is then the scalar's
    parameters, smoother = OneEuro(min_cutoff=0.7, beta=3, d_cutoff=1.3), Smoother(OneEuro(0.7, 3, 1.3))
    got = [smoother.smooth(result_of(np.stack([x, np.full(K, 50.0)], -1)), t) for x, t in zip(xs, times, strict=True)]
    for k in range(K):
        expected = scalar_one_euro(np.float32(xs)[:, k].tolist(), times, parameters, 200.0)
        # float32 output at 300 px: 1.5e-5; seen: 1.5e-5
        np.testing.assert_allclose([r.keypoints[0, k, 0] for r in got], expected, rtol=0, atol=3e-5)
    assert all((r.keypoints[0, :, 1] == 50).all() for r in got)


def test_the_first_sample_is_exact_and_inputs_are_not_changed() -> None:
    result = result_of(moving(1.0)[0])
    before = result.keypoints.copy()
    smoothed = Smoother().smooth(result, 5.0)
    np.testing.assert_array_equal(smoothed.keypoints, before)
    for name in ("scores", "boxes", "track_ids"):
        np.testing.assert_array_equal(getattr(smoothed, name), getattr(result, name))


@pytest.mark.parametrize("factor", [0.1, 8.0])
def test_near_and_far_objects_are_smoothed_alike(factor: float) -> None:
    random = np.random.default_rng(1)
    path = moving(0.5, 60) + random.normal(0, 0.6, (60, K, 2))
    near, far = Smoother(), Smoother()
    for frame, points in enumerate(path):
        first = near.smooth(result_of(points), frame / FPS).keypoints
        second = far.smooth(result_of(points * factor, boxes=BOX[None] * factor), frame / FPS).keypoints
    # float32 coordinates of about 500 px; seen: 6e-5
    np.testing.assert_allclose(second / factor, first, rtol=0, atol=2e-4)


def test_turned_paths_are_smoothed_alike() -> None:
    path = moving(0.5, 60) + np.random.default_rng(2).normal(0, 0.6, (60, K, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    # float32 coordinates of about 500 px; seen: 6e-5
    np.testing.assert_allclose(smooth_path(path @ turn), smooth_path(path) @ turn, rtol=0, atol=3e-4)


# What it is for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.001, 0.002])  # sizes; sensor noise moves the bundled model's landmarks by 0.002
def test_jitter_of_a_still_object_falls_three_times(noise: float) -> None:
    path = moving(0.0, 600) + np.random.default_rng(3).normal(0, noise * 200, (600, K, 2))
    smoothed = smooth_path(path)[60:]
    steps, steps_smoothed = np.diff(path[60:], axis=0).std(), np.diff(smoothed, axis=0).std()
    assert steps / steps_smoothed > 3  # seen: 12.5 and 8.8
    assert path[60:].std(axis=0).mean() / smoothed.std(axis=0).mean() > 3  # seen: 3.8 and 3.1


@pytest.mark.parametrize("speed", [0.15, 0.3, 1.0, 3.0])  # sizes/s at most; a walker has about 1
def test_lag_of_a_moving_object_is_under_a_frame(speed: float) -> None:
    path = moving(speed)
    noisy = path + np.random.default_rng(4).normal(0, 0.002 * 200, path.shape)
    assert lag_in_frames(smooth_path(noisy), path) < 1  # seen: 0.98, 0.64, 0.26, 0.12
    assert abs(lag_in_frames(noisy, path)) < 0.05  # the measure itself; seen: 0.02, one step of its grid


@pytest.mark.parametrize("speed", [0.02, 0.05, 0.1])
def test_what_creeps_lags_more_frames_but_hardly_any_way(speed: float) -> None:
    path = moving(speed)
    behind = np.linalg.norm(smooth_path(path) - path, axis=-1)[30:]
    assert behind.max() < 0.006 * 200  # of its size; seen: 0.0050 at 0.1 sizes/s


def test_a_jump_is_followed_at_once() -> None:
    path = moving(0.0, 40)
    path[20:] += 100  # half an object
    smoothed = smooth_path(path)
    assert np.abs(smoothed[20] - path[20]).max() < 6  # of 100 px; seen: 4.9
    assert np.abs(smoothed[22] - path[22]).max() < 0.1  # seen: 0.02


# When it starts anew ---------------------------------------------------------------------------------------


def test_landmarks_with_a_low_score_pass_and_are_not_smeared_in() -> None:
    smoother = Smoother()
    path = moving(0.0, 30)
    for frame, points in enumerate(path):
        scores = np.full(K, 0.9)
        shown = points.copy()
        if frame in (10, 11, 12):
            scores[1] = 0.1
            shown[1] = [900, 900]  # nonsense
        result = smoother.smooth(result_of(shown, scores=scores), frame / FPS)
        np.testing.assert_array_equal(result.keypoints[0], np.float32(shown))  # exact before, during and after


def test_a_landmark_that_is_not_finite_passes() -> None:
    smoother, points = Smoother(), moving(0.0, 1)[0]
    smoother.smooth(result_of(points), 0.0)
    bad = points.copy()
    bad[2] = np.nan
    assert np.isnan(smoother.smooth(result_of(bad), 0.1).keypoints[0, 2]).all()
    np.testing.assert_array_equal(smoother.smooth(result_of(points), 0.2).keypoints[0], np.float32(points))


def test_ids_do_not_mix_and_a_new_id_starts_exactly() -> None:
    smoother = Smoother()
    one, other = moving(0.0, 1)[0], moving(0.0, 1)[0] + 300
    smoother.smooth(result_of(np.stack([one, other]), ids=[1, 2]), 0.0)
    swapped = smoother.smooth(result_of(np.stack([other, one]), ids=[2, 1]), 0.03)
    np.testing.assert_array_equal(swapped.keypoints, np.float32(np.stack([other, one])))
    fresh = smoother.smooth(result_of(one + 7, ids=[3]), 0.06)
    np.testing.assert_array_equal(fresh.keypoints[0], np.float32(one + 7))


@pytest.mark.parametrize("time", [2.0, 1.0, 0.5, -50.0])  # a long gap, no step, and back
def test_a_time_that_does_not_go_on_starts_anew(time: float) -> None:
    smoother, points = Smoother(), moving(0.0, 1)[0]
    smoother.smooth(result_of(points), 1.0)
    moved = smoother.smooth(result_of(points + 3), time)
    np.testing.assert_array_equal(moved.keypoints[0], np.float32(points + 3))
    after = smoother.smooth(result_of(points + 4), time + 0.03)
    assert (after.keypoints[0] < np.float32(points + 4)).all()  # and goes on from there
    assert (after.keypoints[0] > np.float32(points + 3)).all()


def test_an_object_that_was_away_briefly_goes_on_and_reset_forgets() -> None:
    smoother, points = Smoother(), moving(0.0, 1)[0]
    smoother.smooth(result_of(points), 0.0)
    smoother.smooth(result_of(points, ids=[9]), 0.1)
    assert (smoother.smooth(result_of(points + 3), 0.3).keypoints[0] < points + 3).all()
    smoother.reset()
    np.testing.assert_array_equal(smoother.smooth(result_of(points + 5), 0.33).keypoints[0], np.float32(points + 5))


def test_old_ids_are_forgotten() -> None:
    smoother, points = Smoother(), moving(0.0, 1)[0]
    for number in range(1, 200):
        smoother.smooth(result_of(points, ids=[number]), number / 10)
    assert len(smoother._filters) <= 6  # those of the last half second


def test_a_frame_without_objects() -> None:
    empty = PoseResult.empty(SPEC, (100, 100))
    with pytest.raises(InputError, match=r"Tracker\.update"):
        Smoother().smooth(empty, 0.0)
    tracked = result_of(moving(0.0, 1)[0])[[]]
    assert len(Smoother().smooth(tracked, 0.0)) == 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"min_cutoff": 0}, "min_cutoff must be a number above 0, got 0"),
        ({"beta": -1}, "beta must be a number of at least 0, got -1"),
        ({"d_cutoff": float("nan")}, "d_cutoff"),
        ({"min_score": 2}, "min_score must be a number from 0 to 1, got 2"),
        ({"max_gap": "1"}, "max_gap"),
        ({"beta": True}, "beta"),
        ({"max_gap": float("inf")}, "max_gap"),
    ],
)
def test_parameters_refuse_nonsense(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        OneEuro(**values)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="must be a OneEuro"):
        Smoother(0.5)  # type: ignore[arg-type]
    points = moving(0.0, 1)[0]
    with pytest.raises(InputError, match="finite number of seconds"):
        Smoother().smooth(result_of(points), float("inf"))
    with pytest.raises(InputError, match=r"each track id once, got \[4, 4\]"):
        Smoother().smooth(result_of(np.stack([points, points]), ids=[4, 4]), 0.0)
    assert Smoother().parameters == OneEuro()
