"""Foreign pose models: each way in which a network may differ from ours, on graphs whose answer is known.

Heatmap k of every network here is input channel k, every fourth pixel; what it must give is therefore known from the
picture alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from painter import HEATMAP_SIZE, INPUT_SIZE, painter_spec

from edgepose import DetectorSpec, ModelError, ModelSpec
from edgepose.adapt import adapt, read_spec
from edgepose.begin_spec import begin_spec
from edgepose.engines import open_engine
from edgepose.engines.onnxruntime import OnnxRuntimeEngine

(W, H), (MAP_W, MAP_H) = INPUT_SIZE, HEATMAP_SIZE
PLAIN = painter_spec("msra", mean=(0, 0, 0), std=(1, 1, 1))
IMAGE, HEAT = ["N", 3, H, W], ["N", 3, MAP_H, MAP_W]


def network(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    *,
    dtypes: dict[str, int] | None = None,
    opset: int = 13,
    ir_version: int = 8,
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A graph of float32 ends, but where ``dtypes`` names another type."""

    def value(name: str, shape: list[Any] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, (dtypes or {}).get(name, TensorProto.FLOAT), shape)

    weights = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    listed = [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights if ir_version < 4]
    graph = helper.make_graph(
        nodes, "g", [*(value(*item) for item in inputs.items()), *listed], [value(*item) for item in outputs.items()],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def subsample(source: str, target: str, *, axes: tuple[int, int] = (2, 3)) -> list[onnx.NodeProto]:
    """Every fourth pixel, by MaxPool of one pixel, which is as old as ONNX; in NHWC between two Transposes."""
    if axes == (2, 3):
        return [helper.make_node("MaxPool", [source], [target], kernel_shape=[1, 1], strides=[4, 4])]
    return [
        helper.make_node("Transpose", [source], [f"{target}.in"], perm=[0, 3, 1, 2]),
        *subsample(f"{target}.in", f"{target}.maps"),
        helper.make_node("Transpose", [f"{target}.maps"], [target], perm=[0, 2, 3, 1]),
    ]


def opened(tmp_path: Path, model: onnx.ModelProto, spec: ModelSpec) -> OnnxRuntimeEngine:
    onnx.save(model, tmp_path / "foreign.onnx")
    return OnnxRuntimeEngine(tmp_path / "foreign.onnx", spec=spec, max_batch=4, threads=1)


def levels(count: int = 2) -> np.ndarray:
    """(N, 3, h, w) float32: RGB levels, whole ones."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, H, W)).astype(np.float32)


def cells(images: np.ndarray) -> np.ndarray:
    return images[:, :, ::4, ::4]


# What adaptation does ------------------------------------------------------------------------------------


def test_nothing_to_adapt_costs_nothing() -> None:
    model = network(subsample("images", "heatmaps"), {"images": IMAGE}, {"heatmaps": HEAT})
    adapted, spec = adapt(model, PLAIN)
    assert adapted is model
    assert spec is PLAIN


def test_the_model_is_never_changed_and_the_new_one_is_valid_and_complete() -> None:
    model = network(
        subsample("images", "maps", axes=(1, 2)), {"images": ["N", H, W, 3]}, {"maps": ["N", MAP_H, MAP_W, 3]}
    )
    before = model.SerializeToString()
    foreign = replace(PLAIN, layout="nhwc", heatmap_layout="nhwc", color="bgr")
    adapted, spec = adapt(model, foreign)
    assert model.SerializeToString() == before
    onnx.checker.check_model(adapted, full_check=True)
    assert spec == foreign.canonical()
    assert ModelSpec.from_metadata({p.key: p.value for p in adapted.metadata_props}, source="adapted") == spec
    assert adapt(adapted, spec) == (adapted, spec)


@pytest.mark.parametrize("batch", ["N", 1, 4])
@pytest.mark.parametrize("opset", [7, 13, 17])
def test_layouts_and_order_of_colours(tmp_path: Path, batch: Any, opset: int) -> None:
    model = network(
        subsample("images", "maps", axes=(1, 2)),
        {"images": [batch, H, W, 3]},
        {"maps": [batch, MAP_H, MAP_W, 3]},
        opset=opset,
        ir_version=8 if opset > 7 else 3,
    )
    engine = opened(tmp_path, model, replace(PLAIN, layout="nhwc", heatmap_layout="nhwc", color="bgr"))
    assert engine.spec == PLAIN
    assert engine.output_shape == (3, MAP_H, MAP_W)
    np.testing.assert_array_equal(engine.run(levels(3)), cells(levels(3))[:, ::-1])  # its channel 0 is blue


@pytest.mark.parametrize("first", ["Cast", "Transpose", "Slice"])
@pytest.mark.parametrize("kind", ["UINT8", "INT32", "INT64", "DOUBLE", "FLOAT16"])
def test_types(tmp_path: Path, kind: str, first: str) -> None:
    """Where the network begins with a Cast, perhaps behind a Transpose, it is given floats; else what it takes."""
    number = getattr(TensorProto, kind)
    shape, layout, source = IMAGE, "nchw", "images"
    nodes = []
    if first == "Transpose":
        nodes = [helper.make_node("Transpose", ["images"], ["moved"], perm=[0, 3, 1, 2])]
        shape, layout, source = ["N", H, W, 3], "nhwc", "moved"
    elif first == "Slice":
        nodes, source = [helper.make_node("Slice", ["images", "from", "to"], ["moved"])], "moved"
    nodes += [helper.make_node("Cast", [source], ["float"], to=TensorProto.FLOAT), *subsample("float", "heatmaps")]
    limits = {"from": np.zeros(4, np.int64), "to": np.array([99, 3, H, W])} if first == "Slice" else {}
    model = network(nodes, {"images": shape}, {"heatmaps": HEAT}, dtypes={"images": number}, constants=limits)
    model = onnx.shape_inference.infer_shapes(model)  # the types of what lies inside are stated, as in many files
    adapted, _ = adapt(model, replace(PLAIN, layout=layout))
    onnx.checker.check_model(adapted, full_check=True)
    casts = sum(node.op_type == "Cast" for node in adapted.graph.node)
    assert casts == (2 if first == "Slice" and kind != "FLOAT16" else 1)
    engine = opened(tmp_path, model, replace(PLAIN, layout=layout))
    images = levels()
    np.testing.assert_array_equal(engine.run(images), cells(images))
    if kind in {"UINT8", "INT32", "INT64"}:  # whole levels: the nearest, not what a Cast cuts off
        np.testing.assert_array_equal(engine.run(np.clip(images - 0.25, 0, None)), cells(images))
        np.testing.assert_array_equal(engine.run(np.clip(images + 0.25, None, 255)), cells(images))


def test_heatmaps_in_double(tmp_path: Path) -> None:
    nodes = [*subsample("images", "maps"), helper.make_node("Cast", ["maps"], ["heat"], to=TensorProto.DOUBLE)]
    model = network(nodes, {"images": IMAGE}, {"heat": HEAT}, dtypes={"heat": TensorProto.DOUBLE})
    found = opened(tmp_path, model, PLAIN).run(levels())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, cells(levels()))


def several_outputs() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Neg", ["images"], ["negative"]),
        *subsample("images", "maps"),
        *subsample("negative", "stage_1"),
        helper.make_node("ArgMax", ["maps"], ["best"], axis=1),
    ]
    return network(
        nodes,
        {"images": IMAGE},
        {"stage_1": HEAT, "best": ["N", 1, MAP_H, MAP_W]},
        dtypes={"best": TensorProto.INT64},
    )


def test_one_of_several_outputs_or_a_tensor_from_inside(tmp_path: Path) -> None:
    for name, sign in (("stage_1", -1), ("maps", 1)):
        engine = opened(tmp_path, several_outputs(), replace(PLAIN, output=name))
        np.testing.assert_array_equal(engine.run(levels()), sign * cells(levels()))
    adapted, _ = adapt(several_outputs(), replace(PLAIN, output="maps"))
    assert [node.op_type for node in adapted.graph.node] == ["MaxPool"]  # what serves other outputs is gone


def test_channels_in_any_order_among_more(tmp_path: Path) -> None:
    nodes = [helper.make_node("Concat", ["images", "images"], ["six"], axis=1), *subsample("six", "maps")]
    model = network(nodes, {"images": IMAGE}, {"maps": ["N", 6, MAP_H, MAP_W]})
    engine = opened(tmp_path, model, replace(PLAIN, heatmap_channels=(5, 0, 4)))
    np.testing.assert_array_equal(engine.run(levels()), cells(levels())[:, [2, 0, 1]])


def test_heatmaps_that_are_logits(tmp_path: Path) -> None:
    model = network(subsample("images", "maps"), {"images": IMAGE}, {"maps": HEAT})
    engine = opened(tmp_path, model, replace(PLAIN, activation="sigmoid"))
    images = levels() / 64 - 2
    # float32, and ONNX Runtime's sigmoid is a rational function: worst seen 6e-8
    np.testing.assert_allclose(engine.run(images), 1 / (1 + np.exp(-cells(images))), atol=1e-6)


def test_a_file_without_outputs(tmp_path: Path) -> None:
    model = network(subsample("images", "maps"), {"images": IMAGE}, {"maps": HEAT})
    del model.graph.output[:]
    (tmp_path / "bare.onnx").write_bytes(model.SerializeToString())
    for spec in (PLAIN, replace(PLAIN, color="bgr"), DetectorSpec("d", INPUT_SIZE, ("a",), "yolov8")):
        with pytest.raises(ModelError, match="without a single output"):
            open_engine(tmp_path / "bare.onnx", spec=spec, device="cpu", max_batch=1)


def test_weights_among_the_inputs_of_an_old_file(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["images", "half"], ["scaled"]), *subsample("scaled", "heatmaps")]
    model = network(nodes, {"images": IMAGE}, {"heatmaps": HEAT}, opset=7, ir_version=3,
                    constants={"half": np.array(0.5, np.float32)})  # fmt: skip
    assert len(model.graph.input) == 2
    engine = opened(tmp_path, model, replace(PLAIN, color="bgr"))
    np.testing.assert_array_equal(engine.run(levels()), cells(levels())[:, ::-1] / 2)


def test_a_subgraph_that_reads_the_input_goes_on_reading_it(tmp_path: Path) -> None:
    maps = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["images"], [f"{name}.x"]), *subsample(f"{name}.x", "inner")], name, [], [maps]
        )
        for name, operator in (("then_branch", "Identity"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["bright"]),
        helper.make_node("If", ["bright"], ["heatmaps"], **branches),
    ]
    model = network(
        nodes,
        {"images": IMAGE},
        {"heatmaps": HEAT, "most": []},
        constants={"zero": np.array(0, np.float32)},
    )
    engine = opened(tmp_path, model, replace(PLAIN, color="bgr", output="heatmaps"))
    np.testing.assert_array_equal(engine.run(levels()), cells(levels())[:, ::-1])


def test_the_whole_chain_finds_the_colours(tmp_path: Path) -> None:
    """Scale, mean and std of a BGR network, through the pipeline's own normalisation."""
    from edgepose.crops import Crops

    spec = replace(PLAIN, color="bgr", layout="nhwc", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model = network(
        [helper.make_node("Transpose", ["images"], ["x"], perm=[0, 3, 1, 2]), *subsample("x", "maps")],
        {"images": ["N", H, W, 3]},
        {"maps": HEAT},
    )
    engine = opened(tmp_path, model, spec)
    picture = np.random.default_rng(1).integers(0, 256, (1, H, W, 3), np.uint8)  # BGR
    found = engine.run(Crops(picture, "noise").normalized(engine.spec))
    wanted = (picture / 255 - np.array(spec.mean)) / np.array(spec.std)
    # float32 of values up to 3; worst seen 4e-7
    np.testing.assert_allclose(found, cells(wanted.transpose(0, 3, 1, 2)), atol=2e-6)


# What model and spec contradict each other in ------------------------------------------------------------


def plain(image: list[Any], heat: list[Any]) -> onnx.ModelProto:
    return network([helper.make_node("Identity", ["images"], ["maps"])], {"images": image}, {"maps": heat})


@pytest.mark.parametrize(
    ("image", "heat", "changes", "words"),
    [
        (["N", H, W, 3], HEAT, {}, r'looks like nhwc: say "layout": "nhwc"'),
        (IMAGE, HEAT, {"layout": "nhwc"}, r'looks like nchw: say "layout": "nchw"'),
        (["N", 1, H, W], HEAT, {}, "three colour channels, and this network takes 1"),
        (["N", 3, W, H], HEAT, {}, rf'\[width, height\]: say "input_size": \[{H}, {W}\]'),
        (["N", 3, 64, W], HEAT, {}, rf'say "input_size": \[{W}, 64\]'),
        ([3, H, W], HEAT, {}, "four dimensions"),
        (IMAGE, ["N", MAP_H, MAP_W, 3], {}, r'look like nhwc: say "heatmap_layout": "nhwc"'),
        (IMAGE, HEAT, {"heatmap_layout": "nhwc"}, r'look like nchw: say "heatmap_layout": "nchw"'),
        (IMAGE, ["N", 3, MAP_W, MAP_H], {}, rf'say "heatmap_size": \[{MAP_H}, {MAP_W}\]'),
        (IMAGE, ["N", 4, MAP_H, MAP_W], {}, r'names 3 keypoints: .*"heatmap_channels": \[0, 1, 2\]'),
        (IMAGE, ["N", 2, MAP_H, MAP_W], {}, "Correct keypoint_names"),
        (IMAGE, ["N", 4, MAP_H, MAP_W], {"heatmap_channels": (0, 1, 4)}, "channel 4, .* channels 0 to 3"),
        (IMAGE, ["N", 3, 2], {}, r'name them in the spec \("output"\)'),
        (IMAGE, HEAT, {"output": "map"}, r"has no such tensor\. Did you mean 'maps'\?"),
    ],
)
def test_each_contradiction_names_its_field(image: list, heat: list, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        adapt(plain(image, heat), replace(PLAIN, **changes), source="theirs.onnx")
    assert str(caught.value).startswith("theirs.onnx: ")


def test_several_outputs_or_inputs_are_listed() -> None:
    with pytest.raises(ModelError, match=r'stage_1 float32 .*, best int64 .*; stage_1 would fit.*"output": "stage_1"'):
        adapt(several_outputs(), PLAIN)
    model = network([helper.make_node("Add", ["images", "mask"], ["maps"])], {"images": IMAGE, "mask": IMAGE},
                    {"maps": HEAT})  # fmt: skip
    with pytest.raises(ModelError, match=r"has one input, the picture; this one has images .*, mask float32"):
        adapt(model, PLAIN)


def test_of_several_stages_the_last_is_proposed() -> None:
    nodes = [helper.make_node("Neg", ["maps"], ["stage_2"]), *subsample("images", "maps")][::-1]
    model = network(nodes, {"images": IMAGE}, {"maps": HEAT, "stage_2": HEAT})
    with pytest.raises(ModelError, match=r'maps and stage_2 would fit the spec.*"output": "stage_2"'):
        adapt(model, PLAIN)


def test_levels_are_not_normalised_twice() -> None:
    model = network(
        subsample("images", "maps"), {"images": IMAGE}, {"maps": HEAT}, dtypes={"images": TensorProto.UINT8}
    )
    with pytest.raises(ModelError, match=r'is uint8: it takes levels .* "scale": 1, "mean": \[0, 0, 0\]'):
        adapt(model, painter_spec("msra"))
    model = network(subsample("images", "maps"), {"images": IMAGE}, {"maps": HEAT}, dtypes={"images": TensorProto.INT8})
    with pytest.raises(ModelError, match=r"is int8, .*quantised inputs"):
        adapt(model, PLAIN)


# Specs in files -------------------------------------------------------------------------------------------


def test_a_spec_file_tells_its_kind(tmp_path: Path, repository: Path) -> None:
    pose = read_spec(repository / "tests" / "data" / "specs" / "cpm.json")
    assert isinstance(pose, ModelSpec)
    text = '{"name": "d", "input_size": [64, 64], "category_names": ["a"], "format": "yolov8"}'
    (tmp_path / "detector.json").write_text(text)
    assert type(read_spec(tmp_path / "detector.json")).__name__ == "DetectorSpec"
    (tmp_path / "text.json").write_text("[]")
    for name in ("text.json", "missing.json"):
        with pytest.raises(ModelError, match=r"expected a JSON object|cannot be read"):
            read_spec(tmp_path / name)


def test_a_beginning_of_a_spec_fits_its_file() -> None:
    model = network(subsample("images", "maps", axes=(1, 2)), {"images": [1, H, W, 3]}, {"maps": [1, MAP_H, MAP_W, 3]})
    text = begin_spec("theirs", model.graph.input, model.graph.output)
    spec = ModelSpec.from_json(text)
    assert (spec.layout, spec.heatmap_layout, spec.input_size, spec.heatmap_size) == (
        "nhwc", "nhwc", INPUT_SIZE, HEATMAP_SIZE,
    )  # fmt: skip
    adapt(model, spec)
    model = several_outputs()
    assert ModelSpec.from_json(begin_spec("theirs", model.graph.input, model.graph.output)).output == "stage_1"
    rows = plain(IMAGE, ["N", 100, 6])
    assert begin_spec("detector", rows.graph.input, rows.graph.output) == ""
