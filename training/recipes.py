"""The recipes, by name: the 19 fashion models of MMPose's zoo as they really ran, and what its table lacks.

>>> from edgepose.training.recipes import RECIPES
>>> recipe = RECIPES["deepfashion2/trousers/resnet50"]
>>> recipe.architecture, recipe.published.pck, recipe.spec().num_keypoints
('resnet50', 0.973, 14)

The published ones are in :mod:`edgepose.training.published`. Those made here are for one GPU: ResNet-18, HRNet-W32 and
HRNet-W48 for every category, and networks for all 13 categories of DeepFashion2 at once. Data, crops, targets and test
are the table's, so that what differs is the network and the schedule. Nobody has trained them yet: their schedules are
what is usual today (AdamW, one cosine, averaged weights), not the outcome of a search.
"""

from __future__ import annotations

import difflib

from edgepose.errors import InputError
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2, DEEPFASHION2_ALL, DEEPFASHION2_CHANNELS
from edgepose.training.published import PRETRAINED, deepfashion2_split, deepfashion_split, published_recipes
from edgepose.training.recipe import Figures, Recipe, Split
from edgepose.training.schedule import Schedule

__all__ = ["RECIPES", "Figures", "Recipe", "Split", "find", "matching"]

ARCHITECTURES = ("resnet18", "hrnet_w32", "hrnet_w48")

ONE_CATEGORY = Schedule(
    epochs=210,
    batch_size=64,
    optimizer="adamw",
    learning_rate=5e-4,
    weight_decay=0.01,
    warmup_steps=200,
    final_rate=0.01,
    clip_norm=1.0,
    average=0.999,
    loss="masked",
    foreground=0.0,
    evaluate_every=10,
    flip_test=True,
)

# 13 times the categories in an epoch: fewer epochs, larger batches.
ALL_CATEGORIES = Schedule(
    epochs=60,
    batch_size=256,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.01,
    warmup_steps=1000,
    final_rate=0.01,
    clip_norm=1.0,
    average=0.9998,
    loss="masked",
    foreground=0.0,
    evaluate_every=5,
    flip_test=True,
)


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the message names the closest ones.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the recipes are: {', '.join(RECIPES)}"
    raise InputError(f"unknown recipe {name!r}; {hint}")


def matching(text: str = "") -> list[Recipe]:
    """The recipes whose names hold every word of ``text``, in the order of the tables.

    Raises:
        InputError: there is none.
    """
    found = [recipe for name, recipe in RECIPES.items() if all(word in name for word in text.split())]
    if not found:
        raise InputError(f"no recipe's name holds {text!r}; the recipes are: {', '.join(RECIPES)}")
    return found


def _deepfashion(category: str, architecture: str) -> Recipe:
    return Recipe(
        name=f"deepfashion/{category}/{architecture}",
        source="edgepose; not tuned",
        architecture=architecture,
        landmarks=DEEPFASHION[category],
        num_outputs=len(DEEPFASHION[category].keypoint_names),
        dataset="DeepFashion",
        category=category,
        train=deepfashion_split(category, "train"),
        validation=deepfashion_split(category, "val"),
        test=deepfashion_split(category, "test"),
        pretrained=PRETRAINED[architecture],
        schedule=ONE_CATEGORY,
        gpus=1,
        batch_per_gpu=ONE_CATEGORY.batch_size,
        base_batch_size=ONE_CATEGORY.batch_size,
    )


def _deepfashion2(category: str, architecture: str) -> Recipe:
    every = category == "all"
    schedule = ALL_CATEGORIES if every else ONE_CATEGORY
    categories = tuple(DEEPFASHION2) if every else (category,)
    validation = deepfashion2_split(categories, "validation")
    return Recipe(
        name=f"deepfashion2/{category}/{architecture}",
        source="edgepose; not tuned",
        architecture=architecture,
        landmarks=DEEPFASHION2_ALL if every else DEEPFASHION2[category],
        num_outputs=DEEPFASHION2_CHANNELS,
        dataset="DeepFashion2",
        category=category,
        train=deepfashion2_split(categories, "train"),
        validation=validation,
        test=validation,
        pretrained=PRETRAINED[architecture],
        schedule=schedule,
        gpus=1,
        batch_per_gpu=schedule.batch_size,
        base_batch_size=schedule.batch_size,
    )


def _place(recipe: Recipe) -> tuple[str, int]:
    """Data set by data set, category by category."""
    categories = DEEPFASHION if recipe.dataset == "DeepFashion" else (*DEEPFASHION2, "all")
    return recipe.dataset, list(categories).index(recipe.category)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in sorted(
        (
            *published_recipes(),
            *(_deepfashion(category, architecture) for category in DEEPFASHION for architecture in ARCHITECTURES),
            *(_deepfashion2(category, architecture) for category in DEEPFASHION2 for architecture in ARCHITECTURES),
            *(_deepfashion2("all", architecture) for architecture in ("resnet50", *ARCHITECTURES)),
        ),
        key=_place,
    )
}
