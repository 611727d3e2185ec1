"""The command `edgepose quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgepose.build_cli import progress_bar
from edgepose.console import messages, print_rows

if TYPE_CHECKING:
    from edgepose.quantize import QuantizedModel
    from edgepose.quantize_compare import Pictures
    from edgepose.quantize_report import QuantizationReport

__all__ = ["register_quantize_command", "report_rows"]


def register_quantize_command(app: typer.Typer) -> None:
    """Add `quantize` to the `edgepose` command."""
    app.command()(quantize)


def quantize(
    model: Annotated[str, typer.Argument(help="Bundled name, or path of an ONNX file.")],
    pictures: Annotated[
        Path,
        typer.Argument(help="A folder of photos of the model's own domain. Without --labels, one object fills each."),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="An .onnx file, or a folder that exists. (default: MODEL-int8.onnx beside the model; a bundled "
            "model's goes to the current folder)",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="COCO keypoint file of pictures in that folder: its boxes are cropped, and its landmarks give PCK of "
            "both models."
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option("--spec", help="JSON file that says what the model expects. (default: the model's own spec)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of the pictures that calibrate.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Keep a model that differs too much.")] = False,
) -> None:
    """Make an INT8 model for CPUs, and report how far its landmarks are from the float model's.

    Up to 64 of the pictures calibrate, and up to 100 others are compared on. The file needs no certain CPU: its weights
    have 7 bits, so that nothing saturates where VNNI is missing. It is fastest where there is VNNI.
    """
    from edgepose.quantize import quantize_model

    source = pictures if labels is None else _labelled(model, labels, pictures, spec)
    with progress_bar(Path(model).name) as progress:
        made = quantize_model(model, output, pictures=source, spec=spec, seed=seed, force=force, progress=progress)
    _print_made(made, force)


def _labelled(model: str, labels: Path, folder: Path, spec: Path | None) -> Pictures:
    """The objects of a COCO file that the model is for."""
    from edgepose.quantize import pose_spec
    from edgepose.training.evaluate_cli import load_labels

    return load_labels(labels, folder, pose_spec(model, spec))


def _print_made(made: QuantizedModel, force: bool) -> None:
    report = made.report
    rows = [("model", f"{made.path}, {made.path.stat().st_size / 1e6:.1f} MB"), *report_rows(report)]
    print_rows(rows)
    if force and (problems := report.problems()):
        messages.print("[yellow]kept with --force:[/]", escape("; ".join(problems)), soft_wrap=True, highlight=False)


def report_rows(report: QuantizationReport) -> list[tuple[str, str]]:
    """What `edgepose quantize` prints, and `edgepose info` of an INT8 file."""
    made, parity = report.calibration, report.parity
    convolutions = ", ".join(f"{count} in {kind}" for kind, count in sorted(parity.convolutions.items()))
    units = (("crop px", report.crop, 1.0), ("frame px", report.frame, 1.0), ("% of the box", report.box, 100.0))
    distances = [
        f"{unit:12}  mean {scale * of.mean:.3f}, median {scale * of.median:.3f}, 99 % within {scale * of.p99:.3f}"
        for unit, of, scale in units
    ]
    rows = [
        ("made of", f"{made.model} ({made.model_sha256[:12]}), by edgepose {made.edgepose}"),
        ("with", f"ONNX Runtime {made.onnxruntime}; activations of 8 bits, weights of 7"),
        ("calibrated on", f"{made.crops} crops of {made.pictures} pictures, drawn with seed {made.seed}"),
        ("convolutions", convolutions),
        ("compared", f"{parity.counted} ({parity.source})"),
        ("distance", "\n".join(distances)),
        ("other peak", f"{parity.jumps}, {parity.ties} of them ties; mean with them {report.mean_with_jumps:.3f} px"),
        ("PCK change", f"at 0.05: {parity.pck_change:+.4f}, at 0.2: {parity.pck_20 - 1:+.4f} at worst"),
        ("scores", f"within {100 * parity.score_error:.2g} % of the highest"),
    ]
    if report.pck:
        figures = ", ".join(f"{name} {figure:.4f}" for name, figure in report.pck.items())
        rows.append(("on the labels", figures))
    return rows
