"""What an ONNX file says about itself, without loading it into an engine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from edgepose.adapt import Spec, inputs_of
from edgepose.begin_detector_spec import begin_detector_spec
from edgepose.begin_spec import begin_spec
from edgepose.detector_spec import METADATA_KEY as DETECTOR_KEY
from edgepose.engines.kinds import Kind, spec_from_metadata
from edgepose.errors import ModelError
from edgepose.quantize_report import QuantizationReport
from edgepose.spec import METADATA_KEY

__all__ = ["ModelFile", "load_model"]


@dataclass(frozen=True)
class ModelFile:
    """Facts about an ONNX file.

    Attributes:
        path: the file.
        size: bytes.
        spec: from its metadata, of a pose model or of a detector; None: it has none.
        inputs, outputs: a line each: name, dtype and dimensions; a letter stands for a dynamic dimension.
        opset: of the standard operators.
        precision: dtype of the inputs; with the weights' dtype where that differs; ``int8`` where layers compute in it.
        parameters: number of weights.
        producer: the program that wrote it.
        starting_spec: for a file without a spec that seems to give heatmaps or detections: JSON to begin one with, in
            which the sizes are the file's and the rest has to be checked; empty: nothing to begin with.
        quantization: of a file that :func:`edgepose.quantize_model` wrote: what it did; None: any other.
    """

    path: Path
    size: int
    spec: Spec | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    precision: str
    parameters: int
    producer: str
    starting_spec: str = ""
    quantization: QuantizationReport | None = None

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Read the facts.

        Raises:
            ModelError: not an ONNX file, or the spec in it is not usable.
        """
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf's DecodeError has no public class that stays the same between versions
            raise ModelError(
                f"{path} is not an ONNX model: it may be cut off, or another kind of file ({error})"
            ) from error
        graph = model.graph
        if not graph.output:
            raise ModelError(f"{path} is not an ONNX model: it parses as one without a single output")
        metadata = {prop.key: prop.value for prop in model.metadata_props}
        kinds: dict[str, Kind] = {METADATA_KEY: "pose", DETECTOR_KEY: "detector"}
        kind = next((kind for key, kind in kinds.items() if key in metadata), None)
        spec = None if kind is None else spec_from_metadata(metadata, kind, source=str(path))
        weights = {tensor.name: tensor for tensor in graph.initializer}
        inputs = inputs_of(model)
        return cls(
            path=path,
            size=path.stat().st_size,
            spec=spec,
            inputs=tuple(_signature(value) for value in inputs),
            outputs=tuple(_signature(value) for value in graph.output),
            opset=max((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), default=0),
            precision=_precision(inputs, list(weights.values())),
            parameters=sum(prod(tensor.dims) for tensor in weights.values()),
            producer=f"{model.producer_name} {model.producer_version}".strip() or "unknown",
            starting_spec=""
            if spec
            else begin_spec(path.stem, inputs, graph.output) or begin_detector_spec(path.stem, model),
            quantization=QuantizationReport.from_metadata(metadata, source=str(path)),
        )


def load_model(path: Path) -> tuple[onnx.ModelProto, str]:
    """A model with its weights loaded, and the SHA-256 of its file, external weights included.

    Raises:
        ModelError: the file, or the file of its weights, cannot be read, or it is not ONNX.
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
    if not model.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it parses as one without a single output")
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
    return model, digest.hexdigest()


def _signature(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
    )
    return f"{value.name}  {_dtype(tensor.elem_type)} ({dims})"


def _dtype(number: int) -> str:
    return TensorProto.DataType.Name(number).lower().replace("float", "fp") if number != 1 else "fp32"


def _precision(inputs: list[onnx.ValueInfoProto], weights: list[onnx.TensorProto]) -> str:
    of_inputs = "/".join(sorted({_dtype(value.type.tensor_type.elem_type) for value in inputs}))
    sizes: dict[str, int] = {}
    for tensor in weights:
        name = _dtype(tensor.data_type)
        sizes[name] = sizes.get(name, 0) + prod(tensor.dims)
    of_weights = max(sizes, key=lambda name: sizes[name], default=of_inputs)
    if of_weights in {"int8", "uint8"}:
        return f"{of_weights}, input as {of_inputs}"
    return of_inputs if of_weights == of_inputs else f"{of_inputs}, weights stored as {of_weights}"
