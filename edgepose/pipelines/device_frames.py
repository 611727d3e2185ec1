"""Frames for the GPU pipeline: where the pixels lie, in which memory, with which strides. Nothing is copied here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError
from edgepose.frames import check_frame

if TYPE_CHECKING:
    from edgepose.pipelines.uploads import Lease

__all__ = ["FrameView", "is_device_frame", "read_frame", "stream_address"]

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_LEGACY_STREAM = 1  # cudaStreamLegacy
_LONGEST_SIDE = 1 << 18  # px: what the crop kernel's integers hold


@dataclass(frozen=True)
class FrameView:
    """A frame as the crop kernel reads it.

    Attributes:
        size: (w, h), px.
        host: (H, W, C) uint8 in host memory; None for a frame in device memory.
        address: of the first pixel's first channel in device memory; 0 for a host frame.
        strides: bytes from row to row, from pixel to pixel and from channel to channel; 0 between the channels of grey.
            Of a host frame: once its rows are packed (the pipeline may pad them).
        owner: keeps the memory alive.
        stream: the CUDA stream that the frame may still be written on, an integer; None: it is ready.
        lease: its place in the pipeline's memory, if it was staged there.
    """

    size: tuple[int, int]
    host: NDArray[np.uint8] | None
    address: int
    strides: tuple[int, int, int]
    owner: Any = None
    stream: int | None = None
    lease: Lease | None = None


def is_device_frame(frame: Any) -> bool:
    """Whether a frame is in GPU memory: CuPy, PyTorch, PyCUDA, Numba, or anything else that says so by a protocol."""
    if isinstance(frame, np.ndarray):
        return False
    if hasattr(frame, "__cuda_array_interface__"):
        return True
    return hasattr(frame, "__dlpack_device__") and frame.__dlpack_device__()[0] in _DLPACK_CUDA


def read_frame(frame: Any, device_id: int, stream: Any) -> FrameView:
    """Find out where a frame's pixels are.

    Args:
        frame: host or device array, uint8, (H, W, 3) BGR, (H, W, 4) BGRA, (H, W) or (H, W, 1) grey; any strides.
        device_id: the GPU that will read it.
        stream: the CUDA stream (CuPy's) that will read it: DLPack's producer makes it wait for what is unfinished.

    Raises:
        InputError: another type, shape or dtype, more than 2**18 px a side, or memory of another GPU.
    """
    view = _read(frame, device_id, stream)
    if max(view.size) > _LONGEST_SIDE:
        raise InputError(f"a frame may have {_LONGEST_SIDE} px a side at most, got {view.size[0]} x {view.size[1]}")
    return view


def _read(frame: Any, device_id: int, stream: Any) -> FrameView:
    if isinstance(frame, np.ndarray) or not is_device_frame(frame):
        return _read_host_frame(check_frame(frame))
    interface = getattr(frame, "__cuda_array_interface__", None)
    # Before version 3 the interface says nothing of streams. DLPack does: PyTorch has both, and only the first of it.
    if interface is not None and ("stream" in interface or not hasattr(frame, "__dlpack__")):
        return _read_interface(frame, interface, device_id)
    import cupy

    with stream:
        array = cupy.from_dlpack(frame)
    return _read_interface(array, {**array.__cuda_array_interface__, "stream": None}, device_id)


def stream_address(stream: Any) -> int:
    """A caller's CUDA stream as an integer: one itself, or CuPy's, PyTorch's, PyCUDA's, or with ``__cuda_stream__``.

    Raises:
        InputError: it is none of these.
    """
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("ptr", "cuda_stream", "handle"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    raise InputError(
        "stream must be a CUDA stream: its address as an integer, or a stream of CuPy, PyTorch or PyCUDA, "
        f"got {type(stream).__name__}"
    )


def _read_host_frame(image: NDArray[np.uint8]) -> FrameView:
    """Channels in reversed order (RGB turned round by a view) are staged as they lie, and read backwards."""
    height, width, channels = image.shape
    if channels > 1 and image.strides[2] < 0:
        image = image[:, :, ::-1]
        return FrameView((width, height), image, 0, (width * channels, channels, -1))
    return FrameView((width, height), image, 0, (width * channels, channels, 0 if channels == 1 else 1))


def _read_interface(frame: Any, interface: dict[str, Any], device_id: int) -> FrameView:
    """From https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 3 and older."""
    shape, kind = tuple(interface["shape"]), interface["typestr"]
    if kind not in ("|u1", "<u1", "=u1", ">u1"):
        raise InputError(f"frame must be uint8 with values 0..255, got the type {kind!r}: convert it on the device")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        hint = " It looks channels-first: permute it to (H, W, 3)" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        raise InputError(
            f"frame must have the shape (H, W, 3) BGR, (H, W, 4) BGRA, or (H, W) or (H, W, 1) grey, got {shape}.{hint}"
        )
    if 0 in shape:
        raise InputError(f"frame has no pixels: its shape is {shape}")
    height, width, channels = (*shape, 1)[:3]
    strides = interface.get("strides")
    if strides is None:
        strides = (width * channels, channels, 1)
    row, pixel, channel = (*strides, 1)[:3]
    if interface.get("mask") is not None:
        raise InputError("frame is a masked array: pass the plain pixels")
    address = int(interface["data"][0])
    _check_owner(address, device_id)
    stream = interface.get("stream", _LEGACY_STREAM)  # older versions cannot say: CUDA's default stream, then
    strides = (int(row), int(pixel), 0 if channels == 1 else int(channel))
    return FrameView((width, height), None, address, strides, frame, None if stream is None else int(stream))


def _check_owner(address: int, device_id: int) -> None:
    import cupy

    found = int(cupy.cuda.runtime.pointerGetAttributes(address).device)
    if found != device_id:
        raise InputError(
            f"frame is in the memory of cuda:{found}, this predictor runs on cuda:{device_id}: copy the frame over, "
            f"or open a Predictor with device='cuda:{found}'"
        )
