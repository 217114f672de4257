"""Reads the raw data back as it lies on the disk. Never writes; trusts no cache and no view of the writer's.

The writer of pymmcore-plus is asynchronous and reads as zeros, without an error, where nothing has been written
yet; so a frame counts as stored only when what is read has the checksum of what was delivered.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from live_sr.client.volume import VolumeReader
from live_sr.errors import StoreError


def checksum(pixels: NDArray[Any]) -> int:
    """CRC-32 of the pixels in C order."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


class RawStore(Protocol):
    """Raw data that can be read back."""

    path: Path
    live: bool  # readable while it is being written

    def read(self, place: Mapping[str, int], n: int) -> NDArray[Any] | None:
        """Pixels of the `n`-th frame, which lies at `place`; None where there is nothing (yet)."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class ZarrRaw:
    """An OME-Zarr volume, also while pymmcore-plus is writing it."""

    live = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: VolumeReader | None = None

    def read(self, place: Mapping[str, int], n: int) -> NDArray[Any] | None:
        """See :class:`RawStore`."""
        try:
            if self._reader is None:
                self._reader = VolumeReader(self.path)
            pixels: NDArray[Any] = self._reader.read(place)
        except StoreError:
            return None
        return pixels

    def close(self) -> None:
        """See :class:`RawStore`."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class TiffRaw:
    """One OME-TIFF file, whose pages can be found only after it was closed."""

    live = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tiff: tifffile.TiffFile | None = None

    def read(self, place: Mapping[str, int], n: int) -> NDArray[Any] | None:
        """See :class:`RawStore`; pages lie in the order of acquisition."""
        try:
            if self._tiff is None:
                self._tiff = tifffile.TiffFile(self.path)
            pixels: NDArray[Any] = self._tiff.pages[n].asarray()
        except (OSError, IndexError, ValueError, tifffile.TiffFileError):
            return None
        return pixels

    def close(self) -> None:
        """See :class:`RawStore`."""
        if self._tiff is not None:
            self._tiff.close()
            self._tiff = None


def open_raw(path: Path | None) -> RawStore | None:
    """How to read the raw data at `path` back; None when that is not known."""
    if path is None:
        return None
    name = path.name.lower()
    if name.endswith(".zarr"):
        return ZarrRaw(path)
    if name.endswith((".tif", ".tiff")) and not path.is_dir():
        return TiffRaw(path)
    return None


def sink_path(core: Any) -> Path | None:
    """Where the running sequence's raw data goes, asked of pymmcore-plus.

    The runner has no public name for it (pymmcore-plus 0.18); where the private one is missing, None is the
    answer and the pixels are spooled instead.
    """
    settings = getattr(getattr(core.mda, "_sink", None), "_settings", None)
    path = getattr(settings, "output_path", None)
    if not path or getattr(getattr(settings, "format", None), "name", "scratch") == "scratch":
        return None
    return Path(path)
