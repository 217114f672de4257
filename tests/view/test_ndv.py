from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from screen import delete, documented, until
from shots import SCALE, event, info, meta, planes

from live_sr.acquire.listeners import Events
from live_sr.client.feed import Feed
from live_sr.frame import Pixels

if TYPE_CHECKING:
    from qtpy.QtWidgets import QApplication

    from live_sr.view.ndv import SRViewer


@pytest.fixture(scope="module")
def viewer(app: QApplication) -> Iterator[SRViewer]:
    with pytest.MonkeyPatch.context() as patch:
        # ndv fetches its icons from the internet, and draws letters where there is none: here is none
        for name in ("https_proxy", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        given: dict[str, Any] = {"sr": Session()}
        exec(documented("ndv"), given)
    viewer: SRViewer = given["viewer"]
    assert viewer.isVisible()
    viewer.resize(500, 600)
    yield viewer
    viewer.close()
    delete(viewer)


class Session:
    """Emits as a session of this process does, when the test says so."""

    def __init__(self) -> None:
        self.events = Events()

    def emit(self, seq: int, shape: tuple[int, int] = (30, 40)) -> Pixels:
        sr = planes(seq, shape)[1]
        self.events.frameReady.emit(sr, event(seq), meta(seq))
        return sr


@pytest.fixture
def session(viewer: SRViewer) -> Iterator[Session]:
    session = Session()
    viewer.history = None
    viewer._drawn = None
    viewer.watch(session)
    yield session
    viewer.leave()


def emit(viewer: SRViewer, session: Session, *seqs: int) -> None:
    """Each is drawn before the next comes."""
    for seq in seqs:
        session.emit(seq)
        until(lambda seq=seq: viewer.history is not None and viewer.history[-1].frame.seq == seq)


def looked_at(viewer: SRViewer) -> int:
    assert viewer.shown is not None
    return viewer.shown.frame.seq


def drawn(viewer: SRViewer) -> Pixels:
    """The pixels that ndv gave to the graphics card."""
    until(viewer.viewer._is_idle)
    handles = viewer.viewer._lut_controllers[None].handles
    pixels: Pixels = handles[0].data() if handles else np.zeros((0, 0), np.uint16)
    return pixels


def test_frames_of_a_feed_are_followed_and_kept(viewer: SRViewer) -> None:
    with Feed("tcp://127.0.0.1:*", max_rate_hz=500) as feed:
        viewer.watch(feed.address)
        until(lambda: feed.watched)
        for seq in range(3):
            feed.show_pair(info(seq), *planes(seq))
            until(lambda seq=seq: viewer.history is not None and viewer.history[-1].frame.seq == seq)
        until(lambda: np.array_equal(drawn(viewer), planes(2)[1]))
        assert len(viewer.history) == 3  # type: ignore[arg-type]
        assert looked_at(viewer) == 2
        until(lambda: viewer.label.text() == "computed image · em-x4")
        viewer.leave()
    image = viewer.viewer.widget().grab().toImage()
    y = image.height() // 3
    greys = [image.pixelColor(x, y).lightness() for x in (image.width() // 4, image.width() * 3 // 4)]
    assert greys[0] < 80
    assert greys[1] > 180, "dark on the left, bright on the right: OpenGL draws"


def test_an_earlier_frame_is_held_until_the_slider_is_at_the_end_again(
    viewer: SRViewer, session: Session
) -> None:
    emit(viewer, session, 0, 1, 2)
    slider = viewer.viewer.display_model.current_index
    slider.update({"frame": 1})
    emit(viewer, session, 3)
    assert looked_at(viewer) == 1
    until(lambda: np.array_equal(drawn(viewer), planes(1)[1]))
    until(lambda: viewer.frame.text().startswith("frame 1 "))
    slider.update({"frame": 3})
    emit(viewer, session, 4)
    assert looked_at(viewer) == 4


def test_a_full_history_drops_the_oldest_and_shows_the_newest(
    viewer: SRViewer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from live_sr.view import ndv

    monkeypatch.setattr(ndv, "HISTORY_FRAMES", 3)
    emit(viewer, session, 0, 1, 2, 3)
    assert viewer.history is not None
    assert [picture.frame.seq for picture in viewer.history] == [1, 2, 3]
    until(lambda: np.array_equal(drawn(viewer), planes(3)[1]))
    viewer.viewer.display_model.current_index.update({"frame": 1})
    emit(viewer, session, 4)
    assert looked_at(viewer) == 2, "the frame that was looked at has moved"


def test_a_history_is_bounded_in_bytes(viewer: SRViewer, session: Session) -> None:
    from live_sr.view.ndv import History

    emit(viewer, session, 0)
    assert viewer.history is not None
    picture = viewer.history[0]
    history = History(picture, max_bytes=4 * picture.pixels.nbytes)
    for _ in range(9):
        history.append(picture)
    assert len(history) == 4


def test_frames_of_another_shape_begin_another_history(viewer: SRViewer, session: Session) -> None:
    emit(viewer, session, 0, 1)
    sr = session.emit(2, shape=(20, 20))
    until(lambda: viewer.history is not None and len(viewer.history) == 1)
    assert sr.shape == (20 * SCALE, 20 * SCALE)
    until(lambda: np.array_equal(drawn(viewer), sr))
    assert "80 × 80 uint16" in viewer.viewer._view._qwidget.data_info_label.text()
