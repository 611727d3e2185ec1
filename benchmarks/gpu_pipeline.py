"""The whole of predict on a GPU against the obvious way: python benchmarks/gpu_pipeline.py [--model M] [--boxes 1,8]

M is an .engine file (TensorRT); or an .onnx file or a bundled name, which PyTorch then runs in half precision behind
the same Engine protocol. The obvious way crops with OpenCV on the CPU, uploads the crops, runs the same engine,
downloads the heatmaps and decodes them with NumPy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from gpu_timing import device_facts, device_us
from latency import boxes_on
from results_file import save, summary
from rich.console import Console
from rich.table import Table

from edgepose import Predictor, geometry
from edgepose.engines import DeviceEngine, open_engine
from edgepose.kernels import reference
from edgepose.models import find_model

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

RUNS, WARM_UP = 200, 20
FRAME = (1920, 1080)


def open_gpu_engine(model: str, max_batch: int) -> Any:
    """An .engine in TensorRT, anything else in PyTorch."""
    path = find_model(model)
    if path.suffix == ".engine":
        return open_engine(path, spec=None, device="cuda", max_batch=max_batch)
    from torch_engine import TorchEngine

    return TorchEngine(path, precision="fp16", max_batch=max_batch)


class ObviousWay:
    """What one writes first: everything but the network on the CPU."""

    def __init__(self, engine: DeviceEngine, count: int) -> None:
        import cupy

        spec = engine.spec
        (w, h), (map_w, map_h) = spec.input_size, spec.heatmap_size
        self._spec = spec
        self._dtype = engine.input_dtype
        self._images = cupy.zeros((count, 3, h, w), engine.input_dtype)
        self._heatmaps = cupy.zeros((count, spec.num_keypoints, map_h, map_w), engine.output_dtype)
        self._run = engine.bind(self._images, self._heatmaps)
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def __call__(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        spec = self._spec
        affines = geometry.crop_affines(boxes, spec.input_size, codec=spec.codec, padding=spec.padding)
        crops = reference.crop_warp(
            frame, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std
        )
        with self._stream:
            self._images.set(crops.astype(self._dtype, copy=False))
            self._run(self._stream.ptr)
            heatmaps = self._heatmaps.get()
        locations, _ = reference.decode_heatmaps(heatmaps, refinement=spec.refinement, blur_kernel=spec.blur_kernel)
        points = geometry.heatmap_to_crop(locations, spec.codec, spec.input_size, spec.heatmap_size)
        return geometry.transform_points(points, geometry.invert_affines(affines))


def time_of(call: Any, runs: int) -> dict[str, float]:
    """ms of the host's clock for one call, results in hand."""
    times = []
    for _ in range(runs + WARM_UP):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1e3)
    return summary(times[WARM_UP:])


def overlapped(predictor: Predictor, frame: np.ndarray, boxes: np.ndarray, runs: int) -> float:
    """Frames a second of a stream: the next frame is staged and submitted while the GPU works on the one before."""
    pending = [predictor.submit([predictor.stage(frame)], [boxes])]
    begun = 0.0
    for number in range(WARM_UP + runs):
        if number == WARM_UP:
            begun = perf_counter()
        pending.append(predictor.submit([predictor.stage(frame)], [boxes]))
        pending.pop(0).results()
    seconds = perf_counter() - begun
    pending.pop().results()
    return runs / seconds


def stage_times(engine: Any, frame: Any, boxes: np.ndarray, runs: int) -> dict[str, dict[str, float]]:
    """ms of the device for each stage alone; the engine stays open.

    Not from ``Timings``: there the GPU waits for the host between the stages. Here a long write keeps it busy until
    all is queued, and flushes the L2 cache.
    """
    with Predictor(Kept(engine), cuda_graph=False, max_batch=len(boxes)) as predictor:
        predictor.predict(frame, boxes)  # leaves the record of the call on the device
        pipeline: Any = predictor._pipeline
        stream, bucket = pipeline._session.stream, pipeline._stages[0]._buckets[len(boxes)]
        stages = {
            "crop": bucket.crop,
            "network": lambda: [run(stream.ptr) for run in bucket.network],
            "decode": bucket.decode,
        }
        with stream:
            times = {stage: device_us(launch, runs=runs) for stage, launch in stages.items()}
    return {stage: {key: value / 1e3 for key, value in row.items()} for stage, row in times.items()}


class Kept:
    """An engine that survives the predictors that it is lent to."""

    def __init__(self, engine: Any) -> None:
        self.__dict__.update(vars(engine))
        self.bind, self.output_shape = engine.bind, engine.output_shape

    def warmed_up(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Not yet."""


def measure_batch(engine: Any, count: int, runs: int) -> dict[str, Any]:
    """All figures for one number of boxes, ms."""
    import cupy

    frame = np.random.default_rng(0).integers(0, 256, (FRAME[1], FRAME[0], 3), dtype=np.uint8)
    boxes = boxes_on(*FRAME, count)
    figures: dict[str, Any] = {}
    device_frame = cupy.asarray(frame)
    figures["device, stage by stage"] = stages = stage_times(engine, device_frame, boxes, runs)
    device_sum = sum(stage["p50"] for stage in stages.values())
    figures["network's share of device time"] = round(stages["network"]["p50"] / device_sum, 4)
    figures["device work but the network"] = round(device_sum - stages["network"]["p50"], 4)
    with Predictor(Kept(engine), max_batch=count) as predictor:
        figures["predict, host frame"] = time_of(lambda: predictor.predict(frame, boxes), runs)
        figures["predict, device frame"] = time_of(lambda: predictor.predict(device_frame, boxes), runs)
        waits = [predictor.predict(device_frame, boxes).timings for _ in range(runs)]
        figures["host overhead, device frame"] = summary([t.total - t.network for t in waits])
        figures["frames a second, one call after the other"] = round(1e3 / figures["predict, host frame"]["p50"], 1)
        figures["frames a second, two calls under way"] = round(overlapped(predictor, frame, boxes, runs), 1)
    obvious = ObviousWay(engine, count)
    figures["obvious way"] = time_of(lambda: obvious(frame, boxes), max(20, runs // 4))
    figures["obvious way / predict"] = round(figures["obvious way"]["p50"] / figures["predict, host frame"]["p50"], 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="garment-landmarks")
    parser.add_argument("--boxes", default="1,8")
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.boxes.split(",")]
    engine = open_gpu_engine(arguments.model, max(counts))
    figures = {f"{count} boxes": measure_batch(engine, count, arguments.runs) for count in counts}
    table = Table("boxes", "figure", "p50", "p95", "min", title=f"{engine.spec.name}, {engine.name}, 1080p, ms")
    for label, values in figures.items():
        for name, value in values.items():
            rows = value.items() if "stage by stage" in name else [("", value)]
            for stage, row in rows:
                cells = (
                    [f"{row[k]:.3f}" for k in ("p50", "p95", "min")] if isinstance(row, dict) else [str(row), "", ""]
                )
                table.add_row(label, f"{name} {stage}".strip(), *cells)
    console = Console()
    console.print(table)
    facts = device_facts()
    record = {"model": engine.spec.name, "engine": engine.name, "gpu": facts, **figures}
    console.print(str(save(f"gpu-pipeline-{engine.spec.name.replace('/', '-')}", record, device=facts["device"])))
    engine.close()


if __name__ == "__main__":
    main()
