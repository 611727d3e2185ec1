"""ONNX Runtime on a GPU: all boxes in one batch, OpenCV and NumPy around it.

Steps as in ONNX Runtime's documentation ("I/O Binding", "CUDA Execution Provider"). Choices in its favour:
cuDNN's algorithms searched exhaustively, buffers on the GPU bound once for each batch size, edgepose's own fast twins
crop and decode.

It runs the float32 file, with TF32 where the GPU has it (the provider's default): a float16 network would need another
file, which ONNX Runtime does not make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.errors import MissingDependencyError
from edgepose.kernels import reference

if TYPE_CHECKING:
    from edgepose.benchmarks.gpu_ways import GpuOptions

__all__ = ["BatchedCuda", "check_provider", "check_session"]

PROVIDER = "CUDAExecutionProvider"


class BatchedCuda:
    """See the module. Raises MissingDependencyError where the installed ONNX Runtime has no CUDA, or cannot use it."""

    def __init__(self, model: BenchModel, options: GpuOptions) -> None:
        self.version = f"onnxruntime {onnxruntime.__version__}"
        check_provider()
        settings = {"cudnn_conv_algo_search": "EXHAUSTIVE", "do_copy_in_default_stream": "1"}
        self._session = onnxruntime.InferenceSession(str(model.path), providers=[(PROVIDER, settings)])
        check_session(self._session)
        self._spec = model.spec
        self._names = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        self._bound: dict[int, tuple[Any, ...]] = {}

    def __call__(
        self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        spec = self._spec
        affines, inverses = geometry.crop_transforms(boxes, spec)
        crops, images, binding = self._bind(len(boxes))
        reference.crop_warp(
            frame, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std, out=crops
        )
        images.update_inplace(crops)
        self._session.run_with_iobinding(binding)
        return reference.decode_heatmaps(
            binding.copy_outputs_to_cpu()[0],
            refinement=spec.refinement,
            blur_kernel=spec.blur_kernel,
            cells_to_frame=geometry.cells_to_frame(inverses, spec),
        )

    def _bind(self, count: int) -> tuple[Any, ...]:
        if count not in self._bound:
            width, height = self._spec.input_size
            crops = np.zeros((count, 3, height, width), np.float32)
            images = onnxruntime.OrtValue.ortvalue_from_numpy(crops, "cuda", 0)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._names[0], images)
            binding.bind_output(self._names[1], "cuda", 0)
            self._bound[count] = crops, images, binding
        return self._bound[count]

    def close(self) -> None:
        """Free the session."""
        self._bound = {}
        del self._session


def check_provider() -> None:
    """Raises MissingDependencyError where the installed ONNX Runtime was built without CUDA."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise MissingDependencyError(
            f"the installed onnxruntime has no {PROVIDER}: pip install onnxruntime-gpu in place of onnxruntime (both "
            "are the same module)"
        )


def check_session(session: Any) -> None:
    """Raises MissingDependencyError where a session has fallen back to the CPU, which says so on stderr only."""
    if PROVIDER not in session.get_providers():
        raise MissingDependencyError(f"onnxruntime could not start its {PROVIDER}: its CUDA or cuDNN is missing")
