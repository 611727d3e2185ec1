"""Where a resized frame lies in a detector's input (``placement.cuh`` computes the same), and a box in its crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESIZES", "Picture", "Placement", "Resize", "centre_and_scale", "check_resize", "locate", "picture_of"]

Resize = Literal["letterbox", "letterbox_corner", "stretch"]
RESIZES: tuple[Resize, ...] = ("letterbox", "letterbox_corner", "stretch")  # by their numbers in placement.cuh

# (scale_x, scale_y, left, top) float64: input px = frame px * scale + offset, both measured from the picture's outer
# edge, where the first pixel covers [0, 1]. So in pixel centres it is (x + 0.5) * scale + offset - 0.5.
Placement = tuple[float, float, float, float]


class Picture(NamedTuple):
    """The part of the input that shows the frame, whole px of the input; the rest is padding."""

    width: int
    height: int
    left: int
    top: int


def check_resize(resize: str) -> None:
    """Raises ValueError for a way to resize that there is not."""
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}")


def picture_of(frame_size: Sequence[int], input_size: Sequence[int], resize: Resize) -> Picture:
    """Where the frame (w, h) lies in the input (w, h).

    ``letterbox``: as large as fits at the frame's aspect, the other side rounded to the nearest pixel (half to even),
    in the middle; an odd pixel of padding lies to the right or below. So do YOLOv5 and its successors.
    ``letterbox_corner``: the same at the top left, the other side rounded down, as YOLOX does. (MMDetection rounds to
    the nearest: its picture may have one row or column more.)
    ``stretch``: all of the input.

    Both sides have at least 1 px. Raises ValueError for a resize that there is not, or sizes below 1.
    """
    check_resize(resize)
    (frame_width, frame_height), (input_width, input_height) = frame_size, input_size
    if min(frame_width, frame_height, input_width, input_height) < 1:
        raise ValueError(f"frame_size and input_size must be at least (1, 1), got {frame_size} and {input_size}")
    if resize == "stretch":
        return Picture(input_width, input_height, 0, 0)
    width, height = input_width, input_height
    if input_width * frame_height <= input_height * frame_width:  # the width decides
        height = max(1, _divide(frame_height * input_width, frame_width, resize))
    else:
        width = max(1, _divide(frame_width * input_height, frame_height, resize))
    if resize == "letterbox_corner":
        return Picture(width, height, 0, 0)
    return Picture(width, height, (input_width - width) // 2, (input_height - height) // 2)


def _divide(above: int, below: int, resize: Resize) -> int:
    """Their quotient, rounded down for letterbox_corner, else to the nearest, half to even. In integers: exact."""
    whole, rest = divmod(above, below)
    if resize == "letterbox_corner" or 2 * rest < below:
        return whole
    return whole + (2 * rest > below or whole % 2)


def locate(frame_size: Sequence[int], input_size: Sequence[int], resize: Resize) -> Placement:
    """The :data:`Placement` of a frame (w, h) in the input (w, h): its scales are those of the rounded picture."""
    picture = picture_of(frame_size, input_size, resize)
    scale_x, scale_y = picture.width / frame_size[0], picture.height / frame_size[1]
    return scale_x, scale_y, float(picture.left), float(picture.top)


def centre_and_scale(
    boxes: NDArray[np.float32],  # (N, 4) xyxy, frame px
    width: int,
    height: int,
    padding: Any,  # a number: the box is enlarged so many times
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """MMPose's centre (N, 2), and width and height (N,) of the enlarged box at the aspect ratio of a crop."""
    low, high = boxes[:, :2], boxes[:, 2:]
    box_width, box_height = ((high - low) * np.float32(padding)).T
    aspect = np.float32(width / height)
    from_height = box_height * aspect
    wide = box_width > from_height
    return (
        (low + high) * np.float32(0.5),
        np.where(wide, box_width, from_height),
        np.where(wide, box_width / aspect, box_height),
    )
