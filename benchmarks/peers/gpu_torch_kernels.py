"""What one writes in PyTorch for crops and decoding on the GPU: grid_sample, gather and matrices, on whole batches.

The functions work on any device. Choices in their favour: the crops' positions are made on the device from one small
array; the blur is two products with matrices; no step waits for the host, so all of it can be captured into a CUDA
graph, as it is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["blur_matrices", "crops", "decode_maps", "decoder", "grid_crops", "on_cupy_stream"]

Result = Callable[[], NDArray[Any]]


def grid_crops(
    frame: torch.Tensor,  # (H, W, 3) uint8 BGR
    inverses: torch.Tensor,  # (N, 2, 3) float32, crop px -> frame px
    size: tuple[int, int],  # (w, h)
    colours: torch.Tensor,  # (2, 3) float32: mean and std, RGB, 0-255
) -> torch.Tensor:
    """(N, 3, h, w) float32 RGB, normalised: F.grid_sample, bilinear, zeros outside of the frame."""
    width, height = size
    steps = [2 / (frame.shape[1] - 1), 2 / (frame.shape[0] - 1)]  # grid_sample's frame reaches from -1 to 1
    rows, columns = torch.meshgrid(
        torch.arange(height, device=frame.device), torch.arange(width, device=frame.device), indexing="ij"
    )
    pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).float()  # (h, w, 3)
    positions = torch.einsum("hwc,ndc->dnhw", pixels, inverses)  # frame px
    grid = torch.stack([position * step - 1 for position, step in zip(positions, steps, strict=True)], dim=-1)
    planes = frame.permute(2, 0, 1).flip(0).float()[None].expand(len(inverses), -1, -1, -1)
    levels = F.grid_sample(planes, grid, mode="bilinear", align_corners=True)
    return (levels - colours[0].view(1, 3, 1, 1)) / colours[1].view(1, 3, 1, 1)


def decode_maps(
    maps: torch.Tensor, refinement: str, blur: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Heatmaps (N, K, h, w) -> cells (N, K, 2) float32, and scores (N, K): as MMPose's codecs define them.

    ``blur``: of :func:`blur_matrices`, on the maps' device.
    """
    maps = maps.float()
    height, width = maps.shape[2:]
    scores, index = maps.flatten(2).max(dim=-1)
    x, y = index % width, index // width
    cells = torch.stack([x, y], dim=-1).float()
    if refinement == "shift":
        step = _gradient(maps, x, y).sign() * 0.25
        along_x = (x > 1) & (x < width - 1) & (y > 0)
        along_y = (y > 1) & (y < height - 1) & (x > 0)
        cells = cells + step * torch.stack([along_x, along_y], dim=-1)
    elif refinement == "dark":
        logs = _blurred(maps, *blur).clamp_min(1e-10).log()
        inner = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
        step = _newton(_gradient(logs, x, y), *_curvature(logs, x, y, 2))
        cells = cells - step.masked_fill(~(inner[..., None] & step.isfinite()), 0.0)
    elif refinement == "dark_udp":
        logs = _blurred(maps, *blur).clamp(1e-3, 50).log()
        xx, yy, xy = _curvature(logs, x, y, 1)
        epsilon = torch.finfo(torch.float32).eps
        cells = cells - _newton(_gradient(logs, x, y), xx + epsilon, yy + epsilon, xy)
    return cells.masked_fill(scores[..., None] <= 0, -1.0), scores.clamp_min(0)


