"""The demo: a rendered moving garment whose landmarks are known, so that error and latency can be told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError
from edgepose.media import VideoWriter, write_photo
from edgepose.predictor import Predictor
from edgepose.result import MIN_SCORE

__all__ = ["WARM_UP", "DemoReport", "Sample", "run_demo"]

FPS = 25.0
WARM_UP = 5  # frames left out of the latencies: the first runs allocate memory and wake the threads


class Sample(Protocol):
    """One frame with its truth.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        box: (4,) xyxy, frame px.
        keypoints: (K, 2), frame px, in the model's order.
        visible: (K,) 1 or 0: landmarks that this garment has.
    """

    @property
    def image(self) -> NDArray[np.uint8]: ...
    @property
    def box(self) -> NDArray[Any]: ...
    @property
    def keypoints(self) -> NDArray[Any]: ...
    @property
    def visible(self) -> NDArray[Any]: ...


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured.

    Attributes:
        errors: (landmarks,) px, distance of each visible landmark of each frame to its truth.
        relative_errors: (landmarks,) the same, as a fraction of the box's longer side.
        latencies: stage -> (frames,) ms, without the first ``WARM_UP`` frames (unless there are no more).
        video: the annotated clip.
        poster: its middle frame.
    """

    errors: NDArray[np.float64]
    relative_errors: NDArray[np.float64]
    latencies: dict[str, NDArray[np.float64]]
    video: Path
    poster: Path

    def pck(self, threshold: float) -> float:
        """The fraction of landmarks that are nearer than ``threshold`` times the box's longer side."""
        return float(np.mean(self.relative_errors < threshold))


def run_demo(
    predictor: Predictor,
    clip: Iterable[Sample],
    frames: int,
    output: Path,
    *,
    min_score: float = MIN_SCORE,
    track: Callable[[Iterable[Any], int, str], Iterable[Any]] | None = None,
) -> DemoReport:
    """Predict on each frame of a clip, compare with the truth, write the annotated clip and its middle frame.

    Args:
        predictor: its landmarks must be those of the clip.
        clip: frames with truth; predicted with the true boxes.
        frames: how many the clip has, at least 1.
        output: the .mp4 file; the poster gets the same name with ``.png``.
        min_score: landmarks below it are not drawn; all visible ones count in the errors.
        track: wraps the loop to show progress.

    Raises:
        InputError: clip and model have another number of landmarks, the clip is empty, or a file cannot be written.
    """
    distances, sides, timings = [], [], []
    poster = output.with_suffix(".png")
    samples = clip if track is None else track(clip, frames, "demo")
    with VideoWriter(output, FPS) as writer:
        for number, sample in enumerate(samples):
            truth = np.asarray(sample.keypoints, np.float64)
            if len(truth) != predictor.spec.num_keypoints:
                raise InputError(
                    f"the demo's garment has {len(truth)} landmarks, the model {predictor.spec.name!r} has "
                    f"{predictor.spec.num_keypoints}: the demo runs with models that have garment-landmarks' 8"
                )
            box = np.asarray(sample.box, np.float64).reshape(4)
            result = predictor.predict(sample.image, box[None])
            distance = np.linalg.norm(result.keypoints[0] - truth, axis=1)[np.asarray(sample.visible, bool)]
            distances.append(distance)
            sides.append(np.full(len(distance), max(box[2] - box[0], box[3] - box[1])))
            timings.append(result.timings)
            drawn = result.draw(sample.image, min_score=min_score)
            writer.write(drawn)
            if number == frames // 2:
                write_photo(poster, drawn)
    if not timings:
        raise InputError("the demo needs at least one frame")
    timed = timings[WARM_UP:] or timings
    errors = np.concatenate(distances)
    return DemoReport(
        errors=errors,
        relative_errors=errors / np.concatenate(sides),
        latencies={
            stage: np.array([getattr(timing, stage) for timing in timed])
            for stage in ("crop", "network", "decode", "total")
        },
        video=output,
        poster=poster,
    )
