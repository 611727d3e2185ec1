"""Calls under way on a GPU: the memory that each has for itself, and who gives it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgepose.pipelines.models import Share
from edgepose.pipelines.pose_device import HostPlan
from edgepose.pipelines.staging import Chunk

if TYPE_CHECKING:
    from edgepose.pipelines.detect_device import DetectedChunk
    from edgepose.pipelines.device_frames import FrameView
    from edgepose.pipelines.uploads import Lease

__all__ = ["Call", "Job", "PartOutput", "PendingCall", "Ran"]

Output = TypeVar("Output")
PartOutput = tuple[Share, NDArray[np.float32], NDArray[np.float32]]  # a share, its keypoints (n, K, 2), scores (n, K)


class Call:
    """What one call under way needs of its own. It is used again when the GPU has finished the call.

    Attributes:
        done: event behind everything that the call has put on the pipeline's stream.
        frames, leases: kept alive until then.
        used, used_detected: the chunks that the call has taken.
    """

    def __init__(self, done: Any, chunks: list[list[Chunk]], detected: list[DetectedChunk]) -> None:
        self.done = done
        self.frames: Sequence[FrameView] = ()
        self.leases: list[Lease] = []
        self._chunks, self._detected = chunks, detected
        self._busy = False
        self.rewind()

    def begin(self) -> None:
        """Take it for a new call; waits if nobody has waited for its last one."""
        if self._busy:
            self.done.synchronize()
            self.settle()
        self._busy = True
        self.rewind()

    def rewind(self) -> None:
        """All chunks may be taken (again): their content has been copied."""
        self.used: list[Chunk] = []
        self.used_detected: list[DetectedChunk] = []
        self._taken = [0] * len(self._chunks)

    def chunk(self, model: int, new: Callable[[], Chunk]) -> Chunk:
        """The next chunk for a model; a new one if there are more in this call than in any before."""
        chunks = self._chunks[model]
        if self._taken[model] == len(chunks):
            chunks.append(new())
        chunk = chunks[self._taken[model]]
        self._taken[model] += 1
        self.used.append(chunk)
        return chunk

    def detected_chunk(self, new: Callable[[], DetectedChunk]) -> DetectedChunk:
        """The next one for a run of the detector."""
        if len(self.used_detected) == len(self._detected):
            self._detected.append(new())
        chunk = self._detected[len(self.used_detected)]
        self.used_detected.append(chunk)
        return chunk

    def settle(self) -> None:
        """The host knows that the GPU has finished."""
        for lease in self.leases:
            lease.settle()
        self.frames, self.leases = (), []
        self._busy = False


@dataclass
class Job:
    """What one pose model does in a call: its plan, the chunks that hold the results, and how many boxes each has.

    ``unseen``: (n,) whether a crop sees nothing of its frame; the scores are 0 there.
    """

    plan: HostPlan
    chunks: list[tuple[Chunk, int]]
    unseen: NDArray[np.bool_] | None = None

    def output(self) -> PartOutput:
        """Copies: the pinned memory is written again by a later call."""
        results = np.concatenate([chunk.results[:count] for chunk, count in self.chunks])
        results[self.unseen, :, 2] = 0
        return self.plan.share, results[:, :, :2], results[:, :, 2]


class Ran(NamedTuple):
    """A run of a pose model behind the detector: the boxes that it has room for, and where the results are."""

    chunk: Chunk
    size: int


class PendingCall(Generic[Output]):
    """See :class:`edgepose.pipelines.Pending`.

    Args:
        call: given back by ``finish``, or to ``abandon``.
        finish: waits, and makes the output.
        abandon: called if the results are never asked for.
    """

    def __init__(self, call: Call, finish: Callable[[], Output], abandon: Callable[[Call], None]) -> None:
        self._call: Call | None = call
        self._finish, self._abandon = finish, abandon
        self._output: Output | None = None

    def finish(self) -> Output:
        """Wait for the results."""
        if self._output is None:
            self._output = self._finish()
            self._call = None
        return self._output

    def __del__(self) -> None:
        if self._call is not None:
            self._abandon(self._call)
