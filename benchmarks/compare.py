"""Has a change made it slower? Two records of one suite, row against row: `edgepose bench compare OLD.json NEW.json`.

A time is worse where its median grew by more than the tolerance and the 95 % intervals of both medians lie apart, so
that noise alone does not fail a build. Single numbers (landmark changes, memory, ratios) have their intervals where
they were measured, else none: then the tolerance decides. Fractions (PCK, mAP) are worse when they fall by more than
half a hundredth: five per cent of them would be far too much to lose unseen.

Only what ours takes from end to end is judged. Its stages explain, and peers are told: a peer that became faster is no
regression of ours. But peers tell how fast the machine was: where their packages are the same in both records, ours is
worse only if it is worse beside them, too. Where ours is missing from a place at which anything else was timed, most
likely because its landmarks had become others, it is lost, which is a regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from edgepose.benchmarks.records import Label, Record, Row
from edgepose.benchmarks.ways import OURS
from edgepose.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["TOLERANCE", "Change", "Comparison", "compare", "print_table"]

TOLERANCE = 0.05
BUSY = 0.5  # load average for each core when the run began, beyond which something else was running
HIGHER_IS_BETTER = ("frames/s", "boxes/s", "IoU")
# What a statistic or figure begins with that lies between 0 and 1.
FRACTIONS = ("PCK", "AUC", "mAP", "AP@", "recall", "precision", "category accuracy")
FRACTION_TOLERANCE = 0.005
SMALLEST = {"px": 0.01, "%": 0.5}  # differences of no consequence, whatever the quotient says
TIMES = ("ms", "us", "s")
MIDDLES = ("p50", "value", "mean", "median")  # the number of a row that stands for it, the first that there is
Verdict = Literal["worse", "better", "same"]


@dataclass(frozen=True)
class Change:
    """A row in both records.

    Attributes:
        labels, unit: the row's.
        old, new: its median, or its value.
        factor: new / old; above 1 the number grew. Infinite where old is 0.
        verdict: beyond the tolerance and beyond chance, or the same.
        judged: whether it can be a regression.
        machine: how many times as long as before the peers took at the same place, where that is beyond the tolerance.
    """

    labels: Mapping[str, Label]
    unit: str
    old: float
    new: float
    factor: float
    verdict: Verdict
    judged: bool = True
    machine: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """All rows of two records.

    Attributes:
        changes: of the rows in both, worst first.
        gone, added: rows that are in one only.
        lost: ours in the old record, from a place where the new one has other ways or precisions only, or which the
            new one says to have other landmarks.
        warnings: why the two may not be comparable.
    """

    changes: tuple[Change, ...]
    gone: tuple[Row, ...]
    added: tuple[Row, ...]
    lost: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def worse(self) -> list[Change]:
        """The regressions."""
        return [change for change in self.changes if change.verdict == "worse" and change.judged]


def compare(old: Record, new: Record, *, tolerance: float = TOLERANCE) -> Comparison:
    """Hold ``new`` against ``old``.

    Args:
        old, new: of the same suite.
        tolerance: a change up to this part of the old number is none.

    Raises:
        InputError: records of two suites, no row in common, a tolerance that is not between 0 and 1, or a record with
            two rows of the same labels.
    """
    if old.suite != new.suite:
        raise InputError(f"two records of one suite are compared, got {old.suite} and {new.suite}")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is a part of the old number, from 0 to below 1, got {tolerance}")
    before, after = _by_labels(old), _by_labels(new)
    machine = _machine(before, after) if _versions(old) == _versions(new) else {}
    changes = [
        _change(part, other, tolerance, machine.get(_place(row), 1.0))
        for key, row in after.items()
        if key in before
        for part, other in _parts(before[key], row)
    ]
    if not changes:
        raise InputError(f"the two records of {old.suite} have no row in common: run the same command for both")
    changes.sort(key=_badness, reverse=True)
    return Comparison(
        tuple(changes),
        tuple(row for key, row in before.items() if key not in after),
        tuple(row for key, row in after.items() if key not in before),
        tuple(_lost(before, after)),
        tuple(_warnings(old, new) + _unequal(before, after) + _slower(machine, tolerance)),
    )


def print_table(comparison: Comparison, console: Console, *, everything: bool = False) -> None:
    """What got worse and what got better; with ``everything`` also what stayed as it was."""
    from rich.markup import escape
    from rich.table import Table

    marks = {"worse": "[red]worse[/]", "better": "[green]better[/]", "same": "same"}
    shown = [one for one in comparison.changes if everything or one.verdict != "same" or one.machine != 1]
    if shown:
        table = Table("what", "old", "new", "factor", "")
        for change in shown:
            words = ", ".join(f"{key} {value}" for key, value in change.labels.items())
            old, new = (f"{number:.4g} {change.unit}" for number in (change.old, change.new))
            table.add_row(
                escape(words),
                old,
                new,
                f"{change.factor:.3f}",
                (marks[change.verdict] if change.judged else f"{change.verdict}, told")
                + (f", the machine {change.machine:.2f}" if change.machine != 1 else ""),
            )
        console.print(table)
    judged = [change for change in comparison.changes if change.judged]
    worse, better = len(comparison.worse), sum(change.verdict == "better" for change in judged)
    same, told = len(judged) - worse - better, len(comparison.changes) - len(judged)
    console.print(f"{len(judged)} figures judged: {worse} worse, {better} better, {same} the same; {told} told")
    for row in comparison.lost:
        console.print(f"[red]lost: {escape(str(dict(row.labels)))}, see the notes of the new record[/]", soft_wrap=True)
    for what, rows in (("only in the old record", comparison.gone), ("only in the new record", comparison.added)):
        if rows:
            console.print(f"{len(rows)} {what}, for instance {escape(str(dict(rows[0].labels)))}", highlight=False)
    for warning in comparison.warnings:
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False, soft_wrap=True)


def _by_labels(record: Record) -> dict[tuple[Any, ...], Row]:
    rows: dict[tuple[Any, ...], Row] = {}
    for row in (row for row in record.rows if "curve" not in row.labels):  # drawn, and neither better nor worse
        key = (row.unit, *sorted(item for item in row.labels.items() if item[0] != "unequal"))
        if key in rows:
            raise InputError(f"the record of {record.suite} has two rows of {dict(row.labels)} in {row.unit}")
        rows[key] = row
    return rows


def _parts(old: Row, new: Row) -> list[tuple[Row, Row]]:
    """Rows of several figures (PCK and AUC and ...) one by one, with the label figure; others as they are."""
    if any(key in new.values for key in MIDDLES):
        return [(old, new)]
    return [
        tuple(Row({**row.labels, "figure": name}, row.unit, {"value": row.values[name]}) for row in (old, new))  # type: ignore[misc]
        for name in new.values
        if name in old.values
    ]


def _change(old: Row, new: Row, tolerance: float, machine: float) -> Change:
    """``machine``: how many times as long as before its peers took there."""
    before, after = _number(old), _number(new)
    factor = after / before if before else float("inf") if after else 1.0
    machine = machine if _is_judged(new) else 1.0
    grew = min(factor, factor / machine) > 1 + tolerance
    shrank = max(factor, factor / machine) < 1 / (1 + tolerance)
    apart = _apart(old.values, new.values) and abs(after - before) > SMALLEST.get(old.unit, 0)
    verdict: Verdict = "same"
    if _is_fraction(new):
        apart, grew, shrank = True, after > before + FRACTION_TOLERANCE, after < before - FRACTION_TOLERANCE
    if apart and (grew or shrank):
        verdict = "better" if grew == _higher_is_better(new) else "worse"
    beyond = _is_beyond(machine, tolerance)
    return Change(new.labels, new.unit, before, after, factor, verdict, _is_judged(new), machine if beyond else 1.0)


def _number(row: Row) -> float:
    return float(next(row.values[key] for key in MIDDLES if key in row.values))


def _apart(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    """Whether the intervals do not touch; without intervals: whether the numbers differ at all."""
    if not all(key in values for values in (old, new) for key in ("low", "high")):
        return True
    return old["high"] < new["low"] or new["high"] < old["low"]


def _is_fraction(row: Row) -> bool:
    return any(str(row.labels.get(key, "")).startswith(FRACTIONS) for key in ("statistic", "figure"))


def _is_lead(row: Row) -> bool:
    """Ratios that say how many times as fast as another way ours is."""
    leads = row.unit == "ratio" and ("against" in row.labels or row.labels.get("statistic") == "speed-up")
    return leads or "ratio" in (row.labels.get("figure"), row.labels.get("stage"))


def _is_ours(row: Row) -> bool:
    """What ours does, and what is no way's at all."""
    return str(row.labels.get("way", row.labels.get("engine", OURS))).startswith(OURS)


