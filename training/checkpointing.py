"""Checkpoints of a run that goes on: written whole or not at all, read without running code, compared before use.

`last.pt` holds everything that the next step depends on; `best.pt` the weights of the best evaluation. Both have the
weights to deploy under `state_dict`, so that `edgepose.training.checkpoint.load_checkpoint` takes them as they are.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import pickle
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgepose.errors import InputError
from edgepose.files import check_writable, write_atomically
from edgepose.spec import ModelSpec
from edgepose.training.dataset import LandmarkDataset
from edgepose.training.schedule import Schedule

__all__ = [
    "check_identity",
    "identity",
    "load",
    "load_weights",
    "prepare_folder",
    "random_state",
    "save",
    "set_random_state",
    "writing",
]

FORMAT = 1
SHOWN = 5  # names that an error message lists
# What edgepose.files had not renamed or removed yet, of any file of a run; an ONNX file is 40 MB.
LEFT_OVER = re.compile(r"(.+\.(pt|json|jsonl|png|onnx)\.[0-9a-f]{8}|\.[0-9a-f]{16})\.tmp")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values; a kill, a full disk or a power cut leaves the old file as it was.

    Raises:
        InputError: the disk is full or the folder is not writable any more.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    with writing(path, buffer.getbuffer().nbytes):
        write_atomically(path, buffer.getbuffer())


@contextlib.contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Around writing a file of a run: says what is lost and what to do if that fails."""
    try:
        yield
    except OSError as error:
        last = path.with_name("last.pt")
        kept = f"{last} is whole: the same command goes on from there" if last.exists() else "Nothing is saved yet"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            needed = f", {size / 1e6:.0f} MB" if size else ""
            raise InputError(
                f"{path}{needed}: the disk is full ({free / 1e6:.0f} MB are free). Make room. {kept}"
            ) from error
        raise InputError(f"{path} cannot be written: {error.strerror or error}. {kept}") from error


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote, onto the CPU; ``weights_only``, so a checkpoint cannot run code.

    Raises:
        InputError: the file is damaged, or not such a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise InputError(
            f"{path} cannot be read as a checkpoint of this trainer: {reason}. It is "
            "written whole or not at all, so something else has changed it: restore it, or train into a new folder"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format", "none") if isinstance(state, dict) else type(state).__name__
        raise InputError(
            f"{path} is no checkpoint that this version can go on with: expected format {FORMAT}, found {found}. To "
            "start from its weights, load them with load_checkpoint and train into a new folder"
        )
    return state


def prepare_folder(folder: Path) -> None:
    """Make a run's folder, prove that it can be written to, and remove what a killed run left half written.

    Raises:
        InputError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
        for rest in folder.iterdir():
            if LEFT_OVER.fullmatch(rest.name):
                rest.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the run's folder {folder} cannot be written to: {error.strerror or error}") from None


# What a run is --------------------------------------------------------------------------------------


def identity(
    schedule: Schedule, spec: ModelSpec, dataset: LandmarkDataset, real: int, model: nn.Module
) -> dict[str, Any]:
    """What must be the same for a run to go on: all that decides what is learnt, as JSON-able values."""
    names = b"".join(a.image.name.encode() + a.box.tobytes() for a in dataset.annotations)
    return {
        "schedule": json.loads(json.dumps(asdict(schedule))),
        "spec": json.loads(spec.to_json()),
        "data set": {
            "samples": len(dataset),
            "real": real,
            "images and boxes": f"{zlib.crc32(names):08x}",
            "augmentation": repr(dataset.augmentation),
            "seed": dataset.seed,
        },
        "network": {
            "trained tensors": sum(p.requires_grad for p in model.parameters()),
            "frozen tensors": sum(not p.requires_grad for p in model.parameters()),
        },
    }


def check_identity(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare two identities. Only ``stop_after`` may differ: a run may be told to stop later, or earlier.

    Raises:
        InputError: they differ; the message says in what.
    """
    for kind in now:
        before, after = dict(saved.get(kind, {})), dict(now[kind])
        if kind == "schedule":
            before.pop("stop_after", None)
            after.pop("stop_after", None)
        differences = [
            f"{name} was {before.get(name)!r}, now {after.get(name)!r}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]
        if differences:
            raise InputError(
                f"{path} was made with another {kind}: {'; '.join(differences)}. Go on with the same options and data, "
                "or train into a new folder"
            )


def load_weights(path: Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``load_state_dict``, but all or nothing, and with an error that names the checkpoint.

    Raises:
        InputError: a name or a shape differs; the model is then unchanged.
    """
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [f"{n} {tuple(state[n].shape)} instead of {tuple(v.shape)}" for n, v in own.items()
              if n in state and state[n].shape != v.shape]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError(
            f"{path} belongs to another network: {', '.join(wrong[:SHOWN])}{more} differ. Train into a new folder"
        )
    model.load_state_dict(state)


# Random numbers -------------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Torch's generators in this process, which dropout and the like draw from. Samples need none: their randomness
    comes from (seed, epoch, index)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """:func:`random_state`'s inverse; a state of another kind of device is left out."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
