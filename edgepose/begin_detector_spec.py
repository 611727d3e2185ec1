"""A spec to begin with, for somebody else's detector: the format that its outputs look like, the rest to be checked."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from edgepose.adapt import inputs_of, tensor_of
from edgepose.begin_spec import layout_of_image, size_of
from edgepose.network_io import LEVELS, Tensor
from edgepose.specfields import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["begin_detector_spec"]

UNIT_SCALE = 1 / 255
MOST_SELECTED = 1000  # candidates that a model gives after its own choice; grids have more

# How the authors' own code feeds a network of each format, where they agree; a file does not say.
_YOLOX: dict[str, Any] = {"color": "bgr", "resize": "letterbox_corner"}
_ULTRALYTICS: dict[str, Any] = {"scale": UNIT_SCALE, "resize": "letterbox"}
_DETR: dict[str, Any] = {"scale": UNIT_SCALE, "resize": "stretch"}
_FED: dict[str, dict[str, Any]] = {
    "yolox": _YOLOX,
    "yolov5": _ULTRALYTICS,
    "yolov8": _ULTRALYTICS,
    "end2end": _ULTRALYTICS,
    "yolov7_end2end": _ULTRALYTICS,
    "mmdeploy": {"color": "bgr", "resize": "letterbox_corner"},
    "rtdetr": _DETR,
    "rtdetr_deployed": _DETR,
    "detr": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "resize": "stretch"},
    "efficient_nms": _ULTRALYTICS,
    "torchvision": {"scale": UNIT_SCALE, "resize": "stretch"},
    "tensorflow": {"resize": "stretch"},
    "ssd": {"resize": "stretch"},
    "detection_output": {"color": "bgr", "resize": "stretch"},
}


def begin_detector_spec(name: str, model: onnx.ModelProto) -> str:
    """JSON text of a spec whose format fits the names and shapes of a model's outputs; "" if none does.

    Sizes, layout and the number of categories are the file's. Colours, scale and resizing are those of the format's
    authors, and names are the file's only if Ultralytics wrote it: for the reader to check.
    """
    inputs = [tensor_of(value) for value in inputs_of(model)]
    outputs = {value.name: tensor_of(value) for value in model.graph.output}
    images = [found for found in inputs if layout_of_image(found)]
    if len(images) != 1:
        return ""
    (image,) = images
    layout = layout_of_image(image)
    width, height = size_of(image, layout)
    if not width or not height:
        return ""
    others = [found for found in inputs if found is not image]
    fields = _of_names(outputs, others) or _of_rows(outputs, width, height, {node.op_type for node in model.graph.node})
    if not fields:
        return ""
    count = fields.pop("categories")
    named = _names(model)
    values: dict[str, Any] = {
        "name": name,
        "input_size": [width, height],
        "category_names": named if len(named) == count or not count else [f"class {index}" for index in range(count)],
        "format": fields.pop("format"),
    }
    values["category_names"] = values["category_names"] or ["class 0"]
    fed = {"color": "rgb", "layout": layout, "scale": 1, **_FED[values["format"]]}
    if image.dtype in LEVELS:
        fed = {key: value for key, value in fed.items() if key not in {"scale", "mean", "std"}}
    constants = {found.name: [1] for found in others if found.name != "orig_target_sizes"}
    values |= {**fed, **fields, **({"constants": constants} if constants else {})}
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()) + "\n}"


def _of_names(outputs: Mapping[str, Tensor], others: Sequence[Tensor]) -> dict[str, Any]:
    """The format, by the names that exporters give; ``categories``: how many, 0 where shapes do not tell."""
    names = set(outputs)
    if {"dets", "labels"} <= names:
        if _last(outputs["dets"]) == 4:  # RF-DETR, LW-DETR
            roles = {"boxes": "dets", "scores": "labels"}
            return {"format": "rtdetr", "outputs": roles, "categories": _last(outputs["labels"])}
        return {"format": "mmdeploy", "categories": 0}
    if {"num_dets", "det_boxes", "det_scores", "det_classes"} <= names:
        return {"format": "efficient_nms", "categories": 0}
    if {"detection_boxes", "detection_classes", "detection_scores", "num_detections"} <= names:
        return {"format": "tensorflow", "categories": 0}
    for logits in ("logits", "pred_logits"):
        if {logits, "pred_boxes"} <= names:
            return {"format": "rtdetr", "categories": _last(outputs[logits])}
    if {"boxes", "labels", "scores"} <= names:
        deployed = "orig_target_sizes" in {found.name for found in others}
        return {"format": "rtdetr_deployed" if deployed else "torchvision", "categories": 0}
    if {"boxes", "scores"} <= names:
        return {"format": "ssd", "categories": max(_last(outputs["scores"]) - 1, 0)}
    return {}


def _of_rows(outputs: Mapping[str, Tensor], width: int, height: int, operators: set[str]) -> dict[str, Any]:
    """The format of a single output, by its shape."""
    if len(outputs) != 1:
        return {}
    (shape,) = (found.shape for found in outputs.values())
    if shape is None or not 2 <= len(shape) <= 4:
        return {}
    if shape[-1] == 7 and len(shape) != 3:
        return {"format": "detection_output" if len(shape) == 4 else "yolov7_end2end", "categories": 0}
    if len(shape) != 3:
        return {}
    count, values = shape[1:]
    cells = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    if values == 6 and (count is None or (count <= MOST_SELECTED and count % cells)):
        return {"format": "end2end", "categories": 0}
    if count and values and count < values and count > 4:
        return {"format": "yolov8", "categories": count - 4}
    if not values or values < 6:
        return {}
    if count == cells:  # YOLOX: a candidate for each cell. Decoded ones have the exponential inside.
        return {"format": "yolov5" if "Exp" in operators else "yolox", **_YOLOX, "categories": values - 5}
    return {"format": "yolov5", "categories": values - 5} if count == 3 * cells else {}


def _last(tensor: Tensor) -> int:
    return (tensor.shape[-1] or 0) if tensor.shape else 0


def _names(model: onnx.ModelProto) -> list[str]:
    """The categories' names that Ultralytics writes into a file: a dict by number, as Python writes it."""
    for prop in model.metadata_props:
        if prop.key == "names":
            try:
                found = ast.literal_eval(prop.value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return []
            if isinstance(found, dict) and sorted(found) == list(range(len(found))):
                return [str(found[index]) for index in range(len(found))]
    return []
