"""Pseudo-labels: lets a trained model label photos, and keeps only what it says the same way every time.

Self-training in its simplest form (Xie et al., arXiv:1911.04252; Radosavovic et al., Data Distillation,
arXiv:1712.04440): labels are the median over several boxes, each with a flip test, and a photo whose landmarks move
with the box is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.frames import whole_image_box
from edgepose.media import photos_in, read_photo
from edgepose.predictor import Predictor
from edgepose.training.coco import Annotation
from edgepose.training.garments import ABSENT, CATEGORIES, garment_spec

__all__ = ["pseudo_label"]

Array = npt.NDArray[np.float32]

PRESENT, ABSENT_BELOW = 0.4, 0.2  # scores of a landmark that the garment has, and of one that it does not have
SPREAD = 0.025  # largest mean deviation of a landmark from its median, as a fraction of the box's longer side
MARGIN = 0.06  # a garment's box is this much larger, on each side, than the box around its landmarks
# Boxes in units of the garment's own: (scale, shift in x, shift in y)
VIEWS = ((1.0, 0.0, 0.0), (0.9, 0.0, 0.03), (1.15, 0.03, 0.0), (1.3, -0.04, -0.03), (1.05, -0.05, 0.04))


def pseudo_label(predictor: Predictor, photos: str | Path) -> Iterator[tuple[Path, tuple[Annotation, float] | None]]:
    """Label each photo of a folder; each photo shows one garment. None where the model is not sure.

    A label comes with its spread: how far the worst landmark moves with the box, as a fraction of the longer side.

    Args:
        predictor: a model with the landmarks of ``garment-landmarks``, opened with ``flip_test=True``.
        photos: the folder.

    Raises:
        InputError: the folder holds no photo, or the model has other landmarks.
    """
    if predictor.spec.keypoint_names != garment_spec().keypoint_names:
        raise InputError(f"pseudo-labels need a garment-landmarks model, {predictor.spec.name!r} has other landmarks")
    for file in photos_in(Path(photos)):
        yield file, _label(predictor, file, read_photo(file))


def _label(predictor: Predictor, file: Path, frame: npt.NDArray[np.uint8]) -> tuple[Annotation, float] | None:
    box = whole_image_box(frame)[0]
    limit = box.copy()
    for _ in range(2):  # a closer look: the first box is the whole photo
        result = predictor.predict(frame, box[None])
        category = _category(result.scores[0])
        if category is None:
            return None
        seen = _channels(category)
        low, high = result.keypoints[0, seen].min(0), result.keypoints[0, seen].max(0)
        margin = MARGIN * (high - low).max()
        box = np.clip(np.concatenate([low - margin, high + margin]), limit[[0, 1, 0, 1]], limit[[2, 3, 2, 3]])
        if not (box[2:] - box[:2] > 16).all():
            return None
    results = predictor.predict(frame, np.stack([_view(box, *view) for view in VIEWS]))
    categories = {_category(scores) for scores in results.scores}
    if categories != {category}:
        return None
    points = np.median(results.keypoints, axis=0)
    side = float((box[2:] - box[:2]).max())
    spread = float(np.linalg.norm(results.keypoints - points, axis=-1).mean(0)[seen].max()) / side
    inside = ((points[seen] >= limit[:2] - 1) & (points[seen] <= limit[2:] + 1)).all()
    if spread > SPREAD or not inside:
        return None
    visible = np.zeros(len(points), np.float32)
    visible[seen] = 1
    size = (frame.shape[1], frame.shape[0])
    annotation = Annotation(file, size, box.astype(np.float32), points.astype(np.float32), visible, category)
    return annotation, spread


def _channels(category: str) -> list[int]:
    return [k for k in range(8) if k not in ABSENT.get(category, ())]


def _category(scores: Array) -> str | None:
    """The one category whose landmarks are all there and whose absent ones are not; None where none fits."""
    for category in CATEGORIES:
        seen = _channels(category)
        if (scores[seen] >= PRESENT).all() and (np.delete(scores, seen) < ABSENT_BELOW).all():
            return category
    return None


def _view(box: Array, scale: float, dx: float, dy: float) -> Array:
    centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    centre = centre + size * (dx, dy)
    return np.concatenate([centre - scale * size / 2, centre + scale * size / 2]).astype(np.float32)
