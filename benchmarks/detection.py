"""What odd pictures cost a garment detector: python benchmarks/detection.py labels.json [DETECTOR ...]

Labelled photos of one garment each are shown as they are, spoilt, several in one picture, and cut out: on other floors,
and on drawn figures. Composed pictures are no substitute for other cameras and rooms, but they tell where a detector
breaks first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from results_file import save
from rich.table import Table
from robustness import as_it_is, dark, held, one_sided_light, shaken, white_on_white

from edgepose.console import console, track
from edgepose.detector import Detector
from edgepose.geometry import transform_points
from edgepose.training.coco import Annotation, read_frame
from edgepose.training.detection.dataset import chances_of
from edgepose.training.detection.garments import Stock, load_garments, make_stock
from edgepose.training.detection.metrics import ImageResult, evaluate_detections
from edgepose.training.detection.scenes import SceneMix, compose
from edgepose.training.transforms import Augmentation

DETECTORS = ("garment-detector",)
SCENES = 120  # composed pictures of a kind
SIZE = 512  # px of their sides
LEAST_SCORE = 0.01
ONLY = {"photo": 0.0, "mosaic": 0.0, "laid": 0.0, "worn": 0.0, "empty": 0.0}
NO_SPOILING = Augmentation(
    color=0.0, invert_light=0.0, gray=0.0, low_contrast=0.0, far=0.0, blur=0.0, noise=0.0, jpeg=0.0, shadow=0.0
)


class Picture(NamedTuple):
    """A frame (H, W, 3) uint8 BGR, its boxes (G, 4) px and labels (G,)."""

    frame: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


Maker = Callable[[list[Annotation], list[int], Stock], Iterator[Picture]]


def spoilt(spoiler: Callable[..., tuple[np.ndarray, Annotation]]) -> Maker:
    """The photos with one of `robustness`'s spoilers that leave the box where it is."""

    def make(annotations: list[Annotation], labels: list[int], _: Stock) -> Iterator[Picture]:
        for i, (annotation, label) in enumerate(zip(annotations, labels, strict=True)):
            frame, truth = spoiler(read_frame(annotation), annotation, np.random.default_rng((0, i)))
            yield Picture(frame, truth.box[None], np.array([label]))

    return make


def turned(degrees: float) -> Maker:
    """Turned about the picture's middle; boxes around the turned silhouettes, where there is one."""

    def make(annotations: list[Annotation], labels: list[int], stock: Stock) -> Iterator[Picture]:
        for photo in stock.photos:
            if photo.mask is None:
                continue
            h, w = photo.image.shape[:2]
            matrix = cv2.getRotationMatrix2D((w / 2, h / 2), degrees, 0.8)
            frame = cv2.warpAffine(photo.image, matrix, (w, h), borderMode=cv2.BORDER_REFLECT_101)
            y, x = np.nonzero(photo.mask > 127)
            spots = transform_points(np.stack([x, y], -1)[None].astype(np.float64), matrix[None])[0]
            box = np.concatenate([spots.min(0), spots.max(0) + 1])
            yield Picture(frame, np.clip(box, 0, (w, h, w, h))[None], np.array([photo.label]))

    return make


def beside_each_other(columns: int, rows: int) -> Maker:
    """Photos in a grid, as many pictures as there are photos."""

    def make(annotations: list[Annotation], labels: list[int], stock: Stock) -> Iterator[Picture]:
        cell = np.array([240, 320])  # (w, h) px
        for i in range(len(stock.photos)):
            frame = np.full((rows * 320, columns * 240, 3), 114, np.uint8)
            boxes, kinds = [], []
            for place in range(columns * rows):
                photo = stock.photos[(i + 7 * place) % len(stock.photos)]
                at = np.array([place % columns, place // columns]) * cell
                scale = cell / photo.image.shape[1::-1]
                frame[at[1] : at[1] + 320, at[0] : at[0] + 240] = cv2.resize(photo.image, (240, 320))
                boxes.append(photo.box * np.tile(scale, 2) + np.tile(at, 2))
                kinds.append(photo.label)
            yield Picture(frame, np.array(boxes), np.array(kinds))

    return make


def composed(**kinds: float) -> Maker:
    """Scenes of `edgepose.training.detection.scenes`, of these photos' garments only."""

    def make(annotations: list[Annotation], labels: list[int], stock: Stock) -> Iterator[Picture]:
        mix = SceneMix(**{**ONLY, **kinds}, rendered=0.0, light=NO_SPOILING)
        chances = chances_of(stock, 0.0)
        for i in range(SCENES):
            yield Picture(*vars(compose(stock, SIZE, mix, chances, np.random.default_rng((0, i)))).values())

    return make


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
    "on other floors, one to five": composed(laid=1.0),
    "on drawn figures": composed(worn=1.0),
    "on floors without a garment": composed(empty=1.0),
}


def main() -> None:
    path, *detectors = sys.argv[1:]
    detectors = detectors or list(DETECTORS)
    annotations, labels = load_garments(Path(path))
    stock = make_stock(annotations, labels, renders=0)
    cut_out = replace(stock, photos=[photo for photo in stock.photos if photo.mask is not None])
    figures: dict[str, dict[str, dict[str, float]]] = {Path(name).stem: {} for name in detectors}
    for name, maker in track(MAKERS.items(), len(MAKERS), "composing"):
        pictures = list(maker(annotations, labels, cut_out if name.startswith("on ") else stock))
        for detector in detectors:
            figures[Path(detector).stem][name] = measured(detector, pictures)
    _print(figures, path)
    console.print(save("detection", figures, unit="fractions"), soft_wrap=True)


def measured(detector: str, pictures: list[Picture]) -> dict[str, float]:
    """Figures of a detector as its spec has it, and mAP where categories do not suppress each other."""
    results: dict[bool, list[ImageResult]] = {}
    for apart in (True, False):
        with Detector(detector, min_score=LEAST_SCORE, class_agnostic=False if apart else None) as model:
            results[apart] = [
                ImageResult(found.boxes, found.scores, found.labels, picture.boxes, np.maximum(picture.labels, -1))
                for picture in pictures
                for found in [model.detect(picture.frame)]
            ]
            score = model.spec.min_score
    if not any(len(picture.labels) for picture in pictures):
        false = sum(int((result.scores >= score).sum()) for result in results[False])
        return {"objects": 0, "false detections in a picture": false / len(pictures)}
    found = evaluate_detections(results[False], score=score)
    return {
        "objects": found.all_objects,
        "mAP@0.5": found.mean_ap,
        "mAP@0.5, categories apart": evaluate_detections(results[True]).mean_ap,
        "AP@0.5 any category": found.agnostic_ap,
        "precision": found.precision,
        "recall": found.recall,
        "category accuracy": found.type_accuracy,
    }


def _print(figures: dict[str, dict[str, dict[str, float]]], path: str) -> None:
    for detector, kinds in figures.items():
        table = Table(title=f"{detector} on pictures of {Path(path).name}", title_justify="left")
        table.add_column("")
        for metric in next(iter(kinds.values())):
            table.add_column(metric, justify="right")
        for name, values in kinds.items():
            cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in values.values()]
            if values["objects"] == 0:
                cells = ["0", *[""] * (len(table.columns) - 3), f"false in a picture: {cells[1]}"]
            table.add_row(name, *cells)
        table.width = console.measure(table, options=console.options.update(width=10_000)).maximum
        console.print(table, crop=False, soft_wrap=True)


if __name__ == "__main__":
    main()
