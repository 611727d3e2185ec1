"""Recipes as text: the table of all, and one of them to be read in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from edgepose.spec import Codec, Refinement
from edgepose.training.recipe import Figures, Recipe, Split
from edgepose.training.schedule import Schedule

__all__ = ["NOT_TRAINED", "describe", "recipe_table", "rows", "to_dict"]

NOT_TRAINED = "not trained here"

TARGETS: dict[Codec, str] = {
    "msra": "Gaussians around the nearest heatmap cell (codec msra)",
    "udp": "Gaussians around the exact place (codec udp)",
}
REFINEMENTS: dict[Refinement, str] = {
    "none": "the highest cell",
    "shift": "the highest cell, moved a quarter towards its higher neighbour (shift)",
    "dark": "the top of a Gaussian through the smoothed peak (dark)",
    "dark_udp": "the top of a Gaussian through the smoothed peak (dark_udp)",
}


def recipe_table(recipes: Sequence[Recipe]) -> Table:
    """A row for each recipe: what it makes, how long, and the published figures beside ours."""
    table = Table(caption="PCK@0.2 and AUC: fractions; EPE: px of the photo", caption_justify="left")
    table.add_column("recipe", no_wrap=True)
    table.add_column("landmarks", justify="right")
    for heading in ("input", "codec"):
        table.add_column(heading, no_wrap=True)
    for heading in ("batch", "epochs"):
        table.add_column(heading, justify="right")
    for whose in ("published", "ours"):
        table.add_column(f"{whose}\nPCK@0.2   AUC   EPE", no_wrap=True)
    before = recipes[0] if recipes else None
    for recipe in recipes:
        if before is not None and (recipe.dataset, recipe.category) != (before.dataset, before.category):
            table.add_section()
        before = recipe
        table.add_row(
            recipe.name,
            str(len(recipe.landmarks.keypoint_names)),
            _size(recipe.input_size),
            recipe.codec,
            str(recipe.schedule.batch_size),
            str(recipe.schedule.epochs),
            _columns(recipe.published) or "-",
            _columns(recipe.ours) or NOT_TRAINED,
        )
    return table


def _columns(figures: Figures | None) -> str:
    return f"{figures.pck:7.3f} {figures.auc:5.3f} {figures.epe:5.1f}" if figures else ""


def describe(recipe: Recipe) -> str:
    """One recipe completely, as plain text: what is learnt, on what, how, how it is tested, what came out."""
    lines = [recipe.name, f"  after {recipe.source}" if recipe.source.startswith("MMPose") else f"  {recipe.source}"]
    for title, entries in rows(recipe):
        lines += ["", title]
        for name, text in entries:
            first, *more = text.split("\n")
            lines.append(f"  {name:14}{first}")
            lines += [" " * 16 + line for line in more]
    return "\n".join(lines)


def rows(recipe: Recipe) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, [(name, text)]) of each part of a recipe, in reading order."""
    return [
        ("What is learnt", _what(recipe)),
        (f"On what: {recipe.dataset}, below --data", _data(recipe)),
        ("How", _how(recipe)),
        ("How it is tested", _test(recipe)),
        ("What came out", _result(recipe)),
    ]


def _what(recipe: Recipe) -> list[tuple[str, str]]:
    k = len(recipe.landmarks.keypoint_names)
    begin, end = recipe.landmarks.channels
    outputs = f"{recipe.num_outputs} heatmaps of {_size(recipe.heatmap_size)} cells"
    if recipe.category == "all":
        landmarks = f"{k}, of {len(recipe.categories)} categories; a garment has those of its own category"
    else:
        landmarks = f"{k}, of {recipe.category.replace('_', ' ')}"
        if recipe.num_outputs != k:
            outputs += f", of which {begin} to {end - 1} are these landmarks; the others are left alone"
    names = recipe.landmarks.keypoint_names
    shown = ", ".join(names) if k <= 8 else f"{names[0]}, {names[1]}, … {names[-1]}"
    return [
        ("landmarks", f"{landmarks}\n{shown}"),
        ("network", f"{recipe.architecture}: RGB crops of {_size(recipe.input_size)} px -> {outputs}"),
        ("starts from", f"ImageNet weights of the backbone, if you give them: --init FILE ({recipe.pretrained})"),
    ]


