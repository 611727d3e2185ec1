"""Foreign networks in one form: what every engine runs takes RGB, NCHW, normalised, and has one output.

    model, spec = adapt(onnx.load("cpm.onnx"), ModelSpec.from_file("cpm.json"))

    picture  (N, 3, h, w) float, RGB, normalised as the canonical spec says
      -> round to whole levels, if the network takes integers -> order of colours -> layout
      -> the network as it came
      -> layout -> choice of channels -> sigmoid of logits -> (N, K, h', w')

A few nodes at both ends of the ONNX graph do it, so ONNX Runtime and TensorRT see the same and neither kernels nor
pipelines know of it. Nothing inside is renamed or moved, so graphs with sub-graphs (If, Loop) and any opset from 7 on
are fine. Runtimes merge such nodes with what a converter left there: TensorFlow's exports begin and end with the very
Transpose that ours undoes.

A detector's output is made to rows of boxes by :mod:`edgepose.adapt_detector`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgepose.detector_spec import DetectorSpec
from edgepose.errors import ModelError
from edgepose.network_io import LEVELS, Tensor, check_heatmaps, check_image, choose_heatmaps, only_input
from edgepose.precision import skeleton
from edgepose.spec import ModelSpec

__all__ = [
    "Spec",
    "adapt",
    "adapt_input",
    "inputs_of",
    "keep_outputs",
    "read_spec",
    "reads",
    "tensor_of",
    "unused_name",
]


_MOVES = {"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}  # whatever the type is

Spec: TypeAlias = ModelSpec | DetectorSpec


def adapt(model: onnx.ModelProto, spec: Spec, *, source: str = "the model") -> tuple[onnx.ModelProto, Spec]:
    """A network in the form that every engine runs, and the spec of that form.

    Args:
        model: with its weights loaded. Never changed.
        spec: how the network differs.
        source: what error messages call the model.

    Returns:
        The very arguments where nothing has to be adapted; else a new model that shares nothing with the old one, and
        ``spec.canonical()``, which the model carries in its metadata.

    Raises:
        ModelError: model and spec contradict each other; says which field to change.
    """
    if isinstance(spec, ModelSpec):
        return _adapt_pose(model, spec, source)
    from edgepose.adapt_detector import adapt_detector

    return adapt_detector(model, spec, source=source)


def read_spec(path: str | Path) -> Spec:
    """The spec in a JSON file, of a pose model or of a detector: its keys tell them apart.

    Raises:
        ModelError: it cannot be read, or is not usable.
    """
    try:
        keys = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ModelSpec.from_file(path)  # says what is wrong
    if not isinstance(keys, dict) or {"heatmap_size", "keypoint_names", "flip_indices"} & set(keys):
        return ModelSpec.from_file(path)
    return DetectorSpec.from_file(path)


def _adapt_pose(model: onnx.ModelProto, spec: ModelSpec, source: str) -> tuple[onnx.ModelProto, ModelSpec]:
    image = only_input([tensor_of(value) for value in inputs_of(model)], source)
    outputs = [tensor_of(value) for value in model.graph.output]
    heatmaps = choose_heatmaps(outputs, spec, source)
    if heatmaps is None or heatmaps.shape is None or None in heatmaps.shape[1:]:
        heatmaps = _inferred(model, heatmaps.name if heatmaps else spec.output, outputs, source)
    check_image(image, spec, source)
    check_heatmaps(heatmaps, spec, source)
    if spec.is_canonical and image.dtype not in LEVELS and "float64" not in (image.dtype, heatmaps.dtype):
        return model, spec
    adapted = onnx.ModelProto()
    adapted.CopyFrom(model)
    keep_outputs(adapted, [heatmaps.name])
    adapt_input(adapted, spec)
    _adapt_heatmaps(adapted, spec, heatmaps)
    canonical = spec.canonical()
    canonical.write_metadata(adapted)
    return adapted, canonical


# Reading a graph --------------------------------------------------------------------------------------


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that somebody has to feed: older files list their weights among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def tensor_of(value: onnx.ValueInfoProto) -> Tensor:
    """Name, type and shape of an input or output."""
    kind = value.type.tensor_type
    dtype = "" if not kind.elem_type else str(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    if not kind.HasField("shape"):
        return Tensor(value.name, dtype, None)
    return Tensor(value.name, dtype, tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim))


def unused_name(model: onnx.ModelProto, wish: str) -> str:
    """``wish``, or with a number behind it what no tensor of the graph is called, sub-graphs included."""
    taken = {value.name for value in (*model.graph.input, *model.graph.output)}
    taken |= {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        taken.update(node.output, reads(node), *(inner.output for inner in _inner_nodes(node)))
    name, number = wish, 1
    while name in taken:
        name, number = f"{wish}_{number}", number + 1
    return name


def _inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a node's sub-graphs, at any depth."""
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield inner
                yield from _inner_nodes(inner)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads; a sub-graph reads names of the graph around it."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from reads(inner)


