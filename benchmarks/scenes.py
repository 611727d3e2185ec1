"""Frames to predict on: rendered garments on a floor, from our own renderer, so that anyone has the same."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import InputError
from edgepose.training.synthetic import render_garment

__all__ = ["FRAMES", "Scene", "frame_size", "scene"]

FRAMES = {"720p": (1280, 720), "1080p": (1920, 1080), "1440p": (2560, 1440), "4K": (3840, 2160)}
GARMENTS = 8  # different ones; a scene with more boxes shows them again, and frames them a little otherwise
LEAST = 160  # px: a smaller frame's garments would be specks
TALL = 3  # a garment's picture is this part of the frame's height


class Scene(NamedTuple):
    """A frame and where its objects are.

    Attributes:
        frame: (H, W, 3) uint8 BGR.
        boxes: (N, 4) float32 xyxy, frame px.
    """

    frame: NDArray[np.uint8]
    boxes: NDArray[np.float32]


def frame_size(name: str) -> tuple[int, int]:
    """(w, h) px of ``1080p``, or of any ``WIDTHxHEIGHT``. Raises InputError."""
    if name in FRAMES:
        return FRAMES[name]
    try:
        width, height = (int(side) for side in name.lower().split("x"))
    except ValueError:
        width = height = 0
    if min(width, height) < LEAST:
        raise InputError(f"a frame is {', '.join(FRAMES)}, or WIDTHxHEIGHT of at least {LEAST} px, got {name!r}")
    return width, height


def scene(width: int, height: int, count: int, *, seed: int = 0) -> Scene:
    """A frame with garments in a grid, and ``count`` boxes around them.

    Each garment is as tall as a third of the frame allows, whatever the frame's size. Boxes after the eighth frame the
    same garments anew, each corner moved by up to 5 % of the box, so that no two crops are equal.

    Args:
        width, height: of the frame, px.
        count: how many boxes, at least 0.
        seed: another seed, other garments.

    Raises:
        InputError: a negative count, or a frame below 160 px.
    """
    if count < 0 or min(width, height) < LEAST:
        raise InputError(f"a scene has 0 or more boxes on at least {LEAST} px, got {count} on {width}x{height}")
    frame, garments = _garments(width, height, seed)
    rng = np.random.default_rng([seed, 1])
    boxes = np.resize(garments, (count, 4)).astype(np.float32)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    jitter = rng.uniform(-0.05, 0.05, boxes.shape) * sides
    jitter[:GARMENTS] = 0
    limits = np.array([width, height, width, height], np.float32)
    return Scene(frame, np.clip(boxes + jitter, 0, limits).astype(np.float32))


@lru_cache(maxsize=16)
def _garments(width: int, height: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The frame, and the boxes (8, 4) of its garments. The frame is shared: nobody may write into it."""
    rng = np.random.default_rng([seed, 0])
    tall = height // TALL
    wide = min(tall * 3 // 4, width // 4)
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = np.add(rng.normal(120, 6, (height, width, 1)), (0, 8, 14)).clip(0, 255)
    lefts = np.linspace(0, width - wide, GARMENTS // 2).astype(int)
    gap = (height - 2 * tall) // 3
    tops = (gap, 2 * gap + tall)
    boxes = []
    for number in range(GARMENTS):
        sample = render_garment(np.random.default_rng([seed, 2, number]), (wide, tall))
        left, top = int(lefts[number % len(lefts)]), tops[number // len(lefts)]
        frame[top : top + tall, left : left + wide] = sample.image
        boxes.append(np.add(sample.box, (left, top, left, top)))
    frame.setflags(write=False)
    return frame, np.array(boxes, np.float32)