def _at(values: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """values[n, k, y, x] of each map; beyond the border its nearest cell."""
    height, width = values.shape[2:]
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return values.flatten(2).gather(-1, index[..., None])[..., 0]


def _gradient(values: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(N, K, 2), cells on both sides."""
    along = _at(values, x + 1, y) - _at(values, x - 1, y), _at(values, x, y + 1) - _at(values, x, y - 1)
    return 0.5 * torch.stack(along, dim=-1)


def _curvature(values: torch.Tensor, x: torch.Tensor, y: torch.Tensor, reach: int) -> tuple[torch.Tensor, ...]:
    """xx, yy, xy: DARK's differences two cells wide, UDP's one cell wide."""

    def at(right: int, down: int) -> torch.Tensor:
        return _at(values, x + right, y + down)

    middle = at(0, 0)
    xx = (at(reach, 0) - 2 * middle + at(-reach, 0)) / reach**2
    yy = (at(0, reach) - 2 * middle + at(0, -reach)) / reach**2
    if reach == 2:
        return xx, yy, 0.25 * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))
    beside = at(1, 0) + at(0, 1) + at(-1, 0) + at(0, -1)
    return xx, yy, 0.5 * (at(1, 1) + at(-1, -1) + 2 * middle - beside)


def _newton(gradient: torch.Tensor, xx: torch.Tensor, yy: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """The inverse of the 2x2 matrix of second derivatives, times the gradient."""
    dx, dy = gradient.unbind(-1)
    return torch.stack([yy * dx - xy * dy, xx * dy - xy * dx], dim=-1) / (xx * yy - xy * xy)[..., None]


def _blurred(maps: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Zeros around each map; its maximum as before."""
    blurred = down @ maps @ across
    return blurred * (maps.amax((2, 3), keepdim=True) / blurred.amax((2, 3), keepdim=True))


def blur_matrices(width: int, heatmap_size: Sequence[int], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, h) and (w, w) float32: OpenCV's Gaussian along the columns and along the rows of a map of (w, h) cells.

    Products with bands, not convolutions: cuDNN would round those to TF32.
    """
    weights = cv2.getGaussianKernel(width, 0, cv2.CV_32F)[:, 0]
    bands = []
    for side in reversed(heatmap_size):
        distance = np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
        near = np.minimum(distance, width // 2)
        band = np.where(distance <= width // 2, weights[width // 2 + near], 0).astype(np.float32)
        bands.append(torch.from_numpy(band).to(device))
    return bands[0], bands[1]


def on_cupy_stream(function: Callable[[], None]) -> Callable[[], None]:
    """A launch that puts PyTorch's work on CuPy's current stream."""
    import cupy

    def launch() -> None:
        stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)
        with torch.inference_mode(), torch.cuda.stream(stream):
            function()

    return launch


def crops(
    frame: Any, inverses: NDArray[np.float64], size: Sequence[int], dtype: Any, *, mean: Any, std: Any
) -> tuple[Callable[[], None], Result]:
    """A launch of :func:`grid_crops` for a CuPy frame, and what gives its result as an array of the host."""
    picture = torch.from_dlpack(frame)
    places = torch.from_numpy(inverses.astype(np.float32)).to(picture.device)
    colours = torch.tensor([mean, std], dtype=torch.float32, device=picture.device)
    kind = torch.float16 if dtype == np.float16 else torch.float32
    out = torch.empty((len(inverses), 3, size[1], size[0]), dtype=kind, device=picture.device)

    def work() -> None:
        out.copy_(grid_crops(picture, places, (size[0], size[1]), colours))

    return on_cupy_stream(work), lambda: _host(out)


def decoder(heatmaps: Any, refinement: str, blur_kernel: int = 11) -> tuple[Callable[[], None], Result]:
    """A launch of :func:`decode_maps` for CuPy heatmaps, and what gives its cells as an array of the host."""
    maps = torch.from_dlpack(heatmaps)
    blur = blur_matrices(blur_kernel, (maps.shape[3], maps.shape[2]), maps.device)
    out = torch.empty((*maps.shape[:2], 3), dtype=torch.float32, device=maps.device)

    def work() -> None:
        cells, scores = decode_maps(maps, refinement, blur)
        out[..., :2] = cells
        out[..., 2] = scores

    return on_cupy_stream(work), lambda: _host(out)[..., :2]


def _host(tensor: torch.Tensor) -> NDArray[Any]:
    torch.cuda.synchronize(tensor.device)  # it was written on another stream than PyTorch's current one
    return np.asarray(tensor.cpu().numpy())
