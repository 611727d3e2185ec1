"""CuPy's stand-in: its names are CuPy's, and the mistakes that it promises to show are shown."""

from __future__ import annotations

import inspect
import re
import sys
import threading

import numpy as np
import pytest
from cuda_on_cpu import cupy_cuda, cupy_nvrtc, cupy_on_cpu, cupy_runtime, device_model

from edgepose.kernels import _compile

DOUBLE = 'extern "C" __global__ void twice(float* x, int n) { if (threadIdx.x < n) x[threadIdx.x] *= 2; }'


@pytest.fixture
def cupy(cupy_on_cpu):
    return cupy_on_cpu


@pytest.fixture
def stream(cupy):
    return cupy.cuda.Stream(non_blocking=True)


def twice(cupy, array, stream):
    kernel = cupy.RawModule(code=DOUBLE).get_function("twice")
    with stream:
        kernel((1,), (32,), (array, np.int32(array.size)))


def pinned(cupy, count):
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(4 * count), np.float32, count)


def uploaded(cupy, values, stream):
    with stream:
        array = cupy.asarray(np.asarray(values, np.float32))
    stream.synchronize()
    return array


# The names -----------------------------------------------------------------------------------------------------------

MODULES = {"": cupy_on_cpu, "cuda": cupy_cuda, "cuda.runtime": cupy_runtime, "cuda.nvrtc": cupy_nvrtc}


def parameters(function):
    """The names of a function's parameters; for compiled code from the first line of its docstring; None if unknown."""
    try:
        found = [name for name, p in inspect.signature(function).parameters.items() if p.kind not in (2, 4)]
    except (TypeError, ValueError):
        found = []
    if found and found != ["self"]:
        return [name for name in found if name not in ("self", "args", "kwargs")]
    text = re.match(r"[\w.]+\((.*?)\)(?: ->|$)", (function.__doc__ or "").partition("\n")[0])
    if not text:
        return None
    pieces = [piece.partition("=")[0].split(":")[0].split() for piece in text[1].split(",")]
    return [piece[-1] for piece in pieces if piece and piece[-1] not in ("self", "cls") and piece[-1][0] != "*"]


@pytest.mark.parametrize("module", MODULES)
def test_names_and_parameters_are_cupys(module):
    real_module = pytest.importorskip("cupy", reason="compares with the real CuPy: pip install 'edgepose[dev]'")
    for part in filter(None, module.split(".")):
        real_module = getattr(real_module, part)
    pairs = [(name, getattr(MODULES[module], name), getattr(real_module, name)) for name in MODULES[module].__all__]
    for name, mine, theirs in list(pairs):
        if inspect.isclass(mine) and mine.__module__.startswith("cuda_on_cpu"):
            members = [key for key in vars(mine) if not key.startswith("_")]
            pairs += [(f"{name}.{key}", getattr(mine, key), getattr(theirs, key)) for key in members]
    compared = 0
    for name, mine, theirs in pairs:
        # ndarray's constructor is compiled and says nothing of itself; the error says more than CuPy's.
        if not callable(mine) or name in ("ndarray", "CUDARuntimeError"):
            continue
        got, expected = parameters(mine), parameters(theirs)
        if got and expected:
            assert got == expected[: len(got)], f"cupy.{module}.{name}"
            compared += 1
    assert compared >= {"": 20, "cuda": 20, "cuda.runtime": 12, "cuda.nvrtc": 4}[module]


def test_it_is_gone_after_the_test():
    assert getattr(sys.modules.get("cupy"), "submit", None) is None


# Streams -------------------------------------------------------------------------------------------------------------


def test_work_waits_for_a_synchronisation(cupy, stream):
    array, result = uploaded(cupy, [1, 2, 3], stream), pinned(cupy, 3)
    twice(cupy, array, stream)
    cupy.cuda.runtime.memcpyAsync(
        result.ctypes.data, array.data.ptr, 12, cupy.cuda.runtime.memcpyDeviceToHost, stream.ptr
    )
    assert (result.view(np.uint8) == 0xCD).all()
    np.testing.assert_array_equal(cupy.view_of(array), [1, 2, 3])
    stream.synchronize()
    np.testing.assert_array_equal(result, [2, 4, 6])


