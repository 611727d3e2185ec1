"""MMPose's random crops against a literal second implementation and its recorded crops, and our own augmentation."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import cv2
import numpy as np
import pytest

from edgepose.errors import InputError
from edgepose.geometry import crop_affines
from edgepose.kernels.reference import crop_warp
from edgepose.spec import ModelSpec
from edgepose.training.codecs import encode
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2
from edgepose.training.mmpose_transforms import Draw, MMPoseAugmentation, drawn_affine, truncated_normal
from edgepose.training.transforms import Augmentation, augmented_crop

DATA = Path(__file__).parents[1] / "data" / "reference"
VECTORS = np.load(DATA / "affine.npz")
BOXES = json.loads((DATA / "affine.json").read_text())["boxes"]
META = json.loads((DATA / "fashion_meta.json").read_text())["datasets"]
SIZE = (192, 256)
CODECS = ["msra", "udp"]


def spec_of(codec: str, landmarks=DEEPFASHION["full"]) -> ModelSpec:
    return ModelSpec(
        name="test",
        input_size=SIZE,
        heatmap_size=(48, 64),
        keypoint_names=landmarks.keypoint_names,
        flip_indices=landmarks.flip_indices,
        codec=codec,
    )


def synthetic(name: str) -> np.ndarray:
    """The frames of affine.json."""
    if name == "synB":
        return np.random.default_rng(11).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    y, x = np.mgrid[0:480, 0:640]
    return np.stack([(3 * x + 5 * y) % 256, (x * x // 37 + 2 * y) % 256, ((x ^ y) * 7) % 256], -1).astype(np.uint8)


class Fixed:
    """A generator that hands out given numbers in order."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self, size: int | None = None):
        taken = [self.numbers.pop(0) for _ in range(size or 1)]
        return taken[0] if size is None else np.array(taken)


def mmpose_by_hand(box, frame, keypoints, visible, pairs, uniforms, udp):
    """MMPose's transforms one after another, each as its documentation says, with the eight uniform numbers given.

    Returns the warp matrix *of the mirrored frame*, the frame as it is then, keypoints in crop px, and visibility.
    """
    padding, flip_prob, shift_prob, scale_prob, rotate_prob = 1.25, 0.5, 0.3, 1.0, 0.6
    # GetBBoxCenterScale
    box = np.float32(box)
    scale, centre = (box[2:] - box[:2]) * padding, (box[2:] + box[:2]) * 0.5
    # RandomFlip
    keypoints, visible, frame = keypoints.copy(), visible.copy(), frame.copy()
    if uniforms[0] < flip_prob:
        w = frame.shape[1]
        frame = frame[:, ::-1].copy()
        centre[0] = w - centre[0] - 1
        for left, right in pairs:
            keypoints[[left, right]], visible[[left, right]] = keypoints[[right, left]], visible[[right, left]]
        keypoints[:, 0] = w - 1 - keypoints[:, 0]
    # RandomBBoxTransform: four draws from the normal distribution cut off at +-1, then three decisions
    normal = NormalDist()
    area = normal.cdf(1) - normal.cdf(-1)
    v = np.float32([normal.inv_cdf(normal.cdf(-1) + u * area) for u in uniforms[1:5]])
    offset = v[:2] * 0.16 if uniforms[5] < shift_prob else np.zeros(2, np.float32)
    factor = v[2] * 0.5 + 1 if uniforms[6] < scale_prob else 1.0
    angle = v[3] * 80.0 if uniforms[7] < rotate_prob else 0.0
    centre = centre + offset * scale
    scale = scale * factor
    # TopdownAffine
    w, h = SIZE
    scale = np.array([scale[0], scale[0] / 0.75] if scale[0] > scale[1] * 0.75 else [scale[1] * 0.75, scale[1]])
    radians = np.deg2rad(angle)
    cos, sin = np.cos(radians), np.sin(radians)
    if udp:
        sx, sy = (w - 1) / scale[0], (h - 1) / scale[1]
        cx, cy = centre
        warp = np.float32(
            [
                [cos * sx, -sin * sx, sx * (-cx * cos + cy * sin + 0.5 * scale[0])],
                [sin * sy, cos * sy, sy * (-cx * sin - cy * cos + 0.5 * scale[1])],
            ]
        )
    else:
        up = np.array([0, -0.5 * scale[0]])
        turned = np.array([up[0] * cos - up[1] * sin, up[0] * sin + up[1] * cos])
        source = np.zeros((3, 2), np.float32)
        source[0], source[1] = centre, centre + turned
        d = source[0] - source[1]
        source[2] = source[1] + np.array([-d[1], d[0]])
        target = np.float32([[w / 2, h / 2], [w / 2, h / 2 - w / 2], [w / 2 - w / 2, h / 2 - w / 2]])
        warp = cv2.getAffineTransform(source, target)
    return warp, frame, cv2.transform(keypoints[None], warp)[0], visible


