"""The page of `edgepose stream --view`: who is served what, what it costs, and how it looks to a browser."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from stream_items import grey_frame, make_item, make_source, make_stats

from edgepose import view, view_server
from edgepose.errors import InputError
from edgepose.stream_monitor import StreamMonitor
from edgepose.stream_stats import StreamStats
from edgepose.view import Feed, Viewer, is_loopback

WITHIN = 15.0  # s; bounds every wait, none lasts that long unless something is broken


class Served:
    """A viewer with a monitor, and a stream's figures that a test can change."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        self.stats = make_stats(*(make_source(number) for number in range(count)))
        self.monitor = StreamMonitor(lambda: self.stats)
        names = [source.name for source in self.stats.sources]
        self.viewer = Viewer(names, self.monitor.snapshot, title="painter", **{"port": 0, **options})
        self.port = int(self.viewer.url.rstrip("/").rpartition(":")[2])

    def publish(self, index: int, **changes: Any) -> None:
        item = make_item(index, **changes)
        self.monitor.add(item)
        self.viewer.publish(item)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN)
        connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.headers), body

    def open(self, path: str) -> http.client.HTTPResponse:
        """A connection that stays open."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN)
        connection.request("GET", path)
        return connection.getresponse()

    @property
    def encoded(self) -> int:
        return sum(feed.encoded for feed in self.viewer.feeds)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.viewer.close()


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds."""
    end = time.monotonic() + WITHIN
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return value


