"""An engine on the GPU without TensorRT: PyTorch runs an ONNX file, node by node. For tests and benchmarks only.

It stands behind the DeviceEngine protocol, so everything around the network (buffers, streams, graphs, kernels) is the
product's own. cuDNN's convolutions, channels-last for float16, are what the GPU pipeline is compared against where
TensorRT cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from edgepose import ModelSpec


class TorchEngine:
    """See :class:`edgepose.engines.DeviceEngine`.

    PyTorch does not know that a graph owns the memory between its layers: call no ``torch.cuda.empty_cache()`` while a
    predictor of this engine is open.

    Args:
        path: an ONNX file of Conv, ConvTranspose, Relu, Add, MaxPool, Cast, Resize (nearest) nodes and the few others
            of the tests' painter.
        precision: ``fp32`` (TF32 off) or ``fp16``.
        max_batch: crops in one run.
    """

    def __init__(self, path: Path, *, precision: str = "fp32", max_batch: int = 16, device_id: int = 0) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.name, self.device_id, self.device = f"torch {torch.__version__}", device_id, f"cuda:{device_id}"
        self.min_batch, self.max_batch = 1, max_batch
        half = precision == "fp16"
        self.input_dtype = self.output_dtype = np.dtype(np.float16 if half else np.float32)
        model = onnx.load(path)
        self.spec = ModelSpec.from_metadata({p.key: p.value for p in model.metadata_props}, source=str(path))
        self._graph = model.graph
        dtype = torch.float16 if half else torch.float32
        self._constants = {}
        for tensor in model.graph.initializer:
            value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            self._constants[tensor.name] = (
                value.to(self.device, dtype) if value.is_floating_point() and value.ndim != 1 else value
            )
            if half and value.ndim == 4:  # as the images, so that no run has to convert the weights
                layout = torch.channels_last
                self._constants[tensor.name] = self._constants[tensor.name].to(memory_format=layout)
        for name, value in self._constants.items():
            if value.is_floating_point() and value.ndim == 1 and not self._is_shape(name):
                self._constants[name] = value.to(self.device, dtype)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one picture."""
        return (self.spec.num_keypoints, *self.spec.heatmap_size[::-1])

    def bind(self, images: Any, heatmaps: Any) -> Callable[[int], None]:
        """Runs at fixed addresses, on whatever stream comes."""
        source, target = torch.from_dlpack(images), torch.from_dlpack(heatmaps)

        def run(stream: int) -> None:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.ExternalStream(stream, self.device)):
                target.copy_(self._run(source))

        return run

    def warmed_up(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Drop the weights."""
        self._constants = {}

    def _is_shape(self, name: str) -> bool:
        return any(name in node.input[1:] for node in self._graph.node if node.op_type in ("Resize", "Slice"))

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        half = images.dtype == torch.float16
        values = dict(self._constants)
        values[self._graph.input[0].name] = images.to(memory_format=torch.channels_last) if half else images
        for node in self._graph.node:
            inputs = [values[name] if name else None for name in node.input]
            options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = _OPERATORS[node.op_type](inputs, options)
        return values[self._graph.output[0].name]


def _conv(inputs: list[Any], options: dict[str, Any]) -> torch.Tensor:
    image, weight, bias = (*inputs, None)[:3]
    top, left = _padding(options)
    return F.conv2d(image, weight, bias, options.get("strides", (1, 1)), (top, left), groups=options.get("group", 1))


def _conv_transpose(inputs: list[Any], options: dict[str, Any]) -> torch.Tensor:
    image, weight, bias = (*inputs, None)[:3]
    extra = options.get("output_padding", (0, 0))
    return F.conv_transpose2d(image, weight, bias, options["strides"], _padding(options), extra)


def _max_pool(inputs: list[Any], options: dict[str, Any]) -> torch.Tensor:
    return F.max_pool2d(inputs[0], options["kernel_shape"], options["strides"], _padding(options))


def _padding(options: dict[str, Any]) -> tuple[int, int]:
    top, left, bottom, right = options.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise ValueError("only symmetrical padding")
    return top, left


def _resize(inputs: list[Any], options: dict[str, Any]) -> torch.Tensor:
    scales = tuple(float(v) for v in inputs[2][2:])
    if options.get("mode", b"nearest") == b"nearest":
        return F.interpolate(inputs[0], scale_factor=scales, mode="nearest")
    height, width = inputs[0].shape[2:]
    size = (round(height * scales[0]), round(width * scales[1]))
    return F.interpolate(inputs[0], size=size, mode="bilinear", align_corners=True)


def _slice(inputs: list[Any], options: dict[str, Any]) -> torch.Tensor:
    image, starts, ends, axes, steps = inputs
    index = [slice(None)] * image.ndim
    for start, end, axis, step in zip(*(v.tolist() for v in (starts, ends, axes, steps)), strict=True):
        index[axis] = slice(start, end, step)
    return image[tuple(index)]


_OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], torch.Tensor]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Slice": _slice,
    "Relu": lambda inputs, _: F.relu(inputs[0]),
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Cast": lambda inputs, _: inputs[0],  # the engine's precision holds everywhere
}
