"""Export to ONNX: one file with the weights and the ModelSpec inside, checked against PyTorch before it is written.

Precision lives in the graph (TensorRT 11 has no other way): ``fp16`` exports a half-precision network with float16
input and output. Batch normalisation is folded into the convolutions first, in float32, so that a float16 network
rounds once and not twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from edgepose.errors import InputError, MissingDependencyError, ModelError
from edgepose.files import write_atomically
from edgepose.precision import rounded_to_fp16
from edgepose.spec import ModelSpec
from edgepose.training import models, recipes
from edgepose.training.checkpoint import check_trained_for, describe_checkpoint, load_weights, read_checkpoint

try:
    import onnx
    import onnxscript  # noqa: F401  (torch.onnx needs it; asked for here, so that its absence gets a message)
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise MissingDependencyError(f"export needs {error.name}: pip install 'edgepose[train]'") from error

from edgepose.training.graph import fold_batch_norm, round_weights, store_weights_as_fp16, traced

__all__ = ["ExportReport", "checked_output", "export_onnx", "export_recipe", "random_model", "run_onnx"]

Precision = Literal["fp32", "fp16"]

INPUT_NAME = "images"
OUTPUT_NAME = "heatmaps"
CHECKED_BATCHES = (1, 3)
# Largest difference to PyTorch, relative to the largest heatmap value, that a file may have. fp32: the order of sums
# (seen: 2e-6). fp16: 11 significant bits through 50 to 300 layers (seen, ResNet-50 and HRNet-W48 with random weights:
# 4e-4 from the arithmetic, 9e-4 from rounding the weights). A network whose activations overflow is far beyond both.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and how far it is from PyTorch.

    Attributes:
        path: the ONNX file.
        bytes: its size.
        precision: of the arithmetic and of the file's input and output: ``fp32`` or ``fp16``.
        weights: how the weights are stored.
        max_error: largest difference of ONNX Runtime's heatmaps to PyTorch's, with the weights as stored, over random
            inputs of batch 1 and 3, relative to PyTorch's largest value.
        rounding_error: what storing the weights as float16 changed, in the same measure; 0 for ``fp32`` weights.
    """

    path: Path
    bytes: int
    precision: Precision
    weights: Precision
    max_error: float
    rounding_error: float


def export_recipe(
    recipe_name: str,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    precision: Precision = "fp32",
    declared: bool = False,
) -> ExportReport:
    """Export a recipe's network, with a checkpoint's weights or with random ones (to measure speed).

    Args:
        recipe_name: a name of :data:`edgepose.training.recipes.RECIPES`.
        output: the .onnx file to write.
        checkpoint: a .pth file, MMPose's or this repository's.
        random_weights: seeded random weights instead; the landmarks are then meaningless, the costs real.
        precision: ``fp32`` or ``fp16``.
        declared: the UDP reading of an hrnet_w48_udp recipe, see :meth:`Recipe.declared`.

    Raises:
        InputError: the recipe is unknown; both or neither of checkpoint and random_weights are given; an argument of
            `export_onnx` is wrong.
        ModelError: the checkpoint cannot be read, does not fit, or is of another recipe; the export differs from
            PyTorch.
    """
    recipe = recipes.find(recipe_name)
    if (checkpoint is not None) == random_weights:
        came = "both" if random_weights else "neither"
        raise InputError(f"give a checkpoint or ask for random weights: one of the two is needed, {came} came")
    path = checked_output(output)
    if declared and not recipe.declares_udp:
        raise InputError(f"{recipe.name} declares what it is: declared is for the hrnet_w48_udp recipes")
    recipe = recipe.declared() if declared else recipe
    spec = recipe.spec()
    if checkpoint is not None:
        model = models.create(recipe.architecture, recipe.num_outputs)
        state, info = read_checkpoint(checkpoint)
        check_trained_for(recipe, info)
        load_weights(model, state, checkpoint)
        spec = replace(spec, **describe_checkpoint(recipe, checkpoint))
    else:
        model = random_model(recipe)
        spec = replace(spec, training={"weights": "random: for timing only"})
    return export_onnx(model, spec, path, precision=precision, keypoint_range=recipe.landmarks.channels)


