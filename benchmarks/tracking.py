"""What tracking and smoothing do: python benchmarks/tracking.py [VIDEO MODEL SPEC DETECTOR DETECTOR_SPEC]

Rendered garments, whose true landmarks are known, with sensor noise: one that rests and the same one moving at several
speeds. Their detector is the truth, off by 1 % at each side. With five files also a real video: its first frame as a
still with noise, and the video as it is, whose truth nobody knows: there the lag is that against the raw landmarks.

jitter  RMS of a landmark's way from frame to frame, and its standard deviation, px
lag     the shift of the true path that correlates best with the landmarks, frames; added: smoothed less raw
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from results_file import save
from rich.table import Table
from scipy.interpolate import CubicSpline

from edgepose import PoseResult, Predictor
from edgepose.association import overlaps
from edgepose.console import console, track
from edgepose.smooth import OneEuro, Smoother
from edgepose.track import Tracker, Tracking
from edgepose.training.synthetic import MovingGarment

SEEDS = (14, 3, 5)
SIZE = (640, 480)
FPS = 30.0
LOOP = 120  # frames of one turn of the garment at the slowest speed
STRIDES = (1, 2, 4)  # frames taken of it: 1, 2, 4 times as fast
NOISE = 4.0  # grey levels, of each pixel of each frame
DETECTOR_NOISE = 0.01  # object sizes, of each side of a box
STILL_FRAMES = 240
DRIFT_FRAMES = 1000
SETTLE = 30  # frames left out of the jitter: the filter has only begun
VISIBLE = 0.3
SHIFTS = np.arange(-3, 5, 0.02)  # frames

Find = Callable[[np.ndarray, np.ndarray | None], PoseResult]  # (frame, boxes or None: detect) -> landmarks


@dataclass
class Recording:
    """What came out of one clip with one object.

    Attributes:
        raw, smoothed: (T, K, 2) landmarks, frame px.
        scores: (T, K).
        boxes: (T, 4) xyxy, frame px.
        detections, ids: how many.
    """

    raw: np.ndarray
    smoothed: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    detections: int
    ids: int

    @property
    def size(self) -> float:
        """Of the object, px: the median root of its box's area."""
        return float(np.median(np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))))


def record(frames: Iterable[np.ndarray], find: Find, spec: Any, fps: float, every: int = 10) -> Recording:
    """Track and smooth a clip; the object with the most frames is the one that counts."""
    tracker, smoother = Tracker(Tracking(every=every), spec), Smoother()
    rows: dict[int, list[tuple[np.ndarray, ...]]] = {}
    detections = 0
    for index, frame in enumerate(frames):
        time = index / fps
        asked = tracker.next_boxes(time)
        detections += asked is None
        found = find(frame, None if asked is None else asked[0])
        raw = tracker.update(found, time, detected=asked is None)
        smoothed = smoother.smooth(raw, time)
        assert raw.track_ids is not None
        for row, number in enumerate(raw.track_ids.tolist()):
            values = (raw.keypoints[row], smoothed.keypoints[row], raw.scores[row], raw.boxes[row])
            rows.setdefault(number, []).append(tuple(np.asarray(value, np.float64) for value in values))
    longest = max(rows.values(), key=len)
    return Recording(*(np.array(column) for column in zip(*longest, strict=True)), detections, len(rows))


# Measures ------------------------------------------------------------------------------------------


def jitter(path: np.ndarray) -> dict[str, float]:
    """(T, K, 2) -> RMS of the frame-to-frame way and standard deviation, px, over the landmarks."""
    rest = path[SETTLE:]
    return {
        "rms_step": float(np.sqrt((np.diff(rest, axis=0) ** 2).sum(axis=-1).mean())),
        "std": float(np.sqrt(rest.var(axis=0).sum(axis=-1).mean())),
    }


def lag(delayed: np.ndarray, path: np.ndarray) -> float:
    """(T, K, 2) twice -> how many frames the first is behind the second."""
    times = np.arange(len(path))
    inside = times[8:-8]
    curve, target = CubicSpline(times, path), delayed[inside] - delayed[inside].mean(axis=0)
    correlations = []
    for shift in SHIFTS:
        there = curve(inside - shift)
        there -= there.mean(axis=0)
        correlations.append((target * there).sum() / np.sqrt((target**2).sum() * (there**2).sum()))
    return float(SHIFTS[int(np.argmax(correlations))])


def mean_distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second, axis=-1).mean())


def still_figures(recording: Recording, seen: np.ndarray) -> dict[str, float]:
    raw, smoothed = jitter(recording.raw[:, seen]), jitter(recording.smoothed[:, seen])
    return {
        **{f"raw_{name}": value for name, value in raw.items()},
        **{f"smoothed_{name}": value for name, value in smoothed.items()},
        **{f"{name}_ratio": raw[name] / smoothed[name] for name in raw},
        "raw_rms_step/size": raw["rms_step"] / recording.size,
    }


