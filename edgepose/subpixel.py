"""Transposed convolutions as sub-pixel convolutions: the same sums, in the form that CPUs run faster.

A transposed convolution that enlarges its input s times is s * s small convolutions of the input as it is, one for each
phase (row and column modulo s) of the output, interleaved. For kernel 4, stride 2, padding 1, the head of SimpleBaseline
(Xiao et al., ECCV 2018), each is 2x2, padded on two of its four sides:

    ConvTranspose -> Relu -> Conv 1x1     becomes     4 x (Conv 2x2 -> Relu -> Conv 1x1) -> Concat -> DepthToSpace

What works pixel by pixel moves in front of the interleaving, so that only the heatmaps are interleaved. (Shi et al.,
"Is the deconvolution layer the same as a convolutional layer?", 2016.) No product is left out or added, only the order
of the sums changes: heatmaps differ by float32 rounding, about 1e-6 of their maximum. A further gain: runtimes have INT8
kernels for Conv, and none for ConvTranspose.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgepose.precision import skeleton

__all__ = ["rewrite_in_place", "subpixel_convolutions"]

_BY_CHANNEL = {"BatchNormalization", "Clip", "LeakyRelu", "Relu"}  # of each pixel by itself, with static parameters
_CARRY = {"Cast", "Constant", "Identity"}  # what leads from stored weights to the weights of a layer


def subpixel_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes the same without transposed convolutions, as far as they can be replaced.

    Replaced is a ConvTranspose of two dimensions whose output is its stride times as large as its input (kernel,
    stride, padding, output padding: 4/2/1/0, 2/2/0/0, 3/2/1/1 and their like), of one group, without dilation, with
    explicit padding and stored weights (also behind Cast and Constant). Others stay, and so do all of a graph with
    sub-graphs, or of an IR version below 4.

    Args:
        model: with its weights loaded. Never changed.

    Returns:
        ``model`` itself where there is nothing to replace, else a new one that shares nothing with it. Names, types and
        shapes of inputs and outputs, opset and metadata are the same.
    """
    if not _replaceable(model):
        return model
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    rewrite_in_place(rewritten)
    return rewritten


def rewrite_in_place(model: onnx.ModelProto) -> bool:
    """:func:`subpixel_convolutions` of a model that nobody else needs, without a copy. Whether anything was replaced."""
    found = _replaceable(model)
    if not found:
        return False
    graph = model.graph
    weights = _Weights(graph)
    readers = _readers(graph)
    kept_names = {value.name for value in graph.output}
    text = skeleton(model).SerializeToString()
    prefix = "subpixel"
    while f"{prefix}/".encode() in text:
        prefix += "_"
    replaced: dict[int, list[onnx.NodeProto]] = {}  # by the number of the last node of a chain
    dropped: set[int] = set()
    for number, layer in enumerate(found):
        chain = [layer.number, *_pulled(graph, layer.number, readers, kept_names, weights)]
        nodes, tensors = _phases([graph.node[i] for i in chain], layer, f"{prefix}/{number}")
        replaced[chain[-1]] = nodes
        dropped.update(chain)
        graph.initializer.extend(tensors)
    nodes = []
    for number, node in enumerate(graph.node):
        nodes += replaced.get(number, [] if number in dropped else [node])
    _set_nodes(graph, nodes)
    _drop_unread(graph)
    return True


class _Layer(NamedTuple):
    """A ConvTranspose that can be replaced: its number, its weights (in, out, kh, kw), stride and first pads (y, x)."""

    number: int
    weights: NDArray[Any]
    stride: int
    pads: tuple[int, int]


