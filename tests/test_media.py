"""Photos, videos, and where boxes come from."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose import InputError
from edgepose.boxes import BoxSource
from edgepose.media import VideoReader, VideoWriter, kind_of, photos_in, read_photo, write_photo

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


@pytest.mark.parametrize("name", ["photo.png", "Größe 写真.PNG", "photo.bmp", "photo.tiff", "new/folder/photo.png"])
def test_lossless_round_trip(tmp_path: Path, name: str) -> None:
    write_photo(tmp_path / name, PICTURE)
    np.testing.assert_array_equal(read_photo(tmp_path / name), PICTURE)


def test_grey_alpha_and_16_bits_become_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), PICTURE[..., 0])
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), PICTURE[..., :1].repeat(3, axis=2))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([PICTURE, np.zeros((24, 32), np.uint8)]))
    np.testing.assert_array_equal(read_photo(tmp_path / "alpha.png"), PICTURE)
    cv2.imwrite(str(tmp_path / "deep.png"), PICTURE.astype(np.uint16) * 256 + 17)
    np.testing.assert_array_equal(read_photo(tmp_path / "deep.png"), PICTURE)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    data = cv2.imencode(".jpg", wide)[1].tobytes()
    # An EXIF block with one entry: orientation 6, "turn a quarter to the right".
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    (tmp_path / "turned.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    assert read_photo(tmp_path / "turned.jpg").shape == (48, 16, 3)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xd8\xff\xe0 cut off", b"text"])
def test_unreadable_photos(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.jpg"):
        read_photo(path)


def test_unwritable_photos(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.gif"):
        write_photo(tmp_path / "a.gif", PICTURE)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        write_photo(tmp_path / "file" / "a.png", PICTURE)


@pytest.mark.parametrize(("name", "width"), [("wide.jpg", 70000), ("wide.webp", 20000)])
def test_pictures_that_a_format_cannot_hold(tmp_path: Path, name: str, width: int) -> None:
    with pytest.raises(InputError, match=rf"{name} cannot be written.*{width} x 1 px.*65500.*16383"):
        write_photo(tmp_path / "new" / name, np.zeros((1, width, 3), np.uint8))
    assert not (tmp_path / "new").exists()


def test_an_encoder_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments):
        raise cv2.error("its reason")

    monkeypatch.setattr(cv2, "imencode", fail)  # as OpenCV 4 does
    with pytest.raises(InputError, match="its reason"):
        write_photo(tmp_path / "a.jpg", PICTURE)


def test_kinds(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.mp4", "c.txt", "._a.JPG"):
        (tmp_path / name).write_bytes(b"")
    assert [kind_of(tmp_path / name) for name in ("", "a.JPG", "b.mp4")] == ["folder", "photo", "video"]
    with pytest.raises(InputError, match=r"'\.txt'"):
        kind_of(tmp_path / "c.txt")
    with pytest.raises(InputError, match="no file or folder"):
        kind_of(tmp_path / "d.jpg")
    assert photos_in(tmp_path) == [tmp_path / "a.JPG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no photos"):
        photos_in(tmp_path / "empty")


def test_video_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.mp4"
    with VideoWriter(path, 12.5) as writer:
        for level in (0, 100, 200):
            writer.write(np.full((48, 64, 3), level, np.uint8))
        with pytest.raises(InputError, match="frames of"):
            writer.write(np.zeros((64, 48, 3), np.uint8))
    with VideoReader(path) as reader:
        assert (reader.size, reader.fps, reader.count) == ((64, 48), 12.5, 3)
        levels = [frame.mean() for frame in reader]
    # MPEG-4 is lossy, but flat frames keep their level within a few grey levels (seen: 1).
    np.testing.assert_allclose(levels, [0, 100, 200], atol=4)


@pytest.mark.parametrize(
    ("fps", "written"),
    # 0.001, 0.01 and 0.1: what MPEG-4's time base of at most 65535 can tell.
    [(119.953, 119.95), (239.7612, 239.76), (700.17, 700.2), (30000 / 1001, 29.97), (65.5351, 65.535), (12.5, 12.5)],
)
def test_any_rate_is_written_as_near_as_the_codec_can(tmp_path: Path, fps: float, written: float) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    with VideoReader(tmp_path / "clip.mp4") as reader:
        assert reader.fps == pytest.approx(written, rel=1e-9)
        assert len(list(reader)) == 3


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9])
def test_impossible_rates(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InputError, match="fps must be"):
        VideoWriter(tmp_path / "clip.mp4", fps)


@pytest.mark.parametrize(("width", "height"), [(63, 65), (64, 65), (63, 64)])
def test_odd_sizes_are_padded_and_lose_nothing(tmp_path: Path, width: int, height: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 2 :, width // 2 :] = 200
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        writer.write(picture)
    with VideoReader(tmp_path / "clip.mp4") as reader:
        (frame,) = reader
    assert frame.shape == (height + height % 2, width + width % 2, 3)
    # Repeated lines are as bright as their neighbours; lossy: a few grey levels (seen: 0).
    np.testing.assert_allclose(frame[-3:, -3:].astype(int), 200, atol=8)


def test_unusable_videos(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match=r"bad\.mp4 is not a video"):
        VideoReader(tmp_path / "bad.mp4")
    with pytest.raises(InputError, match=r"\.avi"):
        VideoWriter(tmp_path / "a.avi", 25)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"), VideoWriter(tmp_path / "file" / "a.mp4", 25) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))


# Boxes


def source(tmp_path: Path, data) -> BoxSource:
    path = tmp_path / "boxes.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return BoxSource.from_options([str(path)], whole_image=False)


def boxes_of(boxes: BoxSource, name: str = "val/shirt.jpg") -> list:
    return boxes.for_photo(Path("photos") / name, PICTURE).tolist()


def test_boxes_from_the_command_line() -> None:
    boxes = BoxSource.from_options(["1,2,3,4", "-5, 6.5,7,8"], whole_image=False)
    assert boxes_of(boxes) == [[1, 2, 3, 4], [-5, 6.5, 7, 8]]
    assert boxes.for_frame(9, PICTURE).tolist() == boxes_of(boxes)
    whole = BoxSource.from_options([], whole_image=True)
    assert boxes_of(whole) == whole.for_frame(0, PICTURE).tolist() == [[0, 0, 31, 23]]


@pytest.mark.parametrize(
    ("options", "whole", "message"),
    [
        ([], False, "--boxes.*--whole-image"),
        (["1,2,3,4"], True, "exclude each other"),
        (["1,2,3"], False, "neither four numbers"),
        (["1,2,3,4", "boxes.json"], False, r"got 'boxes\.json'"),
        (["missing.json"], False, "No such file"),
    ],
)
def test_unusable_box_options(options: list[str], whole: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BoxSource.from_options(options, whole_image=whole)


def test_forms_of_box_files(tmp_path: Path) -> None:
    expected = [[1, 2, 31, 42], [5, 6, 7, 8]]
    xywh = [[1, 2, 30, 40], [5, 6, 2, 2]]
    coco = {
        "images": [{"id": 9, "file_name": "val/shirt.jpg"}, {"id": 4, "file_name": "val/none.jpg"}],
        "annotations": [{"image_id": 9, "bbox": box} for box in xywh],
    }
    assert boxes_of(source(tmp_path, expected)) == expected
    assert boxes_of(source(tmp_path, {"shirt.jpg": expected})) == expected
    assert boxes_of(source(tmp_path, coco)) == expected
    assert boxes_of(source(tmp_path, coco), "none.jpg") == []
    for key in ("file_name", "image_id"):
        assert boxes_of(source(tmp_path, [{key: "shirt.jpg", "bbox": box} for box in xywh])) == expected
    video = source(tmp_path, {"0": expected[:1], "2": expected})
    assert [len(video.for_frame(i, PICTURE)) for i in range(4)] == [1, 0, 2, 0]


def test_same_name_in_two_folders(tmp_path: Path) -> None:
    boxes = source(tmp_path, {"a/shirt.jpg": [[1, 1, 2, 2]], "b/shirt.jpg": []})
    assert boxes_of(boxes, "a/shirt.jpg") == [[1, 1, 2, 2]]
    with pytest.raises(InputError, match="several photos"):
        boxes_of(boxes, "c/shirt.jpg")


def test_photo_that_is_not_mentioned(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not mention shirt\.jpg"):
        boxes_of(source(tmp_path, {"skirt.jpg": []}))


def test_photo_names_do_not_serve_a_video(tmp_path: Path) -> None:
    for data in ({"shirt.jpg": []}, {}, {"0": [], "shirt.jpg": []}, {"0": [], "": []}, {"-1": []}):
        with pytest.raises(InputError, match="frame numbers"):
            source(tmp_path, data).check_video()
    with pytest.raises(InputError, match="frame 7 twice"):
        source(tmp_path, {"7": [], "007": []}).check_video()
    source(tmp_path, {"3": []}).check_video()
    source(tmp_path, []).check_video()


def test_frame_numbers_may_have_leading_zeros_and_the_excess_is_known(tmp_path: Path) -> None:
    video = source(tmp_path, {"0000": [[1, 2, 3, 4]], "0012": [], "5": []})
    assert len(video.for_frame(0, PICTURE)) == 1
    assert video.frames_from(5) == [5, 12]
    assert video.frames_from(13) == source(tmp_path, [[1, 2, 3, 4]]).frames_from(0) == []


@pytest.mark.parametrize(
    "data",
    [
        "{",
        "3",
        [1, 2, 3, 4],
        [[1, 2, 3]],
        [["1", 2, 3, 4]],
        {"a.jpg": [1, 2, 3, 4]},
        [{"image_id": 3, "bbox": [1, 2, 3, 4]}],
        [{"file_name": "a.jpg"}],
        {"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]},
        {"images": [{"id": 1}], "annotations": []},
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": None}]},
    ],
)
def test_unusable_box_files(tmp_path: Path, data) -> None:
    with pytest.raises(InputError, match=r"boxes\.json"):
        source(tmp_path, data)
