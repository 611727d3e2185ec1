"""Checkpoints: the forms that load, and what is said about those that don't."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepose.errors import ModelError
from edgepose.training import recipes

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'edgepose[train]'")
from edgepose.training import models
from edgepose.training.checkpoint import describe_checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return models.create("resnet18_w40", 8).state_dict()


def load(path: Path, content: object, num_keypoints: int = 8) -> torch.nn.Module:
    torch.save(content, path)
    network = models.create("resnet18_w40", num_keypoints)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        load_checkpoint(network, path)
    except ModelError:
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        raise
    return network


@pytest.mark.parametrize(
    "form", ["plain", "nested", "mmpose 0.x", "data parallel", "no counters", "preprocessor", "numpy"]
)
def test_checkpoints_load(tmp_path: Path, state: dict[str, torch.Tensor], form: str) -> None:
    content: object = dict(state)
    if form == "nested":
        content = {"state_dict": dict(state), "meta": {"epoch": 3}}
    elif form == "mmpose 0.x":
        content = {"state_dict": {k.replace("head.", "keypoint_head."): v for k, v in state.items()}}
    elif form == "data parallel":
        content = {f"module.{k}": v for k, v in state.items()}
    elif form == "no counters":
        content = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    elif form == "preprocessor":
        content = {**state, "data_preprocessor.mean": torch.zeros(3, 1, 1), "data_preprocessor.std": torch.ones(3)}
    elif form == "numpy":  # MMPose 1.x keeps the data set's facts beside the weights
        facts = {"sigmas": np.zeros(4), "flip_indices": np.arange(4), "name": np.array(["left"])}
        meta = {"dataset_meta": facts, "seed": np.int64(3), "lr": np.float32(0.1)}
        content = {"state_dict": dict(state), "meta": meta}
    network = load(tmp_path / "w.pth", content)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_checkpoints_that_do_not_fit_say_where(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(ModelError, match=r"It has 8 keypoints, the model 6"):
        load(path, state, num_keypoints=6)
    with pytest.raises(ModelError, match=r"1 not in the checkpoint \(backbone\.conv1\.weight\)"):
        load(path, {k: v for k, v in state.items() if k != "backbone.conv1.weight"})
    with pytest.raises(ModelError, match=r"1 not in the model \(extra\)"):
        load(path, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"another architecture"):
        load(path, models.create("resnet18", 8).state_dict())
    with pytest.raises(ModelError, match=r"no heatmap head"):
        load(path, {k: v for k, v in state.items() if k.startswith("backbone.")})
    with pytest.raises(ModelError, match=r"1 with NaN or infinity \(backbone\.bn1\.bias\)"):
        load(path, {**state, "backbone.bn1.bias": torch.full((40,), torch.nan)})


def test_unreadable_checkpoints_say_why(tmp_path: Path) -> None:
    network = models.create("resnet18_w40", 8)
    with pytest.raises(ModelError, match="cannot be read"):
        load_checkpoint(network, tmp_path / "missing.pth")
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 cut off"):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.pth"):
            load_checkpoint(network, tmp_path / "broken.pth")
    for other in ([torch.zeros(1)], {"state_dict": {}}, {"epoch": 3}):
        with pytest.raises(ModelError, match="no state dict"):
            load(tmp_path / "other.pth", other)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (marker,)  # type: ignore[return-value]

    with pytest.raises(ModelError, match=r"would run the file's code"):
        load(tmp_path / "attack.pth", {"state_dict": Attack()})
    assert not marker.exists()


def test_published_figures_need_the_published_file(tmp_path: Path) -> None:
    recipe = recipes.RECIPES["deepfashion/full/resnet50"]
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    facts = describe_checkpoint(recipe, path)
    assert "metrics" not in facts
    assert facts["training"]["checkpoint_sha256"] == digest
    published = replace(recipe, checkpoint_url=f"https://example.org/res50_full_256x192-{digest[:8]}_20210124.pth")
    assert describe_checkpoint(published, path)["metrics"] == recipe.metrics
