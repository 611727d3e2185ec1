"""The command `edgepose evaluate-detector`."""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgepose.console import console, track
from edgepose.errors import InputError

if TYPE_CHECKING:
    from edgepose.detector import Detector
    from edgepose.detector_spec import DetectorSpec
    from edgepose.training.detection.labels import LabelledImage
    from edgepose.training.detection.metrics import DetectionFigures, ImageResult

__all__ = ["register"]

LEAST_SCORE = 0.01  # detections below it hardly move the area under the curve


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="evaluate-detector")(evaluate_detector)


def evaluate_detector(
    detector: Annotated[str, typer.Argument(help="Bundled name, or path of an ONNX file or an engine.")],
    annotations: Annotated[Path, typer.Argument(help="A COCO file; its objects' garment_type goes before category.")],
    *,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that image names are relative to. (default: the file's, and those near it)"),
    ] = None,
    overlap: Annotated[float, typer.Option(min=0.05, max=1.0, help="IoU from which a box counts as found.")] = 0.5,
    score: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="For precision and recall. (default: the spec's min_score)")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON to this file.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="JSON file that says what DETECTOR expects. (default: the model's own spec)")
    ] = None,
) -> None:
    """Score a detector on labelled images: average precision of each category and of any, precision, recall."""
    from edgepose.detector import Detector
    from edgepose.training.detection.labels import load_labelled_boxes
    from edgepose.training.detection.metrics import evaluate_detections
    from edgepose.training.evaluate_cli import PACKAGES, file_facts, version_of

    with Detector(detector, spec=spec, min_score=LEAST_SCORE) as model:
        own, engine = model.spec, model.engine_name
        labelled, unknown = load_labelled_boxes(annotations, own.category_names, images=images)
        results = _detected(model, labelled)
    score = own.min_score if score is None else score
    figures = evaluate_detections(results, overlap=overlap, score=score)
    deployed = figures.mean_ap
    if own.class_agnostic:
        with Detector(detector, spec=spec, min_score=LEAST_SCORE, class_agnostic=False) as model:
            apart = evaluate_detections(_detected(model, labelled), overlap=overlap)
        figures = replace(figures, mean_ap=apart.mean_ap, ap=apart.ap)
    if unknown:
        text = f"{own.name} has no category {', '.join(unknown)}: such objects count without category only"
        console.print(escape(text), soft_wrap=True, highlight=False)
    _print(figures, own, overlap, score, deployed, f"{own.name} on {annotations.name}, {engine}")
    if json_file is not None:
        from edgepose.models import find_detector

        facts = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "detector": {**file_facts(find_detector(detector)), "engine": engine},
            "data": file_facts(annotations),
            "options": {"overlap": overlap, "score": score, "least_score": LEAST_SCORE},
            "versions": {**{name: version_of(name) for name in PACKAGES}, "python": platform.python_version()},
        }
        _write(json_file, {**_as_json(figures, own, deployed), **facts})


def _detected(model: Detector, labelled: Sequence[LabelledImage]) -> list[ImageResult]:
    from edgepose.media import read_photo
    from edgepose.training.detection.metrics import ImageResult

    results = []
    for image in track(labelled, len(labelled), "detecting"):
        found = model.detect(read_photo(image.path))
        results.append(ImageResult(found.boxes, found.scores, found.labels, image.boxes, image.labels))
    return results


def _print(
    figures: DetectionFigures, spec: DetectorSpec, overlap: float, score: float, deployed: float, title: str
) -> None:
    table = Table(title=f"{title}: {figures.images} images", title_justify="left")
    table.add_column("category")
    table.add_column("objects", justify="right")
    table.add_column(f"AP@{overlap:g}", justify="right")
    for number, value in figures.ap.items():
        table.add_row(spec.category_names[number], str(figures.objects[number]), f"{value:.3f}")
    table.add_section()
    table.add_row("mean", str(sum(figures.objects.values())), _shown(figures.mean_ap))
    table.add_row("any category", str(figures.all_objects), f"{figures.agnostic_ap:.3f}")
    table.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.print(table, crop=False, soft_wrap=True, highlight=False)
    text = (
        f"score from {score:g} on: precision {_shown(figures.precision)}, recall {figures.recall:.3f}, "
        f"category right in {_shown(figures.type_accuracy)} of what is found"
    )
    console.print(text, soft_wrap=True, highlight=False)
    if spec.class_agnostic:
        text = (
            "AP of the categories: boxes of different ones left beside each other, as is usual for it; mean AP of what "
            f"the detector gives, where they suppress each other: {_shown(deployed)}"
        )
        console.print(text, soft_wrap=True, highlight=False)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _as_json(figures: DetectionFigures, spec: DetectorSpec, deployed: float) -> dict[str, Any]:
    names = spec.category_names
    return {
        "images": figures.images,
        "objects": figures.all_objects,
        "mean_ap": _number(figures.mean_ap),
        "mean_ap_as_deployed": _number(deployed),
        "ap": {names[number]: value for number, value in figures.ap.items()},
        "objects_by_category": {names[number]: count for number, count in figures.objects.items()},
        "ap_any_category": figures.agnostic_ap,
        "precision": _number(figures.precision),
        "recall": figures.recall,
        "category_accuracy": _number(figures.type_accuracy),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(path: Path, document: dict[str, Any]) -> None:
    from edgepose.files import write_atomically

    try:
        write_atomically(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None
    console.print(f"  {escape(str(path))}", soft_wrap=True, highlight=False)
