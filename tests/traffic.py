"""Calls of all kinds on a pipeline in GPU memory, several under way at once, checked against one in host memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from grid_detector import grid_frame

from edgepose.pipelines import MOST_PENDING, Pipeline


def same(found: Any, expected: Any) -> bool:
    """Whether landmarks (and boxes) agree, within what kernels and twins differ by: see test_detected.py."""
    if found.scores.shape != expected.scores.shape or not np.allclose(found.scores, expected.scores, atol=1e-4):
        return False
    there = expected.scores > 0.05
    boxes = getattr(found, "boxes", None)
    return np.allclose(found.keypoints[there], expected.keypoints[there], atol=1e-2) and (
        boxes is None or np.array_equal(boxes, expected.boxes)
    )


class Traffic:
    """Calls of all kinds, in random order, on frames that grow; what each must give comes from the host pipeline.

    Frames in host memory are overwritten as soon as they may be. Between the calls either stream sometimes runs ahead,
    as a copy engine does that nothing holds back. (The stand-in's run nothing before somebody waits.)
    """

    def __init__(self, host: Pipeline, device: Any, seed: int) -> None:
        self.host, self.device = host, device
        self.rng = np.random.default_rng(seed)
        self.pending: list[tuple[Any, Any]] = []  # with what it must give
        self.wrong = self.checked = 0

    def run(self, steps: int) -> None:
        operations = [self.given, self.detected, self.finish, self.finish, self.drop, self.run_ahead, self.unused]
        for step in range(steps):
            self.largest = 60 + 6 * step
            if len(self.pending) == MOST_PENDING:
                self.finish()
            self.rng.choice(operations, p=[0.25, 0.25, 0.15, 0.1, 0.05, 0.15, 0.05])()
        while self.pending:
            self.finish()

    def frames(self) -> list[np.ndarray]:
        rng = self.rng
        sizes = rng.integers(50, self.largest, (rng.integers(1, 5), 2))
        return [grid_frame(tuple(size), int(rng.integers(1 << 30)), int(rng.integers(0, 9))) for size in sizes]

    def views(self, frames: list[np.ndarray]) -> list[Any]:
        views = []
        for frame in frames:
            if self.rng.random() < 0.6:
                views.append(self.device.stage(frame)[0])
                frame[:] = 255  # it may be written again
            else:
                views.append(self.device.read(frame)[0])
        return views

    def given(self) -> None:
        frames = self.frames()
        count = self.rng.integers(1, 10)
        owners = self.rng.integers(0, len(frames), count).astype(np.int32)
        sizes = np.array([frame.shape[1::-1] for frame in frames])[owners]
        corner = self.rng.uniform(-0.2, 0.5, (count, 2)) * sizes
        boxes = np.concatenate([corner, corner + self.rng.uniform(0.2, 0.6, (count, 2)) * sizes], 1).astype(np.float32)
        expected = self.host.run([self.host.read(frame)[0] for frame in frames], boxes, owners)
        self.pending.append((self.device.start(self.views(frames), boxes, owners), expected))
        for frame in frames:
            frame[:] = 0

    def detected(self) -> None:
        frames = self.frames()
        expected = self.host.detect_and_start([self.host.read(frame)[0] for frame in frames]).finish()
        self.pending.append((self.device.detect_and_start(self.views(frames)), expected))
        for frame in frames:
            frame[:] = 0

    def finish(self) -> None:
        if self.pending:
            pending, expected = self.pending.pop(self.rng.integers(len(self.pending)))
            self.checked += 1
            self.wrong += not same(pending.finish(), expected)

    def drop(self) -> None:
        if self.pending:
            self.pending.pop(self.rng.integers(len(self.pending)))

    def unused(self) -> None:
        self.device.stage(self.frames()[0])

    def run_ahead(self) -> None:
        session = self.device._session
        stream = session.copy_stream if self.rng.random() < 0.7 else session.stream
        stream.synchronize()
