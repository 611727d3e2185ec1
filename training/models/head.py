"""The heatmap head of SimpleBaseline (Xiao et al. 2018, arXiv:1804.06208); without deconvolutions it is HRNet's."""

from __future__ import annotations

from torch import Tensor, nn

from edgepose.errors import InputError

DECONV_LAYERS = 3  # from stride 32 to stride 4


class HeatmapHead(nn.Module):
    """Features to heatmaps.

    Args:
        in_channels: channels of the features.
        num_keypoints: K, the number of heatmaps.
        deconv_channels: channels of the three stride-2 transposed convolutions; None: no such layers (the features
            already have stride 4).

    Raises:
        InputError: num_keypoints or deconv_channels is not positive.
    """

    def __init__(self, in_channels: int, num_keypoints: int, deconv_channels: int | None = 256) -> None:
        super().__init__()
        if num_keypoints < 1:
            raise InputError(f"a heatmap head needs at least 1 keypoint, not {num_keypoints}")
        if deconv_channels is not None and deconv_channels < 1:
            raise InputError(f"deconv_channels must be positive or None, not {deconv_channels}")
        self.deconv_layers: nn.Module = nn.Identity()
        if deconv_channels is not None:
            layers: list[nn.Module] = []
            for _ in range(DECONV_LAYERS):
                layers += [
                    nn.ConvTranspose2d(in_channels, deconv_channels, 4, 2, 1, bias=False),
                    nn.BatchNorm2d(deconv_channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = deconv_channels
            self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(in_channels, num_keypoints, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, K, 8h, 8w), or (N, K, h, w) without deconvolutions."""
        return self.final_layer(self.deconv_layers(features))
