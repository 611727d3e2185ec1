"""OpenVINO by hand: OpenCV in front of it, NumPy behind it, all boxes in one run.

Choices in its favour: OpenVINO's own hint for low latency, which takes all cores; one infer request that is kept; the
outputs are read without a copy; normalised by OpenCV's blobFromImages. Its precision is set to float32, because where a
processor says that it has bfloat16 OpenVINO would take that unasked, and landmarks would be others (and some virtual
machines say so and then end the process with an illegal instruction). INT8 dies there too, unless ONEDNN_MAX_CPU_ISA
holds OpenVINO to what the machine can do: it is tried in a process of its own first.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.peers import mmpose_steps
from edgepose.benchmarks.peers.opencv_steps import crop_pictures, network_input
from edgepose.benchmarks.ways import UnavailableError, WayOptions, model_file, session_threads

try:
    import openvino
except ModuleNotFoundError as error:
    raise UnavailableError("OpenVINO is not installed: pip install openvino") from error

__all__ = ["OpenVinoWay"]

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
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads := session_threads(options):
            settings["INFERENCE_NUM_THREADS"] = threads
        path = str(model_file(model, options))
        _check_instructions(path, self._spec.input_size)
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        self._request: Any = compiled.create_infer_request()

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        pictures, affines = crop_pictures(frame, boxes, self._spec)
        found = self._request.infer([network_input(pictures, self._spec)], share_inputs=True, share_outputs=True)
        return mmpose_steps.landmarks(found[0], affines, self._spec)

    def close(self) -> None:
        """Drop the network."""
        self._request = None


def _check_instructions(path: str, size: tuple[int, int]) -> None:
    """Raises UnavailableError where a run ends its process."""
    command = [sys.executable, "-c", PROBE, path, str(size[0]), str(size[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise UnavailableError(
            f"OpenVINO ends the process here ({signal.Signals(-done.returncode).name}): the processor advertises "
            "instructions that the machine does not run. Set ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI for the whole command"
        )
    if done.returncode:
        raise UnavailableError(
            f"OpenVINO does not take the file: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}"
        )
