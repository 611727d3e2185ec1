"""Records of the suites that are scripts: nested figures become the rows of a record (records.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepose.benchmarks.records import Row, make_record

__all__ = ["FOLDER", "save", "summary"]

FOLDER = Path(__file__).parent / "results"
NAMES = ("part", "case", "figure", "detail")  # of the labels, from the outermost key inwards


def summary(times: list[float]) -> dict[str, float]:
    """Median, p95 and minimum of times in ms."""
    return {"p50": float(np.median(times)), "p95": float(np.percentile(times, 95)), "min": float(min(times))}


def save(suite: str, figures: Mapping[str, Any], *, unit: str = "ms") -> Path:
    """Write results/<suite>--<device>.json; an older file of the same suite and device is replaced.

    Args:
        suite: its name.
        figures: numbers, in objects up to four deep. Texts become notes.
        unit: of the numbers.
    """
    rows, notes = list(rows_of(figures, unit)), [f"{key}: {text}" for key, text in figures.items() if _is_text(text)]
    record = make_record(suite, rows, notes=notes)
    script = f"python benchmarks/{Path(sys.argv[0]).name}"
    command = " ".join([script, *record.environment["command"].split(" ")[1:]])
    return record.__class__(
        record.suite, record.device, {**record.environment, "command": command}, record.rows, record.notes
    ).save(FOLDER)


def rows_of(figures: Mapping[str, Any], unit: str, path: tuple[str, ...] = ()) -> Iterator[Row]:
    """One row for the numbers of each object, labelled with the keys that lead to it."""
    values: dict[str, float] = {}
    for key, item in figures.items():
        if isinstance(item, Mapping):
            yield from rows_of(item, unit, (*path, key))
        elif isinstance(item, (list, tuple)):
            values |= {f"{key} {number}": float(value) for number, value in enumerate(item, 1)}
        elif not _is_text(item):
            values[key] = float(item)
    if values:
        yield Row(dict(zip(NAMES, path, strict=False)), unit, values)


def _is_text(item: Any) -> bool:
    return item is None or isinstance(item, (str, bool))
