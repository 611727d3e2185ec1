"""Hostile and damaged files: nothing runs, nothing is exhausted; there comes a ModelError, or the right weights."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import hostile_pickles as hostile
import numpy as np
import pytest
from hostile_pickles import EXECUTING, HARMLESS_IF_READ, PICKLES, REFUSED, WEIGHTS, checkpoint

from edgepose.errors import ModelError

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgepose[train]'")
from edgepose.training.checkpoint import read_checkpoint
from edgepose.training.torchfile import TorchFile
from edgepose.training.unpickle import Dropped, Unpickler

GOOD = torch.from_numpy(WEIGHTS.reshape(2, 3))

# Runs in a process of its own: reads every file of a folder under an audit hook and prints what happened.
PROBE = """
import json, sys, time
from pathlib import Path
from edgepose.errors import ModelError
from edgepose.training.checkpoint import read_checkpoint

files = sorted(Path("files").iterdir())
read_checkpoint("good.pth")  # whatever is imported on first use
before = set(sys.modules)
events, results = [], {}
sys.addaudithook(lambda name, arguments: events.append((name, [str(a) for a in arguments[:2]])))
for file in files:
    started = time.process_time()
    try:
        state, info = read_checkpoint(file)
        results[file.name] = [state["w"].tolist()]
    except ModelError as error:
        results[file.name] = str(error)
    results[file.name + " s"] = time.process_time() - started
seen = list(events)
status = Path("/proc/self/status")  # getrusage's peak is inherited from the process that started this one
peak_mb = int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else 0
print(json.dumps({
    "events": seen, "results": results, "modules": sorted(set(sys.modules) - before),
    "peak_mb": peak_mb,
}))
"""


def read(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    path.write_bytes(data)
    return read_checkpoint(path)[0]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", [*EXECUTING, *HARMLESS_IF_READ])
def test_what_is_dropped_leaves_the_weights(tmp_path: Path, name: str, legacy: bool) -> None:
    if name in ("quantised tensor", "empty tensor of a giant shape") and legacy:
        pytest.skip("its storage is described as in zip files")
    state = read(tmp_path / "evil.pth", checkpoint(PICKLES[name], legacy=legacy))
    assert list(state) == ["w"]
    assert torch.equal(state["w"], GOOD)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_so(tmp_path: Path, name: str, legacy: bool) -> None:
    with pytest.raises(ModelError, match=r"evil\.pth is damaged or no PyTorch file: \w"):
        read(tmp_path / "evil.pth", checkpoint(REFUSED[name], legacy=legacy))


def test_nothing_is_imported_opened_or_run(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "good.pth").write_bytes(checkpoint(b"N"))
    for number, value in enumerate(PICKLES.values()):
        for kind in ("zip", "legacy"):
            (tmp_path / "files" / f"{number}.{kind}").write_bytes(checkpoint(value, legacy=kind == "legacy"))
    for name in ("evil.py", "evil.pth", "evil.pt", "evil.npy"):
        (tmp_path / name).write_text(f"open({hostile.CANARY!r}, 'w')")
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert not (tmp_path / hostile.CANARY).exists()
    assert seen["modules"] == []
    # Each file is opened once, to read; nothing else that Python audits happens.
    assert Counter(name for name, _ in seen["events"]) == {"open": 2 * len(PICKLES)}
    assert all(mode == "r" and Path(path).parent.name == "files" for _, (path, mode) in seen["events"])
    results = {name: result for name, result in seen["results"].items() if not name.endswith(" s")}
    assert all(result == [GOOD.tolist()] or "no PyTorch file" in result for result in results.values())
    # Worst seen: 285 to 371 MB, most of it torch's; and 0.7 s of CPU time a file.
    assert seen["peak_mb"] < 700
    assert max(value for name, value in seen["results"].items() if name.endswith(" s")) < 20


def test_the_probe_would_notice(tmp_path: Path) -> None:
    """The same files do harm when Python reads them: the canary is no dead bird."""
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x02" + EXECUTING["reduce os.system"] + b".")
    subprocess.run(
        [sys.executable, "-c", "import pickle; pickle.load(open('evil.pkl', 'rb'))"], cwd=tmp_path, check=True
    )
    assert (tmp_path / hostile.CANARY).exists()


def test_dropped_objects_are_counted_by_type(tmp_path: Path) -> None:
    value = b"(" + EXECUTING["eval"] * 3 + PICKLES["terminal commands in a name"] + hostile.named("os", "system") + b"t"
    (tmp_path / "evil.pth").write_bytes(checkpoint(value))
    dropped = read_checkpoint(tmp_path / "evil.pth")[1].dropped
    assert dropped == {"builtins.eval": 3, "evil?[2J.?]0;owned?": 1, "os.system": 0}


# Containers -------------------------------------------------------------------------------------


def content() -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint(b"N"))) as archive:
        return archive.read("archive/data.pkl")


def archive(method: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """A zip file of these records."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for name, data in records.items():
            target.writestr(name, data)
    return file.getvalue()


