"""One spec for several pose models that serve different categories, so that their results are results of one kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from edgepose.errors import ModelError
from edgepose.spec import Color, ModelSpec

__all__ = ["joint_spec"]


def joint_spec(specs: Mapping[str, ModelSpec]) -> ModelSpec:
    """The spec of models that stand side by side: the landmarks of the first, then those of the second, ...

    Names, flip indices, skeleton and colours (where all models have some) are joined and renumbered; a name that
    several models have becomes ``category: name``. What tells how a network is fed is the first model's, and of no
    use: each model has its own.

    Args:
        specs: of the model of each category. Categories with the *same* spec (one object) share one model, and its
            landmarks. The category of a model that has several of its own has those landmarks only.

    Returns:
        A spec whose ``categories`` are the keys of ``specs``, with the channels of each.

    Raises:
        ModelError: a model has several categories, but not the one that it is to serve.
    """
    models = list({id(spec): spec for spec in specs.values()}.values())
    begins = {}
    begin = 0
    for spec in models:
        begins[id(spec)] = begin
        begin += spec.num_keypoints
    ranges = {category: _channels(category, spec, begins[id(spec)]) for category, spec in specs.items()}
    flips: list[int] = []
    skeleton: list[tuple[int, int]] = []
    colors: list[Color] = []
    for spec in models:
        offset = begins[id(spec)]
        flips += [offset + index for index in spec.flip_indices]
        skeleton += [(offset + a, offset + b) for a, b in spec.skeleton]
        colors += spec.colors
    return replace(
        models[0],
        name=" + ".join(spec.name for spec in models),
        keypoint_names=_names(specs, models),
        flip_indices=tuple(flips),
        skeleton=tuple(skeleton),
        colors=tuple(colors) if all(spec.colors for spec in models) else (),
        category="",
        categories=ranges,
        license=" AND ".join(dict.fromkeys(spec.license for spec in models if spec.license)),
        metrics={},
        training={},
        heatmap_channels=(),  # numbers of the first model's network, which only that model is read by
    )


def _channels(category: str, spec: ModelSpec, offset: int) -> tuple[int, int]:
    """[begin, end) of a category in the joint spec."""
    if not spec.categories:
        return offset, offset + spec.num_keypoints
    if category not in spec.categories:
        raise ModelError(
            f"the model {spec.name!r} is to serve {category!r}, but its categories are {', '.join(spec.categories)}: "
            "name one of them"
        )
    begin, end = spec.categories[category]
    return offset + begin, offset + end


def _names(specs: Mapping[str, ModelSpec], models: list[ModelSpec]) -> tuple[str, ...]:
    """Of all landmarks; those that several models have, with the category that asks for them first."""
    owners = Counter(name for spec in models for name in spec.keypoint_names)
    names = []
    for spec in models:
        served = {category: _channels(category, spec, 0) for category, other in specs.items() if other is spec}
        for channel, name in enumerate(spec.keypoint_names):
            if owners[name] > 1:
                asking = (category for category, (begin, end) in served.items() if begin <= channel < end)
                names.append(f"{next(asking, next(iter(served)))}: {name}")
            else:
                names.append(name)
    return tuple(names)