class _Weights:
    """The tensors of a graph that are stored in it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._made = {node.output[0]: node for node in graph.node if node.op_type in _CARRY}

    def get(self, name: str) -> NDArray[Any] | None:
        """Its values, None for what is computed from the input."""
        if name in self._stored:
            return np.asarray(numpy_helper.to_array(self._stored[name]))
        node = self._made.get(name)
        if node is None:
            return None
        attributes = _attributes(node)
        if node.op_type == "Constant":
            return np.asarray(numpy_helper.to_array(attributes["value"])) if "value" in attributes else None
        values = self.get(node.input[0])
        if values is None or node.op_type == "Identity":
            return values
        return values.astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _replaceable(model: onnx.ModelProto) -> list[_Layer]:
    graph = model.graph
    if model.ir_version < 4 or not any(node.op_type == "ConvTranspose" for node in graph.node):
        return []  # older files want each weight among the inputs
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return []  # a sub-graph may read any tensor
    weights = _Weights(graph)
    layers = []
    for number, node in enumerate(graph.node):
        if node.op_type == "ConvTranspose" and (layer := _layer(number, node, weights)):
            layers.append(layer)
    return layers


def _layer(number: int, node: onnx.NodeProto, weights: _Weights) -> _Layer | None:
    attributes = _attributes(node)
    values = weights.get(node.input[1])
    if values is None or values.ndim != 4 or values.dtype.kind != "f":
        return None
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes:
        return None
    if attributes.get("group", 1) != 1 or set(attributes.get("dilations", [1])) != {1}:
        return None
    strides = attributes.get("strides", [1, 1])
    pads, more = attributes.get("pads", [0, 0, 0, 0]), attributes.get("output_padding", [0, 0])
    stride = strides[0]
    if stride < 2 or strides[1] != stride:
        return None
    for axis in range(2):
        kernel, first, last = values.shape[2 + axis], pads[axis], pads[2 + axis]
        if kernel - stride + more[axis] != first + last:  # the output is not stride times as large
            return None
        if any(min(before, after) < 0 for before, after, _ in _taps(kernel, stride, first)):
            return None  # a phase without a tap, or one that looks past its own pixel
    return _Layer(number, values, stride, (pads[0], pads[1]))


def _taps(kernel: int, stride: int, pad: int) -> list[tuple[int, int, list[int]]]:
    """Along one axis, for each phase: padding before and after, and which taps of the kernel its convolution has.

    Output o = stride * q + phase is the sum over inputs i of input[i] * kernel[o + pad - stride * i]: the inputs
    i = q + d for which the tap phase + pad - stride * d lies in the kernel.
    """
    phases = []
    for phase in range(stride):
        least, greatest = -((kernel - 1 - phase - pad) // stride), (phase + pad) // stride  # of d
        phases.append((-least, greatest, [phase + pad - stride * d for d in range(least, greatest + 1)]))
    return phases


def _pulled(
    graph: onnx.GraphProto, number: int, readers: dict[str, list[int]], outputs: set[str], weights: _Weights
) -> list[int]:
    """The numbers of the nodes after a layer that work pixel by pixel, and are the only ones to read what they read."""
    pulled: list[int] = []
    while True:
        (name,) = graph.node[number].output
        users = readers.get(name, [])
        if name in outputs or len(users) != 1:
            return pulled
        number = users[0]
        node = graph.node[number]
        if node.input[0] != name or len(node.output) != 1:
            return pulled
        if any(item and weights.get(item) is None for item in node.input[1:]):
            return pulled
        if node.op_type not in _BY_CHANNEL and not (node.op_type == "Conv" and _is_pointwise(node, weights)):
            return pulled
        pulled.append(number)


def _is_pointwise(node: onnx.NodeProto, weights: _Weights) -> bool:
    """Whether a Conv looks at single pixels, and gives no more channels than it takes: there are fewer to interleave."""
    values, attributes = weights.get(node.input[1]), _attributes(node)
    if values is None or values.ndim != 4 or values.shape[2:] != (1, 1) or values.shape[0] > values.shape[1]:
        return False
    plain = set(attributes.get("strides", [1])) == {1} and not any(attributes.get("pads", []))
    return plain and attributes.get("group", 1) == 1 and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"


def _phases(
    chain: list[onnx.NodeProto], layer: _Layer, prefix: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes that replace a ConvTranspose and the nodes behind it that are pulled, and their weights."""
    first, *pulled = chain
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    ends: list[str] = []
    of_rows, of_columns = (_taps(layer.weights.shape[2 + axis], layer.stride, layer.pads[axis]) for axis in range(2))
    for row, (top, bottom, rows) in enumerate(of_rows):
        for column, (left, right, columns) in enumerate(of_columns):
            name = f"{prefix}/{row}{column}"
            kernel = layer.weights[:, :, rows][..., columns].transpose(1, 0, 2, 3)
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(kernel), f"{name}/weights"))
            nodes.append(
                helper.make_node(
                    "Conv",
                    [first.input[0], f"{name}/weights", *first.input[2:]],
                    [f"{name}/conv"],
                    name=f"{name}/conv",
                    kernel_shape=[len(rows), len(columns)],
                    pads=[top, left, bottom, right],
                )
            )
            for step, node in enumerate(pulled):
                copied = onnx.NodeProto()
                copied.CopyFrom(node)
                copied.name = f"{name}/{step}_{node.op_type}"
                copied.input[0], copied.output[0] = nodes[-1].output[0], copied.name
                nodes.append(copied)
            ends.append(nodes[-1].output[0])
    nodes.append(helper.make_node("Concat", ends, [f"{prefix}/phases"], name=f"{prefix}/phases", axis=1))
    interleave = f"{prefix}/interleave"
    nodes.append(
        helper.make_node(
            "DepthToSpace", [f"{prefix}/phases"], list(chain[-1].output), name=interleave, blocksize=layer.stride
        )
    )
    return nodes, tensors


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _readers(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """By the name of a tensor: the nodes that read it, one that reads it twice is there twice."""
    readers: dict[str, list[int]] = {}
    for number, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(number)
    return readers


def _set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # `del` empties the graph's own
    del graph.node[:]
    graph.node.extend(copies)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """What led to the weights of the layers that are gone, and what was said about their results."""
    outputs = {value.name for value in graph.output}
    read, kept = set(outputs), []
    for node in reversed(graph.node):
        if node.op_type in _CARRY and not read & set(node.output):
            continue
        read.update(node.input)
        kept.append(node)
    _set_nodes(graph, reversed(kept))
    made = {name for node in graph.node for name in node.output}
    lost = {tensor.name for tensor in graph.initializer} - read
    for tensors in (graph.initializer, graph.input):
        for index in reversed(range(len(tensors))):
            if tensors[index].name in lost:
                del tensors[index]
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name not in made:
            del graph.value_info[index]
