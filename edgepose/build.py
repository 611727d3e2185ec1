"""From an ONNX model, of landmarks or of boxes, to a TensorRT engine, its sidecar and its parity report.

    built = build_engine("model.onnx")                      # model.engine, .engine.json, .engine.parity.npz
    print(built.info.parity.px_p99)

Three steps: the graph is adapted (:mod:`edgepose.adapt`) and gets its precision (:mod:`edgepose.precision`), its
landmarks are compared with the float32 model's (:mod:`edgepose.parity`; a detector's boxes:
:mod:`edgepose.detection_parity`), and TensorRT builds it. The comparison comes first, because it can refuse, and on a
slow machine TensorRT takes minutes. Nothing is written before all three are done; that the folder can be written to is
seen first.

TF32 is switched off: with it, an engine from a float32 graph rounds to 10 bits of mantissa, as float16 does. Timing
caches are left out: TensorRT-RTX ignores them, and elsewhere a build happens once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from edgepose.adapt import Spec
from edgepose.build_compare import CropSource, Photos, choose_crops, compare_graphs
from edgepose.build_model import choose_profile, choose_spec, in_precision, read_model, refuse_cpu_int8
from edgepose.build_trt import build_network
from edgepose.crops import Crops
from edgepose.detection_parity import DetectionReference
from edgepose.detector_spec import DetectorSpec
from edgepose.enginefile import (
    PRECISIONS,
    BuildOptions,
    EngineInfo,
    Precision,
    cache_path,
    parity_path,
    platform_here,
    sidecar_path,
)
from edgepose.errors import EngineError, InputError
from edgepose.files import check_writable, write_all_atomically
from edgepose.models import ENGINE_SUFFIXES, bundled_detectors, bundled_models, find_detector, find_model
from edgepose.parity import Reference
from edgepose.spec import ModelSpec
from edgepose.tensorrt_api import Api, Gpu, gpu_here, load

__all__ = ["BuildOptions", "BuiltEngine", "build_engine"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class BuiltEngine:
    """What a build wrote.

    Attributes:
        path: the engine; the sidecar and the parity file lie beside it.
        info: the sidecar.
        warnings: what TensorRT warned of.
    """

    path: Path
    info: EngineInfo
    warnings: tuple[str, ...]


def build_engine(
    model: str | Path,
    output: str | Path | None = None,
    *,
    precision: Precision = "fp16",
    profile: tuple[int, int, int] | None = None,
    spec: Spec | str | Path | None = None,
    crops: Crops | CropSource | Photos | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Build a TensorRT engine, and say how far its landmarks, or its boxes, are from the float32 model's.

    Ctrl-C ends a build at TensorRT's next step, and so does an exception raised by ``progress``.

    Args:
        model: a bundled name, of a pose model or of a detector, or the path of an ONNX file.
        output: an .engine file, or a folder that exists. None: beside the model; a bundled model's engine goes to the
            current folder.
        precision: ``fp16`` or ``fp32``: of the whole network, input and output included; a detector's rows are always
            float32.
        profile: smallest, best and largest batch. None: 1, 4 and 16; a model with a fixed batch gives its own.
        spec: used in place of the one in the model's metadata, a ModelSpec or a DetectorSpec, or the path of a JSON
            file of either; None: the model's own. The sidecar holds its canonical form, see :mod:`edgepose.adapt`.
        crops: the pictures to compare on, stored in the .parity.npz beside the engine: photos by path (a folder, a
            file, or several files; whole pictures, the first 100), :class:`Crops`, or a function of the spec that gives
            some. None: drawn shapes, see :mod:`edgepose.crops`, since those need no renderer; `edgepose build` renders
            garments. Photos of the model's own domain say more than either.
        options: TensorRT flavour, targets, optimisation level, and so on.
        progress: called as progress(what is being done, how far 0 to 1).

    Raises:
        InputError: an argument is not usable.
        ModelError: there is no such model, it is not usable, it has no spec or contradicts it, TensorRT cannot parse
            it, or it does not fit into float16.
        EngineError: the engine's landmarks would be too far from the float32 model's (unless ``options.force``);
            TensorRT is too old, needs a GPU here, or failed; the files cannot be written.
        MissingDependencyError: TensorRT is not installed.
    """
    options = BuildOptions() if options is None else options
    _check_arguments(model, output, precision, spec, options)
    profile = None if profile is None else _check_profile(profile)
    report_to = progress or (lambda stage, fraction: None)
    path = _find(model)
    target = _output_path(path, output)
    try:
        check_writable(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    api = load(options.flavour)
    gpu = gpu_here()
    targets = _targets(api, gpu, options)

    report_to("reading the model", 0.0)
    source, sha256 = read_model(path)
    refuse_cpu_int8(source, path)
    chosen = choose_spec(source, spec, path)
    report_to(f"converting to {precision}", 0.0)
    exact, canonical = in_precision(source, chosen, "fp32", str(path))
    graph = in_precision(source, chosen, precision, str(path))[0] if precision == "fp16" else exact
    batches = choose_profile(graph, profile, str(path))

    pictures = choose_crops(crops, canonical)
    reference, report = compare_graphs(exact, graph, pictures, canonical, (precision, batches), report_to)
    if (problems := report.problems()) and not options.force:
        instead = "build with precision fp32 (--precision fp32), " if precision == "fp16" and report.compared else ""
        raise EngineError(
            f"{path.name} in {precision} differs too much from the float32 model on {report.crops} {report.source}: "
            f"{'; '.join(problems)}. Nothing was built: {instead}compare on photos of the model's own domain "
            "(--photos), or build all the same (--force)"
        )

    start = time.perf_counter()
    network = build_network(api, graph, canonical, batches, targets, options, report_to)
    seconds = time.perf_counter() - start
    info = EngineInfo(
        spec=canonical,
        input=network.input,
        output=network.output,
        profile=batches,
        precision=precision,
        flavour=api.name,
        version=api.version,
        platform=platform_here(),
        targets=targets,
        gpu="" if api.is_rtx or gpu is None else gpu.name,
        onnx=path.stem if _is_bundled(path) else path.name,
        onnx_sha256=sha256,
        spec_given=spec is not None,
        engine_bytes=len(network.engine),
        engine_sha256=hashlib.sha256(network.engine).hexdigest(),
        options=options,
        parity=replace(report, convolutions=network.convolutions),
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 2),
        edgepose=version("edgepose"),
    )
    _write(target, network.engine, reference, info)
    return BuiltEngine(target, info, network.warnings)


