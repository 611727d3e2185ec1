"""Strict reading of dataclasses from JSON: every key is known and there, every value of the right kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["FieldError", "kind", "mapping_of", "one_of", "read_dataclass", "tuple_of"]

Reader = Callable[[Any], Any]
T = TypeVar("T")


class FieldError(Exception):
    """A field is missing, unknown or of the wrong kind; whoever reads a file says in which."""


def kind(*allowed: type) -> Reader:
    """A value of one of these types; true and false are no numbers."""

    def read(value: Any) -> Any:
        if type(value) not in allowed:
            raise FieldError(f"expected {' or '.join(item.__name__ for item in allowed)}, got {value!r}")
        return value

    return read


def one_of(*allowed: Any) -> Reader:
    """One of these values."""

    def read(value: Any) -> Any:
        if value not in allowed:
            raise FieldError(f"expected one of {', '.join(map(repr, allowed))}, got {value!r}")
        return value

    return read


def tuple_of(item_type: type, length: int | None = None) -> Reader:
    """A list of values of one type."""

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or any(type(item) is not item_type for item in value):
            raise FieldError(f"expected a list of {item_type.__name__}, got {value!r}")
        if length not in {None, len(value)}:
            raise FieldError(f"expected {length} values, got {value!r}")
        return tuple(value)

    return read


def mapping_of(value_type: type) -> Reader:
    """An object whose values are all of one type."""

    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict or any(type(item) is not value_type for item in value.values()):
            raise FieldError(f"expected an object of {value_type.__name__}, got {value!r}")
        return dict(value)

    return read


def read_dataclass(cls: Callable[..., T], data: Any, readers: Mapping[str, Reader]) -> T:
    """An object of ``cls`` from a JSON object with exactly these keys.

    Raises:
        FieldError: names the key.
    """
    if not isinstance(data, dict):
        raise FieldError(f"expected an object, got {data!r}")
    if unknown := sorted(set(data) - set(readers)):
        raise FieldError(f"unknown keys {unknown}")
    if missing := sorted(set(readers) - set(data)):
        raise FieldError(f"keys {missing} are missing")
    values = {}
    for name, read in readers.items():
        try:
            values[name] = read(data[name])
        except FieldError as error:
            raise FieldError(f"{name}: {error}") from None
    return cls(**values)
