"""A detector without a network: one candidate for each cell of a grid over its input, as bright as the cell is.

It computes the same on the host and as work of the stand-in's GPU, to the bit, so that both kinds of pipelines can be
compared.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from edgepose.detector_spec import DetectorSpec

GRID = 4  # cells in x and y
CATEGORIES = ("warm", "cool", "", "odd")  # the third stands for nothing


def grid_spec(**changes: Any) -> DetectorSpec:
    values: dict[str, Any] = {
        "name": "grid",
        "input_size": (64, 48),
        "category_names": CATEGORIES,
        "format": "end2end",
        "std": (255.0, 255.0, 255.0),
        "pad": 0,  # no candidates there
        "sampling": "opencv4",  # whole levels: the same bits on host and device
        "nms_iou": 0.5,
        "min_score": 0.35,
        "max_detections": 20,
    }
    return DetectorSpec(**{**values, **changes})


def rows_of(images: np.ndarray) -> np.ndarray:
    """(N, 3, h, w) -> (N, 16, 6): score from red; green moves and sizes the box; blue is the label.

    The levels are summed as whole numbers, so that the order of the sum, and so the device, makes no difference.
    """
    count, _, h, w = images.shape
    levels = np.rint(images * np.float32(255)).astype(np.int64)
    sums = levels.reshape(count, 3, GRID, h // GRID, GRID, w // GRID).sum(axis=(3, 5)).reshape(count, 3, -1)
    red, green, blue = (sums / (255.0 * (h // GRID) * (w // GRID))).transpose(1, 0, 2)
    y, x = (axis.ravel() for axis in np.mgrid[:GRID, :GRID])
    centre_x, centre_y = (x + 0.25 + green / 2) * (w / GRID), (y + 0.75 - green / 2) * (h / GRID)
    half_w, half_h = w * (0.1 + 0.2 * green), h * (0.25 - 0.1 * green)
    label = np.floor(np.minimum(blue, 0.999) * len(CATEGORIES))
    rows = [centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h, red, label]
    return np.stack(rows, axis=2).astype(np.float32)


class _Grid:
    def __init__(self, spec: DetectorSpec | None = None) -> None:
        self.spec = spec or grid_spec()
        self.output_shape = (GRID * GRID, 6)
        self.runs: list[int] = []
        self.closed = False

    def close(self) -> None:
        self.closed = True


class HostGrid(_Grid):
    """See :class:`edgepose.engines.Engine`."""

    name, device = "grid", "cpu"

    def __init__(self, spec: DetectorSpec | None = None, *, max_batch: int = 8) -> None:
        super().__init__(spec)
        w, h = self.spec.input_size
        self.input_buffer = np.zeros((max_batch, 3, h, w), np.float32)

    def run(self, images: np.ndarray) -> np.ndarray:
        self.runs.append(len(images))
        return rows_of(images)


class DeviceGrid(_Grid):
    """See :class:`edgepose.engines.DeviceEngine`."""

    name, device, device_id = "grid", "cuda:0", 0
    input_dtype = output_dtype = np.dtype(np.float32)

    def __init__(self, spec: DetectorSpec | None = None, *, min_batch: int = 1, max_batch: int = 8) -> None:
        super().__init__(spec)
        self.min_batch, self.max_batch = min_batch, max_batch

    def bind(self, images: Any, output: Any) -> Callable[[int], None]:
        import cupy

        assert self.min_batch <= len(images) == len(output) <= self.max_batch
        source, target = _host_view(images), _host_view(output)

        def compute(_: Any) -> None:
            self.runs.append(len(source))
            target[:] = rows_of(source)

        return lambda stream: cupy.cuda.ExternalStream(stream).launch_host_func(compute, None)

    def warmed_up(self) -> None: ...


def _host_view(array: Any) -> np.ndarray:
    buffer = (ctypes.c_uint8 * array.nbytes).from_address(array.data.ptr)
    return np.frombuffer(buffer, array.dtype).reshape(array.shape)


def grid_frame(size: tuple[int, int], seed: int, objects: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8 BGR, smooth between 4 x 4 colours; ``objects``: so many of them are bright enough to be found."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 230, (GRID, GRID, 3), dtype=np.uint8)
    if objects is not None:
        red = np.full(GRID * GRID, 20)
        red[rng.permutation(GRID * GRID)[:objects]] = rng.integers(180, 230, objects)
        cells[..., 2] = red.reshape(GRID, GRID)
    w, h = (int(side) for side in size)
    return np.asarray(cv2.resize(cells, (w, h), interpolation=cv2.INTER_CUBIC), np.uint8)
