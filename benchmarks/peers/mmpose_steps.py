"""The steps that MMPose 1.3.2 takes around a network, in our own words: NumPy and OpenCV, looped where it loops.

Zhang et al., "Distribution-Aware Coordinate Representation" (DARK, CVPR 2020), and Huang et al., "The Devil is in the
Details" (UDP, CVPR 2020). In their favour: the affines of all boxes are made at once, and so are the maxima of
all instances. ``dark_udp`` takes the differences of all channels of an instance at once, as MMPose does.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.spec import ModelSpec

__all__ = ["crop_pictures", "decode", "landmarks", "newton_udp"]


def crop_pictures(
    frame: NDArray[np.uint8], boxes: NDArray[np.float32], spec: ModelSpec
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """(N, h, w, 3) uint8 BGR, cut by cv2.warpAffine for each box, and the affines (N, 2, 3), frame px -> crop px."""
    affines = geometry.crop_affines(boxes, spec.input_size, codec=spec.codec, padding=spec.padding)
    pictures = np.empty((len(boxes), *spec.input_size[::-1], 3), np.uint8)
    for picture, affine in zip(pictures, affines, strict=True):
        cv2.warpAffine(frame, affine, spec.input_size, dst=picture, flags=cv2.INTER_LINEAR)
    return pictures, affines


def landmarks(
    heatmaps: NDArray[np.float32], affines: NDArray[np.float64], spec: ModelSpec
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Heatmaps (N, K, h, w) of the crops -> keypoints (N, K, 2), frame px, and scores (N, K)."""
    cells, scores = decode(heatmaps, spec.refinement, spec.blur_kernel)
    points = geometry.heatmap_to_crop(cells, spec.codec, spec.input_size, spec.heatmap_size)
    return geometry.transform_points(points, geometry.invert_affines(affines)), scores


def decode(
    heatmaps: NDArray[np.float32], refinement: str, blur_kernel: int = 11
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """(N, K, h, w), left as they are -> cells (N, K, 2), x before y, and scores (N, K): the maxima.

    ``refinement``: none, shift, dark or dark_udp, as of :func:`edgepose.kernels.reference.decode_heatmaps`.
    """
    count, channels, _, width = heatmaps.shape
    flat = heatmaps.reshape(count, channels, -1)
    places, scores = flat.argmax(axis=2), flat.max(axis=2)
    cells = np.stack([places % width, places // width], axis=-1).astype(np.float64)
    cells[scores <= 0] = -1
    if refinement == "none":
        return cells, scores
    for points, maps in zip(cells, heatmaps, strict=True):
        if refinement == "shift":
            _shift(points, maps)
        elif refinement == "dark":
            _dark(points, np.log(np.maximum(_blurred(maps, blur_kernel), np.float32(1e-10))))
        else:
            newton_udp(points, np.log(np.clip(_blurred(maps, blur_kernel), np.float32(1e-3), np.float32(50))))
    return cells, scores


def _shift(points: NDArray[np.float64], maps: NDArray[np.float32]) -> None:
    """A quarter of a cell towards the larger neighbour."""
    height, width = maps.shape[1:]
    for point, heatmap in zip(points, maps, strict=True):
        x, y = int(point[0]), int(point[1])
        if 1 < x < width - 1 and 0 < y < height:
            point[0] += 0.25 * np.sign(heatmap[y, x + 1] - heatmap[y, x - 1])
        if 1 < y < height - 1 and 0 < x < width:
            point[1] += 0.25 * np.sign(heatmap[y + 1, x] - heatmap[y - 1, x])


def _blurred(maps: NDArray[np.float32], kernel: int) -> NDArray[np.float32]:
    """Each whole map with zeros around it, blurred, its maximum as before."""
    radius = (kernel - 1) // 2
    height, width = maps.shape[1:]
    result = np.empty_like(maps)
    padded = np.zeros((height + 2 * radius, width + 2 * radius), np.float32)
    for blurred, heatmap in zip(result, maps, strict=True):
        padded[radius : radius + height, radius : radius + width] = heatmap
        blurred[:] = cv2.GaussianBlur(padded, (kernel, kernel), 0)[radius : radius + height, radius : radius + width]
        np.multiply(blurred, heatmap.max() / blurred.max(), out=blurred)
    return result


def _dark(points: NDArray[np.float64], logs: NDArray[np.float32]) -> None:
    """A Newton step on each logarithm, differences two cells wide."""
    height, width = logs.shape[1:]
    for point, m in zip(points, logs, strict=True):
        x, y = int(point[0]), int(point[1])
        if not (1 < x < width - 2 and 1 < y < height - 2):
            continue
        gradient = 0.5 * np.array([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]])
        xx = 0.25 * (m[y, x + 2] - 2 * m[y, x] + m[y, x - 2])
        yy = 0.25 * (m[y + 2, x] - 2 * m[y, x] + m[y - 2, x])
        xy = 0.25 * (m[y + 1, x + 1] - m[y - 1, x + 1] - m[y + 1, x - 1] + m[y - 1, x - 1])
        if xx * yy - xy**2 != 0:
            point[:] -= np.linalg.inv(np.array([[xx, xy], [xy, yy]])) @ gradient


def newton_udp(points: NDArray[np.float64], logs: NDArray[np.float32]) -> None:
    """A Newton step on all logarithms of an instance, differences one cell wide, edges repeated."""
    height, width = logs.shape[1:]
    flat = np.pad(logs, ((0, 0), (1, 1), (1, 1)), mode="edge").reshape(-1)
    row = width + 2
    own = points[:, 0] + 1 + (points[:, 1] + 1) * row + np.arange(len(points)) * row * (height + 2)
    index = own.astype(np.int64)

    def at(x: int, y: int) -> Any:
        return flat[index + x + y * row]

    middle = at(0, 0)
    gradient = 0.5 * np.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], axis=1)
    xx, yy = at(1, 0) - 2 * middle + at(-1, 0), at(0, 1) - 2 * middle + at(0, -1)
    xy = 0.5 * (at(1, 1) - at(1, 0) - at(0, 1) + 2 * middle - at(-1, 0) - at(0, -1) + at(-1, -1))
    hessian = np.stack([xx, xy, xy, yy], axis=1).reshape(-1, 2, 2) + np.finfo(np.float32).eps * np.eye(2)
    points -= (np.linalg.inv(hessian) @ gradient[..., None])[..., 0]
