"""`edgepose dataset view`: what a data set's labels look like, and what the trainer makes of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.geometry import crop_affines, heatmap_to_crop, transform_points
from edgepose.kernels.reference import crop_warp
from edgepose.media import PHOTO_SUFFIXES, write_photo
from edgepose.spec import ModelSpec
from edgepose.training.coco import Annotation, load_coco, read_frame
from edgepose.training.codecs import encode
from edgepose.training.contact_sheet import (
    PICTURE,
    Tile,
    contact_sheets,
    draw_heat,
    draw_labels,
    fit,
    landmark_colors,
)
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2, DEEPFASHION2_CHANNELS
from edgepose.training.garments import ABSENT, GARMENT_NAMES, garment_spec
from edgepose.training.jsonrecords import numbers_of, read_records
from edgepose.training.mmpose_transforms import MMPoseAugmentation
from edgepose.training.transforms import Augmentation

__all__ = ["Labelled", "TrainerView", "load_labelled", "trainer_view", "view"]

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]
LONGEST_LEGEND = 20  # landmarks; more of them are numbered in the pictures only


@dataclass(frozen=True)
class Labelled:
    """An object with what its file says beyond an :class:`Annotation`.

    Attributes:
        annotation: its box and landmarks.
        spec: names, skeleton and colours of its landmarks.
        flags: (K,) int8, COCO's visibility: 0 not labelled, 1 inferred (or hidden), 2 seen.
        doubtful: (K,) bool, landmarks that the labeller was unsure of.
        kind: its garment type where the file has one, else its category.
        raw: the raw DeepFashion2 folder that it comes from; there, 1 and 2 are told apart when the object is shown.
    """

    annotation: Annotation
    spec: ModelSpec
    flags: npt.NDArray[np.int8]
    doubtful: npt.NDArray[np.bool_]
    kind: str
    raw: Path | None = None


@dataclass(frozen=True)
class TrainerView:
    """How a recipe looks at a picture: the spec of its crops, their random variation, the targets' sigma in cells, and
    the channels that a category never has."""

    spec: ModelSpec
    augmentation: Augmentation | MMPoseAugmentation
    sigma: float = 2.0
    absent: Mapping[str, Sequence[int]] = field(default_factory=dict)


class _Record(NamedTuple):
    """What a COCO record has beyond an Annotation; ``place`` counts the file's records."""

    place: int
    image_id: Any
    flags: npt.NDArray[np.int8]
    doubtful: tuple[int, ...]
    kind: str


class _Category(NamedTuple):
    """A category's entry in a COCO file, and its records."""

    entry: dict[str, Any]
    records: list[_Record]


def view(
    objects: Sequence[Labelled],
    output: Path,
    *,
    title: str,
    count: int = 48,
    seed: int = 0,
    crops: bool = False,
    augmented: TrainerView | None = None,
    track: Track | None = None,
) -> list[Path]:
    """Write contact sheets of ``count`` objects, drawn at random and shown in the file's order.

    Args:
        objects: what :func:`load_labelled` read.
        output: a folder, which gets ``sheet-01.jpg``, …; or a picture's name, which more pages number
            (``name-01.png``, …).
        title: the pages' header.
        count: how many objects at most.
        seed: fixes the choice, and the variation of ``augmented``.
        crops: show each object as a model's crop, not its whole frame.
        augmented: show what the trainer sees: varied crops under their targets.
        track: wraps the loop to show progress.

    Returns:
        The files written.

    Raises:
        InputError: there are no objects, a picture cannot be read, or the output cannot be written.
    """
    if not objects:
        raise InputError(f"{title}: there is no object to show")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(objects))[:count])
    shown = [_seen(objects[i]) for i in chosen]
    if augmented is not None:
        tiles: Iterable[Tile] = _trainer_tiles(shown, augmented, seed)
    else:
        tiles = (_tile(item, crops) for item in shown)
    if track is not None:
        tiles = track(tiles, len(shown), "drawing")
    pages = contact_sheets(
        list(tiles),
        title=title,
        summary=_summary(objects, len(shown), augmented),
        legend=_legend(shown, augmented is None),
    )
    return _write(list(pages), output)


