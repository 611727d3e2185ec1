"""`edgepose bench startup`: that each way's process finds the landmarks, and that steps, sums and notes are right."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from edgepose import InputError, Predictor
from edgepose.benchmarks import startup
from edgepose.benchmarks.records import Record
from edgepose.benchmarks.scenes import scene
from edgepose.benchmarks.startup import OURS, STEPS, Case
from edgepose.models import find_model

MODEL = "garment-landmarks-fast"
# Crop px. A way that decodes by argmax alone is up to half a cell, 2 px, off in x and y, and rtmlib frames its crop to
# half a pixel otherwise: the median of the sure landmarks was 1.13 (onnxruntime), 0.77 (rtmlib) and 0 (edgepose).
NEAR = 2.0


@pytest.mark.parametrize("way", ["onnxruntime", "rtmlib", OURS])
def test_what_each_process_times_finds_the_landmarks(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(startup.WAYS[way].package) is None:
        pytest.skip(f"{way} is not installed")
    picture = scene(640, 480, 1)
    assert cv2.imwrite(str(tmp_path / "scene.png"), picture.frame)
    with Predictor(MODEL) as predictor:
        spec, expected = predictor.spec, predictor.predict(picture.frame, picture.boxes)
    # rtmlib feeds BGR to a network that is said to take RGB: for the time alone the order does not matter, here it does
    mean, std = (spec.mean, spec.std) if way != "rtmlib" else (spec.mean[::-1], spec.std[::-1])
    task = {
        "model": str(find_model(MODEL) if way != "rtmlib" else _reversed_channels(tmp_path / "bgr.onnx")),
        "photo": str(tmp_path / "scene.png"),
        "box": picture.boxes[0].tolist(),
        "input_size": spec.input_size,
        "mean": mean,
        "std": std,
        "cold": False,
        "threads": 1,
    }
    monkeypatch.setattr("sys.argv", ["-c", "0", json.dumps(task)])
    names: dict[str, Any] = {}
    exec(startup.WAYS[way].code, names)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["steps"]) == set(STEPS) - {
        "import torch",
        *({"import the library"} if way == "onnxruntime" else ()),
    }
    if way != OURS:
        session = names["session"] if way == "onnxruntime" else names["pose"].session
        assert session.get_session_options().intra_op_num_threads == 1
    found = np.asarray(names["predict"]()).reshape(1, -1, 2)
    sure = expected.scores > 0.4
    scale = 1.25 * (picture.boxes[0, 3] - picture.boxes[0, 1]) / spec.input_size[1]  # frame px of a crop px
    distances = np.linalg.norm(found - expected.keypoints, axis=2)[sure] / scale
    assert sure.sum() >= 4
    assert np.median(distances) < NEAR


def _reversed_channels(path: Path) -> Path:
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.load(find_model(MODEL))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    for node in proto.graph.node:
        for number, name in enumerate(node.input):
            if name == proto.graph.input[0].name:
                node.input[number] = "rgb"
    proto.graph.node.insert(0, helper.make_node("Gather", [proto.graph.input[0].name, "order"], ["rgb"], axis=1))
    onnx.save(proto, path)
    return path


def test_a_start_in_a_process_of_its_own() -> None:
    path = find_model(MODEL)
    with Predictor(MODEL) as predictor:
        case = Case(MODEL, path, predictor.spec, (OURS,))
    ((way, steps),) = startup.starts(case, 1)
    assert way == OURS
    assert list(steps) == [*(step for step in STEPS if step != "import torch"), "first result"]
    assert min(steps.values()) > 0
    # The first result is there before the second prediction begins; equal but for the order of the sum
    assert steps["first result"] == pytest.approx(sum(steps[s] for s in steps if s not in (STEPS[-1], "first result")))


def test_each_process_is_told_how_many_threads_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[dict[str, Any]] = []

    def start(way: str, task: dict[str, Any]) -> dict[str, Any]:
        tasks.append(task)
        return {"steps": {STEPS[0]: 1.0}, "files": [], "read": 0}

    monkeypatch.setattr(startup, "_start", start)
    monkeypatch.setattr(startup, "session_threads", lambda options: 3)
    with Predictor(MODEL) as predictor:
        case = Case(MODEL, find_model(MODEL), predictor.spec, (OURS,))
    list(startup.starts(case, 1))
    assert {task["threads"] for task in tasks} == {3}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that were started, in order; nothing is: each step takes as many ms as its place."""
    started: list[str] = []

    def start(way: str, task: dict[str, Any]) -> dict[str, Any]:
        started.append(way)
        steps = STEPS if way != "pytorch, import alone" else STEPS[:5]
        return {"steps": {name: 1.0 + STEPS.index(name) for name in steps}, "files": ["/no/such/file"], "read": 5e6}

    monkeypatch.setattr(startup, "_start", start)
    monkeypatch.setattr(startup, "find_spec", lambda name: None if name == "rtmlib" else object())
    return started


def test_rows_sums_and_notes(told: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    record = startup.run(
        models=(MODEL, "garment-landmarks"), rounds=6, cold_runs=2, progress=lambda *turn: seen.append(turn)
    )
    assert Record.read(record.save(tmp_path)).rows[-1].labels == record.rows[-1].labels
    assert record.value(way=OURS, model=MODEL, cache="warm", step="first result") == sum(range(1, 10))
    assert record.value("runs", way=OURS, model=MODEL, cache="warm", step="second prediction") == 6
    assert record.value("runs", way="onnxruntime", model="garment-landmarks", cache="warm", step="open the model") == 3
    assert record.value(way=OURS, model=MODEL, cache="cold", step="read from storage") == 5
    assert record.value("value", model=MODEL, step="model file") == find_model(MODEL).stat().st_size / 1e6
    assert not record.find(way="pytorch, import alone", step="first result")
    assert not record.find(way="pytorch, import alone", cache="cold")
    assert not record.find(way="rtmlib")
    assert any("rtmlib was left out" in note and "pip install --no-deps rtmlib" in note for note in record.notes)
    assert seen[-1][0] == seen[-1][1] == len(seen) == 6 * 3 + 3 * 2 + 2 * 2
    # one start of each way fills the file cache, for each model and temperature
    assert len(told) == len(seen) + 3 + 2 + 2

    text = io.StringIO()
    startup.print_table(record, Console(file=text, width=120))
    assert all(words in text.getvalue() for words in ("cold file cache", "read from storage, MB"))


def test_an_engine_is_opened_by_edgepose_alone(told: list[str], tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"TensorRT")
    record = startup.run(models=[str(engine)], rounds=1, cold_runs=0)
    assert {row.labels.get("way") for row in record.rows} == {None, OURS}
    assert set(told) == {OURS}


def test_a_system_without_cold_starts_says_so(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_can_forget", lambda: False)
    record = startup.run(models=[MODEL], rounds=1)
    assert not record.find(cache="cold")
    assert any("No cold starts" in note for note in record.notes)


def test_no_model() -> None:
    with pytest.raises(InputError, match="at least one"):
        startup.run(models=())
