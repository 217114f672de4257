"""Connects slots to the signals of pymmcore-plus, whatever its back end. Imports no Qt before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psygnal import SignalInstance

FIRST = 1_000_000  # priority of our slots; others have 0 unless they ask for more
QT_BINDINGS = ("PySide6", "PyQt6", "PySide2", "PyQt5")


def connect(signal: Any, slot: Callable[..., Any]) -> None:
    """Have `slot` called first, and on the thread that emits, whatever the signal back end.

    Slots of psygnal that come after one that raises are not called at all. A Qt signal that is emitted on the
    thread of the run would be queued for the thread that made the core: frames would wait for its event loop,
    for ever while that thread waits for the run.
    """
    if isinstance(signal, SignalInstance):
        signal.connect(slot, priority=FIRST)
    elif type(signal).__module__.partition(".")[0] in QT_BINDINGS:
        from qtpy.QtCore import Qt

        signal.connect(slot, Qt.ConnectionType.DirectConnection)
    else:
        signal.connect(slot)
