"""The CUDA kernels alone: device time beside the floor that memory sets: `edgepose bench kernels --device cuda`.

The floor of a kernel is the bytes that it must move divided by what a device-to-device copy achieves on this GPU. Its
peers are what PyTorch has for the same work, captured into a CUDA graph. Before anything is timed the results are
compared with those of the NumPy twins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.benchmarks import timing
from edgepose.benchmarks.gpu_timing import bandwidth, captured, device_times, gpu_facts, memory_floor, noted
from edgepose.benchmarks.kernel_cases import (
    COLOURS,
    CROPS,
    DETECTOR_SIZE,
    FRAME,
    INPUT_SIZE,
    REFINEMENTS,
    SAMPLINGS,
    detector_rows,
    peaks,
)
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import scene
from edgepose.kernels import reference
from edgepose.kernels._call import FRAME as FRAME_RECORD
from edgepose.kernels._call import call_size, call_views, detections_size, detections_views
from edgepose.kernels._crop import plan_crops
from edgepose.kernels.cuda import (
    prepare_crop_warp,
    prepare_decode_heatmaps,
    prepare_letterbox,
    prepare_select_detections,
)

__all__ = ["GpuCase", "gpu_cases", "run"]

OURS = "edgepose"
ROUNDS, QUICK_ROUNDS = 15, 3
CHANNELS = (25, 294)
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class GpuCase:
    """One kernel with certain arguments; see :class:`edgepose.benchmarks.kernel_cases.Case`.

    Attributes:
        launches: by way, "edgepose" first: each queues its work on CuPy's current stream and waits for nothing.
        moved: bytes that have to be read and written once.
        results: by way: what its launch has written, on the host; None where there is nothing to compare.
        expected: the NumPy twin's.
        limits: by way: the largest mean difference at which its time counts.
        unit: of differences.
    """

    kernel: str
    name: str
    launches: Mapping[str, Callable[[], Any]]
    moved: int
    results: Mapping[str, Callable[[], NDArray[Any]]]
    expected: NDArray[Any]
    limits: Mapping[str, float]
    unit: str


def run(
    *,
    rounds: int = ROUNDS,
    quick: bool = False,
    progress: Callable[[int, int, str], Any] | None = None,
    save: Callable[[Record], Any] | None = None,
) -> Record:
    """Measure all kernels on CuPy's current GPU.

    Args:
        rounds, quick, progress: as of :func:`edgepose.benchmarks.kernels.run`.
        save: gets the record as it is after each kernel, because what comes later may fail.

    Returns:
        Rows as of :func:`edgepose.benchmarks.kernels.run`, without threads; times in us, with ``bytes``, ``floor`` (us)
        and ``times_floor``; differences are to the NumPy twin.
    """
    import cupy

    rounds = min(rounds, QUICK_ROUNDS) if quick else rounds
    rows: list[Row] = []
    notes = ["Device times from CUDA events, L2 flushed before each run; the floor is a device-to-device copy's."]
    with cupy.cuda.Stream(non_blocking=True):
        roof = bandwidth()
        nothing = device_times({"nothing": lambda: None}, rounds=rounds)["nothing"] * 1e3
        floor: dict[str, Label] = {"kernel": "nothing", "case": "two events", "way": "CUDA", "figure": "time"}
        rows.append(Row(floor, "us", timing.summarize(nothing)))
        copy: dict[str, Label] = {"kernel": "copy", "case": "512 MB", "way": "CUDA", "figure": "bandwidth"}
        rows.append(Row(copy, "GB/s", {"value": roof / 1e9}))
        cases = gpu_cases(notes, quick=quick)
        for number, (name, make) in enumerate(cases):
            if progress is not None:
                progress(number, len(cases), name)
            with noted(notes, name):
                rows += _measured(make(), rounds, roof, notes)
            if save is not None:
                save(make_record("kernels", rows, notes=notes, gpu=gpu_facts()))
    return make_record("kernels", rows, notes=notes, gpu=gpu_facts())


def _measured(case: GpuCase, rounds: int, roof: float, notes: list[str]) -> Iterator[Row]:
    """Differences first; then the times of the ways whose results are good."""
    labels: dict[str, Label] = {"kernel": case.kernel, "case": case.name}
    launches = {}
    for way, launch in case.launches.items():
        launch()
        apart = np.abs(case.results[way]().astype(np.float64) - case.expected)
        values = {"mean": apart.mean(), "p99": np.percentile(apart, 99), "worst": apart.max()}
        yield Row({**labels, "way": way, "figure": "difference"}, case.unit, values)
        if values["mean"] <= case.limits[way]:
            launches[way] = launch
        else:
            notes.append(
                f"{case.kernel}, {case.name}: {way} is not timed, its results differ from the NumPy twin's by "
                f"{values['mean']:.3g} {case.unit} in the mean (limit {case.limits[way]:g})"
            )
    times = {way: of_way * 1e3 for way, of_way in device_times(launches, rounds=rounds).items()}
    floor = memory_floor(case.moved, roof)
    for way, of_way in times.items():
        summary = timing.summarize(of_way)
        more = {"bytes": case.moved, "floor": floor, "times_floor": summary["p50"] / floor}
        yield Row({**labels, "way": way, "figure": "time"}, "us", {**summary, **more})
        if way != OURS and OURS in times:
            yield Row({**labels, "way": way, "figure": "ratio"}, "ratio", timing.ratio(times[OURS], of_way))


def gpu_cases(notes: list[str], *, quick: bool = False) -> list[tuple[str, Callable[[], GpuCase]]]:
    """What each case is, and what makes it: one after the other, so that each has the GPU's memory to itself."""
    try:
        from edgepose.benchmarks.peers import gpu_torch_kernels as torch_kernels
    except ImportError as error:
        notes.append(f"left out, PyTorch's ways: {error}")
        torch_kernels = None  # type: ignore[assignment]
    cases: list[tuple[str, Callable[[], GpuCase]]] = [("select_detections", _selection_case)]
    for dtype in (np.float16,) if quick else (np.float16, np.float32):
        cases += [(f"crop_warp {name}", partial(_crop_case, name, dtype, torch_kernels)) for name in SAMPLINGS]
        cases += [
            (f"decode_heatmaps {name}, {channels}", partial(_decode_case, channels, name, dtype, torch_kernels))
            for channels in CHANNELS
            for name in REFINEMENTS
        ]
        cases.append(("letterbox", partial(_letterbox_case, dtype)))
    return cases