def picture(jpeg: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def next_part(stream: http.client.HTTPResponse) -> np.ndarray:
    """The next picture of an MJPEG stream, its closing boundary not yet read."""
    assert stream.readline() == b"--edgepose-frame\r\n"
    headers = http.client.parse_headers(stream)
    assert headers["Content-Type"] == "image/jpeg"
    jpeg = stream.read(int(headers["Content-Length"]))
    assert stream.readline() == b"\r\n"
    return picture(jpeg)


def next_message(stream: http.client.HTTPResponse) -> tuple[dict[str, Any], bytes] | None:
    lengths = stream.read(8)
    if not lengths:
        return None
    head, body = struct.unpack(">II", lengths)
    return json.loads(stream.read(head)), stream.read(body)


# Routes


def test_the_page_and_its_parts(served: Served) -> None:
    for path, kind in (("/", "html"), ("/app.js", "javascript"), ("/style.css", "css"), ("/icon.svg", "svg")):
        status, headers, body = served.ask(path)
        assert status == 200
        assert kind in headers["Content-Type"]
        assert int(headers["Content-Length"]) == len(body) > 100
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "unsafe" not in headers["Content-Security-Policy"]
        if "svg" not in kind:  # whose namespace is an address
            assert b"http://" not in body
            assert b"https://" not in body


def test_figures(served: Served) -> None:
    served.publish(4, latency=20.0)
    status, headers, body = served.ask("/stats.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    stats = json.loads(body)
    assert (stats["schema"], stats["title"], stats["ended"]) == (1, "painter", False)
    (source,) = stats["sources"]
    assert (source["name"], source["state"], source["dropped"], source["reconnects"]) == ("camera 0", "running", 2, 1)
    assert source["latency_ms"] == {"p50": 20.0, "p95": 20.0}


def test_snapshots_are_whole_and_with_or_without_overlay(served: Served) -> None:
    assert served.ask("/snapshot/0.jpg")[0] == 503  # there is no frame yet
    served.publish(0, frame=grey_frame(0, (2000, 500)))
    status, headers, drawn = served.ask("/snapshot/0.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert picture(drawn).shape == (500, 2000, 3)
    assert picture(drawn).max() > 150
    assert picture(served.ask("/snapshot/0.jpg?overlay=0")[2]).max() == 0


@pytest.mark.parametrize(
    "path", ["/snapshot/1.jpg", "/stream/7.mjpg", "/snapshot/0.mjpg", "/../view.py", "/view.py", "/live/", "/%2e"]
)
def test_other_paths_are_not_there(served: Served, path: str) -> None:
    assert served.ask(path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
def test_it_can_only_be_read(served: Served, method: str) -> None:
    status, headers, body = served.ask("/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert b"use GET" in body


def test_head_has_no_body(served: Served) -> None:
    status, headers, body = served.ask("/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 100
    assert served.ask("/live", "HEAD")[2] == b""


def test_a_broken_request_gets_an_answer(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=WITHIN) as connection:
        connection.sendall(b"what is this\r\n\r\n")
        assert b"400" in connection.recv(100)
    assert served.ask("/")[0] == 200


# Who may look


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("127.0.0.1:1234", "localhost", "LOCALHOST:80", "app.localhost", "[::1]:8000")),
        *((name, 200) for name in ("127.8.9.1", "localhost.", "gate.example:80")),
        *((name, 403) for name in ("evil.example", "127.0.0.1.evil.example", "192.168.1.7:8000", "localhost.evil", "")),
        *((name, 403) for name in ("8.8.8.8", "[::2]", "evil.example:127.0.0.1", "sub.gate.example")),
    ],
)
def test_a_loopback_server_answers_to_loopback_names_only(host: str, status: int) -> None:
    made = Served(names=["Gate.example"])
    try:
        assert made.ask("/", Host=host)[0] == status
        assert made.ask("/stats.json", Host=host)[0] == status
    finally:
        made.viewer.close()


def test_elsewhere_it_answers_to_addresses_and_its_own_names() -> None:
    made = Served(host="0.0.0.0")
    try:
        names = {
            "192.168.1.7:80": 200,
            "[fe80::1]": 200,
            "localhost": 200,
            socket.gethostname(): 200,
            "evil.example": 403,
        }
        assert {name: made.ask("/", Host=name)[0] for name in names} == names
        assert made.viewer.url == f"http://{socket.gethostname().lower()}:{made.port}/"
    finally:
        made.viewer.close()


def test_other_sites_cannot_ask_for_pictures(served: Served) -> None:
    served.publish(0)
    for path in ("/stats.json", "/snapshot/0.jpg", "/live", "/stream/0.mjpg"):
        for site in ("cross-site", "same-site"):
            assert served.ask(path, Sec_Fetch_Site=site)[0] == 403
    assert served.ask("/stats.json", Sec_Fetch_Site="same-origin")[0] == 200
    assert served.ask("/", Sec_Fetch_Site="cross-site")[0] == 200  # a link to the page


def test_names_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "localhost", "Localhost", "a.localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "::", "fe80::1%eth0", "localhost.example", "")))


def test_an_address_that_is_taken_is_an_input_error(served: Served) -> None:
    with pytest.raises(InputError, match=rf"127\.0\.0\.1 port {served.port} .*--port {served.port + 1}"):
        Served(port=served.port)
    with pytest.raises(InputError, match=r"cannot be served on no\.such\.host\.invalid"):
        Served(host="no.such.host.invalid")


def test_ipv6() -> None:
    try:
        made = Served(host="::1")
    except InputError:
        pytest.skip("this machine has no IPv6 loopback address")
    try:
        assert made.viewer.url == f"http://[::1]:{made.port}/"
        connection = http.client.HTTPConnection("::1", made.port, timeout=WITHIN)
        connection.request("GET", "/stats.json")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        made.viewer.close()


# What watching costs


def test_nothing_is_drawn_while_nobody_watches(served: Served) -> None:
    for index in range(100):
        served.publish(index)
    assert served.ask("/stats.json")[0] == 200
    assert served.encoded == 0


def test_a_frame_is_encoded_once_for_all_who_watch(served: Served) -> None:
    served.publish(0, frame=grey_frame(40))
    streams = [served.open("/stream/0.mjpg?overlay=0") for _ in range(4)]
    for stream in streams:
        assert abs(int(next_part(stream)[60, 80, 0]) - 40) <= 1  # JPEG of one level, worst seen: 0
    assert served.encoded == 1
    for index in range(1, 4):
        served.publish(index, frame=grey_frame(40 + 40 * index))
        for stream in streams:
            assert abs(int(next_part(stream)[60, 80, 0]) - 40 - 40 * index) <= 1
        assert served.encoded == 1 + index
    for stream in streams:
        stream.close()


def test_a_watcher_gets_the_newest_frame_not_a_queue(served: Served) -> None:
    served.publish(0)
    stream = served.open("/stream/0.mjpg?overlay=0")
    next_part(stream)
    for index in range(1, 201):
        served.publish(index, frame=grey_frame(index))
    seen = [round(float(next_part(stream).mean()))]
    while seen[-1] != 200:
        seen.append(round(float(next_part(stream).mean())))
    assert len(seen) <= 20  # 200 frames were published in some ms; worst seen: 2
    stream.close()


def test_one_who_takes_nothing_holds_up_nobody(served: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)  # about 1 MB as JPEG
    served.publish(0, frame=noise)
    stuck = [served.open("/stream/0.mjpg?overlay=0") for _ in range(3)] + [served.open("/live") for _ in range(3)]
    until(lambda: served.viewer._server.watchers == 6)
    slowest = 0.0
    for index in range(1, 200):
        item = make_item(index, frame=noise)
        start = time.perf_counter()
        served.viewer.publish(item)
        slowest = max(slowest, time.perf_counter() - start)
    # A blocked send lasts 10 s. On a machine that does other things a thread may wait 0.1 s for its turn.
    assert slowest < 1.0
    assert served.ask("/stats.json")[0] == 200
    good = served.open("/stream/0.mjpg?overlay=0")
    assert next_part(good).shape == (720, 1280, 3)
    for stream in [*stuck, good]:
        stream.close()


def test_those_who_vanish_are_forgotten(served: Served) -> None:
    served.publish(0)
    streams = [served.open(path) for path in ("/live", "/stream/0.mjpg")]
    until(lambda: served.viewer._server.watchers == 2)
    for stream in streams:
        stream.close()
    indices = iter(range(1, 100000))

    def gone() -> bool:
        served.publish(next(indices))
        return served.viewer._server.watchers == 0

    until(gone)


def test_too_many_watchers_are_turned_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_server, "MAX_WATCHERS", 1)
    stream = served.open("/live")
    until(lambda: served.viewer._server.watchers == 1)
    status, _, body = served.ask("/live")
    assert (status, body) == (503, b"1 others watch already.\n")
    stream.close()


def test_large_frames_are_sent_smaller() -> None:
    feed = Feed()
    assert feed.picture(overlay=True, live=True) is None
    feed.put(make_item(frame=grey_frame(90, (300, 3 * view.LIVE_SIDE))))
    shape = picture(feed.picture(overlay=True, live=True).jpeg).shape
    assert shape == (view.LIVE_SIDE, 100, 3)
    assert feed.picture(overlay=True, live=True) is feed.picture(overlay=True, live=True)


# The page's own connection


def test_live_brings_figures_and_pictures_of_all_sources() -> None:
    made = Served(3)
    try:
        for number in range(3):
            made.publish(10 + number, source=number, frame=grey_frame(50 * number))
        stream = made.open("/live?overlay=0")
        messages = [next_message(stream) for _ in range(4)]
        assert messages[0][0]["type"] == "stats"
        assert messages[0][0]["closing"] is False
        assert len(messages[0][0]["sources"]) == 3
        for number, (header, body) in enumerate(messages[1:]):
            assert (header["type"], header["source"], header["frame"]) == ("frame", number, 10 + number)
            assert header["objects"][0] == {
                **{"category": "blob", "track_id": 7, "box": [10, 10, 110, 90], "box_score": 0.75, "score": 0.9}
            }
            assert abs(picture(body).mean() - 50 * number) <= 1  # JPEG of one level, worst seen: 0
        assert next_message(stream)[0]["type"] == "stats"  # nothing new: figures only
        stream.close()
    finally:
        made.viewer.close()


def test_live_without_pictures_encodes_none(served: Served) -> None:
    served.publish(0)
    stream = served.open("/live?video=0")
    kinds = [next_message(stream)[0]["type"] for _ in range(3)]
    assert (kinds, served.encoded) == (["stats"] * 3, 0)
    stream.close()


def test_the_end_is_told_with_the_last_frame() -> None:
    made = Served()
    made.publish(0)
    stream = made.open("/live")
    assert [next_message(stream)[0]["type"] for _ in range(2)] == ["stats", "frame"]
    idle = made.open("/stream/0.mjpg")
    next_part(idle)
    made.stats = make_stats(make_source(state="ended"))
    closing = threading.Thread(target=made.viewer.close)
    made.publish(1)
    closing.start()
    messages = []
    while (message := next_message(stream)) is not None:
        messages.append(message[0])
    closing.join(WITHIN)
    assert not closing.is_alive()
    assert [m["frame"] for m in messages if m["type"] == "frame"][-1] == 1
    last = [m for m in messages if m["type"] == "stats"][-1]
    assert (last["closing"], last["ended"]) == (True, True)
    with pytest.raises(OSError, match="refused"):
        made.ask("/")
    made.viewer.close()  # twice is fine


# The figures


def clocked(*sources: Any) -> tuple[StreamMonitor, list[float], list[StreamStats]]:
    now, stats = [100.0], [make_stats(*sources)]
    return StreamMonitor(lambda: stats[0], clock=lambda: now[0]), now, stats


def test_latencies_are_those_of_the_last_ten_seconds() -> None:
    monitor, now, _ = clocked()
    for second in range(30):
        now[0] = 100 + second
        monitor.add(make_item(second, latency=1000.0 if second < 19 else 10.0 + second % 2))
    (source,) = monitor.snapshot()["sources"]
    assert source["latency_ms"] == {"p50": 10.5, "p95": 11.0}
    assert source["history_ms"] == [1000.0] * 19 + [11.0, 10.0] * 5
    now[0] += 100
    (source,) = monitor.snapshot()["sources"]
    assert source["latency_ms"] == {"p50": 10.5, "p95": 11.0}  # the last that is known
    assert source["history_ms"] == [None] * 60


def test_stages_are_side_by_side() -> None:
    monitor, *_ = clocked()
    stages = monitor.snapshot()["stages_ms"]
    assert list(stages) == ["queue", "detect", "crop", "network", "decode", "other", "tracking"]
    assert stages["other"] == {"p50": 1.25, "p95": 2.5}  # inference without what is known of it
    assert sum(pair["p50"] for pair in stages.values()) == 18.5


@pytest.mark.parametrize(
    ("interval", "state", "waiting", "silent", "shown"),
    [
        (0.04, "running", 0, 1.9, "running"),
        (0.04, "running", 0, 2.1, "stalled"),
        (0.04, "running", 1, 9.0, "running"),  # a frame waits: the predictor is slow, not the source
        (0.5, "running", 0, 4.9, "running"),
        (0.5, "running", 0, 5.1, "stalled"),
        (0.04, "reconnecting", 0, 9.0, "reconnecting"),
        (0.04, "ended", 0, 9.0, "ended"),
    ],
)
def test_a_stall_shows(interval: float, state: str, waiting: int, silent: float, shown: str) -> None:
    monitor, now, _ = clocked(make_source(state=state, waiting=waiting))
    for index in range(5):
        now[0] += interval
        monitor.add(make_item(index))
    now[0] += silent
    (source,) = monitor.snapshot()["sources"]
    assert (source["state"], source["silent_s"]) == (shown, pytest.approx(silent))


def test_before_the_first_frame() -> None:
    monitor, *_ = clocked(make_source(state="opening"))
    snapshot = monitor.snapshot()
    (source,) = snapshot["sources"]
    assert (source["silent_s"], source["latency_ms"], source["frame_size"], source["frame"]) == (None,) * 4
    json.dumps(snapshot, allow_nan=False)


def test_it_has_ended_when_all_sources_have() -> None:
    for states, ended in ((("ended", "failed"), True), (("ended", "running"), False), (("ended", "closed"), False)):
        monitor, *_ = clocked(*(make_source(i, state=state) for i, state in enumerate(states)))
        assert monitor.snapshot()["ended"] is ended
