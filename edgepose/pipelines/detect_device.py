"""The first stage on a GPU: frames -> boxes, and the records of the pose models' crops, without the host.

One CUDA graph for each number of frames: letterbox, network, select_detections, and plan_crops for each pose model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose.engines import DeviceEngine
from edgepose.errors import EngineError
from edgepose.kernels._call import FRAME, HEADER, detections_size, detections_views
from edgepose.kernels._plan import CropGeometry
from edgepose.kernels.cuda import prepare_letterbox, prepare_plan_crops, prepare_select_detections
from edgepose.pipelines.buckets import covering_runs
from edgepose.pipelines.detection import Found, check_scores, kept_labels
from edgepose.pipelines.device_frames import FrameView, read_frame
from edgepose.pipelines.protocol import DetectorModel
from edgepose.pipelines.session import Session, cuda_errors
from edgepose.pipelines.uploads import FrameUploads

if TYPE_CHECKING:
    from edgepose.pipelines.pose_device import DevicePose

__all__ = ["MOST_FRAMES", "DetectedChunk", "DeviceDetection", "DeviceDetectionPipeline"]

MOST_FRAMES = 8  # in one run; more are done in several
_FIRST = HEADER.fields["first"][1]  # type: ignore[index]  # bytes into the record


class DetectedChunk:
    """What one run of the detector needs of its own while it is under way, in pinned memory.

    Attributes:
        count: frames of the run.
        frames: how many the graph is for; ``found`` is laid out for so many.
        marks: two events around it where no graph hides it; else None.
    """

    def __init__(self, most_frames: int, most: int, session: Session) -> None:
        self.table = session.pinned(most_frames * FRAME.itemsize).view(FRAME)
        self.found = session.pinned(detections_size(most_frames, most))
        self.table_address, self.found_address = self.table.ctypes.data, self.found.ctypes.data
        self.marks = None if session.use_graphs else [session.event(timing=True) for _ in range(2)]
        self.count = self.frames = 0


@dataclass
class _Bucket:
    """One number of frames.

    Attributes:
        letterbox, select: kernels around the network; they go to CuPy's current stream.
        network: runs of the engine; to the stream given.
        plans: plan_crops of each pose model.
        graph: all of it; None: launched one by one.
    """

    letterbox: Callable[[], None]
    network: list[Callable[[int], None]]
    select: Callable[[], None]
    plans: list[Callable[[], None]]
    graph: Any = None

    def launch_all(self, stream: Any, marks: list[Any] | None = None) -> None:
        """Every kernel, one by one; ``marks`` are recorded around them."""
        with stream:
            if marks:
                marks[0].record()
            self.letterbox()
            for run in self.network:
                run(stream.ptr)
            self.select()
            for plan in self.plans:
                plan()
            if marks:
                marks[1].record()


class DeviceDetection:
    """A detector on a GPU. All buffers are allocated here, and used in the order of the session's stream.

    Args:
        session: the pipeline's.
        detector: its engine takes device buffers.
        stages: the pose models, whose records it writes; none for detection alone.
        labels: (C, 3) int32, of :meth:`edgepose.pipelines.models.ModelTable.label_table`.

    Attributes:
        capacity: the largest number of frames in one run.
    """

    def __init__(
        self,
        session: Session,
        detector: DetectorModel,
        stages: Sequence[DevicePose] = (),
        labels: NDArray[np.int32] | None = None,
        *,
        max_frames: int = MOST_FRAMES,
    ) -> None:
        assert isinstance(detector.engine, DeviceEngine)
        self.engine: DeviceEngine = detector.engine
        self._session, self._spec, self._settings = session, detector.spec, detector.settings
        self._stages = stages
        if self.engine.output_dtype != np.float32:
            raise EngineError(
                f"the detector {detector.spec.name!r} returns rows of {self.engine.output_dtype}, which cannot hold "
                "coordinates: build it with edgepose build, whose rows are float32"
            )
        self.sizes = sorted({size for size in (1, 2, 4, 8) if size < max_frames} | {min(max_frames, MOST_FRAMES)})
        self.capacity = self.sizes[-1]
        most = detector.settings.max_detections
        runs = [run for size in self.sizes for run in self._runs(size)]
        images, (w, h) = max(run.stop for run in runs), detector.spec.input_size
        self._images = session.zeros((images, 3, h, w), self.engine.input_dtype)
        self._rows = session.zeros((images, *self.engine.output_shape), np.float32)
        self._table = session.zeros(self.capacity * FRAME.itemsize, np.uint8)
        self._found = session.zeros(detections_size(self.capacity, most), np.uint8)
        self._keep = session.upload(kept_labels(detector.spec, detector.settings).astype(np.uint8))
        self._labels = None if labels is None else session.upload(labels)
        self._firsts = self._plan_starts(stages, self.capacity * most)
        self._bound: dict[tuple[int, int], Callable[[int], None]] = {}
        self._buckets = {size: self._prepare(size) for size in self.sizes}
        self.engine.warmed_up()

    def new_chunk(self) -> DetectedChunk:
        """Pinned memory for one more run under way."""
        return DetectedChunk(self.capacity, self._settings.max_detections, self._session)

    def launch(self, chunk: DetectedChunk, table: NDArray[np.void]) -> None:
        """Table of the frames (n,) FRAME up, run, detections down; n is at most ``capacity``, and nothing here waits.

        Behind it the record of each pose model holds the first of its crops, as many as it has room for.
        """
        chunk.count = len(table)
        chunk.frames = size = next(size for size in self.sizes if size >= len(table))
        chunk.table[: len(table)] = table
        chunk.table[len(table) : size] = np.zeros((), FRAME)  # without width: no frame
        self._session.copy_up(self._table.data.ptr, chunk.table_address, size * FRAME.itemsize)
        bucket = self._buckets[size]
        if bucket.graph is not None:
            bucket.graph.launch(self._session.stream)
        else:
            bucket.launch_all(self._session.stream, chunk.marks)
        bytes_down = detections_size(size, self._settings.max_detections)
        self._session.copy_down(chunk.found_address, self._found.data.ptr, bytes_down)

    def plan_further(self, chunk: DetectedChunk, model: int, first: int) -> None:
        """The record of a pose model from its crop ``first`` on, a multiple of its room; then :meth:`rewind`.

        What ``launch`` has found must still be on the device.
        """
        self._set_first(model, first // self._stages[model].capacity)
        with self._session.stream:
            self._buckets[chunk.frames].plans[model]()

    def rewind(self, model: int) -> None:
        """The next record of a pose model begins with its first crop."""
        self._set_first(model, 0)

    def _set_first(self, model: int, step: int) -> None:
        address = self._stages[model].record.data.ptr + _FIRST
        self._session.copy_up(address, self._firsts[model][step:].ctypes.data, 4)

    def _plan_starts(self, stages: Sequence[DevicePose], most: int) -> list[NDArray[np.int32]]:
        """For each pose model 0, its room, twice its room, ...: in pinned memory, which is never written again."""
        starts = []
        for stage in stages:
            values = self._session.pinned(4 * (-(-most // stage.capacity) + 1)).view(np.int32)
            values[:] = np.arange(len(values)) * stage.capacity
            starts.append(values)
        return starts

    def found(self, chunk: DetectedChunk) -> list[Found]:
        """The detections of each frame, copied; the GPU has finished."""
        counts, detections = detections_views(chunk.found, chunk.frames, self._settings.max_detections)
        found = [
            (own["box"].copy(), own["score"].copy(), own["label"].copy())
            for own in (detections[frame, : counts[frame]] for frame in range(chunk.count))
        ]
        check_scores(found, self._spec)
        return found

    def _runs(self, frames: int) -> list[slice]:
        return covering_runs(frames, self.engine.min_batch, self.engine.max_batch)

    def _bind(self, run: slice) -> Callable[[int], None]:
        """A run of the engine on these images; the numbers of frames share them where they can."""
        key = (run.start, run.stop)
        if key not in self._bound:
            self._bound[key] = self.engine.bind(self._images[run], self._rows[run])
        return self._bound[key]

    def _prepare(self, frames: int) -> _Bucket:
        """Kernels, network and graph for one number of frames."""
        spec, settings = self._spec, self._settings
        table = self._table[: frames * FRAME.itemsize]
        found = self._found[: detections_size(frames, settings.max_detections)]
        with self._session.stream:
            bucket = _Bucket(
                prepare_letterbox(
                    table,
                    self._images[:frames],
                    resize=spec.resize,
                    pad=spec.pad,
                    sampling=spec.sampling,
                    mean=spec.mean,
                    std=spec.std,
                ),
                [self._bind(run) for run in self._runs(frames)],
                prepare_select_detections(
                    self._rows[:frames],
                    table,
                    found,
                    input_size=spec.input_size,
                    resize=spec.resize,
                    min_score=settings.min_score,
                    nms_iou=settings.nms_iou,
                    class_agnostic=settings.class_agnostic,
                    keep=self._keep,
                ),
                [self._plan(model, table, found) for model in range(len(self._stages))],
            )
        bucket.graph = self._session.prepare(lambda: bucket.launch_all(self._session.stream), self.engine.name)
        return bucket

    def _plan(self, model: int, table: Any, found: Any) -> Callable[[], None]:
        stage = self._stages[model]
        spec = stage.spec
        geometry = CropGeometry(spec.input_size, spec.heatmap_size, spec.codec, spec.padding, spec.sampling)
        return prepare_plan_crops(
            found, table, self._labels, stage.record, crops=stage.capacity, model=model, geometry=geometry
        )


class DeviceDetectionPipeline:
    """The first stage alone; see :class:`edgepose.pipelines.DetectionPipeline`."""

    def __init__(self, detector: DetectorModel, *, max_batch: int, cuda_graph: bool) -> None:
        assert isinstance(detector.engine, DeviceEngine)
        self._engine: DeviceEngine = detector.engine
        self._name = repr(detector.spec.name)
        self._session = Session(self._engine.device_id, use_graphs=cuda_graph)
        with self._session, cuda_errors(f"preparing {self._name} on {self._engine.device}"):
            self._detection: DeviceDetection | None = DeviceDetection(self._session, detector, max_frames=max_batch)
            self._uploads = FrameUploads(self._session)
            self._chunks = [self._detection.new_chunk()]

    def read(self, frame: Any) -> tuple[FrameView, tuple[int, int]]:
        """Where the pixels are, and (w, h)."""
        with self._session, cuda_errors("looking at the frame"):
            view = read_frame(frame, self._engine.device_id, self._session.stream)
        return view, view.size

    def detect(self, frames: Sequence[FrameView], *, streams: Sequence[Any] | None = None) -> list[Found]:
        """Waits for the GPU, once, so the caller may reuse the frames' memory."""
        detection = self._detection
        if detection is None:
            raise EngineError(f"the detector {self._name} is closed: open a new Detector")
        with self._session, cuda_errors(f"running {self._name} on {self._engine.device}"):
            try:
                table, leases = self._uploads.locate([self._uploads.stage(frame) for frame in frames], {}, streams)
                chunks = []
                for number, first in enumerate(range(0, len(frames), detection.capacity)):
                    if number == len(self._chunks):
                        self._chunks.append(detection.new_chunk())
                    detection.launch(self._chunks[number], table[first : first + detection.capacity])
                    chunks.append(self._chunks[number])
                self._session.stream.synchronize()
            except BaseException:  # whatever is queued reads the caller's frames and our pinned memory
                with contextlib.suppress(Exception):
                    self._session.wait_for_all()
                raise
            for lease in leases:
                lease.settle()
            return [one for chunk in chunks for one in detection.found(chunk)]

    def close(self) -> None:
        """Wait for the GPU, then free everything."""
        if self._detection is None:
            return
        with self._session:
            try:
                self._session.settle(self._name)
            finally:
                self._detection = None  # and with it what is bound to the engine
                self._engine.close()
                self._chunks.clear()
                del self._uploads
                self._session.free()
