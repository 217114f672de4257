"""A listener that measures every super-resolved frame while the acquisition runs.

Listeners have the signature of pymmcore-plus' own and threads of their own: one that is slow or fails holds up
neither the camera nor the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymmcore_plus import CMMCorePlus
from useq import MDAEvent, MDASequence

from live_sr import LiveSR
from live_sr.config import DEFAULT_ADDRESS


def sharpness(image: NDArray[np.generic]) -> float:
    """Mean square of the difference between neighbouring pixels, of the variance: falls out of focus."""
    grey = image.astype(np.float32)
    along_y, along_x = np.diff(grey, axis=0), np.diff(grey, axis=1)
    return float((np.square(along_y).mean() + np.square(along_x).mean()) / max(float(grey.var()), 1e-9))


def main(server: str = DEFAULT_ADDRESS, folder: Path = Path()) -> None:
    """Write one line a frame to a table."""
    core = CMMCorePlus.instance()
    core.loadSystemConfiguration()
    table = folder / "sharpness.csv"
    with table.open("w", encoding="utf-8") as file, LiveSR(server, ordered=True) as sr:
        print("t,model,latency_ms,sharpness", file=file)

        def measure(image: NDArray[Any], event: MDAEvent, meta: dict[str, Any]) -> None:
            made_by = meta["live_sr"]
            numbers = f"{made_by['latency_ms']:.0f},{sharpness(image):.4f}"
            print(f"{event.index['t']},{made_by['model']},{numbers}", file=file)

        sr.attach(core)
        sr.events.frameReady.connect(measure)
        core.run_mda(MDASequence(time_plan={"interval": 0.1, "loops": 5})).join()
        sr.close()  # every frame has been measured when this returns; the file is still open
    print(table.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
