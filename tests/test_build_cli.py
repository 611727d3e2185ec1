"""`edgepose build`, progress, and Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_builds import RTX, SPEC, build, files, needs_rtx, overflowing, painter
from painter import painter_spec, write_painter
from typer.testing import CliRunner

from edgepose import EngineError
from edgepose.cli import app
from edgepose.enginefile import EngineInfo, read_engine
from edgepose.parity import Reference

__all__ = ["overflowing", "painter"]  # fixtures
pytestmark = needs_rtx


# Progress and cancelling ------------------------------------------------------------------------------------


def test_progress_goes_forward_through_every_stage(painter: Path) -> None:
    seen: list[tuple[str, float]] = []
    build(painter, progress=lambda stage, fraction: seen.append((stage, fraction)))
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages[:4] == ["reading the model", "converting to fp16", "comparing on 3 crops", "parsing"]
    building = [fraction for _, fraction in seen[[stage for stage, _ in seen].index("parsing") + 1 :]]
    assert len(building) > 20
    assert building == sorted(building)
    assert building[-1] > 0.8
    assert all(0 <= fraction <= 1 for _, fraction in seen)


def test_an_exception_in_progress_cancels_the_build(painter: Path) -> None:
    class Enough(Exception):
        pass

    calls = []

    def progress(stage: str, fraction: float) -> None:
        if stage == "optimizing graph":
            calls.append(fraction)
            raise Enough

    with pytest.raises(Enough):
        build(painter, progress=progress)
    assert len(calls) == 1, "it is not called again"
    assert files(painter.parent) == ["painter.onnx"]
    build(painter)  # TensorRT is none the worse


def test_ctrl_c_cancels_the_build(painter: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def progress(stage: str, fraction: float) -> None:
        if stage == "optimizing graph":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(painter, progress=progress)
    assert signal.getsignal(signal.SIGINT) is before
    assert files(painter.parent) == ["painter.onnx"]


def test_a_write_that_fails_leaves_no_sidecar(painter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Reference, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        build(painter)
    with pytest.raises(EngineError, match="has no sidecar"):
        read_engine(painter.with_suffix(".engine"))


# The command ------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in ("build", *arguments, "--flavour", "tensorrt-rtx")])


def test_the_command_builds_and_prints_the_report(painter: Path) -> None:
    result = run(painter, "--min", 2, "--max", 8, "--opt-level", 0, "--target", "sm86", "--target", "sm89")
    assert result.exit_code == 0, result.output
    for words in (
        "painter.engine",
        "tensorrt-rtx",
        "sm86, sm89",
        "2 to 8, fastest at 4",
        "rendered garments",
        "median",
    ):
        assert words in result.output
    info = EngineInfo.read(painter.with_suffix(".engine"))
    assert (info.profile, info.targets, info.options.optimization_level) == ((2, 4, 8), ("sm86", "sm89"), 0)


@pytest.mark.parametrize(("given", "profile"), [
    ((), (1, 4, 16)), (("--max", 2), (1, 2, 2)), (("--opt", 32), (1, 32, 32)), (("--min", 8), (8, 8, 16)),
])  # fmt: skip
def test_batch_sizes_that_are_not_given_follow(painter: Path, given: tuple[object, ...], profile: Any) -> None:
    result = run(painter, *given)
    assert result.exit_code == 0, result.output
    assert EngineInfo.read(painter.with_suffix(".engine")).profile == profile


def test_the_rebuild_command_builds_the_same_engine(painter: Path, tmp_path: Path) -> None:
    options = replace(RTX, targets=("sm86",), optimization_level=2, aux_streams=1, workspace=1 << 28)
    engine = tmp_path / "a.engine"
    first = build(painter, engine, options=options, profile=(1, 2, 4)).info
    command = shlex.split(first.rebuild_command(engine))
    assert command[:2] == ["edgepose", "build"]
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, result.output
    second = EngineInfo.read(engine)
    assert (second.key, second.engine_sha256, second.options) == (first.key, first.engine_sha256, first.options)


def test_a_folder_goes_on_after_a_failure(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_painter(models / "a.onnx", SPEC)
    write_painter(models / "b.onnx", SPEC, store_spec=False)
    write_painter(models / "c.onnx", painter_spec("msra"))
    (models / "notes.txt").touch()
    result = run(models, "-o", tmp_path / "engines" / "today")
    assert result.exit_code == 1
    assert "carries no edgepose spec" in result.output
    assert [line for line in result.output.splitlines() if "failed" in line and "b.onnx" in line]
    engines = [name for name in files(tmp_path / "engines" / "today") if name.endswith(".engine")]
    assert engines == ["a.engine", "c.engine"]


def test_the_command_refuses_what_cannot_work(painter: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "other").mkdir()
    twin = write_painter(tmp_path / "other" / "painter.onnx", SPEC)
    for arguments, words in (
        ((empty,), "holds no .onnx files"),
        ((painter, twin, "-o", "x.engine"), "one file for 2 engines"),
        ((painter, twin, "-o", tmp_path / "out"), "several models are called painter"),
        ((painter, "--target", "sm90"), "not for sm90"),
        ((painter, "--photos", empty), "holds no photos"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert words in " ".join(result.output.split())


def test_force_on_the_command_line(overflowing: Path) -> None:
    assert run(overflowing).exit_code == 1
    result = run(overflowing, "--force")
    assert result.exit_code == 0, result.output
    assert "kept with --force" in result.output
