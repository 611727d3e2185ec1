"""Composes scenes: photos moved about, mosaics of photos, and garments cut out and laid on other backgrounds.

Everything is drawn from the generator that the caller gives, so a scene is repeatable. Boxes are those of what is seen:
cut off by the picture's border, and by other garments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.errors import InputError
from edgepose.training.detection.backdrops import backdrop, draw_thing, pick
from edgepose.training.detection.figures import draw_body, outfit
from edgepose.training.detection.garments import Garment, Stock
from edgepose.training.synthetic.clutter import draw_occluders
from edgepose.training.transforms import Augmentation, vary_light

__all__ = ["Scene", "SceneMix", "compose"]

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]
Chances = npt.NDArray[np.float64]
Affine = npt.NDArray[np.float64]

PAD = 114  # the letterbox's grey
LEAST_SEEN = 0.3  # of a garment's box, for it to be in the truth
HIDDEN = 0.45  # of a garment that a later one may cover
LIGHT = Augmentation(
    color=0.7, invert_light=0.0, gray=0.05, low_contrast=0.05, far=0.03, blur=0.2, noise=0.2, jpeg=0.2, shadow=0.25
)


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: (S, S, 3) uint8 BGR.
        boxes: (G, 4) float32 x1, y1, x2, y2 px, pixel edges.
        labels: (G,) int64; see :class:`Garment`.
    """

    image: Image
    boxes: Array
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SceneMix:
    """How often which kind of scene comes (weights; they need not add up to 1), and how much they vary.

    Attributes:
        photo: one photo, moved, turned and scaled.
        mosaic: two to four photos beside each other.
        laid: one to five cut-outs on a background.
        worn: one or two cut-outs on a drawn figure.
        empty: no garment.
        rendered: probability that a cut-out is a rendered one.
        rotation: degrees at most; of photos without a silhouette half of it.
        light: variation of light, colour and sharpness.
    """

    photo: float = 0.34
    mosaic: float = 0.2
    laid: float = 0.3
    worn: float = 0.1
    empty: float = 0.06
    rendered: float = 0.45
    rotation: float = 20.0
    light: Augmentation = LIGHT


def compose(stock: Stock, size: int, mix: SceneMix, chances: Chances, rng: np.random.Generator) -> Scene:
    """A random scene of (size, size) px.

    Args:
        stock: what it is made of.
        size: px.
        mix: see there.
        chances: (P,) of each photo to be taken, adding up to 1.
        rng: the only source of randomness.

    Raises:
        InputError: cut-outs are wanted, and the stock has none.
    """
    makers = (_moved_photo, _mosaic, _laid, _worn, _empty)
    weights = np.array([mix.photo, mix.mosaic, mix.laid, mix.worn, mix.empty])
    maker = makers[int(rng.choice(len(makers), p=weights / weights.sum()))]
    canvas = _Canvas(np.full((size, size, 3), PAD, np.uint8), np.zeros((size, size), np.uint8), [], [])
    maker(canvas, stock, mix, chances, rng)
    if rng.random() < 0.15:
        draw_occluders(rng, canvas.image, canvas.owner, None)
    image = vary_light(canvas.image, mix.light, rng)
    return Scene(image, np.array(canvas.boxes, np.float32).reshape(-1, 4), np.array(canvas.labels, np.int64))


@dataclass
class _Canvas:
    """A scene in the making; owner: (S, S) uint8, the number of the garment seen there, from 1, else 0."""

    image: Image
    owner: Image
    boxes: list[Array]
    labels: list[int]

    @property
    def size(self) -> int:
        return self.image.shape[0]


# Whole photos ---------------------------------------------------------------------------------------


def _moved_photo(canvas: _Canvas, stock: Stock, mix: SceneMix, chances: Chances, rng: np.random.Generator) -> None:
    """One photo; as often as not as the letterbox shows it, else before another background."""
    photo = pick(stock, chances, rng)
    if rng.random() < 0.35:
        canvas.image[:] = backdrop(stock, chances, canvas.size, rng)
    elif rng.random() < 0.3:
        canvas.image[:] = rng.integers(0, 256)
    share = float(np.exp(rng.uniform(np.log(0.3), np.log(1.15)))) if rng.random() < 0.7 else float(rng.uniform(0.7, 1))
    _place_photo(canvas, photo, (0, 0, canvas.size, canvas.size), share, mix, rng)