def _is_judged(row: Row) -> bool:
    """What ours does as a whole: no stage or step, no lead or difference to others, which is their doing, too."""
    labels = row.labels
    whole = labels.get("stage", "total") == "total" and labels.get("step", "first result") == "first result"
    return whole and _is_ours(row) and not _is_lead(row) and not _is_a_fact(row) and "against" not in labels


def _is_a_fact(row: Row) -> bool:
    """What was shown, not how well it was done: speeds of garments, numbers of objects, sizes of files."""
    return row.unit in {"count", "kB", "sizes/s"} or row.labels.get("figure") == "object's size"


def _place(row: Row) -> tuple[Any, ...]:
    """What was done, whoever did it."""
    return (row.unit, *sorted(item for item in row.labels.items() if item[0] not in {"way", "precision", "unequal"}))


def _machine(before: Mapping[Any, Row], after: Mapping[Any, Row]) -> dict[tuple[Any, ...], float]:
    """By place how many times as long as before the peers took, in the middle."""
    factors: dict[tuple[Any, ...], list[float]] = {}
    for key, row in after.items():
        theirs = row.unit in TIMES and not _is_ours(row) and not _is_lead(row)
        if theirs and key in before and _number(before[key]):
            factors.setdefault(_place(row), []).append(_number(row) / _number(before[key]))
    return {place: median(found) for place, found in factors.items()}


