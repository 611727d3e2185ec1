"""An RTSP camera on the loopback: ffmpeg sends RTP by UDP, this relays it within the RTSP connection (RFC 2326)."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

import pytest


class RtspServer:
    """``with RtspServer(folder) as server: server.url``; one viewer at a time. ``cut()`` drops the viewer.

    Args:
        folder: where the session description is put.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("ffmpeg")
        if program is None:
            pytest.skip("needs ffmpeg")
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind(("127.0.0.1", 0))
        self._rtp.settimeout(0.2)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.2)
        self._stop, self._cut = threading.Event(), threading.Event()
        self._sdp = folder / "camera.sdp"
        picture = ("-re", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25")
        codec = ("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "5", "-pix_fmt", "yuv420p")
        target = f"rtp://127.0.0.1:{self._rtp.getsockname()[1]}?pkt_size=1200"
        self._sender = subprocess.Popen(
            [program, "-loglevel", "quiet", "-nostdin", *picture, *codec, "-f", "rtp", "-sdp_file", self._sdp, target]
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.viewers = 0

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/camera"

    def cut(self) -> None:
        self._cut.set()

    def _serve(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                connection, _ = self._listener.accept()
                with connection:
                    self.viewers += 1
                    self._cut.clear()
                    self._view(connection)

    def _view(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with connection.makefile("rb") as requests:
            while (request := self._read(requests)) is not None:
                method, headers = request
                connection.sendall(self._answer(method, headers))
                if method == "PLAY":
                    self._relay(connection)
                    return

    @staticmethod
    def _read(requests: object) -> tuple[str, dict[str, str]] | None:
        lines = []
        while line := requests.readline().decode().strip():  # type: ignore[attr-defined]
            lines.append(line)
        if not lines:
            return None
        return lines[0].split()[0], dict(line.split(": ", 1) for line in lines[1:])

    def _answer(self, method: str, headers: dict[str, str]) -> bytes:
        head = f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n"
        if method == "OPTIONS":
            return f"{head}Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n".encode()
        if method == "DESCRIBE":
            body = self._description()
            kind = "Content-Type: application/sdp\r\n"
            return f"{head}{kind}Content-Base: {self.url}/\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        if method == "SETUP":
            return f"{head}Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1;timeout=60\r\n\r\n".encode()
        return f"{head}Session: 1\r\n\r\n".encode()

    def _description(self) -> str:
        end = time.monotonic() + 5
        while not (self._sdp.exists() and "a=rtpmap" in self._sdp.read_text()):
            assert time.monotonic() < end, "ffmpeg gave no session description"
            time.sleep(0.02)
        lines = [line for line in self._sdp.read_text().splitlines() if not line.startswith(("SDP:", "a=tool"))]
        port = next(index for index, line in enumerate(lines) if line.startswith("m=video"))
        lines[port] = "m=video 0 " + lines[port].split(" ", 2)[2]
        return "\r\n".join([*lines, "a=control:track1", ""])

    def _relay(self, connection: socket.socket) -> None:
        while not (self._stop.is_set() or self._cut.is_set()):
            with contextlib.suppress(TimeoutError):
                packet = self._rtp.recv(65536)
                connection.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)

    def __enter__(self) -> RtspServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sender.kill()
        self._sender.wait(5)
        self._thread.join(8)
        self._rtp.close()
        self._listener.close()
