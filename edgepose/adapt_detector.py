"""Any detector in the form that every engine runs: one output, rows (N, Q, 6) float32.

    x1, y1, x2, y2 (px of the network's input, pixel edges), score (0..1), label (number of the category)

The nodes that read a detector's outputs, as its :class:`~edgepose.detector_spec.DetectorSpec` describes them, are
appended to its ONNX graph, so that kernels and pipelines know one form only. Each candidate has the label of its
best class. Neither threshold nor NMS is added, and labels that are no category's stay: ``select_detections`` sees to
all that.

Q is fixed, as buffers on the device and TensorRT's profiles want it. Where the number of candidates differs from run to
run (NMS inside), the best ``max_detections`` of them are taken, and rows of zeros fill up what is missing; where NMS is
still to come, the best 1000 (as ``nms_pre`` of MMDetection).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from edgepose.adapt import adapt_input, inputs_of, keep_outputs, tensor_of, unused_name
from edgepose.detector_rows import DetectorRows, rank_of
from edgepose.detector_spec import ONLY, DetectorSpec
from edgepose.errors import ModelError
from edgepose.network_io import Tensor, check_image
from edgepose.onnx_nodes import Nodes
from edgepose.precision import skeleton

__all__ = ["adapt_detector"]


def adapt_detector(
    model: onnx.ModelProto, spec: DetectorSpec, *, source: str = "the model"
) -> tuple[onnx.ModelProto, DetectorSpec]:
    """A detector in the canonical form, and the spec of that form.

    Args:
        model: with its weights loaded. Never changed. Its opset must be 9 or later.
        spec: how its input is fed and its outputs are read.
        source: what error messages call the model.

    Returns:
        The very arguments where nothing has to be adapted; else a new model that shares nothing with the old one, and
        ``spec.canonical()``, which the model carries in its metadata. Its batch size is dynamic if the old one's was
        and its outputs have a batch axis.

    Raises:
        ModelError: model and spec contradict each other; says which field to change.
    """
    image = _image(model, spec, source)
    outputs = _outputs(model, spec, source)
    if _is_canonical(model, spec, image, outputs):
        return model, spec
    adapted = onnx.ModelProto()
    adapted.CopyFrom(model)
    outputs = _fix_input(adapted, spec, image, outputs, source)
    _fill_inputs(adapted, spec, image, _named_sizes(model, image, spec), source)
    keep_outputs(adapted, list(dict.fromkeys(tensor.name for tensor in outputs.values())))
    adapt_input(adapted, spec)
    batch = inputs_of(adapted)[0].type.tensor_type.shape.dim[0]
    nodes = Nodes(adapted, "edgepose_detections")
    rows, count = DetectorRows(nodes, spec, image.name, batch.dim_value or None, source).read(outputs)
    name = unused_name(adapted, "detections")
    nodes.add("Identity", rows, output=name)
    nodes.append()
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch.dim_value or batch.dim_param, count, 6])
    del adapted.graph.output[:]
    adapted.graph.output.append(value)
    canonical = spec.canonical()
    canonical.write_metadata(adapted)
    return adapted, canonical


def _is_canonical(model: onnx.ModelProto, spec: DetectorSpec, image: Tensor, outputs: dict[str, Tensor]) -> bool:
    rows = outputs.get("rows")
    return (
        spec.is_canonical
        and len(inputs_of(model)) == len(model.graph.output) == 1
        and image.dtype in {"float32", "float16"}
        and rows is not None
        and rows.dtype == "float32"
        and rows.shape is not None
        and len(rows.shape) == 3
        and rows.shape[1] is not None
        and rows.shape[2] == 6
    )


# Inputs -------------------------------------------------------------------------------------------------


def _image(model: onnx.ModelProto, spec: DetectorSpec, source: str) -> Tensor:
    """The input that takes pictures: the one with four dimensions."""
    inputs = [tensor_of(value) for value in inputs_of(model)]
    images = [tensor for tensor in inputs if tensor.shape is not None and len(tensor.shape) == 4]
    if len(images) != 1:
        raise ModelError(
            f"{source}: a detector has one input with four dimensions, the picture; this one has {_listed(inputs)}"
        )
    check_image(images[0], spec, source)
    return images[0]


def _fix_input(
    model: onnx.ModelProto, spec: DetectorSpec, image: Tensor, outputs: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Fix the size of the picture where the model leaves it open, and the batch at 1 where outputs have no batch axis.

    Returns:
        The outputs, with the shapes that follow from it.
    """
    dims = next(value for value in inputs_of(model) if value.name == image.name).type.tensor_type.shape.dim
    width, height = spec.input_size
    changed = False
    for dim, size in zip(dims, (0, 3, height, width) if spec.layout == "nchw" else (0, height, width, 3), strict=True):
        if size and not dim.dim_value > 0:
            dim.dim_value, changed = size, True
    alone = [tensor for role, tensor in outputs.items() if _is_single(role, tensor, spec)]
    if dims[0].dim_value > 1 and alone:
        raise ModelError(
            f"{source}: the model takes {dims[0].dim_value} pictures at once, and its output {alone[0]} is of one: "
            "export it with a batch of 1"
        )
    if not dims[0].dim_value > 0:
        if alone:
            dims[0].dim_value, changed = 1, True
        elif not dims[0].dim_param:
            dims[0].dim_param = "batch"
    return _outputs(model, spec, source) if changed else outputs


