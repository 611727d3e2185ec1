"""The web server behind :mod:`edgepose.view`: Python's own, a thread for each connection, reading only.

| path                              | what it gives                                                                    |
|-----------------------------------|----------------------------------------------------------------------------------|
| ``/``                             | the page, with ``/app.js``, ``/style.css`` and ``/icon.svg``                     |
| ``/live?overlay=1&video=1``       | all sources and the figures in one connection, see below                         |
| ``/stream/<n>.mjpg?overlay=1``    | one source as MJPEG, for an ``img`` element or a player                          |
| ``/snapshot/<n>.jpg?overlay=1``   | its newest frame in full size                                                    |
| ``/stats.json``                   | the figures, as in :meth:`edgepose.stream_monitor.StreamMonitor.snapshot`        |

``/live`` exists because browsers open at most six connections to a server: eight MJPEG streams would starve the page.
It is a sequence of messages: the lengths of header and body, two big-endian 32-bit integers, then the header, JSON,
then the body. A header of ``"type": "frame"`` comes with the JPEG as its body, one of ``"type": "stats"`` without any,
twice a second, so that silence means a lost connection.

Who may look: a server on a loopback address answers to the machine's loopback names only, elsewhere to IP addresses,
its host name and the names it was given, so that no web page can read it through a name that it lets point here (DNS
rebinding). Requests that a browser marks as another site's are refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from edgepose.view import Feed, is_loopback

if TYPE_CHECKING:
    from edgepose.view import Picture, Viewer

__all__ = ["ViewServer"]

PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
FRAME_INTERVAL = 1 / 30  # s; no watcher gets more pictures of a source than that
STATS_INTERVAL = 0.5  # s
KEEP_ALIVE = 5.0  # s after which an MJPEG stream sends a still picture again, to notice who has gone
SEND_TIMEOUT = 10.0  # s after which a watcher that takes nothing is given up
SEND_BUFFER = 1 << 18  # bytes; a larger one would hold seconds of old pictures for a slow watcher
MAX_WATCHERS = 32  # connections that stay; each holds a thread
BOUNDARY = b"edgepose-frame"


class ViewServer(ThreadingHTTPServer):
    """Listens; ``url`` is where the page is.

    Args:
        viewer: what is served.
        host: the address to listen on.
        port: 0: any that is free.
        names: further names that it answers to.

    Raises:
        OSError, OverflowError: the address cannot be listened on.
    """

    daemon_threads = True
    block_on_close = False  # a watcher that takes nothing does not hold up the end
    request_queue_size = 64
    allow_reuse_address = os.name == "posix"  # on Windows it would let two servers share a port

    def __init__(self, viewer: Viewer, host: str, port: int, names: Sequence[str]) -> None:
        self.viewer = viewer
        self.watchers = 0
        self._left = threading.Condition()
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(address[0]), int(address[1])), _Handler)
        self._loopback = is_loopback(str(address[0]))
        machine = socket.gethostname().lower()
        self._names = {name.lower().rstrip(".") for name in (*names, host, machine, f"{machine}.local")}
        shown = host if self._loopback or not ipaddress.ip_address(str(address[0])).is_unspecified else machine
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """As TCPServer does it: HTTPServer would look its own name up, which can take seconds without a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def answers_to(self, host: str) -> bool:
        """Whether the ``Host`` of a request is a name of this server."""
        name = host.strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        name = name.rstrip(".")
        if self._loopback:
            return is_loopback(name) or name in self._names
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return is_loopback(name) or name in self._names

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A watcher that has gone is no error; anything else is a bug, and shows its traceback."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def watching(self) -> Any:
        """Counts a connection that stays; gives False if there are too many."""
        with self._left:
            allowed = self.watchers < MAX_WATCHERS
            self.watchers += allowed
        try:
            yield allowed
        finally:
            with self._left:
                self.watchers -= allowed
                self._left.notify_all()

    def finish(self, timeout: float) -> None:
        """Wait until everybody who watches has heard of the end."""
        with self._left:
            self._left.wait_for(lambda: self.watchers == 0, timeout)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    server_version = "edgepose"
    sys_version = ""
    timeout = SEND_TIMEOUT

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the stream's table."""

    def _answer(self) -> None:
        viewer = self.server.viewer
        if not self.server.answers_to(self.headers.get("Host", "")):
            return self._refuse(
                HTTPStatus.FORBIDDEN,
                "This server does not answer to this name. Use the address that `edgepose stream` printed, or "
                "pass the name with --allow-host.",
            )
        url = urlsplit(self.path)
        if url.path in PAGES:
            name, kind = PAGES[url.path]
            return self._send(_page(name), kind)
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return self._refuse(HTTPStatus.FORBIDDEN, "Another web site asked for this: open the page itself.")
        query = parse_qs(url.query)
        overlay = query.get("overlay", ["1"])[-1] != "0"
        if url.path == "/stats.json":
            return self._send(_json(viewer.stats()), "application/json")
        if url.path == "/live":
            return self._stay(lambda: self._live(overlay=overlay, video=query.get("video", ["1"])[-1] != "0"))
        found = re.fullmatch(r"/(stream|snapshot)/([0-9]{1,4})\.(mjpg|jpg)", url.path)
        if found and (found[1], found[3]) in (("stream", "mjpg"), ("snapshot", "jpg")):
            number = int(found[2])
            if number >= len(viewer.feeds):
                return self._refuse(
                    HTTPStatus.NOT_FOUND, f"There is no source {number}: they are 0 to {len(viewer.feeds) - 1}."
                )
            feed = viewer.feeds[number]
            if found[1] == "stream":
                return self._stay(lambda: self._mjpeg(feed, overlay=overlay))
            return self._snapshot(feed, overlay=overlay)
        return self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    # Answers that end at once

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(kind, status, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._send(f"{text}\n".encode(), "text/plain; charset=utf-8", status)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Python's own refusals (another method, a broken request), as text and with our headers."""
        status = HTTPStatus(code)
        with contextlib.suppress(OSError):
            if not hasattr(self, "headers"):  # a request that could not be parsed
                self.command, self.request_version = "GET", "HTTP/1.0"
            if status is HTTPStatus.NOT_IMPLEMENTED:
                status, message = HTTPStatus.METHOD_NOT_ALLOWED, "This server can only be read: use GET."
            self._refuse(status, message or status.phrase)

    def _head(self, kind: str, status: HTTPStatus = HTTPStatus.OK, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _snapshot(self, feed: Feed, *, overlay: bool) -> None:
        picture = feed.picture(overlay=overlay, live=False)
        if picture is None:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "This source has not given a frame yet.")
        return self._send(picture.jpeg, "image/jpeg")

    # Answers that stay

    def _stay(self, serve: Any) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.server.watching() as allowed:
            if not allowed:
                return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_WATCHERS} others watch already.")
            with contextlib.suppress(ConnectionError, TimeoutError):
                serve()
        return None

    def _mjpeg(self, feed: Feed, *, overlay: bool) -> None:
        self._head(f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}")
        if self.command == "HEAD":
            return
        viewer, shown, sent = self.server.viewer, 0, 0.0

        def news() -> bool:
            return viewer.closing or feed.sequence != shown

        self.wfile.write(b"--" + BOUNDARY + b"\r\n")
        while not viewer.closing:
            with viewer.news:
                viewer.news.wait_for(news, KEEP_ALIVE)
            _sleep_until(sent + FRAME_INTERVAL)
            picture = feed.picture(overlay=overlay, live=True)
            sent = time.monotonic()
            if picture is not None:
                shown = picture.sequence
                # The boundary at once, not before the next frame: browsers show a part when they see its end.
                head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture.jpeg)
                self.wfile.write(head + picture.jpeg + b"\r\n--" + BOUNDARY + b"\r\n")

    def _live(self, *, overlay: bool, video: bool) -> None:
        self._head("application/octet-stream")
        if self.command == "HEAD":
            return
        viewer = self.server.viewer
        shown = [0] * len(viewer.feeds)
        next_stats = sent = 0.0

        def news() -> bool:
            fresh = video and any(feed.sequence != seen for feed, seen in zip(viewer.feeds, shown, strict=True))
            return viewer.closing or fresh

        while True:
            with viewer.news:
                viewer.news.wait_for(news, max(0.0, next_stats - time.monotonic()))
            closing = viewer.closing
            if not closing:
                _sleep_until(min(sent + FRAME_INTERVAL, next_stats))
            if closing or time.monotonic() >= next_stats:
                next_stats = time.monotonic() + STATS_INTERVAL
                self._message({"type": "stats", "closing": closing, **viewer.stats()})
            if closing and not any(feed.sequence for feed in viewer.feeds):
                return
            if video and (closing or time.monotonic() >= sent + FRAME_INTERVAL):
                sent = time.monotonic()
                for number, feed in enumerate(viewer.feeds):
                    if feed.sequence != shown[number]:
                        picture = feed.picture(overlay=overlay, live=True)
                        if picture is not None:
                            self._message(_frame_header(number, picture), picture.jpeg)
                            shown[number] = picture.sequence
            if closing:
                return

    def _message(self, header: dict[str, Any], body: bytes = b"") -> None:
        text = _json(header)
        self.wfile.write(struct.pack(">II", len(text), len(body)) + text + body)


def _frame_header(number: int, picture: Picture) -> dict[str, Any]:
    item = picture.item
    objects = [{k: v for k, v in entry.items() if k != "keypoints"} for entry in item.result.to_dict()["objects"]]
    return {
        "type": "frame",
        "source": number,
        "frame": int(item.index),
        "latency_ms": round(float(item.latency), 3),
        "timings_ms": asdict(item.result.timings),
        "frame_size": list(item.result.frame_size),
        "objects": objects,
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


@cache
def _page(name: str) -> bytes:
    return (resources.files("edgepose") / "view_page" / name).read_bytes()
