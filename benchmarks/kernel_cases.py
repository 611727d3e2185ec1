"""What is measured of the kernels: arguments as frames, detectors and networks make them, and the ways to do each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks.peers import kernel_loops as loops
from edgepose.benchmarks.scenes import FRAMES, Scene, scene
from edgepose.geometry import crop_affines, letterbox_placement
from edgepose.kernels import reference
from edgepose.specfields import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CROPS", "FRAME", "INPUT_SIZE", "Case", "cpu_cases", "detector_rows", "large_boxes", "peaks"]

CROPS, FRAME, INPUT_SIZE, DETECTOR_SIZE = 8, (1920, 1080), (192, 256), (640, 640)
CHANNELS = (8, 25, 294)
COLOURS: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
REFINEMENTS: tuple[Literal["none", "shift", "dark", "dark_udp"], ...] = ("none", "shift", "dark", "dark_udp")
SAMPLINGS: tuple[Literal["opencv4", "area", "linear"], ...] = ("opencv4", "area", "linear")
HALF_TO_WHOLE = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])  # a pixel is the mean of 2x2
LARGER = np.float32(1.8)
INSTALL_RTMLIB = "rtmlib was left out: pip install --no-deps rtmlib tqdm"


@dataclass(frozen=True)
class Case:
    """One kernel with certain arguments.

    Attributes:
        kernel, name: what it is called in tables.
        ways: by name, "edgepose" first. Each returns its result.
        difference: of (another's result, ours): how far they are apart, a value for each element, in
        unit: for instance ``levels`` of a pixel.
        limit: largest mean difference of ways that are compared in time, and why it is not 0.
        renew: called between runs, outside of what is timed: gives back what a way has overwritten.
    """

    kernel: str
    name: str
    ways: Mapping[str, Callable[[], Any]]
    difference: Callable[[Any, Any], NDArray[Any]]
    unit: str
    limit: float
    renew: Callable[[], None] = lambda: None


class Copies:
    """Copies of an array for a way that writes into its argument; made when nobody looks at the clock."""

    def __init__(self, array: NDArray[Any], count: int) -> None:
        self._array, self._count = array, count
        self._free: list[NDArray[Any]] = []
        self._used: list[NDArray[Any]] = []

    def take(self) -> NDArray[Any]:
        """One that nobody has written into since :meth:`renew`."""
        self._used.append(self._free.pop())
        return self._used[-1]

    def renew(self) -> None:
        """All are whole again."""
        while len(self._free) + len(self._used) < self._count:
            self._used.append(np.empty_like(self._array))
        for copy in self._used:
            np.copyto(copy, self._array)
        self._free += self._used
        self._used = []


def cpu_cases(*, quick: bool = False) -> tuple[list[Case], list[str]]:
    """All cases with NumPy, and what a reader must know of them. ``quick``: one of each kernel."""
    notes = [
        f"Frames are {FRAME[0]}x{FRAME[1]} with rendered garments, crops {INPUT_SIZE[0]}x{INPUT_SIZE[1]}, "
        f"{CROPS} of them; heatmaps 48x64.",
        "crop_warp differs from cv2.warpAffine where the installed OpenCV no longer rounds coordinates to 1/32 px "
        "(OpenCV 5 does not): up to a few levels in single pixels.",
        "area halves the frame where a crop's pixel spans four of the frame's: of the large boxes on the 4K frame, not "
        "on the others. There the peers halve it by cv2.resize.",
        "Crops begin with boxes, and every way takes new memory for its result.",
    ]
    try:
        rtmlib = loops.rtmlib_functions(INPUT_SIZE, IMAGENET_MEAN, IMAGENET_STD)
    except ImportError:
        rtmlib = {}
        notes.append(INSTALL_RTMLIB)
    cases = [_crop_case(sampling, rtmlib) for sampling in SAMPLINGS[: 1 if quick else None]]
    cases += [] if quick else [_halving_case()]
    for channels in CHANNELS[: 1 if quick else None]:
        maps = peaks(channels)
        cases += [_decode_case(maps, refinement, rtmlib) for refinement in REFINEMENTS]
    cases += [_letterbox_case(), _selection_case(rtmlib), _flip_case(25)]
    return cases, notes


def _crop_case(sampling: Literal["opencv4", "area", "linear"], rtmlib: Mapping[str, Callable[..., Any]]) -> Case:
    frame, boxes = scene(*FRAME, CROPS)
    std = np.array(IMAGENET_STD, np.float32)[:, None, None]

    def affines() -> NDArray[np.float64]:
        return crop_affines(boxes, INPUT_SIZE)  # MSRA's: what rtmlib makes of the same boxes, within the clock too

    ways: dict[str, Callable[[], Any]] = {
        "edgepose": lambda: reference.crop_warp(frame, affines(), INPUT_SIZE, sampling=sampling, **COLOURS),
        "warpAffine, NumPy": lambda: loops.warp_loop(frame, affines(), INPUT_SIZE, **COLOURS),
        "warpAffine, blobFromImages": lambda: loops.warp_blob(frame, affines(), INPUT_SIZE, **COLOURS),
    }
    if rtmlib:
        ways["rtmlib"] = lambda: rtmlib["crop_warp"](frame, boxes)

    def difference(other: Any, ours: NDArray[np.float32]) -> NDArray[Any]:
        planes = np.stack(other)[:, ::-1] if isinstance(other, list) else other  # rtmlib's are BGR
        return np.asarray(np.abs(planes - ours) * std)

    # 1/32 px of a picture's edges, and rounding to levels or not: 0.23 levels in the mean, seen with OpenCV 5
    return Case("crop_warp", f"{sampling}, {CROPS} crops", ways, difference, "levels", 0.5)


def _halving_case() -> Case:
    """area on large boxes of a 4K frame, which it halves once: beside it a frame halved by OpenCV, cut as any other."""
    frame, boxes = large_boxes()
    size = (frame.shape[1] // 2, frame.shape[0] // 2)
    std = np.array(IMAGENET_STD, np.float32)[:, None, None]

    def halved() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The frame, and the affines that lead from its pixels into the crops."""
        half = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        return half.astype(np.uint8, copy=False), crop_affines(boxes, INPUT_SIZE) @ HALF_TO_WHOLE

    ways: dict[str, Callable[[], Any]] = {
        "edgepose": lambda: reference.crop_warp(
            frame, crop_affines(boxes, INPUT_SIZE), INPUT_SIZE, sampling="area", **COLOURS
        ),
        "warpAffine, NumPy": lambda: loops.warp_loop(*halved(), INPUT_SIZE, **COLOURS),
        "warpAffine, blobFromImages": lambda: loops.warp_blob(*halved(), INPUT_SIZE, **COLOURS),
    }

    def difference(other: NDArray[np.float32], ours: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(np.abs(other - ours) * std)

    return Case("crop_warp", f"area, {CROPS} large crops of 4K", ways, difference, "levels", 0.5)  # as _crop_case's


def large_boxes() -> Scene:
    """A 4K frame, and boxes of which a crop's pixel spans four to eight of the frame's."""
    frame, boxes = scene(*FRAMES["4K"], CROPS)
    middles, halves = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    return Scene(frame, np.concatenate([middles - LARGER * halves, middles + LARGER * halves], axis=1))


def _decode_case(
    maps: NDArray[np.float32], refinement: Literal["none", "shift", "dark", "dark_udp"], rtmlib: Mapping[str, Any]
) -> Case:
    from edgepose.benchmarks.peers.mmpose_steps import decode as mmpose_decode

    copies = Copies(maps, 8)
    ways: dict[str, Callable[[], Any]] = {
        "edgepose": lambda: reference.decode_heatmaps(maps, refinement=refinement),
        "MMPose's steps": lambda: mmpose_decode(maps, refinement),
    }
    if rtmlib and refinement == "dark_udp":
        ways["rtmlib"] = lambda: (rtmlib["decode_heatmaps"](copies.take()),)

    def difference(other: Any, ours: Any) -> NDArray[Any]:
        return np.asarray(np.linalg.norm(other[0] - ours[0], axis=-1))

    name = f"{refinement}, {maps.shape[0]}x{maps.shape[1]} maps"
    # rtmlib blurs without rescaling and mirrors at borders: the same peak, cells apart near a border only
    return Case("decode_heatmaps", name, ways, difference, "cells", 0.01, copies.renew)


def _letterbox_case() -> Case:
    frame = scene(*FRAME, CROPS).frame
    std = np.array(IMAGENET_STD, np.float32)[:, None, None]
    ways: dict[str, Callable[[], Any]] = {
        "edgepose": lambda: reference.letterbox(frame, DETECTOR_SIZE, **COLOURS),
        "resize, NumPy": lambda: loops.loop_letterbox(frame, DETECTOR_SIZE, 114, **COLOURS),
        "blobFromImage": lambda: loops.blob_letterbox(frame, DETECTOR_SIZE, 114, **COLOURS),
    }
    name = f"to {DETECTOR_SIZE[0]}x{DETECTOR_SIZE[1]}"
    # cv2.resize rounds weights to 1/2048 and the result to levels
    return Case("letterbox", name, ways, lambda other, ours: np.abs(other - ours) * std, "levels", 0.5)


def _selection_case(rtmlib: Mapping[str, Callable[..., Any]]) -> Case:
    rows = detector_rows()
    min_score, iou = 0.3, 0.65
    placement = letterbox_placement(FRAME, DETECTOR_SIZE)
    scores = np.zeros((len(rows), int(rows[:, 5].max()) + 1), np.float32)  # what rtmlib takes; made outside the clock
    scores[np.arange(len(rows)), rows[:, 5].astype(int)] = rows[:, 4]
    boxes = rows[:, :4].copy()
    options: dict[str, Any] = {"min_score": min_score, "nms_iou": iou, "max_detections": 100}
    ways: dict[str, Callable[[], Any]] = {
        "edgepose": lambda: reference.select_detections(rows, placement=placement, frame_size=FRAME, **options)[1],
        "NMSBoxesBatched": lambda: loops.nms_batched(rows, min_score, iou),
    }
    if rtmlib:
        ways["rtmlib"] = lambda: rtmlib["select_detections"](boxes, scores, min_score, iou)

    def difference(other: NDArray[np.int64], ours: NDArray[np.float32]) -> NDArray[Any]:
        """Scores name the rows, since no two are equal: 1 for each that only one of the two has kept."""
        return np.array([float(len(np.setxor1d(rows[other, 4], ours)))])

    # rtmlib counts a pixel more in width and height: a pair at the very limit may go the other way
    return Case("select_detections", f"{len(rows)} rows", ways, difference, "rows", 2)


def _flip_case(channels: int) -> Case:
    maps = peaks(channels)
    mirrored = np.ascontiguousarray(maps[..., ::-1])
    indices = np.random.default_rng(0).permutation(channels)
    ways: dict[str, Callable[[], Any]] = {
        "edgepose": lambda: reference.merge_flipped(maps, mirrored, indices, shift=True),
        "MMPose's steps": lambda: loops.merge_loop(maps, mirrored, indices, shift=True),
    }
    name = f"{CROPS}x{channels} maps"
    return Case("merge_flipped", name, ways, lambda other, ours: np.abs(other - ours), "of the peak", 0.0)


def peaks(channels: int, crops: int = CROPS) -> NDArray[np.float32]:
    """(crops, channels, 64, 48): a Gaussian peak in each map, over weak noise."""
    rng = np.random.default_rng(0)
    x, y = np.arange(48), np.arange(64)
    cx, cy = rng.uniform(4, 43, (crops, channels, 1)), rng.uniform(4, 59, (crops, channels, 1))
    gx, gy = np.exp(-((x - cx) ** 2) / 8), np.exp(-((y - cy) ** 2) / 8)
    maps = gy[..., :, None] * gx[..., None, :] * rng.uniform(0.5, 1, (crops, channels, 1, 1))
    return (maps + rng.normal(0, 0.005, maps.shape)).astype(np.float32)


def detector_rows(count: int = 8400, objects: int = 40) -> NDArray[np.float32]:
    """(count, 6) x1, y1, x2, y2, score, label: what YOLOX at 640x640 says of a frame with so many objects.

    Ten rows see each object, a little beside it; all others have low scores. All boxes lie within the picture, whose
    letterbox takes rows 140 to 500: edgepose clips boxes to the frame before it compares them, the peers do not.
    """
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform((100, 205), (540, 435), (count, 2)), rng.uniform(20, 100, (count, 2))
    labels = rng.integers(0, 13, count)
    scores = rng.uniform(0, 0.2, count)
    for number in range(objects):
        own = slice(10 * number, 10 * number + 10)
        centres[own] = centres[own.start] + rng.normal(0, 2, (10, 2))
        sides[own] = sides[own.start] * rng.uniform(0.95, 1.05, (10, 2))
        labels[own], scores[own] = labels[own.start], rng.uniform(0.4, 0.95, 10)
    columns = [centres - sides / 2, centres + sides / 2, scores[:, None], labels[:, None]]
    return np.concatenate(columns, axis=1).astype(np.float32)[rng.permutation(count)]
