"""MMPose's checkpoint in, ONNX out: read, load strictly, export, compare on pictures; nothing is written otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.crops import Crops
from edgepose.errors import InputError, ModelError
from edgepose.parity import ParityReport, compare, run_in_batches
from edgepose.spec import ModelSpec
from edgepose.training import models, recipes
from edgepose.training.checkpoint import (
    CheckpointInfo,
    LoadReport,
    check_trained_for,
    describe_checkpoint,
    fits,
    load_weights,
    published_hash,
    read_checkpoint,
    sha256,
)
from edgepose.training.coco import load_coco, read_frame
from edgepose.training.export import ExportReport, Precision, checked_output, export_onnx, run_onnx

__all__ = ["ImportReport", "crops_of_labels", "import_checkpoint"]

MAX_CROPS = 100
BATCH = 8  # crops at a time: HRNet-W48's activations take 60 MB each


@dataclass(frozen=True)
class ImportReport:
    """What an import read, wrote and compared.

    Attributes:
        recipe: the recipe's name.
        checkpoint: what the file held.
        sha256: the checkpoint file's, hexadecimal.
        published: the first eight digits that the recipe's published file has; None: there is none.
        loaded: what went where.
        export: the ONNX file, and its heatmaps' error on random images.
        parity: PyTorch's landmarks in float32 beside the exported file's, on pictures.
    """

    recipe: str
    checkpoint: CheckpointInfo
    sha256: str
    published: str | None
    loaded: LoadReport
    export: ExportReport
    parity: ParityReport

    @property
    def is_published(self) -> bool:
        """Whether this is the very file that OpenMMLab published for the recipe."""
        return self.published is not None and self.sha256.startswith(self.published)


def import_checkpoint(
    path: str | Path,
    output: str | Path,
    *,
    recipe: str | None,
    precision: Precision = "fp32",
    declared: bool = False,
    photos: str | Path | None = None,
    labels: str | Path | None = None,
    images: str | Path | None = None,
) -> ImportReport:
    """Turn a checkpoint into an ONNX file with its spec inside, and say how far apart the two are.

    Args:
        path: a .pth file of MMPose 0.x or 1.x, or of this repository.
        output: the .onnx file to write.
        recipe: a name of :data:`edgepose.training.recipes.RECIPES`. None is an error that says which ones fit: the
            weights cannot tell, as DeepFashion2's 13 categories have the same shapes.
        precision: ``fp32`` or ``fp16``.
        declared: the UDP reading of an hrnet_w48_udp recipe, see :meth:`Recipe.declared`.
        photos: compare on these pictures, which one garment fills each: a folder or a file.
        labels: compare on the boxes of this COCO file instead. Neither: on drawn shapes.
        images: the folder that the names in `labels` are relative to; None: the file's own.

    Raises:
        InputError: an argument is wrong; the recipe is missing or unknown.
        ModelError: the file cannot be read, does not fit, or belongs to another recipe; the exported network finds
            other landmarks. Nothing is written then.
    """
    target = checked_output(output)
    if photos is not None and labels is not None:
        raise InputError("give photos or labels to compare on, not both")
    if images is not None and labels is None:
        raise InputError("images says where the pictures of labels are: give labels, too")
    chosen = recipes.find(recipe) if recipe is not None else None
    if declared and chosen is not None and not chosen.declares_udp:
        raise InputError(f"{chosen.name} declares what it is: declared is for the hrnet_w48_udp recipes")
    state, info = read_checkpoint(path)
    digest = sha256(path)
    if chosen is None:
        raise InputError(f"a recipe is needed for {path}: {_suggestion(state, info, digest)}")
    _check_identity(chosen, info, digest)
    chosen = chosen.declared() if declared else chosen
    check_trained_for(chosen, info)
    spec = chosen.spec()
    if labels is not None:
        crops = crops_of_labels(labels, chosen, spec, images)
    else:
        crops = Crops.from_photos(photos, spec, limit=MAX_CROPS) if photos is not None else Crops.drawn(spec)

    model = models.create(chosen.architecture, chosen.num_outputs)
    loaded = load_weights(model, state, path)
    del state  # 270 MB for HRNet-W48
    spec = replace(spec, **describe_checkpoint(chosen, path))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        exported = export_onnx(
            model, spec, Path(folder) / target.name, precision=precision, keypoint_range=chosen.landmarks.channels
        )
        parity = _compare(model, exported, spec, crops, chosen.landmarks.channels)
        if problems := parity.problems():
            raise ModelError(
                f"the exported {precision} network finds other landmarks than PyTorch ({parity.source}), so nothing "
                f"was written: {'; '.join(problems)}"
            )
        exported.path.replace(target)
    return ImportReport(
        chosen.name, info, digest, published_hash(chosen), loaded, replace(exported, path=target), parity
    )


def crops_of_labels(
    labels: str | Path, recipe: recipes.Recipe, spec: ModelSpec, images: str | Path | None = None
) -> Crops:
    """The labelled boxes of a COCO file, as crops; of many, `MAX_CROPS` evenly spread ones.

    Raises:
        InputError: the file or a picture of it is not usable, or it has no object of the recipe's category.
    """
    first, end = recipe.landmarks.channels
    annotations = load_coco(
        labels,
        recipe.num_outputs,
        images=None if images is None else Path(images),
        channels=(first, end) if end - first != recipe.num_outputs else None,
    )
    if not annotations:
        raise InputError(f"{labels} has no labelled object to compare on")
    chosen = [
        annotations[i] for i in np.linspace(0, len(annotations) - 1, min(len(annotations), MAX_CROPS)).astype(int)
    ]
    source = "photos" if len(chosen) == len(annotations) else f"photos, {len(chosen)} of {len(annotations)}"
    boxes = np.stack([annotation.box for annotation in chosen])
    return Crops.from_frames([read_frame(annotation) for annotation in chosen], spec, boxes=boxes, source=source)


@torch.inference_mode()
def _compare(
    model: nn.Module, exported: ExportReport, spec: ModelSpec, crops: Crops, channels: tuple[int, int]
) -> ParityReport:
    """PyTorch in float32 beside the exported file."""
    model.eval()

    def reference(batch: np.ndarray) -> np.ndarray:
        heatmaps: np.ndarray = model(torch.from_numpy(batch))[:, slice(*channels)].numpy()
        return heatmaps

    images = crops.normalized(spec)
    candidate = run_onnx(exported.path.read_bytes(), exported.precision)
    expected, found = (run_in_batches(run, images, (1, BATCH, BATCH)) for run in (reference, candidate))
    return compare(expected, found, spec, source=crops.source)


# Which recipe -----------------------------------------------------------------------------------


def _check_identity(recipe: recipes.Recipe, info: CheckpointInfo, digest: str) -> None:
    """Refuse a file that says itself that it belongs to another recipe."""
    if digest[:8] == published_hash(recipe):
        return
    others = [name for name, other in recipes.RECIPES.items() if published_hash(other) == digest[:8]]
    if others:
        raise ModelError(f"checkpoint {info.path} is the published one of {' and '.join(others)}, not of {recipe.name}")
    trained_on = _annotations_in(info.config)
    if trained_on and not _annotations(recipe) <= trained_on:
        raise ModelError(
            f"checkpoint {info.path} was, by the configuration inside, trained on {', '.join(sorted(trained_on))}; "
            f"{recipe.name} is trained on other annotations: choose the recipe that the checkpoint is of"
        )


def _annotations(recipe: recipes.Recipe) -> set[str]:
    """File names of a recipe's training annotations."""
    return {Path(name).name for name in recipe.train.annotations}


