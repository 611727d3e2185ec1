"""The report of an evaluation: tables, JSON, plots, and `edgepose evaluate`, with the painter as the model."""

from __future__ import annotations

import builtins
import csv
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from painter import blobs, painter_spec, write_painter
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.errors import InputError, MissingDependencyError
from edgepose.training import metrics, plots, report
from edgepose.training.coco import Annotation, write_coco
from edgepose.training.evaluate import Evaluation, score

SPEC = painter_spec()
CENTRES = np.float64([[40, 50], [90, 40], [70, 90]])


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    """Six photos with blobs; the label of landmark k of photo n is (n + 1) * k px to the right of its blob."""
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for number in range(6):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), blobs((160, 130), CENTRES, sigma=6))
        labels = CENTRES + np.outer(np.arange(3) * (number + 1), [1, 0])
        visible, box = np.float32([1, number != 4, 1]), np.float32([10, 5, 140, 120])
        kind = "upper" if number % 2 else "lower"
        found.append(Annotation(path, (160, 130), box, labels.astype(np.float32), visible, kind))
    return found


@pytest.fixture(scope="module")
def evaluation(split: list[Annotation]) -> Evaluation:
    return score([CENTRES.astype(np.float32)] * 6, split)


@pytest.fixture(scope="module")
def files(split: list[Annotation]) -> tuple[Path, Path]:
    """A model and a COCO file."""
    folder = split[0].image.parent
    labels = folder / "labels.json"
    notes = [{"ambiguous_keypoints": ["red"], "note": "is it a shirt?"}] * len(split)
    write_coco(labels, split, categories=("upper", "lower"), keypoint_names=SPEC.keypoint_names, extras=notes)
    return write_painter(folder / "painter.onnx", SPEC), labels


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)], catch_exceptions=False)


def test_a_summary_has_the_metrics_their_landmarks_and_categories(evaluation: Evaluation) -> None:
    summary = report.summarize(evaluation, SPEC, thresholds=(0.05, 0.1))
    whole = summary.overall
    assert (whole.images, whole.objects, whole.landmarks) == (6, 6, 17)
    assert list(whole.figures) == ["PCK@0.05", "PCK@0.1", "AUC", "EPE", "mean_error/longer_side"]
    for name, (value, low, high) in whole.figures.items():
        assert low <= value <= high, name
    assert whole.figures["PCK@0.05"].value == evaluation.pck_05
    assert whole.figures["EPE"].value == evaluation.epe
    assert whole.figures["EPE"][1:] == evaluation.intervals()["EPE"]  # the same draws for any thresholds
    red, green, blue = whole.keypoints
    assert (red.name, red.landmarks, red.figures["EPE"].value) == ("red", 6, 0)
    # 1, 2, 3, 4 and 6 px (the fifth is not labelled), and 2 to 12 px, of a side of 130 px
    assert (green.landmarks, green.figures["EPE"].value, green.median_pixels) == (5, pytest.approx(3.2), 3)
    assert blue.figures["PCK@0.05"].value == pytest.approx(3 / 6)  # below 6.5 px: 2, 4 and 6
    assert blue.median_error == pytest.approx(7 / 130)
    assert [c.name for c in summary.categories] == ["lower", "upper"]
    lower = summary.categories[0]
    assert (lower.objects, lower.landmarks) == (3, 8)
    assert lower.figures["EPE"].value == pytest.approx((1 + 3 + 2 + 6 + 10) / 8)
    with pytest.raises(InputError, match="different numbers above 0"):
        report.summarize(evaluation, SPEC, thresholds=(0.1, 0.1))


def test_json_is_complete_and_valid(evaluation: Evaluation, split: list[Annotation]) -> None:
    summary = report.summarize(evaluation, SPEC)
    better = score([a.keypoints for a in split], split)
    document = report.to_json(summary, SPEC, facts={"date": "today"}, differences=report.compare(better, evaluation))
    again = json.loads(json.dumps(document, allow_nan=False))
    assert list(again) == ["schema", "date", "spec", "bootstrap", "overall", "categories", "comparison"]
    assert again["schema"] == 1
    assert again["bootstrap"] == {
        "over": "images", "method": "percentile", "confidence": 0.95, "resamples": 1000, "seed": 0,
    }  # fmt: skip
    assert again["overall"]["keypoints"][1]["metrics"]["EPE"]["value"] == pytest.approx(3.2)
    assert again["comparison"]["EPE"]["difference"] == pytest.approx(-evaluation.epe, abs=1e-6)  # rounded to 6 digits
    assert again["comparison"]["EPE"]["beyond_chance"] is True
    alone = report.to_json(report.summarize(score([CENTRES], split[:1]), SPEC), SPEC, facts={})
    assert alone["overall"]["metrics"]["EPE"]["interval"] == [None, None]  # one photo says nothing about others
    assert alone["categories"] == []


