"""The comparison's part of a build: the pictures, and what both precisions of a graph make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from edgepose.adapt import Spec, inputs_of, tensor_of
from edgepose.crops import Crops
from edgepose.detection_parity import DetectionReference, DetectionReport, judge_detections
from edgepose.enginefile import Precision
from edgepose.engines.kinds import output_shape
from edgepose.engines.onnxruntime import import_onnxruntime, session_options
from edgepose.errors import InputError, ModelError
from edgepose.parity import ParityReport, Reference, compare, run_in_batches
from edgepose.precision import rounded_to_fp16
from edgepose.spec import ModelSpec

__all__ = ["CropSource", "Photos", "choose_crops", "compare_graphs"]

CropSource: TypeAlias = Callable[[Spec], Crops]
Photos: TypeAlias = str | Path | Sequence[str | Path]
Progress: TypeAlias = Callable[[str, float], None]


def choose_crops(crops: Crops | CropSource | Photos | None, spec: Spec) -> Crops:
    """The pictures to compare on; see :func:`edgepose.build.build_engine`."""
    if crops is None:
        return Crops.drawn(spec)
    if isinstance(crops, (str, Path)) or (
        isinstance(crops, Sequence) and all(isinstance(path, (str, Path)) for path in crops)
    ):
        return Crops.from_photos(crops, spec)
    chosen = crops(spec) if callable(crops) else crops
    if not isinstance(chosen, Crops):
        raise InputError(f"crops must be Crops, a function that returns Crops, or paths of photos, got {chosen!r}")
    w, h = spec.input_size
    if chosen.images.dtype != np.uint8 or chosen.images.ndim != 4 or chosen.images.shape[1:] != (h, w, 3):
        raise InputError(f"crops must be (N, {h}, {w}, 3) uint8, got {chosen.images.shape} {chosen.images.dtype}")
    return chosen


def compare_graphs(
    exact: onnx.ModelProto,
    graph: onnx.ModelProto,
    crops: Crops,
    spec: Spec,
    built: tuple[Precision, tuple[int, int, int]],
    report_to: Progress,
) -> tuple[Reference | DetectionReference, ParityReport | DetectionReport]:
    """What the float32 model finds, and how the graph that is built differs from it, both in ONNX Runtime.

    Args:
        exact: adapted, in float32.
        graph: adapted, in the precision that is built.
        crops: pictures of the input's size.
        spec: of the adapted network.
        built: precision and profile.
        report_to: progress.
    """
    precision, profile = built
    images = crops.normalized(spec)
    total = len(images) * (2 if precision == "fp16" else 1)
    done = 0

    def run(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> NDArray[Any]:
        session = _session(model)
        name = session.get_inputs()[0].name

        def batch(part: NDArray[np.float32]) -> NDArray[Any]:
            nonlocal done
            report_to(f"comparing on {len(images)} crops", min(1.0, done / total))
            done += len(part)
            return _run_session(session, name, part, spec)

        # Small batches: what a crop gives does not depend on its neighbours, and progress moves.
        return run_in_batches(batch, inputs, (profile[0], profile[1], max(profile[0], min(4, profile[2]))))

    expected = run(exact, images)
    found = expected
    if precision == "fp16":
        halved = tensor_of(inputs_of(graph)[0]).dtype == "float16"
        found = run(rounded_to_fp16(graph), images.astype(np.float16).astype(np.float32) if halved else images)
    if isinstance(spec, ModelSpec):
        report = compare(expected, found, spec, scope="graph", source=crops.source)
        return Reference.from_heatmaps(crops, expected, spec), report
    reference = DetectionReference.from_rows(crops, expected, spec)
    return reference, judge_detections(reference, found, spec, scope="graph")


def _run_session(session: Any, name: str, part: NDArray[np.float32], spec: Spec) -> NDArray[Any]:
    """Heatmaps, or a detector's rows, of a batch (n, 3, h, w)."""
    batch = len(part)
    advice = (
        "if a node fixes the batch, a Reshape for instance, export the model with a dynamic batch, or build it for the "
        "batch that it is made for (profile=(1, 1, 1), or --min-batch 1 --max-batch 1)"
    )
    try:
        found = np.asarray(session.run(None, {name: part})[0])
    except Exception as error:  # ONNX Runtime raises a dozen classes of its own, and plain RuntimeError
        reason = " ".join(str(error).split())[:400]
        raise ModelError(f"the model does not run on a batch of {batch} in ONNX Runtime: {reason}; {advice}") from error
    wanted = (batch, *output_shape(spec, found.shape, spec.name))
    if found.shape != wanted:
        what, axes = "rows", "(batch, candidates, 6)"
        if isinstance(spec, ModelSpec):
            what, axes = "heatmaps", "(batch, landmarks, height, width)"
        raise ModelError(
            f"the model returns {what} {found.shape} for a batch of {batch}, by the spec they are {wanted} {axes}: "
            f"correct the spec; or, {advice}"
        )
    return found


def _session(model: onnx.ModelProto) -> Any:
    onnxruntime = import_onnxruntime()
    options = session_options(onnxruntime, threads=None)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen classes of its own, and plain RuntimeError
        raise ModelError(f"the model does not run in ONNX Runtime: {' '.join(str(error).split())[:400]}") from error
