"""Compiling the .cu files of this folder with NVRTC, on first use, once for each device and variant.

NVRTC is called here and not by ``cupy.RawModule(code=...)``, which insists on the toolkit's headers (our files include
nothing) and adds ``-ftz=true`` after our options, so that subnormal numbers would count as 0.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["OPTIONS", "forget", "import_cupy", "kernel", "source"]

# No fast math: the twins' arithmetic is the specification. And a * b + c is two operations unless a kernel says fma: so
# the tests that run these files on the CPU see the GPU's numbers, bit for bit, transcendental functions apart.
OPTIONS = ("-std=c++17", "--fmad=false")
INSTALL = "pip install 'edgepose[cuda13]' (or 'edgepose[cuda12]' for a driver that supports CUDA 12 only)"
_INCLUDE = re.compile(r'#include "(\w+\.cuh)"\n?')
_lock = threading.Lock()
_kernels: dict[tuple[Any, ...], Any] = {}


def kernel(file: str, name: str, defines: Mapping[str, str | int]) -> Any:
    """The kernel ``name`` of a .cu file for CuPy's current device, compiled and loaded: a ``cupy.RawKernel``.

    The machine code is kept in ``$XDG_CACHE_HOME/edgepose/kernels`` (``~/.cache`` by default) for the next process.

    Args:
        file: a .cu file of this package.
        name: an ``extern "C"`` kernel in it.
        defines: the variant, as macros.

    Raises:
        ImportError: CuPy or NVRTC is not installed.
        RuntimeError: NVRTC refused the source (its log is in the message), or does not know the GPU.
    """
    cupy = import_cupy()
    key = (cupy.cuda.Device().id, file, name, *sorted(defines.items()))
    with _lock:
        if key not in _kernels:
            _kernels[key] = cupy.RawModule(path=str(_machine_code(cupy, file, defines))).get_function(name)
        return _kernels[key]


def import_cupy() -> Any:
    """The module ``cupy``. Raises ImportError, with the command that installs it."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(f"the CUDA kernels need CuPy, which cannot be imported ({error}): {INSTALL}") from error
    return cupy


def source(file: str, defines: Mapping[str, str | int]) -> str:
    """The text that is compiled: defines and the file, with what it includes of this package in place, each once.

    NVRTC sees no #include, as it would look for files. #line lets its errors name the place.
    """
    preamble = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return preamble + _expanded(file, set())


def _expanded(file: str, seen: set[str]) -> str:
    """A file with its #line, its includes replaced by their text; ``seen``: the ones that the text has already."""
    parts = [f'#line 1 "{file}"\n']
    for number, line in enumerate(_text(file).splitlines(keepends=True), start=1):
        included = _INCLUDE.fullmatch(line)
        if included is None:
            parts.append(line)
        elif included[1] not in seen:
            seen.add(included[1])
            parts.append(f'{_expanded(included[1], seen)}\n#line {number + 1} "{file}"\n')
        else:
            parts.append("\n")
    return "".join(parts)


def forget() -> None:
    """Drop the kernels that are loaded; the next use loads them again."""
    with _lock:
        _kernels.clear()


@cache
def _text(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _machine_code(cupy: Any, file: str, defines: Mapping[str, str | int]) -> Path:
    """The file with the compiled source for the current device, made if there is none yet."""
    nvrtc, text = cupy.cuda.nvrtc, source(file, defines)
    try:
        version = nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:  # CuPy looks for the library at the first call
        raise ImportError(f"the CUDA kernels need NVRTC, which CuPy does not find ({error}): {INSTALL}") from error
    architecture, suffix = _target(int(cupy.cuda.Device().compute_capability), nvrtc.getSupportedArchs(), version)
    key = hashlib.sha256(repr((text, OPTIONS, architecture, version)).encode()).hexdigest()[:16]
    path = _folder() / f"{Path(file).stem}-{architecture}-{key}.{suffix}"
    if not path.exists():
        code = _compile(nvrtc, text, architecture, f"{file} for {architecture} with {dict(defines)}")
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            part.write(code)
        os.replace(part.name, path)  # whole, or not at all, for other processes
    return path


def _target(capability: int, supported: tuple[int, ...], version: tuple[int, int]) -> tuple[str, str]:
    """NVRTC's architecture for a GPU, and what it makes: machine code, or PTX where the GPU is newer than NVRTC."""
    if capability in supported:
        return f"sm_{capability}", "cubin"
    older = [architecture for architecture in supported if architecture < capability]
    if not older:
        major, minor = version
        raise RuntimeError(
            f"NVRTC {major}.{minor} makes no code for this GPU (compute capability {capability / 10}); "
            f"it begins with {min(supported) / 10}. The kernels need at least 7.5"
        )
    return f"compute_{max(older)}", "ptx"


def _compile(nvrtc: Any, text: str, architecture: str, what: str) -> bytes:
    program = nvrtc.createProgram(text, "edgepose.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"-arch={architecture}"))
        code: bytes = nvrtc.getCUBIN(program) if architecture.startswith("sm_") else nvrtc.getPTX(program)
        return code + b"\0"  # CuPy takes the last byte for the end of a string and drops it
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"NVRTC cannot compile {what} ({error}):\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgepose-kernels-")


def _folder() -> Path:
    """Where machine code is kept: the user's cache, or for this process only if that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgepose" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    return folder if writable else Path(_temporary_folder().name)
