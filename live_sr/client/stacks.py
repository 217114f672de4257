"""Gives stored frames their neighbours, as the live path does: what a multi-frame model is shown of a file.

Knows no format by itself: planes come from a :class:`~live_sr.client.images.ImageSource`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from live_sr.client.images import ImageSource, neighbour_axis
from live_sr.client.masks import Masks
from live_sr.errors import StoreError
from live_sr.frame import Pixels, stacked
from live_sr.holes import Missing
from live_sr.neighbours import surround
from live_sr.upscaler import UpscalerInfo


class Seen(NamedTuple):
    """What a model is given to restore one frame.

    Attributes
    ----------
    pixels : (Y, X), or (frames, Y, X) for a multi-frame model
    used : dict or None
        As in :class:`live_sr.client.journal.Entry`.
    missing : (frames, Y, X) bool or None
        None where no pixel is missing.
    """

    pixels: Pixels
    used: dict[str, tuple[int, ...]] | None
    missing: Missing | None = None


class Stacks:
    """What `model` sees of each frame of `source`.

    Parameters
    ----------
    masks : Masks, optional
        Of the source's missing pixels.

    Attributes
    ----------
    source : ImageSource
    axis : str or None
        Along which the neighbours lie; None for a single-frame model, and where there is no such axis or
        nobody knows what lies beside a frame: it then stands for its neighbours itself.
    why_alone : str
        What is to be told about that.
    """

    def __init__(self, source: ImageSource, model: UpscalerInfo, masks: Masks | None = None) -> None:
        self.source = source
        self._masks = masks
        self._frames = model.frames
        self._sizes = {axis.name: axis.size or 0 for axis in source.layout.index_axes}
        self.axis = neighbour_axis(source, model.neighbours) if model.frames > 1 else None
        why = (
            "frames lie in the order of arrival, which does not tell them" if source.mixed else "there are none"
        )
        self.why_alone = f"{model.id} sees a frame with its neighbours along {model.neighbours}, here {why}"

    def of(self, index: Mapping[str, int], raw: Pixels | None) -> Seen:
        """What the model is given to restore `raw`, the frame at `index`.

        Parameters
        ----------
        raw : (Y, X) or None
            None where the frame itself is missing, for a model that fills holes.

        Raises
        ------
        StoreError
            When a mask is damaged.
        """
        if self.axis is None:
            assert raw is not None, "nothing is filled where there are no neighbours"
            return Seen(raw if self._frames == 1 else stacked([raw] * self._frames), None)
        centre = index[self.axis]
        layout = self.source.layout
        shown: Pixels = np.zeros(layout.frame_shape, layout.dtype) if raw is None else raw
        planes = surround((centre, shown), self._frames, lambda offset: self._beside(index, centre + offset))
        places = [i for i, _ in planes]
        pixels = stacked([pixels for _, pixels in planes])
        if self._masks is None and raw is not None:
            return Seen(pixels, {self.axis: tuple(places)})
        missing = np.stack([self._missing(index, i, lost=raw is None and i == centre) for i in places])
        used = tuple(i for i, mask in zip(places, missing, strict=True) if not mask.all())
        return Seen(pixels, {self.axis: used}, missing if missing.any() else None)

    def _missing(self, index: Mapping[str, int], position: int, *, lost: bool) -> Missing:
        assert self.axis is not None
        if self._masks is None or lost:
            return np.full(self.source.layout.frame_shape, lost)
        return self._masks.of({**index, self.axis: position})

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
