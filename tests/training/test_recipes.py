"""The data sets' facts and the 19 published recipes against what MMPose's files say; and the recipes beyond them."""

from __future__ import annotations

import doctest
import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training import fashion, recipe_text, recipes
from edgepose.training.departures import depart, departures
from edgepose.training.recipes import RECIPES, Figures, Recipe

META = json.loads((Path(__file__).parents[1] / "data" / "reference" / "fashion_meta.json").read_text())
SETS = META["datasets"]
DEEPFASHION2 = SETS["deepfashion2"]
VEST = (136, 140)  # the pair that MMPose's file has half of


def reference_recipes() -> list[tuple[str, dict[str, Any]]]:
    """(our name, MMPose's facts) of each recipe."""
    pairs = []
    for config, facts in META["recipes"].items():
        dataset, _, file = config.partition("/")
        stem = file.removesuffix("-256x192")
        if dataset == "deepfashion":
            category = stem.rpartition("_")[2]
            name = f"deepfashion/{category}/{'hrnet_w48_udp' if 'hrnet' in stem else 'resnet50'}"
        else:
            category = stem.partition("deepfasion2-")[2].replace("-", "_")  # MMPose's spelling
            name = f"deepfashion2/{category}/resnet50"
        pairs.append((name, facts))
    return pairs


PUBLISHED = [name for name, _ in reference_recipes()]


def test_there_are_the_19_names_and_the_ones_that_the_table_lacks() -> None:
    assert sorted(name for name, recipe in RECIPES.items() if recipe.published) == sorted(PUBLISHED)
    assert len(PUBLISHED) == 19
    categories = [f"deepfashion/{c}" for c in fashion.DEEPFASHION] + [f"deepfashion2/{c}" for c in fashion.DEEPFASHION2]
    ours = {f"{c}/{a}" for c in (*categories, "deepfashion2/all") for a in ("resnet18", "hrnet_w32", "hrnet_w48")}
    assert set(RECIPES) - set(PUBLISHED) == ours | {"deepfashion2/all/resnet50"}
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    for name in set(RECIPES) - set(PUBLISHED):
        recipe = RECIPES[name]
        assert (recipe.published, recipe.ours, recipe.checkpoint_url, recipe.metrics) == (None, None, "", {})


@pytest.mark.parametrize("name", ["upper", "lower", "full"])
def test_deepfashion_landmarks(name: str) -> None:
    ours, facts = fashion.DEEPFASHION[name], SETS[f"deepfashion_{name}"]
    assert list(ours.keypoint_names) == facts["names"]
    assert list(ours.flip_indices) == facts["flip_indices"]
    assert [list(c) for c in ours.colors] == facts["colors_rgb"]
    assert list(ours.skeleton) == facts["skeleton_links"] == []


def test_deepfashion2_landmarks() -> None:
    expected_flip = list(DEEPFASHION2["flip_indices"])
    assert [expected_flip[i] for i in VEST] == [140, 140]  # MMPose's defect, corrected here
    expected_flip[140] = 136
    assert list(fashion.DEEPFASHION2) == [c["name"] for c in DEEPFASHION2["categories"]]
    names, flip, colors, skeleton = [], [], [], []
    for facts, ours in zip(DEEPFASHION2["categories"], fashion.DEEPFASHION2.values(), strict=True):
        start, stop = ours.channels
        assert (start, stop) == (facts["start"], facts["stop"])
        names += ours.keypoint_names
        flip += [start + i for i in ours.flip_indices]
        colors += [list(c) for c in ours.colors]
        skeleton += [[start + a, start + b] for a, b in ours.skeleton]
    assert names == DEEPFASHION2["names"]
    assert flip == expected_flip
    assert colors == DEEPFASHION2["colors_rgb"]
    assert skeleton == DEEPFASHION2["skeleton_links"]
    assert len(names) == fashion.DEEPFASHION2_CHANNELS


@pytest.mark.parametrize(
    "landmarks", [*fashion.DEEPFASHION.values(), *fashion.DEEPFASHION2.values()], ids=lambda s: s.name
)
def test_mirroring_twice_is_no_change_and_keeps_the_skeleton(landmarks: fashion.LandmarkSet) -> None:
    flip = landmarks.flip_indices
    assert [flip[flip[i]] for i in range(len(flip))] == list(range(len(flip)))
    links = {frozenset(link) for link in landmarks.skeleton}
    assert {frozenset((flip[a], flip[b])) for a, b in links} == links


