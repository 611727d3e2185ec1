"""The whole pipeline on the hardware against the CPU path; PyTorch runs the network, so TensorRT is not needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painter import painter_spec, write_painter

from edgepose import Predictor, bundled_models
from edgepose.training.synthetic import MovingGarment

MODEL = "garment-landmarks"
pytestmark = pytest.mark.skipif(MODEL not in bundled_models(), reason="the bundled model is not in this checkout")
FRAMES = 24
NOISE = 2 << 20  # bytes: the driver's own, and whatever else runs on the GPU


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Rendered garments, each with 1 to 20 boxes around it."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(4):
        garment = MovingGarment(frames=FRAMES, seed=seed)
        for index in range(0, FRAMES, 6):
            view = garment.frame(index)
            count = int(rng.integers(1, 21))
            jitter = rng.uniform(-0.08, 0.08, (count, 4)) * np.ptp(view.box.reshape(2, 2), axis=0).repeat(2)
            found.append((view.image, (view.box + jitter).astype(np.float32)))
    return found


@pytest.fixture(scope="module")
def expected(scenes: list[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
    with Predictor(MODEL) as predictor:
        return [predictor.predict(*scene) for scene in scenes]


def torch_engine(precision: str = "fp32", model: str | Path = MODEL, **options: Any) -> Any:
    pytest.importorskip("torch")
    from edgepose.benchmarks.torch_engine import TorchEngine
    from edgepose.models import find_model

    return TorchEngine(find_model(model), precision=precision, **options)


@pytest.fixture(params=[True, False], ids=["graph", "no graph"])
def predictor(request: pytest.FixtureRequest) -> Iterator[Predictor]:
    with Predictor(torch_engine(), cuda_graph=request.param) as opened:
        yield opened


def errors(results: list[Any], expected: list[Any]) -> np.ndarray:
    """px, of all landmarks that are there."""
    return np.concatenate(
        [
            np.linalg.norm(a.keypoints - b.keypoints, axis=-1)[b.scores > 0.3]
            for a, b in zip(results, expected, strict=True)
        ]
    )


def test_fp32_within_a_twentieth_of_a_pixel(predictor: Predictor, scenes: Any, expected: Any) -> None:
    found = errors([predictor.predict(*scene) for scene in scenes], expected)
    assert len(found) > 500
    assert np.percentile(found, 99.5) < 0.05, np.percentile(found, [50, 95, 99, 99.5, 100])
    assert (found > 1).mean() < 2e-3  # two peaks of one height: another one wins


def test_fp16_within_half_a_pixel(scenes: Any, expected: Any) -> None:
    with Predictor(torch_engine("fp16")) as predictor:
        found = errors([predictor.predict(*scene) for scene in scenes], expected)
    assert np.percentile(found, 99) < 0.5, np.percentile(found, [50, 95, 99, 99.5, 100])


@pytest.mark.parametrize("codec", ["msra", "udp"])
def test_flip_test(tmp_path: Path, codec: str, scenes: Any) -> None:
    path = write_painter(tmp_path / "m.onnx", painter_spec(codec, flip_shift=codec == "msra"))
    with Predictor(path, flip_test=True) as cpu, Predictor(torch_engine(model=path), flip_test=True) as gpu:
        for frame, boxes in scenes[:4]:
            there = cpu.predict(frame, boxes)
            np.testing.assert_allclose(gpu.predict(frame, boxes).scores, there.scores, atol=1e-4)


def test_frames_on_the_device(predictor: Predictor, scenes: Any) -> None:
    """CuPy, PyTorch through the interface and through DLPack, PyCUDA where it is installed."""
    import cupy
    import torch

    frame, boxes = scenes[0]
    there = predictor.predict(frame, boxes).keypoints
    tensor = torch.from_numpy(frame.copy()).cuda()

    class Capsule:
        def __dlpack__(self, stream: Any = None, **_: Any) -> Any:
            return tensor.__dlpack__(stream=stream)

        def __dlpack_device__(self) -> Any:
            return tensor.__dlpack_device__()

    for device_frame in (cupy.asarray(frame), tensor, Capsule()):
        np.testing.assert_array_equal(predictor.predict(device_frame, boxes).keypoints, there)


def test_pycuda_arrays(scenes: Any) -> None:
    pytest.importorskip("pycuda", reason="pip install 'edgepose[pycuda]'")
    import pycuda.driver as cuda
    from pycuda import gpuarray

    frame, boxes = scenes[0]
    with Predictor(torch_engine()) as predictor:
        there = predictor.predict(frame, boxes).keypoints
        cuda.init()
        context = cuda.Device(0).retain_primary_context()  # CuPy's and TensorRT's, not one of its own
        context.push()
        try:
            stream = cuda.Stream()
            array = gpuarray.to_gpu_async(frame, stream=stream)
            np.testing.assert_array_equal(predictor.predict(array, boxes, stream=stream).keypoints, there)
            del array
        finally:
            context.pop()


def test_waits_for_the_stream_that_writes_the_frame(predictor: Predictor, scenes: Any) -> None:
    import torch

    frame, boxes = scenes[0]
    there = predictor.predict(frame, boxes).keypoints
    stream = torch.cuda.Stream()
    pinned = torch.from_numpy(frame.copy()).pin_memory()
    for _ in range(5):
        with torch.cuda.stream(stream):
            tensor = torch.zeros_like(pinned, device="cuda")
            torch.cuda._sleep(20_000_000)  # about 10 ms: without the wait the frame would be black
            tensor.copy_(pinned, non_blocking=True)
        np.testing.assert_array_equal(predictor.predict(tensor, boxes, stream=stream).keypoints, there)


def test_threads(scenes: Any) -> None:
    """Each predictor alone, then all at once: the same numbers."""
    predictors = [Predictor(torch_engine()) for _ in range(3)]
    there = [[predictor.predict(*scene) for scene in scenes] for predictor in predictors]
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for _ in range(5):
            for index, scene in enumerate(scenes):
                result, expected = predictors[number].predict(*scene), there[number][index]
                sure = expected.scores > 0.3
                if not np.array_equal(result.keypoints[sure], expected.keypoints[sure]):
                    wrong.append((number, index))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for predictor in predictors:
        predictor.close()
    assert wrong == []


def test_soak_without_growth(scenes: Any) -> None:
    """20,000 frames, 11 minutes of a 30 fps stream: neither the GPU's memory nor the process's grows."""
    import cupy

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with Predictor(torch_engine("fp16")) as predictor:
        for scene in scenes * 10:
            predictor.predict(*scene)
        free, held = cupy.cuda.runtime.memGetInfo()[0], resident()
        for index in range(20_000):
            predictor.predict(*scenes[index % len(scenes)])
        assert free - cupy.cuda.runtime.memGetInfo()[0] <= NOISE
        assert resident() - held < 8 << 20


def test_closing_gives_the_memory_back(scenes: Any) -> None:
    import cupy
    import torch

    free = []
    for _ in range(4):
        predictor = Predictor(torch_engine())
        predictor.predict(*scenes[0])
        predictor.close()
        del predictor
        torch.cuda.empty_cache()  # no graph is left that uses PyTorch's memory
        free.append(cupy.cuda.runtime.memGetInfo()[0])
    assert free[1] - free[-1] <= NOISE
