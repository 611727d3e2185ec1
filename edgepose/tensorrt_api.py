"""TensorRT and TensorRT-RTX behind one door: which is installed, its log, and what differs between versions.

    api = load()                            # or load("tensorrt-rtx")
    trt = api.module                        # the Python module; both have the same names
    with api.collect() as messages:
        engine = trt.Runtime(api.logger).deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"... {messages.summary()}")

What differs, from the bindings of 10.3 to 11.4 and of RTX 1.4 to 1.7: TensorRT 11 has no precision flags (networks are
always strongly typed), RTX builds for a list of compute capabilities without a GPU, compiles its kernels on the target
and keeps them in a runtime cache. Nothing is imported before `load` or `installed` is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import platform
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgepose.errors import EngineError, InputError, MissingDependencyError

__all__ = ["FLAVOURS", "Api", "Flavour", "Gpu", "Installed", "Messages", "gpu_here", "installed", "load"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

# In this order: full TensorRT knows every GPU and is the faster one, so it is taken where both are installed.
_MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx",),
}
_INSTALL: dict[Flavour, str] = {
    "tensorrt": "pip install 'edgepose[tensorrt-cu13]' (tensorrt-cu12 where the driver knows CUDA 12 only)",
    "tensorrt-rtx": "pip install 'edgepose[rtx-cu13]' (rtx-cu12 where the driver knows CUDA 12 only)",
}
# Reentrant: TensorRT may speak while Python collects garbage, that is anywhere.
_COLLECTING_LOCK = threading.RLock()
_LOADING_LOCK = threading.RLock()
_loaded: dict[Flavour, Api] = {}

_OLDEST: dict[Flavour, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}


@dataclass(eq=False)  # two that hold the same are still two
class Messages:
    """What TensorRT said while they were collected: (severity, text) pairs, severity as ``ERROR`` or ``WARNING``."""

    entries: list[tuple[str, str]] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)

    @property
    def errors(self) -> list[str]:
        """The errors, oldest first."""
        return [text for severity, text in self.entries if severity in {"ERROR", "INTERNAL_ERROR"}]

    @property
    def warnings(self) -> list[str]:
        """The warnings, oldest first, each once."""
        return list(dict.fromkeys(text for severity, text in self.entries if severity == "WARNING"))

    def summary(self, limit: int = 600) -> str:
        """The errors on one line of at most ``limit`` characters, for an exception's text."""
        text = "; ".join(dict.fromkeys(" ".join(error.split()) for error in self.errors))
        if not text:
            return "TensorRT gave no reason"
        return f"TensorRT says: {text[: limit - 3] + '...' if len(text) > limit else text}"


@dataclass(frozen=True, eq=False)
class Api:
    """One importable TensorRT.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        module: the Python module.
        version: of the module, for instance ``11.4.0.106``. An engine runs with the version that built it only.
        logger: the ``ILogger`` of this process: TensorRT keeps the first one that it gets. It prints nothing.
    """

    name: Flavour
    module: Any
    version: str
    logger: Any
    _collecting: list[Messages]

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX: has targets, engine validity and a runtime cache."""
        return self.name == "tensorrt-rtx"

    @property
    def network_flags(self) -> int:
        """For ``Builder.create_network``: strongly typed, so that precision is what the graph says.

        The flag's number differs between versions, and a version without it would know nothing else.
        """
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The targets that this RTX can build for, for instance ``("sm75", "sm80")``; empty for full TensorRT."""
        names = getattr(getattr(self.module, "ComputeCapability", None), "__members__", {})
        found = [name.lower() for name in names if re.fullmatch(r"SM\d+", name)]
        return tuple(sorted(found, key=lambda name: int(name[2:])))

    @contextlib.contextmanager
    def collect(self) -> Iterator[Messages]:
        """Gather what TensorRT says until the block ends.

        Messages of other threads that collect for themselves are left out; those of TensorRT's own threads are in.
        """
        messages = Messages()
        with _COLLECTING_LOCK:
            self._collecting.append(messages)
        try:
            yield messages
        finally:
            with _COLLECTING_LOCK:
                self._collecting.remove(messages)


@dataclass(frozen=True)
class Installed:
    """What `edgepose doctor` says about one flavour.

    Attributes:
        name: the flavour.
        version: empty if it cannot be used.
        reason: why it cannot be used; empty if it can.
        advice: what to do about it; empty if there is nothing to do.
    """

    name: Flavour
    version: str
    reason: str
    advice: str


class _NotUsableError(MissingDependencyError):
    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}: {advice}")
        self.reason, self.advice = reason, advice


def load(flavour: str | None = None) -> Api:
    """Import TensorRT.

    Args:
        flavour: ``tensorrt`` or ``tensorrt-rtx``; None: full TensorRT if it is installed, else TensorRT-RTX.

    Raises:
        InputError: there is no such flavour.
        MissingDependencyError: it is not installed, or does not load; with the command that mends it.
        EngineError: the installed version is too old.
    """
    if flavour is not None and flavour not in FLAVOURS:
        raise InputError(f"flavour must be one of {', '.join(FLAVOURS)}, got {flavour!r}")
    reasons = []
    for name in FLAVOURS:
        if flavour in {None, name}:
            try:
                return _load(name)
            except MissingDependencyError as error:
                reasons.append(str(error))
    raise MissingDependencyError("; or ".join(reasons))


