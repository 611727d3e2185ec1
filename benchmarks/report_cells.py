"""Cells and tables of the blocks that `edgepose bench report` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgepose.benchmarks.records import Row

__all__ = ["ms", "number", "ratio", "table", "value"]


def value(row: Row, key: str) -> float:
    """The number of a row that has this name, or stands for it."""
    for name in (key, "value", "p50", "median"):
        if name in row.values:
            return float(row.values[name])
    return float(next(iter(row.values.values())))


def number(row: Row) -> str:
    """Four digits of the number that stands for a row."""
    return f"{value(row, 'p50'):.4g}"


def ms(time: float | None) -> str:
    """Three digits that mean something, and none that do not."""
    if time is None:
        return ""
    return f"{time:.0f}" if time >= 100 else f"{time:.1f}" if time >= 10 else f"{time:.2f}"


def ratio(values: Mapping[str, float]) -> str:
    """So many times, and its interval."""
    bounds = f" ({values['low']:.2f} to {values['high']:.2f})" if "low" in values and "high" in values else ""
    return f"{values['value']:.2f}x{bounds}"


def table(header: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
    """In Markdown."""
    rows = [list(map(str, header)), *(list(map(str, line)) for line in lines)]
    if len(rows) == 1:
        return "*No row of the record belongs here.*"
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    text = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([text[0], "|" + "---|" * len(cells[0]), *text[1:]])
