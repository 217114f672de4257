from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psygnal
import pytest
import useq
from pymmcore_plus import CMMCorePlus
from shots import MODEL, event, info, meta, planes

from live_sr import LiveSR
from live_sr.acquire.listeners import Events
from live_sr.client.feed import Feed, FeedStatus, ServerStatus
from live_sr.errors import ConfigError
from live_sr.frame import Pixels
from live_sr.upscaler import bilinear
from live_sr.view import source as source_module
from live_sr.view import truth
from live_sr.view.source import HERE, Listener, open_source
from live_sr.view.watcher import Watcher
from rig import SCALE, SHAPE, WAIT_S, mmc, serving  # noqa: F401  mmc is a fixture


class Session:
    """Emits as a session does, when the test says so."""

    def __init__(self) -> None:
        self.events = Events()
        self.status = FeedStatus(session="s", state="acquiring")

    def emit(self, seq: int, **changes: Any) -> Pixels:
        sr = planes(seq)[1]
        self.events.frameReady.emit(sr, event(seq), meta(seq, **changes))
        return sr


class Runner:
    """Emits as pymmcore-plus' runner does."""

    class _Events:
        frameReady = psygnal.Signal(np.ndarray, useq.MDAEvent, dict)

    def __init__(self) -> None:
        self.events = self._Events()


def wait(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)  # the listener's thread tells nobody when it has kept a frame


def test_the_newest_frame_of_a_session_is_on_show() -> None:
    session = Session()
    with open_source(session) as source:
        for seq in range(3):
            sr = session.emit(seq)
        wait(lambda: source.on_show.right is not None and source.on_show.right.frame.seq == 2)
        show = source.on_show
        assert show.right is not None
        assert show.right.pixels is sr
        assert show.left is None
        frame = show.right.frame
        assert (frame.scale, frame.model, frame.index, frame.channel) == (4, MODEL, {"t": 2}, "BSE")
        assert frame.pixel_size_um == pytest.approx(0.016)
        assert frame.shape == planes(2)[0].shape
        assert 90 <= show.right.age_ms < 5000
        assert source.on_show is show, "nothing new: the same again"
        assert (source.address, source.status, source.silent_s) == (HERE, session.status, 0.0)


