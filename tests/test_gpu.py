"""On a machine with an NVIDIA GPU (`make test-gpu`): what this version does there."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose import EngineError, Predictor, bundled_models, doctor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not any(check.name == "NVIDIA GPU" and check.ok for check in doctor.check_system()),
        reason="needs an NVIDIA GPU and its driver",
    ),
]


@pytest.mark.skipif("garment-landmarks" not in bundled_models(), reason="the bundled model is not in this checkout")
def test_auto_runs_on_the_cpu_and_cuda_says_that_it_is_not_there_yet() -> None:
    frame = np.zeros((64, 48, 3), np.uint8)
    with Predictor("garment-landmarks", device="auto") as predictor:
        assert predictor.engine_name == "onnxruntime (cpu)"
        assert np.isfinite(predictor.predict(frame, [[0, 0, 47, 63]]).keypoints).all()
    with pytest.raises(EngineError, match="GPU runtime"):
        Predictor("garment-landmarks", device="cuda")
