"""Reads and writes TIFF, OME-TIFF and PNG one plane at a time, described by the same layout as a volume.

Knows neither model nor network. What is not a stack of grey-level planes is refused, never converted.
"""

from __future__ import annotations

import itertools
import math
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import tifffile

from live_sr.client.journal import journal_path
from live_sr.client.volume import Axis, AxisType, Position, VolumeLayout, VolumeReader, mixed_up
from live_sr.errors import InputError, StoreError
from live_sr.frame import DTYPES, Pixels

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
CM = {"angstrom": 1e-8, "nanometer": 1e-7, "micrometer": 1e-4, "millimeter": 0.1, "centimeter": 1, "meter": 100}
PAGES = ("i", "q")  # tifffile's names for pages of which the file does not say what they are
AXIS_TYPES: dict[str, AxisType] = {"t": "time", "c": "channel", "z": "space"}


class Source(Protocol):
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

    def read(self, index: Mapping[str, int]) -> Pixels | None:
        """The plane at `index`; None when it was never written."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


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


def open_source(path: Path) -> Source:
    """Open an image file or OME-Zarr volume for reading.

    Raises
    ------
    InputError
        When there is nothing, or its planes are not grey levels of 8 or 16 bit.
    StoreError
        When it is a folder without an OME-Zarr 0.5 volume.
    """
    if not path.exists():
        raise InputError(f"there is no {path}: check the name")
    if path.is_dir():
        if journal_path(path).exists():
            raise InputError(f"{path} is a computed volume itself: restore the raw volume it was made from")
        source: Source = ZarrSource(path)
    elif format_of(path) == "png":
        source = PngSource(path)
    else:
        source = TiffSource(path)
    if source.layout.dtype not in DTYPES:
        dtype = source.layout.dtype
        source.close()
        raise InputError(f"{path} is {dtype}, a frame must be uint8 or uint16: convert it without rescaling")
    return source


class ZarrSource:
    """An OME-Zarr 0.5 volume; its frames that are not on disk read as None."""

    def __init__(self, path: Path) -> None:
        self._reader = VolumeReader(path)
        self.layout = self._reader.layout
        self.mixed = self._reader.mixed

    def indices(self) -> Iterator[dict[str, int]]:
        """Position by position."""
        return self._reader.indices()

    def read(self, index: Mapping[str, int]) -> Pixels | None:
        """See :meth:`live_sr.client.volume.VolumeReader.read`."""
        return self._reader.read(index) if self._reader.present(index) else None

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
        except (OSError, SyntaxError, image.DecompressionBombError) as e:
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

    def read(self, index: Mapping[str, int]) -> Pixels:
        """(Y, X)."""
        self.layout.locate(index)
        try:
            return np.asarray(self._image).astype(self.layout.dtype)
        except (OSError, SyntaxError) as e:
            raise StoreError(f"{self._path} cannot be decoded: {e}") from e

    def close(self) -> None:
        """Close the file."""
        self._image.close()


class TiffSource:
    """A TIFF, OME-TIFF or ImageJ file; several images of the same kind are positions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = tifffile.TiffFile(path)
        except (tifffile.TiffFileError, OSError) as e:
            raise InputError(f"{path} is not a TIFF file that can be read: {e}") from e
        try:
            self._series = list(self._file.series)
            self.layout = self._read_layout()
            self.mixed = _written_mixed(self._file.ome_metadata, self.layout)
        except BaseException:
            self._file.close()
            raise

    def indices(self) -> Iterator[dict[str, int]]:
        """Image by image, planes in the order of the file."""
        sizes = [axis.size or 0 for axis in self.layout.index_axes]
        for p in range(len(self._series)):
            for where in itertools.product(*map(range, sizes)):
                yield self.layout.index_of(p, where)

    def read(self, index: Mapping[str, int]) -> Pixels | None:
        """(Y, X) in this machine's byte order; None where an OME-TIFF has no data."""
        p, where = self.layout.locate(index)
        sizes = [axis.size or 0 for axis in self.layout.index_axes]
        page = self._series[p].pages[int(np.ravel_multi_index(where, sizes)) if where else 0]
        if page is None:
            return None
        try:
            pixels = page.asarray()
        except (ValueError, OSError, tifffile.TiffFileError, RuntimeError) as e:
            # tifffile names the codec package when it is only that which is missing
            raise StoreError(f"page {dict(index)} of {self._path} cannot be decoded: {e}") from e
        return np.ascontiguousarray(pixels, dtype=self.layout.dtype).reshape(self.layout.frame_shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

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
        names = [f"image{i}" for i in range(len(self._series))] if len(self._series) > 1 else []
        positions = tuple(Position(name, name) for name in names)
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
        if series.axes[-2:] != "YX" or len(series.pages) != planes or page.shape != series.shape[-2:]:
            raise InputError(
                f"{self._path} (axes {series.axes}, shape {series.shape}) does not keep each plane as a page "
                "of its own: save it again as OME-TIFF"
            )


def _axes(series: tifffile.TiffPageSeries) -> tuple[Axis, ...]:
    """Names and sizes. A letter that is none of ours stays a name; P, our stage position, does not."""
    names = ["phase" if letter == "P" else letter.lower() for letter in series.axes[:-2]]
    others = [
        Axis(name, size, AXIS_TYPES.get(name, "other")) for name, size in zip(names, series.shape, strict=False)
    ]
    y, x = series.shape[-2:]
    return (*others, Axis("y", y, "space"), Axis("x", x, "space"))


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


def write_image(path: Path, layout: VolumeLayout, planes: Iterator[Pixels], *, statement: str) -> None:
    """Write all planes of `layout`, position by position, and give the file its name when it is complete.

    Parameters
    ----------
    path : Path
        Checked with :func:`check_target`.
    planes : iterator of (Y, X)
        Consumed one at a time.
    statement : str
        Text kept in the file: that it is computed, and by what.

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
            _write_tiff(partial, layout, planes, statement, ome=format_of(path) == "ome-tiff")
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
    path: Path, layout: VolumeLayout, planes: Iterator[Pixels], statement: str, *, ome: bool
) -> None:
    shape = [axis.size or 0 for axis in layout.axes]
    images = max(len(layout.positions), 1)
    n_bytes = images * math.prod(shape) * np.dtype(layout.dtype).itemsize
    per_image = math.prod(shape[:-2])
    names = [_ome_axis(axis, layout) if ome else axis.name for axis in layout.axes]
    letters = "".join(name.upper() if len(name) == 1 else "Q" for name in names)  # Q: none of the others
    described = _ome_description(layout, statement) if ome else {"live_sr": statement}
    with tifffile.TiffWriter(path, bigtiff=n_bytes > CLASSIC_TIFF_BYTES, ome=ome) as file:
        for i in range(images):
            name = {"Name": layout.positions[i].name} if ome and layout.positions else {}
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
    if not (y.unit and y.scale and x.unit and x.scale) or y.unit not in CM or x.unit not in CM:
        return {}
    per_cm = (1 / (x.scale * CM[x.unit]), 1 / (y.scale * CM[y.unit]))
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
