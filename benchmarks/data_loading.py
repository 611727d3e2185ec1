"""What one worker of the training loader does in a second, by stage: `edgepose bench data-loading`.

Photos of two sizes are made in a temporary folder: 1000x750 px as pictures are shared, 400x533 px as fashion data sets
have them; a garment's box covers about half of each. One thread does all, and its own time on the processor counts, so
that other programs disturb little. The stages take turns, as do the augmentations. Stages marked "not used" are roads
not taken, timed for comparison.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.timing import interleaved, summarize
from edgepose.errors import InputError
from edgepose.geometry import crop_affines
from edgepose.kernels.reference import crop_warp
from edgepose.spec import ModelSpec
from edgepose.training import codecs
from edgepose.training.batches import Batches
from edgepose.training.coco import Annotation, read_frame
from edgepose.training.dataset import LandmarkDataset, collate
from edgepose.training.fashion import DEEPFASHION2
from edgepose.training.garments import garment_spec
from edgepose.training.mmpose_transforms import MMPoseAugmentation
from edgepose.training.transforms import Augmentation, elastic_warp, random_affine, vary_light

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Plan", "print_table", "run"]

SIZES = {"1000x750": (1000, 750), "400x533": (400, 533)}
UNUSED = " (not used)"
ALONE, WORKER, COLLATED, MADE = "in one process", "of a worker, IPC included", "collate", "images and targets, CPU"

Call = Callable[[], Any]
Show = Callable[[int, int, str], Any]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: in which every stage has a turn.
        photos: different ones of each size; a turn takes each once.
        batch: images that are gathered for a step.
        epoch: images that a worker loads in each round, a multiple of ``batch``.
        sizes: of the photos, keys of SIZES.
    """

    rounds: int = 7
    photos: int = 24
    batch: int = 32
    epoch: int = 192
    sizes: Sequence[str] = tuple(SIZES)

    @classmethod
    def quick(cls) -> Plan:
        """One size, few photos."""
        return cls(rounds=2, photos=6, batch=8, epoch=32, sizes=("400x533",))


def run(plan: Plan = Plan(), *, progress: Show | None = None) -> Record:
    """Measure all stages and whole samples.

    Args:
        plan: how much.
        progress: told (done, of how many, what).

    Returns:
        Rows in ms of processor time an image, with labels photos and stage, or photos, augmentation and sample; and
        the sizes of the JPEG files in kB.

    Raises:
        InputError: the system does not tell the processor time of workers that have ended.
    """
    _children_seconds()  # says so before anything is measured, if it cannot
    show = progress or (lambda done, total, what: None)
    spec = replace(garment_spec(), codec="msra", refinement="shift", sampling="opencv4")
    rows: list[Row] = []
    steps = 2 * len(plan.sizes) + 1
    with _one_thread_each():
        for number, label in enumerate(plan.sizes):
            with tempfile.TemporaryDirectory() as folder:
                annotations = annotations_in(Path(folder), SIZES[label], spec.num_keypoints, plan.photos)
                size = sum(annotation.image.stat().st_size for annotation in annotations) / plan.photos
                rows.append(Row({"photos": label, "stage": "JPEG file"}, "kB", {"value": size / 1e3}))
                show(2 * number, steps, f"{label}: stages")
                rows += stages(label, annotations, spec, plan)
                show(2 * number + 1, steps, f"{label}: samples")
                rows += samples(label, annotations, spec, plan)
        show(steps - 1, steps, "targets")
        rows += wide_targets(plan)
    return make_record("data-loading", rows)


