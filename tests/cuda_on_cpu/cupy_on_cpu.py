"""A stand-in for the part of CuPy that edgepose uses: launchers and the whole GPU pipeline run on the CPU.

The .cu files run through emulator.py, streams and memory through device_model.py, which says which mistakes it shows;
cupy_cuda.py and cupy_runtime.py have the names of ``cupy.cuda`` and ``cupy.cuda.runtime``. In a test::

    def test_something(cupy_on_cpu):        # the fixture of tests/conftest.py: `import cupy` gives this during the test
        import cupy
        frame = cupy.asarray(image)
        before = cupy_on_cpu.statistics.copy()
        predictor.predict(frame, boxes=boxes)
        assert cupy_on_cpu.statistics["allocations"] == before["allocations"]

Names and signatures are CuPy's: tests/test_cupy_on_cpu.py compares them with CuPy 14. Beyond CuPy there are

* ``statistics``: a Counter of allocations, pinned_allocations, launches, copies, syncs and graph_launches;
* ``submit(stream, function, *arrays)``: queue a Python function as work of a stream (a Stream or its ``ptr``), for an
  engine that stands in for TensorRT; it gets the NumPy views of the arrays. A capture records it like a launch;
* ``view_of(array)``: the NumPy view of a device array's memory as it is now, without running what is queued.

There is no arithmetic on arrays: a test that needs values takes ``.get()``. One device, compute capability 9.0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from . import cupy_cuda, cupy_nvrtc, cupy_runtime, emulator
from .device_model import Operation, copy_rows, statistics, view

BEYOND = ["statistics", "submit", "view_of"]  # what `cupy` shows, and CuPy does not have
__all__ = [  # what `cupy` shows, and CuPy has
    "RawModule",
    "__version__",
    "array",
    "asarray",
    "ascontiguousarray",
    "asnumpy",
    "bool_",
    "dtype",
    "empty",
    "empty_like",
    "float16",
    "float32",
    "float64",
    "from_dlpack",
    "full",
    "get_default_memory_pool",
    "get_default_pinned_memory_pool",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_available",
    "ndarray",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "zeros",
]
__version__ = "14.2.0"
uint8, uint16, uint32, uint64 = np.uint8, np.uint16, np.uint32, np.uint64
int8, int16, int32, int64, bool_ = np.int8, np.int16, np.int32, np.int64, np.bool_
float16, float32, float64, dtype = np.float16, np.float32, np.float64, np.dtype


class ndarray:
    """Device memory with a shape. What changes or moves its content is queued in the current stream."""

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: Any = None,
        strides: Sequence[int] | None = None,
        order: str = "C",
    ) -> None:
        self.shape = tuple(int(n) for n in (shape if isinstance(shape, Sequence) else (shape,)))
        self.dtype = np.dtype(dtype)
        if strides is None:
            strides = np.empty(self.shape, np.int8, order).strides  # type: ignore[call-overload]
            strides = [step * self.dtype.itemsize for step in strides]
        self.strides = tuple(int(step) for step in strides)
        self.data = cupy_cuda.alloc(self.nbytes) if memptr is None else memptr
        self.base: Any = None

    @classmethod
    def _of(cls, host: np.ndarray, owner: ndarray) -> ndarray:
        """The array that has the shape and place of a NumPy view of the owner's memory."""
        pointer = owner.data + (host.__array_interface__["data"][0] - owner.data.ptr if host.size else 0)
        array = cls(host.shape, host.dtype, pointer, host.strides)
        array.base = owner if owner.base is None else owner.base
        return array

    size = property(lambda self: math.prod(self.shape))
    ndim = property(lambda self: len(self.shape))
    itemsize = property(lambda self: self.dtype.itemsize)
    nbytes = property(lambda self: self.size * self.dtype.itemsize)
    flags = property(lambda self: view_of(self).flags)
    device = property(lambda self: self.data.device)
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> ndarray:
        key = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, (int, np.integer, slice, type(None), type(Ellipsis))) for part in key):
            raise NotImplementedError("the stand-in has basic slices only")
        return self._of(view_of(self)[key if Ellipsis in key else (*key, ...)], self)

    def __setitem__(self, key: Any, value: Any) -> None:
        target = self[key]
        if isinstance(value, ndarray):
            _elementwise(lambda to, origin: np.copyto(to, origin, casting="unsafe"), target, value)
        elif np.ndim(value) == 0:
            target.fill(value)
        else:
            raise NotImplementedError("the stand-in assigns device arrays and scalars; set() takes a host array")

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> ndarray:
        wanted = shape[0] if len(shape) == 1 else shape
        reshaped = view_of(self).reshape(wanted)
        if not np.shares_memory(reshaped, view_of(self)) and self.size:
            return ascontiguousarray(self).reshape(wanted)
        return self._of(reshaped, self)

    def transpose(self, *axes: Any) -> ndarray:
        return self._of(view_of(self).transpose(*axes), self)

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        return self._of(view_of(self).view(dtype or self.dtype), self)

    def ravel(self, order: str = "C") -> ndarray:
        return self.reshape(-1)

    def copy(self, order: str = "C") -> ndarray:
        return self.astype(self.dtype)

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        result = ndarray(self.shape, dtype)
        result[...] = self
        return result

    def fill(self, value: Any) -> None:
        _elementwise(lambda to: to.fill(value), self)

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        host = np.ascontiguousarray(arr)
        self.data.copy_from_host_async(host.ctypes.data, self.nbytes, stream)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        if out is not None and (out.dtype != self.dtype or out.shape != self.shape or not out.flags.c_contiguous):
            raise ValueError(f"out must be contiguous, {self.shape} {self.dtype}, got {out.shape} {out.dtype}")
        packed = ascontiguousarray(self)
        host = np.empty(self.shape, self.dtype) if out is None else out
        queue = cupy_cuda.queue_of(stream)
        copy_rows(queue, (host.ctypes.data, self.nbytes), (packed.data.ptr, self.nbytes), self.nbytes, 1, packed.data)
        if blocking:
            queue.synchronize()
        return host

    def item(self) -> Any:
        return self.get().item()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __repr__(self) -> str:
        return f"<array on the stand-in device, {self.shape} {self.dtype}>"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "strides": None if self.flags.c_contiguous else self.strides,
            "data": (self.data.ptr, False),
            "version": 3,
            "stream": cupy_cuda.get_current_stream().ptr or 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id  # kDLCUDA

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        """Not a capsule but the array itself, for from_dlpack of this file; the consumer's stream waits for ours."""
        if stream is not None and stream != -1:
            cupy_cuda.queue_of(stream).wait(cupy_cuda.queue_of(None).record())
        return self


