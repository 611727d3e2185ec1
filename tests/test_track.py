"""The tracker: when it asks for a detection, and where the next boxes are, on hand-made scenes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from track_world import ALL, FPS, LAYOUT, SIZE, SPEC, Step, Thing, World, box_at, ids, run, still

from edgepose import InputError, PoseResult
from edgepose.association import overlaps
from edgepose.geometry import validate_boxes
from edgepose.track import Tracker, Tracking
from edgepose.trackstate import Anchor, box_from_landmarks, clip_box

# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"every": True}, "every"),
        ({"idle": 2.5}, "idle"),
        ({"min_score": 1.5}, "min_score must be a number from 0 to 1, got 1.5"),
        ({"landmark_score": -0.1}, "landmark_score"),
        ({"drop": float("nan")}, "drop"),
        ({"iou": 0}, "iou must be above 0"),
        ({"new_score": "high"}, "new_score"),
        ({"category_cost": None}, "category_cost"),
        ({"lost_after": -1}, "lost_after must be a number of at least 0, got -1"),
        ({"lost_after": float("inf")}, "lost_after"),
        ({"reach": -0.5}, "reach must be a number of at least 0"),
    ],
)
def test_settings_refuse_nonsense(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Tracking(**values)


def test_bad_arguments_are_refused() -> None:
    tracker = Tracker(None, SPEC)
    assert tracker.settings == Tracking()
    with pytest.raises(InputError, match="must be a Tracking"):
        Tracker({"every": 3}, SPEC)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="finite number of seconds"):
        tracker.next_boxes(float("nan"))
    result = World([still(100, 100)]).detect(0.0)
    with pytest.raises(InputError, match="finite number of seconds"):
        tracker.update(result, "now", detected=True)  # type: ignore[arg-type]
    other = replace(SPEC, keypoint_names=("one",), flip_indices=(0,))
    with pytest.raises(InputError, match="5 landmarks, got 1"):
        tracker.update(PoseResult.empty(other, SIZE), 0.0, detected=True)
    with pytest.raises(InputError, match="1 boxes that next_boxes did not give"):
        tracker.update(result, 0.0, detected=False)


# When it detects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 4, 10])
def test_detects_every_k_frames(every: int) -> None:
    steps = run(World([still(200, 200)]), Tracker(Tracking(every=every), SPEC), 21)
    assert [step.detected for step in steps] == [frame % every == 0 for frame in range(21)]
    assert all(ids(step) == [1] for step in steps)


@pytest.mark.parametrize("idle", [1, 3])
def test_an_empty_scene_is_searched_every_idle_frames(idle: int) -> None:
    steps = run(World([]), Tracker(Tracking(every=10, idle=idle), SPEC), 9)
    assert [step.detected for step in steps] == [frame % idle == 0 for frame in range(9)]
    assert all(len(step.result) == 0 and ids(step) == [] for step in steps)


@pytest.mark.parametrize("settings", [Tracking(every=50), Tracking(every=50, min_score=0.6, drop=0)])
def test_falling_confidence_asks_for_one_detection(settings: Tracking) -> None:
    weak = still(200, 200, score=lambda time: 0.9 if time < 0.49 else 0.5)  # from frame 15 on
    steps = run(World([weak]), Tracker(settings, SPEC), 30)
    # 0.5 is below 0.7 times 0.9, and below 0.6; the detection confirms the object, which is weak now: no more news
    assert [frame for frame, step in enumerate(steps) if step.detected] == [0, 16]
    assert all(ids(step) == [1] for step in steps)


def test_confidence_that_falls_again_asks_again() -> None:
    blinking = still(200, 200, score=lambda time: 0.9 if int(time * 2) % 2 == 0 else 0.2)
    steps = run(World([blinking]), Tracker(Tracking(every=1000), SPEC), 75)
    assert [frame for frame, step in enumerate(steps) if step.detected] == [0, 16, 46]


def test_an_object_with_poor_landmarks_does_not_cost_a_detection_each_frame() -> None:
    steps = run(World([still(200, 200, score=lambda time: 0.1)]), Tracker(Tracking(every=10), SPEC), 30)
    assert [frame for frame, step in enumerate(steps) if step.detected] == [0, 10, 20]
    assert all(ids(step) == [1] for step in steps)


# The box from landmarks -----------------------------------------------------------------------------


def test_the_anchors_own_landmarks_give_its_box() -> None:
    box = box_at(300, 200)
    anchor = Anchor(box, box[:2] + LAYOUT * (box[2:] - box[:2]), ALL)
    np.testing.assert_allclose(box_from_landmarks(anchor, anchor.points, ALL), box, rtol=0, atol=1e-12)  # rounding
    few = np.array([True, True, True, False, False])
    np.testing.assert_allclose(box_from_landmarks(anchor, anchor.points, few), box, rtol=0, atol=1e-12)


@pytest.mark.parametrize("visible", [ALL, np.array([True, False, True, True, False])])
def test_the_box_moves_and_grows_with_the_landmarks(visible: np.ndarray) -> None:
    box = box_at(300, 200)
    points = box[:2] + LAYOUT * (box[2:] - box[:2])
    moved = box_from_landmarks(Anchor(box, points, ALL), points * 1.5 + [7, -3], visible)
    np.testing.assert_allclose(moved, box * 1.5 + [7, -3, 7, -3], rtol=0, atol=1e-10)  # rounding; seen: 0


def test_few_landmarks_only_move_the_box() -> None:
    box = box_at(300, 200)
    anchor = Anchor(box, box[:2] + LAYOUT * (box[2:] - box[:2]), ALL)
    one = np.array([True, False, False, False, False])
    moved = box_from_landmarks(anchor, anchor.points + np.array([11, 5]), one)
    np.testing.assert_allclose(moved, box + np.tile([11, 5], 2), rtol=0, atol=1e-12)
    assert box_from_landmarks(anchor, anchor.points, np.zeros(5, bool)) is None
    assert box_from_landmarks(Anchor(box, anchor.points, ~one), anchor.points, one) is None


def test_no_landmarks_make_a_degenerate_or_boundless_box() -> None:
    box = box_at(300, 200)
    anchor = Anchor(box, box[:2] + LAYOUT * (box[2:] - box[:2]), ALL)
    collapsed = box_from_landmarks(anchor, np.full((5, 2), 50.0), ALL)
    assert collapsed is not None
    assert (collapsed[2:] - collapsed[:2] >= 0.1 * (box[2:] - box[:2]) - 1e-9).all()
    scattered = box_from_landmarks(anchor, anchor.points * 1e6, ALL)
    assert scattered is not None
    assert (scattered[2:] - scattered[:2] <= 4 * 120 + 1e-6).all()  # 120: the longer side of the anchor


def test_clipping_keeps_what_is_in_the_frame() -> None:
    np.testing.assert_array_equal(clip_box(np.array([-20.0, 100, 60, 200]), SIZE), [0, 100, 60, 200])
    assert clip_box(np.array([-100.0, 100, 1, 200]), SIZE) is None  # 1 %
    assert clip_box(np.array([700.0, 100, 800, 200]), SIZE) is None


def test_drift_is_bounded_over_a_thousand_frames_without_detection() -> None:
    """Noise in every frame, and a network that draws landmarks to the crop's middle by a tenth."""

    def path(time: float) -> np.ndarray:
        return box_at(320 + 150 * np.sin(time), 240 + 60 * np.sin(1.7 * time), 60 + 15 * np.sin(0.9 * time))

    thing = Thing(path)
    tracker = Tracker(Tracking(every=10**9, drop=0), SPEC)
    steps = run(World([thing], noise=0.01, pull=0.1), tracker, 1001)
    assert [step.detected for step in steps] == [True] + [False] * 1000
    iou = np.array([overlaps(step.result.boxes.astype(float), path(step.time)[None])[0, 0] for step in steps])
    # The boxes are off by what the landmarks of the frame are off, no more; seen: 0.74 at least.
    assert iou.min() > 0.7
    # No trend: the last 200 frames are like the first 200; seen: 0.922 and 0.929.
    assert abs(iou[1:201].mean() - iou[-200:].mean()) < 0.02


