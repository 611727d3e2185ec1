"""Looks at a data set's image files, in several processes: are they there, whole, of the size that the labels say?"""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from edgepose.console import track
from edgepose.errors import InputError
from edgepose.media import read_photo
from edgepose.training.checks_report import CheckReport
from edgepose.training.coco import ImageFolders
from edgepose.training.imagefiles import ImageHeader, read_header
from edgepose.training.jsonrecords import read_records

__all__ = ["ImageFacts", "check_images", "inspect_images", "same_pictures"]

IN_A_PROCESS = 500  # fewer files are not worth starting processes for


class ImageFacts(NamedTuple):
    """What one image file is.

    Attributes:
        header: size, orientation, completeness; None: unreadable.
        problem: why it is unreadable; empty: it is not.
        bytes: its length.
        mark: of its last 4096 bytes: files of equal length and mark are probably the same.
    """

    header: ImageHeader | None
    problem: str
    bytes: int
    mark: bytes


def check_images(
    report: CheckReport,
    images: Mapping[Any, tuple[str, int, int]],
    used: Collection[Any],
    folders: ImageFolders,
    *,
    against: tuple[Path, ImageFolders] | None,
    decode: bool,
    workers: int,
) -> None:
    """Add what is wrong with the images.

    Args:
        report: to add to.
        images: image id -> name, w, h; w and h 0: not known.
        used: ids of images that have objects.
        folders: where the images are.
        against: another annotation file and where its images are; the two must not share any.
        decode: also decode each image.
        workers: processes.
    """
    found: dict[Path, tuple[Any, str, int, int]] = {}
    for image_id, (name, w, h) in images.items():
        record, path = f"image {image_id}", folders.find(name)
        if image_id not in used:
            report.add("warning", "image without objects", record, name, "no annotation belongs to it")
        if path is None:
            looked = ", ".join(str(folder) for folder in folders.folders)
            report.add("error", "image missing", record, name, f"not found in {looked}; see --images")
        elif path in found:
            text = f"image {found[path][0]} is the same file; let both images' annotations name one of them"
            report.add("error", "image listed twice", record, name, text)
        else:
            found[path] = (image_id, name, w, h)
    facts = dict(
        zip(
            found,
            inspect_images(list(found), decode=decode, workers=workers, description="looking at images"),
            strict=True,
        )
    )
    for path, (image_id, name, w, h) in found.items():
        _check_file(report, f"image {image_id}", name, (w, h), facts[path])
    for path, other in same_pictures(facts, facts):
        text = f"its content is that of image {found[other][0]} ({found[other][1]}); remove one"
        report.add("warning", "same picture twice", f"image {found[path][0]}", found[path][1], text)
    if against is not None:
        _check_shared(report, found, facts, *against, workers)


def _check_file(report: CheckReport, record: str, name: str, size: tuple[int, int], fact: ImageFacts) -> None:
    header = fact.header
    if header is None or fact.problem:
        report.add("error", "image unreadable", record, name, f"{fact.problem}; get the file again")
        return
    if not header.complete:
        report.add("error", "image cut off", record, name, "the end of the file is missing; get it again")
    if size[0] and header.shown != size:
        w, h = header.shown
        text = f"the file has {w}x{h} px, the annotation file says {size[0]}x{size[1]}"
        if header.orientation != 1 and header.size == size:
            text += f": EXIF turns it (orientation {header.orientation}); write it upright, or label it as shown"
        else:
            text += ": the labels belong to another version of the picture; get that one, or scale the labels"
        report.add("error", "image of another size", record, name, text)
    elif header.orientation != 1:
        text = f"EXIF turns or mirrors it (orientation {header.orientation}), and not every program obeys; write it "
        report.add("warning", "image with EXIF orientation", record, name, text + "upright and check its labels")


def _check_shared(
    report: CheckReport,
    found: Mapping[Path, tuple[Any, str, int, int]],
    facts: Mapping[Path, ImageFacts],
    file: Path,
    folders: ImageFolders,
    workers: int,
) -> None:
    names: list[str] = []

    def add_name(entry: Any) -> None:
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
            names.append(entry["file_name"])

    read_records(file, {"images": add_name, "annotations": lambda _: None})
    everything = dict.fromkeys(map(folders.find, names))
    paths = [path for path in everything if path is not None]
    if not paths:
        raise InputError(f"{file}: none of its images is beside it, so nothing can be compared")
    if None in everything:
        report.add("warning", "image of the other file missing", "", "", f"{file}: not all of its images are there")
    resolved = {path.resolve() for path in paths}
    for path, (image_id, name, _, _) in found.items():
        if path.resolve() in resolved:
            text = f"{file} has it, too: training and validation must not share images; remove it from one"
            report.add("error", "image in both files", f"image {image_id}", name, text)
    different = [path for path in paths if path not in found]
    looked = inspect_images(different, decode=False, workers=workers, description=f"looking at {file.name}")
    for path, other in same_pictures(facts, dict(zip(different, looked, strict=True))):
        if path.resolve() != other.resolve():
            text = f"its content is that of {other}, which {file} has: remove it from one of the two"
            report.add("error", "image in both files", f"image {found[path][0]}", found[path][1], text)


def inspect_images(paths: Sequence[Path], *, decode: bool, workers: int, description: str) -> list[ImageFacts]:
    """Look at each file; with ``decode`` also at its pixels."""
    work = partial(_inspect, decode=decode)
    if workers <= 1 or len(paths) < IN_A_PROCESS:
        return list(track(map(work, paths), len(paths), description))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(track(pool.map(work, paths, chunksize=64), len(paths), description))


def same_pictures(facts: Mapping[Path, ImageFacts], others: Mapping[Path, ImageFacts]) -> Iterator[tuple[Path, Path]]:
    """Pairs of different files, one of each set, with the same content; within one set, each pair once."""
    by_mark: dict[tuple[int, bytes], list[Path]] = {}
    for path, fact in others.items():
        if fact.bytes:
            by_mark.setdefault((fact.bytes, fact.mark), []).append(path)
    order = {path: number for number, path in enumerate(facts)} if facts is others else {}
    for path, fact in facts.items():
        for other in by_mark.get((fact.bytes, fact.mark), ()):
            if other != path and not (order and order[other] > order[path]) and filecmp.cmp(path, other, shallow=False):
                yield path, other
                break


def _inspect(path: Path, decode: bool) -> ImageFacts:
    try:
        header = read_header(path)
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - 4096))
            mark = hashlib.blake2b(file.read(), digest_size=16).digest()
        if decode:
            height, width = read_photo(path).shape[:2]
            if (width, height) != header.shown:
                return ImageFacts(
                    header, f"its header says {header.shown}, it decodes to {(width, height)}", length, mark
                )
        return ImageFacts(header, "", length, mark)
    except InputError as error:
        return ImageFacts(None, str(error), 0, b"")
    except OSError as error:
        return ImageFacts(None, f"{path} cannot be read: {error}", 0, b"")
