"""What odd pictures cost a garment model: `edgepose bench robustness LABELS`.

Every labelled photo is shown as it is and spoilt in nine ways; the boxes and the labels follow. Degraded photos are no
substitute for other cameras and other garments, but they tell where a model breaks first. Each figure has its interval,
and each spoiling its difference to the photos as they are, paired photo by photo: what a photo costs anyway cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose import Predictor
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.geometry import transform_points
from edgepose.training import bootstrap, metrics
from edgepose.training.coco import Annotation, load_coco, read_frame
from edgepose.training.evaluate import Evaluation, score
from edgepose.training.holders import draw_holders

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["MODELS", "SPOILERS", "print_table", "run"]

MODELS = ("garment-landmarks", "garment-landmarks-fast")
KEYPOINTS = 8
QUICK_PHOTOS = 6
FAR_SIDE = 64  # px of the box's longer side: a shirt 3 m from a 640x480 camera of 60 degrees
AS_IT_IS, LOOSE_BOX = "as it is", "loose box"
UNITS = {"EPE": "px"}  # of the others: fractions
SHOWN = ("PCK@0.05", "mean_error/longer_side")

Frame = NDArray[np.uint8]  # (H, W, 3) BGR
Picture = tuple[Frame, Annotation]
Spoiler = Callable[[Frame, Annotation, np.random.Generator], Picture]


def run(
    labels: str | Path,
    *,
    models: Sequence[str] = MODELS,
    photos: int | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> Record:
    """Evaluate models on the photos, spoilt in each way.

    Args:
        labels: a COCO file of garments with the eight landmarks; `edgepose dataset pair` makes ours.
        models: bundled names or ONNX files.
        photos: only the first so many objects.
        progress: told (done, of how many, what).

    Returns:
        Rows with labels model, pictures and statistic; with ``against`` also how far the statistic is from that on the
        photos as they are. ``low`` and ``high``: 95 % by drawing photos anew.

    Raises:
        InputError: the labels or a photo cannot be read.
    """
    annotations = load_coco(Path(labels), KEYPOINTS)[:photos]
    rows: list[Row] = []
    usual: dict[str, Evaluation] = {}
    for done, (name, spoiler) in enumerate(SPOILERS.items()):
        if progress is not None:
            progress(done, len(SPOILERS), name)
        pictures = spoilt(annotations, spoiler)
        # lengths in units of the true box, also where the model was given another
        true = annotations if name == LOOSE_BOX else [truth for _, truth in pictures]
        for model in models:
            with Predictor(model) as predictor:
                points = [predictor.predict(frame, truth.box[None]).keypoints[0] for frame, truth in pictures]
            found = score(points, true)
            labelled: dict[str, Label] = {"model": Path(model).stem, "pictures": name}
            rows += _figures(labelled, found)
            if name == AS_IT_IS:
                usual[model] = found
            else:
                rows += _losses(labelled, found, usual[model])
    notes = [f"{len(annotations)} objects of {Path(labels).name}; spoilt pictures come from the same photos"]
    return make_record("robustness", rows, notes=notes)


def _figures(labels: dict[str, Label], found: Evaluation) -> list[Row]:
    intervals = found.intervals()
    return [
        Row({**labels, "statistic": name}, UNITS.get(name, "fraction"), {"value": value, **_bounds(*intervals[name])})
        for name, value in found.metrics().items()
    ]


def _losses(labels: dict[str, Label], found: Evaluation, usual: Evaluation) -> list[Row]:
    """Each statistic less that of the photos as they are."""
    images = usual.images()
    differences = bootstrap.compare(metrics.statistics(found.distances), metrics.statistics(usual.distances), images)
    before = usual.metrics()
    return [
        Row(
            {**labels, "statistic": name, "against": AS_IT_IS},
            UNITS.get(name, "fraction"),
            {"value": value - before[name], **_bounds(differences[name].low, differences[name].high)},
        )
        for name, value in found.metrics().items()
    ]


def _bounds(low: float, high: float) -> dict[str, float]:
    """Of an interval; one photo has none."""
    return {"low": low, "high": high} if isfinite(low) and isfinite(high) else {}


def spoilt(annotations: Sequence[Annotation], spoiler: Spoiler) -> list[Picture]:
    """The photos with one spoiler; the same for every model."""
    return [spoiler(read_frame(a), a, np.random.default_rng((0, i))) for i, a in enumerate(annotations)]


# Spoilers -----------------------------------------------------------------------------------------------


def as_it_is(frame: Frame, truth: Annotation, _: np.random.Generator) -> Picture:
    """Nothing is done to it."""
    return frame, truth


def far(frame: Frame, truth: Annotation, _: np.random.Generator) -> Picture:
    """So small that the garment's longer side has FAR_SIDE px."""
    factor = FAR_SIDE / float((truth.box[2:] - truth.box[:2]).max())
    size = (max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor)))
    scale = np.array([size[0] / frame.shape[1], size[1] / frame.shape[0]], np.float32)
    small = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    points = ((truth.keypoints + 0.5) * scale - 0.5).astype(np.float32)
    return small, replace(truth, box=truth.box * np.tile(scale, 2), keypoints=points, size=size)


