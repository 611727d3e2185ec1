"""crop_warp.cu and its launchers on the CPU, through the emulator and CuPy's stand-in, against the NumPy twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import emulator

from edgepose.geometry import crop_affines
from edgepose.kernels import _compile, _crop, reference
from edgepose.kernels._call import FRAME, call_size, call_views
from edgepose.kernels.cuda import crop_warp, prepare_crop_warp

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SAMPLINGS = ("linear", "opencv4", "area")
EXACT = ("opencv4", "area")
SIZES = ((192, 256), (1, 1), (5, 7), (33, 17), (64, 16), (31, 95))  # whole tiles of 32x16, and tails of all kinds
# "linear" rounds positions to 2^-32 px, which may change the rounding of a float32 weight or sum: each by up to
# 255 * 2^-24 = 1.5e-5 levels. Worst seen in 3600 random crops: 3.1e-5.
LINEAR_LEVELS = 1e-4


def random_affines(rng: np.random.Generator, count: int, shape: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """(count, 2, 3): shrunk and enlarged, rotated, mirrored, stretched, partly or wholly beside the frame."""
    affines = []
    for _ in range(count):
        angle = rng.choice([0.0, rng.uniform(-np.pi, np.pi)])
        scale = np.exp(rng.uniform(-4, 1.5)) * np.array([1.0, rng.choice([1.0, -1.0, rng.uniform(0.2, 4)])])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = scale[:, None] * turn
        centre = rng.uniform(-0.5, 1.5, 2) * (shape[1], shape[0])
        affines.append(np.column_stack([linear, np.array(size) * rng.uniform(0, 1, 2) - linear @ centre]))
    return np.array(affines)


def check(cupy: Any, frame: np.ndarray, affines: np.ndarray, size: tuple[int, int], sampling: Any) -> np.ndarray:
    """The kernel's levels must be the twin's; returns those. ``frame`` may have any strides: the memory is shared."""
    expected = reference.crop_warp(frame, affines, size, sampling=sampling)
    device = on_device(cupy, frame)  # kept: the launch only knows its address, and the stand-in runs it late
    crops = crop_warp(device, affines, size, sampling=sampling).get()
    assert crops.dtype == np.uint8
    if sampling in EXACT:
        np.testing.assert_array_equal(crops, expected)
    else:
        np.testing.assert_allclose(crops.astype(int), expected, atol=1)  # a level near .5 may be rounded either way
        plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
        levels = crop_warp(device, affines, size, sampling=sampling, **plain).get()
        unrounded = reference.crop_warp(frame, affines, size, sampling=sampling, **plain)
        np.testing.assert_allclose(levels, unrounded, atol=LINEAR_LEVELS, rtol=0)
    return expected


def on_device(cupy: Any, frame: np.ndarray) -> Any:
    """A device array with the frame's very strides."""
    owner = frame
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    memory = cupy.asarray(np.ascontiguousarray(owner))
    assert memory.strides == owner.strides
    offset = frame.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    return cupy.ndarray(frame.shape, np.uint8, memory.data + offset, frame.strides)


