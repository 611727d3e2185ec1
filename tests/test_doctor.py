"""`edgepose doctor` on machines that are made up: what it finds, and the command that it gives for each."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgepose import doctor, tensorrt_api
from edgepose.cli import app
from edgepose.doctor import Check, CupyParts, Driver, Machine
from edgepose.errors import EngineError
from edgepose.tensorrt_api import Gpu, Installed

RTX_4090, H100 = Gpu("NVIDIA GeForce RTX 4090", "sm89"), Gpu("NVIDIA H100 80GB HBM3", "sm90")
ORIN, THOR = Gpu("Orin", "sm87"), Gpu("NVIDIA Thor", "sm110")
ABSENT = (
    Installed("tensorrt", "", "tensorrt is not installed", "pip install 'edgepose[tensorrt]'"),
    Installed("tensorrt-rtx", "", "tensorrt-rtx is not installed", "pip install 'edgepose[rtx]'"),
)
FULL, RTX = Installed("tensorrt", "10.13.3.9", "", ""), Installed("tensorrt-rtx", "1.7.1.116", "", "")
CUPY_13 = {"cupy-cuda13x": "14.2.0", "nvidia-cuda-nvrtc": "13.5.37"}
CUPY_12 = {"cupy-cuda12x": "14.2.0", "nvidia-cuda-nvrtc-cu12": "12.9.86"}
PARTS_13, PARTS_12 = CupyParts(cuda=13, nvrtc=(13, 5)), CupyParts(cuda=12, nvrtc=(12, 9))


OPTIONAL = {"torch", "av", "PyNvVideoCodec"}


class Doctor:
    """Runs the checks with CuPy and TensorRT made up, since those of this machine must not matter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._patch.setattr(doctor, "_rtx_targets", lambda: doctor.RTX_TARGETS)

    def __call__(
        self, machine: Machine, *, cupy: CupyParts | None = None, tensorrt: Iterable[Installed] = ABSENT
    ) -> dict[str, Check]:
        def ask_cupy() -> CupyParts:
            assert cupy is not None, "CuPy was imported although no wheel, or more than one, is installed"
            return cupy

        self._patch.setattr(doctor, "_ask_cupy", ask_cupy)
        self._patch.setattr(tensorrt_api, "installed", lambda: list(tensorrt))
        lines = [
            *doctor.check_system(machine),
            *doctor.check_packages(machine),
            *doctor.check_engines(machine),
        ]
        assert len({line.name for line in lines}) == len(lines) <= 20, "one screen, each line once"
        assert all(line.advice == "" for line in lines if line.ok), "advice where nothing is wrong"
        return {line.name: line for line in lines}


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Doctor:
    return Doctor(monkeypatch)


def advice(lines: dict[str, Check]) -> set[str]:
    """The commands for the GPU path; those for a missing Python package apart from it are left out."""
    return {line.advice for line in lines.values() if line.advice and line.name not in OPTIONAL}


def failed(lines: dict[str, Check]) -> set[str]:
    return {name for name, line in lines.items() if line.ok is False}


# Without a GPU


def test_a_machine_without_a_gpu_lacks_nothing(examine: Doctor) -> None:
    lines = examine(Machine())
    assert advice(lines) == failed(lines) == set()
    assert lines["NVIDIA GPU"] == Check("NVIDIA GPU", None, "no NVIDIA driver; the CPU engine needs none")
    assert lines["onnxruntime (cpu)"].ok is True
    for engine in ("tensorrt (cuda)", "tensorrt-rtx (cuda)"):
        assert lines[engine].ok is None
        assert "no NVIDIA GPU" in lines[engine].found


