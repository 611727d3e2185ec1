"""What the study of settings runs: models rewritten to sub-pixel convolutions or quantised without, and crops."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.scenes import scene
from edgepose.errors import MissingDependencyError
from edgepose.files import write_atomically
from edgepose.geometry import crop_transforms
from edgepose.kernels.reference import crop_warp
from edgepose.spec import ModelSpec

__all__ = ["crops_of", "int8_as_exported", "rewritten"]

SCENES = 8  # of eight garments each, others than those that are compared
FIRST_SEED = 1000
FRAME = (1920, 1080)


def rewritten(path: Path, folder: Path) -> Path | None:
    """The model with sub-pixel convolutions, as the engine runs it, as a file; None: it has no transposed ones."""
    from edgepose.modelfile import load_model
    from edgepose.subpixel import subpixel_convolutions

    proto, digest = load_model(path)
    found = subpixel_convolutions(proto)
    if found is proto:
        return None
    output = folder / f"{path.stem}-{digest[:12]}-subpixel.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(output, found.SerializeToString())  # made anew each time: the rewriting may have changed
    return output


def int8_as_exported(model: BenchModel, cache: Path) -> Path:
    """The model in INT8 as ``edgepose quantize`` makes it, without rewriting: transposed convolutions stay float.

    Each then gets its input dequantised and its output quantised. Made once; calibrated on rendered garments.

    Raises:
        MissingDependencyError: ONNX Runtime's quantisation cannot be imported.
    """
    from edgepose.modelfile import load_model
    from edgepose.quantize import OPERATORS

    try:
        from onnxruntime import quantization as tools
    except ImportError as error:
        raise MissingDependencyError(f"ONNX Runtime's quantisation cannot be imported: {error}") from error

    proto, digest = load_model(model.path)
    output = cache / "benchmarks" / f"{model.path.stem}-{digest[:12]}-int8-as-exported.onnx"
    if output.exists():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    ends = {value.name for value in proto.graph.output}
    last = [node.name for node in proto.graph.node if ends & set(node.output)]
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        made = Path(folder, "int8.onnx")
        tools.quantize_static(
            str(model.path),
            str(made),
            _Batches(model, proto.graph.input[0].name),
            quant_format=tools.QuantFormat.QDQ,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=last,
        )
        made.replace(output)
    return output


class _Batches:
    """What ONNX Runtime calls a CalibrationDataReader."""

    def __init__(self, model: BenchModel, name: str) -> None:
        self._scenes = (scene(*FRAME, 8, seed=seed) for seed in range(FIRST_SEED, FIRST_SEED + SCENES))
        self._model, self._name = model, name

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The crops of the next scene; None: there is none."""
        picture = next(self._scenes, None)
        if picture is None:
            return None
        return {self._name: crops_of(picture.frame, picture.boxes, self._model.spec)}


def crops_of(frame: NDArray[np.uint8], boxes: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """(N, 3, h, w) float32: what the network gets of these boxes."""
    affines, _ = crop_transforms(boxes, spec)
    images = crop_warp(frame, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std)
    return np.asarray(images, np.float32)
