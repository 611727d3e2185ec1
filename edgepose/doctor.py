"""What is installed, which engines can run here, and the one command that mends what is missing.

Three groups of lines: the machine, the packages, the engines. A package's line says what is there and what is wrong
with it; an engine's line adds that up, and its command installs all that it lacks. Commands fit the machine: CuPy and
TensorRT for the CUDA that the driver supports, and on Jetson never a wheel in the place of JetPack's TensorRT.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from edgepose import tensorrt_api
from edgepose.errors import EdgePoseError
from edgepose.tensorrt_api import Flavour, Gpu, Installed

__all__ = ["Check", "Driver", "Machine", "check_engines", "check_packages", "check_system", "look_around"]


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: usable; None: a fact that is neither good nor bad; False: broken, and `edgepose doctor` exits with 1.
        found: what is there.
        advice: the command that mends it; empty: there is nothing to do, or another line says it.
    """

    name: str
    ok: bool | None
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: the newest CUDA that it supports as (major, minor), its GPUs, and why there are none."""

    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class CupyParts:
    """CuPy from the inside: why it cannot be imported, its CUDA's major version, NVRTC's version or why it has none."""

    problem: str = ""
    cuda: int = 0
    nvrtc: tuple[int, int] | None = None
    nvrtc_problem: str = ""


@dataclass(frozen=True)
class Machine:
    """What the advice depends on.

    Attributes:
        driver: None: there is none.
        l4t: the release of Jetson Linux, for instance ``36.4.3``; empty: not a Jetson.
        wheels: name -> version of the installed distributions, names as PyPI normalises them.
    """

    driver: Driver | None = None
    l4t: str = ""
    wheels: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpu(self) -> Gpu | None:
        """The first GPU, if driver and GPU are recent enough for the GPU path."""
        if self.driver is None or not self.driver.gpus or self.driver.cuda < OLDEST_CUDA:
            return None
        return self.driver.gpus[0] if _number(self.driver.gpus[0].sm) >= OLDEST_SM else None

    @property
    def cuda(self) -> int:
        """The CUDA major version to install for; 13 where no driver says otherwise."""
        return 12 if self.driver is not None and self.driver.cuda[0] == 12 else 13

    def command(self, extra: str) -> str:
        """What installs an extra here, for instance ``cuda`` or ``tensorrt-cu``."""
        return f"pip install 'edgepose[{extra}{self.cuda}]'"

    def runs(self, cuda: int) -> bool:
        """Whether the driver takes what is made for this CUDA major version; true where there is nothing to run on."""
        return self.driver is None or not self.driver.gpus or cuda <= self.driver.cuda[0]

    def installed(self, pattern: str) -> dict[str, str]:
        """The distributions whose whole name fits."""
        return {name: version for name, version in self.wheels.items() if re.fullmatch(pattern, name)}


OLDEST_CUDA = (12, 0)  # of the driver: CuPy 14 is built for 12 and 13
OLDEST_SM = 75  # TensorRT from 10.3 on, and NVRTC 13, begin with Turing
PIP_INSTALL = r"pip install .*?'edgepose\[.*?\]'"  # in what tensorrt_api says, which does not look at the driver
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")  # of 1.7; asked of the installed one if there is one

# Jetson Linux -> JetPack; the longest that fits counts. docs/jetson.md has the sources.
_JETPACK = {"35": "5", "36": "6", "36.3": "6.0", "36.4": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "36.5": "6.2.2",
            "38": "7", "38.2": "7.0", "38.4": "7.1", "39": "7", "39.2": "7.2", "39.2.1": "7.2.1"}  # fmt: skip

# Module, distributions that provide it, what it is for, how to get it.
_PACKAGES = (
    ("numpy", ("numpy",), "arrays", "pip install numpy"),
    ("cv2", ("opencv-python-headless", "opencv-python", "opencv-contrib-python"), "pictures and video",
     "pip install opencv-python-headless"),
    ("onnx", ("onnx",), "model files", "pip install onnx"),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "the CPU engine", "pip install onnxruntime"),
    ("scipy", ("scipy",), "tracking", "pip install scipy"),
    ("av", ("av",), "streams: files and network addresses, where OpenCV is weak", "pip install 'edgepose[av]'"),
    ("PyNvVideoCodec", ("PyNvVideoCodec",), "streams: decoding on the GPU", "pip install 'edgepose[nvdec]'"),
    ("torch", ("torch",), "training and export", "pip install 'edgepose[train]'"),
)  # fmt: skip


def look_around() -> Machine:
    """This machine; asks the driver and the file system, imports nothing."""
    return Machine(_ask_driver(), _read_l4t(), _list_wheels())


def check_system(machine: Machine | None = None) -> list[Check]:
    """Python, machine and GPU driver."""
    machine = machine or look_around()
    system = f"{platform.system()} {platform.machine()}"
    if machine.l4t:
        system += f", Jetson Linux {machine.l4t} (JetPack {_jetpack(machine.l4t)})"
    python = f"{platform.python_version()} ({sys.executable})"
    supported = sys.version_info >= (3, 10)
    return [
        Check("python", supported, python, "" if supported else "install Python 3.10 or newer"),
        Check("system", None, system),
        _check_gpu(machine),
    ]


def check_packages(machine: Machine | None = None) -> list[Check]:
    """The libraries that edgepose uses. Imports CuPy and TensorRT, where they are installed, to see them load."""
    machine = machine or look_around()
    wheels = machine.wheels
    checks = [Check("edgepose", True, wheels.get("edgepose", "not installed as a package"))]
    for module, distributions, purpose, command in _PACKAGES:
        if importlib.util.find_spec(module) is None:
            checks.append(Check(module, None, f"not installed ({purpose})", command))
        else:
            version = next((wheels[name] for name in distributions if name in wheels), "unknown version")
            checks.append(Check(module, True, f"{version} ({purpose})"))
    tensorrt = [_check_tensorrt(machine, installed) for installed in tensorrt_api.installed()]
    return [*checks, *_check_cupy(machine), *tensorrt, _check_pycuda(wheels)]


def check_engines(machine: Machine | None = None) -> list[Check]:
    """What runs models: each engine ready, or what it lacks. Imports what it needs."""
    machine = machine or look_around()
    flavours = tensorrt_api.installed()
    checks = [_check_gpu_engine(machine, installed) for installed in flavours]
    if any(check.ok for check in checks):
        for index, installed in enumerate(flavours):
            if _is_absent(installed):
                checks[index] = Check(checks[index].name, None, "not installed; one GPU engine is enough")
    return [_check_onnxruntime(), *checks]


# The machine --------------------------------------------------------------------------------------


def _check_gpu(machine: Machine) -> Check:
    name, driver = "NVIDIA GPU", machine.driver
    if driver is None:
        return Check(name, None, "no NVIDIA driver; the CPU engine needs none")
    if driver.problem or not driver.gpus:
        return Check(name, None, f"driver found, but no GPU can be used ({driver.problem or 'it shows none'})")
    gpus = ", ".join(f"{gpu.name} ({gpu.sm})" for gpu in driver.gpus)
    found = f"{gpus}; the driver supports CUDA {_dotted(driver.cuda)}"
    if driver.cuda < OLDEST_CUDA:
        advice = "flash JetPack 6.1 or later" if machine.l4t else "update the NVIDIA driver to 525 or later"
        return Check(name, None, f"{found}: too old, the GPU engines need CUDA 12", advice)
    if machine.gpu is None:
        return Check(name, None, f"{found}; the GPU engines need compute capability 7.5 or later")
    return Check(name, True, found)


def _ask_driver() -> Driver | None:
    """Ask the CUDA driver itself: that needs neither CuPy nor torch."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    if status := cuda.cuInit(0):
        return Driver(problem=f"cuInit returned {status}")
    supported, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(supported))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = [tensorrt_api.gpu_here(index) for index in range(count.value)]
    major, minor = supported.value // 1000, supported.value % 1000 // 10
    return Driver((major, minor), tuple(gpu for gpu in gpus if gpu is not None))


