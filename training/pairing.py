"""`edgepose dataset pair`: brings published labels together with a user's own copy of the photos.

A photo is known by its name, whatever folder it is in, and checked by what it holds:

    the same bytes                          paired
    other bytes, same size, same picture    paired: encoded anew, and the labels fit; it is counted apart
    another size, same picture              refused, unless resized ones are allowed: then the labels are scaled
    another picture, size or aspect         refused
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edgepose.errors import InputError
from edgepose.files import write_all_atomically
from edgepose.media import PHOTO_SUFFIXES, read_photo
from edgepose.training.annotations import grey_distance, labels, records_json, splits

__all__ = ["Pairing", "pair"]

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]

# In grey levels of 16. Encoded anew at JPEG quality 30, halved or doubled, the 637 photos of garments_cc0 differ by
# 0.31 at most, by 0.35 shrunk to a third without smoothing; two different photos by 0.51 at least, but for two pairs
# (0.33, 0.35) of dark garments on white.
SAME_PICTURE = 0.4
SAME_ASPECT = 0.005
UNLABELLED = "unlabelled"
NO_GARMENTS = frozenset({"hat", "hats", "shoes"})  # folders of clothing-dataset-small that hold other things


@dataclass
class Pairing:
    """What was found, and written.

    Attributes:
        written: train.json, val.json, … with the number of their photos; empty where photos are missing or refused and
            that was not allowed.
        exact: photos with the bytes that were labelled.
        encoded_anew: the same pictures in other bytes.
        resized: the same pictures in another size; their labels are scaled.
        missing: names of labelled photos that are not there.
        refused: photos with the name of a labelled one that its labels do not fit, and why.
        unlabelled: the folder of links to the photos without labels; None where there are none, or none was asked for.
        unlabelled_count: how many there are.
        no_garments: photos left out of it because their folder's name says hats or shoes.
    """

    written: dict[Path, int] = field(default_factory=dict)
    exact: int = 0
    encoded_anew: list[Path] = field(default_factory=list)
    resized: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    unlabelled: Path | None = None
    unlabelled_count: int = 0
    no_garments: int = 0


class _Match(NamedTuple):
    """A file compared with a labelled photo. Ranks: 0 exact, 1 encoded anew, 2 resized, 3 refused for ``reason``."""

    rank: int
    path: Path
    size: tuple[int, int]
    reason: str = ""


def pair(
    photos: str | Path,
    output: str | Path,
    *,
    label_set: str = "garments_cc0",
    allow_missing: bool = False,
    allow_resized: bool = False,
    link_unlabelled: bool = True,
    track: Track | None = None,
) -> Pairing:
    """Write train.json, val.json, … of published labels for a copy of their photos, ready for the trainer.

    No photo is copied: the files' image names are paths relative to ``output``. The photos without labels by hand get
    symbolic links in ``output/unlabelled/``, a flat folder, as ``edgepose synthesize --photos`` reads it.

    Args:
        photos: a folder with the photos, at any depth.
        output: the folder to write.
        label_set: one of ``annotations.LABEL_SETS``.
        allow_missing: write the files without the photos that are missing or refused. Else nothing is written.
        allow_resized: take photos of another size, aspect within 0.5 %, and scale their labels.
        link_unlabelled: make the links.
        track: wraps the loop to show progress.

    Raises:
        InputError: there is no such folder or set, not one of its photos is there, or the output cannot be written or
            would replace what this function did not write.
    """
    photos, output = Path(photos), Path(output)
    data = {split: labels(label_set, split) for split in splits(label_set)}
    linked = output / UNLABELLED
    found = _by_stem(photos, skip=linked)
    _refuse_foreign(output, {split: content["info"]["description"] for split, content in data.items()})
    report = Pairing()
    entries = [(split, entry) for split, content in data.items() for entry in content["images"]]
    matches: dict[str, dict[int, _Match]] = {split: {} for split in data}
    for split, entry in entries if track is None else track(entries, len(entries), "comparing photos"):
        match = _best(found.get(_stem(entry["file_name"]), ()), entry, allow_resized)
        if match is None:
            report.missing.append(entry["file_name"])
        elif match.rank == 3:
            report.refused.append((match.path, match.reason))
        else:
            matches[split][entry["id"]] = match
            report.exact += match.rank == 0
            for rank, paths in ((1, report.encoded_anew), (2, report.resized)):
                if match.rank == rank:
                    paths.append(match.path)
    if len(report.missing) == len(entries):
        raise InputError(
            f"{photos} holds none of the {len(entries)} photos of {label_set}: they are named like "
            f"{entries[0][1]['file_name']}, in any folder below it"
        )
    if (report.missing or report.refused) and not allow_missing:
        return report
    try:
        output.mkdir(parents=True, exist_ok=True)
        files = {output / f"{split}.json": _paired(data[split], matches[split], output) for split in data}
        if link_unlabelled:
            labelled = {_stem(entry["file_name"]) for split, entry in entries if split != "pseudo"}
            rest = [path for stem, paths in found.items() if stem not in labelled for path in paths]
            garments = [path for path in rest if not _holds_no_garments(path, photos)]
            report.no_garments = len(rest) - len(garments)
            report.unlabelled_count = len(garments)
            report.unlabelled = _link(sorted(garments), linked) if garments else None
        write_all_atomically({path: records_json(content).encode() for path, content in files.items()})
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from None
    report.written = {path: len(content["images"]) for path, content in files.items()}
    return report


def _by_stem(folder: Path, skip: Path) -> dict[str, list[Path]]:
    """All photos below a folder by their names without suffix; links to folders are followed, each folder once."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    found: dict[str, list[Path]] = {}
    for path in _photos_below(folder, {skip.resolve()}):
        found.setdefault(_stem(path.name), []).append(path)
    return found


