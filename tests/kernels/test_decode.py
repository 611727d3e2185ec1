"""decode_heatmaps and the flip test against MMPose 1.3.2's recorded results, and against all a network can emit."""

from __future__ import annotations

import json
from pathlib import Path

import mmpose_oracle as oracle
import numpy as np
import pytest

from edgepose.kernels import reference

DATA = Path(__file__).parents[1] / "data" / "reference"
VECTORS = np.load(DATA / "codecs.npz")
CASES = json.loads((DATA / "codecs.json").read_text())["decode_cases"]
REFERENCE_NAME = {"shift": "refine", "dark": "refine_dark", "dark_udp": "refine_dark_udp"}
REFINEMENTS = ["none", "shift", "dark", "dark_udp"]
CELL = 4.0  # crop px


def gaussians(rng, count, height, width, *, noise=0.0, sigma=2.0):
    y, x = np.mgrid[:height, :width]
    centre_x, centre_y = rng.uniform(-1, width, (count, 1, 1)), rng.uniform(-1, height, (count, 1, 1))
    maps = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * sigma**2))
    return (maps + rng.normal(0, noise, maps.shape)).astype(np.float32)


def _conditioned(case, refinement):
    if refinement == "shift":
        return np.ones(len(VECTORS[f"{case}_vals"]), bool)
    return VECTORS[f"{case}_{'udp' if refinement == 'dark_udp' else 'dark'}_sensitivity"] < 1e-2


@pytest.mark.parametrize("refinement", REFERENCE_NAME)
@pytest.mark.parametrize("case", CASES)
def test_matches_the_recorded_points(case, refinement):
    maps = VECTORS[f"{case}_heatmaps"]
    locations, scores = reference.decode_heatmaps(maps[None], refinement=refinement)
    expected, values = VECTORS[f"{case}_{REFERENCE_NAME[refinement]}"][0], VECTORS[f"{case}_vals"]
    peak = values > 0
    compared = peak & _conditioned(case, refinement)
    error = np.abs(locations[0] - expected)[compared].max(initial=0) * CELL
    # shift is exact. dark and dark_udp differ by float32 rounding of blur and logarithm, which a Newton step
    # magnifies; worst seen 1.6e-5 px (dark, dec0) and 2.7e-5 px (dark_udp, the noise map of dec11).
    assert error <= (0 if refinement == "shift" else 2e-4)
    np.testing.assert_array_equal(scores[0][peak], values[peak])
    # Without a peak: MMPose's (-1, -1) for shift and dark; its dark_udp is NaN or leaks in from the next channel.
    np.testing.assert_array_equal(locations[0][~peak], -1)
    np.testing.assert_array_equal(scores[0][~peak], 0)


@pytest.mark.parametrize("case", CASES)
def test_none_is_the_argmax(case):
    locations, _ = reference.decode_heatmaps(VECTORS[f"{case}_heatmaps"][None], refinement="none")
    np.testing.assert_array_equal(locations[0], VECTORS[f"{case}_locs"])


@pytest.mark.parametrize("refinement", REFERENCE_NAME)
def test_the_oracle_matches_the_recorded_points(refinement):
    for case in CASES:
        compared = (VECTORS[f"{case}_vals"] > 0) & _conditioned(case, refinement)
        maps = VECTORS[f"{case}_heatmaps"][compared]
        expected = VECTORS[f"{case}_{REFERENCE_NAME[refinement]}"][0][compared]
        # The recorded points are float32, half a unit in the last place of 48: worst seen 1.9e-6 cells.
        np.testing.assert_allclose(oracle.decode(maps, refinement), expected, atol=1e-5, rtol=0, err_msg=case)


