"""The GPU pipeline on the CPU: the real .cu files and launchers through the emulator, ONNX Runtime as the network.

The CPU path is the specification: the same model, frame and boxes must give the same landmarks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from emulated_engine import EmulatedEngine
from painter import blobs, painter_spec, write_painter

from edgepose import EngineError, InputError, ModelSpec, Predictor, bundled_models
from edgepose.models import find_model
from edgepose.training.synthetic import MovingGarment

# Crops agree to 2^-32 px (linear) or to the bit, heatmaps come from the same network, the decoders agree to 1e-3 cells
# where they refine (seen here: 6e-5 px of a frame where a cell is 12 px wide).
KEYPOINT_TOLERANCE = 1e-2

Open = Callable[..., Predictor]


def on_cpu(spec: ModelSpec, path: Path, frame: np.ndarray, boxes: np.ndarray, **options: Any) -> Any:
    with Predictor(write_painter(path / "cpu.onnx", spec), threads=1, **options) as predictor:
        return predictor.predict(frame, boxes)


def assert_same(result: Any, expected: Any, tolerance: float = KEYPOINT_TOLERANCE) -> None:
    """Scores everywhere, keypoints where there is a landmark (elsewhere they say nothing)."""
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-4)  # fp32 arithmetic; seen: 1e-6
    there = expected.scores > 0.05
    assert there.any()
    np.testing.assert_allclose(result.keypoints[there], expected.keypoints[there], atol=tolerance)


@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("sampling", ["linear", "opencv4", "area"])
@pytest.mark.parametrize("refinement", ["none", "shift", "dark", "dark_udp"])
def test_same_landmarks_as_on_the_cpu(
    open_gpu: Open, scene: tuple[np.ndarray, np.ndarray], tmp_path: Path, codec: str, sampling: str, refinement: str
) -> None:
    frame, boxes = scene
    spec = painter_spec(codec, sampling=sampling, refinement=refinement)
    expected = on_cpu(spec, tmp_path, frame, boxes)
    result = open_gpu(spec, max_batch=4).predict(frame, boxes)  # five boxes: a full bucket, and one of 1
    assert_same(result, expected)
    np.testing.assert_array_equal(result.boxes, expected.boxes)
    assert result.frame_size == (320, 240)
    assert result.scores[4].max() == 0  # outside of the frame


@pytest.mark.parametrize(("engine", "runs"), [({"max_batch": 16}, [4, 4]), ({"max_batch": 2}, [2, 2, 2, 2])])
@pytest.mark.parametrize("flip_shift", [False, True])
def test_flip_test(
    open_gpu: Open,
    scene: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    engine: dict[str, int],
    runs: list[int],
    flip_shift: bool,
) -> None:
    """The mirrored crops go through the network behind the others: in the same run, or in one of their own."""
    frame, boxes = scene
    spec = painter_spec("msra", flip_shift=flip_shift, flip_indices=(2, 1, 0))
    expected = on_cpu(spec, tmp_path, frame, boxes[:2], flip_test=True)
    predictor = open_gpu(spec, engine=engine, flip_test=True, max_batch=2)
    network = predictor._pipeline.engine
    network.runs.clear()
    assert_same(predictor.predict(frame, boxes[:2]), expected)
    predictor.predict(frame, boxes[:2])
    assert network.runs == runs


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 21])
def test_any_number_of_boxes(open_gpu: Open, tmp_path: Path, count: int) -> None:
    """Buckets of 1, 2, 4, 6: every result is that of its own box, whatever runs beside it."""
    rng = np.random.default_rng(count)
    frame = blobs((320, 240), np.array([[120.0, 90.0], [160.5, 130.25], [140.0, 160.0]]), 12)
    left_top = rng.uniform((20, 10), (90, 60), (count, 2))
    boxes = np.concatenate([left_top, left_top + rng.uniform(90, 150, (count, 2))], 1)
    spec = painter_spec()
    expected = on_cpu(spec, tmp_path, frame, boxes)
    predictor = open_gpu(spec, max_batch=6)
    for _ in range(2):
        assert_same(predictor.predict(frame, boxes), expected)


@pytest.mark.parametrize("flip_test", [False, True])
def test_categories_choose_the_channels(
    open_gpu: Open, scene: tuple[np.ndarray, np.ndarray], tmp_path: Path, flip_test: bool
) -> None:
    """One network for several categories: each box reads its own channels, on the CPU and on the GPU."""
    frame, boxes = scene
    spec = painter_spec(categories={"warm": (0, 2), "cool": (2, 3)})
    names = ["cool", "warm", "cool"]
    with Predictor(write_painter(tmp_path / "cpu.onnx", spec), flip_test=flip_test, max_batch=2) as cpu:
        everything = cpu.predict(frame, boxes[:3])
        expected = cpu.predict(frame, boxes[:3], categories=names)
    predictor = open_gpu(spec, max_batch=2, flip_test=flip_test)
    result = predictor.predict(frame, boxes[:3], categories=names)
    assert_same(result, expected)
    own = np.array([[False, False, True], [True, True, False], [False, False, True]])
    for found in (expected, result):
        assert found.categories == ("cool", "warm", "cool")
        assert (found.scores[~own] == 0).all()
    np.testing.assert_array_equal(expected.keypoints[own], everything.keypoints[own])
    assert_same(predictor.predict(frame, boxes[:3]), everything)  # the next call names none


def test_no_box_launches_nothing(open_gpu: Open, cupy_on_cpu: Any) -> None:
    predictor = open_gpu(painter_spec(), max_batch=1)
    before = dict(cupy_on_cpu.statistics)
    result = predictor.predict(np.zeros((20, 30, 3), np.uint8), np.zeros((0, 4)))
    assert result.keypoints.shape == (0, 3, 2)
    assert dict(cupy_on_cpu.statistics) == before


def test_half_precision(open_gpu: Open, scene: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    frame, boxes = scene
    expected = on_cpu(painter_spec(), tmp_path, frame, boxes)
    result = open_gpu(painter_spec(), engine={"fp16": True}, max_batch=8).predict(frame, boxes)
    there = expected.scores > 0.3
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-3)  # 11 bits of the level and of the maximum
    # A rounded heatmap moves a peak of sigma 4 cells by up to 0.1 cells of 6 px (seen: 0.13 px).
    np.testing.assert_allclose(result.keypoints[there], expected.keypoints[there], atol=0.5)


@pytest.mark.skipif("garment-landmarks" not in bundled_models(), reason="the bundled model is not in this checkout")
@pytest.mark.parametrize(("fp16", "tolerance"), [(False, 0.05), (True, 0.5)])
def test_the_bundled_model(cupy_on_cpu: Any, fp16: bool, tolerance: float) -> None:
    """What the GPU is held to, px; worst seen on 43 real photos: 0.02 px in float16."""
    view = MovingGarment(frames=2, seed=14).frame(1)
    boxes = view.box + np.array([[0, 0, 0, 0], [-9, 5, 12, -4], [7, -8, 3, 10]])
    with Predictor("garment-landmarks") as predictor:
        expected = predictor.predict(view.image, boxes)
    with Predictor(EmulatedEngine(find_model("garment-landmarks"), fp16=fp16), max_batch=2) as predictor:
        result = predictor.predict(view.image, boxes)
    there = expected.scores > 0.3
    assert there.sum() >= 12
    np.testing.assert_allclose(result.keypoints[there], expected.keypoints[there], atol=tolerance)


def test_without_graphs_the_same_with_stage_times(open_gpu: Open, scene: tuple[np.ndarray, np.ndarray]) -> None:
    frame, boxes = scene
    with_graphs = open_gpu(painter_spec(), max_batch=2).predict(frame, boxes)
    without = open_gpu(painter_spec(), max_batch=2, cuda_graph=False).predict(frame, boxes)
    np.testing.assert_array_equal(with_graphs.keypoints, without.keypoints)
    timings = without.timings
    assert min(timings.crop, timings.network, timings.decode) > 0
    assert timings.crop + timings.network + timings.decode < timings.total


# Memory ---------------------------------------------------------------------------------------------


def test_steady_state_allocates_nothing_and_waits_once(
    open_gpu: Open, cupy_on_cpu: Any, scene: tuple[np.ndarray, np.ndarray]
) -> None:
    frame, boxes = scene
    predictor = open_gpu(painter_spec(), max_batch=2)
    predictor.predict(frame, boxes)  # three chunks: the slots of the second and third are new
    before = cupy_on_cpu.statistics.copy()
    for count in (1, 2, 3, 4, 5):
        predictor.predict(frame, boxes[:count])
    used = cupy_on_cpu.statistics - before
    assert used["allocations"] == used["pinned_allocations"] == 0
    assert used["syncs"] == 5
    assert used["graph_launches"] == 1 + 1 + 2 + 2 + 3


def test_only_the_window_that_the_boxes_need_is_uploaded(
    open_gpu: Open, cupy_on_cpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    boxes = np.array([[900.0, 700, 1000, 820], [950, 760, 1100, 900]])
    spec = painter_spec()
    predictor = open_gpu(spec, max_batch=2)
    sizes = []
    copy = cupy_on_cpu.cuda.runtime.memcpyAsync

    def counting(target: int, source: int, size: int, kind: int, stream: int) -> None:
        sizes.append(size)
        copy(target, source, size, kind, stream)

    monkeypatch.setattr(cupy_on_cpu.cuda.runtime, "memcpyAsync", counting)
    result = predictor.predict(frame, boxes)
    assert sum(sizes) < 400 * 400 * 3  # of 9 million bytes
    assert_same(result, on_cpu(spec, tmp_path, frame, boxes))


def test_a_larger_frame_makes_room(open_gpu: Open, cupy_on_cpu: Any, tmp_path: Path) -> None:
    """Windows beyond 1920x1080: the memory of the window is made anew, once; the graphs stay."""
    rng = np.random.default_rng(0)
    small = cv2.resize(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), (600, 400))
    large = cv2.resize(small, (3000, 2000))
    spec = painter_spec(sampling="area")
    predictor = open_gpu(spec, max_batch=1)
    for frame in (small, large, small):
        boxes = [[0, 0, frame.shape[1] - 1, frame.shape[0] - 1]]
        before = cupy_on_cpu.statistics.copy()
        assert_same(predictor.predict(frame, boxes), on_cpu(spec, tmp_path, frame, boxes), tolerance=0.1)
        grown = (cupy_on_cpu.statistics - before)["allocations"]
        assert (grown > 0) == (frame is large)


def test_a_failed_growth_changes_nothing(
    open_gpu: Open, cupy_on_cpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory on a large frame: that call fails, the next ones are right."""
    rng = np.random.default_rng(0)
    small = cv2.resize(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), (600, 400))
    large = cv2.resize(small, (3000, 2000))
    spec = painter_spec()
    predictor = open_gpu(spec, max_batch=1)
    box = [[0.0, 0, 599, 399]]
    expected = on_cpu(spec, tmp_path, small, box)
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise cupy_on_cpu.cuda.memory.OutOfMemoryError(0, 0, 0)

        patch.setattr(predictor._pipeline._session._pool, "malloc", fail)
        with pytest.raises(EngineError, match="lower max_batch"):
            predictor.predict(large, [[0, 0, 2999, 1999]])
    assert_same(predictor.predict(small, box), expected)
    expected = on_cpu(spec, tmp_path, large, [[0, 0, 2999, 1999]])
    assert_same(predictor.predict(large, [[0, 0, 2999, 1999]]), expected, tolerance=0.1)


