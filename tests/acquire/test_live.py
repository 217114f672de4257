"""Continuous mode and snaps: Micro-Manager's demo camera, a real server, and others who use the same core."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import useq
import zmq
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.experimental.unicore import UniMMCore

from conftest import ServerProcess
from live_sr import LiveSR
from live_sr.client.feed import FeedStatus, decode
from live_sr.frame import Counts, Pixels
from live_sr.sim.scope import FRAME_KEY, ScopeSettings, build_scope
from live_sr.sim.specimen import Neuropil
from live_sr.upscaler import Bilinear, bilinear
from rig import (  # noqa: F401  mmc is a fixture
    SCALE,
    SHAPE,
    WAIT_S,
    Gated,
    assert_restored,
    mmc,
    sampled,
    serving,
    use_two_cameras,
)

EXPOSURE_MS = 4.0


@dataclass(frozen=True, eq=False)
class Emitted:
    img: Pixels
    event: useq.MDAEvent
    meta: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.meta["live_sr"]["kind"])

    @property
    def number(self) -> int:
        return int(self.meta["camera_metadata"]["ImageNumber"])


class Listener:
    """Receives what a session emits."""

    def __init__(self, sr: LiveSR) -> None:
        self.all: list[Emitted] = []
        self._new: queue.Queue[Emitted] = queue.Queue()
        sr.events.frameReady.connect(self._take)

    def _take(self, img: Pixels, event: useq.MDAEvent, meta: dict[str, Any]) -> None:
        self.all.append(Emitted(img, event, meta))
        self._new.put(self.all[-1])

    def next(self, kind: str = "live", when: Callable[[Emitted], bool] = lambda e: True) -> Emitted:
        """The next frame of this kind that is as wanted."""
        deadline = time.monotonic() + WAIT_S
        while (e := self._new.get(timeout=deadline - time.monotonic())).kind != kind or not when(e):
            pass
        return e

    def forget(self) -> None:
        while not self._new.empty():
            self._new.get()

    def kinds(self) -> list[str]:
        return [e.kind for e in self.all]


@contextmanager
def attached(core: CMMCorePlus, upscaler: Bilinear | None = None, **options: Any) -> Iterator[LiveSR]:
    """A session with a server in this process; its ledger is sampled all the time, and closes every time."""
    with serving(upscaler) as server, LiveSR(server.address, **options) as sr, sampled(sr) as samples:
        assert sr.wait_ready(WAIT_S)
        sr.attach(core)
        try:
            yield sr
        finally:
            if not sr._closed:
                sr.close()
    for c in (*samples, sr.counts):
        assert c.acquired == c.queued + c.in_flight + c.deferred + c.returned + c.failed
        assert c.failed == 0
    assert sr.counts.settled


@contextmanager
def streaming(core: CMMCorePlus) -> Iterator[None]:
    """Continuous mode."""
    core.setExposure(EXPOSURE_MS)
    core.startContinuousSequenceAcquisition()
    yield
    core.stopSequenceAcquisition()


@contextmanager
def in_background(body: Callable[[], None], every_s: float) -> Iterator[None]:
    """Another user of the core: calls `body` again and again on a thread of its own."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.wait(every_s):
                body()
        except BaseException as e:  # noqa: BLE001  shown by the test
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert errors == []


# --------------------------------------------------------------------------------- beside others


def test_others_who_pop_and_peek_lose_nothing_and_the_same_frames_are_restored(mmc: CMMCorePlus) -> None:
    popped: dict[int, Pixels] = {}
    numbers: list[int] = []
    peeked: list[tuple[int, ...]] = []

    def pop() -> None:
        while mmc.getRemainingImageCount():
            img, tags = mmc.popNextImageAndMD()
            numbers.append(int(tags["ImageNumber"]))
            popped[numbers[-1]] = img

    def peek() -> None:
        if mmc.getRemainingImageCount():
            try:
                peeked.append(mmc.getLastImage().shape)
            except IndexError:  # popped in between
                return

    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc), in_background(pop, 0.015), in_background(peek, 0.003):
            for _ in range(8):
                got.next()
        pop()
    assert numbers == list(range(len(numbers))), "every image, in order, for who pops"
    assert len(numbers) > 20
    assert set(peeked) == {SHAPE}
    live = [e for e in got.all if e.kind == "live"]
    assert [e.number for e in live] == sorted({e.number for e in live}), "none twice, none older than the last"
    for e in live:
        np.testing.assert_array_equal(e.img, bilinear(popped[e.number], SCALE))


