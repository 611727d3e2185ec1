"""What is left where a build cannot write: everything as it was."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from engine_builds import RTX, SPEC, build, files, needs_rtx, painter
from painter import write_painter
from typer.testing import CliRunner

from edgepose import EngineError, build_engine
from edgepose import files as edgepose_files
from edgepose.cli import app
from edgepose.enginefile import cache_path, read_engine
from edgepose.files import check_writable, write_all_atomically, write_atomically

__all__ = ["painter"]  # a fixture


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Folders in which nothing can be made; permissions would not stop root."""
    folders: set[Path] = set()
    create = edgepose_files._create

    def refuse(path: Path) -> int:
        if path.parent in folders:
            raise PermissionError(errno.EACCES, "Permission denied")
        return create(path)

    monkeypatch.setattr(edgepose_files, "_create", refuse)
    return folders


@needs_rtx
def test_a_folder_that_cannot_be_written_to_is_seen_first(painter: Path, read_only: set[Path]) -> None:
    read_only.add(painter.parent)
    stages: list[str] = []
    with pytest.raises(
        EngineError, match=r"painter.engine and the files .*cannot be written \(Permission denied\): .*-o"
    ):
        build_engine(painter, options=RTX, progress=lambda stage, _: stages.append(stage))
    assert stages == []
    assert files(painter.parent) == ["painter.onnx"]


@needs_rtx
def test_a_folder_of_models_goes_on(tmp_path: Path, read_only: set[Path]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_painter(tmp_path / name / f"{name}.onnx", SPEC)
    read_only.add(tmp_path / "a")
    arguments = ["build", str(tmp_path / "a"), str(tmp_path / "b"), "--flavour", "tensorrt-rtx"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "cannot be written" in result.output
    assert "b.engine" in files(tmp_path / "b")


@needs_rtx
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_the_old_engine(painter: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    old = build(painter, profile=(1, 1, 1))
    cache_path(old.path).write_bytes(b"kernels")
    before = files(painter.parent)
    write, calls = edgepose_files._write, []

    def full(path: Path, data: Any) -> None:
        calls.append(path)
        write(path, data[:10] if len(calls) == number else data)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(edgepose_files, "_write", full)
    with pytest.raises(EngineError, match=r"No space left on device"):
        build(painter, profile=(1, 2, 4))
    assert read_engine(old.path)[0] == old.info
    assert files(painter.parent) == before


@needs_rtx
def test_the_kernels_of_an_engine_that_is_replaced_go(painter: Path) -> None:
    engine = build(painter).path
    cache_path(engine).write_bytes(b"kernels of the old engine")
    build(painter, profile=(1, 2, 4))
    assert not cache_path(engine).exists()


# Files -------------------------------------------------------------------------------------------------


def test_files_come_in_their_order_and_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    rename, sync = os.replace, os.fsync
    monkeypatch.setattr("os.replace", lambda old, new: (done.append(new.name), rename(old, new)))
    monkeypatch.setattr("os.fsync", lambda descriptor: (done.append("sync"), sync(descriptor)))
    write_all_atomically({tmp_path / "b": b"1", tmp_path / "a": memoryview(b"2")})
    assert done[:4] == ["sync", "sync", "b", "a"], "a power cut must not leave a name without its data"
    assert ((tmp_path / "b").read_bytes(), (tmp_path / "a").read_bytes()) == (b"1", b"2")
    assert files(tmp_path) == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def test_looking_whether_a_folder_can_be_written_to_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert files(tmp_path) == []
    with pytest.raises(OSError, match="nowhere"):
        check_writable(tmp_path / "nowhere")
