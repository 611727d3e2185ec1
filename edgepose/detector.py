"""Detector: a frame in, boxes out. Any common detector runs, see :mod:`edgepose.detector_spec`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any

from edgepose.arguments import check_number, check_whole
from edgepose.detections import Detections
from edgepose.detector_spec import DetectorSpec
from edgepose.engines import DeviceEngine, Engine, check_device, open_engine
from edgepose.engines.kinds import check_kind
from edgepose.errors import EngineError, InputError
from edgepose.kernels._detections import MAX_CANDIDATES
from edgepose.models import find_detector
from edgepose.pipelines import DetectionPipeline, DetectorModel, open_detection
from edgepose.pipelines.detection import DetectionSettings

__all__ = ["Detections", "Detector"]

MAX_BATCH = 8  # frames in one run of the network; more are done in several


class Detector:
    """Finds objects in frames.

        with Detector("person.onnx", spec="person.json") as detector:
            detections = detector.detect(frame)   # frame: (H, W, 3) uint8 BGR
        detections.boxes                          # (N, 4) float32, xyxy, frame px

    A detector may be shared between threads: calls take turns, because they share one set of buffers.

    Args:
        model: the name of a bundled detector (``edgepose.models.bundled_detectors()``), or the path of an ONNX file
            (runs on the CPU) or of an .engine file made by ``edgepose build`` (runs on the GPU); or an open engine of
            your own, see :mod:`edgepose.engines`, which the detector takes over and closes.
        spec: how the model is fed and read, or the path of a JSON file that says so; used in place of the spec in the
            model's metadata. None: the model's own.
        device: ``auto``: where the file runs; ``cpu``, ``cuda`` or ``cuda:1`` (a certain GPU) insist.
        min_score: detections below it are dropped, 0 to 1; None: as the spec says.
        nms_iou: of two boxes of one category that overlap more, the better stays; above 0, and 1 keeps all. None: as
            the spec says.
        class_agnostic: whether the boxes of different categories suppress each other too; None: as the spec says.
        categories: names of ``spec.category_names`` to find; None: all.
        max_boxes: the most detections of a frame, at most 1024; None: as the spec says.
        threads: CPU threads of the network; None: as many as this process may use.

    Raises:
        InputError: an option is not usable, or a category is not known.
        ModelError: there is no such model, it does not load, it has no spec, or it contradicts its spec.
        EngineError: the file does not run on the device, or not on this machine; the message says how to mend it.
        MissingDependencyError: the engine's runtime is not installed.
    """

    def __init__(
        self,
        model: str | Path | Engine | DeviceEngine,
        *,
        spec: DetectorSpec | str | Path | None = None,
        device: str = "auto",
        min_score: float | None = None,
        nms_iou: float | None = None,
        class_agnostic: bool | None = None,
        categories: Sequence[str] | None = None,
        max_boxes: int | None = None,
        threads: int | None = None,
    ) -> None:
        max_boxes = None if max_boxes is None else check_whole("max_boxes", max_boxes, most=MAX_CANDIDATES)
        min_score = None if min_score is None else check_number("min_score", min_score, most=1)
        nms_iou = None if nms_iou is None else check_number("nms_iou", nms_iou, most=1, above=True)
        if class_agnostic is not None and not isinstance(class_agnostic, bool):
            raise InputError(f"class_agnostic must be True, False or None, got {class_agnostic!r}")
        if spec is not None and not isinstance(spec, DetectorSpec):
            spec = DetectorSpec.from_file(spec)
        engine = _open(model, spec, device, None if threads is None else check_whole("threads", threads))
        try:
            check_kind(engine.spec, "detector", repr(engine.spec.name))
            own = engine.spec
            assert isinstance(own, DetectorSpec)  # what check_kind has seen to
            settings = DetectionSettings(
                min_score=own.min_score if min_score is None else min_score,
                nms_iou=own.nms_iou if nms_iou is None else nms_iou,
                max_detections=own.max_detections if max_boxes is None else max_boxes,
                keep=_keep(own, categories),
                class_agnostic=own.class_agnostic if class_agnostic is None else class_agnostic,
            )
            if settings.class_agnostic and settings.nms_iou is None:
                raise InputError(
                    f"class_agnostic says how boxes suppress each other, and the detector {own.name!r} leaves them as "
                    "they come: give nms_iou as well"
                )
        except BaseException:
            engine.close()
            raise
        self._spec = own
        self._model: DetectorModel | None = DetectorModel(engine, own, settings)
        self._pipeline: DetectionPipeline | None = None
        self._lock = threading.Lock()

    @property
    def spec(self) -> DetectorSpec:
        """Of the network as it runs: its outputs are rows, see :meth:`DetectorSpec.canonical`."""
        return self._spec

    @property
    def settings(self) -> DetectionSettings:
        """Which detections count."""
        return self._open_model().settings

    @property
    def engine_name(self) -> str:
        """The runtime and where it runs, for instance ``onnxruntime (cpu)``."""
        engine = self._open_model().engine
        return f"{engine.name} ({engine.device})"

    def detect(self, frame: Any, *, stream: Any = None) -> Detections:
        """The objects in a frame.

        Args:
            frame: (H, W, 3) uint8 BGR, or another form that ``Predictor.predict`` takes; on a GPU also an array in the
                memory of that GPU. Never changed.
            stream: the CUDA stream on which a device frame is being written; None: the one that the array names.

        Raises:
            InputError: an unusable frame.
            EngineError: the detector is closed, or the runtime failed.
        """
        return self.detect_batch([frame], streams=None if stream is None else [stream])[0]

    def detect_batch(self, frames: Sequence[Any], *, streams: Sequence[Any] | None = None) -> list[Detections]:
        """The objects of each of several frames, which may differ in size; in as few runs of the network as possible.

        Args:
            frames: each as :meth:`detect` takes it.
            streams: one for each frame, as in :meth:`detect`, or None.

        Raises:
            InputError: an unusable frame, or another number of streams than of frames.
            EngineError: the detector is closed, or the runtime failed.
        """
        if streams is not None and len(streams) != len(frames):
            raise InputError(f"streams must hold one for each of {len(frames)} frames, got {len(streams)}")
        with self._lock:
            pipeline = self._open_pipeline()
            views = [pipeline.read(frame) for frame in frames]
            if not views:
                return []
            found = pipeline.detect([view for view, _ in views], streams=streams)
        return [Detections(*arrays, self._spec, size) for arrays, (_, size) in zip(found, views, strict=True)]

    def release(self) -> DetectorModel:
        """Give the network away, to a pipeline of both stages: this detector is closed from now on.

        Raises:
            EngineError: the detector is closed, or has detected something: its buffers are bound to it then.
        """
        with self._lock:
            model = self._open_model()
            if self._pipeline is not None:
                raise EngineError(
                    f"the detector {self._spec.name!r} is in use already: open another one for the Predictor"
                )
            self._model = None
            return model

    def close(self) -> None:
        """Free the network; ``detect`` raises EngineError from now on. Closing twice is fine."""
        with self._lock:
            model, self._model = self._model, None
            pipeline, self._pipeline = self._pipeline, None
            if pipeline is not None:
                pipeline.close()
            elif model is not None:
                model.engine.close()

    def __enter__(self) -> Detector:
        self._open_model()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self._model.engine.name}, {self._model.engine.device}" if self._model else "closed"
        return f"<Detector {self._spec.name!r} ({state})>"

    def _open_model(self) -> DetectorModel:
        if self._model is None:
            raise EngineError(f"the detector {self._spec.name!r} is closed: open a new Detector")
        return self._model

    def _open_pipeline(self) -> DetectionPipeline:
        """Its buffers are allocated at the first detection: a detector that a Predictor takes over needs none."""
        model = self._open_model()
        if self._pipeline is None:
            self._pipeline = open_detection(model, max_batch=MAX_BATCH)
        return self._pipeline


def _open(
    model: str | Path | Engine | DeviceEngine, spec: DetectorSpec | None, device: str, threads: int | None
) -> Engine | DeviceEngine:
    if isinstance(model, (str, Path)):
        path = find_detector(model)
        return open_engine(path, spec=spec, device=device, max_batch=MAX_BATCH, threads=threads, kind="detector")
    if not isinstance(model, (Engine, DeviceEngine)):
        raise InputError(
            f"model must be a bundled name, a path, or an engine (see edgepose.engines), got {type(model).__name__}"
        )
    if spec is not None and spec != model.spec:
        raise InputError("an open engine brings its own spec: leave spec out")
    if check_device(device) not in ("auto", model.device, model.device.partition(":")[0]):
        raise InputError(f"the engine is open on {model.device}, device={device!r} was asked for: leave device out")
    return model


def _keep(spec: DetectorSpec, categories: Sequence[str] | None) -> tuple[bool, ...]:
    """For each label whether it is wanted. Labels beyond these, and those without a name, never are."""
    if categories is None:
        return tuple(bool(name) for name in spec.category_names)
    if isinstance(categories, str) or not categories:
        raise InputError(f"categories must be a list of names, at least one, got {categories!r}")
    known = [name for name in spec.category_names if name]
    for name in categories:
        if name not in known:
            close = get_close_matches(str(name), known, n=3, cutoff=0.5)
            guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise InputError(f"the detector {spec.name!r} has no category {name!r}.{guess} It has {', '.join(known)}")
    return tuple(name in categories for name in spec.category_names)
