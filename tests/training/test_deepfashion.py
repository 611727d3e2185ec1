"""COCO files as MMPose has them (DeepFashion, DeepFashion2), the raw DeepFashion2 release, and its conversion."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.errors import InputError
from edgepose.training import deepfashion2_convert, jsonrecords
from edgepose.training.coco import load_coco, write_coco
from edgepose.training.deepfashion2 import (
    CATEGORIES,
    RAW_NAMES,
    annotation_file,
    load_deepfashion2,
    load_deepfashion2_raw,
)
from edgepose.training.deepfashion2_convert import convert_deepfashion2
from edgepose.training.fashion import DEEPFASHION, DEEPFASHION2
from edgepose.training.imagefiles import read_header


def picture(path: Path, size: tuple[int, int] = (60, 80), *, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, size))


def raw_item(category_id: int, seed: int) -> dict[str, Any]:
    """An item as the release has it."""
    draw = random.Random(seed)
    count = len(DEEPFASHION2[CATEGORIES[category_id - 1]].keypoint_names)
    landmarks: list[int] = []
    for _ in range(count):
        flag = draw.choice((0, 1, 2, 2))
        landmarks += [draw.randint(5, 50), draw.randint(5, 70), flag] if flag else [0, 0, 0]
    return {
        "segmentation": [[1.5, 2.25, 30.0, 40.0, 9.75, 12.0], [3, 4, 5, 6, 7, 8]],
        "scale": draw.randint(1, 3),
        "viewpoint": 2,
        "zoom_in": 1,
        "landmarks": landmarks,
        "style": draw.randint(0, 3),
        "bounding_box": [3, 4, draw.randint(40, 58), draw.randint(60, 78)],
        "category_id": category_id,
        "occlusion": 2,
        "category_name": RAW_NAMES[category_id - 1],
    }


def raw_split(folder: Path, count: int, *, one_picture: bool = False) -> None:
    """``count`` images with one to three items each, the categories in turn."""
    (folder / "annos").mkdir(parents=True)
    (folder / "image").mkdir()
    picture(folder / "image/000001.jpg")
    data = (folder / "image/000001.jpg").read_bytes()
    category = 0
    for number in range(1, count + 1):
        items = {}
        for item in range(1, number % 3 + 2):
            items[f"item{item}"] = raw_item(category % 13 + 1, 100 * number + item)
            category += 1
        annotation = {"source": "shop" if number % 2 else "user", **items, "pair_id": 7 + number // 4}
        (folder / f"annos/{number:06d}.json").write_text(json.dumps(annotation))
        if one_picture:
            (folder / f"image/{number:06d}.jpg").write_bytes(data)
        else:
            picture(folder / f"image/{number:06d}.jpg", (60 + number % 5, 80 + number % 3), seed=number)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("deepfashion2")
    raw_split(root / "train", 30)
    raw_split(root / "validation", 9)
    return root


@pytest.fixture(scope="module")
def converted(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("converted")
    for split in ("train", "validation"):
        convert_deepfashion2(raw, output, split)
    return output


# --- what MMPose leaves out ---------------------------------------------------------------------------------------


def kept_by_mmpose(data: dict[str, Any]) -> dict[int, list[float]]:
    """The rules of BaseCocoStyleDataset (1.3.2) in plain words: ids that stay, with their clipped boxes."""
    images = {image["id"]: image for image in data["images"]}
    kept = {}
    for record in data["annotations"]:
        if "bbox" not in record or "keypoints" not in record:
            continue
        image = images[record["image_id"]]
        x, y, w, h = record["bbox"]
        box = np.array(
            [
                np.clip(x, 0, image["width"] - 1),
                np.clip(y, 0, image["height"] - 1),
                np.clip(x + w, 0, image["width"] - 1),
                np.clip(y + h, 0, image["height"] - 1),
            ],
            np.float32,
        )
        points = np.array(record["keypoints"], np.float32).reshape(-1, 3)[:, :2]
        number = record.get("num_keypoints", np.count_nonzero(points.max(1)))
        wide, high = box[2:] - box[:2]
        if not record.get("iscrowd", 0) and number != 0 and wide > 0 and high > 0 and points.max() > 0:
            kept[record["id"]] = box.tolist()
    return kept


def random_coco(seed: int, folder: Path) -> dict[str, Any]:
    """300 records of which each of MMPose's rules leaves some out."""
    draw = random.Random(seed)
    picture(folder / "a.jpg", (40, 30))
    records = []
    for number in range(1, 301):
        points = [
            value
            for _ in range(4)
            for value in draw.choice(((0, 0, 0), (draw.randint(-2, 45), draw.randint(-2, 35), draw.choice((0, 1, 2)))))
        ]
        if draw.random() < 0.15:
            points = draw.choice(([0] * 12, [0, 0, 2] * 4, [-1, -2, 2] * 4, [-1.5, 0, 2] * 4, [0, 0.5, 0] * 4))
        record = {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "bbox": [draw.uniform(-20, 45), draw.uniform(-20, 35), draw.uniform(-3, 40), draw.uniform(-3, 40)],
            "keypoints": [float(value) for value in points] if draw.random() < 0.5 else points,
        }
        if draw.random() < 0.6:
            record["num_keypoints"] = draw.choice((0, 1, 4))
        if draw.random() < 0.5:
            record["iscrowd"] = draw.choice((0, 0, 1))
        if draw.random() < 0.06:
            del record[draw.choice(("bbox", "keypoints"))]
        records.append(record)
    image = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
    return {"annotations": records, "images": [image], "categories": [{"id": 1, "name": "x"}]}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_left_out_and_how_boxes_are_clipped_is_mmposes(tmp_path: Path, seed: int, indent: int | None) -> None:
    data = random_coco(seed, tmp_path)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data, indent=indent))
    said: list[str] = []
    expected = kept_by_mmpose(data)
    loaded = load_coco(path, 4, log=said.append)
    assert 50 < len(expected) < 250
    np.testing.assert_array_equal([annotation.box for annotation in loaded], list(expected.values()))
    by_id = {record["id"]: record for record in data["annotations"]}
    for annotation, number in zip(loaded, expected, strict=True):
        points = np.array(by_id[number]["keypoints"], np.float32).reshape(-1, 3)
        np.testing.assert_array_equal(annotation.keypoints, points[:, :2])
        np.testing.assert_array_equal(annotation.visible, points[:, 2] > 0)
    (text,) = said
    assert f"left out {300 - len(expected)} of 300 objects" in text
    for reason in ("crowds", "num_keypoints 0", "no area", "without bbox or keypoints", "positive coordinates"):
        assert reason in text


