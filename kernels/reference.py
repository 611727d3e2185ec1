"""The NumPy twins: what each CUDA kernel of this package computes, under the same name, arguments and shapes.

A twin is the specification of its kernel and the path that runs on machines without a GPU, so it is also fast.

    crop_warp         frame, affines -> crops or the engine's normalised input
    decode_heatmaps   heatmaps -> locations, scores
    flip_heatmaps     heatmaps of a mirrored crop -> the crop's own heatmaps
    merge_flipped     the flip test: mean of both

One coordinate convention holds everywhere: an integer is a pixel's (or a heatmap cell's) centre, x before y.
"""

from __future__ import annotations

from ._crop import crop_warp
from ._decode import decode_heatmaps
from ._flip import flip_heatmaps, merge_flipped

__all__ = ["crop_warp", "decode_heatmaps", "flip_heatmaps", "merge_flipped"]
