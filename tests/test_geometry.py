"""Boxes to crops and back: MMPose 1.3.2's recorded matrices and points, round trips, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from painter import painter_spec

from edgepose import geometry
from edgepose.errors import InputError
from edgepose.geometry import crop_affines, heatmap_to_crop, invert_affines, transform_points, validate_boxes

DATA = Path(__file__).parent / "data" / "reference"
VECTORS = np.load(DATA / "affine.npz")
BOXES = json.loads((DATA / "affine.json").read_text())["boxes"]
SIZE = (192, 256)


@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("box", BOXES, ids=lambda box: box["id"])
def test_matches_mmpose(box, codec):
    key = f"{box['id']}_{'std' if codec == 'msra' else 'udp'}"
    affines = crop_affines([box["bbox_xyxy"]], SIZE, codec, rotation=box["rotation"])
    # msra: the same three points, another float64 solver (worst seen 2.3e-13). udp: a rotated matrix may differ by one
    # float32 unit in the translation (3.6e-6 seen); without rotation it is exact.
    np.testing.assert_allclose(affines[0], VECTORS[f"{key}_warp_mat"], atol=1e-11 if codec == "msra" else 2e-5, rtol=0)
    # Recorded in float32; 6.2e-5 px seen where a small box magnifies coordinates of 1200 crop px.
    expected = VECTORS[f"{key}_transformed_keypoints"]
    np.testing.assert_allclose(transform_points(VECTORS[f"{key}_keypoints"], affines), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("box", [box for box in BOXES if not box["rotation"]], ids=lambda box: box["id"])
def test_maps_back_to_mmposes_image_points(box, codec):
    """MMPose's points in 'input space' are cells times input/heatmap for both codecs: start from the cells."""
    key = f"{box['id']}_{'std' if codec == 'msra' else 'udp'}"
    cells = VECTORS[f"{key}_pred_input_space"] / np.array(SIZE) * (np.array((48, 64)) - (codec == "udp"))
    inverses = invert_affines(crop_affines([box["bbox_xyxy"]], SIZE, codec))
    points = transform_points(heatmap_to_crop(cells, codec, SIZE, (48, 64)), inverses)
    # float32 of MMPose's points (msra) and of its matrix (udp). Worst seen 2.3e-5 px.
    np.testing.assert_allclose(points, VECTORS[f"{key}_pred_image_space"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("size", [(192, 256), (256, 192), (288, 384), (64, 64), (33, 17)], ids=str)
def test_closed_form_and_round_trip(size, codec):
    rng = np.random.default_rng(0)
    corner = rng.uniform(-500, 2000, (200, 2))
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(2, 7, (200, 2)))], axis=1).astype(np.float32)
    affines = crop_affines(boxes, size, codec, padding=1.1)
    assert affines.shape == (200, 2, 3)
    assert affines.dtype == np.float64
    assert affines.flags.c_contiguous
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64) * 1.1
    width = np.maximum(sides[:, 0], sides[:, 1] * size[0] / size[1])
    steps = np.array(size) - (codec == "udp")
    scale = np.stack([steps[0] / width, steps[1] / (width * size[1] / size[0])], axis=1)
    centre = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2
    # The crop's middle (for udp: between the outer pixel centres) shows the box's centre. MMPose's float32 costs
    # some 1e-4 px of the frame at small boxes far from the origin (worst seen 2.6e-4) and 1.1e-5 of the scale.
    middle = transform_points(np.tile(steps / 2, (200, 1))[:, None], invert_affines(affines))[:, 0]
    np.testing.assert_allclose(middle, centre, atol=5e-4, rtol=0)
    np.testing.assert_allclose(affines[:, [0, 1], [0, 1]], scale, rtol=5e-5)
    points = rng.uniform(-100, 400, (200, 7, 2))
    # float64 all the way: worst seen 3e-11 px.
    np.testing.assert_allclose(
        transform_points(transform_points(points, invert_affines(affines)), affines), points, atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("codec", ["msra", "udp"])
def test_rotation(codec):
    boxes = [[100, 50, 300, 250], [10, 20, 60, 90]]
    turned = crop_affines(boxes, (128, 128), codec, rotation=[90, 0])
    plain = crop_affines(boxes, (128, 128), codec)
    np.testing.assert_array_equal(turned[1], plain[1])
    right = transform_points([[[250.0, 150.0]]], turned[:1])[0, 0]  # a point to the right of the first box's centre
    middle = transform_points([[[200.0, 150.0]]], turned[:1])[0, 0]
    # MMPose's two codecs turn in opposite directions. float32 points: 1e-4 px is ten times the worst seen.
    assert right[0] - middle[0] == pytest.approx(0, abs=1e-4)
    assert np.sign(right[1] - middle[1]) == (-1 if codec == "msra" else 1)
    back = transform_points(transform_points([[[250.0, 150.0]]], turned[:1]), invert_affines(turned[:1]))
    np.testing.assert_allclose(back, [[[250.0, 150.0]]], atol=1e-9)


def test_heatmap_to_crop():
    np.testing.assert_array_equal(
        heatmap_to_crop([[-1, -1], [10, 20.25]], "msra", SIZE, (48, 64)), [[-4, -4], [40, 81]]
    )
    np.testing.assert_allclose(heatmap_to_crop([47, 63], "udp", SIZE, (48, 64)), [191, 255], rtol=1e-15)
    assert heatmap_to_crop(np.zeros((0, 5, 2), np.float32), "udp", SIZE, (48, 64)).shape == (0, 5, 2)


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), np.zeros((0, 4), np.int64)], ids=["list", "float", "int"])
def test_no_boxes(boxes):
    assert validate_boxes(boxes).shape == (0, 4)
    affines = crop_affines(boxes, SIZE)
    assert affines.shape == (0, 2, 3)
    assert invert_affines(affines).shape == (0, 2, 3)
    assert transform_points(np.zeros((0, 8, 2)), affines).shape == (0, 8, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, np.nan, 5], "box 1 is not finite"),
        ([0, 0, np.inf, 5], "box 1 is not finite"),
        ([-3e38, 0, 3e38, 5], "box 1 is not finite"),
        ([5, 0, 0, 5], "box 1 is inverted or has no area"),
        ([0, 5, 5, 0], "box 1 is inverted or has no area"),
        ([3, 0, 3, 5], "box 1 is inverted or has no area"),
        ([1e8, 0, 1e8 + 1, 5], "box 1 is inverted or has no area"),  # float32 cannot tell them apart
    ],
)
def test_bad_boxes(row, message):
    with pytest.raises(InputError, match=message):
        crop_affines([[0, 0, 10, 10], row, row], SIZE)


