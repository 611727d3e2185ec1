"""`edgepose bench latency` and `throughput`: what is recorded is what was timed. No test looks at how fast."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import blob_model
from rich.console import Console
from typer.testing import CliRunner

from edgepose.benchmarks import cli, equality, latency, throughput, throughput_worker
from edgepose.benchmarks.bench_models import BenchModel
from edgepose.benchmarks.records import Record
from edgepose.benchmarks.throughput import Arrangement, arrangements, frames_per_second, saved_scene
from edgepose.benchmarks.throughput_worker import Task
from edgepose.benchmarks.ways import WAYS, Selection
from edgepose.cli import app
from edgepose.errors import InputError

TWO = Selection(ways=("edgepose", "onnxruntime batched"), precisions=("fp32",), threads=1)
PLAN = latency.Plan(boxes=(1, 2), frames=("200x160",), rounds=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    return blob_model(tmp_path_factory.mktemp("latency"), trained=False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (latency, throughput):
        monkeypatch.setattr(module, "FRAME" if module is throughput else "MAIN_FRAME", "320x240")


def shown(module: Any, record: Record) -> str:
    text = io.StringIO()
    module.print_table(record, Console(file=text, width=200))
    return text.getvalue()


def test_latency_has_a_row_of_everything(model: BenchModel, small: None) -> None:
    told: list[tuple[int, int, str]] = []
    record = latency.run([model], selection=TWO, plan=PLAN, progress=lambda *turn: told.append(turn))
    places = {("320x240", 1), ("320x240", 2), ("200x160", 8)}
    for way in ("edgepose", "onnxruntime batched"):
        rows = record.find(way=way, model="blobs", precision="fp32", stage="total")
        rows = [row for row in rows if row.unit == "ms"]
        assert {(row.labels["frame"], row.labels["boxes"]) for row in rows} == places
        assert {row.values["runs"] for row in rows} == {2 * latency.BURST}
    for frame, boxes in places:
        at: dict[str, Any] = {"frame": frame, "boxes": boxes, "way": "edgepose", "precision": "fp32"}
        stages = [record.value("mean", **at, stage=stage) for stage in ("crop", "network", "decode", "rest")]
        total = next(row for row in record.find(**at, stage="total") if row.unit == "ms")
        # means of the same runs add up; the record keeps five figures
        assert sum(stages) == pytest.approx(total.values["mean"], rel=1e-6)
        assert min(stages) > 0
        share = record.find(**at, stage="all but the network")[0]
        assert share.unit == "%"
        assert 0 < share.values["value"] < 100
        (against,) = record.find(**at, against="onnxruntime batched")
        assert against.unit == "ratio"
        assert against.values["value"] > 0
        assert "low" not in against.values  # of two rounds
    assert any("random" in note for note in record.notes)
    assert told[-1][:2] == (told[-1][1], told[-1][1])
    table = shown(latency, record)
    assert table.count("onnxruntime batched") == 3
    assert "all but the network" in table


def test_stages_are_of_the_runs_that_were_timed() -> None:
    class Counting:
        stages: dict[str, float]

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, frame: Any, boxes: Any) -> None:
            self.calls += 1
            self.stages = {"network": float(self.calls)}

    recorded = latency._Recorded(Counting(), np.zeros(0), np.zeros(0))  # type: ignore[arg-type]
    latency.timing.interleaved({"way": recorded}, rounds=3, burst=latency.BURST)
    # two warm-ups, then turns of one run that does not count and two that do
    np.testing.assert_array_equal(recorded.stages(3)["network"], [[4, 5], [7, 8], [10, 11]])


@pytest.mark.parametrize("anyway", [False, True])
def test_a_way_with_other_landmarks_is_not_timed_unless_asked_for(
    anyway: bool, model: BenchModel, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    unequal = {("onnxruntime batched", "fp32"): "its landmarks are others"}
    monkeypatch.setattr(equality, "check", lambda *_: equality.Verdict([], unequal, {}))
    plan = latency.Plan(boxes=(1,), frames=(), rounds=2, unequal=anyway)
    record = latency.run([model], selection=TWO, plan=plan)
    rows = record.find(way="onnxruntime batched", stage="total")
    assert len(rows) == anyway
    assert all(row.labels["unequal"] == "yes" for row in rows)
    assert f"its landmarks are others: {'timed all the same' if anyway else 'not timed'}" in record.notes
    assert ("other landmarks" in shown(latency, record)) == anyway


def test_plan() -> None:
    plan = latency.Plan(boxes=(8, 1, 8), frames=("1080p", "4K"), rounds=20)
    assert plan.cases() == [("1080p", 8, 20), ("1080p", 1, 10), ("4K", 8, 10)]
    assert [rounds for *_, rounds in latency.Plan(rounds=8).cases()] == [6, 6, 8, 6, 6, 6, 6]  # fewer are no interval
    assert [rounds for *_, rounds in latency.Plan.quick().cases()] == [2, 2]
    for wrong, message in ((latency.Plan(frames=("HD",)), "WIDTHxHEIGHT"), (latency.Plan(boxes=(0,)), "at least 1")):
        with pytest.raises(InputError, match=message):
            wrong.cases()


def test_arrangements_share_all_cores() -> None:
    assert arrangements(1) == [Arrangement("1 network, all cores")]
    assert [a.name for a in arrangements(2)] == ["1 network, all cores", "2 threads", "2 processes"]
    for each in arrangements(16)[1:]:
        assert each.processes * each.lanes * (each.threads or 0) == 16
    for cpus, counts in ((6, [2, 4, 6]), (16, [2, 4, 8, 16]), (64, [2, 4, 8, 16])):
        assert [a.lanes for a in arrangements(cpus) if a.lanes > 1] == counts
        assert [a.processes for a in arrangements(cpus) if a.processes > 1] == counts


def test_a_worker_works_as_often_as_it_is_told(model: BenchModel, small: None, tmp_path: Path) -> None:
    scene = str(saved_scene(tmp_path, 2))
    task = Task("edgepose", "fp32", "blobs", str(model.path), 2, 1, scene, frames=3)
    assert frames_per_second(task, 2, 0.05) > 0
    with pytest.raises(InputError, match=r"its process ended: .*nowhere\.onnx"):
        frames_per_second(Task("edgepose", "fp32", "x", "nowhere.onnx", 1, 1, scene), 1, 0.05)


def test_a_worker_that_does_not_answer_is_killed(
    model: BenchModel, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "PATIENCE", 0.05)  # less than a process takes to start
    task = Task("edgepose", "fp32", "blobs", str(model.path), 1, 1, str(saved_scene(tmp_path, 1)))
    with pytest.raises(InputError, match=r"did not answer within 0\.05 s and was killed"):
        frames_per_second(task, 1, 0.05)


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(ways=("all",), without=("rtmlib",)), {*WAYS} - {"rtmlib"}),
        (Selection(ways=("rtmlib",), without=("rtmlib",)), {"edgepose"}),
        (Selection(without=("rtmlib",)), {*throughput.DEFAULT_WAYS} - {"rtmlib"}),
    ],
)
def test_throughput_leaves_out_what_it_is_told_to(
    selection: Selection, left: set[str], model: BenchModel, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Selection] = []

    def open_ways(_: BenchModel, selection: Selection, *__: Any, **___: Any) -> Any:
        asked.append(selection)
        return {}, []

    monkeypatch.setattr(throughput, "open_ways", open_ways)
    monkeypatch.setattr(equality, "check", lambda *_: equality.Verdict([], {}, {}))
    throughput.run([("blobs", model)], selection=selection)
    assert {name for name, _ in asked[0].factories()} == left


def test_throughput_refuses_names_that_there_are_not(model: BenchModel, small: None) -> None:
    with pytest.raises(InputError, match="there is no way 'rtmlip'"):
        throughput.run([("blobs", model)], selection=Selection(without=("rtmlip",)))


def test_rates_are_summed_by_lane_and_a_failing_lane_is_told() -> None:
    calls = {"first": 0, "second": 0}

    def count(name: str) -> Any:
        def work() -> None:
            calls[name] += 1

        return work

    rates = throughput_worker._rates([count("first"), count("second")], 0.02, frames=4)
    assert len(rates) == 2
    # each ran for 0.02 s or, by one call, longer: no more frames a second than calls in that time
    assert all(0 < rate <= 4 * calls[name] / 0.02 for rate, name in zip(rates, calls, strict=True))

    def fail() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        throughput_worker._rates([fail, count("first")], 0.01, frames=1)


def test_throughput_says_which_arrangement_wins(
    model: BenchModel, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"1 network, all cores": 10.0, "2 threads": 30.0, "2 processes": 20.0}

    def pretend(task: Task, processes: int, seconds: float) -> float:
        name = "2 processes" if processes == 2 else "2 threads" if task.lanes == 2 else "1 network, all cores"
        if (task.way, name) == ("onnxruntime batched", "2 threads"):
            raise InputError("its process ended: lost")
        return rates[name] * (2 if task.way == "edgepose" else 1) * (5 if task.frames > 1 else 1)

    monkeypatch.setattr(throughput, "frames_per_second", pretend)
    monkeypatch.setattr(throughput, "usable_cpus", lambda: 2)
    record = throughput.run([("blobs", model)], selection=TWO, boxes=(1, 2), rounds=2)
    (row,) = [r for r in record.find(way="edgepose", arrangement="2 threads", boxes=2) if r.unit == "frames/s"]
    assert row.values["p50"] == 60
    (row,) = [r for r in record.find(way="edgepose", arrangement="2 threads", boxes=2) if r.unit == "boxes/s"]
    assert row.values["p50"] == 120
    (row,) = record.find(way="edgepose", boxes=1, against="onnxruntime batched")
    assert row.values["value"] == pytest.approx(3)  # threads against processes, since its threads failed
    (several,) = [r for r in record.find(way="edgepose", frames=4, boxes=1) if r.unit == "frames/s"]
    assert several.values["p50"] == 100  # the most, but in no ratio: the others take one frame in a call
    assert "against" not in several.labels
    assert "blobs, 1 boxes: edgepose does most as 2 threads: 60 frames/s" in record.notes
    assert "blobs, 2 boxes: onnxruntime batched, 2 threads: left out. its process ended: lost" in record.notes
    assert "3.00 x the frames of onnxruntime batched" in shown(throughput, record)


def test_commands(model: BenchModel, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "keep", lambda record, folder: record.save(folder))  # without plots
    output = tmp_path / "out"
    line = ["bench", "latency", "-m", str(model.path), "-o", str(output), "--way", "edgepose", "--boxes", "1"]
    line += ["--frame", "320x240", "--rounds", "2", "--precision", "fp32", "--threads", "1", "--unequal"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    (path,) = output.glob("latency--*.json")
    record = Record.read(path)
    assert {row.labels["boxes"] for row in record.find(stage="total")} == {1, 8}
    monkeypatch.setattr(throughput, "frames_per_second", lambda *_: 5.0)
    line = ["bench", "throughput", "-m", str(model.path), "-o", str(output), "--way", "edgepose", "--quick"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert json.loads(next(output.glob("throughput--*.json")).read_text())["rows"]
    for wrong in (["--way", "mmpose"], ["--device", "tpu"], ["--precision", "fp8"], ["--frame", "HD"]):
        done = CliRunner().invoke(app, ["bench", "latency", "-m", str(model.path), "-o", str(output), *wrong])
        assert done.exit_code != 0
        assert wrong[1] in str(done.output) + str(done.exception)


def test_the_worker_keeps_its_answers_apart_from_what_libraries_print(
    model: BenchModel, small: None, tmp_path: Path
) -> None:
    """rtmlib prints when it opens a model: without care the first answer would be that."""
    pytest.importorskip("rtmlib")
    task = Task("rtmlib", "fp32", "blobs", str(model.path), 1, 1, str(saved_scene(tmp_path, 1)))
    assert frames_per_second(task, 1, 0.02) > 0
