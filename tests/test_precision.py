"""The precision of a graph: what changes, what stays, what is refused; and that float16 is really computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from painter import painter_spec, write_painter

from edgepose import ModelError, bundled_models
from edgepose.precision import rounded_to_fp16, to_fp16, to_fp32

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def graph(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    size: int = 8,
    out: Sequence[Any] = ("N", 4, 8, 8),
    dtype: int = FLOAT,
    opset: int = 18,
) -> onnx.ModelProto:
    """x (N, 3, size, size) -> y."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["N", 3, size, size])],
        [helper.make_tensor_value_info("y", dtype, out)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
    "b": RNG.normal(0, 0.3, 4).astype(np.float32),
}
CONV = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1])
X = RNG.normal(0, 1, (2, 3, 8, 8)).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    dtype = np.float16 if "float16" in image.type else np.float32
    return np.asarray(session.run(None, {image.name: x.astype(dtype)})[0])


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**found, **{tensor.name: tensor.data_type for tensor in model.graph.initializer}}


def close(half: np.ndarray, full: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(half.astype(np.float32) - full).max() <= tolerance * np.abs(full).max())


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


# What changes ---------------------------------------------------------------------------------------


def test_a_convolution_computes_in_float16() -> None:
    model = graph([CONV], WEIGHTS)
    before = model.SerializeToString()
    half = to_fp16(model)
    assert model.SerializeToString() == before, "the argument is changed"
    assert set(types_of(half).values()) == {HALF}
    result = run(half)
    assert result.dtype == np.float16
    assert close(result, run(model), 2e-3)  # 11 bits and 27 products; seen: 4e-4
    assert run(to_fp32(half)).dtype == np.float32


def test_a_half_model_comes_back_as_it_is_and_its_weights_widened() -> None:
    half = to_fp16(graph([CONV], WEIGHTS))
    assert to_fp16(half) == half
    wide = to_fp32(half)
    assert set(types_of(wide).values()) == {FLOAT}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in wide.graph.initializer}
    assert np.array_equal(weights["w"], WEIGHTS["w"].astype(np.float16).astype(np.float32))


def test_weights_stored_as_float16_behind_a_cast_lose_the_cast() -> None:
    stored = {"w16": WEIGHTS["w"].astype(np.float16), "b": WEIGHTS["b"]}
    model = graph([helper.make_node("Cast", ["w16"], ["w"], to=FLOAT), CONV], stored)
    for changed, kind in ((to_fp16(model), HALF), (to_fp32(model), FLOAT)):
        assert operators(changed) == {"Conv": 1}
        assert set(types_of(changed).values()) == {kind}
        assert close(run(changed), run(model), 2e-3)  # seen: 4e-4 and 0


def test_casts_that_say_nothing_any_more_vanish() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=HALF),
        helper.make_node("Cast", ["h"], ["f"], to=FLOAT),
        helper.make_node("Conv", ["f", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    half = to_fp16(graph(nodes, WEIGHTS))
    assert operators(half) == {"Conv": 1, "Identity": 1}  # an output keeps its name
    assert types_of(half)["y"] == HALF
    assert close(run(half), run(graph([CONV], WEIGHTS)), 2e-3)


def test_integers_stay_and_casts_between_them_and_floats_follow() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Add", ["f", "f"], ["y"]),
    ]
    half = to_fp16(graph(nodes, out=["N", 3, 8, 8]))
    assert operators(half) == {"Cast": 2, "Add": 1}
    assert types_of(half)["i"] == TensorProto.INT32
    assert np.array_equal(run(half), 2 * np.trunc(X.astype(np.float16)))


@pytest.mark.parametrize("as_node", [False, True])
def test_the_scales_of_resize_stay_float32(as_node: bool) -> None:
    scales, roi = np.array([1, 1, 2, 2], np.float32), np.array([], np.float32)
    constants = dict(WEIGHTS)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1])]
    for name, value in (("scales", scales), ("roi", roi)):
        if as_node:
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        else:
            constants[name] = value
    nodes.append(
        helper.make_node(
            "Resize", ["c", "roi", "scales"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric"
        )
    )
    model = graph(nodes, constants, out=["N", 4, 16, 16])
    half = to_fp16(model)
    types = types_of(half)
    assert (types["scales"], types["roi"], types["y"]) == (FLOAT, FLOAT, HALF)
    assert close(run(half), run(model), 2e-3)  # seen: 4e-4


@pytest.mark.parametrize("kind", ["initializer", "value", "value_floats"])
def test_a_constant_that_is_data_and_scales_at_once_is_there_twice(kind: str) -> None:
    values = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        helper.make_node("Resize", ["x", "", "c"], ["big"], mode="nearest"),
        helper.make_node("Mul", ["c", "c"], ["square"]),
        helper.make_node("ReduceSum", ["square"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["big", "sum"], ["y"]),
    ]
    constants = {"c": values} if kind == "initializer" else {}
    if kind == "value":
        nodes.insert(0, helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(values)))
    elif kind == "value_floats":
        nodes.insert(0, helper.make_node("Constant", [], ["c"], value_floats=values.tolist()))
    model = graph(nodes, constants, out=["N", 3, 16, 16])
    half = to_fp16(model)
    types = types_of(half)
    assert (types["c"], types["c.float16"], types["sum"]) == (FLOAT, HALF, HALF)
    assert close(run(half), run(model), 1e-3)  # one product: half a unit in the last of 11 bits, 5e-4


