"""decode_heatmaps on the GPU: the checks and the launch of decode_heatmaps.cu."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._call import call_size, call_views
from ._compile import import_cupy, kernel
from ._cuda_arrays import check_array, check_call, check_device
from ._decode import _gaussian
from ._decode_arguments import Refinement, check_cells_to_frame, check_channel_ranges, check_flip, check_refinement

__all__ = ["decode_heatmaps", "prepare_decode_heatmaps"]

REFINEMENTS = ("none", "shift", "dark", "dark_udp")  # by their number in decode_heatmaps.cu
TYPES = {np.dtype(np.float16): "Half", np.dtype(np.float32): "float"}
LARGEST_BLUR_KERNEL = 255  # cells; its blur still fits into 48 KB of shared memory
LARGEST_MAP = 1 << 30  # cells; they are counted in 32 bits
LARGEST_GRID = (1 << 31) - 1
NULL = 0  # a null pointer: CuPy passes an int as 8 bytes


def decode_heatmaps(
    heatmaps: Any,  # (N, K, h, w) float32 or float16, CuPy
    *,
    refinement: Refinement = "none",
    blur_kernel: int = 11,
    flipped: Any = None,  # (N, K, h, w) of the same dtype, CuPy, of the mirrored crops
    flip_indices: ArrayLike | None = None,  # (K,) int, host
    flip_shift: bool = False,
    channel_ranges: ArrayLike | None = None,  # (N, 2) int, [begin, end), host
    cells_to_frame: ArrayLike | None = None,  # (N, 2, 3) float64, heatmap cells -> frame px, host
) -> tuple[Any, Any]:
    """:func:`edgepose.kernels.reference.decode_heatmaps` on the GPU: arguments and results are described there.

    It is put on CuPy's current stream and does not wait. Peaks and scores are the twin's exactly, locations within
    1e-3 cells (typically 1e-6). Arrays that are not C-contiguous are copied first. flip_indices, channel_ranges and
    cells_to_frame are uploaded in each call; for a loop without uploads see :func:`prepare_decode_heatmaps`.

    Returns:
        locations: (N, K, 2) float32 and scores: (N, K) float32, new CuPy arrays, C-contiguous.

    Raises:
        ValueError: an argument of a shape or value that does not fit, or an array of another device than the current.
        TypeError: heatmaps that are not CuPy arrays of float16 or float32; no conversion is made in silence.
        ImportError: CuPy or NVRTC is missing.
    """
    cupy = import_cupy()
    _check_maps(cupy, "heatmaps", heatmaps)
    blur_kernel = _check_refinement(refinement, blur_kernel)
    count, channels = heatmaps.shape[:2]
    ranges = check_channel_ranges(channel_ranges, count, channels)
    matrices = check_cells_to_frame(cells_to_frame, count)
    mirror = None
    if flipped is not None:
        _check_maps(cupy, "flipped", flipped, heatmaps.dtype)
        indices = check_flip(flip_indices, heatmaps.shape, flipped.shape).astype(np.int32)
        mirror = _Mirror(cupy.ascontiguousarray(flipped), cupy.asarray(indices), flip_shift)
    total = count * channels
    out = cupy.empty(3 * total, np.float32)
    locations, scores = out[: 2 * total].reshape(count, channels, 2), out[2 * total :].reshape(count, channels)
    if total:
        call: Any = NULL
        if ranges is not None or matrices is not None:
            call = cupy.asarray(_host_call(count, channels, ranges, matrices))
        maps, number = cupy.ascontiguousarray(heatmaps), REFINEMENTS.index(refinement)
        function, grid, block, arguments = _launch(call, maps, out, mirror, number, blur_kernel, planar=True)
        function(grid, block, arguments)
    return locations, scores


def prepare_decode_heatmaps(
    call: Any,  # (>= call_size(crops),) uint8, CuPy: the record of _call.py
    heatmaps: Any,  # (crops, K, h, w) float32 or float16, CuPy
    out: Any,  # (>= crops, K, 3) float32, CuPy
    *,
    refinement: Refinement,
    blur_kernel: int,
    flipped: Any = None,  # (crops, K, h, w) of the same dtype, CuPy
    flip_indices: Any = None,  # (K,) int32, CuPy
    flip_shift: bool = False,
) -> Callable[[], None]:
    """Check everything once; the result puts the kernel on CuPy's current stream, and does nothing else.

    So it allocates nothing, can be captured into a CUDA graph, and reads and writes the same buffers at each launch;
    it keeps them alive. The kernel takes from ``call`` the number of crops, ``channels`` and ``place`` of each, and
    writes (x, y, score) of each landmark of the first ``count`` crops to ``out``; the rest of ``out`` is left as it is.

    Raises:
        ValueError: a shape, layout, device or value that does not fit. TypeError: an array of the wrong kind or dtype.
        ImportError: CuPy or NVRTC is missing.
    """
    cupy = import_cupy()
    _check_maps(cupy, "heatmaps", heatmaps)
    blur_kernel = _check_refinement(refinement, blur_kernel)
    crops, channels = heatmaps.shape[:2]
    if not crops * channels:
        raise ValueError(f"heatmaps must hold at least one map, got the shape {heatmaps.shape}")
    check_call(cupy, call, crops)
    check_array(cupy, out, "out", ("float32",))
    if out.ndim != 3 or len(out) < crops or out.shape[1:] != (channels, 3):
        raise ValueError(f"out must be ({crops} or more, {channels}, 3), got {out.shape}")
    check_array(cupy, heatmaps, "heatmaps", (heatmaps.dtype.name,))
    mirror = None
    if flipped is not None:
        check_array(cupy, flipped, "flipped", (heatmaps.dtype.name,))
        check_array(cupy, flip_indices, "flip_indices", ("int32",))
        check_flip(flip_indices.get(), heatmaps.shape, flipped.shape)
        mirror = _Mirror(flipped, flip_indices, flip_shift)
    number = REFINEMENTS.index(refinement)
    function, grid, block, arguments = _launch(call, heatmaps, out, mirror, number, blur_kernel, planar=False)

    def launch() -> None:
        function(grid, block, arguments)

    return launch


class _Mirror(NamedTuple):
    """The flip test's arguments of the kernel."""

    flipped: Any  # (crops, K, h, w), CuPy
    indices: Any  # (K,) int32, CuPy
    shift: bool


