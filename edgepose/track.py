"""Tracker: detect now and then, follow the landmarks in between, keep the ids.

    tracker = Tracker(Tracking(every=10), predictor.spec)
    for time, frame in frames:
        asked = tracker.next_boxes(time)  # None: detect
        boxes, categories = asked or (None, ())
        result = predictor.predict(frame, boxes, categories=categories or None)
        result = tracker.update(result, time, detected=asked is None)  # result.track_ids

Why no library: ``trackers`` (Apache-2.0; ``supervision`` has deprecated its own ByteTrack for it) follows boxes
that a detector gives in every frame, and installs a second OpenCV over the headless one. ``norfair`` (BSD-3-Clause)
takes points, but wants NumPy < 2 and FilterPy, whose last release is of 2018. Neither makes the next box from
landmarks, which is most of the work here. The assignment is SciPy's; the second look at boxes with a low score is
ByteTrack's idea (Zhang et al., ECCV 2022).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgepose.arguments import check_number, check_whole
from edgepose.association import assign, box_size, duplicates, landmark_similarity, load_solver, overlaps, position_gain
from edgepose.errors import InputError
from edgepose.result import PoseResult
from edgepose.spec import ModelSpec
from edgepose.trackstate import Sighting, Track, check_time, clip_box

__all__ = ["Tracker", "Tracking"]

Floats = NDArray[np.float64]

LOW_SCORE_OVERLAP = 0.5  # IoU that a box with a low score needs: ByteTrack's value for its second association
MISSES = 1  # detections in a row that may overlook an object whose landmarks stay good
LEAP = 0.05  # sizes that landmarks of a hidden object leap, from where their motion led, to the one in front
IN_FLIGHT = 8  # calls of next_boxes whose results may still come; a stream has at most 2 pending


@dataclass(frozen=True)
class Tracking:
    """How objects are followed. Lengths in *sizes* are parts of an object's size, the root of its box's area.

    Attributes:
        every: frames from one detection to the next; 1: detect in each. A new object is found at the next detection,
            so up to ``every`` - 1 frames after it came.
        idle: the same while nothing is followed. 1: a new object is found at once; more: less work for empty scenes.
        landmark_score: a landmark counts from this score on (0 to 1): for boxes, for motion, for the confidence.
        min_score: the least mean score of the landmarks that an object usually shows (0 to 1). Below it, the next
            frame is detected anew; an object that the detection does not confirm is lost.
        drop: the same, relative to the object's own usual mean (0 to 1): 0.7 detects anew when 30 % of it are gone.
            0: only ``min_score`` counts.
        iou: the least overlap (0 to 1) of a detected box with an object's expected box to be that object.
        new_score: the least score of a detected box (0 to 1) to be a new object; those below can only continue one,
            with an IoU of at least 0.5. 0: whatever the detector returns; then its own threshold decides.
        category_cost: what another category costs a match (0 to 1), in IoU: 0 ignores categories, 1 never matches
            two different ones. In between, a detector that wavers between similar categories changes no id.
        lost_after: s. An object that is looked for and not seen keeps its id for so long.
        pause: s. No frame may come for so long, from a camera that stalls or is opened again: then the next frame is
            detected, and who is still in his place keeps the id. After a longer pause, or when the time steps back by
            more than ``lost_after``, it is another scene: all is forgotten, and the ids go on.
        reach: sizes. An object that was lost, or moved too far for an overlap, is found again within this distance of
            where it was, or was heading. 0: never.

    Raises:
        InputError: a value is out of its range.
    """

    every: int = 10
    idle: int = 1
    landmark_score: float = 0.3
    min_score: float = 0.3
    drop: float = 0.7
    iou: float = 0.3
    new_score: float = 0.0
    category_cost: float = 0.3
    lost_after: float = 2.0
    pause: float = 10.0
    reach: float = 0.75

    def __post_init__(self) -> None:
        for name in ("every", "idle"):
            object.__setattr__(self, name, check_whole(f"Tracking.{name}", getattr(self, name)))
        for name in ("landmark_score", "min_score", "drop", "iou", "new_score", "category_cost"):
            object.__setattr__(self, name, check_number(f"Tracking.{name}", getattr(self, name), most=1))
        for name in ("lost_after", "pause", "reach"):
            object.__setattr__(self, name, check_number(f"Tracking.{name}", getattr(self, name)))
        if self.iou == 0:
            raise InputError("Tracking: iou must be above 0: boxes that do not touch are no match (see reach)")


class Tracker:
    """Follows the objects of one source. Not for several threads at once; one tracker for each source.

    A result may come a few frames after its boxes were asked for (frames in flight): :meth:`update` knows the objects
    by the boxes, which must come back as :meth:`next_boxes` gave them. Frames whose results never come do no harm.

    Smooth what :meth:`update` returns, not what it gets: it needs the landmarks as the network found them.

    Args:
        settings: see :class:`Tracking`; None: its defaults.
        spec: the model's; results must have its number of landmarks.
    """

    def __init__(self, settings: Tracking | None, spec: ModelSpec) -> None:
        if settings is not None and not isinstance(settings, Tracking):
            raise InputError(f"settings must be a Tracking, for instance Tracking(every=10), got {settings!r}")
        self._settings = settings or Tracking()
        self._spec = spec
        self._next_number = 1
        self._size: tuple[int, int] | None = None
        self._time: float | None = None
        self._active: list[Track] = []
        self._lost: list[Track] = []
        self._issued: deque[tuple[NDArray[np.float32], list[Track]]] = deque(maxlen=IN_FLIGHT)
        self._ask = True  # detect in the next frame
        self._since = 0  # frames since the last detection was asked for
        load_solver()

    @property
    def settings(self) -> Tracking:
        """How it follows."""
        return self._settings

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the objects that are followed now, the oldest first."""
        return tuple(sorted(track.number for track in self._active))

    def reset(self) -> None:
        """Forget all objects and detect in the next frame, as for another scene; ids are not used again."""
        self._active, self._lost, self._time, self._ask = [], [], None, True

    def next_boxes(self, time: float | None = None) -> tuple[NDArray[np.float32], tuple[str, ...]] | None:
        """Where the objects are in the next frame; None: detect them.

        Args:
            time: the frame's, s. Boxes are moved on along their objects' motion to this time. None: they stay where
                the landmarks were last.

        Returns:
            (N, 4) float32 xyxy, frame px, within the frame; N may be 0. And the N categories that the detector gave,
            or none of them if it gave none.

        Raises:
            InputError: ``time`` is not finite.
        """
        if time is not None and self._comes_late(check_time(time)):
            self._ask = True
        self._since += 1
        if self._ask or self._since >= (self._settings.every if self._active else self._settings.idle):
            self._ask, self._since = False, 0
            return None
        boxes, tracks = [], []
        for track in self._active:
            expected = track.box if time is None else track.box_at(time)
            clipped = expected if self._size is None else clip_box(expected, self._size)
            if clipped is not None:
                boxes.append(clipped)
                tracks.append(track)
            elif not track.asked:  # it leaves the frame; a detection settles it, as for poor landmarks
                track.unsure = track.asked = self._ask = True
        array = np.array(boxes, np.float32).reshape(-1, 4)
        self._issued.append((array, tracks))
        names = tuple(track.category for track in tracks)
        return array.copy(), names if any(names) else ()

    def update(self, result: PoseResult, time: float, *, detected: bool) -> PoseResult:
        """Take a frame's landmarks in, and say which object each is.

        Args:
            result: of the boxes that :meth:`next_boxes` gave, or of a detection; as the network found it, not smoothed.
            time: when the frame was taken, s, on any clock that goes on; the frame rate may vary.
            detected: the boxes come from a detector (or are otherwise known to be all objects of the frame).

        Returns:
            The result with ``track_ids``. Left out: boxes of objects that were lost or merged with an older one
            meanwhile, detected boxes that are the same object once more, and those with a low score that continue none.

        Raises:
            InputError: the time is not finite, the result is of another model, or its boxes are not those that
                :meth:`next_boxes` gave.
        """
        time = check_time(time)
        if not isinstance(result, PoseResult) or result.spec.num_keypoints != self._spec.num_keypoints:
            came = f"{result.spec.num_keypoints}" if isinstance(result, PoseResult) else type(result).__name__
            raise InputError(f"the tracker expects results with {self._spec.num_keypoints} landmarks, got {came}")
        if self._size not in (None, result.frame_size):
            self.reset()
        elif self._comes_late(time) and not detected:
            self._ask = True
        self._size, self._time = result.frame_size, time
        for track in (*self._active, *self._lost):
            track.time = min(track.time, time)  # a small step back: no time has passed
        sightings = self._sightings(result)
        rows = self._detect(result, sightings, time) if detected else self._follow(result, sightings, time)
        if self._merge(rows, sightings) and not detected:
            self._ask = True
        self._lost = [track for track in self._lost if time - track.time <= self._settings.lost_after]
        for track in self._active:
            if track.unsure and not track.asked:
                track.asked = self._ask = True
            track.asked = track.asked and track.unsure
        kept = [row for row, track in enumerate(rows) if track is not None]
        numbers = [track.number for track in rows if track is not None]
        return replace(result[kept], track_ids=np.array(numbers, np.int64))

    # One frame --------------------------------------------------------------------------------------

    def _follow(self, result: PoseResult, sightings: list[Sighting], time: float) -> list[Track | None]:
        """The objects of the rows, moved to this frame's landmarks."""
        rows: list[Track | None] = []
        for track, sighting in zip(self._tracks_of(result.boxes), sightings, strict=True):
            if track not in self._active:  # lost, merged or forgotten since the boxes were asked for
                rows.append(None)
                continue
            self._judge(track, sighting, time)
            if track.unsure and track.missed:  # neither the detector nor the landmarks see it
                self._lose(track)
                rows.append(None)
                continue
            track.see_landmarks(sighting, time)
            rows.append(track)
        return rows

    def _detect(self, result: PoseResult, sightings: list[Sighting], time: float) -> list[Track | None]:
        """The objects of detected boxes: those known, those found again, and new ones."""
        boxes = result.boxes.astype(np.float64)
        given = np.ones(len(boxes)) if result.box_scores is None else result.box_scores.astype(np.float64)
        scores: Floats = np.nan_to_num(given, nan=1.0)  # a box that somebody gave is sure
        names = list(result.categories) or [""] * len(boxes)
        rows: list[Track | None] = [None] * len(boxes)
        high = scores >= self._settings.new_score

        gain = self._gain(self._active, boxes, names, sightings, time)
        missing = list(self._active)
        for chosen, least in ((high, self._settings.iou), (~high, max(LOW_SCORE_OVERLAP, self._settings.iou))):
            allowed = chosen & np.array([track is None for track in rows], bool)
            waiting = np.array([track in missing for track in self._active], bool)
            for index, row in assign(np.where((gain[0] >= least) & allowed & waiting[:, None], gain[1], 0.0)):
                track = self._active[index]
                self._judge(track, sightings[row], time)
                track.see_box(boxes[row], names[row], float(scores[row]), sightings[row], time)
                missing.remove(track)
                rows[row] = track

        same = self._duplicates(boxes, sightings, names)
        taken = [row for row, track in enumerate(rows) if track is not None]
        free = high & np.array([track is None for track in rows], bool) & ~same[:, taken].any(axis=1)
        for track, row in self._find_again(missing, free, boxes, names, time):
            if track in missing:
                missing.remove(track)
                self._judge(track, sightings[row], time)
                track.see_box(boxes[row], names[row], float(scores[row]), sightings[row], time)
            else:
                self._lost.remove(track)
                self._active.append(track)
                track.find_again(boxes[row], names[row], float(scores[row]), sightings[row], time)
                self._judge(track, sightings[row], time)
            rows[row] = track
        for track in missing:  # the detector may overlook an object once, if its landmarks were good
            track.missed += 1
            if track.unsure or track.missed > MISSES:
                self._lose(track)
        for row in np.flatnonzero(high).tolist():  # the detector's best first
            taken = [other for other, track in enumerate(rows) if track is not None]
            if rows[row] is None and not same[row, taken].any():
                born = Track(self._next_number, boxes[row], names[row], sightings[row], time)
                self._next_number += 1
                self._judge(born, sightings[row], time)
                self._active.append(born)
                rows[row] = born
        return rows

    def _find_again(self, missing: list[Track], free: NDArray[np.bool_], boxes: Floats, names: list[str],
                    time: float) -> list[tuple[Track, int]]:  # fmt: skip
        """Objects that moved too far for an overlap, or were lost, and the free rows that lie where they may be."""
        tracks = missing + [track for track in self._lost if time - track.time <= self._settings.lost_after]
        if not tracks or not free.any() or self._settings.reach == 0:
            return []
        age = np.array([time - track.time for track in tracks])
        where, velocity = np.stack([track.box for track in tracks]), np.stack([track.velocity for track in tracks])
        gain = position_gain(where, velocity, age, boxes, self._settings.reach) - self._category_costs(tracks, names)
        return [(tracks[index], row) for index, row in assign(np.where(free, gain, 0.0))]

    def _gain(self, tracks: list[Track], boxes: Floats, names: list[str], sightings: list[Sighting],
              time: float) -> tuple[Floats, Floats]:  # fmt: skip
        """(A, N) twice: the overlap, less the cost of another category; and that with the landmarks' say."""
        if not tracks or not len(boxes):
            return np.zeros((len(tracks), len(boxes))), np.zeros((len(tracks), len(boxes)))
        expected = np.stack([track.box_at(time) for track in tracks])
        shift = (expected - np.stack([track.box for track in tracks]))[:, None, :2]
        overlap = overlaps(expected, boxes) - self._category_costs(tracks, names)
        similarity = landmark_similarity(
            (np.stack([t.sighting.points for t in tracks]) + shift, np.stack([s.points for s in sightings])),
            (np.stack([t.sighting.visible for t in tracks]), np.stack([s.visible for s in sightings])),
            box_size(expected),
        )
        return overlap, np.where(np.isnan(similarity), overlap, (overlap + similarity) / 2)

    def _category_costs(self, tracks: list[Track], names: list[str]) -> Floats:
        """(A, N): 0 for the same category, or one that is not known; infinite where they must not differ."""
        mine, theirs = np.array([track.category for track in tracks], object), np.array(names, object)
        known = (mine != "")[:, None] & (theirs != "")[None]
        cost = self._settings.category_cost
        return np.where(known & (mine[:, None] != theirs[None]), np.inf if cost == 1 else cost, 0.0)

    def _merge(self, rows: list[Track | None], sightings: list[Sighting]) -> bool:
        """Of two objects with the same landmarks the older stays, unless it has just leapt there: then it was hidden by
        the younger one, and is lost at the place where it was. True: somebody went."""
        present = [row for row, track in enumerate(rows) if track is not None]
        tracks = [track for track in rows if track is not None]
        if len(tracks) < 2:
            return False
        boxes = np.stack([track.box for track in tracks])
        same = self._duplicates(boxes, [sightings[row] for row in present], [track.category for track in tracks])
        for first, second in zip(*np.nonzero(np.triu(same)), strict=True):
            older, younger = sorted((int(first), int(second)), key=lambda index: tracks[index].number)
            if tracks[older] not in self._active or tracks[younger] not in self._active:
                continue  # merged with a third one
            jumps = tracks[older].jump, tracks[younger].jump
            hidden = max(jumps) > 2 * min(jumps) and max(jumps) > LEAP
            leaver = older if hidden and jumps[0] > jumps[1] else younger
            if hidden:
                tracks[leaver].undo()
            self._lose(tracks[leaver])  # it was an object of its own, and may come out again
            rows[present[leaver]] = None
        return any(rows[row] is None for row in present)

    # Small things ------------------------------------------------------------------------------------

    def _judge(self, track: Track, sighting: Sighting, time: float) -> None:
        track.judge(sighting, time, (self._settings.landmark_score, self._settings.min_score, self._settings.drop))

    def _lose(self, track: Track) -> None:
        self._active.remove(track)
        self._lost.append(track)

    def _comes_late(self, time: float) -> bool:
        """Whether nobody looked for so long that the objects are to be detected; another scene is forgotten."""
        passed = 0.0 if self._time is None else time - self._time
        if passed > max(self._settings.pause, self._settings.lost_after) or -passed > self._settings.lost_after:
            self.reset()
        elif passed > self._settings.lost_after:
            for track in self._active:
                track.velocity = np.zeros(2)  # nobody goes on like this for so long
                track.missed = MISSES  # nor does the detector overlook who is still there
            return True
        return False

    def _sightings(self, result: PoseResult) -> list[Sighting]:
        points = result.keypoints.astype(np.float64)
        scores = np.where(np.isfinite(points).all(axis=-1), np.nan_to_num(result.scores.astype(np.float64)), 0.0)
        visible = (scores >= self._settings.landmark_score) & (scores > 0)
        points = np.where(np.isfinite(points), points, 0.0)
        return [Sighting(*row) for row in zip(points, scores, visible, strict=True)]

    def _duplicates(self, boxes: Floats, sightings: list[Sighting], names: list[str]) -> NDArray[np.bool_]:
        if len(boxes) < 2:
            return np.zeros((len(boxes), len(boxes)), np.bool_)
        points, visible = np.stack([s.points for s in sightings]), np.stack([s.visible for s in sightings])
        return duplicates(boxes, points, visible, names)

    def _tracks_of(self, boxes: NDArray[np.float32]) -> list[Track]:
        """The objects that these boxes were given for."""
        for array, tracks in reversed(self._issued):
            if np.array_equal(array, boxes):
                return tracks
        raise InputError(
            f"update(detected=False) got {len(boxes)} boxes that next_boxes did not give: pass its boxes to predict as "
            "they are, or say detected=True where they come from elsewhere"
        )