def _inferred(model: onnx.ModelProto, name: str, outputs: Sequence[Tensor], source: str) -> Tensor:
    """Type and shape of a tensor, as far as ONNX's shape inference knows them."""
    try:
        graph = shape_inference.infer_shapes(skeleton(model), data_prop=True).graph
    except Exception:  # ONNX raises classes of its own; what is not known is checked when the network runs
        graph = model.graph
    known = {value.name: tensor_of(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    made = {result for node in model.graph.node for result in node.output}
    if name in made or name in known:
        return known.get(name, Tensor(name, "", None))
    close = get_close_matches(name, made, n=3, cutoff=0.6)
    guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ModelError(
        f"{source}: the spec's output is {name!r}, and the network has no such tensor.{guess} Its outputs are "
        f"{', '.join(map(str, outputs))}"
    )


# Changing one -----------------------------------------------------------------------------------------


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make these tensors the outputs, in place, and drop the nodes and weights that serve none of them.

    Raises:
        ModelError: the type of a tensor from inside the graph is not known.
    """
    graph = model.graph
    if [value.name for value in graph.output] == list(names):
        return
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    if missing := [name for name in names if name not in known]:
        inferred = shape_inference.infer_shapes(skeleton(model)).graph
        known |= {value.name: value for value in inferred.value_info}
        if unknown := [name for name in missing if name not in known]:
            raise ModelError(
                f"the type of {unknown[0]!r} inside the graph is not known to ONNX {onnx.__version__}, so it cannot "
                "become an output: export the model with that output"
            )
    outputs = [_copy(known[name]) for name in names]
    del graph.output[:]
    graph.output.extend(outputs)
    wanted, kept = set(names), []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted.update(reads(node))
            kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensors in (graph.initializer, graph.value_info):
        for index in reversed(range(len(tensors))):
            if tensors[index].name not in wanted:
                del tensors[index]
    image = {value.name for value in inputs_of(model)}
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name not in wanted | image:
            del graph.input[index]


def adapt_input(model: onnx.ModelProto, spec: Spec) -> None:
    """Let a network take (N, 3, h, w) float RGB in place of what the spec's ``color`` and ``layout`` say, in place.

    The network's own input keeps its name inside the graph. Float16 stays float16; integers become float32, rounded to
    whole levels.
    """
    (value,) = inputs_of(model)
    image = tensor_of(value)
    if spec.color == "rgb" and spec.layout == "nchw" and image.dtype in {"float32", "float16"}:
        return
    name = unused_name(model, f"{image.name}_rgb")
    dtype = TensorProto.FLOAT16 if image.dtype == "float16" else TensorProto.FLOAT
    width, height = spec.input_size
    batch = image.shape[0] if image.shape else None
    steps: list[tuple[str, list[np.ndarray], dict[str, Any]]] = []
    if spec.color == "bgr":
        steps.append(("Gather", [np.array([2, 1, 0])], {"axis": 1}))
    if spec.layout == "nhwc":
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    if image.dtype in LEVELS:  # the nearest level; a Cast alone would cut the fraction off, and Round needs opset 11
        steps += [("Add", [np.array(0.5, np.float32)], {}), ("Floor", [], {})]
    carried = _only_cast(model, image.name) if image.dtype not in {"float32", "float16"} else set()
    if image.dtype not in {"float32", "float16"} and not carried:
        steps.append(("Cast", [], {"to": value.type.tensor_type.elem_type}))
    elif not steps:  # a Cast of the network's own takes floats as well as what it took
        steps.append(("Identity", [], {}))
    nodes = _chain(model, name, image.name, steps)
    fed = helper.make_tensor_value_info(name, dtype, [batch or "batch", 3, height, width])
    for index in reversed(range(len(model.graph.value_info))):
        if model.graph.value_info[index].name in carried:  # of another type now
            del model.graph.value_info[index]
    inputs = [fed if item.name == image.name else _copy(item) for item in model.graph.input]
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(inputs)
    model.graph.node.extend([*nodes, *rest])


def _only_cast(model: onnx.ModelProto, name: str) -> set[str]:
    """The tensors that carry the input's values to Casts, the input among them; empty: something else reads them.

    Then the network can be given floats without another Cast. TensorRT needs it so: it takes uint8 nowhere inside a
    network.
    """
    carried, pending = {name}, [name]
    while pending:
        current = pending.pop()
        if any(current == value.name for value in model.graph.output):
            return set()
        for node in model.graph.node:
            if current not in reads(node) or node.op_type == "Cast":
                continue
            if node.op_type not in _MOVES or node.input[0] != current:
                return set()
            carried.update(node.output)
            pending.extend(node.output)
    return carried


def _adapt_heatmaps(model: onnx.ModelProto, spec: ModelSpec, heatmaps: Tensor) -> None:
    """Let a network give (N, K, h, w) float, in place."""
    (value,) = model.graph.output
    steps: list[tuple[str, list[np.ndarray], dict[str, Any]]] = []
    if spec.heatmap_layout == "nhwc":
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if spec.heatmap_channels:
        steps.append(("Gather", [np.array(spec.heatmap_channels)], {"axis": 1}))
    if spec.activation == "sigmoid":
        steps.append(("Sigmoid", [], {}))
    dtype = value.type.tensor_type.elem_type
    if heatmaps.dtype == "float64":
        dtype = TensorProto.FLOAT
        steps.append(("Cast", [], {"to": dtype}))
    if not steps:
        return
    name = unused_name(model, "heatmaps")
    width, height = spec.heatmap_size
    batch = heatmaps.shape[0] if heatmaps.shape else None
    model.graph.node.extend(_chain(model, heatmaps.name, name, steps))
    output = helper.make_tensor_value_info(name, dtype, [batch or "batch", spec.num_keypoints, height, width])
    del model.graph.output[:]
    model.graph.output.append(output)


def _chain(
    model: onnx.ModelProto, first: str, last: str, steps: Sequence[tuple[str, list[np.ndarray], dict[str, Any]]]
) -> list[onnx.NodeProto]:
    """Nodes that lead from one tensor to another; constants are nodes too, since old files want weights as inputs."""
    nodes = []
    for number, (operator, constants, attributes) in enumerate(steps):
        names = [first]
        for constant in constants:
            names.append(unused_name(model, f"{last}_{operator.lower()}_by"))
            nodes.append(helper.make_node("Constant", [], names[-1:], value=numpy_helper.from_array(constant)))
        first = last if number == len(steps) - 1 else unused_name(model, f"{last}_{operator.lower()}")
        nodes.append(helper.make_node(operator, names, [first], name=f"edgepose_{first}", **attributes))
    return nodes


def _copy(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copied = onnx.ValueInfoProto()
    copied.CopyFrom(value)
    return copied
