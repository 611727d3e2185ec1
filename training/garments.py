"""The bundled model `garment-landmarks`: what it is, and how it is trained.

One small ResNet for all garments: 8 landmarks in the order of DeepFashion's ``full`` set. Upper garments have six of
them and lower garments four; the channels that a garment does not have are trained to stay empty, so a low score says
"not there". Left and right are the image's.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training import models
from edgepose.training.dataset import LandmarkDataset, load_coco
from edgepose.training.train import Schedule, Trainer
from edgepose.training.transforms import Augmentation

__all__ = ["ABSENT", "ARCHITECTURE", "STAGES", "Stage", "garment_spec", "train_garment_landmarks"]

ARCHITECTURE = "resnet18_w40"

# Landmarks that a category never has, in channels; those that are merely not labelled are masked instead.
ABSENT = {"upper": (4, 5), "lower": (0, 1, 2, 3)}


@dataclass(frozen=True)
class Stage:
    """One stage of the run: a resolution and its schedule."""

    input_size: tuple[int, int]
    schedule: Schedule


# Coarse first: a step at 128x160 costs 0.4 of one at 192x256, and which part is which can be learnt there.
STAGES = (
    Stage((128, 160), Schedule(epochs=60, learning_rate=1.5e-3, final_rate=0.2, extra_first=2000, extra_last=500)),
    Stage((192, 256), Schedule(epochs=70, learning_rate=6e-4, extra_first=400, extra_last=100, seed=1)),
)


def garment_spec(input_size: tuple[int, int] = (192, 256)) -> ModelSpec:
    """The model's spec, without the figures of a training run."""
    sides = ("left", "right")
    return ModelSpec(
        name="garment-landmarks",
        input_size=input_size,
        heatmap_size=(input_size[0] // 4, input_size[1] // 4),
        keypoint_names=tuple(f"{side} {part}" for part in ("collar", "sleeve", "waistline", "hem") for side in sides),
        flip_indices=(1, 0, 3, 2, 5, 4, 7, 6),
        skeleton=((0, 1), (0, 2), (1, 3), (4, 5), (6, 7), (4, 6), (5, 7)),
        colors=(
            (255, 99, 72), (255, 177, 66), (46, 213, 115), (200, 214, 60),
            (30, 144, 255), (0, 210, 211), (190, 84, 255), (255, 107, 193),
        ),
        codec="udp",
        refinement="dark_udp",
        license="Apache-2.0",
    )  # fmt: skip


def train_garment_landmarks(
    data: str | Path,
    output: str | Path,
    *,
    extra: str | Path | None = None,
    device: str = "cpu",
    stages: tuple[Stage, ...] = STAGES,
    workers: int = 2,
) -> tuple[torch.nn.Module, ModelSpec]:
    """Train (or go on training) the bundled model.

    Args:
        data: a folder with train.json and val.json (COCO, 8 keypoints) and their images.
        output: checkpoints and TensorBoard events of stage 1, 2, … go to ``output/1``, ``output/2``, …
        extra: a COCO file of synthetic garments, as ``edgepose synthesize`` writes it.
        device: a torch device.
        stages: resolutions and schedules; each stage starts from the averaged weights of the one before.
        workers: data loading processes.

    Returns:
        The model with its averaged weights, and its spec with the validation figures.
    """
    data, output = Path(data), Path(output)
    real = load_coco(data / "train.json", 8)
    validation = load_coco(data / "val.json", 8)
    synthetic = load_coco(extra, 8) if extra else []
    if not stages:
        raise InputError("stages is empty: give at least one Stage")
    torch.manual_seed(stages[0].schedule.seed)
    model = models.create(ARCHITECTURE, 8)
    for number, stage in enumerate(stages, 1):
        spec = garment_spec(stage.input_size)
        dataset = LandmarkDataset(
            real + synthetic, spec, augmentation=Augmentation(), absent=ABSENT, seed=stage.schedule.seed
        )
        folder = output / str(number)
        trainer = Trainer(
            model, spec, dataset, validation, stage.schedule, folder, real=len(real), device=device, workers=workers
        )
        trainer.resume()
        trainer.fit()
        model.load_state_dict(trainer.averaged)
        result = trainer.evaluate()
    return model.eval(), replace(
        spec,
        metrics=result.metrics(),
        training={
            "data": f"{len(real)} photos, {len(synthetic)} rendered garments; validated on {len(validation)} photos",
            "command": f"edgepose train garment-landmarks --data {data.name}"
            + (" --extra synthetic.json" if extra else ""),
            "date": datetime.date.today().isoformat(),
        },
    )
