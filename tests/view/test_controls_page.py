"""The control panel and one's own files, in real Chromium, against a real session, camera, server and page."""

from __future__ import annotations

import base64
import io
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
import useq
from PIL import Image
from pymmcore_plus import CMMCorePlus
from view_process import TOKEN, page_process, server_process

from live_sr import LiveSR
from live_sr.upscaler import Bilinear, bilinear
from rig import SCALE, SHAPE, Brighter, Gated, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 30_000  # for a loaded machine; nothing waits this long when it works
LOCAL = "tcp://127.0.0.1:*"


@contextmanager
def camera() -> Iterator[CMMCorePlus]:
    logging.getLogger("pymmcore-plus").setLevel(logging.ERROR)
    core = CMMCorePlus()
    core.loadSystemConfiguration()
    y, x = SHAPE
    core.setROI(0, 0, x, y)
    core.setExposure(1)
    core.mda.engine.use_hardware_sequencing = False  # type: ignore[union-attr]  # steps are between frames
    try:
        yield core
    finally:
        core.mda.cancel()
        core.unloadAllDevices()


@dataclass
class Session:
    """A session that waits at each frame for a permit, and its page."""

    sr: LiveSR
    core: CMMCorePlus
    url: str
    control_url: str
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def run(self, sequence: useq.MDASequence) -> threading.Thread:
        return self.core.run_mda(sequence)

    def _wait(self, event: useq.MDAEvent) -> None:
        self.permits.acquire(timeout=20)


@contextmanager
def session(**options: object) -> Iterator[Session]:
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("LIVE_SR_TOKEN", TOKEN)
        core = stack.enter_context(camera())
        server = stack.enter_context(serving([Bilinear(SCALE), Brighter(7)]))
        sr = stack.enter_context(LiveSR(server.address, view=LOCAL, control=LOCAL))
        assert sr.wait_ready(20)
        assert sr.view_address is not None
        given = {"server": server.address, **options}
        url, process = stack.enter_context(page_process(sr.view_address, **given))
        assert process.stdout is not None
        control_url = process.stdout.readline().split()[-1]
        sr.attach(core)
        it = Session(sr, core, url, control_url)
        core.mda.events.eventStarted.connect(it._wait)
        yield it
        core.mda.cancel()
        it.permits.release(1000)


@pytest.fixture(scope="module")
def running(chromium: Browser) -> Iterator[Session]:
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE_MS)
    with session() as it:
        yield it


@pytest.fixture
def page(chromium: Browser, running: Session) -> Iterator[Page]:
    with opened(chromium, running.control_url) as page:
        yield page


@contextmanager
def opened(chromium: Browser, url: str, refused: int = 0) -> Iterator[Page]:
    """A page with its panel open; `refused` is how many requests are answered with a refusal meanwhile."""
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
    context.add_init_script("localStorage.setItem('panel', 'open')")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("filechooser", lambda chooser: None)  # hands all of them over from now on
    page.goto(url)
    if "#" in url:  # the token has been taken when files are
        page.locator(".drop").wait_for()
    yield page
    context.close()
    assert len([e for e in errors if "status of 4" in e]) <= refused
    assert [e for e in errors if "status of 4" not in e] == []


