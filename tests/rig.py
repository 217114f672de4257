"""A rig for tests: Micro-Manager's demo camera, a server, and the comparison of what they left on disk."""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import useq
from pymmcore_plus import CMMCorePlus

from live_sr import LiveSR
from live_sr.client.volume import VolumeReader
from live_sr.config import ServerSettings
from live_sr.frame import Counts, Pixels
from live_sr.neighbours import FrameCount
from live_sr.serve.loop import Server
from live_sr.upscaler import Bilinear, bilinear

WAIT_S = 20
SHAPE = (48, 64)  # (Y, X): not square, so that a swap of the axes shows
SCALE = 2


@pytest.fixture
def mmc() -> Iterator[CMMCorePlus]:
    """A core with the demo configuration: small frames, short exposures."""
    logging.getLogger("pymmcore-plus").setLevel(logging.ERROR)
    core = CMMCorePlus()
    core.loadSystemConfiguration()
    y, x = SHAPE
    core.setROI(0, 0, x, y)
    core.setExposure(1)
    # Tests count frames. A hardware-timed burst may end one short in pymmcore-plus 0.18: when the camera
    # delivers its last frame and stops between the engine's two looks, that frame is skipped.
    core.mda.engine.use_hardware_sequencing = False  # type: ignore[union-attr]
    yield core
    core.mda.cancel()
    core.unloadAllDevices()  # or a callback thread of Micro-Manager's outlives the interpreter


class Failing(Bilinear):
    """Cannot compute its `nth` frame."""

    def __init__(self, nth: int) -> None:
        super().__init__(SCALE)
        self._nth = nth
        self._n = 0

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        self._n += 1
        if self._n == self._nth:
            raise RuntimeError("out of memory")
        return super().upscale(frames)


class Gated(Bilinear):
    """Computes a frame for every permit; once opened, without."""

    def __init__(self, scale: int = SCALE, permits: int = 0, frames: FrameCount = 1) -> None:
        super().__init__(scale, frames=frames)
        self._permits = threading.Semaphore(permits)
        self._open = threading.Event()

    def permit(self, n: int = 1) -> None:
        """Let `n` more frames through."""
        self._permits.release(n)

    def open(self) -> None:
        """Let every frame through from now on."""
        self._open.set()
        self._permits.release()

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        """Wait for a permit, then interpolate."""
        assert self._open.is_set() or self._permits.acquire(timeout=WAIT_S)
        return super().upscale(frames)


class Brighter(Bilinear):
    """Interpolates and adds a number of grey levels, by which its results are known from another's."""

    def __init__(self, levels: int, scale: int = SCALE, frames: FrameCount = 1) -> None:
        super().__init__(scale, frames=frames)
        name = f"plus-{levels}"
        self._info = replace(self._info, id=name, sha256=hashlib.sha256(name.encode()).hexdigest())
        self.levels = levels

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        """Interpolate and add."""
        return [pixels + pixels.dtype.type(self.levels) for pixels in super().upscale(frames)]


@contextmanager
def serving(
    upscalers: Bilinear | Sequence[Bilinear] | None = None, address: str = "tcp://127.0.0.1:*"
) -> Iterator[Server]:
    """A server in this process."""
    with Server(upscalers or Bilinear(SCALE), ServerSettings(bind=address, warm_shapes=())) as server:
        yield server


@contextmanager
def sampled(sr: LiveSR) -> Iterator[list[Counts]]:
    """The session's counts, taken all the time; afterwards the ledger has closed at every sample."""
    samples: list[Counts] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.0005):
            samples.append(sr.counts)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        stop.set()
        sampler.join()
    assert samples
    for c in samples:
        assert c.acquired == c.queued + c.in_flight + c.deferred + c.returned + c.failed


