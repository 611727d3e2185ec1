"""Reading and writing photos and videos, with errors that say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError

__all__ = [
    "PHOTO_SUFFIXES",
    "VIDEO_SUFFIXES",
    "VideoReader",
    "VideoWriter",
    "kind_of",
    "photos_in",
    "read_photo",
    "write_photo",
]

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})
MPEG4_TIME_BASE = 65535  # the largest denominator of a frame's duration; OpenCV makes it fps * 1, 10, 100 or 1000


def kind_of(source: Path) -> Literal["photo", "video", "folder"]:
    """What a source is, by its suffix.

    Raises:
        InputError: it does not exist, or its suffix is not known.
    """
    if source.is_dir():
        return "folder"
    if not source.exists():
        raise InputError(f"there is no file or folder {source}")
    if source.suffix.lower() in PHOTO_SUFFIXES:
        return "photo"
    if source.suffix.lower() in VIDEO_SUFFIXES:
        return "video"
    known = ", ".join(sorted(PHOTO_SUFFIXES | VIDEO_SUFFIXES))
    raise InputError(f"{source} is neither a photo nor a video by its suffix {source.suffix!r}; known: {known}")


def photos_in(folder: Path) -> list[Path]:
    """The photos that lie directly in a folder, by name; neither subfolders nor hidden files (``._shirt.jpg``) count.

    Raises:
        InputError: there is none.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    photos = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not photos:
        raise InputError(f"folder {folder} holds no photos ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return photos


def read_photo(path: Path) -> NDArray[np.uint8]:
    """A photo as (H, W, 3) uint8 BGR.

    Upright as its EXIF orientation says; grey becomes BGR, alpha is dropped, 16-bit pictures lose their low byte (all
    as OpenCV's ``IMREAD_COLOR`` does it).

    Raises:
        InputError: the file cannot be read, or is not a picture.
    """
    try:
        # Not cv2.imread: on Windows it cannot open a path with letters outside the system's code page.
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise InputError(f"{path} cannot be decoded: {str(error).strip()}") from None
    if frame is None:
        raise InputError(
            f"{path} ({data.size} bytes) is not a picture that OpenCV can read: empty, cut off or mislabelled"
        )
    return np.asarray(frame, np.uint8)


def write_photo(path: Path, frame: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 BGR in the format of the path's suffix; folders are made as needed.

    Raises:
        InputError: an unknown suffix, a picture that the format cannot hold, or the file cannot be written.
    """
    if path.suffix.lower() not in PHOTO_SUFFIXES:
        raise InputError(f"pictures are written as {', '.join(sorted(PHOTO_SUFFIXES))}; got {path}")
    data = _encode(path, frame)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data.tofile(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _encode(path: Path, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    reason = "JPEG holds up to 65500 px a side, WebP up to 16383; PNG and TIFF hold more"
    try:
        done, data = cv2.imencode(path.suffix.lower(), frame)
    except cv2.error as error:  # OpenCV 4 raises, or returns False; OpenCV 5 returns False
        done, reason = False, f"{str(error).strip()} ({reason})"
    if not done:
        size = " x ".join(str(side) for side in frame.shape[1::-1])
        raise InputError(f"{path} cannot be written: OpenCV does not encode {size} px in this format. {reason}")
    return np.asarray(data, np.uint8)


class VideoReader:
    """The frames of a video file: ``for frame in reader``, each (H, W, 3) uint8 BGR.

    Attributes:
        size: (width, height), px.
        fps: frames a second; 30 where the file does not say.
        count: number of frames as the file's header says, which can be wrong; 0: it does not say.

    Raises:
        InputError: OpenCV cannot open the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise InputError(f"{path} is not a video that OpenCV can read: cut off, mislabelled or an unknown codec")
        self.size = (
            int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps < 1000 else 30.0
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        number = 0
        while True:
            ok, frame = self._capture.read()
            if not ok:
                break
            number += 1
            yield np.asarray(frame, np.uint8)
        if number == 0:
            raise InputError(f"{self._path} opens as a video, but not one frame of it can be read")

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()


class VideoWriter:
    """Writes frames to an MP4 file (MPEG-4 part 2, the codec that every OpenCV build can write).

    The size is that of the first frame, odd sides plus 1: the codec's are even, so the last column or row is repeated.
    The rate is the nearest that the codec can tell: ``fps`` rounded to 0.001, above 65.535 to 0.01, above 655.35 to
    0.1 (119.953 becomes 119.95). Leaving the ``with`` block finishes the file.

    Raises:
        InputError: another suffix than .mp4, .m4v or .mov, or an ``fps`` that is not at least 0.001 and finite.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() not in {".mp4", ".m4v", ".mov"}:
            raise InputError(f"videos are written as .mp4, got {path}")
        if not (isfinite(fps) and 0.001 <= fps <= MPEG4_TIME_BASE):
            raise InputError(f"{path}: fps must be from 0.001 to {MPEG4_TIME_BASE} frames a second, got {fps}")
        self._path = path
        self._fps = next(round(fps, digits) for digits in (3, 2, 1, 0) if fps * 10**digits < MPEG4_TIME_BASE + 0.5)
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add one (H, W, 3) uint8 BGR frame.

        Raises:
            InputError: the file cannot be written, or the frame has another size than the first one.
        """
        size = (frame.shape[1], frame.shape[0])
        if self._writer is None:
            self._writer, self._size = self._open(size), size
        if size != self._size:
            raise InputError(f"{self._path}: the video has frames of {self._size}, one of {size} (w, h) cannot follow")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:  # OpenCV would cut the last line off
            frame = np.asarray(cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)
        self._writer.write(frame)

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.open("wb").close()  # OpenCV does not say why it cannot write; this does
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror or error}") from None
        even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, even)
        if not writer.isOpened():
            raise InputError(
                f"{self._path}: this OpenCV cannot write MP4 video of {even[0]} x {even[1]} px at {self._fps} fps"
            )
        return writer

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
