"""Ctrl-C and SIGTERM as wishes that training fulfils at the end of a step, when its state can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from edgepose.console import messages

__all__ = ["Interrupt", "outlast_interrupts"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 30  # seconds; what clusters grant between SIGTERM and SIGKILL


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one ends the process at once.

    Attributes:
        signal: the one that came, 0 until then.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            raise self.exception()
        self.signal = number
        messages.print("stopping when this step is done and saved; once more: at once", highlight=False)

    def exception(self) -> BaseException:
        """What ends the process with the usual exit code: KeyboardInterrupt (130) or SystemExit(143)."""
        if self.signal == signal.SIGINT:
            return KeyboardInterrupt()
        return SystemExit(128 + signal.SIGTERM)


def outlast_interrupts() -> None:
    """For data loading processes: a signal to the whole process group must not take away the samples of the last step.

    SIGINT is ignored; after SIGTERM they work on for a while, so that one that somebody means to end does end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