def assert_restored(raw: Path, sr: Path, scale: int = SCALE, frames: int | None = None) -> None:
    """Every frame of `sr` is what the stand-in model makes of the frame of `raw` at the same place.

    Frames that raw has not, because the camera skipped them, `sr` has not either.
    """
    with VolumeReader(raw) as low, VolumeReader(sr) as high:
        a, b = low.layout, high.layout
        assert [x.name for x in a.axes] == [x.name for x in b.axes]
        assert [p.path for p in a.positions] == [p.path for p in b.positions]
        assert b.dtype == a.dtype
        for x, y in zip(a.index_axes, b.index_axes, strict=True):
            assert (x.size, x.scale or 1.0) == (y.size, y.scale)
        for x, y in zip(a.frame_axes, b.frame_axes, strict=True):
            assert x.size is not None
            assert y.size == x.size * scale
            assert y.scale == pytest.approx((x.scale or 1.0) / scale)
            assert y.translation == pytest.approx(-(1 - 1 / scale) / 2 * (x.scale or 1.0))
        n = 0
        for index in low.indices():
            if not low.present(index):
                assert not high.present(index), index
                continue
            np.testing.assert_array_equal(
                high.read(index), bilinear(low.read(index), scale), err_msg=str(index)
            )
            n += 1
        assert n > 1
        assert frames in (None, n)
        few = [low.read(index) for index in itertools.islice(low.indices(), 2)]
        assert not np.array_equal(*few), "frames of the demo camera differ, or a wrong place would not show"


def use_two_cameras(core: CMMCorePlus) -> None:
    """Make the core's camera a "Multi Camera" of two demo cameras."""
    y, x = SHAPE
    core.loadDevice("Camera 2", "DemoCamera", "DCam")
    core.loadDevice("Both", "Utilities", "Multi Camera")
    for label in ("Camera 2", "Both"):
        core.initializeDevice(label)
    core.setProperty("Both", "Physical Camera 1", "Camera")
    core.setProperty("Both", "Physical Camera 2", "Camera 2")
    for name in ("PixelType", "BitDepth", "Binning"):
        core.setProperty("Camera 2", name, core.getProperty("Camera", name))
    core.setProperty("Camera 2", "Mode", "Noise")  # or both would deliver the same pixels
    core.setROI("Camera 2", 0, 0, x, y)
    core.setCameraDevice("Both")
    core.setExposure(1)


SEQUENCES = {
    "t": useq.MDASequence(time_plan={"interval": 0, "loops": 4}),
    "t c": useq.MDASequence(channels=["DAPI", "FITC"], time_plan={"interval": 0, "loops": 2}),
    "t c z": useq.MDASequence(
        axis_order="tcz",
        channels=["DAPI", "FITC"],
        z_plan={"range": 2, "step": 1},
        time_plan={"interval": 0, "loops": 2},
    ),
    "z fastest but c": useq.MDASequence(
        axis_order="tzc",
        channels=["DAPI", "FITC"],
        z_plan={"range": 2, "step": 1},
        time_plan={"interval": 0, "loops": 2},
    ),
    "positions": useq.MDASequence(
        axis_order="tpc",
        stage_positions=[(0, 0), (10, 5), (20, 0)],
        channels=["DAPI", "FITC"],
        time_plan={"interval": 0, "loops": 2},
    ),
    "positions with grid": useq.MDASequence(
        stage_positions=[(0, 0), (1000, 500)],
        grid_plan={"rows": 2, "columns": 2},
        channels=["DAPI", "FITC"],
    ),
    "one position with its own grid": useq.MDASequence(
        stage_positions=[
            {"x": 0, "y": 0, "name": "a"},
            {"x": 9, "y": 9, "name": "b", "sequence": {"grid_plan": {"rows": 1, "columns": 2}}},
        ],
        channels=["DAPI", "FITC"],
    ),
    "grid": useq.MDASequence(grid_plan={"rows": 2, "columns": 2}, time_plan={"interval": 0, "loops": 2}),
    "well plate": useq.MDASequence(
        stage_positions={"plate": 96, "a1_center_xy": (0, 0), "selected_wells": ([0, 1], [0, 1])},
        channels=["DAPI", "FITC"],
    ),
    "not at every time": useq.MDASequence(
        channels=["DAPI", {"config": "FITC", "acquire_every": 2}], time_plan={"interval": 0, "loops": 4}
    ),
    "not at every z": useq.MDASequence(
        channels=["DAPI", {"config": "FITC", "do_stack": False}], z_plan={"range": 2, "step": 1}
    ),
    "for a time": useq.MDASequence(
        time_plan={"interval": {"milliseconds": 20}, "duration": {"milliseconds": 100}}
    ),
}
"""One of each kind of sequence."""

RUNS = (*SEQUENCES, "generator", "two cameras", "two cameras and positions")


def events_of(name: str, mmc: CMMCorePlus) -> Any:
    """One of :data:`RUNS`, with the cameras that it needs."""
    if name.startswith("two cameras"):
        use_two_cameras(mmc)
        return SEQUENCES["positions"] if name.endswith("positions") else SEQUENCES["t c"]
    return iter(list(SEQUENCES["t c z"])) if name == "generator" else SEQUENCES[name]