def view_of(array: ndarray) -> np.ndarray:
    """The NumPy view of a device array's memory as it is now."""
    return view(array.data.ptr, array.shape, array.dtype, array.strides)


def _elementwise(function: Callable[..., None], *arrays: ndarray) -> None:
    statistics["launches"] += 1
    _queue(cupy_cuda.queue_of(None), function, arrays)


def submit(stream: Any, function: Callable[..., None], *arrays: ndarray) -> None:
    """Queue ``function(*views)``; the views are made when it runs, from the addresses of now."""
    _queue(cupy_cuda.queue_of(stream), function, arrays)


def _queue(queue: Any, function: Callable[..., None], arrays: Sequence[ndarray]) -> None:
    places = [(array.data.ptr, array.shape, array.dtype, array.strides) for array in arrays]
    touches = [(array.data.ptr, 1) for array in arrays if array.size]
    keep = [array.data for array in arrays]
    queue.submit(Operation(lambda: function(*(view(*place) for place in places)), touches, keep))


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    array = ndarray(shape, dtype, order=order)
    array.data.memset_async(0, array.nbytes)
    return array


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    array = ndarray(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order=order)
    array.fill(fill_value)
    return array


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return ndarray(prototype.shape if shape is None else shape, dtype or prototype.dtype)


