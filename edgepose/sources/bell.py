"""Bell: how readers wake the consumer, so that Ctrl+C may come at any moment."""

from __future__ import annotations

import contextlib
import queue

__all__ = ["Bell"]


class Bell:
    """Rung by any thread under a lock that all share; one thread waits for it, without the lock.

    Not a ``threading.Condition``: that is Python code, and a KeyboardInterrupt within it leaves the lock locked for
    ever, or unlocked and unlocked again (seen: about once in 150 interrupted streams). A lock of C in a ``with``
    statement, and a SimpleQueue, are interrupted before or after, not in between.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = False  # keeps the queue short where nobody waits for long

    def ring(self) -> None:
        """Wake who waits, or will wait next. Under the lock."""
        if not self._rung:
            self._rung = True
            self._queue.put(None)

    def silence(self) -> None:
        """Forget that it was rung: what it told is about to be looked at. Under the lock."""
        if self._rung:
            with contextlib.suppress(queue.Empty):  # it ended a wait
                self._queue.get_nowait()
            self._rung = False

    def wait(self, seconds: float) -> None:
        """Wait until it is rung, also if that was since :meth:`silence`, at most so long. Not under the lock."""
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=seconds)
