"""Drawing a result on a frame."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError
from edgepose.frames import as_bgr
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from edgepose.detections import Detections
    from edgepose.result import PoseResult

__all__ = ["draw_detections", "draw_result"]

_OUTLINE = (24, 24, 24)  # BGR: a dark edge keeps bright colours readable on white cloth
_BOX = (235, 235, 235)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SHIFT = 4  # OpenCV draws at 1/16 px, so that a slow landmark does not jump from pixel to pixel in a video
_FAR = 1 << 15  # px; OpenCV's drawing coordinates are int32 with 4 fractional bits


def draw_result(
    frame: NDArray[np.uint8],
    result: PoseResult,
    *,
    min_score: float,
    boxes: bool = True,
    labels: bool | None = None,
) -> NDArray[np.uint8]:
    """Draw boxes, skeleton and landmarks in the spec's colours on a copy of the frame.

    Args:
        frame: the frame that the result came from, in any form that ``predict`` takes.
        result: what to draw.
        min_score: landmarks below it, and the lines that end there, are left out.
        boxes: draw the boxes too, each with what is known of it: category, track id, the detector's score.
        labels: write the landmarks' names beside them; None: where there is a single box.

    Returns:
        (H, W, 3) uint8 BGR, new memory. Lines grow with the frame: 1 px up to about 500 px, 3 px at full HD.

    Raises:
        InputError: not a frame, or a frame of another size.
    """
    canvas, unit = _canvas(frame, result.frame_size)
    colors = _bgr_colors(result.spec)
    labels = len(result) == 1 if labels is None else labels
    for index, (points, scores, box) in enumerate(zip(result.keypoints, result.scores, result.boxes, strict=True)):
        shown = (scores >= min_score) & np.isfinite(points).all(axis=1) & (np.abs(points) < _FAR).all(axis=1)
        if boxes:
            _draw_box(canvas, box, unit)
            if title := _title(result, index):
                _draw_title(canvas, box, title, unit)
        for a, b in result.spec.skeleton:
            if shown[a] and shown[b]:
                _draw_link(canvas, points[a], points[b], colors[a], unit)
        for i in np.flatnonzero(shown) if labels else ():
            _draw_label(canvas, points[i], box, result.spec.keypoint_names[i], unit)
        for i in np.flatnonzero(shown):  # last: no tag may cover a landmark
            _draw_point(canvas, points[i], colors[i], unit)
    return canvas


def draw_detections(frame: NDArray[np.uint8], detections: Detections) -> NDArray[np.uint8]:
    """Draw the boxes of a detector with their categories and scores on a copy of the frame, (H, W, 3) uint8 BGR.

    Raises:
        InputError: not a frame, or a frame of another size.
    """
    canvas, unit = _canvas(frame, detections.frame_size)
    for box, name, score in reversed(
        list(zip(detections.boxes, detections.category_names, detections.scores, strict=True))
    ):
        _draw_box(canvas, box, unit)  # the best one last: it lies on top
        _draw_title(canvas, box, f"{name.replace('_', ' ')} {score:.2f}", unit)
    return canvas


def _canvas(frame: NDArray[np.uint8], frame_size: tuple[int, int]) -> tuple[NDArray[np.uint8], int]:
    """A BGR copy of the frame that a result belongs to, and the width of a thin line on it, px."""
    canvas = as_bgr(frame).copy()
    height, width = canvas.shape[:2]
    if (width, height) != tuple(frame_size):
        raise InputError(
            f"the result belongs to a frame of {frame_size[0]} x {frame_size[1]} px, this one has {width} x {height}: "
            "draw on the frame that it was found in"
        )
    return canvas, max(1, round((width * height) ** 0.5 / 450))


def _bgr_colors(spec: ModelSpec) -> list[tuple[int, int, int]]:
    """The spec's RGB colours turned round; without any, K hues that are evenly spread."""
    if spec.colors:
        return [(b, g, r) for r, g, b in spec.colors]
    hues = (colorsys.hsv_to_rgb(i / spec.num_keypoints, 0.75, 1.0) for i in range(spec.num_keypoints))
    return [(round(b * 255), round(g * 255), round(r * 255)) for r, g, b in hues]