def test_a_box_too_small_for_float32():
    for boxes in ([[0, 9999.9995, 1e-4, 10000.0005]], [[1e-30, 1e-30, 2e-30, 2e-30]]):
        try:
            affines = crop_affines(boxes, SIZE)
        except InputError:
            continue
        assert np.isfinite(affines).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": [0, 0, 5, 5]}, "wrap a single box in a list"),
        ({"boxes": [[0, 0, 5]]}, r"\(N, 4\)"),
        ({"boxes": "abc"}, "must be numbers"),
        ({"boxes": [[0, 0, 5, 5], [1, 2]]}, "must be numbers"),
        ({"input_size": (0, 5)}, "whole numbers"),
        ({"input_size": (192.5, 256)}, "whole numbers"),
        ({"input_size": (1, 256), "codec": "udp"}, "at least 2"),
        ({"input_size": 192}, "whole numbers"),
        ({"input_size": (192, 256, 3)}, "whole numbers"),
        ({"input_size": (float("nan"), 256)}, "whole numbers"),
        ({"input_size": (float("inf"), 256)}, "whole numbers"),
        ({"input_size": ("a", 256)}, "whole numbers"),
        ({"codec": "dark"}, 'must be "msra" or "udp"'),
        ({"padding": 0}, "padding"),
        ({"padding": float("nan")}, "padding"),
        ({"padding": "a"}, "padding"),
        ({"padding": [1, 2]}, "padding"),
        ({"padding": None}, "padding"),
        ({"boxes": [[0, 0, 10**400, 5]]}, "must be numbers"),
        ({"rotation": [1, 2]}, "rotation"),
        ({"rotation": "a"}, "rotation"),
        ({"rotation": float("inf")}, "rotation"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        crop_affines(**{"boxes": [[0, 0, 5, 5]], "input_size": SIZE, **arguments})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("box", [[0, 0, 3e38, 3e38], [2e38, 2e38, 3e38, 3e38], [0, 0, 1e300, 5]], ids=str)
def test_huge_boxes_are_refused_without_warnings(box, codec):
    with pytest.raises(InputError, match=r"too large|not finite"):
        crop_affines([box], SIZE, codec)


def test_empty_lists_are_no_boxes():
    assert crop_affines([], SIZE).shape == invert_affines([]).shape == (0, 2, 3)
    assert transform_points([], []).shape == (0, 0, 2)
    assert heatmap_to_crop([], "udp", SIZE, (48, 64)).shape == (0, 2)


def test_wrong_shapes():
    affine = crop_affines([[0, 0, 5, 5]], SIZE)
    with pytest.raises(InputError, match="affine 0 is not finite or cannot be inverted"):
        invert_affines(affine * 0)
    with pytest.raises(InputError, match=r"\(N, 2, 3\)"):
        invert_affines(affine[0])
    with pytest.raises(InputError, match=r"\(1, K, 2\)"):
        transform_points(np.zeros((2, 3, 2)), affine)
    with pytest.raises(InputError, match=r"\(\.\.\., 2\)"):
        heatmap_to_crop(np.zeros((2, 3)), "msra", SIZE, (48, 64))


@pytest.mark.parametrize("codec", ["msra", "udp"])
@pytest.mark.parametrize("size", [(192, 256), (256, 192), (17, 33)])
def test_the_short_ways_give_the_long_ones_bits(codec: str, size: tuple[int, int]) -> None:
    """Upright crops have arithmetic of their own, and so has what each predict computes at once."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(-3000, 6000, (2000, 2))
    boxes = geometry.validate_boxes(np.concatenate([corner, corner + np.exp(rng.uniform(-2, 9, (2000, 2)))], axis=1))
    affines = geometry.crop_affines(boxes, size, codec)
    centre, width, height = geometry.centre_and_scale(boxes, *size, np.float64(1.25))
    rotated = geometry._rotated_msra_affine if codec == "msra" else geometry._rotated_udp_affine
    np.testing.assert_array_equal(affines, rotated(centre, np.stack([width, height], 1), np.zeros(len(boxes)), *size))
    spec = painter_spec(codec, input_size=size)
    at_once, inverses = geometry.crop_transforms(boxes, spec)
    np.testing.assert_array_equal(at_once, affines)
    np.testing.assert_array_equal(inverses, geometry.invert_affines(affines))
