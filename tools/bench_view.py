"""Measure what the live page shows of a fast stream, and what that costs the acquisition.

    python tools/bench_view.py [--rate 30] [--size 2048] [--seconds 8] [--rounds 3] [--json FILE]

A publisher process feeds super-resolved frames of procedural tissue (uint16, with each a raw frame of a quarter
of the side), as fast as `--rate` says, or as fast as it can with 0. Rounds without a view, with the page in a
headless Chromium, and with that Chromium stopped in its tracks follow each other, so that a drifting machine
favours none. Prints the frames that the page drew, how old they were then, and the publisher's own rate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.sync.client import ClientConnection, connect

from live_sr.client.feed import Feed, FeedStatus, FrameInfo
from live_sr.sim.specimen import Neuropil

CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--window-size=1280,720",
)
DIFFERENT = 4  # frames that alternate: rendering tissue takes longer than showing it
SCALE = 4
SETTLE_S = 2.0  # after opening the page: start-up is not what is measured
START_S = 60.0
RECORD = """new Promise(async (first) => {
    while (document.readyState !== "complete") await new Promise(requestAnimationFrame);
    const { page } = await import("/static/app.js");
    window.drawn = [];
    page.on("frame", () => requestAnimationFrame(() => requestAnimationFrame(() => {
        const side = page.side("right");
        if (!side.meta || window.drawn.at(-1)?.seq === side.meta.seq) return;
        const at = performance.now();
        window.drawn.push({ seq: side.meta.seq, age: at - side.capturedAt, at });
        first(true);
    })));
})"""


# -------------------------------------------------------------------- the publisher's process


def publish(rate_hz: float, size: int) -> None:
    """Feed frames from then on; for each line on stdin say how many frames a second that many seconds had."""
    frames = []
    for z in range(DIFFERENT):
        tissue = Neuropil(0).render((size // 4, size // 4), pixel_size_um=0.016, z_um=0.05 * z)
        raw = np.random.default_rng(z).poisson(tissue * 40).astype(np.uint16) * 1000
        sr = (tissue.repeat(4, 0).repeat(4, 1) * 40_000).astype(np.uint16)
        sr += np.random.default_rng(z).integers(0, 2000, sr.shape, dtype=np.uint16)
        frames.append((raw, sr))
    clock, made, ended = threading.Event(), 0, False

    def answer() -> None:
        nonlocal ended
        for line in sys.stdin:
            before, began = made, time.perf_counter()
            clock.wait(float(line))
            print((made - before) / (time.perf_counter() - began), flush=True)
        ended = True

    with Feed("tcp://127.0.0.1:*") as feed:
        print(feed.address, flush=True)
        threading.Thread(target=answer, daemon=True).start()
        due = time.perf_counter()
        while not ended:
            raw, sr = frames[made % DIFFERENT]
            fresh = sr.copy()  # as from the server: the feed keeps what it is given
            info = FrameInfo(
                "bench", made, time.monotonic_ns(), pixel_size_um=0.016, model="bench", scale=SCALE
            )
            feed.show_pair(info, raw, fresh)
            if made % 10 == 0:
                feed.status(FeedStatus(session="bench", state="acquiring", counts={"acquired": made}))
            made += 1
            if rate_hz:
                due = max(due + 1 / rate_hz, time.perf_counter())  # a camera does not catch up
                clock.wait(max(0.0, due - time.perf_counter()))


class Publisher:
    """The process and its answers."""

    def __init__(self, rate_hz: float, size: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--publish", "--rate", str(rate_hz), "--size", str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def rate(self, seconds: float) -> float:
        """Frames a second over the next `seconds`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


# -------------------------------------------------------------------- view and browser


@contextlib.contextmanager
def view(feed: str) -> Iterator[str]:
    """The real page as a process."""
    command = [sys.executable, "-m", "live_sr", "view", "--feed", feed, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)


