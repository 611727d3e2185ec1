"""Contact sheets: what is drawn sits where it belongs, nothing covers anything else, and the files say the truth."""

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
from edgepose.training import contact_sheet, view
from edgepose.training.contact_sheet import PICTURE, Tile, contact_sheets, draw_heat, draw_labels, fit, shorten
from edgepose.training.fashion import DEEPFASHION2, DEEPFASHION2_CHANNELS
from edgepose.training.garments import garment_spec

SPEC = garment_spec()
NAMES = list(SPEC.keypoint_names)
BGR = [tuple(reversed(color)) for color in SPEC.colors]


def picture(path: Path, size: tuple[int, int] = (90, 120)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 128, np.uint8))


def garments_file(folder: Path, objects: int = 5) -> Path:
    """A COCO file of our kind: object k is of category k % 2 + 1 and has landmark k % 8 inferred, k % 8 + 1 unsure."""
    images, records = [], []
    for k in range(objects):
        picture(folder / f"{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", "width": 90, "height": 120})
        keypoints = [value for i in range(8) for value in (10 + 9 * i, 20 + 5 * k, 1 if i == k % 8 else 2)]
        keypoints[6:9] = [0, 0, 0]
        records.append(
            {
                **{"id": k + 1, "image_id": k, "category_id": k % 2 + 1, "bbox": [5, 5, 80, 110], "iscrowd": 0},
                **{"keypoints": keypoints, "num_keypoints": 7, "ambiguous_keypoints": [k % 8 + 1]},
                **({"garment_type": "vest_dress"} if k == 0 else {}),
            }
        )
    kinds = [{"id": i, "name": n, "keypoints": NAMES, "skeleton": []} for i, n in ((1, "upper"), (2, "full"))]
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": records, "categories": kinds}))
    return path


# Drawing ------------------------------------------------------------------------------------------


def test_landmarks_are_drawn_in_their_colours_where_they_are_and_inferred_ones_hollow() -> None:
    frame = np.full((200, 100, 3), 100, np.uint8)  # (w, h) 100x200: shown 1.92 times as large
    small, affine = fit(frame)
    assert small.shape == (384, 192, 3)
    np.testing.assert_allclose(affine, [[1.92, 0, 0.46], [0, 1.92, 0.46]])  # exact: pixel centre on pixel centre
    points = np.array([[20 + 60 * (k % 2), 30 + 20 * k] for k in range(8)], np.float32)
    shown = (points @ affine[:, :2].T + affine[:, 2]).astype(np.float32)
    flags = np.array([2, 1, 0, 2, 2, 2, 2, 2], np.int8)
    drawn = draw_labels(small, shown, flags, None, SPEC, np.zeros(8, bool))
    for k, (x, y) in enumerate(np.rint(shown).astype(int)):
        expected = {2: BGR[k], 1: (255, 255, 255), 0: (100, 100, 100)}[int(flags[k])]
        assert tuple(drawn[y, x].tolist()) == expected, k
    x, y = np.rint(shown[1]).astype(int)
    assert (drawn[y - 4 : y + 5, x - 4 : x + 5] == BGR[1]).all(axis=2).any()  # the ring around the hole


