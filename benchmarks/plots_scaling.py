"""Plots of what a call costs as it grows: one for each axis, with the record's sentence on why it bends there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgepose.benchmarks.latency_rows import frame_name
from edgepose.benchmarks.plots_style import (
    MARKERS,
    STAGE_COLOURS,
    figure,
    from_zero,
    line_of,
    number,
    palette,
    plain_ticks,
    titles,
)
from edgepose.benchmarks.records import Record, Row

__all__ = ["scaling", "sentence"]

PARTS = ("crop", "network", "decode")


def scaling(record: Record) -> Iterator[tuple[str, Any]]:
    """A plot for each axis that the record has."""
    drawers: dict[str, Callable[[Record], Any]] = {
        "boxes": _boxes,
        "frame": _frames,
        "keypoints": _keypoints,
        "memory": _memory,
        "load": _load,
    }
    for axis, draw in drawers.items():
        if record.find(axis=axis):
            yield axis, draw(record)


def sentence(record: Record, axis: str) -> str:
    """The record's note ``axis: sentence``, without the axis; empty: there is none."""
    return next((note.removeprefix(f"{axis}: ") for note in record.notes if note.startswith(f"{axis}: ")), "")


def _boxes(record: Record) -> Any:
    """Stages upon each other over the boxes, and the cost of a box, a row of both for each model."""
    models = _values(record.find(axis="boxes"), "model")
    drawn = figure(1.1 + 2.9 * len(models))
    for (left, right), model in zip(drawn.subplots(len(models), 2, squeeze=False), models, strict=True):
        rows = record.find(axis="boxes", model=model)
        layers = {stage: _points(rows, stage=stage) for stage in PARTS}
        counts = [x for x, *_ in _points(rows, stage="total")]
        total = [y for _, y, *_ in _points(rows, stage="total")]
        heights = [[y for _, y, *_ in points] for points in layers.values() if len(points) == len(counts)]
        colours = [STAGE_COLOURS[stage] for stage in layers]
        left.stackplot(counts, *heights, labels=list(layers), colors=colours, alpha=0.85)
        left.plot(counts, total, color="black", marker="o", label="total")
        left.legend(loc="upper left", fontsize=9)
        _curve(right, _points(rows, stage="a box"), color="black", marker="o")
        from_zero(right)
        for axes, what in ((left, "ms a call"), (right, "ms a box")):
            axes.set_title(f"{model}: {what}")
            axes.set_xlabel("boxes")
            axes.set_xticks([count for count in counts if count in (1, 8, 16, 24, 32, 48, 64)])
    titles(drawn, "Latency over the number of boxes", record, sentence(record, "boxes"))
    return drawn


def _frames(record: Record) -> Any:
    """The crops over the frame's size: by sampling and by what the boxes are; beside them the whole call."""
    rows = record.find(axis="frame")
    drawn = figure(4.1)
    panels = drawn.subplots(1, 2)
    for axes, stage in zip(panels, ("crop", "total"), strict=True):
        for index, sampling in enumerate(_values(rows, "sampling")):
            for dashed, boxes in enumerate(_values(rows, "boxes_are")):
                points = _points(rows, stage=stage, sampling=sampling, boxes_are=boxes)
                looks = {"color": palette(index), "linestyle": "-:"[dashed], "marker": MARKERS[2 * index + dashed]}
                _curve(axes, points, label=f"{sampling}, {boxes}", **looks)
        frames = {float(row.labels["x"]): frame_name(str(row.labels["frame"])) for row in rows}
        axes.set_xticks(list(frames), list(frames.values()))
        axes.set_xlabel("frame, by its pixels")
        axes.set_title(f"{stage}, ms" if stage != "total" else "whole call, ms")
        from_zero(axes)
    panels[0].legend(fontsize=9, title="sampling, boxes")
    titles(drawn, "Latency over the frame's size, 8 boxes", record, sentence(record, "frame"))
    return drawn


def _keypoints(record: Record) -> Any:
    """Decoding over the number of keypoints, of what a network gives and of peaks; beside it the whole call."""
    rows = record.find(axis="keypoints")
    drawn = figure(4.1)
    left, right = drawn.subplots(1, 2)
    for index, maps in enumerate(_values(rows, "maps")):
        points = _points(rows, stage="decode", maps=maps)
        _curve(left, points, label=f"maps: {maps}", color=palette(index + 2), marker=MARKERS[index])
    for index, stage in enumerate(("total", *PARTS)):
        colour = STAGE_COLOURS.get(stage, "black")
        _curve(right, _points(rows, stage=stage, maps="network"), label=stage, color=colour, marker=MARKERS[index])
    for axes, title in ((left, "decode, ms"), (right, "whole call and its stages, ms")):
        axes.set_title(title)
        axes.set_xlabel("keypoints")
        from_zero(axes)
        axes.legend(fontsize=9)
    titles(drawn, "Latency over the number of keypoints, 8 boxes", record, sentence(record, "keypoints"))
    return drawn


