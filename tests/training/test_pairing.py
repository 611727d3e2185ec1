"""Published labels: what they say is consistent, and they come together with the right photos only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.errors import InputError
from edgepose.training import annotations
from edgepose.training.annotations import card, grey_distance, grey_levels, labels, records_json, splits
from edgepose.training.coco import load_coco
from edgepose.training.garments import ABSENT, garment_spec
from edgepose.training.pairing import SAME_PICTURE, pair

ORIGINAL = Path(__file__).parents[3] / "shared/data/garments_cc0"


# What is published --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["train", "val"])
def published(request: pytest.FixtureRequest) -> dict[str, Any]:
    return labels("garments_cc0", request.param)


def test_each_label_is_consistent(published: dict[str, Any]) -> None:
    images = {image["id"]: image for image in published["images"]}
    categories = {category["id"]: category["name"] for category in published["categories"]}
    assert len(images) == len(published["annotations"]) == len({image["sha256"] for image in images.values()})
    for record in published["annotations"]:
        image, absent = images[record["image_id"]], ABSENT.get(categories[record["category_id"]], ())
        points = np.reshape(record["keypoints"], (8, 3))
        labelled = points[:, 2] > 0
        assert labelled.sum() == record["num_keypoints"] > 0
        assert not labelled[list(absent)].any()
        assert labelled[record["ambiguous_keypoints"]].all()
        assert (points[labelled, :2] <= (image["width"] - 1, image["height"] - 1)).all()
        assert (points >= 0).all()
        assert not points[~labelled].any()
        x, y, w, h = record["bbox"]
        assert record["area"] == pytest.approx(w * h)
        assert (x >= 0, y >= 0, x + w <= image["width"], y + h <= image["height"]) == (True,) * 4
        assert (len(image["sha256"]), len(image["grey8x8"])) == (64, 64)
        assert "/" not in image["file_name"]


def test_no_photo_is_in_two_parts() -> None:
    hashes = [image["sha256"] for split in splits("garments_cc0") for image in labels("garments_cc0", split)["images"]]
    assert len(hashes) == len(set(hashes)) >= 637


def test_the_parts_and_their_landmarks() -> None:
    assert splits("garments_cc0")[:2] == ("train", "val")
    for category in labels("garments_cc0", "val")["categories"]:
        assert tuple(category["keypoints"]) == garment_spec().keypoint_names
    for name, split in (("garments", "train"), ("garments_cc0", "test")):
        with pytest.raises(InputError, match="garments_cc0"):
            labels(name, split)


def test_a_record_is_a_line_so_that_a_correction_is_one_too() -> None:
    for split in splits("garments_cc0"):
        text = (annotations.FOLDER / "garments_cc0" / f"{split}.json").read_text(encoding="utf-8")
        data = json.loads(text)
        assert text == records_json(data)
        assert text.count("\n") == sum(len(v) + 2 for v in data.values() if isinstance(v, list)) + 1


def test_the_data_card_is_up_to_date() -> None:
    """Else run `python -m edgepose.training.annotations.card`."""
    folder = annotations.FOLDER / "garments_cc0"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text == card.with_statistics(text, "garments_cc0")
    assert (folder / "landmarks.svg").read_text(encoding="utf-8") == card.diagram()
    assert "CC0 1.0 Universal" in (folder / "LICENSE").read_text(encoding="utf-8")


def test_a_data_card_without_marks_is_refused() -> None:
    with pytest.raises(InputError, match="must hold"):
        card.with_statistics("# nothing", "garments_cc0")


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the photos of garments_cc0 are not beside this checkout")
def test_the_real_photos_give_the_labels_that_were_made_on_them(tmp_path: Path) -> None:
    report = pair(ORIGINAL, tmp_path / "out")
    assert (report.exact, report.missing, report.refused) == (594 + 43 + 448, [], [])
    assert report.unlabelled_count == len(os.listdir(ORIGINAL / "unlabelled"))
    for split in ("train", "val"):
        ours, theirs = load_coco(tmp_path / f"out/{split}.json", 8), load_coco(ORIGINAL / f"{split}.json", 8)
        for a, b in zip(ours, theirs, strict=True):
            assert a.image.resolve() == b.image.resolve()
            assert (a.size, a.category) == (b.size, b.category)
            for name in ("box", "keypoints", "visible"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# Pairing ------------------------------------------------------------------------------------------


def photo(seed: int, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    """(h, w, 3) a smooth picture, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def published_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labels on four photos (three to train on), published as the set `small`; the photos' folder."""
    photos = tmp_path / "photos"
    folder = tmp_path / "labels/small"
    folder.mkdir(parents=True)
    names = list(garment_spec().keypoint_names)
    categories = [{"id": 3, "name": "full", "keypoints": names, "skeleton": []}]
    for split, numbers in (("train", (1, 2, 3)), ("val", (4,))):
        images, records = [], []
        for k in numbers:
            write(photos / f"train/dress/p{k}.png", photo(k))
            images.append({"id": k, "file_name": f"train/dress/p{k}.png", "width": 90, "height": 120})
            keypoints = [value for i in range(8) for value in (10 + 9 * i, 20 + 5 * k, 2)]
            keypoints[9:12] = [0, 0, 0]
            record = {"id": k, "image_id": k, "category_id": 3, "bbox": [4, 5, 80, 110], "area": 8800, "iscrowd": 0}
            records.append({**record, "keypoints": keypoints, "num_keypoints": 7, "ambiguous_keypoints": [4]})
        data = {"info": {"description": f"small {split}"}, "categories": categories, "images": images}
        data = annotations.with_fingerprints({**data, "annotations": records}, photos)
        (folder / f"{split}.json").write_text(records_json(data))
    monkeypatch.setattr(annotations, "FOLDER", tmp_path / "labels")
    monkeypatch.setattr(annotations, "LABEL_SETS", ("small",))
    return photos


