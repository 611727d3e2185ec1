"""From a detector's rows to crops on the GPU: the launchers of ``select_detections.cu`` and ``plan_crops.cu``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._call import DETECTION, FRAME, detections_size
from ._compile import import_cupy, kernel
from ._crop import check_size
from ._cuda_arrays import check_array, check_call, check_table
from ._detections import LABELS, MAX_CANDIDATES, check_selection
from ._placement import RESIZES, Resize, check_resize
from ._plan import CropGeometry, check_geometry, check_model

__all__ = ["prepare_plan_crops", "prepare_select_detections"]

SELECT_THREADS, PLAN_THREADS = 1024, 256  # THREADS of the two files
NO_SUPPRESSION = 2.0  # no intersection over union is above it
NULL = 0  # a null pointer: CuPy passes an int as 8 bytes


def prepare_select_detections(
    rows: Any,  # (B, Q, 6) float32 on the device: x1, y1, x2, y2 (input px, edge coordinates), score, label
    frames: Any,  # uint8 on the device: FRAME[B] of _call.py
    out: Any,  # (detections_size(B, M),) uint8 on the device: counts and DETECTION[B, M], written
    *,
    input_size: Sequence[int],  # (w, h) of the detector's input, px
    resize: Resize,
    min_score: float,
    nms_iou: float | None,
    keep: Any = None,  # (C,) uint8 on the device: whether a label counts
    class_agnostic: bool = False,
) -> Callable[[], None]:
    """:func:`edgepose.kernels.reference.select_detections` of B frames at once; it gives the twin's bits.

    ``out`` takes up to M detections of each frame, the twin's ``max_detections``: see
    :func:`~edgepose.kernels._call.detections_views`. One copy brings all of it to the host.

    Args:
        frames: the table of the frames, read by each launch anew. A frame without width or height has no detections,
            and its rows are not read.
        input_size, resize: of the letterbox that made the detector's input; the kernel finds each frame's placement.
        min_score, nms_iou, class_agnostic: as the twin takes them.
        keep: 0 or 1 for each label; None: all labels from 0 on count.

    Returns:
        ``launch()``: queues the kernel in CuPy's current stream. It allocates nothing, and keeps the arrays alive.

    Raises:
        ValueError, TypeError: a shape, a dtype or a value that does not fit, memory that is not contiguous or on
            another device than CuPy's current one.
        ImportError: CuPy or NVRTC is not installed.
    """
    cupy = import_cupy()
    width, height = check_size(input_size)
    check_resize(resize)
    check_array(cupy, rows, "rows", ("float32",))
    if rows.ndim != 3 or rows.shape[2] != 6 or 0 in rows.shape:
        raise ValueError(f"rows must have the shape (B, Q, 6), B and Q at least 1, got {rows.shape}")
    check_table(cupy, frames, "frames", len(rows) * FRAME.itemsize, f"{len(rows)} frames")
    most = _most(cupy, out, "out", len(rows))
    check_selection(min_score, nms_iou, most)
    if keep is not None:
        check_array(cupy, keep, "keep", ("uint8",))
        if keep.ndim != 1 or not 1 <= keep.size <= LABELS:
            raise ValueError(f"keep must have the shape (C,), C at least 1, got {keep.shape}")
    function = kernel("select_detections.cu", "select_detections", {})
    arguments = (
        rows,
        frames,
        np.uint64(NULL) if keep is None else keep,
        out,
        *map(np.int32, (rows.shape[1], LABELS if keep is None else keep.size, width, height, RESIZES.index(resize))),
        np.int32(most),
        np.float32(min_score),
        np.float32(NO_SUPPRESSION if nms_iou is None else nms_iou),
        np.int32(class_agnostic),
    )
    grid, block = (len(rows),), (SELECT_THREADS,)

    def launch() -> None:
        function(grid, block, arguments)

    return launch


def prepare_plan_crops(
    detections: Any,  # (detections_size(B, M),) uint8 on the device: counts and DETECTION[B, M]
    frames: Any,  # uint8 on the device: FRAME[B] of _call.py
    categories: Any,  # (C, 3) int32 on the device, of each label: first channel, end channel, model (-1: none)
    call: Any,  # uint8 on the device: HEADER and INSTANCE[crops] of _call.py, written
    *,
    crops: int,  # that there is room for
    model: int,  # the one whose crops are wanted
    geometry: CropGeometry,
) -> Callable[[], None]:
    """:func:`edgepose.kernels.reference.plan_crops` on the GPU: detections become a call's record, without the host.

    It writes ``total`` (the crops that this model wants) and ``count`` of the header, and the first ``count``
    instances. ``first`` of the header is read: so many crops are left out, as an earlier call has made them. It must
    be 0 for the first; where ``total`` then is more than ``crops``, set it to ``crops``, ``2 * crops`` ... and launch
    again.

    The twin's bits, whatever the boxes. B comes from ``frames``, which must hold just the frames, and M from
    ``detections``.

    Args:
        frames: each lies in device memory as a whole: ``left`` and ``top`` are 0.
        categories: a label of C and above, and one whose model is another, gets no crop.
        call, crops: for :func:`prepare_crop_warp` and :func:`prepare_decode_heatmaps`.

    Returns:
        ``launch()``: queues the kernel in CuPy's current stream. It allocates nothing, and keeps the arrays alive.

    Raises:
        ValueError, TypeError: a shape, a dtype or a value that does not fit, memory that is not contiguous or on
            another device than CuPy's current one.
        ImportError: CuPy or NVRTC is not installed.
    """
    cupy = import_cupy()
    check_geometry(geometry)
    check_model(model)
    if crops < 1:
        raise ValueError(f"crops must be at least 1, got {crops}")
    check_table(cupy, frames, "frames", FRAME.itemsize, "at least one frame")
    count, rest = divmod(frames.nbytes, FRAME.itemsize)
    if rest:
        raise ValueError(f"frames must be whole records of {FRAME.itemsize} bytes, got {frames.nbytes} bytes")
    most = _most(cupy, detections, "detections", count)
    check_array(cupy, categories, "categories", ("int32",))
    if categories.ndim != 2 or categories.shape[1] != 3 or not len(categories):
        raise ValueError(f"categories must have the shape (C, 3), C at least 1, got {categories.shape}")
    check_call(cupy, call, crops)
    steps = geometry.cell_steps()
    sizes = (*geometry.input_size, geometry.codec == "udp", geometry.sampling == "area")
    arguments = (
        detections,
        frames,
        categories,
        call,
        *map(np.int32, (count, most, len(categories), crops, model)),
        *map(np.int32, sizes),
        np.float32(geometry.padding),
        *map(np.float64, steps),
    )
    function = kernel("plan_crops.cu", "plan_crops", {})
    grid, block = (1,), (PLAN_THREADS,)

    def launch() -> None:
        function(grid, block, arguments)

    return launch


def _most(cupy: Any, detections: Any, name: str, frames: int) -> int:
    """How many detections of a frame there is room for; TypeError or ValueError where that is no whole number."""
    check_table(cupy, detections, name, detections_size(frames, 1), f"a detection of each of {frames} frames")
    most = (detections.nbytes - detections_size(frames, 0)) // (frames * DETECTION.itemsize)
    if detections.nbytes != detections_size(frames, most) or most > MAX_CANDIDATES:
        raise ValueError(
            f"{name} must have detections_size({frames}, M) bytes for an M from 1 to {MAX_CANDIDATES}, "
            f"got {detections.nbytes}"
        )
    return int(most)
