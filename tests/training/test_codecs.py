"""encode against MMPose 1.3.2's recorded heatmaps, and the way back through decode_heatmaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.geometry import heatmap_to_crop
from edgepose.kernels.reference import decode_heatmaps
from edgepose.training.codecs import encode

VECTORS = np.load(Path(__file__).parents[1] / "data" / "reference" / "codecs.npz")
CASES = sorted({key.split("_")[0] for key in VECTORS.files if key.startswith("enc")})
CODECS = ["msra", "dark", "udp"]
SIZES = {"input_size": (192, 256), "heatmap_size": (48, 64)}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("case", CASES)
def test_matches_mmpose(case, codec):
    heatmaps, weights = encode(VECTORS[f"{case}_keypoints"][0], VECTORS[f"{case}_visible"][0], codec=codec, **SIZES)
    # MMPose takes exp in float32, one unit in the last place of 1: worst seen 1.2e-7.
    np.testing.assert_allclose(heatmaps, VECTORS[f"{case}_{codec}_heatmaps"], atol=3e-7, rtol=0)
    np.testing.assert_array_equal(weights, VECTORS[f"{case}_{codec}_weights"][0])
    assert heatmaps.dtype == weights.dtype == np.float32


def drawn_by_hand(codec, point, sigma, scale, width, height):
    """One map, cell by cell, from the definition."""
    radius, (x, y) = int(3 * sigma), np.asarray(point) / scale
    heatmap = np.zeros((height, width))
    near = [int(x + 0.5), int(y + 0.5)]  # int() goes towards zero
    peak = near if codec == "msra" else (x, y)
    for row in range(height):
        for column in range(width):
            if codec == "dark" or max(abs(column - near[0]), abs(row - near[1])) <= radius:
                heatmap[row, column] = np.exp(-((column - peak[0]) ** 2 + (row - peak[1]) ** 2) / (2 * sigma**2))
    return heatmap


@pytest.mark.parametrize("sigma", [1, 2, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_other_sizes(codec, sigma):
    points = np.random.default_rng(0).uniform(-5, 105, (12, 2))
    heatmaps, weights = encode(
        points, np.ones(12), codec=codec, input_size=(96, 80), heatmap_size=(32, 20), sigma=sigma
    )
    scale = np.array([95 / 31, 79 / 19]) if codec == "udp" else np.array([3.0, 4.0])
    for point, heatmap, weight in zip(points, heatmaps, weights, strict=True):
        if weight:
            # A float32 position of up to 35 cells moves the Gaussian by 2e-6: worst seen 9.7e-7.
            np.testing.assert_allclose(heatmap, drawn_by_hand(codec, point, sigma, scale, 32, 20), atol=1e-5)
        else:
            assert not heatmap.any()
    assert weights.any()


@pytest.mark.parametrize(("codec", "refinement", "bound"), [("dark", "dark", 0.01), ("udp", "dark_udp", 0.01)])
def test_decoding_returns_the_keypoints(codec, refinement, bound):
    """Unbiased but for the floor of the logarithm and cut-off tails: worst seen 1.3e-3 px (dark), 1.5e-4 px (udp)."""
    points = np.random.default_rng(1).uniform((30, 30), (160, 220), (100, 2))
    heatmaps, _ = encode(points, np.ones(100), codec=codec, **SIZES)
    locations, _ = decode_heatmaps(heatmaps[None], refinement=refinement)
    back = heatmap_to_crop(locations[0], "udp" if codec == "udp" else "msra", *SIZES.values())
    assert np.abs(back - points).max() <= bound


@pytest.mark.parametrize("codec", CODECS)
def test_invisible_and_far_points(codec):
    points = [[np.nan, np.inf], [1e30, -1e30], [50, 50], [50, 50]]
    heatmaps, weights = encode(points, [0, 1, 0.4, 0.6], codec=codec, **SIZES)
    assert not heatmaps[:3].any()
    assert heatmaps[3].max() > 0.9
    np.testing.assert_array_equal(weights, np.array([0, 0, 0.4, 0.6], np.float32))
    heatmaps, weights = encode(np.zeros((0, 2)), np.zeros(0), codec=codec, **SIZES)
    assert heatmaps.shape == (0, 64, 48)
    assert weights.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": np.zeros((2, 3))}, r"\(K, 2\)"),
        ({"visible": np.ones(3)}, r"\(K,\)"),
        ({"keypoints": [[0, 0], [np.nan, 0]]}, "keypoint 1 is visible but not finite"),
        ({"codec": "gaussian"}, "codec must be"),
        ({"sigma": 0}, "sigma"),
        ({"codec": "udp", "heatmap_size": (1, 64)}, "at least 2"),
        ({"input_size": (192.5, 256)}, "whole numbers"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        encode(**{"keypoints": np.zeros((2, 2)), "visible": np.ones(2), "codec": "msra", **SIZES, **arguments})
