"""Detections: the objects of one frame."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.detector_spec import DetectorSpec
from edgepose.errors import InputError, MissingDependencyError
from edgepose.result import JSON_SCHEMA

__all__ = ["Detections"]


@dataclass(frozen=True, eq=False)
class Detections:
    """N objects in one frame, best first; N may be 0. The arrays are read-only copies: the caller's for good.

    ``detections[i]``, ``detections[1:3]`` and ``detections[mask]`` are detections too; iterating gives one for each
    object.

    Attributes:
        boxes: (N, 4) float32, xyxy, frame px, clipped to the frame.
        scores: (N,) float32, 0 to 1.
        labels: (N,) int32, numbers of ``spec.category_names``.
        spec: the detector's.
        frame_size: (width, height) of the frame, px.

    Raises:
        InputError: the shapes contradict each other, or a label is none of the detector's.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    spec: DetectorSpec
    frame_size: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.boxes)
        for name, shape, dtype in (
            ("boxes", (count, 4), np.float32),
            ("scores", (count,), np.float32),
            ("labels", (count,), np.int32),
        ):
            array: NDArray[Any] = np.array(getattr(self, name), dtype)
            if array.shape != shape:
                raise InputError(f"Detections of {count} boxes: {name} must have the shape {shape}, got {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if count and not (self.labels.min() >= 0 and self.labels.max() < self.spec.num_categories):
            raise InputError(
                f"labels must be numbers of the {self.spec.num_categories} categories of {self.spec.name!r}, "
                f"got {sorted(set(self.labels.tolist()))}"
            )

    @classmethod
    def empty(cls, spec: DetectorSpec, frame_size: tuple[int, int]) -> Detections:
        """Of a frame that shows nothing."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), spec, frame_size)

    @property
    def category_names(self) -> tuple[str, ...]:
        """N names: the category of each object."""
        return tuple(self.spec.category_names[label] for label in self.labels)

    def __len__(self) -> int:
        return len(self.boxes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies are built anew: NumPy's own would be writeable."""
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def __getitem__(self, index: int | slice | ArrayLike) -> Detections:
        if not isinstance(index, slice):
            chosen = np.asarray(index, dtype=None if np.size(index) else np.intp)
            if chosen.dtype.kind not in "iub" or (chosen.dtype.kind == "b" and chosen.ndim == 0):
                raise InputError(f"detections are indexed by a whole number, a slice, a mask or a list, got {index!r}")
            if chosen.ndim == 0 and not -len(self) <= chosen < len(self):
                raise IndexError(f"object {chosen} of {len(self)} detections")
            index = chosen.reshape(1) if chosen.ndim == 0 else chosen
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.spec, self.frame_size)

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        found = [f"{name} {score:.2f}" for name, score in zip(self.category_names, self.scores, strict=True)]
        more = f", and {len(found) - 8} more" if len(found) > 8 else ""
        return f"<Detections of {self.spec.name!r}: {', '.join(found[:8]) or 'none'}{more}>"

    # Out of it ------------------------------------------------------------------------------------

    def draw(self, frame: NDArray[np.uint8], *, min_score: float = 0.0) -> NDArray[np.uint8]:
        """A copy of the frame, (H, W, 3) uint8 BGR, with the boxes, categories and scores of at least ``min_score``.

        Raises:
            InputError: not a frame, or a frame of another size.
        """
        from edgepose.draw import draw_detections

        return draw_detections(frame, self[self.scores >= min_score])

    def to_dict(self) -> dict[str, Any]:
        """The detections as plain Python values, ready for JSON::

            {"schema": 1, "detector": "garment-detector", "frame_size": [width, height],
             "objects": [{"category": "trousers", "box": [x1, y1, x2, y2], "score": 0.97}, ...]}

        Boxes are frame px, rounded to 0.001 px, scores to 0.0001.
        """
        objects = [
            {"category": name, "box": [round(float(v), 3) for v in box], "score": round(float(score), 4)}
            for name, box, score in zip(self.category_names, self.boxes, self.scores, strict=True)
        ]
        return {
            "schema": JSON_SCHEMA,
            "detector": self.spec.name,
            "frame_size": [int(side) for side in self.frame_size],
            "objects": objects,
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_supervision(self) -> Any:
        """The detections as a ``supervision.Detections``; ``data["class_name"]`` holds the names.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise MissingDependencyError("to_supervision needs supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.category_names, dtype=str)},
        )
