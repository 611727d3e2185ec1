"""What a run tells: a progress bar, a line an epoch, `log.jsonl`, TensorBoard, and pictures of batches and curves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgepose.console import messages
from edgepose.errors import MissingDependencyError
from edgepose.files import write_atomically
from edgepose.spec import ModelSpec
from edgepose.training.checkpointing import writing
from edgepose.training.learner import StepResult
from edgepose.training.schedule import Schedule

__all__ = ["Reporter", "draw_batch", "epoch_line"]

EVERY = 20  # steps between two records
PICTURES = 2  # batches drawn at the start of a run
SHOWN = 12  # crops of such a batch

Image = npt.NDArray[np.uint8]


class Reporter:
    """Writes a run's records while it is entered; only the first process has one.

    ``log.jsonl`` holds an object a line: ``{"event": "step" | "epoch" | …, "step": …, …}``. Records that a resumed run
    makes again, because it was killed after its last checkpoint, replace the old ones.

    Args:
        folder: of the run; writable.
        schedule: what is trained.
        total_steps: that this run ends with.
        step, epoch: where it starts.
        log: gets a line an epoch.

    Raises:
        MissingDependencyError: TensorBoard or matplotlib is not installed.
    """

    def __init__(
        self, folder: Path, schedule: Schedule, *, total_steps: int, step: int, epoch: int, log: Callable[[str], None]
    ) -> None:
        try:
            import matplotlib  # noqa: F401  (asked for now, not after the first epoch)
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                f"training's records need {error.name}: pip install 'edgepose[train]'"
            ) from error
        self.folder, self.schedule, self.log = folder, schedule, log
        self.path = folder / "log.jsonl"
        _trim(self.path, step, epoch)
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # Elsewhere than on a terminal there is only the line an epoch.
        self.progress = Progress(*columns, console=messages, disable=not messages.is_terminal)
        self.bar = self.progress.add_task("training", total=total_steps, completed=step, figures="")
        self._epoch, self._recent = _Window(), _Window()

    def __enter__(self) -> Reporter:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.writer.close()

    def step(self, step: int, epoch: int, result: StepResult, *, rate: float, seconds: float, waited: float) -> None:
        """Note one optimiser step. ``step`` counts it; ``waited`` of its ``seconds`` it waited for data."""
        for window in (self._epoch, self._recent):
            window.add(result.loss, self.schedule.batch_size, seconds, waited)
        recent = self._recent
        self.progress.update(
            self.bar,
            completed=step,
            description=f"epoch {epoch + 1}/{self.schedule.epochs}",
            figures=f"loss {recent.loss:.3g}, {recent.speed:.0f} images/s, data wait {recent.wait:.0%}",
        )
        if step % EVERY and step != 1:
            return
        values = {
            "loss": recent.loss,
            "learning_rate": rate,
            "gradient_norm": result.gradient_norm,
            "images_per_second": recent.speed,
            "data_wait": recent.wait,
        }
        for name, value in values.items():
            if math.isfinite(value):  # the norm is not where fp16 skips a step
                self.writer.add_scalar(f"train/{name}", value, step)
        self.record("step", step=step, epoch=epoch + 1, **values, skipped=result.skipped)
        self._recent = _Window()

    def epoch(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Note the end of an epoch. ``record`` has epoch, step, loss, rate, and metrics if it was evaluated."""
        speed = {"images_per_second": self._epoch.speed, "data_wait": self._epoch.wait} if self._epoch.seconds else {}
        self.record("epoch", **record, **speed)
        self.writer.add_scalar("epoch/loss", record["loss"], record["step"])
        if "metrics" in record:
            for name, value in record["metrics"].items():
                self.writer.add_scalar(f"val/{name}", value, record["step"])
            with writing(self.folder / "loss.png"):
                write_atomically(self.folder / "loss.png", plot(history))
        self.writer.flush()
        figures = f", {self._epoch.speed:.0f} images/s, data wait {self._epoch.wait:.0%}" if speed else ""
        self.log(epoch_line(record, self.schedule) + figures)
        self._epoch = _Window()

    def picture(self, step: int, images: Image) -> None:
        """Keep a picture of a batch, (h, w, 3) uint8 RGB: in TensorBoard, and the first one as batch.png."""
        self.writer.add_image("batch", images, step, dataformats="HWC")
        if step == 1:
            with writing(self.folder / "batch.png"):
                write_atomically(self.folder / "batch.png", cv2.imencode(".png", images[..., ::-1])[1].tobytes())

    def record(self, event: str, **values: Any) -> None:
        """Append a line to log.jsonl."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **{k: _plain(v) for k, v in values.items()}})
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def epoch_line(record: Mapping[str, Any], schedule: Schedule) -> str:
    """An epoch in one line."""
    line = f"epoch {record['epoch']}/{schedule.epochs} step {record['step']} loss {record['loss']:.5f}"
    line += f" rate {record['rate']:.3g}"
    return line + "".join(f" {name} {value:.4g}" for name, value in record.get("metrics", {}).items())


class _Window:
    """Means over some steps."""

    def __init__(self) -> None:
        self.steps = self.images = 0
        self.total = self.seconds = self.waited = 0.0

    def add(self, loss: float, images: int, seconds: float, waited: float) -> None:
        self.steps += 1
        self.images += images
        self.total += loss
        self.seconds += seconds
        self.waited += waited

    @property
    def loss(self) -> float:
        return self.total / max(self.steps, 1)

    @property
    def speed(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    @property
    def wait(self) -> float:
        return self.waited / max(self.seconds, 1e-9)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _trim(path: Path, step: int, epoch: int) -> None:
    """Drop the records that come after a state, and a last line that a kill cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("step", 0) <= step and not (record.get("event") == "epoch" and record["epoch"] > epoch):
            kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())


