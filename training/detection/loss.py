"""What a detector's cells are to predict, and how wrong they are: SimOTA (Ge et al. 2021, section 2.3) in batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edgepose.training.detection.network import decode

__all__ = ["Assignment", "DetectionLoss", "assign", "class_targets", "pairwise_iou"]

RADIUS = 2.5  # strides around an object's centre within which a cell may answer for it
TOP = 10  # the best-fitting cells, whose overlaps add up to how many cells an object gets
FAR, NEVER = 1e4, 1e8  # costs of a cell that is not both inside and near the centre, and of one that is neither


class Assignment(NamedTuple):
    """Which cell answers for which object.

    Attributes:
        positive: (N, A) bool.
        objects: (N, A) int64, the object's number where positive.
        overlaps: (N, A) IoU of prediction and object where positive, else 0.
    """

    positive: Tensor
    objects: Tensor
    overlaps: Tensor


class DetectionLoss:
    """BCE of objectness and classes and GIoU of boxes, each summed over cells and divided by the positive ones.

    Args:
        corners, strides: of :func:`edgepose.training.detection.network.grid`.
        groups: (U, C) bool; the classes that an object of label -1 - u may have, its own class being unknown.
        box_weight: of the boxes' loss; YOLOX's.
    """

    def __init__(self, corners: Tensor, strides: Tensor, groups: Tensor, *, box_weight: float = 5.0) -> None:
        self.corners, self.strides, self.groups, self.box_weight = corners, strides, groups, box_weight

    def __call__(self, raw: Tensor, boxes: Tensor, labels: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The parts of the loss; their sum is what is minimised.

        Args:
            raw: (N, A, 5 + C) predictions.
            boxes: (N, G, 4) x1, y1, x2, y2 px of the input.
            labels: (N, G) int64; below 0: see ``groups``.
            valid: (N, G) bool; False where an image has fewer objects.
        """
        predicted = decode(raw, self.corners, self.strides)
        targets, known = class_targets(labels, self.groups)
        found = assign(raw.detach(), predicted.detach(), self.corners, self.strides, boxes, targets, known, valid)
        count = found.positive.sum().clamp(min=1)
        objectness = functional.binary_cross_entropy_with_logits(
            raw[..., 4], found.positive.to(raw.dtype), reduction="sum"
        )
        image, cell = found.positive.nonzero(as_tuple=True)
        number = found.objects[image, cell]
        overlaps = found.overlaps[image, cell]
        classes = functional.binary_cross_entropy_with_logits(
            raw[image, cell, 5:], targets[image, number] * overlaps[:, None], known[image, number], reduction="sum"
        )
        apart = 1 - _generalised_iou(predicted[image, cell], boxes[image, number])
        return {
            "objectness": objectness / count,
            "class": classes / count,
            "box": self.box_weight * apart.sum() / count,
        }


def class_targets(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot targets (N, G, C), and the weights (N, G, C) of the classes' losses.

    An object whose class is unknown says only what it is not: the classes outside of its group.
    """
    number = groups.shape[1]
    targets = functional.one_hot(labels.clamp(min=0), number).to(torch.float32)
    unknown = labels < 0
    targets[unknown] = 0
    weights = torch.ones_like(targets)
    weights[unknown] = (~groups[-1 - labels[unknown]]).to(torch.float32)
    return targets, weights


@torch.no_grad()
def assign(
    raw: Tensor, predicted: Tensor, corners: Tensor, strides: Tensor, boxes: Tensor, targets: Tensor, known: Tensor,
    valid: Tensor,
) -> Assignment:  # fmt: skip
    """SimOTA: an object gets the cells of least cost, as many as the overlaps of its ten best add up to.

    Cost is the classes' BCE plus 3 (-log IoU); only cells inside the box or near its centre can answer for an object,
    and those that are both come first.

    Args:
        raw, predicted: (N, A, 5 + C) and their boxes (N, A, 4).
        corners, strides: (A, 2), (A,), the grid.
        boxes, targets, known, valid: (N, G, 4), (N, G, C), (N, G, C), (N, G), the objects.
    """
    overlaps = pairwise_iou(boxes, predicted)  # (N, G, A)
    centres = (corners + 0.5) * strides[:, None]
    inside = ((centres > boxes[:, :, None, :2]) & (centres < boxes[:, :, None, 2:])).all(-1)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    near = ((centres - middle[:, :, None]).abs() < RADIUS * strides[:, None]).all(-1)
    possible = (inside | near) & valid[..., None]
    overlaps = overlaps * possible

    probability = (raw[..., 5:].sigmoid() * raw[..., 4:5].sigmoid()).sqrt().clamp(1e-7, 1 - 1e-7)
    hit, miss = probability.log(), (1 - probability).log()
    wrong = -(targets @ hit.mT + (known - targets).clamp(min=0) @ miss.mT)  # (N, G, A)
    cost = wrong - 3 * overlaps.clamp(min=1e-8).log() + FAR * ~(inside & near) + NEVER * ~possible

    top = min(TOP, cost.shape[-1])
    count = overlaps.topk(top, -1).values.sum(-1).int().clamp(min=1)  # (N, G)
    cheapest = cost.topk(top, -1, largest=False).indices
    chosen = torch.arange(top, device=cost.device) < count[..., None]
    matched = torch.zeros_like(possible).scatter(-1, cheapest, chosen) & possible
    # A cell that several objects want goes to the one where it costs least
    cost = cost.masked_fill(~matched, torch.inf)
    objects = cost.argmin(1)
    positive = matched.any(1)
    best = overlaps.gather(1, objects[:, None])[:, 0] * positive
    return Assignment(positive, objects, best)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, G, 4), (N, A, 4) -> (N, G, A)."""
    low = torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    high = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    whole = _area(a)[:, :, None] + _area(b)[:, None] - shared
    return shared / whole.clamp(min=1e-6)


def _generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Of pairs (P, 4), (P, 4) -> (P,); Rezatofighi et al. 2019, arXiv:1902.09630."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    around = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    whole = (_area(a) + _area(b) - shared).clamp(min=1e-6)
    return shared / whole - (around - whole) / around.clamp(min=1e-6)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
