"""`edgepose build`, progress, and Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from engine_builds import RTX, SPEC, build, files, needs_rtx, overflowing, painter, pictures
from painter import painter_spec, write_painter
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.enginefile import EngineInfo

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


# The command ------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in ("build", *arguments, "--flavour", "tensorrt-rtx")])


def test_the_command_builds_and_prints_the_report(painter: Path) -> None:
    result = run(painter, "--min-batch", 2, "--max-batch", 8, "--opt-level", 0, "--target", "sm86", "--target", "sm89")
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
    ((), (1, 4, 16)), (("--max-batch", 2), (1, 2, 2)), (("--opt-batch", 32), (1, 32, 32)),
    (("--min-batch", 8), (8, 8, 16)),
])  # fmt: skip
def test_batch_sizes_that_are_not_given_follow(painter: Path, given: tuple[object, ...], profile: Any) -> None:
    result = run(painter, *given)
    assert result.exit_code == 0, result.output
    assert EngineInfo.read(painter.with_suffix(".engine")).profile == profile


def test_the_rebuild_command_builds_the_same_engine(painter: Path, tmp_path: Path) -> None:
    options = replace(RTX, targets=("sm86",), optimization_level=2, aux_streams=1, workspace_mib=256)
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
        ((painter, twin, "-o", empty), "several models are called painter"),
        ((painter, "--target", "sm90"), "not for sm90"),
        ((painter, "--photos", empty), "holds no photos"),
        ((painter, "-o", tmp_path / "x.bin"), "must be an .engine file or a folder, got"),
        ((painter, "-o", tmp_path / "new.onnx"), "an engine's name ends in .engine, .plan, .trt"),
        ((painter, "--min-batch", 8, "--max-batch", 4), "--min-batch 8 is larger than --max-batch 4"),
        ((painter, "--opt-batch", 8, "--max-batch", 4), "--opt-batch 8 is larger than --max-batch 4"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert words in " ".join(result.output.split())
    assert files(tmp_path) == ["empty", "other", "painter.onnx"], "nothing is made"


def test_force_on_the_command_line(overflowing: Path) -> None:
    assert run(overflowing).exit_code == 1
    result = run(overflowing, "--force")
    assert result.exit_code == 0, result.output
    assert "kept with --force" in result.output


def test_every_option_says_what_it_does_and_what_it_is_by_default() -> None:
    result = CliRunner().invoke(app, ["build", "--help"], env={"COLUMNS": "300"})
    lines = {line.split()[1]: line for line in result.output.splitlines() if line.startswith("\u2502 --")}
    for option, words in (
        ("--output", "(default: beside the model; a bundled model's engine goes to the current folder)"),
        ("--precision", "[default: fp16]"),
        ("--min-batch", "(default: 1)"),
        ("--opt-batch", "(default: 4)"),
        ("--max-batch", "(default: 16)"),
        ("--opt-level", "(default: TensorRT's, 3)"),
        ("--aux-streams", "(default: TensorRT decides)"),
        ("--workspace", "MiB. (default: all that the GPU has)"),
        ("--target", "(default: sm80 and later)"),
        ("--photos", "the first 100 are taken, or a file. (default: 24 rendered garments)"),
        ("--spec", "(default: the model's own spec)"),
        ("--force", "Keep an engine that differs too much."),
        ("--flavour", "(default: full TensorRT if it is installed, else TensorRT-RTX)"),
    ):
        assert words in lines.pop(option)
    assert lines.keys() == {"--help"}, "an option that this test does not know"


def test_nothing_is_cut_in_a_narrow_terminal(tmp_path: Path) -> None:
    models = tmp_path / "a folder with a name that takes more than a line of a narrow terminal"
    models.mkdir()
    for name in ("garments_with_sleeves_resnet50.onnx", "b.onnx"):
        write_painter(models / name, SPEC, store_spec=name != "b.onnx")
    for columns in ("40", "80"):
        arguments = ["build", str(models), "--flavour", "tensorrt-rtx"]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": columns})
        assert "\u2026" not in result.output, "an ellipsis: something was cut"
        assert "failed" in result.output
        engine = models / "garments_with_sleeves_resnet50.engine"
        assert f"{engine}, " in result.output
        assert any(line.endswith(f"  {engine}") for line in result.output.splitlines()), "in the summary"
        shown = CliRunner().invoke(app, ["info", str(engine)], env={"COLUMNS": columns}).output
        (line,) = [line for line in shown.splitlines() if line.startswith("rebuild with")]
        assert line.split(maxsplit=2)[2] == EngineInfo.read(engine).rebuild_command(engine)
        assert "red, green, blue" in shown


def test_photos_that_are_left_out_are_counted(painter: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(103):
        cv2.imwrite(str(photos / f"{number:03}.png"), pictures(SPEC, 1).images[0])
    result = run(painter, "--photos", photos)
    assert "of 100 crops (photos, 100 of 103)" in result.output
