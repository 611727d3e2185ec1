"""What `edgepose info` begins for a detector without a spec: a spec that fits the file as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_models import HEIGHT, WIDTH, detector
from onnx import TensorProto, helper
from typer.testing import CliRunner

from edgepose.adapt_detector import adapt_detector
from edgepose.begin_detector_spec import begin_detector_spec
from edgepose.cli import app
from edgepose.detector_spec import DetectorSpec

CELLS = 8 * 4 + 4 * 2 + 2


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


FOUND = {"labels": zeros(1, 9, dtype=np.int64), "boxes": zeros(1, 9, 4), "scores": zeros(1, 9)}
OUTPUTS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "a grid's rows": ({"o": zeros(1, CELLS, 8)}, {"format": "yolox", "color": "bgr", "categories": 3}),
    "three anchors": ({"o": zeros(1, 3 * CELLS, 9)}, {"format": "yolov5", "scale": 1 / 255, "categories": 4}),
    "columns": ({"o": zeros(1, 7, CELLS)}, {"format": "yolov8", "categories": 3}),
    "few rows of six": ({"o": zeros(1, 30, 6)}, {"format": "end2end", "categories": 1}),
    "rows that tell their picture": ({"o": zeros(9, 7)}, {"format": "yolov7_end2end", "categories": 1}),
    "OpenVINO": ({"o": zeros(1, 1, 9, 7)}, {"format": "detection_output", "categories": 1}),
    "mmdeploy": ({"dets": zeros(1, 9, 5), "labels": FOUND["labels"]}, {"format": "mmdeploy", "categories": 1}),
    "RF-DETR": ({"dets": zeros(1, 9, 4), "labels": zeros(1, 9, 3)}, {"format": "rtdetr", "categories": 3}),
    "RT-DETR": ({"logits": zeros(1, 9, 3), "pred_boxes": zeros(1, 9, 4)}, {"format": "rtdetr", "resize": "stretch"}),
    "torchvision": ({name: value[0] for name, value in FOUND.items()}, {"format": "torchvision"}),
    "SSD": ({"scores": zeros(1, 9, 4), "boxes": zeros(1, 9, 4)}, {"format": "ssd", "categories": 3}),
    "EfficientNMS": (
        {
            "num_dets": zeros(1, 1, dtype=np.int32), "det_boxes": zeros(1, 9, 4), "det_scores": zeros(1, 9),
            "det_classes": zeros(1, 9, dtype=np.int32),
        },
        {"format": "efficient_nms"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_beginning_fits_its_file(name: str) -> None:
    outputs, expected = OUTPUTS[name]
    model = detector(outputs)
    spec = DetectorSpec.from_json(begin_detector_spec("theirs", model))
    values = {**vars(spec), "categories": spec.num_categories}
    assert {key: values[key] for key in expected} == expected
    assert (spec.name, spec.input_size) == ("theirs", (WIDTH, HEIGHT))
    adapt_detector(model, spec)


def test_inputs_beside_the_picture_and_names() -> None:
    sizes = {"orig_target_sizes": (TensorProto.INT64, [1, 2])}
    deployed = detector({**FOUND, "echo": zeros(1, 2)}, inputs=sizes)
    assert '"rtdetr_deployed"' in begin_detector_spec("d", deployed)
    masked = detector({**FOUND, "echo": zeros(1, 2)}, inputs={"mask": (TensorProto.FLOAT, [1, 2])})
    spec = DetectorSpec.from_json(begin_detector_spec("d", masked))
    assert spec.constants == {"mask": (1.0,)}
    named = detector({"o": zeros(1, 6, CELLS)})
    helper.set_model_props(named, {"names": "{0: 'shirt', 1: 'shoe'}"})
    assert DetectorSpec.from_json(begin_detector_spec("d", named)).category_names == ("shirt", "shoe")
    for damaged in ("{0: 'shirt'", "[1]", "{0: 'shirt', 2: 'shoe'}", "(" * 500):
        helper.set_model_props(named, {"names": damaged})
        assert DetectorSpec.from_json(begin_detector_spec("d", named)).num_categories == 2


@pytest.mark.parametrize(
    ("outputs", "image"),
    [
        ({"a": zeros(1, 27, 4, 8), "b": zeros(1, 27, 2, 4)}, None),  # raw maps
        ({"o": zeros(1, 45, 35)}, None),  # NanoDet's distributions
        ({"o": zeros(1, 1000)}, None),  # a classifier
        ({"o": zeros(1, 7, 84)}, [1, 3, "h", "w"]),
    ],
)
def test_nothing_to_begin_with(outputs: dict[str, np.ndarray], image: Any) -> None:
    assert begin_detector_spec("d", detector(outputs, image=image)) == ""


def test_info_shows_it(tmp_path: Path) -> None:
    onnx.save(detector({"o": zeros(1, 7, CELLS)}), str(tmp_path / "theirs.onnx"))
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "theirs.onnx")])
    assert shown.exit_code == 0
    assert "check color, scale, mean, std and resize" in " ".join(shown.output.split())
    begun = shown.output[shown.output.index("{") : shown.output.rindex("}") + 1]
    assert json.loads(begun)["format"] == "yolov8"
