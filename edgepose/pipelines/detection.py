"""What host and device detection share: the settings, and what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import ModelError

if TYPE_CHECKING:
    from edgepose.detector_spec import DetectorSpec

__all__ = ["DetectionSettings", "Found", "check_scores", "joined", "kept_labels"]

HIGHEST_SCORE = 1.01  # float16 rounds to a little above 1

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


def check_scores(found: Sequence[Found], spec: DetectorSpec) -> None:
    """Scores above 1 are logits, or something else than scores: the spec reads the network's output wrongly.

    Raises:
        ModelError: there are some.
    """
    highest = max((float(scores[0]) for _, scores, _ in found if len(scores)), default=0.0)  # the best come first
    if highest > HIGHEST_SCORE:
        raise ModelError(
            f"the detector {spec.name!r} found something with a score of {highest:.3g}, and scores are 0..1: its spec "
            'reads its outputs wrongly. If its scores are logits, say "activation": "sigmoid" (or "softmax"); else '
            "correct format, columns or outputs"
        )


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
