"""What a result file holds: rows of figures, and all that is needed to repeat them."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgepose.errors import InputError
from edgepose.files import write_atomically

__all__ = ["SCHEMA_VERSION", "Label", "Record", "Row", "begin", "cpu_facts", "make_record"]

SCHEMA_VERSION = 1
Label = str | int | float
PACKAGES = (
    "edgepose",
    "numpy",
    "opencv-python-headless",
    "onnx",
    "onnxruntime",
    "scipy",
    "torch",
    "openvino",
    "rtmlib",
)
GPU_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
# What decides how fast convolutions are, as Linux names it
FLAGS: tuple[str, ...] = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni")
FLAGS += ("amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
# Variables of the environment that change how fast libraries are
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Row:
    """One figure, or a few of the same thing.

    Attributes:
        labels: what was measured, for instance way, model, precision, boxes, frame, stage.
        unit: of all values but counts and ratios.
        values: of a time p50, p95, p99, min, mean, low, high, runs (see :func:`edgepose.benchmarks.timing.summarize`);
            of a single number ``value``, maybe with low and high.
    """

    labels: Mapping[str, Label]
    unit: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Record:
    """A run of one suite on one device.

    Attributes:
        suite: which benchmark.
        device: the GPU's name, or the processor's.
        environment: commit, date, command, versions, clocks, ... : see :func:`make_record`.
        rows: the figures.
        notes: what a reader must know: what was left out and why, what a curve shows.
    """

    suite: str
    device: str
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def find(self, **labels: Label) -> list[Row]:
        """The rows that have all of these labels."""
        return [row for row in self.rows if all(row.labels.get(key) == value for key, value in labels.items())]

    def value(self, statistic: str = "p50", /, **labels: Label) -> float:
        """A number of the one row with these labels. Raises InputError where there is none, or more than one."""
        rows = self.find(**labels)
        if len(rows) != 1 or statistic not in rows[0].values:
            came = f"{len(rows)} rows" if len(rows) != 1 else f"one with {', '.join(rows[0].values)}"
            raise InputError(f"{self.suite}: expected one row of {labels} that has {statistic!r}, got {came}")
        return rows[0].values[statistic]

    @property
    def file_name(self) -> str:
        """``suite--device.json``."""
        return f"{self.suite}--{re.sub(r'[^a-z0-9]+', '-', self.device.lower()).strip('-')}.json"

    def save(self, folder: str | Path) -> Path:
        """Write ``folder/suite--device.json``, one row a line; an older file of the same suite and device is replaced.

        Raises:
            InputError: a value is not a finite number, or the file cannot be written.
        """
        path = Path(folder) / self.file_name
        head = {"schema": SCHEMA_VERSION, "suite": self.suite, "device": self.device}
        parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        parts.append('  "environment": ' + json.dumps(self.environment, indent=2).replace("\n", "\n  "))
        parts.append(_lines("notes", self.notes))
        parts.append(_lines("rows", [_plain(row, self.suite) for row in self.rows]))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        return path

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """The record of a file. Raises InputError where the file is not one, saying what is wrong in it."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        problem = _problem(content)
        if problem:
            raise InputError(f"{path} is not a benchmark's result of schema {SCHEMA_VERSION}: {problem}")
        rows = tuple(Row(row["labels"], row["unit"], row["values"]) for row in content["rows"])
        return cls(content["suite"], content["device"], content["environment"], rows, tuple(content["notes"]))