@pytest.mark.parametrize("codec", CODECS)
def test_the_random_pipeline_is_mmposes(codec: str) -> None:
    """Ninety samples with given random numbers, frames of odd and even sizes, boxes beyond the frame."""
    rng = np.random.default_rng(0)
    spec = spec_of(codec)
    pairs = [(i, j) for i, j in enumerate(spec.flip_indices) if i < j]
    augmentation = MMPoseAugmentation()
    seen = set()
    for number in range(90):
        width, height = int(rng.integers(150, 500)), int(rng.integers(150, 500))
        frame = cv2.resize(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8), (width, height))
        corner = rng.uniform(-20, 100, 2)
        box = np.float32([*corner, *(corner + rng.uniform(30, 300, 2))])
        keypoints = rng.uniform(0, (width, height), (8, 2)).astype(np.float32)
        visible = rng.integers(0, 2, 8).astype(np.float32)
        uniforms = rng.random(8).tolist()
        draws = Fixed(*uniforms)
        affine, points, shown = augmentation.transform(box, (width, height), keypoints, visible, spec, draws)
        assert not draws.numbers
        warp, turned, expected, expected_visible = mmpose_by_hand(
            box, frame, keypoints, visible, pairs, uniforms, codec == "udp"
        )
        # float32 of MMPose's mirrored points and of its result, magnified where a box is small; worst seen 1.9e-4 px
        np.testing.assert_allclose(points, expected, atol=5e-4, rtol=0)
        np.testing.assert_array_equal(shown, expected_visible)
        crop = crop_warp(frame, affine[None], SIZE, sampling="opencv4")[0].astype(int)
        reference = crop_warp(turned, warp[None].astype(float), SIZE, sampling="opencv4")[0]
        difference = np.abs(crop - reference)
        flipped = uniforms[0] < 0.5
        # A position that lies on a step of 1/1024 px may fall to either side and then moves by 1/32 px: at most
        # 255 / 32 levels in x and in y. Seen 6 levels, 0.02 % of the bytes; 8 levels and 1.2 % in mirrored frames,
        # where halves are rounded the other way.
        assert difference.max() <= 16, number
        assert (difference > 0).mean() <= (0.03 if flipped else 1e-3), number
        seen.add((flipped, uniforms[5] < 0.3, uniforms[7] < 0.6))
    assert len(seen) == 8


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("box", BOXES, ids=lambda box: box["id"])
def test_given_a_draw_the_matrix_the_points_and_the_crop_are_mmposes(box, codec: str) -> None:
    key = f"{box['id']}_{'std' if codec == 'msra' else 'udp'}"
    spec, frame = spec_of(codec), synthetic(box["image"])
    size = (frame.shape[1], frame.shape[0])
    affine = drawn_affine(np.float32(box["bbox_xyxy"]), size, spec, Draw(rotation=box["rotation"]))
    # msra: another float64 solver (worst seen 2.3e-13); udp: one float32 unit of the translation (3.6e-6 seen)
    np.testing.assert_allclose(affine, VECTORS[f"{key}_warp_mat"], atol=1e-11 if codec == "msra" else 2e-5, rtol=0)
    still = MMPoseAugmentation(flip=0, shift_probability=0, scale_probability=0, rotation_probability=0)
    if not box["rotation"]:
        points = VECTORS[f"{key}_keypoints"][0]
        moved, shown = still.transform(
            np.float32(box["bbox_xyxy"]), size, points, np.ones(8, np.float32), spec, np.random.default_rng(0)
        )[1:]
        # Recorded in float32; 6.2e-5 px seen where a small box magnifies coordinates of 1200 crop px
        np.testing.assert_allclose(moved, VECTORS[f"{key}_transformed_keypoints"][0], atol=2e-4, rtol=0)
        assert shown.all()  # also what falls outside: the codec decides
    crop = crop_warp(frame, affine[None], SIZE, sampling="opencv4")[0]
    if f"{key}_crop" in VECTORS:
        recorded = VECTORS[f"{key}_crop"]
        assert zlib.crc32(recorded.tobytes()) == int(VECTORS[f"{key}_crop_crc32"])
        # Exact, but for a rotated udp matrix (see above), which may move a position by a step of 1/32 px
        assert (crop != recorded).mean() <= (1e-3 if box["rotation"] and codec == "udp" else 0)


