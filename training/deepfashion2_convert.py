"""Raw DeepFashion2 -> the 13 COCO files of each split that MMPose trains on.

The work is cut into shards of annotation files. Each shard's result is one file, written whole or not at all, that
remembers which inputs it was made from; a run that was killed goes on with the shards that are missing, and what it
writes in the end does not depend on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from edgepose.console import track
from edgepose.errors import InputError
from edgepose.files import write_atomically
from edgepose.training.deepfashion2 import CATEGORIES, RawImage, RawItem, annotation_file, raw_files, read_raw
from edgepose.training.fashion import DEEPFASHION2, DEEPFASHION2_CHANNELS

__all__ = ["Conversion", "convert_deepfashion2"]

SHARD = 1000  # annotation files
VERSION = 1  # of the shards' and the output's format; shards of another one are made again
EXTRAS = ("style", "scale", "occlusion", "zoom_in", "viewpoint")  # of an item; an image has source and pair_id


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        files: the COCO files, one a category.
        images: annotation files read.
        objects: category -> number of objects.
        left_out: what is wrong with each record that was left out; empty unless ``skip_broken``.
        unlabelled: images without an annotation file.
        resumed: annotation files whose result an earlier, interrupted run had left.
    """

    files: list[Path]
    images: int
    objects: dict[str, int]
    left_out: list[str]
    unlabelled: int
    resumed: int


class _Shard(NamedTuple):
    folder: Path  # of the split
    names: list[str]
    images: frozenset[str]  # of this shard
    result: Path
    fingerprint: str
    skip_broken: bool


def convert_deepfashion2(
    root: str | Path, output: str | Path, split: str, *, skip_broken: bool = False, workers: int = 1
) -> Conversion:
    """Write ``output/<split>/deepfashion2_<category>_<split>.json`` for all 13 categories.

    Boxes become x, y, w, h; landmarks go to their category's place among 294 keypoints; ``area`` is the box's;
    ``num_keypoints`` counts v > 0. Beside what deepfashion2_to_coco.py writes (ids as it numbers them, ``pair_id``,
    ``style``, ``segmentation``), objects keep ``source``, ``scale``, ``occlusion``, ``zoom_in`` and ``viewpoint``.
    File names are relative to ``<split>/image``.

    The same call goes on with a conversion that was killed, and does nothing after one that was finished: that leaves
    ``deepfashion2_<split>_conversion.json``. Images are taken to be unchanged; annotation files that changed are read
    again.

    Args:
        root: the folder with ``train/`` and ``validation/``.
        output: the folder to write; ``root`` itself gives MMPose's layout.
        split: ``train`` or ``validation``.
        skip_broken: leave broken records out, and list them, instead of stopping at the first.
        workers: processes.

    Raises:
        InputError: there is nothing to convert, a record is broken, or the output cannot be written.
    """
    folder = Path(root) / split
    names, images = raw_files(folder)
    output = Path(output)
    state = output / split / f".deepfashion2_{split}.shards"
    record = output / split / f"deepfashion2_{split}_conversion.json"
    written = [annotation_file(output, split, category) for category in CATEGORIES]
    stems = {name[:-5] for name in names}
    unlabelled = sum(image.endswith(".jpg") and image[:-4] not in stems for image in images)
    try:
        state.mkdir(parents=True, exist_ok=True)
        shards = list(_shards(folder, names, images, state, skip_broken))
        fingerprint = hashlib.sha256("".join(shard.fingerprint for shard in shards).encode()).hexdigest()
        finished = _finished(record, fingerprint, written)
        if finished is not None:
            shutil.rmtree(state)
            return Conversion(written, len(names), *finished, unlabelled, len(names))
        missing = [shard for shard in shards if _fingerprint_of(shard.result) != shard.fingerprint]
        done = len(names) - sum(len(shard.names) for shard in missing)
        for _ in track(_convert(missing, workers), len(names) - done, f"converting {split}"):
            pass
        count, left_out = _merge(shards, state, written)
        text = json.dumps({"fingerprint": fingerprint, "objects": count, "left_out": left_out}, indent=1)
        write_atomically(record, text.encode())
        shutil.rmtree(state)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error}") from None
    return Conversion(written, len(names), count, left_out, unlabelled, done)


def _finished(record: Path, fingerprint: str, written: Sequence[Path]) -> tuple[dict[str, int], list[str]] | None:
    """What a conversion of the same files had to report; None: there was none, or its files are not there."""
    if not (record.exists() and all(path.exists() for path in written)):
        return None
    data = json.loads(record.read_text(encoding="utf-8"))
    return (data["objects"], data["left_out"]) if data["fingerprint"] == fingerprint else None


def _shards(
    folder: Path, names: Sequence[str], images: frozenset[str], state: Path, skip_broken: bool
) -> Iterator[_Shard]:
    with os.scandir(folder / "annos") as entries:
        marks = {entry.name: f"{(stat := entry.stat()).st_size} {stat.st_mtime_ns}" for entry in entries}
    for begin in range(0, len(names), SHARD):
        own = list(names[begin : begin + SHARD])
        there = frozenset(f"{name[:-5]}.jpg" for name in own) & images
        text = json.dumps(
            [VERSION, skip_broken, [(name, marks.get(name), f"{name[:-5]}.jpg" in there) for name in own]]
        )
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        yield _Shard(folder, own, there, state / f"{begin:09d}", fingerprint, skip_broken)


