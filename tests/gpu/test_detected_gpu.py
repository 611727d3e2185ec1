"""Both stages on the hardware against the host pipeline, alone and with several calls under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grid_detector import CATEGORIES, GRID, HostGrid, grid_frame, grid_spec
from painter import painter_spec, write_painter
from traffic import Traffic, same

from edgepose.engines.onnxruntime import OnnxRuntimeEngine
from edgepose.pipelines import DetectionSettings, DetectorModel, Pipeline, PoseModel, open_pipeline


class TorchGrid(HostGrid):
    """The grid of tests/grid_detector.py on a GPU, in PyTorch: the same bits. See edgepose.engines.DeviceEngine."""

    device, device_id, min_batch, max_batch = "cuda:0", 0, 1, 8
    input_dtype = output_dtype = np.dtype(np.float32)

    def bind(self, images: Any, output: Any) -> Callable[[int], None]:
        import torch

        source, target = torch.from_dlpack(images), torch.from_dlpack(output)
        h, w = source.shape[2:]
        # Of a cell. A tensor on the GPU: PyTorch multiplies with the reciprocal of a number of the host.
        most = torch.tensor(255.0 * (h // GRID) * (w // GRID), dtype=torch.float64, device=self.device)
        y, x = (axis.reshape(-1).double().cuda() for axis in torch.meshgrid(*[torch.arange(GRID)] * 2, indexing="ij"))

        def run(stream: int) -> None:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.ExternalStream(stream, self.device)):
                levels = (source * 255).round().long()
                cells = levels.reshape(len(source), 3, GRID, h // GRID, GRID, w // GRID).sum(dim=(3, 5))
                red, green, blue = (cells.reshape(len(source), 3, -1).double() / most).unbind(1)
                cx, cy = (x + 0.25 + green / 2) * (w / GRID), (y + 0.75 - green / 2) * (h / GRID)
                half_w, half_h = w * (0.1 + 0.2 * green), h * (0.25 - 0.1 * green)
                label = (blue.clamp(max=0.999) * len(CATEGORIES)).floor()
                target.copy_(torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h, red, label], 2))

        return run

    def warmed_up(self) -> None:
        """Nothing to keep."""


@pytest.fixture(params=[True, False], ids=["graph", "no graph"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Pipeline, Pipeline]]:
    """On the host and on the GPU."""
    pytest.importorskip("torch")
    from edgepose.benchmarks.torch_engine import TorchEngine

    path = write_painter(tmp_path / "m.onnx", painter_spec(sampling="opencv4"))
    spec = grid_spec(nms_iou=None, max_detections=6)
    settings = DetectionSettings(spec.min_score, spec.nms_iou, spec.max_detections)
    host, device = OnnxRuntimeEngine(path, spec=None, max_batch=4, threads=1), TorchEngine(path)
    pipelines = [
        open_pipeline(
            [PoseModel(engine, engine.spec)],
            max_batch=4,
            cuda_graph=request.param,
            detector=DetectorModel(grid, spec, settings),
        )
        for engine, grid in ((host, HostGrid(spec)), (device, TorchGrid(spec)))
    ]
    yield pipelines[0], pipelines[1]
    for pipeline in pipelines:
        pipeline.close()


def test_as_on_the_host(both: tuple[Pipeline, Pipeline]) -> None:
    host, device = both
    for seed in range(20):
        frames = [grid_frame((320 + 40 * seed, 240), 10 * seed + i, (seed + i) % 7) for i in range(1 + seed % 9)]
        expected = host.detect_and_start([host.read(frame)[0] for frame in frames]).finish()
        found = device.detect_and_start([device.read(frame)[0] for frame in frames]).finish()
        assert same(found, expected), seed


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic(both: tuple[Pipeline, Pipeline], seed: int) -> None:
    """Frames that are overwritten as soon as they may be, slots that grow, calls that nobody finishes."""
    made = Traffic(*both, seed)
    made.run(150)
    assert made.checked > 30
    assert made.wrong == 0