def record(
    cupy: Any, pixels: np.ndarray | None, plan: Any, frame_size: tuple[int, int], crops: int, corner: Any = (0, 0)
) -> tuple[Any, Any]:
    """A call's buffer on the device for `crops` crops, and the device array that it points to."""
    host = np.zeros(call_size(crops), np.uint8)
    header, instances = call_views(host, crops)
    count = len(plan.samples)
    device = None if pixels is None else on_device(cupy, pixels)
    address, strides = (0, (0, 3, 1)) if pixels is None else (device.data.ptr, pixels.strides)
    header["count"] = count
    instances[list(FRAME.names)] = (address, *strides, *frame_size, *corner)
    instances["sample"][:count] = plan.samples
    instances["first"][:count] = plan.first
    instances["halvings"][:count] = plan.halvings
    return cupy.asarray(host), device


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_crops_are_the_twins(cupy_on_cpu: Any, sampling: Any) -> None:
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES * 3):
        limit = (300, 6, 700, 90)[number % 4]
        height, width = rng.integers(1, limit, 2)
        if number % 2:
            width = -(-width // 4) * 4  # rows of whole words: what the fast path wants
        frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        check(cupy_on_cpu, frame, random_affines(rng, 2 if size[0] > 100 else 4, frame.shape, size), size, sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_normalised_crops_are_the_twins(cupy_on_cpu: Any, sampling: Any) -> None:
    cupy, rng = cupy_on_cpu, np.random.default_rng(1)
    frame = rng.integers(0, 256, (120, 200, 3), dtype=np.uint8)
    boxes = [[20, 10, 90, 100], [-50, -20, 80, 140], [0, 0, 199, 119], [500, 500, 600, 700]]
    affines, size = crop_affines(boxes, (48, 60)), (48, 60)
    expected = reference.crop_warp(frame, affines, size, sampling=sampling, mean=MEAN, std=STD)
    device = cupy.asarray(frame)
    crops = crop_warp(device, affines, size, sampling=sampling, mean=MEAN, std=STD)
    half = cupy.zeros((4, 3, 60, 48), np.float16)
    assert crop_warp(device, affines, size, sampling=sampling, mean=MEAN, std=STD, out=half) is half
    assert crops.dtype == np.float32
    if sampling in EXACT:  # subtraction, division and the conversion to half round once each, as the twin does
        np.testing.assert_array_equal(crops.get(), expected)
        np.testing.assert_array_equal(half.get(), expected.astype(np.float16))
    else:
        np.testing.assert_allclose(crops.get(), expected, atol=LINEAR_LEVELS / min(STD), rtol=0)
        # A step of half at 2 to 4, where the float32 values straddle the middle. Seen: one in a million, 4e-6 apart.
        np.testing.assert_allclose(half.get(), expected.astype(np.float16), atol=2**-9, rtol=0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_thread_order(cupy_on_cpu: Any, sampling: Any) -> None:
    rng = np.random.default_rng(2)
    frame = rng.integers(0, 256, (97, 164, 3), dtype=np.uint8)
    size = (40, 33)
    affines = random_affines(rng, 3, frame.shape, size)
    affines[2] /= 20  # "area" halves often enough for a warp to work on one pixel together
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            check(cupy_on_cpu, frame, affines, size, sampling)


def test_a_removed_barrier_is_seen(cupy_on_cpu: Any) -> None:
    """The terms of a tile are shared: without the barrier some order reads them too early."""
    cupy, rng = cupy_on_cpu, np.random.default_rng(3)
    frame, size = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (32, 16)
    affine = np.array([[[2 / 3, 0, -2.25], [0, 2 / 3, -3.0]]])
    plan = _crop.plan_crops(_crop._invert(affine), size, (80, 60), "opencv4")
    expected = reference.crop_warp(frame, affine, size, sampling="opencv4")
    text = _compile.source("crop_warp.cu", {"OUT": "unsigned char", "SAMPLING": "OPENCV4"})
    assert text.count("__syncthreads();") == 1
    right = []
    for code in (text, text.replace("__syncthreads();", "")):
        kernel = emulator.Module(code).get_function("crop_warp")
        same = []
        for order in emulator.ORDERS:
            with emulator.thread_order(order):
                call, device = record(cupy, frame, plan, (80, 60), 1)
                out = np.zeros((1, 16, 32, 3), np.uint8)
                values = np.float32([0, 0, 0, 1, 1, 1])
                cupy.cuda.Device().synchronize()
                kernel((1, 1, 1), (256,), (call, out, np.uint64(0), np.int32(32), np.int32(16), *values))
                same.append(np.array_equal(out, expected))
                del device
        right.append(same)
    assert all(right[0])
    assert not all(right[1])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_any_strides(cupy_on_cpu: Any, sampling: Any) -> None:
    rng = np.random.default_rng(4)
    big = rng.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    packed = rng.integers(0, 256, (61, 88, 3), dtype=np.uint8)
    grey = rng.integers(0, 256, (50, 60), dtype=np.uint8)
    views = {
        "BGRA": big[..., :3],
        "RGBA": big[..., 2::-1],
        "ARGB": big[..., :0:-1],
        "upside down, every second column": big[::-1, ::2, :3],
        "upside down, whole words": packed[::-1],
        "mirrored": packed[:, ::-1],
        "rows and columns exchanged": big.transpose(1, 0, 2)[..., 1:],
        "starts between words": packed[3:58, 5:81],
        "starts at a word": packed[3:58, 4:81],
        "rows are no words": rng.integers(0, 256, (40, 51, 3), dtype=np.uint8),
        "grey": np.broadcast_to(grey[..., None], (50, 60, 3)),
        "planes": rng.integers(0, 256, (3, 45, 64), dtype=np.uint8).transpose(1, 2, 0),
    }
    for name, view in views.items():
        print(name)  # pytest shows it if this fails
        check(cupy_on_cpu, view, crop_affines([[5, 6, 40, 50], [-10, -10, 130, 100]], (24, 32)), (24, 32), sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_pixel_outside_of_the_window_is_read(cupy_on_cpu: Any, sampling: Any) -> None:
    """The window alone gives the whole frame's crops, with noise around it and in an array of just its size."""
    cupy, rng = cupy_on_cpu, np.random.default_rng(5)
    size = (24, 20)
    for number in range(24):
        height, width = rng.integers(1, 500, 2)
        frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        affines = random_affines(rng, 1 + number % 2, frame.shape, size)
        plan = _crop.plan_crops(_crop._invert(affines), size, (width, height), sampling)
        left, top, right, bottom = plan.window
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height
        assert left % 4 == 0
        assert right % 4 == 0 or right == width
        expected = reference.crop_warp(frame, affines, size, sampling=sampling)
        blacked = frame.copy()
        blacked[top:bottom, left:right] = 0
        # All that the crops show is in the window.
        assert not reference.crop_warp(blacked, affines, size, sampling=sampling).any()
        around = rng.integers(0, 256, (bottom - top + 2, right - left + 6, 3), dtype=np.uint8)
        for view in (around[1:-1, 3:-3], np.empty((bottom - top, right - left, 3), np.uint8)):
            view[...] = frame[top:bottom, left:right]
            call, device = record(cupy, view if view.size else None, plan, (width, height), len(affines), (left, top))
            out = cupy.zeros((len(affines), 20, 24, 3), np.uint8)
            prepare_crop_warp(call, out, sampling=sampling)()
            np.testing.assert_allclose(out.get().astype(int), expected, atol=0 if sampling in EXACT else 1)
            del device


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("size", [(33, 18), (7, 5), (64, 16)])
def test_mirrored_crops_and_unused_ones(cupy_on_cpu: Any, dtype: str, size: tuple[int, int]) -> None:
    """Launched for five, called with three: the last two crops keep what they held, here and in the mirror."""
    cupy, rng = cupy_on_cpu, np.random.default_rng(6)
    frame = rng.integers(0, 256, (70, 92, 3), dtype=np.uint8)
    affines = random_affines(rng, 3, frame.shape, size)
    plan = _crop.plan_crops(_crop._invert(affines), size, (92, 70), "area")
    normalise = {} if dtype == "uint8" else {"mean": MEAN, "std": STD}
    shape = (5, size[1], size[0], 3) if dtype == "uint8" else (5, 3, size[1], size[0])
    both = cupy.full((12, *shape[1:]), 77, dtype)  # guards before, between and behind
    call, frame_on_device = record(cupy, frame, plan, (92, 70), 5)
    stream = cupy.cuda.Stream(non_blocking=True)
    launch = prepare_crop_warp(call, both[:5], sampling="area", mirrored=both[6:11], **normalise)
    cupy.cuda.Device().synchronize()
    before = cupy.statistics.copy()
    with stream:
        launch()
    assert cupy.statistics["launches"] == before["launches"] + 1
    assert cupy.statistics["allocations"] == before["allocations"]
    stream.synchronize()
    result = both.get()
    expected = reference.crop_warp(frame, affines, size, sampling="area", **normalise).astype(dtype)
    np.testing.assert_array_equal(result[:3], expected)
    across = slice(None, None, -1)
    np.testing.assert_array_equal(result[6:9], expected[:, :, across] if dtype == "uint8" else expected[..., across])
    assert (result[[3, 4, 5, 9, 10, 11]] == 77).all()
    del frame_on_device


def test_area_halves_as_often_as_the_twin(cupy_on_cpu: Any) -> None:
    """Up to three times for each thread alone, from four on by half a warp; beyond one pixel it changes nothing."""
    rng = np.random.default_rng(7)
    seen: set[int] = set()
    for shape in ((127, 83), (33, 129), (64, 64), (100, 256), (1, 65), (2, 2), (1, 1)):
        frame = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for halvings in (1, 2, 3, 4, 5, 6, 7, 17, 40):
            span = 2.0**halvings * rng.uniform(2.01, 3.9)
            angle = rng.uniform(-0.5, 0.5) * (halvings % 2)
            linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / span
            centre = np.array([shape[1], shape[0]]) / 2.0
            affine = np.column_stack([linear, np.array([6.0, 4.0]) + rng.uniform(-0.1, 0.1, 2) - linear @ centre])
            plan = _crop.plan_crops(_crop._invert(affine[None]), (13, 9), (shape[1], shape[0]), "area")
            seen.update(plan.halvings.tolist())
            levels = check(cupy_on_cpu, frame, affine[None], (13, 9), "area")
            assert levels.any()
    assert seen >= {1, 2, 3, 4, 5, 6, 7, 17, 40}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_extreme_affines(cupy_on_cpu: Any, sampling: Any) -> None:
    frame = np.random.default_rng(8).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    for scale in (1e-12, 1e-9, 1e-6, 1e6, 1e12):
        for offset in (0.0, 7.5, -3e9, 1e15):
            affine = np.array([[[scale, 0, offset], [0, -scale, offset / 2]]])
            check(cupy_on_cpu, frame, affine, (9, 11), sampling)
    sheared = np.array([[[1.0, 1e12, 0], [1e-12, 1.5, 0]], [[1.0, 0, 1e300], [0, 1, -1e300]]])
    check(cupy_on_cpu, frame, sheared, (9, 11), sampling)


def test_terms_beyond_linear_s_range_are_black(cupy_on_cpu: Any) -> None:
    """Each crop pixel spans 2^28 px: the twin finds the frame again where the terms cancel out, the kernel does not."""
    frame = np.full((8, 8, 3), 200, np.uint8)
    affine = np.array([[[2.0**-28, 0, 4], [0, 1, 0]]])
    assert reference.crop_warp(frame, affine, (8, 8))[0, :, 4].all()
    device = cupy_on_cpu.asarray(frame)
    assert not crop_warp(device, affine, (8, 8)).get().any()


@pytest.mark.parametrize("sampling", EXACT)
def test_frames_beyond_32768_px(cupy_on_cpu: Any, sampling: Any) -> None:
    strip = np.random.default_rng(9).integers(0, 256, (3, 70000, 3), dtype=np.uint8)
    affines = crop_affines([[69000, 0, 69004, 3], [69998, 0, 70002, 3], [100, -90, 9000, 90]], (16, 12))
    check(cupy_on_cpu, strip, affines, (16, 12), sampling)


def test_graphs_and_streams(cupy_on_cpu: Any) -> None:
    """A captured launch reads the record anew at each replay: other affines, another count, another frame."""
    cupy, rng = cupy_on_cpu, np.random.default_rng(10)
    size, frame_size = (20, 24), (64, 48)
    frames = rng.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    affines = [random_affines(rng, 2, frames[0].shape, size), random_affines(rng, 1, frames[1].shape, size)]
    plans = [_crop.plan_crops(_crop._invert(matrices), size, frame_size, "area") for matrices in affines]
    records = [record(cupy, image.copy(), plan, frame_size, 2) for image, plan in zip(frames, plans, strict=True)]
    call, out = cupy.zeros(call_size(2), np.uint8), cupy.zeros((2, 24, 20, 3), np.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    launch = prepare_crop_warp(call, out, sampling="area")
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with stream:
            launch()
        graph = stream.end_capture()
        held = np.zeros((2, 24, 20, 3), np.uint8)
        for (source, _), image, matrices in zip(records, frames, affines, strict=True):
            call[...] = source
            graph.launch(stream)
            held[: len(matrices)] = reference.crop_warp(image, matrices, size, sampling="area")
            np.testing.assert_array_equal(out.get(), held)


def test_no_crops_launch_nothing(cupy_on_cpu: Any) -> None:
    cupy = cupy_on_cpu
    frame = cupy.zeros((8, 9, 3), np.uint8)
    before = cupy.statistics["launches"]
    assert crop_warp(frame, [], (4, 5)).shape == (0, 5, 4, 3)
    out = cupy.zeros((0, 3, 5, 4), np.float16)
    assert crop_warp(frame, np.zeros((0, 2, 3)), (4, 5), mean=MEAN, std=STD, out=out) is out
    assert cupy.statistics["launches"] == before


def test_another_library_s_array(cupy_on_cpu: Any) -> None:
    """Whatever has __cuda_array_interface__ is read in place."""
    frame = np.random.default_rng(11).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    device = cupy_on_cpu.asarray(frame)

    class Foreign:
        __cuda_array_interface__ = device.__cuda_array_interface__

    affine = crop_affines([[3, 4, 30, 28]], (12, 16))
    np.testing.assert_array_equal(
        crop_warp(Foreign(), affine, (12, 16), sampling="opencv4").get(),
        reference.crop_warp(frame, affine, (12, 16), sampling="opencv4"),
    )


def test_wrong_arguments(cupy_on_cpu: Any) -> None:
    cupy = cupy_on_cpu
    frame, affines, size = cupy.zeros((8, 9, 3), np.uint8), np.array([[[1.0, 0, 0], [0, 1, 0]]]), (4, 5)
    with pytest.raises(TypeError, match=r"in GPU memory .* got ndarray"):
        crop_warp(np.zeros((8, 9, 3), np.uint8), affines, size)
    with pytest.raises(TypeError, match="uint8, got float32"):
        crop_warp(cupy.zeros((8, 9, 3), np.float32), affines, size)
    for bad in (frame[..., 0], frame[..., :2], frame[:0]):
        with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
            crop_warp(bad, affines, size)
    with pytest.raises(ValueError, match="at most 262144 px"):
        crop_warp(cupy.zeros((1, 262145, 3), np.uint8), affines, size)
    with pytest.raises(ValueError, match=r"\(N, 2, 3\)"):
        crop_warp(frame, affines[0], size)
    with pytest.raises(ValueError, match="affine 0 is not finite or cannot be inverted"):
        crop_warp(frame, affines * np.nan, size)
    with pytest.raises(ValueError, match=r"two whole numbers \(w, h\)"):
        crop_warp(frame, affines, (0, 5))
    with pytest.raises(ValueError, match="sampling must be"):
        crop_warp(frame, affines, size, sampling="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong together"):
        crop_warp(frame, affines, size, mean=MEAN)
    out = cupy.zeros((1, 3, 5, 4), np.float32)
    with pytest.raises(ValueError, match="give mean and std"):
        crop_warp(frame, affines, size, out=out)
    normalise = {"mean": MEAN, "std": STD}
    with pytest.raises(TypeError, match="float32 or float16, got float64"):
        crop_warp(frame, affines, size, out=cupy.zeros((1, 3, 5, 4), np.float64), **normalise)
    with pytest.raises(TypeError, match="CuPy array of float32 or float16, got float32 of the host"):
        crop_warp(frame, affines, size, out=np.zeros((1, 3, 5, 4), np.float32), **normalise)
    for bad_out in (out[0], cupy.zeros((2, 3, 5, 4), np.float32), cupy.zeros((1, 3, 5, 8), np.float32)[..., ::2]):
        with pytest.raises(ValueError, match="C-contiguous"):
            crop_warp(frame, affines, size, out=bad_out, **normalise)


def test_wrong_buffers(cupy_on_cpu: Any) -> None:
    cupy, normalise = cupy_on_cpu, {"mean": MEAN, "std": STD}
    call, out = cupy.zeros(call_size(2), np.uint8), cupy.zeros((2, 3, 5, 4), np.float16)
    levels = cupy.zeros((2, 5, 4, 3), np.uint8)
    prepare_crop_warp(call, out, sampling="area", **normalise)
    prepare_crop_warp(call, levels, sampling="area", mirrored=levels.copy())
    with pytest.raises(ValueError, match="call must hold 352 bytes for 2 crops"):
        prepare_crop_warp(call[:-1], out, sampling="area", **normalise)
    with pytest.raises(ValueError, match="aligned to 8"):
        prepare_crop_warp(cupy.zeros(call_size(2) + 4, np.uint8)[4:], out, sampling="area", **normalise)
    with pytest.raises(TypeError, match="call must be a CuPy array of uint8"):
        prepare_crop_warp(call.view(np.float32), out, sampling="area", **normalise)
    with pytest.raises(TypeError, match="out must be a CuPy array of uint8, got float16"):
        prepare_crop_warp(call, out, sampling="area")
    with pytest.raises(TypeError, match="out must be a CuPy array of float32 or float16, got uint8"):
        prepare_crop_warp(call, levels, sampling="area", **normalise)
    for shape in ((2, 4, 5, 3), (3, 5, 4), (2,)):
        with pytest.raises(ValueError, match=r"\(crops, 3, h, w\)"):
            prepare_crop_warp(call, cupy.zeros(shape, np.float16), sampling="area", **normalise)
    with pytest.raises(ValueError, match=r"\(crops, h, w, 3\)"):
        prepare_crop_warp(call, cupy.zeros((2, 3, 5, 4), np.uint8), sampling="area")
    with pytest.raises(ValueError, match="each at least 1"):
        prepare_crop_warp(call, out[:0], sampling="area", **normalise)
    with pytest.raises(TypeError, match="mirrored must be a CuPy array of float16"):
        prepare_crop_warp(call, out, sampling="area", mirrored=out.astype(np.float32), **normalise)
    with pytest.raises(ValueError, match="mirrored must be a C-contiguous array of shape"):
        prepare_crop_warp(call, out, sampling="area", mirrored=cupy.zeros((1, 3, 5, 4), np.float16), **normalise)
    with pytest.raises(ValueError, match="must not overlap"):
        prepare_crop_warp(call, out, sampling="area", mirrored=out, **normalise)
    with pytest.raises(ValueError, match="sampling must be"):
        prepare_crop_warp(call, out, sampling="cubic", **normalise)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 65535 crops"):
        prepare_crop_warp(call, cupy.zeros((65536, 3, 1, 1), np.float16), sampling="area", **normalise)
