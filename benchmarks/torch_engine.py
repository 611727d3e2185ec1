"""An engine on the GPU without TensorRT: PyTorch runs an ONNX file, node by node. For tests and benchmarks only.

It stands behind the DeviceEngine protocol, so everything around the network (buffers, streams, graphs, kernels) is the
product's own. cuDNN's convolutions, channels-last for float16, are what the GPU pipeline is compared against where
TensorRT cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from edgepose import ModelSpec

if TYPE_CHECKING:
    from edgepose.adapt import Spec

__all__ = ["OnnxNetwork", "TorchEngine"]


class OnnxNetwork(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """The network of an ONNX file: (N, 3, h, w) images -> (N, K, h', w') heatmaps, in the precision of its weights.

    Its nodes are Conv, ConvTranspose, Relu, Clip, Add, Sub, MaxPool, Cast, Resize (nearest) and the few others of the
    tests' painter. ``.half()``, ``.cuda()`` and ``.to(memory_format=torch.channels_last)`` work as with any module.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        if unknown := sorted({node.op_type for node in graph.node} - set(_OPERATORS)):
            raise ValueError(f"{path} has nodes that PyTorch does not run here: {', '.join(unknown)}")
        self._source, self._result = graph.input[0].name, graph.output[0].name
        attribute = onnx.helper.get_attribute_value
        self._nodes = [
            (node.op_type, list(node.input), node.output[0], {a.name: attribute(a) for a in node.attribute})
            for node in graph.node
        ]
        self._buffer_of: dict[str, str] = {}  # weights, which follow the module's precision and device
        self._numbers: dict[str, Any] = {}  # scales, limits, indices: constants to torch.compile
        weights = {name for kind, inputs, *_ in self._nodes if kind not in _ON_HOST for name in inputs}
        weights |= {inputs[0] for kind, inputs, *_ in self._nodes if kind in _ON_HOST}
        for number, tensor in enumerate(graph.initializer):
            value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            if tensor.name in weights and value.is_floating_point():
                self._buffer_of[tensor.name] = f"weight_{number}"
                self.register_buffer(f"weight_{number}", value.float())  # whatever precision the file keeps them in
            else:
                self._numbers[tensor.name] = value.tolist()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}
        values |= self._numbers
        values[self._source] = images
        for kind, inputs, output, options in self._nodes:
            values[output] = _OPERATORS[kind]([values[name] if name else None for name in inputs], options)
        result: torch.Tensor = values[self._result]
        return result


class TorchEngine:
    """See :class:`edgepose.engines.DeviceEngine`.

    PyTorch does not know that a graph owns the memory between its layers: call no ``torch.cuda.empty_cache()`` while a
    predictor of this engine is open.

    Args:
        path: an ONNX file of the nodes that :class:`OnnxNetwork` knows.
        precision: ``fp32`` (TF32 off) or ``fp16``.
        max_batch: crops in one run.
    """

    def __init__(self, path: Path, *, precision: str = "fp32", max_batch: int = 16, device_id: int = 0) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.name, self.device_id, self.device = f"torch {torch.__version__}", device_id, f"cuda:{device_id}"
        self.min_batch, self.max_batch = 1, max_batch
        self._half = precision == "fp16"
        self.input_dtype = self.output_dtype = np.dtype(np.float16 if self._half else np.float32)
        metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
        spec = ModelSpec.from_metadata(metadata, source=str(path))
        self.spec: Spec = spec
        self._output_shape = (spec.num_keypoints, *spec.heatmap_size[::-1])
        network = OnnxNetwork(path).eval().to(self.device)
        # channels-last as the images, so that no run has to convert the weights
        self._network: nn.Module | None = (
            network.half().to(memory_format=torch.channels_last) if self._half else network
        )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one picture."""
        return self._output_shape

    def bind(self, images: Any, heatmaps: Any) -> Callable[[int], None]:
        """Runs at fixed addresses, on whatever stream comes."""
        source, target = torch.from_dlpack(images), torch.from_dlpack(heatmaps)
        network, half = self._network, self._half
        assert network is not None

        def run(stream: int) -> None:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.ExternalStream(stream, self.device)):
                target.copy_(network(source.to(memory_format=torch.channels_last) if half else source))

        return run

    def warmed_up(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Drop the weights."""
        self._network = None


def _conv(inputs: list[Any], options: dict[str, Any]) -> torch.Tensor:
    image, weight, bias = (*inputs, None)[:3]
    strides, dilations = options.get("strides", (1, 1)), options.get("dilations", (1, 1))
    top, left = _padding(options)
    return F.conv2d(image, weight, bias, strides, (top, left), dilations, groups=options.get("group", 1))


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


def _clip(inputs: list[Any], _: dict[str, Any]) -> torch.Tensor:
    least, most = (*inputs[1:], None, None)[:2]
    return torch.clamp(inputs[0], least, most)


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
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return image[tuple(index)]


_ON_HOST = {"Resize", "Slice", "Clip"}  # all their inputs but the first are numbers that the host reads
_OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], torch.Tensor]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "Clip": _clip,
    "Resize": _resize,
    "Slice": _slice,
    "Relu": lambda inputs, _: F.relu(inputs[0]),
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Cast": lambda inputs, _: inputs[0],  # the module's precision holds everywhere
}