def frame_record(frame: Any) -> NDArray[np.void]:
    """(1,) FRAME of a whole device frame (H, W, 3), C-contiguous."""
    height, width = frame.shape[:2]
    return np.array([(frame.data.ptr, *frame.strides, width, height, 0, 0)], FRAME_RECORD)


def _crop_case(sampling: Any, dtype: Any, torch_kernels: Any) -> GpuCase:
    import cupy

    host, boxes = scene(*FRAME, CROPS)
    if sampling == "area":  # larger ones, so that the frame is halved once
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2])
        boxes = np.concatenate([middle - half, middle + half], axis=1)
    frame = cupy.asarray(host)
    affines = geometry.crop_affines(boxes, INPUT_SIZE)
    inverses = geometry.invert_affines(affines)
    plan = plan_crops(inverses, INPUT_SIZE, FRAME, sampling)
    record = np.zeros(call_size(CROPS), np.uint8)
    header, instances = call_views(record, CROPS)
    header["count"] = header["total"] = CROPS
    instances[list(FRAME_RECORD.names or ())] = frame_record(frame)[0]
    instances["sample"], instances["first"], instances["halvings"] = plan.samples, plan.first, plan.halvings
    out = cupy.zeros((CROPS, 3, INPUT_SIZE[1], INPUT_SIZE[0]), dtype)
    launch = prepare_crop_warp(cupy.asarray(record), out, sampling=sampling, **COLOURS)
    launches = {OURS: _keeping(launch, frame)}
    results: dict[str, Callable[[], NDArray[Any]]] = {OURS: out.get}
    if torch_kernels is not None and sampling == "linear":
        theirs, results["torch grid_sample"] = torch_kernels.crops(frame, inverses, INPUT_SIZE, dtype, **COLOURS)
        launches["torch grid_sample"] = captured(theirs)
    left, top, right, bottom = plan.window
    expected = reference.crop_warp(host, affines, INPUT_SIZE, sampling=sampling, **COLOURS)
    name = f"{sampling}, {CROPS} crops, {np.dtype(dtype).name}" + (", halved once" if plan.halvings.any() else "")
    # float16 holds 1e-3 of a normalised value of up to 2.6; grid_sample's weights are float32, its positions too
    limits = dict.fromkeys(launches, 2e-3) | {"torch grid_sample": 5e-3}
    moved = 3 * (right - left) * (bottom - top) + out.nbytes
    return GpuCase("crop_warp", name, launches, moved, results, expected, limits, "of a normalised value")


