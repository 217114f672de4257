"""Opens image files as grey planes: small ones are held in memory, of large ones only windows are read.

What leaves here is uint8 or uint16, full scale being the range of the type. Knows files, not how they are used.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from live_sr.client.images import SUFFIXES, ImageSource, neighbour_axis, open_source
from live_sr.client.volume import Axis, VolumeLayout, Window
from live_sr.errors import ConfigError, InputError, StoreError
from live_sr.frame import DTYPES, Pixels
from live_sr.neighbours import Neighbours

log = logging.getLogger(__name__)

Float = NDArray[np.float32]
Range = tuple[float, float]
"""Grey values that become black and white."""

READABLE = (*DTYPES, "float32")
HELD_BYTES = 2**30  # all images of a run together; what is beyond is read from the disk, crop by crop
OPEN_FILES = 64  # well below what systems allow a process (256 on macOS)
BAND_PX = 2**24  # pixels that are looked at in one piece: 64 MB as float32
ROBUST = (0.1, 99.9)  # percentiles: a hot pixel must not decide what is white
DIM = 2**14  # grey levels: a 16-bit file below it comes from a camera of 14 bits or less
SAMPLE_PX = 2**22  # pixels of a file that its percentiles are taken from


class Plane(Protocol):
    """(Y, X) uint8 or uint16: an array, or what reads one from a file window by window."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Y, X)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels that a window gives."""
        ...

    def __getitem__(self, window: Window, /) -> Pixels:
        """Rows and columns, both with a start and a stop within the plane."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plane comes from.

    Attributes
    ----------
    file : str
        Name below the data folder.
    sha256 : str
        Of the file: two names of the same content are the same file.
    stack : int
        Number of the stack within the file: one position, one time point.
    at : int
        Number of the plane within the stack; neighbours differ by one.
    """

    file: str
    sha256: str
    stack: int
    at: int


@dataclass(frozen=True)
class File:
    """One image file as it is used.

    Attributes
    ----------
    path : Path
    name : str
        Below the data folder.
    sha256 : str
    images : tuple of Plane
    places : tuple of Place
        One for each image.
    range : (float, float) or None
        Grey values in the file that became black and white; None where they are those of its type.
    """

    path: Path
    name: str
    sha256: str
    images: tuple[Plane, ...] = field(repr=False)
    places: tuple[Place, ...] = field(repr=False)
    range: Range | None = None


class Shelf:
    """Decides what is held in memory, and keeps at most :data:`OPEN_FILES` of the other files open.

    Parameters
    ----------
    held_bytes : int
        Pixels held in memory, all files together.
    """

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._left = held_bytes
        self._open: OrderedDict[Path, ImageSource] = OrderedDict()
        weakref.finalize(self, _close_all, self._open)

    def take(self, n_bytes: int) -> bool:
        """Whether there is room for `n_bytes` more, which are then taken."""
        if n_bytes > self._left:
            return False
        self._left -= n_bytes
        return True

    def source(self, path: Path) -> ImageSource:
        """Open `path`, or find it open; the file that was not used for longest makes room."""
        if path not in self._open:
            self._open[path] = open_source(path, READABLE)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Close all files; one that is used later is opened again."""
        _close_all(self._open)


@dataclass(frozen=True)
class StoredPlane:
    """A plane in a file, of which windows are read when they are asked for.

    Attributes
    ----------
    range : (float, float) or None
        Stored values that become black and white; None leaves them as they are stored.
    """

    shelf: Shelf = field(repr=False)
    path: Path
    index: Mapping[str, int]
    shape: tuple[int, int]
    stored: np.dtype[Any]
    range: Range | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint16 where values are scaled."""
        return self.stored if self.range is None else np.dtype(np.uint16)

    def __getitem__(self, window: Window, /) -> Pixels:
        """See :class:`Plane`."""
        pixels = self.raw(window)
        if self.range is None:
            return pixels
        low, high = self.range
        unit = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        scaled: Pixels = np.rint(unit.clip(0, 1) * 65535).astype(np.uint16)
        return scaled

    def raw(self, window: Window) -> NDArray[Any]:
        """As stored.

        Raises
        ------
        StoreError
            When it cannot be read, or was never written.
        """
        pixels = self.shelf.source(self.path).read(self.index, window)
        if pixels is None:
            raise StoreError(f"plane {dict(self.index)} of {self.path} is not on disk any more")
        return pixels


