"""Building engines with TensorRT-RTX, which needs no GPU for it: what is written, options, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from engine_builds import RTX, SPEC, build, files, needs_rtx, overflowing, painter, pictures
from painter import painter_spec, write_painter

import edgepose
from edgepose import BuildOptions, EngineError, InputError, build_engine, build_trt, bundled_models
from edgepose.build import _targets
from edgepose.crops import Crops
from edgepose.enginefile import EngineInfo, read_engine
from edgepose.parity import Reference, complete
from edgepose.tensorrt_api import Gpu, load

__all__ = ["overflowing", "painter"]  # fixtures
pytestmark = needs_rtx

TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")


# What a build writes --------------------------------------------------------------------------------


def test_an_engine_its_sidecar_and_its_crops(painter: Path) -> None:
    built = build(painter)
    assert built.path == painter.with_suffix(".engine")
    assert files(painter.parent) == [
        "painter.engine",
        "painter.engine.json",
        "painter.engine.parity.npz",
        "painter.onnx",
    ]
    info, data = read_engine(built.path)
    assert info == built.info
    assert len(data) == info.engine_bytes > 10_000
    assert info.spec == SPEC
    assert (info.input.name, info.input.dtype, info.input.shape) == ("images", "float16", (-1, 3, 128, 96))
    assert (info.output.name, info.output.dtype, info.output.shape) == ("heatmaps", "float16", (-1, 3, 32, 24))
    assert (info.profile, info.precision, info.flavour) == ((1, 4, 16), "fp16", "tensorrt-rtx")
    assert info.version == load("tensorrt-rtx").version
    assert (info.targets, info.gpu, info.onnx, info.spec_given) == (TARGETS, "", "painter.onnx", False)
    assert (info.options, info.edgepose) == (RTX, edgepose.__version__)
    report = info.parity
    assert (report.scope, report.source, report.crops, report.landmarks) == ("graph", "blobs", 3, 9)
    assert 0 < report.heatmap_error < 1e-3  # one rounding of values up to 1: 5e-4
    assert report.convolutions == {}


def test_a_build_is_repeatable(painter: Path) -> None:
    first = build(painter).info
    second = build(painter).info
    assert (first.key, first.engine_sha256) == (second.key, second.engine_sha256)


def test_float32_engines_take_and_give_float32(painter: Path) -> None:
    info = build(painter, precision="fp32").info
    assert (info.input.dtype, info.output.dtype, info.precision) == ("float32", "float32", "fp32")
    assert (info.parity.px_max, info.parity.heatmap_error) == (0, 0)


def test_a_half_model_is_compared_with_its_float32_form(tmp_path: Path) -> None:
    model = write_painter(tmp_path / "half.onnx", SPEC, fp16=True)
    half, full = (build(model, precision=precision).info for precision in ("fp16", "fp32"))
    assert (half.input.dtype, full.input.dtype) == ("float16", "float32")
    assert half.parity.heatmap_error > 0


def test_output_may_be_a_file_or_a_folder(painter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    assert build(painter, folder).path == folder / "painter.engine"
    assert build(painter, folder / "other.plan").path == folder / "other.plan"
    assert "other.plan.json" in files(folder)
    for output in (folder / "engine.onnx", tmp_path / "missing"):
        with pytest.raises(InputError, match=r"must be an .engine file or a folder that exists"):
            build(painter, output)
    with pytest.raises(InputError, match="create it first"):
        build(painter, tmp_path / "missing" / "x.engine")


@pytest.mark.skipif("garment-landmarks" not in bundled_models(), reason="the bundled model is not in this checkout")
def test_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    built = build_engine("garment-landmarks", options=RTX)
    assert built.path == tmp_path / "garment-landmarks.engine"
    assert built.info.onnx == "garment-landmarks"
    assert built.info.parity.convolutions == {"float16": 75}
    assert built.info.parity.landmarks > 150
    assert built.info.parity.px_p99 < 0.35  # seen: 0.068, see test_parity.py
    assert built.info.engine_bytes < 13e6  # its weights in float16 are 7.5 MB
    assert built.info.rebuild_command(Path("x.engine")).startswith("edgepose build garment-landmarks -o x.engine")


def test_the_report_can_be_completed_from_what_was_written(painter: Path) -> None:
    built = build(painter)
    parity_file = painter.with_name("painter.engine.parity.npz")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(painter), providers=["CPUExecutionProvider"])
    done = complete(built.info, parity_file, lambda images: session.run(None, {"images": images})[0])
    assert (done.parity.scope, done.parity.px_max, done.parity.jumps) == ("engine", 0, 0)
    done.write(built.path)
    assert EngineInfo.read(built.path).parity.scope == "engine"
    assert len(Reference.read(parity_file, SPEC).crops.images) == 3


# Batches, targets, options ---------------------------------------------------------------------------


def test_lists_become_tuples_and_the_sidecar_says_the_same(painter: Path) -> None:
    options = BuildOptions(flavour="tensorrt-rtx", targets=["sm86"], optimization_level=1)  # type: ignore[arg-type]
    built = build(painter, options=options, profile=[1, 2, 4])
    assert built.info.profile == (1, 2, 4)
    assert built.info == EngineInfo.read(built.path)


def test_a_fixed_batch_gives_the_profile(tmp_path: Path) -> None:
    model = write_painter(tmp_path / "four.onnx", SPEC, batch=4)
    info = build(model).info
    assert info.profile == (4, 4, 4)
    assert info.input.shape == (-1, 3, 128, 96)
    with pytest.raises(InputError, match="takes batches of 4 only"):
        build(model, profile=(1, 2, 4))


def test_sizes_that_the_graph_leaves_open_are_the_specs(tmp_path: Path) -> None:
    for codec in ("udp", "msra"):
        model = write_painter(tmp_path / f"{codec}.onnx", painter_spec(codec), symbolic=True)
        info = build(model, profile=(1, 1, 2)).info
        assert (info.input.shape, info.output.shape) == ((-1, 3, 128, 96), (-1, 3, 32, 24))


@pytest.mark.parametrize("profile", [(0, 1, 2), (2, 1, 4), (1, 4), (1, 2.0, 4), (4, 4, 2), 4, "124", (True, 2, 4), ()])
def test_a_profile_that_is_not_one(painter: Path, profile: Any) -> None:
    with pytest.raises(InputError, match="1 <= min <= opt <= max"):
        build(painter, profile=profile)


def test_targets(painter: Path) -> None:
    info = build(painter, options=replace(RTX, targets=("SM86", "sm75", "sm86"))).info
    assert info.targets == ("sm86", "sm75")
    with pytest.raises(InputError, match=r"builds for sm75, .*, not for sm90; other GPUs need full TensorRT"):
        build(painter, options=replace(RTX, targets=("sm90", "sm86")))


def test_targets_follow_the_gpu_that_is_here() -> None:
    rtx = load("tensorrt-rtx")
    full = replace(rtx, name="tensorrt", version="11.4")
    assert _targets(rtx, None, RTX) == TARGETS
    assert _targets(rtx, Gpu("NVIDIA GeForce RTX 4090", "sm89"), RTX) == TARGETS
    assert _targets(rtx, Gpu("Tesla T4", "sm75"), RTX) == ("sm75", *TARGETS)
    h100 = Gpu("NVIDIA H100 80GB HBM3", "sm90")
    with pytest.raises(EngineError, match=r"does not run on NVIDIA H100 80GB HBM3 \(sm90\), only on .*full TensorRT"):
        _targets(rtx, h100, RTX)
    assert _targets(rtx, h100, replace(RTX, targets=("sm86",))) == ("sm86",)
    assert _targets(full, h100, BuildOptions()) == ("sm90",)
    with pytest.raises(InputError, match="targets are for tensorrt-rtx"):
        _targets(full, h100, BuildOptions(targets=("sm90",)))
    with pytest.raises(EngineError, match="there is no usable GPU here"):
        _targets(full, None, BuildOptions())


def test_options_reach_the_builder(painter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []
    configure = build_trt._configure
    monkeypatch.setattr(build_trt, "_configure", lambda *args: configs.append(configure(*args)) or configs[-1])
    trt = load("tensorrt-rtx").module
    options = replace(RTX, optimization_level=1, aux_streams=2, workspace_mib=256, targets=("sm86",))
    build(painter, options=options)
    build(painter)
    chosen, default = configs
    assert (chosen.builder_optimization_level, chosen.max_aux_streams) == (1, 2)
    assert chosen.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert chosen.num_compute_capabilities == 1
    assert chosen.get_compute_capability(0) == trt.ComputeCapability.SM86
    assert default.builder_optimization_level == 3
    assert default.num_compute_capabilities == len(TARGETS)
    assert not default.get_flag(trt.BuilderFlag.TF32)
    assert default.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert default.num_optimization_profiles == 1


# Refusal ---------------------------------------------------------------------------------------------------


def test_an_engine_that_differs_too_much_is_refused_and_nothing_is_left(overflowing: Path) -> None:
    with pytest.raises(EngineError) as caught:
        build(overflowing)
    for words in (
        "painter.onnx in fp16 differs too much",
        "3 blobs",
        "are NaN or infinite",
        "Nothing was built",
    ):
        assert words in str(caught.value)
    assert files(overflowing.parent) == ["painter.onnx"]
    assert build(overflowing, precision="fp32").info.parity.problems() == ()


def test_force_keeps_it_and_says_so(overflowing: Path) -> None:
    info = build(overflowing, options=replace(RTX, force=True)).info
    assert info.parity.problems()
    assert info.options.force
    assert info.rebuild_command(Path("x.engine")).endswith("--force")


def test_crops_in_which_the_model_finds_nothing_are_no_proof(painter: Path) -> None:
    black = Crops(np.zeros((2, 128, 96, 3), np.uint8), "pictures of the night")
    with pytest.raises(EngineError, match="2 pictures of the night: the float32 model finds no landmark"):
        build(painter, crops=black)


@pytest.mark.skipif("garment-landmarks" not in bundled_models(), reason="the bundled model is not in this checkout")
def test_the_bundled_models_path_is_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundled_models()["garment-landmarks"]
    monkeypatch.chdir(path.parent)
    for model in (path, str(path), path.name):
        built = build(Path(model), tmp_path, crops=lambda spec: Crops.drawn(spec, 2))
        assert built.info.onnx == "garment-landmarks"


def test_a_photo_or_several_by_path(painter: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), cv2.resize(pictures(SPEC).images[0], (300, 400)))
    for paths, count in (([tmp_path / "a.png", str(tmp_path / "c.png")], 2), (str(tmp_path / "b.png"), 1)):
        report = build(painter, crops=paths).info.parity
        assert (report.source, report.crops) == ("photos", count)


def test_photos_by_path(painter: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.png"), cv2.resize(pictures(SPEC).images[0], (300, 400)))
    report = build(painter, crops=photos).info.parity
    assert (report.source, report.crops) == ("photos", 1)


def test_a_sidecar_is_json_that_people_can_read(painter: Path) -> None:
    text = build(painter).path.with_name("painter.engine.json").read_text()
    assert json.loads(text)["schema"] == 1
    assert len(text.splitlines()) == 24  # a line for each field
