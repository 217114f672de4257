from __future__ import annotations

import http.client
import io
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import tifffile
from PIL import Image
from recording import CHANNELS, SHA256, Recording, planes
from view_process import page_process

from live_sr.client.feed import Feed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PATIENCE_MS = 30_000  # for a loaded machine; nothing waits this long when it works
SHAPE = (90, 120)
LOW, HIGH = 900, 3900  # contrast by hand: 300 grey levels are one step of 25.5
_sessions = itertools.count()


class Site:
    def __init__(self, url: str, feed: Feed, folder: Path) -> None:
        self.url = url
        self.feed = feed
        self.folder = folder

    def recording(self, **options: Any) -> Recording:
        return Recording(self.folder, self.feed, session=f"s{next(_sessions)}", shape=SHAPE, **options)

    def get(self, path: str, method: str = "GET", body: str | None = None) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Feed("tcp://127.0.0.1:*", max_rate_hz=200) as feed, page_process(feed.address) as (url, _):
        yield Site(url, feed, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def page(chromium: Browser, site: Site) -> Iterator[Page]:
    page = chromium.new_context(viewport={"width": 1280, "height": 720}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(site.url)
    look = {"auto": False, "low": LOW, "high": HIGH, "gamma": 1, "lut": "grey"}
    looks = {"left": look, "right": look, "shared": True, "colour": "#ffffff", "on": True}
    kept = json.dumps(dict.fromkeys(CHANNELS, looks))
    page.evaluate("looks => localStorage.setItem('looks', looks)", kept)
    page.reload()
    yield page
    page.context.close()
    assert errors == []


def has(locator: Locator, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(text, timeout=PATIENCE_MS)


def shows(page: Page, seq: int, session: str, side: str = "right") -> None:
    from playwright.sync_api import expect

    canvas = page.locator(f"#{side} canvas")
    expect(canvas).to_have_attribute("data-session", session, timeout=PATIENCE_MS)
    expect(canvas).to_have_attribute("aria-label", re.compile(rf"frame {seq}$"), timeout=PATIENCE_MS)


def slider(page: Page, axis: str) -> Locator:
    return page.locator(f'#sliders input[aria-label="{axis}"]')


def goes_to(page: Page, axis: str, last: int) -> None:
    """Wait until the page knows that one can look back so far."""
    from playwright.sync_api import expect

    expect(slider(page, axis)).to_have_attribute("max", str(last), timeout=PATIENCE_MS)


def background(page: Page, side: str) -> float:
    """Grey value in the middle of what is drawn, from 8 bits by the contrast that is set."""
    value = page.evaluate(
        """side => {
            const c = document.querySelector(`#${side} canvas`);
            return c.getContext("2d").getImageData(c.width / 2, c.height / 2, 1, 1).data[0];
        }""",
        side,
    )
    return float(LOW + value / 255 * (HIGH - LOW))


def record(page: Page, recording: Recording, n: int) -> None:
    """Acquire `n` frames and wait until the last is drawn."""
    for _ in range(n):
        recording.acquire()
        recording.status()
    shows(page, recording.n - 1, recording.session)


def is_drawn(page: Page, place: dict[str, int]) -> None:
    """Wait until both sides show the pixels of `place`; a channel new to the page gets its contrast next."""
    expected = float(planes(place, SHAPE)[0][-1, -1])
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while True:
        drawn = [background(page, side) for side in ("left", "right")]
        if drawn == pytest.approx([expected] * 2, abs=14):  # one of 255 steps is 11.8
            return
        assert time.monotonic() < deadline, (drawn, expected)
        page.wait_for_timeout(50)


def test_a_slider_looks_back_and_live_goes_on(page: Page, site: Site) -> None:
    with site.recording() as run:
        record(page, run, 9)
        goes_to(page, "t", 4)
        slider(page, "t").fill("1")
        shows(page, 2, run.session)
        is_drawn(page, {"t": 1, "c": 0})
        has(page.locator("#looking"), re.compile(r"looking back at t 1 {2}c 0 · .* ago"))
        assert page.locator("#live").get_attribute("aria-pressed") == "false"
        slider(page, "c").fill("1")
        shows(page, 3, run.session)
        is_drawn(page, {"t": 1, "c": 1})
        has(page.locator("#sliders label[data-axis=c]"), "1 · SE")

        for _ in range(3):
            run.acquire()
        run.status(counts={"acquired": 12})
        has(page.locator('[data-count="acquired"] dd'), "12")
        goes_to(page, "t", 5)
        shows(page, 3, run.session)
        page.locator("#live").click()
        shows(page, 11, run.session)
        is_drawn(page, {"t": 5, "c": 1})
        assert slider(page, "t").input_value() == "5"
        assert page.locator("#looking").text_content() == ""


def test_keys_step_along_the_axis_used_last(page: Page, site: Site) -> None:
    with site.recording() as run:
        record(page, run, 10)
        goes_to(page, "t", 4)
        page.keyboard.press("ArrowLeft")
        shows(page, 6, run.session)
        page.keyboard.press("Home")
        shows(page, 0, run.session)
        page.keyboard.press("ArrowRight")
        shows(page, 2, run.session)
        page.keyboard.press("End")
        shows(page, 8, run.session)
        slider(page, "c").fill("1")
        shows(page, 9, run.session)
        page.locator("#fit").click()  # out of the slider
        page.keyboard.press("ArrowLeft")
        shows(page, 8, run.session)
        page.keyboard.press("Shift+L")
        shows(page, 9, run.session)
        assert page.locator("#live").get_attribute("aria-pressed") == "true"


def test_a_click_on_a_thumbnail_looks_back(page: Page, site: Site) -> None:
    from playwright.sync_api import expect

    with site.recording() as run:
        record(page, run, 9)
        thumbnails = page.locator("#strip button")
        expect(thumbnails).to_have_count(5, timeout=PATIENCE_MS)
        expect(page.locator("#strip button.sr")).to_have_count(5, timeout=PATIENCE_MS)
        has(thumbnails.nth(2), "t 2")
        bright = (
            thumbnails.nth(2)
            .locator("canvas")
            .evaluate(
                """c => { const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
                return [c.width, c.height, d[4 * (c.width * 4 + 19)], d[4 * (c.width * 50 + 50)]]; }"""
            )
        )
        assert bright[:2] == [96, 72]
        assert bright[2] > 200, "the block of the specimen"
        assert bright[3] < 60
        thumbnails.nth(2).click()
        shows(page, 4, run.session)
        is_drawn(page, {"t": 2, "c": 0})
        expect(thumbnails.nth(2)).to_have_attribute("aria-current", "true", timeout=PATIENCE_MS)
        page.locator("#strip_toggle").click()
        expect(page.locator("#strip")).to_be_hidden()


def test_an_image_that_is_not_there_is_said_and_appears_when_it_comes(page: Page, site: Site) -> None:
    from playwright.sync_api import expect

    with site.recording() as run:
        record(page, run, 2)
        run.acquire(returned=False)
        run.acquire()
        run.status()
        goes_to(page, "t", 1)
        slider(page, "t").fill("1")
        shows(page, 2, run.session, "left")
        has(page.locator("#looking"), "computed: not super-resolved yet")
        assert page.locator("#right canvas").get_attribute("aria-label") == "computed image"
        expect(page.locator("#strip button.raw")).to_have_count(1, timeout=PATIENCE_MS)
        run.restore(2)
        shows(page, 2, run.session)
        is_drawn(page, {"t": 1, "c": 0})
        has(page.locator("#right .what"), "deferred")


def test_the_next_run_begins_live(page: Page, site: Site) -> None:
    with site.recording() as one:
        record(page, one, 5)
        goes_to(page, "t", 2)
        slider(page, "t").fill("0")
        shows(page, 0, one.session)
    with site.recording() as two:
        two.acquire()
        two.status()
        shows(page, 0, two.session)
        has(page.locator("#toasts"), "the next run has begun")
        assert page.locator("#live").get_attribute("aria-pressed") == "true"


def test_snapshots_of_what_is_looked_at(page: Page, site: Site, tmp_path: Path) -> None:
    with site.recording() as run:
        record(page, run, 9)
        goes_to(page, "t", 4)
        slider(page, "t").fill("3")
        shows(page, 6, run.session)
        page.locator("#panel_toggle").click()
        raw, sr = planes({"t": 3, "c": 0}, SHAPE)

        file, name = download(page, "#snap_png", tmp_path)
        assert name == f"live-sr_{run.session}_run1_t3_c0_raw-sr.png"
        with Image.open(file) as image:
            drawn = np.asarray(image.convert("L")).astype(float)
            assert image.text["sr.model"] == "em-x4"  # type: ignore[attr-defined]
            assert image.text["left.contrast"] == f"{LOW} to {HIGH}"  # type: ignore[attr-defined]
        width = (drawn.shape[1] - 7) // 2
        expected = np.rint((raw[60, 60] - LOW) / (HIGH - LOW) * 255)
        for half in (drawn[:, :width], drawn[:, -width:]):
            y, x = np.array(half.shape) // 2
            assert half[y, x] == expected
            assert (half[:50, :400] == 255).sum() > 100, "labelled"

        for button, side, pixels, um in (("#snap_raw", "raw", raw, 0.016), ("#snap_sr", "sr", sr, 0.004)):
            file, name = download(page, button, tmp_path)
            assert name == f"live-sr_{run.session}_run1_t3_c0_{side}.ome.tif"
            with tifffile.TiffFile(file) as tiff:
                np.testing.assert_array_equal(tiff.asarray(), pixels)
                assert tiff.pages.first.resolution[0] == pytest.approx(1e4 / um)
                assert (SHA256 in (tiff.ome_metadata or "")) == (side == "sr")


def download(page: Page, button: str, folder: Path) -> tuple[Path, str]:
    with page.expect_download(timeout=PATIENCE_MS) as started:
        page.locator(button).click()
    file = folder / started.value.suggested_filename
    started.value.save_as(file)
    return file, started.value.suggested_filename


def test_a_paused_page_snaps_the_frame_that_it_froze(page: Page, site: Site, tmp_path: Path) -> None:
    with site.recording(raw=False, sr=False) as run:
        record(page, run, 1)
        page.locator("#panel_toggle").click()
        page.keyboard.press("Space")
        has(page.locator("#left .what"), "exact pixels")
        for _ in range(3):
            run.acquire()
        run.status(counts={"acquired": 4})
        has(page.locator('[data-count="acquired"] dd'), "4")
        file, name = download(page, "#snap_sr", tmp_path)
        assert name == f"live-sr_{run.session}_run1_t0_c0_sr.ome.tif"
        np.testing.assert_array_equal(tifffile.imread(file), planes({}, SHAPE)[1])


def test_a_movie_is_made_downloaded_and_gone(page: Page, site: Site, tmp_path: Path) -> None:
    with site.recording() as run:
        record(page, run, 9)
        goes_to(page, "t", 4)
        page.locator("#panel_toggle").click()
        page.locator("#movie_px").select_option("480")
        page.locator("#movie_contrast").select_option("given")
        file, name = download(page, "#movie_make", tmp_path)
        assert name == f"live-sr_{run.session}_run1_c0_t0-4_raw-sr.mp4"
        with av.open(str(file)) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert len(frames) == 5
        for t, frame in enumerate(frames):
            grey = planes({"t": t, "c": 0}, SHAPE)[0][60, 60]
            expected = (grey - LOW) / (HIGH - LOW) * 255
            assert frame[180, 240] == pytest.approx(expected, abs=2)
            assert frame[180, -240] == pytest.approx(expected, abs=2)
        has(page.locator("#movie_said"), name)
        number = json.loads(site.get("/movie")[2])["number"]
        assert site.get(f"/movie/{number}")[0] == 404


def test_a_refused_movie_says_why(page: Page, site: Site) -> None:
    with site.recording() as run:
        record(page, run, 3)
        goes_to(page, "t", 1)
        code, _, body = site.get("/movie", "POST", json.dumps({"axis": "z"}))
        assert (code, b"this run has no axis 'z', it has: t, c" in body) == (422, True)
        assert site.get("/movie", "POST", json.dumps({"axis": "t", "fps": 1}))[0] == 422
        assert site.get("/movie", "POST", " " * 5000)[0] == 413
        assert site.get("/movie", "DELETE")[0] == 200


def test_a_script_gets_a_snapshot_by_place(page: Page, site: Site) -> None:
    with site.recording() as run:
        record(page, run, 5)
        goes_to(page, "t", 2)
        code, headers, body = site.get('/snapshot.tif?side=raw&at={"t":1,"c":1}')
        assert (code, headers["content-type"]) == (200, "image/tiff")
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(body)), planes({"t": 1, "c": 1}, SHAPE)[0])
        assert site.get('/snapshot.tif?side=sr&at={"t":7,"c":1}')[0] == 404
        assert site.get('/snapshot.png?at={"t":7,"c":1}')[0] == 404
        key = json.loads(site.get("/run.json")[2])["key"]
        assert site.get(f'/thumbnail.jpg?run={key}&at={{"t":1}}')[0] == 200
        assert site.get('/thumbnail.jpg?run=other&at={"t":1}')[0] == 204
        assert site.get('/thumbnail.jpg?run=other&at={"t":-1}')[0] == 204
