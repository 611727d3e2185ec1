"""Engines: what runs the network. One protocol, one file for each runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError, InputError
from edgepose.spec import ModelSpec

__all__ = ["DEVICES", "Engine", "open_engine"]

DEVICES = ("auto", "cpu", "cuda")


class Engine(Protocol):
    """A network that is loaded and checked against its spec.

    Attributes:
        name: the runtime, for instance ``onnxruntime``.
        device: where it runs: ``cpu`` or ``cuda``.
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


def open_engine(
    path: Path, *, spec: ModelSpec | None, device: str, max_batch: int, threads: int | None = None
) -> Engine:
    """Open a model file with the engine that fits it and the device.

    Args:
        path: an ONNX file.
        spec: used in place of the one in the file's metadata; None: the file's own.
        device: ``cpu``, or ``auto`` for the fastest engine of this version that runs here, which is ``cpu`` too.
        max_batch: the largest number of crops in one run.
        threads: CPU threads; None: as many as this process may use.

    Raises:
        InputError: an unknown device.
        EngineError: the device has no engine in this version, or the runtime cannot load the model.
        ModelError: the model file is not usable or contradicts the spec.
    """
    if device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda":
        raise EngineError(
            "device='cuda' needs a GPU engine, and this version has none (TensorRT engines come with the GPU runtime). "
            "Use device='cpu' or device='auto'; `edgepose doctor` shows which engines can run here"
        )
    from edgepose.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, spec=spec, max_batch=max_batch, threads=threads)
