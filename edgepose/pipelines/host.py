"""The chain in host memory: NumPy twins around an engine of host arrays."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.engines import Engine
from edgepose.frames import as_bgr
from edgepose.kernels import reference
from edgepose.result import Timings
from edgepose.spec import ModelSpec

__all__ = ["HostPipeline"]


class HostPipeline:
    """See :class:`edgepose.pipelines.Pipeline`; chunks are as large as the engine's input buffer."""

    def __init__(self, engine: Engine, spec: ModelSpec, *, flip_test: bool) -> None:
        self.engine: Engine = engine
        self._spec = spec
        self._flip_test = flip_test

    def read(self, frame: Any) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """(H, W, 3) uint8 BGR and (w, h)."""
        image = as_bgr(frame)
        return image, (image.shape[1], image.shape[0])

    def run(
        self,
        frame: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        stream: Any = None,
        channels: NDArray[np.int32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], Timings]:
        """``stream`` means nothing here: the frame is in host memory."""
        clock = _Clock()
        step = len(self.engine.input_buffer)
        parts = []
        for first in range(0, len(boxes), step):
            chunk = slice(first, first + step)
            parts.append(self._run_chunk(frame, boxes[chunk], None if channels is None else channels[chunk], clock))
        keypoints, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return keypoints, scores, Timings(clock.crop, clock.network, clock.decode)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def _run_chunk(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        channels: NDArray[np.int32] | None,
        clock: _Clock,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keypoints (n, K, 2), frame px, and scores (n, K) of n boxes that fit into the input buffer."""
        spec = self._spec
        clock.lap()
        affines, inverses = geometry.crop_transforms(boxes, spec)
        images = self.engine.input_buffer[: len(boxes)]
        reference.crop_warp(
            image, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std, out=images
        )
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
        visible = geometry.crops_see_frame(inverses, spec.input_size, (image.shape[1], image.shape[0]))
        scores = np.where(visible[:, None], scores, np.float32(0))
        clock.decode += clock.lap()
        return keypoints, scores


class _Clock:
    """Stage times of one call, ms."""

    def __init__(self) -> None:
        self.crop = self.network = self.decode = 0.0
        self._last = perf_counter()

    def lap(self) -> float:
        """ms since the last lap."""
        last, self._last = self._last, perf_counter()
        return (self._last - last) * 1e3
