"""From a recipe and a data folder to trained weights, their figures and an ONNX file: what `edgepose train` does.

    recipe = depart(find("deepfashion2/trousers/resnet50"), epochs=50)
    summary = train_recipe(recipe, "data/deepfashion2", "runs/trousers", init="resnet50.pth")
    summary.metrics["PCK@0.2"], summary.onnx

Started again, it goes on where it was stopped; with other options it refuses to.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgepose.console import track
from edgepose.spec import ModelSpec
from edgepose.training import checkpointing, models, report
from edgepose.training.checkpoint import load_backbone
from edgepose.training.coco import Annotation
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.departures import depart, departures
from edgepose.training.distributed import connect
from edgepose.training.evaluate import Evaluation, evaluate
from edgepose.training.export import export_onnx
from edgepose.training.recipe import Recipe
from edgepose.training.recipe_data import RecipeData, check_data, limit_annotations, load_data
from edgepose.training.run_record import check_same_run, run_identity, versions, write_json, write_record
from edgepose.training.schedule import Execution
from edgepose.training.train import Trainer

__all__ = ["RunSummary", "depart", "departures", "train_recipe"]

Log = Callable[[str], None]


@dataclass(frozen=True)
class RunSummary:
    """What a run came to.

    Attributes:
        recipe: its name.
        folder: the run's: recipe.json, metrics.json, the checkpoints, the logs, the ONNX file.
        onnx: the exported model, with its spec, figures and origin inside.
        metrics: of the best epoch on the test split, with the recipe's flip test.
        best_epoch: the one that was tested and exported, counted from 1.
        objects: how many were tested.
    """

    recipe: str
    folder: Path
    onnx: Path
    metrics: dict[str, float]
    best_epoch: int
    objects: int


def train_recipe(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    init: str | Path | None = None,
    execution: Execution = Execution(),
    validation_limit: int | None = None,
    command: str = "",
    log: Log = print,
) -> RunSummary | None:
    """Train a recipe, or go on with a run that was stopped; then test its best weights and export them.

    Under torchrun every process calls this, and the first one alone logs and writes.

    Args:
        recipe: of :data:`edgepose.training.recipes.RECIPES`, or what :func:`depart` makes of one.
        data: the data set's folder; ``edgepose recipes NAME`` says what must be below it.
        output: the run's folder: recipe.json (all that decides the run), last.pt, best.pt and the trainer's logs,
            metrics.json, and the ONNX file, which has the recipe's name with - for /.
        init: a .pth file that the backbone's weights are taken from: torchvision's or OpenMMLab's ImageNet weights, or
            a pose network's. None: random weights.
        execution: on what and how fast. Without a ``micro_batch`` it is the recipe's ``batch_per_gpu``, where that
            divides a process's share of the batch: batch normalisation then sees as many crops as in the recipe.
        validation_limit: while training, validate on this many objects, evenly spread; tested are always all.
        command: the command line, for recipe.json and the model's spec.
        log: gets the plan, and a line an epoch.

    Returns:
        None in all processes but the first.

    Raises:
        InputError: data are missing or broken; `output` holds a run with other options; or what the trainer refuses.
        ModelError: `init` cannot be read, or is not of the recipe's backbone.
    """
    data, output = Path(data), Path(output)
    world = connect(execution.device)
    log = log if world.is_main else _silent
    with world.together():
        check_data(recipe, data)
        execution = _with_micro_batch(recipe, execution, world.size)
        identity = run_identity(recipe, data, init, execution, validation_limit)
        check_same_run(output, identity)
        loaded = load_data(recipe, data, track=track if world.is_main else None, log=log)
        trainer, start = _trainer(recipe, loaded, output, init, execution, validation_limit)
        resumed = trainer.resume()
        for line in _plan(recipe, trainer, loaded, output, start, resumed=resumed):
            log(line)
        if world.is_main:
            checkpointing.prepare_folder(output)
            write_record(output, identity, recipe, execution, data=data, init=init, command=command)
    trainer.fit(log)
    with world.together():
        origin = _origin(recipe, loaded, init, command)
        summary = _finish(recipe, trainer, loaded, output, origin, log) if world.is_main else None
        world.from_main(None)  # the others wait: a process that leaves early takes its connections along
    return summary


def _silent(_: str) -> None:
    """The log of all processes but the first."""


def _with_micro_batch(recipe: Recipe, execution: Execution, processes: int) -> Execution:
    share = recipe.schedule.batch_size // processes
    if execution.micro_batch is None and recipe.batch_per_gpu < share and share % recipe.batch_per_gpu == 0:
        return replace(execution, micro_batch=recipe.batch_per_gpu)
    return execution


def _trainer(
    recipe: Recipe,
    loaded: RecipeData,
    output: Path,
    init: str | Path | None,
    execution: Execution,
    validation_limit: int | None,
) -> tuple[Trainer, str]:
    """The trainer, and in words what its weights start from."""
    spec, schedule = recipe.spec(), recipe.schedule
    torch.manual_seed(schedule.seed)
    model = models.create(recipe.architecture, recipe.num_outputs)
    start = "random weights, since no --init was given"
    if init is not None:
        found = load_backbone(model, init)
        start = (
            f"{Path(init).name}: {len(found.loaded)} tensors, all of the backbone; the head starts from random weights"
        )
        if found.ignored:
            names = ", ".join(found.ignored[:4]) + (", …" if len(found.ignored) > 4 else "")
            start += f". Not used: {len(found.ignored)} tensors of the file ({names})"
    dataset = LandmarkDataset(
        loaded.train, spec, augmentation=recipe.augmentation, seed=schedule.seed, gpu_crops=execution.gpu_crops
    )
    validation = limit_annotations(loaded.validation, validation_limit)
    channels = recipe.landmarks.channels
    trainer = Trainer(model, spec, dataset, validation, schedule, output, channels=channels, execution=execution)
    return trainer, start


def _plan(
    recipe: Recipe, trainer: Trainer, loaded: RecipeData, output: Path, start: str, *, resumed: bool
) -> list[str]:
    """What will happen, to be read before it does."""
    s, execution, world, batches = recipe.schedule, trainer.execution, trainer.world, trainer.batches
    parts = [f"{world.size} processes"] if world.size > 1 else []
    parts += [f"{batches.accumulation} micro-batches of {batches.micro_batch}"] if batches.accumulation > 1 else []
    steps = trainer.order.total_steps(s.last_epoch)
    validated = f"{len(trainer.validation)} to validate on"
    if len(trainer.validation) < len(loaded.validation):
        validated += f" (of {len(loaded.validation)})"
    parameters = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    rows = [
        ("network", f"{recipe.architecture}, {parameters:.1f} M parameters, {recipe.num_outputs} heatmaps"),
        ("starts from", start),
        ("objects", f"{len(loaded.train)} to train on, {validated}, {len(loaded.test)} to test"),
        ("batch", f"{s.batch_size} crops a step" + (f": {', '.join(parts)}" if parts else "")),
        ("rate", f"{s.learning_rate:g}, {s.optimizer}, {s.loss} loss"),
        ("length", f"{s.last_epoch} epochs of {trainer.order.steps(0)} steps: {steps} steps"),
        ("device", f"{device}, {execution.precision}" + (", compiled" if execution.compile else "")),
    ]
    rows += [("departs", line) for line in departures(recipe)]
    if s.warmup_steps > steps // 4:
        rows.append(("note", f"the warm-up of {s.warmup_steps} steps takes more than a quarter of the run"))
    if resumed:
        rows.append(("goes on", f"{trainer.step} of {steps} steps are done"))
    return [f"{recipe.name} -> {output}", *(f"  {name:13}{text}" for name, text in rows)]


# The end of a run ---------------------------------------------------------------------------------


def _origin(recipe: Recipe, loaded: RecipeData, init: str | Path | None, command: str) -> dict[str, str]:
    """`ModelSpec.training`: where the weights come from."""
    counts = f"{len(loaded.train)} objects; tested on {len(loaded.test)}"
    what = "all 13 categories" if recipe.category == "all" else recipe.category
    origin = {
        "recipe": recipe.name,
        "departures": "; ".join(departures(recipe)),
        "data": f"{recipe.dataset} ({what}): {counts}",
        "init": Path(init).name if init is not None else "random weights",
        "command": command,
        "date": datetime.date.today().isoformat(),
    }
    return {name: text for name, text in origin.items() if text}


def _finish(
    recipe: Recipe, trainer: Trainer, loaded: RecipeData, output: Path, origin: dict[str, str], log: Log
) -> RunSummary:
    """Test the best weights, write metrics.json, export."""
    path = output / "best.pt"
    state = checkpointing.load(path)
    checkpointing.load_weights(path, trainer.model, state["state_dict"])
    best_epoch = int(state["evaluation"]["epoch"])
    evaluation = _test(recipe, trainer, loaded.test)
    metrics = {name: value for name, value in evaluation.metrics().items() if math.isfinite(value)}
    spec = replace(recipe.spec(), metrics=metrics, training={**origin, "epoch": str(best_epoch)})
    _write_metrics(output / "metrics.json", recipe, evaluation, spec)
    log(f"tested epoch {best_epoch} on {len(loaded.test)} objects" + (", with flip test" if recipe.flip_test else ""))
    onnx = output / f"{recipe.name.replace('/', '-')}.onnx"
    export_onnx(trainer.model, spec, onnx, keypoint_range=recipe.landmarks.channels)
    return RunSummary(recipe.name, output, onnx, metrics, best_epoch, len(loaded.test))


def _test(recipe: Recipe, trainer: Trainer, annotations: list[Annotation]) -> Evaluation:
    model, device = trainer.model.eval(), trainer.world.device

    @torch.inference_mode()
    def forward(images: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(images).to(device, memory_format=torch.channels_last)
        heatmaps: np.ndarray = model(tensor).float().cpu().numpy()
        return heatmaps

    channels, flip_test = recipe.landmarks.channels, recipe.flip_test
    return evaluate(forward, annotations, recipe.spec(), flip_test=flip_test, channels=channels, track=track)


def _write_metrics(path: Path, recipe: Recipe, evaluation: Evaluation, spec: ModelSpec) -> None:
    facts = {
        "recipe": recipe.name,
        "split": list(recipe.test.annotations),
        "flip_test": recipe.flip_test,
        "published": recipe.metrics or None,
        "training": dict(spec.training),
        "versions": versions(),
    }
    write_json(path, report.to_json(report.summarize(evaluation, spec), spec, facts=facts))
