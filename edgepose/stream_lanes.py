"""What a stream keeps for each of its sources, and for each call of the predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError
from edgepose.result import PoseResult
from edgepose.sources import Feed, Waiting

if TYPE_CHECKING:
    from edgepose.pending import PendingResults
    from edgepose.predictor import Predictor
    from edgepose.smooth import OneEuro, Smoother
    from edgepose.spec import ModelSpec
    from edgepose.track import Tracker, Tracking

__all__ = ["Boxes", "Followed", "Lane", "Plan", "Round", "Taken", "boxes_of", "open_lane"]

Boxes = Any  # (N, 4) xyxy, frame px, or a function of the frame that returns it


@dataclass
class Lane:
    """What a source has of its own."""

    feed: Feed
    boxes: Boxes
    tracker: Tracker | None
    smoother: Smoother | None
    staged: Taken | None = None  # its next frame, if that is being uploaded already

    @property
    def ready(self) -> bool:
        """Whether a frame waits. Under the lock."""
        return self.staged is not None or self.feed.ready


class Taken(NamedTuple):
    """A frame that was taken from its source's queue; ``view`` is what the predictor gets."""

    waiting: Waiting
    view: Any


@dataclass(frozen=True)
class Followed:
    """Boxes of a tracker, with the detector's categories, which need not be the model's.

    A model of one kind of object serves whatever a detector finds, a model of several only its own: boxes of another
    category go along without landmarks, as :meth:`edgepose.Predictor.predict` has it for a detected box.

    Attributes:
        boxes: (N, 4) float32 xyxy, frame px.
        categories: N names, or none.
        served: (n,) numbers of the boxes that the model serves.
        asked: n names for the predictor; None: the model takes none.
    """

    boxes: NDArray[np.float32]
    categories: tuple[str, ...]
    served: NDArray[np.intp]
    asked: list[str] | None

    @classmethod
    def of(cls, boxes: NDArray[np.float32], categories: tuple[str, ...], spec: ModelSpec) -> Followed:
        """What a tracker expects, for a model."""
        if not categories or not spec.categories:
            return cls(boxes, categories, np.arange(len(boxes)), None)
        served = np.flatnonzero([name in spec.categories for name in categories])
        return cls(boxes, categories, served, [categories[row] for row in served])

    def complete(self, result: PoseResult) -> PoseResult:
        """The predictor's result for the boxes served, as one for all of them: score 0 for those not served."""
        if len(self.served) == len(self.boxes):
            return replace(result, categories=self.categories)
        keypoints = np.zeros((len(self.boxes), *result.keypoints.shape[1:]), np.float32)
        scores = np.zeros(keypoints.shape[:2], np.float32)
        keypoints[self.served], scores[self.served] = result.keypoints, result.scores
        return replace(result, keypoints=keypoints, scores=scores, boxes=self.boxes, categories=self.categories)


class Plan(NamedTuple):
    """What the predictor is asked for a frame.

    Attributes:
        boxes: None: detect.
        categories: of the boxes.
        followed: a tracker expects them; None: they were detected, or given, and are all that there is.
    """

    boxes: Any
    categories: Sequence[str] | None
    followed: Followed | None = None


@dataclass
class Round:
    """Frames that the predictor has got in one call."""

    lanes: list[Lane]
    frames: list[Waiting]
    plans: list[Plan]
    pending: PendingResults
    started: float


def boxes_of(boxes: Boxes | Mapping[int, Boxes] | None, count: int) -> list[Boxes | None]:
    """The boxes of each source."""
    if not isinstance(boxes, Mapping):
        return [boxes] * count
    if unknown := [number for number in boxes if number not in range(count)]:
        raise InputError(f"boxes are given for the source {unknown[0]!r}, there are 0 to {count - 1}")
    return [boxes.get(number) for number in range(count)]


def open_lane(
    feed: Feed, boxes: Boxes | None, predictor: Predictor, tracking: Tracking | bool | None, smoothing: OneEuro | bool
) -> Lane:
    """A source with a tracker and a smoother of its own, where it gets them."""
    if tracking is None:
        tracking = feed.source.kind not in ("photo", "folder") and (boxes is None or smoothing is not False)
    if tracking is False:
        return Lane(feed, boxes, None, None)
    from edgepose.smooth import Smoother
    from edgepose.track import Tracker

    tracker = Tracker(None if tracking is True else tracking, predictor.spec)
    if smoothing is False:
        return Lane(feed, boxes, tracker, None)
    return Lane(feed, boxes, tracker, Smoother(None if smoothing is True else smoothing))
