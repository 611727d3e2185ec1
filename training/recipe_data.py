"""A recipe's data: where its files must lie, and reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from edgepose.errors import InputError
from edgepose.training.coco import Annotation, load_coco
from edgepose.training.fashion import DEEPFASHION2
from edgepose.training.recipe import Recipe, Split

__all__ = ["RecipeData", "check_data", "data_digests", "limit_annotations", "load_data"]

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]  # edgepose.console.track


class RecipeData(NamedTuple):
    """The objects of a recipe's splits; ``test`` is ``validation`` itself where the recipe has one file for both."""

    train: list[Annotation]
    validation: list[Annotation]
    test: list[Annotation]


def check_data(recipe: Recipe, folder: str | Path) -> None:
    """See that every file and folder of a recipe is there, before anything is read.

    Raises:
        InputError: something is missing; the message shows the whole layout and what of it is there.
    """
    folder = Path(folder)
    wanted: dict[str, bool] = {}
    for split in _splits(recipe):
        for name in split.annotations:
            wanted[name] = (folder / name).is_file()
        wanted[f"{split.images}/"] = (folder / split.images).is_dir()
    if all(wanted.values()):
        return
    width = max(map(len, wanted))
    layout = "\n".join(f"  {name:{width}}  {'there' if there else 'MISSING'}" for name, there in wanted.items())
    raise InputError(
        f"{folder} does not hold the data of {recipe.name}: {sum(not there for there in wanted.values())} of "
        f"{len(wanted)} parts are missing. --data is the folder that holds\n{layout}\n{_advice(recipe, folder)}"
    )


def _advice(recipe: Recipe, folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    inside = [path for path in sorted(folder.iterdir()) if (path / recipe.train.images).is_dir()]
    if inside:
        return f"Did you mean --data {inside[0]}?"
    if recipe.dataset == "DeepFashion2":
        convert = f"edgepose dataset convert deepfashion2 {folder} -o {folder}"
        return f"`{convert}` makes the JSON files from DeepFashion2's own train/annos and validation/annos."
    return "The JSON files are MMPose's fld_annotations, the photos DeepFashion's (Fashion Landmark Detection)."


def load_data(
    recipe: Recipe, folder: str | Path, *, track: Track | None = None, log: Callable[[str], None] | None = None
) -> RecipeData:
    """Read a recipe's annotations.

    Args:
        recipe: says which files, and which of their landmarks are wanted.
        folder: the data set's.
        track: wraps the loop over files, ``track(items, total, description)``; None: silent.
        log: is told how many objects were left out, as MMPose leaves them out, and why; None: stderr is.

    Raises:
        InputError: a file is missing (see :func:`check_data`), or is not what it should be.
    """
    folder = Path(folder)
    check_data(recipe, folder)
    files = [
        (split, name) for split in _splits(recipe) for name in zip(recipe.categories, split.annotations, strict=True)
    ]
    found: dict[Split, list[Annotation]] = {split: [] for split in _splits(recipe)}
    for split, (category, name) in files if track is None else track(files, len(files), "reading annotations"):
        found[split] += _load(recipe, category, folder / name, folder / split.images, log)
    return RecipeData(found[recipe.train], found[recipe.validation], found[recipe.test])


def _splits(recipe: Recipe) -> list[Split]:
    """Each split once."""
    return list(dict.fromkeys((recipe.train, recipe.validation, recipe.test)))


def _load(
    recipe: Recipe, category: str, path: Path, images: Path, log: Callable[[str], None] | None
) -> list[Annotation]:
    channels = DEEPFASHION2[category].channels if recipe.dataset == "DeepFashion2" else None
    annotations = load_coco(path, recipe.num_outputs, images=images, channels=channels, log=log)
    # Files of one category need not call it as we do; load_coco refuses objects that label other landmarks.
    first = channels[0] if channels and recipe.category == "all" else 0
    return [replace(annotation, category=category, first_channel=first) for annotation in annotations]


def limit_annotations(annotations: list[Annotation], limit: int | None) -> list[Annotation]:
    """At most ``limit`` annotations, evenly spread over all of them, hence over the categories.

    Raises:
        InputError: the limit is not positive.
    """
    if limit is None or limit >= len(annotations):
        return annotations
    if limit < 1:
        raise InputError(f"a limit on the validation must be at least 1 object, got {limit}")
    return [annotations[i * len(annotations) // limit] for i in range(limit)]


def data_digests(recipe: Recipe, folder: str | Path) -> dict[str, str]:
    """The SHA-256 of each annotation file, by its name in the recipe."""
    digests = {}
    for split in _splits(recipe):
        for name in split.annotations:
            digest = hashlib.sha256()
            with (Path(folder) / name).open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
            digests[name] = digest.hexdigest()
    return digests
