"""The command `edgepose evaluate`."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import shlex
from dataclasses import replace
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgepose.console import console, track
from edgepose.errors import InputError

if TYPE_CHECKING:
    from edgepose.spec import ModelSpec
    from edgepose.training.coco import Annotation
    from edgepose.training.evaluate import Evaluation

__all__ = ["file_facts", "load_labels", "register", "version_of"]

MANY_LANDMARKS = 60  # beyond them the terminal gets categories only
PACKAGES = ("edgepose", "numpy", "opencv-python-headless", "onnxruntime")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


class Boxes(str, Enum):
    """Where the model looks."""

    truth = "truth"
    whole = "whole"


class Split(str, Enum):
    """What to tell apart."""

    category = "category"


def evaluate(
    model: Annotated[str, typer.Argument(help="Bundled name, or path of an ONNX file or an engine.")],
    annotations: Annotated[Path, typer.Argument(help="A COCO keypoint file.")],
    *,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that image names are relative to. (default: the file's, and those near it)"),
    ] = None,
    flip_test: Annotated[bool, typer.Option("--flip-test", help="Average with the mirrored crop.")] = False,
    boxes: Annotated[
        Boxes, typer.Option(help="Look in the labelled boxes, or at the whole image, as without a detector.")
    ] = Boxes.truth,
    thresholds: Annotated[str, typer.Option(help="Of PCK, fractions of the box's longer side.")] = "0.05,0.1,0.2",
    split: Annotated[
        Split | None, typer.Option(help="Print the landmarks of each category too. (default: of all objects only)")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Another model with the same landmarks: is the difference beyond chance?")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for metrics.json, errors.csv, pck_curve.png, error_by_keypoint.png, worst_16.png.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON to this file.")] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="JSON file that says what MODEL expects. (default: the model's own spec)"),
    ] = None,
) -> None:
    """Score a model on labelled images: PCK, AUC, EPE and errors, with 95 % intervals from the bootstrap over images.

    Labels marked as ambiguous, and notes, are ignored: every labelled landmark counts.
    """
    from edgepose.training import plots, report

    levels = _thresholds(thresholds)
    if output is not None:
        plots.check_matplotlib()
        _make_folder(output)
    evaluation, own, engine = _run(model, annotations, images, boxes, flip_test=flip_test, spec=spec)
    summary = report.summarize(evaluation, own, thresholds=levels)
    differences = None
    if compare is not None:
        other, *_ = _run(compare, annotations, images, boxes, flip_test=flip_test, like=own)
        differences = report.compare(evaluation, other, thresholds=levels)
    title, every = f"{own.name} on {annotations.name}", summary.overall
    counts = f"{every.landmarks} landmarks of {every.objects} objects in {every.images} images"
    console.print(f"[bold]{escape(title)}[/]: {counts}, {engine}", soft_wrap=True, highlight=False)
    for table in report.tables(summary, by_keypoint=len(every.keypoints) <= MANY_LANDMARKS, split=split is not None):
        _print(table)
    if differences is not None:
        _print(report.difference_table(differences, *_short(model, compare or "")))
    if output is None and json_file is None:
        return
    facts = {
        "command": _command(model, annotations, images=images, flip_test=flip_test, boxes=boxes, thresholds=thresholds,
                            split=split, compare=compare, output=output, json=json_file, spec=spec),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": {**file_facts(_model_path(model)), "engine": engine},
        **({"compared_with": file_facts(_model_path(compare))} if compare else {}),
        "data": file_facts(annotations),
        "options": {"flip_test": flip_test, "boxes": boxes.value, "thresholds": list(levels)},
        "versions": {**{name: version_of(name) for name in PACKAGES}, "python": platform.python_version()},
    }  # fmt: skip
    document = report.to_json(summary, own, facts=facts, differences=differences)
    _write(document, evaluation, own, output, json_file, title=title)


def _run(
    model: str,
    path: Path,
    images: Path | None,
    boxes: Boxes,
    *,
    flip_test: bool,
    spec: Path | None = None,
    like: ModelSpec | None = None,
) -> tuple[Evaluation, ModelSpec, str]:
    """Evaluation, spec and engine of a model, whose landmarks must be those of ``like``."""
    from edgepose.predictor import Predictor
    from edgepose.training.evaluate import evaluate_predictor

    with Predictor(model, flip_test=flip_test, spec=spec) as predictor:
        if like is not None and like.keypoint_names != predictor.spec.keypoint_names:
            raise InputError(
                f"{predictor.spec.name} has other landmarks than {like.name}: they cannot be compared one by one"
            )
        labelled = load_labels(path, images, predictor.spec)
        areas = None
        if boxes is Boxes.whole:
            import numpy as np

            areas = [np.array([0, 0, a.size[0] - 1, a.size[1] - 1], np.float32) for a in labelled]
        evaluation = evaluate_predictor(predictor, labelled, boxes=areas, track=track)
        return evaluation, predictor.spec, predictor.engine_name


def load_labels(path: Path, images: Path | None, spec: ModelSpec) -> list[Annotation]:
    """The objects that the model is for, each with its own category's landmarks.

    DeepFashion2's files have all 294 landmarks for every object, those of the other categories unlabelled.
    """
    from edgepose.training.coco import load_coco
    from edgepose.training.fashion import DEEPFASHION2, DEEPFASHION2_CHANNELS

    if spec.categories:
        labelled = load_coco(path, spec.num_keypoints, images=images)
        return [_own_landmarks(annotation, spec) for annotation in labelled]
    if spec.category in DEEPFASHION2 and _landmarks_in(path) == DEEPFASHION2_CHANNELS != spec.num_keypoints:
        channels = DEEPFASHION2[spec.category].channels
        return load_coco(path, DEEPFASHION2_CHANNELS, images=images, channels=channels, category=spec.category)
    return load_coco(path, spec.num_keypoints, images=images)


def _own_landmarks(annotation: Annotation, spec: ModelSpec) -> Annotation:
    """Without the channels of other categories."""
    if annotation.category not in spec.categories:
        raise InputError(
            f"{annotation.image} shows {annotation.category!r}; {spec.name} knows {', '.join(spec.categories)}"
        )
    begin, end = spec.categories[annotation.category]
    points, visible = annotation.keypoints[begin:end], annotation.visible[begin:end]
    return replace(annotation, keypoints=points, visible=visible, first_channel=begin)


def _landmarks_in(path: Path) -> int | None:
    """How many landmarks the first object of a COCO file has; None if it is none: load_coco says what is wrong."""
    try:
        return len(json.loads(path.read_text(encoding="utf-8"))["annotations"][0]["keypoints"]) // 3
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _thresholds(text: str) -> tuple[float, ...]:
    from edgepose.training.report import check_thresholds

    try:
        return check_thresholds([float(part) for part in text.split(",")])
    except ValueError:
        raise InputError(f"--thresholds takes different numbers above 0, as 0.05,0.1,0.2, got {text!r}") from None


def _print(table: Table) -> None:
    """Whole, however narrow the terminal is: a cut figure is worth nothing."""
    table.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.print(table, crop=False, soft_wrap=True, highlight=False)


# Facts of a report --------------------------------------------------------------------------------


def _model_path(model: str) -> Path:
    from edgepose.models import find_model

    return find_model(model)


def _short(first: str, second: str) -> tuple[str, str]:
    """The models' names without folders, where that tells them apart."""
    a, b = Path(first).stem, Path(second).stem
    return (first, second) if a == b else (a, b)


