"""The page of `edgepose stream --view` in a browser: headless Chromium, driven by Selenium."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stream_items import grey_frame, make_source, make_stats
from test_view import WITHIN, Served, picture, until

webdriver = pytest.importorskip("selenium.webdriver", reason="the page's tests drive Chromium with selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver")

# The mean brightness of what a canvas shows.
LEVEL = """
    const canvas = document.querySelectorAll("canvas")[arguments[0]];
    if (!canvas) return -1;
    const copy = document.createElement("canvas"), context = copy.getContext("2d", { willReadFrequently: true });
    [copy.width, copy.height] = [canvas.width, canvas.height];
    context.drawImage(canvas, 0, 0);
    const data = context.getImageData(0, 0, copy.width, copy.height).data;
    let sum = 0;
    for (let i = 0; i < data.length; i += 4) sum += data[i];
    return sum / (data.length / 4);
"""


class Page:
    """What a test asks the browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, url: str) -> None:
        self.browser.get_log("browser")  # what a former page has logged
        self.browser.get(url)

    def text(self, selector: str) -> str:
        return self.browser.execute_script(
            "return document.querySelector(arguments[0])?.innerText?.trim() ?? ''", selector
        )

    def shows(self, selector: str, text: str) -> None:
        try:
            until(lambda: text in self.text(selector))
        except AssertionError:
            raise AssertionError(f"{selector} shows {self.text(selector)!r}, not {text!r}") from None

    def level(self, number: int = 0) -> float:
        return self.browser.execute_script(LEVEL, number)

    def click(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()

    def key(self, key: str) -> None:
        self.browser.find_element("css selector", "body").send_keys(key)

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium's sandbox does not work for root
    for argument in arguments:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(WITHIN)
    driver.set_script_timeout(WITHIN)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    yield Page(browser)
    browser.get("about:blank")


class Running(Served):
    """Frames come, each brighter than the last one, from 20 to 220 and again, until ``hold``."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        super().__init__(count, **options)
        self._hold = threading.Event()
        self._thread = threading.Thread(target=self._feed, args=(count,))
        self._thread.start()

    def _feed(self, count: int) -> None:
        index = 0
        while not self._hold.wait(0.04):
            for number in range(count):
                self.publish(index, source=number, frame=grey_frame(20 + 10 * (index % 21)), latency=15.0 + index % 3)
            index += 1

    def hold(self) -> None:
        self._hold.set()
        self._thread.join()

    def close(self) -> None:
        self.hold()
        self.viewer.close()


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


def test_pictures_move_and_figures_show_without_an_error_or_a_request_elsewhere(page: Page, running: Running) -> None:
    page.open(running.viewer.url)
    page.shows("#connection", "Connected")
    page.shows(".state", "Live")
    seen: set[int] = set()

    def moved() -> bool:
        seen.add(round(page.level()))
        return len(seen) >= 4

    until(moved)
    page.shows(".p50", "16.0")
    page.shows(".p95", "p95 17.0")
    page.shows(".dropped", "2")
    page.shows(".reconnects", "1")
    page.shows(".name", "camera 0")
    page.shows("#title", "painter")
    page.shows(".objects", "#7 blob 0.75")
    page.shows(".card .legend", "network")
    page.shows(".frame", "160 × 120")
    first = page.text(".frame")
    until(lambda: page.text(".frame") != first)
    until(lambda: "L" in page.browser.execute_script("return document.querySelector('.spark .line').getAttribute('d')"))
    asked = page.browser.execute_script("return performance.getEntries().map(e => e.name)")
    assert [url for url in asked if url.startswith("http") and not url.startswith(running.viewer.url)] == []
    assert page.log() == []


def test_a_stall_shows_and_passes(page: Page) -> None:
    made = Running()
    try:
        page.open(made.viewer.url)
        page.shows(".state", "Live")
        made.hold()
        page.shows(".state", "Stalled for")
        page.shows(".cover", "No new frame for")
        assert "dim" in page.browser.find_element("css selector", ".screen").get_attribute("class")
        page.shows("#announcements", "camera 0: Stalled")
        made.publish(1000)
        page.shows(".state", "Live")
        page.shows(".frame", "frame 1,000")
        made.stats = make_stats(make_source(state="reconnecting", last_error="no frame for 5 s"))
        page.shows(".state", "Reconnecting")
        page.shows(".problem", "no frame for 5 s")
        made.stats = make_stats(make_source(state="failed", last_error="the camera is <b>gone</b>"))
        page.shows(".state", "Failed")
        page.shows(".problem", "the camera is <b>gone</b>")  # as text
        made.stats = make_stats(make_source(state="ended"))
        page.shows(".state", "Ended")
        page.shows("#notice", "The stream has ended")
        assert page.log() == []
    finally:
        made.close()


def test_the_page_outlives_the_server_and_finds_the_next_one(page: Page) -> None:
    first = Served()
    first.publish(5, frame=grey_frame(60))
    page.open(first.viewer.url)
    until(lambda: page.level() > 50)
    first.viewer.close()
    page.shows("#connection", "Offline")
    page.shows("#notice", "edgepose was stopped")
    page.shows(".state", "Offline")
    second = Served(2, port=first.port)
    try:
        second.publish(6, frame=grey_frame(200), source=1)
        page.shows("#connection", "Connected")
        until(lambda: len(page.browser.find_elements("css selector", ".card")) == 2)
        until(lambda: page.level(1) > 150)
        assert page.text("#notice") == ""
        page.shows("#overview", "2 live")
        page.shows("#overview", "40.0 frames/s")
    finally:
        second.viewer.close()


def test_overlay_and_pause(page: Page, running: Running) -> None:
    running.hold()
    running.publish(0, frame=grey_frame(0))
    page.open(running.viewer.url)
    until(lambda: page.level() > 1)
    page.click("#overlay")
    until(lambda: page.level() == 0)
    assert page.browser.find_element("css selector", "#overlay").get_attribute("aria-pressed") == "false"
    page.key("o")
    until(lambda: page.level() > 1)
    page.key("p")
    page.shows("#pause", "Resume")
    page.shows("#connection", "Connected")
    until(lambda: running.viewer._server.watchers == 1)  # the connection without pictures, alone
    encoded = running.encoded
    for index in range(1, 10):
        running.publish(index, frame=grey_frame(200))
    page.shows(".cover", "Paused")
    assert (running.encoded, page.level() < 100) == (encoded, True)
    page.click("#pause")
    until(lambda: page.level() > 150)


def test_eight_sources_need_one_connection(page: Page) -> None:
    made = Running(8)
    try:
        page.open(made.viewer.url)
        for number in range(8):
            first = until(lambda number=number: max(page.level(number), 0))
            until(lambda number=number, first=first: page.level(number) != first)
        assert made.viewer._server.watchers == 1
        assert page.log() == []
    finally:
        made.close()


def test_the_snapshot_link_gives_the_frame(page: Page, running: Running) -> None:
    running.hold()
    running.publish(0, frame=grey_frame(120, (320, 240)))
    page.open(running.viewer.url)
    until(lambda: page.level() > 100)
    link = page.browser.find_element("css selector", ".snapshot").get_attribute("href")
    assert link == f"{running.viewer.url}snapshot/0.jpg?overlay=1"
    assert picture(running.ask(link.removeprefix(running.viewer.url.rstrip("/")))[2]).shape == (240, 320, 3)


def test_full_screen(page: Page, running: Running) -> None:
    page.open(running.viewer.url)
    page.shows(".state", "Live")
    page.click(".fullscreen")
    until(
        lambda: page.browser.execute_script("return document.fullscreenElement?.className ?? ''").startswith("screen")
    )
    page.key("f")
    until(lambda: page.browser.execute_script("return document.fullscreenElement === null"))


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_wider_than_the_window(page: Page, width: int, count: int) -> None:
    made = Served(count)
    try:
        made.stats = make_stats(
            *(make_source(n, name="rtsp://a-long-name.example/of/a/camera" * 3, read=10**7) for n in range(count))
        )
        for number in range(count):
            made.publish(0, source=number, objects=9)
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        page.open(made.viewer.url)
        page.shows(".objects", "#15")
        overflow = """
            const wide = [...document.querySelectorAll("body *")].filter((e) =>
                e.getBoundingClientRect().right > innerWidth + 0.5 && getComputedStyle(e).position !== "absolute");
            return wide.map((e) => e.className || e.tagName);
        """
        assert page.browser.execute_script(overflow) == []
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        made.viewer.close()


def test_text_has_contrast_and_controls_have_names(page: Page, running: Running) -> None:
    """WCAG 2.2: 4.5 to 1 for text, on the colours that the style sheet gives."""
    page.open(running.viewer.url)
    page.shows(".state", "Live")
    colors = page.browser.execute_script("""
        const style = getComputedStyle(document.documentElement);
        const names = ["ground", "card", "raised", "text", "quiet", "accent", "live", "warn", "busy", "bad", "over"];
        return Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
    """)
    for front in ("text", "quiet", "accent", "live", "warn", "busy", "bad", "over"):
        for back in ("ground", "card", "raised"):
            assert contrast(colors[front], colors[back]) >= 4.5, (front, back)
    nameless = page.browser.execute_script("""
        return [...document.querySelectorAll("button, a, canvas, [role=img]")]
            .filter((e) => !(e.innerText || e.getAttribute("aria-label"))).map((e) => e.outerHTML);
    """)
    assert nameless == []


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two #rrggbb colours, as WCAG 2.2 defines it."""

    def luminance(color: str) -> float:
        levels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
