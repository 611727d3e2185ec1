"""The detector in PyTorch on whole photos, for figures while training: letterbox, network, scores, suppression.

The deployed path is the runtime's; this one exists so that training needs no exported file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgepose.training.detection.garments import Garment
from edgepose.training.detection.metrics import DetectionFigures, ImageResult, box_overlaps, evaluate_detections
from edgepose.training.detection.network import decode, grid

__all__ = ["MEAN", "MIN_SCORE", "OVERLAP", "PAD", "STD", "detect", "evaluate_photos", "letterboxed", "normalised"]

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]

MEAN, STD = 127.0, 128.0  # EfficientNet-Lite's
PAD = 114
LEAST_SCORE = 0.01  # of what is evaluated
MIN_SCORE = 0.25  # of what a user gets
OVERLAP = 0.6  # of the suppression
MOST = 100


def normalised(images: Tensor) -> Tensor:
    """(N, 3, h, w) uint8 RGB -> what the network takes."""
    return (images.float() - MEAN) / STD


def letterboxed(frame: Image, size: int) -> tuple[Image, float, tuple[float, float]]:
    """A frame shrunk into the middle of a grey (size, size, 3) picture, the scale, and where its corner lies."""
    h, w = frame.shape[:2]
    scale = size / max(h, w)
    rows, columns = round(h * scale), round(w * scale)
    canvas = np.full((size, size, 3), PAD, np.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + rows, left : left + columns] = cv2.resize(frame, (columns, rows), interpolation=method)
    return canvas, scale, (left, top)


@torch.inference_mode()
def detect(
    model: nn.Module, frames: Sequence[Image], size: int, *, class_agnostic: bool = True
) -> list[tuple[Array, Array, npt.NDArray[np.int64]]]:
    """Boxes (n, 4) px of each frame, scores (n,), labels (n,). One box holds one garment: types suppress each other."""
    corners, strides = grid((size, size))
    device = next(model.parameters()).device
    found = []
    for frame in frames:
        picture, scale, (left, top) = letterboxed(frame, size)
        images = torch.from_numpy(picture[..., ::-1].transpose(2, 0, 1).copy())[None]
        raw = model(normalised(images.to(device)).to(memory_format=torch.channels_last)).cpu()
        boxes = decode(raw, corners, strides)[0].numpy()
        probabilities = (raw[0, :, 5:].sigmoid() * raw[0, :, 4:5].sigmoid()).numpy()
        boxes = (boxes - (left, top, left, top)) / scale
        h, w = frame.shape[:2]
        found.append(_suppressed(np.clip(boxes, 0, (w, h, w, h)).astype(np.float32), probabilities, class_agnostic))
    return found


def _suppressed(boxes: Array, probabilities: Array, class_agnostic: bool) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    labels, scores = probabilities.argmax(1), probabilities.max(1)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= LEAST_SCORE][:300]
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    overlaps = box_overlaps(boxes, boxes) * (class_agnostic | (labels[:, None] == labels[None]))
    kept: list[int] = []
    for n in range(len(boxes)):
        if not kept or overlaps[n, kept].max() <= OVERLAP:
            kept.append(n)
    kept = kept[:MOST]
    return boxes[kept], scores[kept], labels[kept]


def evaluate_photos(model: nn.Module, photos: Sequence[Garment], size: int) -> DetectionFigures:
    """Figures as deployed; but AP of the types where they do not suppress each other, as is usual for it."""
    figures = evaluate_detections(_results(model, photos, size, class_agnostic=True), score=MIN_SCORE)
    apart = evaluate_detections(_results(model, photos, size, class_agnostic=False))
    return replace(figures, mean_ap=apart.mean_ap, ap=apart.ap)


def _results(model: nn.Module, photos: Sequence[Garment], size: int, *, class_agnostic: bool) -> list[ImageResult]:
    found = detect(model, [photo.image for photo in photos], size, class_agnostic=class_agnostic)
    return [
        ImageResult(*detections, photo.box[None], np.array([max(photo.label, -1)]))
        for photo, detections in zip(photos, found, strict=True)
    ]
