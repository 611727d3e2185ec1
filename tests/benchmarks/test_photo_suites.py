"""The suites on labelled photos, on rendered ones: robustness, detection, data loading."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("torch", reason="these suites need PyTorch: pip install 'edgepose[bench]'")

from edgepose.benchmarks import data_loading, detection, robustness
from edgepose.benchmarks.records import Record
from edgepose.cli import app
from edgepose.errors import InputError
from edgepose.training.coco import load_coco
from edgepose.training.detection import garments
from edgepose.training.synthesize import synthesize

COUNT = 4


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    list(synthesize(folder, COUNT, seed=5, size=(240, 320), workers=1))
    return folder / "synthetic.json"


@pytest.fixture(autouse=True)
def small_stock(monkeypatch):
    monkeypatch.setattr(garments, "FLOORS", 2)
    monkeypatch.setattr(garments, "TILES", 2)


@pytest.mark.parametrize("name", list(robustness.SPOILERS))
def test_what_spoils_a_photo_keeps_its_labels_in_it(labels, name):
    for frame, truth in robustness.spoilt(load_coco(labels, robustness.KEYPOINTS), robustness.SPOILERS[name]):
        assert (frame.dtype, frame.ndim, frame.shape[1::-1]) == (np.uint8, 3, truth.size)
        shown = truth.visible > 0
        assert (truth.box[2:] > truth.box[:2]).all()
        middle = truth.keypoints[shown].mean(axis=0)
        assert (truth.box[:2] < middle).all()
        assert (middle < truth.box[2:]).all()


def test_far_photos_show_the_same_place():
    """The corners of a box of one colour stay at its corners."""
    annotation = load_coco_of_a_square()
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[100:200, 100:300] = 255
    small, truth = robustness.far(frame, annotation, np.random.default_rng(0))
    y, x = np.nonzero(small[..., 0] > 127)
    assert max(truth.box[2:] - truth.box[:2]) == pytest.approx(robustness.FAR_SIDE, rel=0.02)
    np.testing.assert_allclose(truth.box, [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1)
    np.testing.assert_allclose(truth.keypoints[0], [x.min() - 0.34, y.min() - 0.34], atol=0.5)


def load_coco_of_a_square():
    from edgepose.training.coco import Annotation

    points = np.array([[100, 100]] * 8, np.float32)
    box = np.array([100, 100, 300, 200], np.float32)
    return Annotation("square.png", (400, 300), box, points, np.ones(8, np.float32), "upper")


def test_robustness(labels):
    record = robustness.run(labels, models=["garment-landmarks-fast"])
    at = {"model": "garment-landmarks-fast", "statistic": "PCK@0.05"}
    assert {row.labels["pictures"] for row in record.rows} == set(robustness.SPOILERS)
    plain = record.find(**at, pictures="as it is")
    assert len(plain) == 1
    for row in record.find(**at, pictures="turned by 45°"):
        if row.labels.get("against") == "as it is":
            turned = record.find(**at, pictures="turned by 45°")[0].values["value"]
            assert row.values["value"] == pytest.approx(turned - plain[0].values["value"])
            break
    else:
        pytest.fail("no difference is recorded")


def test_detection(labels, tmp_path):
    result = CliRunner().invoke(
        app, ["bench", "detection", str(labels), "--quick", "-o", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    record = Record.read(next(tmp_path.glob("detection--*.json")))
    for pictures in detection.MAKERS:
        objects = record.value("value", pictures=pictures, statistic="objects")
        assert (objects == 0) == ("without a garment" in pictures)
    assert record.value("value", pictures="two beside each other", statistic="objects") == 2 * COUNT
    assert record.value("value", pictures="as it is", statistic="recall") >= 0.5
    assert record.value("value", pictures="as it is", statistic="mAP@0.5") >= 0
    assert record.find(statistic="false detections in a picture")


def test_photos_without_types_have_no_figures_of_types(labels, tmp_path):
    content = json.loads(labels.read_text())
    for one in content["annotations"]:
        del one["garment_type"]
    (labels.parent / "untyped.json").write_text(json.dumps(content))
    record = detection.run(detection.load_photos(labels.parent / "untyped.json", 2), resamples=2)
    assert not record.find(statistic="mAP@0.5")
    assert record.find(statistic="recall")
    assert any("garment_type" in note for note in record.notes)


def test_data_loading_says_where_it_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    with pytest.raises(InputError, match="needs Linux or macOS"):
        data_loading.run(data_loading.Plan.quick())


def test_data_loading():
    plan = replace(data_loading.Plan.quick(), rounds=1, photos=2, batch=2, epoch=4)
    record = data_loading.run(plan)
    at = {"photos": "400x533", "sample": data_loading.ALONE}
    plain, ours = (record.value("p50", **at, augmentation=name) for name in ("none", "ours"))
    assert 0 < plain < ours
    assert record.value("p50", photos="400x533", stage="read and decode") < plain
    assert record.value("value", photos="400x533", stage="JPEG file") > 5
    text = io.StringIO()
    data_loading.print_table(record, Console(file=text, width=80))  # one round: there is no interval to show
    assert data_loading.WORKER in text.getvalue()
