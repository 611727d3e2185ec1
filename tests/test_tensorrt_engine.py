"""Loading and running .engine files: files that TensorRT-RTX built here, a GPU and a runtime that stand in."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import fake_api
from painter import blobs, painter_spec, write_painter

from edgepose import EngineError, MissingDependencyError, ModelError, Predictor, build_engine, tensorrt_api
from edgepose.crops import Crops
from edgepose.enginefile import BuildOptions, EngineInfo, cache_path, sidecar_path
from edgepose.engines import DeviceEngine
from edgepose.engines.tensorrt import TensorRTEngine
from edgepose.geometry import crop_affines
from edgepose.kernels import reference
from edgepose.tensorrt_api import Gpu

pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT-RTX: pip install 'edgepose[rtx-cu13]'")

FRAME = blobs((320, 240), np.array([[120.0, 90.0], [160.5, 130.25], [140.0, 160.0]]), 12)
BOXES = np.array([[60.0, 40, 220, 210], [80, 50, 230, 200], [70, 30, 200, 220]])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 engine for sm86, batches 1 to 4, with its sidecar and its model beside it."""
    folder = tmp_path_factory.mktemp("engine")
    write_painter(folder / "painter.onnx", painter_spec())
    spec = painter_spec()
    affines = crop_affines(BOXES, spec.input_size, codec=spec.codec, padding=spec.padding)
    crops = Crops(reference.crop_warp(FRAME, affines, spec.input_size, sampling=spec.sampling), "blobs")
    return build_engine(
        folder / "painter.onnx",
        precision="fp16",
        profile=(1, 2, 4),
        crops=crops,
        options=BuildOptions(flavour="tensorrt-rtx", targets=("sm86",)),
    ).path


