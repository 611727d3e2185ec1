"""Two stages on a stream, against detect-then-loop code: python benchmarks/streams.py VIDEO [--streams 8]

Detector and model are the bundled ones, or any YOLOX detector and heatmap model by --detector, --model and their
--...-spec. Two questions:

    work     how long one frame takes, the reading of it apart; ways take turns on each frame
    camera   how old a frame is when its landmarks are there. A camera makes --fps frames a second, and its driver keeps
             four, as V4L2 does. Who reads too slowly reads old frames; edgepose reads in a thread and takes the newest
"""

from __future__ import annotations

import argparse
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
from results_file import save, summary
from rich.console import Console
from rich.table import Table
from usual_way import DetectThenLoop

from edgepose import Detector, DetectorSpec, ModelSpec, Predictor, Tracker, Tracking
from edgepose.console import track
from edgepose.media import VideoReader
from edgepose.modelfile import ModelFile
from edgepose.models import find_detector, find_model

WARM_UP = 5
DRIVER_QUEUE = 4


class Camera:
    """Frames at a steady pace; a full queue drops the new one, as a driver without a free buffer does."""

    def __init__(self, frames: list[np.ndarray], fps: float, seconds: float) -> None:
        self._frames, self._period, self._end = frames, 1 / fps, monotonic() + seconds
        self._queue: deque[tuple[np.ndarray, float]] = deque()
        self._ready = threading.Condition()
        threading.Thread(target=self._film, daemon=True).start()

    def _film(self) -> None:
        number, due = 0, monotonic()
        pause = threading.Event()
        while due < self._end:
            pause.wait(max(0.0, due - monotonic()))
            with self._ready:
                if len(self._queue) < DRIVER_QUEUE:
                    self._queue.append((self._frames[number % len(self._frames)].copy(), monotonic()))
                self._ready.notify_all()
            number, due = number + 1, due + self._period
        with self._ready:
            self._end = 0.0
            self._ready.notify_all()

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        """(frame, time of its capture) in the order of the queue."""
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue or not self._end)
                if not self._queue:
                    return
                item = self._queue.popleft()
            yield item


def main() -> None:
    options = parse()
    frames = read(options.video, options.frames)
    model, detector = find_model(options.model), find_detector(options.detector)
    spec = ModelSpec.from_file(options.spec) if options.spec else ModelFile.read(model).spec
    detector_spec = DetectorSpec.from_file(options.detector_spec) if options.detector_spec else None

    def open_predictor() -> Predictor:
        return Predictor(model, spec=spec, detector=Detector(detector, spec=detector_spec))

    console = Console()
    height, width = frames[0].shape[:2]
    figures: dict[str, object] = {"video": options.video.name, "frame": f"{width} x {height}", "frames": len(frames)}
    with open_predictor() as predictor:
        shown = detector_spec or written_spec(detector)
        usual = DetectThenLoop(detector, shown, model, replace(spec, refinement="shift"))
        figures["work, ms"] = work(predictor, usual, frames, console)
        figures["camera, ms"] = camera(predictor, usual, frames, options, console)
        if options.streams > 1:
            figures[f"{options.streams} cameras"] = cameras(predictor, frames, options, console)
    console.print(str(save("streams", figures)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="garment-landmarks")
    parser.add_argument("--spec")
    parser.add_argument("--detector", default="garment-detector")
    parser.add_argument("--detector-spec")
    parser.add_argument("--frames", type=int, default=120, help="the first so many of the video")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each camera run")
    parser.add_argument("--streams", type=int, default=1, help="also so many cameras at once")
    return parser.parse_args()


def read(path: Path, limit: int) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame for frame, _ in zip(reader, range(limit), strict=False)]


def written_spec(detector: Path) -> DetectorSpec:
    """The spec in a detector's file, with its outputs as the file has them."""
    import onnx

    metadata = {item.key: item.value for item in onnx.load(str(detector)).metadata_props}
    return DetectorSpec.from_metadata(metadata, source=str(detector))


