"""How something is timed: warmed up, interleaved with what it is compared with, and told with its spread."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.errors import InputError

__all__ = ["LEAST_ROUNDS", "fresh_process", "interleaved", "ratio", "summarize"]

RESAMPLES = 1000  # of the bootstrap: its own error is then far below what it measures
LEAST_ROUNDS = 6  # for an interval: five values all lie on one side of the true median in 2 * 0.5**5 = 6 % of the cases


def summarize(times: ArrayLike) -> dict[str, float]:
    """Times of any shape -> their p50, p95, p99, min, mean; low and high, a 95 % interval of the median; runs.

    Below LEAST_ROUNDS rounds low and high are left out. p95 and p99 are interpolated: of fewer than 20 or 100 runs
    they lie beside the slowest one, and tell of it and not of a tail.

    Where ``times`` is (rounds, burst), whole rounds are drawn for the interval: what disturbs a machine lasts longer
    than one call, so the calls of a round resemble each other.
    """
    values = _rounds(times)
    flat = values.reshape(-1)
    p50, p95, p99 = np.percentile(flat, (50, 95, 99))
    return {
        "p50": float(p50),
        "p95": float(p95),
        "p99": float(p99),
        "min": float(flat.min()),
        "mean": float(flat.mean()),
        **_interval(values),
        "runs": flat.size,
    }


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    burst: int = 3,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Time several calls so that whatever else the machine does meets all of them alike.

    In each round every call has one turn, in an order drawn anew. A turn is one run that is thrown away, because the
    threads of the way before may still spin and the caches hold its data, and ``burst`` runs that count. Before the
    first round each call runs twice. Python's garbage collector rests meanwhile.

    Args:
        calls: by name.
        rounds, burst: (rounds, burst) times come back for each call.
        seed: of the orders.
        progress: told after each turn how many have been taken, of rounds * len(calls).
        clock: s; ``time.thread_time`` counts the work of this thread alone.

    Returns:
        (rounds, burst) float64 ms for each call.

    Raises:
        InputError: rounds or burst below 1.
    """
    if rounds < 1 or burst < 1:
        raise InputError(f"rounds and burst must be at least 1, got {rounds} and {burst}")
    rng = np.random.default_rng(seed)
    names = list(calls)
    times = {name: np.empty((rounds, burst)) for name in names}
    for call in calls.values():
        call()
        call()
    turns = 0
    with _no_garbage_collection():
        for number in range(rounds):
            for index in rng.permutation(len(names)):
                call = calls[names[index]]
                call()
                for repeat in range(burst):
                    start = clock()
                    call()
                    times[names[index]][number, repeat] = (clock() - start) * 1e3
                turns += 1
                if progress is not None:
                    progress(turns)
            gc.collect()
    return times


def ratio(times: ArrayLike, baseline: ArrayLike) -> dict[str, float]:
    """How many times faster ``times`` are than ``baseline``: above 1 they are faster.

    Both are (rounds, burst) of the same :func:`interleaved` run. Each round gives one ratio, of its medians, which
    leaves out what slowed the whole round; ``value`` is their median, ``low`` and ``high`` bound 95 % of its bootstrap,
    and are left out below LEAST_ROUNDS rounds.

    Raises:
        InputError: the two do not have the same rounds.
    """
    ours, theirs = _rounds(times), _rounds(baseline)
    if len(ours) != len(theirs):
        raise InputError(f"a ratio needs two ways of the same rounds, got {len(ours)} and {len(theirs)}")
    quotients = np.median(theirs, axis=1) / np.median(ours, axis=1)
    return {"value": float(np.median(quotients)), **_interval(quotients[:, None])}


def fresh_process(code: str, *, runs: int, arguments: tuple[str, ...] = (), timeout: float = 120) -> list[Any]:
    """Run Python code in ``runs`` new processes, one after another.

    Args:
        code: as of ``python -c``; the last line that it prints must be JSON. ``sys.argv[1]`` is the time
            (``time.time()``) at which its process was asked for, further ones are
        arguments: for the code.
        timeout: s for each process.

    Returns:
        What each printed last.

    Raises:
        InputError: a process failed, with what it wrote to stderr, or took longer.
    """
    import time

    printed = []
    for _ in range(runs):
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, repr(time.time()), *arguments],
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"a process took longer than {timeout:g} s") from None
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            raise InputError(f"a process ended with {done.returncode}: {done.stderr.strip()[-600:] or 'no output'}")
        printed.append(json.loads(lines[-1]))
    return printed


def _rounds(times: ArrayLike) -> NDArray[np.float64]:
    """(rounds, burst) of at least one time."""
    values = np.asarray(times, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"times must be finite and at least one, got an array of shape {values.shape}")
    return values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)


def _interval(values: NDArray[np.float64]) -> dict[str, float]:
    """low and high of the median of (rounds, burst), by drawing whole rounds; empty below LEAST_ROUNDS."""
    count = len(values)
    if count < LEAST_ROUNDS:
        return {}
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.percentile(np.median(values[draws].reshape(RESAMPLES, -1), axis=1), (2.5, 97.5))
    return {"low": float(low), "high": float(high)}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
