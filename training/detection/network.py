"""A one-stage, anchor-free detector in YOLOX's form (Ge et al. 2021, arXiv:2107.08430) on EfficientNet-Lite0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgepose.errors import InputError
from edgepose.training.models.efficientnet_lite import EfficientNetLite

__all__ = ["STRIDES", "GarmentDetector", "decode", "grid"]

STRIDES = (8, 16, 32)
PRIOR = 0.01  # objectness and class scores at the start: almost every cell is background


class GarmentDetector(nn.Module):
    """Backbone, pyramid of features down and up again (PAN), and for each level a branch for boxes and one for types.

    All layers beyond the backbone are depthwise-separable 5x5: type and extent of a garment need a wide view.

    Args:
        num_classes: C.
        variant: of EfficientNet-Lite.
        channels: of every level of the pyramid.

    Raises:
        InputError: num_classes or channels is not positive, or there is no such variant.
    """

    def __init__(self, num_classes: int, *, variant: int = 0, channels: int = 96) -> None:
        super().__init__()
        if num_classes < 1 or channels < 1:
            raise InputError(f"a detector needs at least 1 class and 1 channel, not {num_classes} and {channels}")
        self.num_classes = num_classes
        self.backbone = EfficientNetLite(variant)
        self.neck = Pyramid(self.backbone.out_channels[1:], channels)
        self.heads = nn.ModuleList([Head(channels, num_classes) for _ in STRIDES])

    def forward(self, images: Tensor) -> Tensor:
        """Raw predictions of a batch.

        ========  ===============  ==============================================================================
        images    (N, 3, h, w)     float, RGB, (level - mean) / std; h and w multiples of 32
        returns   (N, A, 5 + C)    a row for each cell of the grids at strides 8, 16 and 32, each in reading order:
                                   x, y from the cell's upper left corner in strides, log of width and height in
                                   strides, then logits of objectness and of the C classes
        ========  ===============  ==============================================================================
        """
        levels = self.neck(self.backbone(images)[1:])
        return torch.cat([head(level).flatten(2) for head, level in zip(self.heads, levels, strict=True)], 2).mT


class Pyramid(nn.Module):
    """Features at strides 8, 16, 32 -> as many maps of equal depth, each informed by the coarser and the finer ones."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, channels, 1, bias=False), nn.BatchNorm2d(channels)) for c in in_channels]
        )
        self.down = nn.ModuleList([separable(channels) for _ in in_channels])
        self.shrink = nn.ModuleList([separable(channels, stride=2) for _ in in_channels[1:]])
        self.up = nn.ModuleList([separable(channels) for _ in in_channels[1:]])
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[(N, c, h, w), (N, c', h/2, w/2), ...] -> [(N, channels, h, w), ...]."""
        levels = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        levels[-1] = self.down[-1](levels[-1])
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = self.down[i](levels[i] + self.enlarge(levels[i + 1]))
        for i in range(1, len(levels)):
            levels[i] = self.up[i - 1](levels[i] + self.shrink[i - 1](levels[i - 1]))
        return levels


class Head(nn.Module):
    """(N, channels, h, w) -> (N, 5 + C, h, w): x, y, log w, log h, objectness, classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.for_box = nn.Sequential(separable(channels), separable(channels))
        self.for_class = nn.Sequential(separable(channels), separable(channels))
        self.box = nn.Conv2d(channels, 4, 1)
        self.objectness = nn.Conv2d(channels, 1, 1)
        self.classes = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.objectness, self.classes):
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> Tensor:
        for_box = self.for_box(x)
        return torch.cat([self.box(for_box), self.objectness(for_box), self.classes(self.for_class(x))], 1)


def separable(channels: int, *, stride: int = 1) -> nn.Sequential:
    """Depthwise 5x5, then 1x1, each with normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 5, stride, 2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def grid(input_size: tuple[int, int], strides: Sequence[int] = STRIDES) -> tuple[Tensor, Tensor]:
    """The cells of all levels: their upper left corners (A, 2) in strides, x before y, and their strides (A,)."""
    w, h = input_size
    corners, sizes = [], []
    for stride in strides:
        rows, columns = h // stride, w // stride
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        corners.append(torch.stack([x.flatten(), y.flatten()], 1))
        sizes.append(torch.full((rows * columns,), stride))
    return torch.cat(corners).float(), torch.cat(sizes).float()


def decode(raw: Tensor, corners: Tensor, strides: Tensor) -> Tensor:
    """Boxes (N, A, 4) x1, y1, x2, y2 in px of the input (pixel edges) of raw predictions (N, A, 5 + C)."""
    centre = (raw[..., :2] + corners) * strides[:, None]
    half = raw[..., 2:4].clamp(max=10).exp() * (strides[:, None] / 2)
    return torch.cat([centre - half, centre + half], -1)
