"""Runs a Python script with the kernels compiled for ASan and UBSan: every access out of bounds ends it with a report.

In that process device memory ends where an array ends, and freed memory is gone (see device_model.Block).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import emulator


def library() -> str | None:
    """The path of libasan, which must be loaded before Python; None if the compiler has none."""
    program = emulator.compiler()
    if program is None:
        return None
    run = subprocess.run([program, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    return run.stdout.strip() if Path(run.stdout.strip()).is_absolute() else None


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that can import ``cuda_on_cpu``; needs the :func:`library`."""
    environment = os.environ | {
        "EDGEPOSE_EMULATOR_SANITIZE": "1",
        "LD_PRELOAD": library() or "",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONMALLOC": "malloc",  # so that small NumPy arrays have red zones too
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
