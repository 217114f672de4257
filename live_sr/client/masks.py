"""Reads which pixels of a file or volume are missing, plane by plane. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from live_sr.client.images import PAGES, ImageSource, open_source
from live_sr.client.volume import VolumeLayout
from live_sr.errors import InputError
from live_sr.holes import Missing

DTYPES = ("bool", "uint8", "uint16")


class Masks:
    """The mask of every plane of `source`.

    Parameters
    ----------
    path : Path
        TIFF, OME-TIFF, PNG or OME-Zarr with the planes of `source` in the same order, bool, uint8 or uint16;
        what is not zero is missing. A plane that a volume does not hold marks nothing.
    source : ImageSource

    Raises
    ------
    InputError
        When it cannot be read, is no mask, or is none of `source`.
    StoreError
        When it is a folder without an OME-Zarr 0.5 volume.
    """

    def __init__(self, path: Path, source: ImageSource) -> None:
        self._source = source.layout
        self._planes = open_source(path, DTYPES)
        difference = _difference(self._planes.layout, self._source)
        if difference is not None:
            self._planes.close()
            raise InputError(f"the mask {path} has {difference}: give one with a plane for each plane")

    def of(self, index: Mapping[str, int]) -> Missing:
        """(Y, X) of the plane of the source at `index`.

        Raises
        ------
        StoreError
            When it is damaged.
        """
        p, where = self._source.locate(index)
        steps = iter(i for i, axis in zip(where, self._source.index_axes, strict=True) if axis.size != 1)
        layout = self._planes.layout
        there = [0 if axis.size == 1 else next(steps) for axis in layout.index_axes]
        pixels = self._planes.read(layout.index_of(p, there))
        return np.zeros(self._source.frame_shape, bool) if pixels is None else pixels != 0

    def close(self) -> None:
        """Let go of the file."""
        self._planes.close()


def _difference(mask: VolumeLayout, source: VolumeLayout) -> str | None:
    """First difference that tells them apart; pages without a meaning may be of anything."""
    if mask.frame_shape != source.frame_shape:
        shapes = ["{} x {}".format(*layout.frame_shape) for layout in (mask, source)]
        return f"planes of {shapes[0]} pixels, not {shapes[1]}"
    mine, theirs = (
        {axis.name: axis.size for axis in layout.index_axes if axis.size != 1} for layout in (mask, source)
    )
    alike = list(mine) == list(theirs) or any(len(m) == 1 and {*m} & {*PAGES} for m in (mine, theirs))
    counts = [max(len(layout.positions), 1) for layout in (mask, source)]
    if not alike or [*mine.values()] != [*theirs.values()] or counts[0] != counts[1]:
        return f"{mask.n_frames} planes along {list(mine)}, not {source.n_frames} along {list(theirs)}"
    return None