def _read_l4t(path: Path = Path("/etc/nv_tegra_release")) -> str:
    """``# R36 (release), REVISION: 4.3, ...`` as ``36.4.3``; empty: not a Jetson."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else "of unknown release"


def _jetpack(l4t: str) -> str:
    parts = l4t.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((_JETPACK[prefix] for prefix in prefixes if prefix in _JETPACK), "unknown")


def _list_wheels() -> dict[str, str]:
    """With the environment's own before those of the system, as Python finds them."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # broken ones have none
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


# The packages -------------------------------------------------------------------------------------


def _check_cupy(machine: Machine) -> list[Check]:
    """CuPy and, if it works, the NVRTC that it finds."""
    wheels = machine.installed(r"cupy(-cuda.*|-rocm.*)?")
    titles = [f"{name} {version}" for name, version in wheels.items()]
    remove = f"pip uninstall -y {' '.join(wheels)} && {machine.command('cuda')}"
    if not wheels:
        return [Check("cupy", None, "not installed (CUDA kernels)")]
    if len(wheels) > 1:  # they share one folder, and what is in it is a mixture
        return [Check("cupy", False, f"{' and '.join(titles)} overwrite each other: keep one", remove)]
    parts = _ask_cupy()
    if parts.problem:
        return [Check("cupy", False, f"{titles[0]} is installed, but cannot be imported: {parts.problem}", remove)]
    if not machine.runs(parts.cuda):
        return [Check("cupy", False, f"{titles[0]} is made for CUDA {parts.cuda}, the driver is older", remove)]
    return [Check("cupy", True, f"{titles[0]} (CUDA kernels)"), _check_nvrtc(machine, parts)]


