"""The parity report of a detector: how far an engine's detections are from the float32 model's, on the same pictures.

Rows of the reference become detections as `Detector` makes them (threshold, NMS where the spec asks for it). Each is
paired with the most alike of the candidate's rows in box and score, of the same picture and category and with an IoU of
at least `MIN_IOU`. Rows, because NMS chooses between neighbours that are nearly as good, and rounding may change its
mind: that moves a box by pixels, says nothing about precision, and is none of the engine's doing. What counts:

    detections  of the float32 model, from a score of `min_score` on: the spec's, or `MIN_SCORE` times the highest score
                of all pictures where that is lower. So a detector of people is compared on pictures of garments too, on
                whatever it half believes to see.
    unmatched   reference detections without a partner among the candidate's rows down to `SLACK` below the threshold;
                and detections of the candidate from `SLACK` above it that cover none of the reference's, with an IoU of
                at least `COVERED`. In between, rounding decides on which side of the threshold a score lies.
    px          differences of the four coordinates of a pair, px of the network's input.

:func:`edgepose.parity.complete` redoes the report where the engine runs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgepose.crops import Crops
from edgepose.errors import EngineError, ModelError
from edgepose.jsonfields import kind, mapping_of, one_of
from edgepose.kernels import reference as twins
from edgepose.kernels._detections import MAX_CANDIDATES
from edgepose.parity import Scope
from edgepose.parity_fields import ReportFields

if TYPE_CHECKING:
    from edgepose.detector_spec import DetectorSpec

__all__ = ["DETECTION_LIMITS", "DetectionLimits", "DetectionReference", "DetectionReport", "judge_detections"]

MIN_SCORE = 0.2
MIN_IOU = 0.5
COVERED = 0.4  # below the IoU from which on NMS usually drops a neighbour, 0.45
SLACK = 0.2  # of the threshold


@dataclass(frozen=True)
class DetectionLimits:
    """What a report may say before an engine is refused.

    Measured with the raw grids of a YOLOX-nano for persons at 192x192, float16 against float32: on frames with a person
    median 0.018 px, 99 % within 0.07 px, scores within 0.001; on rendered garments, of which it believes little, 0.046
    px, 0.17 px and 0.01; nothing unmatched. What must be refused, measured on the same frames: 3 % noise in the boxes
    has 0.6 px and 3.3 px, 3 % noise in the picture 0.37 and 5.3 px, red and blue exchanged 0.5 and 4.6 px.

    Attributes:
        px_median, px_p99: of the coordinates' differences, px of the network's input.
        unmatched: as a share of the reference's detections.
        score_error: of a pair's scores, relative to the highest.
    """

    px_median: float = 0.25
    px_p99: float = 1.0
    unmatched: float = 0.02
    score_error: float = 0.05


DETECTION_LIMITS = DetectionLimits()


@dataclass(frozen=True)
class DetectionReport(ReportFields):
    """A candidate's detections beside the float32 model's; see the module for what counts.

    Attributes:
        scope: ``engine``: the engine itself ran. ``graph``: the machine cannot run it, so ONNX Runtime ran the graph
            that it is built from, with every layer's result rounded to the engine's precision.
        source: what the pictures are.
        crops: how many.
        detections: of the float32 model.
        min_score: from this score on.
        px_median, px_p99, px_max: differences of the pairs' coordinates, px of the network's input.
        unmatched: detections of either without a partner.
        score_error: largest difference of a pair's scores, relative to the highest score.
        not_finite: values of the candidate's rows that are NaN or infinite.
        convolutions: convolution layers by what they compute in; see :class:`edgepose.parity.ParityReport`.
    """

    scope: Scope
    source: str
    crops: int
    detections: int
    min_score: float
    px_median: float
    px_p99: float
    px_max: float
    unmatched: int
    score_error: float
    not_finite: int
    convolutions: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def compared(self) -> int:
        """How many detections were compared; without any, nothing is known."""
        return self.detections

    @property
    def counted(self) -> str:
        """What was compared, in words."""
        return f"{self.detections} detections in {self.crops} pictures"

    def problems(self, limits: DetectionLimits = DETECTION_LIMITS) -> tuple[str, ...]:
        """What is beyond the limits, in words; empty: nothing."""
        if self.detections == 0:
            return ("the float32 model finds no detection that could be compared",)
        own = (
            (
                self.unmatched,
                max(1, limits.unmatched * self.detections),  # one of few detections is chance
                f"{self.unmatched} detections have no partner, of {self.detections} (limit "
                f"{100 * limits.unmatched:g} %)",
            ),
        )
        return self._beyond(limits, f"{self.not_finite} values of the rows are NaN or infinite", own)


DetectionReport.READERS = {
    "scope": one_of(*get_args(Scope)),
    "source": kind(str),
    **dict.fromkeys(("crops", "detections", "unmatched", "not_finite"), kind(int)),
    **dict.fromkeys(("min_score", "px_median", "px_p99", "px_max", "score_error"), kind(int, float)),
    "convolutions": mapping_of(int),
}


@dataclass(frozen=True, eq=False)
class DetectionReference:
    """What the float32 model detects in some pictures.

    Attributes:
        crops: the pictures, as they lie in the network's input.
        min_score: the threshold of what follows.
        boxes: (M, 4) float32 xyxy, px of the network's input.
        scores: (M,) float32, best first within a picture.
        labels: (M,) int32.
        owners: (M,) int32, the number of the picture, ascending.
    """

    crops: Crops
    min_score: float
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    owners: NDArray[np.int32]

    @classmethod
    def from_rows(cls, crops: Crops, rows: NDArray[Any], spec: DetectorSpec) -> DetectionReference:
        """Select among the float32 model's rows (N, Q, 6)."""
        _check_rows(rows, spec)
        highest = float(np.nan_to_num(rows[..., 4]).max(initial=0))
        threshold = min(spec.min_score, MIN_SCORE * highest)
        return cls(crops, threshold, *_select(rows, threshold, spec))

    def to_bytes(self) -> bytes:
        """A .npz file."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            images=self.crops.images,
            source=np.array(self.crops.source),
            min_score=np.array(self.min_score),
            boxes=self.boxes,
            scores=self.scores,
            labels=self.labels,
            owners=self.owners,
        )
        return file.getvalue()

    @classmethod
    def read(cls, path: Path, spec: DetectorSpec) -> DetectionReference:
        """Read what ``to_bytes`` made.

        Raises:
            EngineError: it is missing, damaged, or belongs to another model.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                crops = Crops(data["images"], str(data["source"]))
                found = (data["boxes"], data["scores"], data["labels"], data["owners"])
                reference = cls(crops, float(data["min_score"]), *found)
        except Exception as error:  # a zip file that is cut off raises one of half a dozen classes
            raise EngineError(
                f"{path} cannot be read ({error}): copy it from where the engine was built, or build the engine again"
            ) from None
        (w, h), images = spec.input_size, crops.images
        many = len(reference.boxes)
        if images.shape != (len(images), h, w, 3) or [v.shape for v in found] != [(many, 4), (many,), (many,), (many,)]:
            raise EngineError(f"{path} belongs to another engine: copy the one beside it, or build the engine again")
        return reference


