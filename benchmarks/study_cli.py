"""`edgepose bench streams | tracking | detection | robustness | data-loading`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepose.benchmarks.cli import OUTPUT, Output, Quick, Rounds, keep, turns
from edgepose.console import console

if TYPE_CHECKING:
    from edgepose.benchmarks.streams import Clip

__all__ = ["register"]

Video = Annotated[Path | None, typer.Argument(help="A video. (default: a rendered garment that moves)")]
Labels = Annotated[
    Path, typer.Argument(help="COCO file of garments with eight landmarks: `edgepose dataset pair` makes ours.")
]
Model = Annotated[str, typer.Option("--model", "-m", help="Heatmap model: a bundled name or an ONNX file.")]
Spec = Annotated[Path | None, typer.Option(help="Spec of a model's file that has none.")]
DetectorName = Annotated[str, typer.Option("--detector", help="A bundled name or an ONNX file.")]
DetectorSpec = Annotated[Path | None, typer.Option(help="Spec of a detector's file that has none.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``edgepose bench``."""
    app.command("streams")(streams_command)
    app.command("tracking")(tracking_command)
    app.command("detection")(detection_command)
    app.command("robustness")(robustness_command)
    app.command("data-loading")(data_loading_command)


def streams_command(
    video: Video = None,
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    model: Model = "garment-landmarks",
    spec: Spec = None,
    detector: DetectorName = "garment-detector",
    detector_spec: DetectorSpec = None,
    fps: Annotated[float, typer.Option(min=1, help="Of the cameras, frames a second.")] = 30.0,
    seconds: Annotated[float | None, typer.Option(min=1, help="Each camera films.")] = None,
    cameras: Annotated[int | None, typer.Option(min=1, help="At once on one predictor; 1: leave it out.")] = None,
) -> None:
    """Detector and landmarks on a stream, beside code that detects, then loops: work on a frame, and its age."""
    from dataclasses import replace

    from edgepose.benchmarks import streams

    plan = streams.Plan.quick() if quick else streams.Plan()
    plan = replace(
        plan,
        rounds=rounds or plan.rounds,
        fps=fps,
        seconds=seconds or plan.seconds,
        cameras=cameras or plan.cameras,
    )
    files = streams.Files(model, spec, detector, detector_spec)
    with turns("streams") as progress:
        progress(0, 1, "the clip")
        record = streams.run(_clip(video, quick), files=files, plan=plan, progress=progress)
    keep(record, output)
    streams.print_table(record, console)


def _clip(video: Path | None, quick: bool) -> Clip:
    from edgepose.benchmarks import streams

    if video is None:
        return streams.rendered_clip(streams.QUICK_FRAMES, streams.QUICK_SIZE) if quick else streams.rendered_clip()
    return streams.read_clip(video, streams.QUICK_FRAMES if quick else streams.FRAMES)


def tracking_command(
    video: Annotated[Path | None, typer.Argument(help="A video of one object, besides the rendered ones.")] = None,
    output: Output = OUTPUT,
    garments: Annotated[int | None, typer.Option(min=1, help="How many are rendered; more show more kinds.")] = None,
    quick: Quick = False,
    model: Model = "garment-landmarks",
    spec: Spec = None,
    detector: DetectorName = "garment-detector",
    detector_spec: DetectorSpec = None,
) -> None:
    """What tracking and smoothing do: jitter at rest, lag and error in motion, and what they cost."""
    from dataclasses import replace

    from edgepose.benchmarks import tracking
    from edgepose.errors import InputError

    plan = tracking.Plan.quick() if quick else tracking.Plan()
    plan = replace(plan, garments=garments or plan.garments)
    named = tracking.Video(video or Path(), model, spec, detector, detector_spec)
    if video is None and named != tracking.Video(Path()):
        raise InputError("--model, --spec, --detector and --detector-spec are the VIDEO's: name one, or leave them out")
    shown = named if video else None
    with turns("tracking") as progress:
        record = tracking.run(plan, video=shown, progress=progress)
    keep(record, output)
    tracking.print_table(record, console)


def detection_command(
    labels: Labels,
    output: Output = OUTPUT,
    quick: Quick = False,
    detector: Annotated[
        list[str] | None, typer.Option(help="A bundled name or an ONNX file; repeat it for several.")
    ] = None,
) -> None:
    """What odd pictures cost a garment detector: spoilt, several in one, on other floors, on drawn figures."""
    with _needs("PyTorch"):
        from edgepose.benchmarks import detection

    photos = detection.load_photos(labels, detection.QUICK_PHOTOS if quick else None)
    with turns("detection") as progress:
        record = detection.run(
            photos,
            detectors=tuple(dict.fromkeys(detector or detection.DETECTORS)),
            resamples=detection.QUICK_RESAMPLES if quick else detection.RESAMPLES,
            progress=progress,
        )
    keep(record, output)
    detection.print_table(record, console)


def robustness_command(
    labels: Labels,
    output: Output = OUTPUT,
    quick: Quick = False,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A bundled name or an ONNX file; repeat it for several.")
    ] = None,
) -> None:
    """What odd pictures cost a garment model: far, dark, turned, held, shaken, ..."""
    from edgepose.benchmarks import robustness

    with turns("robustness") as progress:
        record = robustness.run(
            labels,
            models=tuple(dict.fromkeys(model or robustness.MODELS)),
            photos=robustness.QUICK_PHOTOS if quick else None,
            progress=progress,
        )
    keep(record, output)
    robustness.print_table(record, console)


def data_loading_command(output: Output = OUTPUT, rounds: Rounds = None, quick: Quick = False) -> None:
    """Images that a worker of the training loader makes in a second, by stage."""
    from dataclasses import replace

    with _needs("PyTorch, and a system with fork"):
        from edgepose.benchmarks import data_loading

    plan = data_loading.Plan.quick() if quick else data_loading.Plan()
    with turns("data loading") as progress:
        record = data_loading.run(replace(plan, rounds=rounds or plan.rounds), progress=progress)
    keep(record, output)
    data_loading.print_table(record, console)


@contextmanager
def _needs(what: str) -> Iterator[None]:
    """An import of training's inside. Raises MissingDependencyError instead of ModuleNotFoundError."""
    from edgepose.errors import MissingDependencyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"this suite needs {what} ({error.name} is missing): pip install 'edgepose[bench]'"
        ) from error
