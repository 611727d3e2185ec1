"""Synthetic garments: exact landmarks, sane samples, reproducible."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.training.synthetic import (
    GARMENT_TYPES,
    GarmentSample,
    MovingGarment,
    load_outlines,
    render_garment,
)
from edgepose.training.synthetic.outlines import outline_template
from edgepose.training.synthetic.render import draw_scene, sample_scene, truth
from edgepose.training.synthetic.templates import sample_template
from edgepose.training.synthetic.warp import Warp, sample_waves

SHARED_OUTLINES = Path(__file__).resolve().parents[3] / "shared" / "data" / "artf_outlines"
LANDMARKS = {"upper": [0, 1, 2, 3, 6, 7], "lower": [4, 5, 6, 7], "full": list(range(8))}


def check(sample: GarmentSample, size: tuple[int, int]) -> None:
    w, h = size
    assert sample.image.shape == (h, w, 3)
    assert sample.image.dtype == np.uint8
    assert sample.keypoints.shape == (8, 2)
    assert sample.keypoints.dtype == sample.visible.dtype == sample.box.dtype == np.float32
    assert set(np.unique(sample.visible)) <= {0.0, 1.0}
    absent = sample.visible == 0
    assert (sample.keypoints[absent] == 0).all()
    assert set(np.flatnonzero(~absent)) <= set(LANDMARKS[sample.category])
    seen = sample.keypoints[~absent]
    assert (seen >= 0).all()
    assert (seen <= [w - 1, h - 1]).all()
    x0, y0, x1, y1 = sample.box
    assert 0 <= x0 < x1 <= w
    assert 0 <= y0 < y1 <= h


@pytest.mark.parametrize("garment_type", GARMENT_TYPES)
def test_every_garment_type_renders(garment_type: str) -> None:
    for seed in range(6):
        sample = render_garment(np.random.default_rng([seed, 1]), (150, 200), garment_type=garment_type)
        check(sample, (150, 200))
        assert sample.garment_type == garment_type
        assert sample.image.std() > 2  # something was drawn


def test_same_seed_same_sample_and_other_seed_another() -> None:
    first, again, other = (render_garment(np.random.default_rng(seed), (120, 160)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.keypoints, again.keypoints)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("garment_type", GARMENT_TYPES)
def test_landmarks_lie_on_the_garments_outline(garment_type: str) -> None:
    """Every landmark is on drawn cloth, to the pixel."""
    for seed in range(8):
        rng = np.random.default_rng([seed, 7])
        scene, warp = sample_scene(rng, (300, 400), template=sample_template(rng, garment_type))
        image, silhouette = draw_scene(scene, warp)
        sample = truth(scene, warp, image, silhouette)
        away = cv2.distanceTransform((silhouette < 128).astype(np.uint8), cv2.DIST_L2, 5)
        for k in np.flatnonzero(sample.visible):
            x, y = np.round(sample.keypoints[k]).astype(int)
            # Rounding to a pixel and anti-aliasing: worst seen over 60 seeds of each type 1.0 px.
            assert away[y, x] <= 1.5, (seed, int(k))


def test_left_landmarks_lie_left_in_upright_garments() -> None:
    """Left is the image's left: templates are upright, folded sleeves may cross."""
    for seed in range(120):
        template = sample_template(np.random.default_rng(seed))
        for left, right in ((0, 1), (4, 5), (6, 7)):
            if template.visible[left]:
                assert template.landmarks[left, 0] < template.landmarks[right, 0], (seed, left)


def test_the_picture_shows_at_a_landmark_what_the_cloth_has_there() -> None:
    """The map that cloth is drawn with, read at each landmark, gives the landmark's place on the garment."""
    for seed in range(20):
        rng = np.random.default_rng([seed, 3])
        scene, warp = sample_scene(rng, (300, 400))
        units = warp.inverse_map((300, 400))
        points = warp(scene.template.landmarks)
        for k in np.flatnonzero(scene.template.visible):
            x, y = np.round(points[k]).astype(int)
            if 20 < x < 280 and 20 < y < 380:
                # The inverse map is interpolated on a 16 px grid and the point is rounded to a pixel:
                # worst seen over 200 seeds 0.0055 units, where 0.01 is about 3 px.
                assert np.abs(units[y, x] - scene.template.landmarks[k]).max() < 0.01


def test_warp_and_inverse_map_agree() -> None:
    rng = np.random.default_rng(0)
    homography = np.array([[200.0, 12.0, 150.0], [-9.0, 210.0, 60.0], [0.02, 0.05, 1.0]])
    warp = Warp(*sample_waves(rng), homography)
    units = warp.inverse_map((320, 320))
    y, x = np.mgrid[40:280:7, 40:280:7]
    back = warp(units[y.ravel(), x.ravel()].astype(float))
    error = np.abs(back - np.stack([x.ravel(), y.ravel()], -1)).max()
    # Three fixed-point steps and linear interpolation between nodes 16 px apart; worst seen over 30 warps 0.29 px.
    assert error < 0.5


