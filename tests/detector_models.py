"""Networks that write detections in every way, and what the adapted ones make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgepose.adapt_detector import adapt_detector
from edgepose.detector_spec import DetectorSpec

__all__ = ["HEIGHT", "NAMES", "OPSETS", "WIDTH", "array", "detector", "rows_of", "spec"]

OPSETS = (9, 10, 11, 13, 17, 18, 21)  # between them the operators changed
WIDTH, HEIGHT = 64, 32  # not square, so that exchanged sides show
NAMES = ("shirt", "skirt", "shoe")


def detector(
    outputs: Mapping[str, NDArray[Any]],
    *,
    opset: int = 17,
    batch: int | str = 1,
    open_axes: tuple[str, ...] = (),
    inputs: Mapping[str, tuple[int, list[Any]]] | None = None,
    image: list[Any] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A network that answers every picture alike.

    Args:
        outputs: by name, as they come for one picture.
        batch: a name makes it dynamic; outputs whose first axis is 1 are repeated for each picture then.
        open_axes: outputs whose second axis has a length that is known only when the network has run (NMS inside).
        inputs: further ones by name: type and dimensions; they are added to the output of the name "echo".
        image: dimensions of the picture.
    """
    nodes, values, names = [], [], iter(range(1000))

    def add(operator: str, *sources: str, **attributes: Any) -> str:
        name = f"inner_{next(names)}"
        nodes.append(helper.make_node(operator, list(sources), [name], **attributes))
        return name

    def constant(values: Any, dtype: Any) -> str:
        return add("Constant", value=numpy_helper.from_array(np.array(values, dtype)))

    size = add("Shape", "images")
    mean = add("ReduceMean", "images", keepdims=0)
    for name, array in outputs.items():
        result, dims = constant(array, array.dtype), list(array.shape)
        if name in open_axes:
            zero = add("Mul", mean, constant(0.0, np.float32))
            mask = add("Greater", add("Add", constant(np.ones(dims[1]), np.float32), zero), constant(0.5, np.float32))
            chosen = add("Reshape", add("NonZero", mask), constant([-1], np.int64))
            result, dims[1] = add("Gather", result, chosen, axis=1), None
        if isinstance(batch, str) and array.shape[:1] == (1,):
            bounds = constant([0], np.int64), constant([1], np.int64)
            first = add("Slice", size, *bounds) if opset > 9 else add("Slice", size, starts=[0], ends=[1])
            ones = constant([1] * (array.ndim - 1), np.int64)
            result = add("Expand", result, add("Concat", first, ones, axis=0) if array.ndim > 1 else first)
            dims[0] = batch
        for extra in (inputs or {}) if name == "echo" else ():
            result = add("Add", result, add("Cast", extra, to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Identity", [result], [name]))
        values.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims))
    dims = image or [batch, 3, HEIGHT, WIDTH]
    fed = [helper.make_tensor_value_info("images", TensorProto.FLOAT, dims)]
    fed += [helper.make_tensor_value_info(name, *kind) for name, kind in (inputs or {}).items()]
    graph = helper.make_graph(nodes, "detector", fed, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def spec(format: str, **fields: Any) -> DetectorSpec:
    return DetectorSpec("test", (WIDTH, HEIGHT), fields.pop("category_names", NAMES), format, **fields)


def rows_of(model: onnx.ModelProto, fields: DetectorSpec, pictures: int = 1) -> NDArray[np.float32]:
    """The rows of the adapted model, (N, Q, 6); checks what holds of every adapted model."""
    before = model.SerializeToString()
    adapted, canonical = adapt_detector(model, fields)
    assert model.SerializeToString() == before
    assert canonical == fields.canonical()
    assert DetectorSpec.from_metadata({p.key: p.value for p in adapted.metadata_props}, source="x") == canonical
    onnx.checker.check_model(adapted, full_check=True)
    session = onnxruntime.InferenceSession(adapted.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert image.shape[1:] == [3, HEIGHT, WIDTH]
    pixels = np.random.default_rng(0).normal(size=(pictures, 3, HEIGHT, WIDTH)).astype(np.float32)
    (rows,) = session.run(None, {image.name: pixels})
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.float32
    assert output.shape[1:] == list(rows.shape[1:])  # Q is fixed, and the file says so
    assert adapt_detector(adapted, canonical)[0] is adapted  # nothing is left to do
    return rows


def array(*rows: list[float], dtype: Any = np.float32) -> NDArray[Any]:
    return np.array([rows], dtype)
