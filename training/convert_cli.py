"""The commands `edgepose dataset check` and `edgepose dataset convert`."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgepose.console import console, messages

if TYPE_CHECKING:
    from edgepose.training.checks_report import CheckReport

__all__ = ["register"]

WORKERS = min(8, os.cpu_count() or 1)
COLUMNS = 4  # of landmarks in the table of labelled fractions

convert = typer.Typer(no_args_is_help=True, help="Write COCO keypoint files from a data set's own format.")
Workers = Annotated[int, typer.Option(min=1, help="Processes that read files.")]


def register(dataset: typer.Typer) -> None:
    """Add the commands to the group `dataset`."""
    dataset.command()(check)
    convert.command()(deepfashion2)
    dataset.add_typer(convert, name="convert")


class Split(str, Enum):
    """The parts of DeepFashion2 that have landmarks."""

    train = "train"
    validation = "validation"
    all = "all"


def deepfashion2(
    raw: Annotated[Path, typer.Argument(help="The folder with train/ and validation/, each with annos/ and image/.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write train/ and validation/ to; RAW itself will do.")
    ],
    split: Annotated[Split, typer.Option(help="Which part.")] = Split.all,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken records out and list them, instead of stopping.")
    ] = False,
    workers: Workers = WORKERS,
) -> None:
    """Write MMPose's 13 COCO files of each split. A run that was stopped goes on when called again."""
    from edgepose.training.deepfashion2 import SPLITS, annotation_file
    from edgepose.training.deepfashion2_convert import convert_deepfashion2
    from edgepose.training.fashion import DEEPFASHION2

    counts: dict[str, dict[str, int]] = {}
    left_out = []
    for name in SPLITS if split is Split.all else (split.value,):
        done = convert_deepfashion2(raw, output, name, skip_broken=skip_broken, workers=workers)
        counts[name] = done.objects
        left_out += done.left_out
        resumed = f", {done.resumed} of them by an earlier run" if done.resumed else ""
        bare = f"; {done.unlabelled} images have no annotation file" if done.unlabelled else ""
        messages.print(f"{name}: {done.images} annotation files{resumed}{bare}", highlight=False)
    table = Table("objects of")
    for name in counts:
        table.add_column(name, justify="right")
    for category in DEEPFASHION2:
        table.add_row(category, *(str(objects[category]) for objects in counts.values()))
    table.add_section()
    table.add_row("all", *(str(sum(objects.values())) for objects in counts.values()))
    console.print(table)
    for name in counts:
        console.print(escape(str(annotation_file(output, name, "<category>"))), soft_wrap=True, highlight=False)
    for text in left_out:
        messages.print(escape(f"left out: {text}"), soft_wrap=True, highlight=False)
    if output.resolve() != raw.resolve():
        text = f"The images stay in {raw}: give their folder (train/image) along, or link it into {output}."
        messages.print(escape(text), soft_wrap=True, highlight=False)


def check(
    annotations: Annotated[Path, typer.Argument(help="A COCO keypoint file.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; else beside the file, images/, image/ and ../img/.")
    ] = None,
    keypoints: Annotated[int | None, typer.Option(min=1, help="How many keypoints each record must have.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Check that the file fits this recipe.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another file that must not share images with this one.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode each image.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Findings shown of each kind; 0: all.")] = 5,
    workers: Workers = WORKERS,
) -> None:
    """Find what is wrong with a data set before training does. Exit code 1 when there are errors."""
    from edgepose.errors import InputError
    from edgepose.training.checks import check_annotations

    landmarks = None
    if recipe is not None:
        from edgepose.training.recipes import find

        found = find(recipe)
        if keypoints not in (None, found.num_outputs):
            raise InputError(f"--keypoints {keypoints}, but {recipe} has {found.num_outputs}; leave one of them out")
        keypoints, landmarks = found.num_outputs, found.landmarks
    report = check_annotations(
        annotations,
        images=images,
        keypoints=keypoints,
        landmarks=landmarks,
        against=against,
        decode=decode,
        workers=workers,
        limit=limit,
    )
    _print_report(report)
    if report.errors:
        raise typer.Exit(1)


def _print_report(report: CheckReport) -> None:
    for finding in report.findings:
        color = "red" if finding.level == "error" else "yellow"
        image = f" ({finding.image})" if finding.image else ""
        where = escape(f"{finding.file}: {finding.record}{image}: {finding.message}")
        console.print(f"[{color}]{finding.level}[/] {where}", soft_wrap=True, highlight=False)
    for (level, kind), count in report.counts.items():
        if report.limit and count > report.limit:
            console.print(f"… {count - report.limit} more: {level}, {kind}; --limit 0 shows all", highlight=False)
    table = Table("category", title=f"{escape(report.path.name)}: {report.images} images", title_justify="left")
    for column in ("objects", "landmarks an object", "longer side of the box, px"):
        table.add_column(column, justify="right")
    for category, count in report.objects.items():
        low, middle, high = report.box_sides[category]
        labelled = sum(report.landmarks[category].values())
        table.add_row(escape(category), str(count), f"{labelled:.1f}", f"{low:.0f} … {middle:.0f} … {high:.0f}")
    console.print(table)
    for category, fractions in report.landmarks.items():
        table = Table.grid(padding=(0, 2))
        cells = [f"{escape(name)} {fraction:.0%}" for name, fraction in fractions.items()]
        for begin in range(0, len(cells), COLUMNS):
            table.add_row(*cells[begin : begin + COLUMNS])
        console.print(f"{escape(category)}, labelled:", highlight=False)
        console.print(table)
    kinds = ", ".join(f"{count} {kind}" for (_, kind), count in report.counts.most_common())
    text = f"{report.errors} errors, {report.warnings} warnings{': ' + kinds if kinds else ''}"
    console.print(text, soft_wrap=True, highlight=False)