def _memory(record: Record) -> Any:
    """What is resident after each step; with further predictors in the process; after calls with more boxes."""
    drawn = figure(4.6)
    steps, predictors, boxes = drawn.subplots(1, 3, width_ratios=(1.5, 1, 1))
    rows = record.find(axis="memory")
    models, names = _values(rows, "model"), _values(rows, "stage")
    for index, model in enumerate(models):
        height = 0.8 / len(models)
        places = [place + (index - (len(models) - 1) / 2) * height for place in range(len(names))]
        found = [_value(record.find(axis="memory", model=model, stage=name)) for name in names]
        steps.barh(places, found, height, color=palette(index), label=model)
        for place, value in zip(places, found, strict=True):
            steps.annotate(number(value), (value, place), (3, 0), textcoords="offset points", va="center", fontsize=9)
        for axes, axis in ((predictors, "predictors"), (boxes, "memory of boxes")):
            points = _points(record.find(axis=axis, model=model))
            _curve(axes, points, label=model, color=palette(index), marker=MARKERS[index])
    steps.set_yticks(range(len(names)), names)
    steps.invert_yaxis()
    steps.margins(x=0.16)
    steps.grid(axis="y", visible=False)
    steps.legend(fontsize=9)
    for axes, title, label in (
        (steps, "after each step", "MB"),
        (predictors, "several predictors", "in one process, all used"),
        (boxes, "growing calls", "boxes of the last call"),
    ):
        axes.set_title(title, fontsize=10.5)
        axes.set_xlabel(label)
        if axes is not steps:
            axes.set_ylabel("MB")
            from_zero(axes)
    predictors.set_xticks([x for x, *_ in _points(record.find(axis="predictors", model=models[0]))])
    titles(drawn, "Resident memory", record, sentence(record, "memory"))
    return drawn


def _load(record: Record) -> Any:
    """Opening against the size of the model's file, both logarithmic, by way."""
    rows = record.find(axis="load")
    drawn = figure(4.2)
    axes = drawn.subplots()
    for index, way in enumerate(_values(rows, "way")):
        _curve(axes, _points(rows, way=way), label=way, **line_of(way, index))
    # Lines rise, so there is room above them to the left and below them to the right; in turns, for close neighbours
    for index, x in enumerate(sorted({float(row.labels["x"]) for row in rows})):
        here = [row for row in rows if row.labels["x"] == x]
        name = str(here[0].labels["model"]).rpartition("/")[2]
        below = index % 2
        y = (min if below else max)(_value([row]) for row in here)
        looks = {"ha": "left", "va": "top"} if below else {"ha": "right", "va": "bottom"}
        axes.annotate(name, (x, y), (6, -5) if below else (-6, 5), textcoords="offset points", fontsize=9, **looks)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.25, y=0.2)
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.set_xlabel("model file, MB")
    axes.set_ylabel("ms to open it")
    axes.legend(fontsize=9)
    titles(drawn, "Opening a model, file in the system's cache", record, sentence(record, "load"))
    return drawn


def _points(rows: Sequence[Row], **labels: Any) -> list[tuple[float, float, float, float]]:
    """(x, value, low, high) of the rows with these labels, ascending."""
    kept = [row for row in rows if all(row.labels.get(key) == value for key, value in labels.items())]
    found = []
    for row in kept:
        value = _value([row])
        found.append((float(row.labels["x"]), value, row.values.get("low", value), row.values.get("high", value)))
    return sorted(found)


def _curve(axes: Any, points: Sequence[tuple[float, float, float, float]], **looks: Any) -> None:
    if points:
        x, y, low, high = zip(*points, strict=True)
        axes.plot(x, y, **looks)
        axes.fill_between(x, low, high, color=looks["color"], alpha=0.15, linewidth=0)


def _value(rows: Sequence[Row]) -> float:
    """The figure of the first; 0 where there is none, an empty place among bars."""
    return (rows[0].values.get("p50") or rows[0].values.get("value") or 0.0) if rows else 0.0


def _values(rows: Sequence[Row], label: str) -> list[str]:
    """What stands under a label, each once, in the record's order."""
    return list(dict.fromkeys(str(row.labels[label]) for row in rows if label in row.labels))
