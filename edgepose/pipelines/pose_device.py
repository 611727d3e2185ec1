"""The second stage on a GPU: the record of a call -> crops -> network -> landmarks. One CUDA graph a batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.engines import DeviceEngine
from edgepose.kernels._call import call_size
from edgepose.kernels._crop import plan_crops
from edgepose.kernels.cuda import prepare_crop_warp, prepare_decode_heatmaps
from edgepose.pipelines.buckets import batch_buckets, network_runs
from edgepose.pipelines.device_frames import FrameView
from edgepose.pipelines.models import Share
from edgepose.pipelines.protocol import PoseModel
from edgepose.pipelines.session import Session
from edgepose.pipelines.staging import Chunk
from edgepose.pipelines.uploads import Window
from edgepose.spec import ModelSpec

__all__ = ["DevicePose", "HostPlan"]


@dataclass(frozen=True)
class HostPlan:
    """How the boxes of a share are cut out of their frames, planned by the host.

    Attributes:
        share: the boxes.
        inverses: (n, 2, 3) float64, crop px -> frame px.
        places: (n, 2, 3) float64, heatmap cells -> frame px.
        samples, first, halvings: see :class:`edgepose.kernels._crop.CropPlan`.
        windows: what the crops read of each frame in host memory, by its number.
        groups: rows that were planned together, and the size (w, h) of their frames.
    """

    share: Share
    inverses: NDArray[np.float64]
    places: NDArray[np.float64]
    samples: NDArray[np.float64]
    first: NDArray[np.int64]
    halvings: NDArray[np.int64]
    windows: dict[int, Window]
    groups: list[tuple[NDArray[np.intp] | slice, tuple[int, int]]]


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


class DevicePose:
    """One pose model on a GPU. All buffers are allocated here, and used in the order of the session's stream.

    Args:
        session: the pipeline's.
        model: its engine takes device buffers.
        flip_test: crop each box mirrored too; the decoder merges the two heatmaps as it reads them.
        max_batch: the largest number of boxes in one run.

    Attributes:
        sizes: the batch sizes that have a graph, ascending.
        record: (call_size(capacity),) uint8 device array, what the graphs read; see kernels/_call.py.
    """

    def __init__(self, session: Session, model: PoseModel, *, flip_test: bool, max_batch: int) -> None:
        assert isinstance(model.engine, DeviceEngine)
        self.engine: DeviceEngine = model.engine
        self.spec: ModelSpec = model.spec
        self._session = session
        self._flip_test = flip_test
        self.sizes = batch_buckets(self.engine.min_batch, self.engine.max_batch, max_batch, flip_test=flip_test)
        spec, crops = self.spec, self.capacity
        (w, h), (map_w, map_h), k = spec.input_size, spec.heatmap_size, spec.num_keypoints
        images = 2 * crops if flip_test else crops
        self._images = session.zeros((images, 3, h, w), self.engine.input_dtype)
        self._heatmaps = session.zeros((images, k, map_h, map_w), self.engine.output_dtype)
        self._results = session.zeros((crops, k, 3), np.float32)
        self.record = session.zeros(call_size(crops), np.uint8)
        self._flip_indices = session.upload(np.array(spec.flip_indices, np.int32)) if flip_test else None
        self._buckets = {size: self._prepare(size) for size in self.sizes}
        self.engine.warmed_up()

    @property
    def capacity(self) -> int:
        """The largest number of boxes in one run."""
        return self.sizes[-1]

    def new_chunk(self) -> Chunk:
        """Pinned memory for one more run under way."""
        marks = None if self._session.use_graphs else [self._session.event(timing=True) for _ in range(4)]
        return Chunk(self.capacity, self.spec.num_keypoints, self._session.pinned, marks)

    def size_for(self, count: int) -> int:
        """The smallest batch size that holds so many boxes; the largest for more than that."""
        return next((size for size in self.sizes if size >= count), self.capacity)

    def _prepare(self, crops: int) -> _Bucket:
        """Kernels, network and graph of one batch size."""
        spec, images, heatmaps = self.spec, self._images, self._heatmaps
        mirrored = slice(crops, 2 * crops)
        runs = network_runs(crops, self.engine.min_batch, self.engine.max_batch, flip_test=self._flip_test)
        with self._session.stream:
            bucket = _Bucket(
                prepare_crop_warp(
                    self.record,
                    images[:crops],
                    sampling=spec.sampling,
                    mean=spec.mean,
                    std=spec.std,
                    mirrored=images[mirrored] if self._flip_test else None,
                ),
                [self.engine.bind(images[run], heatmaps[run]) for run in runs],
                prepare_decode_heatmaps(
                    self.record,
                    heatmaps[:crops],
                    self._results[:crops],
                    flipped=heatmaps[mirrored] if self._flip_test else None,
                    flip_indices=self._flip_indices,
                    flip_shift=spec.flip_shift,
                    refinement=spec.refinement,
                    blur_kernel=spec.blur_kernel,
                ),
            )
        bucket.graph = self._session.prepare(lambda: bucket.launch_all(self._session.stream), self.engine.name)
        return bucket

    # One call ---------------------------------------------------------------------------------------

    def plan(
        self,
        frames: Sequence[FrameView],
        boxes: NDArray[np.float32],  # (N, 4), of the whole call
        owners: NDArray[np.int32],  # (N,)
        share: Share,
    ) -> HostPlan:
        """Where the crops of a share lie. Raises InputError for a box that float32 cannot hold."""
        spec = self.spec
        own = owners[share.rows]
        _, inverses = geometry.crop_transforms(boxes[share.rows], spec)
        places = geometry.cells_to_frame(inverses, spec)
        windows: dict[int, Window] = {}
        groups: list[tuple[NDArray[np.intp] | slice, tuple[int, int]]] = []
        plans = []
        for numbers in _planned_together(frames, own):
            rows = slice(None) if len(frames) == 1 else np.flatnonzero(np.isin(own, numbers))
            size = frames[numbers[0]].size
            plan = plan_crops(inverses[rows], spec.input_size, size, spec.sampling)
            if frames[numbers[0]].host is not None:
                windows[numbers[0]] = plan.window
            groups.append((rows, size))
            plans.append(plan)
        if len(plans) == 1:
            samples, first, halvings = plans[0].samples, plans[0].first, plans[0].halvings
        else:
            samples, first = np.empty_like(inverses), np.empty((len(own), 2), np.int64)
            halvings = np.empty(len(own), np.int64)
            for (rows, _), plan in zip(groups, plans, strict=True):
                samples[rows], first[rows], halvings[rows] = plan.samples, plan.first, plan.halvings
        return HostPlan(share, inverses, places, samples, first, halvings, windows, groups)

    def launch(
        self, chunk: Chunk, plan: HostPlan, part: slice, table: NDArray[np.void], owners: NDArray[np.int32]
    ) -> None:
        """Record up, run, results down, for the boxes ``part`` of a plan; nothing here waits."""
        channels = plan.share.channels
        size = chunk.write(
            table,
            owners[plan.share.rows[part]],
            plan.samples[part],
            plan.first[part],
            plan.halvings[part],
            plan.places[part],
            None if channels is None else channels[part],
        )
        self._session.copy_up(self.record.data.ptr, chunk.record_address, size)
        self.launch_recorded(chunk, part.stop - part.start)

    def launch_recorded(self, chunk: Chunk, count: int) -> None:
        """Run, results down, for the first ``count`` boxes of the record that is on the device already."""
        bucket = self._buckets[self.size_for(count)]
        if bucket.graph is not None:
            bucket.graph.launch(self._session.stream)
        else:
            bucket.launch_all(self._session.stream, chunk.marks)
        self._session.copy_down(chunk.results_address, self._results.data.ptr, count * chunk.results[0].nbytes)

    def unseen(self, plan: HostPlan) -> NDArray[np.bool_]:
        """(n,) whether a crop sees nothing of its frame."""
        mask = np.empty(len(plan.inverses), bool)
        for rows, size in plan.groups:
            mask[rows] = ~geometry.crops_see_frame(plan.inverses[rows], self.spec.input_size, size)
        return mask


def _planned_together(frames: Sequence[FrameView], owners: NDArray[np.int32]) -> list[list[int]]:
    """The frames that have boxes: those on the device by size, each of the host for itself, since it has a window."""
    if len(frames) == 1:
        return [[0]]
    groups: dict[Any, list[int]] = {}
    for number in np.unique(owners).tolist():
        frame = frames[number]
        groups.setdefault(frame.size if frame.host is None else number, []).append(number)
    return list(groups.values())
