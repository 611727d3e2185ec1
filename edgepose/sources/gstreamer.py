"""GStreamer pipelines without an OpenCV that is built with GStreamer: gst-launch-1.0 writes YUV4MPEG into a pipe."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError, MissingDependencyError, SourceError
from edgepose.sources.opencv import DEFAULT_FPS
from edgepose.sources.reader import Captured

__all__ = ["GStreamerReader", "is_live_pipeline", "with_appsink"]

LONGEST_HEADER = 1024  # bytes; a Y4M header has about 60
LONGEST_SIDE = 1 << 15  # px; more in a header is damage
END_WITHIN = 0.5  # s that gst-launch has to end before it is killed

_RECORDED = re.compile(r"^\s*(filesrc|multifilesrc|uridecodebin\s+uri=\"?file:|playbin\s+uri=\"?file:)")
_TEST = re.compile(r"^\s*(videotestsrc|appsrc)\b(?![^!]*\bis-live=(true|1)\b)")
_APPSINK = re.compile(r"!\s*appsink\b[^!]*$")


def is_live_pipeline(pipeline: str) -> bool:
    """Whether a pipeline's source gives frames at its own pace: all but files and a test picture that is not live."""
    return not (_RECORDED.search(pipeline) or _TEST.search(pipeline))


def with_appsink(pipeline: str, *, live: bool) -> str:
    """A pipeline as OpenCV takes it: its end is an appsink of BGR frames, if it does not bring one."""
    if _APPSINK.search(pipeline):
        return pipeline
    keep = "drop=true max-buffers=1" if live else "max-buffers=2"
    return f"{pipeline} ! videoconvert ! video/x-raw,format=BGR ! appsink sync=false {keep}"


class GStreamerReader:
    """A gst-launch-1.0 of our own; it ends with the reader, or when this process does.

    Args:
        pipeline: as gst-launch-1.0 takes it, without a sink (an ``appsink`` at the end is replaced). Colours are read
            as BT.601 with limited range, chroma is halved (I420), as most cameras have it.
        live: whether its source is.

    Raises:
        MissingDependencyError: gst-launch-1.0 is not installed.
        SourceError: the pipeline does not start, or gives no frame.
    """

    backend = "gst-launch-1.0"
    note = None

    def __init__(self, pipeline: str, *, live: bool) -> None:
        self.live = live
        self._closed = False
        self._pipeline = pipeline
        command = _command(pipeline)
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        source, sink = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, "fdsink", f"fd={sink}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._messages,
                pass_fds=(sink,),
            )
        except BaseException:
            os.close(source)
            self._messages.close()
            raise
        finally:
            os.close(sink)  # ours: the pipe must end with the child
        self._pipe = os.fdopen(source, "rb", 1 << 20)
        self._count = 0
        self._layout = _Layout(0, 0, padded=False)
        self._fps = DEFAULT_FPS

    def read(self) -> Captured | None:
        """The next frame."""
        if self._layout.size == 0:
            self._read_header()  # not in the constructor: this blocks until the first frame, and is to be cancelled
        line = self._pipe.readline(LONGEST_HEADER)
        if not line.startswith(b"FRAME"):
            self._check_end(line)
            return None
        data = self._pipe.read(self._layout.size)
        if len(data) < self._layout.size:
            self._check_end(b"")
            return None
        number, self._count = self._count, self._count + 1
        return Captured(self._layout.bgr(np.frombuffer(data, np.uint8)), None if self.live else number / self._fps)

    def _read_header(self) -> None:
        header = self._pipe.readline(LONGEST_HEADER)
        if not header.startswith(b"YUV4MPEG2 "):
            raise SourceError(f"the GStreamer pipeline {self._pipeline!r} gave no frame: {self._said()}")
        fields = {part[:1]: part[1:] for part in header.decode("ascii", "replace").split()[1:]}
        try:
            width, height = int(fields["W"]), int(fields["H"])
            rate, base = (int(number) for number in fields.get("F", "0:1").split(":"))
        except (KeyError, ValueError):
            width = height = rate = base = 0
        if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE):
            raise SourceError(f"the GStreamer pipeline {self._pipeline!r} gave the Y4M header {header!r}")
        self._layout = _Layout(width, height, padded=False)
        if self._layout.size != _Layout(width, height, padded=True).size:
            self._layout = _Layout(width, height, padded=_writes_padding(_program()))
        self._fps = rate / base if rate > 0 and base > 0 else DEFAULT_FPS

    def _check_end(self, line: bytes) -> None:
        """Raise SourceError unless this is the end of the stream."""
        if self._closed:
            return
        if line:
            raise SourceError(
                f"the GStreamer pipeline {self._pipeline!r} changed its frame size: it is opened again for that"
            )
        try:
            failed = self._process.wait(END_WITHIN) != 0
        except subprocess.TimeoutExpired:
            failed = True
        if failed or self._count == 0:
            raise SourceError(f"the GStreamer pipeline {self._pipeline!r} ended: {self._said()}")

    def _said(self) -> str:
        """What gst-launch wrote to stderr; without its debugging lines."""
        try:
            self._process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            return "it hangs"
        self._messages.seek(0)
        lines = [line.strip() for line in self._messages.read().decode("utf-8", "replace").splitlines()]
        errors = [line for line in lines if line.upper().startswith(("ERROR", "WARNING"))]
        return " ".join(errors or lines[-3:]) or f"gst-launch-1.0 ended with status {self._process.returncode}"

    def cancel(self) -> None:
        """Kills gst-launch, so that a blocked read meets the end of the pipe."""
        self._closed = True
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """Ends gst-launch."""
        self.cancel()
        self._process.wait()
        self._pipe.close()
        self._messages.close()