def array(
    obj: Any,
    dtype: Any = None,
    copy: Any = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    source = asarray(obj, dtype, blocking=blocking)
    return source.copy() if copy and hasattr(obj, "__cuda_array_interface__") else source


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    if hasattr(a, "__cuda_array_interface__"):
        found = _from_interface(a)
        return found if dtype is None else found.astype(dtype, copy=False)
    host = np.ascontiguousarray(a, dtype).reshape(np.shape(a))
    result = ndarray(host.shape, host.dtype)
    result.set(host)
    if blocking:
        cupy_cuda.get_current_stream().synchronize()
    return result


def _from_interface(holder: Any) -> ndarray:
    """A view of another library's device memory; as CuPy does, its stream is synchronised if it names one."""
    interface = holder.__cuda_array_interface__
    if interface.get("stream") is not None:
        cupy_cuda.ExternalStream(interface["stream"]).synchronize()
    kind, shape = np.dtype(interface["typestr"]), interface["shape"]
    memory = cupy_cuda.UnownedMemory(interface["data"][0], math.prod(shape) * kind.itemsize, holder)
    return ndarray(shape, kind, cupy_cuda.MemoryPointer(memory, 0), interface.get("strides"))


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    if array.__dlpack_device__()[0] != 2:
        raise TypeError("CPU arrays cannot be directly imported to CuPy")
    shared = array.__dlpack__(stream=cupy_cuda.get_current_stream().ptr or 1)
    if not isinstance(shared, ndarray):
        raise TypeError("the stand-in takes its own arrays through DLPack, no other library's")
    return ndarray._of(view_of(shared), shared)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    source = asarray(a, dtype)
    return source if source.flags.c_contiguous else source.copy()


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a)


def is_available() -> bool:
    return True


def get_default_memory_pool() -> Any:
    return cupy_cuda.default_pool


def get_default_pinned_memory_pool() -> Any:
    return cupy_cuda.default_pinned_pool


class RawKernel:
    """A kernel that is queued in the current stream. Made by RawModule.get_function."""

    def __init__(self, kernel: emulator.Kernel) -> None:
        self._emulated, self.name = kernel, kernel.name
        self.max_dynamic_shared_size_bytes = kernel.max_dynamic_shared_size_bytes

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], **kwargs: Any) -> None:
        if not all(isinstance(value, tuple) for value in (grid, block, args)):
            raise TypeError("grid, block and args must be tuples")
        if kwargs.keys() - {"shared_mem"}:
            raise TypeError(f"a RawKernel takes shared_mem, not {', '.join(kwargs)}; the stream is the current one")
        for position, argument in enumerate(args):
            if isinstance(argument, np.ndarray):
                raise TypeError(f"{self.name} argument {position} is an array of the host")
        self._emulated.max_dynamic_shared_size_bytes = self.max_dynamic_shared_size_bytes
        run = self._emulated.prepare(grid, block, args, **kwargs)
        arrays = [argument.data for argument in args if isinstance(argument, ndarray) and argument.size]
        statistics["launches"] += 1
        cupy_cuda.queue_of(None).submit(Operation(run, [(data.ptr, 1) for data in arrays], arrays))

    def compile(self, log_stream: Any = None) -> None: ...


class RawModule:
    """Loads what the stand-in's NVRTC (cupy_nvrtc.py) made of a source: the source itself."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        **kwargs: Any,
    ) -> None:
        if (code is None) == (path is None) or not isinstance(options, tuple):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given, and options as a tuple")
        self.code, self.file_path, self.options = code, path, options
        if path is not None:
            code = Path(path).read_text().rstrip("\0")
        self._module = emulator.Module(code or "")

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self._module.get_function(name))

    def compile(self, log_stream: Any = None) -> None: ...


def modules() -> dict[str, ModuleType]:
    """What `import cupy` needs in sys.modules."""
    made = {}
    for name, origin in (
        ("cupy", sys.modules[__name__]),
        ("cupy.cuda", cupy_cuda),
        ("cupy.cuda.runtime", cupy_runtime),
        ("cupy.cuda.nvrtc", cupy_nvrtc),
        (
            "cupy.cuda.memory",
            SimpleNamespace(__all__=["OutOfMemoryError"], OutOfMemoryError=cupy_cuda.OutOfMemoryError),
        ),
    ):
        made[name] = ModuleType(name)
        for public in origin.__all__ + getattr(origin, "BEYOND", []):
            setattr(made[name], public, getattr(origin, public))
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, made[name])
    return made