class Browser:
    """Chromium with the page open, driven by evaluating expressions and nothing else.

    Browser automation listens to the network: each preview would be copied to it, and that be measured.
    """

    def __init__(self, process: subprocess.Popen[str], socket: ClientConnection) -> None:
        self._process = process
        self._socket = socket
        self._asked = 0

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        while True:
            self._asked += 1
            parameters = {"expression": expression, "awaitPromise": True, "returnByValue": True}
            request = {"id": self._asked, "method": "Runtime.evaluate", "params": parameters}
            self._socket.send(json.dumps(request))
            answer: dict[str, Any] = {}
            while answer.get("id") != self._asked:
                answer = json.loads(self._socket.recv(timeout=START_S))
            if "result" in answer:  # else the blank page was left meanwhile
                return answer["result"]["result"].get("value")

    def signal(self, number: signal.Signals) -> None:
        """To all its processes."""
        os.killpg(self._process.pid, number)


@contextlib.contextmanager
def browser(url: str) -> Iterator[Browser]:
    """Chromium with the page open and the first frame drawn."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [CHROMIUM, *QUIET, "--remote-debugging-port=0", f"--user-data-dir={folder}", url],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stderr is not None
            address = next(line.split()[-1] for line in process.stderr if "DevTools listening" in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            with urllib.request.urlopen(f"http://{urlsplit(address).netloc}/json") as answer:
                target = next(one for one in json.load(answer) if one["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None, close_timeout=0.1) as socket:
                chromium = Browser(process, socket)
                chromium.evaluate(RECORD)
                yield chromium
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def one_round(publisher: Publisher, seconds: float) -> dict[str, Any]:
    """Without a view, with it, with a stalled browser."""
    found: dict[str, Any] = {"load": os.getloadavg()[0], "none": publisher.rate(seconds)}
    with view(publisher.address) as url, browser(url) as chromium:
        publisher.rate(SETTLE_S)
        chromium.evaluate("window.drawn = []")
        found["view"] = publisher.rate(seconds)
        drawn = chromium.evaluate("window.drawn")
        chromium.signal(signal.SIGSTOP)
        found["stalled"] = publisher.rate(seconds)
    found["shown"] = (len(drawn) - 1) / ((drawn[-1]["at"] - drawn[0]["at"]) / 1000) if len(drawn) > 1 else 0.0
    found["ages_ms"] = [one["age"] for one in drawn]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--rate", type=float, default=30.0, help="frames a second of the publisher; 0: all it can"
    )
    parser.add_argument("--size", type=int, default=2048, help="pixels along each side, super-resolved")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--publish", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(options.rate, options.size)
        return
    publisher = Publisher(options.rate, options.size)
    try:
        rounds = []
        for number in range(options.rounds):
            rounds.append(one_round(publisher, options.seconds))
            print(_line(number, rounds[-1]), flush=True)
    finally:
        publisher.stop()
    ages = np.concatenate([one["ages_ms"] for one in rounds])
    p50, p95, p99 = np.percentile(ages, (50, 95, 99))
    print(f"{options.size} x {options.size} uint16, {os.cpu_count()} cores, {platform.machine()}")
    print(f"shown in the browser  {median(one['shown'] for one in rounds):.1f} frames/s")
    print(f"age when drawn        p50 {p50:.0f}  p95 {p95:.0f}  p99 {p99:.0f} ms")
    for name in ("view", "stalled"):
        ratio = median(one[name] / one["none"] for one in rounds)
        print(f"publisher, {name} ÷ none  {ratio:.4f}")
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")


def _line(number: int, one: dict[str, Any]) -> str:
    rates = "  ".join(f"{name} {one[name]:.2f}" for name in ("none", "view", "stalled"))
    return f"round {number + 1}  load {one['load']:.1f}  publisher: {rates} frames/s  shown {one['shown']:.1f}"


if __name__ == "__main__":
    main()
