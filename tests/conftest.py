"""Shared fixtures."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SHARED = Path(os.environ.get("LIVE_SR_SHARED", Path(__file__).parents[2] / "shared")) / "data"
CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real electron-microscopy images; skips where they are not at hand."""
    if not SHARED.is_dir():
        pytest.skip(f"no real images at {SHARED}: set LIVE_SR_SHARED to the folder that holds data/")
    return SHARED


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless; skips where it is missing, except in CI."""
    if not CHROMIUM.exists():
        why = f"no Chromium at {CHROMIUM}: apt install chromium"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


class ServerProcess:
    """`live-sr serve` as a process of its own, to be killed, stopped and started again."""

    def __init__(self, address: str = "tcp://127.0.0.1:*", model: str = "bilinear-x2") -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-u",
                "-m",
                "live_sr",
                "serve",
                "--bind",
                address,
                "--model",
                model,
                "--warm",
                "64x64",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._said: list[str] = []
        ready: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        first = ready.get(timeout=60)
        assert first is not None, f"the server did not start: {self._said}"
        self.address = first

    def _read(self, ready: queue.Queue[str | None]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._said.append(line)
                if line.startswith("ready: "):
                    ready.put(line.split()[1])
        ready.put(None)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it the hard way, and wait for that."""
        self._process.kill()
        self._process.wait(timeout=20)
        self._reader.join(timeout=20)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