@pytest.mark.parametrize(("name", "facts"), reference_recipes(), ids=lambda v: v if isinstance(v, str) else "")
def test_recipe_says_what_mmpose_ran(name: str, facts: dict[str, Any]) -> None:
    recipe = RECIPES[name]
    model = facts["model"]
    assert recipe.architecture == ("hrnet_w48" if model["backbone"] == "HRNet" else f"resnet{model['depth']}")
    assert recipe.pretrained == model["init"]["checkpoint"]
    assert recipe.num_outputs == model["head"]["out_channels"]
    assert list(recipe.mean) == model["data_preprocessor"]["mean"]
    assert list(recipe.std) == model["data_preprocessor"]["std"]

    decoder = facts["effective_decoder"]
    assert decoder["type"] == "MSRAHeatmap"
    assert (recipe.codec, recipe.refinement) == ("msra", "shift")
    assert list(recipe.input_size) == decoder["input_size"]
    assert list(recipe.heatmap_size) == decoder["heatmap_size"]
    assert recipe.sigma == decoder["sigma"]
    assert recipe.blur_kernel == META["codec_defaults"]["MSRAHeatmap"]["blur_kernel_size"]
    assert recipe.flip_test is model["test_cfg"]["flip_test"]
    assert recipe.flip_shift is model["test_cfg"]["shift_heatmap"]
    assert recipe.declares_udp is not facts["declared_equals_effective"]

    config = next(config for config, other in META["recipes"].items() if other is facts)
    assert recipe.source == f"MMPose 1.3.2, {config}"
    assert recipe.dataset == facts["dataset"].removesuffix("Dataset")
    splits = (recipe.train, recipe.validation, recipe.test)
    assert [split.annotations for split in splits] == [(facts[f"{part}_ann"],) for part in ("train", "val", "test")]
    assert recipe.categories == (recipe.category,)
    assert_same_augmentation(recipe, facts["train_steps"])
    assert_same_schedule(recipe, facts)

    table = facts["published"]["table"]
    percent = 100 if name.startswith("deepfashion/") else 1  # one table is in percent, the other in fractions
    assert recipe.checkpoint_url == facts["published"]["url"]
    assert recipe.metrics["PCK@0.2"] == pytest.approx(table["PCK@0.2"] / percent, abs=1e-12)  # one division
    assert recipe.metrics["AUC"] == pytest.approx(table["AUC"] / percent, abs=1e-12)
    assert recipe.metrics["EPE"] == table["EPE"]


def assert_same_augmentation(recipe: Recipe, steps: list[str]) -> None:
    assert "RandomHalfBody" not in steps
    ours = recipe.augmentation
    assert ours.flip == META["transform_defaults"]["RandomFlip"]["prob"]
    assert recipe.padding == META["transform_defaults"]["GetBBoxCenterScale"]["padding"]
    box = META["transform_defaults"]["RandomBBoxTransform"]
    assert (ours.shift, ours.shift_probability) == (box["shift_factor"], box["shift_prob"])
    assert [1 - ours.scale, 1 + ours.scale] == box["scale_factor"]
    assert ours.scale_probability == box["scale_prob"]
    assert (ours.rotation, ours.rotation_probability) == (box["rotate_factor"], box["rotate_prob"])


def assert_same_schedule(recipe: Recipe, facts: dict[str, Any]) -> None:
    s = recipe.schedule
    assert facts["optimizer"]["optimizer"] == {"type": s.optimizer.capitalize(), "lr": s.learning_rate}
    assert (s.weight_decay, s.clip_norm, s.average) == (0, None, None)  # the configurations name none of these
    warmup, steps = facts["param_scheduler"]
    assert (s.warmup_steps, s.warmup_factor) == (warmup["end"], warmup["start_factor"])
    assert (list(s.milestones), s.gamma) == (steps["milestones"], steps["gamma"])
    assert (s.epochs, s.evaluate_every) == (facts["train_cfg"]["max_epochs"], facts["train_cfg"]["val_interval"])
    assert s.flip_test is facts["model"]["test_cfg"]["flip_test"]
    assert (recipe.gpus, recipe.batch_per_gpu) == (facts["gpus_in_filename"], facts["batch_size_in_config"])
    assert s.batch_size == recipe.gpus * recipe.batch_per_gpu
    assert recipe.base_batch_size == facts["auto_scale_lr"]["base_batch_size"]
    assert facts["model"]["head"]["loss"] == {"type": "KeypointMSELoss", "use_target_weight": True}
    assert (s.loss, recipe.as_mmpose().schedule) == ("masked", replace(s, loss="mmpose", foreground=0.0))


