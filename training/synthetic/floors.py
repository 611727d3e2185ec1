"""Backgrounds: floors, carpets, beds and walls."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .folds import Float, Image, fold_map, noise_field
from .textures import cloth_color, cloth_tile, color_tuple

__all__ = ["background"]


def _palette(rng: np.random.Generator, kind: str) -> Float:
    table = {
        "wood": ((120, 165, 200), (95, 140, 180), (150, 190, 215), (60, 90, 130), (150, 155, 158), (45, 60, 85)),
        "tile": ((205, 215, 222), (190, 200, 210), (225, 225, 225), (150, 165, 180)),
        "wall": ((190, 195, 198), (200, 215, 225), (170, 172, 172), (215, 215, 210), (150, 170, 190)),
    }
    if kind in table and rng.random() < 0.85:
        choices = table[kind]
        base = np.array(choices[int(rng.integers(len(choices)))], np.float32)
        return (base * float(rng.normal(1, 0.1)) + rng.normal(0, 6, 3)).clip(10, 245).astype(np.float32)
    if rng.random() < 0.35:
        return np.array([175, 200, 215], np.float32) * np.float32(rng.uniform(0.7, 1.1))
    return cloth_color(rng)


def _grain(canvas: Image, rng: np.random.Generator, gain: float, kernel: tuple[int, int]) -> None:
    """Adds streaky noise in place."""
    h, w = canvas.shape[:2]
    field = noise_field()[:, :, 0]
    y, x = (int(v) for v in rng.integers(0, 300, 2))
    part = np.ascontiguousarray(field[y : y + 460, x : x + 460])
    streaks = cv2.resize(cv2.blur(part, kernel), (w, h), interpolation=cv2.INTER_LINEAR)
    cv2.addWeighted(canvas, 1.0, cv2.merge([streaks] * 3), gain, -128 * gain, dst=canvas)


def _wood(rng: np.random.Generator, canvas: Image) -> None:
    side = canvas.shape[0]
    base, width = _palette(rng, "wood"), int(side * rng.uniform(0.05, 0.2))
    gap, vary = rng.uniform(0.5, 0.95), rng.uniform(0.02, 0.12)
    canvas[:] = base
    for x in range(0, side, width):
        y = -int(rng.integers(side))
        while y < side:
            length = int(side * rng.uniform(0.4, 1.3))
            color = color_tuple(base * float(rng.normal(1, vary)))
            cv2.rectangle(canvas, (x, y), (x + width, y + length), color, -1)
            cv2.rectangle(canvas, (x, y), (x + width, y + length), color_tuple(base * gap), max(1, side // 400))
            y += length
    _grain(canvas, rng, float(rng.uniform(0.2, 1.0)), (1, int(rng.integers(9, 40))))


def _tiles(rng: np.random.Generator, canvas: Image) -> None:
    side = canvas.shape[0]
    base, step = _palette(rng, "tile"), int(side * rng.uniform(0.12, 0.4))
    canvas[:] = base
    grout, width = color_tuple(base * float(rng.uniform(0.5, 0.92))), max(1, int(side * rng.uniform(0.002, 0.009)))
    for i in range(0, side, step):
        cv2.line(canvas, (i, 0), (i, side), grout, width)
        cv2.line(canvas, (0, i), (side, i), grout, width)
    _grain(canvas, rng, float(rng.uniform(0.0, 0.5)), (int(rng.integers(2, 12)),) * 2)


def _carpet(rng: np.random.Generator, canvas: Image) -> None:
    canvas[:] = _palette(rng, "carpet")
    _grain(canvas, rng, float(rng.uniform(0.4, 1.6)), (int(rng.integers(1, 6)), int(rng.integers(1, 6))))
    if rng.random() < 0.3:
        _grain(canvas, rng, float(rng.uniform(0.4, 1.5)), (12, 12))


def _sheet(rng: np.random.Generator, canvas: Image) -> None:
    """A bed sheet, blanket or table cloth: any cloth, with folds."""
    side = canvas.shape[0]
    swatch = cloth_tile(rng, base=_palette(rng, "sheet"))
    if rng.random() < 0.55:
        swatch[:] = swatch[0, 0]
    zoom = float(rng.uniform(0.5, 1.8))
    swatch = np.asarray(cv2.resize(swatch, None, fx=zoom, fy=zoom), np.uint8)
    canvas[:] = cv2.copyMakeBorder(
        swatch, 0, max(0, side - swatch.shape[0]), 0, max(0, side - swatch.shape[1]), cv2.BORDER_WRAP
    )[:side, :side]
    folds = fold_map(rng, side, ("soft", "crease", "crumple"), float(abs(rng.normal(0, 0.3))))
    cv2.multiply(canvas, cv2.merge([folds] * 3), dst=canvas, scale=1 / 128)
    _grain(canvas, rng, float(rng.uniform(0.0, 0.3)), (2, 2))


def _wall(rng: np.random.Generator, canvas: Image) -> None:
    side = canvas.shape[0]
    canvas[:] = _palette(rng, "wall")
    if rng.random() < 0.4:  # a door frame, a skirting board or the floor
        cut = int(side * rng.uniform(0.7, 0.95)) if rng.random() < 0.6 else int(side * rng.uniform(0.05, 0.2))
        color = color_tuple(_palette(rng, "wood"))
        if rng.random() < 0.5:
            cv2.rectangle(canvas, (0, cut), (side, side), color, -1)
        else:
            cv2.rectangle(canvas, (cut, 0), (side, side), color, -1)
    _grain(canvas, rng, float(rng.uniform(0.02, 0.25)), (int(rng.integers(1, 9)),) * 2)


def background(
    rng: np.random.Generator, size: tuple[int, int], images: Sequence[Image] | None = None, kind: str | None = None
) -> Image:
    """(h, w, 3) uint8 BGR: a floor, carpet, bed or wall; mostly a random crop of ``images`` when there are any.

    ``kind``: wood, tiles, carpet, sheet or wall; random by default.
    """
    w, h = size
    if images and rng.random() < 0.6:
        photo = np.asarray(images[int(rng.integers(len(images)))])
        ph, pw = photo.shape[:2]
        zoom = max(w / pw, h / ph) * float(rng.uniform(1.0, 1.8))
        angle, shift = float(rng.choice([0, 90, 180, 270])) + float(rng.normal(0, 6)), rng.uniform(-0.2, 0.2, 2)
        matrix = np.asarray(cv2.getRotationMatrix2D((pw / 2, ph / 2), angle, zoom), float)
        matrix[:, 2] += np.array([w / 2 - pw / 2, h / 2 - ph / 2]) + shift * size
        return np.asarray(cv2.warpAffine(photo, matrix, (w, h), borderMode=cv2.BORDER_REFLECT), np.uint8)
    side = int(max(w, h) * 0.9)
    canvas = np.empty((side, side, 3), np.uint8)
    painters = {"wood": _wood, "tiles": _tiles, "carpet": _carpet, "sheet": _sheet, "wall": _wall}
    painter = painters[kind or str(rng.choice(list(painters), p=[0.26, 0.1, 0.14, 0.3, 0.2]))]
    painter(rng, canvas)
    zoom = float(rng.uniform(1.15, 2.0))
    turn = float(rng.normal(0, 2) if painter is _wall else rng.choice([0, 90, rng.uniform(0, 180)]) + rng.normal(0, 4))
    matrix = np.vstack([cv2.getRotationMatrix2D((side / 2, side / 2), turn, zoom), [0, 0, 1]]).astype(float)
    matrix[:2, 2] += np.array([w - side, h - side]) / 2
    tilt = np.array([[1, 0, -w / 2], [0, 1, -h / 2], [0, 0, 1]], float)
    lean = np.eye(3)
    lean[2, :2] = rng.normal(0, 0.25, 2) / max(w, h)
    matrix = np.linalg.inv(tilt) @ lean @ tilt @ matrix
    return np.asarray(
        cv2.warpPerspective(canvas, matrix, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.uint8
    )
