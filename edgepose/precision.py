"""The precision of a graph: the same network with all of its arithmetic in float16, or in float32.

TensorRT 11 knows no precision flags: a network computes in the types that its graph names, and TensorRT 10.3 and
TensorRT-RTX take the same graphs. So precision is changed here, in the ONNX graph, before a builder sees it.

Every float tensor changes its type, but for inputs that ONNX defines as float32 whatever the data is (the ``scales`` of
Resize; its ``roi`` is left alone too). Casts that then convert a type to itself vanish, which also unpacks weights that
are stored as float16 behind a Cast. What cannot be converted so that ONNX's own type
rules hold is refused: quantised graphs, sub-graphs, functions, operators outside of ONNX's standard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgepose.errors import ModelError

__all__ = ["FLOAT16_MAX", "rounded_to_fp16", "skeleton", "to_fp16", "to_fp32"]

FLOAT16_MAX = 65504.0
_STANDARD = ("", "ai.onnx")
_SMALL = 64  # elements
_NAMES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
_SCHEMA_NAMES: dict[int, str] = {TensorProto.FLOAT: "tensor(float)", TensorProto.FLOAT16: "tensor(float16)"}
_ARRAYS: dict[int, type[np.floating[Any]]] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
# Coordinates, not data: ONNX would allow float16 here, but they are not part of the arithmetic.
_LEFT_ALONE = {("Resize", "roi")}


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that computes in float16, input and output included.

    Args:
        model: with its weights loaded. A model that is float16 already comes back as an equal copy.

    Raises:
        ModelError: a weight is beyond float16's range, or the graph holds something that cannot be converted; names it.
    """
    return _retype(model, TensorProto.FLOAT, TensorProto.FLOAT16)


