"""A GPU's memory, streams, events and graphs, for CuPy's stand-in (cupy_on_cpu.py). No kernel and no CuPy name here.

What makes mistakes visible:

* Work is queued. It runs when somebody synchronises with its stream, or with an event behind it, and not before: who
  reads a result too early reads 0xCD, who overwrites a staging buffer too early uploads the new content.
* Streams are ordered against each other by events only, also the default stream.
* Copies from and to pageable memory take place at once, as CUDA does it: only pinned memory is asynchronous.
* During a capture nothing runs. To allocate, synchronise, or copy from or to pageable memory is an error.
* A graph keeps addresses, not arrays. A copy or a kernel whose argument lies in freed memory is an error when it runs.
  (Work that is queued without a graph keeps its arrays alive, as the stream order of CuPy's pool does.)
* New memory holds 0xCD, freed memory 0xDD, and is kept for a while so that a late write hits nothing else.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .emulator import SANITIZE

NEW, FREED = 0xCD, 0xDD
ALIGNMENT = 512  # bytes: CuPy's pools round every size up to it
ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    600: "cudaErrorNotReady: device not ready",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    905: "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another stream",
}
_libc = ctypes.CDLL(None)
lock = threading.RLock()
statistics: Counter[str] = Counter()  # allocations, pinned_allocations, launches, copies, syncs, graph_launches


class CUDARuntimeError(RuntimeError):
    """As ``cupy.cuda.runtime.CUDARuntimeError``; ``detail`` is what the model can say beyond CUDA."""

    __module__ = "cupy_backends.cuda.api.runtime"

    def __init__(self, status: int, detail: str = "") -> None:
        self.status = status
        super().__init__(ERRORS[status] + (f" ({detail})" if detail else ""))


class Block:
    """Memory of the device, or pinned memory of the host; freed with its last reference.

    Device memory is freed in the order of the queue that it was allocated for, after what is queued there by then: so
    does CuPy's pool, which hands it out again to the same stream only.
    """

    _live: ClassVar[dict[int, tuple[int, bool]]] = {}  # address -> bytes, pinned
    _freed: ClassVar[deque[int]] = deque()  # not given back yet

    def __init__(self, size: int, *, queue: Queue | None = None, pinned: bool = False) -> None:
        with lock:
            forbid_in_capture("an allocation")
            statistics["pinned_allocations" if pinned else "allocations"] += 1
            self.size, self._queue = size, queue
            capacity = max(1, size) if SANITIZE else max(1, -(-size // ALIGNMENT)) * ALIGNMENT
            address = ctypes.c_void_p()
            if _libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(ALIGNMENT), ctypes.c_size_t(capacity)):
                raise MemoryError(f"no {capacity} bytes")
            self.ptr = int(address.value or 0)
            ctypes.memset(self.ptr, NEW, capacity)
            self._live[self.ptr] = capacity, pinned

    def __del__(self) -> None:
        if hasattr(self, "ptr"):
            release = partial(self._release, self.ptr)
            with lock:
                if self._queue is not None and self._queue.work:
                    self._queue.work.append(Operation(release))
                else:
                    release()

    @classmethod
    def _release(cls, address: int) -> None:
        capacity, _ = cls._live.pop(address)
        ctypes.memset(address, FREED, capacity)
        cls._freed.append(address)
        while len(cls._freed) > (0 if SANITIZE else 64):
            _libc.free(ctypes.c_void_p(cls._freed.popleft()))

    @classmethod
    def find(cls, address: int, size: int = 1) -> tuple[int, bool] | None:
        """(base address, pinned) of the live block that holds the bytes; None if none does."""
        with lock:
            for base, (capacity, pinned) in list(
                cls._live.items()
            ):  # a copy: the garbage collector may free some meanwhile
                if base <= address and address + size <= base + capacity:
                    return base, pinned
        return None


class Mark:
    """A place in a queue: the record of an event."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.captured = queue.captured  # the capture that it belongs to
        self.time: float | None = None  # when the queue came by it


class Operation:
    """Work of the device. ``touches`` lists (address, bytes) that must be live when it runs."""

    def __init__(self, run: Callable[[], object], touches: Iterable[tuple[int, int]] = (), keep: Any = None) -> None:
        self.run, self.touches, self.keep = run, tuple(touches), keep

    def __call__(self) -> None:
        for address, size in self.touches:
            if address and Block.find(address, size) is None:
                raise CUDARuntimeError(700, f"{size} bytes at {address:#x} are not, or no longer, allocated")
        self.run()


