"""What ``import edgepose`` costs, and what it offers."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

import edgepose

HEAVY = ("torch", "onnxruntime", "onnx", "cupy", "cv2", "numpy", "tensorrt", "typer", "rich", "matplotlib")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_loads_no_library() -> None:
    code = f"import edgepose, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "from edgepose import Predictor, PoseResult, ModelSpec",
        "import edgepose.kernels.reference",
        "from edgepose.cli import app",
        "import edgepose.training.recipes",
    ],
)
def test_public_parts_load_neither_torch_nor_an_engine(code: str) -> None:
    heavy = ("torch", "onnxruntime", "cupy", "tensorrt")
    assert run(f"{code}\nimport sys; print([n for n in {heavy} if n in sys.modules])").strip() == "[]"


def test_the_command_line_answers_before_it_loads_numpy() -> None:
    heavy = ("numpy", "cv2", "onnx", "scipy")
    assert run(f"import edgepose.cli, sys; print([n for n in {heavy} if n in sys.modules])").strip() == "[]"


def test_import_is_fast() -> None:
    # The promise is 0.3 s on top of Python's own start. Nothing but the standard library is loaded, so it takes about
    # 0.01 s here; the median of five keeps a busy machine from failing the test.
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    extra = [seconds("import edgepose") - seconds("pass") for _ in range(5)]
    assert statistics.median(extra) < 0.3


def test_public_names() -> None:
    assert edgepose.__all__ == sorted(edgepose.__all__)
    for name in edgepose.__all__:
        assert getattr(edgepose, name) is not None
        assert name in dir(edgepose)
    assert {"Predictor", "PoseResult", "ModelSpec", "EdgePoseError"} <= set(edgepose.__all__)
    assert {"BuildOptions", "BuiltEngine", "Crops", "EngineInfo", "ParityReport"} <= set(edgepose.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        _ = edgepose.Predicter


def test_errors_keep_their_builtin_bases() -> None:
    assert issubclass(edgepose.InputError, ValueError)
    assert issubclass(edgepose.MissingDependencyError, ImportError)
    for name in ("InputError", "ModelError", "EngineError", "MissingDependencyError"):
        assert issubclass(getattr(edgepose, name), edgepose.EdgePoseError)
