"""PoseNetwork: a backbone and a heatmap head, with the weight initialisation for training from scratch."""

from __future__ import annotations

from torch import Tensor, nn

from edgepose.training.models.efficientnet_lite import EfficientNetLite
from edgepose.training.models.head import HeatmapHead
from edgepose.training.models.hrnet import HRNet
from edgepose.training.models.pyramid import PyramidHead
from edgepose.training.models.resnet import ResNet


class PoseNetwork(nn.Module):
    """A top-down heatmap model. Its state_dict has MMPose's names: `backbone.…`, `head.…`.

    Args:
        backbone: ResNet (stride 32: the head enlarges eightfold), HRNet (stride 4: the head is a 1x1 convolution) or
            EfficientNetLite (strides 4 to 32: the head is a pyramid).
        num_keypoints: K.
        deconv_channels: width of the head's transposed convolutions; without effect on the others, which have none.
    """

    def __init__(
        self, backbone: ResNet | HRNet | EfficientNetLite, num_keypoints: int, *, deconv_channels: int = 256
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: nn.Module
        if isinstance(backbone, EfficientNetLite):
            self.head = PyramidHead(backbone.out_channels, num_keypoints)
        else:
            deconv = deconv_channels if isinstance(backbone, ResNet) else None
            self.head = HeatmapHead(backbone.out_channels, num_keypoints, deconv)
        self.num_keypoints = num_keypoints
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps of a batch of crops.

        ========  ==================  =======================================================================
        images    (N, 3, h, w)        float, RGB, (value - mean) / std; h and w multiples of 32, e.g. 256, 192
        returns   (N, K, h/4, w/4)    same dtype; one map a keypoint, about 1 at the landmark and 0 elsewhere
        ========  ==================  =======================================================================
        """
        return self.head(self.backbone(images))


def initialise(network: PoseNetwork) -> None:
    """Fresh weights, in place: He et al.'s normal (fan out) in the backbone; N(0, 0.001) in the head as SimpleBaseline
    and MMPose have it, so that the maps start near zero, where almost all of their targets are; BN 1 and 0."""
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in network.head.modules():
        if isinstance(module, (nn.ConvTranspose2d, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
