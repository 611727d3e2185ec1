"""OpenVINO by hand: OpenCV in front of it, NumPy behind it, all boxes in one run.

Choices in its favour: OpenVINO's own hint for low latency, which takes all cores; a network of its own for each of the
first few numbers of boxes, since OpenVINO is faster where it knows all shapes (it costs the memory of its weights each
time), and one for any number behind them; infer requests that are kept; arrays for crops and the network's input that
are kept; the outputs are read without a copy; normalised by OpenCV's blobFromImages. Its precision is set to float32,
because where a processor says that it has bfloat16 OpenVINO would take that unasked, and landmarks would be others (and
some virtual machines say so and then end the process with an illegal instruction). INT8 dies there too, unless
ONEDNN_MAX_CPU_ISA holds OpenVINO to what the machine can do: it is tried in a process of its own first. An INT8 file
that it refuses, as it does where we rewrote transposed convolutions, gives way to one of the graph as it was exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.bench_models import BenchModel, cache_folder
from edgepose.benchmarks.peers import mmpose_steps
from edgepose.benchmarks.peers.opencv_steps import Steps
from edgepose.benchmarks.peers.openvino_probe import VARIABLE, probe, surviving
from edgepose.benchmarks.settings_graphs import int8_as_exported
from edgepose.benchmarks.ways import UnavailableError, WayOptions, model_file, session_threads

try:
    import openvino
except ModuleNotFoundError as error:
    raise UnavailableError("OpenVINO is not installed: pip install openvino") from error

__all__ = ["OpenVinoWay", "StaticRequests"]

SIZES = 5  # numbers of boxes that get a network of their own: those of the latency suite, and one
PROBE = """
import sys, numpy, openvino
model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
model(numpy.zeros((2, 3, int(sys.argv[3]), int(sys.argv[2])), numpy.float32))
"""


class OpenVinoWay:
    """See the module."""

    def __init__(self, model: BenchModel, options: WayOptions) -> None:
        self.name = "openvino"
        self.version = f"openvino {openvino.__version__}".partition("-")[0]
        self._spec = model.spec
        path, note = _accepted(model, options)
        self.version += note
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads := session_threads(options):
            settings["INFERENCE_NUM_THREADS"] = threads
        self._network: StaticRequests | None = StaticRequests(path, settings)
        self._steps = Steps(model.spec)

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        assert self._network is not None
        pictures, affines = self._steps.crop_pictures(frame, boxes)
        return mmpose_steps.landmarks(self._network(self._steps.network_input(pictures)), affines, self._spec)

    def close(self) -> None:
        """Drop the network."""
        self._network = None


class StaticRequests:
    """A network of OpenVINO, compiled for each of the first SIZES batch sizes that it meets, then for any."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._core: Any = openvino.Core()
        self._model, self._settings = self._core.read_model(str(path)), settings
        self._requests: dict[int, Any] = {}  # by batch size; 0: any

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 3, h, w) -> heatmaps (N, K, h', w'), which the next call overwrites."""
        size = len(images)
        if size not in self._requests and len(self._requests) >= SIZES:
            size = 0
        if size not in self._requests:
            model = self._model.clone()
            if size:
                model.reshape(list(images.shape))
            self._requests[size] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        heatmaps: NDArray[np.float32] = self._requests[size].infer([images], share_inputs=True, share_outputs=True)[0]
        return heatmaps


def _accepted(model: BenchModel, options: WayOptions) -> tuple[Path, str]:
    """The file of the model that OpenVINO runs, and what to say of it where it is not what the other ways run."""
    path, size = model_file(model, options), model.spec.input_size
    refused = _refusal(path, size)
    if refused and options.precision == "int8":
        exported = int8_as_exported(model, cache_folder())
        if not _refusal(exported, size):
            return exported, ", INT8 of the graph as exported, since it refuses the one of the other ways"
    if refused:
        raise UnavailableError(f"OpenVINO does not take the file: {refused}")
    return path, ""


def _refusal(path: Path, size: tuple[int, int]) -> str:
    """Why OpenVINO does not run a file; empty: it does. Raises UnavailableError where that ends its process."""
    arguments = (str(path), str(size[0]), str(size[1]))
    found = probe(PROBE, arguments)
    if found.died:
        isa = surviving(PROBE, arguments)
        raise UnavailableError(
            f"OpenVINO ends the process here ({found.died}): the processor advertises instructions that the machine "
            + (f"does not run. Set {VARIABLE}={isa} for the whole command" if isa else "does not run, at any setting")
        )
    return found.refused
