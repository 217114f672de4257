"""Gives stored frames their neighbours, as the live path does: what a multi-frame model is shown of a file.

Knows no format by itself: planes come from a :class:`~live_sr.client.images.ImageSource`.
"""

from __future__ import annotations

from collections.abc import Mapping

from live_sr.client.images import PAGES, ImageSource
from live_sr.errors import StoreError
from live_sr.frame import Pixels, stacked
from live_sr.neighbours import axis_of, surround
from live_sr.upscaler import UpscalerInfo


class Stacks:
    """What `model` sees of each frame of `source`.

    Attributes
    ----------
    source : ImageSource
    axis : str or None
        Along which the neighbours lie; None for a single-frame model, and where there is no such axis or
        nobody knows what lies beside a frame: it then stands for its neighbours itself.
    why_alone : str
        What is to be told about that.
    """

    def __init__(self, source: ImageSource, model: UpscalerInfo) -> None:
        self.source = source
        self._frames = model.frames
        self._sizes = {axis.name: axis.size or 0 for axis in source.layout.index_axes}
        self.axis: str | None = None
        if model.frames > 1 and not source.mixed:
            # A mere stack of pages is of time points or of sections, as the model has it.
            pages = next((axis for axis in self._sizes if axis in PAGES and len(self._sizes) == 1), None)
            self.axis = pages or axis_of(model.neighbours, self._sizes)
        why = (
            "frames lie in the order of arrival, which does not tell them" if source.mixed else "there are none"
        )
        self.why_alone = f"{model.id} sees a frame with its neighbours along {model.neighbours}, here {why}"

    def of(self, index: Mapping[str, int], raw: Pixels) -> tuple[Pixels, dict[str, tuple[int, ...]] | None]:
        """What the model is given to restore `raw`, the frame at `index`, and the positions of its frames.

        Returns
        -------
        pixels : (Y, X), or (frames, Y, X) for a multi-frame model
        used : dict or None
            As in :class:`live_sr.client.journal.Entry`.
        """
        if self._frames == 1:
            return raw, None
        if self.axis is None:
            return stacked([raw] * self._frames), None
        centre = index[self.axis]
        planes = surround((centre, raw), self._frames, lambda offset: self._beside(index, centre + offset))
        return stacked([pixels for _, pixels in planes]), {self.axis: tuple(i for i, _ in planes)}

    def _beside(self, index: Mapping[str, int], position: int) -> tuple[int, Pixels] | None:
        """A neighbour; None where there is none, where it is black (left out, or never acquired) or damaged."""
        assert self.axis is not None
        if not 0 <= position < self._sizes[self.axis]:
            return None
        try:
            pixels = self.source.read({**index, self.axis: position})
        except StoreError:  # that frame's own loss, and told as such when its turn comes
            return None
        return (position, pixels) if pixels is not None and pixels.any() else None
