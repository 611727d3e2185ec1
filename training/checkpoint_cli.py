"""Commands for weights: export, import-checkpoint. PyTorch is imported inside them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgepose.console import console, messages, print_rows

if TYPE_CHECKING:
    from edgepose.training.import_checkpoint import ImportReport

__all__ = ["register"]

MAX_DROPPED = 12  # lines


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command("import-checkpoint")(import_checkpoint)


class Precision(str, Enum):
    """Precision of an exported model."""

    fp32 = "fp32"
    fp16 = "fp16"


def export(
    recipe: Annotated[
        str, typer.Argument(help="A name of `edgepose recipes`, for instance deepfashion/full/resnet50.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: a .pth file with MMPose's names.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Untrained: for measuring speed.")] = False,
    precision: Annotated[Precision, typer.Option(help="Of weights, input and output.")] = Precision.fp32,
    declared: Annotated[
        bool, typer.Option("--declared", help="hrnet_w48_udp: use the UDP codec that MMPose's configuration declares.")
    ] = False,
) -> None:
    """Write a recipe's network as ONNX, with its spec inside, checked against PyTorch. Needs the extra `train`."""
    from edgepose.training.export import export_recipe

    report = export_recipe(
        recipe,
        output,
        checkpoint=checkpoint,
        random_weights=random_weights,
        precision=precision.value,
        declared=declared,
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in vars(report).items():
        table.add_row(key.replace("_", " "), escape(str(value)))
    console.print(table)


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth file of MMPose 0.x or 1.x, or of `edgepose train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    recipe: Annotated[
        str | None, typer.Option(help="The recipe that it was trained with, a name of `edgepose recipes`.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of weights, input and output.")] = Precision.fp32,
    declared: Annotated[
        bool, typer.Option("--declared", help="hrnet_w48_udp: use the UDP codec that MMPose's configuration declares.")
    ] = False,
    photos: Annotated[
        Path | None, typer.Option(help="Compare on these photos, which one garment fills each. (default: drawn shapes)")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Compare on the boxes of this COCO file.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the photos of --labels.")] = None,
) -> None:
    """Turn a checkpoint into an ONNX file, and report how far its landmarks are from PyTorch's.

    No code in the checkpoint is run. Names and shapes must fit the recipe, and the exported network must find the same
    landmarks; else nothing is written. Needs the extra `train`.
    """
    from edgepose.training.import_checkpoint import import_checkpoint as run

    with messages.status("reading, exporting and comparing"):
        report = run(
            checkpoint,
            output,
            recipe=recipe,
            precision=precision.value,
            declared=declared,
            photos=photos,
            labels=labels,
            images=images,
        )
    print_rows(_rows(report))


def _rows(report: ImportReport) -> list[tuple[str, str]]:
    """What an import did, for the terminal."""
    info, export, parity = report.checkpoint, report.export, report.parity
    if report.is_published:
        origin = f"the file that OpenMMLab published for {report.recipe}"
    elif report.published is None:
        origin = f"no file is published for {report.recipe}"
    else:
        origin = f"not the published file, whose hash begins with {report.published}"
    ignored = len(report.loaded.ignored)
    rows = [
        ("checkpoint", f"{info.path}, {info.bytes / 1e6:.1f} MB, {info.container} format"),
        ("SHA-256", f"{report.sha256[:16]}…, {origin}"),
        ("weights", f"{len(report.loaded.loaded)} tensors loaded" + (f", {ignored} ignored" if ignored else "")),
    ]
    if report.loaded.missing:
        rows.append(("", f"{len(report.loaded.missing)} batch counters are not in the file; inference uses none"))
    if info.averaged:
        rows.append(("", "they are averages: MMEngine's EMAHook keeps the last ones under ema_state_dict"))
    rows += [(name.replace("_", " "), value) for name, value in info.meta.items()]
    if info.unread:
        rows.append(("not read", ", ".join(info.unread)))
    if info.dropped:
        rows.append(("dropped", _dropped(info.dropped)))
    rows += [
        ("output", f"{export.path}, {export.bytes / 1e6:.1f} MB, {export.precision}"),
        ("heatmaps", f"within {export.max_error:.1e} of the largest value, on random images"),
        ("compared", f"{parity.landmarks} landmarks of {parity.crops} crops ({parity.source})"),
        ("distance", f"median {parity.px_median:.4f} px, 99 % {parity.px_p99:.4f} px, most {parity.px_max:.4f} px"),
        ("other peak", f"{parity.jumps}, {parity.ties} of them ties"),
    ]
    return rows


def _dropped(types: Mapping[str, int]) -> str:
    """Objects by type, a line each; the names are the file's own words."""
    lines = [f"{count} x {name}" if count else f"{name}, only mentioned" for name, count in types.items()]
    more = len(lines) - MAX_DROPPED
    return "\n".join(lines[:MAX_DROPPED] + ([f"and {more} more types"] if more > 0 else []))
