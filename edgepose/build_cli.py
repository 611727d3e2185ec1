"""The command `edgepose build`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgepose.console import console, messages, print_rows
from edgepose.errors import EdgePoseError, InputError

if TYPE_CHECKING:
    from edgepose.adapt import Spec
    from edgepose.build import BuiltEngine, Progress
    from edgepose.crops import Crops
    from edgepose.detection_parity import DetectionReport
    from edgepose.enginefile import BuildOptions
    from edgepose.parity import ParityReport

__all__ = ["progress_bar", "register"]

RENDERED = 24  # garments to compare on


def register(app: typer.Typer) -> None:
    """Add `build` to the `edgepose` command."""
    app.command()(build)


class Precision(str, Enum):
    """Precision of an engine."""

    fp16 = "fp16"
    fp32 = "fp32"


class Flavour(str, Enum):
    """Which TensorRT."""

    tensorrt = "tensorrt"
    rtx = "tensorrt-rtx"


def build(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="ONNX files, folders of them, or bundled names.")
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder, which is made if need be; or an .engine file, for one model. (default: beside the model; a "
            "bundled model's engine goes to the current folder)",
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the whole network, input and output included.")] = (
        Precision.fp16
    ),
    min_batch: Annotated[int | None, typer.Option(min=1, help="Smallest batch. (default: 1)")] = None,
    opt_batch: Annotated[int | None, typer.Option(min=1, help="Batch to be fastest at. (default: 4)")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Largest batch. (default: 16)")] = None,
    opt_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="0 builds fast, 5 tries everything. (default: TensorRT's, 3)")
    ] = None,
    aux_streams: Annotated[
        int | None, typer.Option(min=0, help="Streams for parallel branches, as HRNet has. (default: TensorRT decides)")
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(min=1, help="Limit of scratch memory, MiB. (default: all that the GPU has)")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorrt-rtx: a compute capability, as sm86; repeat it for several. (default: sm80 and later)"
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            help="Compare precisions on these photos, which one object fills each: a folder, of which the first 100 "
            f"are taken, or a file. (default: {RENDERED} rendered garments)"
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option("--spec", help="JSON file that says what the model expects. (default: the model's own spec)"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep an engine that differs too much.")] = False,
    flavour: Annotated[
        Flavour | None,
        typer.Option(help="Which TensorRT builds it. (default: full TensorRT if it is installed, else TensorRT-RTX)"),
    ] = None,
) -> None:
    """Build TensorRT engines of models and detectors, and report how far they are from the float32 model.

    Writes the engine, a sidecar that the runtime needs (.engine.json), and the crops that the report was made on
    (.engine.parity.npz), so that it can be repeated where the engine runs. The crops can be looked at: whoever gets
    the engine gets the photos.
    """
    from edgepose.build import BuildOptions, build_engine

    options = BuildOptions(
        flavour=flavour.value if flavour else None,
        targets=tuple(target or ()),
        optimization_level=opt_level,
        aux_streams=aux_streams,
        workspace_mib=workspace,
        force=force,
    )
    found = _find_models(models)
    profile = _profile(min_batch, opt_batch, max_batch)
    _prepare_output(output, found)
    outcomes: list[tuple[str, BuiltEngine | EdgePoseError]] = []
    for model in found:
        try:
            with progress_bar(Path(model).name) as progress:
                built = build_engine(
                    model,
                    output,
                    precision=precision.value,
                    profile=profile,
                    spec=spec,
                    crops=photos if photos is not None else _rendered_garments,
                    options=options,
                    progress=progress,
                )
        except EdgePoseError as error:
            if len(found) == 1:
                raise
            messages.print(f"[bold red]{escape(model)}:[/]", escape(str(error)), soft_wrap=True, highlight=False)
            outcomes.append((model, error))
        else:
            _print_built(built, options)
            outcomes.append((model, built))
    if len(outcomes) > 1:
        _print_summary(outcomes)
    if any(isinstance(outcome, EdgePoseError) for _, outcome in outcomes):
        raise typer.Exit(1)


def _find_models(models: list[str]) -> list[str]:
    """The models to build: names and files as they are, a folder's .onnx files."""
    found: list[str] = []
    for model in models:
        if Path(model).is_dir():
            inside = sorted(str(path) for path in Path(model).glob("*.onnx") if not path.name.startswith("."))
            if not inside:
                raise InputError(f"folder {model} holds no .onnx files")
            found += inside
        else:
            found.append(model)
    return list(dict.fromkeys(found))


def _prepare_output(output: Path | None, models: list[str]) -> None:
    """Make the output folder; refuse one file, or one name, for several engines."""
    from edgepose.models import ENGINE_SUFFIXES

    if output is None:
        return
    if output.suffix and output.suffix.lower() not in ENGINE_SUFFIXES and not output.is_dir():
        raise InputError(
            f"the output must be an .engine file or a folder, got {output}: an engine's name ends in "
            f"{', '.join(sorted(ENGINE_SUFFIXES))}; if this is to be a folder, create it first"
        )
    if output.suffix.lower() in ENGINE_SUFFIXES and not output.is_dir():
        if len(models) > 1:
            raise InputError(f"{output} is one file for {len(models)} engines: give a folder")
        return
    names = [Path(model).stem for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several models are called {', '.join(twice)}: their engines would overwrite each other")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {output} cannot be made: {error.strerror}") from None


