"""What TensorRT's engine inspector tells of a loaded engine."""

from __future__ import annotations

import json

__all__ = ["convolutions_in"]


def convolutions_in(layer_information: str) -> dict[str, int]:
    """Convolution layers by precision, from an engine inspector's JSON (``LayerInformationFormat.JSON``).

    TensorRT fuses layers and names kernels as it likes; a layer counts by its name, its type or its origin, and by the
    type of its first output. Empty where the engine says nothing, as one built without details does.
    """
    try:
        layers = json.loads(layer_information).get("Layers", [])
    except (json.JSONDecodeError, AttributeError):
        return {}
    counts: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, dict) or not layer.get("Outputs"):
            continue
        words = " ".join(
            str(layer.get(name, "")) for name in ("ParameterType", "LayerType", "Metadata", "Name")
        ).lower()
        if "conv" not in words:
            continue
        kind = str(layer["Outputs"][0].get("Format/Datatype", "")).lower()
        for precision, marks in (("float16", ("half", "fp16")), ("int8", ("int8",)), ("float32", ("float", "fp32"))):
            if any(mark in kind for mark in marks):
                counts[precision] = counts.get(precision, 0) + 1
                break
    return counts
