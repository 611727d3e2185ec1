"""NVRTC compiles every kernel for every GPU that we support, and docs/kernels.md says what each takes. Needs no GPU.

python tests/kernels/test_nvrtc.py --write     # after a change of a kernel: makes the tables of docs/kernels.md anew
"""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pytest

from edgepose.kernels import _compile, _cuda_crop, _cuda_decode, _cuda_detections
from edgepose.kernels._crop import Sampling

nvrtc: Any = pytest.importorskip("cupy", reason="compiles with NVRTC: pip install 'edgepose[dev]'").cuda.nvrtc
try:
    VERSION = metadata.version("nvidia-cuda-nvrtc")
    nvrtc.getVersion()
except (metadata.PackageNotFoundError, ImportError, OSError, RuntimeError) as missing:
    pytest.skip(f"needs NVRTC, pip install 'edgepose[dev]': {missing}", allow_module_level=True)

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
TABLES = Path(__file__).parents[2] / "docs" / "kernels.md"
COMMAND = "python tests/kernels/test_nvrtc.py --write"
HOPPER = 90  # of each other architecture the tests compile the variants in USUAL only: the tables have all of them


@dataclass(frozen=True)
class Variant:
    """A kernel as a launcher asks for it. ``columns`` tells it from its neighbours in the table."""

    name: str  # of the kernel and its file
    columns: tuple[str, ...]
    defines: tuple[tuple[str, str | int], ...]

    def __str__(self) -> str:
        return "-".join([self.name, *filter(None, self.columns)])


@dataclass(frozen=True)
class Resources:
    """What ptxas says: registers of a thread, and bytes of static shared memory, stack and spills."""

    registers: int
    shared: int
    stack: int
    spills: int


def _crop(out: str, sampling: str, name: str = "crop_warp") -> Variant:
    defines = {"OUT": _cuda_crop.OUT_TYPES[out], "SAMPLING": sampling.upper()}
    return Variant(name, (out, sampling), tuple(defines.items()))


def _letterbox(out: str, sampling: str) -> Variant:
    return _crop(out, sampling, "letterbox")


def _decode(maps: str, refinement: str, flip: int, threads: int = 128, blur: int = 11) -> Variant:
    number = _cuda_decode.REFINEMENTS.index(refinement)
    kind = next(text for dtype, text in _cuda_decode.TYPES.items() if dtype.name == maps)
    defines: dict[str, str | int] = {"T": kind, "REFINEMENT": number, "FLIP": flip, "THREADS": threads}
    blurs = refinement in ("dark", "dark_udp")
    if blurs:
        defines |= {"BLUR_KERNEL": blur, "BLUR_WEIGHTS": _cuda_decode._weights(blur)}
    columns = (maps, refinement, "yes" if flip else "", str(threads), str(blur) if blurs else "")
    return Variant("decode_heatmaps", columns, tuple(defines.items()))


MAPS = [dtype.name for dtype in _cuda_decode.TYPES]
THREADS = sorted({_cuda_decode._threads(size) for size in range(16, 1 << 16, 16)})
ALONE = {"select_detections": _cuda_detections.SELECT_THREADS, "plan_crops": _cuda_detections.PLAN_THREADS}
USUAL = [make("float16", sampling) for make in (_crop, _letterbox) for sampling in get_args(Sampling)]
USUAL += [Variant(name, (str(threads),), ()) for name, threads in ALONE.items()]
USUAL += [_decode("float16", refinement, 0) for refinement in _cuda_decode.REFINEMENTS]
VARIANTS = [
    make(out, sampling)
    for make in (_crop, _letterbox)
    for out in _cuda_crop.OUT_TYPES
    for sampling in get_args(Sampling)
]
VARIANTS += [variant for variant in USUAL if variant.name in ALONE]
VARIANTS += [_decode(maps, name, flip) for name in _cuda_decode.REFINEMENTS for flip in (0, 1) for maps in MAPS]
VARIANTS += [_decode("float16", "dark_udp", 0, threads) for threads in THREADS if threads != 128]
VARIANTS += [_decode("float32", "dark", 1, 128, blur) for blur in (1, 5, 17, _cuda_decode.LARGEST_BLUR_KERNEL)]


@cache
def resources(variant: Variant, architecture: int) -> Resources:
    """Compile as the package does it, and read ptxas's report."""
    program = nvrtc.createProgram(_compile.source(f"{variant.name}.cu", dict(variant.defines)), "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*_compile.OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v"))
    except nvrtc.NVRTCError:
        pytest.fail(f"{variant.columns} for sm_{architecture}:\n{nvrtc.getProgramLog(program)}")
    log = nvrtc.getProgramLog(program)
    nvrtc.destroyProgram(program)
    assert log.count("Compiling entry function") == 1
    stack, stores, loads = map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)[-3:])
    shared = re.search(r"(\d+) bytes smem", log)
    registers = int(re.findall(r"Used (\d+) registers", log)[0])
    return Resources(registers, int(shared[1]) if shared else 0, stack, stores + loads)


def checked() -> list[tuple[Variant, int]]:
    """What the tests compile; --write compiles everything."""
    return [(variant, a) for a in ARCHITECTURES for variant in (VARIANTS if a == HOPPER else USUAL)]