def test_errors_of_every_object_as_csv(evaluation: Evaluation) -> None:
    rows = list(csv.DictReader(io.StringIO(report.errors_csv(evaluation, SPEC))))
    assert len(rows) == 6
    assert rows[4]["error green"] == ""
    assert rows[5]["worst_landmark"] == "blue"
    assert float(rows[5]["mean_px"]) == pytest.approx(6)  # 0, 6 and 12 px
    assert float(rows[5]["worst_error"]) == pytest.approx(12 / 130, abs=1e-5)  # five digits are written


def test_pictures_are_drawn_whatever_the_landmarks(evaluation: Evaluation, split: list[Annotation]) -> None:
    pytest.importorskip("matplotlib")
    missing = score([np.full((3, 2), np.nan)] * 6, split)  # nothing found at all
    for data in (evaluation, missing):
        for draw in (plots.pck_curve, plots.error_by_keypoint, plots.worst_crops):
            picture = cv2.imdecode(np.frombuffer(draw(data, SPEC), np.uint8), cv2.IMREAD_COLOR)
            assert min(picture.shape[:2]) > 300
            assert picture.std() > 5  # something is on it
    assert plots.worst_objects(evaluation, 3) == [5, 4, 3]  # mean errors of 6, 5 (of two landmarks) and 4 px


def test_landmarks_share_a_line_of_the_curve() -> None:
    names = ("left hem", "right hem", "left_cuff", "right_cuff", "zip")
    sides = replace(SPEC, keypoint_names=names, flip_indices=(1, 0, 3, 2, 4), skeleton=(), colors=())
    assert plots.landmark_groups(sides) == {"hem": [0, 1], "cuff": [2, 3], "zip": [4]}
    assert plots.landmark_groups(replace(SPEC, categories={"upper": (0, 1), "lower": (1, 3)})) == {
        "upper": [0],
        "lower": [1, 2],
    }
    many = tuple(f"kpt{i}" for i in range(30))
    numbered = replace(SPEC, keypoint_names=many[:14], flip_indices=tuple(range(14))[::-1], skeleton=(), colors=())
    assert list(plots.landmark_groups(numbered).items())[1] == ("kpt1 + kpt12", [1, 12])
    alike = replace(SPEC, keypoint_names=many, flip_indices=tuple(range(30)), skeleton=(), colors=())
    assert plots.landmark_groups(alike) == {}


def test_many_landmarks_are_drawn_by_category() -> None:
    pytest.importorskip("matplotlib")
    names = tuple(f"kpt{i}" for i in range(80))
    spec = replace(SPEC, keypoint_names=names, flip_indices=tuple(range(80)), skeleton=(), colors=())
    spec = replace(spec, categories={"upper": (0, 30), "lower": (30, 80)})
    points = np.random.default_rng(0).uniform(0, 100, (50, 2)).astype(np.float32)
    truth = Annotation(Path("a.png"), (160, 130), np.float32([0, 0, 100, 100]), points, np.ones(50), "lower", 30)
    data = score([np.concatenate([np.zeros((30, 2)), points + 1])], [truth], spec.categories)
    assert [name for name, *_ in plots._rows(data, spec)] == list(names[30:])
    upper = replace(truth, keypoints=points[:30], visible=np.ones(30), category="upper", first_channel=0)
    data = score([np.zeros((80, 2)), np.zeros((80, 2))], [truth, upper], spec.categories)
    assert [(name, len(errors)) for name, _, errors in plots._rows(data, spec)] == [("upper", 30), ("lower", 50)]


def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, files: tuple[Path, Path], tmp_path: Path
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgepose\[train\]'"):
        plots.check_matplotlib()
    result = run(*files, "-o", tmp_path / "report")
    assert result.exit_code == 1
    assert "matplotlib" in result.stderr
    assert not (tmp_path / "report").exists()  # asked before the work
    assert run(*files, "--json", tmp_path / "figures.json").exit_code == 0


