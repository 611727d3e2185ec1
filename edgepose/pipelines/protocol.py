"""The protocol of pipelines, and the values that go in and come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgepose.engines import DeviceEngine, Engine
from edgepose.pipelines.detection import DetectionSettings, Found
from edgepose.result import Timings
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from edgepose.detector_spec import DetectorSpec

__all__ = [
    "MOST_PENDING",
    "DetectedPoses",
    "DetectionPipeline",
    "DetectorModel",
    "Finished",
    "Pending",
    "Pipeline",
    "PoseModel",
    "Poses",
]

MOST_PENDING = 4  # calls of a pipeline that may be under way: two of a predictor, each with boxes given and detected

Output_co = TypeVar("Output_co", covariant=True)


class PoseModel(NamedTuple):
    """A network of the second stage.

    Attributes:
        engine: opened and checked against its spec; the pipeline takes it over and closes it.
        spec: the engine's, perhaps with another refinement.
    """

    engine: Engine | DeviceEngine
    spec: ModelSpec


class DetectorModel(NamedTuple):
    """The network of the first stage.

    Attributes:
        engine: its input is (N, 3, h, w), its output rows (N, Q, 6) float32: x1, y1, x2, y2 in px of the network's
            input, score, label. The pipeline takes it over and closes it.
        spec: the engine's.
        settings: which rows count.
    """

    engine: Engine | DeviceEngine
    spec: DetectorSpec
    settings: DetectionSettings


class Poses(NamedTuple):
    """What a call with boxes gives; the arrays are the caller's.

    Attributes:
        keypoints: (N, K, 2) float32, x and y, frame px.
        scores: (N, K) float32; 0 where there is no landmark, and there the keypoints say nothing.
        timings: of the stages; ``total`` is left to the caller.
    """

    keypoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    timings: Timings


class DetectedPoses(NamedTuple):
    """What a call with a detector gives: the detections of the first frame, best first, then those of the second, ...

    A label that asks for no landmarks (the pose models have categories, and none of its name) keeps its box, and all
    its scores are 0.

    Attributes:
        keypoints, scores, timings: as of :class:`Poses`.
        owners: (N,) int32, the number of the frame that each was found in; ascending.
        boxes: (N, 4) float32, xyxy, frame px, clipped to the frame.
        box_scores: (N,) float32.
        labels: (N,) int32, numbers of the detector's ``category_names``.
    """

    keypoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    timings: Timings
    owners: NDArray[np.int32]
    boxes: NDArray[np.float32]
    box_scores: NDArray[np.float32]
    labels: NDArray[np.int32]


class Pending(Protocol[Output_co]):
    """A call under way. Dropping it without ``finish`` is fine: its results are lost, and nothing else."""

    def finish(self) -> Output_co:
        """Wait for the results. Asking again gives the same.

        From now on the frames may be written again; those of host memory could be as soon as the call was started.

        Raises:
            EngineError: the runtime failed, or the pipeline was closed meanwhile.
        """
        ...


@dataclass(frozen=True)
class Finished(Generic[Output_co]):
    """A :class:`Pending` of which nothing is pending any more."""

    output: Output_co

    def finish(self) -> Output_co:
        """The results."""
        return self.output


class Pipeline(Protocol):
    """The chain of one predictor. It owns its engines and all buffers. Calls must not overlap: lock around them.

    Up to MOST_PENDING calls may have been started and not been finished. They run in the order of their starts; in what
    order they are finished is the caller's choice.
    """

    @property
    def engine(self) -> Engine | DeviceEngine:
        """What runs the (first) pose network."""
        ...

    def read(self, frame: Any) -> tuple[Any, tuple[int, int]]:
        """Check a frame: what ``run`` takes of it (never a copy of the pixels that could be avoided), and (w, h), px.

        Raises:
            InputError: it is no frame, or in memory that this pipeline cannot read.
        """
        ...

    def stage(self, frame: Any) -> tuple[Any, tuple[int, int]]:
        """As ``read``, and begin to bring the frame to the device, all of it, beside whatever runs there.

        When it returns, a frame in host memory may be written again. The staged copy lives as long as
        what is returned is referred to. On the host there is no device: it is ``read``, which copies nothing, so the
        frame must stay as it is until the call that uses it was started. A frame in the memory of the device is never
        copied: it must stay until that call has finished.
        """
        ...

    def run(
        self,
        frames: Sequence[Any],  # of `read` or `stage`
        boxes: NDArray[np.float32],  # (N, 4) xyxy, frame px, validated, N >= 1
        owners: NDArray[np.int32],  # (N,) number of each box's frame
        *,
        streams: Sequence[Any] | None = None,  # for each frame the CUDA stream that it is being written on, or None
        channels: NDArray[np.int32] | None = None,  # (N, 2) [begin, end): the landmarks of each box; None: all
    ) -> Poses:
        """``start`` and ``finish``.

        With several pose models, ``channels`` must say for each box which landmarks of the joint spec it has: they
        choose the model.
        """
        ...

    def start(
        self,
        frames: Sequence[Any],
        boxes: NDArray[np.float32],
        owners: NDArray[np.int32],
        *,
        streams: Sequence[Any] | None = None,
        channels: NDArray[np.int32] | None = None,
    ) -> Pending[Poses]:
        """The landmarks of boxes in one or several frames, together in as few runs of the network as possible.

        Raises:
            InputError: a box that is too small or too far away for float32, or a stream that is none.
            EngineError: the runtime failed, or MOST_PENDING calls are under way.
        """
        ...

    def detect_and_start(
        self, frames: Sequence[Any], *, streams: Sequence[Any] | None = None
    ) -> Pending[DetectedPoses]:
        """Find the objects of one or several frames, and the landmarks of each; on a device without the host between.

        Raises:
            InputError: the pipeline has no detector.
            EngineError: the runtime failed, or MOST_PENDING calls are under way.
        """
        ...

    def close(self) -> None:
        """Free engines and buffers. Closing twice is fine."""
        ...


class DetectionPipeline(Protocol):
    """The first stage alone: what a ``Detector`` runs. Calls must not overlap."""

    def read(self, frame: Any) -> tuple[Any, tuple[int, int]]:
        """As a :class:`Pipeline`'s."""
        ...

    def detect(self, frames: Sequence[Any], *, streams: Sequence[Any] | None = None) -> list[Found]:
        """(boxes, scores, labels) of each frame of ``read``, see :data:`edgepose.pipelines.detection.Found`."""
        ...

    def close(self) -> None:
        """Free engine and buffers. Closing twice is fine."""
        ...
