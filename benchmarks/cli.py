"""`edgepose bench`: one command for each suite. What they need is imported inside: the command line starts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from edgepose.console import console, messages

if TYPE_CHECKING:
    from edgepose.benchmarks.records import Record
    from edgepose.benchmarks.ways import Selection

__all__ = ["bench_app", "register"]

bench_app = typer.Typer(
    no_args_is_help=True,
    help="Latency, throughput, accuracy and start-up on this machine, ours beside others'. Method: docs/benchmarks.md.",
)

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder of the result: SUITE--DEVICE.json, and its plots.")
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds of measurement; more narrow the intervals.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few rounds of few cases: does it run? Not for figures to quote.")]
Device = Annotated[str, typer.Option(help="cpu; or cuda: GPU 0, with the ways that others have there.")]
OUTPUT = Path("bench-results")


def register(app: typer.Typer) -> None:
    """Add `bench` to the `edgepose` command."""
    from edgepose.benchmarks.study_cli import register as register_studies  # which takes its options from here

    register_studies(bench_app)
    app.add_typer(bench_app, name="bench")


def keep(record: Record, output: Path) -> None:
    """Save a suite's record and draw its plots beside it; says where they are and what was noted."""
    path = record.save(output)  # first of all: what took an hour must not be lost to a plot, nor its place untold
    console.print(escape(str(path)), soft_wrap=True, highlight=False)
    for note in record.notes:
        messages.print(f"[dim]{escape(note)}[/]", soft_wrap=True, highlight=False)
    from edgepose.benchmarks.plots import plot
    from edgepose.errors import MissingDependencyError

    try:
        for drawn in plot(record, output):
            console.print(escape(str(drawn)), soft_wrap=True, highlight=False)
    except MissingDependencyError as error:
        messages.print(f"no plots: {escape(str(error))}", soft_wrap=True, highlight=False)


@contextmanager
def turns(suite: str) -> Iterator[Any]:
    """A progress line for :func:`edgepose.benchmarks.timing.interleaved`: ``show(done, total, what)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from edgepose.benchmarks.records import begin

    begin()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True) as bars:
        task = bars.add_task(suite, total=None)

        def show(done: int, total: int, what: str = suite) -> None:
            bars.update(task, completed=done, total=total, description=what)

        yield show


@bench_app.command("kernels")
def kernels_command(
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    device: Device = "cpu",
) -> None:
    """Crop, decode, letterbox, selection and flip merge alone, each beside code of others that does the same."""
    if check_device(device) == "cuda":
        from edgepose.benchmarks.gpu_cli import run_on_gpu

        run_on_gpu("kernels", output, rounds=rounds, quick=quick)
        return
    from edgepose.benchmarks import kernels

    with turns("kernels") as progress:
        record = kernels.run(rounds=rounds or kernels.ROUNDS, quick=quick, progress=progress)
    keep(record, output)
    kernels.print_table(record, console)


def check_device(device: str) -> str:
    """``cpu`` or ``cuda``. Raises InputError for anything else."""
    from edgepose.errors import InputError

    if device not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu or cuda, got {device!r}")
    return device


Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="resnet50, a bundled name, a recipe's (random weights), or an ONNX file; repeat it for several.",
    ),
]
Labels = Annotated[Path | None, typer.Option(help="COCO file of objects with the models' landmarks: PCK, too.")]
QUICK_MODEL = "garment-landmarks-fast"


@bench_app.command("startup")
def startup_command(
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    model: Models = None,
    cold: Annotated[int | None, typer.Option(min=0, help="Starts with a cold file cache.")] = None,
) -> None:
    """From the start of a process to the landmarks of a photo, step by step, beside others."""
    from edgepose.benchmarks import startup

    with turns("startup") as progress:
        record = startup.run(
            models=tuple(dict.fromkeys(model or ()) or (startup.MODELS[:1] if quick else startup.MODELS)),
            rounds=rounds or (3 if quick else startup.ROUNDS),
            cold_runs=cold if cold is not None else 1 if quick else startup.COLD_RUNS,
            progress=progress,
        )
    keep(record, output)
    startup.print_table(record, console)


@bench_app.command("scaling")
def scaling_command(
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    model: Models = None,
    axis: Annotated[
        list[str] | None, typer.Option(help="boxes, frame, keypoints, memory or load; repeat it. (default: all)")
    ] = None,
) -> None:
    """Latency against boxes, frame size and landmarks; memory of predictors; opening against the file's size."""
    from edgepose.benchmarks import memory, scaling

    with turns("scaling") as progress:
        record = scaling.run(
            axes=tuple(dict.fromkeys(axis or scaling.AXES)),
            models=tuple(dict.fromkeys(model)) if model else (QUICK_MODEL,) if quick else scaling.MODELS,
            rounds=rounds or (1 if quick else scaling.ROUNDS),
            calls=10 if quick else memory.CALLS,
            progress=progress,
        )
    keep(record, output)
    scaling.print_table(record, console)


