"""ONNX Runtime by hand: OpenCV in front of it, NumPy behind it, the file as it was exported.

``onnxruntime loop`` is what tutorials show: for each box one warpAffine, one normalisation in NumPy, one run of the
network, one decoding. ``onnxruntime batched`` is as good as these libraries get without code of one's own below NumPy:
all boxes in one run, normalised by OpenCV's blobFromImages.

Choices in their favour: session options that use all cores and the highest level of graph optimisation; where the
process may not use all CPUs, as many threads as it may; threads that spin for 1 ms behind a run as ours do, where by
default they would for several and be in the way of OpenCV, or of a second session; the affines of all boxes at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.peers import mmpose_steps
from edgepose.benchmarks.peers.opencv_steps import Steps
from edgepose.benchmarks.ways import WayOptions, model_file, session_threads

__all__ = ["OnnxRuntimeWay", "heatmaps_of", "session_of"]


class OnnxRuntimeWay:
    """See the module."""

    def __init__(self, model: BenchModel, options: WayOptions, *, batched: bool) -> None:
        self.name = "onnxruntime batched" if batched else "onnxruntime loop"
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._spec, self._batched = model.spec, batched
        self._steps = Steps(model.spec)
        self._session = session_of(model_file(model, options), session_threads(options))
        self._input = self._session.get_inputs()[0].name
        self._mean, self._std = np.array([model.spec.mean, model.spec.std], np.float32)

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        pictures, affines = self._steps.crop_pictures(frame, boxes)
        if self._batched:
            heatmaps = self._run(self._steps.network_input(pictures))
            return mmpose_steps.landmarks(heatmaps, affines, self._spec)
        keypoints, scores = [], []
        for picture, affine in zip(pictures, affines, strict=True):
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.float32)
            image = np.ascontiguousarray(((rgb - self._mean) / self._std).transpose(2, 0, 1)[None])
            points, peaks = mmpose_steps.landmarks(self._run(image), affine[None], self._spec)
            keypoints.append(points)
            scores.append(peaks)
        return np.concatenate(keypoints), np.concatenate(scores)

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        heatmaps: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return heatmaps

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def session_of(path: Path, threads: int | None) -> Any:
    """A session on the CPU with the settings that the module names; threads None: ONNX Runtime's choice."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0
    settings.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def heatmaps_of(model: Path, images: NDArray[Any]) -> NDArray[np.float32]:
    """(N, K, h, w) of an ONNX file as it is, in a session of its own, for the comparison of landmarks."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    heatmaps: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return heatmaps
