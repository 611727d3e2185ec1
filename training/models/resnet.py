"""ResNet backbones ("pytorch" style: a bottleneck's stride sits on its 3x3 convolution).

He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385). Parameter names are those of
torchvision and MMPose, so that their checkpoints load strictly.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn

from edgepose.errors import InputError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, c_in, h, w) -> (N, channels, h/stride, w/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: (N, c_in, h, w) -> (N, 4 * channels, h/stride, w/stride)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)


Block: TypeAlias = type[BasicBlock] | type[Bottleneck]

# depth -> (block, blocks in each of the four stages); table 1 of the paper
DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the stem and of the first stage's blocks; each later stage doubles it. 64 in the paper.

    Raises:
        InputError: the depth is not one of the five, or the width is not positive.
    """

    def __init__(self, depth: int, width: int = 64) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise InputError(f"ResNet depth must be one of {', '.join(map(str, DEPTHS))}, not {depth!r}")
        if width < 1:
            raise InputError(f"ResNet width must be at least 1 channel, not {width}")
        block, counts = DEPTHS[depth]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = [width, 2 * width, 4 * width, 8 * width]
        before = [width] + [c * block.expansion for c in channels[:3]]
        self.layer1 = stage(block, before[0], channels[0], counts[0], stride=1)
        self.layer2 = stage(block, before[1], channels[1], counts[1], stride=2)
        self.layer3 = stage(block, before[2], channels[2], counts[2], stride=2)
        self.layer4 = stage(block, before[3], channels[3], counts[3], stride=2)
        self.out_channels = channels[3] * block.expansion

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, h, w) float -> (N, out_channels, h/32, w/32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def stage(block: Block, in_channels: int, channels: int, count: int, *, stride: int) -> nn.Sequential:
    """`count` blocks in a row; only the first one strides and changes the number of channels."""
    blocks = [block(in_channels, channels, stride)]
    blocks += [block(channels * block.expansion, channels) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A 1x1 projection where the block changes the shape; None where x itself fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
