"""The trainer: from a network, samples and a `Schedule` to `best.pt`, through kills, signals and several processes.

    trainer = Trainer(model, spec, dataset, validation, Schedule(epochs=210), "run", execution=Execution(workers=8))
    trainer.resume()  # goes on from run/last.pt if it is there
    trainer.fit()

One process trains on one device. `torchrun --nproc-per-node 4 …` starts several that train as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training import checkpointing
from edgepose.training.coco import Annotation
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.distributed import connect
from edgepose.training.evaluate import Evaluation, evaluate
from edgepose.training.interrupt import Interrupt
from edgepose.training.learner import Learner, NotFiniteError, arithmetic
from edgepose.training.progress import PICTURES, Reporter, draw_batch
from edgepose.training.sampling import EpochOrder, MicroBatches, load_ahead, next_sample
from edgepose.training.schedule import Execution, Schedule

__all__ = ["Execution", "Schedule", "Trainer"]

NAMED = 8  # image files that an error message lists


class Trainer:
    """Trains one model.

    In ``folder``, all written whole or not at all: ``last.pt``, everything that a resumed run needs; ``best.pt``, the
    epoch with the best validation AUC; ``log.jsonl``, ``loss.png``, ``batch.png`` and TensorBoard events. After a kill
    at any moment, :meth:`resume` and :meth:`fit` end with the weights of a run that was never stopped: bit by bit on a
    CPU, and on CUDA where ``execution.deterministic`` is on.

    Args:
        model: heatmap network; images (B, 3, h, w) normalised RGB -> (B, outputs, h/4, w/4). It is moved to the device
            and trained in place; frozen parameters stay as they are.
        spec: what the model is trained for.
        dataset: the samples, fixed by (seed, epoch, index); the first ``real`` of them are all seen in every epoch, the
            rest are extras.
        validation: annotations to evaluate on.
        schedule: what is learnt.
        folder: of the run, for one run only.
        real: how many samples are real; default: all.
        channels: the outputs [begin, end) of the network that spec, dataset and validation are about; default: all.
        execution: on what and how fast.

    Attributes:
        world: the processes of the run; only where ``world.is_main`` are files written.
        epoch, position, step: epochs done, steps of the next one done, steps done in all.
        best: epoch, step, auc and metrics of the best evaluation; None before the first.
        history: a record of each epoch done.

    Raises:
        InputError: the data do not fill one batch, the batch cannot be divided among processes and micro-batches, a
            device is not there, or there is nothing to validate on.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        dataset: LandmarkDataset,
        validation: list[Annotation],
        schedule: Schedule,
        folder: str | Path,
        *,
        real: int | None = None,
        channels: tuple[int, int] | None = None,
        execution: Execution = Execution(),
    ) -> None:
        self.spec, self.schedule, self.execution = spec, schedule, execution
        self.dataset, self.validation, self.channels = dataset, validation, channels
        self.folder = Path(folder)
        self.world = connect(execution.device)
        real = len(dataset) if real is None else real
        micro_batch = self._check(real)
        self.order = EpochOrder(real, len(dataset) - real, schedule)
        self.batches = MicroBatches(
            self.order, rank=self.world.rank, processes=self.world.size, micro_batch=micro_batch
        )
        with self.world.together():
            self.learner = Learner(
                model, spec, schedule, execution, self.world, channels=channels, absent_weight=dataset.absent_weight
            )
        self.identity = checkpointing.identity(schedule, spec, dataset, real, self.learner.model)
        self.epoch = self.position = self.step = 0
        self.loss_sum = 0.0  # over the steps of the epoch that is under way
        self.best: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        self._random: list[dict[str, Tensor]] = []  # of the checkpoint, for the first step after it
        self._started = False

    @property
    def model(self) -> nn.Module:
        """The network, with the weights of the last step."""
        return self.learner.model

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The weights to evaluate, export and deploy: the moving average, or without one those of the last step."""
        return self.learner.averaged

    @averaged.setter
    def averaged(self, weights: dict[str, Tensor]) -> None:
        self.learner.averaged = weights

    def weights(self) -> dict[str, Tensor]:
        """A copy of :attr:`averaged` on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.averaged.items()}

    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.schedule.rate(self.step, self.epoch, self.order.total_steps())

    # Running --------------------------------------------------------------------------------------

    def fit(self, log: Callable[[str], None] = print) -> None:
        """Train to the last epoch, evaluating and saving on the way.

        Args:
            log: gets a line an epoch, in the first process.

        Raises:
            InputError: the folder cannot be written to or holds another run; a loss or gradient is not finite; a sample
                cannot be read; the disk is full.
            EdgePoseError: another process failed.
            KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM, once the step under way is done and saved.
        """
        with self.world.together(), arithmetic(self.execution, self.world.device), Interrupt() as interrupt:
            if self.world.is_main:
                self._prepare_folder()
                with self._reporter(log) as reporter:
                    self._run(reporter, interrupt)
            else:
                self._run(None, interrupt)

    def evaluate(self) -> Evaluation:
        """Evaluate :attr:`averaged` on the validation annotations, in float32 and in this process alone."""
        device = self.world.device

        @torch.inference_mode()
        def forward(images: np.ndarray) -> np.ndarray:
            tensor = torch.from_numpy(images).to(device, memory_format=torch.channels_last)
            heatmaps: np.ndarray = model(tensor).float().cpu().numpy()
            return heatmaps

        with self.learner.averaged_weights() as model:
            return evaluate(
                forward, self.validation, self.spec, flip_test=self.schedule.flip_test, channels=self.channels
            )

    def _run(self, reporter: Reporter | None, interrupt: Interrupt) -> None:
        if self.epoch == self.schedule.last_epoch:
            return
        self._seed()
        self.learner.model.train()
        self.batches.start = (self.epoch, self.position)
        loading = load_ahead(
            self.dataset, self.batches, workers=self.execution.workers, pin=self.world.device.type == "cuda"
        )
        with loading as samples:
            while self.epoch < self.schedule.last_epoch:
                while self.position < self.order.steps(self.epoch):
                    if self._step(samples, reporter, interrupt):
                        self._stop(reporter, interrupt)
                    if self.execution.save_every and self.step % self.execution.save_every == 0:
                        self._save_last()
                self._end_epoch(reporter)
        if interrupt.signal:  # it came while the last epoch was evaluated
            raise interrupt.exception()

    def _stop(self, reporter: Reporter | None, interrupt: Interrupt) -> NoReturn:
        """Save in the middle of an epoch and leave."""
        self._save_last()
        if reporter:
            reporter.record("stop", step=self.step, epoch=self.epoch + 1)
            reporter.log(
                f"stopped at step {self.step} of {self.order.total_steps(self.schedule.last_epoch)} (epoch "
                f"{self.epoch + 1}) and saved: the same command goes on from {self.folder / 'last.pt'}"
            )
        raise interrupt.exception()

    def _step(self, samples: Iterator[Any], reporter: Reporter | None, interrupt: Interrupt) -> bool:
        """One optimiser step; returns whether to stop after it."""
        began = time.perf_counter()
        batch = [next_sample(samples) for _ in range(self.batches.accumulation)]
        waited = time.perf_counter() - began
        rate = self.rate()
        try:
            result = self.learner.step(batch, rate, step=self.step, stop=bool(interrupt.signal))
        except NotFiniteError as error:
            self._stop_at_bad_batch(error, batch, rate)
        self.step += 1
        self.position += 1
        self.loss_sum += result.loss
        if reporter:
            reporter.step(self.step, self.epoch, result, rate=rate, seconds=time.perf_counter() - began, waited=waited)
            if self.step <= PICTURES:
                reporter.picture(self.step, draw_batch(*self.learner.batches(batch[0]), self.spec))
        return result.stop

    def _end_epoch(self, reporter: Reporter | None) -> None:
        """Evaluate if it is time to, keep the best weights, save, report."""
        last_rate = self.schedule.rate(self.step - 1, self.epoch, self.order.total_steps())
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "loss": self.loss_sum / self.position,
            "rate": last_rate,
        }
        due = record["epoch"] % self.schedule.evaluate_every == 0 or record["epoch"] == self.schedule.last_epoch
        result = self.evaluate() if due and reporter else None
        found = (
            {"auc": float(result.auc), "metrics": {k: float(v) for k, v in result.metrics().items()}} if result else {}
        )
        found = self.world.from_main(found)
        is_best = bool(found) and (self.best is None or found["auc"] > self.best["auc"])
        if found:
            record["metrics"] = found["metrics"]
        if is_best:
            self.best = {"epoch": record["epoch"], "step": self.step, **found}
        self.epoch, self.position, self.loss_sum = self.epoch + 1, 0, 0.0
        self.history.append(record)
        if is_best and reporter:
            checkpointing.save(
                self.folder / "best.pt",
                {"state_dict": dict(self.averaged), "evaluation": self.best, "spec": self.spec.to_json()},
            )
        # A kill between the two files leaves a last.pt that comes to this best.pt again.
        self._save_last()
        if reporter:
            reporter.epoch(record, self.history)

    def _seed(self) -> None:
        """Torch's generators: as in the checkpoint, or fresh. Samples and their order depend on none of them."""
        if self._random:
            checkpointing.set_random_state(self._random[self.world.rank], self.world.device)
        elif not self._started:
            torch.manual_seed(self.schedule.seed + self.world.rank)  # CUDA's, too
        self._random, self._started = [], True

    # Checks and errors ----------------------------------------------------------------------------

    def _check(self, real: int) -> int:
        """The micro-batch. Raises InputError as the constructor says."""
        schedule, processes, samples = self.schedule, self.world.size, len(self.dataset)
        if not 0 <= real <= samples:
            raise InputError(f"real counts the real ones among {samples} samples: expected 0 to {samples}, got {real}")
        if real < schedule.batch_size:
            raise InputError(
                f"{real} samples do not fill one batch of {schedule.batch_size}: give more data or a smaller batch_size"
            )
        if not self.validation:
            raise InputError("validation is empty: give annotations to evaluate on")
        if schedule.batch_size % processes:
            raise InputError(
                f"a batch_size of {schedule.batch_size} cannot be divided among {processes} processes: choose another "
                "number of processes (torchrun --nproc-per-node)"
            )
        share = schedule.batch_size // processes
        micro_batch = self.execution.micro_batch or share
        if share % micro_batch:
            fitting = [n for n in range(1, share + 1) if share % n == 0]
            raise InputError(
                f"a batch_size of {schedule.batch_size} is {share} crops for each of {processes} processes, and "
                f"micro-batches of {micro_batch} do not fill them: expected one of {fitting}"
            )
        return micro_batch

    def _prepare_folder(self) -> None:
        checkpointing.prepare_folder(self.folder)
        if self.step == 0 and not self._started and (self.folder / "last.pt").exists():
            raise InputError(
                f"{self.folder} holds a run already: call resume() to go on with it, or train into a new folder"
            )

    def _reporter(self, log: Callable[[str], None]) -> Reporter:
        reporter = Reporter(
            self.folder,
            self.schedule,
            total_steps=self.order.total_steps(self.schedule.last_epoch),
            step=self.step,
            epoch=self.epoch,
            log=log,
        )
        device = self.world.device
        reporter.record(
            "start",
            step=self.step,
            epoch=self.epoch + 1,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            processes=self.world.size,
            torch=torch.__version__,
            execution=asdict(self.execution),
            **self.identity,
        )
        return reporter

    def _stop_at_bad_batch(self, error: NotFiniteError, batch: list[Any], rate: float) -> NoReturn:
        """Keep the batch, name its images. All processes come here together."""
        numbers = error.micro_batches
        if not any(self.world.gather(bool(numbers))):
            numbers = list(range(len(batch)))  # a gradient: all of them made it
        keys = self.batches.of_step(self.epoch, self.position)
        mine = [
            {"files": [str(self.dataset.annotations[index].image) for _, index in keys[n]], **batch[n]._asdict()}
            for n in numbers
        ]
        parts = [part for theirs in self.world.gather(mine) for part in theirs]
        path, last = self.folder / "bad_batch.pt", self.folder / "last.pt"
        if self.world.is_main:
            checkpointing.save(path, {"step": self.step, "rate": rate, "what": error.what, "parts": parts})
        files = list(dict.fromkeys(file for part in parts for file in part["files"]))
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        raise InputError(
            f"{error.what} at step {self.step + 1} (epoch {self.epoch + 1}, learning rate {rate:.3g}, "
            f"{self.execution.precision}). The batch is in {path}; its images: {', '.join(files[:NAMED])}{more}. Look "
            "for broken images or labels, lower the learning rate, or train in bf16 or fp32 if this was fp16. "
            + (f"The last good state is {last}" if last.exists() else "No state was saved before it")
        ) from None

    # Checkpoints ----------------------------------------------------------------------------------

    def _save_last(self) -> None:
        random = self.world.gather(checkpointing.random_state(self.world.device))
        if not self.world.is_main:
            return
        state = {
            **self.learner.state(),
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "evaluation": self.best,
            "history": self.history,
            "random": random,
            "identity": self.identity,
            "execution": asdict(self.execution),
            "spec": self.spec.to_json(),
        }
        checkpointing.save(self.folder / "last.pt", state)

    def resume(self) -> bool:
        """Go on from ``folder/last.pt`` if it is there; the run then ends as if it had never stopped.

        Device, processes, micro-batches and precision may be others than before: the results are then equal up to
        rounding (batch normalisation apart, which sees other groups of crops).

        Raises:
            InputError: the checkpoint belongs to another schedule, spec, data set or network, or is damaged.
        """
        path = self.folder / "last.pt"
        with self.world.together():
            found = self.world.gather(path.exists())
            if not any(found):
                return False
            if not all(found):
                missing = [rank for rank, there in enumerate(found) if not there]
                raise InputError(
                    f"{path} is not visible to the processes {missing}: use a folder that all of them share"
                )
            state = checkpointing.load(path)
            checkpointing.check_identity(path, state["identity"], self.identity)
            self.learner.load_state(path, state)
        self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
        self.loss_sum, self.best, self.history = state["loss_sum"], state["evaluation"], state["history"]
        self._random = state["random"] if len(state["random"]) == self.world.size else []
        return True
