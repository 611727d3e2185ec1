"""What odd pictures cost a garment detector: `edgepose bench detection LABELS`.

Labelled photos of one garment each are shown as they are, spoilt, several in one picture, and cut out: on other floors,
and on drawn figures. Composed pictures are no substitute for other cameras and rooms, but they tell where a detector
breaks first. Intervals come from drawing the pictures anew; composed ones show the same photos several times, so that
theirs are narrower than those of as many photos would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose import Detector
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.robustness import as_it_is, dark, held, one_sided_light, shaken, white_on_white
from edgepose.geometry import transform_points
from edgepose.training.coco import Annotation, read_frame
from edgepose.training.detection.dataset import chances_of
from edgepose.training.detection.garments import Stock, load_garments, make_stock
from edgepose.training.detection.metrics import DetectionFigures, ImageResult, evaluate_detections
from edgepose.training.detection.scenes import SceneMix, compose
from edgepose.training.transforms import Augmentation

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DETECTORS", "Photos", "load_photos", "print_table", "run"]

DETECTORS = ("garment-detector",)
QUICK_PHOTOS, QUICK_RESAMPLES = 6, 20
RESAMPLES = 200
SCENES = 120  # composed pictures of a kind; fewer where there are fewer photos than LEAST_PHOTOS
LEAST_PHOTOS = 20
SIZE = 512  # px of their sides
LEAST_SCORE = 0.01
ONLY = {"photo": 0.0, "mosaic": 0.0, "laid": 0.0, "worn": 0.0, "empty": 0.0}
NO_SPOILING = Augmentation(
    color=0.0, invert_light=0.0, gray=0.0, low_contrast=0.0, far=0.0, blur=0.0, noise=0.0, jpeg=0.0, shadow=0.0
)
APART = "mAP@0.5, categories apart"
SHOWN = ("mAP@0.5", APART, "AP@0.5 any category", "precision", "recall", "category accuracy")


@dataclass(frozen=True)
class Photos:
    """Labelled photos of one garment each.

    Attributes:
        name: of the file of labels.
        annotations, labels: of each, and the number of its category.
        stock: the same, read and cut out.
    """

    name: str
    annotations: list[Annotation]
    labels: list[int]
    stock: Stock

    @property
    def scenes(self) -> int:
        """How many pictures of a kind are composed."""
        return SCENES if len(self.annotations) >= LEAST_PHOTOS else len(self.annotations)


class Picture(NamedTuple):
    """A frame (H, W, 3) uint8 BGR, its boxes (G, 4) px and labels (G,)."""

    frame: NDArray[np.uint8]
    boxes: NDArray[np.floating]
    labels: NDArray[np.integer]


Maker = Callable[[Photos], Iterator[Picture]]


def load_photos(labels: str | Path, count: int | None = None) -> Photos:
    """Read a COCO file and cut out its garments, which takes a while and shows its progress.

    Args:
        labels: `edgepose dataset pair` makes ours.
        count: only the first so many.

    Raises:
        InputError: the file or a photo cannot be read, or a photo has several garments.
    """
    annotations, numbers = load_garments(Path(labels))
    annotations, numbers = annotations[:count], numbers[:count]
    return Photos(Path(labels).name, annotations, numbers, make_stock(annotations, numbers, renders=0))


def run(
    photos: Photos,
    *,
    detectors: Sequence[str] = DETECTORS,
    resamples: int = RESAMPLES,
    progress: Callable[[int, int, str], Any] | None = None,
) -> Record:
    """Evaluate detectors on all kinds of pictures.

    Args:
        photos: what :func:`load_photos` read.
        detectors: bundled names or ONNX files.
        resamples: draws of the pictures for the intervals.
        progress: told (done, of how many, what).

    Returns:
        Rows with labels detector, pictures and statistic: mAP and AP at an overlap of 0.5, precision, recall and
        category accuracy from the detector's own score on, fractions with 95 % intervals; ``objects``, a count; where
        there is none, ``false detections in a picture``.
    """
    rows: list[Row] = []
    cut_out = replace(photos.stock, photos=[photo for photo in photos.stock.photos if photo.mask is not None])
    for done, (name, maker) in enumerate(MAKERS.items()):
        if progress is not None:
            progress(done, len(MAKERS), name)
        pictures = list(maker(replace(photos, stock=cut_out) if name in COMPOSED else photos))
        for detector in detectors:
            labels: dict[str, Label] = {"detector": Path(detector).stem, "pictures": name}
            rows += measured(labels, detector, pictures, resamples)
    notes = [f"{len(photos.annotations)} photos of {photos.name}; composed pictures show them several times"]
    if max(photos.labels) < 0:
        notes.append(f"{photos.name} names no garment_type: there is no mAP of types, and no category accuracy")
    return make_record("detection", rows, notes=notes)


def measured(labels: dict[str, Label], detector: str, pictures: list[Picture], resamples: int) -> list[Row]:
    """Figures of a detector as its spec has it, and mAP where categories do not suppress each other."""
    if not pictures:
        return []
    results: dict[bool, list[ImageResult]] = {}
    for apart in (True, False):
        with Detector(detector, min_score=LEAST_SCORE, class_agnostic=False if apart else None) as model:
            results[apart] = [
                ImageResult(found.boxes, found.scores, found.labels, picture.boxes, np.maximum(picture.labels, -1))
                for picture in pictures
                for found in [model.detect(picture.frame)]
            ]
            score = model.spec.min_score
    objects = sum(len(picture.labels) for picture in pictures)
    rows = [Row({**labels, "statistic": "objects"}, "count", {"value": objects})]
    if not objects:
        false = sum(int((result.scores >= score).sum()) for result in results[False])
        values = {"value": false / len(pictures), "pictures": len(pictures)}
        return [*rows, Row({**labels, "statistic": "false detections in a picture"}, "count", values)]
    figures = _figures(results[False], results[True], score)
    intervals = _intervals(results[False], results[True], score, resamples)
    return rows + [
        Row({**labels, "statistic": name}, "fraction", {"value": value, **intervals.get(name, {})})
        for name, value in figures.items()
        if isfinite(value)
    ]


def _figures(results: Sequence[ImageResult], apart: Sequence[ImageResult], score: float) -> dict[str, float]:
    found: DetectionFigures = evaluate_detections(results, score=score)
    return {
        "mAP@0.5": found.mean_ap,
        APART: evaluate_detections(apart).mean_ap,
        "AP@0.5 any category": found.agnostic_ap,
        "precision": found.precision,
        "recall": found.recall,
        "category accuracy": found.type_accuracy,
    }


def _intervals(
    results: Sequence[ImageResult], apart: Sequence[ImageResult], score: float, resamples: int
) -> dict[str, dict[str, float]]:
    """The percentile interval, 95 %, of each figure over draws of the pictures; a draw without objects is left out."""
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        chosen = rng.integers(0, len(results), len(results))
        if any(len(results[i].true_labels) for i in chosen):
            figures = _figures([results[i] for i in chosen], [apart[i] for i in chosen], score)
            for name, value in figures.items():
                drawn.setdefault(name, []).append(value)
    finite = {name: [value for value in values if isfinite(value)] for name, values in drawn.items()}
    bounds = {name: np.percentile(values, (2.5, 97.5)).tolist() for name, values in finite.items() if values}
    return {name: {"low": low, "high": high} for name, (low, high) in bounds.items()}


# Pictures -----------------------------------------------------------------------------------------------


def spoilt(spoiler: Callable[..., tuple[NDArray[np.uint8], Annotation]]) -> Maker:
    """The photos with one of `robustness`'s spoilers that leave the box where it is."""

    def make(photos: Photos) -> Iterator[Picture]:
        for i, (annotation, label) in enumerate(zip(photos.annotations, photos.labels, strict=True)):
            frame, truth = spoiler(read_frame(annotation), annotation, np.random.default_rng((0, i)))
            yield Picture(frame, truth.box[None], np.array([label]))

    return make


