"""Reading checkpoints: MMPose's, and plain torch state dicts."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepose.errors import MissingDependencyError, ModelError
from edgepose.training.recipes import Recipe

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise MissingDependencyError(f"checkpoints need {error.name}: pip install 'edgepose[train]'") from error

__all__ = ["describe_checkpoint", "load_checkpoint"]

SHOWN = 5  # names that an error message lists before "and n more"


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint's weights into a model, in place and strictly: every name and every shape must fit.

    Read with ``weights_only=True``, NumPy's plain data allowed: a checkpoint cannot run code.

    Args:
        model: a network of :mod:`edgepose.training.models`.
        path: a .pth file: a state dict, or a dict with one under ``state_dict``. MMPose 0.x names its head
            ``keypoint_head``, MMPose 1.x ``head``; both are understood, as is the ``module.`` of DataParallel.

    Raises:
        ModelError: the file cannot be read, holds no state dict, or does not fit; the message says where. The model
            is then unchanged.
    """
    path = Path(path)
    state = {_renamed(name): value for name, value in _read(path).items() if not name.startswith("data_preprocessor.")}
    own = model.state_dict()
    for name, value in own.items():  # checkpoints from before PyTorch 0.4.1 lack these counters
        if name.endswith(".num_batches_tracked"):
            state.setdefault(name, value)

    problems = [
        _listing("not in the checkpoint", sorted(own.keys() - state.keys())),
        _listing("not in the model", sorted(state.keys() - own.keys())),
        _listing(
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
                for name, value in own.items()
                if name in state and state[name].shape != value.shape
            ],
        ),
    ]
    if any(problems):
        raise ModelError(
            f"checkpoint {path} does not fit the model: {'; '.join(filter(None, problems))}.{_advice(state, own)}"
        )
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(f"checkpoint {path} is broken: {_listing('with NaN or infinity', broken)}")
    model.load_state_dict(state, strict=True)


def describe_checkpoint(recipe: Recipe, path: str | Path) -> dict[str, Any]:
    """The `metrics` and `training` of a spec for weights from this file.

    The recipe's published figures are claimed only for the published file itself: OpenMMLab puts the first eight
    digits of a file's SHA-256 into its name.
    """
    path = Path(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    training = {"recipe": recipe.name, "checkpoint": path.name, "checkpoint_sha256": digest}
    published = digest[:8] == recipe.checkpoint_url.rpartition("-")[2][:8]
    if not published:
        return {"training": training}
    return {
        "metrics": recipe.metrics,
        "training": {**training, "source": recipe.checkpoint_url, "data": f"{recipe.dataset} ({recipe.category})"},
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint {path} is no PyTorch file, or holds Python objects beside weights, and those can run code "
            "when read. If you trust its source, reduce it once: torch.save(torch.load(path, weights_only=False)"
            f"['state_dict'], 'weights.pth'). PyTorch says: {str(error).splitlines()[0]}"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:  # what torch.load raises for damaged files
        raise ModelError(f"checkpoint {path} is damaged or no PyTorch file: {error}") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"checkpoint {path} holds no state dict: expected tensors by name, maybe under 'state_dict'")
    return dict(state)


def _numpy_globals() -> list[Any]:
    """What arrays and numbers of NumPy are pickled with: plain data, which MMPose 1.x keeps beside the weights."""
    core = getattr(np, "_core", None) or np.core  # NumPy 2 and 1.26
    dtypes = {type(np.dtype(name)) for name in ("f2", "f4", "f8", "u1", "i4", "i8", "?", "U1", "S1")}
    return [core.multiarray._reconstruct, core.multiarray.scalar, np.ndarray, np.dtype, *dtypes]


def _renamed(name: str) -> str:
    name = name.removeprefix("module.")
    return "head." + name.removeprefix("keypoint_head.") if name.startswith("keypoint_head.") else name


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
        return " It has no heatmap head: is it a backbone's or a classifier's checkpoint?"
    theirs, ours = state[last], own[last]
    if theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours):
        return f" It has {len(theirs)} keypoints, the model {len(ours)}: choose the recipe that it was trained with."
    return " It is of another architecture: choose the recipe that it was trained with."
