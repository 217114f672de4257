"""Reads and writes TIFF, OME-TIFF and PNG one plane at a time, described by the same layout as a volume.

Of a plane that is not compressed as a whole, a window can be read alone. Knows neither model nor network. What
is not a stack of grey-level planes is refused, never converted.
"""

from __future__ import annotations

import itertools
import math
import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import msgspec
import numpy as np
import tifffile
from numpy.typing import NDArray

from live_sr.client.journal import journal_path
from live_sr.client.volume import (
    MICROMETRES,
    Axis,
    AxisType,
    Position,
    VolumeLayout,
    VolumeReader,
    Window,
    mixed_up,
)
from live_sr.errors import InputError, LiveSRError, StoreError
from live_sr.frame import DTYPES, Pixels
from live_sr.neighbours import Neighbours, axis_of

Format = Literal["zarr", "ome-tiff", "tiff", "png"]
SUFFIXES: dict[str, Format] = {
    ".zarr": "zarr",
    ".ome.tif": "ome-tiff",
    ".ome.tiff": "ome-tiff",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".png": "png",
}
CLASSIC_TIFF_BYTES = 2**32 - 2**25  # offsets have 32 bits; 32 MB are left for the pages' own descriptions
FIRST_POSITION = "*_p000.ome.tif*"  # as ome-writers names it
NAMESPACE = "live-sr"  # of our annotation in OME-XML
JPEG = (6, 7, 33007, 34892)  # kinds of compression whose strips need the page's tables to be decoded
PNG_MODES = {"L": "uint8", "I;16": "uint16", "I;16B": "uint16"}

# OME-XML writes symbols where OME-Zarr writes names.
UNITS = {
    "Å": "angstrom",
    "nm": "nanometer",
    "µm": "micrometer",
    "μm": "micrometer",  # the Greek letter; the one above is the micro sign
    "um": "micrometer",
    "micron": "micrometer",
    "microns": "micrometer",
    "\\u00B5m": "micrometer",  # as ImageJ writes it
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "ms": "millisecond",
    "s": "second",
    "sec": "second",
    "min": "minute",
    "h": "hour",
}
SYMBOLS = {name: symbol for symbol, name in reversed(UNITS.items()) if symbol != "\\u00B5m"}
GROUP_NAME = re.compile(r"\w[\w .-]*")
PAGES = ("i", "q")  # tifffile's names for pages of which the file does not say what they are
AXIS_TYPES: dict[str, AxisType] = {"t": "time", "c": "channel", "z": "space"}


