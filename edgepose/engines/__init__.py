"""Engines: what runs the network. Two protocols, for host and for device memory; one file for each runtime."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError, InputError
from edgepose.models import ENGINE_SUFFIXES
from edgepose.spec import ModelSpec

__all__ = ["DeviceEngine", "Engine", "check_device", "open_engine"]


@runtime_checkable
class Engine(Protocol):
    """A network that takes arrays in host memory, loaded and checked against its spec.

    Attributes:
        name: the runtime, for instance ``onnxruntime``.
        device: where it runs, for instance ``cpu``.
        spec: what the network expects and returns.
        input_buffer: (max_batch, 3, h, w) float32. Allocated once; crops are written into it in place. It belongs to
            the engine and never reaches a caller of ``predict``.
    """

    name: str
    device: str
    spec: ModelSpec
    input_buffer: NDArray[np.float32]

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Heatmaps of normalised crops.

        Args:
            images: (N, 3, h, w) float32, RGB, normalised, 1 <= N <= max_batch; usually a part of ``input_buffer``.
                The engine rounds them where the network takes float16.

        Returns:
            (N, K, heatmap h, heatmap w) float32; new memory, the caller's.

        Raises:
            EngineError: the runtime failed.
            ModelError: the network's output is not what the spec says.
        """
        ...

    def close(self) -> None:
        """Free the network. Closing twice is fine."""
        ...


@runtime_checkable
class DeviceEngine(Protocol):
    """A network that reads and writes device memory, loaded and checked against its spec.

    Attributes:
        name: the runtime, for instance ``tensorrt 10.13``.
        device: where it runs, for instance ``cuda:0``.
        spec: what the network expects and returns.
        device_id: CUDA's number of the device.
        min_batch, max_batch: crops that one run takes.
        input_dtype, output_dtype: float32 or float16, of the two buffers.
    """

    name: str
    device: str
    spec: ModelSpec
    device_id: int
    min_batch: int
    max_batch: int
    input_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]

    def bind(self, images: Any, heatmaps: Any) -> Callable[[int], None]:
        """Prepare runs at fixed addresses.

        Args:
            images: (N, 3, h, w) ``input_dtype`` device array (CuPy), min_batch <= N <= max_batch. Stays the caller's,
                as does
            heatmaps: (N, K, heatmap h, heatmap w) ``output_dtype`` device array; both must outlive the runs.

        Returns:
            ``run(stream)``: puts one run on a CUDA stream (its address as an integer) and returns at once. Once it has
            run and been waited for, it can be captured into a CUDA graph. Runs of one engine must not overlap: they
            share the network's workspace.

        Raises:
            EngineError: the runtime refused the shapes, or failed.
        """
        ...

    def warmed_up(self) -> None:
        """Every run that will be used has run once: the moment to keep what was compiled on the way, if anything."""
        ...

    def close(self) -> None:
        """Free the network; nothing may be running. Closing twice is fine."""
        ...


def check_device(device: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as it is. Raises InputError for anything else."""
    if isinstance(device, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        return device
    raise InputError(f"device must be auto, cpu, cuda, or cuda:0, cuda:1, ... (a certain GPU), got {device!r}")


def open_engine(
    path: Path, *, spec: ModelSpec | None, device: str, max_batch: int, threads: int | None = None
) -> Engine | DeviceEngine:
    """Open a model file with the engine that fits it.

    Args:
        path: an ONNX file runs on the CPU, an .engine file (``edgepose build``) on the GPU.
        spec: used in place of the one that comes with the file; None: the file's own.
        device: ``auto``: where the file runs. ``cpu``, ``cuda`` or ``cuda:N`` insist.
        max_batch: the largest number of crops in one run of a CPU engine; a GPU engine's was fixed when it was built.
        threads: CPU threads; None: as many as this process may use.

    Raises:
        InputError: an unknown device.
        EngineError: the file does not run on the device, or not on this machine; the message says what does.
        ModelError: the model file is not usable or contradicts the spec.
        MissingDependencyError: the runtime is not installed.
    """
    check_device(device)
    if path.suffix.lower() in ENGINE_SUFFIXES:
        if device == "cpu":
            raise EngineError(f"{path} is a TensorRT engine and runs on a GPU only: use the ONNX file on the CPU")
        from edgepose.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(path, spec=spec, device_id=int(device[5:]) if device.startswith("cuda:") else 0)
    if device.startswith("cuda"):
        engine = path.with_suffix(".engine")
        raise EngineError(
            f"device={device!r} needs an engine built for the GPU, and {path.name} is an ONNX file. Build one on the "
            f"machine that will run it and open that: edgepose build {shlex.quote(str(path))} -o "
            f"{shlex.quote(str(engine))}, then Predictor({str(engine)!r}). `edgepose doctor` shows what this machine "
            "lacks for it"
        )
    from edgepose.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, spec=spec, max_batch=max_batch, threads=threads)
