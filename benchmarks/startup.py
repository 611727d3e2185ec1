"""From the start of a process to the landmarks of a photo, step by step: ours beside others', each time a new process.

All ways import the same libraries in the same order, then read the same photo from a file, open the same model and look
into one box, twice. So steps of the same name can be compared, and a way's own cost is in "import the library", "open
the model" and the predictions. In favour of "onnxruntime": it decodes by argmax alone. Where the process may not use
all CPUs, "onnxruntime" and "rtmlib" get as many threads as it may.

Warm: the files lie in the system's file cache, as they do from the second start on. Cold: before each process the
kernel is asked to forget the files that the process will load (posix_fadvise, which needs no rights); it keeps what
other processes have mapped, so that "read from storage" says how cold the start was.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgepose.benchmarks.bench_models import open_model
from edgepose.benchmarks.records import Record, Row, make_record
from edgepose.benchmarks.timing import fresh_process, summarize
from edgepose.benchmarks.ways import WayOptions, session_threads
from edgepose.errors import InputError
from edgepose.models import ENGINE_SUFFIXES, find_model
from edgepose.specfields import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from rich.console import Console

    from edgepose.spec import ModelSpec

__all__ = ["MODELS", "OURS", "STEPS", "Case", "print_table", "run", "starts"]

MODELS = ("garment-landmarks", "resnet50", "deepfashion2/trousers/hrnet_w48")
OURS = "edgepose"
TOTAL = "first result"
STORAGE = "read from storage"
# In the order of the bars; what a way does not do is missing in its rows
STEPS = (
    "start Python",
    "import numpy",
    "import cv2",
    "import onnxruntime",
    "import torch",
    "import the library",
    "read the photo",
    "open the model",
    "first prediction",
    "second prediction",
)
FRAME = (1920, 1080)
FEWER = 3  # of the larger models so many times fewer runs: their steps take long and vary little
ROUNDS, COLD_RUNS = 20, 5

_BEGIN = """\
import json, sys, time
steps = [(time.time() - float(sys.argv[1])) * 1e3]
task = json.loads(sys.argv[2])
names, last = ["start Python"], time.perf_counter()
def step(name):
    global last
    now = time.perf_counter()
    names.append(name); steps.append((now - last) * 1e3)
    last = time.perf_counter()