def judge_detections(
    reference: DetectionReference,
    rows: NDArray[Any],  # (N, Q, 6)
    spec: DetectorSpec,
    *,
    scope: Scope,
    convolutions: Mapping[str, int] | None = None,
) -> DetectionReport:
    """A candidate's rows for the reference's pictures beside what the float32 model detects.

    Raises:
        ModelError: the rows' shape is not that of a detector adapted by edgepose.
    """
    _check_rows(rows, spec)
    every = replace(spec, nms_iou=None, class_agnostic=False, max_detections=min(rows.shape[1], MAX_CANDIDATES))
    pool = _select(rows, (1 - SLACK) * reference.min_score, every)
    ours, theirs = _pair(reference, pool)
    distances = np.abs(reference.boxes[ours].astype(float) - pool.boxes[theirs]).reshape(-1)
    score_errors = np.abs(reference.scores[ours].astype(float) - pool.scores[theirs])
    strong = _select(rows, (1 + SLACK) * reference.min_score, spec)
    added = sum(not _covered(reference, strong, index) for index in range(len(strong.boxes)))
    highest = float(reference.scores.max(initial=0)) or 1.0
    return DetectionReport(
        scope=scope,
        source=reference.crops.source,
        crops=len(reference.crops.images),
        detections=len(reference.boxes),
        min_score=reference.min_score,
        px_median=float(np.median(distances)) if len(distances) else 0.0,
        px_p99=float(np.percentile(distances, 99)) if len(distances) else 0.0,
        px_max=float(distances.max(initial=0)),
        unmatched=len(reference.boxes) - len(ours) + added,
        score_error=float(score_errors.max(initial=0)) / highest,
        not_finite=int(np.count_nonzero(~np.isfinite(rows))),
        convolutions=dict(convolutions or {}),
    )


