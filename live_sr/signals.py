"""Connects slots to pymmcore-plus' signals, of psygnal or of Qt, to run where they are emitted. No Qt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def connect_directly(signal: Any, slot: Callable[..., Any]) -> None:
    """Connect `slot` so that it is called in the thread that emits.

    Qt would queue each call for the thread that connected: a window that hangs would hold frames up, and a
    script that waits for its run would end before the first of them was delivered.
    """
    core = sys.modules.get("qtpy.QtCore")  # there when pymmcore-plus has made its signals with Qt
    inner = getattr(signal, "_signal", signal)  # it wraps those of its signals that once had more arguments
    if core is not None and isinstance(inner, core.SignalInstance):
        inner.connect(slot, core.Qt.ConnectionType.DirectConnection)
    else:
        signal.connect(slot)
