"""What is installed, which engines can run here, and what to install for the others."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

__all__ = ["Check", "check_engines", "check_packages", "check_system"]


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: usable; None: a fact that is neither good nor bad.
        found: what is there.
        advice: what to do about it; empty: nothing.
    """

    name: str
    ok: bool | None
    found: str
    advice: str = ""


# Module, distributions that provide it, what it is for, how to get it.
_PACKAGES = (
    ("numpy", ("numpy",), "arrays", "pip install numpy"),
    ("cv2", ("opencv-python-headless", "opencv-python", "opencv-contrib-python"), "pictures and video",
     "pip install opencv-python-headless"),
    ("onnx", ("onnx",), "model files", "pip install onnx"),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "the CPU engine", "pip install onnxruntime"),
    ("torch", ("torch",), "training and export", "pip install 'edgepose[train]'"),
    ("cupy", ("cupy-cuda13x", "cupy-cuda12x", "cupy"), "CUDA kernels", "pip install 'edgepose[gpu]'"),
    ("tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "TensorRT", "pip install 'edgepose[tensorrt]'"),
    ("tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx"), "TensorRT-RTX", "pip install 'edgepose[rtx]'"),
)  # fmt: skip


def check_system() -> list[Check]:
    """Python, machine and GPU driver."""
    system = f"{platform.system()} {platform.machine()}"
    python = f"{platform.python_version()} ({sys.executable})"
    supported = sys.version_info >= (3, 10)
    return [
        Check("python", supported, python, "" if supported else "install Python 3.10 or newer"),
        Check("system", None, system),
        _driver(),
    ]


def check_packages() -> list[Check]:
    """The libraries that edgepose uses; installed or not, without importing any."""
    checks = [Check("edgepose", True, _version(("edgepose",)) or "not installed as a package")]
    for module, distributions, purpose, command in _PACKAGES:
        if importlib.util.find_spec(module) is None:
            checks.append(Check(module, None, f"not installed ({purpose})", command))
        else:
            checks.append(Check(module, True, f"{_version(distributions) or 'unknown version'} ({purpose})"))
    return checks


def check_engines() -> list[Check]:
    """The engines of this version; imports onnxruntime to see whether it really loads."""
    return [_onnxruntime(), _tensorrt()]


def _onnxruntime() -> Check:
    try:
        import onnxruntime
    except ImportError as error:
        return Check("onnxruntime (cpu)", False, f"cannot be imported: {error}", "pip install onnxruntime")
    providers = ", ".join(onnxruntime.get_available_providers())
    if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
        return Check("onnxruntime (cpu)", False, f"no CPU provider, only {providers}", "pip install onnxruntime")
    return Check("onnxruntime (cpu)", True, f"ready: device='cpu' and device='auto'; providers: {providers}")


def _tensorrt() -> Check:
    return Check("tensorrt (cuda)", None, "not in this version of edgepose: device='cuda' raises EngineError")


def _driver() -> Check:
    """Ask the CUDA driver itself: that needs neither CuPy nor torch."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return Check("NVIDIA GPU", None, "no NVIDIA driver; the CPU engine needs none")
    if status := cuda.cuInit(0):
        return Check("NVIDIA GPU", None, f"driver found, but no GPU can be used (cuInit returned {status})")
    supported, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(supported))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        device, text = ctypes.c_int(), ctypes.create_string_buffer(128)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(text, len(text), device)
        names.append(text.value.decode(errors="replace"))
    cuda_version = f"{supported.value // 1000}.{supported.value % 1000 // 10}"
    return Check("NVIDIA GPU", True, f"{', '.join(names) or 'none'}; the driver supports CUDA {cuda_version}")


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
