"""Plots of start-up, of the settings of the engines, and of the kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgepose.benchmarks.plots_style import (
    GREY,
    OURS_COLOUR,
    figure,
    line_of,
    number,
    palette,
    plain_ticks,
    titles,
)
from edgepose.benchmarks.records import Record, Row
from edgepose.benchmarks.startup import OURS, STEPS, TOTAL

__all__ = ["kernels", "settings", "startup"]

ROW = 0.34  # inches
LOG_FROM, LOG_TO = 1e-6, 1e3
STEP_COLOURS = {
    "start Python": GREY,
    "import numpy": "#56B4E9",
    "import cv2": "#009E73",
    "import onnxruntime": "#CC79A7",
    "import torch": "#D55E00",
    "import the library": OURS_COLOUR,
    "read the photo": "#555555",
    "open the model": "#E69F00",
    "first prediction": "#F0E442",
}


def startup(record: Record) -> Iterator[tuple[str, Any]]:
    """``""``: the steps to the first result upon each other, a bar for each way; a panel for each model and cache."""
    panels_of = list(dict.fromkeys((r.labels["model"], r.labels["cache"]) for r in record.rows if "cache" in r.labels))
    ways_of = {key: _ways(record, *key) for key in panels_of}
    if not panels_of:
        return
    counts = [len(ways) for ways in ways_of.values()]
    drawn = figure(1.9 + sum(ROW * count + 0.75 for count in counts))
    heights = [1.4, *(count + 1 for count in counts)]
    top, *panels = drawn.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights})
    shown: dict[str, Any] = {}
    for axes, ((model, cache), ways) in zip(panels, ways_of.items(), strict=True):
        longest = 0.0
        for height, way in enumerate(ways):
            steps = {str(r.labels["step"]): r.values for r in record.find(model=model, cache=cache, way=way)}
            end = 0.0
            for step in STEPS[:-1]:
                if step in steps:
                    length = steps[step]["p50"]
                    shown[step] = axes.barh(height, length, 0.72, left=end, color=STEP_COLOURS[step])
                    end += length
            axes.annotate(_arrival(steps, end), (end, height), (6, 0), textcoords="offset points", va="center")
            longest = max(longest, end)
        axes.set_yticks(range(len(ways)), ways)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * longest)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{model}, {cache} file cache")
    panels[-1].set_xlabel("ms")
    _legend(top, {step: shown[step] for step in STEPS if step in shown}, 5)
    caption = "Each bar adds up the medians of the steps; the figure beside it is the median of whole starts."
    titles(drawn, "From the start of the process to the first landmarks", record, caption)
    yield "", drawn


def _legend(axes: Any, shown: Mapping[str, Any], columns: int) -> None:
    """What the panels below share, in a panel that holds nothing else."""
    axes.set_axis_off()
    axes.legend(shown.values(), shown, loc="center", ncols=columns, fontsize=9, borderaxespad=0)


def _ways(record: Record, model: Any, cache: Any) -> list[str]:
    """Those of a panel, soonest result first, ways without one last."""
    ways = dict.fromkeys(str(row.labels["way"]) for row in record.find(model=model, cache=cache))
    totals = {row.labels["way"]: row.values["p50"] for row in record.find(model=model, cache=cache, step=TOTAL)}
    return sorted(ways, key=lambda way: totals.get(way, float("inf")))


def _arrival(steps: Mapping[str, Mapping[str, float]], end: float) -> str:
    return f"{number(steps[TOTAL]['p50'])} ms" if TOTAL in steps else f"{number(end)} ms, imports only"


def settings(record: Record) -> Iterator[tuple[str, Any]]:
    """A plot for each model: a line for each setting, its times left, what it changes right, the chosen one marked.

    The two are beside each other and not against each other, since most settings change as good as nothing: their
    names would lie upon each other.
    """
    timed = record.find(statistic="time")
    for model in dict.fromkeys(row.labels["model"] for row in timed):
        of_model = [row for row in timed if row.labels["model"] == model]
        yield str(model).replace("/", "-"), _settings(record, str(model), of_model)


def _settings(record: Record, model: str, timed: list[Row]) -> Any:
    counts = sorted({int(row.labels["boxes"]) for row in timed})
    most = {_setting(row): row for row in timed if row.labels["boxes"] == counts[-1]}
    ordered = sorted(most.values(), key=lambda row: row.values["p50"])
    drawn = figure(1.6 + ROW * len(ordered))
    panels = drawn.subplots(1, len(counts) + 1, sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, counts, strict=False):
        for height, row in enumerate(ordered):
            for found in (
                other for other in timed if _setting(other) == _setting(row) and other.labels["boxes"] == count
            ):
                _dot(axes, found, height)
        axes.set_title(f"batch {count}, ms")
        axes.set_xlim(left=0)
    change, unit = _changes(record, ordered, panels[-1])
    panels[-1].set_title(change)
    panels[-1].set_xlabel(unit)
    panels[0].set_yticks(range(len(ordered)), [_name(row) for row in ordered])
    for label, row in zip(panels[0].get_yticklabels(), ordered, strict=True):
        label.set_fontweight("bold" if "default" in row.labels else "normal")
    panels[0].invert_yaxis()
    caption = (
        "Network alone. Dot: median, line: its 95 % interval. Changes are against ONNX Runtime on the graph as it was "
        "exported; at the left border: none. Bold and blue: what Predictor runs."
    )
    titles(drawn, f"Settings of the engines, {model}", record, caption)
    return drawn


def _dot(axes: Any, row: Row, height: int) -> None:
    chosen = "default" in row.labels
    colour = OURS_COLOUR if chosen else "#555555"
    values = row.values
    if "low" in values:
        axes.plot((values["low"], values["high"]), (height, height), color=colour, linewidth=1.2)
    axes.plot(values["p50"], height, marker="D" if chosen else "o", color=colour)


def _changes(record: Record, ordered: list[Row], axes: Any) -> tuple[str, str]:
    """Dots of the mean landmark change; of a model with random weights of the heatmaps'. Returns title and unit."""
    statistic, value, texts = "landmark change", "mean", ("landmarks move", "mean, px of the crop")
    if not record.find(model=ordered[0].labels["model"], statistic=statistic):
        statistic, value, texts = "heatmap difference", "value", ("heatmaps differ", "at most, of the highest value")
    axes.set_xscale("log")
    least = LOG_TO
    heights = {}
    for height, row in enumerate(ordered):
        own = {key: row.labels[key] for key in ("engine", "setting", "precision", "model")}
        for found in record.find(**own, statistic=statistic, pictures="scenes"):
            heights[height] = (row, found.values[value])
            least = min(least, found.values[value] or LOG_TO)
    border = max(LOG_FROM, least / 3)
    for height, (row, change) in heights.items():
        chosen = "default" in row.labels
        looks = {"marker": "D" if chosen else "o", "color": OURS_COLOUR if chosen else "#555555"}
        axes.plot(max(change, border), height, clip_on=False, **looks)
    axes.set_xlim(left=border)
    return texts