def overlapping() -> bytes:
    """A zip file whose directory has 40 names for one large record."""
    data = hostile.as_zip(content(), **{"archive/data/1": bytes(50_000)})
    end = data.rfind(b"PK\5\6")
    start = struct.unpack_from("<L", data, end + 16)[0]
    entry = data[data.rfind(b"PK\1\2") : end]
    more = b"".join(entry.replace(b"data/1", b"data/" + bytes([c])) for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl")
    count = len(more) // len(entry) + 4
    new_end = b"PK\5\6\0\0\0\0" + struct.pack("<HHLLH", count, count, end - start + len(more), start, 0)
    return data[:end] + more + new_end


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: archive(**{"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "2 records NAME/data.pkl"),
        (lambda: archive(**{"readme.txt": b"hello"}), "0 records"),
        (lambda: archive(zipfile.ZIP_DEFLATED, **{"a/data.pkl": bytes(10**6)}), "compressed"),
        (lambda: hostile.as_zip(content(), **{"archive/constants.pkl": b""}), "TorchScript"),
        (lambda: archive(**{"a/data.pkl": content(), "a/byteorder": b"big"}), "big-endian"),
        (lambda: archive(**{"a/data.pkl": content(), "a/data/0": bytes(20)}), "that record has 20 bytes"),
        (lambda: archive(**{"a/data.pkl": content(), "a/../a/data/0": bytes(24)}), "no such record"),
        (overlapping, "overlap"),
        (lambda: hostile.as_zip(content()).replace(WEIGHTS.tobytes(), bytes(24)), "checksum"),
        (lambda: hostile.as_zip(content())[:-1], "cut off"),
        (lambda: b"PK\5\6" + bytes(18), "begins like nothing"),
        (lambda: b"PK\3\4" + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2), "directory has 65535 records"),
        (lambda: hostile.as_legacy(content())[:-1], "a persistent id"),
        (lambda: bytes(257) + b"ustar" + bytes(300), "tar file"),
        (lambda: b"\x89HDF\r\n", "begins like nothing"),
        (lambda: b"\x80\x02K\x01.", "not with that of torch.save"),
        (lambda: b"", "begins like nothing"),
    ],
)
def test_containers_that_are_refused(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path / "w.pth", data())  # type: ignore[operator]


def test_records_of_one_name_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO(hostile.as_zip(content()))
    with zipfile.ZipFile(file, "a") as target, pytest.warns(UserWarning, match="Duplicate name"):
        target.writestr("archive/data/0", bytes(24))
    with pytest.raises(ModelError, match="two records"):
        read(tmp_path / "w.pth", file.getvalue())


def test_too_many_records_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepose.training.torchfile.MAX_RECORDS", 2)
    with pytest.raises(ModelError, match="directory has 3 records"):
        read(tmp_path / "w.pth", hostile.as_zip(content()))


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        read_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="no file"):
        read_checkpoint("/dev/zero")


# Damage -----------------------------------------------------------------------------------------


def saved(path: Path, *, legacy: bool) -> dict[str, torch.Tensor]:
    state = {"a": torch.arange(600.0).reshape(20, 30), "b": torch.arange(5), "c": torch.ones(3, dtype=torch.float16)}
    torch.save({"state_dict": state, "meta": {"epoch": 3}}, path, _use_new_zipfile_serialization=not legacy)
    return state


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_files_cut_off_anywhere_are_refused(tmp_path: Path, legacy: bool) -> None:
    saved(path := tmp_path / "w.pth", legacy=legacy)
    data = path.read_bytes()
    for length in {*(len(data) * i // 20 for i in range(20)), *range(len(data) - 30, len(data)), *range(30)}:
        with pytest.raises(ModelError):
            read(path, data[:length])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_flipped_bytes_never_crash(tmp_path: Path, legacy: bool) -> None:
    state = saved(path := tmp_path / "w.pth", legacy=legacy)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    numbers_at = data.find(struct.pack("<4f", 0, 1, 2, 3))
    structure = np.r_[0:numbers_at, numbers_at + 2400 : len(data)]  # most of the file's bytes are a's
    outcomes = Counter()
    for position in [*rng.choice(structure, 1200), *rng.integers(len(data), size=100)]:
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        try:
            found = read(path, bytes(damaged))
        except ModelError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        if not legacy:  # which has no checksums: a number, or a letter of a name, may be another
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], state[name]) for name in state)
    assert min(outcomes["refused"], outcomes["read"]) > 50, outcomes


