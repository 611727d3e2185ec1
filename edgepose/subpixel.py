"""Transposed convolutions as convolutions, for runtimes whose transposed ones are slow.

A transposed convolution of stride s writes s x s interleaved pictures, and each of them is an ordinary convolution of
the input with every s-th weight (Shi et al., Is the deconvolution layer the same as a convolutional layer?, 2016). So
it becomes s x s small convolutions, whose outputs DepthToSpace interleaves. The sums are the same, in another order.

Along one axis, with kernel k, stride s and first pad p, output o = s m + a receives input i through weight t where
s i + t = o + p. With r = (a + p) mod s and q = (a + p) div s these are t = r + s j and i = m + q - j, for j from 0 to
J - 1, J = ceil((k - r) / s): a convolution with the weights r + s (J - 1), ..., r + s, r and pads J - 1 - q before, q
behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgepose.adapt import inputs_of, reads

__all__ = ["subpixel_convolutions"]

LISTED_BELOW = 4  # of ONNX's file format: from there on weights need not be listed among the inputs
# What acts on each value, or on each channel, by itself: the same before the interleaving as behind it.
POINTWISE = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Elu", "HardSwish", "HardSigmoid", "BatchNormalization")


def subpixel_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network without transposed convolutions, where that can be said exactly.

    Rewritten are those with constant weights, one group, no dilation and the same stride s > 1 along both axes, whose
    output is s times their input. Activations, batch normalisations and 1x1 convolutions that follow move in front of
    the interleaving, which then moves fewer channels, or lets the runtime join them with the convolutions.

    Args:
        model: left as it is.

    Returns:
        A new model with the same inputs, outputs and metadata; ``model`` itself if there is nothing to rewrite.
    """
    graph = _Graph(model)
    plans = [plan for node in model.graph.node if (plan := _plan(node, graph)) is not None]
    if not plans:
        return model
    rewritten = _frame_of(model)
    target = rewritten.graph
    replaced = {id(plan.nodes[-1]): plan for plan in plans}  # there all that the new nodes read has been made
    dropped = {id(node) for plan in plans for node in plan.nodes}
    nodes, tensors = [], []
    for node in model.graph.node:
        if id(node) in replaced:
            new_nodes, new_tensors = _rewrite(replaced[id(node)], graph)
            nodes += new_nodes
            tensors += new_tensors
        elif id(node) not in dropped:
            nodes.append(node)
    nodes = _needed(nodes, {value.name for value in target.output})
    used = {value.name for value in target.output}.union(*(reads(node) for node in nodes))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    made = {name for node in nodes for name in node.output}
    infos = [info for info in model.graph.value_info if info.name in made]
    for field, items in (("node", nodes), ("initializer", kept + tensors), ("value_info", infos)):
        target.ClearField(field)
        getattr(target, field).extend(items)
    if len(inputs := inputs_of(model)) != len(target.input):  # older files list their weights there, some now gone
        target.ClearField("input")
        target.input.extend(inputs)
        rewritten.ir_version = max(rewritten.ir_version, LISTED_BELOW)
    return rewritten


def _frame_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of all but the nodes and the weights, which may be hundreds of megabytes."""
    copy = onnx.ModelProto()
    for source, target in ((model, copy), (model.graph, copy.graph)):
        for field, value in source.ListFields():
            if field.name in {"graph", "node", "initializer"}:
                continue
            if isinstance(value, (str, bytes, int)):
                setattr(target, field.name, value)
            else:
                getattr(target, field.name).extend(value)
    return copy


class _Graph:
    """Who makes and who uses each value of a model's graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.opset = max((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), default=1)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.outputs = {value.name for value in graph.output}  # and what branches of an If or a Loop take
        self.outputs |= {name for node in graph.node for name in islice(reads(node), len(node.input), None)}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value where it is in the file: an initializer, a Constant, or either behind a Cast."""
        if name in self.tensors:
            tensor = self.tensors[name]
            return None if tensor.data_location == onnx.TensorProto.EXTERNAL else numpy_helper.to_array(tensor)
        maker = self.makers.get(name)
        if maker is None:
            return None
        attributes = _attributes(maker)
        if maker.op_type == "Constant" and "value" in attributes:
            return numpy_helper.to_array(attributes["value"])
        if maker.op_type == "Cast":
            value = self.constant(maker.input[0])
            return None if value is None else value.astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
        return None

    def only_user(self, name: str) -> onnx.NodeProto | None:
        """The node that takes a value, if nobody else does and the model does not return it."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None


@dataclass(frozen=True)
class _Phase:
    """One axis of one interleaved picture: which weights, last first, and the pads before and behind."""

    weights: slice
    pads: tuple[int, int]


@dataclass(frozen=True)
class _Plan:
    """What is rewritten: the transposed convolution, then what moves in front of the interleaving."""

    nodes: tuple[onnx.NodeProto, ...]
    weights: NDArray[Any]  # (in, out, k, k)
    stride: int
    rows: tuple[_Phase, ...]
    columns: tuple[_Phase, ...]


