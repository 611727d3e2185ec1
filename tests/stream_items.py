"""Items of a stream that was never there: for tests of what shows and records them."""

from __future__ import annotations

import numpy as np
from painter import painter_spec

from edgepose.result import PoseResult, Timings
from edgepose.stream import StreamItem
from edgepose.stream_stats import Percentiles, SourceStats, StreamStats

SPEC = painter_spec(name="painter", categories={"blob": (0, 3)})


def grey_frame(level: int = 0, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """(H, W, 3) uint8 BGR of one level."""
    return np.full((size[1], size[0], 3), level, np.uint8)


def make_item(
    index: int = 0,
    *,
    frame: np.ndarray | None = None,
    source: int = 0,
    time: float | None = None,
    latency: float = 18.5,
    objects: int = 1,
) -> StreamItem:
    """A frame with objects whose landmarks lie at (20, 20), (100, 30) and (60, 80)."""
    frame = grey_frame() if frame is None else frame
    result = PoseResult(
        keypoints=np.tile(np.float32([[[20, 20], [100, 30], [60, 80]]]), (objects, 1, 1)),
        scores=np.full((objects, 3), 0.9, np.float32),
        boxes=np.tile(np.float32([[10, 10, 110, 90]]), (objects, 1)),
        spec=SPEC,
        frame_size=(frame.shape[1], frame.shape[0]),
        timings=Timings(crop=0.4, network=9.5, decode=0.25, total=16.5, detect=6.0),
        categories=("blob",) * objects,
        box_scores=np.full(objects, 0.75, np.float32),
        track_ids=np.arange(7, 7 + objects),
    )
    return StreamItem(frame, result, index, index / 25 if time is None else time, source, latency)


def make_source(number: int = 0, **changes: object) -> SourceStats:
    """The figures of a source that runs."""
    values: dict = {
        **{"number": number, "name": f"camera {number}", "kind": "camera", "backend": "opencv", "policy": "newest"},
        **{"state": "running", "read": 10, "dropped": 2, "delivered": 8, "waiting": 0, "reconnects": 1, "hanging": 0},
        **{"read_fps": 25.0, "fps": 20.0, "last_error": None},
    }
    return SourceStats(**{**values, **changes})


def make_stats(*sources: SourceStats) -> StreamStats:
    """The figures of a stream."""
    medians = {"queue": 1.0, "inference": 17.0, "tracking": 0.5, "total": 18.5}
    medians |= {"detect": 6.0, "crop": 0.5, "network": 9.0, "decode": 0.25}
    latency = {name: Percentiles(value, 2 * value, 3 * value, 100) for name, value in medians.items()}
    return StreamStats(sources or (make_source(),), latency, rounds=8, elapsed=1.0, threads=1)
