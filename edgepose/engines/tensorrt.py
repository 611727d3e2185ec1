"""TensorRT and TensorRT-RTX on a GPU, one code path; see :class:`edgepose.engines.DeviceEngine`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose import parity, tensorrt_api
from edgepose.enginefile import EngineInfo, cache_path, check_runs_here, parity_path, read_engine
from edgepose.engines.inspection import convolutions_in
from edgepose.engines.kinds import Kind, check_kind
from edgepose.errors import EngineError, MissingDependencyError, ModelError
from edgepose.files import write_atomically
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from edgepose.adapt import Spec

__all__ = ["TensorRTEngine"]

_log = logging.getLogger(__name__)


class TensorRTEngine:
    """An engine file of ``edgepose build``, loaded on the GPU that it was built for.

    The contexts of all batch sizes share one workspace in device memory, so their runs must not overlap: put them on
    one stream, as the pipeline does. For calls that run at the same time load the engine again.

    Args:
        path: the engine; its sidecar lies beside it.
        spec: used in place of the sidecar's; None: the sidecar's. That of the model that the engine was built from does
            too: a foreign one was adapted at the build.
        device_id: CUDA's number of the GPU.
        kind: what the engine must be where no spec is given: a ``pose`` model or a ``detector``.

    Raises:
        EngineError: there is no GPU, the engine was built for another machine or TensorRT, is damaged, does not load,
            or its landmarks are too far from the float32 model's (see :mod:`edgepose.parity`).
        ModelError: the spec given contradicts the engine.
        MissingDependencyError: TensorRT or CuPy is not installed.
    """

    def __init__(self, path: str | Path, *, spec: Spec | None = None, device_id: int = 0, kind: Kind = "pose") -> None:
        path = Path(path)
        info, data = read_engine(path)
        check_kind(
            info.spec, kind if spec is None else "pose" if isinstance(spec, ModelSpec) else "detector", str(path)
        )
        gpu = tensorrt_api.gpu_here(device_id)
        if gpu is None:
            raise EngineError(
                f"{path} needs an NVIDIA GPU, and cuda:{device_id} is none: the driver is missing or there is no such "
                "GPU. `edgepose doctor` shows what is there; on the CPU use the ONNX file"
            )
        # The GPU comes first: the TensorRT that built the engine may not exist for it, so nobody should install that.
        check_runs_here(info, path, flavour=info.flavour, version=info.version, sm=gpu.sm, gpu_name=gpu.name)
        try:
            import cupy
        except ImportError as error:
            raise MissingDependencyError(
                f"a GPU engine needs CuPy, which cannot be imported ({error}); `edgepose doctor` tells which to install"
            ) from error
        api = tensorrt_api.load(info.flavour)
        check_runs_here(info, path, flavour=api.name, version=api.version, sm=gpu.sm, gpu_name=gpu.name)
        self._path, self._api, self._cupy = path, api, cupy
        self.name, self.device_id, self.device = f"{api.name} {api.version}", device_id, f"cuda:{device_id}"
        self.spec: Spec = info.spec if spec is None else _check_spec(spec.canonical(), info, path)
        self.min_batch, _, self.max_batch = info.profile
        self.input_dtype, self.output_dtype = np.dtype(info.input.dtype), np.dtype(info.output.dtype)
        self._info = info
        with cupy.cuda.Device(device_id):
            self._runtime = api.module.Runtime(api.logger)
            self._engine: Any = self._deserialize(data)
            self._pool = cupy.cuda.MemoryPool()  # of its own, so that close gives the memory back to the GPU
            self._workspace_bytes = max(int(self._engine.device_memory_size_v2), 1)
            self._workspace: Any = self._pool.malloc(self._workspace_bytes)
            self._cache: Any = None
            self._cache_read = b""
            self._rtx_config = self._configure_rtx() if api.is_rtx else None
            if info.parity.scope == "graph":
                self._info = self._complete_parity()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(K, heatmap h, heatmap w), or a detector's (Q, 6)."""
        return self._info.output.shape[1:]

    @property
    def info(self) -> EngineInfo:
        """The sidecar; its parity report is this engine's own, measured when it was first loaded on this GPU."""
        return self._info

    def bind(self, images: Any, output: Any) -> Callable[[int], None]:
        """A context for these shapes and addresses; ``run(stream)`` puts a run on a CUDA stream."""
        if self._engine is None:
            raise EngineError(f"the engine {self._path} is closed: open a new Predictor")
        self._check_buffer("images", images, self._info.input.shape, self.input_dtype)
        self._check_buffer("output", output, self._info.output.shape, self.output_dtype)
        with self._cupy.cuda.Device(self.device_id), self._api.collect() as messages:
            context = self._create_context()
            accepted = (
                context is not None
                and self._select_profile(context)
                and context.set_input_shape(self._info.input.name, tuple(images.shape))
                and context.set_tensor_address(self._info.input.name, images.data.ptr)
                and context.set_tensor_address(self._info.output.name, output.data.ptr)
                and tuple(context.get_tensor_shape(self._info.output.name)) == output.shape
            )
            if not accepted:
                raise EngineError(
                    f"{self.name} refused {images.shape} -> {output.shape} for {self._path}: {messages.summary()}"
                )
            context.set_device_memory(self._workspace.ptr, self._workspace_bytes)

        def run(stream: int) -> None:
            with self._api.collect() as reasons:
                accepted = context.execute_async_v3(stream)
            if not accepted:
                raise EngineError(f"{self.name} failed on {self._path} with {images.shape}: {reasons.summary()}")

        return run

    def warmed_up(self) -> None:
        """TensorRT-RTX keeps the kernels that it compiled beside the engine (``model.engine.cache``): the next load
        takes them from there."""
        if self._cache is None:
            return
        compiled = bytes(memoryview(self._cache.serialize()))
        if compiled == self._cache_read:
            return
        try:
            write_atomically(cache_path(self._path), compiled)
        except OSError as error:
            _log.warning("kernels of %s cannot be kept (%s): each load compiles them again", self._path, error)

    def close(self) -> None:
        """Free engine and workspace; contexts that are still referred to die with their closures."""
        self._rtx_config = self._cache = None
        self._engine = self._workspace = self._runtime = None
        self._pool.free_all_blocks()

    def _deserialize(self, data: bytes) -> Any:
        with self._api.collect() as messages:
            if self._api.is_rtx:
                validity, diagnostics = self._runtime.get_engine_validity(data)
                if validity == self._api.module.EngineValidity.INVALID:
                    raise EngineError(
                        f"{self._path} cannot run here: {self.name} says {_text(diagnostics)}. Build it again on this "
                        f"machine: {self._info.rebuild_command(self._path)}"
                    )
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(
                f"{self._path} does not load in {self.name}: {messages.summary()}. Build it again on this machine: "
                f"{self._info.rebuild_command(self._path)}"
            )
        return engine

    def _create_context(self) -> Any:
        """One with our workspace."""
        strategy = self._api.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._engine.create_execution_context(self._rtx_config if self._api.is_rtx else strategy)

    def _select_profile(self, context: Any) -> bool:
        """The only one; older versions choose it by themselves for an engine's first context and for no other."""
        if context.active_optimization_profile == 0:
            return True
        stream = self._cupy.cuda.get_current_stream()
        return bool(context.set_optimization_profile_async(0, stream.ptr))

    def _configure_rtx(self) -> Any:
        """RTX compiles its kernels for the shapes at once, not in the background while we run, and remembers them."""
        module = self._api.module
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # the pipeline captures all of it itself
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache = config.create_runtime_cache()
        path = cache_path(self._path)
        try:
            self._cache_read = path.read_bytes()
            self._cache.deserialize(self._cache_read)  # False: of another GPU or version; RTX compiles anew
        except FileNotFoundError:
            pass  # the first load: `warmed_up` writes it
        except OSError as error:
            _log.warning("%s cannot be read (%s): TensorRT-RTX compiles its kernels again", path, error)
        config.set_runtime_cache(self._cache)
        return config

    def _check_buffer(self, name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        fits = array.shape[1:] == shape[1:] and self.min_batch <= len(array) <= self.max_batch
        if not fits or array.dtype != dtype or not array.flags.c_contiguous:
            raise EngineError(
                f"{name} must be a C-contiguous {dtype} device array of shape (N, {', '.join(map(str, shape[1:]))}) "
                f"with {self.min_batch} <= N <= {self.max_batch}, got {array.dtype} {array.shape}"
            )

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Host arrays (N, 3, h, w) float32 -> (N, *output_shape) float32, min_batch <= N <= max_batch; for checks."""
        cupy = self._cupy
        stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.Device(self.device_id), stream, cupy.cuda.using_allocator(self._pool.malloc):
            source = cupy.asarray(images.astype(self.input_dtype))
            target = cupy.zeros((len(images), *self._info.output.shape[1:]), self.output_dtype)
            self.bind(source, target)(stream.ptr)
            return np.asarray(target.get(), np.float32)

    def _complete_parity(self) -> EngineInfo:
        """The engine was built where it could not run: judge it now, and keep the report for the next time."""
        inspector = self._engine.create_engine_inspector()
        layers = inspector.get_engine_information(self._api.module.LayerInformationFormat.JSON)
        info = parity.complete(self._info, parity_path(self._path), self.run, convolutions=convolutions_in(layers))
        try:
            info.write(self._path)
        except OSError as error:
            _log.warning("the parity report of %s cannot be kept (%s): it is measured at each load", self._path, error)
        return info


def _check_spec(spec: Spec, info: EngineInfo, path: Path) -> Spec:
    w, h = spec.input_size
    wanted: tuple[tuple[int, ...], tuple[int, ...]]
    built = info.input.shape[1:], info.output.shape[1:]
    if isinstance(spec, ModelSpec):
        map_w, map_h = spec.heatmap_size
        wanted, fields = ((3, h, w), (spec.num_keypoints, map_h, map_w)), "input_size, heatmap_size and keypoint_names"
    else:
        wanted, fields = ((3, h, w), built[1]), "input_size"  # how many candidates there are, no spec says
    if wanted != built:
        raise ModelError(
            f"{path} takes {built[0]} and returns {built[1]} (channels, height, width), the spec {spec.name!r} says "
            f"{wanted[0]} and {wanted[1]}: correct its {fields}"
        )
    return spec


def _text(diagnostics: Any) -> str:
    return " ".join(str(diagnostics).replace("EngineInvalidityDiagnostics.", "").split()) or "no reason"
