"""The losses against their definitions, and their parts against the whole."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.errors import InputError
from edgepose.training.fashion import DEEPFASHION2, DEEPFASHION2_CHANNELS
from edgepose.training.losses import masked_mse, mmpose_mse


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """predicted and target (6, 5, 8, 6), weights (6, 5) with zeros, halves and ones."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(6, 5, 8, 6, generator=generator)
    target = torch.rand(6, 5, 8, 6, generator=generator)
    weights = torch.randint(0, 3, (6, 5), generator=generator) / 2
    return predicted, target, weights


def test_masked_mse_is_the_mean_over_labelled_channels(maps) -> None:
    predicted, target, weights = (m.double() for m in maps)
    total, count = 0.0, 0.0
    for b in range(6):
        for k in range(5):
            difference = (predicted[b, k] - target[b, k]) ** 2 * (1 + 3 * target[b, k])
            total += float(difference.sum() / 48 * weights[b, k])
            count += float(weights[b, k])
    # float32 sums of 1440 terms: worst seen 1e-7
    assert float(masked_mse(*maps, foreground=3.0)) == pytest.approx(total / count, rel=2e-6)


def test_mmpose_mse_is_the_mean_over_all_cells(maps) -> None:
    predicted, target, weights = maps
    expected = torch.nn.functional.mse_loss(predicted, target, reduction="none") * weights[:, :, None, None]
    torch.testing.assert_close(mmpose_mse(*maps), expected.mean())


@pytest.mark.parametrize("category", sorted(DEEPFASHION2))
def test_deepfashion2_dilutes_mmposes_loss_by_its_share_of_channels(category: str) -> None:
    """Of one category, all landmarks labelled: the losses differ by the factor 294 / K, 7.5 to 37."""
    begin, end = DEEPFASHION2[category].channels
    predicted = torch.randn(2, DEEPFASHION2_CHANNELS, 4, 3, generator=torch.Generator().manual_seed(1))
    target = torch.zeros_like(predicted)
    weights = torch.zeros(2, DEEPFASHION2_CHANNELS)
    weights[:, begin:end] = 1
    dilution = float(masked_mse(predicted, target, weights) / mmpose_mse(predicted, target, weights))
    assert dilution == pytest.approx(294 / (end - begin), rel=1e-5)  # float32 sums; worst seen 3e-7
    assert 7.5 < dilution < 37
    part = predicted[:, begin:end], target[:, begin:end], weights[:, begin:end]
    whole = mmpose_mse(predicted, target, weights)
    torch.testing.assert_close(mmpose_mse(*part, outputs=DEEPFASHION2_CHANNELS), whole)
    torch.testing.assert_close(masked_mse(*part), masked_mse(predicted, target, weights))


def test_other_categories_channels_get_no_gradient(maps) -> None:
    predicted, target, weights = maps
    for loss in (masked_mse, mmpose_mse):
        leaf = predicted.clone().requires_grad_()
        loss(leaf, target, weights).backward()
        assert (leaf.grad[weights == 0] == 0).all()
        assert (leaf.grad[weights > 0] != 0).all()


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_of_a_batch_add_up_to_its_gradient(maps, parts: int) -> None:
    predicted, target, weights = maps
    for loss, denominator in ((masked_mse, weights.sum()), (mmpose_mse, 6 * 5)):
        whole, pieces = predicted.clone().requires_grad_(), predicted.clone().requires_grad_()
        loss(whole, target, weights).backward()
        for chunk in torch.arange(6).chunk(parts):
            loss(pieces[chunk], target[chunk], weights[chunk], denominator=denominator).backward()
        torch.testing.assert_close(pieces.grad, whole.grad)


def test_nothing_labelled_is_zero_and_half_precision_is_summed_in_float32(maps) -> None:
    predicted, target, weights = maps
    assert float(masked_mse(predicted, target, torch.zeros(6, 5))) == 0
    assert float(mmpose_mse(predicted, target, torch.zeros(6, 5))) == 0
    big = torch.full((1, 1, 8, 6), 600.0, dtype=torch.float16)  # its square is beyond float16
    assert float(masked_mse(big, torch.zeros(1, 1, 8, 6), torch.ones(1, 1))) == 360000
    assert masked_mse(predicted.bfloat16(), target, weights).dtype == torch.float32


@pytest.mark.parametrize("loss", [masked_mse, mmpose_mse])
def test_shapes_that_would_be_broadcast_are_refused(maps, loss) -> None:
    predicted, target, weights = maps
    for bad in (
        (predicted, target[:, :1], weights),
        (predicted, target, weights[:, :1]),
        (predicted[0], target[0], weights),
    ):
        with pytest.raises(InputError, match=r"\(B, K, h, w\)"):
            loss(*bad)
    with pytest.raises(InputError, match="at least 5, got 4"):
        mmpose_mse(predicted, target, weights, outputs=4)