def photo(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: soft shapes, edges, and the noise of a camera; at quality 90 about 1.3 bits a pixel."""
    w, h = size
    image = cv2.resize(
        rng.integers(40, 220, (h // 40, w // 40, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC
    )
    for _ in range(12):
        corners = rng.integers(0, min(size), (5, 2)).astype(np.int32)
        cv2.fillPoly(image, [corners], rng.integers(0, 256, 3).tolist(), cv2.LINE_AA)
    noisy: NDArray[np.uint8] = np.clip(image + rng.normal(0, 2.5, image.shape), 0, 255).astype(np.uint8)
    return noisy


def annotations_in(folder: Path, size: tuple[int, int], keypoints: int, photos: int) -> list[Annotation]:
    """One garment in each of so many photos."""
    rng = np.random.default_rng(0)
    w, h = size
    made = []
    for number in range(photos):
        path = folder / f"{w}x{h}-{number}.jpg"
        cv2.imwrite(str(path), photo(size, rng), [cv2.IMWRITE_JPEG_QUALITY, 90])
        low = rng.uniform(0.05, 0.2, 2) * size
        box = np.array([*low, *(low + rng.uniform(0.6, 0.75, 2) * size)], np.float32)
        points = rng.uniform(box[:2], box[2:], (keypoints, 2)).astype(np.float32)
        made.append(Annotation(path, size, box, points, np.ones(keypoints, np.float32), "upper"))
    return made


def stages(label: str, annotations: list[Annotation], spec: ModelSpec, plan: Plan) -> Iterator[Row]:
    """What each part of a sample costs, alone."""
    frames = [read_frame(a) for a in annotations]
    affines = [crop_affines(a.box[None], spec.input_size, spec.codec, spec.padding)[0] for a in annotations]
    reference, ours, n = MMPoseAugmentation(), Augmentation(), plan.photos
    crops = [crop_warp(f, a[None], spec.input_size)[0] for f, a in zip(frames, affines, strict=True)]
    points, shown = annotations[0].keypoints, np.ones(spec.num_keypoints, np.float32)
    canvas = np.zeros((*spec.input_size[::-1], 3), np.uint8)

    def drawn(i: int) -> Any:
        a = annotations[i % n]
        return reference.transform(a.box, a.size, a.keypoints, a.visible, spec, np.random.default_rng(i))

    matrices = [drawn(i)[0] for i in range(n)]

    def bent(i: int) -> Any:
        rng, frame = np.random.default_rng(i), frames[i % n]
        affine = random_affine(spec.input_size, ours, False, rng) @ np.vstack([affines[i % n], [0, 0, 1]])
        strength = ours.elastic_strength if rng.random() < ours.elastic else 0.0
        return elastic_warp(frame, affine, points, canvas, strength, rng)

    reduced, size = cv2.IMREAD_REDUCED_COLOR_2, spec.input_size
    sizes: dict[str, Any] = {"input_size": spec.input_size, "heatmap_size": spec.heatmap_size}
    calls: dict[str, Callable[[int], Any]] = {
        "read and decode": lambda i: read_frame(annotations[i % n]),
        f"decode at half size{UNUSED}": lambda i: cv2.imread(str(annotations[i % n].image), reduced),
        "MMPose: geometry": drawn,
        f"MMPose: crop, {spec.sampling}": lambda i: crop_warp(
            frames[i % n], matrices[i % n][None], size, sampling=spec.sampling
        ),
        f"MMPose: crop by cv2.warpAffine{UNUSED}": lambda i: cv2.warpAffine(frames[i % n], matrices[i % n], size),
        "ours: geometry and warp": bent,
        "ours: light": lambda i: vary_light(crops[i % n], ours, np.random.default_rng(i)),
        f"targets in the worker{UNUSED}": lambda _: codecs.encode(points, shown, codec=spec.codec, **sizes),
    }
    counted = {name: _counting(call) for name, call in calls.items()}
    times = interleaved(counted, rounds=plan.rounds, burst=n, clock=thread_time)
    for name, of_stage in times.items():
        yield Row({"photos": label, "stage": name}, "ms", summarize(of_stage))


def samples(label: str, annotations: list[Annotation], spec: ModelSpec, plan: Plan) -> Iterator[Row]:
    """Whole samples, by augmentation: one after another, by a worker, and what the training device does, on the CPU."""
    n = plan.photos
    many = annotations * -(-plan.epoch // n)
    augmentations = {"none": None, "MMPose": MMPoseAugmentation(), "ours": Augmentation()}
    datasets = {name: LandmarkDataset(many, spec, augmentation=one) for name, one in augmentations.items()}
    alone = {name: _counting(lambda i, data=data: data[i // n, i % n]) for name, data in datasets.items()}  # type: ignore[misc]
    found = {ALONE: interleaved(alone, rounds=plan.rounds, burst=n, clock=thread_time)}
    batches = {name: [data[i] for i in range(plan.batch)] for name, data in datasets.items()}
    whole = {name: collate(batch) for name, batch in batches.items()}
    device = Batches(spec, "cpu")
    gather: dict[str, Call] = {name: lambda batch=batch: collate(batch) for name, batch in batches.items()}  # type: ignore[misc]
    make: dict[str, Call] = {name: lambda batch=batch: device(batch) for name, batch in whole.items()}  # type: ignore[misc]
    for sample, calls in ((COLLATED, gather), (MADE, make)):
        times = interleaved(calls, rounds=plan.rounds, burst=3, clock=thread_time)
        found[sample] = {name: of_batch / plan.batch for name, of_batch in times.items()}
    found[WORKER] = _workers(datasets, plan)
    for sample, by_name in found.items():
        for name, values in by_name.items():
            labels: dict[str, Label] = {"photos": label, "augmentation": name, "sample": sample}
            yield Row(labels, "ms", summarize(values))


def _workers(datasets: dict[str, LandmarkDataset], plan: Plan) -> dict[str, NDArray[np.float64]]:
    """(rounds, 1) ms of processor time an image of one worker, from its start to its end, for each data set."""
    times = {name: np.empty((plan.rounds, 1)) for name in datasets}
    rng = np.random.default_rng(0)
    for turn in range(plan.rounds):
        for index in rng.permutation(len(datasets)):
            name = list(datasets)[index]
            images = range(plan.epoch)
            loader = DataLoader(
                datasets[name],
                plan.batch,
                sampler=images,
                num_workers=1,
                collate_fn=collate,
                worker_init_fn=_one_thread,
            )
            before = _children_seconds()
            loaded = sum(len(batch.crop) for batch in loader)  # its end is the worker's, whose time then counts
            times[name][turn] = (_children_seconds() - before) / loaded * 1e3
    return times


def wide_targets(plan: Plan) -> Iterator[Row]:
    """Heatmaps of all of DeepFashion2's channels, if a worker made them."""
    channels = sum(len(one.keypoint_names) for one in DEEPFASHION2.values())
    points, shown = np.random.default_rng(0).uniform(20, 180, (channels, 2)), np.ones(channels)
    name = f"targets of all {channels} channels in the worker{UNUSED}"

    def encode() -> Any:
        return codecs.encode(points, shown, codec="msra", input_size=(192, 256), heatmap_size=(48, 64))

    times = interleaved({name: encode}, rounds=plan.rounds, burst=plan.photos, clock=thread_time)
    yield Row({"stage": name}, "ms", summarize(times[name]))


def _counting(call: Callable[[int], Any]) -> Call:
    """The argument counts up, so that photos and random numbers differ."""
    numbers = count()
    return lambda: call(next(numbers))


def _children_seconds() -> float:
    """Processor time of all workers that have ended."""
    try:
        import resource
    except ImportError:  # Windows
        raise InputError("the processor time of workers needs Linux or macOS: this suite does not run here") from None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """OpenCV and PyTorch work in the calling thread."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    _one_thread(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def print_table(record: Record, console: Console) -> None:
    """For each size of photos its stages, then whole samples by augmentation."""
    for label in dict.fromkeys(str(row.labels["photos"]) for row in record.rows if "photos" in row.labels):
        weight = record.value("value", photos=label, stage="JPEG file")
        title = f"{label} px, {weight:.0f} kB JPEG, ms of processor time an image"
        table = _table(title, ("stage",), ("mean", "p50", "p95"))
        for row in record.find(photos=label):
            if "stage" in row.labels and row.unit == "ms":
                table.add_row(str(row.labels["stage"]), *_cells(row))
        console.print(table)
        columns = ("mean", "p50", "p95", "images/s")
        table = _table(f"{label} px, whole samples, ms an image", ("augmentation", "sample"), columns)
        for row in (row for row in record.find(photos=label) if "sample" in row.labels):
            names = (str(row.labels[key]) for key in ("augmentation", "sample"))
            table.add_row(*names, *_cells(row), f"{1e3 / row.values['mean']:.0f}")
        console.print(table)
    for row in (row for row in record.rows if "photos" not in row.labels):
        console.print(f"{row.labels['stage']}: {row.values['mean']:.2f} ms an image")


def _table(title: str, names: Sequence[str], columns: Sequence[str]) -> Any:
    """Names stay whole, figures stand on the right; it fits a terminal of 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return tuple(f"{row.values[key]:.3g}" for key in ("mean", "p50", "p95"))