def test_a_live_frame_carries_what_listeners_of_raw_frames_expect(mmc: CMMCorePlus) -> None:
    mmc.setConfig("Channel", "FITC")
    mmc.setXYPosition(12, -7)
    mmc.setPosition(3)
    mmc.waitForSystem()
    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc):
            e = got.next()
    assert dict(e.event.index) == {}
    assert e.event.channel is not None
    assert e.event.channel.config == "FITC"
    assert e.meta["format"] == "frame-dict"
    assert e.meta["mda_event"] is e.event
    assert e.meta["camera_device"] == "Camera"
    assert e.meta["exposure_ms"] == e.event.exposure == EXPOSURE_MS
    assert e.meta["pixel_size_um"] == mmc.getPixelSizeUm() / SCALE
    assert e.meta["position"] == pytest.approx({"x": 12, "y": -7, "z": 3}, abs=0.02)
    told = e.meta["live_sr"]
    assert told["computed"] is True
    assert told["deferred"] is False
    assert told["latency_ms"] > 0


@pytest.mark.parametrize("how", ["snapImage", "snap"])
def test_a_snap_is_restored(mmc: CMMCorePlus, how: str) -> None:
    with attached(mmc) as sr:
        got = Listener(sr)
        mmc.setXYPosition(5, 6)
        if how == "snap":
            raw = mmc.snap()
        else:
            mmc.snapImage()
            raw = mmc.getImage()
        e = got.next("snap")
        np.testing.assert_array_equal(e.img, bilinear(raw, SCALE))
        assert e.meta["position"]["x"] == pytest.approx(5, abs=0.02)
        assert dict(e.event.index) == {}
    assert sr.report is not None
    assert (sr.counts.live, sr.counts.returned, sr.counts.saved) == (1, 1, 0)
    assert sr.report.sr_complete
    assert sr.report.runs == []


def test_a_snap_just_before_the_end_is_still_restored(mmc: CMMCorePlus) -> None:
    gate = Gated()
    with attached(mmc, gate) as sr:
        got = Listener(sr)
        raw = mmc.snap()
        threading.Timer(0.1, gate.open).start()
        sr.close()
        np.testing.assert_array_equal(got.next("snap").img, bilinear(raw, SCALE))


def test_the_last_image_of_a_sequence_of_the_cameras_own_is_shown(mmc: CMMCorePlus) -> None:
    with attached(mmc) as sr:
        got = Listener(sr)
        mmc.startSequenceAcquisition(7, 0, True)
        while mmc.isSequenceRunning():
            time.sleep(0.001)
        mmc.stopSequenceAcquisition()
        e = got.next(when=lambda e: e.number == 6)
        assert mmc.getRemainingImageCount() == 7
        np.testing.assert_array_equal(e.img, bilinear(mmc.getLastImage(), SCALE))


def test_a_stream_that_runs_already_is_joined_and_live_false_leaves_it_alone(mmc: CMMCorePlus) -> None:
    with streaming(mmc), attached(mmc) as sr:
        Listener(sr).next()
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc, live=False)
        with streaming(mmc):
            mmc.stopSequenceAcquisition()
        mmc.snap()
    assert sr.counts == Counts()


def test_a_start_that_fails_does_not_end_the_stream_that_runs(mmc: CMMCorePlus) -> None:
    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc):
            got.next()
            with pytest.raises(RuntimeError):
                mmc.startContinuousSequenceAcquisition()
            got.forget()
            began = time.monotonic()
            while time.monotonic() < began + 1.1:
                after = got.next()
    assert after.kind == "live"


def test_both_cameras_are_shown(mmc: CMMCorePlus) -> None:
    use_two_cameras(mmc)
    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc):
            for camera in ("Camera", "Camera 2") * 2:
                got.next(when=lambda e, c=camera: e.meta["camera_device"] == c)
        raw = [mmc.snap(0), mmc.getImage(1)]
        snaps = [got.next("snap"), got.next("snap")]
    for e, pixels, camera in zip(snaps, raw, ("Camera", "Camera 2"), strict=True):
        assert e.meta["camera_device"] == camera
        np.testing.assert_array_equal(e.img, bilinear(pixels, SCALE))