def _fingerprint_of(result: Path) -> str | None:
    """Of the inputs that a shard's result was made from; None: there is no result."""
    if not result.exists():
        return None
    with result.open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["fingerprint"])


def _convert(shards: Sequence[_Shard], workers: int) -> Iterator[None]:
    """Make the shards' results; one item for each annotation file read, for the progress bar."""
    if workers <= 1 or len(shards) <= 1:
        for shard in shards:
            yield from _convert_shard(shard)
        return
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=get_context("spawn")) as pool:
        try:
            for count in pool.map(_convert_whole_shard, shards):
                yield from itertools.repeat(None, count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _convert_whole_shard(shard: _Shard) -> int:
    return sum(1 for _ in _convert_shard(shard))


def _convert_shard(shard: _Shard) -> Iterator[None]:
    """Lines of the result: a header; then ``i`` with an image, ``a`` with an object, ``!`` with what was left out.

    An object's id is not known before all shards are: its line has its number in the shard instead.
    """
    lines: list[str] = []
    number = 0
    for name in shard.names:
        raw = read_raw(shard.folder, name, shard.images, skip_broken=shard.skip_broken)
        seen = set()
        for item in raw.items:
            number += 1  # a broken item counts, so that the others have the ids that they have elsewhere
            if item is not None:
                category = CATEGORIES.index(item.category)
                if category not in seen:
                    lines.append(f"i\t{category}\t{_image(raw)}\n")
                    seen.add(category)
                lines.append(f"a\t{category}\t{number}\t{_object(raw, item)}\n")
        lines += [f"!\t{json.dumps(text)}\n" for text in raw.broken]
        yield
    header = json.dumps({"fingerprint": shard.fingerprint, "objects": number})
    write_atomically(shard.result, "".join([header, "\n", *lines]).encode())


def _image(raw: RawImage) -> str:
    fields = {"id": raw.number, "file_name": raw.image.name, "width": raw.size[0], "height": raw.size[1], "license": 0}
    return _json(fields)


def _object(raw: RawImage, item: RawItem) -> str:
    """A COCO record without its id and its opening brace; one line."""
    x1, y1, x2, y2 = item.box
    begin, end = DEEPFASHION2[item.category].channels
    keypoints = "0," * (3 * begin) + _json(item.landmarks)[1:-1] + ",0" * (3 * (DEEPFASHION2_CHANNELS - end))
    fields = {
        "image_id": raw.number,
        "category_id": CATEGORIES.index(item.category) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "num_keypoints": sum(flag > 0 for flag in item.landmarks[2::3]),
        **raw.fields,
        **{key: item.fields[key] for key in EXTRAS if key in item.fields},
        "segmentation": item.fields.get("segmentation", []),
    }
    return f'"keypoints":[{keypoints}],{_json(fields)[1:]}'


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _merge(shards: Sequence[_Shard], state: Path, written: Sequence[Path]) -> tuple[dict[str, int], list[str]]:
    """Number the objects and write the COCO files: first all of them aside, then each to its place."""
    left_out: list[str] = []
    count: Counter[str] = Counter()
    images: list[list[str]] = [[] for _ in CATEGORIES]
    aside = [state / f"{path.name}.part" for path in written]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in aside]
        for file in files:
            file.write('{"annotations":[')
        first = 0
        for shard in track(shards, len(shards), "merging"):
            with shard.result.open(encoding="utf-8") as lines:
                header = json.loads(next(lines))
                for line in lines:
                    kind, rest = line.rstrip("\n").split("\t", 1)
                    if kind == "!":
                        left_out.append(json.loads(rest))
                        continue
                    category, rest = rest.split("\t", 1)
                    index = int(category)
                    if kind == "i":
                        images[index].append(rest)
                        continue
                    number, record = rest.split("\t", 1)
                    separator = ",\n" if count[CATEGORIES[index]] else "\n"
                    files[index].write(f'{separator}{{"id":{first + int(number)},{record}')
                    count[CATEGORIES[index]] += 1
            first += header["objects"]
        for index, file in enumerate(files):
            file.write('\n],"images":[\n' + ",\n".join(images[index]) + f'\n],"categories":[{_category(index)}],')
            file.write('"info":{"description":"DeepFashion2, converted by edgepose"},"licenses":[]}\n')
            file.flush()
            os.fsync(file.fileno())
    for source, path in zip(aside, written, strict=True):
        os.replace(source, path)
    return {category: count[category] for category in CATEGORIES}, left_out


def _category(index: int) -> str:
    names = [str(number) for number in range(1, DEEPFASHION2_CHANNELS + 1)]  # as deepfashion2_to_coco.py names them
    fields = {
        "id": index + 1,
        "name": CATEGORIES[index],
        "supercategory": "clothes",
        "keypoints": names,
        "skeleton": [],
    }
    return _json(fields)