# Pictures -------------------------------------------------------------------------------------------


def draw_batch(images: torch.Tensor, heatmaps: torch.Tensor, weights: torch.Tensor, spec: ModelSpec) -> Image:
    """What the network is shown and what it shall answer: crops with their heatmaps in red and the channels' numbers.

    Args:
        images: (B, 3, h, w) float32, normalised RGB.
        heatmaps: (B, K, h/4, w/4) float32.
        weights: (B, K); channels of weight 0, which the loss does not see, are not drawn.
        spec: mean and standard deviation.

    Returns:
        (H, W, 3) uint8 RGB, a grid of at most 12 crops.
    """
    count = min(len(images), SHOWN)
    pixels = images[:count].float().cpu().permute(0, 2, 3, 1).numpy() * np.float32(spec.std) + np.float32(spec.mean)
    maps = (heatmaps[:count] * (weights[:count] > 0)[..., None, None]).float().cpu().numpy()
    tiles = [_draw_crop(np.clip(np.rint(p), 0, 255).astype(np.uint8), m) for p, m in zip(pixels, maps, strict=True)]
    columns = min(count, 4)
    tiles += [np.zeros_like(tiles[0])] * (-count % columns)
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)], 0)


def _draw_crop(crop: Image, maps: npt.NDArray[np.float32]) -> Image:
    height, width = crop.shape[:2]
    heat = cv2.resize(maps.max(axis=0), (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    drawn: Image = (crop * (1 - 0.6 * heat) + np.float32([255, 0, 0]) * 0.6 * heat).clip(0, 255).astype(np.uint8)
    for channel, map_ in enumerate(maps):
        if map_.max() > 0:
            y, x = np.unravel_index(int(map_.argmax()), map_.shape)
            at = (round(x * width / map_.shape[1]) + 3, round(y * height / map_.shape[0]) - 3)
            cv2.putText(drawn, str(channel), at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 0), 1, cv2.LINE_AA)
    return drawn


def plot(history: Sequence[Mapping[str, Any]]) -> bytes:
    """The loss and the validation's figures by epoch, as a PNG."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.semilogy([r["epoch"] for r in history], [r["loss"] for r in history])
    left.set(xlabel="epoch", ylabel="training loss")
    evaluated = [r for r in history if "metrics" in r]
    for name in ("AUC", "PCK@0.2", "PCK@0.05"):
        points = [(r["epoch"], r["metrics"][name]) for r in evaluated if name in r["metrics"]]
        right.plot([x for x, _ in points], [y for _, y in points], marker=".", label=name)
    right.set(xlabel="epoch", ylabel="validation", ylim=(0, 1))
    right.legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
