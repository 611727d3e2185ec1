"""`edgepose bench scaling`: that the axes hold what they say. Times are never compared, only how they hang together."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from painter import painter_spec, write_painter
from rich.console import Console

from edgepose import InputError, ModelError, Predictor, Timings
from edgepose.benchmarks import memory, scaling
from edgepose.benchmarks.bench_models import BenchModel, open_model
from edgepose.benchmarks.records import Record
from edgepose.benchmarks.scenes import Scene, scene
from edgepose.kernels.reference import decode_heatmaps

MODEL = "garment-landmarks-fast"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few small cases of each axis."""
    monkeypatch.setattr(scaling, "COUNTS", (1, 3))
    monkeypatch.setattr(scaling, "KEYPOINTS", (3, 20))
    monkeypatch.setattr(scaling, "FRAME", (320, 240))
    monkeypatch.setattr(scaling, "BOXES", 2)
    monkeypatch.setattr(scaling, "FRAMES", {"720p": (320, 240), "4K": (640, 480)})


def test_the_axes(small: None, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    record = scaling.run(
        axes=("boxes", "frame", "keypoints"), models=(MODEL,), rounds=1, progress=lambda *turn: seen.append(turn)
    )
    assert Record.read(record.save(tmp_path)).notes == record.notes
    for x in (1, 3):
        stages = {row.labels["stage"]: row.values for row in record.find(axis="boxes", x=x)}
        assert set(stages) == {"total", "crop", "network", "decode", "a box"}
        # in each run the stages lie inside of the call, so the fastest call took at least the fastest of each
        assert stages["total"]["min"] >= sum(stages[name]["min"] for name in ("crop", "network", "decode"))
        assert stages["a box"]["p50"] == pytest.approx(stages["total"]["p50"] / x)
    frames = {(r.labels["frame"], r.labels["boxes_are"], r.labels["sampling"]) for r in record.find(axis="frame")}
    assert len(frames) == 2 * 2 * 2
    assert record.find(axis="frame", frame="640x480")[0].labels["x"] == pytest.approx(0.3072)
    for x in (3, 20):
        assert len(record.find(axis="keypoints", x=x, maps="network")) == len(scaling.STAGES)
        assert [row.labels["stage"] for row in record.find(axis="keypoints", x=x, maps="peaks")] == ["decode"]
    assert seen[-1][:2] == (4, 4)
    assert [note.partition(":")[0] for note in record.notes] == [
        axis for axis in scaling.SENTENCES if axis in ("boxes", "frame", "keypoints")
    ]

    text = io.StringIO()
    scaling.print_table(record, Console(file=text, width=140))
    assert all(word in text.getvalue() for word in ("constant px", "a box", "peaks"))


def test_every_axis_has_its_sentence_and_no_figure_in_it() -> None:
    assert list(scaling.SENTENCES) == ["boxes", "frame", "keypoints", "memory", "predictors", "memory of boxes", "load"]
    for sentence in scaling.SENTENCES.values():
        assert sentence.endswith(".")
        assert not re.search(r"\d (ms|MB|%|times)", sentence)


def test_runs_that_do_not_count_are_left_out() -> None:
    numbers = iter(range(100))
    predictor: Any = SimpleNamespace(predict=lambda *_: SimpleNamespace(timings=Timings(total=float(next(numbers)))))
    staged = scaling._Staged(predictor, Scene(np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4), np.float32)))
    times = scaling._staged_times({"a": staged}, 3, lambda done, total: None, burst=2)
    # 0 and 1 warm up, 2, 5 and 8 begin a turn
    assert times["a"]["total"].tolist() == [[3, 4], [6, 7], [9, 10]]


def test_boxes_of_constant_size_show_the_same_pixels() -> None:
    picture = scene(320, 240, 2)
    larger = scaling._pasted(picture, (640, 500))
    for box, other in zip(picture.boxes, larger.boxes, strict=True):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = box.astype(int), other.astype(int)
        np.testing.assert_array_equal(picture.frame[y1:y2, x1:x2], larger.frame[v1:v2, u1:u2])


