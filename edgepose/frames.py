"""Frames: what ``predict`` accepts, and how it becomes (H, W, 3) uint8 BGR.

| shape               | read as | conversion                                             |
|---------------------|---------|--------------------------------------------------------|
| (H, W, 3)           | BGR     | none; not copied                                       |
| (H, W, 4)           | BGRA    | alpha is dropped, not blended: transparent pixels keep the colour stored under them |
| (H, W) or (H, W, 1) | grey    | the value is repeated in the three channels            |

BGR and BGRA are the orders that OpenCV reads and writes. An array from Pillow is RGB or RGBA: turn it round with
``array[..., ::-1]`` or ``array[..., [2, 1, 0]]``. Views with any strides are fine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError

__all__ = ["as_bgr", "check_frame", "whole_image_box"]


def as_bgr(frame: Any) -> NDArray[np.uint8]:
    """Give a frame its BGR form, without copying where it has it already.

    Args:
        frame: uint8 array, (H, W, 3) BGR, (H, W, 4) BGRA, (H, W) or (H, W, 1) grey.

    Returns:
        (H, W, 3) uint8 BGR; a view of ``frame`` where it can be one, so do not write to it.

    Raises:
        InputError: not an array, not uint8, empty, or another number of dimensions or channels.
    """
    image = check_frame(frame)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]


def check_frame(frame: Any) -> NDArray[np.uint8]:
    """A frame as (H, W, C) uint8, C of 1 (grey), 3 (BGR) or 4 (BGRA): always a view of ``frame``.

    Raises InputError as :func:`as_bgr` does.
    """
    if not isinstance(frame, np.ndarray):
        came = "None (cv2.imread returns it for an unreadable file)" if frame is None else type(frame).__name__
        on_gpu = hasattr(frame, "__cuda_array_interface__")
        hint = ". It is in GPU memory, this predictor runs on the CPU: copy it to the host first" if on_gpu else ""
        raise InputError(f"frame must be a NumPy array, (H, W, 3) uint8 BGR, got {came}{hint}")
    if frame.dtype != np.uint8:
        raise InputError(f"frame must be uint8 with values 0..255, got {frame.dtype}. {_to_uint8(frame.dtype)}")
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4)):
        raise InputError(
            "frame must have the shape (H, W, 3) BGR, (H, W, 4) BGRA, or (H, W) or (H, W, 1) grey, "
            f"got {frame.shape}.{_layout_hint(frame.shape)}"
        )
    if frame.size == 0:
        raise InputError(f"frame has no pixels: its shape is {frame.shape}")
    return frame[:, :, None] if frame.ndim == 2 else frame


def whole_image_box(frame: Any) -> NDArray[np.float32]:
    """The one box that covers a whole frame, for photos that show a single garment.

    Args:
        frame: as :func:`as_bgr` takes it.

    Returns:
        (1, 4) float32, xyxy, frame px: from the centre of the first pixel to the centre of the last.
    """
    height, width = as_bgr(frame).shape[:2]
    if height < 2 or width < 2:
        raise InputError(f"a frame of {width} x {height} px is too small for a box: at least 2 x 2 is needed")
    return np.array([[0, 0, width - 1, height - 1]], np.float32)


def _to_uint8(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return (
            "For values 0..1: (frame * 255).round().clip(0, 255).astype(np.uint8); "
            "for values 0..255: frame.round().clip(0, 255).astype(np.uint8)"
        )
    if dtype == np.uint16:
        return "For 16-bit pictures: (frame >> 8).astype(np.uint8), or read them with cv2.IMREAD_COLOR"
    if dtype == np.bool_:
        return "For masks: frame.astype(np.uint8) * 255"
    return "If its values are 0..255 already: frame.astype(np.uint8)"


def _layout_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return " It looks channels-first: use frame.transpose(1, 2, 0)"
    if len(shape) == 4:
        return " predict takes one frame at a time: loop over the first axis"
    return ""