def to_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that computes in float32, input and output included; float16 weights are widened.

    A model that holds no float16 comes back as an equal copy, whatever else is in it.

    Raises:
        ModelError: the graph holds something that cannot be converted; names it.
    """
    if _holds_float16(model):
        return _retype(model, TensorProto.FLOAT16, TensorProto.FLOAT)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@dataclass
class _Plan:
    """Which names change their type, and which stay.

    Attributes:
        changed: names of the source type that are read as data.
        kept: names of the source type that some input needs as they are.
    """

    changed: set[str]
    kept: set[str]


def _retype(model: onnx.ModelProto, source: int, target: int) -> onnx.ModelProto:
    _refuse_unknown(model)
    types = _element_types(model)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    plan = _make_plan(converted, types, source, target)

    renamed = _convert_initializers(graph, plan, source, target)
    renamed.update(_convert_constants(graph, plan, types, source, target))
    _point_to_renamed(converted, renamed, target)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == source:
                attribute.i = target
            elif node.op_type == "ConstantOfShape" and attribute.name == "value" and attribute.t.data_type == source:
                attribute.t.CopyFrom(_convert_tensor(attribute.t, attribute.t.name, source, target))
    after = {name: target if kind == source and name not in plan.kept else kind for name, kind in types.items()}
    _drop_casts(graph, after)

    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == source and value.name not in plan.kept:
            value.type.tensor_type.elem_type = target
    return _checked(converted, target)


def _holds_float16(model: onnx.ModelProto) -> bool:
    """Whether float16 is mentioned anywhere; functions and sparse weights count as if it were."""

    def inside(graph: onnx.GraphProto) -> bool:
        if any(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in (*graph.input, *graph.output)):
            return True
        if any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer):
            return True
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            if attribute.t.data_type == TensorProto.FLOAT16 or (attribute.name, attribute.i) == (
                "to",
                TensorProto.FLOAT16,
            ):
                return True
            if any(map(inside, (attribute.g, *attribute.graphs))):
                return True
        return False

    return bool(model.functions or model.graph.sparse_initializer) or inside(model.graph)


# What can be converted ----------------------------------------------------------------------------


def _refuse_unknown(model: onnx.ModelProto) -> None:
    if model.functions:
        raise ModelError(
            f"cannot change the precision of a model with functions ({model.functions[0].name}): inline them"
        )
    if model.graph.sparse_initializer:
        raise ModelError("cannot change the precision of a model with sparse weights: store them densely")
    for node in model.graph.node:
        if any(
            attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS} for attribute in node.attribute
        ):
            raise ModelError(f"cannot change the precision of {_describe(node)}: it holds a sub-graph")


def _schema(model: onnx.ModelProto, node: onnx.NodeProto) -> Any:
    versions = {item.domain: item.version for item in model.opset_import}
    version = versions.get(node.domain, versions.get("" if node.domain else "ai.onnx", 0))
    try:
        if node.domain not in _STANDARD:
            raise onnx.defs.SchemaError
        return onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        raise ModelError(
            f"cannot change the precision of {_describe(node)}: ONNX {onnx.__version__} knows no such operator "
            f"({node.domain or 'standard'} domain, opset {version}). Export the model in the precision that you need"
        ) from None


def _formal(formals: Any, index: int) -> Any:
    return formals[min(index, len(formals) - 1)]  # the last one may be variadic


def _make_plan(model: onnx.ModelProto, types: dict[str, int], source: int, target: int) -> _Plan:
    plan = _Plan({value.name for value in model.graph.output if types.get(value.name) == source}, set())
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        schema = _schema(model, node)
        for index, name in enumerate(node.input):
            if not name or types.get(name) != source:
                continue
            formal = _formal(schema.inputs, index)
            if _SCHEMA_NAMES[target] in formal.types and (node.op_type, formal.name) not in _LEFT_ALONE:
                plan.changed.add(name)
                continue
            if name not in constants:
                raise ModelError(
                    f"cannot change the precision of {_describe(node)}: its input {formal.name} takes {_NAMES[source]} "
                    f"only and gets {name}, which is no constant. Export the model in the precision that you need"
                )
            plan.kept.add(name)
        for index, name in enumerate(node.output):
            formal = _formal(schema.outputs, index)
            if name and types.get(name) == source and _SCHEMA_NAMES[target] not in formal.types:
                raise ModelError(
                    f"cannot change the precision of {_describe(node)}: its output {formal.name} is always "
                    f"{_NAMES[source]} in this opset. Export the model in the precision that you need"
                )
    return plan


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of each name in the graph."""
    try:
        graph = shape_inference.infer_shapes(skeleton(model), check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # ONNX's checker raises classes of its own, and plain RuntimeError
        raise ModelError(f"the model is not valid ONNX: {' '.join(str(error).split())[:400]}") from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of its large weights: ONNX's checks copy a model several times."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    bare.graph.name = graph.name or "graph"
    for name in ("node", "input", "output", "value_info"):
        getattr(bare.graph, name).extend(getattr(graph, name))
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if prod(tensor.dims) <= _SMALL:  # a shape, scales, and the like: their values matter to shape inference
            bare.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return bare


def _describe(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]!r}"


# The changes --------------------------------------------------------------------------------------


