"""INT8 for CPUs: from an ONNX pose model to one whose convolutions run on 8-bit integers.

    quantized = quantize_model("model.onnx", pictures="photos/")     # model-int8.onnx, which Predictor opens as any
    print(quantized.report.crop.mean)                                # px of the crop, on photos that did not calibrate

ONNX Runtime quantises: static ranges, the largest and smallest value of each activation over the crops that calibrate;
activations unsigned with 8 bits, weights signed with 7, a scale for each output channel. What surrounds it is ours:
transposed convolutions are made to convolutions first (:mod:`edgepose.subpixel`), since only those have an INT8 kernel;
the crops are those that a Predictor makes; and before anything is written, both models' landmarks are compared.

Why 7 bits: without VNNI an x86 CPU multiplies with ``vpmaddubsw``, which adds two products of an unsigned and a signed
byte in 16 bits and saturates silently. With weights of 8 bits a pair reaches 2 * 255 * 128 = 65280 and landmarks move,
on some machines only; with 7 bits it reaches 2 * 255 * 64 = 32640, below 32767, whatever is in the picture. So no
CPU saturates. The eighth bit would be worth 0.14 px to garment-landmarks and 0.01 px to a ResNet-50.

The last convolutions stay in float32: the sub-pixel step needs finer heatmaps than 256 levels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgepose.adapt import Spec, inputs_of, tensor_of
from edgepose.build_model import choose_spec, in_precision, read_model
from edgepose.engines.onnxruntime import import_onnxruntime
from edgepose.errors import EngineError, InputError, MissingDependencyError, ModelError
from edgepose.files import check_writable, write_atomically
from edgepose.models import ENGINE_SUFFIXES, bundled_detectors, bundled_models, find_model
from edgepose.onnx_nodes import opset_of
from edgepose.quantize_compare import Pictures, compare_models, crops_of, read_pictures, split
from edgepose.quantize_report import Calibration, QuantizationReport
from edgepose.spec import ModelSpec

__all__ = ["QuantizedModel", "pose_spec", "quantize_model"]

Progress = Callable[[str, float], None]

BATCH = 4
WEIGHT_LIMIT = 64  # of a 7-bit weight
PER_CHANNEL = 13  # the first opset whose DequantizeLinear has a scale for each channel
# What reads or hands on the results of convolutions. Without Clip and Relu among them the ranges would be those before
# the cut, up to ten times too wide (seen: 1.1 px in place of 0.3).
OPERATORS = ("Conv", "Add", "Relu", "Clip", "MaxPool", "Concat", "DepthToSpace", "Resize")


@dataclass(frozen=True)
class QuantizedModel:
    """What quantising wrote: the INT8 file, and the report that also lies in its metadata."""

    path: Path
    report: QuantizationReport


def quantize_model(
    model: str | Path,
    output: str | Path | None = None,
    *,
    pictures: Pictures,
    spec: ModelSpec | str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Make an INT8 model for CPUs, and say how far its landmarks are from the float model's.

    Args:
        model: a bundled name, or the path of an ONNX pose model, float32 or float16.
        output: an .onnx file, or a folder that exists. None: ``model-int8.onnx`` beside the model; a bundled model's
            goes to the current folder.
        pictures: of the model's own domain: a folder or a list of photos, one object filling each; or labelled objects,
            as ``edgepose.training.coco.load_coco`` reads them, whose boxes are then cropped, and whose landmarks give
            PCK of both models. At most 64 of them calibrate, and at most 100 others are compared on.
        spec: used in place of the one in the model's metadata, or the path of a JSON file; None: the model's own.
        seed: of the draw that splits the pictures.
        force: write a model that differs too much, too.
        progress: called as progress(what is being done, how far 0 to 1); an exception that it raises ends the work.

    Raises:
        InputError: an argument is not usable.
        ModelError: there is no such model, it is not usable, has no spec, is a detector or quantised already.
        EngineError: the landmarks would be too far from the float model's (unless ``force``), or the file cannot be
            written.
        MissingDependencyError: ONNX Runtime's quantisation cannot be imported.
    """
    path = _find(model)
    target = _output_path(path, output)
    chosen_pictures = read_pictures(pictures)
    report_to = progress or (lambda stage, fraction: None)
    report_to("reading the model", 0.0)
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number from 0 on, got {seed!r}")
    source, sha256 = read_model(path)
    chosen = _pose_only(choose_spec(source, spec, path), path)
    graph, canonical = in_precision(source, chosen, "fp32", str(path))
    del source
    assert isinstance(canonical, ModelSpec)
    _refuse_quantized(graph, path)

    calibrating, held_out = split(chosen_pictures, seed)
    crops = crops_of(calibrating, canonical, report_to)
    calibration = Calibration(
        model=path.stem if path.resolve() in _bundled() else path.name,
        model_sha256=sha256,
        pictures=len(calibrating),
        crops=len(crops.images),
        seed=seed,
        onnxruntime=version_of_onnxruntime(),
        edgepose=version("edgepose"),
    )
    kind = "labelled pictures" if held_out[0].objects else "photos"
    told = f"{kind}, {len(held_out)} of {len(chosen_pictures)}, of which none calibrated"
    with tempfile.TemporaryDirectory(prefix="edgepose-") as folder:
        int8 = _quantize(graph, crops.normalized(canonical), Path(folder), report_to)
        del graph, crops
        _describe(int8, canonical, calibration)
        file = Path(folder) / "described.onnx"
        onnx.save(int8, file)
        report = compare_models((path, chosen), file, held_out, told, calibration, report_to)
    report = replace(report, parity=replace(report.parity, convolutions=_count_convolutions(int8)))
    if (problems := report.problems()) and not force:
        raise EngineError(
            f"{path.name} in INT8 differs too much from the float model on {report.parity.counted} "
            f"({report.parity.source}): {'; '.join(problems)}. Nothing was written: calibrate on pictures of the "
            "model's own domain, with the boxes that it will get (--labels), stay with the float model, or write the "
            "INT8 model all the same (--force)"
        )
    report.write_metadata(int8)
    try:
        write_atomically(target, int8.SerializeToString())
    except OSError as error:
        raise _cannot_write(target, error) from error
    return QuantizedModel(target, report)


