"""Makes docs/images/qt.png, ndv.png and napari.png: a simulated microscope, the shipped em-x4, real windows.

xvfb-run -s "-screen 0 1600x1200x24" python tools/screenshots_desktop.py [FOLDER]
"""

from __future__ import annotations

import io
import queue
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import napari
import useq
from PIL import Image
from qtpy.QtCore import QBuffer
from qtpy.QtWidgets import QApplication, QWidget

from live_sr import LiveSR
from live_sr.sim.scope import ScopeSettings, build_scope
from live_sr.sim.specimen import Neuropil
from live_sr.view.napari import Layers
from live_sr.view.ndv import SRViewer
from live_sr.view.qt import LiveSRWidget

FOLDER = Path(__file__).parent.parent / "docs" / "images"
FRAMES = 8
COLOURS = 256  # of a picture: keeps each under 500 kB, and a grey image has no more
SCOPE = ScopeSettings(
    size=256, scale=4, pixel_size_um=0.016, electrons_per_us=20.0, drift_um_per_s=(0.02, 0.03), seed=3
)


def main() -> None:
    """Acquire once with all three windows open, then take their pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    QApplication([])
    serve = [sys.executable, "-u", "-m", "live_sr", "serve", "--bind", "tcp://127.0.0.1:*", "--warm", "256x256"]
    with subprocess.Popen([*serve, "--model", "em-x4"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(line.split()[1] for line in server.stdout if line.startswith("ready: "))
        try:
            with LiveSR(address) as sr:
                take(sr, folder)
        finally:
            server.terminate()


def take(sr: LiveSR, folder: Path) -> None:
    """Run a sequence and take the pictures of what the windows show at its end."""
    core = build_scope(Neuropil(3), SCOPE).core
    sr.attach(core)
    qt, ndv, viewer = LiveSRWidget(sr), SRViewer(sr), napari.Viewer(title="napari")
    layers = Layers(viewer, sr, core.mda)
    viewer.window.add_dock_widget(layers, name="Live super-resolution", area="right")
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.window.resize(1240, 560)
    for widget, size in ((qt, (480, 590)), (ndv, (520, 680))):
        widget.resize(*size)
        widget.show()
    events: queue.Queue[useq.MDAEvent | None] = queue.Queue()
    run = core.run_mda(iter(events.get, None))
    for i in range(FRAMES):  # one by one: software OpenGL is slow
        events.put(useq.MDAEvent(index={"t": i}))
        until(lambda i=i: all(w.shown is not None and w.shown.frame.seq == i for w in (qt, ndv, layers)))
    events.put(None)
    run.join()
    viewer.grid.enabled = True  # raw and super-resolved side by side
    until(lambda: f"{FRAMES} returned" in layers.ledger.text())
    settle()
    viewer.reset_view()
    settle()
    save(qt, folder / "qt.png")
    save(ndv, folder / "ndv.png")
    Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB").quantize(COLOURS).save(
        folder / "napari.png", optimize=True
    )
    for window in (qt, ndv):
        window.close()
    layers.leave()
    viewer.close()


def until(condition: Callable[[], object]) -> None:
    """Let Qt work until `condition` holds."""
    while not condition():
        QApplication.processEvents()
        time.sleep(0.01)


def settle(seconds: float = 0.5) -> None:
    """Let animations end."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end)


def save(widget: QWidget, path: Path) -> None:
    """The widget as a PNG of few colours."""
    buffer = QBuffer()
    widget.grab().save(buffer, "PNG")
    Image.open(io.BytesIO(bytes(buffer.data()))).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