# --------------------------------------------------------------------------------- settings that change


def described(e: Emitted) -> tuple[Any, ...]:
    return e.img.shape, e.img.dtype.name, e.meta["pixel_size_um"]


Y, X = SHAPE
CHANGES: dict[str, tuple[Callable[[CMMCorePlus], Any], tuple[Any, ...]]] = {
    "smaller ROI": (lambda c: c.setROI(8, 8, 40, 24), ((24 * SCALE, 40 * SCALE), "uint16", 1 / SCALE)),
    "larger ROI": (lambda c: c.setROI(0, 0, 256, 128), ((128 * SCALE, 256 * SCALE), "uint16", 1 / SCALE)),
    "binning": (
        lambda c: c.setProperty("Camera", "Binning", "2"),
        ((Y // 2 * SCALE, X // 2 * SCALE), "uint16", 2 / SCALE),
    ),
    "pixel type": (
        lambda c: c.setProperty("Camera", "PixelType", "8bit"),
        ((Y * SCALE, X * SCALE), "uint8", 1 / SCALE),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_shapes_and_scales_are_right_from_the_next_frame_on(mmc: CMMCorePlus, name: str) -> None:
    change, wanted = CHANGES[name]
    before = ((Y * SCALE, X * SCALE), "uint16", 1 / SCALE)
    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc):
            assert described(got.next()) == before
        change(mmc)
        with streaming(mmc):
            got.next(when=lambda e: described(e) == wanted)
            assert described(got.next()) == wanted
        mmc.snap()
        assert described(got.next("snap")) == wanted
    changed = [described(e) for e in got.all].index(wanted)
    assert {described(e) for e in got.all[:changed]} == {before}
    assert {described(e) for e in got.all[changed:]} == {wanted}
    assert sr.alarms == []


def test_a_region_set_in_mid_stream_is_followed_when_the_camera_goes_on(mmc: CMMCorePlus) -> None:
    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc):
            got.next()
            mmc.clearROI()  # Micro-Manager empties its buffer, and this camera stops at the first misfit
        with streaming(mmc):
            got.next(when=lambda e: e.img.shape == (512 * SCALE, 512 * SCALE))
    assert {e.img.shape for e in got.all} == {(Y * SCALE, X * SCALE), (512 * SCALE, 512 * SCALE)}


def test_objective_and_exposure_are_followed_in_mid_stream(mmc: CMMCorePlus) -> None:
    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc):
            assert got.next().meta["pixel_size_um"] == 1 / SCALE
            mmc.setStateLabel("Objective", "Nikon 20X Plan Fluor ELWD")
            got.next(when=lambda e: e.meta["pixel_size_um"] == 0.5 / SCALE)
            mmc.setExposure(9)
            e = got.next(when=lambda e: e.meta["exposure_ms"] == 9)
            assert e.event.exposure == 9
            assert e.meta["pixel_size_um"] == 0.5 / SCALE


def test_pixels_that_cannot_be_restored_are_said_once_and_not_counted(mmc: CMMCorePlus) -> None:
    mmc.setProperty("Camera", "PixelType", "32bitRGB")
    with attached(mmc) as sr:
        got = Listener(sr)
        mmc.snap()
        mmc.snap()
        mmc.setProperty("Camera", "PixelType", "16bit")
        mmc.snap()
        got.next("snap")
    assert sr.report is not None
    assert [text for text in sr.report.warnings if "what Camera shows is not super-resolved" in text] == (
        sr.report.warnings
    )
    assert len(sr.report.warnings) == 1
    assert sr.counts.acquired == 1


# --------------------------------------------------------------------------------- beside sequences


@pytest.mark.parametrize("burst", [False, True], ids=["software timed", "hardware timed"])
@pytest.mark.parametrize("ordered", [False, True], ids=["", "ordered"])
def test_a_sequence_that_starts_in_live_mode_is_delivered_once_and_completely(
    mmc: CMMCorePlus, tmp_path: Path, burst: bool, ordered: bool
) -> None:
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    mmc.mda.engine.use_hardware_sequencing = burst  # type: ignore[union-attr]
    during: list[int] = []
    with attached(mmc, save=sr_path, ordered=ordered) as sr:
        got = Listener(sr)
        mmc.mda.events.sequenceStarted.connect(lambda: during.append(len(sr._lane._shown)))
        mmc.setExposure(EXPOSURE_MS)
        mmc.startContinuousSequenceAcquisition()
        got.next()
        mmc.run_mda(useq.MDASequence(time_plan={"interval": 0, "loops": 12}), output=raw, block=True)
        shown = sr.counts.live
        with streaming(mmc):
            got.next()
            got.next()
        report = sr.close()
    counts = report.counts
    n = report.runs[0].acquired
    assert n >= 11
    assert got.kinds().count("sequence") == n == counts.saved == counts.returned - counts.live
    assert got.kinds().count("live") == counts.live > shown
    assert "snap" not in got.kinds()
    sequence = [e for e in got.all if e.kind == "sequence"]
    assert all("t" in e.event.index for e in sequence)
    if ordered:
        times = [e.event.index["t"] for e in sequence]
        assert times == sorted(times)
    assert report.raw_complete
    assert report.sr_complete
    assert_restored(raw, sr_path, frames=n)


def test_while_a_sequence_is_paused_the_camera_is_the_operators(mmc: CMMCorePlus) -> None:
    paused = threading.Event()
    with attached(mmc) as sr:
        got = Listener(sr)
        mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 1 and mmc.mda.set_paused(True))
        mmc.mda.events.sequencePauseToggled.connect(lambda on: on and paused.set())
        run = mmc.run_mda(useq.MDASequence(time_plan={"interval": 0, "loops": 4}))
        assert paused.wait(WAIT_S)
        raw = mmc.snap()
        np.testing.assert_array_equal(got.next("snap").img, bilinear(raw, SCALE))
        mmc.mda.set_paused(False)
        run.join()
        report = sr.close()
    assert got.kinds().count("sequence") == 4
    assert report.counts.live == 1


