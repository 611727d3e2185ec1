"""What tracking and smoothing do: `edgepose bench tracking [VIDEO]`.

Rendered garments, whose true landmarks are known, with sensor noise: each at rest, and moving at several speeds. Their
detector is the truth, off by 1 % at each side. With a VIDEO of one object also its first frame as a still with noise,
and the video as it is, whose truth nobody knows: there the lag is that against the raw landmarks.

    jitter  RMS of a landmark's way from frame to frame (step), and its standard deviation (spread), px
    lag     the shift of the true path that correlates best with the landmarks, frames; added: smoothed less raw
    error   mean distance to the true landmarks, px: what smoothing costs where the object moves
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from edgepose import Detector, PoseResult, Predictor
from edgepose.association import overlaps
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.timing import summarize
from edgepose.errors import InputError
from edgepose.media import VideoReader
from edgepose.smooth import OneEuro, Smoother
from edgepose.track import Tracker, Tracking
from edgepose.training.synthetic import MovingGarment

if TYPE_CHECKING:
    from rich.console import Console

    from edgepose.spec import ModelSpec

__all__ = ["CURVES", "GARMENTS", "Plan", "Video", "print_table", "run"]

GARMENTS = 5  # with the seeds 0, 1, 2, ...: none was picked
SIZE = (640, 480)
FPS = 30.0
STRIDES = (1, 2, 4)  # frames taken of the loop: 1, 2, 4 times as fast
NOISE = 4.0  # grey levels, of each pixel of each frame
DETECTOR_NOISE = 0.01  # object sizes, of each side of a box
SETTLE = 30  # frames left out of the jitter: the filter has only begun
VISIBLE = 0.3
SHIFTS = np.arange(-3, 5, 0.02)  # frames
OBJECTS, STEPS, BLOCK = (1, 4, 16), 300, 10  # of the cost: objects, frames, frames drawn together for the interval
CURVES = ("at rest", "moving")  # scenes whose paths the record holds, for its plot

Points = NDArray[np.float64]
Frame = NDArray[np.uint8]  # (H, W, 3) BGR
Find = Callable[[Frame, Any], PoseResult]  # (frame, boxes or None: detect) -> landmarks
Show = Callable[[int, int, str], Any]


@dataclass(frozen=True)
class Plan:
    """How much is looked at.

    Attributes:
        garments: how many.
        loop: frames of one turn of the garment at the slowest speed.
        still: frames at rest.
        alone: frames after the only detection.
    """

    garments: int = GARMENTS
    loop: int = 120
    still: int = 240
    alone: int = 1000

    @classmethod
    def quick(cls) -> Plan:
        """One garment, briefly."""
        return cls(garments=1, loop=48, still=60, alone=48)


@dataclass(frozen=True)
class Video:
    """A video of one object and what finds it: bundled names or ONNX files, and specs of files without one."""

    path: Path
    model: str = "garment-landmarks"
    spec: Path | None = None
    detector: str = "garment-detector"
    detector_spec: Path | None = None


@dataclass
class Recording:
    """What came out of one clip with one object.

    Attributes:
        raw, smoothed: (T, K, 2) landmarks, frame px.
        scores: (T, K).
        boxes: (T, 4) xyxy, frame px.
        detections, ids: how many.
    """

    raw: Points
    smoothed: Points
    scores: Points
    boxes: Points
    detections: int
    ids: int

    @property
    def size(self) -> float:
        """Of the object, px: the median root of its box's area."""
        return float(np.median(np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))))


def run(plan: Plan = Plan(), *, video: Video | None = None, progress: Show | None = None) -> Record:
    """Follow garments, maybe a video, and time the following itself.

    Args:
        plan: how many garments, for how long.
        video: besides.
        progress: told (done, of how many, what).

    Returns:
        Rows with labels clip, scene and measure: ``jitter``, ``error`` px; ``lag`` frames; ``speed`` sizes/s; ``count``
        of detections and ids; ``overlap`` IoU with the true box where there was one detection; ``cost`` us, by objects.
        Rows with the label ``curve`` are the paths that the plot shows: x of a landmark in each frame.

    Raises:
        InputError: the video cannot be read, or shows no object.
    """
    show = progress or (lambda done, total, what: None)
    steps = plan.garments + (video is not None) + 1
    rows: list[Row] = []
    with Predictor("garment-landmarks") as predictor:
        for seed in range(plan.garments):
            show(seed, steps, f"garment {seed + 1} of {plan.garments}")
            rows += garment(seed, predictor, plan)
        if video:
            show(plan.garments, steps, video.path.name)
            rows += of_video(video, plan)
        show(steps - 1, steps, "cost")
        rows += costs(predictor.spec)
    notes = [f"{type(one).__name__}: {asdict(one)}" for one in (Tracking(), OneEuro())]
    return make_record("tracking", rows, notes=notes)


