"""Engines of the real networks, with random weights: ResNet-50 and HRNet, exported with PyTorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_builds import RTX, build, needs_rtx
from onnx import numpy_helper

from edgepose.crops import Crops
from edgepose.enginefile import EngineInfo, read_engine
from edgepose.spec import ModelSpec

pytestmark = needs_rtx

HRNET = "deepfashion/full/hrnet_w48_udp"

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install 'edgepose[train]'"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that exports a network with random weights and all its channels; ten to twenty seconds each, once."""
    from edgepose.training import export, recipes

    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Path] = {}
    patch = pytest.MonkeyPatch()
    patch.setattr(export, "CHECKED_BATCHES", (1,))  # the check against PyTorch is tests/training's

    def make(recipe_name: str, architecture: str, precision: str = "fp32") -> Path:
        if architecture not in made:
            recipe = replace(recipes.find(recipe_name), architecture=architecture)
            path = folder / f"{architecture}.onnx"
            spec = with_channels(recipe.spec(), recipe.num_outputs)
            export.export_onnx(export.random_model(recipe), spec, path, precision=precision)
            made[architecture] = path
        return made[architecture]

    yield make
    patch.undo()


def with_channels(spec: ModelSpec, count: int) -> ModelSpec:
    names = tuple(f"landmark {number}" for number in range(count))
    return replace(spec, keypoint_names=names, flip_indices=tuple(range(count)), skeleton=(), colors=())


def cut(model: Path, start: int, stop: int) -> Path:
    """The same network with the channels [start, stop), as `edgepose export` writes one category's."""
    proto = onnx.load(model)
    last = proto.graph.node[-1]
    assert last.op_type == "Conv"
    for tensor in proto.graph.initializer:
        if tensor.name in last.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[start:stop], tensor.name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = stop - start
    del proto.graph.value_info[:]
    metadata = {item.key: item.value for item in proto.metadata_props}
    with_channels(ModelSpec.from_metadata(metadata, source="cut"), stop - start).write_metadata(proto)
    path = model.with_name(f"{model.stem}-{start}-{stop}.onnx")
    onnx.save(proto, path)
    return path


def check_real(model: Path, convolutions: int, keypoints: int, megabytes: float) -> EngineInfo:
    built = build(model, options=replace(RTX, aux_streams=3), crops=lambda spec: Crops.drawn(spec, 2))
    info = built.info
    w, h = info.spec.heatmap_size
    assert info.output.shape == (-1, keypoints, h, w)
    assert info.parity.convolutions == {"float16": convolutions}
    assert info.engine_bytes / 1e6 == pytest.approx(megabytes, rel=0.1)  # the weights, and some kB of kernels' names
    assert info.parity.score_error < 0.005  # random weights; seen: 1.2e-3
    assert read_engine(built.path)[0] == info
    return info


@needs_torch
@pytest.mark.slow
def test_resnet50_deepfashion2_and_its_categories(exported: Any) -> None:
    model = exported("deepfashion2/vest/resnet50", "resnet50")
    check_real(model, 57, 294, 68.3)
    check_real(cut(model, 128, 143), 57, 15, 68.3)  # vest
    check_real(cut(model, 0, 8), 57, 8, 68.3)  # as many as deepfashion/full has


@needs_torch
@pytest.mark.slow
def test_hrnet_w48_from_float32(exported: Any) -> None:
    check_real(exported(HRNET, "hrnet_w48"), 293, 8, 129.3)


@needs_torch
@pytest.mark.slow
def test_hrnet_w32_exported_in_float16(exported: Any) -> None:
    check_real(exported(HRNET, "hrnet_w32", "fp16"), 293, 8, 59.0)
