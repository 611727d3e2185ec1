"""The ways from a frame and boxes to landmarks on the CPU: ours, and those of others, one short file each in peers/.

A way of your own joins them with `edgepose bench latency --peer my_peer.py:MyPeer`; it is compared and timed as the
others are. my_peer.py:

    import cv2

    from edgepose.benchmarks.peers import mmpose_steps, opencv_steps
    from edgepose.benchmarks.ways import UnavailableError, model_file

    class MyPeer:
        '''OpenCV's own DNN module, all boxes in one batch.'''

        def __init__(self, model, options):
            if options.precision != "fp32":
                raise UnavailableError("fp32 only")
            self.name, self.version = "OpenCV DNN", f"opencv {cv2.__version__}"
            self.spec, self.net = model.spec, cv2.dnn.readNet(str(model_file(model, options)))

        def __call__(self, frame, boxes):
            pictures, affines = opencv_steps.crop_pictures(frame, boxes, self.spec)
            self.net.setInput(opencv_steps.network_input(pictures, self.spec))
            return mmpose_steps.landmarks(self.net.forward(), affines, self.spec)

        def close(self):
            self.net = None

Only what it returns counts, as :class:`Way` says: cut and decode otherwise if you like, but the landmarks must be the
model's, to a twentieth of a px of the crop. At int8 it is opened a second time, with a quantised file.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepose import Predictor, geometry
from edgepose.benchmarks.bench_models import BenchModel, int8_of
from edgepose.benchmarks.scenes import scene
from edgepose.errors import EdgePoseError, InputError
from edgepose.kernels.reference import crop_warp

__all__ = [
    "INT8_WAYS",
    "OURS",
    "PRECISIONS",
    "QUICK_WAYS",
    "SLOW_WAYS",
    "WAYS",
    "EdgePose",
    "Explained",
    "Factory",
    "OwnCrops",
    "Selection",
    "Staged",
    "UnavailableError",
    "Way",
    "WayOptions",
    "key_of",
    "load_peer",
    "model_file",
    "open_way",
    "open_ways",
    "session_threads",
    "usable_cpus",
]

OURS = "edgepose"
PRECISIONS = ("fp32", "int8")


class UnavailableError(EdgePoseError):
    """A way cannot run here; the message says why, and what to install where that helps."""


@dataclass(frozen=True)
class WayOptions:
    """How a way is opened.

    Attributes:
        threads: of its network; None: all CPUs that this process may use.
        precision: of its network, fp32 or int8; see :func:`model_file`.
        device: where it runs. What this file opens runs on the CPU; gpu_ways.py has the others.
        max_batch: the most boxes in one call, so that it can allocate once.
    """

    threads: int | None = None
    precision: str = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    max_batch: int = 16


class Way(Protocol):
    """A way, opened. ``name``: in tables; ``version``: of what runs its network."""

    name: str
    version: str

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Landmarks of each box.

        Args:
            frame: (H, W, 3) uint8 BGR. It is shared: nobody writes into it.
            boxes: (N, 4) float32 xyxy, frame px, an integer is a pixel's centre.

        Returns:
            Keypoints (N, K, 2), frame px, and scores (N, K), the peak of each heatmap.
        """
        ...

    def close(self) -> None:
        """Free it."""
        ...


@runtime_checkable
class Staged(Protocol):
    """A way that tells how long the stages of its last call took, ms: crop, network, decode."""

    stages: Mapping[str, float]


