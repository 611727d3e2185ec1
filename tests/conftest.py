"""Shared fixtures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from cuda_on_cpu import cupy_cuda, emulator
from cuda_on_cpu import cupy_on_cpu as stand_in

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests run in."""
    return ROOT


@pytest.fixture
def cupy_on_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """During the test `import cupy` gives the stand-in of cuda_on_cpu/cupy_on_cpu.py, which runs the kernels here."""
    from edgepose.kernels import _compile

    if emulator.NO_COMPILER["condition"]:
        pytest.skip(emulator.NO_COMPILER["reason"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    made = stand_in.modules()
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what the stand-in compiles is of no use later
    cupy_cuda.reset()
    _compile.forget()  # kernels of the real CuPy, or of another test
    yield made["cupy"]
    _compile.forget()
