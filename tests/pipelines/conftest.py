"""The GPU pipeline on the CPU: a predictor on the stand-in's GPU, and a scene for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_engine import EmulatedEngine
from painter import blobs, write_painter

from edgepose import ModelSpec, Predictor

Open = Callable[..., Predictor]


@pytest.fixture
def open_gpu(cupy_on_cpu: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a predictor on the stand-in's GPU, from a spec; all are closed in the end."""
    predictors: list[Predictor] = []

    def open_(spec: ModelSpec, *, engine: dict[str, Any] | None = None, **options: Any) -> Predictor:
        path = write_painter(tmp_path / f"{len(predictors)}.onnx", spec)
        predictor = Predictor(EmulatedEngine(path, **(engine or {})), **options)
        predictors.append(predictor)
        return predictor

    yield open_
    for predictor in predictors:
        predictor.close()


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """A frame with three blobs, and boxes of which the first sees all three and others only some or nothing."""
    frame = blobs((320, 240), np.array([[120.0, 90.0], [160.5, 130.25], [140.0, 160.0]]), 12)
    boxes = np.array(
        [[60, 40, 220, 210], [100, 70, 180, 180], [-60, -40, 180, 170], [250, 200, 400, 300], [900, 900, 950, 990]]
    )
    return frame, boxes
