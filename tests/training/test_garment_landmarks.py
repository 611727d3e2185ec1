"""The bundled models' training: recipes, data, a tiny run; and what holds garments up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.errors import InputError, ModelError
from edgepose.training.coco import load_coco
from edgepose.training.garment_landmarks import GARMENT_RECIPES, Stage, _repeated, train_garment_landmarks
from edgepose.training.garments import GARMENT_NAMES, garment_spec
from edgepose.training.holders import draw_holders
from edgepose.training.schedule import Execution, Schedule
from edgepose.training.synthesize import synthesize

STAGE = Stage(
    input_size=(64, 64),
    schedule=Schedule(epochs=1, batch_size=4, warmup_steps=1, evaluate_every=1),
    repeats={"trousers": 3, "full": 2},
)
EXECUTION = Execution(device="cpu", workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.json, val.json and pseudo.json of rendered garments."""
    folder = tmp_path_factory.mktemp("garments")
    list(synthesize(folder, 10, seed=3, size=(120, 160), workers=1))
    for name in ("train", "val", "pseudo"):
        shutil.copy(folder / "synthetic.json", folder / f"{name}.json")
    return folder


def test_a_run_from_photos_to_a_network(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    network, spec = train_garment_landmarks(
        "garment-landmarks-fast", data, tmp_path, stages=[STAGE], execution=EXECUTION, log=lines.append
    )
    assert spec.name == "garment-landmarks-fast"
    assert spec.mean == (127.0, 127.0, 127.0)  # as the ImageNet weights want it
    assert "10 hand-labelled photos, 10 pseudo-labelled ones" in spec.training["data"]
    assert spec.training["backbone"] == "random weights"
    assert set(spec.metrics) >= {"PCK@0.2", "PCK@0.05", "AUC"}
    best = torch.load(tmp_path / "1" / "best.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in network.state_dict().items())


def test_wrong_requests_are_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no garment model: expected one of garment-landmarks, garment-landmarks-fast"):
        train_garment_landmarks("garment", data, tmp_path)
    with pytest.raises(InputError, match="at least one Stage"):
        train_garment_landmarks("garment-landmarks", data, tmp_path, stages=[])
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="not those of this EfficientNet-Lite"):
        train_garment_landmarks(
            "garment-landmarks", data, tmp_path, stages=[STAGE], init=tmp_path / "weights.pth", execution=EXECUTION
        )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        train_garment_landmarks("garment-landmarks", data, tmp_path)


def test_rare_garments_come_more_often(data: Path) -> None:
    annotations = load_coco(data / "train.json", 8)
    types = {annotations[0].image.name: "trousers"}
    repeated = _repeated(annotations, STAGE.repeats, types)
    names = [annotation.image.name for annotation in repeated]
    assert names.count(annotations[0].image.name) == 3  # the type goes before the category
    for annotation in annotations[1:]:
        assert names.count(annotation.image.name) == (2 if annotation.category == "full" else 1)


def test_the_bundled_names_are_the_recipes() -> None:
    assert tuple(GARMENT_RECIPES) == GARMENT_NAMES
    types = json.loads(
        (Path(__file__).parents[2] / "training/annotations/garments_cc0/train.json").read_text(encoding="utf-8")
    )["annotations"]
    known = {record["garment_type"] for record in types} | {"upper", "lower", "full"}
    for recipe in GARMENT_RECIPES.values():
        for stage in recipe.stages:
            assert stage.input_size[0] % 32 == 0
            assert stage.input_size[1] % 32 == 0
            assert set(stage.repeats) | set(stage.repeats_pseudo) <= known  # a misspelt type would repeat nothing


POINTS = np.float32([[40, 30], [60, 30], [20, 60], [80, 60], [35, 70], [65, 70], [35, 110], [65, 110]])


@pytest.mark.parametrize("seen", [(0, 1, 2, 3, 6, 7), (4, 5, 6, 7)])
def test_holders_are_drawn_where_garments_hang(seen: tuple[int, ...]) -> None:
    """Over the collar or the waistline, never over the hem; upright garments are held from above."""
    visible = np.zeros(8, np.float32)
    visible[list(seen)] = 1
    changed = np.zeros((128, 100), bool)
    for seed in range(40):
        crop = np.full((128, 100, 3), 7, np.uint8)
        draw_holders(crop, POINTS, visible, np.random.default_rng(seed))
        changed |= (crop != 7).any(axis=2)
    top = POINTS[seen[0], 1]
    assert changed[: int(top)].any()
    assert not changed[int(top) + 15 :].any()  # a tip reaches 0.24 of the collar width (20 px), and is as thick


def test_nothing_is_drawn_where_nothing_hangs() -> None:
    crop = np.full((64, 64, 3), 7, np.uint8)
    draw_holders(crop, POINTS, np.zeros(8, np.float32), np.random.default_rng(0))
    draw_holders(crop, np.zeros_like(POINTS), np.ones(8, np.float32), np.random.default_rng(0))
    assert (crop == 7).all()


def test_the_spec_is_the_runtimes() -> None:
    spec = garment_spec((128, 160), name="garment-landmarks-fast")
    assert spec.heatmap_size == (32, 40)
    assert spec.num_keypoints == 8
