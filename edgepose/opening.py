"""Opening what a predictor is made of: pose models and a detector, their engines, and the pipeline around them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepose.engines import DeviceEngine, Engine, check_device, open_engine
from edgepose.errors import InputError
from edgepose.models import find_model
from edgepose.pipelines import DetectorModel, Pipeline, PoseModel, open_pipeline
from edgepose.spec import ModelSpec, Refinement

if TYPE_CHECKING:
    from edgepose.detector import Detector
    from edgepose.detector_spec import DetectorSpec

__all__ = ["Model", "OpenOptions", "Opened", "Spec", "open_stages"]

Model = str | Path | Engine | DeviceEngine
Spec = ModelSpec | str | Path


@dataclass(frozen=True)
class OpenOptions:
    """How engines and pipeline are opened; each as :class:`edgepose.Predictor` explains it."""

    device: str
    flip_test: bool
    refinement: Refinement | None
    max_batch: int
    threads: int | None
    cuda_graph: bool


@dataclass(frozen=True)
class Opened:
    """What a predictor owns.

    Attributes:
        pipeline: to be closed by the predictor.
        spec: of the model, or the joint one of several.
        detector_spec: None: there is no detector.
        several: each box goes through the model of its category.
    """

    pipeline: Pipeline
    spec: ModelSpec
    detector_spec: DetectorSpec | None
    several: bool


def open_stages(
    model: Model | Mapping[str, str | Path],
    spec: Spec | Mapping[str, Spec] | None,
    detector: str | Path | Detector | None,
    options: OpenOptions,
) -> Opened:
    """Open everything, or nothing: what was opened before an error is closed.

    Raises:
        InputError, ModelError, EngineError, MissingDependencyError: as :class:`edgepose.Predictor`.
    """
    with ExitStack() as opened:
        found_by = None if detector is None else _open_detector(detector, options, opened)
        if isinstance(model, Mapping):
            models, joint = _open_several(model, spec, options, opened)
        else:
            if isinstance(spec, Mapping):
                raise InputError("spec is a mapping, and model is a single one: pass its spec")
            models = [_open_model(model, spec, options, opened)]
            joint = models[0].spec
        pipeline = open_pipeline(
            models,
            categories=joint.categories,
            flip_test=options.flip_test,
            max_batch=options.max_batch,
            cuda_graph=options.cuda_graph,
            detector=found_by,
        )
        opened.pop_all()  # the pipeline closes them from now on
    return Opened(pipeline, joint, found_by and found_by.spec, isinstance(model, Mapping))


def _open_several(
    models: Mapping[str, str | Path],
    specs: Spec | Mapping[str, Spec] | None,
    options: OpenOptions,
    opened: ExitStack,
) -> tuple[list[PoseModel], ModelSpec]:
    """The model of each category, each file once, and their joint spec."""
    from edgepose.joint import joint_spec

    if not models:
        raise InputError("the mapping of categories to models is empty: give at least one model")
    if specs is not None and not isinstance(specs, Mapping):
        raise InputError("model is a mapping of categories, so spec must be one too: {category: spec or its file}")
    specs = specs or {}
    if unknown := sorted(set(specs) - set(models)):
        raise InputError(f"spec has the category {unknown[0]!r}, model has only {', '.join(models)}")
    by_file: dict[tuple[Path, Spec | None], PoseModel] = {}
    by_category: dict[str, PoseModel] = {}
    for category, model in models.items():
        if not isinstance(model, (str, Path)):
            raise InputError(f"the model of {category!r} must be a bundled name or a path, got {type(model).__name__}")
        key = (find_model(model).resolve(), specs.get(category))
        if key not in by_file:
            by_file[key] = _open_model(model, specs.get(category), options, opened)
        by_category[category] = by_file[key]
    return list(by_file.values()), joint_spec({category: model.spec for category, model in by_category.items()})


def _open_model(model: Model, spec: Spec | None, options: OpenOptions, opened: ExitStack) -> PoseModel:
    if isinstance(spec, (str, Path)):
        spec = ModelSpec.from_file(spec)
    if isinstance(model, (str, Path)):
        engine = open_engine(
            find_model(model), spec=spec, device=options.device, max_batch=options.max_batch, threads=options.threads
        )
    else:
        engine = _check_engine(model, spec, options.device)
    opened.callback(engine.close)
    own = engine.spec
    if not isinstance(own, ModelSpec):
        raise InputError(f"model must find landmarks, and {own.name!r} is a detector: pass it as detector=")
    # A spec of its own, even if the caller gave several files the same one: joint_spec tells models by it.
    return PoseModel(engine, replace(own, refinement=options.refinement or own.refinement))


def _open_detector(detector: str | Path | Detector, options: OpenOptions, opened: ExitStack) -> DetectorModel:
    from edgepose.detector import Detector

    if isinstance(detector, (str, Path)):
        detector = Detector(detector, device=options.device, threads=options.threads)
    elif not isinstance(detector, Detector):
        raise InputError(
            f"detector must be a bundled name, a path or a Detector, got {type(detector).__name__}: "
            "Detector('model.onnx', spec='spec.json') opens any"
        )
    model = detector.release()
    opened.callback(model.engine.close)
    return model


def _check_engine(engine: Engine | DeviceEngine, spec: ModelSpec | None, device: str) -> Engine | DeviceEngine:
    """An engine that the caller opened: it brings its spec and its device."""
    if not isinstance(engine, (Engine, DeviceEngine)):
        raise InputError(
            "model must be a bundled name, a path, a mapping of categories to these, or an engine (see "
            f"edgepose.engines), got {type(engine).__name__}"
        )
    if spec is not None and spec != engine.spec:
        raise InputError("an open engine brings its own spec: leave spec out")
    if check_device(device) not in ("auto", engine.device, engine.device.partition(":")[0]):
        raise InputError(f"the engine is open on {engine.device}, device={device!r} was asked for: leave device out")
    return engine
