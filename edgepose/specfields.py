"""What the specs of models and of detectors share: strict fields, JSON, files, and the metadata of ONNX files.

A spec is a frozen dataclass that derives from :class:`SpecFields` and names a reader for each of its fields. A reader
takes a value from JSON, or from a caller, and returns it in its one form (lists become tuples, so that equal specs
compare equal), or raises TypeError, which says what was expected and what came.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgepose.errors import ModelError

if TYPE_CHECKING:
    import onnx
    from typing_extensions import Self

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Reader",
    "SpecFields",
    "boolean",
    "integer",
    "integer_lists",
    "integer_ranges",
    "integers",
    "named_numbers",
    "named_strings",
    "number",
    "numbers",
    "optional",
    "string",
    "strings",
]

Reader = Callable[[Any], Any]

# ImageNet statistics on the 0–255 scale, RGB: what MMPose's models were trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class SpecFields:
    """Base of the specs; a subclass is a frozen dataclass and sets the four class variables.

    Raises, as every subclass does:
        ModelError: a field is missing, unknown, of the wrong kind, or contradicts another one.
    """

    METADATA_KEY: ClassVar[str]  # of an ONNX file's metadata, where the JSON is stored
    SCHEMA_VERSION: ClassVar[int]
    READERS: ClassVar[Mapping[str, Reader]]  # of each field
    NO_METADATA: ClassVar[str]  # what to do with a model that carries no spec; {source!r} is its file

    name: str

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name, read in self.READERS.items():
            try:
                object.__setattr__(self, name, read(getattr(self, name)))
            except TypeError as error:
                raise ModelError(f"{kind} {self.name!r}: {name}: {error}") from None
        for problem in self._problems():
            raise ModelError(f"{kind} {self.name!r}: {problem}")

    def _problems(self) -> list[str]:
        """What is wrong between fields that are of the right kind, a sentence each."""
        raise NotImplementedError

    def to_json(self, *, indent: int | None = None) -> str:
        """The spec as JSON text, ``from_json``'s inverse."""
        return json.dumps({"schema": self.SCHEMA_VERSION, **asdict(self)}, indent=indent)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str, *, source: str = "spec") -> Self:
        """Read a spec from JSON text; ``source`` is what an error message calls it.

        Raises:
            ModelError: not JSON, a key is unknown or missing, or a value is of the wrong kind.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelError(f"{source}: expected JSON, but it does not parse: {error}") from None
        if not isinstance(data, dict):
            raise ModelError(f"{source}: expected a JSON object of {cls.__name__} fields, got {type(data).__name__}")
        schema = data.pop("schema", cls.SCHEMA_VERSION)
        if schema != cls.SCHEMA_VERSION:
            raise ModelError(
                f"{source}: written with spec schema {schema!r}; this edgepose reads schema {cls.SCHEMA_VERSION}. "
                "Upgrade edgepose, or export the model again with this version."
            )
        known, required = cls._keys()
        if unknown := sorted(set(data) - known):
            raise ModelError(f"{source}: unknown keys {unknown}; a spec has {sorted(known)}")
        if missing := sorted(required - set(data)):
            raise ModelError(f"{source}: keys {missing} are missing; at least {sorted(required)} are needed")
        try:
            return cls(**data)
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from None

    @classmethod
    def _keys(cls) -> tuple[set[str], set[str]]:
        """All keys, and those without a default."""
        known = fields(cls)  # type: ignore[arg-type]
        required = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
        return {f.name for f in known}, required

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a spec from a JSON file."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(f"spec file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ModelError(f"spec file {path} is not a text file: expected JSON") from None
        return cls.from_json(text, source=str(path))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, source: str) -> Self:
        """Read the spec from an ONNX model's metadata.

        Raises:
            ModelError: the model carries no spec; the message shows how to give one.
        """
        if cls.METADATA_KEY not in metadata:
            raise ModelError(f"{source} {cls.NO_METADATA.replace('{source!r}', repr(source))}")
        return cls.from_json(metadata[cls.METADATA_KEY], source=f"{source} (metadata {cls.METADATA_KEY})")

    def write_metadata(self, model: onnx.ModelProto) -> None:
        """Store the spec in an ONNX model's metadata, in place; a spec that is already there is replaced."""
        kept = [(prop.key, prop.value) for prop in model.metadata_props if prop.key != self.METADATA_KEY]
        del model.metadata_props[:]
        for key, value in [*kept, (self.METADATA_KEY, self.to_json())]:
            prop = model.metadata_props.add()
            prop.key, prop.value = key, value


def string(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r}")
    return value


def integer(value: Any) -> int:
    """A whole number; true and false are none, and neither is 1.0."""
    if type(value) is not int:
        raise TypeError(f"expected an integer, got {value!r}")
    return value


def number(value: Any) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, got {value!r}")
    return float(value)


def boolean(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def optional(read: Reader) -> Reader:
    """None (null), or what ``read`` takes."""

    def read_optional(value: Any) -> Any:
        return None if value is None else read(value)

    return read_optional


def integers(value: Any) -> tuple[int, ...]:
    """A list of integers."""
    if not isinstance(value, (list, tuple)) or any(type(v) is not int for v in value):
        raise TypeError(f"expected a list of integers, got {value!r}")
    return tuple(value)


def numbers(value: Any) -> tuple[float, ...]:
    """A list of finite numbers."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list of numbers, got {value!r}")
    return tuple(number(v) for v in value)


def integer_lists(value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of lists of integers."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list of lists of integers, got {value!r}")
    return tuple(integers(v) for v in value)


def strings(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, (list, tuple)) or any(not isinstance(v, str) for v in value):
        raise TypeError(f"expected a list of strings, got {value!r}")
    return tuple(value)


def integer_ranges(value: Any) -> dict[str, tuple[int, ...]]:
    """Ranges of channels by name."""
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object of channel ranges [begin, end), got {value!r}")
    return {string(k): integers(v) for k, v in value.items()}


def named_numbers(value: Any) -> dict[str, float]:
    """Numbers by name."""
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object of numbers, got {value!r}")
    return {string(k): number(v) for k, v in value.items()}


def named_strings(value: Any) -> dict[str, str]:
    """Texts by name."""
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object of strings, got {value!r}")
    return {string(k): string(v) for k, v in value.items()}
