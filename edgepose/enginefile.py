"""The sidecar of an engine: ``model.engine.json`` beside ``model.engine``.

A TensorRT engine says nothing about itself that can be read without a GPU, and a wrong one fails late or crashes. The
sidecar holds what the runtime must know before it hands the bytes to TensorRT: spec, input and output, profile, where
it runs, size and hash of the file, and how far its landmarks are from the float32 model's.

    info, data = read_engine("model.engine")              # EngineError: missing, cut off, foreign, too new
    check_runs_here(info, "model.engine", flavour=api.name, version=api.version, sm=gpu.sm, gpu_name=gpu.name)

An engine is bound to TensorRT's exact version and, for full TensorRT, to the very GPU model. The builder's flags
VERSION_COMPATIBLE and HARDWARE_COMPATIBILITY would loosen that, at the price of slower kernels and a second runtime in
the file; a rebuild on the target takes minutes and gives the engine that was measured there, so they are not used.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgepose.errors import EdgePoseError, EngineError, InputError
from edgepose.files import write_atomically
from edgepose.jsonfields import FieldError, kind, one_of, read_dataclass, tuple_of
from edgepose.parity import ParityReport
from edgepose.spec import ModelSpec
from edgepose.tensorrt_api import FLAVOURS, Flavour

if TYPE_CHECKING:
    from edgepose.adapt import Spec
    from edgepose.detection_parity import DetectionReport

__all__ = [
    "BuildOptions",
    "EngineInfo",
    "Precision",
    "TensorInfo",
    "cache_path",
    "check_runs_here",
    "parity_path",
    "platform_here",
    "read_engine",
    "sidecar_path",
]

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCHEMA_VERSION = 1


def sidecar_path(engine: Path) -> Path:
    """Where an engine's sidecar lies: ``model.engine.json``."""
    return engine.with_name(engine.name + ".json")


def parity_path(engine: Path) -> Path:
    """Where the crops and the float32 model's results lie that an engine is judged by: ``model.engine.parity.npz``."""
    return engine.with_name(engine.name + ".parity.npz")


def cache_path(engine: Path) -> Path:
    """Where the kernels are kept that TensorRT-RTX compiles when it loads an engine: ``model.engine.cache``."""
    return engine.with_name(engine.name + ".cache")


def platform_here() -> str:
    """Operating system and processor, for instance ``linux-x86_64``: an engine fits one of them only."""
    return f"{platform.system()}-{platform.machine()}".lower()


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the network: its name, ``float16`` or ``float32``, and its shape with -1 for the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """How to build, beyond precision and batch sizes.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt-rtx``; None: full TensorRT if it is installed, else TensorRT-RTX.
        targets: compute capabilities for TensorRT-RTX, for instance ``("sm75", "sm86")``. Empty: all that this RTX
            knows from sm80 on; Turing, sm75, shuts out kernels that the others have, so it must be asked for. Full
            TensorRT builds for the GPU it runs on and takes no targets.
        optimization_level: 0 (build fast) to 5 (try everything); None: TensorRT's own choice, 3.
        aux_streams: streams beside the main one that branches of the network may run on; None: TensorRT decides.
        workspace_mib: memory limit for a layer's scratch space, MiB; None: all the GPU has.
        force: keep an engine that the parity report refuses.

    Raises:
        InputError: a value is of another type or out of range.
    """

    flavour: Flavour | None = None
    targets: tuple[str, ...] = ()
    optimization_level: int | None = None
    aux_streams: int | None = None
    workspace_mib: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.flavour not in (None, *FLAVOURS):
            raise InputError(f"flavour must be one of {', '.join(FLAVOURS)}, or None, got {self.flavour!r}")
        if not isinstance(self.targets, (tuple, list)) or any(type(target) is not str for target in self.targets):
            raise InputError(f"targets must be a sequence of names, for instance ('sm86',), got {self.targets!r}")
        object.__setattr__(self, "targets", tuple(self.targets))
        for name, lowest, highest in (
            ("optimization_level", 0, 5),
            ("aux_streams", 0, 2**31 - 1),
            ("workspace_mib", 1, 2**43),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not lowest <= value <= highest):
                limits = f"from {lowest} to {highest}" if highest == 5 else f"of at least {lowest}"
                raise InputError(f"{name} must be an integer {limits}, or None, got {value!r}")
        if type(self.force) is not bool:
            raise InputError(f"force must be True or False, got {self.force!r}")


