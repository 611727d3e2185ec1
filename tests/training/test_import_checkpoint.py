"""MMPose's checkpoints, old and new, as far as heatmaps equal to the reference's out of the exported file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgepose.errors import InputError, ModelError
from edgepose.training import recipes
from edgepose.training.recipes import RECIPES

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgepose[train]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'edgepose[train]'")
from mmpose_checkpoints import filled, write_mmpose_0, write_mmpose_1

from edgepose.cli import app
from edgepose.training import models
from edgepose.training.checkpoint import (
    CheckpointInfo,
    check_trained_for,
    load_backbone,
    load_checkpoint,
    read_checkpoint,
    sha256,
)
from edgepose.training.export import export_recipe, run_onnx
from edgepose.training.import_checkpoint import import_checkpoint

DATA = Path(__file__).parents[1] / "data" / "reference"
ARRAYS = np.load(DATA / "models.npz")
# Relative to the largest heatmap value: fp32 sums in another order. MMPose's own fp32 against fp64 is 1.3e-6; worst
# seen here, through ONNX Runtime with batch normalisation folded, 1.4e-6.
TOLERANCE = 1e-5
REFERENCE_INPUT = np.random.default_rng(0).standard_normal((1, 3, 256, 192)).astype(np.float32)


def reference_state(architecture: str, outputs: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        names = models.create(architecture, outputs).state_dict()
    return {name: filled(name, torch.empty(value.shape, dtype=value.dtype)) for name, value in names.items()}


def assert_samples_equal(heatmaps: np.ndarray, tag: str, channels: slice = slice(None)) -> None:
    samples = ARRAYS[f"{tag}/hm_sub"][channels]
    scale = float(np.abs(ARRAYS[f"{tag}/hm_sub"]).max())
    assert heatmaps.shape[1] == len(samples)
    step = heatmaps.shape[2] // samples.shape[1]
    assert np.abs(heatmaps[0, :, ::step, ::step] - samples).max() <= TOLERANCE * scale


@pytest.fixture(scope="module")
def trousers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 0.x checkpoint of the 294-channel network, in the container of 2021."""
    path = tmp_path_factory.mktemp("old") / "res50_deepfashion2_trousers_256x192.pth"
    write_mmpose_0(path, reference_state("resnet50", 294), RECIPES["deepfashion2/trousers/resnet50"])
    return path


