"""The detector as an ONNX file: raw YOLOX grids, scores after their sigmoid, float16 weights, checked before it is
written."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.detector_spec import DetectorSpec
from edgepose.errors import ModelError
from edgepose.files import write_atomically
from edgepose.training.detection.garments import GARMENT_TYPES
from edgepose.training.detection.inference import MEAN, MIN_SCORE, OVERLAP, PAD, STD
from edgepose.training.detection.network import STRIDES, GarmentDetector, decode, grid
from edgepose.training.export import ExportReport, checked_output
from edgepose.training.graph import fold_batch_norm, round_weights, store_weights_as_fp16, traced

__all__ = ["detector_spec", "export_detector"]

INPUT_NAME, OUTPUT_NAME = "images", "grids"
CHECKED_BATCHES = (1, 3)
# Largest difference to PyTorch. Scores are from 0 to 1, boxes count in px of an input of 256. ORDER: the order of
# float32 sums (seen: 2e-6 and 2e-4 px). ROUNDED: float16 weights (seen: 0.004 and 0.5 px, on noise).
ORDER = {"scores": 1e-4, "boxes": 0.02}
ROUNDED = {"scores": 0.05, "boxes": 4.0}
SURE = 0.05  # boxes are compared where a score is at least this: elsewhere they mean nothing


class Deployed(nn.Module):
    """(N, 3, h, w) -> (N, A, 5 + C): boxes as the network gives them, objectness and class scores from 0 to 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        raw = self.network(images)
        return torch.cat([raw[..., :4], raw[..., 4:].sigmoid()], -1)


def detector_spec(
    size: int, *, metrics: Mapping[str, float] | None = None, training: Mapping[str, str] | None = None
) -> DetectorSpec:
    """The spec of a garment detector of (size, size) px."""
    return DetectorSpec(
        name="garment-detector",
        input_size=(size, size),
        category_names=GARMENT_TYPES,
        format="yolox",
        mean=(MEAN, MEAN, MEAN),
        std=(STD, STD, STD),
        resize="letterbox",
        pad=PAD,
        sampling="area",
        strides=STRIDES,
        nms_iou=OVERLAP,
        class_agnostic=True,  # one box holds one garment
        min_score=MIN_SCORE,
        license="Apache-2.0",
        metrics=dict(metrics or {}),
        training=dict(training or {}),
    )


def export_detector(model: GarmentDetector, spec: DetectorSpec, path: str | Path) -> ExportReport:
    """Write ``images`` (N, 3, h, w) -> ``grids`` (N, A, 5 + C), N dynamic. The model is left as it is.

    Raises:
        InputError: path does not end in .onnx, or its folder does not exist.
        ModelError: the spec is about other classes, or the file's outputs differ from PyTorch's.
    """
    path = checked_output(path)
    if spec.num_categories != model.num_classes:
        raise ModelError(f"the network has {model.num_classes} classes, its spec names {spec.num_categories}")
    w, h = spec.input_size
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((max(CHECKED_BATCHES), 3, h, w), np.float32))
    network = Deployed(copy.deepcopy(model).cpu().float()).eval()
    with torch.inference_mode():
        original = network(images)
        fold_batch_norm(network)
        round_weights(network)
        expected = network(images)
    proto = traced(network, images[:2], name=spec.name, input_name=INPUT_NAME, output_name=OUTPUT_NAME)
    store_weights_as_fp16(proto)
    spec.write_metadata(proto)
    data = proto.SerializeToString(deterministic=True)
    rounding = _difference(spec, expected, original, ROUNDED, "float16 weights change the network")
    worst = 0.0
    for batch in CHECKED_BATCHES:
        found = _run(data, images[:batch].numpy())
        worst = max(worst, _difference(spec, found, expected[:batch], ORDER, "the exported file differs from PyTorch"))
    write_atomically(path, data)
    return ExportReport(path, len(data), "fp32", "fp16", worst, rounding)


def _run(data: bytes, images: np.ndarray) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT_NAME], {INPUT_NAME: images})[0])


def _difference(spec: DetectorSpec, found: Tensor, expected: Tensor, limits: Mapping[str, float], what: str) -> float:
    """Largest difference of a score. Raises ModelError where a score or a sure box is off by more than it may."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        raise ModelError(f"{spec.name}: {what}: {tuple(found.shape)} or not finite; nothing was written")
    scores = float((found[..., 4:] - expected[..., 4:]).abs().max())
    sure = expected[..., 4] >= SURE
    corners, strides = grid(spec.input_size)
    apart = (decode(found, corners, strides) - decode(expected, corners, strides)).abs()[sure]
    boxes = float(apart.max()) if len(apart) else 0.0
    if not (scores <= limits["scores"] and boxes <= limits["boxes"]):
        raise ModelError(
            f"{spec.name}: {what} by {scores:.1e} in a score and {boxes:.2g} px in a box; at most {limits['scores']:g} "
            f"and {limits['boxes']:g} px are allowed, so nothing was written"
        )
    return scores
