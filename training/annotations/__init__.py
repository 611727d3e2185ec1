"""Landmark labels that edgepose publishes, without photos. Each set is a folder with its data card, README.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.media import read_photo

__all__ = [
    "LABEL_SETS",
    "grey_distance",
    "grey_levels",
    "labels",
    "records_json",
    "splits",
    "with_fingerprints",
]

LABEL_SETS = ("garments_cc0",)
FIRST = ("train", "val")
FOLDER = Path(__file__).parent


def splits(name: str) -> tuple[str, ...]:
    """The parts of a set of labels: train, val, and whatever else it has.

    Raises:
        InputError: there is no such set.
    """
    if name not in LABEL_SETS:
        raise InputError(f"there are no labels {name!r}; there are {', '.join(LABEL_SETS)}")
    return tuple(sorted((path.stem for path in (FOLDER / name).glob("*.json")), key=lambda s: (s not in FIRST, s)))


def labels(name: str, split: str) -> dict[str, Any]:
    """A split of a set of labels: a COCO keypoint file.

    Each entry of ``images`` has, beyond COCO's keys, the photo file's ``sha256`` and :func:`grey_levels` (``grey8x8``);
    each of ``annotations`` a ``garment_type`` (or null), a ``note``, and ``ambiguous_keypoints``: the numbers of the
    landmarks that the labeller was unsure of.

    Raises:
        InputError: there is no such set or split.
    """
    if split not in splits(name):
        raise InputError(f"the labels {name} have the parts {', '.join(splits(name))}; got {split!r}")
    data: dict[str, Any] = json.loads((FOLDER / name / f"{split}.json").read_text(encoding="utf-8"))
    return data


def with_fingerprints(data: Mapping[str, Any], photos: Path) -> dict[str, Any]:
    """A COCO file as it is published: image names without folders, each with ``sha256`` and ``grey8x8``.

    Args:
        data: the file's content, with its image names relative to ``photos``.
        photos: the folder.

    Raises:
        InputError: a photo cannot be read, or has another size than the file says.
    """
    images = []
    for entry in data["images"]:
        path = photos / entry["file_name"]
        frame = read_photo(path)
        if frame.shape[:2] != (entry["height"], entry["width"]):
            raise InputError(f"{path} has {frame.shape[1]}x{frame.shape[0]} px, expected {entry}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        images.append({**entry, "file_name": path.name, "sha256": digest, "grey8x8": grey_levels(frame)})
    return {**data, "images": images}


def records_json(data: Mapping[str, Any]) -> str:
    """JSON with one line for each entry of each list, so that a changed record is a changed line."""
    parts = []
    for key, value in data.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in value)
            text = f"[\n{lines}\n]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        parts.append(f"{json.dumps(key)}:{text}")
    return "{" + ",\n".join(parts) + "}\n"


def grey_levels(frame: npt.NDArray[np.uint8]) -> str:
    """What a photo looks like, so that it is known again in another encoding or size: 64 hexadecimal digits.

    The photo shrunk to 8 x 8 cells in reading order, each its mean brightness from 0 to f.

    Args:
        frame: (H, W, 3) uint8 BGR.
    """
    return "".join(f"{level:x}" for level in _cells(frame).astype(int))


def grey_distance(frame: npt.NDArray[np.uint8], levels: str) -> float:
    """How far a photo is from :func:`grey_levels` of another: mean difference of the 64 cells, in levels of 16.

    Rounding to whole levels alone makes about 0.25.
    """
    return float(np.abs(_cells(frame) - [int(level, 16) + 0.5 for level in levels]).mean())


def _cells(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(64,) brightness, 0 <= b < 16."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    return cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA).ravel().astype(np.float64) / 16
