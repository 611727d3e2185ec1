"""Landmark data sets: COCO keypoint files on disk -> augmented crops and heatmap targets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from edgepose.errors import InputError
from edgepose.geometry import crop_affines
from edgepose.spec import ModelSpec
from edgepose.training.codecs import encode
from edgepose.training.transforms import Augmentation, augmented_crop

__all__ = ["Annotation", "LandmarkDataset", "load_coco", "read_frame"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Annotation:
    """One labelled object: where its image lies and where its landmarks are.

    Attributes:
        image: the image file.
        box: (4,) float32, xyxy frame px, clipped to the frame.
        keypoints: (K, 2) float32, frame px; undefined where not labelled.
        visible: (K,) float32, 1 where labelled (seen or inferred), else 0.
        category: the COCO category's name.
    """

    image: Path
    box: Array
    keypoints: Array
    visible: Array
    category: str


def load_coco(path: str | Path, num_keypoints: int) -> list[Annotation]:
    """Read a COCO keypoint file; images are looked for beside it, and in ``images/`` beside it.

    Raises:
        InputError: the file is not COCO, or a record is unusable; the message names the file and the record.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: expected a COCO keypoint JSON file, but it cannot be read: {error}") from None
    if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= set(data):
        raise InputError(f"{path}: expected the COCO keys images, annotations and categories")
    images = {image["id"]: image for image in data["images"]}
    categories = {category["id"]: category["name"] for category in data["categories"]}
    return [_annotation(path, record, images, categories, num_keypoints) for record in data["annotations"]]


def _annotation(path: Path, record: Mapping, images: Mapping, categories: Mapping, num_keypoints: int) -> Annotation:
    where = f"{path}: annotation {record.get('id')!r}"
    if missing := sorted({"image_id", "category_id", "bbox", "keypoints"} - set(record)):
        raise InputError(f"{where}: keys {missing} are missing")
    if record["image_id"] not in images or record["category_id"] not in categories:
        raise InputError(f"{where}: its image_id or category_id is not listed in the file")
    flat = np.asarray(record["keypoints"], np.float32)
    if flat.size != 3 * num_keypoints:
        raise InputError(f"{where}: expected {num_keypoints} keypoints (x, y, v), got {flat.size} numbers")
    image = images[record["image_id"]]
    files = [path.parent / image["file_name"], path.parent / "images" / image["file_name"]]
    file = next((f for f in files if f.exists()), None)
    if file is None:
        raise InputError(f"{where}: image not found; looked for {files[0]} and {files[1]}")
    x, y, w, h = (float(v) for v in record["bbox"])
    right, bottom = image["width"] - 1, image["height"] - 1
    box = np.clip(np.float32([x, y, x + w, y + h]), 0, np.float32([right, bottom, right, bottom]))
    if not (box[2] > box[0] and box[3] > box[1]):
        raise InputError(f"{where}: its box {record['bbox']} has no area inside the {right + 1}x{bottom + 1} image")
    points = flat.reshape(num_keypoints, 3)
    visible = (points[:, 2] > 0).astype(np.float32)
    return Annotation(file, box, points[:, :2].copy(), visible, categories[record["category_id"]])


def read_frame(annotation: Annotation) -> npt.NDArray[np.uint8]:
    """The annotation's image, (H, W, 3) uint8 BGR. Raises InputError if it cannot be read."""
    frame = cv2.imread(str(annotation.image), cv2.IMREAD_COLOR)
    if frame is None:
        raise InputError(f"{annotation.image}: not a readable image")
    return np.asarray(frame, np.uint8)


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
