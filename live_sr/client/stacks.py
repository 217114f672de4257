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


class _Plane(NamedTuple):
    position: int
    pixels: Pixels
    missing: Missing | np.bool_  # a single one holds for every pixel


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
        if raw is None:
            middle = _Plane(centre, np.zeros(layout.frame_shape, layout.dtype), np.True_)
        else:
            middle = _Plane(centre, raw, self._missing(index))
        planes = surround(middle, self._frames, lambda offset: self._beside(index, centre + offset))
        pixels = stacked([plane.pixels for plane in planes])
        used = tuple(plane.position for plane in planes if not plane.missing.all())
        if not any(plane.missing.any() for plane in planes):
            return Seen(pixels, {self.axis: used})
        missing = np.stack([np.broadcast_to(plane.missing, layout.frame_shape) for plane in planes])
        return Seen(pixels, {self.axis: used}, missing)

    def _missing(self, index: Mapping[str, int]) -> Missing | np.bool_:
        return np.False_ if self._masks is None else self._masks.of(index)

    def _beside(self, index: Mapping[str, int], position: int) -> _Plane | None:
        """A neighbour; None where it is absent, black (left out, or never acquired), damaged, or all hole."""
        assert self.axis is not None
        if not 0 <= position < self._sizes[self.axis]:
            return None
        try:
            pixels = self.source.read({**index, self.axis: position})
        except StoreError:  # that frame's own loss, and told as such when its turn comes
            return None
        if pixels is None or not pixels.any():
            return None
        missing = self._missing({**index, self.axis: position})
        return None if missing.all() else _Plane(position, pixels, missing)
