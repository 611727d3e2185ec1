"""The chain in GPU memory: upload, one CUDA graph, download, on one stream with one wait at the end.

    host     check, affines, copy the window of the frame that the crops see into pinned memory
    stream   upload(window, record of the call)   graph(crop_warp, network, decode_heatmaps)   download(results)
    host     wait, hand out copies

All buffers are allocated in the constructor; only those of the window grow with the frame. There is one graph for each
batch size (bucket): it always runs the same kernels at the same addresses, and what differs between calls is in the
record (:mod:`edgepose.kernels._call`). docs/gpu.md tells the whole story.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.engines import DeviceEngine
from edgepose.errors import EdgePoseError, EngineError, MissingDependencyError
from edgepose.kernels._call import call_size
from edgepose.kernels._compile import import_cupy
from edgepose.kernels._crop import plan_crops
from edgepose.kernels.cuda import prepare_crop_warp, prepare_decode_heatmaps
from edgepose.pipelines.buckets import batch_buckets, network_runs
from edgepose.pipelines.device_frames import FrameView, read_frame, stream_address
from edgepose.pipelines.staging import Chunk, Located, WindowUpload
from edgepose.result import Timings
from edgepose.spec import ModelSpec

__all__ = ["DevicePipeline"]

_log = logging.getLogger(__name__)

_DEVICE_BUFFERS = ("_images", "_heatmaps", "_results", "_call", "_flip_indices", "_window", "_chunks")


@dataclass
class _Bucket:
    """One batch size: what runs between upload and download.

    Attributes:
        crop, decode: the kernels; they go to CuPy's current stream.
        network: one run of the engine, or two for a flip test that does not fit into one; to the stream given.
        graph: all of them as a CUDA graph; None: launched one by one.
    """

    crop: Callable[[], None]
    network: list[Callable[[int], None]]
    decode: Callable[[], None]
    graph: Any = None

    def launch_all(self, stream: Any, marks: list[Any] | None = None) -> None:
        """Every stage, one by one; ``marks`` are four events to record around the three stages."""
        with stream:
            self._mark(marks, 0)
            self.crop()
            self._mark(marks, 1)
            for run in self.network:
                run(stream.ptr)
            self._mark(marks, 2)
            self.decode()
            self._mark(marks, 3)

    @staticmethod
    def _mark(marks: list[Any] | None, index: int) -> None:
        if marks:
            marks[index].record()


class DevicePipeline:
    """See :class:`edgepose.pipelines.Pipeline`.

    Args:
        engine: of device buffers; the pipeline closes it.
        spec: the engine's, perhaps with another refinement.
        flip_test: crop each box mirrored too; the decoder merges the two heatmaps as it reads them.
        max_batch: the largest number of boxes in one run; more boxes are done in several, with one wait in the end.
        cuda_graph: replay graphs. Without them the stages are timed apart (and the host is busier).

    Raises:
        EngineError: CUDA refused, for instance for want of memory, or the engine fits no batch size.
        MissingDependencyError: CuPy is not installed.
    """

    def __init__(
        self, engine: DeviceEngine, spec: ModelSpec, *, flip_test: bool, max_batch: int, cuda_graph: bool
    ) -> None:
        with _cuda_errors("importing CuPy"):
            cupy = import_cupy()
        self.engine: DeviceEngine = engine
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self._spec = spec
        self._flip_test = flip_test
        self._use_graphs = cuda_graph
        self._sizes = batch_buckets(engine.min_batch, engine.max_batch, max_batch, flip_test=flip_test)
        self._buckets: dict[int, _Bucket] = {}
        self._device = cupy.cuda.Device(engine.device_id)
        with self._device, _cuda_errors(f"preparing {spec.name!r} on {engine.device}"):
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._frame_ready = cupy.cuda.Event(disable_timing=True)
            self._pool, self._pinned_pool = cupy.cuda.MemoryPool(), cupy.cuda.PinnedMemoryPool()
            with self._stream:  # what fills the buffers is in the order of what uses them
                self._allocate()
                for size in self._sizes:
                    self._buckets[size] = self._prepare(size)
            engine.warmed_up()

    # The pipeline's buffers -------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Everything but the slots of further chunks. Device memory that is never written starts as zeros."""
        spec, engine, crops = self._spec, self.engine, self._sizes[-1]
        (w, h), (map_w, map_h), k = spec.input_size, spec.heatmap_size, spec.num_keypoints
        images = 2 * crops if self._flip_test else crops
        with self._cupy.cuda.using_allocator(self._pool.malloc):
            self._images = self._cupy.zeros((images, 3, h, w), engine.input_dtype)
            self._heatmaps = self._cupy.zeros((images, k, map_h, map_w), engine.output_dtype)
            self._results = self._cupy.zeros((crops, k, 3), np.float32)
            self._call = self._cupy.zeros(call_size(crops), np.uint8)
            flips = np.array(spec.flip_indices, np.int32)
            self._flip_indices = self._cupy.asarray(flips) if self._flip_test else None
        self._window = WindowUpload(self._allocate_pinned, self._allocate_bytes, self._copy_up)
        self._chunks: list[Chunk] = []
        self._marks: list[list[Any]] = []  # events around the stages of each chunk, where no graph hides them
        self._add_chunk()

    def _allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        buffer = np.frombuffer(self._pinned_pool.malloc(size), np.uint8, size)
        buffer[:] = 0
        return buffer

    def _allocate_bytes(self, size: int) -> Any:
        with self._stream, self._cupy.cuda.using_allocator(self._pool.malloc):
            return self._cupy.zeros(size, np.uint8)

    def _add_chunk(self) -> None:
        """What one more chunk in flight needs of its own."""
        self._chunks.append(Chunk(self._sizes[-1], self._spec.num_keypoints, self._allocate_pinned))
        if not self._use_graphs:
            self._marks.append([self._cupy.cuda.Event() for _ in range(4)])

    def _prepare(self, crops: int) -> _Bucket:
        """Kernels, network and graph of one batch size. Runs everything once, as capturing wants it."""
        spec, images, heatmaps = self._spec, self._images, self._heatmaps
        mirrored = slice(crops, 2 * crops)
        runs = network_runs(crops, self.engine.min_batch, self.engine.max_batch, flip_test=self._flip_test)
        bucket = _Bucket(
            prepare_crop_warp(
                self._call,
                images[:crops],
                sampling=spec.sampling,
                mean=spec.mean,
                std=spec.std,
                mirrored=images[mirrored] if self._flip_test else None,
            ),
            [self.engine.bind(images[run], heatmaps[run]) for run in runs],
            prepare_decode_heatmaps(
                self._call,
                heatmaps[:crops],
                self._results[:crops],
                flipped=heatmaps[mirrored] if self._flip_test else None,
                flip_indices=self._flip_indices,
                flip_shift=spec.flip_shift,
                refinement=spec.refinement,
                blur_kernel=spec.blur_kernel,
            ),
        )
        bucket.launch_all(self._stream)
        self._stream.synchronize()
        if self._use_graphs:
            bucket.graph = self._capture(bucket)
        return bucket

    def _capture(self, bucket: _Bucket) -> Any:
        self._stream.begin_capture()
        try:
            bucket.launch_all(self._stream)
            return self._stream.end_capture()
        except Exception as error:
            with contextlib.suppress(Exception):  # the capture is broken, but the stream must leave it
                self._stream.end_capture()
            if isinstance(error, self._cupy.cuda.memory.OutOfMemoryError):
                raise
            raise EngineError(
                f"{self.engine.name} cannot be captured into a CUDA graph ({error}): pass cuda_graph=False to Predictor"
            ) from error

    # One call ---------------------------------------------------------------------------------------

    def read(self, frame: Any) -> tuple[FrameView, tuple[int, int]]:
        """Where the pixels are, and (w, h)."""
        with self._device, _cuda_errors("looking at the frame"):
            view = read_frame(frame, self.engine.device_id, self._stream)
        return view, view.size

    def run(
        self,
        frame: FrameView,
        boxes: NDArray[np.float32],
        stream: Any = None,
        channels: NDArray[np.int32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], Timings]:
        """Keypoints, scores, timings; waits for the GPU, so the caller may reuse the frame's memory at once."""
        start = perf_counter()
        spec, largest = self._spec, self._sizes[-1]
        _, inverses = geometry.crop_transforms(boxes, spec)
        places = geometry.cells_to_frame(inverses, spec)
        plan = plan_crops(inverses, spec.input_size, frame.size, spec.sampling)
        parts = [slice(first, min(first + largest, len(boxes))) for first in range(0, len(boxes), largest)]
        with self._device, _cuda_errors(f"running {spec.name!r} on {self.engine.device}"):
            while len(self._chunks) < len(parts):
                self._add_chunk()
            try:
                located = self._locate(frame, plan.window, stream)
                for chunk, part in enumerate(parts):
                    self._chunks[chunk].write(part, frame.size, located, plan, places, channels)
                    self._launch(chunk, part.stop - part.start)
                launched = perf_counter()
                unseen = ~geometry.crops_see_frame(inverses, spec.input_size, frame.size)  # while the GPU works
                self._stream.synchronize()
            except BaseException:  # whatever is queued reads the caller's frame and our pinned memory
                with contextlib.suppress(Exception):
                    self._stream.synchronize()
                raise
        waited = perf_counter()
        # Copies: the pinned memory is written again by the next call.
        results = np.concatenate([self._chunks[chunk].results[: p.stop - p.start] for chunk, p in enumerate(parts)])
        results[unseen, :, 2] = 0
        return results[:, :, :2], results[:, :, 2], self._timings(start, launched, waited, len(parts))

    def close(self) -> None:
        """Wait for the GPU, then free everything."""
        if not self._buckets:
            return
        with self._device:
            try:
                self._stream.synchronize()
            except self._runtime.CUDARuntimeError as error:  # of a run before; nothing is lost but that run
                _log.warning("the GPU reported an error while %s was closed: %s", self._spec.name, error)
            finally:
                self._buckets.clear()
                self.engine.close()
                for name in _DEVICE_BUFFERS:
                    setattr(self, name, None)
                self._pool.free_all_blocks()
                self._pinned_pool.free_all_blocks()

    def _locate(self, frame: FrameView, window: tuple[int, int, int, int], stream: Any) -> Located:
        """Bring a host frame's window to the GPU; make our stream wait until a device frame has been written."""
        if frame.host is not None:
            return self._window.send(frame, window)
        writer = frame.stream if stream is None else stream_address(stream)
        if writer is not None:
            self._runtime.eventRecord(self._frame_ready.ptr, writer)
            self._stream.wait_event(self._frame_ready)
        return frame.address, *frame.strides, 0, 0

    def _launch(self, chunk: int, count: int) -> None:
        """Upload the record, run, download; nothing here waits."""
        slot, bucket = self._chunks[chunk], self._buckets[next(size for size in self._sizes if size >= count)]
        self._copy_up(self._call.data.ptr, slot.record_address, len(slot.record))
        if bucket.graph is not None:
            bucket.graph.launch(self._stream)
        else:
            bucket.launch_all(self._stream, self._marks[chunk])
        down = self._runtime.memcpyDeviceToHost
        size = count * slot.results[0].nbytes
        self._runtime.memcpyAsync(slot.results_address, self._results.data.ptr, size, down, self._stream.ptr)

    def _copy_up(self, target: int, source: int, size: int) -> None:
        self._runtime.memcpyAsync(target, source, size, self._runtime.memcpyHostToDevice, self._stream.ptr)

    def _timings(self, start: float, launched: float, waited: float, chunks: int) -> Timings:
        """With graphs: host work until the last launch, the wait, host work after it; see Timings."""
        if self._use_graphs:
            return Timings((launched - start) * 1e3, (waited - launched) * 1e3, (perf_counter() - waited) * 1e3)
        elapsed = self._cupy.cuda.get_elapsed_time
        stages = [[elapsed(a, b) for a, b in itertools.pairwise(marks)] for marks in self._marks[:chunks]]
        return Timings(*(float(sum(times)) for times in zip(*stages, strict=True)))


class _cuda_errors:
    """Turns CUDA's errors into EngineError; cheaper than contextlib's in a loop of real time."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None or issubclass(kind, EdgePoseError):
            return
        if issubclass(kind, ImportError):  # CuPy or NVRTC is missing
            raise MissingDependencyError(str(error)) from error
        if kind is RuntimeError:  # NVRTC refused; the message says why
            raise EngineError(f"{self._doing}: {error}") from error
        if kind.__module__.partition(".")[0] in ("cupy", "cupy_backends"):
            hint = ": free GPU memory or lower max_batch" if "OutOfMemory" in kind.__name__ else ""
            raise EngineError(f"CUDA failed while {self._doing}{hint}. CUDA says: {error}") from error
