"""The model's part of a build: read the ONNX file, find its spec, check its input and output against it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from onnx import TensorProto

from edgepose.errors import InputError, ModelError
from edgepose.spec import ModelSpec

__all__ = ["check_io", "choose_spec", "read_model"]

DEFAULT_PROFILE = (1, 4, 16)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def read_model(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model with its weights loaded, and the SHA-256 of its file, external weights included.

    An input or output without a shape gets one of four open sizes: ONNX's checks ask for one, ONNX Runtime does not.

    Raises:
        ModelError: the file, or the file of its weights, cannot be read; it is not ONNX; it has several inputs or
            outputs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError has no public class that stays the same between versions
        raise ModelError(
            f"{path} is not an ONNX model: it may be cut off, or another kind of file ({error})"
        ) from error
    stored = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if stored:
        names = sorted({item.value for tensor in stored for item in tensor.external_data if item.key == "location"})
        try:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
            digest.update(model.SerializeToString(deterministic=True))
        except Exception as error:  # OSError, ONNX's ValidationError, or NumPy's for a file that is cut off
            raise ModelError(
                f"{path} keeps its weights in {', '.join(names)}, which cannot be read ({error}): put the whole file "
                "beside the model, or export the model again"
            ) from error
    if len(model.graph.output) != 1 or len(_inputs(model)) != 1:
        found = [value.name for value in (*_inputs(model), *model.graph.output)]
        raise ModelError(
            f"{path}: a heatmap model has one input and one output, this one has {', '.join(found) or 'none'}"
        )
    for value in (*_inputs(model), *model.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(4))
    return model, digest.hexdigest()


def choose_spec(model: onnx.ModelProto, spec: ModelSpec | str | Path | None, path: Path) -> ModelSpec:
    """The caller's spec, or else the one in the model's metadata.

    Raises:
        ModelError: there is none, or it is not usable.
    """
    if spec is None:
        return ModelSpec.from_metadata({item.key: item.value for item in model.metadata_props}, source=str(path))
    return spec if isinstance(spec, ModelSpec) else ModelSpec.from_file(spec)


def check_io(
    model: onnx.ModelProto, spec: ModelSpec, profile: tuple[int, int, int] | None, source: str
) -> tuple[int, int, int]:
    """The batch sizes to build for, after checking input and output against the spec.

    What the graph leaves open agrees with any spec; the comparison runs the model and sees what comes out.

    Raises:
        InputError: the profile is not one, or not one for this model.
        ModelError: type or size of input or output is another one.
    """
    (value,) = _inputs(model)
    for what, tensor, size, channels in (
        ("input", value, spec.input_size, 3),
        ("output", model.graph.output[0], spec.heatmap_size, spec.num_keypoints),
    ):
        dtype = tensor.type.tensor_type.elem_type
        if dtype not in _FLOATS:
            raise ModelError(
                f"{source}: the {what} {tensor.name} is {TensorProto.DataType.Name(dtype).lower()}, and edgepose feeds "
                "and reads float32 or float16: export the network itself, without what comes before or after it"
            )
        found, wanted = _known_shape(tensor), (None, channels, size[1], size[0])
        if len(found) != 4 or any(have and want and have != want for have, want in zip(found, wanted, strict=True)):
            raise ModelError(
                f"{source}: model and spec disagree on the {what}: the model has {found}, the spec says {wanted} "
                "(batch, channels, height, width; None is any). Correct the spec, or pass the model that it belongs to"
            )
    fixed = _known_shape(value)[0]
    chosen = profile or ((fixed,) * 3 if fixed else DEFAULT_PROFILE)
    if fixed and chosen != (fixed,) * 3:
        raise InputError(
            f"{source} takes batches of {fixed} only, so a profile of {chosen} is impossible: leave it out, or export "
            "the model with a dynamic batch"
        )
    return chosen


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _known_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """None for a size that the graph leaves open."""
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim)
