"""Plots of latency and throughput: ways beside each other, over boxes and over frame sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgepose.benchmarks import latency_rows
from edgepose.benchmarks.latency_rows import Place, frame_name, main_place, places, stages, timed, way_of
from edgepose.benchmarks.plots_style import GREY, OURS_COLOUR, STAGE_COLOURS, figure, from_zero, line_of, number, titles
from edgepose.benchmarks.records import Record, Row
from edgepose.benchmarks.ways import OURS

__all__ = ["latency", "throughput"]

BAR = 0.32  # inches of a bar's place


def latency(record: Record) -> Iterator[tuple[str, Any]]:
    """``""``: bars of the ways, for each model; ``boxes`` and ``frame``: lines over them."""
    main = [place for model in _models(record) if (place := main_place(record, model))]
    if not main:
        return
    yield "", _bars(record, main)
    yield from _curves(record, main, "boxes")
    yield from _curves(record, main, "frame")


def _models(record: Record) -> list[str]:
    return list(dict.fromkeys(place.model for place in places(record)))


def _bars(record: Record, main: Sequence[Place]) -> Any:
    counts = [len(timed(record, place)) for place in main]
    drawn = figure(1.1 + sum(BAR * count + 0.75 for count in counts))
    panels = drawn.subplots(len(main), 1, squeeze=False, gridspec_kw={"height_ratios": [c + 1 for c in counts]})
    shown: dict[str, Any] = {}
    for axes, place in zip(panels[:, 0], main, strict=True):
        rows = timed(record, place)
        for height, row in enumerate(rows):
            shown |= _bar(axes, record, row, height)
        axes.set_yticks(range(len(rows)), [way_of(row) for row in rows])
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row.labels["way"] == OURS else "normal")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1.3 * max(_end(row) for row in rows))
        axes.set_title(f"{place.model}, {place.boxes} boxes on {frame_name(place.frame)}")
    panels[-1, 0].set_xlabel("ms")
    if shown:
        # The fastest are on top, so that there is room beside them
        panels[0, 0].legend(shown.values(), shown, loc="upper right", title="ours, by stage", fontsize=9)
    caption = (
        "Bar: median, end to end. Whisker: fastest run to p95. x: how many times as fast as that way edgepose is at "
        "the same precision, median of the rounds' ratios."
    )
    titles(drawn, "Latency: from a frame and boxes to landmarks", record, caption)
    return drawn


def _bar(axes: Any, record: Record, row: Row, height: int) -> dict[str, Any]:
    """One way; returns what its stages look like, by name."""
    middle, shown = row.values["p50"], {}
    ours = row.labels["way"] == OURS
    parts = stages(record, row) if ours else {}
    start = 0.0
    for stage, length in parts.items():
        shown[stage] = axes.barh(height, length, 0.72, left=start, color=STAGE_COLOURS.get(stage, GREY))
        start += length
    if not parts:
        axes.barh(height, middle, 0.72, color=OURS_COLOUR if ours else GREY)
    axes.plot((row.values["min"], row.values["p95"]), (height, height), color="black", linewidth=1.1, marker="|")
    ratio = None if ours else latency_rows.lead(record, row, str(row.labels["precision"]))
    text = f"{number(middle)} ms" + (f"   {ratio['value']:.2f} x" if ratio else "")
    axes.annotate(text, (_end(row), height), (6, 0), textcoords="offset points", va="center")
    return shown


def _end(row: Row) -> float:
    return max(row.values["p50"], row.values["p95"])


def _curves(record: Record, main: Sequence[Place], over: str) -> Iterator[tuple[str, Any]]:
    """A panel for each model: total over the boxes on its main frame, or over the frames with its main boxes."""
    series = {place: _series(record, place, over) for place in main}
    series = {place: ways for place, ways in series.items() if any(len(points) > 1 for points in ways.values())}
    if not series:
        return
    drawn = figure(0.9 + 3.4 * len(series))
    panels = drawn.subplots(len(series), 1, squeeze=False)[:, 0]
    names = list(dict.fromkeys(way for ways in series.values() for way in ways))
    for axes, (place, ways) in zip(panels, series.items(), strict=True):
        last = {way: max(points)[1] for way, points in ways.items()}
        for way in sorted(ways, key=lambda name: -last[name]):  # so that the legend is in the lines' order
            x, y, low, high = zip(*sorted(ways[way]), strict=True)
            looks = line_of(way, names.index(way))
            axes.plot(x, y, label=way, **looks)
            axes.fill_between(x, low, high, color=looks["color"], alpha=0.15, linewidth=0)
        _ticks(axes, record, place, over)
        fixed = frame_name(place.frame) if over == "boxes" else f"{place.boxes} boxes"
        axes.set_title(f"{place.model}, {fixed}")
        axes.set_ylabel("ms")
        from_zero(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    panels[-1].set_xlabel("boxes" if over == "boxes" else "frame")
    what = "the number of boxes" if over == "boxes" else "the frame's size"
    titles(drawn, f"Latency over {what}", record, "Line: median, end to end. Band: its 95 % interval.")
    yield over, drawn


def _series(record: Record, main: Place, over: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """By way: (x, median, low, high)."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for place in places(record):
        if place.model == main.model and (place.frame == main.frame if over == "boxes" else place.boxes == main.boxes):
            x = place.boxes if over == "boxes" else latency_rows.pixels(place.frame) / 1e6
            for row in timed(record, place):
                middle, values = row.values["p50"], row.values
                points = found.setdefault(way_of(row), [])
                points.append((x, middle, values.get("low", middle), values.get("high", middle)))
    return found


