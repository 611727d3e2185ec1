"""Which batch sizes get a CUDA graph of their own, and how the network runs each."""

from __future__ import annotations

from collections import deque

from edgepose.errors import EngineError

__all__ = ["RecentCounts", "batch_buckets", "covering_runs", "network_runs"]

REMEMBERED = 8  # calls


def batch_buckets(min_batch: int, max_batch: int, wanted: int, *, flip_test: bool = False) -> list[int]:
    """The numbers of boxes that get a CUDA graph of their own, ascending: 1, 2, 4, 8, ... and the largest possible.

    Args:
        min_batch, max_batch: crops that one run of the engine takes.
        wanted: the caller's largest batch.
        flip_test: each box makes two crops.

    Raises:
        EngineError: the engine takes at least more crops than the caller allows.
    """
    limit = min(wanted, max_batch)
    candidates = {limit, *(1 << power for power in range(limit.bit_length()))}
    if flip_test:
        candidates.add(limit // 2)  # one run of twice as many crops
    sizes = sorted(
        size
        for size in candidates
        if 1 <= size <= limit and network_runs(size, min_batch, max_batch, flip_test=flip_test)
    )
    if not sizes:
        raise EngineError(
            f"the engine takes {min_batch} to {max_batch} crops in a run and max_batch is {wanted}: raise max_batch to "
            f"{min_batch}, or build the engine with a smaller batch (edgepose build --min-batch 1)"
        )
    return sizes


def network_runs(crops: int, min_batch: int, max_batch: int, *, flip_test: bool) -> list[slice]:
    """Which crops each run of the network takes; empty: a batch of this size cannot be run.

    The mirrored crops of a flip test follow the others: one run takes both if the engine is large enough, else two.
    """
    if not flip_test:
        return [slice(0, crops)] if min_batch <= crops <= max_batch else []
    if min_batch <= 2 * crops <= max_batch:
        return [slice(0, 2 * crops)]
    return [slice(0, crops), slice(crops, 2 * crops)] if min_batch <= crops <= max_batch else []


def covering_runs(images: int, min_batch: int, max_batch: int) -> list[slice]:
    """Runs of the network that take so many images, one after the other; the last may reach beyond them.

    An engine of a fixed batch of 1 takes eight frames in eight runs; one of a fixed batch of 4 takes two in one run,
    half of which is in vain.
    """
    runs = []
    for first in range(0, images, max_batch):
        runs.append(slice(first, first + max(min(images - first, max_batch), min_batch)))
    return runs


class RecentCounts:
    """How many boxes the next call will have, guessed before anybody knows: as many as the fullest of the last calls.

    Args:
        first_guess: for a number of frames that no call has had yet.
    """

    def __init__(self, first_guess: int) -> None:
        self._first_guess = first_guess
        self._counts: dict[int, deque[int]] = {}

    def expected(self, frames: int) -> int:
        """Boxes in so many frames."""
        counts = self._counts.get(frames)
        return max(counts) if counts else self._first_guess

    def saw(self, frames: int, boxes: int) -> None:
        """A call of so many frames had so many boxes."""
        self._counts.setdefault(frames, deque(maxlen=REMEMBERED)).append(boxes)
