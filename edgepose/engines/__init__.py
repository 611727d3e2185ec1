"""Engines: what runs the network. Two protocols, for host and for device memory; one file for each runtime.

An engine runs a pose model or a detector, adapted to the one form that pipelines know (:mod:`edgepose.adapt`): pictures
in, RGB and normalised; heatmaps or rows of boxes out. Its ``spec`` is that of the adapted network, and says which.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepose.engines.kinds import Kind
from edgepose.errors import EngineError, InputError
from edgepose.models import ENGINE_SUFFIXES

if TYPE_CHECKING:
    from edgepose.adapt import Spec

__all__ = ["DeviceEngine", "Engine", "Kind", "check_device", "open_engine"]


@runtime_checkable
class Engine(Protocol):
    """A network that takes arrays in host memory, loaded and checked against its spec.

    Attributes:
        name: the runtime, for instance ``onnxruntime``.
        device: where it runs, for instance ``cpu``.
        spec: what the adapted network expects and returns: a ModelSpec, or a DetectorSpec.
        output_shape: of one picture: a pose model's (K, heatmap h, heatmap w); a detector's (Q, 6).
        input_buffer: (max_batch, 3, h, w) float32. Allocated once; pictures are written into it in place. It belongs to
            the engine and never reaches a caller of ``predict``.
    """

    name: str
    device: str
    spec: Spec
    input_buffer: NDArray[np.float32]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """See the class."""
        ...

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Heatmaps of normalised crops, or a detector's rows of normalised pictures.

        Args:
            images: (N, 3, h, w) float32, RGB, normalised, 1 <= N <= max_batch; usually a part of ``input_buffer``.
                The engine rounds them where the network takes float16.

        Returns:
            (N, *output_shape) float32; new memory, the caller's. A detector's row: x1, y1, x2, y2 in px of the
            network's input, score, label.

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
        spec: what the adapted network expects and returns: a ModelSpec, or a DetectorSpec.
        output_shape: of one picture: a pose model's (K, heatmap h, heatmap w), a detector's (Q, 6).
        device_id: CUDA's number of the device.
        min_batch, max_batch: pictures that one run takes.
        input_dtype, output_dtype: float32 or float16, of the two buffers.
    """

    name: str
    device: str
    spec: Spec
    device_id: int
    min_batch: int
    max_batch: int
    input_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """See the class."""
        ...

    def bind(self, images: Any, output: Any) -> Callable[[int], None]:
        """Prepare runs at fixed addresses.

        Args:
            images: (N, 3, h, w) ``input_dtype`` device array (CuPy), min_batch <= N <= max_batch. Stays the caller's,
                as does
            output: (N, *output_shape) ``output_dtype`` device array; both must outlive the runs.

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
    path: Path, *, spec: Spec | None, device: str, max_batch: int, threads: int | None = None, kind: Kind = "pose"
) -> Engine | DeviceEngine:
    """Open a model file with the engine that fits it.

    Args:
        path: an ONNX file runs on the CPU, an .engine file (``edgepose build``) on the GPU.
        spec: used in place of the one that comes with the file; None: the file's own.
        device: ``auto``: where the file runs. ``cpu``, ``cuda`` or ``cuda:N`` insist.
        max_batch: the largest number of pictures in one run of a CPU engine; a GPU engine's was fixed when it was
            built.
        threads: CPU threads; None: as many as this process may use.
        kind: what the file must be where no spec is given: a ``pose`` model or a ``detector``.

    Raises:
        InputError: an unknown device.
        EngineError: the file does not run on the device, or not on this machine; the message says what does.
        ModelError: the model file is not usable, is of the other kind, or contradicts the spec.
        MissingDependencyError: the runtime is not installed.
    """
    check_device(device)
    if path.suffix.lower() in ENGINE_SUFFIXES:
        if device == "cpu":
            raise EngineError(f"{path} is a TensorRT engine and runs on a GPU only: use the ONNX file on the CPU")
        from edgepose.engines.tensorrt import TensorRTEngine

        number = int(device[5:]) if device.startswith("cuda:") else 0
        return TensorRTEngine(path, spec=spec, device_id=number, kind=kind)
    if device.startswith("cuda"):
        engine = path.with_suffix(".engine")
        raise EngineError(
            f"device={device!r} needs an engine built for the GPU, and {path.name} is an ONNX file. Build one on the "
            f"machine that will run it and open that: edgepose build {shlex.quote(str(path))} -o "
            f"{shlex.quote(str(engine))}, then Predictor({str(engine)!r}). `edgepose doctor` shows what this machine "
            "lacks for it"
        )
    from edgepose.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, spec=spec, max_batch=max_batch, threads=threads, kind=kind)
