"""The data sets' facts and the 19 recipes against what MMPose's files say."""

from __future__ import annotations

import doctest
import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training import fashion, recipes
from edgepose.training.recipes import RECIPES, Recipe

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


def test_there_are_the_19_names() -> None:
    assert sorted(RECIPES) == sorted(name for name, _ in reference_recipes())
    assert len(RECIPES) == 19
    assert all(recipe.name == name for name, recipe in RECIPES.items())


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

    assert recipe.dataset == facts["dataset"].removesuffix("Dataset")
    annotations = (recipe.train_annotations, recipe.val_annotations, recipe.test_annotations)
    assert annotations == (facts["train_ann"], facts["val_ann"], facts["test_ann"])
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
    assert recipe.flip_probability == META["transform_defaults"]["RandomFlip"]["prob"]
    assert recipe.padding == META["transform_defaults"]["GetBBoxCenterScale"]["padding"]
    box = META["transform_defaults"]["RandomBBoxTransform"]
    assert (recipe.shift_factor, recipe.shift_probability) == (box["shift_factor"], box["shift_prob"])
    assert [1 - recipe.scale_factor, 1 + recipe.scale_factor] == box["scale_factor"]
    assert recipe.scale_probability == box["scale_prob"]
    assert (recipe.rotation_factor, recipe.rotation_probability) == (box["rotate_factor"], box["rotate_prob"])


def assert_same_schedule(recipe: Recipe, facts: dict[str, Any]) -> None:
    assert facts["optimizer"]["optimizer"] == {"type": recipe.optimizer.capitalize(), "lr": recipe.learning_rate}
    warmup, steps = facts["param_scheduler"]
    assert (recipe.warmup_iterations, recipe.warmup_factor) == (warmup["end"], warmup["start_factor"])
    assert (list(recipe.milestones), recipe.gamma) == (steps["milestones"], steps["gamma"])
    assert (recipe.epochs, recipe.validation_interval) == (
        facts["train_cfg"]["max_epochs"],
        facts["train_cfg"]["val_interval"],
    )
    assert (recipe.gpus, recipe.batch_per_gpu) == (facts["gpus_in_filename"], facts["batch_size_in_config"])
    assert recipe.base_batch_size == facts["auto_scale_lr"]["base_batch_size"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
def test_spec_describes_the_categorys_landmarks(recipe: Recipe) -> None:
    spec = recipe.spec()
    start, stop = recipe.landmarks.channels
    assert spec.num_keypoints == stop - start <= recipe.num_outputs
    assert spec.keypoint_names == recipe.landmarks.keypoint_names
    assert spec.flip_indices == recipe.landmarks.flip_indices
    assert (spec.category, spec.codec, spec.flip_shift) == (recipe.category, "msra", recipe.flip_shift)
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
        RECIPES["deepfashion/full/resnet50"].epochs = 1  # type: ignore[misc]


def test_the_docstrings_example_runs() -> None:
    result = doctest.testmod(recipes)
    assert result.attempted > 0
    assert result.failed == 0
