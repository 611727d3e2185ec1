"""ModelSpec: everything that training and the runtime must agree on, in one frozen value.

The spec travels as JSON in the ONNX file's metadata (key ``edgepose_spec``), so a model file is
complete by itself. A model without one (somebody else's export) needs a spec file beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgepose.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["METADATA_KEY", "Codec", "ModelSpec", "Refinement", "Sampling"]

Codec = Literal["msra", "udp"]
Refinement = Literal["none", "shift", "dark", "dark_udp"]
Sampling = Literal["linear", "opencv4", "area"]
Color = tuple[int, int, int]

METADATA_KEY = "edgepose_spec"
SCHEMA_VERSION = 1

# ImageNet statistics on the 0–255 scale, RGB: what MMPose's models were trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ModelSpec:
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
        mean, std: RGB normalisation on the 0–255 scale.
        padding: how much larger than the box the crop is.
        sampling: how the crop is interpolated (see ``kernels.reference.crop_warp``): ``opencv4``, the fixed point that
            MMPose's models were trained on; ``linear``; ``area``, without aliasing when a large frame is shrunk.
        category: what the model was trained on, for instance ``trousers``; empty: any.
        categories: for a network that serves several categories, as DeepFashion2's 294 channels do its 13: the channels
            [begin, end) of each; ``predict`` takes a category for each box and reads those only. Empty: there is one.
        license: licence of the weights, an SPDX expression where there is one.
        metrics: figures of the training run, for instance ``{"PCK@0.2": 0.98}``.
        training: where the weights come from: data, command, date.

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

    def __post_init__(self) -> None:
        for name, read in _FROM_JSON.items():  # lists become tuples, so that equal specs compare equal
            try:
                object.__setattr__(self, name, read(getattr(self, name)))
            except TypeError as error:
                raise ModelError(f"ModelSpec {self.name!r}: {name}: {error}") from None
        for problem in self._problems():
            raise ModelError(f"ModelSpec {self.name!r}: {problem}")

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
        for name, allowed in (("codec", Codec), ("refinement", Refinement), ("sampling", Sampling)):
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
        if len(self.mean) != 3 or len(self.std) != 3 or any(not v > 0 for v in self.std):
            problems.append(f"mean and std must hold three RGB values, std > 0, got {self.mean!r} and {self.std!r}")
        if not self.padding > 0:
            problems.append(f"padding must be positive, got {self.padding!r}")
        return problems

    # JSON ---------------------------------------------------------------------------------------

    def to_json(self, *, indent: int | None = None) -> str:
        """The spec as JSON text, ``from_json``'s inverse."""
        return json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, indent=indent)

    @classmethod
    def from_json(cls, text: str, *, source: str = "spec") -> ModelSpec:
        """Read a spec from JSON text; ``source`` is what an error message calls it.

        Raises:
            ModelError: not JSON, a key is unknown or missing, or a value is of the wrong kind.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelError(f"{source}: expected JSON, but it does not parse: {error}") from None
        if not isinstance(data, dict):
            raise ModelError(f"{source}: expected a JSON object of ModelSpec fields, got {type(data).__name__}")
        schema = data.pop("schema", SCHEMA_VERSION)
        if schema != SCHEMA_VERSION:
            raise ModelError(
                f"{source}: written with spec schema {schema!r}; this edgepose reads schema {SCHEMA_VERSION}. "
                "Upgrade edgepose, or export the model again with this version."
            )
        known = {f.name for f in fields(cls)}
        required = {"name", "input_size", "heatmap_size", "keypoint_names", "flip_indices"}
        if unknown := sorted(set(data) - known):
            raise ModelError(f"{source}: unknown keys {unknown}; a spec has {sorted(known)}")
        if missing := sorted(required - set(data)):
            raise ModelError(f"{source}: keys {missing} are missing; at least {sorted(required)} are needed")
        try:
            return cls(**data)
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> ModelSpec:
        """Read a spec from a JSON file."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(f"spec file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ModelError(f"spec file {path} is not a text file: expected JSON") from None
        return cls.from_json(text, source=str(path))

    # ONNX ---------------------------------------------------------------------------------------

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, source: str) -> ModelSpec:
        """Read the spec from an ONNX model's metadata.

        Raises:
            ModelError: the model carries no spec; the message shows how to give one.
        """
        if METADATA_KEY not in metadata:
            raise ModelError(
                f"{source} carries no edgepose spec (it was not exported by edgepose). Write what the model expects "
                f"into a JSON file and pass it: Predictor({source!r}, spec='spec.json') or --spec spec.json. "
                f"For example:\n{_EXAMPLE}"
            )
        return cls.from_json(metadata[METADATA_KEY], source=f"{source} (metadata {METADATA_KEY})")

    def write_metadata(self, model: onnx.ModelProto) -> None:
        """Store the spec in an ONNX model's metadata, in place; a spec that is already there is replaced."""
        kept = [(prop.key, prop.value) for prop in model.metadata_props if prop.key != METADATA_KEY]
        del model.metadata_props[:]
        for key, value in [*kept, (METADATA_KEY, self.to_json())]:
            prop = model.metadata_props.add()
            prop.key, prop.value = key, value


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or any(type(v) is not int for v in value):
        raise TypeError(f"expected a list of integers, got {value!r}")
    return tuple(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list of numbers, got {value!r}")
    return tuple(_number(v) for v in value)


def _integer_lists(value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list of lists of integers, got {value!r}")
    return tuple(_integers(v) for v in value)


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or any(not isinstance(v, str) for v in value):
        raise TypeError(f"expected a list of strings, got {value!r}")
    return tuple(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r}")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {value!r}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, got {value!r}")
    return float(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def _categories(value: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object of channel ranges [begin, end), got {value!r}")
    return {_string(k): _integers(v) for k, v in value.items()}


def _metrics(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object of numbers, got {value!r}")
    return {_string(k): _number(v) for k, v in value.items()}


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object of strings, got {value!r}")
    return {_string(k): _string(v) for k, v in value.items()}


_FROM_JSON: dict[str, Any] = {
    "name": _string,
    "input_size": _integers,
    "heatmap_size": _integers,
    "keypoint_names": _strings,
    "flip_indices": _integers,
    "skeleton": _integer_lists,
    "colors": _integer_lists,
    "codec": _string,
    "refinement": _string,
    "blur_kernel": _integer,
    "flip_shift": _boolean,
    "mean": _numbers,
    "std": _numbers,
    "padding": _number,
    "sampling": _string,
    "category": _string,
    "categories": _categories,
    "license": _string,
    "metrics": _metrics,
    "training": _texts,
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
