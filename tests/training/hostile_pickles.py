"""Checkpoints that mean harm: each pickle tries to run something, or to exhaust time or memory.

`PICKLES` maps a name to the operations that leave one value on the stack. `checkpoint` puts that value beside a good
state dict, in either container: what reads it must refuse the file or give the good weights.
"""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np

WEIGHTS = np.arange(6, dtype=np.float32)  # of the good state dict's only tensor, "w", (2, 3)
CANARY = "CANARY"  # what the hostile commands would make in the current folder
MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """REDUCE."""
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    """LONG1."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(*values: int) -> bytes:
    """A tuple."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 6, kind: str = "FloatStorage", *, legacy: bool = False) -> bytes:
    """A persistent id."""
    more = b"N" if legacy else b""
    return b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + number(count) + more + b"tQ"


def tensor(size: bytes, stride: bytes, offset: int = 0, kept: bytes | None = None, *, legacy: bool = False) -> bytes:
    """A tensor of a storage."""
    kept = storage(legacy=legacy) if kept is None else kept
    hooks = b"\x89" + call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", kept, number(offset), size, stride, hooks)


def checkpoint(value: bytes, *, legacy: bool = False) -> bytes:
    """A file with the good weights and a hostile value beside them."""
    good = b"}" + text("w") + tensor(numbers(2, 3), numbers(3, 1), legacy=legacy) + b"s"
    content = b"\x80\x02}(" + text("state_dict") + good + text("evil") + value + b"u."
    return as_legacy(content) if legacy else as_zip(content)


