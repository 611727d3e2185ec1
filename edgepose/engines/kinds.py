"""Pose models and detectors: the two kinds of networks that engines run, told apart by the spec that a file carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from edgepose.errors import ModelError
from edgepose.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    from edgepose.adapt import Spec

__all__ = ["Kind", "check_kind", "output_shape", "spec_from_metadata"]

Kind = Literal["pose", "detector"]


def spec_from_metadata(metadata: Mapping[str, str], kind: Kind, *, source: str) -> Spec:
    """The spec of one kind in an ONNX file's metadata.

    Raises:
        ModelError: there is none, it is not usable, or the file is of the other kind.
    """
    from edgepose.detector_spec import METADATA_KEY as DETECTOR_KEY
    from edgepose.detector_spec import DetectorSpec

    if kind == "pose":
        if METADATA_KEY not in metadata and DETECTOR_KEY in metadata:
            raise ModelError(_is_a_detector(source))
        return ModelSpec.from_metadata(metadata, source=source)
    if DETECTOR_KEY not in metadata and METADATA_KEY in metadata:
        raise ModelError(_is_no_detector(source))
    return DetectorSpec.from_metadata(metadata, source=source)


def check_kind(spec: Spec, kind: Kind, source: str) -> None:
    """Raise ModelError where a pose model is wanted and there is a detector, or the other way round."""
    if isinstance(spec, ModelSpec) and kind == "detector":
        raise ModelError(_is_no_detector(source))
    if not isinstance(spec, ModelSpec) and kind == "pose":
        raise ModelError(_is_a_detector(source))


def _is_a_detector(source: str) -> str:
    return (
        f"{source} is a detector, which finds boxes and no landmarks: pass it as Predictor(..., detector={source!r}), "
        "or open it with edgepose.Detector"
    )


def _is_no_detector(source: str) -> str:
    return (
        f"{source} is a pose model, which finds landmarks in a box and no boxes: pass it as Predictor({source!r}), and "
        "a detector as its detector"
    )


def output_shape(spec: Spec, stated: tuple[int | None, ...] | None, source: str) -> tuple[int, ...]:
    """What a network in the canonical form returns for one picture: (K, heatmap h, heatmap w), or rows (Q, 6).

    ``stated``: the output's shape, batch first, as the network says it; Q comes from it.

    Raises:
        ModelError: a detector's network is not in the canonical form.
    """
    if isinstance(spec, ModelSpec):
        width, height = spec.heatmap_size
        return spec.num_keypoints, height, width
    if stated is None or len(stated) != 3 or stated[1] is None or stated[2] != 6:
        raise ModelError(
            f"{source}: an adapted detector returns (batch, Q, 6) with a fixed Q, this one {stated}: pass the detector "
            "as it was exported, with a spec that describes it"
        )
    return stated[1], 6
