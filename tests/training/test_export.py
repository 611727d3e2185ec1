"""Export: the file says what the network says, in one piece, and a wrong one is never written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edgepose.errors import InputError, ModelError
from edgepose.spec import METADATA_KEY, ModelSpec
from edgepose.training import recipes
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2, DEEPFASHION2_CHANNELS, LandmarkSet

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgepose[train]'")
from edgepose.training import export, models
from edgepose.training.export import export_onnx, export_recipe
from edgepose.training.models import hrnet

# ONNX Runtime against PyTorch, relative to the largest value: the order of fp32 sums. Worst seen 1.6e-6.
TOLERANCE = 1e-5
SIZE = (64, 96)  # (w, h), unequal so that a swap shows


def small_network(num_keypoints: int, *, hrnet: bool = False) -> torch.nn.Module:
    """A narrow network with lively batch statistics, so that a wrong fold shows."""
    torch.manual_seed(0)
    backbone = models.HRNet(4) if hrnet else models.ResNet(18, width=8)
    network = models.PoseNetwork(backbone, num_keypoints, deconv_channels=16)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 0.8)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for layer in (m for m in network.head.modules() if isinstance(m, (torch.nn.ConvTranspose2d, torch.nn.Conv2d))):
        torch.nn.init.normal_(layer.weight, std=0.2)
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias, std=0.1)
    return network.eval()


def spec_of(landmarks: LandmarkSet) -> ModelSpec:
    width, height = SIZE
    return ModelSpec(
        name=f"test/{landmarks.name}",
        input_size=SIZE,
        heatmap_size=(width // 4, height // 4),
        keypoint_names=landmarks.keypoint_names,
        flip_indices=landmarks.flip_indices,
        skeleton=landmarks.skeleton,
    )


FULL = spec_of(DEEPFASHION["full"])


def images(count: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, 3, SIZE[1], SIZE[0]), dtype=np.float32)


def run_onnx(path: Path, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["heatmaps"], {"images": batch})[0]


def run_torch(network: torch.nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(batch)).numpy()


def relative_error(heatmaps: np.ndarray, expected: np.ndarray) -> float:
    assert heatmaps.shape == expected.shape
    return float(np.abs(heatmaps - expected).max() / np.abs(expected).max())


def io(path: Path) -> list[tuple[str, list[str | int], int]]:
    graph = onnx.load(path).graph
    return [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim], v.type.tensor_type.elem_type)
        for v in (*graph.input, *graph.output)
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small_network(8), exported in fp32."""
    return export_onnx(small_network(8), FULL, tmp_path_factory.mktemp("plain") / "plain.onnx").path


def test_the_file_is_complete_and_equals_torch(tmp_path: Path, plain: Path) -> None:
    network = small_network(8).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older file")
    report = export_onnx(network, FULL, path)

    assert network.training, "the caller's network must stay as it was"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # one file: weights inside, nothing left behind
    assert (report.path, report.bytes) == (path, path.stat().st_size)
    assert (report.precision, report.weights, report.rounding_error) == ("fp32", "fp32", 0.0)
    assert report.max_error <= TOLERANCE

    assert io(path) == [
        ("images", ["batch", 3, 96, 64], onnx.TensorProto.FLOAT),
        ("heatmaps", ["batch", 8, 24, 16], onnx.TensorProto.FLOAT),
    ]
    for count in (1, 2, 5):
        expected = run_torch(network.eval(), images(count))
        assert relative_error(run_onnx(path, images(count)), expected) <= TOLERANCE
    model = onnx.load(path)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert list(metadata) == [METADATA_KEY]
    assert ModelSpec.from_metadata(metadata, source="test") == FULL
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()  # no stack traces
    assert path.read_bytes() == plain.read_bytes()  # the same network gives the same file


def test_a_category_is_cut_out_of_the_last_layer(tmp_path: Path) -> None:
    landmarks = DEEPFASHION2["vest"]
    start, stop = landmarks.channels
    network = small_network(DEEPFASHION2_CHANNELS)
    path = tmp_path / "vest.onnx"
    export_onnx(network, spec_of(landmarks), path, keypoint_range=landmarks.channels)

    expected = run_torch(network, images(2))[:, start:stop]
    assert relative_error(run_onnx(path, images(2)), expected) <= TOLERANCE
    graph = onnx.load(path).graph
    assert not {node.op_type for node in graph.node} & {"Slice", "Gather", "Split"}
    assert DEEPFASHION2_CHANNELS not in {size for tensor in graph.initializer for size in tensor.dims}
    flip_indices = ModelSpec.from_metadata(
        {p.key: p.value for p in onnx.load(path).metadata_props}, source="test"
    ).flip_indices
    assert sorted(flip_indices) == list(range(stop - start))
    assert flip_indices[136 - start] == 140 - start