def _command(pipeline: str) -> list[str]:
    try:
        elements = shlex.split(_APPSINK.sub("", pipeline))
    except ValueError as error:
        raise InputError(f"the GStreamer pipeline {pipeline!r} cannot be read: {error}") from None
    return [_program(), "-q", *elements, "!", "videoconvert", "!", "video/x-raw,format=I420", "!", "y4menc", "!"]


def _program() -> str:
    program = shutil.which("gst-launch-1.0")
    if program is None:
        raise MissingDependencyError(
            "a GStreamer pipeline needs an OpenCV built with GStreamer (JetPack's is; pip's are not), or "
            "gst-launch-1.0: apt install gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
        )
    return program


@cache
def _writes_padding(program: str) -> bool:
    """Whether y4menc leaves the padding of GStreamer's rows in its frames, against the format (seen: 1.22)."""
    source = ["videotestsrc", "num-buffers=1", "!", "video/x-raw,format=I420,width=2,height=2", "!", "y4menc"]
    done = subprocess.run([program, "-q", *source, "!", "fdsink", "fd=1"], capture_output=True, check=True, timeout=30)
    return len(done.stdout.partition(b"FRAME\n")[2]) != _Layout(2, 2, padded=False).size


class _Layout:
    """How the planes of an I420 frame lie in a Y4M stream.

    Args:
        width, height: of the picture, px.
        padded: rows are filled up to 4 bytes, planes to whole pairs of rows, as GStreamer keeps them in memory.
    """

    def __init__(self, width: int, height: int, *, padded: bool) -> None:
        self._width, self._height = width, height
        half = (height + 1) // 2, (width + 1) // 2
        self._luma = (2 * half[0], -(-width // 4) * 4) if padded else (height, width)
        self._chroma = (half[0], -(-half[1] // 4) * 4) if padded else half
        self._half = half
        self.size = self._luma[0] * self._luma[1] + 2 * self._chroma[0] * self._chroma[1]  # bytes

    def bgr(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 BGR."""
        luma, *chroma = np.split(data, np.cumsum([np.prod(self._luma), np.prod(self._chroma)]))
        whole = luma.reshape(self._luma)[: self._height, : self._width]
        rows, columns = self._half
        # OpenCV wants even sides: odd ones are continued by their last pixels.
        even = np.pad(whole, ((0, self._height % 2), (0, self._width % 2)), mode="edge")
        halves = [plane.reshape(self._chroma)[:rows, :columns].ravel() for plane in chroma]
        planes = np.concatenate([even.ravel(), *halves]).reshape(3 * rows, 2 * columns)
        frame = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420)[: self._height, : self._width]
        return np.ascontiguousarray(frame, np.uint8)
