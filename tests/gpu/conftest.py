"""Everything in this folder needs a GPU and CuPy: `make test-gpu`. Elsewhere it skips, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest


def _missing() -> str:
    """Why these tests cannot run; empty if they can."""
    try:
        import cupy
    except ImportError as error:
        return f"needs CuPy and an NVIDIA GPU: {error}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"needs an NVIDIA GPU: {error}"
    return "" if count else "needs an NVIDIA GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if Path(item.fspath).parent == Path(__file__).parent]
    reason = _missing() if own else ""
    for item in own:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
