"""The crops that an engine is judged by: real photos, samples of the caller's, or drawn shapes.

    Crops.from_photos("photos/", spec)               # real pictures: the best choice
    Crops.from_frames(frames, spec, boxes=boxes)     # pictures in memory, with the objects' boxes
    Crops.drawn(spec)                                # nothing at hand

What a network does with a picture of its own domain and with noise differs: on noise, peaks are low and near-ties
decide where they are. The drawn shapes are pieces of cloth, so to speak: T-shirts, trousers, skirts and blobs of plain
or striped colour before a gradient, lit from one side and grained. A garment model finds landmarks in them; any network
sees edges, corners, flat areas and texture, with a photo's range of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose import geometry
from edgepose.errors import InputError
from edgepose.frames import as_bgr, whole_image_box
from edgepose.kernels import reference
from edgepose.media import photos_in, read_photo
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from edgepose.adapt import Spec
    from edgepose.detector_spec import DetectorSpec

__all__ = ["DEFAULT_COUNT", "Crops"]

DEFAULT_COUNT = 24  # about 100 to 200 landmarks that count; ONNX Runtime takes seconds for it, 20 s for HRNet-W48


@dataclass(frozen=True, eq=False)
class Crops:
    """Pictures as the network gets them, before normalisation.

    Attributes:
        images: (N, h, w, 3) uint8 BGR, of the spec's input size; N at least 1.
        source: what they are, for the report: ``photos``, ``drawn shapes``, or the caller's words.
    """

    images: NDArray[np.uint8]
    source: str

    @classmethod
    def from_photos(cls, photos: str | Path | Sequence[str | Path], spec: Spec, *, limit: int = 100) -> Crops:
        """Whole photos, each as one crop.

        Args:
            photos: a folder, one photo, or a list of photos.
            spec: gives the crop's size and codec.
            limit: the first so many of them: a folder's by name, a list's in its order. ``source`` says if there are
                more: ``photos, 100 of 476``.

        Raises:
            InputError: there are none, or one cannot be read.
        """
        if isinstance(photos, (str, Path)):
            place = Path(photos)
            paths = photos_in(place) if place.is_dir() else [place]
        else:
            paths = [Path(path) for path in photos]
        used = paths[:limit]
        source = "photos" if len(used) == len(paths) else f"photos, {len(used)} of {len(paths)}"
        return cls.from_frames([read_photo(path) for path in used], spec, source=source)

    @classmethod
    def from_frames(
        cls,
        frames: Sequence[NDArray[np.uint8]],
        spec: Spec,
        *,
        boxes: ArrayLike | None = None,  # (N, 4) xyxy, frame px
        source: str = "photos",
    ) -> Crops:
        """One crop of each frame; for a detector the whole frame, as it is fed.

        Args:
            frames: each (H, W, 3) uint8 BGR, or as :mod:`edgepose.frames` takes them.
            spec: gives the crop's size, codec, padding and sampling; or a detector's.
            boxes: the object in each frame; None: each frame is one object, with no padding around it. A detector takes
                none.
            source: what they are.

        Raises:
            InputError: no frame, or a frame or box that is not usable.
        """
        if len(frames) == 0:
            raise InputError("there are no pictures to compare engines on: at least one is needed")
        images = [as_bgr(frame) for frame in frames]
        if not isinstance(spec, ModelSpec):
            if boxes is not None:
                raise InputError("a detector is compared on whole frames: leave the boxes out")
            return cls(np.stack([_letterboxed(image, spec) for image in images]), source)
        if boxes is None:
            checked, padding = np.concatenate([whole_image_box(image) for image in images]), 1.0
        else:
            checked, padding = geometry.validate_boxes(boxes), spec.padding
        if len(checked) != len(images):
            raise InputError(f"one box for each of the {len(images)} frames is needed, got {len(checked)}")
        affines = geometry.crop_affines(checked, spec.input_size, codec=spec.codec, padding=padding)
        crops = [
            reference.crop_warp(image, affine[None], spec.input_size, sampling=spec.sampling)[0]
            for image, affine in zip(images, affines, strict=True)
        ]
        return cls(np.stack(crops), source)

    @classmethod
    def drawn(cls, spec: Spec, count: int = DEFAULT_COUNT, seed: int = 0) -> Crops:
        """Shapes like garments; the same seed draws the same pictures."""
        rng = np.random.default_rng(seed)
        return cls(np.stack([_draw(rng, spec.input_size) for _ in range(count)]), "drawn shapes")

    def normalized(self, spec: Spec) -> NDArray[np.float32]:
        """(N, 3, h, w) float32 RGB, normalised as the spec says: what the network takes."""
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        rgb = self.images[..., ::-1].astype(np.float32)
        return np.ascontiguousarray(((rgb - mean) / std).transpose(0, 3, 1, 2))


def _letterboxed(image: NDArray[np.uint8], spec: DetectorSpec) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 BGR: a frame as it lies in a detector's input."""
    fed = reference.letterbox(image, spec.input_size, resize=spec.resize, pad=spec.pad, sampling=spec.sampling)
    return np.asarray(fed, np.uint8)


