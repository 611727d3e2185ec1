"""What lies behind and beside the garments of a scene."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.training.detection.garments import Garment, Stock
from edgepose.training.synthetic.floors import background

__all__ = ["backdrop", "draw_thing", "pick"]

Image = npt.NDArray[np.uint8]
Chances = npt.NDArray[np.float64]


def pick(stock: Stock, chances: Chances, rng: np.random.Generator) -> Garment:
    """A photo of the stock; ``chances`` (P,) add up to 1."""
    return stock.photos[int(rng.choice(len(stock.photos), p=chances))]


def backdrop(stock: Stock, chances: Chances, size: int, rng: np.random.Generator) -> Image:
    """(size, size, 3) uint8: what lies beside a photo's garment, enlarged; or a painted floor."""
    if rng.random() < 0.6:
        for _ in range(4):
            strip = _beside(pick(stock, chances, rng), rng)
            if strip is not None:
                picture = np.asarray(background(rng, (size, size), [strip]))
                if rng.random() < 0.3:
                    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.5, 3))))
                return picture
    floor = stock.floors[int(rng.integers(len(stock.floors)))]
    span = int(rng.integers(len(floor) // 2, len(floor) + 1))
    x, y = (int(v) for v in rng.integers(0, len(floor) - span + 1, 2))
    return np.asarray(cv2.resize(floor[y : y + span, x : x + span], (size, size), interpolation=cv2.INTER_LINEAR))


def _beside(photo: Garment, rng: np.random.Generator) -> Image | None:
    """A strip of a photo that holds nothing of its garment; None where all are thin."""
    h, w = photo.image.shape[:2]
    x0, y0, x1, y1 = np.rint(photo.box).astype(int) + np.array([-4, -4, 4, 4])
    strips = [photo.image[:y0] if y0 > 0 else None, photo.image[y1:] if y1 < h else None,
              photo.image[:, :x0] if x0 > 0 else None, photo.image[:, x1:] if x1 < w else None]  # fmt: skip
    wide = [strip for strip in strips if strip is not None and min(strip.shape[:2]) >= 40]
    return np.ascontiguousarray(wide[int(rng.integers(len(wide)))]) if wide else None


def draw_thing(image: Image, stock: Stock, rng: np.random.Generator) -> None:
    """Something that is no garment: a piece of cloth, a board, a bar; in place."""
    s = image.shape[0]
    extent = s * np.exp(rng.uniform(np.log(0.08), np.log(0.6), 2))
    if rng.random() < 0.3:
        extent[0] = s * rng.uniform(0.01, 0.06)  # a bar, a table's edge
    centre, angle = rng.uniform(0, s, 2), float(rng.uniform(0, 90) if rng.random() < 0.5 else rng.normal(0, 4))
    corners = cv2.boxPoints((tuple(centre), tuple(extent), angle)) + rng.normal(0, 0.02 * s, (4, 2))
    mask = np.zeros((s, s), np.uint8)
    if rng.random() < 0.2:
        axes = tuple(int(v) for v in extent / 2)
        cv2.ellipse(mask, tuple(int(v) for v in centre), axes, angle, 0, 360, 255, -1, cv2.LINE_AA)
    else:
        cv2.fillConvexPoly(mask, np.rint(corners * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    if rng.random() < 0.5:
        surface = cv2.resize(stock.tiles[int(rng.integers(len(stock.tiles)))], (s, s))
    else:
        shade = np.linspace(rng.uniform(0.6, 1), 1, s)[:, None, None]
        surface = np.broadcast_to(shade * rng.integers(0, 256, 3), (s, s, 3)).astype(np.uint8)
    alpha = mask.astype(np.float32) / 255
    image[:] = cv2.blendLinear(np.ascontiguousarray(surface), image, alpha, 1 - alpha)
