"""Several training processes that act as one: `torchrun --nproc-per-node 4 …` starts them, `World` ties them."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from edgepose.errors import EdgePoseError, InputError

__all__ = ["World", "connect"]

# The other processes wait while the first one evaluates. One that dies is noticed at once, whatever this says.
TIMEOUT = datetime.timedelta(hours=1)
FAILURE = "edgepose/failure"  # the store's key for the first error of any process


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        device: what this process trains on.
        rank: its number; process 0 alone evaluates, logs and writes files.
        size: how many there are.
        store: what they share besides collectives; None for a single process.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    store: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank; all processes must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Process 0's value; all processes must call it."""
        return self.gather(value)[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around all work that needs the others: an error in one process ends every one of them, with its message.

        Raises:
            EdgePoseError: another process failed; the message is its error.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            global _failed
            _failed = True
            # A process that dies closes its connections, and whoever waits for it gets an error about those.
            lost = isinstance(error, RuntimeError) and not isinstance(error, EdgePoseError)
            if lost and (told := self._failure()):
                raise EdgePoseError(f"the run has stopped because {told}") from error
            if lost and any(word in str(error).lower() for word in ("gloo", "nccl", "connection", "socket")):
                raise EdgePoseError(
                    "the run has stopped because another of its processes ended without a word (was it killed, or out "
                    f"of memory?): see that process's output. PyTorch says: {str(error).splitlines()[0]}"
                ) from error
            with contextlib.suppress(RuntimeError):  # the store is gone with process 0
                self.store.compare_set(FAILURE, "", f"process {self.rank} failed: {type(error).__name__}: {error}")
            raise

    def _failure(self) -> str | None:
        try:
            self.store.wait([FAILURE], datetime.timedelta(seconds=2))  # it may be on its way
            return str(self.store.get(FAILURE).decode())
        except RuntimeError:  # nobody said why, or the store is gone with process 0
            return None


def connect(device: str) -> World:
    """This process's place among those that torchrun started; a world of one without torchrun.

    Args:
        device: as :class:`~edgepose.training.schedule.Execution` has it. Processes on CUDA devices talk NCCL, those on
            CPUs gloo.

    Raises:
        InputError: the device is not there, or is not one to share.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(_device(device, local_rank=None))
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    chosen = _device(device, local_rank=int(os.environ.get("LOCAL_RANK", rank)) if size > 1 else None)
    if size == 1:
        return World(chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    global _store
    if not dist.is_initialized():
        store, rank, size = next(rendezvous("env://"))
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        _store = store
        atexit.register(_leave)
    return World(chosen, rank, size, _store)


_store: Any = None  # of the process group, which lives as long as the process
_failed = False


def _leave() -> None:
    if not _failed and dist.is_initialized():  # a process that failed must not wait for the others
        dist.destroy_process_group()


def _device(name: str, *, local_rank: int | None) -> torch.device:
    """The device that a name means here. Never another one than was asked for."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: expected auto, cpu, cuda, or cuda:1") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise InputError(f"the trainer runs on CPUs and CUDA devices, not on {name!r}")
    if not torch.cuda.is_available():
        raise InputError(
            f"device {name!r} was asked for, but this PyTorch ({torch.__version__}) sees no CUDA device: see "
            "nvidia-smi, or train on the CPU with device='cpu'"
        )
    if device.index is not None and local_rank is not None:
        raise InputError(f"under torchrun each process takes the CUDA device of its local rank: say cuda, not {name!r}")
    index = local_rank if local_rank is not None else device.index or 0
    if index >= torch.cuda.device_count():
        raise InputError(
            f"CUDA device {index} was asked for, but there are {torch.cuda.device_count()}: start fewer processes "
            "(--nproc-per-node), or choose another device"
        )
    return torch.device("cuda", index)
