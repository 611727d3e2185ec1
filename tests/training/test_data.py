"""Data sets, augmentation and the synthetic data set on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.geometry import crop_affines, transform_points
from edgepose.kernels.reference import crop_warp, decode_heatmaps

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.training.batches import Batches
from edgepose.training.coco import load_coco, read_frame
from edgepose.training.dataset import LandmarkDataset, collate
from edgepose.training.fashion import DEEPFASHION2
from edgepose.training.garments import ABSENT, garment_spec
from edgepose.training.mmpose_transforms import MMPoseAugmentation
from edgepose.training.synthesize import synthesize
from edgepose.training.transforms import Augmentation, augmented_crop

SPEC = garment_spec((192, 256))
STILL = {"flip": 0.0, "rotation": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "shear": 0.0, "elastic": 0.0}
CLEAN = {name: 0.0 for name in ("color", "gray", "invert_light", "blur", "noise", "jpeg", "shadow", "erase", "border")}


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 12 rendered garments; the path of its annotation file."""
    folder = tmp_path_factory.mktemp("garments")
    assert list(synthesize(folder, 12, seed=3, workers=1)) == list(range(1, 13))
    return folder / "synthetic.json"


def dots(points: np.ndarray, size: tuple[int, int] = (400, 500)) -> np.ndarray:
    """A black (H, W, 3) frame with a soft bright dot at each point."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    blobs = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in points]
    return np.repeat(np.max(blobs, 0)[..., None] * 255, 3, -1).astype(np.uint8)


def centre_of_mass(crop: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Where the dot next to ``near`` is in a crop."""
    grey = crop[..., 0].astype(float)
    x, y = np.meshgrid(np.arange(crop.shape[1]), np.arange(crop.shape[0]))
    grey = grey * (np.hypot(x - near[0], y - near[1]) < 9)
    return np.array([(grey * x).sum(), (grey * y).sum()]) / grey.sum()


def test_synthetic_data_set_reads_back(garments: Path) -> None:
    annotations = load_coco(garments, 8)
    assert len(annotations) == 12
    for annotation in annotations:
        expected = {"upper": 6, "lower": 4, "full": 8}[annotation.category]
        assert annotation.visible.sum() <= expected
        assert annotation.visible.sum() >= 2
        seen = annotation.keypoints[annotation.visible > 0]
        assert (seen >= -0.5).all()
        assert (seen <= (299.5, 399.5)).all()


def test_the_same_seed_gives_the_same_data_set(garments: Path, tmp_path: Path) -> None:
    list(synthesize(tmp_path, 12, seed=3, workers=2))
    assert (tmp_path / "synthetic.json").read_text() == garments.read_text()
    assert (tmp_path / "images/000005.jpg").read_bytes() == (garments.parent / "images/000005.jpg").read_bytes()


def test_without_augmentation_a_sample_is_the_runtimes_crop_and_its_target_decodes_to_the_label(garments: Path) -> None:
    annotations = load_coco(garments, 8)
    sample = LandmarkDataset(annotations, SPEC, absent=ABSENT)[4]
    _, heatmaps, weights = Batches(SPEC, "cpu")(collate([sample]))
    crop, heatmaps, weights = sample.crop, heatmaps[0], weights[0]
    annotation = annotations[4]
    affine = crop_affines(annotation.box[None], SPEC.input_size, SPEC.codec)
    frame = cv2.imread(str(annotation.image))
    np.testing.assert_array_equal(crop.numpy(), crop_warp(frame, affine, SPEC.input_size, sampling=SPEC.sampling)[0])
    locations, scores = decode_heatmaps(heatmaps.numpy()[None], refinement="dark_udp")
    truth = transform_points(annotation.keypoints[None], affine)[0] * ((48 - 1) / (192 - 1), (64 - 1) / (256 - 1))
    seen = annotation.visible > 0
    # A tenth of a cell is 0.2 % of the crop; worst seen 0.03: the blur of the decoder meets the target's cut-off tails
    np.testing.assert_allclose(locations[0][seen], truth[seen], atol=0.1)
    assert (scores[0][seen] > 0.8).all()
    assert set(np.flatnonzero(weights.numpy() == 0.5)) == set(ABSENT.get(annotation.category, ()))


