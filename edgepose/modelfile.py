"""What an ONNX file says about itself, without loading it into an engine."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from edgepose.errors import ModelError
from edgepose.spec import METADATA_KEY, ModelSpec

__all__ = ["ModelFile"]


@dataclass(frozen=True)
class ModelFile:
    """Facts about an ONNX file.

    Attributes:
        path: the file.
        size: bytes.
        spec: from its metadata; None: it has none.
        inputs, outputs: a line each: name, dtype and dimensions; a letter stands for a dynamic dimension.
        opset: of the standard operators.
        precision: dtype of the inputs; with the weights' dtype where that differs.
        parameters: number of weights.
        producer: the program that wrote it.
    """

    path: Path
    size: int
    spec: ModelSpec | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    precision: str
    parameters: int
    producer: str

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
        spec = ModelSpec.from_metadata(metadata, source=str(path)) if METADATA_KEY in metadata else None
        weights = {tensor.name: tensor for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in weights]
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
        )


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
    return of_inputs if of_weights == of_inputs else f"{of_inputs}, weights stored as {of_weights}"