def test_bad_arguments_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="at least 32"):
        render_garment(rng, (300, 8))
    with pytest.raises(InputError, match="garment_type must be one of"):
        render_garment(rng, (64, 64), garment_type="sock")
    with pytest.raises(InputError, match="at least 1 frame"):
        MovingGarment(frames=0)
    with pytest.raises(InputError, match="no COCO file"):
        load_outlines("there-is-no-such-file.json")


def test_given_backgrounds_and_textures_are_used() -> None:
    red = np.zeros((90, 60, 3), np.uint8)
    red[..., 2] = 200
    plain = render_garment(np.random.default_rng(5), (120, 160))
    found = [render_garment(np.random.default_rng(s), (120, 160), backgrounds=[red], textures=[red]) for s in range(12)]
    for sample in found:
        check(sample, (120, 160))
    redness = [float((s.image[..., 2].astype(int) - s.image[..., 0]).mean()) for s in found]
    assert np.median(redness) > float((plain.image[..., 2].astype(int) - plain.image[..., 0]).mean())
    assert max(redness) > 60


def test_moving_garment_is_smooth_and_loops() -> None:
    clip = MovingGarment(seed=2, size=(240, 180), frames=40)
    samples = list(clip)
    assert len(samples) == len(clip) == 40
    for sample in samples:
        check(sample, (240, 180))
        assert sample.garment_type == samples[0].garment_type
    points = np.stack([s.keypoints for s in [*samples, clip.frame(40)]])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    # One frame of 40 turns, drifts and sways by far less than a jump would; worst seen 3.97 px.
    assert 0.05 < steps.max() < 6.0
    np.testing.assert_allclose(points[0], points[-1])
    np.testing.assert_array_equal(MovingGarment(seed=2, size=(240, 180), frames=40).frame(7).image, samples[7].image)


def tiny_coco(path: Path) -> Path:
    """A T-shirt that lies upside down, shorts, and a towel."""
    shirt = np.array(
        [-60, 20, -20, 0, 20, 0, 60, 20, 100, 60, 85, 80, 60, 60, 55, 200, -55, 200, -60, 60, -85, 80, -100, 60], float
    ).reshape(-1, 2)
    shorts = np.array([[-60, 0], [60, 0], [80, 130], [15, 140], [0, 70], [-15, 140], [-80, 130]], float)
    entries = []
    for category, points in ((1, 400 - shirt), (2, shorts + 300), (3, shorts + 300)):
        keys = np.column_stack([points, np.full(len(points), 2.0)])
        entries.append(
            {"category_id": category, "segmentation": [points.ravel().tolist()], "keypoints": keys.ravel().tolist()}
        )
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(("tshirt", "shorts", "towel"))]
    path.write_text(json.dumps({"categories": categories, "annotations": entries}))
    return path


def test_outlines_are_put_upright(tmp_path: Path) -> None:
    shirt, shorts = load_outlines(tiny_coco(tmp_path / "coco.json"))
    assert (shirt.garment_type, shorts.garment_type) == ("short_sleeved_shirt", "shorts")
    # The shirt's hem is 200 px below its collar: one garment unit. Its cuffs end at (±92.5, 70).
    # Arithmetic on exact integers: worst seen 1e-16.
    np.testing.assert_allclose(shirt.landmarks[2:4], [[-0.4625, 0.35], [0.4625, 0.35]], atol=1e-9)
    np.testing.assert_allclose(shirt.landmarks[6:], [[-0.275, 1], [0.275, 1]], atol=1e-9)
    np.testing.assert_allclose(shorts.landmarks[6:], np.array([[-47.5, 135], [47.5, 135]]) / 135, atol=1e-9)
    for outline in (shirt, shorts):
        template = outline_template(np.random.default_rng(1), [outline], outline.garment_type)
        assert template.garment_type == outline.garment_type
        sample = render_garment(np.random.default_rng(1), (120, 160), outlines=[outline])
        check(sample, (120, 160))


def test_a_file_without_garments_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text('{"categories": [], "annotations": []}')
    with pytest.raises(InputError, match="expected categories 'tshirt' and 'shorts'"):
        load_outlines(empty)


def test_real_outlines_load_and_render() -> None:
    if not SHARED_OUTLINES.is_dir():
        pytest.skip(f"needs the aRTF outlines at {SHARED_OUTLINES}")
    outlines = load_outlines(SHARED_OUTLINES)
    assert len(outlines) > 500
    assert {o.garment_type for o in outlines} == {"short_sleeved_shirt", "shorts"}
    for seed in range(10):
        kind = "shorts" if seed % 2 else "short_sleeved_shirt"
        template = outline_template(np.random.default_rng(seed), outlines, kind)
        assert template.landmarks[6, 0] < template.landmarks[7, 0]
        check(render_garment(np.random.default_rng(seed), (120, 160), outlines=outlines), (120, 160))


def test_the_contact_sheet_command(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "edgepose.training.synthetic", "--count", "3", "--columns", "2", "-o", str(sheet)]
    subprocess.run([*command, "--size", "60", "80"], check=True, timeout=120)
    assert cv2.imread(str(sheet)).shape == (160, 120, 3)


def test_needs_neither_torch_nor_scipy() -> None:
    code = "import sys, edgepose.training.synthetic; print({'torch', 'scipy', 'onnxruntime'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert answer.stdout.strip() == "set()"
