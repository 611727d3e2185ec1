"""The tracker: who is who, on hand-made scenes with crossings, absences, jumps of the time and frames in flight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from track_world import FPS, SIZE, SPEC, Step, Thing, World, box_at, ids, run, still

from edgepose import PoseResult
from edgepose.association import assign
from edgepose.track import Tracker, Tracking

# Who is who -----------------------------------------------------------------------------------------


def test_crossing_objects_keep_their_ids() -> None:
    right = Thing(lambda time: box_at(100 + 200 * time, 200))
    left = Thing(lambda time: box_at(500 - 200 * time, 230))
    steps = run(World([right, left], noise=0.005), Tracker(Tracking(every=5), SPEC), 61)
    apart = [step for step in steps if abs(step.time - 1) > 0.35]
    assert {step.id_of(right) for step in apart} == {steps[0].id_of(right)}
    assert {step.id_of(left) for step in apart} == {steps[0].id_of(left)}
    assert {number for step in steps for number in ids(step)} == {1, 2}


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("speed", [60, 190])  # px/s each; a person's width is 60
@pytest.mark.parametrize("swapped", [True, False])
def test_objects_that_cross_face_to_face_keep_their_ids(speed: float, every: int, swapped: bool) -> None:
    """For a moment they coincide: one is lost, and found again where it was heading."""
    right = Thing(lambda time: box_at(320 + speed * (time - 1), 200))
    left = Thing(lambda time: box_at(320 - speed * (time - 1), 200))
    things = [left, right] if swapped else [right, left]
    steps = run(World(things, noise=0.003), Tracker(Tracking(every=every), SPEC), 61)
    assert steps[-1].id_of(right) == steps[0].id_of(right)
    assert steps[-1].id_of(left) == steps[0].id_of(left)
    assert {number for step in steps for number in ids(step)} == {1, 2}


@pytest.mark.parametrize("first_hidden", [True, False])
def test_an_object_hidden_by_another_gets_its_id_back(first_hidden: bool) -> None:
    """Where they overlap by more than half, neither detector nor network see the one behind."""
    front = Thing(lambda time: box_at(100 + 200 * time, 200))
    back = Thing(lambda time: box_at(500 - 200 * time, 205), seen=lambda time: abs(time - 1) > 0.1)
    world = World([back, front] if first_hidden else [front, back], noise=0.003)
    steps = run(world, Tracker(Tracking(every=10), SPEC), 61)
    before, after = steps[15], steps[-1]
    assert after.id_of(front) == before.id_of(front)
    assert after.id_of(back) == before.id_of(back)
    assert before.id_of(front) != before.id_of(back)


@pytest.mark.parametrize(("seconds", "same"), [(0.5, True), (3.0, False)])
def test_a_short_absence_keeps_the_id_and_a_long_one_does_not(seconds: float, same: bool) -> None:
    thing = still(300, 200, seen=lambda time: not 1 <= time < 1 + seconds)
    steps = run(World([thing]), Tracker(Tracking(lost_after=1), SPEC), round(30 * (2 + seconds)))
    assert ids(steps[29]) == [1]
    assert ids(steps[35]) == []
    assert ids(steps[-1]) == ([1] if same else [2])


@pytest.mark.parametrize(("seconds", "same"), [(3.0, True), (9.0, True), (11.0, False)])
def test_a_pause_in_the_frames_keeps_the_ids_of_those_who_stay(seconds: float, same: bool) -> None:
    """A camera that stalls, or dies and returns: nobody looked, which is not the same as not being seen."""
    stays = still(200, 200)
    goes = still(450, 200, seen=lambda time: time < 2)
    world, tracker = World([stays, goes]), Tracker(Tracking(), SPEC)
    assert ids(run(world, tracker, 30)[-1]) == [1, 2]
    steps = run(world, tracker, 5, start=29 / FPS + seconds)
    assert steps[0].detected
    assert [ids(step) for step in steps] == [[1] if same else [3]] * 5
    assert tracker.ids == ((1,) if same else (3,))


def test_a_lost_object_is_found_where_it_was_heading_but_not_far_away() -> None:
    walker = Thing(lambda time: box_at(100 + 250 * time, 200), seen=lambda time: not 0.5 <= time < 1)
    assert ids(run(World([walker]), Tracker(Tracking(), SPEC), 45)[-1]) == [1]
    gone = Thing(lambda time: box_at(100 if time < 1 else 400, 200), seen=lambda time: not 0.5 <= time < 1)
    assert ids(run(World([gone]), Tracker(Tracking(), SPEC), 45)[-1]) == [2]


def test_a_newcomer_is_found_at_the_next_detection() -> None:
    newcomer = still(450, 200, seen=lambda time: time > 0.39)  # from frame 12 on
    steps = run(World([still(200, 200), newcomer]), Tracker(Tracking(every=10), SPEC), 25)
    assert [frame for frame, step in enumerate(steps) if 2 in ids(step)] == list(range(20, 25))


def test_an_object_that_leaves_the_frame_is_given_up() -> None:
    leaver = Thing(lambda time: box_at(500 + 200 * time, 200))
    tracker = Tracker(Tracking(every=10), SPEC)
    steps = run(World([leaver, still(100, 100)]), tracker, 50)
    assert ids(steps[20]) == [1, 2]
    assert ids(steps[-1]) == [2]
    assert tracker.ids == (2,)


def test_fast_objects_at_a_low_frame_rate() -> None:
    runner = Thing(lambda time: box_at(60 + 150 * time, 200))  # 30 px a frame, half of its width
    for every in (1, 5):
        steps = run(World([runner]), Tracker(Tracking(every=every), SPEC), 16, fps=5)
        assert all(ids(step) == [1] for step in steps), every


def test_one_missed_detection_is_forgiven_if_the_landmarks_are_good() -> None:
    world = World([still(200, 200)])
    tracker = Tracker(Tracking(every=3), SPEC)
    run(world, tracker, 3)
    assert tracker.next_boxes() is None
    assert len(tracker.update(PoseResult.empty(SPEC, SIZE), 0.1, detected=True)) == 0
    assert tracker.ids == (1,)
    asked = tracker.next_boxes()
    assert asked is not None
    assert ids(Step(0.13, False, tracker.update(world.predict(*asked, 0.13), 0.13, detected=False))) == [1]
    tracker.update(PoseResult.empty(SPEC, SIZE), 0.2, detected=True)
    assert tracker.ids == ()


def test_boxes_with_a_low_score_continue_an_object_but_start_none() -> None:
    thing = still(200, 200, box_score=0.3)
    settings = Tracking(every=1, new_score=0.5)
    assert all(ids(step) == [] for step in run(World([thing]), Tracker(settings, SPEC), 5))
    tracker = Tracker(settings, SPEC)
    run(World([replace(thing, box_score=0.9)]), tracker, 5)
    assert all(ids(step) == [1] for step in run(World([thing]), tracker, 5, start=1.0))


# Duplicates -----------------------------------------------------------------------------------------


def test_two_detections_of_one_object_are_one_object() -> None:
    thing = still(200, 200)
    twin = replace(thing, box=lambda time: box_at(204, 202, 66, 124), box_score=0.6)
    twin.points = thing.points  # type: ignore[method-assign]  # the same landmarks in another box
    for settings in (Tracking(every=1), Tracking(every=4)):
        steps = run(World([thing, twin]), Tracker(settings, SPEC), 12)
        assert all(ids(step) == [1] for step in steps)


def test_converging_tracks_are_merged_and_the_older_id_stays() -> None:
    """Two drift slowly together, as tracks do when one has lost its object: no detection tells them apart."""
    one = still(200, 200)
    other = Thing(lambda time: box_at(200 + max(0, 100 - 60 * time), 200))
    tracker = Tracker(Tracking(every=1000), SPEC)
    steps = run(World([one, other]), tracker, 60)
    assert ids(steps[0]) == [1, 2]
    assert ids(steps[-1]) == [1]
    assert tracker.ids == (1,)
    assert any(step.detected for step in steps[1:])  # the merger is checked at once


def test_a_jacket_over_a_shirt_stays_two_objects() -> None:
    """Categories with landmarks of their own share none."""
    random = np.random.default_rng(0)
    tracker = Tracker(Tracking(every=1), SPEC)
    for frame in range(6):
        boxes = np.array([box_at(200, 200), box_at(202, 201)], np.float32)
        scores = np.array([[0.9, 0.9, 0.9, 0, 0], [0, 0, 0, 0.9, 0.9]])
        points = random.normal(200, 30, (2, 5, 2))
        result = PoseResult(points, scores, boxes, SPEC, SIZE, categories=("jacket", "shirt"))
        tracked = tracker.update(result, frame / FPS, detected=True)
        assert tracked.track_ids is not None
        assert tracked.track_ids.tolist() == [1, 2]


# Categories -----------------------------------------------------------------------------------------


def test_categories_are_passed_on() -> None:
    tracker = Tracker(Tracking(), SPEC)
    run(World([still(100, 200, category="shirt"), still(400, 200, category="skirt")]), tracker, 3)
    asked = tracker.next_boxes()
    assert asked is not None
    assert asked[1] == ("shirt", "skirt")
    assert asked[0][:, 0].tolist() == [70, 370]


@pytest.mark.parametrize(("cost", "expected"), [(0.3, [1]), (0.0, [1]), (1.0, [2])])
def test_a_wavering_category_changes_no_id_unless_told_so(cost: float, expected: list[int]) -> None:
    tracker = Tracker(Tracking(every=1, category_cost=cost), SPEC)
    thing = still(200, 200, category="shirt")
    run(World([thing]), tracker, 5)
    step = run(World([replace(thing, category="jacket")]), tracker, 1, start=0.2)[-1]
    assert ids(step) == expected
    if cost < 1:
        tracker.reset()


def test_the_category_is_the_one_that_was_detected_most() -> None:
    tracker = Tracker(Tracking(every=2), SPEC)
    thing = still(200, 200, category="shirt")
    run(World([thing]), tracker, 7)  # four detections
    run(World([replace(thing, category="jacket")]), tracker, 2, start=0.3)
    asked = tracker.next_boxes()
    assert asked is None or asked[1] == ("shirt",)
    run(World([replace(thing, category="jacket")]), tracker, 15, start=0.4)
    asked = tracker.next_boxes() or tracker.next_boxes()
    assert asked is not None
    assert asked[1] == ("jacket",)


# Time -----------------------------------------------------------------------------------------------


def test_a_jump_of_the_time_is_another_scene() -> None:
    world, tracker = World([still(200, 200)]), Tracker(Tracking(), SPEC)
    run(world, tracker, 5)
    steps = run(world, tracker, 2, start=60.0)  # forward
    assert [step.detected for step in steps] == [True, False]
    assert [ids(step) for step in steps] == [[2], [2]]
    steps = run(world, tracker, 2, start=0.0)  # back: the source has returned
    assert [step.detected for step in steps] == [True, False]
    assert [ids(step) for step in steps] == [[3], [3]]


def test_a_jump_that_only_update_learns_of() -> None:
    world, tracker = World([still(200, 200)]), Tracker(Tracking(), SPEC)
    run(world, tracker, 5)
    asked = tracker.next_boxes()
    assert asked is not None
    assert len(tracker.update(world.predict(*asked, 60.0), 60.0, detected=False)) == 0
    assert tracker.next_boxes() is None


def test_small_steps_back_and_equal_times_do_no_harm() -> None:
    world, tracker = World([Thing(lambda time: box_at(200 + 30 * time, 200))]), Tracker(Tracking(every=3), SPEC)
    for time in (0.0, 0.033, 0.02, 0.02, 0.066, 0.066, 0.1, 0.05):
        asked = tracker.next_boxes(time)
        result = world.detect(time) if asked is None else world.predict(*asked, time)
        assert ids(Step(time, True, tracker.update(result, time, detected=asked is None))) == [1]


def test_another_frame_size_is_another_scene() -> None:
    tracker = Tracker(Tracking(), SPEC)
    run(World([still(200, 200)]), tracker, 3)
    result = World([still(200, 200)], size=(1280, 720)).detect(0.1)
    assert ids(Step(0.1, True, tracker.update(result, 0.1, detected=True))) == [2]


def test_ids_are_never_used_again() -> None:
    tracker, seen = Tracker(Tracking(lost_after=0.2), SPEC), []
    for visit in range(5):
        run(World([]), tracker, 15, start=visit * 2.0)
        steps = run(World([still(100 + 50 * visit, 200)]), tracker, 10, start=visit * 2.0 + 1.0)
        seen.append(ids(steps[-1])[0])
    assert seen == [1, 2, 3, 4, 5]
    tracker.reset()
    assert tracker.ids == ()
    assert ids(run(World([still(100, 200)]), tracker, 1, start=20.0)[-1]) == [6]


# Frames in flight -------------------------------------------------------------------------------------


def test_results_may_come_two_frames_late() -> None:
    mover = Thing(lambda time: box_at(100 + 100 * time, 200))
    world, tracker = World([mover, still(500, 200)], noise=0.003), Tracker(Tracking(every=8), SPEC)
    waiting: list[tuple[float, Any]] = []
    steps = []
    for frame in range(90):
        time = frame / FPS
        waiting.append((time, tracker.next_boxes(time)))
        if frame % 13 == 5:
            waiting.pop()  # a frame whose result never comes
        if len(waiting) > 2:
            then, asked = waiting.pop(0)
            result = world.detect(then) if asked is None else world.predict(*asked, then)
            steps.append(Step(then, asked is None, tracker.update(result, then, detected=asked is None)))
    assert all(ids(step) == [1, 2] for step in steps)
    assert {step.id_of(mover) for step in steps} == {1}


def test_rows_of_an_object_lost_meanwhile_are_left_out() -> None:
    world, tracker = World([still(200, 200), still(450, 200)]), Tracker(Tracking(every=100), SPEC)
    run(world, tracker, 3)
    asked = tracker.next_boxes()
    assert asked is not None
    only = World([still(450, 200)]).detect(0.1)
    tracker.update(only, 0.1, detected=True)
    tracker.update(only, 0.11, detected=True)  # the second miss: lost
    late = tracker.update(world.predict(*asked, 0.12), 0.12, detected=False)
    assert ids(Step(0.12, False, late)) == [2]
    np.testing.assert_array_equal(late.boxes, asked[0][1:])


def test_the_result_is_passed_on_unchanged() -> None:
    tracker = Tracker(Tracking(), SPEC)
    result = World([still(200, 200, category="shirt")]).detect(0.0)
    tracked = tracker.update(result, 0.0, detected=True)
    for name in ("keypoints", "scores", "boxes", "box_scores"):
        np.testing.assert_array_equal(getattr(tracked, name), getattr(result, name))
    assert tracked.categories == ("shirt",)
    assert tracked.track_ids is not None
    assert tracked.track_ids.dtype == np.int64
    assert result.track_ids is None


def test_a_good_match_is_not_given_up_for_two_poor_ones() -> None:
    assert assign(np.array([[0.9, 0.31], [0.31, 0.0]])) == [(0, 0)]
    assert assign(np.zeros((2, 0))) == []
    assert sorted(assign(np.array([[0.5, 0.6], [0.1, 0.6]]))) == [(0, 0), (1, 1)]
