"""Scenes as a data set: sample (step, index) is the same whoever makes it and whenever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgepose.training.detection.garments import Stock
from edgepose.training.detection.scenes import Scene, SceneMix, compose
from edgepose.training.interrupt import outlast_interrupts

__all__ = ["MOST_OBJECTS", "Batch", "SceneDataset", "chances_of", "load_batches"]

MOST_OBJECTS = 8  # of a scene; the rest of its rows are not valid


class Batch(NamedTuple):
    """Attributes:
    images: (B, 3, S, S) uint8 RGB.
    boxes: (B, G, 4) float32 x1, y1, x2, y2 px, pixel edges.
    labels: (B, G) int64.
    valid: (B, G) bool.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    valid: Tensor


class SceneDataset(Dataset[Batch]):
    """Batches of scenes, numbered by optimiser step.

    Args:
        stock: what scenes are made of.
        size: of the scenes, px.
        mix: what kinds of scenes.
        batch_size: scenes in a batch.
        steps: batches.
        balance: how far rare types are seen more often: 0 as often as they occur, 1 all equally often.
        seed: fixes all scenes.
        rank, processes: of several processes this one makes every ``processes``-th scene of a batch, from ``rank`` on.
    """

    def __init__(
        self,
        stock: Stock,
        size: int,
        mix: SceneMix,
        *,
        batch_size: int,
        steps: int,
        balance: float,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.stock, self.size, self.mix, self.batch_size, self.steps, self.seed = (
            stock, size, mix, batch_size, steps, seed,
        )  # fmt: skip
        self.numbers = range(rank, batch_size, processes)
        self.chances = chances_of(stock, balance)

    def __len__(self) -> int:
        return self.steps

    def scene(self, step: int, index: int) -> Scene:
        """One scene of a step."""
        rng = np.random.default_rng((self.seed, step, index))
        return compose(self.stock, self.size, self.mix, self.chances, rng)

    def __getitem__(self, step: int) -> Batch:
        count = len(self.numbers)
        images = np.empty((count, 3, self.size, self.size), np.uint8)
        boxes = np.zeros((count, MOST_OBJECTS, 4), np.float32)
        labels = np.zeros((count, MOST_OBJECTS), np.int64)
        valid = np.zeros((count, MOST_OBJECTS), bool)
        for row, index in enumerate(self.numbers):
            scene = self.scene(step, index)
            found = min(len(scene.boxes), MOST_OBJECTS)
            images[row] = scene.image[..., ::-1].transpose(2, 0, 1)
            boxes[row, :found], labels[row, :found] = scene.boxes[:found], scene.labels[:found]
            valid[row, :found] = True
        return Batch(*(torch.from_numpy(array) for array in (images, boxes, labels, valid)))


def chances_of(stock: Stock, balance: float) -> npt.NDArray[np.float64]:
    """(P,) how often each photo is taken, adding up to 1: n^-balance for one of n garments of its type."""
    counts = Counter(photo.label for photo in stock.photos)
    weights = np.array([counts[photo.label] ** -balance for photo in stock.photos])
    return np.asarray(weights / weights.sum(), np.float64)


def load_batches(dataset: SceneDataset, first: int, workers: int) -> Iterator[Batch]:
    """The batches from step ``first`` on, made ahead by ``workers`` processes."""
    loader = DataLoader(
        dataset, batch_size=None, sampler=range(first, len(dataset)), num_workers=workers,
        worker_init_fn=_start_worker, prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    yield from loader


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    outlast_interrupts()
