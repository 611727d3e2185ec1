"""Reading a pickle without running it: the weights and plain data come out, everything else is dropped.

A pickle is a program for a small stack machine, and Python's own machine lets that program import any module and call
anything in it. This one is written anew, and cannot:

- **Nothing is imported, looked up or called by a name from the file.** GLOBAL makes a :class:`Name`, which is a text
  and no more. REDUCE, NEWOBJ, OBJ and INST look a name up in the constant table :data:`~inert.BUILDERS`; whatever isn't
  there becomes a :class:`Dropped`. No builder calls anything that it is given.
- **No object's methods are called**: neither ``__setstate__`` nor ``append`` nor ``__setitem__`` of a class that the
  file names, as no such class exists here. The values are None, bool, int, float, str, bytes, list, tuple, dict and
  the inert classes of :mod:`edgepose.training.inert`; BUILD fills in two of those and has no effect on all others.
  There are no extension codes (``copyreg``) and no out-of-band buffers.
- **Nothing hostile is hashed or compared**: keys of dicts are str, bytes, small ints, bools and None; sets are kept as
  lists. So neither nested tuples (exponential, or as deep as the C stack) nor colliding numbers cost anything.
- **Time and memory are bounded** by ``MAX_OPERATIONS`` and by the file's own size: a length is checked against what
  is left of the file before it is read, the memo is a dict and not an array that an index could blow up, a copy is
  charged like the operations that it saves, and nothing here walks into nested values.

Protocols 2 to 5 are read; torch writes 2.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, BinaryIO

from edgepose.training.inert import BUILDERS, Array, Dropped, Malformed, Name, Storage, TensorView, fill

__all__ = ["Array", "Dropped", "Malformed", "Name", "Storage", "TensorView", "Unpickler"]

MAX_OPERATIONS = 1_000_000  # about 1 s and 100 MB at most; HRNet-W48 with Adam's state takes a seventh of it
MAX_LINE = 4096  # bytes of a GLOBAL's module or name
MAX_INTEGER_BYTES = 64
MAX_KEY = 1 << 60  # ints below this have hashes of their own
UNCHECKED_READ = 1 << 16  # bytes; shorter reads may simply come out short
UNREMARKABLE = re.compile(r"torch\.(cuda\.)?\w+Storage|torch\.[a-z]+\d+|torch\.bool|numpy\.ndarray")  # mere mentions


class Unpickler:
    """Reads the pickles of a file, one after the other.

    Args:
        file: positioned at the first pickle.
        size: of the file, bytes.
        persistent: makes a value of a persistent id, which it must treat as hostile. None: there are none.

    Attributes:
        dropped: how many objects of which type were dropped; 0: the name was only mentioned.
    """

    def __init__(self, file: BinaryIO, size: int, persistent: Callable[[Any], Any] | None = None) -> None:
        self.file, self.size, self.persistent = file, size, persistent
        self.dropped: Counter[str] = Counter()
        self.operations = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stack is cut at each mark; these are the parts under it
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next pickle's value; the file then stands behind it.

        Raises:
            Malformed: it is no pickle, an operation is not understood, or it is beyond a limit.
        """
        self.stack, self.below, self.memo = [], [], {}
        try:
            while (code := self.read(1)) != b".":
                self.spend(1)
                operation = OPERATIONS.get(code)
                if operation is None:
                    raise Malformed(f"{code!r} is no pickle operation, or none that torch writes")
                operation(self)
            return self.stack.pop()
        except (IndexError, KeyError):
            raise Malformed("its pickle refers to values that it doesn't have") from None
        except UnicodeDecodeError:
            raise Malformed("a text in its pickle is no UTF-8") from None

    # What the operations are made of ------------------------------------------------------------

    def spend(self, count: int) -> None:
        """Charge the work, or the memory, of so many operations."""
        self.operations += count
        if self.operations > MAX_OPERATIONS:
            raise Malformed(f"its pickle takes more than {MAX_OPERATIONS} operations, many times a large checkpoint's")

    def read(self, count: int) -> bytes:
        """The next bytes, all of them."""
        if count > UNCHECKED_READ and count > self.size - self.file.tell():
            raise Malformed(f"its pickle announces {count} bytes, but the file ends before")
        data = self.file.read(count)
        if len(data) != count:
            raise Malformed("its pickle is cut off")
        return data

    def number(self, code: str) -> int:
        """A little-endian integer; the code is `struct`'s."""
        (value,) = struct.unpack("<" + code, self.read(struct.calcsize("<" + code)))
        return int(value)

    def line(self) -> str:
        """Text up to a line feed."""
        data = self.file.readline(MAX_LINE)
        if not data.endswith(b"\n"):
            raise Malformed("a name in its pickle is cut off or too long")
        return data[:-1].decode()

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: Any, name: Any) -> Name:
        """What GLOBAL leaves on the stack."""
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > 2 * MAX_LINE:
            raise Malformed("its pickle names something by other means than two short texts")
        found = Name(f"{module}.{name}")
        if found.name not in BUILDERS and not UNREMARKABLE.fullmatch(found.name):
            self.dropped[found.name] += 0
        return found

    def make(self, what: Any, arguments: Any) -> Any:
        """What REDUCE and its relatives leave on the stack."""
        if isinstance(what, Dropped):
            return self.drop(what.type_name)
        if not isinstance(what, Name):
            raise Malformed(f"its pickle calls a {type(what).__name__}")
        if what.name in BUILDERS and isinstance(arguments, tuple):
            return BUILDERS[what.name](self, *arguments[:8])
        return self.drop(what.name)

    def drop(self, type_name: str) -> Dropped:
        """Count an object that isn't rebuilt."""
        self.dropped[type_name] += 1
        return Dropped(type_name)

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Keys and values, in turn, into a dict."""
        if isinstance(target, Dropped):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise Malformed(f"its pickle sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key is None or isinstance(key, (str, bytes)) or (isinstance(key, int) and abs(key) < MAX_KEY):
                target[key] = value
            else:
                self.drop(f"entry of a dict under a {getattr(key, 'type_name', type(key).__name__)}")

    def add_items(self, target: Any, items: list[Any]) -> None:
        """Items to the end of a list."""
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Dropped):
            raise Malformed(f"its pickle appends to a {type(target).__name__}")

    def persistent_value(self, identity: Any) -> Any:
        """What a persistent id stands for."""
        if self.persistent is None:
            raise Malformed("its pickle refers to a storage where there can be none")
        return self.persistent(identity)


# Operations -------------------------------------------------------------------------------------

OPERATIONS: dict[bytes, Callable[[Unpickler], None]] = {}


def _operation(code: bytes) -> Callable[[Callable[[Unpickler], None]], Callable[[Unpickler], None]]:
    def register(function: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
        OPERATIONS[code] = function
        return function

    return register


def _pushes(code: bytes, value: Callable[[Unpickler], Any]) -> None:
    """An operation that leaves one value on the stack."""

    def push(machine: Unpickler) -> None:
        made = value(machine)  # first: it may cut the stack
        machine.stack.append(made)

    OPERATIONS[code] = push


def _integer(machine: Unpickler, kind: str) -> int:
    length = machine.number(kind)
    if not 0 <= length <= MAX_INTEGER_BYTES:
        raise Malformed(f"its pickle has an integer of {length} bytes")
    return int.from_bytes(machine.read(length), "little", signed=True)


def _bytes(machine: Unpickler, kind: str) -> bytes:
    return machine.read(machine.number(kind))


def _text(machine: Unpickler, kind: str) -> str:
    return _bytes(machine, kind).decode("utf-8", "surrogatepass")


def _python2_text(machine: Unpickler, kind: str) -> str:
    return _bytes(machine, kind).decode("latin1")


def _with_arguments(machine: Unpickler) -> Any:
    """REDUCE, NEWOBJ: a name and a tuple."""
    arguments = machine.stack.pop()
    return machine.make(machine.stack.pop(), arguments)


def _with_keywords(machine: Unpickler) -> Any:
    """NEWOBJ_EX: no builder takes keywords, so it always drops."""
    del machine.stack[-2:]
    return machine.make(machine.stack.pop(), None)


def _from_mark(machine: Unpickler) -> Any:
    """OBJ: a name and its arguments above a mark."""
    name, *arguments = machine.to_mark() or [None]
    return machine.make(name, tuple(arguments))


def _by_lines(machine: Unpickler) -> Any:
    """INST: arguments above a mark, the name in two lines."""
    name = machine.name(machine.line(), machine.line())
    return machine.make(name, tuple(machine.to_mark()))


def _last(count: int) -> Callable[[Unpickler], Any]:
    def take(machine: Unpickler) -> Any:
        if len(machine.stack) < count:
            raise IndexError
        items = tuple(machine.stack[-count:])
        del machine.stack[-count:]
        return items

    return take


def _stack_name(machine: Unpickler) -> Name:
    module, name = _last(2)(machine)
    return machine.name(module, name)


def _dict(machine: Unpickler) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    machine.set_items(made, machine.to_mark())
    return made


PUSHING: dict[bytes, Callable[[Unpickler], Any]] = {
    b"N": lambda _: None,
    b"\x88": lambda _: True,
    b"\x89": lambda _: False,
    b")": lambda _: (),
    b"]": lambda _: [],
    b"}": lambda _: {},
    b"\x8f": lambda _: [],  # EMPTY_SET
    b"K": lambda machine: machine.number("B"),
    b"M": lambda machine: machine.number("H"),
    b"J": lambda machine: machine.number("i"),
    b"\x8a": lambda machine: _integer(machine, "B"),
    b"\x8b": lambda machine: _integer(machine, "i"),
    b"G": lambda machine: struct.unpack(">d", machine.read(8))[0],
    b"X": lambda machine: _text(machine, "I"),
    b"\x8c": lambda machine: _text(machine, "B"),
    b"\x8d": lambda machine: _text(machine, "Q"),
    b"B": lambda machine: _bytes(machine, "I"),
    b"C": lambda machine: _bytes(machine, "B"),
    b"\x8e": lambda machine: _bytes(machine, "Q"),
    b"\x96": lambda machine: _bytes(machine, "Q"),
    b"T": lambda machine: _python2_text(machine, "I"),
    b"U": lambda machine: _python2_text(machine, "B"),
    b"h": lambda machine: machine.memo[machine.number("B")],
    b"j": lambda machine: machine.memo[machine.number("I")],
    b"2": lambda machine: machine.stack[-1],
    b"t": lambda machine: tuple(machine.to_mark()),
    b"l": lambda machine: machine.to_mark(),
    b"d": _dict,
    b"\x91": lambda machine: machine.to_mark(),  # FROZENSET
    b"\x85": _last(1),
    b"\x86": _last(2),
    b"\x87": _last(3),
    b"c": lambda machine: machine.name(machine.line(), machine.line()),
    b"\x93": _stack_name,
    b"R": _with_arguments,
    b"\x81": _with_arguments,
    b"\x92": _with_keywords,
    b"o": _from_mark,
    b"i": _by_lines,
    b"Q": lambda machine: machine.persistent_value(machine.stack.pop()),
}
for _code, _value in PUSHING.items():
    _pushes(_code, _value)


@_operation(b"\x80")
def _protocol(machine: Unpickler) -> None:
    if (version := machine.number("B")) > 5:
        raise Malformed(f"its pickle is of protocol {version}, which isn't known")


@_operation(b"\x95")
def _frame(machine: Unpickler) -> None:
    machine.read(8)  # a hint on how to read ahead


@_operation(b"(")
def _mark(machine: Unpickler) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


@_operation(b"0")
def _pop(machine: Unpickler) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.to_mark()


@_operation(b"1")
def _pop_mark(machine: Unpickler) -> None:
    machine.to_mark()


@_operation(b"q")
def _put(machine: Unpickler) -> None:
    machine.memo[machine.number("B")] = machine.stack[-1]


@_operation(b"r")
def _long_put(machine: Unpickler) -> None:
    machine.memo[machine.number("I")] = machine.stack[-1]


@_operation(b"\x94")
def _memoize(machine: Unpickler) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


@_operation(b"a")
def _append(machine: Unpickler) -> None:
    item = machine.stack.pop()
    machine.add_items(machine.stack[-1], [item])


@_operation(b"e")
@_operation(b"\x90")  # ADDITEMS
def _appends(machine: Unpickler) -> None:
    items = machine.to_mark()
    machine.add_items(machine.stack[-1], items)


@_operation(b"s")
def _set_item(machine: Unpickler) -> None:
    key, value = _last(2)(machine)
    machine.set_items(machine.stack[-1], [key, value])


@_operation(b"u")
def _set_items(machine: Unpickler) -> None:
    items = machine.to_mark()
    machine.set_items(machine.stack[-1], items)


@_operation(b"b")
def _build(machine: Unpickler) -> None:
    state = machine.stack.pop()
    fill(machine, machine.stack[-1], state)
