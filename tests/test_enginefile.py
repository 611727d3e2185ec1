"""The sidecar of an engine: what it holds, and every way in which an engine can be the wrong one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from painter import painter_spec

from edgepose import BuildOptions, EngineError, InputError
from edgepose.enginefile import EngineInfo, TensorInfo, check_runs_here, platform_here, read_engine, sidecar_path
from edgepose.parity import ParityReport

ENGINE = bytes(range(256)) * 40


def report(**changes: Any) -> ParityReport:
    values: dict[str, Any] = {
        **{"scope": "graph", "source": "drawn shapes", "crops": 24, "landmarks": 190, "px_median": 0.002},
        **{"px_p99": 0.02, "px_max": 1.5, "jumps": 3, "ties": 3, "pck_05": 1.0, "pck_20": 1.0},
        **{"score_error": 8e-4, "heatmap_error": None, "not_finite": 0, "convolutions": {"float16": 57}},
    }
    return ParityReport(**{**values, **changes})


def engine_info(**changes: Any) -> EngineInfo:
    values: dict[str, Any] = {
        "spec": painter_spec(),
        "input": TensorInfo("images", "float16", (-1, 3, 128, 96)),
        "output": TensorInfo("heatmaps", "float16", (-1, 3, 32, 24)),
        "profile": (1, 4, 16),
        "precision": "fp16",
        "flavour": "tensorrt",
        "version": "11.4.0.106",
        "platform": platform_here(),
        "targets": ("sm90",),
        "gpu": "NVIDIA H100 80GB HBM3",
        "onnx": "model.onnx",
        "onnx_sha256": "0" * 64,
        "spec_given": False,
        "engine_bytes": len(ENGINE),
        "engine_sha256": hashlib.sha256(ENGINE).hexdigest(),
        "parity": report(),
        "built": "2026-01-31T12:00:00+00:00",
        "seconds": 12.5,
        "edgepose": "0.1.0",
    }
    return EngineInfo(**{**values, **changes})


def write(folder: Path, info: EngineInfo) -> Path:
    engine = folder / "model.engine"
    engine.write_bytes(ENGINE)
    info.write(engine)
    return engine


def change(engine: Path, **changes: Any) -> None:
    """Change the sidecar's text; None takes a key out."""
    path = sidecar_path(engine)
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def test_a_sidecar_comes_back_as_it_was(tmp_path: Path) -> None:
    options = BuildOptions("tensorrt-rtx", ("sm75", "sm86"), 5, 3, 1024, True)
    for info in (engine_info(), engine_info(options=options, gpu="", parity=report(heatmap_error=1e-3))):
        engine = write(tmp_path, info)
        assert EngineInfo.read(engine) == info
        assert read_engine(str(engine)) == (info, ENGINE)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["model.engine", "model.engine.json"]


def test_the_key_stands_for_all_that_must_agree() -> None:
    key = engine_info().key
    assert len(key) == 16
    assert key == engine_info(seconds=1.0, built="later", parity=report(jumps=1)).key
    others = [
        engine_info(onnx_sha256="1" * 64),
        engine_info(flavour="tensorrt-rtx"),
        engine_info(version="11.4.0.107"),
        engine_info(platform="linux-aarch64"),
        engine_info(targets=("sm87",)),
        engine_info(gpu="NVIDIA H100 PCIe"),
        engine_info(profile=(1, 4, 8)),
        engine_info(precision="fp32"),
    ]
    assert len({key, *(info.key for info in others)}) == 1 + len(others)


# What cannot be read -----------------------------------------------------------------------------


