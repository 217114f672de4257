"""Smart microscopy: find the brightest object of each super-resolved overview frame, image it at high dose.

Overview frames are taken quickly, with a dose that harms little, and super-resolved while the stage moves on.
A listener finds the brightest object in each, and has it imaged again: centred, with 10 times the exposure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymmcore_plus import CMMCorePlus
from useq import MDAEvent, MDASequence

from live_sr import LiveSR
from live_sr.acquire.feedback import Feedback
from live_sr.config import DEFAULT_ADDRESS

OBJECT_PX = 8  # super-resolved pixels along an object: smaller bright spots are noise
OVERVIEW_MS, CLOSE_LOOK_MS = 10.0, 100.0


def brightest(img: NDArray[Any]) -> tuple[int, int]:
    """Row and column of the centre of the brightest object: of the block with the largest mean."""
    n = OBJECT_PX
    rows, columns = img.shape[0] // n, img.shape[1] // n
    blocks = img[: rows * n, : columns * n].reshape(rows, n, columns, n).mean(axis=(1, 3))
    row, column = np.unravel_index(np.argmax(blocks), blocks.shape)
    return int(row) * n + n // 2, int(column) * n + n // 2


def run(core: CMMCorePlus, sr: LiveSR, raw: Path | None = None) -> list[MDAEvent]:
    """Acquire; return the events of the close looks."""
    overview = MDASequence(grid_plan={"rows": 2, "columns": 2, "fov_width": 100, "fov_height": 100})
    first = [event.replace(exposure=OVERVIEW_MS, metadata={"overview": True}) for event in overview]
    feedback = Feedback(sr, first)
    looks: list[MDAEvent] = []

    @sr.events.frameReady.connect
    def look(img: NDArray[Any], event: MDAEvent, meta: dict[str, Any]) -> None:
        if not event.metadata.get("overview"):
            return  # a close look itself
        y, x = brightest(img)
        pixel_um = meta["pixel_size_um"]  # of the super-resolved frame
        dy, dx = y - img.shape[0] / 2, x - img.shape[1] / 2
        close = MDAEvent(
            x_pos=(event.x_pos or 0) + dx * pixel_um,
            y_pos=(event.y_pos or 0) + dy * pixel_um,
            exposure=CLOSE_LOOK_MS,
            index=event.index,
        )
        looks.append(close)
        feedback.append(close)

    core.run_mda(feedback, output=raw).join()
    sr.events.frameReady.disconnect(look)
    if feedback.problem:
        print(feedback.problem)
    return looks


def main(server: str = DEFAULT_ADDRESS) -> None:
    """Look around with Micro-Manager's demo devices, and look closer."""
    core = CMMCorePlus.instance()
    core.loadSystemConfiguration()
    with LiveSR(server) as sr:
        sr.attach(core)
        for look in run(core, sr):
            print(f"imaged x = {look.x_pos:.1f} µm, y = {look.y_pos:.1f} µm for {look.exposure:g} ms")


if __name__ == "__main__":
    main()