def _profile(smallest: int | None, best: int | None, largest: int | None) -> tuple[int, int, int] | None:
    """The batch sizes; what is not given follows from what is."""
    sizes = (("--min-batch", smallest), ("--opt-batch", best), ("--max-batch", largest))
    given = [(name, size) for name, size in sizes if size is not None]
    for (lower, low), (upper, high) in pairwise(given):
        if low > high:
            raise InputError(f"{lower} {low} is larger than {upper} {high}: it must be min <= opt <= max")
    if not given:
        return None
    low = smallest or 1
    high = largest or max(16, low, best or 0)
    return low, best or min(max(4, low), high), high


def _rendered_garments(spec: Spec) -> Crops:
    """Garments as `edgepose synthesize` draws them: the nearest to photos that is always at hand."""
    import numpy as np

    from edgepose.crops import Crops
    from edgepose.spec import ModelSpec
    from edgepose.training.synthetic import render_garment

    rng = np.random.default_rng(0)
    samples = [render_garment(rng) for _ in range(RENDERED)]
    boxes = np.stack([sample.box for sample in samples]) if isinstance(spec, ModelSpec) else None
    return Crops.from_frames([sample.image for sample in samples], spec, boxes=boxes, source="rendered garments")


# Printing ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal, that starts anew with each stage."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bar:
        task = bar.add_task(escape(name), total=1.0)

        def show(stage: str, fraction: float) -> None:
            bar.update(task, description=f"{escape(name)}: {escape(stage)}", completed=fraction)

        yield show


def _print_built(built: BuiltEngine, options: BuildOptions) -> None:
    info, report = built.info, built.info.parity
    convolutions = ", ".join(f"{count} in {kind}" for kind, count in sorted(report.convolutions.items())) or "none"
    runs_on = f"{info.gpu} ({info.targets[0]})" if info.gpu else ", ".join(info.targets)
    where = {"graph": "the graph in ONNX Runtime; the first load on the GPU repeats it", "engine": "the engine"}
    rows = [
        ("engine", f"{built.path}, {info.engine_bytes / 1e6:.1f} MB, built in {info.seconds:.1f} s"),
        ("beside it", f"{built.path.name}.json, {built.path.name}.parity.npz"),
        ("runs with", f"{info.flavour} {info.version} on {runs_on}, {info.platform}"),
        ("batches", f"{info.profile[0]} to {info.profile[2]}, fastest at {info.profile[1]}"),
        ("input", f"{info.input.name} {info.input.dtype}, output {info.output.name} {info.output.dtype}"),
        ("convolutions", convolutions),
        ("compared", f"{report.counted} ({report.source}), {where[report.scope]}"),
        ("distance", f"median {report.px_median:.3f} px, 99 % {report.px_p99:.3f} px, most {report.px_max:.3f} px"),
        *_kind_rows(report),
        ("scores", f"within {100 * report.score_error:.2g} % of the highest"),
    ]
    print_rows(rows)
    for warning in built.warnings:
        messages.print("[yellow]TensorRT warns:[/]", escape(warning), soft_wrap=True, highlight=False)
    if options.force and (problems := report.problems()):
        messages.print("[yellow]kept with --force:[/]", escape("; ".join(problems)), soft_wrap=True, highlight=False)


def _kind_rows(report: ParityReport | DetectionReport) -> list[tuple[str, str]]:
    """What only one kind of report says."""
    from edgepose.parity import ParityReport

    if isinstance(report, ParityReport):
        return [
            ("other peak", f"{report.jumps}, {report.ties} of them ties"),
            ("PCK change", f"at 0.05: {report.pck_change:+.4f}, at 0.2: {report.pck_20 - 1:+.4f} at worst"),
        ]
    return [("unmatched", f"{report.unmatched}, of scores from {report.min_score:.2f} on")]


def _pck_change(report: ParityReport | DetectionReport) -> str:
    from edgepose.parity import ParityReport

    return f"{report.pck_change:+.4f}" if isinstance(report, ParityReport) else "-"


def _print_summary(outcomes: list[tuple[str, BuiltEngine | EdgePoseError]]) -> None:
    """A line for each model, the engine's path last: a terminal may break it, and no part is cut."""
    headings = ("MB", "build, s", "median, px", "99 %, px", "PCK@0.05")
    lines: list[tuple[str, ...]] = [(*headings, "engine")]
    for model, outcome in outcomes:
        if isinstance(outcome, EdgePoseError):
            lines.append((*["-"] * len(headings), f"{Path(model).name} failed"))
            continue
        info, report = outcome.info, outcome.info.parity
        lines.append(
            (
                *(f"{info.engine_bytes / 1e6:.1f}", f"{info.seconds:.1f}", f"{report.px_median:.3f}"),
                *(f"{report.px_p99:.3f}", _pck_change(report), str(outcome.path)),
            )
        )
    console.print()
    for *figures, engine in lines:
        line = "  ".join(f"{figure:>{max(6, len(heading))}}" for figure, heading in zip(figures, headings, strict=True))
        console.print(f"{line}  {escape(engine)}", soft_wrap=True, highlight=False)