@bench_app.command("settings")
def settings_command(
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    model: Models = None,
    labels: Labels = None,
) -> None:
    """The network alone in every setting of ONNX Runtime and OpenVINO, and what each changes in the landmarks."""
    from edgepose.benchmarks import settings

    with turns("settings") as progress:
        record = settings.run(
            models=tuple(dict.fromkeys(model)) if model else (QUICK_MODEL,) if quick else settings.MODELS,
            boxes=settings.BOXES[:1] if quick else settings.BOXES,
            rounds=rounds or (2 if quick else settings.ROUNDS),
            labels=labels,
            progress=progress,
        )
    keep(record, output)
    settings.print_table(record, console)


@bench_app.command("accuracy")
def accuracy_command(
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    model: Models = None,
    labels: Labels = None,
    engine: Annotated[list[Path] | None, typer.Option(help="An .engine file of the one model; repeat it.")] = None,
    way: Annotated[list[str] | None, typer.Option(help="Only these; repeat it. (default: all)")] = None,
) -> None:
    """What each precision and way changes in the landmarks, and with labels in PCK; its time beside it."""
    from edgepose.benchmarks import accuracy
    from edgepose.benchmarks.ways import Selection

    with turns("accuracy") as progress:
        record = accuracy.run(
            models=tuple(dict.fromkeys(model)) if model else (QUICK_MODEL,) if quick else accuracy.MODELS,
            labels=labels,
            engines=tuple(engine or ()),
            selection=Selection(ways=tuple(way or ())),
            rounds=rounds or (2 if quick else accuracy.ROUNDS),
            progress=progress,
        )
    keep(record, output)
    accuracy.print_table(record, console)


Boxes = Annotated[list[int] | None, typer.Option(min=1, help="How many on a frame; repeat it.")]
Ways = Annotated[list[str] | None, typer.Option("--way", help="Only these ways, and ours; repeat it.")]
Without = Annotated[list[str] | None, typer.Option(help="Leave this way out; repeat it.")]
Precisions = Annotated[list[str] | None, typer.Option("--precision", help="fp32, int8; a GPU: fp16, fp32; repeat it.")]
Peers = Annotated[
    list[str] | None, typer.Option("--peer", help="A way of your own, file.py:Name (help(edgepose.benchmarks.ways)).")
]


@bench_app.command("latency")
def latency_command(
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    device: Device = "cpu",
    model: Models = None,
    boxes: Boxes = None,
    frame: Annotated[list[str] | None, typer.Option(help="Besides 1080p: 720p, 4K, 1600x900, ...; repeat it.")] = None,
    way: Ways = None,
    without: Without = None,
    precision: Precisions = None,
    peer: Peers = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each way's network. (default: all)")] = None,
    unequal: Annotated[bool, typer.Option("--unequal", help="Time ways with other landmarks too, marked.")] = False,
) -> None:
    """From a frame and boxes to landmarks, ours beside others', ours also by stage. Landmarks are compared first."""
    if check_device(device) == "cuda":
        _only_on_the_cpu(frame=frame, way=way, without=without, peer=peer, threads=threads, unequal=unequal)
        _on_gpu("latency", output, rounds, quick, model, boxes, precision)
        return
    from dataclasses import replace

    from edgepose.benchmarks import latency
    from edgepose.benchmarks.bench_models import open_model
    from edgepose.benchmarks.ways import QUICK_WAYS

    plan = latency.Plan.quick() if quick else latency.Plan()
    plan = replace(
        plan,
        boxes=tuple(boxes or plan.boxes),
        frames=plan.frames if frame is None else tuple(frame),
        rounds=rounds or plan.rounds,
        unequal=unequal,
    )
    if quick:  # what takes long to open or to make takes part where it is asked for
        way, precision = way or list(QUICK_WAYS), precision or ["fp32"]
    selection = _selection(way, without, precision, peer, threads)
    with turns("latency") as progress:
        names = dict.fromkeys(model or ((QUICK_MODEL,) if quick else latency.MODELS))
        models = [open_model(name) for name in names]
        record = latency.run(models, selection=selection, plan=plan, progress=progress)
    keep(record, output)
    latency.print_table(record, console)
    if not all(record.find(way="edgepose", model=one.name, precision="fp32", stage="total") for one in models):
        messages.print("[bold red]error:[/] our own landmarks are others than the peers': see the notes above")
        raise typer.Exit(1)