def _fixed(point: NDArray[Any]) -> tuple[int, int]:
    x, y = np.rint(point * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


def _draw_box(canvas: NDArray[np.uint8], box: NDArray[Any], unit: int) -> None:
    x1, y1, x2, y2 = (round(v) for v in np.clip(box, -_FAR, _FAR).tolist())
    cv2.rectangle(canvas, (x1, y1), (x2, y2), _OUTLINE, unit + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), _BOX, unit, cv2.LINE_AA)


def _title(result: PoseResult, index: int) -> str:
    """What is known of a box, for instance ``#3 trousers 0.97``; may be empty."""
    parts = [f"#{result.track_ids[index]}"] if result.track_ids is not None else []
    if result.categories:
        parts.append(result.categories[index].replace("_", " "))
    if result.box_scores is not None and np.isfinite(result.box_scores[index]):
        parts.append(f"{result.box_scores[index]:.2f}")
    return " ".join(parts)


def _draw_title(canvas: NDArray[np.uint8], box: NDArray[Any], text: str, unit: int) -> None:
    """Write on a dark tag above the box's left corner, inside where the frame ends there."""
    height, width = canvas.shape[:2]
    w, h, pad = _text_size(text, unit)
    left = min(max(round(float(np.clip(box[0], -_FAR, _FAR))), 0) + pad, max(width - w - pad, pad))
    top = round(float(np.clip(box[1], -_FAR, _FAR)))
    bottom = top - 2 * pad if top - h - 3 * pad >= 0 else max(top, 0) + h + 2 * pad
    _write(canvas, (left, min(bottom, height - pad)), text, unit)


def _draw_link(
    canvas: NDArray[np.uint8], a: NDArray[Any], b: NDArray[Any], color: tuple[int, int, int], unit: int
) -> None:
    cv2.line(canvas, _fixed(a), _fixed(b), _OUTLINE, 2 * unit + 2, cv2.LINE_AA, _SHIFT)
    cv2.line(canvas, _fixed(a), _fixed(b), color, 2 * unit, cv2.LINE_AA, _SHIFT)


def _draw_point(canvas: NDArray[np.uint8], point: NDArray[Any], color: tuple[int, int, int], unit: int) -> None:
    radius = (3 * unit + 1) << _SHIFT
    cv2.circle(canvas, _fixed(point), radius + (3 * unit << _SHIFT) // 2, _OUTLINE, -1, cv2.LINE_AA, _SHIFT)
    cv2.circle(canvas, _fixed(point), radius, color, -1, cv2.LINE_AA, _SHIFT)


def _draw_label(canvas: NDArray[np.uint8], point: NDArray[Any], box: NDArray[Any], text: str, unit: int) -> None:
    """Write a name on a dark tag, on the side of its landmark that faces away from the box's middle."""
    width = canvas.shape[1]
    gap = 5 * unit + 3
    w, h, pad = _text_size(text, unit)
    left, right = round(float(point[0])) - gap - w - pad, round(float(point[0])) + gap + pad
    outwards, inwards = (left, right) if point[0] < (box[0] + box[2]) / 2 else (right, left)
    x = outwards if pad <= outwards <= width - w - pad else inwards
    y = round(float(point[1])) + h // 2
    _write(canvas, (x, y), text, unit)


def _text_size(text: str, unit: int) -> tuple[int, int, int]:
    """Width and height of a text, and of the dark edge around it, px."""
    (w, h), _ = cv2.getTextSize(text, _FONT, *_lettering(unit))
    return w, h, 2 * unit


def _lettering(unit: int) -> tuple[float, int]:
    """OpenCV's scale and weight of the font."""
    return 0.2 + 0.18 * unit, 1 + unit // 3


def _write(canvas: NDArray[np.uint8], start: tuple[int, int], text: str, unit: int) -> None:
    """White letters that start at the baseline point ``start``, on a dark tag."""
    (x, y), (w, h, pad) = start, _text_size(text, unit)
    # A tag, not an outlined text: OpenCV 5 widens the letters with their weight, so that an outline would not fit them.
    tag = canvas[max(0, y - h - pad) : max(0, y + pad + 1), max(0, x - pad) : max(0, x + w + pad)]
    tag[:] = (0.3 * tag + 0.7 * np.array(_OUTLINE)).astype(np.uint8)
    scale, weight = _lettering(unit)
    cv2.putText(canvas, text, (x, y), _FONT, scale, (255, 255, 255), weight, cv2.LINE_AA)
