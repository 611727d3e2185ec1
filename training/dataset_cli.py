"""The commands `edgepose dataset …`: view and pair here, check and convert in convert_cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from edgepose.console import console, messages, print_rows, track

__all__ = ["register"]

dataset = typer.Typer(no_args_is_help=True, help="Check, convert, look at and pair data sets.")


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    from edgepose.training.convert_cli import register as register_convert

    register_convert(dataset)
    app.add_typer(dataset, name="dataset")


@dataset.command()
def view(
    source: Annotated[Path, typer.Argument(help="A COCO keypoint file, or a raw DeepFashion2 folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for the pages, or the name of a .png or .jpg file.")
    ],
    images: Annotated[Path | None, typer.Option(help="The folder of the file's pictures, if not beside it.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many objects to show, drawn at random.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other objects.")] = 0,
    category: Annotated[str | None, typer.Option(help="Show this one only.")] = None,
    crops: Annotated[bool, typer.Option("--crops/--frames", help="Crops as a model sees them, or frames.")] = False,
    augmented: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Show what this recipe's trainer sees: varied crops, targets over them."),
    ] = None,
) -> None:
    """Write contact sheets: pages of labelled pictures."""
    from edgepose.training import view as viewer

    trainer = viewer.trainer_view(augmented) if augmented else None
    objects = viewer.load_labelled(source, images=images, category=category)
    name = f"{source.resolve().parent.name}/{source.resolve().name}" + (f", {category}" if category else "")
    pages = viewer.view(
        objects, output, title=name, count=count, seed=seed, crops=crops, augmented=trainer, track=track
    )
    for page in pages:
        console.print(escape(str(page)), soft_wrap=True, highlight=False)


@dataset.command()
def pair(
    photos: Annotated[Path, typer.Argument(help="Your copy of the photos, in any folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for train.json, val.json and links.")],
    labels: Annotated[str, typer.Option(help="Which published labels.")] = "garments_cc0",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Do without photos that are missing, or that the labels do not fit.")
    ] = False,
    allow_resized: Annotated[
        bool, typer.Option("--allow-resized", help="Take photos of another size and scale their labels.")
    ] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled/--no-unlabelled", help="Make a folder of links to the photos without labels.")
    ] = True,
) -> None:
    """Pair published landmark labels with your copy of the photos. No photo is copied.

    Exit code 1, and nothing written, when photos are missing or are not those that were labelled.
    """
    from edgepose.training.pairing import pair as pair_photos

    report = pair_photos(
        photos,
        output,
        label_set=labels,
        allow_missing=allow_missing,
        allow_resized=allow_resized,
        link_unlabelled=unlabelled,
        track=track,
    )
    for name in report.missing:
        messages.print(f"missing: {escape(name)}", soft_wrap=True, highlight=False)
    for path, reason in report.refused:
        messages.print(escape(f"refused: {path}: {reason}"), soft_wrap=True, highlight=False)
    found = [(len(report.encoded_anew), "the same pictures in other bytes"), (len(report.resized), "resized")]
    others = "".join(f", {count} {what}" for count, what in found if count)
    rows = [("photos", f"{report.exact} exactly as labelled{others}")]
    if absent := len(report.missing) + len(report.refused):
        rows.append(("left out", f"{len(report.missing)} missing, {len(report.refused)} refused"))
    rows += [("labels", f"{path}: {count} photos") for path, count in report.written.items()]
    if report.unlabelled is not None:
        apart = f", {report.no_garments} of hats and shoes left out" if report.no_garments else ""
        rows.append(("unlabelled", f"{report.unlabelled}: links to {report.unlabelled_count} photos{apart}"))
    print_rows(rows)
    if absent and not allow_missing:
        messages.print("Nothing was written. --allow-missing does without these photos.", highlight=False)
        raise typer.Exit(1)
