"""The page of ``edgepose stream --view``: what a stream shows and how it fares, in a browser.

The stream only hands over its newest item (:meth:`Viewer.publish`, some microseconds). All else happens in the threads
of those who watch: the first of them that wants a picture draws and encodes it, the others take the same bytes, and
without them nothing is drawn. A slow or vanished watcher misses pictures; it holds up nobody.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EdgePoseError, InputError
from edgepose.frames import as_bgr
from edgepose.record import host_frame
from edgepose.result import MIN_SCORE

if TYPE_CHECKING:
    from edgepose.stream import StreamItem
    from edgepose.view_server import ViewServer

__all__ = ["Feed", "Picture", "Viewer", "is_loopback"]

LIVE_SIDE = 1280  # px, the longer side of a moving picture; a snapshot has the frame's size
LIVE_QUALITY, SNAPSHOT_QUALITY = 80, 95  # JPEG
POLL = 0.1  # s; how often the server looks whether it is to stop
LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})


@dataclass(frozen=True)
class Picture:
    """An encoded frame.

    Attributes:
        sequence: counts the items that were published of its source, from 1.
        jpeg: the file.
        item: what it shows.
    """

    sequence: int
    jpeg: bytes
    item: StreamItem


@dataclass
class _Form:
    """One way to encode a frame, and the last picture of it."""

    overlay: bool
    live: bool
    lock: threading.Lock = field(default_factory=threading.Lock)
    picture: Picture | None = None


class Feed:
    """The newest frame of one source, drawn and encoded at most once in each form, and only when somebody asks."""

    def __init__(self, min_score: float = MIN_SCORE) -> None:
        self._min_score = min_score
        self._newest: tuple[int, StreamItem | None] = (0, None)  # replaced as a whole: no reader sees half of it
        self._forms = {(o, live): _Form(o, live) for o in (False, True) for live in (False, True)}
        self.encoded = 0  # pictures made so far

    @property
    def sequence(self) -> int:
        """How many items were published."""
        return self._newest[0]

    def put(self, item: StreamItem) -> None:
        """Replace the newest item; for one thread only."""
        self._newest = (self._newest[0] + 1, item)

    def picture(self, *, overlay: bool, live: bool) -> Picture | None:
        """The newest frame as JPEG; None before the first.

        Args:
            overlay: with boxes, skeletons and landmarks.
            live: at most ``LIVE_SIDE`` px wide and high; False: in full, of a higher quality.
        """
        form = self._forms[overlay, live]
        with form.lock:  # the others who want this picture wait for it here
            sequence, item = self._newest
            if item is None:
                return None
            if form.picture is None or form.picture.sequence != sequence:
                form.picture = Picture(sequence, self._encode(item, form), item)
                self.encoded += 1
            return form.picture

    def _encode(self, item: StreamItem, form: _Form) -> bytes:
        frame = as_bgr(host_frame(item.frame))
        image = item.result.draw(frame, min_score=self._min_score) if form.overlay else frame
        if form.live:
            image = _shrunk(image, LIVE_SIDE)
        quality = LIVE_QUALITY if form.live else SNAPSHOT_QUALITY
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise EdgePoseError(f"a frame of {frame.shape[1]} x {frame.shape[0]} px cannot be encoded as JPEG")
        return bytes(data)


class Viewer:
    """Serves the page. Threads of its own answer; :meth:`publish` is for the thread that takes the stream's items.

    Args:
        sources: what each source is called on the page.
        stats: gives the figures, as :meth:`edgepose.stream_monitor.StreamMonitor.snapshot` does; called by any thread.
        title: the model's name.
        host: the address to listen on: 127.0.0.1 and ::1 are reached from this machine alone.
        port: 0 takes a free one; see ``url``.
        names: further names that this machine may be called by in a URL, for instance behind a proxy.
        min_score: landmarks below it are not drawn.

    Raises:
        InputError: the address cannot be listened on.
    """

    def __init__(
        self,
        sources: Sequence[str],
        stats: Callable[[], Mapping[str, Any]],
        *,
        title: str = "edgepose",
        host: str = "127.0.0.1",
        port: int = 8000,
        names: Sequence[str] = (),
        min_score: float = MIN_SCORE,
    ) -> None:
        from edgepose.view_server import ViewServer

        self.sources = list(sources)
        self.feeds = [Feed(min_score) for _ in sources]
        self.title = title
        self.run = secrets.token_hex(8)  # a page that is still open learns from it that another run answers
        self.closing = False
        self.news = threading.Condition()
        self._stats = stats
        try:
            self._server: ViewServer | None = ViewServer(self, host, port, names)
        except (OSError, OverflowError) as error:
            hint = "" if port == 0 else f": another program may use it, try --port {port % 65535 + 1}, or 0 for any"
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"the page cannot be served on {host} port {port} ({reason}){hint}") from None
        self.url = self._server.url
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(POLL,), name="edgepose view", daemon=True)
        self._thread.start()

    def publish(self, item: StreamItem) -> None:
        """Show an item. Returns at once; the item's frame must not be changed any more."""
        self.feeds[item.source].put(item)
        with self.news:
            self.news.notify_all()

    def stats(self) -> dict[str, Any]:
        """The figures, with what the page needs besides."""
        return {"schema": 1, "run": self.run, "title": self.title, **self._stats()}

    def close(self) -> None:
        """Tell those who watch how it ended, and stop serving. Closing twice is fine."""
        server, self._server = self._server, None
        if server is None:
            return
        with self.news:
            self.closing = True
            self.news.notify_all()
        server.shutdown()
        server.finish(timeout=2.0)
        server.server_close()
        self._thread.join()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_loopback(host: str) -> bool:
    """Whether an address or a name reaches this machine from itself alone."""
    import ipaddress

    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        name = host.lower().rstrip(".")
        return name in LOOPBACK_NAMES or name.endswith(".localhost")


def _shrunk(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
