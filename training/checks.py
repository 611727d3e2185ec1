"""Is a COCO keypoint file fit to train on? Finds what is wrong, record by record, and says what to do.

    report = check_annotations("train.json", against="val.json")
    for finding in report.findings:
        print(finding)

An error makes training fail or wrong; a warning may be meant so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.training.checks_images import check_images
from edgepose.training.checks_report import CheckReport, Finding
from edgepose.training.coco import IMAGE_FOLDERS, ImageFolders, clipped_box
from edgepose.training.fashion import DEEPFASHION2, DEEPFASHION2_CHANNELS, LandmarkSet
from edgepose.training.garments import ABSENT, garment_spec
from edgepose.training.jsonrecords import numbers_of, read_records

__all__ = ["CheckReport", "Finding", "check_annotations"]

FAR = 0.25  # of the box's longer side: further outside a landmark is no longer a matter of the box's tightness
APART = 0.05  # of the box's longer side: left and right that are nearer may overlap in the picture
AGREED = 0.9  # fraction of objects that must show a pair the same way round before the others are suspected
RARE, ENOUGH = 0.02, 50  # a landmark that fewer of a category's objects have, where there are so many, is suspicious


class _Object(NamedTuple):
    record: str
    image_id: Any
    category_id: Any
    box: tuple[float, float, float, float]
    first: int  # keypoint that `points` begins with: leading and trailing zeros are not kept
    points: npt.NDArray[np.float32]  # (n, 3)
    declared: Any  # num_keypoints


def check_annotations(
    path: str | Path,
    *,
    images: Path | None = None,
    keypoints: int | None = None,
    landmarks: LandmarkSet | None = None,
    against: str | Path | None = None,
    decode: bool = False,
    workers: int = 1,
    limit: int = 20,
) -> CheckReport:
    """Check a COCO keypoint file and its images.

    Args:
        path: the file.
        images: folder of images; None: as :func:`load_coco` looks for them.
        keypoints: how many each record must have; None: as many as the file's categories name, or its first record has.
        landmarks: what a model is to learn: names and mirror pairs, and, in a file with 294 keypoints, the channels
            outside which nothing may be labelled. None: known for DeepFashion2's categories; elsewhere pairs are
            told by "left" and "right" in the categories' keypoint names.
        against: another annotation file, of which no image may be in this one (train against validation).
        decode: also decode each image.
        workers: processes that look at images.
        limit: findings kept of each kind; 0: all.

    Raises:
        InputError: the file is not COCO, so that there is nothing to check.
    """
    path = Path(path)
    check = _Check(path, keypoints, landmarks, limit)
    rest = read_records(path, {"images": check.add_image, "annotations": check.add_object})
    if missing := {"images", "annotations", "categories"} - set(rest):
        raise InputError(
            f"{path}: expected the COCO keys images, annotations and categories; {sorted(missing)} missing"
        )
    check.add_categories(rest["categories"])
    check.check_objects()
    check.check_pairs()
    check.check_rare()
    check_images(
        check.report,
        check.images,
        {found.image_id for found in check.objects},
        _folders(path, images),
        against=None if against is None else (Path(against), _folders(Path(against), None, images)),
        decode=decode,
        workers=workers,
    )
    return check.report


def _folders(path: Path, images: Path | None, more: Path | None = None) -> ImageFolders:
    folders = [images] if images is not None else [path.parent / name for name in IMAGE_FOLDERS]
    return ImageFolders(folders + ([more] if more is not None else []))


class _Check:
    def __init__(self, path: Path, keypoints: int | None, landmarks: LandmarkSet | None, limit: int) -> None:
        self.report = CheckReport(path, limit=limit)
        self.keypoints, self.landmarks = keypoints, landmarks
        self.images: dict[Any, tuple[str, Any, Any]] = {}
        self.names: dict[Any, str] = {}  # of categories
        self.keypoint_names: dict[Any, list[str]] = {}
        self.objects: list[_Object] = []
        self.by_category: dict[Any, list[_Object]] = defaultdict(list)
        self._ids: set[Any] = set()
        self._lengths: list[tuple[str, int]] = []

    def image_name(self, found: _Object) -> str:
        return self.images.get(found.image_id, ("", 0, 0))[0]

    def add_image(self, entry: Any) -> None:
        self.report.images += 1
        record = f"image number {self.report.images}"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)):
            return self.report.add("error", "broken image entry", record, "", "it has no id; write the file anew")
        record, name = f"image {entry['id']}", entry.get("file_name")
        if not isinstance(name, str):
            return self.report.add(
                "error", "broken image entry", record, "", f"file_name is {name!r}; write the file anew"
            )
        if entry["id"] in self.images:
            return self.report.add("error", "image id twice", record, name, "give each image an id of its own")
        w, h = entry.get("width"), entry.get("height")
        if not all(isinstance(side, int) and side > 0 for side in (w, h)):
            self.report.add(
                "error", "broken image entry", record, name, f"width {w!r}, height {h!r}: write the true size"
            )
            w = h = 0
        self.images[entry["id"]] = (name, w, h)
        return None

    def add_categories(self, entries: Any) -> None:
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, dict) or not {"id", "name"} <= set(entry):
                raise InputError(f"{self.report.path}: an entry of categories has no id or name: {entry!r:.80}")
            self.names[entry["id"]] = str(entry["name"])
            names = entry.get("keypoints")
            self.keypoint_names[entry["id"]] = [str(n) for n in names] if isinstance(names, list) else []
        if self.keypoints is None:
            lengths = [len(names) for names in self.keypoint_names.values() if names]
            lengths += [length // 3 for _, length in self._lengths[:1]]
            self.keypoints = lengths[0] if lengths else 0

    def add_object(self, entry: Any) -> None:
        number = len(self.objects) + self.report.counts["error", "broken annotation"] + 1
        if not isinstance(entry, dict):
            return self.report.add(
                "error", "broken annotation", f"annotation number {number}", "", "it is no object; remove it"
            )
        record = f"annotation {entry.get('id', f'number {number}')}"
        image = self.images.get(_key(entry.get("image_id")), ("", 0, 0))[0]
        if "id" in entry and _key(entry["id"]) in self._ids:
            self.report.add("error", "annotation id twice", record, image, "give each annotation an id of its own")
        self._ids.add(_key(entry.get("id")))
        if entry.get("iscrowd"):
            return self.report.add(
                "warning", "left out", record, image, "it is marked as a crowd; training leaves it out"
            )
        if "bbox" not in entry or "keypoints" not in entry:
            return self.report.add(
                "warning", "left out", record, image, "it has no bbox or no keypoints; training leaves it out"
            )
        try:
            x, y, w, h = numbers_of(entry["bbox"])
            numbers = np.array(numbers_of(entry["keypoints"]), np.float32)
            if not math.isfinite(x + y + w + h + float(numbers.sum())):
                raise ValueError("a number is not finite")
        except (TypeError, ValueError) as error:
            text = f"bbox must be 4 and keypoints 3 K finite numbers ({error}); correct or remove it"
            return self.report.add("error", "broken annotation", record, image, text)
        self._lengths.append((record, len(numbers)))
        points = numbers[: len(numbers) // 3 * 3].reshape(-1, 3)
        used = np.flatnonzero(points.any(1))
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        box, declared = (x, y, w, h), entry.get("num_keypoints")
        ids = _key(entry.get("image_id")), _key(entry.get("category_id"))
        self.objects.append(_Object(record, *ids, box, first, points[first:last].copy(), declared))
        return None

    def check_objects(self) -> None:
        k = self.keypoints or 0
        sides: dict[Any, list[float]] = defaultdict(list)
        for found, (_, length) in zip(self.objects, self._lengths, strict=True):
            record, image = found.record, self.image_name(found)
            if found.image_id not in self.images:
                text = f"image_id {found.image_id!r} is not among the images; add the image or remove it"
                self.report.add("error", "unknown image", record, "", text)
                continue
            if found.category_id not in self.names:
                text = f"category_id {found.category_id!r} is not among the categories; add the category or correct it"
                self.report.add("error", "unknown category", record, image, text)
                continue
            if length != 3 * k:
                text = f"expected {k} keypoints (x, y, v), got {length} numbers; see --keypoints and --recipe"
                self.report.add("error", "wrong number of keypoints", record, image, text)
                continue
            self.by_category[found.category_id].append(found)
            sides[found.category_id].append(max(found.box[2:]))
            self._check_landmarks(found, image)
            self._check_box(found, image)
        for category, objects in self.by_category.items():
            name = self.names[category]
            self.report.objects[name] = len(objects)
            low, middle, high = np.percentile(sides[category], [0, 50, 100])
            self.report.box_sides[name] = (float(low), float(middle), float(high))

    def _check_landmarks(self, found: _Object, image: str) -> None:
        points, record = found.points, found.record
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            text = "a keypoint's third number must be 0 (not labelled), 1 (hidden) or 2 (seen); correct it"
            self.report.add("error", "visibility not 0, 1 or 2", record, image, text)
        seen = points[:, 2] > 0
        if not seen.any() or found.declared == 0:
            self.report.add("warning", "left out", record, image, "no landmark is labelled, or num_keypoints is 0")
            return
        if found.declared is not None and found.declared != seen.sum():
            text = f"num_keypoints is {found.declared!r}, but {seen.sum()} are labelled; correct the number"
            self.report.add("warning", "wrong num_keypoints", record, image, text)
        numbers = found.first + np.flatnonzero(seen)
        allowed = self._channels(found.category_id)
        if wrong := sorted(set(numbers.tolist()) - set(allowed)):
            name = self.names[found.category_id]
            text = f"{name!r} does not have the landmarks {_named(self._labels(found.category_id), wrong)}; "
            self.report.add(
                "error", "landmarks of another category", record, image, text + "correct the category or the labels"
            )
        xy = points[seen, :2]
        if (at_zero := ~xy.any(1)).any():
            which = _named(self._labels(found.category_id), numbers[at_zero])
            text = f"{which} at (0, 0) is marked as labelled; set its third number to 0 if it is not"
            self.report.add("warning", "labelled at (0, 0)", record, image, text)
        _, w, h = self.images[found.image_id]
        if w and (outside := (xy < -0.5).any(1) | (xy > (w - 0.5, h - 0.5)).any(1)).any():
            which = _named(self._labels(found.category_id), numbers[outside])
            text = f"{which} lies outside the {w}x{h} image; correct it, or set its third number to 0"
            self.report.add("warning", "landmark outside the image", record, image, text)
        x, y, width, height = found.box
        beyond = np.maximum((x, y) - xy, xy - (x + width, y + height)).max(1)
        if (far := beyond > FAR * max(width, height, 1)).any():
            which = _named(self._labels(found.category_id), numbers[far])
            text = f"{which} lies {beyond.max():.0f} px outside the box {list(found.box)}; is it another object's box?"
            self.report.add("warning", "landmark far outside the box", record, image, text)

    def _check_box(self, found: _Object, image: str) -> None:
        _, w, h = self.images[found.image_id]
        if not w:
            return
        x, y, width, height = found.box
        if clipped_box(found.box, (w, h)) is None:
            text = f"box {list(found.box)} (x, y, w, h) has no area inside the {w}x{h} image; training leaves it out"
            self.report.add("error", "empty box", found.record, image, text)
        elif x < -1 or y < -1 or x + width > w + 1 or y + height > h + 1:
            text = f"box {list(found.box)} reaches outside the {w}x{h} image and is clipped; is it x, y, w, h?"
            self.report.add("warning", "box outside the image", found.record, image, text)

    def _set(self, category_id: Any) -> LandmarkSet | None:
        if self.keypoints != DEEPFASHION2_CHANNELS:
            return self.landmarks
        one = self.landmarks is not None and self.landmarks.name in DEEPFASHION2 and len(self.names) == 1
        return self.landmarks if one else DEEPFASHION2.get(self.names[category_id])

    def _channels(self, category_id: Any) -> Iterable[int]:
        """The landmarks that a category may have."""
        known, k = self._set(category_id), self.keypoints or 0
        if known is not None and k == DEEPFASHION2_CHANNELS:
            return range(*known.channels)
        if tuple(self.keypoint_names[category_id]) == garment_spec().keypoint_names:
            absent = ABSENT.get(self.names[category_id], ())
            return [channel for channel in range(k) if channel not in absent]
        return range(k)

    def _labels(self, category_id: Any) -> Sequence[str]:
        k, known = self.keypoints or 0, self._set(category_id)
        names = self.keypoint_names[category_id]
        if known is not None and k in (len(known.keypoint_names), DEEPFASHION2_CHANNELS):
            begin, end = known.channels if k == DEEPFASHION2_CHANNELS else (0, k)
            own = names if len(names) == k else [str(number + 1) for number in range(k)]
            return [*own[:begin], *known.keypoint_names, *own[end:]]
        return names if len(names) == k else [str(number + 1) for number in range(k)]

    def _pairs(self, category_id: Any) -> list[tuple[int, int]]:
        """Landmarks that a mirror swaps."""
        known, k = self._set(category_id), self.keypoints or 0
        if known is not None and k in (len(known.keypoint_names), DEEPFASHION2_CHANNELS):
            begin = known.channels[0] if k == DEEPFASHION2_CHANNELS else 0
            return [(begin + i, begin + j) for i, j in enumerate(known.flip_indices) if i < j]
        names = {name.lower(): number for number, name in enumerate(self._labels(category_id))}
        swapped = {name: name.replace("left", "right") for name in names if "left" in name}
        return [(names[left], names[right]) for left, right in swapped.items() if right in names]

    def check_pairs(self) -> None:
        """Suspects objects whose pairs are nearly all the other way round than those of nearly all other objects."""
        for category, objects in self.by_category.items():
            pairs = self._pairs(category)
            if not pairs or len(objects) < ENOUGH:
                continue
            signs = np.array([_signs(found, pairs) for found in objects])  # (N, P): 1: the second is further right
            clear = np.maximum((signs != 0).sum(0), 1)
            usual = np.sign(signs.sum(0)) * (np.abs(signs.sum(0)) / clear >= 2 * AGREED - 1)
            same, opposite = (signs * usual > 0).sum(1), (signs * usual < 0).sum(1)
            for index in np.flatnonzero((opposite >= 2) & (same == 0)):
                found = objects[index]
                text = f"all {opposite[index]} pairs of left and right are the other way round than in at least "
                text += f"{AGREED:.0%} of the objects; swap them, unless the garment is seen from behind"
                self.report.add("warning", "left and right swapped", found.record, self.image_name(found), text)

    def check_rare(self) -> None:
        """Counts labels by landmark, and suspects those that a category hardly ever has."""
        for category, objects in self.by_category.items():
            count = np.zeros(self.keypoints or 0)
            for found in objects:
                count[found.first : found.first + len(found.points)] += found.points[:, 2] > 0
            labels = self._labels(category)
            known = self._channels(category)
            fraction = count / len(objects)
            self.report.landmarks[self.names[category]] = {labels[k]: float(fraction[k]) for k in known}
            rare = [k for k in known if 0 < fraction[k] < RARE] if len(objects) >= ENOUGH else []
            if rare:
                text = f"fewer than {RARE:.0%} of its objects have {_named(labels, rare)}; are they of this category?"
                self.report.add(
                    "warning", "landmark hardly ever labelled", f"category {self.names[category]}", "", text
                )


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


def _named(labels: Sequence[str], numbers: Iterable[int]) -> str:
    """The names of landmarks, the first few of many."""
    names = [labels[number] if number < len(labels) else str(number + 1) for number in numbers]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _signs(found: _Object, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """For each pair 1 where its second landmark lies further right, -1 further left, 0 not clear or not labelled."""
    apart = APART * max(found.box[2], found.box[3], 1)
    signs = []
    for pair in pairs:
        rows = [found.points[i - found.first] for i in pair if 0 <= i - found.first < len(found.points)]
        clear = len(rows) == 2 and rows[0][2] > 0 and rows[1][2] > 0 and abs(rows[1][0] - rows[0][0]) > apart
        signs.append(int(np.sign(rows[1][0] - rows[0][0])) if clear else 0)
    return signs
