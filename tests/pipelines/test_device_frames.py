"""Frames of all layouts, in host memory and in GPU memory, through the GPU pipeline on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painter import painter_spec, write_painter

from edgepose import InputError, Predictor

Open = Callable[..., Predictor]


def _views(frame: np.ndarray) -> dict[str, np.ndarray]:
    """The same pixels in other layouts."""
    rgb = np.ascontiguousarray(frame[..., ::-1])
    bgra = np.dstack([frame, np.full(frame.shape[:2], 77, np.uint8)])
    padded = np.zeros((frame.shape[0], frame.shape[1] + 13, 3), np.uint8)
    padded[:, 5:-8] = frame
    return {
        "bgra": bgra,
        "rgb turned round": rgb[..., ::-1],
        "padded rows": padded[:, 5:-8],
        "upside down": np.ascontiguousarray(frame[::-1])[::-1],
        "planes": np.ascontiguousarray(frame.transpose(2, 0, 1)).transpose(1, 2, 0),
    }


@pytest.mark.parametrize("layout", ["bgra", "rgb turned round", "padded rows", "upside down", "planes"])
@pytest.mark.parametrize("on_device", [False, True])
def test_layouts(
    open_gpu: Open, cupy_on_cpu: Any, scene: tuple[np.ndarray, np.ndarray], layout: str, on_device: bool
) -> None:
    frame, boxes = scene
    predictor = open_gpu(painter_spec(sampling="opencv4"), max_batch=4)
    expected = predictor.predict(frame, boxes)
    view = _views(frame)[layout]
    np.testing.assert_array_equal(view[..., :3], frame)
    result = predictor.predict(_to_device(cupy_on_cpu, view) if on_device else view, boxes)
    np.testing.assert_array_equal(result.keypoints, expected.keypoints)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_grey(
    open_gpu: Open, cupy_on_cpu: Any, scene: tuple[np.ndarray, np.ndarray], dimensions: int, on_device: bool
) -> None:
    frame, boxes = scene
    grey = frame.max(axis=2)
    predictor = open_gpu(painter_spec(sampling="opencv4"), max_batch=4)
    expected = predictor.predict(np.repeat(grey[..., None], 3, axis=2), boxes)
    grey = grey if dimensions == 2 else grey[..., None]
    result = predictor.predict(_to_device(cupy_on_cpu, grey) if on_device else grey, boxes)
    np.testing.assert_array_equal(result.keypoints, expected.keypoints)


def _to_device(cupy: Any, array: np.ndarray) -> Any:
    """With the strides that the host array has."""
    base = array
    while base.base is not None and isinstance(base.base, np.ndarray):
        base = base.base
    memory = cupy.asarray(np.ascontiguousarray(base).reshape(-1))
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return cupy.ndarray(array.shape, array.dtype, memptr=memory.data + offset, strides=array.strides)


def test_a_device_frame_is_not_copied(open_gpu: Open, cupy_on_cpu: Any, scene: tuple[np.ndarray, np.ndarray]) -> None:
    frame, boxes = scene
    predictor = open_gpu(painter_spec(), max_batch=8)
    device_frame = cupy_on_cpu.asarray(frame)
    expected = predictor.predict(frame, boxes)
    before = cupy_on_cpu.statistics.copy()
    result = predictor.predict(device_frame, boxes)
    used = cupy_on_cpu.statistics - before
    assert used["copies"] == 2  # the record up, the results down
    assert used["allocations"] == 0
    np.testing.assert_array_equal(result.keypoints, expected.keypoints)


def test_waits_for_the_callers_stream(open_gpu: Open, cupy_on_cpu: Any, scene: tuple[np.ndarray, np.ndarray]) -> None:
    """The frame is written on another stream, and has not been when predict is called."""
    frame, boxes = scene
    cupy = cupy_on_cpu
    predictor = open_gpu(painter_spec(), max_batch=8)
    expected = predictor.predict(frame, boxes)
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(frame.nbytes), np.uint8, frame.nbytes)
    pinned[:] = frame.reshape(-1)
    stream = cupy.cuda.Stream(non_blocking=True)
    for argument in (stream, stream.ptr, type("PyCuda", (), {"handle": stream.ptr})()):
        device_frame = cupy.zeros(frame.shape, np.uint8)
        cupy.cuda.Device().synchronize()
        cupy.cuda.runtime.memcpyAsync(device_frame.data.ptr, pinned.ctypes.data, frame.nbytes, 1, stream.ptr)
        result = predictor.predict(device_frame, boxes, stream=argument)
        np.testing.assert_array_equal(result.keypoints, expected.keypoints)
    with stream:  # the array's own stream, by its interface
        device_frame = cupy.zeros(frame.shape, np.uint8)
        cupy.cuda.runtime.memcpyAsync(device_frame.data.ptr, pinned.ctypes.data, frame.nbytes, 1, stream.ptr)
        result = predictor.predict(device_frame, boxes)
    np.testing.assert_array_equal(result.keypoints, expected.keypoints)


def test_unusable_device_frames(open_gpu: Open, cupy_on_cpu: Any) -> None:
    cupy = cupy_on_cpu
    predictor = open_gpu(painter_spec(), max_batch=1)
    box = [[0, 0, 10, 10]]
    with pytest.raises(InputError, match="uint8"):
        predictor.predict(cupy.zeros((20, 20, 3), np.float32), box)
    with pytest.raises(InputError, match="channels-first"):
        predictor.predict(cupy.zeros((3, 20, 20), np.uint8), box)
    with pytest.raises(InputError, match="no pixels"):
        predictor.predict(cupy.zeros((0, 20, 3), np.uint8), box)
    with pytest.raises(InputError, match="stream must be"):
        predictor.predict(cupy.zeros((20, 20, 3), np.uint8), box, stream="main")


def test_a_device_frame_and_a_cpu_predictor(cupy_on_cpu: Any, tmp_path: Path) -> None:
    with (
        Predictor(write_painter(tmp_path / "m.onnx", painter_spec())) as predictor,
        pytest.raises(InputError, match="GPU memory"),
    ):
        predictor.predict(cupy_on_cpu.zeros((20, 20, 3), np.uint8), [[0, 0, 10, 10]])