def _plan(node: onnx.NodeProto, graph: _Graph) -> _Plan | None:
    """How a node is rewritten; None: it stays."""
    if node.op_type != "ConvTranspose" or node.domain not in {"", "ai.onnx"}:
        return None
    attributes = _attributes(node)
    weights = graph.constant(node.input[1])
    if weights is None or weights.ndim != 4 or attributes.get("group", 1) != 1 or "output_shape" in attributes:
        return None
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or list(dilations) != [1, 1] or strides[0] != strides[1]:
        return None
    if strides[0] < 2 or graph.opset < 7:
        return None
    pads, extra = attributes.get("pads", [0, 0, 0, 0]), attributes.get("output_padding", [0, 0])
    axes = [_phases(weights.shape[2 + axis], strides[axis], pads[axis], pads[axis + 2], extra[axis]) for axis in (0, 1)]
    if axes[0] is None or axes[1] is None:
        return None
    return _Plan((node, *_followers(node, graph)), weights, strides[0], axes[0], axes[1])


def _phases(kernel: int, stride: int, before: int, behind: int, extra: int) -> tuple[_Phase, ...] | None:
    """Of each offset a in 0 .. stride - 1; None where the output is not stride times the input, or a pad is below 0."""
    if kernel - before - behind + extra != stride:
        return None
    phases = []
    for offset in range(stride):
        first, shift = (offset + before) % stride, (offset + before) // stride
        count = len(range(first, kernel, stride))
        pads = (count - 1 - shift, shift)
        if not count or min(pads) < 0:
            return None
        phases.append(_Phase(slice(first + stride * (count - 1), first - 1 if first else None, -stride), pads))
    return tuple(phases)


def _followers(node: onnx.NodeProto, graph: _Graph) -> Iterator[onnx.NodeProto]:
    """The nodes behind a transposed convolution that may as well come before the interleaving."""
    while (user := graph.only_user(node.output[0])) is not None and len(user.output) == 1:
        pictures_first = user.input[0] == node.output[0] and node.output[0] not in user.input[1:]
        if not pictures_first or not (user.op_type in POINTWISE or _is_1x1(user, graph)):
            return
        yield user
        node = user


def _is_1x1(node: onnx.NodeProto, graph: _Graph) -> bool:
    """A 1x1 convolution that does not make more channels than it takes."""
    if node.op_type != "Conv":
        return False
    attributes, weights = _attributes(node), graph.constant(node.input[1])
    return (
        weights is not None
        and weights.shape[2:] == (1, 1)
        and weights.shape[0] <= weights.shape[1]
        and attributes.get("group", 1) == 1
        and list(attributes.get("strides", [1, 1])) == [1, 1]
        and not any(attributes.get("pads", []))
    )


def _rewrite(plan: _Plan, graph: _Graph) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and weights that take the plan's place, under names that the graph does not have."""
    node, *followers = plan.nodes
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    parts = []
    for (y, rows), (x, columns) in product(enumerate(plan.rows), enumerate(plan.columns)):
        suffix = f"_{y}{x}"
        weights = plan.weights[:, :, rows.weights, columns.weights].swapaxes(0, 1)
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(weights), _new(graph, node.input[1] + suffix)))
        value = _new(graph, node.output[0] + suffix)
        nodes.append(
            helper.make_node(
                "Conv",
                [node.input[0], tensors[-1].name, *node.input[2:]],
                [value],
                _new(graph, (node.name or node.output[0]) + suffix),
                kernel_shape=weights.shape[2:],
                pads=[rows.pads[0], columns.pads[0], rows.pads[1], columns.pads[1]],
            )
        )
        for follower in followers:
            copy = onnx.NodeProto()
            copy.CopyFrom(follower)
            copy.name = _new(graph, (follower.name or follower.output[0]) + suffix)
            copy.input[0], value = value, _new(graph, follower.output[0] + suffix)
            copy.output[0] = value
            nodes.append(copy)
        parts.append(value)
    joined, mode = _new(graph, node.output[0] + "_phases"), {"mode": "DCR"} if graph.opset >= 11 else {}
    nodes.append(helper.make_node("Concat", parts, [joined], _new(graph, joined + "_concat"), axis=1))
    nodes.append(
        helper.make_node(
            "DepthToSpace",
            [joined],
            [plan.nodes[-1].output[0]],
            _new(graph, joined + "_interleaved"),
            blocksize=plan.stride,
            **mode,
        )
    )
    return nodes, tensors


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes whose results are used: the Cast of weights that were rewritten is not."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):  # a graph is sorted: makers before users
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def _new(graph: _Graph, name: str) -> str:
    """A name that nothing has yet."""
    while name in graph.names:
        name += "_"
    graph.names.add(name)
    return name


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