def run(*arguments: object) -> Any:
    arguments = ("dataset", "pair", "--labels", "small", *map(str, arguments))
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def test_photos_are_found_in_any_folder_and_not_copied(published_set: Path, tmp_path: Path) -> None:
    (published_set / "train/dress/p2.png").rename(write(published_set / "deep/er/x.png", photo(0)).parent / "P2.PNG")
    out = tmp_path / "made/out"
    result = run(published_set, "-o", out)
    assert result.exit_code == 0, result.output
    assert "4 exactly as labelled" in result.output
    data = json.loads((out / "train.json").read_text())
    assert data["images"][1]["file_name"] == "../../photos/deep/er/P2.PNG"
    assert data["annotations"] == labels("small", "train")["annotations"]
    assert [annotation.image.name for annotation in load_coco(out / "train.json", 8)] == ["p1.png", "P2.PNG", "p3.png"]
    assert len(load_coco(out / "val.json", 8)) == 1
    assert sorted(path.name for path in out.iterdir()) == ["train.json", "unlabelled", "val.json"]


def test_missing_photos_are_named_and_nothing_is_written(published_set: Path, tmp_path: Path) -> None:
    (published_set / "train/dress/p3.png").unlink()
    out = tmp_path / "out"
    result = run(published_set, "-o", out)
    assert result.exit_code == 1
    assert "missing: p3.png" in result.output
    assert "Nothing was written" in result.output
    assert not out.exists()
    result = run(published_set, "-o", out, "--allow-missing")
    assert result.exit_code == 0, result.output
    assert "missing: p3.png" in result.output
    assert [annotation.image.name for annotation in load_coco(out / "train.json", 8)] == ["p1.png", "p2.png"]


def test_the_same_picture_in_other_bytes_is_taken_and_told(published_set: Path, tmp_path: Path) -> None:
    (published_set / "train/dress/p1.png").unlink()
    write(published_set / "p1.jpg", photo(1))
    report = pair(published_set, tmp_path / "out", label_set="small")
    assert report.exact == 3
    assert [path.name for path in report.encoded_anew] == ["p1.jpg"]
    assert load_coco(tmp_path / "out/train.json", 8)[0].image.name == "p1.jpg"


