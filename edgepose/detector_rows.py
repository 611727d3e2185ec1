"""The ONNX nodes that read a detector's outputs into rows: x1, y1, x2, y2, score, label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepose.detector_spec import DetectorSpec
from edgepose.errors import ModelError
from edgepose.kernels._detections import MAX_CANDIDATES
from edgepose.network_io import Tensor
from edgepose.onnx_nodes import Nodes

__all__ = ["DetectorRows", "rank_of"]

_RANKS = {"rows": 3, "boxes": 3, "scores": 3, "labels": 2, "count": 1}
_WIDTHS = {"box": 4, "objectness": 1, "score": 1, "label": 1, "batch": 1, "skip": 1}
Shape = tuple[int | None, ...]


def rank_of(role: str, spec: DetectorSpec, shape: Shape) -> int:
    """The number of dimensions that an output has, its batch axis included."""
    if role == "scores" and ("labels" in spec.outputs or (len(shape) == 2 and spec.num_classes == 1 != shape[1])):
        return 2  # one score for each candidate
    return _RANKS[role]


@dataclass
class _Part:
    """A tensor (N, Q, V) float32 of the nodes; Q and V as far as they are known."""

    name: str
    count: int | None
    width: int | None


@dataclass
class DetectorRows:
    """Adds the nodes that read the outputs of one detector.

    Attributes:
        nodes: to add to.
        spec: how the outputs are written.
        image: name of the network's input, whose first axis is the batch.
        batch: how many pictures the network takes at once; None: any number.
        source: what error messages call the model.
    """

    nodes: Nodes
    spec: DetectorSpec
    image: str
    batch: int | None
    source: str

    def read(self, outputs: dict[str, Tensor]) -> tuple[str, int]:
        """Rows (N, Q, 6) float32, and Q.

        Args:
            outputs: the tensor in each of the spec's roles; its number of dimensions is known.

        Raises:
            ModelError: a shape is not what the spec says.
        """
        parts = {role: self._part(role, tensor) for role, tensor in outputs.items()}
        if "rows" in parts:
            parts |= self._columns(parts.pop("rows"), outputs["rows"])
        count = next((parts[role].count for role in ("boxes", "scores") if parts[role].count is not None), None)
        cells = self._cells()
        if cells is not None and count not in {None, len(cells)}:
            raise ModelError(
                f"{self.source}: the model gives {count} candidates, and grids with strides {list(self.spec.strides)} "
                f"have {len(cells)} on an input of {list(self.spec.input_size)}: correct the spec's strides"
            )
        count = count if cells is None else len(cells)
        boxes = self._boxes(parts["boxes"].name, cells)
        scores, labels = self._scores(parts)
        if "count" in parts:
            place = self.nodes.unsqueeze(self._places(boxes, count), [0, 2])  # (1, Q, 1)
            scores = self._only(scores, self.nodes.add("Less", self.nodes.floats(place), parts["count"].name))
        if "batch" in parts:
            boxes, scores, labels = self._by_picture(parts["batch"].name, boxes, scores, labels)
        rows = self.nodes.concat(boxes, scores, labels, axis=2)
        return self._best(rows) if count is None else (rows, count)

    # From outputs to boxes, scores and labels -------------------------------------------------------

    def _part(self, role: str, tensor: Tensor) -> _Part:
        """An output as (N, Q, V) float32."""
        shape: Shape = tensor.shape or ()
        rank = rank_of(role, self.spec, shape)
        name = tensor.name if tensor.dtype == "float32" else self.nodes.floats(tensor.name)
        while len(shape) > rank and 1 in shape:
            axis = len(shape) - 1 - shape[::-1].index(1)
            name, shape = self.nodes.squeeze(name, [axis]), shape[:axis] + shape[axis + 1 :]
        if len(shape) == rank - 1:
            name, shape = self.nodes.unsqueeze(name, [0]), (1, *shape)
        if len(shape) != rank:
            axes = {1: "(batch)", 2: "(batch, candidates)", 3: "(batch, candidates, values)"}[rank]
            raise ModelError(
                f"{self.source}: the output {tensor} ({role}) should have the dimensions {axes}: name another output "
                'in the spec ("outputs"), or use another format'
            )
        if role in (self.spec.transposed or ()):
            name, shape = self.nodes.add("Transpose", name, perm=[0, 2, 1]), (shape[0], shape[2], shape[1])
        if rank < 3:
            name, shape = self.nodes.unsqueeze(name, list(range(rank, 3))), (*shape, *[1] * (3 - rank))
        if role == "rows" and "batch" in self.spec.columns and shape[0] != 1:  # all pictures' rows in one list
            name, shape = self._reshaped(name, shape), (1, None, shape[2])
        width = {"boxes": 4, "scores": 1 if rank == 2 else self.spec.num_classes}.get(role)
        if width is not None:
            self._check_width(role, tensor, shape, width, f"{width}")
        return _Part(name, None if role == "count" else shape[1], shape[2])

    def _reshaped(self, name: str, shape: Shape) -> str:
        width = self.nodes.integers([shape[2]]) if shape[2] else self.nodes.size(name, 2)
        return self.nodes.add("Reshape", name, self.nodes.concat(self.nodes.integers([1, -1]), width, axis=0))

    def _check_width(self, role: str, tensor: Tensor, shape: Shape, wanted: int, stated: str) -> None:
        if shape[2] in {None, wanted}:
            return
        raise ModelError(
            f"{self.source}: a candidate of the output {tensor} ({role}) has {shape[2]} values, and the spec says "
            f"{stated} ({self.spec.num_categories} categories, format {self.spec.format}): "
            f"{self._advice(role, shape, wanted)}"
        )

    def _advice(self, role: str, shape: Shape, wanted: int) -> str:
        """What to change in the spec where a candidate of an output, (N, Q, V) as the spec reads it, is too wide."""
        spec, classes = self.spec, self.spec.num_classes
        transposed = spec.transposed or ()
        if shape[1] == wanted:
            turned = [name for name in ("rows", "boxes", "scores") if (name in transposed) ^ (name == role)]
            return f'the axes are the other way round: say "transposed": {turned}'.replace("'", '"')
        if role == "scores" and shape[2] == wanted + 1 and spec.background is None:
            return (
                'if the last class is "no object", say "background": -1, if the first is, 0 (logits of such a model '
                'take the softmax: "activation": "softmax"; format detr says both)'
            )
        if role == "rows":
            rows, values = shape[:0:-1] if role in transposed else shape[1:]
            for size, fitting, words in (
                (values, 5 + classes, '"format": "yolov5", or "yolox" if the boxes are raw, fits'),
                (rows, 4 + classes, '"format": "yolov8" fits'),
                (values, 4 + classes, '"format": "yolov8" with "transposed": [] fits'),
                (values, 6, '"format": "end2end" fits'),
                (values, 7, '"format": "yolov7_end2end" fits'),
            ):
                if size == fitting:
                    return words
            for sides in (size - classes for size in (values, rows) if size):
                if sides % 4 == 0 and 16 <= sides <= 128:  # 4 to 32 bins
                    return (
                        f"{classes} classes and {sides} values: boxes as distributions over {sides // 4} bins for each "
                        "side (NanoDet, YOLOv8 without its last layers) are not supported: export the model with its "
                        "decoding inside"
                    )
        return "correct category_names, background, columns or format"

    def _columns(self, rows: _Part, tensor: Tensor) -> dict[str, _Part]:
        """The columns of rows, by the role that they have."""
        columns = self.spec.columns
        widths = {**_WIDTHS, "classes": self.spec.num_classes}
        total = sum(widths[name] for name in columns if name != "rest")
        shape = (1, rows.count, rows.width)
        if columns[-1] != "rest" or (rows.width or total) < total:
            stated = " + ".join(f"{name} {widths[name]}" for name in columns if name != "rest")
            self._check_width("rows", tensor, shape, total, f"{total}: {stated}")
        roles = {"box": "boxes", "classes": "scores", "score": "scores", "label": "labels"}
        parts, start = {}, 0
        for name in columns:
            if name in {"skip", "rest"}:
                start += name == "skip"
                continue
            stop = start + widths[name]
            part = self.nodes.part(rows.name, start, stop, 2)
            parts[roles.get(name, name)] = _Part(part, rows.count, widths[name])
            start = stop
        return parts

    def _cells(self) -> NDArray[np.float32] | None:
        """(A, 3) column, row and stride of each cell of the grids, in the order of the rows; None: there are none."""
        if self.spec.box_units != "grid":
            return None
        width, height = self.spec.input_size
        grids = []
        for stride in self.spec.strides:
            y, x = np.mgrid[: height // stride, : width // stride]
            grids.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
        return np.concatenate(grids).astype(np.float32)

    def _boxes(self, boxes: str, cells: NDArray[np.float32] | None) -> str:
        """(N, Q, 4) as the network gives them -> xyxy, px of the input."""
        nodes, form = self.nodes, self.spec.box_format
        if self.spec.box_units == "normalized":
            width, height = self.spec.input_size
            sides = [height, width] * 2 if form == "yxyx" else [width, height] * 2
            boxes = nodes.add("Mul", boxes, nodes.constant(sides))
        if form == "xyxy":
            return boxes
        if form == "yxyx":
            return nodes.add("Gather", boxes, nodes.integers([1, 0, 3, 2]), axis=2)
        place, size = nodes.part(boxes, 0, 2, 2), nodes.part(boxes, 2, 4, 2)
        if cells is not None:
            strides = nodes.constant(cells[None, :, 2:])
            place = nodes.add("Mul", nodes.add("Add", place, nodes.constant(cells[None, :, :2])), strides)
            size = nodes.add("Mul", nodes.add("Exp", size), strides)
        if form == "xywh":
            return nodes.concat(place, nodes.add("Add", place, size), axis=2)
        half = nodes.add("Mul", size, nodes.constant(0.5))
        return nodes.concat(nodes.add("Sub", place, half), nodes.add("Add", place, half), axis=2)

    def _scores(self, parts: dict[str, _Part]) -> tuple[str, str]:
        """Scores and labels, (N, Q, 1) each."""
        nodes, spec = self.nodes, self.spec
        scores = parts["scores"].name
        if spec.activation == "softmax":
            scores = nodes.add("Softmax", scores, axis=2)  # before opset 13: over all axes from there on, the same
        if spec.background is not None:
            scores = self._without_background(scores)
        if "labels" in parts:
            labels = parts["labels"].name
            if spec.label_offset:
                labels = nodes.add("Sub", labels, nodes.constant(spec.label_offset))
        else:
            labels = nodes.floats(nodes.add("ArgMax", scores, axis=2, keepdims=1))
            scores = nodes.largest(scores, 2)
        if spec.activation == "sigmoid":  # after the maximum: it keeps the order, and there are fewer
            scores = nodes.add("Sigmoid", scores)
        if "objectness" in parts:
            objectness = parts["objectness"].name
            objectness = objectness if spec.activation == "none" else nodes.add("Sigmoid", objectness)
            scores = nodes.add("Mul", scores, objectness)
        return scores, labels

    def _without_background(self, scores: str) -> str:
        background, last = self.spec.background, self.spec.num_classes - 1
        if background in {-1, last}:
            return self.nodes.part(scores, 0, last, 2)
        kept = [index for index in range(last + 1) if index != background]
        return self.nodes.add("Gather", scores, self.nodes.integers(kept), axis=2)

    # All rows ---------------------------------------------------------------------------------------

    def _only(self, scores: str, condition: str) -> str:
        return self.nodes.add("Where", condition, scores, self.nodes.constant(0.0))

    def _places(self, boxes: str, count: int | None) -> str:
        """0, 1, ... Q - 1, int64."""
        return self.nodes.count(self.nodes.size(boxes, 1)) if count is None else self.nodes.integers(np.arange(count))

    def _by_picture(self, owners: str, boxes: str, scores: str, labels: str) -> tuple[str, str, str]:
        """One list of all pictures' rows, (1, M, V) each -> each picture's own, (N, M, V), score 0 where it is not."""
        nodes = self.nodes
        pictures = nodes.unsqueeze(self._pictures(), [1, 2])
        scores = self._only(scores, nodes.add("Equal", nodes.whole(owners), pictures))
        if self.batch == 1:
            return boxes, scores, labels
        shape = nodes.concat(self._batch(), nodes.integers([1, 1]), axis=0)
        return nodes.add("Expand", boxes, shape), scores, nodes.add("Expand", labels, shape)

    def _batch(self) -> str:
        """How many pictures there are, (1,) int64."""
        return self.nodes.integers([self.batch]) if self.batch else self.nodes.size(self.image, 0)

    def _pictures(self) -> str:
        """Their numbers 0, 1, ... N - 1, int64."""
        return self.nodes.integers(np.arange(self.batch)) if self.batch else self.nodes.count(self._batch())

    def _best(self, rows: str) -> tuple[str, int]:
        """A fixed number of rows, the best ones, from any number of them; rows of zeros where there are too few."""
        nodes, spec = self.nodes, self.spec
        count = spec.max_detections if spec.nms_iou is None else MAX_CANDIDATES
        zeros = nodes.constant(np.zeros((1, count, 6)))
        if self.batch != 1:
            zeros = nodes.add("Expand", zeros, nodes.concat(self._batch(), nodes.integers([1, 1]), axis=0))
        rows = nodes.concat(rows, zeros, axis=1)
        best = nodes.top(nodes.squeeze(nodes.part(rows, 4, 5, 2), [2]), count)  # (N, count)
        if self.batch != 1:  # GatherElements would need opset 11: places in the list of all pictures' rows
            starts = nodes.add("Mul", nodes.unsqueeze(self._pictures(), [1]), nodes.size(rows, 1))
            best = nodes.add("Add", best, starts)
        every = nodes.add("Reshape", rows, nodes.integers([-1, 6]))
        return nodes.add("Gather", every, best, axis=0), count
