"""What the hand-written peers do before the network: OpenCV cuts the boxes out and makes one batch of them.

In their favour: the affines of all boxes are made at once, crops are written into one array, and OpenCV's own
blobFromImages swaps the colours and normalises, in about half the time of the NumPy lines that one finds everywhere.
:class:`Steps` writes both into arrays that it keeps, as ours does.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose import geometry
from edgepose.spec import ModelSpec

__all__ = ["Steps", "crop_pictures", "network_input"]

Pictures = NDArray[np.uint8]  # (N, h, w, 3) BGR
Affines = NDArray[np.float64]  # (N, 2, 3) frame px -> crop px


class Steps:
    """Both steps for a model, for one call after the other: what they return is overwritten by the next call."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._pictures, self._images = _arrays(0, spec)  # for the most boxes seen

    def crop_pictures(self, frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[Pictures, Affines]:
        """See :func:`crop_pictures`."""
        if len(boxes) > len(self._pictures):
            self._pictures, self._images = _arrays(len(boxes), self._spec)
        return crop_pictures(frame, boxes, self._spec, self._pictures[: len(boxes)])

    def network_input(self, pictures: Pictures) -> NDArray[np.float32]:
        """(N, 3, h, w) float32 RGB, normalised, of the pictures that :meth:`crop_pictures` returned."""
        return network_input(pictures, self._spec, self._images[: len(pictures)])


def _arrays(count: int, spec: ModelSpec) -> tuple[Pictures, NDArray[np.float32]]:
    width, height = spec.input_size
    return np.empty((count, height, width, 3), np.uint8), np.empty((count, 3, height, width), np.float32)


def crop_pictures(
    frame: NDArray[np.uint8], boxes: NDArray[np.float32], spec: ModelSpec, out: Pictures | None = None
) -> tuple[Pictures, Affines]:
    """One cv2.warpAffine a box, into ``out`` where there is one.

    A model that was trained on photos without aliasing ("area") gets them so.
    """
    affines = geometry.crop_affines(boxes, spec.input_size, spec.codec, spec.padding)
    pictures = _arrays(len(boxes), spec)[0] if out is None else out
    sources = [(frame, affine) for affine in affines]
    if spec.sampling == "area":
        inverses = geometry.invert_affines(affines)
        sources = [_shrunk(frame, *both, spec.input_size) for both in zip(affines, inverses, strict=True)]
    for picture, (source, matrix) in zip(pictures, sources, strict=True):
        cv2.warpAffine(source, matrix, spec.input_size, dst=picture, flags=cv2.INTER_LINEAR)
    return pictures, affines


def network_input(pictures: Pictures, spec: ModelSpec, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """(N, 3, h, w) float32 RGB, normalised; ``out`` where there is one."""
    blob = cv2.dnn.Image2BlobParams()
    blob.scalefactor = tuple(1 / value for value in spec.std)
    blob.size, blob.mean, blob.swapRB = spec.input_size, spec.mean, True
    return cv2.dnn.blobFromImagesWithParams(list(pictures), out, blob)  # type: ignore[return-value]


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
