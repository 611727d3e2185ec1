"""What a call costs as boxes, frame and landmarks grow; what a predictor holds; what opening one takes.

Every axis is a set of calls timed in turn (:func:`edgepose.benchmarks.timing.interleaved`); the stages are those that
``result.timings`` of the same calls tell. SENTENCES says of each axis why its curve bends where it does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose import Predictor
from edgepose.benchmarks.bench_models import BenchModel, open_model
from edgepose.benchmarks.memory import CALLS, STATUS, memory_rows
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import FRAMES, Scene, scene
from edgepose.benchmarks.startup import OURS, Case, starts
from edgepose.benchmarks.timing import LEAST_ROUNDS, interleaved, summarize
from edgepose.errors import InputError, ModelError
from edgepose.result import PoseResult
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from rich.console import Console

    from edgepose.adapt import Spec

__all__ = ["AXES", "MODELS", "SENTENCES", "peaks", "print_table", "run", "widened"]

AXES = ("boxes", "frame", "keypoints", "memory", "load")
MODELS = ("garment-landmarks", "resnet50")
LOADED = ("garment-landmarks-fast", "garment-landmarks", "resnet50", "deepfashion2/trousers/hrnet_w48")
COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
KEYPOINTS = (8, 16, 25, 64, 133, 294)
BOXES = 8
ROUNDS = 9
FRAME = (1920, 1080)
STAGES = ("total", "crop", "network", "decode")
NO_MEMORY = f"Memory is read from {STATUS}, which this system lacks"
SLOW_MB = 50  # a model file from this size on gets fewer rounds: its calls take long and vary little

# Why each curve bends where it does. No figures: they are in the rows.
SENTENCES = {
    "boxes": (
        "The time is the network's, and the network's is nearly proportional to the boxes. A box alone costs more "
        "than one of many, because small layers leave the threads little to share and wait for each other after "
        "each of them. Above max_batch (16) boxes go through in several runs, so the line stays straight."
    ),
    "frame": (
        "Nearly flat: a crop reads the pixels around its box and writes as many as the network takes, whatever "
        "the frame has. With boxes that keep their share of the frame, opencv4 still reads four pixels for each "
        "of the crop's, only further apart; so does area, which halves the box's pixels only where a crop's pixel "
        "spans four of the frame's or more, as with none of these boxes."
    ),
    "keypoints": (
        "The network hardly notices: landmarks are channels of its last layer. The decoder reads each map once "
        "and refines each peak, so its time follows their number, and rises faster where the maps of all boxes "
        "(boxes x landmarks x heatmap x 4 bytes) no longer fit into the core's own cache. Peaks cost it less than "
        "the maps of random weights."
    ),
    "memory": (
        "Opening takes the weights and what ONNX Runtime packs of them for its kernels; the first calls take the "
        "activations, which its arena keeps. Then the line is flat: a call leaves nothing behind."
    ),
    "predictors": "Straight: predictors share code and nothing else; each has its own weights, arena and threads.",
    "memory of boxes": (
        "Activations grow with the boxes of one run of the network, and the arena keeps the most that was ever "
        "needed. Above max_batch (16) it is flat: more boxes are more runs, not larger ones."
    ),
    "load": (
        "Small files cost the building and optimising of the graph, which follows its number of nodes; large ones "
        "the reading and packing of the weights, which follows the bytes. Ours reads and writes a file with "
        "transposed convolutions once more, as resnet50's, since it rewrites them."
    ),
}

Show = Callable[[int, int, str], Any]


def run(
    *,
    axes: Sequence[str] = AXES,
    models: Sequence[str] = MODELS,
    rounds: int = ROUNDS,
    calls: int = CALLS,
    cache: Path | None = None,
    progress: Show | None = None,
) -> Record:
    """Measure along the axes.

    Args:
        axes: of AXES.
        models: for boxes and memory; frame and keypoints take the first. Names as of
            :func:`edgepose.benchmarks.bench_models.open_model`.
        rounds: of each axis; models from 50 MB on, and ``load``, get a third, but not below the 6 that an interval
            needs.
        calls: of the series that looks for memory that is never given back.
        cache: of models that are made here.
        progress: told (done, of how many, what).

    Returns:
        Rows with the labels axis, x, model, way, stage. Axis ``boxes``: x of them on a 1080p frame, and stage
        ``a box``: total / x. ``frame``: x megapixels, 8 boxes, with the labels frame, boxes_are (``share of the
        frame`` or ``constant px``) and sampling. ``keypoints``: x of them, with the label maps (what is decoded:
        ``network``, of random last weights, or ``peaks``). ``memory``, ``predictors``, ``memory of boxes``: see
        :func:`edgepose.benchmarks.memory.memory_rows`. ``load``: x MB, opening in a new process, by way. The notes are
        ``axis: sentence``, or why an axis was left out.

    Raises:
        InputError: no such axis, no model, rounds below 1, or only memory where it cannot be read.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not models:
        raise InputError(f"an axis is one of {', '.join(AXES)}, and at least one model is needed, got {list(axes)}")
    show = progress or (lambda done, total, what: None)
    opened = [open_model(name, cache) for name in models]
    rows: list[Row] = []
    left_out = {"memory": NO_MEMORY} if "memory" in axes and not STATUS.exists() else {}
    if left_out and set(axes) == set(left_out):
        raise InputError("; ".join(left_out.values()))
    for axis in (axis for axis in axes if axis not in left_out):
        if axis == "boxes":
            for model in opened:
                rows += _boxes(model, _rounds(model, rounds), show)
        elif axis == "frame":
            rows += _frames(opened[0], _rounds(opened[0], rounds), show)
        elif axis == "keypoints":
            rows += _keypoints(opened[0], _rounds(opened[0], rounds), show)
        elif axis == "memory":
            rows += _memory(opened, calls, show)
        else:
            rows += _load(LOADED if models is MODELS else models, _fewer(rounds), cache, show)
    found = {str(row.labels["axis"]) for row in rows}
    notes = [f"{axis}: {sentence}" for axis, sentence in SENTENCES.items() if axis in found]
    notes += [f"{axis}: not measured. {reason}" for axis, reason in left_out.items()]
    return make_record("scaling", rows, notes=notes)