def as_zip(content: bytes, **records: bytes) -> bytes:
    """The container of torch 1.6 and later."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for name, data in {"archive/data/0": WEIGHTS.tobytes(), **records}.items():
            archive.writestr(name, data)
    return file.getvalue()


def as_legacy(content: bytes) -> bytes:
    """The container before."""
    sizes = b"\x80\x02}" + text("little_endian") + b"\x88s."
    keys = b"\x80\x02](" + text("0") + b"e."
    return MAGIC + b"\x80\x02M\xe9\x03." + sizes + content + keys + struct.pack("<q", 6) + WEIGHTS.tobytes()


COMMAND = text(f"echo x > {CANARY}")
CODE = text(f"open({CANARY!r}, 'w').close()")
OS = call("builtins", "__import__", text("os"))
NESTED = 300_000

EXECUTING: dict[str, bytes] = {
    "reduce os.system": call("os", "system", COMMAND),
    "reduce posix.system": call("posix", "system", COMMAND),
    "stack_global posix.system": text("posix") + text("system") + b"\x93" + COMMAND + b"\x85R",
    "inst posix.system": b"(" + COMMAND + b"iposix\nsystem\n",
    "obj os.system": b"(" + named("os", "system") + COMMAND + b"o",
    "newobj subprocess.Popen": named("subprocess", "Popen") + b"(" + COMMAND + b"N\x88t\x81",
    "newobj_ex subprocess.Popen": named("subprocess", "Popen") + COMMAND + b"\x85}" + text("shell") + b"\x88s\x92",
    "eval": call("builtins", "eval", CODE),
    "exec": call("builtins", "exec", CODE),
    "python 2 eval": call("__builtin__", "eval", CODE),
    "getattr chain": call("builtins", "getattr", OS, text("system")) + COMMAND + b"\x85R",
    "getattr by a dotted name": text("os") + text("path.os.system") + b"\x93" + COMMAND + b"\x85R",
    "operator.attrgetter": call("operator", "attrgetter", text("system")) + OS + b"\x85R",
    "functools.partial": call("functools", "partial", named("os", "system"), COMMAND) + b")R",
    "map over system": b"(" + call("builtins", "map", named("os", "system"), COMMAND + b"\x85") + b"t",
    "import of a module": call("importlib", "import_module", text("antigravity")),
    "global of an unimported module": named("antigravity", "webbrowser"),
    "pydoc.locate": call("pydoc", "locate", text("antigravity")),
    "runpy": call("runpy", "run_path", text("evil.py")),
    "torch.load": call("torch", "load", text("evil.pth")),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", b"C\x13cos\nsystem\n(Vls\ntR."),
    "torch.hub.load": call("torch.hub", "load", text("evil/evil"), text("evil")),
    "torch.jit.load": call("torch.jit", "load", text("evil.pt")),
    "torch dynamo": call("torch._dynamo.guards", "GuardBuilder.get", COMMAND),
    "numpy.load": call("numpy", "load", text("evil.npy")) + b"0" + call("numpy.lib.npyio", "load", text("evil.npy")),
    "numpy f2py": call("numpy.f2py.capi_maps", "getinit", COMMAND),
    "shelve": call("shelve", "open", text(CANARY)),
    "open": call("builtins", "open", text(CANARY), text("w")),
    "logging handler": call("logging", "FileHandler", text(CANARY)),
    "a function of code": call("types", "FunctionType", call("marshal", "loads", b"C\x04code"), b"}"),
    "a rebuild that calls": call(
        "torch._tensor", "_rebuild_from_type_v2", named("os", "system"), named("a", "b"), COMMAND
    ),
    "parameter of a call": call("torch._utils", "_rebuild_parameter", call("os", "system", COMMAND), b"\x89"),
    "ordered dict of a call": call("collections", "OrderedDict", call("os", "system", COMMAND)),
    "defaultdict with a factory": call("collections", "defaultdict", named("os", "getcwd")) + text("a") + b"Ns",
    "build with setstate": call("logging", "Formatter") + b"}" + text("__setstate__") + named("os", "system") + b"sb",
    "build of slots": named("torch._utils", "_rebuild_tensor_v2")
    + b"N}"
    + text("__code__")
    + named("os", "system")
    + b"s\x86b",
    "build of a class": named("collections", "OrderedDict") + b"}" + text("__init__") + named("os", "system") + b"sb",
    "build of a dict": b"}" + b"}" + text("__class__") + named("os", "environ") + b"sb",
    "codecs": call("_codecs", "decode", CODE, text("rot13"))
    + b"0"
    + call("_codecs", "encode", CODE, text("unicode_escape")),
    "memo of a call": named("os", "system") + b"q\x05" + b"0h\x05" + COMMAND + b"\x85R",
    "a persistent module": b"("
    + text("module")
    + named("os", "system")
    + text("f.py")
    + text("import antigravity")
    + b"tQ",
}

REFUSED: dict[str, bytes] = {
    "append to a name": named("sys", "path") + text("evil") + b"a",
    "item of a name": named("os", "environ") + text("PATH") + text("evil") + b"s",
    "call of a text": COMMAND + b")R",
    "extension 1": b"\x82\x01",
    "extension 2": b"\x83\x01\x00",
    "extension 4": b"\x84\x01\x00\x00\x00",
    "persistent text": b"Pstorage\n",
    "persistent number": b"K\x00Q",
    "persistent tuple without a type": b"(" + text("storage") + text("Float") + text("0") + text("cpu") + b"K\x06tQ",
    "persistent path": storage("../data.pkl"),
    "persistent absolute path": storage("/etc/passwd"),
    "persistent huge count": storage(count=1 << 60),
    "persistent negative count": storage(count=-6),
    "persistent list": b"]" + text("storage") + b"aQ",
    "persistent view": b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x06)tQ",
    "strides beyond the storage": tensor(numbers(2, 3), numbers(4, 1)),
    "offset beyond the storage": tensor(numbers(2, 3), numbers(3, 1), 1),
    "negative stride": tensor(numbers(2, 3), numbers(-3, 1), 3),
    "negative offset": tensor(numbers(2), numbers(1), -1),
    "negative size": tensor(numbers(-2, -3), numbers(3, 1)),
    "expanded to a giant": tensor(numbers(1 << 20, 1 << 20), numbers(0, 0)),
    "expanded past the integers": tensor(numbers(1 << 40, 1 << 40), numbers(0, 0)),
    "stride past the integers": tensor(numbers(2), numbers((1 << 64) + 1)),
    "too many dimensions": tensor(numbers(*[1] * 5000), numbers(*[1] * 5000)),
    "more strides than sizes": tensor(numbers(2), numbers(3, 1)),
    "sizes that are bools": tensor(b"(\x88\x88t", b"(\x88\x88t"),
    "sizes that are a list": tensor(b"](K\x02e", b"](K\x01e"),
    "tensor of a dict": tensor(numbers(2), numbers(1), kept=b"}"),
    "tensor without arguments": call("torch._utils", "_rebuild_tensor_v2"),
    "bytes of 4 EB": b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc",
    "text of 4 EB": b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc",
    "bytearray of 4 EB": b"\x96" + struct.pack("<Q", 1 << 62) + b"abc",
    "integer of 2 GB": b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\1",
    "integer of -1 bytes": b"\x8b" + struct.pack("<i", -1),
    "long integer as text": b"L" + b"9" * 100_000 + b"L\n",
    "endless name": b"c" + b"a" * 100_000,
    "too many operations": b"N0" * 600_000 + b"N",
    "dict copied again and again": b"](" + b"N\x88\x86" * 1000 + b"eq\x010"
    + (named("collections", "OrderedDict") + b"q\x020") + b"(" + b"h\x02h\x01\x85R" * 20_000 + b"l",
    "bytes copied again and again": text("x" * 1_000_000) + b"q\x010" + text("latin1") + b"q\x020"
    + named("_codecs", "encode") + b"q\x030" + b"(" + b"h\x03h\x01h\x02\x86R" * 5000 + b"l",
    "array larger than its bytes": call("numpy.core.multiarray", "_reconstruct")
    + b"(K\x01" + numbers(1 << 40) + call("numpy", "dtype", text("f8"), b"\x89", b"\x88") + b"\x89C\x08abcdefghtb",
    "pop of nothing": b"0" * 50,
    "mark of nothing": b"t",
    "memo of nothing": b"hq",
    "unknown operation": b"\xff",
    "protocol 255": b"\x80\xff",
}  # fmt: skip

HARMLESS_IF_READ: dict[str, bytes] = {
    "billion laughs": b")" + b"2\x86" * 60,
    "billion laughs as a key": b"}" + b")" + b"2\x86" * 60 + b"Ns",
    "billion laughs in a set": b"\x8f(" + b")" + b"2\x86" * 60 + b"\x90",
    "deep lists": b"]" * NESTED + b"a" * (NESTED - 1),
    "deep tuples": b")" + b"\x85" * NESTED,
    "deep tuples as a key": b"}" + b")" + b"\x85" * NESTED + b"Ns",
    "a list in itself": b"]q\x01h\x01a",
    "colliding integers": b"}(" + b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(1, 20_000)) + b"u",
    "memo at 4 billion": b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff",
    "array of objects": call("numpy.core.multiarray", "_reconstruct")
    + b"(K\x01" + numbers(1) + call("numpy", "dtype", text("O8"), b"\x89", b"\x88") + b"\x89]" + OS + b"atb",
    "dtype of commas": call("numpy", "dtype", text("f8," * 1000), b"\x89", b"\x88"),
    "terminal commands in a name": named("evil\x1b[2J", "\x1b]0;owned\x07") + b")R",
    "sparse tensor": call("torch._utils", "_rebuild_sparse_tensor", named("torch", "sparse_coo"), numbers(1)),
    "quantised tensor": call("torch._utils", "_rebuild_qtensor", storage(), b"K\x00", numbers(6), numbers(1)),
    "device": call("torch", "device", text("cuda:99")),
    "empty tensor of a giant shape": tensor(numbers(0, 1 << 60), numbers(1 << 60, 1)),
}  # fmt: skip

PICKLES = {**EXECUTING, **REFUSED, **HARMLESS_IF_READ}