def _is_single(role: str, tensor: Tensor, spec: DetectorSpec) -> bool:
    """Whether an output is of one picture only. Rows that tell their picture are not."""
    if tensor.shape is None or (role == "rows" and "batch" in spec.columns):
        return False
    return len(tensor.shape) < rank_of(role, spec, tensor.shape) or tensor.shape[:1] == (1,)


def _named_sizes(model: onnx.ModelProto, image: Tensor, spec: DetectorSpec) -> dict[str, int]:
    """The picture's sizes that the model leaves open, by the names that it gives them."""
    dims = next(value for value in inputs_of(model) if value.name == image.name).type.tensor_type.shape.dim
    width, height = spec.input_size
    sizes = (0, 3, height, width) if spec.layout == "nchw" else (0, height, width, 3)
    return {dim.dim_param: size for dim, size in zip(dims, sizes, strict=True) if size and dim.dim_param}


def _fill_inputs(model: onnx.ModelProto, spec: DetectorSpec, image: Tensor, named: dict[str, int], source: str) -> None:
    """Make every input but the picture a constant."""
    others = [value for value in inputs_of(model) if value.name != image.name]
    names = [value.name for value in others]
    values = dict(spec.constants)
    if spec.format == "rtdetr_deployed" and "orig_target_sizes" in names:
        values.setdefault("orig_target_sizes", tuple(map(float, spec.input_size)))
    if unknown := sorted(set(values) - set(names)):
        raise ModelError(
            f"{source}: constants names the input {unknown[0]!r}, and the model's inputs beside the picture are "
            f"{', '.join(names) or 'none'}"
        )
    if missing := sorted(set(names) - set(values)):
        raise ModelError(
            f"{source}: the model has an input {missing[0]!r} beside the picture; say in the spec what to feed it, "
            f'for each picture the same, one value for all or each of them: "constants": {{"{missing[0]}": [1]}}'
        )
    if not others:
        return
    nodes = Nodes(model, "edgepose_constants")
    for value in others:
        dims = value.type.tensor_type.shape.dim
        tensor = tensor_of(value)
        if tensor.shape is not None:  # a mask of the picture has its sizes
            tensor = replace(tensor, shape=tuple(dim.dim_value or named.get(dim.dim_param) for dim in dims))
        _fill(nodes, tensor, values[value.name], image, source)
    nodes.prepend()
    for index in reversed(range(len(model.graph.input))):
        if model.graph.input[index].name in names:
            del model.graph.input[index]