def test_the_base_batch_size_is_not_the_batch_in_two_recipes() -> None:
    others = [name for name in PUBLISHED if RECIPES[name].base_batch_size != RECIPES[name].schedule.batch_size]
    assert others == ["deepfashion/upper/resnet50", "deepfashion/lower/resnet50"]
    text = recipe_text.describe(RECIPES[others[0]])
    assert "0.0005 as it stands for a batch of 512 (the configuration names 64, for an option that is off)" in text


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
def test_spec_describes_the_categorys_landmarks(recipe: Recipe) -> None:
    spec = recipe.spec()
    start, stop = recipe.landmarks.channels
    every = recipe.category == "all"
    assert spec.num_keypoints == stop - start <= recipe.num_outputs
    assert spec.keypoint_names == recipe.landmarks.keypoint_names
    assert spec.flip_indices == recipe.landmarks.flip_indices
    assert (spec.category or "all", spec.codec, spec.flip_shift) == (recipe.category, "msra", recipe.flip_shift)
    assert bool(spec.categories) is every
    assert not spec.metrics  # published figures belong to published weights
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_declared_udp_is_an_option_of_the_three_udp_recipes() -> None:
    for recipe in RECIPES.values():
        if not recipe.name.endswith("_udp"):
            assert recipe.declared() is recipe
            continue
        spec = recipe.declared().spec()
        assert (spec.codec, spec.refinement, spec.flip_shift) == ("udp", "dark_udp", False)
        assert (recipe.spec().codec, recipe.spec().flip_shift) == ("msra", False)


def test_find_suggests_the_closest_name() -> None:
    assert recipes.find("deepfashion/full/resnet50") is RECIPES["deepfashion/full/resnet50"]
    with pytest.raises(InputError, match=r"did you mean .*deepfashion2/trousers/resnet50"):
        recipes.find("deepfashion2/trouser/resnet50")
    with pytest.raises(InputError, match=r"the recipes are: deepfashion/upper/resnet50"):
        recipes.find("~")


def test_recipes_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RECIPES["deepfashion/full/resnet50"].sigma = 1.0  # type: ignore[misc]
    assert len(set(RECIPES.values())) == len(RECIPES)  # all of it can be hashed, so nothing in it can change


def test_the_docstrings_example_runs() -> None:
    result = doctest.testmod(recipes)
    assert result.attempted > 0
    assert result.failed == 0


# All categories at once


def test_the_unified_recipes_have_every_category_in_its_channels() -> None:
    recipe = RECIPES["deepfashion2/all/resnet18"]
    spec = recipe.spec()
    assert list(spec.keypoint_names) == DEEPFASHION2["names"]
    assert [list(link) for link in spec.skeleton] == DEEPFASHION2["skeleton_links"]
    assert {name: list(channels) for name, channels in spec.categories.items()} == {
        facts["name"]: [facts["start"], facts["stop"]] for facts in DEEPFASHION2["categories"]
    }
    first, second = VEST
    assert (spec.flip_indices[first], spec.flip_indices[second]) == (second, first)
    rest = [i for i in range(294) if i not in VEST]
    assert [spec.flip_indices[i] for i in rest] == [DEEPFASHION2["flip_indices"][i] for i in rest]
    assert recipe.train.annotations[6] == "train/deepfashion2_shorts_train.json"
    assert len(recipe.train.annotations) == len(recipe.categories) == 13
    assert recipe.landmarks.channels == (0, 294)


def test_every_recipe_has_a_network() -> None:
    torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'edgepose[train]'")
    from edgepose.training import models

    for architecture in sorted({recipe.architecture for recipe in RECIPES.values()}):
        with torch.device("meta"):  # shapes without numbers; a forward pass is test_models' business
            network = models.create(architecture, 294)
        assert network.head.final_layer.weight.shape[0] == 294


# Departing from a recipe