def _check_nvrtc(machine: Machine, parts: CupyParts) -> Check:
    if parts.nvrtc is None:
        return Check("nvrtc", None, f"not found by CuPy ({parts.nvrtc_problem}); it compiles the CUDA kernels")
    version = _dotted(parts.nvrtc)
    if not machine.runs(parts.nvrtc[0]):
        # nvidia-cuda-nvrtc is CUDA 13's, which CuPy prefers; that of 12 is called nvidia-cuda-nvrtc-cu12
        remove = [f"pip uninstall -y {name}" for name in machine.installed("nvidia-cuda-nvrtc")]
        found = f"{version} makes code that the driver, which is older, does not load"
        return Check("nvrtc", False, found, " && ".join([*remove, machine.command("cuda")]))
    return Check("nvrtc", True, f"{version} (compiles the CUDA kernels)")


def _ask_cupy() -> CupyParts:
    """Import CuPy. A damaged one raises almost anything."""
    try:
        import cupy
        from cupy.cuda import nvrtc

        cuda = int(cupy.cuda.runtime.runtimeGetVersion()) // 1000
    except Exception as error:
        return CupyParts(problem=_first_line(error))
    try:
        major, minor = nvrtc.getVersion()  # this loads the library
    except Exception as error:
        return CupyParts(cuda=cuda, nvrtc_problem=_first_line(error))
    return CupyParts(cuda=cuda, nvrtc=(int(major), int(minor)))


