"""Noise and folds. What is costly is made once, from fixed seeds, and reused through random windows and turns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Float", "Image", "fold_map", "noise_field", "periodic_noise", "smooth_noise"]

Image = NDArray[np.uint8]
Float = NDArray[np.float32]
_SIDE = 512


@lru_cache(maxsize=1)
def noise_field() -> Image:
    """White Gaussian noise, (768, 768, 3) uint8 about 128 with a standard deviation of 32."""
    noise = np.random.default_rng(1).normal(128, 32, (768, 768, 3))
    return noise.clip(0, 255).astype(np.uint8)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Float:
    """(h, w) smooth noise, zero mean and about unit variance, with ``cells`` bumps along the longer side."""
    w, h = size
    unit = max(w, h) / cells
    coarse = rng.standard_normal((max(2, round(h / unit)) + 1, max(2, round(w / unit)) + 1)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)


def periodic_noise(rng: np.random.Generator, side: int, cells: int) -> Float:
    """Like :func:`smooth_noise`, square, and repeating without a seam."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    unit = -(-side // cells)
    padded = np.pad(coarse, 2, mode="wrap")
    full = cv2.resize(padded, None, fx=unit, fy=unit, interpolation=cv2.INTER_CUBIC)
    period = full[2 * unit : (cells + 2) * unit, 2 * unit : (cells + 2) * unit]
    return np.asarray(cv2.resize(period, (side, side)) if period.shape[0] != side else period, np.float32)


def _relief(kind: str, seed: int) -> Image:
    """One fold map: the light that a wrinkled cloth returns, uint8 with 128 as neutral."""
    rng = np.random.default_rng([7, seed])
    size = (_SIDE, _SIDE)
    y, x = np.mgrid[0:_SIDE, 0:_SIDE].astype(np.float32)
    warp_x, warp_y = (smooth_noise(rng, size, 5) * 22 for _ in range(2))
    height = np.zeros((_SIDE, _SIDE), np.float32)
    if kind == "soft":
        for cells, gain in ((4, 30.0), (8, 10.0), (16, 3.0)):
            height += gain * smooth_noise(rng, size, cells)
    elif kind == "crease":
        for cells, gain in ((5, 34.0), (9, 17.0), (18, 6.0)):
            ridge = 1 - np.abs(np.tanh(smooth_noise(rng, size, cells) * 1.6))
            height += gain * np.asarray(
                cv2.remap(ridge**2, x + warp_x, y + warp_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.float32
            )
    elif kind == "drape":  # long folds along y
        for cells, gain in ((9, 26.0), (20, 11.0), (42, 4.0)):
            row = smooth_noise(rng, (_SIDE * 2, 6), cells * 2)
            row = np.asarray(cv2.resize(row, (_SIDE * 2, _SIDE), interpolation=cv2.INTER_CUBIC), np.float32)
            height += gain * np.asarray(
                cv2.remap(row, x + 256 + warp_x * 0.8, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.float32
            )
    else:  # crumple: many flat facets
        for _ in range(60):
            turn, bend = rng.uniform(0, np.pi), rng.normal(0, 0.0015)
            along = (x - rng.uniform(0, _SIDE)) * np.cos(turn) + (y - rng.uniform(0, _SIDE)) * np.sin(turn)
            across = (y - _SIDE / 2) * np.cos(turn) - (x - _SIDE / 2) * np.sin(turn)
            reach = np.exp(-(((across - rng.uniform(-250, 250)) / rng.uniform(40, 150)) ** 2))
            along = along + bend * across**2
            height += rng.normal(0, 6) * reach * np.exp(-((along / rng.uniform(6, 22)) ** 2))
        height += 8 * smooth_noise(rng, size, 7)
    height = np.asarray(cv2.GaussianBlur(height, (0, 0), 1.1), np.float32)
    light = (
        cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125) * 0.8 + cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125) * 0.6
    )
    light = np.asarray(light, np.float32)
    if kind == "drape":
        light = np.asarray(cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125), np.float32)
    hollow = height - np.asarray(cv2.GaussianBlur(height, (0, 0), 14), np.float32)
    light = light / (light.std() + 1e-6) * 0.9 + hollow / (hollow.std() + 1e-6) * (0.25 if kind == "crease" else 0.5)
    return (128 + 32 * np.tanh(light * 0.5) * 2).clip(0, 255).astype(np.uint8)


