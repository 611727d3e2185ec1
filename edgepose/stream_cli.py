"""The command `edgepose stream`."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgepose.cli_options import (
    DEFAULT_MODEL,
    Boxes,
    DetectorModel,
    DetectorSpecFile,
    Device,
    MinScore,
    Model,
    Spec,
    WholeImage,
    choose_boxes,
)
from edgepose.console import console, messages
from edgepose.errors import InputError

if TYPE_CHECKING:
    from edgepose.boxes import BoxSource
    from edgepose.record import JsonLines, VideoRecord, VideoRecorder
    from edgepose.stream import Stream, StreamItem
    from edgepose.stream_monitor import StreamMonitor
    from edgepose.view import Viewer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `stream` to the `edgepose` command."""
    app.command()(stream)


class Policy(str, Enum):
    """What happens to frames that come faster than they are processed."""

    auto = "auto"
    newest = "newest"
    every = "every"


class Backend(str, Enum):
    """What reads files and addresses."""

    auto = "auto"
    opencv = "opencv"
    pyav = "pyav"
    nvdec = "nvdec"


def stream(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Cameras (0), videos, folders of photos, addresses (rtsp://, http://, ...), GStreamer pipelines.",
        ),
    ],
    *,
    model: Model = DEFAULT_MODEL,
    spec: Spec = None,
    detector: DetectorModel = None,
    detector_spec: DetectorSpecFile = None,
    boxes: Boxes = None,
    whole_image: WholeImage = False,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="Detect in every so many frames, and follow the objects in between. (default: 10)"),
    ] = None,
    smooth: Annotated[bool, typer.Option("--smooth/--no-smooth", help="Smooth the landmarks over time.")] = True,
    policy: Annotated[
        Policy,
        typer.Option(
            help="Frames that come too fast: newest drops the older ones, every makes the source wait. auto: newest "
            "for live sources, every for files. A file with newest plays in real time."
        ),
    ] = Policy.auto,
    backend: Annotated[Backend, typer.Option(help="What reads files and addresses.")] = Backend.auto,
    view: Annotated[bool, typer.Option("--view", help="Serve a page that shows the stream, for browsers.")] = False,
    host: Annotated[str, typer.Option(help="--view: the address to serve on; others can see it if not this one.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="--view: the port; 0 takes a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="--view: one more name that the page may be opened by, behind a proxy.")
    ] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="--view: keep the page when the sources have ended, until Ctrl-C.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(help="Record what is drawn, .mp4. Of several sources out.mp4 becomes out-0.mp4, out-1.mp4, ..."),
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Write one JSON line for each frame, of all sources; - for standard output.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="--save and --jsonl may replace files.")] = False,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many frames, of all sources together.")
    ] = None,
    min_score: MinScore = 0.4,
    device: Device = "auto",
) -> None:
    """Find landmarks in cameras, streams and videos as they run; watch, record or pass on what comes out.

    Ctrl-C ends it: files are finished, a summary is printed, and the exit code is 0. So does the end of all sources;
    the exit code is 1 if one of them failed.

    The lines of --jsonl are described in edgepose.record. --save plays in real time: its rate is that of the frames'
    time stamps, 30 a second where they are uneven; frames that are missing are filled with the one before. A new file,
    out-part2.mp4, begins where the size of the frames changes or nothing came for 5 s.
    """
    if not view and (hold or allow_host):
        raise InputError("--hold and --allow-host are about the page: pass --view too")
    outputs = _check_outputs(sources, save, jsonl, overwrite=overwrite)
    from edgepose.predictor import Predictor
    from edgepose.stream_monitor import StreamMonitor
    from edgepose.stream_options import StreamOptions
    from edgepose.track import Tracking

    box_source, found = choose_boxes(
        model, boxes, whole_image=whole_image, detector=detector, detector_spec=detector_spec, device=device
    )
    given = _stream_boxes(box_source)
    if every is not None and given is not None:
        raise InputError("--every is how often the detector runs: leave it out, or leave out the boxes")
    with contextlib.ExitStack() as stack:
        predictor = stack.enter_context(Predictor(model, spec=spec, detector=found, device=device))
        running = stack.enter_context(
            predictor.stream(
                sources,
                boxes=given,
                tracking=None if every is None else Tracking(every=every),
                smoothing=smooth,
                options=StreamOptions(policy=policy.value, backend=backend.value),
            )
        )
        monitor = StreamMonitor(lambda: running.stats)
        viewer = None
        if view:
            title = f"{predictor.spec.name} · {predictor.engine_name}"
            viewer = stack.enter_context(
                _open_viewer(running, monitor, title, host, port, allow_host or [], min_score=min_score)
            )
        outcome = _Outputs(running, outputs, jsonl, overwrite=overwrite, min_score=min_score)
        stopped = stack.enter_context(_stopped_by_signals(running.stop))
        ended = _run(running, monitor, viewer, outcome, max_frames=max_frames)
        if hold and viewer is not None and ended:
            messages.print(f"the sources have ended; the page stays at {viewer.url} until Ctrl-C", soft_wrap=True)
            while not stopped.wait(0.5):  # not for ever at once: Windows would not hear of Ctrl-C
                pass
        failed = [source.name for source in running.stats.sources if source.state == "failed"]
    if failed:
        names = escape(", ".join(failed))
        messages.print(f"[bold red]{len(failed)} of {len(sources)} sources failed:[/]", names, soft_wrap=True)
        raise typer.Exit(1)


