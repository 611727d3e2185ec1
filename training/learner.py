"""One optimiser step: forward, loss, gradients over micro-batches and processes, AMP, the average of the weights."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training.batches import Batches
from edgepose.training.checkpointing import load_weights
from edgepose.training.distributed import World
from edgepose.training.losses import masked_mse, mmpose_mse
from edgepose.training.schedule import Execution, Schedule

__all__ = ["Learner", "NotFiniteError", "StepResult", "arithmetic", "make_optimizer"]

DTYPES = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast, which fp32 leaves off
MAX_SKIPS = 25  # fp16 steps skipped in a row: the scale, 2^16 at first, is then 2^-9, and not to blame


class StepResult(NamedTuple):
    """What one optimiser step came to, the same in every process.

    Attributes:
        loss: mean over the whole optimiser batch.
        gradient_norm: before clipping; infinite where ``skipped``.
        skipped: fp16 only: the gradients overflowed, the weights were left alone and the loss scale was halved.
        stop: some process wants to stop.
    """

    loss: float
    gradient_norm: float
    skipped: bool
    stop: bool


class NotFiniteError(Exception):
    """A loss or gradient is NaN or infinite; the weights are those before the step.

    Attributes:
        what: for the message.
        micro_batches: those of this process whose loss it was; empty where it was another's, or a gradient.
    """

    def __init__(self, what: str, micro_batches: list[int]) -> None:
        super().__init__(what)
        self.what, self.micro_batches = what, micro_batches


class Learner:
    """A network with its optimiser, its loss scale and the average of its weights.

    Args:
        model: images (B, 3, h, w) -> heatmaps (B, outputs, h/4, w/4); moved to the device, in place.
        spec: what is learnt; K landmarks.
        channels: the outputs [begin, end) that the K landmarks are; None: all.
        schedule, execution: how.
        world: the processes.
        absent_weight: of landmarks that a category never has.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        schedule: Schedule,
        execution: Execution,
        world: World,
        *,
        channels: tuple[int, int] | None = None,
        absent_weight: float = 0.5,
    ) -> None:
        self.spec, self.schedule, self.execution, self.world, self.channels = spec, schedule, execution, world, channels
        device = world.device
        if execution.sync_batchnorm and world.size > 1:
            if device.type != "cuda":
                raise InputError("sync_batchnorm needs CUDA devices: leave it off on CPUs")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        if not self.trained:
            raise InputError("nothing to train: every parameter of the network is frozen")
        self.optimizer = make_optimizer(self.trained, schedule)
        self.scaler = torch.amp.GradScaler(device.type, enabled=execution.precision == "fp16")
        self.batches = Batches(spec, device, sigma=schedule.sigma, absent_weight=absent_weight)
        # The wrappers only run the network; names and weights are always those of self.model.
        self.network: nn.Module = self.model
        if world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=ids)
        if execution.compile:
            self.network = torch.compile(self.network)
        self.averaged: dict[str, Tensor] = self.model.state_dict()  # without an average: the weights themselves
        if schedule.average is not None:
            self.averaged = {name: value.detach().clone() for name, value in self.averaged.items()}
        self.skips = 0

    def step(self, samples: Sequence[Any], rate: float, *, step: int, stop: bool = False) -> StepResult:
        """Learn from one optimiser batch; all processes call it together.

        Args:
            samples: this process's micro-batches.
            rate: the learning rate.
            step: optimiser steps done before.
            stop: this process wants to stop after the step.

        Raises:
            NotFiniteError: in every process alike.
            InputError: the network's output does not fit the spec.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)  # loss, weights, wishes to stop
        losses = []
        for number, sample in enumerate(samples):
            images, heatmaps, weights = self.batches(sample)
            with self._gradients_stay_here(number < len(samples) - 1):
                loss = self._loss(self.forward(images), heatmaps, weights)
                self.scaler.scale(loss * self.world.size).backward()  # DistributedDataParallel takes the mean
            losses.append(loss.detach())
            sums += torch.stack([losses[-1], weights.sum(), torch.zeros_like(losses[-1])])
        sums[2] += stop
        self.world.sum(sums)
        self.scaler.unscale_(self.optimizer)
        factor = self._factor(sums[1])
        torch._foreach_mul_([p.grad for p in self.trained if p.grad is not None], factor.float())
        limit = math.inf if self.schedule.clip_norm is None else self.schedule.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.trained, limit)
        mean, norm_, wishes = torch.stack([sums[0] * factor, norm.double(), sums[2]]).tolist()  # waits for the device
        skipped = self._judge(mean, norm_, losses)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not skipped and self.schedule.average is not None:
            self._average(step + 1)
        return StepResult(mean, norm_, skipped, wishes > 0)

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps (B, outputs, h, w) of the network in training, under autocast."""
        precision = self.execution.precision
        with torch.autocast(self.world.device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            heatmaps: Tensor = self.network(images)
        return heatmaps

    def _loss(self, heatmaps: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        """This micro-batch's part of the loss, up to :meth:`_factor`."""
        outputs = heatmaps.shape[1]
        predicted = heatmaps if self.channels is None else heatmaps[:, slice(*self.channels)]
        if predicted.shape != target.shape:
            raise InputError(
                f"the network gives heatmaps of {tuple(heatmaps.shape)} (crops, outputs, h, w), and {self.spec.name!r} "
                f"wants {tuple(target.shape)}"
                + (f" from its outputs {list(self.channels)}" if self.channels else "")
                + ": choose another network or spec, or say with channels=(begin, end) which outputs are the landmarks"
            )
        batch = self.schedule.batch_size
        if self.schedule.loss == "mmpose":
            return mmpose_mse(predicted, target, weights, outputs, denominator=batch * outputs)
        return masked_mse(predicted, target, weights, self.schedule.foreground, denominator=batch * target.shape[1])

    def _factor(self, weights: Tensor) -> Tensor:
        """What gradients and losses still have to be multiplied by, once the weights of the whole batch are known.

        ``masked`` divides by their sum over all micro-batches and processes. It is known after the last forward pass;
        so the passes divide by all channels, and this makes up for it: no heatmaps have to be kept, or made twice.
        """
        if self.schedule.loss == "mmpose":
            return torch.ones_like(weights)
        return self.schedule.batch_size * self.spec.num_keypoints / weights.clamp(min=1)

    def _judge(self, loss: float, norm: float, losses: list[Tensor]) -> bool:
        """Whether fp16 skips this step. The same in every process, since loss and gradients are."""
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss}", [i for i, value in enumerate(losses) if not value.isfinite()])
        if math.isfinite(norm):
            self.skips = 0
            return False
        self.skips += 1
        if not self.scaler.is_enabled():
            raise NotFiniteError(f"the loss is {loss:.6g}, but the norm of its gradient is {norm}", [])
        if self.skips > MAX_SKIPS:
            raise NotFiniteError(f"fp16 gradients overflow at any loss scale ({self.skips} steps in a row)", [])
        return True

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # a short memory at first, so that the average does not start from the random weights
        decay = min(self.schedule.average or 0.0, (1 + step) / (10 + step))
        state = self.model.state_dict()
        floating = [name for name, value in state.items() if value.dtype.is_floating_point]
        torch._foreach_lerp_([self.averaged[name] for name in floating], [state[name] for name in floating], 1 - decay)
        for name in state.keys() - set(floating):
            self.averaged[name].copy_(state[name])

    def _gradients_stay_here(self, yes: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once, with the last micro-batch of a step."""
        wrapped = getattr(self.network, "_orig_mod", self.network)
        return wrapped.no_sync() if yes and self.world.size > 1 else contextlib.nullcontext()

    # State ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with the weights to deploy; afterwards as it was."""
        kept = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        training = self.model.training
        self.model.load_state_dict(self.averaged)
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.load_state_dict(kept)
            self.model.train(training)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, and ``state_dict``: the weights to deploy."""
        return {
            "state_dict": dict(self.averaged),
            "trained": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skips": self.skips,
        }

    def load_state(self, path: Path, state: dict[str, Any]) -> None:
        """:meth:`state`'s inverse. Raises InputError if ``path`` belongs to another network."""
        load_weights(path, self.model, state["trained"])
        if self.schedule.average is not None:
            for name, value in self.averaged.items():
                value.copy_(state["state_dict"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:  # empty: the run was no fp16 run until now
            self.scaler.load_state_dict(state["scaler"])
        self.skips = state["skips"]


def make_optimizer(parameters: Sequence[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """Adam (decay as an L2 term) or AdamW (decoupled); biases and normalisation, one-dimensional, do not decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.AdamW
    return kind([group for group in groups if group["params"]], lr=schedule.learning_rate)


@contextlib.contextmanager
def arithmetic(execution: Execution, device: torch.device) -> Iterator[None]:
    """Torch's global switches for the time of a run: deterministic algorithms, or the fastest ones.

    Raises:
        InputError: deterministic on CUDA without the environment variable that cuBLAS wants.
    """
    if execution.deterministic and device.type == "cuda":
        allowed = (":4096:8", ":16:8")
        if (found := os.environ.get("CUBLAS_WORKSPACE_CONFIG")) not in allowed:
            raise InputError(
                f"deterministic training on CUDA needs CUBLAS_WORKSPACE_CONFIG to be {' or '.join(allowed)}, got "
                f"{found!r}; cuBLAS reads it when the process starts: CUBLAS_WORKSPACE_CONFIG=:4096:8 edgepose train …"
            )
    # Tails of gradients and the optimiser's moments become denormal numbers: 8 times slower on a CPU (measured).
    torch.set_flush_denormal(True)
    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
              cudnn.deterministic, cudnn.benchmark)  # fmt: skip
    try:
        if execution.deterministic:
            torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = execution.deterministic, not execution.deterministic
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2:]