def _launch(
    call: Any, heatmaps: Any, out: Any, mirror: _Mirror | None, refinement: int, blur_kernel: int, *, planar: bool
) -> tuple[Any, tuple[int], tuple[int], tuple[Any, ...]]:
    """The kernel, its grid, block and arguments."""
    crops, channels, height, width = heatmaps.shape
    threads = _threads(height * width * heatmaps.dtype.itemsize)
    defines: dict[str, str | int] = {
        "T": TYPES[heatmaps.dtype],
        "REFINEMENT": refinement,
        "FLIP": int(mirror is not None),
        "THREADS": threads,
    }
    if refinement >= REFINEMENTS.index("dark"):
        defines |= {"BLUR_KERNEL": blur_kernel, "BLUR_WEIGHTS": _weights(blur_kernel)}
    flipped, indices, shift = mirror or (NULL, NULL, False)
    sizes = (np.int32(value) for value in (channels, height, width, shift, planar))
    arguments = (call, heatmaps, flipped, indices, *sizes, out)
    return kernel("decode_heatmaps.cu", "decode_heatmaps", defines), (crops * channels,), (threads,), arguments


def _threads(map_bytes: int) -> int:
    """Threads for a map: three 16-byte loads each for 64x48 cells of float16, and never more than eight for less."""
    loads = -(-map_bytes // 16)
    return 32 if loads <= 64 else 64 if loads <= 128 else 128 if loads <= 1024 else 256


@lru_cache(maxsize=32)
def _weights(blur_kernel: int) -> str:
    """The twin's Gaussian as float literals of C++17; hexadecimal ones are exact."""
    return ", ".join(f"{float(weight).hex()}f" for weight in _gaussian(blur_kernel))


def _host_call(
    count: int, channels: int, ranges: NDArray[np.int64] | None, matrices: NDArray[np.float64] | None
) -> NDArray[np.uint8]:
    """The record of a call, as far as the decoder reads it."""
    buffer = np.zeros(call_size(count), np.uint8)
    header, instances = call_views(buffer, count)
    header["count"] = count
    instances["channels"] = (0, channels) if ranges is None else ranges
    instances["place"] = np.eye(2, 3) if matrices is None else matrices
    return buffer


def _check_refinement(refinement: str, blur_kernel: int) -> int:
    blur_kernel = check_refinement(refinement, blur_kernel)
    if blur_kernel > LARGEST_BLUR_KERNEL:
        raise ValueError(f"blur_kernel may be up to {LARGEST_BLUR_KERNEL} on the GPU, got {blur_kernel}")
    return blur_kernel


def _check_maps(cupy: Any, name: str, maps: Any, dtype: np.dtype[Any] | None = None) -> None:
    """Heatmaps (N, K, h, w) of float16 or float32, or of the dtype asked for, on the current device; any strides."""
    if not isinstance(maps, cupy.ndarray):
        kind = f"{type(maps).__module__}.{type(maps).__qualname__}"
        raise TypeError(
            f"{name} must be a CuPy array, got {kind}: cupy.asarray({name}) uploads or shares it; "
            "edgepose.kernels.reference.decode_heatmaps decodes on the host"
        )
    check_device(cupy, maps, name)
    if maps.dtype not in TYPES or dtype not in (None, maps.dtype):
        wanted = "float16 or float32" if dtype is None else f"{dtype} like heatmaps"
        raise TypeError(f"{name} must be {wanted}, got {maps.dtype}: {name}.astype(cupy.{dtype or 'float32'})")
    if maps.ndim != 4 or 0 in maps.shape[2:]:
        raise ValueError(f"{name} must have the shape (N, K, h, w), h and w at least 1, got {maps.shape}")
    count, channels, height, width = maps.shape
    if height * width > LARGEST_MAP or count * channels > LARGEST_GRID:
        raise ValueError(f"{name} has too many maps or too large ones for the kernel, got {maps.shape}")
