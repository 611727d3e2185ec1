"""The chain in host memory: NumPy twins around engines of host arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.engines import Engine
from edgepose.errors import InputError
from edgepose.frames import as_bgr
from edgepose.kernels import reference
from edgepose.pipelines.detect_host import HostDetection
from edgepose.pipelines.detection import joined
from edgepose.pipelines.models import ModelTable, Share, croppable
from edgepose.pipelines.protocol import DetectedPoses, DetectorModel, Finished, PoseModel, Poses
from edgepose.result import Timings
from edgepose.spec import ModelSpec

__all__ = ["HostPipeline"]

Image = NDArray[np.uint8]  # (H, W, 3) BGR


class HostPipeline:
    """See :class:`edgepose.pipelines.Pipeline`. Everything has been done when ``start`` returns.

    Args:
        models, detector: of engines in host memory; the pipeline closes them.
        categories: as of :func:`edgepose.pipelines.open_pipeline`.
        flip_test: run each crop mirrored too and average the heatmaps.
    """

    def __init__(
        self,
        models: Sequence[PoseModel],
        categories: Mapping[str, tuple[int, int]],
        *,
        flip_test: bool,
        detector: DetectorModel | None = None,
    ) -> None:
        self._stages = [_HostPose(model, flip_test) for model in models]
        self._table = ModelTable([model.spec for model in models], categories)
        self._detection: HostDetection | None = None
        if detector is not None:
            assert isinstance(detector.engine, Engine)
            self._detection = HostDetection(detector.engine, detector.spec, detector.settings)
            self._labels = self._table.label_table(detector.spec.category_names)

    @property
    def engine(self) -> Engine:
        """Of the first model."""
        return self._stages[0].engine

    def read(self, frame: Any) -> tuple[Image, tuple[int, int]]:
        """(H, W, 3) uint8 BGR and (w, h)."""
        image = as_bgr(frame)
        return image, (image.shape[1], image.shape[0])

    stage = read

    def run(
        self,
        frames: Sequence[Image],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        *,
        streams: Sequence[Any] | None = None,
        channels: NDArray[np.int32] | None = None,
    ) -> Poses:
        """``streams`` mean nothing here: the frames are in host memory."""
        clock = _Clock()
        return Poses(*self._run(frames, boxes, owners, self._table.shares(len(boxes), channels), clock), clock.timings)

    def start(
        self,
        frames: Sequence[Image],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        *,
        streams: Sequence[Any] | None = None,
        channels: NDArray[np.int32] | None = None,
    ) -> Finished[Poses]:
        """:meth:`run`."""
        return Finished(self.run(frames, boxes, owners, channels=channels))

    def detect_and_start(
        self, frames: Sequence[Image], *, streams: Sequence[Any] | None = None
    ) -> Finished[DetectedPoses]:
        """Both stages."""
        if self._detection is None:
            raise InputError("this pipeline has no detector: pass boxes")
        clock = _Clock()
        owners, boxes, box_scores, labels = joined(self._detection.detect(frames))
        clock.detect += clock.lap()
        shares = self._table.shares_of_labels(labels, self._labels)
        shares = [croppable(boxes, share, self._stages[share.model].spec) for share in shares]
        keypoints, scores = self._run(frames, boxes, owners, shares, clock)
        return Finished(DetectedPoses(keypoints, scores, clock.timings, owners, boxes, box_scores, labels))

    def close(self) -> None:
        """Close the engines."""
        for stage in self._stages:
            stage.engine.close()
        if self._detection is not None:
            self._detection.close()

    def _run(
        self,
        frames: Sequence[Image],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        shares: Sequence[Share],
        clock: _Clock,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keypoints (N, K, 2), frame px, and scores (N, K)."""
        outputs = []
        for share in shares:
            stage = self._stages[share.model]
            outputs.append((share, *stage.run(frames, boxes[share.rows], owners[share.rows], share.channels, clock)))
        return self._table.join(len(boxes), outputs)


class _HostPose:
    """One pose model; its chunks are as large as the engine's input buffer."""

    def __init__(self, model: PoseModel, flip_test: bool) -> None:
        assert isinstance(model.engine, Engine)
        self.engine: Engine = model.engine
        self.spec: ModelSpec = model.spec
        self._flip_test = flip_test

    def run(
        self,
        frames: Sequence[Image],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        channels: NDArray[np.int32] | None,
        clock: _Clock,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keypoints (n, K, 2) and scores (n, K) of boxes in any of the frames."""
        k, step = self.spec.num_keypoints, len(self.engine.input_buffer)
        keypoints, scores = np.empty((len(boxes), k, 2), np.float32), np.empty((len(boxes), k), np.float32)
        order = np.argsort(owners, kind="stable")  # the crops of a frame lie side by side in the input buffer
        for first in range(0, len(boxes), step):
            rows = order[first : first + step]
            own_channels = None if channels is None else channels[rows]
            keypoints[rows], scores[rows] = self._run_chunk(frames, boxes[rows], owners[rows], own_channels, clock)
        return keypoints, scores

    def _run_chunk(
        self,
        frames: Sequence[Image],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],  # ascending
        channels: NDArray[np.int32] | None,
        clock: _Clock,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As :meth:`run`, of boxes that fit into the input buffer."""
        spec = self.spec
        clock.lap()
        affines, inverses = geometry.crop_transforms(boxes, spec)
        images = self.engine.input_buffer[: len(boxes)]
        visible = np.empty(len(boxes), bool)
        for owner in sorted(set(owners.tolist())):  # np.unique would import numpy.ma, 15 ms of the first call
            own = slice(int(np.searchsorted(owners, owner)), int(np.searchsorted(owners, owner, "right")))
            frame = frames[owner]
            reference.crop_warp(
                frame,
                affines[own],
                spec.input_size,
                sampling=spec.sampling,
                mean=spec.mean,
                std=spec.std,
                out=images[own],
            )
            size = (frame.shape[1], frame.shape[0])
            visible[own] = geometry.crops_see_frame(inverses[own], spec.input_size, size)
        clock.crop += clock.lap()
        heatmaps = self.engine.run(images)
        flipped = self.engine.run(np.ascontiguousarray(images[..., ::-1])) if self._flip_test else None
        clock.network += clock.lap()
        keypoints, scores = reference.decode_heatmaps(
            heatmaps,
            refinement=spec.refinement,
            blur_kernel=spec.blur_kernel,
            flipped=flipped,
            flip_indices=spec.flip_indices,
            flip_shift=spec.flip_shift,
            channel_ranges=channels,
            cells_to_frame=geometry.cells_to_frame(inverses, spec),
        )
        scores = np.where(visible[:, None], scores, np.float32(0))
        clock.decode += clock.lap()
        return keypoints, scores


class _Clock:
    """Stage times of one call, ms."""

    def __init__(self) -> None:
        self.detect = self.crop = self.network = self.decode = 0.0
        self._last = perf_counter()

    @property
    def timings(self) -> Timings:
        """All of them."""
        return Timings(crop=self.crop, network=self.network, decode=self.decode, detect=self.detect)

    def lap(self) -> float:
        """ms since the last lap."""
        last, self._last = self._last, perf_counter()
        return (self._last - last) * 1e3
