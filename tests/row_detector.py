"""A tiny detector whose answer is known: row q is a fixed box, its score the red of the picture's pixel (q, 0)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepose.detector_spec import DetectorSpec

BOXES = np.array([[4, 4, 40, 50], [50, 60, 90, 120], [5.5, 70, 35, 100], [60, 6, 80, 40]], np.float32)


def write_rows(path: Path, spec: DetectorSpec) -> Path:
    """Write it: images (N, 3, h, w) -> rows (N, 4, 6): box, score, label 0; ``end2end``, and so already canonical."""
    w, h = spec.input_size
    constants = {
        "starts": np.array([0, 0, 0]), "ends": np.array([1, 1, 4]), "axes": np.array([1, 2, 3]),
        "column": np.array([0, 4, 1]), "boxes": BOXES[None], "nothing": np.array(0, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["images", "starts", "ends", "axes"], ["corner"]),
        helper.make_node("Reshape", ["corner", "column"], ["scores"]),
        helper.make_node("Mul", ["scores", "nothing"], ["labels"]),
        helper.make_node("Add", ["labels", "boxes"], ["placed"]),
        helper.make_node("Concat", ["placed", "scores", "labels"], ["rows"], axis=2),
    ]
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, h, w])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", 4, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec.write_metadata(model)
    onnx.save(model, path)
    return path
