"""Timing on a GPU, for the other benchmarks: device times from CUDA events, the L2 cache flushed before each run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from results_file import summary

FLUSH_BYTES = 256 << 20  # larger than any L2 cache


def device_us(launch: Callable[[], Any], *, runs: int = 100, warm_up: int = 10, flush: bool = True) -> dict[str, float]:
    """Microseconds of the device for what ``launch`` puts on CuPy's current stream: p50, p95 and min.

    Each run is timed alone, between two events, after a write that leaves nothing of its data in the L2 cache. The
    write also keeps the GPU busy until the events and the launch are queued, so the host's speed is not in the figure.
    """
    import cupy

    flushed = cupy.zeros(FLUSH_BYTES, np.uint8)
    stream = cupy.cuda.get_current_stream()
    for _ in range(warm_up):
        launch()
    times = []
    for _ in range(runs):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        flushed.data.memset_async(0, FLUSH_BYTES if flush else FLUSH_BYTES // 8, stream)
        start.record(stream)
        launch()
        end.record(stream)
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) * 1e3)
    return summary(times)


def empty_us() -> float:
    """What the two events measure around nothing at all: part of every figure of :func:`device_us`."""
    return device_us(lambda: None)["p50"]


def bandwidth() -> float:
    """Bytes per second that a device-to-device copy of 512 MB moves, reading and writing: the roof of every kernel."""
    import cupy

    size = 512 << 20
    source, target = cupy.zeros(size, np.uint8), cupy.zeros(size, np.uint8)
    stream = cupy.cuda.get_current_stream()
    copy = cupy.cuda.runtime.memcpyDeviceToDevice
    took = device_us(
        lambda: cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.data.ptr, size, copy, stream.ptr), runs=20
    )
    return 2 * size / (took["p50"] * 1e-6)


def device_facts() -> dict[str, Any]:
    """Name, compute capability, driver and clocks of the GPU in use."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    name = properties["name"]
    return {
        "device": name.decode() if isinstance(name, bytes) else name,
        "compute_capability": cupy.cuda.Device().compute_capability,
        "multiprocessors": properties["multiProcessorCount"],
        "driver_cuda": cupy.cuda.runtime.driverGetVersion(),
        "clock_khz": properties.get("clockRate"),
        "cupy": cupy.__version__,
    }
