"""Rows of detectors that nobody has trained, for the tests of select_detections."""

from __future__ import annotations

from typing import Any

import numpy as np

INPUT_SIZE = (320, 256)
ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, 1.7e7], np.float32)


def random_rows(rng: np.random.Generator, count: int, labels: int = 4) -> np.ndarray:
    """(count, 6) float32 with ties of scores, equal and inverted boxes, boxes beside the frame, NaN and infinities."""
    corner, side = rng.uniform(-40, 340, (count, 2)), rng.uniform(-5, 120, (count, 2))
    scores, label = rng.random((count, 1)), rng.integers(-1, labels + 1, (count, 1)).astype(float)
    if rng.random() < 0.5:  # on a grid: many intersections over union are alike
        corner, side = np.round(corner / 16) * 16, np.round(side / 16) * 16
    if rng.random() < 0.5:
        scores = np.round(scores * 8) / 8 - rng.choice([0, 0.5])
    if rng.random() < 0.3:
        label += rng.uniform(-0.6, 0.6, label.shape)
    rows = np.concatenate([corner, corner + side, scores, label], axis=1).astype(np.float32)
    odd = rng.random(rows.shape) < 0.01
    rows[odd] = rng.choice(ODD, odd.sum())
    return rows


def random_settings(rng: np.random.Generator, labels: int = 4) -> dict[str, Any]:
    """Arguments of select_detections, but for the frame."""
    return {
        "min_score": float(rng.choice([-1, 0, 0.05, 0.5, 0.9])),
        "nms_iou": rng.choice(np.array([None, 0.0, 0.3, 0.45, 0.7, 1.0])),
        "max_detections": int(rng.choice([1, 10, 100, 300])),
        "keep": None if rng.random() < 0.4 else rng.random(labels) < 0.7,
        "class_agnostic": bool(rng.random() < 0.3),
    }