def test_what_is_installed_for_tests_is_no_fault_without_a_gpu(examine: Doctor) -> None:
    """The dev extra: CuPy without a driver, the bindings of full TensorRT without its libraries, all of RTX."""
    broken = Installed("tensorrt", "", "tensorrt is installed, but does not load (libnvinfer.so.11: ...)", "install")
    lines = examine(Machine(wheels=CUPY_13), cupy=PARTS_13, tensorrt=(broken, RTX))
    assert advice(lines) == failed(lines) == set()
    assert lines["nvrtc"].found.startswith("13.5")
    assert lines["tensorrt"].found.startswith("installed, but does not load")
    assert "builds engines here" in lines["tensorrt-rtx (cuda)"].found


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (Driver(problem="cuInit returned 100"), "cuInit returned 100"),
        (Driver((13, 0)), "it shows none"),
    ],
)
def test_a_driver_without_a_gpu(examine: Doctor, driver: Driver, words: str) -> None:
    lines = examine(Machine(driver, wheels=CUPY_13), cupy=PARTS_13)
    assert words in lines["NVIDIA GPU"].found
    assert lines["NVIDIA GPU"].ok is None
    assert advice(lines) == failed(lines) == set()


# A PC with a GPU


@pytest.mark.parametrize(("cuda", "extra"), [((12, 8), "cu12"), ((13, 0), "cu13"), ((14, 1), "cu13")])
def test_one_command_installs_what_an_engine_lacks(examine: Doctor, cuda: tuple[int, int], extra: str) -> None:
    lines = examine(Machine(Driver(cuda, (RTX_4090,))))
    assert lines["NVIDIA GPU"].ok is True
    assert lines["NVIDIA GPU"].found == f"NVIDIA GeForce RTX 4090 (sm89); the driver supports CUDA {cuda[0]}.{cuda[1]}"
    assert lines["tensorrt (cuda)"].found == "not ready: lacks cupy and tensorrt"
    assert lines["tensorrt (cuda)"].advice == f"pip install 'edgepose[tensorrt-{extra}]'"
    assert lines["tensorrt-rtx (cuda)"].advice == f"pip install 'edgepose[rtx-{extra}]'"
    assert len(advice(lines)) == 2
    assert failed(lines) == set()


def test_every_extra_that_is_advised_exists(repository: Path) -> None:
    extras = set(re.findall(r"^([a-z0-9-]+) = \[", (repository / "pyproject.toml").read_text(encoding="utf-8"), re.M))
    kinds = [kind + cuda for kind in ("cuda", "tensorrt-cu", "rtx-cu") for cuda in ("12", "13")]
    assert {*kinds, "pycuda", "train"} <= extras


def test_a_cuda_13_driver_with_tensorrt_but_without_cupy(examine: Doctor) -> None:
    lines = examine(Machine(Driver((13, 0), (H100,))), tensorrt=(FULL, ABSENT[1]))
    assert lines["tensorrt (cuda)"].found == "not ready: lacks cupy"
    assert advice(lines) == {"pip install 'edgepose[cuda13]'"}


def test_ready(examine: Doctor) -> None:
    lines = examine(Machine(Driver((13, 0), (H100,)), wheels=CUPY_13), cupy=PARTS_13, tensorrt=(FULL, ABSENT[1]))
    assert lines["tensorrt (cuda)"] == Check(
        "tensorrt (cuda)", True, "ready: runs .engine files on NVIDIA H100 80GB HBM3"
    )
    assert advice(lines) == failed(lines) == set()


def test_tensorrt_rtx_is_ready_and_the_full_one_is_not_needed(examine: Doctor) -> None:
    machine = Machine(Driver((13, 0), (RTX_4090,)), wheels=CUPY_13)
    lines = examine(machine, cupy=PARTS_13, tensorrt=(ABSENT[0], RTX))
    assert lines["tensorrt-rtx (cuda)"].ok is True
    assert lines["tensorrt (cuda)"].found == "not installed; one GPU engine is enough"
    assert advice(lines) == set()