def test_msra_and_udp_rotate_in_opposite_directions() -> None:
    box, drawn = np.float32([200, 100, 400, 400]), Draw(rotation=30.0)
    msra, udp = (drawn_affine(box, (640, 480), spec_of(codec), drawn) for codec in CODECS)
    assert msra[0, 1] > 0 > udp[0, 1]
    back = drawn_affine(box, (640, 480), spec_of("udp"), Draw(rotation=-30.0))
    np.testing.assert_allclose(back[0, :2], msra[0, :2], rtol=1 / 191 + 1e-6)  # 191/192 of msra's scale


@pytest.mark.parametrize("codec", CODECS)
def test_mirrored_twice_is_the_identity(codec: str) -> None:
    """The mirror of a mirrored annotation, in the mirrored frame, is the annotation: same crop px, same channels."""
    rng = np.random.default_rng(2)
    for landmarks in (*DEEPFASHION.values(), DEEPFASHION2["vest"], DEEPFASHION2["long_sleeved_outwear"]):
        spec = spec_of(codec, landmarks)
        k = len(landmarks.keypoint_names)
        box = np.float32([31.5, 40.25, 170, 290.5])
        keypoints = rng.uniform(0, (240, 319), (k, 2)).astype(np.float32)
        visible = rng.integers(0, 2, k).astype(np.float32)
        only = {"shift_probability": 0, "scale_probability": 0, "rotation_probability": 0}
        order = list(spec.flip_indices)
        mirrored_box = np.float32([240 - box[2], box[1], 240 - box[0], box[3]])
        mirrored = np.stack([240 - keypoints[:, 0], keypoints[:, 1]], -1)[order]
        once = MMPoseAugmentation(flip=1, **only).transform(
            mirrored_box, (241, 320), mirrored, visible[order], spec, rng
        )
        plain = MMPoseAugmentation(flip=0, **only).transform(box, (241, 320), keypoints, visible, spec, rng)
        np.testing.assert_allclose(once[1], plain[1], atol=2e-4)  # float32 of the mirrored centre; worst seen 6e-5
        np.testing.assert_array_equal(once[2], plain[2])