# Drawing ----------------------------------------------------------------------------------------

# Outlines in a square from -1 to 1, right half, from the top of the middle to its bottom; the left half is its mirror.
_T_SHIRT = ((0.16, -0.8), (0.3, -0.86), (0.86, -0.45), (0.7, -0.18), (0.44, -0.4), (0.46, 0.8))
_TROUSERS = ((0.36, -0.9), (0.5, 0.9), (0.18, 0.9), (0.0, -0.3))
_SKIRT = ((0.3, -0.7), (0.7, 0.75))
_DRESS = ((0.1, -0.85), (0.26, -0.9), (0.42, -0.6), (0.26, -0.1), (0.6, 0.9))
_OUTLINES = (_T_SHIRT, _TROUSERS, _SKIRT, _DRESS)


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One picture (h, w, 3) uint8 BGR of a shape before a background."""
    width, height = size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    first, second, cloth = rng.uniform(20, 235, (3, 3))
    slope = np.clip(0.5 + 0.5 * (x * rng.normal() + y * rng.normal()), 0, 1)[..., None]
    picture = first + (second - first) * slope
    points = _outline(rng) * 0.8 * (width / 2, height / 2) + ((width - 1) / 2, (height - 1) / 2)
    points += rng.normal(0, 0.03, 2) * size
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    pattern = 1 + rng.uniform(0, 0.25) * np.sign(np.sin(rng.uniform(8, 40) * (x * rng.normal() + y * rng.normal())))
    folds = 1 + 0.15 * np.sin(rng.uniform(2, 6) * (x + rng.normal() * y) + rng.uniform(0, 6))
    alpha = (mask / 255.0)[..., None]
    picture = picture * (1 - alpha) + (cloth * (pattern * folds)[..., None]) * alpha
    grain = rng.normal(0, 4, (height, width, 3))
    return np.asarray(np.clip(np.rint(picture + grain), 0, 255), np.uint8)


def _outline(rng: np.random.Generator) -> NDArray[np.float64]:
    """(M, 2) points in a square from -1 to 1: a garment's outline, turned and bent a little, or a blob."""
    if rng.random() < 0.2:
        angles = np.linspace(0, 2 * np.pi, int(rng.integers(5, 12)), endpoint=False)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.5, 0.95, (len(angles), 1))
    right = np.array(_OUTLINES[rng.integers(len(_OUTLINES))])
    right = right * rng.uniform(0.85, 1.1, 2) + rng.normal(0, 0.02, right.shape)
    left = right[::-1] * (-1, 1) + rng.normal(0, 0.02, right.shape)
    angle = rng.normal(0, 0.1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(np.concatenate([right, left]) @ turn, np.float64)
