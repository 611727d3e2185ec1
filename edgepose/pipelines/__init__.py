"""Pipelines: a frame's way through crop, network and decoder. One protocol, one file for each kind of memory.

host.py     NumPy twins around an engine that takes host arrays (ONNX Runtime)
device.py   CUDA kernels around an engine that takes device buffers (TensorRT): upload, one CUDA graph, download
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepose.engines import DeviceEngine, Engine
from edgepose.result import Timings
from edgepose.spec import ModelSpec

__all__ = ["Pipeline", "open_pipeline"]


class Pipeline(Protocol):
    """The chain of one predictor. It owns its engine and all buffers; calls must not overlap."""

    @property
    def engine(self) -> Engine | DeviceEngine:
        """What runs the network."""
        ...

    def read(self, frame: Any) -> tuple[Any, tuple[int, int]]:
        """Check a frame: what ``run`` takes of it (never a copy of the pixels that could be avoided), and (w, h), px.

        Raises:
            InputError: it is no frame, or in memory that this pipeline cannot read.
        """
        ...

    def run(
        self,
        frame: Any,  # of `read`
        boxes: NDArray[np.float32],  # (N, 4) xyxy, frame px, validated, N >= 1
        stream: Any = None,  # CUDA stream that the frame is being written on
        channels: NDArray[np.int32] | None = None,  # (N, 2) [begin, end): the heatmaps to decode; None: all
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], Timings]:
        """Keypoints (N, K, 2) float32, frame px, scores (N, K) float32, and how long the stages took."""
        ...

    def close(self) -> None:
        """Free engine and buffers. Closing twice is fine."""
        ...


def open_pipeline(
    engine: Engine | DeviceEngine, spec: ModelSpec, *, flip_test: bool, max_batch: int, cuda_graph: bool = True
) -> Pipeline:
    """The pipeline that fits an engine; it takes the engine over and closes it with itself.

    Args:
        engine: opened and checked against its spec.
        spec: the engine's, perhaps with another refinement.
        flip_test: run each crop mirrored too and average the heatmaps.
        max_batch: the largest number of boxes in one run.
        cuda_graph: replay a CUDA graph for each batch size (device engines).
    """
    if isinstance(engine, DeviceEngine):
        from edgepose.pipelines.device import DevicePipeline

        return DevicePipeline(engine, spec, flip_test=flip_test, max_batch=max_batch, cuda_graph=cuda_graph)
    from edgepose.pipelines.host import HostPipeline

    return HostPipeline(engine, spec, flip_test=flip_test)