def test_tensorrt_rtx_is_not_for_every_gpu(examine: Doctor) -> None:
    lines = examine(Machine(Driver((13, 0), (H100,)), wheels=CUPY_13), cupy=PARTS_13, tensorrt=(ABSENT[0], RTX))
    assert lines["tensorrt-rtx (cuda)"].ok is None
    assert lines["tensorrt-rtx (cuda)"].found.endswith("sm75, sm80, sm86, sm89, sm120, sm121, this is sm90")
    assert advice(lines) == {"pip install 'edgepose[tensorrt-cu13]'"}


def test_a_missing_nvrtc(examine: Doctor) -> None:
    machine = Machine(Driver((13, 0), (H100,)), wheels={"cupy-cuda13x": "14.2.0"})
    lines = examine(machine, cupy=CupyParts(cuda=13, nvrtc_problem="no libnvrtc.so.13"), tensorrt=(FULL, ABSENT[1]))
    assert "no libnvrtc.so.13" in lines["nvrtc"].found
    assert lines["tensorrt (cuda)"].found == "not ready: lacks nvrtc"
    assert advice(lines) == {"pip install 'edgepose[cuda13]'"}


def test_an_old_driver_and_an_old_gpu(examine: Doctor) -> None:
    lines = examine(Machine(Driver((11, 4), (RTX_4090,))))
    assert advice(lines) == {"update the NVIDIA driver to 525 or later"}
    lines = examine(Machine(Driver((12, 8), (Gpu("Tesla V100", "sm70"),))))
    assert lines["NVIDIA GPU"].ok is None
    assert "compute capability 7.5" in lines["NVIDIA GPU"].found
    assert advice(lines) == set()


# What is broken makes `edgepose doctor` fail


@pytest.mark.parametrize("driver", [None, Driver((13, 0), (H100,))])
def test_two_wheels_of_cupy(examine: Doctor, driver: Driver | None) -> None:
    lines = examine(Machine(driver, wheels={**CUPY_12, **CUPY_13}), tensorrt=(FULL, ABSENT[1]))
    assert failed(lines) == {"cupy"}
    assert "cupy-cuda12x 14.2.0 and cupy-cuda13x 14.2.0 overwrite each other" in lines["cupy"].found
    assert advice(lines) == {"pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install 'edgepose[cuda13]'"}
    if driver is not None:
        assert lines["tensorrt (cuda)"].found == "not ready: mend cupy above"


def test_everything_is_made_for_a_newer_driver(examine: Doctor) -> None:
    wheels = {**CUPY_13, "tensorrt-cu13": "11.4", "tensorrt-cu13-bindings": "11.4", "tensorrt-cu13-libs": "11.4"}
    machine = Machine(Driver((12, 8), (RTX_4090,)), wheels=wheels)
    lines = examine(machine, cupy=PARTS_13, tensorrt=(FULL, ABSENT[1]))
    assert failed(lines) == {"cupy", "tensorrt"}
    assert lines["cupy"].advice == "pip uninstall -y cupy-cuda13x && pip install 'edgepose[cuda12]'"
    assert lines["tensorrt"].advice == (
        "pip uninstall -y tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs && "
        "pip install 'edgepose[tensorrt-cu12]'"
    )
    assert lines["tensorrt (cuda)"].found == "not ready: mend cupy and tensorrt above"


def test_cuda_12_runs_on_a_newer_driver(examine: Doctor) -> None:
    machine = Machine(Driver((13, 0), (H100,)), wheels={**CUPY_12, "tensorrt-cu12": "10.13.3.9"})
    assert examine(machine, cupy=PARTS_12, tensorrt=(FULL, ABSENT[1]))["tensorrt (cuda)"].ok is True


