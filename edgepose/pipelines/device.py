"""The chain in GPU memory: upload, one CUDA graph, download, on one stream with one wait at the end.

    host     check, affines, copy the window of the frame that the crops see into pinned memory
    stream   upload(record of the call + window)   graph(crop_warp, network, decode_heatmaps)   download(results)
    host     wait, hand out copies

All buffers are allocated in the constructor and only grow with the frame. There is one graph for each batch size
(bucket): it always runs the same kernels at the same addresses, and what differs between calls is in the record
(:mod:`edgepose.kernels._call`). docs/gpu.md tells the whole story.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.engines import DeviceEngine
from edgepose.errors import EdgePoseError, EngineError, MissingDependencyError
from edgepose.kernels._call import call_size, call_views
from edgepose.kernels._crop import CropPlan, plan_crops
from edgepose.kernels.cuda import prepare_crop_warp, prepare_decode_heatmaps
from edgepose.pipelines.buckets import batch_buckets, network_runs
from edgepose.pipelines.device_frames import FrameView, read_frame, stream_address
from edgepose.result import Timings
from edgepose.spec import ModelSpec

__all__ = ["DevicePipeline"]

PIECE = 1 << 20  # bytes of the frame that are copied to pinned memory while the piece before is being uploaded
ALIGNMENT = 256  # of the pixels behind the record
FIRST_FRAME = 1920 * 1080 * 3  # bytes: larger frames make the staging memory grow, once

_BUFFERS = ("_images", "_heatmaps", "_results", "_upload", "_flip_indices", "_staging", "_calls", "_downloads")

Launch = Callable[[int], None]  # puts work on a CUDA stream, given as an integer


@dataclass
class _Bucket:
    """One batch size: what runs between upload and download.

    Attributes:
        crops: boxes that it takes.
        crop, decode: the kernels.
        network: one run of the engine, or two for a flip test that does not fit into one.
        graph: all of them as a CUDA graph; None: launched one by one.
    """

    crops: int
    crop: Launch
    network: list[Launch]
    decode: Launch
    graph: Any = None

    def launch_all(self, stream: int) -> None:
        """Every stage, one by one."""
        for launch in (self.crop, *self.network, self.decode):
            launch(stream)


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
        try:
            import cupy
        except ImportError as error:
            raise MissingDependencyError(
                f"the GPU pipeline needs CuPy, which cannot be imported ({error}): pip install 'edgepose[cuda13]' "
                "(or 'edgepose[cuda12]' for a driver that supports CUDA 12 only)"
            ) from error
        self.engine: DeviceEngine = engine
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self._spec = spec
        self._flip_test = flip_test
        self._use_graphs = cuda_graph
        self._sizes = batch_buckets(engine.min_batch, engine.max_batch, max_batch, flip_test=flip_test)
        self._device = cupy.cuda.Device(engine.device_id)
        with self._device, _cuda_errors(f"preparing {spec.name!r} on {engine.device}"):
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._ready = cupy.cuda.Event(disable_timing=True)
            self._pool, self._pinned_pool = cupy.cuda.MemoryPool(), cupy.cuda.PinnedMemoryPool()
            with self._stream:  # what fills the buffers is in the order of what uses them
                with cupy.cuda.using_allocator(self._pool.malloc):
                    self._allocate()
                self._buckets = {size: self._prepare(size) for size in self._sizes}

    # The pipeline's buffers -------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Everything but the slots of further chunks. Device memory that is never written starts as zeros."""
        cupy, spec, engine = self._cupy, self._spec, self.engine
        crops = self._sizes[-1]
        (w, h), (map_w, map_h), k = spec.input_size, spec.heatmap_size, spec.num_keypoints
        images = 2 * crops if self._flip_test else crops
        self._images = cupy.zeros((images, 3, h, w), engine.input_dtype)
        self._heatmaps = cupy.zeros((images, k, map_h, map_w), engine.output_dtype)
        self._results = cupy.zeros((crops, k, 3), np.float32)
        self._flip_indices = cupy.asarray(np.array(spec.flip_indices, np.int32)) if self._flip_test else None
        self._call_bytes = -(-call_size(crops) // ALIGNMENT) * ALIGNMENT
        self._allocate_staging(FIRST_FRAME)
        self._calls: list[NDArray[np.uint8]] = []  # pinned, one for each further chunk of a call
        self._downloads: list[NDArray[np.float32]] = []  # pinned, one for each chunk
        self._marks: list[list[Any]] = []  # events around the stages of each chunk, where no graph hides them
        self._add_chunk()

    def _allocate_staging(self, pixel_bytes: int) -> None:
        """Pinned memory for the first chunk's record and the frame's window behind it, and its copy on the device."""
        size = self._call_bytes + pixel_bytes
        self._staging = self._pinned(size)
        self._upload = self._cupy.zeros(size, np.uint8)

    def _pinned(self, size: int) -> NDArray[np.uint8]:
        buffer = np.frombuffer(self._pinned_pool.malloc(size), np.uint8, size)
        buffer[:] = 0
        return buffer

    def _add_chunk(self) -> None:
        """What one more chunk in flight needs of its own."""
        if self._downloads:  # the first chunk's record lies in the staging memory
            self._calls.append(self._pinned(self._call_bytes))
        self._downloads.append(self._pinned(self._results.nbytes).view(np.float32).reshape(self._results.shape))
        if not self._use_graphs:
            self._marks.append([self._cupy.cuda.Event() for _ in range(4)])

    def _prepare(self, crops: int) -> _Bucket:
        """Kernels, network and graph of one batch size. Runs everything once, as capturing wants it."""
        spec, stream = self._spec, self._stream
        images, heatmaps = self._images, self._heatmaps
        mirrored = slice(crops, 2 * crops)
        bucket = _Bucket(
            crops,
            prepare_crop_warp(
                self._upload,
                images[:crops],
                sampling=spec.sampling,
                mean=spec.mean,
                std=spec.std,
                mirrored=images[mirrored] if self._flip_test else None,
            ),
            [
                self.engine.bind(images[run], heatmaps[run])
                for run in network_runs(crops, self.engine.min_batch, self.engine.max_batch, flip_test=self._flip_test)
            ],
            prepare_decode_heatmaps(
                self._upload,
                heatmaps[:crops],
                self._results[:crops],
                flipped=heatmaps[mirrored] if self._flip_test else None,
                flip_indices=self._flip_indices,
                flip_shift=spec.flip_shift,
                refinement=spec.refinement,
                blur_kernel=spec.blur_kernel,
            ),
        )
        bucket.launch_all(stream.ptr)
        stream.synchronize()
        if self._use_graphs:
            bucket.graph = self._capture(bucket)
        return bucket

    def _capture(self, bucket: _Bucket) -> Any:
        self._stream.begin_capture()
        try:
            bucket.launch_all(self._stream.ptr)
        except Exception as error:
            with contextlib.suppress(Exception):  # the capture is broken, but the stream must leave it
                self._stream.end_capture()
            raise EngineError(
                f"{self.engine.name} cannot be captured into a CUDA graph ({error}): pass cuda_graph=False to Predictor"
            ) from error
        return self._stream.end_capture()

    def _grow(self, pixel_bytes: int) -> None:
        """A larger frame than ever: new staging memory, and since graphs hold its address, new graphs."""
        self._stream.synchronize()
        with self._stream:
            with self._cupy.cuda.using_allocator(self._pool.malloc):
                self._allocate_staging(pixel_bytes)
            self._buckets = {size: self._prepare(size) for size in self._sizes}

    # One call ---------------------------------------------------------------------------------------

    def read(self, frame: Any) -> tuple[FrameView, tuple[int, int]]:
        """Where the pixels are, and (w, h)."""
        with self._device:
            view = read_frame(frame, self.engine.device_id, self._stream.ptr)
        return view, view.size

    def run(
        self, frame: FrameView, boxes: NDArray[np.float32], stream: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], Timings]:
        """Keypoints, scores, timings; waits for the GPU, so the caller may reuse the frame's memory at once."""
        start = perf_counter()
        spec, largest = self._spec, self._sizes[-1]
        _, inverses = geometry.crop_transforms(boxes, spec)
        places = geometry.cells_to_frame(inverses, spec)
        plan = plan_crops(inverses, spec.input_size, frame.size, spec.sampling)
        firsts = range(0, len(boxes), largest)
        with self._device, _cuda_errors(f"running {spec.name!r} on {self.engine.device}"):
            self._make_room(frame, plan, chunks=len(firsts))
            self._wait_for(frame, stream)
            for chunk, first in enumerate(firsts):
                part = slice(first, min(first + largest, len(boxes)))
                self._enqueue(chunk, part, frame, plan, places)
            launched = perf_counter()
            self._stream.synchronize()
        waited = perf_counter()
        results = [self._downloads[chunk][: len(boxes[first : first + largest])] for chunk, first in enumerate(firsts)]
        joined = np.concatenate(results)  # a copy: the pinned memory is written again by the next call
        visible = geometry.crops_see_frame(inverses, spec.input_size, frame.size)
        scores = np.where(visible[:, None], joined[:, :, 2], np.float32(0))
        return joined[:, :, :2], scores, self._timings(start, launched, waited, len(firsts))

    def close(self) -> None:
        """Wait for the GPU, then free everything."""
        if not self._buckets:
            return
        with self._device:
            self._stream.synchronize()
            self._buckets.clear()
            self.engine.close()
            for name in _BUFFERS:
                setattr(self, name, None)
            self._pool.free_all_blocks()
            self._pinned_pool.free_all_blocks()

    def _make_room(self, frame: FrameView, plan: CropPlan, *, chunks: int) -> None:
        if frame.host is not None:
            left, top, right, bottom = plan.window
            size = _row_bytes(right - left, frame.host.shape[2]) * (bottom - top)
            if self._call_bytes + size > len(self._staging):
                self._grow(size)
        while len(self._downloads) < chunks:
            self._add_chunk()

    def _wait_for(self, frame: FrameView, stream: Any) -> None:
        """Let the stream wait until the frame has been written."""
        address = frame.stream if stream is None else stream_address(stream)
        if frame.host is None and address is not None:
            self._ready.record(self._cupy.cuda.ExternalStream(address))
            self._stream.wait_event(self._ready)

    def _enqueue(self, chunk: int, part: slice, frame: FrameView, plan: CropPlan, places: NDArray[np.float64]) -> None:
        """Upload, run and download one chunk; nothing here waits."""
        call = self._calls[chunk - 1] if chunk else self._staging[: self._call_bytes]
        self._write_call(call, part, frame, plan, places)
        stream, count = self._stream, part.stop - part.start
        if chunk == 0 and frame.host is not None:
            self._upload_window(frame.host, plan)
        else:
            self._copy(self._upload.data.ptr, call.ctypes.data, len(call), self._runtime.memcpyHostToDevice)
        bucket = self._buckets[next(size for size in self._sizes if size >= count)]
        if bucket.graph is not None:
            bucket.graph.launch(stream)
        else:
            self._launch_timed(bucket, self._marks[chunk])
        results = self._downloads[chunk]
        size = count * results[0].nbytes
        self._copy(results.ctypes.data, self._results.data.ptr, size, self._runtime.memcpyDeviceToHost)

    def _launch_timed(self, bucket: _Bucket, marks: list[Any]) -> None:
        begin, cropped, inferred, decoded = marks
        stream = self._stream
        begin.record(stream)
        bucket.crop(stream.ptr)
        cropped.record(stream)
        for launch in bucket.network:
            launch(stream.ptr)
        inferred.record(stream)
        bucket.decode(stream.ptr)
        decoded.record(stream)

    def _write_call(
        self, call: NDArray[np.uint8], part: slice, frame: FrameView, plan: CropPlan, places: NDArray[np.float64]
    ) -> None:
        """Fill a chunk's record (see kernels/_call.py) in pinned memory."""
        header, instances = call_views(call, self._sizes[-1])
        count = part.stop - part.start
        left, top = (plan.window[0], plan.window[1]) if frame.host is not None else (0, 0)
        row, pixel, channel = frame.strides
        address = frame.address
        if frame.host is not None:
            channels = frame.host.shape[2]
            row = _row_bytes(plan.window[2] - left, channels)
            address = self._upload.data.ptr + self._call_bytes + (channels - 1 if channel < 0 else 0)
        header[()] = (address, row, pixel, channel, *frame.size, left, top, count, 0)
        instances["sample"][:count] = plan.samples[part]
        instances["place"][:count] = places[part]
        instances["first"][:count] = plan.first[part]
        instances["halvings"][:count] = plan.halvings[part]
        instances["channels"][:count] = (0, self._spec.num_keypoints)

    def _upload_window(self, image: NDArray[np.uint8], plan: CropPlan) -> None:
        """The record and the part of the frame that the crops see, in pieces: one is copied while one is uploaded."""
        left, top, right, bottom = plan.window
        window = image[top:bottom, left:right]
        staging, start, end = self._staging, 0, self._call_bytes
        rows, width, channels = window.shape
        row_bytes = _row_bytes(width, channels)
        pixels = np.ndarray(window.shape, np.uint8, staging.data, end, (row_bytes, channels, 1))
        step = max(1, PIECE // max(row_bytes, 1))
        for first in range(0, max(rows, 1), step):  # at least once: an empty window leaves the record
            piece = window[first : first + step]
            np.copyto(pixels[first : first + step], piece)
            end += len(piece) * row_bytes
            self._copy(
                self._upload.data.ptr + start,
                staging.ctypes.data + start,
                end - start,
                self._runtime.memcpyHostToDevice,
            )
            start = end

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self._runtime.memcpyAsync(target, source, size, kind, self._stream.ptr)

    def _timings(self, start: float, launched: float, waited: float, chunks: int) -> Timings:
        """With graphs: host work until the last launch, the wait, host work after it; see Timings."""
        if self._use_graphs:
            return Timings((launched - start) * 1e3, (waited - launched) * 1e3, (perf_counter() - waited) * 1e3)
        elapsed = self._cupy.cuda.get_elapsed_time
        stages = [[elapsed(a, b) for a, b in itertools.pairwise(marks)] for marks in self._marks[:chunks]]
        return Timings(*(float(sum(times)) for times in zip(*stages, strict=True)))


def _row_bytes(width: int, channels: int) -> int:
    """Of the window in staging memory: whole 32-bit words, which is how the kernel likes to read."""
    return -(-width * channels // 4) * 4


class _cuda_errors:
    """Turns CUDA's errors into EngineError; cheaper than contextlib's in a loop of real time."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None or issubclass(kind, EdgePoseError):
            return
        if issubclass(kind, ImportError):  # NVRTC is missing
            raise MissingDependencyError(str(error)) from error
        if kind is RuntimeError:  # NVRTC refused; the message says why
            raise EngineError(f"{self._doing}: {error}") from error
        if kind.__module__.partition(".")[0] in ("cupy", "cupy_backends"):
            hint = ": free GPU memory or lower max_batch" if "OutOfMemory" in kind.__name__ else ""
            raise EngineError(f"CUDA failed while {self._doing}{hint}. CUDA says: {error}") from error