def test_a_staging_buffer_that_is_overwritten_too_early(cupy, stream):
    staging = pinned(cupy, 2)
    array = cupy.empty(2, np.float32)
    staging[:] = 1
    array.set(staging, stream)
    staging[:] = 2
    np.testing.assert_array_equal(array.get(stream), [2, 2])
    pageable = np.ones(2, np.float32)
    array.set(pageable, stream)
    pageable[:] = 2
    np.testing.assert_array_equal(array.get(stream), [1, 1])


def test_events_order_streams_and_nothing_else_does(cupy, stream):
    other = cupy.cuda.Stream(non_blocking=True)
    array = uploaded(cupy, [1], stream)
    twice(cupy, array, stream)
    assert array.get(other)[0] == 1  # a race, lost
    event = stream.record()
    other.wait_event(event)
    assert array.get(other)[0] == 2
    assert event.done


def test_polling_an_event_comes_to_an_end(cupy, stream):
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    assert end.done  # never recorded
    start.record(stream)
    twice(cupy, uploaded(cupy, [1], stream), stream)
    end.record(stream)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="NotReady"):
        cupy.cuda.get_elapsed_time(start, end)
    assert [end.done, end.done] == [False, True]
    assert cupy.cuda.get_elapsed_time(start, end) >= 0


def test_each_thread_has_its_current_stream(cupy, stream):
    seen = []
    with stream:
        assert cupy.cuda.get_current_stream().ptr == stream.ptr
        thread = threading.Thread(target=lambda: seen.append(cupy.cuda.get_current_stream().ptr))
        thread.start()
        thread.join()
        with cupy.cuda.ExternalStream(stream.ptr) as same:
            assert same.ptr == stream.ptr
    assert seen == [0] == [cupy.cuda.get_current_stream().ptr]
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidResourceHandle"):
        cupy.cuda.ExternalStream(12345)


# Graphs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph(cupy, stream):
    """A graph that doubles ``graph.array``."""
    array = uploaded(cupy, [1, 2], stream)
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeThreadLocal)
    twice(cupy, array, stream)
    graph = stream.end_capture()
    graph.array = array
    return graph


def test_a_capture_records_and_a_launch_replays(cupy, stream, graph):
    array = graph.array
    np.testing.assert_array_equal(array.get(stream), [1, 2])
    graph.launch(stream)
    graph.launch(stream)
    np.testing.assert_array_equal(array.get(stream), [4, 8])
    assert cupy.statistics["graph_launches"] == 2


def test_what_a_capture_forbids(cupy, stream):
    array, staging = uploaded(cupy, [1, 2], stream), pinned(cupy, 2)
    event = cupy.cuda.Event()
    forbidden = {
        "an allocation": lambda: cupy.empty(1),
        "pinned memory": lambda: cupy.cuda.alloc_pinned_memory(1),
        "a synchronisation": stream.synchronize,
        "of the device": cupy.cuda.Device().synchronize,
        "a query": lambda: stream.done,
        "an event's": lambda: (event.record(stream), event.synchronize()),
        "an upload from pageable memory": lambda: array.set(np.ones(2, np.float32), stream),
        "a download to it": lambda: array.get(stream, out=np.ones(2, np.float32), blocking=False),
        "another capture": stream.begin_capture,
        "work of another stream": lambda: stream.wait_event(cupy.cuda.Stream(non_blocking=True).record()),
    }
    stream.begin_capture()
    for action in forbidden.values():
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="Capture"):
            action()
    array.set(staging, stream)
    assert stream.is_capturing()
    stream.end_capture().launch(stream)
    staging[:] = 3
    np.testing.assert_array_equal(array.get(stream), [3, 3])


def test_a_graph_does_not_keep_its_arrays(cupy, stream, graph):
    del graph.array
    graph.launch(stream)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="illegal memory access"):
        stream.synchronize()


