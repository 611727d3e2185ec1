"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

__all__ = ["check_writable", "write_all_atomically", "write_atomically"]


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write beside the target, then rename: whoever reads ``path`` finds the old file or the whole new one."""
    write_all_atomically({path: data})


def write_all_atomically(files: Mapping[Path, bytes | memoryview]) -> None:
    """Write all files beside their targets, then rename them, in the order given.

    A disk that is full, or a power cut while the data is written, leaves every old file as it was.
    """
    written: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
            written[temporary] = path
            _write(temporary, data)
        for temporary, path in written.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in written:
            with contextlib.suppress(OSError):  # renamed already, or never made
                temporary.unlink()
        raise
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


def check_writable(folder: Path) -> None:
    """Make a file in a folder and remove it.

    Raises:
        OSError: that cannot be done.
    """
    path = folder / f".{secrets.token_hex(8)}.tmp"
    os.close(_create(path))
    path.unlink()


def _create(path: Path) -> int:
    """A new file's descriptor; the umask decides who may read it, as for any file that a program makes."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _write(path: Path, data: bytes | memoryview) -> None:
    with os.fdopen(_create(path), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else a power cut can leave the new name with no data behind it


def _sync_folder(folder: Path) -> None:
    """Let the renames last, too."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some network file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
