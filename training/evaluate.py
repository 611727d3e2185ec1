"""Evaluation with the runtime's own crop and decoder, so that a training figure is a deployment figure.

with Predictor("garment-landmarks") as predictor:
    evaluation = evaluate_predictor(predictor, load_coco("val.json", 8))
evaluation.pck_05, evaluation.intervals()["PCK@0.05"]
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.geometry import cells_to_frame, crop_transforms, validate_boxes
from edgepose.kernels.reference import crop_warp, decode_heatmaps
from edgepose.predictor import Predictor
from edgepose.spec import ModelSpec
from edgepose.training import bootstrap, metrics
from edgepose.training.coco import Annotation, read_frame

__all__ = ["Evaluation", "evaluate", "evaluate_predictor", "score"]

Array = npt.NDArray[np.float32]
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]  # edgepose.console.track
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one split; distances in frame px unless they say otherwise.

    Attributes:
        pck_20, pck_05: PCK at 0.2 and 0.05 of the box's longer side, averaged over landmarks as MMPose does.
        auc: MMPose's AUC (0 … 28.5 px).
        epe: mean error, px.
        mean_error: mean error as a fraction of the box's longer side.
        pck_05_by_keypoint: (K,) PCK@0.05 of each landmark, NaN where it is never visible.
        keypoints: (N, K, 2) float32, what was predicted, frame px; NaN in channels of other categories.
        annotations: the N objects.
        distances: of each landmark of each object; what :mod:`edgepose.training.report` makes tables and plots of.
    """

    pck_20: float
    pck_05: float
    auc: float
    epe: float
    mean_error: float
    pck_05_by_keypoint: tuple[float, ...]
    keypoints: Array = field(repr=False, compare=False)
    annotations: tuple[Annotation, ...] = field(repr=False, compare=False)
    distances: metrics.Distances = field(repr=False, compare=False)

    def metrics(self) -> dict[str, float]:
        """The figures under the names that a ModelSpec carries, rounded to five digits."""
        values = {"PCK@0.2": self.pck_20, "PCK@0.05": self.pck_05, "AUC": self.auc, "EPE": self.epe}
        return {name: round(v, 5) for name, v in {**values, "mean_error/longer_side": self.mean_error}.items()}

    def intervals(self, *, resamples: int = bootstrap.RESAMPLES, seed: int = 0) -> dict[str, tuple[float, float]]:
        """The 95 % interval (low, high) of each of :meth:`metrics`; see :mod:`edgepose.training.bootstrap`."""
        statistics, images = metrics.statistics(self.distances), self.images()
        drawn = bootstrap.resample(statistics, images, resamples=resamples, seed=seed)
        count = len(np.unique(images))
        return {s.name: bootstrap.interval(d.figures, count) for s, d in zip(statistics, drawn, strict=True)}

    def images(self) -> npt.NDArray[np.int64]:
        """(N,) the number of each object's image; objects of one image are drawn together in a resample."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(str(a.image), len(numbers)) for a in self.annotations], np.int64)


def evaluate_predictor(
    predictor: Predictor,
    annotations: Sequence[Annotation],
    *,
    boxes: Sequence[Array] | None = None,
    track: Track | None = None,
) -> Evaluation:
    """Run a predictor over a labelled split, all objects of an image in one call.

    Args:
        predictor: of an ONNX file or of an engine; its flip test and refinement are the ones evaluated.
        annotations: what :func:`load_coco` read; for a spec with ``categories`` each in its own category's channels.
        boxes: where to look, (4,) xyxy frame px for each annotation; None: in the annotated boxes. The errors are
            always relative to the annotated ones.
        track: wraps the loop, ``track(items, total, description)``, to show progress; None: silent.

    Raises:
        InputError: the split is empty, an image cannot be read, or the model has other landmarks than the labels.
    """
    spec = predictor.spec
    channels = _check(annotations, spec)
    crops = _boxes(annotations, boxes)
    keypoints = np.full((len(annotations), spec.num_keypoints, 2), np.nan, np.float32)
    groups = _by_image(annotations)
    frames = _ahead(lambda rows: (rows, read_frame(annotations[rows[0]])), groups)
    for rows, frame in _tracked(track, frames, len(groups)):
        categories = [annotations[row].category for row in rows] if channels is not None else None
        keypoints[rows] = predictor.predict(frame, crops[rows], categories=categories).keypoints
    return score(keypoints, annotations, spec.categories)


def evaluate(
    forward: Callable[[Array], Array],
    annotations: Sequence[Annotation],
    spec: ModelSpec,
    *,
    flip_test: bool = False,
    batch_size: int = 32,
    channels: tuple[int, int] | None = None,
    boxes: Sequence[Array] | None = None,
    track: Track | None = None,
) -> Evaluation:
    """Run a network over a labelled split, with the crop and the decoder of a Predictor on the CPU.

    Args:
        forward: maps normalised RGB (n, 3, h, w) float32 to heatmaps (n, K, h/4, w/4), n at most ``batch_size``.
        annotations, boxes, track: as in :func:`evaluate_predictor`.
        spec: of the landmarks to evaluate.
        flip_test: average with the mirrored crop's heatmaps, as the spec's flip_indices and flip_shift say.
        batch_size: crops in one call of ``forward``, of one or several images.
        channels: the outputs [begin, end) of the network that the spec is about; None: all.

    Raises:
        InputError: as :func:`evaluate_predictor`; or the network's output does not fit the spec.
    """
    ranges = _check(annotations, spec)
    crops = _boxes(annotations, boxes)

    def load(rows: list[int]) -> list[tuple[int, Array, npt.NDArray[np.float64]]]:
        frame = read_frame(annotations[rows[0]])
        affines, inverses = crop_transforms(crops[rows], spec)
        images = crop_warp(frame, affines, spec.input_size, sampling=spec.sampling, mean=spec.mean, std=spec.std)
        return list(zip(rows, images, inverses, strict=True))

    def run(images: Array) -> Array:
        heatmaps = forward(images)
        heatmaps = heatmaps if channels is None else heatmaps[:, channels[0] : channels[1]]
        expected = (len(images), spec.num_keypoints, spec.heatmap_size[1], spec.heatmap_size[0])
        if heatmaps.shape != expected:
            raise InputError(f"{spec.name}: the spec says heatmaps of {expected}, the network gave {heatmaps.shape}")
        return heatmaps

    keypoints = np.full((len(annotations), spec.num_keypoints, 2), np.nan, np.float32)
    samples = (sample for group in _ahead(load, _by_image(annotations)) for sample in group)
    samples = iter(_tracked(track, samples, len(annotations)))
    while batch := list(islice(samples, batch_size)):
        rows = [row for row, _, _ in batch]
        images = np.stack([image for _, image, _ in batch])
        keypoints[rows], _ = decode_heatmaps(
            run(images),
            refinement=spec.refinement,
            blur_kernel=spec.blur_kernel,
            flipped=run(np.ascontiguousarray(images[..., ::-1])) if flip_test else None,
            flip_indices=spec.flip_indices,
            flip_shift=spec.flip_shift,
            channel_ranges=None if ranges is None else ranges[rows],
            cells_to_frame=cells_to_frame(np.stack([inverse for _, _, inverse in batch]), spec),
        )
    return score(keypoints, annotations, spec.categories)


def score(
    keypoints: Sequence[Array],
    annotations: Sequence[Annotation],
    categories: Mapping[str, tuple[int, int]] | None = None,
) -> Evaluation:
    """Compare predicted landmarks with the labels.

    Args:
        keypoints: (K, 2) frame px for each annotation, K the landmarks of the spec.
        annotations: their labels.
        categories: the spec's: an annotation then says with ``first_channel`` where its landmarks are among the K.

    Raises:
        InputError: there is no annotation, or the model has other landmarks than the labels.
    """
    if not annotations:
        raise InputError("nothing to evaluate: the split has no annotations")
    predicted = np.stack(keypoints).astype(np.float32)
    shape = predicted.shape[:2]
    truth, visible = np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)
    for row, annotation in enumerate(annotations):
        begin, end = _range(annotation, shape[1], categories or {})
        truth[row, begin:end], visible[row, begin:end] = annotation.keypoints, annotation.visible > 0
    if categories:
        predicted[~_within(annotations, categories, shape)] = np.nan
    distances = metrics.measure(predicted, truth, visible, np.stack([a.box for a in annotations]))
    pck_20, pck_05, auc, epe, mean_error = metrics.statistics(distances, thresholds=(0.2, 0.05))
    return Evaluation(
        *(metrics.figure(statistic) for statistic in (pck_20, pck_05, auc, epe, mean_error)),
        pck_05_by_keypoint=tuple(metrics.figure_by_keypoint(pck_05).tolist()),
        keypoints=predicted,
        annotations=tuple(annotations),
        distances=distances,
    )


# Which landmarks ---------------------------------------------------------------------------------


def _check(annotations: Sequence[Annotation], spec: ModelSpec) -> npt.NDArray[np.int32] | None:
    """(N, 2) the channels to decode of each annotation; None: all. Raises before anything has been run."""
    if not annotations:
        raise InputError("nothing to evaluate: the split has no annotations")
    for annotation in annotations:
        _range(annotation, spec.num_keypoints, spec.categories)
    if not spec.categories:
        return None
    return np.array([spec.categories[a.category] for a in annotations], np.int32)


def _range(annotation: Annotation, count: int, categories: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """The channels [begin, end) that an annotation's landmarks are."""
    begin, own = annotation.first_channel, len(annotation.keypoints)
    if not categories:
        if (begin, own) != (0, count):
            raise InputError(f"the model has {count} landmarks, the labels have {own}")
        return 0, count
    if annotation.category not in categories:
        raise InputError(
            f"the model has no category {annotation.category!r}, which {annotation.image} shows; it has "
            f"{', '.join(categories)}"
        )
    expected = categories[annotation.category]
    if (begin, begin + own) != tuple(expected):
        raise InputError(
            f"{annotation.image}: {annotation.category} is in the channels {list(expected)} of the model, its labels "
            f"are {own} from channel {begin}"
        )
    return begin, begin + own


