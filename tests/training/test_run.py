"""From a recipe and a data folder to an ONNX file, on small data sets in MMPose's two layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.cli import app
from edgepose.errors import InputError, ModelError
from edgepose.modelfile import ModelFile
from edgepose.training import models
from edgepose.training import run as running
from edgepose.training.checkpointing import load
from edgepose.training.departures import depart
from edgepose.training.export import ExportReport
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2, DEEPFASHION2_CHANNELS
from edgepose.training.recipe import Recipe
from edgepose.training.recipe_data import check_data, limit_annotations, load_data
from edgepose.training.recipes import find
from edgepose.training.run import RunSummary, train_recipe
from edgepose.training.run_record import run_identity
from edgepose.training.schedule import Execution

CPU = Execution(device="cpu", workers=0)
SIZE = (96, 128)  # w, h of the pictures


# Data -------------------------------------------------------------------------------------------


def garment(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a dot on each of `count` landmarks, and where they are, (count, 2) px."""
    points = np.round(rng.uniform((12, 12), (SIZE[0] - 12, SIZE[1] - 12), (count, 2)))
    picture = rng.integers(0, 60, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    for x, y in points.astype(int):
        cv2.circle(picture, (int(x), int(y)), 4, (255, 255, 255), -1)
    return picture, points


def write_file(path: Path, images: Path, objects: Mapping[str, int], *, channels: int, seed: int) -> None:
    """A COCO file as MMPose has them, `objects` of each category, all of its landmarks labelled."""
    rng = np.random.default_rng(seed)
    images.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    categories = [{"id": i, "name": name} for i, name in enumerate(objects, 1)]
    for kind in categories:
        begin, end = (
            DEEPFASHION2[kind["name"]] if channels == DEEPFASHION2_CHANNELS else DEEPFASHION["upper"]
        ).channels
        for _ in range(objects[kind["name"]]):
            number = len(records) + 1
            name = f"{path.stem}_{number:06d}.png"
            picture, points = garment(rng, end - begin)
            cv2.imwrite(str(images / name), picture)
            keypoints = np.zeros((channels, 3))
            keypoints[begin:end] = np.c_[points, np.full(len(points), 2)]
            pictures.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            records.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": kind["id"],
                    "bbox": [4.0, 4.0, SIZE[0] - 8.0, SIZE[1] - 8.0],
                    "area": 1.0,
                    "iscrowd": 0,
                    "keypoints": keypoints.flatten().tolist(),
                    "num_keypoints": end - begin,
                }
            )
    path.write_text(json.dumps({"images": pictures, "annotations": records, "categories": categories}))


@pytest.fixture(scope="session")
def deepfashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/fld of MMPose, `upper` only: 4 objects to train on, 2 to validate on, 3 to test."""
    folder = tmp_path_factory.mktemp("fld")
    for seed, (part, count) in enumerate((("train", 4), ("val", 2), ("test", 3))):
        path = folder / "annotations" / f"fld_upper_{part}.json"
        write_file(path, folder / "img", {"upper": count}, channels=6, seed=seed)
    return folder


@pytest.fixture(scope="session")
def deepfashion2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/deepfasion2 of MMPose: objects of three categories, and files without any of the others."""
    folder = tmp_path_factory.mktemp("deepfashion2")
    counts = {"vest": 3, "trousers": 4, "sling_dress": 1}
    for part in ("train", "validation"):
        for seed, category in enumerate(DEEPFASHION2):
            path = folder / part / f"deepfashion2_{category}_{part}.json"
            objects = {category: counts.get(category, 0)}
            write_file(path, folder / part / "image", objects, channels=DEEPFASHION2_CHANNELS, seed=seed)
    return folder


