"""`edgepose bench settings`: networks whose error is known, settings that do not survive, and what is told of them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from edgepose import InputError
from edgepose.benchmarks import settings, settings_engines, settings_graphs
from edgepose.benchmarks.bench_models import BenchModel, open_model
from edgepose.benchmarks.records import Record
from edgepose.benchmarks.settings_engines import BASELINE, DEFAULT, ISAS, ORT_CHANGES, Setting
from edgepose.errors import ModelError
from edgepose.models import find_model

MODEL = "garment-landmarks-fast"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small scene."""
    monkeypatch.setattr(settings, "SCENES", 1)
    monkeypatch.setattr(settings, "FRAME", (640, 480))


def test_accuracy_and_times_of_networks_whose_error_is_known(
    few: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = find_model(MODEL)
    network = settings_engines._ort(path)

    def fails() -> Any:
        raise RuntimeError("no such instructions")

    made = [
        Setting(*BASELINE, lambda: network),
        Setting(*DEFAULT, partial(settings_engines._ours, path)),
        Setting("onnxruntime", "a cell to the right", "fp32", lambda: lambda images: np.roll(network(images), 1, 3)),
        Setting("onnxruntime", "half as high", "fp32", lambda: lambda images: network(images) / 2),
        Setting("openvino", "broken", "int8", fails),
    ]
    monkeypatch.setattr(settings, "settings_of", lambda model, cache: (made, []))
    seen: list[tuple[int, int, str]] = []
    record = settings.run(models=(MODEL,), boxes=(1, 2), rounds=2, progress=lambda *turn: seen.append(turn))
    assert Record.read(record.save(tmp_path)).notes == record.notes
    assert record.notes == (f"{MODEL}: openvino, broken, int8 is left out: no such instructions",)

    def of(name: str, statistic: str) -> dict[str, float]:
        (row,) = record.find(setting=name, statistic=statistic)
        return dict(row.values)

    moved = of("a cell to the right", "landmark change")
    # Corner on corner (udp): the cells span the crop. The decoder sees the same map elsewhere: less than 1e-9 px seen
    spec = open_model(MODEL).spec
    assert moved["median"] == pytest.approx((spec.input_size[0] - 1) / (spec.heatmap_size[0] - 1), abs=1e-3)
    assert moved["compared"] > 20
    # A power of two changes no digit of a float, and the decoder's logarithm turns it into a constant (0 seen)

    assert of("half as high", "landmark change")["worst"] < 1e-2
    assert of("half as high", "heatmap difference")["value"] == pytest.approx(0.5, abs=0.01)
    assert of("default", "heatmap difference")["value"] < 1e-4  # the order of sums at most: 0 seen
    for row in record.find(statistic="time"):
        assert row.values["runs"] == (6 if row.labels["boxes"] == 1 else 2)
    (own,) = record.find(setting="as exported", statistic="speed-up", boxes=2)
    assert own.values["value"] == 1
    assert {row.labels["setting"] for row in record.find(default=1)} == {"default"}
    assert seen[-1][:2] == (8, 8)

    text = io.StringIO()
    settings.print_table(record, Console(file=text, width=140))
    assert all(words in text.getvalue() for words in ("a cell to the right", "batch 2", "4.1"))


def test_the_settings_of_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_int8(model: BenchModel, cache: Path | None) -> Path:
        raise ModelError("cannot be quantised")

    monkeypatch.setattr(settings_engines, "int8_of", no_int8)
    monkeypatch.setattr(settings_engines, "usable_cpus", lambda: 4)
    made, notes = settings_engines.settings_of(open_model(MODEL), tmp_path)
    keys = [setting.key for setting in made]
    assert keys[:2] == [BASELINE, DEFAULT]
    assert len(set(keys)) == len(keys)
    assert {name for _, name, _ in keys} >= {f"as exported, threads {count}" for count in (1, 2, 4)}
    assert {name for _, name, _ in keys} >= {f"as exported, {name}" for name in ORT_CHANGES}
    assert any("no INT8: cannot be quantised" in note for note in notes)


@pytest.mark.parametrize(("cpus", "threads"), [(4, {1, 2, 4}), (2, {1})])
def test_settings_of_openvino(cpus: int, threads: set[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings_engines, "int8_of", lambda model, cache: model.path)
    monkeypatch.setattr(settings_engines, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(settings_engines, "find_spec", lambda name: object())
    made, _ = settings_engines.settings_of(open_model(MODEL), tmp_path)
    names = [
        name for engine, name, precision in (one.key for one in made) if (engine, precision) == ("openvino", "fp32")
    ]
    assert names[:2] == ["as exported", "as exported, static batch"]  # two cores: two threads are the default
    assert set(names[2:]) == {f"as exported, threads {count}" for count in threads}


@pytest.mark.parametrize("static", [False, True])
def test_openvino_with_and_without_a_static_batch_computes_the_same(static: bool, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = _transposed(tmp_path / "t.onnx")
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8), dtype=np.float32)
    expected = settings_engines._ort(path)(images)
    network = settings_engines._openvino_setting("one", "fp32", path, threads=1, static=static).open()
    # float32 sums in another order, relative to the largest value: 1.7e-7 seen
    for count in (1, 5, 1):
        assert np.abs(network(images[:count]) - expected[:count]).max() < 1e-5 * np.abs(expected).max()


def test_a_network_may_overwrite_what_it_returned() -> None:
    memory = np.empty((settings.BATCH, 1, 1, 1), np.float32)

    def network(images: Any) -> Any:
        memory[: len(images)] = images[:, :1]
        return memory[: len(images)]

    images = np.arange(settings.BATCH + 3, dtype=np.float32).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(settings._in_batches(network, images), images)


@pytest.mark.parametrize("change", ORT_CHANGES.values(), ids=ORT_CHANGES)
def test_every_change_of_onnxruntime_computes_the_same(change: Callable[[Any], None], tmp_path: Path) -> None:
    path = _transposed(tmp_path / "t.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    expected = settings_engines._ort(path)(images)
    found = settings_engines._ort(path, change=change)(images)
    # float32 sums in another order, relative to the largest value: 1.9e-7 seen
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def _transposed(path: Path) -> Path:
    """A convolution, a transposed one of kernel 4 and stride 2, ReLU and a 1x1 convolution: a head in small."""
    rng = np.random.default_rng(1)
    shapes = {"a": (4, 3, 3, 3), "b": (4, 4, 4, 4), "c": (2, 4, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s, dtype=np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["images", "a"], ["x"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["x", "b"], ["y"], "up", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
        helper.make_node("Conv", ["z", "c"], ["heatmaps"], "last"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *sides])
        for name, sides in (("images", (3, 8, 8)), ("heatmaps", (2, 16, 16)))
    ]
    graph = helper.make_graph(nodes, "head", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_transposed_convolutions_are_rewritten_into_a_file(tmp_path: Path) -> None:
    path = _transposed(tmp_path / "t.onnx")
    found = settings_graphs.rewritten(path, tmp_path / "cache")
    assert found is not None
    operators = {node.op_type for node in onnx.load(found).graph.node}
    assert "ConvTranspose" not in operators
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    expected = settings_engines._ort(path)(images)
    # float32 sums in another order, relative to the largest value: 9e-8 seen
    assert np.abs(settings_engines._ort(found)(images) - expected).max() < 1e-5 * np.abs(expected).max()
    assert settings_graphs.rewritten(find_model(MODEL), tmp_path) is None


def test_int8_without_rewriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _transposed(tmp_path / "t.onnx")
    images = np.random.default_rng(0).standard_normal((8, 3, 8, 8), dtype=np.float32)
    monkeypatch.setattr(settings_graphs, "crops_of", lambda frame, boxes, spec: images)
    monkeypatch.setattr(settings_graphs, "FRAME", (160, 160))
    model = BenchModel("t", path, open_model(MODEL).spec, trained=True)
    found = settings_graphs.int8_as_exported(model, tmp_path)
    operators = [node.op_type for node in onnx.load(found).graph.node]
    assert "ConvTranspose" in operators
    assert "QuantizeLinear" in operators
    expected, quantized = settings_engines._ort(path)(images), settings_engines._ort(found)(images)
    error = np.abs(quantized - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.1  # 7-bit weights and 8-bit activations through one layer: 0.024 seen
    made = found.stat().st_mtime_ns
    assert settings_graphs.int8_as_exported(model, tmp_path).stat().st_mtime_ns == made


# What the processor really does -----------------------------------------------------------------------


def _fake_processes(monkeypatch: pytest.MonkeyPatch, answers: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
    """Processes by what they are given, (precision, ISA): an error's text, or nothing where they live."""
    asked = []

    def fresh(code: str, *, runs: int, arguments: tuple[str, ...]) -> list[bool]:
        _, precision, isa, _ = arguments
        asked.append((precision, isa))
        if error := answers.get((precision, isa)):
            raise InputError(error)
        return [True]

    monkeypatch.setattr(settings_engines, "fresh_process", fresh)
    monkeypatch.delitem(settings_engines.sys.modules, "openvino", raising=False)
    return asked


def _settings() -> list[Setting]:
    return [
        Setting(*BASELINE, lambda: None),  # type: ignore[arg-type, return-value]
        settings_engines._openvino_setting("as exported", "fp32", Path("m.onnx")),
        settings_engines._openvino_setting("as exported", "bf16", Path("m.onnx")),
    ]


@pytest.mark.parametrize("code", [-4, 0xC000001D])  # SIGILL, and what Windows has for it
def test_what_dies_is_held_to_older_instructions(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _fake_processes(monkeypatch, {("bf16", ""): f"a process ended with {code}: no output"})
    alive, isa, notes = settings_engines.survivors(_settings(), lambda what: None)
    assert asked == [("f32", ""), ("bf16", ""), ("bf16", ISAS[1])]
    assert [setting.precision for setting in alive] == ["fp32", "fp32", "bf16"]
    assert isa == ISAS[1]
    assert "dies with the instructions" in notes[0]
    assert f"ONEDNN_MAX_CPU_ISA={isa}" in notes[1]


def test_what_always_dies_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _fake_processes(monkeypatch, {("bf16", isa): "a process ended with -4: no output" for isa in ISAS})
    alive, isa, notes = settings_engines.survivors(_settings(), lambda what: None)
    assert [key[1] for key in asked] == ["", *ISAS]
    assert (len(alive), isa) == (2, "")
    assert "bf16 is left out: a process ended with -4" in notes[0]


def test_what_openvino_refuses_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "a process ended with 1: RuntimeError: Argument shapes are inconsistent."
    asked = _fake_processes(monkeypatch, {("bf16", ""): refused})
    alive, isa, notes = settings_engines.survivors(_settings(), lambda what: None)
    assert asked == [("f32", ""), ("bf16", "")]
    assert (len(alive), isa) == (2, "")
    assert "Argument shapes are inconsistent" in notes[0]


def test_openvino_that_is_loaded_cannot_be_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_processes(monkeypatch, {("bf16", ""): "a process ended with -4: no output"})
    monkeypatch.setitem(settings_engines.sys.modules, "openvino", settings_engines)
    alive, isa, notes = settings_engines.survivors(_settings(), lambda what: None)
    assert [setting.engine for setting in alive] == ["onnxruntime"]
    assert isa == ""
    assert "loaded before" in notes[-1]


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_MAX_CPU_ISA"
    monkeypatch.setenv(name, "SSE41")
    with settings_engines.instructions("AVX2"):
        assert os.environ[name] == "AVX2"
    assert os.environ[name] == "SSE41"
    monkeypatch.delenv(name)
    with settings_engines.instructions("AVX2"):
        assert os.environ[name] == "AVX2"
    assert name not in os.environ
    with settings_engines.instructions(""):
        assert name not in os.environ


@pytest.mark.parametrize(("models", "boxes"), [((), (1,)), ((MODEL,), ()), ((MODEL,), (0,))])
def test_unusable_arguments(models: tuple[str, ...], boxes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least one model"):
        settings.run(models=models, boxes=boxes)
