"""select_detections: the twin against plain loops, and select_detections.cu, run on the CPU, against the twin."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import emulator
from detector_rows import INPUT_SIZE, random_rows, random_settings

from edgepose.geometry import letterbox_placement
from edgepose.kernels._call import DETECTION, FRAME, detections_size, detections_views
from edgepose.kernels._detections import MAX_CANDIDATES
from edgepose.kernels._placement import RESIZES
from edgepose.kernels.reference import select_detections

WHOLE = (1.0, 1.0, 0.0, 0.0)  # the frame is the input
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def by_loops(
    rows: np.ndarray,
    placement: Any,
    frame_size: Any,
    min_score: float,
    nms_iou: Any,
    most: int,
    keep: Any,
    agnostic: bool,
) -> Any:
    """The definition, a row at a time, in the twin's float32."""
    scale, offset = np.float32(placement[:2]), np.float32(placement[2:])
    found = []
    for number, row in enumerate(rows):
        label = np.rint(row[5])
        if not np.isfinite(row).all() or row[4] < np.float32(min_score) or label < 0:
            continue
        if label >= (1 << 24 if keep is None else len(keep)) or not (keep is None or keep[int(label)]):
            continue
        with np.errstate(over="ignore"):
            box = [(row[i] - offset[i % 2]) / scale[i % 2] for i in range(4)]
        box = [min(max(value, np.float32(0)), np.float32(frame_size[i % 2])) for i, value in enumerate(box)]
        if box[0] < box[2] and box[1] < box[3]:
            found.append((-float(row[4]), number, box, row[4], int(label)))
    kept: list[Any] = []
    limit = None if nms_iou is None else np.float32(nms_iou)
    for one in sorted(found)[:MAX_CANDIDATES]:
        if len(kept) < most and not (
            limit is not None and any(overlap(one, other, agnostic) > limit for other in kept)
        ):
            kept.append(one)
    boxes, scores, labels = ([one[i] for one in kept] for i in (2, 3, 4))
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int32)


def overlap(one: Any, other: Any, agnostic: bool) -> Any:
    """Intersection over union of two of one label, or of any labels; else 0."""
    a, b = one[2], other[2]
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), np.float32(0)) for i in range(2))
    with np.errstate(invalid="ignore"):  # areas too small for float32
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        return width * height / union if agnostic or one[4] == other[4] else 0


def assert_same(found: Found, expected: Found) -> None:
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_the_twin_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    chosen = 0
    for number in range(200):
        rows = random_rows(rng, int(rng.choice([0, 1, 7, 60, 200, 300])))
        size = tuple(np.exp(rng.uniform(0, 8, 2)).astype(int).tolist())
        settings = random_settings(rng) | {"frame_size": size}
        settings["placement"] = letterbox_placement(size, INPUT_SIZE, RESIZES[number % 3])
        expected = by_loops(
            rows, *(settings[name] for name in
                    ("placement", "frame_size", "min_score", "nms_iou", "max_detections", "keep", "class_agnostic"))
        )  # fmt: skip
        assert_same(select_detections(rows, **settings), expected)
        chosen += len(expected[1])
    assert chosen > 1000


def test_an_example() -> None:
    rows = np.array(
        [
            [10, 20, 110, 220, 0.6, 1],
            [12, 22, 112, 222, 0.9, 1],  # covers the first: IoU 0.94
            [12, 22, 112, 222, 0.9, 0],  # another label does not suppress it, and of equal scores this is later
            [300, 100, 400, 200, 0.8, 1],  # half beside the frame
            [330, 100, 400, 200, 0.95, 1],  # wholly beside it
            [50, 50, 60, 60, 0.2, 1],
        ],
        np.float32,
    )
    # A frame of 640x480 in 320x320: scale 0.5, 40 px of padding above.
    boxes, scores, labels = select_detections(
        rows, placement=(0.5, 0.5, 0, 40), frame_size=(640, 480), min_score=0.3, nms_iou=0.5, max_detections=10
    )
    np.testing.assert_array_equal(boxes, [[24, 0, 224, 364], [24, 0, 224, 364], [600, 120, 640, 320]])
    np.testing.assert_array_equal(scores, np.float32([0.9, 0.9, 0.8]))
    np.testing.assert_array_equal(labels, [1, 0, 1])


