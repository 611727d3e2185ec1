"""`edgepose bench kernels`: the peers do the same work, and nothing is timed that does not."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from edgepose import ModelSpec, Predictor
from edgepose.benchmarks import kernel_cases, kernels
from edgepose.benchmarks.peers import kernel_loops, mmpose_steps
from edgepose.benchmarks.scenes import scene
from edgepose.geometry import crop_affines
from edgepose.kernels._crop import plan_crops
from edgepose.models import find_model

DATA = Path(__file__).parents[1] / "data" / "reference"
VECTORS = np.load(DATA / "codecs.npz")
CASES = json.loads((DATA / "codecs.json").read_text())["decode_cases"]
NAMES = {"shift": "refine", "dark": "refine_dark", "dark_udp": "refine_dark_udp"}
QUICK_CASES, NOTES = kernel_cases.cpu_cases(quick=True)


@pytest.mark.parametrize("refinement", NAMES)
@pytest.mark.parametrize("name", CASES)
def test_mmposes_steps_give_mmposes_points(name: str, refinement: str) -> None:
    maps = VECTORS[f"{name}_heatmaps"]
    kept = maps.copy()
    with np.errstate(all="ignore"):  # maps without a peak, which MMPose divides by as well
        cells, scores = mmpose_steps.decode(maps[None], refinement)
    expected, values = VECTORS[f"{name}_{NAMES[refinement]}"][0], VECTORS[f"{name}_vals"]
    kind = "udp" if refinement == "dark_udp" else "dark"
    compared = values > 0
    if refinement != "shift":  # ill-conditioned maps answer rounding with any point
        compared &= VECTORS[f"{name}_{kind}_sensitivity"] < 1e-2
    error = np.abs(cells[0] - expected)[compared].max(initial=0)
    # The same operations in the same order, but MMPose keeps points in float32; worst seen 1.9e-6 cells
    assert error <= (0 if refinement == "shift" else 2e-5)
    np.testing.assert_array_equal(scores[0], values)
    np.testing.assert_array_equal(maps, kept)


def test_mmposes_steps_find_the_landmarks_that_predictor_finds() -> None:
    frame, boxes = scene(640, 360, 3)
    with Predictor(find_model("garment-landmarks"), threads=1) as predictor:
        spec: ModelSpec = predictor.spec
        expected = predictor.predict(frame, boxes)
        pictures, affines = mmpose_steps.crop_pictures(frame, boxes, spec)
        images = (pictures[..., ::-1] - np.float32(spec.mean)) / np.float32(spec.std)
        engine = predictor._pipeline.engine  # type: ignore[union-attr]
        heatmaps = engine.run(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))  # type: ignore[union-attr]
    keypoints, scores = mmpose_steps.landmarks(heatmaps, affines, spec)
    sure = expected.scores > 0.2
    assert sure.sum() >= 8
    apart = np.linalg.norm(keypoints - expected.keypoints, axis=-1)[sure]
    # warpAffine of OpenCV 5 rounds coordinates otherwise than OpenCV 4: up to 4 levels; worst landmark seen 0.09 px
    assert apart.max() < 0.3
    np.testing.assert_allclose(scores[sure], expected.scores[sure], atol=0.02)  # as above; worst seen 0.006


@pytest.mark.parametrize("case", QUICK_CASES, ids=lambda case: case.kernel)
def test_peers_do_the_same_work(case: kernel_cases.Case) -> None:
    rows, differing = kernels.differences(case)
    assert differing == {}
    assert [row.labels["way"] for row in rows] == list(case.ways)[1:]
    assert len(rows) >= 1


def test_other_work_is_told_and_not_timed() -> None:
    case = next(case for case in QUICK_CASES if case.kernel == "merge_flipped")
    wrong = replace(case, ways={**case.ways, "wrong": lambda: case.ways["edgepose"]() + 0.1})
    rows, differing = kernels.differences(wrong)
    assert list(differing) == ["wrong"]
    assert "not timed" in differing["wrong"]
    assert rows[-1].values["mean"] == pytest.approx(0.1, rel=1e-3)  # float32


def test_a_way_that_gives_nan_is_not_timed() -> None:
    case = next(case for case in QUICK_CASES if case.kernel == "merge_flipped")
    wrong = replace(case, ways={**case.ways, "wrong": lambda: case.ways["edgepose"]() * np.float32("nan")})
    assert list(kernels.differences(wrong)[1]) == ["wrong"]


def test_the_record_has_times_ratios_and_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [case for case in QUICK_CASES if case.kernel in ("merge_flipped", "select_detections")]
    monkeypatch.setattr(kernels, "cpu_cases", lambda *, quick: (chosen, ["a note"]))
    before, seen = cv2.getNumThreads(), []
    record = kernels.run(quick=True, rounds=2, threads=[1], progress=lambda *turn: seen.append(turn))
    assert cv2.getNumThreads() == before
    for case in chosen:
        for way in case.ways:
            assert record.value("min", kernel=case.kernel, way=way, threads=1, figure="time") > 0
            if way != "edgepose":
                assert record.value("value", kernel=case.kernel, way=way, figure="ratio") > 0
    turns = 2 * sum(len(case.ways) for case in chosen)
    assert [done for done, _, _ in seen] == list(range(1, turns + 1))
    assert {total for _, total, _ in seen} == {turns}
    shown = io.StringIO()
    kernels.print_table(record, Console(file=shown, width=80))
    assert "MMPose's steps" in shown.getvalue()
    assert record.notes == ("a note",)


def test_the_large_crops_are_halved_once_by_area() -> None:
    frame, boxes = kernel_cases.large_boxes()
    inverses = np.linalg.inv(np.insert(crop_affines(boxes, kernel_cases.INPUT_SIZE), 2, [0, 0, 1], axis=1))[:, :2]
    plan = plan_crops(inverses, kernel_cases.INPUT_SIZE, (frame.shape[1], frame.shape[0]), "area")
    assert plan.halvings.tolist() == [1] * kernel_cases.CROPS
    assert kernels.differences(kernel_cases._halving_case())[1] == {}


def test_affines_are_made_within_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """rtmlib begins with boxes, and so does everybody."""
    case = kernel_cases._crop_case("opencv4", {})
    asked = []
    monkeypatch.setattr(kernel_cases, "crop_affines", lambda *given: asked.append(1) or crop_affines(*given))
    for call in case.ways.values():
        call()
    assert len(asked) == len(case.ways)


def test_copies_are_whole_again_after_renewal() -> None:
    copies = kernel_cases.Copies(np.arange(4.0), 2)
    copies.renew()
    first = copies.take()
    first[:] = 0
    copies.renew()
    np.testing.assert_array_equal(np.stack([copies.take(), copies.take()]), [np.arange(4.0)] * 2)


def test_rtmlib_is_left_out_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError("rtmlib")

    monkeypatch.setattr(kernel_loops, "rtmlib_functions", missing)
    cases, notes = kernel_cases.cpu_cases(quick=True)
    assert any("pip install --no-deps rtmlib" in note for note in notes)
    assert all("rtmlib" not in case.ways for case in cases)


def test_nothing_is_typed() -> None:
    """The maps have peaks, the rows have objects: what is measured is work."""
    _, scores = mmpose_steps.decode(kernel_cases.peaks(8), "none")
    assert scores.min() > 0.4
    case = next(case for case in QUICK_CASES if case.kernel == "select_detections")
    assert len(case.ways["edgepose"]()) >= 40
