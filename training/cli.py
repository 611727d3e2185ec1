"""The commands of training: recipes, export, train, evaluate, synthesize. PyTorch is imported inside them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgepose.console import console, track

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the training commands to the `edgepose` command."""
    for command in (recipes, export, train, evaluate, synthesize):
        app.command()(command)


class Precision(str, Enum):
    """Precision of an exported model."""

    fp32 = "fp32"
    fp16 = "fp16"


def recipes() -> None:
    """List the training recipes that `edgepose export` takes."""
    from edgepose.training.recipes import RECIPES

    table = Table("recipe", "landmarks", "input (w x h)", "codec")
    for name, recipe in RECIPES.items():
        spec = recipe.spec()
        table.add_row(name, str(spec.num_keypoints), f"{spec.input_size[0]} x {spec.input_size[1]}", spec.codec)
    console.print(table)


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


def train(
    model: Annotated[str, typer.Argument(help="What to train; in this version: garment-landmarks.")],
    data: Annotated[Path, typer.Option(help="A folder with train.json and val.json (COCO keypoints).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoints, TensorBoard events, the ONNX file.")],
    extra: Annotated[
        Path | None, typer.Option(help="synthetic.json of `edgepose synthesize`, mixed into the training data.")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Photos of single garments that the model may label itself, after stage 1.")
    ] = None,
    device: Annotated[str, typer.Option(help="A torch device: cpu, cuda, cuda:1.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Data loading processes.")] = 2,
) -> None:
    """Train a model; the same command goes on with a run that was stopped."""
    from edgepose.errors import InputError

    if model != "garment-landmarks":
        raise InputError(f"{model!r} cannot be trained by this version: expected garment-landmarks")
    from edgepose.training.export import export_onnx
    from edgepose.training.garment_landmarks import train_garment_landmarks

    network, spec = train_garment_landmarks(
        data, output, extra=extra, unlabelled=unlabelled, device=device, workers=workers
    )
    report = export_onnx(network.cpu(), spec, output / f"{model}.onnx", weights="fp16")
    figures = ", ".join(f"{name} {value:.4g}" for name, value in spec.metrics.items())
    console.print(f"{escape(str(report.path))}: {report.bytes / 1e6:.1f} MB, {figures}", soft_wrap=True)


def evaluate(
    model: Annotated[str, typer.Argument(help="Bundled name or path of an ONNX file.")],
    annotations: Annotated[Path, typer.Argument(help="A COCO keypoint file, its images beside it.")],
    flip_test: Annotated[bool, typer.Option("--flip-test", help="Average with the mirrored crop.")] = False,
) -> None:
    """Score a model on labelled images, inside their true boxes: PCK, AUC, EPE, and PCK@0.05 of each landmark."""
    from edgepose.predictor import Predictor
    from edgepose.training.coco import load_coco
    from edgepose.training.evaluate import evaluate_predictor

    with Predictor(model, flip_test=flip_test) as predictor:
        spec = predictor.spec
        labelled = load_coco(annotations, spec.num_keypoints)
        result = evaluate_predictor(predictor, labelled)
    table = Table(title=f"{spec.name} on {escape(annotations.name)}, {len(labelled)} objects", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    for name, value in result.metrics().items():
        table.add_row(name, f"{value:.4f}")
    for name, value in zip(spec.keypoint_names, result.pck_05_by_keypoint, strict=True):
        table.add_row(f"PCK@0.05 {name}", f"{value:.4f}")
    console.print(table)


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
