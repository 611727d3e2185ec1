"""Bugs planted into the real kernels are seen: what proves them without a GPU would notice.

Each barrier is removed, tails are made wrong by one, guards are dropped. The kernels then run on the CPU, in several
orders of their threads, against their twins. A bug that depends on the order of threads is seen in some orders only.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from cuda_on_cpu import emulator

from edgepose.kernels import _compile, cuda, reference
from edgepose.kernels._call import call_size, call_views
from edgepose.kernels._crop import _invert, plan_crops

CROP, DECODE = "crop_warp.cu", "decode_heatmaps.cu"
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
BARRIER = "__syncthreads();"


def text(file):
    return resources.files("edgepose.kernels").joinpath(file).read_text(encoding="utf-8")


def crops_are_right(cupy):
    """Whether the kernel's crops are the twin's: of a frame with borders, a size with tails, and less than launched."""
    rng = np.random.default_rng(3)
    frame = rng.integers(1, 256, (37, 52, 3), dtype=np.uint8)
    device_frame = cupy.asarray(frame)
    turn, scale = np.array([[0.8, -0.6], [0.6, 0.8]]), np.array([0.7, 1.9, 0.4])
    affines = np.empty((3, 2, 3))
    affines[:, :, :2] = scale[:, None, None] * turn
    affines[:, :, 2] = [[10, -8], [-30, -20], [3, 15]]  # each crop sees the frame and what is beside it
    inverses, size = _invert(affines), (35, 21)
    for sampling in ("linear", "opencv4"):
        record = np.zeros(call_size(4), np.uint8)  # room for four crops, and three to make
        header, instances = call_views(record, 4)
        header[()] = (device_frame.data.ptr, *device_frame.strides, 52, 37, 0, 0, 3, 0)
        instances["sample"][:3] = plan_crops(inverses, size, (52, 37), sampling).samples
        out = cupy.zeros((5, 3, 21, 35), np.float32)
        cuda.prepare_crop_warp(cupy.asarray(record), out[:4], sampling=sampling, mean=MEAN, std=STD)()
        expected = reference.crop_warp(frame, affines, size, sampling=sampling, mean=MEAN, std=STD)
        result = out.get()
        # "linear" rounds coordinates to 2^-32 px, 1e-7 in units of std; none seen here. "opencv4" is exact.
        if result[3:].any() or not np.allclose(result[:3], expected, rtol=0, atol=0 if sampling == "opencv4" else 1e-5):
            return False
    return True


def decoding_is_right(cupy):
    """Whether the kernel's peaks are the twin's: clean, tied, with NaN, in the last cell, none, and faint noise."""
    rng = np.random.default_rng(4)
    height, width = 61, 45  # the blur takes two tiles; neither rows nor maps are whole packs of 16 bytes
    y, x = np.mgrid[:height, :width]
    maps = np.exp(-((x - 20.3) ** 2 + (y - 33.8) ** 2) / 8) * np.ones((8, 1, 1))
    maps[1, 10, 11:13] = 2
    maps[2, 30:34:3, 18:22] = np.nan
    maps[3] = -1
    maps[4, -1, -1], maps[4, 0, 0] = 2, 1.5  # right behind a map that has no peak
    maps[5:] = 4e-3 * rng.normal(size=(3, height, width))  # below the floor of dark_udp: the whole map is blurred
    maps = maps.astype(np.float32)[None]
    for refinement in ("none", "dark_udp"):
        locations, scores = cuda.decode_heatmaps(cupy.asarray(maps), refinement=refinement)
        expected, peaks = reference.decode_heatmaps(maps, refinement=refinement)
        # Logarithms differ in their last bits; a Newton step magnifies that; worst seen 2e-6 cells.
        atol = 1e-3 if refinement == "dark_udp" else 0
        if not (np.array_equal(scores.get(), peaks) and np.allclose(locations.get(), expected, rtol=0, atol=atol)):
            return False
    return True


CHECKS = {CROP: crops_are_right, DECODE: decoding_is_right}


def orders_that_see(cupy, monkeypatch, file, source):
    """The orders of threads in which a kernel's text fails its check."""
    texts = {name: source if name == file else text(name) for name in ("common.cuh", file)}
    monkeypatch.setattr(_compile, "_text", texts.__getitem__)
    _compile.forget()
    seen = []
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            try:
                right = CHECKS[file](cupy)
            except (emulator.LaunchError, cupy.cuda.runtime.CUDARuntimeError):
                right = False
        cupy.cuda.Stream.null._queue.work.clear()  # what a failed launch leaves behind
        seen += [] if right else [order]
    return seen


@pytest.mark.parametrize("file", CHECKS)
def test_without_a_bug_nothing_is_seen(cupy_on_cpu, monkeypatch, file):
    assert orders_that_see(cupy_on_cpu, monkeypatch, file, text(file)) == []


@pytest.mark.parametrize(
    ("file", "number"), [(file, number) for file in CHECKS for number in range(text(file).count(BARRIER))]
)
def test_each_barrier_is_needed(cupy_on_cpu, monkeypatch, file, number):
    parts = text(file).split(BARRIER)
    source = BARRIER.join(parts[: number + 1]) + BARRIER.join(["", *parts[number + 1 :]]).removeprefix(BARRIER)
    assert source.count(BARRIER) == len(parts) - 2
    # Most are seen in all orders; that between two tiles of the blur in two: shuffles can come out right by chance.
    assert len(orders_that_see(cupy_on_cpu, monkeypatch, file, source)) >= 2


# (file, what is planted, in place of what)
PLANTED = {
    "columns: one too many": (CROP, "u > width || v >= height", "u >= width || v >= height"),
    "rows: one too many": (CROP, "u >= width || v > height", "u >= width || v >= height"),
    "taps beyond the right border": (CROP, "x + 1 <= frame.width", "x + 1 < frame.width"),
    "taps outside of the frame": (CROP, "right = true", "right = inside(x + 1, frame.width)"),
    "crops beyond the count": (CROP, "if (false) return;", "if (crop >= count) return;"),
    "the last elements are not looked at": (DECODE, "i < size - 1; i += THREADS", "i < size; i += THREADS"),
    "a pack too many": (DECODE, "first + n * THREADS <= packs", "first + n * THREADS < packs"),
    "the last of equals wins": (DECODE, "value >= peak.value", "value > peak.value"),
    "NaN gets into the blur": (DECODE, "return value;", "return fabsf(value) <= LARGEST ? value : 0.0f;"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(cupy_on_cpu, monkeypatch, bug):
    file, planted, right = PLANTED[bug]
    source = text(file)
    assert right in source, f"{file} has changed: plant this bug elsewhere"
    assert orders_that_see(cupy_on_cpu, monkeypatch, file, source.replace(right, planted)) == list(emulator.ORDERS)