@pytest.mark.parametrize("count", [8, 39])
def test_numbers_cover_neither_landmarks_nor_each_other(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    rng = np.random.default_rng(count)
    tags: list[tuple[int, int, int, int]] = []

    def record(sheet: Any, text: str, at: tuple[int, int], scale: float, *_: Any) -> None:
        tags.append((at[0] - 3, at[1] - 12, at[0] + contact_sheet._width(text, scale) + 3, at[1] + 3))

    monkeypatch.setattr(contact_sheet, "_text", record)
    points = rng.uniform(0, (287, 383), (count, 2)).astype(np.float32)
    contact_sheet._number(
        np.zeros((384, 288, 3), np.uint8), points, [str(k) for k in range(count)], np.arange(count), None
    )
    assert len(tags) > 0.9 * count  # few have no room
    for i, a in enumerate(tags):
        assert min(a) >= 0
        assert (a[2] <= 288, a[3] <= 384) == (True, True)
        for b in tags[:i]:  # 1: tags are laid out at fractions of a pixel and drawn at whole ones
            assert min(a[2], b[2]) - max(a[0], b[0]) <= 1 or min(a[3], b[3]) - max(a[1], b[1]) <= 1
        for x, y in points:  # a dot's colour has a radius of 4 px
            assert not (a[0] < x + 4 and x - 4 < a[2] and a[1] < y + 4 and y - 4 < a[3])


def test_heat_is_where_the_map_has_it_and_the_strongest_wins() -> None:
    base = np.full((384, 288, 3), 100, np.uint8)
    heat = np.zeros((2, 64, 48), np.float32)
    heat[0, 10, 20], heat[1, 10, 20], heat[1, 50, 40] = 0.5, 1.0, 1.0
    affine = np.array([[6.0, 0, 0], [0, 6.0, 0]])
    drawn = draw_heat(base, heat, affine, [(255, 0, 0), (0, 0, 255)])
    for x, y in ((120, 60), (240, 300)):
        assert drawn[y, x].tolist() == [20, 20, 224]  # 0.2 * 100 + 0.8 * (0, 0, 255)
    assert drawn[200, 100].tolist() == [100, 100, 100]


def test_tiles_fill_pages_in_reading_order() -> None:
    w, h = PICTURE
    tiles = [Tile(np.full((h, w, 3), 10 * k, np.uint8), f"tile {k}", "n" * 200) for k in range(8)]
    first, last = contact_sheets(tiles, title="t" * 500, summary="s" * 900, columns=3, rows=2)
    assert first.shape[1] == last.shape[1]
    assert first.shape[0] > last.shape[0]  # two rows, one row
    for page, numbers in ((first, range(6)), (last, range(6, 8))):
        values = [page[-(h + 60) :, column] for column in range(24, page.shape[1] - 24, w + 14)]
        lowest = list(numbers)[-3:] if len(numbers) == 6 else list(numbers)
        for strip, k in zip(values, lowest, strict=False):
            assert (strip == 10 * k).all(axis=1).sum() >= h - 60, k
    # A caption that is too long ends where its picture does: the gap beside it stays paper
    assert (first[:, 24 + w + 1 : 24 + w + 13][100:] == contact_sheet.PAPER).all()


@pytest.mark.parametrize("width", [30, 100, 288])
def test_long_names_keep_both_ends(width: int) -> None:
    name = "04520051-6197-4561-a721-8e73c0d4116a-größe.jpg"
    short = shorten(name, width, 0.4)
    assert contact_sheet._width(short, 0.4) <= width
    assert short.isascii()
    if width > 60:
        assert short[:4] + short[-4:] == "0452.jpg"
        assert "..." in short


def test_a_sheet_of_nothing_and_a_picture_that_is_too_large_are_refused() -> None:
    with pytest.raises(InputError, match="no pictures"):
        list(contact_sheets([], title="", summary=""))
    with pytest.raises(InputError, match="at most 288 x 384"):
        list(contact_sheets([Tile(np.zeros((10, 300, 3), np.uint8), "a", "b.jpg")], title="", summary=""))


# Reading ------------------------------------------------------------------------------------------


def test_objects_come_in_the_files_order_with_flags_doubts_and_types(tmp_path: Path) -> None:
    objects = view.load_labelled(garments_file(tmp_path))
    assert [item.annotation.image.name for item in objects] == [f"{k}.jpg" for k in range(5)]
    assert [item.kind for item in objects] == ["vest dress", "full", "upper", "full", "upper"]
    for k, item in enumerate(objects):
        expected = [1 if i == k else 2 for i in range(8)]
        expected[2] = 0
        assert item.flags.tolist() == expected
        assert np.flatnonzero(item.doubtful).tolist() == [k + 1]
        assert item.spec.skeleton == SPEC.skeleton
    assert [item.kind for item in view.load_labelled(tmp_path / "labels.json", category="full")] == ["full", "full"]


def test_objects_that_load_coco_leaves_out_do_not_shift_the_others(tmp_path: Path) -> None:
    path = garments_file(tmp_path)
    data = json.loads(path.read_text())
    data["annotations"][2]["iscrowd"] = 1
    data["annotations"][0].update(keypoints=[0] * 24, num_keypoints=0)
    path.write_text(json.dumps(data))
    objects = view.load_labelled(path)
    assert [(item.annotation.image.name, int(np.flatnonzero(item.flags == 1)[0])) for item in objects] == [
        ("1.jpg", 1), ("3.jpg", 3), ("4.jpg", 4),
    ]  # fmt: skip


def test_a_deepfashion2_file_shows_its_categories_own_landmarks(tmp_path: Path) -> None:
    picture(tmp_path / "image/1.jpg")
    begin, end = DEEPFASHION2["shorts"].channels
    values = np.zeros((DEEPFASHION2_CHANNELS, 3))
    values[begin:end] = [[10 + 5 * k, 30 + 2 * k, 1 + k % 2] for k in range(end - begin)]
    record = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 5, 80, 110], "iscrowd": 0}
    record |= {"keypoints": values.ravel().tolist(), "num_keypoints": 10}
    kinds = [{"id": 7, "name": "shorts", "keypoints": [], "skeleton": []}]
    images = [{"id": 1, "file_name": "1.jpg", "width": 90, "height": 120}]
    path = tmp_path / "shorts.json"
    path.write_text(json.dumps({"images": images, "annotations": [record], "categories": kinds}))
    (item,) = view.load_labelled(path)
    assert item.flags.tolist() == [1 + k % 2 for k in range(end - begin)]
    assert item.spec.keypoint_names == DEEPFASHION2["shorts"].keypoint_names
    assert item.spec.skeleton == DEEPFASHION2["shorts"].skeleton