def _within(
    annotations: Sequence[Annotation], categories: Mapping[str, tuple[int, int]], shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """(N, K) whether a channel belongs to the object's category."""
    begin, end = np.array([categories[a.category] for a in annotations]).T[..., None]
    numbers = np.arange(shape[1])
    return (numbers >= begin) & (numbers < end)


# Frames ------------------------------------------------------------------------------------------


def _boxes(annotations: Sequence[Annotation], boxes: Sequence[Array] | None) -> Array:
    chosen = [a.box for a in annotations] if boxes is None else list(boxes)
    if len(chosen) != len(annotations):
        raise InputError(f"one box for each of the {len(annotations)} annotations is needed, got {len(chosen)}")
    return validate_boxes(np.stack(chosen))


def _by_image(annotations: Sequence[Annotation]) -> list[list[int]]:
    """The numbers of the annotations of each image, so that it is decoded once."""
    groups: dict[str, list[int]] = {}
    for row, annotation in enumerate(annotations):
        groups.setdefault(str(annotation.image), []).append(row)
    return list(groups.values())


def _ahead(load: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """``load`` of each item, in order, done by a few threads while the network runs; a few items ahead, not all."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(4, usable))
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="edgepose-frames") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _tracked(track: Track | None, items: Iterable[T], total: int) -> Iterable[T]:
    return items if track is None else track(items, total, "evaluating")
