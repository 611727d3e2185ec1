"""How `garment-landmarks`, the bundled model, is trained: `edgepose train garment-landmarks`."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from edgepose.errors import InputError
from edgepose.media import photos_in
from edgepose.predictor import Predictor
from edgepose.spec import ModelSpec
from edgepose.training import models
from edgepose.training.coco import Annotation, load_coco, write_coco
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.export import export_onnx
from edgepose.training.garments import ABSENT, CATEGORIES, garment_spec
from edgepose.training.pseudo import pseudo_label
from edgepose.training.train import Schedule, Trainer
from edgepose.training.transforms import Augmentation

__all__ = ["ARCHITECTURE", "STAGES", "Stage", "train_garment_landmarks"]

ARCHITECTURE = "resnet18_w40"


@dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes:
        input_size: (w, h) px.
        schedule: see :class:`Schedule`.
        repeats: how often an epoch sees a photo of a category; once where it is not named.
        augmentation: how much the crops vary.
        labelled_only: leave out the photos that the model labelled itself.
    """

    input_size: tuple[int, int]
    schedule: Schedule
    repeats: Mapping[str, int] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    labelled_only: bool = False


# Coarse first: a step at 128x160 costs 0.4 of one at 192x256, and which part is which can be learnt there. The second
# stage repeats dresses, the fewest and the hardest (after stage 1: 69 % of their landmarks within 5 %, others 90 %).
STAGES = (
    Stage(
        (128, 160),
        Schedule(epochs=60, stop_after=42, learning_rate=1.5e-3, final_rate=0.2, extra_first=2000, extra_last=500),
    ),
    Stage(
        (192, 256),
        Schedule(epochs=42, learning_rate=6e-4, extra_first=400, extra_last=100, seed=1),
        repeats={"full": 2},
    ),
    # A few epochs on what the hand-labelled photos really look like.
    Stage(
        (192, 256),
        Schedule(epochs=8, learning_rate=1.5e-4, final_rate=0.02, warmup_steps=20, average=0.99, seed=2),
        repeats={"full": 2},
        augmentation=Augmentation(
            rotation=15.0,
            scale=(0.85, 1.15),
            shift=0.05,
            shear=0.05,
            elastic=0.2,
            color=0.5,
            invert_light=0.0,
            gray=0.03,
            blur=0.1,
            noise=0.15,
            jpeg=0.1,
            shadow=0.1,
            erase=0.1,
            border=0.1,
        ),
        labelled_only=True,
    ),
)


def train_garment_landmarks(
    data: str | Path,
    output: str | Path,
    *,
    extra: str | Path | None = None,
    unlabelled: str | Path | None = None,
    device: str = "cpu",
    stages: Sequence[Stage] = STAGES,
    workers: int = 2,
    log: Callable[[str], None] = print,
) -> tuple[torch.nn.Module, ModelSpec]:
    """Train (or go on training) the bundled model.

    Args:
        data: a folder with train.json and val.json (COCO, 8 keypoints) and their images.
        output: checkpoints and TensorBoard events of stage 1, 2, … go to ``output/1``, ``output/2``, …
        extra: a COCO file of rendered garments, as ``edgepose synthesize`` writes it.
        unlabelled: a folder of photos of single garments. After the first stage the model labels them, and those that
            it is sure of (``output/pseudo.json``) count as photos from then on.
        device: a torch device.
        stages: resolutions and schedules; each stage starts from the averaged weights of the one before.
        workers: data loading processes.
        log: gets a line for each evaluation.

    Returns:
        The model with the mean of the best weights (by validation AUC) of the stages that have the last one's input
        size, and its spec with the validation figures.
    """
    data, output = Path(data), Path(output)
    labelled = load_coco(data / "train.json", 8)
    validation = load_coco(data / "val.json", 8)
    rendered = load_coco(extra, 8) if extra else []
    if not stages:
        raise InputError("stages is empty: give at least one Stage")
    if unlabelled is not None:
        photos_in(Path(unlabelled))  # a wrong folder must not be found out after hours
    torch.manual_seed(stages[0].schedule.seed)
    model = models.create(ARCHITECTURE, 8)
    photos = labelled
    for number, stage in enumerate(stages, 1):
        spec, seed = garment_spec(stage.input_size), stage.schedule.seed
        used = labelled if stage.labelled_only else photos
        real = [photo for photo in used for _ in range(stage.repeats.get(photo.category, 1))]
        dataset = LandmarkDataset(real + rendered, spec, augmentation=stage.augmentation, absent=ABSENT, seed=seed)
        folder = output / str(number)
        trainer = Trainer(
            model, spec, dataset, validation, stage.schedule, folder, real=len(real), device=device, workers=workers
        )
        trainer.resume()
        trainer.fit(log)
        model.load_state_dict(trainer.averaged)
        if number == 1 and unlabelled is not None:
            photos = labelled + _self_labelled(model, spec, Path(unlabelled), output, log)
    at_full_size = [n for n, stage in enumerate(stages, 1) if stage.input_size == stages[-1].input_size]
    trainer.averaged = _mean_of_best([output / str(n) for n in at_full_size])
    model.load_state_dict(trainer.averaged)
    result = trainer.evaluate()
    names = f"--data {data.name}" + (" --extra synthetic.json" if extra else "")
    names += f" --unlabelled {Path(unlabelled).name}" if unlabelled else ""
    return model.eval(), replace(
        spec,
        metrics=result.metrics(),
        training={
            "data": f"{len(labelled)} labelled photos, {len(photos) - len(labelled)} photos that the model labelled "
            f"itself, {len(rendered)} rendered garments; validated on {len(validation)} other photos",
            "command": f"edgepose train garment-landmarks {names}",
            "date": datetime.date.today().isoformat(),
        },
    )


def _mean_of_best(folders: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of the stages' best weights: one run's epochs differ by chance, their mean less (Wortsman et al.,
    "Model soups", arXiv:2203.05482)."""
    states = [torch.load(folder / "best.pt", map_location="cpu", weights_only=True)["state_dict"] for folder in folders]
    first = states[0]
    return {name: (sum(state[name].float() for state in states) / len(states)).to(first[name]) for name in first}


def _self_labelled(
    model: torch.nn.Module, spec: ModelSpec, photos: Path, output: Path, log: Callable[[str], None]
) -> list[Annotation]:
    """The photos that the model is sure of, with its labels; kept in ``output/pseudo.json`` for a resumed run."""
    path = output / "pseudo.json"
    if not path.exists():
        report = export_onnx(model, spec, output / "labeller.onnx")
        with Predictor(report.path, flip_test=True) as predictor:
            answers = [answer for _, answer in pseudo_label(predictor, photos)]
        sure = [answer for answer in answers if answer is not None]
        log(f"the model labelled {len(sure)} of {len(answers)} photos of {photos.name}")
        write_coco(
            path,
            [annotation for annotation, _ in sure],
            categories=CATEGORIES,
            keypoint_names=spec.keypoint_names,
            visibility=1,
            extras=[{"spread": round(spread, 5)} for _, spread in sure],
        )
    return load_coco(path, 8)
