"""Predictor with a detector, several frames in a call, several models: with networks whose answer is known."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from painter import blobs, painter_spec, write_painter

from edgepose import Detector, DetectorSpec, EngineError, InputError, ModelError, Predictor

BOX = np.array([200.0, 100.0, 320.0, 260.0])
SECOND = np.array([180.0, 110.0, 350.0, 280.0])
CENTRES = np.array([[230.3, 130.6], [290.8, 150.2], [255.5, 231.9]])
FRAME = blobs((480, 360), CENTRES, sigma=12.5)
OTHER = np.ascontiguousarray(np.roll(FRAME, (20, -60), axis=(0, 1))[:, :440])  # another size, blobs elsewhere
DARK = np.zeros_like(FRAME)
CATEGORIES = ("warm", "cool", "blue")
SCALE = 0.2  # 480 x 360 px fit into the detector's 96 x 72 without a border


def write_detector(path: Path, boxes: np.ndarray, *, threshold: float = 0.5) -> Path:
    """Finds each of ``boxes`` (n, 4), frame px of a 480 x 360 frame, as category i; its score is the frame's greatest
    red (0), green (1) or blue (2)."""
    count = len(boxes)
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["peaks"], axes=[2, 3], keepdims=0),  # (N, 3)
        helper.make_node("Slice", ["peaks", "zero", "count", "one"], ["found"]),
        helper.make_node("Unsqueeze", ["found", "last"], ["scores"]),  # (N, n, 1)
        helper.make_node("Mul", ["scores", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "boxes"], ["corners"]),
        helper.make_node("Add", ["zeros", "labels"], ["numbers"]),
        helper.make_node("Concat", ["corners", "scores", "numbers"], ["rows"], axis=2),
    ]
    constants = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "count": np.array([count], np.int64),
        "last": np.array([2], np.int64),
        "nothing": np.array(0, np.float32),
        "boxes": np.asarray(boxes * SCALE, np.float32)[None],
        "labels": np.arange(count, dtype=np.float32)[None, :, None],
    }
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 72, 96])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", count, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    spec = DetectorSpec(
        name="colours",
        input_size=(96, 72),
        category_names=CATEGORIES,
        format="end2end",
        scale=1 / 255,
        min_score=threshold,
    )
    spec.write_metadata(model)
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two-stages")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return write_painter(folder / "painter.onnx", painter_spec())


@pytest.fixture(scope="module")
def detector(folder: Path) -> Path:
    return write_detector(folder / "detector.onnx", np.stack([BOX, SECOND]))


@pytest.fixture(scope="module")
def predictor(model: Path, detector: Path):
    with Predictor(model, detector=detector, max_batch=4) as opened:
        yield opened


def same(result, expected) -> None:
    np.testing.assert_array_equal(result.keypoints, expected.keypoints)
    np.testing.assert_array_equal(result.scores, expected.scores)
    np.testing.assert_array_equal(result.boxes, expected.boxes)


# One frame


def test_detected_boxes_give_what_given_ones_give(predictor: Predictor) -> None:
    result = predictor.predict(FRAME)
    assert len(result) == 2
    # Boxes go through float32 and the factor 0.2; seen: 1.5e-5 px.
    np.testing.assert_allclose(result.boxes[np.argsort(result.boxes[:, 2])], [BOX, SECOND], atol=1e-4)
    same(result, predictor.predict(FRAME, result.boxes))
    assert sorted(result.categories) == ["cool", "warm"]
    assert (np.diff(result.box_scores) <= 0).all()
    assert result.timings.detect > 0
    assert result.timings.total >= result.timings.detect + result.timings.network
    # A cell is 6.25 px; as in test_predictor.py.
    assert np.abs(result.keypoints - CENTRES).max() < 0.3


def test_nothing_found_is_an_empty_result(predictor: Predictor) -> None:
    result = predictor.predict(DARK)
    assert len(result) == 0
    assert result.categories == ()
    assert result.frame_size == (480, 360)
    assert result.box_scores.shape == (0,)


def test_given_boxes_are_not_detected(predictor: Predictor) -> None:
    result = predictor.predict(DARK, [BOX])
    assert len(result) == 1
    assert result.box_scores is None
    assert len(predictor.predict(FRAME, [])) == 0


def test_settings_of_a_detector_are_kept(model: Path, detector: Path) -> None:
    with Predictor(model, detector=Detector(detector, categories=["cool"])) as predictor:
        assert predictor.predict(FRAME).categories == ("cool",)
    with Predictor(model, detector=Detector(detector, max_boxes=1)) as predictor:
        assert len(predictor.predict(FRAME)) == 1
    with Predictor(model, detector=Detector(detector, min_score=1.0)) as predictor:
        assert len(predictor.predict(FRAME // 2)) == 0


def test_what_is_no_detector(model: Path, detector: Path) -> None:
    with pytest.raises(InputError, match="bundled name, a path or a Detector, got int"):
        Predictor(model, detector=3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="detector"):
        Predictor(model, detector=model)
    with pytest.raises(ModelError, match="detector"):
        Predictor(detector)
    used = Detector(detector)
    used.detect(FRAME)
    with pytest.raises(EngineError, match="open another one"):
        Predictor(model, detector=used)
    used.close()


def test_a_predictor_that_does_not_open_closes_its_detector(tmp_path: Path, detector: Path) -> None:
    opened = Detector(detector)
    with pytest.raises(ModelError):
        Predictor(tmp_path / "missing.onnx", detector=opened)
    with pytest.raises(EngineError, match="closed"):
        opened.detect(FRAME)


# Several frames


def test_frames_of_several_sizes_together_give_what_each_gives_alone(predictor: Predictor) -> None:
    frames = [FRAME, OTHER, DARK, FRAME[::-1]]
    boxes = [[BOX, BOX + 30], [SECOND], [], [BOX] * 5]
    for result, frame, own in zip(predictor.predict_batch(frames, boxes), frames, boxes, strict=True):
        same(result, predictor.predict(frame, own))
        assert result.frame_size == (frame.shape[1], frame.shape[0])


def test_given_and_detected_frames_mix(predictor: Predictor) -> None:
    frames, boxes = [OTHER, FRAME, DARK, FRAME], [None, [BOX], None, None]
    results = predictor.predict_batch(frames, boxes)
    for result, frame, own in zip(results, frames, boxes, strict=True):
        same(result, predictor.predict(frame, own))
    assert [result.box_scores is None for result in results] == [False, True, False, False]


def test_no_frames(predictor: Predictor) -> None:
    assert predictor.predict_batch([]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[BOX]]}, "boxes must be a list with one entry for each of the 2 frames"),
        ({"categories": [None]}, "categories must be a list with one entry"),
        ({"streams": [None] * 3}, "streams must be a list with one entry"),
        ({"boxes": [None, [BOX]], "categories": [["warm"], None]}, "leave them out where the detector finds"),
        ({"boxes": [[BOX], [BOX[:3]]]}, "shape"),
    ],
)
def test_calls_that_do_not_fit(predictor: Predictor, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predictor.submit([FRAME, OTHER], **changes)
    assert len(predictor.predict(FRAME)) == 2  # nothing is left behind


# Calls under way


def test_a_third_call_waits_for_the_first_and_loses_nothing(predictor: Predictor) -> None:
    calls = [predictor.submit([frame]) for frame in (FRAME, DARK, OTHER, FRAME, DARK)]
    assert [len(call.results()[0]) for call in calls] == [2, 0, 2, 2, 0]
    same(calls[2].results()[0], predictor.predict(OTHER))
    assert calls[0].results()[0] is calls[0].results()[0]


def test_forgotten_calls_leave_room(predictor: Predictor) -> None:
    for _ in range(5):
        predictor.submit([FRAME])
    gc.collect()
    assert len(predictor.predict(FRAME)) == 2


def test_staged_frames(predictor: Predictor, model: Path) -> None:
    staged = predictor.stage(FRAME)
    assert staged.size == (480, 360)
    same(predictor.submit([staged]).results()[0], predictor.predict(FRAME))
    with Predictor(model) as other, pytest.raises(InputError, match="another predictor"):
        other.submit([staged], [[BOX]])
    with pytest.raises(InputError, match="uint8"):
        predictor.stage(np.zeros((4, 4, 3)))


def test_calls_from_several_threads(predictor: Predictor) -> None:
    expected = predictor.predict(OTHER)
    failures: list[Exception] = []

    def job() -> None:
        try:
            for _ in range(10):
                same(predictor.submit([OTHER, DARK]).results()[0], expected)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=job) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_closed(model: Path, detector: Path) -> None:
    predictor = Predictor(model, detector=detector)
    assert "colours" in repr(predictor)
    assert predictor.detector_spec.name == "colours"
    predictor.close()
    for call in (lambda: predictor.submit([FRAME]), lambda: predictor.stage(FRAME)):
        with pytest.raises(EngineError, match="closed"):
            call()


# Categories and several models


def test_the_label_chooses_the_channels(tmp_path: Path, detector: Path) -> None:
    path = write_painter(tmp_path / "m.onnx", painter_spec(categories={"warm": (0, 2), "blue": (2, 3)}))
    with Predictor(path, detector=detector) as predictor:
        result = predictor.predict(FRAME)
        warm, cool = (result.categories.index(name) for name in ("warm", "cool"))
        assert (result.scores[warm] > 0.5).tolist() == [True, True, False]
        assert (result.scores[cool] == 0).all()  # the model has no such category: the box stays, without landmarks
        same(result[warm], predictor.predict(FRAME, result.boxes[[warm]], categories=["warm"]))
        again = predictor.predict(FRAME, result.boxes, categories=result.categories)  # as a tracker asks
        np.testing.assert_array_equal(again.scores, result.scores)
        np.testing.assert_array_equal(again.keypoints[again.scores > 0], result.keypoints[again.scores > 0])
        with pytest.raises(InputError, match="no category 'hat'; it has warm, blue"):
            predictor.predict(FRAME, [BOX], categories=["hat"])
        objects = result.to_dict()["objects"]
        assert [len(item["keypoints"]) for item in objects] == [{"warm": 2, "cool": 0}[c] for c in result.categories]


def test_a_model_for_each_category(tmp_path: Path, detector: Path) -> None:
    spec = replace(painter_spec("msra"), keypoint_names=("r", "g", "b"))
    first = write_painter(tmp_path / "first.onnx", painter_spec())
    second = write_painter(tmp_path / "second.onnx", spec)
    with Predictor({"warm": first, "cool": second}, detector=detector) as predictor, Predictor(second) as alone:
        assert predictor.spec.num_keypoints == 6
        result = predictor.predict(FRAME)
        cool = result.categories.index("cool")
        begin, end = predictor.spec.categories["cool"]
        np.testing.assert_array_equal(
            result.keypoints[cool, begin:end], alone.predict(FRAME, result.boxes[[cool]]).keypoints[0]
        )
        assert (np.delete(result.scores[cool], range(begin, end)) == 0).all()
        same(predictor.predict(FRAME, result.boxes, categories=result.categories), result)
        with pytest.raises(InputError, match="a model for each category: pass categories"):
            predictor.predict(FRAME, [BOX])


def test_mappings_that_do_not_fit(model: Path) -> None:
    for arguments, message in (
        (({},), "empty"),
        (({"warm": 3},), "must be a bundled name or a path"),
        (({"warm": model}, {"cool": model}), "category 'cool'"),
        (({"warm": model}, model), "must be one too"),
        ((model, {"warm": model}), "model is a single one"),
    ):
        with pytest.raises(InputError, match=message):
            Predictor(arguments[0], spec=arguments[1] if len(arguments) > 1 else None)  # type: ignore[arg-type]
