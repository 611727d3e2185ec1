"""Labelled boxes of a COCO file, with or without landmarks, for the figures of any detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.training.coco import IMAGE_FOLDERS, ImageFolders
from edgepose.training.jsonrecords import read_records

__all__ = ["LabelledImage", "load_labelled_boxes"]


@dataclass(frozen=True)
class LabelledImage:
    """Attributes:
    path: the image file.
    boxes: (G, 4) float64 x1, y1, x2, y2 px, pixel edges, as labelled.
    labels: (G,) int64, numbers of the detector's categories; -1: not known.
    """

    path: Path
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


def load_labelled_boxes(
    path: str | Path, categories: Sequence[str], *, images: Path | None = None
) -> tuple[list[LabelledImage], list[str]]:
    """Read a COCO file's images, those without objects too.

    An object's category is its ``garment_type`` where it has that key, else its COCO category. Where ``garment_type``
    is null, or the category is none of the detector's, it counts for the figures without classes alone.

    Args:
        path: the JSON file.
        categories: the detector's.
        images: folder that file names are relative to; None: the file's own, and those near it.

    Returns:
        The images, and the names of categories in the file that the detector does not have.

    Raises:
        InputError: the file is not COCO, a record is broken, or an image is missing.
    """
    path = Path(path)
    files: dict[Any, str] = {}
    objects: list[tuple[Any, Any, list[float], str | None]] = []

    def add_image(record: Any) -> None:
        try:
            files[record["id"]] = str(record["file_name"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: entry {len(files) + 1} of images is broken: {error!r}") from None

    def add_object(record: Any) -> None:
        where = f"{path}: entry {len(objects) + 1} of annotations"
        try:
            if record.get("iscrowd"):
                raise InputError(f"{where} is a crowd: this evaluation knows single objects only; leave crowds out")
            x, y, w, h = (float(v) for v in record["bbox"])
            kind = record.get("garment_type", record["category_id"])
            objects.append((record["image_id"], kind, [x, y, x + w, y + h], where))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where} is broken: {error!r}") from None
        if not (math.isfinite(x + y + w + h) and w > 0 and h > 0):
            raise InputError(
                f"{where}: bbox must be x, y, width and height, the last two above 0, got {record['bbox']}"
            )

    rest = read_records(path, {"images": add_image, "annotations": add_object})
    if missing := {"images", "annotations", "categories"} - set(rest):
        raise InputError(f"{path}: expected the COCO keys images, annotations, categories; {sorted(missing)} missing")
    names = {kind["id"]: str(kind["name"]) for kind in rest["categories"]}
    found: dict[Any, tuple[list[list[float]], list[int]]] = {key: ([], []) for key in files}
    unknown: set[str] = set()
    for image_id, kind, box, where in objects:
        if image_id not in found or (kind is not None and kind not in names and not isinstance(kind, str)):
            raise InputError(f"{where}: its image_id or category_id is not listed in the file")
        name = names.get(kind, kind)
        if name is not None and name not in categories:
            unknown.add(name)
            name = None
        found[image_id][0].append(box)
        found[image_id][1].append(-1 if name is None else list(categories).index(name))
    folders = ImageFolders([images] if images is not None else [path.parent / name for name in IMAGE_FOLDERS])
    result = []
    for key, name in files.items():
        file = folders.find(name)
        if file is None:
            looked = " and ".join(str(folder / name) for folder in folders.folders)
            raise InputError(f"{path}: image not found; looked for {looked}")
        boxes, labels = found[key]
        result.append(LabelledImage(file, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)))
    return result, sorted(unknown)
