"""Which batch sizes get a graph, and how the network runs them."""

from __future__ import annotations

import pytest

from edgepose.pipelines.buckets import batch_buckets, network_runs


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