@dataclass(frozen=True)
class EngineInfo:
    """What is known about an engine without loading it. Read it with :func:`read_engine` or ``EngineInfo.read``.

    Attributes:
        spec: how to feed the network as it was built and how to read what it returns: of a pose model or of a detector,
            in the canonical form (:mod:`edgepose.adapt`).
        input, output: of the network, as it was built.
        profile: smallest, best and largest batch.
        precision: ``fp32`` or ``fp16``: that of the graph, hence of the engine.
        flavour, version: the TensorRT that built it, and the only one that runs it.
        platform: operating system and processor.
        targets: compute capabilities that it runs on.
        gpu: the GPU that it was built on and runs on; empty for TensorRT-RTX, which compiles on the target.
        onnx: file name of the model, or a bundled name.
        onnx_sha256: of that file.
        spec_given: the spec came from the caller, not from the model.
        engine_bytes, engine_sha256: of the engine file.
        options: what was asked for.
        parity: how far its landmarks are from the float32 model's, see :mod:`edgepose.parity`; or its detections, see
            :mod:`edgepose.detection_parity`.
        built: UTC, ISO 8601.
        seconds: that TensorRT took.
        edgepose: the version that built it.
    """

    spec: Spec
    input: TensorInfo
    output: TensorInfo
    profile: tuple[int, int, int]
    precision: Precision
    flavour: Flavour
    version: str
    platform: str
    targets: tuple[str, ...]
    gpu: str
    onnx: str
    onnx_sha256: str
    spec_given: bool
    engine_bytes: int
    engine_sha256: str
    parity: ParityReport | DetectionReport
    built: str
    seconds: float
    edgepose: str
    options: BuildOptions = field(default_factory=BuildOptions)

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for all that must agree: model, TensorRT, machine, profile, precision."""
        must_agree = [
            *(self.onnx_sha256, self.flavour, self.version, self.platform, self.targets, self.gpu),
            *(self.profile, self.precision),
        ]
        return hashlib.sha256(json.dumps(must_agree).encode()).hexdigest()[:16]

    def rebuild_command(self, engine: Path, *, any_flavour: bool = False) -> str:
        """The command that builds this engine again, with the same options, on the machine where it is run.

        ``any_flavour``: with the TensorRT that is installed there, whichever it is.
        """
        source = self.onnx
        if Path(source).suffix and (engine.parent / source).is_file():
            source = str(engine.parent / source)
        words = ["edgepose", "build", source, "-o", str(engine), "--precision", self.precision]
        for name, size in zip(("--min-batch", "--opt-batch", "--max-batch"), self.profile, strict=True):
            words += [name, str(size)]
        chosen = self.options
        for name, value in (("--opt-level", chosen.optimization_level), ("--aux-streams", chosen.aux_streams)):
            words += [name, str(value)] if value is not None else []
        words += ["--workspace", str(chosen.workspace_mib)] if chosen.workspace_mib is not None else []
        for target in chosen.targets:
            words += ["--target", target]
        words += [] if any_flavour else ["--flavour", self.flavour]
        words += ["--spec", "spec.json"] if self.spec_given else []
        words += ["--force"] if chosen.force else []
        return shlex.join(words)

    # JSON -----------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The sidecar's text."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        nested = {name: asdict(value) for name, value in own.items() if hasattr(value, "__dataclass_fields__")}
        nested["spec"] = json.loads(self.spec.to_json())
        lines = {"schema": SCHEMA_VERSION, "key": self.key, **own, **nested}
        if not isinstance(self.spec, ModelSpec):  # the key tells the reader which kind it is
            lines = {"detector" if name == "spec" else name: value for name, value in lines.items()}
        return (
            "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in lines.items()) + "\n}\n"
        )

    def write(self, engine: Path) -> None:
        """Write the sidecar beside its engine; whoever reads it finds the old text or the whole new one."""
        write_atomically(sidecar_path(engine), self.to_json().encode())

    @classmethod
    def read(cls, engine: str | Path) -> EngineInfo:
        """Read the sidecar of an engine. The engine itself is not looked at: :func:`read_engine` does that.

        Raises:
            EngineError: there is none, or it is foreign, damaged or newer than this version.
        """
        engine = Path(engine)
        path = sidecar_path(engine)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise EngineError(
                f"{engine} has no sidecar {path.name}: an engine runs only with the description that `edgepose build` "
                f"writes beside it. Copy all three files: {engine.name}, {path.name}, {parity_path(engine).name}; if "
                "the engine was renamed, rename the other two alike; or build it again: edgepose build model.onnx"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"{path} cannot be read ({error}): copy it again, or build the engine again") from None
        return cls.from_json(text, source=str(path))

    @classmethod
    def from_json(cls, text: str, *, source: str = "sidecar") -> EngineInfo:
        """``to_json``'s inverse; ``source`` is what an error message calls it.

        Raises:
            EngineError: not a sidecar, damaged, changed by hand, or of a newer version.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise EngineError(f"{source} is not JSON ({error}): copy it again, or build the engine again") from None
        if not isinstance(data, dict) or "schema" not in data or "engine_sha256" not in data:
            raise EngineError(
                f"{source} is not the sidecar of an edgepose engine: build the engine with `edgepose build`"
            )
        if data["schema"] != SCHEMA_VERSION:
            raise EngineError(
                f"{source} has schema {data['schema']!r}, and this edgepose reads schema {SCHEMA_VERSION}: upgrade "
                "edgepose, or build the engine again with this version"
            )
        try:
            key = data.pop("key", None)
            del data["schema"]
            info = read_dataclass(cls, *_by_kind(data))
        except (FieldError, EdgePoseError) as error:
            raise EngineError(f"{source}: {error}. Build the engine again, or use the edgepose that built it") from None
        if key != info.key:
            raise EngineError(
                f"{source}: its key is {key}, its contents have the key {info.key}: it was changed by hand or belongs "
                "to another engine. Build the engine again"
            )
        return info