def test_a_model_of_several_frames_sees_each_live_frame_alone(mmc: CMMCorePlus) -> None:
    with attached(mmc, Bilinear(SCALE, frames=3)) as sr:
        got = Listener(sr)
        raw = mmc.snap()
        e = got.next("snap")
        with streaming(mmc):
            got.next()
    np.testing.assert_array_equal(e.img, bilinear(np.stack([raw] * 3), SCALE))
    assert e.meta["live_sr"]["frames"] == 3
    assert e.meta["live_sr"]["used"] is None
    assert sr.alarms == []


def test_switched_off_nothing_is_restored_and_on_again_the_newest_is(mmc: CMMCorePlus) -> None:
    with attached(mmc) as sr:
        got = Listener(sr)
        sr.super_resolve(False)
        raw = [mmc.snap() for _ in range(3)][-1]
        deadline = time.monotonic() + WAIT_S
        while sr.counts.superseded < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert got.all == []
        sr.super_resolve(True)
        np.testing.assert_array_equal(got.next("snap").img, bilinear(raw, SCALE))
        sr.super_resolve(False)
        mmc.snap()
        began = time.monotonic()
        sr.close()
        assert time.monotonic() - began < 2
    assert sr.counts.returned == 1


# --------------------------------------------------------------------------------- servers, errors, ends


def test_with_a_slow_server_the_newest_frames_are_restored_and_closing_is_prompt(mmc: CMMCorePlus) -> None:
    gate = Gated()
    with attached(mmc, gate) as sr:
        got = Listener(sr)
        with streaming(mmc):
            deadline = time.monotonic() + WAIT_S
            while sr.counts.superseded < 2:  # the frame that waits is replaced while it is stale
                assert time.monotonic() < deadline
                time.sleep(0.01)
            c = sr.counts
            assert c.queued + c.in_flight <= 3
            newest = int(mmc.getLastImageAndMD()[1]["ImageNumber"])
            gate.permit(3)
            got.next(when=lambda e: e.number > newest - 150)  # of the last half second, whatever waited
        began = time.monotonic()
        report = sr.close()
        assert time.monotonic() - began < 2, "nobody waits for a live frame"
        gate.open()
    assert report.alarms == []
    assert report.sr_complete
    assert sr.counts.live == sr.counts.returned == sr.counts.acquired