def test_activations_that_overflow_float16_are_seen(tmp_path: Path) -> None:
    """Every weight fits, and so do the heatmaps; a layer between them is at 1e6. ONNX Runtime's CPU would not mind."""
    landmarks = DEEPFASHION["upper"]
    network = small_network(len(landmarks.keypoint_names))
    *deconvolutions, last = (
        m for m in network.head.modules() if isinstance(m, (torch.nn.ConvTranspose2d, torch.nn.Conv2d))
    )
    with torch.no_grad():
        for layer in deconvolutions:
            layer.weight *= 100
        last.weight *= 1e-3
    path = tmp_path / "m.onnx"
    with pytest.raises(ModelError, match="activations may not fit into float16"):
        export_onnx(network, spec_of(landmarks), path, precision="fp16")
    assert not path.exists()
    export_onnx(network, spec_of(landmarks), path)


def test_fp16_is_a_half_precision_network(tmp_path: Path) -> None:
    network = small_network(8)
    path = tmp_path / "half.onnx"
    report = export_onnx(network, FULL, path, precision="fp16")
    assert [dtype for _, _, dtype in io(path)] == [onnx.TensorProto.FLOAT16] * 2
    model = onnx.load(path)
    assert {t.data_type for t in model.graph.initializer} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert "Cast" not in {node.op_type for node in model.graph.node}
    # 11 bits through 24 layers; worst seen 6.2e-4 from arithmetic and 8.9e-4 from the weights.
    assert 0 < report.max_error < 3e-3
    assert 0 < report.rounding_error < 3e-3
    heatmaps = run_onnx(path, images(3).astype(np.float16)).astype(np.float32)
    assert relative_error(heatmaps, run_torch(network, images(3))) < 6e-3


def test_compressed_weights_halve_the_file_and_compute_in_fp32(tmp_path: Path, plain: Path) -> None:
    small = export_onnx(small_network(8), FULL, tmp_path / "small.onnx", weights="fp16")
    assert (small.precision, small.weights) == ("fp32", "fp16")
    assert small.bytes < 0.6 * plain.stat().st_size  # the graph itself and the biases stay
    assert io(tmp_path / "small.onnx") == io(plain)
    assert small.max_error <= TOLERANCE
    assert 0 < small.rounding_error < 3e-3  # 11 bits; worst seen 8.9e-4

    # The same graph with each weight rounded to float16 and widened again must be the same network.
    rounded = onnx.load(plain)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(rounded, tmp_path / "rounded.onnx")
    expected = run_onnx(tmp_path / "rounded.onnx", images(2))
    assert relative_error(run_onnx(tmp_path / "small.onnx", images(2)), expected) <= 1e-6  # the same sums; seen 0


def test_the_bundled_size_stays_below_12_mb(tmp_path: Path) -> None:
    report = export_onnx(models.create("resnet18_w40", 8).eval(), FULL, tmp_path / "m.onnx", weights="fp16")
    assert report.bytes <= 12_000_000


def test_hrnet_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One module a stage and one block a branch: every kind of layer and fusion, in a quarter of the time.
    monkeypatch.setattr(hrnet, "MODULES_PER_STAGE", {2: 1, 3: 1, 4: 1})
    monkeypatch.setattr(hrnet, "BLOCKS_PER_BRANCH", 1)
    network = small_network(4, hrnet=True)
    path = tmp_path / "hrnet.onnx"
    report = export_onnx(network, spec_of(DEEPFASHION["lower"]), path)
    assert report.max_error <= TOLERANCE
    assert relative_error(run_onnx(path, images(2)), run_torch(network, images(2))) <= TOLERANCE
    assert "Resize" in {node.op_type for node in onnx.load(path).graph.node}


