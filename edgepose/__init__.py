"""Real-time top-down landmark estimation.

    from edgepose import Predictor

    with Predictor("garment-landmarks") as predictor:
        result = predictor.predict(frame, boxes)   # frame: (H, W, 3) uint8 BGR, boxes: (N, 4) xyxy px
    result.keypoints                               # (N, K, 2) float32, frame px

    with Predictor("garment-landmarks", detector="garment-detector") as predictor:
        for frame, result in predictor.stream("rtsp://camera/1"): ...

Public names are imported on first use, so that ``import edgepose`` loads no library at all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepose.build import BuildOptions, BuiltEngine, build_engine
    from edgepose.crops import Crops
    from edgepose.detections import Detections
    from edgepose.detector import Detector
    from edgepose.detector_spec import DetectorSpec
    from edgepose.enginefile import EngineInfo
    from edgepose.errors import EdgePoseError, EngineError, InputError, MissingDependencyError, ModelError, SourceError
    from edgepose.frames import whole_image_box
    from edgepose.models import bundled_detectors, bundled_models
    from edgepose.parity import ParityReport
    from edgepose.pending import PendingResults
    from edgepose.predictor import Predictor
    from edgepose.quantize import QuantizedModel, quantize_model
    from edgepose.quantize_report import QuantizationReport
    from edgepose.result import PoseResult, Timings
    from edgepose.smooth import OneEuro, Smoother
    from edgepose.spec import ModelSpec
    from edgepose.stream import Stream, StreamItem
    from edgepose.stream_options import ReconnectPolicy, StreamOptions
    from edgepose.track import Tracker, Tracking

    __version__: str

__all__ = [
    "BuildOptions",
    "BuiltEngine",
    "Crops",
    "Detections",
    "Detector",
    "DetectorSpec",
    "EdgePoseError",
    "EngineError",
    "EngineInfo",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "ModelSpec",
    "OneEuro",
    "ParityReport",
    "PendingResults",
    "PoseResult",
    "Predictor",
    "QuantizationReport",
    "QuantizedModel",
    "ReconnectPolicy",
    "Smoother",
    "SourceError",
    "Stream",
    "StreamItem",
    "StreamOptions",
    "Timings",
    "Tracker",
    "Tracking",
    "__version__",
    "build_engine",
    "bundled_detectors",
    "bundled_models",
    "quantize_model",
    "whole_image_box",
]

_HOMES = {
    "BuildOptions": "edgepose.build",
    "BuiltEngine": "edgepose.build",
    "Crops": "edgepose.crops",
    "Detections": "edgepose.detections",
    "Detector": "edgepose.detector",
    "DetectorSpec": "edgepose.detector_spec",
    "EdgePoseError": "edgepose.errors",
    "EngineError": "edgepose.errors",
    "EngineInfo": "edgepose.enginefile",
    "InputError": "edgepose.errors",
    "MissingDependencyError": "edgepose.errors",
    "ModelError": "edgepose.errors",
    "ModelSpec": "edgepose.spec",
    "OneEuro": "edgepose.smooth",
    "ParityReport": "edgepose.parity",
    "PendingResults": "edgepose.pending",
    "PoseResult": "edgepose.result",
    "Predictor": "edgepose.predictor",
    "QuantizationReport": "edgepose.quantize_report",
    "QuantizedModel": "edgepose.quantize",
    "ReconnectPolicy": "edgepose.stream_options",
    "Smoother": "edgepose.smooth",
    "SourceError": "edgepose.errors",
    "Stream": "edgepose.stream",
    "StreamItem": "edgepose.stream",
    "StreamOptions": "edgepose.stream_options",
    "Timings": "edgepose.result",
    "Tracker": "edgepose.track",
    "Tracking": "edgepose.track",
    "build_engine": "edgepose.build",
    "bundled_detectors": "edgepose.models",
    "bundled_models": "edgepose.models",
    "quantize_model": "edgepose.quantize",
    "whole_image_box": "edgepose.frames",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("edgepose")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'edgepose' has no attribute {name!r}")
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
