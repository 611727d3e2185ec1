"""Latency of ours and of other ways, end to end; of ours by stage: `edgepose bench latency`.

For each model the ways are opened, their landmarks are compared (equality.py), and then all of them are timed in turns
on the same frame and boxes: 1 to 16 boxes on 1080p, and 8 boxes on frames from 720p to 4K. The time begins with a
frame and boxes in memory and ends with landmarks in px of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks import equality, timing
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import Scene, frame_size, scene
from edgepose.benchmarks.ways import OURS, Selection, Staged, Way, key_of, open_ways
from edgepose.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["MODELS", "Plan", "print_table", "run"]

MODELS = ("resnet50", "garment-landmarks")
MAIN_FRAME, MAIN_BOXES = "1080p", 8
ROUNDS, QUICK_ROUNDS, BURST = 12, 2, 2
SCENES, QUICK_SCENES = 12, 2  # whose landmarks are compared: about 600, of which a jump in INT8 is one
WARM_UPS = 2  # calls of each way that timing.interleaved makes before its first round
Ways = Mapping[tuple[str, str], Way]
Progress = Callable[[int, int, str], Any]


@dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        boxes: how many, on a frame of 1080p.
        frames: further frames, with 8 boxes; names of :data:`edgepose.benchmarks.scenes.FRAMES`, or WIDTHxHEIGHT.
        rounds: of 8 boxes on 1080p, from which the ratios are quoted; half as many elsewhere.
        scenes: of 8 boxes on 1080p, on which landmarks are compared.
        unequal: time ways whose landmarks are others too; their rows say so.
    """

    boxes: Sequence[int] = (1, 4, 8, 16)
    frames: Sequence[str] = ("720p", "1440p", "4K")
    rounds: int = ROUNDS
    scenes: int = SCENES
    unequal: bool = False

    @classmethod
    def quick(cls) -> Plan:
        """Does it run? Not for figures to quote."""
        return cls(boxes=(1, 8), frames=(), rounds=QUICK_ROUNDS, scenes=QUICK_SCENES)

    def cases(self) -> list[tuple[str, int, int]]:
        """(frame, boxes, rounds), each once. Raises InputError for a frame or a number of boxes that cannot be."""
        for name in self.frames:
            frame_size(name)
        if min(self.boxes, default=0) < 1:
            raise InputError(f"boxes must be at least 1, got {list(self.boxes)}")
        places = [(MAIN_FRAME, count) for count in self.boxes] + [(name, MAIN_BOXES) for name in self.frames]
        fewer = max(min(self.rounds, timing.LEAST_ROUNDS), self.rounds // 2)
        return [(*case, self.rounds if case == (MAIN_FRAME, MAIN_BOXES) else fewer) for case in dict.fromkeys(places)]

    def compared(self) -> list[Scene]:
        """The scenes on which landmarks are held against each other before anything is timed: as many boxes as will be
        timed, and most of them at the main frame."""
        most = max((MAIN_BOXES, *self.boxes))
        main = [scene(*frame_size(MAIN_FRAME), MAIN_BOXES, seed=seed) for seed in range(self.scenes)]
        more = [scene(*frame_size(MAIN_FRAME), most, seed=self.scenes)] if most > MAIN_BOXES else []
        elsewhere = [scene(*frame_size(name), MAIN_BOXES, seed=seed) for name in self.frames for seed in (0, 1)]
        return main + more + elsewhere


def run(
    models: Sequence[BenchModel],
    *,
    selection: Selection | None = None,
    plan: Plan | None = None,
    progress: Progress | None = None,
) -> Record:
    """Measure on the CPU.

    Args:
        models: each with all ways.
        selection: which ways; None: all.
        plan: which frames and boxes; None: all.
        progress: told (turns taken, of how many, what).

    Returns:
        Rows with labels way, model, precision, boxes, frame (``1920x1080``) and

        * stage: ms. ``total`` is end to end; of ours also ``crop``, ``network``, ``decode``, ``rest``.
        * stage ``total`` and against: how many times as fast as another way (``rtmlib``, ``rtmlib int8``) ours is.
        * stage ``all but the network``: its share of our time, %.
        * statistic: distances of landmarks, px of the crop; see :func:`edgepose.benchmarks.equality.check`.

        A row of a way with other landmarks has the label unequal.

    Raises:
        InputError: an unknown way, precision or frame.
    """
    selection, plan = selection or Selection(), plan or Plan()
    cases = plan.cases()
    rows: list[Row] = []
    notes: list[str] = []
    meter = _Meter(progress, len(models) * sum(rounds for *_, rounds in cases) * len(selection.factories()))
    for model in models:
        with ExitStack() as opened:
            most = max(count for _, count, _ in cases)
            ways, told = open_ways(model, selection, opened, max_batch=most, progress=meter.say)
            notes += told
            meter.say(f"{model.name}: comparing landmarks")
            verdict = equality.check(model, ways, plan.compared())
            rows += verdict.rows
            fate = "timed all the same" if plan.unequal else "not timed"
            notes += [f"{text}: not timed" for text in verdict.failed.values()]
            notes += [f"{text}: {fate}" for text in verdict.unequal.values()]
            left_out = {*verdict.failed, *(() if plan.unequal else verdict.unequal)}
            timed = {key: way for key, way in ways.items() if key not in left_out}
            for frame, count, rounds in cases:
                labels: dict[str, Label] = {"model": model.name, "boxes": count, "frame": size_label(frame)}
                shown = meter.turns(f"{model.name}, {frame}, {count} boxes", rounds, len(ways))
                rows += _timed(timed, labels, rounds, shown, set(verdict.unequal))
        if not model.trained:
            notes.append(f"{model.name}: the weights are random, so the landmarks are told, and not judged")
    return make_record("latency", rows, notes=notes)


def size_label(frame: str) -> str:
    """``1080p`` -> ``1920x1080``, as rows name a frame."""
    return "{}x{}".format(*frame_size(frame))


class _Meter:
    """Adds up the turns of all cases for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._next = progress, total, 0, 0

    def say(self, what: str, turns: int = 0) -> None:
        if self._progress is not None:
            self._progress(min(self._done + turns, self._total), self._total, what)

    def turns(self, what: str, rounds: int, ways: int) -> Callable[[int], Any]:
        """For timing.interleaved, of one case after the other."""
        self._done, self._next = self._next, self._next + rounds * ways
        return lambda turns: self.say(what, turns)


def _timed(
    ways: Ways, labels: Mapping[str, Label], rounds: int, progress: Callable[[int], Any], unequal: set[tuple[str, str]]
) -> Iterator[Row]:
    """Rows of one frame and number of boxes."""
    width, height = (int(side) for side in str(labels["frame"]).split("x"))
    frame, boxes = scene(width, height, int(labels["boxes"]))
    calls = {key: _Recorded(way, frame, boxes) for key, way in ways.items()}
    times = timing.interleaved(
        {key_of(*key): call for key, call in calls.items()}, rounds=rounds, burst=BURST, progress=progress
    )
    baselines = {key: times[key_of(*key)] for key in ways if key[0] == OURS}
    for key, call in calls.items():
        name, precision = key
        own: dict[str, Label] = {"way": name, **labels, "precision": precision}
        if key in unequal:
            own["unequal"] = "yes"
        total = times[key_of(*key)]
        yield Row({**own, "stage": "total"}, "ms", timing.summarize(total))
        yield from _stage_rows(own, call.stages(rounds), total)
        for (_, our_precision), ours in baselines.items():
            if (name, precision) != (OURS, our_precision):
                against = {**own, "way": OURS, "precision": our_precision, "stage": "total", "against": key_of(*key)}
                yield Row(against, "ratio", timing.ratio(ours, total))


class _Recorded:
    """A way on one frame, and the stages of each of its calls, so that they and the total are of the same runs."""

    def __init__(self, way: Way, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> None:
        self._way, self._frame, self._boxes = way, frame, boxes
        self._told: list[Mapping[str, float]] = []

    def __call__(self) -> None:
        self._way(self._frame, self._boxes)
        if isinstance(self._way, Staged):
            self._told.append(self._way.stages)

    def stages(self, rounds: int) -> dict[str, NDArray[np.float64]]:
        """(rounds, BURST) ms of each; without the warm-ups and the first call of each turn. Empty: it tells none."""
        if not self._told:
            return {}
        names = self._told[0]
        kept = {name: np.array([told[name] for told in self._told[WARM_UPS:]]) for name in names}
        return {name: values.reshape(rounds, 1 + BURST)[:, 1:] for name, values in kept.items()}


def _stage_rows(
    labels: Mapping[str, Label], stages: Mapping[str, NDArray[np.float64]], total: NDArray[np.float64]
) -> Iterator[Row]:
    if not stages:
        return
    rest = total - np.sum(list(stages.values()), axis=0)
    for stage, times in {**stages, "rest": rest}.items():
        yield Row({**labels, "stage": stage}, "ms", timing.summarize(times))
    share = timing.summarize(100 * (total - stages["network"]) / total)
    values: dict[str, float] = {"value": share["p50"], **{key: share[key] for key in ("low", "high") if key in share}}
    yield Row({**labels, "stage": "all but the network"}, "%", values)


def print_table(record: Record, console: Console) -> None:
    """For each model, frame and number of boxes the ways, fastest first; then our stages."""
    from rich.table import Table

    timed = [row for row in record.rows if row.labels.get("stage") == "total" and row.unit == "ms"]
    for model in dict.fromkeys(str(row.labels["model"]) for row in timed):
        caption = (
            "lead: how many times as fast edgepose is at fp32, and its 95 % interval; apart: landmarks, px of the crop"
        )
        table = Table("frame", "boxes", title=f"{model} on {record.device}", caption=caption)
        table.add_column("way", no_wrap=True)
        for column in ("p50 ms", "p95", "lead", "apart"):
            table.add_column(column, justify="right", no_wrap=True)
        of_model = [row for row in timed if row.labels["model"] == model]
        place: tuple[Label, Label] | None = None
        for row in sorted(of_model, key=_order):
            here = (row.labels["frame"], row.labels["boxes"])
            if place not in (None, here):
                table.add_section()
            table.add_row(*(("", "") if here == place else map(str, here)), *_cells(record, row))
            place = here
        console.print(table)
        console.print(_stage_table(record, model))


def _order(row: Row) -> tuple[int, int, float]:
    width, height = (int(side) for side in str(row.labels["frame"]).split("x"))
    return width * height, int(row.labels["boxes"]), row.values["p50"]


def _cells(record: Record, row: Row) -> tuple[str, ...]:
    """Of a way: its name, times, our lead and the distance of its landmarks."""
    at = {key: row.labels[key] for key in ("model", "frame", "boxes")}
    name, precision = str(row.labels["way"]), str(row.labels["precision"])
    key, values = key_of(name, precision), row.values
    lead = record.find(**at, way=OURS, precision="fp32", against=key)
    apart = record.find(
        model=at["model"], frame=at["frame"], way=name, precision=precision, statistic="landmark change"
    )
    against = "".join(f"{x.values['value']:.2f}{_interval(x.values)}" for x in lead)
    return (
        key + (" (other landmarks)" if "unequal" in row.labels else ""),
        f"{values['p50']:.1f}",
        f"{values['p95']:.1f}",
        against,
        "".join(f"{x.values['mean']:.3f}" for x in apart) or "reference",
    )


def _interval(values: Mapping[str, float]) -> str:
    return f" ({values['low']:.2f}-{values['high']:.2f})" if "low" in values else ""


def _stage_table(record: Record, model: str) -> Any:
    from rich.table import Table

    stages = ("crop", "network", "decode", "rest")
    table = Table("frame", "boxes", "way", *stages, "all but the network", title=f"{model}: our stages, ms")
    rows = [row for row in record.rows if row.labels.get("stage") == "all but the network"]
    for row in rows:
        at = {key: value for key, value in row.labels.items() if key != "stage"}
        if row.labels["model"] == model:
            times = [f"{record.value('p50', **at, stage=stage):.2f}" for stage in stages]
            way = key_of(str(row.labels["way"]), str(row.labels["precision"]))
            share = f"{row.values['value']:.2f} %"
            table.add_row(str(row.labels["frame"]), str(row.labels["boxes"]), way, *times, share)
    return table