def test_of_two_files_of_a_name_the_labelled_one_is_taken(published_set: Path, tmp_path: Path) -> None:
    write(published_set / "a/p1.png", photo(77))
    write(published_set / "zz/p1.png", photo(78))
    report = pair(published_set, tmp_path / "out", label_set="small")
    assert (report.exact, report.refused) == (4, [])


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (photo(9), "shows something else"),
        (photo(1)[:, ::-1], "shows something else"),
        (photo(1)[:-8], "another aspect"),
        (np.rot90(photo(1)), "another aspect"),
        (photo(1, (180, 240)), "--allow-resized"),
        (None, "cannot be read"),
    ],
    ids=["another", "mirrored", "cropped", "turned", "resized", "broken"],
)
def test_what_the_labels_do_not_fit_is_refused(
    published_set: Path, tmp_path: Path, pixels: np.ndarray | None, reason: str
) -> None:
    path = published_set / "train/dress/p1.png"
    if pixels is None:
        path.write_bytes(b"not a picture")
    else:
        write(path, np.ascontiguousarray(pixels))
    result = run(published_set, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"refused: {path}" in result.output
    assert reason in result.output
    assert not (tmp_path / "out").exists()
    allowed = pair(published_set, tmp_path / "out", label_set="small", allow_missing=True)
    assert (allowed.exact, len(allowed.refused)) == (3, 1)
    assert list(allowed.written.values()) == [2, 1]


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_labels_of_a_resized_photo_land_on_the_same_spots(published_set: Path, tmp_path: Path, factor: float) -> None:
    """A ramp of brightness tells at each landmark where in the original it is."""
    size = (round(90 * factor), round(120 * factor))
    write(published_set / "train/dress/p1.png", cv2.resize(photo(1), size, interpolation=cv2.INTER_AREA))
    report = pair(published_set, tmp_path / "out", label_set="small", allow_resized=True)
    assert [path.name for path in report.resized] == ["p1.png"]
    resized, other = load_coco(tmp_path / "out/train.json", 8)[:2]
    assert (resized.size, other.size) == (size, (90, 120))
    ramp = np.tile(np.arange(90, dtype=np.float32), (120, 1))
    ramp = cv2.resize(ramp, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    for k in range(8):
        if k == 3:
            assert resized.visible[k] == 0
            continue
        x, y = resized.keypoints[k]
        left, part = int(x), x - int(x)
        column = (1 - part) * ramp[int(y), left] + part * ramp[int(y), left + 1]
        assert column == pytest.approx(10 + 9 * k, abs=0.02)  # coordinates are rounded to 0.01 px; worst seen 0.002
    x0, y0 = 4.5 * factor - 0.5, 5.5 * factor - 0.5
    np.testing.assert_allclose(resized.box, [x0, y0, x0 + 80 * factor, y0 + 110 * factor], atol=1e-5)


def test_photos_without_labels_are_linked_in_one_folder(published_set: Path, tmp_path: Path) -> None:
    write(published_set / "test/shirt/new.png", photo(20))
    write(published_set / "train/shirt/new.png", photo(21))
    write(published_set / "train/shoes/shoe.png", photo(22))
    write(published_set / "train/Hat/hat.png", photo(23))
    (published_set / "readme.txt").write_text("no photo")
    out = tmp_path / "out"
    for _ in range(2):  # a second run makes the same
        report = pair(published_set, out, label_set="small")
        assert (report.unlabelled, report.unlabelled_count, report.no_garments) == (out / "unlabelled", 2, 2)
        links = sorted((out / "unlabelled").iterdir())
        assert [link.name for link in links] == ["new-2.png", "new.png"]
        np.testing.assert_array_equal(cv2.imread(str(links[1])), photo(20))
        assert all(link.is_symlink() and not os.path.isabs(os.readlink(link)) for link in links)
        assert sorted(path.name for path in out.iterdir()) == ["train.json", "unlabelled", "val.json"]
    assert pair(published_set, tmp_path / "bare", label_set="small", link_unlabelled=False).unlabelled is None
    assert not (tmp_path / "bare/unlabelled").exists()


def test_an_output_among_the_photos_does_not_find_its_own_links(published_set: Path) -> None:
    write(published_set / "train/shirt/new.png", photo(20))
    for _ in range(2):
        assert pair(published_set, published_set, label_set="small").unlabelled_count == 1


def test_files_of_somebody_else_are_not_replaced(published_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.json").write_text('{"info": {"description": "a year of my work"}}')
    with pytest.raises(InputError, match="exists and is not of"):
        pair(published_set, out, label_set="small")
    (out / "train.json").unlink()
    write(out / "unlabelled/mine.png", photo(30))
    with pytest.raises(InputError, match="files of its own"):
        pair(published_set, out, label_set="small")
    assert (out / "unlabelled/mine.png").exists()


def test_a_folder_without_the_photos_is_refused(published_set: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none of the 4 photos of small"):
        pair(tmp_path / "empty", tmp_path / "out", label_set="small")
    with pytest.raises(InputError, match="no folder"):
        pair(tmp_path / "nowhere", tmp_path / "out", label_set="small")
    with pytest.raises(InputError, match="no labels 'other'"):
        pair(published_set, tmp_path / "out", label_set="other")


def test_grey_levels_know_a_picture_again() -> None:
    pixels = photo(1, (300, 400))
    levels = grey_levels(pixels)
    assert (len(levels), int(levels, 16) > 0) == (64, True)
    for known in (pixels, photo(1, (300, 400)) // 2 * 2, cv2.resize(pixels, (75, 100), interpolation=cv2.INTER_AREA)):
        assert grey_distance(known, levels) < SAME_PICTURE
    assert grey_distance(photo(2, (300, 400)), levels) > SAME_PICTURE


def test_fingerprints_are_of_the_photos_that_were_labelled(tmp_path: Path) -> None:
    write(tmp_path / "a.png", photo(1))
    with pytest.raises(InputError, match="90x120 px"):
        annotations.with_fingerprints({"images": [{"file_name": "a.png", "width": 91, "height": 120}]}, tmp_path)
