"""INT8 models: their landmarks, their report, their weights on CPUs without VNNI, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from int8_models import PICTURES, SPEC, centres, write_network, write_pictures
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime import quantization

from edgepose import (
    EngineError,
    InputError,
    ModelError,
    Predictor,
    QuantizedModel,
    build_engine,
    quantize_model,
    whole_image_box,
)
from edgepose.modelfile import ModelFile
from edgepose.quantize_compare import read_pictures, split
from edgepose.quantize_report import METADATA_KEY, QuantizationReport
from edgepose.training import metrics


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> QuantizedModel:
    """An INT8 model beside its float model, network.onnx."""
    return quantize_model(write_network(tmp_path_factory.mktemp("model") / "network.onnx"), pictures=pictures)


# Landmarks and report -------------------------------------------------------------------------------------


def test_the_landmarks_stay(made: QuantizedModel, pictures: Path) -> None:
    assert made.path.name == "network-int8.onnx"
    with Predictor(made.path) as predictor:
        for number in range(PICTURES):
            frame = cv2.imread(str(pictures / f"{number:02d}.png"))
            found = predictor.predict(frame, whole_image_box(frame)).keypoints[0]
            # 256 levels on the way, and none at the end; worst: 0.031 frame px (of the float network: 0.009)
            assert np.abs(found - centres(number)).max() < 0.06


def test_the_report_is_what_predictors_say(made: QuantizedModel, pictures: Path) -> None:
    report, (calibrating, held_out) = made.report, split(read_pictures(pictures), 0)
    moved = []
    with Predictor(made.path.with_name("network.onnx")) as exact, Predictor(made.path) as int8:
        for picture in held_out:
            frame = cv2.imread(str(picture.path))
            pair = [predictor.predict(frame, whole_image_box(frame)).keypoints for predictor in (exact, int8)]
            moved.append(np.linalg.norm(pair[1] - pair[0], axis=2))
    distances = np.concatenate(moved)
    assert report.parity.landmarks == distances.size == 3 * len(held_out)
    # The same arithmetic on the same numbers
    assert report.frame.mean == pytest.approx(distances.mean(), rel=1e-6)
    assert report.frame.p99 == pytest.approx(np.percentile(distances, 99), rel=1e-6)
    assert report.crop.mean == pytest.approx(report.frame.mean * 128 / 255, rel=1e-6)  # 256 px are 255 between centres
    assert report.box.mean == pytest.approx(report.frame.mean / 255, rel=1e-6)
    # The heatmaps' own report: float32 coordinates of the crop and of the frame round differently; worst 1e-5 px
    assert report.crop.median == pytest.approx(report.parity.px_median, abs=1e-3)
    assert 0 < report.crop.mean < 0.5
    assert report.problems() == ()
    assert report.parity.convolutions == {"float32": 1, "int8": 3}
    assert (report.parity.scope, report.calibration.pictures, report.calibration.crops) == (
        "engine", len(calibrating), len(calibrating),
    )  # fmt: skip
    assert report.parity.source == "photos, 6 of 12, of which none calibrated"


def test_the_file_says_what_it_is(made: QuantizedModel) -> None:
    file = ModelFile.read(made.path)
    assert file.quantization == made.report
    assert file.precision == "int8, input as fp32"
    assert file.spec is not None
    assert file.spec.metrics == {}, "they were measured on the float model"
    assert "network.onnx" in file.spec.training["int8"]
    assert replace(file.spec, metrics=SPEC.metrics, training=SPEC.training) == SPEC
    assert ModelFile.read(made.path.with_name("network.onnx")).quantization is None


def test_the_same_pictures_give_the_same_file(made: QuantizedModel, pictures: Path, tmp_path: Path) -> None:
    again = quantize_model(made.path.with_name("network.onnx"), tmp_path, pictures=sorted(pictures.iterdir()))
    assert again.path == tmp_path / "network-int8.onnx"
    assert again.path.read_bytes() == made.path.read_bytes()


def test_the_split_is_drawn_by_the_seed() -> None:
    everything = read_pictures([f"{number}.png" for number in range(300)])
    calibrating, held_out = split(everything, 3)
    assert (len(calibrating), len(held_out)) == (64, 100)
    assert not {picture.path for picture in calibrating} & {picture.path for picture in held_out}
    assert split(everything, 3) == (calibrating, held_out)
    assert split(everything, 4)[0] != calibrating
    few = split(everything[:11], 0)
    assert [len(part) for part in few] == [5, 6]


@dataclass(frozen=True)
class Labelled:
    image: Path
    box: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    visible: NDArray[np.float32]
    size: tuple[int, int] = (192, 256)
    first_channel: int = 0


def labelled(pictures: Path) -> list[Labelled]:
    """Two objects in each picture, labels a few px beside the truth, one landmark in five unlabelled."""
    rng = np.random.default_rng(1)
    return [
        Labelled(
            pictures / f"{number:02d}.png",
            np.array([0, 0, 191, 255 - 10 * again], np.float32),
            (centres(number) + rng.normal(0, 9, (3, 2))).astype(np.float32),
            (rng.random(3) > 0.2).astype(np.float32),
        )
        for number in range(PICTURES)
        for again in (0, 1)
    ]


def test_labels_give_boxes_and_pck(made: QuantizedModel, pictures: Path, tmp_path: Path) -> None:
    objects = labelled(pictures)
    network = made.path.with_name("network.onnx")
    report = quantize_model(network, tmp_path, pictures=objects).report
    assert (report.calibration.pictures, report.calibration.crops) == (6, 12)
    assert report.parity.source == "labelled pictures, 6 of 12, of which none calibrated"
    held_out = [item for picture in split(read_pictures(objects), 0)[1] for item in picture.objects]
    for name, path in (("float32", network), ("int8", tmp_path / "network-int8.onnx")):
        with Predictor(path) as predictor:
            found = [predictor.predict(cv2.imread(str(item.image)), item.box[None]).keypoints[0] for item in held_out]
        truth, seen, boxes = (
            np.stack([getattr(item, field) for item in held_out]) for field in ("keypoints", "visible", "box")
        )
        for threshold in (0.05, 0.2):
            # Counted in the same way as `edgepose evaluate` counts
            expected = metrics.pck(np.stack(found), truth, seen, boxes, threshold)
            assert report.pck[f"PCK@{threshold:g} {name}"] == pytest.approx(expected, abs=1e-9)
    assert 0.1 < report.pck["PCK@0.05 float32"] < 1


def test_labels_of_another_size_are_refused(made: QuantizedModel, pictures: Path, tmp_path: Path) -> None:
    objects = [replace(item, size=(256, 192)) for item in labelled(pictures)]
    with pytest.raises(InputError, match=r"is \(192, 256\) px \(w, h\), by its labels \(256, 192\)"):
        quantize_model(made.path.with_name("network.onnx"), tmp_path, pictures=objects)


# CPUs without VNNI ----------------------------------------------------------------------------------------


def vpmaddubsw(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """Products of (K,) and (N, K), added up as x86 CPUs without VNNI do: pairs in 16 bits, saturated (Intel's SDM)."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    products = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
    return np.asarray(np.clip(products[:, 0::2] + products[:, 1::2], -32768, 32767).sum(axis=1))


def int8_weights(path: Path) -> list[NDArray[np.int8]]:
    tensors = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == TensorProto.INT8]
    return [array for array in map(numpy_helper.to_array, tensors) if array.ndim == 4]


