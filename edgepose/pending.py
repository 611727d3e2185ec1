"""Calls of a predictor that are under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose.pipelines import DetectedPoses, Pending, Pipeline, Poses
from edgepose.result import PoseResult, Timings
from edgepose.spec import ModelSpec

__all__ = ["DetectedPart", "GivenPart", "PendingResults", "StagedFrame"]


class StagedFrame(NamedTuple):
    """A frame that is on its way to the device, or there; of :meth:`edgepose.Predictor.stage`.

    Attributes:
        view: the pipeline's own.
        size: (width, height), px.
        pipeline: it belongs to this one.
    """

    view: Any
    size: tuple[int, int]
    pipeline: Pipeline


@dataclass(frozen=True)
class GivenPart:
    """The frames of a call that came with boxes.

    Attributes:
        pending: of all boxes together; None: there is not a single one.
        frames: their numbers in the call.
        boxes: (N, 4) of all of them.
        owners: (N,) the number of each box's frame in the call.
        categories: names for each of ``frames``, or ().
    """

    pending: Pending[Poses] | None
    frames: Sequence[int]
    boxes: NDArray[np.float32]
    owners: NDArray[np.int32]
    categories: Sequence[tuple[str, ...]]

    def finish(self) -> Timings:
        """Wait; how long the stages took."""
        return Timings() if self.pending is None else self.pending.finish().timings

    def results(self, spec: ModelSpec, sizes: Sequence[tuple[int, int]], timings: Timings) -> dict[int, PoseResult]:
        """By number of the frame."""
        if self.pending is None:
            return {frame: replace(PoseResult.empty(spec, sizes[frame]), timings=timings) for frame in self.frames}
        poses = self.pending.finish()
        results = {}
        for frame, categories in zip(self.frames, self.categories, strict=True):
            rows = self.owners == frame
            results[frame] = PoseResult(
                poses.keypoints[rows],
                poses.scores[rows],
                self.boxes[rows],
                spec,
                sizes[frame],
                timings,
                categories,
            )
        return results


@dataclass(frozen=True)
class DetectedPart:
    """The frames of a call whose boxes the detector finds.

    Attributes:
        pending: of all of them.
        frames: their numbers in the call.
        names: what the detector's labels are called.
    """

    pending: Pending[DetectedPoses]
    frames: Sequence[int]
    names: Sequence[str]

    def finish(self) -> Timings:
        """Wait; how long the stages took."""
        return self.pending.finish().timings

    def results(self, spec: ModelSpec, sizes: Sequence[tuple[int, int]], timings: Timings) -> dict[int, PoseResult]:
        """By number of the frame."""
        found = self.pending.finish()
        results = {}
        for number, frame in enumerate(self.frames):
            rows = found.owners == number
            results[frame] = PoseResult(
                found.keypoints[rows],
                found.scores[rows],
                found.boxes[rows],
                spec,
                sizes[frame],
                timings,
                tuple(self.names[label] for label in found.labels[rows]),
                found.box_scores[rows],
            )
        return results


class PendingResults:
    """Results on their way, of :meth:`edgepose.Predictor.submit`. Dropping it loses them, and nothing else."""

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        parts: Sequence[GivenPart | DetectedPart],
        spec: ModelSpec,
        sizes: Sequence[tuple[int, int]],
        started: float,  # perf_counter()
        done: Callable[[PendingResults], None],
    ) -> None:
        self._lock = lock
        self._parts = parts
        self._spec = spec
        self._sizes = sizes
        self._started = started
        self._done: Callable[[PendingResults], None] | None = done
        self._results: list[PoseResult] = []
        self._error: Exception | None = None

    def results(self) -> list[PoseResult]:
        """Wait for the results, one for each frame of the call. Asking again gives the same.

        Raises:
            EngineError: the runtime failed, or the predictor was closed meanwhile.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return list(self._results)

    def wait(self) -> None:
        """Wait, and keep what comes, also an error, for :meth:`results`."""
        with self._lock:
            if self._done is None:
                return
            try:
                timings = self._joined([part.finish() for part in self._parts])
                by_frame: dict[int, PoseResult] = {}
                for part in self._parts:
                    by_frame |= part.results(self._spec, self._sizes, timings)
                self._results = [by_frame[frame] for frame in range(len(self._sizes))]
            except Exception as error:
                self._error = error
            finally:
                done, self._done, self._parts = self._done, None, ()
                done(self)

    def _joined(self, stages: Sequence[Timings]) -> Timings:
        """The times of all parts together."""
        return Timings(
            crop=sum(item.crop for item in stages),
            network=sum(item.network for item in stages),
            decode=sum(item.decode for item in stages),
            detect=sum(item.detect for item in stages),
            total=(perf_counter() - self._started) * 1e3,
        )
