"""PyTorch on a GPU: the usual way of MMPose, and all of it on the GPU.

``TorchNetwork`` takes MMPose's steps: OpenCV cuts each box out on the CPU, one batch of uint8 pictures goes up, then
colours, mean and deviation on the GPU (as MMPose's data preprocessor does), the network, heatmaps down, MMPose's
decoder in NumPy. Choices in its favour: float16 weights channels-last, cuDNN's benchmark mode, inference mode, pinned
memory for both copies; compiled, or as a CUDA graph for each batch size.

``TorchEverything`` is what a PyTorch user can do without a kernel of his own: the frame goes up whole, F.grid_sample
cuts the boxes out, the network, DARK or UDP with gathers and products, a few numbers down; all of it one CUDA graph
for each batch size.

The network is the one that the ONNX file was exported from, or, where there is only the file, its nodes in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgepose import geometry
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.peers import mmpose_steps as steps
from edgepose.benchmarks.peers.gpu_torch_kernels import blur_matrices, decode_maps, grid_crops
from edgepose.benchmarks.peers.opencv_steps import crop_pictures
from edgepose.benchmarks.torch_engine import OnnxNetwork

if TYPE_CHECKING:
    from edgepose.benchmarks.gpu_ways import GpuOptions

__all__ = ["TorchEverything", "TorchNetwork"]

Landmarks = tuple[NDArray[Any], NDArray[Any]]  # (N, K, 2) frame px, (N, K) scores
DEVICE = "cuda"
WARM_UP = 3  # as torch.cuda.graphs' documentation has it


class TorchNetwork:
    """MMPose's steps around a PyTorch network; see the module."""

    def __init__(
        self, model: BenchModel, options: GpuOptions, *, mode: Literal["eager", "compile", "graph"] = "eager"
    ) -> None:
        self.version = f"torch {torch.__version__}"
        self._spec = model.spec
        self._mode = mode
        self._colours = torch.tensor([model.spec.mean, model.spec.std], dtype=torch.float32, device=DEVICE)
        self._kind = torch.float16 if options.precision == "fp16" else torch.float32
        self._network: Callable[[torch.Tensor], torch.Tensor] = open_network(model, self._kind)
        if mode == "compile":
            self._network = torch.compile(self._network, mode="reduce-overhead", dynamic=False)
        self._buffers: dict[int, tuple[torch.Tensor, ...]] = {}
        self._graphs: dict[int, tuple[Any, torch.Tensor]] = {}

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> Landmarks:
        pictures, affines = crop_pictures(frame, boxes, self._spec)
        staged, there, maps = self._buffer(len(boxes))
        staged.copy_(torch.from_numpy(pictures))
        there.copy_(staged, non_blocking=True)
        # inference_mode is a little faster, no_grad is what torch.compile's documentation has
        with torch.no_grad() if self._mode == "compile" else torch.inference_mode():
            maps.copy_(self._heatmaps(there), non_blocking=True)
        wait()
        return steps.landmarks(maps.numpy().copy(), affines, self._spec)

    def _heatmaps(self, there: torch.Tensor) -> torch.Tensor:
        if self._mode != "graph":
            return self._forward(there)
        if len(there) not in self._graphs:
            self._graphs[len(there)] = graph_of(lambda: self._forward(there))
        graph, heatmaps = self._graphs[len(there)]
        graph.replay()
        return heatmaps

    def _forward(self, there: torch.Tensor) -> torch.Tensor:
        """(N, h, w, 3) uint8 BGR on the GPU -> (N, K, h, w) float32."""
        rgb = there.permute(0, 3, 1, 2).flip(1)
        images = ((rgb - self._colours[0].view(1, 3, 1, 1)) / self._colours[1].view(1, 3, 1, 1)).to(
            self._kind, memory_format=torch.channels_last
        )
        return self._network(images).float()

    def _buffer(self, count: int) -> tuple[torch.Tensor, ...]:
        """Pictures in pinned memory, on the GPU, and heatmaps in pinned memory."""
        if count not in self._buffers:
            width, height = self._spec.input_size
            maps = (count, self._spec.num_keypoints, *self._spec.heatmap_size[::-1])
            self._buffers[count] = (
                pinned((count, height, width, 3), torch.uint8),
                torch.empty((count, height, width, 3), dtype=torch.uint8, device=DEVICE),
                pinned(maps, torch.float32),
            )
        return self._buffers[count]

    def close(self) -> None:
        """Free everything on the GPU."""
        wait()
        self._graphs, self._buffers = {}, {}
        self._network = _closed


