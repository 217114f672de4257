"""A screen for windows that nobody sees, and a real Qt application on it.

Qt's own ``offscreen`` platform draws no OpenGL, which ndv and napari need; Xvfb with Mesa's renderer does.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qtpy.QtWidgets import QApplication, QWidget

PATIENCE_S = 20.0  # for a loaded machine; nothing waits this long when it works
DOCUMENT = Path(__file__).parents[2] / "docs" / "desktop.md"
NEEDED = "apt install xvfb libegl1 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxkbcommon-x11-0"
# It ends when its last window has closed its connection, also when this process is killed.
XVFB = ("Xvfb", "-terminate", "-screen", "0", "1600x1200x24", "-nolisten", "tcp")


def _missing() -> str | None:
    if shutil.which("Xvfb") is None:
        return f"no Xvfb for windows that nobody sees: {NEEDED}"
    qt = importlib.util.find_spec("PySide6")
    if qt is None or qt.origin is None or importlib.util.find_spec("qtpy") is None:
        return "no Qt: pip install 'live-sr[qt]' PySide6-Essentials"
    try:
        # Qt ends the whole process when this does not load.
        ctypes.CDLL(str(Path(qt.origin).parent / "Qt" / "plugins" / "platforms" / "libqxcb.so"))
    except OSError as e:
        return f"{e}: {NEEDED}"
    return None


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QApplication]:
    """A Qt application on a screen of its own; skips where there can be none, except in CI."""
    why = _missing()
    if why is not None:
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    ours, theirs = os.pipe()
    with (
        subprocess.Popen(
            [*XVFB, "-displayfd", str(theirs)], pass_fds=(theirs,), stderr=subprocess.DEVNULL
        ) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        os.close(theirs)
        try:
            with os.fdopen(ours) as said:
                number = said.readline().strip()
            assert number, f"Xvfb did not start: exit code {server.wait(PATIENCE_S)}"
            patch.setenv("DISPLAY", f":{number}")
            patch.setenv("QT_QPA_PLATFORM", "xcb")
            patch.setenv("QT_API", "pyside6")
            patch.setenv("LIBGL_ALWAYS_SOFTWARE", "1")
            patch.setenv("NAPARI_CONFIG", str(tmp_path_factory.mktemp("napari") / "settings.yaml"))
            from qtpy.QtWidgets import QApplication

            app = QApplication([])
            yield app
            app.closeAllWindows()
            app.shutdown()  # or it would end this process when its screen is gone
        finally:
            server.terminate()


def until(condition: Callable[[], object]) -> None:
    """Let Qt work until `condition` holds."""
    from qtpy.QtCore import QEventLoop
    from qtpy.QtWidgets import QApplication

    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)
        time.sleep(0.005)  # Qt returns at once when it has nothing to do


def delete(widget: QWidget) -> None:
    """Delete a widget and its children, as Qt does when their window is gone."""
    from qtpy.QtCore import QCoreApplication, QEvent

    widget.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def documented(chapter: str) -> str:
    """The first Python code of a chapter of docs/desktop.md."""
    text = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {chapter}\n", 1)[1]
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
