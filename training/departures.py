"""Departing from a recipe, and saying so. Free of PyTorch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from edgepose.errors import InputError
from edgepose.training.recipe import Recipe
from edgepose.training.recipes import RECIPES
from edgepose.training.schedule import Loss

__all__ = ["depart", "departures"]


def depart(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    scale_rate: bool = False,
    loss: Loss | None = None,
    declared: bool = False,
    seed: int | None = None,
) -> Recipe:
    """The recipe with other choices; :func:`departures` lists them.

    Args:
        recipe: the one to depart from.
        epochs: another length; milestones move along.
        batch_size: crops in one optimiser step. The learning rate stays as it is.
        scale_rate: unless this is asked for: it is then multiplied as the batch is (Goyal et al., arXiv:1706.02677).
        loss: ``mmpose``, see :meth:`Recipe.as_mmpose`, or ``masked``.
        declared: the UDP reading of an hrnet_w48_udp recipe, see :meth:`Recipe.declared`.
        seed: of weights, order and augmentation.

    Raises:
        InputError: a value is out of range, scale_rate without batch_size, or declared where there is no other reading.
    """
    if declared and not recipe.declares_udp:
        raise InputError(f"{recipe.name} declares what it is: declared is for the hrnet_w48_udp recipes")
    if scale_rate and batch_size is None:
        raise InputError("scaling the learning rate needs another batch size to scale it by: give --batch-size")
    recipe = recipe.declared() if declared else recipe
    recipe = recipe.as_mmpose() if loss == "mmpose" else recipe
    schedule = recipe.schedule if loss is None else replace(recipe.schedule, loss=loss)
    if epochs is not None:
        moved = (round(milestone * epochs / schedule.epochs) for milestone in schedule.milestones)
        schedule = replace(schedule, epochs=epochs, milestones=tuple(max(1, milestone) for milestone in moved))
    if batch_size is not None:
        factor = batch_size / schedule.batch_size if scale_rate else 1.0
        schedule = replace(schedule, batch_size=batch_size, learning_rate=schedule.learning_rate * factor)
    if seed is not None:
        schedule = replace(schedule, seed=seed)
    return replace(recipe, schedule=schedule)


def departures(recipe: Recipe) -> list[str]:
    """In what a recipe differs from the one of its name in :data:`RECIPES`, a line for each: ``epochs: 210 -> 5``."""
    original = RECIPES.get(recipe.name)
    if original is None:
        return []
    a, b = original.schedule, recipe.schedule
    pairs = [(f.name, getattr(original, f.name), getattr(recipe, f.name)) for f in fields(recipe)]
    pairs = [pair for pair in pairs if pair[0] != "schedule"]
    pairs += [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(b)]
    lines = [f"{name}: {_plain(theirs)} -> {_plain(ours)}" for name, theirs, ours in pairs if theirs != ours]
    if a.batch_size != b.batch_size and a.learning_rate == b.learning_rate:
        scaled = b.learning_rate * b.batch_size / a.batch_size
        lines.append(f"learning_rate: stays {b.learning_rate:g} (--scale-lr would make it {scaled:g})")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