def export_onnx(
    model: nn.Module,
    spec: ModelSpec,
    path: str | Path,
    *,
    precision: Precision = "fp32",
    weights: Precision | None = None,
    keypoint_range: tuple[int, int] | None = None,
) -> ExportReport:
    """Write a network as one ONNX file: ``images`` (N, 3, h, w) -> ``heatmaps`` (N, K, h/4, w/4), N dynamic.

    The model is left as it is; nothing is written unless the check against PyTorch passes.

    Args:
        model: images (N, 3, h, w) -> heatmaps (N, K, h', w'). Exported in evaluation mode.
        spec: goes into the file's metadata; must fit the exported heatmaps.
        path: the .onnx file; replaced if it exists. Its folder must exist.
        precision: ``fp32``; or ``fp16``: everything in half precision, input and output included.
        weights: ``fp16`` with fp32 precision stores the weights in half the bytes and computes in float32 (ONNX
            Runtime widens them once, when it loads the file). None: as ``precision``.
        keypoint_range: export only the output channels [start, stop): a category of a DeepFashion2 network. The last
            layer's weights are cut, so the other channels cost nothing.

    Raises:
        InputError: an argument is not one of the above, or the folder of `path` does not exist.
        ModelError: the network and the spec contradict each other; a weight does not fit into float16; the exported
            file's heatmaps differ from PyTorch's by more than `TOLERANCE`.
    """
    weights = precision if weights is None else weights
    for name, value in (("precision", precision), ("weights", weights)):
        if value not in get_args(Precision):
            raise InputError(f"{name} must be one of {', '.join(get_args(Precision))}, not {value!r}")
    if precision == "fp16" and weights == "fp32":
        raise InputError("an fp16 network has fp16 weights: leave weights out, or ask for precision='fp32'")
    path = checked_output(path)
    network = copy.deepcopy(model).cpu().float().eval()
    if keypoint_range is not None:
        _slice_head(network, keypoint_range)
    images = _random_images(max(CHECKED_BATCHES), spec.input_size)
    original = _run_torch(network, images, spec)

    fold_batch_norm(network)
    expected = original
    if weights == "fp16":
        round_weights(network)
        expected = _run_torch(network, images, spec)
    proto = _trace(network.half() if precision == "fp16" else network, spec)
    if precision == "fp32" and weights == "fp16":
        store_weights_as_fp16(proto)
    data = proto.SerializeToString(deterministic=True)

    max_error = _check(data, images, expected, precision)
    rounding_error = _relative_error(expected, original)
    if not rounding_error <= TOLERANCE["fp16"]:
        raise ModelError(
            f"{spec.name}: float16 weights change the heatmaps by {rounding_error:.1e} of their maximum, more than "
            f"{TOLERANCE['fp16']:g}: export with fp32 weights"
        )
    write_atomically(path, data)
    return ExportReport(path, len(data), precision, weights, max_error, rounding_error)


# The network ------------------------------------------------------------------------------------


def _slice_head(network: nn.Module, keypoint_range: tuple[int, int]) -> None:
    """Keep the output channels [start, stop) of the last layer, in place."""
    head = getattr(network, "head", None)
    layer = getattr(head, "final_layer", None)
    if not isinstance(layer, nn.Conv2d):
        raise InputError("keypoint_range needs a network of edgepose.training.models (a head.final_layer to cut)")
    start, stop = keypoint_range
    if not 0 <= start < stop <= layer.out_channels:
        raise InputError(f"keypoint_range {keypoint_range} is not a range within 0..{layer.out_channels}")
    layer.weight = nn.Parameter(layer.weight[start:stop].detach().clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[start:stop].detach().clone())
    layer.out_channels = stop - start


