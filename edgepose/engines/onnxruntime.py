"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

import mmap
import os
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose.engines.kinds import Kind, output_shape, spec_from_metadata
from edgepose.errors import EngineError, MissingDependencyError, ModelError
from edgepose.network_io import Tensor, check_heatmaps, check_image, choose_heatmaps, only_input
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

    from edgepose.adapt import Spec

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime", "open_session", "session_options"]

# ONNX Runtime's names of types that differ from NumPy's.
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
TRANSPOSED = b"\x22\x0dConvTranspose"  # a node's op_type, field 4 of NodeProto: names of nodes may have the word, too
MOST_BYTES = 2**31 - 2**20  # of a model that protobuf writes; larger ones ONNX Runtime reads from their files
_FED = ("tensor(float)", "tensor(float16)")


class OnnxRuntimeEngine:
    """An ONNX model in ONNX Runtime's CPU provider; see :class:`edgepose.engines.Engine`.

    A foreign model (other layout or colour order, several outputs, a detector's raw output) is adapted in memory, see
    :mod:`edgepose.adapt`, and transposed convolutions, which ONNX Runtime runs slowly, become others
    (:mod:`edgepose.subpixel`); any other file is opened as it is. A model whose batch size is fixed (at 1, or at any
    other number) works too: runs are split, the last one is filled up with zeros.

    Args:
        path: the .onnx file.
        spec: used in place of the one in the file's metadata; None: the file's own.
        max_batch: pictures that the input buffer holds.
        threads: CPU threads; None: as many as this process may use.
        kind: the spec to look for in the file's metadata, of a ``pose`` model or of a ``detector``.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelError: the file is not a model, carries no such spec while none is given, or contradicts the spec.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(
        self, path: Path, *, spec: Spec | None, max_batch: int, threads: int | None = None, kind: Kind = "pose"
    ) -> None:
        self._source = str(path)
        self._session: Any
        self.spec: Spec
        self._session, self.spec = _open(path, spec, threads, kind)
        self._input, self._output, self._dtype, self._batch, self._shape = _check_io(
            self._session, self.spec, self._source
        )
        w, h = self.spec.input_size
        self.input_buffer: NDArray[np.float32] = np.zeros((max_batch, 3, h, w), np.float32)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(K, heatmap h, heatmap w), or a detector's (Q, 6)."""
        return self._shape

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 3, h, w) float32 -> (N, *output_shape) float32, new memory."""
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
            found = self._session.run([self._output], {self._input: images})[0]
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed on {self._source} with an input of {images.shape}: {_one_line(error)}"
            ) from error
        found = found[:count]
        # Output dimensions may be symbolic in the file: this is where their values are known for certain.
        if found.shape != (wanted := (count, *self._shape)):
            raise ModelError(_contradiction(self.spec, found.shape, wanted, self._source))
        return np.asarray(found, dtype=np.float32)


def _open(path: Path, spec: Spec | None, threads: int | None, kind: Kind) -> tuple[Any, Spec]:
    """A session of the file itself, or of what :func:`edgepose.adapt.adapt` makes of it, and the spec of that."""
    onnxruntime = import_onnxruntime()
    options = session_options(onnxruntime, threads)
    transposed = _mentions(path, TRANSPOSED)
    as_it_is = kind == "pose" and (spec is None or (isinstance(spec, ModelSpec) and spec.is_canonical))
    if as_it_is and not transposed:
        session = open_session(str(path), options, str(path))
        if spec is None:
            spec = spec_from_metadata(session.get_modelmeta().custom_metadata_map, kind, source=str(path))
        ends = (*session.get_inputs(), *session.get_outputs())
        if isinstance(spec, ModelSpec) and spec.is_canonical and all(end.type in _FED for end in ends):
            return session, spec
        del session
    from edgepose.adapt import adapt  # onnx takes a quarter of a second to import, and our own models need none of it
    from edgepose.modelfile import load_model

    model, _ = load_model(path)
    if spec is None:
        spec = spec_from_metadata({item.key: item.value for item in model.metadata_props}, kind, source=str(path))
    adapted, canonical = adapt(model, spec, source=str(path))
    if transposed and _weight_bytes(adapted) < MOST_BYTES:
        from edgepose.subpixel import subpixel_convolutions

        adapted = subpixel_convolutions(adapted)
    if adapted is model:
        return open_session(str(path), options, str(path)), canonical
    del model
    content = adapted.SerializeToString()
    del adapted  # a ResNet-50's is 136 MB, as much as the bytes, and as much as the session will hold
    return open_session(content, options, str(path)), canonical


def _weight_bytes(model: onnx.ModelProto) -> int:
    """About: as if all weights were float32."""
    size: int = 4 * sum(prod(tensor.dims) for tensor in model.graph.initializer)
    return size


def _mentions(path: Path, word: bytes) -> bool:
    """Whether a file holds a word: a glance that reads 100 MB in a few ms, where parsing them takes half a second."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(word) >= 0
    except (OSError, ValueError):  # not there, not to be read, or empty, which cannot be mapped: who opens it says so
        return False


