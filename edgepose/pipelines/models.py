"""Which of a pipeline's pose models serves a box, and which of its landmarks the box has.

The models' landmarks count through: those of the second follow those of the first. So a range of channels names a
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.errors import InputError
from edgepose.spec import ModelSpec

__all__ = ["NO_MODEL", "ModelTable", "Share", "croppable"]

NO_MODEL = -1
Rows = NDArray[np.intp]


class Share(NamedTuple):
    """The boxes that one model serves.

    Attributes:
        model: its number.
        rows: (n,) the boxes' numbers in the call, ascending.
        channels: (n, 2) int32 [begin, end) in the model's own channels; None: all of them.
    """

    model: int
    rows: Rows
    channels: NDArray[np.int32] | None

    def part(self, chosen: slice | NDArray[np.bool_]) -> Share:
        """Some of its boxes."""
        return Share(self.model, self.rows[chosen], None if self.channels is None else self.channels[chosen])


class ModelTable:
    """The channels of some models one after the other.

    Args:
        specs: of the models.
        categories: channels [begin, end) by the name of a label, counted through; empty: every label has all of them,
            which takes that there is one model.
    """

    def __init__(self, specs: Sequence[ModelSpec], categories: Mapping[str, tuple[int, int]]) -> None:
        self._begins = np.cumsum([0, *(spec.num_keypoints for spec in specs)]).astype(np.int32)
        self._categories = dict(categories)
        self.num_keypoints = int(self._begins[-1])

    @property
    def count(self) -> int:
        """How many models there are."""
        return len(self._begins) - 1

    def shares(self, boxes: int, channels: NDArray[np.int32] | None) -> list[Share]:
        """Who serves boxes that ask for these channels, (N, 2), counted through.

        Raises:
            InputError: there are several models and no channels, or a range that lies in none of them.
        """
        rows = np.arange(boxes)
        if channels is None:
            if self.count > 1:
                raise InputError("there are several pose models: give the category of each box, it chooses the model")
            return [Share(0, rows, None)] if boxes else []
        models = np.searchsorted(self._begins, channels[:, 0], "right") - 1
        inside = (channels[:, 0] >= 0) & (channels[:, 1] <= self._begins[np.clip(models + 1, 0, self.count)])
        if not inside.all():
            row = int((~inside).argmax())
            raise InputError(f"box {row} asks for the landmarks {channels[row].tolist()}, which no pose model has")
        return self._grouped(models, channels - self._begins[models][:, None])

    def label_table(self, names: Sequence[str]) -> NDArray[np.int32]:
        """(C, 3) int32, of each label: begin and end in the own channels of a model, and the model's number.

        NO_MODEL where none serves it. So does :func:`edgepose.kernels.reference.plan_crops` read it.
        """
        table = np.zeros((len(names), 3), np.int32)
        for row, name in zip(table, names, strict=True):
            if not self._categories:
                row[:] = 0, self.num_keypoints, 0
            elif name in self._categories:
                begin, end = self._categories[name]
                model = int(np.searchsorted(self._begins, begin, "right")) - 1
                row[:] = begin - self._begins[model], end - self._begins[model], model
            else:
                row[2] = NO_MODEL
        return table

    def shares_of_labels(self, labels: NDArray[np.int32], table: NDArray[np.int32]) -> list[Share]:
        """Who serves detections of these labels, (N,); those of NO_MODEL are in no share. ``table``: label_table's."""
        chosen = table[labels]
        return self._grouped(chosen[:, 2], chosen[:, :2])

    def join(
        self, boxes: int, outputs: Sequence[tuple[Share, NDArray[np.float32], NDArray[np.float32]]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keypoints (N, K, 2) and scores (N, K) from what the models found for their shares; 0 where none did."""
        if self.count == 1 and len(outputs) == 1 and len(outputs[0][0].rows) == boxes:
            return outputs[0][1:]
        keypoints = np.zeros((boxes, self.num_keypoints, 2), np.float32)
        scores = np.zeros((boxes, self.num_keypoints), np.float32)
        for share, own_keypoints, own_scores in outputs:
            begin, end = self._begins[share.model], self._begins[share.model + 1]
            keypoints[share.rows, begin:end] = own_keypoints
            scores[share.rows, begin:end] = own_scores
        return keypoints, scores

    def _grouped(self, models: NDArray[np.integer], channels: NDArray[np.int32]) -> list[Share]:
        shares = []
        for model in range(self.count):
            rows = np.flatnonzero(models == model)
            if len(rows):
                shares.append(Share(model, rows, channels[rows].astype(np.int32, copy=False)))
        return shares


def croppable(boxes: NDArray[np.float32], share: Share, spec: ModelSpec) -> Share:
    """The share without the boxes that are too small for float32 at their place: a detector may find such."""
    try:
        geometry.crop_transforms(boxes[share.rows], spec)
    except InputError:
        kept = np.array([_fits(box, spec) for box in boxes[share.rows]], bool)
        return share.part(kept)
    return share


def _fits(box: NDArray[np.float32], spec: ModelSpec) -> bool:
    try:
        geometry.crop_transforms(box[None], spec)
    except InputError:
        return False
    return True
