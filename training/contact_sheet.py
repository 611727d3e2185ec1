"""Contact sheets: pages of labelled pictures, small enough to take in at a glance and large enough to judge a label.

This module draws; :mod:`edgepose.training.view` decides what is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.draw import draw_result
from edgepose.errors import InputError
from edgepose.result import PoseResult
from edgepose.spec import ModelSpec

__all__ = ["PICTURE", "Tile", "contact_sheets", "draw_heat", "draw_labels", "fit", "landmark_colors"]

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
Legend = Sequence[tuple[str, Color | None]]

PICTURE = (288, 384)  # (w, h) px of each picture on a page: a crop of 192x256, half as large again
GAP, MARGIN, CAPTION = 14, 24, 42  # px: between tiles, around the page, below a picture
PAPER, MOUNT, INK, FAINT = (250, 250, 250), (226, 226, 226), (40, 40, 40), (110, 110, 110)  # BGR
TAG = (24, 24, 24)
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Tile:
    """One picture with its caption.

    Attributes:
        picture: (h, w, 3) uint8 BGR, at most ``PICTURE`` large.
        title: what it shows.
        name: where it comes from; shortened in the middle where it is too long.
    """

    picture: Image
    title: str
    name: str


def contact_sheets(
    tiles: Sequence[Tile],
    *,
    title: str,
    summary: str,
    legend: Legend = (),
    columns: int = 6,
    rows: int = 4,
) -> Iterator[Image]:
    """Lay tiles out on pages.

    Args:
        tiles: in reading order.
        title: the header's first line; the page's number is added.
        summary: its second line.
        legend: texts, each with the BGR colour of the dot before it; None: without a dot.
        columns, rows: tiles across and down; the last page has only the rows it needs.

    Yields:
        Pages, (H, W, 3) uint8 BGR.

    Raises:
        InputError: no tiles, or a picture larger than ``PICTURE``.
    """
    if not tiles:
        raise InputError("there is nothing to show: the contact sheet got no pictures")
    w, h = PICTURE
    width = 2 * MARGIN + columns * w + (columns - 1) * GAP
    entries = _legend_rows(legend, width - 2 * MARGIN)
    top = MARGIN + 62 + 24 * len(entries) + GAP
    pages = [tiles[start : start + columns * rows] for start in range(0, len(tiles), columns * rows)]
    for number, page in enumerate(pages, 1):
        lines = -(-len(page) // columns)
        sheet = np.full((top + lines * (h + CAPTION + GAP) + MARGIN - GAP, width, 3), PAPER, np.uint8)
        right = f"page {number} of {len(pages)}"
        room = width - 2 * MARGIN - _width(right, 0.6) - 40
        _text(sheet, shorten(title, room, 0.85), (MARGIN, MARGIN + 22), 0.85, weight=2)
        _text(sheet, right, (width - MARGIN - _width(right, 0.6), MARGIN + 22), 0.6, FAINT)
        _text(sheet, shorten(summary, width - 2 * MARGIN, 0.55), (MARGIN, MARGIN + 50), 0.55, FAINT)
        for line, entry in enumerate(entries):
            _draw_legend(sheet, entry, MARGIN + 74 + 24 * line)
        for place, tile in enumerate(page):
            row, column = divmod(place, columns)
            _mount(sheet, tile, MARGIN + column * (w + GAP), top + row * (h + CAPTION + GAP))
        yield sheet


def fit(frame: Image) -> tuple[Image, npt.NDArray[np.float64]]:
    """Scale a frame to ``PICTURE``, whole.

    Returns:
        The picture (h, w, 3) uint8 BGR, and the map (2, 3) float64, frame px -> picture px, pixel centre on pixel
        centre.
    """
    height, width = frame.shape[:2]
    scale = min(PICTURE[0] / width, PICTURE[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(frame, size, interpolation=method), np.uint8)
    sx, sy = size[0] / width, size[1] / height
    return picture, np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2]])


def draw_labels(
    picture: Image, points: Array, flags: npt.NDArray[np.int8], box: Array | None, spec: ModelSpec, doubtful: Array
) -> Image:
    """Draw an object's labels: box, skeleton, landmarks in their colours (inferred ones hollow) and their numbers.

    Args:
        picture: (h, w, 3) uint8 BGR.
        points: (K, 2), picture px.
        flags: (K,) COCO's visibility: 0 not labelled, 1 inferred, 2 seen.
        box: (4,) xyxy, picture px; None: none is drawn.
        spec: names, skeleton and colours.
        doubtful: (K,) bool, landmarks whose number gets a question mark.

    Returns:
        A new picture. A number for which there is no room is left out rather than laid over another.
    """
    labelled = flags > 0
    shown = PoseResult(
        np.where(labelled[:, None], points, 0)[None],
        labelled[None],
        np.zeros((1, 4)) if box is None else box[None],
        spec,
        (picture.shape[1], picture.shape[0]),
    )
    canvas = draw_result(picture, shown, min_score=0.5, boxes=box is not None, labels=False)
    for x, y in points[flags == 1]:  # inferred: a hole in the dot
        if abs(x) < 1 << 15 and abs(y) < 1 << 15:
            cv2.circle(canvas, (round(x * 16), round(y * 16)), 36, (255, 255, 255), -1, cv2.LINE_AA, 4)
    names = [f"{k}?" if doubtful[k] else str(k) for k in range(len(points))]
    _number(canvas, points, names, np.flatnonzero(labelled), box)
    return canvas


def draw_heat(picture: Image, heatmaps: Array, affine: npt.NDArray[np.float64], colors: Sequence[Color]) -> Image:
    """Lay heatmaps over a picture, each in its colour, the strongest on top.

    Args:
        picture: (h, w, 3) uint8 BGR.
        heatmaps: (K, h', w') float32, 0 to 1.
        affine: (2, 3) heatmap cells -> picture px.
        colors: K BGR colours.

    Returns:
        A new picture; where the heat is 1, four fifths of it is the colour.
    """
    height, width = picture.shape[:2]
    heat = np.stack([cv2.warpAffine(h, affine, (width, height), flags=cv2.INTER_LINEAR) for h in heatmaps])
    top = heat.argmax(axis=0)
    strength = 0.8 * np.clip(heat.max(axis=0), 0, 1)[..., None]
    color = np.asarray(colors, np.float32)[top]
    return np.rint(picture * (1 - strength) + color * strength).astype(np.uint8)


def landmark_colors(spec: ModelSpec) -> list[Color]:
    """The K colours that a spec's landmarks are drawn in, BGR."""
    from edgepose.draw import _bgr_colors

    return _bgr_colors(spec)


