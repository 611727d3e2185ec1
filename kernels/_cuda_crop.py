"""crop_warp on the GPU: the launchers of ``crop_warp.cu`` (see :mod:`edgepose.kernels.cuda`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._call import FRAME, call_size, call_views
from ._compile import import_cupy, kernel
from ._crop import Sampling, _invert, check_normalisation, check_sampling, check_size, plan_crops
from ._cuda_arrays import check_array, check_call, check_device

__all__ = ["OUT_TYPES", "THREADS", "check_crops", "check_frame", "crop_warp", "prepare_crop_warp", "tiles"]

TILE = (32, 16)  # (w, h) of what one block makes, px; THREADS in a block: as in sampling.cuh
THREADS = 256
LONGEST_GRID = 65535  # blocks in y and in z
LONGEST_SIDE = 1 << 18  # px of a frame: beyond, sampling="area" would need more halvings than sampling.cuh makes
OUT_TYPES = {"float32": "float", "float16": "Half", "uint8": "unsigned char"}


def crop_warp(
    frame: Any,  # (H, W, 3) uint8 BGR on the device, any strides
    affines: ArrayLike,  # (N, 2, 3) float64 on the host, frame px -> crop px
    input_size: Sequence[int],  # (w, h) of a crop, px
    *,
    sampling: Sampling = "linear",
    mean: ArrayLike | None = None,  # (3,) RGB, 0-255
    std: ArrayLike | None = None,  # (3,) RGB, 0-255
    out: Any = None,  # (N, 3, h, w) float32 or float16 on the device, C-contiguous
) -> Any:
    """:func:`edgepose.kernels.reference.crop_warp` on the GPU; queued in CuPy's current stream, so it does not wait.

    "opencv4" and "area" give the twin's bits. "linear" rounds coordinates to 2**-32 px instead of keeping float64, and
    is black where one term of a coordinate exceeds 2**27 px.

    Args:
        frame: a CuPy array, or whatever has ``__cuda_array_interface__``, on CuPy's current device; at most 2**18 px a
            side. Fastest where rows are whole aligned 32-bit words.
        affines, input_size, sampling, mean, std: as the twin takes them.
        out: where to write the normalised crops; its dtype is the result's. float16 holds the float32 result, rounded.

    Returns:
        A CuPy array: (N, h, w, 3) uint8 BGR without mean and std, else (N, 3, h, w) float32 RGB (``out`` itself if it
        was given). Nothing is launched for N = 0.

    Raises:
        ValueError, TypeError: as the twin, and for arrays of another device.
        ImportError: CuPy or NVRTC is not installed.
    """
    cupy = import_cupy()
    width, height = check_size(input_size)
    frame = check_frame(cupy, frame)
    inverses = _invert(affines)
    count = len(inverses)
    check_sampling(sampling)
    normalise = check_normalisation(mean, std)
    if out is not None and normalise is None:
        raise ValueError("out takes normalised crops: give mean and std with it, or leave it away")
    if normalise is None:
        out = cupy.empty((count, height, width, 3), np.uint8)
    elif out is None:
        out = cupy.empty((count, 3, height, width), np.float32)
    else:
        check_array(cupy, out, "out", ("float32", "float16"), (count, 3, height, width))
    if count == 0:
        return out
    frame_height, frame_width = frame.shape[:2]
    plan = plan_crops(inverses, (width, height), (frame_width, frame_height), sampling)
    record = np.zeros(call_size(count), np.uint8)
    header, instances = call_views(record, count)
    header["count"] = header["total"] = count
    instances[list(FRAME.names or ())] = (frame.data.ptr, *frame.strides, frame_width, frame_height, 0, 0)
    instances["sample"], instances["first"], instances["halvings"] = plan.samples, plan.first, plan.halvings
    prepare_crop_warp(cupy.asarray(record), out, sampling=sampling, mean=mean, std=std)()
    return out


def prepare_crop_warp(
    call: Any,  # uint8 on the device: HEADER and INSTANCE[crops] of _call.py
    out: Any,  # (crops, 3, h, w) float32 or float16, or without mean and std (crops, h, w, 3) uint8, on the device
    *,
    sampling: Sampling,
    mean: ArrayLike | None = None,  # (3,) RGB, 0-255
    std: ArrayLike | None = None,  # (3,) RGB, 0-255
    mirrored: Any = None,  # as out
) -> Callable[[], None]:
    """Everything that can be done once: checks, kernel, arguments. What it returns only launches, and can be captured.

    Args:
        call: the record of the call, read by each launch anew; at least ``call_size(crops)`` bytes. The plan in it must
            come from :func:`plan_crops` with the same sampling, and the window of each frame must hold its
            ``plan.window``. Crops may have frames of their own.
        out: written from its first crop on; the crops at ``count`` of the record and beyond are left alone.
        sampling, mean, std: as :func:`crop_warp`.
        mirrored: takes each crop once more, with x reversed: exactly ``out[..., ::-1]``.

    Returns:
        ``launch()``: queues the kernel in CuPy's current stream. It allocates nothing, and keeps the arrays alive.

    Raises:
        ValueError: a shape, a size or a value that does not fit, memory that is not contiguous, on another device than
            CuPy's current one, or overlapping.
        TypeError: a dtype that does not fit, or not a CuPy array.
        ImportError: CuPy or NVRTC is not installed.
    """
    cupy = import_cupy()
    check_sampling(sampling)
    normalise = check_normalisation(mean, std)
    check_array(cupy, out, "out", ("uint8",) if normalise is None else ("float32", "float16"))
    crops, width, height = check_crops(out, planes=normalise is not None)
    grid = tiles(out, crops, width, height)
    if mirrored is not None:
        check_array(cupy, mirrored, "mirrored", (out.dtype.name,), out.shape)
        if abs(mirrored.data.ptr - out.data.ptr) < out.nbytes:
            raise ValueError("mirrored and out must not overlap")
    check_call(cupy, call, crops)
    defines = {"OUT": OUT_TYPES[out.dtype.name], "SAMPLING": sampling.upper()}
    function = kernel("crop_warp.cu", "crop_warp", defines)
    means, stds = normalise or (np.zeros(3, np.float32), np.ones(3, np.float32))
    # CuPy passes Python's numbers as 64 bits, whatever the kernel takes: each scalar has the parameter's type here.
    arguments = (
        call,
        out,
        np.uint64(0) if mirrored is None else mirrored,
        np.int32(width),
        np.int32(height),
        *means.ravel(),
        *stds.ravel(),
    )
    block = (THREADS,)

    def launch() -> None:
        function(grid, block, arguments)

    return launch


def check_frame(cupy: Any, frame: Any) -> Any:
    """The frame as a CuPy array, not copied."""
    if not hasattr(frame, "__cuda_array_interface__"):
        raise TypeError(
            f"frame must be in GPU memory (a CuPy array, __cuda_array_interface__), got {type(frame).__name__}"
        )
    frame = cupy.asarray(frame)
    if frame.dtype != np.uint8:
        raise TypeError(f"frame must be an array of uint8, got {frame.dtype}")
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"frame must have the shape (H, W, 3), H and W at least 1, got {frame.shape}")
    if max(frame.shape) > LONGEST_SIDE:
        raise ValueError(f"frame must have at most {LONGEST_SIDE} px a side, got {frame.shape}")
    check_device(cupy, frame, "frame")
    return frame


def check_crops(out: Any, *, planes: bool) -> tuple[int, int, int]:
    """(crops, w, h) of (crops, 3, h, w) planes, or of (crops, h, w, 3) pixels."""
    if out.ndim != 4 or out.shape[1 if planes else 3] != 3 or 0 in out.shape:
        wanted = "(crops, 3, h, w)" if planes else "(crops, h, w, 3)"
        raise ValueError(f"out must have the shape {wanted}, each at least 1, got {out.shape}")
    height, width = out.shape[2:] if planes else out.shape[1:3]
    return out.shape[0], width, height


def tiles(out: Any, crops: int, width: int, height: int) -> tuple[int, int, int]:
    """The grid: blocks in x and y, and crops. Raises ValueError for more than a GPU has."""
    grid = (-(-width // TILE[0]), -(-height // TILE[1]), crops)
    if max(grid[1:]) > LONGEST_GRID:
        raise ValueError(
            f"out must have at most {LONGEST_GRID} crops of {LONGEST_GRID * TILE[1]} rows, got {out.shape}"
        )
    return grid
