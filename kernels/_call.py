"""The record that tells the CUDA kernels what one call is about; ``common.cuh`` declares the same layout in C++.

A CUDA graph replays kernels with the arguments of its capture. So whatever changes from call to call (where the frame
is, how many boxes there are, their affines) lies in one small buffer of device memory that is uploaded before each
replay: a header, then one record for each crop.
"""

from __future__ import annotations

import numpy as np

__all__ = ["HEADER", "INSTANCE", "call_size", "call_views"]

HEADER = np.dtype(
    [
        ("pixels", "<u8"),  # device address of channel 0 (blue) of the window's first pixel
        ("row_stride", "<i8"),  # bytes; any of the three may be negative, channel_stride is 0 for grey
        ("pixel_stride", "<i8"),
        ("channel_stride", "<i8"),
        ("width", "<i4"),  # of the whole frame, px
        ("height", "<i4"),
        ("left", "<i4"),  # of the window: the part of the frame that is in device memory, px
        ("top", "<i4"),
        ("count", "<i4"),  # crops of this call; kernels launched for more leave the others alone
        ("reserved", "<i4"),
    ]
)

INSTANCE = np.dtype(
    [
        ("sample", "<f8", (2, 3)),  # crop px -> px of the frame, halved `halvings` times and moved to `first`
        ("place", "<f8", (2, 3)),  # heatmap cells -> what the decoder writes: frame px, or cells again
        ("first", "<i4", (2,)),  # (x, y) of the halved frame that `sample` calls (0, 0)
        ("halvings", "<i4"),  # 0 but for sampling="area"
        ("channels", "<i4", (2,)),  # [begin, end): the heatmaps to decode
        ("reserved", "<i4"),
    ]
)


def call_size(crops: int) -> int:
    """Bytes of a call's buffer."""
    return HEADER.itemsize + crops * INSTANCE.itemsize


def call_views(buffer: np.ndarray, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """The header () and the instances (crops,) in a host buffer (>= call_size(crops),) uint8: views, no copies."""
    header = buffer[: HEADER.itemsize].view(HEADER)[0:1].reshape(())
    instances = buffer[HEADER.itemsize : call_size(crops)].view(INSTANCE)
    return header, instances
