"""Plots of a record, PNG and SVG, deterministic: `edgepose bench plot FILE...`; each suite draws its own at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgepose.benchmarks import plots_latency, plots_scaling, plots_studies, plots_tracking
from edgepose.benchmarks.plots_style import check_matplotlib, save, style
from edgepose.benchmarks.records import Record

__all__ = ["PLOTTED", "plot"]

# Each yields (what: part of the file's name, "" for the suite's main plot; the figure)
PLOTTED: dict[str, Callable[[Record], Iterator[tuple[str, Any]]]] = {
    "latency": plots_latency.latency,
    "throughput": plots_latency.throughput,
    "scaling": plots_scaling.scaling,
    "startup": plots_studies.startup,
    "settings": plots_studies.settings,
    "kernels": plots_studies.kernels,
    "tracking": plots_tracking.tracking,
}


def plot(record: Record, folder: str | Path) -> list[Path]:
    """Draw what there is to draw of a record.

    Args:
        record: of any suite. One without plots, or without the rows that a plot needs, gets none.
        folder: where ``suite[-what]--device.png`` and ``.svg`` go; older ones are replaced.

    Returns:
        The files.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InputError: a file cannot be written.
    """
    if record.suite not in PLOTTED:
        return []
    check_matplotlib()
    paths = []
    with style():
        for what, figure in PLOTTED[record.suite](record):
            paths += save(record, Path(folder), what, figure)
    return paths
