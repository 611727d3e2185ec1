"""The commands of training, by module. PyTorch is imported inside the commands."""

from __future__ import annotations

import typer

from edgepose.training import checkpoint_cli, dataset_cli, detector_cli, evaluate_cli, train_cli

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the training commands to the `edgepose` command."""
    for module in (train_cli, checkpoint_cli, evaluate_cli, detector_cli, dataset_cli):
        module.register(app)
