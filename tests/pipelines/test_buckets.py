"""Which batch sizes get a graph, and how the network runs them."""

from __future__ import annotations

import pytest

from edgepose.pipelines.buckets import REMEMBERED, RecentCounts, batch_buckets, covering_runs, network_runs


@pytest.mark.parametrize(
    ("engine", "wanted", "flip", "sizes"),
    [
        ((1, 16), 16, False, [1, 2, 4, 8, 16]),
        ((1, 16), 6, False, [1, 2, 4, 6]),
        ((1, 1), 16, False, [1]),
        ((8, 8), 16, False, [8]),
        ((2, 12), 16, False, [2, 4, 8, 12]),
        ((1, 16), 16, True, [1, 2, 4, 8, 16]),
        ((1, 1), 4, True, [1]),
        ((8, 8), 16, True, [4, 8]),
    ],
)
def test_buckets(engine: tuple[int, int], wanted: int, flip: bool, sizes: list[int]) -> None:
    assert batch_buckets(*engine, wanted, flip_test=flip) == sizes


def test_runs_of_a_flip_test() -> None:
    assert network_runs(4, 1, 8, flip_test=True) == [slice(0, 8)]
    assert network_runs(5, 1, 8, flip_test=True) == [slice(0, 5), slice(5, 10)]
    assert network_runs(9, 1, 8, flip_test=True) == []
    assert network_runs(1, 4, 8, flip_test=True) == []


@pytest.mark.parametrize(
    ("images", "engine", "runs"),
    [
        (8, (1, 8), [(0, 8)]),
        (8, (1, 1), [(i, i + 1) for i in range(8)]),
        (8, (1, 3), [(0, 3), (3, 6), (6, 8)]),
        (8, (3, 3), [(0, 3), (3, 6), (6, 9)]),
        (1, (4, 16), [(0, 4)]),
    ],
)
def test_runs_that_cover(images: int, engine: tuple[int, int], runs: list[tuple[int, int]]) -> None:
    assert covering_runs(images, *engine) == [slice(*run) for run in runs]


def test_recent_counts() -> None:
    counts = RecentCounts(16)
    assert counts.expected(2) == 16
    counts.saw(2, 3)
    counts.saw(1, 9)
    assert (counts.expected(1), counts.expected(2), counts.expected(4)) == (9, 3, 16)
    for _ in range(REMEMBERED):
        counts.saw(2, 0)
    assert counts.expected(2) == 0