def _photos_below(folder: Path, done: set[Path]) -> Iterator[Path]:
    if folder.resolve() in done:
        return
    done.add(folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _photos_below(path, done)
        elif path.suffix.lower() in PHOTO_SUFFIXES:
            yield path


def _stem(name: str) -> str:
    return Path(name).stem.casefold()


def _best(paths: Iterable[Path], entry: Mapping[str, Any], allow_resized: bool) -> _Match | None:
    """Of several files with a photo's name, the one that its labels fit best; None where there is no file."""
    best = None
    for path in paths:
        match = _compare(path, entry, allow_resized)
        if best is None or match.rank < best.rank:
            best = match
        if match.rank == 0:
            break
    return best


def _compare(path: Path, entry: Mapping[str, Any], allow_resized: bool) -> _Match:
    size = (entry["width"], entry["height"])
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]:
            return _Match(0, path, size)
        frame = read_photo(path)
    except (OSError, InputError) as error:
        return _Match(3, path, size, f"it cannot be read: {error}")
    here = (frame.shape[1], frame.shape[0])
    sizes = f"it has {here[0]}x{here[1]} px, the labels are for {size[0]}x{size[1]}"
    if here != size and abs((here[0] / size[0]) / (here[1] / size[1]) - 1) > SAME_ASPECT:
        return _Match(3, path, here, f"{sizes}, another aspect: cropped, turned or stretched")
    if (distance := grey_distance(frame, entry["grey8x8"])) > SAME_PICTURE:
        return _Match(
            3, path, here, f"it shows something else ({distance:.2f} grey levels off, allowed are {SAME_PICTURE})"
        )
    if here == size:
        return _Match(1, path, here)
    if allow_resized:
        return _Match(2, path, here)
    return _Match(3, path, here, f"{sizes}: the same picture, resized; --allow-resized takes it and scales its labels")


def _paired(data: Mapping[str, Any], matches: Mapping[int, _Match], output: Path) -> dict[str, Any]:
    """A label file for the photos that were found: their paths for names, their sizes for labels."""
    images, scales = [], {}
    for entry in data["images"]:
        if match := matches.get(entry["id"]):
            width, height = match.size
            scales[entry["id"]] = (width / entry["width"], height / entry["height"])
            images.append(
                {"id": entry["id"], "file_name": _relative(match.path, output), "width": width, "height": height}
            )
    records = [
        _scaled(record, *scales[record["image_id"]]) for record in data["annotations"] if record["image_id"] in scales
    ]
    return {"info": data["info"], "categories": data["categories"], "images": images, "annotations": records}


def _relative(path: Path, folder: Path) -> str:
    """A path from a folder. A photo that is itself a link keeps its own name: the link's target may have another."""
    try:
        return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()
    except ValueError:  # Windows: there is no way from one drive to another
        raise InputError(f"{folder} must be on the same drive as {path}: no photo is copied") from None


def _scaled(record: Mapping[str, Any], sx: float, sy: float) -> dict[str, Any]:
    """A record for a resized photo. An integer is a pixel's centre, so x goes to (x + 0.5) * sx - 0.5."""
    record = copy.deepcopy(dict(record))
    if (sx, sy) == (1, 1):
        return record
    points, (x, y, w, h) = record["keypoints"], record["bbox"]
    for k in range(0, len(points), 3):
        if points[k + 2]:
            points[k] = round((points[k] + 0.5) * sx - 0.5, 2)
            points[k + 1] = round((points[k + 1] + 0.5) * sy - 0.5, 2)
    box = ((x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5, w * sx, h * sy)
    record["bbox"] = [round(value, 2) for value in box]
    record["area"] = round(box[2] * box[3], 2)
    return record


def _refuse_foreign(output: Path, descriptions: Mapping[str, str]) -> None:
    """A train.json that somebody labelled by hand must not be replaced by ours."""
    for split, description in descriptions.items():
        path = output / f"{split}.json"
        if not path.exists():
            continue
        try:
            ours = json.loads(path.read_text(encoding="utf-8"))["info"]["description"] == description
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise InputError(f"{path} exists and is not of `edgepose dataset pair`: pass another folder with -o")
    linked = output / UNLABELLED
    if linked.is_symlink() or (linked.exists() and not linked.is_dir()):
        raise InputError(f"{linked} exists and is not a folder of `edgepose dataset pair`: pass another one with -o")
    if linked.is_dir() and (foreign := [path for path in sorted(linked.iterdir()) if not path.is_symlink()]):
        raise InputError(f"{linked} holds files of its own ({foreign[0].name}, …): pass another folder with -o")


def _holds_no_garments(path: Path, photos: Path) -> bool:
    return any(part.lower() in NO_GARMENTS for part in path.relative_to(photos).parts[:-1])


def _link(photos: Iterable[Path], folder: Path) -> Path:
    """Make a folder anew, of symbolic links to photos; files of one name are numbered."""
    aside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    aside.mkdir()
    try:
        for path in photos:
            name, number = path.name, 1
            while (aside / name).is_symlink():
                number += 1
                name = f"{path.stem}-{number}{path.suffix}"
            try:
                # Relative to the links' folder, whose final place is as deep as this one
                (aside / name).symlink_to(_relative(path, aside))
            except OSError as error:
                raise InputError(
                    f"{folder}: this file system makes no symbolic links ({error.strerror or error}); on Windows turn "
                    "on the Developer Mode, or pass --no-unlabelled"
                ) from None
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder
