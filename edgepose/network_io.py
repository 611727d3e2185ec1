"""What goes into a network and what comes out, as its file states it, checked against a pose model's spec.

Each disagreement names the field of the spec that says otherwise, and the value that would agree: a foreign model is
usually met with a guess, and the file knows better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepose.errors import ModelError
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from edgepose.detector_spec import DetectorSpec

__all__ = ["FLOATS", "LEVELS", "Tensor", "check_heatmaps", "check_image", "choose_heatmaps", "only_input"]

FLOATS = ("float32", "float16", "float64")
LEVELS = ("uint8", "int32", "int64")  # of an input that takes pictures before any arithmetic
_AXES = {"nchw": ("channels", "height", "width"), "nhwc": ("height", "width", "channels")}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: in the graph.
        dtype: NumPy's name of it; empty: the file does not say.
        shape: None for a size that the file leaves open; None altogether: it says nothing.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        shape = "?" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype or 'of an unknown type'} ({shape})"


def only_input(inputs: Sequence[Tensor], source: str) -> Tensor:
    """The image input. Raises ModelError unless it is the only one."""
    if len(inputs) != 1:
        raise ModelError(
            f"{source}: a heatmap model has one input, the picture; this one has {_listed(inputs)}. Export it with the "
            "others as constants"
        )
    return inputs[0]


def choose_heatmaps(outputs: Sequence[Tensor], spec: ModelSpec, source: str) -> Tensor | None:
    """The output that the spec means; None: ``spec.output`` names none of them, so look inside the graph.

    Raises:
        ModelError: there are several, and the spec does not say which.
    """
    if spec.output:
        return next((tensor for tensor in outputs if tensor.name == spec.output), None)
    if len(outputs) == 1:
        return outputs[0]
    if not outputs:
        raise ModelError(f"{source} is not an ONNX model: it parses as one without a single output")
    fitting = [tensor.name for tensor in outputs if not _disagreement(tensor, spec.heatmap_layout, _heatmaps(spec))]
    advice = f"; {' and '.join(fitting)} would fit the spec" if fitting else ""
    raise ModelError(
        f"{source}: a heatmap model has one output, this one has {_listed(outputs)}{advice}. Say in the spec which one "
        f'holds the heatmaps: "output": "{fitting[-1] if fitting else outputs[0].name}" (of stages the last is the '
        "best; two outputs for x and y are a SimCC model, which is not supported)"
    )


def check_image(image: Tensor, spec: ModelSpec | DetectorSpec, source: str) -> None:
    """Compare the input with the spec.

    Raises:
        ModelError: its type cannot be fed, or a size differs; says which field of the spec to change, and how.
    """
    if image.dtype and image.dtype not in FLOATS + LEVELS:
        raise ModelError(
            f"{source}: the input {image.name} is {image.dtype}, and edgepose feeds {', '.join(FLOATS + LEVELS)}: "
            "export the model without quantised inputs"
        )
    if image.dtype in LEVELS and (spec.scale, spec.mean, spec.std) != (1, (0, 0, 0), (1, 1, 1)):
        raise ModelError(
            f"{source}: the input {image.name} is {image.dtype}: it takes levels 0-255 as they are, and the spec says "
            f"scale {spec.scale:g}, mean {list(spec.mean)}, std {list(spec.std)}. Correct the spec: "
            '"scale": 1, "mean": [0, 0, 0], "std": [1, 1, 1]'
        )
    _compare("input", image, spec.layout, (3, *spec.input_size[::-1]), _image_advice(image, spec), source)


def check_heatmaps(heatmaps: Tensor, spec: ModelSpec, source: str) -> None:
    """The same for the output that holds the heatmaps."""
    if heatmaps.dtype and heatmaps.dtype not in FLOATS:
        raise ModelError(
            f"{source}: the output {heatmaps.name} is {heatmaps.dtype}, and heatmaps are {', '.join(FLOATS)}: export "
            'the model without quantised outputs, or name the heatmaps in the spec ("output")'
        )
    _compare("output", heatmaps, spec.heatmap_layout, _heatmaps(spec), _heatmap_advice(heatmaps, spec), source)
    if heatmaps.shape is not None and spec.heatmap_channels:
        channels, last = _sizes(heatmaps, spec.heatmap_layout)[0], max(spec.heatmap_channels)
        if channels is not None and last >= channels:
            raise ModelError(
                f"{source}: heatmap_channels names channel {last}, and the output {heatmaps} has channels 0 to "
                f"{channels - 1}: correct heatmap_channels, or heatmap_layout"
            )


def _heatmaps(spec: ModelSpec) -> tuple[int | None, int, int]:
    """Channels, height and width. With a list of channels the network may have any number of them that holds it."""
    width, height = spec.heatmap_size
    return (None if spec.heatmap_channels else spec.num_keypoints), height, width


def _disagreement(
    tensor: Tensor, layout: str, wanted: tuple[int | None, ...]
) -> tuple[str, int | None, int | None] | None:
    """The first size that differs: its name, the model's and the spec's."""
    if tensor.shape is None:
        return None
    if len(tensor.shape) != 4:
        return ("number of dimensions", len(tensor.shape), 4)
    by_name = dict(zip(_AXES["nchw"], wanted, strict=True))
    for name, have in zip(_AXES[layout], tensor.shape[1:], strict=True):
        if have is not None and by_name[name] not in {None, have}:
            return (name, have, by_name[name])
    return None


def _compare(what: str, tensor: Tensor, layout: str, wanted: tuple[int | None, ...], advice: str, source: str) -> None:
    if (found := _disagreement(tensor, layout, wanted)) is None:
        return
    name, have, want = found
    axes = "(batch, " + ", ".join(_AXES[layout]) + ")"
    stated = dict(zip(_AXES["nchw"], wanted, strict=True))
    sizes = ", ".join("any" if stated[axis] is None else str(stated[axis]) for axis in _AXES[layout])
    raise ModelError(
        f"{source}: model and spec disagree on the {what}'s {name}: the model has {have}, the spec says {want} (model: "
        f"{tensor}; spec: (any, {sizes}) {axes}). {advice}"
    )


def _sizes(tensor: Tensor, layout: str) -> tuple[int | None, int | None, int | None]:
    """Channels, height and width of a tensor with four dimensions, if it has this layout."""
    assert tensor.shape is not None
    by_name = dict(zip(_AXES[layout], tensor.shape[1:], strict=True))
    return by_name["channels"], by_name["height"], by_name["width"]


def _other(layout: str) -> str:
    return "nhwc" if layout == "nchw" else "nchw"


def _image_advice(image: Tensor, spec: ModelSpec | DetectorSpec) -> str:
    if image.shape is None:
        return ""
    if len(image.shape) != 4:
        return "A heatmap model takes a batch of pictures with four dimensions: export it so"
    channels, height, width = _sizes(image, spec.layout)
    if channels != 3 and _sizes(image, _other(spec.layout))[0] == 3:
        return f'The input looks like {_other(spec.layout)}: say "layout": "{_other(spec.layout)}" in the spec'
    if channels not in {3, None}:
        return f"edgepose feeds three colour channels, and this network takes {channels}"
    stated = list(spec.input_size)
    right = [stated[0] if width is None else width, stated[1] if height is None else height]
    return f'Sizes in a spec are [width, height]: say "input_size": {right}, or pass the model that the spec belongs to'


def _heatmap_advice(heatmaps: Tensor, spec: ModelSpec) -> str:
    if heatmaps.shape is None:
        return ""
    if len(heatmaps.shape) != 4:
        return (
            "Heatmaps have four dimensions: if they exist inside the graph, before what makes coordinates of them, "
            'name them in the spec ("output"); a model that gives coordinates only is not supported'
        )
    layout, (wanted_channels, wanted_height, wanted_width) = spec.heatmap_layout, _heatmaps(spec)
    channels, height, width = _sizes(heatmaps, layout)
    other = _sizes(heatmaps, _other(layout))
    fits = channels in {None, wanted_channels} or wanted_channels is None
    if (height, width) != (wanted_height, wanted_width) and other[1:] == (wanted_height, wanted_width):
        return f'The heatmaps look like {_other(layout)}: say "heatmap_layout": "{_other(layout)}" in the spec'
    if not fits and other[0] == wanted_channels:
        return f'The heatmaps look like {_other(layout)}: say "heatmap_layout": "{_other(layout)}" in the spec'
    if (width, height) != (wanted_width, wanted_height) and None not in (width, height):
        return f'Sizes in a spec are [width, height]: say "heatmap_size": {[width, height]}'
    count = spec.num_keypoints
    if channels is not None and channels > count:
        return (
            f"The network has {channels} channels, and the spec names {count} keypoints: say which channels they are, "
            f'for instance "heatmap_channels": {list(range(count))}, or name the others in keypoint_names'
        )
    return "Correct keypoint_names, or pass the model that the spec belongs to"


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(map(str, tensors)) or "none"