def test_labels_that_exclude_each_other() -> None:
    rows = np.array([[10, 20, 110, 220, 0.6, 1], [12, 22, 112, 222, 0.9, 0], [200, 0, 300, 99, 0.5, 1]], np.float32)
    settings: Any = {"placement": WHOLE, "frame_size": (320, 256), "min_score": 0.3, "max_detections": 9}
    assert select_detections(rows, nms_iou=0.5, class_agnostic=True, **settings)[2].tolist() == [0, 1]
    assert select_detections(rows, nms_iou=0.5, **settings)[2].tolist() == [0, 1, 1]
    assert select_detections(rows, nms_iou=None, class_agnostic=True, **settings)[2].tolist() == [0, 1, 1]


def test_candidates_beyond_the_maximum_do_not_count() -> None:
    """1500 boxes apart from each other: the best 1024 stay; a box that only the 1100th would suppress does not come."""
    rng = np.random.default_rng(1)
    corner = np.stack(np.meshgrid(np.arange(50), np.arange(30)), axis=-1).reshape(-1, 2) * 20.0
    scores = rng.permutation(1500)[:, None] / 1500 + 0.01
    rows = np.concatenate([corner, corner + 10, scores, np.zeros((1500, 1))], axis=1).astype(np.float32)
    settings: Any = {"placement": WHOLE, "frame_size": (2000, 2000), "min_score": 0, "nms_iou": 0.5}
    boxes, found, _ = select_detections(rows, max_detections=1024, **settings)
    order = np.argsort(-rows[:, 4], kind="stable")[:MAX_CANDIDATES]
    np.testing.assert_array_equal(found, rows[order, 4])
    np.testing.assert_array_equal(boxes, rows[order, :4])


def test_the_twin_is_fast() -> None:
    """8400 rows of which 300 count: one of three times is below 3 ms (0.5 ms on an idle core)."""
    rng = np.random.default_rng(2)
    rows = random_rows(rng, 8400)
    rows[:, 4] = np.where(np.arange(8400) % 28 == 0, 0.5 + rows[:, 4] / 4, 0.01)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        select_detections(rows, placement=WHOLE, frame_size=(320, 256), min_score=0.3, nms_iou=0.45, max_detections=100)
        times.append(time.perf_counter() - start)
    assert min(times) < 3e-3


def test_wrong_arguments() -> None:
    rows = np.zeros((3, 6), np.float32)
    good: Any = {"placement": WHOLE, "frame_size": (9, 9), "min_score": 0.5, "nms_iou": 0.5, "max_detections": 3}
    with pytest.raises(TypeError, match="float32, got float64"):
        select_detections(rows.astype(float), **good)
    with pytest.raises(ValueError, match=r"\(Q, 6\)"):
        select_detections(rows[:, :5], **good)
    for name, value, message in (
        ("min_score", float("nan"), "min_score must be a finite number"),
        ("nms_iou", 1.5, "nms_iou must be from 0 to 1"),
        ("max_detections", 0, "from 1 to 1024"),
        ("max_detections", 1025, "from 1 to 1024"),
        ("placement", (0, 1, 0, 0), "scales above 0"),
        ("placement", (1, 1, 0), "placement must be"),
    ):
        with pytest.raises(ValueError, match=message):
            select_detections(rows, **(good | {name: value}))


# The kernel ----------------------------------------------------------------------------------------------------------


