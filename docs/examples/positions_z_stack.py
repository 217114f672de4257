"""Two positions, two channels and a z stack. The super-resolved volume has the axes that the raw one has."""

from __future__ import annotations

from pathlib import Path

from pymmcore_plus import CMMCorePlus
from useq import MDASequence

from live_sr import LiveSR
from live_sr.config import DEFAULT_ADDRESS

SEQUENCE = MDASequence(
    axis_order="tpcz",
    stage_positions=[{"x": 0, "y": 0, "name": "left"}, {"x": 100, "y": 0, "name": "right"}],  # µm
    channels=[{"config": "DAPI", "exposure": 5}, {"config": "FITC", "exposure": 10}],  # ms
    z_plan={"range": 2, "step": 1},  # µm
)


def main(server: str = DEFAULT_ADDRESS, folder: Path = Path()) -> None:
    """Acquire and save."""
    core = CMMCorePlus.instance()
    core.loadSystemConfiguration()
    raw, restored = folder / "stack.ome.zarr", folder / "stack.sr.ome.zarr"
    with LiveSR(server, save=restored) as sr:
        sr.attach(core)
        core.run_mda(SEQUENCE, output=raw).join()
    assert sr.report is not None
    (run,) = sr.report.runs
    print(f"{run.acquired} frames, complete: {run.sr_complete}, in {run.sr_path}")


if __name__ == "__main__":
    main()