def _ticks(axes: Any, record: Record, main: Place, over: str) -> None:
    of_model = [place for place in places(record) if place.model == main.model]
    if over == "boxes":
        axes.set_xticks(sorted({place.boxes for place in of_model if place.frame == main.frame}))
    else:
        frames = {place.frame for place in of_model if place.boxes == main.boxes}
        axes.set_xticks([latency_rows.pixels(frame) / 1e6 for frame in frames], [frame_name(frame) for frame in frames])


def throughput(record: Record) -> Iterator[tuple[str, Any]]:
    """``""``: bars of ways and arrangements, most frames first; a panel for each model and number of boxes."""
    panels_of: dict[str, list[Row]] = {}
    for row in record.rows:
        if row.unit == "frames/s":
            parts = [str(row.labels["model"])]
            parts += [f"{row.labels['boxes']} boxes a frame"] if "boxes" in row.labels else []
            panels_of.setdefault(", ".join(parts), []).append(row)
    if not panels_of:
        return
    counts = [len(of_panel) for of_panel in panels_of.values()]
    drawn = figure(1.1 + sum(BAR * count + 0.75 for count in counts))
    panels = drawn.subplots(len(counts), 1, squeeze=False, gridspec_kw={"height_ratios": [c + 1 for c in counts]})
    for axes, (title, of_panel) in zip(panels[:, 0], panels_of.items(), strict=True):
        ordered = sorted(of_panel, key=_rate, reverse=True)
        for height, row in enumerate(ordered):
            axes.barh(height, _rate(row), 0.72, color=OURS_COLOUR if row.labels["way"] == OURS else GREY)
            if "low" in row.values:
                axes.plot((row.values["low"], row.values["high"]), (height, height), "k|-", linewidth=1.1)
            end = max(_rate(row), row.values.get("high", 0))
            axes.annotate(number(_rate(row)), (end, height), (6, 0), textcoords="offset points", va="center")
        names = [_arranged(row) for row in ordered]
        axes.set_yticks(range(len(ordered)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1.15 * max(max(_rate(row), row.values.get("high", 0)) for row in ordered))
        axes.set_title(title)
    panels[-1, 0].set_xlabel("frames/s")
    titles(drawn, "Throughput, by way and arrangement", record, "Bar: median. Whisker: its 95 % interval.")
    yield "", drawn


def _rate(row: Row) -> float:
    return row.values["p50"] if "p50" in row.values else row.values["value"]


def _arranged(row: Row) -> str:
    name = way_of(row) if "precision" in row.labels else str(row.labels["way"])
    several = f", {row.labels['frames']} frames a call" if row.labels.get("frames", 1) != 1 else ""
    return f"{name}: {row.labels['arrangement']}{several}"
