"""TensorRT's part of a build: parse the graph, set up the builder, run it, watch its progress."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx

from edgepose.enginefile import BuildOptions, TensorInfo
from edgepose.engines.kinds import output_shape
from edgepose.errors import EngineError, InputError, ModelError
from edgepose.tensorrt_api import Api, Messages

if TYPE_CHECKING:
    from edgepose.adapt import Spec

__all__ = ["Network", "build_network"]

_DTYPES = {"HALF": "float16", "FLOAT": "float32"}


@dataclass(frozen=True)
class Network:
    """A built engine and what the network definition said, which without a GPU the engine itself does not.

    Attributes:
        engine: the serialised engine.
        input, output: of the network.
        convolutions: convolution layers by the type they compute in.
        warnings: of TensorRT.
    """

    engine: bytes
    input: TensorInfo
    output: TensorInfo
    convolutions: dict[str, int]
    warnings: tuple[str, ...]


def build_network(
    api: Api,
    model: onnx.ModelProto,
    spec: Spec,
    profile: tuple[int, int, int],
    targets: tuple[str, ...],
    options: BuildOptions,
    progress: Callable[[str, float], None],
) -> Network:
    """Build a graph as it is: strongly typed.

    Raises:
        ModelError: TensorRT cannot parse the graph, or understands another input or output than the spec.
        EngineError: the builder cannot be made here, or failed.
        InputError: an option is not one that this TensorRT takes.
        KeyboardInterrupt: Ctrl-C came; the build has ended.
    """
    trt = api.module
    with api.collect() as messages:
        try:
            builder = trt.Builder(api.logger)
        except (TypeError, RuntimeError) as error:  # pybind11's words for a factory that returned nothing
            raise EngineError(
                f"{api.name} {api.version} cannot build here; it needs a GPU that it supports and a driver that is new "
                f"enough (`edgepose doctor` shows both). {messages.summary()} ({' '.join(str(error).split())})"
            ) from error
        network = builder.create_network(api.network_flags)
        # The network must be alive for as long as the parser is: both stay in this frame.
        parser = trt.OnnxParser(network, api.logger)
        progress("parsing", 0.0)
        if not parser.parse(model.SerializeToString()):
            raise ModelError(_parse_errors(api, parser, messages))
        image, heatmaps = _check_network(network, spec)
        config = _configure(api, builder, network, spec, profile, targets, options)
        monitor = _make_monitor(trt, progress)
        config.progress_monitor = monitor
        with _interruptible(monitor.state):
            serialized = builder.build_serialized_network(network, config)
        if monitor.state.error is not None:
            raise monitor.state.error
        if serialized is None:
            raise EngineError(
                f"{api.name} {api.version} could not build {spec.name}. {messages.summary()}. On a GPU with little "
                "free memory a smaller --max-batch or --workspace helps"
            )
        return Network(
            bytes(memoryview(serialized)), image, heatmaps, _count_convolutions(trt, network), tuple(messages.warnings)
        )


# The network ------------------------------------------------------------------------------------------


def _parse_errors(api: Api, parser: Any, messages: Messages) -> str:
    errors = []
    for index in range(min(parser.num_errors, 5)):
        parser_error = parser.get_error(index)
        operator, name = parser_error.node_operator(), parser_error.node_name()
        where = f"{operator} {name!r}: " if operator else ""
        reason = " ".join(parser_error.desc().split())[:300]
        errors.append(f"{where}{'it has no such operator' if reason == 'false' else reason}")
    reasons = "; ".join(dict.fromkeys(errors)) or messages.summary()
    return f"{api.name} {api.version} cannot take this model: {reasons}"


def _check_network(network: Any, spec: Spec) -> tuple[TensorInfo, TensorInfo]:
    """Input and output as TensorRT sees them, -1 for the batch, sizes that the graph leaves open as the spec says."""
    w, h = spec.input_size
    image, output = network.get_input(0), network.get_output(0)
    stated = tuple(size if size >= 0 else None for size in tuple(output.shape))
    found = []
    for tensor, wanted in ((image, (3, h, w)), (output, output_shape(spec, stated, spec.name))):
        shape, kind = tuple(tensor.shape), str(tensor.dtype).rpartition(".")[2]
        agrees = len(shape) == len(wanted) + 1 and all(a in {-1, b} for a, b in zip(shape[1:], wanted, strict=True))
        if not agrees or kind not in _DTYPES:
            raise ModelError(
                f"TensorRT sees {tensor.name} as {kind} {shape}; by the spec it is float {(-1, *wanted)}: correct the "
                "spec's input_size, heatmap_size or keypoint_names"
            )
        found.append(TensorInfo(tensor.name, _DTYPES[kind], (-1, *wanted)))
    return found[0], found[1]


def _count_convolutions(trt: Any, network: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in {trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION}:
            kind = str(layer.get_output(0).dtype).rpartition(".")[2]
            name = _DTYPES.get(kind, kind.lower())
            counts[name] = counts.get(name, 0) + 1
    return counts


# The builder ------------------------------------------------------------------------------------------


def _configure(
    api: Api,
    builder: Any,
    network: Any,
    spec: Spec,
    profile: tuple[int, int, int],
    targets: tuple[str, ...],
    options: BuildOptions,
) -> Any:
    trt = api.module
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then names types; costs a few kB
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if api.is_rtx:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index):
                raise InputError(f"{api.name} {api.version} does not take the target {target}")
    tensor = network.get_input(0)
    if -1 in tuple(tensor.shape):
        w, h = spec.input_size
        optimization_profile = builder.create_optimization_profile()
        optimization_profile.set_shape(tensor.name, *((batch, 3, h, w) for batch in profile))
        if config.add_optimization_profile(optimization_profile) < 0:
            raise EngineError(f"{api.name} does not take the batch sizes {profile} for {tensor.name}")
    return config


# Progress and cancelling ------------------------------------------------------------------------------


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass
class _BuildState:
    """Phases that TensorRT is in, by name, and why the build must end."""

    phases: dict[str, _Phase] = field(default_factory=dict)
    error: BaseException | None = None
    furthest: float = 0.0

    def fraction(self) -> float:
        """How far the build is: an inner phase is one step of the phase around it. Never goes back."""

        def within(parent: str | None) -> float:
            shares = [
                min(1.0, (phase.done + within(name)) / phase.steps)
                for name, phase in self.phases.items()
                if phase.parent == parent
            ]
            return max(shares, default=0.0)

        self.furthest = max(self.furthest, min(1.0, within(None)))
        return self.furthest


def _make_monitor(trt: Any, progress: Callable[[str, float], None]) -> Any:
    """TensorRT's progress monitor; called from TensorRT's threads, where an exception must not pass through C++."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a base that is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # pybind11 asks for this very call
            self.state = _BuildState()
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self.state.phases[phase_name] = _Phase(parent_phase, max(1, num_steps))
                self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase := self.state.phases.get(phase_name):
                    phase.done = step + 1
                self._tell(phase_name)
                return self.state.error is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self.state.phases.pop(phase_name, None)

        def _tell(self, phase_name: str) -> None:
            if self.state.error is None:
                try:
                    progress(phase_name.lower(), self.state.fraction())
                except BaseException as error:  # kept, and raised when TensorRT has returned
                    self.state.error = error

    return Monitor()


@contextlib.contextmanager
def _interruptible(state: _BuildState) -> Iterator[None]:
    """Turn Ctrl-C into the end of the build at TensorRT's next step.

    Python's own handler raises KeyboardInterrupt wherever Python code happens to run: inside of a callback that C++
    called, where nothing may be raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(*_: Any) -> None:
        state.error = state.error or KeyboardInterrupt()

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)  # None: a handler that is not Python's
