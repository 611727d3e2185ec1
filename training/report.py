"""What an evaluation found, as a table for the terminal and as JSON: overall, by landmark, by category.

    summary = summarize(evaluation, spec)
    summary.overall.figures["PCK@0.05"]        # Figure(value=0.931, low=0.897, high=0.962)

Every interval is the 95 % one of :mod:`edgepose.training.bootstrap`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table

from edgepose.errors import InputError
from edgepose.spec import ModelSpec
from edgepose.training import bootstrap, metrics
from edgepose.training.evaluate import Evaluation

__all__ = [
    "Figure",
    "Group",
    "Summary",
    "check_thresholds",
    "compare",
    "difference_table",
    "errors_csv",
    "summarize",
    "tables",
    "to_json",
]

JSON_SCHEMA = 1
THRESHOLDS = (0.05, 0.1, 0.2)
MEAN_ERROR = "mean_error/longer_side"
_DIGITS = 6


class Figure(NamedTuple):
    """A figure and its 95 % interval; NaN where there is nothing, or an interval cannot be told."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """The figures of all objects, of a category, or of one landmark.

    Attributes:
        name: ``all``, the category's or the landmark's.
        images, objects, landmarks: how many the figures are of; landmarks are the labelled ones.
        figures: by the metric's name, PCK at each threshold first.
        median_pixels, median_error: median distance in px, and over the box's longer side; NaN without a landmark.
        keypoints: the same for each of the group's landmarks that is labelled at all.
    """

    name: str
    images: int
    objects: int
    landmarks: int
    figures: Mapping[str, Figure]
    median_pixels: float
    median_error: float
    keypoints: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Summary:
    """An evaluation's figures.

    Attributes:
        overall: of all objects.
        categories: of each category, if there are several.
        resamples, seed: of the bootstrap.
    """

    overall: Group
    categories: tuple[Group, ...] = ()
    resamples: int = field(default=bootstrap.RESAMPLES)
    seed: int = 0


def summarize(
    evaluation: Evaluation,
    spec: ModelSpec,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Summary:
    """All figures with their intervals.

    Args:
        evaluation: of a model with this spec.
        spec: names the landmarks.
        thresholds: of PCK, fractions of the box's longer side.
        resamples, seed: of the bootstrap; the same seed gives the same intervals.

    Raises:
        InputError: a threshold is not above 0, or comes twice.
    """
    thresholds = check_thresholds(thresholds)
    images = evaluation.images()
    kinds = np.array([a.category for a in evaluation.annotations])

    def group(name: str, rows: npt.NDArray[np.bool_]) -> Group:
        distances = evaluation.distances.rows(rows)
        return _group(name, distances, images[rows], spec.keypoint_names, thresholds, resamples, seed)

    names = list(dict.fromkeys(kinds.tolist()))
    categories = tuple(group(name, kinds == name) for name in names) if len(names) > 1 else ()
    return Summary(group("all", np.ones(len(kinds), bool)), categories, resamples, seed)


def check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """PCK's thresholds as they are. Raises InputError unless they are different finite numbers above 0."""
    levels = tuple(thresholds)
    if not levels or len(set(levels)) != len(levels) or not all(0 < level < math.inf for level in levels):
        raise InputError(f"thresholds must be different numbers above 0, got {list(levels)}")
    return levels


def compare(
    first: Evaluation, second: Evaluation, *, thresholds: Sequence[float] = THRESHOLDS, seed: int = 0
) -> dict[str, tuple[float, bootstrap.Difference]]:
    """What ``first`` has more than ``second`` on the same annotations, by metric; see :func:`bootstrap.compare`."""
    one, other = (metrics.statistics(e.distances, thresholds) for e in (first, second))
    found = bootstrap.compare(one, other, first.images(), seed=seed)
    gains = (metrics.figure(a) - metrics.figure(b) for a, b in zip(one, other, strict=True))
    return {name: (gain, difference) for gain, (name, difference) in zip(gains, found.items(), strict=True)}


