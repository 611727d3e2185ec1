"""Every way in which detectors write their outputs, read by the nodes that adapt_detector appends: exact rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from detector_models import HEIGHT, OPSETS, WIDTH, array, detector, rows_of, spec
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgepose import ModelError
from edgepose.adapt_detector import adapt_detector


def sigmoid(x: Any) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, np.float64))))


# The network's sigmoid and exponential against NumPy's in float64: worst seen 6e-8 relative.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


# Raw grids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_yolox_grids(activation: str) -> None:
    rng = np.random.default_rng(1)
    count = 8 * 4 + 4 * 2 + 2 * 1
    raw = rng.normal(size=(1, count, 5 + 3)).astype(np.float32)
    expected, index = [], 0
    for stride in (8, 16, 32):
        for y in range(HEIGHT // stride):
            for x in range(WIDTH // stride):
                tx, ty, tw, th, objectness, *classes = raw[0, index].astype(np.float64)
                cx, cy, w, h = (tx + x) * stride, (ty + y) * stride, np.exp(tw) * stride, np.exp(th) * stride
                if activation == "sigmoid":
                    objectness, classes = sigmoid(objectness), sigmoid(classes)
                score = objectness * max(classes)
                box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
                expected.append((*box, score, int(np.argmax(classes))))
                index += 1
    rows = rows_of(detector({"output": raw}), spec("yolox", activation=activation))
    # Largest coordinate here 263 px, in float32: worst seen 2e-5 px.
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6, atol=4e-5)


def test_grids_of_other_strides_and_a_single_class() -> None:
    raw = np.zeros((1, 16 * 8, 6), np.float32)
    raw[0, 16 + 2] = [0.5, 0.25, 0, np.log(2), 0.5, 0.5]
    rows = rows_of(detector({"output": raw}), spec("yolox", strides=(4,), category_names=("person",)))
    np.testing.assert_allclose(rows[0, 18], [8, 1, 12, 9, 0.25, 0], **TOLERANCE)


def test_grids_that_are_not_the_models() -> None:
    with pytest.raises(ModelError, match=r"42 candidates, and grids with strides \[8, 16\] have 40.*correct .*strides"):
        adapt_detector(detector({"output": np.zeros((1, 42, 8), np.float32)}), spec("yolox", strides=(8, 16)))


# Decoded boxes, NMS still to come ---------------------------------------------------------------------


def test_yolov5_rows() -> None:
    raw = array([20, 10, 8, 4, 0.5, 0.25, 0.75, 0.5], [30, 16, 2, 6, 1, 1, 0, 0])
    rows = rows_of(detector({"output0": raw}), spec("yolov5"))
    np.testing.assert_array_equal(rows[0], [[16, 8, 24, 12, 0.375, 1], [29, 13, 31, 19, 1, 0]])


@pytest.mark.parametrize("opset", OPSETS)
def test_yolov8_columns_in_every_opset(opset: int) -> None:
    raw = array([20, 10, 8, 4, 0.25, 0.75, 0.5], [30, 16, 2, 6, 1, 0, 0]).transpose(0, 2, 1)
    rows = rows_of(detector({"output0": raw}, opset=opset), spec("yolov8"))
    np.testing.assert_array_equal(rows[0], [[16, 8, 24, 12, 0.75, 1], [29, 13, 31, 19, 1, 0]])


def test_yolov8_rows_and_further_columns() -> None:
    raw = array([20, 10, 8, 4, 0.25, 0.75, 0.5, 9, 9], [30, 16, 2, 6, 1, 0, 0, 9, 9])  # masks of a segmenter behind
    fields = spec("yolov8", transposed=[], columns=["box", "classes", "rest"])
    np.testing.assert_array_equal(rows_of(detector({"a": raw}), fields)[0, :, 4:], [[0.75, 1], [1, 0]])


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("xyxy", [16, 8, 24, 12]), ("cxcywh", [20, 10, 8, 4]), ("xywh", [16, 8, 8, 4]), ("yxyx", [8, 16, 12, 24])],
)
@pytest.mark.parametrize("box_units", ["px", "normalized"])
def test_box_formats_and_units(box_format: str, box: list[float], box_units: str) -> None:
    if box_units == "normalized":
        sides = (HEIGHT, WIDTH) if box_format == "yxyx" else (WIDTH, HEIGHT)
        box = [value / sides[index % 2] for index, value in enumerate(box)]
    fields = spec("yolov8", transposed=(), box_format=box_format, box_units=box_units)
    rows = rows_of(detector({"output0": array([*box, 0.1, 0.2, 0.7])}), fields)
    np.testing.assert_array_equal(rows[0], np.array([[16, 8, 24, 12, 0.7, 2]], np.float32))


def test_ssd_scores_with_a_background() -> None:
    scores = array([0.7, 0.125, 0.1, 0.075], [0.1, 0.1, 0.2, 0.6])
    boxes = array([0.25, 0.25, 0.5, 0.5], [0, 0, 1, 1])
    model = detector({"scores": scores, "boxes": boxes})
    expected = np.array([[16, 8, 32, 16, 0.125, 0], [0, 0, 64, 32, 0.6, 2]], np.float32)
    np.testing.assert_array_equal(rows_of(model, spec("ssd"))[0], expected)
    flipped = detector({"scores": scores[..., [1, 0, 2, 3]].transpose(0, 2, 1), "boxes": boxes[:, :, None]})
    fields = spec("ssd", background=1, transposed=["scores"])  # boxes (1, A, 1, 4), as YOLOv4's exports have them
    np.testing.assert_array_equal(rows_of(flipped, fields)[0], expected)


# NMS inside -------------------------------------------------------------------------------------------

BOXES = array([16, 8, 24, 12], [29, 13, 31, 19])


@pytest.mark.parametrize("opset", OPSETS)
def test_mmdeploy_pads_what_differs_from_run_to_run(opset: int) -> None:
    outputs = {
        "dets": np.concatenate([BOXES, array([0.25], [0.75])], axis=2),
        "labels": np.array([[2, 1]], np.int64),
    }
    model = detector(outputs, open_axes=("dets", "labels"), batch="n", opset=opset)
    rows = rows_of(model, spec("mmdeploy", max_detections=4), pictures=3)
    expected = [[29, 13, 31, 19, 0.75, 1], [16, 8, 24, 12, 0.25, 2], [0] * 6, [0] * 6]
    np.testing.assert_array_equal(rows, [expected] * 3)


def test_more_than_max_detections_are_cut_to_the_best() -> None:
    outputs = {"dets": np.concatenate([BOXES, array([0.25], [0.75])], axis=2), "labels": np.array([[2, 1]])}
    model = detector(outputs, open_axes=("dets", "labels"))
    np.testing.assert_array_equal(rows_of(model, spec("mmdeploy", max_detections=1))[0], [[29, 13, 31, 19, 0.75, 1]])


def test_many_candidates_are_kept_where_nms_is_to_come() -> None:
    raw = np.concatenate([BOXES, array([0.25, 0, 0], [0, 0.75, 0])], axis=2)
    model = detector({"output": raw}, open_axes=("output",))
    rows = rows_of(model, spec("yolov8", transposed=(), box_format="xyxy", max_detections=5))
    assert rows.shape == (1, 1024, 6)
    np.testing.assert_array_equal(rows[0, :2], [[29, 13, 31, 19, 0.75, 1], [16, 8, 24, 12, 0.25, 0]])
    assert not rows[0, 2:].any()


def test_end2end_rows() -> None:
    raw = array([16, 8, 24, 12, 0.5, 2], [29, 13, 31, 19, 0.25, 0])
    model = detector({"output0": raw})
    same, fields = adapt_detector(model, spec("end2end"))
    assert same is model  # they are the canonical form
    assert fields.format == "end2end"
    np.testing.assert_array_equal(
        rows_of(detector({"output0": raw}, open_axes=("output0",)), spec("end2end"))[0, :2], raw[0]
    )


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("shape", [(-1, 7), (1, -1, 7), (1, 1, -1, 7)])
def test_rows_that_tell_their_picture(shape: tuple[int, ...], opset: int) -> None:
    table = [[0, 16, 8, 24, 12, 2, 0.5], [1, 29, 13, 31, 19, 0, 0.25], [0, 1, 2, 3, 4, 1, 0.75], [-1, 0, 0, 9, 9, 0, 1]]
    raw = np.array(table, np.float32).reshape(shape)
    image = ["n", 3, HEIGHT, WIDTH]
    rows = rows_of(detector({"output": raw}, image=image, opset=opset), spec("yolov7_end2end"), pictures=2)
    first, second, third = [16, 8, 24, 12, 0.5, 2], [29, 13, 31, 19, 0.25, 0], [1, 2, 3, 4, 0.75, 1]
    for picture, expected in zip(rows, ([first, third], [second]), strict=True):
        np.testing.assert_array_equal(picture[picture[:, 4] > 0], expected)


def test_rows_of_all_pictures_whose_number_differs() -> None:
    table = [[0, 16, 8, 24, 12, 2, 0.5], [1, 29, 13, 31, 19, 0, 0.25], [0, 1, 2, 3, 4, 1, 0.75]]
    model = detector({"output": np.array([table], np.float32)}, image=["n", 3, HEIGHT, WIDTH], open_axes=("output",))
    rows = rows_of(model, spec("yolov7_end2end", max_detections=2), pictures=2)
    assert rows[0].tolist() == [[1, 2, 3, 4, 0.75, 1], [16, 8, 24, 12, 0.5, 2]]
    np.testing.assert_array_equal(rows[1, :, 4], [0.25, 0])
    assert rows[1, 0].tolist() == [29, 13, 31, 19, 0.25, 0]


def test_rows_that_tell_their_picture_in_a_list_for_each() -> None:
    table = [[0, 16, 8, 24, 12, 2, 0.5], [1, 29, 13, 31, 19, 0, 0.25]]
    rows = rows_of(detector({"output": np.array([table], np.float32)}, batch="n"), spec("yolov7_end2end"), pictures=2)
    for picture, score in zip(rows, (0.5, 0.25), strict=True):  # both pictures answer alike, so each row comes twice
        assert picture[picture[:, 4] > 0, 4].tolist() == [score, score]


def test_openvinos_detection_output() -> None:
    table = [[0, 2, 0.5, 0.25, 0.25, 0.5, 0.5], [0, 1, 0.75, 0, 0, 1, 1], [-1, 0, 0, 0, 0, 0, 0]]
    model = detector({"out": np.array([table], np.float32)[None]})
    rows = rows_of(model, spec("detection_output"))
    np.testing.assert_array_equal(rows[0, :2], [[16, 8, 32, 16, 0.5, 1], [0, 0, 64, 32, 0.75, 0]])
    assert not rows[0, 2:, 4].any()


@pytest.mark.parametrize("opset", [9, 17])
def test_efficient_nms_counts(opset: int) -> None:
    outputs = {
        "num_dets": np.array([[1]], np.int32),
        "det_boxes": BOXES,
        "det_scores": np.array([[0.5, 0.9]], np.float32),  # the second is left from somewhere
        "det_classes": np.array([[2, 1]], np.int32),
    }
    rows = rows_of(detector(outputs, batch="n", opset=opset), spec("efficient_nms"), pictures=2)
    np.testing.assert_array_equal(rows, [[[16, 8, 24, 12, 0.5, 2], [29, 13, 31, 19, 0, 1]]] * 2)


def test_torchvision_has_no_batch_axis() -> None:
    outputs = {
        "boxes": BOXES[0],
        "labels": np.array([3, 1], np.int64),
        "scores": np.array([0.5, 0.25], np.float32),
    }
    model = detector(outputs, image=["batch", 3, HEIGHT, WIDTH])
    adapted, _ = adapt_detector(model, spec("torchvision"))
    assert adapted.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    np.testing.assert_array_equal(
        rows_of(model, spec("torchvision"))[0], [[16, 8, 24, 12, 0.5, 2], [29, 13, 31, 19, 0.25, 0]]
    )


def test_tensorflow_detection_api() -> None:
    outputs = {
        "detection_boxes": array([0.25, 0.25, 0.5, 0.5], [0, 0, 1, 0.5]),
        "detection_classes": np.array([[3, 1]], np.float32),
        "detection_scores": np.array([[0.5, 0.25]], np.float32),
        "num_detections": np.array([2], np.float32),
        "raw_detection_scores": np.zeros((1, 10, 4), np.float32),
    }
    model = detector(outputs)
    rows = rows_of(model, spec("tensorflow"))
    np.testing.assert_array_equal(rows[0], [[16, 8, 32, 16, 0.5, 2], [0, 0, 32, 32, 0.25, 0]])


# DETR -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["logits", "pred_logits"])
def test_rtdetr_logits(name: str) -> None:
    logits = array([-1, 2, 0], [3, -4, 1], [-9, -9, -8])
    boxes = array([0.5, 0.5, 0.5, 0.25], [0.25, 0.75, 0.25, 0.5], [0.5, 0.5, 1, 1])
    rows = rows_of(detector({name: logits, "pred_boxes": boxes}, batch="b"), spec("rtdetr"), pictures=2)
    expected = [[16, 12, 48, 20, sigmoid(2), 1], [8, 16, 24, 32, sigmoid(3), 0], [0, 0, 64, 32, sigmoid(-8), 2]]
    np.testing.assert_allclose(rows, [expected] * 2, **TOLERANCE)


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_detr_softmax_with_no_object(opset: int) -> None:
    logits = array([-1, 2, 0, 1], [0, 0.5, 1, 6])
    boxes = array([0.5, 0.5, 0.5, 0.25], [0.25, 0.75, 0.25, 0.5])
    rows = rows_of(detector({"logits": logits, "pred_boxes": boxes}, opset=opset), spec("detr"))
    shares = np.exp(logits[0].astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = [[16, 12, 48, 20, shares[0, 1], 1], [8, 16, 24, 32, shares[1, 2], 2]]
    np.testing.assert_allclose(rows[0], expected, **TOLERANCE)


@pytest.mark.parametrize("batch", [1, "n"])
def test_deployed_rtdetr_is_fed_the_input_size(batch: int | str) -> None:
    outputs = {
        "labels": np.array([[2, 1]], np.int64),
        "boxes": BOXES,
        "echo": np.array([[0.0, 0.0]], np.float32),  # in the place of the scores: what the second input holds
    }
    model = detector(outputs, batch=batch, inputs={"orig_target_sizes": (TensorProto.INT64, [batch, 2])})
    fields = spec("rtdetr_deployed", outputs={"scores": "echo"})
    rows = rows_of(model, fields, pictures=1 if batch == 1 else 3)
    assert [[*row] for row in rows[-1]] == [[16, 8, 24, 12, WIDTH, 2], [29, 13, 31, 19, HEIGHT, 1]]


def test_further_inputs_become_constants() -> None:
    outputs = {"boxes": BOXES, "echo": np.array([[0.25, 0.25]], np.float32), "labels": np.array([[0, 1]])}
    inputs = {"im_shape": (TensorProto.FLOAT, [1, 2]), "threshold": (TensorProto.FLOAT, [])}
    model = detector(outputs, inputs=inputs)
    fields = spec("custom", outputs={"boxes": "boxes", "scores": "echo", "labels": "labels"})
    with pytest.raises(ModelError, match=r"an input 'im_shape'.*\"constants\""):
        adapt_detector(model, fields)
    constants = {"im_shape": [2, 4], "threshold": [0.5]}
    rows = rows_of(model, spec("custom", outputs=dict(fields.outputs), constants=constants))
    np.testing.assert_array_equal(rows[0, :, 4], [2.75, 4.75])
    with pytest.raises(ModelError, match=r"takes 2 values for each picture.*\[2\.0, 4\.0, 1\.0\]"):
        adapt_detector(
            model, spec("custom", outputs=dict(fields.outputs), constants={**constants, "im_shape": [2, 4, 1]})
        )
    same = rows_of(model, spec("custom", outputs=dict(fields.outputs), constants={**constants, "im_shape": [3]}))
    np.testing.assert_array_equal(same[0, :, 4], [3.75, 3.75])  # one value for all
    with pytest.raises(ModelError, match="constants names the input 'size'"):
        adapt_detector(model, spec("custom", outputs=dict(fields.outputs), constants={**constants, "size": [2]}))


def test_a_mask_of_the_picture_has_its_open_sizes() -> None:
    """As DETR's pixel_mask: (batch, height, width), which the picture fixes."""
    image = ["batch", 3, "height", "width"]
    mask = helper.make_tensor_value_info("pixel_mask", TensorProto.INT64, ["batch", "height", "width"])
    model = detector({"boxes": BOXES, "scores": array([0.25, 0, 0], [0, 0.75, 0])}, image=image, batch="batch")
    model.graph.input.append(mask)
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["pixel_mask"], ["float_mask"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["float_mask"], ["largest"], axes=[2], keepdims=1),
            helper.make_node("ReduceSum", ["largest", "axis"], ["sides"], keepdims=1),
            helper.make_node("Mul", ["scores", "sides"], ["masked"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.output[1].name = "masked"
    fields = spec("custom", outputs={"boxes": "boxes", "scores": "masked"}, constants={"pixel_mask": [1]})
    np.testing.assert_array_equal(rows_of(model, fields, pictures=2)[1, :, 4], [0.25 * HEIGHT, 0.75 * HEIGHT])


# What holds of all ------------------------------------------------------------------------------------


def test_a_picture_of_open_size_is_fixed_and_bgr_nhwc_is_fed() -> None:
    """The rows follow from the picture: the mean of its blue channel is the score."""
    nodes = [
        helper.make_node("Slice", ["images", "zero", "one", "three"], ["blue"]),
        helper.make_node("ReduceMean", ["blue"], ["mean"], axes=[1, 2], keepdims=1),
        helper.make_node("Reshape", ["mean", "shape"], ["score"]),
        helper.make_node("Expand", ["box", "ones"], ["boxes"]),
        helper.make_node("Concat", ["boxes", "score"], ["output0"], axis=2),
    ]
    constants = {
        "zero": np.array([0]), "one": np.array([1]), "three": np.array([3]), "shape": np.array([1, 1, 1]),
        "ones": np.array([1, 1, 1]), "box": array([20, 10, 8, 4]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "open",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, "h", "w", 3])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, "a", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    fields = spec("yolov8", transposed=(), category_names=("a",), color="bgr", layout="nhwc")
    adapted, canonical = adapt_detector(model, fields)
    assert canonical.color == "rgb"
    session = onnxruntime.InferenceSession(adapted.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    pixels[:, 2] = 0.5  # RGB: blue is the last
    (rows,) = session.run(None, {session.get_inputs()[0].name: pixels})
    np.testing.assert_array_equal(rows, [[[16, 8, 24, 12, 0.5, 0]]])


def test_float16_outputs_become_float32_rows() -> None:
    raw = array([20, 10, 8, 4, 0.25, 0.75, 0.5]).astype(np.float16)
    rows = rows_of(detector({"output0": raw}), spec("yolov8", transposed=()))
    np.testing.assert_array_equal(rows[0], [[16, 8, 24, 12, 0.75, 1]])


def test_files_of_ir_version_3_stay_valid() -> None:
    raw = array([20, 10, 8, 4, 0.25, 0.75, 0.5])
    np.testing.assert_array_equal(
        rows_of(detector({"o": raw}, ir_version=3, opset=11), spec("yolov8", transposed=()))[0, 0, 4:], [0.75, 1]
    )


ROWS = np.zeros((1, 10, 7), np.float32)


@pytest.mark.parametrize(
    ("outputs", "fields", "message"),
    [
        ({"a": ROWS, "b": ROWS}, {"format": "yolov8"}, r'has a float32.*b float32.*"outputs": \{"rows": "a"\}'),
        (
            {"a": np.zeros((1, 27, 4, 8), np.float32), "b": np.zeros((1, 27, 2, 4), np.float32)},
            {"format": "yolov5"},
            r"raw maps of a detector, one for each level.*not supported\. Export",
        ),
        (
            {"a": np.zeros((1, 42, 3 + 32), np.float32)},
            {"format": "yolov8"},
            r"distributions over 8 bins.*not supported",
        ),
        ({"a": np.zeros((1, 42, 8), np.float32)}, {"format": "yolov8"}, r'"format": "yolov5", or "yolox"'),
        ({"a": np.zeros((1, 7, 42), np.float32)}, {"format": "yolov5"}, r'"format": "yolov8" fits'),
        ({"a": np.zeros((1, 42, 6), np.float32)}, {"format": "yolov5"}, r'"format": "end2end" fits'),
        (
            {"logits": np.zeros((1, 9, 4), np.float32), "pred_boxes": np.zeros((1, 9, 4), np.float32)},
            {"format": "rtdetr"},
            r'"background": -1.*format detr',
        ),
        ({"a": ROWS}, {"format": "mmdeploy"}, r"in the role rows is dets.*outputs are a float32 \(1, 10, 7\)"),
        ({"a": ROWS}, {"format": "rtdetr"}, r"is logits or pred_logits"),
        ({"a": ROWS}, {"format": "yolov8"}, r'other way round: say "transposed": \[\]'),
        (
            {"a": ROWS.transpose(0, 2, 1)},
            {"format": "yolov5", "category_names": ("a", "b")},
            r'"transposed": \["rows"\]',
        ),
        ({"a": ROWS}, {"format": "yolov5"}, r"has 7 values, and the spec says 8: box 4 \+ objectness 1 \+ classes 3"),
        ({"a": ROWS[0, 0]}, {"format": "yolov5"}, r"should have the dimensions \(batch, candidates, values\)"),
        ({"scores": ROWS, "boxes": ROWS[..., :4]}, {"format": "ssd"}, r"\(scores\) has 7 values, and the spec says 4"),
        ({"scores": ROWS[..., :4], "boxes": ROWS}, {"format": "ssd"}, r"\(boxes\) has 7 values"),
    ],
)
def test_contradictions_name_the_field(outputs: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        adapt_detector(detector(outputs), spec(**fields))


def test_another_input_size() -> None:
    model = detector({"a": ROWS}, image=[1, 3, 320, 320])
    with pytest.raises(ModelError, match=r"input's height.*320.*32.*input_size"):
        adapt_detector(model, spec("yolov5"))


def test_old_opsets_are_refused_with_a_remedy() -> None:
    with pytest.raises(ModelError, match=r"opset 8.*convert_version\(model, 9\)"):
        adapt_detector(detector({"a": ROWS}, opset=8), spec("yolov5", category_names=("a", "b")))


def test_a_fixed_batch_with_outputs_of_one_picture() -> None:
    outputs = {"boxes": BOXES[0], "labels": np.array([3, 1]), "scores": np.array([0.5, 0.25], np.float32)}
    with pytest.raises(ModelError, match=r"takes 4 pictures at once.*export it with a batch of 1"):
        adapt_detector(detector(outputs, image=[4, 3, HEIGHT, WIDTH]), spec("torchvision"))


def test_an_output_from_inside_the_graph() -> None:
    """What a runtime cannot do at the end, NMS for instance, is left out by naming what comes before it."""
    model = detector({"boxes": BOXES, "scores": array([0.25, 0, 0], [0, 0.75, 0])})
    inner = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    late = helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["selected"])
    model.graph.node.append(late)
    model.graph.output.append(helper.make_tensor_value_info("selected", TensorProto.INT64, ["n", 3]))
    fields = spec("custom", outputs={"boxes": inner["boxes"], "scores": inner["scores"]}, nms_iou=0.5)
    np.testing.assert_array_equal(rows_of(model, fields)[0, :, 4:], [[0.25, 0], [0.75, 1]])
    adapted, _ = adapt_detector(model, fields)
    assert "NonMaxSuppression" not in {node.op_type for node in adapted.graph.node}