# Scenes --------------------------------------------------------------------------------------------


def noisy(frame: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(frame + random.normal(0, NOISE, frame.shape), 0, 255).astype(np.uint8)


def garment(seed: int, predictor: Predictor) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All figures of one garment, and curves to plot."""
    clip = MovingGarment(seed=seed, size=SIZE, frames=LOOP)
    samples = [clip.frame(index) for index in range(LOOP)]
    truth = np.array([sample.keypoints for sample in samples], np.float64)
    boxes = np.array([sample.box for sample in samples], np.float64)
    random = np.random.default_rng((seed, 1))

    def follow(numbers: np.ndarray, every: int, detector_noise: float = DETECTOR_NOISE) -> Recording:
        images = [samples[number].image for number in numbers]
        steps = iter(numbers)

        def find(frame: np.ndarray, asked: np.ndarray | None) -> PoseResult:
            box = boxes[next(steps)]
            size = np.sqrt((box[2:] - box[:2]).prod())
            given = (box + random.normal(0, detector_noise * size, 4))[None] if asked is None else asked
            return predictor.predict(noisy(frame, random), given)

        return record(images, find, predictor.spec, FPS, every)

    still = follow(np.zeros(STILL_FRAMES, int), 10)
    seen = (still.scores.min(axis=0) >= VISIBLE) & (samples[0].visible > 0)
    each = follow(np.zeros(STILL_FRAMES, int), 1)
    figures: dict[str, Any] = {
        "still": still_figures(still, seen),
        "still, detected in each frame": still_figures(each, seen),
    }
    curves = {"still raw": still.raw[:, seen], "still smoothed": still.smoothed[:, seen]}
    for stride in STRIDES:
        numbers = np.arange(0, 2 * LOOP, stride) % LOOP
        moving, true = follow(numbers, 10), truth[numbers][:, seen]
        speeds = np.linalg.norm(np.diff(true, axis=0), axis=-1) * FPS / moving.size
        raw, smoothed = moving.raw[:, seen], moving.smoothed[:, seen]
        figures[f"moving x{stride}"] = {
            "mean_speed": float(speeds.mean()),
            "top_speed": float(speeds.max()),
            "raw_lag": lag(raw, true),
            "added_lag": lag(smoothed, true) - lag(raw, true),
            "raw_error": mean_distance(raw, true),
            "smoothed_error": mean_distance(smoothed, true),
            "detections": moving.detections,
            "ids": moving.ids,
        }
        if stride == STRIDES[-1]:
            curves |= {"true": true, "raw": raw, "smoothed": smoothed}
    figures["no detection"] = drift(follow(np.arange(DRIFT_FRAMES) % LOOP, 10**9, 0.0), boxes)
    return figures, curves


def drift(recording: Recording, boxes: np.ndarray) -> dict[str, float]:
    """IoU of the boxes with the true ones, while there is no detection but the first."""
    iou = np.array(
        [overlaps(box[None], boxes[i % LOOP][None])[0, 0] for i, box in enumerate(recording.boxes)],
    )
    return {
        "frames": len(iou),
        "least_iou": float(iou.min()),
        "first_loop_iou": float(iou[:LOOP].mean()),
        "last_loop_iou": float(iou[-LOOP:].mean()),
    }


def video(path: Path, model: Path, spec: Path, detector: Path, detector_spec: Path) -> dict[str, Any]:
    """A real video of one person."""
    from edgepose.detector import Detector

    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    random = np.random.default_rng(0)
    with Predictor(model, spec=spec) as predictor, Detector(detector, spec=detector_spec) as found:

        def find(frame: np.ndarray, asked: np.ndarray | None) -> PoseResult:
            return predictor.predict(frame, found.detect(frame).boxes if asked is None else asked)

        stills = track((noisy(frames[0], random) for _ in range(STILL_FRAMES)), STILL_FRAMES, f"{path.name}, a still")
        still = record(stills, find, predictor.spec, FPS)
        moving = record(frames, find, predictor.spec, fps)
        each = record(frames, find, predictor.spec, fps, every=1)
    seen = still.scores.min(axis=0) >= VISIBLE
    moved = np.median(moving.scores, axis=0) >= VISIBLE
    speeds = np.linalg.norm(np.diff(moving.raw[:, moved], axis=0), axis=-1) * fps / moving.size
    return {
        "still": still_figures(still, seen),
        "as it is": {
            "fps": fps,
            "frames": len(frames),
            "frames_with_the_object": len(moving.raw),
            "mean_speed": float(speeds.mean()),
            "top_speed": float(speeds.max()),
            "added_lag": lag(moving.smoothed[:, moved], moving.raw[:, moved]),
            "detections": moving.detections,
            "ids": moving.ids,
            "distance_to_detecting_each_frame/size": (
                float(np.median(np.linalg.norm(moving.raw - each.raw, axis=-1)[:, moved]) / moving.size)
                if len(moving.raw) == len(each.raw)
                else None
            ),
        },
    }


def costs(spec: Any) -> dict[str, float]:
    """Microseconds a frame of next_boxes, update and smooth, for still objects side by side; median of 300."""
    random = np.random.default_rng(0)
    figures = {}
    for count in (1, 4, 16):
        corner = np.array([[40 + 110 * (i % 8), 40 + 300 * (i // 8)] for i in range(count)], np.float64)
        boxes = np.concatenate([corner, corner + np.array([100, 250])], axis=1)
        layout = random.uniform(0.05, 0.95, (spec.num_keypoints, 2))
        tracker, smoother, times = Tracker(None, spec), Smoother(), []
        for index in range(300):
            points = corner[:, None] + layout * [100, 250] + random.normal(0, 0.3, (count, spec.num_keypoints, 2))
            start = perf_counter()
            asked = tracker.next_boxes(index / FPS)
            taken = perf_counter() - start
            scores = np.full(points.shape[:2], 0.9)
            result = PoseResult(points, scores, boxes if asked is None else asked[0], spec, (1000, 700))
            start = perf_counter()
            smoother.smooth(tracker.update(result, index / FPS, detected=asked is None), index / FPS)
            times.append(taken + perf_counter() - start)
        figures[f"{count} objects"] = float(np.median(times) * 1e6)
    return figures


# Output --------------------------------------------------------------------------------------------


def print_tables(figures: dict[str, dict[str, Any]]) -> None:
    rest = Table(title="at rest: jitter, px", title_justify="left")
    for heading in ("", "", "raw step", "smoothed", "ratio", "raw std", "smoothed", "ratio"):
        rest.add_column(heading, justify="right" if heading else "left")
    move = Table(title="moving; speeds in object sizes per second", title_justify="left")
    for heading in ("", "", "mean speed", "top speed", "added lag", "raw error", "smoothed", "detections", "ids"):
        move.add_column(heading, justify="right" if heading else "left")
    for name, scenes in figures.items():
        for scene, values in scenes.items():
            if "rms_step_ratio" in values:
                keys = ("raw_rms_step", "smoothed_rms_step", "rms_step_ratio", "raw_std", "smoothed_std", "std_ratio")
                rest.add_row(name, scene, *(f"{values[key]:.2f}" for key in keys))
            elif "added_lag" in values:
                errors = [f"{values[key]:.2f}" if key in values else "-" for key in ("raw_error", "smoothed_error")]
                speeds = [f"{values[key]:.2f}" for key in ("mean_speed", "top_speed", "added_lag")]
                move.add_row(name, scene, *speeds, *errors, str(values["detections"]), str(values["ids"]))
            elif "least_iou" in values:
                console.print(f"{name}, {values['frames']} frames with one detection: IoU with the true box", end=" ")
                console.print(f"{values['first_loop_iou']:.3f} in the first loop, {values['last_loop_iou']:.3f} in")
                console.print(f"  the last, at least {values['least_iou']:.3f}")
    console.print(rest)
    console.print(move)


def plot(curves: dict[str, np.ndarray], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    times = np.arange(len(curves["still raw"])) / FPS
    axes[0].plot(times, curves["still raw"][:, 0, 0], lw=0.8, color="0.6", label="raw")
    axes[0].plot(times, curves["still smoothed"][:, 0, 0], lw=1.4, color="C0", label="smoothed")
    axes[0].set(title="at rest", xlabel="time, s", ylabel="x of a landmark, px")
    times = np.arange(len(curves["true"])) / FPS
    for name, color in (("true", "k"), ("raw", "0.6"), ("smoothed", "C0")):
        axes[1].plot(times, curves[name][:, 0, 0], lw=1.2, color=color, label=name)
    axes[1].set(title=f"moving x{STRIDES[-1]}", xlabel="time, s", ylabel="x of a landmark, px")
    for axis in axes:
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]]
    if len(files) not in (0, 5):
        sys.exit(f"expected no files, or VIDEO MODEL SPEC DETECTOR DETECTOR_SPEC, got {len(files)}; see the top of it")
    figures: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    with Predictor("garment-landmarks") as predictor:
        for seed in track(SEEDS, len(SEEDS), "garments"):
            figures[f"garment {seed}"], curves = garment(seed, predictor)
        cost = costs(predictor.spec)
    if files:
        figures[files[0].name] = video(*files)
    print_tables(figures)
    console.print("cost of tracking and smoothing a frame:", ", ".join(f"{k}: {v:.0f} us" for k, v in cost.items()))
    parameters = {"tracking": asdict(Tracking()), "one_euro": asdict(OneEuro())}
    written = save("tracking", {**figures, "cost_us": cost, "parameters": parameters}, unit="px, frames, sizes/s")
    plot(curves, written.with_suffix(".png"))
    console.print(written, soft_wrap=True)


if __name__ == "__main__":
    main()
