"""letterbox.cu and its launchers on the CPU, through the emulator and CuPy's stand-in, against the NumPy twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import emulator
from test_cuda_crop_warp import EXACT, LINEAR_LEVELS, SAMPLINGS, on_device

from edgepose.kernels import reference
from edgepose.kernels._call import FRAME
from edgepose.kernels._placement import RESIZES
from edgepose.kernels.cuda import letterbox, prepare_letterbox

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def check(cupy: Any, frame: np.ndarray, size: tuple[int, int], sampling: Any, resize: Any = "letterbox") -> None:
    """The kernel's levels must be the twin's. ``frame`` may have any strides."""
    expected = reference.letterbox(frame, size, resize=resize, sampling=sampling)
    device = on_device(cupy, frame)
    levels = letterbox(device, size, resize=resize, sampling=sampling).get()
    if sampling in EXACT:
        np.testing.assert_array_equal(levels, expected)
        return
    np.testing.assert_allclose(levels.astype(int), expected, atol=1)  # a level near .5 may be rounded either way
    options = {"resize": resize, "sampling": sampling, "mean": (0, 0, 0), "std": (1, 1, 1)}
    unrounded = letterbox(device, size, **options).get()
    # As of crop_warp; worst seen in 17000 random letterboxes: 3.1e-5.
    np.testing.assert_allclose(unrounded, reference.letterbox(frame, size, **options), atol=LINEAR_LEVELS, rtol=0)


def record(device: Any) -> tuple[Any, ...]:
    """FRAME of a device array."""
    return (device.data.ptr, *device.strides, device.shape[1], device.shape[0], 0, 0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_inputs_are_the_twins(cupy_on_cpu: Any, sampling: Any) -> None:
    """Shrunk and enlarged, frames of one pixel and of one row, sizes that are no whole tiles."""
    rng = np.random.default_rng(0)
    sizes = [np.exp(rng.uniform(0, 6, 2)).astype(int) for _ in range(40)]
    sizes += [np.array(size) for size in ((1, 1), (1, 70), (70, 1), (480, 640), (64, 64))]
    for number, (height, width) in enumerate(sizes):
        frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = tuple(np.exp(rng.uniform(0, 4.3, 2)).astype(int).tolist())
        with emulator.thread_order(emulator.ORDERS[number % len(emulator.ORDERS)]):
            check(cupy_on_cpu, frame, size, sampling, RESIZES[number % 3])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_4k_frame(cupy_on_cpu: Any, sampling: Any) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (2160, 3840, 3), dtype=np.uint8)
    check(cupy_on_cpu, frame, (64, 64), sampling)  # 60 px for one: "area" halves four times, so a warp works together


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_any_strides(cupy_on_cpu: Any, sampling: Any) -> None:
    rng = np.random.default_rng(2)
    big = rng.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    grey = rng.integers(0, 256, (50, 60), dtype=np.uint8)
    for view in (
        big[..., :3],
        big[..., 2::-1],
        big[::-1, ::2, :3],
        big.transpose(1, 0, 2)[..., 1:],
        rng.integers(0, 256, (40, 51, 3), dtype=np.uint8)[3:, 5:],
        np.broadcast_to(grey[..., None], (50, 60, 3)),
    ):
        check(cupy_on_cpu, view, (40, 33), sampling)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_frames_of_several_sizes_in_one_launch(cupy_on_cpu: Any, dtype: str) -> None:
    """A graph over a table of four frames, of which one is none: its input is left alone, as are the guards around."""
    cupy, rng = cupy_on_cpu, np.random.default_rng(3)
    size, levels = (40, 36), dtype == "uint8"
    normalise: Any = {} if levels else {"mean": MEAN, "std": STD}
    shape = (size[1], size[0], 3) if levels else (3, size[1], size[0])
    both = cupy.full((6, *shape), 77, dtype)
    table = cupy.zeros(4 * FRAME.itemsize, np.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    launch = prepare_letterbox(table, both[1:5], resize="letterbox_corner", pad=9, sampling="area", **normalise)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with stream:
            launch()
        graph = stream.end_capture()
    expected = both.get()
    for shapes in (((30, 70), (200, 33), None, (36, 40)), (None, (5, 5), (300, 300), None)):
        frames = [rng.integers(0, 256, (*one, 3), dtype=np.uint8) if one else None for one in shapes]
        devices = [None if frame is None else cupy.asarray(frame) for frame in frames]
        records = [(0,) * 8 if device is None else record(device) for device in devices]
        cupy.cuda.Device().synchronize()
        before = cupy.statistics["allocations"]
        table.set(np.array(records, FRAME).view(np.uint8), stream=stream)
        graph.launch(stream)
        assert cupy.statistics["allocations"] == before
        stream.synchronize()
        for place, frame in enumerate(frames, start=1):
            if frame is not None:
                expected[place] = reference.letterbox(
                    frame, size, resize="letterbox_corner", pad=9, sampling="area", **normalise
                ).astype(dtype)
        np.testing.assert_array_equal(both.get(), expected)


def test_normalised_inputs_are_the_twins(cupy_on_cpu: Any) -> None:
    cupy = cupy_on_cpu
    frame = np.random.default_rng(4).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    options: Any = {"sampling": "opencv4", "mean": MEAN, "std": STD, "pad": 3}
    out = cupy.zeros((3, 40, 33), np.float16)
    assert letterbox(cupy.asarray(frame), (33, 40), out=out, **options) is out
    expected = reference.letterbox(frame, (33, 40), **options)
    np.testing.assert_array_equal(out.get(), expected.astype(np.float16))
    np.testing.assert_array_equal(letterbox(cupy.asarray(frame), (33, 40), **options).get(), expected)


def test_wrong_arguments(cupy_on_cpu: Any) -> None:
    cupy = cupy_on_cpu
    frame, normalise = cupy.zeros((8, 9, 3), np.uint8), {"mean": MEAN, "std": STD}
    with pytest.raises(TypeError, match=r"in GPU memory .* got ndarray"):
        letterbox(np.zeros((8, 9, 3), np.uint8), (4, 5))
    with pytest.raises(ValueError, match="two whole numbers"):
        letterbox(frame, (4, 0))
    with pytest.raises(ValueError, match="give mean and std"):
        letterbox(frame, (4, 5), out=cupy.zeros((3, 5, 4), np.float32))
    with pytest.raises(ValueError, match="C-contiguous array of shape"):
        letterbox(frame, (4, 5), out=cupy.zeros((3, 4, 5), np.float32), **normalise)
    table, out = cupy.zeros(96, np.uint8), cupy.zeros((2, 3, 5, 4), np.float16)
    good: Any = {"resize": "stretch", "sampling": "linear", **normalise}
    prepare_letterbox(table, out, **good)
    bad: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (table[:-8], out, {}, ValueError, "frames must hold 96 bytes for 2 frames"),
        (cupy.zeros(100, np.uint8)[4:], out, {}, ValueError, "aligned to 8"),
        (table.get(), out, {}, TypeError, "frames must be a CuPy array of uint8"),
        (table, out, {"resize": "fit"}, ValueError, "resize must be"),
        (table, out, {"sampling": "cubic"}, ValueError, "sampling must be"),
        (table, out, {"pad": 300}, ValueError, "pad must be"),
        (table, out, {"std": None}, ValueError, "belong together"),
        (table, out[:, :2], {}, ValueError, "C-contiguous"),
        (table, cupy.zeros((2, 5, 4, 3), np.float16), {}, ValueError, r"\(crops, 3, h, w\)"),
        (table, cupy.zeros((2, 3, 5, 4), np.float64), {}, TypeError, "float32 or float16"),
        (table, cupy.zeros((65536, 3, 1, 1), np.float16), {}, ValueError, "at most 65535"),
    ]
    for frames, target, changed, error, message in bad:
        with pytest.raises(error, match=message):
            prepare_letterbox(frames, target, **(good | changed))