def test_queued_work_keeps_its_arrays(cupy, stream):
    array, result = uploaded(cupy, [1, 2], stream), pinned(cupy, 2)
    array.get(stream, out=result, blocking=False)
    del array
    stream.synchronize()
    np.testing.assert_array_equal(result, [1, 2])


def test_memory_is_freed_in_the_order_of_its_stream(cupy, stream):
    with stream:
        array, result = cupy.asarray(np.ones(4, np.float32)), cupy.empty(4, np.float32)
        address = np.uint64(array.data.ptr)  # as in the record of a call: the launch does not see the array
        copy = 'extern "C" __global__ void copy(const float* from, float* to) { to[threadIdx.x] = from[threadIdx.x]; }'
        cupy.RawModule(code=copy).get_function("copy")((1,), (4,), (address, result))
        del array
        np.testing.assert_array_equal(result.get(), 1)
    assert cupy.cuda.runtime.pointerGetAttributes(int(address)).type == 0


def test_python_work_is_queued_and_captured(cupy, stream):
    source, target = uploaded(cupy, [1, 2], stream), cupy.empty(2, np.float32)
    stream.begin_capture()
    cupy.submit(stream.ptr, lambda a, b: np.multiply(a, 3, out=b), source, target)
    graph = stream.end_capture()
    assert (cupy.view_of(target).view(np.uint8) == 0xCD).all()
    graph.launch(stream)
    np.testing.assert_array_equal(target.get(stream), [3, 6])


# Memory and arguments ------------------------------------------------------------------------------------------------


def test_memory_is_counted_poisoned_and_limited(cupy):
    before = cupy.statistics.copy()
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        array = cupy.empty((3, 5), np.uint8)
        assert (cupy.view_of(array) == 0xCD).all()
        assert pool.used_bytes() == 512
        pool.set_limit(size=1024)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="limit set to"):
            cupy.empty(1000, np.uint8)
    address = array.data.ptr
    del array
    assert pool.used_bytes() == 0
    assert (device_model.view(address, (15,), np.uint8, (1,)) == 0xDD).all()
    assert cupy.statistics["allocations"] - before["allocations"] == 1
    assert len(np.frombuffer(cupy.cuda.alloc_pinned_memory(100), np.uint8)) == 512
    assert cupy.statistics["pinned_allocations"] == 1


def test_copies_of_rows(cupy, stream):
    runtime = cupy.cuda.runtime
    host = pinned(cupy, 12).reshape(3, 4)
    host[:] = np.arange(12).reshape(3, 4)
    array = cupy.zeros((3, 2), np.float32)
    cupy.cuda.get_current_stream().synchronize()
    arguments = (array.data.ptr, 8, host.ctypes.data + 4, 16, 8, 3)
    runtime.memcpy2DAsync(*arguments, runtime.memcpyHostToDevice, stream.ptr)
    np.testing.assert_array_equal(array.get(stream), host[:, 1:3])
    with pytest.raises(runtime.CUDARuntimeError, match="does not fit the source"):
        runtime.memcpy2DAsync(*arguments, runtime.memcpyDeviceToDevice, stream.ptr)
    runtime.memcpyAsync(array.data.ptr, host.ctypes.data, 1024, runtime.memcpyHostToDevice, stream.ptr)
    with pytest.raises(runtime.CUDARuntimeError, match="1024 bytes"):
        stream.synchronize()


def test_what_is_where(cupy):
    attributes = cupy.cuda.runtime.pointerGetAttributes
    array, host = cupy.empty(4, np.float32), pinned(cupy, 4)
    assert (attributes(array[2:].data.ptr).type, attributes(array.data.ptr).device) == (2, 0)
    assert attributes(host.ctypes.data).type == 1
    assert attributes(np.empty(4).ctypes.data).type == 0


