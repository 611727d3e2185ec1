"""Nothing is timed that does other work: distances, limits, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blobs import BOXES, blob_frame, blob_model
from numpy.typing import NDArray

from edgepose.benchmarks import equality
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.scenes import Scene
from edgepose.errors import InputError

FRAME, CENTRES = blob_frame()
SCENE = Scene(FRAME, BOXES)
SIMILAR = Scene(FRAME.copy(), BOXES)  # in which nothing jumps
SCORES = np.array([[0.9, 0.8, 0.1], [0.9, 0.4, 0.7]], np.float32)
# frame px of a crop px of BOXES, by hand: padding * the longer side of the box, measured in crops
STEPS = np.array([1.25 * 200 / 128, 1.25 * 159.75 / 128])


class Fake:
    """A way that finds the centres, moved by so many px of the crop to the right."""

    name, version = "fake", "1"

    def __init__(self, moved: float = 0.0, worst: float | None = None) -> None:
        self._moved, self._worst = moved, worst

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        points = CENTRES.copy()
        points[..., 0] += self._moved * STEPS[:, None]
        if self._worst is not None and frame is FRAME:
            points[0, 0, 0] += self._worst * STEPS[0]
        return points, SCORES

    def close(self) -> None: ...


class Cropping(Fake):
    """One whose crops make the model find landmarks 5 px further up."""

    def meant(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        return CENTRES - np.array([0.0, 5.0]) * STEPS[:, None, None]


class Explaining(Cropping):
    """And which says two px too far to the right."""

    def explained(self, keypoints: NDArray[Any], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        return keypoints - np.array([2.0, 5.0]) * STEPS[:, None, None]


class Sharp(Fake):
    """One whose crops make one landmark jump, by as much as its model says."""

    def meant(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(Fake(0.0, worst=90.0)(frame, boxes)[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    return blob_model(tmp_path_factory.mktemp("equality"))


def test_distances_are_px_of_the_crop_and_unsure_landmarks_are_left_out(model: BenchModel) -> None:
    moved, _ = Fake(3.0)(FRAME, BOXES)
    distances = equality.crop_distances(moved, CENTRES, BOXES, model)
    np.testing.assert_allclose(distances, 3.0, atol=1e-4)  # MSRA's affine is of float32 points; 1e-6 seen
    found = equality.compare(np.array([[1.0, 3.0, 99.0], [0.5, 2.0, 4.0]]), SCORES)
    assert found == equality.Agreement(2.0, pytest.approx(2.1), pytest.approx(3.96), 4.0, 20.0, 5, 1)
    with pytest.raises(InputError, match="nothing to compare"):
        equality.compare(np.zeros(2), np.full(2, 0.1))


def test_ways_beyond_their_limit_are_told(model: BenchModel) -> None:
    ways: dict[tuple[str, str], Any] = {
        ("edgepose", "fp32"): Fake(0.04),
        ("pytorch", "fp32"): Fake(),
        ("near", "fp32"): Fake(0.06),
        ("jumps", "fp32"): Fake(0.0, worst=3.0),
        ("edgepose", "int8"): Fake(0.4),
        ("far", "int8"): Fake(0.6),
    }
    rows, unequal, _ = equality.check(model, ways, [SCENE, SCENE])
    # "jumps": one of five sure landmarks by 3 px: a median of 0, a mean of 0.6
    assert list(unequal) == [("near", "fp32"), ("jumps", "fp32"), ("far", "int8")]
    assert "the landmarks of far int8 are others than pytorch's: median 0.6, mean 0.6" in unequal["far", "int8"]
    assert {row.labels["way"] for row in rows} == {"edgepose", "near", "jumps", "far"}  # not the reference
    row = next(row for row in rows if row.labels["way"] == "jumps")
    assert row.labels == {
        "way": "jumps", "model": "blobs", "precision": "fp32", "frame": "500x300",
        "statistic": "landmark change", "against": "pytorch",
    }  # fmt: skip
    assert row.unit == "px"
    assert (row.values["compared"], row.values["left out"]) == (10, 2)
    assert row.values["mean"] == pytest.approx(0.6, abs=1e-4)


def test_random_weights_are_told_and_not_judged(model: BenchModel) -> None:
    ways: dict[tuple[str, str], Any] = {("edgepose", "fp32"): Fake(9.0), ("pytorch", "fp32"): Fake()}
    rows, unequal, _ = equality.check(replace(model, trained=False), ways, [SCENE])
    assert not unequal
    assert rows[0].values["mean"] == pytest.approx(9.0, abs=1e-3)
    assert rows[0].values["left out"] == 0  # peaks say nothing there


def test_a_way_with_its_own_geometry_is_judged_by_what_it_meant(model: BenchModel) -> None:
    ways: dict[tuple[str, str], Any] = {
        ("pytorch", "fp32"): Fake(),
        ("edgepose", "fp32"): Fake(),
        ("moved", "fp32"): Explaining(2.04),
        ("lost", "fp32"): Explaining(2.06),
    }
    rows, unequal, _ = equality.check(model, ways, [SCENE])
    assert list(unequal) == [("lost", "fp32")]
    assert "are others than the model's on the same crops: median 0.06" in unequal["lost", "fp32"]
    found = {row.labels["statistic"]: row.values["mean"] for row in rows if row.labels["way"] == "moved"}
    assert found == {
        "landmark change": pytest.approx((5**2 + 0.04**2) ** 0.5, abs=1e-4),
        "landmark change, as returned": pytest.approx(2.04, abs=1e-4),
        "landmark change, same crops": pytest.approx(0.04, abs=1e-4),
    }


def test_a_jump_that_the_crop_explains_is_not_the_ways(model: BenchModel) -> None:
    ways: dict[tuple[str, str], Any] = {
        ("pytorch", "fp32"): Fake(),
        ("jumps as its model does", "fp32"): Sharp(0.0, worst=90.0),
        ("does not", "fp32"): Sharp(),
        ("crops elsewhere", "fp32"): Cropping(),
        ("all moved", "fp32"): Sharp(0.06, worst=90.0),
    }
    _, unequal, _ = equality.check(model, ways, [SCENE, SIMILAR, SIMILAR])
    assert list(unequal) == [(name, "fp32") for name in ("does not", "crops elsewhere", "all moved")]


def test_the_reference_is_not_ours_where_there_is_another(model: BenchModel) -> None:
    ours, other = Fake(0.01), Fake()
    for names, expected in (
        (("edgepose", "onnxruntime batched", "pytorch"), "pytorch"),
        (("edgepose", "onnxruntime batched", "rtmlib"), "onnxruntime batched"),
        (("edgepose", "rtmlib"), "edgepose"),
    ):
        ways: dict[tuple[str, str], Any] = {(name, "fp32"): ours if name == "edgepose" else other for name in names}
        rows, *_ = equality.check(model, ways, [SCENE])
        assert {row.labels["against"] for row in rows} == {expected}
    with pytest.raises(InputError, match="none of them runs here"):
        equality.check(model, {("rtmlib", "fp32"): other}, [SCENE])  # type: ignore[dict-item]


def test_crops_of_ones_own_explain_single_landmarks_only(model: BenchModel) -> None:
    """Ours cuts with the code that it is held against: what is wrong in it must show against the others."""

    class Wrong(Fake):
        def meant(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.asarray(self(frame, boxes)[0])

    ways: dict[tuple[str, str], Any] = {("pytorch", "fp32"): Fake(), ("edgepose", "fp32"): Wrong(0.0, worst=90.0)}
    _, unequal, _ = equality.check(model, ways, [SCENE])  # one of five
    assert "80 % within 1 px (90 % at least)" in unequal["edgepose", "fp32"]
    assert not equality.check(model, ways, [SCENE, SIMILAR, SIMILAR]).unequal  # one of fifteen


def test_ours_is_judged_where_it_is_the_reference(model: BenchModel) -> None:
    verdict = equality.check(model, {("edgepose", "fp32"): Cropping()}, [SCENE])
    assert "the model's on the same crops" in verdict.unequal["edgepose", "fp32"]
    assert [row.labels["statistic"] for row in verdict.rows] == ["landmark change, same crops"]


def test_frames_of_several_sizes_are_told_apart_and_judged_together(model: BenchModel) -> None:
    larger = Scene(np.zeros((400, 600, 3), np.uint8), BOXES)
    ways: dict[tuple[str, str], Any] = {("pytorch", "fp32"): Fake(), ("jumps", "fp32"): Fake(0.0, worst=6.0)}
    rows, unequal, _ = equality.check(model, ways, [SCENE, larger, larger])
    means = {row.labels["frame"]: row.values["mean"] for row in rows}
    assert means == {"500x300": pytest.approx(1.2, abs=1e-4), "600x400": pytest.approx(0, abs=1e-4)}
    assert not unequal  # 0.4 px over all
    assert equality.check(model, ways, [SCENE, larger]).unequal


def test_a_peer_that_fails_is_told_and_ours_is_not_excused(model: BenchModel) -> None:
    class Failing(Fake):
        def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
            raise RuntimeError("no compiler")

    class Odd(Fake):
        def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
            return np.zeros((2, 3, 3)), SCORES

    ways: dict[tuple[str, str], Any] = {
        ("edgepose", "fp32"): Fake(),
        ("pytorch", "fp32"): Failing(),
        ("onnxruntime batched", "fp32"): Fake(),
        ("odd", "fp32"): Odd(),
    }
    rows, unequal, failed = equality.check(model, ways, [SCENE])
    assert {row.labels["against"] for row in rows} == {"onnxruntime batched"}
    assert not unequal
    assert failed["pytorch", "fp32"] == "blobs: pytorch failed: RuntimeError: no compiler"
    assert "got (2, 3, 3)" in failed["odd", "fp32"]
    ways["edgepose", "fp32"] = Failing()
    with pytest.raises(RuntimeError, match="no compiler"):
        equality.check(model, ways, [SCENE])
