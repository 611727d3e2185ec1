"""Where a benchmark's figures go: one JSON file for each suite and device, with what is needed to repeat them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent / "results"


def measure(call: Callable[[], Any], runs: int = 200, warm_up: int = 10) -> dict[str, float]:
    """Milliseconds of one call: median, p95 and the fastest, over ``runs`` calls after ``warm_up`` more."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(runs):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1e3)
    return summary(times)


def summary(times: list[float]) -> dict[str, float]:
    """Median, p95 and minimum of times in ms, rounded to 1 us."""
    return {"p50": _round(np.median(times)), "p95": _round(np.percentile(times, 95)), "min": _round(min(times))}


def _round(value: Any) -> float:
    return round(float(value), 3)


def save(suite: str, figures: dict[str, Any], *, device: str | None = None, unit: str = "ms") -> Path:
    """Write results/<suite>--<device>.json; an older file of the same suite and device is replaced.

    ``device`` is the GPU's name; None: the processor's.
    """
    device = device or cpu_name()
    record = {
        "suite": suite,
        "device": device,
        "cores": os.cpu_count(),
        "commit": git_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *map(_argument, sys.argv[1:])]),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "load_average": [round(v, 2) for v in os.getloadavg()],
        "unit": unit,
        "figures": figures,
    }
    FOLDER.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = FOLDER / f"{suite}--{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def _argument(text: str) -> str:
    """As it was given, but a path of this machine as the file's name."""
    return Path(text).name if Path(text).is_absolute() else text


def cpu_name() -> str:
    """The processor's name as Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return re.sub(r"\((R|TM)\)", "", names[0]) if names else platform.machine()


def git_commit() -> str:
    """The commit that was measured, with a plus if the tree had changes."""
    root = Path(__file__).parent.parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    changes = subprocess.run(
        ["git", "status", "--porcelain", "--", "edgepose", "kernels"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return commit.stdout.strip()[:12] + ("+" if changes.stdout.strip() else "") if commit.returncode == 0 else "unknown"
