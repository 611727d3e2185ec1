"""Every kernel under ASan and UBSan, on sizes that fill neither tiles nor packs: no access out of bounds or misaligned.

Each array ends where its memory ends. The values are compared elsewhere.
"""

from __future__ import annotations

import pytest
from cuda_on_cpu import sanitizers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sanitizers.library() is None, reason="needs a C++ compiler and libasan, which comes with GCC"),
]

START = """
import sys
import numpy as np
from cuda_on_cpu import cupy_on_cpu
sys.modules.update(cupy_on_cpu.modules())
import cupy
from edgepose.kernels import cuda
rng = np.random.default_rng(0)
"""
END = """
cupy.cuda.Device().synchronize()
print("ran to the end")
"""
CROPS = """
affines = np.array([[[0.9, 0.2, -5], [-0.2, 0.9, 8]], [[3.1, 0, -90], [0, 0.3, 2]], [[0.06, 0, 3], [0, 0.07, 1]]])
for height, width in (37, 52), (31, 41), (1, 1), (16, 4), (130, 140):  # rows of whole words, and not
    frame = cupy.asarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for view in (frame, frame[::-1, ::-1]):
        for crops, size in (3, (33, 17)), (1, (1, 1)), (2, (32, 16)):
            out = cupy.empty((crops, 3, size[1], size[0]), np.%(dtype)s)
            cuda.crop_warp(view, affines[:crops], size, sampling="%(sampling)s", mean=[1, 2, 3], std=[4, 5, 6], out=out)
"""
DECODES = """
for height, width in (61, 45), (3, 5), (1, 1), (1, 7), (9, 2), (64, 48):
    maps = rng.normal(size=(2, 3, height, width)) * rng.choice([1, 4e-3], (2, 3, 1, 1))
    maps[0, 0, 0, 0], maps[0, 1, -1, -1], maps[1, 2] = 9, 9, np.nan
    maps = maps.astype(np.%(dtype)s)
    flip = {"flipped": cupy.asarray(maps[::-1].copy()), "flip_indices": [1, 0, 2], "flip_shift": True}
    flip = flip if %(flip)s else {}
    cuda.decode_heatmaps(cupy.asarray(maps), refinement="%(refinement)s", blur_kernel=%(blur)s, **flip)
"""
LETTERBOXES = """
for height, width in (37, 52), (31, 41), (1, 1), (16, 4), (1, 90), (130, 141):
    frame = cupy.asarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for view in (frame, frame[::-1, ::-1]):
        for resize, size in ("letterbox", (33, 17)), ("letterbox_corner", (1, 1)), ("stretch", (32, 16)):
            out = cupy.empty((3, size[1], size[0]), np.%(dtype)s)
            cuda.letterbox(view, size, resize=resize, sampling="%(sampling)s", mean=[1, 2, 3], std=[4, 5, 6], out=out)
"""
CHAIN = """
from edgepose.kernels._call import DETECTION, FRAME, call_size, detections_size
from edgepose.kernels.reference import CropGeometry
frames = np.zeros(3, FRAME)
frames["width"], frames["height"] = (640, 0, 77), (480, 0, 50)
frames = cupy.asarray(frames.view(np.uint8))
categories = cupy.asarray(np.array([[0, 4, 0], [4, 9, 1]], np.int32))
keep = cupy.asarray(np.array([1, 0, 1], np.uint8))
geometry = CropGeometry((24, 32), (6, 8), "msra", 1.25, "area")
for count in (1, 33, 2100):
    for most in (1, 1024):
        rows = rng.uniform(-20, 60, (3, count, 6)).astype(np.float32)
        rows[..., 2:4] = rows[..., :2] + rng.uniform(-1, 25, (3, count, 2))
        rows[..., 4] = rng.random((3, count))
        rows[..., 5] = rng.integers(-2, 5, (3, count))
        rows[rng.random(rows.shape) < 0.01] = np.nan
        found = cupy.empty(detections_size(3, most), np.uint8)
        for nms_iou in (0.5, None):
            cuda.prepare_select_detections(cupy.asarray(rows), frames, found, input_size=(64, 64), resize="letterbox",
                                           min_score=0.01, nms_iou=nms_iou, keep=keep)()
            call = cupy.zeros(call_size(90), np.uint8)
            cuda.prepare_plan_crops(found, frames, categories, call, crops=90, model=0, geometry=geometry)()
            cupy.cuda.Device().synchronize()
"""
RUNS = {
    "linear": CROPS % {"dtype": "float16", "sampling": "linear"},
    "area": CROPS % {"dtype": "float32", "sampling": "area"},
    "letterbox linear": LETTERBOXES % {"dtype": "float16", "sampling": "linear"},
    "letterbox area": LETTERBOXES % {"dtype": "float32", "sampling": "area"},
    "detections": CHAIN,
    "shift": DECODES % {"dtype": "float16", "refinement": "shift", "blur": 11, "flip": True},
    "dark_udp": DECODES % {"dtype": "float32", "refinement": "dark_udp", "blur": 11, "flip": True},
}


@pytest.mark.parametrize("name", RUNS)
def test_no_access_is_out_of_bounds(name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = sanitizers.run(START + RUNS[name] + END)
    assert run.stdout == "ran to the end\n", run.stderr[-4000:]


@pytest.mark.parametrize(
    ("name", "file", "right", "wrong"),
    [
        ("linear", "sampling.cuh", "y + 1 < frame.height", "y + 1 <= frame.height"),
        ("letterbox linear", "sampling.cuh", "clamp(y + 1, frame.height)", "y + 1"),
        ("detections", "select_detections.cu", "row < count", "row <= count"),
        ("detections", "plan_crops.cu", "label < labels", "label <= labels"),
        ("shift", "decode_heatmaps.cu", "i < size; i += THREADS", "i <= size; i += THREADS"),
    ],
)
def test_an_access_beyond_the_frame_or_a_map_would_be_seen(name, file, right, wrong, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plant = f"""
from edgepose.kernels import _compile
texts = _compile._text
assert {right!r} in texts({file!r}), "{file} has changed: plant this bug elsewhere"
_compile._text = lambda name: texts(name).replace({right!r}, {wrong!r}) if name == {file!r} else texts(name)
"""
    run = sanitizers.run(START + plant + RUNS[name] + END)
    assert "heap-buffer-overflow" in run.stderr, run.stderr[-4000:]
    assert run.returncode != 0
