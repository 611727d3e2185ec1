"""COCO keypoint files: what the trainer reads, and what the renderer and the pseudo-labels write."""

from __future__ import annotations

import functools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.markup import escape

from edgepose.console import messages
from edgepose.errors import InputError
from edgepose.files import write_atomically
from edgepose.media import read_photo
from edgepose.training.jsonrecords import numbers_of, read_records

__all__ = ["Annotation", "Dropped", "ImageFolders", "clipped_box", "load_coco", "read_frame", "write_coco"]

Array = npt.NDArray[np.float32]

IMAGE_FOLDERS = (".", "images", "image", "../img")  # beside a COCO file; image: DeepFashion2, ../img: DeepFashion


@dataclass(frozen=True, slots=True)
class Annotation:
    """One labelled object: where its image lies and where its landmarks are.

    Attributes:
        image: the image file.
        size: (w, h) of the image, px.
        box: (4,) float32, xyxy frame px, clipped to the frame.
        keypoints: (K, 2) float32, frame px; undefined where not labelled.
        visible: (K,) float32, 1 where labelled (seen or inferred), else 0.
        category: the COCO category's name.
        first_channel: the model's channel that the first keypoint belongs to. Not 0 where a model serves several
            categories, each with channels of its own, and an annotation keeps only its category's keypoints.
        image_id: the image's id in the annotation file.
    """

    image: Path
    size: tuple[int, int]
    box: Array
    keypoints: Array
    visible: Array
    category: str
    first_channel: int = 0
    image_id: int | str | None = None


class Dropped:
    """Counts objects that are left out as MMPose leaves them out, by reason, and says so."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Count one object; ``where`` names its record."""
        self.counts[reason] += 1
        self._first.setdefault(reason, where)

    def __str__(self) -> str:
        return "; ".join(f"{n} {reason} (first: {self._first[reason]})" for reason, n in self.counts.most_common())

    def report(self, source: Path, kept: int, log: Callable[[str], None] | None) -> None:
        """Tell ``log``, or stderr, what is missing; silent where nothing is.

        Raises:
            InputError: nothing is left.
        """
        total = self.counts.total() if hasattr(self.counts, "total") else sum(self.counts.values())
        if not total:
            return
        if not kept:
            raise InputError(f"{source}: none of its {total} objects can be used: {self}")
        text = f"{source}: left out {total} of {total + kept} objects: {self}"
        if log is None:
            messages.print(escape(text), soft_wrap=True, highlight=False)
        else:
            log(text)


class ImageFolders:
    """Finds images by name in several folders. Each folder is listed once: data sets have 200 000 images."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._roots = [os.path.normpath(folder) for folder in self.folders]
        self._names: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> Path | None:
        """The first folder's file of that name, which may have folders in it; None if there is none."""
        folder, base = os.path.split(name)
        for root in self._roots:
            if base in self._listing(os.path.join(root, folder) if folder else root):
                return Path(root, name)
        # A file system that does not tell a.JPG from a.jpg has it all the same
        return next((Path(root, name) for root in self._roots if os.path.isfile(os.path.join(root, name))), None)

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder or "."))
            except OSError:  # no such folder; `find` asks for the file itself before it gives up
                self._names[folder] = frozenset()
        return self._names[folder]


class _Object(NamedTuple):
    """A record of a COCO file, as small as it can be kept until the categories, which may come last, are known."""

    where: str
    image_id: Any
    category_id: Any
    box: tuple[float, float, float, float] | None  # x, y, w, h frame px
    points: Array | None  # (K, 3) x, y, v
    drop: str | None  # why MMPose leaves it out, as far as the record itself tells
    outside: bool  # a landmark outside the wanted channels is labelled


