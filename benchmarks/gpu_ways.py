"""The ways of finding landmarks on a GPU: ours, and those of others at their best settings. One file each in peers/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.bench_models import BenchModel

__all__ = ["GPU_WAYS", "OURS", "GpuOptions", "GpuWay"]

OURS = "edgepose"


@dataclass(frozen=True)
class GpuOptions:
    """How ways are opened: the network's precision, and the largest number of boxes in one call."""

    precision: Literal["fp16", "fp32"] = "fp16"
    max_batch: int = 16


class GpuWay(Protocol):
    """A way, opened. ``version``: of what runs the network."""

    version: str

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keypoints (N, K, 2), frame px, and scores (N, K), on the host: the GPU has finished."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


def _edgepose(model: BenchModel, options: GpuOptions, **how: bool) -> GpuWay:
    from edgepose.benchmarks.peers.gpu_engines import OnGpu

    return OnGpu(model, options, **how)


def _cpu_around(model: BenchModel, options: GpuOptions) -> GpuWay:
    from edgepose.benchmarks.peers.gpu_engines import CpuAroundEngine

    return CpuAroundEngine(model, options)


def _pytorch(model: BenchModel, options: GpuOptions, mode: Literal["eager", "compile", "graph"]) -> GpuWay:
    from edgepose.benchmarks.peers.gpu_torch import TorchNetwork

    return TorchNetwork(model, options, mode=mode)


def _pytorch_everything(model: BenchModel, options: GpuOptions) -> GpuWay:
    from edgepose.benchmarks.peers.gpu_torch import TorchEverything

    return TorchEverything(model, options)


def _onnxruntime(model: BenchModel, options: GpuOptions) -> GpuWay:
    from edgepose.benchmarks.peers.gpu_onnxruntime import BatchedCuda

    return BatchedCuda(model, options)


def _rtmlib(model: BenchModel, options: GpuOptions) -> GpuWay:
    from edgepose.benchmarks.peers.gpu_rtmlib import RtmlibCuda

    return RtmlibCuda(model, options)


# In this order they are measured: what takes longest to open, and what may break the GPU's context, comes last.
GPU_WAYS: dict[str, Callable[[BenchModel, GpuOptions], GpuWay]] = {
    OURS: _edgepose,
    "edgepose, device frame": partial(_edgepose, device_frame=True),
    "edgepose, no graph": partial(_edgepose, cuda_graph=False),
    "same engine, CPU around it": _cpu_around,
    "pytorch": partial(_pytorch, mode="eager"),
    "pytorch, CUDA graph": partial(_pytorch, mode="graph"),
    "pytorch, all on the GPU": _pytorch_everything,
    "onnxruntime CUDA, batched": _onnxruntime,
    "rtmlib, CUDA": _rtmlib,
    "pytorch, compiled": partial(_pytorch, mode="compile"),
}