def work(predictor: Predictor, usual: DetectThenLoop, frames: list[np.ndarray], console: Console) -> dict[str, object]:
    """Milliseconds of a frame; the ways take turns, so that what else the machine does meets all of them."""
    tracker = Tracker(Tracking(every=10), predictor.spec)

    def tracked(frame: np.ndarray, number: int) -> None:
        asked = tracker.next_boxes(number / 30)
        boxes, categories = asked or (None, ())
        result = predictor.predict(frame, boxes, categories=categories or None)
        tracker.update(result, number / 30, detected=asked is None)

    ways: dict[str, Callable[[np.ndarray, int], object]] = {
        "detect, then loop": lambda frame, number: usual.run(frame),
        "edgepose, detects each frame": lambda frame, number: predictor.predict(frame),
        "edgepose, tracks": tracked,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    objects, differences = [], []
    for number, frame in enumerate(track(frames, len(frames), "work")):
        for name, run in ways.items():
            start = perf_counter()
            run(frame, number)
            times[name].append((perf_counter() - start) * 1e3)
        result = predictor.predict(frame)
        objects.append(len(result))
        for box, points, scores in zip(result.boxes, result.keypoints, result.scores, strict=True):
            same, _ = usual.landmarks(frame, box)
            differences += np.linalg.norm(same - points, axis=1)[scores > 0.4].tolist()
    table = Table("way", "p50", "p95", "min", title="Work on one frame, ms")
    rows = {name: summary(values[WARM_UP:]) for name, values in times.items()}
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.1f}" for key in ("p50", "p95", "min")))
    console.print(table)
    median = float(np.median(differences)) if differences else float("nan")
    console.print(f"{np.mean(objects):.2f} objects a frame; same boxes: landmarks differ by {median:.2f} px (median)")
    return {**rows, "objects a frame": round(float(np.mean(objects)), 2), "landmark difference, px": round(median, 3)}


def camera(
    predictor: Predictor, usual: DetectThenLoop, frames: list[np.ndarray], options: argparse.Namespace, console: Console
) -> dict[str, object]:
    """Age of a frame when its landmarks are there, ms, and how many frames a second got theirs."""
    rows: dict[str, object] = {}
    ages: list[float] = []
    for frame, captured in Camera(frames, options.fps, options.seconds):
        usual.run(frame)
        ages.append((monotonic() - captured) * 1e3)
    rows["detect, then loop"] = of_camera(ages, options.seconds)
    for name, tracking in (("edgepose, detects each frame", False), ("edgepose, tracks", True)):
        ages = []
        source = Camera(frames, options.fps, options.seconds)
        with predictor.stream(iter(source), policy="newest", tracking=tracking) as stream:
            ages += [(monotonic() - item.time) * 1e3 for item in stream]
        rows[name] = of_camera(ages, options.seconds)
    table = Table("way", "p50", "p95", "min", "frames/s", title=f"Age of a frame at {options.fps:g} frames/s, ms")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.1f}" for key in ("p50", "p95", "min", "frames/s")))
    console.print(table)
    return rows


def cameras(
    predictor: Predictor, frames: list[np.ndarray], options: argparse.Namespace, console: Console
) -> dict[str, object]:
    """Several cameras on one predictor: age of a frame, and each one's share."""
    sources = [iter(Camera(frames, options.fps, options.seconds)) for _ in range(options.streams)]
    ages: list[float] = []
    shares = [0] * options.streams
    with predictor.stream(sources, policy="newest", tracking=True) as stream:
        for item in stream:
            ages.append((monotonic() - item.time) * 1e3)
            shares[item.source] += 1
    row = {**of_camera(ages, options.seconds), "frames of each": shares}
    console.print(f"{options.streams} cameras, tracked: {row}")
    return row


def of_camera(ages: list[float], seconds: float) -> dict[str, float]:
    return {**summary(ages[WARM_UP:]), "frames/s": round(len(ages) / seconds, 1)}


if __name__ == "__main__":
    main()
