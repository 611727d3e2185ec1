"""A plain trainer: one device, cosine schedule, averaged weights, resume, progress bar, TensorBoard scalars."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Sampler

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training.coco import Annotation
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.evaluate import Evaluation, evaluate

__all__ = ["Schedule", "Trainer", "heatmap_loss"]


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train.

    Attributes:
        epochs: how often the real annotations are seen.
        batch_size: crops in one step.
        learning_rate: AdamW's peak rate, after ``warmup_steps``; it falls to ``final_rate`` of it along a cosine.
        weight_decay: AdamW's.
        average: decay of the exponential moving average of the weights, which is what is evaluated and exported.
        foreground: how much more a heatmap's peak counts than its background, see :func:`heatmap_loss`.
        extra_first, extra_last: extra (synthetic) samples in the first and in the last epoch, linear between.
        evaluate_every: epochs between evaluations.
        stop_after: end the run after this epoch, while the cosine still aims at ``epochs``; None: at ``epochs``.
        seed: fixes weights, order and augmentation.
    """

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    final_rate: float = 0.01
    warmup_steps: int = 200
    weight_decay: float = 0.02
    average: float = 0.998
    foreground: float = 4.0
    extra_first: int = 0
    extra_last: int = 0
    evaluate_every: int = 2
    stop_after: int | None = None
    seed: int = 0


def heatmap_loss(
    predicted: torch.Tensor,  # (B, K, h, w)
    target: torch.Tensor,  # (B, K, h, w), peak 1
    weights: torch.Tensor,  # (B, K)
    foreground: float = 0.0,
) -> torch.Tensor:
    """Weighted mean squared error over the labelled channels only.

    Channels with weight 0 neither add to the sum nor to the count (MMPose divides by all of them and so dilutes the
    loss). A cell counts ``1 + foreground * target`` times: a peak covers 1 % of the cells, and without this a network
    that starts from random weights spends its first epochs on learning to answer zero.
    """
    error = (predicted - target) ** 2 * (1 + foreground * target)
    return (error.mean(dim=(2, 3)) * weights).sum() / weights.sum().clamp(min=1)


class EpochSampler(Sampler[tuple[int, int]]):
    """All ``count`` real samples, and some of the ``extra`` ones behind them, as (epoch, index) keys."""

    def __init__(self, count: int, extra: int, schedule: Schedule) -> None:
        self.count, self.extra, self.schedule = count, extra, schedule
        self.epoch = 0

    def extras(self, epoch: int) -> int:
        """How many extra samples an epoch takes."""
        s = self.schedule
        t = epoch / max(s.epochs - 1, 1)
        return min(round(s.extra_first + t * (s.extra_last - s.extra_first)), self.extra)

    def __len__(self) -> int:
        return self.count + self.extras(self.epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.schedule.seed, self.epoch))
        chosen = self.count + rng.choice(self.extra, self.extras(self.epoch), replace=False) if self.extra else []
        for index in rng.permutation(np.concatenate([np.arange(self.count), chosen]).astype(int)):
            yield self.epoch, int(index)


