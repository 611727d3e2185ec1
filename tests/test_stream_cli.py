"""`edgepose stream`, run as a user runs it; the landmarks are those of painter.py."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from painter import blobs, painter_spec, write_painter
from rich.console import Console
from stream_items import make_source, make_stats
from typer.testing import CliRunner, Result

from edgepose import Predictor
from edgepose.cli import app
from edgepose.media import VideoReader, VideoWriter
from edgepose.record import VideoRecord
from edgepose.stream_monitor import StreamMonitor
from edgepose.stream_terminal import print_summary, show_progress

CENTRES = np.array([[50.0, 40.0], [110.0, 45.0], [80.0, 95.0]])
PHOTO = blobs((160, 120), CENTRES, sigma=9)
BOX = "30,15,130,115"
WITHIN = 30.0  # s; bounds every wait, none lasts that long unless something is broken


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["stream", *map(str, arguments)])


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgepose.cli", "stream", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def write_clip(path: Path, frames: int, fps: float = 10) -> Path:
    with VideoWriter(path, fps) as writer:
        for _ in range(frames):
            writer.write(PHOTO)
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + WITHIN
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painter(tmp_path_factory.mktemp("model") / "painter.onnx", painter_spec())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 12)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute, for --policy newest, which plays it in real time: a source that does not end by itself."""
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", 600)


# What comes out


def test_a_video_to_jsonl_and_video(model: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.mp4"
    result = run(clip, "-m", model, "--boxes", BOX, "--no-smooth", "--save", out, "--jsonl", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    lines = read_lines(tmp_path / "out.jsonl")
    assert [(line["source"], line["frame"], line["dropped"]) for line in lines] == [(0, i, 0) for i in range(12)]
    np.testing.assert_allclose([line["time"] for line in lines], np.arange(12) / 10, atol=1e-3)  # of the container
    points = lines[5]["objects"][0]["keypoints"]
    found = [[points[name]["x"], points[name]["y"]] for name in ("red", "green", "blue")]
    # 5 px a cell; video compression moves a blob's centre by up to half a pixel.
    np.testing.assert_allclose(found, CENTRES, atol=1)
    with VideoReader(out) as reader:
        assert (reader.fps, reader.size, len(list(reader))) == (10, (160, 120), 12)
    assert "clip.mp4: ended, 12 frames" in result.stdout
    assert "by stage, median ms: queue" in result.stdout
    assert f"video {out}: 10 frames a second\n" in result.stdout
    assert f"results {tmp_path / 'out.jsonl'}: 12 lines\n" in result.stdout


def test_several_sources_share_the_jsonl_and_have_a_video_each(model: Path, clip: Path, tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other.mp4", 5)
    result = run(
        *(clip, other, "-m", model, "--whole-image"),
        *("--save", tmp_path / "out.mp4", "--jsonl", tmp_path / "out.jsonl"),
    )
    assert result.exit_code == 0, result.output
    lines = read_lines(tmp_path / "out.jsonl")
    for number, count in enumerate((12, 5)):
        assert [line["frame"] for line in lines if line["source"] == number] == list(range(count))
        with VideoReader(tmp_path / f"out-{number}.mp4") as reader:
            assert len(list(reader)) == count
    assert {line["name"] for line in lines} == {str(clip), str(other)}
    assert lines[0]["objects"][0]["box"] == [0, 0, 159, 119]


def test_max_frames(model: Path, clip: Path, tmp_path: Path) -> None:
    result = run(clip, "-m", model, "--boxes", BOX, "--max-frames", 3, "--jsonl", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    assert len(read_lines(tmp_path / "out.jsonl")) == 3
    assert "stopped, 3 frames" in result.stdout


def test_jsonl_to_standard_output_is_all_that_is_there(model: Path, clip: Path) -> None:
    result = run(clip, "-m", model, "--boxes", BOX, "--jsonl", "-")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["frame"] for line in result.stdout.splitlines()] == list(range(12))
    assert "12 frames" in result.stderr


def test_a_folder_of_photos(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), PHOTO)
    result = run(folder, "-m", model, "--boxes", BOX, "--jsonl", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    assert len(read_lines(tmp_path / "out.jsonl")) == 3


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--boxes", "1,2,3"], "x1,y1,x2,y2"),
        (["--boxes", BOX, "--whole-image"], "exclude each other"),
        (["--boxes", BOX, "--every", "5"], "--every is how often the detector runs"),
        (["--boxes", BOX, "--hold"], "pass --view too"),
        (["--boxes", BOX, "--save", "out.webm"], "written as .mp4"),
        ([], "where are the objects?"),
    ],
)
def test_options_that_make_no_sense(model: Path, clip: Path, arguments: list[str], message: str) -> None:
    result = run(clip, "-m", model, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_boxes_by_frame_are_refused(model: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"0": [[30, 15, 130, 115]]}))
    result = run(clip, "-m", model, "--boxes", tmp_path / "boxes.json")
    assert result.exit_code == 1
    assert "use edgepose predict" in result.stderr


