"""What a source is, and how a reader for it is opened."""

from __future__ import annotations

import importlib.util
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from edgepose.errors import InputError
from edgepose.media import PHOTO_SUFFIXES, photos_in
from edgepose.sources.gstreamer import GStreamerReader, is_live_pipeline, with_appsink
from edgepose.sources.memory import CallableReader, IteratorReader, PhotoReader, is_frame, is_timed_frame
from edgepose.sources.opencv import OpenCVReader, has_gstreamer
from edgepose.sources.pyav import PyAVReader
from edgepose.sources.reader import Reader, without_password
from edgepose.stream_options import StreamOptions

__all__ = ["Kind", "Source", "find_source", "split_sources"]

Kind = Literal["camera", "file", "url", "gstreamer", "folder", "photo", "iterator", "callable"]

_URL = re.compile(r"^(rtsps?|rtmps?|https?|udp|tcp|srt|rtp|mms)://", re.IGNORECASE)
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_CAMERA = re.compile(r"^(\d+)$")
_DEVICE = re.compile(r"^/dev/video(\d+)$")


@dataclass(frozen=True)
class Source:
    """What one source is; nothing is open yet.

    Attributes:
        kind: what it is.
        name: for messages and statistics; a password in an address is left out.
        live: whether it is expected to be; of an HTTP address only the open reader knows.
        reopens: whether it can be opened again after it was lost.
        open: opens a reader; may block, so that a reader's thread calls it.
    """

    kind: Kind
    name: str
    live: bool
    reopens: bool
    open: Callable[[], Reader]


def split_sources(source: Any) -> list[Any]:
    """One source, or several: a list or tuple of sources, as opposed to one of frames.

    Raises:
        InputError: an empty list.
    """
    if not isinstance(source, (list, tuple)) or is_timed_frame(source):
        return [source]
    if not source:
        raise InputError("sources is an empty list: pass a source, or a list of at least one")
    return [source] if is_frame(source[0]) or is_timed_frame(source[0]) else list(source)


def find_source(source: Any, options: StreamOptions) -> Source:
    """Find out what a source is; its existence is checked where that costs nothing.

    Args:
        source: camera index (0 or '0'), path of a video, photo or folder of photos, URL, text of a GStreamer pipeline,
            an iterable of frames or (frame, seconds), or a callable that gives one at each call, None at the end; or
            that gives an iterator when it is called, which is called again when that was lost.

    Raises:
        InputError: it is none of these, it does not exist, or the backend does not read it.
    """
    if isinstance(source, (str, Path)):
        found = _find_text(str(source), isinstance(source, Path), options)
    elif (index := _index(source)) is not None:
        found = _camera(index, options)
    elif is_frame(source):
        raise InputError("a single frame is no source: call predict(frame), or pass a list of frames")
    elif isinstance(source, Iterable):
        frames = iter(source)
        found = Source("iterator", _name_of(source), False, False, lambda: IteratorReader(frames, options.fps))
    elif callable(source):
        found = Source("callable", _name_of(source), True, True, lambda: _open_callable(source, options.fps))
    else:
        raise InputError(
            "a source is a camera index, a path, a URL, a GStreamer pipeline, an iterable of frames or a callable, "
            f"got {type(source).__name__}"
        )
    if options.backend != "auto" and found.kind not in ("file", "url"):
        if options.backend == "opencv" and found.kind in ("camera", "gstreamer", "folder", "photo"):
            return found
        raise InputError(f"backend={options.backend!r} reads files and URLs, not the {found.kind} {found.name}")
    return found


def _find_text(text: str, is_path: bool, options: StreamOptions) -> Source:
    if not is_path:
        if match := _CAMERA.match(text.strip()):
            return _camera(int(match[1]), options)
        if _URL.match(text):
            return Source("url", without_password(text), True, True, lambda: _open_video(text, True, options))
        if text.startswith("file://"):
            text = unquote(urlsplit(text).path)
        elif scheme := _SCHEME.match(text):
            raise InputError(f"addresses of {scheme[1]}:// are not read: rtsp, rtmp, http(s), udp, tcp, srt, rtp are")
    if match := _DEVICE.match(text):
        return _camera(int(match[1]), options)
    path = Path(text)
    if not is_path and "!" in text and not path.exists():
        return _gstreamer(text, options)
    if path.is_dir():
        photos = photos_in(path)
        return Source("folder", text, False, False, lambda: PhotoReader(photos, options.fps))
    if not path.exists():
        hint = " (a GStreamer pipeline has '!' between its elements)" if " " in text else ""
        raise InputError(f"there is no file or folder {text}{hint}")
    if path.suffix.lower() in PHOTO_SUFFIXES:
        return Source("photo", text, False, False, lambda: PhotoReader([path], options.fps))
    if not os.access(path, os.R_OK):
        raise InputError(f"{text} may not be read by this user")
    return Source("file", text, False, False, lambda: _open_video(text, False, options))


def _camera(index: int, options: StreamOptions) -> Source:
    def open_camera() -> Reader:
        return OpenCVReader(index, "camera", live=True, open_timeout=options.open_timeout, timeout=options.timeout)

    return Source("camera", f"camera {index}", True, True, open_camera)


def _gstreamer(pipeline: str, options: StreamOptions) -> Source:
    live = is_live_pipeline(pipeline)

    def open_pipeline() -> Reader:
        if has_gstreamer():
            text = with_appsink(pipeline, live=live)
            limits = {"open_timeout": options.open_timeout, "timeout": options.timeout}
            return OpenCVReader(text, "gstreamer", live=live, **limits)
        return GStreamerReader(pipeline, live=live)

    return Source("gstreamer", pipeline, live, live, open_pipeline)


def _open_video(target: str, url: bool, options: StreamOptions) -> Reader:
    backend = options.backend
    if backend == "auto":
        # PyAV where it is there: see the weaknesses in opencv.py. Pixels and speed are else about the same.
        backend = "pyav" if importlib.util.find_spec("av") else "opencv"
        if backend == "opencv" and options.open_options:
            raise InputError("open_options are PyAV's, which is not installed: pip install 'edgepose[av]'")
    if backend == "nvdec":
        from edgepose.sources.nvdec import NvdecReader

        return NvdecReader(target, gpu=options.gpu, live=url)
    # A little less than the feed's: a reader that gives up by itself leaves no thread behind.
    limits = {"open_timeout": 0.9 * options.open_timeout, "timeout": 0.9 * options.timeout}
    if backend == "pyav":
        return PyAVReader(target, url=url, live=url, options=options.open_options, **limits)
    return OpenCVReader(target, "url" if url else "file", live=url, **limits)


def _open_callable(function: Callable[[], Any], fps: float | None) -> Reader:
    first = function()
    if isinstance(first, Iterator):
        return IteratorReader(first, fps, live=True)
    return CallableReader(function, first, fps)


def _name_of(source: Any) -> str:
    return str(getattr(source, "__qualname__", None) or type(source).__name__)


def _index(value: Any) -> int | None:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
    return number if number >= 0 else None
