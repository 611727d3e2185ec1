"""Writes a COCO keypoint data set of rendered garments, so that the trainer knows one kind of data only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.media import photos_in, read_photo
from edgepose.training.coco import Annotation, write_coco
from edgepose.training.garments import CATEGORIES, garment_spec
from edgepose.training.synthetic import Outline, load_outlines, render_garment

__all__ = ["synthesize"]


def synthesize(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (300, 400),
    outlines: str | Path | None = None,
    photos: str | Path | None = None,
    workers: int | None = None,
) -> Iterator[int]:
    """Render ``count`` garments into ``folder``: images/000000.jpg … and synthetic.json (COCO, 8 keypoints).

    An iterator, so that the caller can show progress: it yields the number of garments done so far, and the annotation
    file is written at the end. The same seed gives the same data set, whatever the number of workers.

    Args:
        folder: where to write; made if it is not there.
        count: how many garments.
        seed: fixes the whole data set.
        size: (w, h) of the images, px.
        outlines: garment outlines to use beside the parametric templates, as ``load_outlines`` reads them.
        photos: a folder of pictures; patches of them serve as backgrounds and cloth.
        workers: processes; default: one a core.

    Raises:
        InputError: ``count`` is not positive, or ``photos`` holds no picture.
    """
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files = photos_in(Path(photos)) if photos else []
    shapes = load_outlines(outlines) if outlines else None
    done: list[tuple[Annotation, str]] = []
    with ProcessPoolExecutor(workers or os.cpu_count(), initializer=_start, initargs=(shapes, files)) as pool:
        jobs = ((str(folder), seed, index, size) for index in range(count))
        for item in pool.map(_render, jobs, chunksize=8):
            done.append(item)
            yield len(done)
    write_coco(
        folder / "synthetic.json",
        [annotation for annotation, _ in done],
        categories=CATEGORIES,
        keypoint_names=garment_spec().keypoint_names,
        extras=[{"garment_type": garment_type} for _, garment_type in done],
    )


_outlines: Sequence[Outline] | None = None
_files: Sequence[Path] = ()


def _start(outlines: Sequence[Outline] | None, files: Sequence[Path]) -> None:
    global _outlines, _files
    cv2.setNumThreads(0)
    _outlines, _files = outlines, files


def _floor(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The upper or lower margin of a random photo, where the floor or the wall is."""
    photo = read_photo(_files[int(rng.integers(len(_files)))])
    depth = max(len(photo) // 6, 16)
    return np.ascontiguousarray(photo[:depth] if rng.random() < 0.5 else photo[-depth:][::-1])


def _cloth(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The middle of a random photo, where the garment is."""
    photo = read_photo(_files[int(rng.integers(len(_files)))])
    h, w = photo.shape[:2]
    return np.ascontiguousarray(photo[h // 3 : 2 * h // 3, w // 3 : 2 * w // 3])


def _render(job: tuple[str, int, int, tuple[int, int]]) -> tuple[Annotation, str]:
    folder, seed, index, size = job
    rng = np.random.default_rng((seed, index))
    real = bool(_files) and rng.random() < 0.5
    sample = render_garment(
        rng,
        size,
        outlines=_outlines,
        backgrounds=[_floor(rng)] if real else None,
        textures=[_cloth(rng)] if real and rng.random() < 0.5 else None,
    )
    file = Path(folder) / f"images/{index:06d}.jpg"
    if not cv2.imwrite(str(file), sample.image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise InputError(f"{file} cannot be written")
    annotation = Annotation(file, size, sample.box, sample.keypoints, sample.visible, sample.category)
    return annotation, sample.garment_type
