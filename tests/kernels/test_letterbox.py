"""The letterbox twin: against its definition in float64, OpenCV's resize, and the placement that takes boxes back."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.geometry import letterbox_placement
from edgepose.kernels import _letterbox
from edgepose.kernels.reference import letterbox

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
RESIZES = ("letterbox", "letterbox_corner", "stretch")
SIZES = ((320, 320), (64, 48), (33, 80), (1, 1))  # (w, h) of inputs
SHAPES = ((90, 160), (37, 52), (200, 61), (1, 1), (1, 70), (300, 2))  # (H, W) of frames


def definition(frame: np.ndarray, size: tuple[int, int], resize: Any, pad: float = 114) -> np.ndarray:
    """(h, w, 3) float64: bilinear between pixel centres, outer edges meeting, borders repeated."""
    scale_x, scale_y, left, top = letterbox_placement((frame.shape[1], frame.shape[0]), size, resize)
    image = np.full((size[1], size[0], 3), float(pad))
    for v in range(size[1]):
        for u in range(size[0]):
            x, y = (u + 0.5 - left) / scale_x - 0.5, (v + 0.5 - top) / scale_y - 0.5
            if not (-0.5 < x < frame.shape[1] - 0.5 and -0.5 < y < frame.shape[0] - 0.5):
                continue
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            corners = [frame[min(max(j, 0), frame.shape[0] - 1), min(max(i, 0), frame.shape[1] - 1)].astype(float)
                       for j in (y0, y0 + 1) for i in (x0, x0 + 1)]  # fmt: skip
            across, down = x - x0, y - y0
            weights = ((1 - across) * (1 - down), across * (1 - down), (1 - across) * down, across * down)
            image[v, u] = sum(weight * corner for weight, corner in zip(weights, corners, strict=True))
    return image


@pytest.mark.parametrize("resize", RESIZES)
def test_linear_is_the_definition(resize: Any) -> None:
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        frame = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for size in SIZES[1:]:
            expected = definition(frame, size, resize)
            got = letterbox(frame, size, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
            # float32 weights and sums of levels up to 255: 4 roundings of 1.5e-5; worst seen 2.9e-5
            np.testing.assert_allclose(got.transpose(1, 2, 0)[..., ::-1], expected, rtol=0, atol=1e-4)
            levels = letterbox(frame, size, resize=resize)
            np.testing.assert_allclose(levels, expected, rtol=0, atol=0.5 + 1e-4)


def test_linear_is_opencv_s_resize_but_for_a_level() -> None:
    """cv2.resize rounds its weights to 1/2048, each of four by up to 255/4096 of a level: seen 1 level, as here."""
    rng = np.random.default_rng(1)
    worst = []
    for shape in ((270, 480), (480, 270), (100, 60), (333, 777)):
        frame = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for size in ((320, 320), (416, 256)):
            difference = letterbox(frame, size, resize="stretch").astype(int) - cv2.resize(frame, size)
            worst.append(int(np.abs(difference).max()))
            assert np.mean(difference != 0) < 0.25  # of noise; seen 0.13
    assert max(worst) == 1


@pytest.mark.parametrize("sampling", ["opencv4", "area"])
@pytest.mark.parametrize("resize", RESIZES)
def test_the_fast_path_is_the_plain_one(resize: Any, sampling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    frames = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    fast = [letterbox(frame, size, resize=resize, sampling=sampling) for frame in frames for size in SIZES]
    monkeypatch.setattr(_letterbox, "_remap_is_exact", lambda: False)
    plain = [letterbox(frame, size, resize=resize, sampling=sampling) for frame in frames for size in SIZES]
    for one, other in zip(fast, plain, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("resize", RESIZES)
def test_opencv4_rounds_positions_to_a_32nd(resize: Any) -> None:
    """On a ramp of one level a pixel, 1/64 px is 1/64 of a level; then it rounds to whole levels, half up."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(40, axis=0)
    exact = definition(ramp, (64, 48), resize)
    levels = letterbox(ramp, (64, 48), resize=resize, sampling="opencv4")
    assert np.abs(levels - exact).max() <= 0.5 + 1 / 32  # two roundings of the position: 1/64 px and 1/2048


