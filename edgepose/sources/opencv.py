"""Cameras, files, URLs and GStreamer pipelines through OpenCV.

Weak where PyAV is not, seen with OpenCV 5.0: interlaced H.264 comes out as another picture altogether, without an
error; after a change of the frame's size every frame is resized to the first; a damaged file simply ends. Otherwise the
pixels are the same.
"""

from __future__ import annotations

import cv2
import numpy as np

from edgepose.errors import SourceError
from edgepose.sources.reader import Captured, without_password

__all__ = ["OpenCVReader", "has_gstreamer", "missing_frames"]

DEFAULT_FPS = 25.0  # where neither a time stamp nor a rate is known; FFmpeg's default


def has_gstreamer() -> bool:
    """Whether this OpenCV is built with GStreamer; pip's are not, JetPack's is."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


class OpenCVReader:
    """A ``cv2.VideoCapture``.

    Args:
        target: a camera's index, a path, a URL, or the text of a GStreamer pipeline.
        kind: ``camera``, ``file``, ``url`` or ``gstreamer``.
        live: whether a file or pipeline is live; of a URL it is found out.
        open_timeout, timeout: s; FFmpeg gives up on a silent server after that. Other backends of OpenCV cannot.

    Raises:
        SourceError: it does not open.
    """

    note: str | None = None

    def __init__(self, target: int | str, kind: str, *, live: bool, open_timeout: float, timeout: float) -> None:
        self._name, self._kind = without_password(str(target)), kind
        self._capture = self._open(target, kind, live, open_timeout, timeout)
        if not self._capture.isOpened():
            raise SourceError(f"{self._name} cannot be opened by OpenCV: {_advice(kind)}")
        self.backend = f"opencv ({self._capture.getBackendName()})"
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self._fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        announced = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._announced = int(announced) if 0 < announced < 1e9 else 0  # live or unknown: 0, or far below it
        # Only HTTP serves recordings too. Of an MPEG stream over TCP FFmpeg guesses a duration.
        self.live = live and not (self._announced and str(target).lower().startswith("http"))
        self._count = 0

    @staticmethod
    def _open(target: int | str, kind: str, live: bool, open_timeout: float, timeout: float) -> cv2.VideoCapture:
        if kind == "camera":
            return cv2.VideoCapture(target)
        if kind == "gstreamer":
            return cv2.VideoCapture(str(target), cv2.CAP_GSTREAMER)
        # Numbers beyond 2**31 ms would wrap.
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _ms(open_timeout), cv2.CAP_PROP_READ_TIMEOUT_MSEC, _ms(timeout)]
        if live:  # with n threads FFmpeg decodes n frames at once: each would come n - 1 frames late
            limits += [cv2.CAP_PROP_N_THREADS, 1]
        return cv2.VideoCapture(str(target), cv2.CAP_FFMPEG, limits)

    def read(self) -> Captured | None:
        """The next frame."""
        ok, frame = self._capture.read()
        if not ok or frame is None:
            if self._count == 0:
                raise SourceError(f"{self._name} opens, but not one frame of it can be read: {_advice(self._kind)}")
            if not self.live:
                self.note = missing_frames(self._count, self._announced)
            return None
        number, self._count = self._count, self._count + 1
        return Captured(np.asarray(frame, np.uint8), None if self.live else self._time(number))

    def _time(self, number: int) -> float:
        time = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
        return time if time > 0 or number == 0 else number / self._fps  # a bare H.264 stream says 0 for all

    def cancel(self) -> None:
        """OpenCV cannot be interrupted; its time limits end a read."""

    def close(self) -> None:
        """Release the capture."""
        self._capture.release()


def missing_frames(count: int, announced: int) -> str | None:
    """A note, if clearly fewer frames came than the header says (some containers only estimate: 2 % are let pass)."""
    if count >= announced * 0.98 - 2:
        return None
    return f"it ended after {count} of {announced} frames that its header announces: cut off or damaged"


def _ms(seconds: float) -> int:
    return max(1, min(int(seconds * 1e3), 2**31 - 1))


def _advice(kind: str) -> str:
    if kind == "camera":
        return "is it connected, free, and may this user read it? On Linux the cameras are /dev/video0, 1, ..."
    if kind == "gstreamer":
        return "try the pipeline with gst-launch-1.0, which says what is wrong with it"
    if kind == "url":
        return "is the address right, the server up, and is it video? PyAV says more: pip install 'edgepose[av]'"
    return "no video stream, cut off, mislabelled or an unknown codec"