def test_no_picture_saturates_a_cpu_without_vnni(made: QuantizedModel) -> None:
    weights = int8_weights(made.path)
    assert len(weights) == made.report.parity.convolutions["int8"] == 3
    rows = np.concatenate([layer.reshape(len(layer), -1) for layer in weights])
    saturated = 0
    for row in rows:
        for sign in (1, -1):  # the worst activations: 255 wherever the weights have one sign
            activations = np.where(np.sign(row) == sign, 255, 0).astype(np.uint8)
            eight_bits = (row.astype(int) * 127 // 64).astype(np.int8)
            for quantized, counted in ((row, False), (eight_bits, True)):
                exact = int(activations.astype(np.int64) @ quantized.astype(np.int64))
                same = vpmaddubsw(activations, quantized[None])[0] == exact
                assert same or counted
                saturated += counted and not same
    assert saturated == len(rows), "with 8 bits every channel does, in a picture that is bright enough"


def test_the_library_is_not_trusted_with_7_bits(
    made: QuantizedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = quantization.quantize_static

    def forgetful(*arguments: Any, **options: Any) -> None:
        own(*arguments, **{**options, "reduce_range": False})

    monkeypatch.setattr(quantization, "quantize_static", forgetful)
    with pytest.raises(ModelError, match="more than 7 bits, which saturate on CPUs without VNNI"):
        quantize_model(made.path.with_name("network.onnx"), tmp_path, pictures=pictures)
    assert not list(tmp_path.iterdir())


# Networks of other forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"opset": 11}, {"batch": 1}, {"batch": 5}, {"transposed": True},
                                     {"opset": 11, "batch": 5, "transposed": True}], ids=str)  # fmt: skip
def test_networks_of_other_forms(tmp_path: Path, pictures: Path, changes: dict[str, Any]) -> None:
    made = quantize_model(write_network(tmp_path / "network.onnx", **changes), pictures=pictures)
    operators = {node.op_type for node in onnx.load(made.path).graph.node}
    assert not operators & {"ConvTranspose", "BatchNormalization"}
    assert made.report.parity.convolutions["int8"] >= 3
    # 256 levels; worst: 0.014 px, with a transposed convolution
    assert made.report.crop.mean < 0.03