@pytest.mark.parametrize("seed", range(8))
def test_augmented_points_follow_the_picture(seed: int) -> None:
    points = np.array([[150, 150], [250, 150], [150, 250], [250, 250], [150, 350], [250, 350], [200, 200], [200, 300]])
    frame = dots(points)
    affine = crop_affines([[100, 100, 300, 400]], SPEC.input_size, SPEC.codec)[0]
    augmentation = Augmentation(**{**CLEAN, "elastic": 1.0, "flip": 0.5})
    rng = np.random.default_rng(seed)
    crop, moved, visible = augmented_crop(frame, affine, points.astype(np.float32), np.ones(8), SPEC, augmentation, rng)
    inside = ((moved > 10) & (moved < np.array(SPEC.input_size) - 10)).all(1)
    assert inside.sum() >= 3
    for point in moved[inside]:
        # Half a pixel of 192: the warp stretches a dot unevenly, which moves its centre of mass; worst seen 0.4 px
        np.testing.assert_allclose(centre_of_mass(crop, point), point, atol=0.5)
    assert visible.sum() == 8


def test_a_flip_swaps_left_and_right() -> None:
    points = np.random.default_rng(0).uniform(120, 380, (8, 2)).astype(np.float32)
    visible = np.array([1, 0, 1, 1, 1, 1, 1, 1], np.float32)
    affine = crop_affines([[100, 100, 300, 400]], SPEC.input_size, SPEC.codec)[0]
    frame = np.zeros((500, 400, 3), np.uint8)
    kept = Augmentation(**{**CLEAN, **STILL, "black_outside": 1.0})
    flipped = Augmentation(**{**CLEAN, **STILL, "black_outside": 1.0, "flip": 1.0})

    class NoJitter(np.random.Generator):
        """Draws zeros where a normal number is asked for, so that only the flip acts."""

        def normal(self, loc: float = 0.0, scale: float = 1.0, size: object = None) -> float:
            return loc

    rng = NoJitter(np.random.PCG64(0))
    _, straight, seen = augmented_crop(frame, affine, points, visible, SPEC, kept, rng)
    _, mirrored, seen_mirrored = augmented_crop(frame, affine, points, visible, SPEC, flipped, rng)
    order = list(SPEC.flip_indices)
    np.testing.assert_allclose(mirrored[:, 0], 191 - straight[order, 0], atol=1e-3)  # float32 rounding; seen 3e-5
    np.testing.assert_allclose(mirrored[:, 1], straight[order, 1], atol=1e-3)
    np.testing.assert_array_equal(seen_mirrored, seen[order])


def test_a_sample_is_repeatable_and_epochs_differ(garments: Path) -> None:
    dataset = LandmarkDataset(load_coco(garments, 8), SPEC, augmentation=Augmentation(), seed=5)
    first, again, later = dataset[2, 7], dataset[2, 7], dataset[3, 7]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == later[0]).all()


def test_a_category_fills_its_own_channels_of_the_unified_model(garments: Path) -> None:
    """A vest's 15 keypoints go to channels 128 to 142 of 294, mirrored among themselves; no other is labelled."""
    vest = DEEPFASHION2["vest"]
    begin, end = vest.channels
    flips = [s.channels[0] + i for s in DEEPFASHION2.values() for i in s.flip_indices]
    unified = replace(
        SPEC,
        keypoint_names=tuple(f"{i}" for i in range(294)),
        flip_indices=tuple(flips),
        skeleton=(),
        colors=(),
        categories={name: s.channels for name, s in DEEPFASHION2.items()},
    )
    (plain, *_) = load_coco(garments, 8)
    points = np.random.default_rng(0).uniform(20, 250, (15, 2)).astype(np.float32)
    visible = np.float32([1, 0, 1] * 5)
    annotation = replace(plain, keypoints=points, visible=visible, category="vest", first_channel=begin)
    still = {"shift_probability": 0, "scale_probability": 0, "rotation_probability": 0}
    for flip in (0, 1):
        sample = LandmarkDataset([annotation], unified, augmentation=MMPoseAugmentation(flip=flip, **still))[0]
        order = list(vest.flip_indices) if flip else list(range(15))
        assert sample.keypoints.shape == (294, 2)
        assert sample.visible[begin:end].tolist() == visible[order].tolist()
        assert int(sample.visible.sum()) == int(visible.sum())
        alone = replace(
            SPEC, keypoint_names=vest.keypoint_names, flip_indices=vest.flip_indices, skeleton=(), colors=()
        )
        own = replace(annotation, first_channel=0)
        expected = LandmarkDataset([own], alone, augmentation=MMPoseAugmentation(flip=flip, **still))[0]
        assert torch.equal(sample.keypoints[begin:end], expected.keypoints)
        assert torch.equal(sample.crop, expected.crop)
    _, heatmaps, weights = Batches(unified, "cpu")(collate([sample]))
    assert not weights[0, :begin].any()
    assert not weights[0, end:].any()
    assert heatmaps[0].amax((1, 2)).gt(0).sum() == weights.gt(0).sum() == visible.sum()


