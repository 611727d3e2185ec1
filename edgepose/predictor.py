"""Predictor: the one entry class. A frame in, landmarks out; its boxes are given or detected."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose import geometry
from edgepose.arguments import check_whole
from edgepose.engines import DeviceEngine
from edgepose.errors import EngineError, InputError
from edgepose.opening import Model, OpenOptions, Spec, open_stages
from edgepose.pending import DetectedPart, GivenPart, PendingResults, StagedFrame
from edgepose.pipelines import Pipeline
from edgepose.result import PoseResult
from edgepose.spec import ModelSpec, Refinement

if TYPE_CHECKING:
    from edgepose.detector import Detector
    from edgepose.detector_spec import DetectorSpec
    from edgepose.smooth import OneEuro
    from edgepose.stream import Stream
    from edgepose.stream_options import Policy, StreamOptions
    from edgepose.track import Tracking

__all__ = ["Predictor"]

_NO_BOXES = (
    "no boxes and no detector: pass boxes, (N, 4) xyxy px; or open Predictor(model, detector=...), for instance "
    "'garment-detector'; or pass whole_image_box(frame) (from edgepose import whole_image_box) if one object fills the "
    "picture"
)
MOST_PENDING = 2  # calls under way: one that runs, and one that waits behind it, so that the device is never idle


class Predictor:
    """Finds the landmarks of each object in a frame.

    A predictor may be shared between threads: calls take turns, because they share one set of buffers. For calls that
    run at the same time, open one predictor for each thread.

    Args:
        model: the name of a bundled model (``edgepose.bundled_models()``), or the path of an ONNX file (runs on the
            CPU) or of an .engine file made by ``edgepose build`` (runs on the GPU); or an open engine of your own, see
            :mod:`edgepose.engines`, which the predictor takes over and closes. Or a mapping of categories to names or
            paths: each box goes through the model of its category, and results have the landmarks of all models
            (``predictor.spec`` is their joint spec).
        spec: what the model expects, or the path of a JSON file that says so; used in place of the spec in the model's
            metadata. None: the model's own. Of several models: a mapping of categories, too.
        detector: finds the boxes where a call brings none: the name of a bundled detector, the path of an ONNX file or
            engine, or a :class:`edgepose.Detector` with settings of its own, which the predictor takes over. It must
            run where the model runs. None: every call brings its boxes.
        device: ``auto``: where the file runs; ``cpu``, ``cuda`` or ``cuda:1`` (a certain GPU) insist.
        flip_test: run each crop mirrored too and average: about twice the network time for some accuracy.
        refinement: another sub-pixel step than the spec's: ``none``, ``shift``, ``dark`` or ``dark_udp``.
        max_batch: the largest number of boxes in one run of the network; more boxes are done in several runs.
        threads: CPU threads of the networks; None: as many as this process may use.
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
        model: Model | Mapping[str, str | Path],
        *,
        spec: Spec | Mapping[str, Spec] | None = None,
        detector: str | Path | Detector | None = None,
        device: str = "auto",
        flip_test: bool = False,
        refinement: Refinement | None = None,
        max_batch: int = 16,
        threads: int | None = None,
        cuda_graph: bool = True,
    ) -> None:
        self._pipeline: Pipeline | None = None
        self._pending: deque[PendingResults] = deque()
        self._lock = threading.RLock()
        options = OpenOptions(
            device=device,
            flip_test=flip_test,
            refinement=refinement,
            max_batch=check_whole("max_batch", max_batch),
            threads=None if threads is None else check_whole("threads", threads),
            cuda_graph=cuda_graph,
        )
        opened = open_stages(model, spec, detector, options)
        self._pipeline, self._several = opened.pipeline, opened.several
        self._spec, self._detector_spec = opened.spec, opened.detector_spec
        self._label_names = () if opened.detector_spec is None else opened.detector_spec.category_names

    @property
    def spec(self) -> ModelSpec:
        """What the model expects and returns; ``refinement`` is the one in use."""
        return self._spec

    @property
    def detector_spec(self) -> DetectorSpec | None:
        """What the detector expects and returns; None: there is none."""
        return self._detector_spec

    @property
    def engine_name(self) -> str:
        """The runtime and where it runs, for instance ``onnxruntime (cpu)``."""
        engine = self._open_pipeline().engine
        return f"{engine.name} ({engine.device})"

    @property
    def overlaps(self) -> bool:
        """Whether :meth:`submit` returns while a device is at work; on the CPU the work is done then."""
        return isinstance(self._open_pipeline().engine, DeviceEngine)

    def predict(
        self,
        frame: Any,
        boxes: ArrayLike | None = None,
        *,
        categories: Sequence[str] | None = None,
        stream: Any = None,
    ) -> PoseResult:
        """Landmarks of each object in a frame.

        Args:
            frame: (H, W, 3) uint8 BGR; (H, W, 4) is read as BGRA, alpha dropped; (H, W) and (H, W, 1) as grey. Any
                strides; never changed. See :mod:`edgepose.frames`. On a GPU also an array in the memory of that GPU,
                taken without a copy: of CuPy, PyTorch, PyCUDA, or anything with ``__cuda_array_interface__`` or
                DLPack.
            boxes: (N, 4) xyxy, frame px, an integer is a pixel's centre; N may be 0. A box may reach over the frame's
                border or lie outside: what is not in the frame is black to the network. Where a padded box touches
                no pixel of the frame at all, the scores are 0 and the keypoints say nothing. None: the detector finds
                them, best first.
            categories: N names, what each box shows. For a model that serves several (``spec.categories``), or several
                models: only the channels of that category are decoded; the other landmarks have score 0, and their
                keypoints say nothing; a category of the detector's that no model serves has none. Where a model serves
                one kind of object only, they are labels that the result keeps. None: all channels; of detected boxes,
                those of the detected category.
            stream: the CUDA stream on which a device frame is being written (of CuPy, PyTorch or PyCUDA, or its address
                as an integer): the GPU waits for it, the host does not. None: the one that the array names.

        Returns:
            The result, in the order of the boxes; its arrays are the caller's. Keypoints are not clipped to the frame.
            The GPU has finished: the frame's memory may be written again.

        Raises:
            InputError: an unusable frame; no boxes (None) and no detector; boxes of another shape, not finite, inverted
                or with no area; another number of categories than of boxes, or one that the model does not have.
            EngineError: the predictor is closed, or the runtime failed.
        """
        with self._lock:
            return self.submit([frame], [boxes], categories=[categories], streams=[stream]).results()[0]

    def predict_batch(
        self,
        frames: Sequence[Any],
        boxes: Sequence[ArrayLike | None] | None = None,
        *,
        categories: Sequence[Sequence[str] | None] | None = None,
        streams: Sequence[Any] | None = None,
    ) -> list[PoseResult]:
        """:meth:`predict` for several frames, of any sizes: their boxes share the runs of the network.

        Args:
            frames: each as in ``predict``.
            boxes, categories, streams: for each frame, as in ``predict``; None: None for each.

        Returns:
            One result for each frame.

        Raises:
            InputError: as in ``predict``, or another number of boxes, categories or streams than of frames. Nothing has
                been done then, for no frame.
            EngineError: the predictor is closed, or the runtime failed.
        """
        return self.submit(frames, boxes, categories=categories, streams=streams).results()

    def submit(
        self,
        frames: Sequence[Any],
        boxes: Sequence[ArrayLike | None] | None = None,
        *,
        categories: Sequence[Sequence[str] | None] | None = None,
        streams: Sequence[Any] | None = None,
    ) -> PendingResults:
        """:meth:`predict_batch` without waiting: ``submit(...).results()`` is the same.

        A GPU works on one call while the host prepares the next one; on the CPU the work is done when this returns.
        Two calls may be under way: a third one waits for the first of them (whose results are kept for its caller).

        Args:
            frames, boxes, categories, streams: as in ``predict_batch``; a frame may also come from :meth:`stage`.
                Frames in host memory may be written again when this returns, those on a device when the results are
                there.

        Raises:
            InputError, EngineError: as in ``predict_batch``.
        """
        start = perf_counter()
        count = len(frames)
        given = _for_each("boxes", boxes, count)
        names = _for_each("categories", categories, count)
        writers = _for_each("streams", streams, count)
        asked = [i for i in range(count) if given[i] is None]
        if asked and self._detector_spec is None:
            raise InputError(_NO_BOXES)
        if any(names[i] is not None for i in asked):
            raise InputError("categories say what given boxes show: leave them out where the detector finds the boxes")
        with self._lock:
            pipeline = self._open_pipeline()
            read = [self._read(pipeline, frame) for frame in frames]
            views, sizes = [item[0] for item in read], [item[1] for item in read]
            checked = {i: geometry.validate_boxes(value) for i, value in enumerate(given) if value is not None}
            self._make_room()
            parts: list[GivenPart | DetectedPart] = []
            if checked:  # before the others, since it checks their categories
                parts.append(self._start_given(pipeline, views, checked, names, writers))
            if asked:
                detected = pipeline.detect_and_start([views[i] for i in asked], streams=[writers[i] for i in asked])
                parts.append(DetectedPart(detected, asked, self._label_names))
            pending = PendingResults(self._lock, parts, self._spec, sizes, start, self._pending.remove)
            self._pending.append(pending)
        return pending

    def stage(self, frame: Any) -> StagedFrame:
        """Begin to bring a frame to the device, beside whatever runs there; :meth:`submit` takes what this returns.

        For loops that know the next frame while the device still works on this one; see ``predictor.stream``.

        Args:
            frame: as in ``predict``. In host memory: it may be written again when this returns if the predictor runs on
                a GPU; on the CPU nothing is copied, so not before the call that uses it. On a device: not before that
                call has finished.

        Raises:
            InputError: an unusable frame.
            EngineError: the predictor is closed, or CUDA failed.
        """
        with self._lock:
            pipeline = self._open_pipeline()
            return StagedFrame(*pipeline.stage(frame), pipeline)

    def stream(
        self,
        source: Any,
        *,
        boxes: Any = None,
        categories: Sequence[str] | None = None,
        tracking: Tracking | bool | None = None,
        smoothing: OneEuro | bool = False,
        policy: Policy | None = None,
        options: StreamOptions | None = None,
    ) -> Stream:
        """The frames of a camera, a file, a URL, or of several of them, each with its result, as they come.

            with predictor.stream("rtsp://camera/1") as stream:
                for frame, result in stream: ...

        All arguments are those of :class:`edgepose.Stream`, which see.
        """
        from edgepose.stream import Stream

        return Stream(
            self,
            source,
            boxes=boxes,
            categories=categories,
            tracking=tracking,
            smoothing=smoothing,
            policy=policy,
            options=options,
        )

    def close(self) -> None:
        """Free the networks; ``predict`` raises EngineError from now on, and so do results that are still pending.

        Closing twice is fine.
        """
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
        detector = f", detector {self._detector_spec.name!r}" if self._detector_spec else ""
        return f"<Predictor {self._spec.name!r}{detector} ({state})>"

    def _open_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise EngineError(f"the predictor of {self._spec.name!r} is closed: open a new Predictor")
        return self._pipeline

    @staticmethod
    def _read(pipeline: Pipeline, frame: Any) -> tuple[Any, tuple[int, int]]:
        """What the pipeline takes, and (w, h)."""
        if not isinstance(frame, StagedFrame):
            return pipeline.read(frame)
        if frame.pipeline is not pipeline:
            raise InputError("the frame was staged by another predictor: stage it with the one that it is submitted to")
        return frame.view, frame.size

    def _make_room(self) -> None:
        """Wait for the oldest call until there is room for one more; its results stay with it."""
        while len(self._pending) >= MOST_PENDING:
            self._pending[0].wait()

    def _start_given(
        self,
        pipeline: Pipeline,
        views: Sequence[Any],
        boxes: Mapping[int, NDArray[np.float32]],
        names: Sequence[Sequence[str] | None],
        streams: Sequence[Any],
    ) -> GivenPart:
        """Start the frames that came with boxes; ``boxes`` by number of the frame, validated."""
        frames = list(boxes)
        rows = np.concatenate(list(boxes.values()))
        owners = np.repeat(np.array(frames, np.int32), [len(item) for item in boxes.values()])
        categories = [tuple(names[frame] or ()) for frame in frames]
        channels = self._channels(boxes, names)
        pending = pipeline.start(views, rows, owners, streams=streams, channels=channels) if len(rows) else None
        return GivenPart(pending, frames, rows, owners, categories)

    def _channels(
        self, boxes: Mapping[int, NDArray[np.float32]], names: Sequence[Sequence[str] | None]
    ) -> NDArray[np.int32] | None:
        """(N, 2) the channels [begin, end) of each box; None: all channels of each."""
        counts = {frame: len(item) for frame, item in boxes.items()}
        for frame, count in counts.items():
            _check_names(names[frame], count)
        if not self._spec.categories or all(names[frame] is None for frame in boxes):
            if self._several and any(counts.values()):
                raise InputError(
                    "this predictor has a model for each category: pass categories, one of "
                    f"{', '.join(self._spec.categories)} for each box"
                )
            return None
        return np.concatenate([self._channels_of(names[frame], count) for frame, count in counts.items()])

    def _channels_of(self, names: Sequence[str] | None, count: int) -> NDArray[np.int32]:
        """(N, 2) for the boxes of one frame; [0, 0) for what only the detector knows."""
        if names is None:
            return np.tile(np.array([[0, self._spec.num_keypoints]], np.int32), (count, 1))
        served = self._spec.categories
        if unknown := [name for name in names if name not in served and name not in self._label_names]:
            raise InputError(
                f"the model {self._spec.name!r} has no category {unknown[0]!r}; it has {', '.join(served)}"
            )
        return np.array([served.get(name, (0, 0)) for name in names], np.int32).reshape(count, 2)


def _check_names(names: Sequence[str] | None, count: int) -> None:
    if isinstance(names, str) or (names is not None and len(names) != count):
        came = f"the text {names!r}" if isinstance(names, str) else f"{len(names)} categories"
        raise InputError(f"categories must be a list of {count} names, one for each box, got {came}")


def _for_each(name: str, values: Sequence[Any] | None, count: int) -> Sequence[Any]:
    """One value for each frame."""
    if values is None:
        return [None] * count
    if isinstance(values, str) or len(values) != count:
        raise InputError(f"{name} must be a list with one entry for each of the {count} frames, got {len(values)}")
    return values
