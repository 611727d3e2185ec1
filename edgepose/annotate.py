"""What ``edgepose predict`` does: annotated pictures or a video, and one JSON file for the whole run.

The JSON file is ``predictions.json`` in an output folder, or has the output file's name with the suffix ``.json``::

    {"schema": 1, "model": name, "source": path, "predictions": [
        {"file_name": "shirt.jpg", "frame": null, "frame_size": [w, h], "objects": [...]}, ...]}

``frame`` counts a video's frames from 0; ``objects`` is as in :meth:`edgepose.PoseResult.to_dict`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepose.boxes import BoxSource
from edgepose.errors import EdgePoseError, InputError
from edgepose.media import (
    PHOTO_SUFFIXES,
    VIDEO_SUFFIXES,
    VideoReader,
    VideoWriter,
    kind_of,
    photos_in,
    read_photo,
    write_photo,
)
from edgepose.result import MIN_SCORE

if TYPE_CHECKING:
    from edgepose.detector_spec import DetectorSpec
    from edgepose.spec import ModelSpec

__all__ = ["Annotated", "Finder", "Findings", "annotate"]

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]

COUNT_TOLERANCE = 0.05  # headers may be a few frames off; a video that ends earlier than this is cut off


class Findings(Protocol):
    """What is drawn and written of a picture: a PoseResult, or Detections."""

    def draw(self, frame: NDArray[np.uint8], *, min_score: float) -> NDArray[np.uint8]: ...
    def to_dict(self) -> dict[str, Any]: ...


class Finder(Protocol):
    """What looks at the pictures: a Predictor, or what wraps a Detector."""

    @property
    def spec(self) -> ModelSpec | DetectorSpec: ...
    def predict(self, frame: Any, boxes: NDArray[np.float32] | None = None) -> Findings: ...


@dataclass
class Annotated:
    """What a run produced.

    Attributes:
        outputs: the picture or video files that were written.
        json_path: the file with all predictions.
        objects: number of boxes whose landmarks were found.
        failures: photos that could not be done, and what is missing from a video, with the reason.
    """

    json_path: Path
    outputs: list[Path] = field(default_factory=list)
    objects: int = 0
    failures: list[tuple[Path, str]] = field(default_factory=list)


def annotate(
    predictor: Finder,
    source: Path,
    output: Path,
    boxes: BoxSource,
    *,
    min_score: float = MIN_SCORE,
    track: Track | None = None,
) -> Annotated:
    """Predict on a photo, a video or each photo of a folder, and write what came out.

    Args:
        predictor: an open predictor, or what finds something else in a picture.
        source: a photo, a video or a folder of photos.
        output: a folder, made as needed; or a file, for a single photo or video. A name with a suffix is a file's,
            unless there is a folder of that name.
        boxes: where the objects are, or that the predictor's detector is to find them.
        min_score: landmarks below it are not drawn; the JSON holds all of them.
        track: wraps the loop, ``track(items, total, description)``, to show progress; None: silent.

    Returns:
        What was written. Photos of a folder that cannot be done are listed in ``failures``; the others are done.
        So is a video that ends before its header says so or breaks off at an error, with what was done until then
        written, and frame numbers of boxes that are beyond its end.

    Raises:
        InputError: source, output or boxes are not usable, or the output would overwrite the input.
        EdgePoseError: nothing of a single photo or video could be done, or the JSON file cannot be written.
    """
    kind = kind_of(source)
    track = track or (lambda items, total, description: items)
    photos = photos_in(source) if kind == "folder" else [source]
    folder, file = _split_output(kind, source, output)
    report = Annotated(file.with_suffix(".json") if file else folder / "predictions.json")
    if boxes.path is not None:
        _refuse_overwriting(boxes.path, report.json_path)
    entries: list[dict[str, Any]] = []
    try:
        if kind == "video":
            target = file or folder / f"{source.stem}.mp4"
            _refuse_overwriting(source, target)
            failures = _annotate_video(predictor, source, target, boxes, entries, min_score=min_score, track=track)
            report.outputs.append(target)
            report.failures += [(source, reason) for reason in failures]
        else:
            for photo in track(photos, len(photos), source.name):
                target = file or folder / photo.name
                _refuse_overwriting(photo, target)
                try:
                    frame = read_photo(photo)
                    result = predictor.predict(frame, boxes.for_photo(photo, frame))
                    write_photo(target, result.draw(frame, min_score=min_score))
                except InputError as error:
                    if kind == "photo":
                        raise
                    report.failures.append((photo, str(error)))
                    continue
                report.outputs.append(target)
                entries.append(_entry(photo.name, None, result))
    finally:  # an interrupted run keeps what it has found
        if entries or report.failures:
            _write_json(report.json_path, predictor, source, entries)
    report.objects = sum(len(entry["objects"]) for entry in entries)
    return report


def _split_output(kind: str, source: Path, output: Path) -> tuple[Path, Path | None]:
    """Output folder, and the output file where ``output`` names one."""
    suffix = output.suffix.lower()
    if output.is_dir() or not suffix:
        if output.is_file():
            raise InputError(f"-o {output} is a file that is neither a picture nor a video: pass a folder")
        if output.resolve() == (source if kind == "folder" else source.parent).resolve():
            raise InputError(f"-o {output} is where the input lies, and would overwrite it: pass another folder")
        return output, None
    if suffix not in PHOTO_SUFFIXES | VIDEO_SUFFIXES:
        known = ", ".join(sorted(PHOTO_SUFFIXES | VIDEO_SUFFIXES))
        raise InputError(
            f"-o {output} has an unknown suffix {suffix!r}; known: {known}. If it is a folder, create it first"
        )
    if kind == "folder":
        raise InputError(f"{source} is a folder, so -o must be one too, got the file {output}")
    wanted = PHOTO_SUFFIXES if kind == "photo" else VIDEO_SUFFIXES
    if suffix not in wanted:
        raise InputError(f"{source} is a {kind}, so -o must be a folder or end in {', '.join(sorted(wanted))}")
    return output.parent, output


def _refuse_overwriting(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        raise InputError(f"the output {target} is an input file: choose another name or folder for -o")


def _annotate_video(
    predictor: Finder,
    source: Path,
    target: Path,
    boxes: BoxSource,
    entries: list[dict[str, Any]],
    *,
    min_score: float,
    track: Track,
) -> list[str]:
    """Append an entry for each frame; return what is missing from the video. An error at the first frame is raised."""
    boxes.check_video()
    with VideoReader(source) as reader, VideoWriter(target, reader.fps) as writer:
        try:
            for number, frame in enumerate(track(reader, reader.count, source.name)):
                result = predictor.predict(frame, boxes.for_frame(number, frame))
                writer.write(result.draw(frame, min_score=min_score))
                entries.append(_entry(source.name, number, result))
        except EdgePoseError as error:
            if not entries:
                raise
            return [f"stopped at frame {len(entries)}, the {len(entries)} before it are done: {error}"]
    count, failures = len(entries), []
    if count < reader.count * (1 - COUNT_TOLERANCE):
        failures.append(f"cut off: its header says {reader.count} frames, and {count} could be read")
    if beyond := boxes.frames_from(count):
        shown = ", ".join(map(str, beyond[:3])) + (", ..." if len(beyond) > 3 else "")
        failures.append(f"{boxes.source} has boxes for frames ({shown}) beyond the last one, {count - 1}")
    return failures


def _entry(file_name: str, frame: int | None, result: Findings) -> dict[str, Any]:
    values = result.to_dict()
    return {
        "file_name": file_name,
        "frame": frame,
        "frame_size": values["frame_size"],
        "objects": values["objects"],
    }


def _write_json(path: Path, predictor: Finder, source: Path, entries: list[dict[str, Any]]) -> None:
    head = {"schema": 1, "model": predictor.spec.name, "source": str(source)}
    text = json.dumps(head, ensure_ascii=False)[:-1] + ', "predictions": ['
    # A line for each picture or frame: an hour of video stays readable, and half the size of indented JSON.
    text += ",".join("\n" + json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries) + "\n]}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EdgePoseError(f"{path} cannot be written: {error.strerror or error}") from None