@pytest.mark.parametrize(
    ("change", "absent", "message"),
    [
        ({"first_channel": 1}, {}, "its 8 keypoints, from channel 1 on, do not fit the 8 channels"),
        ({"keypoints": np.zeros((6, 2), np.float32), "visible": np.ones(6, np.float32)}, {}, "its 6 keypoints"),
        ({"visible": np.ones(8, np.float32)}, {"upper": (4, 5)}, "labelled that 'upper' never has"),
        ({}, {"upper": (4,)}, "mirror landmark"),
        ({}, {"upper": (7, 8)}, r"within 0\.\.7"),
    ],
)
def test_annotations_that_do_not_fit_the_spec_are_refused(garments, change, absent, message: str) -> None:
    (annotation, *_) = load_coco(garments, 8)
    annotation = replace(annotation, **{"category": "upper", "visible": np.zeros(8, np.float32), **change})
    with pytest.raises(InputError, match=message):
        LandmarkDataset([annotation], SPEC, absent=absent)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("categories"), "expected the COCO keys"),
        (lambda d: d["annotations"][1].pop("image_id"), r"annotation 2: keys \['image_id'\] are missing"),
        (lambda d: d["annotations"][1].update(image_id=99), "annotation 2: its image_id or category_id"),
        (lambda d: d["annotations"][1].update(keypoints=[1, 2, 2]), "annotation 2: expected 8 keypoints"),
        (lambda d: d["annotations"][1]["keypoints"].__setitem__(2, 3), "annotation 2: a keypoint's third number"),
        (
            lambda d: d["images"][1].update(file_name="gone.jpg"),
            r"annotation 2: image not found; .*gone\.jpg",
        ),
    ],
)
def test_a_broken_annotation_file_is_named(garments: Path, damage: object, message: str) -> None:
    data = json.loads(garments.read_text())
    damage(data)
    broken = garments.parent / "broken.json"
    broken.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        load_coco(broken, 8)


def test_an_unreadable_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json"):
        load_coco(tmp_path / "none.json", 8)


def test_synthesize_refuses_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        list(synthesize(tmp_path / "out", 2, photos=tmp_path))
    with pytest.raises(InputError, match="count"):
        list(synthesize(tmp_path / "out", 0))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["images"][1].pop("width"),
        lambda d: d["annotations"][1].update(bbox=None),
        lambda d: d["annotations"][1].update(bbox=[1, 2, 3]),
        lambda d: d["annotations"][1].update(keypoints=["left"] * 24),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_record(garments: Path, damage: object) -> None:
    data = json.loads(garments.read_text())
    damage(data)
    broken = garments.parent / "broken.json"
    broken.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"broken\.json: annotation 2: a value is missing or of the wrong kind"):
        load_coco(broken, 8)


def test_a_picture_of_another_size_than_its_labels_is_refused(garments: Path) -> None:
    data = json.loads(garments.read_text())
    for image in data["images"]:
        image["width"], image["height"] = image["height"], image["width"]  # as if turned by EXIF
    turned = garments.parent / "turned.json"
    turned.write_text(json.dumps(data))
    (annotation, *_) = load_coco(turned, 8)
    with pytest.raises(InputError, match="300x400 px, its annotation says 400x300"):
        read_frame(annotation)


def test_synthesize_finds_out_about_missing_inputs_before_it_renders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        list(synthesize(tmp_path / "out", 2, photos=tmp_path / "none"))
    with pytest.raises(InputError, match=r"none\.json"):
        list(synthesize(tmp_path / "out", 2, outlines=tmp_path / "none.json"))
