"""What the tests of quantising share: networks of convolutions whose landmarks are known, and pictures for them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from painter import HEATMAP_SIZE, INPUT_SIZE, blobs, painter_spec

from edgepose import ModelSpec

SPEC = painter_spec("msra", padding=1.0)
PICTURES = 12


def write_network(path: Path, *, opset: int = 17, batch: int | str = "N", transposed: bool = False,
                  spread: float = 1.0, spec: ModelSpec = SPEC) -> Path:  # fmt: skip
    """A network that smooths and copies colours, so heatmap k has a peak where colour channel k has its blob.

    Three convolutions with batch normalisation and Relu, the first and the second with stride 2, then a last one.

    Args:
        path: where to write it.
        opset, batch: of the file.
        transposed: stride 4 in the second convolution and a transposed convolution after it.
        spread: how much larger one channel is than the others between the convolutions: one scale for all of them then
            leaves nothing of the small ones.
        spec: stored in it.
    """
    rng = np.random.default_rng(0)
    bell = np.outer(*[np.array([1, 2, 1]) / 4] * 2)
    scales = np.array([spread, 1, 1])

    def smoothing(gain: np.ndarray) -> np.ndarray:
        return np.einsum("oi,hw->oihw", np.diag(gain), bell)

    tensors: dict[str, np.ndarray] = {}
    nodes, last = [], "images"
    steps = ((scales, 2), (np.ones(3), 4 if transposed else 2), (1 / scales, 1))
    for number, (gain, stride) in enumerate(steps):
        tensors[f"w{number}"] = smoothing(gain)
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], kernel_shape=[3, 3],
                                      strides=[stride, stride], pads=[1, 1, 1, 1]))  # fmt: skip
        names = [f"{word}{number}" for word in ("scale", "bias", "mean", "var")]
        mean = rng.uniform(-0.01, 0.01, 3)
        tensors |= dict(zip(names, (np.ones(3), np.zeros(3), mean, np.ones(3)), strict=True))
        nodes.append(helper.make_node("BatchNormalization", [f"c{number}", *names], [f"n{number}"], epsilon=0.0))
        nodes.append(helper.make_node("Relu", [f"n{number}"], [last := f"r{number}"]))
        if transposed and number == 1:
            tensors["up"] = np.einsum("oi,hw->oihw", np.eye(3), np.outer(*[np.array([1, 3, 3, 1]) / 4] * 2))
            nodes.append(helper.make_node("ConvTranspose", [last, "up"], ["u"], kernel_shape=[4, 4], strides=[2, 2],
                                          pads=[1, 1, 1, 1]))  # fmt: skip
            nodes.append(helper.make_node("Relu", ["u"], [last := "ur"]))
    tensors["final"] = np.eye(3)[:, :, None, None]
    nodes.append(helper.make_node("Conv", [last, "final"], ["heatmaps"], kernel_shape=[1, 1]))
    (w, h), (hw, hh) = INPUT_SIZE, HEATMAP_SIZE
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, h, w])],
        [helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, [batch, 3, hh, hw])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    spec.write_metadata(model)
    onnx.save(model, path)
    return path


def write_pictures(folder: Path, count: int = PICTURES) -> Path:
    """Pictures twice as large as the crop with a blob of each colour; ``centres`` says where."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        picture = blobs((192, 256), centres(number), 14)
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), picture)
    return folder


def centres(number: int) -> np.ndarray:
    """(3, 2) px: where the red, green and blue blobs of a picture are."""
    return np.random.default_rng(number).uniform((50, 60), (142, 196), (3, 2))
