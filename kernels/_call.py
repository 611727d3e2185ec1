"""The records that tell the CUDA kernels what one call is about; ``common.cuh`` declares the same layouts in C++.

A CUDA graph replays kernels with the arguments of its capture. So whatever changes from call to call (where the frames
are, how many crops there are, their affines) lies in small buffers of device memory: a table of the frames, and the
record of a call, which is a header and then one record for each crop. A crop knows its frame, so that one launch serves
the crops of several. The host uploads the record before each replay, or ``plan_crops.cu`` writes it on the device.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "DETECTION",
    "FRAME",
    "HEADER",
    "INSTANCE",
    "call_size",
    "call_views",
    "detections_size",
    "detections_views",
]

FRAME = np.dtype(
    [
        ("pixels", "<u8"),  # device address of channel 0 (blue) of the window's first pixel
        ("row_stride", "<i8"),  # bytes; any of the three may be negative, channel_stride is 0 for grey
        ("pixel_stride", "<i8"),
        ("channel_stride", "<i8"),
        ("width", "<i4"),  # of the whole frame, px
        ("height", "<i4"),
        ("left", "<i4"),  # of the window: the part of the frame that is in device memory, px
        ("top", "<i4"),
    ]
)

HEADER = np.dtype(
    [
        ("count", "<i4"),  # crops of this call; kernels launched for more leave the others alone
        ("total", "<i4"),  # crops that there would be with room for all: what plan_crops.cu tells the host
        ("first", "<i4"),  # plan_crops.cu leaves out so many crops: those that an earlier call has made
        ("reserved", "<i4"),
    ]
)

INSTANCE = np.dtype(
    [
        *((name, FRAME[name]) for name in FRAME.names or ()),  # of the frame that it is cut from
        ("sample", "<f8", (2, 3)),  # crop px -> px of the frame, halved `halvings` times and moved to `first`
        ("place", "<f8", (2, 3)),  # heatmap cells -> what the decoder writes: frame px, or cells again
        ("first", "<i4", (2,)),  # (x, y) of the halved frame that `sample` calls (0, 0)
        ("halvings", "<i4"),  # 0 but for sampling="area"
        ("channels", "<i4", (2,)),  # [begin, end): the heatmaps to decode
        ("owner", "<i4"),  # index of the frame in the call; the kernels do not read it
    ]
)

DETECTION = np.dtype(
    [
        ("box", "<f4", (4,)),  # xyxy, frame px, clipped to the frame
        ("score", "<f4"),
        ("label", "<i4"),
    ]
)


def call_size(crops: int) -> int:
    """Bytes of a call's record."""
    return HEADER.itemsize + crops * INSTANCE.itemsize


def call_views(buffer: np.ndarray, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """The header () and the instances (crops,) in a host buffer (>= call_size(crops),) uint8: views, no copies.

    ``instances[list(FRAME.names)]`` is a view of their frames, to which records of FRAME can be assigned.
    """
    header = buffer[: HEADER.itemsize].view(HEADER)[0:1].reshape(())
    instances = buffer[HEADER.itemsize : call_size(crops)].view(INSTANCE)
    return header, instances


def detections_size(frames: int, most: int) -> int:
    """Bytes of the detections of so many frames, up to ``most`` of each: their counts, then the detections."""
    return _counts_size(frames) + frames * most * DETECTION.itemsize


def detections_views(buffer: np.ndarray, frames: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The counts (frames,) int32 and the detections (frames, most) in a host buffer uint8: views, no copies.

    What lies beyond a frame's count is of no meaning.
    """
    counts = buffer[: 4 * frames].view(np.int32)
    detections = buffer[_counts_size(frames) : detections_size(frames, most)].view(DETECTION)
    return counts, detections.reshape(frames, most)


def _counts_size(frames: int) -> int:
    return -(-4 * frames // 8) * 8
