"""select_detections: the NumPy twin of the kernel that selects a detector's rows (see :mod:`.reference`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ._placement import Placement

__all__ = ["MAX_CANDIDATES", "check_selection", "select_detections"]

MAX_CANDIDATES = 1024  # rows of a frame that are looked at: the best so many of those that count
LABELS = 1 << 24  # labels are below this, where float32 still has every whole number
BLOCK = 64  # candidates among which it is decided at a time


def select_detections(
    rows: NDArray[np.float32],  # (Q, 6) float32: x1, y1, x2, y2 (input px, edge coordinates), score, label
    *,
    placement: Placement,  # of the frame in the input, see edgepose.geometry.letterbox_placement
    frame_size: Sequence[int],  # (W, H) px
    min_score: float,
    nms_iou: float | None,
    max_detections: int,
    keep: NDArray[np.bool_] | None = None,  # (C,) whether a label counts
    class_agnostic: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """The rows of a detector that count, as boxes of the frame, best first; of equal scores the lower row first.

    A row counts if all of its values are finite, its score is at least ``min_score``, its label (rounded to a whole
    number) is one that ``keep`` keeps, and its box has an area within the frame. The arithmetic is float32.

    Args:
        rows: a detector's output for one frame, in the canonical form.
        placement: input px = frame px * scale + offset, of edge coordinates.
        min_score: rows with a lower score do not count.
        nms_iou: of two boxes of one label whose intersection over union, within the frame, is above this, the better
            one stays (greedy non-maximum suppression, as torchvision's). None: no suppression; the network has done it.
        max_detections: the best so many, 1 to MAX_CANDIDATES (1024).
        keep: labels of ``len(keep)`` and above do not count; None: all labels from 0 on count.
        class_agnostic: boxes of different labels suppress each other too.

    Of more than 1024 rows that count the best 1024 are looked at: the others cannot be chosen, nor suppress.

    Returns:
        boxes (n, 4) float32 xyxy, frame px, clipped to [0, W] and [0, H]; scores (n,) float32; labels (n,) int32.

    Raises:
        ValueError, TypeError: a shape, a dtype or a value that does not fit.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32:
        kind = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise TypeError(f"rows must be a NumPy array of float32, got {kind}")
    if rows.ndim != 2 or rows.shape[1] != 6:
        raise ValueError(f"rows must have the shape (Q, 6): x1, y1, x2, y2, score, label; got {rows.shape}")
    check_selection(min_score, nms_iou, max_detections)
    scale, offset = _check_placement(placement)
    limits = np.tile(np.array(frame_size, np.float32), 2)
    candidates = rows[rows[:, 4] >= np.float32(min_score)]  # NaN is not
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.minimum(np.maximum((candidates[:, :4] - offset) / scale, np.float32(0)), limits)
        counts = np.isfinite(candidates).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        labels = np.rint(candidates[:, 5])
        counts &= (labels >= 0) & (labels < (LABELS if keep is None else len(keep)))
    places = np.flatnonzero(counts)
    if keep is not None:
        places = places[np.asarray(keep, bool)[labels[places].astype(np.intp)]]
    order = places[np.argsort(-candidates[places, 4], kind="stable")[:MAX_CANDIDATES]]
    boxes, scores, kinds = boxes[order], candidates[order, 4], labels[order].astype(np.int32)
    if nms_iou is None:
        chosen: slice | NDArray[np.intp] = slice(max_detections)
    else:
        rivals = np.zeros_like(kinds) if class_agnostic else kinds
        chosen = _suppress(boxes, rivals, np.float32(nms_iou), max_detections)
    return boxes[chosen], scores[chosen], kinds[chosen]


def check_selection(min_score: float, nms_iou: float | None, max_detections: int) -> None:
    """Raises ValueError for settings that do not fit."""
    if not np.isfinite(min_score):
        raise ValueError(f"min_score must be a finite number, got {min_score!r}")
    if nms_iou is not None and not 0 <= nms_iou <= 1:
        raise ValueError(f"nms_iou must be from 0 to 1, or None for no suppression, got {nms_iou!r}")
    if max_detections not in range(1, MAX_CANDIDATES + 1):
        raise ValueError(f"max_detections must be a whole number from 1 to {MAX_CANDIDATES}, got {max_detections!r}")


def _check_placement(placement: Placement) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and offset of a box (4,)."""
    values = np.asarray(placement, np.float64)
    if values.shape != (4,) or not np.isfinite(values).all() or (values[:2] <= 0).any():
        raise ValueError(f"placement must be (scale_x, scale_y, left, top), finite and scales above 0, got {placement}")
    narrow = values.astype(np.float32)
    return np.tile(narrow[:2], 2), np.tile(narrow[2:], 2)


def _suppress(
    boxes: NDArray[np.float32], labels: NDArray[np.int32], nms_iou: np.float32, most: int
) -> NDArray[np.intp]:
    """The places of the boxes that stay, of boxes (n, 4) in falling order of score."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        block, left = left[:BLOCK], left[BLOCK:]
        within = _overlap(boxes, labels, areas, block, block, nms_iou)
        alive = np.ones(len(block), bool)
        for row in range(len(block)):
            if alive[row]:
                alive[row + 1 :] &= ~within[row, row + 1 :]
        kept += block[alive].tolist()
        left = left[~_overlap(boxes, labels, areas, block[alive], left, nms_iou).any(axis=0)]
    return np.array(kept[:most], np.intp)


def _overlap(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int32],
    areas: NDArray[np.float32],
    one: NDArray[np.intp],
    other: NDArray[np.intp],
    nms_iou: np.float32,
) -> NDArray[np.bool_]:
    """(len(one), len(other)): whether two boxes of one label overlap too much."""
    a, b = boxes[one].T[:, :, None], boxes[other].T[:, None]
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    shared = np.maximum(width, 0, out=width) * np.maximum(height, 0, out=height)
    with np.errstate(divide="ignore", invalid="ignore"):  # areas too small for float32: 0 / 0, which is not above
        iou = shared / (areas[one][:, None] + areas[other] - shared)
    return np.asarray((iou > nms_iou) & (labels[one][:, None] == labels[other]))
