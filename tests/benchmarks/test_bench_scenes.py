import numpy as np
import pytest

from edgepose import Predictor
from edgepose.benchmarks.scenes import FRAMES, frame_size, scene
from edgepose.errors import InputError


@pytest.mark.parametrize("size", [(1280, 720), (3840, 2160), (640, 480), (160, 160)])
def test_boxes_lie_in_the_frame_and_differ(size):
    frame, boxes = scene(*size, 20)
    assert frame.shape == (size[1], size[0], 3)
    assert frame.dtype == np.uint8
    assert boxes.shape == (20, 4)
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    assert (boxes[:, 2:] - boxes[:, :2] > 4).all()
    assert len(np.unique(boxes, axis=0)) == 20


def test_fewer_boxes_are_the_first_of_more():
    np.testing.assert_array_equal(scene(640, 480, 3).boxes, scene(640, 480, 9).boxes[:3])


def test_scenes_repeat_and_seeds_differ():
    first, second, other = scene(640, 480, 8), scene(640, 480, 8), scene(640, 480, 8, seed=1)
    np.testing.assert_array_equal(first.frame, second.frame)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert (first.frame != other.frame).any()


def test_no_box_at_all():
    assert scene(640, 480, 0).boxes.shape == (0, 4)


def test_there_are_garments_to_find():
    frame, boxes = scene(1280, 720, 8)
    with Predictor("garment-landmarks") as predictor:
        scores = predictor.predict(frame, boxes).scores
    assert (scores.max(axis=1) > 0.5).all()  # seen: 0.86 at least


def test_frame_sizes():
    assert frame_size("4K") == FRAMES["4K"] == (3840, 2160)
    assert frame_size("800x600") == (800, 600)


@pytest.mark.parametrize("wrong", ["8K", "800", "10x10", "x", "800x600x3"])
def test_other_frames_are_refused(wrong):
    with pytest.raises(InputError, match="720p, 1080p"):
        frame_size(wrong)


@pytest.mark.parametrize("wrong", [(640, 480, -1), (159, 480, 1)])
def test_impossible_scenes_are_refused(wrong):
    with pytest.raises(InputError, match="at least 160 px"):
        scene(*wrong)
