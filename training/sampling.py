"""In which order a run sees its samples: the same whatever the number of processes, micro-batches and workers."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from edgepose.errors import EdgePoseError
from edgepose.training.dataset import LandmarkDataset, collate
from edgepose.training.interrupt import outlast_interrupts
from edgepose.training.schedule import Schedule

__all__ = ["EpochOrder", "Key", "MicroBatches", "load_ahead", "next_sample"]

Key = tuple[int, int]  # (epoch, index): what fixes a sample, augmentation included


class EpochOrder:
    """All ``real`` samples, and some of the ``extra`` ones behind them, in a new order every epoch.

    Args:
        real: how many samples every epoch has; they come first in the data set.
        extra: how many follow them, of which an epoch takes as many as the schedule says.
        schedule: seed, batch size, epochs, extras.
    """

    def __init__(self, real: int, extra: int, schedule: Schedule) -> None:
        self.real, self.extra, self.schedule = real, extra, schedule

    def extras(self, epoch: int) -> int:
        """How many extra samples an epoch takes."""
        s = self.schedule
        t = epoch / max(s.epochs - 1, 1)
        return min(round(s.extra_first + t * (s.extra_last - s.extra_first)), self.extra)

    def steps(self, epoch: int) -> int:
        """Optimiser steps of an epoch: what does not fill a batch is left out."""
        return (self.real + self.extras(epoch)) // self.schedule.batch_size

    def total_steps(self, epochs: int | None = None) -> int:
        """Optimiser steps of the first ``epochs`` epochs; None: of the whole schedule."""
        return sum(self.steps(epoch) for epoch in range(self.schedule.epochs if epochs is None else epochs))

    def indices(self, epoch: int) -> npt.NDArray[np.int64]:
        """(samples,) the epoch's order, from (seed, epoch) alone."""
        rng = np.random.default_rng((self.schedule.seed, epoch))
        chosen = self.real + rng.choice(self.extra, self.extras(epoch), replace=False) if self.extra else []
        return rng.permutation(np.concatenate([np.arange(self.real), chosen]).astype(np.int64))


class MicroBatches:
    """One process's share of the order, a list of keys for each forward pass: a ``batch_sampler`` for DataLoader.

    Process ``rank`` takes the ``rank``-th part of every optimiser batch, so the batch is the same set of samples for
    any number of processes. Epoch follows epoch without an end of iteration, so that workers never wait for a new one.

    Args:
        order: of the whole run.
        rank, processes: which share.
        micro_batch: crops of one forward pass; batch_size must be a multiple of processes * micro_batch.
    """

    def __init__(self, order: EpochOrder, *, rank: int, processes: int, micro_batch: int) -> None:
        self.order, self.rank, self.micro_batch = order, rank, micro_batch
        self.share = order.schedule.batch_size // processes
        self.start = (0, 0)  # epoch, and steps of it that are done

    @property
    def accumulation(self) -> int:
        """Forward passes in one optimiser step of one process."""
        return self.share // self.micro_batch

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, step = self.start
        for number in range(epoch, self.order.schedule.last_epoch):
            indices = self.order.indices(number)
            for position in range(step if number == epoch else 0, self.order.steps(number)):
                yield from self._of_step(number, indices, position)

    def of_step(self, epoch: int, position: int) -> list[list[Key]]:
        """The micro-batches of one optimiser step."""
        return self._of_step(epoch, self.order.indices(epoch), position)

    def _of_step(self, epoch: int, indices: npt.NDArray[np.int64], position: int) -> list[list[Key]]:
        first = position * self.order.schedule.batch_size + self.rank * self.share
        share = [(epoch, int(index)) for index in indices[first : first + self.share]]
        return [share[i : i + self.micro_batch] for i in range(0, self.share, self.micro_batch)]


@contextlib.contextmanager
def load_ahead(dataset: LandmarkDataset, batches: MicroBatches, *, workers: int, pin: bool) -> Iterator[Iterator[Any]]:
    """Samples in the order of ``batches``, made ahead by workers; ``pin``: in memory that a GPU copies from."""
    # Forked workers are children of this process and notice when it is killed; a fork server's children would live on.
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if forks else None,
        # Its own, so that starting to iterate draws nothing from the generator that the network uses
        generator=torch.Generator().manual_seed(0),
    )
    samples = iter(loader)
    try:
        yield samples
    finally:
        if workers:  # not left to __del__: the traceback of an error keeps the iterator, and so the workers, alive
            samples._shutdown_workers()


def next_sample(samples: Iterator[Any]) -> Any:
    """The next micro-batch; an error of a worker comes without the worker's traceback."""
    try:
        return next(samples)
    except EdgePoseError as error:
        kind = type(error).__name__
        if not str(error).startswith(f"Caught {kind} in DataLoader"):
            raise
        raise type(error)(str(error).rpartition(f"{kind}: ")[2].strip()) from None


def _start_worker(_: int) -> None:
    outlast_interrupts()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
