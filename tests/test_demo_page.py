"""A demo as an operator meets it: real Chromium against one running ``live-sr demo``.

The tests are one story in this order, from the first frame to the loss of the server and the end.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from PIL import Image

from live_sr.demo import COMPARED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PATIENCE_MS = 30_000  # for a loaded machine; nothing waits this long when it works
SIZE = 96  # pixels of the raw frame
DWELL_US = 5  # 46 ms a frame: more than it takes to restore one on a CPU
FRAMES = 2400  # two minutes at least: it is cancelled


@dataclass
class Demo:
    process: subprocess.Popen[str]
    url: str
    control_url: str
    out: Path
    said: list[str]
    reader: threading.Thread

    def child(self, command: str) -> int:
        """Process id of the part that runs this command."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        (found,) = (int(line.split()[0]) for line in listed if f"live_sr {command} " in line)
        return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    out = tmp_path_factory.mktemp("demo") / "out"
    options = {"size": SIZE, "scale": 2, "frames": FRAMES, "dwell-us": DWELL_US, "port": 0, "out": out}
    command = [sys.executable, "-u", "-m", "live_sr", "demo"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if "control it" in line:
                break
        urls = [word for line in said for word in line.split() if word.startswith("http://")]
        assert len(urls) == 2, said
        reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
        reader.start()
        try:
            yield Demo(process, urls[0], urls[1], out, said, reader)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            finally:
                process.kill()
                reader.join(timeout=10)


@contextmanager
def opened(chromium: Browser, url: str) -> Iterator[Page]:
    """A page that shows frames, and ends without an error."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    goes_on(page, "left", -1)
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def page(chromium: Browser, demo: Demo) -> Iterator[Page]:
    with opened(chromium, demo.control_url) as page:
        yield page


def has(locator: Locator, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(text, timeout=PATIENCE_MS)


def frame(page: Page, side: str) -> int:
    """Number of the frame that is drawn; -1 for none."""
    label = page.locator(f"#{side} canvas").get_attribute("aria-label") or ""
    found = re.search(r"frame (\d+)", label)
    return int(found[1]) if found else -1


def goes_on(page: Page, side: str, after: int, by: int = 1) -> int:
    """Wait until a frame at least `by` later is drawn, and give its number."""
    said = page.wait_for_function(
        """([side, least]) => {
            const label = document.querySelector(`#${side} canvas`).ariaLabel ?? "";
            const found = label.match(/frame (\\d+)/);
            return found && Number(found[1]) >= least ? Number(found[1]) + 1 : 0;
        }""",
        arg=[side, after + by],
    ).json_value()
    return int(said) - 1


def drawn(page: Page, side: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """What is on the canvas, (Y, X, 3)."""
    url: str = page.locator(f"#{side} canvas").evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def returns(page: Page, least: int) -> None:
    """Wait until the ledger counts so many super-resolved frames."""
    page.wait_for_function(
        """least => {
            const told = document.querySelector('[data-count="returned"] dd').textContent;
            return Number(told.replaceAll(",", "")) >= least;
        }""",
        arg=least,
    )


def freeze(page: Page) -> None:
    """Pause, and wait until a picture that was under way has come as well."""
    page.keyboard.press("Space")
    has(page.locator("#pause"), "Resume")
    returns(page, frame(page, "right") + 10)


def settle(page: Page) -> None:
    """Two animation frames: what was asked for before has been drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_both_images_run_and_the_right_one_says_that_it_is_computed(page: Page) -> None:
    first = goes_on(page, "right", -1)
    goes_on(page, "right", first, by=10)
    label = page.locator("#right canvas").get_attribute("aria-label") or ""
    assert label.startswith("computed image · em-x2, frame ")
    has(page.locator("#run"), "acquiring")
    has(page.locator("#server"), "server ready · em-x2")
    assert page.locator("#banner").is_hidden()


def test_a_line_swipes_between_acquired_and_computed(page: Page) -> None:
    from playwright.sync_api import expect

    goes_on(page, "right", -1)
    page.locator("#strip button").first.wait_for()  # from here on the pictures keep their size
    page.keyboard.press("2")
    expect(page.locator("#one")).to_be_visible()
    expect(page.locator("#left")).to_be_hidden()
    freeze(page)
    has(page.locator("#one .what").first, "exact pixels")
    unmarked = slice(45, -60)  # rows without labels and scale bar
    middle = drawn(page, "one").astype(int)[unmarked]
    for _ in range(4):
        page.keyboard.press(",")
    settle(page)
    further = drawn(page, "one").astype(int)[unmarked]
    changed = np.flatnonzero(np.abs(further - middle).max(axis=(0, 2)) > 20)
    assert len(changed) > 20, "a strip that was acquired is now computed"
    half = middle.shape[1] / 2
    assert changed.max() <= half + 20
    page.keyboard.press("1")
    expect(page.locator("#left")).to_be_visible()


def test_zoom_is_linked_and_goes_back(page: Page) -> None:
    from playwright.sync_api import expect

    goes_on(page, "right", -1)
    expect(page.locator('#sliders input[aria-label="t"]')).to_be_visible()  # takes room from the pictures
    settle(page)

    def bars() -> list[float]:
        said = [
            page.locator(f"#{side} canvas").get_attribute("data-scale-bar") or "" for side in ("left", "right")
        ]
        pixels_per_nm = []
        for text in said:
            amount, length = text.split(" = ")
            number, unit = amount.split()
            pixels_per_nm.append(float(length) / (float(number) * {"nm": 1, "µm": 1000}[unit]))
        return pixels_per_nm

    fitted = bars()
    assert fitted[0] == pytest.approx(fitted[1], rel=1e-3)
    for _ in range(3):
        page.keyboard.press("+")
    settle(page)
    assert bars() == pytest.approx([fitted[0] * 1.25**3] * 2, rel=1e-3)
    goes_on(page, "right", frame(page, "right"), by=3)
    page.keyboard.press("f")
    settle(page)
    assert bars() == pytest.approx(fitted, rel=1e-3)


def test_contrast_by_hand_holds_for_the_frames_that_follow(page: Page) -> None:
    goes_on(page, "right", -1)
    page.locator("#panel_toggle").click()
    page.locator("#low").fill("0")
    page.locator("#high").fill("1")
    page.locator("#high").blur()
    assert not page.locator("#auto").is_checked()
    for side in ("left", "right"):
        goes_on(page, side, frame(page, side), by=3)
        image = drawn(page, side)
        assert np.median(image[image.shape[0] // 3 : -image.shape[0] // 3]) == 255
    page.locator("#auto").check()
    for side in ("left", "right"):
        goes_on(page, side, frame(page, side), by=3)
        image = drawn(page, side)
        assert np.median(image[image.shape[0] // 3 : -image.shape[0] // 3]) < 250


def test_a_slider_looks_back_and_live_goes_on(page: Page) -> None:
    from playwright.sync_api import expect

    before = goes_on(page, "right", -1, by=20)
    slider = page.locator('#sliders input[aria-label="t"]')
    slider.fill("5")
    for side in ("left", "right"):
        expect(page.locator(f"#{side} canvas")).to_have_attribute("aria-label", re.compile("frame 5$"))
    has(page.locator("#looking"), re.compile(r"looking back at t 5 · .* ago"))
    acquired = page.locator('[data-count="acquired"] dd')
    expect(acquired).not_to_have_text(acquired.text_content() or "")  # the run goes on meanwhile
    assert frame(page, "left") == frame(page, "right") == 5
    page.locator("#live").click()
    goes_on(page, "right", before, by=5)


def test_pause_freezes_the_picture_and_not_the_acquisition(page: Page) -> None:
    goes_on(page, "right", -1)
    page.locator("#strip button").first.wait_for()  # from here on the pictures keep their size
    freeze(page)
    held = frame(page, "left"), frame(page, "right")
    image = drawn(page, "left")
    returns(page, held[1] + 20)
    assert (frame(page, "left"), frame(page, "right")) == held
    np.testing.assert_array_equal(drawn(page, "left"), image)
    page.keyboard.press("Space")
    goes_on(page, "right", held[1], by=20)


def test_the_panel_changes_the_model_of_the_frames_that_follow(page: Page) -> None:
    from playwright.sync_api import expect

    goes_on(page, "right", -1)
    page.locator("#panel_toggle").click()
    choice = page.get_by_role("combobox", name="model of all others").or_(
        page.get_by_role("combobox", name="model", exact=True)
    )
    assert choice.locator("option").all_text_contents() == ["em-x2", "em-x2-nano"]
    choice.select_option("em-x2-nano")
    expect(choice).to_have_value("em-x2-nano")
    label = re.compile(r"^computed image · em-x2-nano, frame \d+$")
    expect(page.locator("#right canvas")).to_have_attribute("aria-label", label)
    has(page.locator("#server"), "em-x2-nano")


def test_a_dropped_file_comes_back_enhanced(page: Page, tmp_path: Path) -> None:
    y, x = np.mgrid[:48, :64]
    sent = (2000 + 1000 * np.sin(np.hypot(y, x) / 4)).astype(np.uint16)
    content = io.BytesIO()
    tifffile.imwrite(content, sent)
    page.locator(".drop").wait_for(state="attached")
    given = page.evaluate_handle(
        """text => {
            const all = new DataTransfer();
            all.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], "rings.tif"));
            return all;
        }""",
        base64.b64encode(content.getvalue()).decode(),
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("main", event, {"dataTransfer": given})
    card = page.locator(".file", has_text="rings.tif")
    has(card, "computed with em-x2")
    with page.expect_download() as download:
        card.get_by_role("link", name="Download").click()
    download.value.save_as(tmp_path / "rings.sr.tif")
    found = tifffile.imread(tmp_path / "rings.sr.tif")
    assert found.shape == (96, 128)
    binned = found.reshape(48, 2, 64, 2).mean((1, 3))
    assert np.corrcoef(binned.ravel(), sent.ravel())[0, 1] > 0.9


def test_two_browsers_both_get_the_newest_frames(chromium: Browser, demo: Demo) -> None:
    with opened(chromium, demo.url) as one, opened(chromium, demo.url) as two:
        begun = max(frame(one, "right"), frame(two, "right"))
        for each in (one, two):
            goes_on(each, "right", begun, by=20)


def test_a_killed_server_is_shown_and_the_demo_ends_with_counts_that_add_up(
    chromium: Browser, demo: Demo
) -> None:
    with opened(chromium, demo.control_url) as page:
        at_kill = goes_on(page, "right", -1)
        os.kill(demo.child("serve"), signal.SIGKILL)
        banner = page.locator("#banner")
        has(banner, "Super-resolution server away: raw is being stored")
        colour = banner.evaluate("element => getComputedStyle(element).backgroundColor")
        red, green, blue = (int(n) for n in re.findall(r"\d+", colour)[:3])
        assert red > 2 * max(green, blue)
        has(banner, "judge by the acquired image")
        seen = goes_on(page, "left", frame(page, "left"), by=10)
        page.wait_for_function(  # live is where the acquisition is
            "least => Number(document.querySelector('#sliders input[aria-label=t]').value) >= least", arg=seen
        )
        compared = np.linspace(0, FRAMES - 1, COMPARED).astype(int)
        goes_on(page, "left", int(compared[compared > at_kill + 20][0]))  # one without a computed image
        page.locator("#panel_toggle").click()
        page.get_by_role("button", name="Cancel…").click()
        page.get_by_role("button", name="Cancel the sequence").click()
        has(page.locator("#run"), "draining")
    assert demo.process.wait(timeout=60) == 1
    demo.reader.join(timeout=10)
    said = "".join(demo.said)
    assert "the acquisition did not run to its end: canceled" in said
    assert "super-resolved data are NOT complete" in said
    assert "Traceback" not in said
    numbers = json.loads((demo.out / "report.json").read_text())
    assert numbers["acquired"] == numbers["raw_verified"] == numbers["returned"] + numbers["failed"]
    assert numbers["queued"] == numbers["in_flight"] == numbers["deferred"] == 0
    assert numbers["saved"] == numbers["returned"] > 0
    assert numbers["failed"] > 0
    assert numbers["psnr_db"]["live_sr"] > numbers["psnr_db"]["bicubic"]