@pytest.fixture
def engine_file(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(built.parent, tmp_path / "copy")
    return tmp_path / "copy" / built.name


@pytest.fixture
def on_gpu(cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, built: Path) -> Callable[..., None]:
    """Makes this machine one with an sm86 GPU and TensorRT-RTX; arguments change what it is like."""

    def become(*, sm: str = "sm86", change: Any = None) -> None:
        api = fake_api(tensorrt_api._load("tensorrt-rtx"), built.with_suffix(".onnx"), change=change)
        monkeypatch.setattr(tensorrt_api, "load", lambda flavour=None: api)
        monkeypatch.setattr(
            tensorrt_api, "gpu_here", lambda device=None: Gpu("NVIDIA Fake", sm) if not device else None
        )

    become()
    return become


def test_predicts_as_the_onnx_file_does(engine_file: Path, on_gpu: Any) -> None:
    with Predictor(engine_file.with_suffix(".onnx")) as predictor:
        expected = predictor.predict(FRAME, BOXES)
    with Predictor(engine_file, max_batch=2) as predictor:
        assert predictor.engine_name.startswith("tensorrt-rtx 1.")
        assert predictor.engine_name.endswith("(cuda:0)")
        result = predictor.predict(FRAME, BOXES)
    there = expected.scores > 0.3
    assert there.sum() > 5
    # float16 crops and heatmaps: a tenth of a cell of 6 px (seen: 0.11 px)
    np.testing.assert_allclose(result.keypoints[there], expected.keypoints[there], atol=0.5)


def test_is_a_device_engine(engine_file: Path, on_gpu: Any) -> None:
    engine = TensorRTEngine(engine_file)
    assert isinstance(engine, DeviceEngine)
    assert (engine.min_batch, engine.max_batch) == (1, 4)
    assert engine.input_dtype == engine.output_dtype == np.float16
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.bind(None, None)


def test_the_first_load_completes_the_parity_report(engine_file: Path, on_gpu: Any) -> None:
    """Built without a GPU, so the report is the graph's; the machine that runs it measures the engine, once."""
    assert EngineInfo.read(engine_file).parity.scope == "graph"
    engine = TensorRTEngine(engine_file)
    report = engine.info.parity
    assert report.scope == "engine"
    assert EngineInfo.read(engine_file).parity == report
    changed = sidecar_path(engine_file).stat().st_mtime_ns
    engine.close()
    TensorRTEngine(engine_file).close()
    assert sidecar_path(engine_file).stat().st_mtime_ns == changed


@pytest.mark.parametrize("before", [None, b"of another GPU"])
def test_rtx_keeps_what_it_compiled(engine_file: Path, on_gpu: Any, before: bytes | None) -> None:
    """When the predictor is ready, not when it is closed: a service may never be."""
    cache = cache_path(engine_file)
    if before is not None:
        cache.write_bytes(before)
    TensorRTEngine(engine_file).close()  # without the parity check's run in what follows
    predictor = Predictor(engine_file, max_batch=1)
    assert cache.read_bytes() == b"fake 1"
    predictor.close()
    written = cache.stat().st_mtime_ns
    Predictor(engine_file, max_batch=1).close()
    assert cache.stat().st_mtime_ns == written
    Predictor(engine_file, max_batch=4).close()  # more shapes, more kernels
    assert cache.read_bytes() == b"fake 1 2 4"


def test_a_cache_that_cannot_be_read_is_said(engine_file: Path, on_gpu: Any, caplog: pytest.LogCaptureFixture) -> None:
    cache_path(engine_file).mkdir()
    Predictor(engine_file, max_batch=1).close()
    assert "compiles its kernels again" in caplog.text
    assert "cannot be kept" in caplog.text


def test_an_engine_that_computes_something_else_is_refused(engine_file: Path, on_gpu: Any) -> None:
    on_gpu(change=lambda heatmaps: heatmaps[..., ::-1])
    with pytest.raises(EngineError, match="differs too much from the float32 model on this machine"):
        TensorRTEngine(engine_file)
    assert EngineInfo.read(engine_file).parity.scope == "graph"  # nothing is called measured


def test_a_report_that_cannot_be_kept_is_said_and_measured_again(
    engine_file: Path, on_gpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any, path: Path) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(EngineInfo, "write", refuse)
    assert TensorRTEngine(engine_file).info.parity.scope == "engine"
    assert "read-only" in caplog.text


def test_another_gpu(engine_file: Path, on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before TensorRT is looked for: on an H100 nobody should install TensorRT-RTX for this."""
    on_gpu(sm="sm90")

    def not_installed(flavour: str | None = None) -> None:
        raise MissingDependencyError("tensorrt-rtx is not installed")

    monkeypatch.setattr(tensorrt_api, "load", not_installed)
    with pytest.raises(EngineError) as raised:
        Predictor(engine_file)
    for word in ("sm86", "sm90", "edgepose build", "--precision fp16"):
        assert word in str(raised.value)
    assert "--flavour" not in str(raised.value)


@pytest.mark.parametrize(("mark", "words"), [(b"BAD!", "UNSUPPORTED_CC"), (b"NONE", "does not load")])
def test_an_engine_that_the_runtime_refuses(engine_file: Path, on_gpu: Any, mark: bytes, words: str) -> None:
    """The bytes are what the sidecar says, but the runtime does not take them."""
    import hashlib

    data = bytearray(engine_file.read_bytes())
    data[4:8] = mark
    engine_file.write_bytes(data)
    sidecar = sidecar_path(engine_file)
    description = json.loads(sidecar.read_text())
    description["engine_sha256"] = hashlib.sha256(data).hexdigest()
    sidecar.write_text(json.dumps(description))
    with pytest.raises(EngineError, match=words) as raised:
        Predictor(engine_file)
    assert "edgepose build" in str(raised.value)


def test_a_truncated_engine(engine_file: Path, on_gpu: Any) -> None:
    engine_file.write_bytes(engine_file.read_bytes()[:-100])
    with pytest.raises(EngineError, match="cut off"):
        Predictor(engine_file)


def test_devices(engine_file: Path, on_gpu: Any, cupy_on_cpu: Any) -> None:
    with pytest.raises(EngineError, match="runs on a GPU only"):
        Predictor(engine_file, device="cpu")
    with pytest.raises(EngineError, match="cuda:3 is none"):
        Predictor(engine_file, device="cuda:3")
    with Predictor(engine_file, device="cuda:0") as predictor:
        assert predictor.spec.name == "painter-udp"


def test_a_spec_of_ones_own(engine_file: Path, on_gpu: Any) -> None:
    with Predictor(engine_file, spec=painter_spec(name="mine", refinement="none")) as predictor:
        assert predictor.spec.name == "mine"
    with pytest.raises(ModelError, match="correct its input_size"):
        Predictor(engine_file, spec=painter_spec(heatmap_size=(48, 64)))


def test_the_spec_of_a_foreign_model_is_that_of_its_engine(engine_file: Path, on_gpu: Any) -> None:
    """The engine was adapted when it was built; the spec file that was given then may be given again."""
    foreign = painter_spec(color="bgr", layout="nhwc", scale=1 / 255, std=(1, 1, 1))
    engine = TensorRTEngine(engine_file, spec=foreign)
    assert engine.spec == foreign.canonical()
    assert engine.output_shape == (3, 32, 24)
    engine.close()
    with pytest.raises(ModelError, match=r"painter.engine is a pose model, .* as Predictor"):
        TensorRTEngine(engine_file, kind="detector")


def test_without_a_gpu(engine_file: Path, cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "gpu_here", lambda device=None: None)
    with pytest.raises(EngineError, match="edgepose doctor"):
        Predictor(engine_file)


def test_without_cupy(engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "gpu_here", lambda device=None: Gpu("NVIDIA Fake", "sm86"))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingDependencyError, match="CuPy"):
        Predictor(engine_file)