@pytest.mark.parametrize(
    ("variant", "architecture"), checked(), ids=lambda value: "-".join(getattr(value, "columns", []))
)
def test_nothing_spills_and_blocks_fit(variant, architecture):
    taken = resources(variant, architecture)
    assert (taken.stack, taken.spills) == (0, 0)
    assert taken.shared <= 48 * 1024
    threads = ALONE.get(variant.name) or dict(variant.defines).get("THREADS", _cuda_crop.THREADS)
    assert int(threads) * taken.registers <= 64 * 1024  # the registers of a multiprocessor


def test_the_tables_are_up_to_date():
    text = TABLES.read_text(encoding="utf-8")
    made_with = re.search(r"NVRTC (\S+),", text)
    assert made_with
    if made_with[1] != VERSION:
        pytest.skip(f"docs/kernels.md was made with NVRTC {made_with[1]}, and this is {VERSION}")
    table = parse(text)
    assert set(table) == {(variant.name, variant.columns) for variant in VARIANTS}
    stale = []
    for variant, architecture in checked():
        shared, registers = table[variant.name, variant.columns]
        taken = resources(variant, architecture)
        if (shared, registers[architecture]) != (str(taken.shared), str(taken.registers)):
            stale.append((variant.columns, architecture, taken))
    assert not stale, f"a kernel has changed, so make the tables anew: {COMMAND}"


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "compute_90"])
def test_the_machine_code_is_whole(architecture):
    text = _compile.source("crop_warp.cu", dict(_crop("float16", "linear").defines))
    code = _compile._compile(nvrtc, text, architecture, "crop_warp")
    if architecture.startswith("compute"):
        assert re.search(rb"\.target\s+sm_90", code)
        assert code.rstrip(b"\0").endswith(b"}\n\n")
        return
    assert code[:4] == b"\x7fELF"
    ends = []  # of the program and the section headers: offset + size of one * number
    for offset, sizes in ((0x20, 0x36), (0x28, 0x3A)):
        (start,), (size, number) = struct.unpack_from("<Q", code, offset), struct.unpack_from("<HH", code, sizes)
        ends.append(start + size * number)
    assert max(ends) <= len(code) <= max(ends) + 1  # without the byte that _compile adds, one is missing


def test_an_error_names_the_file_and_its_line(monkeypatch):
    kernel = '\n#include "common.cuh"\nextern "C" __global__ void k() { no_such_thing(); }\n'
    texts = {"common.cuh": "\n\n\n", "bad.cu": kernel}
    monkeypatch.setattr(_compile, "_text", texts.__getitem__)
    with pytest.raises(RuntimeError, match=r"cannot compile bad(.|\n)*bad\.cu\(3\): error.*no_such_thing"):
        _compile._compile(nvrtc, _compile.source("bad.cu", {"T": "float"}), "sm_90", "bad")


# The tables ----------------------------------------------------------------------------------------------------------

HEADERS = {
    "letterbox": ("result", "sampling"),
    "select_detections": ("threads",),
    "plan_crops": ("threads",),
    "crop_warp": ("result", "sampling"),
    "decode_heatmaps": ("heatmaps", "refinement", "flip test", "threads", "blur kernel"),
}


def render() -> str:
    """docs/kernels.md."""
    lines = [
        "# What the kernels take",
        "",
        f"Registers of a thread for each architecture, and bytes of shared memory of a block, as NVRTC {VERSION},",
        f"called with `{' '.join(_compile.OPTIONS)}`, reports them. No variant has a stack frame or spills a register;",
        "no kernel takes shared memory beyond this at its launch. The tests compile the kernels again and compare, so",
        "that a change shows in review.",
        "",
        f"Made by `{COMMAND}`; no GPU is needed.",
    ]
    for name, headers in HEADERS.items():
        columns = [*headers, "shared", *(f"sm_{a}" for a in ARCHITECTURES)]
        lines += ["", f"## {name}", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        for variant in VARIANTS:
            if variant.name == name:
                taken = [resources(variant, architecture) for architecture in ARCHITECTURES]
                shared = "/".join(map(str, sorted({one.shared for one in taken})))
                cells = [str(one.registers) for one in taken]
                lines.append(f"| {' | '.join([*variant.columns, shared, *cells])} |")
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[tuple[str, tuple[str, ...]], tuple[str, dict[int, str]]]:
    """(kernel, columns) -> shared memory, registers by architecture: what ``render`` wrote."""
    found = {}
    for section in text.split("\n## ")[1:]:
        name = section.partition("\n")[0]
        for line in section.splitlines()[4:]:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            width = len(HEADERS[name])
            registers = dict(zip(ARCHITECTURES, cells[width + 1 :], strict=True))
            found[name, tuple(cells[:width])] = cells[width], registers
    return found


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    everything = [(variant, a) for variant in VARIANTS for a in ARCHITECTURES]
    if spilled := [f"{v} for sm_{a}: {r}" for v, a in everything if (r := resources(v, a)).stack + r.spills]:
        sys.exit("\n".join(["not written: these variants spill", *spilled]))
    TABLES.write_text(render(), encoding="utf-8")
    print(f"wrote {TABLES}: {len(VARIANTS)} variants for {len(ARCHITECTURES)} architectures")