def _fill(nodes: Nodes, tensor: Tensor, values: tuple[float, ...], image: Tensor, source: str) -> None:
    shape = tensor.shape or ()
    sizes = shape[1:] if len(shape) > 1 else shape  # of one picture, where there is a batch axis
    open_sizes = sizes.count(None)
    if len(values) == 1 and not open_sizes:
        values *= prod(size or 1 for size in sizes)
    if open_sizes > 1 or (open_sizes == 0 and prod(size or 1 for size in sizes) != len(values)):
        raise ModelError(
            f"{source}: the input {tensor} takes {prod(size or 1 for size in sizes)} values for each picture, and "
            f"constants gives it {list(values)}"
        )
    array = np.array(values, tensor.dtype or np.float32).reshape([-1 if size is None else size for size in sizes])
    if len(shape) < 2:
        nodes.constant(array, array.dtype, output=tensor.name)
        return
    batch = shape[0] or (image.shape or (None,))[0]
    if batch:
        nodes.constant(np.broadcast_to(array, (batch, *array.shape)), array.dtype, output=tensor.name)
        return
    full = nodes.add("Concat", nodes.size(image.name, 0), nodes.integers(array.shape), axis=0)
    nodes.add("Expand", nodes.constant(array[None], array.dtype), full, output=tensor.name)


# Outputs ------------------------------------------------------------------------------------------------


def _outputs(model: onnx.ModelProto, spec: DetectorSpec, source: str) -> dict[str, Tensor]:
    """The tensor in each role, its shape as far as it is known."""
    stated = {value.name: tensor_of(value) for value in model.graph.output}
    inner = {result for node in model.graph.node for result in node.output}
    chosen = {}
    for role, names in spec.outputs.items():
        if names == ONLY:
            if len(stated) != 1:
                if len(stated) > 1 and all(len(tensor.shape or ()) in (4, 5) for tensor in stated.values()):
                    raise ModelError(
                        f"{source}: the outputs {_listed(stated.values())} look like the raw maps of a detector, one "
                        "for each level, whose boxes still want anchors or distributions: that is not supported. "
                        "Export the model with its decoding inside (YOLOv5, v7, v8: with the authors' own export)"
                    )
                raise ModelError(
                    f"{source}: format {spec.format} reads one output, and this model has {_listed(stated.values())}. "
                    f'Say in the spec which one: "outputs": {{"{role}": "{next(iter(stated))}"}}, or use another format'
                )
            names = next(iter(stated))  # noqa: PLW2901
        known = [name for name in names.split("|") if name in stated or name in inner]
        if not known:
            raise ModelError(
                f"{source}: the spec's output in the role {role} is {names.replace('|', ' or ')}, and the model's "
                f"outputs are {_listed(stated.values())}. Say in the spec which of them it is: "
                f'"outputs": {{"{role}": "..."}}; or use another format'
            )
        chosen[role] = known[0]
    if any(name not in stated or _is_open(stated[name]) for name in chosen.values()):
        stated |= _inferred(model, stated)
    found = {role: stated.get(name, Tensor(name, "", None)) for role, name in chosen.items()}
    for role, tensor in found.items():
        if tensor.shape is None:
            raise ModelError(
                f"{source}: neither the file nor ONNX's shape inference says how many dimensions the output "
                f"{tensor.name} ({role}) has: export the model with the shapes of its outputs"
            )
    return found


def _is_open(tensor: Tensor) -> bool:
    return tensor.shape is None or None in tensor.shape[1:]


def _inferred(model: onnx.ModelProto, stated: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ONNX's shape inference knows of the tensors, the outputs' sizes forgotten; what it does not know is left."""
    bare = skeleton(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # ONNX raises classes of its own; what the file states still holds
        return {}
    found = {value.name: tensor_of(value) for value in (*graph.value_info, *graph.output)}
    for name, tensor in stated.items():
        shape, before = found[name].shape if name in found else None, tensor.shape
        if shape is None or (before is not None and len(before) != len(shape)):
            found[name] = tensor
        elif before is not None:  # a size that inference cannot follow through a Reshape may be stated
            sizes = tuple(new if new is not None else old for new, old in zip(shape, before, strict=True))
            found[name] = replace(tensor, dtype=tensor.dtype or found[name].dtype, shape=sizes)
    return found


def _listed(tensors: Iterable[Tensor]) -> str:
    return ", ".join(map(str, tensors)) or "none"
