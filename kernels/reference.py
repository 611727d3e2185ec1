"""The NumPy twins: what each CUDA kernel of this package computes, under the same name, arguments and shapes.

A twin is the specification of its kernel and the path that runs on machines without a GPU, so it is also fast.

    letterbox           frame -> a detector's input
    select_detections   a detector's rows -> boxes of the frame, best first
    plan_crops          detections of several frames -> the record of a call: the crops of a pose model
    crop_warp           frame, affines -> crops or the engine's normalised input
    decode_heatmaps     heatmaps -> locations, scores
    flip_heatmaps       heatmaps of a mirrored crop -> the crop's own heatmaps
    merge_flipped       the flip test: mean of both

One coordinate convention holds everywhere: an integer is a pixel's (or a heatmap cell's) centre, x before y. Only a
detector's rows, and with them ``placement``, measure from outer edges, as COCO's boxes do.
"""

from __future__ import annotations

from ._crop import crop_warp
from ._decode import decode_heatmaps
from ._detections import select_detections
from ._flip import flip_heatmaps, merge_flipped
from ._letterbox import letterbox
from ._plan import CropGeometry, plan_crops

__all__ = [
    "CropGeometry",
    "crop_warp",
    "decode_heatmaps",
    "flip_heatmaps",
    "letterbox",
    "merge_flipped",
    "plan_crops",
    "select_detections",
]
