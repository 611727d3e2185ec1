"""The CUDA kernels alone, device time beside the floor that memory sets: python benchmarks/gpu_kernels.py

The floor of a kernel is the bytes that it must move divided by what a device-to-device copy achieves on this GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gpu_timing import bandwidth, device_facts, device_us, empty_us
from results_file import save
from rich.console import Console
from rich.table import Table

from edgepose import geometry
from edgepose.kernels._call import FRAME, call_size, call_views
from edgepose.kernels._crop import plan_crops
from edgepose.kernels.cuda import prepare_crop_warp, prepare_decode_heatmaps
from edgepose.spec import IMAGENET_MEAN, IMAGENET_STD
from kernels import peaks

INPUT_SIZE, HEATMAP_SIZE, CROPS = (192, 256), (48, 64), 8
SIZE = (1920, 1080)


def crop_call(frame: Any, boxes: np.ndarray, sampling: str) -> tuple[Any, int]:
    """A call's record on the device, and the bytes of the frame that the crops see."""
    import cupy

    inverses = geometry.invert_affines(geometry.crop_affines(boxes, INPUT_SIZE))
    plan = plan_crops(inverses, INPUT_SIZE, SIZE, sampling)
    call = np.zeros(call_size(len(boxes)), np.uint8)
    header, instances = call_views(call, len(boxes))
    header["count"] = len(boxes)
    instances[list(FRAME.names or ())] = (frame.data.ptr, 3 * SIZE[0], 3, 1, *SIZE, 0, 0)
    instances["sample"], instances["first"], instances["halvings"] = plan.samples, plan.first, plan.halvings
    instances["place"] = np.eye(2, 3)
    left, top, right, bottom = plan.window
    return cupy.asarray(call), 3 * (right - left) * (bottom - top)


def measure_crops(figures: dict[str, Any], roof: float) -> None:
    import cupy

    rng = np.random.default_rng(0)
    frame = cupy.asarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    left, top = rng.uniform(0, 1500, CROPS), rng.uniform(0, 600, CROPS)
    boxes = np.stack([left, top, left + 300, top + 400], 1)
    large = np.stack([left / 2, top / 4, left / 2 + 700, top / 4 + 900], 1)  # "area" halves the frame once
    for dtype in (np.float16, np.float32):
        out = cupy.zeros((CROPS, 3, INPUT_SIZE[1], INPUT_SIZE[0]), dtype)
        for sampling, label, which in (
            ("opencv4", "", boxes),
            ("linear", "", boxes),
            ("area", "", boxes),
            ("area", ", halved once", large),
        ):
            call, seen = crop_call(frame, which, sampling)
            launch = prepare_crop_warp(call, out, sampling=sampling, mean=IMAGENET_MEAN, std=IMAGENET_STD)
            name = f"crop_warp {sampling}, {CROPS} crops of 192x256 {np.dtype(dtype).name} from 1080p{label}"
            figures[name] = _with_floor(device_us(launch), min(seen, frame.nbytes) + out.nbytes, roof)


def measure_decoders(figures: dict[str, Any], roof: float) -> None:
    import cupy

    maps = peaks(np.random.default_rng(0))
    for channels in (25, 294):
        call = np.zeros(call_size(CROPS), np.uint8)
        header, instances = call_views(call, CROPS)
        header["count"] = CROPS
        instances["place"], instances["channels"] = np.eye(2, 3), (0, channels)
        device_call = cupy.asarray(call)
        results = cupy.zeros((CROPS, channels, 3), np.float32)
        for dtype in (np.float16, np.float32):
            heatmaps = cupy.asarray(np.ascontiguousarray(maps[:, :channels]).astype(dtype))
            noise = cupy.asarray(np.random.default_rng(1).normal(0, 1e-4, heatmaps.shape).astype(dtype))
            for refinement in ("none", "shift", "dark", "dark_udp"):
                for kind, source in (("peaks", heatmaps), ("noise", noise)):
                    launch = prepare_decode_heatmaps(
                        device_call, source, results, refinement=refinement, blur_kernel=11
                    )
                    name = (
                        f"decode_heatmaps {refinement}, {CROPS}x{channels} {np.dtype(dtype).name} maps of 64x48, {kind}"
                    )
                    moved = heatmaps.nbytes + results.nbytes
                    figures[name] = _with_floor(device_us(launch), moved, roof)


def _with_floor(times: dict[str, float], moved: int, roof: float) -> dict[str, float]:
    floor = moved / roof * 1e6
    return {**times, "bytes": moved, "floor": round(floor, 3), "times_floor": round(times["p50"] / floor, 2)}


def main() -> None:
    import cupy

    figures: dict[str, Any] = {}
    with cupy.cuda.Stream(non_blocking=True):
        roof = bandwidth()
        nothing = empty_us()
        measure_crops(figures, roof)
        measure_decoders(figures, roof)
    table = Table("kernel", "p50", "p95", "min", "floor", "x floor", title=f"device time, us ({roof / 1e12:.2f} TB/s)")
    for name, row in figures.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("p50", "p95", "min", "floor", "times_floor")))
    console = Console()
    console.print(table)
    facts = device_facts()
    record = {"gpu": facts, "bytes_per_second": roof, "two_events_us": nothing, **figures}
    console.print(str(save("gpu-kernels", record, device=facts["device"], unit="us")))


if __name__ == "__main__":
    main()
