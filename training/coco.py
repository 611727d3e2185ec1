"""COCO keypoint files: what the trainer reads, and what the renderer and the pseudo-labels write."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.files import write_atomically
from edgepose.media import read_photo

__all__ = ["Annotation", "load_coco", "read_frame", "write_coco"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Annotation:
    """One labelled object: where its image lies and where its landmarks are.

    Attributes:
        image: the image file.
        size: (w, h) of the image, px.
        box: (4,) float32, xyxy frame px, clipped to the frame.
        keypoints: (K, 2) float32, frame px; undefined where not labelled.
        visible: (K,) float32, 1 where labelled (seen or inferred), else 0.
        category: the COCO category's name.
    """

    image: Path
    size: tuple[int, int]
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
    try:
        images = {image["id"]: image for image in data["images"]}
        categories = {category["id"]: str(category["name"]) for category in data["categories"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: an entry of images or categories is broken: {error!r}") from None
    annotations = []
    for number, record in enumerate(data["annotations"], 1):
        where = f"{path}: annotation {record.get('id') if isinstance(record, dict) else f'number {number}'}"
        try:
            annotations.append(_annotation(path.parent, where, record, images, categories, num_keypoints))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: a value is missing or of the wrong kind: {error!r}") from None
    return annotations


def _annotation(
    folder: Path, where: str, record: Mapping, images: Mapping, categories: Mapping, num_keypoints: int
) -> Annotation:
    if missing := sorted({"image_id", "category_id", "bbox", "keypoints"} - set(record)):
        raise InputError(f"{where}: keys {missing} are missing")
    if record["image_id"] not in images or record["category_id"] not in categories:
        raise InputError(f"{where}: its image_id or category_id is not listed in the file")
    flat = np.asarray(record["keypoints"], np.float32)
    if flat.size != 3 * num_keypoints:
        raise InputError(f"{where}: expected {num_keypoints} keypoints (x, y, v), got {flat.size} numbers")
    image = images[record["image_id"]]
    files = [folder / image["file_name"], folder / "images" / image["file_name"]]
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
    return Annotation(
        file, (right + 1, bottom + 1), box, points[:, :2].copy(), visible, categories[record["category_id"]]
    )


def read_frame(annotation: Annotation) -> npt.NDArray[np.uint8]:
    """The annotation's image, (H, W, 3) uint8 BGR.

    Raises:
        InputError: it cannot be read, or has another size than the annotation file says.
    """
    frame = read_photo(annotation.image)
    size = (frame.shape[1], frame.shape[0])
    if size != annotation.size:
        raise InputError(
            f"{annotation.image} has {size[0]}x{size[1]} px, its annotation says {annotation.size[0]}x"
            f"{annotation.size[1]}: the labels belong to another version of the picture (resized, or turned by EXIF)"
        )
    return frame


def write_coco(
    path: str | Path,
    annotations: Sequence[Annotation],
    *,
    categories: Sequence[str],
    keypoint_names: Sequence[str],
    visibility: int = 2,
    extras: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write annotations so that :func:`load_coco` reads them back, coordinates rounded to 0.01 px; atomic.

    Args:
        path: the JSON file; image names in it are relative to its folder.
        annotations: one object an image.
        categories: all category names; they get the ids 1, 2, …
        keypoint_names: K names.
        visibility: COCO's flag for labelled landmarks: 2 seen, 1 inferred.
        extras: further keys for each annotation.
    """
    path = Path(path)
    root = path.parent.resolve()
    images, records = [], []
    for number, annotation in enumerate(annotations, 1):
        name = Path(os.path.relpath(annotation.image.resolve(), root)).as_posix()
        w, h = annotation.size
        images.append({"id": number, "file_name": name, "width": w, "height": h})
        x0, y0, x1, y1 = (round(float(v), 2) for v in annotation.box)
        flat = [
            value
            for (x, y), seen in zip(annotation.keypoints, annotation.visible, strict=True)
            for value in ((round(float(x), 2), round(float(y), 2), visibility) if seen else (0.0, 0.0, 0))
        ]
        records.append(
            {
                "id": number,
                "image_id": number,
                "category_id": categories.index(annotation.category) + 1,
                "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "iscrowd": 0,
                "keypoints": flat,
                "num_keypoints": int((annotation.visible > 0).sum()),
                **(extras[number - 1] if extras else {}),
            }
        )
    kinds = [
        {"id": i, "name": n, "keypoints": list(keypoint_names), "skeleton": []} for i, n in enumerate(categories, 1)
    ]
    write_atomically(path, json.dumps({"images": images, "annotations": records, "categories": kinds}).encode())
