"""The CUDA kernels: same names, arguments and shapes as their NumPy twins, on CuPy arrays.

    letterbox           frame -> a detector's input
    select_detections   a detector's rows -> boxes of the frame, best first
    plan_crops          detections of several frames -> the record of a call: the crops of a pose model
    crop_warp           frame, affines -> crops or the engine's normalised input
    decode_heatmaps     heatmaps -> locations, scores

They run in CuPy's current stream and do not wait. The ``prepare_`` functions serve pipelines: they check once, and
return a launch into fixed buffers that allocates nothing and can be captured in a CUDA graph. In this order they make
landmarks of frames without the host in between. (The second and the third have this form only: how many they find is
known on the device.)

Importing this module needs no CuPy; calling a function does, and raises ImportError without it.
"""

from __future__ import annotations

from ._cuda_crop import crop_warp, prepare_crop_warp
from ._cuda_decode import decode_heatmaps, prepare_decode_heatmaps
from ._cuda_detections import prepare_plan_crops, prepare_select_detections
from ._cuda_letterbox import letterbox, prepare_letterbox

__all__ = [
    "crop_warp",
    "decode_heatmaps",
    "letterbox",
    "prepare_crop_warp",
    "prepare_decode_heatmaps",
    "prepare_letterbox",
    "prepare_plan_crops",
    "prepare_select_detections",
]
