"""Bugs planted into the real kernels are seen: what proves them without a GPU would notice.

Each barrier is removed, tails are made wrong by one, guards are dropped. The kernels then run on the CPU, in several
orders of their threads, against their twins. A bug that depends on the order of threads is seen in some orders only.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from cuda_on_cpu import emulator

from edgepose.geometry import letterbox_placement
from edgepose.kernels import _compile, cuda, reference
from edgepose.kernels._call import (
    DETECTION,
    FRAME,
    call_size,
    call_views,
    detections_size,
    detections_views,
)
from edgepose.kernels._crop import _invert, plan_crops

CROP, DECODE, LETTERBOX = "crop_warp.cu", "decode_heatmaps.cu", "letterbox.cu"
SELECT, PLAN = "select_detections.cu", "plan_crops.cu"
SAMPLING, PLACEMENT = "sampling.cuh", "placement.cuh"  # parts of several
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
        header["count"] = 3
        instances[list(FRAME.names)] = (device_frame.data.ptr, *device_frame.strides, 52, 37, 0, 0)
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


def inputs_are_right(cupy):
    """Whether letterboxed frames are the twin's: padded, enlarged, shrunk, of odd sizes, and none at all."""
    rng = np.random.default_rng(5)
    for shape, size, sampling in (
        ((31, 61), (35, 34), "opencv4"),
        ((7, 5), (21, 37), "linear"),
        ((141, 70), (33, 35), "area"),
    ):
        frame = rng.integers(1, 256, (*shape, 3), dtype=np.uint8)
        device = cupy.asarray(frame)
        table = np.zeros(2, FRAME)
        table[1]["height"] = 5  # the second is no frame
        table[0] = (device.data.ptr, *device.strides, shape[1], shape[0], 0, 0)
        out = cupy.zeros((3, size[1], size[0], 3), np.uint8)
        cuda.prepare_letterbox(cupy.asarray(table.view(np.uint8)), out[:2], resize="letterbox", sampling=sampling)()
        expected = reference.letterbox(frame, size, sampling=sampling).astype(int)
        result = out.get()
        # a level near .5 may be rounded either way under "linear"
        if result[1:].any() or np.abs(result[0] - expected).max() > (sampling == "linear"):
            return False
    return True


def selection_is_right(cupy):
    """Whether the detections are the twin's: with ties, suppressed chains, more candidates than fit, and odd values."""
    rng = np.random.default_rng(6)
    # Sorting seven keys goes wrong where the eighth is not there yet.
    for count, nms_iou, most in ((4200, 0.4, 300), (40, None, 30), (97, 0.3, 9), (7, None, 9)):
        rows = np.zeros((1, count, 6), np.float32)
        rows[..., :2] = np.round(rng.uniform(-20, 60, (1, count, 2)))
        rows[..., 2:4] = rows[..., :2] + np.round(rng.uniform(-1, 25, (1, count, 2)))
        rows[..., 4], rows[..., 5] = np.round(rng.random((1, count)) * 64) / 64, rng.integers(0, 3, count)
        if count > 7:
            rows[0, ::7, rng.integers(0, 6)] = np.nan
        else:
            rows[0] = [(i, i, i + 9, i + 9, 0.9 - i / 100, 2) for i in (3, 1, 4, 0, 2, 6, 5)]
        frames = np.zeros(1, FRAME)
        frames["width"], frames["height"] = 61, 47
        out = cupy.zeros(detections_size(1, most), np.uint8)
        settings = {"min_score": 0.125, "nms_iou": nms_iou, "class_agnostic": count == 97}
        cuda.prepare_select_detections(
            cupy.asarray(rows), cupy.asarray(frames.view(np.uint8)), out, input_size=(64, 64), resize="letterbox",
            keep=cupy.asarray(np.array([1, 0, 1], np.uint8)), **settings,
        )()  # fmt: skip
        counts, detections = detections_views(out.get(), 1, most)
        expected = reference.select_detections(
            rows[0], placement=letterbox_placement((61, 47), (64, 64)), frame_size=(61, 47), max_detections=most,
            keep=np.array([True, False, True]), **settings,
        )  # fmt: skip
        found = detections[0, : counts[0]]
        if counts[0] != len(expected[0]) or not all(
            np.array_equal(found[name], one) for name, one in zip(DETECTION.names, expected, strict=True)
        ):
            return False
    return True


