"""The ONNX Runtime engine and the choice of an engine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from painter import HEATMAP_SIZE, INPUT_SIZE, painter_spec, write_painter
from row_detector import write_rows

from edgepose import EngineError, InputError, MissingDependencyError, ModelError
from edgepose.detector_spec import DetectorSpec
from edgepose.engines import open_engine
from edgepose.engines.onnxruntime import OnnxRuntimeEngine

W, H = INPUT_SIZE
DETECTOR = DetectorSpec("rows", INPUT_SIZE, ("red",), "end2end")


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, H, W), np.float32)


def opened(path: Path, **options) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(path, **{"spec": None, "max_batch": 4, **options})


def test_input_buffer_and_heatmaps(tmp_path: Path) -> None:
    engine = opened(write_painter(tmp_path / "m.onnx", painter_spec("msra")))
    assert engine.input_buffer.shape == (4, 3, H, W)
    assert engine.input_buffer.dtype == np.float32
    crops = images(3)
    engine.input_buffer[:3] = crops
    heatmaps = engine.run(engine.input_buffer[:3])
    assert heatmaps.dtype == np.float32
    np.testing.assert_array_equal(heatmaps, crops[:, :, ::4, ::4])
    engine.input_buffer[:] = 0  # the result is the caller's
    np.testing.assert_array_equal(heatmaps, crops[:, :, ::4, ::4])


def test_fp16_rounds_once(tmp_path: Path) -> None:
    engine = opened(write_painter(tmp_path / "m.onnx", painter_spec("msra"), fp16=True))
    crops = images(2)
    np.testing.assert_array_equal(engine.run(crops), crops[:, :, ::4, ::4].astype(np.float16))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_fixed_batches(tmp_path: Path, batch: int) -> None:
    engine = opened(write_painter(tmp_path / "m.onnx", painter_spec("msra"), batch=batch))
    crops = images(3)
    np.testing.assert_array_equal(engine.run(crops), crops[:, :, ::4, ::4])


def test_closed_engine(tmp_path: Path) -> None:
    engine = opened(write_painter(tmp_path / "m.onnx", painter_spec()))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(images(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": (192, 256)}, r"input's height: the model has 128, the spec says 256"),
        ({"input_size": (192, 128)}, r"input's width"),
        ({"heatmap_size": (48, 32)}, r"output's width"),
        ({"keypoint_names": ("a", "b"), "flip_indices": (0, 1), "skeleton": (), "colors": ()},
         r"output's channels: the model has 3, the spec says 2"),
    ],
)  # fmt: skip
def test_model_and_spec_disagree(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_painter(tmp_path / "m.onnx", painter_spec())
    with pytest.raises(ModelError, match=message):
        opened(path, spec=painter_spec(**changes))


def test_symbolic_outputs_are_checked_when_they_are_known(tmp_path: Path) -> None:
    path = write_painter(tmp_path / "m.onnx", painter_spec(), symbolic=True)
    engine = opened(path, spec=painter_spec(heatmap_size=(12, 16)))
    with pytest.raises(ModelError, match=rf"network returned \(1, 3, {HEATMAP_SIZE[1]}, {HEATMAP_SIZE[0]}\)"):
        engine.run(images(1))


def two_outputs(dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["n", 3, H, W])

    nodes = [helper.make_node("Identity", ["images"], [name]) for name in ("simcc_x", "simcc_y")]
    graph = helper.make_graph(nodes, "g", [value("images")], [value("simcc_x"), value("simcc_y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_other_kinds_of_models(tmp_path: Path) -> None:
    model = two_outputs()
    painter_spec().write_metadata(model)
    onnx.save(model, tmp_path / "simcc.onnx")
    with pytest.raises(ModelError, match=r"one output.*simcc_x.*SimCC"):
        opened(tmp_path / "simcc.onnx")
    model = two_outputs(TensorProto.UINT8)
    del model.graph.output[1], model.graph.node[1]
    painter_spec().write_metadata(model)
    onnx.save(model, tmp_path / "uint8.onnx")
    with pytest.raises(ModelError, match=r"is uint8: it takes levels .* std \[255.0"):
        opened(tmp_path / "uint8.onnx")


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    pose = write_painter(tmp_path / "pose.onnx", painter_spec())
    with pytest.raises(ModelError, match=r"pose.onnx is a pose model, .* pass it as Predictor"):
        opened(pose, kind="detector")
    detector = write_rows(tmp_path / "detector.onnx", DETECTOR)
    with pytest.raises(ModelError, match=r"detector.onnx is a detector, .* Predictor\(..., detector="):
        opened(detector)
    with pytest.raises(ModelError, match="carries no edgepose spec"):
        opened(write_painter(tmp_path / "bare.onnx", painter_spec(), store_spec=False))


def test_a_detector_gives_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "detector.onnx", DETECTOR)
    for engine in (opened(path, kind="detector"), opened(path, spec=DETECTOR)):
        assert engine.spec.input_size == (W, H)
        assert engine.output_shape == (4, 6)
        assert engine.input_buffer.shape == (4, 3, H, W)
        crops = images(3)
        rows = engine.run(crops)
        assert (rows.shape, rows.dtype) == ((3, 4, 6), np.float32)
        np.testing.assert_array_equal(rows[:, :, 4], crops[:, 0, 0, :4])
    assert open_engine(path, spec=None, device="cpu", max_batch=1, kind="detector").output_shape == (4, 6)


def test_missing_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_painter(tmp_path / "m.onnx", painter_spec())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        opened(path)


def test_devices(tmp_path: Path) -> None:
    path = write_painter(tmp_path / "m.onnx", painter_spec())
    for device in ("auto", "cpu"):
        engine = open_engine(path, spec=None, device=device, max_batch=1)
        assert (engine.name, engine.device) == ("onnxruntime", "cpu")
    with pytest.raises(EngineError, match="doctor"):
        open_engine(path, spec=None, device="cuda", max_batch=1)
    for nonsense in (None, 0, "cuda:", "cuda:-1"):
        with pytest.raises(InputError, match="auto, cpu, cuda"):
            open_engine(path, spec=None, device=nonsense, max_batch=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="auto, cpu, cuda"):
        open_engine(path, spec=None, device="tpu", max_batch=1)


@pytest.mark.skipif(not hasattr(sys.modules["os"], "sched_getaffinity"), reason="needs os.sched_getaffinity (Linux)")
def test_threads_follow_the_cpus_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from edgepose.engines.onnxruntime import session_options

    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    assert session_options(onnxruntime, None).intra_op_num_threads == 3
    assert session_options(onnxruntime, 2).intra_op_num_threads == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    assert session_options(onnxruntime, None).intra_op_num_threads == 0  # ONNX Runtime's own choice
