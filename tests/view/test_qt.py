from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import useq
from pymmcore_plus import CMMCorePlus
from screen import PATIENCE_S, delete, documented, until
from shots import event, info, meta, planes

from live_sr import LiveSR
from live_sr.acquire.listeners import Events
from live_sr.client.feed import Feed, FeedStatus, ServerStatus
from rig import WAIT_S, Gated, mmc, serving  # noqa: F401  mmc is a fixture

if TYPE_CHECKING:
    from qtpy.QtWidgets import QApplication

    from live_sr.view.qt import LiveSRWidget


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed("tcp://127.0.0.1:*", max_rate_hz=500) as feed:
        yield feed


@pytest.fixture
def widget(app: QApplication) -> Iterator[LiveSRWidget]:
    from live_sr.view.qt import LiveSRWidget

    widget = LiveSRWidget()
    widget.resize(400, 500)
    widget.show()
    yield widget
    widget.close()
    delete(widget)


OTHERS = frozenset[threading.Thread]()


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of earlier tests, one of which hung on purpose."""
    monkeypatch.setattr(f"{__name__}.OTHERS", frozenset(threading.enumerate()))


def watchers() -> list[str]:
    names = [t.name for t in threading.enumerate() if t not in OTHERS]
    return [name for name in names if name.startswith(("live-sr watcher", "live-sr listener"))]


def shown(widget: LiveSRWidget) -> int | None:
    return widget.shown.frame.seq if widget.shown is not None else None


def test_the_newest_super_resolved_frame_is_drawn_with_its_label(feed: Feed, widget: LiveSRWidget) -> None:
    widget.watch(feed.address)
    assert widget.label.text() == "no super-resolved frame yet"
    until(lambda: feed.watched)
    feed.status(
        FeedStatus(state="acquiring", server=ServerStatus("ready"), counts={"acquired": 9, "returned": 9})
    )
    raw, sr = planes(3)
    feed.show_pair(info(3), raw, sr)
    until(lambda: widget.label.text() == "computed image · em-x4" and widget.ledger.text())
    assert widget.frame.text() == "frame 3 · t 3 · BSE · 4 nm/px"
    assert widget.age.text().endswith("ms old")
    assert widget.state.text().startswith("acquiring · server ready")
    assert widget.ledger.text() == "9 acquired · 9 returned · 0 failed"
    assert not widget.banner.isVisible()
    drawn = widget.picture.grab().toImage()
    width, height = drawn.width(), drawn.height()
    across = [drawn.pixelColor(x, height // 2).lightness() for x in (width // 4, 3 * width // 4)]
    assert across[0] < 60
    assert across[1] > 180, "dark on the left, bright on the right"
    used = round(width * sr.shape[0] / sr.shape[1])  # it keeps its proportions
    edge = (height - used) // 2
    assert drawn.pixelColor(width - 5, edge - 4).lightness() < 30
    assert drawn.pixelColor(width - 5, edge + 4).lightness() > 180


def test_a_hung_window_delays_nobody_and_then_shows_the_newest(feed: Feed, widget: LiveSRWidget) -> None:
    widget.watch(feed.address)
    until(lambda: feed.watched)
    source = widget.source
    assert source is not None
    deadline = time.monotonic() + PATIENCE_S
    for seq in range(30):  # Qt does nothing meanwhile
        before = feed.published
        feed.show_pair(info(seq), *planes(seq))
        while feed.published == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    while (right := source.on_show.right) is None or right.frame.seq < 29:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    until(lambda: shown(widget) is not None)
    assert shown(widget) == 29


def test_a_large_frame_is_thinned_before_it_is_drawn(widget: LiveSRWidget) -> None:
    session = Session()
    widget.watch(session)
    frame = np.zeros((6000, 6000), np.uint8)
    frame[:, 3000:] = 200
    session.events.frameReady.emit(frame, event(0), meta(0))
    until(lambda: widget.picture.image is not None)
    assert widget.picture.image is not None
    assert widget.picture.image.width() <= 2 * 2 * max(widget.picture.width(), widget.picture.height())


def test_a_server_that_is_away_is_said_in_red(feed: Feed, widget: LiveSRWidget) -> None:
    widget.watch(feed.address)
    until(lambda: feed.watched)
    feed.status(FeedStatus(state="acquiring", server=ServerStatus("away")))
    until(lambda: widget.banner.isVisible())
    assert widget.banner.text().startswith("Super-resolution server away")
    background = widget.banner.grab().toImage().pixelColor(4, widget.banner.height() // 2)
    assert background.red() > 150 > 80 > background.green()
    feed.status(FeedStatus(state="acquiring", server=ServerStatus("ready")))
    until(lambda: not widget.banner.isVisible())


def test_the_user_connects_and_disconnects(feed: Feed, widget: LiveSRWidget) -> None:
    widget.address.setText("nowhere")
    widget.button.click()
    assert widget.banner.isVisible()
    assert "nowhere" in widget.banner.text()
    assert widget.source is None
    widget.address.setText(f" {feed.address} ")
    widget.button.click()
    assert widget.button.text() == "Disconnect"
    until(lambda: feed.watched)
    feed.show_pair(info(0), *planes(0))
    until(lambda: shown(widget) == 0)
    widget.button.click()
    assert not watchers()
    assert widget.button.text() == "Connect"
    assert widget.banner.text() == "Disconnected: the picture is old."
    assert widget.state.text() == "not connected"
    assert widget.label.text() == "computed image · em-x4", "the picture that stays keeps its label"
    until(lambda: not feed.watched)


def test_closing_or_deleting_a_window_leaves_nothing_behind(app: QApplication, feed: Feed) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QDockWidget, QMainWindow

    from live_sr.view.qt import LiveSRWidget

    alone = LiveSRWidget(feed.address)
    alone.show()
    assert len(watchers()) == 1
    alone.close()
    assert not watchers()

    window = QMainWindow()
    dock = QDockWidget("Live super-resolution", window)
    dock.setWidget(LiveSRWidget(feed.address))
    window.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, dock)
    window.show()
    until(lambda: feed.watched)
    delete(window)
    assert not watchers()
    delete(alone)


class Session:
    def __init__(self) -> None:
        self.events = Events()


def test_the_documented_dock_is_made_as_documented(app: QApplication) -> None:
    from qtpy.QtWidgets import QMainWindow

    given = {"window": QMainWindow(), "sr": Session()}
    exec(documented("A widget to dock"), given)
    given["window"].show()  # type: ignore[attr-defined]
    given["sr"].events.frameReady.emit(planes(0)[1], event(0), meta(0))  # type: ignore[attr-defined]
    until(lambda: shown(given["dock"].widget()) == 0)  # type: ignore[attr-defined]
    delete(given["window"])  # type: ignore[arg-type]
    assert not watchers()


def test_a_window_that_cannot_draw_says_so_and_lets_go(
    widget: LiveSRWidget, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session()
    widget.watch(session)
    session.events.frameReady.emit(planes(0)[1], event(0), {"live_sr": {}})  # of another version
    until(lambda: widget.banner.isVisible())
    assert "This window has failed" in widget.banner.text()
    assert widget.source is None
    assert "cannot draw" in caplog.text


def test_a_session_of_this_process_runs_on_when_its_window_is_closed(
    mmc: CMMCorePlus,
    widget: LiveSRWidget,
) -> None:
    gate = Gated(permits=2)
    with serving(gate) as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        assert sr.wait_ready(WAIT_S)
        widget.watch(sr)
        assert widget.address.text() == "this process"
        run = mmc.run_mda(useq.MDASequence(time_plan={"interval": 0, "loops": 6}))
        until(lambda: sr.counts.returned == 2 and shown(widget) is not None and "6 acq" in widget.ledger.text())
        assert widget.ledger.text().startswith("6 acquired · 2 returned · ")
        widget.close()
        gate.open()
        run.join()
        report = sr.close()
    assert report.counts.returned == 6
    assert not report.warnings


def test_frames_reach_a_session_while_the_window_does_nothing(app: QApplication, mmc: CMMCorePlus) -> None:
    """With a Qt application pymmcore-plus emits Qt signals: of themselves they wait for the main thread."""
    assert "QMDASignaler" in type(mmc.mda.events).__name__
    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        assert sr.wait_ready(WAIT_S)
        mmc.run_mda(useq.MDASequence(time_plan={"interval": 0, "loops": 5})).join()
        report = sr.close()
    assert report.counts.returned == report.counts.acquired == 5


def test_the_command_opens_a_window_and_ends_on_a_signal(app: QApplication, feed: Feed) -> None:
    command = [sys.executable, "-m", "live_sr", "view", "--desktop", "qt", "--feed", feed.address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            until(lambda: feed.watched or process.poll() is not None)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


WITHOUT = """
import sys
from live_sr.cli import app
for package, kind in (("napari", "napari"), ("ndv", "ndv"), ("qtpy", "qt")):
    for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        sys.modules[name] = None  # as if it were not installed
    sys.modules.pop("live_sr.view.qt", None)
    try:
        app(["view", "--desktop", kind])
    except SystemExit as e:
        assert e.code == 1
"""


def test_a_missing_package_is_named_with_what_to_install() -> None:
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 3
    for line, kind in zip(said, ("napari", "ndv", "qt"), strict=True):
        assert f"pip install 'live-sr[{kind}]' PySide6" in line
