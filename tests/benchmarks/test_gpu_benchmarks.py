"""The benchmarks of a GPU without one: on the stand-in for CuPy, and PyTorch's ways on the CPU. Times mean nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from emulated_engine import EmulatedEngine
from painter import blobs, painter_spec, write_painter

from edgepose import EngineError, Predictor
from edgepose.benchmarks import gpu_cli, gpu_kernels, gpu_latency, gpu_throughput, gpu_timing, gpu_ways
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.equality import crop_distances
from edgepose.benchmarks.gpu_ways import GpuOptions
from edgepose.benchmarks.peers import gpu_engines
from edgepose.benchmarks.records import Record
from edgepose.errors import MissingDependencyError

SCENE = (
    blobs((320, 240), np.array([[120.0, 90.0], [160.5, 130.25], [140.0, 160.0]]), 12),
    np.array([[60, 40, 220, 210], [80, 50, 200, 200]], np.float32),
)


@pytest.fixture
def model(tmp_path: Path) -> BenchModel:
    spec = painter_spec()
    return BenchModel("painter", write_painter(tmp_path / "p.onnx", spec), spec, trained=True)


@pytest.fixture
def gpu(cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, with little to flush and to copy, engines that it can run, and a small scene."""
    monkeypatch.setattr(gpu_timing, "FLUSH_BYTES", 1 << 12)
    monkeypatch.setattr(gpu_timing, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(
        gpu_engines,
        "open_device_engine",
        lambda model, options: EmulatedEngine(model.path, max_batch=options.max_batch),
    )
    for module in (gpu_latency, gpu_throughput):
        monkeypatch.setattr(module, "scene", lambda w, h, count: (SCENE[0], np.resize(SCENE[1], (count, 4))))
    monkeypatch.setattr(gpu_throughput, "CALLS", 4)
    return cupy_on_cpu


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Those of GPU_WAYS that need no PyTorch on a GPU."""
    chosen = {name: way for name, way in gpu_ways.GPU_WAYS.items() if name.startswith(("edgepose", "same engine"))}
    monkeypatch.setattr(gpu_latency, "GPU_WAYS", chosen)
    monkeypatch.setattr(gpu_throughput, "WAYS", tuple(name for name in gpu_throughput.WAYS if name in chosen))
    return chosen


def latency(model: BenchModel, **options: Any) -> Record:
    return gpu_latency.run([model], boxes=(1, 2), frames=(), options=GpuOptions("fp32", 2), rounds=2, **options)


def test_latency_end_to_end_and_by_stage(gpu: Any, ways: Any, model: BenchModel) -> None:
    saved: list[Record] = []
    record = latency(model, save=saved.append)
    assert [note for note in record.notes if note.startswith(("failed", "left out"))] == []
    for count in (1, 2):
        for name in ways:
            assert record.value("runs", way=name, boxes=count, stage="total") == 10
        for stage in gpu_latency.STAGES:
            assert record.value("min", way="edgepose", boxes=count, stage=stage) > 0
        share = record.value("value", way="edgepose", boxes=count, stage="all but the network")
        assert 0 < share < 100
        assert record.value("value", way="same engine, CPU around it", boxes=count, stage="ratio") > 0
        for name in ways:
            # The same engine in float32; crops of "linear" round coordinates to 2**-32 px. Worst seen 1e-5 px
            assert record.value("worst", way=name, boxes=count, stage="landmark change") < 1e-4
    assert [len(one.rows) for one in saved] == sorted(len(one.rows) for one in saved)
    assert len(saved[-1].rows) == len(record.rows)
    assert record.device == "A GPU that runs on the CPU"


def test_a_way_that_fails_or_finds_other_landmarks_is_left_out(
    gpu: Any, ways: dict[str, Any], model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise EngineError("no memory")

    def not_installed(*_: Any) -> Any:
        raise MissingDependencyError("pip install something")

    class Elsewhere(gpu_engines.OnGpu):
        def __call__(self, frame: Any, boxes: Any) -> Any:
            keypoints, scores = super().__call__(frame, boxes)
            return keypoints + 3, scores

    class Breaks(gpu_engines.OnGpu):
        def __call__(self, frame: Any, boxes: Any) -> Any:
            if len(boxes) == 2:
                raise RuntimeError("illegal address")
            return super().__call__(frame, boxes)

    added = {"broken": broken, "absent": not_installed, "elsewhere": Elsewhere, "breaks": Breaks}
    monkeypatch.setattr(gpu_latency, "GPU_WAYS", {"edgepose": ways["edgepose"], **added})
    record = latency(model)
    notes = "\n".join(record.notes)
    assert "failed, painter: broken: EngineError: no memory" in notes
    assert "left out, painter: absent: pip install something" in notes
    assert "elsewhere is not timed" in notes
    assert "failed, painter, 1080p, 2 boxes: breaks: RuntimeError: illegal address" in notes
    assert {row.labels["way"] for row in record.find(stage="total", boxes=1)} == {"edgepose", "breaks"}
    assert {row.labels["way"] for row in record.find(stage="total", boxes=2)} == {"edgepose"}


def test_random_weights_are_not_judged(gpu: Any, ways: Any, model: BenchModel) -> None:
    random = BenchModel("painter", model.path, model.spec, trained=False)
    record = latency(random)
    assert record.find(stage="landmark change") == []
    assert sum("not judged" in note for note in record.notes) == 2  # places
    assert record.find(stage="total", way="edgepose")


def test_throughput_with_one_and_two_calls_under_way(gpu: Any, ways: Any, model: BenchModel) -> None:
    record = gpu_throughput.run([model], boxes=(2,), options=GpuOptions("fp32", 2), rounds=2)
    arrangements = {(row.labels["way"], row.labels["arrangement"]) for row in record.rows}
    assert arrangements == {
        *((name, gpu_throughput.SINGLE) for name in gpu_throughput.WAYS),
        ("edgepose", gpu_throughput.DOUBLE),
        ("edgepose, device frame", gpu_throughput.DOUBLE),
    }
    assert all(row.values["min"] > 0 for row in record.rows)


def test_two_calls_are_under_way_and_none_is_lost() -> None:
    under_way, most, done = 0, 0, 0

    class Pending:
        def results(self) -> None:
            nonlocal under_way, done
            under_way, done = under_way - 1, done + 1

    def submit(frames: Any, boxes: Any) -> Pending:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        return Pending()

    predictor = SimpleNamespace(submit=submit, stage=lambda frame: frame)
    gpu_throughput.two_under_way(SimpleNamespace(predictor=predictor, place=lambda frame: frame), None, None)()
    assert (most, under_way, done) == (2, 0, gpu_throughput.CALLS)


def test_kernels_equal_their_twins(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepose.benchmarks import kernel_cases

    monkeypatch.setitem(sys.modules, "edgepose.benchmarks.peers.gpu_torch_kernels", None)  # as without PyTorch
    for module in (gpu_kernels, kernel_cases):
        monkeypatch.setattr(module, "CROPS", 2)
        monkeypatch.setattr(module, "FRAME", (320, 240))
        monkeypatch.setattr(module, "INPUT_SIZE", (24, 32))  # small, so that "area" halves the frame
        monkeypatch.setattr(module, "DETECTOR_SIZE", (128, 128))
    monkeypatch.setattr(gpu_kernels, "CHANNELS", (3,))
    monkeypatch.setattr(gpu_kernels, "peaks", lambda channels: kernel_cases.peaks(channels, crops=2))
    monkeypatch.setattr(gpu_kernels, "detector_rows", lambda: kernel_cases.detector_rows(400, 5) * ROW_SCALE)
    saved: list[Record] = []
    record = gpu_kernels.run(quick=True, rounds=1, save=saved.append)
    assert [note for note in record.notes if "failed" in note or "not timed" in note] == []
    assert any(note.startswith("left out, PyTorch's ways") for note in record.notes)
    timed = {row.labels["kernel"] for row in record.find(figure="time", way="edgepose")}
    assert timed == {"crop_warp", "decode_heatmaps", "letterbox", "select_detections"}
    for row in record.find(figure="time", way="edgepose"):
        assert row.values["times_floor"] > 0
        assert row.values["bytes"] > 1000
    assert any("halved once" in str(row.labels["case"]) for row in record.rows)
    assert len(saved) > 5


ROW_SCALE = np.array([0.2, 0.2, 0.2, 0.2, 1, 1], np.float32)  # from 640x640 to 128x128


def test_nvidia_smi(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "not there" in gpu_timing.gpu_facts()["nvidia_smi"] or gpu_timing.gpu_facts()["driver"]
    program = tmp_path / "nvidia-smi"
    answers = {"driver_version": "580.65.06", "clocks.sm": "1980", "temperature.gpu": "[N/A]"}
    answers["clocks_throttle_reasons.applications_clocks_setting"] = "Not Active"
    lines = "\n".join(f'  --query-gpu={query}) echo "{value}";;' for query, value in answers.items())
    program.write_text(f'#!/bin/sh\ncase "$1" in\n{lines}\n  *) echo "not a valid field"; exit 2;;\nesac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    facts = gpu_timing.gpu_facts()
    assert facts["driver"] == "580.65.06"
    assert facts["sm_mhz"] == 1980
    assert facts["temperature_c"] == "[N/A]"
    assert facts["clocks_held_by_setting"] is False
    assert facts["power_limit_w"] == "not told"
    program.write_text(f"#!/bin/sh\necho {', '.join('7' for _ in gpu_timing.QUERIES)}\n")
    assert gpu_timing.gpu_facts()["sm_mhz_max"] == 7


def test_a_failed_part_is_an_exit_code_and_costs_nothing_else(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*, save: Callable[[Record], Any], progress: Any, quick: bool) -> Record:
        record = Record("kernels", "a GPU", {}, (), ("failed, something: RuntimeError: why",))
        save(record)
        return record

    monkeypatch.setattr(gpu_kernels, "run", run)
    monkeypatch.setattr("edgepose.benchmarks.kernels.print_table", lambda record, console: None)
    monkeypatch.setattr(gpu_cli, "keep", lambda record, output: None)
    with pytest.raises(typer.Exit) as stopped:
        gpu_cli.run_on_gpu("kernels", tmp_path, quick=True)
    assert stopped.value.exit_code == 1
    assert (tmp_path / "kernels--a-gpu.json").exists()


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingDependencyError, match="needs CuPy"):
        gpu_cli.check_gpu()


# PyTorch's ways ---------------------------------------------------------------------------------------


@pytest.fixture
def torch_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of PyTorch's ways, its GPU the CPU; a graph is a function that runs again into the same tensor."""
    torch = pytest.importorskip("torch")
    from edgepose.benchmarks.peers import gpu_torch

    def graph_of(function: Callable[[], Any]) -> tuple[Any, Any]:
        result = function().clone()

        def replay() -> None:
            with torch.no_grad():
                result.copy_(function())

        return SimpleNamespace(replay=replay), result

    monkeypatch.setattr(gpu_torch, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_torch, "pinned", lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    monkeypatch.setattr(gpu_torch, "wait", lambda: None)
    monkeypatch.setattr(gpu_torch, "graph_of", graph_of)
    return gpu_torch


@pytest.mark.parametrize("codec", ["udp", "msra"])
@pytest.mark.parametrize("way", ["eager", "graph", "everything"])
def test_pytorchs_ways_find_the_same_landmarks(torch_on_cpu: Any, tmp_path: Path, codec: str, way: str) -> None:
    spec = painter_spec(codec)
    path = write_painter(tmp_path / "p.onnx", spec)
    model, options = BenchModel("painter", path, spec, trained=True), GpuOptions("fp32", 4)
    with ExitStack() as opened:
        ours = opened.enter_context(Predictor(path, threads=1))
        if way == "everything":
            theirs = torch_on_cpu.TorchEverything(model, options)
        else:
            theirs = torch_on_cpu.TorchNetwork(model, options, mode=way)
        opened.callback(theirs.close)
        for boxes in (SCENE[1], SCENE[1][:1], SCENE[1][::-1].copy()):
            expected = ours.predict(SCENE[0], boxes)
            keypoints, scores = theirs(SCENE[0], boxes)
            apart = crop_distances(keypoints, expected.keypoints, boxes, model)
            # Whole levels of warpAffine against unrounded ones: 1/2 level of 255 on a slope of a few levels a px.
            # Worst seen 0.006 px of the crop; grid_sample does not round levels, float32 positions cost 1e-5 px
            assert apart.max() < (1e-3 if way == "everything" else 0.05)
            np.testing.assert_allclose(scores, expected.scores, atol=0.005)  # levels again; worst seen 0.0015


@pytest.mark.parametrize("name", ["garment-landmarks", "garment-landmarks-fast"])
def test_pytorch_runs_the_bundled_models(name: str) -> None:
    torch = pytest.importorskip("torch")
    import onnxruntime

    from edgepose.benchmarks.torch_engine import OnnxNetwork
    from edgepose.models import find_model

    path = find_model(name)
    session = onnxruntime.InferenceSession(str(path))
    (source,) = session.get_inputs()
    images = np.random.default_rng(0).normal(size=(2, *source.shape[1:])).astype(np.float32)
    (expected,) = session.run(None, {source.name: images})
    with torch.inference_mode():
        found = OnnxNetwork(path).eval()(torch.from_numpy(images)).numpy()
    # Heatmaps up to 0.6 in float32, summed in another order: worst seen 1.1e-6
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pytorchs_kernels_equal_the_twins() -> None:
    torch = pytest.importorskip("torch")
    from edgepose import geometry
    from edgepose.benchmarks.kernel_cases import COLOURS, peaks
    from edgepose.benchmarks.peers import gpu_torch_kernels as theirs
    from edgepose.kernels import reference

    frame, boxes = SCENE
    affines = geometry.crop_affines(boxes, (96, 128))
    inverses = torch.from_numpy(geometry.invert_affines(affines).astype(np.float32))
    colours = torch.tensor([COLOURS["mean"], COLOURS["std"]])
    crops = theirs.grid_crops(torch.from_numpy(frame), inverses, (96, 128), colours).numpy()
    expected = reference.crop_warp(frame, affines, (96, 128), sampling="linear", **COLOURS)
    # float32 positions of up to 320 px on slopes of a few levels a px; worst seen 5e-6
    np.testing.assert_allclose(crops, expected, atol=1e-4)
    maps = peaks(6, crops=2)
    maps[0, 0], maps[0, 1], maps[0, 2] = -1, 0, 0
    maps[0, 1, 0, 0] = maps[0, 2, 63, 47] = 1  # no peak; peaks in corners
    for refinement in ("none", "shift", "dark", "dark_udp"):
        cells, scores = theirs.decode_maps(
            torch.from_numpy(maps), refinement, theirs.blur_matrices(11, (48, 64), "cpu")
        )
        locations, values = reference.decode_heatmaps(maps, refinement=refinement)
        # The blur's order of sums; worst seen 4e-6 cells
        np.testing.assert_allclose(cells.numpy(), locations, atol=1e-4)
        np.testing.assert_array_equal(scores.numpy(), values)


@pytest.mark.parametrize("way", ["onnxruntime CUDA, batched", "rtmlib, CUDA"])
def test_onnxruntime_without_cuda_is_left_out(model: BenchModel, way: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    notes: list[str] = []
    with ExitStack() as opened:
        assert gpu_latency.open_ways(model, GpuOptions(), notes, opened, [way]) == {}
    assert notes[0].startswith(f"left out, painter: {way}: ")
    assert "pip install" in notes[0]