def file_facts(path: Path) -> dict[str, Any]:
    """A file's name and SHA-256, for a report."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return {"file": str(path), "sha256": digest.hexdigest()}


def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _command(model: str, annotations: Path, **options: Any) -> str:
    """The command line that makes the report again."""
    words = ["edgepose", "evaluate", model, str(annotations)]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, value.value if isinstance(value, Enum) else str(value)]
    return shlex.join(words)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}") from None


def _write(
    document: dict[str, Any],
    evaluation: Evaluation,
    spec: ModelSpec,
    output: Path | None,
    json_file: Path | None,
    *,
    title: str,
) -> None:
    from edgepose.files import write_all_atomically
    from edgepose.training import plots, report

    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    files: dict[Path, bytes] = {}
    if json_file is not None:
        files[json_file] = text
    if output is not None:
        files[output / "metrics.json"] = text
        files[output / "errors.csv"] = report.errors_csv(evaluation, spec).encode()
        files[output / "pck_curve.png"] = plots.pck_curve(evaluation, spec, title=f"{title}: PCK")
        files[output / "error_by_keypoint.png"] = plots.error_by_keypoint(
            evaluation, spec, title=f"{title}: error by landmark"
        )
        files[output / "worst_16.png"] = plots.worst_crops(
            evaluation, spec, title=f"{title}: the worst of {len(evaluation.annotations)} objects"
        )
    try:
        write_all_atomically(files)
    except OSError as error:
        raise InputError(f"the report cannot be written: {error}") from None
    for path in files:
        console.print(f"  {escape(str(path))}", soft_wrap=True, highlight=False)
