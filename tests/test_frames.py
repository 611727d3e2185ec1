"""Which arrays are frames, and how they become BGR."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose import InputError, whole_image_box
from edgepose.frames import as_bgr


def test_bgr_is_not_copied() -> None:
    frame = np.zeros((4, 6, 3), np.uint8)
    assert as_bgr(frame).base is frame
    assert np.shares_memory(as_bgr(frame[::2, ::-1]), frame)


def test_grey_is_repeated() -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for frame in (grey, grey[..., None]):
        np.testing.assert_array_equal(as_bgr(frame), np.stack([grey] * 3, axis=2))


def test_alpha_is_dropped_and_the_order_kept() -> None:
    frame = np.arange(4 * 6 * 4, dtype=np.uint8).reshape(4, 6, 4)
    np.testing.assert_array_equal(as_bgr(frame), frame[..., :3])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "cv2.imread returns it"),
        ([[1, 2], [3, 4]], "must be a NumPy array.*list"),
        (np.zeros((4, 6, 3), np.float32), r"uint8.*float32.*\* 255"),
        (np.zeros((4, 6, 3), np.uint16), ">> 8"),
        (np.zeros((4, 6), bool), r"\* 255"),
        (np.zeros((4, 6, 3), np.int64), "astype"),
        (np.zeros((3, 4, 6), np.uint8), "transpose"),
        (np.zeros((2, 4, 6, 3), np.uint8), "one frame at a time"),
        (np.zeros((4, 6, 2), np.uint8), r"\(4, 6, 2\)"),
        (np.zeros(6, np.uint8), r"\(6,\)"),
        (np.zeros((0, 6, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.uint8), "no pixels"),
    ],
)
def test_other_arrays_are_errors_that_help(frame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_bgr(frame)


def test_whole_image_box_runs_from_centre_to_centre() -> None:
    box = whole_image_box(np.zeros((4, 6), np.uint8))
    assert box.dtype == np.float32
    np.testing.assert_array_equal(box, [[0, 0, 5, 3]])
    with pytest.raises(InputError, match="too small"):
        whole_image_box(np.zeros((1, 6), np.uint8))
