"""What scenes are composed of: garments of photos with their silhouettes, rendered garments, backgrounds, cloth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.console import track
from edgepose.errors import InputError
from edgepose.media import read_photo
from edgepose.training.coco import Annotation, load_coco
from edgepose.training.fashion import DEEPFASHION2
from edgepose.training.garments import CATEGORIES
from edgepose.training.synthetic.floors import background
from edgepose.training.synthetic.render import draw_scene, sample_scene, truth
from edgepose.training.synthetic.shapes import CATEGORY_OF
from edgepose.training.synthetic.templates import sample_template
from edgepose.training.synthetic.textures import cloth_tile

__all__ = ["GARMENT_TYPES", "GROUPS", "Garment", "Stock", "label_of", "load_garments", "make_stock", "silhouette"]

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]

GARMENT_TYPES = tuple(DEEPFASHION2)  # the 13 classes, in DeepFashion2's order
# (3, 13): the types that a garment may have of which only upper, lower or full is known
GROUPS = np.array([[CATEGORY_OF[name] == category for name in GARMENT_TYPES] for category in CATEGORIES])
LONGEST = 400  # px of a kept photo's longer side: scenes are 256 px
CUT_SIZE = 267  # px at which silhouettes are found
RENDER_SIZE = (240, 320)  # px
FLOORS, TILES = 240, 96  # painted backgrounds and cloths in stock


@dataclass(frozen=True)
class Garment:
    """A picture of one garment, and its truth.

    Attributes:
        image: (h, w, 3) uint8 BGR.
        mask: (h, w) uint8, 255 where the garment is; None where it is not known.
        box: (4,) float32 x1, y1, x2, y2 px, pixel edges.
        keypoints: (8, 2) float32 px.
        visible: (8,) float32, 1 or 0.
        label: the type's number, or -1 - u where only the category, CATEGORIES[u], is known.
    """

    image: Image
    mask: Image | None
    box: Array
    keypoints: Array
    visible: Array
    label: int

    @property
    def category(self) -> str:
        """upper, lower or full."""
        return CATEGORIES[-1 - self.label] if self.label < 0 else CATEGORY_OF[GARMENT_TYPES[self.label]]


@dataclass(frozen=True)
class Stock:
    """All that scenes are made of."""

    photos: list[Garment]
    renders: list[Garment] = field(default_factory=list)
    floors: list[Image] = field(default_factory=list)
    tiles: list[Image] = field(default_factory=list)


def label_of(category: str, garment_type: str | None) -> int:
    """A garment's label; see :class:`Garment`.

    Raises:
        InputError: an unknown type, or one of another category.
    """
    if garment_type is None:
        return -1 - CATEGORIES.index(category)
    if CATEGORY_OF.get(garment_type) != category:
        raise InputError(f"garment_type {garment_type!r} is not one of an {category!r} garment")
    return GARMENT_TYPES.index(garment_type)


def load_garments(path: Path) -> tuple[list[Annotation], list[int]]:
    """A COCO file's garments and their labels.

    Raises:
        InputError: the file is broken, or a type is unknown.
    """
    annotations = load_coco(path, 8)
    content = json.loads(path.read_text(encoding="utf-8"))
    types: dict[int | str, str | None] = {}
    for record in content["annotations"]:
        if record["image_id"] in types:
            raise InputError(f"{path}: image {record['image_id']} has several garments; expected one a photo")
        types[record["image_id"]] = record.get("garment_type")
    labels = []
    for a in annotations:
        try:
            labels.append(label_of(a.category, types[a.image_id]))  # type: ignore[index]
        except InputError as error:
            raise InputError(f"{path}: {a.image.name}: {error}") from None
    return annotations, labels


def make_stock(
    annotations: Sequence[Annotation], labels: Sequence[int], *, renders: int, seed: int = 0, workers: int = 2
) -> Stock:
    """Read and cut out all photos, render garments and backgrounds. The same seed makes the same stock."""
    with ProcessPoolExecutor(max(workers, 1), initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        photos = pool.map(_photo, zip(annotations, labels, strict=True), chunksize=8)
        kept = list(track(photos, len(annotations), "cutting out"))
        drawn = list(track(pool.map(_render, [(seed, i) for i in range(renders)], chunksize=8), renders, "rendering"))
        floors = list(pool.map(_floor, [(seed, i) for i in range(FLOORS)], chunksize=8))
        tiles = list(pool.map(_tile, [(seed, i) for i in range(TILES)], chunksize=8))
    return Stock(kept, drawn, floors, tiles)


def _photo(item: tuple[Annotation, int]) -> Garment:
    annotation, label = item
    frame = read_photo(annotation.image)
    scale = min(LONGEST / max(frame.shape[:2]), 1.0)
    if scale < 1:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    keypoints = (annotation.keypoints + 0.5) * scale - 0.5
    garment = Garment(frame, None, annotation.box * scale, keypoints, annotation.visible, label)
    return replace(garment, mask=silhouette(garment))


def silhouette(garment: Garment) -> Image | None:
    """The garment's mask by GrabCut (Rother et al. 2004) within its box, or None where that fails.

    It has failed where the mask does not fill the box from edge to edge or is no single piece.
    """
    h, w = garment.image.shape[:2]
    f = min(CUT_SIZE / max(h, w), 1.0)
    small = cv2.resize(garment.image, None, fx=f, fy=f, interpolation=cv2.INTER_AREA)
    x0, y0, x1, y1 = np.rint(garment.box * f).astype(int)
    labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    spots = garment.keypoints[garment.visible > 0] * f
    if len(spots) > 2:  # the middle of the landmarks' hull is cloth
        hull = cv2.convexHull(((spots - spots.mean(0)) * 0.6 + spots.mean(0)).astype(np.float32))
        cv2.fillConvexPoly(labels, np.rint(hull).astype(np.int32), cv2.GC_FGD)
    if (labels == cv2.GC_BGD).sum() < 200:
        return None
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, None, *models, 4, cv2.GC_INIT_WITH_MASK)
    mask = np.where((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD), 255, 0).astype(np.uint8)
    count, parts, figures, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return None
    largest = 1 + int(figures[1:, cv2.CC_STAT_AREA].argmax())
    x, y, bw, bh, area = figures[largest]
    shared = max(min(x + bw, x1) - max(x, x0), 0) * max(min(y + bh, y1) - max(y, y0), 0)
    if shared < 0.85 * (x1 - x0) * (y1 - y0) or area < 0.85 * (mask > 0).sum() or area < 0.3 * bw * bh:
        return None
    mask = np.where(parts == largest, 255, 0).astype(np.uint8)
    mask = cv2.erode(cv2.GaussianBlur(mask, (0, 0), 1.2), np.ones((2, 2), np.uint8))  # no rim of the old background
    return np.asarray(cv2.resize(mask, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8)


def _render(key: tuple[int, int]) -> Garment:
    """A rendered garment, cut out; every type comes equally often."""
    rng = np.random.default_rng((*key, 1))
    name = GARMENT_TYPES[key[1] % len(GARMENT_TYPES)]
    scene, warp = sample_scene(rng, RENDER_SIZE, template=sample_template(rng, name))
    canvas, mask = draw_scene(replace(scene, hanger=None), warp)
    sample = truth(scene, warp, canvas, mask)
    x0, y0, x1, y1 = sample.box.astype(int)
    keypoints = (sample.keypoints - (x0, y0)).astype(np.float32)
    size = np.array([0, 0, x1 - x0, y1 - y0], np.float32)
    window = slice(y0, y1), slice(x0, x1)
    return Garment(
        canvas[window].copy(), mask[window].copy(), size, keypoints, sample.visible, GARMENT_TYPES.index(name)
    )


def _floor(key: tuple[int, int]) -> Image:
    return background(np.random.default_rng((*key, 2)), (320, 320))


def _tile(key: tuple[int, int]) -> Image:
    return cloth_tile(np.random.default_rng((*key, 3)))