# Where and what ---------------------------------------------------------------------------------------


def _find(model: str | Path) -> Path:
    if not isinstance(model, (str, Path)):
        raise InputError(f"model must be a bundled name or the path of an ONNX file, got {model!r}")
    if str(model) in bundled_detectors():
        raise ModelError(_is_a_detector(str(model)))
    if Path(model).suffix.lower() in ENGINE_SUFFIXES:
        raise InputError(f"{model} is an engine: pass the ONNX file that it was built from")
    return find_model(model)


def _bundled() -> set[Path]:
    return {path.resolve() for path in bundled_models().values()}


def _output_path(model: Path, output: str | Path | None) -> Path:
    name = f"{model.stem}-int8.onnx"
    target = Path(output) if output is not None else Path(name) if model.resolve() in _bundled() else None
    if target is None:
        target = model.with_name(name)
    elif target.is_dir():
        target = target / name
    if target.suffix.lower() != ".onnx":
        raise InputError(f"the output must be an .onnx file or a folder that exists, got {str(target)!r}")
    if not target.parent.is_dir():
        raise InputError(f"the folder {str(target.parent)!r} does not exist: create it first")
    if target.resolve() == model.resolve():
        raise InputError(f"{target} is the float model itself: name another file, it would be overwritten")
    try:
        check_writable(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    return target


def _cannot_write(target: Path, error: OSError) -> EngineError:
    return EngineError(
        f"{target} cannot be written ({error.strerror or error}): make room or allow it, or name another place "
        "(output=, or -o on the command line)"
    )


def _pose_only(spec: Spec, path: Path) -> ModelSpec:
    if not isinstance(spec, ModelSpec):
        raise ModelError(_is_a_detector(str(path)))
    return spec


def pose_spec(model: str | Path, spec: ModelSpec | str | Path | None) -> ModelSpec:
    """The spec that :func:`quantize_model` would use.

    Raises:
        InputError, ModelError: as there.
    """
    path = _find(model)
    return _pose_only(choose_spec(read_model(path)[0], spec, path), path)


def _is_a_detector(name: str) -> str:
    return f"{name} is a detector: edgepose quantises pose models only, so run it as it is"


def _refuse_quantized(graph: onnx.ModelProto, path: Path) -> None:
    for node in graph.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}:
            raise ModelError(f"{path} is quantised already ({node.op_type} {node.name!r}): pass the float model")


# Quantising -------------------------------------------------------------------------------------------


