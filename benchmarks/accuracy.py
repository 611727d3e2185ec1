"""What each precision and way costs in accuracy, against the float32 network and against labels, its time beside it.

Landmarks are compared with those of an independent float32 way, as :mod:`edgepose.benchmarks.equality` does before
anything is timed: px of the crop. Here they are told in px of the frame too, and on labelled pictures as PCK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepose import Predictor
from edgepose.benchmarks.bench_models import BenchModel, open_model
from edgepose.benchmarks.equality import REFERENCES, compare, crop_distances
from edgepose.benchmarks.records import Label, Record, Row, make_record
from edgepose.benchmarks.scenes import Scene, scene
from edgepose.benchmarks.timing import interleaved, ratio, summarize
from edgepose.benchmarks.ways import OURS, Explained, Selection, Way, open_ways
from edgepose.enginefile import read_engine
from edgepose.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from edgepose.training.coco import Annotation
    from edgepose.training.evaluate import Evaluation

__all__ = ["MODELS", "EngineWay", "Labelled", "print_table", "run"]

MODELS = ("resnet50", "garment-landmarks")
FRAME = (1920, 1080)
BOXES = 8
SCENES = 6
ROUNDS = 10
RATIOS = ("PCK@0.2", "PCK@0.05")

Key = tuple[str, str]  # way, precision
Show = Callable[[int, int, str], Any]


class EngineWay:
    """Ours, of a TensorRT engine: what ``Predictor("model.engine")`` does."""

    def __init__(self, path: Path) -> None:
        self._predictor = Predictor(path)
        self.name = OURS
        self.version = self._predictor.engine_name

    def __call__(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        result = self._predictor.predict(frame, boxes)
        return result.keypoints, result.scores

    def close(self) -> None:
        """Close the predictor."""
        self._predictor.close()


@dataclass(frozen=True)
class Labelled:
    """Labelled objects, those of a picture side by side, and the pictures.

    Attributes:
        annotations: the objects.
        scenes: each picture with its objects' boxes, in the same order.
    """

    annotations: tuple[Annotation, ...]
    scenes: tuple[Scene, ...]

    @classmethod
    def read(cls, path: Path, num_keypoints: int) -> Labelled:
        """A COCO file. Raises InputError where it, or a picture of it, cannot be read."""
        from edgepose.training.coco import load_coco, read_frame

        groups: dict[Path, list[Annotation]] = {}
        for annotation in load_coco(path, num_keypoints):
            groups.setdefault(annotation.image, []).append(annotation)
        scenes = [Scene(read_frame(group[0]), np.stack([one.box for one in group])) for group in groups.values()]
        return cls(tuple(one for group in groups.values() for one in group), tuple(scenes))


def run(
    *,
    models: Sequence[str] = MODELS,
    labels: Path | None = None,
    engines: Sequence[Path] = (),
    selection: Selection | None = None,
    rounds: int = ROUNDS,
    cache: Path | None = None,
    progress: Show | None = None,
) -> Record:
    """Compare and time the ways of each model.

    Args:
        models: names as of :func:`edgepose.benchmarks.bench_models.open_model`.
        labels: a COCO file of objects with the models' landmarks.
        engines: .engine files of the one model, which run on a GPU; their precision is their sidecar's.
        selection: ways and precisions; None: all.
        rounds: turns of each way.
        cache: of models that are made here.
        progress: told (done, of how many, what).

    Returns:
        Rows with the labels model, way, precision, statistic. ``time``, ms, of 8 boxes on a 1080p frame, and
        ``speed-up`` against ours at fp32. ``landmark change`` and ``landmark change, frame``, px, with pictures
        (``scenes`` or ``labelled``) and against (the reference). With labels also PCK@0.2, PCK@0.05, EPE (px) and
        mean_error/longer_side, each with the 95 % interval over pictures.

    Raises:
        InputError: no model; engines of several models; labels for a model with categories.
    """
    if not models or (engines and len(models) != 1):
        raise InputError(f"at least one model is needed, and with engines just one, got {list(models)}")
    show = progress or (lambda done, total, what: None)
    rows: list[Row] = []
    notes: list[str] = []
    for name in models:
        model = open_model(name, cache)
        with ExitStack() as opened:
            say = partial(show, 0, 0)
            found, told = open_ways(model, selection or Selection(), opened, max_batch=BOXES, progress=say)
            ways: dict[Key, Way] = dict(found)
            notes += told
            for path in engines:
                info, _ = read_engine(path)
                engine = EngineWay(path)
                opened.callback(engine.close)
                ways[OURS, f"{info.precision}, engine"] = engine
            rows += _changes(model, ways, labels, show)
            rows += _times(model, ways, rounds, show)
        if not model.trained:
            notes.append(f"{model.name}: random weights, whose landmarks are noise: changes are told, not to be judged")
    return make_record("accuracy", rows, notes=notes)


def _changes(model: BenchModel, ways: Mapping[Key, Way], labels: Path | None, show: Show) -> list[Row]:
    reference = next((name for name in REFERENCES if (name, "fp32") in ways), None)
    if reference is None:
        raise InputError(f"landmarks are held against one of {', '.join(REFERENCES)} at fp32; none of them runs here")
    sets = {"scenes": [scene(*FRAME, BOXES, seed=seed) for seed in range(SCENES)]}
    labelled = None
    if labels is not None and model.trained:
        if model.spec.categories:
            raise InputError(f"{model.name} serves several categories, which the peers cannot tell apart: no labels")
        labelled = Labelled.read(labels, model.spec.num_keypoints)
        sets["labelled"] = list(labelled.scenes)
    rows = []
    for pictures, scenes in sets.items():
        expected = [ways[reference, "fp32"](*picture) for picture in scenes]
        for number, (key, way) in enumerate(ways.items()):
            show(number, len(ways), f"{model.name}: {' '.join(key)} on {pictures}")
            found = _run(way, scenes)
            row = {**_labels(model, key), "pictures": pictures}
            if key != (reference, "fp32"):
                rows += _moved(model, scenes, found, expected, {**row, "against": reference})
            if pictures == "labelled" and labelled is not None:
                rows += _scored(found, labelled, row)
    return rows


def _labels(model: BenchModel, key: Key) -> dict[str, Label]:
    return {"model": model.name, "way": key[0], "precision": key[1]}


def _run(way: Way, scenes: Sequence[Scene]) -> list[NDArray[np.float64]]:
    """The landmarks that the way means, frame px, of each scene."""
    found = [np.asarray(way(*picture)[0], np.float64) for picture in scenes]
    if isinstance(way, Explained):
        return [way.explained(points, picture.boxes) for points, picture in zip(found, scenes, strict=True)]
    return found


def _moved(
    model: BenchModel,
    scenes: Sequence[Scene],
    found: Sequence[NDArray[np.float64]],
    expected: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    labels: Mapping[str, Label],
) -> list[Row]:
    scores = np.concatenate([peaks for _, peaks in expected])
    if not model.trained:
        scores = np.ones_like(scores)
    triples = [(a, b, picture.boxes) for a, (b, _), picture in zip(found, expected, scenes, strict=True)]
    in_crop = np.concatenate([crop_distances(a, b, boxes, model) for a, b, boxes in triples])
    in_frame = np.concatenate([np.linalg.norm(a - b, axis=-1) for a, b, _ in triples])
    names = {"landmark change": in_crop, "landmark change, frame": in_frame}
    return [Row({**labels, "statistic": name}, "px", compare(d, scores).values()) for name, d in names.items()]


def _scored(found: Sequence[NDArray[np.float64]], labelled: Labelled, labels: Mapping[str, Label]) -> list[Row]:
    from edgepose.training.evaluate import score

    evaluation: Evaluation = score(list(np.concatenate(found).astype(np.float32)), labelled.annotations)
    intervals = evaluation.intervals()
    rows = []
    for name, value in evaluation.metrics().items():
        low, high = intervals[name]
        values = {"value": value, "low": low, "high": high, "objects": len(labelled.annotations)}
        rows.append(Row({**labels, "statistic": name}, "px" if name == "EPE" else "ratio", values))
    return rows


def _times(model: BenchModel, ways: Mapping[Key, Way], rounds: int, show: Show) -> list[Row]:
    picture = scene(*FRAME, BOXES)
    calls = {"|".join(key): partial(way, *picture) for key, way in ways.items()}
    total = rounds * len(calls)
    times = interleaved(calls, rounds=rounds, burst=1, progress=lambda done: show(done, total, f"{model.name}: times"))
    rows = []
    for key in ways:
        labels = {**_labels(model, key), "boxes": BOXES, "frame": f"{FRAME[0]}x{FRAME[1]}"}
        rows.append(Row({**labels, "statistic": "time"}, "ms", summarize(times["|".join(key)])))
        faster = ratio(times["|".join(key)], times[f"{OURS}|fp32"])
        rows.append(Row({**labels, "statistic": "speed-up"}, "ratio", faster))
    return rows


def print_table(record: Record, console: Console) -> None:
    """A table for each model: the ways, fastest first."""
    from rich import box
    from rich.table import Table

    columns = (
        ("median", "landmark change", "median"),
        ("mean", "landmark change", "mean"),
        ("p99", "landmark change", "p99"),
        *((name, name, "value") for name in (*RATIOS, "EPE")),
    )
    timed = [row for row in record.rows if row.labels.get("statistic") == "time"]
    for model in dict.fromkeys(row.labels["model"] for row in timed):
        rows = sorted((r for r in timed if r.labels["model"] == model), key=lambda row: row.values["p50"])
        pictures = "labelled" if record.find(model=model, pictures="labelled") else "scenes"
        table = Table(
            title=f"{model}: change of landmarks on {pictures}, px of the crop",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("way")
        table.add_column("precision")
        table.add_column("ms", justify="right")
        for title, _, _ in columns:
            table.add_column(title, justify="right")
        for row in rows:
            key = {name: row.labels[name] for name in ("model", "way", "precision")}
            cells = [f"{row.values['p50']:.1f}"]
            for _, statistic, value in columns:
                found = record.find(**key, pictures=pictures, statistic=statistic)
                cells.append(f"{found[0].values[value]:.3g}" if found else "-")
            table.add_row(str(key["way"]), str(key["precision"]), *cells)
        console.print(table)