def plans_are_right(cupy):
    """Whether the records are the twin's: of several rounds of the block, of wanted and other labels, in less room."""
    rng = np.random.default_rng(7)
    geometry = reference.CropGeometry((23, 33), (6, 8), "msra", 0.75, "area")
    categories = np.array([[0, 4, 0], [4, 9, 1], [2, 7, 0]], np.int32)
    frames = np.zeros(3, FRAME)
    frames["width"], frames["height"] = (640, 300, 77), (480, 900, 50)
    detections = np.zeros((3, 200), DETECTION)
    low = rng.uniform(0, 70, (3, 200, 2))
    detections["box"] = np.concatenate([low, low + rng.uniform(1, 400, low.shape)], axis=2)
    detections["box"][0, :3, :2], detections["box"][0, :3, 2:] = 60, np.nextafter(np.float32(60), np.float32(61))
    detections["label"] = rng.integers(-1, 4, (3, 200))
    counts = np.array([200, 0, 133], np.int32)
    packed = np.zeros(detections_size(3, 200), np.uint8)
    of_frame, records = detections_views(packed, 3, 200)
    of_frame[...], records[...] = counts, detections
    expected = reference.plan_crops(counts, detections, frames, categories, model=0, geometry=geometry)
    for room, first in ((400, 0), (90, 0), (90, 90)):
        held = np.zeros(call_size(room + 1), np.uint8)
        call_views(held, room)[0]["first"] = first
        call = cupy.asarray(held)
        arrays = [cupy.asarray(array) for array in (packed, frames.view(np.uint8), categories)]
        cuda.prepare_plan_crops(*arrays, call, crops=room, model=0, geometry=geometry)()
        header, instances = call_views(call.get(), room + 1)
        wanted = expected[first : first + room]
        if (header["count"], header["total"]) != (len(wanted), len(expected)):
            return False
        if instances[: len(wanted)].tobytes() != wanted.tobytes() or instances[len(wanted) :].view(np.uint8).any():
            return False
    return True


CHECKS = {
    CROP: crops_are_right,
    DECODE: decoding_is_right,
    LETTERBOX: inputs_are_right,
    SELECT: selection_is_right,
    PLAN: plans_are_right,
}


def orders_that_see(cupy, monkeypatch, kernel, file, source):
    """The orders of threads in which a kernel fails its check, with another text of a file of it."""
    monkeypatch.setattr(_compile, "_text", lambda name: source if name == file else text(name))
    _compile.forget()
    seen = []
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            try:
                right = CHECKS[kernel](cupy)
            except (emulator.LaunchError, cupy.cuda.runtime.CUDARuntimeError):
                right = False
        cupy.cuda.Stream.null._queue.work.clear()  # what a failed launch leaves behind
        seen += [] if right else [order]
    return seen


@pytest.mark.parametrize("file", CHECKS)
def test_without_a_bug_nothing_is_seen(cupy_on_cpu, monkeypatch, file):
    assert orders_that_see(cupy_on_cpu, monkeypatch, file, file, text(file)) == []


@pytest.mark.parametrize(
    ("file", "number"), [(file, number) for file in CHECKS for number in range(text(file).count(BARRIER))]
)
def test_each_barrier_is_needed(cupy_on_cpu, monkeypatch, file, number):
    parts = text(file).split(BARRIER)
    source = BARRIER.join(parts[: number + 1]) + BARRIER.join(["", *parts[number + 1 :]]).removeprefix(BARRIER)
    assert source.count(BARRIER) == len(parts) - 2
    # Most are seen in all orders; that between two tiles of the blur in two, those around a counter in shared memory in
    # one, downwards: shuffles can come out right by chance.
    assert len(orders_that_see(cupy_on_cpu, monkeypatch, file, file, source)) >= (1 if file == SELECT else 2)


