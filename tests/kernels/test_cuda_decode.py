"""decode_heatmaps.cu, run on the CPU through its launchers, against the twin and MMPose's definitions."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import mmpose_oracle as oracle
import numpy as np
import pytest
from cuda_on_cpu import emulator
from test_decode import CELL, REFINEMENTS, adversaries, gaussians

from edgepose.kernels import reference
from edgepose.kernels._call import call_size, call_views

pytestmark = pytest.mark.skipif(**emulator.NO_COMPILER)
DTYPES = [np.float32, np.float16]
CPU = Path("/proc/cpuinfo")
# On x86-64 with fused multiplication and addition OpenCV and NumPy sum in the order that the kernel repeats.
SAME_ROUNDING = platform.machine() == "x86_64" and CPU.exists() and " avx2 " in CPU.read_text()


def on_gpu(heatmaps: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    import cupy

    from edgepose.kernels.cuda import decode_heatmaps

    if options.get("flipped") is not None:
        options["flipped"] = cupy.asarray(options["flipped"])
    locations, scores = decode_heatmaps(cupy.asarray(heatmaps), **options)
    return locations.get(), scores.get()


def assert_same(heatmaps: Any, tolerance: float = 1e-3 / CELL, **options: Any) -> None:
    """Peaks and scores exactly; ``tolerance``: cells, of a refined location, relative for those far out of the map."""
    locations, scores = on_gpu(heatmaps, **options)
    expected, expected_scores = reference.decode_heatmaps(heatmaps, **options)
    np.testing.assert_array_equal(scores, expected_scores)
    if options.get("refinement", "none") in ("none", "shift"):
        np.testing.assert_array_equal(locations, expected)
    assert np.isfinite(locations).all()
    np.testing.assert_allclose(locations, expected, rtol=1e-6, atol=tolerance)


def grids(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """(..., h, w) of a few levels: each map has its maximum many times, in all threads; some NaN and infinities."""
    maps = (rng.integers(-1, 4, shape) / 4).astype(dtype)
    maps[rng.random(shape[:2]) < 0.2] *= dtype(0.5)  # no peak at 0.75
    maps[0, 0], maps[0, 1], maps[0, 2], maps[0, 3] = 0.5, 0, -1, np.nan
    maps[1, 0, :1, :1], maps[1, 1, -1:, -1:], maps[1, 2, -1, -1], maps[1, 3, 0, -1] = np.nan, np.nan, 2, 2
    maps[0, 4, -1, 0], maps[0, 5, shape[2] // 2, shape[3] // 2], maps[0, 6, 0, 0] = 2, np.inf, -np.inf
    maps[0, 7], maps[1, 4] = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    maps[1, 5][rng.random(shape[2:]) < 0.5] = np.nan
    return maps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")
@pytest.mark.usefixtures("cupy_on_cpu")
def test_matches_the_twin(refinement: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    named = [np.pad(heatmap, ((13, 12), (15, 16)), mode="edge") for heatmap, _ in adversaries().values()]
    even, odd = (64, 48), (41, 43)  # the latter's maps begin at any address
    batches = [
        *(gaussians(rng, 24, *size, noise=noise)[None] for size in (even, odd) for noise in (0, 0.02)),
        *(scale * gaussians(rng, 12, *even, noise=0.02)[None] for scale in (4e-3, 5e-4, 120)),
        gaussians(rng, 12, *even, noise=0.02)[None] - 0.3,  # values below the floor beside the peak: whole maps
        np.stack(named)[None],
        *(grids(rng, (2, 9, *size), dtype) for size in (even, odd)),
    ]
    for number, batch in enumerate(batches):
        with emulator.thread_order(emulator.ORDERS[number % len(emulator.ORDERS)]):
            # The twin sums in another order: worst seen 4e-6 cells on peaks, 4e-5 on what is not (grids, adversaries).
            assert_same(batch.astype(dtype), refinement=refinement)


@pytest.mark.skipif(not SAME_ROUNDING, reason="OpenCV or NumPy round in another order on this CPU")
@pytest.mark.parametrize(("refinement", "dtype"), [("dark", np.float32), ("dark_udp", np.float16)])
@pytest.mark.usefixtures("cupy_on_cpu")
def test_noise_takes_every_rounding_of_the_twin(refinement: str, dtype: Any) -> None:
    """Conditioned or not: on flat noise a step jumps up to 1e4 cells, and each rounding moves it."""
    rng = np.random.default_rng(2)
    for size in ((64, 48), (41, 43)):
        maps = np.concatenate([rng.random((60, *size)), 5 + rng.random((60, *size)), rng.normal(size=(30, *size))])
        # Where the local window is used the twin's matrix product sums in another order: worst seen in 50000 maps
        # 1.1e-4 cells. Everything else is the same but for 1e-7 of the location.
        assert_same(maps.astype(dtype)[None], refinement=refinement)


@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 computes the oracle's float32 scalars in float64"
)
@pytest.mark.parametrize(("refinement", "dtype"), [("dark", np.float16), ("dark_udp", np.float32)])
@pytest.mark.usefixtures("cupy_on_cpu")
def test_matches_mmpose_on_noise(refinement: str, dtype: Any) -> None:
    maps = np.random.default_rng(3).random((60, 41, 43)).astype(dtype).astype(np.float32)
    conditioned = oracle.sensitivity(maps, refinement, np.random.default_rng(0)) < (1e-2 if SAME_ROUNDING else 1e-4)
    assert conditioned.sum() >= 20
    locations, _ = on_gpu(maps.astype(dtype)[None], refinement=refinement)
    error = np.abs(locations[0] - oracle.decode(maps, refinement)).max(axis=1)[conditioned]
    assert error.max() * CELL <= 1e-3  # px, the contract; worst seen 9.4e-5 in 300 maps of each of 10 sizes


@pytest.mark.parametrize(("refinement", "dtype"), [("dark", np.float32), ("dark_udp", np.float16)])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")
@pytest.mark.usefixtures("cupy_on_cpu")
def test_flip_test(shift: bool, refinement: str, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    for size in ((64, 48), (41, 43)):  # by packs of 16 bytes, and one by one
        for make in (grids, lambda rng, shape, dtype: rng.random(shape).astype(dtype)):
            maps, flipped = make(rng, (2, 9, *size), dtype), make(rng, (2, 9, *size), dtype)
            indices = rng.integers(0, 9, 9)  # DeepFashion2's are no permutation either
            assert_same(maps, refinement=refinement, flipped=flipped, flip_indices=indices, flip_shift=shift)


@pytest.mark.usefixtures("cupy_on_cpu")
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5), (5, 1), (2, 2), (9, 7), (96, 72), (130, 130), (130, 3), (3, 130)], ids=str
)
def test_sizes(size: tuple[int, int]) -> None:
    """Smaller than any window, larger than the memory of a tile, narrow."""
    rng = np.random.default_rng(5)
    maps = np.concatenate([rng.random((3, *size)), gaussians(rng, 3, *size)]).astype(np.float16)[None]
    assert_same(maps, refinement="dark_udp")


@pytest.mark.parametrize(("refinement", "blur_kernel"), [("dark", 31), ("dark_udp", 3)])
@pytest.mark.usefixtures("cupy_on_cpu")
def test_other_blur_kernels(refinement: str, blur_kernel: int) -> None:
    rng = np.random.default_rng(6)
    maps = np.concatenate([rng.random((6, 41, 43)), gaussians(rng, 6, 41, 43)]).astype(np.float32)[None]
    assert_same(maps, refinement=refinement, blur_kernel=blur_kernel)


@pytest.mark.usefixtures("cupy_on_cpu")
def test_channel_ranges_and_frames() -> None:
    rng = np.random.default_rng(7)
    maps, flipped = rng.random((2, 4, 6, 41, 43)).astype(np.float16)
    ranges = np.array([[0, 6], [2, 4], [3, 3], [5, 6]])
    assert_same(maps, channel_ranges=ranges)
    assert_same(maps, channel_ranges=ranges, flipped=flipped, flip_indices=[1, 0, 2, 4, 3, 5], refinement="dark_udp")
    options: dict[str, Any] = {"channel_ranges": ranges.tolist(), "cells_to_frame": rng.normal(0, 20, (4, 2, 3))}
    locations, scores = on_gpu(maps, **options)
    expected, expected_scores = reference.decode_heatmaps(maps, **options)
    np.testing.assert_array_equal(scores, expected_scores)
    # float64, rounded once: a matrix product may differ in the last bit before, so by one step of float32 after
    np.testing.assert_allclose(locations, expected, rtol=2e-7, atol=1e-6)


@pytest.mark.usefixtures("cupy_on_cpu")
def test_any_strides_and_no_maps_at_all() -> None:
    import cupy

    from edgepose.kernels.cuda import decode_heatmaps

    maps = np.random.default_rng(8).random((2, 8, 41, 86)).astype(np.float16)
    view = cupy.asarray(maps)[:, ::2, ::-1, ::2]
    for got, wanted in zip(decode_heatmaps(view), reference.decode_heatmaps(maps[:, ::2, ::-1, ::2]), strict=True):
        np.testing.assert_array_equal(got.get(), wanted)
        assert got.flags.c_contiguous
    for shape in ((0, 3, 8, 6), (3, 0, 8, 6)):
        empty = cupy.zeros(shape, np.float32)
        ranges, frames = np.zeros((shape[0], 2), int), np.zeros((shape[0], 2, 3))
        locations, scores = decode_heatmaps(empty, channel_ranges=ranges, cells_to_frame=frames, refinement="dark")
        assert (locations.shape, scores.shape) == ((*shape[:2], 2), shape[:2])


def test_a_prepared_launch_decodes_what_the_record_says(cupy_on_cpu: Any) -> None:
    """In a CUDA graph: it allocates nothing, and leaves the crops beyond `count` alone."""
    import cupy

    from edgepose.kernels.cuda import prepare_decode_heatmaps

    rng = np.random.default_rng(9)
    crops, channels = 4, 5
    call, maps = cupy.zeros(call_size(crops) + 64, np.uint8), cupy.zeros((crops, channels, 41, 43), np.float16)
    out, indices = cupy.full((crops + 1, channels, 3), 77, np.float32), cupy.asarray(np.arange(5, dtype=np.int32))
    flipped = cupy.zeros(maps.shape, np.float16)
    stream = cupy.cuda.Stream(non_blocking=True)
    launch = prepare_decode_heatmaps(
        call,
        maps,
        out,
        refinement="dark_udp",
        blur_kernel=11,
        flipped=flipped,
        flip_indices=indices,
        flip_shift=True,
    )
    cupy.cuda.Stream.null.synchronize()
    with stream:
        stream.begin_capture()
        with stream:
            launch()
        graph = stream.end_capture()
    allocations = cupy_on_cpu.statistics["allocations"]
    for count in (0, 3, 4):
        host, mirrored = rng.random((2, *maps.shape)).astype(np.float16)
        record = np.zeros(call.shape, np.uint8)
        header, instances = call_views(record, crops)
        header["count"] = count
        instances["channels"] = (1, 4)
        instances["place"] = rng.normal(0, 5, (crops, 2, 3))
        for target, source in ((call, record), (maps, host), (flipped, mirrored)):
            target.set(source, stream=stream)
        before = out.get(stream=stream)
        graph.launch(stream)
        after = out.get(stream=stream)
        locations, scores = reference.decode_heatmaps(
            host,
            refinement="dark_udp",
            flipped=mirrored,
            flip_indices=np.arange(5),
            flip_shift=True,
            channel_ranges=instances["channels"],
            cells_to_frame=instances["place"],
        )
        np.testing.assert_array_equal(after[count:], before[count:])
        np.testing.assert_array_equal(after[:count, :, 2], scores[:count])
        np.testing.assert_allclose(after[:count, :, :2], locations[:count], atol=1e-2, rtol=1e-6)  # px, 10 to a cell
    assert cupy_on_cpu.statistics["allocations"] == allocations


@pytest.mark.usefixtures("cupy_on_cpu")
def test_wrong_arguments() -> None:
    import cupy

    from edgepose.kernels.cuda import decode_heatmaps

    maps = cupy.zeros((2, 3, 8, 6), np.float32)
    with pytest.raises(TypeError, match=r"CuPy array, got numpy.ndarray: cupy.asarray\(heatmaps\)"):
        decode_heatmaps(np.zeros((2, 3, 8, 6), np.float32))
    for dtype in (np.float64, np.int32):
        with pytest.raises(TypeError, match=r"heatmaps.astype\(cupy.float32\)"):
            decode_heatmaps(cupy.zeros((2, 3, 8, 6), dtype))
    with pytest.raises(TypeError, match=r"flipped.astype\(cupy.float32\)"):
        decode_heatmaps(maps, flipped=cupy.zeros((2, 3, 8, 6), np.float16), flip_indices=[0, 1, 2])
    bad: list[tuple[dict[str, Any], str]] = [
        ({"refinement": "taylor"}, "refinement must be"),
        ({"blur_kernel": 10}, "odd whole number"),
        ({"blur_kernel": 257}, "up to 255"),
        ({"flipped": maps}, "needs flip_indices"),
        ({"flipped": maps[:1], "flip_indices": [0, 1, 2]}, "one shape"),
        ({"flipped": maps, "flip_indices": [0, 1, 3]}, "3 channel numbers"),
        ({"channel_ranges": [[0, 4], [0, 3]]}, "begin <= end <= 3"),
        ({"cells_to_frame": np.zeros((3, 2, 3))}, r"\(2, 2, 3\) finite"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            decode_heatmaps(maps, **options)
    with pytest.raises(ValueError, match=r"\(N, K, h, w\)"):
        decode_heatmaps(maps[0])


@pytest.mark.usefixtures("cupy_on_cpu")
def test_wrong_buffers() -> None:
    import cupy

    from edgepose.kernels.cuda import prepare_decode_heatmaps

    call, maps = cupy.zeros(call_size(2), np.uint8), cupy.zeros((2, 3, 8, 6), np.float32)
    out, indices = cupy.zeros((2, 3, 3), np.float32), cupy.asarray(np.arange(3, dtype=np.int32))
    good = {"call": call, "heatmaps": maps, "out": out, "refinement": "none", "blur_kernel": 11}
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"call": call[:-1]}, ValueError, "352"),
        ({"call": cupy.zeros(call_size(2) + 8, np.uint8)[4:]}, ValueError, "multiple of 8"),
        ({"call": call.get()}, TypeError, "CuPy array"),
        ({"out": out[:1]}, ValueError, "out must be"),
        ({"out": cupy.zeros((2, 3, 3), np.float16)}, TypeError, "float32"),
        ({"out": cupy.zeros((2, 3, 4), np.float32)[..., :3]}, ValueError, "C-contiguous"),
        ({"heatmaps": cupy.zeros((2, 3, 8, 12), np.float32)[..., ::2]}, ValueError, "C-contiguous"),
        ({"heatmaps": maps[:0]}, ValueError, "at least one map"),
        ({"flipped": maps, "flip_indices": [0, 1, 2]}, TypeError, "flip_indices must be a CuPy array"),
        ({"flipped": maps[:1], "flip_indices": indices}, ValueError, "one shape"),
        ({"flipped": maps, "flip_indices": cupy.asarray(np.array([0, 1, 3], np.int32))}, ValueError, "channel numbers"),
    ]
    prepare_decode_heatmaps(**good)
    for changed, error, message in bad:
        with pytest.raises(error, match=message):
            prepare_decode_heatmaps(**(good | changed))