def test_the_targets_of_a_mirrored_sample_are_the_mirrored_targets() -> None:
    """encode(flip(x)) is flip(encode(x)) where the grid is symmetric (udp), whatever the box and the channels."""
    spec = spec_of("udp", DEEPFASHION2["vest"])
    k, order = spec.num_keypoints, list(spec.flip_indices)
    rng = np.random.default_rng(3)
    keypoints = rng.uniform((60, 60), (180, 260), (k, 2)).astype(np.float32)
    visible = rng.integers(0, 2, k).astype(np.float32)
    only = {"shift_probability": 0, "scale_probability": 0, "rotation_probability": 0}
    targets = []
    for flip in (0, 1):
        _, points, shown = MMPoseAugmentation(flip=flip, **only).transform(
            np.float32([50, 50, 190, 270]), (240, 320), keypoints, visible, spec, rng
        )
        targets.append(encode(points, shown, codec="udp", input_size=SIZE, heatmap_size=(48, 64)))
    (straight, weights), (mirrored, mirrored_weights) = targets
    # float32 positions, see test_targets.py; worst seen 1.8e-6
    np.testing.assert_allclose(mirrored, straight[order, :, ::-1], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(mirrored_weights, weights[order])


@pytest.mark.parametrize("name", ["upper", "lower", "full"])
def test_flip_indices_are_mmposes(name: str) -> None:
    assert list(DEEPFASHION[name].flip_indices) == META[f"deepfashion_{name}"]["flip_indices"]


def test_deepfashion2_flip_indices_are_mmposes_but_for_the_vest() -> None:
    """MMPose maps 136 -> 140 -> 140; ours are a pair."""
    ours = [begin + i for s in DEEPFASHION2.values() for begin in [s.channels[0]] for i in s.flip_indices]
    theirs = META["deepfashion2"]["flip_indices"]
    assert [i for i in range(294) if ours[i] != theirs[i]] == [140]
    assert (ours[136], ours[140], theirs[140]) == (140, 136, 140)


def test_truncated_normal() -> None:
    values = truncated_normal((np.arange(20000) + 0.5) / 20000)
    assert values.dtype == np.float32
    assert abs(values).max() <= 1
    assert (np.diff(values) >= 0).all()
    # Var = 1 - 2 phi(1) / (2 Phi(1) - 1) = 0.29112; a uniform one's is 0.33333. Midpoints of 20000 strips: within 1e-5
    assert float(values.astype(float).var()) == pytest.approx(0.291125, abs=1e-5)
    inside = NormalDist().cdf(0.5) - NormalDist().cdf(-0.5)
    expected = inside / (NormalDist().cdf(1) - NormalDist().cdf(-1))
    assert (abs(values) < 0.5).mean() == pytest.approx(expected, abs=1e-4)  # a strip at either end


def test_how_often_and_how_far() -> None:
    """2000 draws: probabilities within four standard errors, amounts within their limits."""
    rng = np.random.default_rng(4)
    drawn = [MMPoseAugmentation().draw(rng) for _ in range(2000)]
    for share, probability in (
        (np.mean([d.flipped for d in drawn]), 0.5),
        (np.mean([d.shift != (0, 0) for d in drawn]), 0.3),
        (np.mean([d.scale != 1 for d in drawn]), 1.0),
        (np.mean([d.rotation != 0 for d in drawn]), 0.6),
    ):
        assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / 2000)
    assert 0.15 < max(abs(v) for d in drawn for v in d.shift) <= 0.16
    assert 0.48 < max(abs(d.scale - 1) for d in drawn) <= 0.5
    assert 78 < max(abs(d.rotation) for d in drawn) <= 80
    some = MMPoseAugmentation(rotation_probability=0)
    pairs = [
        (a.draw(np.random.default_rng(s)), some.draw(np.random.default_rng(s)))
        for a in [MMPoseAugmentation()]
        for s in range(9)
    ]
    assert all(a[:3] == b[:3] for a, b in pairs)  # one option off leaves the others' draws alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip must be 0 to 1"),
        ({"rotation_probability": -0.1}, "rotation_probability must be 0 to 1"),
        ({"rotation": float("nan")}, "rotation must be at least 0"),
        ({"scale": 1.0}, "scale must be below 1"),
    ],
)
def test_impossible_amounts_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MMPoseAugmentation(**options)


def test_a_box_without_area_is_refused() -> None:
    for box in ([5, 5, 5, 9], [5, 5, np.nan, 9]):
        with pytest.raises(InputError, match="box"):
            drawn_affine(np.float32(box), (100, 100), spec_of("msra"), Draw())


# Our own augmentation -----------------------------------------------------------------------------


