"""An MJPEG camera on the loopback, with faults: what it does at each connection is a list of scenes."""

from __future__ import annotations

import contextlib
import http.server
import random
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

import cv2
import numpy as np

BOUNDARY = "frame"
INTERVAL = 0.02  # s between frames
SIZE = (64, 48)

Scene = Callable[["Connection"], None]


class Connection:
    """What a scene acts on."""

    def __init__(self, handler: http.server.BaseHTTPRequestHandler, server: MjpegServer) -> None:
        self._handler, self._server = handler, server

    @property
    def stopping(self) -> threading.Event:
        return self._server.stopping

    def begin(self, status: int = 200) -> None:
        self._handler.send_response(status)
        self._handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self._handler.end_headers()

    def frames(self, count: int | None, size: tuple[int, int] = SIZE) -> None:
        sent = 0
        while (count is None or sent < count) and not self.stopping.wait(INTERVAL):
            self.send(self._part(self._server.next_number(), size))
            sent += 1

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def half_a_frame(self) -> None:
        part = self._part(0, SIZE)
        self.send(part[: len(part) // 2])

    @staticmethod
    def _part(number: int, size: tuple[int, int]) -> bytes:
        image = np.full((size[1], size[0], 3), number % 200, np.uint8)
        data = cv2.imencode(".jpg", image)[1].tobytes()
        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data + b"\r\n"


def plays(count: int | None = None, size: tuple[int, int] = SIZE) -> Scene:
    """Sends frames, and ends the connection properly."""

    def scene(connection: Connection) -> None:
        connection.begin()
        connection.frames(count, size)

    return scene


def stalls(after: int) -> Scene:
    """Sends frames, and then nothing, without closing."""

    def scene(connection: Connection) -> None:
        connection.begin()
        connection.frames(after)
        connection.stopping.wait()

    return scene


def silent(connection: Connection) -> None:
    """Accepts, and never answers."""
    connection.stopping.wait()


def dies_within_a_frame(after: int) -> Scene:
    def scene(connection: Connection) -> None:
        connection.begin()
        connection.frames(after)
        connection.half_a_frame()

    return scene


def garbage(connection: Connection) -> None:
    connection.begin()
    connection.send(random.Random(7).randbytes(20000))


def refuses(status: int) -> Scene:
    def scene(connection: Connection) -> None:
        connection.begin(status)

    return scene


class MjpegServer:
    """``with MjpegServer([scene, ...]) as server: server.url``; the last scene is repeated."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = scenes
        self.connections = 0
        self.stopping = threading.Event()
        self._number = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with owner._lock:
                    scene = owner._scenes[min(owner.connections, len(owner._scenes) - 1)]
                    owner.connections += 1
                with contextlib.suppress(OSError):  # the client has gone
                    scene(Connection(self, owner))

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/camera.mjpg"

    def next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def __enter__(self) -> MjpegServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()