def _check_tensorrt(machine: Machine, installed: Installed) -> Check:
    name, rtx = installed.name, installed.name == "tensorrt-rtx"
    wheels = sorted(machine.installed(r"tensorrt-rtx-cu.*" if rtx else r"tensorrt-cu.*"))
    remove, install = f"pip uninstall -y {' '.join(wheels)}", machine.command("rtx-cu" if rtx else "tensorrt-cu")
    if machine.l4t and wheels and not rtx:
        return Check(name, False, f"{' '.join(wheels)} hide JetPack's TensorRT, the one for this board", remove)
    if installed.version:
        made_for = max((int(wheel.split("-cu")[1][:2]) for wheel in wheels), default=0)
        if machine.runs(made_for):
            return Check(name, True, installed.version)
        found = f"{installed.version} is made for CUDA {made_for}, the driver is older"
        return Check(name, False, found, f"{remove} && {install}")
    reason, advice = (re.sub(PIP_INSTALL, install, text) for text in (installed.reason, installed.advice))
    reason = reason.removeprefix(f"{name} is ")
    if machine.gpu is None:  # nothing could run it: no reason to mend it
        return Check(name, None, reason)
    if install in advice:
        advice = "sudo apt install --reinstall nvidia-jetpack python3-libnvinfer" if machine.l4t else install
    if _is_absent(installed):  # the engine's line has the command, if it is pip's
        return Check(name, None, reason, "" if advice == install or rtx else advice)
    return Check(name, None if "system's Python" in reason else False, reason, advice)


def _check_pycuda(wheels: Mapping[str, str]) -> Check:
    if "pycuda" in wheels:
        return Check("pycuda", True, f"{wheels['pycuda']} (its arrays can be frames)")
    return Check("pycuda", None, "not installed (optional, to pass its arrays as frames: edgepose[pycuda])")


# The engines --------------------------------------------------------------------------------------


def _check_onnxruntime() -> Check:
    try:
        import onnxruntime
    except ImportError as error:
        return Check("onnxruntime (cpu)", False, f"cannot be imported: {error}", "pip install onnxruntime")
    providers = ", ".join(onnxruntime.get_available_providers())
    if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
        return Check("onnxruntime (cpu)", False, f"no CPU provider, only {providers}", "pip install onnxruntime")
    return Check("onnxruntime (cpu)", True, f"ready: runs .onnx files; providers: {providers}")


def _check_gpu_engine(machine: Machine, installed: Installed) -> Check:
    """Ready, or what it lacks; the command installs all of it."""
    flavour, gpu = installed.name, machine.gpu
    name, rtx = f"{flavour} (cuda)", flavour == "tensorrt-rtx"
    if gpu is None:
        builds = " (it builds engines here all the same)" if rtx and installed.version else ""
        return Check(name, None, f"not ready: no NVIDIA GPU that it could run on{builds}")
    if rtx and gpu.sm not in (targets := _rtx_targets()):
        return Check(name, None, f"does not support this GPU: it is made for {', '.join(targets)}, this is {gpu.sm}")
    parts = [*_check_cupy(machine), _check_tensorrt(machine, installed)]
    absent = [part.name for part in parts if part.ok is None]
    broken = [part.name for part in parts if part.ok is False]
    if broken:
        return Check(name, None, f"not ready: mend {' and '.join(broken)} above")
    if absent:
        return Check(name, None, f"not ready: lacks {' and '.join(absent)}", _missing_command(machine, flavour, absent))
    return Check(name, True, f"ready: runs .engine files on {gpu.name}")


def _missing_command(machine: Machine, flavour: Flavour, lacking: list[str]) -> str:
    """One pip command for all that lacks. JetPack's TensorRT is no matter of pip: its own line says what to do."""
    if flavour in lacking and not machine.l4t:
        return machine.command("rtx-cu" if flavour == "tensorrt-rtx" else "tensorrt-cu")
    return machine.command("cuda") if lacking != [flavour] else ""


def _rtx_targets() -> tuple[str, ...]:
    try:
        return tensorrt_api.load("tensorrt-rtx").compute_capabilities or RTX_TARGETS
    except EdgePoseError:
        return RTX_TARGETS


def _is_absent(installed: Installed) -> bool:
    return not installed.version and installed.reason.endswith("is not installed")


def _number(sm: str) -> int:
    return int(sm.removeprefix("sm"))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
