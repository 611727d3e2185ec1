"""A stand-in for TensorRT's runtime on the stand-in's GPU: ONNX Runtime runs the model that the engine came from.

For engines that TensorRT-RTX has really built. Names and signatures are TensorRT's (tests/test_tensorrt_api.py holds
the product to them); this module knows only those that edgepose.engines.tensorrt uses.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgepose.engines.onnxruntime import OnnxRuntimeEngine
from edgepose.tensorrt_api import Api

WORKSPACE = 4096


def fake_api(real: Api, onnx: Path, *, change: Any = None) -> Api:
    """The flavour and version of the real one, so that its engines are taken for this one's.

    ``change``: heatmaps -> heatmaps, an engine that computes something else than its model.
    """
    network = OnnxRuntimeEngine(onnx, spec=None, max_batch=16, threads=1)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert logger is real.logger

        def get_engine_validity(self, data: bytes) -> tuple[Any, Any]:
            good = data[4:8] != b"BAD!"
            return (EngineValidity.VALID, []) if good else (EngineValidity.INVALID, ["UNSUPPORTED_CC"])

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            return None if data[4:8] == b"NONE" else FakeEngine(network, change)

    module = SimpleNamespace(
        Runtime=Runtime,
        EngineValidity=EngineValidity,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        CudaGraphStrategy=SimpleNamespace(DISABLED="disabled"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    return Api(real.name, module, real.version, real.logger, real._collecting)


class EngineValidity(Enum):
    VALID = 0
    INVALID = 2


class RuntimeCache:
    """Takes what begins as its own does, and grows with each context that runs, as kernels are compiled for shapes."""

    def __init__(self) -> None:
        self.content = b"fake"

    def deserialize(self, data: bytes) -> bool:
        if data.startswith(b"fake"):
            self.content = data
        return data.startswith(b"fake")

    def add(self, shape: tuple[int, ...]) -> None:
        entry = f" {shape[0]}".encode()
        if entry not in self.content:
            self.content += entry

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    strategy = ""

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class FakeEngine:
    device_memory_size_v2 = WORKSPACE

    def __init__(self, network: OnnxRuntimeEngine, change: Any) -> None:
        self._network, self._change = network, change

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: Any) -> Any:
        if isinstance(config, RuntimeConfig):  # TensorRT-RTX
            assert (config.cuda_graph_strategy, config.dynamic_shapes_kernel_specialization_strategy) == (
                "disabled",
                "eager",
            )
            config, cache = config.strategy, config.cache
        assert config == "user managed"
        return FakeContext(self._network, self._change, cache)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda format: '{"Layers": []}')


class FakeContext:
    def __init__(self, network: OnnxRuntimeEngine, change: Any, cache: RuntimeCache) -> None:
        self._network, self._change, self._cache = network, change, cache
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._workspace = 0
        self.active_optimization_profile = -1  # as the second context of an engine in older versions

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream > 2  # not the default one
        self.active_optimization_profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return name == "images" and self.active_optimization_profile == 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in ("images", "heatmaps") and address % 256 == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "heatmaps"
        spec = self._network.spec
        return (self._shape[0], spec.num_keypoints, *spec.heatmap_size[::-1])

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= WORKSPACE
        self._workspace = address

    def execute_async_v3(self, stream: int) -> bool:
        import cupy

        assert self._workspace
        self._cache.add(self._shape)
        source, target = self._view("images", self._shape), self._view("heatmaps", self.get_tensor_shape("heatmaps"))

        def compute(_: Any) -> None:
            heatmaps = self._network.run(source.astype(np.float32))
            target[:] = heatmaps if self._change is None else self._change(heatmaps)

        cupy.cuda.ExternalStream(stream).launch_host_func(compute, None)
        return True

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The engines of these tests are float16 at both ends."""
        size = int(np.prod(shape)) * 2
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self._addresses[name]), np.float16).reshape(shape)
