"""Pipelines: the way of frames through detector, crop, network and decoder. One protocol, one for each kind of memory.

protocol.py        what a pipeline does, what goes in and comes out
host.py            NumPy twins around engines that take host arrays (ONNX Runtime)
device.py          CUDA kernels around engines that take device buffers (TensorRT): upload, CUDA graphs, download
detect_host.py     the first stage: frames -> boxes
detect_device.py   the same on the device, and the plan of the crops
pose_device.py     the second stage on the device: boxes -> landmarks
models.py          which of several pose models serves a box
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepose.engines import DeviceEngine
from edgepose.errors import InputError
from edgepose.pipelines.detection import DetectionSettings, Found
from edgepose.pipelines.protocol import (
    MOST_PENDING,
    DetectedPoses,
    DetectionPipeline,
    DetectorModel,
    Pending,
    Pipeline,
    PoseModel,
    Poses,
)

__all__ = [
    "MOST_PENDING",
    "DetectedPoses",
    "DetectionPipeline",
    "DetectionSettings",
    "DetectorModel",
    "Found",
    "Pending",
    "Pipeline",
    "PoseModel",
    "Poses",
    "open_detection",
    "open_pipeline",
]


def open_pipeline(
    models: Sequence[PoseModel],
    *,
    categories: Mapping[str, tuple[int, int]] | None = None,
    flip_test: bool = False,
    max_batch: int,
    cuda_graph: bool = True,
    detector: DetectorModel | None = None,
) -> Pipeline:
    """The pipeline that fits some engines, all of one kind of memory; it takes them over and closes them with itself.

    Args:
        models: one, or several that serve different categories; their channels count through from the first's, as
            :func:`edgepose.joint.joint_spec` numbers them.
        categories: which channels a detection has, by the name of its label: ``spec.categories`` of the (joint) spec.
            Empty or None: all, whatever the label.
        flip_test: run each crop mirrored too and average the heatmaps.
        max_batch: the largest number of boxes in one run.
        cuda_graph: replay a CUDA graph for each batch size (device engines).
        detector: for ``detect_and_start``.

    Raises:
        InputError: engines on different devices.
        EngineError: CUDA refused, or an engine fits no batch size. The engines stay open then.
    """
    engines = [model.engine for model in models] + ([detector.engine] if detector else [])
    if len({engine.device for engine in engines}) > 1:
        where = ", ".join(f"{engine.spec.name!r} on {engine.device}" for engine in engines)
        raise InputError(
            f"detector and pose models must run on one device, got {where}: pass the ONNX files of all of them, or for "
            "the GPU an engine of each (edgepose build)"
        )
    if isinstance(engines[0], DeviceEngine):
        from edgepose.pipelines.device import DevicePipeline

        return DevicePipeline(
            models,
            categories or {},
            flip_test=flip_test,
            max_batch=max_batch,
            cuda_graph=cuda_graph,
            detector=detector,
        )
    from edgepose.pipelines.host import HostPipeline

    return HostPipeline(models, categories or {}, flip_test=flip_test, detector=detector)


def open_detection(detector: DetectorModel, *, max_batch: int, cuda_graph: bool = True) -> DetectionPipeline:
    """The first stage alone, for the engine's kind of memory; it takes the engine over and closes it with itself.

    ``max_batch`` is the largest number of frames in one run, on a device; more are done in several.
    """
    if isinstance(detector.engine, DeviceEngine):
        from edgepose.pipelines.detect_device import DeviceDetectionPipeline

        return DeviceDetectionPipeline(detector, max_batch=max_batch, cuda_graph=cuda_graph)
    from edgepose.pipelines.detect_host import HostDetection

    return HostDetection(detector.engine, detector.spec, detector.settings)
