"""Commands that train: recipes, train, synthesize. PyTorch is imported inside them."""

from __future__ import annotations

import json
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgepose.console import console, track
from edgepose.errors import InputError

if TYPE_CHECKING:
    from edgepose.training.run import RunSummary
    from edgepose.training.schedule import Execution

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (recipes, train, synthesize):
        app.command()(command)


class Precision(str, Enum):
    """Of the network's arithmetic while training."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Loss(str, Enum):
    """What is minimised."""

    masked = "masked"
    mmpose = "mmpose"


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one completely. (default: list them)")] = None,
    filter_: Annotated[str, typer.Option("--filter", help="List those whose names hold these words.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the training recipes, published figures beside ours; or show one: what is learnt, on what, how, result."""
    from edgepose.training.recipe_text import describe, recipe_table, to_dict
    from edgepose.training.recipes import find, matching

    if name is not None and filter_:
        raise InputError("give the name of one recipe, or --filter to list some, not both")
    chosen = [find(name)] if name is not None else matching(filter_)
    if as_json:
        found = [to_dict(recipe) for recipe in chosen]
        typer.echo(json.dumps(found[0] if name is not None else found, indent=1, ensure_ascii=False))
    elif name is not None:
        _say(describe(chosen[0]))
    else:
        _print(recipe_table(chosen))


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A name of `edgepose recipes`; or garment-landmarks, garment-landmarks-fast, garment-detector."
        ),
    ],
    *,
    data: Annotated[Path, typer.Option(help="The data set's folder; `edgepose recipes NAME` says what is in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run: checkpoints, logs, ONNX file.")],
    init: Annotated[
        Path | None, typer.Option(help="Weights for the backbone: ImageNet's of torchvision or OpenMMLab, .pth.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Another length. (default: the recipe's)")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Crops in one step, over all GPUs. (default: the recipe's)")
    ] = None,
    scale_lr: Annotated[bool, typer.Option("--scale-lr", help="Scale the learning rate as --batch-size.")] = False,
    loss: Annotated[
        Loss | None, typer.Option(help="mmpose: divided by all outputs, as MMPose's. (default: the recipe's)")
    ] = None,
    declared: Annotated[
        bool, typer.Option("--declared", help="hrnet_w48_udp: train the UDP that MMPose's configuration declares.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order, augmentation. (default: 0)")] = None,
    validation_limit: Annotated[
        int | None, typer.Option(min=1, help="Validate on so many objects while training. (default: all)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the network's arithmetic.")] = Precision.fp32,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Crops in one forward pass. (default: the recipe's of one GPU)")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Data loading processes of each training process.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Only deterministic algorithms.")] = False,
    gpu_crops: Annotated[bool, typer.Option("--gpu-crops", help="Crop on the GPU; workers only decode.")] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    extra: Annotated[
        Path | None, typer.Option(help="garment-landmarks only: synthetic.json of `edgepose synthesize`, to mix in.")
    ] = None,
) -> None:
    """Train a recipe, test it, export it. The same command goes on with a run that was stopped.

    Several GPUs: torchrun --nproc-per-node 4 -m edgepose.cli train RECIPE …
    """
    from edgepose.training.garments import DETECTOR_NAME, GARMENT_NAMES
    from edgepose.training.schedule import Execution

    execution = Execution(
        device=device, precision=precision.value, compile=compile_, workers=workers, micro_batch=micro_batch,
        gpu_crops=gpu_crops, deterministic=deterministic, save_every=save_every,
    )  # fmt: skip
    changes: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "scale_rate": scale_lr,
        "loss": loss.value if loss else None,
        "declared": declared,
        "seed": seed,
    }
    if recipe in (*GARMENT_NAMES, DETECTOR_NAME):
        fixed = {**changes, "validation_limit": validation_limit}
        given = [name for name, value in fixed.items() if value not in (None, False)]
        if given:
            raise InputError(f"{recipe} has its own schedule: leave out {', '.join(given)}")
        if recipe == DETECTOR_NAME:
            _train_detector(data, output, execution, init=init, extra=extra)
            return
        _train_garments(recipe, data, output, execution, init=init, extra=extra)
        return
    from edgepose.training.departures import depart
    from edgepose.training.recipes import find

    if extra is not None:
        raise InputError(f"--extra is for {' and '.join(GARMENT_NAMES)}")
    chosen = depart(find(recipe), **changes)
    from edgepose.training.run import train_recipe

    command = shlex.join(["edgepose", *sys.argv[1:]])
    summary = train_recipe(
        chosen, data, output, init=init, execution=execution, validation_limit=validation_limit, command=command,
        log=_say,
    )  # fmt: skip
    if summary is not None:
        _print_summary(summary, chosen.metrics)


def _train_garments(
    name: str, data: Path, output: Path, execution: Execution, *, init: Path | None, extra: Path | None
) -> None:
    from edgepose.training.export import export_onnx
    from edgepose.training.garment_landmarks import train_garment_landmarks

    network, spec = train_garment_landmarks(name, data, output, init=init, extra=extra, execution=execution, log=_say)
    report = export_onnx(network.cpu(), spec, output / f"{name}.onnx", weights="fp16")
    figures = ", ".join(f"{metric} {value:.4g}" for metric, value in spec.metrics.items())
    _say(f"{report.path}: {report.bytes / 1e6:.1f} MB, {figures}")


def _train_detector(data: Path, output: Path, execution: Execution, *, init: Path | None, extra: Path | None) -> None:
    from edgepose.training.detection.export import export_detector
    from edgepose.training.detection.train import train_garment_detector
    from edgepose.training.garments import DETECTOR_NAME

    if extra is not None:
        raise InputError(f"{DETECTOR_NAME} renders its own garments: leave out --extra")
    network, spec = train_garment_detector(data, output, init=init, execution=execution, log=_say)
    report = export_detector(network, spec, output / f"{DETECTOR_NAME}.onnx")
    figures = ", ".join(f"{metric} {value:.4g}" for metric, value in spec.metrics.items())
    _say(f"{report.path}: {report.bytes / 1e6:.1f} MB, {figures}")


def _print_summary(summary: RunSummary, published: dict[str, float]) -> None:
    table = Table(
        title=f"{summary.recipe}, epoch {summary.best_epoch}, {summary.objects} objects", title_justify="left"
    )
    for heading in ("", "this run", "published"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, value in summary.metrics.items():
        table.add_row(name, f"{value:.4g}", f"{published[name]:.4g}" if name in published else "-")
    _print(table)
    for path in (summary.onnx, summary.folder / "metrics.json", summary.folder / "recipe.json"):
        _say(f"  {path}")


def _say(text: str) -> None:
    console.print(escape(text), soft_wrap=True, highlight=False)


def _print(table: Table) -> None:
    """Whole, however narrow the terminal is: a cut figure is worth nothing."""
    table.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.print(table, crop=False, soft_wrap=True, highlight=False)


def synthesize(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="How many garments.")] = 9000,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the whole data set.")] = 0,
    outlines: Annotated[Path | None, typer.Option(help="COCO file of real garment outlines (aRTF Clothes).")] = None,
    photos: Annotated[Path | None, typer.Option(help="Photos to cut backgrounds and cloth from.")] = None,
) -> None:
    """Render a data set of garments with exact landmarks."""
    from edgepose.training.synthesize import synthesize as render

    for _ in track(render(output, count, seed=seed, outlines=outlines, photos=photos), count, "rendering"):
        pass
    console.print(f"{count} garments in {escape(str(output / 'synthetic.json'))}", soft_wrap=True)
