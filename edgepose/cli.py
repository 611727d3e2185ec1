"""The command line. Each command parses, calls the module that does the work, and prints.

Everything but typer and rich is imported inside the commands, so that ``edgepose --help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table
from typer.core import TyperGroup

from edgepose.benchmarks.cli import register as register_bench_commands
from edgepose.build_cli import register as register_build_command
from edgepose.cli_options import (
    DEFAULT_MODEL,
    Boxes,
    DetectorModel,
    DetectorSpecFile,
    Device,
    FlipTest,
    MinScore,
    Model,
    Spec,
    WholeImage,
    choose_boxes,
)
from edgepose.console import console, messages, print_rows, track
from edgepose.detect_cli import register as register_detect_command
from edgepose.errors import EdgePoseError
from edgepose.quantize_cli import register_quantize_command
from edgepose.stream_cli import register as register_stream_command

# The command line is where all parts meet; the library itself never imports training. No torch is loaded by this.
from edgepose.training.cli import register as register_training_commands

if TYPE_CHECKING:
    from edgepose.demo import DemoReport

__all__ = ["app"]

DEBUG_VARIABLE = "EDGEPOSE_DEBUG"
DEMO_SEED = 14  # a dress on a wooden floor: it has all eight landmarks


class _Group(TyperGroup):
    """Turns an EdgePoseError into a message and exit code 1; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgePoseError as error:
            if ctx.params.get("debug"):
                raise
            messages.print("[bold red]error:[/]", escape(str(error)), soft_wrap=True, highlight=False)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Landmarks of garments and other objects, fast: predict on photos and videos, inspect and export models.",
)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG_VARIABLE, help="Show the traceback of an error.")
    ] = False,
) -> None:
    if version:
        import edgepose

        console.print(f"edgepose {edgepose.__version__}", highlight=False)
        raise typer.Exit


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(help="A photo, a video, or a folder of photos.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder; or a file, for one photo or video.")],
    model: Model = DEFAULT_MODEL,
    spec: Spec = None,
    detector: DetectorModel = None,
    detector_spec: DetectorSpecFile = None,
    boxes: Boxes = None,
    whole_image: WholeImage = False,
    flip_test: FlipTest = False,
    min_score: MinScore = 0.4,
    device: Device = "auto",
) -> None:
    """Find objects and their landmarks: writes annotated pictures or a video, and all coordinates as JSON.

    The JSON is predictions.json in the output folder, or lies beside the output file under its name.
    A JSON file of boxes is a list of x1,y1,x2,y2 lists for every picture; or an object that holds such a list for each
    file name, or frame number of a video; or COCO annotations or detections (x,y,width,height) with file names.
    """
    from edgepose.annotate import annotate
    from edgepose.predictor import Predictor

    box_source, found_by = choose_boxes(
        model, boxes, whole_image=whole_image, detector=detector, detector_spec=detector_spec, device=device
    )
    with Predictor(model, spec=spec, detector=found_by, device=device, flip_test=flip_test) as predictor:
        report = annotate(predictor, source, output, box_source, min_score=min_score, track=track)
    files = f"{len(report.outputs)} file{'s' * (len(report.outputs) != 1)}"
    objects = f"{report.objects} object{'s' * (report.objects != 1)}"
    console.print(f"{files} with {objects}; coordinates in {escape(str(report.json_path))}", soft_wrap=True)
    for path in report.outputs[:3]:
        console.print(f"  {escape(str(path))}", soft_wrap=True, highlight=False)
    if len(report.outputs) > 3:
        console.print(f"  ... and {len(report.outputs) - 3} more")
    if report.failures:
        failed, total = len(report.failures), len(report.failures) + len(report.outputs)
        what = f"{failed} of {total} photos failed" if source.is_dir() else "not everything could be done"
        messages.print(f"[bold red]{what}:[/]")
        for path, reason in report.failures:
            messages.print(f"  {escape(path.name)}: {escape(reason)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The annotated clip, .mp4.")] = Path(
        "edgepose-demo.mp4"
    ),
    frames: Annotated[int, typer.Option(min=1, help="Length of the clip.")] = 150,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another garment.")] = DEMO_SEED,
    model: Model = DEFAULT_MODEL,
    flip_test: FlipTest = False,
) -> None:
    """See it work, with no input at all: a rendered garment moves, its true landmarks are known."""
    from edgepose.demo import run_demo
    from edgepose.predictor import Predictor
    from edgepose.training.synthetic import MovingGarment

    with Predictor(model, flip_test=flip_test) as predictor:
        report = run_demo(predictor, MovingGarment(frames=frames, seed=seed), frames, output, track=track)
        _print_demo(report, f"{predictor.spec.name}, {predictor.engine_name}")