@dataclass(frozen=True)
class _Start:
    """What is to be known of the moment at which a run began."""

    commit: str | None
    date: str
    load: list[float]

    @classmethod
    def now(cls) -> _Start:
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        load = [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else []
        return cls(_git_commit(), date, load)


_begun: list[_Start] = []


def begin() -> None:
    """A run begins: its record will have the commit, the date and the load of now, not those of its end."""
    _begun[:] = [_Start.now()]


def make_record(
    suite: str, rows: Iterable[Row], *, notes: Iterable[str] = (), gpu: Mapping[str, Any] | None = None
) -> Record:
    """A record of this machine, now; of commit, date and load as they were at the last :func:`begin`.

    Args:
        suite: its name; the command in the record is that of this process.
        rows, notes: see :class:`Record`.
        gpu: facts of the GPU that was measured, its name as ``name``; None: the processor was.
    """
    cpu, end = cpu_facts(), _Start.now()
    start = _begun[0] if _begun else end
    if start.commit != end.commit:
        notes = [*notes, f"the checkout changed during the run: {start.commit} at its start, {end.commit} at its end"]
    names = PACKAGES + (GPU_PACKAGES if gpu else ())
    environment: dict[str, Any] = {
        "date": start.date,
        "commit": start.commit,
        "command": _command(),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
        "versions": {name: found for name in names if (found := _version(name))},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "cpu": cpu,
        "load_average": start.load,
    }
    if gpu:
        environment["gpu"] = dict(gpu)
    return Record(suite, str(gpu["name"]) if gpu else cpu["name"], environment, tuple(rows), tuple(notes))


def cpu_facts() -> dict[str, Any]:
    """name, cores, usable (by this process), flags, mhz (now), governor; what the system does not tell is left out."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = _first_line_values(Path("/proc/cpuinfo"))
    name = info.get("model name") or platform.processor() or platform.machine()
    words = (info.get("flags") or info.get("Features") or "").split()
    facts = {
        "name": re.sub(r"\((R|TM)\)", "", name),
        "cores": os.cpu_count(),
        "usable": usable,
        "flags": [flag for flag in FLAGS if flag in words],
        "mhz": info.get("cpu MHz"),
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _first_line_values(path: Path) -> dict[str, str]:
    """The first value of each key of /proc/cpuinfo."""
    values: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())
    return values


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _command() -> str:
    """How this process was called; a path of this machine is told by its last part only."""
    program = Path(sys.argv[0]).name.replace("cli.py", "edgepose")  # python -m edgepose.cli, as the Makefile says it
    arguments = [Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:]]
    return shlex.join([program, *arguments])


def _git_commit() -> str | None:
    """The commit that was measured, with a plus if what runs has changed since; None outside of a checkout."""
    if not (ROOT / ".git").exists():
        return None
    run = ("git", "-C", str(ROOT))
    try:
        commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [
                *run,
                "status",
                "--porcelain",
                "--",
                "edgepose",
                "kernels",
                "training",
                "benchmarks/*.py",
                "benchmarks/models",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip()[:12] + ("+" if changes.stdout.strip() else "")


def _plain(row: Row, suite: str) -> dict[str, Any]:
    values = {}
    for key, value in row.values.items():
        number = float(value)
        if not math.isfinite(number):
            raise InputError(f"{suite}: {key} of {dict(row.labels)} is {number}: a figure must be a finite number")
        values[key] = int(number) if key == "runs" else float(f"{number:.5g}")
    return {"labels": dict(row.labels), "unit": row.unit, "values": values}


def _lines(key: str, items: Iterable[Any]) -> str:
    """A JSON list, one item a line."""
    text = ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in items)
    return f"  {json.dumps(key)}: [\n{text}\n  ]" if text else f"  {json.dumps(key)}: []"


def _problem(content: Any) -> str | None:
    """What contradicts results/schema.json, which says the same; None: nothing."""
    keys = {"schema", "suite", "device", "environment", "rows", "notes"}
    if not isinstance(content, dict) or set(content) != keys:
        came = sorted(content) if isinstance(content, dict) else type(content).__name__
        return f"expected an object with {', '.join(sorted(keys))}, got {came}"
    if content["schema"] != SCHEMA_VERSION:
        return f"it is of schema {content['schema']!r}: run the suite again"
    for key in ("suite", "device"):
        if not isinstance(content[key], str) or not content[key]:
            return f"{key} must be a text, got {content[key]!r}"
    if not isinstance(content["environment"], dict):
        return f"environment must be an object, got {content['environment']!r}"
    if not isinstance(content["notes"], list) or not all(isinstance(note, str) for note in content["notes"]):
        return "notes must be a list of texts"
    if not isinstance(content["rows"], list):
        return "rows must be a list"
    for number, row in enumerate(content["rows"]):
        if not isinstance(row, dict) or set(row) != {"labels", "unit", "values"}:
            return f"row {number} must have labels, unit and values"
        if not isinstance(row["unit"], str):
            return f"the unit of row {number} must be a text, got {row['unit']!r}"
        if not _maps(row["labels"], (str, int, float)) or not _maps(row["values"], (int, float)) or not row["values"]:
            return f"row {number} must have labels that are texts or numbers, and values that are numbers"
    return None


def _maps(item: Any, kinds: tuple[type, ...]) -> bool:
    """An object whose values are of these kinds; true and false are no numbers."""
    return isinstance(item, dict) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in item.values())