def load_labelled(source: Path, *, images: Path | None = None, category: str | None = None) -> list[Labelled]:
    """Read a COCO keypoint file, or a raw DeepFashion2 folder, to look at it.

    Args:
        source: the file or folder.
        images: the folder that a COCO file's image names are relative to; None: beside it.
        category: read only this one.

    Returns:
        The objects in the file's order. Each has the landmarks of its category only, also in DeepFashion2 files whose
        records have all 294.

    Raises:
        InputError: the file cannot be used, or it has no such category.
    """
    if source.is_dir():
        return _load_raw(source, images, category)
    categories = _read(source)
    if category is not None and category not in categories:
        raise InputError(f"{source}: there is no category {category!r}; it has {', '.join(categories)}")
    items = []
    for name, found in categories.items():
        if found.records and category in (None, name):
            items += _load_category(source, images, name, found)
    return [item for _, item in sorted(items, key=lambda pair: pair[0])]


def trainer_view(recipe: str) -> TrainerView:
    """What `edgepose train RECIPE` makes of a picture; of the garment models, the last stage.

    Raises:
        InputError: there is no such recipe.
    """
    if recipe in GARMENT_NAMES:
        from edgepose.training.garment_landmarks import GARMENT_RECIPES

        stage = GARMENT_RECIPES[recipe].stages[-1]
        return TrainerView(garment_spec(stage.input_size, name=recipe), stage.augmentation, absent=ABSENT)
    from edgepose.training.recipes import find

    found = find(recipe)
    return TrainerView(found.spec(), found.augmentation, found.sigma)