def shorten(text: str, width: int, scale: float) -> str:
    """A text that is at most ``width`` px wide, its middle left out where it has to be; ASCII, all the font has."""
    text = text.encode("ascii", "replace").decode()
    if _width(text, scale) <= width:
        return text
    for keep in range(len(text) - 1, 1, -1):
        short = f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"
        if _width(short, scale) <= width:
            return short
    return "..."


def _number(canvas: Image, points: Array, names: Sequence[str], which: npt.NDArray[np.intp], box: Array | None) -> None:
    """Write landmarks' numbers on dark tags beside them, where no other landmark or tag is."""
    height, width = canvas.shape[:2]
    radius = 6.0
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in points[which]]
    centre = points[which].mean(0) if box is None and len(which) else np.zeros(2) if box is None else _middle(box)
    for k in which:
        w, h = _width(names[k], 0.42) + 6, 15
        outwards = np.arctan2(*(points[k] - centre)[::-1])
        turns = sorted(np.arange(16) * np.pi / 8, key=lambda t: abs((t - outwards + np.pi) % (2 * np.pi) - np.pi))
        for distance, turn in itertools.product((4.0, 12.0), turns):
            # The tag's nearest edge is `distance` from the dot, whichever side it is on.
            x = points[k, 0] + np.cos(turn) * (radius + distance + w / 2) - w / 2
            y = points[k, 1] + np.sin(turn) * (radius + distance + h / 2) - h / 2
            place = (x, y, x + w, y + h)
            if min(x, y) >= 0 and x + w < width and y + h < height and not any(_overlap(place, t) for t in taken):
                taken.append(place)
                left, top = round(x), round(y)
                patch = canvas[top : top + h, left : left + w]
                patch[:] = (0.25 * patch + 0.75 * np.array(TAG)).astype(np.uint8)
                _text(canvas, names[k], (left + 3, top + 12), 0.42, (255, 255, 255))
                break


def _middle(box: Array) -> Array:
    return (box[:2] + box[2:]) / 2


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _mount(sheet: Image, tile: Tile, x: int, y: int) -> None:
    """Put a tile on the page, its picture in the middle of its place."""
    w, h = PICTURE
    height, width = tile.picture.shape[:2]
    if width > w or height > h:
        raise InputError(f"a tile's picture is at most {w} x {h} px, got {width} x {height} ({tile.name})")
    sheet[y : y + h, x : x + w] = MOUNT
    left, top = x + (w - width) // 2, y + (h - height) // 2
    sheet[top : top + height, left : left + width] = tile.picture
    _text(sheet, shorten(tile.title, w, 0.48), (x, y + h + 17), 0.48)
    _text(sheet, shorten(tile.name, w, 0.4), (x, y + h + 35), 0.4, FAINT)


def _legend_rows(legend: Legend, width: int) -> list[list[tuple[int, str, Color | None]]]:
    """Entries with their x offset, broken into rows."""
    rows: list[list[tuple[int, str, Color | None]]] = []
    x = width + 1
    for text, color in legend:
        room = (18 if color else 0) + _width(text, 0.5) + 22
        if x + room > width + 22:
            rows.append([])
            x = 0
        rows[-1].append((x, text, color))
        x += room
    return rows


def _draw_legend(sheet: Image, entries: Sequence[tuple[int, str, Color | None]], y: int) -> None:
    for x, text, color in entries:
        if color is not None:
            cv2.circle(sheet, (MARGIN + x + 6, y), 6, TAG, -1, cv2.LINE_AA)
            cv2.circle(sheet, (MARGIN + x + 6, y), 4, color, -1, cv2.LINE_AA)
        _text(sheet, text, (MARGIN + x + (18 if color else 0), y + 5), 0.5)


def _width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, FONT, scale, 1)[0][0])


def _text(sheet: Image, text: str, at: tuple[int, int], scale: float, color: Color = INK, weight: int = 1) -> None:
    cv2.putText(sheet, text, at, FONT, scale, color, weight, cv2.LINE_AA)
