"""The landmarks of the four fashion data sets: names, mirror pairs, colours and skeletons.

DeepFashion (Liu et al. 2016) labels 4, 6 or 8 landmarks on lower, upper and full-body garments. DeepFashion2 (Ge et
al. 2019, arXiv:1901.07973) labels 8 to 39 landmarks in each of 13 categories; its networks have a channel for each of
the 294. The order is that of MMPose's data set files, hence of its checkpoints' channels. DeepFashion names its
landmarks by side; DeepFashion2 numbers them along the outline, from the middle of the neck or the end of the waist.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

__all__ = ["DEEPFASHION", "DEEPFASHION2", "DEEPFASHION2_ALL", "DEEPFASHION2_CHANNELS", "LandmarkSet"]


@dataclass(frozen=True)
class LandmarkSet:
    """The landmarks of one kind of garment, K of them.

    Attributes:
        name: ``upper``, ``trousers``, …
        keypoint_names: K names.
        flip_indices: K numbers: where each landmark goes when the image is mirrored; an involution.
        skeleton: pairs of landmark numbers (0-based) to draw a line between.
        colors: K RGB colours.
        channels: (start, stop) of these landmarks among the outputs of MMPose's network.
    """

    name: str
    keypoint_names: tuple[str, ...]
    flip_indices: tuple[int, ...]
    skeleton: tuple[tuple[int, int], ...]
    colors: tuple[tuple[int, int, int], ...]
    channels: tuple[int, int]


def _deepfashion(name: str, *parts: str) -> LandmarkSet:
    """Left and right of each part. DeepFashion has no skeleton, and MMPose paints every landmark white."""
    names = tuple(f"{side} {part}" for part in parts for side in ("left", "right"))
    k = len(names)
    return LandmarkSet(name, names, tuple(i ^ 1 for i in range(k)), (), ((255, 255, 255),) * k, (0, k))


DEEPFASHION: dict[str, LandmarkSet] = {
    "upper": _deepfashion("upper", "collar", "sleeve", "hem"),
    "lower": _deepfashion("lower", "waistline", "hem"),
    "full": _deepfashion("full", "collar", "sleeve", "waistline", "hem"),
}

# Landmarks are counted from 1 within a category, and "7-25" (or "25-7") is a run.
# flip: where landmark 1, 2, 3, … goes when mirrored. lines: strokes, as one would draw the garment.
# In MMPose's file vest 13 maps to itself while vest 9 maps to 13; here 9 and 13 are the pair they are in the picture.
_DEEPFASHION2_TABLE: tuple[tuple[str, str, tuple[int, int, int], str, str], ...] = (
    # category, prefix, RGB, flip, lines
    ("short_sleeved_shirt", "sss", (255, 128, 0), "1 6-2 25-7", "1 2 7-25 6 1, 2-6"),
    ("long_sleeved_shirt", "lss", (255, 0, 128), "1 6-2 33-7", "1 2 7-33 6-2, 6 1"),
    (
        *("short_sleeved_outwear", "sso", (128, 0, 255)),
        "1 26 5 6 3 4 25-17 29 15-7 2 30 31 16 27 28",
        "1 4 7-16 31 30 2 3 4, 1 6 25-17 29-26 5 6",
    ),
    (
        *("long_sleeved_outwear", "lso", (0, 128, 255)),
        "1 6 5 34 3 2 33-21 37 19-7 4 38 39 20 35 36",
        "1 2 7-20 39 38 4 3 2, 1 6 33-21 37-34 5 6",
    ),
    ("vest", "vest", (0, 128, 128), "1 6-2 15-7", "1 2 7-15 6 1, 2-6"),
    ("sling", "sling", (0, 0, 128), "1 6-2 15-7", "1 2 8-14 6, 2 7, 6 15, 2-6, 1 6"),
    ("shorts", "shorts", (128, 128, 128), "3-1 10-4", "1 4-10 3-1"),
    ("trousers", "trousers", (128, 0, 128), "3-1 14-4", "1 4-14 3-1"),
    ("skirt", "skirt", (64, 128, 128), "3-1 8-4", "1 4-8 3-1"),
    ("short_sleeved_dress", "ssd", (64, 64, 128), "1 6-2 29-7", "1 2 7-29 6-2, 6 1"),
    ("long_sleeved_dress", "lsd", (128, 64, 0), "1 6-2 37-7", "1 2 7-37 6-2, 6 1"),
    ("vest_dress", "vd", (128, 64, 255), "1 6-2 19-7", "1 2 7-19 6-2, 6 1"),
    ("sling_dress", "sd", (128, 64, 0), "1 6-2 19-7", "1 2 8-18 6-2 7, 6 19, 6 1"),
)


def _numbers(text: str) -> tuple[int, ...]:
    """ "1 6-4" -> 0-based (0, 5, 4, 3)."""
    numbers: list[int] = []
    for item in text.split():
        first, _, last = item.partition("-")
        start, stop = int(first), int(last or first)
        step = 1 if stop >= start else -1
        numbers += [i - 1 for i in range(start, stop + step, step)]
    return tuple(numbers)


def _deepfashion2() -> dict[str, LandmarkSet]:
    categories = {}
    start = 0
    for name, prefix, color, flip, lines in _DEEPFASHION2_TABLE:
        flip_indices = _numbers(flip)
        strokes = [_numbers(stroke) for stroke in lines.split(",")]
        k = len(flip_indices)
        categories[name] = LandmarkSet(
            name,
            keypoint_names=tuple(f"{prefix}_kpt{i + 1}" for i in range(k)),
            flip_indices=flip_indices,
            skeleton=tuple(link for stroke in strokes for link in itertools.pairwise(stroke)),
            colors=(color,) * k,
            channels=(start, start + k),
        )
        start += k
    return categories


DEEPFASHION2: dict[str, LandmarkSet] = _deepfashion2()
DEEPFASHION2_CHANNELS = 294


def _all_of_deepfashion2() -> LandmarkSet:
    """The 13 categories side by side, each mirrored within itself."""
    sets = [(landmarks.channels[0], landmarks) for landmarks in DEEPFASHION2.values()]
    return LandmarkSet(
        "all",
        keypoint_names=tuple(name for _, landmarks in sets for name in landmarks.keypoint_names),
        flip_indices=tuple(start + i for start, landmarks in sets for i in landmarks.flip_indices),
        skeleton=tuple((start + a, start + b) for start, landmarks in sets for a, b in landmarks.skeleton),
        colors=tuple(color for _, landmarks in sets for color in landmarks.colors),
        channels=(0, DEEPFASHION2_CHANNELS),
    )


DEEPFASHION2_ALL: LandmarkSet = _all_of_deepfashion2()