def test_no_engine_and_no_sidecar(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    with pytest.raises(EngineError, match=r"there is no engine file .*model.engine: build it with `edgepose build"):
        read_engine(engine)
    engine.write_bytes(ENGINE)
    with pytest.raises(EngineError, match=r"has no sidecar model.engine.json: .*edgepose build model.onnx") as caught:
        read_engine(engine)
    assert "all three files: model.engine, model.engine.json, model.engine.parity.npz" in str(caught.value)
    assert "rename the other two alike" in str(caught.value)


# What can be asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value", "words"), [
    ("optimization_level", True, "optimization_level must be an integer from 0 to 5, or None, got True"),
    ("optimization_level", "3", "got '3'"),
    ("optimization_level", 1.5, "got 1.5"),
    ("optimization_level", 6, "from 0 to 5, or None, got 6"),
    ("aux_streams", -1, "aux_streams must be an integer of at least 0, or None, got -1"),
    ("workspace_mib", 0, "workspace_mib must be an integer of at least 1, or None, got 0"),
    ("targets", "sm86", "targets must be a sequence of names, for instance .*, got 'sm86'"),
    ("targets", (86,), r"got \(86,\)"),
    ("flavour", "trt", "flavour must be one of tensorrt, tensorrt-rtx, or None, got 'trt'"),
    ("flavour", ["tensorrt"], "flavour must be one of"),
    ("force", 1, "force must be True or False, got 1"),
])  # fmt: skip
def test_options_that_are_not_usable(name: str, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        BuildOptions(**{name: value})
    text = json.loads(engine_info().to_json())
    text["options"][name] = value
    with pytest.raises(EngineError):
        EngineInfo.from_json(json.dumps(text))


def test_options_come_back_as_they_were() -> None:
    options = BuildOptions(targets=["sm75", "sm86"])  # type: ignore[arg-type]
    assert options.targets == ("sm75", "sm86")
    assert EngineInfo.from_json(engine_info(options=options).to_json()).options == options


@pytest.mark.parametrize(("data", "words"), [
    (b"", "cut off: it has 0 bytes, built were 10240"),
    (ENGINE[:-1], "cut off: it has 10239 bytes"),
    (ENGINE + b"x", "another file"),
    (b"x" + ENGINE[1:], "is damaged, or not the engine that model.engine.json describes"),
])  # fmt: skip
def test_an_engine_that_is_not_the_one_described(tmp_path: Path, data: bytes, words: str) -> None:
    engine = write(tmp_path, engine_info())
    engine.write_bytes(data)
    with pytest.raises(EngineError, match=words) as caught:
        read_engine(engine)
    assert f"edgepose build model.onnx -o {engine} --precision fp16 --min-batch 1 --opt-batch 4 --max-batch 16" in str(
        caught.value
    )


@pytest.mark.parametrize(("text", "words"), [
    ("", "is not JSON"),
    ("{", "is not JSON"),
    ("[]", "not the sidecar of an edgepose engine"),
    ('{"schema": 1, "name": "a spec"}', "not the sidecar of an edgepose engine"),
    ('{"schema": 2, "engine_sha256": "0"}', "has schema 2, and this edgepose reads schema 1: upgrade edgepose"),
    ('{"schema": 1, "engine_sha256": "0"}', r"keys \['built'.*are missing"),
])  # fmt: skip
def test_a_file_that_is_not_a_sidecar(tmp_path: Path, text: str, words: str) -> None:
    engine = write(tmp_path, engine_info())
    sidecar_path(engine).write_text(text)
    with pytest.raises(EngineError, match=words):
        read_engine(engine)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    engine = write(tmp_path, engine_info())
    sidecar_path(engine).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="cannot be read"):
        read_engine(engine)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("colour", "red", r"unknown keys \['colour'\]"),
    ("profile", None, r"keys \['profile'\] are missing"),
    ("profile", [1, 4], "profile: expected 3 values"),
    ("profile", [1, 4, 16.0], "profile: expected a list of int"),
    ("precision", "int8", "precision: expected one of 'fp32', 'fp16'"),
    ("flavour", "onnx", "flavour: expected one of"),
    ("engine_bytes", True, "engine_bytes: expected int"),
    ("gpu", 5, "gpu: expected str"),
    ("input", {"name": "images", "dtype": "float64", "shape": [1]}, "input: dtype: expected one of"),
    ("input", "images", "input: expected an object"),
    ("spec", {"name": "x"}, "spec: keys .* are missing"),
    ("options", {}, "options: keys .* are missing"),
    ("parity", {}, "parity: keys .* are missing"),
])  # fmt: skip
def test_reading_is_strict(tmp_path: Path, name: str, value: Any, words: str) -> None:
    engine = write(tmp_path, engine_info())
    change(engine, **{name: value})
    with pytest.raises(EngineError, match=words) as caught:
        read_engine(engine)
    assert "model.engine.json" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [
    ("scope", "gpu"), ("jumps", 1.5), ("px_max", "1"), ("convolutions", {"float16": 1.0}), ("convolutions", []),
])  # fmt: skip
def test_a_parity_report_is_read_as_strictly(name: str, value: Any) -> None:
    text = json.loads(engine_info().to_json())
    text["parity"][name] = value
    with pytest.raises(EngineError, match=f"parity: {name}: expected"):
        EngineInfo.from_json(json.dumps(text))