def test_a_spec_of_ones_own(tmp_path: Path, pictures: Path) -> None:
    path = write_network(tmp_path / "network.onnx")
    made = quantize_model(path, pictures=pictures, spec=replace(SPEC, color="bgr"))
    with Predictor(made.path) as predictor:
        frame = cv2.imread(str(pictures / "00.png"))
        found = predictor.predict(frame, whole_image_box(frame)).keypoints[0]
    # Red and blue changed places: the file is adapted, and its own spec says nothing of it any more. 256 levels:
    # worst 0.012 px
    assert np.abs(found[::-1] - centres(0)).max() < 0.06
    assert ModelFile.read(made.path).spec.color == "rgb"


# What is refused ------------------------------------------------------------------------------------------


def test_landmarks_that_move_too_far_are_refused(tmp_path: Path, pictures: Path) -> None:
    path = write_network(tmp_path / "network.onnx", spread=3000.0)
    with pytest.raises(EngineError, match=r"network.onnx in INT8 differs too much .* Nothing was written: calibrate"):
        quantize_model(path, pictures=pictures)
    assert [item.name for item in tmp_path.iterdir()] == ["network.onnx"]
    made = quantize_model(path, pictures=pictures, force=True)
    assert made.report.problems()
    assert made.path.exists()


def test_a_mean_beyond_the_limit_or_not_a_number(made: QuantizedModel) -> None:
    for mean in (0.51, math.nan):
        report = replace(made.report, crop=replace(made.report.crop, mean=mean))
        assert "limit 0.5" in report.problems()[0]
    assert replace(made.report, crop=replace(made.report.crop, mean=0.5)).problems() == ()


def test_what_cannot_be_quantised(made: QuantizedModel, pictures: Path, tmp_path: Path) -> None:
    network = made.path.with_name("network.onnx")
    for model, error, words in (
        ("garment-detector", ModelError, "is a detector"),
        (made.path, ModelError, "is quantised already"),
        ("model.engine", InputError, "is an engine: pass the ONNX file"),
        (3, InputError, "must be a bundled name or the path"),
    ):
        with pytest.raises(error, match=words):
            quantize_model(model, tmp_path, pictures=pictures)
    for output, words in (
        (network, "is the float model itself"),
        ("model.engine", r"must be an \.onnx file or a folder"),
        (tmp_path / "no" / "model.onnx", "does not exist: create it first"),
    ):
        with pytest.raises(InputError, match=words):
            quantize_model(network, output, pictures=pictures)
    for chosen, words in (
        (sorted(pictures.iterdir())[:9], "at least 10 pictures are needed.*got 9"),
        (iter(sorted(pictures.iterdir())[:9]), "at least 10 pictures are needed.*got 9"),
        (7, "pictures must be a folder.*got 7"),
        ([1, 2], "pictures must be a folder, a list of photos by path, or labelled objects"),
        (tmp_path / "nowhere", "there is no folder"),
    ):
        with pytest.raises(InputError, match=words):
            quantize_model(network, tmp_path, pictures=chosen)
    assert not list(tmp_path.iterdir())


def test_tensorrt_is_not_given_an_int8_model_for_cpus(made: QuantizedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    flavour = SimpleNamespace(is_rtx=True, compute_capabilities=("sm86",))  # the model is read before it is asked
    monkeypatch.setattr("edgepose.build.load", lambda _: flavour)
    with pytest.raises(ModelError, match=r"quantised to INT8 for CPUs.*from the float model"):
        build_engine(made.path)


def test_progress_can_cancel(made: QuantizedModel, pictures: Path, tmp_path: Path) -> None:
    network, seen = made.path.with_name("network.onnx"), []
    quantize_model(network, tmp_path / "a.onnx", pictures=pictures, progress=lambda *step: seen.append(step))
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == [
        "reading the model", "reading 6 pictures", "preparing", "calibrating on 6 crops", "comparing on 6 pictures",
    ]  # fmt: skip
    assert all(0 <= fraction <= 1 for _, fraction in seen)

    class Enough(Exception):
        pass

    def stop(stage: str, fraction: float) -> None:
        if stage.startswith("calibrating"):
            raise Enough

    with pytest.raises(Enough):
        quantize_model(network, tmp_path / "b.onnx", pictures=pictures, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


# The record -----------------------------------------------------------------------------------------------


def test_the_record_survives_and_damage_is_told(made: QuantizedModel) -> None:
    assert QuantizationReport.from_dict(json.loads(json.dumps(made.report.to_dict()))) == made.report
    model = onnx.load(made.path)
    made.report.write_metadata(model)
    stored = {item.key: item.value for item in model.metadata_props}
    assert [item.key for item in model.metadata_props].count(METADATA_KEY) == 1
    for broken in ("{", "[]", json.dumps({**json.loads(stored[METADATA_KEY]), "schema": 2}),
                   json.dumps({"schema": 1}), stored[METADATA_KEY].replace('"seed": 0', '"seed": "0"')):  # fmt: skip
        with pytest.raises(ModelError, match=r"m\.onnx: what its quantisation did cannot be read"):
            QuantizationReport.from_metadata({METADATA_KEY: broken}, source="m.onnx")
    assert {field.name for field in dataclasses.fields(QuantizationReport)} == set(made.report.to_dict())