def toast(page: Page, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#toasts")).to_contain_text(text)


def test_the_token_leaves_the_address_and_lasts(page: Page, running: Session) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#control .lock")).to_be_hidden()
    assert page.evaluate("location.hash") == ""
    assert TOKEN not in page.evaluate("document.cookie + JSON.stringify({...localStorage})")
    page.goto(running.url)
    expect(page.locator(".drop")).to_be_visible()


def test_without_the_token_one_watches_and_reads_why_no_more(chromium: Browser, running: Session) -> None:
    from playwright.sync_api import expect

    with opened(chromium, running.url, refused=1) as page:
        expect(page.locator("#control .lock")).to_contain_text("To control, give the token")
        expect(page.locator("#control select").first).to_be_disabled()
        assert page.locator("#control select").first.get_attribute("title") == "Give the token first."
        expect(page.locator("#files .why").first).to_contain_text("Give the token first")
        page.locator("#control .token input").fill("not the token, surely")
        page.keyboard.press("Enter")
        expect(page.locator("#control .token .bad")).to_contain_text("not the token of this page")
        page.locator("#control .token input").fill(TOKEN)
        page.get_by_role("button", name="Unlock").first.click()
        expect(page.locator("#control .lock")).to_be_hidden()
        expect(page.locator("#control select").first).to_be_enabled()


def test_a_model_is_chosen_and_shown_when_it_is_in_use(page: Page, running: Session) -> None:
    from playwright.sync_api import expect

    select = page.get_by_label("model", exact=True)
    expect(select).to_have_value(f"bilinear-x{SCALE}")
    select.select_option("plus-7")
    toast(page, "plus-7 restores frames")
    expect(select).to_have_value("plus-7")
    assert running.sr._status("idle").control.chosen == {"": "plus-7"}
    running.sr.choose(f"bilinear-x{SCALE}")  # by the program: the page follows
    expect(select).to_have_value(f"bilinear-x{SCALE}")


def test_a_sequence_is_paused_resumed_and_cancelled_and_each_channel_has_its_model(
    page: Page, running: Session
) -> None:
    from playwright.sync_api import expect

    pause = page.get_by_role("button", name="Pause acquisition")
    expect(pause).to_be_disabled()
    assert pause.get_attribute("title") == "No sequence is running."
    channels = useq.MDASequence(channels=["DAPI", "FITC"], time_plan={"interval": 0, "loops": 500})
    thread = running.run(channels)
    running.permits.release(2)
    state = page.locator("#control .sequence .name")
    expect(state).to_have_text("sequence 1: running")
    page.get_by_label("model of FITC").select_option("plus-7")
    expect(page.get_by_label("model of FITC")).to_have_value("plus-7")
    expect(page.get_by_label("model of all others")).to_have_value(f"bilinear-x{SCALE}")
    page.get_by_label("model of FITC").select_option("as all others")
    expect(page.get_by_label("model of FITC")).to_have_value("")

    pause.click()
    running.permits.release(1)
    expect(state).to_have_text("sequence 1: paused")
    assert running.core.mda.is_paused()
    page.get_by_role("button", name="Resume acquisition").click()
    expect(state).to_have_text("sequence 1: running")

    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Keep acquiring").click()
    assert running.core.mda.is_running()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the sequence").click()
    running.permits.release(10)
    thread.join(timeout=20)
    expect(state).to_have_text("no sequence is running")
    assert running.sr.counts.acquired < 20


def test_super_resolution_is_switched_off_and_on_by_keyboard(page: Page, running: Session) -> None:
    from playwright.sync_api import expect

    switch = page.get_by_role("switch", name="super-resolution")
    expect(switch).to_have_attribute("aria-checked", "true")
    switch.focus()
    page.keyboard.press("Space")
    toast(page, "super-resolved later")
    expect(switch).to_have_attribute("aria-checked", "false")
    assert not running.sr._status("idle").control.sr_on
    page.keyboard.press("Space")
    expect(switch).to_have_attribute("aria-checked", "true")


def test_a_program_that_waits_is_started(page: Page, running: Session) -> None:
    from playwright.sync_api import expect

    start = page.get_by_role("button", name="Start", exact=True)
    expect(start).to_be_hidden()
    started: list[bool] = []
    waiter = threading.Thread(target=lambda: started.append(running.sr.wait_for_start(20)))
    waiter.start()
    expect(page.locator("#control .sequence .name")).to_have_text("waiting to be started")
    start.click()
    waiter.join(timeout=20)
    assert started == [True]
    expect(start).to_be_hidden()


# --------------------------------------------------------------------------------- files


def stack(n: int = 3, side: int = 40, seed: int = 0) -> bytes:
    """An OME-TIFF with a pixel size."""
    pixels = np.random.default_rng(seed).integers(500, 4000, (n, side, side + 8), np.uint16)
    out = io.BytesIO()
    size = {"PhysicalSizeX": 0.02, "PhysicalSizeY": 0.02, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(out, pixels, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **size})
    return out.getvalue()


def dropped(page: Page, *files: tuple[str, bytes]) -> None:
    """Drop files on the middle of the page, as a hand would."""
    given = page.evaluate_handle(
        """files => {
            const all = new DataTransfer();
            for (const [name, text] of files) {
                all.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            }
            return all;
        }""",
        [[name, base64.b64encode(content).decode()] for name, content in files],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("main", event, {"dataTransfer": given})


def fetched(page: Page, name: str, folder: Path) -> Path:
    """Download the result of the file of this name."""
    card = page.locator(".file", has_text=name)
    with page.expect_download() as download:
        card.get_by_role("link", name="Download").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_dropped_stack_comes_back_enhanced_and_says_how(page: Page, running: Session, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    sent = stack()
    dropped(page, ("cells.ome.tif", sent))
    card = page.locator(".file", has_text="cells.ome.tif")
    expect(card).to_contain_text(f"computed with bilinear-x{SCALE}")
    after = card.locator("img.after")
    expect(after).to_be_visible()
    page.wait_for_function("document.querySelector('img.after').naturalWidth > 0")
    assert after.evaluate("image => image.naturalWidth") == 48 * SCALE
    path = fetched(page, "cells.ome.tif", tmp_path)
    assert path.name == "cells.sr.ome.tif"
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert 'PhysicalSizeX="0.01"' in (file.ome_metadata or "")
        assert f"Computed with bilinear-x{SCALE}, sha256" in (file.ome_metadata or "")
        found = file.asarray()
    expected = [bilinear(plane, SCALE) for plane in tifffile.imread(io.BytesIO(sent))]
    np.testing.assert_array_equal(found, expected)
    card.get_by_role("button", name="Remove").click()
    expect(card).to_have_count(0)


def test_a_16_bit_png_is_chosen_by_keyboard_and_stays_one(page: Page, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    pixels = np.random.default_rng(1).integers(0, 65536, (24, 32), np.uint16)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    page.locator(".drop input").focus()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "scan.png")
    expect(page.locator(".file", has_text="scan.png")).to_contain_text("computed with")
    with Image.open(fetched(page, "scan.png", tmp_path)) as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), bilinear(pixels, SCALE))
        assert "Computed with" in image.text["Description"]  # type: ignore[attr-defined]


def test_a_photograph_is_refused_with_a_way_out(chromium: Browser, running: Session) -> None:
    from playwright.sync_api import expect

    out = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(out, "PNG")
    with opened(chromium, running.control_url, refused=1) as page:
        dropped(page, ("holiday.tif", out.getvalue()))
        card = page.locator(".file", has_text="holiday.tif")
        expect(card).to_contain_text("save one channel as grey levels")
        card.get_by_role("button", name="Remove").click()
        expect(card).to_have_count(0)


def test_two_pages_send_at_once_and_both_get_theirs(
    chromium: Browser, running: Session, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    with opened(chromium, running.control_url) as one, opened(chromium, running.control_url) as two:
        contents = {"one.tif": stack(4, seed=4), "two.tif": stack(4, seed=5)}
        for page, (name, content) in zip((one, two), contents.items(), strict=True):
            dropped(page, (name, content))
        for page, (name, content) in zip((one, two), contents.items(), strict=True):
            expect(page.locator(".file", has_text=name)).to_contain_text("computed with")
            found = tifffile.imread(fetched(page, name, tmp_path))
            expected = [bilinear(plane, SCALE) for plane in tifffile.imread(io.BytesIO(content))]
            np.testing.assert_array_equal(found, expected)
            page.locator(".file", has_text=name).get_by_role("button", name="Remove").click()
            expect(page.locator(".file", has_text=name)).to_have_count(0)


def test_one_waits_for_the_file_before_it_and_a_cancelled_one_makes_room(
    chromium: Browser, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    gate = Gated()
    with (
        serving(gate) as server,
        page_process("tcp://127.0.0.1:9", server=server.address) as (_, process),
        opened(chromium, (process.stdout.readline() if process.stdout else "").split()[-1]) as page,
    ):
        first, second = (page.locator(".file", has_text=name) for name in ("first.tif", "second.tif"))
        dropped(page, ("first.tif", stack()))
        expect(first).to_contain_text("on cpu")
        dropped(page, ("second.tif", stack(2)))
        expect(second).to_contain_text("waiting for the file before it")
        gate.permit()
        expect(first).to_contain_text("1 of 3 planes")
        first.get_by_role("button", name="Cancel").click()
        expect(first).to_have_count(0)
        gate.open()
        expect(second).to_contain_text("computed with")


def test_a_server_that_is_killed_and_comes_back_finishes_the_file(chromium: Browser, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    content = stack(500, 160)
    (tmp_path / "long.tif").write_bytes(content)
    with ExitStack() as parts:
        address, server = parts.enter_context(server_process())
        _, process = parts.enter_context(page_process("tcp://127.0.0.1:9", server=address))
        assert process.stdout is not None
        page = parts.enter_context(opened(chromium, process.stdout.readline().split()[-1]))
        page.locator(".drop input").set_input_files(tmp_path / "long.tif")
        card = page.locator(".file", has_text="long.tif")
        page.evaluate(
            """async () => {
                const told = async () => (await fetch("/jobs")).json();
                const begun = async () => (await told()).jobs.some((job) => job.done > 0);
                while (!(await begun())) await new Promise((done) => setTimeout(done, 10));
            }"""
        )
        server.kill()
        expect(card).to_contain_text("waiting for the server, 90 s at most")
        parts.enter_context(server_process(address))
        expect(card).to_contain_text("computed with")
        found = tifffile.imread(fetched(page, "long.tif", tmp_path))
    for restored, raw in zip(found, tifffile.imread(io.BytesIO(content)), strict=True):
        np.testing.assert_array_equal(restored, bilinear(raw, SCALE))
