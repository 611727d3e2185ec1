"""Reading checkpoints: MMPose's, those of this repository, and plain torch state dicts. None of them can run code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepose.errors import MissingDependencyError, ModelError
from edgepose.training.recipes import Recipe

try:
    import torch  # noqa: F401  (asked for here, so that its absence gets a message)
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise MissingDependencyError(f"checkpoints need {error.name}: pip install 'edgepose[train]'") from error

from edgepose.training.inert import Dropped, TensorView
from edgepose.training.torchfile import TorchFile

__all__ = [
    "CheckpointInfo",
    "LoadReport",
    "check_trained_for",
    "describe_checkpoint",
    "fits",
    "load_backbone",
    "load_checkpoint",
    "load_weights",
    "published_hash",
    "read_checkpoint",
    "sha256",
]

SHOWN = 5  # names that an error message lists before "and n more"
COUNTERS = ".num_batches_tracked"  # checkpoints from before PyTorch 0.4.1 lack them; inference doesn't use them
META = (
    *("epoch", "iter", "step", "time", "seed", "experiment_name", "exp_name"),
    *("mmpose_version", "mmcv_version", "mmengine_version", "dataset_name", "num_keypoints"),
)
MAX_META = 80  # characters of a value
MAX_SPEC = 1 << 20  # characters; that of 294 landmarks has 20 thousand
TRAINED_FOR = ("codec", "input_size", "heatmap_size", "mean", "std", "padding")  # of a spec: what weights depend on


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint file holds beside the weights.

    Attributes:
        path: the file.
        bytes: its size.
        container: ``zip``, torch's own since 1.6, or ``legacy``.
        tensors: how many the state dict has.
        averaged: the state dict holds averaged weights: MMEngine's EMAHook exchanges them, before it saves, with the
            trained ones, which are then under ``ema_state_dict``.
        unread: what else there is at the top level: ``optimizer``, ``message_hub``.
        dropped: how many Python objects of which type were not made; 0: one was only mentioned.
        meta: plain facts, as text: epoch, iteration, versions, name of the data set.
        config: the configuration's text, if MMPose kept it; else empty.
        spec: the ModelSpec that `edgepose train` trained for and keeps in its files, as JSON has it; else empty.
    """

    path: Path
    bytes: int
    container: str
    tensors: int
    averaged: bool
    unread: tuple[str, ...]
    dropped: Mapping[str, int] = field(hash=False)
    meta: Mapping[str, str] = field(hash=False)
    config: str = field(repr=False)
    spec: Mapping[str, Any] = field(hash=False, repr=False)


@dataclass(frozen=True)
class LoadReport:
    """What went where.

    Attributes:
        loaded: names in the model that got the file's values.
        ignored: names in the file that the model has no use for, fit to be printed.
        missing: names in the model that kept their values; batch counters only.
    """

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """A checkpoint's weights, by the names that they have in it, and what else the file holds.

    No code of the file is run, see :mod:`edgepose.training.unpickle`. Of an optimiser's state, of averaged or other
    weights beside ``state_dict``, no numbers are read.

    Args:
        path: a file of torch.save's: a state dict, or a dict with one under ``state_dict``.

    Raises:
        ModelError: the file cannot be read, is damaged, or holds no state dict.
    """
    with TorchFile(path) as file:
        content = file.content
        nested = isinstance(content, dict) and "state_dict" in content
        views = content["state_dict"] if nested else content
        if isinstance(views, Dropped):
            raise ModelError(
                f"checkpoint {path} holds an object of type {_plain(views.type_name)} in place of a state dict, and "
                "objects are not rebuilt, since that would run the file's code: save the model's state_dict()"
            )
        if not isinstance(views, dict) or not any(isinstance(view, TensorView) for view in views.values()):
            raise ModelError(f"checkpoint {path} holds no state dict: expected tensors by name, maybe as 'state_dict'")
        other = [
            f"{_plain(str(name))}: {_plain(view.type_name if isinstance(view, Dropped) else type(view).__name__)}"
            for name, view in views.items()
            if not isinstance(view, TensorView) or not isinstance(name, str)
        ]
        if other:
            raise ModelError(f"checkpoint {path} holds {_listing('that are no plain tensors by name', other)}")
        state = {name: file.tensor(view) for name, view in views.items()}
        beside = content if nested else {}
        return state, _info(file, beside, len(state))


