"""cupy.cuda.nvrtc of the stand-in (cupy_on_cpu.py): its machine code is the source, which RawModule then emulates."""

from __future__ import annotations

import itertools

__all__ = [  # what `cupy.cuda.nvrtc` shows
    "NVRTCError",
    "compileProgram",
    "createProgram",
    "destroyProgram",
    "getCUBIN",
    "getPTX",
    "getProgramLog",
    "getSupportedArchs",
    "getVersion",
]
_programs: dict[int, str] = {}
_handles = itertools.count(1)


class NVRTCError(RuntimeError): ...


def getVersion() -> tuple[int, int]:
    return 0, 0


def getSupportedArchs() -> tuple[int, ...]:
    return 75, 90


def createProgram(src: str, name: str, headers: tuple[str, ...], include_names: tuple[str, ...]) -> int:
    handle = next(_handles)
    _programs[handle] = src
    return handle


def compileProgram(prog: int, options: tuple[str, ...]) -> None:
    if "#error" in _programs[prog]:  # the one way to see how a refusal is told
        raise NVRTCError("NVRTC_ERROR_COMPILATION (6)")


def getProgramLog(prog: int) -> str:
    return "".join(line for line in _programs[prog].splitlines() if "#error" in line)


def getCUBIN(prog: int) -> bytes:
    return _programs[prog].encode()


def getPTX(prog: int) -> bytes:
    return getCUBIN(prog)


def destroyProgram(prog: int) -> None:
    del _programs[prog]
