"""DeepFashion2 as it is released: one JSON file an image, train/annos/000001.json beside train/image/000001.jpg.

Facts from the data set's README and its deepfashion2_to_coco.py (github.com/switchablenorms/DeepFashion2): image ids
are the file names' numbers, object ids count the items of a split from 1 in the order of files and of the items in
them, landmark k of a category is keypoint ``channels[0] + k`` of 294, and the visibility is COCO's: 1 hidden, 2 seen.
:mod:`edgepose.training.deepfashion2_convert` writes MMPose's COCO files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgepose.console import track
from edgepose.errors import InputError
from edgepose.training.coco import Annotation, Dropped, clipped_box, load_coco
from edgepose.training.fashion import DEEPFASHION2, DEEPFASHION2_CHANNELS
from edgepose.training.imagefiles import read_header

__all__ = [
    "CATEGORIES",
    "SPLITS",
    "RawImage",
    "RawItem",
    "annotation_file",
    "load_deepfashion2",
    "load_deepfashion2_raw",
    "raw_files",
    "read_raw",
]

SPLITS = ("train", "validation")  # the test split is released without landmarks
CATEGORIES = tuple(DEEPFASHION2)  # category_id 1, 2, …
# The raw files say "short sleeve top" where the COCO files say short_sleeved_shirt
RAW_NAMES = tuple(
    name.replace("_", " ").replace("sleeved shirt", "sleeve top").replace("sleeved", "sleeve") for name in CATEGORIES
)


class RawItem(NamedTuple):
    """One garment of an image.

    Attributes:
        name: its key in the file: ``item1``.
        category: of :data:`CATEGORIES`.
        box: x1, y1, x2, y2 px as written, not clipped.
        landmarks: 3 K numbers x, y, v as written.
        fields: the item as written.
    """

    name: str
    category: str
    box: list[float]
    landmarks: list[float]
    fields: dict[str, Any]


class RawImage(NamedTuple):
    """One annotation file with its image.

    Attributes:
        number: of the file names: 1 for 000001.jpg.
        image: the image file.
        size: (w, h) px.
        fields: ``source`` and ``pair_id``, as far as they are there.
        items: the garments, in the file's order; None in the place of one that is broken.
        broken: what is wrong; empty unless asked for.
    """

    number: int
    image: Path
    size: tuple[int, int]
    fields: dict[str, Any]
    items: list[RawItem | None]
    broken: list[str]


def annotation_file(root: str | Path, split: str, category: str) -> Path:
    """Where MMPose has a category's COCO file: ``root/train/deepfashion2_trousers_train.json``."""
    return Path(root) / split / f"deepfashion2_{category}_{split}.json"


def load_deepfashion2(
    root: str | Path,
    split: str,
    categories: Collection[str] | None = None,
    *,
    images: Path | None = None,
    log: Callable[[str], None] | None = None,
) -> list[Annotation]:
    """Read MMPose's COCO files of several categories, for the model that serves all of them.

    Each annotation has its category's landmarks only; ``first_channel`` says where they are among the 294.

    Args:
        root: the folder with ``train/`` and ``validation/``.
        split: ``train`` or ``validation``.
        categories: which; None: all 13.
        images: the folder of images; None: ``root/<split>/image``.
        log: see :func:`load_coco`.

    Raises:
        InputError: a file is missing or unusable.
    """
    images = images or Path(root) / _checked_split(split) / "image"
    annotations: list[Annotation] = []
    for category in _checked_categories(categories):
        channels = DEEPFASHION2[category].channels
        file = annotation_file(root, split, category)
        found = load_coco(file, DEEPFASHION2_CHANNELS, images=images, channels=channels, category=category, log=log)
        annotations += [replace(annotation, first_channel=channels[0]) for annotation in found]
    return annotations


def load_deepfashion2_raw(
    root: str | Path,
    split: str | None = None,
    categories: Collection[str] | None = None,
    *,
    skip_broken: bool = False,
    log: Callable[[str], None] | None = None,
) -> list[Annotation]:
    """Read the released annotation files without converting them, in the order of their numbers.

    The annotations are those that :func:`load_deepfashion2` reads from the converted files, sorted by image. It takes
    longer: every annotation file and every image's header is opened. For repeated training, convert once.

    Args:
        root: the folder with ``train/`` and ``validation/``.
        split: ``train`` or ``validation``; None: ``root`` is the split's own folder, with ``annos/`` and ``image/``.
        categories: which; None: all 13.
        skip_broken: leave broken records out, and say so, instead of raising.
        log: what is told about left out objects goes here. None: to stderr.

    Raises:
        InputError: there is nothing to read, or a record is broken; the message names the file and the item.
    """
    folder = Path(root) if split is None else Path(root) / _checked_split(split)
    wanted = frozenset(_checked_categories(categories))
    names, images = raw_files(folder)
    dropped = Dropped()
    annotations: list[Annotation] = []
    for name in track(names, len(names), f"reading {folder.name}"):
        raw = read_raw(folder, name, images, skip_broken=skip_broken)
        for reason in raw.broken:
            dropped.add("with a broken record", reason)
        for item in raw.items:
            if item is not None and item.category in wanted:
                annotation = _annotation(raw, item, folder / "annos" / name, dropped)
                if annotation is not None:
                    annotations.append(annotation)
    dropped.report(folder, len(annotations), log)
    if not annotations:
        raise InputError(f"{folder}: expected objects of {', '.join(sorted(wanted))}, but there is none")
    return annotations