def _data(recipe: Recipe) -> list[tuple[str, str]]:
    test = "the same as for validation" if recipe.test == recipe.validation else _split(recipe.test)
    return [
        ("training", _split(recipe.train)),
        ("validation", _split(recipe.validation)),
        ("test", test),
        ("crops", f"the labelled boxes, {recipe.padding:g} times as large, black outside of the photo"),
    ]


def _split(split: Split) -> str:
    more = f" and {len(split.annotations) - 1} more" if len(split.annotations) > 1 else ""
    return f"{split.annotations[0]}{more}, photos in {split.images}/"


def _how(recipe: Recipe) -> list[tuple[str, str]]:
    s = recipe.schedule
    if s.loss == "mmpose":
        loss = f"mean squared error over all {recipe.num_outputs} heatmaps; what is not labelled counts as no error"
    else:
        loss = "mean squared error over the labelled landmarks' heatmaps"
        loss += f" (--loss mmpose: divided by all {recipe.num_outputs})"
    per_gpu = f", {recipe.gpus} GPUs x {recipe.batch_per_gpu}" if recipe.gpus > 1 else ""
    decay = f"weight decay {s.weight_decay:g}" if s.weight_decay else "no weight decay"
    clip = f", gradients clipped to norm {s.clip_norm:g}" if s.clip_norm is not None else ""
    average = f"; tested are the averaged weights (EMA, {s.average:g})" if s.average is not None else ""
    scaling = f"as it stands for a batch of {s.batch_size}"
    if recipe.base_batch_size != s.batch_size:
        scaling += f" (the configuration names {recipe.base_batch_size}, for an option that is off)"
    return [
        ("augmentation", _augmentation(recipe)),
        ("targets", f"{TARGETS[recipe.codec]}, sigma {recipe.sigma:g} cells"),
        ("loss", loss),
        ("optimiser", f"{_OPTIMIZERS[s.optimizer]}, {decay}{clip}"),
        ("rate", f"{s.learning_rate:g} {scaling};\n{_rate(s)}"),
        ("length", f"{s.epochs} epochs of {s.batch_size} crops a step{per_gpu}"),
        ("kept", f"the epoch with the best validation AUC, looked at every {s.evaluate_every}{average}"),
    ]


def _augmentation(recipe: Recipe) -> str:
    a = recipe.augmentation
    amounts = (
        (f"shifted by up to {a.shift:.0%} of the box", a.shift_probability),
        (f"scaled by {1 - a.scale:g} to {1 + a.scale:g}", a.scale_probability),
        (f"rotated by up to {a.rotation:g} degrees", a.rotation_probability),
    )
    lines = [f"{a.flip:.0%} mirrored"]
    lines += [f"{probability:.0%} {what}" for what, probability in amounts]
    return "\n".join([*lines, "(amounts: normal distributions cut off at one standard deviation)"])


_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW"}


def _rate(schedule: Schedule) -> str:
    s = schedule
    warmup = f"{s.warmup_steps} steps of warm-up from {s.warmup_factor:g} of it"
    if s.milestones:
        return f"{warmup}, then times {s.gamma:g} after epochs {' and '.join(map(str, s.milestones))}"
    return f"{warmup}, then a cosine down to {s.final_rate:g} of it"


def _test(recipe: Recipe) -> list[tuple[str, str]]:
    flip = "no"
    if recipe.flip_test:
        flip = "averaged with the mirror image" + (", its maps moved one cell right" if recipe.flip_shift else "")
    entries = [("flip test", flip), ("decoding", REFINEMENTS[recipe.refinement])]
    if recipe.declares_udp:
        note = "its configuration declares UDP, which never took effect in MMPose"
        entries.append(("note", f"{note}; --declared trains what it declares"))
    return entries


def _result(recipe: Recipe) -> list[tuple[str, str]]:
    nobody = "nothing: this recipe is not in MMPose's table"
    entries = [
        ("published", _figures(recipe.published) if recipe.published else nobody),
        ("ours", _figures(recipe.ours) if recipe.ours else NOT_TRAINED),
    ]
    return entries + ([("weights", recipe.checkpoint_url)] if recipe.checkpoint_url else [])


def _figures(figures: Figures) -> str:
    return f"PCK@0.2 {figures.pck:.3f}, AUC {figures.auc:.3f}, EPE {figures.epe:.1f} px"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, ready for JSON; ``published`` and ``ours`` are null where there is nothing."""
    return {**asdict(recipe), "categories": list(recipe.categories)}
