"""The peer of `edgepose bench streams`: detect, then loop over the boxes, with OpenCV, NumPy and ONNX Runtime.

It is what tutorials and model zoos show: letterbox with cv2.resize, one session for each model, boxes in NumPy and NMS
by cv2.dnn; then for each box what ``onnxruntime loop`` does in the other suites. Both ONNX files are those that ours
runs, and both networks are used as they are meant to be, down to the decoder, so that the landmarks are the same.

Choices in its favour: session options as ``onnxruntime loop`` has them, with threads that do not spin for milliseconds
while the other model runs (by default they would, and a frame would take nearly twice as long); where a detector was
trained on pictures without aliasing, cv2.INTER_AREA; NMS over all classes at once where ours does so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose import DetectorSpec
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.peers.onnxruntime_way import OnnxRuntimeWay, session_of
from edgepose.benchmarks.ways import UnavailableError, WayOptions, session_threads

__all__ = ["DetectThenLoop"]


class DetectThenLoop:
    """A YOLOX detector and a heatmap model.

    Raises:
        UnavailableError: a model that these lines do not know how to feed or to read.
    """

    def __init__(self, detector: Path, detector_spec: DetectorSpec, model: BenchModel) -> None:
        _check(detector_spec, model)
        self._detector = session_of(detector, session_threads(WayOptions()))
        self._spec = detector_spec
        self._input = self._detector.get_inputs()[0].name
        self._cells, self._strides = _grid(detector_spec.input_size, detector_spec.strides)
        self.landmarks = OnnxRuntimeWay(model, WayOptions(), batched=False)  # (frame, boxes) -> keypoints, scores
        self._keypoints = model.spec.num_keypoints

    def __call__(self, frame: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]]:
        """Boxes (N, 4), keypoints (N, K, 2), frame px, and scores (N, K) of a frame (H, W, 3) uint8 BGR."""
        boxes = self.detect(frame)
        if not len(boxes):
            return boxes, np.empty((0, self._keypoints, 2)), np.empty((0, self._keypoints), np.float32)
        return boxes, *self.landmarks(frame, boxes)

    def detect(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, 4) xyxy, frame px."""
        spec = self._spec
        width, height = spec.input_size
        ratio = min(width / frame.shape[1], height / frame.shape[0])
        size = (round(frame.shape[1] * ratio), round(frame.shape[0] * ratio))
        left, top = ((width - size[0]) // 2, (height - size[1]) // 2) if spec.resize == "letterbox" else (0, 0)
        canvas = np.full((height, width, 3), spec.pad, np.uint8)
        smooth = spec.sampling == "area" and ratio < 1
        picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if smooth else cv2.INTER_LINEAR)
        canvas[top : top + size[1], left : left + size[0]] = picture
        rows = self._detector.run(None, {self._input: _normalised(canvas, spec)})[0][0]
        centres, sizes = (rows[:, :2] + self._cells) * self._strides, np.exp(rows[:, 2:4]) * self._strides
        scores = rows[:, 4:5] * rows[:, 5:]
        labels, best = scores.argmax(1), scores.max(1)
        corners = np.concatenate([centres - sizes / 2, sizes], axis=1)
        x, y, w, h = corners[self._kept(corners, labels, best)].reshape(-1, 4).T
        boxes = (np.stack([x, y, x + w, y + h], axis=1) - [left, top, left, top]) / ratio
        inside: NDArray[np.float32] = np.clip(boxes, 0, [frame.shape[1], frame.shape[0]] * 2).astype(np.float32)
        return inside

    def _kept(self, corners: NDArray[Any], labels: NDArray[Any], best: NDArray[Any]) -> NDArray[np.int64]:
        """Which of the candidates NMS keeps, class by class or over all at once as the detector's spec says."""
        spec = self._spec
        likely = np.flatnonzero(best >= spec.min_score)
        if spec.nms_iou is None:
            return likely
        groups = (
            [likely] if spec.class_agnostic else [likely[labels[likely] == one] for one in np.unique(labels[likely])]
        )
        kept = [
            group[cv2.dnn.NMSBoxes(corners[group].tolist(), best[group].tolist(), spec.min_score, spec.nms_iou)]
            for group in groups
        ]
        return np.concatenate(kept).astype(np.int64) if kept else np.empty(0, np.int64)

    def close(self) -> None:
        """Drop both sessions."""
        self._detector = None
        self.landmarks.close()


def _check(detector: DetectorSpec, model: BenchModel) -> None:
    spec = model.spec
    if (detector.format, detector.layout) != ("yolox", "nchw") or detector.resize == "stretch":
        raise UnavailableError(
            f"detect, then loop reads YOLOX detectors with a letterboxed NCHW input, got {detector.name}: "
            f"{detector.format}, {detector.layout}, {detector.resize}"
        )
    known: dict[str, Any] = {"layout": "nchw", "color": "rgb", "scale": 1.0}
    known |= {"output": "", "heatmap_layout": "nchw", "heatmap_channels": ()}
    other = {name: getattr(spec, name) for name, value in known.items() if getattr(spec, name) != value}
    if other:
        raise UnavailableError(f"detect, then loop runs models as edgepose exports them, got {spec.name}: {other}")


def _normalised(picture: NDArray[np.uint8], spec: DetectorSpec) -> NDArray[np.float32]:
    """(1, 3, h, w) float32 of an (h, w, 3) uint8 BGR picture."""
    colours = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if spec.color == "rgb" else picture
    values = (colours.astype(np.float32) * np.float32(spec.scale) - np.array(spec.mean, np.float32)) / np.array(
        spec.std, np.float32
    )
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _grid(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each YOLOX candidate the cell (A, 2) and its stride (A, 1)."""
    cells, widths = [], []
    for stride in strides:
        x, y = np.meshgrid(np.arange(size[0] // stride), np.arange(size[1] // stride))
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        widths.append(np.full((cells[-1].shape[0], 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(widths).astype(np.float32)