def _run(
    running: Stream,
    monitor: StreamMonitor,
    viewer: Viewer | None,
    outputs: _Outputs,
    *,
    max_frames: int | None,
) -> bool:
    """Take the items; then finish the files and say what was done. Gives whether the sources ended by themselves."""
    from edgepose.stream_terminal import print_summary, show_progress

    records: dict[int, VideoRecord] = {}
    try:
        with show_progress(monitor.snapshot, messages):
            for count, item in enumerate(running, 1):
                monitor.add(item)
                if viewer is not None:
                    viewer.publish(item)
                outputs.write(item)
                if count == max_frames:
                    break
    except BrokenPipeError:  # whoever read standard output has enough, as `head` does
        with contextlib.suppress(OSError):  # what Python would say at its exit, when it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        snapshot = monitor.snapshot()
        running.close()
        records = outputs.close()
    print_summary(snapshot, records, outputs.lines, messages if outputs.uses_stdout else console)
    return bool(snapshot["ended"])


class _Outputs:
    """The files of a run. Recordings begin with the first frame of their source."""

    def __init__(
        self, running: Stream, videos: Sequence[Path], jsonl: Path | None, *, overwrite: bool, min_score: float
    ) -> None:
        from edgepose.record import JsonLines

        self._running, self._videos, self._min_score = running, videos, min_score
        self._names = [source.name for source in running.stats.sources]
        self._seen = [0] * len(self._names)
        self._recorders: dict[int, VideoRecorder] = {}
        self.uses_stdout = jsonl is not None and str(jsonl) == "-"
        self._jsonl_name = "standard output" if self.uses_stdout else str(jsonl)
        self._jsonl: JsonLines | None = None
        if jsonl is not None:
            self._jsonl = JsonLines(None if self.uses_stdout else jsonl, overwrite=overwrite)

    @property
    def lines(self) -> tuple[str, int] | None:
        """The JSON Lines file and how many lines it has got."""
        return None if self._jsonl is None else (self._jsonl_name, self._jsonl.lines)

    def write(self, item: StreamItem) -> None:
        """Record a frame."""
        self._seen[item.source] += 1
        if self._jsonl is not None:
            dropped = item.index + 1 - self._seen[item.source]  # a frame's number counts those that were dropped
            self._jsonl.write(item, name=self._names[item.source], dropped=dropped)
        if self._videos:
            self._recorder(item.source).add(item.frame, item.result, item.time)

    def close(self) -> dict[int, VideoRecord]:
        """Finish the files."""
        if self._jsonl is not None:
            self._jsonl.close()
        with contextlib.ExitStack() as stack:  # one that fails keeps none of the others from being finished
            for recorder in self._recorders.values():
                stack.callback(recorder.close)
        return {number: recorder.close() for number, recorder in sorted(self._recorders.items())}

    def _recorder(self, number: int) -> VideoRecorder:
        if number not in self._recorders:
            from edgepose.record import VideoRecorder

            wait = self._running.stats.sources[number].policy == "every"
            self._recorders[number] = VideoRecorder(
                self._videos[number], fps=None, wait=wait, min_score=self._min_score
            )
        return self._recorders[number]


