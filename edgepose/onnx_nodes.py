"""Adding nodes to an ONNX graph, in whatever opset it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from edgepose.errors import ModelError
from edgepose.precision import skeleton

__all__ = ["Nodes", "opset_of"]

_OLDEST = 9  # Where and comparisons of floats are there since then


class Nodes:
    """New nodes for a graph; ``append`` puts them at its end, ``prepend`` at its start.

    Each method adds one operator and returns the name of its result. Names begin with a prefix that the graph does not
    hold. Constants are nodes too: files of IR version 3 want their weights among the inputs.

    Args:
        model: what the nodes are for; not changed until ``append``.
        prefix: how the names of nodes and tensors begin.

    Raises:
        ModelError: the model's opset is too old.
    """

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self.opset = opset_of(model)
        if self.opset < _OLDEST:
            raise ModelError(
                f"the model uses ONNX opset {self.opset}, and reading a detector's outputs needs {_OLDEST} or later: "
                f"export it again, or convert it with onnx.version_converter.convert_version(model, {_OLDEST})"
            )
        taken = skeleton(model).SerializeToString()
        while f"{prefix}/".encode() in taken:
            prefix += "_"
        self._model = model
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []

    def append(self) -> None:
        """Put the nodes behind the graph's own."""
        self._model.graph.node.extend(self._nodes)

    def prepend(self) -> None:
        """Put the nodes before the graph's own."""
        rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._model.graph.node]
        del self._model.graph.node[:]
        self._model.graph.node.extend([*self._nodes, *rest])

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Any operator with one result, which may be given its name."""
        return self._add(operator, inputs, [output or self._name(operator)], attributes)[0]

    def _add(self, operator: str, inputs: Sequence[str], outputs: list[str], attributes: dict[str, Any]) -> list[str]:
        name = f"{self._prefix}/{len(self._nodes)}_{operator}"
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return outputs

    def _name(self, operator: str) -> str:
        return f"{self._prefix}/{len(self._nodes)}_{operator.lower()}"

    def constant(self, values: ArrayLike, dtype: Any = np.float32, *, output: str = "") -> str:
        """A tensor of fixed values."""
        array: NDArray[Any] = np.array(values, dtype)
        return self.add("Constant", output=output, value=numpy_helper.from_array(array))

    def integers(self, values: ArrayLike) -> str:
        """A tensor of fixed int64."""
        return self.constant(values, np.int64)

    def floats(self, name: str) -> str:
        """The same as float32."""
        return self.add("Cast", name, to=TensorProto.FLOAT)

    def whole(self, name: str) -> str:
        """The same as int64."""
        return self.add("Cast", name, to=TensorProto.INT64)

    def part(self, name: str, start: int, stop: int, axis: int) -> str:
        """``name[start:stop]`` along an axis."""
        if self.opset < 10:
            return self.add("Slice", name, starts=[start], ends=[stop], axes=[axis])
        return self.add("Slice", name, self.integers([start]), self.integers([stop]), self.integers([axis]))

    def squeeze(self, name: str, axes: Sequence[int]) -> str:
        """Without these axes, of length 1."""
        return self._with_axes("Squeeze", name, axes, 13)

    def unsqueeze(self, name: str, axes: Sequence[int]) -> str:
        """With axes of length 1 at these places."""
        return self._with_axes("Unsqueeze", name, axes, 13)

    def largest(self, name: str, axis: int) -> str:
        """The maximum along an axis, which stays with length 1."""
        return self._with_axes("ReduceMax", name, [axis], 18, keepdims=1)

    def _with_axes(self, operator: str, name: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        """An operator whose axes became an input in a later opset."""
        if self.opset >= since:
            return self.add(operator, name, self.integers(axes), **attributes)
        return self.add(operator, name, axes=list(axes), **attributes)

    def concat(self, *names: str, axis: int) -> str:
        """Side by side."""
        return self.add("Concat", *names, axis=axis)

    def size(self, name: str, axis: int) -> str:
        """The length of an axis, (1,) int64."""
        return self.part(self.add("Shape", name), axis, axis + 1, 0)

    def count(self, length: str) -> str:
        """0, 1, 2, ... as int64; ``length`` is (1,) int64."""
        if self.opset >= 11:
            return self.add("Range", self.integers(0), self.squeeze(length, [0]), self.integers(1))
        one = numpy_helper.from_array(np.array([1], np.int64))  # there is no Range yet; TensorRT-RTX has no NonZero
        return self.squeeze(self.add("NonZero", self.add("ConstantOfShape", length, value=one)), [0])

    def top(self, scores: str, count: int) -> str:
        """(N, count) int64: where the largest of (N, Q) are, best first; of equal ones the first comes first."""
        outputs = [self._name("values"), self._name("indices")]
        if self.opset < 10:
            return self._add("TopK", [scores], outputs, {"axis": 1, "k": count})[1]
        return self._add("TopK", [scores, self.integers([count])], outputs, {"axis": 1})[1]


def opset_of(model: onnx.ModelProto) -> int:
    """Of the standard operators."""
    return max((item.version for item in model.opset_import if item.domain in {"", "ai.onnx"}), default=0)
