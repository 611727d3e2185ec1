"""What training minimises: squared errors of heatmaps, averaged over the labelled channels, or over all as MMPose does.

Each loss is a sum over its own crops divided by a denominator. By default that is the crops' own; with gradient
accumulation or several processes, pass the denominator of the whole optimiser batch to each part, and the parts'
losses and gradients add up to those of the batch in one piece:

    masked_mse   denominator = weights.sum() over the whole batch
    mmpose_mse   denominator = crops of the whole batch * outputs
"""

from __future__ import annotations

from torch import Tensor

from edgepose.errors import InputError

__all__ = ["masked_mse", "mmpose_mse"]


def masked_mse(
    predicted: Tensor,  # (B, K, h, w)
    target: Tensor,  # (B, K, h, w), peak 1
    weights: Tensor,  # (B, K) >= 0
    foreground: float = 0.0,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:  # () float32
    """Weighted mean squared error over the labelled channels only.

    Channels with weight 0 neither add to the sum nor to the count, so a category with 8 of 294 landmarks learns as fast
    as one with 39. A cell counts ``1 + foreground * target`` times: a peak covers 1 % of the cells, and without this
    a network that starts from random weights spends its first epochs on learning to answer zero.

    Args:
        predicted: any floating dtype; the loss is computed in float32.
        target, weights: what ``Batches`` makes.
        foreground: how much more a peak counts than the background.
        denominator: what to divide the weighted sum by; None: ``weights.sum()``, at least 1.

    Raises:
        InputError: shapes that do not fit.
    """
    _check_shapes(predicted, target, weights)
    error = (predicted.float() - target) ** 2
    if foreground:
        error = error * (1 + foreground * target)
    total = (error.mean(dim=(2, 3)) * weights).sum()
    return total / (weights.sum().clamp(min=1) if denominator is None else denominator)


def mmpose_mse(
    predicted: Tensor,  # (B, K, h, w)
    target: Tensor,  # (B, K, h, w), peak 1
    weights: Tensor,  # (B, K) >= 0
    outputs: int | None = None,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:  # () float32
    """MMPose's ``KeypointMSELoss(use_target_weight=True)``: the mean over all cells of all channels of all crops, those
    with weight 0 included as zeros.

    For DeepFashion2, where 8 to 39 of 294 channels are labelled, this is 7.5 to 37 times smaller than the mean over the
    labelled ones; the published learning rates belong to it.

    Args:
        predicted, target, weights: as :func:`masked_mse` takes them.
        outputs: channels of the whole network, where ``predicted`` holds one category's only; None: K.
        denominator: what to divide the weighted sum (of the channels' means) by; None: B * outputs.

    Raises:
        InputError: shapes that do not fit, or fewer outputs than channels.
    """
    _check_shapes(predicted, target, weights)
    crops, channels = predicted.shape[:2]
    outputs = channels if outputs is None else outputs
    if outputs < channels:
        raise InputError(
            f"outputs counts the channels of the whole network: expected at least {channels}, got {outputs}"
        )
    total = (((predicted.float() - target) ** 2).mean(dim=(2, 3)) * weights).sum()
    return total / (crops * outputs if denominator is None else denominator)


def _check_shapes(predicted: Tensor, target: Tensor, weights: Tensor) -> None:
    # Unequal shapes would be broadcast without a word.
    if predicted.ndim != 4 or predicted.shape != target.shape or weights.shape != predicted.shape[:2]:
        raise InputError(
            "expected predicted and target (B, K, h, w) and weights (B, K), got "
            f"{tuple(predicted.shape)}, {tuple(target.shape)} and {tuple(weights.shape)}"
        )
