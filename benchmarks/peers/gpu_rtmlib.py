"""rtmlib from PyPI, unmodified, with ``device="cuda"``: see rtmlib_way.py, which tells of its steps and its geometry.

It runs the float32 file, with TF32 where the GPU has it, which is ONNX Runtime's default.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnxruntime

from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.peers.gpu_onnxruntime import check_provider, check_session
from edgepose.benchmarks.peers.rtmlib_way import PADDING, RtmlibWay, takes_bgr
from edgepose.benchmarks.ways import UnavailableError

if TYPE_CHECKING:
    from edgepose.benchmarks.gpu_ways import GpuOptions

__all__ = ["RtmlibCuda"]


class RtmlibCuda(RtmlibWay):
    """See the module.

    Raises:
        MissingDependencyError: the installed ONNX Runtime has no CUDA, or cannot start it.
        UnavailableError: rtmlib cannot take the model.
    """

    def __init__(self, model: BenchModel, options: GpuOptions) -> None:
        from rtmlib.tools.pose_estimation.vitpose import ViTPose  # behind rtmlib_way's word on how to install it

        check_provider()
        spec = model.spec
        if spec.padding != PADDING:
            raise UnavailableError(f"rtmlib pads boxes by {PADDING}, this model wants {spec.padding}")
        self.version = f"rtmlib {version('rtmlib')}, onnxruntime {onnxruntime.__version__}"
        self._spec = spec
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints
            path = Path(folder) / "bgr.onnx"
            onnx.save(takes_bgr(onnx.load(model.path), model.name), path)
            colours = {"mean": spec.mean[::-1], "std": spec.std[::-1]}
            self._model = ViTPose(str(path), spec.input_size, **colours, backend="onnxruntime", device="cuda")
        check_session(self._model.session)