def test_a_deferred_frame_does_not_replace_a_live_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a feed: the operator watches what is acquired now."""
    session = Session()
    with open_source(session) as source:
        session.emit(8)
        session.emit(2, deferred=True)
        session.emit(9)
        session.emit(3, deferred=True)
        wait(lambda: source.on_show.right is not None and source.on_show.right.frame.seq == 9)
        monkeypatch.setattr(source_module, "LIVE_FIRST_S", 0.0)  # no live one for a while
        session.emit(4, deferred=True)
        wait(lambda: source.on_show.right is not None and source.on_show.right.frame.seq == 4)


def test_frames_without_an_entry_of_ours_are_raw() -> None:
    session, runner = Session(), Runner()
    raw = planes(0)[0]
    with open_source(session, runner) as source:
        runner.events.frameReady.emit(raw, event(0), {"pixel_size_um": 0.016})
        assert source.on_show.left is not None
        assert source.on_show.left.pixels is raw
        assert source.on_show.right is None
        session.emit(0)
        wait(lambda: source.on_show.right is not None)
        assert source.on_show.left is not None


def test_a_frame_that_is_no_grey_plane_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner()
    with open_source(runner) as source:
        for _ in range(2):
            runner.events.frameReady.emit(np.zeros((4, 4, 3), np.uint8), event(0), {})
            assert source.on_show.number == 0
    assert len([r for r in caplog.records if "cannot be shown" in r.message]) == 1


def test_a_source_that_was_left_keeps_no_thread_and_no_connection() -> None:
    session, runner = Session(), Runner()
    before = set(threading.enumerate())  # a listener of an earlier test hung on purpose
    with open_source(session, runner):
        assert len(session.events.frameReady) == len(runner.events.frameReady) == 1
    assert len(session.events.frameReady) == len(runner.events.frameReady) == 0
    wait(lambda: not [t for t in threading.enumerate() if t.name == "live-sr listener" and t not in before])


def test_a_session_that_was_closed_first_is_left_without_error() -> None:
    session, runner = Session(), Runner()
    with open_source(session, runner):
        session.events.frameReady.close()
        runner.events.frameReady.disconnect()


@pytest.mark.parametrize(
    "given", [(), ("no address",), ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), (object(),)], ids=str
)
def test_what_is_no_source_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError):
        open_source(*given)


def test_frames_of_a_real_session_are_shown_with_its_counters(mmc: CMMCorePlus) -> None:
    mmc.setPixelSizeConfig("Res10x")
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        assert sr.wait_ready(WAIT_S)
        with open_source(sr, mmc.mda) as source:
            mmc.run_mda(useq.MDASequence(time_plan={"interval": 0, "loops": 3}, channels=["FITC"])).join()
            sr.close()
            show, status = source.on_show, source.status
    assert show.left is not None
    assert show.right is not None
    np.testing.assert_array_equal(show.right.pixels, bilinear(show.left.pixels, SCALE))  # type: ignore[arg-type]
    assert show.left.pixels.shape == SHAPE
    for picture in (show.left, show.right):
        assert picture.frame.index == {"t": 2, "c": 0}
        assert picture.frame.channel == "FITC"
        assert picture.frame.pixel_size_um == pytest.approx(mmc.getPixelSizeUm())
    assert status is not None
    assert status.state == "finished"
    assert truth.ledger(status) == "3 acquired · 3 returned · 0 failed"


# -------------------------------------------------------------------- the words beside the picture

READY = ServerStatus(state="ready", device="cpu", precision="float32")
AWAY = ServerStatus(state="away")
BEHIND = {"acquired": 90, "returned": 10, "deferred": 72, "in_flight": 8}
SAID = {
    "all is well": (FeedStatus(state="acquiring", server=READY), 0, ""),
    "server away": (FeedStatus(state="acquiring", server=AWAY), 0, "server away"),
    "server away, nothing to do": (FeedStatus(state="finished", server=AWAY), 0, ""),
    "server refused": (FeedStatus(state="draining", server=ServerStatus("refused", "no key")), 0, "no key"),
    "alarm": (FeedStatus(state="finished", alarms=("disk full",)), 0, "disk full"),
    "queue full": (FeedStatus(state="acquiring", queue="full", server=READY), 0, "Queue"),
    "stale": (FeedStatus(state="acquiring", server=READY, counts=BEHIND, raw_fps=10), 5, "stale"),
    "stale by design: a slow scan": (
        FeedStatus(state="acquiring", server=READY, counts={"acquired": 9, "returned": 8, "in_flight": 1}),
        30,
        "",
    ),
    "a fast run has just begun": (
        FeedStatus(state="acquiring", server=READY, counts={"acquired": 9, "in_flight": 9}, raw_fps=30),
        30,
        "",
    ),
    "overloaded, but live": (FeedStatus(state="acquiring", server=READY, counts=BEHIND, raw_fps=10), 0.2, ""),
}


@pytest.mark.parametrize("case", SAID.values(), ids=SAID)
def test_what_is_wrong_is_said(case: tuple[FeedStatus, float, str]) -> None:
    status, age_s, expected = case
    session = Session()
    session.status = status
    with open_source(session) as source:
        session.emit(0, captured_ns=time.monotonic_ns() - int(age_s * 1e9))
        wait(lambda: source.on_show.right is not None)
        said = truth.problems(source)
    assert len(said) == bool(expected)
    assert expected in "".join(said)


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed("tcp://127.0.0.1:*") as feed:
        yield feed


def test_a_feed_that_falls_silent_in_a_run_is_said(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "SILENT_S", 0.3)
    with open_source(feed.address) as source:
        assert isinstance(source, Watcher)
        assert truth.state(source) == f"waiting for frames from {feed.address}"
        feed.status(FeedStatus(state="acquiring", server=READY, raw_fps=5, sr_fps=4.9))
        wait(lambda: source.status is not None and source.status.state == "acquiring")
        assert truth.state(source) == "acquiring · server ready (cpu float32) · 5.0 raw/s, 4.9 SR/s"
        feed.stop()
        wait(lambda: truth.problems(source))
        assert "No word from the acquisition" in truth.problems(source)[0]


def test_a_picture_says_what_it_is(feed: Feed) -> None:
    with open_source(feed.address) as source:
        assert truth.label(source.on_show.right) == "no super-resolved frame yet"
        wait(lambda: feed.watched)
        feed.show_pair(info(7, deferred=True), *planes(7))
        wait(lambda: source.on_show.right is not None)
        picture = source.on_show.right
        assert picture is not None
        assert truth.label(picture) == "computed image · em-x4"
        assert truth.described(picture) == "frame 7 · t 7 · BSE · 4 nm/px · deferred"
        assert truth.age(picture).endswith(" old")


def test_a_listener_hands_frames_over_and_does_nothing_else() -> None:
    """It is called in the acquisition's thread: whatever comes must not raise there."""
    listener = Listener(Session())
    listener._take(np.zeros(0), None, {})
    listener._take("no array", None, {"live_sr": {}})  # type: ignore[arg-type]
