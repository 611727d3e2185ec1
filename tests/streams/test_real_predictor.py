"""Stream with a Predictor of its own networks, whose answers are known, and with categories that need not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from painter import painter_spec, write_painter
from test_two_stages import BOX, CENTRES, FRAME, SECOND, write_detector

from edgepose import Predictor
from edgepose.track import Tracking

COUNT = 6
VIDEO = [(FRAME, number / 25) for number in range(COUNT)]


def opened(folder: Path, categories: dict[str, tuple[int, int]]) -> Predictor:
    spec = painter_spec(categories=categories) if categories else painter_spec()
    model = write_painter(folder / "painter.onnx", spec)
    return Predictor(model, detector=write_detector(folder / "detector.onnx", np.stack([BOX, SECOND])))


@pytest.fixture(params=["a model of one kind", "a model of both", "a model of one of them"])
def categories(request: pytest.FixtureRequest) -> dict[str, tuple[int, int]]:
    """The detector finds the categories warm and cool."""
    return {
        "a model of one kind": {},
        "a model of both": {"warm": (0, 3), "cool": (1, 2)},
        "a model of one of them": {"cool": (0, 3), "other": (0, 1)},
    }[request.param]


def test_what_is_followed_is_what_is_detected(categories: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    """The frames are alike, so each result must be the first's: landmarks, categories, and boxes without landmarks."""
    with opened(tmp_path, categories) as predictor:
        expected = predictor.predict(FRAME)
        with predictor.stream(VIDEO, tracking=Tracking(every=4)) as stream:
            results = [item.result for item in stream]
    assert len(results) == COUNT
    assert [result.timings.detect > 0 for result in results] == [True, False, False, False, True, False]
    assert len(expected) == 2
    for result in results:
        found = {name: row for row, name in enumerate(result.categories)}
        assert set(found) <= {"warm", "cool"}
        for name, row in found.items():
            same = expected.categories.index(name)
            np.testing.assert_array_equal(result.scores[row] > 0, expected.scores[same] > 0)
            there = expected.scores[same] > 0
            # Px; the tracker's box is the detector's, clipped and rounded to float32. Seen: 0.
            np.testing.assert_allclose(result.keypoints[row][there], expected.keypoints[same][there], atol=1e-3)
        assert sorted(result.track_ids) == ([1, 2] if categories else [1])  # all landmarks in common: one object
        if "other" in categories:  # warm is not served: it goes along without landmarks
            assert not result.scores[result.categories.index("warm")].any()
    # 5 px a cell of the heatmap; seen: 0.3 px.
    best = results[-1].keypoints[results[-1].scores.sum(axis=1).argmax()]
    np.testing.assert_allclose(best, CENTRES, atol=1)
