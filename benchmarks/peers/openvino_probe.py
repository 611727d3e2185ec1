"""OpenVINO in a process of its own, since it may end it: it believes what the processor advertises.

Some virtual machines advertise instructions that they do not run. Held to fewer by ONEDNN_MAX_CPU_ISA, it lives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from edgepose.benchmarks.ways import UnavailableError

__all__ = ["EMULATING", "ILLEGAL_INSTRUCTION", "ISAS", "VARIABLE", "Probed", "probe", "surviving"]

VARIABLE = "ONEDNN_MAX_CPU_ISA"
ISAS = ("", "AVX512_CORE_BF16", "AVX512_CORE_VNNI", "AVX2")  # first as the processor advertises
# Held to one of these, the processor's own bfloat16 is not used: what is asked for in it is emulated
EMULATING = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
ILLEGAL_INSTRUCTION = 0xC000001D  # the exit code on Windows, which knows no signals
TIMEOUT = 300  # s


class Probed(NamedTuple):
    """How it went.

    Attributes:
        died: the name of what ended the process; empty: it ended by itself.
        refused: the last line of the exception that it raised; empty: none.
        told: what it printed.
    """

    died: str
    refused: str
    told: str


def probe(code: str, arguments: Sequence[str], isa: str | None = None) -> Probed:
    """Run Python code with ``arguments`` behind ``sys.argv[0]``.

    Args:
        code: as of ``python -c``.
        arguments: for it.
        isa: the instructions it is held to; None: those of this process.

    Raises:
        UnavailableError: it took longer than TIMEOUT.
    """
    environment = {**os.environ, **({} if isa is None else {VARIABLE: isa})}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"OpenVINO did not finish one run in {TIMEOUT} s") from None
    died = _death(done.returncode)
    lines = done.stderr.strip().splitlines() or ["?"]
    return Probed(died, lines[-1][:300] if done.returncode and not died else "", done.stdout)


def _death(code: int) -> str:
    """The name of what ended a process with this exit code; empty: it ended by itself."""
    if code & 0xFFFFFFFF == ILLEGAL_INSTRUCTION:
        return "illegal instruction"
    return signal.Signals(-code).name if code < 0 else ""


def surviving(code: str, arguments: Sequence[str]) -> str:
    """The first of ISAS, behind the processor's own, with which the code survives; empty: none."""
    return next((isa for isa in ISAS[1:] if not probe(code, arguments, isa).died), "")