def test_other_constants_follow() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Constant", [], ["low"], value=numpy_helper.from_array(np.float32(-0.5))),
        helper.make_node("Clip", ["x", "low", "two"], ["clipped"]),
        helper.make_node("Add", ["clipped", "ones"], ["y"]),
    ]
    model = graph(nodes, out=["N", 3, 8, 8])
    assert close(run(to_fp16(model)), run(model), 1e-3)  # two roundings to 11 bits, 5e-4 each


@pytest.mark.parametrize("codec", ["msra", "udp"])
def test_the_painters(tmp_path: Path, codec: str) -> None:
    spec = painter_spec(codec)
    model = onnx.load(write_painter(tmp_path / "p.onnx", spec, invert=True))
    x = RNG.uniform(0, 1, (2, 3, 128, 96)).astype(np.float32)
    half = to_fp16(model)
    assert half.metadata_props == model.metadata_props
    assert np.abs(run(half, x).astype(np.float32) - run(model, x)).max() <= 1e-3  # of at most 1; seen: 5e-4


@pytest.mark.skipif("garment-landmarks" not in bundled_models(), reason="the bundled model is not in this checkout")
def test_the_bundled_model() -> None:
    model = onnx.load(bundled_models()["garment-landmarks"])
    half = to_fp16(model)
    assert "Cast" not in operators(half)
    assert operators(half)["Conv"] == operators(model)["Conv"]
    x = RNG.normal(0, 1, (2, 3, 256, 192)).astype(np.float32)
    full = run(model, x)
    # On noise the maps are half as high as on garments. Seen, over several seeds: 1e-2; on photos 3e-3.
    assert close(run(half, x), full, 2e-2)
    assert close(run(rounded_to_fp16(half), x.astype(np.float16).astype(np.float32)), full, 2e-2)


# What is refused ------------------------------------------------------------------------------------


def test_a_weight_beyond_float16_is_named() -> None:
    large = {**WEIGHTS, "b": np.array([1, 2, 70000, 3], np.float32)}
    with pytest.raises(ModelError, match=r"b holds 7e\+04, and float16 ends at 65504: build with precision='fp32'"):
        to_fp16(graph([CONV], large))
    infinite = {**WEIGHTS, "b": np.array([1, 2, -np.inf, 3], np.float32)}
    assert np.isneginf(run(to_fp16(graph([CONV], infinite)))).any()  # it is infinite before and after


def test_scales_that_the_graph_computes() -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Reshape", ["m", "one"], ["m1"]),
        helper.make_node("Concat", ["m1", "m1", "m1", "m1"], ["scales"], axis=0),
        helper.make_node("Resize", ["x", "", "scales"], ["y"], name="grow"),
    ]
    model = graph(nodes, {"one": np.array([1])}, out=["N", "c", "h", "w"])
    with pytest.raises(ModelError, match=r"Resize 'grow': its input scales takes float32 only and gets scales"):
        to_fp16(model)


def test_a_quantised_graph() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="back"),
    ]
    constants = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    with pytest.raises(ModelError, match="QuantizeLinear 'quantise': its input x takes float32 only and gets x"):
        to_fp16(graph(nodes, constants, out=["N", 3, 8, 8], opset=13))


