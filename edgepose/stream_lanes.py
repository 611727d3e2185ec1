"""What a stream keeps for each of its sources, and for each call of the predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgepose.errors import InputError
from edgepose.sources import Feed, Waiting

if TYPE_CHECKING:
    from edgepose.pending import PendingResults
    from edgepose.predictor import Predictor
    from edgepose.smooth import OneEuro, Smoother
    from edgepose.track import Tracker, Tracking

__all__ = ["Boxes", "Lane", "Plan", "Round", "Taken", "boxes_of", "open_lane"]

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


class Plan(NamedTuple):
    """What the predictor is asked for a frame.

    Attributes:
        boxes: None: detect.
        categories: of the boxes.
        followed: a tracker expects them.
    """

    boxes: Any
    categories: Sequence[str] | None
    followed: bool = False


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