def record(frames: Iterable[Frame], find: Find, spec: ModelSpec, fps: float, every: int = 10) -> Recording:
    """Track and smooth a clip; the object with the most frames is the one that counts. InputError if there is none."""
    tracker, smoother = Tracker(Tracking(every=every), spec), Smoother()
    rows: dict[int, list[tuple[Points, ...]]] = {}
    detections = 0
    for index, frame in enumerate(frames):
        time = index / fps
        asked = tracker.next_boxes(time)
        detections += asked is None
        found = find(frame, None if asked is None else asked[0])
        raw = tracker.update(found, time, detected=asked is None)
        smoothed = smoother.smooth(raw, time)
        assert raw.track_ids is not None
        for row, number in enumerate(raw.track_ids.tolist()):
            values = (raw.keypoints[row], smoothed.keypoints[row], raw.scores[row], raw.boxes[row])
            rows.setdefault(number, []).append(tuple(np.asarray(value, np.float64) for value in values))
    if not rows:
        raise InputError("no object was found in the clip: there is nothing to follow")
    longest = max(rows.values(), key=len)
    paths, filtered, scores, boxes = (np.array(column) for column in zip(*longest, strict=True))
    return Recording(paths, filtered, scores, boxes, detections, len(rows))


# Measures -----------------------------------------------------------------------------------------------


