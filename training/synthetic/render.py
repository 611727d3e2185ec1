"""Draws a garment into a picture, and the landmarks with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np

from edgepose.errors import InputError

from .clutter import draw_hanger, draw_occluders, photograph
from .floors import background
from .folds import Float, Image, fold_map
from .outlines import Outline, outline_template
from .shapes import polygons
from .templates import Line, Part, Template, sample_template
from .textures import TILE, chest_print, cloth_color, cloth_tile
from .warp import Warp, fit_homography, sample_waves

__all__ = ["GarmentSample", "Scene", "draw_scene", "render_garment", "sample_scene"]

_FOLD_SPAN = 1.7  # garment units that a fold map covers
_NO_MAP: Any = None  # remap: the first map has both coordinates
_SUB = 4  # fractional bits of polygon vertices


@dataclass(frozen=True)
class GarmentSample:
    """A rendered garment and its truth."""

    image: Image  # (H, W, 3) uint8 BGR
    keypoints: Float  # (8, 2) px, integers are pixel centres; zero where not visible
    visible: Float  # (8,) 1 or 0: 0 where the garment has no such landmark or it lies outside the picture
    box: Float  # (4,) xyxy px around the garment within the picture
    category: Literal["upper", "lower", "full"]
    garment_type: str


@dataclass(frozen=True)
class Scene:
    """Everything that stays the same from frame to frame."""

    template: Template
    background: Image  # (H, W, 3) uint8 BGR
    swatches: dict[str, Image]  # role -> a tile of cloth
    folds: Image  # (S, S) uint8, 128 is flat
    motif: Image | None  # (128, 128, 4) BGRA print on the chest
    grain: float  # turn of the cloth's pattern, radians
    zoom: float  # scale of the cloth's pattern
    pixels_per_unit: float  # picture px a garment unit, to which the pattern's scale is tied
    light: tuple[float, float]  # where shadows fall, garment-independent, px
    rim: float  # darkening towards the cloth's edges
    hanger: int | None  # seed of the hanger


def sample_scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    template: Template | None = None,
    outlines: Sequence[Outline] | None = None,
    backgrounds: Sequence[Image] | None = None,
    textures: Sequence[Image] | None = None,
) -> tuple[Scene, Warp]:
    """Samples what is in the picture and where. ``size`` is (w, h) px."""
    if template is None:
        template = sample_template(rng)
        if outlines and template.garment_type in ("short_sleeved_shirt", "shorts") and rng.random() < 0.5:
            template = outline_template(rng, outlines, template.garment_type)
    warp = _sample_warp(rng, template, size)
    floor = background(rng, size, backgrounds)
    base = None
    if rng.random() < 0.1:  # cloth in the background's own colour
        base = (np.asarray(floor.mean((0, 1)), np.float32) + rng.normal(0, 14, 3).astype(np.float32)).clip(5, 250)
    cloth = cloth_tile(rng, textures, base)
    trim = cloth if rng.random() < 0.65 else cloth_tile(rng, textures)
    inner = cloth if rng.random() < 0.75 else cloth_tile(rng, None, cloth_color(rng))
    ppu = warp.pixels_per_unit
    folds = (
        ("soft", "drape", "drape", "crease")
        if template.garment_type in ("skirt",) or "dress" in template.garment_type
        else ()
    )
    scene = Scene(
        template=template,
        background=floor,
        swatches={"cloth": cloth, "trim": trim, "inner": inner},
        folds=fold_map(rng, int(np.clip(ppu * 1.0, 192, 900)), folds),
        motif=chest_print(rng) if template.category != "lower" and rng.random() < 0.4 else None,
        grain=float(rng.normal(0, 0.04) if rng.random() < 0.85 else rng.uniform(-1, 1)),
        zoom=float(np.exp(rng.normal(0, 0.35))) * max(size) / 400,
        pixels_per_unit=ppu,
        light=(float(rng.normal(0, 3)) * max(size) / 400, float(rng.normal(3, 2)) * max(size) / 400),
        rim=float(rng.uniform(0.0, 0.4)),
        hanger=int(rng.integers(2**31)) if rng.random() < 0.3 else None,
    )
    return scene, warp


def _sample_warp(rng: np.random.Generator, template: Template, size: tuple[int, int]) -> Warp:
    w, h = size
    amplitudes, waves, phases = sample_waves(rng, float(rng.uniform(0.4, 1.4)))
    flat = Warp(amplitudes, waves, phases, np.eye(3))
    outline = flat(np.concatenate(list(polygons(template))))
    angle = float(np.clip(rng.normal(0, 5) if rng.random() < 0.8 else rng.normal(0, 14), -32, 32))
    fill = float(np.clip(rng.normal(0.9, 0.08), 0.6, 1.06))
    if rng.random() < 0.05:
        fill = float(rng.uniform(0.45, 0.7))
    slack_x, slack_y = w * (1 - fill), h * (1 - fill)
    box = (slack_x / 2, slack_y / 2, w - slack_x / 2, h - slack_y / 2)
    tilt = (float(rng.normal(0, 0.05)), float(rng.normal(0, 0.09)))
    matrix = fit_homography(outline, box, np.radians(angle), tilt, float(np.exp(rng.normal(0, 0.05))))
    placed = Warp(amplitudes, waves, phases, matrix)
    spot = placed(np.concatenate(list(polygons(template))))
    room = np.maximum(np.array([w, h]) - np.ptp(spot, 0), 0) / 2  # what the other axis leaves free
    shift = np.eye(3)
    shift[:2, 2] = np.clip(rng.normal(0, 0.45, 2), -1, 1) * room
    return replace(placed, homography=shift @ matrix)


# Drawing


def _polygon_mask(points: Float, size: tuple[int, int]) -> tuple[Image, tuple[slice, slice]] | None:
    """The anti-aliased mask of a polygon and the window that it covers; None if it lies outside."""
    w, h = size
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
    x0, y0, x1, y1 = max(low[0], 0), max(low[1], 0), min(high[0], w), min(high[1], h)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    vertices = np.round((points - [x0, y0]) * (1 << _SUB)).astype(np.int32)
    cv2.fillPoly(mask, [vertices], 255, cv2.LINE_AA, _SUB)
    return mask, (slice(y0, y1), slice(x0, x1))


def _soften(mask: Image, radius: float) -> Image:
    """A wide blur, computed at a fraction of the size."""
    h, w = mask.shape
    factor = max(1, int(radius / 2))
    small = cv2.resize(mask, (max(2, w // factor), max(2, h // factor)), interpolation=cv2.INTER_AREA)
    size = max(1, round(radius / factor)) * 2 + 1
    small = cv2.blur(
        cv2.blur(small, (size, size), borderType=cv2.BORDER_CONSTANT), (size, size), borderType=cv2.BORDER_CONSTANT
    )
    return np.asarray(cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8)


def _cast_shadow(canvas: Image, points: Float, offset: tuple[float, float], strength: float, radius: float) -> None:
    """Darkens what lies below a polygon, in place."""
    h, w = canvas.shape[:2]
    moved = points + np.array(offset)
    low, high = np.floor(moved.min(0) - 2 * radius).astype(int), np.ceil(moved.max(0) + 2 * radius).astype(int)
    x0, y0, x1, y1 = max(low[0], 0), max(low[1], 0), min(high[0], w), min(high[1], h)
    if x1 - x0 < 4 or y1 - y0 < 4:
        return
    factor = max(1, int(radius / 2))
    small = np.zeros((-(-(y1 - y0) // factor), -(-(x1 - x0) // factor)), np.uint8)
    cv2.fillPoly(small, [np.round((moved - [x0, y0]) / factor * (1 << _SUB)).astype(np.int32)], 255, cv2.LINE_AA, _SUB)
    size = max(1, round(radius / factor)) * 2 + 1
    small = cv2.blur(cv2.blur(small, (size, size)), (size, size))
    small = cv2.LUT(small, _shadow_table(round(strength, 2)))
    shade = cv2.resize(small, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    window = canvas[y0:y1, x0:x1]
    cv2.multiply(window, cv2.merge([shade] * 3), dst=window, scale=1 / 255)


@lru_cache(maxsize=256)
def _shadow_table(strength: float) -> Image:
    return (255 * (1 - strength * np.linspace(0, 1, 256))).astype(np.uint8)


@lru_cache(maxsize=256)
def _rim_table(rim: float) -> Image:
    x = np.linspace(0, 1, 256)
    return (255 * (1 - rim * (1 - np.clip((x - 0.4) / 0.6, 0, 1)) ** 1.5)).astype(np.uint8)


def _alpha(mask: Image) -> Float:
    return np.asarray(mask * np.float32(1 / 255), np.float32)


@dataclass(frozen=True)
class _Painter:
    """One picture in the making; its methods draw in place."""

    scene: Scene
    warp: Warp
    canvas: Image  # (H, W, 3)
    silhouette: Image  # (H, W), 255 where the garment is
    units: Float  # (H, W, 2) the warp's inverse map

    @property
    def size(self) -> tuple[int, int]:
        return self.canvas.shape[1], self.canvas.shape[0]

    def part(self, part: Part) -> None:
        """A piece of cloth over its own shadow."""
        scene, reach = self.scene, self.scene.pixels_per_unit
        vertices = self.warp(part.polygon).astype(np.float32)
        if part.shadow > 0:
            on_floor = cv2.countNonZero(self.silhouette[::16, ::16]) == 0
            radius = max(2.0, reach * (0.02 if on_floor else 0.012))
            _cast_shadow(self.canvas, vertices, scene.light, part.shadow * (0.9 if on_floor else 0.6), radius)
        found = _polygon_mask(vertices, self.size)
        if found is None:
            return
        mask, window = found
        uv = self.units[window]
        shade = self._shade(part, mask, uv)
        turn, zoom = part.angle + scene.grain, reach / scene.zoom
        c, s = np.cos(turn) * zoom, np.sin(turn) * zoom
        tile_map = cv2.transform(uv, np.array([[c, s, TILE * 40.3], [-s, c, TILE * 40.7]], np.float32))
        cloth = cv2.remap(scene.swatches[part.role], tile_map, _NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        cloth = cv2.multiply(cloth, cv2.merge([shade] * 3), scale=1 / 128)
        if scene.motif is not None and part.role == "cloth" and part.angle == 0.0:
            cloth = self._print(np.asarray(cloth, np.uint8), scene.motif, uv, shade)
        alpha = _alpha(mask)
        target = self.canvas[window]
        target[:] = cv2.blendLinear(cloth, np.ascontiguousarray(target), alpha, 1 - alpha)
        np.maximum(self.silhouette[window], mask, out=self.silhouette[window])

    def _shade(self, part: Part, mask: Image, uv: Float) -> Image:
        """Folds and the darker rim, 128 is neutral; each piece takes its folds from elsewhere in the map."""
        folds = self.scene.folds
        k = folds.shape[0] / _FOLD_SPAN
        shift = folds.shape[0] / 2 + 0.1 * k * part.angle
        fold_map_at = cv2.transform(uv, np.array([[k, 0, shift], [0, k, shift - k * 0.5]], np.float32))
        shade = cv2.remap(folds, fold_map_at, _NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        table = _rim_table(round(self.scene.rim, 2) if part.role != "inner" else 0.6)
        rim = cv2.LUT(_soften(mask, max(1.5, self.scene.pixels_per_unit * 0.011)), table)
        return np.asarray(cv2.multiply(shade, rim, scale=part.shade / 255), np.uint8)

    def _print(self, cloth: Image, motif: Image, uv: Float, shade: Image) -> Image:
        x, y, half = self.scene.template.chest
        k = 64 / half
        spot = cv2.transform(uv, np.array([[k, 0, 64 - k * x], [0, k, 64 - k * y]], np.float32))
        art = cv2.remap(motif, spot, _NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        ink = cv2.multiply(np.ascontiguousarray(art[..., :3]), cv2.merge([shade] * 3), scale=1 / 128)
        alpha = _alpha(art[..., 3])
        return np.asarray(cv2.blendLinear(ink, cloth, alpha, 1 - alpha), np.uint8)

    def line(self, line: Line) -> None:
        """A seam; it only scales what is there, so that it suits any cloth."""
        w, h = self.size
        vertices = self.warp(line.points)
        width = max(1, round(line.width * self.scene.pixels_per_unit))
        low, high = np.floor(vertices.min(0)).astype(int) - width - 2, np.ceil(vertices.max(0)).astype(int) + width + 2
        x0, y0, x1, y1 = max(low[0], 0), max(low[1], 0), min(high[0], w), min(high[1], h)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        spots = np.round((vertices - [x0, y0]) * (1 << _SUB)).astype(np.int32)
        if line.dots:
            for x, y in spots:
                cv2.circle(mask, (int(x), int(y)), int(width * (1 << _SUB) / 2), 255, -1, cv2.LINE_AA, _SUB)
        else:
            cv2.polylines(mask, [spots], False, 255, width, cv2.LINE_AA, _SUB)
        np.minimum(mask, self.silhouette[y0:y1, x0:x1], out=mask)
        window = self.canvas[y0:y1, x0:x1]
        weight = min(abs(1 - line.shade) * (2.0 if line.shade > 1 else 1.0), 0.85)
        cover = cv2.merge([mask] * 3)
        if line.shade > 1:  # towards white
            window[:] = cv2.add(window, cv2.multiply(255 - window, cover, scale=weight / 255))
        else:
            window[:] = cv2.subtract(window, cv2.multiply(window, cover, scale=weight / 255))


def draw_scene(scene: Scene, warp: Warp) -> tuple[Image, Image]:
    """The picture (H, W, 3) uint8 BGR without the camera's faults, and the garment's silhouette (H, W) uint8."""
    canvas = scene.background.copy()
    h, w = canvas.shape[:2]
    painter = _Painter(scene, warp, canvas, np.zeros((h, w), np.uint8), warp.inverse_map((w, h)))
    hanger = scene.hanger
    for item in scene.template.items:
        if isinstance(item, Line):
            painter.line(item)
            continue
        if hanger is not None and item.role != "inner":  # in front of the lining, behind the rest
            draw_hanger(canvas, scene.template, warp, hanger)
            hanger = None
        painter.part(item)
    return canvas, painter.silhouette


def truth(scene: Scene, warp: Warp, image: Image, silhouette: Image) -> GarmentSample:
    """Joins a picture with its exact landmarks."""
    h, w = image.shape[:2]
    template = scene.template
    keypoints = warp(template.landmarks).astype(np.float32)
    inside = ((keypoints >= 0) & (keypoints <= [w - 1, h - 1])).all(1)
    visible = (template.visible * inside).astype(np.float32)
    x, y, bw, bh = cv2.boundingRect(silhouette)
    box = np.array([x, y, x + bw, y + bh], np.float32)
    return GarmentSample(image, keypoints * visible[:, None], visible, box, template.category, template.garment_type)


def render_garment(
    rng: np.random.Generator,
    size: tuple[int, int] = (300, 400),
    *,
    outlines: Sequence[Outline] | None = None,
    backgrounds: Sequence[Image] | None = None,
    textures: Sequence[Image] | None = None,
    garment_type: str | None = None,
) -> GarmentSample:
    """Renders a random garment; the same generator state gives the same sample.

    Args:
        rng: the only source of randomness.
        size: (w, h) of the picture, px, at least 32 each.
        outlines: shapes of real garments from :func:`load_outlines`, used besides the templates.
        backgrounds: (H, W, 3) uint8 BGR photos, used besides the painted backgrounds.
        textures: (H, W, 3) uint8 BGR patches, used besides the painted cloth.
        garment_type: one of ``GARMENT_TYPES``; random by default.

    Raises:
        InputError: ``size`` is too small or the garment type is unknown.
    """
    if len(size) != 2 or min(size) < 32:
        raise InputError(f"size must be (w, h) of at least 32 px each, got {size!r}")
    template = sample_template(rng, garment_type) if garment_type is not None else None
    scene, warp = sample_scene(
        rng, size, template=template, outlines=outlines, backgrounds=backgrounds, textures=textures
    )
    image, silhouette = draw_scene(scene, warp)
    draw_occluders(rng, image, silhouette, textures)
    return truth(scene, warp, photograph(rng, image), silhouette)