class _Batches:
    """What ONNX Runtime calls a CalibrationDataReader: the crops (N, 3, h, w), a batch at a time.

    Keeps an exception of ``report_to``, which ends the work, from being taken for one of ONNX Runtime's.
    """

    def __init__(self, graph: onnx.ModelProto, images: NDArray[np.float32], report_to: Progress) -> None:
        (value,) = inputs_of(graph)
        shape = tensor_of(value).shape
        self._name, self._batch = value.name, (shape[0] if shape else None)
        self._images, self._done, self._report_to = images, 0, report_to
        self.cancelled: BaseException | None = None

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch; the last one of a fixed batch size is filled up with the first crops."""
        count, start = len(self._images), self._done
        if start >= count:
            return None
        try:
            self._report_to(f"calibrating on {count} crops", start / count)
        except BaseException as error:
            self.cancelled = error
            raise
        self._done = min(count, start + BATCH) if self._batch is None else start + self._batch
        return {self._name: self._images[np.arange(start, self._done) % count]}


def _quantize(
    graph: onnx.ModelProto, images: NDArray[np.float32], folder: Path, report_to: Progress
) -> onnx.ModelProto:
    """The INT8 model, as ONNX Runtime makes it; ``folder`` is for its files."""
    tools = _import_quantization()
    raw, ready, made = (folder / name for name in ("float.onnx", "ready.onnx", "int8.onnx"))
    report_to("preparing", 0.0)
    onnx.save(_prepared(graph), raw)
    batches = _Batches(graph, images, report_to)
    try:
        # Folds what is constant, and batch normalisation; symbolic shapes are for transformers
        tools.quant_pre_process(str(raw), str(ready), skip_symbolic_shape=True)
        float_nodes = _name_nodes(ready)
        tools.quantize_static(
            str(ready),
            str(made),
            batches,
            quant_format=tools.QuantFormat.QDQ,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7-bit weights
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=float_nodes,
            calibrate_method=tools.CalibrationMethod.MinMax,
        )
    except ModelError:
        raise
    except Exception as error:  # ONNX Runtime raises classes of its own, and plain ValueError and RuntimeError
        if batches.cancelled is not None:
            raise batches.cancelled from None
        reason = " ".join(str(error).split())[:400]
        raise ModelError(f"ONNX Runtime {version_of_onnxruntime()} cannot quantise the model: {reason}") from error
    int8 = onnx.load(made)
    _check_weights(int8)
    return int8


def _import_quantization() -> Any:
    import_onnxruntime()
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX Runtime's quantisation cannot be imported ({error}): pip install --upgrade onnxruntime onnx"
        ) from error
    return quantization


def version_of_onnxruntime() -> str:
    """The installed one's."""
    return str(import_onnxruntime().__version__)


def _prepared(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Without transposed convolutions, in an opset that can hold a scale for each channel."""
    if any(node.op_type == "ConvTranspose" for node in graph.graph.node):
        from edgepose.subpixel import subpixel_convolutions

        graph = subpixel_convolutions(graph)
    if opset_of(graph) >= PER_CHANNEL:
        return graph
    try:
        return onnx.version_converter.convert_version(graph, PER_CHANNEL)
    except Exception as error:  # the converter raises plain RuntimeError, and classes of its own
        raise ModelError(
            f"the model uses ONNX opset {opset_of(graph)}, INT8 needs {PER_CHANNEL}, and ONNX cannot convert it "
            f"({' '.join(str(error).split())[:200]}): export it again with opset {PER_CHANNEL} or later"
        ) from error


def _name_nodes(path: Path) -> list[str]:
    """Give every node of a file a name of its own; return those of the last convolutions, which stay in float32."""
    model = onnx.load(path)
    nodes = model.graph.node
    for number, node in enumerate(nodes):
        node.name = f"{node.name or node.op_type}#{number}"
    onnx.save(model, path)
    made = {name: node for node in nodes for name in node.output}
    last, seen, pending = set(), set(), [value.name for value in model.graph.output]
    while pending:
        name = pending.pop()
        if name in seen or name not in made:
            continue
        seen.add(name)
        if made[name].op_type == "Conv":
            last.add(made[name].name)
        else:
            pending.extend(made[name].input)
    if not {node.name for node in nodes if node.op_type == "Conv"} - last:
        raise ModelError("the model has no convolution before its last one, so nothing would run in INT8")
    return sorted(last)


# The file ---------------------------------------------------------------------------------------------


def _int8_weights(model: onnx.ModelProto) -> dict[str, NDArray[np.int8]]:
    """The quantised weights, by the name of the tensor that they are dequantised to."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    return {
        node.output[0]: numpy_helper.to_array(stored[node.input[0]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }


def _check_weights(model: onnx.ModelProto) -> None:
    """What the module promises of every CPU rests on this."""
    for name, weights in _int8_weights(model).items():
        if np.abs(weights.astype(int)).max(initial=0) > WEIGHT_LIMIT:
            raise ModelError(
                f"ONNX Runtime {version_of_onnxruntime()} gave {name} weights of more than 7 bits, which saturate on "
                "CPUs without VNNI: use another version of onnxruntime"
            )


def _count_convolutions(model: onnx.ModelProto) -> dict[str, int]:
    weights = _int8_weights(model)
    kinds = ["int8" if node.input[1] in weights else "float32" for node in model.graph.node if node.op_type == "Conv"]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _describe(int8: onnx.ModelProto, spec: ModelSpec, calibration: Calibration) -> None:
    """Put the spec into the metadata, without figures that were measured on the float model, in place."""
    made = f"{calibration.model} ({calibration.model_sha256[:12]}), static, on {calibration.crops} crops"
    del int8.metadata_props[:]
    replace(spec, metrics={}, training={**spec.training, "int8": made}).write_metadata(int8)
    int8.producer_name, int8.producer_version = "edgepose", calibration.edgepose
    used = {node.domain for node in int8.graph.node} | {""}
    kept = [(item.domain, item.version) for item in int8.opset_import if item.domain in used]
    del int8.opset_import[:]
    int8.opset_import.extend(onnx.helper.make_opsetid(*item) for item in kept)
