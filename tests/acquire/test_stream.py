"""The super-resolved stream as a handler written for pymmcore-plus meets it, with both signal back ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.mda import MDAEngine, mda_listeners_connected
from pymmcore_plus.mda.events import PMDASignaler
from useq import MDAEvent, MDASequence

from live_sr import LiveSR
from live_sr.acquire.listeners import Events
from live_sr.upscaler import bilinear
from rig import (  # noqa: F401  mmc is a fixture
    RUNS,
    SCALE,
    SHAPE,
    WAIT_S,
    Gated,
    assert_restored,
    events_of,
    mmc,
    serving,
    use_two_cameras,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning"),
]
Y, X = SHAPE


def frames(n: int) -> MDASequence:
    return MDASequence(time_plan={"interval": 0, "loops": n})


class Handler:
    """An output handler with every method that pymmcore-plus knows of."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def sequenceStarted(self, sequence: MDASequence, meta: dict[str, Any]) -> None:
        self.calls.append(("sequenceStarted", sequence, meta))

    def frameReady(self, img: Any, event: MDAEvent, meta: dict[str, Any]) -> None:
        self.calls.append(("frameReady", img, event, meta))

    def sequenceCanceled(self, sequence: MDASequence) -> None:
        self.calls.append(("sequenceCanceled", sequence))

    def sequenceFinished(self, sequence: MDASequence) -> None:
        self.calls.append(("sequenceFinished", sequence))

    def sequencePauseToggled(self, paused: bool) -> None:
        self.calls.append(("sequencePauseToggled", paused))

    def awaitingEvent(self, event: MDAEvent, remaining_s: float) -> None:
        self.calls.append(("awaitingEvent", event, remaining_s))

    def eventStarted(self, event: MDAEvent) -> None:
        self.calls.append(("eventStarted", event))


# ------------------------------------------------------------------------------------ events of a run


def test_a_session_has_the_signals_of_the_runner() -> None:
    assert isinstance(Events(), PMDASignaler)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_starts_gives_each_frame_and_ends(mmc: CMMCorePlus, name: str) -> None:
    handler = Handler()
    with serving() as server, LiveSR(server.address) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        with mda_listeners_connected(handler, mda_events=sr.events, asynchronous=False):  # type: ignore[arg-type]
            mmc.run_mda(events_of(name, mmc), block=True)
            sr.close()
    stream = [n for n in handler.names() if n not in ("eventStarted", "awaitingEvent")]
    assert stream[0] == "sequenceStarted"
    assert stream[-1] == "sequenceFinished"
    assert stream[1:-1] == ["frameReady"] * sr.counts.acquired
    started = next(c for c in handler.calls if c[0] == "sequenceStarted")
    assert started[1] is handler.calls[-1][1]
    info = started[2]["image_infos"][0]
    assert (info["height"], info["width"]) == info["plane_shape"] == (SCALE * Y, SCALE * X)
    assert info["pixel_size_um"] == mmc.getPixelSizeUm() / SCALE
    assert started[2]["live_sr"]["scale"] == SCALE
    assert handler.names().count("eventStarted") > 0


@pytest.mark.parametrize("ordered", [False, True])
def test_the_end_comes_after_the_last_frame_however_slow_its_listener(mmc: CMMCorePlus, ordered: bool) -> None:
    calls: list[str] = []
    let = threading.Event()
    gate = Gated()
    with serving(gate) as server, LiveSR(server.address, ordered=ordered) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.sequenceStarted.connect(lambda: calls.append("started"))
        sr.events.sequenceFinished.connect(lambda: calls.append("finished"))

        @sr.events.frameReady.connect
        def slow() -> None:
            assert let.wait(WAIT_S)
            calls.append("frame")

        for _ in range(2):
            mmc.run_mda(frames(3), block=True)
        gate.open()
        let.set()
    assert calls.count("frame") == 6
    assert sorted(c for c in calls if c != "frame") == ["finished"] * 2 + ["started"] * 2
    assert calls[0] == "started"
    assert calls[-1] == "finished"


