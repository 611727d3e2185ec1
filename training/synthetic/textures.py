"""Cloth: colours, woven and printed patterns, motifs."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .folds import Float, Image, noise_field, periodic_noise

__all__ = [
    "chest_print",
    "cloth_color",
    "cloth_tile",
    "color_tuple",
]

TILE = 256


_NAMED = (  # BGR and how common
    ((24, 22, 22), 16), ((45, 40, 38), 6), ((232, 232, 232), 11), ((205, 210, 214), 5), ((70, 42, 30), 10),
    ((110, 70, 45), 6), ((150, 145, 142), 6), ((100, 98, 96), 6), ((170, 130, 95), 5), ((200, 170, 140), 3),
    ((60, 60, 170), 4), ((55, 35, 110), 4), ((190, 170, 220), 4), ((120, 165, 195), 4), ((85, 110, 140), 3),
    ((70, 100, 70), 3), ((80, 140, 110), 2), ((60, 180, 220), 2), ((150, 90, 140), 2), ((180, 180, 90), 2),
)  # fmt: skip
_WEIGHT = np.array([w for _, w in _NAMED], float)
_CUMULATIVE = np.cumsum(_WEIGHT / _WEIGHT.sum())


def cloth_color(rng: np.random.Generator) -> Float:
    """A colour that clothes have, (3,) BGR 0–255: mostly black, white, navy and grey, sometimes anything."""
    if rng.random() < 0.22:
        hsv = np.array([[[rng.integers(180), rng.integers(40, 235), rng.integers(50, 245)]]], np.uint8)
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0], np.float32)
    base = np.array(_NAMED[int(np.searchsorted(_CUMULATIVE, rng.random()))][0], np.float32)
    return (base * float(rng.normal(1, 0.12)) + rng.normal(0, 9, 3)).clip(8, 248).astype(np.float32)


def _contrast(rng: np.random.Generator, base: Float) -> Float:
    """A second colour that can be told from the first."""
    for _ in range(4):
        other = cloth_color(rng)
        if np.abs(other - base).sum() > 110:
            return other
    return np.asarray(255 - base, np.float32)


def color_tuple(color: Float) -> tuple[float, float, float]:
    return float(color[0]), float(color[1]), float(color[2])


def _stripes(rng: np.random.Generator, tile: Image, base: Float) -> None:
    period = TILE / int(rng.choice([4, 6, 8, 12, 16, 24, 32]))
    other, third = _contrast(rng, base), cloth_color(rng)
    duty, vertical, triple = rng.uniform(0.2, 0.6), rng.random() < 0.4, rng.random() < 0.3
    for i in range(round(TILE / period)):
        a, b = round(i * period), round(i * period + period * duty)
        band = tile[:, a:b] if vertical else tile[a:b]
        band[:] = third if triple and i % 2 else other


def _checks(rng: np.random.Generator, tile: Image, base: Float) -> None:
    count = int(rng.choice([2, 4, 4, 8, 8, 16, 32]))
    period = TILE // count
    lines = np.zeros((period, 3), np.float32)
    weight = np.zeros((period, 1), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        a, width = int(rng.integers(period)), max(1, int(period * rng.uniform(0.05, 0.5)))
        lines[a : a + width], weight[a : a + width] = _contrast(rng, base), rng.uniform(0.4, 0.8)
    cloth = base + np.zeros((period, period, 3), np.float32)
    cloth += (lines[None] - cloth) * weight[None]
    cloth += (lines[:, None] - cloth) * weight[:, None]
    tile[:] = np.tile(cloth.clip(0, 255).astype(np.uint8), (count, count, 1))


def _dots(rng: np.random.Generator, tile: Image, base: Float) -> None:
    count = int(rng.choice([4, 8, 8, 12, 16, 24]))
    period, color = TILE / count, color_tuple(_contrast(rng, base))
    radius = max(1, int(period * rng.uniform(0.12, 0.4)))
    for i in range(count):
        for j in range(count + 1):
            cv2.circle(
                tile, (int((j + 0.5 * (i % 2)) * period), int((i + 0.5) * period)), radius, color, -1, cv2.LINE_AA
            )


def _florals(rng: np.random.Generator, tile: Image, base: Float) -> None:
    palette = [color_tuple(_contrast(rng, base)) for _ in range(int(rng.integers(2, 5)))]
    size = float(rng.choice([6, 10, 16, 30]))
    for _ in range(int(np.clip(9000 / size**2, 10, 110))):
        x, y = rng.uniform(size, TILE - size, 2)
        radius, color, petals = (
            size * rng.uniform(0.5, 1.2),
            palette[int(rng.integers(len(palette)))],
            int(rng.integers(1, 7)),
        )
        turn = rng.uniform(0, 6.3)
        for k in range(petals):
            a = turn + k * 6.283 / petals
            centre = int(x + np.cos(a) * radius * 0.55), int(y + np.sin(a) * radius * 0.55)
            cv2.ellipse(
                tile,
                centre,
                (max(1, int(radius * 0.6)), max(1, int(radius * 0.33))),
                np.degrees(a),
                0,
                360,
                color,
                -1,
                cv2.LINE_AA,
            )
        if petals > 3:
            cv2.circle(tile, (int(x), int(y)), max(1, int(radius * 0.28)), palette[0], -1, cv2.LINE_AA)


def _camouflage(rng: np.random.Generator, tile: Image, base: Float) -> None:
    for level in range(int(rng.integers(1, 4))):
        field = periodic_noise(rng, TILE, int(rng.choice([4, 8, 16, 32])))
        tile[field > 0.35 + 0.25 * level] = _contrast(rng, base)


def _denim(rng: np.random.Generator, tile: Image, base: Float) -> None:
    blue = np.array([105, 75, 50], np.float32) * rng.uniform(0.5, 1.9)
    fade = periodic_noise(rng, TILE, 4)[..., None] * 16 * rng.uniform(0, 1.5)
    tile[:] = (blue + fade).clip(5, 245)
    _melange(rng, tile, 0.22)


def _melange(rng: np.random.Generator, tile: Image, gain: float) -> None:
    """Adds threads: noise that is long along one axis."""
    y, x = (int(v) for v in rng.integers(0, 768 - TILE, 2))
    threads = noise_field()[y : y + TILE, x : x + TILE, :1]
    kernel = (int(rng.integers(1, 9)), 1) if rng.random() < 0.5 else (1, int(rng.integers(1, 5)))
    grey = cv2.merge([cv2.blur(np.ascontiguousarray(threads), kernel)] * 3)
    cv2.addWeighted(tile, 1.0, grey, gain, -128 * gain, dst=tile)


def _knit(rng: np.random.Generator, tile: Image) -> None:
    count = int(rng.choice([16, 32, 64]))
    turn = np.arange(TILE, dtype=np.float32) * np.float32(2 * np.pi * count / TILE)
    wave = (100 + float(rng.uniform(4, 18)) * np.sin(turn)).astype(np.uint8)
    relief = np.broadcast_to(wave, (TILE, TILE))
    if rng.random() < 0.4:
        relief = np.maximum(relief, wave[:, None])
    cv2.multiply(tile, cv2.merge([np.ascontiguousarray(relief)] * 3), dst=tile, scale=0.01)


def cloth_tile(rng: np.random.Generator, textures: Sequence[Image] | None = None, base: Float | None = None) -> Image:
    """A (256, 256, 3) uint8 BGR swatch that repeats; cut from ``textures`` now and then, if there are any."""
    if textures and rng.random() < 0.4:
        patch = np.asarray(textures[int(rng.integers(len(textures)))])
        half = cv2.resize(patch, (TILE // 2, TILE // 2), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(np.block([[[half], [half[:, ::-1]]], [[half[::-1]], [half[::-1, ::-1]]]]))
    base = cloth_color(rng) if base is None else base
    tile = np.empty((TILE, TILE, 3), np.uint8)
    tile[:] = base
    kind = rng.random()
    if 0.46 <= kind < 0.6:
        _stripes(rng, tile, base)
    elif 0.6 <= kind < 0.71:
        _checks(rng, tile, base)
    elif 0.71 <= kind < 0.77:
        _dots(rng, tile, base)
    elif 0.77 <= kind < 0.87:
        _florals(rng, tile, base)
    elif 0.87 <= kind < 0.91:
        _camouflage(rng, tile, base)
    elif kind >= 0.91:
        _denim(rng, tile, base)
    if rng.random() < 0.2:
        _knit(rng, tile)
    if rng.random() < 0.6:
        _melange(rng, tile, float(rng.choice([0.06, 0.12, 0.2, 0.45], p=[0.5, 0.35, 0.12, 0.03])))
    return tile


def chest_print(rng: np.random.Generator) -> Image:
    """A (128, 128, 4) BGRA motif: text, a disc, blocks or a doodle."""
    art = np.zeros((128, 128, 4), np.uint8)
    colors = [(*color_tuple(cloth_color(rng)), 255) for _ in range(3)]
    kind = int(rng.integers(4))
    if kind in (1, 3):
        cv2.circle(art, (64, 64), int(rng.integers(30, 60)), colors[1], -1 if rng.random() < 0.6 else 4, cv2.LINE_AA)
    if kind == 2:
        x, y = (int(v) for v in rng.integers(0, 40, 2))
        cv2.rectangle(art, (x, y), (127 - x, 127 - y), colors[2], -1 if rng.random() < 0.6 else 3)
    if kind == 3:
        knots = rng.integers(10, 118, (int(rng.integers(5, 14)), 2)).astype(np.int32)
        cv2.polylines(art, [knots], False, colors[0], int(rng.integers(2, 8)), cv2.LINE_AA)
    if kind != 3 or rng.random() < 0.3:
        letters = "".join(chr(65 + int(c)) for c in rng.integers(0, 26, 24))
        count, rows = int(rng.integers(3, 9)), int(rng.integers(1, 4))
        for r in range(rows):
            place = (int(rng.integers(0, 12)), 64 + int((r - rows / 2 + 0.8) * 30))
            cv2.putText(
                art,
                letters[r * count : (r + 1) * count],
                place,
                int(rng.choice([0, 2, 3, 4])),
                6.2 / count,
                colors[0],
                int(rng.integers(2, 5)),
                cv2.LINE_AA,
            )
    return art
