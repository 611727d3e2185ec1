"""What odd pictures cost a garment model: python benchmarks/robustness.py labels.json [MODEL ...]

Every labelled photo is shown as it is and spoilt in nine ways; the boxes and the labels follow. Degraded photos are no
substitute for other cameras and other garments, but they tell where a model breaks first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from results_file import save
from rich.table import Table

from edgepose import Predictor
from edgepose.console import console, track
from edgepose.geometry import transform_points
from edgepose.training.coco import Annotation, load_coco, read_frame
from edgepose.training.evaluate import score
from edgepose.training.holders import draw_holders

MODELS = ("garment-landmarks", "garment-landmarks-fast")
FAR_SIDE = 64  # px of the box's longer side: a shirt 3 m from a 640x480 camera of 60 degrees

Picture = tuple[np.ndarray, Annotation]
Spoiler = Callable[[np.ndarray, Annotation, np.random.Generator], Picture]


def as_it_is(frame: np.ndarray, truth: Annotation, _: np.random.Generator) -> Picture:
    return frame, truth


def far(frame: np.ndarray, truth: Annotation, _: np.random.Generator) -> Picture:
    """So small that the garment's longer side has FAR_SIDE px."""
    factor = FAR_SIDE / float((truth.box[2:] - truth.box[:2]).max())
    size = (max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor)))
    scale = np.float32([size[0] / frame.shape[1], size[1] / frame.shape[0]])
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    points = ((truth.keypoints + 0.5) * scale - 0.5).astype(np.float32)
    return small, replace(truth, box=truth.box * np.tile(scale, 2), keypoints=points, size=size)


def dark(frame: np.ndarray, truth: Annotation, rng: np.random.Generator) -> Picture:
    """An eighth of the light, and the noise of a camera that amplifies what is left."""
    photo = frame * 0.125 + rng.normal(0, 3, frame.shape)
    return np.clip(photo * 4, 0, 255).astype(np.uint8), truth


def white_on_white(frame: np.ndarray, truth: Annotation, _: np.random.Generator) -> Picture:
    """All between 200 and 250, nearly without colour."""
    gray = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return (200 + (0.8 * gray + 0.2 * frame) * 50 / 255).astype(np.uint8), truth


def one_sided_light(frame: np.ndarray, truth: Annotation, _: np.random.Generator) -> Picture:
    """A yellow lamp at the left."""
    ramp = np.linspace(1.4, 0.25, frame.shape[1], dtype=np.float32)[None, :, None]
    return np.clip(frame * ramp * np.float32([0.55, 0.9, 1.1]), 0, 255).astype(np.uint8), truth


def turned(degrees: float) -> Spoiler:
    """Turned about the middle of the box, with an upright box around the landmarks."""

    def turn(frame: np.ndarray, truth: Annotation, _: np.random.Generator) -> Picture:
        h, w = frame.shape[:2]
        cx, cy = (float(v) for v in (truth.box[:2] + truth.box[2:]) / 2)
        matrix = cv2.getRotationMatrix2D((cx, cy), degrees, 1.0)
        photo = cv2.warpAffine(frame, matrix, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        points = transform_points(truth.keypoints[None], matrix[None])[0].astype(np.float32)
        seen = points[truth.visible > 0]
        low, high = seen.min(axis=0), seen.max(axis=0)
        margin = 0.05 * (high - low).max()
        box = np.concatenate([low - margin, high + margin]).astype(np.float32)
        return photo, replace(truth, box=np.clip(box, 0, np.float32([w - 1, h - 1] * 2)), keypoints=points)

    return turn


def held(frame: np.ndarray, truth: Annotation, rng: np.random.Generator) -> Picture:
    """A hanger or grippers, drawn."""
    photo = frame.copy()
    draw_holders(photo, truth.keypoints, truth.visible, rng)
    return photo, truth


def shaken(frame: np.ndarray, truth: Annotation, _: np.random.Generator) -> Picture:
    """Motion blur of 5 % of the longer side."""
    length = max(3, round(0.05 * float((truth.box[2:] - truth.box[:2]).max())))
    return cv2.filter2D(frame, -1, np.full((1, length), 1 / length, np.float32)), truth


def loose_box(frame: np.ndarray, truth: Annotation, rng: np.random.Generator) -> Picture:
    """A detector's box: each side up to 10 % off."""
    size = truth.box[2:] - truth.box[:2]
    return frame, replace(truth, box=truth.box + (rng.uniform(-0.1, 0.1, 4) * np.tile(size, 2)).astype(np.float32))


SPOILERS: dict[str, Spoiler] = {
    "as it is": as_it_is,
    f"far: {FAR_SIDE} px": far,
    "dark and noisy": dark,
    "white on white": white_on_white,
    "one-sided light": one_sided_light,
    "turned by 20°": turned(20),
    "turned by 45°": turned(45),
    "held": held,
    "shaken": shaken,
    "loose box": loose_box,
}


def spoilt(annotations: list[Annotation], spoiler: Spoiler) -> list[Picture]:
    """The photos with one spoiler; the same for every model."""
    return [spoiler(read_frame(a), a, np.random.default_rng((0, i))) for i, a in enumerate(annotations)]


def main() -> None:
    labels, *models = sys.argv[1:]
    annotations = load_coco(Path(labels), 8)
    models = models or list(MODELS)
    figures: dict[str, dict[str, dict[str, float]]] = {Path(model).stem: {} for model in models}
    for name, spoiler in track(SPOILERS.items(), len(SPOILERS), "spoiling photos"):
        pictures = spoilt(annotations, spoiler)
        for model in models:
            with Predictor(model) as predictor:
                points = [predictor.predict(frame, truth.box[None]).keypoints[0] for frame, truth in pictures]
            # lengths in units of the true box, also where the model was given another
            true = annotations if name == "loose box" else [truth for _, truth in pictures]
            figures[Path(model).stem][name] = score(points, true).metrics()
    table = Table(title=f"{len(annotations)} objects of {Path(labels).name}", title_justify="left")
    table.add_column("")
    for model in figures:
        table.add_column(f"{model}: PCK@0.05", justify="right")
        table.add_column("mean error", justify="right")
    for name in SPOILERS:
        cells = [
            f"{values[name][metric]:.3f}"
            for values in figures.values()
            for metric in ("PCK@0.05", "mean_error/longer_side")
        ]
        table.add_row(name, *cells)
    console.print(table)
    console.print(save("robustness", figures, unit="fractions"), soft_wrap=True)


if __name__ == "__main__":
    main()
