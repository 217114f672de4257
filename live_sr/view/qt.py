"""Super-resolved frames in a Qt window: a dock widget for pymmcore-gui, napari-micromanager and your own.

One timer in the window's thread looks for the newest frame and draws it; frames between two looks are never
drawn. The window can hang or close, and neither acquisition nor server notices.
"""

from __future__ import annotations

import logging
import signal
import sys

from live_sr.client.feed import FeedStatus
from live_sr.config import DEFAULT_FEED
from live_sr.errors import ConfigError, LiveSRError
from live_sr.view import truth
from live_sr.view.contrast import AutoWindow, Grey, grey_window, to_8bit
from live_sr.view.source import HERE, Emits, Source, open_source
from live_sr.view.watcher import OnShow, Picture

try:
    from qtpy.QtCore import QRect, QSize, Qt, QTimer
    from qtpy.QtGui import QCloseEvent, QColor, QImage, QPainter, QPaintEvent
    from qtpy.QtWidgets import (
        QApplication,
        QHBoxLayout,
        QLabel,
        QLineEdit,
        QPushButton,
        QSizePolicy,
        QVBoxLayout,
        QWidget,
    )
except ImportError as e:  # qtpy says so too when it finds no binding
    raise ConfigError(
        f"the desktop viewers need qtpy and a Qt binding ({e}): pip install 'live-sr[qt]' PySide6"
    ) from e

__all__ = ["LiveSRWidget", "SourceWidget", "application", "run"]

log = logging.getLogger(__name__)

DRAW_MS = 33  # between two looks for a newer frame: what an eye follows
WORDS_EVERY = 6  # looks; text that changes faster than five times a second cannot be read
SHARP = 2  # drawn from this many image pixels per screen pixel; more would cost time and show no more

BANNER = "QLabel { background: #b3261e; color: white; font-weight: bold; padding: 5px; border-radius: 3px; }"
COMPUTED = (
    "QLabel { background: #0b6e6e; color: white; font-weight: bold; padding: 2px 6px; border-radius: 3px; }"
)


