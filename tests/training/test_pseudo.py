"""Pseudo-labels: what a model says the same way from every box is kept, everything else is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.result import PoseResult
from edgepose.spec import ModelSpec
from edgepose.training.coco import load_coco, write_coco
from edgepose.training.garments import CATEGORIES, garment_spec
from edgepose.training.pseudo import pseudo_label

TRUTH = np.array([[80, 40], [120, 40], [40, 90], [160, 90], [60, 120], [140, 120], [50, 250], [150, 250]], np.float32)


class Oracle:
    """Stands in for a Predictor: knows the landmarks, and can be made unsure."""

    spec: ModelSpec = garment_spec()

    def __init__(self, present: list[int], wobble: float = 0.0) -> None:
        self.scores = np.full(8, 0.05, np.float32)
        self.scores[present] = 0.9
        self.wobble = wobble

    def predict(self, frame: np.ndarray, boxes: np.ndarray) -> PoseResult:
        points = np.repeat(TRUTH[None], len(boxes), 0)
        points += self.wobble * (boxes[:, None, :2] - boxes[:1, None, :2])  # moves with the box
        size = (frame.shape[1], frame.shape[0])
        return PoseResult(points, np.repeat(self.scores[None], len(boxes), 0), boxes, self.spec, size)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((300, 200, 3), np.uint8))
    return folder


@pytest.mark.parametrize(
    ("category", "present"), [("upper", [0, 1, 2, 3, 6, 7]), ("lower", [4, 5, 6, 7]), ("full", list(range(8)))]
)
def test_a_sure_label_is_kept_with_its_category_and_reads_back(
    photos: Path, tmp_path: Path, category: str, present: list[int]
) -> None:
    ((file, answer),) = pseudo_label(Oracle(present), photos)
    assert file.name == "a.jpg"
    assert answer is not None
    annotation, spread = answer
    assert spread == 0
    assert annotation.category == category
    np.testing.assert_array_equal(np.flatnonzero(annotation.visible), present)
    low, high = TRUTH[present].min(0), TRUTH[present].max(0)
    assert (annotation.box[:2] < low).all()
    assert (annotation.box[2:] > high).all()

    write_coco(
        tmp_path / "labels.json",
        [annotation],
        categories=CATEGORIES,
        keypoint_names=Oracle.spec.keypoint_names,
        visibility=1,
        extras=[{"spread": spread}],
    )
    (again,) = load_coco(tmp_path / "labels.json", 8)
    assert again.image.samefile(annotation.image)
    assert (again.category, again.size) == (category, (200, 300))
    np.testing.assert_array_equal(again.visible, annotation.visible)
    np.testing.assert_array_equal(again.keypoints[present], TRUTH[present])
    np.testing.assert_allclose(again.box, annotation.box, atol=0.02)  # two decimals in the file, twice rounded


def test_a_label_that_moves_with_the_box_is_left_out(photos: Path) -> None:
    ((_, answer),) = pseudo_label(Oracle(list(range(8)), wobble=0.5), photos)
    assert answer is None


def test_a_set_of_landmarks_that_no_garment_has_is_left_out(photos: Path) -> None:
    ((_, answer),) = pseudo_label(Oracle([0, 1, 4, 5]), photos)
    assert answer is None


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        list(pseudo_label(Oracle([0]), tmp_path))