def test_a_file_of_which_nothing_is_left_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    data = random_coco(0, tmp_path)
    for record in data["annotations"]:
        record["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"none of its 300 objects can be used: .* marked as crowds"):
        load_coco(tmp_path / "a.json", 4)
    (tmp_path / "a.json").write_text(json.dumps({**data, "annotations": []}))
    assert load_coco(tmp_path / "a.json", 4) == []


# --- reading large files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [7, 100, 1000])
@pytest.mark.parametrize("style", [{}, {"indent": 1}, {"separators": (",", ":")}])
def test_records_do_not_depend_on_where_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, style: dict[str, Any]
) -> None:
    tricky = [
        {"keypoints": [1, 2.5, -3e-7], "segmentation": [[1, 2], [3, 4]], "note": 'say "keypoints": [1, 2], "x"'},
        {"segmentation": {"counts": "a}]b", "size": [3, 4]}, "keypoints": [], "deep": {"keypoints": [[1, 2], [3, 4]]}},
        {"a \\": [], "keypoints": [0, 0, 0], "ünï": "\\", "segmentation": []},
        12345,
    ]
    data = {"info": {"keypoints": ["left", "right"], "n": 10**9}, "annotations": tricky, "end": -1.5e3}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data, ensure_ascii=False, **style), encoding="utf-8")
    monkeypatch.setattr(jsonrecords, "CHUNK", chunk)
    seen: list[Any] = []
    rest = jsonrecords.read_records(path, {"annotations": seen.append})
    assert rest == {"info": data["info"], "annotations": 4, "end": -1500.0}
    for record, expected in zip(seen[:3], tricky[:3], strict=True):
        assert {k: v for k, v in record.items() if k not in ("keypoints", "segmentation", "deep")} == {
            k: v for k, v in expected.items() if k not in ("keypoints", "segmentation", "deep")
        } or isinstance(expected["segmentation"], dict)
        assert jsonrecords.numbers_of(record["keypoints"]) == expected["keypoints"]
    assert seen[3] == 12345
    assert jsonrecords.numbers_of(seen[1]["deep"]["keypoints"]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": [], "images": [{"id": 1, "file_name": "a"}, {"id": 2,}]}', "in entry 2 of images"),
        ('{"images": [{"id": 1, "file_name": "a"}', "in entry 1 of images: expected ',' or ']', got its end"),
        ('{"images": [{"id": 1, "file_name', "in entry 1 of images"),
        ('{"images": []} {}', "text after the object's end"),
        ("[]", "expected '{'"),
        ("", "expected '{', got its end"),
        ('{"images": {}}', "expected a list under the key 'images'"),
        ("{}", "expected the COCO keys"),
        ('{"images": [' + "[" * 100_000, "in entry 1 of images"),
    ],
)
def test_a_broken_file_is_named_with_the_entry(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_coco(path, 4)
    assert "broken.json" in str(caught.value)


def test_images_are_found_without_asking_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    names = [f"{number:06d}.jpg" for number in range(200)]
    (tmp_path / "img").mkdir()
    (tmp_path / "annotations").mkdir()
    for name in names:
        (tmp_path / "img" / name).touch()
    images = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names)]
    record = {"category_id": 1, "bbox": [1, 1, 5, 5], "keypoints": [1, 2, 2], "iscrowd": 0}
    data = {
        "images": images,
        "annotations": [{**record, "id": i, "image_id": i} for i in range(200)],
        "categories": [{"id": 1, "name": "x"}],
    }
    path = tmp_path / "annotations/fld.json"
    path.write_text(json.dumps(data))
    calls = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or real(*a, **k))
    found = load_coco(path, 1)
    assert [annotation.image.name for annotation in found] == names
    assert len(calls) < 10
    (tmp_path / "img/000150.jpg").unlink()
    with pytest.raises(InputError, match=r"annotation 150: image not found; looked for .*000150\.jpg"):
        load_coco(path, 1, images=tmp_path / "img")