def _decode_case(channels: int, refinement: Any, dtype: Any, torch_kernels: Any) -> GpuCase:
    import cupy

    host = peaks(channels).astype(dtype)
    heatmaps = cupy.asarray(host)
    record = np.zeros(call_size(CROPS), np.uint8)
    header, instances = call_views(record, CROPS)
    header["count"] = header["total"] = CROPS
    instances["place"], instances["channels"] = np.eye(2, 3), (0, channels)
    out = cupy.zeros((CROPS, channels, 3), np.float32)
    launch = prepare_decode_heatmaps(cupy.asarray(record), heatmaps, out, refinement=refinement, blur_kernel=11)
    launches: dict[str, Callable[[], Any]] = {OURS: launch}
    results: dict[str, Callable[[], NDArray[Any]]] = {OURS: lambda: out.get()[..., :2]}
    if torch_kernels is not None:
        theirs, results["torch"] = torch_kernels.decoder(heatmaps, refinement)
        launches["torch"] = captured(theirs)
    expected, _ = reference.decode_heatmaps(host, refinement=refinement)
    name = f"{refinement}, {CROPS}x{channels} {np.dtype(dtype).name} maps"
    moved = heatmaps.nbytes + out.nbytes
    # Locations within 1e-3 cells is what the kernel promises; PyTorch blurs in another order
    limits = dict.fromkeys(launches, 1e-3) | {"torch": 1e-2}
    return GpuCase("decode_heatmaps", name, launches, moved, results, expected, limits, "cells")


def _letterbox_case(dtype: Any) -> GpuCase:
    import cupy

    host = scene(*FRAME, CROPS).frame
    frame = cupy.asarray(host)
    out = cupy.zeros((1, 3, *DETECTOR_SIZE[::-1]), dtype)
    table = cupy.asarray(frame_record(frame).view(np.uint8))
    launch = prepare_letterbox(table, out, resize="letterbox", sampling="linear", **COLOURS)
    expected = reference.letterbox(host, DETECTOR_SIZE, **COLOURS)
    name = f"to {DETECTOR_SIZE[0]}x{DETECTOR_SIZE[1]}, {np.dtype(dtype).name}"
    moved = frame.nbytes + out.nbytes
    return GpuCase(
        "letterbox", name, {OURS: _keeping(launch, frame)}, moved, {OURS: lambda: out.get()[0]}, expected,
        {OURS: 2e-3}, "of a normalised value",
    )  # fmt: skip


def _selection_case() -> GpuCase:
    import cupy

    host = detector_rows()
    frame = cupy.zeros((FRAME[1], FRAME[0], 3), np.uint8)
    out = cupy.zeros(detections_size(1, MAX_DETECTIONS), np.uint8)
    rows = cupy.asarray(host[None])
    launch = prepare_select_detections(
        rows, cupy.asarray(frame_record(frame).view(np.uint8)), out, input_size=DETECTOR_SIZE, resize="letterbox",
        min_score=0.3, nms_iou=0.65,
    )  # fmt: skip

    def found() -> NDArray[Any]:
        counts, detections = detections_views(out.get(), 1, MAX_DETECTIONS)
        scores = np.zeros(MAX_DETECTIONS)
        scores[: counts[0]] = detections["score"][0, : counts[0]]
        return scores

    placement = geometry.letterbox_placement(FRAME, DETECTOR_SIZE)
    scores = reference.select_detections(
        host, placement=placement, frame_size=FRAME, min_score=0.3, nms_iou=0.65, max_detections=MAX_DETECTIONS
    )[1]
    expected = np.pad(scores.astype(np.float64), (0, MAX_DETECTIONS - len(scores)))
    moved = rows.nbytes + out.nbytes
    launches = {OURS: _keeping(launch, frame)}
    return GpuCase(
        "select_detections", f"{len(host)} rows", launches, moved, {OURS: found}, expected, {OURS: 0.0}, "of a score"
    )


def _keeping(launch: Callable[[], Any], frame: Any) -> Callable[[], Any]:
    """The launch, which now keeps the frame's memory: its record holds an address only."""

    def launch_with_frame(_: Any = frame) -> None:
        launch()

    return launch_with_frame
