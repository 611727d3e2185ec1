"""PoseResult: the landmarks of one frame."""

from __future__ import annotations

import importlib
import json
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import InputError, MissingDependencyError
from edgepose.spec import ModelSpec

__all__ = ["MIN_SCORE", "PoseResult", "Timings"]

JSON_SCHEMA = 1
# Landmarks below this are not drawn. The bundled models are trained to give landmarks that a garment does not have
# (the waistline of a T-shirt) a flat heatmap, whose peak stays below it.
MIN_SCORE = 0.4


@dataclass(frozen=True)
class Timings:
    """How long the stages of one ``predict`` took, ms; summed over the chunks of a large batch.

    On a GPU with CUDA graphs the device runs upload, crop, network and decoder as one piece, which cannot be timed
    apart: there ``crop`` is the host's work before it (geometry, copying the frame to pinned memory), ``network`` the
    wait for the GPU, ``decode`` the host's work after it. With ``Predictor(..., cuda_graph=False)`` the three are
    times between CUDA events around the stages, in which the GPU also waits for the host. Of frames that were
    submitted together, each result has the times of the whole call.

    Attributes:
        detect: frame -> boxes; 0 where the boxes were given. On a GPU with CUDA graphs it is part of ``network``.
        crop: frame and boxes -> network input.
        network: both passes with a flip test.
        decode: heatmaps -> keypoints.
        total: the whole call, checks and copies included.
    """

    crop: float = 0.0
    network: float = 0.0
    decode: float = 0.0
    total: float = 0.0
    detect: float = 0.0


