"""Models that cannot be built, or only just: each with words that say what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_builds import SPEC, build, files, insert, needs_rtx, painter
from onnx import TensorProto, helper
from painter import write_painter

from edgepose import InputError, ModelError
from edgepose.crops import Crops

__all__ = ["painter"]  # a fixture
pytestmark = needs_rtx


def test_arguments_that_are_not_usable(painter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision must be one of fp32, fp16, got 'int8'"):
        build(painter, precision="int8")
    for name, value in (("model", 5), ("spec", {}), ("output", 1), ("options", "fp16"), ("options", 0)):
        with pytest.raises(InputError, match=f"{name} must be one of .*, got {value!r}"):
            build(**{"model": painter, name: value})
    with pytest.raises(InputError, match=r"crops must be Crops, a function that returns Crops, or paths .*, got 5"):
        build(painter, crops=5)
    with pytest.raises(InputError, match=r"crops must be Crops.*, got None"):
        build(painter, crops=lambda spec: None)
    with pytest.raises(InputError, match="is an engine: pass the ONNX file"):
        build(tmp_path / "model.engine")
    with pytest.raises(ModelError, match="there is no model file"):
        build(tmp_path / "nowhere.onnx")
    with pytest.raises(InputError, match=r"crops must be \(N, 128, 96, 3\) uint8, got \(1, 64, 48, 3\)"):
        build(painter, crops=Crops(np.zeros((1, 64, 48, 3), np.uint8), "small"))
    (tmp_path / "broken.onnx").write_bytes(painter.read_bytes()[:-50])
    with pytest.raises(ModelError, match=r"is not an ONNX model|carries no edgepose spec|not valid ONNX"):
        build(tmp_path / "broken.onnx")


def test_a_model_without_a_spec_needs_one(tmp_path: Path) -> None:
    model = write_painter(tmp_path / "bare.onnx", SPEC, store_spec=False)
    with pytest.raises(ModelError, match="carries no edgepose spec"):
        build(model)
    (tmp_path / "spec.json").write_text(SPEC.to_json())
    for spec in (SPEC, tmp_path / "spec.json", str(tmp_path / "spec.json")):
        info = build(model, spec=spec).info
        assert (info.spec, info.spec_given) == (SPEC, True)
    assert "--spec spec.json" in info.rebuild_command(tmp_path / "bare.engine")
    wrong = replace(SPEC, input_size=(96, 96))
    with pytest.raises(ModelError, match="model and spec disagree on the input"):
        build(model, spec=wrong)
    with pytest.raises(ModelError, match="model and spec disagree on the output"):
        build(model, spec=replace(SPEC, heatmap_size=(24, 24)))


def test_two_outputs(painter: Path) -> None:
    model = onnx.load(painter)
    model.graph.node.append(helper.make_node("Neg", ["images"], ["inverted"]))
    model.graph.output.append(helper.make_tensor_value_info("inverted", TensorProto.FLOAT, ["N", 3, 128, 96]))
    onnx.save(model, painter)
    with pytest.raises(ModelError, match=r'has heatmaps float32 .*, inverted float32 .*"output": "heatmaps"'):
        build(painter)
    info = build(painter, spec=replace(SPEC, output="heatmaps")).info
    assert (info.spec, info.output.name) == (SPEC, "heatmaps")


def test_a_node_that_tensorrt_does_not_take_is_named(painter: Path) -> None:
    nodes = [
        helper.make_node("Bernoulli", ["images"], ["noise"], name="the dice"),
        helper.make_node("Mul", ["noise", "zero"], ["nothing"]),
        helper.make_node("Add", ["images", "nothing"], ["images.1"]),
    ]
    insert(painter, *nodes, constants={"zero": np.array(0, np.float32)})
    with pytest.raises(ModelError, match=r"cannot take this model: .*Bernoulli 'the dice': it has no such operator"):
        build(painter, precision="fp32")
    assert "painter.engine" not in files(painter.parent)


def test_a_weight_beyond_float16(painter: Path) -> None:
    insert(painter, helper.make_node("Mul", ["images", "large"], ["images.1"]),
           constants={"large": np.array(1e5, np.float32)})  # fmt: skip
    with pytest.raises(ModelError, match=r"large holds 1e\+05, and float16 ends at 65504"):
        build(painter)
    assert build(painter, precision="fp32").info.precision == "fp32"


# What the graph does not tell, and what only a run shows ---------------------------------------------------


@pytest.mark.parametrize("which", ["input", "output"])
def test_an_input_or_output_without_a_shape_is_tried(painter: Path, which: str) -> None:
    model = onnx.load(painter)
    getattr(model.graph, which)[0].type.tensor_type.ClearField("shape")
    onnx.save(model, painter)
    info = build(painter).info
    assert (info.input.shape, info.output.shape) == ((-1, 3, 128, 96), (-1, 3, 32, 24))
    assert info.parity.landmarks == 9
    wrong = replace(SPEC, heatmap_size=(24, 24))
    with pytest.raises(ModelError, match=r"by the spec they are \(3, 3, 24, 24\)|the model has 32, the spec says 24"):
        build(painter, spec=wrong)


def reshaped(model: Path, shape: tuple[int, ...]) -> Path:
    node = helper.make_node("Reshape", ["images", "shape"], ["images.1"], name="the flattener")
    insert(model, node, constants={"shape": np.array(shape, np.int64)})
    proto = onnx.load(model)
    del proto.graph.value_info[:]
    onnx.save(proto, model)
    return model


def test_a_batch_that_a_node_fixes(painter: Path) -> None:
    reshaped(painter, (1, 3, 128, 96))
    with pytest.raises(ModelError, match=r"does not run on a batch of 3 .*the flattener.*dynamic batch.*--min-batch 1"):
        build(painter)
    assert files(painter.parent) == ["painter.onnx"]


def test_heatmaps_of_another_batch(painter: Path) -> None:
    reshaped(painter, (1, 3, -1, 96))
    with pytest.raises(ModelError, match=r"returns heatmaps \(1, 3, 96, 24\) for a batch of 3, .* \(3, 3, 32, 24\)"):
        build(painter)


def test_levels_in_and_doubles_out_are_adapted(painter: Path) -> None:
    insert(painter, helper.make_node("Cast", ["pixels"], ["images.1"], to=TensorProto.FLOAT))
    model = onnx.load(painter)
    model.graph.input[0].name = "pixels"
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.append(helper.make_node("Cast", ["heatmaps"], ["heat"], to=TensorProto.DOUBLE))
    model.graph.output[0].name = "heat"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, painter)
    with pytest.raises(ModelError, match=r'the input pixels is uint8: .*"mean": \[0, 0, 0\], "std": \[1, 1, 1\]'):
        build(painter)
    info = build(painter, spec=replace(SPEC, mean=(0, 0, 0), std=(1, 1, 1)), precision="fp32").info
    assert (info.input.dtype, info.output.dtype, info.parity.landmarks) == ("float32", "float32", 9)


# Files that cannot be read ---------------------------------------------------------------------------------


def test_reading_parsing_and_external_weights_are_told_apart(
    painter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(painter, helper.make_node("Mul", ["images", "ones"], ["images.1"]),
           constants={"ones": np.ones((3, 128, 96), np.float32)})  # fmt: skip
    external = tmp_path / "external.onnx"
    onnx.save(onnx.load(painter), external, save_as_external_data=True, location="external.data")
    whole = build(external).info
    weights = tmp_path / "external.data"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert build(external, options=replace(whole.options, force=True)).info.onnx_sha256 != whole.onnx_sha256
    weights.unlink()
    with pytest.raises(
        ModelError, match=r"keeps its weights in external.data, which cannot be read .*beside the model"
    ):
        build(external)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        build(tmp_path / "text.onnx")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelError, match=r"model file .*painter.onnx cannot be read: Permission denied"):
        build(painter)
