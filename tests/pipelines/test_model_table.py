"""Which model serves a box."""

from __future__ import annotations

import numpy as np
import pytest
from painter import painter_spec

from edgepose import InputError
from edgepose.pipelines.models import NO_MODEL, ModelTable, Share, croppable

TWO = ModelTable([painter_spec(), painter_spec(name="other")], {"a": (0, 2), "b": (4, 6), "c": (3, 6)})


def test_channels_choose_the_model() -> None:
    first, second = TWO.shares(4, np.array([[3, 6], [0, 3], [4, 5], [1, 2]], np.int32))
    assert (first.model, second.model) == (0, 1)
    np.testing.assert_array_equal(first.rows, [1, 3])
    np.testing.assert_array_equal(first.channels, [[0, 3], [1, 2]])
    np.testing.assert_array_equal(second.rows, [0, 2])
    np.testing.assert_array_equal(second.channels, [[0, 3], [1, 2]])


@pytest.mark.parametrize("channels", [[2, 4], [-1, 2], [5, 7], [6, 7]])
def test_channels_of_no_model(channels: list[int]) -> None:
    with pytest.raises(InputError, match="box 1 asks for"):
        TWO.shares(2, np.array([[0, 1], channels], np.int32))


def test_one_model_needs_no_channels() -> None:
    one = ModelTable([painter_spec()], {})
    (share,) = one.shares(2, None)
    assert share.channels is None
    keypoints, scores = np.ones((2, 3, 2), np.float32), np.ones((2, 3), np.float32)
    assert one.join(2, [(share, keypoints, scores)])[0] is keypoints  # not copied
    assert one.shares(0, None) == []
    assert one.join(0, [])[0].shape == (0, 3, 2)


def test_labels_choose_the_model() -> None:
    table = TWO.label_table(["b", "x", "a"])
    np.testing.assert_array_equal(table, [[1, 3, 1], [0, 0, NO_MODEL], [0, 2, 0]])
    first, second = TWO.shares_of_labels(np.array([1, 0, 2, 2], np.int32), table)
    np.testing.assert_array_equal(first.rows, [2, 3])
    np.testing.assert_array_equal(second.rows, [1])
    np.testing.assert_array_equal(second.channels, [[1, 3]])
    outputs = [(share, np.ones((len(share.rows), 3, 2)), np.ones((len(share.rows), 3))) for share in (first, second)]
    _, scores = TWO.join(4, outputs)
    np.testing.assert_array_equal(scores, [[0] * 6, [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]])


def test_every_label_has_all_landmarks_of_a_model_without_categories() -> None:
    np.testing.assert_array_equal(ModelTable([painter_spec()], {}).label_table(["a", "b"]), [[0, 3, 0]] * 2)


def test_croppable() -> None:
    spec = painter_spec("msra", padding=0.5)
    up = np.nextafter(np.float32(900), np.float32(901))
    boxes = np.array([[0, 0, 9, 9], [900, 900, up, up], [900, 900, 950, 950]], np.float32)
    share = Share(0, np.arange(3), np.array([[0, 1], [1, 2], [2, 3]], np.int32))
    kept = croppable(boxes, share, spec)
    np.testing.assert_array_equal(kept.rows, [0, 2])
    np.testing.assert_array_equal(kept.channels, [[0, 1], [2, 3]])
    assert croppable(boxes[[0, 2]], share.part(slice(0, 2)), spec).rows.tolist() == [0, 1]