def test_deepfashions_own_layout_loads(tmp_path: Path) -> None:
    for number in (128, 132):
        picture(tmp_path / f"fld/img/img_{number:08d}.jpg", (200, 250), seed=number)
    names = DEEPFASHION["full"].keypoint_names
    data = {
        "info": {"description": "Fashion Landmark Detection"},
        "categories": [{"supercategory": "person", "id": 1, "name": "fashion", "keypoints": list(names)}],
        "images": [{"id": n, "file_name": f"img_{n:08d}.jpg", "height": 250, "width": 200} for n in (128, 132)],
        "annotations": [
            {
                "keypoints": [108.0, 33.0, 1.0, *[71.0, 19.0, 2.0] * 6, 0.0, 0.0, 0.0],
                "num_keypoints": 7,
                "bbox": [1, 1, 199, 249],
                "iscrowd": 0,
                "area": 49551,
                "category_id": 1,
                "id": n,
                "image_id": n,
            }
            for n in (128, 132)
        ],
    }
    (tmp_path / "fld/annotations").mkdir()
    path = tmp_path / "fld/annotations/fld_full_val.json"
    path.write_text(json.dumps(data, indent=4))
    for images in (None, tmp_path / "fld/img"):
        first, second = load_coco(path, 8, images=images)
        assert first.box.tolist() == [1, 1, 199, 249]
        assert (first.visible.tolist(), first.image_id) == ([1, 1, 1, 1, 1, 1, 1, 0], 128)
        assert second.image.read_bytes() == (tmp_path / "fld/img/img_00000132.jpg").read_bytes()


