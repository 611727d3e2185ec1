"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError, MissingDependencyError, ModelError
from edgepose.spec import ModelSpec

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime", "session_options"]

_DTYPES: dict[str, type[np.float32] | type[np.float16]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntimeEngine:
    """An ONNX model in ONNX Runtime's CPU provider; see :class:`edgepose.engines.Engine`.

    A model whose batch size is fixed (at 1, or at any other number) works too: runs are split, the last one is filled
    up with zeros.

    Args:
        path: the .onnx file.
        spec: used in place of the one in the file's metadata; None: the file's own.
        max_batch: crops that the input buffer holds.
        threads: CPU threads; None: as many as this process may use.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelError: the file is not a model, carries no spec while none is given, or contradicts the spec.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, path: Path, *, spec: ModelSpec | None, max_batch: int, threads: int | None = None) -> None:
        onnxruntime = import_onnxruntime()
        self._source = str(path)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises a dozen classes of its own, and plain RuntimeError
            raise ModelError(
                f"{path} does not load in ONNX Runtime {onnxruntime.__version__}; it may "
                f"be cut off, not an ONNX model, or use newer operators. ONNX Runtime says: {_one_line(error)}"
            ) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.spec = spec or ModelSpec.from_metadata(metadata, source=self._source)
        self._input, self._output, self._dtype, self._batch = _check_io(self._session, self.spec, self._source)
        w, h = self.spec.input_size
        self.input_buffer: NDArray[np.float32] = np.zeros((max_batch, 3, h, w), np.float32)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 3, h, w) float32 -> heatmaps (N, K, heatmap h, heatmap w) float32, new memory."""
        if self._session is None:
            raise EngineError(f"the engine of {self._source} is closed: open a new Predictor")
        step = self._batch or len(images)
        parts = [self._run_once(images[start : start + step]) for start in range(0, len(images), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _run_once(self, crops: NDArray[np.float32]) -> NDArray[np.float32]:
        count = len(crops)
        images = crops.astype(self._dtype, copy=False)
        if self._batch and count < self._batch:
            filled = np.zeros((self._batch, *images.shape[1:]), images.dtype)
            filled[:count] = images
            images = filled
        try:
            heatmaps = self._session.run([self._output], {self._input: images})[0]
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed on {self._source} with an input of {images.shape}: {_one_line(error)}"
            ) from error
        heatmaps = heatmaps[:count]
        w, h = self.spec.heatmap_size
        # Output dimensions may be symbolic in the file: this is where their values are known for certain.
        if heatmaps.shape != (count, self.spec.num_keypoints, h, w):
            raise ModelError(
                f"{self._source}: the spec says heatmaps of {(count, self.spec.num_keypoints, h, w)} (batch, "
                f"keypoints, height, width), the network returned {heatmaps.shape}: correct the spec's "
                "heatmap_size and keypoint_names"
            )
        return np.asarray(heatmaps, dtype=np.float32)


def import_onnxruntime() -> Any:
    """The module. Raises MissingDependencyError, with the command that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
    return onnxruntime


def session_options(onnxruntime: Any, threads: int | None) -> Any:
    """Of every session on the CPU: quiet, and with as many threads as the process may use, or as asked for."""
    options = onnxruntime.SessionOptions()
    # Left to itself, ONNX Runtime starts a thread on each physical core and pins it there: the best choice on a whole
    # machine. In a container or under taskset, pinning to a CPU outside the process's set fails (a warning for each
    # thread), and more threads than CPUs make every run wait for the slowest: there the number is given instead.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    confined = usable < (os.cpu_count() or 1)
    options.intra_op_num_threads = threads or (usable if confined else 0)
    # These networks are one chain of convolutions: parallel branches would take threads from the convolutions.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what goes wrong comes as an exception; a library does not write to stderr
    return options


def _check_io(session: Any, spec: ModelSpec, source: str) -> tuple[str, str, type[Any], int | None]:
    """The names of input and output, the input's dtype, and its fixed batch size or None."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{source}: a heatmap model has one input and one output, this one has inputs {_signature(inputs)} and "
            f"outputs {_signature(outputs)} (two outputs for x and y are a SimCC model, which is not supported)"
        )
    (image,), (heatmaps,) = inputs, outputs
    if image.type not in _DTYPES or heatmaps.type not in _DTYPES:
        raise ModelError(
            f"{source}: input and output must be float or float16, got {image.type} and {heatmaps.type}: "
            "export the model without quantised inputs"
        )
    w, h = spec.input_size
    _compare(source, "input", image.shape, (None, 3, h, w), stated=f"input_size {w} x {h}")
    w, h = spec.heatmap_size
    expected = (None, spec.num_keypoints, h, w)
    _compare(source, "output", heatmaps.shape, expected, stated=f"heatmap_size {w} x {h}, {expected[1]} keypoints")
    batch = image.shape[0]
    return image.name, heatmaps.name, _DTYPES[image.type], batch if isinstance(batch, int) and batch > 0 else None


def _compare(source: str, what: str, found: Any, wanted: tuple[int | None, ...], *, stated: str) -> None:
    """Raise if a known dimension differs; symbolic dimensions (strings, None) agree with everything."""
    if len(found) != 4:
        raise ModelError(f"{source}: the {what} must have 4 dimensions (batch, channels, height, width), got {found}")
    for name, have, want in zip(("batch", "channels", "height", "width"), found, wanted, strict=True):
        if isinstance(have, int) and want is not None and have != want:
            raise ModelError(
                f"{source}: model and spec disagree on the {what}'s {name}: the model has {have}, the spec says {want} "
                f"(model: {list(found)}; spec: {stated}). Correct the spec, or pass the model that it belongs to"
            )


def _signature(values: Any) -> str:
    return "[" + ", ".join(f"{v.name} {v.shape}" for v in values) + "]"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