def test_an_nvrtc_that_is_newer_than_the_driver(examine: Doctor) -> None:
    """CuPy for CUDA 12 takes NVRTC 13 if it finds one, for instance PyTorch's; the driver would refuse its code."""
    machine = Machine(Driver((12, 8), (RTX_4090,)), wheels={**CUPY_12, "nvidia-cuda-nvrtc": "13.5.37"})
    lines = examine(machine, cupy=CupyParts(cuda=12, nvrtc=(13, 5)), tensorrt=(FULL, ABSENT[1]))
    assert failed(lines) == {"nvrtc"}
    assert lines["nvrtc"].advice == "pip uninstall -y nvidia-cuda-nvrtc && pip install 'edgepose[cuda12]'"


def test_packages_that_do_not_load(examine: Doctor) -> None:
    broken = Installed("tensorrt", "", "tensorrt is installed, but does not load (libnvinfer.so.10: cannot open)",
                       "install its libraries: pip install 'edgepose[tensorrt]'")  # fmt: skip
    machine = Machine(Driver((12, 8), (RTX_4090,)), wheels=CUPY_12)
    lines = examine(machine, cupy=CupyParts(problem="undefined symbol: PyNumber"), tensorrt=(broken, ABSENT[1]))
    assert failed(lines) == {"cupy", "tensorrt"}
    assert "undefined symbol" in lines["cupy"].found
    assert lines["tensorrt"].found == "installed, but does not load (libnvinfer.so.10: cannot open)"
    assert lines["tensorrt"].advice == "pip install 'edgepose[tensorrt-cu12]'"


