"""What a network takes: colour order, layout, scale, mean and std, as both kinds of specs say it.

A spec says it in the network's terms: the input is ``(level * scale - mean) / std``, with mean and std in the order of
``color``. The kernels know one form only, RGB levels from 0 to 255; :func:`canonical_normalization` folds one into the
other, exactly where the scale is 1.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

from edgepose.specfields import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["ColorOrder", "Layout", "TakesPictures", "canonical_normalization", "normalization_problems"]

ColorOrder = Literal["rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]
Triple = tuple[float, float, float]


class TakesPictures(Protocol):
    """The fields that this module reads of a spec."""

    @property
    def color(self) -> ColorOrder: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def scale(self) -> float: ...
    @property
    def mean(self) -> Triple: ...
    @property
    def std(self) -> Triple: ...


def normalization_problems(spec: TakesPictures) -> list[str]:
    """What is wrong with a spec's input fields, in words; empty: nothing.

    Two mistakes are so common, and their results so hard to read, that they are refused: statistics that do not belong
    to the scale, and ImageNet's RGB mean for a network that takes BGR.
    """
    mean, std, scale = spec.mean, spec.std, spec.scale
    problems = [
        f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(spec, name)!r}"
        for name, allowed in (("color", ColorOrder), ("layout", Layout))
        if getattr(spec, name) not in get_args(allowed)
    ]
    if not scale > 0:
        problems.append(f"scale must be positive, got {scale!r}: 1 for levels 0-255, 1/255 = {1 / 255!r} for 0-1")
    if len(mean) != 3 or len(std) != 3 or any(not v > 0 for v in std):
        problems.append(f"mean and std must hold three RGB values, std > 0, got {mean!r} and {std!r}")
    elif scale == 1 and max(std) <= 1 and (0 < max(mean) <= 1 or max(std) < 1):
        problems.append(
            f"mean {_text(mean)} and std {_text(std)} are those of levels 0-1, and scale is 1, levels 0-255: give "
            f'"scale": {1 / 255!r} as well'
        )
    elif scale > 0 and scale != 1 and max(*mean, *(std if std != (1, 1, 1) else ())) > 255 * scale:
        problems.append(
            f"levels times scale {scale:g} end at {255 * scale:g}, and mean is {_text(mean)}, std {_text(std)}: give "
            "both in units of level * scale (left out, they are ImageNet's for levels 0-255)"
        )
    if spec.color == "bgr" and (mean == IMAGENET_MEAN or std == IMAGENET_STD):
        problems.append(
            f"mean and std are in the order of color, here bgr; {_text(mean)} and {_text(std)} hold ImageNet's for rgb "
            "(so they do if left out): give both in the order blue, green, red, ImageNet's as "
            f"{_text(IMAGENET_MEAN[::-1])} and {_text(IMAGENET_STD[::-1])}, none at all as (0, 0, 0) and (1, 1, 1)"
        )
    return problems


def canonical_normalization(spec: TakesPictures) -> tuple[Triple, Triple]:
    """Mean and std for RGB levels 0-255 that give the same input; unchanged where color is rgb and scale 1."""
    mean, std = spec.mean, spec.std
    if spec.scale != 1:
        mean, std = _divided(mean, spec.scale), _divided(std, spec.scale)
    return (mean[::-1], std[::-1]) if spec.color == "bgr" else (mean, std)


def _divided(values: Triple, scale: float) -> Triple:
    first, second, third = values
    return first / scale, second / scale, third / scale


def _text(values: Any) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
