"""`edgepose bench accuracy`: on objects whose landmarks are known, and a network whose error is known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from painter import blobs, painter_spec, write_painter
from rich.console import Console

from edgepose import InputError
from edgepose.benchmarks import accuracy
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.records import Record
from edgepose.benchmarks.scenes import Scene
from edgepose.benchmarks.ways import OURS, Selection
from edgepose.training.coco import Annotation, write_coco

POINTS = np.array([[120.0, 90.0], [160.5, 130.25], [140.0, 160.0]], np.float32)
BOXES = np.array([[60, 40, 220, 210], [80, 50, 200, 200]], np.float32)


class Shifted:
    """A way that is 3 px of the frame off, to the right, and takes the place of int8."""

    name, version = "shifted", "1"

    def __init__(self, way: Any) -> None:
        self._way = way

    def __call__(self, frame: Any, boxes: Any) -> Any:
        keypoints, scores = self._way(frame, boxes)
        return keypoints + np.float32([3, 0]), scores


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchModel:
    """A model that finds blobs, scenes with blobs, and the shifted way beside ours."""
    spec = painter_spec()
    model = BenchModel("painter", write_painter(tmp_path / "p.onnx", spec), spec, trained=True)
    picture = Scene(blobs((320, 240), POINTS, 12), BOXES)
    open_ways = accuracy.open_ways

    def with_shifted(*arguments: Any, **options: Any) -> Any:
        ways, notes = open_ways(*arguments, **options)
        return {**ways, ("shifted", "int8"): Shifted(ways[OURS, "fp32"])}, notes

    monkeypatch.setattr(accuracy, "open_model", lambda name, cache: model)
    monkeypatch.setattr(accuracy, "scene", lambda w, h, count, seed=0: picture)
    monkeypatch.setattr(accuracy, "open_ways", with_shifted)
    return model


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two pictures: one with both boxes, one with one."""
    annotations = []
    for name, boxes in (("a.png", BOXES), ("b.png", BOXES[:1])):
        assert cv2.imwrite(str(tmp_path / name), blobs((320, 240), POINTS, 12))
        for box in boxes:
            annotations.append(Annotation(tmp_path / name, (320, 240), box, POINTS, np.ones(3, np.float32), "blob"))
    write_coco(tmp_path / "labels.json", annotations, categories=["blob"], keypoint_names=["r", "g", "b"])
    return tmp_path / "labels.json"


def test_changes_labels_and_times(painter: BenchModel, labels: Path, tmp_path: Path) -> None:
    selection = Selection(ways=(OURS, "onnxruntime batched"), precisions=("fp32",))
    record = accuracy.run(models=("painter",), labels=labels, selection=selection, rounds=2)
    assert Record.read(record.save(tmp_path)).find(way="shifted")
    of_frame = {"statistic": "landmark change, frame", "way": "shifted"}
    # 3 px from ours; the reference is "onnxruntime batched", whose crop OpenCV rounds otherwise: 0.003 px seen
    (row,) = record.find(**of_frame, pictures="scenes")
    assert row.values["mean"] == pytest.approx(3, abs=0.05)
    assert row.values["compared"] == 6 * 2 * 3
    assert row.labels["against"] == "onnxruntime batched"
    (in_crop,) = record.find(statistic="landmark change", way="shifted", pictures="scenes")
    # a box of 160x170 and one of 120x150 px become 96x128 with a padding of 1.25: crop px are larger than frame px
    assert 1.2 < in_crop.values["mean"] < 2.5
    (ours,) = record.find(statistic="landmark change", way=OURS, pictures="labelled")
    assert ours.values["worst"] < 0.1  # the crop's rounding again: 0.006 px seen
    assert not record.find(way="onnxruntime batched", statistic="landmark change")
    for way, error in ((OURS, 0), ("shifted", 3)):
        (epe,) = record.find(way=way, statistic="EPE")
        assert epe.values["value"] == pytest.approx(error, abs=0.1)  # the decoder's own error on blobs: 0.007 px seen
        (pck,) = record.find(way=way, statistic="PCK@0.05")
        assert (pck.values["value"], pck.values["objects"]) == (1, 3)
        (time,) = record.find(way=way, statistic="time")
        assert (time.values["runs"], time.labels["boxes"]) == (2, 8)
    (own,) = record.find(way=OURS, statistic="speed-up")
    assert own.values["value"] == 1

    text = io.StringIO()
    accuracy.print_table(record, Console(file=text, width=140))
    assert all(words in text.getvalue() for words in ("on labelled", "shifted"))


def test_objects_of_a_picture_keep_their_labels(labels: Path) -> None:
    found = accuracy.Labelled.read(labels, 3)
    assert [len(picture.boxes) for picture in found.scenes] == [2, 1]
    boxes = np.concatenate([picture.boxes for picture in found.scenes])
    np.testing.assert_array_equal(boxes, [one.box for one in found.annotations])


def test_random_weights_are_not_judged(painter: BenchModel, monkeypatch: pytest.MonkeyPatch, labels: Path) -> None:
    random = BenchModel("random", painter.path, painter.spec, trained=False)
    monkeypatch.setattr(accuracy, "open_model", lambda name, cache: random)
    record = accuracy.run(
        models=("random",), labels=labels, selection=Selection(ways=(OURS,), precisions=("fp32",)), rounds=1
    )
    assert not record.find(pictures="labelled")
    assert any("noise" in note for note in record.notes)


@pytest.mark.parametrize(("models", "engines"), [((), ()), (("a", "b"), (Path("a.engine"),))])
def test_unusable_arguments(models: tuple[str, ...], engines: tuple[Path, ...]) -> None:
    with pytest.raises(InputError, match="at least one model"):
        accuracy.run(models=models, engines=engines)


def test_an_engine_takes_part(
    painter: BenchModel, monkeypatch: pytest.MonkeyPatch, labels: Path, tmp_path: Path
) -> None:
    from types import SimpleNamespace

    class FromOnnx(accuracy.EngineWay):
        def __init__(self, path: Path) -> None:
            super().__init__(painter.path)

    monkeypatch.setattr(accuracy, "EngineWay", FromOnnx)
    monkeypatch.setattr(accuracy, "read_engine", lambda path: (SimpleNamespace(precision="fp16"), b""))
    record = accuracy.run(
        models=("painter",),
        engines=(tmp_path / "p.engine",),
        selection=Selection(ways=(OURS,), precisions=("fp32",)),
        rounds=1,
    )
    (row,) = record.find(precision="fp16, engine", statistic="landmark change")
    assert row.values["worst"] == 0  # here it is the very same network
