"""Annotations -> augmented crops and their landmarks, for PyTorch's DataLoader.

Workers only read, crop and vary the picture; heatmap targets are made on the training device
(:class:`edgepose.training.batches.Batches`): all 294 of DeepFashion2 would be 25 times larger than the crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, default_collate

from edgepose.errors import InputError
from edgepose.geometry import crop_affines, invert_affines, transform_points
from edgepose.kernels._call import FRAME, call_size, call_views
from edgepose.kernels._crop import plan_crops
from edgepose.kernels.reference import crop_warp
from edgepose.spec import ModelSpec
from edgepose.training.coco import Annotation, read_frame
from edgepose.training.mmpose_transforms import MMPoseAugmentation
from edgepose.training.transforms import Augmentation, augmented_crop

__all__ = ["FrameSample", "LandmarkDataset", "Sample", "collate"]

ALIGNMENT = 256  # bytes: where each picture starts in a batch of them, so that the GPU reads whole words


class Sample(NamedTuple):
    """One crop, or with a leading B a batch of them.

    Attributes:
        crop: (h, w, 3) uint8 BGR.
        keypoints: (K, 2) float32 crop px; 0 where not labelled.
        visible: (K,) float32, 1 where labelled.
        absent: (K,) float32, 1 where the category never has the landmark.
    """

    crop: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    absent: torch.Tensor


class FrameSample(NamedTuple):
    """What the GPU needs to make one crop: the part of the frame that it sees, and how to look at it.

    Attributes:
        pixels: (h', w', 3) uint8 BGR; of a batch (bytes,): one after another, each from a multiple of 256 on.
        call: (bytes,) uint8, the crop kernel's record (see ``kernels/_call.py``), its address of the pixels counted
            from the start of ``pixels``; of a batch (B, bytes).
        keypoints, visible, absent: as :class:`Sample` has them.
    """

    pixels: torch.Tensor
    call: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    absent: torch.Tensor


class LandmarkDataset(Dataset):
    """Crops with landmarks. Items are :class:`Sample`; give the loader ``collate_fn=collate``.

    Args:
        annotations: what ``load_coco`` read. One that has fewer keypoints than the spec fills the channels from its
            ``first_channel`` on; the others are not labelled.
        spec: input size, codec, sampling and flip indices of the model to train.
        augmentation: what to vary; None: the plain crop that the runtime would make.
        absent: category -> channels that this category never has. They are trained towards an empty heatmap, so that
            the runtime's score tells that the landmark is not there. Landmarks that are merely not labelled never enter
            the loss.
        absent_weight: of those channels in the loss; kept here for ``Batches``.
        seed: with (epoch, index) it fixes every random choice, whichever worker makes the sample.
        gpu_crops: items become :class:`FrameSample`, and ``Batches`` crops on the GPU; the same crops where the
            sampling is ``opencv4`` or ``area``.

    Raises:
        InputError: annotations that do not fit the spec's channels, landmarks that are absent and labelled at once, or
            gpu_crops with an augmentation that does more than an affine. When an item is read: as ``read_frame``.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        spec: ModelSpec,
        *,
        augmentation: Augmentation | MMPoseAugmentation | None = None,
        absent: Mapping[str, Sequence[int]] | None = None,
        absent_weight: float = 0.5,
        seed: int = 0,
        gpu_crops: bool = False,
    ) -> None:
        if gpu_crops and isinstance(augmentation, Augmentation):
            raise InputError(
                "gpu_crops makes crops by an affine alone, and Augmentation also bends and recolours the picture: "
                "train with MMPoseAugmentation, without augmentation, or without gpu_crops"
            )
        self.annotations = list(annotations)
        self.spec = spec
        self.augmentation = augmentation
        self.absent = {category: tuple(channels) for category, channels in (absent or {}).items()}
        self.absent_weight = absent_weight
        self.seed = seed
        self.gpu_crops = gpu_crops
        self._check()

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | FrameSample:
        """``key`` is an index, or (epoch, index) as the trainer's sampler gives it."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        annotation, spec = self.annotations[index], self.spec
        frame = read_frame(annotation)
        keypoints, visible = self._channels(annotation)
        rng = np.random.default_rng((self.seed, epoch, index))
        if isinstance(self.augmentation, MMPoseAugmentation):
            affine, points, visible = self.augmentation.transform(
                annotation.box, annotation.size, keypoints, visible, spec, rng
            )
        else:
            affine = crop_affines(annotation.box[None], spec.input_size, spec.codec, spec.padding)[0]
            points = transform_points(keypoints[None], affine[None])[0].astype(np.float32)
        if isinstance(self.augmentation, Augmentation):
            crop, points, visible = augmented_crop(frame, affine, keypoints, visible, spec, self.augmentation, rng)
        elif not self.gpu_crops:
            crop = crop_warp(frame, affine[None], spec.input_size, sampling=spec.sampling)[0]
        points[visible == 0] = 0  # what is not labelled is undefined, perhaps NaN
        absent = np.zeros(spec.num_keypoints, np.float32)
        absent[list(self.absent.get(annotation.category, ()))] = 1
        landmarks = [torch.from_numpy(array) for array in (points, visible, absent)]
        if self.gpu_crops:
            return FrameSample(*_frame_and_call(frame, affine, spec), *landmarks)
        return Sample(torch.from_numpy(crop), *landmarks)

    def _channels(self, annotation: Annotation) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """keypoints (K, 2) frame px and visible (K,), in the spec's channels."""
        begin, count = annotation.first_channel, len(annotation.keypoints)
        if (begin, count) == (0, self.spec.num_keypoints):
            return annotation.keypoints, annotation.visible
        keypoints = np.zeros((self.spec.num_keypoints, 2), np.float32)
        visible = np.zeros(self.spec.num_keypoints, np.float32)
        keypoints[begin : begin + count] = annotation.keypoints
        visible[begin : begin + count] = annotation.visible
        return keypoints, visible

    def _check(self) -> None:
        k, flips = self.spec.num_keypoints, self.spec.flip_indices
        for category, channels in self.absent.items():
            if any(not 0 <= channel < k or flips[channel] not in channels for channel in channels):
                raise InputError(
                    f"absent: the channels {list(channels)} of {category!r} must lie within 0..{k - 1} and hold the "
                    "mirror landmark of each, since a mirrored garment lacks the same landmarks"
                )
        for annotation in self.annotations:
            begin, count = annotation.first_channel, len(annotation.keypoints)
            if begin < 0 or begin + count > k or (begin == 0 and count < k and not self.spec.categories):
                raise InputError(
                    f"{annotation.image}: its {count} keypoints, from channel {begin} on, do not fit the {k} channels "
                    f"of {self.spec.name!r}"
                )
            begins = [c - begin for c in self.absent.get(annotation.category, ()) if 0 <= c - begin < count]
            if annotation.visible[begins].any():
                raise InputError(
                    f"{annotation.image}: a landmark is labelled that {annotation.category!r} never has (channels "
                    f"{list(self.absent[annotation.category])}): correct the label, its category, or absent"
                )