def read_engine(engine: str | Path) -> tuple[EngineInfo, bytes]:
    """An engine's sidecar and its bytes, checked against each other.

    Raises:
        EngineError: the engine is missing, empty, cut off, or not the one that the sidecar describes; or the sidecar
            is missing or unusable.
    """
    engine = Path(engine)
    if not engine.is_file():
        raise EngineError(f"there is no engine file {engine}: build it with `edgepose build model.onnx -o {engine}`")
    info = EngineInfo.read(engine)
    try:
        data = engine.read_bytes()
    except OSError as error:
        raise EngineError(f"{engine} cannot be read: {error.strerror}") from None
    again = f"Copy it again, or build it again: {info.rebuild_command(engine)}"
    if len(data) != info.engine_bytes:
        state = "cut off" if len(data) < info.engine_bytes else "another file"
        raise EngineError(f"{engine} is {state}: it has {len(data)} bytes, built were {info.engine_bytes}. {again}")
    if hashlib.sha256(data).hexdigest() != info.engine_sha256:
        raise EngineError(f"{engine} is damaged, or not the engine that {sidecar_path(engine).name} describes. {again}")
    return info, data


def check_runs_here(
    info: EngineInfo, engine: str | Path, *, flavour: str, version: str, sm: str, gpu_name: str
) -> None:
    """Raise unless an engine was built for this TensorRT and this GPU.

    Args:
        info: the engine's sidecar.
        engine: its path, for the message.
        flavour, version: of the TensorRT that is installed here.
        sm: compute capability of the GPU, for instance ``sm90``.
        gpu_name: as the driver calls it; see :func:`edgepose.tensorrt_api.gpu_here`.

    Raises:
        EngineError: it runs elsewhere only; with the command that builds it for this machine.
    """
    here = platform_here()
    built_for, found = [], []
    if (info.flavour, info.version) != (flavour, version):
        built_for.append(f"{info.flavour} {info.version}")
        found.append(f"{flavour} {version}")
    if info.platform != here:
        built_for.append(info.platform)
        found.append(here)
    if sm not in info.targets or (info.gpu and info.gpu != gpu_name):
        built_for.append(f"{info.gpu} ({info.targets[0]})" if info.gpu else f"{', '.join(info.targets)}")
        found.append(f"{gpu_name} ({sm})")
    if not built_for:
        return
    # On another flavour or target the old choice would fail again: leave it to what is here.
    options = replace(info.options, targets=() if sm not in info.targets else info.options.targets)
    target = replace(info, flavour=flavour if flavour in FLAVOURS else info.flavour, options=options)
    rtx_elsewhere = target.flavour == "tensorrt-rtx" and sm not in info.targets  # RTX does not know every GPU
    command = target.rebuild_command(Path(engine), any_flavour=rtx_elsewhere)
    raise EngineError(
        f"{engine} was built for {', '.join(built_for)} and does not run on {', '.join(found)}. Engines are not "
        f"portable: build it for this machine with: {command}"
    )