def test_a_run_without_any_server_starts_and_ends_for_listeners_too(mmc: CMMCorePlus) -> None:
    handler = Handler()
    with LiveSR("tcp://127.0.0.1:9", give_up_s=0.1) as sr:
        sr.attach(mmc)
        sr.events.sequenceStarted.connect(handler.sequenceStarted)
        sr.events.sequenceFinished.connect(handler.sequenceFinished)
        mmc.run_mda(frames(2), block=True)
        assert sr.mda_view() is None
    assert handler.names() == ["sequenceStarted", "sequenceFinished"]


def test_a_cancelled_run_says_so_between_its_last_frame_and_its_end(mmc: CMMCorePlus) -> None:
    handler = Handler()
    with serving() as server, LiveSR(server.address) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 2 and mmc.mda.cancel())
        for signal in ("sequenceStarted", "frameReady", "sequenceCanceled", "sequenceFinished"):
            getattr(sr.events, signal).connect(getattr(handler, signal))
        mmc.run_mda(frames(100), block=True)
    assert handler.names() == ["sequenceStarted", *["frameReady"] * 3, "sequenceCanceled", "sequenceFinished"]


def test_what_the_microscope_does_is_forwarded(mmc: CMMCorePlus) -> None:
    handler = Handler()
    paused = threading.Event()
    events = [
        MDAEvent(index={"t": 0}),
        MDAEvent(index={"t": 1}, min_start_time=0.2),
        MDAEvent(index={"t": 2}),
    ]
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        for signal in ("sequencePauseToggled", "awaitingEvent", "eventStarted"):
            getattr(sr.events, signal).connect(getattr(handler, signal))

        @sr.events.sequencePauseToggled.connect
        def go_on(on: bool) -> None:
            if on:
                paused.set()
                mmc.mda.set_paused(False)

        mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 0 and mmc.mda.set_paused(True))
        mmc.run_mda(events, block=True)
        assert paused.is_set()
    assert [c[1] for c in handler.calls if c[0] == "sequencePauseToggled"] == [True, False]
    assert [c[1].index["t"] for c in handler.calls if c[0] == "eventStarted"] == [0, 1, 2]
    awaited = [c for c in handler.calls if c[0] == "awaitingEvent"]
    assert awaited
    assert all(c[1] is events[1] and 0 < c[2] <= 0.2 for c in awaited)


# ------------------------------------------------------------------------------------ handlers of others on raw


def test_a_listener_of_raw_that_raises_before_us_costs_no_frame(mmc: CMMCorePlus, tmp_path: Path) -> None:
    def bad(*args: Any) -> None:
        raise RuntimeError("somebody else's mistake")

    mmc.mda.events.frameReady.connect(bad)
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=raw, block=True)
    assert sr.counts.saved == 5
    assert_restored(raw, sr_path, frames=5)


def test_a_listener_of_raw_that_blocks_holds_no_super_resolved_frame_back(mmc: CMMCorePlus) -> None:
    came = threading.Event()
    held: list[bool] = []
    with serving() as server, LiveSR(server.address) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.frameReady.connect(came.set)
        mmc.mda.events.frameReady.connect(lambda: held.append(came.wait(WAIT_S)))
        mmc.run_mda(frames(1), block=True)
    assert held == [True], "the frame was back while its raw listener still held the run"


# ------------------------------------------------------------------------------------ engines and metadata


class Labelling(MDAEngine):
    """A custom engine: two exposures for each event, with metadata of its own, and a summary that says so."""

    def setup_sequence(self, sequence: MDASequence) -> Any:
        return {**(super().setup_sequence(sequence) or {}), "dye": "uranyl acetate"}

    def exec_event(self, event: MDAEvent) -> Iterator[Any]:
        for name in ("first", "second"):
            for img, sub_event, meta in super().exec_event(event):
                yield img, sub_event, {**meta, "exposure": name, "array": np.arange(3)}


