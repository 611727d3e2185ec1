"""ModelSpec: everything that training and the runtime must agree on, in one frozen value.

The spec travels as JSON in the ONNX file's metadata (key ``edgepose_spec``), so a model file is
complete by itself. A model without one (somebody else's export) needs a spec file beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from edgepose.normalization import ColorOrder, Layout, canonical_normalization, normalization_problems
from edgepose.specfields import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Reader,
    SpecFields,
    boolean,
    integer,
    integer_lists,
    integer_ranges,
    integers,
    named_numbers,
    named_strings,
    number,
    numbers,
    string,
    strings,
)

__all__ = ["METADATA_KEY", "Codec", "ModelSpec", "Refinement", "Sampling"]

Codec = Literal["msra", "udp"]
Refinement = Literal["none", "shift", "dark", "dark_udp"]
Sampling = Literal["linear", "opencv4", "area"]
Activation = Literal["none", "sigmoid"]
Color = tuple[int, int, int]

METADATA_KEY = "edgepose_spec"
SCHEMA_VERSION = 1

# How a foreign network's input and output may differ from ours, and the values that say they do not. Written into a
# file only where they differ: whatever needs none of them can still be read by the versions before them.
_CANONICAL: dict[str, Any] = {
    "color": "rgb",
    "layout": "nchw",
    "scale": 1.0,
    "heatmap_layout": "nchw",
    "output": "",
    "heatmap_channels": (),
    "activation": "none",
}

_READERS: dict[str, Reader] = {
    "name": string,
    "input_size": integers,
    "heatmap_size": integers,
    "keypoint_names": strings,
    "flip_indices": integers,
    "skeleton": integer_lists,
    "colors": integer_lists,
    "codec": string,
    "refinement": string,
    "blur_kernel": integer,
    "flip_shift": boolean,
    "mean": numbers,
    "std": numbers,
    "padding": number,
    "sampling": string,
    "category": string,
    "categories": integer_ranges,
    "license": string,
    "metrics": named_numbers,
    "training": named_strings,
    "color": string,
    "layout": string,
    "scale": number,
    "heatmap_layout": string,
    "output": string,
    "heatmap_channels": integers,
    "activation": string,
}

_EXAMPLE = """\
{
  "name": "my-model",
  "input_size": [192, 256],
  "heatmap_size": [48, 64],
  "keypoint_names": ["left hem", "right hem"],
  "flip_indices": [1, 0],
  "codec": "msra",
  "refinement": "shift"
}"""
_NO_SPEC = (
    "carries no edgepose spec (it was not exported by edgepose). Write what the model expects into a JSON file and "
    "pass it: Predictor({source!r}, spec='spec.json') or --spec spec.json. `edgepose info` begins such a file. "
    f"For example:\n{_EXAMPLE}"
)


@dataclass(frozen=True)
class ModelSpec(SpecFields):
    """How to feed a heatmap model and how to read its output.

    Attributes:
        name: what the model is called in results and messages.
        input_size: (w, h) of the network's input, px.
        heatmap_size: (w, h) of its heatmaps, cells.
        keypoint_names: K names, in channel order.
        flip_indices: K channel numbers: where each landmark goes when the image is mirrored.
        skeleton: pairs of channel numbers to draw a line between.
        colors: K RGB colours for drawing; empty: a default palette.
        codec: ``msra`` or ``udp``: fixes the crop transform, the mapping from cells to pixels and the flip test.
        refinement: the sub-pixel step of the decoder: ``none``, ``shift``, ``dark`` or ``dark_udp``.
        blur_kernel: odd side of the Gaussian that ``dark`` and ``dark_udp`` smooth heatmaps with, cells.
        flip_shift: move the mirrored heatmaps one cell to the right in a flip test (MMPose's ``shift_heatmap``);
            right for a ``msra`` model at stride 4, and always off for ``udp``.
        mean, std: the network's input is ``(level * scale - mean) / std``; three values each, ordered as ``color``.
        padding: how much larger than the box the crop is.
        sampling: how the crop is interpolated (see ``kernels.reference.crop_warp``): ``opencv4``, the fixed point that
            MMPose's models were trained on; ``linear``; ``area``, without aliasing when a large frame is shrunk.
        category: what the model was trained on, for instance ``trousers``; empty: any.
        categories: for a network that serves several categories, as DeepFashion2's 294 channels do its 13: the channels
            [begin, end) of each; ``predict`` takes a category for each box and reads those only. Empty: there is one.
        license: licence of the weights, an SPDX expression where there is one.
        metrics: figures of the training run, for instance ``{"PCK@0.2": 0.98}``.
        training: where the weights come from: data, command, date.
        color: ``rgb`` or ``bgr``: the order of the network's input channels.
        layout: ``nchw`` or ``nhwc``: of the input.
        scale: what levels from 0 to 255 are multiplied with first: 1, or 1/255 for a network that takes 0 to 1.
        heatmap_layout: ``nchw`` or ``nhwc``: of the heatmaps.
        output: name of the tensor that holds the heatmaps, for a network with several outputs, or to read one from
            inside the graph, before what an export appended. Empty: the only output.
        heatmap_channels: for a network with more channels than keypoints (background, limbs): the channel of each
            keypoint. Empty: channel k is keypoint k. Every other field that numbers channels numbers keypoints.
        activation: ``sigmoid`` for a network whose heatmaps are logits: a map below 0 has no peak. ``none``: any other.

    Raises:
        ModelError: a field is missing, unknown, or contradicts another one.
    """

    name: str
    input_size: tuple[int, int]
    heatmap_size: tuple[int, int]
    keypoint_names: tuple[str, ...]
    flip_indices: tuple[int, ...]
    skeleton: tuple[tuple[int, int], ...] = ()
    colors: tuple[Color, ...] = ()
    codec: Codec = "msra"
    refinement: Refinement = "shift"
    blur_kernel: int = 11
    flip_shift: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    padding: float = 1.25
    sampling: Sampling = "opencv4"
    category: str = ""
    categories: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    license: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    training: Mapping[str, str] = field(default_factory=dict, hash=False)
    color: ColorOrder = "rgb"
    layout: Layout = "nchw"
    scale: float = 1.0
    heatmap_layout: Layout = "nchw"
    output: str = ""
    heatmap_channels: tuple[int, ...] = ()
    activation: Activation = "none"

    METADATA_KEY: ClassVar[str] = METADATA_KEY
    SCHEMA_VERSION: ClassVar[int] = SCHEMA_VERSION
    READERS: ClassVar[Mapping[str, Reader]] = _READERS
    NO_METADATA: ClassVar[str] = _NO_SPEC

    @property
    def num_keypoints(self) -> int:
        """K, the number of heatmaps that the decoder reads."""
        return len(self.keypoint_names)

    def _problems(self) -> list[str]:
        k = len(self.keypoint_names)
        problems = []
        for name in ("input_size", "heatmap_size"):
            size = getattr(self, name)
            if len(size) != 2 or any(type(v) is not int or v < 2 for v in size):
                problems.append(f"{name} must be two integers (width, height) of at least 2, got {size!r}")
        if k == 0:
            problems.append("keypoint_names is empty: give one name for each heatmap channel")
        if len(set(self.keypoint_names)) != k:
            problems.append("keypoint_names holds a name twice: landmarks are addressed by name")
        flips = self.flip_indices
        if sorted(flips) != list(range(k)) or any(flips[flips[i]] != i for i in range(k)):
            problems.append(
                f"flip_indices must be a permutation of 0..{k - 1} that undoes itself (mirrored twice, "
                f"an image is itself), got {list(flips)}"
            )
        if any(len(link) != 2 or not all(type(i) is int and 0 <= i < k for i in link) for link in self.skeleton):
            problems.append(f"skeleton must hold pairs of channel numbers 0..{k - 1}, got {list(self.skeleton)}")
        if self.colors and len(self.colors) != k:
            problems.append(f"colors must be empty or hold {k} RGB colours, got {len(self.colors)}")
        if any(len(c) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in c) for c in self.colors):
            problems.append("colors must hold RGB triples of integers 0..255")
        for name, allowed in (
            ("codec", Codec),
            ("refinement", Refinement),
            ("sampling", Sampling),
            ("heatmap_layout", Layout),
            ("activation", Activation),
        ):
            if getattr(self, name) not in get_args(allowed):
                problems.append(f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        if type(self.blur_kernel) is not int or self.blur_kernel < 3 or self.blur_kernel % 2 == 0:
            problems.append(f"blur_kernel must be an odd integer of at least 3, got {self.blur_kernel!r}")
        for category, channels in self.categories.items():
            if len(channels) != 2 or not 0 <= channels[0] < channels[1] <= k:
                problems.append(
                    f"categories: {category!r} must have channels [begin, end) within 0..{k}, got {channels}"
                )
            elif any(not channels[0] <= flips[i] < channels[1] for i in range(*channels) if i < len(flips)):
                problems.append(f"flip_indices lead out of the channels {list(channels)} of the category {category!r}")
        if self.codec == "udp" and self.flip_shift:
            problems.append("flip_shift belongs to msra models: udp heatmaps are already aligned under a flip")
        problems += normalization_problems(self)
        if picked := self.heatmap_channels:
            if len(picked) != k:
                problems.append(
                    f"heatmap_channels must be empty or hold {k} channels, one for each keypoint, got {len(picked)}"
                )
            if min(picked) < 0 or len(set(picked)) != len(picked):
                problems.append(f"heatmap_channels must hold different channels from 0 on, got {list(picked)}")
        if not self.padding > 0:
            problems.append(f"padding must be positive, got {self.padding!r}")
        return problems

    @property
    def is_canonical(self) -> bool:
        """Whether the network takes and gives what the kernels do: ``canonical`` changes nothing."""
        return all(getattr(self, name) == default for name, default in _CANONICAL.items())

    def canonical(self) -> ModelSpec:
        """The spec of the network as :func:`edgepose.adapt.adapt` makes it: RGB levels 0-255, NCHW, one output.

        Mean and std are folded for RGB levels from 0 to 255, exactly where ``scale`` is 1. The spec itself where
        nothing changes.
        """
        if self.is_canonical:
            return self
        mean, std = canonical_normalization(self)
        return replace(self, mean=mean, std=std, **_CANONICAL)

    def to_json(self, *, indent: int | None = None) -> str:
        """The spec as JSON text, ``from_json``'s inverse; what only foreign networks need is left out elsewhere."""
        values = json.loads(super().to_json())
        kept = {k: v for k, v in values.items() if k not in _CANONICAL or getattr(self, k) != _CANONICAL[k]}
        return json.dumps(kept, indent=indent)
