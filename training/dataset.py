"""Annotations -> augmented crops and heatmap targets, for PyTorch's DataLoader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from edgepose.geometry import crop_affines
from edgepose.spec import ModelSpec
from edgepose.training.coco import Annotation, read_frame
from edgepose.training.codecs import encode
from edgepose.training.transforms import Augmentation, augmented_crop

__all__ = ["LandmarkDataset"]


class LandmarkDataset(Dataset):
    """Crops with heatmap targets.

    Args:
        annotations: what ``load_coco`` read.
        spec: input size, heatmap size, codec and flip indices of the model to train.
        augmentation: what to vary; None: the plain crop that the runtime would make.
        absent: category -> channels that this category never has. They are trained towards an empty heatmap
            with weight ``absent_weight``, so that the runtime's score tells that the landmark is not there.
            Landmarks that are merely not labelled never enter the loss.
        sigma: of the target's Gaussian, heatmap cells.
        seed: with (epoch, index) it fixes every random choice, whichever worker makes the sample.

    Items: crop (h, w, 3) uint8 BGR, heatmaps (K, h/4, w/4) float32, weights (K,) float32.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        spec: ModelSpec,
        *,
        augmentation: Augmentation | None = None,
        absent: Mapping[str, Sequence[int]] | None = None,
        absent_weight: float = 0.5,
        sigma: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.annotations = list(annotations)
        self.spec = spec
        self.augmentation = augmentation
        self.absent = dict(absent or {})
        self.absent_weight = absent_weight
        self.sigma = sigma
        self.seed = seed

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``key`` is an index, or (epoch, index) as :class:`EpochSampler` gives it."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        annotation = self.annotations[index]
        frame = read_frame(annotation)
        spec = self.spec
        affine = crop_affines(annotation.box[None], spec.input_size, spec.codec, spec.padding)[0]
        rng = np.random.default_rng((self.seed, epoch, index))
        crop, points, visible = augmented_crop(
            frame, affine, annotation.keypoints, annotation.visible, spec, self.augmentation, rng
        )
        heatmaps, weights = encode(
            points,
            visible,
            codec=spec.codec,
            input_size=spec.input_size,
            heatmap_size=spec.heatmap_size,
            sigma=self.sigma,
        )
        for channel in self.absent.get(annotation.category, ()):
            weights[channel] = self.absent_weight
        return torch.from_numpy(crop), torch.from_numpy(heatmaps), torch.from_numpy(weights)
