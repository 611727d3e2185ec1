"""What a source is, and what the readers make of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from stream_fakes import FakePredictor, gray_level, numbered

from edgepose.errors import InputError, MissingDependencyError, SourceError
from edgepose.media import VideoReader
from edgepose.sources import Captured, find_source, split_sources
from edgepose.sources import gstreamer as gstreamer_module
from edgepose.sources.gstreamer import GStreamerReader, is_live_pipeline, with_appsink
from edgepose.sources.opencv import missing_frames
from edgepose.stream import Stream
from edgepose.stream_options import StreamOptions

BACKENDS = ["opencv", pytest.param("pyav", marks=pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("av") is None, reason="PyAV is not installed"))]  # fmt: skip


def read_all(source: Any, **options: Any) -> tuple[list[Captured], str | None]:
    reader = find_source(source, StreamOptions(**options)).open()
    try:
        return list(iter(reader.read, None)), reader.note
    finally:
        reader.close()


# --- what it is ---


@pytest.mark.parametrize(
    ("source", "kind", "live", "name"),
    [
        (0, "camera", True, "camera 0"),
        (np.int64(2), "camera", True, "camera 2"),
        (" 1 ", "camera", True, "camera 1"),
        ("/dev/video3", "camera", True, "camera 3"),
        ("rtsp://me:secret@camera:554/1", "url", True, "rtsp://***@camera:554/1"),
        ("HTTP://camera/mjpg", "url", True, "HTTP://camera/mjpg"),
        ("v4l2src ! videoconvert", "gstreamer", True, "v4l2src ! videoconvert"),
        ("filesrc location=a.mp4 ! decodebin", "gstreamer", False, "filesrc location=a.mp4 ! decodebin"),
    ],
)
def test_texts_and_numbers(source: Any, kind: str, live: bool, name: str) -> None:
    found = find_source(source, StreamOptions())
    assert (found.kind, found.live, found.name) == (kind, live, name)
    assert found.reopens == live


def test_paths(clip: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), numbered(1))
    assert find_source(clip, StreamOptions()).kind == "file"
    assert find_source(clip.as_uri(), StreamOptions()).kind == "file"
    assert find_source(tmp_path, StreamOptions()).kind == "folder"
    assert find_source(str(tmp_path / "a.png"), StreamOptions()).kind == "photo"
    (tmp_path / "0").mkdir()  # a number is a camera; a path says so
    assert find_source("0", StreamOptions()).kind == "camera"
    with pytest.raises(InputError, match="no photos"):
        find_source(tmp_path / "0", StreamOptions())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such.mp4", "no file or folder no_such.mp4"),
        ("gopher://x/y", "gopher"),
        (-1, "got int"),
        (True, "got bool"),
        (1.5, "got float"),
        (None, "got NoneType"),
        (np.zeros((4, 4, 3), np.uint8), "predict"),
    ],
)
def test_what_is_none_says_so(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_source(source, StreamOptions())


def test_a_folder_without_photos_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no photos"):
        Stream(FakePredictor(), tmp_path)


@pytest.mark.parametrize(("source", "backend"), [(0, "pyav"), ([], "opencv"), ("a ! b", "nvdec")])
def test_a_backend_that_does_not_read_it_is_an_error(source: Any, backend: Any) -> None:
    with pytest.raises(InputError, match="reads files and URLs"):
        find_source(source, StreamOptions(backend=backend))


def test_one_source_or_several(clip: Path) -> None:
    frame = numbered(0)
    assert split_sources([0, str(clip)]) == [0, str(clip)]
    assert len(split_sources((frame, 1.5))) == 1  # (frame, seconds) is not two sources
    assert len(split_sources([(frame, 0.0), (frame, 0.1)])) == 1
    assert len(split_sources([[frame], [frame]])) == 2
    with pytest.raises(InputError, match="empty"):
        split_sources([])


# --- files ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_video_gives_its_frames_and_times(clip: Path, backend: Any) -> None:
    captured, note = read_all(clip, backend=backend)
    # Levels, 12 apart: the codec's loss; seen: 4
    assert np.abs(np.array([gray_level(item.frame) for item in captured]) - 12 * np.arange(20)).max() <= 5
    assert [item.time for item in captured] == pytest.approx(np.arange(20) / 10)
    assert captured[0].frame.shape == (48, 64, 3)
    assert note is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_b_frames_come_in_order_and_exactly_as_opencv_reads_them(
    backend: Any, ffmpeg: Callable[..., None], tmp_path: Path
) -> None:
    video = tmp_path / "b.mp4"
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.8", "-c:v", "libx264", "-bf", "3", "-pix_fmt", "yuv420p", video
    )
    captured, _ = read_all(video, backend=backend)
    assert [item.time for item in captured] == pytest.approx(np.arange(20) / 25)
    with VideoReader(video) as reader:
        for item, frame in zip(captured, reader, strict=True):
            assert np.array_equal(item.frame, frame)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rotated_video_is_upright(backend: Any, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    lying, upright = tmp_path / "lying.mp4", tmp_path / "upright.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=1", "-c:v", "libx264", "-pix_fmt", "yuv420p", lying)
    ffmpeg("-i", lying, "-c", "copy", "-metadata:s:v", "rotate=90", upright)
    plain, _ = read_all(lying, backend=backend)
    turned, _ = read_all(upright, backend=backend)
    if turned[0].frame.shape == plain[0].frame.shape:
        pytest.skip("this ffmpeg does not write a display matrix with -metadata rotate")
    raw = tmp_path / "frames.raw"
    ffmpeg("-i", upright, "-pix_fmt", "bgr24", "-f", "rawvideo", raw)
    expected = np.fromfile(raw, np.uint8).reshape(-1, 64, 48, 3)  # ffmpeg turns it by itself
    # Levels; a build that turns before it interpolates the chroma may differ. Seen: 0; turned the wrong way: 100
    assert np.abs(turned[0].frame.astype(int) - expected[0]).mean() < 5
    assert any(np.array_equal(turned[0].frame, np.rot90(plain[0].frame, turns)) for turns in (1, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_variable_rate_keeps_its_times(backend: Any, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    video = tmp_path / "vfr.mp4"
    keep = "select='lt(n,5)+not(mod(n,4))'"
    arguments = ("-vf", keep, "-vsync", "vfr", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1", *arguments, video)
    captured, note = read_all(video, backend=backend)
    numbers = [number for number in range(25) if number < 5 or number % 4 == 0]
    assert [item.time for item in captured] == pytest.approx(np.array(numbers) / 25, abs=1e-3)  # the file's time base
    assert note is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_ten_bits_and_odd_sides(backend: Any, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    video = tmp_path / "odd.mp4"
    source = "color=c=0x4080c0:s=64x48:r=5:d=1,format=yuv444p10le,scale=65:49"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-pix_fmt", "yuv444p10le", video)
    captured, _ = read_all(video, backend=backend)
    assert len(captured) == 5
    assert captured[0].frame.shape == (49, 65, 3)
    # BGR of 4080c0 after 10-bit YCbCr and the codec; seen: 1 level
    assert np.abs(captured[0].frame.reshape(-1, 3).mean(0) - (0xC0, 0x80, 0x40)).max() < 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_that_is_cut_off_gives_what_is_there_and_says_so(
    backend: Any, suffix: str, ffmpeg: Callable[..., None], tmp_path: Path
) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    codec = ("-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p")
    front = ("-movflags", "faststart") if suffix == "mp4" else ()
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=2", *codec, *front, whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with Stream(FakePredictor(), cut, tracking=False, options=StreamOptions(backend=backend)) as stream:
        count = len(list(stream))
    assert 10 < count < 40
    source = stream.stats.sources[0]
    assert source.state == "ended"
    assert f"after {count} of 50 frames" in str(source.last_error)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_without_video_says_so(backend: Any, ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", "-c:a", "aac", sound)
    with pytest.raises(SourceError, match="no video stream"):
        read_all(sound, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_file_says_so(backend: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(SourceError, match=r"empty\.mp4"):
        read_all(tmp_path / "empty.mp4", backend=backend)


# --- where PyAV is better ---


def test_pyav_decodes_what_is_interlaced(ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("av")
    video, raw = tmp_path / "interlaced.mp4", tmp_path / "frames.raw"
    codec = ("-c:v", "libx264", "-flags", "+ildct+ilme", "-x264opts", "tff=1", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x128:r=25:d=0.4", *codec, video)
    ffmpeg("-i", video, "-pix_fmt", "bgr24", "-f", "rawvideo", raw)
    expected = np.fromfile(raw, np.uint8).reshape(-1, 128, 160, 3)
    captured, _ = read_all(video, backend="pyav")
    errors = [np.abs(item.frame.astype(int) - frame).mean() for item, frame in zip(captured, expected, strict=True)]
    assert max(errors) < 15  # levels: two ways to interpolate interlaced chroma; seen: 4.1. OpenCV 5.0: 127


def test_pyav_keeps_sizes_and_times_that_begin_anew(ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("av")
    joined = tmp_path / "joined.ts"
    for size in ("64x48", "96x64"):
        part = tmp_path / f"{size}.ts"
        ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d=0.4", "-c:v", "libx264", "-pix_fmt", "yuv420p", part)
        with joined.open("ab") as file:
            file.write(part.read_bytes())
    items = list(Stream(FakePredictor(), joined, tracking=False, options=StreamOptions(backend="pyav")))
    assert [item.frame.shape[:2] for item in items] == [(48, 64)] * 10 + [(64, 96)] * 10
    assert np.diff([item.time for item in items]) == pytest.approx(np.full(19, 0.04), abs=1e-3)


def test_pyav_skips_damaged_packets_and_counts_them(ffmpeg: Callable[..., None], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    video = tmp_path / "damaged.mp4"
    codec = ("-c:v", "libx264", "-g", "5", "-bf", "0", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x120:r=25:d=2", *codec, video)
    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos is not None]
    for number in (12, 33):
        data[places[number] : places[number] + 4] = b"\x7f" * 4  # the length of its first unit: more than the file
    video.write_bytes(data)
    captured, note = read_all(video, backend="pyav")
    assert [round(item.time * 25) for item in captured] == [n for n in range(50) if n not in (12, 33)]
    assert note == "2 damaged packets were skipped"


def test_a_missing_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"edgepose\[av\]"):
        find_source(clip, StreamOptions(backend="pyav")).open()


def test_a_few_frames_less_than_the_header_says_are_let_pass() -> None:
    assert missing_frames(98, 100) is None
    assert missing_frames(0, 0) is None
    assert "after 50 of 100" in str(missing_frames(50, 100))


# --- photos ---


def test_a_photo_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), numbered(number))
    (tmp_path / "1.png").write_bytes(b"broken")
    with Stream(FakePredictor(), tmp_path) as stream:
        assert [item.time for item in stream] == [0, 0.08]
    assert "1 of 3 photos were left out" in str(stream.stats.last_error)
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="not a picture"):
        list(Stream(FakePredictor(), tmp_path))


# --- GStreamer ---


def test_live_pipelines_are_told_from_files() -> None:
    assert is_live_pipeline("v4l2src device=/dev/video0 ! videoconvert")
    assert is_live_pipeline("rtspsrc location=rtsp://x ! decodebin")
    assert is_live_pipeline("videotestsrc is-live=true ! videoconvert")
    assert not is_live_pipeline("videotestsrc ! x is-live=true")
    assert not is_live_pipeline("filesrc location=a.mp4 ! decodebin")
    assert not is_live_pipeline("uridecodebin uri=file:///a.mp4 ! videoconvert")


def test_opencv_gets_a_pipeline_with_an_appsink() -> None:
    assert with_appsink("v4l2src", live=True).endswith("! appsink sync=false drop=true max-buffers=1")
    assert with_appsink("v4l2src ! appsink name=mine", live=True) == "v4l2src ! appsink name=mine"


@pytest.fixture
def gst() -> None:
    if shutil.which("gst-launch-1.0") is None:
        pytest.skip("gst-launch-1.0 is not installed")


@pytest.mark.usefixtures("gst")
@pytest.mark.parametrize("size", [(64, 48), (36, 26), (33, 25)])
def test_a_pipeline_through_gst_launch(size: tuple[int, int]) -> None:
    """Sides that GStreamer pads (36 in chroma, 33 in luma) and odd ones."""
    caps = f"video/x-raw,width={size[0]},height={size[1]},framerate=20/1"
    reader = GStreamerReader(f"videotestsrc num-buffers=5 pattern=red ! {caps} ! appsink", live=False)
    captured = list(iter(reader.read, None))
    reader.close()
    assert [item.time for item in captured] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert captured[0].frame.shape == (size[1], size[0], 3)
    # Pure red through limited-range YCbCr; seen: 1 level, in every pixel
    assert np.abs(captured[0].frame.astype(int) - (0, 0, 255)).max() <= 3


@pytest.mark.usefixtures("gst")
def test_a_wrong_pipeline_says_what_gstreamer_says() -> None:
    reader = GStreamerReader("videotestsrc ! nosuchelement", live=False)
    with pytest.raises(SourceError, match="nosuchelement"):
        reader.read()
    reader.close()


@pytest.mark.usefixtures("gst")
def test_cancel_ends_a_blocked_read_and_the_process() -> None:
    import threading

    # A valve that is shut: the pipeline runs, and gives nothing.
    reader = GStreamerReader("videotestsrc is-live=true ! valve drop=true", live=True)
    ended = threading.Event()

    def read() -> None:
        try:
            reader.read()
        except SourceError:
            ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert not ended.wait(0.3)
    reader.cancel()
    assert ended.wait(3)
    thread.join(3)
    reader.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(reader._process.pid, 0)  # it was waited for: no zombie


def test_without_gst_launch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer_module.shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"apt install gstreamer1\.0-tools"):
        GStreamerReader("videotestsrc", live=False)
    with pytest.raises(MissingDependencyError):  # and it reaches the consumer
        list(Stream(FakePredictor(), "videotestsrc ! videoconvert", tracking=False))


# --- callables ---


def test_a_function_gives_a_frame_at_each_call_until_none() -> None:
    values: Iterator[Any] = iter([numbered(0), (numbered(1), 1e9), None, numbered(2)])
    items = list(Stream(FakePredictor(), lambda: next(values), tracking=False, policy="every"))
    assert [item.index for item in items] == [0, 1]
    assert items[1].time == 1e9


def test_the_sources_import_no_optional_package() -> None:
    code = "import sys, edgepose.stream; print({'av', 'cupy', 'PyNvVideoCodec', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