def open_session(model: str | bytes, options: Any, source: str) -> Any:
    """A session on the CPU of a file or of its bytes.

    Raises:
        ModelError: ONNX Runtime does not take it.
    """
    onnxruntime = import_onnxruntime()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen classes of its own, and plain RuntimeError
        raise ModelError(
            f"{source} does not load in ONNX Runtime {onnxruntime.__version__}; it may "
            f"be cut off, not an ONNX model, or use newer operators. ONNX Runtime says: {_one_line(error)}"
        ) from error


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
    # Between operators its threads wait in a loop, which costs no time; after a run they would go on for milliseconds,
    # on the cores that the decoder, the next crops or the application want. (1.23 ignores this.)
    options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
    options.log_severity_level = 4  # what goes wrong comes as an exception; a library does not write to stderr
    return options


def _check_io(session: Any, spec: Spec, source: str) -> tuple[str, str, np.dtype[Any], int | None, tuple[int, ...]]:
    """The names of input and output, the input's dtype, its fixed batch size or None, and a picture's output shape."""
    inputs, outputs = ([_tensor(value) for value in values] for values in (session.get_inputs(), session.get_outputs()))
    image = only_input(inputs, source)
    if isinstance(spec, ModelSpec):
        chosen = choose_heatmaps(outputs, spec, source)
        assert chosen is not None  # a canonical spec names no output
        check_image(image, spec, source)
        check_heatmaps(chosen, spec, source)
    else:
        (chosen,) = outputs
    batch = image.shape[0] if image.shape else None
    return image.name, chosen.name, np.dtype(image.dtype), batch, output_shape(spec, chosen.shape, source)


def _tensor(value: Any) -> Tensor:
    """An input or output of a session. Sizes that are open have names, or None."""
    dtype = _DTYPES.get(value.type, value.type.removeprefix("tensor(").removesuffix(")"))
    sizes = tuple(size if isinstance(size, int) and size > 0 else None for size in value.shape)
    return Tensor(value.name, dtype, sizes)


def _contradiction(spec: Spec, found: tuple[int, ...], wanted: tuple[int, ...], source: str) -> str:
    if not isinstance(spec, ModelSpec):
        return f"{source}: a detector adapted by edgepose returns {wanted} (batch, candidates, 6), this one {found}"
    advice = "correct the spec's heatmap_size and keypoint_names"
    if len(found) == 4 and found[2:] == wanted[1:3] and found[1] != wanted[1]:
        advice = 'the heatmaps look like nhwc, so say "heatmap_layout": "nhwc"'
    return (
        f"{source}: the spec says heatmaps of {wanted} (batch, keypoints, height, width), the network returned "
        f"{found}: {advice}"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
