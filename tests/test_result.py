"""PoseResult: its promises, its other forms, and its drawing."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from painter import painter_spec

from edgepose import InputError, MissingDependencyError, PoseResult, Timings
from edgepose.draw import draw_result

SPEC = painter_spec()


def make(count: int = 2, **changes) -> PoseResult:
    rng = np.random.default_rng(0)
    values = {
        "keypoints": rng.uniform(20, 90, (count, 3, 2)),
        "scores": rng.uniform(0.5, 1, (count, 3)),
        "boxes": np.tile([10.0, 20.0, 100.0, 110.0], (count, 1)),
        "spec": SPEC,
        "frame_size": (160, 120),
        "timings": Timings(1, 2, 3, 7),
    }
    return PoseResult(**{**values, **changes})


def frame(value: int = 128) -> np.ndarray:
    return np.full((120, 160, 3), value, np.uint8)


def test_arrays_are_read_only_float32_copies() -> None:
    scores = np.ones((2, 3), np.float32)
    result = make(scores=scores)
    scores[:] = 0
    assert (result.scores == 1).all()
    for name in ("keypoints", "scores", "boxes"):
        assert getattr(result, name).dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            getattr(result, name)[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.scores = scores


@pytest.mark.parametrize(
    "change", [{"scores": np.zeros((2, 4))}, {"keypoints": np.zeros((1, 3, 2))}, {"boxes": np.zeros((2, 5))}]
)
def test_shapes_must_agree(change: dict) -> None:
    with pytest.raises(InputError, match="must have the shape"):
        make(**change)


def test_empty_result_does_everything() -> None:
    result = PoseResult.empty(SPEC, (160, 120))
    assert len(result) == 0
    assert list(result) == []
    assert len(result[[]]) == len(result[:]) == len(result[result.scores.mean(axis=1) > 0.5]) == 0
    assert json.loads(result.to_json())["objects"] == []
    assert result.to_coco() == []
    np.testing.assert_array_equal(result.draw(frame()), frame())


def test_indexing_gives_results() -> None:
    result = make(4)
    assert [len(r) for r in (result[1], result[-1], result[1:3], result[[0, 3]])] == [1, 1, 2, 2]
    np.testing.assert_array_equal(result[-1].keypoints, result.keypoints[3:])
    mask = np.array([True, False, True, False])
    np.testing.assert_array_equal(result[mask].scores, result.scores[::2])
    assert [part.scores.tolist() for part in result] == [[row] for row in result.scores.tolist()]
    assert result[0].timings == result.timings
    for index in (4, -5):
        with pytest.raises(IndexError):
            result[index]


def test_numpy_integers_index_as_integers_and_bools_do_not() -> None:
    result = make(4)
    for index in (np.int64(2), np.uint8(2), np.array(2)):
        np.testing.assert_array_equal(result[index].keypoints, result.keypoints[2:3])
    for index in (True, np.True_, np.array(False), 1.0, "1", None):
        with pytest.raises(InputError, match="indexed by a whole number"):
            result[index]
    with pytest.raises(IndexError):
        result[np.array(4)]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_copies_are_read_only_too(duplicate) -> None:
    result = make()
    other = duplicate(result)
    for name in ("keypoints", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(other, name), getattr(result, name))
        assert not getattr(other, name).flags.writeable
    assert (other.spec, other.frame_size, other.timings) == (result.spec, result.frame_size, result.timings)


def test_json() -> None:
    result = make()
    data = json.loads(result.to_json())
    assert data["schema"] == 1
    assert data["model"] == SPEC.name
    assert data["frame_size"] == [160, 120]
    assert len(data["objects"]) == 2
    first = data["objects"][0]
    assert first["box"] == [10, 20, 100, 110]
    assert list(first["keypoints"]) == ["red", "green", "blue"]
    for i, point in enumerate(first["keypoints"].values()):
        # Written with three and four decimals.
        np.testing.assert_allclose([point["x"], point["y"]], result.keypoints[0, i], atol=6e-4)
        np.testing.assert_allclose(point["score"], result.scores[0, i], atol=6e-5)
    np.testing.assert_allclose(first["score"], result.scores[0].mean(), atol=6e-5)


def detected(n: int = 3) -> PoseResult:
    return replace(
        make(n),
        categories=("shirt", "trousers", "shirt")[:n],
        box_scores=np.linspace(0.9, 0.5, n),
        track_ids=np.arange(n) + 7,
    )


def test_what_detector_and_tracker_know_is_kept() -> None:
    result = detected()
    assert result.box_scores.dtype == np.float32
    assert result.track_ids.dtype == np.int64
    assert not result.box_scores.flags.writeable
    assert not result.track_ids.flags.writeable
    part = result[[2, 0]]
    np.testing.assert_array_equal(part.track_ids, [9, 7])
    np.testing.assert_array_equal(part.box_scores, result.box_scores[[2, 0]])
    assert part.categories == ("shirt", "shirt")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(result)).track_ids, result.track_ids)
    first = json.loads(result.to_json())["objects"][1]
    assert (first["category"], first["track_id"], first["box_score"]) == ("trousers", 8, 0.7)
    assert len(first["keypoints"]) == 3  # the model has one kind of object, whatever the detector calls it
    assert "track_id" not in json.loads(make(1).to_json())["objects"][0]
    for wrong in ({"track_ids": np.arange(2)}, {"box_scores": np.zeros((3, 1))}, {"categories": ("shirt",)}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(result, **wrong)


def test_category_that_the_model_lacks_has_no_landmarks() -> None:
    spec = replace(SPEC, categories={"warm": (0, 1), "cool": (1, 3)}, flip_indices=(0, 2, 1))
    result = replace(make(3), spec=spec, categories=("cool", "hat", "warm"))
    objects = result.to_dict()["objects"]
    assert [list(item["keypoints"]) for item in objects] == [["green", "blue"], [], ["red"]]
    assert objects[1]["score"] == 0
    assert [len(entry["keypoints"]) for entry in result.to_coco()] == [6, 0, 3]


def test_titles_are_drawn_above_their_boxes_and_inside_the_frame() -> None:
    frame = np.full((120, 160, 3), 128, np.uint8)
    for boxes in ([[30, 40, 90, 100]], [[-50, -60, 400, 300]], [[150, 110, 170, 140]], [[1e6, 1e6, 2e6, 2e6]]):
        plain = replace(make(1), boxes=boxes, scores=np.zeros((1, 3)))
        titled = replace(plain, categories=("shirt",), track_ids=[3], box_scores=[0.9])
        changed = (titled.draw(frame) != plain.draw(frame)).any(axis=2)
        assert changed.sum() > 100
        if boxes[0][0] == 30:
            rows = np.flatnonzero(changed.any(axis=1))
            assert 20 <= rows[0] < rows[-1] < 42  # above the box, whose line is 1 px wide


def test_json_is_valid_whatever_the_values() -> None:
    scores = np.array([[np.nan, np.inf, 0.5]])
    text = make(1, scores=scores).to_json()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    keypoints = json.loads(text, parse_constant=refuse)["objects"][0]["keypoints"]
    assert [point["score"] for point in keypoints.values()] == [None, None, 0.5]


def test_coco() -> None:
    result = make()
    entries = result.to_coco(image_id=7, category_id=3)
    assert len(entries) == 2
    assert (entries[0]["image_id"], entries[0]["category_id"]) == (7, 3)
    assert entries[0]["bbox"] == [10, 20, 90, 90]
    expected = np.concatenate([result.keypoints[0], result.scores[0][:, None]], axis=1).ravel()
    np.testing.assert_allclose(entries[0]["keypoints"], expected, atol=6e-5)  # four decimals
    json.dumps(entries, allow_nan=False)


def test_numpy_integers_are_written_as_json() -> None:
    result = make(1, frame_size=(np.int64(160), np.int32(120)))
    assert json.loads(result.to_json())["frame_size"] == [160, 120]
    (entry,) = json.loads(json.dumps(result.to_coco(image_id=np.int64(3), category_id=np.uint8(2))))
    assert (entry["image_id"], entry["category_id"]) == (3, 2)
    assert result.to_coco(image_id="shirt.jpg")[0]["image_id"] == "shirt.jpg"
    for ids in ({"image_id": 1.5}, {"category_id": None}, {"image_id": True}):
        with pytest.raises(InputError, match="whole numbers"):
            result.to_coco(**ids)


def test_supervision_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        make().to_supervision()


@pytest.mark.parametrize("field", ["confidence", "keypoint_confidence"])
def test_supervision_by_either_field_name(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    key_points = dataclasses.make_dataclass("KeyPoints", ["xy", field])
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(KeyPoints=key_points))
    result = make()
    converted = result.to_supervision()
    np.testing.assert_array_equal(converted.xy, result.keypoints)
    np.testing.assert_array_equal(getattr(converted, field), result.scores)
    converted.xy[:] = 0  # theirs, not ours


def test_supervision_itself() -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    converted = make().to_supervision()
    assert isinstance(converted, supervision.KeyPoints)
    assert len(converted) == 2


# Drawing


def one_point(x: float, y: float, score: float = 1.0, **changes) -> PoseResult:
    keypoints = np.array([[[x, y], [-500, -500], [-500, -500]]])
    return make(1, keypoints=keypoints, scores=np.array([[score, 0, 0]]), **changes)


@pytest.mark.parametrize("background", [0, 255])
def test_points_have_the_specs_colours_in_bgr(background: int) -> None:
    picture = one_point(70, 60).draw(frame(background), labels=False)
    assert picture[60, 70].tolist() == [0, 0, 255]  # red, in BGR
    ring = picture[60, 74:78].max(axis=1)
    assert ring.min() < 100  # a dark edge on white cloth and on black; it is 1.5 px wide, its pixels are blended (74)


def test_drawing_leaves_the_frame_alone() -> None:
    picture = frame()
    kept = picture.copy()
    drawn = make().draw(picture)
    np.testing.assert_array_equal(picture, kept)
    assert drawn is not picture
    assert not np.shares_memory(drawn, picture)
    assert (drawn != picture).any()


def test_low_scores_and_their_lines_are_left_out() -> None:
    result = make(1, scores=np.array([[0.9, 0.1, 0.9]]))
    hidden = result.draw(frame(), min_score=0.2, boxes=False, labels=False)
    x, y = np.rint(result.keypoints[0, 1]).astype(int)
    assert hidden[y, x].tolist() != [0, 255, 0]
    shown = result.draw(frame(), min_score=0.05, boxes=False, labels=False)
    assert shown[y, x].tolist() == [0, 255, 0]
    np.testing.assert_array_equal(result.draw(frame(), min_score=2, boxes=False), frame())


def test_boxes_and_labels_can_be_switched() -> None:
    result = one_point(70, 60)
    bare = result.draw(frame(), boxes=False, labels=False)
    assert (result.draw(frame(), boxes=True, labels=False) != bare).any()
    assert (result.draw(frame(), boxes=False, labels=True) != bare).any()
    np.testing.assert_array_equal(result.draw(frame(), boxes=False), result.draw(frame(), boxes=False, labels=True))
    two = make(2)
    np.testing.assert_array_equal(two.draw(frame()), two.draw(frame(), labels=False))


def test_lines_grow_with_the_frame() -> None:
    large = one_point(900, 500, frame_size=(1920, 1080)).draw(
        np.zeros((1080, 1920, 3), np.uint8), labels=False, boxes=False
    )
    small = one_point(70, 60).draw(frame(0), labels=False, boxes=False)
    red = [int((picture == [0, 0, 255]).all(axis=2).sum()) for picture in (small, large)]
    assert red[1] > 4 * red[0]


@pytest.mark.parametrize("shape", [(120, 160), (120, 160, 1), (120, 160, 4)])
def test_other_frames_come_back_as_bgr(shape: tuple[int, ...]) -> None:
    assert make().draw(np.zeros(shape, np.uint8)).shape == (120, 160, 3)


def test_another_frames_size_is_an_error() -> None:
    with pytest.raises(InputError, match="160 x 120 px, this one has 161 x 120"):
        draw_result(np.zeros((120, 161, 3), np.uint8), make(), min_score=0.2)


def test_points_far_away_and_not_finite_are_survived() -> None:
    keypoints = np.array([[[1e9, 5], [np.nan, 5], [40, np.inf]]])
    result = make(1, keypoints=keypoints, scores=np.ones((1, 3)), boxes=np.array([[-1e9, -1e9, 1e9, 1e9]]))
    assert result.draw(frame()).shape == (120, 160, 3)


def test_a_spec_without_colours_gets_different_ones() -> None:
    result = make(1, spec=painter_spec(colors=()), keypoints=np.array([[[30, 30], [80, 60], [130, 90]]]))
    picture = result.draw(frame(), labels=False, boxes=False)
    colors = {tuple(picture[y, x].tolist()) for x, y in ((30, 30), (80, 60), (130, 90))}
    assert len(colors) == 3


def test_the_command_line_draws_from_the_same_score_as_the_library() -> None:
    """cli.py repeats the number so that `edgepose --help` need not load NumPy."""
    from edgepose import cli, result

    assert inspect.signature(cli.predict).parameters["min_score"].default == result.MIN_SCORE


def test_categories_name_the_landmarks_that_belong_to_a_box() -> None:
    spec = painter_spec(categories={"warm": (0, 2), "cool": (2, 3)})
    keypoints = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    scores = np.array([[0.5, 0.7, 0], [0, 0, 0.9]])
    boxes = np.array([[0, 0, 9, 9], [1, 1, 5, 5]])
    result = PoseResult(keypoints, scores, boxes, spec, (20, 20), categories=("warm", "cool"))
    warm, cool = result.to_dict()["objects"]
    assert (warm["category"], list(warm["keypoints"]), warm["score"]) == ("warm", ["red", "green"], 0.6)
    assert (cool["category"], list(cool["keypoints"]), cool["score"]) == ("cool", ["blue"], 0.9)
    assert [len(row["keypoints"]) for row in result.to_coco()] == [6, 3]
    assert result[1].categories == result[[False, True]].categories == result[1:].categories == ("cool",)
    assert pickle.loads(pickle.dumps(result)).categories == ("warm", "cool")
    with pytest.raises(InputError, match="categories must be 2 names"):
        PoseResult(keypoints, scores, boxes, spec, (20, 20), categories=("warm",))
