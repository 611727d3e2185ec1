"""``python -m edgepose.training.synthetic --count 48 --seed 0 -o sheet.png``: a contact sheet with landmarks."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from . import GARMENT_TYPES, GarmentSample, load_outlines, render_garment
from .folds import Image

_COLORS = ((60, 60, 255), (60, 220, 60), (255, 220, 40), (255, 60, 255))  # collar, sleeve, waistline, hem


def _annotate(sample: GarmentSample) -> Image:
    picture = sample.image.copy()
    x0, y0, x1, y1 = (int(v) for v in sample.box)
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 1)
    for k, (point, seen) in enumerate(zip(sample.keypoints, sample.visible, strict=True)):
        if seen:
            spot = (round(float(point[0])), round(float(point[1])))
            cv2.circle(picture, spot, 5, _COLORS[k // 2], -1 if k % 2 == 0 else 2, cv2.LINE_AA)  # filled: left
    cv2.putText(picture, sample.garment_type, (5, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 255), 1, cv2.LINE_AA)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m edgepose.training.synthetic", description="A contact sheet of synthetic garments."
    )
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, default=(300, 400), metavar=("W", "H"))
    parser.add_argument("--garment-type", choices=GARMENT_TYPES)
    parser.add_argument("--outlines", type=Path, help="a COCO file, or a folder of them, with real outlines")
    parser.add_argument("--plain", action="store_true", help="do not draw the landmarks")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    outlines = load_outlines(options.outlines) if options.outlines else None
    width, height = options.size
    rows = -(-options.count // options.columns)
    sheet = np.full((rows * height, options.columns * width, 3), 40, np.uint8)
    for i in range(options.count):
        rng = np.random.default_rng([options.seed, i])
        sample = render_garment(rng, (width, height), outlines=outlines, garment_type=options.garment_type)
        row, column = divmod(i, options.columns)
        tile = sample.image if options.plain else _annotate(sample)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    if not cv2.imwrite(str(options.output), sheet):
        raise SystemExit(f"cannot write {options.output}")


if __name__ == "__main__":
    main()
