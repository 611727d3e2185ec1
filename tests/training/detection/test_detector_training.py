"""The detector's training from a folder of photos to an ONNX file, a stop on the way, and the commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.cli import app
from edgepose.detector import Detector
from edgepose.detector_spec import DetectorSpec
from edgepose.errors import InputError, ModelError
from edgepose.media import read_photo
from edgepose.modelfile import ModelFile
from edgepose.models import find_detector
from edgepose.training.detection import export, garments, trainer
from edgepose.training.detection.export import detector_spec, export_detector
from edgepose.training.detection.garments import GARMENT_TYPES
from edgepose.training.detection.inference import detect
from edgepose.training.detection.labels import load_labelled_boxes
from edgepose.training.detection.metrics import box_overlaps
from edgepose.training.detection.network import GarmentDetector
from edgepose.training.detection.train import train_garment_detector
from edgepose.training.detection.trainer import DetectionStage, folded
from edgepose.training.export import ExportReport
from edgepose.training.schedule import Execution
from edgepose.training.synthesize import synthesize
from edgepose.training.synthetic import render_garment

STAGE = DetectionStage(size=64, steps=4, batch_size=2, warmup_steps=1, evaluate_every=2)
EXECUTION = Execution(device="cpu", workers=0, save_every=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.json, val.json and pseudo.json of rendered garments; pseudo's have no type."""
    folder = tmp_path_factory.mktemp("garments")
    list(synthesize(folder, 5, seed=3, size=(90, 120), workers=1))
    for name in ("train", "val", "pseudo"):
        shutil.copy(folder / "synthetic.json", folder / f"{name}.json")
    content = json.loads((folder / "pseudo.json").read_text())
    for record in content["annotations"]:
        del record["garment_type"]
    (folder / "pseudo.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garments, "FLOORS", 2)
    monkeypatch.setattr(garments, "TILES", 2)


def run(data: Path, output: Path, **options: object) -> tuple[GarmentDetector, DetectorSpec]:
    options = {"stages": [STAGE], "renders": 2, "execution": EXECUTION, "log": lambda _: None, **options}
    return train_garment_detector(data, output, **options)


@pytest.fixture(scope="module")
def network() -> GarmentDetector:
    """A network with lively statistics and scores, so that a wrong fold or a wrong order shows."""
    torch.manual_seed(0)
    model = GarmentDetector(len(GARMENT_TYPES), channels=16)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.6, 1.2)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for head in model.heads:
        for layer in (head.objectness, head.classes):
            torch.nn.init.normal_(layer.weight, std=0.5)
            torch.nn.init.zeros_(layer.bias)
    return model.eval()