def _annotations_in(config: str) -> set[str]:
    """Those of any recipe that a configuration's text names."""
    return {name for recipe in recipes.RECIPES.values() for name in _annotations(recipe) if name in config}


def _suggestion(state: Mapping[str, Tensor], info: CheckpointInfo, digest: str) -> str:
    """Which recipes a file could belong to: for a message, never to go on with."""
    published = [name for name, recipe in recipes.RECIPES.items() if published_hash(recipe) == digest[:8]]
    if published:
        return f"it is the published file of {' and '.join(published)}"
    fitting: list[str] = []
    known: dict[tuple[str, int], bool] = {}
    outputs = {len(value) for name, value in state.items() if name.endswith("head.final_layer.weight") and value.ndim}
    for name, recipe in recipes.RECIPES.items():
        network = recipe.architecture, recipe.num_outputs
        if recipe.num_outputs not in outputs:  # spares making most networks
            continue
        if network not in known:
            with torch.device("meta"):
                model = models.create(*network)
            known[network] = fits(model, state)
        if known[network]:
            fitting.append(name)
    named = _annotations_in(info.config)
    likely = [name for name in fitting if _annotations(recipes.RECIPES[name]) == named]
    if likely:
        return f"by its shapes and its configuration it could be {' or '.join(likely)}"
    if not fitting:
        return "it is no published file, and its weights fit none of the recipes (`edgepose recipes` lists them)"
    return f"it is no published file; its weights fit {', '.join(fitting)}"
