"""Samples of the loader -> what one training step takes, on the training device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edgepose.errors import InputError, MissingDependencyError
from edgepose.kernels._call import HEADER
from edgepose.kernels._compile import import_cupy
from edgepose.kernels.cuda import prepare_crop_warp
from edgepose.spec import ModelSpec
from edgepose.training.dataset import FrameSample, Sample
from edgepose.training.targets import encode, target_codec, upload

__all__ = ["Batches", "crop_frames"]


class Batches:
    """Uploads a batch, normalises it, and makes its heatmap targets there.

    Args:
        spec: sizes, codec, normalisation and sampling. Targets are ``msra`` or ``udp`` as its codec says, but ``dark``
            (the exact position, MMPose's ``unbiased``) for a ``msra`` model that refines by ``dark``.
        device: a torch device.
        sigma: of the target's Gaussian, heatmap cells.
        absent_weight: weight of the empty heatmaps of landmarks that a category never has.
    """

    def __init__(
        self, spec: ModelSpec, device: torch.device | str, *, sigma: float = 2.0, absent_weight: float = 0.5
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.sigma = sigma
        self.absent_weight = absent_weight
        self._mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)

    def __call__(self, batch: Sample | FrameSample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """images (B, 3, h, w) float32, normalised RGB, channels_last; heatmaps (B, K, h/4, w/4) float32; weights (B, K)
        float32, 0 where the loss must not look. Nothing waits for a GPU.

        Raises:
            InputError: a landmark that is visible but not finite, or frames to crop on a device other than CUDA.
            MissingDependencyError: frames to crop, and CuPy is not installed.
        """
        if isinstance(batch, FrameSample):
            if self.device.type != "cuda":
                raise InputError(f"gpu_crops needs a CUDA device, and this trains on {self.device}: leave it off")
            images = crop_frames(batch, self.spec, self.device).contiguous(memory_format=torch.channels_last)
        else:
            pixels = upload(batch.crop, self.device)
            images = pixels.flip(-1).permute(0, 3, 1, 2).float()  # BGR bytes -> RGB; channels_last as it is
            images = images.sub_(self._mean).div_(self._std)  # the runtime's order of rounding
        heatmaps, weights = encode(
            batch.keypoints,
            batch.visible,
            codec=target_codec(self.spec),
            input_size=self.spec.input_size,
            heatmap_size=self.spec.heatmap_size,
            sigma=self.sigma,
            device=self.device,
        )
        absent = upload(batch.absent, self.device)
        return images, heatmaps, torch.where(absent > 0, self.absent_weight, weights)


def crop_frames(batch: FrameSample, spec: ModelSpec, device: torch.device) -> torch.Tensor:
    """The runtime's crop kernel over a batch of frames, one launch a frame, in torch's current stream.

    Returns:
        (B, 3, h, w) float32 on ``device``, normalised RGB: with ``opencv4`` and ``area`` bit for bit the CPU's.

    Raises:
        MissingDependencyError: CuPy is not installed.
    """
    try:
        cupy = import_cupy()
    except ImportError as error:
        raise MissingDependencyError(str(error)) from error
    width, height = spec.input_size
    crops = torch.empty(len(batch.call), 3, height, width, device=device)
    pixels = upload(batch.pixels, device)
    calls = batch.call.clone()
    address = slice(HEADER.itemsize, HEADER.itemsize + 8)  # of the pixels: the crop's first field
    calls[:, address].view(torch.int64).add_(pixels.data_ptr())
    records = upload(calls, device)
    with _torch_stream(cupy, device):
        out, call = _shared(cupy, crops), _shared(cupy, records)
        for i in range(len(calls)):
            prepare_crop_warp(call[i], out[i : i + 1], sampling=spec.sampling, mean=spec.mean, std=spec.std)()
    return crops


@contextmanager
def _torch_stream(cupy: Any, device: torch.device) -> Iterator[None]:
    """Makes torch's current stream CuPy's: kernels then run in order with torch's copies, and so may share memory."""
    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(stream.device_index), cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index):
        yield


def _shared(cupy: Any, tensor: torch.Tensor) -> Any:
    """The tensor as a CuPy array of the same memory."""
    return cupy.asarray(tensor)
