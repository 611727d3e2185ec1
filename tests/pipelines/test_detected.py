"""Both stages in one call: the GPU pipeline on the CPU against the host pipeline, which is the specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from grid_detector import CATEGORIES, DeviceGrid, HostGrid, grid_frame, grid_spec
from painter import painter_spec

from edgepose import EngineError, InputError
from edgepose.pipelines import (
    DetectedPoses,
    DetectionSettings,
    DetectorModel,
    Pipeline,
    PoseModel,
    open_detection,
    open_pipeline,
)

OpenBoth = Callable[..., tuple[Pipeline, Pipeline]]
CATEGORIES_OF_MODEL = {"warm": (0, 2), "odd": (1, 3)}


def detect(pipeline: Pipeline, frames: Sequence[Any], *, stage: bool = False) -> DetectedPoses:
    read = pipeline.stage if stage else pipeline.read
    return pipeline.detect_and_start([read(frame)[0] for frame in frames]).finish()


def assert_same(found: DetectedPoses, expected: DetectedPoses) -> None:
    """Boxes to the bit; landmarks as kernels and twins agree, where there is one."""
    for name in ("owners", "boxes", "box_scores", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)  # fp32 arithmetic; seen: 1e-6
    # Two cells of nearly one height may change places under fp32 noise: then the peak jumps. Not in these frames.
    there = expected.scores > 0.05
    # The decoders agree to 1e-3 cells, and a cell is up to 12 px wide; seen: 6e-5 px.
    np.testing.assert_allclose(found.keypoints[there], expected.keypoints[there], atol=1e-2)


@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("sampling", ["linear", "opencv4", "area"])
def test_as_on_the_host(open_both: OpenBoth, codec: str, sampling: str) -> None:
    host, device = open_both(painter_spec(codec, sampling=sampling))
    frames = [grid_frame((320, 240), 0, 6), grid_frame((250, 333), 1, 0), grid_frame((640, 200), 2, 9)]
    expected = detect(host, frames)
    assert np.bincount(expected.owners, minlength=3).tolist()[1] == 0
    assert len(expected.boxes) >= 6
    for _ in range(2):  # the second time the batch size is that of the first call's count
        assert_same(detect(device, frames), expected)


@pytest.mark.parametrize("resize", ["letterbox", "letterbox_corner", "stretch"])
def test_random_frames(open_both: OpenBoth, resize: str) -> None:
    """Any number of frames of any size, with any number of objects: also more than was expected, and none at all."""
    rng = np.random.default_rng(5)
    host, device = open_both(detector=grid_spec(resize=resize, nms_iou=None, max_detections=6), engine={"max_batch": 3})
    seen = set()
    for number in range(6):
        sizes = rng.integers(60, 400, (rng.integers(1, 12), 2))
        frames = [grid_frame(tuple(size), 100 * number + i, rng.integers(0, 10)) for i, size in enumerate(sizes)]
        expected = detect(host, frames)
        assert_same(detect(device, frames, stage=bool(number % 2)), expected)
        seen |= set(np.bincount(expected.owners, minlength=len(frames)).tolist())
    assert {0, 6} <= seen


def test_labels_choose_the_channels(open_both: OpenBoth) -> None:
    """A label without landmarks keeps its box; its scores are 0."""
    host, device = open_both(painter_spec(categories=CATEGORIES_OF_MODEL), categories=CATEGORIES_OF_MODEL)
    frames = [grid_frame((320, 240), seed, 8) for seed in range(4)]
    expected = detect(host, frames)
    assert {0, 1, 3} == set(expected.labels.tolist())  # 2 has no name: never found
    for label, channels in ((0, [0, 1]), (1, []), (3, [1, 2])):
        others = np.setdiff1d(np.arange(3), channels)
        assert (expected.scores[expected.labels == label][:, others] == 0).all()
        assert (expected.scores[expected.labels == label][:, channels] > 0).any() == bool(channels)
    for _ in range(2):
        assert_same(detect(device, frames), expected)


def test_only_kept_labels_are_found(open_both: OpenBoth) -> None:
    host, device = open_both(keep=(False, True, True, False))
    frames = [grid_frame((320, 240), seed, 8) for seed in range(3)]
    expected = detect(host, frames)
    assert set(expected.labels.tolist()) == {1}
    assert_same(detect(device, frames), expected)


def test_several_models(open_both: OpenBoth) -> None:
    """Each model runs over the detections of its labels; the landmarks of the second follow those of the first."""
    first = painter_spec("udp")
    second = painter_spec("msra", name="other", padding=1.5)
    categories = {"warm": (3, 6), "odd": (0, 3), "cool": (4, 5)}
    host, device = open_both(first, second, categories=categories)
    frames = [grid_frame((320, 240), seed, 8) for seed in range(4)]
    expected = detect(host, frames)
    assert expected.keypoints.shape[1:] == (6, 2)
    for label, name in enumerate(CATEGORIES):
        rows = expected.scores[expected.labels == label]
        begin, end = categories.get(name, (0, 0))
        others = np.setdiff1d(np.arange(6), np.arange(begin, end))
        assert (rows[:, others] == 0).all()
    given = host.run(
        [host.read(frame)[0] for frame in frames],
        expected.boxes,
        expected.owners,
        channels=np.array([categories[CATEGORIES[label]] for label in expected.labels], np.int32),
    )
    np.testing.assert_array_equal(given.scores, expected.scores)
    for _ in range(2):
        assert_same(detect(device, frames), expected)
    on_device = device.run(
        [device.stage(frame)[0] for frame in frames],
        expected.boxes,
        expected.owners,
        channels=np.array([categories[CATEGORIES[label]] for label in expected.labels], np.int32),
    )
    np.testing.assert_allclose(on_device.scores, expected.scores, atol=1e-4)  # fp32 arithmetic; seen: 1e-6


def test_several_models_want_to_know_the_category(open_both: OpenBoth) -> None:
    for pipeline in open_both(painter_spec(), painter_spec(name="other"), categories={"warm": (0, 3)}):
        view, _ = pipeline.read(grid_frame((64, 48), 0))
        box, owner = np.array([[5, 5, 40, 40]], np.float32), np.zeros(1, np.int32)
        with pytest.raises(InputError, match="category of each box"):
            pipeline.run([view], box, owner)
        with pytest.raises(InputError, match="no pose model has"):
            pipeline.run([view], box, owner, channels=np.array([[2, 4]], np.int32))


@pytest.mark.parametrize(
    ("engine", "runs"), [({"max_batch": 1}, [1] * 5 + [1] * 3), ({"min_batch": 4, "max_batch": 4}, [4, 4]), ({}, [8])]
)
def test_batch_sizes_of_the_detector(open_both: OpenBoth, engine: dict[str, int], runs: list[int]) -> None:
    """Five frames run as eight, in as many runs as the engine makes needed."""
    host, device = open_both(engine=engine)
    frames = [grid_frame((320, 240), seed) for seed in range(5)]
    expected = detect(host, frames)
    grid = device._detection.engine  # type: ignore[attr-defined]
    grid.runs.clear()
    assert_same(detect(device, frames), expected)
    assert grid.runs == runs


def test_more_frames_than_one_run_takes(open_both: OpenBoth) -> None:
    host, device = open_both()
    frames = [grid_frame((200 + 10 * seed, 150), seed, seed % 4) for seed in range(19)]
    expected = detect(host, frames)
    for _ in range(2):
        assert_same(detect(device, frames), expected)


def test_a_box_that_float32_cannot_crop(open_both: OpenBoth) -> None:
    """Such boxes of a detector are no error: they have no landmarks, wherever they are in the batch."""
    host, device = open_both(painter_spec("msra", padding=0.7), detector=grid_spec(min_score=0.0, nms_iou=None))

    def rows(images: np.ndarray) -> np.ndarray:
        made = np.zeros((len(images), 16, 6), np.float32)
        made[:, :, :4], made[:, :, 4] = (30, 20, 40, 40), np.linspace(0.9, 0.1, 16)
        made[:, 1::3, 2] = np.nextafter(np.float32(30), np.float32(31))  # an ulp wide and high
        made[:, 1::3, 3] = np.nextafter(np.float32(20), np.float32(21))
        return made

    import grid_detector

    original, grid_detector.rows_of = grid_detector.rows_of, rows
    try:
        frames = [grid_frame((3000, 2250), 1)]
        expected = detect(host, frames)
        assert len(expected.boxes) == 16
        assert (expected.scores.max(axis=1) > 0).tolist() == [i % 3 != 1 for i in range(16)]
        for _ in range(2):
            assert_same(detect(device, frames), expected)
    finally:
        grid_detector.rows_of = original


def test_no_frames_and_no_boxes(open_both: OpenBoth) -> None:
    for pipeline in open_both():
        found = pipeline.detect_and_start([]).finish()
        assert (found.keypoints.shape, found.boxes.shape, found.labels.shape) == ((0, 3, 2), (0, 4), (0,))
        view, _ = pipeline.read(grid_frame((64, 48), 0))
        poses = pipeline.run([view], np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
        assert poses.keypoints.shape == (0, 3, 2)


def test_engines_on_different_devices(open_gpu: Any, cupy_on_cpu: Any) -> None:
    engine = open_gpu(painter_spec(), max_batch=1)._pipeline.engine
    grid = DetectorModel(HostGrid(), grid_spec(), DetectionSettings(0.3, None, 5))
    with pytest.raises(InputError, match="'painter-udp' on cuda:0, 'grid' on cpu"):
        open_pipeline([PoseModel(engine, engine.spec)], max_batch=1, detector=grid)


def test_without_a_detector(open_gpu: Any, cupy_on_cpu: Any) -> None:
    pipeline = open_gpu(painter_spec(), max_batch=1)._pipeline
    with pytest.raises(InputError, match="no detector"):
        pipeline.detect_and_start([])


def test_stage_times_without_graphs(open_both: OpenBoth) -> None:
    host, device = open_both(cuda_graph=False)
    frames = [grid_frame((320, 240), 0, 5)]
    assert_same(detect(device, frames), detect(host, frames))
    timings = detect(device, frames).timings
    assert min(timings.detect, timings.crop, timings.network, timings.decode) > 0
    assert detect(host, frames).timings.detect > 0


# The first stage alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_detection_alone(cupy_on_cpu: Any, open_both: OpenBoth, class_agnostic: bool) -> None:
    spec = grid_spec(class_agnostic=class_agnostic, nms_iou=0.1, min_score=0.2)
    host, _ = open_both(detector=spec)
    frames = [grid_frame((200 + 10 * seed, 150), seed, seed % 4) for seed in range(11)]
    expected = detect(host, frames)
    assert len(expected.boxes) == (9 if class_agnostic else 10)
    settings = DetectionSettings(spec.min_score, spec.nms_iou, spec.max_detections, None, class_agnostic)
    engine = DeviceGrid(spec)
    detection = open_detection(DetectorModel(engine, spec, settings), max_batch=8)
    for _ in range(2):
        before = cupy_on_cpu.statistics.copy()
        found = detection.detect([detection.read(frame)[0] for frame in frames])
        assert (cupy_on_cpu.statistics - before)["syncs"] == 1
        for number, (boxes, scores, labels) in enumerate(found):
            mine = expected.owners == number
            np.testing.assert_array_equal(boxes, expected.boxes[mine])
            np.testing.assert_array_equal(scores, expected.box_scores[mine])
            np.testing.assert_array_equal(labels, expected.labels[mine])
    detection.close()
    detection.close()
    assert engine.closed
    with pytest.raises(EngineError, match="closed"):
        detection.detect([])


def test_rows_must_be_float32(cupy_on_cpu: Any) -> None:
    engine = DeviceGrid()
    engine.output_dtype = np.dtype(np.float16)
    settings = DetectionSettings(0.3, None, 5)
    with pytest.raises(EngineError, match="cannot hold coordinates"):
        open_detection(DetectorModel(engine, engine.spec, settings), max_batch=1)
