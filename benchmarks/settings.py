"""The study from which the default engine on the CPU follows: one network in every setting, its accuracy beside it.

Networks only, on the same crops, in turn. The baseline is ONNX Runtime with edgepose's session options on the graph as
it was exported; "edgepose" is what Predictor runs. Accuracy is the change of the landmarks against the baseline, px of
the crop, decoded as the model says, and the largest difference of a heatmap, relative to the highest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.benchmarks.bench_models import BenchModel, open_model
from edgepose.benchmarks.equality import compare
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import scene
from edgepose.benchmarks.settings_engines import (
    BASELINE,
    DEFAULT,
    Network,
    Setting,
    instructions,
    settings_of,
    short,
    survivors,
)
from edgepose.benchmarks.settings_graphs import crops_of
from edgepose.benchmarks.timing import interleaved, ratio, summarize
from edgepose.errors import InputError
from edgepose.kernels.reference import decode_heatmaps
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from rich.console import Console

    from edgepose.training.coco import Annotation

__all__ = ["BOXES", "MODELS", "print_table", "run"]

MODELS = ("resnet50", "garment-landmarks")
BOXES = (1, 8)
SCENES = 3  # of eight garments each
FRAME = (1920, 1080)
PICTURES = 100  # labelled ones at most
BATCH = 8
ROUNDS = 8

Show = Callable[[int, int, str], Any]


def run(
    *,
    models: Sequence[str] = MODELS,
    boxes: Sequence[int] = BOXES,
    rounds: int = ROUNDS,
    labels: Path | None = None,
    cache: Path | None = None,
    progress: Show | None = None,
) -> Record:
    """Time every setting of each model, and compare its landmarks.

    Args:
        models: names as of :func:`edgepose.benchmarks.bench_models.open_model`.
        boxes: batch sizes.
        rounds: each setting has as many turns.
        labels: a COCO file; trained models are compared on the first 100 of its objects too.
        cache: of files that are made here.
        progress: told (done, of how many, what).

    Returns:
        Rows with the labels engine, setting, precision, model; times with boxes, in ms, and with statistic ``speed-up``
        against BASELINE; accuracy with pictures (``scenes`` or ``labelled``) and statistic ``landmark change`` (px) or
        ``heatmap difference`` (ratio). ``default`` is 1 in the rows of what Predictor runs.
    """
    show = progress or (lambda done, total, what: None)
    if not models or not boxes or min(boxes) < 1:
        raise InputError(f"at least one model and batches of 1 or more are needed, got {models} and {boxes}")
    rows: list[Row] = []
    notes: list[str] = []
    for name in models:
        model = open_model(name, cache)
        show(0, 0, f"{model.name}: making graphs")
        settings, left_out = settings_of(model, cache)
        notes += left_out
        settings, isa, died = survivors(settings, partial(_trying, show, model.name))
        notes += [f"{model.name}: {note}" for note in died]
        with instructions(isa):
            more, failed = _study(model, settings, boxes, rounds, labels, show)
        rows += more
        notes += [f"{model.name}: {note}" for note in failed]
    return make_record("settings", rows, notes=list(dict.fromkeys(notes)))


def _trying(show: Show, model: str, what: str) -> None:
    show(0, 0, f"{model}: trying {what}")


# The study --------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    """Crops as the network takes them: (N, 3, h, w) float32."""

    name: str
    images: NDArray[np.float32]


def _study(
    model: BenchModel,
    settings: Sequence[Setting],
    boxes: Sequence[int],
    rounds: int,
    labels: Path | None,
    show: Show,
) -> tuple[list[Row], list[str]]:
    """Times and accuracy of the settings; and notes on those that did not open."""
    with ExitStack() as stack:
        networks, notes = {}, []
        for number, setting in enumerate(settings):
            show(number, len(settings), f"{model.name}: opening {setting.engine} {setting.name}")
            try:
                networks[setting.key] = setting.open()
            except Exception as error:  # of any library
                notes.append(f"{setting.engine}, {setting.name}, {setting.precision} is left out: {short(str(error))}")
        stack.callback(networks.clear)
        if BASELINE not in networks:
            raise InputError(f"{model.name} does not open in ONNX Runtime, with which all is compared: {notes}")
        pictures = [Pictures("scenes", _scene_crops(model.spec))]
        if labels is not None and model.trained:
            pictures.append(Pictures("labelled", _labelled_crops(labels, model.spec)))
        rows = [row for crops in pictures for row in _accuracy(model, networks, crops, show)]
        for count in boxes:
            rows += _times(model, networks, pictures[0].images, count, rounds, show)
    return rows, notes


def _labels(model: BenchModel, key: tuple[str, str, str]) -> dict[str, Label]:
    found: dict[str, Label] = {"engine": key[0], "setting": key[1], "precision": key[2], "model": model.name}
    return found | ({"default": 1} if key == DEFAULT else {})


def _times(
    model: BenchModel,
    networks: dict[tuple[str, str, str], Network],
    images: NDArray[np.float32],
    count: int,
    rounds: int,
    show: Show,
) -> list[Row]:
    batch = np.resize(images, (count, *images.shape[1:]))
    calls = {"|".join(key): partial(network, batch) for key, network in networks.items()}
    total = rounds * len(calls)
    burst = 3 if count == 1 else 1
    what = f"{model.name}, batch {count}"
    times = interleaved(calls, rounds=rounds, burst=burst, progress=lambda done: show(done, total, what))
    rows = []
    for key in networks:
        found = times["|".join(key)]
        labels = {**_labels(model, key), "boxes": count}
        rows.append(Row({**labels, "statistic": "time"}, "ms", summarize(found)))
        rows.append(Row({**labels, "statistic": "speed-up"}, "ratio", ratio(found, times["|".join(BASELINE)])))
    return rows


def _accuracy(
    model: BenchModel, networks: dict[tuple[str, str, str], Network], pictures: Pictures, show: Show
) -> Iterator[Row]:
    expected = _in_batches(networks[BASELINE], pictures.images)
    places, scores = _decoded(expected, model.spec)
    for number, (key, network) in enumerate(networks.items()):
        show(number, len(networks), f"{model.name}: landmarks on {pictures.name}")
        if key == BASELINE:
            continue
        heatmaps = _in_batches(network, pictures.images)
        labels: dict[str, Label] = {**_labels(model, key), "pictures": pictures.name}
        difference = float(np.abs(heatmaps - expected).max() / np.abs(expected).max())
        yield Row({**labels, "statistic": "heatmap difference"}, "ratio", {"value": difference})
        if model.trained:
            moved = np.linalg.norm(_decoded(heatmaps, model.spec)[0] - places, axis=-1)
            yield Row({**labels, "statistic": "landmark change"}, "px", compare(moved, scores).values())


def _in_batches(network: Network, images: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = (network(images[start : start + BATCH]) for start in range(0, len(images), BATCH))
    return np.concatenate([part.copy() for part in parts])


def _decoded(heatmaps: NDArray[np.float32], spec: ModelSpec) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Landmarks (N, K, 2), crop px, and scores (N, K)."""
    cells, scores = decode_heatmaps(heatmaps, refinement=spec.refinement, blur_kernel=spec.blur_kernel)
    return geometry.heatmap_to_crop(cells, spec.codec, spec.input_size, spec.heatmap_size), scores