def test_metadata_of_a_custom_engine_survive(mmc: CMMCorePlus) -> None:
    mmc.register_mda_engine(Labelling(mmc, use_hardware_sequencing=False))
    handler, raw = Handler(), Handler()
    with serving() as server, LiveSR(server.address, ordered=True) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(raw.frameReady)
        sr.events.sequenceStarted.connect(handler.sequenceStarted)
        sr.events.frameReady.connect(handler.frameReady)
        sequence = MDASequence(channels=[{"config": "DAPI", "exposure": 3}], metadata={"sample": "n. 7"})
        mmc.run_mda(sequence, block=True)
    assert handler.calls[0][2]["dye"] == "uranyl acetate"
    assert handler.calls[0][1].metadata["sample"] == "n. 7"
    ours = handler.calls[1:]
    assert [c[3]["exposure"] for c in ours] == ["first", "second"]
    for (_, _, event, meta), (_, _, raw_event, raw_meta) in zip(ours, raw.calls, strict=True):
        assert event is raw_event
        changed = {k for k in raw_meta if k != "array" and meta[k] != raw_meta[k]}
        assert changed == {"pixel_size_um"}
        assert meta["exposure_ms"] == 3
        assert set(meta) - set(raw_meta) == {"live_sr"}


def test_a_generator_and_two_cameras_keep_event_and_camera_of_each_frame(mmc: CMMCorePlus) -> None:
    use_two_cameras(mmc)
    handler, raw = Handler(), Handler()
    with serving() as server, LiveSR(server.address, ordered=True) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(raw.frameReady)
        sr.events.frameReady.connect(handler.frameReady)
        mmc.run_mda((MDAEvent(index={"t": i}, channel="DAPI", metadata={"i": i}) for i in range(3)), block=True)
    assert len(handler.calls) == len(raw.calls) == 6
    for (_, img, event, meta), (_, raw_img, raw_event, raw_meta) in zip(handler.calls, raw.calls, strict=True):
        np.testing.assert_array_equal(img, bilinear(raw_img, SCALE))
        assert event is raw_event
        assert event.metadata["i"] == event.index["t"]
        assert meta["camera_device"] == raw_meta["camera_device"]
        assert meta["live_sr"]["computed"] is True
    assert {c[3]["camera_device"] for c in handler.calls} == {"Camera", "Camera 2"}


# ------------------------------------------------------------------------------------ Qt

QT = """
import sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QApplication
app = QApplication([])
import useq
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.mda.events import QMDASignaler
from live_sr import LiveSR
from rig import WAIT_S, assert_restored, serving
core = CMMCorePlus()
core.loadSystemConfiguration()
core.setROI(0, 0, 64, 48)
core.setExposure(1)
assert isinstance(core.mda.events, QMDASignaler)

def bad(*args):
    raise RuntimeError("somebody else's mistake")

class Widget(QObject):
    relay = Signal(object, object, dict)
    def __init__(self):
        super().__init__()
        self.shown = []
        self.relay.connect(self.show)
    def show(self, img, event, meta):
        here = threading.current_thread() is threading.main_thread()
        self.shown.append((img.shape, meta["live_sr"]["scale"], here))

core.mda.events.frameReady.connect(bad)
core.mda.events.sequenceFinished.connect(app.quit)
for waits in (True, False):
    raw, sr_path = (Path({folder!r}) / f"{{waits}}-{{name}}.ome.zarr" for name in ("raw", "sr"))
    widget, calls = Widget(), []
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(core)
        sr.events.sequenceStarted.connect(lambda sequence, meta: calls.append("started"))
        sr.events.frameReady.connect(lambda *frame: widget.relay.emit(*frame))
        sr.events.sequenceFinished.connect(lambda: calls.append("finished"))
        sequence = useq.MDASequence(time_plan={{"interval": 0, "loops": 3}}, channels=["DAPI", "FITC"])
        thread = core.run_mda(sequence, output=raw, block=waits)
        if not waits:
            app.exec()
            thread.join()
    app.processEvents()
    report = sr.report
    assert report.counts.saved == report.runs[0].raw.verified == 6, report
    assert report.runs[0].reason == "completed", report
    assert not report.alarms, report.alarms
    assert calls == ["started", "finished"], calls
    assert widget.shown == [((96, 128), 2, True)] * 6, widget.shown
    assert_restored(raw, sr_path, frames=6)
    print("all is well", flush=True)
core.unloadAllDevices()
"""


def test_with_qt_signals_nothing_depends_on_the_event_loop(tmp_path: Path) -> None:
    """In a process of its own: a QApplication changes the back end of every core that is made after it."""
    program = QT.format(folder=str(tmp_path), tests=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        check=False,
    )
    assert done.stdout.count("all is well") == 2, done.stdout + done.stderr