def _read(source: Path) -> dict[str, _Category]:
    """What a COCO file says that load_coco leaves out, by category."""
    found: dict[Any, _Category] = {}
    place = itertools.count()

    def add(record: Any) -> None:
        values = numbers_of(record["keypoints"]) if "keypoints" in record else []
        doubtful, kind = tuple(record.get("ambiguous_keypoints") or ()), str(record.get("garment_type") or "")
        category = found.setdefault(record["category_id"], _Category({}, []))
        flags = np.asarray(values[2::3]).astype(np.int8)
        category.records.append(_Record(next(place), record["image_id"], flags, doubtful, kind))

    try:
        rest = read_records(source, {"images": lambda _: None, "annotations": add})
        for entry in rest["categories"]:
            found.setdefault(entry["id"], _Category({}, [])).entry.update(entry)
        return {str(category.entry["name"]): category for category in found.values()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        load_coco(source, 1)  # names the record that is broken
        raise InputError(f"{source}: a record or a category is broken: {error!r}") from None


def _load_category(source: Path, images: Path | None, name: str, category: _Category) -> list[tuple[int, Labelled]]:
    """A category's objects with their places in the file."""
    total = max(len(record.flags) for record in category.records)
    landmarks = DEEPFASHION2.get(name.replace(" ", "_"))
    channels = landmarks.channels if landmarks and total == DEEPFASHION2_CHANNELS else (0, total)
    annotations = load_coco(source, total, images=images, channels=channels, category=name)
    spec = _spec(name, category.entry, channels[1] - channels[0])
    items = []
    records = iter(category.records)
    for annotation in annotations:
        # load_coco keeps the order and leaves some out: walk on to the record that this one was made from.
        for record in records:
            flags = record.flags[slice(*channels)]
            if record.image_id == annotation.image_id and np.array_equal(flags > 0, annotation.visible > 0):
                doubtful = np.isin(np.arange(len(flags)), record.doubtful)
                kind = (record.kind or name).replace("_", " ")
                items.append((record.place, Labelled(annotation, spec, flags, doubtful, kind)))
                break
    if len(items) != len(annotations):
        raise InputError(f"{source}: the file changed while it was read; run the command again")
    return items


def _load_raw(folder: Path, images: Path | None, category: str | None) -> list[Labelled]:
    """A split of the raw DeepFashion2 release. Its flags are read when they are shown, see :func:`_seen`."""
    from edgepose.training.deepfashion2 import load_deepfashion2_raw

    if images is not None:
        raise InputError("--images is for COCO files: a raw DeepFashion2 folder brings its own")
    annotations = load_deepfashion2_raw(folder, categories=None if category is None else [category])
    specs = {name: _spec(name, {}, len(landmarks.keypoint_names)) for name, landmarks in DEEPFASHION2.items()}
    return [
        Labelled(
            annotation,
            specs[annotation.category],
            np.where(annotation.visible > 0, 2, 0).astype(np.int8),
            np.zeros(len(annotation.visible), bool),
            annotation.category.replace("_", " "),
            folder,
        )
        for annotation in annotations
    ]


def _seen(item: Labelled) -> Labelled:
    """An object with its real flags: of a raw DeepFashion2 folder's 200 000 files, only those that are shown are
    read for them."""
    if item.raw is None:
        return item
    from edgepose.training.deepfashion2 import read_raw

    annotation = item.annotation
    found = read_raw(item.raw, f"{annotation.image.stem}.json", frozenset([annotation.image.name]))
    for garment in found.items:
        points = np.array(garment.landmarks if garment else [], np.float32).reshape(-1, 3)
        if np.array_equal(points[:, :2], annotation.keypoints):
            return replace(item, flags=points[:, 2].astype(np.int8))
    raise InputError(f"{item.raw}: the annotations of {annotation.image.name} changed while they were read")


def _spec(name: str, entry: Mapping[str, Any], count: int) -> ModelSpec:
    """Names, skeleton and colours of a category's landmarks: the file's, or those of the data set that it names."""
    known = garment_spec()
    landmarks = DEEPFASHION2.get(name.replace(" ", "_"))
    names = tuple(str(n) for n in entry.get("keypoints", ()))
    if count == known.num_keypoints and names == known.keypoint_names:
        return known
    if landmarks and count == len(landmarks.keypoint_names):
        names, skeleton = landmarks.keypoint_names, landmarks.skeleton
    else:
        names = names if len(set(names)) == count else tuple(str(k) for k in range(count))
        links = [tuple(int(v) - 1 for v in link) for link in entry.get("skeleton") or ()]  # COCO counts from 1
        skeleton = tuple((a, b) for a, b in links if 0 <= a < count and 0 <= b < count)
    return replace(
        known, name=name, keypoint_names=names, flip_indices=tuple(range(count)), skeleton=skeleton, colors=()
    )


def _tile(item: Labelled, crops: bool) -> Tile:
    frame = read_frame(item.annotation)
    annotation = item.annotation
    if crops:
        affine = crop_affines(annotation.box[None], PICTURE, "msra", item.spec.padding)[0]
        picture = crop_warp(frame, affine[None], PICTURE, sampling="area")[0]
    else:
        picture, affine = fit(frame)
    points = transform_points(annotation.keypoints[None], affine[None])[0].astype(np.float32)
    box = transform_points(annotation.box.reshape(1, 2, 2), affine[None])[0].astype(np.float32).ravel()
    picture = draw_labels(picture, points, item.flags, box, item.spec, item.doubtful)
    counts = {
        "inferred": int((item.flags == 1).sum()),
        "uncertain": int((item.doubtful & (item.flags > 0)).sum()),
    }
    title = f"{item.kind}: {int((item.flags > 0).sum())} landmarks"
    title += "".join(f", {number} {what}" for what, number in counts.items() if number)
    return Tile(picture, title, annotation.image.name)


def _trainer_tiles(items: Sequence[Labelled], view: TrainerView, seed: int) -> Iterator[Tile]:
    """Each object as a training batch has it, its targets laid over it."""
    from edgepose.training.dataset import LandmarkDataset

    spec = view.spec
    annotations = [_in_channels(item, spec) for item in items]
    dataset = LandmarkDataset(annotations, spec, augmentation=view.augmentation, absent=view.absent, seed=seed)
    scale = min(PICTURE[0] / spec.input_size[0], PICTURE[1] / spec.input_size[1])
    size = (round(spec.input_size[0] * scale), round(spec.input_size[1] * scale))
    step = scale * heatmap_to_crop([1, 1], spec.codec, spec.input_size, spec.heatmap_size)  # picture px a cell
    affine = np.array([[step[0], 0, (scale - 1) / 2], [0, step[1], (scale - 1) / 2]])
    for index, item in enumerate(items):
        crop, keypoints, visible, empty = (np.asarray(part) for part in dataset[index])
        heatmaps, weights = encode(
            keypoints,
            visible,
            codec=spec.codec,
            input_size=spec.input_size,
            heatmap_size=spec.heatmap_size,
            sigma=view.sigma,
        )
        picture = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        own = slice(annotations[index].first_channel, annotations[index].first_channel + len(item.flags))
        heat = (heatmaps * weights[:, None, None])[own]
        picture = draw_heat(picture, heat, affine, landmark_colors(item.spec))
        trained, kept = int((weights > 0).sum()), int((empty > 0).sum())
        title = f"{item.kind}: {trained} targets" + (f", {kept} kept empty" if kept else "")
        yield Tile(picture, title, item.annotation.image.name)


def _in_channels(item: Labelled, spec: ModelSpec) -> Annotation:
    """The object's annotation with its landmarks in the channels that the recipe has for them."""
    annotation, own = item.annotation, item.spec.keypoint_names
    if spec.categories:
        begin, end = spec.categories.get(annotation.category.replace(" ", "_"), (0, 0))
    else:
        begin, end = 0, spec.num_keypoints
    known = {landmarks.keypoint_names for landmarks in (*DEEPFASHION.values(), *DEEPFASHION2.values())}
    if len(own) != end - begin or (own in known and own != spec.keypoint_names[begin:end]):
        raise InputError(
            f"{annotation.image.name}: {spec.name} does not train the {len(own)} landmarks of {annotation.category!r}: "
            "pass a recipe of this data set, with --category where it is about one"
        )
    return replace(annotation, first_channel=begin)


def _summary(objects: Sequence[Labelled], shown: int, augmented: TrainerView | None) -> str:
    pictures = len({item.annotation.image for item in objects})
    kinds = Counter(item.annotation.category for item in objects)
    labelled = sum(int((item.flags > 0).sum()) for item in objects)
    inferred = sum(int((item.flags == 1).sum()) for item in objects)  # not known of all, in a raw folder
    text = f"{shown} of {len(objects)} objects in {pictures} pictures   |   "
    many = len(kinds) > 6
    text += f"{len(kinds)} categories" if many else ", ".join(f"{name} {n}" for name, n in kinds.most_common())
    text += f"   |   {labelled} landmarks" + (f", {inferred} of them inferred or hidden" if inferred else "")
    return text if augmented is None else f"{text}   |   as {augmented.spec.name} is trained: targets laid over crops"


def _legend(shown: Sequence[Labelled], marks: bool) -> list[tuple[str, tuple[int, int, int] | None]]:
    """The landmarks' names and colours, where all objects have the same few; what the marks mean."""
    specs = {item.spec.keypoint_names: item.spec for item in shown}
    legend: list[tuple[str, tuple[int, int, int] | None]] = []
    if len(specs) == 1:
        (spec,) = specs.values()
        if spec.num_keypoints <= LONGEST_LEGEND:
            legend = [
                (f"{k} {name}", color)
                for k, (name, color) in enumerate(zip(spec.keypoint_names, landmark_colors(spec), strict=True))
            ]
    if marks and any((item.flags == 1).any() for item in shown):
        legend.append(("white inside: inferred or hidden", (255, 255, 255)))
    if marks and any(item.doubtful.any() for item in shown):
        legend.append(("? the labeller was unsure", None))
    return legend


def _write(pages: Sequence[npt.NDArray[np.uint8]], output: Path) -> list[Path]:
    if output.suffix.lower() in PHOTO_SUFFIXES and not output.is_dir():
        names = [output] if len(pages) == 1 else []
        stem, suffix, folder = output.stem, output.suffix, output.parent
    elif output.suffix and not output.is_dir():
        raise InputError(f"-o {output}: expected a folder, or a picture's name ({', '.join(sorted(PHOTO_SUFFIXES))})")
    else:
        names, stem, suffix, folder = [], "sheet", ".jpg", output
    names = names or [folder / f"{stem}-{number:02}{suffix}" for number in range(1, len(pages) + 1)]
    for name, page in zip(names, pages, strict=True):
        write_photo(name, page)
    return names
