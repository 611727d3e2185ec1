"""The parity report of detectors: what counts, what is refused, and builds that carry it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_builds import build, needs_rtx
from row_detector import BOXES, write_rows

from edgepose import EngineError, ModelError
from edgepose.crops import Crops
from edgepose.detection_parity import DetectionReference, DetectionReport, judge_detections
from edgepose.detector_spec import DetectorSpec
from edgepose.enginefile import EngineInfo, parity_path
from edgepose.parity import complete

SPEC = DetectorSpec("rows", (96, 128), ("red", "green"), "end2end", std=(255.0, 255.0, 255.0))
PICTURES = Crops(np.zeros((2, 128, 96, 3), np.uint8), "black")


def rows() -> np.ndarray:
    """(2, 4, 6): four boxes in each of two pictures, of scores from 0.9 down."""
    found = np.zeros((2, 4, 6), np.float32)
    found[:, :, :4] = BOXES
    found[:, :, 4] = (0.9, 0.6, 0.5, 0.4)
    found[:, 2:, 5] = 1
    return found


def report(candidate: np.ndarray) -> DetectionReport:
    reference = DetectionReference.from_rows(PICTURES, rows(), SPEC)
    return judge_detections(reference, candidate, SPEC, scope="graph", convolutions={"float16": 3})


def test_equal_rows_have_no_problems() -> None:
    found = report(rows())
    assert (found.detections, found.unmatched, found.px_max, found.score_error) == (8, 0, 0, 0)
    assert found.problems() == ()
    assert found.counted == "8 detections in 2 pictures"
    assert DetectionReport.from_dict(found.to_dict()) == found


def test_a_detector_may_have_more_candidates_than_a_spec_may_keep() -> None:
    assert report(np.pad(rows(), ((0, 0), (0, 1340), (0, 0)))).problems() == ()


def test_differences_are_in_px_and_of_the_highest_score() -> None:
    candidate = rows()
    candidate[0, 1, 2] += 0.5
    candidate[1, 0, 4] -= 0.018
    found = report(candidate[:, ::-1])  # the order of rows says nothing
    assert (found.px_max, found.px_median, found.unmatched) == (0.5, 0, 0)
    assert found.score_error == pytest.approx(0.02, rel=1e-5)  # float32 scores


def test_what_is_missing_added_moved_or_renamed_has_no_partner() -> None:
    missing, added, moved, renamed = rows(), np.pad(rows(), ((0, 0), (0, 1), (0, 0))), rows(), rows()
    missing[0, 1, 4] = 0
    added[0, 4] = (50, 4, 58, 30, 0.8, 0)
    moved[0, 0, [0, 2]] += 30
    renamed[0, 0, 5] = 1
    assert [report(candidate).unmatched for candidate in (missing, added, moved, renamed)] == [1, 1, 2, 2]
    assert report(moved).problems() == ("2 detections have no partner, of 8 (limit 2 %)",)


def test_scores_near_the_threshold_decide_nothing() -> None:
    """The threshold is 0.18, a fifth of the highest score: the spec's 0.3 is above it."""
    reference_rows, candidate = rows(), rows()
    reference_rows[0, 3, 4], candidate[0, 3, 4] = 0.19, 0.17
    candidate[1, 3, 4], reference_rows[1, 3, 4] = 0.19, 0.17
    reference = DetectionReference.from_rows(PICTURES, reference_rows, SPEC)
    assert reference.min_score == pytest.approx(0.18, rel=1e-6)  # float32 scores
    assert judge_detections(reference, candidate, SPEC, scope="graph").unmatched == 0


def test_what_is_beyond_the_limits_is_said() -> None:
    candidate = rows()
    candidate[:, :, :4] += 1
    candidate[:, :, 4] -= 0.1
    candidate[1, 3, 4] = np.nan
    words = " ".join(report(candidate).problems())
    for part in ("1 values of the rows are NaN", "median error 1 px", "scores differ by 11", "limit 5 %"):
        assert part in words
    nothing = judge_detections(DetectionReference.from_rows(PICTURES, 0 * rows(), SPEC), rows(), SPEC, scope="graph")
    assert nothing.problems() == ("the float32 model finds no detection that could be compared",)
    with pytest.raises(ModelError, match=r"rows \(N, Q, 6\), got \(2, 4, 5\)"):
        report(rows()[..., :5])


# Builds ---------------------------------------------------------------------------------------------------


def pictures(_: object) -> Crops:
    """Pictures whose first four pixels are red enough to be scores."""
    images = np.zeros((3, 128, 96, 3), np.uint8)
    images[:, 0, :4, 2] = (250, 200, 150, 100)
    return Crops(images, "red pixels")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_detectors_engine(tmp_path: Path, precision: str) -> None:
    path = write_rows(tmp_path / "detector.onnx", SPEC)
    built = build(path, crops=pictures, precision=precision)
    info = EngineInfo.read(built.path)
    assert info == built.info
    assert info.spec == SPEC.canonical()
    assert (info.input.shape, info.output.shape, info.output.dtype) == ((-1, 3, 128, 96), (-1, 4, 6), "float32")
    assert isinstance(info.parity, DetectionReport)
    assert (info.parity.detections, info.parity.unmatched, info.parity.scope) == (12, 0, "graph")
    # On a GPU the report is made again from what was written, with the engine itself.
    exact = DetectionReference.read(parity_path(built.path), SPEC)
    np.testing.assert_array_equal(exact.boxes[:4], BOXES)

    def run(images: np.ndarray) -> np.ndarray:
        found = rows()[:1].repeat(len(images), axis=0)
        found[:, :, 4], found[:, :, 5] = images[:, 0, 0, :4], 0
        return found

    again = complete(info, parity_path(built.path), run)
    assert (again.parity.scope, again.parity.px_max) == ("engine", 0)
    with pytest.raises(EngineError, match="median error 2 px"):
        complete(info, parity_path(built.path), lambda images: run(images) + np.array([2, 2, 2, 2, 0, 0], np.float32))


@needs_rtx
def test_a_spec_file_of_a_detector(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "detector.onnx", SPEC)
    (tmp_path / "spec.json").write_text(replace(SPEC, color="bgr", name="theirs").to_json())
    info = build(path, crops=pictures_in_blue, spec=tmp_path / "spec.json").info
    assert (info.spec.name, info.spec_given, info.parity.compared) == ("theirs", True, 12)


def pictures_in_blue(spec: object) -> Crops:
    return Crops(np.ascontiguousarray(pictures(spec).images[..., ::-1]), "blue pixels")
