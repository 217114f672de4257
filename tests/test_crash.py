"""What is left when a process is killed, and that `live-sr enhance` finishes it to the same pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ServerProcess
from live_sr.client import journal
from live_sr.client.volume import VolumeReader
from test_cli import live_sr

ACQUIRE = """
import sys
from datetime import timedelta
from pymmcore_plus import CMMCorePlus
from useq import MDASequence, TIntervalLoops
from live_sr import LiveSR

address, raw, save, frames = sys.argv[1:]
core = CMMCorePlus()
core.loadSystemConfiguration()
core.setProperty("Camera", "OnCameraCCDXSize", 64)
core.setProperty("Camera", "OnCameraCCDYSize", 64)
core.setProperty("Camera", "PixelType", "16bit")
core.setProperty("Camera", "Mode", "Noise")
core.setExposure(20)
sequence = MDASequence(time_plan=TIntervalLoops(interval=timedelta(0), loops=int(frames)))
with LiveSR(address, save=save, progress=False) as sr:
    assert sr.wait_ready(30)
    sr.attach(core)
    sr.events.frameReady.connect(lambda img, event, meta: print("frame", event.index["t"], flush=True))
    print("go", flush=True)
    core.run_mda(sequence, output=raw, dimension_overrides={"t": {"chunk_size": 1}}).join()
print("end", sr.report.counts, flush=True)
"""


class Acquisition:
    """An acquisition as a process of its own that says which frames came back."""

    def __init__(self, address: str, folder: Path, frames: int) -> None:
        self.raw, self.sr = folder / "raw.ome.zarr", folder / "sr.ome.zarr"
        self._log = (folder / "log.txt").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", ACQUIRE, address, str(self.raw), str(self.sr), str(frames)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def wait_for(self, said: str, times: int = 1) -> None:
        """Read its output until a line that begins with `said` has come `times` times."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            times -= line.startswith(said)
            if times <= 0:
                return
        raise AssertionError(f"it ended without saying {said!r}")

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        assert self._process.stdout is not None
        self._process.stdout.read()
        return self._process.wait(timeout=60)

    def __enter__(self) -> Acquisition:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def frames_of(volume: Path) -> dict[int, np.ndarray]:
    with VolumeReader(volume) as reader:
        return {i["t"]: reader.read(i) for i in reader.indices() if reader.present(i)}


def check_same_as_offline(raw: Path, sr: Path, model: str, folder: Path) -> None:
    done = live_sr("enhance", raw, folder / "offline.ome.zarr", "--model", model)
    assert done.returncode == 0, done.stderr
    live, offline = frames_of(sr), frames_of(folder / "offline.ome.zarr")
    assert live.keys() == offline.keys()
    for t, pixels in live.items():
        np.testing.assert_array_equal(pixels, offline[t], err_msg=f"frame {t}")


def test_a_killed_acquisition_is_finished_by_enhance(tmp_path: Path) -> None:
    with ServerProcess() as server, Acquisition(server.address, tmp_path, frames=400) as run:
        run.wait_for("frame", times=10)
        run.kill()
        run.wait()
    saved = frames_of(run.sr)
    noted = journal.read(journal.journal_path(run.sr))
    assert len(saved) >= 10
    assert noted.end is None
    done = live_sr("enhance", run.raw, run.sr, "--model", "bilinear-x2")
    stored = frames_of(run.raw)
    finished = frames_of(run.sr)
    # raw is written asynchronously: a frame may have been restored and saved that raw never got
    assert finished.keys() == stored.keys() | saved.keys(), done.stderr
    for t, pixels in saved.items():
        np.testing.assert_array_equal(finished[t], pixels)
    again = live_sr("enhance", run.raw, run.sr, "--model", "bilinear-x2")
    assert "0 frames computed" in again.stdout
    other = live_sr("enhance", run.raw, run.sr, "--model", "bilinear-x4")
    assert other.returncode == 1
    assert "bilinear-x2" in other.stderr


@pytest.mark.parametrize("model", ["em-x4"])
def test_a_killed_server_costs_nothing_and_live_equals_offline(tmp_path: Path, model: str) -> None:
    with ServerProcess(model=model) as first, Acquisition(first.address, tmp_path, frames=60) as run:
        run.wait_for("frame", times=5)
        first.kill()
        with ServerProcess(first.address, model=model):
            run.wait_for("end")
            assert run.wait() == 0
    assert sorted(frames_of(run.sr)) == list(range(60))
    check_same_as_offline(run.raw, run.sr, model, tmp_path)


def test_without_a_server_raw_is_complete_and_enhance_finishes_later(tmp_path: Path) -> None:
    source = ACQUIRE.replace("assert sr.wait_ready(30)", "pass").replace("progress=False", "give_up_s=0.2")
    raw, sr = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    done = subprocess.run(
        [sys.executable, "-c", source, "tcp://127.0.0.1:9", str(raw), str(sr), "20"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed=20" in done.stdout
    assert "live-sr enhance" in done.stderr
    assert sorted(frames_of(raw)) == list(range(20))
    assert live_sr("enhance", raw, sr, "--model", "bilinear-x2").returncode == 0
    assert sorted(frames_of(sr)) == list(range(20))