class TorchEverything:
    """Crops, network and decoder in PyTorch on the GPU; see the module."""

    def __init__(self, model: BenchModel, options: GpuOptions) -> None:
        self.version = f"torch {torch.__version__}"
        self._spec = model.spec
        self._kind = torch.float16 if options.precision == "fp16" else torch.float32
        self._network: Callable[[torch.Tensor], torch.Tensor] = open_network(model, self._kind)
        self._colours = torch.tensor([model.spec.mean, model.spec.std], dtype=torch.float32, device=DEVICE)
        self._blur = blur_matrices(model.spec.blur_kernel, model.spec.heatmap_size, DEVICE)
        self._graphs: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> Landmarks:
        _, inverses = geometry.crop_transforms(boxes, self._spec)
        key = (len(boxes), *frame.shape)
        if key not in self._graphs:
            self._graphs[key] = self._prepare(*key)
        graph, pinned_frame, there, pinned_places, places, found, landmarks = self._graphs[key]
        np.copyto(pinned_frame.numpy(), frame)
        there.copy_(pinned_frame, non_blocking=True)
        pinned_places.numpy()[0] = inverses
        pinned_places.numpy()[1] = geometry.cells_to_frame(inverses, self._spec)
        places.copy_(pinned_places, non_blocking=True)
        graph.replay()
        landmarks.copy_(found, non_blocking=True)
        wait()
        result = landmarks.numpy().copy()
        return result[..., :2], result[..., 2]

    def _prepare(self, count: int, height: int, width: int, channels: int) -> tuple[Any, ...]:
        """The graph for so many boxes of such frames, and its buffers."""
        pinned_frame = pinned((height, width, channels), torch.uint8)
        there = torch.zeros((height, width, channels), dtype=torch.uint8, device=DEVICE)
        # (2, N, 2, 3): crop px -> frame px, heatmap cells -> frame px
        pinned_places = pinned((2, count, 2, 3), torch.float32)
        places = torch.eye(2, 3, device=DEVICE).repeat(2, count, 1, 1)
        with torch.no_grad():
            graph, found = graph_of(lambda: self._forward(there, places))
        landmarks = pinned(tuple(found.shape), torch.float32)
        return graph, pinned_frame, there, pinned_places, places, found, landmarks

    def _forward(self, frame: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(N, K, 3): x, y in frame px, and the score."""
        images = grid_crops(frame, places[0], self._spec.input_size, self._colours)
        maps = self._network(images.to(self._kind, memory_format=torch.channels_last))
        cells, scores = decode_maps(maps, self._spec.refinement, self._blur)
        points = torch.einsum("nkc,ndc->nkd", cells, places[1, :, :, :2]) + places[1, :, None, :, 2]
        return torch.cat([points, scores[..., None]], dim=-1)

    def close(self) -> None:
        """Free everything on the GPU."""
        wait()
        self._graphs = {}
        self._network = _closed


def open_network(model: BenchModel, kind: torch.dtype) -> nn.Module:
    """The model's network on the GPU, in evaluation mode, channels-last."""
    torch.backends.cudnn.benchmark = True
    network = OnnxNetwork(model.path) if model.network is None else model.network()
    return network.eval().to(DEVICE, kind).to(memory_format=torch.channels_last)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory of the host that the GPU copies from and to by itself."""
    return torch.zeros(shape, dtype=dtype, pin_memory=True)


def wait() -> None:
    """Until the GPU has done all that is on PyTorch's current stream."""
    torch.cuda.current_stream().synchronize()


def graph_of(function: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """A CUDA graph of a function without arguments, and the tensor that each replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


def _closed(images: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("this way is closed")
