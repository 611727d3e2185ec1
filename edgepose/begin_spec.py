"""A spec to begin with, for somebody else's heatmap model: what its file tells, the rest to be filled in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx

from edgepose.adapt import tensor_of
from edgepose.network_io import FLOATS, LEVELS, Tensor
from edgepose.specfields import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["begin_spec", "layout_of_image", "size_of"]


def begin_spec(name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> str:
    """JSON text of a spec whose sizes, layouts and output are the file's; "" if nothing looks like heatmaps.

    Names, flips and normalisation are no part of a file: they hold the defaults, for the reader to correct.

    Args:
        name: of the model.
        inputs, outputs: of the graph.
    """
    images = [found for found in map(tensor_of, inputs) if layout_of_image(found)]
    if len(images) != 1:
        return ""
    (image,) = images
    layout = layout_of_image(image)
    width, height = size_of(image, layout)
    maps = [(found, how) for found in map(tensor_of, outputs) if (how := _layout_of_heatmaps(found, width, height))]
    if not maps or not width or not height:
        return ""
    heatmaps, how = maps[-1]  # where there are several they are stages, and the last one is the best
    map_width, map_height = size_of(heatmaps, how)
    assert heatmaps.shape is not None
    channels = heatmaps.shape[1 if how == "nchw" else 3] or 1
    plain = image.dtype in LEVELS
    values: dict[str, Any] = {
        "name": name,
        "input_size": [width, height],
        "heatmap_size": [map_width, map_height],
        "keypoint_names": [f"keypoint {index}" for index in range(channels)],
        "flip_indices": list(range(channels)),
        "color": "rgb",
        "layout": layout,
        "scale": 1,
        "mean": [0, 0, 0] if plain else list(IMAGENET_MEAN),
        "std": [1, 1, 1] if plain else list(IMAGENET_STD),
        "heatmap_layout": how,
        **({"output": heatmaps.name} if len(outputs) > 1 else {}),
        "codec": "msra",
        "refinement": "shift",
        "padding": 1.25,
    }
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()) + "\n}"


def layout_of_image(tensor: Tensor) -> str:
    """``nchw`` or ``nhwc`` of an input that takes pictures; "": it is none."""
    if tensor.shape is None or len(tensor.shape) != 4:
        return ""
    return "nchw" if tensor.shape[1] == 3 else "nhwc" if tensor.shape[3] == 3 else ""


def _layout_of_heatmaps(tensor: Tensor, width: int | None, height: int | None) -> str:
    """The layout by which the maps have the picture's shape."""
    if tensor.dtype not in FLOATS or tensor.shape is None or len(tensor.shape) != 4 or not width or not height:
        return ""
    for layout in ("nchw", "nhwc"):
        map_width, map_height = size_of(tensor, layout)
        if map_width and map_height and map_width * height == map_height * width and 4 <= map_width <= width:
            return layout
    return ""


def size_of(tensor: Tensor, layout: str) -> tuple[int | None, int | None]:
    """(w, h), None where the file leaves it open."""
    assert tensor.shape is not None
    height, width = tensor.shape[2:] if layout == "nchw" else tensor.shape[1:3]
    return width, height
