"""Predictor: the one entry class. A frame and its boxes in, landmarks out."""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose import geometry
from edgepose.engines import DeviceEngine, Engine, check_device, open_engine
from edgepose.errors import EngineError, InputError
from edgepose.models import find_model
from edgepose.pipelines import Pipeline, open_pipeline
from edgepose.result import PoseResult
from edgepose.spec import ModelSpec, Refinement

__all__ = ["Predictor"]


class Predictor:
    """Finds the landmarks of each box in a frame.

    A predictor may be shared between threads: calls of ``predict`` take turns, because they share one set of buffers.
    For calls that run at the same time, open one predictor for each thread.

    Args:
        model: the name of a bundled model (``edgepose.bundled_models()``), or the path of an ONNX file (runs on the
            CPU) or of an .engine file made by ``edgepose build`` (runs on the GPU); or an open engine of your own, see
            :mod:`edgepose.engines`, which the predictor takes over and closes.
        spec: what the model expects, or the path of a JSON file that says so; used in place of the spec in the model's
            metadata. None: the model's own.
        device: ``auto``: where the file runs; ``cpu``, ``cuda`` or ``cuda:1`` (a certain GPU) insist.
        flip_test: run each crop mirrored too and average: about twice the network time for some accuracy.
        refinement: another sub-pixel step than the spec's: ``none``, ``shift``, ``dark`` or ``dark_udp``.
        max_batch: the largest number of boxes in one run of the network; more boxes are done in several runs.
        threads: CPU threads of the network; None: as many as this process may use.
        cuda_graph: on a GPU, replay one CUDA graph for each batch size. Without: slower, but ``Timings`` tells the
            stages apart.

    Raises:
        InputError: an option is not usable.
        ModelError: there is no such model, it does not load, it has no spec, or it contradicts its spec.
        EngineError: the file does not run on the device, or not on this machine; the message says how to mend it.
        MissingDependencyError: the engine's runtime is not installed.
    """

    def __init__(
        self,
        model: str | Path | Engine | DeviceEngine,
        *,
        spec: ModelSpec | str | Path | None = None,
        device: str = "auto",
        flip_test: bool = False,
        refinement: Refinement | None = None,
        max_batch: int = 16,
        threads: int | None = None,
        cuda_graph: bool = True,
    ) -> None:
        max_batch = _positive("max_batch", max_batch)
        threads = None if threads is None else _positive("threads", threads)
        if spec is not None and not isinstance(spec, ModelSpec):
            spec = ModelSpec.from_file(spec)
        self._pipeline: Pipeline | None = None
        if isinstance(model, (str, Path)):
            path = find_model(model)
            engine = open_engine(path, spec=spec, device=device, max_batch=max_batch, threads=threads)
        else:
            engine = _check_engine(model, spec, device)
        try:
            own = engine.spec
            self._spec = replace(own, refinement=refinement) if refinement is not None else own
            self._pipeline = open_pipeline(
                engine, self._spec, flip_test=flip_test, max_batch=max_batch, cuda_graph=cuda_graph
            )
        except BaseException:
            engine.close()
            raise
        self._lock = threading.Lock()

    @property
    def spec(self) -> ModelSpec:
        """What the model expects and returns; ``refinement`` is the one in use."""
        return self._spec

    @property
    def engine_name(self) -> str:
        """The runtime and where it runs, for instance ``onnxruntime (cpu)``."""
        engine = self._open_pipeline().engine
        return f"{engine.name} ({engine.device})"

    def predict(
        self,
        frame: Any,
        boxes: ArrayLike | None = None,
        *,
        categories: Sequence[str] | None = None,
        stream: Any = None,
    ) -> PoseResult:
        """Landmarks of each box.

        Args:
            frame: (H, W, 3) uint8 BGR; (H, W, 4) is read as BGRA, alpha dropped; (H, W) and (H, W, 1) as grey. Any
                strides; never changed. See :mod:`edgepose.frames`. On a GPU also an array in the memory of that GPU,
                taken without a copy: of CuPy, PyTorch, PyCUDA, or anything with ``__cuda_array_interface__`` or
                DLPack.
            boxes: (N, 4) xyxy, frame px, an integer is a pixel's centre; N may be 0. A box may reach over the frame's
                border or lie outside: what is not in the frame is black to the network. Where a padded box touches
                no pixel of the frame at all, the scores are 0 and the keypoints say nothing.
            categories: N names of ``spec.categories``, what each box shows, for a model that serves several: only the
                channels of that category are decoded; the other landmarks have score 0, and their keypoints say
                nothing. None: all channels.
            stream: the CUDA stream on which a device frame is being written (of CuPy, PyTorch or PyCUDA, or its address
                as an integer): the GPU waits for it, the host does not. None: the one that the array names.

        Returns:
            The result, in the order of the boxes; its arrays are the caller's. Keypoints are not clipped to the frame.
            The GPU has finished: the frame's memory may be written again.

        Raises:
            InputError: an unusable frame; no boxes (None); boxes of another shape, not finite, inverted or with no
                area; another number of categories than of boxes, or one that the model does not have.
            EngineError: the predictor is closed, or the runtime failed.
        """
        start = perf_counter()
        with self._lock:
            pipeline = self._open_pipeline()
            image, size = pipeline.read(frame)
            if boxes is None:
                raise InputError(
                    "no boxes and no detector: pass boxes, (N, 4) xyxy px, or whole_image_box(frame) "
                    "(from edgepose import whole_image_box) if one garment fills the picture"
                )
            checked = geometry.validate_boxes(boxes)
            channels = None if categories is None else _channels(self._spec, categories, len(checked))
            if len(checked) == 0:
                return PoseResult.empty(self._spec, size)
            keypoints, scores, timings = pipeline.run(image, checked, stream, channels)
        timings = replace(timings, total=(perf_counter() - start) * 1e3)
        return PoseResult(keypoints, scores, checked, self._spec, size, timings, tuple(categories or ()))

    def close(self) -> None:
        """Free the network; ``predict`` raises EngineError from now on. Closing twice is fine."""
        with self._lock:
            pipeline, self._pipeline = self._pipeline, None
            if pipeline is not None:
                pipeline.close()

    def __enter__(self) -> Predictor:
        self._open_pipeline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self._pipeline.engine.name}, {self._pipeline.engine.device}" if self._pipeline else "closed"
        return f"<Predictor {self._spec.name!r} ({state})>"

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise EngineError(f"the predictor of {self._spec.name!r} is closed: open a new Predictor")
        return self._pipeline


