"""What the `garment-landmarks` models predict: 8 landmarks of any garment, in the order of DeepFashion's ``full`` set.

Upper garments have six of them and lower garments four; the channels that a garment does not have are trained to stay
empty, so that a low score says "not there". Left and right are the image's.
"""

from __future__ import annotations

from edgepose.spec import ModelSpec
from edgepose.training.fashion import DEEPFASHION

__all__ = ["ABSENT", "CATEGORIES", "DETECTOR_NAME", "GARMENT_NAMES", "garment_spec"]

GARMENT_NAMES = ("garment-landmarks", "garment-landmarks-fast")  # the bundled models; see garment_landmarks.py
DETECTOR_NAME = "garment-detector"  # the bundled detector; see detection/train.py

CATEGORIES = ("upper", "lower", "full")

# Landmarks that a category never has, in channels; those that are merely not labelled are masked instead.
ABSENT = {"upper": (4, 5), "lower": (0, 1, 2, 3)}


def garment_spec(input_size: tuple[int, int] = (192, 256), *, name: str = "garment-landmarks") -> ModelSpec:
    """The spec of a garment model, without the figures of a training run. Mean and deviation are EfficientNet's."""
    landmarks = DEEPFASHION["full"]
    return ModelSpec(
        name=name,
        input_size=input_size,
        heatmap_size=(input_size[0] // 4, input_size[1] // 4),
        keypoint_names=landmarks.keypoint_names,
        flip_indices=landmarks.flip_indices,
        skeleton=((0, 1), (0, 2), (1, 3), (4, 5), (6, 7), (4, 6), (5, 7)),
        colors=(
            (255, 99, 72), (255, 177, 66), (46, 213, 115), (200, 214, 60),
            (30, 144, 255), (0, 210, 211), (190, 84, 255), (255, 107, 193),
        ),
        codec="udp",
        refinement="dark_udp",
        sampling="area",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        license="Apache-2.0",
    )  # fmt: skip
