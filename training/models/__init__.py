"""Top-down heatmap networks: ResNet with SimpleBaseline's head, and HRNet.

>>> from edgepose.training import models
>>> model = models.create("resnet50", num_keypoints=8)   # images (N, 3, 256, 192) -> heatmaps (N, 8, 64, 48)
"""

from __future__ import annotations

from edgepose.errors import InputError, MissingDependencyError

try:
    import torch  # noqa: F401  (asked for here, so that its absence gets a helpful message)
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError(
        "edgepose.training.models needs PyTorch, which is not installed: pip install 'edgepose[train]'"
    ) from error

from edgepose.training.models.efficientnet_lite import EfficientNetLite
from edgepose.training.models.head import HeatmapHead
from edgepose.training.models.hrnet import HRNet
from edgepose.training.models.network import PoseNetwork
from edgepose.training.models.pyramid import PyramidHead
from edgepose.training.models.resnet import ResNet

__all__ = ["NAMES", "EfficientNetLite", "HRNet", "HeatmapHead", "PoseNetwork", "PyramidHead", "ResNet", "create"]

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet18_w40",
    "hrnet_w18",
    "hrnet_w32",
    "hrnet_w48",
    "efficientnet_lite0",
    "efficientnet_lite2",
)


def create(name: str, num_keypoints: int) -> PoseNetwork:
    """A freshly initialised network in training mode; call `.eval()` before inference.

    Args:
        name: one of `NAMES`. `resnet18_w40` is the small one for CPUs: ResNet-18 with 40 instead of 64 channels in
            its first stage and 128 in the head (5.55 M parameters with 8 keypoints). The EfficientNets have a light
            pyramid head, and want images normalised by mean 127 and standard deviation 128.
        num_keypoints: K.

    Raises:
        InputError: the name is unknown, or num_keypoints is not positive.
    """
    if name not in NAMES:
        raise InputError(f"unknown model {name!r}; the models are: {', '.join(NAMES)}")
    if name == "resnet18_w40":
        return PoseNetwork(ResNet(18, width=40), num_keypoints, deconv_channels=128)
    if name.startswith("efficientnet_lite"):
        return PoseNetwork(EfficientNetLite(int(name[-1])), num_keypoints)
    family, _, size = name.partition("_w")
    if family == "hrnet":
        return PoseNetwork(HRNet(width=int(size)), num_keypoints)
    return PoseNetwork(ResNet(depth=int(name.removeprefix("resnet"))), num_keypoints)