def _setting(row: Row) -> tuple[str, str, str]:
    return str(row.labels["engine"]), str(row.labels["setting"]), str(row.labels["precision"])


def _name(row: Row) -> str:
    engine, setting, precision = _setting(row)
    return f"{engine}, {setting}, {precision}"


def kernels(record: Record) -> Iterator[tuple[str, Any]]:
    """``""``: for each case a dot for each way, on a logarithmic axis; all threads, or a GPU."""
    timed = [row for row in record.rows if "time" in (row.labels.get("statistic"), row.labels.get("figure"))]
    most = max((int(row.labels["threads"]) for row in timed if "threads" in row.labels), default=None)
    timed = [row for row in timed if row.labels.get("threads") == most]
    if not timed:
        return
    cases = list(dict.fromkeys((str(row.labels["kernel"]), str(row.labels["case"])) for row in timed))
    ways = sorted(dict.fromkeys(str(row.labels["way"]) for row in timed), key=lambda way: way != OURS)
    drawn = figure(2.3 + ROW * len(cases))
    top, axes = drawn.subplots(2, 1, gridspec_kw={"height_ratios": (1.5, len(cases) + 1)})
    shown = {}
    for index, way in enumerate(ways):
        found = [row for row in timed if row.labels["way"] == way]
        heights = [cases.index((str(row.labels["kernel"]), str(row.labels["case"]))) for row in found]
        looks = line_of(way, index) if way == OURS else {"color": palette(index + 1), "marker": "sD^v<>P*X"[index % 9]}
        (shown[way],) = axes.plot([row.values["p50"] for row in found], heights, **{**looks, "linestyle": ""})
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.margins(x=0.08, y=0.5 / len(cases))
    axes.set_yticks(range(len(cases)), [f"{kernel}: {case}" for kernel, case in cases])
    axes.invert_yaxis()
    axes.set_xlabel(timed[0].unit)
    _legend(top, shown, 3)
    threads = f" with {most} threads" if most else ""
    titles(drawn, f"Kernels{threads}, ours beside others", record, "Median. The axis is logarithmic.")
    yield "", drawn