def _scene_crops(spec: ModelSpec) -> NDArray[np.float32]:
    pictures = [scene(*FRAME, 8, seed=seed) for seed in range(SCENES)]
    return np.concatenate([crops_of(picture.frame, picture.boxes, spec) for picture in pictures])


def _labelled_crops(labels: Path, spec: ModelSpec) -> NDArray[np.float32]:
    from edgepose.training.coco import load_coco, read_frame

    objects: Sequence[Annotation] = load_coco(labels, spec.num_keypoints)[:PICTURES]
    return np.concatenate([crops_of(read_frame(one), one.box[None], spec) for one in objects])


def print_table(record: Record, console: Console) -> None:
    """For each model and batch: the settings, fastest first, with what they change."""
    from rich import box
    from rich.table import Table

    timed = [row for row in record.rows if row.labels.get("statistic") == "time"]
    for model, count in dict.fromkeys((row.labels["model"], row.labels["boxes"]) for row in timed):
        table = Table(
            title=f"{model}, batch {count}: ms, mean change of landmarks in px, of heatmaps in parts of 1",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for name in ("engine", "setting", "precision"):
            table.add_column(name)
        for name in ("ms", "speed-up", "px", "heatmaps"):
            table.add_column(name, justify="right")
        rows = [row for row in timed if (row.labels["model"], row.labels["boxes"]) == (model, count)]
        for row in sorted(rows, key=lambda row: row.values["p50"]):
            key = {name: row.labels[name] for name in ("engine", "setting", "precision", "model")}
            (faster,) = record.find(**key, boxes=count, statistic="speed-up")
            cells = [f"{row.values['p50']:.1f}", f"{faster.values['value']:.2f}"]
            for statistic, value in (("landmark change", "mean"), ("heatmap difference", "value")):
                found = record.find(**key, pictures="scenes", statistic=statistic)
                cells.append(f"{found[0].values[value]:.2g}" if found else "-")
            names = (str(key[name]) for name in ("engine", "setting", "precision"))
            table.add_row(*names, *cells, style="bold" if "default" in row.labels else None)
        console.print(table)