@dataclass(frozen=True)
class Part:
    """A window of a plane, which is a plane."""

    plane: Plane
    window: Window

    @property
    def shape(self) -> tuple[int, ...]:
        """(Y, X)."""
        return tuple(s.stop - s.start for s in self.window)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the plane."""
        return self.plane.dtype

    def __getitem__(self, window: Window, /) -> Pixels:
        """See :class:`Plane`."""
        y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(self.window, window, strict=True))
        return self.plane[y, x]


def part_of(plane: Plane, window: Window) -> Plane:
    """A window of `plane` that reads nothing by itself."""
    return cast("Plane", plane[window]) if isinstance(plane, np.ndarray) else Part(plane, window)


def to_unit(pixels: Pixels) -> Float:
    """(Y, X) uint8 or uint16 to float32 in [0, 1] by the range of its type."""
    return np.asarray(pixels / np.float32(np.iinfo(pixels.dtype).max), np.float32)


def find_files(folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """All image files and OME-Zarr volumes below `folders`, sorted, with their names below the folder.

    Raises
    ------
    InputError
        When a folder does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no data folder {folder}: give --data a folder that holds images")
        found: list[Path] = []
        for where, subfolders, names in os.walk(folder):
            # a volume is an image, not a folder of thousands of files
            volumes = [name for name in subfolders if name.lower().endswith(".zarr")]
            subfolders[:] = [name for name in subfolders if name not in volumes]
            images = [name for name in names if name.lower().endswith(tuple(SUFFIXES))]
            found += [Path(where, name) for name in (*volumes, *images)]
        for path in sorted(found):
            yield path, path.relative_to(folder).as_posix()


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of the patterns; ``*`` also spans folders."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def load_files(
    folders: Sequence[Path],
    patterns: Sequence[str],
    exclude: Sequence[str] = (),
    *,
    channel: int | None = None,
    value_range: Range | None = None,
    neighbours: Neighbours = "t or z",
    shelf: Shelf | None = None,
) -> list[File]:
    """Open every file whose name matches one of `patterns` and none of `exclude`.

    Files that cannot be used are named in a warning, counted, and skipped.

    Parameters
    ----------
    channel, value_range, neighbours
        See :func:`load_file`.
    shelf : Shelf, optional
        Shared by all files of a run; by default one for these.

    Raises
    ------
    InputError
        When nothing is left.
    """
    shelf = shelf or Shelf()
    files: list[File] = []
    skipped: list[str] = []
    for path, name in find_files(folders):
        if not matches(name, patterns) or matches(name, exclude):
            continue
        try:
            files.append(
                load_file(path, name, shelf, channel=channel, value_range=value_range, neighbours=neighbours)
            )
        except ConfigError:
            raise
        except (InputError, StoreError) as e:
            log.warning("skipped: %s", e)
            skipped.append(name)
    if skipped:
        log.warning("%d of %d image files could not be used", len(skipped), len(skipped) + len(files))
    if not files:
        where = ", ".join(map(str, folders)) or "no folder"
        raise InputError(
            f"no usable image matches {', '.join(patterns)} below {where} ({len(skipped)} could not be read): "
            "check --data and the patterns in the settings file"
        )
    if dim := _dim(files):
        log.warning("%s", dim)
    return files