def test_random_bytes_are_no_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    operations = np.frombuffer(b"()}]NRbtueasoiQq2h\x85\x86\x87\x81\x93\x94K\x88X", np.uint8)
    for _ in range(300):
        junk = rng.choice(operations, 200).tobytes()
        try:
            read(tmp_path / "w.pth", checkpoint(junk))
        except ModelError as error:
            assert "w.pth" in str(error)  # noqa: PT017


# What is rebuilt --------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_come_out_as_they_went_in(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
             torch.uint8, torch.bool, torch.complex64)  # fmt: skip
    state = {
        **{str(kind): (base[:6] - 2).to(kind) for kind in kinds},
        "view": base[2:14].reshape(3, 4)[:, 1:3],
        "transposed": base.reshape(4, 6).t(),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "channels last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    }
    torch.save(OrderedDict(state), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    found, info = read_checkpoint(tmp_path / "w.pth")
    assert info.container == ("legacy" if legacy else "zip")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name
    assert found["view"].untyped_storage().data_ptr() == found["transposed"].untyped_storage().data_ptr()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_out_as_they_went_in(tmp_path: Path, protocol: int) -> None:
    plain = {
        "n": None, "t": (1, 2.5, -3), "big": 1 << 200, "s": "ä€😀", "b": b"\0\xff" * 300, "l": [True, [False]],
        "d": {1: "one", None: 2, b"k": 3}, "o": OrderedDict(a=1), "long": "x" * 70_000, "numbers": list(range(300)),
        "size": torch.Size([2, 3]), "np": np.float32(0.1).item(),
    }  # fmt: skip
    numpy = {"f": np.float64(0.5), "i": np.int64(-3), "u": np.str_("left"), "y": np.bool_(True)}
    arrays = {
        "a": np.arange(6, dtype=">i4").reshape(2, 3),
        "f": np.asfortranarray(np.eye(3)),
        "n": np.array(["l", "rr"]),
    }
    other = {"s": {3}, "f": frozenset({4}), "c": Counter("aab"), "o": np.array([None]), "e": np.zeros(0)}
    torch.save(
        {**plain, "numpy": numpy, "arrays": arrays, "other": other}, tmp_path / "w.pth", pickle_protocol=protocol
    )
    with TorchFile(tmp_path / "w.pth") as file:
        found, dropped = file.content, file.dropped
    assert {name: found[name] for name in plain} == plain
    assert found["numpy"] == numpy
    for name, value in arrays.items():
        if protocol < 5:  # 5 has a function of its own for arrays, which nothing here needs
            assert np.array_equal(found["arrays"][name].value, value)
    assert found["other"]["s"] == [3]
    assert found["other"]["f"] == [4]
    assert found["other"]["c"] == Dropped("collections.Counter")
    assert dropped["collections.Counter"] == 1


def test_the_limit_of_operations_is_a_second_of_work() -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match="more than 1000000 operations"):
        Unpickler(io.BytesIO(b"}" * 2_000_000), 2_000_000).load()
    assert time.process_time() - started < 15  # worst seen, CPU time: 0.83 s; slower machines have room


def test_many_tensors_of_one_storage_take_its_memory_once(tmp_path: Path) -> None:
    """Each tensor of bools used to copy its whole storage: 2 MB of file took 10 GB."""
    kept = hostile.storage("1", 1000, "BoolStorage")
    shape = hostile.numbers(1)
    views = [hostile.text(name) + hostile.tensor(shape, shape, offset, kept) for name, offset in (("a", 0), ("b", 999))]
    content = b"\x80\x02}(" + b"".join(views) + b"u."
    (tmp_path / "w.pth").write_bytes(hostile.as_zip(content, **{"archive/data/1": b"\2" + bytes(999)}))
    state, _ = read_checkpoint(tmp_path / "w.pth")
    assert [value.tolist() for value in state.values()] == [[True], [False]]
    assert len({value.untyped_storage().data_ptr() for value in state.values()}) == 1