def _frame_and_call(
    frame: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64], spec: ModelSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """``pixels`` and ``call`` of a :class:`FrameSample`, for an affine (2, 3) frame px -> crop px."""
    height, width = frame.shape[:2]
    plan = plan_crops(invert_affines(affine[None]), spec.input_size, (width, height), spec.sampling)
    left, top, right, bottom = plan.window
    pixels = np.ascontiguousarray(frame[top:bottom, left:right])
    record = np.zeros(call_size(1), np.uint8)
    header, instances = call_views(record, 1)
    header["count"] = 1
    instances[list(FRAME.names or ())] = (0, 3 * (right - left), 3, 1, width, height, left, top)
    instances["sample"], instances["first"], instances["halvings"] = plan.samples, plan.first, plan.halvings
    return torch.from_numpy(pixels), torch.from_numpy(record)


def collate(samples: Sequence[Any]) -> Any:
    """A list of :class:`Sample` or :class:`FrameSample` into one with a leading B; frames may have any sizes."""
    if not isinstance(samples[0], FrameSample):
        return default_collate(list(samples))
    sizes = [-(-sample.pixels.numel() // ALIGNMENT) * ALIGNMENT for sample in samples]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    pixels = torch.zeros(int(starts[-1]), dtype=torch.uint8)
    calls = torch.stack([sample.call for sample in samples])
    for sample, start, call in zip(samples, starts.tolist(), calls.numpy(), strict=False):
        pixels[start : start + sample.pixels.numel()] = sample.pixels.flatten()
        call_views(call, 1)[1]["pixels"] = start
    return FrameSample(pixels, calls, *(torch.stack(column) for column in list(zip(*samples, strict=True))[2:]))
