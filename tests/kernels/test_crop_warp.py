"""crop_warp against crops recorded with OpenCV 4.11, and against two plain samplers written here."""

from __future__ import annotations

import json
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose.geometry import crop_affines
from edgepose.kernels import _crop, _sampling, reference

DATA = Path(__file__).parents[1] / "data" / "reference"
VECTORS = np.load(DATA / "affine.npz")
BOXES = json.loads((DATA / "affine.json").read_text())["boxes"]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def synthetic(name):
    """The two frames that affine.json describes."""
    if name == "synB":
        return np.random.default_rng(11).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    y, x = np.mgrid[0:480, 0:640]
    return np.stack([(3 * x + 5 * y) % 256, (x * x // 37 + 2 * y) % 256, ((x ^ y) * 7) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("box", BOXES, ids=lambda box: box["id"])
def test_opencv4_sampling_is_bit_identical_to_the_recorded_crops(box, codec):
    key = f"{box['id']}_{'std' if codec == 'msra' else 'udp'}"
    frame = synthetic(box["image"])
    assert zlib.crc32(frame.tobytes()) == VECTORS[f"{key}_img_crc32"]
    affines = crop_affines([box["bbox_xyxy"]], (192, 256), codec, rotation=box["rotation"])
    crops = reference.crop_warp(frame, affines, (192, 256), sampling="opencv4")
    if f"{key}_crop" in VECTORS:
        np.testing.assert_array_equal(crops[0], VECTORS[f"{key}_crop"])
    assert zlib.crc32(crops.tobytes()) == VECTORS[f"{key}_crop_crc32"]
    tensor = reference.crop_warp(frame, affines, (192, 256), sampling="opencv4", mean=MEAN, std=STD)
    assert zlib.crc32(tensor.tobytes()) == VECTORS[f"{key}_norm_crc32"]


def random_case(rng, number):
    """A frame, an affine and a crop size: tiny and large frames, any scale, rotation, shear, boxes far outside."""
    limit = (6, 400, 1200, 80)[number % 4]
    height, width = rng.integers(1, limit, 2)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    size = tuple(int(side) for side in rng.integers(1, 200, 2)) if number % 3 else (192, 256)
    angle = 0.0 if number % 5 < 2 else rng.uniform(-np.pi, np.pi)
    scale = np.exp(rng.uniform(-3, 4)) * np.array([1.0, rng.choice([1.0, rng.uniform(0.5, 2)])])
    linear = scale[:, None] * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if number % 7 == 0:
        linear += rng.normal(0, 0.3, (2, 2))
    centre = rng.uniform(-0.5, 1.5, 2) * (width, height)
    return frame, np.column_stack([linear, np.array(size) / 2 - linear @ centre]), size


def plain_opencv4(frame, affine, size):
    """OpenCV 4's fixed-point warpAffine one pixel at a time, in Python integers."""
    (a, b, tx), (c, d, ty) = affine.tolist()
    unit = 1.0 / (a * d - b * c)
    a, b, c, d = d * unit, b * -unit, c * -unit, a * unit
    tx, ty = -a * tx - b * ty, -c * tx - d * ty
    crop = np.zeros((size[1], size[0], 3), np.uint8)
    for v in range(size[1]):
        for u in range(size[0]):
            x = (round((b * v + tx) * 1024) + 16 + round(a * u * 1024)) >> 5  # round() is half to even, as OpenCV's
            y = (round((d * v + ty) * 1024) + 16 + round(c * u * 1024)) >> 5
            total = np.full(3, 1 << 14, np.int64)
            for row, wy in ((y >> 5, 32 - y % 32), ((y >> 5) + 1, y % 32)):
                for column, wx in ((x >> 5, 32 - x % 32), ((x >> 5) + 1, x % 32)):
                    if 0 <= row < frame.shape[0] and 0 <= column < frame.shape[1]:
                        total += 32 * wx * wy * frame[row, column].astype(np.int64)
            crop[v, u] = total >> 15
    return crop


def test_opencv4_sampling_follows_the_definition():
    rng = np.random.default_rng(0)
    for number in range(24):
        frame, affine, _ = random_case(rng, number)
        crop = reference.crop_warp(frame, affine[None], (13, 17), sampling="opencv4")[0]
        np.testing.assert_array_equal(crop, plain_opencv4(frame, affine, (13, 17)), err_msg=str(number))


def test_remap_and_numpy_paths_agree():
    """The fast path trusts cv2.remap to stay in integers: this build must, on anything."""
    rng = np.random.default_rng(1)
    for number in range(60):
        frame, affine, (width, height) = random_case(rng, number)
        inverse = _crop._invert(affine[None])[0]
        np.testing.assert_array_equal(
            next(_sampling._sample_by_remap([frame], inverse[None], width, height)),
            _sampling._sample_opencv4(frame, inverse, width, height),
            err_msg=str(number),
        )
    assert _sampling._remap_is_exact()


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) != 4, reason="needs OpenCV 4: 5.0 interpolates in float32")
def test_opencv4_sampling_is_warp_affine_itself():
    rng = np.random.default_rng(2)
    for number in range(60):
        frame, affine, size = random_case(rng, number)
        crop = reference.crop_warp(frame, affine[None], size, sampling="opencv4")[0]
        np.testing.assert_array_equal(crop, cv2.warpAffine(frame, affine, size, flags=cv2.INTER_LINEAR))


def test_a_build_of_opencv_that_rounds_otherwise_is_not_used(monkeypatch):
    rng = np.random.default_rng(3)
    frame, affine, size = random_case(rng, 2)
    expected = reference.crop_warp(frame, affine[None], size, sampling="opencv4")
    monkeypatch.setattr(_sampling.cv2, "remap", lambda _, cells, *__, **___: np.zeros((*cells.shape[:2], 3), np.uint8))
    _sampling._remap_is_exact.cache_clear()
    try:
        np.testing.assert_array_equal(reference.crop_warp(frame, affine[None], size, sampling="opencv4"), expected)
    finally:
        _sampling._remap_is_exact.cache_clear()


@pytest.mark.parametrize("sampling", ["opencv4", "area"])
@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_many_crops_are_those_that_come_one_by_one(sampling, angle):
    """Several share a call of cv2.remap; those that "area" halves, and what lies between them, must not mix."""
    rng = np.random.default_rng(11)
    frame = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    scale = rng.choice([0.2, 0.9, 0.9, 0.9, 1.7], 2 * _sampling.AT_ONCE + 3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affines = np.concatenate([scale[:, None, None] * turn, rng.uniform(-40, 20, (len(scale), 2, 1))], axis=2)
    assert len(set(_crop.plan_crops(_crop._invert(affines), (24, 32), (400, 300), "area").halvings.tolist())) > 1
    crops = reference.crop_warp(frame, affines, (24, 32), sampling=sampling)
    for crop, affine in zip(crops, affines, strict=True):
        np.testing.assert_array_equal(crop, reference.crop_warp(frame, affine[None], (24, 32), sampling=sampling)[0])
    assert crops.any(axis=(1, 2, 3)).sum() > len(scale) // 2


def test_crops_too_tall_for_one_call():
    frame = np.random.default_rng(12).integers(0, 256, (60, 8, 3), dtype=np.uint8)
    affines = np.array([[[1.0, 0, 0], [0, height / 60, 0]] for height in (9000, 15000, 20000)])
    crops = reference.crop_warp(frame, affines, (8, 20000), sampling="opencv4")
    for crop, affine in zip(crops, affines, strict=True):
        np.testing.assert_array_equal(crop, reference.crop_warp(frame, affine[None], (8, 20000), sampling="opencv4")[0])


def test_frames_beyond_remaps_limit():
    strip = np.random.default_rng(4).integers(0, 256, (3, 40000, 3), dtype=np.uint8)
    affines = crop_affines([[39000, 0, 39004, 3], [39998, 0, 40002, 3]], (16, 12))
    crops = reference.crop_warp(strip, affines, (16, 12), sampling="opencv4")
    for crop, affine in zip(crops, affines, strict=True):
        np.testing.assert_array_equal(crop, plain_opencv4(strip, affine, (16, 12)))
    far = crop_affines([[-5e6, -5e6, -4e6, -4e6], [1e9, 1e9, 2e9, 2e9]], (16, 12))
    assert not reference.crop_warp(strip, far, (16, 12), sampling="opencv4").any()
    assert not reference.crop_warp(strip, far, (16, 12), sampling="linear").any()


def test_linear_sampling_follows_the_definition():
    """Against exact rational arithmetic on the float64 coordinates."""
    rng = np.random.default_rng(5)
    for number in range(8):
        frame, affine, _ = random_case(rng, number)
        levels = reference.crop_warp(frame, affine[None], (7, 9), mean=(0, 0, 0), std=(1, 1, 1))[0]
        rounded = reference.crop_warp(frame, affine[None], (7, 9))[0]
        (a, b, tx), (c, d, ty) = _crop._invert(affine[None])[0].tolist()
        for v in range(9):
            for u in range(7):
                x, y = Fraction(a * u + (b * v + tx)), Fraction(c * u + (d * v + ty))
                total = [Fraction(0)] * 3
                for row in (y.__floor__(), y.__floor__() + 1):
                    for column in (x.__floor__(), x.__floor__() + 1):
                        if 0 <= row < frame.shape[0] and 0 <= column < frame.shape[1]:
                            weight = (1 - abs(x - column)) * (1 - abs(y - row))
                            total = [t + weight * int(p) for t, p in zip(total, frame[row, column], strict=True)]
                exact = np.array([float(t) for t in total])
                # float32 weights and a sum of four terms up to 255: a few units of 2^-17. Worst seen 2.1e-5 levels.
                np.testing.assert_allclose(levels[::-1, v, u], exact, atol=1e-4, rtol=0)
                assert np.abs(rounded[v, u] - exact).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("sampling", ["linear", "opencv4", "area"])
def test_the_identity_and_half_a_pixel(sampling):
    """An integer is a pixel's centre: the identity copies, a shift by half a pixel averages two neighbours."""
    frame = np.random.default_rng(6).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    identity = np.array([[[1.0, 0, 0], [0, 1, 0]]])
    np.testing.assert_array_equal(reference.crop_warp(frame, identity, (12, 9), sampling=sampling)[0], frame)
    shifted = reference.crop_warp(
        frame, identity - [[0, 0, 0.5], [0, 0, 0]], (11, 9), sampling=sampling, mean=(0, 0, 0), std=(1, 1, 1)
    )[0]
    mean = (frame[:, :-1].astype(np.float32) + frame[:, 1:]) / 2
    if sampling != "linear":
        mean = np.floor(mean + 0.5)  # whole levels, half up
    np.testing.assert_array_equal(shifted, mean[..., ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("sampling", ["linear", "opencv4", "area"])
def test_views_out_and_empty(sampling):
    rng = np.random.default_rng(7)
    big = rng.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    affines = crop_affines([[5, 6, 40, 50], [-10, -10, 30, 20]], (24, 32))
    views = [big[..., :3], big[..., 2::-1], big[::-1, ::2, :3], big[10:60, 5:70, :3], big.transpose(1, 0, 2)[..., 1:]]
    views += [np.asfortranarray(big[..., :3]), np.broadcast_to(big[:1, :1, :3], (50, 60, 3))]
    for view in views:
        np.testing.assert_array_equal(
            reference.crop_warp(view, affines, (24, 32), sampling=sampling),
            reference.crop_warp(view.copy(order="C"), affines, (24, 32), sampling=sampling),
        )
    fixed = big[..., :3].copy()
    fixed.setflags(write=False)
    expected = reference.crop_warp(fixed, affines, (24, 32), sampling=sampling, mean=MEAN, std=STD)
    buffer = np.full((5, 3, 32, 24), 7, np.float32)
    result = reference.crop_warp(fixed, affines, (24, 32), sampling=sampling, mean=MEAN, std=STD, out=buffer[1:3])
    assert np.shares_memory(result, buffer)
    np.testing.assert_array_equal(buffer[1:3], expected)
    assert (buffer[[0, 3, 4]] == 7).all()
    none = np.zeros((0, 2, 3))
    assert reference.crop_warp(fixed, none, (24, 32), sampling=sampling).shape == (0, 32, 24, 3)
    assert reference.crop_warp(fixed, none, (24, 32), sampling=sampling).dtype == np.uint8
    empty = reference.crop_warp(fixed, none, (24, 32), sampling=sampling, mean=MEAN, std=STD, out=buffer[:0])
    assert empty.shape == (0, 3, 32, 24)


def halved(frame):
    """Means of 2x2 pixels, half up; an odd last line is doubled."""
    padded = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge").astype(int)
    total = padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def test_area_sampling_follows_the_definition():
    """Halve the whole frame, then sample it as opencv4 does: the crop only ever looks at a part of it."""
    rng = np.random.default_rng(12)
    for trial in range(60):
        h, w = rng.integers(1, 400, 2)
        frame = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        x, y = rng.uniform(-60, (w, h))
        box = [[x, y, x + rng.uniform(20, 400), y + rng.uniform(20, 400)]]
        affine = crop_affines(box, (16, 20), rotation=float(rng.uniform(-90, 90)) if trial % 2 else 0.0)
        span = 1 / np.hypot(*affine[0, 0, :2])  # frame px for a crop px; msra crops are not stretched
        halvings = max(0, int(np.floor(np.log2(span / 2))))  # two pixels are left for each of the crop
        reduced, block = frame, 2**halvings
        for _ in range(halvings):
            reduced = halved(reduced)
        # a pixel of the halved frame is centred on the middle of its block
        grow = np.array([[block, 0, (block - 1) / 2], [0, block, (block - 1) / 2], [0, 0, 1]])
        expected = reference.crop_warp(reduced, affine @ grow, (16, 20), sampling="opencv4")
        crop = reference.crop_warp(frame, affine, (16, 20), sampling="area")
        # The two inverses differ by rounding (1e-13), which moves a 1/32 px fraction by one step at most, and rarely.
        difference = np.abs(crop.astype(int) - expected)
        assert difference.max() <= 8, (trial, difference.max())
        assert (difference > 0).mean() < 0.02, (trial, (difference > 0).mean())  # seen 0


def test_area_sampling_does_not_alias():
    """Stripes of one pixel, shrunk eightfold, are an even grey; two-tap sampling makes stripes of them again."""
    frame = np.zeros((800, 800, 3), np.uint8)
    frame[:, ::2] = 200
    affine = np.array([[[1 / 8.3, 0, 0.13], [0, 1 / 8.3, -0.2]]])
    crop = {s: reference.crop_warp(frame, affine, (90, 90), sampling=s)[0] for s in ("area", "opencv4")}
    assert (crop["area"][2:-2, 2:-2] == 100).all()  # the outermost pixels see the black around the frame
    assert crop["opencv4"].std() > 30


@pytest.mark.parametrize("sampling", ["linear", "opencv4", "area"])
def test_an_empty_list_is_no_crops(sampling):
    frame = np.zeros((8, 9, 3), np.uint8)
    assert reference.crop_warp(frame, [], (4, 5), sampling=sampling).shape == (0, 5, 4, 3)
    assert reference.crop_warp(frame, [], (4, 5), sampling=sampling, mean=MEAN, std=STD).shape == (0, 3, 5, 4)


def test_wrong_arguments():
    frame, affines = np.zeros((8, 9, 3), np.uint8), np.array([[[1.0, 0, 0], [0, 1, 0]]])
    size = (4, 5)
    with pytest.raises(TypeError, match="uint8, got float32"):
        reference.crop_warp(frame.astype(np.float32), affines, size)
    for bad in (frame[..., 0], frame[..., :2], frame[:0]):
        with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
            reference.crop_warp(bad, affines, size)
    with pytest.raises(ValueError, match=r"\(N, 2, 3\)"):
        reference.crop_warp(frame, affines[0], size)
    for bad_affine in (affines * 0, affines * np.nan, np.array([[[1.0, 1, 0], [1, 1, 0]]])):
        with pytest.raises(ValueError, match="affine 1 is not finite or cannot be inverted"):
            reference.crop_warp(frame, np.concatenate([affines, bad_affine]), size)
    for bad_size in ((0, 5), (4.5, 5), (4, 5, 6), 192, None, "ab", (float("nan"), 5), (float("inf"), 5)):
        with pytest.raises(ValueError, match=r"two whole numbers \(w, h\)"):
            reference.crop_warp(frame, affines, bad_size)
    with pytest.raises(ValueError, match="sampling must be"):
        reference.crop_warp(frame, affines, size, sampling="cubic")
    with pytest.raises(ValueError, match="belong together"):
        reference.crop_warp(frame, affines, size, mean=MEAN)
    with pytest.raises(ValueError, match="std must be above 0"):
        reference.crop_warp(frame, affines, size, mean=MEAN, std=(1, 0, 1))
    out = np.zeros((1, 3, 5, 4), np.float32)
    with pytest.raises(ValueError, match="give mean and std"):
        reference.crop_warp(frame, affines, size, out=out)
    with pytest.raises(TypeError, match="float32, got float64"):
        reference.crop_warp(frame, affines, size, mean=MEAN, std=STD, out=out.astype(np.float64))
    for bad_out in (out[0], out.transpose(0, 1, 3, 2), np.zeros((1, 3, 5, 8), np.float32)[..., ::2]):
        with pytest.raises(ValueError, match="C-contiguous"):
            reference.crop_warp(frame, affines, size, mean=MEAN, std=STD, out=bad_out)


@pytest.mark.parametrize("sampling", ["linear", "opencv4", "area"])
@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_crops_of_one_call_equal_those_of_single_calls(sampling, rotation):
    """They share scratch memory and, upright, their coordinates: nothing of one crop may reach another."""
    rng = np.random.default_rng(13)
    frame = rng.integers(0, 256, (150, 210, 3), dtype=np.uint8)
    boxes = [[20, 30, 90, 140], [-60, -80, 40, 50], [900, 900, 950, 960], [-500, -400, 700, 800], [60, 5, 64, 9]]
    affines = crop_affines(boxes, (24, 32), rotation=rotation)
    together = reference.crop_warp(frame, affines, (24, 32), sampling=sampling)
    normalised = reference.crop_warp(frame, affines, (24, 32), sampling=sampling, mean=MEAN, std=STD)
    for index, affine in enumerate(affines):
        alone = reference.crop_warp(frame, affine[None], (24, 32), sampling=sampling)
        np.testing.assert_array_equal(together[index], alone[0])
        alone = reference.crop_warp(frame, affine[None], (24, 32), sampling=sampling, mean=MEAN, std=STD)
        np.testing.assert_array_equal(normalised[index], alone[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (24, 32)])
def test_normalisation_is_subtraction_then_division_in_float32(size):
    """A table holds the results of whole levels: they are those of the arithmetic, for every level, to the bit."""
    frame = np.arange(256 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)  # all levels in each channel
    affines = crop_affines([[0, 0, 15, 15], [3, 2, 9, 8]], size)
    levels = reference.crop_warp(frame, affines, size, sampling="opencv4")
    tensor = reference.crop_warp(frame, affines, size, sampling="opencv4", mean=MEAN, std=STD)
    expected = (levels[..., ::-1].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_array_equal(tensor, expected.transpose(0, 3, 1, 2))


def test_an_opencv_that_does_not_write_where_it_is_told(monkeypatch):
    """cv2 may give back other memory than it was handed; the crops are the same."""
    frame, affine, size = random_case(np.random.default_rng(14), 2)
    expected = reference.crop_warp(frame, affine[None], size, sampling="opencv4", mean=MEAN, std=STD)
    lut, split, remap = cv2.LUT, cv2.split, cv2.remap

    def remap_elsewhere(*args, dst, **more):
        return remap(*args, **more)

    monkeypatch.setattr(cv2, "LUT", lambda levels, table, dst: lut(levels, table))
    monkeypatch.setattr(cv2, "split", lambda levels, mv: split(levels))
    monkeypatch.setattr(cv2, "remap", remap_elsewhere)
    out = np.zeros_like(expected)
    found = reference.crop_warp(frame, affine[None], size, sampling="opencv4", mean=MEAN, std=STD, out=out)
    assert found is out
    np.testing.assert_array_equal(out, expected)
