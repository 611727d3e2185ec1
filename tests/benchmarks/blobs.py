"""A tiny model whose landmarks are known, for tests of ways: heatmap k is colour k of every fourth pixel of the crop.

Unlike the painter's it begins with a convolution, as the models do that other libraries take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from painter import HEATMAP_SIZE, INPUT_SIZE, painter_spec

from edgepose.benchmarks.bench_models import BenchModel

MEAN, STD = (10.0, 20.0, 30.0), (250.0, 240.0, 230.0)  # not the same for RGB and BGR
BOXES = np.array([[20, 30, 170, 230], [300.5, 40.25, 420, 200]], np.float32)
SIGMA = 8  # px of the crop: two cells


def blob_model(folder: Path, *, weights: str = "fp32", trained: bool = True) -> BenchModel:
    """``weights``: fp32; fp16, behind a Cast; int8, behind DequantizeLinear, as is the input."""
    spec = painter_spec("msra", refinement="dark_udp", mean=MEAN, std=STD, sampling="opencv4", name="blobs")
    kernel = np.zeros((3, 3, 4, 4), np.float32)
    kernel[range(3), range(3), 0, 0] = 1
    nodes, values, picture = [], [], "images"
    if weights == "int8":
        values = [("scale", np.float32(1 / 64)), ("zero", np.uint8(128)), ("w", (kernel * 100).astype(np.int8))]
        values += [("w_scale", np.full(3, 0.01, np.float32)), ("w_zero", np.zeros(3, np.int8))]
        nodes = [
            helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["levels"]),
            helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["rounded"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weights"], axis=0),
        ]
        picture = "rounded"
    else:
        values = [("w", kernel.astype(np.float16 if weights == "fp16" else np.float32))]
        nodes = [helper.make_node("Cast", ["w"], ["weights"], to=TensorProto.FLOAT)] if weights == "fp16" else []
    name = "weights" if nodes else "w"
    nodes.append(helper.make_node("Conv", [picture, name], ["heatmaps"], strides=[4, 4], kernel_shape=[4, 4]))
    (w, h), (hw, hh) = INPUT_SIZE, HEATMAP_SIZE
    graph = helper.make_graph(
        nodes,
        "blobs",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, h, w])],
        [helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, ["n", 3, hh, hw])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in values],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {spec.METADATA_KEY: spec.to_json()})
    path = folder / f"blobs-{weights}.onnx"
    onnx.save(model, path)
    return BenchModel("blobs", path, spec, trained=trained)


def blob_frame() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A frame with a red, a green and a blue blob in each of BOXES, and where they are, (2, 3, 2) frame px."""
    frame = np.zeros((300, 500, 3), np.float64)
    y, x = np.mgrid[:300, :500]
    places = np.array([[0.3, 0.3], [0.7, 0.4], [0.45, 0.75]])
    centres = BOXES[:, None, :2] + places * (BOXES[:, None, 2:] - BOXES[:, None, :2])
    for box, points in zip(BOXES, centres, strict=True):
        sides = 1.25 * (box[2:] - box[:2]) / INPUT_SIZE  # frame px of a crop px
        for colour, (cx, cy) in enumerate(points):
            spread = 2 * (SIGMA * sides.max()) ** 2
            frame[:, :, 2 - colour] += 240 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / spread)
    return np.rint(frame).astype(np.uint8), centres.astype(np.float64)
