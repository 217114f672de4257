"""Runs whose next event depends on what was seen: real microscope, real server."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pymmcore_plus import CMMCorePlus
from useq import MDAEvent, MDASequence

from live_sr import LiveSR
from live_sr.acquire import feedback as feedback_module
from live_sr.acquire.feedback import Feedback
from live_sr.client.volume import VolumeReader
from live_sr.errors import InputError
from rig import SCALE, SHAPE, WAIT_S, Gated, assert_restored, mmc, serving  # noqa: F401  mmc is a fixture

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def frames(n: int) -> MDASequence:
    return MDASequence(time_plan={"interval": 0, "loops": n})


def test_each_frame_decides_on_the_next_and_the_run_ends_by_itself(mmc: CMMCorePlus, tmp_path: Path) -> None:
    exposures: list[float] = []
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        feedback = Feedback(sr, [MDAEvent(exposure=1)])

        @sr.events.frameReady.connect
        def double(img: Any, event: MDAEvent, meta: dict[str, Any]) -> None:
            exposures.append(meta["exposure_ms"])
            if event.exposure is not None and event.exposure < 8:
                feedback.append(MDAEvent(exposure=2 * event.exposure, index={"t": len(exposures)}))

        mmc.run_mda(feedback, output=raw, block=True)
    assert exposures == [1, 2, 4, 8]
    assert (feedback.appended, feedback.problem) == (3, "")
    assert sr.report is not None
    assert sr.report.runs[0].reason == "completed"
    assert_restored(raw, sr_path, frames=4)


def test_a_slow_listener_is_waited_for_before_the_end(mmc: CMMCorePlus) -> None:
    seen: list[bool] = []
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        feedback = Feedback(sr, frames(1))

        @sr.events.frameReady.connect
        def slow(img: Any, event: MDAEvent) -> None:
            time.sleep(3 * feedback_module.LOOK_S)  # longer than the run looks away
            seen.append("again" in event.metadata)
            if len(seen) == 1:
                feedback.append(MDAEvent(metadata={"again": True}))

        mmc.run_mda(feedback, block=True)
    assert seen == [False, True]


def test_appended_events_come_before_the_rest(mmc: CMMCorePlus) -> None:
    order: list[int] = []
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        feedback = Feedback(sr, (MDAEvent(index={"t": i}) for i in range(3)))
        mmc.mda.events.frameReady.connect(lambda img, event: order.append(event.index["t"]))
        mmc.mda.events.frameReady.connect(
            lambda img, event: event.index["t"] == 0 and feedback.append(MDAEvent(index={"t": 9}))
        )
        mmc.run_mda(feedback, block=True)
    assert order == [0, 9, 1, 2]


def test_end_leaves_the_rest_out_and_later_events_are_refused(mmc: CMMCorePlus) -> None:
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        feedback = Feedback(sr, frames(1000))

        @mmc.mda.events.frameReady.connect
        def enough(img: Any, event: MDAEvent) -> None:
            if event.index["t"] == 1:
                feedback.append(MDAEvent(index={"t": 7}))
                feedback.end()

        mmc.run_mda(feedback, block=True)
        assert sr.close().counts.acquired == 3
        with pytest.raises(InputError, match="after the end of the run"):
            feedback.append(MDAEvent())


def test_without_a_server_the_run_ends_after_the_timeout_and_says_why(
    mmc: CMMCorePlus, caplog: pytest.LogCaptureFixture
) -> None:
    with LiveSR("tcp://127.0.0.1:9", give_up_s=0.1) as sr:
        sr.attach(mmc)
        feedback = Feedback(sr, frames(2), timeout_s=0.3)
        with caplog.at_level(logging.ERROR, "live_sr"):
            mmc.run_mda(feedback, block=True)
    assert "2 frames are outstanding" in feedback.problem
    assert feedback.problem in caplog.text


def test_a_listener_that_hangs_ends_the_run_after_the_timeout(mmc: CMMCorePlus) -> None:
    let = threading.Event()
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda: let.wait(WAIT_S))
        feedback = Feedback(sr, frames(1), timeout_s=0.3)
        mmc.run_mda(feedback, block=True)
        let.set()
    assert "a listener is still busy" in feedback.problem


def test_a_run_that_waits_for_frames_can_be_cancelled(mmc: CMMCorePlus) -> None:
    gate, waiting = Gated(), threading.Event()
    with serving(gate) as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(waiting.set)
        run = mmc.run_mda(Feedback(sr, frames(1)))
        assert waiting.wait(WAIT_S)
        mmc.mda.cancel()
        run.join(WAIT_S)
        assert not run.is_alive()
        gate.open()
    assert sr.report is not None
    assert sr.report.runs[0].reason == "canceled"


def test_a_session_that_is_not_attached_is_refused(mmc: CMMCorePlus) -> None:
    with LiveSR("tcp://127.0.0.1:9") as sr, pytest.raises(InputError, match="attach"):
        next(Feedback(sr, frames(1)))


def test_far_too_many_events_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback_module, "MAX_WAITING", 2)
    with LiveSR("tcp://127.0.0.1:9") as sr:
        feedback = Feedback(sr)
        feedback.append(MDAEvent())
        feedback.append(MDAEvent())
        with pytest.raises(InputError, match="fewer"):
            feedback.append(MDAEvent())


# ------------------------------------------------------------------------------------ the documented example


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_images_the_brightest_object_of_each_overview_again(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    program = example("feedback")
    acquired: list[MDAEvent] = []
    raw, sr_path = tmp_path / "raw.ome.zarr", tmp_path / "sr.ome.zarr"
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(lambda img, event: acquired.append(event))
        looks = program.run(mmc, sr, raw)
    assert len(looks) == 4
    overviews = [event for event in acquired if event.exposure == program.OVERVIEW_MS]
    assert [event for event in acquired if event.exposure == program.CLOSE_LOOK_MS] == looks
    assert len(overviews) == 4
    assert_restored(raw, sr_path, frames=8)
    with VolumeReader(sr_path) as restored:
        overview = restored.read({"t": 0})
    y, x = program.brightest(overview)
    n = program.OBJECT_PX
    around = overview[y - n // 2 : y + n // 2, x - n // 2 : x + n // 2]
    assert around.mean() > overview.mean() + overview.std() / 2
    pixel_um = mmc.getPixelSizeUm() / SCALE
    half_um = [edge * SCALE * pixel_um / 2 for edge in SHAPE]
    for look in looks:
        tile = next(e for e in overviews if e.index == look.index)
        assert abs(tile.y_pos - look.y_pos) <= half_um[0]
        assert abs(tile.x_pos - look.x_pos) <= half_um[1]
