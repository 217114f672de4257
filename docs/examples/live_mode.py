"""Micro-Manager's live mode and a snap, super-resolved for the eye: the newest frame only, nothing is saved.

live-sr only looks at the newest image; a graphical program that shows the same camera loses nothing by it.
"""

from __future__ import annotations

import threading
from typing import Any

from numpy.typing import NDArray
from pymmcore_plus import CMMCorePlus
from useq import MDAEvent

from live_sr import LiveSR
from live_sr.config import DEFAULT_ADDRESS

FRAMES = 5


def main(server: str = DEFAULT_ADDRESS) -> None:
    """Look at a few frames of the live mode, then at one snap."""
    core = CMMCorePlus.instance()
    core.loadSystemConfiguration()
    core.setExposure(20)  # ms
    seen: dict[str, int] = {"live": 0, "snap": 0}
    enough = {"live": threading.Event(), "snap": threading.Event()}

    def show(image: NDArray[Any], event: MDAEvent, meta: dict[str, Any]) -> None:
        made_by = meta["live_sr"]
        kind = made_by["kind"]
        seen[kind] += 1
        print(f"{kind}: {image.shape[1]} x {image.shape[0]}, {made_by['latency_ms']:.0f} ms after its exposure")
        if seen[kind] == (FRAMES if kind == "live" else 1):
            enough[kind].set()

    with LiveSR(server) as sr:
        sr.attach(core)
        sr.events.frameReady.connect(show)
        core.startContinuousSequenceAcquisition()
        enough["live"].wait(timeout=30)
        core.stopSequenceAcquisition()
        core.snap()
        enough["snap"].wait(timeout=30)
    print(sr.report.counts if sr.report is not None else "")


if __name__ == "__main__":
    main()
