"""What the hand-written peers do before the network: OpenCV cuts the boxes out and makes one batch of them.

In their favour: the affines of all boxes are made at once, crops are written into one array, and OpenCV's own
blobFromImages swaps the colours and normalises, in about half the time of the NumPy lines that one finds everywhere.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.benchmarks.peers import mmpose_steps
from edgepose.spec import ModelSpec

__all__ = ["crop_pictures", "network_input"]

Pictures = NDArray[np.uint8]  # (N, h, w, 3) BGR
Affines = NDArray[np.float64]  # (N, 2, 3) frame px -> crop px


def crop_pictures(frame: NDArray[np.uint8], boxes: NDArray[np.float32], spec: ModelSpec) -> tuple[Pictures, Affines]:
    """One cv2.warpAffine a box. A model that was trained on photos without aliasing ("area") gets them so."""
    if spec.sampling != "area":
        return mmpose_steps.crop_pictures(frame, boxes, spec)
    affines = geometry.crop_affines(boxes, spec.input_size, spec.codec, spec.padding)
    pictures = np.empty((len(boxes), *spec.input_size[::-1], 3), np.uint8)
    for picture, affine, inverse in zip(pictures, affines, geometry.invert_affines(affines), strict=True):
        source, matrix = _shrunk(frame, affine, inverse, spec.input_size)
        picture[:] = cv2.warpAffine(source, matrix, spec.input_size, flags=cv2.INTER_LINEAR)
    return pictures, affines


def network_input(pictures: Pictures, spec: ModelSpec) -> NDArray[np.float32]:
    """(N, 3, h, w) float32 RGB, normalised."""
    blob = cv2.dnn.Image2BlobParams()
    blob.scalefactor = tuple(1 / value for value in spec.std)
    blob.size, blob.mean, blob.swapRB = spec.input_size, spec.mean, True
    return cv2.dnn.blobFromImagesWithParams(list(pictures), blob)  # type: ignore[return-value]


def _shrunk(
    frame: NDArray[np.uint8], affine: NDArray[np.float64], inverse: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """What the crop sees of the frame, shrunk 2, 4, ... times while at least two px are left for each of the crop."""
    block = 1
    while inverse[0, 0] / block >= 4:
        block *= 2
    if block == 1:
        return frame, affine
    height, width = frame.shape[:2]
    corners = inverse[:, :2] @ np.array([[-1, size[0]], [-1, size[1]]]) + inverse[:, 2:]
    left, top = (np.clip(corners[:, 0], 0, None) // block * block).astype(int)
    right, bottom = (np.clip(corners[:, 1], 0, (width, height)) // block * block).astype(int) + block
    region = frame[top:bottom, left:right]
    across, down = region.shape[1] // block, region.shape[0] // block
    if across < 1 or down < 1:
        return frame, affine
    shrunk = cv2.resize(region[: down * block, : across * block], (across, down), interpolation=cv2.INTER_AREA)
    # px of the shrunk picture -> frame px: centres of blocks
    first = np.array([left, top]) + (block - 1) / 2
    matrix = np.column_stack([affine[:, :2] * block, affine[:, :2] @ first + affine[:, 2]])
    return np.asarray(shrunk, np.uint8), matrix
