"""DetectorSpec: what a format stands for, what contradicts itself, and how it travels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgepose import ModelError, ModelSpec, detector_spec
from edgepose.detector_spec import FORMATS, DetectorSpec


def make(format: str = "yolov8", **fields: Any) -> DetectorSpec:
    return DetectorSpec(
        **{"name": "d", "input_size": (64, 32), "category_names": ("a", "b"), "format": format, **fields}
    )


def documented() -> dict[str, list[str]]:
    """The cells of the table of formats, by format."""
    lines = [
        line for line in (detector_spec.__doc__ or "").splitlines() if line.startswith("| ") and "| seen" not in line
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in rows if row[0] in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
def test_the_table_says_what_a_format_stands_for(format: str) -> None:
    _, outputs, columns, boxes, activation, background, offset, nms_iou, _ = documented()[format]
    fields = {"outputs": {"rows": "x"}, "columns": ["box", "classes"]} if format == "custom" else {}
    spec = make(format, **fields)
    assert boxes.startswith(f"{spec.box_format}, {spec.box_units}")
    assert activation == spec.activation
    assert background == ("" if spec.background is None else str(spec.background))
    assert nms_iou == ("" if spec.nms_iou is None else str(spec.nms_iou))
    if format == "custom":
        return
    assert columns == ", ".join(spec.columns)
    assert offset == (str(spec.label_offset) if "label" in columns or "labels" in spec.outputs else "")
    assert ("transposed" in outputs) == bool(spec.transposed)
    assert all(str(stride) in boxes for stride in spec.strides)
    for role, name in spec.outputs.items():
        assert role in outputs
        assert all(part in outputs for part in name.split("|"))


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "custom"])
def test_json_and_canonical_form_come_back(format: str) -> None:
    spec = make(format, color="bgr", scale=0.5, mean=[1, 2, 3], std=[4, 5, 6], layout="nhwc", nms_iou=0.25)
    assert DetectorSpec.from_json(spec.to_json()) == spec
    canonical = spec.canonical()
    assert not spec.is_canonical
    assert canonical.is_canonical
    assert DetectorSpec.from_json(canonical.to_json()) == canonical
    assert (canonical.mean, canonical.std) == ((6, 4, 2), (12, 10, 8))
    assert (canonical.format, canonical.nms_iou) == ("end2end", 0.25)
    assert make(format).canonical().nms_iou == make(format).nms_iou  # what a format leaves to do is still to be done


def test_fields_win_over_the_format() -> None:
    spec = make("yolov8", transposed=[], nms_iou=1, outputs={"rows": "output1"}, box_format="xyxy")
    assert (spec.transposed, spec.nms_iou, spec.outputs, spec.box_format) == ((), 1, {"rows": "output1"}, "xyxy")
    assert DetectorSpec.from_json(spec.to_json()) == spec
    assert make("yolox", box_units="px").strides == ()  # decoded: there are no cells
    assert make("rtdetr", activation="none").activation == "none"
    assert make("efficient_nms", outputs={"count": "n"}).outputs == {
        "count": "n", "boxes": "det_boxes", "scores": "det_scores", "labels": "det_classes"
    }  # fmt: skip


def test_lists_and_tuples_make_equal_specs() -> None:
    assert make(category_names=["a", "b"], input_size=[64, 32]) == make()
    assert hash(make()) == hash(make(category_names=["a", "b"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "yolo"}, "format must be one of yolox, yolov5, "),
        ({"format": 8}, "format: expected a string, got 8"),
        ({"category_names": []}, "category_names is empty"),
        ({"category_names": ["a", "a"]}, "'a' twice"),
        ({"category_names": "person"}, "category_names: expected a list of strings"),
        ({"input_size": [64]}, "input_size must be two integers"),
        ({"input_size": [64.0, 32]}, "input_size: expected a list of integers"),
        ({"resize": "crop"}, "resize must be one of letterbox, letterbox_corner, stretch"),
        ({"sampling": "cubic"}, "sampling must be one of"),
        ({"color": "grey"}, "color must be one of rgb, bgr"),
        ({"scale": 0}, "scale must be positive"),
        ({"pad": 256}, "pad must be a level"),
        ({"pad": 114.5}, "pad: expected an integer"),
        ({"nms_iou": 0}, "nms_iou must be above 0"),
        ({"nms_iou": 45}, "nms_iou must be above 0"),
        ({"format": "end2end", "class_agnostic": True}, "leaves them as they come: give an nms_iou"),
        ({"min_score": 30}, r"min_score must be 0\.\.1"),
        ({"max_detections": 0}, r"max_detections must be 1\.\.1024"),
        ({"max_detections": 2000}, r"max_detections must be 1\.\.1024"),
        ({"box_format": "ltrb"}, "box_format must be one of xyxy, cxcywh, xywh, yxyx"),
        ({"box_units": "percent"}, "box_units must be one of px, normalized, grid"),
        ({"activation": "tanh"}, "activation must be one of none, sigmoid, softmax"),
        ({"outputs": ["a"]}, "outputs: expected an object of strings"),
        ({"outputs": {"masks": "a"}}, "'masks' is no role; there are rows, boxes"),
        ({"outputs": {"boxes": "a"}}, "outputs must name rows, or boxes and scores"),
        ({"format": "custom"}, "outputs must name rows, or boxes and scores .* got none"),
        ({"format": "custom", "outputs": {"rows": "a"}}, "columns must say what a row holds"),
        ({"columns": ["box", "scores"]}, "'scores' is not known; there are box, objectness"),
        ({"columns": ["box", "classes", "classes"]}, "columns hold 'classes' twice"),
        ({"columns": ["classes"]}, "columns must hold box"),
        ({"columns": ["box", "label"]}, "columns must hold either score or classes"),
        ({"columns": ["box", "score"]}, "the label must come from one of"),
        ({"columns": ["box", "classes", "label"]}, "the label must come from one of"),
        ({"columns": ["box", "rest", "classes"]}, "rest must come last"),
        ({"format": "ssd", "columns": ["box"]}, "this detector has none: leave them out"),
        ({"transposed": ["labels"]}, "transposed: 'labels' is none of the outputs rows, boxes"),
        ({"strides": [8]}, "strides belong to box_units grid"),
        ({"format": "yolox", "strides": [0]}, "box_units grid needs strides"),
        ({"format": "yolox", "box_format": "xyxy"}, "boxes in units of a grid are cxcywh"),
        ({"background": 3}, r"background must be an index 0\.\.2 or -1"),
        ({"format": "mmdeploy", "background": 0}, "background is one of the class scores"),
        ({"format": "mmdeploy", "activation": "softmax"}, "softmax goes over class scores"),
        ({"label_offset": 1}, "label_offset is of labels that the model gives"),
        ({"constants": {"size": 2}}, "constants: expected a list of numbers"),
        ({"constants": [1]}, "constants: expected an object of lists"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make(**fields)
    data = {"name": "d", "input_size": [64, 32], "category_names": ["a", "b"], "format": "yolov8", **fields}
    with pytest.raises(ModelError, match=f"^file.json: .*{message}"):
        DetectorSpec.from_json(json.dumps(data), source="file.json")


def test_unknown_and_missing_keys() -> None:
    with pytest.raises(ModelError, match=r"unknown keys \['classes'\]; a spec has \['activation', "):
        DetectorSpec.from_json('{"classes": []}')
    with pytest.raises(ModelError, match=r"keys \['category_names', 'format', 'input_size'\] are missing"):
        DetectorSpec.from_json('{"name": "d"}')


def test_specs_travel_in_the_file_and_kinds_do_not_mix(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    make().write_metadata(model)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert set(metadata) == {"edgepose_detector"}
    assert DetectorSpec.from_metadata(metadata, source="d.onnx") == make()
    with pytest.raises(ModelError, match=r"d\.onnx carries no edgepose spec"):
        ModelSpec.from_metadata(metadata, source="d.onnx")
    with pytest.raises(ModelError, match=r"d\.onnx carries no .*Detector\('d\.onnx', spec='spec\.json'\)") as error:
        DetectorSpec.from_metadata({}, source="d.onnx")
    example = str(error.value)[str(error.value).index("{") :]
    assert DetectorSpec.from_json(example).category_names == ("person",)  # the example in the message is a valid one
    (tmp_path / "spec.json").write_text(example)
    assert DetectorSpec.from_file(tmp_path / "spec.json").format == "yolov8"
