"""Super-resolved frames in ndv: the newest as it comes, and a slider to look back over the last ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from live_sr.config import DEFAULT_FEED
from live_sr.errors import ConfigError
from live_sr.view import truth
from live_sr.view.contrast import PERCENTILES
from live_sr.view.qt import SourceWidget, application
from live_sr.view.watcher import OnShow, Picture

try:
    import ndv
    from ndv.models import ClimsPercentile
    from qtpy.QtWidgets import QVBoxLayout
except ImportError as e:
    raise ConfigError(f"the ndv viewer needs ndv ({e}): pip install 'live-sr[ndv]' PySide6") from e

__all__ = ["SRViewer", "run"]

HISTORY_BYTES = 512 * 2**20  # to look back over: 15 frames of 4096², 250 of 1024²
HISTORY_FRAMES = 500  # a longer slider cannot be aimed with


class History(ndv.DataWrapper[deque[Picture]]):
    """The last pictures, all of one shape and dtype, as ndv reads them: axes ``frame``, ``y``, ``x``.

    Hands frames out as they are. ndv's own ring buffer would copy all of them for each that is drawn.
    """

    def __init__(self, first: Picture, max_bytes: int = HISTORY_BYTES) -> None:
        most = max(2, min(HISTORY_FRAMES, max_bytes // first.pixels.nbytes))
        super().__init__(deque([first], maxlen=most))

    @classmethod
    def supports(cls, obj: Any) -> TypeGuard[deque[Picture]]:
        """False: it is made on purpose, never guessed from data."""
        return False

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Names of the axes."""
        return ("frame", "y", "x")

    @property
    def coords(self) -> Mapping[Hashable, Sequence[int]]:
        """Positions along each axis."""
        y, x = self[-1].pixels.shape
        return {"frame": range(len(self)), "y": range(y), "x": range(x)}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all frames."""
        return self[-1].pixels.dtype

    def isel(self, index: Mapping[int, int | slice]) -> NDArray[Any]:
        """Pixels by place in the history. In ndv's threads: it may have moved on, never become shorter."""
        which = index.get(0, slice(None))
        rest = (index.get(1, slice(None)), index.get(2, slice(None)))
        if isinstance(which, slice):
            return np.stack([picture.pixels[rest] for picture in list(self._data)[which]])
        pixels: NDArray[Any] = self[which].pixels[rest]
        return pixels

    def guess_channel_axis(self) -> None:
        """There is none: frames are shown one by one."""

    def summary_info(self) -> str:
        """What ndv writes above the image."""
        y, x = self[-1].pixels.shape
        return f"{truth.label(self[-1])} · {x} × {y} {self.dtype}"

    def fits(self, picture: Picture) -> bool:
        """Whether `picture` is of the same kind."""
        return picture.pixels.shape == self[-1].pixels.shape and picture.pixels.dtype == self.dtype

    def append(self, picture: Picture) -> int:
        """Add a picture; how many were dropped for it."""
        dropped = int(len(self) == self._data.maxlen)
        self._data.append(picture)
        if not dropped:
            self.dims_changed.emit()
        return dropped

    def __getitem__(self, i: int) -> Picture:
        return self._data[i]

    def __len__(self) -> int:
        return len(self._data)


class SRViewer(SourceWidget):
    """ndv's viewer of the super-resolved stream; :attr:`viewer` is the :class:`ndv.ArrayViewer`.

    The newest frame is followed. Moving the slider back holds a frame; moving it to the end follows again.

    Examples
    --------
    >>> viewer = SRViewer(sr)  # or SRViewer("tcp://127.0.0.1:5756")  # doctest: +SKIP
    >>> viewer.show()  # doctest: +SKIP
    """

    def place(self, layout: QVBoxLayout) -> None:
        """Add ndv's widget."""
        self.viewer = ndv.ArrayViewer()
        low, high = PERCENTILES
        self.viewer.display_model.default_lut.clims = ClimsPercentile(min_percentile=low, max_percentile=high)
        self.history: History | None = None
        layout.addWidget(self.viewer.widget(), 1)

    def draw(self, show: OnShow) -> None:
        """Append the super-resolved frame, and show it unless an earlier one is looked at."""
        picture = show.right
        if picture is None or (self.history is not None and picture is self.history[-1]):
            return
        index = self.viewer.display_model.current_index
        if self.history is None or not self.history.fits(picture):
            self.history = History(picture)
            index.update({"frame": 0})
            self.viewer.data = self.history
            return
        at, last = self._at, len(self.history) - 1
        dropped = self.history.append(picture)
        if at < last:
            index.update({"frame": max(0, at - dropped)})
            return
        index.update({"frame": len(self.history) - 1})
        if dropped:
            self.history.data_changed.emit()  # the same place, another frame

    @property
    def shown(self) -> Picture | None:
        """The picture at the slider."""
        return self.history[self._at] if self.history is not None else None

    @property
    def _at(self) -> int:
        at = self.viewer.display_model.current_index.get("frame", 0)
        return at if isinstance(at, int) else -1


def run(feed: str = DEFAULT_FEED) -> None:
    """Open ndv on a feed, until it is closed.

    Raises
    ------
    ConfigError
        When the address is malformed.
    """
    app = application()
    widget = SRViewer(feed)
    widget.resize(900, 900)
    widget.show()
    app.exec()
