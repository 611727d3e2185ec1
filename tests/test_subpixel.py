"""Transposed convolutions as convolutions: the same heatmaps, whatever stands around them."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepose.subpixel import subpixel_convolutions

# Sums of up to 7 x 7 x 3 products of normal numbers, in another order; float32. Worst seen: 4e-6.
ABSOLUTE = 2e-5
CASES = [
    (k, s, p, q, extra)
    for k, s, p, q, extra in itertools.product(range(2, 8), (2, 3), range(4), range(4), range(2))
    if k - p - q + extra == s
]


def run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": images})


def model_of(nodes: list, tensors: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",), opset: int = 17):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("abcd")) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, {"kept": "yes"})
    return model


def transposed(output: str, *, k: int = 4, s: int = 2, p: int = 1, q: int = 1, extra: int = 0, **more):
    return helper.make_node(
        "ConvTranspose",
        ["x", "w", "b"],
        [output],
        **{"strides": [s, s], "pads": [p, p, q, q], "output_padding": [extra, extra], **more},
    )


def weights(k: int = 4, out: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((3, out, k, k), dtype=np.float32),
        "b": rng.standard_normal(out, dtype=np.float32),
    }


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 3, 6, 5), dtype=np.float32)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_same(model: onnx.ModelProto, rewritten: onnx.ModelProto, absolute: float = ABSOLUTE) -> None:
    onnx.checker.check_model(rewritten)
    for expected, found in zip(run(model, images()), run(rewritten, images()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=absolute)


@pytest.mark.parametrize(("k", "s", "p", "q", "extra"), CASES)
def test_equals_the_transposed_convolution_or_leaves_it(k, s, p, q, extra):
    model = model_of([transposed("y", k=k, s=s, p=p, q=q, extra=extra)], weights(k))
    rewritten = subpixel_convolutions(model)
    if rewritten is model:
        # an offset without a weight, or one that would need a pad below 0
        offsets = range(p, p + s)
        assert any(len(range(o % s, k, s)) - 1 - o // s < 0 for o in offsets)
        return
    assert "ConvTranspose" not in kinds(rewritten)
    assert_same(model, rewritten)


def test_most_usual_settings_are_rewritten():
    for k, p, q, extra in ((4, 1, 1, 0), (2, 0, 0, 0), (3, 1, 1, 1), (6, 2, 2, 0)):
        model = model_of([transposed("y", k=k, p=p, q=q, extra=extra)], weights(k))
        assert subpixel_convolutions(model) is not model


def test_the_argument_stays_as_it_is_and_metadata_is_kept():
    model = model_of([transposed("y")], weights())
    before = model.SerializeToString()
    rewritten = subpixel_convolutions(model)
    assert model.SerializeToString() == before
    assert {item.key: item.value for item in rewritten.metadata_props} == {"kept": "yes"}
    assert [value.name for value in rewritten.graph.output] == ["y"]
    assert {tensor.name for tensor in rewritten.graph.initializer}.isdisjoint({"w"})  # its weights are not kept twice


def test_activation_and_last_layer_move_in_front_of_the_interleaving():
    rng = np.random.default_rng(1)
    tensors = weights() | {
        "last": rng.standard_normal((2, 6, 1, 1), dtype=np.float32),
        "scale": rng.uniform(0.5, 2, 6).astype(np.float32),
        "shift": rng.standard_normal(6).astype(np.float32),
        "mean": rng.standard_normal(6).astype(np.float32),
        "variance": rng.uniform(0.5, 2, 6).astype(np.float32),
    }
    nodes = [
        transposed("a"),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b2"]),
        helper.make_node("Relu", ["b2"], ["c"]),
        helper.make_node("Conv", ["c", "last"], ["y"]),
    ]
    model = model_of(nodes, tensors)
    rewritten = subpixel_convolutions(model)
    assert kinds(rewritten) == ["Conv", "BatchNormalization", "Relu", "Conv"] * 4 + ["Concat", "DepthToSpace"]
    assert_same(model, rewritten, 1e-4)  # a further sum of 6, scaled up to 2 / sqrt(0.5); worst seen: 8e-6


def test_what_is_used_twice_or_returned_stays_behind():
    used_twice = [
        transposed("a"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Add", ["r", "a"], ["y"]),
    ]
    model = model_of(used_twice, weights())
    rewritten = subpixel_convolutions(model)
    assert kinds(rewritten) == ["Conv"] * 4 + ["Concat", "DepthToSpace", "Relu", "Add"]
    assert_same(model, rewritten)
    returned = model_of([transposed("a"), helper.make_node("Relu", ["a"], ["y"])], weights(), outputs=("a", "y"))
    rewritten = subpixel_convolutions(returned)
    assert kinds(rewritten) == ["Conv"] * 4 + ["Concat", "DepthToSpace", "Relu"]
    assert_same(returned, rewritten)


def test_a_last_layer_that_mixes_pixels_or_adds_channels_stays_behind():
    rng = np.random.default_rng(2)
    for shape, pads in (((2, 6, 3, 3), [1, 1, 1, 1]), ((12, 6, 1, 1), [0, 0, 0, 0])):
        tensors = weights() | {"last": rng.standard_normal(shape, dtype=np.float32)}
        model = model_of([transposed("a"), helper.make_node("Conv", ["a", "last"], ["y"], pads=pads)], tensors)
        rewritten = subpixel_convolutions(model)
        assert kinds(rewritten) == ["Conv"] * 4 + ["Concat", "DepthToSpace", "Conv"]
        assert_same(model, rewritten, 1e-4)  # sums of 54 products more; worst seen: 3e-5


def test_half_precision_weights_behind_a_cast():
    tensors = weights()
    tensors["half"] = tensors.pop("w").astype(np.float16)
    cast = helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT)
    model = model_of([cast, transposed("y")], tensors)
    rewritten = subpixel_convolutions(model)
    assert kinds(rewritten) == ["Conv"] * 4 + ["Concat", "DepthToSpace"]  # the Cast has nothing left to do
    assert_same(model, rewritten)


def test_weights_of_the_last_layer_that_are_made_behind_the_transposed_convolution():
    """The new nodes read them, so they come later still: a graph has to be sorted."""
    half = np.random.default_rng(3).standard_normal((2, 6, 1, 1)).astype(np.float16)
    nodes = [
        transposed("a"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Cast", ["half"], ["last"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["r", "last"], ["y"]),
    ]
    model = model_of(nodes, weights() | {"half": half})
    rewritten = subpixel_convolutions(model)
    assert kinds(rewritten) == ["Cast", *["Conv", "Relu", "Conv"] * 4, "Concat", "DepthToSpace"]
    assert_same(model, rewritten)


def test_without_a_bias_and_with_an_old_opset():
    tensors = weights()
    del tensors["b"]
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])
    model = model_of([node], tensors, opset=9)
    rewritten = subpixel_convolutions(model)
    assert not rewritten.graph.node[-1].attribute[-1].s  # DepthToSpace has no mode before opset 11
    assert_same(model, rewritten)


@pytest.mark.parametrize(
    "more",
    [
        {"strides": [1, 1], "pads": [1, 1, 2, 2]},
        {"strides": [2, 3]},
        {"dilations": [2, 2], "pads": [2, 2, 3, 3]},
        {"pads": [0, 0, 0, 0]},
        {"auto_pad": "SAME_UPPER"},
    ],
)
def test_what_cannot_be_said_so_is_left_alone(more):
    model = model_of([transposed("y", **more)], weights())
    assert subpixel_convolutions(model) is model


def test_groups_and_weights_from_the_input_are_left_alone():
    grouped = model_of([transposed("y", group=3)], {**weights(), "b": np.zeros(18, np.float32)})
    assert subpixel_convolutions(grouped) is grouped
    tensors = weights()
    computed = model_of(
        [helper.make_node("Abs", ["v"], ["w"]), transposed("y")], {"v": tensors["w"], "b": tensors["b"]}
    )
    assert subpixel_convolutions(computed) is computed


def test_names_that_are_taken_are_not_taken_again():
    tensors = weights() | {"y_00": np.zeros((), np.float32), "w_00": np.zeros((), np.float32)}
    nodes = [
        transposed("a"),
        helper.make_node("Add", ["a", "y_00"], ["a_00"]),
        helper.make_node("Add", ["a_00", "w_00"], ["y"]),
    ]
    model = model_of(nodes, tensors)
    assert_same(model, subpixel_convolutions(model))


def test_without_transposed_convolutions_nothing_is_copied():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {})
    assert subpixel_convolutions(model) is model


def test_files_that_list_their_weights_among_the_inputs():
    """As IR 3 demands it, and as older exporters did it later on: the rewritten weights are inputs of nobody."""
    for version in (3, 8):
        model = model_of([transposed("y")], weights())
        model.ir_version = version
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        rewritten = subpixel_convolutions(model)
        assert [value.name for value in rewritten.graph.input] == ["x"]
        assert_same(model, rewritten)


def test_weights_that_only_a_branch_reads_are_kept():
    branch = helper.make_graph(
        [helper.make_node("Add", ["t", "shift"], ["shifted"])],
        "then",
        [],
        [helper.make_tensor_value_info("shifted", TensorProto.FLOAT, list("abcd"))],
    )
    plain = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["same"])],
        "else",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, list("abcd"))],
    )
    nodes = [transposed("t"), helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=plain)]
    more = {"shift": np.full((1, 1, 1, 1), 3.0, np.float32), "yes": np.array(True)}
    model = model_of(nodes, {**weights(), **more})
    assert_same(model, subpixel_convolutions(model))