def _check_outputs(sources: Sequence[str], save: Path | None, jsonl: Path | None, *, overwrite: bool) -> list[Path]:
    """The recording of each source; nothing is written yet.

    Raises:
        InputError: a file must not or cannot be written.
    """
    from edgepose.media import VideoWriter
    from edgepose.record import DEFAULT_FPS, check_output

    videos: list[Path] = []
    if save is not None:
        one = len(sources) == 1
        videos = [save] if one else [save.with_name(f"{save.stem}-{i}{save.suffix}") for i in range(len(sources))]
        VideoWriter(save, DEFAULT_FPS)  # opens nothing: checks the name
    for path in (*videos, *([jsonl] if jsonl is not None and str(jsonl) != "-" else [])):
        check_output(path, sources, overwrite=overwrite)
    if jsonl is not None and jsonl.resolve() in [path.resolve() for path in videos]:
        raise InputError(f"--save and --jsonl are the same file, {jsonl}: give them two names")
    return videos


def _stream_boxes(boxes: BoxSource) -> Any:
    """What a stream takes as its boxes; None: the detector finds them."""
    if boxes.detected:
        return None
    if boxes.whole_image:
        return _whole_image
    if boxes.everywhere is None:
        raise InputError(
            f"{boxes.source} names frames, and a stream's are not counted beforehand: pass boxes that hold for every "
            "frame, or use edgepose predict"
        )
    import numpy as np

    return np.array(boxes.everywhere, np.float32).reshape(-1, 4)


def _whole_image(frame: Any) -> Any:
    """The box of a whole frame, (1, 4) float32 xyxy px; of a frame on the GPU too, whose pixels are not looked at."""
    import numpy as np

    height, width = frame.shape[:2]
    return np.array([[0, 0, width - 1, height - 1]], np.float32)


def _open_viewer(
    running: Stream,
    monitor: StreamMonitor,
    title: str,
    host: str,
    port: int,
    names: Sequence[str],
    *,
    min_score: float,
) -> Viewer:
    from edgepose.view import Viewer, is_loopback

    sources = [source.name for source in running.stats.sources]
    viewer = Viewer(sources, monitor.snapshot, title=title, host=host, port=port, names=names, min_score=min_score)
    messages.print(f"watch at {viewer.url}", soft_wrap=True, highlight=False)
    if not is_loopback(host):
        messages.print(
            "[yellow]warning:[/] everybody who reaches this machine can watch: the page asks for no password, and is "
            "not encrypted. To watch from elsewhere more safely: ssh -L 8000:localhost:8000",
            soft_wrap=True,
            highlight=False,
        )
    return viewer


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Ctrl-C, and SIGTERM of service managers and containers, call ``stop`` and set the event; a second one kills.

    Not by a KeyboardInterrupt: raised in the midst of anything, it leaves locks half taken, and then finishing the
    files can wait for ever (seen with queue.Queue, about once in ten runs).
    """
    stopped, told = threading.Event(), queue.SimpleQueue[bool]()  # of which `put` may be called by a signal's handler

    def wait() -> None:
        if told.get():
            stop()
            stopped.set()

    def interrupted(number: int, frame: object) -> None:
        signal.signal(number, before[number] or signal.SIG_DFL)
        told.put(True)

    thread = threading.Thread(target=wait, name="edgepose signals", daemon=True)
    thread.start()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, interrupted)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        told.put(False)
        thread.join()
