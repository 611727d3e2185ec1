"""Images a second that one worker loads, by stage: python benchmarks/data_loading.py

Photos of two sizes are made in a temporary folder: 1000x750 px as pictures are shared, 400x533 px as fashion data sets
have them; a garment's box covers about half of each. One thread does all, and its own time on the processor counts, so
that other programs disturb little.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import thread_time
from typing import Any

import cv2
import numpy as np
import torch
from results_file import save, summary
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

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

SIZES = {"1000x750": (1000, 750), "400x533": (400, 533)}
PHOTOS, ROUNDS, BATCH = 24, 3, 32


def photo(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: soft shapes, edges, and the noise of a camera; at quality 90 about 1.3 bits a pixel."""
    w, h = size
    image = cv2.resize(
        rng.integers(40, 220, (h // 40, w // 40, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC
    )
    for _ in range(12):
        corners = rng.integers(0, min(size), (5, 2)).astype(np.int32)
        cv2.fillPoly(image, [corners], rng.integers(0, 256, 3).tolist(), cv2.LINE_AA)
    return np.clip(image + rng.normal(0, 2.5, image.shape), 0, 255).astype(np.uint8)


def annotations_in(folder: Path, size: tuple[int, int], keypoints: int) -> list[Annotation]:
    """One garment in each of PHOTOS photos."""
    rng = np.random.default_rng(0)
    w, h = size
    made = []
    for number in range(PHOTOS):
        path = folder / f"{w}x{h}-{number}.jpg"
        cv2.imwrite(str(path), photo(size, rng), [cv2.IMWRITE_JPEG_QUALITY, 90])
        low = rng.uniform(0.05, 0.2, 2) * size
        box = np.array([*low, *(low + rng.uniform(0.6, 0.75, 2) * size)], np.float32)
        points = rng.uniform(box[:2], box[2:], (keypoints, 2)).astype(np.float32)
        made.append(Annotation(path, size, box, points, np.ones(keypoints, np.float32), "upper"))
    return made


def milliseconds(call: Callable[[int], Any]) -> dict[str, float]:
    """Of one call, for each photo ROUNDS times; the argument counts up, so that random numbers differ."""
    for i in range(PHOTOS):
        call(i)
    times = []
    for i in range(PHOTOS * ROUNDS):
        start = thread_time()
        call(i)
        times.append((thread_time() - start) * 1e3)
    return {**summary(times), "mean": round(float(np.mean(times)), 3)}


def stages(annotations: list[Annotation], spec: ModelSpec) -> dict[str, dict[str, float]]:
    """What each part of a sample costs, alone."""
    frames = [read_frame(a) for a in annotations]
    boxes = [a.box[None] for a in annotations]
    affines = [crop_affines(box, spec.input_size, spec.codec, spec.padding)[0] for box in boxes]
    reference, ours, k = MMPoseAugmentation(), Augmentation(), spec.num_keypoints
    crops = [crop_warp(f, a[None], spec.input_size)[0] for f, a in zip(frames, affines, strict=True)]
    sampling = spec.sampling

    def drawn(i: int) -> Any:
        a = annotations[i % PHOTOS]
        return reference.transform(a.box, a.size, a.keypoints, a.visible, spec, np.random.default_rng(i))

    turned = [drawn(i)[0] for i in range(PHOTOS)]
    points, shown = annotations[0].keypoints, np.ones(k, np.float32)

    def bent(i: int) -> Any:
        rng, frame = np.random.default_rng(i), frames[i % PHOTOS]
        affine = random_affine(spec.input_size, ours, False, rng) @ np.vstack([affines[i % PHOTOS], [0, 0, 1]])
        strength = ours.elastic_strength if rng.random() < ours.elastic else 0.0
        return elastic_warp(frame, affine, points, np.zeros((256, 192, 3), np.uint8), strength, rng)

    sizes = {"input_size": spec.input_size, "heatmap_size": spec.heatmap_size}
    return {
        "read and decode": milliseconds(lambda i: read_frame(annotations[i % PHOTOS])),
        "decode at half size (not used)": milliseconds(
            lambda i: cv2.imread(str(annotations[i % PHOTOS].image), cv2.IMREAD_REDUCED_COLOR_2)
        ),
        "MMPose: geometry": milliseconds(drawn),
        f"MMPose: crop, {sampling}": milliseconds(
            lambda i: crop_warp(frames[i % PHOTOS], turned[i % PHOTOS][None], spec.input_size, sampling=sampling)
        ),
        "MMPose: crop by cv2.warpAffine (not used)": milliseconds(
            lambda i: cv2.warpAffine(frames[i % PHOTOS], turned[i % PHOTOS], spec.input_size)
        ),
        "ours: geometry and warp": milliseconds(bent),
        "ours: light": milliseconds(lambda i: vary_light(crops[i % PHOTOS], ours, np.random.default_rng(i))),
        "targets in the worker (not used)": milliseconds(
            lambda i: codecs.encode(points, shown, codec=spec.codec, **sizes)
        ),
    }


def rates(annotations: list[Annotation], spec: ModelSpec) -> dict[str, dict[str, float]]:
    """Whole samples: images/s in one process and of one worker, and what the training device does, on the CPU."""
    figures: dict[str, dict[str, float]] = {}
    many = annotations * 8
    for name, augmentation in (("none", None), ("MMPose", MMPoseAugmentation()), ("ours", Augmentation())):
        dataset = LandmarkDataset(many, spec, augmentation=augmentation)
        alone = milliseconds(lambda i, data=dataset: data[i // PHOTOS, i % PHOTOS])
        batch = [dataset[i] for i in range(BATCH)]
        gathered = milliseconds(lambda _, samples=batch: collate(samples))
        whole = collate(batch)
        made = milliseconds(lambda _, samples=whole: Batches(spec, "cpu")(samples))
        loader = DataLoader(dataset, BATCH, num_workers=1, collate_fn=collate, worker_init_fn=_one_thread)
        before = _children_seconds()
        loaded = sum(len(batch.crop) for batch in loader)  # its end is the worker's, whose time then counts
        worker = (_children_seconds() - before) / loaded
        figures[name] = {
            "images/s in one process": round(1e3 / alone["mean"], 1),
            "images/s of a worker, IPC included": round(1 / worker, 1),
            "collate ms/image": round(gathered["mean"] / BATCH, 3),
            "images and targets, CPU, ms/image": round(made["mean"] / BATCH, 3),
        }
    return figures


def _children_seconds() -> float:
    """Processor time of all workers that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def main() -> None:
    _one_thread(0)
    console = Console()
    figures: dict[str, Any] = {}
    unified = sum(len(s.keypoint_names) for s in DEEPFASHION2.values())
    for label, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            spec = replace(garment_spec(), codec="msra", refinement="shift", sampling="opencv4")
            annotations = annotations_in(Path(folder), size, spec.num_keypoints)
            bytes_each = sum(a.image.stat().st_size for a in annotations) / PHOTOS
            figures[label] = {
                "jpeg_bytes": round(bytes_each),
                **stages(annotations, spec),
                "rates": rates(annotations, spec),
            }
        table = Table("stage", "mean", "p50", "p95", title=f"{label} px, {bytes_each / 1e3:.0f} kB JPEG, ms an image")
        for stage, values in figures[label].items():
            if isinstance(values, dict) and "mean" in values:
                table.add_row(stage, *(f"{values[column]:.2f}" for column in ("mean", "p50", "p95")))
        console.print(table)
        table = Table("augmentation", *figures[label]["rates"]["none"], title=f"{label} px")
        for name, values in figures[label]["rates"].items():
            table.add_row(name, *(f"{value:.4g}" for value in values.values()))
        console.print(table)
    points = np.random.default_rng(0).uniform(20, 180, (unified, 2))
    wide = milliseconds(
        lambda _: codecs.encode(points, np.ones(unified), codec="msra", input_size=(192, 256), heatmap_size=(48, 64))
    )
    figures["targets of all 294 channels in the worker (not used)"] = wide
    console.print(f"targets of all {unified} channels in the worker (not used): {wide['mean']:.2f} ms an image")
    console.print(str(save("data-loading", figures)), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