def test_a_graph_that_differs_is_not_written(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = onnx.load(plain)
    bias = next(t for t in wrong.graph.initializer if t.name == "head.final_layer.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e-2), bias.name))
    monkeypatch.setattr(export, "_trace", lambda network, spec: wrong)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old file")
    with pytest.raises(ModelError, match="differs from PyTorch by"):
        export_onnx(small_network(8), FULL, path)
    assert path.read_bytes() == b"the old file"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    network = small_network(8)
    with torch.no_grad():
        network.head.final_layer.weight[0, 0] = 1e5
    for options in ({"precision": "fp16"}, {"weights": "fp16"}):
        with pytest.raises(ModelError, match="float16 cannot"):
            export_onnx(network, FULL, tmp_path / "model.onnx", **options)
    with torch.no_grad():
        network.head.final_layer.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinity"):
        export_onnx(network, FULL, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_spec_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match=r"heatmaps \(3, 8, 24, 16\), the network gives \(3, 6, 24, 16\)"):
        export_onnx(small_network(6), FULL, path)
    with pytest.raises(ModelError, match="the network gives"):
        export_onnx(small_network(8), replace(FULL, heatmap_size=(24, 16)), path)
    with pytest.raises(ModelError, match="keypoint_range"):
        export_onnx(small_network(294), spec_of(DEEPFASHION2["vest"]), path)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    network, path = small_network(8), tmp_path / "model.onnx"
    with pytest.raises(InputError, match="precision must be one of fp32, fp16"):
        export_onnx(network, FULL, path, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fp16 network has fp16 weights"):
        export_onnx(network, FULL, path, precision="fp16", weights="fp32")
    with pytest.raises(InputError, match=r"\.onnx"):
        export_onnx(network, FULL, tmp_path / "model.engine")
    with pytest.raises(InputError, match="does not exist"):
        export_onnx(network, FULL, tmp_path / "missing" / "model.onnx")
    for keypoint_range in ((0, 9), (4, 4), (-1, 3)):
        with pytest.raises(InputError, match="keypoint_range"):
            export_onnx(network, FULL, path, keypoint_range=keypoint_range)
    with pytest.raises(InputError, match=r"head\.final_layer"):
        export_onnx(torch.nn.Conv2d(3, 8, 4, 4), FULL, path, keypoint_range=(0, 8))
    assert not list(tmp_path.iterdir())


# export_recipe ----------------------------------------------------------------------------------

VEST = "deepfashion2/vest/resnet50"


@pytest.fixture
def small_vest(monkeypatch: pytest.MonkeyPatch) -> recipes.Recipe:
    """The vest recipe with a small architecture, so that a test takes seconds."""
    recipe = replace(recipes.RECIPES[VEST], architecture="resnet18_w40")
    monkeypatch.setitem(recipes.RECIPES, VEST, recipe)
    return recipe


def test_export_recipe_with_random_weights(tmp_path: Path, small_vest: recipes.Recipe) -> None:
    state = torch.random.get_rng_state()
    report = export_recipe(VEST, tmp_path / "vest.onnx", random_weights=True, precision="fp16")
    assert torch.equal(torch.random.get_rng_state(), state), "seeding must not leak"
    metadata = {p.key: p.value for p in onnx.load(report.path).metadata_props}
    spec = ModelSpec.from_metadata(metadata, source="test")
    assert spec == replace(small_vest.spec(), training={"weights": "random: for timing only"})
    assert io(report.path)[1][1] == ["batch", 15, 64, 48]
    assert not spec.metrics
    first, second = (export.random_model(small_vest).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_export_recipe_with_a_checkpoint(tmp_path: Path, small_vest: recipes.Recipe) -> None:
    torch.manual_seed(3)
    network = models.create("resnet18_w40", 294).eval()
    checkpoint = tmp_path / "weights.pth"
    old_names = {name.replace("head.", "keypoint_head."): value for name, value in network.state_dict().items()}
    torch.save({"state_dict": old_names, "meta": {"epoch": 210}}, checkpoint)
    report = export_recipe(VEST, tmp_path / "vest.onnx", checkpoint=checkpoint)
    batch = np.random.default_rng(7).standard_normal((2, 3, 256, 192), dtype=np.float32)
    expected = run_torch(network, batch)[:, 128:143]
    assert relative_error(run_onnx(report.path, batch), expected) <= TOLERANCE


def test_export_recipe_refuses_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "create", lambda *_: pytest.fail("built a network for a call that cannot succeed"))
    path, weights = tmp_path / "model.onnx", tmp_path / "weights.pth"
    with pytest.raises(InputError, match="neither came"):
        export_recipe(VEST, path)
    with pytest.raises(InputError, match="both came"):
        export_recipe(VEST, path, checkpoint=weights, random_weights=True)
    with pytest.raises(InputError, match="did you mean"):
        export_recipe("deepfashion2/vests/resnet50", path, random_weights=True)
    with pytest.raises(InputError, match="does not exist"):
        export_recipe(VEST, tmp_path / "missing" / "model.onnx", random_weights=True)


def test_export_says_nothing_on_the_first_call_either(tmp_path: Path) -> None:
    code = (
        "import torch, sys; from edgepose.training import models, export, recipes; from dataclasses import replace;"
        "spec = replace(recipes.find('deepfashion/full/resnet50').spec(), input_size=(64, 64), heatmap_size=(16, 16));"
        "network = models.PoseNetwork(models.ResNet(18, width=8), 8, deconv_channels=8);"
        "export.export_onnx(network, spec, sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
