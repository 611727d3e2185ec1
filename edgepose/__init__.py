"""Real-time top-down landmark estimation.

    from edgepose import Predictor

    with Predictor("garment-landmarks") as predictor:
        result = predictor.predict(frame, boxes)   # frame: (H, W, 3) uint8 BGR, boxes: (N, 4) xyxy px
    result.keypoints                               # (N, K, 2) float32, frame px

Public names are imported on first use, so that ``import edgepose`` loads no library at all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepose.build import BuildOptions, BuiltEngine, build_engine
    from edgepose.crops import Crops
    from edgepose.enginefile import EngineInfo
    from edgepose.errors import EdgePoseError, EngineError, InputError, MissingDependencyError, ModelError
    from edgepose.frames import whole_image_box
    from edgepose.models import bundled_models
    from edgepose.parity import ParityReport
    from edgepose.predictor import Predictor
    from edgepose.result import PoseResult, Timings
    from edgepose.spec import ModelSpec

    __version__: str

__all__ = [
    "BuildOptions",
    "BuiltEngine",
    "Crops",
    "EdgePoseError",
    "EngineError",
    "EngineInfo",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "ModelSpec",
    "ParityReport",
    "PoseResult",
    "Predictor",
    "Timings",
    "__version__",
    "build_engine",
    "bundled_models",
    "whole_image_box",
]

_HOMES = {
    "BuildOptions": "edgepose.build",
    "BuiltEngine": "edgepose.build",
    "Crops": "edgepose.crops",
    "EdgePoseError": "edgepose.errors",
    "EngineError": "edgepose.errors",
    "EngineInfo": "edgepose.enginefile",
    "InputError": "edgepose.errors",
    "MissingDependencyError": "edgepose.errors",
    "ModelError": "edgepose.errors",
    "ModelSpec": "edgepose.spec",
    "ParityReport": "edgepose.parity",
    "PoseResult": "edgepose.result",
    "Predictor": "edgepose.predictor",
    "Timings": "edgepose.result",
    "build_engine": "edgepose.build",
    "bundled_models": "edgepose.models",
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
