"""What quantising a model did to its landmarks: the record that an INT8 file carries in its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from edgepose.errors import ModelError
from edgepose.jsonfields import FieldError, Reader, kind, mapping_of, read_dataclass
from edgepose.parity import Limits, ParityReport

if TYPE_CHECKING:
    import onnx

__all__ = ["INT8_LIMITS", "MEAN_LIMIT", "METADATA_KEY", "Calibration", "Distances", "QuantizationReport"]

METADATA_KEY = "edgepose_quantization"  # of an ONNX file's metadata
SCHEMA_VERSION = 1

# Measured on 100 photos that did not calibrate, 192 x 256: garment-landmarks (depthwise convolutions, the hardest case)
# has a mean of 0.32 px, a median of 0.23 px, 99 % within 1.7 px, scores within 0.11 and 0.3 % jumps that are no ties;
# garment-landmarks-fast 0.38, 0.32, 1.4 px, 0.10 and 0.2 %. What must be refused, garment-landmarks with the ranges of
# its activations taken before Clip, on 43 other photos: 1.1, 0.75, 4.5 px, 0.24 and 1.2 %.
INT8_LIMITS = Limits(px_median=0.5, px_p99=3.0, wrong_jumps=0.01, pck_05=0.99, score_error=0.15)
MEAN_LIMIT = 0.5  # crop px, of the mean


@dataclass(frozen=True)
class Distances:
    """How far landmarks moved, in one unit."""

    mean: float
    median: float
    p99: float

    @classmethod
    def of(cls, values: ArrayLike) -> Distances:
        """Of all values; zeros where there is none."""
        array = np.asarray(values, np.float64)
        if not array.size:
            return cls(0.0, 0.0, 0.0)
        return cls(float(array.mean()), float(np.median(array)), float(np.percentile(array, 99)))


@dataclass(frozen=True)
class Calibration:
    """Where an INT8 model comes from.

    Attributes:
        model, model_sha256: the float model: its file's name, or its bundled name, and its file's digest.
        pictures, crops: what the ranges of the activations were found on.
        seed: of the draw that split the pictures into those for calibration and those for the comparison.
        onnxruntime, edgepose: versions.
    """

    model: str
    model_sha256: str
    pictures: int
    crops: int
    seed: int
    onnxruntime: str
    edgepose: str


@dataclass(frozen=True)
class QuantizationReport:
    """An INT8 model beside the float model that it was made of, both through a Predictor.

    What counts as a landmark, a jump and a tie is said in :mod:`edgepose.parity`.

    Attributes:
        calibration: where the INT8 model comes from.
        parity: on pictures that did not calibrate; ``convolutions`` counts those in int8 and in float32.
        crop, frame: distances in px of the network's input and of the frame; jumps left out.
        box: the same, as fractions of the box's longer side.
        mean_with_jumps: crop px, of all landmarks that count.
        pck: on the labels, for instance ``{"PCK@0.05 float32": 0.9, "PCK@0.05 int8": 0.9}``; empty: there were none.
    """

    calibration: Calibration
    parity: ParityReport
    crop: Distances
    frame: Distances
    box: Distances
    mean_with_jumps: float
    pck: Mapping[str, float] = field(default_factory=dict, hash=False)

    def problems(self) -> tuple[str, ...]:
        """What is beyond the limits, in words; empty: nothing."""
        found = self.parity.problems(INT8_LIMITS)
        if self.parity.compared and not self.crop.mean <= MEAN_LIMIT:  # NaN is a problem
            found = (f"mean error {self.crop.mean:.3g} px (limit {MEAN_LIMIT:g})", *found)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``from_dict``'s inverse."""
        return {**asdict(self), "parity": self.parity.to_dict(), "pck": dict(self.pck)}

    @classmethod
    def from_dict(cls, data: Any) -> QuantizationReport:
        """Read a report.

        Raises:
            FieldError: a key is missing or unknown, or a value of the wrong kind.
        """
        return read_dataclass(cls, data, _READERS)

    def write_metadata(self, model: onnx.ModelProto) -> None:
        """Store the report in an ONNX model's metadata, in place; one that is already there is replaced."""
        for index in reversed(range(len(model.metadata_props))):
            if model.metadata_props[index].key == METADATA_KEY:
                del model.metadata_props[index]
        model.metadata_props.add(key=METADATA_KEY, value=json.dumps({"schema": SCHEMA_VERSION, **self.to_dict()}))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, source: str) -> QuantizationReport | None:
        """Read the report in an ONNX model's metadata; None: it carries none.

        Raises:
            ModelError: it is damaged, or of another version.
        """
        if METADATA_KEY not in metadata:
            return None
        try:
            data = json.loads(metadata[METADATA_KEY])
            schema = data.pop("schema", None) if isinstance(data, dict) else None
            if schema != SCHEMA_VERSION:
                raise FieldError(f"schema {schema!r}, this edgepose reads {SCHEMA_VERSION}")
            return cls.from_dict(data)
        except (json.JSONDecodeError, FieldError) as error:
            raise ModelError(
                f"{source}: what its quantisation did cannot be read (metadata {METADATA_KEY}: {error}): quantise the "
                "float model again with `edgepose quantize`, or use the edgepose that wrote the file"
            ) from None


def _reader(cls: Callable[..., Any], kinds: Mapping[str, Reader]) -> Reader:
    return lambda value: read_dataclass(cls, value, kinds)


_NUMBER = kind(int, float)
_DISTANCES = _reader(Distances, dict.fromkeys(("mean", "median", "p99"), _NUMBER))
_READERS: dict[str, Reader] = {
    "calibration": _reader(
        Calibration,
        {
            **dict.fromkeys(("model", "model_sha256", "onnxruntime", "edgepose"), kind(str)),
            **dict.fromkeys(("pictures", "crops", "seed"), kind(int)),
        },
    ),
    "parity": ParityReport.from_dict,
    **dict.fromkeys(("crop", "frame", "box"), _DISTANCES),
    "mean_with_jumps": _NUMBER,
    "pck": mapping_of(float),
}
