"""Pictures of the live page for the documentation, taken in Chromium from a running demo.

    python tools/screenshots.py            # docs/images/page-*.png
    python tools/screenshots.py --all OUT  # every state, light and dark, to look at

The specimen is procedural, server and model are the shipped ones. Needs Chromium and the `test` group.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = {"width": 1280, "height": 720}
TABLET = {"width": 820, "height": 1180}
LARGEST = 500_000  # bytes of a picture in the repository
PATIENCE_MS = 60_000


@contextlib.contextmanager
def demo(*options: str) -> Iterator[str]:
    """A demo that runs as long as the block: the address of its page."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", "-m", "live_sr", "demo", "--frames", "100000", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--out", f"{folder}/out", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "watch it at" in line:
                    break
            else:
                raise SystemExit("the demo did not start")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


def press(*keys: str) -> Callable[[Page], None]:
    """What some keys show."""

    def do(page: Page) -> None:
        for key in keys:
            page.keyboard.press(key)

    return do


def zoomed(page: Page) -> None:
    """Single pixels around a place left of the middle."""
    box = page.locator("#left canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.45)
    for _ in range(8):
        page.keyboard.press("+")


def panel(page: Page) -> None:
    """Contrast by hand, and a measured region."""
    page.keyboard.press("p")
    page.locator("#high").fill("30000")
    box = page.locator("#right canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 0.35, box["y"] + box["height"] * 0.35
    page.keyboard.down("Shift")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y + 90)
    page.mouse.up()
    page.keyboard.up("Shift")


def composite(page: Page) -> None:
    """All channels, each in its colour."""
    page.locator("#channel").select_option("*")
    page.keyboard.press("p")


STATES: dict[str, Callable[[Page], None]] = {
    "side": press(),
    "swipe": press("2"),
    "difference": press("4", "p"),
    "pixels": zoomed,
    "panel": panel,
}
MORE: dict[str, Callable[[Page], None]] = {
    "blink": press("3"),
    "magma": press("l", "l", "l"),
    "paused": press(" ", "m"),
    "help": press("?"),
}
IN_DOCS = {"side": "light", "swipe": "dark", "difference": "dark", "panel": "light"}


def take(url: str, path: Path, do: Callable[[Page], None], theme: str, size: dict[str, int]) -> None:
    """One picture of one state, in a browser that remembers nothing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        page.locator("#right .what", has_text="frame").wait_for()
        do(page)
        page.wait_for_timeout(1500)  # for contrast and rates to settle: nothing on the page says when
        save(page.screenshot(), path)
        browser.close()


def save(png: bytes, path: Path) -> None:
    """With as many colours as fit into the size that the repository takes."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32):
        image.quantize(colours).save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            break
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--all", type=Path, metavar="OUT", help="every state in light and dark, into this folder"
    )
    out = parser.parse_args().all
    with demo() as url:
        if out is None:
            for name, theme in IN_DOCS.items():
                take(url, IMAGES / f"page-{name}.png", STATES[name], theme, SIZE)
            return
        out.mkdir(exist_ok=True, parents=True)
        for name, do in {**STATES, **MORE}.items():
            for theme in ("light", "dark"):
                take(url, out / f"{name}-{theme}.png", do, theme, SIZE)
        take(url, out / "tablet.png", press(), "dark", TABLET)
    with demo("--camera", "democam") as url:
        for theme in ("light", "dark"):
            take(url, out / f"composite-{theme}.png", composite, theme, SIZE)


if __name__ == "__main__":
    main()