def _check_rows(rows: NDArray[Any], spec: DetectorSpec) -> None:
    if rows.ndim != 3 or rows.shape[2] != 6:
        raise ModelError(f"{spec.name}: a detector adapted by edgepose gives rows (N, Q, 6), got {rows.shape}")


class _Found(NamedTuple):
    """Detections of all pictures; see :class:`DetectionReference` for the arrays."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    owners: NDArray[np.int32]


def _select(rows: NDArray[Any], min_score: float, spec: DetectorSpec) -> _Found:
    """The detections among rows (N, Q, 6); the input itself is the frame."""
    found = [
        twins.select_detections(
            np.asarray(part, np.float32),
            placement=(1.0, 1.0, 0.0, 0.0),
            frame_size=spec.input_size,
            min_score=min_score,
            nms_iou=spec.nms_iou,
            class_agnostic=spec.class_agnostic,
            max_detections=spec.max_detections,
        )
        for part in rows
    ]
    boxes, scores, labels = zip(*found, strict=True)
    owners = np.repeat(np.arange(len(found), dtype=np.int32), [len(part) for part in boxes])
    return _Found(np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels), owners)


def _pair(reference: DetectionReference, pool: _Found) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the pairs among the reference's detections and the candidate's rows."""
    highest = float(reference.scores.max(initial=0)) or 1.0
    pairs: list[tuple[int, int]] = []
    for index, box in enumerate(reference.boxes):
        alike = np.flatnonzero((pool.owners == reference.owners[index]) & (pool.labels == reference.labels[index]))
        overlaps = _iou(box, pool.boxes[alike])
        alike, overlaps = alike[overlaps >= MIN_IOU], overlaps[overlaps >= MIN_IOU]
        if len(alike):
            unlike = 1 - overlaps + np.abs(pool.scores[alike] - reference.scores[index]) / highest
            pairs.append((index, int(alike[np.argmin(unlike)])))
    chosen = np.array(pairs, np.intp).reshape(-1, 2)
    return chosen[:, 0], chosen[:, 1]


def _covered(reference: DetectionReference, found: _Found, index: int) -> bool:
    """Whether a detection of the candidate covers one of the reference's."""
    same = (reference.owners == found.owners[index]) & (reference.labels == found.labels[index])
    return bool((_iou(found.boxes[index], reference.boxes[same]) >= COVERED).any())


def _iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of one box (4,) xyxy with others (M, 4)."""
    low = np.maximum(box[:2], others[:, :2]).astype(float)
    high = np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).astype(float).prod(axis=1) + float((box[2:] - box[:2]).astype(float).prod())
    return np.asarray(shared / np.maximum(areas - shared, 1e-9), np.float64)
