"""An engine for the GPU pipeline on a machine without a GPU: ONNX Runtime works on the stand-in's device memory.

With the fixture `cupy_on_cpu` and this engine everything but the network itself is the product's own: the pipeline,
the launchers and the .cu files.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgepose.engines.onnxruntime import OnnxRuntimeEngine


class EmulatedEngine:
    """See :class:`edgepose.engines.DeviceEngine`."""

    def __init__(
        self, path: Path, *, min_batch: int = 1, max_batch: int = 16, fp16: bool = False, device_id: int = 0
    ) -> None:
        self._network = OnnxRuntimeEngine(path, spec=None, max_batch=max_batch, threads=1)
        self.name, self.device_id, self.device = "emulated", device_id, f"cuda:{device_id}"
        self.spec = self._network.spec
        self.min_batch, self.max_batch = min_batch, max_batch
        self.input_dtype = self.output_dtype = np.dtype(np.float16 if fp16 else np.float32)
        self.runs: list[int] = []
        self.closed = False

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one picture."""
        return self._network.output_shape

    def bind(self, images: Any, heatmaps: Any) -> Callable[[int], None]:
        """Runs at fixed addresses, as work on a stream that a graph can capture."""
        import cupy

        assert self.min_batch <= len(images) <= self.max_batch
        assert images.dtype == self.input_dtype
        assert heatmaps.dtype == self.output_dtype
        source, target = _host_view(images), _host_view(heatmaps)

        def compute(_: Any) -> None:
            self.runs.append(len(source))
            target[:] = self._network.run(source.astype(np.float32))

        return lambda stream: cupy.cuda.ExternalStream(stream).launch_host_func(compute, None)

    def warmed_up(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Free the session."""
        self._network.close()
        self.closed = True


def _host_view(array: Any) -> np.ndarray:
    """The stand-in's device memory, which is host memory, as a NumPy array."""
    buffer = (ctypes.c_uint8 * array.nbytes).from_address(array.data.ptr)
    return np.frombuffer(buffer, array.dtype).reshape(array.shape)