def test_several_objects_of_one_image_are_written_under_one_image_id(tmp_path: Path) -> None:
    data = random_coco(1, tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(data))
    loaded = load_coco(tmp_path / "a.json", 4, log=lambda _: None)
    write_coco(tmp_path / "b.json", loaded[:5], categories=["x"], keypoint_names=["a", "b", "c", "d"])
    written = json.loads((tmp_path / "b.json").read_text())
    assert len(written["images"]) == 1
    assert [record["image_id"] for record in written["annotations"]] == [1] * 5


# --- raw DeepFashion2 and its conversion --------------------------------------------------------------------------


def expected_files(raw: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    """The records as deepfashion2_to_coco.py numbers and lays them out, by category."""
    records: dict[str, list[dict[str, Any]]] = {category: [] for category in CATEGORIES}
    number = 0
    for file in sorted((raw / split / "annos").iterdir()):
        data = json.loads(file.read_text())
        for key, item in data.items():
            if key in ("source", "pair_id"):
                continue
            number += 1
            category = CATEGORIES[item["category_id"] - 1]
            begin, end = DEEPFASHION2[category].channels
            keypoints = np.zeros(3 * 294)
            keypoints[3 * begin : 3 * end] = item["landmarks"]
            x1, y1, x2, y2 = item["bounding_box"]
            records[category].append(
                {
                    "id": number,
                    "image_id": int(file.stem),
                    "category_id": item["category_id"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "num_keypoints": int((np.array(item["landmarks"][2::3]) > 0).sum()),
                    "keypoints": keypoints.tolist(),
                    "pair_id": data["pair_id"],
                    "style": item["style"],
                    "segmentation": item["segmentation"],
                    "source": data["source"],
                    **{key: item[key] for key in ("scale", "occlusion", "zoom_in", "viewpoint")},
                }
            )
    return records


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_converted_files_are_mmposes(raw: Path, converted: Path, split: str) -> None:
    for category, records in expected_files(raw, split).items():
        data = json.loads((converted / f"{split}/deepfashion2_{category}_{split}.json").read_text())
        assert data["annotations"] == records
        assert [kind["name"] for kind in data["categories"]] == [category]
        assert [kind["id"] for kind in data["categories"]] == [CATEGORIES.index(category) + 1]
        assert {image["id"] for image in data["images"]} == {record["image_id"] for record in records}
        for image in data["images"]:
            frame = cv2.imread(str(raw / split / "image" / image["file_name"]))
            assert (image["height"], image["width"]) == frame.shape[:2]


def same(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert (a.image, a.size, a.category, a.first_channel, a.image_id) == (
            *(b.image, b.size, b.category, b.first_channel, b.image_id),
        )
        for name in ("box", "keypoints", "visible"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_raw_and_converted_files_give_the_same_annotations(raw: Path, converted: Path) -> None:
    def order(annotation: Any) -> tuple[Any, ...]:
        return annotation.category, annotation.image_id, annotation.box.tolist()

    read = load_deepfashion2(converted, "train", images=raw / "train/image", log=lambda _: None)
    direct = load_deepfashion2_raw(raw, "train", log=lambda _: None)
    same(sorted(read, key=order), sorted(direct, key=order))
    assert {a.category for a in direct} == set(CATEGORIES)
    for annotation in direct:
        begin, end = DEEPFASHION2[annotation.category].channels
        assert (annotation.first_channel, len(annotation.keypoints)) == (begin, end - begin)
    (one,) = {a.category for a in load_deepfashion2_raw(raw / "train", categories=["skirt"], log=lambda _: None)}
    assert one == "skirt"


def test_a_category_is_loaded_alone_with_its_own_landmarks(raw: Path, converted: Path) -> None:
    path = annotation_file(converted, "train", "trousers")
    channels = DEEPFASHION2["trousers"].channels
    loaded = load_coco(path, 294, images=raw / "train/image", channels=channels, category="trousers")
    whole = load_coco(path, 294, images=raw / "train/image")
    for annotation, full in zip(loaded, whole, strict=True):
        assert (annotation.first_channel, annotation.keypoints.shape) == (0, (14, 2))
        np.testing.assert_array_equal(annotation.keypoints, full.keypoints[channels[0] : channels[1]])
        assert full.visible.sum() == annotation.visible.sum()
    with pytest.raises(InputError, match="labels landmarks outside the wanted channels"):
        load_coco(path, 294, images=raw / "train/image", channels=DEEPFASHION2["skirt"].channels)
    with pytest.raises(InputError, match=r"expected objects of category 'skirt', but it has \['trousers'\]"):
        load_coco(path, 294, images=raw / "train/image", category="skirt")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KILLED = """
import sys
from edgepose.training import deepfashion2_convert as convert
convert.SHARD = 8
convert.convert_deepfashion2(sys.argv[1], sys.argv[2], "train")
"""


def test_a_conversion_killed_again_and_again_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_split(tmp_path / "raw/train", 400, one_picture=True)
    monkeypatch.setattr(deepfashion2_convert, "SHARD", 8)
    convert_deepfashion2(tmp_path / "raw", tmp_path / "whole", "train")
    state = tmp_path / "cut/train/.deepfashion2_train.shards"
    draw = random.Random(0)
    seen = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "raw"), str(tmp_path / "cut")])
        goal = seen + draw.randint(1, 12)
        while process.poll() is None and len([*state.glob("*")] if state.exists() else ()) < goal:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen = len([path for path in state.glob("0*") if path.suffix != ".tmp"]) if state.exists() else 50
    assert 0 < seen <= 50
    result = convert_deepfashion2(tmp_path / "raw", tmp_path / "cut", "train")
    assert result.resumed >= 8
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    again = convert_deepfashion2(tmp_path / "raw", tmp_path / "cut", "train")
    assert (again.resumed, again.objects, again.files) == (400, result.objects, result.files)


def test_a_kill_while_files_are_put_in_place_and_a_changed_input_are_noticed(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(raw / "validation", tmp_path / "raw/validation")
    monkeypatch.setattr(deepfashion2_convert, "SHARD", 4)
    convert_deepfashion2(tmp_path / "raw", tmp_path / "whole", "validation")
    moved = []
    real = deepfashion2_convert.os.replace

    def stop(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            moved.append(target)
            if len(moved) == 6:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(deepfashion2_convert.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_deepfashion2(tmp_path / "raw", tmp_path / "cut", "validation")
    monkeypatch.setattr(deepfashion2_convert.os, "replace", real)
    result = convert_deepfashion2(tmp_path / "raw", tmp_path / "cut", "validation")
    assert result.resumed == 9
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    changed = tmp_path / "raw/validation/annos/000006.json"
    changed.write_text(json.dumps({"source": "user", "pair_id": 1, "item1": raw_item(9, 5), "item2": raw_item(9, 6)}))
    result = convert_deepfashion2(tmp_path / "raw", tmp_path / "cut", "validation")
    assert result.resumed == 0  # finished before: there are no shards to take over
    fresh = convert_deepfashion2(tmp_path / "raw", tmp_path / "fresh", "validation")
    assert fresh.objects == result.objects
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "fresh")


def test_several_processes_write_the_same_files(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepfashion2_convert, "SHARD", 4)
    convert_deepfashion2(raw, tmp_path / "one", "validation")
    convert_deepfashion2(raw, tmp_path / "two", "validation", workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def damaged(change: Any) -> Any:
    def apply(folder: Path) -> None:
        path = folder / "annos/000002.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


DAMAGES = [
    (lambda f: (f / "annos/000002.json").write_text('{"item1": '), r"000002\.json: expected an annotation file"),
    (lambda f: (f / "annos/000002.json").write_text("[1]"), r"000002\.json: expected an object with source"),
    (lambda f: (f / "image/000002.jpg").unlink(), r"000002\.json: its image is missing: expected .*000002\.jpg"),
    (lambda f: (f / "image/000002.jpg").write_bytes(b""), r"000002\.jpg .*is not a picture"),
    (lambda f: (f / "image/000002.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JF"), r"000002\.jpg"),
    (damaged(lambda d: d["item1"].update(category_id=14)), r"000002\.json: item1: category_id must be 1 to 13, got 14"),
    (damaged(lambda d: d["item1"].update(category_name="hat")), r"item1: category_id .* category_name is 'hat'"),
    (damaged(lambda d: d["item1"]["landmarks"].pop()), r"item1: .* landmarks \(x, y, v\), so \d+ numbers; got \d+"),
    (damaged(lambda d: d["item1"]["landmarks"].__setitem__(2, 3)), r"item1: visibility must be 0"),
    (damaged(lambda d: d["item1"]["landmarks"].__setitem__(0, "5")), r"item1: .* numbers; got \["),
    (damaged(lambda d: d["item1"].update(bounding_box=[1, 2, 3])), r"item1: bounding_box must be x1, y1, x2, y2"),
    (damaged(lambda d: d.update(item9=None)), r"item9: expected an item"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_broken_record_is_named_or_left_out_and_listed(tmp_path: Path, damage: Any, message: str) -> None:
    raw_split(tmp_path / "raw/train", 3)
    before = expected_files(tmp_path / "raw", "train")
    damage(tmp_path / "raw/train")
    with pytest.raises(InputError, match=message):
        convert_deepfashion2(tmp_path / "raw", tmp_path / "out", "train")
    with pytest.raises(InputError, match=message):
        load_deepfashion2_raw(tmp_path / "raw", "train")
    assert not [*(tmp_path / "out/train").glob("*.json")]
    result = convert_deepfashion2(tmp_path / "raw", tmp_path / "out", "train", skip_broken=True)
    (text,) = result.left_out
    assert text.startswith(str(tmp_path / "raw/train"))
    said: list[str] = []
    kept = load_deepfashion2_raw(tmp_path / "raw", "train", skip_broken=True, log=said.append)
    assert len(kept) == sum(result.objects.values()) > 0
    assert "with a broken record" in said[0]
    for file in result.files:  # what is left is as it was
        for record in json.loads(file.read_text())["annotations"]:
            same_image = [r for records in before.values() for r in records if r["image_id"] == record["image_id"]]
            assert record["bbox"] in [r["bbox"] for r in same_image]


def test_an_image_that_exif_turns_is_refused(tmp_path: Path) -> None:
    raw_split(tmp_path / "raw/train", 1)
    path = tmp_path / "raw/train/image/000001.jpg"
    data = path.read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    header = read_header(path)
    assert (header.size, header.orientation, header.complete) == ((61, 81), 6, True)
    assert header.shown == cv2.imread(str(path)).shape[1::-1]
    with pytest.raises(InputError, match="EXIF orientation 6"):
        convert_deepfashion2(tmp_path / "raw", tmp_path / "out", "train")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "progressive.jpg"])
def test_headers_say_what_decoding_finds(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if name.startswith("progressive") else []
    cv2.imwrite(str(path), np.full((37, 53, 3), 90, np.uint8), options)
    header = read_header(path)
    assert (header.size, header.orientation, header.complete) == ((53, 37), 1, True)
    if not name.endswith("webp"):
        path.write_bytes(path.read_bytes()[:-20])
        assert read_header(path).complete is False


def test_a_folder_that_is_not_deepfashion2_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folders annos and image"):
        convert_deepfashion2(tmp_path, tmp_path / "out", "train")
    (tmp_path / "train/annos").mkdir(parents=True)
    (tmp_path / "train/image").mkdir()
    with pytest.raises(InputError, match="holds no annotation files"):
        load_deepfashion2_raw(tmp_path, "train")
    (tmp_path / "train/annos/shirt.json").touch()
    with pytest.raises(InputError, match=r"shirt\.json: expected a number"):
        load_deepfashion2_raw(tmp_path, "train")
    with pytest.raises(InputError, match="splits with landmarks are train and validation, got 'test'"):
        load_deepfashion2_raw(tmp_path, "test")
    with pytest.raises(InputError, match="no category 'hat'"):
        load_deepfashion2_raw(tmp_path, "train", ["hat"])


def test_the_command_converts_and_lists(raw: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["dataset", "convert", "deepfashion2", str(raw), "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "deepfashion2_<category>_validation.json" in result.output.replace("\n", "")
    assert "vest_dress" in result.output
    assert "train: 30 annotation files" in result.output
    assert len(files_of(tmp_path)) == 2 * 14  # 13 categories and the record of the conversion
