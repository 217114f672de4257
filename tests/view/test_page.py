from __future__ import annotations

import base64
import http.client
import io
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from view_process import page_process

from live_sr.client.feed import Feed, FeedStatus, FrameInfo, ServerStatus
from live_sr.view.colours import LESS, MORE, table

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
        given = {"pixel_size_um": PIXEL_UM, "channel": "BSE", **changes}
        self.feed.show_raw(self._info(seq, session, given), specimen(seq)[0])

    def show(
        self, seq: int, session: str, raw: NDArray[np.uint16], sr: NDArray[np.uint16], **changes: Any
    ) -> None:
        given = {"pixel_size_um": PIXEL_UM, "channel": "BSE", "model": "em-x4", **changes}
        self.feed.show_pair(self._info(seq, session, given), raw, sr)

    @staticmethod
    def _info(seq: int, session: str, given: dict[str, Any]) -> FrameInfo:
        age_ns = int(given.pop("age_ms", 400) * 1e6)
        now = time.monotonic_ns()
        return FrameInfo(session=session, seq=seq, captured_ns=now - age_ns, **{"scale": SCALE, **given})

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


def colours(page: Page, side: str) -> NDArray[np.uint8]:
    """What is drawn now, (Y, X, 3) in CSS pixels."""
    url: str = page.locator(f"#{side} canvas").evaluate("canvas => canvas.toDataURL('image/png')")
    png = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def image(page: Page, side: str) -> NDArray[np.uint8]:
    """Red of what is drawn now, (Y, X) in CSS pixels."""
    return colours(page, side)[..., 0]


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


def by_hand(page: Page, low: float, high: float) -> None:
    """Contrast in the panel, which is closed again."""
    page.keyboard.press("p")
    page.locator("#low").fill(str(low))
    page.locator("#high").fill(str(high))
    page.locator("#high").blur()
    page.keyboard.press("p")


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
    by_hand(page, 501, 3000)
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
    by_hand(page, 900, 1000)
    assert not page.locator("#auto").is_checked()
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


# -------------------------------------------------------------------- ways to compare


