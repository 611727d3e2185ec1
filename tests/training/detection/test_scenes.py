"""Composed scenes: repeatable, and with boxes around what is seen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.errors import InputError
from edgepose.training.detection import garments
from edgepose.training.detection.dataset import MOST_OBJECTS, SceneDataset, chances_of
from edgepose.training.detection.figures import outfit
from edgepose.training.detection.garments import (
    GARMENT_TYPES,
    Garment,
    Stock,
    label_of,
    load_garments,
    make_stock,
    silhouette,
)
from edgepose.training.detection.scenes import Scene, SceneMix, compose
from edgepose.training.synthesize import synthesize
from edgepose.training.transforms import Augmentation

PLAIN = Augmentation(
    color=0.0, invert_light=0.0, gray=0.0, low_contrast=0.0, far=0.0, blur=0.0, noise=0.0, jpeg=0.0, shadow=0.0
)
ONLY = {name: 0.0 for name in ("photo", "mosaic", "laid", "worn", "empty")}
RED = np.array([0, 0, 255])


def red_garment(label: int, *, cut: bool = True) -> Garment:
    """A red ellipse, 60 x 100 px, in a green photo of 120 x 160 px."""
    image = np.full((160, 120, 3), (0, 120, 0), np.uint8)
    mask = np.zeros((160, 120), np.uint8)
    cv2.ellipse(mask, (60, 80), (30, 50), 0, 0, 360, 255, -1)
    image[mask > 0] = RED
    x, y, w, h = cv2.boundingRect(mask)
    keypoints = np.float32([[45, 40], [75, 40], [30, 80], [90, 80], [40, 60], [80, 60], [45, 120], [75, 120]])
    box = np.float32([x, y, x + w, y + h])
    return Garment(image, mask if cut else None, box, keypoints, np.ones(8, np.float32), label)


@pytest.fixture(scope="module")
def stock() -> Stock:
    floors = [np.full((64, 64, 3), (90, 90, 60), np.uint8)]
    return Stock([red_garment(0), red_garment(8)], [red_garment(9)], floors, floors)


def scenes(stock: Stock, count: int, *, size: int = 128, rotation: float = 0.0, **kinds: float) -> list[Scene]:
    mix = SceneMix(**{**ONLY, **kinds}, light=PLAIN, rotation=rotation)
    chances = chances_of(stock, 0.0)
    return [compose(stock, size, mix, chances, np.random.default_rng((7, seed))) for seed in range(count)]


def red_extent(image: np.ndarray) -> np.ndarray | None:
    red = (image[..., 2] > 200) & (image[..., 1] < 60) & (image[..., 0] < 60)
    if red.sum() < 30:
        return None
    x, y, w, h = cv2.boundingRect(red.view(np.uint8))
    return np.array([x, y, x + w, y + h])


@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_boxes_of_moved_photos_are_those_of_what_is_seen(stock: Stock, rotation: float) -> None:
    compared = 0
    for scene in scenes(stock, 60, photo=1.0, rotation=rotation):
        extent = red_extent(scene.image)
        if len(scene.boxes) == 1 and extent is not None:
            compared += 1
            # A rim of half-covered pixels is not red enough to be counted, and occluders at a border may hide some:
            # most scenes are within 2.5 px (worst of those without occluders seen: 2.2), a few are not.
            if np.abs(scene.boxes[0] - extent).max() > 2.5:
                compared -= 1
    assert compared >= 45


def test_boxes_of_cut_outs_are_exact(stock: Stock) -> None:
    found = 0
    for scene in scenes(stock, 80, laid=1.0, rotation=20.0):
        extent = red_extent(scene.image)
        if len(scene.boxes) and extent is not None:
            around = np.concatenate([scene.boxes[:, :2].min(0), scene.boxes[:, 2:].max(0)])
            found += np.abs(around - extent).max() <= 2.5  # worst without things drawn over it: 2
    assert found >= 55


def test_boxes_lie_within_the_picture_and_have_an_area(stock: Stock) -> None:
    for scene in scenes(stock, 80, photo=1.0, mosaic=1.0, laid=1.0, worn=1.0, empty=1.0, rotation=20.0):
        assert scene.image.shape == (128, 128, 3)
        assert scene.image.dtype == np.uint8
        assert len(scene.boxes) == len(scene.labels) <= MOST_OBJECTS
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= 128).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        assert set(scene.labels.tolist()) <= {0, 8, 9}


def test_empty_scenes_hold_nothing(stock: Stock) -> None:
    made = scenes(stock, 40, empty=1.0)
    assert all(len(scene.boxes) == 0 for scene in made)
    # What lies about has any colour, red too (seen: once); a garment would be red each time
    assert sum(red_extent(scene.image) is not None for scene in made) <= 3


def test_mosaics_hold_several(stock: Stock) -> None:
    counts = [len(scene.boxes) for scene in scenes(stock, 30, mosaic=1.0)]
    assert max(counts) == 4
    assert np.mean(counts) > 1.8


def test_a_mirrored_photo_mirrors_its_box(stock: Stock) -> None:
    """Placed by one map: a red spot at the garment's left stays at its left or goes to its right, never out of it."""
    spotted = red_garment(0)
    spotted.image[78:84, 32:38] = (255, 0, 0)
    for scene in scenes(Stock([spotted], [], stock.floors, stock.tiles), 30, photo=1.0):
        blue = (scene.image[..., 0] > 200) & (scene.image[..., 2] < 60)
        if blue.any() and len(scene.boxes):
            y, x = (axis.mean() for axis in np.nonzero(blue))
            left, top, right, bottom = scene.boxes[0]
            assert left - 2 <= x <= right + 2
            assert top - 2 <= y <= bottom + 2


