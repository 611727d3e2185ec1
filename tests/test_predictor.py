"""The whole chain: frame and boxes in, landmarks out, with models whose answer is known."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from painter import INPUT_SIZE, blobs, painter_spec, write_painter

from edgepose import EngineError, InputError, ModelError, Predictor, bundled_models, whole_image_box

# A box of 120 x 160 px, padded by 1.25, is 150 px wide: a cell of the painter's 24 is 6.25 px.
BOX = np.array([[200.0, 100.0, 320.0, 260.0]])
CENTRES = np.array([[230.3, 130.6], [290.8, 150.2], [255.5, 231.9]])
CELL = 6.25
FRAME = blobs((480, 360), CENTRES, sigma=2 * CELL)


@pytest.fixture(scope="module", params=["udp", "msra"])
def codec(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def painter(codec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painter(tmp_path_factory.mktemp("painter") / f"{codec}.onnx", painter_spec(codec))


@pytest.fixture(scope="module")
def udp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painter(tmp_path_factory.mktemp("painter") / "painter.onnx", painter_spec())


@pytest.fixture(scope="module")
def predictor(udp: Path):
    with Predictor(udp, max_batch=4) as opened:
        yield opened


def error(result, centres=CENTRES) -> float:
    return float(np.abs(result.keypoints - centres).max())


# Where landmarks are found


# px. Grey levels are rounded to 1/255, and the blur truncates its Gaussian at 5 cells, which bends the parabola a
# little. A cell is 6.25 px; worst seen: 0.009 (fp16 0.009).
TOLERANCE = 0.03
# Cells. In larger boxes the blob is narrower (half a cell in the whole image), and samples of it say less; worst seen:
# 0.028, 0.005 without the whole image.
LARGE_TOLERANCE = 0.04


def cell(box) -> float:
    """Size of a heatmap cell, frame px: the padded box, widened to the input's 3:4, is 24 cells wide."""
    return 1.25 * max(box[2] - box[0], (box[3] - box[1]) * 0.75) / 24


def test_landmarks_are_found_where_they_are(painter: Path) -> None:
    with Predictor(painter) as predictor:
        result = predictor.predict(FRAME, BOX)
    assert result.keypoints.shape == (1, 3, 2)
    assert result.keypoints.dtype == result.scores.dtype == np.float32
    assert result.frame_size == (480, 360)
    assert error(result) < TOLERANCE
    # A blob's peak between two cells is up to half a cell's diagonal away from a sample: exp(-0.5 / 8) = 0.94.
    assert (result.scores > 0.9).all()
    assert (result.scores <= 1).all()


@pytest.mark.parametrize(
    "box", [[-60, 40, 300, 300], [180, 90, 560, 420], [0, 0, 479, 359], [201.7, 99.2, 330.1, 290.4]]
)
def test_boxes_over_the_border_and_of_any_shape_agree(painter: Path, box: list[float]) -> None:
    with Predictor(painter) as predictor:
        result = predictor.predict(FRAME, [box])
    assert error(result) < LARGE_TOLERANCE * cell(box)


def test_moving_frame_and_box_together_moves_the_landmarks(painter: Path) -> None:
    moved = np.roll(FRAME, (37, -53), axis=(0, 1))
    with Predictor(painter) as predictor:
        before, after = predictor.predict(FRAME, BOX), predictor.predict(moved, BOX + np.array([-53, 37, -53, 37]))
    # float32 keypoints near 300 have a spacing of 3e-5, and so has the error seen; positions differ by rounding.
    np.testing.assert_allclose(after.keypoints - [-53, 37], before.keypoints, atol=1e-3)


def test_refinement_can_be_overridden(painter: Path) -> None:
    errors = {}
    for refinement in ("none", "shift", "dark"):
        with Predictor(painter, refinement=refinement) as predictor:
            assert predictor.spec.refinement == refinement
            errors[refinement] = error(predictor.predict(FRAME, BOX))
    # By construction: half a cell, then a quarter at most (a shift of 0.25 leaves 0.25), then sub-pixel.
    assert errors["none"] <= CELL / 2 + TOLERANCE
    assert errors["shift"] <= CELL / 4 + TOLERANCE
    assert errors["dark"] < TOLERANCE
    assert errors["dark"] < errors["shift"] < errors["none"]


