"""plan_crops: the twin against edgepose.geometry, and plan_crops.cu, run on the CPU, against the twin: to the bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import emulator

from edgepose import geometry
from edgepose.errors import InputError
from edgepose.kernels import _crop
from edgepose.kernels._call import (
    DETECTION,
    FRAME,
    INSTANCE,
    call_size,
    call_views,
    detections_size,
    detections_views,
)
from edgepose.kernels.reference import CropGeometry, plan_crops

# Label 0, 2 and 4 belong to model 0, label 1 to model 1, label 3 to none; 5 is unknown.
CATEGORIES = np.array([[0, 3, 0], [3, 9, 1], [9, 20, 0], [0, 0, -1], [2, 5, 0]], np.int32)
FIELDS = list(FRAME.names or ())
Case = tuple[np.ndarray, np.ndarray, np.ndarray, CropGeometry]


def random_case(rng: np.random.Generator) -> Case:
    """counts, detections, frames, geometry: boxes of all sizes, some far beyond what float32 resolves."""
    frame_count, most = int(rng.integers(1, 5)), int(rng.choice([1, 3, 40, 150]))
    sides = [tuple(rng.integers(2, limit, 2).tolist()) for limit in (400, 100)]
    codec, sampling = rng.choice(["msra", "udp"]), rng.choice(["linear", "opencv4", "area"])
    frames = np.zeros(frame_count, FRAME)
    frames["width"], frames["height"] = np.exp(rng.uniform(0.7, 9, (2, frame_count))).astype(int)
    frames["pixels"], frames["row_stride"] = rng.integers(1, 1 << 40, frame_count), rng.integers(-9999, 9999)
    limits = np.stack([frames["width"], frames["height"]], axis=1)[:, None]
    low = rng.random((frame_count, most, 2)) * limits
    side = np.exp(rng.uniform(-20, np.log(limits), low.shape))
    boxes = np.concatenate([low, np.minimum(low + side, limits)], axis=2).astype(np.float32)
    if rng.random() < 0.3:
        spread = np.exp(rng.uniform(-100, 85, (frame_count, most, 1, 2)))
        extreme = np.sort(rng.normal(size=(frame_count, most, 2, 2)) * spread, axis=2)
        some = rng.random((frame_count, most)) < 0.3
        boxes[some] = extreme.reshape(frame_count, most, 4)[some].astype(np.float32)
    thin = rng.random((frame_count, most)) < 0.05  # as thin as float32 allows: too thin for an affine of "msra"
    boxes[thin, 2:] = np.nextafter(boxes[thin, :2], np.float32(np.inf))
    boxes[(boxes[..., :2] >= boxes[..., 2:]).any(axis=-1)] = 1, 2, 3, 4
    detections = np.zeros((frame_count, most), DETECTION)
    detections["box"], detections["label"] = boxes, rng.integers(-2, 6, (frame_count, most))
    counts = rng.integers(0, most + 1, frame_count).astype(np.int32)
    return counts, detections, frames, CropGeometry(*sides, str(codec), float(rng.uniform(0.5, 2)), str(sampling))


def test_the_twin_is_what_geometry_and_the_crop_kernel_s_plan_give() -> None:
    rng = np.random.default_rng(0)
    refused = halved = 0
    for _ in range(60):
        counts, detections, frames, shape = random_case(rng)
        instances = iter(plan_crops(counts, detections, frames, CATEGORIES, model=0, geometry=shape))
        spec: Any = SimpleNamespace(**shape._asdict())
        for owner, (count, frame) in enumerate(zip(counts, frames, strict=True)):
            for detection in detections[owner, :count]:
                label = detection["label"]
                if not 0 <= label < len(CATEGORIES) or CATEGORIES[label, 2] != 0:
                    continue
                instance = next(instances)
                assert instance["owner"] == owner
                assert all(instance[name] == frame[name] for name in FIELDS)
                try:
                    inverses = geometry.crop_transforms(detection["box"][None], spec)[1]
                except InputError:  # a black crop without channels, what it does not decode in the box's centre
                    assert instance["channels"].tolist() == [CATEGORIES[label, 0]] * 2
                    np.testing.assert_array_equal(instance["sample"], [[0, 0, -8]] * 2)
                    centre = detection["box"].reshape(2, 2).astype(float).mean(axis=0)
                    np.testing.assert_allclose(instance["place"] @ [-1, -1, 1], centre, rtol=1e-6)  # float32
                    refused += 1
                    continue
                plan = _crop.plan_crops(
                    inverses, shape.input_size, (int(frame["width"]), int(frame["height"])), shape.sampling
                )
                assert instance["sample"].tobytes() == plan.samples[0].tobytes()
                assert instance["place"].tobytes() == geometry.cells_to_frame(inverses, spec)[0].tobytes()
                assert instance["first"].tolist() == plan.first[0].tolist()
                assert instance["halvings"] == plan.halvings[0]
                assert instance["channels"].tolist() == CATEGORIES[label, :2].tolist()
                halved += plan.halvings[0] > 0
        assert next(instances, None) is None
    assert refused > 5
    assert halved > 10


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_the_kernel_is_the_twin_to_the_bit(cupy_on_cpu: Any, order: int) -> None:
    from edgepose.kernels.cuda import prepare_plan_crops

    cupy, rng = cupy_on_cpu, np.random.default_rng(1 + order)
    planned = 0
    for number in range(60):
        counts, detections, frames, shape = random_case(rng)
        model = number % 2
        expected = plan_crops(counts, detections, frames, CATEGORIES, model=model, geometry=shape)
        packed = np.zeros(detections_size(*detections.shape), np.uint8)
        of_frame, records = detections_views(packed, *detections.shape)
        of_frame[...], records[...] = counts, detections
        room, first = int(rng.choice([8, 64, 600])), int(rng.choice([0, 0, 5, 20]))
        held = np.full(call_size(room), 0xAB, np.uint8)
        call_views(held, room)[0]["first"] = first
        call = cupy.asarray(held)
        devices = [cupy.asarray(array) for array in (packed, frames.view(np.uint8), CATEGORIES)]
        with emulator.thread_order(order):
            prepare_plan_crops(*devices, call, crops=room, model=model, geometry=shape)()
            header, instances = call_views(call.get(), room)
        written = min(max(len(expected) - first, 0), room)
        assert (header["count"], header["total"], header["first"]) == (written, len(expected), first)
        assert instances[:written].tobytes() == expected[first : first + written].tobytes()
        assert (instances[written:].view(np.uint8) == 0xAB).all()
        planned += written
    assert planned > 200


def test_detections_become_crops_without_the_host(cupy_on_cpu: Any) -> None:
    """select_detections, plan_crops and crop_warp in one graph: the crops are those of the host's way."""
    from detector_rows import INPUT_SIZE, random_rows

    from edgepose.kernels import cuda, reference

    cupy, rng = cupy_on_cpu, np.random.default_rng(2)
    shape = CropGeometry((24, 32), (6, 8), "udp", 1.25, "area")
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((180, 240), (256, 320))]
    devices = [cupy.asarray(image) for image in images]
    frames = np.array([(d.data.ptr, *d.strides, d.shape[1], d.shape[0], 0, 0) for d in devices], FRAME)
    rows = np.stack([random_rows(rng, 300) for _ in images])
    rows[:, :, 5] = np.abs(rows[:, :, 5])
    table, found = cupy.asarray(frames.view(np.uint8)), cupy.zeros(detections_size(2, 20), np.uint8)
    call, out, heads = cupy.zeros(call_size(40), np.uint8), cupy.zeros((40, 32, 24, 3), np.uint8), cupy.asarray(rows)
    categories = cupy.asarray(CATEGORIES)
    launches = (
        cuda.prepare_select_detections(
            heads, table, found, input_size=INPUT_SIZE, resize="letterbox", min_score=0.3, nms_iou=0.5
        ),
        cuda.prepare_plan_crops(found, table, categories, call, crops=40, model=0, geometry=shape),
        cuda.prepare_crop_warp(call, out, sampling="area"),
    )
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with stream:
            for launch in launches:
                launch()
        graph = stream.end_capture()
    graph.launch(stream)
    stream.synchronize()
    expected = []
    spec: Any = SimpleNamespace(**shape._asdict())
    for image, image_rows in zip(images, rows, strict=True):
        size = (image.shape[1], image.shape[0])
        boxes, _, labels = reference.select_detections(
            image_rows,
            placement=geometry.letterbox_placement(size, INPUT_SIZE),
            frame_size=size,
            min_score=0.3,
            nms_iou=0.5,
            max_detections=20,
        )
        wanted = np.isin(labels, (0, 2, 4))
        affines, _ = geometry.crop_transforms(boxes[wanted], spec)
        expected.append(reference.crop_warp(image, affines, shape.input_size, sampling="area"))
    crops = np.concatenate(expected)
    assert call_views(call.get(), 40)[0]["count"] == len(crops) > 10
    np.testing.assert_array_equal(out.get()[: len(crops)], crops)