def test_the_same_key_makes_the_same_scene(stock: Stock) -> None:
    def dataset(seed: int) -> SceneDataset:
        return SceneDataset(stock, 96, SceneMix(), batch_size=4, steps=3, balance=0.5, seed=seed)

    first, again, other = dataset(0)[2], dataset(0)[2], dataset(1)[2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (4, 3, 96, 96)
    assert first.valid.sum() == (first.boxes[..., 2] > 0).sum()


def test_processes_divide_a_batch(stock: Stock) -> None:
    def images(rank: int, processes: int) -> torch.Tensor:
        dataset = SceneDataset(
            stock, 64, SceneMix(), batch_size=4, steps=1, balance=0.0, seed=0, rank=rank, processes=processes
        )
        return dataset[0].images

    whole = images(0, 1)
    assert torch.equal(images(0, 2), whole[0::2])
    assert torch.equal(images(1, 2), whole[1::2])


def test_rare_types_come_more_often() -> None:
    photos = [red_garment(0)] * 9 + [red_garment(1)]
    assert chances_of(Stock(photos), 0.0)[-1] == pytest.approx(0.1)
    assert chances_of(Stock(photos), 1.0)[-1] == pytest.approx(0.5)
    assert chances_of(Stock(photos), 0.5)[-1] == pytest.approx(0.25)  # 1 to 9 / 3


def test_worn_garments_hang_from_the_body() -> None:
    shirt, trousers = red_garment(0), red_garment(GARMENT_TYPES.index("trousers"))
    for seed in range(20):
        items = outfit([trousers, shirt], 200, 100.0, 1.0, np.random.default_rng(seed))
        drawn = [item for item in items if item.garment is not None]
        spots = {}
        for item in drawn:
            name = GARMENT_TYPES[item.garment.label]
            spots[name] = item.garment.keypoints @ item.matrix[:, :2].T + item.matrix[:, 2]
        top = spots["short_sleeved_shirt"]
        assert top[[0, 1], 1].mean() < top[[6, 7], 1].mean()  # collars above the hem
        if "trousers" in spots:
            gap = spots["trousers"][[4, 5]].mean(0) - top[[6, 7]].mean(0)
            length = np.linalg.norm(top[[6, 7]].mean(0) - top[[0, 1]].mean(0))
            assert np.linalg.norm(gap) <= 0.21 * length  # the waist lies a little above the shirt's hem
    assert outfit([trousers], 200, 100.0, 1.0, np.random.default_rng(0)) == []


def test_a_silhouette_is_found_or_refused() -> None:
    garment = red_garment(0, cut=False)
    rng = np.random.default_rng(0)
    noisy = np.clip(garment.image + rng.normal(0, 12, garment.image.shape), 0, 255).astype(np.uint8)
    found = silhouette(replace(garment, image=noisy))
    truth = red_garment(0).mask > 0
    assert found is not None
    shared = ((found > 127) & truth).sum() / ((found > 127) | truth).sum()
    assert shared > 0.93  # the rim is left out on purpose; seen: 0.96
    whole = replace(garment, box=np.float32([0, 0, 120, 160]))
    assert silhouette(whole) is None  # nothing is left to learn the background from


def test_labels_name_types_or_groups() -> None:
    assert label_of("lower", "shorts") == GARMENT_TYPES.index("shorts")
    assert [label_of(category, None) for category in ("upper", "lower", "full")] == [-1, -2, -3]
    with pytest.raises(InputError, match="'shorts' is not one of an 'upper' garment"):
        label_of("upper", "shorts")
    assert len(GARMENT_TYPES) == 13


def test_a_stock_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garments, "FLOORS", 2)
    monkeypatch.setattr(garments, "TILES", 2)
    list(synthesize(tmp_path, 4, seed=1, size=(120, 160), workers=1))
    annotations, labels = load_garments(tmp_path / "synthetic.json")
    stock = make_stock(annotations, labels, renders=13, workers=1)
    assert [photo.label for photo in stock.photos] == labels
    assert sorted(render.label for render in stock.renders) == list(range(13))
    for render in stock.renders:
        assert render.mask.shape == render.image.shape[:2]
        assert render.box.tolist() == [0, 0, render.image.shape[1], render.image.shape[0]]
    content = json.loads((tmp_path / "synthetic.json").read_text())
    content["annotations"][0]["garment_type"] = "hat"
    shutil.copytree(tmp_path / "images", tmp_path / "other" / "images")
    (tmp_path / "other" / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="'hat' is not one of"):
        load_garments(tmp_path / "other" / "wrong.json")
