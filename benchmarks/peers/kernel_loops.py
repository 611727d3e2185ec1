"""The peers of the kernels on the CPU: OpenCV and NumPy as one writes them, and rtmlib's own functions.

Each does what its namesake in edgepose.kernels.reference does, on the same arguments. Choices in their favour: all
boxes come in one call where their code allows it, and OpenCV's own functions for batches stand beside the plain loops.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "blob_letterbox",
    "loop_letterbox",
    "merge_loop",
    "nms_batched",
    "rtmlib_functions",
    "warp_blob",
    "warp_loop",
]

Size = tuple[int, int]
Crops = NDArray[np.float32]  # (N, 3, h, w) RGB, normalised
Colours = tuple[float, float, float]  # RGB, 0-255


def warp_loop(frame: NDArray[np.uint8], affines: NDArray[np.float64], size: Size, mean: Colours, std: Colours) -> Crops:
    """cv2.warpAffine for each box, then colours, mean and standard deviation in NumPy: what tutorials show."""
    crops = np.empty((len(affines), 3, size[1], size[0]), np.float32)
    means, stds = np.array(mean, np.float32), np.array(std, np.float32)
    for crop, affine in zip(crops, affines, strict=True):
        picture = cv2.cvtColor(cv2.warpAffine(frame, affine, size, flags=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
        crop[:] = ((picture.astype(np.float32) - means) / stds).transpose(2, 0, 1)
    return crops


def warp_blob(frame: NDArray[np.uint8], affines: NDArray[np.float64], size: Size, mean: Colours, std: Colours) -> Crops:
    """cv2.warpAffine for each box, then OpenCV's own blobFromImages for the rest."""
    pictures = [cv2.warpAffine(frame, affine, size, flags=cv2.INTER_LINEAR) for affine in affines]
    return cv2.dnn.blobFromImagesWithParams(pictures, _blob(size, mean, std))  # type: ignore[return-value]


def loop_letterbox(frame: NDArray[np.uint8], size: Size, pad: int, mean: Colours, std: Colours) -> NDArray[np.float32]:
    """cv2.resize into a canvas, then colours, mean and standard deviation in NumPy. (3, h, w) RGB."""
    width, height = size
    scale = min(width / frame.shape[1], height / frame.shape[0])
    picture = cv2.resize(frame, (round(frame.shape[1] * scale), round(frame.shape[0] * scale)))
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    canvas = np.full((height, width, 3), pad, np.uint8)
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    rgb = cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB).astype(np.float32)
    return np.ascontiguousarray(((rgb - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1))


def blob_letterbox(frame: NDArray[np.uint8], size: Size, pad: int, mean: Colours, std: Colours) -> NDArray[np.float32]:
    """cv2.dnn.blobFromImageWithParams with its letterbox. (3, h, w) RGB.

    It fills the border after the channels have been swapped and before they are normalised.
    """
    blob = _blob(size, mean, std)
    blob.paddingmode = cv2.dnn.DNN_PMODE_LETTERBOX
    blob.borderValue = (pad, pad, pad, 0)
    return np.asarray(cv2.dnn.blobFromImageWithParams(frame, blob)[0])


def _blob(size: Size, mean: Colours, std: Colours) -> Any:
    """(level - mean) * scale, RGB planes."""
    blob = cv2.dnn.Image2BlobParams()
    blob.scalefactor = tuple(1 / value for value in std)
    blob.size, blob.mean, blob.swapRB = size, mean, True
    return blob


def nms_batched(rows: NDArray[np.float32], min_score: float, iou: float) -> NDArray[np.int64]:
    """The numbers of the rows (Q, 6) that cv2.dnn.NMSBoxesBatched keeps; it wants boxes as x y w h.

    It gets the rows above the score only: of all rows it would make lists first, which takes most of its time.
    """
    chosen = np.flatnonzero(rows[:, 4] >= min_score)
    good = rows[chosen]
    boxes = np.concatenate([good[:, :2], good[:, 2:4] - good[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(boxes, good[:, 4], good[:, 5].astype(np.int32), min_score, iou)  # type: ignore
    return chosen[np.asarray(kept, np.int64).reshape(-1)]


def merge_loop(
    heatmaps: NDArray[np.float32], flipped: NDArray[np.float32], indices: NDArray[np.int64], *, shift: bool
) -> NDArray[np.float32]:
    """MMPose's steps of the flip test, in NumPy: mirror, swap the channels, move by one cell, mean."""
    back = flipped[..., ::-1][:, indices]
    if shift:
        back[..., 1:] = back[..., :-1].copy()
    return (heatmaps + back) * np.float32(0.5)


def rtmlib_functions(size: Size, mean: Colours, std: Colours) -> dict[str, Callable[..., Any]]:
    """rtmlib's own functions by the name of the kernel that does the same; its classes are used without a network.

        crop_warp(frame, boxes)      N of (3, h, w) BGR: ViTPose.preprocess, and the float32 planes of its inference.
        decode_heatmaps(heatmaps)    (N, K, 2) cells: ViTPose.postprocess, which writes into the heatmaps.
        select_detections(boxes, scores (Q, C), min_score, iou)    numbers of rows: multiclass_nms.

    Raises ImportError where rtmlib is not installed.
    """
    from rtmlib.tools.object_detection.post_processings import multiclass_nms
    from rtmlib.tools.pose_estimation.vitpose import ViTPose

    # It does not swap the channels: BGR statistics, and the planes come in that order
    unopened = SimpleNamespace(model_input_size=size, mean=np.array(mean[::-1]), std=np.array(std[::-1]))

    def crop_warp(frame: NDArray[np.uint8], boxes: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        crops = (ViTPose.preprocess(unopened, frame, box)[0] for box in boxes)
        return [np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32) for crop in crops]

    def decode_heatmaps(heatmaps: NDArray[np.float32]) -> NDArray[Any]:
        cells = np.array(heatmaps.shape[:1:-1]) - 1  # with this scale and centre its frame px are cells
        return np.stack(
            [ViTPose.postprocess(unopened, [maps[None]], cells / 2, cells)[0][0] for maps in heatmaps]  # one box a call
        )

    def select_detections(
        boxes: NDArray[np.float32], scores: NDArray[np.float32], min_score: float, iou: float
    ) -> NDArray[np.int64]:
        found, kept = multiclass_nms(boxes, scores, iou, min_score)
        return np.asarray(kept[np.argsort(-found[:, 4], kind="stable")], np.int64)

    return {"crop_warp": crop_warp, "decode_heatmaps": decode_heatmaps, "select_detections": select_detections}
