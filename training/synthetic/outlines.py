"""Outlines of real garments (COCO polygons and keypoints of the aRTF Clothes set) as templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError

from .shapes import Line, Part, Template, arc, at, join, neckline

__all__ = ["Outline", "load_outlines", "outline_template"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Outline:
    """One real garment, upright, in garment units."""

    garment_type: str  # short_sleeved_shirt or shorts
    polygon: Array  # (N, 2) garment units
    landmarks: Array  # (8, 2) garment units
    visible: Array  # (8,)
    seams: tuple[Array, ...]  # lines across the cloth, (2, 2) each


def load_outlines(path: str | PathLike[str]) -> list[Outline]:
    """Reads T-shirts and shorts from a COCO file, or from every ``*.json`` in a folder; towels are skipped.

    Raises:
        InputError: nothing there, or no usable garment in it.
    """
    place = Path(path)
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"no COCO file at {place}: give a JSON file with polygons and keypoints, or a folder of them")
    found: list[Outline] = []
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {c["id"]: c["name"] for c in content.get("categories", ())}
        for entry in content.get("annotations", ()):
            outline = _upright(names.get(entry["category_id"], ""), entry)
            if outline is not None:
                found.append(outline)
    if not found:
        raise InputError(f"no T-shirt or shorts in {place}: expected categories 'tshirt' and 'shorts'")
    return found


def _upright(name: str, entry: dict[str, object]) -> Outline | None:
    if name not in ("tshirt", "shorts"):
        return None
    rings = entry["segmentation"]
    if not isinstance(rings, list) or not rings:
        return None
    polygon = np.array(max(rings, key=len), float).reshape(-1, 2)
    points = np.array(entry["keypoints"], float).reshape(-1, 3)
    if (points[:, 2] == 0).any() or len(polygon) < 6:
        return None
    keys = points[:, :2]
    landmarks, visible = np.zeros((8, 2)), np.zeros(8)
    if name == "tshirt":
        landmarks[0], landmarks[1] = keys[1], keys[2]
        landmarks[2], landmarks[3] = keys[[10, 11]].mean(0), keys[[4, 5]].mean(0)
        landmarks[6], landmarks[7] = keys[8], keys[7]
        visible[[0, 1, 2, 3, 6, 7]] = 1
        top, seams = landmarks[:2], [keys[[0, 9]], keys[[3, 6]]]
    else:
        landmarks[4], landmarks[5] = keys[0], keys[1]
        landmarks[6], landmarks[7] = keys[[5, 6]].mean(0), keys[[2, 3]].mean(0)
        visible[4:] = 1
        top, seams = landmarks[4:6], [np.stack([landmarks[4:6].mean(0), keys[4]])]
    origin, down = top.mean(0), landmarks[6:].mean(0) - top.mean(0)
    scale = float(np.linalg.norm(down))
    if scale < 20:
        return None
    y = down / scale
    turn = np.stack([[y[1], -y[0]], y])  # image px -> upright
    if (turn @ (top[1] - top[0]))[0] < 0:  # seen from behind: mirrored
        turn[0] *= -1

    def place(p: Array) -> Array:
        return np.asarray((p - origin) @ turn.T / scale, float)

    upright = place(landmarks) * visible[:, None]
    if upright[7, 0] < upright[6, 0] or np.abs(place(polygon)).max() > 3:
        return None  # twisted or crumpled beyond use
    return Outline(
        "short_sleeved_shirt" if name == "tshirt" else "shorts",
        place(polygon),
        upright,
        visible,
        tuple(place(s) for s in seams),
    )


def outline_template(rng: np.random.Generator, outlines: Sequence[Outline], garment_type: str) -> Template:
    """A random real outline of this type, at random mirrored and stretched, with seams drawn on."""
    fitting = [o for o in outlines if o.garment_type == garment_type] or list(outlines)
    chosen = fitting[int(rng.integers(len(fitting)))]
    stretch = np.array([np.exp(rng.normal(0, 0.08)), 1.0])
    flip = rng.random() < 0.5
    if flip:
        stretch[0] *= -1
    polygon, landmarks = chosen.polygon * stretch, chosen.landmarks * stretch
    if flip:
        landmarks = landmarks[[1, 0, 3, 2, 5, 4, 7, 6]]
    items: list[Part | Line] = [Part(polygon, shadow=0.5)]
    items += [Line(arc(s[0] * stretch, s[1] * stretch, 0.05), 0.005, 0.75) for s in chosen.seams]
    upper = chosen.garment_type == "short_sleeved_shirt"
    left, right = landmarks[:2] if upper else landmarks[4:6]
    width = float(np.linalg.norm(right - left))
    edge = neckline(
        left, right, width * float(rng.uniform(0.15, 0.5)) if upper else width * float(rng.uniform(0, 0.08)), 2.0
    )
    if upper or rng.random() < 0.5:
        back = neckline(left, right, -width * 0.02, 2.0)
        items.append(Part(join(back, edge[::-1]), "inner", shade=float(rng.uniform(0.55, 0.9))))
    items.append(Line(edge, width * 0.06, float(rng.choice([0.75, 0.85, 1.2]))))
    hem = landmarks[6:]
    if upper:
        items.append(Line(arc(hem[0], hem[1], -0.02) * (0.98, 1) - at(0, 0.02), 0.003, 0.75))
    chest = (0.0, 0.36, 0.22) if upper else (0.2, 0.5, 0.12)
    return Template(
        chosen.garment_type, tuple(items), landmarks, chosen.visible.copy(), chest, np.stack([left, right]) * 1.2
    )