def test_a_server_killed_in_live_mode_and_back_shows_the_newest_again(mmc: CMMCorePlus) -> None:
    with ServerProcess() as first, LiveSR(first.address) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        got = Listener(sr)
        with streaming(mmc):
            got.next()
            first.kill()
            deadline = time.monotonic() + WAIT_S
            while sr.counts.superseded < 2:
                assert time.monotonic() < deadline
                c = sr.counts
                assert c.acquired == c.queued + c.in_flight + c.deferred + c.returned + c.failed
                assert c.queued + c.in_flight <= 3
                time.sleep(0.005)
            got.forget()
            with serving(address=first.address):
                newest = int(mmc.getLastImageAndMD()[1]["ImageNumber"])
                assert all(e.number > newest - 150 for e in (got.next(), got.next()))
                report = sr.close()
    assert report.alarms == []
    assert report.counts.failed == 0
    assert report.counts.settled


def test_without_any_server_a_snap_is_given_up_with_a_word(mmc: CMMCorePlus) -> None:
    with LiveSR("tcp://127.0.0.1:9", give_up_s=0.2) as sr:
        sr.attach(mmc)
        mmc.snap()
        mmc.snap()
    assert sr.report is not None
    assert (sr.counts.acquired, sr.counts.superseded) == (0, 2)
    assert "1 snaps were not super-resolved: no server answered" in sr.report.warnings
    assert sr.report.sr_complete


def test_what_is_done_to_the_core_in_live_mode_is_survived(mmc: CMMCorePlus) -> None:
    with attached(mmc) as sr:
        got = Listener(sr)
        with streaming(mmc):
            for disturb in (mmc.clearCircularBuffer, mmc.initializeCircularBuffer, mmc.clearCircularBuffer):
                got.next()
                disturb()
            got.next()
            mmc.setCircularBufferMemoryFootprint(32)  # Micro-Manager ends the stream, and says nothing
        with streaming(mmc):
            got.next()
        mmc.startSequenceAcquisition(3, 0, True)
        while mmc.isSequenceRunning():
            time.sleep(0.001)
        mmc.unloadAllDevices()  # of a sequence that ended and was never stopped
        mmc.loadSystemConfiguration()
        mmc.setROI(0, 0, X, Y)
        got.forget()
        with streaming(mmc):
            got.next()
    assert sr.alarms == []
    assert sr._watches[0].errors == 0


def test_an_error_of_the_core_is_counted_and_said_once() -> None:
    with build_scope(Neuropil(seed=1), ScopeSettings(size=SHAPE)) as scope, attached(scope.core) as sr:
        got = Listener(sr)
        for _ in range(2):
            scope.core.events.imageSnapped.emit("Scan")  # and there is no image
        assert sr._watches[0].errors == 2
        scope.core.snap()
        got.next("snap")
    assert sr.report is not None
    assert len(sr.report.warnings) == 1
    assert "could not be read in live mode (RuntimeError" in sr.report.warnings[0]
    assert sr.counts.acquired == 1


def test_when_closed_no_thread_and_no_slot_is_left(mmc: CMMCorePlus) -> None:
    signals = ("imageSnapped", "sequenceAcquisitionStopped", "continuousSequenceAcquisitionStarted")
    before = {name: len(getattr(mmc.events, name)) for name in signals}
    with attached(mmc) as sr:
        got = Listener(sr)
        mmc.startContinuousSequenceAcquisition()
        got.next()
        assert any(t.name == "live-sr live" for t in threading.enumerate())
    assert not [t.name for t in threading.enumerate() if t.name.startswith("live-sr")]
    assert {name: len(getattr(mmc.events, name)) for name in signals} == before
    mmc.stopSequenceAcquisition()
    acquired = sr.counts.acquired
    mmc.snap()
    assert sr.counts.acquired == acquired