def test_fp16_model(tmp_path: Path, codec: str) -> None:
    path = write_painter(tmp_path / "fp16.onnx", painter_spec(codec), fp16=True)
    with Predictor(path) as predictor:
        result = predictor.predict(FRAME, BOX)
    assert result.scores.dtype == np.float32
    # float16 has 11 bits: finer than the grey levels' 8, so the tolerance is the same.
    assert error(result) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 3])
def test_model_of_fixed_batch_gives_the_same_as_a_dynamic_one(tmp_path: Path, udp: Path, batch: int) -> None:
    path = write_painter(tmp_path / "static.onnx", painter_spec(), batch=batch)
    boxes = BOX + np.arange(7)[:, None]
    with Predictor(path) as static, Predictor(udp) as dynamic:
        first, second = static.predict(FRAME, boxes), dynamic.predict(FRAME, boxes)
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_flip_test_of_a_symmetric_model_changes_nothing(udp: Path) -> None:
    with Predictor(udp) as plain, Predictor(udp, flip_test=True) as flipped:
        expected, result = plain.predict(FRAME, BOX), flipped.predict(FRAME, BOX)
    # The same samples in another order of sums; seen: 0 px, and 1e-4 px is the spacing of ten float32 numbers there.
    np.testing.assert_allclose(result.keypoints, expected.keypoints, atol=1e-3)


def test_flip_test_swaps_channels(tmp_path: Path) -> None:
    # The painter does not know left from right, so swapping red and green averages two different maps.
    path = write_painter(tmp_path / "swapped.onnx", painter_spec(flip_indices=(1, 0, 2)))
    with Predictor(path) as plain, Predictor(path, flip_test=True) as flipped:
        ratio = (flipped.predict(FRAME, BOX).scores / plain.predict(FRAME, BOX).scores)[0]
    # Half, plus what the other blob (5 sigma away) adds.
    np.testing.assert_allclose(ratio, [0.5, 0.5, 1.0], atol=0.02)


def test_flip_shift_moves_msra_maps_back(tmp_path: Path) -> None:
    path = write_painter(tmp_path / "msra.onnx", painter_spec("msra", flip_shift=True))
    with Predictor(path, flip_test=True) as predictor:
        result = predictor.predict(FRAME, BOX)
    # A mirrored crop of even width is sampled 3 px beside the cells; the shift leaves 1 px, the mean 0.5 crop px,
    # of 150 / 96 frame px each. Without the shift it would be 1.5 crop px to the other side.
    offset = (result.keypoints - CENTRES)[0, :, 0]
    np.testing.assert_allclose(offset, 0.5 * 150 / INPUT_SIZE[0], atol=TOLERANCE)


# Batches


def test_chunks_of_500_boxes_equal_single_boxes(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform([-50, -50], [400, 300], (500, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 200, (500, 2))], axis=1)
    result = predictor.predict(FRAME, boxes)
    assert len(result) == 500
    for i in (0, 3, 4, 255, 499):
        alone = predictor.predict(FRAME, boxes[i : i + 1])
        np.testing.assert_array_equal(alone.keypoints[0], result.keypoints[i])
        np.testing.assert_array_equal(alone.scores[0], result.scores[i])


@pytest.mark.parametrize("none", [[], np.zeros((0, 4)), np.zeros((0, 4), np.float32)])
def test_no_boxes_give_an_empty_result(predictor: Predictor, none) -> None:
    result = predictor.predict(FRAME, none)
    assert len(result) == 0
    assert result.keypoints.shape == (0, 3, 2)
    assert result.scores.shape == (0, 3)
    assert result.boxes.shape == (0, 4)


def test_results_do_not_change_with_later_calls(predictor: Predictor) -> None:
    first = predictor.predict(FRAME, BOX)
    kept = first.keypoints.copy()
    predictor.predict(np.zeros_like(FRAME), BOX)
    np.testing.assert_array_equal(first.keypoints, kept)


def test_timings_add_up(predictor: Predictor) -> None:
    timings = predictor.predict(FRAME, BOX).timings
    stages = (timings.crop, timings.network, timings.decode)
    assert min(stages) > 0
    assert sum(stages) <= timings.total


# Frames


def test_frame_forms_agree(predictor: Predictor) -> None:
    grey = FRAME[..., 1].copy()
    bgr = np.repeat(grey[..., None], 3, axis=2)
    expected = predictor.predict(bgr, BOX).keypoints
    alpha = np.random.default_rng(0).integers(0, 256, grey.shape, np.uint8)
    for frame in (grey, grey[..., None], np.dstack([bgr, alpha])):
        np.testing.assert_array_equal(predictor.predict(frame, BOX).keypoints, expected)


