"""What host and device detection share: the settings, and what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgepose.detector_spec import DetectorSpec

__all__ = ["DetectionSettings", "Found", "joined", "kept_labels"]

# Of one frame, best first: boxes (n, 4) float32 xyxy, frame px, clipped to the frame; scores (n,) float32; labels (n,)
# int32, numbers of the detector's categories.
Found = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]


@dataclass(frozen=True)
class DetectionSettings:
    """Which of a detector's rows count; see :func:`edgepose.kernels.reference.select_detections`.

    Attributes:
        min_score: rows below are dropped.
        nms_iou: of two boxes of one label that overlap more, the better stays; None: the network has done that itself.
        max_detections: the best so many of a frame are kept.
        keep: for each label of the detector whether it counts; None: all do.
        class_agnostic: boxes of different labels suppress each other too.
    """

    min_score: float
    nms_iou: float | None
    max_detections: int
    keep: tuple[bool, ...] | None = None
    class_agnostic: bool = False


def kept_labels(spec: DetectorSpec, settings: DetectionSettings) -> NDArray[np.bool_]:
    """(C,) which labels count: those that have a name, and that ``keep`` keeps. A label of C and above never does."""
    named = np.array([bool(name) for name in spec.category_names], bool)
    return named if settings.keep is None else named & np.array(settings.keep, bool)


def joined(
    found: Sequence[Found],
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Owners (N,), boxes (N, 4), scores (N,) and labels (N,) of all frames, one after the other."""
    owners = np.repeat(np.arange(len(found), dtype=np.int32), [len(boxes) for boxes, _, _ in found])
    boxes, scores, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    if found:
        boxes, scores = np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
        labels = np.concatenate([one[2] for one in found])
    return owners, boxes, scores, labels
