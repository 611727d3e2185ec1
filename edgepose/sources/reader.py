"""What every reader of frames has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Captured", "Reader", "without_password"]


@dataclass(frozen=True)
class Captured:
    """A frame as a reader hands it over.

    Attributes:
        frame: as ``predict`` takes it, see :mod:`edgepose.frames`; a device frame is passed through untouched.
        time: s, the frame's time stamp in its file or as the caller gave it; None: it has none, the moment of arrival
            counts.
    """

    frame: Any
    time: float | None = None


class Reader(Protocol):
    """An open source. One thread reads and closes it; only ``cancel`` may be called from another."""

    @property
    def backend(self) -> str:
        """What reads, for instance ``opencv``."""
        ...

    @property
    def live(self) -> bool:
        """Whether frames come at their own pace and are lost if nobody takes them; its end is then a lost connection.

        Known for certain only once the source is open: an HTTP address may be a camera or a recorded file.
        """
        ...

    @property
    def note(self) -> str | None:
        """What was wrong with the source although it could be read, for instance that it is cut off; None: nothing."""
        ...

    def read(self) -> Captured | None:
        """The next frame; blocks until it is there. None: the source has ended.

        Raises:
            SourceError: the source is lost or damaged beyond reading.
            Exception: what an iterator of the caller's raised.
        """
        ...

    def cancel(self) -> None:
        """Make a ``read`` in another thread return soon, where that is possible; never blocks."""
        ...

    def close(self) -> None:
        """Free the source. Closing twice is fine."""
        ...


def without_password(url: str) -> str:
    """An address without user and password: it goes into messages, logs, statistics and web pages."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
