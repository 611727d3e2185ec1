"""What comes out of a foreign pickle: plain values, and the inert classes here; see :mod:`edgepose.training.unpickle`.

``BUILDERS`` is the whole list of names that mean something in a pickle. A builder gets values that the file chose, so
it checks every one of them, calls none, and charges the machine for whatever it copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["BUILDERS", "Array", "Dropped", "Malformed", "Name", "Storage", "TensorView", "fill", "is_size"]

MAX_DIMENSIONS = 16
PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US][1-9][0-9]{0,4}")


class Malformed(ValueError):
    """The bytes are not what is read here; the message says why, and fits after "the file is damaged: "."""


@dataclass(frozen=True)
class Name:
    """What a pickle mentions: ``module.name``. Nothing was looked up."""

    name: str


@dataclass(frozen=True)
class Dropped:
    """An object of a type that isn't rebuilt."""

    type_name: str


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers are.

    Attributes:
        key: of the file's record.
        kind: torch's name of its type: ``FloatStorage``.
        count: elements in the record.
    """

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A tensor that hasn't been read: every element lies inside its storage, and there are no more than that has.

    Attributes:
        storage: see :class:`Storage`.
        offset: of the first element, elements.
        size: the shape.
        stride: elements; as long as ``size``.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Array:
    """A NumPy array: BUILD fills ``value``; None if it is empty, or its elements are no plain numbers or texts."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: npt.NDArray[Any] | None = None


class DType:
    """A NumPy dtype as its pickle has it: a code, and the byte order that BUILD fills in."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "|"

    def plain(self) -> np.dtype[Any] | None:
        """None: the elements are objects, records or dates."""
        if not PLAIN_DTYPE.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            return None
        return np.dtype(self.order + self.code)


class Machine(Protocol):
    """What builders need of the :class:`~edgepose.training.unpickle.Unpickler`."""

    def drop(self, type_name: str) -> Dropped: ...
    def spend(self, count: int) -> None: ...
    def set_items(self, target: Any, items: list[Any]) -> None: ...


def is_size(values: Any) -> bool:
    """Whether this is a short tuple of integers >= 0."""
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < 1 << 62 for value in values)
    )


def fill(machine: Machine, target: Any, state: Any) -> None:
    """BUILD: the state of an array or a dtype; that of anything else is dropped."""
    if isinstance(target, DType) and isinstance(state, tuple) and len(state) >= 5:
        target.order = state[1] if isinstance(state[1], str) and state[2:5] == (None, None, None) else "?"
    if not isinstance(target, Array) or not isinstance(state, tuple) or len(state) != 5:
        return
    _, size, dtype, fortran, data = state
    plain = dtype.plain() if isinstance(dtype, DType) else None
    if plain is None or not is_size(size) or not isinstance(data, bytes):
        machine.drop("numpy.ndarray of objects")
        return
    count = 1
    for length in size:
        count *= length
    if count * plain.itemsize != len(data):
        raise Malformed(f"a NumPy array of size {size} has {len(data)} bytes")
    if count:
        target.value = np.frombuffer(data, plain).reshape(size, order="F" if fortran is True else "C")


# Builders ---------------------------------------------------------------------------------------


def _tensor(
    machine: Machine, storage: Any = None, offset: Any = None, size: Any = None, stride: Any = None, *_: Any
) -> Any:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2; what follows the strides is gradients and hooks."""
    if isinstance(storage, Dropped):
        return machine.drop(storage.type_name)
    if not isinstance(storage, Storage) or not is_size((offset,)) or not is_size(size) or not is_size(stride):
        raise Malformed("a tensor's storage, offset, size or strides are not what they must be")
    count, last = 1, offset
    for length, step in zip(size, stride, strict=False):
        count *= length
        last += (length - 1) * step
    if len(size) != len(stride) or count > storage.count or (count > 0 and last >= storage.count):
        raise Malformed(
            f"a tensor of size {size}, strides {stride} and offset {offset} reaches beyond its {storage.count} values"
        )
    return TensorView(storage, offset if count else 0, size, stride)


def _parameter(machine: Machine, data: Any = None, *_: Any) -> Any:
    """torch._utils._rebuild_parameter: the tensor; whether it wants a gradient is the network's affair."""
    return data


def _dict(machine: Machine, pairs: Any = (), *_: Any) -> Any:
    """OrderedDict, which Python 2 wrote with its pairs; and defaultdict, whose factory is dropped."""
    made: dict[Any, Any] = {}
    if isinstance(pairs, (list, tuple)):
        machine.spend(4 * len(pairs))
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise Malformed("an OrderedDict in its pickle is made of something else than pairs")
            machine.set_items(made, list(pair))
    return made


def _list(machine: Machine, items: Any = (), *_: Any) -> Any:
    """set and frozenset, as lists: their items would have to be hashed."""
    if not isinstance(items, (list, tuple)):
        return machine.drop("set")
    machine.spend(len(items))
    return list(items)


def _size(machine: Machine, values: Any = (), *_: Any) -> Any:
    """torch.Size."""
    return values if is_size(values) else machine.drop("torch.Size")


def _encode(machine: Machine, text: Any = "", encoding: Any = "", *_: Any) -> Any:
    """_codecs.encode: how protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        return machine.drop("_codecs.encode")
    machine.spend(len(text) // 64)  # else one text could be copied without end
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise Malformed("a text that should be bytes has other characters") from None


def _dtype(machine: Machine, code: Any = None, *_: Any) -> Any:
    return DType(code) if isinstance(code, str) else machine.drop("numpy.dtype")


def _array(machine: Machine, *_: Any) -> Any:
    """numpy's _reconstruct makes an empty array, which BUILD fills."""
    return Array()


def _scalar(machine: Machine, dtype: Any = None, data: Any = None, *_: Any) -> Any:
    """A NumPy number or text, as Python's own type."""
    plain = dtype.plain() if isinstance(dtype, DType) else None
    if plain is None or not isinstance(data, bytes) or len(data) != plain.itemsize:
        return machine.drop("numpy scalar")
    machine.spend(len(data) // 64)
    try:
        return np.frombuffer(data, plain)[0].item()
    except ValueError:  # code points beyond Unicode
        raise Malformed("a NumPy text in its pickle is none") from None


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "__builtin__.set": _list,
    "__builtin__.frozenset": _list,
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