def installed() -> list[Installed]:
    """Each flavour with its version, or with the reason why it cannot be used. Imports them."""
    found = []
    for name in FLAVOURS:
        try:
            found.append(Installed(name, _load(name).version, "", ""))
        except _NotUsableError as error:
            found.append(Installed(name, "", error.reason, error.advice))
        except EngineError as error:
            found.append(Installed(name, "", str(error), ""))
    return found


def _load(name: Flavour) -> Api:
    """Open a flavour once, whichever threads ask for it. A failure is not kept: it is looked at the next time again."""
    with _LOADING_LOCK:
        if name not in _loaded:
            _loaded[name] = _open(name)
        return _loaded[name]


def _open(name: Flavour) -> Api:
    """Import a flavour and make its logger."""
    module, version = _import(name)
    oldest = _OLDEST[name]
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < oldest:
        upgrade = (
            "flash JetPack 6.1 or later"
            if _on_jetson()
            else _INSTALL[name].replace("pip install", "pip install --upgrade")
        )
        raise EngineError(
            f"{name} {version} is too old: edgepose needs {oldest[0]}.{oldest[1]} or later (strongly typed networks "
            f"and this interface). Upgrade it: {upgrade}"
        )
    collecting: list[Messages] = []
    return Api(name, module, version, _make_logger(module, collecting), collecting)


def _import(name: Flavour) -> tuple[Any, str]:
    broken = ""
    for module_name in _MODULES[name]:
        try:
            module = importlib.import_module(module_name)
            return module, str(module.__version__)
        except ModuleNotFoundError as error:
            if error.name != module_name:  # a part of it is missing
                broken = str(error)
        except (ImportError, OSError, AttributeError) as error:  # its libraries; or an empty package of that name
            broken = str(error)
    if broken:
        raise _NotUsableError(
            f"{name} is installed, but does not load ({' '.join(broken.split())})",
            "install its libraries, which come from NVIDIA's package index or JetPack for full TensorRT and from PyPI "
            f"for TensorRT-RTX: {_INSTALL[name]}",
        )
    if name == "tensorrt" and (system := _system_tensorrt()):
        raise _NotUsableError(
            f"tensorrt is installed, but only for the system's Python, in {system}",
            "let this environment see it and install nothing over it: python3 -m venv --system-site-packages, or "
            f"include-system-site-packages = true in {Path(sys.prefix) / 'pyvenv.cfg'}",
        )
    if name == "tensorrt" and _on_jetson():
        raise _NotUsableError("tensorrt is not installed", "sudo apt install nvidia-jetpack python3-libnvinfer")
    raise _NotUsableError(f"{name} is not installed", _INSTALL[name])


def _system_tensorrt() -> Path | None:
    """Debian's folder of the system's TensorRT for this version of Python, where JetPack puts it."""
    for folder in (f"python{sys.version_info.major}.{sys.version_info.minor}", f"python{sys.version_info.major}"):
        path = Path("/usr/lib") / folder / "dist-packages" / "tensorrt"
        if path.is_dir():
            return path
    return None


def _on_jetson() -> bool:
    return platform.machine() == "aarch64" and Path("/etc/nv_tegra_release").exists()


def _make_logger(module: Any, collecting: list[Messages]) -> Any:
    """An ILogger that hands messages to whoever collects; made once, since TensorRT keeps the first it sees."""

    class Logger(module.ILogger):  # type: ignore[misc]  # a base that is known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 asks for this very call

        def log(self, severity: Any, text: str) -> None:
            kind = str(severity).rpartition(".")[2]
            if kind not in {"ERROR", "INTERNAL_ERROR", "WARNING"}:
                return
            thread = threading.get_ident()
            with _COLLECTING_LOCK:
                listening = list(collecting)
            own = [messages for messages in listening if messages.thread == thread]
            for messages in own or listening:
                messages.entries.append((kind, text))

    return Logger()


# The GPU ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name, and its compute capability as ``sm90``."""

    name: str
    sm: str


def gpu_here(device: int | None = None) -> Gpu | None:
    """The GPU that an engine is built for and runs on here; None: there is no driver or no GPU.

    Asks the driver itself, so it needs no CuPy, makes no context and allocates nothing.

    Args:
        device: its CUDA number; None: that of this thread's current context, or 0.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    handle = ctypes.c_int()
    if cuda.cuInit(0) or (
        cuda.cuDeviceGet(ctypes.byref(handle), device)
        if device is not None
        else cuda.cuCtxGetDevice(ctypes.byref(handle)) and cuda.cuDeviceGet(ctypes.byref(handle), 0)
    ):
        return None
    text, major, minor = ctypes.create_string_buffer(128), ctypes.c_int(), ctypes.c_int()
    if (
        cuda.cuDeviceGetName(text, len(text), handle)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)  # ..._MINOR
    ):
        return None
    return Gpu(text.value.decode(errors="replace"), f"sm{major.value}{minor.value}")
