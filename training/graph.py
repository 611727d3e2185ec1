"""From a PyTorch network to an ONNX graph: what the exports of landmark models and of detectors share."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgepose.errors import ModelError
from edgepose.precision import FLOAT16_MAX

__all__ = ["fold_batch_norm", "round_weights", "store_weights_as_fp16", "traced"]

OPSET = 18


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each BatchNorm2d into the convolution registered right before it, in place.

    Registration order is execution order in our networks; in a network where it isn't, the check against the
    unfolded one fails and nothing is written.
    """
    previous: tuple[str, nn.Conv2d | nn.ConvTranspose2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            before, conv = previous
            setattr(module, before, fuse_conv_bn_eval(conv, child, transpose=isinstance(conv, nn.ConvTranspose2d)))
            setattr(module, name, nn.Identity())
        fold_batch_norm(child)
        previous = (name, child) if isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)) else None


@torch.no_grad()
def round_weights(network: nn.Module) -> None:
    """Round the convolutions' weights to float16 values, in place; biases are few and stay exact."""
    for name, parameter in network.named_parameters():
        if not parameter.abs().max() <= FLOAT16_MAX:
            raise ModelError(f"{name} holds values beyond ±{FLOAT16_MAX:g} or NaN, which float16 cannot: use fp32")
        if parameter.ndim >= 2:
            parameter.copy_(parameter.half().float())


def traced(network: nn.Module, example: Tensor, *, name: str, input_name: str, output_name: str) -> onnx.ModelProto:
    """The network as an ONNX graph of dynamic batch, without traces of this machine.

    Args:
        network: one input, one output.
        example: (N, 3, h, w), with N of at least 2: a batch of 1 would be taken as fixed.
        name: of the graph.
        input_name, output_name: of the graph's input and output.

    Raises:
        ModelError: this PyTorch's exporter cannot do it.
    """
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[input_name],
            output_names=[output_name],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:  # only older, non-dynamo exporters do that
        raise ModelError(f"torch.onnx of PyTorch {torch.__version__} gave no graph: install PyTorch 2.6 or later")
    proto: onnx.ModelProto = program.model_proto
    proto.graph.name = name
    # The exporter notes the Python stack, with this machine's paths, at every node.
    graph = proto.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    del proto.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch.onnx says about itself (missing torchvision, its own deprecations); errors still come."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def store_weights_as_fp16(proto: onnx.ModelProto) -> None:
    """Store the float32 weights as float16 behind a Cast, in place. Their values are float16 values already."""
    graph = proto.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name, stored = tensor.name, f"{tensor.name}.fp16"
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], name=f"widen/{name}", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(proto, full_check=True)