@bench_app.command("throughput")
def throughput_command(
    output: Output = OUTPUT,
    rounds: Rounds = None,
    quick: Quick = False,
    device: Device = "cpu",
    model: Models = None,
    boxes: Boxes = None,
    way: Ways = None,
    without: Without = None,
    precision: Precisions = None,
    peer: Peers = None,
) -> None:
    """Frames a second: one network on all cores, or several with a share each, as threads or as processes."""
    if check_device(device) == "cuda":
        _only_on_the_cpu(way=way, without=without, peer=peer)
        _on_gpu("throughput", output, rounds, quick, model, boxes, precision)
        return
    from edgepose.benchmarks import throughput
    from edgepose.benchmarks.bench_models import open_model

    if quick:
        way, precision = way or list(throughput.QUICK_WAYS), precision or ["fp32"]
    with turns("throughput") as progress:
        names = dict.fromkeys(model or ((QUICK_MODEL,) if quick else throughput.MODELS))
        record = throughput.run(
            [(name, open_model(name)) for name in names],
            selection=_selection(way, without, precision, peer, None),
            boxes=tuple(dict.fromkeys(boxes or throughput.BOXES)),
            rounds=rounds or (throughput.QUICK_ROUNDS if quick else throughput.ROUNDS),
            seconds=throughput.QUICK_SECONDS if quick else throughput.SECONDS,
            progress=progress,
        )
    keep(record, output)
    throughput.print_table(record, console)


def _only_on_the_cpu(**options: Any) -> None:
    """Raises InputError for options that a GPU's suite would silently ignore."""
    from edgepose.errors import InputError

    if given := [f"--{name}" for name, value in options.items() if value]:
        raise InputError(f"{', '.join(given)}: on the CPU only; leave it out, or --device cuda")


def _selection(
    ways: Sequence[str] | None,
    without: list[str] | None,
    precisions: list[str] | None,
    peers: list[str] | None,
    threads: int | None,
) -> Selection:
    from edgepose.benchmarks.ways import PRECISIONS, Selection

    return Selection(
        ways=tuple(ways or ()),
        without=tuple(without or ()),
        precisions=tuple(precisions or PRECISIONS),
        peers=tuple(peers or ()),
        threads=threads,
    )


def _on_gpu(
    suite: Literal["latency", "throughput"],
    output: Path,
    rounds: int | None,
    quick: bool,
    models: list[str] | None,
    boxes: list[int] | None,
    precisions: list[str] | None,
) -> None:
    from edgepose.benchmarks.gpu_cli import MODELS, run_on_gpu
    from edgepose.errors import InputError

    precision = (precisions or ["fp16"])[0]
    if precision not in ("fp16", "fp32") or len(precisions or ()) > 1:
        raise InputError(f"on a GPU --precision is one of fp16, fp32, got {', '.join(precisions or ())}")
    chosen: Any = precision
    run_on_gpu(suite, output, rounds=rounds, quick=quick, models=models or MODELS, boxes=boxes or (), precision=chosen)


@bench_app.command("compare")
def compare_command(
    old: Annotated[Path, typer.Argument(help="A result file.")],
    new: Annotated[Path, typer.Argument(help="Another of the same suite.")],
    tolerance: Annotated[float, typer.Option(help="A change up to this part of the old figure is none.")] = 0.05,
    everything: Annotated[bool, typer.Option("--all", help="Show what stayed the same, too.")] = False,
) -> None:
    """Hold a new result against an old one; exit code 1 where ours got worse, beyond tolerance, chance and machine."""
    from edgepose.benchmarks.compare import compare, print_table
    from edgepose.benchmarks.records import Record

    comparison = compare(Record.read(old), Record.read(new), tolerance=tolerance)
    print_table(comparison, console, everything=everything)
    if comparison.worse or comparison.lost:
        raise typer.Exit(1)


@bench_app.command("plot")
def plot_command(
    results: Annotated[list[Path], typer.Argument(help="Result files.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder. (default: beside each file)")] = None,
) -> None:
    """Draw the plots of result files, PNG and SVG."""
    from edgepose.benchmarks.plots import plot
    from edgepose.benchmarks.records import Record

    for path in results:
        for drawn in plot(Record.read(path), output or path.parent):
            console.print(escape(str(drawn)), soft_wrap=True, highlight=False)


@bench_app.command("report")
def report_command(
    files: Annotated[list[Path], typer.Argument(help="Markdown files with blocks to fill.")],
    results: Annotated[Path, typer.Option(help="Folder of the result files.")] = Path("benchmarks/results"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 where a file is stale.")] = False,
) -> None:
    """Write the tables of README and docs from result files."""
    from edgepose.benchmarks.report import report

    difference = report(files, results, check=check)
    if difference and check:
        console.print(escape(difference), highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    console.print("written anew" if difference else "nothing to change")
