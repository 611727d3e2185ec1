"""What else is in a photo: hangers, clips, things at the edge, and what the camera does to it all."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from .folds import Image, noise_field
from .templates import Template
from .textures import cloth_color, cloth_tile
from .warp import Warp

__all__ = ["draw_hanger", "draw_occluders", "photograph"]

_SUB = 4


def draw_hanger(canvas: Image, template: Template, warp: Warp, seed: int) -> None:
    """A hanger with its hook, in place; clips hold lower garments."""
    rng = np.random.default_rng(seed)
    left, right = template.hangs_from
    middle, span = (left + right) / 2, float(right[0] - left[0])
    color = tuple(float(v) for v in cloth_color(rng)) if rng.random() < 0.5 else (30.0, 28.0, 28.0)
    top = middle - [0, span * rng.uniform(0.02, 0.15)]
    if template.category != "lower":
        top = np.array([middle[0], min(left[1], right[1]) - span * rng.uniform(0.05, 0.2)])
    width = max(2, round(warp.pixels_per_unit * span * rng.uniform(0.02, 0.07)))
    turn = np.linspace(-2.4, 1.5, 12)
    radius = span * rng.uniform(0.05, 0.09)
    stem = top - [0, span * rng.uniform(0.08, 0.2)]
    hook = stem + np.stack([np.sin(turn), -np.cos(turn) - 1], -1) * radius
    lines = [
        (np.array([left, top, right]), width),
        (np.concatenate([top[None], stem[None], hook[::-1]]), max(1, width // 2)),
    ]
    for points, thick in lines:
        spots = np.round(warp(points) * (1 << _SUB)).astype(np.int32)
        cv2.polylines(canvas, [spots], False, color, thick, cv2.LINE_AA, _SUB)


def _blob(rng: np.random.Generator, centre: NDArray[np.float64], radius: float) -> NDArray[np.int32]:
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = radius * (1 + 0.25 * np.sin(turn * 2 + rng.uniform(0, 6)) + 0.15 * np.sin(turn * 3 + rng.uniform(0, 6)))
    return np.round(centre + np.stack([np.cos(turn), np.sin(turn)], -1) * reach[:, None]).astype(np.int32)


def draw_occluders(rng: np.random.Generator, image: Image, silhouette: Image, textures: Sequence[Image] | None) -> None:
    """Sometimes puts cloth, a limb or an object at the picture's edge, or a tag on the garment; in place."""
    h, w = image.shape[:2]
    for _ in range(int(rng.choice(3, p=[0.72, 0.2, 0.08]))):
        edge = (
            np.array([rng.choice([-0.04, 1.04]) * w, rng.uniform(0, h)])
            if rng.random() < 0.5
            else np.array([rng.uniform(0, w), rng.choice([-0.04, 1.04]) * h])
        )
        spot = _blob(rng, edge, max(w, h) * float(rng.uniform(0.04, 0.16)))
        mask = np.zeros((h, w), np.uint8)
        cv2.fillPoly(mask, [spot], 255, cv2.LINE_AA)
        patch = (
            cv2.resize(cloth_tile(rng, textures), (w, h))
            if rng.random() < 0.6
            else np.full((h, w, 3), cloth_color(rng), np.uint8)
        )
        if rng.random() < 0.25:
            patch[:] = np.array([150, 175, 215]) * rng.uniform(0.45, 1.05)  # skin
        alpha = mask.astype(np.float32) / 255
        image[:] = cv2.blendLinear(patch, image, alpha, 1 - alpha)
    if rng.random() < 0.12:  # a paper tag
        rows, columns = np.nonzero(silhouette[::8, ::8])
        if len(rows):
            i = int(rng.integers(len(rows)))
            centre = (float(columns[i] * 8), float(rows[i] * 8))
            shape = (max(w, h) * float(rng.uniform(0.02, 0.05)), max(w, h) * float(rng.uniform(0.03, 0.08)))
            corners = cv2.boxPoints((centre, shape, float(rng.uniform(-40, 40))))
            cv2.fillConvexPoly(
                image,
                np.round(corners).astype(np.int32),
                tuple(float(v) for v in rng.uniform(150, 250, 3)),
                cv2.LINE_AA,
            )


def photograph(rng: np.random.Generator, image: Image, quality: float = 0.0) -> Image:
    """Uneven light, colour cast, exposure, blur, noise and JPEG; a new (H, W, 3) uint8 picture.

    ``quality`` 1 is a clean picture with soft light only, 0 what phones make of it.
    """
    h, w = image.shape[:2]
    y, x = np.mgrid[-1:1:7j, -1:1:7j]
    slope = rng.normal(0, 0.13, 2) * (1 - 0.5 * quality)
    light = (
        1
        + x * slope[0]
        + y * slope[1]
        - rng.uniform(0, 0.12) * (x**2 + y**2)
        + rng.normal(0, 0.03 * (1 - quality), x.shape)
    )
    if rng.random() < 0.12 * (1 - quality):  # a hard shadow across the picture
        light *= np.where(x * rng.normal() + y * rng.normal() > rng.normal(0, 0.5), rng.uniform(0.45, 0.8), 1)
    cast = 1 + rng.normal(0, 0.045 * (1 - quality), 3) + np.array([-1, 0, 1]) * rng.normal(0, 0.05 * (1 - quality))
    exposure = float(np.exp(rng.normal(0, 0.17 * (1 - quality))))
    field = (light[..., None] * cast * exposure * 128).clip(0, 255).astype(np.uint8)
    image = np.asarray(
        cv2.multiply(image, cv2.resize(field, (w, h), interpolation=cv2.INTER_LINEAR), scale=1 / 128), np.uint8
    )
    if rng.random() < 0.4 * (1 - quality):  # contrast and black level
        gain, lift = rng.uniform(0.75, 1.2), rng.uniform(-10, 25)
        image = np.asarray(cv2.convertScaleAbs(image, alpha=gain, beta=max(lift, 0.0)), np.uint8)
    if rng.random() < 0.5 * (1 - quality):
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.3)) * max(w, h) / 400), np.uint8)
    if rng.random() < 0.7 * (1 - quality) and max(w, h) <= 740:
        gain = float(rng.uniform(0.02, 0.25))
        i, j = int(rng.integers(768 - h + 1)), int(rng.integers(768 - w + 1))
        image = np.asarray(
            cv2.addWeighted(image, 1.0, noise_field()[i : i + h, j : j + w], gain, -128 * gain), np.uint8
        )
    if rng.random() < 0.5 * (1 - quality):
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))])
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return image
