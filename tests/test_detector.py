"""Detector and Detections: from a frame to boxes in its pixels, with a network that answers every picture alike."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import typer
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgepose import Detections, Detector, DetectorSpec, EngineError, InputError, MissingDependencyError, ModelError
from edgepose.detect_cli import register
from edgepose.media import VideoReader, VideoWriter
from edgepose.models import bundled_detectors, find_detector, find_model

NAMES = ("shirt", "skirt", "", "shoe")
# Of a 64 x 32 px input: two shirts, one repeated, a skirt, something that has no name, and a label that is none.
ROWS = [
    [8, 8, 16, 16, 0.5, 0],
    [32, 8, 48, 24, 0.75, 0],
    [33, 8, 48, 24, 0.625, 0],
    [20, 0, 30, 10, 0.875, 1],
    [20, 0, 30, 10, 1, 2],
    [20, 0, 30, 10, 1, 7],
    [20, 0, 30, 10, 0.125, 3],
]
SPEC = DetectorSpec("test-detector", (64, 32), NAMES, "end2end", nms_iou=0.5)
FRAME = np.full((64, 128, 3), 200, np.uint8)  # its pixels are half a pixel of the input wide


def write(path: Path, spec: DetectorSpec | None = SPEC, rows: Any = ROWS) -> Path:
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Shape", ["images"], ["size"]),
        helper.make_node("Slice", ["size", "begin", "end"], ["count"]),
        helper.make_node("Concat", ["count", "ones"], ["full"], axis=0),
        helper.make_node("Expand", ["rows", "full"], ["repeated"]),
        helper.make_node("Add", ["repeated", "nothing"], ["output0"]),
    ]
    constants = {
        "zero": np.float32(0), "begin": np.array([0]), "end": np.array([1]), "ones": np.array([1, 1]),
        "rows": np.array([rows], np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 32, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["n", len(rows), 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if spec:
        spec.write_metadata(model)
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "test-detector.onnx")


def test_boxes_are_in_the_frames_pixels_best_first(model: Path) -> None:
    with Detector(model) as detector:
        found = detector.detect(FRAME)
    np.testing.assert_array_equal(found.boxes, [[40, 0, 60, 20], [64, 16, 96, 48], [16, 16, 32, 32]])
    np.testing.assert_array_equal(found.scores, np.array([0.875, 0.75, 0.5], np.float32))
    np.testing.assert_array_equal(found.labels, [1, 0, 0])
    assert found.category_names == ("skirt", "shirt", "shirt")
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int32)
    assert found.frame_size == (128, 64)
    assert found.spec == SPEC.canonical()
    assert repr(found) == "<Detections of 'test-detector': skirt 0.88, shirt 0.75, shirt 0.50>"


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({"min_score": 0.6}, [0.875, 0.75]),
        ({"min_score": 0.1}, [0.875, 0.75, 0.5, 0.125]),
        ({"nms_iou": 1}, [0.875, 0.75, 0.625, 0.5]),
        ({"nms_iou": 0.01, "class_agnostic": True, "min_score": 0.1}, [0.875, 0.75, 0.5]),
        ({"categories": ["shirt"]}, [0.75, 0.5]),
        ({"categories": ("shirt", "skirt"), "max_boxes": 1}, [0.875]),
        ({"categories": ["shoe"]}, []),
    ],
)
def test_options_win_over_the_spec(model: Path, options: dict[str, Any], scores: list[float]) -> None:
    with Detector(model, **options) as detector:
        np.testing.assert_array_equal(detector.detect(FRAME).scores, np.array(scores, np.float32))


def test_scores_that_are_logits_are_refused(tmp_path: Path) -> None:
    model = write(tmp_path / "logits.onnx", rows=[[8, 8, 16, 16, 4.5, 0]])
    with Detector(model) as detector, pytest.raises(ModelError, match=r'a score of 4\.5.*"activation": "sigmoid"'):
        detector.detect(FRAME)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["shirts"]}, r"no category 'shirts'\. Did you mean 'shirt'.*It has shirt, skirt, shoe"),
        ({"categories": [""]}, "no category ''"),
        ({"categories": "shirt"}, "categories must be a list of names"),
        ({"categories": []}, "categories must be a list of names, at least one"),
        ({"min_score": 50}, "min_score must be a number from 0 to 1, got 50"),
        ({"min_score": "high"}, "min_score must be a number"),
        ({"nms_iou": 0}, "nms_iou must be a number above 0"),
        ({"nms_iou": True}, "nms_iou must be a number above 0"),
        ({"class_agnostic": 1}, "class_agnostic must be True, False or None, got 1"),
        ({"max_boxes": 0}, "max_boxes must be a whole number from 1 to 1024"),
        ({"max_boxes": 5000}, "max_boxes must be a whole number from 1 to 1024"),
        ({"threads": 1.5}, "threads must be a whole number of at least 1"),
        ({"device": "gpu"}, "device must be auto"),
    ],
)
def test_unusable_options(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Detector(model, **options)


def test_frames_of_several_sizes_in_one_batch(model: Path) -> None:
    frames = [FRAME, FRAME[::2, ::2], np.zeros((32, 32), np.uint8)]
    with Detector(model, categories=["skirt"]) as detector:
        found = detector.detect_batch(frames)
        assert detector.detect_batch([]) == []
        assert [len(result) for result in detector.detect_batch([FRAME] * 20)] == [1] * 20  # more than one run takes
        with pytest.raises(InputError, match="streams must hold one for each of 1 frames"):
            detector.detect_batch([FRAME], streams=[None, None])
        with pytest.raises(InputError, match="frame must be a NumPy array"):
            detector.detect(None)
    assert [result.frame_size for result in found] == [(128, 64), (64, 32), (32, 32)]
    boxes = [result.boxes.tolist() for result in found]
    # The square lies in the middle of the input, 16 px from its left: of x 20..30 it shows 4..14.
    assert boxes == [[[40, 0, 60, 20]], [[20, 0, 30, 10]], [[4, 0, 14, 10]]]


def test_closed_and_released(model: Path) -> None:
    detector = Detector(model)
    assert repr(detector) == "<Detector 'test-detector' (onnxruntime, cpu)>"
    assert detector.engine_name == "onnxruntime (cpu)"
    detector.detect(FRAME)
    with pytest.raises(EngineError, match="in use already"):
        detector.release()
    detector.close()
    detector.close()
    assert "closed" in repr(detector)
    for use in (lambda: detector.detect(FRAME), detector.__enter__, detector.release):
        with pytest.raises(EngineError, match="is closed: open a new Detector"):
            use()
    given = Detector(model, min_score=0.7).release()
    assert given.settings.min_score == 0.7
    assert given.settings.keep == (True, True, False, True)
    with Detector(given.engine) as again:  # an open engine is taken over
        assert len(again.detect(FRAME)) == 3
    with pytest.raises(EngineError):
        given.engine.run(np.zeros((1, 3, 32, 64), np.float32))


def test_a_spec_file_and_a_model_without_one(tmp_path: Path) -> None:
    path = write(tmp_path / "bare.onnx", None)
    with pytest.raises(ModelError, match=r"carries no edgepose detector spec.*spec='spec\.json'"):
        Detector(path)
    (tmp_path / "spec.json").write_text(SPEC.to_json())
    with Detector(path, spec=tmp_path / "spec.json") as detector:
        assert len(detector.detect(FRAME)) == 3
    with Detector(str(path), spec=SPEC) as detector:
        assert detector.spec == SPEC.canonical()


# Names and files --------------------------------------------------------------------------------------


def test_names_of_detectors(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr("edgepose.models.bundled_detectors", lambda: {"garment-detector": model})
    assert find_detector("garment-detector") == model
    assert find_detector(model) == model
    with pytest.raises(ModelError, match=r"no bundled detector 'garment-dector'\. Did you mean 'garment-detector'"):
        Detector("garment-dector")
    with pytest.raises(ModelError, match=r"it finds landmarks: Predictor\('garment-landmarks', detector=\.\.\.\)"):
        find_detector("garment-landmarks")
    with pytest.raises(ModelError, match=r"it is a detector: Predictor\(model, detector='garment-detector'\)"):
        find_model("garment-detector")
    with pytest.raises(ModelError, match=r"there is no detector file x\.onnx"):
        Detector("x.onnx")
    with pytest.raises(ModelError, match="Export it first: with the tool that trained it"):
        Detector("best.pt")
    with pytest.raises(InputError, match="model must be a bundled name, a path, or an engine"):
        Detector(3)  # type: ignore[arg-type]


def test_bundled_detectors_carry_complete_specs() -> None:
    if not bundled_detectors():
        pytest.skip("no detector is in edgepose/models/detectors")
    for name, path in bundled_detectors().items():
        with Detector(name) as detector:
            assert detector.spec.name == name
            assert detector.spec.license
            assert detector.spec.metrics
            assert isinstance(detector.detect(np.zeros((48, 64, 3), np.uint8)), Detections)
        assert path.stat().st_size <= 8e6


# Detections -------------------------------------------------------------------------------------------


def make(count: int = 3) -> Detections:
    boxes = np.array([[40, 0, 60, 20], [64, 16, 96, 48], [16, 16, 32, 32]], np.float32)[:count]
    return Detections(boxes, np.array([0.87503, 0.75, 0.5])[:count], np.array([1, 0, 0])[:count], SPEC, (128, 64))


def test_the_arrays_are_read_only_copies() -> None:
    boxes = np.zeros((1, 4), np.float32)
    found = Detections(boxes, np.zeros(1), np.zeros(1), SPEC, (128, 64))
    boxes[:] = 1
    assert not found.boxes.any()
    for twin in (found, copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        with pytest.raises(ValueError, match="read-only"):
            twin.boxes[0] = 1


def test_indexing() -> None:
    found = make()
    assert found[0].category_names == ("skirt",)
    assert found[-1].boxes.tolist() == [[16, 16, 32, 32]]
    assert len(found[1:]) == 2
    assert found[found.scores > 0.6].scores.tolist() == found.scores[:2].tolist()
    assert [len(one) for one in found] == [1, 1, 1]
    assert len(found[[]]) == 0
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(InputError, match="whole number"):
        found["shirt"]
    with pytest.raises(InputError, match="whole number"):
        found[True]


def test_shapes_and_labels_are_checked() -> None:
    with pytest.raises(InputError, match=r"scores must have the shape \(1,\), got \(2,\)"):
        Detections(np.zeros((1, 4)), np.zeros(2), np.zeros(1), SPEC, (9, 9))
    with pytest.raises(InputError, match="labels must be numbers of the 4 categories"):
        Detections(np.zeros((1, 4)), np.zeros(1), np.array([4]), SPEC, (9, 9))


def test_to_dict_is_json() -> None:
    found = make(2)
    assert json.loads(found.to_json()) == found.to_dict()
    assert found.to_dict() == {
        "schema": 1,
        "detector": "test-detector",
        "frame_size": [128, 64],
        "objects": [
            {"category": "skirt", "box": [40, 0, 60, 20], "score": 0.875},
            {"category": "shirt", "box": [64, 16, 96, 48], "score": 0.75},
        ],
    }
    assert Detections.empty(SPEC, (128, 64)).to_dict()["objects"] == []


def test_to_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        make().to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    converted = make().to_supervision()
    np.testing.assert_array_equal(converted.xyxy, make().boxes)
    np.testing.assert_array_equal(converted.class_id, [1, 0, 0])
    np.testing.assert_array_equal(converted.confidence, make().scores)
    assert converted.data["class_name"].tolist() == ["skirt", "shirt", "shirt"]


def test_to_the_real_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    for found in (make(), Detections.empty(SPEC, (128, 64))):
        converted = found.to_supervision()
        assert isinstance(converted, supervision.Detections)
        assert len(converted) == len(found)


def test_drawing() -> None:
    picture = make().draw(FRAME)
    assert (picture[16:48, 61:68] < 100).any()  # the left side of the second box, with its dark edge
    assert (FRAME == 200).all()
    np.testing.assert_array_equal(Detections.empty(SPEC, (128, 64)).draw(FRAME), FRAME)
    np.testing.assert_array_equal(make().draw(FRAME, min_score=0.9), FRAME)
    with pytest.raises(InputError, match="belongs to a frame of 128 x 64"):
        make().draw(FRAME[:32])


# The command ------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["detect", *map(str, arguments)])


def test_detect_on_a_photo(model: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), FRAME)
    options = ("--detector", model, "--category", "shirt", "--min-score", 0.6)
    result = command(tmp_path / "photo.png", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "1 file with 1 object; boxes in" in result.output
    assert (cv2.imread(str(tmp_path / "out/photo.png")) != FRAME).any()
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert written["model"] == "test-detector"
    assert written["predictions"][0]["objects"] == [{"category": "shirt", "box": [64, 16, 96, 48], "score": 0.75}]


def test_detect_on_a_video_and_on_what_is_no_picture(model: Path, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for _ in range(3):
            writer.write(FRAME)
    result = command(tmp_path / "clip.mp4", "-o", tmp_path / "out.mp4", "--detector", model)
    assert result.exit_code == 0, result.output
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert sum(1 for _ in reader) == 3
    entries = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [entry["frame"] for entry in entries] == [0, 1, 2]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/bad.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "photos/good.png"), FRAME)
    result = command(tmp_path / "photos", "-o", tmp_path / "folder", "--detector", model)
    assert result.exit_code == 1
    assert "bad.png" in result.output
    assert (tmp_path / "folder/good.png").is_file()


# A real detector --------------------------------------------------------------------------------------


def by_the_book(model: Path, frame: NDArray[np.uint8], min_score: float, nms_iou: float) -> NDArray[np.float64]:
    """YOLOX's own way through its raw output, as its ONNX demo goes it; rows x1, y1, x2, y2, score."""
    ratio = min(192 / frame.shape[0], 192 / frame.shape[1])
    size = (int(frame.shape[1] * ratio), int(frame.shape[0] * ratio))
    padded = np.full((192, 192, 3), 114, np.uint8)
    padded[: size[1], : size[0]] = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    image = padded.transpose(2, 0, 1)[None].astype(np.float32)
    raw = np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0], np.float64)[0]
    grids, strides = [], []
    for stride in (8, 16, 32):
        side = 192 // stride
        x, y = np.meshgrid(np.arange(side), np.arange(side))
        grids.append(np.stack((x, y), 2).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    grid, stride = np.concatenate(grids), np.concatenate(strides)
    centre, sides = (raw[:, :2] + grid) * stride, np.exp(raw[:, 2:4]) * stride
    boxes, scores = np.hstack([centre - sides / 2, centre + sides / 2]) / ratio, raw[:, 4] * raw[:, 5]
    order, kept = [i for i in np.argsort(-scores) if scores[i] >= min_score], []
    for i in order:
        if all(iou(boxes[i], boxes[j]) <= nms_iou for j in kept):
            kept.append(i)
    return np.hstack([boxes, scores[:, None]])[kept]


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


@pytest.fixture(scope="module")
def data(repository: Path) -> Path:
    folder = repository.parent / "shared" / "data"
    if not (folder / "models/person_yolox_nano_192.onnx").is_file() or not (folder / "video/pose_squats.mp4").is_file():
        pytest.skip("needs ../shared/data: models/person_yolox_nano_192.onnx and video/pose_squats.mp4")
    return folder


def test_a_real_person_detector_as_it_is(data: Path, repository: Path) -> None:
    model, spec = data / "models/person_yolox_nano_192.onnx", repository / "tests/data/specs/person_yolox_nano.json"
    with VideoReader(data / "video/pose_squats.mp4") as reader, Detector(model, spec=spec, min_score=0.5) as detector:
        for number, frame in enumerate(reader):
            if number % 8:
                continue
            found = detector.detect(frame)
            expected = by_the_book(model, frame, 0.5, 0.45)
            assert len(found) == len(expected) == 1
            assert found.category_names == ("person",)
            # cv2.resize rounds its weights, so its picture differs by up to one level in some pixels. Worst seen: 0.33
            # px of a frame of 720 x 1280 (of which an input px spans 6.7), and 0.00013 in the score.
            np.testing.assert_allclose(found.boxes, expected[:, :4], atol=0.7)
            np.testing.assert_allclose(found.scores, expected[:, 4], atol=5e-4)
