"""PyTorch on the CPU: the steps of MMPose 1.3.2's ``inference_topdown``, as its documentation calls it.

For each box: centre and scale with padding 1.25, an affine (MSRA's or UDP's, as the model's codec says), OpenCV's
warpAffine. The crops are collated into one batch; the data preprocessor swaps the colours and normalises the tensor;
the network runs; the heatmaps go to NumPy; the codec decodes one instance after the other, DARK's blur over whole maps;
the points go back to the frame. The network is the one that the ONNX file was exported from or, where only the file is
known, its nodes one by one.

Choices in its favour: no flip test (MMPose's configurations switch it on, which doubles the time), no data samples and
no registry between the steps, one normalisation for the whole batch, inference mode; as many threads as PyTorch takes
by itself, but no more than the process may use. And three ways that MMPose does not have:

    channels last    the same with weights and images channels-last, which oneDNN does not have to reorder
    frozen           torch.jit: traced, batch normalisation folded, handed to oneDNN block by block
    compiled         torch.compile, channels-last, for any number of boxes; compiling takes minutes, so it takes part
                     where it is asked for. Its option to freeze weights stays off: heatmaps of our ResNet-50 were then
                     wrong (PyTorch 2.13, CPU)
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.peers import mmpose_steps
from edgepose.benchmarks.peers.opencv_steps import crop_pictures
from edgepose.benchmarks.ways import UnavailableError, WayOptions, session_threads

try:
    import torch
except ModuleNotFoundError as error:
    raise UnavailableError("PyTorch is not installed: pip install 'edgepose[bench]'") from error

__all__ = ["PyTorchWay"]


class PyTorchWay:
    """See the module. The number of threads is the process's, so another way that uses PyTorch has it too."""

    def __init__(self, model: BenchModel, options: WayOptions, *, mode: str = "eager") -> None:
        if options.precision != "fp32":
            raise UnavailableError(f"this way runs the float32 network, not {options.precision}")
        self.name = "pytorch" if mode == "eager" else f"pytorch, {mode}"
        if threads := session_threads(options):
            torch.set_num_threads(threads)
        self.version = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        self._spec = model.spec
        self._mean, self._std = torch.tensor([model.spec.mean, model.spec.std], dtype=torch.float32).view(2, 1, 3, 1, 1)
        last = mode in {"channels last", "compiled"}
        self._layout = torch.channels_last if last else torch.contiguous_format
        network = _network(model).to(memory_format=self._layout)
        if mode == "frozen":
            width, height = model.spec.input_size
            network = _frozen(network, torch.zeros(2, 3, height, width))
        elif mode == "compiled":
            network = torch.compile(network, dynamic=True)
        self._network: Any = network

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        pictures, affines = crop_pictures(frame, boxes, self._spec)
        with torch.inference_mode():
            rgb = torch.from_numpy(pictures).permute(0, 3, 1, 2)[:, [2, 1, 0]].float()
            images = ((rgb - self._mean) / self._std).contiguous(memory_format=self._layout)
            heatmaps = self._network(images).contiguous().numpy()
        return mmpose_steps.landmarks(heatmaps, affines, self._spec)

    def close(self) -> None:
        """Drop the network."""
        self._network = None


def _network(model: BenchModel) -> Any:
    if model.network is not None:
        return model.network().eval()
    from edgepose.benchmarks.torch_engine import OnnxNetwork

    try:
        return OnnxNetwork(model.path).eval()
    except ValueError as error:
        raise UnavailableError(str(error)) from error


def _frozen(network: Any, example: Any) -> Any:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit will be superseded
        return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(network, example)))