def _rounds(model: BenchModel, rounds: int) -> int:
    return rounds if model.path.stat().st_size < SLOW_MB * 1e6 else _fewer(rounds)


def _fewer(rounds: int) -> int:
    """A third, but not below what an interval needs."""
    return max(min(rounds, LEAST_ROUNDS), rounds // 3)


# The axes ---------------------------------------------------------------------------------------


def _boxes(model: BenchModel, rounds: int, show: Show) -> list[Row]:
    picture = scene(*FRAME, max(COUNTS))
    with Predictor(model.path) as predictor:
        calls = {count: _Staged(predictor, Scene(picture.frame, picture.boxes[:count])) for count in COUNTS}
        times = _staged_times(calls, rounds, lambda done, total: show(done, total, f"boxes, {model.name}"))
    rows = []
    for count, stages in times.items():
        labels: dict[str, Label] = {"axis": "boxes", "x": count, "model": model.name, "way": OURS}
        rows += [Row({**labels, "stage": stage}, "ms", summarize(found)) for stage, found in stages.items()]
        rows.append(Row({**labels, "stage": "a box"}, "ms", summarize(stages["total"] / count)))
    return rows


def _frames(model: BenchModel, rounds: int, show: Show) -> list[Row]:
    """The crop depends on how the model samples, not on the model: so one network serves for both samplings."""
    small = scene(*FRAMES["720p"], BOXES)
    with ExitStack() as stack:
        calls: dict[tuple[str, str, str], _Staged] = {}
        for sampling in ("opencv4", "area"):
            spec = replace(model.spec, sampling=sampling)
            predictor = stack.enter_context(Predictor(model.path, spec=spec))
            for name, size in FRAMES.items():
                calls[sampling, name, "share of the frame"] = _Staged(predictor, scene(*size, BOXES))
                calls[sampling, name, "constant px"] = _Staged(predictor, _pasted(small, size))
        times = _staged_times(calls, rounds, lambda done, total: show(done, total, "frame"))
    rows = []
    for (sampling, name, boxes), stages in times.items():
        width, height = FRAMES[name]
        labels: dict[str, Label] = {"axis": "frame", "x": width * height / 1e6, "frame": f"{width}x{height}"}
        labels |= {"model": model.name, "way": OURS, "sampling": sampling, "boxes_are": boxes}
        rows += [Row({**labels, "stage": stage}, "ms", summarize(found)) for stage, found in stages.items()]
    return rows


def _pasted(picture: Scene, size: tuple[int, int]) -> Scene:
    """The picture in the middle of a larger frame: the same garments in as many pixels."""
    width, height = size
    frame = np.full((height, width, 3), 120, np.uint8)
    y, x = (height - picture.frame.shape[0]) // 2, (width - picture.frame.shape[1]) // 2
    frame[y : y + picture.frame.shape[0], x : x + picture.frame.shape[1]] = picture.frame
    return Scene(frame, picture.boxes + np.array([x, y, x, y], np.float32))


def _keypoints(model: BenchModel, rounds: int, show: Show) -> list[Row]:
    picture = scene(*FRAME, BOXES)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        calls: dict[tuple[str, int], _Staged] = {}
        for count in KEYPOINTS:
            path = widened(model, count, Path(folder, f"{count}.onnx"))
            wide = stack.enter_context(Predictor(path))
            replay = stack.enter_context(Predictor(_Replay(wide.spec, peaks(wide.spec, BOXES))))
            calls["network", count], calls["peaks", count] = _Staged(wide, picture), _Staged(replay, picture)
            path.unlink()
        times = _staged_times(calls, rounds, lambda done, total: show(done, total, "keypoints"))
    rows = []
    for (maps, count), stages in times.items():
        labels: dict[str, Label] = {"axis": "keypoints", "x": count, "model": model.name, "way": OURS, "maps": maps}
        wanted = STAGES if maps == "network" else ("decode",)  # the replayed maps come from no network
        rows += [Row({**labels, "stage": stage}, "ms", summarize(stages[stage])) for stage in wanted]
    return rows


def _memory(models: Sequence[BenchModel], calls: int, show: Show) -> list[Row]:
    rows = []
    for number, model in enumerate(models):
        show(number, len(models), f"memory, {model.name}")
        rows += memory_rows(model.name, model.path, calls=calls)
    return rows


def _load(names: Sequence[str], rounds: int, cache: Path | None, show: Show) -> list[Row]:
    """Opening in a new process, the file in the system's cache; the plain session beside it."""
    rows = []
    for number, name in enumerate(names):
        show(number, len(names), f"load, {name}")
        model = open_model(name, cache)
        found: dict[str, list[float]] = {OURS: [], "onnxruntime": []}
        for way, steps in starts(Case(model.name, model.path, model.spec, tuple(found)), rounds):
            found[way].append(steps["open the model"])
        x = model.path.stat().st_size / 1e6
        for way, times in found.items():
            labels: dict[str, Label] = {"axis": "load", "x": x, "model": model.name, "way": way, "stage": "open"}
            rows.append(Row(labels, "ms", summarize(times)))
    return rows


# What they need ---------------------------------------------------------------------------------


class _Staged:
    """A call of a predictor that keeps the stage times of each result."""

    def __init__(self, predictor: Predictor, picture: Scene) -> None:
        self._predictor, self._scene = predictor, picture
        self.results: list[PoseResult] = []

    def __call__(self) -> None:
        self.results.append(self._predictor.predict(*self._scene))

    def stages(self, runs: int) -> dict[str, NDArray[np.float64]]:
        """Each of STAGES: (rounds, runs) ms of the runs that count."""
        # interleaved() throws away two runs at the beginning, and the first of each turn
        kept = [result.timings for result in self.results[2:]]
        shape = (-1, runs + 1)
        return {s: np.array([getattr(timings, s) for timings in kept]).reshape(shape)[:, 1:] for s in STAGES}


def _staged_times(
    calls: Mapping[Any, _Staged], rounds: int, show: Callable[[int, int], Any], burst: int = 1
) -> dict[Any, dict[str, NDArray[np.float64]]]:
    named = {str(key): call for key, call in calls.items()}
    total = rounds * len(calls)
    interleaved(named, rounds=rounds, burst=burst, progress=lambda done: show(done, total))
    return {key: call.stages(burst) for key, call in calls.items()}


class _Replay:
    """An :class:`edgepose.engines.Engine` that returns stored heatmaps: what is timed around it is everything else."""

    name, device = "replay", "cpu"

    def __init__(self, spec: ModelSpec, heatmaps: NDArray[np.float32]) -> None:
        self.spec: Spec = spec
        self._heatmaps = heatmaps
        width, height = spec.input_size
        self.input_buffer = np.zeros((len(heatmaps), 3, height, width), np.float32)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(K, heatmap h, heatmap w)."""
        return self._heatmaps.shape[1:]

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As many heatmaps as images, new memory."""
        return self._heatmaps[: len(images)].copy()

    def close(self) -> None:
        """Nothing to free."""


def peaks(spec: ModelSpec, count: int, *, sigma: float = 2.0) -> NDArray[np.float32]:
    """(count, K, h, w) float32: in each map one Gaussian of height 1, as a trained network draws it; sigma in cells."""
    rng = np.random.default_rng(0)
    columns, lines = (
        np.exp(-((np.arange(side) - rng.uniform(2, side - 3, (count, spec.num_keypoints, 1))) ** 2) / (2 * sigma**2))
        for side in spec.heatmap_size
    )
    return (lines[..., None] * columns[..., None, :]).astype(np.float32)


def widened(model: BenchModel, keypoints: int, output: Path) -> Path:
    """Write the model with another number of landmarks: the last layer gets that many channels of seeded noise.

    Raises:
        ModelError: its heatmaps do not come from a 1x1 convolution.
    """
    import onnx

    from edgepose.modelfile import load_model

    proto, _ = load_model(model.path)
    graph = proto.graph
    last = next((node for node in graph.node if graph.output[0].name in node.output), None)
    widths = {tensor.name: tensor.dims for tensor in graph.initializer}
    widths |= {n.output[0]: widths[n.input[0]] for n in graph.node if n.op_type == "Cast" and n.input[0] in widths}
    dims = widths.get(last.input[1], []) if last is not None and last.op_type == "Conv" else []
    if last is None or len(dims) != 4 or tuple(dims[2:]) != (1, 1):
        raise ModelError(f"{model.path}: the heatmaps come from no 1x1 convolution, so it cannot get more landmarks")
    noise = np.random.default_rng(0).standard_normal((keypoints, dims[1], 1, 1), dtype=np.float32) / dims[1]
    graph.initializer.append(onnx.numpy_helper.from_array(noise, "widened.weight"))
    del last.input[1:]
    last.input.append("widened.weight")
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = keypoints
    names = tuple(f"landmark {number}" for number in range(keypoints))
    spec = replace(
        model.spec,
        name=f"{model.spec.name}-{keypoints}",
        keypoint_names=names,
        flip_indices=tuple(range(keypoints)),
        skeleton=(),
        colors=(),
        categories={},
        metrics={},
        training={"weights": "random in the last layer: for timing only"},
    )
    spec.write_metadata(proto)
    onnx.save(proto, str(output))
    return output


def print_table(record: Record, console: Console) -> None:
    """A table for each axis: medians, a column for each stage; labels that all rows share stand in its title."""
    from rich import box
    from rich.table import Table

    for axis in dict.fromkeys(row.labels["axis"] for row in record.rows):
        rows = record.find(axis=axis)
        stages = list(dict.fromkeys(str(row.labels["stage"]) for row in rows))
        names = [name for name in rows[0].labels if name not in ("axis", "stage")]
        same = [name for name in names if len({row.labels[name] for row in rows}) == 1]
        names = [name for name in names if name not in same]
        told = ", ".join(str(rows[0].labels[name]) for name in same)
        table = Table(
            title=f"{axis}, {rows[0].unit} ({told})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for name in names:
            table.add_column(name.replace("_", " "))
        for stage in stages:
            table.add_column(stage, justify="right")
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            labels = [row.labels[name] for name in names]
            key = tuple(f"{label:.4g}" if isinstance(label, float) else str(label) for label in labels)
            value = row.values.get("p50", row.values.get("value", 0.0))
            lines.setdefault(key, {})[str(row.labels["stage"])] = f"{value:.4g}"
        for key, cells in lines.items():
            table.add_row(*key, *(cells.get(stage, "") for stage in stages))
        console.print(table)
    for note in record.notes:
        if not record.find(axis=note.partition(":")[0]):
            console.print(note)
