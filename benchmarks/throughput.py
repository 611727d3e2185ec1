"""How many frames a second, and in which arrangement: `edgepose bench throughput`.

One network on all cores, or several networks with a share of the cores each, as threads of one process or as processes
of their own: every way in every arrangement, each in fresh processes (throughput_worker.py), in turns. Ours also with
several frames in each call (``Predictor.predict_batch``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Timer
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks import equality, timing
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.latency import size_label
from edgepose.benchmarks.plots_style import number
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import frame_size, scene
from edgepose.benchmarks.throughput_worker import Task
from edgepose.benchmarks.ways import OURS, WAYS, Selection, key_of, open_ways, usable_cpus
from edgepose.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DEFAULT_WAYS", "MODELS", "Arrangement", "arrangements", "print_table", "run"]

MODELS = ("resnet50",)
DEFAULT_WAYS = (OURS, "pytorch, frozen", "rtmlib", "onnxruntime batched")
QUICK_WAYS = (OURS, "onnxruntime batched")
FRAME, BOXES, FRAMES_IN_A_CALL = "1080p", (8,), 4
COMPARED, SEEDS = 16, range(6)  # boxes and scenes whose landmarks are compared
ROUNDS, QUICK_ROUNDS = timing.LEAST_ROUNDS, 2
SECONDS, QUICK_SECONDS = 1.5, 0.5
PATIENCE = 300.0  # s, for a process to open its way, and beyond the time that it is told to work for
MOST_NETWORKS = 16  # each holds weights of its own: one for each of 64 cores would fill the memory
Progress = Callable[[int, int, str], Any]


@dataclass(frozen=True)
class Arrangement:
    """How the cores are shared: ``processes`` with ``lanes`` threads each, whose networks have ``threads`` threads."""

    name: str
    processes: int = 1
    lanes: int = 1
    threads: int | None = None


def arrangements(cpus: int) -> list[Arrangement]:
    """One network on all cores; 2, 4, 8, 16 and, up to 16, one a core, as threads and as processes."""
    made = [Arrangement("1 network, all cores")]
    for count in sorted({2, 4, 8, MOST_NETWORKS, cpus}):
        if 1 < count <= min(cpus, MOST_NETWORKS):
            made.append(Arrangement(f"{count} threads", lanes=count, threads=cpus // count))
            made.append(Arrangement(f"{count} processes", processes=count, threads=cpus // count))
    return made


@dataclass(frozen=True)
class _Config:
    """One line of the table. Nothing but ours takes several frames in a call."""

    way: str
    precision: str
    arrangement: Arrangement
    frames: int = 1


def run(
    models: Sequence[tuple[str, BenchModel]],
    *,
    selection: Selection | None = None,
    boxes: Sequence[int] = BOXES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Record:
    """Measure on the CPU.

    Args:
        models: each with the name by which ``open_model`` finds it again in another process.
        selection: which ways; None, or one that names none: DEFAULT_WAYS.
        boxes: how many on each frame of 1080p.
        rounds: turns of each way in each arrangement.
        seconds: how long each works in a turn, after it has been opened and warmed up.
        progress: told (turns taken, of how many, what).

    Returns:
        Rows with labels way, model, precision, arrangement, boxes, frame, frames (in a call): frames/s, and
        boxes/s. With ``against``: how many times as many frames ours does as another way, each in its own best
        arrangement with one frame in a call, since the others cannot take more.

    Raises:
        InputError: an unknown way or precision.
    """
    selection = selection or Selection()
    selection = replace(selection, ways=selection.ways or DEFAULT_WAYS)
    rows: list[Row] = []
    notes: list[str] = []
    for index, (source, model) in enumerate(models):
        equal, told = _equal_ways(model, selection, partial(progress or _silent, index, len(models)))
        notes += told
        for part, count in enumerate(boxes):

            def shown(done: float, what: str, before: int = index * len(boxes) + part) -> None:
                if progress is not None:
                    progress(round(100 * (before + done)), 100 * len(models) * len(boxes), what)

            with tempfile.TemporaryDirectory() as folder:
                path = saved_scene(Path(folder), count)
                task_of = partial(_task, source=source, model=model, scene=path, peers=selection.peers)
                rates, failed = _measure(_configs(equal), task_of, rounds, seconds, shown)
            labels: dict[str, Label] = {"model": model.name, "boxes": count, "frame": size_label(FRAME)}
            rows += _rows(rates, labels, count)
            compared, said = _best(rates, labels)
            rows += compared
            notes += [f"{model.name}, {count} boxes: {text}" for text in (*failed, *said)]
    return make_record("throughput", rows, notes=notes)


def _silent(done: int, total: int, what: str) -> None:
    """Nobody wants to know."""


def _equal_ways(
    model: BenchModel, selection: Selection, progress: Callable[[str], Any]
) -> tuple[list[tuple[str, str]], list[str]]:
    """The ways that run here and whose landmarks are those of the others, and what to tell of the rest."""
    with ExitStack() as opened:
        ways, notes = open_ways(model, selection, opened, progress=progress)
        progress(f"{model.name}: comparing landmarks")
        _, *faults = equality.check(model, ways, [scene(*frame_size(FRAME), COMPARED, seed=seed) for seed in SEEDS])
    left_out = {key: text for found in faults for key, text in found.items()}
    notes += [f"{text}: not timed" for text in left_out.values()]
    return [key for key in ways if key not in left_out], notes


def _configs(ways: Sequence[tuple[str, str]]) -> list[_Config]:
    made = [_Config(*key, arrangement) for key in ways for arrangement in arrangements(usable_cpus())]
    whole = arrangements(1)[0]
    return made + [_Config(*key, whole, FRAMES_IN_A_CALL) for key in ways if key[0] == OURS]


def _measure(
    configs: Sequence[_Config],
    task_of: Callable[[_Config], Task],
    rounds: int,
    seconds: float,
    progress: Callable[[float, str], Any],
) -> tuple[dict[_Config, NDArray[np.float64]], list[str]]:
    """(rounds,) frames/s of each, in an order drawn anew each round; and what to tell of those that failed."""
    rng = np.random.default_rng(0)
    rates: dict[_Config, list[float]] = {config: [] for config in configs}
    notes = []
    for done in range(rounds):
        for turn, index in enumerate(rng.permutation(len(configs))):
            config = configs[index]
            if config not in rates:
                continue
            what = f"{key_of(config.way, config.precision)}, {config.arrangement.name}"
            progress((done + turn / len(configs)) / rounds, what)
            try:
                rates[config].append(frames_per_second(task_of(config), config.arrangement.processes, seconds))
            except InputError as error:
                notes.append(f"{what}: left out. {error}")
                del rates[config]
    return {config: np.array(values) for config, values in rates.items()}, notes


def saved_scene(folder: Path, boxes: int) -> Path:
    """A file of the frame and the boxes that all processes work on."""
    shown = scene(*frame_size(FRAME), boxes)
    path = folder / f"{boxes}.npz"
    np.savez(path, frame=shown.frame, boxes=shown.boxes)
    return path


def _task(config: _Config, source: str, model: BenchModel, scene: Path, peers: tuple[str, ...]) -> Task:
    # only PyTorch's ways and the user's may need the network behind the file, which takes a while to import
    file_is_enough = config.way in WAYS and not config.way.startswith("pytorch")
    return Task(
        config.way,
        config.precision,
        model.name,
        str(model.path) if file_is_enough else source,
        config.arrangement.lanes,
        config.arrangement.threads,
        str(scene),
        config.frames,
        peers,
    )


def frames_per_second(task: Task, processes: int, seconds: float) -> float:
    """Of all processes together, at work at the same time.

    Raises:
        InputError: one fails, with what it said, or does not answer within PATIENCE.
    """
    with ExitStack() as started:
        workers = [started.enter_context(_worker(task)) for _ in range(processes)]
        for worker in workers:
            worker.answer(PATIENCE)
        for worker in workers:
            worker.go(seconds)
        return float(sum(sum(json.loads(worker.answer(PATIENCE + seconds))) for worker in workers))


@contextmanager
def _worker(task: Task) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "edgepose.benchmarks.throughput_worker", json.dumps(asdict(task))]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as said,  # a pipe that nobody reads would fill up and stop the process
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True) as process,
    ):
        try:
            yield _Worker(process, said)
        finally:
            process.kill()


class _Worker(NamedTuple):
    process: subprocess.Popen[str]
    said: IO[str]

    def answer(self, seconds: float) -> str:
        """Its next line. Raises InputError where it has ended, with the last that it said, or is silent for so long;
        then it is killed."""
        assert self.process.stdout is not None
        late = Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = Timer(seconds, stop)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if line:
            return line
        self.process.wait()
        if late.is_set():
            raise InputError(f"its process did not answer within {seconds:g} s and was killed")
        self.said.seek(0)
        lines = self.said.read().strip().splitlines()
        raise InputError(f"its process ended: {lines[-1][:400] if lines else 'it said nothing'}")

    def go(self, seconds: float) -> None:
        """Let it work."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"go {seconds}\n")
        self.process.stdin.flush()