@pytest.mark.slow
def test_an_old_checkpoint_becomes_the_category_s_onnx_file(trousers: Path, tmp_path: Path) -> None:
    recipe = "deepfashion2/trousers/resnet50"
    cv2.imwrite(str(photo := tmp_path / "p.png"), np.random.default_rng(0).integers(0, 256, (256, 192, 3), np.uint8))
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "trousers.onnx"
    arguments = ["import-checkpoint", str(trousers), "--recipe", recipe, "-o", str(output), "--photos", str(photo)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for shown in (
        "legacy format",
        "mmpose version",
        "0.10.0+1d2b9a5",
        "not read",
        "optimizer",
        "not the published file",
    ):
        assert shown in done.output
    heatmaps = run_onnx(output.read_bytes(), "fp32")(REFERENCE_INPUT)
    assert_samples_equal(heatmaps, "res50_k294", slice(*RECIPES[recipe].landmarks.channels))
    assert [path.name for path in output.parent.iterdir()] == ["trousers.onnx"]


def test_a_new_checkpoint_with_mmengine_s_objects(tmp_path: Path) -> None:
    recipe = RECIPES["deepfashion/full/hrnet_w48_udp"]
    write_mmpose_1(path := tmp_path / "hrnet.pth", reference_state("hrnet_w48", 8), recipe)
    assert not any(name.partition(".")[0] == "mmengine" for name in sys.modules)
    model = models.create("hrnet_w48", 8).eval()
    report = load_checkpoint(model, path)
    assert len(report.loaded) == len(model.state_dict())
    with torch.inference_mode():
        assert_samples_equal(model(torch.from_numpy(REFERENCE_INPUT)).numpy(), "hrnet_w48_udp_k8")
    _, info = read_checkpoint(path)
    assert info.dropped["mmengine.logging.history_buffer.HistoryBuffer"] == 3
    assert info.dropped["mmengine.config.config.ConfigDict"] == 1
    assert info.unread == ("message_hub", "optimizer", "param_schedulers")
    assert info.meta["dataset_name"] == "deepfashion_full"
    assert info.meta["epoch"] == "210"
    assert info.meta["mmengine_version"] == "0.8.2"


def small_state(seed: int, outputs: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return models.create("resnet18_w40", outputs).state_dict()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_old_checkpoints_of_both_containers_load(tmp_path: Path, legacy: bool) -> None:
    state = small_state(1)
    write_mmpose_0(path := tmp_path / "w.pth", state, RECIPES["deepfashion/full/resnet50"], legacy=legacy)
    model = models.create("resnet18_w40", 8)
    load_checkpoint(model, path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    info = read_checkpoint(path)[1]
    assert info.container == ("legacy" if legacy else "zip")
    assert info.dropped == {}
    assert "fld_full_train.json" in info.config


def test_averages_of_either_hook_are_what_loads(tmp_path: Path) -> None:
    trained, averaged = small_state(1), small_state(2)
    model = models.create("resnet18_w40", 8)
    write_mmpose_1(path := tmp_path / "w.pth", trained, RECIPES["deepfashion/full/resnet50"], averaged=averaged)
    load_checkpoint(model, path)
    assert read_checkpoint(path)[1].averaged
    assert all(torch.equal(value, averaged[name]) for name, value in model.state_dict().items())
    copies = {"ema_" + name.replace(".", "_"): value for name, value in trained.items()}  # mmcv's
    torch.save({"state_dict": {**averaged, **copies}, "meta": {}}, path)
    assert set(load_checkpoint(model, path).ignored) == set(copies)
    torch.save({"state_dict": {**averaged, "ema_other": torch.zeros(1)}}, path)
    with pytest.raises(ModelError, match=r"1 not in the model \(ema_other\)"):
        load_checkpoint(model, path)


# Backbones --------------------------------------------------------------------------------------


def backbone_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}


@pytest.mark.parametrize("form", ["torchvision", "openmmlab", "whole network", "data parallel", "no counters"])
def test_backbones_load_by_any_of_their_names(tmp_path: Path, form: str) -> None:
    state = small_state(3)
    bare = backbone_of(state)
    classifier = {"fc.weight": torch.zeros(10, 320), "fc.bias": torch.zeros(10)}
    contents: dict[str, object] = {
        "torchvision": {**bare, **classifier},
        "openmmlab": {"state_dict": {f"backbone.{n}": v for n, v in bare.items()}, "meta": {}},
        "whole network": {"state_dict": state},
        "data parallel": {f"module.{n}": v for n, v in bare.items()},
        "no counters": {n: v for n, v in bare.items() if "num_batches" not in n},
    }
    torch.save(contents[form], path := tmp_path / "b.pth")
    model = models.create("resnet18_w40", 6)
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    report = load_backbone(model, path)
    assert all(torch.equal(v, bare[n]) for n, v in model.backbone.state_dict().items() if "num_batches" not in n)
    assert all(torch.equal(value, head[name]) for name, value in model.head.state_dict().items())
    assert set(report.ignored) == {
        "torchvision": set(classifier),
        "whole network": {name for name in state if name.startswith("head.")},
    }.get(form, set())
    assert len(report.missing) == (len(bare) - len(report.loaded))
    assert bool(report.missing) == (form == "no counters")


def test_a_file_s_names_do_not_command_the_terminal(tmp_path: Path) -> None:
    torch.save({**backbone_of(small_state(3)), "\x1b]0;owned\x07": torch.zeros(1)}, path := tmp_path / "b.pth")
    assert load_backbone(models.create("resnet18_w40", 6), path).ignored == ("?]0;owned?",)


def test_part_of_a_backbone_is_no_backbone(tmp_path: Path) -> None:
    bare = backbone_of(small_state(3))
    model = models.create("resnet18_w40", 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({n: v for n, v in bare.items() if n != "conv1.weight"}, path := tmp_path / "b.pth")
    with pytest.raises(ModelError, match=r"does not fit the backbone: 1 not in the checkpoint \(conv1\.weight\)"):
        load_backbone(model, path)
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelError, match="does not fit the backbone"):
        load_backbone(model, path)
    torch.save({**bare, "conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(ModelError, match="1 of another shape"):
        load_backbone(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Which recipe -----------------------------------------------------------------------------------


@pytest.fixture
def small_recipe(monkeypatch: pytest.MonkeyPatch) -> recipes.Recipe:
    """One more recipe, of a network that takes no seconds."""
    recipe = replace(RECIPES["deepfashion/full/resnet50"], name="deepfashion/full/small", architecture="resnet18_w40")
    monkeypatch.setitem(RECIPES, recipe.name, recipe)
    return recipe


def test_without_a_recipe_there_is_advice_and_no_file(
    trousers: Path, tmp_path: Path, small_recipe: recipes.Recipe
) -> None:
    with pytest.raises(InputError, match=r"its configuration it could be deepfashion2/trousers/resnet50$"):
        import_checkpoint(trousers, tmp_path / "o.onnx", recipe=None)
    torch.save(small_state(1), path := tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"no published file; its weights fit deepfashion/full/small$"):
        import_checkpoint(path, tmp_path / "o.onnx", recipe=None)
    torch.save(small_state(1, 5), path)
    with pytest.raises(InputError, match="fit none of the recipes"):
        import_checkpoint(path, tmp_path / "o.onnx", recipe=None)
    assert not (tmp_path / "o.onnx").exists()


def test_a_file_of_another_recipe_is_refused(
    trousers: Path, tmp_path: Path, small_recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"trained on deepfashion2_trousers_train\.json; deepfashion2/skirt"):
        import_checkpoint(trousers, tmp_path / "o.onnx", recipe="deepfashion2/skirt/resnet50")
    torch.save(small_state(1), path := tmp_path / "w.pth")
    twin = replace(small_recipe, name="twin", checkpoint_url=f"https://example.org/x-{sha256(path)[:8]}_2021.pth")
    monkeypatch.setitem(RECIPES, twin.name, twin)
    with pytest.raises(ModelError, match=r"is the published one of twin, not of deepfashion/full/small"):
        import_checkpoint(path, tmp_path / "o.onnx", recipe=small_recipe.name)
    with pytest.raises(InputError, match="it is the published file of twin"):
        import_checkpoint(path, tmp_path / "o.onnx", recipe=None)


def test_our_own_file_says_what_it_was_trained_for(tmp_path: Path) -> None:
    """DeepFashion2's categories have the same shapes; the spec in `edgepose train`'s files tells them apart."""
    vest, every = RECIPES["deepfashion2/vest/resnet18"], RECIPES["deepfashion2/all/resnet18"]
    udp = RECIPES["deepfashion/full/hrnet_w48_udp"]

    def info(spec: object) -> CheckpointInfo:
        torch.save({"state_dict": {"w": torch.zeros(1)}, "spec": spec}, path := tmp_path / "best.pt")
        return read_checkpoint(path)[1]

    for recipe, text in ((vest, vest.spec().to_json()), (vest, every.spec().to_json()), (every, every.spec().to_json()),
                         (udp.declared(), udp.declared().spec().to_json()), (udp, udp.spec().to_json())):  # fmt: skip
        check_trained_for(recipe, info(text))
    for text in (None, 3, "", "[", "[" * 100_000, "9" * 5000, "[]"):  # MMPose's files have none
        check_trained_for(vest, info(text))
    for recipe, text, message in (
        (
            RECIPES["deepfashion2/trousers/resnet18"],
            vest.spec().to_json(),
            "vest/resnet18, and was trained for other la",
        ),
        (every, vest.spec().to_json(), "for other landmarks: choose the recipe that it is of, not deepfashion2/all"),
        (vest, json.dumps({"name": "\x1b[2J", "keypoint_names": 7}), r"is of \?\[2J, and was trained for other"),
        (vest, replace(vest.spec(), padding=1.5).to_json(), r"trained with padding 1\.5 instead of 1\.25"),
        (udp, udp.declared().spec().to_json(), "with codec udp instead of msra: give --declared"),
    ):
        with pytest.raises(ModelError, match=message):
            check_trained_for(recipe, info(text))


def test_import_and_export_refuse_our_own_file_of_another_recipe(tmp_path: Path, small_recipe: recipes.Recipe) -> None:
    spec = replace(small_recipe.spec(), padding=1.5).to_json()
    torch.save({"state_dict": small_state(1), "spec": spec}, path := tmp_path / "best.pt")
    with pytest.raises(ModelError, match="with padding"):
        import_checkpoint(path, tmp_path / "o.onnx", recipe=small_recipe.name)
    with pytest.raises(ModelError, match="with padding"):
        export_recipe(small_recipe.name, tmp_path / "o.onnx", checkpoint=path)
    assert not (tmp_path / "o.onnx").exists()


def test_a_backbone_is_not_imported(tmp_path: Path, small_recipe: recipes.Recipe) -> None:
    torch.save(backbone_of(small_state(1)), path := tmp_path / "b.pth")
    with pytest.raises(ModelError, match=r"no heatmap head: is it a backbone's .* `edgepose train --init`"):
        import_checkpoint(path, tmp_path / "o.onnx", recipe=small_recipe.name)


def test_wrong_arguments_are_refused_before_the_work(tmp_path: Path, small_recipe: recipes.Recipe) -> None:
    torch.save(small_state(1), path := tmp_path / "w.pth")
    name, output = small_recipe.name, tmp_path / "o.onnx"
    with pytest.raises(InputError, match="not both"):
        import_checkpoint(path, output, recipe=name, photos=tmp_path, labels=tmp_path)
    with pytest.raises(InputError, match="give labels, too"):
        import_checkpoint(path, output, recipe=name, images=tmp_path)
    with pytest.raises(InputError, match="declares what it is"):
        import_checkpoint(path, output, recipe=name, declared=True)
    with pytest.raises(InputError, match=r"must be an \.onnx file"):
        import_checkpoint(path, tmp_path / "o.pth", recipe=name)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_import_is_compared_on_labelled_photos(tmp_path: Path, small_recipe: recipes.Recipe, precision: str) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    records = []
    for number in range(3):
        photo = cv2.resize(rng.integers(0, 256, (12, 10, 3), np.uint8), (200, 240))
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), photo)
        records.append({"id": number, "image_id": number, "category_id": 1, "bbox": [20, 20, 150, 190],
                        "keypoints": [50, 60, 2] * 8})  # fmt: skip
    images = [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 240} for n in range(3)]
    labels = tmp_path / "labels.json"
    categories = [{"id": 1, "name": "full"}]
    labels.write_text(json.dumps({"images": images, "annotations": records, "categories": categories}))
    state = {name: filled(name, value) for name, value in small_state(1).items()}
    torch.save(state, path := tmp_path / "w.pth")
    photos = {"labels": labels, "images": tmp_path / "photos"}
    report = import_checkpoint(path, tmp_path / "o.onnx", recipe=small_recipe.name, precision=precision, **photos)
    assert report.parity.crops == 3
    assert report.parity.source == "photos"
    assert report.parity.landmarks > 0
    # Quarter shifts: a landmark moves by whole quarters of a cell or not at all, and rounding turned none round.
    assert report.parity.px_median == 0.0
    assert not report.is_published
    assert report.export.path == tmp_path / "o.onnx"
    assert report.export.path.stat().st_size == report.export.bytes


def test_a_wrong_export_is_not_written(
    tmp_path: Path, small_recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: filled(name, value) for name, value in small_state(1).items()}
    torch.save(state, path := tmp_path / "w.pth")

    def wrong(data: bytes, precision: str) -> object:
        right = run_onnx(data, precision)  # type: ignore[arg-type]
        return lambda images: np.roll(right(images), 3, axis=3)

    monkeypatch.setattr("edgepose.training.import_checkpoint.run_onnx", wrong)
    with pytest.raises(ModelError, match="finds other landmarks than PyTorch"):
        import_checkpoint(path, tmp_path / "o.onnx", recipe=small_recipe.name)
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]