def random_model(recipe: recipes.Recipe) -> models.PoseNetwork:
    """The recipe's network with seeded random weights whose maps have a trained network's scale.

    Weights for training would do in fp32, but their maps vanish (1e-6 and less), where float16 has no precision left.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.create(recipe.architecture, recipe.num_outputs).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.7)  # damps the residual branches: 1 would let the sums explode
            elif isinstance(module, nn.ConvTranspose2d):  # each output sums a quarter of the kernel
                nn.init.normal_(module.weight, std=(8 / (module.in_channels * module.weight[0, 0].numel())) ** 0.5)
        with torch.no_grad():
            heatmaps = model(torch.from_numpy(_random_images(1, recipe.input_size)))
            model.head.final_layer.weight /= heatmaps.abs().max()
    return model


def _random_images(count: int, input_size: tuple[int, int]) -> np.ndarray:
    """(count, 3, h, w) float32: what normalised photos would be if they were noise."""
    width, height = input_size
    return np.random.default_rng(0).standard_normal((count, 3, height, width), dtype=np.float32)


def _run_torch(network: nn.Module, images: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """The network's heatmaps (N, K, h', w'), after checking that they are what the spec says."""
    with torch.inference_mode():
        heatmaps = network(torch.from_numpy(images))
    width, height = spec.heatmap_size
    expected = (len(images), spec.num_keypoints, height, width)
    if not isinstance(heatmaps, Tensor) or tuple(heatmaps.shape) != expected:
        came = tuple(heatmaps.shape) if isinstance(heatmaps, Tensor) else type(heatmaps).__name__
        raise ModelError(
            f"{spec.name}: by its spec images {images.shape} give heatmaps {expected}, the network gives {came}. "
            "Correct the spec's input_size, heatmap_size or keypoint_names; or give the category's keypoint_range"
        )
    if not torch.isfinite(heatmaps).all():
        raise ModelError(f"{spec.name}: the network's heatmaps hold NaN or infinity; the weights are broken")
    return heatmaps.numpy()


# The graph --------------------------------------------------------------------------------------


def _trace(network: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """The network as an ONNX graph with the spec in its metadata."""
    dtype = next(network.parameters()).dtype
    example = torch.from_numpy(_random_images(2, spec.input_size)).to(dtype)  # 2: a batch of 1 would be taken as fixed
    proto = traced(network, example, name=spec.name, input_name=INPUT_NAME, output_name=OUTPUT_NAME)
    spec.write_metadata(proto)
    return proto


def run_onnx(data: bytes, precision: Precision) -> Callable[[np.ndarray], np.ndarray]:
    """An exported file's network in ONNX Runtime: images (N, 3, h, w) float32 -> heatmaps (N, K, h', w') float32.

    ONNX Runtime computes a float16 graph in float32 on the CPU, so that activations neither round nor overflow; for
    fp16 it gets the graph that says where they do.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if precision == "fp16":
        data = rounded_to_fp16(onnx.load_from_string(data)).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        if precision == "fp16":
            images = images.astype(np.float16).astype(np.float32)
        (heatmaps,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        return np.asarray(heatmaps, np.float32)

    return run


def _check(data: bytes, images: np.ndarray, expected: np.ndarray, precision: Precision) -> float:
    """Run the file's bytes in ONNX Runtime and return the largest error relative to PyTorch's maximum.

    Raises:
        ModelError: it is above `TOLERANCE`.
    """
    run = run_onnx(data, precision)
    worst = 0.0
    for batch in CHECKED_BATCHES:
        worst = max(worst, _relative_error(run(images[:batch]), expected[:batch]))
    if not worst <= TOLERANCE[precision]:
        raise ModelError(
            f"the exported {precision} network differs from PyTorch by {worst:.1e} of the largest heatmap value; at "
            f"most {TOLERANCE[precision]:g} is allowed, so nothing was written"
            + (". Its activations may not fit into float16: export fp32" if precision == "fp16" else "")
        )
    return worst


def _relative_error(heatmaps: np.ndarray, expected: np.ndarray) -> float:
    if heatmaps.shape != expected.shape or not np.isfinite(heatmaps).all():
        return float("inf")
    scale = float(np.abs(expected).max())
    difference = float(np.abs(heatmaps - expected).max())
    return difference / scale if scale > 0 else difference


# The file ---------------------------------------------------------------------------------------


def checked_output(path: str | Path) -> Path:
    """The path of an ONNX file that can be written.

    Raises:
        InputError: its name does not end in .onnx, or its folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"the output must be an .onnx file, not {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {str(path.parent)!r} does not exist: create it first")
    return path