def load_file(
    path: Path,
    name: str,
    shelf: Shelf,
    *,
    channel: int | None = None,
    value_range: Range | None = None,
    neighbours: Neighbours = "t or z",
) -> File:
    """Open one TIFF, OME-TIFF, PNG or OME-Zarr.

    Parameters
    ----------
    name : str
        What the file is called in messages and data lists.
    channel : int, optional
        Which channel to take, from 0; without it the file must not have several.
    value_range : (float, float), optional
        Grey values that become black and white. By default the range of the integer type; of float32 the
        0.1 and 99.9 percentiles of the file.
    neighbours : {"t", "z", "t or z"}
        Which planes lie beside each other: see :func:`live_sr.client.images.neighbour_axis`.

    Raises
    ------
    InputError
        When the file cannot be read, is colour, holds NaN or infinity, or has several channels and none is
        chosen.
    StoreError
        When a volume or a page cannot be read.
    ConfigError
        When `value_range` is none.
    """
    if value_range is not None and not value_range[0] < value_range[1]:
        raise ConfigError(f"range = {list(value_range)}: the second value must be larger, [black, white]")
    source = shelf.source(path)
    layout = source.layout
    shape, stored = layout.frame_shape, np.dtype(layout.dtype)
    chosen = [i for i in _in_stacks(path, source, channel, neighbours) if source.present(i[0])]
    if not chosen or 0 in shape:
        raise InputError(f"{path} holds no pixels: {len(chosen)} planes of {shape[0]} x {shape[1]} pixels")
    planes = [StoredPlane(shelf, path, index, shape, stored, value_range) for index, _, _ in chosen]
    if stored.kind == "f":
        value_range = _survey(planes, value_range)
        planes = [StoredPlane(shelf, path, p.index, shape, stored, value_range) for p in planes]
    whole = slice(0, shape[0]), slice(0, shape[1])
    images: tuple[Plane, ...]
    if shelf.take(len(planes) * shape[0] * shape[1] * planes[0].dtype.itemsize):
        images = tuple(plane[whole] for plane in planes)
    else:
        *_, end = _bands(shape)
        planes[-1][end]  # a copy that broke off says so now, not in the middle of a run
        images = tuple(planes)
        if not source.cuts:
            log.warning(
                "%s is too large to be held in memory, and each of its planes is compressed as a whole: "
                "training is faster on a copy in tiles, strips or chunks",
                name,
            )
    sha256 = hash_file(path)
    places = tuple(Place(name, sha256, stack, at) for _, stack, at in chosen)
    return File(path, name, sha256, images, places, value_range)


def read_file(
    path: Path,
    *,
    channel: int | None = None,
    value_range: Range | None = None,
    neighbours: Neighbours = "t or z",
) -> File:
    """One image file with all its planes in memory. See :func:`load_file`.

    Raises
    ------
    InputError
        When the file cannot be used.
    ConfigError
        When `value_range` is none.
    """
    shelf = Shelf(2**63)
    try:
        file = load_file(
            path, path.name, shelf, channel=channel, value_range=value_range, neighbours=neighbours
        )
    except StoreError as e:
        raise InputError(str(e)) from e
    finally:
        shelf.close()
    if dim := _dim([file]):
        log.warning("%s", dim)
    return file


def read_images(path: Path, *, channel: int | None = None, value_range: Range | None = None) -> list[Pixels]:
    """Every plane of an image file, (Y, X) uint8 or uint16. See :func:`read_file`."""
    return [cast("Pixels", image) for image in read_file(path, channel=channel, value_range=value_range).images]


def coarse_layout(path: Path, images: Sequence[Pixels], scale: int) -> VolumeLayout:
    """Axes and pixel size of images that were made of the planes of a file, `scale` of their pixels to a side.

    Where planes of the file are missing, or they are not time points and sections of one position, the images
    are a mere stack.
    """
    source = open_source(path, READABLE)
    layout = source.layout
    source.close()
    series = tuple(axis for axis in layout.index_axes if axis.type != "channel")
    whole = math.prod(axis.size or 0 for axis in series) == len(images)
    if not whole or not {axis.name for axis in series} <= {"t", "z"}:
        series = (Axis("q", len(images), "other"),)
    y, x = (
        replace(axis, size=size, scale=axis.scale and axis.scale * scale)
        for axis, size in zip(layout.frame_axes, images[0].shape, strict=True)
    )
    return VolumeLayout((*series, y, x), images[0].dtype.name)


