"""cupy.cuda of the stand-in (cupy_on_cpu.py): devices, streams, events, graphs, memory, by CuPy's names."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from .device_model import ALIGNMENT, Block, CUDARuntimeError, Mark, Operation, Queue, copy_rows, forbid_in_capture
from .device_model import statistics as _statistics

__all__ = [  # what `cupy.cuda` shows
    "Device",
    "Event",
    "ExternalStream",
    "Graph",
    "MemoryPointer",
    "MemoryPool",
    "PinnedMemoryPointer",
    "PinnedMemoryPool",
    "Stream",
    "UnownedMemory",
    "alloc",
    "alloc_pinned_memory",
    "get_allocator",
    "get_current_stream",
    "get_elapsed_time",
    "is_available",
    "set_allocator",
    "set_pinned_memory_allocator",
    "using_allocator",
]
_thread = threading.local()  # the thread's current stream and allocator
_default_allocator: Callable[[int], MemoryPointer]
_pinned_allocator: Callable[[int], Any]


class Device:
    compute_capability = "90"
    attributes: ClassVar = {"MultiProcessorCount": 132, "Integrated": 0, "CanMapHostMemory": 1}

    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(device)

    def use(self) -> None:
        if self.id:
            raise CUDARuntimeError(101, f"device {self.id}, and there is only device 0")

    def synchronize(self) -> None:
        for queue in list(Queue.by_handle.values()):
            queue.synchronize()

    @property
    def mem_info(self) -> tuple[int, int]:
        return 8 << 30, 16 << 30

    def __enter__(self) -> Device:
        self.use()
        return self

    def __exit__(self, *args: object) -> None: ...

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class _BaseStream:
    def __init__(self, queue: Queue) -> None:
        self._queue, self.ptr, self.device_id = queue, queue.handle, 0
        self._outer: list[Any] = []

    def __enter__(self) -> Any:
        self._outer.append(get_current_stream())
        return self.use()

    def __exit__(self, *args: object) -> None:
        _thread.stream = self._outer.pop()

    def use(self) -> Any:
        _thread.stream = self
        return self

    def synchronize(self) -> None:
        self._queue.synchronize()

    @property
    def done(self) -> bool:
        return self._queue.idle

    def record(self, event: Any = None) -> Any:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        self._queue.wait(event._mark)

    def begin_capture(self, mode: int | None = None) -> None:
        self._queue.begin_capture(2 if mode is None else mode)

    def end_capture(self) -> Graph:
        return Graph(self._queue.end_capture())

    def is_capturing(self) -> bool:
        return self._queue.captured is not None

    def launch_host_func(self, callback: Callable[[Any], None], arg: Any) -> None:
        self._queue.submit(Operation(lambda: callback(arg)))


class Stream(_BaseStream):
    null: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        super().__init__(Queue.of(0) if null or ptds else Queue())
        self.is_non_blocking = non_blocking


class ExternalStream(_BaseStream):
    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__(Queue.of(ptr))


Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Any:
    return getattr(_thread, "stream", Stream.null)


def queue_of(stream: Any) -> Queue:
    """Of a stream, of its address, or (None) of the current stream."""
    stream = get_current_stream() if stream is None else stream
    return Queue.of(getattr(stream, "ptr", stream))


class Event:
    _by_handle: ClassVar[weakref.WeakValueDictionary[int, Event]] = weakref.WeakValueDictionary()

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._mark: Mark | None = None
        self._timed = not disable_timing
        self.ptr = id(self)
        self._by_handle[self.ptr] = self

    def record(self, stream: Any = None) -> None:
        self._mark = queue_of(stream).record()

    def synchronize(self) -> None:
        _statistics["syncs"] += 1
        if self._mark:
            forbid_in_capture("a synchronisation", self._mark.queue)
            self._mark.queue.run(self._mark)

    @property
    def done(self) -> bool:
        """False the first time that work is in front of it; asking lets that run, so that polling comes to an end."""
        done = self._mark is None or self._mark.time is not None
        if self._mark:
            forbid_in_capture("a query", self._mark.queue)
            self._mark.queue.run(self._mark)
        return done


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    times = []
    for event in (start_event, end_event):
        if event._mark is None or not event._timed:
            raise CUDARuntimeError(400, "an event that was never recorded, or without timing")
        if event._mark.time is None:
            raise CUDARuntimeError(600)
        times.append(event._mark.time)
    return 1e3 * (times[1] - times[0])


class Graph:
    def __init__(self, operations: list[Operation]) -> None:
        self._operations = operations
        self.graph = self.graphExec = id(self)

    def launch(self, stream: Any = None) -> None:
        queue_of(stream).submit_graph(self._operations)

    def upload(self, stream: Any = None) -> None: ...


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self._owner = ptr, size, owner
        self.device_id = max(device_id, 0)


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset
        self.device_id = getattr(mem, "device_id", 0)
        self.device = Device(self.device_id)

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __int__(self) -> int:
        return int(self.ptr)

    def copy_from_async(self, mem: Any, size: int, stream: Any = None) -> None:
        copy_rows(queue_of(stream), (self.ptr, size), (_host(mem), size), size, 1, keep=(self.mem, mem))

    copy_from_host_async = copy_from_async

    def copy_from_device_async(self, src: Any, size: int, stream: Any = None) -> None:
        self.copy_from_async(src, size, stream)

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        copy_rows(queue_of(stream), (_host(mem), size), (self.ptr, size), size, 1, keep=self.mem)

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        memset(self.ptr, value, size, queue_of(stream), keep=self.mem)


def _host(mem: Any) -> int:
    return int(mem.value if isinstance(mem, ctypes.c_void_p) else getattr(mem, "ptr", mem))


def memset(address: int, value: int, size: int, queue: Queue, keep: Any = None) -> None:
    queue.submit(Operation(lambda: ctypes.memset(address, value, size), [(address, size)], keep))


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"


class MemoryPool:
    """Pools nothing: each malloc is an allocation, so that one in a steady state is counted."""

    def __init__(self, allocator: Any = None) -> None:
        self._limit = 0
        self._blocks: weakref.WeakSet[Block] = weakref.WeakSet()

    def malloc(self, size: int) -> MemoryPointer:
        if self._limit and self.used_bytes() + size > self._limit:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (limit set to: {self._limit:,} bytes).")
        block = Block(size, queue=queue_of(None))
        self._blocks.add(block)
        return MemoryPointer(block, 0)

    def used_bytes(self) -> int:
        return sum(-(-block.size // ALIGNMENT) * ALIGNMENT for block in self._blocks)

    def total_bytes(self) -> int:
        return self.used_bytes()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size or 0

    def free_all_blocks(self, stream: Any = None) -> None: ...


class PinnedMemoryPointer:
    """A buffer for np.frombuffer; as long as CuPy's pool makes it, a multiple of 512 bytes, so a count is needed."""

    def __new__(cls, mem: Any, offset: int) -> Any:
        length = -(-mem.size // ALIGNMENT) * ALIGNMENT - offset
        kind = type(cls.__name__, (ctypes.c_ubyte * length,), {"size": lambda self: length})
        pointer = kind.from_address(mem.ptr + offset)
        pointer.mem, pointer.ptr = mem, mem.ptr + offset
        return pointer


class PinnedMemoryPool:
    def __init__(self, allocator: Any = None) -> None: ...

    def malloc(self, size: int) -> Any:
        return PinnedMemoryPointer(Block(size, pinned=True), 0)

    def free_all_blocks(self) -> None: ...


default_pool, default_pinned_pool = MemoryPool(), PinnedMemoryPool()
_default_allocator, _pinned_allocator = default_pool.malloc, default_pinned_pool.malloc


def get_allocator() -> Callable[[int], MemoryPointer]:
    return getattr(_thread, "allocator", None) or _default_allocator


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    global _default_allocator
    _default_allocator = allocator or MemoryPool().malloc


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = getattr(_thread, "allocator", None)
    _thread.allocator = allocator or MemoryPool().malloc
    try:
        yield
    finally:
        _thread.allocator = before


def alloc(size: int) -> MemoryPointer:
    return get_allocator()(size)


def set_pinned_memory_allocator(allocator: Callable[[int], Any] | None = None) -> None:
    global _pinned_allocator
    _pinned_allocator = allocator or PinnedMemoryPool().malloc


def alloc_pinned_memory(size: int) -> Any:
    return _pinned_allocator(size)


def is_available() -> bool:
    return True


def reset() -> None:
    """Forget streams, allocators and counts of an earlier test."""
    set_allocator(default_pool.malloc)
    set_pinned_memory_allocator(default_pinned_pool.malloc)
    default_pool.set_limit()
    _thread.__dict__.clear()
    Queue.by_handle.clear()
    Stream.null = Stream.__new__(Stream)
    _BaseStream.__init__(Stream.null, Queue(0))
    _statistics.clear()