def test_a_model_with_another_number_of_landmarks(tmp_path: Path) -> None:
    model = open_model(MODEL)
    picture = scene(320, 240, 2)
    with Predictor(scaling.widened(model, 25, tmp_path / "25.onnx")) as predictor:
        result = predictor.predict(*picture)
        assert predictor.spec.input_size == model.spec.input_size
    assert result.keypoints.shape == (2, 25, 2)
    # noise has a maximum above 0 in some maps and the decoder works on them; a dead last layer would have none
    assert (result.scores > 0).any()


def test_only_a_1x1_convolution_can_be_widened(tmp_path: Path) -> None:
    spec = painter_spec()
    model = BenchModel("painter", write_painter(tmp_path / "p.onnx", spec), spec, trained=True)
    with pytest.raises(ModelError, match="1x1 convolution"):
        scaling.widened(model, 8, tmp_path / "8.onnx")


def test_peaks_are_what_a_trained_network_draws() -> None:
    spec = replace(painter_spec(), heatmap_size=(48, 64))
    maps = scaling.peaks(spec, 5)
    assert maps.shape == (5, 3, 64, 48)
    assert maps.dtype == np.float32
    cells, scores = decode_heatmaps(maps, refinement="dark_udp", blur_kernel=spec.blur_kernel)
    # A Gaussian of sigma 2 between four cells is at least exp(-2 * 0.5^2 / 8) = 0.939 in the nearest one
    assert ((scores > 0.93) & (scores <= 1)).all()
    assert ((cells >= 1) & (cells <= (47, 63))).all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has")
def test_memory_of_a_process(tmp_path: Path) -> None:
    path = write_painter(tmp_path / "p.onnx", painter_spec())
    found = memory.series(memory._CALLS, path, calls=3)
    assert list(found) == ["python", "libraries imported", "opened", "after 1 call", "after 3 calls"]
    for resident, own, peak in found.values():
        assert 0 < own < resident <= peak
    # NumPy, OpenCV and ONNX Runtime are tens of megabytes (61 seen); a peak never falls
    assert found["libraries imported"][0] > found["python"][0] + 20
    assert found["after 3 calls"][2] >= found["opened"][2]


def test_memory_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"python": 1.0, "opened": 2.0, "1": 3.0, "2": 4.0}
    monkeypatch.setattr(memory, "series", lambda code, path, **task: {k: [v, v / 2, v + 1] for k, v in steps.items()})
    rows = memory.memory_rows("m", Path("m.onnx"))
    assert [row.labels["stage"] for row in rows if row.labels["axis"] == "memory"] == list(steps)
    assert [row.labels["x"] for row in rows if row.labels["axis"] == "predictors"] == [1, 2]
    assert [row.labels["x"] for row in rows if row.labels["axis"] == "memory of boxes"] == [1, 2]
    assert rows[0].values == {"value": 1.0, "own": 0.5, "peak": 2.0}


def test_load_is_timed_beside_the_plain_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def starts(case: Any, rounds: int) -> Any:
        return [(way, {"open the model": 2.0 + len(way)}) for _ in range(rounds) for way in case.ways]

    monkeypatch.setattr(scaling, "starts", starts)
    record = scaling.run(axes=("load",), models=(MODEL,), rounds=12)
    assert record.value("p50", way="onnxruntime") == 13
    assert record.value("runs", way="edgepose") == 6  # a third would be 4, too few for an interval


@pytest.mark.parametrize(("axes", "models"), [(("boxen",), (MODEL,)), (("boxes",), ())])
def test_unusable_arguments(axes: tuple[str, ...], models: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="boxes, frame, keypoints, memory, load"):
        scaling.run(axes=axes, models=models)


def test_slow_models_have_rounds_enough_for_an_interval() -> None:
    assert [scaling._fewer(rounds) for rounds in (1, 4, scaling.ROUNDS, 30)] == [1, 4, 6, 10]


def test_without_proc_memory_is_left_out_with_a_note(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "STATUS", tmp_path / "status")
    record = scaling.run(axes=("boxes", "memory"), models=(MODEL,), rounds=1)
    assert {row.labels["axis"] for row in record.rows} == {"boxes"}
    assert record.notes[-1].startswith("memory: not measured. Memory is read from /proc/self/status")
    text = io.StringIO()
    scaling.print_table(record, Console(file=text, width=140))
    assert "memory: not measured" in text.getvalue()
    with pytest.raises(InputError, match="/proc/self/status"):
        scaling.run(axes=("memory",), models=(MODEL,))