def test_boxes_do_not_depend_on_the_frames_before() -> None:
    """Two ways to the same landmarks end at the same box, up to the dead zone that keeps still boxes still."""
    boxes = []
    for detour in (0.0, 80.0):
        thing = Thing(lambda time, detour=detour: box_at(300 + detour * np.sin(np.pi * time), 200))  # back at time 1
        tracker = Tracker(Tracking(every=10**9), SPEC)
        run(World([thing], noise=0.0), tracker, 31)
        asked = tracker.next_boxes()
        assert asked is not None
        boxes.append(asked[0][0])
    np.testing.assert_allclose(boxes[0], boxes[1], atol=0.02 * np.sqrt(60 * 120))  # the dead zone: 1.7 px; seen: 0


def test_the_box_of_a_still_object_does_not_tremble() -> None:
    steps = run(World([still(200, 200)], noise=0.003), Tracker(Tracking(every=10**9), SPEC), 100)
    assert len({step.result.boxes.tobytes() for step in steps[1:]}) == 1


def test_boxes_are_moved_on_to_the_frames_time() -> None:
    thing = Thing(lambda time: box_at(100 + 300 * time, 200))  # 10 px a frame
    with_time, without = Tracker(Tracking(every=100), SPEC), Tracker(Tracking(every=100), SPEC)
    run(World([thing]), with_time, 30)
    run(World([thing]), without, 30)
    moved, stayed = with_time.next_boxes(1.0), without.next_boxes()
    assert moved is not None
    assert stayed is not None
    # 1.7 px: the dead zone; the velocity itself is exact after 30 frames
    assert moved[0][0, 0] == pytest.approx(370, abs=1.8)
    assert stayed[0][0, 0] == pytest.approx(360, abs=1.8)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_network_says_the_boxes_are_usable(seed: int) -> None:
    random = np.random.default_rng(seed)
    tracker = Tracker(Tracking(every=7), SPEC)
    given = 0
    for frame in range(200):
        time = frame / FPS
        asked = tracker.next_boxes(time if frame % 2 else None)
        boxes = random.uniform(0, 400, (3, 2)) if asked is None else asked[0]
        boxes = np.concatenate([boxes, boxes + random.uniform(2, 200, (3, 2))], axis=1) if asked is None else boxes
        points = random.normal(200, 10 ** random.uniform(0, 6), (len(boxes), 5, 2))
        points[random.random(points.shape) < 0.05] = random.choice([np.nan, np.inf])
        scores = random.uniform(0, 1, (len(boxes), 5))
        scores[random.random(scores.shape) < 0.05] = np.nan
        result = PoseResult(points, scores, boxes, SPEC, SIZE)
        result = tracker.update(result, time, detected=asked is None)
        if asked is not None:
            given += len(validate_boxes(asked[0]))  # raises if one is not finite or has no area
            assert (asked[0] >= 0).all()
            assert (asked[0] <= np.array([639, 479, 639, 479])).all()
        assert len(set(ids(Step(time, True, result)))) == len(result)
    assert given > 50
