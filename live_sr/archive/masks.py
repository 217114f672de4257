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
        pixels = self._planes.read(self._planes.layout.index_of(*self._source.locate(index)))
        return np.zeros(self._source.frame_shape, bool) if pixels is None else pixels != 0

    def close(self) -> None:
        """Let go of the file."""
        self._planes.close()


def _difference(mask: VolumeLayout, source: VolumeLayout) -> str | None:
    """First difference that tells them apart; pages without a meaning may be of anything."""
    mine, theirs = ([axis.name for axis in layout.index_axes] for layout in (mask, source))
    pages = any(len(names) == 1 and names[0] in PAGES for names in (mine, theirs))
    if mask.frame_shape != source.frame_shape:
        y, x = source.frame_shape
        return f"planes of {mask.frame_shape[0]} x {mask.frame_shape[1]} pixels, not {y} x {x}"
    if mask.shape != source.shape or len(mask.positions) != len(source.positions):
        return f"{mask.n_frames} planes along {mine}, not {source.n_frames} along {theirs}"
    if mine != theirs and not pages:
        return f"planes along {mine}, not {theirs}"
    return None
