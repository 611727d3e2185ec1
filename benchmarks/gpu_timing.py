"""Timing on a GPU: device times from CUDA events, the L2 cache flushed before each run; and what GPU it was.

All of it works on CuPy's current stream.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.ways import UnavailableError
from edgepose.errors import MissingDependencyError

__all__ = ["bandwidth", "captured", "device_times", "gpu_facts", "memory_floor", "noted"]

FLUSH_BYTES = 256 << 20  # larger than any L2 cache
COPY_BYTES = 512 << 20
WARM_UP = 3
# nvidia-smi's names, and ours
QUERIES = {
    "driver_version": "driver",
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_mhz_max",
    "clocks.mem": "memory_mhz",
    "clocks.max.mem": "memory_mhz_max",
    "power.limit": "power_limit_w",
    "power.draw": "power_draw_w",
    "temperature.gpu": "temperature_c",
    "clocks_throttle_reasons.applications_clocks_setting": "clocks_held_by_setting",
    "clocks_throttle_reasons.sw_power_cap": "clocks_held_by_power",
    "clocks_throttle_reasons.hw_thermal_slowdown": "clocks_held_by_heat",
}


class noted:
    """What goes wrong inside becomes a note, and the next part goes on; Ctrl-C is not caught.

    ``left out``: a package is missing, or a way does not take the model; ``failed``: anything else.

    Attributes:
        failed: whether something went wrong.
    """

    def __init__(self, notes: list[str], what: str) -> None:
        self._notes, self._what = notes, what
        self.failed = False

    def __enter__(self) -> noted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self.failed = isinstance(error, Exception)
        if self.failed:
            missing = isinstance(error, (ImportError, MissingDependencyError, UnavailableError))
            came = str(error)[:300] if missing else f"{type(error).__name__}: {str(error)[:300]}"
            self._notes.append(f"{'left out' if missing else 'failed'}, {self._what}: {came}")
        return self.failed


def device_times(
    launches: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    burst: int = 5,
    flush: bool = True,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Time of the device for what each ``launch`` puts on CuPy's current stream.

    Each run is timed alone, between two events, behind a write that leaves nothing of its data in the L2 cache. The
    write also keeps the GPU busy until the events and the launch are queued: the host's speed is in no figure as long
    as the launch takes less than about 50 us, so pass what launches more than one kernel through :func:`captured`.
    Interleaved as :func:`edgepose.benchmarks.timing.interleaved` does it.

    Args:
        launches: by name; none may wait for the device.
        rounds, burst: (rounds, burst) times come back for each.
        flush: without, the cache may hold the data, as in a stream of small work.
        progress: told after each turn how many have been taken, of rounds * len(launches).

    Returns:
        (rounds, burst) float64 ms for each.
    """
    import cupy

    stream = cupy.cuda.get_current_stream()
    filler = cupy.zeros(FLUSH_BYTES, np.uint8)
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    rng = np.random.default_rng(seed)
    names = list(launches)
    times = {name: np.empty((rounds, burst)) for name in names}
    for launch in launches.values():
        for _ in range(WARM_UP):
            launch()
    turns = 0
    for number in range(rounds):
        for index in rng.permutation(len(names)):
            launch = launches[names[index]]
            launch()
            for repeat in range(burst):
                filler.data.memset_async(0, FLUSH_BYTES if flush else FLUSH_BYTES // 8, stream)
                begin.record(stream)
                launch()
                end.record(stream)
                end.synchronize()
                times[names[index]][number, repeat] = cupy.cuda.get_elapsed_time(begin, end)
            turns += 1
            if progress is not None:
                progress(turns)
    return times


def captured(launch: Callable[[], Any]) -> Callable[[], None]:
    """What ``launch`` puts on CuPy's current stream, as one CUDA graph: so the host's speed is not in its time.

    It runs twice before the capture, for what allocates or chooses algorithms at first.
    """
    import cupy

    stream = cupy.cuda.get_current_stream()
    launch()
    launch()
    stream.synchronize()
    stream.begin_capture()
    try:
        launch()
    finally:
        graph = stream.end_capture()
    return lambda: graph.launch(stream)


def bandwidth() -> float:
    """Bytes per second that a device-to-device copy of 512 MB moves, reading and writing: the roof of every kernel."""
    import cupy

    size = COPY_BYTES
    source, target = cupy.zeros(size, np.uint8), cupy.zeros(size, np.uint8)
    stream = cupy.cuda.get_current_stream()
    kind = cupy.cuda.runtime.memcpyDeviceToDevice
    copy = {"copy": lambda: cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.data.ptr, size, kind, stream.ptr)}
    milliseconds = float(np.median(device_times(copy, rounds=4)["copy"]))
    return 2 * size / (milliseconds * 1e-3)


def memory_floor(moved: int, roof: float) -> float:
    """us that so many bytes take at the roof of :func:`bandwidth`."""
    return moved / roof * 1e6


def gpu_facts() -> dict[str, Any]:
    """Of CuPy's current GPU: name, SMs, compute capability, CUDA, CuPy; of nvidia-smi driver, clocks, power, heat.

    Clocks are those of this moment: ask right behind a measurement. ``clocks_held_by_setting`` is true where they are
    locked (``nvidia-smi -lgc``). Without nvidia-smi, and for what it does not know, there is a word instead of a value.
    """
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    name = properties["name"]
    return {
        "name": name.decode() if isinstance(name, bytes) else name,
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties.get("l2CacheSize", "not told"),
        "cuda_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        **_nvidia_smi(properties),
    }


def _nvidia_smi(properties: Mapping[str, Any]) -> dict[str, Any]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"nvidia_smi": "not there: driver, clocks, power and temperature are not known"}
    chosen: list[str] = []  # nvidia-smi counts GPUs otherwise than CUDA does, so by its place on the bus
    if "pciBusID" in properties:
        domain, bus, device = (int(properties[key]) for key in ("pciDomainID", "pciBusID", "pciDeviceID"))
        chosen = ["-i", f"{domain:08x}:{bus:02x}:{device:02x}.0"]
    together = _ask(program, chosen, list(QUERIES))
    if together is not None:
        return dict(zip(QUERIES.values(), together, strict=True))
    # It refuses a whole query for one name that this version does not know
    return {ours: (_ask(program, chosen, [theirs]) or ["not told"])[0] for theirs, ours in QUERIES.items()}


def _ask(program: str, chosen: list[str], queries: list[str]) -> list[str | float | bool] | None:
    """The values of nvidia-smi; None where it does not answer."""
    command = [program, *chosen, f"--query-gpu={','.join(queries)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [_value(text.strip()) for text in (done.stdout.strip().splitlines() or [""])[0].split(",")]
    return values if done.returncode == 0 and len(values) == len(queries) else None


def _value(text: str) -> str | float | bool:
    """A number, or whether it is active, or what nvidia-smi says of what it does not have."""
    if text in ("Active", "Not Active"):
        return text == "Active"
    try:
        return float(text)
    except ValueError:
        return text