def test_nothing_is_overwritten_unasked_and_no_input_ever(model: Path, clip: Path, tmp_path: Path) -> None:
    for option, name in (("--save", "out.mp4"), ("--jsonl", "out.jsonl")):
        path = tmp_path / name
        path.write_text("precious")
        result = run(clip, "-m", model, "--boxes", BOX, option, path)
        assert (result.exit_code, path.read_text()) == (1, "precious")
        assert "--overwrite" in result.stderr
        result = run(clip, "-m", model, "--boxes", BOX, option, path, "--overwrite", "--max-frames", 2)
        assert result.exit_code == 0, result.output
        assert path.read_bytes() != b"precious"
        before = clip.read_bytes()
        result = run(clip, "-m", model, "--boxes", BOX, option, clip, "--overwrite")
        assert (result.exit_code, clip.read_bytes() == before) == (1, True)
        assert "what the stream reads" in result.stderr


def test_one_file_for_both_outputs(model: Path, clip: Path, tmp_path: Path) -> None:
    both = tmp_path / "out.mp4"
    result = run(clip, "-m", model, "--boxes", BOX, "--save", both, "--jsonl", both)
    assert (result.exit_code, both.exists()) == (1, False)
    assert "two names" in result.stderr


def test_a_source_that_is_not_there_leaves_no_files(model: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "none.mp4", "-m", model, "--boxes", BOX, "--jsonl", tmp_path / "out.jsonl")
    assert (result.exit_code, (tmp_path / "out.jsonl").exists()) == (1, False)
    assert "none.mp4" in result.stderr


def test_a_source_that_fails_beside_one_that_works(model: Path, clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 100)
    result = run(clip, broken, "-m", model, "--boxes", BOX, "--jsonl", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert len(read_lines(tmp_path / "out.jsonl")) == 12
    assert "1 of 2 sources failed" in result.stderr
    assert "broken.mp4" in result.stderr


# How it ends


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_it_ends_cleanly_when_interrupted(model: Path, long_clip: Path, tmp_path: Path) -> None:
    """By Ctrl-C; the next test is by SIGTERM, of a process of its own."""
    jsonl, video = tmp_path / "out.jsonl", tmp_path / "out.mp4"

    def interrupt() -> None:
        until(lambda: jsonl.exists() and len(jsonl.read_bytes().splitlines()) >= 5)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    before = signal.getsignal(signal.SIGINT)
    result = run(
        *(long_clip, "-m", model, "--boxes", BOX, "--policy", "newest"),
        *("--jsonl", jsonl, "--save", video, "--view", "--port", 0),
    )
    interrupter.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.stderr
    lines = read_lines(jsonl)
    assert f"stopped, {len(lines)} frame" in result.stdout
    assert f"results {jsonl}: {len(lines)} lines" in result.stdout
    with VideoReader(video) as reader:
        assert len(list(reader)) >= 5


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_page_can_be_held_after_the_end(model: Path, clip: Path) -> None:
    process = start(clip, "-m", model, "--boxes", BOX, "--view", "--port", 0, "--hold")
    assert process.stderr is not None
    url = re.fullmatch(r"watch at (http://127\.0\.0\.1:\d+/)\n", process.stderr.readline())
    assert url is not None

    def ended() -> bool:
        with urllib.request.urlopen(f"{url[1]}stats.json", timeout=WITHIN) as answer:
            stats = json.load(answer)
        return stats["ended"] and stats["sources"][0]["delivered"] == 12

    until(ended)
    with urllib.request.urlopen(f"{url[1]}snapshot/0.jpg", timeout=WITHIN) as answer:
        assert cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_COLOR).shape == (120, 160, 3)
    until(lambda: "the page stays" in process.stderr.readline())
    process.send_signal(signal.SIGTERM)  # as service managers and containers do
    _, stderr = process.communicate(timeout=WITHIN)
    assert process.returncode == 0, stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_reader_that_has_enough_ends_it(model: Path, long_clip: Path) -> None:
    process = start(long_clip, "-m", model, "--boxes", BOX, "--jsonl", "-")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=WITHIN)
    assert process.returncode == 0, stderr
    assert "BrokenPipe" not in stderr
    assert "stopped" in stderr


