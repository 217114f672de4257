"""Joins a core that somebody else set up, super-resolves one sequence of it, and leaves.

A graphical program such as pymmcore-gui holds the one core of its process: `CMMCorePlus.instance()`.
Nothing about it changes but that frames are handed to live-sr as well.
"""

from __future__ import annotations

from pymmcore_plus import CMMCorePlus
from useq import MDASequence

from live_sr import LiveSR
from live_sr.config import DEFAULT_ADDRESS


def main(server: str = DEFAULT_ADDRESS) -> None:
    """Super-resolve three frames for the eye alone: nothing is saved."""
    core = CMMCorePlus.instance()
    if not core.getCameraDevice():  # nobody set it up: this is only an example
        core.loadSystemConfiguration()

    def show(image, event, meta) -> None:  # type: ignore[no-untyped-def]
        made_by = meta["live_sr"]
        print(f"frame {made_by['seq']}: {image.shape[1]} x {image.shape[0]} by {made_by['model']}")

    with LiveSR(server) as sr:
        sr.attach(core)
        sr.events.frameReady.connect(show)
        core.run_mda(MDASequence(time_plan={"interval": 0.1, "loops": 3})).join()
    assert sr.report is not None
    print(f"{sr.report.counts.returned} of {sr.report.counts.acquired} frames super-resolved")


if __name__ == "__main__":
    main()
