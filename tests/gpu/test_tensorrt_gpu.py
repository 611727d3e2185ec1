"""TensorRT itself on the hardware: build, load, capture, predict. Skips where no TensorRT supports the GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepose import EdgePoseError, Predictor, build_engine, bundled_models
from edgepose.build import BuildOptions
from edgepose.engines.tensorrt import TensorRTEngine
from edgepose.tensorrt_api import FLAVOURS, gpu_here, load
from edgepose.training.synthetic import MovingGarment

MODEL = "garment-landmarks"
pytestmark = pytest.mark.skipif(MODEL not in bundled_models(), reason="the bundled model is not in this checkout")


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    try:
        api = load(request.param)
    except EdgePoseError as error:
        pytest.skip(str(error))
    gpu = gpu_here()
    if gpu is not None and api.is_rtx and gpu.sm not in api.compute_capabilities:
        pytest.skip(f"{request.param} builds for {', '.join(api.compute_capabilities)}, and this GPU is {gpu.sm}")
    return str(request.param)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def engine(request: pytest.FixtureRequest, flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    options = BuildOptions(flavour=flavour)  # type: ignore[arg-type]
    return build_engine(MODEL, folder, precision=request.param, profile=(1, 4, 8), options=options).path


def test_the_first_load_measures_the_engine(engine: Path) -> None:
    loaded = TensorRTEngine(engine)
    report = loaded.info.parity
    loaded.close()
    assert report.scope == "engine"
    assert report.px_p99 < (0.05 if loaded.info.precision == "fp32" else 0.5)


@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_landmarks_are_those_of_the_cpu(engine: Path, flip_test: bool, cuda_graph: bool) -> None:
    tolerance = 0.05 if TensorRTEngine(engine).info.precision == "fp32" else 0.5  # frame px
    garment = MovingGarment(frames=8, seed=14)
    errors = []
    with (
        Predictor(MODEL, flip_test=flip_test) as cpu,
        Predictor(engine, flip_test=flip_test, cuda_graph=cuda_graph) as gpu,
    ):
        for index in range(8):
            view = garment.frame(index)
            boxes = view.box + np.random.default_rng(index).uniform(-9, 9, (index + 5, 4))
            expected, result = cpu.predict(view.image, boxes), gpu.predict(view.image, boxes)
            there = expected.scores > 0.3
            errors.append(np.linalg.norm(result.keypoints - expected.keypoints, axis=-1)[there])
    found = np.concatenate(errors)
    assert len(found) > 300
    assert np.percentile(found, 99) < tolerance, np.percentile(found, [50, 95, 99, 100])
