"""How ``edgepose stream`` tells what it does: a living table on a terminal, lines elsewhere, a summary at the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgepose.record import VideoRecord
from edgepose.stream_monitor import DONE

__all__ = ["print_summary", "show_progress"]

Snapshot = Callable[[], Mapping[str, Any]]

COLORS = {"running": "green", "stalled": "yellow", "reconnecting": "blue", "opening": "blue", "failed": "red"}
REFRESH = 4  # a second, of the table
LINE_EVERY = 5.0  # s between two lines where there is no terminal; a change of state is told at once
LOOK_EVERY = 0.5  # s


@contextlib.contextmanager
def show_progress(snapshot: Snapshot, console: Console) -> Iterator[None]:
    """Tell how the stream fares, from a thread: a stalled stream is told of, too."""
    if console.is_terminal:
        from rich.live import Live

        with Live(
            get_renderable=lambda: _table(snapshot()), console=console, refresh_per_second=REFRESH, transient=True
        ):
            yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_lines, args=(snapshot, console, stop), name="edgepose progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def print_summary(
    snapshot: Mapping[str, Any], records: Mapping[int, VideoRecord], jsonl: tuple[str, int] | None, console: Console
) -> None:
    """What came of each source, where the time went, and the files.

    Args:
        snapshot: the last one.
        records: the recordings, by source.
        jsonl: the JSON Lines file and its number of lines.
        console: where to print.
    """

    def tell(text: str) -> None:
        console.print(escape(text), soft_wrap=True, highlight=False)

    for source in snapshot["sources"]:
        tell(f"{_name(source, snapshot)}: {_line(source, over=True)}")
        if source["error"]:
            tell(f"  {source['error']}")
    if snapshot["stages_ms"]:
        tell(f"by stage, median ms: {_stage_text(snapshot)}")
    for record in records.values():
        extra = [f"{record.repeated} repeated" if record.repeated else "", f"{record.left_out} left out"]
        notes = ", ".join(note for note in (extra[0], extra[1] if record.left_out else "") if note)
        for path in record.paths:
            tell(f"video {path}: {record.fps:g} frames a second" + (f" ({notes})" if notes else ""))
    if jsonl is not None:
        tell(f"results {jsonl[0]}: {jsonl[1]} lines")


def _table(snapshot: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("source", overflow="ellipsis", no_wrap=True, max_width=44)
    table.add_column("state", no_wrap=True)
    for heading in ("frames/s", "read/s", "p50 ms", "p95 ms", "dropped", "reconnects", "objects"):
        table.add_column(heading, justify="right", no_wrap=True)
    for source in snapshot["sources"]:
        latency = source["latency_ms"] or {}
        table.add_row(
            escape(_name(source, snapshot)),
            Text(_state(source), COLORS.get(source["state"], "dim")),
            f"{source['fps_out']:.1f}",
            f"{source['fps_in']:.1f}",
            *(f"{latency[key]:.1f}" if key in latency else "-" for key in ("p50", "p95")),
            *(str(source[name]) for name in ("dropped", "reconnects", "objects")),
        )
    stages = Text(f"by stage, median ms: {_stage_text(snapshot)}" if snapshot["stages_ms"] else "", "dim")
    errors = [
        Text(
            f"{_name(source, snapshot)}: {source['error']}", COLORS[source["state"]], overflow="ellipsis", no_wrap=True
        )
        for source in snapshot["sources"]
        if source["error"] and source["state"] in ("stalled", "reconnecting", "failed")
    ]
    return Group(table, stages, *errors)


def _lines(snapshot: Snapshot, console: Console, stop: threading.Event) -> None:
    told: dict[int, str] = {}
    due = LINE_EVERY
    while not stop.wait(LOOK_EVERY):
        now = snapshot()
        regular = now["uptime_s"] >= due
        if regular:
            due = now["uptime_s"] + LINE_EVERY
        for source in now["sources"]:
            if regular or told.get(source["source"]) != source["state"]:
                told[source["source"]] = source["state"]
                trouble = f" ({source['error']})" if source["error"] and source["state"] != "running" else ""
                text = f"{_name(source, now)}: {_line(source)}{trouble}"
                console.print(escape(text), soft_wrap=True, highlight=False)


def _name(source: Mapping[str, Any], snapshot: Mapping[str, Any]) -> str:
    """With its number where there are several, which may be called alike."""
    return source["name"] if len(snapshot["sources"]) == 1 else f"{source['source']} {source['name']}"


def _line(source: Mapping[str, Any], *, over: bool = False) -> str:
    """A source in one line; ``over``: there will be no more of it, so that no rates are told."""
    stopped = over and source["state"] not in DONE
    parts = ["stopped" if stopped else _state(source), _count(source["delivered"], "frame")]
    if not over:
        parts.append(f"{source['fps_out']:.1f} of {source['fps_in']:.1f} a second")
    if latency := source["latency_ms"]:
        parts.append(f"latency p50 {latency['p50']:.1f} ms, p95 {latency['p95']:.1f} ms")
    parts.append(f"{source['dropped']} dropped")
    if source["reconnects"]:
        parts.append(_count(source["reconnects"], "reconnect"))
    return ", ".join(parts)


def _state(source: Mapping[str, Any]) -> str:
    stalled = source["state"] == "stalled" and source["silent_s"] is not None
    return f"stalled for {source['silent_s']:.0f} s" if stalled else str(source["state"])


def _stage_text(snapshot: Mapping[str, Any]) -> str:
    shown = {name: pair for name, pair in snapshot["stages_ms"].items() if pair["p95"] >= 0.005}
    return ", ".join(f"{name} {pair['p50']:.2f}" for name, pair in shown.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
