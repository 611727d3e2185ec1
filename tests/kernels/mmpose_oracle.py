"""An independent, slow decoder: MMPose 1.3.2's definitions written out one map at a time (reference/README facts).

It exists so that random maps can be compared, not only the recorded ones. tests/kernels/test_decode.py first checks it
against the recorded vectors.
"""

from __future__ import annotations

import cv2
import numpy as np


def maxima(heatmaps):
    count, _, width = heatmaps.shape
    flat = heatmaps.reshape(count, heatmaps.shape[1] * width)
    index = flat.argmax(axis=1)
    return np.stack([index % width, index // width], axis=1), flat.max(axis=1)


def blurred(heatmap, kernel):
    radius = (kernel - 1) // 2
    padded = cv2.GaussianBlur(np.pad(heatmap, radius), (kernel, kernel), 0)
    inner = padded[radius : radius + heatmap.shape[0], radius : radius + heatmap.shape[1]].copy()
    inner *= heatmap.max() / inner.max()
    return inner


def decode(heatmaps, refinement, kernel=11):
    """(K, h, w) float32 with a positive maximum each -> (K, 2) float64 cells."""
    peaks, _ = maxima(heatmaps)
    points = peaks.astype(np.float64)
    height, width = heatmaps.shape[1:]
    for number, ((x, y), heatmap) in enumerate(zip(peaks, heatmaps, strict=True)):
        if refinement == "shift":
            if 1 < x < width - 1 and 0 < y < height:
                points[number, 0] += 0.25 * np.sign(heatmap[y, x + 1] - heatmap[y, x - 1])
            if 1 < y < height - 1 and 0 < x < width:
                points[number, 1] += 0.25 * np.sign(heatmap[y + 1, x] - heatmap[y - 1, x])
        elif refinement == "dark":
            if 1 < x < width - 2 and 1 < y < height - 2:
                m = np.log(np.maximum(blurred(heatmap, kernel), np.float32(1e-10)))
                gradient = 0.5 * np.array([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]])
                dxx = 0.25 * (m[y, x + 2] - 2 * m[y, x] + m[y, x - 2])
                dyy = 0.25 * (m[y + 2, x] - 2 * m[y, x] + m[y - 2, x])
                dxy = 0.25 * (m[y + 1, x + 1] - m[y - 1, x + 1] - m[y + 1, x - 1] + m[y - 1, x - 1])
                if dxx * dyy - dxy**2 != 0:
                    points[number] -= np.linalg.inv(np.array([[dxx, dxy], [dxy, dyy]])) @ gradient
        elif refinement == "dark_udp":
            logs = np.log(np.clip(blurred(heatmap, kernel), np.float32(1e-3), np.float32(50)))
            m = np.pad(logs, 2, mode="edge")[1 + y : 4 + y, 1 + x : 4 + x]
            gradient = 0.5 * np.array([m[1, 2] - m[1, 0], m[2, 1] - m[0, 1]])
            dxx = m[1, 2] - 2 * m[1, 1] + m[1, 0]
            dyy = m[2, 1] - 2 * m[1, 1] + m[0, 1]
            ahead = m[2, 2] - m[1, 2] - m[2, 1] + m[1, 1]
            dxy = 0.5 * (ahead + m[1, 1] - m[1, 0] - m[0, 1] + m[0, 0])
            hessian = np.array([[dxx, dxy], [dxy, dyy]], np.float64) + np.finfo(np.float32).eps * np.eye(2)
            points[number] -= np.linalg.inv(hessian) @ gradient
    return points


def sensitivity(heatmaps, refinement, rng):
    """(K,) how far, in cells, the decoded point moves under a 4e-7 relative jitter of the map, its peak held."""
    points, (peaks, _) = decode(heatmaps, refinement), maxima(heatmaps)
    worst = np.zeros(len(heatmaps))
    for _ in range(4):
        jittered = (heatmaps * (1 + rng.uniform(-4e-7, 4e-7, heatmaps.shape))).astype(np.float32)
        moved = np.abs(decode(jittered, refinement) - points).max(axis=1)
        held = (maxima(jittered)[0] == peaks).all(axis=1)
        worst = np.maximum(worst, np.where(held, moved, np.inf))
    return worst