import numpy
step("import numpy")
import cv2
step("import cv2")
"""
_ORT = """\
import onnxruntime
step("import onnxruntime")
"""
_PHOTO = """\
frame = cv2.imread(task["photo"])
step("read the photo")
"""
_END = """\
step("open the model")
predict()
step("first prediction")
predict()
step("second prediction")
files = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/" in line] if task["cold"] else []
files += [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
io = dict(line.split(": ") for line in open("/proc/self/io")) if task["cold"] else {}
print(json.dumps({"steps": dict(zip(names, steps)), "files": files, "read": int(io.get("read_bytes", 0))}))
"""
_EDGEPOSE = """\
from edgepose import Predictor
step("import the library")
{photo}predictor = Predictor(task["model"])
def predict():
    return predictor.predict(frame, [task["box"]]).keypoints
"""
_ONNXRUNTIME = """\
{photo}options = onnxruntime.SessionOptions()
options.intra_op_num_threads = task["threads"] or 0
session = onnxruntime.InferenceSession(task["model"], options, providers=["CPUExecutionProvider"])
mean, std = numpy.float32(task["mean"]), numpy.float32(task["std"])
def predict():
    (x1, y1, x2, y2), (w, h) = task["box"], task["input_size"]
    scale = 1 / 1.25 / max((x2 - x1) / (w - 1), (y2 - y1) / (h - 1))
    shift = (w - 1) / 2 - scale * (x1 + x2) / 2, (h - 1) / 2 - scale * (y1 + y2) / 2
    crop = cv2.warpAffine(frame, numpy.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (w, h))
    images = ((crop[..., ::-1] - mean) / std).transpose(2, 0, 1)[None]
    heatmaps = session.run(None, {{session.get_inputs()[0].name: numpy.ascontiguousarray(images)}})[0][0]
    cells = numpy.stack(numpy.divmod(heatmaps.reshape(len(heatmaps), -1).argmax(1), heatmaps.shape[2])[::-1], 1)
    return (cells * ((w - 1) / (heatmaps.shape[2] - 1)) - shift) / scale
"""
_RTMLIB = """\
from rtmlib import ViTPose
step("import the library")
{photo}session = onnxruntime.InferenceSession
if task["threads"]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    onnxruntime.InferenceSession = lambda *args, **more: session(*args, **more, sess_options=options)
pose = ViTPose(task["model"], tuple(task["input_size"]), tuple(task["mean"]), tuple(task["std"]))
onnxruntime.InferenceSession = session
def predict():
    return pose(frame, [task["box"]])[0]
"""
_TORCH = """\
import torch
step("import torch")
print(json.dumps({"steps": dict(zip(names, steps)), "files": [], "read": 0}))
"""


class _Way(NamedTuple):
    """The code of a way, and what it needs: a package, and the command that installs it."""

    code: str
    package: str = "onnxruntime"
    install: str = "pip install onnxruntime"


def _whole(own: str) -> str:
    return _BEGIN + _ORT + own.format(photo=_PHOTO) + _END


WAYS = {
    OURS: _Way(_whole(_EDGEPOSE)),
    "onnxruntime": _Way(_whole(_ONNXRUNTIME)),
    "rtmlib": _Way(_whole(_RTMLIB), "rtmlib", "pip install --no-deps rtmlib tqdm"),
    "pytorch, import alone": _Way(_BEGIN + _TORCH, "torch", "pip install torch"),
}
_PREDICTING = (OURS, "onnxruntime", "rtmlib")


class Case(NamedTuple):
    """A model to start with: the names of the ways that can, and the facts that they need."""

    model: str
    path: Path
    spec: ModelSpec | None  # None: an engine, which carries its own
    ways: tuple[str, ...]


def run(
    *,
    models: Sequence[str] = MODELS,
    rounds: int = ROUNDS,
    cold_runs: int = COLD_RUNS,
    cache: Path | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> Record:
    """Time the steps of each way.

    Args:
        models: names as of :func:`edgepose.benchmarks.bench_models.open_model`, or .engine files, which edgepose alone
            opens. PyTorch's import and the cold starts are timed with the first one.
        rounds: starts of each way with the first model; the others get a third of them.
        cold_runs: starts with a cold file cache; 0: none.
        cache: of models that are made here.
        progress: told (done, of how many, what).

    Returns:
        Rows with the labels way, model, cache (``warm`` or ``cold``), step; a step's time in ms, "first result" from
        the request for the process to the first landmarks; "read from storage" in MB.
    """
    cases, notes = _cases(models, cache)
    rows = [
        Row({"model": case.model, "step": "model file"}, "MB", {"value": case.path.stat().st_size / 1e6})
        for case in cases
    ]
    plan = [("warm", case, rounds if case is cases[0] else max(3, rounds // FEWER)) for case in cases]
    cold = cold_runs > 0 and _can_forget()
    if cold:
        ways = tuple(way for way in cases[0].ways if way in _PREDICTING)
        plan.append(("cold", cases[0]._replace(ways=ways), cold_runs))
    elif cold_runs > 0:
        notes.append("No cold starts: this system has no posix_fadvise or no /proc to ask for what was read.")
    total, done = sum(count * len(case.ways) for _, case, count in plan), 0
    for temperature, case, count in plan:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in case.ways}
        for way, steps in starts(case, count, cold=temperature == "cold"):
            found[way].append(steps)
            done += 1
            if progress is not None:
                progress(done, total, f"{case.model}, {temperature}")
        for way, times in found.items():
            rows += _rows({"way": way, "model": case.model, "cache": temperature}, times)
    notes.append(
        "Each time is of a new process, ways in turn in an order drawn anew in each round. Warm: all files are in the "
        "system's file cache."
    )
    if cold:
        notes.append(
            "Cold: the kernel was asked to forget the files before each start; what other processes have mapped stays, "
            "and 'read from storage' says how much had to be read."
        )
    return make_record("startup", rows, notes=notes)


def starts(case: Case, rounds: int, *, cold: bool = False) -> Iterable[tuple[str, dict[str, float]]]:
    """Start each of a case's ways ``rounds`` times; yields the way and its steps, ms, after each.

    Where ``cold``, also "read from storage", MB. One start of each way before is thrown away: it fills the file cache,
    and tells which files to forget.
    """
    from edgepose.benchmarks.scenes import scene

    ways = case.ways
    picture = scene(*FRAME, 1)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "scene.jpg")
        _write_photo(photo, picture.frame)
        task = {"model": str(case.path), "photo": str(photo), "box": picture.boxes[0].tolist(), "cold": cold}
        spec = case.spec
        task["input_size"] = list(spec.input_size) if spec else []
        task["mean"], task["std"] = (spec.mean, spec.std) if spec else (IMAGENET_MEAN, IMAGENET_STD)
        task["threads"] = session_threads(WayOptions())
        order = np.random.default_rng(0)
        files = {way: {*_start(way, task)["files"], str(case.path), str(photo)} for way in ways}
        for _ in range(rounds):
            for index in order.permutation(len(ways)):
                way = ways[index]
                if cold:
                    _forget(files[way])
                told = _start(way, task)
                steps = told["steps"]
                if way in _PREDICTING:
                    steps[TOTAL] = sum(time for name, time in steps.items() if name != STEPS[-1])
                yield way, steps | ({STORAGE: told["read"] / 1e6} if cold else {})


def _start(way: str, task: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = fresh_process(WAYS[way].code, runs=1, arguments=(json.dumps(task),))[0]
    return told


def _cases(models: Sequence[str], cache: Path | None) -> tuple[list[Case], list[str]]:
    """The models, and notes on the ways that are not installed."""
    if not models:
        raise InputError("there is no model to start with: at least one is needed")
    missing = [name for name, way in WAYS.items() if find_spec(way.package) is None]
    notes = [f"{name} was left out, it is not installed: {WAYS[name].install}" for name in missing]
    cases = []
    for number, name in enumerate(models):
        if Path(name).suffix.lower() in ENGINE_SUFFIXES:
            cases.append(Case(Path(name).stem, find_model(name), None, (OURS,)))
            continue
        model = open_model(name, cache)
        ways = WAYS if number == 0 else _PREDICTING
        cases.append(Case(model.name, model.path, model.spec, tuple(way for way in ways if way not in missing)))
    return cases, notes


def _rows(labels: dict[str, str | int | float], times: Sequence[dict[str, float]]) -> Iterable[Row]:
    for step in times[0]:
        values = summarize([steps[step] for steps in times])
        yield Row({**labels, "step": step}, "MB" if step == STORAGE else "ms", values)


def _write_photo(path: Path, frame: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    import cv2

    if not cv2.imwrite(str(path), frame):
        raise InputError(f"{path} cannot be written")


def _can_forget() -> bool:
    return hasattr(os, "posix_fadvise") and Path("/proc/self/io").exists()


def _forget(files: Iterable[str]) -> None:
    """Ask the kernel to drop these files from its cache; those that are gone or not ours to read do not matter."""
    for name in files:
        try:
            file = os.open(name, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def print_table(record: Record, console: Console) -> None:
    """A table for each model and cache: a column for each way, medians."""
    from rich.table import Table

    groups = {(r.labels["model"], r.labels["cache"]): None for r in record.rows if "cache" in r.labels}
    for model, temperature in groups:
        rows = record.find(model=model, cache=temperature)
        ways = list(dict.fromkeys(str(row.labels["way"]) for row in rows))
        title = f"{model}, {temperature} file cache, ms (median of {int(rows[0].values['runs'])})"
        table = Table(title=title, title_justify="left")
        table.add_column("step")
        for way in ways:
            table.add_column(way, justify="right")
        for step in (*STEPS, TOTAL, STORAGE):
            found = {r.labels["way"]: r for r in rows if r.labels["step"] == step}
            if found:
                name = f"{step}, MB" if step == STORAGE else step
                cells = [f"{found[way].values['p50']:.0f}" if way in found else "" for way in ways]
                table.add_row(name, *cells, style="bold" if step == TOTAL else None)
        console.print(table)
