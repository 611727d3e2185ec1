"""The files that torch.save writes, read without torch.load: nothing in them is executed, see ``unpickle``.

Two containers. Since PyTorch 1.6: a zip archive without compression, with ``NAME/data.pkl`` and a record
``NAME/data/KEY`` for each storage; each record has a checksum, which is verified. Before, and with
``_use_new_zipfile_serialization=False`` since: five pickles in a row (a magic number, a version, the machine's sizes,
the content, the storages' keys), then each storage's count and bytes; damaged numbers cannot be told from others there.

Storages are read when a tensor is asked for, each once: an optimiser's state beside the weights costs nothing. No
record is larger than the file, and all together they are not either, so neither are the tensors. Names of records are
only compared with those that the pickle asks for, and never used as paths.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from edgepose.errors import ModelError
from edgepose.training.inert import Dropped, Malformed, Name, Storage, TensorView, is_size
from edgepose.training.unpickle import Unpickler

__all__ = ["TorchFile"]

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_RECORDS = 100_000  # HRNet-W48 with Adam's state and averaged weights has 7 thousand
LEGACY_START = b"\x80"  # PROTO of the magic number's pickle
ZIP_START, TAR_MARK = b"PK\x03\x04", b"ustar"

DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
STORAGES = {f"{module}.{name}": name for module in ("torch", "torch.cuda") for name in DTYPES}


@dataclass(frozen=True)
class Record:
    """Bytes of the file: where, how many, and their CRC-32, if there is one."""

    start: int
    size: int
    checksum: int | None = None


class TorchFile:
    """A file that torch.save wrote.

    >>> with TorchFile(path) as file:
    ...     weights = {name: file.tensor(view) for name, view in file.content["state_dict"].items()}

    Attributes:
        content: what was saved: plain values, TensorViews, and Dropped objects.
        container: ``zip`` or ``legacy``.
        size: of the file, bytes.
        dropped: how many objects of which type were dropped; 0: the name was only mentioned.

    Raises:
        ModelError: the file cannot be read, is damaged, or is nothing that torch.save writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file, self.size = _open(self.path)
        self.container: Literal["zip", "legacy"] = "zip"
        self._records: dict[str, Record] = {}
        self._storages: dict[str, Tensor] = {}
        self._bools: dict[str, Tensor] = {}
        try:
            with _explained(self.path):
                self._read()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def tensor(self, view: TensorView) -> Tensor:
        """Read a tensor; those of one storage share its memory, as they did when they were saved.

        Raises:
            ModelError: its bytes are damaged, or there is no memory for them.
        """
        with _explained(self.path):
            return torch.as_strided(self._values(view.storage), view.size, view.stride, view.offset)

    # Reading ------------------------------------------------------------------------------------

    def _read(self) -> None:
        start = self.file.read(512)
        self.file.seek(0)
        if start.startswith(ZIP_START):
            self._read_zip()
        elif start.startswith(LEGACY_START):
            self.container = "legacy"
            self._read_legacy()
        elif start[257:262] == TAR_MARK:
            raise Malformed("it is a tar file, as PyTorch before 0.1.10 wrote them: save it again with a later one")
        else:
            raise Malformed("it begins like nothing that torch.save writes")

    def _read_zip(self) -> None:
        records = _zip_records(self.file, self.size)
        inside = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(inside) != 1:
            raise Malformed(
                f"it is a zip archive with {len(inside)} records NAME/data.pkl, where torch.save writes one"
            )
        folder = inside[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in records:
            raise Malformed("it is a TorchScript program, which is run and not read: save the model's state_dict()")
        if folder + "byteorder" in records and self._bytes(records[folder + "byteorder"]) != b"little":
            raise Malformed("its numbers are big-endian: save it on a little-endian machine")
        prefix = folder + "data/"
        self._records = {name[len(prefix) :]: record for name, record in records.items() if name.startswith(prefix)}
        data = self._bytes(records[inside[0]])
        machine = Unpickler(io.BytesIO(data), len(data), self._zip_storage)
        self.content, self.dropped = machine.load(), machine.dropped

    def _zip_storage(self, identity: Any) -> Any:
        storage = _storage(identity, 5)
        if isinstance(storage, Dropped):
            return storage
        record = self._records.get(storage.key)
        if record is None or record.size != storage.count * DTYPES[storage.kind].itemsize:
            there = "no such record" if record is None else f"that record has {record.size} bytes"
            raise Malformed(f"a storage of {storage.count} {storage.kind} lies in {storage.key[:40]!r}: {there}")
        return storage

    def _read_legacy(self) -> None:
        seen: dict[str, Storage] = {}

        def storage_of(identity: Any) -> Any:
            storage = _storage(identity, 6)
            if isinstance(storage, Storage) and seen.setdefault(storage.key, storage) != storage:
                raise Malformed(f"the storage {storage.key[:40]!r} is described in two ways")
            return storage

        machine = Unpickler(self.file, self.size, storage_of)
        if machine.load() != MAGIC or machine.load() != LEGACY_PROTOCOL:
            raise Malformed("it begins with a pickle, but not with that of torch.save")
        sizes = machine.load()
        if not isinstance(sizes, dict) or sizes.get("little_endian") is not True:
            raise Malformed("its numbers are big-endian: save it on a little-endian machine")
        self.content = machine.load()
        keys = machine.load()
        self.dropped = machine.dropped
        if not isinstance(keys, list) or len(keys) > MAX_RECORDS:
            raise Malformed(f"it has no list of at most {MAX_RECORDS} storages")
        for key in keys:
            storage = seen.get(key) if isinstance(key, str) else None
            if storage is None or key in self._records:
                raise Malformed("it lists a storage of an unknown type, one that no tensor uses, or one twice")
            size = storage.count * DTYPES[storage.kind].itemsize
            head = self.file.read(8)
            start = self.file.tell()
            if head != struct.pack("<q", storage.count) or start + size > self.size:
                raise Malformed(f"the storage {key[:40]!r} of {storage.count} {storage.kind} isn't all there")
            self._records[key] = Record(start, size)
            self.file.seek(start + size)
        if missing := seen.keys() - self._records.keys():
            raise Malformed(f"{len(missing)} of its storages are missing")

    def _values(self, storage: Storage) -> Tensor:
        """A storage's numbers, (count,). Each is made once: a file may have a tensor a dozen bytes of its pickle."""
        dtype = DTYPES[storage.kind]
        if dtype is not torch.bool:
            return self._storage(storage.key).view(dtype)
        if storage.key not in self._bools:  # any byte but 0 and 1 is no bool, whatever torch makes of it
            self._bools[storage.key] = self._storage(storage.key) != 0
        return self._bools[storage.key]

    def _storage(self, key: str) -> Tensor:
        """A record's bytes, (size,) uint8; read once."""
        if key not in self._storages:
            record = self._records[key]
            values = torch.empty(record.size, dtype=torch.uint8)
            target = memoryview(values.numpy())
            self.file.seek(record.start)
            _check(record, self.file.readinto(target), target)  # type: ignore[attr-defined]
            self._storages[key] = values
        return self._storages[key]

    def _bytes(self, record: Record) -> bytes:
        self.file.seek(record.start)
        data = self.file.read(record.size)
        _check(record, len(data), data)
        return data


class _explained:
    """Turns what reading raises into a ModelError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Malformed):
            raise ModelError(f"checkpoint {self.path} is damaged or no PyTorch file: {error}") from None
        if isinstance(error, OSError):
            raise ModelError(f"checkpoint {self.path} cannot be read: {error.strerror or error}") from None
        if isinstance(error, (MemoryError, RuntimeError)):  # torch's way to say that there is no memory
            raise ModelError(f"checkpoint {self.path} cannot be read: {error or 'no memory for it'}") from None


def _check(record: Record, count: int, data: bytes | memoryview) -> None:
    if count != record.size:
        raise Malformed("it is cut off")
    if record.checksum is not None and zlib.crc32(data) != record.checksum:
        raise Malformed("the checksum of a record is wrong: copy or download the file again")


def _open(path: Path) -> tuple[BinaryIO, int]:
    """The file and its size; a pipe or a device would never end."""
    with _explained(path):
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise ModelError(f"checkpoint {path} cannot be read: it is no file")
        return path.open("rb"), facts.st_size


def _storage(identity: Any, length: int) -> Storage | Dropped:
    """What a persistent id says: ("storage", type, key, device, count), and a sixth thing in old files."""
    if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":  # a class with its source text
        return Dropped(identity[1].name if isinstance(identity[1], Name) else "module")
    if not isinstance(identity, tuple) or len(identity) != length or identity[0] != "storage":
        raise Malformed("a persistent id in its pickle is none of a storage")
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, Name) or not isinstance(key, str) or not is_size((count,)):
        raise Malformed("a storage's type, key or size is not what it must be")
    if view and view[0] is not None:
        raise Malformed(
            "it has views of storages, as PyTorch before 0.4 wrote them: save it with a later version first"
        )
    return Storage(key, STORAGES[kind.name], count) if kind.name in STORAGES else Dropped(kind.name)


# The zip container ------------------------------------------------------------------------------

END, END64_LOCATOR, END64, ENTRY, LOCAL = b"PK\5\6", b"PK\6\7", b"PK\6\6", b"PK\1\2", ZIP_START
UNKNOWN16, UNKNOWN32 = 0xFFFF, 0xFFFFFFFF  # the number is in a zip64 field


def _zip_records(file: BinaryIO, size: int) -> dict[str, Record]:
    """The archive's records by name, from its central directory.

    Raises:
        Malformed: it is damaged, compressed, encrypted; it has too many records, two of one name, or more bytes in its
            records than the file has.
    """
    count, length, start = _zip_end(file, size)
    if count > MAX_RECORDS or length > MAX_RECORDS * 512 or start + length > size:
        raise Malformed(f"its directory has {count} records in {length} bytes, of which the file has {size}")
    file.seek(start)
    directory = file.read(length)
    records: dict[str, Record] = {}
    position = 0
    for _ in range(count):
        fields = directory[position : position + 46]
        if len(fields) != 46 or not fields.startswith(ENTRY):
            raise Malformed("its directory is damaged")
        flags, method = struct.unpack_from("<HH", fields, 8)
        checksum, stored, plain, *lengths = struct.unpack_from("<LLLHHH", fields, 16)
        (local,) = struct.unpack_from("<L", fields, 42)
        position += 46
        name = directory[position : position + lengths[0]].decode("utf-8", "replace")
        extra = directory[position + lengths[0] : position + lengths[0] + lengths[1]]
        position += sum(lengths)
        plain, stored, local = _zip64(extra, plain, stored, local)
        if method != 0 or flags & 1 or stored != plain:
            raise Malformed(f"its record {name[:40]!r} is compressed or encrypted, which torch.save's never are")
        if name in records:
            raise Malformed(f"it has two records {name[:40]!r}")
        file.seek(local)
        head = file.read(30)
        if len(head) != 30 or not head.startswith(LOCAL):
            raise Malformed(f"its record {name[:40]!r} is not where the directory says")
        first = local + 30 + sum(struct.unpack_from("<HH", head, 26))
        if first + plain > start:
            raise Malformed(f"its record {name[:40]!r} reaches beyond the file's data")
        records[name] = Record(first, plain, checksum)
    if sum(record.size for record in records.values()) > size:
        raise Malformed("its records overlap")
    return records


def _zip_end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Count of records, length and start of the directory, bytes."""
    tail_start = max(0, size - 22 - UNKNOWN16)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < 22:
        raise Malformed("it is a zip archive that is cut off: copy or download the file again")
    count, length, start = struct.unpack_from("<HLL", tail, at + 10)
    locator = tail[at - 20 : at] if at >= 20 else b""
    if not locator.startswith(END64_LOCATOR):
        return count, length, start
    (place,) = struct.unpack_from("<Q", locator, 8)
    if place + 56 > size:
        raise Malformed("its zip64 directory is damaged")
    file.seek(place)
    end = file.read(56)
    if not end.startswith(END64):
        raise Malformed("its zip64 directory is damaged")
    count, length, start = struct.unpack_from("<QQQ", end, 32)
    return count, length, start


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Sizes and place of a record; those that do not fit into 32 bits are in the extra field, in this order."""
    if UNKNOWN32 not in values:
        return list(values)
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            try:
                wide = struct.iter_unpack("<Q", extra[position + 4 : position + 4 + length // 8 * 8])
                return [next(wide)[0] if value == UNKNOWN32 else value for value in values]
            except (StopIteration, struct.error):
                break
        position += 4 + length
    raise Malformed("the size or place of one of its records is missing")
