"""The ResNet-50 that the benchmarks time: a trained network of full size whose weights fit into two megabytes.

None of the published checkpoints may be passed on, and 136 MB of weights do not belong into a repository; but timing
noise would say nothing about landmarks, least of all about what INT8 costs them. So each convolution's weights are
seeded noise plus a product of two thin matrices, and only those are trained and stored (Hu et al., LoRA, 2021), with
batch normalisation and the last layer. Multiplied out, it is the SimpleBaseline ResNet-50 of every other checkpoint:
the same layers, the same cost.

    python benchmarks/resnet50.py resnet50.onnx                       # what `edgepose bench` does where it needs it
    python benchmarks/resnet50.py --train garments/ --extra rendered/synthetic.json --output run/   # about an hour
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from edgepose.spec import ModelSpec
from edgepose.specfields import IMAGENET_MEAN, IMAGENET_STD
from edgepose.training import models
from edgepose.training.coco import load_coco
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.evaluate import evaluate
from edgepose.training.export import ExportReport, export_onnx
from edgepose.training.garments import ABSENT, garment_spec
from edgepose.training.schedule import Execution, Schedule
from edgepose.training.train import Trainer
from edgepose.training.transforms import Augmentation

WEIGHTS = Path(__file__).parent / "models" / "resnet50-garments.npz"
NAME = "resnet50-garments"
RANK, SEED = 8, 2026
KEYPOINTS = 8


class LowRank(nn.Module):
    """A parametrization: weights = noise + up @ down, in the shape of a convolution's weights."""

    def __init__(self, noise: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = noise.shape[0], noise[0].numel()
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return noise + (self.up @ self.down).view_as(noise)


def noisy_network() -> models.PoseNetwork:
    """ResNet-50 with SimpleBaseline's head; every convolution but the last is uniform noise of He's deviation.

    From the generator's raw bits, which NumPy keeps the same in all versions.
    """
    network = models.create("resnet50", KEYPOINTS)
    for number, layer in enumerate(_thin_layers(network)):
        weight = layer.weight
        # each output of a transposed convolution with stride 2 sums a quarter of the kernel
        inputs = weight[0].numel() if isinstance(layer, nn.Conv2d) else weight.shape[0] * weight[0, 0].numel() // 4
        bits = np.random.PCG64([SEED, number]).random_raw(weight.numel()) >> np.uint64(40)
        noise = (bits.astype(np.float32) / 2**23 - 1) * np.float32((6 / inputs) ** 0.5)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(noise).view_as(weight))
    return network


def trainable_network() -> models.PoseNetwork:
    """The noise fixed, the thin matrices to be learnt."""
    torch.manual_seed(SEED)
    network = noisy_network()
    for layer in _thin_layers(network):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight.detach(), RANK))
        layer.parametrizations.weight.original.requires_grad_(False)
    return network


def save_thin(state: dict[str, torch.Tensor], path: Path) -> None:
    """Of a trainable network's state all but the noise; the thin matrices in half precision."""
    kept = {name: value.numpy() for name, value in state.items() if not name.endswith("weight.original")}
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **{n: v.astype(np.float16) if "parametrizations" in n else v for n, v in kept.items()})


def load_network(path: Path = WEIGHTS) -> models.PoseNetwork:
    """The trained network, multiplied out."""
    network = trainable_network()
    with np.load(path) as file:
        noise = {name: value for name, value in network.state_dict().items() if name.endswith("weight.original")}
        network.load_state_dict({**noise, **{name: torch.from_numpy(file[name]) for name in file.files}})
    for layer in _thin_layers(network):
        parametrize.remove_parametrizations(layer, "weight")
    return network.eval()


def spec(input_size: tuple[int, int] = (192, 256)) -> ModelSpec:
    """garment-landmarks' eight landmarks with ImageNet's normalisation and MMPose's sampling."""
    return replace(garment_spec(input_size, name=NAME), mean=IMAGENET_MEAN, std=IMAGENET_STD, sampling="opencv4")


def export(output: Path) -> ExportReport:
    """The model as ONNX, float32."""
    return export_onnx(
        load_network(), replace(spec(), training={"weights": "seeded noise and trained matrices of rank 8"}), output
    )


def train(data: Path, extra: Path, output: Path) -> dict[str, float]:
    """Coarse, then twice fine; writes WEIGHTS and returns the metrics of what it holds, on val.json."""
    photos = load_coco(data / "train.json", KEYPOINTS)
    if (data / "pseudo.json").exists():
        photos += load_coco(data / "pseudo.json", KEYPOINTS)
    validation, rendered = load_coco(data / "val.json", KEYPOINTS), load_coco(extra, KEYPOINTS)
    network = trainable_network()
    stages = (
        ((96, 128), Schedule(epochs=16, learning_rate=3e-3, warmup_steps=100, average=0.99, extra_first=900,
                             extra_last=700, evaluate_every=4, final_rate=0.1)),
        ((192, 256), Schedule(epochs=2, learning_rate=8e-4, warmup_steps=20, average=0.98, extra_first=200,
                              extra_last=100, evaluate_every=1, final_rate=0.02, seed=1)),
        ((192, 256), Schedule(epochs=4, learning_rate=1.5e-3, warmup_steps=10, average=0.97, extra_first=100,
                              extra_last=50, evaluate_every=2, final_rate=0.02, seed=2)),
    )  # fmt: skip
    for number, (size, schedule) in enumerate(stages, 1):
        dataset = LandmarkDataset(photos + rendered, spec(size), augmentation=AUGMENTATION, absent=ABSENT)
        trainer = Trainer(
            network, spec(size), dataset, validation, schedule, output / str(number), real=len(photos),
            execution=Execution(workers=1),
        )  # fmt: skip
        trainer.resume()
        trainer.fit(print)
        network.load_state_dict(trainer.weights())
    save_thin(network.state_dict(), WEIGHTS)
    trained = load_network()

    def heatmaps(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return trained(torch.from_numpy(images)).numpy()

    return evaluate(heatmaps, validation, spec()).metrics()


AUGMENTATION = Augmentation(rotation=15.0, scale=(0.85, 1.15), shift=0.05, shear=0.03, elastic=0.1, gray=0.04, far=0.0)


def _thin_layers(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    """All convolutions but the last, which is small and trained whole."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    return [layer for layer in layers if layer is not network.head.final_layer]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", default=Path("resnet50-garments.onnx"))
    parser.add_argument("--train", type=Path, metavar="GARMENTS")
    parser.add_argument("--extra", type=Path)
    parser.add_argument("--run", type=Path, default=Path("run"))
    arguments = parser.parse_args()
    if arguments.train:
        print(train(arguments.train, arguments.extra, arguments.run))
    print(export(arguments.output))


if __name__ == "__main__":
    main()
