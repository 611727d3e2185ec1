"""What the suite of tracking measures, on paths whose jitter and lag are known."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose.benchmarks import plots_tracking, tracking
from edgepose.errors import InputError
from edgepose.modelfile import ModelFile
from edgepose.models import find_model


def circle(frames=200, period=50.0, delay=0.0):
    """(T, 1, 2) px."""
    angle = 2 * np.pi * (np.arange(frames) - delay) / period
    return 100 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, None]


def test_jitter_of_white_noise():
    path = np.random.default_rng(0).normal(0, 2.0, (20000, 3, 2))
    found = tracking.jitter(path)
    assert found["spread"] == pytest.approx(2 * np.sqrt(2), rel=0.02)  # two axes
    assert found["step"] == pytest.approx(2 * np.sqrt(4), rel=0.02)  # a difference of two has twice the variance


def test_what_creeps_has_spread_and_hardly_a_step():
    path = np.linspace(0, 100, 1000)[:, None, None] * np.ones((1, 2, 2))
    found = tracking.jitter(path)
    assert found["step"] < 0.2
    assert found["spread"] > 20


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.3])
def test_lag_of_a_delayed_circle(delay):
    assert tracking.lag(circle(delay=delay), circle()) == pytest.approx(delay, abs=0.03)


def test_mean_distance():
    assert tracking.mean_distance(circle() + np.array([3.0, 4.0]), circle()) == pytest.approx(5.0)


def test_a_clip_without_an_object_is_an_error():
    spec = ModelFile.read(find_model("garment-landmarks")).spec
    from edgepose import PoseResult

    def nothing(frame, boxes):
        return PoseResult(
            np.empty((0, 8, 2), np.float32), np.empty((0, 8), np.float32), np.empty((0, 4), np.float32), spec, (32, 24)
        )

    with pytest.raises(InputError, match="no object was found"):
        tracking.record([np.zeros((24, 32, 3), np.uint8)] * 3, nothing, spec, 30.0)


def test_the_suite():
    record = tracking.run(tracking.Plan(garments=1, loop=40, still=50, alone=40))
    still = next(iter(record.find(scene="at rest", measure="jitter"))).values
    assert still["step, smoothed"] < still["step, raw"] / 2
    assert still["spread, smoothed"] < still["spread, raw"]
    for stride in tracking.STRIDES:
        scene = f"moving x{stride}"
        assert -0.5 < record.value("added", scene=scene, measure="lag") < 3
        assert record.value("ids", scene=scene, measure="count") == 1
        assert record.value("raw", scene=scene, measure="error") < 20
    speeds = [record.value("mean", scene=f"moving x{s}", measure="speed") for s in tracking.STRIDES]
    assert speeds[1] == pytest.approx(2 * speeds[0], rel=0.1)
    overlap = next(iter(record.find(measure="overlap"))).values
    assert 0.5 < overlap["least"] <= overlap["first loop"] <= 1
    assert record.value("p50", measure="cost", objects=16) > record.value("p50", measure="cost", objects=1) > 0
    pytest.importorskip("matplotlib")
    (_, figure), *_ = plots_tracking.tracking(record)
    assert len(figure.axes) >= 2
