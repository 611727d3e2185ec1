"""The models that are timed: each as a float32 ONNX file and, where known, as the PyTorch network it came from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepose.errors import InputError, MissingDependencyError
from edgepose.models import bundled_models, find_model
from edgepose.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BenchModel", "cache_folder", "int8_of", "open_model"]

RESNET50 = "resnet50"


@dataclass(frozen=True)
class BenchModel:
    """A model to time.

    Attributes:
        name: in tables.
        path: its ONNX file, float32.
        spec: how it is used.
        trained: its landmarks mean something; random weights cost the same and find nothing.
        network: makes the PyTorch network, evaluation mode, heatmaps as the file's; None where only the file is there.
    """

    name: str
    path: Path
    spec: ModelSpec
    trained: bool
    network: Callable[[], nn.Module] | None = None


def cache_folder() -> Path:
    """Where models are kept that take a while to make: $EDGEPOSE_CACHE, or edgepose in the user's cache folder."""
    chosen = os.environ.get("EDGEPOSE_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen) if chosen else Path(root).expanduser() / "edgepose"


def open_model(name: str, cache: Path | None = None) -> BenchModel:
    """A model by name.

    Args:
        name: ``resnet50``: benchmarks/resnet50.py's; the name of a bundled model; a recipe's (``edgepose recipes``),
            which then gets seeded random weights; or the path of an ONNX file.
        cache: where files that are made here go and are found again; None: :func:`cache_folder`.

    Raises:
        InputError: there is no such model.
        MissingDependencyError: the network must be exported, and PyTorch is not installed.
    """
    cache = cache or cache_folder()
    if name == RESNET50:
        return _resnet50(cache)
    if name in bundled_models() or Path(name).suffix:
        path = find_model(name)
        spec = _spec_of(path)
        return BenchModel(spec.name, path, spec, trained="random" not in str(spec.training.get("weights", "")))
    return _recipe(name, cache)


def int8_of(model: BenchModel, cache: Path | None = None) -> Path:
    """The model quantised as ``edgepose quantize`` does it, calibrated on rendered garments; made once.

    Raises:
        MissingDependencyError: the network or the pictures need a package that is not installed.
        ModelError: the network cannot be quantised.
    """
    from edgepose.benchmarks.calibration import quantized

    folder = (cache or cache_folder()) / "benchmarks"
    path = folder / f"{model.name.replace('/', '-')}-{_fingerprint(model.path)}-int8.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        quantized(model, path)
    return path


def _resnet50(cache: Path) -> BenchModel:
    try:
        from edgepose.benchmarks import resnet50
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the benchmarks' ResNet-50 is exported from PyTorch ({error.name} is missing): pip install "
            "'edgepose[bench]'; or time a bundled model: --model garment-landmarks"
        ) from error
    path = cache / "benchmarks" / f"resnet50-{_fingerprint(resnet50.WEIGHTS)}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        resnet50.export(path)
    return BenchModel(RESNET50, path, _spec_of(path), trained=True, network=resnet50.load_network)


def _recipe(name: str, cache: Path) -> BenchModel:
    from edgepose.training import recipes

    try:
        recipes.find(name)
    except InputError as error:
        raise InputError(
            f"{name!r} is neither {RESNET50}, nor a bundled model ({', '.join(bundled_models())}), nor an ONNX file, "
            f"nor a recipe: {error}"
        ) from None
    from edgepose.training.export import export_recipe, random_model

    path = cache / "benchmarks" / f"{name.replace('/', '-')}-random.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_recipe(name, path, random_weights=True)
    recipe = recipes.find(name)
    sliced = recipe.landmarks.channels is not None
    return BenchModel(name, path, _spec_of(path), False, None if sliced else lambda: random_model(recipe))


def _spec_of(path: Path) -> ModelSpec:
    from edgepose.modelfile import ModelFile

    spec: Any = ModelFile.read(path).spec
    if not isinstance(spec, ModelSpec):
        raise InputError(f"{path} carries no spec of a pose model: add one first (docs/models.md)")
    return spec


def _fingerprint(path: Path) -> str:
    """Of the file's content: a changed model gets a new name in the cache."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
