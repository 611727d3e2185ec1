"""The command line, run as a user runs it; predictions go through the painter of painter.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from painter import blobs, painter_spec, write_painter
from typer.testing import CliRunner, Result

import edgepose
from edgepose.annotate import annotate
from edgepose.boxes import BoxSource
from edgepose.cli import app
from edgepose.demo import WARM_UP, run_demo
from edgepose.media import VideoReader, VideoWriter

CENTRES = np.array([[50.0, 40.0], [110.0, 45.0], [80.0, 95.0]])
PHOTO = blobs((160, 120), CENTRES, sigma=9)
BOX = "30,15,130,115"


def run(*arguments: object, **options) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painter(tmp_path_factory.mktemp("model") / "painter.onnx", painter_spec())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), PHOTO)
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10) as writer:
        for _ in range(4):
            writer.write(PHOTO)
    return path


def check_points(entry: dict) -> None:
    points = entry["objects"][0]["keypoints"]
    found = np.array([[points[name]["x"], points[name]["y"]] for name in ("red", "green", "blue")])
    # 5 px a cell; video compression moves a blob's centre by up to half a pixel.
    np.testing.assert_allclose(found, CENTRES, atol=1)


# predict


def test_photo_to_folder(model: Path, photo: Path, tmp_path: Path) -> None:
    result = run("predict", photo, "-m", model, "--boxes", BOX, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    drawn = cv2.imread(str(tmp_path / "out" / "photo.png"))
    assert drawn.shape == PHOTO.shape
    assert (drawn != PHOTO).any()
    document = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert (document["schema"], document["model"]) == (1, "painter-udp")
    (entry,) = document["predictions"]
    assert (entry["file_name"], entry["frame"], entry["frame_size"]) == ("photo.png", None, [160, 120])
    check_points(entry)


def test_photo_to_file_puts_the_json_beside_it(model: Path, photo: Path, tmp_path: Path) -> None:
    result = run("predict", photo, "-m", model, "--whole-image", "-o", tmp_path / "new" / "drawn.jpg")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["drawn.jpg", "drawn.json"]


def test_video(model: Path, video: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({str(i): [[30, 15, 130, 115]] for i in (0, 1, 3)}))
    result = run("predict", video, "-m", model, "--boxes", boxes, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 0, result.output
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert (reader.size, reader.fps, len(list(reader))) == ((160, 120), 10, 4)
    entries = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [(entry["frame"], len(entry["objects"])) for entry in entries] == [(0, 1), (1, 1), (2, 0), (3, 1)]
    check_points(entries[0])


def test_folder_does_what_it_can_and_reports_the_rest(model: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "Größe.png").write_bytes(photo.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no")
    cv2.imwrite(str(folder / "grey.png"), PHOTO[..., 0])
    (folder / "notes.txt").write_text("not a photo")
    result = run("predict", folder, "-m", model, "--boxes", BOX, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "1 of 3 photos failed" in result.stderr
    assert "broken.jpg" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Größe.png", "grey.png", "predictions.json"]
    names = [
        e["file_name"] for e in json.loads((tmp_path / "out" / "predictions.json").read_text("utf-8"))["predictions"]
    ]
    assert names == ["Größe.png", "grey.png"]


def test_an_unwritable_picture_does_not_abort_a_folder(model: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(photo.read_bytes())
    (tmp_path / "out" / "a.png").mkdir(parents=True)  # in the way
    result = run("predict", folder, "-m", model, "--boxes", BOX, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.png cannot be written" in result.stderr
    assert (tmp_path / "out" / "b.png").is_file()
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert [entry["file_name"] for entry in entries] == ["b.png"]


def test_a_video_that_is_cut_off_is_named(model: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.avi", tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for _ in range(50):
        writer.write(PHOTO)
    writer.release()
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    assert run("predict", whole, "-m", model, "--boxes", BOX, "-o", tmp_path / "whole").exit_code == 0
    result = run("predict", cut, "-m", model, "--boxes", BOX, "-o", tmp_path / "out")
    assert result.exit_code == 1
    count = len(json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"])
    assert 0 < count < 50
    assert f"cut.avi: cut off: its header says 50 frames, and {count} could be read" in result.stderr


def test_an_error_in_a_video_keeps_the_frames_before_it(model: Path, video: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"0": [[30, 15, 130, 115]], "2": [[9, 9, 1, 1]]}))
    result = run("predict", video, "-m", model, "--boxes", boxes, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert "stopped at frame 2" in result.stderr
    assert "inverted" in result.stderr
    entries = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [(entry["frame"], len(entry["objects"])) for entry in entries] == [(0, 1), (1, 0)]
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 2


def test_an_interrupt_keeps_what_was_found(model: Path, video: Path, tmp_path: Path) -> None:
    def interrupt(items, total, description):
        for number, item in enumerate(items):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    boxes = BoxSource(everywhere=[[30, 15, 130, 115]])
    with edgepose.Predictor(model) as predictor, pytest.raises(KeyboardInterrupt):
        annotate(predictor, video, tmp_path / "out.mp4", boxes, track=interrupt)
    assert len(json.loads((tmp_path / "out.json").read_text())["predictions"]) == 3


def test_boxes_beyond_the_end_of_a_video_are_named(model: Path, video: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"0000": [[30, 15, 130, 115]], "0004": [[30, 15, 130, 115]]}))
    result = run("predict", video, "-m", model, "--boxes", boxes, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert "boxes for frames (4) beyond the last one, 3" in result.stderr
    entries = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [len(entry["objects"]) for entry in entries] == [1, 0, 0, 0]


@pytest.mark.parametrize("options", [[], ["--boxes", "1,2,3,4", "--whole-image"], ["--boxes", "10,10,5,20"]])
def test_boxes_are_asked_for(model: Path, photo: Path, tmp_path: Path, options: list[str]) -> None:
    result = run("predict", photo, "-m", model, *options, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error:")
    assert ("--whole-image" in result.stderr) == (options != ["--boxes", "10,10,5,20"])
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_inputs_are_never_overwritten(model: Path, photo: Path, video: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "picture.json"
    boxes.write_text("[]")
    before = {path: path.read_bytes() for path in (photo, video, boxes)}
    for source, output in (
        (photo, photo),
        (photo, tmp_path),
        (tmp_path, tmp_path),
        (video, video),
        (photo, tmp_path / "picture.png"),  # its JSON would replace the boxes
    ):
        result = run("predict", source, "-m", model, "--boxes", boxes, "-o", output)
        assert result.exit_code == 1, (source, output, result.output)
        assert "input" in result.stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("drawn.mp4", "is a photo"),
        ("occupied", "pass a folder"),
        ("drawn.gif", "unknown suffix '.gif'; known: .avi"),
        ("results.json", "unknown suffix '.json'"),
        ("made.v2", None),  # a folder that exists may have any name
    ],
)
def test_outputs_that_do_not_fit(model: Path, photo: Path, tmp_path: Path, output: str, message: str | None) -> None:
    (tmp_path / "occupied").write_bytes(b"")
    (tmp_path / "made.v2").mkdir()
    result = run("predict", photo, "-m", model, "--boxes", BOX, "-o", tmp_path / output)
    if message is None:
        assert (tmp_path / output / "predictions.json").exists()
    else:
        assert result.exit_code == 1
        assert message in result.stderr


def test_foreign_model_needs_a_spec(photo: Path, tmp_path: Path) -> None:
    bare = write_painter(tmp_path / "bare.onnx", painter_spec(), store_spec=False)
    arguments = ("predict", photo, "-m", bare, "--boxes", BOX, "-o", tmp_path / "out")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "--spec spec.json" in result.stderr
    (tmp_path / "spec.json").write_text(painter_spec().to_json())
    assert run(*arguments, "--spec", tmp_path / "spec.json").exit_code == 0


# demo


@dataclass
class Sample:
    image: np.ndarray
    box: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray


def clip(count: int, offset: float = 0.0) -> list[Sample]:
    """Blobs that wander, and a truth that is ``offset`` px away from them in x."""
    samples = []
    for i in range(count):
        centres = CENTRES + np.array([i, 0])
        box = np.array([30.0 + i, 15, 130 + i, 115])
        samples.append(Sample(blobs((160, 120), centres, 9), box, centres + np.array([offset, 0]), np.array([1, 1, 0])))
    return samples


def test_demo_measures_and_writes(model: Path, tmp_path: Path) -> None:
    count = WARM_UP + 4
    with edgepose.Predictor(model) as predictor:
        report = run_demo(predictor, clip(count, offset=6.0), count, tmp_path / "demo.mp4")
    assert len(report.errors) == 2 * count  # the third landmark is not visible
    np.testing.assert_allclose(report.errors, 6.0, atol=0.2)  # 5 px a cell, found to 0.04 cells
    np.testing.assert_allclose(report.relative_errors, report.errors / 100)
    assert (report.pck(0.05), report.pck(0.1)) == (0.0, 1.0)
    assert {len(values) for values in report.latencies.values()} == {4}
    assert cv2.imread(str(report.poster)).shape == (120, 160, 3)
    with VideoReader(report.video) as reader:
        assert len(list(reader)) == count


def test_demo_refuses_a_model_with_other_landmarks(model: Path, tmp_path: Path) -> None:
    sample = clip(1)[0]
    sample.keypoints = np.zeros((8, 2))
    with edgepose.Predictor(model) as predictor, pytest.raises(edgepose.InputError, match="8 landmarks"):
        run_demo(predictor, [sample], 1, tmp_path / "demo.mp4")
    with edgepose.Predictor(model) as predictor, pytest.raises(edgepose.InputError, match="at least one frame"):
        run_demo(predictor, [], 1, tmp_path / "demo.mp4")


def test_demo_command(tmp_path: Path) -> None:
    if "garment-landmarks" not in edgepose.bundled_models():
        pytest.skip("the bundled model garment-landmarks is not in edgepose/models")
    result = run("demo", "-o", tmp_path / "demo.mp4", "--frames", 8)
    assert result.exit_code == 0, result.output
    for word in ("PCK@0.05", "p95", "end to end", "demo.png"):
        assert word in result.output
    assert (tmp_path / "demo.mp4").stat().st_size > 0
    assert (tmp_path / "demo.png").stat().st_size > 0


# info, models, recipes, export


def test_info(model: Path) -> None:
    result = run("info", model, terminal_width=200)
    assert result.exit_code == 0, result.output
    for words in (
        "painter-udp",
        "fp32 (N, 3, 128, 96)",
        "opset",
        "17",
        "red, green, blue",
        "Apache-2.0",
        "PCK@0.2: 1.0",
    ):
        assert words in result.output


def test_info_without_a_spec_and_of_nonsense(tmp_path: Path) -> None:
    bare = write_painter(tmp_path / "bare.onnx", painter_spec(), fp16=True, store_spec=False)
    result = run("info", bare, terminal_width=300)
    assert result.exit_code == 0
    assert "fp16" in result.output
    assert "--spec" in result.output
    begun = json.loads(result.output[result.output.index("{") :])  # as long as a line is broken nowhere
    assert (begun["input_size"], begun["heatmap_size"], begun["layout"]) == ([96, 128], [24, 32], "nchw")
    (tmp_path / "text.onnx").write_text("hello")
    result = run("info", tmp_path / "text.onnx")
    assert result.exit_code == 1
    assert "not an ONNX model" in result.stderr


def test_models_and_unknown_names() -> None:
    result = run("models")
    assert result.exit_code == 0
    for name in edgepose.bundled_models():
        assert name in result.output
    result = run("info", "no-such-model")
    assert result.exit_code == 1
    assert "there is no bundled model 'no-such-model'" in result.stderr


def test_recipes() -> None:
    result = run("recipes", env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "deepfashion2/trousers/resnet50" in result.output


def test_export_without_torch_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgepose.cli import app\n"
        f"app(['export', 'deepfashion/full/resnet50', '--random-weights', '-o', {str(tmp_path / 'm.onnx')!r}])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "pip install 'edgepose[train]'" in process.stderr
    assert "Traceback" not in process.stderr


# The frame around it


def test_help_and_version() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("predict", "demo", "info", "models", "doctor", "export", "recipes", "train", "evaluate"):
        assert command in result.output
    assert edgepose.__version__ in run("--version").output
    assert run("predict").exit_code == 2


def test_debug_shows_the_traceback(photo: Path, tmp_path: Path) -> None:
    arguments = ("predict", photo, "--boxes", BOX, "-m", "missing.onnx", "-o", tmp_path / "out")
    assert isinstance(run(*arguments).exception, SystemExit)
    assert isinstance(run("--debug", *arguments).exception, edgepose.ModelError)
    assert isinstance(run(*arguments, env={"EDGEPOSE_DEBUG": "1"}).exception, edgepose.ModelError)


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).parent / "edgepose"
    if not command.exists():
        pytest.skip("the edgepose command is not beside this Python")
    assert (
        edgepose.__version__
        in subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    )