def _rows(rates: dict[_Config, NDArray[np.float64]], labels: dict[str, Label], boxes: int) -> Iterator[Row]:
    for config, values in rates.items():
        own = {"way": config.way, **labels, "precision": config.precision, **_place(config)}
        yield Row(own, "frames/s", timing.summarize(values))
        yield Row(own, "boxes/s", timing.summarize(values * boxes))


def _place(config: _Config) -> dict[str, Label]:
    return {"arrangement": config.arrangement.name, "frames": config.frames}


def _best(rates: dict[_Config, NDArray[np.float64]], labels: dict[str, Label]) -> tuple[list[Row], list[str]]:
    """Ours against each other way, both in their best arrangement with one frame in a call; and which that is."""
    best: dict[tuple[str, str], _Config] = {}
    one_frame = [config for config in rates if config.frames == 1]
    for config in sorted(one_frame, key=lambda config: float(np.median(rates[config]))):
        best[config.way, config.precision] = config
    notes = [
        f"{key_of(*key)} does most as {config.arrangement.name}: {float(np.median(rates[config])):.3g} frames/s"
        for key, config in best.items()
    ]
    rows = []
    for our_key in (key for key in best if key[0] == OURS):
        for key, config in best.items():
            if key != our_key:
                own = {"way": OURS, **labels, "precision": our_key[1], **_place(best[our_key]), "against": key_of(*key)}
                rows.append(Row(own, "ratio", timing.ratio(1 / rates[best[our_key]], 1 / rates[config])))
    return rows, notes