def test_the_command_fails_if_something_is_broken(examine: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    for wheels, status in ((CUPY_13, 0), ({**CUPY_12, **CUPY_13}, 1)):
        machine = Machine(wheels=wheels)
        examine(machine, cupy=PARTS_13)
        monkeypatch.setattr(doctor, "look_around", lambda machine=machine: machine)
        result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
        assert result.exit_code == status, result.output


def test_no_onnxruntime_is_a_fault_everywhere(examine: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = examine(Machine())["onnxruntime (cpu)"]
    assert check.ok is False
    assert check.advice == "pip install onnxruntime"


# Jetson


@pytest.mark.parametrize(
    ("l4t", "jetpack", "cuda", "gpu", "extra"),
    [("36.4.3", "6.2", (12, 6), ORIN, "cuda12"), ("39.2.0", "7.2", (13, 2), THOR, "cuda13")],
)
def test_a_jetson_never_gets_a_wheel_of_tensorrt(
    examine: Doctor, l4t: str, jetpack: str, cuda: tuple[int, int], gpu: Gpu, extra: str
) -> None:
    machine = Machine(Driver(cuda, (gpu,)), l4t)
    lines = examine(machine, tensorrt=(FULL, ABSENT[1]))
    assert f"Jetson Linux {l4t} (JetPack {jetpack})" in lines["system"].found
    assert advice(lines) == {f"pip install 'edgepose[{extra}]'"}
    assert "does not support this GPU" in lines["tensorrt-rtx (cuda)"].found

    hidden = Installed("tensorrt", "", "tensorrt is installed, but only for the system's Python, in /usr/lib/...",
                       "let this environment see it: python3 -m venv --system-site-packages")  # fmt: skip
    absent = Installed("tensorrt", "", "tensorrt is not installed", "sudo apt install nvidia-jetpack")
    broken = Installed("tensorrt", "", "tensorrt is installed, but does not load (...)",
                       "install its libraries: pip install 'edgepose[tensorrt]'")  # fmt: skip
    for found, words, state in (
        (hidden, "--system-site-packages", None),
        (absent, "sudo apt install nvidia-jetpack", None),
        (broken, "sudo apt install --reinstall", False),
    ):
        lines = examine(machine, tensorrt=(found, ABSENT[1]))
        assert words in lines["tensorrt"].advice
        assert lines["tensorrt"].ok is state
        assert not any("edgepose[tensorrt" in each or "edgepose[rtx" in each for each in advice(lines))
        assert all(each.count("&&") == 0 for each in advice(lines))


def test_a_wheel_that_hides_jetpacks_tensorrt(examine: Doctor) -> None:
    wheels = {**CUPY_12, "tensorrt": "10.3.0", "tensorrt-cu12": "10.13", "tensorrt-cu12-libs": "10.13"}
    machine = Machine(Driver((12, 6), (ORIN,)), "36.4.4", wheels)
    lines = examine(machine, cupy=PARTS_12, tensorrt=(FULL, ABSENT[1]))
    assert failed(lines) == {"tensorrt"}
    assert advice(lines) == {"pip uninstall -y tensorrt-cu12 tensorrt-cu12-libs"}


def test_jetpack_5_is_too_old(examine: Doctor) -> None:
    lines = examine(Machine(Driver((11, 4), (Gpu("Xavier", "sm72"),)), "35.4.1"))
    assert advice(lines) == {"flash JetPack 6.1 or later"}


def test_jetson_linux_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "nv_tegra_release"
    assert doctor._read_l4t(path) == ""
    path.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n")
    assert doctor._read_l4t(path) == "36.4.3"
    path.write_text("something else")
    assert doctor._read_l4t(path) == "of unknown release"
    assert [doctor._jetpack(l4t) for l4t in ("36.3.0", "36.4.0", "36.4.7", "36.9", "38.4.0", "40.1")] == [
        "6.0", "6.1", "6.1", "6", "7.1", "unknown"
    ]  # fmt: skip


# Together with the real parts


def test_it_understands_what_tensorrt_api_says(examine: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensorrt_api.installed
    monkeypatch.setattr(tensorrt_api, "_load", tensorrt_api._open)
    monkeypatch.setattr(tensorrt_api, "_MODULES", dict.fromkeys(tensorrt_api.FLAVOURS, ("no_such_tensorrt",)))
    monkeypatch.setattr(tensorrt_api, "_system_tensorrt", lambda: None)
    monkeypatch.setattr(tensorrt_api, "_on_jetson", lambda: False)
    machine = Machine(Driver((12, 4), (RTX_4090,)))
    lines = examine(machine, tensorrt=real())
    assert advice(lines) == {"pip install 'edgepose[tensorrt-cu12]'", "pip install 'edgepose[rtx-cu12]'"}
    monkeypatch.setattr(tensorrt_api, "_system_tensorrt", lambda: Path("/usr/lib/python3/dist-packages/tensorrt"))
    lines = examine(machine, tensorrt=real())
    assert "--system-site-packages" in lines["tensorrt"].advice
    assert failed(lines) == set()

    def too_old(name: str) -> tuple[object, str]:
        return object(), "1.2.0"

    monkeypatch.setattr(tensorrt_api, "_import", too_old)
    with pytest.raises(EngineError, match="too old"):
        tensorrt_api._load("tensorrt")
    lines = examine(machine, tensorrt=real())
    assert failed(lines) == {"tensorrt", "tensorrt-rtx"}
    assert "too old" in lines["tensorrt"].found
    assert "pip install 'edgepose[tensorrt-cu12]'" in lines["tensorrt"].found


def test_this_machine() -> None:
    """As it is. Exit 0, or 1 and a line that says NO: on a machine with a GPU something may really be broken."""
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    for words in ("python", "numpy", "onnxruntime (cpu)", "ready: runs .onnx files", "CPUExecutionProvider"):
        assert words in result.output
    assert result.exit_code == (1 if re.search(r"^ NO ", result.output, re.M) else 0), result.output
    assert len(result.output.splitlines()) <= 24, "one screen"


def test_commands_can_be_copied(examine: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(Driver((13, 0), (RTX_4090,)))
    examine(machine)
    monkeypatch.setattr(doctor, "look_around", lambda: machine)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = [line.strip() for line in CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "40"}).output.splitlines()]
    for extra in ("train", "tensorrt-cu13", "rtx-cu13"):
        assert f"pip install 'edgepose[{extra}]'" in lines
