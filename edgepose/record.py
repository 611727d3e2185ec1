"""What ``edgepose stream`` writes: annotated video in real time, and one JSON line for each frame.

A line of the JSON Lines file (schema 1)::

    {"schema": 1, "source": 0, "name": "rtsp://gate/1", "frame": 1207, "time": 40.233, "latency_ms": 18.4,
     "timings_ms": {"detect": 6.1, "crop": 0.4, "network": 9.8, "decode": 0.2, "total": 16.9}, "dropped": 3,
     "model": "garment-landmarks", "frame_size": [1920, 1080], "objects": [...]}

``source`` counts the sources from 0, in the order of the command line, and ``name`` is what was written there, without
passwords. ``frame`` counts the frames of that source from 0, ``time`` is when the frame was taken, s, as
:class:`edgepose.stream.StreamItem` has it; ``latency_ms`` is from there to the finished result. ``timings_ms`` is
:class:`edgepose.Timings`. ``dropped`` counts the frames of that source that were left out so far. ``objects`` is as in
:meth:`edgepose.PoseResult.to_dict`.
"""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EdgePoseError, InputError
from edgepose.files import check_writable
from edgepose.frame_clock import FrameClock
from edgepose.media import VideoReader, VideoWriter
from edgepose.result import MIN_SCORE

if TYPE_CHECKING:
    from edgepose.result import PoseResult
    from edgepose.stream import StreamItem

__all__ = ["DEFAULT_FPS", "JsonLines", "VideoRecord", "VideoRecorder", "check_output", "host_frame"]

JSON_SCHEMA = 1
DEFAULT_FPS = 30.0  # of a recording whose frames come at no steady rate
MEASURED = 12  # frames from which the rate is measured; they wait in memory until then
STEADY = 0.15  # frames come at a steady rate if nearly all intervals are within this fraction of their median
COMMON_FPS = (23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 60.0)
QUEUE = 8  # frames that wait to be drawn and encoded; 50 MB at full HD


