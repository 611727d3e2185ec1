"""A light head that joins features of all octaves, for backbones that return one map an octave."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgepose.errors import InputError


class PyramidHead(nn.Module):
    """Top-down feature pyramid (Lin et al. 2017, arXiv:1612.03144) to heatmaps at stride 4.

    From the coarsest map down: 1x1 to `channels`, add the enlarged coarser map, then a depthwise-separable 5x5.

    Args:
        in_channels: channels of the feature maps, finest (stride 4) first.
        num_keypoints: K.
        channels: of every level of the pyramid.

    Raises:
        InputError: num_keypoints or channels is not positive.
    """

    def __init__(self, in_channels: Sequence[int], num_keypoints: int, channels: int = 96) -> None:
        super().__init__()
        if num_keypoints < 1 or channels < 1:
            raise InputError(f"a head needs at least 1 keypoint and 1 channel, not {num_keypoints} and {channels}")
        self.laterals = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, channels, 1, bias=False), nn.BatchNorm2d(channels)) for c in in_channels]
        )
        self.smooth = nn.ModuleList([_separable(channels) for _ in in_channels])
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.refine = _separable(channels)
        self.final_layer = nn.Conv2d(channels, num_keypoints, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[(N, c, h, w), (N, c', h/2, w/2), ...] -> (N, K, h, w)."""
        x: Tensor | None = None
        for feature, lateral, smooth in reversed(list(zip(features, self.laterals, self.smooth, strict=True))):
            level = lateral(feature)
            x = smooth(level if x is None else level + self.enlarge(x))
        return self.final_layer(self.refine(x))


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 5, 1, 2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