class Queue:
    """What a stream's handle stands for."""

    _handles = itertools.count(0x1000, 16)
    by_handle: ClassVar[dict[int, Queue]] = {}

    def __init__(self, handle: int | None = None) -> None:
        self.handle = next(self._handles) if handle is None else handle
        self.work: deque[Operation | Mark | tuple[Mark]] = deque()  # (mark,) waits for another queue's mark
        self.captured: list[Operation] | None = None
        self.capture_mode, self.capture_thread = 0, 0
        self.by_handle[self.handle] = self

    @classmethod
    def of(cls, handle: int) -> Queue:
        """The queue of a stream's address; 0, 1 and 2 are the default stream."""
        try:
            return cls.by_handle[0 if handle in (1, 2) else handle]
        except KeyError:
            raise CUDARuntimeError(400, f"no stream {handle:#x}") from None

    def submit(self, operation: Operation) -> None:
        with lock:
            if self.captured is None:
                self.work.append(operation)
            else:
                operation.keep = None
                self.captured.append(operation)

    def record(self) -> Mark:
        with lock:
            mark = Mark(self)
            if self.captured is None:
                self.work.append(mark)
            return mark

    def wait(self, mark: Mark | None) -> None:
        """Later work of this queue comes after the mark; None is an event that was never recorded."""
        with lock:
            if mark is None or mark.queue is self:
                return
            if self.captured is not None or mark.captured is not None:
                raise CUDARuntimeError(905, "captures over several streams are not modelled")
            self.work.append((mark,))

    def run(self, until: Mark | None = None) -> None:
        """Run what is queued, up to a mark or all of it. An error of the work comes out here, as on a GPU."""
        with lock:
            while self.work and (until is None or until.time is None):
                item = self.work.popleft()
                if isinstance(item, Mark):
                    item.time = time.perf_counter()
                elif isinstance(item, tuple):
                    item[0].queue.run(item[0])
                else:
                    item()

    def synchronize(self) -> None:
        with lock:
            forbid_in_capture("a synchronisation", self)
            statistics["syncs"] += 1
            self.run()

    @property
    def idle(self) -> bool:
        """False the first time that there is work; asking lets it run, so that polling comes to an end."""
        with lock:
            forbid_in_capture("a query", self)
            idle = not self.work
            self.run()
            return idle

    def begin_capture(self, mode: int) -> None:
        with lock:
            if self.handle == 0 or self.captured is not None:
                raise CUDARuntimeError(900, "the default stream, or a stream that is capturing already")
            self.captured, self.capture_mode, self.capture_thread = [], mode, threading.get_ident()

    def end_capture(self) -> list[Operation]:
        with lock:
            if self.captured is None:
                raise CUDARuntimeError(1, "the stream is not capturing")
            captured, self.captured = self.captured, None
            return captured

    def submit_graph(self, operations: list[Operation]) -> None:
        with lock:
            statistics["graph_launches"] += 1
            for operation in operations:
                self.submit(operation)


def forbid_in_capture(what: str, queue: Queue | None = None) -> None:
    """An error if the queue is capturing, or this thread, or any thread in the mode "global" (0)."""
    for other in Queue.by_handle.values():
        if other.captured is not None and (
            other is queue or other.capture_thread == threading.get_ident() or other.capture_mode == 0
        ):
            raise CUDARuntimeError(900, f"{what} during a capture")


def copy_rows(
    queue: Queue,
    target: tuple[int, int],  # address, bytes from row to row
    source: tuple[int, int],
    width: int,  # bytes of a row
    height: int,
    keep: Any = None,
) -> None:
    """Queue a copy of rows, from anywhere to anywhere; with pageable memory it takes place at once."""
    if width == 0 or height == 0:
        return
    if height > 1 and min(target[1], source[1]) < width:
        raise CUDARuntimeError(1, f"rows of {width} bytes overlap")
    (to, to_pitch), (origin, pitch) = target, source
    extents = [(address, (height - 1) * step + width) for address, step in (target, source)]
    pageable = [Block.find(*extent) is None and Block.find(extent[0]) is None for extent in extents]
    with lock:
        statistics["copies"] += 1
        if any(pageable):
            forbid_in_capture("a copy of pageable memory", queue)
        if pageable[1]:  # CUDA takes it into a buffer of its own before it returns
            rows = [ctypes.string_at(origin + row * pitch, width) for row in range(height)]

            def run() -> None:
                for row, content in enumerate(rows):
                    ctypes.memmove(to + row * to_pitch, content, width)
        else:

            def run() -> None:
                for row in range(height):
                    ctypes.memmove(to + row * to_pitch, origin + row * pitch, width)

        touches = [extent for extent, host in zip(extents, pageable, strict=True) if not host]
        queue.submit(Operation(run, touches, keep))
        if pageable[0]:  # CUDA returns when the copy is done
            queue.run()


def view(address: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]) -> np.ndarray:
    """The memory at an address as a NumPy array; the caller says that it is there."""
    interface = {"shape": shape, "typestr": np.dtype(dtype).str, "data": (address, False), "version": 3}
    if 0 in shape:
        return np.empty(shape, dtype)
    holder = type("Memory", (), {"__array_interface__": {**interface, "strides": strides}})
    return np.asarray(holder())


Queue(0)