# Where and what for -----------------------------------------------------------------------------------


def _check_arguments(model: object, output: object, precision: object, spec: object, options: object) -> None:
    for name, value, kinds in (
        ("model", model, (str, Path)),
        ("output", output, (str, Path, type(None))),
        ("spec", spec, (ModelSpec, DetectorSpec, str, Path, type(None))),
        ("options", options, (BuildOptions,)),
    ):
        if not isinstance(value, kinds):
            expected = ", ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise InputError(f"{name} must be one of {expected}, got {value!r}")
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if Path(str(model)).suffix.lower() in ENGINE_SUFFIXES:
        raise InputError(f"{model} is an engine: pass the ONNX file that it is built from")


def _check_profile(profile: Sequence[int]) -> tuple[int, int, int]:
    chosen = tuple(profile) if isinstance(profile, (list, tuple)) else ()
    if (
        len(chosen) != 3
        or any(type(size) is not int for size in chosen)
        or not 1 <= chosen[0] <= chosen[1] <= chosen[2]
    ):
        raise InputError(f"profile must be three batch sizes, 1 <= min <= opt <= max, got {profile!r}")
    return chosen


def _find(model: str | Path) -> Path:
    """The file of a model; a name is looked for among pose models and detectors."""
    return find_detector(model) if str(model) in bundled_detectors() else find_model(model)


def _is_bundled(model: Path) -> bool:
    bundled = (*bundled_models().values(), *bundled_detectors().values())
    return model.resolve() in {path.resolve() for path in bundled}


def _output_path(model: Path, output: str | Path | None) -> Path:
    if output is None:
        return Path.cwd() / f"{model.stem}.engine" if _is_bundled(model) else model.with_suffix(".engine")
    path = Path(output)
    if path.is_dir():
        return path / f"{model.stem}.engine"
    if path.suffix.lower() not in ENGINE_SUFFIXES:
        raise InputError(f"the output must be an .engine file or a folder that exists, got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {str(path.parent)!r} does not exist: create it first")
    return path


def _cannot_write(target: Path, error: OSError) -> EngineError:
    return EngineError(
        f"{target} and the files beside it cannot be written ({error.strerror or error}): make room or allow it, or "
        "name another place (output=, or -o on the command line)"
    )


def _write(target: Path, engine: bytes, reference: Reference | DetectionReference, info: EngineInfo) -> None:
    """The three files, all of them or none.

    The sidecar's new name comes last: until it is there, an old one does not match the new engine, and says so.
    """
    try:
        write_all_atomically(
            {
                target: engine,
                parity_path(target): reference.to_bytes(),
                sidecar_path(target): info.to_json().encode(),
            }
        )
        cache_path(target).unlink(missing_ok=True)  # kernels of the engine that was replaced
    except OSError as error:
        raise _cannot_write(target, error) from error


def _targets(api: Api, gpu: Gpu | None, options: BuildOptions) -> tuple[str, ...]:
    """The compute capabilities to build for."""
    if not api.is_rtx:
        if options.targets:
            raise InputError(
                f"targets are for tensorrt-rtx: {api.name} {api.version} builds for the GPU that it runs on"
            )
        if gpu is None:
            raise EngineError(
                f"{api.name} builds an engine on the GPU that will run it, and there is no usable GPU here. Build on "
                "that machine; or, for GPUs that TensorRT-RTX knows, install edgepose[rtx-cu13] and use --flavour "
                "tensorrt-rtx"
            )
        return (gpu.sm,)
    known = api.compute_capabilities
    if options.targets:
        asked = tuple(dict.fromkeys(target.lower() for target in options.targets))
        if unknown := sorted(set(asked) - set(known)):
            raise InputError(
                f"{api.name} {api.version} builds for {', '.join(known)}, not for {', '.join(unknown)}; other "
                "GPUs need full TensorRT (pip install 'edgepose[tensorrt-cu13]')"
            )
        return asked
    if gpu is not None and gpu.sm not in known:
        raise EngineError(
            f"{api.name} {api.version} does not run on {gpu.name} ({gpu.sm}), only on {', '.join(known)}: install full "
            "TensorRT (pip install 'edgepose[tensorrt-cu13]'), or name the targets to build for"
        )
    return tuple(name for name in known if int(name[2:]) >= 80 or (gpu is not None and gpu.sm == name))
