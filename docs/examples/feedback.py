"""Smart microscopy: find the brightest object of each super-resolved overview frame, image it at high dose.

Overview frames are taken quickly, with a dose that harms little, and super-resolved while the stage moves on.
A listener finds the brightest object in each, and has it imaged again: centred, with 10 times the exposure.

    live-sr serve                                   # in another terminal, or on another machine
    python docs/examples/feedback.py                # Micro-Manager's demo microscope
    python docs/examples/feedback.py my.cfg --server tcp://gpu:5755 --raw raw.ome.zarr
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymmcore_plus import CMMCorePlus
from useq import MDAEvent, MDASequence

from live_sr import LiveSR
from live_sr.acquire.feedback import Feedback

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


def main() -> None:
    """Read the options, connect, acquire."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("config", nargs="?", help="Micro-Manager configuration; by default its demo")
    options.add_argument("--server", default="tcp://127.0.0.1:5755")
    options.add_argument("--raw", type=Path)
    options.add_argument("--save", type=Path)
    given = options.parse_args()
    core = CMMCorePlus()
    core.loadSystemConfiguration(*([given.config] if given.config else []))
    with LiveSR(given.server, save=given.save) as sr:
        sr.attach(core)
        for look in run(core, sr, given.raw):
            print(f"imaged x = {look.x_pos:.1f} µm, y = {look.y_pos:.1f} µm for {look.exposure:g} ms")


if __name__ == "__main__":
    main()