def raw_files(folder: Path) -> tuple[list[str], frozenset[str]]:
    """The names of a split's annotation files, in the order of their numbers, and of all its images.

    Raises:
        InputError: it is not a split of DeepFashion2.
    """
    try:
        names = [name for name in os.listdir(folder / "annos") if name.endswith(".json") and name[0] != "."]
        images = frozenset(os.listdir(folder / "image"))
    except OSError as error:
        raise InputError(
            f"{folder} is not a split of DeepFashion2: expected the folders annos and image; "
            f"{error.strerror or error}. The released archives unpack to train/ and validation/, which hold these"
        ) from None
    if not names:
        raise InputError(f"{folder / 'annos'} holds no annotation files: expected 000001.json and so on")
    if strange := [name for name in names if not name[:-5].isdecimal()]:
        raise InputError(f"{folder / 'annos' / min(strange)}: expected a number as file name, such as 000001.json")
    return sorted(names, key=lambda name: (int(name[:-5]), name)), images


def read_raw(folder: Path, name: str, images: frozenset[str], *, skip_broken: bool = False) -> RawImage:
    """Read one annotation file and its image's header.

    Args:
        folder: the split's.
        name: the annotation file's: ``000001.json``.
        images: names of the images that there are.
        skip_broken: tell what is wrong in ``broken`` instead of raising.

    Raises:
        InputError: the file, an item or the image is broken or missing.
    """
    file = folder / "annos" / name
    stem = name[:-5]
    broken: list[str] = []
    items: list[RawItem | None] = []
    fields: dict[str, Any] = {}
    image = folder / "image" / f"{stem}.jpg"
    size = (0, 0)
    try:
        data = _read_json(file)
        fields = {key: data.pop(key) for key in ("source", "pair_id") if key in data}
        if image.name not in images:
            raise InputError(f"{file}: its image is missing: expected {image}")
        header = read_header(image, whole=False)
        if header.orientation != 1:
            raise InputError(
                f"{image} carries the EXIF orientation {header.orientation}, so programs disagree about which side is "
                "up, and the labels fit only one of them; rewrite it upright, without EXIF, if the labels fit then"
            )
        size = header.size
    except InputError as error:
        if not skip_broken:
            raise
        return RawImage(int(stem), image, size, fields, items, [str(error)])
    for key, value in data.items():
        try:
            items.append(_item(f"{file}: {key}", key, value))
        except InputError as error:
            if not skip_broken:
                raise
            items.append(None)
            broken.append(str(error))
    return RawImage(int(stem), image, size, fields, items, broken)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: expected an annotation file of DeepFashion2, but it cannot be read: {error}"
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"{file}: expected an object with source, pair_id, item1, …; got a {type(data).__name__}")
    return data


def _item(where: str, name: str, value: Any) -> RawItem:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an item with category_id, bounding_box and landmarks, got {value!r:.60}")
    number = value.get("category_id")
    if type(number) is not int or not 1 <= number <= len(CATEGORIES):
        raise InputError(f"{where}: category_id must be 1 to {len(CATEGORIES)}, got {number!r}")
    category, said = CATEGORIES[number - 1], value.get("category_name", RAW_NAMES[number - 1])
    if said not in (RAW_NAMES[number - 1], category):
        raise InputError(f"{where}: category_id {number} is {RAW_NAMES[number - 1]!r}, but category_name is {said!r}")
    box, landmarks = value.get("bounding_box"), value.get("landmarks")
    if not _are_numbers(box) or len(box) != 4:
        raise InputError(f"{where}: bounding_box must be x1, y1, x2, y2, got {box!r:.80}")
    count = len(DEEPFASHION2[category].keypoint_names)
    if not _are_numbers(landmarks) or len(landmarks) != 3 * count:
        got = f"{len(landmarks)} numbers" if _are_numbers(landmarks) else f"{landmarks!r:.60}"
        raise InputError(f"{where}: {said} has {count} landmarks (x, y, v), so {3 * count} numbers; got {got}")
    if not {0, 1, 2}.issuperset(landmarks[2::3]):
        raise InputError(f"{where}: visibility must be 0 (not labelled), 1 (hidden) or 2 (seen), got {landmarks[2::3]}")
    return RawItem(name, category, box, landmarks, value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)


def _annotation(raw: RawImage, item: RawItem, file: Path, dropped: Dropped) -> Annotation | None:
    """None, and counted, where MMPose leaves the converted record out."""
    points = np.array(item.landmarks, np.float32).reshape(-1, 3)
    x1, y1, x2, y2 = item.box
    box = clipped_box((x1, y1, x2 - x1, y2 - y1), raw.size)
    visible = (points[:, 2] > 0).astype(np.float32)
    reason = None
    if not visible.any():
        reason = "with num_keypoints 0"
    elif points[:, :2].max() <= 0:
        reason = "with no landmark at positive coordinates"
    elif box is None:
        reason = "whose box has no area inside the image"
    if reason is not None or box is None:
        dropped.add(reason or "", f"{file}: {item.name}")
        return None
    return Annotation(
        raw.image,
        raw.size,
        box,
        points[:, :2].copy(),
        visible,
        item.category,
        first_channel=DEEPFASHION2[item.category].channels[0],
        image_id=raw.number,
    )


def _checked_split(split: str) -> str:
    if split not in SPLITS:
        raise InputError(f"the splits with landmarks are {' and '.join(SPLITS)}, got {split!r}")
    return split


def _checked_categories(categories: Iterable[str] | None) -> list[str]:
    wanted = list(CATEGORIES if categories is None else categories)
    if unknown := [name for name in wanted if name not in DEEPFASHION2]:
        raise InputError(f"DeepFashion2 has no category {unknown[0]!r}; it has {', '.join(CATEGORIES)}")
    return wanted
