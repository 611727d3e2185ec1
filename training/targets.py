"""Keypoints -> training heatmaps in PyTorch, a batch at once, on the device that trains.

:mod:`edgepose.training.codecs` is the specification: same names, same boundary cases, one crop at a time in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training.codecs import FAR_AWAY, cell_size

__all__ = ["TargetCodec", "encode", "target_codec", "upload"]

TargetCodec = Literal["msra", "dark", "udp"]


def target_codec(spec: ModelSpec) -> TargetCodec:
    """The targets that go with how a model is decoded: ``dark`` (unbiased) where a msra model refines by DARK."""
    return "dark" if spec.codec == "msra" and spec.refinement == "dark" else spec.codec


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on ``device``. The copy does not wait for a GPU; torch keeps its pinned source until it is done."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # itself, if it is
    return tensor.to(device, non_blocking=True)


def encode(
    keypoints: torch.Tensor,  # (B, K, 2) crop px
    visible: torch.Tensor,  # (B, K) 0 to 1
    *,
    codec: TargetCodec,
    input_size: Sequence[int],  # (w, h) px
    heatmap_size: Sequence[int],  # (w, h) cells
    sigma: float = 2.0,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`edgepose.training.codecs.encode` for a batch, equal to it but for the last rounding to float32.

    Only channels with a Gaussian in the map are computed: of DeepFashion2's 294, a crop has at most 39. With keypoints
    on the CPU and ``device`` a GPU, nothing waits for the GPU.

    Args:
        keypoints: (B, K, 2); where not visible they may be NaN.
        visible: (B, K), on the same device; from 0.5 on a keypoint gets a Gaussian.
        codec, input_size, heatmap_size, sigma: as the NumPy function takes them.
        device: where the heatmaps are made; None: where the keypoints are.

    Returns:
        heatmaps (B, K, h, w) float32 and weights (B, K) float32, both on ``device``.

    Raises:
        InputError: a shape, size, codec or sigma that does not fit, or a visible keypoint that is not finite.
    """
    points, seen = keypoints.float(), visible.float()
    if points.ndim != 3 or points.shape[2] != 2 or seen.shape != points.shape[:2]:
        raise InputError(
            f"expected keypoints (B, K, 2) and visible (B, K), got {tuple(points.shape)} and {tuple(seen.shape)}"
        )
    if codec not in ("msra", "dark", "udp"):
        raise InputError(f'codec must be "msra", "dark" or "udp", got {codec!r}')
    if not sigma > 0:
        raise InputError(f"sigma must be above 0, got {sigma}")
    cells = torch.from_numpy(cell_size(codec, input_size, heatmap_size)).to(points.device)
    drawn = seen >= 0.5
    bad = drawn & ~points.isfinite().all(dim=2)
    if bad.any():
        crop, channel = bad.nonzero()[0].tolist()
        raise InputError(
            f"keypoint {channel} of crop {crop} is visible but not finite: {points[crop, channel].tolist()}; "
            "mark it as not visible"
        )
    positions = (torch.where(drawn[..., None], points, 0) / cells).clamp(-FAR_AWAY, FAR_AWAY)

    radius = sigma * 3
    if codec == "dark":
        first, end, peaks = positions - radius, positions + radius + 1, positions
    else:
        nearest = (positions + 0.5).long()  # towards zero, as MMPose does
        first, end = (nearest.double() - radius).long(), (nearest.double() + radius + 1).long()
        peaks = (first + (2 * radius + 1) // 2).double()
        if codec == "udp":
            peaks = peaks + (positions.double() - nearest)
    limits = torch.tensor(tuple(heatmap_size), device=points.device)
    inside = ((first < limits) & (end >= 0)).all(dim=2)
    weights = torch.where(drawn & ~inside, 0, seen)

    target = points.device if device is None else torch.device(device)
    rows = (drawn & inside).flatten().nonzero()[:, 0]
    spans = upload(torch.stack([peaks.double(), first.double(), end.double()]).flatten(1, 2)[:, rows], target)
    profiles = []  # exp(-d^2 / 2 sigma^2) is the product of one profile in x and one in y
    for axis, length in enumerate(heatmap_size):
        x = torch.arange(length, dtype=torch.float64, device=target)
        peak, begin, stop = spans[:, :, axis, None]
        profile = torch.exp(-((x - peak) ** 2) / (2 * sigma**2))
        if codec != "dark":
            profile = profile * ((x >= begin) & (x < stop))
        profiles.append(profile.float())
    width, height = heatmap_size
    heatmaps = torch.zeros(seen.numel(), height, width, device=target)
    heatmaps.index_copy_(0, upload(rows, target), profiles[1][:, :, None] * profiles[0][:, None, :])
    return heatmaps.view(*seen.shape, height, width), upload(weights, target)