def hash_file(path: Path) -> str:
    """SHA-256 of a file; of a volume, of the names and contents of its files. Reads in blocks."""
    if path.is_dir():
        digest = hashlib.sha256()
        for part in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{part.relative_to(path).as_posix()} {hash_file(part)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dim(files: Sequence[File]) -> str:
    """What to say of 16-bit files that use 14 bits or less: doses and errors are fractions of full scale."""
    dim = {}
    for file in (f for f in files if f.range is None):
        held = [i for i in file.images if isinstance(i, np.ndarray) and i.dtype.itemsize == 2]
        if 0 < (top := max((int(i.max()) for i in held), default=0)) < DIM:
            dim[file.name] = top
    if not dim:
        return ""
    more = f" and {len(dim) - 1} more files" if len(dim) > 1 else ""
    name, top = next(iter(dim)), max(dim.values())
    return (
        f"{name}{more}: no pixel is above {top} of 65535, which is taken for full scale in doses, noise and "
        "errors; say where white is, for example range = [0, 4095] of a 12-bit camera"
    )


def _close_all(sources: OrderedDict[Path, ImageSource]) -> None:
    while sources:
        sources.popitem()[1].close()


def _in_stacks(
    path: Path, source: ImageSource, channel: int | None, neighbours: Neighbours
) -> Iterator[tuple[dict[str, int], int, int]]:
    """Every plane of the channel, with the number of its stack and its place within."""
    layout = source.layout
    colours = next((axis for axis in layout.index_axes if axis.type == "channel"), None)
    n = colours.size or 1 if colours else 1
    names = f" ({', '.join(layout.channel_names)})" if layout.channel_names else ""
    if channel is None and n > 1:
        raise InputError(f"{path} has {n} channels{names}: choose one, channel = 0 takes the first")
    if channel is not None and not 0 <= channel < n:
        raise InputError(f"{path} has no channel {channel}, only {n}{names}, counted from 0")
    along = neighbour_axis(source, neighbours)
    stacks: dict[tuple[int, ...], int] = {}
    for index in source.indices():
        if colours and channel is not None and index[colours.name] != channel:
            continue
        others = tuple(i for key, i in index.items() if along is None or key != along)
        stack = stacks.setdefault(others, len(stacks))
        yield index, stack, index[along] if along else 0


def _survey(planes: Sequence[StoredPlane], value_range: Range | None) -> Range:
    """Look at every pixel of a float32 file once: none may be NaN, and most must find room in the range."""
    samples = []
    for plane in planes:
        for window in _bands(plane.shape):
            pixels = plane.raw(window)
            if not np.isfinite(pixels).all():
                raise InputError(
                    f"{plane.path} holds NaN or infinite values (plane {dict(plane.index)}): "
                    "replace them, or leave the file out"
                )
            step = max(1, len(planes) * plane.shape[0] * plane.shape[1] // SAMPLE_PX)
            samples.append(pixels.ravel()[::step])
    if value_range is not None:
        return value_range
    seen = np.concatenate(samples)
    low, high = np.percentile(seen, ROBUST)
    if low == high:  # nearly everything is background
        low, high = seen.min(), seen.max()
    if low == high:
        raise InputError(f"{planes[0].path} holds one grey value only, {low:g}: leave the file out")
    return float(low), float(high)


def _bands(shape: tuple[int, int]) -> Iterator[Window]:
    rows = max(1, BAND_PX // shape[1])
    for top in range(0, shape[0], rows):
        yield slice(top, min(top + rows, shape[0])), slice(0, shape[1])