def test_departures_are_listed_and_milestones_move_with_the_length() -> None:
    recipe = RECIPES["deepfashion2/trousers/resnet50"]
    assert depart(recipe) == recipe
    assert departures(recipe) == []
    changed = depart(recipe, epochs=21, batch_size=64, loss="mmpose", seed=3)
    assert departures(changed) == [
        "epochs: 210 -> 21",
        "batch_size: 128 -> 64",
        "milestones: 170 and 200 -> 17 and 20",
        "loss: masked -> mmpose",
        "seed: 0 -> 3",
        "learning_rate: stays 0.0005 (--scale-lr would make it 0.00025)",
    ]
    scaled = depart(recipe, batch_size=32, scale_rate=True)
    assert departures(scaled) == ["batch_size: 128 -> 32", "learning_rate: 0.0005 -> 0.000125"]
    assert depart(recipe, epochs=1).schedule.milestones == (1, 1)


def test_departures_that_make_no_sense_are_refused() -> None:
    recipe = RECIPES["deepfashion2/trousers/resnet50"]
    with pytest.raises(InputError, match="declares what it is"):
        depart(recipe, declared=True)
    with pytest.raises(InputError, match="another batch size"):
        depart(recipe, scale_rate=True)
    with pytest.raises(InputError, match="epochs must be"):
        depart(recipe, epochs=0)
    udp = depart(RECIPES["deepfashion/full/hrnet_w48_udp"], declared=True)
    assert departures(udp) == ["codec: msra -> udp", "refinement: shift -> dark_udp"]


# Text


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
def test_a_recipe_can_be_read_in_a_minute(recipe: Recipe) -> None:
    text = recipe_text.describe(recipe)
    lines = text.splitlines()
    assert len(lines) <= 45  # one screen
    assert [line for line in lines if line and not line.startswith(" ")] == [
        recipe.name,
        "What is learnt",
        f"On what: {recipe.dataset}, below --data",
        "How",
        "How it is tested",
        "What came out",
    ]
    s = recipe.schedule
    facts = (
        recipe.architecture,
        *recipe.train.annotations[:1],
        recipe.train.images,
        recipe.codec,
        f"{s.epochs} epochs",
    )
    assert all(str(fact) in text for fact in (*facts, recipe.pretrained, s.learning_rate, s.batch_size))
    assert ("not in MMPose's table" in text) is (recipe.published is None)
    assert "not trained here" in text


def test_our_figures_stand_beside_the_published_ones() -> None:
    recipe = replace(RECIPES["deepfashion2/skirt/resnet50"], ours=Figures(0.961, 0.67, 15.9))
    assert "ours          PCK@0.2 0.961, AUC 0.670, EPE 15.9 px" in recipe_text.describe(recipe)
    cells = [next(iter(column.cells)) for column in recipe_text.recipe_table([recipe]).columns]
    assert [cell.split() for cell in cells[-2:]] == [["0.952", "0.653", "16.6"], ["0.961", "0.670", "15.9"]]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["recipes", *arguments])


def test_the_command_lists_filters_and_shows() -> None:
    lines = run().output.splitlines()
    assert all(any(f" {name} " in line for line in lines) for name in RECIPES)
    row = next(line for line in lines if "deepfashion/lower/resnet50" in line)
    assert [cell.split() for cell in row.strip("│").split("│")][-2:] == [
        ["0.965", "0.744", "10.5"],
        ["not", "trained", "here"],
    ]
    filtered = run("--filter", "skirt hrnet").output
    assert "deepfashion2/skirt/hrnet_w32" in filtered
    assert "resnet" not in filtered
    assert run("deepfashion2/skirt/resnet50").output.startswith("deepfashion2/skirt/resnet50\n")
    assert run("--filter", "kimono").exit_code == 1
    assert "did you mean" in run("deepfashion2/skirts/resnet50").stderr
    assert run("deepfashion2/skirt/resnet50", "--filter", "skirt").exit_code == 1


def test_the_command_prints_json() -> None:
    listed = json.loads(run("--filter", "deepfashion2/all", "--json").output)
    assert [recipe["name"].rpartition("/")[2] for recipe in listed] == [
        "resnet50",
        "resnet18",
        "hrnet_w32",
        "hrnet_w48",
    ]
    assert listed[0]["published"] is None
    one = json.loads(run("deepfashion2/skirt/resnet50", "--json").output)
    assert one["published"] == {"pck": 0.952, "auc": 0.653, "epe": 16.6}
    assert one["schedule"]["milestones"] == [170, 200]
