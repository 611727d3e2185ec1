"""The plot of `edgepose bench tracking`: a landmark at rest and moving, raw and smoothed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgepose.benchmarks.plots_style import GREY, OURS_COLOUR, figure, titles
from edgepose.benchmarks.records import Record

__all__ = ["tracking"]

COLOURS = {"true": "#000000", "raw": GREY, "smoothed": OURS_COLOUR}
FPS = 30.0  # of the rendered clips


def tracking(record: Record) -> Iterator[tuple[str, Any]]:
    """``""``: the curves of the first garment, one scene beside the other."""
    curves = [row for row in record.rows if "curve" in row.labels]
    scenes = list(dict.fromkeys(str(row.labels["scene"]) for row in curves))
    if not scenes:
        return
    drawn = figure(3.6)
    for axes, scene in zip(drawn.subplots(1, len(scenes), squeeze=False)[0], scenes, strict=True):
        for row in (row for row in curves if row.labels["scene"] == scene):
            name = str(row.labels["curve"])
            times = [int(number) / FPS for number in row.values]
            axes.plot(times, list(row.values.values()), color=COLOURS[name], linewidth=1.3, label=name)
        axes.set(title=scene, xlabel="time, s", ylabel="x of a landmark, px")
        axes.legend()
    caption = "A rendered garment with sensor noise, its boxes from a detection in every tenth frame."
    titles(drawn, "A landmark, raw and smoothed", record, caption)
    yield "", drawn