def _print_demo(report: DemoReport, title: str) -> None:
    import numpy as np

    accuracy = Table()
    for heading in ("mean", "median", "of box side", "PCK@0.05", "PCK@0.1", "PCK@0.2"):
        accuracy.add_column(heading, justify="right")
    accuracy.add_row(
        f"{report.errors.mean():.2f} px",
        f"{np.median(report.errors):.2f} px",
        f"{100 * report.relative_errors.mean():.2f} %",
        *(f"{report.pck(threshold):.3f}" for threshold in (0.05, 0.1, 0.2)),
    )
    latency = Table()
    latency.add_column("stage")
    for heading in ("p50", "p95"):
        latency.add_column(heading, justify="right")
    for stage, values in report.latencies.items():
        name = "end to end" if stage == "total" else stage
        latency.add_row(name, *(f"{np.percentile(values, q):.2f}" for q in (50, 95)))
    console.print(f"Landmark error ({escape(title)})", accuracy, sep="\n", soft_wrap=True, highlight=False)
    console.print(
        "Latency of a frame with one box, ms, after warm-up", latency, sep="\n", soft_wrap=True, highlight=False
    )
    console.print(
        f"Clip {escape(str(report.video))}, poster {escape(str(report.poster))}", soft_wrap=True, highlight=False
    )


@app.command()
def models() -> None:
    """List the models and detectors that come with edgepose."""
    from edgepose.modelfile import ModelFile
    from edgepose.models import bundled_detectors, bundled_models
    from edgepose.spec import ModelSpec

    table = Table(Column("name", no_wrap=True), "finds", "input (w x h)", "size", "licence", "metrics")
    for name, path in {**bundled_models(), **bundled_detectors()}.items():
        file = ModelFile.read(path)
        if file.spec is None:
            raise EdgePoseError(f"the bundled model {path} has no spec: install edgepose again")
        spec = file.spec
        if isinstance(spec, ModelSpec):
            finds = f"{spec.num_keypoints} landmarks"
        else:
            finds = f"objects of {spec.num_categories} categories"
        figures = "\n".join(f"{key} {value:.3g}" for key, value in spec.metrics.items())
        size = f"{spec.input_size[0]} x {spec.input_size[1]}"
        table.add_row(name, finds, size, f"{file.size / 1e6:.1f} MB", spec.license, figures)
    if table.row_count:
        console.print(table)
    else:
        messages.print("no models are bundled with this installation")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Bundled name, or path of an ONNX file or an engine.")] = DEFAULT_MODEL,
) -> None:
    """Show what a model file says about itself: spec, input and output, precision, metrics, where an engine runs."""
    from edgepose.models import ENGINE_SUFFIXES, bundled_detectors, find_detector, find_model

    path = find_detector(model) if model in bundled_detectors() else find_model(model)
    print_rows(_engine_rows(path) if path.suffix.lower() in ENGINE_SUFFIXES else _model_rows(path))


