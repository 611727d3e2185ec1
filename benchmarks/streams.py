"""Two stages on a stream, beside detect-then-loop code: `edgepose bench streams [VIDEO]`.

    work     how long a frame takes, the reading of it apart: the mean over a turn of ten frames, of which the tracking
             way detects in one. One turn a way, in an order drawn anew each time; every way sees every frame, in order
    age      how old a frame is when its landmarks are there. A camera films at a steady pace, and its driver keeps four
             frames, as V4L2 does. Who reads more slowly reads old frames, unless a thread reads and keeps the newest
             only: so edgepose does it, and the loop is measured without and with such a thread

First of all both ways are held against each other: the same objects, and on the same boxes the same landmarks. Without
a VIDEO the clip is rendered, and what each way is off the truth is told, too: boxes that follow landmarks are other
boxes than a detector's, and that "edgepose, tracks" is faster by looking less often must not cost landmarks unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose import Detector, DetectorSpec, ModelSpec, Predictor, Tracker, Tracking
from edgepose.association import overlaps
from edgepose.benchmarks import equality
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.cameras import Camera, Frame
from edgepose.benchmarks.peers.detect_then_loop import DetectThenLoop
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.timing import ratio, summarize
from edgepose.benchmarks.ways import UnavailableError
from edgepose.errors import InputError
from edgepose.media import VideoReader
from edgepose.modelfile import ModelFile
from edgepose.models import find_detector, find_model
from edgepose.result import MIN_SCORE
from edgepose.training.synthetic import MovingGarment

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "FRAMES",
    "QUICK_FRAMES",
    "QUICK_SIZE",
    "Clip",
    "Files",
    "Plan",
    "print_table",
    "read_clip",
    "rendered_clip",
    "run",
]

LOOP, THREADED = "detect, then loop", "detect, then loop, a thread reads"
DETECTS, TRACKS = "edgepose, detects each frame", "edgepose, tracks"
FRAMES, QUICK_FRAMES = 120, 20
QUICK_SIZE = (480, 360)
SEED, SIZE = 14, (960, 720)  # of the rendered clip: the garment of `edgepose demo`, which has all eight landmarks
BURST = 10  # frames in a turn, of which the tracking way detects in one
CHECKED = 40  # frames at most on which both ways are compared before anything is timed
SAME_OBJECTS = 0.95  # of these frames at least must show both ways as many objects: else they do other work
WARM_UP = 3  # frames of a camera that do not count
BLOCK = 8  # frames of a camera that are drawn together for the interval: a late one makes the next ones late

Show = Callable[[int, int, str], Any]


class Clip(NamedTuple):
    """Frames (H, W, 3) uint8 BGR and, where known, the landmarks in each: (K, 2) px and whether they are shown (K,)."""

    name: str
    frames: list[Frame]
    truth: list[tuple[NDArray[np.floating], NDArray[np.bool_]]] | None


@dataclass(frozen=True)
class Files:
    """What both ways run, bundled names or ONNX files: a heatmap model, a YOLOX detector; specs of files without."""

    model: str = "garment-landmarks"
    spec: Path | None = None
    detector: str = "garment-detector"
    detector_spec: Path | None = None


@dataclass(frozen=True)
class Plan:
    """How long is measured.

    Attributes:
        rounds: turns of BURST frames for each way.
        fps: of the cameras, frames a second.
        seconds: each camera films.
        repeats: cameras for each way, one after another, in an order drawn anew.
        cameras: at once, on one predictor; below 2: not measured.
    """

    rounds: int = 24
    fps: float = 30.0
    seconds: float = 6.0
    repeats: int = 3
    cameras: int = 8

    @classmethod
    def quick(cls) -> Plan:
        """Some seconds of each."""
        return cls(rounds=2, seconds=2, repeats=1, cameras=2)


def rendered_clip(frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Clip:
    """One garment that sways, turns and comes closer; its end meets its beginning."""
    samples = list(MovingGarment(seed=SEED, size=size, frames=frames))
    truth = [(sample.keypoints, sample.visible > 0) for sample in samples]
    return Clip("a rendered garment that moves", [sample.image for sample in samples], truth)


def read_clip(path: Path, limit: int = FRAMES) -> Clip:
    """The first frames of a video. Raises InputError where it cannot be read or has none."""
    with VideoReader(path) as reader:
        frames = [frame for frame, _ in zip(reader, range(limit), strict=False)]
    if not frames:
        raise InputError(f"{path} has no frames")
    return Clip(path.name, frames, None)


def run(clip: Clip, *, files: Files = Files(), plan: Plan = Plan(), progress: Show | None = None) -> Record:
    """Compare, then measure.

    Args:
        clip: what the cameras see.
        files: the models.
        plan: how long.
        progress: told (done, of how many, what).

    Returns:
        Rows with labels measure and way. ``work``, means over turns of BURST frames, ``frame``, single frames, and
        ``age`` in ms, ``rate`` in frames/s, the last two with the number of cameras; ``work`` with ``against`` is how
        many times as fast as that way, turn by turn. ``landmark change`` and ``boxes`` hold the loop
        against ours, ``error`` each way against the truth. A loop that finds other objects or landmarks is not timed.

    Raises:
        InputError: a model or spec cannot be used.
    """
    show = progress or (lambda done, total, what: None)
    height, width = clip.frames[0].shape[:2]
    notes = [f"clip: {clip.name}, {len(clip.frames)} frames of {width}x{height}, detector {files.detector}"]
    with _opened(files, notes) as (predictor, loop):
        rows, fault = _equality(predictor, loop, clip, files.model) if loop else ([], "")
        if fault:
            notes.append(f"{LOOP} is not timed: {fault}")
        peer = None if fault else loop
        steps = plan.rounds + plan.repeats * (4 if peer else 2) + (plan.cameras > 1)
        rows += work(predictor, peer, clip, plan, lambda done: show(done, steps, "work on a frame"))
        rows += camera(predictor, peer, clip, plan, lambda done: show(plan.rounds + done, steps, "one camera"))
        if plan.cameras > 1:
            show(steps - 1, steps, f"{plan.cameras} cameras")
            rows += cameras(predictor, clip, plan)
    return make_record("streams", rows, notes=notes)


@contextmanager
def _opened(files: Files, notes: list[str]) -> Iterator[tuple[Predictor, DetectThenLoop | None]]:
    """Ours, and the loop, or a note why there is none."""
    model, detector = find_model(files.model), find_detector(files.detector)
    spec: Any = ModelSpec.from_file(files.spec) if files.spec else ModelFile.read(model).spec
    detector_spec = DetectorSpec.from_file(files.detector_spec) if files.detector_spec else None
    written: Any = ModelFile.read(detector).spec
    with (
        Predictor(model, spec=spec, detector=Detector(detector, spec=detector_spec)) as predictor,
        ExitStack() as stack,
    ):
        bench_model = BenchModel(files.model, model, predictor.spec, trained=True)
        loop = None
        try:
            loop = DetectThenLoop(detector, detector_spec or written, bench_model)
            stack.callback(loop.close)
        except UnavailableError as error:
            notes.append(f"{LOOP} is not timed: {error}")
        yield predictor, loop


# Equality -----------------------------------------------------------------------------------------------


def _equality(predictor: Predictor, loop: DetectThenLoop, clip: Clip, model: str) -> tuple[list[Row], str]:
    """How far the loop's boxes and landmarks are from ours, and what is too far apart; empty: nothing."""
    bench_model = BenchModel(model, Path(model), predictor.spec, trained=True)
    same, best, apart, scores = [], [], [], []
    for frame in clip.frames[:: max(1, len(clip.frames) // CHECKED)]:
        ours, boxes = predictor.predict(frame), loop.detect(frame)
        same.append(len(ours) == len(boxes))
        if len(ours) and len(boxes):
            best += overlaps(np.asarray(ours.boxes, np.float64), np.asarray(boxes, np.float64)).max(axis=1).tolist()
        if len(ours):
            points, peaks = loop.landmarks(frame, ours.boxes)
            apart.append(equality.crop_distances(points, ours.keypoints, ours.boxes, bench_model))
            scores.append(peaks)
    if not apart:
        raise InputError(f"{clip.name}: no object was found in any frame, so that nothing can be measured")
    agreement = equality.compare(np.concatenate(apart), np.concatenate(scores))
    labels: dict[str, Label] = {"way": LOOP, "against": DETECTS}
    share = float(np.mean(same))
    rows = [
        Row({"measure": "landmark change", **labels}, "px of the crop", agreement.values()),
        Row({"measure": "boxes", **labels}, "IoU", {"mean": float(np.mean(best or [0])), "least": min(best or [0])}),
        Row({"measure": "frames with as many objects", **labels}, "%", {"value": 100 * share}),
    ]
    limit = equality.LIMITS["fp32"].median
    if agreement.median > limit:
        return rows, f"its landmarks on the same boxes are others (median {agreement.median:.3g} px, limit {limit:g})"
    if share < SAME_OBJECTS:
        return rows, f"in {100 * (1 - share):.0f} % of the frames it finds more or fewer objects"
    return rows, ""


# Work ---------------------------------------------------------------------------------------------------


def work(
    predictor: Predictor, loop: DetectThenLoop | None, clip: Clip, plan: Plan, show: Callable[[int], Any]
) -> list[Row]:
    """Milliseconds of a frame, and errors against the truth, of each way; the loop's only if there is one."""
    ways: dict[str, Callable[[Frame, int], NDArray[Any]]] = {
        DETECTS: lambda frame, number: predictor.predict(frame).keypoints,
        TRACKS: _tracking(predictor, plan.fps),
    }
    if loop:
        ways[LOOP] = lambda frame, number: loop(frame)[1]
    times = {name: np.empty((plan.rounds, BURST)) for name in ways}
    errors: dict[str, list[NDArray[np.floating]]] = {name: [] for name in ways}
    rng = np.random.default_rng(0)
    for turn in range(plan.rounds):
        for index in rng.permutation(len(ways)):
            name = list(ways)[index]
            # thrown away: threads of the way before may still spin; what tracks would not forget it
            ways[name if name == LOOP else DETECTS](clip.frames[turn * BURST % len(clip.frames)], 0)
            for repeat in range(BURST):
                number = turn * BURST + repeat
                start = perf_counter()
                points = ways[name](clip.frames[number % len(clip.frames)], number)
                times[name][turn, repeat] = (perf_counter() - start) * 1e3
                errors[name] += _errors(points, clip, number)
        show(turn + 1)
    rows = _rows_of_work(times)
    for name, found in errors.items():
        if found:
            off = np.concatenate(found)
            values = {"mean": float(off.mean()), "median": float(np.median(off)), "compared": off.size}
            rows.append(Row({"measure": "error", "way": name}, "px", values))
    return rows


def _rows_of_work(times: Mapping[str, NDArray[np.float64]]) -> list[Row]:
    """Work and single frames of each way, from (turns, BURST) ms; and ours against the loop's, if it is there.

    A median of single frames would not see the one in BURST in which the tracking way detects: means of turns do.
    """
    turns = {name: of_way.mean(axis=1, keepdims=True) for name, of_way in times.items()}
    rows = [Row({"measure": "work", "way": name}, "ms", summarize(means)) for name, means in turns.items()]
    rows += [Row({"measure": "frame", "way": name}, "ms", summarize(of_way)) for name, of_way in times.items()]
    for name in (DETECTS, TRACKS) if LOOP in turns else ():
        labels: dict[str, Label] = {"measure": "work", "way": name, "against": LOOP}
        rows.append(Row(labels, "ratio", ratio(turns[name], turns[LOOP])))
    return rows


def _tracking(predictor: Predictor, fps: float) -> Callable[[Frame, int], NDArray[Any]]:
    """What a stream does with each frame, without its threads."""
    tracker = Tracker(Tracking(every=BURST), predictor.spec)

    def tracked(frame: Frame, number: int) -> NDArray[Any]:
        asked = tracker.next_boxes(number / fps)
        boxes, categories = asked or (None, ())
        result = predictor.predict(frame, boxes, categories=categories or None)
        return tracker.update(result, number / fps, detected=asked is None).keypoints

    return tracked


def _errors(points: NDArray[Any], clip: Clip, number: int) -> list[NDArray[np.floating]]:
    """Distances (V,) px of the shown landmarks, of the nearest object; nothing without a truth or an object."""
    if clip.truth is None or not len(points):
        return []
    true, shown = clip.truth[number % len(clip.truth)]
    distances = np.linalg.norm(np.asarray(points)[:, shown] - true[shown], axis=-1)
    return [distances[distances.mean(axis=1).argmin()]]


# Cameras ------------------------------------------------------------------------------------------------


def camera(
    predictor: Predictor, loop: DetectThenLoop | None, clip: Clip, plan: Plan, show: Callable[[int], Any]
) -> list[Row]:
    """Age of a frame of one camera when its landmarks are there, and how many frames a second got theirs."""

    def looped(source: Camera) -> Iterator[float]:
        assert loop is not None
        for frame, captured in source:
            loop(frame)
            yield captured

    def streamed(source: Camera, tracking: bool) -> Iterator[float]:
        with predictor.stream(iter(source), policy="newest", tracking=tracking) as stream:
            yield from (item.time for item in stream)

    ways: dict[str, Callable[[], Iterator[float]]] = {
        DETECTS: lambda: streamed(film(), False),
        TRACKS: lambda: streamed(film(), True),
    }
    if loop:
        ways |= {LOOP: lambda: looped(film()), THREADED: lambda: looped(film(newest=True))}

    def film(newest: bool = False) -> Camera:
        return Camera(clip.frames, plan.fps, plan.seconds, newest=newest)

    ages: dict[str, list[list[float]]] = {name: [] for name in ways}
    rng = np.random.default_rng(1)
    done = 0
    for _ in range(plan.repeats):
        for index in rng.permutation(len(ways)):
            name = list(ways)[index]
            ages[name].append([(monotonic() - captured) * 1e3 for captured in ways[name]()])
            done += 1
            show(done)
    return [row for name, of_way in ages.items() for row in _rows_of_ages({"way": name, "cameras": 1}, of_way, plan)]


def cameras(predictor: Predictor, clip: Clip, plan: Plan) -> list[Row]:
    """Several cameras on one predictor, tracked: age of a frame, rate, and the frames of the least and most served."""
    sources = [iter(Camera(clip.frames, plan.fps, plan.seconds)) for _ in range(plan.cameras)]
    ages: list[float] = []
    shares = [0] * plan.cameras
    with predictor.stream(sources, policy="newest", tracking=True) as stream:
        for item in stream:
            ages.append((monotonic() - item.time) * 1e3)
            shares[item.source] += 1
    labels: dict[str, Label] = {"way": TRACKS, "cameras": plan.cameras}
    fewest_and_most = {"least": min(shares) / plan.seconds, "most": max(shares) / plan.seconds}
    rows = _rows_of_ages(labels, [ages], plan)
    return [*rows, Row({"measure": "rate of one camera", **labels}, "frames/s", fewest_and_most)]


def _rows_of_ages(labels: Mapping[str, Label], runs: Sequence[Sequence[float]], plan: Plan) -> list[Row]:
    """Age and rate of a way, from the ages of the frames of each run."""
    counted = [age for run in runs for age in run[WARM_UP:]]
    if not counted:
        raise InputError(
            f"{labels['way']}: not more than {WARM_UP} frames were done in {plan.seconds:g} s: let the cameras film "
            "for longer"
        )
    block = min(BLOCK, len(counted))
    blocks = np.array(counted[: len(counted) // block * block]).reshape(-1, block)
    rates = [len(run) / plan.seconds for run in runs]
    return [
        Row({"measure": "age", **labels}, "ms", summarize(blocks)),
        Row({"measure": "rate", **labels}, "frames/s", {"value": float(np.median(rates)), "runs": len(rates)}),
    ]


def print_table(record: Record, console: Console) -> None:
    """Work, then age, a line a way."""
    console.print(_work_table(record))
    console.print(_age_table(record))
    for row in record.find(measure="landmark change"):
        console.print(f"Same boxes: landmarks {row.values['median']:.3f} px of the crop apart in the median, ", end="")
        console.print(f"{row.values['mean']:.3f} in the mean, where the peak is {MIN_SCORE:g} or more")


def _work_table(record: Record) -> Any:
    table = _table(
        f"Work on a frame, ms ({record.device})", "mean of a turn", "95 %", "p95, single frames", "faster", "error, px"
    )
    for row in record.find(measure="work"):
        if row.unit == "ms":
            way, values = row.labels["way"], row.values
            frames = record.find(measure="frame", way=way)
            leads = [one for one in record.find(measure="work", way=way) if one.unit == "ratio"]
            table.add_row(
                str(way),
                f"{values['p50']:.1f}",
                f"{values['low']:.1f}-{values['high']:.1f}" if "low" in values else "",
                "".join(f"{one.values['p95']:.1f}" for one in frames),
                "".join(f"{one.values['value']:.2f} x" for one in leads),
                "".join(f"{one.values['mean']:.2f}" for one in record.find(measure="error", way=way)),
            )
    return table


def _age_table(record: Record) -> Any:
    table = _table("Age of a frame when its landmarks are there, ms", "cameras", "p50", "p95", "frames/s")
    for row in record.find(measure="age"):
        way, count = row.labels["way"], row.labels["cameras"]
        rates = record.find(measure="rate", way=way, cameras=count)
        times = (f"{row.values[key]:.1f}" for key in ("p50", "p95"))
        table.add_row(str(way), str(count), *times, "".join(f"{one.values['value']:.1f}" for one in rates))
    return table


def _table(title: str, *columns: str) -> Any:
    """With a column for ways, whose names stay whole in a terminal of 80 columns, and these."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("way", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
