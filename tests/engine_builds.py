"""What the tests of building share: painters to build, crops in which they find their blobs, a quick build."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from painter import INPUT_SIZE, blobs, painter_spec, write_painter

from edgepose import BuildOptions, build_engine
from edgepose.build import BuiltEngine
from edgepose.crops import Crops
from edgepose.spec import ModelSpec

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX: pip install 'edgepose[rtx-cu13]'"
)

RTX = BuildOptions(flavour="tensorrt-rtx")
SPEC = painter_spec()


@pytest.fixture
def painter(tmp_path: Path) -> Path:
    return write_painter(tmp_path / "painter.onnx", SPEC)


def pictures(_: ModelSpec, count: int = 3) -> Crops:
    """Crops (count, 128, 96, 3) with a blob of each colour."""
    rng = np.random.default_rng(0)
    return Crops(np.stack([blobs(INPUT_SIZE, rng.uniform(20, 76, (3, 2)), 8) for _ in range(count)]), "blobs")


def build(model: Path, output: Path | None = None, **changes: Any) -> BuiltEngine:
    """On three crops, so that a test takes a fraction of a second."""
    changes.setdefault("crops", pictures)
    changes.setdefault("options", RTX)
    return build_engine(model, output, **changes)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def insert(model: Path, *nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> Path:
    """Put nodes that make `images.1` of `images` before the rest of a model."""
    proto = onnx.load(model)
    rest = list(proto.graph.node)
    for node in rest:
        for index, name in enumerate(node.input):
            node.input[index] = "images.1" if name == "images" else name
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *rest])
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (constants or {}).items())
    onnx.save(proto, model)
    return model


@pytest.fixture
def overflowing(painter: Path) -> Path:
    """1e4 * x * 1e2, then scaled back: fine in float32, infinite in float16."""
    up = [helper.make_node("Mul", ["images", "up"], ["a"]), helper.make_node("Mul", ["a", "more"], ["b"])]
    down = helper.make_node("Mul", ["b", "down"], ["images.1"])
    values = {"up": 1e4, "more": 1e2, "down": 1e-6}
    return insert(painter, *up, down, constants={name: np.array(value, np.float32) for name, value in values.items()})