def load_checkpoint(model: nn.Module, path: str | Path) -> LoadReport:
    """Load a checkpoint's weights into a model, in place and strictly: every name and every shape must fit.

    Args:
        model: a network of :mod:`edgepose.training.models`.
        path: see :func:`read_checkpoint`. MMPose 0.x names its head ``keypoint_head``, MMPose 1.x ``head``; both are
            understood, as is the ``module.`` of DataParallel. Ignored are MMPose 1.x's ``data_preprocessor`` and the
            ``ema_…`` copies that mmcv's EMAHook keeps in the state dict: at the end of an epoch it exchanges them with
            the trained weights, so that what is loaded are the averages.

    Raises:
        ModelError: the file cannot be read, holds no state dict, or does not fit; the message says where. The model
            is then unchanged.
    """
    state, _ = read_checkpoint(path)
    return load_weights(model, state, path)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> LoadReport:
    """As :func:`load_checkpoint`, with weights that :func:`read_checkpoint` has read from `path`."""
    own = model.state_dict()
    renamed, ignored = _as_named_here(state, own, path)
    return _load(model, renamed, ignored, path, "the model")


def fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the names and shapes are the model's, as :func:`load_weights` wants them; nothing is loaded."""
    own = model.state_dict()
    renamed, _ = _as_named_here(state, own, "")
    return not any(_problems(renamed, own, ""))


def load_backbone(model: nn.Module, path: str | Path) -> LoadReport:
    """Load the weights of a network's backbone, in place: all of it must be in the file; the rest is ignored.

    Args:
        model: a network of :mod:`edgepose.training.models`; its head is left as it is.
        path: a backbone's or classifier's file with the names of torchvision or OpenMMLab, with or without
            ``backbone.``; or a whole pose network's.

    Raises:
        ModelError: the file cannot be read, or part of the backbone is missing or of another shape. The model is then
            unchanged.
    """
    state, _ = read_checkpoint(path)
    backbone = model.backbone
    if not isinstance(backbone, nn.Module):
        raise ModelError("the model has no backbone to load weights into: it must be one of edgepose.training.models")
    plain = {name.removeprefix("module."): name for name in state}
    prefix = "backbone." if any(name.startswith("backbone.") for name in plain) else ""
    own = backbone.state_dict()
    found = {name: state[plain[prefix + name]] for name in own if prefix + name in plain}
    used = {plain[prefix + name] for name in found}
    report = _load(backbone, found, [name for name in state if name not in used], path, "the backbone")
    return LoadReport(
        tuple("backbone." + name for name in report.loaded),
        report.ignored,
        tuple("backbone." + name for name in report.missing),
    )


def describe_checkpoint(recipe: Recipe, path: str | Path) -> dict[str, Any]:
    """The `metrics` and `training` of a spec for weights from this file.

    The recipe's published figures are claimed only for the published file itself, see :func:`published_hash`.
    """
    path = Path(path)
    digest = sha256(path)
    training = {"recipe": recipe.name, "checkpoint": path.name, "checkpoint_sha256": digest}
    if digest[:8] != published_hash(recipe):
        return {"training": training}
    return {
        "metrics": recipe.metrics,
        "training": {**training, "source": recipe.checkpoint_url, "data": f"{recipe.dataset} ({recipe.category})"},
    }


def check_trained_for(recipe: Recipe, info: CheckpointInfo) -> None:
    """Refuse a file of `edgepose train` that is of another recipe: shapes cannot tell DeepFashion2's categories apart.

    A network of all categories serves each one.

    Raises:
        ModelError: it was trained for other landmarks, or on other crops or targets. Says nothing of MMPose's files.
    """
    if not info.spec:
        return
    wanted = json.loads(recipe.spec().to_json())
    names, expected = info.spec.get("keypoint_names"), wanted["keypoint_names"]
    own = isinstance(names, list) and expected in (names, names[slice(*recipe.landmarks.channels)])
    other = [name for name in TRAINED_FOR if info.spec.get(name, wanted[name]) != wanted[name]]
    if own and not other:
        return
    if not own:
        what, advice = "for other landmarks", f"choose the recipe that it is of, not {recipe.name}"
    else:
        what = "with " + ", ".join(f"{name} {_plain(str(info.spec[name]))} instead of {wanted[name]}" for name in other)
        udp = recipe.declares_udp and info.spec.get("codec") == "udp"
        advice = "give --declared, as when it was trained" if udp else f"it cannot be used as {recipe.name}"
    name = _plain(str(info.spec.get("name")))
    raise ModelError(f"checkpoint {info.path} is of {name}, and was trained {what}: {advice}")


