"""letterbox on the GPU: the launchers of ``letterbox.cu`` (see :mod:`edgepose.kernels.cuda`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._call import FRAME
from ._compile import import_cupy, kernel
from ._crop import Sampling, check_normalisation, check_sampling, check_size
from ._cuda_arrays import check_array, check_table
from ._cuda_crop import OUT_TYPES, THREADS, check_crops, check_frame, tiles
from ._letterbox import check_pad
from ._placement import RESIZES, Resize, check_resize

__all__ = ["letterbox", "prepare_letterbox"]


def letterbox(
    frame: Any,  # (H, W, 3) uint8 BGR on the device, any strides
    input_size: Sequence[int],  # (w, h) of the input, px
    *,
    resize: Resize = "letterbox",
    pad: float = 114,  # level, 0-255, whole
    sampling: Sampling = "linear",
    mean: ArrayLike | None = None,  # (3,) RGB, 0-255
    std: ArrayLike | None = None,  # (3,) RGB, 0-255
    out: Any = None,  # (3, h, w) float32 or float16 on the device, C-contiguous
) -> Any:
    """:func:`edgepose.kernels.reference.letterbox` on the GPU; queued in CuPy's current stream, so it does not wait.

    "opencv4" and "area" give the twin's bits. "linear" rounds coordinates to 2**-32 px instead of keeping float64.

    Args:
        frame: a CuPy array, or whatever has ``__cuda_array_interface__``, on CuPy's current device; at most 2**18 px a
            side. Fastest where rows are whole aligned 32-bit words.
        input_size, resize, pad, sampling, mean, std: as the twin takes them.
        out: where to write the normalised input; its dtype is the result's. float16 holds the float32 result, rounded.

    Returns:
        A CuPy array: (h, w, 3) uint8 BGR without mean and std, else (3, h, w) float32 RGB (``out`` itself if it was
        given).

    Raises:
        ValueError, TypeError: as the twin, and for arrays of another device.
        ImportError: CuPy or NVRTC is not installed.
    """
    cupy = import_cupy()
    width, height = check_size(input_size)
    frame = check_frame(cupy, frame)
    normalise = check_normalisation(mean, std)
    if out is not None and normalise is None:
        raise ValueError("out takes a normalised input: give mean and std with it, or leave it away")
    if normalise is None:
        out = cupy.empty((height, width, 3), np.uint8)
    elif out is None:
        out = cupy.empty((3, height, width), np.float32)
    else:
        check_array(cupy, out, "out", ("float32", "float16"), (3, height, width))
    record = np.array([(frame.data.ptr, *frame.strides, frame.shape[1], frame.shape[0], 0, 0)], FRAME)
    frames = cupy.asarray(record.view(np.uint8))
    prepare_letterbox(frames, out[None], resize=resize, pad=pad, sampling=sampling, mean=mean, std=std)()
    return out


def prepare_letterbox(
    frames: Any,  # uint8 on the device: FRAME[B] of _call.py
    out: Any,  # (B, 3, h, w) float32 or float16, or without mean and std (B, h, w, 3) uint8, on the device
    *,
    resize: Resize,
    pad: float = 114,
    sampling: Sampling,
    mean: ArrayLike | None = None,  # (3,) RGB, 0-255
    std: ArrayLike | None = None,  # (3,) RGB, 0-255
) -> Callable[[], None]:
    """Everything that can be done once: checks, kernel, arguments. What it returns only launches, and can be captured.

    Args:
        frames: the table of the frames, read by each launch anew; at least 48 bytes for each input of ``out``. Each
            frame lies in device memory as a whole (``left`` and ``top`` are 0) and has at most 2**18 px a side. The
            input of a record whose width or height is 0 is left alone: so a launch serves fewer frames than ``out``
            has room for.
        out: the inputs.
        resize, pad, sampling, mean, std: as :func:`letterbox`.

    Returns:
        ``launch()``: queues the kernel in CuPy's current stream. It allocates nothing, and keeps the arrays alive.

    Raises:
        ValueError: a shape, a size or a value that does not fit, memory that is not contiguous or on another device
            than CuPy's current one.
        TypeError: a dtype that does not fit, or not a CuPy array.
        ImportError: CuPy or NVRTC is not installed.
    """
    cupy = import_cupy()
    check_sampling(sampling)
    check_resize(resize)
    check_pad(pad)
    normalise = check_normalisation(mean, std)
    check_array(cupy, out, "out", ("uint8",) if normalise is None else ("float32", "float16"))
    count, width, height = check_crops(out, planes=normalise is not None)
    grid = tiles(out, count, width, height)
    check_table(cupy, frames, "frames", count * FRAME.itemsize, f"{count} frames")
    function = kernel("letterbox.cu", "letterbox", {"OUT": OUT_TYPES[out.dtype.name], "SAMPLING": sampling.upper()})
    means, stds = normalise or (np.zeros(3, np.float32), np.ones(3, np.float32))
    # CuPy passes Python's numbers as 64 bits, whatever the kernel takes: each scalar has the parameter's type here.
    sizes = np.int32(width), np.int32(height), np.int32(RESIZES.index(resize)), np.float32(pad)
    arguments = (frames, out, *sizes, *means.ravel(), *stds.ravel())
    block = (THREADS,)

    def launch() -> None:
        function(grid, block, arguments)

    return launch
