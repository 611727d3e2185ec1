"""Latency on a GPU, ours beside others', and ours by stage: `edgepose bench latency --device cuda`.

End to end is the host's clock, from the frame in hand to the landmarks in hand, all ways interleaved. Stages are the
device's clock, each as a CUDA graph of its own with the L2 cache flushed before it. Landmarks are compared before
anything is timed. A way that fails is left out with a note, and what has been measured stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose import Predictor, geometry
from edgepose.benchmarks import timing
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.equality import SURE, crop_distances
from edgepose.benchmarks.gpu_timing import captured, device_times, gpu_facts, noted
from edgepose.benchmarks.gpu_ways import GPU_WAYS, OURS, GpuOptions, GpuWay
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import frame_size, scene
from edgepose.benchmarks.ways import Explained

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["open_ways", "print_table", "run", "stage_times"]

BOXES, FRAME, FRAMES = (1, 4, 8, 16), "1080p", ("720p", "1440p", "4K")
BOXES_ON_FRAMES = 8
ROUNDS, QUICK_ROUNDS, BURST = 15, 3, 5
LIMITS = {"fp32": 0.1, "fp16": 0.5}  # crop px, mean: the network's rounding, and each way's own of the crop
STAGES = ("upload", "crop", "network", "decode", "download")
Progress = Callable[[int, int, str], Any]
Save = Callable[[Record], Any]


def run(
    models: Sequence[BenchModel],
    *,
    boxes: Sequence[int] = BOXES,
    frames: Sequence[str] = FRAMES,
    options: GpuOptions | None = None,
    rounds: int = ROUNDS,
    quick: bool = False,
    progress: Progress | None = None,
    save: Save | None = None,
) -> Record:
    """Measure.

    Args:
        models: each with all ways.
        boxes: on a 1080p frame.
        frames: further frame sizes, with 8 boxes.
        options: precision of the networks; ``max_batch`` is raised to the most boxes.
        rounds: of :func:`edgepose.benchmarks.timing.interleaved`.
        quick: few rounds, 1 and 8 boxes, no further frames.
        progress: told (parts done, of how many, what).
        save: gets the record as it is after each part, because what comes later may fail.

    Returns:
        Rows with labels way, model, precision, boxes, frame, stage: ms; stage ``total`` is end to end. Stage ``ratio``:
        how many times as long as edgepose a way takes, end to end. Stage ``landmark change``: how far its landmarks are
        from those of float32 on the CPU, px of the crop.
    """
    options = options or GpuOptions()
    if quick:
        boxes, frames, rounds = (1, 8), (), min(rounds, QUICK_ROUNDS)
    places = [(FRAME, count) for count in boxes] + [(name, BOXES_ON_FRAMES) for name in frames]
    options = GpuOptions(options.precision, max(options.max_batch, *(count for _, count in places)))
    rows: list[Row] = []
    notes: list[str] = []
    done = 0

    def finish(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, 2 * len(models) * len(places), what)
        if save is not None:
            save(make_record("latency", rows, notes=notes, gpu=gpu_facts()))

    for model in models:
        for place in places:  # first, since nothing that others do can break it
            what = f"{model.name}, {place[0]}, {place[1]} boxes: stages"
            with noted(notes, what):
                rows += _stage_rows(model, options, place, rounds)
            finish(what)
        with ExitStack() as opened:
            ways = open_ways(model, options, notes, opened)
            for place in places:
                what = f"{model.name}, {place[0]}, {place[1]} boxes"
                with noted(notes, what):
                    agreement, equal = _agreement(model, ways, options, place, notes)
                    rows += agreement
                    rows += _times(model, equal, options, place, rounds)
                finish(what)
    return make_record("latency", rows, notes=notes, gpu=gpu_facts())


def open_ways(
    model: BenchModel,
    options: GpuOptions,
    notes: list[str],
    opened: ExitStack,
    names: Sequence[str] | None = None,
) -> dict[str, GpuWay]:
    """The ways of these names (None: all) that open here, closed with ``opened``; the others are noted, and why."""
    ways: dict[str, GpuWay] = {}
    for name in GPU_WAYS if names is None else names:
        with noted(notes, f"{model.name}: {name}"):
            ways[name] = GPU_WAYS[name](model, options)
            opened.callback(ways[name].close)
    notes += [f"{model.name}: {name} runs its network with {way.version}" for name, way in ways.items()]
    return ways


def _agreement(
    model: BenchModel, ways: dict[str, GpuWay], options: GpuOptions, place: tuple[str, int], notes: list[str]
) -> tuple[list[Row], dict[str, GpuWay]]:
    """How far each way's landmarks are from float32's on the CPU, and the ways that are near enough to be timed.

    Of a way whose geometry is known to be another, what it meant is compared. A way that fails leaves ``ways``: a
    broken one is not tried again elsewhere.
    """
    frame, boxes = scene(*frame_size(place[0]), place[1])
    with Predictor(model.path) as predictor:
        expected = predictor.predict(frame, boxes)
    sure = expected.scores >= SURE
    judged = model.trained and bool(sure.any())
    rows, equal, limit = [], {}, LIMITS[options.precision]
    for name in list(ways):
        with noted(notes, f"{model.name}, {place[0]}, {place[1]} boxes: {name}") as attempt:
            way = ways[name]
            keypoints, _ = way(frame, boxes)
            if isinstance(way, Explained):
                keypoints = way.explained(keypoints, boxes)
        if attempt.failed:
            del ways[name]
            continue
        apart = crop_distances(keypoints, expected.keypoints, boxes, model)[sure]
        mean = float(apart.mean()) if judged else 0.0
        if judged:
            values = {"mean": mean, "p99": float(np.percentile(apart, 99)), "worst": float(apart.max())}
            labels = _labels(model, name, options, place)
            rows.append(Row({**labels, "stage": "landmark change"}, "px", {**values, "runs": len(apart)}))
        if mean <= limit:
            equal[name] = ways[name]
        else:
            notes.append(
                f"{model.name}, {place[0]}, {place[1]} boxes: {name} is not timed, its landmarks are {mean:.3g} px of "
                f"the crop away in the mean (limit {limit:g})"
            )
    if not judged:
        notes.append(f"{model.name}, {place[0]}, {place[1]} boxes: landmarks are not judged, its weights are random")
    return rows, equal


def _labels(model: BenchModel, way: str, options: GpuOptions, place: tuple[str, int]) -> dict[str, Label]:
    precision = "fp32" if way.startswith(("onnxruntime", "rtmlib")) else options.precision
    frame = "{}x{}".format(*frame_size(place[0]))
    return {"way": way, "model": model.name, "precision": precision, "boxes": place[1], "frame": frame}


def _times(
    model: BenchModel, ways: dict[str, GpuWay], options: GpuOptions, place: tuple[str, int], rounds: int
) -> Iterator[Row]:
    """End to end, interleaved."""
    frame, boxes = scene(*frame_size(place[0]), place[1])
    calls = {name: partial(way, frame, boxes) for name, way in ways.items()}
    times = timing.interleaved(calls, rounds=rounds, burst=BURST)
    for name, of_way in times.items():
        labels = _labels(model, name, options, place)
        yield Row({**labels, "stage": "total"}, "ms", timing.summarize(of_way))
        if name != OURS and OURS in times:
            yield Row({**labels, "stage": "ratio"}, "ratio", timing.ratio(times[OURS], of_way))


def _stage_rows(model: BenchModel, options: GpuOptions, place: tuple[str, int], rounds: int) -> Iterator[Row]:
    from edgepose.benchmarks.peers.gpu_engines import open_device_engine

    frame, boxes = scene(*frame_size(place[0]), place[1])
    engine = open_device_engine(model, options)
    times = stage_times(engine, frame, boxes, rounds=rounds)
    labels = _labels(model, OURS, options, place)
    for stage, of_stage in times.items():
        yield Row({**labels, "stage": stage}, "ms", timing.summarize(of_stage))
    middle = {stage: float(np.median(times[stage])) for stage in STAGES}
    share = 100 * (1 - middle["network"] / sum(middle.values()))
    yield Row({**labels, "stage": "all but the network"}, "%", {"value": share})


def stage_times(
    engine: Any, frame: NDArray[np.uint8], boxes: NDArray[np.float32], *, rounds: int
) -> dict[str, NDArray[np.float64]]:
    """(rounds, burst) ms of the device for each of STAGES; the engine is closed.

    ``Timings`` cannot tell them: without graphs the GPU waits for the host between the stages. The upload is that of
    what the crops see of the frame, in one piece; the product copies it to pinned memory piece by piece, and uploads
    beside that.
    """
    with Predictor(engine, cuda_graph=False, max_batch=len(boxes)) as predictor:
        import cupy

        predictor.predict(frame, boxes)  # leaves frame and record of the call on the device
        pipeline: Any = predictor._pipeline
        session, pose = pipeline._session, pipeline._stages[0]
        bucket = pose._buckets[pose.size_for(len(boxes))]
        _, inverses = geometry.crop_transforms(boxes, predictor.spec)
        window = _window(inverses, predictor, frame)
        results = len(boxes) * predictor.spec.num_keypoints * 12
        up, down = session.pinned(max(window, 1)), session.pinned(results)
        there = session.zeros(max(window, 1), np.uint8)
        with session, session.stream:
            stream = cupy.cuda.get_current_stream()
            launches = {
                "upload": lambda: session.copy_up(there.data.ptr, up.ctypes.data, window),
                "crop": captured(bucket.crop),
                "network": captured(lambda: [one(stream.ptr) for one in bucket.network]),
                "decode": captured(bucket.decode),
                "download": lambda: session.copy_down(down.ctypes.data, pose._results.data.ptr, results),
            }
            return device_times(launches, rounds=rounds, burst=BURST)


def _window(inverses: NDArray[np.float64], predictor: Predictor, frame: NDArray[np.uint8]) -> int:
    """Bytes of the frame that the crops see."""
    from edgepose.kernels._crop import plan_crops

    spec, size = predictor.spec, (frame.shape[1], frame.shape[0])
    left, top, right, bottom = plan_crops(inverses, spec.input_size, size, spec.sampling).window
    return 3 * (right - left) * (bottom - top)


def print_table(record: Record, console: Console) -> None:
    """Fastest way first, for each model, number of boxes and frame; then the stages."""
    from rich.table import Table

    table = Table(
        "model", "frame", "boxes", "way", "p50", "p95", "p99", "edgepose faster", "landmarks apart",
        title=f"Latency on {record.device}, ms",
    )  # fmt: skip
    stages = Table("model", "frame", "boxes", *STAGES, "all but the network", title="Stages, ms of the device")
    timed = [row for row in record.rows if row.unit == "ms" and row.labels["stage"] == "total"]
    for row in sorted(timed, key=lambda r: (r.labels["model"], r.labels["frame"], r.labels["boxes"], r.values["p50"])):
        at: dict[str, Any] = {key: row.labels[key] for key in ("model", "frame", "boxes")}
        way = row.labels["way"]
        faster = record.find(**at, way=way, stage="ratio")
        apart = record.find(**at, way=way, stage="landmark change")
        table.add_row(
            *(str(value) for value in at.values()),
            str(way),
            *(f"{row.values[key]:.3f}" for key in ("p50", "p95", "p99")),
            "".join(f"{one.values['value']:.2f} x" for one in faster),
            "".join(f"{one.values['mean']:.3f} px" for one in apart),
        )
        if way == OURS and record.find(**at, stage="network"):
            middle = [f"{record.value(**at, way=OURS, stage=stage):.4f}" for stage in STAGES]
            share = record.value("value", **at, way=OURS, stage="all but the network")
            stages.add_row(*(str(value) for value in at.values()), *middle, f"{share:.1f} %")
    console.print(table)
    console.print(stages)
