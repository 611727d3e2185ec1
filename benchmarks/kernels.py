"""The NumPy twins on one thread: crop 8 boxes, decode 8x294 heatmaps: python benchmarks/kernels.py"""

from __future__ import annotations

import cv2
import numpy as np
from results_file import measure, save
from rich.console import Console
from rich.table import Table

from edgepose.geometry import crop_affines
from edgepose.kernels.reference import crop_warp, decode_heatmaps
from edgepose.spec import IMAGENET_MEAN, IMAGENET_STD

# ms that MMPose 1.3.2's own decoders took, measured once: one thread of the same kind of machine, the same sizes
MMPOSE = {"shift": 21.0, "dark": 132.0, "dark_udp": 92.0}


def peaks(rng: np.random.Generator) -> np.ndarray:
    """(8, 294, 64, 48) float32: a Gaussian peak in each map, over weak noise."""
    x, y = np.arange(48), np.arange(64)
    cx, cy = rng.uniform(4, 43, (8, 294, 1)), rng.uniform(4, 59, (8, 294, 1))
    gx, gy = np.exp(-((x - cx) ** 2) / 8), np.exp(-((y - cy) ** 2) / 8)
    maps = gy[..., :, None] * gx[..., None, :] * rng.uniform(0.5, 1, (8, 294, 1, 1))
    return (maps + rng.normal(0, 0.005, maps.shape)).astype(np.float32)


def main() -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    maps = peaks(rng)
    frame = rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    left, top = rng.uniform(0, 1500, 8), rng.uniform(0, 600, 8)
    affines = crop_affines(np.stack([left, top, left + 300, top + 400], 1), (192, 256))
    out = np.empty((8, 3, 256, 192), np.float32)
    figures = {
        f"decode_heatmaps {name}, 8x294 maps of 64x48": measure(lambda n=name: decode_heatmaps(maps, refinement=n))
        for name in ("none", "shift", "dark", "dark_udp")
    }
    for sampling in ("opencv4", "area", "linear"):
        figures[f"crop_warp {sampling}, 8 crops of 192x256 from 1080p"] = measure(
            lambda s=sampling: crop_warp(
                frame, affines, (192, 256), sampling=s, mean=IMAGENET_MEAN, std=IMAGENET_STD, out=out
            ),
            runs=40,
        )
    table = Table("kernel", "p50", "p95", "min", "of MMPose", title="NumPy twins, one thread, ms")
    for name, values in figures.items():
        words = name.replace(",", "").split()
        peer = MMPOSE.get(words[1]) if words[0] == "decode_heatmaps" else None
        share = f"{100 * values['p50'] / peer:.0f} %" if peer else ""
        table.add_row(name, *(f"{values[k]:.2f}" for k in ("p50", "p95", "min")), share)
    console = Console()
    console.print(table)
    console.print(str(save("kernels", figures)))


if __name__ == "__main__":
    main()