def turned(degrees: float) -> Maker:
    """Turned about the picture's middle; boxes around the turned silhouettes, where there is one."""

    def make(photos: Photos) -> Iterator[Picture]:
        for photo in photos.stock.photos:
            if photo.mask is None:
                continue
            h, w = photo.image.shape[:2]
            matrix = np.asarray(cv2.getRotationMatrix2D((w / 2, h / 2), degrees, 0.8))
            frame = cv2.warpAffine(photo.image, matrix, (w, h), borderMode=cv2.BORDER_REFLECT_101)
            y, x = np.nonzero(photo.mask > 127)
            spots = transform_points(np.stack([x, y], -1)[None].astype(np.float64), matrix[None])[0]
            box = np.concatenate([spots.min(0), spots.max(0) + 1])
            boxes = np.clip(box, 0, (w, h, w, h))[None]
            yield Picture(np.asarray(frame, np.uint8), boxes, np.array([photo.label]))

    return make


def beside_each_other(columns: int, rows: int) -> Maker:
    """Photos in a grid, as many pictures as there are photos."""

    def make(photos: Photos) -> Iterator[Picture]:
        cell = np.array([240, 320])  # (w, h) px
        stock = photos.stock.photos
        for i in range(len(stock)):
            frame = np.full((rows * 320, columns * 240, 3), 114, np.uint8)
            boxes, kinds = [], []
            for place in range(columns * rows):
                photo = stock[(i + 7 * place) % len(stock)]
                at = np.array([place % columns, place // columns]) * cell
                scale = cell / photo.image.shape[1::-1]
                frame[at[1] : at[1] + 320, at[0] : at[0] + 240] = cv2.resize(photo.image, (240, 320))
                boxes.append(photo.box * np.tile(scale, 2) + np.tile(at, 2))
                kinds.append(photo.label)
            yield Picture(frame, np.array(boxes), np.array(kinds))

    return make


def composed(**kinds: float) -> Maker:
    """Scenes of `edgepose.training.detection.scenes`, of these photos' garments only."""

    def make(photos: Photos) -> Iterator[Picture]:
        mix = SceneMix(**{**ONLY, **kinds}, rendered=0.0, light=NO_SPOILING)
        chances = chances_of(photos.stock, 0.0)
        for i in range(photos.scenes):
            scene = compose(photos.stock, SIZE, mix, chances, np.random.default_rng((0, i)))
            yield Picture(*vars(scene).values())

    return make


COMPOSED: dict[str, Maker] = {
    "on other floors, one to five": composed(laid=1.0),
    "on drawn figures": composed(worn=1.0),
    "on floors without a garment": composed(empty=1.0),
}
MAKERS: dict[str, Maker] = {
    "as it is": spoilt(as_it_is),
    "dark and noisy": spoilt(dark),
    "white on white": spoilt(white_on_white),
    "one-sided light": spoilt(one_sided_light),
    "held": spoilt(held),
    "shaken": spoilt(shaken),
    "turned by 20°": turned(20),
    "turned by 45°": turned(45),
    "two beside each other": beside_each_other(2, 1),
    "four": beside_each_other(2, 2),
    "nine": beside_each_other(3, 3),
    **COMPOSED,
}


def print_table(record: Record, console: Console) -> None:
    """For each detector a line for each kind of pictures; under a figure its interval."""
    from rich.table import Table

    for detector in dict.fromkeys(str(row.labels["detector"]) for row in record.rows):
        table = Table("", "objects", title=f"{detector}: {record.notes[0]}", title_justify="left")
        for name in SHOWN:
            table.add_column(name, justify="right")
        for pictures in dict.fromkeys(str(row.labels["pictures"]) for row in record.find(detector=detector)):
            values = {
                str(row.labels["statistic"]): row.values for row in record.find(detector=detector, pictures=pictures)
            }
            cells = [_cell(values[name]) if name in values else "" for name in SHOWN]
            false = values.get("false detections in a picture")
            table.add_row(pictures, f"{values['objects']['value']:.0f}", *cells)
            if false:
                table.add_row(f"  false detections in each: {false['value']:.3g}")
        console.print(table)


def _cell(values: Any) -> str:
    interval = f"\n{values['low']:.2f} to {values['high']:.2f}" if "low" in values else ""
    return f"{values['value']:.3f}{interval}"