def _slower(machine: Mapping[Any, float], tolerance: float) -> list[str]:
    """What to say where the peers took longer, or less, all in all."""
    if not machine or not _is_beyond(factor := median(machine.values()), tolerance):
        return []
    return [f"the peers took {factor:.2f} times as long as before: so much of the change is the machine's"]


def _is_beyond(factor: float, tolerance: float) -> bool:
    return not 1 / (1 + tolerance) <= factor <= 1 + tolerance


def _lost(before: Mapping[Any, Row], after: Mapping[Any, Row]) -> list[Row]:
    """Ours that fell out of a place which the new record has."""
    places = {_place(row) for row in after.values()}
    mine = {key: row for key, row in before.items() if _is_judged(row) and "way" in row.labels}
    gone = [row for key, row in mine.items() if key not in after and _place(row) in places]
    return gone + [
        after[key]
        for key, row in mine.items()
        if key in after and "unequal" in after[key].labels and "unequal" not in row.labels
    ]


def _unequal(before: Mapping[Any, Row], after: Mapping[Any, Row]) -> list[str]:
    """Ways whose landmarks are others in one of the records only: what was timed is not the same."""
    found = []
    for key, row in after.items():
        then, now = ("unequal" in one.labels for one in (before.get(key, row), row))
        if then != now and "against" not in row.labels:  # a lead has the label of the way that it is over
            what = ", ".join(str(row.labels[name]) for name in ("way", "precision", "model") if name in row.labels)
            found.append(f"{what}: its landmarks are others in the {'new' if now else 'old'} record only")
    return list(dict.fromkeys(found))


def _higher_is_better(row: Row) -> bool:
    """Leads, rates and fractions."""
    return _is_lead(row) or _is_fraction(row) or row.unit in HIGHER_IS_BETTER


def _badness(change: Change) -> tuple[int, float]:
    order = {"worse": 2, "better": 1, "same": 0}[change.verdict]
    return order, max(change.factor, 1 / change.factor if change.factor else float("inf"))


def _versions(record: Record) -> dict[str, str]:
    """Of all packages but this one."""
    versions = record.environment.get("versions", {})
    return {package: version for package, version in versions.items() if package != "edgepose"}


def _warnings(old: Record, new: Record) -> list[str]:
    """Why a difference may not come from the change."""
    found = []
    if old.device != new.device:
        found.append(f"two devices: {old.device} and {new.device}. The factors say nothing about a change of the code")
    before, after = old.environment, new.environment
    names = ("python", "os", "command")
    found += [
        f"{name}: {before.get(name)} then, {after.get(name)} now"
        for name in names
        if before.get(name) != after.get(name)
    ]
    versions = _versions(old), _versions(new)
    for package in sorted(set(versions[0]) | set(versions[1])):
        then, now = (version.get(package, "absent") for version in versions)
        if then != now:
            found.append(f"{package}: {then} then, {now} now")
    parts = [{**environment.get("cpu", {}), **environment} for environment in (before, after)]
    found += [
        f"{name}: {parts[0].get(name)} then, {parts[1].get(name)} now"
        for name in ("usable", "governor", "flags", "variables")
        if (parts[0].get(name) or None) != (parts[1].get(name) or None)
    ]
    for when, environment in (("old", before), ("new", after)):
        loads, cores = environment.get("load_average") or [0.0], environment.get("cpu", {}).get("cores") or 1
        if loads[0] > cores * BUSY:
            found.append(f"the {when} record was made on a busy machine: load {loads[0]} on {cores} cores")
    return found