def dark(frame: Frame, truth: Annotation, rng: np.random.Generator) -> Picture:
    """An eighth of the light, and the noise of a camera that amplifies what is left."""
    photo = frame * 0.125 + rng.normal(0, 3, frame.shape)
    return np.clip(photo * 4, 0, 255).astype(np.uint8), truth


def white_on_white(frame: Frame, truth: Annotation, _: np.random.Generator) -> Picture:
    """All between 200 and 250, nearly without colour."""
    gray = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return (200 + (0.8 * gray + 0.2 * frame) * 50 / 255).astype(np.uint8), truth


def one_sided_light(frame: Frame, truth: Annotation, _: np.random.Generator) -> Picture:
    """A yellow lamp at the left."""
    ramp = np.linspace(1.4, 0.25, frame.shape[1], dtype=np.float32)[None, :, None]
    return np.clip(frame * ramp * np.array([0.55, 0.9, 1.1], np.float32), 0, 255).astype(np.uint8), truth


def turned(degrees: float) -> Spoiler:
    """Turned about the middle of the box, with an upright box around the landmarks."""

    def turn(frame: Frame, truth: Annotation, _: np.random.Generator) -> Picture:
        h, w = frame.shape[:2]
        cx, cy = (float(v) for v in (truth.box[:2] + truth.box[2:]) / 2)
        matrix = cv2.getRotationMatrix2D((cx, cy), degrees, 1.0)
        photo = cv2.warpAffine(frame, matrix, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        points = transform_points(truth.keypoints[None], np.asarray(matrix)[None])[0].astype(np.float32)
        seen = points[truth.visible > 0]
        low, high = seen.min(axis=0), seen.max(axis=0)
        margin = 0.05 * (high - low).max()
        box = np.concatenate([low - margin, high + margin]).astype(np.float32)
        limits = np.array([w - 1, h - 1] * 2, np.float32)
        return np.asarray(photo, np.uint8), replace(truth, box=np.clip(box, 0, limits), keypoints=points)

    return turn


def held(frame: Frame, truth: Annotation, rng: np.random.Generator) -> Picture:
    """A hanger or grippers, drawn."""
    photo = frame.copy()
    draw_holders(photo, truth.keypoints, truth.visible, rng)
    return photo, truth


def shaken(frame: Frame, truth: Annotation, _: np.random.Generator) -> Picture:
    """Motion blur of 5 % of the longer side."""
    length = max(3, round(0.05 * float((truth.box[2:] - truth.box[:2]).max())))
    return np.asarray(cv2.filter2D(frame, -1, np.full((1, length), 1 / length, np.float32)), np.uint8), truth


def loose_box(frame: Frame, truth: Annotation, rng: np.random.Generator) -> Picture:
    """A detector's box: each side up to 10 % off."""
    size = truth.box[2:] - truth.box[:2]
    return frame, replace(truth, box=truth.box + (rng.uniform(-0.1, 0.1, 4) * np.tile(size, 2)).astype(np.float32))


SPOILERS: dict[str, Spoiler] = {
    AS_IT_IS: as_it_is,
    f"far: {FAR_SIDE} px": far,
    "dark and noisy": dark,
    "white on white": white_on_white,
    "one-sided light": one_sided_light,
    "turned by 20°": turned(20),
    "turned by 45°": turned(45),
    "held": held,
    "shaken": shaken,
    LOOSE_BOX: loose_box,
}


def print_table(record: Record, console: Console) -> None:
    """A line for each kind of pictures; a star where a model is worse on it than on the photos, beyond chance."""
    from rich.table import Table

    models = list(dict.fromkeys(row.labels["model"] for row in record.rows))
    table = Table("", title=f"Robustness: {record.notes[0]}", title_justify="left")
    for model in models:
        for statistic in SHOWN:
            table.add_column(f"{model}: {statistic}", justify="right")
    for name in dict.fromkeys(str(row.labels["pictures"]) for row in record.rows):
        cells = []
        for model in models:
            for statistic in SHOWN:
                both = record.find(model=model, pictures=name, statistic=statistic)
                value = next(row.values for row in both if "against" not in row.labels)
                lost = [row.values for row in both if "against" in row.labels]
                star = any("low" in one and (one["low"] > 0 or one["high"] < 0) for one in lost)
                interval = f" ({value['low']:.3f} to {value['high']:.3f})" if "low" in value else ""
                cells.append(f"{value['value']:.3f}{interval}{' *' if star else '  '}")
        table.add_row(name, *cells)
    console.print(table)
    console.print("* differs from the photos as they are beyond chance: 95 %, paired, each line by itself")