def _scratches(seed: int) -> Image:
    """Sharp creases: short bent lines, dark on one side and lit on the other; uint8 with 128 as neutral."""
    rng = np.random.default_rng([8, seed])
    total = np.zeros((_SIDE, _SIDE), np.float32)
    t = np.linspace(-1, 1, 9)
    for _ in range(int(rng.integers(8, 34))):
        x, y, turn = *rng.uniform(0, 1, 2) * _SIDE, float(rng.uniform(0, 2 * np.pi))
        length, bend = _SIDE * float(rng.uniform(0.03, 0.14)), float(rng.normal(0, 0.25))
        along, across = t * length, (t**2 - 1) * bend * length
        c, s = np.cos(turn), np.sin(turn)
        line = np.stack([x + along * c - across * s, y + along * s + across * c], -1)
        width = max(2, int(_SIDE * rng.uniform(0.003, 0.009)))
        ridge = np.zeros((_SIDE, _SIDE), np.float32)
        for offset, level in ((-0.5, -1.0), (0.5, 0.8)):
            spots = line + np.array([-s, c]) * offset * width
            cv2.polylines(ridge, [np.round(spots * 8).astype(np.int32)], False, level, width, cv2.LINE_AA, 3)
        total += cv2.blur(ridge, (width + 1, width + 1)) * float(rng.uniform(15, 60))
    return (total + 128).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _bank() -> dict[str, list[Image]]:
    """Every relief, made on first use in about a second."""
    kinds = ("soft", "crease", "drape", "crumple")
    bank = {kind: [_relief(kind, 10 * i + k) for k in range(4)] for i, kind in enumerate(kinds)}
    return bank | {"scratches": [_scratches(k) for k in range(6)]}


def _view(rng: np.random.Generator, kind: str, side: int, zoom: float) -> Image:
    """A random window of a relief, (side, side), at random turned by quarters and mirrored (drapes stay upright)."""
    relief = _bank()[kind][int(rng.integers(len(_bank()[kind])))]
    if kind != "drape" and rng.random() < 0.5:
        relief = relief.T
    if rng.random() < 0.5:
        relief = relief[:, ::-1]
    if rng.random() < 0.5:
        relief = relief[::-1]
    reach = int(np.clip(_SIDE / zoom, 64, _SIDE))
    y, x = (int(v) for v in rng.integers(0, _SIDE - reach + 1, 2))
    window = np.ascontiguousarray(relief[y : y + reach, x : x + reach])
    return np.asarray(cv2.resize(window, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)


def fold_map(rng: np.random.Generator, side: int, kinds: Sequence[str] = (), strength: float | None = None) -> Image:
    """(side, side) uint8, 128 where the cloth lies flat: two fold patterns and some creases, scaled and mixed.

    ``kinds``: soft, crease, drape, crumple; repeats weigh more. ``strength``: 1 is heavily wrinkled, random by default.
    """
    choices = list(kinds) or ["soft", "soft", "crease", "drape", "drape", "crumple", "crumple"]
    gains = [strength if strength is not None else float(abs(rng.normal(0, 0.42)) + 0.15) for _ in range(3)]
    wide = _view(rng, str(rng.choice(choices)), side, float(rng.uniform(1.0, 1.8)))
    fine = _view(rng, str(rng.choice(choices)), side, 1.0)
    folds = cv2.addWeighted(wide, gains[0], fine, gains[1] * 0.6, 128 * (1 - gains[0] - gains[1] * 0.6))
    if rng.random() < 0.75:
        sharp = _view(rng, "scratches", side, float(rng.uniform(1.0, 1.5)))
        folds = cv2.addWeighted(folds, 1.0, sharp, gains[2], -128 * gains[2])
    return np.asarray(np.clip(folds, 20, 235), np.uint8)