# (kernel, file, what is planted, in place of what); without a file it is the kernel's own
PLANTED = {
    "columns: one too many": (CROP, "u > width || v >= height", "u >= width || v >= height"),
    "rows: one too many": (CROP, "u >= width || v > height", "u >= width || v >= height"),
    "taps beyond the right border": (CROP, SAMPLING, "x + 1 <= frame.width", "x + 1 < frame.width"),
    "taps outside of the frame": (CROP, SAMPLING, "right = true", "right = inside(x + 1, frame.width)"),
    "crops beyond the count": (CROP, "if (false) return;", "if (crop >= count) return;"),
    "the last elements are not looked at": (DECODE, "i < size - 1; i += THREADS", "i < size; i += THREADS"),
    "a pack too many": (DECODE, "first + n * THREADS <= packs", "first + n * THREADS < packs"),
    "the last of equals wins": (DECODE, "value >= peak.value", "value > peak.value"),
    "NaN gets into the blur": (DECODE, "return value;", "return fabsf(value) <= LARGEST ? value : 0.0f;"),
    "an input without a frame": (LETTERBOX, "record.width < 0", "record.width < 1"),
    "pixels from edge to edge": (LETTERBOX, "0.0 - (axis", "0.5 - (axis"),
    "no padding": (LETTERBOX, "if (false)", "if (!shown(u, v))"),
    "a picture too wide by one": (LETTERBOX, "u - picture.left - 1, picture", "u - picture.left, picture"),
    "halved once too often": (
        LETTERBOX,
        "2ll * picture.width << level && record.height >= 2ll",
        "4ll * picture.width << level && record.height >= 4ll",
    ),
    "borders that are not repeated": (
        LETTERBOX,
        SAMPLING,
        "right = x + 1 < frame.width ? x + 1 : 0",
        "right = clamp(x + 1, frame.width)",
    ),
    "a picture's size rounded down": (LETTERBOX, PLACEMENT, "up = false", "up = resize != LETTERBOX_CORNER"),
    "of equals the higher row": (SELECT, "static_cast<unsigned>(-row)", "static_cast<unsigned>(row)"),
    "boxes without an area": (SELECT, "detection.box[0] <= detection", "detection.box[0] < detection"),
    "labels suppress each other": (SELECT, "(true) &&\n", "(class_agnostic || detection.label == kinds[i]) &&\n"),
    "what is dropped drops others": (SELECT, "if (false) continue;", "if (dropped[i]) continue;"),
    "one more than there is room for": (SELECT, "kept <= most; ++i", "kept < most; ++i"),
    "of the best too few": (SELECT, "total = CANDIDATES / 2;", "total = CANDIDATES;"),
    "NaN counts": (
        SELECT,
        "if (!(detection.score >= min_score))",
        "if (finite != 0 || !(detection.score >= min_score))",
    ),
    "a label that is not kept": (
        SELECT,
        "if (false) return false;",
        "if (keep && !keep[detection.label]) return false;",
    ),
    "detections beyond the count": (PLAN, "place - owner * most <= counts", "place - owner * most < counts"),
    "crops beyond the room": (PLAN, "number > crops", "number >= crops"),
    "the lanes before": (PLAN, "(2u << threadIdx.x % 32) - 1", "(1u << threadIdx.x % 32) - 1"),
    "warps that are not before": (PLAN, "if (i <= warp)", "if (i < warp)"),
    "float64 in place of float32": (PLAN, "const double aspect = (", "const float aspect = __double2float_rn("),
    "what float32 does not hold": (
        PLAN,
        "if (invert(detection.box, geometry, inverse) || true)",
        "if (invert(detection.box, geometry, inverse))",
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_seen(cupy_on_cpu, monkeypatch, bug):
    kernel, *other, planted, right = PLANTED[bug]
    file = other[0] if other else kernel
    source = text(file)
    assert right in source, f"{file} has changed: plant this bug elsewhere"
    seen = orders_that_see(cupy_on_cpu, monkeypatch, kernel, file, source.replace(right, planted))
    assert seen == list(emulator.ORDERS)
