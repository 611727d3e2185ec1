"""The peer of benchmarks/streams.py: detect, then loop over the boxes, with OpenCV, NumPy and ONNX Runtime.

It is what tutorials and model zoos show: letterbox with cv2.resize, one session for each model with default options,
boxes and NMS in NumPy and cv2.dnn, then for each box cv2.warpAffine, one run of the network, argmax and a quarter of a
cell. It uses the same two ONNX files, and every library at its defaults, which use all cores.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from edgepose import DetectorSpec, ModelSpec

__all__ = ["DetectThenLoop"]


class DetectThenLoop:
    """A YOLOX detector and a heatmap model."""

    def __init__(self, detector: Path, detector_spec: DetectorSpec, model: Path, spec: ModelSpec) -> None:
        providers = ["CPUExecutionProvider"]
        self._detector = onnxruntime.InferenceSession(str(detector), providers=providers)
        self._model = onnxruntime.InferenceSession(str(model), providers=providers)
        self._detector_spec, self._spec = detector_spec, spec
        self._detector_input = self._detector.get_inputs()[0].name
        self._model_input = self._model.get_inputs()[0].name
        self._cells, self._strides = _grid(detector_spec.input_size, detector_spec.strides)

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (N, 4), keypoints (N, K, 2), frame px, and scores (N, K) of a frame (H, W, 3) uint8 BGR."""
        boxes = self.detect(frame)
        found = [self.landmarks(frame, box) for box in boxes]
        k = self._spec.num_keypoints
        keypoints = np.array([points for points, _ in found]).reshape(-1, k, 2)
        return boxes, keypoints, np.array([scores for _, scores in found]).reshape(-1, k)

    def detect(self, frame: np.ndarray) -> np.ndarray:
        """(N, 4) xyxy, frame px."""
        spec = self._detector_spec
        width, height = spec.input_size
        ratio = min(width / frame.shape[1], height / frame.shape[0])
        size = (round(frame.shape[1] * ratio), round(frame.shape[0] * ratio))
        left, top = ((width - size[0]) // 2, (height - size[1]) // 2) if spec.resize == "letterbox" else (0, 0)
        canvas = np.full((height, width, 3), spec.pad, np.uint8)
        canvas[top : top + size[1], left : left + size[0]] = cv2.resize(frame, size)
        rows = self._detector.run(None, {self._detector_input: _normalised(canvas, spec)})[0][0]
        centres, sizes = (rows[:, :2] + self._cells) * self._strides, np.exp(rows[:, 2:4]) * self._strides
        scores = rows[:, 4:5] * rows[:, 5:]
        labels, best = scores.argmax(1), scores.max(1)
        corners = np.concatenate([centres - sizes / 2, sizes], axis=1)
        kept = [
            chosen[cv2.dnn.NMSBoxes(corners[chosen].tolist(), best[chosen].tolist(), spec.min_score, spec.nms_iou)]
            for label in np.unique(labels[best >= spec.min_score])
            for chosen in [np.flatnonzero((labels == label) & (best >= spec.min_score))]
        ]
        x, y, w, h = corners[np.concatenate(kept).astype(int) if kept else []].reshape(-1, 4).T
        boxes = (np.stack([x, y, x + w, y + h], axis=1) - [left, top, left, top]) / ratio
        return np.clip(boxes, 0, [frame.shape[1], frame.shape[0]] * 2).astype(np.float32)

    def landmarks(self, frame: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (K, 2), frame px, and scores (K,) of one box."""
        spec = self._spec
        (width, height), (map_w, map_h) = spec.input_size, spec.heatmap_size
        centre, sides = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * spec.padding
        less = spec.codec == "udp"  # measures from pixel centre to pixel centre: (w - 1) / width
        wide, high = max(sides[0], sides[1] * width / height), max(sides[1], sides[0] * height / width)
        scale_x, scale_y = (width - less) / wide, (height - less) / high
        middle = (width - less) / 2, (height - less) / 2
        affine = np.array(
            [[scale_x, 0, middle[0] - scale_x * centre[0]], [0, scale_y, middle[1] - scale_y * centre[1]]], np.float64
        )
        crop = cv2.warpAffine(frame, affine, (width, height), flags=cv2.INTER_LINEAR)
        heatmaps = self._model.run(None, {self._model_input: _normalised(crop, spec)})[0][0]
        flat = heatmaps.reshape(len(heatmaps), -1)
        peaks, scores = flat.argmax(1), flat.max(1)
        cells = np.stack([peaks % map_w, peaks // map_w], axis=1).astype(np.float32)
        for k, heatmap in enumerate(heatmaps):
            px, py = int(cells[k, 0]), int(cells[k, 1])
            if 0 < px < map_w - 1 and 0 < py < map_h - 1:
                slope = heatmap[py, px + 1] - heatmap[py, px - 1], heatmap[py + 1, px] - heatmap[py - 1, px]
                cells[k] += np.sign(slope) * 0.25
        stride = (width - less) / (map_w - less), (height - less) / (map_h - less)
        points = (cells * stride - affine[:, 2]) / (scale_x, scale_y)
        return points.astype(np.float32), scores


def _normalised(picture: np.ndarray, spec: DetectorSpec | ModelSpec) -> np.ndarray:
    """(1, 3, h, w) float32 of an (h, w, 3) uint8 BGR picture."""
    rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if spec.color == "rgb" else picture
    values = (rgb.astype(np.float32) * spec.scale - np.float32(spec.mean)) / np.float32(spec.std)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _grid(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each YOLOX candidate the cell (A, 2) and its stride (A, 1)."""
    cells, widths = [], []
    for stride in strides:
        x, y = np.meshgrid(np.arange(size[0] // stride), np.arange(size[1] // stride))
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        widths.append(np.full((cells[-1].shape[0], 1), stride))
    return np.concatenate(cells), np.concatenate(widths)