def test_area_halves_while_a_pixel_still_spans_two() -> None:
    rng = np.random.default_rng(3)
    for factor, halvings in ((1.9, 0), (3.9, 0), (4, 1), (7.9, 1), (8, 2), (16, 3)):
        frame = rng.integers(0, 256, (round(20 * factor), round(30 * factor), 3), dtype=np.uint8)
        halved = frame
        for _ in range(halvings):
            halved = cv2.resize(halved, (halved.shape[1] // 2, halved.shape[0] // 2), interpolation=cv2.INTER_AREA)
        if halved.shape[0] * 2**halvings == frame.shape[0] and halved.shape[1] * 2**halvings == frame.shape[1]:
            np.testing.assert_array_equal(
                letterbox(frame, (30, 20), resize="stretch", sampling="area"),
                letterbox(halved, (30, 20), resize="stretch", sampling="opencv4"),
            )
        look = _letterbox._look((frame.shape[1], frame.shape[0]), (30, 20), "stretch", "area")
        assert look.halvings == halvings
    frame = rng.integers(0, 256, (160, 30, 3), dtype=np.uint8)  # shrunk in one direction only: not halved
    np.testing.assert_array_equal(
        letterbox(frame, (30, 20), resize="stretch", sampling="area"),
        letterbox(frame, (30, 20), resize="stretch", sampling="opencv4"),
    )


@pytest.mark.parametrize("sampling", ["linear", "opencv4", "area"])
def test_normalised_inputs_are_the_levels(sampling: Any) -> None:
    frame = np.random.default_rng(4).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    out = np.full((3, 100, 80), np.nan, np.float32)
    tensor = letterbox(frame, (80, 100), sampling=sampling, mean=MEAN, std=STD, out=out, pad=7)
    assert tensor is out
    levels = letterbox(frame, (80, 100), sampling=sampling, pad=7).astype(np.float32)
    mean, std = np.float32(MEAN)[:, None, None], np.float32(STD)[:, None, None]
    expected = (levels.transpose(2, 0, 1)[::-1] - mean) / std
    if sampling == "linear":  # unrounded
        np.testing.assert_allclose(tensor, expected, rtol=0, atol=0.5001 / min(STD))
    else:
        np.testing.assert_array_equal(tensor, expected)
    assert (tensor[:, 0] == ((np.float32(7) - mean) / std)[:, 0]).all()


def test_frames_of_any_strides_and_beyond_int16() -> None:
    rng = np.random.default_rng(5)
    big = rng.integers(0, 256, (60, 90, 4), dtype=np.uint8)
    for view in (big[..., :3], big[::-1, ::2, 2::-1], big.transpose(1, 0, 2)[..., 1:]):
        for sampling in ("linear", "opencv4", "area"):
            np.testing.assert_array_equal(
                letterbox(view, (40, 30), sampling=sampling),  # type: ignore[arg-type]
                letterbox(np.ascontiguousarray(view), (40, 30), sampling=sampling),  # type: ignore[arg-type]
            )
    strip = np.repeat(rng.integers(0, 256, (4, 500, 3), dtype=np.uint8), 100, axis=1)  # 50000 px
    for sampling in ("linear", "opencv4"):
        shrunk = letterbox(strip, (500, 4), resize="stretch", sampling=sampling)  # type: ignore[arg-type]
        np.testing.assert_array_equal(shrunk, strip[:, 50::100])


def test_sizes_of_pictures() -> None:
    def picture(frame: tuple[int, int], size: tuple[int, int], resize: Any) -> tuple[float, ...]:
        scale_x, scale_y, left, top = letterbox_placement(frame, size, resize)
        return round(frame[0] * scale_x, 9), round(frame[1] * scale_y, 9), left, top

    assert picture((1920, 1080), (320, 320), "letterbox") == (320, 180, 0, 70)
    assert picture((1920, 1080), (640, 640), "letterbox_corner") == (640, 360, 0, 0)
    assert picture((1280, 719), (320, 320), "letterbox") == (320, 180, 0, 70)  # 179.75
    assert picture((1280, 719), (320, 320), "letterbox_corner") == (320, 179, 0, 0)
    assert picture((64, 7), (32, 32), "letterbox") == (32, 4, 0, 14)  # 3.5: to even
    assert picture((64, 5), (32, 32), "letterbox") == (32, 2, 0, 15)  # 2.5
    assert picture((480, 640), (300, 333), "letterbox") == (250, 333, 25, 0)  # 249.75
    assert picture((100, 99), (33, 33), "letterbox") == (33, 33, 0, 0)
    assert picture((33, 100), (80, 80), "letterbox") == (26, 80, 27, 0)
    assert picture((35, 100), (80, 81), "letterbox") == (28, 81, 26, 0)
    assert picture((5, 100), (80, 101), "letterbox") == (5, 101, 37, 0)  # the odd pixel is at the right
    assert picture((9999, 1), (32, 32), "letterbox_corner") == (32, 1, 0, 0)  # never 0
    assert picture((640, 480), (320, 320), "stretch") == (320, 320, 0, 0)


def test_placements_agree_with_ultralytics_formula() -> None:
    """round(side * r), and padding round(half - 0.1) at the left: but where the float product is beside a tie."""
    rng = np.random.default_rng(6)
    for _ in range(2000):
        frame, size = tuple(rng.integers(1, 3000, 2).tolist()), tuple(rng.integers(16, 1300, 2).tolist())
        ratio = min(Fraction(size[0], frame[0]), Fraction(size[1], frame[1]))
        sides = [max(1, round(side * ratio)) for side in frame]
        scale_x, scale_y, left, top = letterbox_placement(frame, size)
        assert (round(scale_x * frame[0]), round(scale_y * frame[1])) == tuple(sides)
        assert (left, top) == tuple(round((whole - side) / 2 - 0.1) for whole, side in zip(size, sides, strict=True))


def test_a_box_comes_back() -> None:
    """A white rectangle's edges in the input are placement's edges of its edges in the frame.

    Halved or doubled, four taps lose no light, so that only the levels' rounding is left: 4 of 255 for an edge.
    """
    frame = np.zeros((180, 320, 3), np.uint8)
    frame[40:120, 80:200] = 255
    for resize in RESIZES:
        scale_x, scale_y, left, top = letterbox_placement((320, 180), (160, 360), resize)
        image = letterbox(frame, (160, 360), resize=resize, pad=0)[..., 0] / 255.0
        row, column = image[int(80 * scale_y + top)], image[:, int(140 * scale_x + left)]
        for profile, first, last, scale, offset in ((row, 80, 200, scale_x, left), (column, 40, 120, scale_y, top)):
            centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
            assert profile.sum() == pytest.approx((last - first) * scale, abs=0.02)
            assert centre == pytest.approx((first + last) / 2 * scale + offset, abs=0.01)


def test_wrong_arguments() -> None:
    frame = np.zeros((8, 9, 3), np.uint8)
    with pytest.raises(TypeError, match="uint8, got float32"):
        letterbox(frame.astype(np.float32), (4, 5))
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        letterbox(frame[..., 0], (4, 5))
    with pytest.raises(ValueError, match="two whole numbers"):
        letterbox(frame, (0, 5))
    with pytest.raises(ValueError, match="resize must be one of letterbox, letterbox_corner, stretch"):
        letterbox(frame, (4, 5), resize="fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sampling must be"):
        letterbox(frame, (4, 5), sampling="cubic")  # type: ignore[arg-type]
    for pad in (-1, 256, 0.5, float("nan")):
        with pytest.raises(ValueError, match="whole level from 0 to 255"):
            letterbox(frame, (4, 5), pad=pad)
    with pytest.raises(ValueError, match="belong together"):
        letterbox(frame, (4, 5), mean=MEAN)
    with pytest.raises(ValueError, match="give mean and std"):
        letterbox(frame, (4, 5), out=np.zeros((3, 5, 4), np.float32))
    with pytest.raises(ValueError, match="C-contiguous array of shape"):
        letterbox(frame, (4, 5), mean=MEAN, std=STD, out=np.zeros((3, 4, 5), np.float32))
    with pytest.raises(InputError, match="resize must be"):
        letterbox_placement((8, 9), (4, 5), "fit")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="frame_size must be two whole numbers"):
        letterbox_placement((8, 0), (4, 5))