def _group(
    name: str,
    distances: metrics.Distances,
    images: npt.NDArray[np.int64],
    keypoint_names: Sequence[str],
    thresholds: Sequence[float],
    resamples: int,
    seed: int,
) -> Group:
    statistics = metrics.statistics(distances, thresholds)
    drawn = bootstrap.resample(statistics, images, resamples=resamples, seed=seed)
    counted = [(s, metrics.figure_by_keypoint(s), d) for s, d in zip(statistics, drawn, strict=True)]
    count = len(np.unique(images))
    keypoints = []
    for k in np.flatnonzero(distances.visible.any(axis=0)):
        seen = distances.visible[:, k]
        figures = {
            s.name: Figure(float(values[k]), *bootstrap.interval(d.by_keypoint[:, k], len(np.unique(images[seen]))))
            for s, values, d in counted
        }
        keypoints.append(
            Group(
                keypoint_names[k],
                images=len(np.unique(images[seen])),
                objects=int(seen.sum()),
                landmarks=int(seen.sum()),
                figures=figures,
                median_pixels=_median(distances.pixels[seen, k]),
                median_error=_median(distances.relative[distances.boxed[:, k], k]),
            )
        )
    return Group(
        name,
        images=count,
        objects=len(images),
        landmarks=int(distances.visible.sum()),
        figures={s.name: Figure(metrics.figure(s), *bootstrap.interval(d.figures, count)) for s, _, d in counted},
        median_pixels=_median(distances.pixels[distances.visible]),
        median_error=_median(distances.relative[distances.boxed]),
        keypoints=tuple(keypoints),
    )