class ImageSource(Protocol):
    """Planes of a file or volume, each read when it is asked for."""

    @property
    def layout(self) -> VolumeLayout:
        """Axes, dtype and positions."""
        ...

    @property
    def mixed(self) -> bool:
        """Whether what lies beside a frame may be of another channel or position."""
        ...

    def indices(self) -> Iterator[dict[str, int]]:
        """Index of every plane, in the order of storage."""
        ...

    @property
    def cuts(self) -> bool:
        """Whether reading a window costs less than reading its plane."""
        ...

    def present(self, index: Mapping[str, int]) -> bool:
        """Whether the plane at `index` was ever written."""
        ...

    def read(self, index: Mapping[str, int], window: Window | None = None) -> NDArray[Any] | None:
        """The plane at `index`, or a window of it; None when it was never written."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def neighbour_axis(source: ImageSource, neighbours: Neighbours) -> str | None:
    """Name of the axis along which the neighbours of a plane lie; None where nothing says what lies beside it.

    A mere stack of pages is of time points or of sections, as whoever asks has it.
    """
    if source.mixed:
        return None
    axes = [axis for axis in source.layout.index_axes if axis.type != "channel"]
    if len(axes) == 1 and axes[0].name in PAGES:
        return axes[0].name
    return axis_of(neighbours, {axis.name: axis.size for axis in axes})


def format_of(path: Path) -> Format:
    """The format that a name's ending stands for.

    Raises
    ------
    InputError
        When it stands for none.
    """
    name = path.name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return SUFFIXES[suffix]
    raise InputError(f"{path}: the name must end with one of {', '.join(SUFFIXES)}")


def open_source(path: Path, dtypes: Sequence[str] = DTYPES) -> ImageSource:
    """Open an image file or OME-Zarr volume for reading.

    Parameters
    ----------
    dtypes : sequence of str
        Pixel types that the caller can use.

    Raises
    ------
    InputError
        When there is nothing, or its planes are not grey levels of one of the `dtypes`.
    StoreError
        When it is a folder without an OME-Zarr 0.5 volume.
    """
    if not path.exists():
        raise InputError(f"there is no {path}: check the name")
    source: ImageSource
    if path.is_dir():
        if journal_path(path).exists():
            raise InputError(f"{path} is a computed volume itself: take the raw volume it was made from")
        first = first_of_folder(path)
        source = ZarrSource(path) if first is None else TiffSource(first)
    elif format_of(path) == "png":
        source = PngSource(path)
    else:
        source = TiffSource(path)
        if source.annotation is not None:
            source.close()
            raise InputError(f"{path} is a computed image itself: take the raw data it was made from")
    if source.layout.dtype not in dtypes:
        dtype = source.layout.dtype
        source.close()
        raise InputError(f"{path} is {dtype}, not {' or '.join(dtypes)}: convert it without rescaling")
    return source


def first_of_folder(path: Path) -> Path | None:
    """The first file of a folder of OME-TIFF, which pymmcore-plus writes for several positions.

    It names the others. None where there is no such file.
    """
    return min(path.glob(FIRST_POSITION), default=None)


class ZarrSource:
    """An OME-Zarr 0.5 volume; its frames that are not on disk read as None."""

    def __init__(self, path: Path) -> None:
        self._reader = VolumeReader(path)
        self.layout = self._reader.layout
        self.mixed = self._reader.mixed

    def indices(self) -> Iterator[dict[str, int]]:
        """Position by position."""
        return self._reader.indices()

    @property
    def cuts(self) -> bool:
        """Whether a frame is stored in several chunks."""
        return self._reader.cuts()

    def present(self, index: Mapping[str, int]) -> bool:
        """See :meth:`live_sr.client.volume.VolumeReader.present`."""
        return self._reader.present(index)

    def read(self, index: Mapping[str, int], window: Window | None = None) -> NDArray[Any] | None:
        """See :meth:`live_sr.client.volume.VolumeReader.read`."""
        return self._reader.read(index, window=window) if self.present(index) else None

    def close(self) -> None:
        """Let go of the arrays."""
        self._reader.close()


class PngSource:
    """A PNG file: one plane, without a pixel size, which PNG keeps too coarsely for microscopy."""

    mixed = False

    def __init__(self, path: Path) -> None:
        image = _pillow()
        try:
            self._image = image.open(path)
        except Exception as e:  # wrong bytes fail in a dozen ways
            raise InputError(f"{path} is not a PNG file that can be read: {e}") from e
        mode = self._image.mode
        if mode not in PNG_MODES:
            self._image.close()
            raise InputError(
                f"{path} is a PNG of mode {mode!r}, not 8 or 16 bit grey: save one channel as grey levels"
            )
        x, y = self._image.size
        axes = (Axis("y", y, "space"), Axis("x", x, "space"))
        self.layout = VolumeLayout(axes, PNG_MODES[mode])
        self._path = path

    def indices(self) -> Iterator[dict[str, int]]:
        """The one plane."""
        yield {}

    @property
    def cuts(self) -> bool:
        """Never: a PNG is decoded from its beginning."""
        return False

    def present(self, index: Mapping[str, int]) -> bool:
        """Always: a PNG without its plane is no PNG."""
        self.layout.locate(index)
        return True

    def read(self, index: Mapping[str, int], window: Window | None = None) -> NDArray[Any]:
        """(Y, X)."""
        self.layout.locate(index)
        try:
            pixels = np.asarray(self._image).astype(self.layout.dtype)
        except Exception as e:
            raise StoreError(f"{self._path} cannot be decoded: {e}") from e
        return pixels if window is None else pixels[window]

    def close(self) -> None:
        """Close the file."""
        self._image.close()


class TiffSource:
    """A TIFF, OME-TIFF or ImageJ file; several images of the same kind are positions.

    Attributes
    ----------
    annotation : dict or None
        What live-sr noted in an OME-TIFF that it computed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mapped: NDArray[np.uint8] | None = None
        try:
            self._file = tifffile.TiffFile(path)
        except Exception as e:
            raise InputError(_damaged(path, e)) from e
        try:
            self._series = list(self._file.series)
            self.layout = self._read_layout()
            self.mixed = _written_mixed(self._file.ome_metadata, self.layout)
            self.annotation = _annotation(self._file.ome_metadata)
        except BaseException as e:
            self._file.close()
            if isinstance(e, LiveSRError) or not isinstance(e, Exception):
                raise
            raise InputError(_damaged(path, e)) from e

    def indices(self) -> Iterator[dict[str, int]]:
        """Image by image, planes in the order of the file."""
        sizes = [axis.size or 0 for axis in self.layout.index_axes]
        for p in range(len(self._series)):
            for where in itertools.product(*map(range, sizes)):
                yield self.layout.index_of(p, where)

    @property
    def cuts(self) -> bool:
        """Whether a page is uncompressed, or stored in several strips or tiles."""
        page = self._series[0].keyframe
        return page.is_memmappable or len(page.dataoffsets) > 1

    def present(self, index: Mapping[str, int]) -> bool:
        """Whether the file has a page for it; an OME-TIFF may not."""
        with self._decoding(index):
            p, n = self._number(index)
            return _single(self._series[p]) or self._series[p].pages[n] is not None

    def read(self, index: Mapping[str, int], window: Window | None = None) -> NDArray[Any] | None:
        """(Y, X) in this machine's byte order; None where an OME-TIFF has no data."""
        y, x = window or tuple(slice(0, edge) for edge in self.layout.frame_shape)
        with self._decoding(index):
            p, n = self._number(index)
            pixels = self._window(self._series[p], n, (y, x))
            return None if pixels is None else np.ascontiguousarray(pixels, dtype=self.layout.dtype)

    def close(self) -> None:
        """Close the file."""
        self._mapped = None
        self._file.close()

    @contextmanager
    def _decoding(self, index: Mapping[str, int]) -> Iterator[None]:
        try:
            yield
        except LiveSRError:
            raise
        except Exception as e:
            # Wrong bytes fail in a dozen ways; tifffile names the codec package when only that is missing.
            said = " ".join(str(e).split())
            raise StoreError(f"page {dict(index)} of {self._path} cannot be decoded: {said}") from e

    def _number(self, index: Mapping[str, int]) -> tuple[int, int]:
        """Of the series, and of the plane within it."""
        p, where = self.layout.locate(index)
        sizes = [axis.size or 0 for axis in self.layout.index_axes]
        return p, int(np.ravel_multi_index(where, sizes)) if where else 0

    def _window(self, series: tifffile.TiffPageSeries, n: int, window: Window) -> NDArray[Any] | None:
        """Of plane `n`, reading no more of the file than the pages, strips or tiles that hold it."""
        key = series.keyframe
        if key.parent is not self._file:  # of an OME-TIFF that consists of several files
            elsewhere = series.pages[n]
            return None if elsewhere is None else _of_other_file(elsewhere)[window]
        if _single(series):
            return self._map(key, cast("int", series.dataoffset) + n * key.nbytes)[window].copy()
        page = series.pages[n]
        if page is None:
            return None
        if key.is_memmappable:
            return self._map(key, page.dataoffsets[0])[window].copy()
        whole = tuple(slice(0, edge) for edge in key.shape)
        if window == whole or key.compression in JPEG or len(page.dataoffsets) == 1:
            return page.asarray()[window]
        return self._segments(key, page, window)

    def _map(self, key: tifffile.TiffPage, offset: int) -> NDArray[Any]:
        """(Y, X) of the file itself: what is not looked at is not read."""
        if self._mapped is None:
            self._mapped = np.memmap(self._path, np.uint8, "r")
        if offset + key.nbytes > self._mapped.size:
            raise ValueError(f"the file ends at byte {self._mapped.size}, the page at {offset + key.nbytes}")
        assert key.dtype is not None
        return np.ndarray(key.shape, key.dtype.newbyteorder(self._file.byteorder), self._mapped, offset)

    def _segments(
        self, key: tifffile.TiffPage, page: tifffile.TiffPage | tifffile.TiffFrame, window: Window
    ) -> NDArray[Any]:
        """Decode the strips or tiles that touch a window."""
        y, x = window
        high, wide = key.chunks
        across = -(-key.shape[1] // wide)
        rows, columns = range(y.start // high, -(-y.stop // high)), range(x.start // wide, -(-x.stop // wide))
        wanted = [row * across + column for row in rows for column in columns]
        block = np.full((len(rows) * high, len(columns) * wide), key.nodata, key.dtype)
        parts = self._file.filehandle.read_segments(
            [page.dataoffsets[i] for i in wanted], [page.databytecounts[i] for i in wanted], wanted
        )
        for data, i in cast("Iterator[tuple[bytes | None, int]]", parts):
            segment, (_, _, top, left, _), _ = key.decode(data, i)
            if segment is not None:
                top, left = top - rows.start * high, left - columns.start * wide
                part = segment[0, :, :, 0]
                block[top : top + part.shape[0], left : left + part.shape[1]] = part
        top, left = rows.start * high, columns.start * wide
        return block[y.start - top : y.stop - top, x.start - left : x.stop - left]

    def _read_layout(self) -> VolumeLayout:
        if not self._series:
            raise InputError(f"{self._path} holds no image")
        kinds = {(s.axes, s.shape, s.dtype) for s in self._series}
        if len(kinds) > 1:
            found = ", ".join(f"{axes} {shape}" for axes, shape, _ in sorted(kinds, key=str))
            raise InputError(f"{self._path} holds images of different kinds ({found}): split it into files")
        for series in self._series:
            self._check(series)
        first = self._series[0]
        if self._file.is_ome:
            axes, channels = _ome_axes(self._file.ome_metadata or "", _axes(first))
        else:
            axes, channels = _tag_axes(self._file, _axes(first)), ()
        positions = _positions(self._series) if len(self._series) > 1 else ()
        assert first.dtype is not None
        return VolumeLayout(axes, first.dtype.name, positions, channels)

    def _check(self, series: tifffile.TiffPageSeries) -> None:
        page = series.keyframe
        grey = page.photometric == tifffile.PHOTOMETRIC.MINISBLACK
        if not grey or "S" in series.axes or page.samplesperpixel != 1:
            what = getattr(page.photometric, "name", page.photometric)
            raise InputError(
                f"{self._path} is not grey levels ({what}, {page.samplesperpixel} samples per pixel, axes "
                f"{series.axes}): save one channel as grey levels, black as 0"
            )
        planes = math.prod(series.shape[:-2])
        apart = _single(series) or len(series.pages) == planes
        if series.axes[-2:] != "YX" or not apart or page.shape != series.shape[-2:]:
            raise InputError(
                f"{self._path} (axes {series.axes}, shape {series.shape}) does not keep each plane as a page "
                "of its own: save it again as OME-TIFF"
            )


def _damaged(path: Path, error: Exception) -> str:
    """In one line, whichever of a dozen ways a parser of wrong bytes failed in."""
    return (
        f"{path} is not a TIFF file that can be read ({type(error).__name__}: {' '.join(str(error).split())})"
    )


def _of_other_file(page: tifffile.TiffPage | tifffile.TiffFrame) -> NDArray[Any]:
    """Tifffile closes all files of an OME-TIFF but the first; there may be hundreds."""
    file = page.parent.filehandle
    file.open()
    try:
        return page.asarray()
    finally:
        file.close()


def _single(series: tifffile.TiffPageSeries) -> bool:
    """Whether one page describes all planes, as ImageJ writes more than 4 GB."""
    return len(series.pages) == 1 and series.dataoffset is not None


def _axes(series: tifffile.TiffPageSeries) -> tuple[Axis, ...]:
    """Names and sizes. A letter that is none of ours stays a name; P, our stage position, does not."""
    names = ["phase" if letter == "P" else letter.lower() for letter in series.axes[:-2]]
    others = [
        Axis(name, size, AXIS_TYPES.get(name, "other")) for name, size in zip(names, series.shape, strict=False)
    ]
    y, x = series.shape[-2:]
    return (*others, Axis("y", y, "space"), Axis("x", x, "space"))


def _positions(series: Sequence[tifffile.TiffPageSeries]) -> tuple[Position, ...]:
    """Named as the images are, if those names can be told apart and are names of groups as well."""
    names = [s.name.replace("/", "_") for s in series]
    good = len(set(names)) == len(names) and all(GROUP_NAME.fullmatch(name) for name in names)
    return tuple(Position(n, n) for n in (names if good else (f"image{i}" for i in range(len(names)))))


def _annotation(xml: str | None) -> dict[str, str] | None:
    """Key and value pairs of ours in OME-XML."""
    if xml is None or NAMESPACE not in xml:
        return None
    for e in ET.fromstring(xml).iter():
        if e.tag.endswith("}MapAnnotation") and e.get("Namespace") == NAMESPACE:
            return {m.get("K", ""): m.text or "" for m in e.iter() if m.tag.endswith("}M")}
    return None


def _ome_axes(xml: str, axes: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """Scales, units and channel names from the first image of OME-XML."""
    pixels = next((e for e in ET.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return axes, ()
    said = {
        name: (pixels.get(f"PhysicalSize{name.upper()}"), pixels.get(f"PhysicalSize{name.upper()}Unit", "µm"))
        for name in "zyx"
    }
    said["t"] = pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s")
    scaled = tuple(_with_scale(axis, *said.get(axis.name, (None, ""))) for axis in axes)
    channels = tuple(e.get("Name", "") for e in pixels if e.tag.endswith("}Channel"))
    return scaled, channels if all(channels) and len(set(channels)) == len(channels) else ()


def _written_mixed(xml: str | None, layout: VolumeLayout) -> bool:
    """What pymmcore-plus noted in an OME-TIFF; each of its positions has a file of its own."""
    if xml is None:
        return False
    noted = [e.text for e in ET.fromstring(xml).iter() if e.get("K") == "summary_metadata_json"]
    try:
        return any(
            mixed_up(layout, {"summary_metadata": msgspec.json.decode(text or "")}, one_position=True)
            for text in noted
        )
    except msgspec.DecodeError:
        return False


def _tag_axes(file: tifffile.TiffFile, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Scales from ImageJ's metadata, or from a resolution in pixels per centimetre.

    One in pixels per inch is a printer's default far more often than a measurement: not taken.
    """
    page = file.pages.first
    if file.imagej_metadata:
        said = file.imagej_metadata
        unit = str(said.get("unit", ""))
        spacings = {"z": said.get("spacing"), "t": said.get("finterval")}
    elif page.resolutionunit == tifffile.RESUNIT.CENTIMETER:
        unit, spacings = "cm", {}
    else:
        return axes
    across, down = page.resolution
    spacings |= {"y": 1 / down if down > 0 else None, "x": 1 / across if across > 0 else None}
    return tuple(_with_scale(axis, spacings.get(axis.name), "s" if axis.name == "t" else unit) for axis in axes)


def _with_scale(axis: Axis, value: Any, unit: str) -> Axis:
    """With scale and unit if both can be used; centimetres become micrometres, as microscopists write them."""
    name = UNITS.get(unit)
    try:
        scale = float(value)
    except (TypeError, ValueError):
        return axis
    if name is None or not math.isfinite(scale) or scale <= 0:
        return axis
    if name == "centimeter":
        return replace(axis, scale=scale * 1e4, unit="micrometer")
    return replace(axis, scale=scale, unit=name)


# -------------------------------------------------------------------------------------------- writing


def check_target(path: Path, layout: VolumeLayout) -> None:
    """Say before any computing why `path` cannot take an image of this `layout`.

    Raises
    ------
    InputError
        When its format has no place for these axes.
    StoreError
        When something is there already.
    """
    if path.exists():
        raise StoreError(f"{path} exists and is not overwritten: choose another name, or move it away")
    if not path.parent.is_dir():
        raise StoreError(f"there is no folder {path.parent}: make it first")
    kind = format_of(path)
    if kind == "png" and (layout.n_frames or 0) != 1:
        raise InputError(f"{path}: a PNG file takes one plane, not {layout.n_frames}: choose .ome.tif")
    if kind == "ome-tiff":
        names = [_ome_axis(axis, layout) for axis in layout.index_axes]
        strange = [name for name in names if name not in AXIS_TYPES]
        if strange:
            raise InputError(f"{path}: OME-TIFF has no axis {strange[0]!r}: choose .ome.zarr or .tif")


def write_image(
    path: Path,
    layout: VolumeLayout,
    planes: Iterator[Pixels],
    *,
    statement: str,
    annotation: Mapping[str, str] | None = None,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write all planes of `layout`, position by position, and give the file its name when it is complete.

    Parameters
    ----------
    path : Path
        Checked with :func:`check_target`.
    planes : iterator of (Y, X)
        Consumed one at a time.
    statement : str
        Text kept in the file: that it is computed, and by what.
    annotation : mapping, optional
        Keys and values for programs to read, in OME-TIFF only.
    check : callable, optional
        Given the finished file before it gets its name, for example to read it back; it may raise.

    Raises
    ------
    StoreError
        When it cannot be written, or `path` has come into being meanwhile.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if format_of(path) == "png":
            _write_png(partial, next(planes), statement)
        else:
            ome = format_of(path) == "ome-tiff"
            _write_tiff(partial, layout, planes, statement, annotation if ome else None, ome=ome)
        check(partial)
        if path.exists():
            raise StoreError(f"{path} has come into being meanwhile and is not overwritten")
        partial.rename(path)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}; is there room on the disk?") from e
    finally:
        partial.unlink(missing_ok=True)


def _write_png(path: Path, pixels: Pixels, statement: str) -> None:
    image = _pillow()
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt("Description", statement)
    image.fromarray(pixels).save(path, format="PNG", pnginfo=text)


def _pillow() -> ModuleType:
    """Pillow, which only PNG needs: a PC that sends TIFF files to a server works without it."""
    try:
        from PIL import Image
    except ImportError as e:
        raise InputError("PNG files need Pillow: pip install 'live-sr[archive]', or use TIFF") from e
    return Image


def _write_tiff(
    path: Path,
    layout: VolumeLayout,
    planes: Iterator[Pixels],
    statement: str,
    annotation: Mapping[str, str] | None,
    *,
    ome: bool,
) -> None:
    shape = [axis.size or 0 for axis in layout.axes]
    images = max(len(layout.positions), 1)
    n_bytes = images * math.prod(shape) * np.dtype(layout.dtype).itemsize
    per_image = math.prod(shape[:-2])
    names = [_ome_axis(axis, layout) if ome else axis.name for axis in layout.axes]
    letters = "".join(name.upper() if len(name) == 1 else "Q" for name in names)  # Q: none of the others
    described: dict[str, Any] = _ome_description(layout, statement) if ome else {"live_sr": statement}
    if annotation is not None:
        described["MapAnnotation"] = {"Namespace": NAMESPACE, **annotation}
    with tifffile.TiffWriter(path, bigtiff=n_bytes > CLASSIC_TIFF_BYTES, ome=ome) as file:
        for i in range(images):
            name = {"Name": layout.positions[i].path} if ome and layout.positions else {}
            file.write(
                itertools.islice(planes, per_image),
                shape=shape,
                dtype=layout.dtype,
                photometric="minisblack",
                software="live-sr",
                metadata={"axes": letters, **described, **name},
                **_resolution(layout.frame_axes),
            )


def _ome_axis(axis: Axis, layout: VolumeLayout) -> str:
    """Name in OME-TIFF. A mere sequence of pages becomes time, as Bio-Formats reads it."""
    sequence = axis.name in PAGES and not any(other.name == "t" for other in layout.axes)
    return "t" if sequence else axis.name


def _resolution(frame_axes: tuple[Axis, Axis]) -> dict[str, Any]:
    """Pixels per centimetre, the finest unit that TIFF has."""
    y, x = frame_axes
    if (
        not (y.unit and y.scale and x.unit and x.scale)
        or y.unit not in MICROMETRES
        or x.unit not in MICROMETRES
    ):
        return {}
    per_cm = (1e4 / (x.scale * MICROMETRES[x.unit]), 1e4 / (y.scale * MICROMETRES[y.unit]))
    return {"resolution": per_cm, "resolutionunit": "CENTIMETER"}


def _ome_description(layout: VolumeLayout, statement: str) -> dict[str, Any]:
    described: dict[str, Any] = {"Description": statement}
    for axis in layout.axes:
        if axis.scale and axis.unit in SYMBOLS:
            key = "TimeIncrement" if axis.name == "t" else f"PhysicalSize{axis.name.upper()}"
            described |= {key: axis.scale, f"{key}Unit": SYMBOLS[axis.unit]}
    if layout.channel_names:
        described["Channel"] = {"Name": list(layout.channel_names)}
    return described
