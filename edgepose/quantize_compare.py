"""The pictures of a quantisation, and what the float model and the INT8 model find in those that did not calibrate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.crops import Crops
from edgepose.engines.onnxruntime import OnnxRuntimeEngine
from edgepose.errors import InputError
from edgepose.frames import whole_image_box
from edgepose.media import photos_in, read_photo
from edgepose.parity import Reference, compare, match
from edgepose.predictor import Predictor
from edgepose.quantize_report import Calibration, Distances, QuantizationReport
from edgepose.spec import ModelSpec

__all__ = ["LabelledObject", "Picture", "Pictures", "compare_models", "crops_of", "read_pictures", "split"]

Progress = Callable[[str, float], None]
Array = NDArray[np.float32]

CALIBRATED = 64  # pictures; with 16 or 128 of them the mean distance differed by less than 0.04 px
COMPARED = 100
FEWEST = 10
THRESHOLDS = (0.05, 0.2)  # of PCK
MAX_BATCH = 16


class LabelledObject(Protocol):
    """One labelled object, as ``edgepose.training.coco.load_coco`` reads it from a COCO file; frame px all."""

    @property
    def image(self) -> Path: ...
    @property
    def size(self) -> tuple[int, int]: ...  # (w, h) of the image
    @property
    def box(self) -> Array: ...  # (4,) xyxy
    @property
    def keypoints(self) -> Array: ...  # (k, 2)
    @property
    def visible(self) -> Array: ...  # (k,) above 0 where labelled
    @property
    def first_channel(self) -> int: ...  # of the model's, which the first keypoint belongs to


Pictures: TypeAlias = str | Path | Sequence[str | Path] | Sequence[LabelledObject]


@dataclass(frozen=True)
class Picture:
    """A picture and what is labelled in it; without labels it shows one object, which fills it."""

    path: Path
    objects: tuple[LabelledObject, ...] = ()

    def read(self) -> tuple[NDArray[np.uint8], Array]:
        """(H, W, 3) uint8 BGR, and the objects' boxes (n, 4) xyxy, frame px.

        Raises:
            InputError: it cannot be read, or has another size than its labels say.
        """
        frame = read_photo(self.path)
        if not self.objects:
            return frame, whole_image_box(frame)
        size = (frame.shape[1], frame.shape[0])
        if size != tuple(self.objects[0].size):
            raise InputError(f"{self.path} is {size} px (w, h), by its labels {self.objects[0].size}: correct them")
        return frame, np.stack([np.asarray(item.box, np.float32) for item in self.objects])


EXPECTED = (
    "pictures must be a folder, a list of photos by path, or labelled objects as edgepose.training.coco.load_coco "
    "reads them"
)


def read_pictures(pictures: Pictures) -> list[Picture]:
    """A folder's photos, photos by path, or the pictures of labelled objects, each once.

    Raises:
        InputError: they are too few, or something else.
    """
    if isinstance(pictures, Iterator):
        pictures = list(pictures)  # it can be asked but once
    if isinstance(pictures, (str, Path)):
        found = [Picture(path) for path in photos_in(Path(pictures))]
    elif not isinstance(pictures, Iterable):
        raise InputError(f"{EXPECTED}, got {pictures!r:.200}")
    elif all(isinstance(item, (str, Path)) for item in pictures):
        found = [Picture(Path(path)) for path in dict.fromkeys(map(str, pictures))]
    elif all(hasattr(item, "box") and hasattr(item, "image") for item in pictures):
        by_path: dict[Path, list[Any]] = {}
        for item in pictures:
            by_path.setdefault(Path(item.image), []).append(item)  # type: ignore[union-attr]
        found = [Picture(path, tuple(items)) for path, items in by_path.items()]
    else:
        raise InputError(f"{EXPECTED}, got {pictures!r:.200}")
    if len(found) < FEWEST:
        raise InputError(
            f"at least {FEWEST} pictures are needed, half of them to calibrate and half to compare on, got "
            f"{len(found)}; a hundred or more of the model's own domain are better"
        )
    return found


def split(pictures: Sequence[Picture], seed: int) -> tuple[list[Picture], list[Picture]]:
    """Those that calibrate, at most CALIBRATED and half of all, and those to compare on, at most COMPARED; disjoint."""
    order = np.random.default_rng(seed).permutation(len(pictures))
    half = min(CALIBRATED, len(pictures) // 2)
    drawn = [pictures[number] for number in order]
    return drawn[:half], drawn[half : half + COMPARED]


def crops_of(pictures: Sequence[Picture], spec: ModelSpec, report_to: Progress) -> Crops:
    """Every object as a Predictor crops it, padding included."""
    parts = []
    for number, picture in enumerate(pictures):
        report_to(f"reading {len(pictures)} pictures", number / len(pictures))
        frame, boxes = picture.read()
        parts.append(Crops.from_frames([frame] * len(boxes), spec, boxes=boxes).images)
    return Crops(np.concatenate(parts), "photos")


class _Recording(OnnxRuntimeEngine):
    """Keeps the heatmaps that a Predictor reads, for the comparison that `edgepose build` makes."""

    def __init__(self, path: Path, spec: ModelSpec | None) -> None:
        super().__init__(path, spec=spec, max_batch=MAX_BATCH)
        self.heatmaps: list[Array] = []

    def run(self, images: Array) -> Array:
        heatmaps = super().run(images)
        self.heatmaps.append(heatmaps.copy())
        return heatmaps


@dataclass(frozen=True)
class _Found:
    """What a model finds in some pictures.

    Attributes:
        boxes: (N, 4) xyxy, frame px.
        keypoints: (N, K, 2), frame px.
        heatmaps: (N, K, h, w).
        spec: of the model, canonical.
    """

    boxes: Array
    keypoints: Array
    heatmaps: Array
    spec: ModelSpec


def compare_models(
    model: tuple[Path, ModelSpec],
    quantized: Path,
    pictures: Sequence[Picture],
    source: str,
    calibration: Calibration,
    report_to: Progress,
) -> QuantizationReport:
    """Run both models through a Predictor.

    Args:
        model: the float model's file and its spec.
        quantized: the INT8 file, with its spec inside.
        pictures: those to compare on.
        source: what they are, for the report.
        calibration: where the INT8 model comes from, for the report.
        report_to: progress.

    Returns:
        The report, but for the convolutions.

    Raises:
        InputError: a picture is not usable.
        ModelError, EngineError: a model is not usable.
    """

    def told(part: int) -> Callable[[int], None]:
        total = 2 * len(pictures)
        return lambda done: report_to(f"comparing on {len(pictures)} pictures", (part * len(pictures) + done) / total)

    exact = _run(*model, pictures, told(0))
    int8 = _run(quantized, None, pictures, told(1))
    spec = exact.spec
    reference = Reference.from_heatmaps(_blank(len(exact.boxes), spec, source), exact.heatmaps, spec)
    matches = match(reference, int8.heatmaps, spec)
    parity = compare(exact.heatmaps, int8.heatmaps, spec, scope="engine", source=source)
    moved = int8.keypoints - exact.keypoints
    frame = np.linalg.norm(moved, axis=2)
    affines = geometry.crop_affines(exact.boxes, spec.input_size, codec=spec.codec, padding=spec.padding)
    crop = np.linalg.norm(moved * affines[:, None, [0, 1], [0, 1]], axis=2)
    sides = (exact.boxes[:, 2:] - exact.boxes[:, :2]).max(axis=1)
    near = matches.counts & ~matches.jumped
    return QuantizationReport(
        calibration=calibration,
        parity=parity,
        crop=Distances.of(crop[near]),
        frame=Distances.of(frame[near]),
        box=Distances.of((frame / sides[:, None])[near]),
        mean_with_jumps=Distances.of(crop[matches.counts]).mean,
        pck=_pck_of({"float32": exact.keypoints, "int8": int8.keypoints}, pictures, sides),
    )


def _run(path: Path, spec: ModelSpec | None, pictures: Sequence[Picture], told: Callable[[int], None]) -> _Found:
    """All pictures through a Predictor."""
    engine = _Recording(path, spec)
    boxes, keypoints = [], []
    with Predictor(engine) as predictor:
        for number, picture in enumerate(pictures):
            told(number)
            frame, own = picture.read()
            boxes.append(own)
            keypoints.append(predictor.predict(frame, own).keypoints)
        return _Found(np.concatenate(boxes), np.concatenate(keypoints), np.concatenate(engine.heatmaps), predictor.spec)


def _blank(count: int, spec: ModelSpec, source: str) -> Crops:
    """What a Reference asks for and the comparison does not look at."""
    w, h = spec.input_size
    return Crops(np.broadcast_to(np.zeros(1, np.uint8), (count, h, w, 3)), source)


def _pck_of(found: dict[str, Array], pictures: Sequence[Picture], sides: Array) -> dict[str, float]:
    """PCK of each model's keypoints (N, K, 2) against the labels, averaged over landmarks as `edgepose evaluate` does.

    ``sides``: (N,) the boxes' longer sides, frame px. Empty without labels.
    """
    objects = [item for picture in pictures for item in picture.objects]
    if not objects:
        return {}
    figures = {}
    for threshold in THRESHOLDS:
        for name, keypoints in found.items():
            correct = np.full(keypoints.shape[:2], np.nan)
            for row, item in enumerate(objects):
                channels = slice(item.first_channel, item.first_channel + len(item.keypoints))
                error = np.linalg.norm((keypoints[row, channels] - item.keypoints) / sides[row], axis=1)
                correct[row, channels] = np.where(np.asarray(item.visible) > 0, error < np.float32(threshold), np.nan)
            seen = ~np.isnan(correct).all(axis=0)
            if not seen.any():
                return {}
            figures[f"PCK@{threshold:g} {name}"] = float(np.nanmean(correct[:, seen], axis=0).mean())
    return figures
