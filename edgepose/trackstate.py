"""One object that is followed from frame to frame: its box from its landmarks, its confidence, its motion.

Between detections the box is computed from the frame's landmarks and from one fixed pair, the *anchor*: the detector's
last box of this object and the landmarks found in it. It never builds on the box of the frame before. So whatever the
landmarks are off by moves the box by as much, and is forgotten with the frame: nothing adds up, however long there is
no detection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.association import box_size, centres
from edgepose.errors import InputError

__all__ = ["Anchor", "Sighting", "Track", "box_from_landmarks", "check_time", "clip_box"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MIN_SPAN = 0.3  # of the box's diagonal: landmarks closer together than this do not tell an object's size
SCALES = (0.25, 4.0)  # an object's size, in sizes of its anchor, that landmarks may claim
SIDES = (0.1, 4.0)  # the same for a side of its box: of the anchor's same side, and of its longer one
STILL = 0.02  # sizes: a box that would move less stays where it is, so that the crop of a still object does not shake
CONFIRMED = 0.05  # sizes: a detector's box this near to what the anchor says changes nothing; detectors tremble too
VELOCITY_TIME = 0.15  # s over which the velocity is averaged
LEVEL_TIME = 1.0  # s over which an object's usual scores are averaged
JUMP = 0.5  # sizes that landmarks may be from where their motion led; more, and they may be another object's
AHEAD = 0.5  # sizes that a box is moved ahead at most
IN_FRAME = 0.05  # of a box's area: with less in the frame the object has left it


@dataclass(frozen=True)
class Sighting:
    """What one frame says of one object.

    Attributes:
        points: (K, 2) frame px.
        scores: (K,) of the landmarks; 0 where a point is not finite.
        visible: (K,) the landmarks whose score counts.
    """

    points: Floats
    scores: Floats
    visible: Mask


@dataclass(frozen=True)
class Anchor:
    """A detector's box and the landmarks that were found in it.

    Attributes:
        box: (4,) xyxy, frame px.
        points: (K, 2) frame px.
        visible: (K,) which of them count.
    """

    box: Floats
    points: Floats
    visible: Mask


def box_from_landmarks(anchor: Anchor, points: Floats, visible: Mask) -> Floats | None:
    """The box that the detector would give, judging by the landmarks; (4,) xyxy, frame px, not clipped.

    The smallest box around the landmarks that are visible now and were in the anchor, plus the anchor's margins around
    the same landmarks, scaled by how much the landmarks' extent (its diagonal) has grown since. With the anchor's own
    landmarks it is the anchor's box, exactly. Landmarks too close together to tell a size (``MIN_SPAN``) only move the
    box, by the median of their shifts. Sides stay within ``SIDES`` of the anchor's.

    None: no landmark is shared.
    """
    shared = anchor.visible & visible
    if not shared.any():
        return None
    before, now = anchor.points[shared], points[shared]
    low, high = before.min(axis=0), before.max(axis=0)
    span = float(np.hypot(*(high - low)))
    sides = anchor.box[2:] - anchor.box[:2]
    if span < MIN_SPAN * float(np.hypot(*sides)):
        return anchor.box + np.tile(_median(now - before), 2)
    margins = anchor.box - np.concatenate([low, high])
    low, high = now.min(axis=0), now.max(axis=0)
    scale = float(np.clip(np.hypot(*(high - low)) / span, *SCALES))
    box = np.concatenate([low, high]) + margins * scale
    middle = centres(box)
    half = np.clip(box[2:] - box[:2], SIDES[0] * sides, SIDES[1] * sides.max()) / 2
    return np.concatenate([middle - half, middle + half])


def clip_box(box: Floats, frame_size: tuple[int, int]) -> Floats | None:
    """The part of a box inside the frame, as a detector gives it; None: too little of it is (``IN_FRAME``)."""
    limit = np.array(frame_size, np.float64) - 1  # an integer is a pixel's centre
    clipped = np.concatenate([np.clip(box[:2], 0, limit), np.clip(box[2:], 0, limit)])
    sides = clipped[2:] - clipped[:2]
    if sides.min() < 1 or sides.prod() < IN_FRAME * (box[2:] - box[:2]).prod():
        return None
    return clipped


class Track:
    """One object.

    Attributes:
        number: its id.
        category: what the detector takes it for; empty: not known.
        anchor: what its box is computed from.
        box: (4,) xyxy, frame px, at ``time``; may reach over the frame's border.
        sighting: its last landmarks.
        velocity: (2,) px/s.
        time: s, when it was seen last.
        level: (K,) the usual scores of its landmarks.
        usual: (K,) the landmarks that it usually shows.
        confidence: mean score of those in the last frame.
        jump: sizes between its landmarks and where their motion led, in the last frame.
        unsure: the confidence has fallen, or the landmarks have jumped.
        asked: a detection was asked for since it became unsure.
        missed: detections in a row that did not find it.
    """

    def __init__(self, number: int, box: Floats, category: str, sighting: Sighting, time: float) -> None:
        self.number = number
        self.velocity: Floats = np.zeros(2)
        self.jump = 0.0
        self.missed = 0
        self.asked = True  # it was detected just now: poor landmarks are no news
        self._votes: dict[str, float] = {}
        self.category = category
        self._begin(box, sighting, time)
        self._vote(category, 1.0, sighting)

    def _begin(self, box: Floats, sighting: Sighting, time: float) -> None:
        """Start anew: the landmarks before are of no use."""
        self.anchor = Anchor(box, sighting.points, sighting.visible)
        self.box = box
        self.before = (box, self.velocity)
        self.sighting = sighting
        self.level = sighting.scores
        self.usual = sighting.visible
        self.time = time
        self.confidence, self.unsure = 0.0, False  # until judged

    # Each frame ------------------------------------------------------------------------------------

    def see_box(self, box: Floats, category: str, score: float, sighting: Sighting, time: float) -> None:
        """The detector found the object: its box and the landmarks in it become the anchor.

        Unless the old anchor says much the same: then it stays, so that the crop of a still object does not change with
        each detection.
        """
        self.missed, self.asked = 0, True
        self._vote(category, score, sighting)
        expected = box_from_landmarks(self.anchor, sighting.points, sighting.visible)
        complete = not (self.usual & ~self.anchor.visible).any()  # by the usual scores: one frame's may flicker
        if expected is not None and complete and np.abs(expected - box).max() <= CONFIRMED * float(box_size(box)):
            self.see_landmarks(sighting, time)
            return
        if not self._move(sighting, time):  # no landmark tells the motion: the boxes do
            self._accelerate(centres(box) - centres(self.box), time)
        self.anchor = Anchor(box, sighting.points, sighting.visible)
        self.box, self.sighting, self.time = box, sighting, time

    def see_landmarks(self, sighting: Sighting, time: float) -> None:
        """The landmarks were found in a box that they had led to."""
        self._move(sighting, time)
        box = box_from_landmarks(self.anchor, sighting.points, sighting.visible)
        if box is not None and np.abs(box - self.box).max() > STILL * float(box_size(box)):
            self.box = box
        self.sighting, self.time = sighting, time

    def find_again(self, box: Floats, category: str, score: float, sighting: Sighting, time: float) -> None:
        """A lost object is back, wherever it has been."""
        self.missed, self.asked = 0, True
        self.velocity, self.jump = np.zeros(2), 0.0
        self._vote(category, score, sighting)
        self._begin(box, sighting, time)

    def judge(self, sighting: Sighting, time: float, limits: tuple[float, float, float]) -> None:
        """Set ``confidence`` and ``unsure`` by a frame's scores; to be called before the frame is taken over.

        Args:
            sighting: the frame's landmarks.
            time: s.
            limits: the score from which a landmark counts, the least confidence, the least part of the usual one.
        """
        landmark_score, least, part = limits
        self.usual = (self.level >= landmark_score) & (self.level > 0)
        count = max(int(np.count_nonzero(self.usual)), 1)
        self.confidence = float(sighting.scores @ self.usual) / count
        own = float(self.level @ self.usual) / count
        weight = 1 - math.exp(-max(time - self.time, 0) / LEVEL_TIME)
        self.level = self.level + weight * (sighting.scores - self.level)
        self.unsure = self.confidence < max(least, part * own)

    def box_at(self, time: float) -> Floats:
        """(4,) xyxy: the box moved on along its motion, by at most ``AHEAD`` sizes."""
        size = float(box_size(self.box))
        shift = self.velocity * max(time - self.time, 0.0)
        length = float(np.hypot(*shift))
        if length < STILL * size:
            return self.box
        return self.box + np.tile(shift * min(1.0, AHEAD * size / length), 2)

    def undo(self) -> None:
        """Back to the box before the last frame: its landmarks were another object's."""
        self.box, self.velocity = self.before

    # Within -----------------------------------------------------------------------------------------

    def _move(self, sighting: Sighting, time: float) -> bool:
        """Take the landmarks' motion, the median of their shifts, into the velocity; False: no landmark tells it."""
        self.before = (self.box, self.velocity)
        self.jump = 0.0
        shared = self.sighting.visible & sighting.visible
        if not shared.any():
            return False
        shift = _median(sighting.points[shared] - self.sighting.points[shared])
        step = max(time - self.time, 0.0)
        self.jump = float(np.hypot(*(shift - self.velocity * step)) / box_size(self.box))
        if self.jump > JUMP:
            self.unsure = True
        self._accelerate(shift, time)
        return True

    def _accelerate(self, shift: Floats, time: float) -> None:
        step = time - self.time
        if step > 0:
            self.velocity = self.velocity + (1 - math.exp(-step / VELOCITY_TIME)) * (shift / step - self.velocity)

    def _vote(self, category: str, score: float, sighting: Sighting) -> None:
        """The category that the detector gave most, the later ones counting more: it may waver between similar ones."""
        self._votes = {name: 0.8 * votes for name, votes in self._votes.items()}
        self._votes[category] = self._votes.get(category, 0.0) + score
        best = max(self._votes, key=lambda name: self._votes[name])
        if best != self.category:
            self.category = best
            self.level = sighting.scores  # other landmarks: the usual scores are not known yet


def _median(shifts: Floats) -> Floats:  # (n, 2) -> (2,)
    """The median along the first axis; np.median takes five times as long for a handful of numbers."""
    ordered = np.sort(shifts, axis=0)
    middle: Floats = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return middle


def check_time(time: Any) -> float:
    """A time as a finite number of seconds; InputError for anything else."""
    try:
        seconds = float(time)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(f"time must be a finite number of seconds, got {time!r}")
    return seconds
