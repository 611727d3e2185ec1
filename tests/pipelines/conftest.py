"""The GPU pipeline on the CPU: a predictor on the stand-in's GPU, and a scene for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_engine import EmulatedEngine
from grid_detector import DeviceGrid, HostGrid, grid_spec
from painter import blobs, painter_spec, write_painter

from edgepose import ModelSpec, Predictor
from edgepose.detector_spec import DetectorSpec
from edgepose.engines.onnxruntime import OnnxRuntimeEngine
from edgepose.pipelines import DetectionSettings, DetectorModel, Pipeline, PoseModel, open_pipeline

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


OpenBoth = Callable[..., tuple[Pipeline, Pipeline]]


@pytest.fixture
def open_both(cupy_on_cpu: Any, tmp_path: Path) -> Iterator[OpenBoth]:
    """Opens two pipelines with the grid as their detector: on the host, and on the stand-in's GPU."""
    pipelines: list[Pipeline] = []

    def open_(
        *specs: ModelSpec,
        categories: Mapping[str, tuple[int, int]] | None = None,
        detector: DetectorSpec | None = None,
        engine: dict[str, int] | None = None,
        keep: tuple[bool, ...] | None = None,
        **options: Any,
    ) -> tuple[Pipeline, Pipeline]:
        spec = detector or grid_spec()
        settings = DetectionSettings(spec.min_score, spec.nms_iou, spec.max_detections, keep, spec.class_agnostic)
        paths = [
            write_painter(tmp_path / f"{len(pipelines)}-{i}.onnx", s) for i, s in enumerate(specs or [painter_spec()])
        ]
        host = [OnnxRuntimeEngine(path, spec=None, max_batch=4, threads=1) for path in paths]
        device = [EmulatedEngine(path) for path in paths]
        for engines, grid in ((host, HostGrid(spec, max_batch=3)), (device, DeviceGrid(spec, **(engine or {})))):
            models = [PoseModel(one, one.spec) for one in engines]
            found_by = DetectorModel(grid, spec, settings)
            options = {"max_batch": 4, **options}
            pipelines.append(open_pipeline(models, categories=categories, detector=found_by, **options))
        return pipelines[-2], pipelines[-1]

    yield open_
    for pipeline in pipelines:
        pipeline.close()