def test_a_raw_deepfashion2_folder_is_shown_with_the_flags_of_its_files(tmp_path: Path) -> None:
    picture(tmp_path / "image/000001.jpg")
    (tmp_path / "annos").mkdir()
    landmarks = [value for k in range(8) for value in (10 + 5 * k, 30 + k, 1 + k % 2)]
    item = {"category_id": 9, "category_name": "skirt", "bounding_box": [5, 5, 80, 110], "landmarks": landmarks}
    (tmp_path / "annos/000001.json").write_text(json.dumps({"source": "user", "pair_id": 1, "item1": item}))
    (found,) = view.load_labelled(tmp_path)
    assert view._seen(found).flags.tolist() == [1 + k % 2 for k in range(8)]
    assert view.view([found], tmp_path / "sheet.png", title="raw") == [tmp_path / "sheet.png"]
    with pytest.raises(InputError, match="brings its own"):
        view.load_labelled(tmp_path, images=tmp_path)


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    path = garments_file(tmp_path)
    with pytest.raises(InputError, match="no category 'vest'; it has upper, full"):
        view.load_labelled(path, category="vest")
    data = json.loads(path.read_text())
    data["annotations"][3]["keypoints"] = [1, 2]
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="annotation 4"):
        view.load_labelled(path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"labels\.json"):
        view.load_labelled(path)


# Pages --------------------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["dataset", "view", *arguments])


@pytest.mark.parametrize("crops", ["--crops", "--frames"])
def test_the_command_writes_pages(tmp_path: Path, crops: str) -> None:
    path = garments_file(tmp_path, 30)
    result = run(str(path), "-o", str(tmp_path / "out"), crops)
    assert result.exit_code == 0, result.output
    pages = [tmp_path / "out/sheet-01.jpg", tmp_path / "out/sheet-02.jpg"]
    assert result.output.split() == [str(page) for page in pages]
    first, second = (cv2.imread(str(page)) for page in pages)
    assert first.shape[0] > 4 * PICTURE[1] > 2 * PICTURE[1] > second.shape[0]


def test_a_named_picture_and_the_seed(tmp_path: Path) -> None:
    path = garments_file(tmp_path, 12)
    out = tmp_path / "one.png"
    contents = []
    for seed in ("1", "1", "2"):
        assert run(str(path), "-o", str(out), "--count", "3", "--seed", seed).exit_code == 0
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] != contents[2]
    wrong = run(str(path), "-o", str(tmp_path / "one.gif"))
    assert isinstance(wrong.exception, InputError) or wrong.exit_code == 1


# The trainer's view -------------------------------------------------------------------------------


def test_targets_are_laid_where_the_landmarks_are_in_the_crop(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (item,) = view.load_labelled(garments_file(tmp_path, 1))
    trainer = view.TrainerView(SPEC, None)
    ((tile),) = view._trainer_tiles([item], trainer, 0)
    assert tile.title == "vest dress: 7 targets"
    affine = view.crop_affines(item.annotation.box[None], SPEC.input_size, SPEC.codec, SPEC.padding)[0]
    for k in (0, 4, 7):
        # The crop is shown at 1.5 px a px. 192x256 -> 288x384: x goes to (x + 0.5) * 1.5 - 0.5.
        x, y = (affine[:, :2] @ item.annotation.keypoints[k] + affine[:, 2] + 0.5) * 1.5 - 0.5
        seen = tile.picture[round(y), round(x)].astype(int)
        expected = 0.2 * 128 + 0.8 * np.array(BGR[k])
        # JPEG's grey, and a peak up to half a picture px (a twelfth of a cell) beside the pixel looked at; seen: 4.
        assert np.abs(seen - expected).max() < 12, k


def test_a_recipe_of_another_data_set_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = garments_file(tmp_path, 2)
    objects = view.load_labelled(path)
    with pytest.raises(InputError, match="does not train the 8 landmarks of 'upper'"):
        view.view(objects, tmp_path / "o.png", title="", augmented=view.trainer_view("deepfashion2/skirt/resnet50"))
    written = view.view(objects, tmp_path / "o.png", title="", augmented=view.trainer_view("deepfashion/full/resnet50"))
    assert written[0].exists()
