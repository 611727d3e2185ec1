"""Recordings: their time, their parts, and what is left when something goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stream_items import grey_frame, make_item

from edgepose import frame_clock, record
from edgepose.errors import EdgePoseError, InputError
from edgepose.frame_clock import FrameClock
from edgepose.media import VideoReader
from edgepose.record import JsonLines, VideoRecorder, check_output, host_frame


def record_all(path: Path, items: list, *, fps: float | None = None) -> record.VideoRecord:
    recorder = VideoRecorder(path, fps=fps, wait=True, min_score=2.0)  # no landmark is that sure: plain frames
    for item in items:
        recorder.add(item.frame, item.result, item.time)
    return recorder.close()


def levels(path: Path) -> list[int]:
    """The middle pixel of each frame, to the nearest 20: the codec is lossy, by up to 3 levels here."""
    with VideoReader(path) as reader:
        return [round(int(frame[110, 150, 0]) / 20) * 20 for frame in reader]


# The clock


def test_frames_in_time_are_written_once_each() -> None:
    clock = FrameClock(25)
    assert [clock.copies(1000 + i / 25) for i in range(100)] == [1] * 100


def test_jitter_neither_repeats_nor_drops() -> None:
    rng = np.random.default_rng(0)
    clock = FrameClock(25)
    assert {clock.copies(i / 25 + rng.uniform(-0.03, 0.03)) for i in range(500)} == {1}


def test_missing_frames_are_filled_so_that_the_video_lasts_as_long_as_the_stream() -> None:
    clock = FrameClock(25)
    times = [i / 25 for i in range(200) if not 50 <= i < 80]
    copies = [clock.copies(time) for time in times]
    assert copies[50] == 31
    assert sum(copies) == 200  # 8 s at 25 a second
    assert sum(count != 1 for count in copies) == 1


@pytest.mark.parametrize("rate", [7.0, 12.5, 31.0, 60.0])
def test_any_rate_lasts_as_long_as_the_stream(rate: float) -> None:
    clock = FrameClock(25)
    total = sum(clock.copies(i / rate) for i in range(round(10 * rate)))
    assert abs(total - 250) <= 4  # 10 s; SKEW frames, and one interval of the slowest source (3.6 frames, worst: 3)


def test_a_clock_that_was_set_back_and_a_long_pause_begin_a_new_file() -> None:
    clock = FrameClock(25)
    assert clock.copies(10.0) == 1
    assert clock.copies(9.0 - 0.01) is None
    assert clock.copies(10.0 + frame_clock.MAX_GAP) > 1
    assert clock.copies(10.0 + 2 * frame_clock.MAX_GAP + 0.01) is None


# Videos


def test_a_recording_has_the_rate_of_the_time_stamps(tmp_path: Path) -> None:
    items = [make_item(i, frame=grey_frame(20 * i), time=100 + i / 12.5) for i in range(12)]
    done = record_all(tmp_path / "new" / "out.mp4", items)
    assert (done.fps, done.frames, done.repeated, done.left_out) == (12.5, 12, 0, 0)
    with VideoReader(tmp_path / "new" / "out.mp4") as reader:
        assert (reader.fps, reader.count, reader.size) == (12.5, 12, (160, 120))
    assert levels(done.paths[0]) == [20 * i for i in range(12)]


@pytest.mark.parametrize(
    ("interval", "rate"),
    [(1001 / 30000, 29.97), (1 / 30.1, 30.0), (1 / 5, 5.0), (1 / 12.3, 12.3), (3.0, 30.0), (1e-6, 30.0)],
)
def test_measured_rates(tmp_path: Path, interval: float, rate: float) -> None:
    items = [make_item(i, time=i * interval) for i in range(record.MEASURED)]
    assert record_all(tmp_path / "out.mp4", items).fps == rate


def test_uneven_frames_get_30_a_second_and_play_in_real_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.uniform(0.03, 0.3, 40))
    done = record_all(tmp_path / "out.mp4", [make_item(i, time=float(time)) for i, time in enumerate(times)])
    assert (done.fps, done.frames, done.left_out) == (30.0, 40, 0)
    with VideoReader(done.paths[0]) as reader:
        # The first frame's time to the last one's, and that frame itself; up to SKEW frames behind.
        assert abs(reader.count - (1 + 30 * (times[-1] - times[0]))) <= frame_clock.SKEW


def test_what_fills_a_gap_is_the_frame_before_it(tmp_path: Path) -> None:
    items = [make_item(i, frame=grey_frame(100 * (i >= 3)), time=i / 10 + 0.5 * (i >= 3)) for i in range(5)]
    done = record_all(tmp_path / "out.mp4", items, fps=10)
    assert levels(done.paths[0]) == [0] * 8 + [100] * 2
    assert (done.frames, done.repeated) == (5, 5)


def test_another_size_and_a_long_pause_begin_new_files(tmp_path: Path) -> None:
    sizes = [(160, 120)] * 3 + [(161, 121)] * 2 + [(160, 120)] * 2
    pauses = [0, 0, 0, 0, 0, 0, 60]
    items = [make_item(i, frame=grey_frame(0, size), time=i / 10 + pauses[i]) for i, size in enumerate(sizes)]
    done = record_all(tmp_path / "out.mp4", items, fps=10)
    assert [path.name for path in done.paths] == ["out.mp4", "out-part2.mp4", "out-part3.mp4", "out-part4.mp4"]
    counts = []
    for path in done.paths:
        with VideoReader(path) as reader:
            counts.append((reader.count, reader.size))
    assert counts == [(3, (160, 120)), (2, (162, 122)), (1, (160, 120)), (1, (160, 120))]  # MPEG-4 has even sides


def test_results_are_drawn(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path / "out.mp4", fps=10, wait=True)
    item = make_item()
    recorder.add(item.frame, item.result, item.time)
    recorder.close()
    with VideoReader(tmp_path / "out.mp4") as reader:
        (frame,) = reader
    assert frame[80, 60].max() > 150  # a landmark on a black frame
    assert item.frame.max() == 0


def test_a_live_recording_leaves_out_what_it_cannot_keep_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = record.VideoWriter.write

    def slow_write(self: record.VideoWriter, frame: np.ndarray) -> None:
        assert go.wait(10)
        write(self, frame)

    monkeypatch.setattr(record.VideoWriter, "write", slow_write)
    recorder = VideoRecorder(tmp_path / "out.mp4", fps=10, wait=False)
    for i in range(50):  # would block for ever if it waited
        item = make_item(i)
        recorder.add(item.frame, item.result, i / 10)
    go.set()
    done = recorder.close()
    assert done.frames + done.left_out == 50
    assert record.QUEUE <= done.frames <= record.QUEUE + 1


def test_a_recording_that_failed_says_so_and_blocks_nobody(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path / "out.mp4", fps=10, wait=True)
    item = make_item()
    other = grey_frame(0, (80, 60))  # not the frame of this result

    def add_many() -> None:
        for _ in range(10 * record.QUEUE):
            recorder.add(other, item.result, 0.0)

    with pytest.raises(InputError, match="belongs to a frame of 160 x 120"):
        add_many()
    with pytest.raises(InputError, match="belongs to"):
        recorder.close()
    with pytest.raises(InputError, match="belongs to"):
        recorder.close()


def test_a_file_that_is_not_whole_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(record.VideoWriter):
        def write(self, frame: np.ndarray) -> None:
            if not getattr(self, "full", False):
                super().write(frame)
            self.full = True

    monkeypatch.setattr(record, "VideoWriter", FullDisk)
    with pytest.raises(EdgePoseError, match="3 frames were written, 1 can be read"):
        record_all(tmp_path / "out.mp4", [make_item(i, time=i / 10) for i in range(3)], fps=10)


def test_another_suffix_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written as \.mp4"):
        VideoRecorder(tmp_path / "out.webm", fps=None, wait=True)


def test_host_frame() -> None:
    class OnDevice:
        def get(self) -> np.ndarray:
            return grey_frame(3)

    frame = grey_frame(3)
    assert host_frame(frame) is frame
    np.testing.assert_array_equal(host_frame(OnDevice()), frame)


# JSON Lines


def test_a_line_has_what_the_schema_says(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "out.jsonl") as lines:
        lines.write(make_item(12, source=1, objects=2), name="camera 1", dropped=3)
        (text,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()  # before it is closed
    line = json.loads(text)
    objects = line.pop("objects")
    assert line == {
        **{"schema": 1, "source": 1, "name": "camera 1", "frame": 12, "time": 0.48, "latency_ms": 18.5},
        "timings_ms": {"crop": 0.4, "network": 9.5, "decode": 0.25, "total": 16.5, "detect": 6.0},
        **{"dropped": 3, "model": "painter", "frame_size": [160, 120]},
    }
    assert [entry["track_id"] for entry in objects] == [7, 8]
    assert (objects[0]["category"], objects[0]["box_score"], objects[0]["box"]) == ("blob", 0.75, [10, 10, 110, 90])
    assert objects[0]["keypoints"]["blue"] == {"x": 60.0, "y": 80.0, "score": 0.9}


def test_lines_are_valid_json_whatever_the_numbers(tmp_path: Path) -> None:
    item = make_item()
    keypoints = np.full((1, 3, 2), np.nan, np.float32)
    with JsonLines(tmp_path / "out.jsonl") as lines:
        lines.write(
            replace(item, result=replace(item.result, keypoints=keypoints), latency=np.inf), name="ü", dropped=0
        )

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"), parse_constant=refuse)
    assert (line["latency_ms"], line["objects"][0]["keypoints"]["red"]["x"], line["name"]) == (None, None, "ü")


def test_jsonl_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(InputError, match="--overwrite"):
        JsonLines(path)
    assert path.read_text() == "precious"
    JsonLines(path, overwrite=True).close()
    assert path.read_text() == ""
    with pytest.raises(InputError, match="cannot be written"):
        JsonLines(tmp_path / "none" / "out.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error() -> None:
    lines = JsonLines(Path("/dev/full"), overwrite=True)
    with pytest.raises(EdgePoseError, match="line 1 cannot be written"):
        lines.write(make_item(), name="camera", dropped=0)
    lines.close()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_every_line_outlives_a_killed_process(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from stream_items import make_item
        from edgepose.record import JsonLines
        lines = JsonLines(Path({str(tmp_path / "out.jsonl")!r}))
        for i in range(5):
            lines.write(make_item(i), name="camera", dropped=0)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    text = (tmp_path / "out.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["frame"] for line in text.splitlines()] == list(range(5))


# What may be written


def test_check_output(tmp_path: Path) -> None:
    source, out = tmp_path / "clip.mp4", tmp_path / "new" / "out.mp4"
    source.write_bytes(b"video")
    check_output(out, [str(source), "0", "rtsp://gate/1"], overwrite=False)
    assert list(out.parent.iterdir()) == []  # the folder was made, nothing in it
    out.write_bytes(b"old")
    with pytest.raises(InputError, match="pass --overwrite"):
        check_output(out, [], overwrite=False)
    check_output(out, [], overwrite=True)
    out.rename(out.with_name("out-part2.mp4"))
    with pytest.raises(InputError, match=r"out-part2\.mp4 is there already"):
        check_output(out, [], overwrite=False)


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    source, link = tmp_path / "clip.mp4", tmp_path / "link.mp4"
    source.write_bytes(b"video")
    link.symlink_to(source)
    for path in (source, link):
        with pytest.raises(InputError, match="what the stream reads"):
            check_output(path, ["0", str(source)], overwrite=True)


def test_a_folder_in_the_way_and_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(InputError, match="not a file"):
        check_output(tmp_path / "out.mp4", [], overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        check_output(tmp_path / "file" / "out.mp4", [], overwrite=True)


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "out1-part2.mp4").write_text("")
    check_output(tmp_path / "out[1].mp4", [], overwrite=False)
    (tmp_path / "out[1]-part2.mp4").write_text("")
    with pytest.raises(InputError, match="there already"):
        check_output(tmp_path / "out[1].mp4", [], overwrite=False)


def test_an_interrupt_at_any_call_of_add_leaves_a_recording_that_closes(tmp_path: Path) -> None:
    """As Ctrl+C may come. With queue.Queue it can be left locked, and close() waits for ever."""
    for moment in range(1, 13):
        calls = 0

        def interrupt(frame: object, event: str, _: object) -> None:
            nonlocal calls
            calls += event in ("return", "c_return")
            if calls == moment:  # noqa: B023
                sys.setprofile(None)
                raise KeyboardInterrupt

        recorder = VideoRecorder(tmp_path / f"{moment}.mp4", fps=25, wait=True)
        item = make_item()
        with contextlib.suppress(KeyboardInterrupt):
            sys.setprofile(interrupt)
            try:
                for _ in range(3):
                    recorder.add(item.frame, item.result, item.time)
            finally:
                sys.setprofile(None)
        closer = threading.Thread(target=recorder.close, daemon=True)
        closer.start()
        closer.join(10)
        assert not closer.is_alive(), f"it waits after call {moment}"
