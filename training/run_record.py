"""recipe.json of a run: all that decides what comes out of it, so that only the same run goes on in a folder."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from edgepose.errors import InputError
from edgepose.files import write_atomically
from edgepose.training.checkpoint import sha256
from edgepose.training.checkpointing import writing
from edgepose.training.departures import departures
from edgepose.training.recipe import Recipe
from edgepose.training.recipe_data import data_digests
from edgepose.training.recipe_text import to_dict
from edgepose.training.schedule import Execution

__all__ = ["check_same_run", "run_identity", "versions", "write_json", "write_record"]

SCHEMA = 1
PACKAGES = ("edgepose", "torch", "numpy", "opencv-python-headless", "onnx")
OUTCOMES = ("source", "published", "checkpoint_url", "ours")  # of a recipe: they decide nothing
SHOWN = 5  # differences that an error message lists


def run_identity(
    recipe: Recipe, data: Path, init: str | Path | None, execution: Execution, validation_limit: int | None
) -> dict[str, Any]:
    """All that decides what comes out, as JSON has it. The same files elsewhere or another device are the same run; the
    micro-batch counts, since batch normalisation sees no more than that. None is the recipe's own, as when it is left
    out: the run of 8 processes goes on in 4.

    Raises:
        ModelError: `init` cannot be read.
    """
    identity: dict[str, Any] = {
        "recipe": {name: value for name, value in to_dict(recipe).items() if name not in OUTCOMES},
        "init_sha256": sha256(init) if init is not None else None,
        "annotations_sha256": data_digests(recipe, data),
        "validation_limit": validation_limit,
        "precision": execution.precision,
        "micro_batch": None if execution.micro_batch == recipe.batch_per_gpu else execution.micro_batch,
    }
    return dict(json.loads(json.dumps(identity)))  # tuples become lists, as they are when they are read again


def check_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """See that a folder is free, or holds the run of this identity.

    Raises:
        InputError: it holds another one; the message says what was different.
    """
    path = folder / "recipe.json"
    if not path.exists():
        if (folder / "last.pt").exists():
            raise InputError(f"{folder} holds a run, but no recipe.json that says which: train into a new folder")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}): restore it, or train into a new folder") from None
    if changed := _differences("", before, identity):
        more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise InputError(
            f"{folder} holds a run with other options: {'; '.join(changed[:SHOWN])}{more}. Give the same options to go "
            "on with it, or train into a new folder"
        )


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """What changed, leaf by leaf."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys((*before, *now))
        return [line for k in keys for line in _differences(f"{name}.{k}".lstrip("."), before.get(k), now.get(k))]
    return [] if before == now else [f"{name.removeprefix('recipe.')} was {before!r}, now {now!r}"]


def write_record(
    folder: Path,
    identity: Mapping[str, Any],
    recipe: Recipe,
    execution: Execution,
    *,
    data: Path,
    init: str | Path | None,
    command: str,
) -> None:
    """Write recipe.json: what decides the run, and the circumstances of its latest start."""
    document = {
        "schema": SCHEMA,
        "departures": departures(recipe),
        "latest_start": {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": command,
            "data": str(data),
            "init": None if init is None else str(init),
            "execution": asdict(execution),
            "versions": versions(),
        },
        "run": identity,
    }
    write_json(folder / "recipe.json", document)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Atomically. Raises InputError if it cannot be written."""
    data = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    with writing(path, len(data)):
        write_atomically(path, data)


def versions() -> dict[str, str | None]:
    """Of what a run depends on; None: not installed as a package."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
