"""The networks against MMPose's: names, shapes, outputs, flip test and decoded points of five reference models."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.kernels import reference

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgepose[train]'")
from edgepose.training import models

DATA = Path(__file__).parents[1] / "data" / "reference"
FACTS = json.loads((DATA / "models.json").read_text())
FASHION = json.loads((DATA / "fashion_meta.json").read_text())["datasets"]
ARRAYS = np.load(DATA / "models.npz")
TAGS = list(FACTS["models"])
FLIP_SETS = {"res50_k4": "deepfashion_lower", "res50_k6": "deepfashion_upper", "res50_k294": "deepfashion2"}

# Relative to the largest heatmap value. MMPose's own fp32 against fp64 is 1.3e-6; worst seen here 8.3e-7.
HEATMAP_TOLERANCE = 1e-5
# Crop px. shift is exact. dark_udp divides by second differences of a logarithm and these maps are noise, so it
# multiplies their rounding: worst seen 1.5e-3. (The decoder itself is held to 1e-3 on given maps, in tests/kernels.)
POINT_TOLERANCE = {"msra": 0.0, "udp": 5e-3}


@dataclass(frozen=True)
class Run:
    """One reference model, filled by the recipe and run on the reference input."""

    tag: str
    features: np.ndarray  # (C, h, w) the backbone's
    heatmaps: np.ndarray  # (1, K, 64, 48)
    flipped: np.ndarray  # (1, K, 64, 48) of the mirrored input


def reference_network(tag: str) -> torch.nn.Module:
    return models.create("hrnet_w48" if tag.startswith("hrnet") else "resnet50", FACTS["models"][tag]["out_channels"])


def reference_shapes(tag: str) -> dict[str, list[int]]:
    shapes = FACTS["models"][tag]["state_dict"]
    if "like" in shapes:  # the ResNets differ in the last layer only
        return {**FACTS["models"][shapes["like"]]["state_dict"], **shapes["but"]}
    return shapes


def filled(name: str, value: torch.Tensor) -> torch.Tensor:
    """The reference's weights: random numbers seeded by the parameter's name (models.json, fill_recipe)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(value.shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(value)
    if name.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 4:
        deconvolution = "deconv_layers" in name
        gain, fan = (4.0, shape[0] * shape[2] * shape[3] / 4) if deconvolution else (0.75, np.prod(shape[1:]))
        array = rng.standard_normal(shape) * np.sqrt(gain / fan)
    else:
        array = rng.uniform(0.5, 1.0, shape)
    return torch.from_numpy(np.asarray(array, np.float32))


@pytest.fixture(scope="module", params=TAGS)
def run(request: pytest.FixtureRequest) -> Run:
    network = reference_network(request.param).eval()
    weights = {name: filled(name, value) for name, value in network.state_dict().items()}
    network.load_state_dict(weights, strict=True)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 256, 192)).astype(np.float32))
    with torch.inference_mode():
        features = network.backbone(images)
        heatmaps = network.head(features)
        flipped = network(images.flip(-1))
    return Run(request.param, features[0].numpy(), heatmaps.numpy(), flipped.numpy())


def merged(run: Run, shift: bool) -> np.ndarray:
    flip_indices = FASHION[FLIP_SETS.get(run.tag, "deepfashion_full")]["flip_indices"]
    return reference.merge_flipped(run.heatmaps, run.flipped, flip_indices, shift=shift)


def assert_maps_equal(heatmaps: np.ndarray, key: str) -> None:
    """(1, K, 64, 48) against the reference's samples, maxima, sums and peaks under `key`."""
    maps, scale = heatmaps[0], np.abs(heatmaps).max()
    samples = ARRAYS[f"{key}_sub"]
    step = maps.shape[1] // samples.shape[1]
    assert np.abs(maps[:, ::step, ::step] - samples).max() <= HEATMAP_TOLERANCE * scale
    assert np.abs(maps.max(axis=(1, 2)) - ARRAYS[f"{key}_max"]).max() <= HEATMAP_TOLERANCE * scale
    # The sum of 3072 cells, so that cells between the samples count too; worst seen 2e-7 a cell.
    sums = np.abs(maps).sum(axis=(1, 2), dtype=np.float64)
    assert np.abs(sums - ARRAYS[f"{key}_abs_sum"]).max() <= HEATMAP_TOLERANCE * scale * maps[0].size
    clear = ARRAYS[f"{key}_top2_gap"] > 2 * HEATMAP_TOLERANCE * scale
    assert clear.mean() > 0.9
    assert np.array_equal(maps.reshape(len(maps), -1).argmax(1)[clear], ARRAYS[f"{key}_argmax"][clear])


@pytest.mark.parametrize("tag", TAGS)
def test_state_dict_has_mmpose_names_and_shapes(tag: str) -> None:
    network = reference_network(tag)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == reference_shapes(tag)
    assert list(shapes) == list(reference_shapes(tag))
    assert sum(p.numel() for p in network.parameters()) == FACTS["models"][tag]["params"]