def run_program(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    text = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n" + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )


def test_a_program_that_ends_in_live_mode_ends_in_order() -> None:
    done = run_program(
        """
        import threading
        from pymmcore_plus import CMMCorePlus
        from live_sr import LiveSR
        from rig import serving
        core = CMMCorePlus(); core.loadSystemConfiguration(); core.setROI(0, 0, 64, 48); core.setExposure(1)
        running = serving()
        server = running.__enter__()
        sr = LiveSR(server.address)
        sr.attach(core)
        came = threading.Semaphore(0)
        sr.events.frameReady.connect(lambda: came.release())
        core.startContinuousSequenceAcquisition()
        assert came.acquire(timeout=20) and came.acquire(timeout=20)
        # Micro-Manager's own thread of events would take the process down, with us or without.
        super(CMMCorePlus, core).registerCallback(None)
        print("over", flush=True)
        """
    )
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr


def test_with_qts_signals_nothing_waits_for_a_gui_that_hangs() -> None:
    pytest.importorskip("PySide6")
    done = run_program(
        """
        import threading
        from qtpy.QtWidgets import QApplication
        app = QApplication([])
        from pymmcore_plus import CMMCorePlus
        from live_sr import LiveSR
        from rig import serving
        import useq
        core = CMMCorePlus(); core.loadSystemConfiguration(); core.setROI(0, 0, 64, 48); core.setExposure(1)
        assert "QCore" in type(core.events).__name__
        kinds = []
        came = threading.Semaphore(0)
        with serving() as server, LiveSR(server.address) as sr:
            assert sr.wait_ready(20)
            sr.attach(core)
            sr.events.frameReady.connect(lambda i, e, m: (kinds.append(m["live_sr"]["kind"]), came.release()))
            def use():  # no event loop runs: what is queued for the main thread is never delivered
                core.snapImage()
                assert came.acquire(timeout=20)
                core.startContinuousSequenceAcquisition()
                assert came.acquire(timeout=20) and came.acquire(timeout=20)
                core.stopSequenceAcquisition()
            user = threading.Thread(target=use); user.start(); user.join(30)
            n = sr.counts.acquired
            core.run_mda(useq.MDASequence(time_plan={"interval": 0, "loops": 2}), block=True)
            app.processEvents()
            sr.close()
        print(kinds[0], "live" in kinds, kinds.count("snap"), kinds.count("sequence"), flush=True)
        super(CMMCorePlus, core).registerCallback(None)
        """,
        QT_QPA_PLATFORM="offscreen",
        PYMM_SIGNALS_BACKEND="qt",
    )
    assert done.stdout == "snap True 1 2\n", done.stdout + done.stderr


# --------------------------------------------------------------------------------- view, simulated microscope


def test_the_feed_tells_live_frames_snaps_and_their_rates(mmc: CMMCorePlus) -> None:
    with zmq.Context() as context, attached(mmc, view="tcp://127.0.0.1:*") as sr:
        viewer = context.socket(zmq.SUB)
        viewer.linger = 0
        viewer.subscribe(b"")
        assert sr.view_address is not None
        viewer.connect(sr.view_address)

        def until(seen: Callable[[Any], bool]) -> Any:
            while True:
                assert viewer.poll(WAIT_S * 1000)
                content = decode(viewer.recv())
                if seen(content):
                    return content

        with streaming(mmc):
            shown = until(lambda c: not isinstance(c, FeedStatus) and c.sr is not None)
            assert shown.frame.kind == "live"
            assert shown.frame.exposure_ms == EXPOSURE_MS
            assert shown.frame.stage_um is not None
            assert shown.frame.pixel_size_um == 1.0
            status = until(lambda c: isinstance(c, FeedStatus) and c.sr_fps > 5)
            assert status.state == "acquiring"
            assert status.latency_ms["p50"] > 0
        mmc.snap()
        assert until(lambda c: not isinstance(c, FeedStatus) and c.frame.kind == "snap").frame.index == {}
        viewer.close()


def test_the_simulated_microscope_is_followed_in_live_mode_too() -> None:
    settings = ScopeSettings(size=(48, 64), dwell_us=1.0)
    with build_scope(Neuropil(seed=1), settings) as scope:
        core = scope.core
        assert isinstance(core, UniMMCore)
        with attached(core) as sr:
            got = Listener(sr)
            core.startContinuousSequenceAcquisition()
            e = got.next()
            assert e.img.shape == (96, 128)
            assert e.meta["pixel_size_um"] == settings.pixel_size_um / SCALE
            assert FRAME_KEY in e.meta["camera_metadata"]
            core.setROI(8, 4, 32, 20)  # a scan goes on with another region
            got.next(when=lambda e: e.img.shape == (40, 64))
            assert got.next().img.shape == (40, 64)
            core.setXYPosition(3.0, 1.0)
            got.next(when=lambda e: e.meta["position"].get("x") == 3.0)
            core.stopSequenceAcquisition()
            mine = core.snap()
            raw = mine.copy()
            mine[:] = 0  # the array is the user's
            np.testing.assert_array_equal(got.next("snap").img, bilinear(raw, SCALE))
        assert sr.alarms == []