def _median(values: npt.NDArray[np.float32]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


# Terminal ----------------------------------------------------------------------------------------


def tables(summary: Summary, *, by_keypoint: bool = True, split: bool = False) -> list[Table]:
    """Tables to print: all objects, each landmark, each category; with ``split`` each category's landmarks too."""
    overall = Table("", "value", "95 % interval", title="All objects", title_justify="left")
    overall.columns[1].justify = overall.columns[2].justify = "right"
    for name, figure in summary.overall.figures.items():
        overall.add_row(name, _text(name, figure.value) + _unit(name), _interval(name, figure) + _unit(name))
    overall.add_row("median error", _text("EPE", summary.overall.median_pixels) + _unit("EPE"), "")
    overall.add_row("median_error/longer_side", _text(MEAN_ERROR, summary.overall.median_error) + _unit(MEAN_ERROR), "")
    found = [overall]
    if by_keypoint:
        found.append(_group_table("Landmarks", "landmark", summary.overall.keypoints))
    if summary.categories:
        found.append(_group_table("Categories", "category", summary.categories))
    for category in summary.categories if split else ():
        found.append(_group_table(f"Landmarks of {category.name}", "landmark", category.keypoints))
    return found


def _group_table(title: str, what: str, groups: Sequence[Group]) -> Table:
    """A row for each group: the smallest threshold's PCK and the mean error with their intervals."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column(what, no_wrap=True)
    pcks = [name for name in groups[0].figures if name.startswith("PCK@")] if groups else ["PCK"]
    sharpest = min(pcks, key=lambda name: float(name[4:] or 0))
    rest = [name for name in pcks if name != sharpest]
    for heading in ("n", sharpest, "95 %", *rest, "AUC", "EPE px", "error %", "95 %", "median %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        figures = group.figures
        error, sharp = figures[MEAN_ERROR], figures[sharpest]
        table.add_row(
            escape(group.name),
            str(group.objects),
            *(_text(sharpest, sharp.value), _interval(sharpest, sharp)),
            *(_text(name, figures[name].value) for name in (*rest, "AUC", "EPE")),
            *(_text(MEAN_ERROR, error.value), _interval(MEAN_ERROR, error), _text(MEAN_ERROR, group.median_error)),
        )
    return table


def difference_table(differences: Mapping[str, tuple[float, bootstrap.Difference]], first: str, second: str) -> Table:
    """The paired comparison of two models, a row for each metric."""
    table = Table(title=escape(f"{first} less {second}, on the same images"), title_justify="left")
    table.add_column("")
    for heading in ("difference", "95 % interval", "p"):
        table.add_column(heading, justify="right")
    table.add_column("beyond chance?")
    for name, (gain, difference) in differences.items():
        lower_is_better = name in ("EPE", MEAN_ERROR)
        better = first if (gain < 0) == lower_is_better else second
        verdict = f"yes: {better} is better" if difference.beyond_chance else "no"
        table.add_row(
            name,
            _text(name, gain, sign="+") + _unit(name),
            f"{_text(name, difference.low, sign='+')} – {_text(name, difference.high, sign='+')}{_unit(name)}",
            f"{difference.p_value:.3f}",
            escape(verdict),
        )
    return table


def _interval(name: str, figure: Figure) -> str:
    return f"{_text(name, figure.low)} – {_text(name, figure.high)}"


def _text(name: str, value: float, sign: str = "") -> str:
    """A figure as people read it: px, per cent of the longer side, or a fraction."""
    if math.isnan(value):
        return "-"
    if name == "EPE":
        return f"{value:{sign}.2f}"
    return f"{100 * value:{sign}.2f}" if name == MEAN_ERROR else f"{value:{sign}.3f}"


def _unit(name: str) -> str:
    return {"EPE": " px", MEAN_ERROR: " %"}.get(name, "")


# Files -------------------------------------------------------------------------------------------


def to_json(
    summary: Summary,
    spec: ModelSpec,
    *,
    facts: Mapping[str, Any],
    differences: Mapping[str, tuple[float, bootstrap.Difference]] | None = None,
) -> dict[str, Any]:
    """The summary as plain values, ready for JSON (NaN becomes null)::

        {"schema": 1, ...facts,
         "spec": {"name": ..., "keypoint_names": [...]},
         "bootstrap": {"over": "images", "method": "percentile", "confidence": 0.95, "resamples": 1000, "seed": 0},
         "overall": {"name": "all", "images": 43, "objects": 43, "landmarks": 230,
                     "metrics": {"PCK@0.05": {"value": 0.93, "interval": [0.90, 0.96]}, ...},
                     "median_px": 5.1, "median_error/longer_side": 0.011,
                     "keypoints": [{"name": "left collar", ...the same...}, ...]},
         "categories": [{"name": "upper", ...}, ...],
         "comparison": {"PCK@0.05": {"difference": 0.01, "interval": [-0.01, 0.03], "p_value": 0.4,
                                     "beyond_chance": false}, ...}}

    ``facts`` are the caller's: model, data, command, versions, date. ``comparison`` is there with ``differences``.
    """
    result = {
        "schema": JSON_SCHEMA,
        **facts,
        "spec": {"name": spec.name, "keypoint_names": list(spec.keypoint_names)},
        "bootstrap": {
            "over": "images",
            "method": "percentile",
            "confidence": bootstrap.CONFIDENCE,
            "resamples": summary.resamples,
            "seed": summary.seed,
        },
        "overall": _group_dict(summary.overall),
        "categories": [_group_dict(category) for category in summary.categories],
    }
    if differences is not None:
        result["comparison"] = {
            name: {
                "difference": _number(gain),
                "interval": [_number(d.low), _number(d.high)],
                "p_value": _number(d.p_value),
                "beyond_chance": d.beyond_chance,
            }
            for name, (gain, d) in differences.items()
        }
    return result


def _group_dict(group: Group) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": group.name,
        "images": group.images,
        "objects": group.objects,
        "landmarks": group.landmarks,
        "metrics": {
            name: {"value": _number(f.value), "interval": [_number(f.low), _number(f.high)]}
            for name, f in group.figures.items()
        },
        "median_px": _number(group.median_pixels),
        "median_error/longer_side": _number(group.median_error),
    }
    if group.keypoints:
        result["keypoints"] = [_group_dict(keypoint) for keypoint in group.keypoints]
    return result


def _number(value: float) -> float | None:
    return round(float(value), _DIGITS) if math.isfinite(value) else None


def errors_csv(evaluation: Evaluation, spec: ModelSpec) -> str:
    """One line for each object: image, category, box, its mean error, its worst landmark, and every landmark's error.

    Errors are over the box's longer side, the mean also in px; empty where a landmark is not labelled.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["object", "image", "category", "x1", "y1", "x2", "y2", "landmarks", "mean_px", "mean_error", "worst_error"]
    writer.writerow([*head, "worst_landmark", *(f"error {name}" for name in spec.keypoint_names)])
    distances = evaluation.distances
    for row, annotation in enumerate(evaluation.annotations):
        seen = np.flatnonzero(distances.visible[row])
        errors = distances.relative[row]
        worst = seen[np.argmax(errors[seen])] if len(seen) else None
        summary = ["", "", "", ""] if worst is None else [
            f"{distances.pixels[row, seen].mean():.3f}", f"{errors[seen].mean():.5f}", f"{errors[worst]:.5f}",
            spec.keypoint_names[worst],
        ]  # fmt: skip
        cells = [f"{errors[k]:.5f}" if distances.visible[row, k] else "" for k in range(len(errors))]
        box = [f"{side:g}" for side in annotation.box]
        writer.writerow([row, str(annotation.image), annotation.category, *box, len(seen), *summary, *cells])
    return text.getvalue()