def test_stop_ends_a_stream_that_waits_for_a_frame(model: Path) -> None:
    waits, go = threading.Event(), threading.Event()

    def frames() -> Iterator[np.ndarray]:
        yield PHOTO
        waits.set()
        go.wait(WITHIN)  # no frame, and no end

    with Predictor(model) as predictor, predictor.stream(frames(), boxes=[[30, 15, 130, 115]]) as stream:
        assert next(stream).index == 0
        assert waits.wait(WITHIN)
        stopper = threading.Timer(0.1, stream.stop)
        stopper.start()
        begun = time.monotonic()
        assert list(stream) == []
        assert time.monotonic() - begun < WITHIN / 2  # the source is still silent; worst seen: 0.9 s
        go.set()


def test_a_page_for_all_to_see_is_warned_of(model: Path, clip: Path) -> None:
    result = run(clip, "-m", model, "--boxes", BOX, "--view", "--host", "0.0.0.0", "--port", 0, "--max-frames", 1)
    assert result.exit_code == 0, result.output
    assert "everybody who reaches this machine can watch" in result.stderr
    result = run(clip, "-m", model, "--boxes", BOX, "--view", "--port", 0, "--max-frames", 1)
    assert "warning" not in result.stderr


# What the terminal shows


def test_states_are_told_at_once_where_there_is_no_terminal() -> None:
    console = Console(record=True, width=300, force_terminal=False, file=io.StringIO())
    stats = [make_stats(make_source(name="gate"))]
    monitor = StreamMonitor(lambda: stats[0])
    with show_progress(monitor.snapshot, console):
        until(lambda: "gate: running, 8 frames" in console.export_text(clear=False))
        stats[0] = make_stats(make_source(name="gate", state="reconnecting", last_error="no frame for 5 s"))
        until(lambda: "gate: reconnecting" in console.export_text(clear=False))
    text = console.export_text()
    assert "gate: reconnecting, 8 frames, 20.0 of 25.0 a second, 2 dropped, 1 reconnect (no frame for 5 s)" in text


def test_the_table_of_a_terminal() -> None:
    console = Console(record=True, width=120, force_terminal=True, file=io.StringIO())
    sources = [make_source(0, name="[gate]"), make_source(1, state="failed", last_error="refused")]
    monitor = StreamMonitor(lambda: make_stats(*sources))
    with show_progress(monitor.snapshot, console):
        until(lambda: "network" in console.export_text(clear=False))
    text = console.export_text()
    assert "0 [gate]" in text
    assert "1 camera 1: refused" in text
    assert "20.0" in text


def test_the_summary_names_all_files() -> None:
    console = Console(record=True, width=300, file=io.StringIO())
    monitor = StreamMonitor(lambda: make_stats(make_source(state="ended", last_error="cut off")))
    record = VideoRecord([Path("a.mp4"), Path("a-part2.mp4")], 29.97, 90, 4, 2)
    print_summary(monitor.snapshot(), {0: record}, ("a.jsonl", 92), console)
    lines = console.export_text().splitlines()
    assert lines[:2] == ["camera 0: ended, 8 frames, 2 dropped, 1 reconnect", "  cut off"]
    assert lines[3:] == [
        "video a.mp4: 29.97 frames a second (4 repeated, 2 left out)",
        "video a-part2.mp4: 29.97 frames a second (4 repeated, 2 left out)",
        "results a.jsonl: 92 lines",
    ]
