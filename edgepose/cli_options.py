"""Options that several commands share, and what they mean together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepose.errors import InputError
from edgepose.models import bundled_models

if TYPE_CHECKING:
    from edgepose.boxes import BoxSource
    from edgepose.detector import Detector

__all__ = [
    "DEFAULT_MODEL",
    "Boxes",
    "DetectorModel",
    "DetectorSpecFile",
    "Device",
    "FlipTest",
    "MinScore",
    "Model",
    "Spec",
    "WholeImage",
    "choose_boxes",
]

DEFAULT_MODEL = "garment-landmarks"
DEFAULT_DETECTOR = "garment-detector"  # of the bundled models, which all are about garments

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Bundled name (see `edgepose models`), or path of an ONNX file or an engine."),
]
Spec = Annotated[
    Path | None, typer.Option("--spec", help="JSON file that says what the model expects, if the model does not.")
]
DetectorModel = Annotated[
    str | None,
    typer.Option(
        "--detector",
        help="Finds the boxes: bundled name, or path of an ONNX file or an engine. The bundled models use "
        f"{DEFAULT_DETECTOR} unless told where the objects are.",
    ),
]
DetectorSpecFile = Annotated[
    Path | None,
    typer.Option("--detector-spec", help="JSON file that says what the detector expects, if the detector does not."),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--boxes", help="x1,y1,x2,y2 in px, once for each object; or a JSON file of boxes."),
]
WholeImage = Annotated[bool, typer.Option("--whole-image", help="One object fills each picture.")]
MinScore = Annotated[float, typer.Option("--min-score", min=0.0, help="Do not draw landmarks below this score.")]
FlipTest = Annotated[bool, typer.Option("--flip-test", help="Average with the mirrored crop: slower, more accurate.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or cuda:N.")]


def choose_boxes(
    model: str,
    boxes: Sequence[str] | None,
    *,
    whole_image: bool,
    detector: str | None,
    detector_spec: Path | None,
    device: str = "auto",
) -> tuple[BoxSource, Detector | None]:
    """Where the boxes come from, and the detector, open, if it is one that finds them.

    Raises:
        InputError: the options exclude each other, or none says where the objects are and the model is not bundled.
        ModelError: the detector is not usable.
    """
    if detector_spec is not None and detector is None:
        raise InputError("--detector-spec describes a detector: pass its file with --detector")
    if detector is None and not boxes and not whole_image and model in bundled_models():
        detector = DEFAULT_DETECTOR
    from edgepose.boxes import BoxSource

    source = BoxSource.from_options(boxes or [], whole_image=whole_image, detected=detector is not None)
    if detector is None:
        return source, None
    from edgepose.detector import Detector

    return source, Detector(detector, spec=detector_spec, device=device)