def test_fill_recipe_is_the_reference_one() -> None:
    for name, facts in FACTS["fill_spot_checks"].items():
        values = filled(name, torch.empty(facts["shape"])).numpy()
        assert np.array_equal(values.ravel()[:3], np.array(facts["first3"], np.float32))


def test_outputs_match_mmpose(run: Run) -> None:
    assert_maps_equal(run.heatmaps, f"{run.tag}/hm")
    step = (8, 2, 2) if run.tag.startswith("hrnet") else (32, 2, 2)
    features = run.features[tuple(slice(None, None, s) for s in step)]
    samples = ARRAYS[f"{run.tag}/feat_sub"]
    assert np.abs(features - samples).max() <= HEATMAP_TOLERANCE * np.abs(run.features).max()


@pytest.mark.parametrize("shift", [False, True])
def test_flip_test_matches_mmpose(run: Run, shift: bool) -> None:
    assert_maps_equal(merged(run, shift), f"{run.tag}/flip_shift{int(shift)}")


@pytest.mark.parametrize("codec", ["msra", "udp"])
def test_decoded_points_match_mmpose(run: Run, codec: str) -> None:
    for key, heatmaps in (
        ("hm", run.heatmaps),
        ("flip_shift0", merged(run, False)),
        ("flip_shift1", merged(run, True)),
    ):
        decoded = f"{run.tag}/dec_{codec}" if key == "hm" else f"{run.tag}/{key.replace('flip', 'flipdec')}_{codec}"
        if f"{decoded}_keypoints" in ARRAYS:  # of flip tests: for the 8-point models only
            assert_points_equal(heatmaps, codec, f"{run.tag}/{key}", decoded)


def assert_points_equal(heatmaps: np.ndarray, codec: str, maps_key: str, points_key: str) -> None:
    locations, scores = reference.decode_heatmaps(heatmaps, refinement="shift" if codec == "msra" else "dark_udp")
    stride = np.array([192, 256]) / (np.array([48, 64]) if codec == "msra" else np.array([47, 63]))
    expected = ARRAYS[f"{points_key}_keypoints"][0]
    scale = np.abs(heatmaps).max()
    # A map without a value above 0 has score 0 and no place here; MMPose gives its maximum.
    assert np.abs(scores[0] - np.maximum(ARRAYS[f"{points_key}_scores"][0], 0)).max() <= HEATMAP_TOLERANCE * scale
    # Left out: no peak; two cells that nearly tie, where rounding picks one; and, these maps being noise, Newton steps
    # of more than two cells, which multiply rounding by as much. The argmax tests above cover their peaks.
    peaks = ARRAYS[f"{maps_key}_argmax"]
    steps = np.abs(expected / stride - np.stack([peaks % 48, peaks // 48], -1)).max(-1)
    compared = (scores[0] > 0) & (ARRAYS[f"{maps_key}_top2_gap"] > 2 * HEATMAP_TOLERANCE * scale) & (steps < 2)
    assert compared.sum() >= 2
    error = np.abs(locations[0] * stride - expected).max(-1)
    assert error[compared].max() <= POINT_TOLERANCE[codec]


@pytest.mark.parametrize("name", models.NAMES)
def test_every_name_builds_and_has_stride_4(name: str) -> None:
    with torch.device("meta"):  # shapes without arithmetic
        assert models.create(name, 5)(torch.zeros(2, 3, 64, 32)).shape == (2, 5, 16, 8)


def test_the_small_network_has_the_stated_size() -> None:
    network = models.create("resnet18_w40", 8)
    assert sum(p.numel() for p in network.parameters()) == 5_551_728
    widths = [getattr(network.backbone, f"layer{i}")[0].conv1.out_channels for i in (1, 2, 3, 4)]
    assert widths == [40, 80, 160, 320]
    assert network.head.final_layer.in_channels == 128


def test_fresh_weights_are_simplebaselines() -> None:
    torch.manual_seed(0)
    network = models.create("resnet18", 8)
    for layer in (network.head.deconv_layers[0], network.head.final_layer):
        # The spread of 2048 or more samples of N(0, 0.001): within 10 % (6 standard errors).
        assert layer.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not network.head.final_layer.bias.any()
    stem = network.backbone.conv1.weight
    assert stem.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)
    torch.manual_seed(0)
    again = models.create("resnet18", 8)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_loading_is_strict() -> None:
    state = models.create("resnet18", 8).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        models.create("resnet18", 6).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        models.create("resnet34", 8).load_state_dict(state)


@pytest.mark.parametrize("name", ["resnet", "ResNet50", "hrnet_w64", "hrnet", ""])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"resnet18, resnet34, .* hrnet_w48"):
        models.create(name, 8)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1 keypoint"):
        models.create("resnet18", 0)
    with pytest.raises(InputError, match="depth must be one of 18, 34, 50, 101, 152"):
        models.ResNet(20)
    with pytest.raises(InputError, match="width"):
        models.HRNet(0)
    with pytest.raises(InputError, match="deconv_channels"):
        models.HeatmapHead(64, 8, deconv_channels=0)


def test_without_torch_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import edgepose.training.models"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in result.stderr
    assert "pip install 'edgepose[train]'" in result.stderr
