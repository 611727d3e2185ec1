"""Sources that stall, die and return: an MJPEG camera and an MPEG stream on the loopback."""

from __future__ import annotations

import importlib.util
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mjpeg_server import MjpegServer, Scene, dies_within_a_frame, garbage, plays, refuses, silent, stalls
from rtsp_server import RtspServer
from stream_fakes import FakePredictor, numbered, reader_threads, wait_for

from edgepose.errors import SourceError
from edgepose.sources import Bell, Captured, Feed, Source
from edgepose.stream import Stream
from edgepose.stream_options import ReconnectPolicy, StreamOptions

BACKENDS = [
    "opencv",
    pytest.param("pyav", marks=pytest.mark.skipif(not importlib.util.find_spec("av"), reason="PyAV is not installed")),
]
FAST = ReconnectPolicy(first_delay=0.02, max_delay=0.1, max_attempts=20)


def options(backend: Any = "auto", **more: Any) -> StreamOptions:
    settings = {"timeout": 0.4, "open_timeout": 1.0, "reconnect": FAST, **more}
    return StreamOptions(backend=backend, **settings)


def frames_through(scenes: list[Scene], backend: Any, count: int) -> tuple[list[Any], Any, int]:
    """``count`` items of a camera with these scenes, the stream's statistics, and how often it was connected to."""
    with MjpegServer(scenes) as server:
        with Stream(FakePredictor(), server.url, tracking=False, options=options(backend)) as stream:
            items = []
            end = time.monotonic() + 10
            for item in stream:
                items.append(item)
                if len(items) >= count:
                    break
                assert time.monotonic() < end
            stats = stream.stats
        return items, stats, server.connections


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([stalls(3)], id="stalls"),
        pytest.param([dies_within_a_frame(3), garbage, refuses(503)], id="dies, sends garbage, refuses"),
        pytest.param([plays(3), silent], id="ends, is silent"),
    ],
)
def test_a_camera_that_fails_and_returns(backend: Any, faults: list[Scene]) -> None:
    items, stats, connections = frames_through([*faults, plays()], backend, 12)
    source = stats.sources[0]
    assert connections == len(faults) + 1
    assert source.reconnects == len(faults)
    assert source.policy == "newest"
    assert source.state == "running"
    assert source.last_error
    indices = [item.index for item in items]
    assert indices == sorted(set(indices))
    times = [item.time for item in items]
    assert times == sorted(times)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_frame_size_may_change_when_it_returns(backend: Any) -> None:
    items, _, _ = frames_through([plays(4), plays(size=(96, 64))], backend, 12)
    assert {item.frame.shape[:2] for item in items} == {(48, 64), (64, 96)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_camera_that_never_answers_fails_with_its_reason(backend: Any) -> None:
    policy = ReconnectPolicy(first_delay=0.01, max_attempts=2)
    with MjpegServer([refuses(404)]) as server:
        stream = Stream(FakePredictor(), server.url, tracking=False, options=options(backend, reconnect=policy))
        with pytest.raises(SourceError, match="404" if backend == "pyav" else "cannot be opened"):
            list(stream)
        assert server.connections >= 3
        assert stream.stats.sources[0].state == "failed"


def test_a_stalled_camera_delays_no_other_and_hangs_no_end() -> None:
    with MjpegServer([stalls(10)]) as stalled, MjpegServer([plays()]) as sound:
        settings = options(timeout=30, open_timeout=30)  # nobody gives up on it: it hangs in FFmpeg
        with Stream(FakePredictor(), [stalled.url, sound.url], tracking=False, options=settings) as stream:
            seen: list[int] = []
            for item in stream:
                seen.append(item.source)
                if seen.count(1) == 30:
                    break
            stats = stream.stats
            begin = time.monotonic()
        assert time.monotonic() - begin < 1.5  # 0.8 s for the threads, and the rest
        assert seen.count(0) <= 10
        assert stats.latency["queue"].p95 < 500  # ms; waiting for the stalled one would take 30 s
        assert stream.stats.sources[0].hanging == 1
    wait_for(lambda: not reader_threads())  # the server is gone, so FFmpeg returns


def test_a_recording_over_http_is_read_like_a_file(clip: Any) -> None:
    import functools
    import http.server

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(clip.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/{clip.name}"
    for backend in ["opencv", *(["pyav"] if importlib.util.find_spec("av") else [])]:
        with Stream(FakePredictor(), url, tracking=False, options=options(backend)) as stream:
            assert [item.index for item in stream] == list(range(20))
        source = stream.stats.sources[0]
        assert (source.policy, source.state, source.dropped, source.reconnects) == ("every", "ended", 0, 0)
    server.shutdown()
    thread.join(5)
    server.server_close()


# --- readers that block in a driver ---


class BlockingReader:
    """Gives ``count`` frames and then blocks until it is released, as a driver does."""

    backend = "driver"
    live = True
    note = None

    def __init__(self, count: int, release: threading.Event) -> None:
        self._count, self._release = count, release

    def read(self) -> Captured | None:
        if self._count == 0:
            self._release.wait()
            return Captured(numbered(999))  # late: it must be ignored
        self._count -= 1
        return Captured(numbered(self._count))

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def feed_of(readers: Iterator[Any], settings: StreamOptions) -> tuple[Feed, threading.RLock, Bell]:
    lock, bell = threading.RLock(), Bell()
    source = Source("camera", "camera 0", True, True, lambda: next(readers))
    feed = Feed(source, 0, settings, lock, bell)
    feed.start()
    return feed, lock, bell


def test_a_late_frame_of_a_reader_that_was_given_up_is_ignored() -> None:
    release, end = threading.Event(), threading.Event()
    readers = iter([BlockingReader(1, release), BlockingReader(1, end)])
    feed, lock, _ = feed_of(readers, options(timeout=5.0))
    wait_for(lambda: feed.stats(0).read == 1)
    with lock:
        feed.watch(time.monotonic() + 10)  # as if 10 s had passed
        assert feed.stats(0).state == "reconnecting"
        assert feed.stats(0).hanging == 1
    wait_for(lambda: feed.stats(0).read == 2)
    release.set()
    wait_for(lambda: feed.stats(0).hanging == 0)
    assert feed.stats(0).read == 2
    end.set()
    feed.close()
    assert feed.join(time.monotonic() + 2) == []


def test_threads_that_hang_do_not_pile_up() -> None:
    release = threading.Event()
    feed, lock, _ = feed_of((BlockingReader(0, release) for _ in range(100)), options(timeout=5.0, open_timeout=5.0))
    for _ in range(6):
        wait_for(lambda: feed.done or (feed._attempt is not None and feed._attempt.reader is not None))
        with lock:
            feed.watch(time.monotonic() + 10)
    assert feed.done
    assert "5 threads hang in driver: edgepose-source-0.0, edgepose-source-0.1" in str(feed.error)
    release.set()
    feed.close()
    assert feed.join(time.monotonic() + 2) == []


def test_a_camera_that_was_never_there_fails_at_once() -> None:
    def no_camera() -> Iterator[Any]:
        raise SourceError("camera 0 cannot be opened by OpenCV")
        yield

    feed, _, _ = feed_of(no_camera(), options())
    wait_for(lambda: feed.done)
    assert feed.stats(0).reconnects == 0
    feed.close()


def test_a_thousand_reconnections_leave_no_threads() -> None:
    """A source that gives a frame and is lost, again and again, from the same thread."""

    class Flaky(BlockingReader):
        def read(self) -> Captured | None:
            if self._count == 0:
                raise SourceError("lost")
            return super().read()

    settings = options(reconnect=ReconnectPolicy(first_delay=0, max_delay=0))
    feed, lock, bell = feed_of((Flaky(1, threading.Event()) for _ in range(1_000_000)), settings)
    taken = 0
    end = time.monotonic() + 10
    while feed.stats(0).reconnects < 1000:
        assert time.monotonic() < end
        bell.wait(0.01)
        with lock:
            bell.silence()
            taken += feed.ready
            if feed.ready:
                feed.take()
    assert len(feed.threads()) == 1
    stats = feed.stats(time.monotonic())
    feed.close()
    assert stats.read == pytest.approx(taken + stats.dropped + stats.waiting, abs=1)
    assert feed.join(time.monotonic() + 2) == []


# --- MPEG over TCP and RTSP ---


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sender:
    """ffmpeg as a camera that waits for one viewer at a TCP port."""

    def __init__(self, port: int) -> None:
        program = shutil.which("ffmpeg")
        if program is None:
            pytest.skip("needs ffmpeg")
        picture = ("-re", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=50")
        codec = ("-c:v", "mpeg2video", "-g", "5", "-f", "mpegts")
        self._process = subprocess.Popen(
            [program, "-loglevel", "quiet", "-nostdin", *picture, *codec, f"tcp://127.0.0.1:{port}?listen=1"]
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_mpeg_stream_that_dies_and_returns(backend: Any) -> None:
    port = free_port()
    sender = Sender(port)
    try:
        settings = options(backend, timeout=2.0, open_timeout=5.0)
        with Stream(FakePredictor(), f"tcp://127.0.0.1:{port}", tracking=False, options=settings) as stream:
            for item in stream:
                if item.index >= 5:
                    sender.kill()
                    sender = Sender(port)
                    break
            before = stream.stats.read
            for item in stream:
                if stream.stats.sources[0].reconnects and item.index > before + 20:
                    break
        source = stream.stats.sources[0]
        assert source.reconnects >= 1
        assert source.policy == "newest"
        assert np.asarray(item.frame).shape == (48, 64, 3)
    finally:
        sender.kill()


def test_jitter_differs_from_source_to_source() -> None:
    """Each feed has a generator of its own: sources that were lost together do not come back in step."""
    lock = threading.RLock()
    make: Callable[[], Feed] = lambda: Feed(  # noqa: E731
        Source("url", "x", True, True, lambda: pytest.fail("not opened")), 0, options(), lock, Bell()
    )
    policy = ReconnectPolicy(jitter=0.5)
    delays = {policy.delay(3, make()._rng) for _ in range(8)}
    assert len(delays) == 8
    assert policy.delay(3, random.Random(1)) == policy.delay(3, random.Random(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_rtsp_camera_that_hangs_up_and_returns(backend: Any, tmp_path: Path) -> None:
    with RtspServer(tmp_path) as server:
        settings = options(backend, timeout=2.0, open_timeout=6.0)
        with Stream(FakePredictor(), server.url, tracking=False, options=settings) as stream:
            end = time.monotonic() + 20
            for item in stream:
                assert time.monotonic() < end
                assert item.frame.shape == (48, 64, 3)
                if item.index >= 3 and server.viewers == 1:
                    server.cut()
                if server.viewers == 2:
                    break
        assert stream.stats.sources[0].reconnects >= 1
        assert stream.stats.sources[0].policy == "newest"
