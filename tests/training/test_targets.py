"""Batched torch targets against MMPose 1.3.2's recorded heatmaps, and against the NumPy specification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.errors import InputError
from edgepose.training import codecs
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2
from edgepose.training.garments import garment_spec
from edgepose.training.targets import encode, target_codec

VECTORS = np.load(Path(__file__).parents[1] / "data" / "reference" / "codecs.npz")
CASES = sorted({key.split("_")[0] for key in VECTORS.files if key.startswith("enc")})
CODECS = ["msra", "dark", "udp"]
SIZES = {"input_size": (192, 256), "heatmap_size": (48, 64)}
# Both profiles are rounded to float32 before they are multiplied: 1.5 units in the last place of 1; worst seen 1.2e-7
ROUNDING = 3e-7


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("case", CASES)
def test_matches_mmpose(case: str, codec: str) -> None:
    keypoints, visible = (torch.from_numpy(VECTORS[f"{case}_{name}"]) for name in ("keypoints", "visible"))
    heatmaps, weights = encode(keypoints, visible, codec=codec, **SIZES)
    np.testing.assert_allclose(heatmaps[0].numpy(), VECTORS[f"{case}_{codec}_heatmaps"], atol=ROUNDING, rtol=0)
    np.testing.assert_array_equal(weights.numpy(), VECTORS[f"{case}_{codec}_weights"])


@pytest.mark.parametrize("sigma", [1.5, 2, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_equals_the_specification_wherever_a_point_lies(codec: str, sigma: float) -> None:
    """Inside, at and beyond every border by steps of a quarter and an eighth of a cell, far away, hidden and NaN."""
    rng = np.random.default_rng(0)
    cell = codecs.cell_size(codec, *SIZES.values())
    near = rng.integers(-80, 8 * 60, (40, 25, 2)) / 8 * cell  # exact fractions: every "half cell" and "just outside"
    wild = rng.uniform(-400, 600, (40, 25, 2))
    keypoints = np.where(rng.random((40, 25, 1)) < 0.6, near, wild).astype(np.float32)
    visible = rng.choice([0, 0.3, 0.5, 1, 1, 1], (40, 25)).astype(np.float32)
    keypoints[visible < 0.5] = rng.choice([np.nan, np.inf, 5.0], ((visible < 0.5).sum(), 2))
    keypoints[0, 0], visible[0, 0] = (1e30, -1e30), 1
    heatmaps, weights = encode(
        torch.from_numpy(keypoints), torch.from_numpy(visible), codec=codec, sigma=sigma, **SIZES
    )
    kinds = set()
    for row in range(40):
        expected, weight = codecs.encode(keypoints[row], visible[row], codec=codec, sigma=sigma, **SIZES)
        np.testing.assert_allclose(heatmaps[row].numpy(), expected, atol=ROUNDING, rtol=0)
        np.testing.assert_array_equal(weights[row].numpy(), weight)
        drawn, empty = visible[row] >= 0.5, ~expected.any(axis=(1, 2))
        kinds |= set(zip(drawn.tolist(), empty.tolist(), (weight > 0).tolist(), strict=True))
    assert {(True, False, True), (True, True, False), (False, True, True), (False, True, False)} <= kinds


def test_a_patch_that_ends_before_cell_0_keeps_its_weight_and_cells_round_towards_zero() -> None:
    keypoints = torch.tensor([[[-32.0, 100.0], [-36.0, 100.0], [-4.0, 100.0], [100.0, 256 + 4 * 5.0], [768.0, 1.0]]])
    heatmaps, weights = encode(keypoints, torch.ones(1, 5), codec="msra", **SIZES)
    assert weights[0].tolist() == [1, 0, 1, 1, 0]
    assert not heatmaps[0, 0].any()  # cell -8 + 0.5 is rounded to -7: its patch ends at cell 0, exclusive
    assert heatmaps[0, 2, 25, 0] == 1  # cell -1 + 0.5 is rounded to 0
    assert heatmaps[0, 3].any()


def test_flipping_the_points_flips_the_targets() -> None:
    """udp's grid is symmetric: x -> 191 - x is column -> 47 - column. dark's is in x -> 188 - x."""
    landmarks = DEEPFASHION2["vest"]
    order = list(landmarks.flip_indices)
    rng = np.random.default_rng(1)
    points = torch.from_numpy(rng.uniform((-20, -20), (211, 275), (4, len(order), 2)).astype(np.float32))
    visible = torch.from_numpy(rng.integers(0, 2, (4, len(order))).astype(np.float32))
    for codec, edge in (("udp", 191), ("dark", 188)):
        mirrored = points.clone()
        mirrored[..., 0] = edge - points[..., 0]
        straight, weights = encode(points, visible, codec=codec, **SIZES)
        flipped, flipped_weights = encode(mirrored[:, order], visible[:, order], codec=codec, **SIZES)
        # A float32 position changes by 4e-6 cells, its Gaussian by 0.3 of that; worst seen 1.2e-6. udp's patch is cut
        # off around int(x + 0.5), which is not symmetric for halves, or below 0: those points are left out.
        cells = points / torch.from_numpy(codecs.cell_size(codec, *SIZES.values()))
        fair = torch.ones_like(visible, dtype=torch.bool)
        if codec == "udp":
            fraction = (cells[..., 0] % 1 - 0.5).abs()
            fair = (fraction > 1e-4) & (cells[..., 0] > 0) & (cells[..., 0] < 47)
            assert fair.float().mean() > 0.5
        expected = straight.flip(-1)[:, order]
        fair = fair[:, order]
        torch.testing.assert_close(flipped[fair], expected[fair], atol=5e-6, rtol=0)
        torch.testing.assert_close(flipped_weights[fair], weights[:, order][fair])


def test_only_labelled_channels_are_computed() -> None:
    """A batch of the unified model holds 32 * 294 channels; the largest temporary tensor holds the 32 * 25 labelled."""
    visible = torch.zeros(32, 294)
    visible[:, :25] = 1
    keypoints = torch.full((32, 294, 2), float("nan"))
    keypoints[:, :25] = torch.rand(32, 25, 2) * 190
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and "exp" in str(function):
                sizes.append(result.shape[0])
            return result

    with Watch():
        heatmaps, weights = encode(keypoints, visible, codec="udp", **SIZES)
    assert sizes == [32 * 25] * 2
    assert heatmaps.shape == (32, 294, 64, 48)
    assert not heatmaps[:, 25:].any()
    assert weights[:, :25].all()
    assert not weights[:, 25:].any()


def test_no_landmarks_at_all() -> None:
    heatmaps, weights = encode(torch.zeros(3, 8, 2), torch.zeros(3, 8), codec="msra", **SIZES)
    assert not heatmaps.any()
    assert not weights.any()
    assert encode(torch.zeros(0, 8, 2), torch.zeros(0, 8), codec="dark", **SIZES)[0].shape == (0, 8, 64, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": torch.zeros(2, 2)}, r"\(B, K, 2\)"),
        ({"visible": torch.ones(2, 3)}, r"\(B, K\)"),
        (
            {"keypoints": torch.tensor([[[0.0, 0], [0, 0]], [[0, 0], [0, torch.nan]]])},
            "keypoint 1 of crop 1 is visible",
        ),
        ({"codec": "gaussian"}, "codec must be"),
        ({"sigma": 0}, "sigma"),
        ({"codec": "udp", "heatmap_size": (1, 64)}, "at least 2"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(
            **{"keypoints": torch.zeros(2, 2, 2), "visible": torch.ones(2, 2), "codec": "msra", **SIZES, **arguments}
        )


def test_targets_follow_the_decoder() -> None:
    from dataclasses import replace

    spec = garment_spec()
    assert target_codec(spec) == "udp"
    msra = replace(spec, codec="msra", refinement="shift")
    assert target_codec(msra) == "msra"
    assert target_codec(replace(msra, refinement="dark")) == "dark"
    assert DEEPFASHION["full"].channels == (0, 8)
