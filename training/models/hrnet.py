"""HRNet backbones: parallel branches at strides 4, 8, 16 and 32 that exchange features after every module.

Sun et al., Deep High-Resolution Representation Learning for Human Pose Estimation, 2019 (arXiv:1902.09212).
Parameter names are those of MMPose, so that its checkpoints load strictly.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgepose.errors import InputError
from edgepose.training.models.resnet import BasicBlock, Bottleneck, stage

BLOCKS_PER_BRANCH = 4
MODULES_PER_STAGE = {2: 1, 3: 4, 4: 3}


class HRNet(nn.Module):
    """HRNet-W<width>: returns the stride-4 branch.

    Args:
        width: channels of the stride-4 branch; branch i has width * 2**i.

    Raises:
        InputError: the width is not positive.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        if width < 1:
            raise InputError(f"HRNet width must be at least 1 channel, not {width}")
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(Bottleneck, 64, 64, 4, stride=1)
        # A transition keeps the branches that exist (None: as they are) and starts the next one from the lowest.
        # Only the first one re-sizes: layer1's 256 channels -> width. The doubly nested Sequential is in the names.
        self.transition1 = nn.ModuleList(
            [_conv_bn(256, widths[0], 3, relu=True), nn.Sequential(_conv_bn(256, widths[1], 3, stride=2, relu=True))]
        )
        self.stage2 = _stage(2, widths[:2])
        self.transition2 = nn.ModuleList([None, None, _new_branch(widths[1], widths[2])])
        self.stage3 = _stage(3, widths[:3])
        self.transition3 = nn.ModuleList([None, None, None, _new_branch(widths[2], widths[3])])
        self.stage4 = _stage(4, widths, last_outputs=1)
        self.out_channels = width

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, h, w) float, h and w multiples of 32 -> (N, width, h/4, w/4)."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        branches = self.stage2([transition(x) for transition in self.transition1])
        branches = self.stage3([*branches, self.transition2[2](branches[-1])])
        branches = self.stage4([*branches, self.transition3[3](branches[-1])])
        return branches[0]


class HRModule(nn.Module):
    """One multi-resolution module: residual blocks on every branch, then every output sums all the branches.

    Args:
        widths: channels of the branches, highest resolution first.
        outputs: how many fused branches to return, highest resolution first; the others' fusions aren't built.
    """

    def __init__(self, widths: list[int], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([stage(BasicBlock, w, w, BLOCKS_PER_BRANCH, stride=1) for w in widths])
        self.fuse_layers = nn.ModuleList(
            [nn.ModuleList([_fuse(widths, j, i) for j in range(len(widths))]) for i in range(outputs)]
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Branch i: (N, widths[i], h/2**i, w/2**i), in and out alike; returns the first `outputs` branches."""
        inputs = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            terms = [x if j == i else row[j](x) for j, x in enumerate(inputs)]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            fused.append(self.relu(total))
        return fused


def _stage(number: int, widths: list[int], *, last_outputs: int | None = None) -> nn.Sequential:
    outputs = [len(widths)] * MODULES_PER_STAGE[number]
    outputs[-1] = last_outputs or outputs[-1]
    return nn.Sequential(*[HRModule(widths, n) for n in outputs])


def _fuse(widths: list[int], source: int, target: int) -> nn.Sequential | None:
    """The path of branch `source` into branch `target`; None for the branch itself."""
    if source == target:
        return None
    if source > target:  # lower resolution: change the channels, then enlarge
        upsample = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(*_conv_bn(widths[source], widths[target], 1), upsample)
    # higher resolution: one strided 3x3 an octave; only the last one changes the channels, and has no ReLU
    octaves = target - source
    steps = [_conv_bn(widths[source], widths[source], 3, stride=2, relu=True) for _ in range(octaves - 1)]
    return nn.Sequential(*steps, _conv_bn(widths[source], widths[target], 3, stride=2))


def _new_branch(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(_conv_bn(in_channels, out_channels, 3, stride=2, relu=True))


def _conv_bn(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, relu: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)
