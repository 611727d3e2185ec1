"""The ways around a DeviceEngine: edgepose's own on a GPU, and what one writes first, with everything else on the CPU.

Both run the same engine: TensorRT's where it is installed, else PyTorch's float16 behind the same protocol
(benchmarks/torch_engine.py), so what differs is what stands around the network.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose import Predictor, geometry
from edgepose.benchmarks.bench_models import BenchModel, cache_folder
from edgepose.console import messages
from edgepose.kernels import reference

if TYPE_CHECKING:
    from edgepose.benchmarks.gpu_ways import GpuOptions
    from edgepose.engines import DeviceEngine

__all__ = ["CpuAroundEngine", "OnGpu", "open_device_engine"]

Landmarks = tuple[NDArray[Any], NDArray[Any]]  # (N, K, 2) frame px, (N, K) scores


def open_device_engine(model: BenchModel, options: GpuOptions) -> DeviceEngine:
    """TensorRT's where it is installed, built once and kept; else PyTorch's. The engine's ``name`` says which.

    Raises:
        EngineError: TensorRT is installed, but cannot build or open the engine: no other is taken in its place.
    """
    from edgepose import tensorrt_api
    from edgepose.engines.tensorrt import TensorRTEngine

    usable = [one for one in tensorrt_api.installed() if not one.reason]
    if not usable:
        from edgepose.benchmarks.torch_engine import TorchEngine

        return TorchEngine(model.path, precision=options.precision, max_batch=options.max_batch)
    from edgepose.benchmarks.gpu_timing import gpu_facts
    from edgepose.build import build_engine

    facts = gpu_facts()
    parts = (usable[0].name, usable[0].version, facts["name"], options.precision, options.max_batch)
    key = hashlib.sha256(model.path.read_bytes() + repr(parts).encode()).hexdigest()[:12]
    path = cache_folder() / "benchmarks" / f"{model.path.stem}-{key}.engine"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        messages.print(f"building a TensorRT engine of {model.name}, kept in {path.parent}", highlight=False)
        profile = (1, min(8, options.max_batch), options.max_batch)
        build_engine(model.path, path, precision=options.precision, profile=profile)
    return TensorRTEngine(path, spec=None, device_id=0, kind="pose")


class OnGpu:
    """edgepose on a GPU: crop, network and decoder in GPU memory.

    Args:
        device_frame: the frame is in GPU memory when the clock starts, as behind a decoder on the GPU.
        cuda_graph: one CUDA graph for each batch size; without, each kernel is launched for itself.
    """

    def __init__(
        self, model: BenchModel, options: GpuOptions, *, device_frame: bool = False, cuda_graph: bool = True
    ) -> None:
        engine = open_device_engine(model, options)
        self.version = engine.name
        self._device_frame = device_frame
        self._host: NDArray[np.uint8] | None = None  # the frame that _there is a copy of
        self._there: Any = None
        self.predictor = Predictor(engine, max_batch=options.max_batch, cuda_graph=cuda_graph)

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> Landmarks:
        result = self.predictor.predict(self.place(frame), boxes)
        return result.keypoints, result.scores

    def place(self, frame: NDArray[np.uint8]) -> Any:
        if not self._device_frame:
            return frame
        if self._host is not frame:
            import cupy

            self._host, self._there = frame, cupy.asarray(frame)
            cupy.cuda.get_current_stream().synchronize()
        return self._there

    def close(self) -> None:
        """Free everything on the GPU."""
        self.predictor.close()
        self._host = self._there = None


class CpuAroundEngine:
    """The obvious way: crop on the CPU, upload the crops, run the engine, download the heatmaps, decode on the CPU.

    In its favour: edgepose's own fast twins crop and decode, buffers and bindings are made once for each batch size,
    and the host's ends of both copies are pinned memory.
    """

    def __init__(self, model: BenchModel, options: GpuOptions) -> None:
        import cupy

        self._engine = open_device_engine(model, options)
        self.version = self._engine.name
        self._spec = model.spec
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._bound: dict[int, tuple[Any, ...]] = {}

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> Landmarks:
        spec = self._spec
        affines, inverses = geometry.crop_transforms(boxes, spec)
        crops, images, heatmaps, maps, run = self._bind(len(boxes))
        made = reference.crop_warp(
            frame, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std
        )
        np.copyto(crops, made, casting="same_kind")
        images.set(crops, stream=self._stream)
        run(self._stream.ptr)
        heatmaps.get(stream=self._stream, out=maps)
        return reference.decode_heatmaps(
            maps,
            refinement=spec.refinement,
            blur_kernel=spec.blur_kernel,
            cells_to_frame=geometry.cells_to_frame(inverses, spec),
        )

    def _bind(self, count: int) -> tuple[Any, ...]:
        """Pinned crops, device images, device heatmaps, pinned maps, and the run, of so many boxes."""
        import cupy

        if count not in self._bound:
            width, height = self._spec.input_size
            engine = self._engine
            with self._stream:
                images = cupy.zeros((count, 3, height, width), engine.input_dtype)
                heatmaps = cupy.zeros((count, *engine.output_shape), engine.output_dtype)
                run = engine.bind(images, heatmaps)
            crops, maps = _pinned(images.shape, images.dtype), _pinned(heatmaps.shape, heatmaps.dtype)
            self._bound[count] = crops, images, heatmaps, maps, run
        return self._bound[count]

    def close(self) -> None:
        """Free everything on the GPU."""
        self._stream.synchronize()
        self._bound = {}
        self._engine.close()


def _pinned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array in pinned memory, which it keeps alive."""
    import cupy

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array: NDArray[Any] = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size).view(dtype)
    return array.reshape(shape)
