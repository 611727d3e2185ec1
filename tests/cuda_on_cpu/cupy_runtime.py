"""cupy.cuda.runtime of the stand-in (cupy_on_cpu.py). The names and signatures are CuPy's."""

from __future__ import annotations

from typing import Any

from .cupy_cuda import Device, Event, memset
from .device_model import Block, CUDARuntimeError, Queue, copy_rows

__all__ = [  # what `cupy.cuda.runtime` shows
    "CUDARuntimeError",
    "PointerAttributes",
    "deviceGetAttribute",
    "deviceSynchronize",
    "driverGetVersion",
    "eventRecord",
    "getDevice",
    "getDeviceCount",
    "getDeviceProperties",
    "is_hip",
    "memGetInfo",
    "memcpy",
    "memcpy2DAsync",
    "memcpyAsync",
    "memcpyDefault",
    "memcpyDeviceToDevice",
    "memcpyDeviceToHost",
    "memcpyHostToDevice",
    "memcpyHostToHost",
    "memoryTypeDevice",
    "memoryTypeHost",
    "memoryTypeManaged",
    "memoryTypeUnregistered",
    "memsetAsync",
    "pointerGetAttributes",
    "runtimeGetVersion",
    "setDevice",
    "streamCaptureModeGlobal",
    "streamCaptureModeRelaxed",
    "streamCaptureModeThreadLocal",
    "streamIsCapturing",
    "streamSynchronize",
    "streamWaitEvent",
]

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)
memoryTypeUnregistered, memoryTypeHost, memoryTypeDevice, memoryTypeManaged = range(4)
is_hip = False


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    _check(kind, dst, src)
    copy_rows(Queue.of(stream), (dst, size), (src, size), size, 1)


def memcpy2DAsync(
    dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int, stream: int
) -> None:
    _check(kind, dst, src)
    copy_rows(Queue.of(stream), (dst, dpitch), (src, spitch), width, height)


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    memcpyAsync(dst, src, size, kind, 0)
    Queue.of(0).synchronize()


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    memset(ptr, value, size, Queue.of(stream))


def _check(kind: int, dst: int, src: int) -> None:
    """A direction that contradicts the addresses is an error; memcpyDefault finds it out by itself."""
    if kind == memcpyDefault:
        return
    for what, address, device in (
        ("target", dst, kind in (memcpyHostToDevice, memcpyDeviceToDevice)),
        ("source", src, kind in (memcpyDeviceToHost, memcpyDeviceToDevice)),
    ):
        if (pointerGetAttributes(address).type == memoryTypeDevice) != device:
            raise CUDARuntimeError(1, f"kind {kind} does not fit the {what} {address:#x}")


def streamSynchronize(stream: int) -> None:
    Queue.of(stream).synchronize()


def streamWaitEvent(stream: int, event: int, flags: int = 0) -> None:
    Queue.of(stream).wait(_event(event)._mark)


def eventRecord(event: int, stream: int) -> None:
    _event(event).record(stream)


def _event(handle: int) -> Event:
    try:
        return Event._by_handle[handle]
    except KeyError:
        raise CUDARuntimeError(400, f"no event {handle:#x}") from None


def streamIsCapturing(stream: int) -> bool:
    return Queue.of(stream).captured is not None


def deviceSynchronize() -> None:
    Device().synchronize()


def getDevice() -> int:
    return 0


def setDevice(device: int) -> None:
    Device(device).use()


def getDeviceCount() -> int:
    return 1


def getDeviceProperties(device: int) -> dict[str, Any]:
    Device(device).use()
    return {
        "name": b"A GPU that runs on the CPU",
        "major": 9,
        "minor": 0,
        "totalGlobalMem": 16 << 30,
        "multiProcessorCount": 132,
        "integrated": 0,
        "canMapHostMemory": 1,
        "sharedMemPerBlock": 48 << 10,
        "warpSize": 32,
    }


def deviceGetAttribute(attrib: int, device: int) -> int:
    Device(device).use()
    return {18: 0, 19: 1, 75: 9, 76: 0}[attrib]  # integrated, can map host memory, compute capability 9.0


def memGetInfo() -> tuple[int, int]:
    return Device().mem_info


def driverGetVersion() -> int:
    return 13000


def runtimeGetVersion() -> int:
    return 13000


class PointerAttributes:
    def __init__(self, device: int, devicePointer: int, hostPointer: int, type: int = -1) -> None:
        self.device, self.devicePointer, self.hostPointer, self.type = device, devicePointer, hostPointer, type


def pointerGetAttributes(ptr: int) -> PointerAttributes:
    found = Block.find(ptr)
    if found is None:
        return PointerAttributes(-2, 0, ptr, memoryTypeUnregistered)
    _, pinned = found
    return PointerAttributes(0, ptr, ptr if pinned else 0, memoryTypeHost if pinned else memoryTypeDevice)
