"""A predictor that answers at once, frames that carry a number, and bounded waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgepose.result import PoseResult
from edgepose.spec import ModelSpec

SPEC = ModelSpec(name="fake", keypoint_names=("a", "b"), input_size=(32, 32), heatmap_size=(8, 8), flip_indices=(0, 1))


class FakePredictor:
    """Detects one object in each frame, whose box is the frame; records what it is asked."""

    def __init__(self, work: Callable[[list[Any]], None] | None = None, overlaps: bool = True) -> None:
        self.spec = SPEC
        self.overlaps = overlaps
        self.staged: list[Any] = []
        self.calls: list[tuple[list[Any], list[Any], Any]] = []
        self.pending = self.most_pending = 0
        self._work = work

    def submit(self, frames: list[Any], boxes: list[Any] | None = None, *, categories: Any = None) -> FakePending:
        self.calls.append((list(frames), list(boxes or []), categories))
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        return FakePending(self, frames, boxes or [None] * len(frames))

    def stage(self, frame: Any) -> Staged:
        self.staged.append((frame, self.pending))
        return Staged(frame)

    def run(self, frames: list[Any], boxes: list[Any]) -> list[PoseResult]:
        self.pending -= 1
        if self._work is not None:
            self._work(frames)
        return [result_of(frame, given) for frame, given in zip(frames, boxes, strict=True)]


class Staged:
    """What ``stage`` returns."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame


class FakePending:
    def __init__(self, predictor: FakePredictor, frames: list[Any], boxes: list[Any]) -> None:
        self._predictor, self._boxes = predictor, boxes
        self._frames = [frame.frame if isinstance(frame, Staged) else frame for frame in frames]

    def results(self) -> list[PoseResult]:
        return self._predictor.run(self._frames, self._boxes)


class QuietPredictor(FakePredictor):
    """Does not record: for long runs."""

    def submit(self, frames: list[Any], boxes: list[Any] | None = None, *, categories: Any = None) -> FakePending:
        self.pending += 1
        return FakePending(self, frames, boxes or [None] * len(frames))


def result_of(frame: Any, boxes: Any) -> PoseResult:
    height, width = frame.shape[:2]
    found = np.array([[0, 0, width - 1, height - 1]] if boxes is None else boxes, np.float32)
    keypoints = found.reshape(-1, 2, 2) * 0.8 + 0.1 * found.max()  # inside of the box
    return PoseResult(keypoints, np.ones((len(found), 2), np.float32), found, SPEC, (width, height))


def numbered(number: int, size: tuple[int, int] = (16, 12)) -> np.ndarray:
    """A frame that carries a number below 2**24 in its first pixel."""
    frame = np.zeros((size[1], size[0], 3), np.uint8)
    frame[0, 0] = number & 255, number >> 8 & 255, number >> 16 & 255
    return frame


def number_of(frame: np.ndarray) -> int:
    blue, green, red = (int(value) for value in frame[0, 0])
    return blue | green << 8 | red << 16


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Bounded polling for what another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("edgepose-source-")]


def gray_level(frame: np.ndarray) -> int:
    return round(float(frame.mean()))


def frames(count: int, first: int = 0) -> Iterator[np.ndarray]:
    return (numbered(first + number) for number in range(count))


class Gate:
    """An endless source that gives a frame whenever it is let."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._count = 0

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._permits.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        self._permits.acquire()
        self._count += 1
        return numbered(self._count - 1)
