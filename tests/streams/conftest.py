"""Small videos, and a check that no reader's thread is left."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from stream_fakes import FakePredictor, reader_threads, wait_for


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Each test ends with the threads that it began with."""
    before = set(reader_threads())
    yield
    if set(reader_threads()) - before:
        gc.collect()
    wait_for(lambda: set(reader_threads()) <= before, 10.0)  # s; a busy machine


@pytest.fixture(scope="session")
def ffmpeg() -> Callable[..., None]:
    """Runs ffmpeg; the test skips where it is not installed."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("makes its video with ffmpeg, which is not installed")

    def run(*arguments: str | Path) -> None:
        done = subprocess.run(
            [program, "-loglevel", "error", "-nostdin", "-y", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            pytest.skip(f"this ffmpeg cannot make the video: {done.stderr.strip()[-200:]}")

    return run


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of 64 x 48 px at 10 fps, MPEG-4; the level of frame n is about 12 n."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 12 * number, np.uint8))
    writer.release()
    return path