def on_gpu(cupy: Any, rows: np.ndarray, sizes: Any, resize: Any, settings: dict[str, Any]) -> list[Found]:
    """What the kernel finds in each frame."""
    from edgepose.kernels.cuda import prepare_select_detections

    count, most = len(rows), settings["max_detections"]
    frames = np.zeros(count, FRAME)
    frames["width"], frames["height"] = np.transpose(sizes)
    out = cupy.full(detections_size(count, most), 0xCD, np.uint8)
    keep = settings["keep"]
    table = None if keep is None else cupy.asarray(keep.astype(np.uint8))
    prepare_select_detections(
        cupy.asarray(rows),
        cupy.asarray(frames.view(np.uint8)),
        out,
        input_size=INPUT_SIZE,
        resize=resize,
        min_score=settings["min_score"],
        nms_iou=settings["nms_iou"],
        keep=table,
        class_agnostic=settings["class_agnostic"],
    )()
    counts, detections = detections_views(out.get(), count, most)
    found = []
    for number, of_frame in zip(counts, detections, strict=True):
        assert (of_frame[number:].view(np.uint8) == 0xCD).all()
        found.append(tuple(of_frame[:number][name] for name in ("box", "score", "label")))
    return found


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_the_kernel_is_the_twin(cupy_on_cpu: Any, order: int) -> None:
    """Also with more candidates than fit: they are sorted and cut off again and again."""
    rng = np.random.default_rng(3 + order)
    for number in range(16):
        count = (1, 31, 200, 1023, 1024, 1025, 2500, 300)[number % 8]
        sizes = [tuple(np.exp(rng.uniform(0, 8, 2)).astype(int).tolist()) for _ in range(3)] + [(0, 0)]
        rows = np.stack([random_rows(rng, count) for _ in sizes])
        settings, resize = random_settings(rng), RESIZES[number % 3]
        if number % 8 == 6:
            settings["min_score"], settings["keep"] = -1.0, None
        with emulator.thread_order(order):
            found = on_gpu(cupy_on_cpu, rows, sizes, resize, settings)
        for frame_rows, size, got in zip(rows, sizes, found, strict=True):
            if size == (0, 0):
                assert len(got[0]) == 0
                continue
            placement = letterbox_placement(size, INPUT_SIZE, resize)
            assert_same(got, select_detections(frame_rows, placement=placement, frame_size=size, **settings))


def test_the_kernel_keeps_the_best_of_8400(cupy_on_cpu: Any) -> None:
    rng = np.random.default_rng(4)
    rows = np.concatenate([random_rows(rng, 8400), random_rows(rng, 8400)[::-1]]).reshape(2, 8400, 6)
    rows[1] = rows[1][np.argsort(np.nan_to_num(rows[1, :, 4]), kind="stable")]  # each is better than all before it
    settings: dict[str, Any] = {"min_score": 0.0, "nms_iou": None, "max_detections": 1024, "keep": None,
                                "class_agnostic": False}  # fmt: skip
    found = on_gpu(cupy_on_cpu, rows, [(320, 256)] * 2, "letterbox", settings)
    for frame_rows, got in zip(rows, found, strict=True):
        assert len(got[0]) == 1024
        assert_same(got, select_detections(frame_rows, placement=WHOLE, frame_size=(320, 256), **settings))


def test_wrong_buffers(cupy_on_cpu: Any) -> None:
    from edgepose.kernels.cuda import prepare_select_detections

    cupy = cupy_on_cpu
    good: dict[str, Any] = {
        "rows": cupy.zeros((2, 5, 6), np.float32),
        "frames": cupy.zeros(2 * FRAME.itemsize, np.uint8),
        "out": cupy.zeros(detections_size(2, 3), np.uint8),
        "input_size": (8, 9),
        "resize": "stretch",
        "min_score": 0.5,
        "nms_iou": None,
    }
    prepare_select_detections(**good)
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"rows": cupy.zeros((2, 5, 6), np.float16)}, TypeError, "rows must be a CuPy array of float32"),
        ({"rows": cupy.zeros((2, 5, 7), np.float32)}, ValueError, r"\(B, Q, 6\)"),
        ({"rows": cupy.zeros((2, 0, 6), np.float32)}, ValueError, "at least 1"),
        ({"frames": cupy.zeros(95, np.uint8)}, ValueError, "96 bytes for 2 frames"),
        ({"out": cupy.zeros(detections_size(2, 3) + 8, np.uint8)}, ValueError, r"detections_size\(2, M\)"),
        ({"out": cupy.zeros(detections_size(2, 1025), np.uint8)}, ValueError, "from 1 to 1024"),
        ({"out": cupy.zeros(8, np.uint8)}, ValueError, "out must hold 56 bytes"),
        ({"keep": np.ones(3, np.uint8)}, TypeError, "keep must be a CuPy array"),
        ({"keep": cupy.zeros((3, 1), np.uint8)}, ValueError, r"\(C,\)"),
        ({"nms_iou": 2}, ValueError, "nms_iou must be"),
        ({"resize": "fit"}, ValueError, "resize must be"),
        ({"input_size": (0, 9)}, ValueError, "two whole numbers"),
    ]
    for changed, error, message in bad:
        with pytest.raises(error, match=message):
            prepare_select_detections(**(good | changed))
    assert DETECTION.itemsize == 24
