"""Which names and files are models, and what the others are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepose import EngineError, ModelError, ModelSpec, Predictor, bundled_models
from edgepose.modelfile import ModelFile
from edgepose.models import find_model


def test_bundled_models_carry_complete_specs() -> None:
    if not bundled_models():
        pytest.skip("no model is in edgepose/models")
    for name, path in bundled_models().items():
        assert find_model(name) == path
        spec = ModelFile.read(path).spec
        assert isinstance(spec, ModelSpec)
        assert spec.name == name
        assert spec.license
        assert spec.metrics
        assert path.stat().st_size <= 12e6  # what the repository can carry


def test_a_file_wins_over_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mymodel").write_bytes(b"x")
    assert find_model("mymodel") == Path("mymodel")


def test_a_folder_does_not_hide_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgepose.models.bundled_models", lambda: {"garment-landmarks": Path("bundled.onnx")})
    Path("garment-landmarks").mkdir()
    assert find_model("garment-landmarks") == Path("bundled.onnx")


def test_unknown_name_lists_the_bundled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepose.models.bundled_models", lambda: {"garment-landmarks": Path("x")})
    with pytest.raises(ModelError, match=r"Did you mean 'garment-landmarks'.*Bundled: garment-landmarks"):
        Predictor("garment-landmark")


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("missing.onnx", None, ModelError, "no model file"),
        ("empty.onnx", b"", ModelError, "empty"),
        ("corrupt.onnx", b"\x08\x07not a model", ModelError, "does not load"),
        ("text.onnx", b"hello", ModelError, "does not load"),
        ("pointer.onnx", b"version https://git-lfs.github.com/spec/v1\n", ModelError, "git lfs pull"),
        ("model.engine", b"x", EngineError, "no sidecar model.engine.json"),
        ("missing.engine", None, ModelError, "edgepose build"),
        ("best.pth", b"x", ModelError, "edgepose export"),
    ],
)
def test_unusable_model_files(tmp_path: Path, name: str, content: bytes | None, kind: type, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=message):
        Predictor(path)


def test_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        Predictor(tmp_path)