# The command ---------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_the_report(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "40")
    model, labels = files
    folder = tmp_path / "a" / "report"
    result = run(
        model, labels, "-o", folder, "--thresholds", "0.05,0.07", "--split", "category", "--json", tmp_path / "x.json"
    )
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "painter-udp on labels.json: 17 landmarks of 6 objects in 6 images, onnxruntime (cpu)" in text
    for word in ("95 % interval", "PCK@0.07", "Landmarks of lower", "Categories", "median_error/longer_side", "green"):
        assert word in text
    assert "…" not in text  # nothing is cut in a narrow terminal
    names = {"metrics.json", "errors.csv", "pck_curve.png", "error_by_keypoint.png", "worst_16.png"}
    assert {path.name for path in folder.iterdir()} == names
    document = json.loads((folder / "metrics.json").read_text())
    assert document == json.loads((tmp_path / "x.json").read_text())
    assert document["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert document["data"]["sha256"] == hashlib.sha256(labels.read_bytes()).hexdigest()
    assert document["options"] == {"flip_test": False, "boxes": "truth", "thresholds": [0.05, 0.07]}
    assert document["versions"]["edgepose"]
    # Labels marked as ambiguous count. Labels are 58 px off in all, the painter a little (seen: 0.017 px in the mean).
    assert document["overall"]["landmarks"] == 17
    assert document["overall"]["metrics"]["EPE"]["value"] == pytest.approx(58 / 17, abs=0.1)


def test_the_reports_command_makes_the_report_again(files: tuple[Path, Path], tmp_path: Path) -> None:
    import shlex

    target = tmp_path / "out.json"
    assert run(*files, "--json", target, "--boxes", "whole", "--flip-test", "--compare", files[0]).exit_code == 0
    first = json.loads(target.read_text())
    program, command, *words = shlex.split(first["command"])
    assert (program, command) == ("edgepose", "evaluate")
    assert run(*words).exit_code == 0
    again = json.loads(target.read_text())
    assert again == {**first, "date": again["date"]}
    assert first["options"]["boxes"] == "whole"
    assert first["comparison"]["AUC"] == {
        "difference": 0, "interval": [0, 0], "p_value": 1, "beyond_chance": False,
    }  # fmt: skip


def test_another_model_is_compared_on_the_same_images(files: tuple[Path, Path], tmp_path: Path) -> None:
    worse = write_painter(tmp_path / "inverted.onnx", SPEC, invert=True)  # finds black instead of the blobs
    result = run(*files, "--compare", worse)
    assert "painter less inverted, on the same images" in result.stdout
    assert "yes: painter is better" in result.stdout
    names = replace(SPEC, keypoint_names=("a", "b", "c"))
    other = write_painter(tmp_path / "other.onnx", names)
    refused = run(*files, "--compare", other)
    assert refused.exit_code == 1
    assert "has other landmarks than" in refused.stderr


@pytest.mark.parametrize("thresholds", ["0", "0.1,x", "", "0.1,0.1", "inf", "nan"])
def test_thresholds_that_are_none(files: tuple[Path, Path], thresholds: str) -> None:
    result = run(*files, "--thresholds", thresholds)
    assert result.exit_code == 1
    assert "thresholds" in result.stderr


def test_images_in_another_folder(files: tuple[Path, Path], split: list[Annotation], tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(files[1].read_text())
    assert run(files[0], labels).exit_code == 1
    result = run(files[0], labels, "--images", split[0].image.parent)
    assert result.exit_code == 0, result.output


def test_a_model_for_several_categories_reads_a_file_with_all_landmarks(
    files: tuple[Path, Path], split: list[Annotation], tmp_path: Path
) -> None:
    spec = replace(SPEC, categories={"upper": (0, 1), "lower": (1, 3)})
    model = write_painter(tmp_path / "unified.onnx", spec)
    own = [
        replace(a, visible=a.visible * (np.float32([1, 0, 0]) if a.category == "upper" else np.float32([0, 1, 1])))
        for a in split
    ]
    labels = split[0].image.parent / "unified.json"
    write_coco(labels, own, categories=("upper", "lower"), keypoint_names=SPEC.keypoint_names)
    target = tmp_path / "out.json"
    result = run(model, labels, "--json", target)
    assert result.exit_code == 0, result.output
    document = json.loads(target.read_text())
    assert [k["name"] for k in document["overall"]["keypoints"]] == ["red", "green", "blue"]
    by_name = {c["name"]: c for c in document["categories"]}
    assert [k["name"] for k in by_name["lower"]["keypoints"]] == ["green", "blue"]
    # Red is labelled where it is, and the painter is hardly off (seen: 0.025 px).
    assert by_name["upper"]["metrics"]["EPE"]["value"] == pytest.approx(0, abs=0.1)
    assert by_name["lower"]["landmarks"] == int(sum(a.visible.sum() for a in own if a.category == "lower"))


def test_the_worst_landmark_is_the_metric_s(evaluation: Evaluation) -> None:
    found = {s.name: metrics.figure_by_keypoint(s) for s in metrics.statistics(evaluation.distances)}
    rows = list(csv.DictReader(io.StringIO(report.errors_csv(evaluation, SPEC))))
    errors = [float(row["error blue"]) for row in rows]
    assert np.mean(errors) == pytest.approx(found["mean_error/longer_side"][2], abs=1e-5)  # five digits are written
