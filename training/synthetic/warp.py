"""The map from garment units to picture px: smooth sways, then a homography. Applied to landmarks exactly."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Warp", "fit_homography", "sample_waves"]

Array = NDArray[np.float64]
_STEP = 16  # px between the nodes at which the inverse is solved


@dataclass(frozen=True)
class Warp:
    """p = H (q + sum_k amplitude_k sin(wave_k . q + phase_k)); q in garment units, p in px."""

    amplitudes: Array  # (K, 2) garment units
    waves: Array  # (K, 2) radians a garment unit
    phases: Array  # (K,) radians
    homography: Array  # (3, 3) garment units -> px

    def __call__(self, points: Array) -> Array:
        """(N, 2) garment units -> (N, 2) px."""
        moved = points + np.sin(points @ self.waves.T + self.phases) @ self.amplitudes
        p = np.column_stack([moved, np.ones(len(moved))]) @ self.homography.T
        return np.asarray(p[:, :2] / p[:, 2:], float)

    @property
    def pixels_per_unit(self) -> float:
        """The mean scale at the garment's middle."""
        a, b, c = self(np.array([[0.0, 0.5], [0.02, 0.5], [0.0, 0.52]]))
        return float(np.sqrt(np.abs(np.linalg.det(np.array([b - a, c - a])))) / 0.02)

    def inverse_map(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """(h, w, 2) float32: the garment point below every pixel, solved on a coarse grid and interpolated."""
        w, h = size
        columns, rows = -(-w // _STEP) + 2, -(-h // _STEP) + 2
        y, x = np.mgrid[-1 : rows - 1, -1 : columns - 1] * float(_STEP) + (_STEP - 1) / 2
        p = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], -1) @ np.linalg.inv(self.homography).T
        target = p[:, :2] / p[:, 2:]
        q = target
        for _ in range(3):  # a contraction: the sways' gradient stays well below one
            q = target - np.sin(q @ self.waves.T + self.phases) @ self.amplitudes
        grid = q.reshape(rows, columns, 2).astype(np.float32)
        full = cv2.resize(grid, (columns * _STEP, rows * _STEP), interpolation=cv2.INTER_LINEAR)
        return np.asarray(full[_STEP : _STEP + h, _STEP : _STEP + w], np.float32)


def sample_waves(rng: np.random.Generator, strength: float = 1.0) -> tuple[Array, Array, Array]:
    """Amplitudes, waves and phases of a random smooth deformation: a few wide sways and some ripples."""
    frequency = np.concatenate([rng.uniform(1.0, 4.0, 4), rng.uniform(6.0, 22.0, 6)])
    gradient = np.concatenate([np.abs(rng.normal(0, 0.035, 4)), np.abs(rng.normal(0, 0.028, 6))]) * strength
    turn, push = rng.uniform(0, 2 * np.pi, (2, 10))
    waves = np.stack([np.cos(turn), np.sin(turn)], -1) * frequency[:, None]
    amplitudes = np.stack([np.cos(push), np.sin(push)], -1) * (gradient / frequency)[:, None]
    return amplitudes, waves, rng.uniform(0, 2 * np.pi, 10)


def fit_homography(
    outline: Array, box: tuple[float, float, float, float], angle: float, tilt: tuple[float, float], stretch: float
) -> Array:
    """Turns by ``angle`` (radians), tilts in depth and scales, so that ``outline`` just fits into ``box`` (xyxy px)."""
    middle = (outline.min(0) + outline.max(0)) / 2
    span = float(np.ptp(outline, 0).max())
    c, s = np.cos(angle), np.sin(angle)
    to_middle = np.array([[1, 0, -middle[0]], [0, 1, -middle[1]], [0, 0, 1]])
    turn = np.array([[c * stretch, -s, 0], [s * stretch, c, 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, 1, 0], [tilt[0] / span, tilt[1] / span, 1]])
    matrix = lean @ turn @ to_middle
    p = np.column_stack([outline, np.ones(len(outline))]) @ matrix.T
    p = p[:, :2] / p[:, 2:]
    low, high = p.min(0), p.max(0)
    scale = min((box[2] - box[0]) / (high[0] - low[0]), (box[3] - box[1]) / (high[1] - low[1]))
    centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2 - scale * (low + high) / 2
    return np.asarray(np.array([[scale, 0, centre[0]], [0, scale, centre[1]], [0, 0, 1]]) @ matrix, float)