def test_operators_that_onnx_does_not_define() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], out=["N", 3, 8, 8])
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    model.graph.node[0].domain = "com.acme"
    with pytest.raises(ModelError, match=r"Relu 'relu': ONNX .* knows no such operator \(com.acme domain, opset 1\)"):
        to_fp16(model)


def test_subgraphs_and_functions() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "then", [], [helper.make_tensor_value_info("r", FLOAT, None)]
    )
    condition = np.array(True)
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match="If 'choice': it holds a sub-graph"):
        to_fp16(graph([node], {"c": condition}, out=["N", 3, 8, 8]))
    model = graph([helper.make_node("Relu", ["x"], ["y"])], out=["N", 3, 8, 8])
    function = helper.make_function("acme", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                                    [helper.make_opsetid("", 18)])  # fmt: skip
    model.functions.append(function)
    with pytest.raises(ModelError, match=r"functions \(Twice\)"):
        to_fp16(model)


def test_a_type_that_an_attribute_fixes_is_not_passed_over() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], dtype=FLOAT),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    with pytest.raises(ModelError, match="cannot be converted to float16"):
        to_fp16(graph(nodes, out=["N", 3, 8, 8]))


def test_a_graph_that_is_not_valid() -> None:
    model = graph([CONV], WEIGHTS)
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="not valid ONNX"):
        to_fp16(model)


# Float16 arithmetic ---------------------------------------------------------------------------------


def test_rounding_each_layer_sees_an_overflow_that_onnxruntime_hides() -> None:
    # 1000 * x overflows float16 for |x| > 65.5; scaled back at once, in float32 nobody would know.
    nodes = [helper.make_node("Mul", ["x", "up"], ["big"]), helper.make_node("Mul", ["big", "down"], ["y"])]
    constants = {"up": np.array(1000, np.float32), "down": np.array(0.001, np.float32)}
    half = to_fp16(graph(nodes, constants, out=["N", 3, 8, 8]))
    x = 100 * np.sign(X)
    assert np.isfinite(run(half, x)).all(), "ONNX Runtime computes float16 as such now: rounded_to_fp16 can go"
    assert np.isinf(run(rounded_to_fp16(half), x)).all()


def test_rounding_each_layer_is_numpys_float16() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "third"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    half = to_fp16(graph(nodes, {"third": np.array(1 / 3, np.float32)}, out=["N", 3, 8, 8]))
    rounded = rounded_to_fp16(half)
    assert operators(rounded) == {"Mul": 1, "Add": 1, "Relu": 1, "Cast": 4}  # Relu returns what it was given
    x16 = X.astype(np.float16)
    # float32 holds the exact product of two halves, and their sum to far below float16's last bit
    assert np.array_equal(run(rounded, x16.astype(np.float32)), np.maximum(x16 * np.float16(1 / 3), 0) + x16)


def test_only_what_is_float16_is_rounded() -> None:
    """A detector's network is float16, what reads its rows float32: coordinates keep their bits."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=HALF),
        helper.make_node("Add", ["h", "h"], ["twice"]),
        helper.make_node("Cast", ["twice"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "third"], ["y"]),
    ]
    model = graph(nodes, {"third": np.array(1 / 3, np.float32)}, out=["N", 3, 8, 8])
    wanted = (X.astype(np.float16) * np.float16(2)).astype(np.float32) * np.float32(1 / 3)
    assert np.array_equal(run(rounded_to_fp16(model), X.astype(np.float16).astype(np.float32)), wanted)


def test_a_float32_model_stays_as_it_is_whatever_is_in_it() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "then", [], [helper.make_tensor_value_info("r", FLOAT, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    model = graph([node], {"c": np.array(True)}, out=["N", 3, 8, 8])
    assert to_fp32(model).SerializeToString() == model.SerializeToString()
    assert to_fp32(model) is not model
    branch.node[0].CopyFrom(helper.make_node("Cast", ["x"], ["h"], to=HALF))
    branch.node.append(helper.make_node("Cast", ["h"], ["r"], to=FLOAT))
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match="If 'choice': it holds a sub-graph"):
        to_fp32(graph([node], {"c": np.array(True)}, out=["N", 3, 8, 8]))
