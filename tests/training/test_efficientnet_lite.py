"""EfficientNet-Lite and its pyramid head: shapes, published weights' names, freezing, export."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.errors import InputError, ModelError
from edgepose.training import models
from edgepose.training.models.efficientnet_lite import EfficientNetLite, load_imagenet

# Parameters of the published files without what we leave out (the last stage, the last convolution, the classifier):
# counted from efficientnet-lite0-57934424.pth and efficientnet-lite2-9656183e.pth, buffers of normalisation left out.
PARAMETERS = {0: 2_353_408, 2: 3_642_144}
BLOCKS = {0: 15, 2: 20}


def published(backbone: EfficientNetLite) -> dict[str, torch.Tensor]:
    """A state dict with the names of the published files and random values."""
    state, index = {}, 0
    parts = {"expand.0": "_expand_conv", "expand.1": "_bn0", "filter.0": "_depthwise_conv", "filter.1": "_bn1"}
    parts |= {"project.0": "_project_conv", "project.1": "_bn2"}
    generator = torch.Generator().manual_seed(0)

    def fill(value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return torch.tensor(7)
        return torch.rand(value.shape, generator=generator)

    for name, value in backbone.stem.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[f"{'_conv_stem' if module == '0' else '_bn0'}.{kind}"] = fill(value)
    for stage in backbone.stages:
        for block in stage:
            for name, value in block.state_dict().items():
                module, _, kind = name.rpartition(".")
                state[f"_blocks.{index}.{parts[module]}.{kind}"] = fill(value)
            index += 1
    state |= {"_fc.weight": torch.zeros(1000, 1280), "_bn1.weight": torch.zeros(1280)}
    state[f"_blocks.{index}._project_conv.weight"] = torch.zeros(320, 1152, 1, 1)  # the stage that we leave out
    return state


@pytest.mark.parametrize("variant", [0, 2])
def test_the_published_architecture(variant: int) -> None:
    backbone = EfficientNetLite(variant)
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS[variant]
    assert sum(len(stage) for stage in backbone.stages) == BLOCKS[variant]
    features = backbone.eval()(torch.zeros(1, 3, 96, 64))
    assert [tuple(f.shape[2:]) for f in features] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    assert tuple(f.shape[1] for f in features) == backbone.out_channels


def test_published_weights_go_where_they_belong() -> None:
    backbone = EfficientNetLite(0)
    state = published(backbone)
    load_imagenet(backbone, state)
    assert torch.equal(backbone.stem[0].weight, state["_conv_stem.weight"])
    assert torch.equal(backbone.stages[0][0].filter[0].weight, state["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(backbone.stages[5][3].project[1].running_var, state["_blocks.14._bn2.running_var"])


def test_other_weights_are_refused() -> None:
    state = published(EfficientNetLite(2))
    with pytest.raises(ModelError, match="not those of this EfficientNet-Lite"):
        load_imagenet(EfficientNetLite(0), state)
    with pytest.raises(InputError, match=r"variants \[0, 1, 2\]"):
        EfficientNetLite(7)


def test_frozen_stages_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = models.create("efficientnet_lite0", 3)
    model.backbone.freeze(2)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (model(torch.randn(2, 3, 64, 64)) ** 2).sum().backward()
    optimizer.step()
    frozen = ("backbone.stem", "backbone.stages.0", "backbone.stages.1")
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same if name.startswith(frozen) else True, name
    assert not torch.equal(
        model.state_dict()["backbone.stages.2.0.project.0.weight"], before["backbone.stages.2.0.project.0.weight"]
    )
    assert not torch.equal(
        model.state_dict()["backbone.stages.2.0.project.1.running_var"],
        before["backbone.stages.2.0.project.1.running_var"],
    )


def test_the_head_joins_all_octaves() -> None:
    """Every feature map reaches the heatmaps, and they have stride 4."""
    torch.manual_seed(0)
    model = models.create("efficientnet_lite0", 5).eval()
    features = [f.detach().requires_grad_() for f in model.backbone(torch.randn(1, 3, 64, 96))]
    heatmaps = model.head(features)
    assert heatmaps.shape == (1, 5, 16, 24)
    heatmaps.sum().backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in features)
