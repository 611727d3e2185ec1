"""`edgepose quantize`, and `edgepose info` of what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from int8_models import PICTURES, centres, write_network, write_pictures
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.modelfile import ModelFile


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "network.onnx")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_it_prints_the_report_and_info_repeats_it(network: Path, pictures: Path) -> None:
    result = run("quantize", network, pictures)
    assert result.exit_code == 0, result.output
    info = run("info", network.with_name("network-int8.onnx"))
    assert info.exit_code == 0, info.output
    for words in (
        "6 crops of 6 pictures, drawn with seed 0",
        "1 in float32, 3 in int8",
        "18 landmarks of 6 crops (photos, 6 of 12, of which none calibrated)",
        "frame px      mean",
        "% of the box  mean",
        "mean with them",
    ):
        assert words in result.output
        assert words in info.output
    assert "int8, input as fp32" in info.output
    assert "on the labels" not in result.output


def test_labels(network: Path, pictures: Path, tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n:02d}.png", "width": 192, "height": 256} for n in range(PICTURES)]
    objects = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 191, 255], "num_keypoints": 3,
         "keypoints": [number for x, y in centres(n) for number in (float(x), float(y), 2)]}
        for n in range(PICTURES)
    ]  # fmt: skip
    labels = tmp_path / "labels.json"
    labels.write_text(
        json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "blobs"}]})
    )
    output = tmp_path / "out.onnx"
    result = run("quantize", network, pictures, "--labels", labels, "-o", output, "--seed", 5)
    assert result.exit_code == 0, result.output
    report = ModelFile.read(output).quantization
    assert report is not None
    assert (report.calibration.seed, report.pck["PCK@0.05 int8"]) == (5, 1.0)
    assert "PCK@0.05 float32 1.0000, PCK@0.05 int8 1.0000" in result.output
    assert "labelled pictures, 6 of 12" in result.output


def test_a_model_beyond_the_limits(tmp_path: Path, pictures: Path) -> None:
    network = write_network(tmp_path / "network.onnx", spread=3000.0)
    result = run("quantize", network, pictures)
    assert result.exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
    forced = run("quantize", network, pictures, "--force")
    assert forced.exit_code == 0, forced.output
    assert "kept with --force" in forced.output
