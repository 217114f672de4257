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

from live_sr.acquire.plan import Plan
from live_sr.client.volume import POSITION, VolumeReader
from live_sr.errors import InputError, StoreError

SUFFIXES = (".zarr", ".tif", ".tiff")


def checksum(pixels: NDArray[Any]) -> int:
    """CRC-32 of the pixels in C order."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


class RawStore(Protocol):
    """Raw data that can be read back. One thread at a time."""

    path: Path
    live: bool  # readable while it is being written

    def read(self, place: Mapping[str, int], *, absent_ok: bool = False) -> NDArray[Any] | None:
        """Pixels of the frame at `place`; None where there is nothing (yet).

        With `absent_ok`, what is within bounds but was left out reads as black: writers leave black frames out.
        """
        ...

    def chunk(self, place: Mapping[str, int]) -> tuple[object, int]:
        """Which chunk holds `place`, and of how many frames it is written at once."""
        ...

    def nbytes(self) -> int:
        """Present size on disk where only that tells of the writer's progress, else 0."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class ZarrRaw:
    """An OME-Zarr volume, also while pymmcore-plus is writing it."""

    live = True

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self._layout = plan.layout
        self._reader: VolumeReader | None = None

    def read(self, place: Mapping[str, int], *, absent_ok: bool = False) -> NDArray[Any] | None:
        """See :class:`RawStore`."""
        try:
            pixels: NDArray[Any] = self._opened().read(place, absent_ok=absent_ok)
        except StoreError:
            return None
        return pixels

    def chunk(self, place: Mapping[str, int]) -> tuple[object, int]:
        """See :class:`RawStore`."""
        try:
            return self._opened().chunk(place)
        except StoreError:
            return tuple(place.items()), 1

    def nbytes(self) -> int:
        """See :class:`RawStore`."""
        return 0

    def close(self) -> None:
        """See :class:`RawStore`."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _opened(self) -> VolumeReader:
        if self._reader is None:
            try:
                self._reader = VolumeReader(self.path, self._layout)
            except StoreError:  # not the layout that was planned
                self._reader = VolumeReader(self.path)
        return self._reader


class TiffRaw:
    """OME-TIFF, one file a position, whose pages can be found only after they were closed."""

    live = False

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self._order = plan.order
        self._tiffs: dict[Path, tifffile.TiffFile] = {}

    def read(self, place: Mapping[str, int], *, absent_ok: bool = False) -> NDArray[Any] | None:
        """See :class:`RawStore`; pages lie in the order of acquisition."""
        page = 0
        for axis, size in self._order:
            if axis != POSITION:
                page = page * (size or 1) + place[axis]
        path = self._file(place)
        try:
            if path not in self._tiffs:
                self._tiffs[path] = tifffile.TiffFile(path)
            pixels: NDArray[Any] = self._tiffs[path].pages[page].asarray()
        except (OSError, IndexError, ValueError, tifffile.TiffFileError):
            self.close()  # its writer may still be at it: look afresh
            return None
        return pixels

    def chunk(self, place: Mapping[str, int]) -> tuple[object, int]:
        """See :class:`RawStore`."""
        return tuple(place.items()), 1

    def nbytes(self) -> int:
        """See :class:`RawStore`."""
        try:
            return sum(f.stat().st_size for f in (self.path.iterdir() if self.path.is_dir() else [self.path]))
        except OSError:
            return 0

    def close(self) -> None:
        """See :class:`RawStore`."""
        for tiff in self._tiffs.values():
            tiff.close()
        self._tiffs.clear()

    def _file(self, place: Mapping[str, int]) -> Path:
        if not self.path.is_dir():
            return self.path
        # As ome-writers names them.
        return next(self.path.glob(f"*_p{place.get(POSITION, 0):03}.*"), self.path)


def open_raw(path: Path, plan: Plan) -> RawStore:
    """How to read the raw data at `path` back; pymmcore-plus writes OME-Zarr or OME-TIFF."""
    if path.name.lower().endswith(".zarr") or (path / "zarr.json").exists():
        return ZarrRaw(path, plan)
    return TiffRaw(path, plan)


def check_raw_path(path: Path) -> Path:
    """Refuse what cannot be read back.

    Raises
    ------
    InputError
        When `path` has another ending than OME-Zarr and OME-TIFF have.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"raw={str(path)!r} must end in .ome.zarr or .ome.tiff: nothing else can be read back")
    return path


def sink_path(core: Any) -> Path | None:
    """Where the running sequence's raw data goes, asked of pymmcore-plus.

    The runner has no public name for it (pymmcore-plus 0.18); where the private one is missing, None is the
    answer and the pixels are spooled instead.
    """
    settings = getattr(getattr(core.mda, "_sink", None), "_settings", None)
    path = getattr(settings, "output_path", None)
    if not path or getattr(getattr(settings, "format", None), "name", "scratch") == "scratch":
        return None
    return Path(path).expanduser().absolute()
