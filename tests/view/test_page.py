from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from view_process import page_process

from live_sr.client.feed import Feed, FeedStatus, FrameInfo, ServerStatus

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SIDE = 64  # pixels of the raw frame
SCALE = 4
PIXEL_UM = 0.016
PATIENCE_MS = 30_000  # for a loaded machine; nothing waits this long when it works

Box = dict[str, float]


def specimen(seq: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """A dark field with one bright block, off centre, so that position and orientation show."""
    raw = np.full((SIDE, SIDE), 1000, np.uint16)
    raw[10:14, 40:48] = 3000
    raw[0, 0] = 500 + seq % 100  # no two frames alike
    return raw, np.repeat(np.repeat(raw, SCALE, 0), SCALE, 1)


class Site:
    def __init__(self, url: str, feed: Feed) -> None:
        self.url = url
        self.feed = feed

    def pair(self, seq: int, session: str, **changes: Any) -> None:
        given = {"pixel_size_um": PIXEL_UM, "channel": "BSE", "index": {"t": seq, "z": 3}, "model": "em-x4"}
        self.feed.show_pair(self._info(seq, session, {**given, **changes}), *specimen(seq))

    def raw(self, seq: int, session: str, **changes: Any) -> None:
        self.feed.show_raw(self._info(seq, session, {"pixel_size_um": PIXEL_UM, **changes}), specimen(seq)[0])

    @staticmethod
    def _info(seq: int, session: str, given: dict[str, Any]) -> FrameInfo:
        age_ns = int(given.pop("age_ms", 400) * 1e6)
        now = time.monotonic_ns()
        return FrameInfo(session=session, seq=seq, captured_ns=now - age_ns, scale=SCALE, **given)

    def status(self, **changes: Any) -> None:
        given = {
            "state": "acquiring",
            "server": ServerStatus("ready", model="em-x4", device="cpu", precision="float32"),
        }
        self.feed.status(FeedStatus(**{**given, **changes}))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Feed("tcp://127.0.0.1:*") as feed, page_process(feed.address) as (url, _):
        yield Site(url, feed)


@pytest.fixture
def page(chromium: Browser, site: Site) -> Iterator[Page]:
    page = new_page(chromium)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(site.url)
    yield page
    page.context.close()
    assert errors == []


def new_page(chromium: Browser) -> Page:
    page = chromium.new_context(viewport={"width": 1280, "height": 720}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    return page


def has(locator: Locator, text: str) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(text, timeout=PATIENCE_MS)


def shows(page: Page, side: str, seq: int, session: str) -> None:
    """Wait until the canvas has drawn frame `seq` of `session`; the page opens with the session before it."""
    from playwright.sync_api import expect

    canvas = page.locator(f"#{side} canvas")
    expect(canvas).to_have_attribute("data-session", session, timeout=PATIENCE_MS)
    expect(canvas).to_have_attribute("aria-label", re.compile(rf"frame {seq}$"), timeout=PATIENCE_MS)


def label(page: Page, side: str) -> str:
    return page.locator(f"#{side} canvas").get_attribute("aria-label") or ""


def image(page: Page, side: str) -> NDArray[np.uint8]:
    """Red of what is drawn now, (Y, X) in CSS pixels."""
    width, height, values = page.evaluate(
        """side => {
            const c = document.querySelector(`#${side} canvas`);
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            let text = "";
            for (let i = 0; i < d.length; i += 4) text += String.fromCharCode(d[i]);
            return [c.width, c.height, text];
        }""",
        side,
    )
    return np.frombuffer(values.encode("latin-1"), np.uint8).reshape(height, width)


def bar(page: Page, side: str) -> tuple[float, str, float]:
    """What the scale bar says: number, unit, and its length in CSS pixels."""
    said, length = (page.locator(f"#{side} canvas").get_attribute("data-scale-bar") or "").split(" = ")
    number, unit = said.split()
    return float(number), unit, float(length)


def settle(page: Page) -> None:
    """Two animation frames: what was asked for before has been drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def fitted(page: Page) -> tuple[float, float, float]:
    """Zoom (CSS pixels per raw pixel) and left and top edge of the whole field, as fitting must give them."""
    box = canvas_box(page, "left")
    zoom = min(box["width"], box["height"]) / SIDE
    return zoom, box["width"] / 2 - zoom * SIDE / 2, box["height"] / 2 - zoom * SIDE / 2


def canvas_box(page: Page, side: str) -> Box:
    box = page.locator(f"#{side} canvas").bounding_box()
    assert box is not None
    return {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"]}


def block(page: Page, side: str) -> tuple[float, float, float]:
    """Centre (y, x) and area of the bright block as drawn, labels and bars left out."""
    drawn = image(page, side).copy()
    drawn[:45] = 0
    drawn[-60:] = 0
    rows, columns = np.nonzero(drawn > 180)
    return float(rows.mean()), float(columns.mean()), float(len(rows))


def test_both_images_are_drawn_where_they_belong(page: Page, site: Site) -> None:
    site.pair(5, "drawn")
    shows(page, "left", 5, "drawn")
    shows(page, "right", 5, "drawn")
    zoom, left, top = fitted(page)
    for side in ("left", "right"):
        y, x, area = block(page, side)
        assert y == pytest.approx(top + 12 * zoom, abs=2)
        assert x == pytest.approx(left + 44 * zoom, abs=2)
        assert area == pytest.approx(4 * 8 * zoom**2, rel=0.05)


def test_the_computed_image_says_so_on_the_image(page: Page, site: Site) -> None:
    site.pair(1, "label")
    shows(page, "right", 1, "label")
    assert label(page, "right") == "computed image · em-x4, frame 1"
    assert label(page, "left") == "low-dose, as acquired, frame 1"
    drawn = image(page, "right")
    _, left, top = fitted(page)
    text = drawn[int(top) + 12 : int(top) + 33, int(left) + 15 : int(left) + 200]
    assert (text > 240).sum() > 200, "white letters"


def test_counters_server_and_position_are_shown(page: Page, site: Site) -> None:
    counts = {
        "acquired": 1234,
        "returned": 1200,
        "deferred": 7,
        "in_flight": 2,
        "queued": 5,
        "failed": 20,
        "saved": 9,
    }
    site.status(
        session="counts",
        counts=counts,
        raw_fps=9.96,
        sr_fps=8.04,
        latency_ms={"p50": 85.6, "p95": 120.2, "p99": None},
        queue="high",
    )
    site.pair(42, "counts")
    has(page.locator("#position"), "BSE  ·  t 42  z 3  ·  frame 42")
    for name, value in counts.items():
        has(page.locator(f'[data-count="{name}"] dd'), f"{value:,}")
    has(page.locator("#raw_fps"), "10.0 fps")
    has(page.locator("#sr_fps"), "8.0 fps")
    has(page.locator("#latency"), "86 / 120 / – ms")
    has(page.locator("#server"), "server ready · em-x4 · cpu float32")
    has(page.locator("#run"), "acquiring")
    has(page.locator("#right .what"), "256 × 256  ·  4 nm/px")
    assert page.locator('[data-count="failed"]').get_attribute("class") == "bad"
    assert page.locator('[data-count="queued"]').get_attribute("class") == "warn"


def test_zoom_and_pan_are_linked_and_the_point_under_the_pointer_stays(page: Page, site: Site) -> None:
    site.pair(1, "zoom")
    shows(page, "right", 1, "zoom")
    y, x, area = block(page, "left")
    box = canvas_box(page, "left")
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.wheel(0, -200)
    settle(page)
    for side in ("left", "right"):
        zoomed = block(page, side)
        assert zoomed[:2] == pytest.approx((y, x), abs=2)
        assert zoomed[2] > 2 * area
    page.mouse.down()
    page.mouse.move(box["x"] + x - 60, box["y"] + y + 40)
    page.mouse.up()
    settle(page)
    for side in ("left", "right"):
        assert block(page, side)[:2] == pytest.approx((y + 40, x - 60), abs=2)
    page.mouse.dblclick(box["x"] + 100, box["y"] + 100)
    settle(page)
    assert block(page, "right")[2] == pytest.approx(area, rel=0.05)


def test_single_pixels_are_square_and_exact_while_paused(page: Page, site: Site) -> None:
    site.pair(1, "pixels")
    shows(page, "right", 1, "pixels")
    page.keyboard.press("c")
    page.locator("#low").fill("501")
    page.locator("#high").fill("3000")
    page.keyboard.press("Space")
    has(page.locator("#pause"), "Resume")
    has(page.locator("#left .what"), "exact pixels")
    zoom, left, top = fitted(page)
    x, y = round(left + 40 * zoom), round(top + 10 * zoom)  # a corner of the bright block
    box = canvas_box(page, "left")
    page.mouse.move(box["x"] + x, box["y"] + y)
    for _ in range(8):
        page.keyboard.press("+")
    settle(page)
    around = image(page, "left")[y - 35 : y + 35, x - 35 : x + 35]
    dark = round((1000 - 501) / (3000 - 501) * 255)
    assert set(np.unique(around).tolist()) == {dark, 255}, "nothing between: no smoothing, no JPEG"
    assert (around == 255).mean() == pytest.approx(0.25, abs=0.1), "one quadrant"


def test_the_scale_bar_is_true_at_every_zoom(page: Page, site: Site) -> None:
    site.pair(1, "bar")
    shows(page, "right", 1, "bar")
    zoom, _, _ = fitted(page)
    for press in range(5):
        for side in ("left", "right"):
            number, unit, length = bar(page, side)
            um = number * {"nm": 1e-3, "µm": 1.0}[unit]
            assert length == pytest.approx(um / PIXEL_UM * zoom * 1.25**press, rel=1e-3)
            drawn = image(page, side)
            row = drawn[canvas_row(page, side)]
            assert (row == 255).sum() == pytest.approx(length, abs=2)
        page.keyboard.press("+")
        settle(page)


def canvas_row(page: Page, side: str) -> int:
    """The row of the scale bar: 20 CSS pixels above the lower edge, where the field fills the canvas."""
    return int(canvas_box(page, side)["height"]) - 20


def test_without_a_pixel_size_the_scale_bar_counts_pixels(page: Page, site: Site) -> None:
    site.pair(1, "unknown", pixel_size_um=None)
    shows(page, "left", 1, "unknown")
    number, unit, length = bar(page, "left")
    assert unit == "px"
    assert length == pytest.approx(number * fitted(page)[0], rel=1e-3)


def test_pause_freezes_this_page_and_no_other(chromium: Browser, page: Page, site: Site) -> None:
    site.pair(1, "pause")
    shows(page, "right", 1, "pause")
    page.keyboard.press("Space")
    has(page.locator("#pause"), "Resume")
    other = new_page(chromium)
    other.goto(site.url)
    for seq in (2, 3, 4):
        site.pair(seq, "pause")
        shows(other, "right", seq, "pause")
    other.context.close()
    assert label(page, "right").endswith("frame 1")
    page.keyboard.press("Space")
    shows(page, "right", 4, "pause")


def test_contrast_by_hand_and_back(page: Page, site: Site) -> None:
    site.pair(1, "contrast")
    shows(page, "right", 1, "contrast")
    automatic = image(page, "left").mean()
    page.locator("#low").fill("900")
    assert not page.locator("#auto").is_checked()
    page.locator("#high").fill("1000")
    site.pair(2, "contrast")
    shows(page, "left", 2, "contrast")
    shows(page, "right", 2, "contrast")
    for side in ("left", "right"):
        drawn = image(page, side)
        assert drawn[200, drawn.shape[1] // 2] >= 250, "the background is white in both"
    page.keyboard.press("c")
    assert page.locator("#auto").is_checked()
    site.pair(3, "contrast")
    shows(page, "left", 3, "contrast")
    assert image(page, "left").mean() == pytest.approx(automatic, abs=20)


def test_alarms_are_red_and_only_text(page: Page, site: Site) -> None:
    from playwright.sync_api import expect

    evil = "disk full <img src=x onerror=\"document.title='hacked'\">"
    site.status(session=evil, alarms=(evil,), server=ServerStatus("ready", evil, evil, evil, evil))
    site.pair(1, evil, channel=evil, model=evil, index={evil: 1})
    banner = page.locator("#banner")
    has(banner, evil)
    has(page.locator("#position"), evil)
    shows(page, "right", 1, evil)
    expect(banner).to_be_visible()
    assert banner.evaluate("element => getComputedStyle(element).backgroundColor") == "rgb(198, 43, 52)"
    assert page.locator("img").count() == 0
    assert page.title() == "live-sr"
    site.status()
    expect(banner).to_be_hidden(timeout=PATIENCE_MS)


def test_an_absent_server_is_explained(page: Page, site: Site) -> None:
    site.status(server=ServerStatus("away", "no answer"))
    has(
        page.locator("#banner"),
        "Super-resolution server away: raw is being stored, frames will be finished later",
    )
    site.status(server=ServerStatus("refused", "another model"))
    has(page.locator("#banner"), "another model")
    site.status()


def test_an_old_picture_turns_red_while_acquiring(page: Page, site: Site) -> None:
    from playwright.sync_api import expect

    site.status()
    site.pair(1, "stale", age_ms=60_000)
    expect(page.locator("#left .age")).to_have_class("age stale", timeout=PATIENCE_MS)
    expect(page.locator("#left .age")).to_have_text(re.compile(r"6\d s old"), timeout=PATIENCE_MS)
    site.status(state="finished")
    expect(page.locator("#left .age")).to_have_class("age", timeout=PATIENCE_MS)


def test_raw_frames_go_on_while_sr_is_missing(page: Page, site: Site) -> None:
    site.status()
    site.raw(1, "alone")
    shows(page, "left", 1, "alone")
    assert label(page, "right") == "computed image"
    site.pair(1, "alone", age_ms=5000)
    shows(page, "right", 1, "alone")
    site.raw(2, "alone")
    shows(page, "left", 2, "alone")
    assert label(page, "right").endswith("frame 1")


def test_several_browsers_watch_at_once(chromium: Browser, page: Page, site: Site) -> None:
    others = [new_page(chromium) for _ in range(2)]
    for other in others:
        other.goto(site.url)
    site.pair(9, "several")
    for watching in (page, *others):
        shows(watching, "left", 9, "several")
        shows(watching, "right", 9, "several")
        assert block(watching, "right")[2] > 100
    for other in others:
        other.context.close()


def test_keys_and_help(page: Page, site: Site) -> None:
    from playwright.sync_api import expect

    site.pair(1, "keys")
    shows(page, "left", 1, "keys")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Space")  # closes by its button, and must not pause
    expect(page.locator("#help")).to_be_hidden()
    has(page.locator("#pause"), "Pause")
    page.locator("#pause").click()
    has(page.locator("#pause"), "Resume")
    page.keyboard.press("Space")  # the clicked button must not catch it a second time
    has(page.locator("#pause"), "Pause")
    whole = bar(page, "left")
    page.keyboard.press("+")
    settle(page)
    assert bar(page, "left") != whole
    page.keyboard.press("f")
    settle(page)
    assert bar(page, "left") == whole


def test_a_page_opened_before_everything_comes_alive_and_notices_silence(chromium: Browser) -> None:
    with Feed("tcp://127.0.0.1:*") as feed:
        address = feed.address
    with page_process(address) as (url, _):
        page = new_page(chromium)
        page.goto(url)
        has(page.locator("#run"), "waiting for an acquisition")
        with Feed(address) as feed:
            site = Site(url, feed)
            site.pair(1, "first")
            site.status(session="first")
            shows(page, "right", 1, "first")
        has(page.locator("#banner"), "No word from the acquisition for")
        with Feed(address) as feed:
            site = Site(url, feed)
            site.pair(0, "second")
            site.status(session="second", state="finished")
            shows(page, "right", 0, "second")
            has(page.locator("#run"), "finished")
            assert page.locator("#banner").is_hidden()
    has(page.locator("#banner"), "lost contact")
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(url.removeprefix("http://")).connect()
    page.context.close()
