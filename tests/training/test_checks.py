"""Sanity checks of a data set: each fault is found, named and counted; a sound data set has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.errors import InputError
from edgepose.training.checks import check_annotations
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2

NAMES = list(DEEPFASHION["full"].keypoint_names)
# left collar, right collar, left sleeve, …: left is further left, as a viewer sees it
POINTS = [[30, 10], [50, 10], [10, 40], [70, 40], [25, 50], [55, 50], [20, 90], [60, 90]]


def coco(folder: Path, count: int = 60, *, name: str = "train.json", first: int = 0) -> Path:
    """A sound data set of ``count`` images of 80x100 px, one garment in each."""
    folder.mkdir(parents=True, exist_ok=True)
    images, records = [], []
    draw = np.random.default_rng(first)
    for number in range(first + 1, first + count + 1):
        file = f"{number:04d}.jpg"
        cv2.imwrite(str(folder / file), draw.integers(0, 255, (100, 80, 3), np.uint8))
        images.append({"id": number, "file_name": file, "width": 80, "height": 100})
        points = (np.array(POINTS) + draw.uniform(-2, 2, (8, 2))).round(1)
        records.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [5, 5, 70, 90],
                "area": 6300,
                "iscrowd": 0,
                "keypoints": [float(v) for x, y in points for v in (x, y, 2)],
                "num_keypoints": 8,
            }
        )
    path = folder / name
    categories = [{"id": 1, "name": "full", "keypoints": NAMES, "skeleton": []}]
    path.write_text(json.dumps({"images": images, "annotations": records, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco(tmp_path_factory.mktemp("sound"))


def edited(sound: Path, change: Any) -> Path:
    data = json.loads(sound.read_text())
    change(data["annotations"], data["images"])
    path = sound.parent / "edited.json"
    path.write_text(json.dumps(data))
    return path


def kinds(path: Path, **options: Any) -> dict[str, int]:
    return {f"{level}: {kind}": count for (level, kind), count in check_annotations(path, **options).counts.items()}


def test_a_sound_data_set_has_no_findings_and_a_summary(sound: Path) -> None:
    report = check_annotations(sound, decode=True)
    assert (report.errors, report.warnings, report.findings) == (0, 0, [])
    assert (report.images, report.objects, report.box_sides) == (60, {"full": 60}, {"full": (90, 90, 90)})
    assert report.landmarks["full"] == dict.fromkeys(NAMES, 1.0)


def put(record: dict[str, Any], landmark: int, values: list[float]) -> None:
    record["keypoints"][3 * landmark : 3 * landmark + 3] = values


def swap(record: dict[str, Any]) -> None:
    for i in range(0, 8, 2):
        a, b = record["keypoints"][3 * i : 3 * i + 3], record["keypoints"][3 * i + 3 : 3 * i + 6]
        put(record, i, b)
        put(record, i + 1, a)


@pytest.mark.parametrize(
    ("change", "expected", "says"),
    [
        (lambda a, i: a[4].update(id=4), "error: annotation id twice", "annotation 4"),
        (lambda a, i: a[4].update(image_id=99), "error: unknown image", "image_id 99"),
        (lambda a, i: a[4].update(category_id=99), "error: unknown category", "category_id 99"),
        (lambda a, i: a[4].update(keypoints=[1, 2, 2]), "error: wrong number of keypoints", "expected 8 keypoints"),
        (lambda a, i: a[4].update(keypoints=["x"] * 24), "error: broken annotation", "finite numbers"),
        (lambda a, i: a[4].update(bbox=[1, 2, float("nan"), 4]), "error: broken annotation", "finite numbers"),
        (lambda a, i: a[4].update(bbox=None), "error: broken annotation", "finite numbers"),
        (lambda a, i: put(a[4], 2, [20, 30, 3]), "error: visibility not 0, 1 or 2", "third number must be 0"),
        (lambda a, i: a[4].update(bbox=[90, 10, 20, 20]), "error: empty box", r"no area inside the 80x100 image"),
        (lambda a, i: a[4].update(bbox=[5, 5, 75, 105]), "warning: box outside the image", "is it x, y, w, h"),
        (lambda a, i: put(a[4], 2, [0, 0, 2]), "warning: labelled at (0, 0)", "left sleeve at"),
        (lambda a, i: put(a[4], 2, [-3, 40, 2]), "warning: landmark outside the image", "left sleeve lies outside"),
        (lambda a, i: a[4].update(bbox=[5, 5, 20, 20]), "warning: landmark far outside the box", "px outside the box"),
        (lambda a, i: a[4].update(num_keypoints=3), "warning: wrong num_keypoints", "is 3, but 8 are labelled"),
        (lambda a, i: a[4].update(iscrowd=1), "warning: left out", "crowd"),
        (lambda a, i: a[4].update(keypoints=[0] * 24, num_keypoints=0), "warning: left out", "no landmark"),
        (lambda a, i: a[4].pop("bbox"), "warning: left out", "no bbox"),
        (lambda a, i: swap(a[4]), "warning: left and right swapped", "all 4 pairs"),
        (lambda a, i: i[4].update(file_name="gone.jpg"), "error: image missing", "not found in"),
        (lambda a, i: i[4].update(width=100, height=80), "error: image of another size", "file has 80x100 px"),
        (lambda a, i: i[4].update(file_name="0001.jpg"), "error: image listed twice", "image 1 is the same file"),
        (lambda a, i: i[4].pop("width"), "error: broken image entry", "width None"),
        (lambda a, i: i.append(dict(i[4])), "error: image id twice", "an id of its own"),
        (lambda a, i: a.pop(4), "warning: image without objects", "no annotation"),
    ],
)
def test_a_fault_is_found_and_says_where_it_is(sound: Path, change: Any, expected: str, says: str) -> None:
    path = edited(sound, change)
    report = check_annotations(path)
    found = [f for f in report.findings if f"{f.level}: {f.kind}" == expected]
    assert len(found) == 1, report.findings
    text = str(found[0])
    assert says in text
    assert str(path) in text
    assert "annotation 4" in text or "annotation 5" in text or "image 5" in text
    assert len(report.findings) <= 3  # and not much else: one fault can show in two ways


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "error: image cut off"),
        (lambda p: p.write_bytes(b"\xff\xd8\xff"), "error: image unreadable"),
        (lambda p: p.write_bytes(b""), "error: image unreadable"),
        (lambda p: p.write_text("no picture"), "error: image unreadable"),
        (lambda p: p.write_bytes(p.with_name("0001.jpg").read_bytes()), "warning: same picture twice"),
    ],
)
def test_a_damaged_image_is_found_without_decoding(tmp_path: Path, damage: Any, expected: str) -> None:
    path = coco(tmp_path, 4)
    damage(tmp_path / "0003.jpg")
    assert kinds(path) == {expected: 1}


def test_only_decoding_finds_a_picture_whose_pixels_are_broken(tmp_path: Path) -> None:
    path = coco(tmp_path, 2)
    cv2.imwrite(str(tmp_path / "x.png"), np.random.default_rng(0).integers(0, 255, (100, 80, 3), np.uint8))
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[41:] = data[41:][:0] + b"\0" * (len(data) - 41 - 12) + bytes(data[-12:])
    (tmp_path / "0002.jpg").write_bytes(data)  # a PNG under another name is as good
    assert kinds(path) == {}
    assert kinds(path, decode=True) == {"error: image unreadable": 1}


def test_images_that_exif_turns_are_told_apart_from_wrong_sizes(tmp_path: Path) -> None:
    path = coco(tmp_path, 3)
    for name, orientation in (("0002.jpg", 6), ("0003.jpg", 2)):
        data = (tmp_path / name).read_bytes()
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + b"\0" * 7
        (tmp_path / name).write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    report = check_annotations(path)
    texts = [str(finding) for finding in report.findings]
    assert len(texts) == 2
    assert "image 2 (0002.jpg): the file has 100x80 px" in texts[0]
    assert "EXIF turns it (orientation 6)" in texts[0]
    assert texts[1].startswith("warning: ")
    assert "orientation 2" in texts[1]


def test_images_that_training_and_validation_share_are_found_also_under_another_name(tmp_path: Path) -> None:
    train, val = coco(tmp_path / "train", 5), coco(tmp_path / "val", 5, name="val.json", first=40)
    assert kinds(train, against=val) == {}
    (tmp_path / "val/0042.jpg").write_bytes((tmp_path / "train/0003.jpg").read_bytes())
    report = check_annotations(train, against=val)
    (finding,) = report.findings
    assert (finding.level, finding.record) == ("error", "image 3")
    assert "0042.jpg" in finding.message
    assert kinds(train, against=train) == {"error: image in both files": 5}


def test_landmarks_of_another_category_are_found(sound: Path, tmp_path: Path) -> None:
    data = json.loads(sound.read_text())
    data["categories"][0]["name"] = "upper"  # which has no waistline
    path = sound.parent / "upper.json"
    path.write_text(json.dumps(data))
    assert kinds(path) == {"error: landmarks of another category": 60}

    begin, end = DEEPFASHION2["trousers"].channels
    data["categories"] = [{"id": 1, "name": "trousers", "keypoints": [str(k) for k in range(1, 295)]}]
    own = [v for k in range(end - begin) for v in (20 + 2 * k, 30 + k, 2)]
    for record in data["annotations"]:
        record.update(keypoints=[0] * 3 * begin + own + [0] * 3 * (294 - end), num_keypoints=14)
    path.write_text(json.dumps(data))
    assert kinds(path) == {}
    assert kinds(path, landmarks=DEEPFASHION2["trousers"]) == {}
    data["annotations"][3]["keypoints"][3 * end : 3 * end + 3] = [20, 30, 2]
    path.write_text(json.dumps(data))
    report = check_annotations(path)
    text = str(next(f for f in report.findings if f.level == "error"))
    assert "annotation 4" in text
    assert "'trousers' does not have the landmarks 183" in text
    assert (
        check_annotations(path, landmarks=DEEPFASHION2["skirt"]).counts["error", "landmarks of another category"] == 60
    )


def test_a_landmark_that_hardly_any_object_has_is_suspected(sound: Path) -> None:
    def change(records: Any, images: Any) -> None:
        for record in records[1:]:
            put(record, 4, [0, 0, 0])
            record["num_keypoints"] = 7

    assert kinds(edited(sound, change)) == {"warning: landmark hardly ever labelled": 1}


def test_findings_are_limited_but_counted(sound: Path) -> None:
    path = edited(sound, lambda records, images: [record.update(num_keypoints=1) for record in records])
    report = check_annotations(path, limit=3)
    assert (len(report.findings), report.warnings) == (3, 60)
    assert len(check_annotations(path, limit=0).findings) == 60


def test_the_command_exits_with_1_on_errors_only(sound: Path) -> None:
    run = CliRunner().invoke
    result = run(app, ["dataset", "check", str(sound), "--recipe", "deepfashion/full/resnet50"])
    assert result.exit_code == 0, result.output
    assert "0 errors, 0 warnings" in result.output
    warned = edited(sound, lambda records, images: records[0].update(num_keypoints=1))
    result = run(app, ["dataset", "check", str(warned)])
    assert (result.exit_code, "0 errors, 1 warnings" in result.output) == (0, True)
    result = run(app, ["dataset", "check", str(sound), "--keypoints", "6", "--limit", "2"])
    assert result.exit_code == 1
    assert "58 more: error, wrong number of keypoints" in result.output
    assert "60 errors" in result.output


def test_a_file_that_is_not_coco_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="expected the COCO keys"):
        check_annotations(tmp_path / "a.json")
