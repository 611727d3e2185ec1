"""Compiling the .cu files of this folder: through CuPy and NVRTC, on first use, once for each device and variant."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["OPTIONS", "kernel", "source"]

OPTIONS = ("-std=c++17", "--ptxas-options=-v")  # no fast math: the twins' arithmetic is the specification
_lock = threading.Lock()
_kernels: dict[tuple[Any, ...], Any] = {}


def source(file: str, defines: Mapping[str, str | int]) -> str:
    """The text that is compiled: defines, ``common.cuh`` and the file, with #line so that errors name the right place.

    Not #include: CuPy's cache on disk would not notice that an included file has changed.
    """
    preamble = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return "".join([preamble, *(f'#line 1 "{name}"\n{_text(name)}\n' for name in ("common.cuh", file))])


def kernel(file: str, name: str, defines: Mapping[str, str | int]) -> Any:
    """The kernel ``name`` of a .cu file, compiled with ``defines`` for CuPy's current device (a ``cupy.RawKernel``)."""
    import cupy

    key = (cupy.cuda.Device().id, file, name, *sorted(defines.items()))
    with _lock:
        if key not in _kernels:
            _kernels[key] = cupy.RawModule(code=source(file, defines), options=OPTIONS).get_function(name)
        return _kernels[key]


@cache
def _text(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
