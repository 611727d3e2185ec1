"""Cameras, the loop that ours is compared with, and the suite of streams."""

from __future__ import annotations

import io
from dataclasses import replace
from time import monotonic

import numpy as np
import pytest
from rich.console import Console

from edgepose import Predictor
from edgepose.association import overlaps
from edgepose.benchmarks import streams
from edgepose.benchmarks.bench_models import open_model
from edgepose.benchmarks.cameras import DRIVER_BUFFERS, Buffer, Camera
from edgepose.benchmarks.peers import detect_then_loop
from edgepose.benchmarks.peers.detect_then_loop import DetectThenLoop
from edgepose.benchmarks.records import make_record
from edgepose.benchmarks.report import fill
from edgepose.benchmarks.ways import UnavailableError
from edgepose.errors import InputError
from edgepose.modelfile import ModelFile
from edgepose.models import find_detector

SHORT = streams.Plan(rounds=2, fps=60.0, seconds=1.0, repeats=1, cameras=2)


@pytest.fixture(scope="module")
def clip():
    return streams.rendered_clip(12, (480, 360))


def frame_of(number):
    return np.full((2, 3, 3), number, np.uint8)


def test_a_driver_drops_what_comes_while_its_buffers_are_full():
    buffer = Buffer(newest=False)
    for number in range(DRIVER_BUFFERS + 3):
        buffer.put(frame_of(number), float(number))
    assert [buffer.take()[1] for _ in range(len(buffer))] == [0, 1, 2, 3]


def test_a_thread_that_reads_keeps_the_newest_frame():
    buffer = Buffer(newest=True)
    for number in range(5):
        buffer.put(frame_of(number), float(number))
    frame, time = buffer.take()
    assert (len(buffer), time, frame[0, 0, 0]) == (0, 4.0, 4)


def test_a_camera_films_at_its_pace_and_ends():
    start = monotonic()
    times = np.array([time for _, time in Camera([frame_of(1)], fps=50, seconds=0.5)])
    assert 20 <= len(times) <= 26
    assert monotonic() - start < 5
    assert abs(np.median(np.diff(times)) - 0.02) < 0.005


def open_loop(spec=None):
    detector = find_detector("garment-detector")
    return DetectThenLoop(detector, spec or ModelFile.read(detector).spec, open_model("garment-landmarks"))


def test_the_loop_finds_what_ours_finds(clip):
    with Predictor("garment-landmarks", detector="garment-detector") as predictor:
        loop = open_loop()
        frame = clip.frames[0]
        ours, boxes = predictor.predict(frame), loop.detect(frame)
        assert len(ours) == len(boxes) == 1
        assert overlaps(ours.boxes.astype(float), boxes.astype(float)).max() > 0.95
        points, scores = loop.landmarks(frame, ours.boxes)
        sure = ours.scores > 0.4
        assert sure.any()
        assert np.abs(points - ours.keypoints)[sure].max() < 1.5  # frame px: OpenCV 5's warpAffine rounds otherwise
        np.testing.assert_allclose(scores[sure], ours.scores[sure], atol=0.05)
        found = loop(frame)
        assert found[1].shape == (1, 8, 2)
        loop.close()


def test_the_loop_sees_nothing_on_an_empty_floor():
    loop = open_loop()
    boxes, points, scores = loop(np.full((240, 320, 3), 127, np.uint8))
    assert (boxes.shape, points.shape, scores.shape) == ((0, 4), (0, 8, 2), (0, 8))
    loop.close()


def test_the_loop_refuses_models_it_cannot_feed():
    spec = replace(ModelFile.read(find_detector("garment-detector")).spec, layout="nhwc")
    with pytest.raises(UnavailableError, match="YOLOX detectors"):
        open_loop(spec)


def test_all_measures(clip):
    record = streams.run(clip, plan=SHORT)
    work = {row.labels["way"]: row.values for row in record.find(measure="work") if row.unit == "ms"}
    assert set(work) == {streams.LOOP, streams.DETECTS, streams.TRACKS}
    assert work[streams.TRACKS]["p50"] < work[streams.LOOP]["p50"]
    assert record.value("median", measure="landmark change", way=streams.LOOP) < 0.05  # px of the crop
    assert record.value("value", measure="frames with as many objects") == 100
    for way in (streams.LOOP, streams.THREADED, streams.DETECTS, streams.TRACKS):
        assert 0 < record.value("p50", measure="age", way=way, cameras=1) < 1000
        assert record.value("value", measure="rate", way=way, cameras=1) <= 61
    assert record.value("least", measure="rate of one camera", cameras=2) > 0
    errors = [record.value("mean", measure="error", way=way) for way in work]
    assert max(errors) < 20
    assert len({round(error, 6) for error in errors}) > 1


def test_work_counts_the_frame_of_each_turn_in_which_the_tracking_way_detects():
    tracked = np.full((8, streams.BURST), 10.0)
    tracked[:, 0] = 60  # the detection
    times = {
        streams.DETECTS: np.full_like(tracked, 60),
        streams.TRACKS: tracked,
        streams.LOOP: np.full_like(tracked, 75),
    }
    record = make_record("streams", streams._rows_of_work(times))
    work = {row.labels["way"]: row.values for row in record.find(measure="work") if row.unit == "ms"}
    assert work[streams.TRACKS]["p50"] == 15  # and not 10
    assert work[streams.TRACKS]["runs"] == 8
    leads = {row.labels["way"]: row.values["value"] for row in record.find(measure="work", against=streams.LOOP)}
    assert leads == {streams.DETECTS: 1.25, streams.TRACKS: 5.0}
    assert record.value("p95", measure="frame", way=streams.TRACKS) == 60
    text = io.StringIO()
    streams.print_table(record, Console(file=text, width=80))
    assert all(way in text.getvalue() for way in times)  # whole names in 80 columns
    block = fill("<!-- generated by edgepose bench report: streams -->\n<!-- end -->", {"streams": [record]})
    assert "| work on a frame, mean of ten | edgepose, tracks | 15.0 | 60.0 |  | 5.00x (5.00 to 5.00) |" in block


def test_a_loop_with_other_landmarks_is_not_timed(clip, monkeypatch):
    def shifted(self, frame, boxes):
        points, scores = original(self, frame, boxes)
        return points + 5, scores

    original = detect_then_loop.OnnxRuntimeWay.__call__
    monkeypatch.setattr(detect_then_loop.OnnxRuntimeWay, "__call__", shifted)
    record = streams.run(clip, plan=streams.Plan(rounds=1, fps=60.0, seconds=0.5, repeats=1, cameras=1))
    assert not [row for row in record.find(measure="work") if row.labels["way"] == streams.LOOP]
    assert any("is not timed: its landmarks" in note for note in record.notes)


def test_nothing_to_see_is_an_error():
    empty = streams.Clip("a wall", [np.full((240, 320, 3), 90, np.uint8)] * 3, None)
    with pytest.raises(InputError, match="no object was found"):
        streams.run(empty, plan=SHORT)