def _model_rows(path: Path) -> list[tuple[str, str]]:
    from edgepose.modelfile import ModelFile

    file = ModelFile.read(path)
    rows = [
        ("file", str(file.path)),
        ("size", f"{file.size / 1e6:.2f} MB, {file.parameters / 1e6:.2f} M parameters"),
        ("precision", file.precision),
        ("opset", str(file.opset)),
        ("written by", file.producer),
        *(("input", line) for line in file.inputs),
        *(("output", line) for line in file.outputs),
    ]
    if file.quantization is not None:
        from edgepose.quantize_cli import report_rows

        rows += report_rows(file.quantization)
    if file.spec is None:
        rows.append(("spec", _no_spec(file.starting_spec)))
    else:
        rows += [(f"spec: {key}", _readable(value)) for key, value in vars(file.spec).items()]
    return rows


def _no_spec(beginning: str) -> str:
    if not beginning:
        return (
            "none, and no output looks like heatmaps or detections; docs/models.md says how to describe a model, "
            "docs/detectors.md a detector"
        )
    if '"category_names"' in beginning:
        return (
            "none: write one and pass it with --spec or --detector-spec. To begin with, what the outputs look like; "
            "the file does not say how it is fed, so check color, scale, mean, std and resize (docs/detectors.md), and "
            f"the names:\n{beginning}"
        )
    return (
        "none: write one and pass it with --spec spec.json. To begin with, sizes and layouts from the file; it does "
        f"not say names, flip_indices, color, scale, mean, std and codec, so correct these:\n{beginning}"
    )


def _engine_rows(path: Path) -> list[tuple[str, str]]:
    """From the sidecar: neither TensorRT nor a GPU is needed."""
    from edgepose.enginefile import EngineInfo

    info = EngineInfo.read(path)
    report = info.parity
    judged = "the engine" if report.scope == "engine" else "its graph; the first load on the GPU measures the engine"
    rows = [
        ("file", str(path)),
        ("size", f"{info.engine_bytes / 1e6:.2f} MB"),
        ("built from", f"{info.onnx}, {info.built}, in {info.seconds:.0f} s, by edgepose {info.edgepose}"),
        ("precision", info.precision),
        ("runs on", f"{info.gpu or ', '.join(info.targets)} with {info.flavour} {info.version}, {info.platform}"),
        ("batch", f"{info.profile[0]} to {info.profile[2]}, fastest at {info.profile[1]}"),
        ("input", f"{info.input.name}  {info.input.dtype} {info.input.shape}"),
        ("output", f"{info.output.name}  {info.output.dtype} {info.output.shape}"),
        ("parity", f"{report.px_median:.3g} px median, {report.px_p99:.3g} px p99 ({judged}; {report.source})"),
        ("rebuild with", info.rebuild_command(path)),
    ]
    return rows + [(f"spec: {key}", _readable(value)) for key, value in vars(info.spec).items()]


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {item}" for key, item in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "-"
    return str(value) if value != "" else "-"


@app.command()
def doctor() -> None:
    """Show what is installed, which engines can run here, and what to install for the others."""
    from edgepose import doctor as checks

    marks = {True: "[green]yes[/]", False: "[red]NO [/]", None: " - "}
    groups = (
        ("Machine", checks.check_system()),
        ("Packages", checks.check_packages()),
        ("Engines", checks.check_engines()),
    )
    for title, lines in groups:
        console.print(f"[bold]{title}[/]")
        for line in lines:
            console.print(f" {marks[line.ok]} {line.name:18} {escape(line.found)}", soft_wrap=True, highlight=False)
            if line.advice:  # on its own line, so that it can be copied as it is
                console.print(f"       {escape(line.advice)}", soft_wrap=True, highlight=False)
    if any(line.ok is False for _, lines in groups for line in lines):
        raise typer.Exit(1)


register_bench_commands(app)
register_build_command(app)
register_detect_command(app)
register_quantize_command(app)
register_stream_command(app)
register_training_commands(app)

if __name__ == "__main__":
    app()