@pytest.mark.parametrize("size", [(64, 48), (30, 20), (9, 7)], ids=str)
@pytest.mark.parametrize("refinement", ["shift", "dark", "dark_udp"])
@pytest.mark.parametrize("kind", ["clean", "noisy", "faint", "tiny", "bright", "lifted", "sunk", "noise"])
def test_matches_the_oracle_on_random_maps(kind, refinement, size):
    rng = np.random.default_rng(5)
    maps = gaussians(rng, 40, *size, noise=0.0 if kind in ("clean", "tiny") else 0.02)
    if kind == "noise":
        maps = rng.normal(size=maps.shape).astype(np.float32)
    scale = {"faint": 4e-3, "tiny": 5e-4, "bright": 120.0}.get(kind, 1.0)  # around and beyond dark_udp's clip
    maps = (maps * np.float32(scale) + np.float32({"lifted": 0.3, "sunk": -0.3}.get(kind, 0.0))).astype(np.float32)
    maps = maps[maps.max(axis=(1, 2)) > 0]
    locations, _ = reference.decode_heatmaps(maps[None], refinement=refinement)
    error = np.abs(locations[0] - oracle.decode(maps, refinement)).max(axis=1) * CELL
    conditioned = oracle.sensitivity(maps, refinement, rng) < 1e-3
    assert conditioned.sum() >= 20
    # Same reason as above. Worst seen 7.4e-4 px on noise, where steps are long, and 3.4e-5 px on all the others.
    assert error[conditioned].max() <= (1e-3 if kind == "noise" else 1e-4)