def published_hash(recipe: Recipe) -> str | None:
    """First eight digits of the published file's SHA-256, which OpenMMLab puts into its name; None: no such file."""
    return (recipe.checkpoint_url or "").rpartition("-")[2][:8] or None


def sha256(path: str | Path) -> str:
    """Of a file, in hexadecimal.

    Raises:
        ModelError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise ModelError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


# Loading ----------------------------------------------------------------------------------------


def _as_named_here(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by our names, and the names of those that have no place in a network."""
    copies = {"ema_" + name.replace(".", "_") for name in own}  # mmcv's EMAHook
    renamed: dict[str, Tensor] = {}
    ignored = []
    for name, value in state.items():
        ours = name.removeprefix("module.")
        if ours.startswith("keypoint_head."):
            ours = "head." + ours.removeprefix("keypoint_head.")
        if ours.startswith("data_preprocessor.") or ours in copies:
            ignored.append(name)
        elif ours in renamed:
            raise ModelError(f"checkpoint {path} does not fit the model: it has two tensors for {_plain(ours)}")
        else:
            renamed[ours] = value
    return renamed, ignored


def _problems(state: Mapping[str, Tensor], own: Mapping[str, Tensor], whom: str) -> list[str]:
    """What does not fit, in words; empty texts where all is well."""
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith(COUNTERS))
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    return [
        _listing("not in the checkpoint", missing),
        _listing(f"not in {whom}", [_plain(name) for name in sorted(state.keys() - own.keys())]),
        _listing("of another shape", [f"{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}" for n in other]),
    ]


def _load(model: nn.Module, state: dict[str, Tensor], ignored: list[str], path: str | Path, whom: str) -> LoadReport:
    """Check everything, then load."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    if any(problems := _problems(state, own, whom)):
        raise ModelError(
            f"checkpoint {path} does not fit {whom}: {'; '.join(filter(None, problems))}.{_advice(state, own)}"
        )
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(f"checkpoint {path} is broken: {_listing('with NaN or infinity', broken)}")
    kinds = [name for name in state if state[name].is_floating_point() != own[name].is_floating_point()]
    if kinds:
        raise ModelError(f"checkpoint {path} does not fit {whom}: {_listing('of another kind of number', kinds)}")
    model.load_state_dict({**{name: own[name] for name in missing}, **state}, strict=True)
    return LoadReport(tuple(name for name in own if name in state), tuple(map(_plain, ignored)), tuple(missing))


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})"


def _advice(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What most likely went wrong."""
    last = "head.final_layer.weight"
    if last not in own:
        return ""
    if last not in state:
        return (
            " It has no heatmap head: is it a backbone's or a classifier's checkpoint? Those start a training, see "
            "`edgepose train --init`."
        )
    theirs, ours = state[last], own[last]
    if theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours):
        return f" It has {len(theirs)} keypoints, the model {len(ours)}: choose the recipe that it was trained with."
    return " It is of another architecture: choose the recipe that it was trained with."


# What else is in the file -----------------------------------------------------------------------


def _info(file: TorchFile, beside: Mapping[Any, Any], tensors: int) -> CheckpointInfo:
    meta = beside.get("meta")
    facts = meta if isinstance(meta, dict) else beside
    data_set = facts.get("dataset_meta")
    values = {**facts, **(data_set if isinstance(data_set, dict) else {})}
    configs = [text for name in ("cfg", "config") if isinstance(text := facts.get(name), str)]
    return CheckpointInfo(
        path=file.path,
        bytes=file.size,
        container=file.container,
        tensors=tensors,
        averaged="ema_state_dict" in beside,
        unread=tuple(_plain(str(name)) for name in beside if name not in ("state_dict", "meta", *META)),
        dropped={_plain(name): count for name, count in sorted(file.dropped.items())},
        meta={name: _plain(str(values[name])) for name in META if isinstance(values.get(name), (str, int, float))},
        config=configs[0] if configs else "",
        spec=_spec(beside.get("spec")),
    )


def _spec(text: Any) -> dict[str, Any]:
    """The JSON object of a text that the file chose; empty if it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) and len(text) <= MAX_SPEC else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _plain(text: str) -> str:
    """A text of the file for a terminal: one short line, nothing that a terminal would obey."""
    shown = "".join(c if c.isprintable() else "?" for c in text[: MAX_META + 1])
    return shown if len(text) <= MAX_META else shown[: MAX_META - 1] + "…"