def flat(raw: int, sr: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Two even images that a window from 0 to 4000 tells apart."""
    size = SIDE * SCALE
    return np.full((SIDE, SIDE), raw, np.uint16), np.full((size, size), sr, np.uint16)


def described(page: Page, text: str | re.Pattern[str]) -> None:
    """Wait until the one canvas of swipe, blink and difference is described so."""
    from playwright.sync_api import expect

    expect(page.locator("#one canvas")).to_have_attribute("aria-label", text, timeout=PATIENCE_MS)


def test_swipe_shows_acquired_left_and_computed_right_of_a_line_to_drag(page: Page, site: Site) -> None:
    site.show(1, "swipe", *flat(1000, 3000))
    shows(page, "right", 1, "swipe")
    by_hand(page, 0, 4000)
    page.keyboard.press("2")
    described(page, "low-dose, as acquired, frame 1 | computed image · em-x4, frame 1")
    box = canvas_box(page, "one")
    width, middle = int(box["width"]), int(box["height"] / 2) + 100
    has(page.locator("#one .what").nth(1), "exact pixels")

    def line() -> int:
        """Where dark becomes bright."""
        settle(page)
        row = image(page, "one")[middle]
        field = slice(width // 2 - 250, width // 2 + 250)
        grey = {round(1000 / 4000 * 255), round(3000 / 4000 * 255)}
        assert grey <= set(row[field].tolist())
        assert row[field][0] < row[field][-1]
        return int(np.argmax(row == max(grey)))

    assert line() == pytest.approx(width / 2, abs=4)
    page.mouse.move(box["x"] + width / 2, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(box["x"] + width / 2 - 150, box["y"] + 120)
    page.mouse.up()
    assert line() == pytest.approx(width / 2 - 150, abs=4)
    page.keyboard.press(".")
    assert line() == pytest.approx(width / 2 - 150 + 0.02 * width, abs=4)


def test_the_computed_label_stays_while_the_line_is_anywhere(page: Page, site: Site) -> None:
    site.show(1, "label", *flat(1000, 1000))
    shows(page, "right", 1, "label")
    page.keyboard.press("2")
    described(page, re.compile("computed image · em-x4, frame 1"))
    for _ in range(2):
        settle(page)
        green = (colours(page, "one").astype(int) @ np.array([-2, 1, 1]) > 100).sum()
        assert green > 2000, "the label's own colour"
        for _ in range(30):
            page.keyboard.press(".")


def test_blink_shows_both_in_turn(page: Page, site: Site) -> None:
    site.show(1, "blink", *flat(1000, 3000))
    shows(page, "right", 1, "blink")
    by_hand(page, 0, 4000)
    page.locator("[data-mode=blink]").click()
    greys = {"low-dose, as acquired, frame 1": 64, "computed image · em-x4, frame 1": 191}
    has(page.locator("#one .what").nth(1), "exact pixels")
    seen = set()
    while len(seen) < 2:
        settle(page)
        said, drawn = page.locator("#one canvas").evaluate(
            """canvas => [canvas.ariaLabel,
                canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[0]]"""
        )
        assert drawn == greys[said], "what is drawn is what the label says"
        seen.add(said)


def test_the_difference_is_signed_and_says_what_it_is(page: Page, site: Site) -> None:
    raw, sr = flat(2000, 2000)
    sr[: SIDE * 2, : SIDE * 2] += 400  # above left: brighter than acquired
    sr[SIDE * 2 :, SIDE * 2 :] -= 400
    site.show(1, "difference", raw, sr)
    shows(page, "right", 1, "difference")
    by_hand(page, 0, 4000)
    page.keyboard.press("4")
    described(page, "computed − acquired · em-x4, frame 1")
    share = round(400 / (0.25 * 4000) * 127) / 127  # of the full colour
    for dy, dx, colour in ((-80, -80, MORE), (80, 80, LESS), (-80, 80, (0, 0, 0)), (80, -80, (0, 0, 0))):
        becomes(page, "one", tuple(round(v * share) for v in colour), dy, dx)


def test_the_mode_is_kept_and_two_browsers_choose_their_own(chromium: Browser, page: Page, site: Site) -> None:
    site.pair(3, "modes")
    shows(page, "right", 3, "modes")
    page.keyboard.press("2")
    described(page, re.compile("frame 3$"))
    other = new_page(chromium)
    other.goto(site.url)
    shows(other, "right", 3, "modes")
    page.reload()
    described(page, re.compile("frame 3$"))
    site.pair(4, "modes")
    shows(other, "right", 4, "modes")
    described(page, re.compile("frame 4$"))
    other.context.close()


# -------------------------------------------------------------------- contrast and colours


def centre(page: Page, side: str, dy: int = 0, dx: int = 0) -> tuple[int, ...]:
    """The colour drawn in the middle, or beside it."""
    drawn = colours(page, side)
    return tuple(drawn[drawn.shape[0] // 2 + dy, drawn.shape[1] // 2 + dx].tolist())


def becomes(page: Page, side: str, colour: tuple[int, ...], dy: int = 0, dx: int = 0) -> None:
    """Wait until a place of a canvas is drawn in a colour, of which no attribute tells."""
    found = None
    for _ in range(PATIENCE_MS // 50):
        found = centre(page, side, dy, dx)
        if found == colour:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{side} is {found}, not {colour}")


def test_colour_tables_and_gamma(page: Page, site: Site) -> None:
    site.show(1, "lut", *flat(1000, 2000))
    shows(page, "right", 1, "lut")
    by_hand(page, 0, 4000)
    for lut in ("inverted", "viridis", "magma", "fire", "glow"):
        page.keyboard.press("l")
        for side, grey in (("left", 64), ("right", 128)):
            becomes(page, side, tuple(table(lut)[grey].tolist()))
    page.keyboard.press("l")
    page.keyboard.press("p")
    page.locator("#gamma").fill("0.5")
    becomes(page, "left", (round(0.5 * 255),) * 3)


def test_each_image_and_each_channel_may_have_its_own_contrast(page: Page, site: Site) -> None:
    site.show(1, "apart", *flat(1000, 1000))
    shows(page, "right", 1, "apart")
    by_hand(page, 0, 4000)
    becomes(page, "right", (64,) * 3)
    page.keyboard.press("p")
    page.locator("#shared").uncheck()
    page.locator("#edited [data-side=right]").click()
    page.locator("#high").fill("2000")
    becomes(page, "right", (128,) * 3)
    assert centre(page, "left") == (64,) * 3
    site.show(2, "apart", *flat(1000, 1000), channel="ETD")
    has(page.locator("#look_of"), "ETD")
    assert page.locator("#auto").is_checked()
    page.reload()
    site.show(3, "apart", *flat(1000, 1000))
    becomes(page, "right", (128,) * 3)
    becomes(page, "left", (64,) * 3)


def test_the_marks_of_the_histogram_are_dragged(page: Page, site: Site) -> None:
    raw, sr = specimen(1)
    raw[1], sr[4:8] = np.arange(0, 64 * 62, 62), 0
    site.show(1, "histogram", raw, sr)
    page.keyboard.press("p")
    shows(page, "right", 1, "histogram")
    by_hand_open = {"#low": "500", "#high": "3000"}
    for field, value in by_hand_open.items():
        page.locator(field).fill(value)
        page.locator(field).blur()
    settle(page)
    box = page.locator("#histogram").bounding_box()
    assert box is not None
    low, high = 0 - 0.02 * 63 * 62, 63 * 62 * 1.02  # 2 % more than the values, on both sides

    def x(grey: float) -> float:
        return box["x"] + (grey - low) / (high - low) * box["width"]

    page.mouse.move(x(3000), box["y"] + 30)
    page.mouse.down()
    page.mouse.move(x(2000), box["y"] + 30, steps=4)
    page.mouse.up()
    assert float(page.locator("#high").input_value()) == pytest.approx(2000, abs=40)
    assert page.locator("#low").input_value() == "500"


def test_channels_are_laid_over_each_other(page: Page, site: Site) -> None:
    site.show(1, "composite", *flat(1000, 1000), channel="DAPI")
    shows(page, "right", 1, "composite")
    by_hand(page, 0, 4000)
    site.show(2, "composite", *flat(3000, 3000), channel="mCherry")
    shows(page, "right", 2, "composite")
    by_hand(page, 0, 4000)
    page.locator("#channel").select_option("*")
    dapi, cherry = (np.array(c) for c in ((0x40, 0x60, 0xFF), (0xFF, 0x40, 0x20)))
    both = np.minimum(np.rint(dapi * 64 / 255) + np.rint(cherry * 191 / 255), 255)
    becomes(page, "left", tuple(int(v) for v in both))
    becomes(page, "right", tuple(int(v) for v in both))
    page.keyboard.press("p")
    page.locator("#channels label", has_text="mCherry").locator("[type=checkbox]").uncheck()
    becomes(page, "left", tuple(int(v) for v in np.rint(dapi * 64 / 255)))
    page.locator("#channel").select_option("DAPI")
    becomes(page, "left", (64,) * 3)
    site.show(3, "composite", *flat(2000, 2000), channel="mCherry")
    site.show(4, "composite", *flat(2000, 2000), channel="DAPI")
    becomes(page, "left", (128,) * 3)
    assert label(page, "left").endswith("frame 4")


def test_one_saturated_pixel_is_seen_at_any_zoom_and_counted(page: Page, site: Site) -> None:
    raw = np.full((700, 700), 1000, np.uint16)
    sr = np.full((1400, 1400), 1000, np.uint16)
    sr[701, 702], raw[10, 10] = 65535, 0
    site.show(1, "mask", raw, sr, scale=2)
    shows(page, "right", 1, "mask")
    page.keyboard.press("m")
    has(page.locator("#right .marked"), "1 saturated  ·  0 empty")
    has(page.locator("#left .marked"), "0 saturated  ·  1 empty")
    settle(page)

    def red() -> int:
        return int((colours(page, "right").astype(int) @ np.array([2, -1, -1]) > 200).sum())

    assert 1 <= red() <= 40, "one drawn pixel"
    box = canvas_box(page, "right")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(14):
        page.keyboard.press("+")
    has(page.locator("#right .what"), "exact pixels")
    settle(page)
    assert red() > 50, "one large square"


# -------------------------------------------------------------------- grey values


def textured() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    rng = np.random.default_rng(5)
    size = SIDE * SCALE
    return (
        rng.integers(0, 60_000, (SIDE, SIDE), dtype=np.uint16),
        rng.integers(0, 60_000, (size, size), dtype=np.uint16),
    )


def test_the_value_under_the_pointer_is_the_frames(page: Page, site: Site) -> None:
    raw, sr = textured()
    site.show(1, "pointer", raw, sr)
    shows(page, "right", 1, "pointer")
    zoom, left, top = fitted(page)
    box = canvas_box(page, "right")
    for y, x in ((20.4, 33.6), (50.1, 7.9)):
        page.mouse.move(box["x"] + left + x * zoom, box["y"] + top + y * zoom)
        values = f"raw {raw[int(y), int(x)]}  SR {sr[int(y * SCALE), int(x * SCALE)]}"
        has(page.locator("#readout"), f"x {int(x)}  y {int(y)}  ·  {values}")
    site.show(2, "pointer", raw // 2, sr // 2)
    has(page.locator("#readout"), f"raw {raw[50, 7] // 2}  SR {sr[200, 31] // 2}")


def test_a_dragged_region_is_measured_in_the_full_frame(page: Page, site: Site) -> None:
    raw, sr = textured()
    site.show(1, "region", raw, sr)
    shows(page, "right", 1, "region")
    page.keyboard.press("r")
    zoom, left, top = fitted(page)
    box = canvas_box(page, "left")
    page.mouse.move(box["x"] + left + 10.5 * zoom, box["y"] + top + 20.5 * zoom)
    page.mouse.down()
    page.mouse.move(box["x"] + left + 29.5 * zoom, box["y"] + top + 39.5 * zoom)
    page.mouse.up()
    has(page.locator("#roi_size"), "20 × 20 raw pixels at x 10, y 20, 0.320 × 0.320 µm")
    for name, part in (("raw", raw[20:40, 10:30]), ("SR", sr[80:160, 40:120])):
        row = page.locator(f"#measured tr[data-of={name}]")
        texts = [name, f"{part.mean():.1f}", f"{part.std():.1f}", f"{part.min()}", f"{part.max()}"]
        has(row, "".join(texts))
    page.locator("#roi_clear").click()
    assert page.locator("#measured").is_hidden()


# -------------------------------------------------------------------- the truth about it


def test_a_super_resolved_image_left_behind_is_told_in_red(page: Page, site: Site) -> None:
    from playwright.sync_api import expect

    site.status()
    site.pair(1, "behind", age_ms=12_000)
    shows(page, "right", 1, "behind")
    site.raw(101, "behind", age_ms=0)
    has(page.locator("#banner"), "The super-resolved image is 12 s old while raw frames go on")
    site.pair(102, "behind", age_ms=0)
    expect(page.locator("#banner")).to_be_hidden(timeout=PATIENCE_MS)


def test_stage_exposure_kind_and_queue_are_told(page: Page, site: Site) -> None:
    site.status(queue="full")
    site.pair(1, "told", stage_um=(1.5, -20.25, None), exposure_ms=12.5, kind="live")
    has(page.locator("#position"), "live mode  ·  BSE")
    has(page.locator("#position"), "x 1.50  y −20.25 µm  ·  12.5 ms")
    has(page.locator("[data-count=queued] dt"), "queue full")
    site.status(queue="high")
    has(page.locator("[data-count=queued] dt"), "queued ≥ 75 %")
    site.status()


def test_light_and_dark(chromium: Browser, site: Site) -> None:
    page = chromium.new_context(color_scheme="light").new_page()
    page.goto(site.url)

    def background() -> str:
        colour: str = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        return colour

    assert background() == "rgb(238, 241, 245)", "as the system wants it"
    page.locator("#theme").click()
    assert background() == "rgb(12, 15, 20)"
    page.reload()
    has(page.locator("#theme"), "Light")
    assert background() == "rgb(12, 15, 20)", "remembered"
    page.context.close()


def test_full_screen_shows_images_and_alarms_only(page: Page, site: Site) -> None:
    from playwright.sync_api import expect

    site.status(alarms=("disk full",))
    site.pair(1, "full")
    shows(page, "right", 1, "full")
    has(page.locator("#banner"), "disk full")
    page.keyboard.press("v")
    expect(page.locator("footer")).to_be_hidden(timeout=PATIENCE_MS)
    expect(page.locator("#banner")).to_be_visible()
    page.keyboard.press("v")
    expect(page.locator("footer")).to_be_visible(timeout=PATIENCE_MS)
    site.status()


def test_two_fingers_zoom_and_one_moves(chromium: Browser, site: Site) -> None:
    page = chromium.new_context(viewport={"width": 820, "height": 1180}, has_touch=True).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(site.url)
    site.pair(1, "touch")
    shows(page, "right", 1, "touch")
    before, where = bar(page, "left"), block(page, "left")[:2]
    box = canvas_box(page, "left")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    screen = page.context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(places)]
        screen.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def um_per_px(said: tuple[float, str, float]) -> float:
        return said[0] * {"nm": 1e-3, "µm": 1.0}[said[1]] / said[2]

    touch("touchStart", (x, y))
    touch("touchMove", (x - 15, y))
    touch("touchMove", (x - 30, y))
    touch("touchEnd")
    settle(page)
    after = block(page, "left")[:2]
    assert (after[0] - where[0], after[1] - where[1]) == pytest.approx((0, -30), abs=4)
    touch("touchStart", (x - 40, y), (x + 40, y))
    touch("touchMove", (x - 60, y), (x + 60, y))
    touch("touchMove", (x - 80, y), (x + 80, y))
    touch("touchEnd")
    settle(page)
    assert um_per_px(bar(page, "left")) == pytest.approx(um_per_px(before) / 2, rel=0.02)
    page.context.close()


def test_typing_a_number_is_not_a_key_of_the_view(page: Page, site: Site) -> None:
    site.pair(1, "typing")
    shows(page, "right", 1, "typing")
    page.keyboard.press("p")
    page.locator("#low").focus()
    page.keyboard.type("2 4")
    has(page.locator("#pause"), "Pause")
    assert page.locator("main").get_attribute("data-mode") == "side"


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