def test_views_share_memory_and_interfaces_pass_it_on(cupy, stream):
    array = uploaded(cupy, np.arange(24).reshape(2, 3, 4), stream)
    part = array[1:, ::2, ::-1].transpose(2, 0, 1)
    expected = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[1:, ::2, ::-1].transpose(2, 0, 1)
    assert part.strides == expected.strides
    assert part.flags.c_contiguous is False
    np.testing.assert_array_equal(part.get(), expected)
    holder = type("Holder", (), {"__cuda_array_interface__": part.__cuda_array_interface__})()
    assert cupy.asarray(holder).data.ptr == part.data.ptr == cupy.from_dlpack(part).data.ptr
    np.testing.assert_array_equal(cupy.asarray(holder).get(), expected)
    array[0] = 7
    assert (array.get()[0] == 7).all()
    for host in (np.asarray, np.array):
        with pytest.raises(TypeError, match="Implicit conversion"):
            host(array)
    with pytest.raises(TypeError, match="CPU arrays"):
        cupy.from_dlpack(np.ones(3))


def test_arguments_that_cupy_would_pass_as_garbage(cupy, stream):
    array = uploaded(cupy, [1, 2], stream)
    kernel = cupy.RawModule(code=DOUBLE).get_function("twice")
    for arguments, message in [
        ((np.ones(2, np.float32), np.int32(2)), "array of the host"),
        ((array, 2), "np.int32, got int"),
        ((array, np.int64(2)), "np.int32, got int64"),
        ((array,), "takes 2 arguments"),
        ([array, np.int32(2)], "must be tuples"),
    ]:
        with pytest.raises(TypeError, match=message):
            kernel((1,), (32,), arguments)
    assert cupy.statistics["launches"] == 0


# Compiling -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_kernel(monkeypatch):
    """A .cu file that the package does not have."""
    files = {"common.cuh": "// common", "twice.cu": DOUBLE, "bad.cu": "#error no good"}
    monkeypatch.setattr(_compile, "_text", files.__getitem__)
    return "twice.cu", "twice", {"T": "float"}


def test_a_variant_is_compiled_once_and_kept_on_disk(cupy, a_kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []
    monkeypatch.setattr(cupy.cuda.nvrtc, "compileProgram", lambda program, options: compiled.append(options))
    threads = [threading.Thread(target=_compile.kernel, args=a_kernel) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == [("-std=c++17", "--fmad=false", "-arch=sm_90")]
    assert [path.suffix for path in (tmp_path / "edgepose" / "kernels").iterdir()] == [".cubin"]
    _compile.forget()
    _compile.kernel(*a_kernel)
    assert len(compiled) == 1
    _compile.kernel("twice.cu", "twice", {"T": "double"})
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_is_done_without(cupy, a_kernel, monkeypatch, tmp_path):
    (tmp_path / "edgepose").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _compile.kernel(*a_kernel).name == "twice"


def test_what_nvrtc_refuses_is_told(cupy, a_kernel):
    with pytest.raises(RuntimeError, match=r"cannot compile bad\.cu for sm_90 with .*'T': 'int'(.|\n)*no good"):
        _compile.kernel("bad.cu", "k", {"T": "int"})


def test_gpus_that_nvrtc_does_not_know(cupy, a_kernel, monkeypatch):
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "61")
    with pytest.raises(RuntimeError, match=r"compute capability 6\.1.*begins with 7\.5"):
        _compile.kernel(*a_kernel)
    options = []
    monkeypatch.setattr(cupy.cuda.nvrtc, "compileProgram", lambda program, given: options.extend(given))
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "150")
    _compile.kernel(*a_kernel)
    assert options[-1] == "-arch=compute_90"


def test_without_cupy_or_nvrtc_the_extras_are_named(cupy, a_kernel, monkeypatch):
    def missing():
        raise RuntimeError("libnvrtc.so.13 not found")

    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", missing)
    with pytest.raises(ImportError, match=r"NVRTC.*libnvrtc.*edgepose\[cuda13\].*edgepose\[cuda12\]"):
        _compile.kernel(*a_kernel)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"CuPy.*edgepose\[cuda13\]"):
        _compile.kernel(*a_kernel)