def jitter(path: Points) -> dict[str, float]:
    """(T, K, 2) -> RMS of the frame-to-frame way and standard deviation, px, over the landmarks."""
    rest = path[min(SETTLE, len(path) // 2) :]
    return {
        "step": float(np.sqrt((np.diff(rest, axis=0) ** 2).sum(axis=-1).mean())),
        "spread": float(np.sqrt(rest.var(axis=0).sum(axis=-1).mean())),
    }


def lag(delayed: Points, path: Points) -> float:
    """(T, K, 2) twice -> how many frames the first is behind the second."""
    times = np.arange(len(path))
    inside = times[8:-8]
    curve, target = CubicSpline(times, path), delayed[inside] - delayed[inside].mean(axis=0)
    correlations = []
    for shift in SHIFTS:
        there = curve(inside - shift)
        there -= there.mean(axis=0)
        correlations.append((target * there).sum() / np.sqrt((target**2).sum() * (there**2).sum()))
    return float(SHIFTS[int(np.argmax(correlations))])


def mean_distance(first: Points, second: Points) -> float:
    """Of points (T, K, 2), px."""
    return float(np.linalg.norm(first - second, axis=-1).mean())


def _at_rest(labels: dict[str, Label], recording: Recording, seen: NDArray[np.bool_]) -> Row:
    parts = {"raw": jitter(recording.raw[:, seen]), "smoothed": jitter(recording.smoothed[:, seen])}
    values = {f"{name}, {points}": value for points, both in parts.items() for name, value in both.items()}
    return Row({**labels, "measure": "jitter"}, "px", {**values, "object's size": recording.size})


def _speeds(labels: dict[str, Label], path: Points, size: float, fps: float) -> Row:
    """(T, K, 2) -> speeds of the landmarks in object sizes a second."""
    speeds = np.linalg.norm(np.diff(path, axis=0), axis=-1) * fps / size
    return Row({**labels, "measure": "speed"}, "sizes/s", {"mean": float(speeds.mean()), "top": float(speeds.max())})


def _counts(labels: dict[str, Label], recording: Recording) -> Row:
    values = {"detections": recording.detections, "ids": recording.ids, "frames": len(recording.raw)}
    return Row({**labels, "measure": "count"}, "count", values)


def overlap(recording: Recording, boxes: Points) -> dict[str, float]:
    """IoU of the boxes with the true ones (L, 4) of a loop, while there is no detection but the first."""
    loop = len(boxes)
    iou = np.array([overlaps(box[None], boxes[i % loop][None])[0, 0] for i, box in enumerate(recording.boxes)])
    return {
        "first loop": float(iou[:loop].mean()),
        "last loop": float(iou[-loop:].mean()),
        "least": float(iou.min()),
        "frames": len(iou),
    }


# Scenes -------------------------------------------------------------------------------------------------


def noisy(frame: Frame, random: np.random.Generator) -> Frame:
    """The frame with sensor noise."""
    return np.clip(frame + random.normal(0, NOISE, frame.shape), 0, 255).astype(np.uint8)


class _Shown:
    """A rendered garment in front of a camera, followed by ours."""

    def __init__(self, seed: int, predictor: Predictor, plan: Plan) -> None:
        samples = list(MovingGarment(seed=seed, size=SIZE, frames=plan.loop))
        self.images = [sample.image for sample in samples]
        self.truth = np.array([sample.keypoints for sample in samples], np.float64)
        self.boxes = np.array([sample.box for sample in samples], np.float64)
        self.visible = np.array([sample.visible for sample in samples]).min(axis=0) > 0
        self._predictor, self._random = predictor, np.random.default_rng((seed, 1))

    def follow(self, numbers: NDArray[np.int64], every: int, detector_noise: float = DETECTOR_NOISE) -> Recording:
        """The frames of these numbers, with a detection in every so-manieth."""
        steps = iter(numbers.tolist())

        def find(frame: Frame, asked: Any) -> PoseResult:
            box = self.boxes[next(steps)]
            size = np.sqrt((box[2:] - box[:2]).prod())
            given = (box + self._random.normal(0, detector_noise * size, 4))[None] if asked is None else asked
            return self._predictor.predict(noisy(frame, self._random), given)

        frames = [self.images[number] for number in numbers]
        return record(frames, find, self._predictor.spec, FPS, every)


def garment(seed: int, predictor: Predictor, plan: Plan) -> list[Row]:
    """All rows of one garment; of the first one also the curves."""
    shown = _Shown(seed, predictor, plan)
    labels: dict[str, Label] = {"clip": f"garment {seed}"}
    still = shown.follow(np.zeros(plan.still, np.int64), 10)
    seen = (still.scores.min(axis=0) >= VISIBLE) & shown.visible
    if not seen.any():
        raise InputError(f"garment {seed}: no landmark is seen in every frame, so that nothing can be measured")
    each = shown.follow(np.zeros(plan.still, np.int64), 1)
    rows = [_at_rest({**labels, "scene": "at rest"}, still, seen)]
    rows.append(_at_rest({**labels, "scene": "at rest, detected in each frame"}, each, seen))
    curves = {"at rest": {"raw": still.raw[:, seen], "smoothed": still.smoothed[:, seen]}}
    for stride in STRIDES:
        numbers = np.arange(0, 2 * plan.loop, stride) % plan.loop
        moving, true = shown.follow(numbers, 10), shown.truth[numbers][:, seen]
        raw, smoothed = moving.raw[:, seen], moving.smoothed[:, seen]
        at: dict[str, Label] = {**labels, "scene": f"moving x{stride}"}
        behind = lag(raw, true)
        rows.append(_speeds(at, true, moving.size, FPS))
        rows.append(Row({**at, "measure": "lag"}, "frames", {"added": lag(smoothed, true) - behind, "raw": behind}))
        errors = {"raw": mean_distance(raw, true), "smoothed": mean_distance(smoothed, true)}
        rows += [Row({**at, "measure": "error"}, "px", errors), _counts(at, moving)]
        curves["moving"] = {"true": true, "raw": raw, "smoothed": smoothed}
    alone = shown.follow(np.arange(plan.alone) % plan.loop, 10**9, 0.0)
    rows.append(Row({**labels, "scene": "one detection", "measure": "overlap"}, "IoU", overlap(alone, shown.boxes)))
    return [*rows, *(_curves(labels, curves) if seed == 0 else ())]


def _curves(labels: dict[str, Label], curves: dict[str, dict[str, Points]]) -> Iterator[Row]:
    """x of the first landmark in each frame, for the plot."""
    for scene, paths in curves.items():
        for curve, path in paths.items():
            values = {str(number): float(x) for number, x in enumerate(path[:, 0, 0])}
            yield Row({**labels, "scene": scene, "curve": curve}, "px", values)


def of_video(video: Video, plan: Plan) -> list[Row]:
    """A real video of one object."""
    labels: dict[str, Label] = {"clip": video.path.name}
    with VideoReader(video.path) as reader:
        frames, fps = list(reader), reader.fps
    if not frames:
        raise InputError(f"{video.path} has no frames")
    random = np.random.default_rng(0)
    with Predictor(video.model, spec=video.spec) as predictor, ExitStack() as stack:
        detector = stack.enter_context(Detector(video.detector, spec=video.detector_spec))

        def find(frame: Frame, asked: Any) -> PoseResult:
            return predictor.predict(frame, detector.detect(frame).boxes if asked is None else asked)

        still = record((noisy(frames[0], random) for _ in range(plan.still)), find, predictor.spec, FPS)
        moving = record(frames, find, predictor.spec, fps)
        each = record(frames, find, predictor.spec, fps, every=1)
    seen = still.scores.min(axis=0) >= VISIBLE
    moved = np.median(moving.scores, axis=0) >= VISIBLE
    at: dict[str, Label] = {**labels, "scene": "as it is"}
    rows = [_at_rest({**labels, "scene": "at rest"}, still, seen), _speeds(at, moving.raw[:, moved], moving.size, fps)]
    behind = lag(moving.smoothed[:, moved], moving.raw[:, moved])
    rows += [Row({**at, "measure": "lag"}, "frames", {"added": behind}), _counts(at, moving)]
    if len(moving.raw) == len(each.raw):
        apart = float(np.median(np.linalg.norm(moving.raw - each.raw, axis=-1)[:, moved]) / moving.size)
        rows.append(Row({**at, "measure": "distance to detecting in each frame"}, "sizes", {"median": apart}))
    return rows


def costs(spec: ModelSpec) -> Iterator[Row]:
    """Microseconds a frame of next_boxes, update and smooth together, for still objects side by side."""
    random = np.random.default_rng(0)
    for count in OBJECTS:
        corner = np.array([[40 + 110 * (i % 8), 40 + 300 * (i // 8)] for i in range(count)], np.float64)
        boxes = np.concatenate([corner, corner + np.array([100, 250])], axis=1)
        layout = random.uniform(0.05, 0.95, (spec.num_keypoints, 2))
        tracker, smoother, times = Tracker(None, spec), Smoother(), []
        for index in range(STEPS):
            points = corner[:, None] + layout * [100, 250] + random.normal(0, 0.3, (count, spec.num_keypoints, 2))
            start = perf_counter()
            asked = tracker.next_boxes(index / FPS)
            taken = perf_counter() - start
            scores = np.full(points.shape[:2], 0.9, np.float32)
            result = PoseResult(
                points.astype(np.float32), scores, boxes if asked is None else asked[0], spec, (1000, 700)
            )
            start = perf_counter()
            smoother.smooth(tracker.update(result, index / FPS, detected=asked is None), index / FPS)
            times.append((taken + perf_counter() - start) * 1e6)
        yield Row({"measure": "cost", "objects": count}, "us", summarize(np.reshape(times, (-1, BLOCK))))


# Output -------------------------------------------------------------------------------------------------


def print_table(record: Record, console: Console) -> None:
    """At rest, moving, after one detection, and the cost."""
    still = [(row, [*_less(row, "step"), *_less(row, "spread")]) for row in record.find(measure="jitter")]
    heads: tuple[str, ...] = ("step", "smoothed", "times less", "spread", "smoothed", "times less")
    _table(console, "At rest: jitter, px", heads, still)
    moving = []
    for row in record.find(measure="speed"):
        at = {name: row.labels[name] for name in ("clip", "scene")}
        found = {str(other.labels["measure"]): other.values for other in record.find(**at)}
        error = found.get("error", {})
        errors = [f"{error[key]:.2f}" if error else "" for key in ("raw", "smoothed")]
        counts = [f"{found['count'][key]:g}" for key in ("detections", "ids")]
        speeds = [f"{row.values[key]:.2f}" for key in ("mean", "top")]
        moving.append((row, [*speeds, f"{found['lag']['added']:.2f}", *errors, *counts]))
    heads = ("mean, sizes/s", "top", "added lag, frames", "error, px", "smoothed", "detections", "ids")
    _table(console, "Moving", heads, moving)
    alone = record.find(measure="overlap")
    names = ("first loop", "last loop", "least")
    _table(console, "IoU with the true box", names, [(row, [f"{row.values[n]:.3f}" for n in names]) for row in alone])
    for row in record.find(measure="cost"):
        console.print(f"tracking and smoothing {row.labels['objects']} objects: {row.values['p50']:.0f} us a frame")


def _less(row: Row, name: str) -> tuple[str, str, str]:
    """Raw, smoothed, and how many times less that is."""
    raw, smoothed = row.values[f"{name}, raw"], row.values[f"{name}, smoothed"]
    return f"{raw:.2f}", f"{smoothed:.2f}", f"{raw / smoothed:.1f} x"


def _table(console: Console, title: str, heads: Iterable[str], lines: Iterable[tuple[Row, list[str]]]) -> None:
    from rich.table import Table

    table = Table("", "", title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    for row, cells in lines:
        table.add_row(str(row.labels["clip"]), str(row.labels["scene"]), *cells)
    console.print(table)