def test_wrong_arguments(cupy_on_cpu: Any) -> None:
    from edgepose.kernels.cuda import prepare_plan_crops

    counts, detections, frames = np.zeros(2, np.int32), np.zeros((2, 3), DETECTION), np.zeros(2, FRAME)
    good = CropGeometry((24, 32), (6, 8), "udp", 1.25, "area")
    assert plan_crops(counts, detections, frames, CATEGORIES, model=0, geometry=good).shape == (0,)
    for changed, message in (
        ({"input_size": (0, 3)}, "two whole numbers"),
        ({"heatmap_size": (1, 8)}, "udp needs sizes of at least 2"),
        ({"codec": "dark"}, "codec must be"),
        ({"padding": 0.0}, "padding must be"),
        ({"sampling": "cubic"}, "sampling must be"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_crops(counts, detections, frames, CATEGORIES, model=0, geometry=good._replace(**changed))
    with pytest.raises(ValueError, match="model must be at least 0"):
        plan_crops(counts, detections, frames, CATEGORIES, model=-1, geometry=good)
    with pytest.raises(TypeError, match="detections must be records"):
        plan_crops(counts, np.zeros((2, 3)), frames, CATEGORIES, model=0, geometry=good)
    with pytest.raises(ValueError, match=r"\(B,\), \(B, M\) and \(B,\)"):
        plan_crops(counts, detections[:1], frames, CATEGORIES, model=0, geometry=good)
    cupy = cupy_on_cpu
    buffers: dict[str, Any] = {
        "detections": cupy.zeros(detections_size(2, 3), np.uint8),
        "frames": cupy.zeros(2 * FRAME.itemsize, np.uint8),
        "categories": cupy.zeros((5, 3), np.int32),
        "call": cupy.zeros(call_size(4), np.uint8),
        "crops": 4,
    }
    prepare_plan_crops(**buffers, model=0, geometry=good)
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"detections": cupy.zeros(detections_size(2, 3) + 8, np.uint8)}, ValueError, "detections must have"),
        ({"frames": cupy.zeros(2 * FRAME.itemsize + 8, np.uint8)}, ValueError, "whole records of 48 bytes"),
        ({"frames": cupy.zeros(0, np.uint8)}, ValueError, "at least one frame"),
        ({"categories": cupy.zeros((5, 2), np.int32)}, ValueError, r"\(C, 3\)"),
        ({"categories": cupy.zeros((5, 3), np.int64)}, TypeError, "CuPy array of int32"),
        ({"crops": 5}, ValueError, "call must hold 856 bytes"),
        ({"crops": 0}, ValueError, "crops must be at least 1"),
    ]
    for changed, error, message in bad:
        with pytest.raises(error, match=message):
            prepare_plan_crops(**(buffers | changed), model=0, geometry=good)
    assert INSTANCE.itemsize == 168
