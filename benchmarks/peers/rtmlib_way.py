"""rtmlib from PyPI, unmodified: its ViTPose class, which takes any heatmap model in an ONNX file, ours too.

It loops over the boxes: warpAffine, normalisation in NumPy, one run of the network, DARK's refinement (UDP's form).
Choices in its favour: it does not swap BGR to RGB, so it gets a copy of the file whose first convolution takes BGR, and
the colour statistics in that order: nothing is left to do at run time. Where the process may not use all CPUs, its
session gets as many threads as it may.

Its geometry is not the model's. It warps as MSRA does, crop = (x - centre) * w / scale + w / 2, and goes back as UDP
does, x = crop / (w - 1) * scale + centre - scale / 2. So its points lie a little beside what it meant, which
:meth:`RtmlibWay.explained` tells; and a model that was trained with UDP gets a crop that is shifted by half a pixel, a
slightly different picture, on which the network says something else. That is its landmarks' loss, and no less work: so
it is held against the model on such crops (:meth:`RtmlibWay.meant`), and how far it is from the others is told beside.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.peers import mmpose_steps
from edgepose.benchmarks.peers.onnxruntime_way import heatmaps_of
from edgepose.benchmarks.peers.opencv_steps import network_input
from edgepose.benchmarks.peers.openvino_probe import EMULATING, VARIABLE, probe, surviving
from edgepose.benchmarks.ways import UnavailableError, WayOptions, model_file, session_threads
from edgepose.spec import ModelSpec

try:
    from rtmlib.tools.pose_estimation.vitpose import ViTPose
except ModuleNotFoundError as error:
    raise UnavailableError(
        f"{error.name} is not installed: pip install --no-deps rtmlib tqdm (with its dependencies it would install "
        "opencv-python over opencv-python-headless)"
    ) from error

__all__ = ["RtmlibWay", "takes_bgr"]

PADDING, BLUR = 1.25, 11  # its own, not to be set
# What stands before a convolution or its weights without mixing channels
PASSES = ("Cast", "Identity", "Pad", "QuantizeLinear", "DequantizeLinear")
# OpenVINO as rtmlib opens it, once, in a process of its own
PROBE = """
import sys, numpy, openvino
model = openvino.Core().compile_model(sys.argv[1], "CPU", {"PERFORMANCE_HINT": "LATENCY"})
print(model.get_property("INFERENCE_PRECISION_HINT").to_string(), flush=True)
model(numpy.zeros((1, 3, int(sys.argv[3]), int(sys.argv[2])), numpy.float32))
"""


class RtmlibWay:
    """See the module."""

    def __init__(self, model: BenchModel, options: WayOptions, *, backend: str = "onnxruntime") -> None:
        spec = model.spec
        if spec.padding != PADDING:
            raise UnavailableError(f"rtmlib pads boxes by {PADDING}, this model wants {spec.padding}")
        self.name = "rtmlib" if backend == "onnxruntime" else f"rtmlib, {backend}"
        self.version = f"rtmlib {version('rtmlib')}, {backend} {version(backend)}"
        self._spec, self._float32 = spec, model.path
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints
            path = Path(folder) / "bgr.onnx"
            onnx.save(takes_bgr(onnx.load(model_file(model, options)), model.name), path)
            if backend == "openvino":
                self.version += f", its default precision here: {_openvino_default(path, spec)}"
            with _threads(session_threads(options)):
                self._model: Any = ViTPose(
                    str(path), spec.input_size, mean=spec.mean[::-1], std=spec.std[::-1], backend=backend, device="cpu"
                )

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        if not len(boxes):  # it would take the whole frame
            k = self._spec.num_keypoints
            return np.zeros((0, k, 2)), np.zeros((0, k))
        keypoints, scores = self._model(frame, boxes)
        return keypoints, scores

    def meant(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """The model on crops as MSRA cuts them, decoded as rtmlib does, its points put where those crops have them."""
        pictures, affines = mmpose_steps.crop_pictures(frame, boxes, replace(self._spec, codec="msra"))
        heatmaps = heatmaps_of(self._float32, network_input(pictures, self._spec))
        cells, _ = mmpose_steps.decode(heatmaps, "none")
        for points, maps in zip(cells, heatmaps, strict=True):
            # As MMPose refines, but for the blur at a map's border, where MMPose pads with zeros and rtmlib mirrors:
            # a peak that lies there ends up px elsewhere
            blurred = np.stack([cv2.GaussianBlur(each, (BLUR, BLUR), 0) for each in maps])
            mmpose_steps.newton_udp(points, np.log(np.clip(blurred, 1e-3, 50)))
        crop = geometry.heatmap_to_crop(cells, self._spec.codec, self._spec.input_size, self._spec.heatmap_size)
        return geometry.transform_points(crop, geometry.invert_affines(affines))

    def explained(self, keypoints: NDArray[Any], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """The frame px that its own warp shows where its decoder found the peaks."""
        size, cells = np.array(self._spec.input_size, np.float64), np.array(self._spec.heatmap_size) - 1
        centre = (boxes[:, None, :2].astype(np.float64) + boxes[:, None, 2:]) / 2
        sides = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]) * PADDING
        per = np.maximum(sides[:, 0] / size[0], sides[:, 1] / size[1])[:, None, None]  # frame px of a crop px
        scale = per * size
        found = (np.asarray(keypoints, np.float64) - centre + scale / 2) / scale * cells
        crop = geometry.heatmap_to_crop(found, self._spec.codec, self._spec.input_size, self._spec.heatmap_size)
        return np.asarray((crop - size / 2) * per + centre)

    def close(self) -> None:
        """Drop the model."""
        self._model = None


def takes_bgr(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same network for BGR: the input channels of its first convolution in reverse order; ``model`` is changed.

    Raises UnavailableError where the first layer is not a convolution with weights in the file.
    """
    graph = model.graph
    made = {node.output[0]: node for node in graph.node}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    value: str | None = graph.input[0].name
    first: onnx.NodeProto | None = None
    while value is not None and first is None:
        users = [node for node in graph.node if value in node.input]
        first = users[0] if len(users) == 1 and users[0].op_type == "Conv" else None
        value = users[0].output[0] if len(users) == 1 and users[0].op_type in PASSES else None
    source = first.input[1] if first is not None else ""
    while source in made and made[source].op_type in PASSES:
        source = made[source].input[0]
    if source not in weights or weights[source].dims[1] != 3:
        raise UnavailableError(f"rtmlib feeds BGR, and {name} does not begin with a convolution that could take it")
    tensor = weights[source]
    turned = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)[:, ::-1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
    return model


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sessions of ONNX Runtime that are opened inside have so many threads; rtmlib has no option for it."""
    if count is None:
        yield
        return
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = count
    session = functools.partial(onnxruntime.InferenceSession, sess_options=settings)
    with mock.patch.object(onnxruntime, "InferenceSession", session):
        yield


def _openvino_default(path: Path, spec: ModelSpec) -> str:
    """The precision that OpenVINO takes unasked.

    Raises:
        UnavailableError: it ends the process, or it would be emulated because of ONEDNN_MAX_CPU_ISA: its time would
            then be this setting's doing.
    """
    arguments = (str(path), *(str(side) for side in spec.input_size))
    found = probe(PROBE, arguments)
    precision, limit = (found.told.split() or [""])[-1], os.environ.get(VARIABLE, "")
    if precision == "bf16" and limit.upper() in EMULATING:
        raise UnavailableError(
            f"OpenVINO's default precision here is bf16, which {VARIABLE}={limit} makes it emulate, and rtmlib cannot "
            "set another: its time would be that setting's doing"
        )
    if found.died:
        isa = surviving(PROBE, arguments)
        native = bool(isa) and isa not in EMULATING
        raise UnavailableError(
            f"OpenVINO's default precision ends the process on this machine ({found.died}), and rtmlib cannot set "
            "another" + (f". Set {VARIABLE}={isa} for the whole command" if native else "")
        )
    if found.refused:
        raise UnavailableError(f"OpenVINO does not take the file: {found.refused}")
    return precision
