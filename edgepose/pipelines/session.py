"""What the stages of a pipeline share on a GPU: two streams, memory, captures, and errors in our words."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EdgePoseError, EngineError, MissingDependencyError
from edgepose.kernels._compile import import_cupy

__all__ = ["Session", "cuda_errors"]

_log = logging.getLogger(__name__)


class Session:
    """One GPU as a pipeline uses it. Enter it (``with session:``) around everything that touches the GPU.

    All kernels, records and results are in the order of ``stream``. Frames come up on ``copy_stream``, beside them:
    an event behind each upload is what ``stream`` waits for.

    Attributes:
        cupy: the module.
        stream, copy_stream: CuPy's, non-blocking.
        use_graphs: whether :meth:`capture` is wanted.
    """

    def __init__(self, device_id: int, *, use_graphs: bool) -> None:
        with cuda_errors("importing CuPy"):
            cupy = import_cupy()
        self.cupy = cupy
        self.runtime = cupy.cuda.runtime
        self.device_id = device_id
        self.use_graphs = use_graphs
        self._device = cupy.cuda.Device(device_id)
        self._frame_ready: Any = None
        with self._device, cuda_errors(f"opening cuda:{device_id}"):
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self.copy_stream = cupy.cuda.Stream(non_blocking=True)
            self._frame_ready = cupy.cuda.Event(disable_timing=True)
            self._pool, self._pinned_pool = cupy.cuda.MemoryPool(), cupy.cuda.PinnedMemoryPool()

    def __enter__(self) -> Session:
        self._device.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._device.__exit__(*error)

    # Memory -----------------------------------------------------------------------------------------

    def zeros(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        """Device memory; the zeros are written in the order of ``stream``."""
        with self.stream, self.cupy.cuda.using_allocator(self._pool.malloc):
            return self.cupy.zeros(shape, dtype)

    def upload(self, values: NDArray[Any]) -> Any:
        """A device array of these values, in the order of ``stream``; for what is written once."""
        with self.stream, self.cupy.cuda.using_allocator(self._pool.malloc):
            return self.cupy.asarray(values)

    def bytes_for_uploads(self, size: int) -> Any:
        """Device memory that only ``copy_stream`` writes."""
        with self.copy_stream, self.cupy.cuda.using_allocator(self._pool.malloc):
            return self.cupy.zeros(size, np.uint8)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Zeros in pinned memory of the host."""
        buffer = np.frombuffer(self._pinned_pool.malloc(size), np.uint8, size)
        buffer[:] = 0
        return buffer

    def event(self, *, timing: bool = False) -> Any:
        """A CUDA event."""
        return self.cupy.cuda.Event(disable_timing=not timing)

    # Work -------------------------------------------------------------------------------------------

    def copy_up(self, target: int, source: int, size: int) -> None:
        """Pinned to device memory, on ``stream``."""
        self.runtime.memcpyAsync(target, source, size, self.runtime.memcpyHostToDevice, self.stream.ptr)

    def copy_up_beside(self, target: int, source: int, size: int) -> None:
        """Pinned to device memory, on ``copy_stream``."""
        self.runtime.memcpyAsync(target, source, size, self.runtime.memcpyHostToDevice, self.copy_stream.ptr)

    def copy_down(self, target: int, source: int, size: int) -> None:
        """Device to pinned memory, on ``stream``."""
        self.runtime.memcpyAsync(target, source, size, self.runtime.memcpyDeviceToHost, self.stream.ptr)

    def wait_for_writer(self, writer: int) -> None:
        """Later work of ``stream`` comes after what is on the caller's stream (an address) by now."""
        self.runtime.eventRecord(self._frame_ready.ptr, writer)
        self.stream.wait_event(self._frame_ready)

    def prepare(self, launch: Callable[[], None], name: str) -> Any:
        """Run ``launch`` once, as a capture wants it, then capture it into a CUDA graph; None without graphs.

        Raises:
            EngineError: what ``launch`` puts on ``stream`` cannot be captured; ``name`` is whose it is.
        """
        launch()
        self.stream.synchronize()
        if not self.use_graphs:
            return None
        self.stream.begin_capture()
        try:
            launch()
            return self.stream.end_capture()
        except Exception as error:
            with contextlib.suppress(Exception):  # the capture is broken, but the stream must leave it
                self.stream.end_capture()
            if isinstance(error, self.cupy.cuda.memory.OutOfMemoryError):
                raise
            raise EngineError(
                f"{name} cannot be captured into a CUDA graph ({error}): pass cuda_graph=False to Predictor"
            ) from error

    def elapsed(self, marks: list[Any]) -> list[float]:
        """ms from each event to the next one; all have passed."""
        elapsed = self.cupy.cuda.get_elapsed_time
        return [float(elapsed(a, b)) for a, b in itertools.pairwise(marks)]

    def wait_for_all(self) -> None:
        """Wait until both streams have done what is on them."""
        try:
            self.copy_stream.synchronize()
        finally:
            self.stream.synchronize()

    def settle(self, name: str) -> None:
        """:meth:`wait_for_all` before memory is freed: an error of earlier work is logged, and nothing else is lost."""
        try:
            self.wait_for_all()
        except self.runtime.CUDARuntimeError as error:
            _log.warning("the GPU reported an error while %s was closed: %s", name, error)

    def free(self) -> None:
        """Give the memory that nobody refers to any more back to the GPU and the system."""
        self._pool.free_all_blocks()
        self._pinned_pool.free_all_blocks()

    @property
    def used_bytes(self) -> int:
        """Device memory in use."""
        return int(self._pool.used_bytes())


class cuda_errors:
    """Turns CUDA's errors into EngineError; cheaper than contextlib's in a loop of real time."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None or issubclass(kind, EdgePoseError):
            return
        if issubclass(kind, ImportError):  # CuPy or NVRTC is missing
            raise MissingDependencyError(str(error)) from error
        if kind is RuntimeError:  # NVRTC refused; the message says why
            raise EngineError(f"{self._doing}: {error}") from error
        if kind.__module__.partition(".")[0] in ("cupy", "cupy_backends"):
            hint = ": free GPU memory or lower max_batch" if "OutOfMemory" in kind.__name__ else ""
            raise EngineError(f"CUDA failed while {self._doing}{hint}. CUDA says: {error}") from error
