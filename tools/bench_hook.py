"""What does live-sr cost the acquisition? Frame rate of pymmcore-plus with and without it, side by side.

    python tools/bench_hook.py [--frames 300] [--rounds 5] [--size 512] [--server fixed|hung|none] [--json FILE]

Runs the DemoCamera as fast as it goes, rounds with and without a live-sr session alternating, so that a
drifting machine does not favour either. The server is a process of its own with a fixed-time stand-in that
sleeps instead of computing: this measures the hook, not who gets the processor. Also prints how long the hook's
body takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pymmcore_plus import CMMCorePlus
from pymmcore_plus._logger import configure_logging
from rich.console import Console
from rich.progress import track
from rich.table import Table
from useq import MDASequence, TIntervalLoops

from live_sr import LiveSR
from live_sr.acquire.hook import Hook
from live_sr.config import ServerSettings
from live_sr.frame import Pixels
from live_sr.serve.loop import Server
from live_sr.upscaler import Bilinear

COMPUTING_S = 0.02  # of the stand-in, per frame: 50 frames a second, less than the camera's rate
HUNG_S = 3600.0


class FixedTime(Bilinear):
    """Takes a fixed time without using the processor, and gives an empty image."""

    def __init__(self, seconds: float) -> None:
        super().__init__(2)
        self._seconds = seconds
        self._never = threading.Event()

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        """Wait, then return zeros."""
        self._never.wait(self._seconds)
        return [np.zeros((2 * f.shape[0], 2 * f.shape[1]), f.dtype) for f in frames]


def serve(seconds: float) -> None:
    """Run the stand-in server until this process is terminated; its address goes to stdout."""
    with Server(FixedTime(seconds), ServerSettings(bind="tcp://127.0.0.1:*", warm_shapes=())) as server:
        server.wait_ready(30)
        print(server.address, flush=True)
        sys.stdin.read()


class Enough(Exception):
    """Ends a session without waiting for its frames: only the acquisition is measured here."""


def run(core: CMMCorePlus, frames: int, raw: Path, address: str | None) -> float:
    """One acquisition; returns its frames per second, from the first frame's arrival to the last one's."""
    arrivals: list[int] = []

    def stamp(img: Any, event: Any, meta: Any) -> None:
        arrivals.append(time.perf_counter_ns())

    core.mda.events.frameReady.connect(stamp)
    sequence = MDASequence(time_plan=TIntervalLoops(interval=timedelta(0), loops=frames))
    try:
        if address is None:
            core.run_mda(sequence, output=str(raw)).join()
        else:
            with contextlib.suppress(Enough), LiveSR(address, progress=False) as sr:
                sr.wait_ready(5)
                sr.attach(core)
                core.run_mda(sequence, output=str(raw)).join()
                raise Enough
    finally:
        core.mda.events.frameReady.disconnect(stamp)
    return (len(arrivals) - 1) / ((arrivals[-1] - arrivals[0]) / 1e9)


def time_hook() -> list[float]:
    """From now on record how long each call of the hook's frameReady takes, in µs."""
    durations: list[float] = []
    body = Hook.frameReady

    def timed(self: Hook, img: Any, event: Any, meta: Any) -> None:
        began = time.perf_counter_ns()
        body(self, img, event, meta)
        durations.append((time.perf_counter_ns() - began) / 1e3)

    Hook.frameReady = timed  # type: ignore[method-assign]
    return durations


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--server", choices=("fixed", "hung", "none"), default="fixed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    logging.getLogger("live_sr").setLevel(logging.CRITICAL)  # ending early is not a failure here
    configure_logging(stderr_level="ERROR")
    core = CMMCorePlus()
    core.loadSystemConfiguration()
    core.setProperty("Camera", "OnCameraCCDXSize", given.size)
    core.setProperty("Camera", "OnCameraCCDYSize", given.size)
    core.setProperty("Camera", "PixelType", "16bit")
    core.setExposure(0.1)
    seconds = HUNG_S if given.server == "hung" else COMPUTING_S
    command = [sys.executable, __file__, "--serve", str(seconds)]
    rates: dict[str, list[float]] = {"without": [], "with": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if given.server == "none":
            address = "tcp://127.0.0.1:9"
        durations = time_hook()
        run(core, given.frames // 4, Path(folder) / "warm-up.ome.zarr", None)
        for i in track(range(given.rounds), "measuring", console=Console(stderr=True)):
            # The order alternates too: what a round leaves to the disk cache helps both alike.
            for name in ("without", "with") if i % 2 else ("with", "without"):
                raw = Path(folder) / f"{name}{i}.ome.zarr"
                rates[name].append(run(core, given.frames, raw, address if name == "with" else None))
                shutil.rmtree(raw)
        server.kill()

    ratios = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
    table = Table(
        title=f"DemoCamera {given.size}² uint16, {given.frames} frames a round, server {given.server}"
    )
    for column in ("frames/s", "median", "min", "max"):
        table.add_column(column, justify="right")
    for name, values in rates.items():
        table.add_row(name, f"{np.median(values):.1f}", f"{min(values):.1f}", f"{max(values):.1f}")
    table.add_row("with ÷ without", f"{np.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}")
    p50, p95, p99 = np.percentile(durations, (50, 95, 99))
    console = Console()
    console.print(table)
    console.print(
        f"hook's body: p50 {p50:.1f} µs, p95 {p95:.1f} µs, p99 {p99:.1f} µs over {len(durations)} frames"
    )
    if given.json is not None:
        numbers = {"rates": rates, "ratios": ratios, "hook_us": {"p50": p50, "p95": p95, "p99": p99}}
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        given.json.write_text(json.dumps({**vars(given), **machine, **numbers, "json": None}, indent=2) + "\n")


if __name__ == "__main__":
    main()