def textured(rng: np.random.Generator) -> np.ndarray:
    """A (480, 360, 3) frame with soft structure and some noise."""
    soft = cv2.resize(rng.integers(0, 256, (24, 18, 3), dtype=np.uint8), (360, 480), interpolation=cv2.INTER_CUBIC)
    return np.clip(soft + rng.normal(0, 5, soft.shape), 0, 255).astype(np.uint8)


def test_colour_tables_are_the_plain_arithmetic() -> None:
    """Hue, saturation and the tone curve through tables: exactly what the arithmetic on each pixel gives."""
    from edgepose.training.transforms import _vary_color

    image = np.random.default_rng(5).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        hue = rng.normal(0, 12) if rng.random() < 0.6 else rng.uniform(0, 180)
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + hue) % 180
        hsv[..., 1] *= rng.uniform(0.4, 1.5)
        plain = cv2.cvtColor(np.clip(hsv, 0, (180, 255, 255)).astype(np.uint8), cv2.COLOR_HSV2BGR)
        curve = (np.arange(256, dtype=np.float32) / 255) ** np.exp(rng.normal(0, 0.25))
        curve = (curve - 0.5) * rng.uniform(0.65, 1.35) + 0.5 + rng.normal(0, 0.08)
        table = np.clip(curve[:, None] * np.exp(rng.normal(0, 0.06, 3)) * 255, 0, 255).astype(np.uint8)
        expected = np.stack([table[plain[..., c], c] for c in range(3)], -1)
        np.testing.assert_array_equal(_vary_color(image, np.random.default_rng(seed)), expected)


def test_a_sample_depends_on_its_generator_alone_and_leaves_its_inputs_alone() -> None:
    rng = np.random.default_rng(6)
    frame, spec = textured(rng), spec_of("udp")
    affine = crop_affines([[60, 80, 300, 400]], SIZE, "udp")[0]
    keypoints, visible = rng.uniform(80, 280, (8, 2)).astype(np.float32), np.ones(8, np.float32)
    kept = frame.copy(), affine.copy(), keypoints.copy(), visible.copy()
    every = Augmentation(
        elastic=1, color=1, gray=0.5, low_contrast=0.5, far=0.5, blur=1, noise=1, jpeg=1, shadow=1, erase=1, border=1
    )
    results = [
        augmented_crop(frame, affine, keypoints, visible, spec, every, np.random.default_rng(s)) for s in (7, 8, 7)
    ]
    for first, again in zip(results[0], results[2], strict=True):
        np.testing.assert_array_equal(first, again)
    assert (results[0][0] != results[1][0]).mean() > 0.5
    for before, after in zip(kept, (frame, affine, keypoints, visible), strict=True):
        np.testing.assert_array_equal(before, after)


def test_low_contrast_and_far_do_what_they_say_and_are_off_by_default() -> None:
    rng = np.random.default_rng(9)
    frame, spec = textured(rng), spec_of("udp")
    affine = crop_affines([[60, 80, 300, 400]], SIZE, "udp")[0]
    keypoints, visible = rng.uniform(80, 280, (8, 2)).astype(np.float32), np.ones(8, np.float32)
    off = Augmentation(**{name: 0.0 for name in ("flip", "elastic", "color", "invert_light", "gray", "blur", "noise")})
    off = replace(off, jpeg=0.0, shadow=0.0, erase=0.0, border=0.0, black_outside=1.0)

    def crop(**options: float) -> np.ndarray:
        return augmented_crop(
            frame, affine, keypoints, visible, spec, replace(off, **options), np.random.default_rng(1)
        )[0].astype(float)

    plain = crop()
    dull, far = crop(low_contrast=1.0), crop(far=1.0)
    assert 0.1 < dull.std() / plain.std() < 0.55  # a span of 0.15 to 0.5 is left
    sharpness = [cv2.Laplacian(image, cv2.CV_64F).std() for image in (plain, far)]
    assert sharpness[1] < 0.3 * sharpness[0]
    assert abs(far.mean() - plain.mean()) < 3
