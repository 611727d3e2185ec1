"""The model's part of a build: read the ONNX file, find its spec, adapt it, give it its precision."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from edgepose.adapt import Spec, adapt, inputs_of, read_spec, tensor_of
from edgepose.detector_spec import METADATA_KEY as DETECTOR_KEY
from edgepose.enginefile import Precision
from edgepose.engines.kinds import Kind, spec_from_metadata
from edgepose.errors import InputError, ModelError
from edgepose.modelfile import load_model
from edgepose.precision import to_fp16, to_fp32
from edgepose.spec import METADATA_KEY, ModelSpec

__all__ = ["choose_profile", "choose_spec", "in_precision", "read_model", "refuse_cpu_int8"]

DEFAULT_PROFILE = (1, 4, 16)
_WEIGHTS_APART = 4  # ONNX's ir_version from which on weights need not be listed among the inputs


def read_model(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model with its weights loaded, and the SHA-256 of its file, external weights included.

    An input or output without a shape gets one of four open sizes: ONNX's checks ask for one, ONNX Runtime does not.
    Weights that older files list among the inputs are no inputs any more: nobody feeds them.

    Raises:
        ModelError: the file, or the file of its weights, cannot be read, or it is not ONNX.
    """
    model, digest = load_model(path)
    images = inputs_of(model)
    for value in (*images, *model.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(4))
    if len(images) != len(model.graph.input):
        model.ir_version = max(model.ir_version, _WEIGHTS_APART)
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in images]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    return model, digest


def refuse_cpu_int8(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError for a model as :func:`edgepose.quantize_model` writes it: TensorRT's own INT8 is another one."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and TensorProto.UINT8 in map(kinds.get, node.input):
            raise ModelError(
                f"{path} is quantised to INT8 for CPUs: its activations are unsigned, TensorRT's are signed. Build the "
                "engine from the float model that it was made of (`edgepose info` names it), or run the file as it is "
                "on the CPU"
            )


def choose_spec(model: onnx.ModelProto, spec: Spec | str | Path | None, path: Path) -> Spec:
    """The caller's spec, or else the one in the model's metadata, of a pose model or a detector.

    Raises:
        ModelError: there is none, or it is not usable.
    """
    if spec is None:
        metadata = {item.key: item.value for item in model.metadata_props}
        kind: Kind = "detector" if DETECTOR_KEY in metadata and METADATA_KEY not in metadata else "pose"
        return spec_from_metadata(metadata, kind, source=str(path))
    return read_spec(spec) if isinstance(spec, (str, Path)) else spec


def in_precision(model: onnx.ModelProto, spec: Spec, precision: Precision, source: str) -> tuple[onnx.ModelProto, Spec]:
    """The adapted network with all its arithmetic in one precision, and the spec of that.

    What adaptation adds to a detector stays float32: coordinates of a large picture need more than float16's 11 bits.

    Raises:
        ModelError: the graph cannot be converted, or contradicts the spec.
    """
    retype = to_fp16 if precision == "fp16" else to_fp32
    if isinstance(spec, ModelSpec):
        adapted, canonical = adapt(model, spec, source=source)
        return retype(adapted), canonical
    return adapt(retype(model), spec, source=source)


def choose_profile(model: onnx.ModelProto, profile: tuple[int, int, int] | None, source: str) -> tuple[int, int, int]:
    """The batch sizes to build for.

    Raises:
        InputError: the profile is not one for this model.
    """
    (value,) = inputs_of(model)
    shape = tensor_of(value).shape
    fixed = shape[0] if shape else None
    chosen = profile or ((fixed,) * 3 if fixed else DEFAULT_PROFILE)
    if fixed and chosen != (fixed,) * 3:
        raise InputError(
            f"{source} takes batches of {fixed} only, so a profile of {chosen} is impossible: leave it out, or export "
            "the model with a dynamic batch"
        )
    return chosen
