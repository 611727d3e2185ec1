"""The INT8 models that are timed: what `edgepose quantize` makes of a model and rendered garments."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgepose.quantize import quantize_model
from edgepose.training.coco import load_coco
from edgepose.training.synthesize import synthesize

if TYPE_CHECKING:
    from edgepose.benchmarks.bench_models import BenchModel

__all__ = ["quantized"]

PICTURES, SEED = 160, 7  # 64 calibrate, the rest is what the landmarks are compared on
KEYPOINTS = 8  # of a rendered garment


def quantized(model: BenchModel, output: Path) -> None:
    """Write the model in INT8.

    Raises:
        EngineError: its landmarks would be too far from the float model's. (Random weights are not judged.)
    """
    with tempfile.TemporaryDirectory() as folder:
        for _ in synthesize(folder, PICTURES, seed=SEED):
            pass
        labelled = model.spec.num_keypoints == KEYPOINTS
        pictures = (
            load_coco(Path(folder) / "synthetic.json", KEYPOINTS)
            if labelled
            else sorted((Path(folder) / "images").iterdir())
        )
        quantize_model(model.path, output, pictures=pictures, force=not model.trained)