class SourceWidget(QWidget):
    """What every viewer has: where frames come from, what they are, and what is wrong.

    Parameters
    ----------
    *source : str or objects with ``events.frameReady``
        As for :meth:`watch`; without any, the user names an address and presses *Connect*.
    """

    def __init__(self, *source: str | Emits, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Live super-resolution")
        link = self._link = _Link()
        self._drawn: OnShow | None = None
        self._looks = 0

        self.address = QLineEdit(DEFAULT_FEED)
        self.address.setToolTip("The feed's address: view= of the session, or --view of live-sr acquire")
        self.address.returnPressed.connect(self._connect_or_leave)
        self.button = QPushButton("Connect")
        self.button.clicked.connect(self._connect_or_leave)
        self.banner = QLabel()
        self.banner.setStyleSheet(BANNER)
        self.banner.setWordWrap(True)
        self.banner.hide()
        self.label = QLabel()
        self.label.setStyleSheet(COMPUTED)
        self.age = QLabel()
        self.age.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.frame = QLabel()
        self.state = QLabel()
        self.ledger = QLabel()
        for text in (self.banner, self.label, self.age, self.frame, self.state, self.ledger):
            text.setTextFormat(Qt.TextFormat.PlainText)  # names come from the other side
        for line in (self.frame, self.state, self.ledger):
            line.setWordWrap(True)

        where = QHBoxLayout()
        where.addWidget(self.address, 1)
        where.addWidget(self.button)
        what = QHBoxLayout()
        what.addWidget(self.label)
        what.addWidget(self.age, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(where)
        layout.addWidget(self.banner)
        layout.addLayout(what)
        self.place(layout)
        self.words = QVBoxLayout()
        for line in (self.frame, self.state, self.ledger):
            self.words.addWidget(line)
        layout.addLayout(self.words)

        self._timer = QTimer(self)
        self._timer.setInterval(DRAW_MS)
        self._timer.timeout.connect(self._look)
        self._timer.start()
        self.destroyed.connect(lambda: link.leave())  # PySide holds a bound method weakly: it would be gone
        if (app := QApplication.instance()) is not None:
            app.aboutToQuit.connect(link.leave)
        if source:
            self.watch(*source)
        else:
            self._say()

    # ---------------------------------------------------------------- for the user

    def watch(self, *source: str | Emits) -> None:
        """Show the frames of `source`, and those of the earlier one no more.

        Parameters
        ----------
        *source : str or objects with ``events.frameReady``
            The address of a feed; or a session of this process, and with it ``core.mda`` where a viewer shows
            raw frames too.

        Raises
        ------
        ConfigError
            When the address is malformed, or it is neither.
        """
        opened = open_source(*source)
        self.leave()
        self._link.source = opened.__enter__()
        self.address.setText(opened.address)
        self.address.setEnabled(False)
        self.button.setText("Disconnect")
        self._say()

    def leave(self) -> None:
        """Watch nothing any more. The last picture stays, with its age."""
        self._link.leave()
        if self.address.text() == HERE:
            self.address.setText(DEFAULT_FEED)
        self.address.setEnabled(True)
        self.button.setText("Connect")
        self._say()

    @property
    def source(self) -> Source | None:
        """What is being watched."""
        return self._link.source

    # ---------------------------------------------------------------- for the viewers

    def place(self, layout: QVBoxLayout) -> None:
        """Add what shows the picture, between its label and the words."""

    def draw(self, show: OnShow) -> None:
        """Show newer frames."""

    @property
    def shown(self) -> Picture | None:
        """The super-resolved picture that is being looked at."""
        return self._drawn.right if self._drawn is not None else None

    # ---------------------------------------------------------------- the window's thread

    def _connect_or_leave(self) -> None:
        if self.source is not None:
            self.leave()
            return
        try:
            self.watch(self.address.text().strip())
        except LiveSRError as e:
            self._banner([str(e)])

    def _look(self) -> None:
        try:
            source = self.source
            if source is not None:
                show = source.on_show
                if show.number and show is not self._drawn:
                    self.draw(show)
                    self._drawn = show
            self._looks += 1
            if self._looks % WORDS_EVERY == 0:
                self._say()
        except Exception as e:  # some bindings end the whole process otherwise, and the acquisition with it
            log.exception("a live-sr window cannot draw")
            self._timer.stop()
            self._link.leave()
            self._banner(
                [f"This window has failed ({type(e).__name__}: {e}): the picture is old. Open it again."]
            )

    def _say(self) -> None:
        source = self.source
        status: FeedStatus | None = source.status if source is not None else None
        shown = self.shown
        self.label.setText(truth.label(shown))
        self.age.setText(truth.age(shown))
        self.frame.setText(truth.described(shown) if shown is not None else "")
        self.state.setText(truth.state(source))
        self.ledger.setText(truth.ledger(status))
        if source is not None:
            self._banner(truth.problems(source))
        elif shown is not None:
            self._banner(["Disconnected: the picture is old."])

    def _banner(self, texts: list[str]) -> None:
        self.banner.setText("\n".join(texts))
        self.banner.setVisible(bool(texts))

    def closeEvent(self, event: QCloseEvent) -> None:
        """Qt calls this when the user closes the window."""
        self.leave()
        super().closeEvent(event)


class _Link:
    """Holds the source; outlives the widget, so that one that Qt deletes lets go of it."""

    def __init__(self) -> None:
        self.source: Source | None = None

    def leave(self) -> None:
        source, self.source = self.source, None
        if source is not None:
            source.__exit__(None, None, None)


class LiveSRWidget(SourceWidget):
    """The newest super-resolved frame, fitted to the window.

    Examples
    --------
    >>> dock = QDockWidget("Live super-resolution", window)  # doctest: +SKIP
    >>> dock.setWidget(LiveSRWidget(sr))  # doctest: +SKIP
    >>> window.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, dock)  # doctest: +SKIP
    """

    def place(self, layout: QVBoxLayout) -> None:
        """Add the picture."""
        self.picture = _Image()
        layout.addWidget(self.picture, 1)

    def draw(self, show: OnShow) -> None:
        """Show the super-resolved frame."""
        if show.right is not None:
            self.picture.show_grey(show.right)


class _Image(QWidget):
    """One picture, as large as fits."""

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumSize(160, 120)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._grey: Grey | None = None  # a QImage does not own its pixels
        self.image: QImage | None = None
        self._auto = AutoWindow()
        self._channel = ""

    def sizeHint(self) -> QSize:
        return QSize(512, 512)

    def show_grey(self, picture: Picture) -> None:
        pixels = picture.pixels
        if picture.frame.channel != self._channel:  # the next channel has its own contrast, at once
            self._auto, self._channel = AutoWindow(), picture.frame.channel
        window = self._auto.follow(grey_window([pixels]), picture.received)
        room = SHARP * self.devicePixelRatioF() * max(self.width(), self.height())
        step = max(1, int(max(pixels.shape) / room))
        self._grey = to_8bit(pixels[::step, ::step], window)
        y, x = self._grey.shape
        self.image = QImage(self._grey.data, x, y, x, QImage.Format.Format_Grayscale8)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor("#101010"))
        if self.image is not None:
            size = self.image.size().scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio)
            where = QRect((self.width() - size.width()) // 2, (self.height() - size.height()) // 2, 0, 0)
            where.setSize(size)
            smaller = size.width() < self.image.width()  # enlarged pixels stay square
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, smaller)
            painter.drawImage(where, self.image)
        painter.end()


def run(feed: str = DEFAULT_FEED) -> None:
    """Open a window on a feed, until it is closed.

    Raises
    ------
    ConfigError
        When the address is malformed.
    """
    app = application()
    widget = LiveSRWidget(feed)
    widget.show()
    app.exec()


def application() -> QApplication:
    """The Qt application of this process, ended by Ctrl-C and SIGTERM; call it in the main thread."""
    app = QApplication.instance() or QApplication(sys.argv[:1])
    assert isinstance(app, QApplication), "a process that shows windows has no application without them"
    for number in (signal.SIGINT, signal.SIGTERM):
        # Python looks at signals when it runs, and the timer of each widget makes it run.
        signal.signal(number, lambda *_: app.quit())
    return app
