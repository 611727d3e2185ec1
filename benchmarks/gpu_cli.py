"""What `edgepose bench kernels | latency | throughput --device cuda` do: measure, save after each part, plot, print."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from edgepose.benchmarks.cli import keep, turns
from edgepose.console import console
from edgepose.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from edgepose.benchmarks.records import Record

__all__ = ["MODELS", "run_on_gpu"]

MODELS = ("resnet50", "garment-landmarks")
Suite = Literal["kernels", "latency", "throughput"]


def run_on_gpu(
    suite: Suite,
    output: Path,
    *,
    rounds: int | None = None,
    quick: bool = False,
    models: Sequence[str] = MODELS,
    boxes: Sequence[int] = (),
    precision: Literal["fp16", "fp32"] = "fp16",
) -> None:
    """Run a suite on GPU 0. The result is saved after each part, so a later failure or Ctrl-C costs that part only.

    Args:
        output: folder of the result.
        rounds, boxes: None or empty: the suite's own.
        models: of latency and throughput, as :func:`edgepose.benchmarks.bench_models.open_model` takes them.

    Raises:
        MissingDependencyError, EngineError: no CuPy, or no GPU.
        typer.Exit: 1: a part failed; the notes say which.
    """
    check_gpu()
    options: dict[str, Any] = {"quick": quick, "save": lambda record: record.save(output)}
    if rounds is not None:
        options["rounds"] = rounds
    if suite == "kernels":
        from edgepose.benchmarks import gpu_kernels, kernels

        measure, show = gpu_kernels.run, kernels.print_table
    else:
        from edgepose.benchmarks import gpu_latency, gpu_throughput
        from edgepose.benchmarks.bench_models import open_model
        from edgepose.benchmarks.gpu_ways import GpuOptions

        module: Any = gpu_latency if suite == "latency" else gpu_throughput
        options["options"] = GpuOptions(precision)
        if boxes:
            options["boxes"] = tuple(dict.fromkeys(boxes))
        opened = [open_model(name) for name in dict.fromkeys(models)]
        measure, show = partial(module.run, opened), module.print_table
    with turns(f"{suite} on the GPU") as progress:
        record: Record = measure(**options, progress=progress)
    keep(record, output)
    show(record, console)
    if any(note.startswith("failed") for note in record.notes):
        raise typer.Exit(1)


def check_gpu() -> None:
    """Raises MissingDependencyError without CuPy, EngineError without a GPU."""
    try:
        import cupy
    except ImportError as error:
        raise MissingDependencyError(
            f"measuring on a GPU needs CuPy ({error}): pip install 'edgepose[cuda13]' (cuda12 for older drivers)"
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise EngineError(f"there is no NVIDIA GPU to measure on ({error}): leave --device cuda out") from None
    if not count:
        raise EngineError("there is no NVIDIA GPU to measure on: leave --device cuda out")