@dataclass(frozen=True, eq=False)
class PoseResult:
    """The landmarks of N boxes in one frame; N may be 0. The arrays are read-only copies: the caller's for good.

    ``result[i]``, ``result[1:3]`` and ``result[mask]`` are results too; iterating gives one result for each box.

    Attributes:
        keypoints: (N, K, 2) float32, x and y, frame px; an integer is a pixel's centre. Not clipped: a landmark that
            the network places outside the frame has coordinates outside the frame.
        scores: (N, K) float32, the peak of each landmark's heatmap; about 0 to 1, and 0 where there is none.
        boxes: (N, 4) float32, xyxy, frame px, as they were passed or detected.
        spec: the model's; ``spec.keypoint_names`` names the K landmarks.
        frame_size: (width, height) of the frame, px.
        timings: how long each stage took, ms.
        categories: N names, what each box was said to show, or what the detector took it for; empty: none was named.
            Of a model with several categories :meth:`to_dict` and :meth:`to_coco` give the landmarks of the box's
            category only.
        box_scores: (N,) float32, how sure the detector was of each box, 0 to 1; None: no box comes from a detector.
            NaN where this one does not.
        track_ids: (N,) int64, the same for the same object from frame to frame; None: nothing was tracked.

    Raises:
        InputError: the shapes contradict each other.
    """

    keypoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    spec: ModelSpec
    frame_size: tuple[int, int]
    timings: Timings = Timings()
    categories: tuple[str, ...] = ()
    box_scores: NDArray[np.float32] | None = None
    track_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        count, k = len(self.boxes), self.spec.num_keypoints
        shapes = {"keypoints": (count, k, 2), "scores": (count, k), "boxes": (count, 4)}
        shapes |= {name: (count,) for name in ("box_scores", "track_ids") if getattr(self, name) is not None}
        for name, shape in shapes.items():
            array = np.array(getattr(self, name), np.int64 if name == "track_ids" else np.float32)
            if array.shape != shape:
                raise InputError(
                    f"PoseResult of {count} boxes and {k} keypoints: {name} must have the shape {shape}, "
                    f"got {array.shape}"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if len(self.categories) not in (0, count):
            raise InputError(f"PoseResult of {count} boxes: categories must be {count} names, got {self.categories}")

    @classmethod
    def empty(cls, spec: ModelSpec, frame_size: tuple[int, int]) -> PoseResult:
        """The result of a frame without boxes."""
        k = spec.num_keypoints
        return cls(_zeros(0, k, 2), _zeros(0, k), _zeros(0, 4), spec, frame_size)

    def __len__(self) -> int:
        return len(self.boxes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies are built anew: NumPy's own would be writeable."""
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def __getitem__(self, index: int | slice | ArrayLike) -> PoseResult:
        if not isinstance(index, slice) and np.ndim(index) == 0:
            number = _whole(index)
            if number is None:
                raise InputError(f"a result is indexed by a whole number, a slice, a mask or a list, got {index!r}")
            if not -len(self) <= number < len(self):
                raise IndexError(f"box {number} of a result of {len(self)}")
            index = [number]
        chosen = index if isinstance(index, slice) else np.asarray(index, dtype=None if np.size(index) else np.intp)
        categories = np.array(self.categories, object)[chosen] if self.categories else ()
        return PoseResult(
            self.keypoints[chosen],
            self.scores[chosen],
            self.boxes[chosen],
            self.spec,
            self.frame_size,
            self.timings,
            tuple(categories),
            None if self.box_scores is None else self.box_scores[chosen],
            None if self.track_ids is None else self.track_ids[chosen],
        )

    def __iter__(self) -> Iterator[PoseResult]:
        return (self[i] for i in range(len(self)))

    # Out of it ------------------------------------------------------------------------------------

    def draw(
        self,
        frame: NDArray[np.uint8],
        *,
        min_score: float = MIN_SCORE,
        boxes: bool = True,
        labels: bool | None = None,
    ) -> NDArray[np.uint8]:
        """A copy of the frame with boxes, skeleton and landmarks; see :func:`edgepose.draw.draw_result`."""
        from edgepose.draw import draw_result

        return draw_result(frame, self, min_score=min_score, boxes=boxes, labels=labels)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain Python values, ready for JSON::

            {"schema": 1, "model": "garment-landmarks", "frame_size": [width, height],
             "objects": [{"category": "trousers", "track_id": 3, "box": [x1, y1, x2, y2], "box_score": 0.97,
                          "score": mean of the landmarks' scores,
                          "keypoints": {"left collar": {"x": 104.25, "y": 61.5, "score": 0.93}, ...}}, ...]}

        Coordinates are frame px, rounded to 0.001 px, scores to 0.0001; a value that is not finite becomes null.
        "category", "track_id" and "box_score" are there where they are known.
        """
        objects = []
        for index, box in enumerate(self.boxes):
            channels = self._channels(index)
            points, scores = self.keypoints[index, channels], self.scores[index, channels]
            keypoints = {
                name: {"x": _number(x, 3), "y": _number(y, 3), "score": _number(score, 4)}
                for name, (x, y), score in zip(self.spec.keypoint_names[channels], points, scores, strict=True)
            }
            known: dict[str, Any] = {"category": self.categories[index]} if self.categories else {}
            if self.track_ids is not None:
                known["track_id"] = int(self.track_ids[index])
            known["box"] = [_number(v, 3) for v in box]
            if self.box_scores is not None:
                known["box_score"] = _number(self.box_scores[index], 4)
            objects.append({**known, "score": _mean(scores), "keypoints": keypoints})
        return {
            "schema": JSON_SCHEMA,
            "model": self.spec.name,
            "frame_size": [int(side) for side in self.frame_size],
            "objects": objects,
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text; valid JSON always (no NaN)."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_coco(self, *, image_id: int | str = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """The result in COCO's keypoint results format, one dictionary for each box.

        ``keypoints`` holds x, y and the landmark's score for each landmark (COCO's evaluation ignores the third
        value), ``bbox`` is x, y, width, height, ``score`` the mean of the landmarks' scores. Ids may be NumPy integers.

        Raises:
            InputError: an id is neither a whole number nor, for ``image_id``, a text.
        """
        image, category = image_id if isinstance(image_id, str) else _whole(image_id), _whole(category_id)
        if image is None or category is None:
            raise InputError(f"image_id and category_id must be whole numbers, got {image_id!r} and {category_id!r}")
        results = []
        for index, (x1, y1, x2, y2) in enumerate(self.boxes):
            channels = self._channels(index)
            points, scores = self.keypoints[index, channels], self.scores[index, channels]
            triples = np.concatenate([points, scores[:, None]], axis=1)
            results.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "keypoints": [_number(v, 4) for v in triples.ravel()],
                    "bbox": [_number(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "score": _mean(scores),
                }
            )
        return results

    def _channels(self, index: int) -> slice:
        """The landmarks that belong to a box: those of its category; none for a category that the model lacks."""
        if not self.categories or not self.spec.categories:
            return slice(None)
        return slice(*self.spec.categories.get(self.categories[index], (0, 0)))

    def to_supervision(self) -> Any:
        """The result as a ``supervision.KeyPoints``.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise MissingDependencyError("to_supervision needs supervision: pip install supervision") from error
        key_points = supervision.KeyPoints
        # `confidence` in older versions, `keypoint_confidence` in newer ones (seen: 0.31.2).
        names = {f.name for f in fields(key_points)} if is_dataclass(key_points) else set()
        confidence = "keypoint_confidence" if "keypoint_confidence" in names else "confidence"
        return key_points(xy=self.keypoints.copy(), **{confidence: self.scores.copy()})


def _zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def _whole(value: Any) -> int | None:
    """Any integer, NumPy's too, as an int; None for what is none, bools among them."""
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def _mean(scores: NDArray[np.float32]) -> float | None:
    """The mean of an object's scores; 0 if it has no landmarks at all."""
    return _number(scores.mean(), 4) if scores.size else 0.0


def _number(value: Any, digits: int) -> float | None:
    value = float(value)
    return round(value, digits) if math.isfinite(value) else None
