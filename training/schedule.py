"""What a training run is: `Schedule`, which decides what is learnt, and `Execution`, which only decides how fast.

Free of PyTorch, so that recipes can be read without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from edgepose.errors import InputError

__all__ = ["Execution", "Loss", "Optimizer", "PrecisionName", "Schedule"]

Optimizer = Literal["adam", "adamw"]
Loss = Literal["masked", "mmpose"]
PrecisionName = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how hard to train.

    Attributes:
        epochs: how often the real annotations are seen.
        batch_size: crops in one optimiser step, over all processes and accumulated micro-batches. What is left at the
            end of an epoch and does not fill a batch is left out; each epoch has another order.
        optimizer: ``adam`` as MMPose has it, or ``adamw``.
        learning_rate: peak rate, after the warm-up.
        weight_decay: AdamW's decoupled decay, or Adam's L2 term; never on biases and normalisation.
        warmup_steps: optimiser steps of linear warm-up, from ``warmup_factor`` times the peak rate in the first step to
            the peak rate in the last of them.
        warmup_factor: see there.
        milestones: epochs after which the rate is multiplied by ``gamma``; empty: a cosine down to ``final_rate`` of
            the peak.
        gamma: see there.
        final_rate: see there.
        clip_norm: largest norm of the gradient; None: any.
        average: decay of the exponential moving average of the weights, which is then what is evaluated and
            exported; None: no average.
        loss: ``masked`` divides by the labelled channels only; ``mmpose`` by all outputs of the network, as
            KeypointMSELoss does.
        sigma: of the target's Gaussian, heatmap cells.
        foreground: how much more a heatmap's peak counts than its background (``masked`` only).
        extra_first, extra_last: extra (synthetic) samples in the first and in the last epoch, linear between.
        evaluate_every: epochs between evaluations; the weights of the best AUC are kept.
        flip_test: evaluations average each crop with its mirror image, as MMPose's do.
        stop_after: end the run after this epoch, while the schedule still aims at ``epochs``; None: at ``epochs``.
        seed: fixes the order, and with the network's and the data set's seeds the whole run.

    Raises:
        InputError: a value that makes no sense.
    """

    epochs: int = 100
    batch_size: int = 32
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup_steps: int = 200
    warmup_factor: float = 0.001
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final_rate: float = 0.01
    clip_norm: float | None = 1.0
    average: float | None = 0.998
    loss: Loss = "masked"
    sigma: float = 2.0
    foreground: float = 4.0
    extra_first: int = 0
    extra_last: int = 0
    evaluate_every: int = 2
    flip_test: bool = False
    stop_after: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise InputError(f"Schedule: {problem}")

    @property
    def last_epoch(self) -> int:
        """How many epochs are trained: ``stop_after``, or all."""
        return self.epochs if self.stop_after is None else min(self.stop_after, self.epochs)

    def rate(self, step: int, epoch: int, total_steps: int) -> float:
        """The learning rate of one optimiser step.

        With milestones it is that of mmengine's ``LinearLR(start_factor, begin=0, end=warmup_steps, by_epoch=False)``
        and ``MultiStepLR(milestones, gamma, by_epoch=True)`` together: the warm-up reaches the peak in step
        ``warmup_steps - 1``, and a milestone counts from the epoch of its number on (mmengine 0.10,
        optim/scheduler/param_scheduler.py).

        Args:
            step: optimiser steps done before this one, in the whole run.
            epoch: epochs done before the one that this step belongs to.
            total_steps: of the whole run, ``epochs`` long; where a cosine ends.
        """
        rate = self.learning_rate
        if step < self.warmup_steps:
            rate *= self.warmup_factor + (1 - self.warmup_factor) * step / max(self.warmup_steps - 1, 1)
        if self.milestones:
            return rate * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)
        if step < self.warmup_steps:
            return rate
        t = min((step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 1.0)
        return rate * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * t)))

    def _problems(self) -> list[str]:
        problems = [
            f"{name} must be an integer of at least {least}, got {getattr(self, name)!r}"
            for name, least in _LEAST.items()
            if type(getattr(self, name)) is not int or getattr(self, name) < least
        ]
        for name, allowed in (("optimizer", Optimizer), ("loss", Loss)):
            if getattr(self, name) not in get_args(allowed):
                problems.append(f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        for name in ("learning_rate", "sigma"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                problems.append(f"{name} must be above 0, got {getattr(self, name)!r}")
        for name in ("weight_decay", "foreground"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                problems.append(f"{name} must be at least 0, got {getattr(self, name)!r}")
        for name in ("warmup_factor", "gamma", "final_rate"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} must be from 0 to 1, got {getattr(self, name)!r}")
        if any(type(milestone) is not int or milestone < 1 for milestone in self.milestones):
            problems.append(f"milestones must be epochs, counted from 1, got {self.milestones!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            problems.append(f"clip_norm must be above 0, or None for no limit, got {self.clip_norm!r}")
        if self.average is not None and not 0 <= self.average < 1:
            problems.append(f"average must be from 0 to below 1, or None for no average, got {self.average!r}")
        if self.stop_after is not None and (type(self.stop_after) is not int or self.stop_after < 1):
            problems.append(f"stop_after must be an epoch of at least 1, or None, got {self.stop_after!r}")
        return problems


_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "warmup_steps": 0,
    "extra_first": 0,
    "extra_last": 0,
    "evaluate_every": 1,
    "seed": 0,
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """On what and how fast a run goes; none of it changes what is learnt, beyond rounding.

    Attributes:
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:1``. Under torchrun each
            process takes the CUDA device of its local rank.
        precision: of the network's arithmetic under autocast; weights and optimiser stay float32.
        compile: run the network through torch.compile.
        workers: data loading processes of each training process.
        micro_batch: crops in one forward pass of one process; gradients are accumulated up to the schedule's
            batch_size, and are those of one large batch, except that batch normalisation sees a micro-batch at a
            time. None: batch_size / processes.
        gpu_crops: crop on the GPU with the runtime's kernel; the workers then only decode.
        deterministic: only deterministic algorithms.
        sync_batchnorm: batch normalisation over the crops of all processes (CUDA only); without it each process
            normalises its own, as it does each micro-batch.
        save_every: optimiser steps between checkpoints, beside the one after every epoch; None: only that.

    Raises:
        InputError: a value that makes no sense.
    """

    device: str = "auto"
    precision: PrecisionName = "fp32"
    compile: bool = False
    workers: int = 2
    micro_batch: int | None = None
    gpu_crops: bool = False
    deterministic: bool = False
    sync_batchnorm: bool = False
    save_every: int | None = 200

    def __post_init__(self) -> None:
        if self.precision not in get_args(PrecisionName):
            raise InputError(
                f"Execution: precision must be one of {', '.join(get_args(PrecisionName))}, got {self.precision!r}"
            )
        if type(self.workers) is not int or self.workers < 0:
            raise InputError(f"Execution: workers must be an integer of at least 0, got {self.workers!r}")
        for name in ("micro_batch", "save_every"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"Execution: {name} must be an integer of at least 1, or None, got {value!r}")
