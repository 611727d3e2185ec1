"""Frames per second on a GPU: `edgepose bench throughput --device cuda`.

One call after the other, for each way; and for edgepose as a stream does it: two calls under way, the next frame on its
way up while the GPU works on the one before. Of the ways those that have the best latency without minutes of
compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from edgepose.benchmarks import timing
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.gpu_latency import Progress, Save, open_ways
from edgepose.benchmarks.gpu_timing import gpu_facts, noted
from edgepose.benchmarks.gpu_ways import OURS, GpuOptions, GpuWay
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import frame_size, scene

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["one_after_another", "print_table", "run", "two_under_way"]

BOXES, FRAME, MAX_BATCH = (1, 8), "1080p", 16
ROUNDS, QUICK_ROUNDS, CALLS = 7, 3, 30
DEVICE_FRAME = f"{OURS}, device frame"
WAYS = (OURS, DEVICE_FRAME, "same engine, CPU around it", "pytorch, CUDA graph", "pytorch, all on the GPU")
SINGLE, DOUBLE = "one after the other", "two under way"


def run(
    models: Sequence[BenchModel],
    *,
    boxes: Sequence[int] = BOXES,
    options: GpuOptions | None = None,
    rounds: int = ROUNDS,
    quick: bool = False,
    progress: Progress | None = None,
    save: Save | None = None,
) -> Record:
    """Measure; arguments as :func:`edgepose.benchmarks.gpu_latency.run`.

    Returns:
        Rows with labels way, arrangement, model, precision, boxes, frame: frames/s, as p50 with its interval.
    """
    options = options or GpuOptions(max_batch=MAX_BATCH)
    rounds = min(rounds, QUICK_ROUNDS) if quick else rounds
    rows: list[Row] = []
    notes: list[str] = []
    for number, model in enumerate(models):
        with ExitStack() as opened:
            ways = open_ways(model, options, notes, opened, WAYS)
            for part, count in enumerate(boxes):
                rows += _rates(model, ways, options, count, rounds, notes)
                if progress is not None:
                    progress(number * len(boxes) + part + 1, len(models) * len(boxes), f"{model.name}: {count} boxes")
                if save is not None:
                    save(make_record("throughput", rows, notes=notes, gpu=gpu_facts()))
    return make_record("throughput", rows, notes=notes, gpu=gpu_facts())


def _rates(
    model: BenchModel, ways: dict[str, GpuWay], options: GpuOptions, count: int, rounds: int, notes: list[str]
) -> list[Row]:
    """Rows of each way; one that fails leaves ``ways``, with a note."""
    frame, boxes = scene(*frame_size(FRAME), count)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, way in list(ways.items()):
        with noted(notes, f"{model.name}, {count} boxes: {name}") as attempt:
            way(frame, boxes)
        if attempt.failed:
            del ways[name]
            continue
        calls[name, SINGLE] = one_after_another(way, frame, boxes)
        if name in (OURS, DEVICE_FRAME):
            calls[name, DOUBLE] = two_under_way(way, frame, boxes)
    times = timing.interleaved({" / ".join(key): call for key, call in calls.items()}, rounds=rounds, burst=1)
    size = "{}x{}".format(*frame_size(FRAME))
    labels: dict[str, Label] = {"model": model.name, "precision": options.precision, "boxes": count, "frame": size}
    rows = []
    for way_name, arrangement in calls:
        rates = CALLS * 1e3 / times[f"{way_name} / {arrangement}"]
        rows.append(Row({"way": way_name, "arrangement": arrangement, **labels}, "frames/s", timing.summarize(rates)))
    return rows


def one_after_another(way: GpuWay, frame: Any, boxes: Any) -> Callable[[], Any]:
    """CALLS calls, each with its results in hand before the next."""

    def work() -> None:
        for _ in range(CALLS):
            way(frame, boxes)

    return work


def two_under_way(way: Any, frame: Any, boxes: Any) -> Callable[[], Any]:
    """CALLS calls of an :class:`edgepose.benchmarks.peers.gpu_engines.OnGpu`, as a stream makes them."""
    predictor, place = way.predictor, way.place

    def work() -> None:
        pending: list[Any] = []
        for _ in range(CALLS):
            pending.append(predictor.submit([predictor.stage(place(frame))], [boxes]))
            if len(pending) == 2:
                pending.pop(0).results()
        pending.pop().results()

    return work


def print_table(record: Record, console: Console) -> None:
    """Fastest first, for each model and number of boxes."""
    from rich.table import Table

    title = f"Throughput on {record.device}, frames/s"
    table = Table("model", "boxes", "way", "arrangement", "p50", "95 % interval", title=title)
    order = sorted(record.rows, key=lambda row: (row.labels["model"], row.labels["boxes"], -row.values["p50"]))
    for row in order:
        cells = (str(row.labels[key]) for key in ("model", "boxes", "way", "arrangement"))
        table.add_row(*cells, f"{row.values['p50']:.0f}", f"{row.values['low']:.0f} to {row.values['high']:.0f}")
    console.print(table)
