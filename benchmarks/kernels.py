"""The NumPy twins of the kernels, each beside code of others that does the same: `edgepose bench kernels`.

Before anything is timed the results of all ways are compared, and how far they are apart is part of the record. A way
beyond the limit of its case does other work: it is told, and not timed. With one thread of OpenCV's, and with all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.benchmarks import timing
from edgepose.benchmarks.kernel_cases import Case, cpu_cases
from edgepose.benchmarks.records import Label, Record, Row, cpu_facts, make_record

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["differences", "print_table", "run"]

OURS = "edgepose"
QUICK_ROUNDS, ROUNDS, BURST = 3, 15, 3


def run(
    *,
    rounds: int = ROUNDS,
    quick: bool = False,
    threads: Sequence[int] | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> Record:
    """Measure all cases on the CPU.

    Args:
        rounds: of :func:`edgepose.benchmarks.timing.interleaved`.
        quick: fewer rounds of fewer cases.
        threads: of OpenCV, for each of which everything is measured; None: one, and as many as this process may use.
        progress: told (turns taken, of how many, which case).

    Returns:
        Rows with labels kernel, case, way, threads and figure: ``time`` in ms; ``ratio``: how many times as long as
        edgepose a way takes; ``difference``: how far its results are from edgepose's (no threads).
    """
    cases, notes = cpu_cases(quick=quick)
    rounds = min(rounds, QUICK_ROUNDS) if quick else rounds
    counts = sorted({1, int(cpu_facts()["usable"] or 1)}) if threads is None else list(threads)
    rows: list[Row] = []
    total = sum(len(case.ways) for case in cases) * rounds * len(counts)
    done = 0
    before = cv2.getNumThreads()
    try:
        for case in cases:
            equal, differing = differences(case)
            rows += equal
            notes += differing.values()
            ways = {name: call for name, call in case.ways.items() if name not in differing}
            for count in counts:
                cv2.setNumThreads(count)

                def turn(turns: int, case: Case = case, done: int = done) -> None:
                    case.renew()
                    if progress is not None:
                        progress(done + turns, total, f"{case.kernel}, {case.name}")

                case.renew()
                times = timing.interleaved(ways, rounds=rounds, burst=BURST, progress=turn)
                rows += _timed(case, times, {"threads": count})
                done += len(case.ways) * rounds
    finally:
        cv2.setNumThreads(before)
    return make_record("kernels", rows, notes=notes)


def differences(case: Case) -> tuple[list[Row], dict[str, str]]:
    """Rows of how far each way's results are from ours, and what to tell of those beyond the case's limit, by way."""
    case.renew()
    ours = case.ways[OURS]()
    rows, differing = [], {}
    for name, call in case.ways.items():
        if name == OURS:
            continue
        apart = np.asarray(case.difference(call(), ours), np.float64)
        mean, p99, worst = float(apart.mean()), float(np.percentile(apart, 99)), float(apart.max())
        labels: dict[str, Label] = {**_labels(case), "way": name, "figure": "difference"}
        rows.append(Row(labels, case.unit, {"mean": mean, "p99": p99, "worst": worst}))
        if not mean <= case.limit:
            differing[name] = (
                f"{case.kernel}, {case.name}: {name} is not timed, its results differ by {mean:.3g} {case.unit} in the "
                f"mean (limit {case.limit:g})"
            )
    return rows, differing


def _timed(case: Case, times: Mapping[str, NDArray[np.float64]], more: Mapping[str, Label]) -> Iterable[Row]:
    for name, of_way in times.items():
        yield Row({**_labels(case), "way": name, **more, "figure": "time"}, "ms", timing.summarize(of_way))
    for name, of_way in times.items():
        if name != OURS:
            labels: dict[str, Label] = {**_labels(case), "way": name, **more, "figure": "ratio"}
            yield Row(labels, "ratio", timing.ratio(times[OURS], of_way))


def _labels(case: Case) -> dict[str, Label]:
    return {"kernel": case.kernel, "case": case.name}


def print_table(record: Record, console: Console) -> None:
    """A section for each case, one line a way; ``faster`` above 1: edgepose is that many times as fast as it."""
    from rich import box
    from rich.table import Table

    timed = record.find(figure="time")
    title = f"Kernels on {record.device}, {timed[0].unit}"
    table = Table(title=title, caption="faster: edgepose than this way", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("way", no_wrap=True)
    for head in ("threads", "p50", "p95", "faster", "apart"):
        table.add_column(head, justify="right")
    before: Any = None
    for row in timed:
        at = {key: row.labels[key] for key in ("kernel", "case", "threads") if key in row.labels}
        case = f"{at['kernel']}\n{at['case']}"
        if case != before:
            table.add_section()
            table.add_row(f"[bold]{case}[/]")
            before = case
        way = row.labels["way"]
        faster = record.find(**at, way=way, figure="ratio")
        apart = record.find(kernel=at["kernel"], case=at["case"], way=way, figure="difference")
        table.add_row(
            f"  {way}",
            str(at.get("threads", "")),
            *(f"{row.values[key]:.3g}" for key in ("p50", "p95")),
            "".join(f"{one.values['value']:.2f} x" for one in faster),
            "".join(f"{one.values['mean']:.2g} {one.unit}" for one in apart),
        )
    console.print(table)
