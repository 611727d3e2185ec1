"""A run so small that it takes a second: what the tests of the trainer train, here and in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from edgepose.spec import ModelSpec
from edgepose.training.coco import Annotation, load_coco
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.schedule import Execution, Schedule
from edgepose.training.train import Trainer
from edgepose.training.transforms import Augmentation

SPEC = ModelSpec("small", (64, 64), (16, 16), ("red", "green"), (0, 1))
SCHEDULE = Schedule(
    epochs=3, batch_size=4, learning_rate=5e-3, warmup_steps=2, evaluate_every=1, extra_first=5, extra_last=3
)
CPU = Execution(device="cpu", workers=0, save_every=2)
PRELOAD = ["edgepose.training.train", "torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure"]


def write_photos(folder: Path, count: int = 20) -> None:
    """Noise with a red and a green spot, and a COCO file that says where. The third photo lacks the green label."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        photo = rng.integers(0, 80, (80, 80, 3), dtype=np.uint8)
        red, green = rng.integers(20, 60, (2, 2)).tolist()
        cv2.circle(photo, green, 5, (0, 255, 0), -1)
        cv2.circle(photo, red, 5, (0, 0, 255), -1)
        cv2.imwrite(str(folder / f"{i}.png"), photo)
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 80})
        keypoints = [*red, 2, *green, 0 if i == 2 else 2]
        box = [10, 10, 60, 60]
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box, "keypoints": keypoints})
    categories = [{"id": 1, "name": "spots", "keypoints": ["red", "green"]}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "photos.json").write_text(json.dumps(data))


def photos(folder: Path) -> list[Annotation]:
    """What `write_photos` wrote."""
    return load_coco(folder / "photos.json", 2)


def network(*, normalised: bool = True, dropout: bool = True, outputs: int = 2) -> torch.nn.Module:
    """Two convolutions; with dropout the weights depend on torch's generator, too."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, 2, 2),
        torch.nn.BatchNorm2d(8) if normalised else torch.nn.Identity(),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.1 if dropout else 0.0),
        torch.nn.Conv2d(8, outputs, 5, 2, 2),
    )


def make_trainer(
    data: Path,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    execution: Execution = CPU,
    *,
    model: torch.nn.Module | None = None,
    **options: Any,
) -> Trainer:
    """16 photos, 10 of them real, 4 to validate on."""
    annotations = photos(data)
    augmentation = options.pop("augmentation", Augmentation())
    dataset = LandmarkDataset(annotations[:16], SPEC, augmentation=augmentation, seed=schedule.seed)
    return Trainer(
        network() if model is None else model,
        SPEC,
        dataset,
        annotations[16:],
        schedule,
        folder,
        real=options.pop("real", 10),
        execution=execution,
        **options,
    )


def silent(_: str) -> None: ...


# In a process of its own ----------------------------------------------------------------------------


def train(
    data: Path,
    folder: Path,
    workers: int = 0,
    die_at: tuple[str, int] | None = None,
    precision: Any = "fp32",
    stop_after: int | None = None,
) -> None:
    """Go on with a run; ``die_at``: SIGKILL itself in the middle of writing, at the n-th call of a function of `os`."""
    torch.set_num_threads(1)
    # Where a virtual machine shows AMX but does not let processes use it, oneDNN's bf16 is an illegal instruction.
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"
    _no_plots()
    if die_at is not None:
        _die_at(*die_at)
    execution = replace(CPU, workers=workers, precision=precision)
    trainer = make_trainer(data, folder, replace(SCHEDULE, stop_after=stop_after), execution)
    trainer.resume()
    trainer.fit(silent)


def start(*arguments: Any, **options: Any) -> multiprocessing.process.BaseProcess:
    """`train` in a process of its own; the server that it is forked from has imported PyTorch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=train, args=arguments, kwargs=options)
    process.start()
    return process


def _no_plots() -> None:
    """They are half of such a run's time."""
    from edgepose.training import progress

    progress.plot = lambda _: b""


def _die_at(name: str, call: int) -> None:
    import edgepose.files

    original, calls = getattr(os, name), [0]

    def deadly(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(edgepose.files.os, name, deadly)


def train_as(rank: int, size: int, port: int, data: Path, folder: Path, options: dict[str, Any], queue: Any) -> None:
    """One of several processes, as torchrun would start it. ``options``: schedule, execution, break_rank."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))  # fmt: skip
    _no_plots()
    try:
        model = network(normalised=False, dropout=False)
        trainer = make_trainer(data, folder, options["schedule"], options["execution"], model=model)
        resumed = trainer.resume()
        if options.get("break_rank") == rank:
            _break(trainer)
        lines: list[str] = []
        trainer.fit(lines.append)
        queue.put((rank, {"resumed": resumed, "history": trainer.history, "lines": lines}))
    except BaseException as error:
        queue.put((rank, error if isinstance(error, Exception) else RuntimeError(repr(error))))
        queue.close()
        queue.join_thread()
        raise


def _break(trainer: Trainer) -> None:
    """Its fifth image has gone."""
    index = trainer.batches.of_step(0, 2)[0][0][1]
    annotations = trainer.dataset.annotations
    annotations[index] = replace(annotations[index], image=annotations[index].image.with_name("gone.png"))