def _mosaic(canvas: _Canvas, stock: Stock, mix: SceneMix, chances: Chances, rng: np.random.Generator) -> None:
    """Two photos side by side, or four around a point."""
    s = canvas.size
    x, y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * s)
    tiles = [(0, 0, x, y), (x, 0, s, y), (0, y, x, s), (x, y, s, s)]
    kind = rng.random()
    if kind < 0.3:
        tiles = [(0, 0, x, s), (x, 0, s, s)]
    elif kind < 0.45:
        tiles = [(0, 0, s, y), (0, y, s, s)]
    for tile in tiles:
        if rng.random() < 0.1:
            x0, y0, x1, y1 = tile
            canvas.image[y0:y1, x0:x1] = backdrop(stock, chances, s, rng)[y0:y1, x0:x1]
            continue
        _place_photo(canvas, pick(stock, chances, rng), tile, float(rng.uniform(0.45, 1.25)), mix, rng)


def _place_photo(
    canvas: _Canvas, photo: Garment, tile: tuple[int, int, int, int], share: float, mix: SceneMix,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Draw a photo into a tile so that the garment's longer side is ``share`` of the tile's shorter one.

    Where the garment is larger than the tile, or lies at its border, part of it is cut off.
    """
    x0, y0, x1, y1 = tile
    w, h = x1 - x0, y1 - y0
    if min(w, h) < 24:
        return
    extent = photo.box[2:] - photo.box[:2]
    scale = share * min(w / extent[0], h / extent[1]) if share > 1 else share * min(w, h) / extent.max()
    angle = _angle(mix.rotation if photo.mask is not None else mix.rotation / 2, rng)
    linear = _linear(scale, angle, rng)
    outline = _outline(photo)
    spot = outline @ linear.T
    low, high = spot.min(0), spot.max(0)
    room = np.array([w, h]) - (high - low)
    slack = 0.25 * (high - low) if rng.random() < 0.25 else np.maximum(-room, 0) * 0.5  # beyond the border
    shift = rng.uniform(np.minimum(room, 0) - slack, np.maximum(room, 0) + slack + 1e-6)
    matrix = np.hstack([linear, (shift - low)[:, None]])
    region = np.ascontiguousarray(canvas.image[y0:y1, x0:x1])
    source = photo.image
    if scale < 0.5:
        source = cv2.resize(source, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.warpAffine(
        source, _for_source(matrix, source, photo.image), (w, h), dst=region, flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_TRANSPARENT,
    )  # fmt: skip
    canvas.image[y0:y1, x0:x1] = region
    seen = spot - low + shift
    box = np.concatenate([seen.min(0), seen.max(0)])
    clipped = np.clip(box, 0, (w, h, w, h))
    if _area(clipped) >= LEAST_SEEN * _area(box):
        canvas.boxes.append((clipped + np.array([x0, y0, x0, y0])).astype(np.float32))
        canvas.labels.append(photo.label)


# Cut-outs -------------------------------------------------------------------------------------------


def _laid(canvas: _Canvas, stock: Stock, mix: SceneMix, chances: Chances, rng: np.random.Generator) -> None:
    """One to five garments on a floor, with other things of cloth, cardboard or metal about."""
    s = canvas.size
    canvas.image[:] = backdrop(stock, chances, s, rng)
    for _ in range(int(rng.choice(4, p=[0.5, 0.25, 0.15, 0.1]))):
        draw_thing(canvas.image, stock, rng)
    count = int(rng.choice([1, 2, 3, 4, 5], p=[0.3, 0.25, 0.2, 0.15, 0.1]))
    most = {1: 1.05, 2: 0.75, 3: 0.6, 4: 0.5, 5: 0.45}[count]
    for _ in range(count):
        garment = _cut_out(stock, mix, chances, rng)
        side = s * float(np.exp(rng.uniform(np.log(0.17), np.log(most))))
        scale = side / float((garment.box[2:] - garment.box[:2]).max())
        linear = _linear(scale, _angle(mix.rotation * (2 if rng.random() < 0.15 else 1), rng), rng)
        spot = _outline(garment) @ linear.T
        extent = np.ptp(spot, axis=0)
        for _ in range(6):  # until it covers no other garment
            at = rng.uniform(-0.15 * extent, s - 0.85 * extent)
            if _lay(canvas, garment, np.hstack([linear, (at - spot.min(0))[:, None]]), rng):
                break
    _read_boxes(canvas)


def _worn(canvas: _Canvas, stock: Stock, mix: SceneMix, chances: Chances, rng: np.random.Generator) -> None:
    """Top and trousers or skirt, or a dress, on a drawn figure: how clothes lie when they are worn."""
    canvas.image[:] = backdrop(stock, chances, canvas.size, rng)
    for _ in range(int(rng.integers(0, 3))):
        draw_thing(canvas.image, stock, rng)
    count = 1 if rng.random() < 0.75 else 2
    for place in range(count):
        pieces = [_cut_out(stock, mix, chances, rng) for _ in range(12)]
        left = (place + 0.5) / count * canvas.size
        for item in outfit(pieces, canvas.size, left, 1 / count, rng):
            if item.garment is None:
                draw_body(canvas.image, item, rng)
                canvas.owner[item.body_mask(canvas.size) > 0] = 0
            else:
                _lay(canvas, item.garment, item.matrix, rng, hidden=1.0)
    _read_boxes(canvas)


def _empty(canvas: _Canvas, stock: Stock, mix: SceneMix, chances: Chances, rng: np.random.Generator) -> None:
    canvas.image[:] = backdrop(stock, chances, canvas.size, rng)
    for _ in range(int(rng.integers(0, 5))):
        draw_thing(canvas.image, stock, rng)


def _lay(
    canvas: _Canvas, garment: Garment, matrix: Affine, rng: np.random.Generator, *, hidden: float = HIDDEN
) -> bool:
    """Draw a cut-out with its shadow; False, and nothing drawn, where it would cover too much of another garment."""
    s = canvas.size
    assert garment.mask is not None
    source, mask = garment.image, garment.mask
    if np.sqrt(abs(np.linalg.det(matrix[:, :2]))) < 0.5:
        source = cv2.resize(source, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    inner = _for_source(matrix, source, garment.image)
    cover = cv2.warpAffine(mask, inner, (s, s), flags=cv2.INTER_LINEAR)
    solid = cover > 127
    if hidden < 1 and canvas.labels:
        before = np.bincount(canvas.owner.ravel(), minlength=len(canvas.labels) + 1)[1:]
        covered = np.bincount(canvas.owner[solid], minlength=len(canvas.labels) + 1)[1:]
        if (covered > hidden * before).any():
            return False
    if solid.sum() < 60:
        return False
    if rng.random() < 0.7:
        reach = max(1.0, s * float(rng.uniform(0.005, 0.03)))
        shift = rng.normal(0, reach, 2)
        shadow = cv2.warpAffine(
            cv2.GaussianBlur(cover, (0, 0), reach), np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), (s, s)
        )
        dark = (255 - shadow * float(rng.uniform(0.1, 0.6))).astype(np.uint8)
        canvas.image[:] = cv2.multiply(canvas.image, cv2.merge([dark] * 3), scale=1 / 255)
    cloth = cv2.warpAffine(source, inner, (s, s), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cover.astype(np.float32) / 255
    canvas.image[:] = cv2.blendLinear(cloth, canvas.image, alpha, 1 - alpha)
    canvas.labels.append(garment.label)
    # The whole extent is kept until the scene is done, to know how much of it is seen
    spot = _outline(garment) @ matrix[:, :2].T + matrix[:, 2]
    canvas.boxes.append(np.concatenate([spot.min(0), spot.max(0)]).astype(np.float32))
    canvas.owner[solid] = len(canvas.labels)
    return True


def _read_boxes(canvas: _Canvas) -> None:
    """What is seen of each garment; those of which hardly anything is are left out."""
    boxes, labels = [], []
    for number, (whole, label) in enumerate(zip(canvas.boxes, canvas.labels, strict=True), 1):
        x, y, w, h = cv2.boundingRect((canvas.owner == number).view(np.uint8))
        if w * h >= LEAST_SEEN * _area(whole):
            boxes.append(np.array([x, y, x + w, y + h], np.float32))
            labels.append(label)
    canvas.boxes[:], canvas.labels[:] = boxes, labels


def _cut_out(stock: Stock, mix: SceneMix, chances: Chances, rng: np.random.Generator) -> Garment:
    if stock.renders and rng.random() < mix.rendered:
        return stock.renders[int(rng.integers(len(stock.renders)))]
    for _ in range(20):
        photo = pick(stock, chances, rng)
        if photo.mask is not None:
            return _within_box(photo)
    if not stock.renders:
        raise InputError("no photo has a silhouette that could be cut out: give renders, or weight laid and worn 0")
    return stock.renders[int(rng.integers(len(stock.renders)))]


def _within_box(photo: Garment) -> Garment:
    """The part of a photo that its mask covers."""
    x, y, w, h = cv2.boundingRect(photo.mask)
    window = slice(y, y + h), slice(x, x + w)
    assert photo.mask is not None
    return replace(
        photo, image=photo.image[window], mask=photo.mask[window], keypoints=photo.keypoints - np.float32([x, y]),
        box=np.array([0, 0, w, h], np.float32),
    )  # fmt: skip


# Geometry -------------------------------------------------------------------------------------------


def _angle(largest: float, rng: np.random.Generator) -> float:
    return float(np.deg2rad(np.clip(rng.normal(0, largest / 2), -largest, largest)))


def _linear(scale: float, angle: float, rng: np.random.Generator) -> Affine:
    """Mirrored or not, stretched a little, scaled, turned: (2, 2)."""
    aspect = float(np.exp(rng.normal(0, 0.07)))
    mirror = -1 if rng.random() < 0.5 else 1
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ np.diag([scale * aspect * mirror, scale / aspect])


def _outline(garment: Garment) -> npt.NDArray[np.float64]:
    """(P, 2) points in pixel-edge px whose extent is the garment's, however they are turned."""
    if garment.mask is None:
        x0, y0, x1, y1 = garment.box
        u, v = 0.2 * (x1 - x0), 0.2 * (y1 - y0)  # garments seldom fill their box's corners
        return np.array([(x0 + u, y0), (x1 - u, y0), (x1, y0 + v), (x1, y1 - v), (x1 - u, y1), (x0 + u, y1),
                         (x0, y1 - v), (x0, y0 + v)], np.float64)  # fmt: skip
    contours, _ = cv2.findContours((garment.mask > 127).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(np.concatenate(contours))[:, 0].astype(np.float64)
    low, high = hull.min(0), hull.max(0) + 1
    hull = low + (hull - low) * ((high - low) / np.maximum(high - 1 - low, 1))  # pixel centres -> their outer edges
    x0, y0, x1, y1 = garment.box
    return (hull - low) / (high - low) * ((x1 - x0), (y1 - y0)) + (x0, y0)  # the hand-drawn box is the truth


def _for_source(matrix: Affine, source: Image, original: Image) -> Affine:
    """A map of an original's edge coordinates, for OpenCV's pixel centres and a shrunk source."""
    fx, fy = original.shape[1] / source.shape[1], original.shape[0] / source.shape[0]
    inner = np.array([[fx, 0, 0.5 * fx], [0, fy, 0.5 * fy], [0, 0, 1]])
    result = matrix @ inner
    result[:, 2] -= 0.5
    return result


def _area(box: npt.NDArray[np.floating]) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))
