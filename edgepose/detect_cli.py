"""The command `edgepose detect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgepose.cli_options import DEFAULT_DETECTOR, Device
from edgepose.console import console, messages, track

if TYPE_CHECKING:
    from edgepose.detections import Detections
    from edgepose.detector import Detector
    from edgepose.detector_spec import DetectorSpec

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `detect` to the `edgepose` command."""
    app.command()(detect)


def detect(
    source: Annotated[Path, typer.Argument(help="A photo, a video, or a folder of photos.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder; or a file, for one photo or video.")],
    detector: Annotated[
        str, typer.Option("--detector", help="Bundled name, or path of an ONNX file or an engine.")
    ] = DEFAULT_DETECTOR,
    spec: Annotated[
        Path | None,
        typer.Option("--spec", help="JSON file that says how the detector is fed and read, if the detector does not."),
    ] = None,
    categories: Annotated[
        list[str] | None, typer.Option("--category", help="Find these only; once for each. (default: all)")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", min=0.0, max=1.0, help="Drop detections below. (default: the spec's)")
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option("--nms-iou", max=1.0, help="Boxes that overlap more are one object's. (default: the spec's)"),
    ] = None,
    class_agnostic: Annotated[
        bool | None,
        typer.Option(
            "--class-agnostic/--per-class",
            help="Whether boxes of different categories are one object's too. (default: the spec's)",
        ),
    ] = None,
    max_boxes: Annotated[
        int | None, typer.Option("--max-boxes", min=1, help="The most in a picture. (default: the spec's)")
    ] = None,
    device: Device = "auto",
) -> None:
    """Find objects: writes pictures or a video with their boxes, and all boxes as JSON.

    The JSON is predictions.json in the output folder, or lies beside the output file under its name.
    """
    from edgepose.annotate import annotate
    from edgepose.boxes import BoxSource
    from edgepose.detector import Detector

    with Detector(
        detector,
        spec=spec,
        device=device,
        min_score=min_score,
        nms_iou=nms_iou,
        class_agnostic=class_agnostic,
        categories=categories or None,
        max_boxes=max_boxes,
    ) as opened:
        boxes = BoxSource(detected=True, source="--detector")
        report = annotate(_Boxes(opened), source, output, boxes, min_score=0.0, track=track)
    files = f"{len(report.outputs)} file{'s' * (len(report.outputs) != 1)}"
    objects = f"{report.objects} object{'s' * (report.objects != 1)}"
    console.print(f"{files} with {objects}; boxes in {escape(str(report.json_path))}", soft_wrap=True, highlight=False)
    for path in report.outputs[:3]:
        console.print(f"  {escape(str(path))}", soft_wrap=True, highlight=False)
    if len(report.outputs) > 3:
        console.print(f"  ... and {len(report.outputs) - 3} more")
    if report.failures:
        messages.print(f"[bold red]{len(report.failures)} of these could not be done:[/]")
        for path, reason in report.failures:
            messages.print(f"  {escape(path.name)}: {escape(reason)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1)


class _Boxes:
    """A detector in the place of a predictor, for :func:`edgepose.annotate.annotate`."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @property
    def spec(self) -> DetectorSpec:
        return self._detector.spec

    def predict(self, frame: Any, boxes: Any = None) -> Detections:
        return self._detector.detect(frame)
