"""Where the boxes of ``edgepose predict`` come from: the command line or a JSON file.

A file has one of these forms; a photo is looked up by its file name, with or without folders:

* boxes for every photo or frame::

    [[x1, y1, x2, y2], ...]

* boxes by file name, or by frame number (from 0) for a video::

    {"shirt.jpg": [[x1, y1, x2, y2], ...], ...} or {"12": [[x1, y1, x2, y2], ...], ...}

* COCO annotations: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox"}]}``
* COCO detections: ``[{"file_name" or "image_id": file name, "bbox"}]``

Plain boxes are xyxy, COCO's ``bbox`` is x, y, width, height; both in px. A frame number that the file does not mention
has no boxes, but a photo that it does not mention is an error: it is more often a misspelt name than an empty photo.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError
from edgepose.frames import whole_image_box

__all__ = ["BoxSource"]

_FORMS = (
    "expected [[x1, y1, x2, y2], ...], or a mapping of file names to such lists, or COCO annotations with `images` and "
    "`annotations`, or a list of COCO detections with `file_name` and `bbox`"
)
Boxes = list[list[float]]


@dataclass(frozen=True)
class BoxSource:
    """Boxes for photos and frames.

    Attributes:
        everywhere: boxes that hold for each photo and frame.
        by_name: boxes by file name or frame number.
        whole_image: one box that covers the frame, in place of all others.
        detected: there are none here, the predictor's detector finds them.
        source: what an error message calls it.
        path: the file that they come from.
    """

    everywhere: Boxes | None = None
    by_name: Mapping[str, Boxes] = field(default_factory=dict)
    whole_image: bool = False
    detected: bool = False
    source: str = "--boxes"
    path: Path | None = None

    @classmethod
    def from_options(cls, boxes: Sequence[str], *, whole_image: bool, detected: bool = False) -> BoxSource:
        """Read the options ``--boxes`` (numbers or one file) and ``--whole-image``; ``detected``: there is a detector.

        Raises:
            InputError: none or several are given, or a value is neither four numbers nor a usable file.
        """
        if bool(boxes) + whole_image + detected > 1:
            raise InputError("--boxes, --whole-image and --detector exclude each other: give one of them")
        if detected:
            return cls(detected=True, source="--detector")
        if whole_image:
            return cls(whole_image=True, source="--whole-image")
        if not boxes:
            raise InputError(
                "where are the objects? Pass --detector garment-detector (or the path of an ONNX file or engine), "
                "--boxes x1,y1,x2,y2 (once for each object), --boxes boxes.json, or --whole-image if one object fills "
                "each picture"
            )
        numbers = [_numbers(text) for text in boxes]
        if all(box is not None for box in numbers):
            return cls(everywhere=[box for box in numbers if box is not None])
        if len(boxes) > 1:
            wrong = next(text for text, box in zip(boxes, numbers, strict=True) if box is None)
            raise InputError(f"--boxes is given {len(boxes)} times, so each must be x1,y1,x2,y2 in px; got {wrong!r}")
        return cls.from_file(Path(boxes[0]))

    @classmethod
    def from_file(cls, path: Path) -> BoxSource:
        """Read a JSON file in one of the forms above.

        Raises:
            InputError: it cannot be read, is not JSON, or has another form.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"--boxes {path}: neither four numbers x1,y1,x2,y2 nor a readable file ({error.strerror or error})"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"--boxes {path} is not JSON: {error}") from None
        source = f"--boxes {path}"
        if isinstance(data, dict) and "annotations" in data and "images" in data:
            return cls(by_name=_from_annotations(data, source), source=source, path=path)
        if isinstance(data, dict):
            by_name = {name: _xyxy(rows, f"{source}, {name}") for name, rows in data.items()}
            return cls(by_name=by_name, source=source, path=path)
        if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
            return cls(by_name=_from_detections(data, source), source=source, path=path)
        return cls(everywhere=_xyxy(data, source), source=source, path=path)

    def for_photo(self, path: Path, frame: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """(N, 4) float32 xyxy px, for a photo; None: to be detected.

        Raises:
            InputError: the file of boxes does not mention the photo, or means two different ones.
        """
        if self.detected:
            return None
        if self.whole_image:
            return whole_image_box(frame)
        if self.everywhere is not None:
            return _array(self.everywhere)
        matches = [name for name in self.by_name if PurePosixPath(name).name == path.name]
        exact = [name for name in matches if path.as_posix().endswith(f"/{name}") or path.as_posix() == name]
        names = max(exact, key=len, default=None) or (matches[0] if len(matches) == 1 else None)
        if names is None and matches:
            raise InputError(
                f"{self.source} has several photos called {path.name} ({', '.join(matches)}), none at {path}"
            )
        if names is None:
            raise InputError(
                f"{self.source} does not mention {path.name}; write an empty list for a photo without garments"
            )
        return _array(self.by_name[names])

    def for_frame(self, number: int, frame: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """(N, 4) float32 xyxy px, for a frame of a video, counted from 0; None: to be detected."""
        if self.detected:
            return None
        if self.whole_image:
            return whole_image_box(frame)
        return _array(self.everywhere if self.everywhere is not None else self._by_frame.get(number, []))

    def check_video(self) -> None:
        """Raise InputError unless the boxes are for every frame or by frame number, each number once."""
        if not (self.detected or self.whole_image) and self.everywhere is None:
            _ = self._by_frame

    def frames_from(self, count: int) -> list[int]:
        """The frame numbers that the boxes mention and a video of ``count`` frames does not have, in order."""
        if self.detected or self.whole_image or self.everywhere is not None:
            return []
        return sorted(number for number in self._by_frame if number >= count)

    @cached_property
    def _by_frame(self) -> dict[int, Boxes]:
        form = 'for a video, write {"0": [[x1, y1, x2, y2], ...], ...}'
        if not self.by_name:
            raise InputError(f"{self.source} has no frame numbers: {form}")
        boxes: dict[int, Boxes] = {}
        for name, rows in self.by_name.items():
            if not name.isdecimal():
                raise InputError(f"{self.source}: {name!r} is not one of the frame numbers that a video needs; {form}")
            if int(name) in boxes:
                raise InputError(f"{self.source} names frame {int(name)} twice: give all its boxes in one list")
            boxes[int(name)] = rows
        return boxes


def _numbers(text: str) -> list[float] | None:
    parts = text.split(",")
    try:
        return [float(part) for part in parts] if len(parts) == 4 else None
    except ValueError:
        return None


def _array(boxes: Boxes) -> NDArray[np.float32]:
    return np.array(boxes, np.float32).reshape(-1, 4)


def _xyxy(rows: Any, where: str) -> Boxes:
    if not isinstance(rows, list) or not all(_is_box(row) for row in rows):
        raise InputError(f"{where}: {_FORMS}")
    return [[float(v) for v in row] for row in rows]


def _is_box(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 4 and all(type(v) in (int, float) for v in row)


def _bbox(item: Any, where: str) -> list[float]:
    box = item.get("bbox") if isinstance(item, dict) else None
    if box is None or not _is_box(box):
        raise InputError(f"{where}: an entry has no `bbox` of four numbers x, y, width, height: {str(item)[:120]}")
    x, y, w, h = box
    return [float(x), float(y), float(x + w), float(y + h)]


def _from_annotations(data: dict[str, Any], where: str) -> dict[str, Boxes]:
    try:
        names = {image["id"]: str(image["file_name"]) for image in data["images"]}
        boxes: dict[str, Boxes] = {name: [] for name in names.values()}
        for item in data["annotations"]:
            boxes[names[item["image_id"]]].append(_bbox(item, where))
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: not COCO annotations, `images` and `annotations` do not fit: {error!r}") from None
    return boxes


def _from_detections(data: list[dict[str, Any]], where: str) -> dict[str, Boxes]:
    boxes: dict[str, Boxes] = {}
    for item in data:
        name = item.get("file_name", item.get("image_id"))
        if not isinstance(name, str):
            raise InputError(
                f"{where}: detections must name their photo in `file_name` (or a text in `image_id`), got {name!r}; "
                "a number cannot be looked up without the annotations' `images`"
            )
        boxes.setdefault(name, []).append(_bbox(item, where))
    return boxes