def _by_kind(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Callable[[Any], Any]]]:
    """A sidecar's fields and their readers, of a pose model or of a detector."""
    if "detector" not in data:
        return data, _INFO
    from edgepose.detection_parity import DetectionReport
    from edgepose.detector_spec import DetectorSpec

    fields_of_it = {"spec" if name == "detector" else name: value for name, value in data.items()}
    return fields_of_it, {
        **_INFO,
        "spec": lambda value: DetectorSpec.from_json(json.dumps(value), source="detector"),
        "parity": DetectionReport.from_dict,
    }


# Strict reading ---------------------------------------------------------------------------------

_TEXT, _COUNT, _SWITCH = kind(str), kind(int), kind(bool)
_NUMBER, _COUNT_OR_NONE = kind(int, float), kind(int, type(None))
_TENSOR = {"name": _TEXT, "dtype": one_of("float16", "float32"), "shape": tuple_of(int)}
_OPTIONS = {
    "flavour": one_of(None, *FLAVOURS),
    "targets": tuple_of(str),
    "optimization_level": _COUNT_OR_NONE,
    "aux_streams": _COUNT_OR_NONE,
    "workspace_mib": _COUNT_OR_NONE,
    "force": _SWITCH,
}
_INFO: dict[str, Callable[[Any], Any]] = {
    "spec": lambda data: ModelSpec.from_json(json.dumps(data), source="spec"),
    "input": lambda data: read_dataclass(TensorInfo, data, _TENSOR),
    "output": lambda data: read_dataclass(TensorInfo, data, _TENSOR),
    "profile": tuple_of(int, 3),
    "precision": one_of(*PRECISIONS),
    "flavour": one_of(*FLAVOURS),
    **dict.fromkeys(("version", "platform", "gpu", "onnx", "onnx_sha256", "engine_sha256", "built", "edgepose"), _TEXT),
    "targets": tuple_of(str),
    "spec_given": _SWITCH,
    "engine_bytes": _COUNT,
    "seconds": _NUMBER,
    "parity": ParityReport.from_dict,
    "options": lambda data: read_dataclass(BuildOptions, data, _OPTIONS),
}