@pytest.fixture(scope="module")
def exported(network: GarmentDetector, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Its file; tracing takes seconds."""
    path = tmp_path_factory.mktemp("exported") / "detector.onnx"
    return export_detector(network, detector_spec(96, metrics={"mAP@0.5": 0.5}), path)


@pytest.fixture(scope="module")
def whole_run(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[GarmentDetector, DetectorSpec, list[str], Path]:
    """Network, spec, what was told, and the folder of a run that nothing stopped."""
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(garments, "FLOORS", 2)
        patch.setattr(garments, "TILES", 2)
        return *run(data, folder, log=lines.append), lines, folder


def test_a_run_from_photos_to_a_network(whole_run: tuple[GarmentDetector, DetectorSpec, list[str], Path]) -> None:
    model, spec, lines, folder = whole_run
    assert spec.category_names == GARMENT_TYPES
    assert "5 hand-labelled photos, 5 more whose boxes models made, 2 rendered" in spec.training["data"]
    assert spec.training["backbone"] == "random weights"
    assert set(spec.metrics) >= {"mAP@0.5", "AP@0.5 any category", "recall, score 0.25"}
    assert [line.split(":")[0] for line in lines] == ["step 2 of 4", "step 4 of 4"]
    last = torch.load(folder / "1" / "last.pt", weights_only=True)
    assert all(torch.equal(value, last["state_dict"][name]) for name, value in model.state_dict().items())


def test_a_stopped_run_ends_as_if_it_had_not_stopped(
    data: Path,
    whole_run: tuple[GarmentDetector, DetectorSpec, list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = whole_run[0]
    learn = trainer.DetectionTrainer._learn

    def learn_and_stop(self: trainer.DetectionTrainer, batch: object, *, stop: bool) -> object:
        if self.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, batch, stop=stop)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.DetectionTrainer, "_learn", learn_and_stop)
        with pytest.raises(SystemExit):
            run(data, tmp_path)
    assert torch.load(tmp_path / "1" / "last.pt", weights_only=True)["step"] == 2
    resumed, _ = run(data, tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_another_run_does_not_go_on_here(
    data: Path, whole_run: tuple[GarmentDetector, DetectorSpec, list[str], Path]
) -> None:
    with pytest.raises(InputError, match="renders was 2, now 3"):
        run(data, whole_run[3], renders=3)


def test_wrong_requests_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one DetectionStage"):
        run(data, tmp_path, stages=[])
    with pytest.raises(InputError, match="whole batches: leave out precision, compile"):
        run(data, tmp_path, execution=Execution(precision="bf16", compile=True))


def test_processes_share_the_mean_of_their_gradients_and_their_wishes() -> None:
    mine, frozen = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))
    mine.grad = torch.arange(6.0).view(2, 3)

    def add_the_other(values: torch.Tensor) -> torch.Tensor:
        return values.add_(torch.tensor([2.0] * 6 + [1.0]))  # its gradients, and that it wants to stop

    world = SimpleNamespace(size=2, sum=add_the_other)
    process = SimpleNamespace(world=world, trained=[mine, frozen], device="cpu")
    assert trainer.DetectionTrainer._share_gradients(process, 0.0) == 1.0
    assert mine.grad.tolist() == [[1.0, 1.5, 2.0], [2.5, 3.0, 3.5]]
    assert frozen.grad is None


def test_folding_frozen_parts_changes_nothing_but_the_time(network: GarmentDetector) -> None:
    model = GarmentDetector(2, channels=8)
    model.backbone.load_state_dict(network.backbone.state_dict())
    model.backbone.freeze(2)
    names = list(model.state_dict())
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32))
    with torch.inference_mode():
        plain = model.eval()(images)
        with folded(model.backbone.frozen):
            fast = model(images)
            assert list(model.state_dict()) == names
        assert torch.equal(model(images), plain)
    # The order of float32 sums: seen 4e-6
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def test_the_file_says_what_the_network_says(network: GarmentDetector, exported: ExportReport, data: Path) -> None:
    """Through ONNX, float16 weights, the runtime's letterbox and its decoding: the boxes of the network in PyTorch."""
    proto = onnx.load(exported.path)
    assert [output.name for output in proto.graph.output] == ["grids"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # the batch is free
    assert ModelFile.read(exported.path).spec == detector_spec(96, metrics={"mAP@0.5": 0.5})
    frame = read_photo(sorted((data / "images").iterdir())[0])
    ((boxes, scores, labels),) = detect(network, [frame], 96)
    with Detector(exported.path, min_score=0.3) as detector:
        found = detector.detect(frame)
    assert len(found) > 0
    # The sampling of two letterboxes and float16 weights; seen: 0.01 in the best score, 1 px in its box
    assert found.scores[0] == pytest.approx(scores[0], abs=0.08)
    same = np.abs(boxes[labels == found.labels[0]] - found.boxes[0]).max(1)
    assert same.min() < 6


def test_a_spec_of_other_classes_is_refused(network: GarmentDetector, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the network has 3 classes, its spec names 13"):
        export_detector(GarmentDetector(3, channels=8), detector_spec(64), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_labels_of_any_coco_file(data: Path, tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 5, "name": "skirt"}, {"id": 6, "name": "hat"}],
        "annotations": [
            {"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"image_id": 1, "category_id": 6, "bbox": [1, 2, 3, 4]},
            {"image_id": 1, "category_id": 6, "garment_type": "shorts", "bbox": [1, 2, 3, 4]},
            {"image_id": 1, "category_id": 5, "garment_type": None, "bbox": [1, 2, 3, 4]},
        ],
    }
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    (first, second), unknown = load_labelled_boxes(path, GARMENT_TYPES)
    assert first.labels.tolist() == [GARMENT_TYPES.index("skirt"), -1, GARMENT_TYPES.index("shorts"), -1]
    assert first.boxes[0].tolist() == [1, 2, 4, 6]
    assert len(second.labels) == 0
    assert unknown == ["hat"]
    for change, message in (
        ({"bbox": [1, 2, 0, 4]}, "bbox must be"),
        ({"image_id": 9}, "image_id or category_id is not listed"),
        ({"category_id": 9}, "image_id or category_id is not listed"),
        ({"iscrowd": 1}, "is a crowd"),
        ({"bbox": [1, 2]}, "is broken"),
    ):
        broken = {**content, "annotations": [{**content["annotations"][0], **change}]}
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=message):
            load_labelled_boxes(path, GARMENT_TYPES)
    (tmp_path / "b.png").unlink()
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="image not found"):
        load_labelled_boxes(path, GARMENT_TYPES)


def test_the_training_command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**train_garment_detector.__kwdefaults__, "stages": [STAGE], "renders": 2}
    monkeypatch.setattr(train_garment_detector, "__kwdefaults__", small)
    written = []

    def export_nothing(model: GarmentDetector, spec: DetectorSpec, path: Path) -> ExportReport:
        written.append((model, spec, path))
        return ExportReport(path, 5_000_000, "fp32", "fp16", 0.0, 0.0)

    monkeypatch.setattr(export, "export_detector", export_nothing)
    options = ["--data", str(data), "-o", str(tmp_path), "--workers", "0", "--device", "cpu"]
    done = CliRunner().invoke(app, ["train", "garment-detector", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "garment-detector.onnx: 5.0 MB, " in done.output
    ((model, spec, path),) = written
    assert (spec.name, path) == ("garment-detector", tmp_path / "garment-detector.onnx")
    assert not model.training
    for option in (["--epochs", "3"], ["--extra", str(data / "train.json")]):
        refused = CliRunner().invoke(app, ["train", "garment-detector", *options, *option])
        assert refused.exit_code != 0
    assert len(written) == 1


def test_the_evaluation_command(exported: ExportReport, data: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = ["evaluate-detector", str(exported.path), str(data / "val.json"), "--json", str(figures)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "any category" in done.output
    document = json.loads(figures.read_text())
    assert document["objects"] == 5
    assert 0 <= document["ap_any_category"] <= 1
    assert set(document["ap"]) <= set(GARMENT_TYPES)
    assert document["detector"]["sha256"]


def test_the_bundled_detector() -> None:
    path = find_detector("garment-detector")
    assert path.stat().st_size <= 8e6
    with Detector(path) as detector:
        spec = detector.spec
        assert spec.category_names == GARMENT_TYPES
        assert spec.metrics["mAP@0.5"] > 0.5
        assert spec.license == "Apache-2.0"
        found = 0
        for seed in range(8):
            sample = render_garment(np.random.default_rng((11, seed)), (300, 400), garment_type="trousers")
            detections = detector.detect(sample.image)
            found += bool(len(detections)) and box_overlaps(detections.boxes[:1], sample.box[None])[0, 0] > 0.5
    assert found >= 6  # seen: 8
