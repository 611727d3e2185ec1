"""What the command line prints with: results on stdout, messages and progress on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape

__all__ = ["console", "messages", "print_rows", "track"]

console = Console()
messages = Console(stderr=True)


def track(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show a progress bar on stderr, if that is a terminal, while ``items`` are taken; ``total`` 0: unknown."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        yield from progress.track(items, total=total or None, description=escape(description))


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns; no line is broken, so that paths and commands can be copied, and piped."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        first, *more = value.split("\n")
        console.print(f"[bold]{escape(name):{width}}[/]  {escape(first)}", soft_wrap=True, highlight=False)
        for line in more:
            console.print(" " * width, escape(line), sep="  ", soft_wrap=True, highlight=False)