@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0",
    reason="NumPy 1 computes the oracle's float32 scalars in float64: such points move by 3e-5 of their distance",
)
@pytest.mark.parametrize("refinement", ["dark", "dark_udp"])
def test_ill_conditioned_steps_go_mmposes_way(refinement):
    """On flat noise a Newton step can jump far out of the map; there every rounding is the same as MMPose's."""
    maps = np.random.default_rng(1).random((400, 64, 48), dtype=np.float32)
    locations, _ = reference.decode_heatmaps(maps[None], refinement=refinement)
    expected = oracle.decode(maps, refinement)
    far = np.abs(expected - oracle.maxima(maps)[0]).max(axis=1) > 100
    assert far.sum() >= 3
    # Only the last float32 rounding of the point itself: relative, since such points lie up to 1e4 cells away.
    # Worst seen 2e-7.
    np.testing.assert_allclose(locations[0][far], expected[far], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("kernel", [1, 3, 7, 17])
@pytest.mark.parametrize("refinement", ["dark", "dark_udp"])
def test_other_blur_kernels(refinement, kernel):
    maps = gaussians(np.random.default_rng(2), 30, 40, 30)
    locations, _ = reference.decode_heatmaps(maps[None], refinement=refinement, blur_kernel=kernel)
    # Clean peaks: float32 rounding only; worst seen 1.6e-5 px.
    np.testing.assert_allclose(locations[0], oracle.decode(maps, refinement, kernel), atol=2e-4 / CELL, rtol=0)


def adversaries():
    """name -> (h, w) float32, each with an expected peak (x, y), or None where it has none."""
    flat, nan, inf = np.zeros((16, 12), np.float32), np.float32(np.nan), np.float32(np.inf)

    def put(base, *cells):
        made = base.copy()
        for x, y, value in cells:
            made[y, x] = value
        return made

    return {
        "zero": (flat, None),
        "minus zero": (flat * -1, None),
        "negative": (flat - 0.2, None),
        "all NaN": (flat + nan, None),
        "all minus infinity": (flat - inf, None),
        "NaN and negative": (put(flat - 1, (3, 3, nan)), None),
        "negative NaN": (put(flat - 1, (3, 3, -nan)), None),
        "constant": (flat + 0.5, (0, 0)),
        "delta": (put(flat, (5, 6, 1)), (5, 6)),
        "corner": (put(flat, (0, 0, 1)), (0, 0)),
        "last corner": (put(flat, (11, 15, 1)), (11, 15)),
        "tie": (put(flat, (7, 3, 1), (2, 9, 1)), (7, 3)),
        "tie in a row": (put(flat, (7, 3, 1), (8, 3, 1)), (7, 3)),
        "one NaN": (put(flat, (1, 1, nan), (5, 6, 1)), (5, 6)),
        "NaN beside the peak": (put(flat, (5, 6, 1), (6, 6, nan), (5, 7, nan)), (5, 6)),
        "NaN around the peak": (put(flat + nan, (5, 6, 1)), (5, 6)),
        "infinity": (put(flat, (5, 6, inf)), (5, 6)),
        "two infinities": (put(flat, (5, 6, inf), (6, 6, inf)), (5, 6)),
        "minus infinity beside the peak": (put(flat, (5, 6, 1), (4, 6, -inf)), (5, 6)),
        "peak in a pit": (put(flat - 1, (5, 6, 1)), (5, 6)),
        "huge": (put(flat + 1e38, (5, 6, 3e38)), (5, 6)),
        "huge pit": (put(flat - 3e38, (5, 6, 3e38)), (5, 6)),
        "subnormal": (put(flat, (5, 6, 1e-44)), (5, 6)),
        "just above 0": (put(flat, (5, 6, 2e-6)), (5, 6)),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("refinement", REFINEMENTS)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_adversaries_are_finite_and_leave_their_neighbours_alone(refinement, dtype):
    named = adversaries()
    maps = np.stack([heatmap for heatmap, _ in named.values()]).astype(dtype)
    locations, scores = reference.decode_heatmaps(maps[None], refinement=refinement)
    plain, _ = reference.decode_heatmaps(maps[None], refinement="none")
    assert np.isfinite(locations).all()
    assert not np.isnan(scores).any()
    for number, (name, (_, peak)) in enumerate(named.items()):
        alone, score = reference.decode_heatmaps(maps[number][None, None], refinement=refinement)
        np.testing.assert_array_equal(alone[0, 0], locations[0, number], err_msg=name)
        if dtype == np.float16 and name.startswith("huge"):
            continue  # infinite throughout once it is float16
        if peak is None or not maps[number].astype(np.float32)[peak[1], peak[0]] > 0:  # float16 loses the tiniest
            assert score[0, 0] == 0, name
            np.testing.assert_array_equal(alone[0, 0], -1, err_msg=name)
        else:
            np.testing.assert_array_equal(plain[0, number], peak, err_msg=name)
            assert score[0, 0] == np.nanmax(maps[number].astype(np.float32)), name
            if np.isinf(score[0, 0]) and refinement != "shift":
                np.testing.assert_array_equal(alone[0, 0], peak, err_msg=name)


def test_float16_is_the_same_as_its_float32_copy():
    rng = np.random.default_rng(3)
    maps = gaussians(rng, 50, 64, 48, noise=0.05).astype(np.float16)[None]
    for refinement in REFINEMENTS:
        half = reference.decode_heatmaps(maps, refinement=refinement)
        single = reference.decode_heatmaps(maps.astype(np.float32), refinement=refinement)
        for one, other in zip(half, single, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == np.float32


def test_views_and_empty_batches():
    rng = np.random.default_rng(4)
    maps = rng.random((2, 10, 20, 30), dtype=np.float32)
    view = maps[:, ::2, ::-1, ::3]
    np.testing.assert_array_equal(
        reference.decode_heatmaps(view, refinement="dark_udp")[0],
        reference.decode_heatmaps(view.copy(), refinement="dark_udp")[0],
    )
    for shape in ((0, 8, 64, 48), (3, 0, 64, 48)):
        for refinement in REFINEMENTS:
            locations, scores = reference.decode_heatmaps(np.zeros(shape, np.float32), refinement=refinement)
            assert locations.shape == (*shape[:2], 2)
            assert scores.shape == shape[:2]
    for shape in ((1, 1), (1, 5), (2, 2), (4, 4)):  # smaller than any window
        for refinement in REFINEMENTS:
            locations, _ = reference.decode_heatmaps(
                rng.random((1, 3, *shape), dtype=np.float32), refinement=refinement
            )
            assert np.isfinite(locations).all()


def test_the_default_is_the_peaks_cell_and_integers_and_lists_are_taken():
    maps = np.random.default_rng(7).integers(0, 99, (2, 3, 8, 6))
    expected = reference.decode_heatmaps(maps.astype(np.float32), refinement="none")
    for same in (maps, maps.astype(np.uint8), maps.tolist()):
        for array, wanted in zip(reference.decode_heatmaps(same), expected, strict=True):
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, wanted)
    locations, scores = reference.decode_heatmaps([], refinement="dark")
    assert (locations.shape, scores.shape) == ((0, 0, 2), (0, 0))


def test_wrong_arguments():
    maps = np.zeros((1, 2, 8, 6), np.float32)
    for bad in (maps.astype(np.complex64), maps > 0, np.full((1, 1, 2, 2), "a")):
        with pytest.raises(TypeError, match="real numbers"):
            reference.decode_heatmaps(bad)
    with pytest.raises(ValueError, match=r"\(N, K, h, w\)"):
        reference.decode_heatmaps(maps[0], refinement="none")
    with pytest.raises(ValueError, match="h and w at least 1"):
        reference.decode_heatmaps(maps[..., :0], refinement="none")
    with pytest.raises(ValueError, match="refinement must be"):
        reference.decode_heatmaps(maps, refinement="taylor")
    with pytest.raises(ValueError, match="odd whole number"):
        reference.decode_heatmaps(maps, refinement="dark", blur_kernel=10)


def test_flip_test():
    rng = np.random.default_rng(6)
    maps, mirrored = rng.random((2, 3, 4, 5), dtype=np.float32), rng.random((2, 3, 4, 5), dtype=np.float32)
    kept = mirrored.copy()
    swapped = mirrored[:, [1, 0, 2]][..., ::-1]
    np.testing.assert_array_equal(reference.flip_heatmaps(mirrored, [1, 0, 2], shift=False), swapped)
    shifted = reference.flip_heatmaps(mirrored, [1, 0, 2], shift=True)
    np.testing.assert_array_equal(shifted[..., 1:], swapped[..., :-1])
    np.testing.assert_array_equal(shifted[..., 0], swapped[..., 0])
    merged = reference.merge_flipped(maps, mirrored, [1, 0, 2], shift=True)
    np.testing.assert_array_equal(merged, (maps + shifted) * np.float32(0.5))
    np.testing.assert_array_equal(mirrored, kept)
    half = reference.merge_flipped(maps.astype(np.float16), mirrored.astype(np.float16), (1, 0, 2), shift=False)
    assert half.dtype == np.float32
    assert reference.merge_flipped(maps[:0], mirrored[:0], [0, 1, 2], shift=True).shape == (0, 3, 4, 5)
    # DeepFashion2's own indices are no permutation (vest_kpt13); they must pass.
    assert reference.flip_heatmaps(mirrored, [0, 0, 2], shift=False).shape == mirrored.shape
    with pytest.raises(ValueError, match="3 channel numbers"):
        reference.flip_heatmaps(mirrored, [0, 3, 1], shift=False)
    with pytest.raises(ValueError, match="one shape"):
        reference.merge_flipped(maps, mirrored[:1], [0, 1, 2], shift=False)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 widens the oracle's float32 scalars")
@pytest.mark.parametrize("refinement", ["dark", "dark_udp"])
@pytest.mark.parametrize(("pedestal", "height"), [(0, 1), (5, 1), (1, 0.2)])
def test_noise_that_is_well_conditioned_decodes_as_mmpose_does(refinement, pedestal, height):
    """Flat noise is the hardest map whose point is still defined to 1e-2 cells: the step magnifies all rounding."""
    rng = np.random.default_rng(5)
    maps = (pedestal + height * rng.random((120, 64, 48))).astype(np.float32)
    conditioned = oracle.sensitivity(maps, refinement, np.random.default_rng(0)) < 1e-2
    assert conditioned.sum() >= 60
    locations, _ = reference.decode_heatmaps(maps[None], refinement=refinement)
    error = np.abs(locations[0] - oracle.decode(maps, refinement)).max(axis=1) * CELL
    assert error[conditioned].max() <= 1e-3  # px, the contract; worst seen 2.5e-4 in 300 maps of each kind


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_the_flip_test_decodes_the_merged_maps(refinement, shift):
    rng = np.random.default_rng(8)
    maps, flipped = (gaussians(rng, 12, 40, 30, noise=0.01).reshape(3, 4, 40, 30) for _ in range(2))
    indices = [1, 0, 2, 2]
    for dtype in (np.float32, np.float16, np.float64):
        pair = maps.astype(dtype), flipped.astype(dtype)
        got = reference.decode_heatmaps(
            pair[0], refinement=refinement, flipped=pair[1], flip_indices=indices, flip_shift=shift
        )
        merged = reference.merge_flipped(*(array.astype(np.float32) for array in pair), indices, shift=shift)
        for array, wanted in zip(got, reference.decode_heatmaps(merged, refinement=refinement), strict=True):
            np.testing.assert_array_equal(array, wanted)
    opposed = np.full((1, 1, 4, 4), np.inf, np.float32)  # their mean is NaN: no peak
    locations, scores = reference.decode_heatmaps(opposed, flipped=-opposed, flip_indices=[0], refinement=refinement)
    assert (*locations[0, 0], scores[0, 0]) == (-1, -1, 0)


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_channels_outside_the_range_are_left_out(refinement):
    rng = np.random.default_rng(9)
    maps, flipped = rng.random((2, 4, 6, 16, 12), dtype=np.float32)
    ranges = np.array([[0, 6], [2, 4], [3, 3], [5, 6]])
    inside = (np.arange(6) >= ranges[:, :1]) & (np.arange(6) < ranges[:, 1:])
    for flip in ({}, {"flipped": flipped, "flip_indices": [5, 4, 3, 2, 1, 0], "flip_shift": True}):
        every = reference.decode_heatmaps(maps, refinement=refinement, **flip)
        some = reference.decode_heatmaps(maps, refinement=refinement, channel_ranges=ranges, **flip)
        # A matrix product of another number of maps could sum in another order; here it does not: worst seen 0.
        np.testing.assert_allclose(some[0][inside], every[0][inside], rtol=1e-6, atol=2e-5)
        np.testing.assert_array_equal(some[1][inside], every[1][inside])
        np.testing.assert_array_equal(some[0][~inside], -1)
        np.testing.assert_array_equal(some[1][~inside], 0)
        assert [array.dtype for array in some] == [np.float32, np.float32]


def test_locations_in_the_frame():
    rng = np.random.default_rng(10)
    maps = gaussians(rng, 6, 40, 30).reshape(2, 3, 40, 30)
    maps[1, 2] = 0
    matrices = rng.normal(0, 30, (2, 2, 3))
    cells, _ = reference.decode_heatmaps(maps, refinement="dark")
    points, scores = reference.decode_heatmaps(maps, refinement="dark", cells_to_frame=matrices)
    expected = np.einsum("nij,nkj->nki", matrices[:, :, :2], cells.astype(np.float64)) + matrices[:, None, :, 2]
    # The cells compared with are rounded to float32, 2e-6 at 40 cells, times 30 px a cell or more: worst seen 1.8e-4.
    np.testing.assert_allclose(points, expected, atol=1e-3, rtol=0)
    np.testing.assert_allclose(points[1, 2], matrices[1] @ [-1, -1, 1], rtol=1e-6)  # mapped, though there is no peak
    assert points.dtype == np.float32
    assert scores[1, 2] == 0
    identity = np.broadcast_to(np.eye(2, 3), (2, 2, 3))
    np.testing.assert_array_equal(reference.decode_heatmaps(maps, refinement="dark", cells_to_frame=identity)[0], cells)
    empty = np.zeros((0, 3, 8, 6), np.float32)
    assert reference.decode_heatmaps(empty, cells_to_frame=[], channel_ranges=[])[0].shape == (0, 3, 2)


def test_wrong_flips_ranges_and_frames():
    maps = np.zeros((2, 3, 8, 6), np.float32)
    bad = [
        ({"flipped": maps}, "needs flip_indices"),
        ({"flipped": maps[:1], "flip_indices": [0, 1, 2]}, "one shape"),
        ({"flipped": maps, "flip_indices": [0, 1]}, "3 channel numbers"),
        ({"flipped": maps, "flip_indices": [0, 1, 3]}, "3 channel numbers"),
        ({"flipped": maps, "flip_indices": [0.0, 1.0, 2.0]}, "3 channel numbers"),
        ({"channel_ranges": [[0, 3]]}, r"\(2, 2\) integers"),
        ({"channel_ranges": [[0, 3], [0, 4]]}, "begin <= end <= 3"),
        ({"channel_ranges": [[0, 3], [2, 1]]}, "begin <= end <= 3"),
        ({"channel_ranges": [[0, 3], [-1, 1]]}, "begin <= end <= 3"),
        ({"channel_ranges": [[0.0, 3.0], [0.0, 1.0]]}, "integers"),
        ({"cells_to_frame": np.eye(2, 3)}, r"\(2, 2, 3\) finite"),
        ({"cells_to_frame": np.full((2, 2, 3), np.nan)}, r"\(2, 2, 3\) finite"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            reference.decode_heatmaps(maps, **options)
    with pytest.raises(TypeError, match="flipped must be real numbers"):
        reference.decode_heatmaps(maps, flipped=maps > 0, flip_indices=[0, 1, 2])