def print_table(record: Record, console: Console) -> None:
    """Most frames a second first, for each model."""
    from rich import box
    from rich.table import Table

    timed = [row for row in record.rows if row.unit == "frames/s"]
    for model, count in dict.fromkeys((row.labels["model"], row.labels["boxes"]) for row in timed):
        here = [row for row in timed if (row.labels["model"], row.labels["boxes"]) == (model, count)]
        title = f"{model} on {record.device}, {count} boxes on {here[0].labels['frame']}"
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for column in ("way", "arrangement"):
            table.add_column(column, no_wrap=True)
        for column in ("frames a call", "frames/s", "95 %"):
            table.add_column(column, justify="right")
        for row in sorted(here, key=lambda row: -row.values["p50"]):
            key = key_of(str(row.labels["way"]), str(row.labels["precision"]))
            place = (str(row.labels["arrangement"]), str(row.labels["frames"]))
            interval = "-".join(number(row.values[key]) for key in ("low", "high") if key in row.values)
            table.add_row(key, *place, number(row.values["p50"]), interval)
        console.print(table)
        for row in record.find(model=model, boxes=count):
            if "against" in row.labels:
                lead = f"{key_of(OURS, str(row.labels['precision']))}: {row.values['value']:.2f} x the frames of"
                console.print(
                    lead, row.labels["against"], "(each in its best arrangement, one frame a call)", highlight=False
                )
