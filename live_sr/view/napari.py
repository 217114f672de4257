"""Raw and super-resolved frames as two layers of napari that overlay exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from live_sr.config import DEFAULT_FEED
from live_sr.errors import ConfigError
from live_sr.view import truth
from live_sr.view.contrast import grey_window
from live_sr.view.qt import SourceWidget, application
from live_sr.view.source import Emits
from live_sr.view.watcher import OnShow, Picture

try:
    import napari
    from qtpy.QtWidgets import QWidget
except ImportError as e:
    raise ConfigError(f"the napari widget needs napari ({e}): pip install 'live-sr[napari]' PySide6") from e

if TYPE_CHECKING:
    from napari.layers import Image
    from napari.viewer import Viewer

__all__ = ["Layers", "run"]


class Layers(SourceWidget):
    """Keeps a raw and a super-resolved layer at the newest frame; napari's *Live super-resolution*.

    A layer that the user deletes stays away until the next *Connect*. Contrast is set once and then the user's.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Napari hands itself over under this name.
    *source : str or objects with ``events.frameReady``
        The address of a feed; or a session of this process, and ``core.mda`` for the raw layer.
    """

    def __init__(self, napari_viewer: Viewer, *source: str | Emits, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self.words.addStretch(1)  # the pictures are in napari's own canvas
        self._viewer = napari_viewer
        self._layers: dict[str, Image] = {}
        self._given: dict[str, dict[str, Any]] = {}  # what each layer was told last; the rest is the user's
        if source:
            self.watch(*source)

    def watch(self, *source: str | Emits) -> None:
        """As every viewer; layers that were deleted come back."""
        super().watch(*source)
        self._layers = {side: layer for side, layer in self._layers.items() if layer in self._viewer.layers}
        self._drawn = None

    def draw(self, show: OnShow) -> None:
        """Put the newest frames into the layers: raw below, super-resolved above."""
        for side, picture in (("raw", show.left), ("sr", show.right)):
            if picture is not None:
                self._put(side, picture)

    def _put(self, side: str, picture: Picture) -> None:
        told = _attributes(side, picture)
        layer = self._layers.get(side)
        if layer is None:
            self._given[side] = told
            self._layers[side] = self._viewer.add_image(
                picture.pixels, colormap="gray", contrast_limits=_contrast(picture), **told
            )
            layers, above = self._viewer.layers, self._layers.get("sr")
            if side == "raw" and above in layers:  # it was deleted, and comes back
                layers.move(len(layers) - 1, layers.index(above))
            return
        if layer not in self._viewer.layers:
            return
        if layer.data is not picture.pixels:
            another = layer.data.dtype != picture.pixels.dtype
            layer.data = picture.pixels
            if another:
                layer.reset_contrast_limits_range()
                layer.contrast_limits = _contrast(picture)
        before, self._given[side] = self._given[side], told
        for name, value in told.items():
            if value != before[name]:
                setattr(layer, name, value)


def run(feed: str = DEFAULT_FEED) -> None:
    """Open napari on a feed, until it is closed.

    Raises
    ------
    ConfigError
        When the address is malformed.
    """
    application()
    viewer = napari.Viewer(title="live-sr")
    viewer.window.add_dock_widget(Layers(viewer, feed), name="Live super-resolution", area="right")
    viewer.canvas.overlays.scale_bar.visible = True
    napari.run()


def _contrast(picture: Picture) -> tuple[float, float]:
    low, high = grey_window([picture.pixels])
    return low, max(high, low + 1)  # napari divides by the difference


def _attributes(side: str, picture: Picture) -> dict[str, Any]:
    frame = picture.frame
    scale = 1 if side == "raw" else frame.scale
    raw_px = frame.pixel_size_um or 1.0  # µm, or raw pixels where the size is unknown
    size = raw_px / scale * picture.plane.step
    # Napari's coordinates are those of pixel centres: the first SR pixel lies within the first raw pixel.
    shift = -(1 - 1 / scale) / 2 * raw_px
    return {
        "name": "raw, as acquired" if side == "raw" else truth.label(picture),
        "scale": (size, size),
        "translate": (shift, shift),
        "units": ("µm", "µm") if frame.pixel_size_um is not None else ("pixel", "pixel"),
        "metadata": {
            "live_sr": {
                "computed": side == "sr",
                "model": frame.model if side == "sr" else None,
                "scale": scale,
                "seq": frame.seq,
                "index": dict(frame.index),
            }
        },
    }