def test_a_sidecar_that_was_changed_by_hand(tmp_path: Path) -> None:
    engine = write(tmp_path, engine_info())
    change(engine, targets=["sm87"], gpu="Orin")
    with pytest.raises(EngineError, match="changed by hand or belongs to another engine"):
        read_engine(engine)


# Where it runs ------------------------------------------------------------------------------------

H100 = {"flavour": "tensorrt", "version": "11.4.0.106", "sm": "sm90", "gpu_name": "NVIDIA H100 80GB HBM3"}


def test_an_engine_runs_where_it_was_built() -> None:
    check_runs_here(engine_info(), "model.engine", **H100)


@pytest.mark.parametrize(("here", "words"), [
    ({"version": "11.4.0.107"}, "built for tensorrt 11.4.0.106 and does not run on tensorrt 11.4.0.107."),
    ({"gpu_name": "NVIDIA H100 PCIe"}, "built for NVIDIA H100 80GB HBM3 (sm90) and does not run on NVIDIA H100 PCIe"),
    ({"sm": "sm87", "gpu_name": "Orin"}, "does not run on Orin (sm87)."),
    ({"flavour": "tensorrt-rtx", "version": "1.7"}, "does not run on tensorrt-rtx 1.7."),
])  # fmt: skip
def test_an_engine_does_not_run_elsewhere(here: dict[str, str], words: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_runs_here(engine_info(), "model.engine", **{**H100, **here})
    assert words in str(caught.value)
    batches = "--min-batch 1 --opt-batch 4 --max-batch 16"
    command = f"edgepose build model.onnx -o model.engine --precision fp16 {batches} --flavour"
    assert f"{command} {here.get('flavour', 'tensorrt')}" in str(caught.value)


def test_an_engine_of_another_processor() -> None:
    with pytest.raises(EngineError, match=f"built for plan9-vax and does not run on {platform_here()}"):
        check_runs_here(engine_info(platform="plan9-vax"), "model.engine", **H100)


def test_an_rtx_engine_runs_on_all_of_its_targets() -> None:
    options = BuildOptions(targets=("sm86", "sm89"))
    rtx = engine_info(flavour="tensorrt-rtx", version="1.7.1.116", gpu="", targets=("sm86", "sm89"), options=options)
    here = {"flavour": "tensorrt-rtx", "version": "1.7.1.116", "gpu_name": "any"}
    for sm in ("sm86", "sm89"):
        check_runs_here(rtx, "model.engine", **here, sm=sm)
    with pytest.raises(EngineError, match=r"built for sm86, sm89 and does not run on any \(sm120\)") as caught:
        check_runs_here(rtx, "model.engine", **here, sm="sm120")
    assert "--target" not in str(caught.value)  # the old targets would fail again


def test_the_rebuild_command_says_all_that_was_chosen(tmp_path: Path) -> None:
    options = BuildOptions(None, ("sm75",), 5, 2, 256, True)
    info = engine_info(options=options, spec_given=True, onnx="my model.onnx", flavour="tensorrt-rtx")
    command = info.rebuild_command(tmp_path / "x.engine")
    assert command.startswith(f"edgepose build 'my model.onnx' -o {tmp_path / 'x.engine'} --precision fp16")
    rest = "--opt-level 5 --aux-streams 2 --workspace 256 --target sm75 --flavour tensorrt-rtx --spec spec.json --force"
    assert command.endswith(rest)
    (tmp_path / "my model.onnx").touch()  # where it lies beside the engine, its path
    assert f"edgepose build '{tmp_path / 'my model.onnx'}'" in info.rebuild_command(tmp_path / "x.engine")


def test_a_failed_write_leaves_the_old_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = write(tmp_path, engine_info())
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        replace(engine_info(), seconds=1.0).write(engine)
    assert EngineInfo.read(engine) == engine_info()
    assert len(list(tmp_path.iterdir())) == 2
