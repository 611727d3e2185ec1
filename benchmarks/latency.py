"""Latency of Predictor.predict by stage, 1 and 8 boxes on a 1080p frame: python benchmarks/latency.py [MODEL]"""

from __future__ import annotations

import sys

import numpy as np
from results_file import save, summary
from rich.console import Console
from rich.table import Table

from edgepose import Predictor

RUNS, WARM_UP = 60, 5
STAGES = ("crop", "network", "decode", "total")


def boxes_on(width: int, height: int, count: int) -> np.ndarray:
    """(count, 4) float32 xyxy: 3:4 boxes a third of the frame high, side by side."""
    h = height / 3
    w = 0.75 * h
    left = np.linspace(10, width - w - 10, count)
    top = np.linspace(10, height - h - 10, count)
    return np.stack([left, top, left + w, top + h], 1).astype(np.float32)


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "garment-landmarks"
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with Predictor(model) as predictor:
        for count in (1, 8):
            boxes = boxes_on(1920, 1080, count)
            timings = [predictor.predict(frame, boxes).timings for _ in range(RUNS + WARM_UP)][WARM_UP:]
            figures[f"{count} boxes"] = {s: summary([getattr(t, s) for t in timings]) for s in STAGES}
        name = predictor.spec.name
    table = Table("boxes", "stage", "p50", "p95", "min", title=f"{name}, 1080p frame, ms")
    for boxes_label, stages in figures.items():
        for stage, values in stages.items():
            table.add_row(boxes_label, stage, *(f"{values[k]:.2f}" for k in ("p50", "p95", "min")))
    console = Console()
    console.print(table)
    console.print(str(save("latency", {"model": name, **figures})))


if __name__ == "__main__":
    main()
