"""Hand-made scenes for tests of the tracker: a detector and a pose network that know the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgepose import ModelSpec, PoseResult
from edgepose.association import overlaps
from edgepose.track import Tracker
from edgepose.trackstate import clip_box

LAYOUT = np.array([[0.5, 0.05], [0.1, 0.4], [0.9, 0.4], [0.3, 0.95], [0.7, 0.95]])  # in a box of side 1
SPEC = ModelSpec(
    name="five",
    input_size=(96, 128),
    heatmap_size=(24, 32),
    keypoint_names=("head", "left hand", "right hand", "left foot", "right foot"),
    flip_indices=(0, 2, 1, 4, 3),
)
SIZE = (640, 480)
FPS = 30.0
ALL = np.ones(5, bool)


def box_at(x: float, y: float, width: float = 60, height: float = 120) -> np.ndarray:
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2], np.float64)


@dataclass
class Thing:
    """An object: where its box is, and whether it is to be seen, as functions of the time."""

    box: Callable[[float], np.ndarray]
    seen: Callable[[float], bool] = lambda time: True
    category: str = ""
    score: Callable[[float], float] = lambda time: 0.9  # of its landmarks
    box_score: float = 0.9

    def points(self, time: float) -> np.ndarray:
        box = self.box(time)
        return box[:2] + LAYOUT * (box[2:] - box[:2])


@dataclass
class World:
    """A detector and a pose network that know the truth; the things that come first hide the others."""

    things: list[Thing]
    noise: float = 0.0  # of the landmarks, parts of the box's height
    pull: float = 0.0  # how far landmarks are drawn to the crop's middle: 0 to 1
    size: tuple[int, int] = SIZE
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def detect(self, time: float) -> PoseResult:
        seen = [thing for thing in self.things if thing.seen(time)]
        boxes = [clip_box(thing.box(time), self.size) for thing in seen]
        inside = [(box, thing) for box, thing in zip(boxes, seen, strict=True) if box is not None]
        names = tuple(thing.category for _, thing in inside)
        result = self.predict(np.array([box for box, _ in inside], np.float32).reshape(-1, 4), names, time)
        return replace(result, box_scores=np.array([thing.box_score for _, thing in inside], np.float32))

    def predict(self, boxes: np.ndarray, names: tuple[str, ...], time: float) -> PoseResult:
        points, scores = np.zeros((len(boxes), 5, 2)), np.full((len(boxes), 5), 0.05)
        seen = [thing for thing in self.things if thing.seen(time)]
        for row, box in enumerate(boxes.astype(np.float64)):
            middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * 0.625
            points[row] = middle
            here = overlaps(box[None], np.array([thing.box(time) for thing in seen]).reshape(-1, 4))[0]
            if len(seen) == 0 or here.max() < 0.1:
                continue
            thing = seen[int(here.argmax())]
            true = thing.points(time)
            height = float(np.diff(thing.box(time)[1::2])[0])
            points[row] = true + self.pull * (middle - true) + self.random.normal(0, self.noise * height, (5, 2))
            inside = (np.abs(true - middle) <= half).all(axis=1) & (true >= 0).all(axis=1)
            inside &= (true <= np.array(self.size) - 1).all(axis=1)
            scores[row] = np.where(inside, thing.score(time), 0.05)
        return PoseResult(points, scores, boxes, SPEC, self.size, categories=names if any(names) else ())


@dataclass
class Step:
    time: float
    detected: bool
    result: PoseResult

    def id_of(self, thing: Thing) -> int | None:
        """The id of the row whose landmarks are nearest to the thing's; None: no row within half of its height."""
        if not len(self.result):
            return None
        distances = np.linalg.norm(self.result.keypoints - thing.points(self.time), axis=-1).mean(axis=-1)
        height = float(np.diff(thing.box(self.time)[1::2])[0])
        row = int(distances.argmin())
        assert self.result.track_ids is not None
        return int(self.result.track_ids[row]) if distances[row] < height / 2 else None


def run(world: World, tracker: Tracker, frames: int, *, start: float = 0.0, fps: float = FPS) -> list[Step]:
    steps = []
    for frame in range(frames):
        time = start + frame / fps
        asked = tracker.next_boxes(time)
        result = world.detect(time) if asked is None else world.predict(*asked, time)
        steps.append(Step(time, asked is None, tracker.update(result, time, detected=asked is None)))
    return steps


def still(x: float, y: float, **values: Any) -> Thing:
    return Thing(lambda time: box_at(x, y), **values)


def ids(step: Step) -> list[int]:
    assert step.result.track_ids is not None
    return sorted(step.result.track_ids.tolist())
