"""What the command line prints with: results on stdout, messages and progress on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape

__all__ = ["console", "messages", "track"]

console = Console()
messages = Console(stderr=True)


def track(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Show a progress bar on stderr, if that is a terminal, while ``items`` are taken; ``total`` 0: unknown."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        yield from progress.track(items, total=total or None, description=escape(description))
