"""A time lapse: raw frames to one volume, super-resolved frames to another, both complete at the end.

pymmcore-plus writes the raw volume itself, before live-sr sees a frame. Both volumes have the same axes and
overlay in any viewer.
"""

from __future__ import annotations

from pathlib import Path

from pymmcore_plus import CMMCorePlus
from useq import MDASequence

from live_sr import LiveSR
from live_sr.config import DEFAULT_ADDRESS

FRAMES = 10


def main(server: str = DEFAULT_ADDRESS, folder: Path = Path()) -> None:
    """Acquire, save, and say where."""
    core = CMMCorePlus.instance()
    core.loadSystemConfiguration()
    core.setExposure(10)  # ms
    sequence = MDASequence(time_plan={"interval": 0.1, "loops": FRAMES})

    raw, restored = folder / "lapse.ome.zarr", folder / "lapse.sr.ome.zarr"
    with LiveSR(server, save=restored) as sr:
        sr.attach(core)
        for doubt in sr.preflight(sequence, core, raw=raw):  # before anything is exposed
            print(f"note: {doubt}")
        core.run_mda(sequence, output=raw).join()
    assert sr.report is not None
    print(sr.report.counts)
    print(f"raw: {raw}, super-resolved: {restored}")


if __name__ == "__main__":
    main()
