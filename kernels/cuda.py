"""The CUDA kernels: same names, arguments and shapes as their NumPy twins, on CuPy arrays.

    crop_warp         frame, affines -> crops or the engine's normalised input
    decode_heatmaps   heatmaps -> locations, scores

They run in CuPy's current stream and do not wait. The ``prepare_`` functions serve pipelines: they check once, and
return a launch into fixed buffers that allocates nothing and can be captured in a CUDA graph.

Importing this module needs no CuPy; calling a function does, and raises ImportError without it.
"""

from __future__ import annotations

from ._cuda_crop import crop_warp, prepare_crop_warp
from ._cuda_decode import decode_heatmaps, prepare_decode_heatmaps

__all__ = ["crop_warp", "decode_heatmaps", "prepare_crop_warp", "prepare_decode_heatmaps"]