def load_coco(
    path: str | Path,
    num_keypoints: int,
    *,
    images: Path | None = None,
    channels: tuple[int, int] | None = None,
    category: str | None = None,
    log: Callable[[str], None] | None = None,
) -> list[Annotation]:
    """Read a COCO keypoint file, in the file's order, also one of gigabytes: the file itself is not kept in memory.

    What MMPose 1.3 leaves out is left out here: crowds, objects without ``bbox`` or ``keypoints``, with
    ``num_keypoints`` 0, with no positive coordinate, or whose box has no area inside the image. Boxes are clipped to
    [0, w - 1] x [0, h - 1]. How many objects were left out, and why, is told.

    Args:
        path: the JSON file.
        num_keypoints: how many keypoints each record has; 294 in MMPose's DeepFashion2 files.
        images: folder that the file names are relative to. None: they are looked for beside the JSON file, in
            ``images/`` and ``image/`` beside it, and in ``../img/``, as DeepFashion and DeepFashion2 have it.
        channels: keep only the keypoints [begin, end) of each record, as a category's own model needs them. They become
            the keypoints 0, 1, …; ``first_channel`` stays 0.
        category: keep only objects of the category of this name.
        log: what is told about left out objects goes here. None: to stderr.

    Raises:
        InputError: the file is not COCO, a record or an image is missing or unusable, nothing of the category is in it,
            or nothing is left; the message names the file and the record.
    """
    path = Path(path)
    begin, end = channels or (0, num_keypoints)
    if not 0 <= begin < end <= num_keypoints:
        raise InputError(f"channels must be 0 <= begin < end <= {num_keypoints}, got {channels}")
    sizes: dict[Any, tuple[Any, Any, Any]] = {}  # image id -> file name, w, h
    objects: list[_Object] = []

    def add_image(record: Any) -> None:
        try:
            sizes[record["id"]] = (record["file_name"], record.get("width"), record.get("height"))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: entry {len(sizes) + 1} of images is broken: {error!r}") from None

    def add_object(record: Any) -> None:
        name = record.get("id") if isinstance(record, dict) else f"number {len(objects) + 1}"
        where = f"{path}: annotation {name}"
        try:
            objects.append(_object(where, record, num_keypoints, begin, end))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: a value is missing or of the wrong kind: {error!r}") from None

    rest = read_records(path, {"images": add_image, "annotations": add_object})
    if missing := {"images", "annotations", "categories"} - set(rest):
        raise InputError(
            f"{path}: expected the COCO keys images, annotations and categories; {sorted(missing)} missing"
        )
    try:
        names = {kind["id"]: str(kind["name"]) for kind in rest["categories"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: an entry of categories is broken: {error!r}") from None
    if category is not None:
        objects = [found for found in objects if names.get(_key(found.category_id)) == category]
        if not objects:
            raise InputError(f"{path}: expected objects of category {category!r}, but it has {sorted(names.values())}")
    return _annotations(path, objects, sizes, names, images, log)


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


_FLAGS = frozenset({0.0, 1.0, 2.0})


def _object(where: str, record: Any, num_keypoints: int, begin: int, end: int) -> _Object:
    if missing := sorted({"image_id", "category_id"} - set(record)):
        raise InputError(f"{where}: keys {missing} are missing")
    image_id, category_id = record["image_id"], record["category_id"]
    if "bbox" not in record or "keypoints" not in record:
        return _Object(where, image_id, category_id, None, None, "without bbox or keypoints", False)
    x, y, w, h = (float(number) for number in record["bbox"])
    numbers, outside, rest = _points(where, record["keypoints"], num_keypoints, begin, end)
    if not math.isfinite(x + y + w + h + sum(numbers)):
        raise InputError(f"{where}: bbox and keypoints must be finite numbers")
    if not _FLAGS.issuperset(numbers[2::3]):
        raise InputError(f"{where}: a keypoint's third number must be 0 (not labelled), 1 (hidden) or 2 (seen)")
    drop = None
    highest = max(*numbers[0::3], *numbers[1::3], rest)
    if record.get("iscrowd"):
        drop = "marked as crowds"
    elif record.get("num_keypoints") == 0:
        drop = "with num_keypoints 0"
    elif highest <= 0:
        drop = "with no landmark at positive coordinates"
    points = np.array(numbers, np.float32).reshape(-1, 3)
    return _Object(where, image_id, category_id, (x, y, w, h), points, drop, outside)


@functools.cache
def _zeros(before: int, after: int) -> tuple[tuple[str, str], ...]:
    """How JSON writers begin and end an array that has ``before`` zeros before other numbers, ``after`` behind them."""
    ways = (("0.0, ", ", 0.0"), ("0.0,", ",0.0"), ("0, ", ", 0"), ("0,", ",0"))
    return tuple(("[" + zero * before, last * after + "]") for zero, last in ways)


def _points(where: str, value: Any, num_keypoints: int, begin: int, end: int) -> tuple[list[float], bool, float]:
    """The numbers of keypoints [begin, end); whether others are labelled; the others' largest coordinate."""
    before, after = 3 * begin, 3 * (num_keypoints - end)
    if before + after and isinstance(value, str):
        # Most numbers of a DeepFashion2 record belong to other categories and are 0: compared as text, not parsed
        for head, tail in _zeros(before, after):
            if value.startswith(head) and value.endswith(tail):
                own = value[len(head) : len(value) - len(tail)]
                if own.count(",") == 3 * (end - begin) - 1 and "[" not in own:
                    return [float(number) for number in own.split(",")], False, 0.0
    numbers = numbers_of(value)
    if len(numbers) != 3 * num_keypoints:
        raise InputError(f"{where}: expected {num_keypoints} keypoints (x, y, v), got {len(numbers)} numbers")
    others = numbers[:before] + numbers[len(numbers) - after :]
    highest = max((max(others[0::3]), max(others[1::3]))) if others else 0.0
    return numbers[before : len(numbers) - after], any(flag > 0 for flag in others[2::3]), highest


def _annotations(
    path: Path,
    objects: Sequence[_Object],
    sizes: Mapping[Any, tuple[Any, Any, Any]],
    names: Mapping[Any, str],
    images: Path | None,
    log: Callable[[str], None] | None,
) -> list[Annotation]:
    """The objects that MMPose would keep, their boxes clipped, their images found."""
    folders = ImageFolders([images] if images is not None else [path.parent / name for name in IMAGE_FOLDERS])
    files: dict[Any, Path] = {}
    dropped = Dropped()
    annotations = []
    for found in objects:
        image_id, category_id = _key(found.image_id), _key(found.category_id)
        if image_id not in sizes or category_id not in names:
            raise InputError(f"{found.where}: its image_id or category_id is not listed in the file")
        name, w, h = sizes[image_id]
        if not (isinstance(name, str) and isinstance(w, int) and isinstance(h, int) and w > 0 and h > 0):
            raise InputError(
                f"{found.where}: a value is missing or of the wrong kind: image {image_id} has file_name {name!r}, "
                f"width {w!r} and height {h!r}"
            )
        box = clipped_box(found.box, (w, h)) if found.box else None
        reason = found.drop or (None if box is not None else "whose box has no area inside the image")
        if reason is not None or found.points is None or box is None:
            dropped.add(reason or "", found.where)
            continue
        if found.outside:
            raise InputError(
                f"{found.where} ({names[category_id]}) labels landmarks outside the wanted channels: the file, or the "
                "record, belongs to another category; choose one with category=…, or take its own channels"
            )
        if image_id not in files:
            file = folders.find(name)
            if file is None:
                looked = " and ".join(str(folder / name) for folder in folders.folders)
                raise InputError(f"{found.where}: image not found; looked for {looked}")
            files[image_id] = file
        points = found.points
        visible = (points[:, 2] > 0).astype(np.float32)
        annotations.append(
            Annotation(
                files[image_id],
                (w, h),
                box,
                points[:, :2].copy(),
                visible,
                names[category_id],
                image_id=image_id,
            )
        )
    dropped.report(path, len(annotations), log)
    return annotations


def clipped_box(box: Sequence[float], size: tuple[int, int]) -> Array | None:
    """COCO's (x, y, w, h) as (4,) float32 xyxy, clipped to [0, w - 1] x [0, h - 1] of the image; None: nothing left."""
    x, y, w, h = box
    right, bottom = size[0] - 1, size[1] - 1
    xyxy = np.float32(
        [min(max(x, 0), right), min(max(y, 0), bottom), min(max(x + w, 0), right), min(max(y + h, 0), bottom)]
    )
    return xyxy if xyxy[2] > xyxy[0] and xyxy[3] > xyxy[1] else None


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
        annotations: the objects; those of the same image file share its entry.
        categories: all category names; they get the ids 1, 2, …
        keypoint_names: K names.
        visibility: COCO's flag for labelled landmarks: 2 seen, 1 inferred.
        extras: further keys for each annotation.
    """
    path = Path(path)
    root = path.parent.resolve()
    images: dict[Path, dict[str, Any]] = {}
    records = []
    for number, annotation in enumerate(annotations, 1):
        if annotation.image not in images:
            name = Path(os.path.relpath(annotation.image.resolve(), root)).as_posix()
            w, h = annotation.size
            images[annotation.image] = {"id": len(images) + 1, "file_name": name, "width": w, "height": h}
        x0, y0, x1, y1 = (round(float(v), 2) for v in annotation.box)
        flat = [
            value
            for (x, y), seen in zip(annotation.keypoints, annotation.visible, strict=True)
            for value in ((round(float(x), 2), round(float(y), 2), visibility) if seen else (0.0, 0.0, 0))
        ]
        records.append(
            {
                "id": number,
                "image_id": images[annotation.image]["id"],
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
    write_atomically(
        path, json.dumps({"images": list(images.values()), "annotations": records, "categories": kinds}).encode()
    )