def test_nothing_is_under_way_after_an_error(
    open_gpu: Open, scene: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between upload and download: the caller's frame and the pinned memory are not in use any more."""
    frame, boxes = scene
    predictor = open_gpu(painter_spec(), max_batch=2)
    expected = predictor.predict(frame, boxes)
    pipeline = predictor._pipeline

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgepose.geometry.crops_see_frame", interrupt)
        with pytest.raises(KeyboardInterrupt):
            predictor.predict(frame, boxes)
    assert pipeline._session.stream.done
    np.testing.assert_array_equal(predictor.predict(frame, boxes).keypoints, expected.keypoints)


def test_closing_after_a_cuda_error_frees_all_the_same(
    open_gpu: Open, cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = open_gpu(painter_spec(), max_batch=1)
    pipeline = predictor._pipeline

    def fail() -> None:
        raise cupy_on_cpu.cuda.runtime.CUDARuntimeError(700)

    monkeypatch.setattr(pipeline._session.stream, "synchronize", fail)
    predictor.close()
    predictor.close()
    assert pipeline.engine.closed
    assert "cudaErrorIllegalAddress" in caplog.text


def test_results_are_the_callers(open_gpu: Open, scene: tuple[np.ndarray, np.ndarray]) -> None:
    frame, boxes = scene
    predictor = open_gpu(painter_spec(), max_batch=2)
    first = predictor.predict(frame, boxes[:2])
    kept = first.keypoints.copy()
    predictor.predict(frame, boxes[2:4])
    np.testing.assert_array_equal(first.keypoints, kept)
    predictor.close()
    np.testing.assert_array_equal(first.keypoints, kept)


def test_closing_frees_engine_and_memory(open_gpu: Open, scene: tuple[np.ndarray, np.ndarray]) -> None:
    frame, boxes = scene
    predictor = open_gpu(painter_spec(), max_batch=2)
    predictor.predict(frame, boxes)
    pipeline = predictor._pipeline
    assert pipeline._session.used_bytes > 0
    predictor.close()
    predictor.close()
    assert pipeline.engine.closed
    assert pipeline._session.used_bytes == 0
    with pytest.raises(EngineError, match="closed"):
        predictor.predict(frame, boxes)


# Threads, options, buckets --------------------------------------------------------------------------


def test_predictors_in_threads(open_gpu: Open, scene: tuple[np.ndarray, np.ndarray]) -> None:
    frame, boxes = scene
    predictors = [open_gpu(painter_spec(), max_batch=2) for _ in range(3)]
    expected = [predictors[0].predict(frame, boxes + shift).keypoints for shift in range(3)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(3):
            result = predictors[index].predict(frame, boxes + index)
            if not np.array_equal(result.keypoints, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_open_engines_and_options(open_gpu: Open, tmp_path: Path, cupy_on_cpu: Any) -> None:
    predictor = open_gpu(painter_spec(), device="cuda", max_batch=1)
    assert predictor.engine_name == "emulated (cuda:0)"
    assert "cuda:0" in repr(predictor)
    path = write_painter(tmp_path / "m.onnx", painter_spec())
    with pytest.raises(InputError, match="leave device out"):
        Predictor(EmulatedEngine(path), device="cpu")
    with pytest.raises(InputError, match="leave spec out"):
        Predictor(EmulatedEngine(path), spec=painter_spec("msra"))
    with pytest.raises(InputError, match="got int"):
        Predictor(3)  # type: ignore[arg-type]
    engine = EmulatedEngine(path, min_batch=4)
    with pytest.raises(EngineError, match="max_batch is 2"):
        Predictor(engine, max_batch=2)
    assert engine.closed


def test_cudas_errors_become_ours(open_gpu: Open, cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = open_gpu(painter_spec(), max_batch=1)

    def fail(*_: Any) -> None:
        raise cupy_on_cpu.cuda.runtime.CUDARuntimeError(700)

    with monkeypatch.context() as patch:
        patch.setattr(cupy_on_cpu.cuda.runtime, "memcpyAsync", fail)
        with pytest.raises(EngineError, match="CUDA says: cudaErrorIllegalAddress"):
            predictor.predict(np.zeros((20, 20, 3), np.uint8), [[0, 0, 10, 10]])


def test_an_engine_that_cannot_be_captured(tmp_path: Path, cupy_on_cpu: Any) -> None:
    class Waiting(EmulatedEngine):
        """Synchronises within a run, which a capture forbids."""

        def bind(self, images: Any, heatmaps: Any) -> Callable[[int], None]:
            run = super().bind(images, heatmaps)

            def run_and_wait(stream: int) -> None:
                run(stream)
                cupy_on_cpu.cuda.ExternalStream(stream).synchronize()

            return run_and_wait

    path = write_painter(tmp_path / "m.onnx", painter_spec())
    with pytest.raises(EngineError, match="cuda_graph=False"):
        Predictor(Waiting(path), max_batch=1)
    with Predictor(Waiting(path), max_batch=1, cuda_graph=False) as predictor:
        assert predictor.predict(np.zeros((20, 20, 3), np.uint8), [[0, 0, 10, 10]]).scores.max() == 0


def test_a_batch_size_that_is_fixed(open_gpu: Open, scene: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    frame, boxes = scene
    expected = on_cpu(painter_spec(), tmp_path, frame, boxes)
    assert_same(open_gpu(painter_spec(), engine={"min_batch": 4, "max_batch": 4}).predict(frame, boxes), expected)