def test_four_channels_are_bgra(predictor: Predictor) -> None:
    alpha = np.zeros(FRAME.shape[:2], np.uint8)
    result = predictor.predict(np.dstack([FRAME, alpha]), BOX)
    np.testing.assert_array_equal(result.keypoints, predictor.predict(FRAME, BOX).keypoints)


def test_views_with_any_strides_work_and_frames_are_not_changed(predictor: Predictor) -> None:
    expected = predictor.predict(FRAME, BOX).keypoints
    wide = np.zeros((360, 960, 5), np.uint8)
    wide[:, ::2, 1:4] = FRAME
    reverse = np.ascontiguousarray(FRAME[::-1, ::-1, ::-1])
    for view in (wide[:, ::2, 1:4], reverse[::-1, ::-1, ::-1], np.asfortranarray(FRAME)):
        before = view.copy()
        view.flags.writeable = False
        np.testing.assert_array_equal(predictor.predict(view, BOX).keypoints, expected)
        np.testing.assert_array_equal(view, before)


# Boxes


def test_missing_boxes_are_an_error_that_shows_both_ways(predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"no boxes and no detector.*whole_image_box"):
        predictor.predict(FRAME)


def test_whole_image_box(predictor: Predictor) -> None:
    box = whole_image_box(FRAME)
    np.testing.assert_array_equal(box, [[0, 0, 479, 359]])
    assert error(predictor.predict(FRAME, box)) < LARGE_TOLERANCE * cell(box[0])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[10, 10, np.nan, 50]], "finite"),
        ([[10, 10, np.inf, 50]], "finite"),
        ([[50, 10, 10, 50]], "x2"),
        ([[10, 50, 50, 10]], "y2"),
        ([[10, 10, 10, 50]], "x2"),
        ([[10, 10, 50, 10]], "y2"),
        ([10, 10, 50, 50], "shape"),
        ([[10, 10, 50]], "shape"),
        ([[[10, 10, 50, 50]]], "shape"),
        ([["a", "b", "c", "d"]], "number"),
    ],
)
def test_unusable_boxes(predictor: Predictor, boxes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predictor.predict(FRAME, boxes)


def test_box_outside_the_frame_has_score_zero(predictor: Predictor) -> None:
    bright = np.full((100, 100, 3), 255, np.uint8)
    far, near = [300, 300, 400, 400], [101, 10, 200, 90]  # the padding of the second one reaches into the frame
    result = predictor.predict(bright, [far, near, [-400, 20, -300, 80], [20, 20, 80, 80]])
    assert (result.scores[[0, 2]] == 0).all()
    assert (result.scores[[1, 3]] > 0.5).all()
    assert np.isfinite(result.keypoints).all()


@pytest.mark.parametrize("box", [[0, 0, 1e6, 1e6], [-1e6, -1e6, 1e6, 1e6], [50, 50, 50.01, 50.01], [0, 0, 1e6, 1]])
def test_extreme_boxes_are_finite(predictor: Predictor, box) -> None:
    result = predictor.predict(FRAME, [box])
    assert np.isfinite(result.keypoints).all()
    assert np.isfinite(result.scores).all()


def test_keypoints_outside_the_frame_are_kept(tmp_path: Path) -> None:
    # Black is found: the first black cell of a crop over the white frame's corner is the crop's own corner.
    path = write_painter(tmp_path / "black.onnx", painter_spec(refinement="none"), invert=True)
    white = np.full((300, 300, 3), 255, np.uint8)
    box = np.float32([[0, 0, 90, 120]])
    with Predictor(path) as predictor:
        result = predictor.predict(white, box)
    # The padded box is 112.5 x 150 px around (45, 60); float32 boxes and keypoints: 1e-5.
    np.testing.assert_allclose(result.keypoints[0], np.tile([45 - 112.5 / 2, 60 - 150 / 2], (3, 1)), atol=1e-3)
    np.testing.assert_array_equal(result.boxes, box)


# Opening and closing


def test_closed_predictor_says_so(udp: Path) -> None:
    predictor = Predictor(udp)
    predictor.close()
    predictor.close()
    with pytest.raises(EngineError, match="closed"):
        predictor.predict(FRAME, BOX)
    with pytest.raises(EngineError, match="closed"), predictor:
        pass
    assert "closed" in repr(predictor)


def test_truncated_model(tmp_path: Path, udp: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(udp.read_bytes()[:-200])
    with pytest.raises(ModelError):
        Predictor(path)


@pytest.mark.parametrize("device", ["cuda", "gpu", "", "CPU"])
def test_devices_without_an_engine_are_errors(udp: Path, device: str) -> None:
    with pytest.raises(EngineError if device == "cuda" else InputError, match="device"):
        Predictor(udp, device=device)


def test_numpy_integers_are_options(udp: Path) -> None:
    with Predictor(udp, max_batch=np.int64(4), threads=np.int32(1)) as predictor:
        assert len(predictor.predict(FRAME, np.repeat(BOX, 5, axis=0))) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 0},
        {"max_batch": 1.5},
        {"max_batch": True},
        {"max_batch": None},
        {"threads": -1},
        {"threads": np.True_},
    ],
)
def test_unusable_options(udp: Path, options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Predictor(udp, **options)


def test_unknown_refinement(udp: Path) -> None:
    with pytest.raises(ModelError, match="refinement must be one of"):
        Predictor(udp, refinement="magic")


def test_spec_can_be_a_value_or_a_file(tmp_path: Path) -> None:
    bare = write_painter(tmp_path / "bare.onnx", painter_spec(), store_spec=False)
    with pytest.raises(ModelError, match=r"(?s)carries no edgepose spec.*keypoint_names"):
        Predictor(bare)
    file = tmp_path / "spec.json"
    file.write_text(painter_spec().to_json())
    for spec in (painter_spec(), file, str(file)):
        with Predictor(bare, spec=spec) as predictor:
            assert error(predictor.predict(FRAME, BOX)) < TOLERANCE


# Threads


def run_in_threads(jobs) -> list:
    failures: list = []

    def guarded(job) -> None:
        try:
            job()
        except Exception as problem:
            failures.append(problem)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


@pytest.mark.parametrize("shared", [True, False])
def test_predictors_in_threads_do_not_disturb_each_other(udp: Path, shared: bool) -> None:
    rng = np.random.default_rng(1)
    shifts = rng.integers(-80, 80, (4, 2))
    frames = [np.roll(FRAME, tuple(shift[::-1]), axis=(0, 1)) for shift in shifts]
    predictors = [Predictor(udp, threads=1)] * 4 if shared else [Predictor(udp, threads=1) for _ in range(4)]

    def job(i: int) -> None:
        for _ in range(15):
            result = predictors[i].predict(frames[i], BOX + np.tile(shifts[i], 2))
            assert error(result, CENTRES + shifts[i]) < TOLERANCE

    failures = run_in_threads([lambda i=i: job(i) for i in range(4)])
    for predictor in predictors:
        predictor.close()
    assert not failures


# The bundled model


def test_bundled_model_predicts() -> None:
    if "garment-landmarks" not in bundled_models():
        pytest.skip("the bundled model garment-landmarks is not in edgepose/models")
    from edgepose.training.synthetic import MovingGarment

    sample = MovingGarment(seed=0, frames=8).frame(0)
    with Predictor("garment-landmarks") as predictor:
        result = predictor.predict(sample.image, sample.box[None])
    visible = np.asarray(sample.visible, bool)
    distance = np.linalg.norm(result.keypoints[0] - sample.keypoints, axis=1)[visible]
    side = max(sample.box[2] - sample.box[0], sample.box[3] - sample.box[1])
    # A rendered garment like those of the training: a tenth of the box is a gross error (left for right).
    assert distance.mean() < 0.1 * side


def test_categories_that_do_not_fit(tmp_path: Path, udp: Path) -> None:
    frame, boxes = np.zeros((50, 50, 3), np.uint8), [[0, 0, 20, 20], [5, 5, 30, 30]]
    path = write_painter(tmp_path / "m.onnx", painter_spec(categories={"warm": (0, 2), "cool": (2, 3)}))
    with Predictor(path) as predictor:
        for categories, message in (
            (["warm"], "2 names, one for each box, got 1 categories"),
            ("warm", "got the text 'warm'"),
            (["warm", "hot"], "no category 'hot'; it has warm, cool"),
        ):
            with pytest.raises(InputError, match=message):
                predictor.predict(frame, boxes, categories=categories)
        assert len(predictor.predict(frame, [], categories=[])) == 0
    with Predictor(udp) as predictor:
        with pytest.raises(InputError, match="2 names"):
            predictor.predict(frame, boxes, categories=["shirt"])
        assert predictor.predict(frame, boxes, categories=["shirt", "hat"]).categories == ("shirt", "hat")  # labels
