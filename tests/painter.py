"""Tiny ONNX models for tests whose answer is known: heatmap k is colour channel k of the crop, sampled at the cells.

Frames get one Gaussian blob a colour, so the landmarks found must be the blobs' centres: crop, network, decoder and
the way back are checked as one chain, to a fraction of a pixel, for both codecs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepose import ModelSpec

INPUT_SIZE = (96, 128)
HEATMAP_SIZE = (24, 32)


def painter_spec(codec: str = "udp", **changes: object) -> ModelSpec:
    values: dict = {
        "name": f"painter-{codec}",
        "input_size": INPUT_SIZE,
        "heatmap_size": HEATMAP_SIZE,
        "keypoint_names": ("red", "green", "blue"),
        "flip_indices": (0, 1, 2),
        "skeleton": ((0, 1), (1, 2)),
        "colors": ((255, 0, 0), (0, 255, 0), (0, 0, 255)),
        "codec": codec,
        "refinement": "dark_udp" if codec == "udp" else "dark",
        "mean": (0.0, 0.0, 0.0),
        "std": (255.0, 255.0, 255.0),
        "sampling": "linear",
        "license": "Apache-2.0",
        "metrics": {"PCK@0.2": 1.0},
        "training": {"data": "none: it copies colours"},
    }
    return ModelSpec(**{**values, **changes})


def write_painter(path: Path, spec: ModelSpec, *, fp16: bool = False, batch: int | str = "N", store_spec: bool = True,
                  symbolic: bool = False, invert: bool = False) -> Path:  # fmt: skip
    """Write the model: msra takes every fourth pixel, udp resizes with the corners' centres aligned.

    ``invert``: heatmaps are 1 - colour, so that black is found.
    """
    dtype = TensorProto.FLOAT16 if fp16 else TensorProto.FLOAT
    (w, h), (hw, hh) = INPUT_SIZE, HEATMAP_SIZE
    constants, first = [], []
    source = "images"
    if invert:
        constants.append(numpy_helper.from_array(np.array(1, np.float16 if fp16 else np.float32), "one"))
        first, source = [helper.make_node("Sub", ["one", "images"], ["inverted"])], "inverted"
    if spec.codec == "msra":
        for name, values in (("starts", [0, 0]), ("ends", [h, w]), ("axes", [2, 3]), ("steps", [h // hh, w // hw])):
            constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        node = helper.make_node("Slice", [source, "starts", "ends", "axes", "steps"], ["heatmaps"])
    else:
        constants.append(numpy_helper.from_array(np.array([1, 1, hh / h, hw / w], np.float32), "scales"))
        node = helper.make_node(
            "Resize", [source, "", "scales"], ["heatmaps"],
            mode="linear", coordinate_transformation_mode="align_corners",
        )  # fmt: skip
    in_dims, out_dims = [batch, 3, h, w], [batch, 3, hh, hw]
    if symbolic:
        in_dims, out_dims = ["n", 3, "h", "w"], ["n", "k", "hh", "hw"]
    graph = helper.make_graph(
        [*first, node],
        "painter",
        [helper.make_tensor_value_info("images", dtype, in_dims)],
        [helper.make_tensor_value_info("heatmaps", dtype, out_dims)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="painter")
    if store_spec:
        spec.write_metadata(model)
    onnx.save(model, path)
    return path


def blobs(size: tuple[int, int], centres: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W, 3) uint8 BGR: a Gaussian blob of the colour red, green, blue at each of three (x, y)."""
    w, h = size
    x, y = np.arange(w), np.arange(h)[:, None]
    frame = np.zeros((h, w, 3))
    for rgb, (cx, cy) in enumerate(centres):
        frame[..., 2 - rgb] = 255 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    return np.rint(frame).astype(np.uint8)