def _convert_tensor(tensor: onnx.TensorProto, name: str, source: int, target: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        converted = values.astype(_ARRAYS[target])
    if target == TensorProto.FLOAT16 and not np.array_equal(np.isfinite(converted), np.isfinite(values)):
        worst = float(np.abs(values[np.isfinite(values)]).max())
        raise ModelError(
            f"{name} holds {worst:.4g}, and float16 ends at {FLOAT16_MAX:g}: build with precision='fp32', or rescale "
            "the weights"
        )
    return numpy_helper.from_array(converted, name)


def _convert_initializers(graph: Any, plan: _Plan, source: int, target: int) -> dict[str, str]:
    """Convert the weights in place. A weight that is needed in both types is there twice; returns its new name."""
    renamed = {}
    for tensor in list(graph.initializer):
        name = tensor.name
        if tensor.data_type != source or (name in plan.kept and name not in plan.changed):
            continue
        if name in plan.kept:
            renamed[name] = f"{name}.{_NAMES[target]}"
            graph.initializer.append(_convert_tensor(tensor, renamed[name], source, target))
        else:
            tensor.CopyFrom(_convert_tensor(tensor, name, source, target))
    return renamed


def _convert_constants(graph: Any, plan: _Plan, types: dict[str, int], source: int, target: int) -> dict[str, str]:
    """The same for Constant nodes; a ``value_float`` or ``value_floats`` becomes a tensor."""
    renamed = {}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        name = node.output[0] if node.op_type == "Constant" else ""
        if not name or types.get(name) != source or (name in plan.kept and name not in plan.changed):
            continue
        (attribute,) = node.attribute
        value = helper.get_attribute_value(attribute)
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value, np.float32))
        new_name = f"{name}.{_NAMES[target]}" if name in plan.kept else name
        constant = helper.make_node(
            "Constant", [], [new_name], name=node.name, value=_convert_tensor(tensor, new_name, source, target)
        )
        if name in plan.kept:
            renamed[name] = new_name
            nodes.append(constant)
        else:
            nodes[-1] = constant
    _replace_nodes(graph, nodes)
    return renamed


def _point_to_renamed(model: onnx.ModelProto, renamed: dict[str, str], target: int) -> None:
    """Let the inputs that changed their type read the converted copies of constants that exist twice."""
    if not renamed:
        return
    for node in model.graph.node:
        schema = _schema(model, node)
        for index, name in enumerate(node.input):
            formal = _formal(schema.inputs, index) if name in renamed else None
            if formal and _SCHEMA_NAMES[target] in formal.types and (node.op_type, formal.name) not in _LEFT_ALONE:
                node.input[index] = renamed[name]


def _drop_casts(graph: Any, types: dict[str, int]) -> None:
    """Remove each Cast to the type that its input has already; one that makes a graph output becomes an Identity."""
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        if node.op_type == "Cast" and types.get(node.input[0]) == node.attribute[0].i:
            if node.output[0] not in outputs:
                same[node.output[0]] = node.input[0]
                continue
            node.CopyFrom(helper.make_node("Identity", list(node.input), list(node.output), name=node.name))
        nodes.append(node)
    _replace_nodes(graph, nodes)


def _replace_nodes(graph: Any, nodes: Iterable[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _checked(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """The model with the types and shapes of its tensors inferred anew, if it is valid."""
    del model.graph.value_info[:]
    try:
        checked = shape_inference.infer_shapes(skeleton(model), check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(checked, full_check=True)
    except Exception as error:
        raise ModelError(
            f"the graph cannot be converted to {_NAMES[target]}; export it in the precision that you need. ONNX says: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    model.graph.value_info.extend(checked.graph.value_info)
    for ours, inferred in zip(model.graph.output, checked.graph.output, strict=True):
        ours.CopyFrom(inferred)
    return model


# Float16 arithmetic on a CPU --------------------------------------------------------------------------

# What they return is among their inputs, or was rounded there already.
_MOVES_VALUES = frozenset(
    {"Relu", "MaxPool", "Concat", "Split", "Slice", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
    | {"Identity", "Gather", "Constant", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Max", "Min"}
)


def rounded_to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 model that computes what a float16 engine does: what is float16 there is rounded to float16.

    ONNX Runtime's CPU provider cannot say it: it runs a float16 graph in float32 and drops the casts between layers, so
    it neither rounds activations nor lets them overflow. Sums within a layer stay float32, as on tensor cores.

    Args:
        model: one that computes in float16, or partly so. Its input must be rounded by the caller, if it is float16.
    """
    halves = {name for name, kind in _element_types(model).items() if kind == TensorProto.FLOAT16}
    rounded = to_fp32(model)
    nodes = []
    for node in rounded.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in halves and node.op_type not in _MOVES_VALUES:
                exact, half = f"{name}.exact", f"{name}.half"
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    _replace_nodes(rounded.graph, nodes)
    del rounded.graph.value_info[:]
    return rounded