class Trainer:
    """Trains one model; everything that a resumed run needs is in ``folder/last.pt``.

    Args:
        model: heatmap network; images (B, 3, h, w) normalised RGB -> (B, K, h/4, w/4).
        spec: what the model is trained for.
        dataset: the samples; the first ``real`` of them are all seen in every epoch, the rest are extras.
        real: how many annotations are real; default: all.
        validation: annotations to evaluate on.
        schedule: see :class:`Schedule`.
        folder: checkpoints and TensorBoard events go here.
        device: ``cpu`` or a torch device string.
        workers: data loading processes.

    ``best.pt`` beside it is the epoch with the best validation AUC.

    Raises:
        InputError: the data do not fill one batch; while training: the loss is not finite.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        spec: ModelSpec,
        dataset: LandmarkDataset,
        validation: list[Annotation],
        schedule: Schedule,
        folder: str | Path,
        *,
        real: int | None = None,
        device: str = "cpu",
        workers: int = 2,
    ) -> None:
        self.spec, self.schedule, self.validation = spec, schedule, validation
        self.folder = Path(folder)
        self.device = torch.device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.averaged = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        real = len(dataset) if real is None else real
        if real < schedule.batch_size:
            raise InputError(
                f"{real} samples do not fill one batch of {schedule.batch_size}: give more data or a smaller batch_size"
            )
        self.sampler = EpochSampler(real, len(dataset) - real, schedule)
        self.loader = DataLoader(
            dataset, schedule.batch_size, sampler=self.sampler, num_workers=workers, drop_last=True,
            pin_memory=self.device.type == "cuda", worker_init_fn=_one_thread,
        )  # fmt: skip
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
        self.epoch = self.step = 0
        self.best = -1.0

    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        sampler, batch = self.sampler, self.schedule.batch_size
        return sum((sampler.count + sampler.extras(epoch)) // batch for epoch in range(self.schedule.epochs))

    def rate(self, step: int, total: int) -> float:
        """The learning rate at a step: linear warm-up, then a cosine."""
        s = self.schedule
        if step < s.warmup_steps:
            return s.learning_rate * (step + 1) / s.warmup_steps
        t = (step - s.warmup_steps) / max(total - s.warmup_steps, 1)
        return s.learning_rate * (s.final_rate + (1 - s.final_rate) * 0.5 * (1 + float(np.cos(np.pi * min(t, 1)))))

    def fit(self, log: Callable[[str], None] = print) -> None:
        """Train to the last epoch, evaluating and saving on the way."""
        from torch.utils.tensorboard import SummaryWriter

        # Tails of gradients and AdamW's moments become denormal numbers: 8 times slower on a CPU (measured).
        torch.set_flush_denormal(True)
        self.folder.mkdir(parents=True, exist_ok=True)
        total = self.total_steps()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with SummaryWriter(str(self.folder)) as writer, Progress(*columns) as progress:
            bar = progress.add_task("training", total=total, completed=self.step)
            last = min(self.schedule.stop_after or self.schedule.epochs, self.schedule.epochs)
            while self.epoch < last:
                loss = self._train_epoch(total, lambda: progress.advance(bar))
                self.epoch += 1
                writer.add_scalar("loss", loss, self.step)
                writer.add_scalar("learning_rate", self.rate(self.step, total), self.step)
                progress.update(bar, description=f"epoch {self.epoch}/{self.schedule.epochs} loss {loss:.5f}")
                if self.epoch % self.schedule.evaluate_every == 0 or self.epoch == last:
                    result = self.evaluate()
                    for name, value in result.metrics().items():
                        writer.add_scalar(f"val/{name}", value, self.step)
                    log(f"epoch {self.epoch} step {self.step} loss {loss:.5f} {result.metrics()}")
                    if result.auc > self.best:
                        self.best = result.auc
                        self._save("best.pt")
                self._save("last.pt")

    def _train_epoch(self, total: int, advance: Callable[[], None]) -> float:
        self.model.train()
        self.sampler.epoch = self.epoch
        mean = torch.tensor(self.spec.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.spec.std, device=self.device).view(1, 3, 1, 1)
        losses = []
        for crops, heatmaps, weights in self.loader:
            images = crops.to(self.device).flip(-1).permute(0, 3, 1, 2).float()  # BGR bytes -> RGB planes
            images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step, total)
            predicted = self.model(images)
            loss = heatmap_loss(predicted, heatmaps.to(self.device), weights.to(self.device), self.schedule.foreground)
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is {loss.item()} at step {self.step}: lower the learning rate "
                    f"({self.schedule.learning_rate}) or look for broken images; the last good state is last.pt"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._average()
            losses.append(loss.item())
            advance()
        return float(np.mean(losses))

    @torch.no_grad()
    def _average(self) -> None:
        # a short memory at first, so that the average does not start from the random weights
        decay = min(self.schedule.average, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)

    def evaluate(self) -> Evaluation:
        """Evaluate the averaged weights on the validation annotations."""
        trained = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged)
        self.model.eval()
        try:
            return evaluate(self._forward, self.validation, self.spec)
        finally:
            self.model.load_state_dict(trained)

    @torch.inference_mode()
    def _forward(self, images: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
        heatmaps: np.ndarray = self.model(tensor).float().cpu().numpy()
        return heatmaps

    # Checkpoints ----------------------------------------------------------------------------------

    def _save(self, name: str) -> None:
        state = {
            "state_dict": self.averaged,
            "trained": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "schedule": asdict(self.schedule),
            "spec": self.spec.to_json(),
        }
        part = self.folder / (name + ".part")
        torch.save(state, part)
        os.replace(part, self.folder / name)  # atomic: a killed run leaves the old file or the new one

    def resume(self) -> bool:
        """Go on from ``folder/last.pt`` if it is there; the run then ends as if it had never stopped.

        Raises:
            InputError: the checkpoint belongs to another schedule, spec or network.
        """
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        if state["schedule"] != asdict(self.schedule):
            raise InputError(
                f"{path} was made with another schedule: {state['schedule']}, now {asdict(self.schedule)}. "
                "Resume with the same options, or train into a new folder."
            )
        if state["spec"] != self.spec.to_json():
            raise InputError(f"{path} belongs to another model: {state['spec']}. Train into a new folder.")
        try:
            self.model.load_state_dict(state["trained"])
        except RuntimeError as error:
            raise InputError(f"{path} belongs to another network; train into a new folder. {error}") from None
        self.averaged = state["state_dict"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        return True


def _one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