def check_output(path: Path, sources: Iterable[str], *, overwrite: bool) -> None:
    """Refuse a file that must not be written; make its folder.

    Args:
        path: the file to write. Its further parts (``out-part2.mp4``) are checked too.
        sources: what the stream reads; a file among them is never overwritten.
        overwrite: other files may be.

    Raises:
        InputError: it exists, it is a source, or its folder cannot be written to.
    """
    parts = sorted(path.parent.glob(f"{_escaped(path.stem)}-part*{path.suffix}"))
    existing = [found for found in (path, *parts) if found.exists()]
    for found in existing:
        if any(_is_file(source) and found.samefile(source) for source in sources):
            raise InputError(f"the output {found} is what the stream reads: choose another name")
        if not found.is_file():
            raise InputError(f"the output {found} is there already, and is not a file: choose another name")
    if existing and not overwrite:
        raise InputError(f"the output {existing[0]} is there already: choose another name, or pass --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def host_frame(frame: Any) -> NDArray[np.uint8]:
    """A frame in host memory: itself, or a copy of one on a GPU."""
    if isinstance(frame, np.ndarray):
        return frame
    if hasattr(frame, "get"):  # CuPy
        return np.asarray(frame.get(), np.uint8)
    if hasattr(frame, "cpu"):  # PyTorch
        return np.asarray(frame.cpu(), np.uint8)
    return np.asarray(frame, np.uint8)


class JsonLines:
    """Writes one line for each frame; whatever happens, all lines but perhaps the last can be read.

    Each line goes to the operating system in one piece before :meth:`write` returns, so that it outlives the process.

    Args:
        path: a new file; None: standard output.
        overwrite: the file may be there already, and is emptied.

    Raises:
        InputError: the file is there already, or cannot be written.
    """

    def __init__(self, path: Path | None, *, overwrite: bool = False) -> None:
        self._name = "standard output" if path is None else str(path)
        self._file: IO[bytes]
        if path is None:
            self._file = sys.stdout.buffer
        else:
            try:
                self._file = path.open("wb" if overwrite else "xb", buffering=0)
            except FileExistsError:
                raise InputError(f"{path} is there already: choose another name, or pass --overwrite") from None
            except OSError as error:
                raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
        self.lines = 0

    def write(self, item: StreamItem, *, name: str, dropped: int) -> None:
        """Add the line of a frame.

        Args:
            item: the frame with its result.
            name: what the source is called.
            dropped: frames of the source that were left out so far.

        Raises:
            BrokenPipeError: whoever read standard output has stopped.
            EdgePoseError: it cannot be written, for instance because the disk is full.
        """
        line = json.dumps(_record(item, name, dropped), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        rest = memoryview(line.encode("utf-8") + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise EdgePoseError(
                f"{self._name}: line {self.lines + 1} cannot be written ({error.strerror or error}); the lines "
                "before it are there"
            ) from None
        self.lines += 1

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        if self._file is not sys.stdout.buffer:
            self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _record(item: StreamItem, name: str, dropped: int) -> dict[str, Any]:
    values = item.result.to_dict()
    return {
        "schema": JSON_SCHEMA,
        "source": int(item.source),
        "name": name,
        "frame": int(item.index),
        "time": _rounded(item.time, 6),
        "latency_ms": _rounded(item.latency, 3),
        "timings_ms": {stage: _rounded(value, 3) for stage, value in asdict(item.result.timings).items()},
        "dropped": int(dropped),
        "model": values["model"],
        "frame_size": values["frame_size"],
        "objects": values["objects"],
    }


def _rounded(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


# Video ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoRecord:
    """What was recorded of a source.

    Attributes:
        paths: the files, in their order in time.
        fps: their frames a second.
        frames: pictures of the stream that are in them.
        repeated: copies that fill the time of frames which did not come.
        left_out: frames that came faster than ``fps``, or faster than they could be encoded.
    """

    paths: list[Path] = field(default_factory=list)
    fps: float = DEFAULT_FPS
    frames: int = 0
    repeated: int = 0
    left_out: int = 0


class VideoRecorder:
    """Draws results on their frames and records them as MP4, in a thread of its own.

    The file plays in real time: MP4 as OpenCV writes it has a fixed rate, so frames are placed by their time stamps
    (:class:`~edgepose.frame_clock.FrameClock`). A new file, ``out-part2.mp4``, begins where the size of the frames
    changes, and after a pause of more than 5 s. A file can be played once it is closed: by :meth:`close`, or when the
    next part begins.

    Args:
        path: the first file, .mp4, .m4v or .mov; see :func:`check_output` for what is there already.
        fps: frames a second of the recording; None: measured at the first frames, by their time stamps; 30 where they
            come at no steady rate.
        wait: :meth:`add` waits while the encoder is behind, so that every frame is recorded (for files). False: such
            frames are left out of the recording, and counted; the stream is not slowed down.
        min_score: landmarks below it are not drawn.

    Raises:
        InputError: another suffix, or an ``fps`` that MP4 cannot have.
    """

    def __init__(self, path: Path, *, fps: float | None, wait: bool, min_score: float = MIN_SCORE) -> None:
        self._path = path
        self._fps = DEFAULT_FPS if fps is None else fps
        VideoWriter(path, self._fps)  # opens nothing yet: checks name and rate
        self._first: list[tuple[Any, PoseResult, float]] | None = [] if fps is None else None
        self._wait = wait
        self._min_score = min_score
        # Not queue.Queue: a KeyboardInterrupt within it can leave it locked, and close() would wait for ever.
        self._queue: queue.SimpleQueue[tuple[Any, PoseResult, float] | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # an entry for each frame that may still wait
        for _ in range(QUEUE):
            self._room.put(None)
        self._error: BaseException | None = None
        self._paths: list[Path] = []
        self._frames = self._repeated = self._surplus = self._behind = 0
        self._writer: VideoWriter | None = None
        self._in_part = 0
        self._size = (0, 0)
        self._clock = FrameClock(self._fps)  # each part has its own
        self._before: NDArray[np.uint8] | None = None
        self._thread = threading.Thread(target=self._work, name=f"edgepose record {path.name}", daemon=True)
        self._thread.start()

    def add(self, frame: Any, result: PoseResult, time: float) -> None:
        """Record a frame: (H, W, 3) uint8 BGR, not to be changed any more, taken at ``time``, s.

        Raises:
            EdgePoseError: the recording failed, at this frame or an earlier one.
        """
        self._raise()
        try:
            self._room.get(block=self._wait)
        except queue.Empty:
            self._behind += 1
            return
        self._queue.put((frame, result, time))

    def close(self) -> VideoRecord:
        """Record what still waits, finish the file, and say what was done. Closing twice is fine.

        Raises:
            EdgePoseError: the recording failed.
        """
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise()
        return VideoRecord(list(self._paths), self._fps, self._frames, self._repeated, self._surplus + self._behind)

    def _raise(self) -> None:
        if isinstance(self._error, EdgePoseError):
            raise self._error
        if self._error is not None:
            raise EdgePoseError(f"{self._path}: the recording failed: {self._error}") from self._error

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._room.put(None)
            if self._error is None:  # else: only empty the queue, so that nobody waits for room in it
                try:
                    self._take(*entry)
                except BaseException as error:
                    self._error = error
        try:
            if self._error is None:
                self._measure()
            self._finish_part()
        except BaseException as error:
            self._error = self._error or error

    def _take(self, frame: Any, result: PoseResult, time: float) -> None:
        if self._first is None:
            self._record(frame, result, time)
            return
        self._first.append((frame, result, time))
        if len(self._first) == MEASURED:
            self._measure()

    def _measure(self) -> None:
        """Choose the rate, and record the frames that it was measured from."""
        first, self._first = self._first, None
        if first:
            self._fps = _steady_rate([time for *_, time in first])
            for entry in first:
                self._record(*entry)

    def _record(self, frame: Any, result: PoseResult, time: float) -> None:
        drawn = result.draw(host_frame(frame), min_score=self._min_score)
        copies = self._clock.copies(time)
        if copies is None or drawn.shape != (*self._size[::-1], 3):
            self._begin_part(drawn)
            copies = self._clock.copies(time)
        if not copies or self._writer is None:
            self._surplus += 1
            return
        for _ in range(copies - 1):
            if self._before is not None:
                self._writer.write(self._before)
        self._writer.write(drawn)
        self._frames += 1
        self._repeated += copies - 1
        self._in_part += copies
        self._before = drawn

    def _begin_part(self, drawn: NDArray[np.uint8]) -> None:
        self._finish_part()
        number = len(self._paths) + 1
        path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-part{number}")
        self._writer = VideoWriter(path, self._fps)
        self._paths.append(path)
        self._size = (drawn.shape[1], drawn.shape[0])
        self._clock, self._before, self._in_part = FrameClock(self._fps), None, 0

    def _finish_part(self) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        with writer:
            pass
        path = self._paths[-1]
        try:  # OpenCV's writer reports neither a full disk nor a broken one
            with VideoReader(path) as reader:
                count = reader.count
        except InputError:
            count = 0
        if count != self._in_part:
            raise EdgePoseError(
                f"{path} is not whole: {self._in_part} frames were written, {count} can be read. Is the disk full?"
            )


def _steady_rate(times: list[float]) -> float:
    """Frames a second; a common rate where it is within 1 % of one; DEFAULT_FPS where there is no steady rate."""
    intervals = np.diff(times)
    interval = float(np.median(intervals)) if len(intervals) else 0.0
    if not 1 / 240 <= interval <= 1 or np.mean(np.abs(intervals - interval) <= STEADY * interval) < 0.8:
        return DEFAULT_FPS
    fps = 1 / interval
    nearest = min(COMMON_FPS, key=lambda common: abs(common - fps))
    return nearest if abs(nearest - fps) <= 0.01 * nearest else round(fps, 3)


def _escaped(text: str) -> str:
    """A file name's text as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # a pipeline's description can be too long for a path
        return False