def _positive(name: str, value: Any) -> int:
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")
    return number


def _channels(spec: ModelSpec, categories: Sequence[str], count: int) -> NDArray[np.int32]:
    """(N, 2) the channels [begin, end) of each box."""
    known = ", ".join(spec.categories) or f"none: all its boxes are alike, {spec.category or 'of one kind'}"
    if isinstance(categories, str) or len(categories) != count:
        came = f"the text {categories!r}" if isinstance(categories, str) else f"{len(categories)} categories"
        raise InputError(f"categories must be a list of {count} names, one for each box, got {came}")
    if unknown := [name for name in categories if name not in spec.categories]:
        raise InputError(f"the model {spec.name!r} has no category {unknown[0]!r}; it has {known}")
    return np.array([spec.categories[name] for name in categories], np.int32).reshape(count, 2)


def _check_engine(engine: Engine | DeviceEngine, spec: ModelSpec | None, device: str) -> Engine | DeviceEngine:
    """An engine that the caller opened: it brings its spec and its device."""
    if not isinstance(engine, (Engine, DeviceEngine)):
        raise InputError(
            f"model must be a bundled name, a path, or an engine (see edgepose.engines), got {type(engine).__name__}"
        )
    if spec is not None and spec != engine.spec:
        raise InputError("an open engine brings its own spec: leave spec out")
    if check_device(device) not in ("auto", engine.device, engine.device.partition(":")[0]):
        raise InputError(f"the engine is open on {engine.device}, device={device!r} was asked for: leave device out")
    return engine