@runtime_checkable
class OwnCrops(Protocol):
    """A way whose crops differ from what OpenCV's warpAffine cuts for the other ways; see equality.py."""

    def meant(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """The keypoints (N, K, 2), frame px, of the float32 model on the crops of this way, found by code of others."""
        ...


@runtime_checkable
class Explained(Protocol):
    """A way that goes back to the frame by another formula than its crops were cut by."""

    def explained(self, keypoints: NDArray[Any], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """The keypoints (N, K, 2), frame px, that its network's heatmaps mean."""
        ...


Factory = Callable[[BenchModel, WayOptions], Way]


class EdgePose:
    """Ours: ``Predictor.predict`` with its defaults. ``precision`` says which file it opens, nothing else."""

    def __init__(self, model: BenchModel, options: WayOptions) -> None:
        self._predictor = Predictor(
            model_file(model, options), device="cpu", max_batch=options.max_batch, threads=options.threads
        )
        self.name = OURS
        self._model = model
        self.version = f"edgepose {version('edgepose')}, {self._predictor.engine_name}"
        self.stages: Mapping[str, float] = {}

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        result = self._predictor.predict(frame, boxes)
        timings = result.timings
        self.stages = {"crop": timings.crop, "network": timings.network, "decode": timings.decode}
        return result.keypoints, result.scores

    def meant(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """On crops as OpenCV 4 cuts them, bit for bit: by plain ONNX Runtime, and decoded by MMPose's steps."""
        from edgepose.benchmarks.peers import mmpose_steps, onnxruntime_way

        spec = self._model.spec
        affines = geometry.crop_affines(boxes, spec.input_size, spec.codec, spec.padding)
        images = crop_warp(frame, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std)
        heatmaps = onnxruntime_way.heatmaps_of(self._model.path, images)
        keypoints, _ = mmpose_steps.landmarks(heatmaps, affines, spec)
        return keypoints

    def batch(self, frames: Sequence[NDArray[np.uint8]], boxes: Sequence[NDArray[np.float32]]) -> None:
        """Several frames in one call; for throughput.py, which only counts them."""
        self._predictor.predict_batch(frames, boxes)

    def close(self) -> None:
        """Close the predictor."""
        self._predictor.close()


def _pytorch(model: BenchModel, options: WayOptions, *, mode: str = "eager") -> Way:
    from edgepose.benchmarks.peers.pytorch_way import PyTorchWay

    return PyTorchWay(model, options, mode=mode)


def _rtmlib(model: BenchModel, options: WayOptions, *, backend: str = "onnxruntime") -> Way:
    from edgepose.benchmarks.peers.rtmlib_way import RtmlibWay

    return RtmlibWay(model, options, backend=backend)


def _onnxruntime(model: BenchModel, options: WayOptions, *, batched: bool) -> Way:
    from edgepose.benchmarks.peers.onnxruntime_way import OnnxRuntimeWay

    return OnnxRuntimeWay(model, options, batched=batched)


def _openvino(model: BenchModel, options: WayOptions) -> Way:
    from edgepose.benchmarks.peers.openvino_way import OpenVinoWay

    return OpenVinoWay(model, options)


WAYS: dict[str, Factory] = {
    OURS: EdgePose,
    "pytorch": _pytorch,
    "pytorch, channels last": partial(_pytorch, mode="channels last"),
    "pytorch, frozen": partial(_pytorch, mode="frozen"),
    "pytorch, compiled": partial(_pytorch, mode="compiled"),
    "rtmlib": _rtmlib,
    "rtmlib, openvino": partial(_rtmlib, backend="openvino"),
    "onnxruntime loop": partial(_onnxruntime, batched=False),
    "onnxruntime batched": partial(_onnxruntime, batched=True),
    "openvino": _openvino,
}
# Those that take an INT8 file as they take any other. PyTorch does not read one.
INT8_WAYS = (OURS, "rtmlib", "onnxruntime batched", "openvino")
# Those that take minutes to open: they take part where they are asked for
SLOW_WAYS = ("pytorch, compiled",)
# Those that open at once
QUICK_WAYS = (OURS, "rtmlib", "onnxruntime loop", "onnxruntime batched", "openvino")


@dataclass(frozen=True)
class Selection:
    """Which ways are compared.

    Attributes:
        ways: names in WAYS; empty: all but SLOW_WAYS; ``all``: all. Ours at fp32 always takes part, since the others
            are compared with it.
        without: names that are left out.
        precisions: of the networks; INT8_WAYS and peers of the user's run at more than fp32.
        peers: of the user's, ``file.py:Name``.
        threads: see WayOptions.
    """

    ways: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    precisions: tuple[str, ...] = PRECISIONS
    peers: tuple[str, ...] = ()
    threads: int | None = None

    def factories(self) -> dict[tuple[str, str], Factory]:
        """By name and precision, fp32 before others. Raises InputError for a name or precision that there is not."""
        named = set(WAYS) if "all" in self.ways else set(self.ways) or set(WAYS) - set(SLOW_WAYS)
        chosen, left_out = named | {OURS}, set(self.without)
        if unknown := sorted((chosen | left_out) - set(WAYS)):
            raise InputError(f"there is no way {unknown[0]!r}; the ways are: all; {'; '.join(WAYS)}")
        if odd := sorted(set(self.precisions) - set(PRECISIONS)):
            raise InputError(f"a precision is one of {', '.join(PRECISIONS)}, got {odd[0]!r}")
        if OURS in left_out:
            raise InputError(f"{OURS} is what the others are compared with: it cannot be left out")
        own = {peer.rpartition(":")[2]: load_peer(peer) for peer in self.peers}
        if taken := sorted(set(own) & set(WAYS)):
            raise InputError(f"a way {taken[0]!r} is there already: give your peer another name")
        made: dict[tuple[str, str], Factory] = {}
        for precision in PRECISIONS:
            for name, factory in {**WAYS, **own}.items():
                wanted = name in own or (name in chosen and name not in left_out)
                runs = precision in self.precisions and (precision == "fp32" or name in own or name in INT8_WAYS)
                if (wanted and runs) or (name, precision) == (OURS, "fp32"):
                    made[name, precision] = factory
        return made


def key_of(name: str, precision: str) -> str:
    """How a way is called where its precision has no place of its own: ``rtmlib``, ``rtmlib int8``."""
    return name if precision == "fp32" else f"{name} {precision}"


def open_way(factory: Factory, model: BenchModel, options: WayOptions) -> Way:
    """One way. Raises what it raises, and InputError where it cannot take the model."""
    if factory is not EdgePose and not model.spec.is_canonical:
        raise UnavailableError(
            f"the peers feed RGB levels, NCHW, to a network with one output; {model.name} wants other"
        )
    return factory(model, options)


def open_ways(
    model: BenchModel,
    selection: Selection,
    opened: ExitStack,
    *,
    max_batch: int = 16,
    progress: Callable[[str], Any] | None = None,
) -> tuple[dict[tuple[str, str], Way], list[str]]:
    """The ways that run here, by name and precision, closed with ``opened``; and what to tell of the others.

    Each is asked once, for one box. A peer that fails is left out, with the reason. Ours at fp32 must run.

    Args:
        model, selection: what to open.
        opened: closes them.
        max_batch: see WayOptions.
        progress: told which one is opened.

    Raises:
        InputError: a name that there is not.
        ModelError, EngineError: our own way does not open.
    """
    ways: dict[tuple[str, str], Way] = {}
    notes = []
    question = scene(320, 240, 1)
    for (name, precision), factory in selection.factories().items():
        key = key_of(name, precision)
        if progress is not None:
            progress(f"opening {key} ({model.name})")
        try:
            way = open_way(factory, model, WayOptions(selection.threads, precision, max_batch=max_batch))
            opened.callback(way.close)
            way(*question)
        except Exception as error:  # of any library that a peer uses
            if key == OURS:
                raise
            reason = str(error) if isinstance(error, EdgePoseError) else f"{type(error).__name__}: {error}"
            notes.append(f"{model.name}: {key} is left out. {' '.join(reason.split())[:400]}")
            continue
        ways[name, precision] = way
        notes.append(f"{model.name}: {key} runs with {way.version}")
    return ways, notes


def model_file(model: BenchModel, options: WayOptions) -> Path:
    """The ONNX file of the model at the precision of the options; an INT8 one is made once, and cached."""
    return int8_of(model) if options.precision == "int8" else model.path


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session_threads(options: WayOptions) -> int | None:
    """The number of threads that a library must be told; None: its own default is all CPUs of this machine.

    In a container or under taskset the defaults count CPUs that the process may not use, and every run waits.
    """
    usable = usable_cpus()
    return options.threads or (usable if usable < (os.cpu_count() or 1) else None)


def load_peer(peer: str) -> Factory:
    """The class or function ``Name`` of ``file.py:Name``. Raises InputError, saying what is wrong."""
    file, colon, name = peer.rpartition(":")
    path = Path(file)
    if not colon or not name or not path.is_file():
        raise InputError(
            f"a peer is the path of a Python file and a class or function in it, file.py:Name, got {peer!r}"
        )
    spec = importlib.util.spec_from_file_location(f"edgepose_peer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
        factory = getattr(module, name)
    except Exception as error:  # whatever the user's file does
        raise InputError(f"the peer {peer} does not load: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise InputError(f"{name} in {file} must be callable: (model, options) -> way; see edgepose.benchmarks.ways")
    made: Factory = factory
    return made