def small(name: str, *, epochs: int = 1, batch_size: int = 4, **schedule: Any) -> Recipe:
    """A recipe with a smaller network at 64x64 px: a twentieth of the work, a third of the checkpoint."""
    recipe = depart(find(name), epochs=epochs, batch_size=batch_size)
    schedule = {"warmup_steps": 0, "learning_rate": 1e-3, **schedule}
    return replace(
        recipe,
        architecture="resnet18_w40",
        input_size=(64, 64),
        heatmap_size=(16, 16),
        schedule=replace(recipe.schedule, **schedule),
    )


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Skips the export, which takes seconds, and keeps what it was called with."""
    calls: list[dict[str, Any]] = []

    def export(model: Any, spec: Any, path: Path, **options: Any) -> ExportReport:
        calls.append({"model": model, "spec": spec, **options})
        return ExportReport(path, 0, "fp32", "fp32", 0.0, 0.0)

    monkeypatch.setattr(running, "export_onnx", export)
    return calls


def run(recipe: Recipe, data: Path, output: Path, **options: Any) -> tuple[RunSummary, str]:
    lines: list[str] = []
    summary = train_recipe(recipe, data, output, execution=CPU, log=lines.append, **options)
    assert summary is not None
    return summary, "\n".join(lines)


# The whole way ----------------------------------------------------------------------------------


def command(recipe: str, data: Path, output: Path, *options: object) -> Any:
    arguments = ["train", recipe, "--data", data, "-o", output, "--device", "cpu", "--workers", 0, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_from_a_folder_to_an_onnx_file(deepfashion: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ("--epochs", 1, "--batch-size", 4, "--scale-lr")
    result = command("deepfashion/upper/resnet18", deepfashion, output, *options)
    assert result.exit_code == 0, result.output + str(result.exception)
    said = result.output
    for words in (
        f"deepfashion/upper/resnet18 -> {output}",
        "resnet18, 15.4 M parameters, 6 heatmaps",
        "random weights, since no --init was given",
        "4 to train on, 2 to validate on, 3 to test",
        "epochs: 210 -> 1",
        "batch_size: 64 -> 4",
        "learning_rate: 0.0005 -> 3.125e-05",
        "the warm-up of 200 steps takes more than a quarter of the run",
        "tested epoch 1 on 3 objects, with flip test",
    ):
        assert words in said, said
    # Both are of one evaluation
    figures = json.loads((output / "metrics.json").read_text())
    spec = ModelFile.read(output / "deepfashion-upper-resnet18.onnx").spec
    assert spec is not None
    assert spec.metrics["EPE"] == pytest.approx(figures["overall"]["metrics"]["EPE"]["value"], abs=1e-4)  # 5 digits
    assert figures["overall"]["objects"] == 3
    assert figures["published"] is None
    assert spec.keypoint_names == DEEPFASHION["upper"].keypoint_names
    assert spec.training["recipe"] == "deepfashion/upper/resnet18"
    assert spec.training["data"] == "DeepFashion (upper): 4 objects; tested on 3"
    assert "epochs: 210 -> 1" in spec.training["departures"]
    record = json.loads((output / "recipe.json").read_text())
    assert record["run"]["recipe"]["schedule"]["batch_size"] == 4
    assert set(record["run"]["annotations_sha256"]) == {
        f"annotations/fld_upper_{part}.json" for part in ("train", "val", "test")
    }
    assert record["latest_start"]["versions"]["torch"] == metadata.version("torch")

    other = command("deepfashion/upper/resnet18", deepfashion, output, "--epochs", 2, "--batch-size", 4, "--scale-lr")
    assert other.exit_code == 1
    assert "schedule.epochs was 1, now 2" in other.stderr


def test_one_category_trains_its_channels_of_294(
    deepfashion2: Path, tmp_path: Path, no_export: list[dict[str, Any]]
) -> None:
    recipe = small("deepfashion2/trousers/resnet18")
    summary, said = run(recipe, deepfashion2, tmp_path)
    assert "4 to train on, 4 to validate on, 4 to test" in said
    begin, end = DEEPFASHION2["trousers"].channels
    (call,) = no_export
    bias = call["model"].head.final_layer.bias.detach()  # 0 at first; without decay, so that only gradients move it
    assert (bias[begin:end] != 0).all()
    assert (bias[:begin] == 0).all()
    assert (bias[end:] == 0).all()
    assert call["keypoint_range"] == (begin, end)
    assert call["spec"].num_keypoints == end - begin
    assert call["spec"].metrics == summary.metrics


def test_all_categories_at_once(deepfashion2: Path, tmp_path: Path, no_export: list[dict[str, Any]]) -> None:
    recipe = small("deepfashion2/all/resnet18", batch_size=8)
    _, said = run(recipe, deepfashion2, tmp_path)
    assert "8 to train on, 8 to validate on, 8 to test" in said
    (call,) = no_export
    bias = call["model"].head.final_layer.bias.detach()
    trained = {name for name, landmarks in DEEPFASHION2.items() if (bias[slice(*landmarks.channels)] != 0).all()}
    untouched = {name for name, landmarks in DEEPFASHION2.items() if (bias[slice(*landmarks.channels)] == 0).all()}
    assert trained == {"vest", "trousers", "sling_dress"}
    assert untouched == set(DEEPFASHION2) - trained
    assert len(call["spec"].categories) == 13
    found = json.loads((tmp_path / "metrics.json").read_text())["categories"]
    assert {category["name"]: category["landmarks"] for category in found} == {
        "vest": 3 * 15,
        "trousers": 4 * 14,
        "sling_dress": 19,
    }


def test_a_stopped_run_ends_as_one_that_was_not(
    deepfashion: Path, tmp_path: Path, no_export: list[dict[str, Any]]
) -> None:
    recipe = small("deepfashion/upper/resnet18", epochs=2)
    whole, _ = run(recipe, deepfashion, tmp_path / "whole")

    def stop(line: str) -> None:
        if line.startswith("epoch 1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, deepfashion, tmp_path / "stopped", execution=CPU, log=stop)
    assert not no_export[1:]
    resumed, said = run(recipe, deepfashion, tmp_path / "stopped")
    assert "1 of 2 steps are done" in said
    assert resumed.metrics == whole.metrics
    ends = [load(tmp_path / name / "last.pt")["state_dict"] for name in ("whole", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# Options ----------------------------------------------------------------------------------------


def test_backbone_weights_are_loaded_and_told(
    deepfashion: Path, tmp_path: Path, no_export: list[dict[str, Any]]
) -> None:
    torch.manual_seed(5)
    backbone = models.create("resnet18_w40", 6).backbone.state_dict()
    classifier = {**backbone, "fc.weight": torch.zeros(1000, 320), "fc.bias": torch.zeros(1000)}  # torchvision's names
    path = tmp_path / "resnet18.pth"
    torch.save(classifier, path)
    recipe = small("deepfashion/upper/resnet18", learning_rate=1e-12, weight_decay=0.0, average=None)
    _, said = run(recipe, deepfashion, tmp_path / "run", init=path)
    assert "starts from  resnet18.pth: 120 tensors, all of the backbone; the head starts from random weights" in said
    assert "Not used: 2 tensors of the file (fc.weight, fc.bias)" in said
    trained = no_export[0]["model"].backbone.state_dict()
    for name, value in backbone.items():
        if name.endswith("weight"):  # a rate of 1e-12 moves nothing by more than 1e-12 a step, below float32's steps
            torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-9, msg=name)
    assert no_export[0]["spec"].training["init"] == "resnet18.pth"

    another = replace(recipe, architecture="resnet18")
    with pytest.raises(ModelError, match="does not fit the backbone"):
        run(another, deepfashion, tmp_path / "other", init=path)
    with pytest.raises(InputError, match="init_sha256 was"):
        run(recipe, deepfashion, tmp_path / "run")


def test_without_a_micro_batch_it_is_that_of_one_gpu_of_the_recipe() -> None:
    recipe = find("deepfashion/upper/resnet50")  # 8 x 64
    assert running._with_micro_batch(recipe, CPU, 1).micro_batch == 64
    assert running._with_micro_batch(recipe, CPU, 4).micro_batch == 64
    assert running._with_micro_batch(recipe, CPU, 8).micro_batch is None
    assert running._with_micro_batch(depart(recipe, batch_size=96), CPU, 1).micro_batch is None
    assert running._with_micro_batch(recipe, replace(CPU, micro_batch=32), 1).micro_batch == 32


def test_the_run_of_eight_processes_is_that_of_four(deepfashion: Path) -> None:
    recipe = find("deepfashion/upper/resnet50")  # 8 x 64: eight processes need no micro-batches, four do
    executions = [running._with_micro_batch(recipe, CPU, processes) for processes in (8, 4, 1)]
    eight, four, one = (run_identity(recipe, deepfashion, None, execution, None) for execution in executions)
    assert eight == four == one
    smaller = run_identity(recipe, deepfashion, None, replace(CPU, micro_batch=32), None)
    assert smaller == {**one, "micro_batch": 32}


def test_what_a_killed_run_left_half_written_goes_away(
    deepfashion: Path, tmp_path: Path, no_export: list[dict[str, Any]]
) -> None:
    kept = "notes.txt.0123abcd.tmp"  # no file of a run
    for name in ("deepfashion-upper-resnet18.onnx.0123abcd.tmp", "metrics.json.0123abcd.tmp",
                 "recipe.json.01234567.tmp", "bad_batch.pt.01234567.tmp", ".0123456789abcdef.tmp", kept):  # fmt: skip
        (tmp_path / name).write_bytes(b"half")
    run(small("deepfashion/upper/resnet18"), deepfashion, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == [kept]


def test_a_limit_on_the_validation_takes_objects_of_all_categories(deepfashion2: Path) -> None:
    objects = load_data(find("deepfashion2/all/resnet18"), deepfashion2).validation
    assert [a.category for a in limit_annotations(objects, 3)] == ["vest", "vest", "trousers"]
    assert limit_annotations(objects, 100) is objects
    assert limit_annotations(objects, None) is objects
    with pytest.raises(InputError, match="at least 1"):
        limit_annotations(objects, 0)


def test_annotations_say_where_their_channels_are(deepfashion2: Path) -> None:
    data = load_data(find("deepfashion2/all/resnet18"), deepfashion2)
    begin, end = DEEPFASHION2["vest"].channels
    assert {(a.first_channel, len(a.keypoints)) for a in data.train if a.category == "vest"} == {(begin, end - begin)}
    assert data.test is data.validation
    one = load_data(find("deepfashion2/vest/resnet50"), deepfashion2).train
    assert [(a.first_channel, len(a.keypoints), a.category) for a in one] == [(0, end - begin, "vest")] * 3


# Errors -----------------------------------------------------------------------------------------


def test_missing_data_are_told_before_anything_is_written(deepfashion: Path, tmp_path: Path) -> None:
    result = command("deepfashion/lower/resnet18", deepfashion, tmp_path / "run")
    assert result.exit_code == 1
    said = result.stderr
    assert "3 of 4 parts are missing" in said
    assert "annotations/fld_lower_train.json  MISSING" in said
    assert "img/                              there" in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="There is no folder"):
        check_data(find("deepfashion/lower/resnet18"), tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"Did you mean --data .*fld"):
        check_data(find("deepfashion/upper/resnet18"), deepfashion.parent)
    with pytest.raises(InputError, match="edgepose dataset convert"):
        check_data(find("deepfashion2/vest/resnet18"), tmp_path)


def test_a_file_of_another_category_is_refused(deepfashion2: Path, tmp_path: Path) -> None:
    for part in ("train", "validation"):
        (tmp_path / part / "image").mkdir(parents=True)
        for picture in (deepfashion2 / part / "image").glob(f"deepfashion2_vest_{part}_*.png"):
            (tmp_path / part / "image" / picture.name).write_bytes(picture.read_bytes())
        wrong = (deepfashion2 / part / f"deepfashion2_vest_{part}.json").read_bytes()
        (tmp_path / part / f"deepfashion2_skirt_{part}.json").write_bytes(wrong)
    with pytest.raises(InputError, match="outside the wanted channels"):
        load_data(find("deepfashion2/skirt/resnet18"), tmp_path)


def test_a_folder_of_another_or_an_unknown_run_is_refused(
    deepfashion: Path, tmp_path: Path, no_export: list[dict[str, Any]]
) -> None:
    recipe = small("deepfashion/upper/resnet18")
    run(recipe, deepfashion, tmp_path)
    with pytest.raises(InputError, match="validation_limit was None, now 1"):
        run(recipe, deepfashion, tmp_path, validation_limit=1)
    with pytest.raises(InputError, match=r"name was 'deepfashion/upper/resnet18'.*and \d+ more"):
        run(small("deepfashion/upper/resnet50", epochs=2), deepfashion, tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(InputError, match=r"recipe\.json cannot be read"):
        run(recipe, deepfashion, tmp_path)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(InputError, match=r"no recipe\.json that says which"):
        run(recipe, deepfashion, tmp_path)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("deepfashion/upper/resnet19", (), "did you mean"),
        ("deepfashion/upper/resnet18", ("--scale-lr",), "another batch size"),
        ("deepfashion/upper/resnet18", ("--declared",), "declares what it is"),
        ("deepfashion/upper/resnet18", ("--extra", "x.json"), "--extra is for garment-landmarks"),
        ("garment-landmarks", ("--epochs", "3", "--loss", "mmpose"), "leave out epochs, loss"),
        ("deepfashion/upper/resnet18", ("--micro-batch", "3"), "micro-batches of 3 do not fill"),
        ("deepfashion/upper/resnet18", (), "do not fill one batch of 64"),
    ],
)
def test_wrong_options_are_refused(
    recipe: str, options: tuple[str, ...], message: str, deepfashion: Path, tmp_path: Path
) -> None:
    if message.startswith("micro-batches"):
        options = (*options, "--batch-size", "4")
    result = command(recipe, deepfashion, tmp_path / "run", *options)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not (tmp_path / "run" / "recipe.json").exists()
