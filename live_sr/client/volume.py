"""Reads OME-Zarr 0.5 volumes as they lie on the disk, and describes where each frame belongs. Writes nothing.

A volume is one image, or one image per position in groups of its own (bioformats2raw layout or plate), as
ome-writers and so pymmcore-plus lay them out. Knows no microscope, no sequence and no model. Reads trust no
cache: what is on the disk now counts, also while another process is still writing and the volume grows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import msgspec
import numpy as np
import tensorstore as ts
from numpy.typing import NDArray
from ome_writers import AcquisitionSettings

from live_sr.errors import InputError, StoreError

if TYPE_CHECKING:
    from ome_writers import Dimension, Plate

AxisType = Literal["time", "channel", "space", "other"]
Window = tuple[slice, slice]
"""Rows and columns of a plane, both with a start and a stop within it and without a step."""

MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
POSITION = "p"  # useq's and ome-writers' key for the stage position; never an axis of an array


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a volume.

    Attributes
    ----------
    name : str
        As in ``MDAEvent.index``: "t", "c", "z", "cam", "y", "x".
    size : int or None
        None: without a known end, grows with the acquisition.
    type : {"time", "channel", "space", "other"}
    scale : float or None
        Distance between neighbours in `unit`; None where it is unknown (Micro-Manager without a pixel-size
        configuration says 0, an interval of 0 as well).
    unit : str or None
        "micrometer", "second"; None for indices or pixels.
    translation : float
        Coordinate of the centre of element 0, in `unit`.
    """

    name: str
    size: int | None
    type: AxisType
    scale: float | None = None
    unit: str | None = None
    translation: float = 0.0


@dataclass(frozen=True, slots=True)
class Position:
    """One stage position: an image in a group of its own.

    Attributes
    ----------
    name : str
    path : str
        Group within the volume, for example "Pos0" or, on a plate, "A/1/fov0".
    row, column : str or None
        Well, on a plate.
    """

    name: str
    path: str
    row: str | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True)
class PlateGeometry:
    """Rows and columns of a well plate, including wells that were not imaged."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class VolumeLayout:
    """Axes and positions of a volume; all positions share the axes.

    Attributes
    ----------
    axes : tuple of Axis
        In the order of storage; the last two are the frame's, y and x. Positions are groups, not an axis.
    dtype : str
        numpy name, "uint16".
    positions : tuple of Position
        Empty for one image in the root group.
    channel_names : tuple of str
        One for each element of the channel axis, or empty.
    plate : PlateGeometry or None
        When the positions are fields of a plate.
    """

    axes: tuple[Axis, ...]
    dtype: str
    positions: tuple[Position, ...] = ()
    channel_names: tuple[str, ...] = ()
    plate: PlateGeometry | None = None

    @property
    def frame_axes(self) -> tuple[Axis, Axis]:
        """The axes within a frame: y, x."""
        return self.axes[-2], self.axes[-1]

    @property
    def index_axes(self) -> tuple[Axis, ...]:
        """The axes that number the frames of one position."""
        return self.axes[:-2]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Size of each axis of one position; None for an axis without a known end."""
        return tuple(axis.size for axis in self.axes)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(Y, X) of one frame."""
        y, x = self.frame_axes
        assert y.size is not None
        assert x.size is not None
        return y.size, x.size

    @property
    def n_frames(self) -> int | None:
        """Frames of all positions together; None when an axis has no known end."""
        sizes = [axis.size for axis in self.index_axes]
        if None in sizes:
            return None
        return math.prod(cast("list[int]", sizes)) * max(len(self.positions), 1)

    @property
    def pixel_size_um(self) -> float | None:
        """Of the frames, along x; None where it or its unit is unknown."""
        x = self.axes[-1]
        return x.scale * MICROMETRES[x.unit] if x.scale and x.unit in MICROMETRES else None

    def scaled(self, scale: int) -> VolumeLayout:
        """The layout of this volume's super-resolved counterpart, which overlays it in any viewer.

        y and x get `scale` times the pixels at 1/`scale` of the pixel size. The centre of the first small
        pixel lies (1 - 1/`scale`)/2 raw pixels before the centre of the first raw pixel, which contains it:
        that is added to the translation. Without a known pixel size both are in raw pixels, without a unit.
        """
        if scale < 1:
            raise InputError(f"scale must be at least 1, got {scale}")
        y, x = (_scaled_axis(axis, scale) for axis in self.frame_axes)
        known = (axis if axis.scale is not None else replace(axis, unit=None) for axis in self.index_axes)
        return replace(self, axes=(*known, y, x))

    def locate(self, index: Mapping[str, int]) -> tuple[int, tuple[int, ...]]:
        """Number of the position and index within its array, in the order of storage.

        Parameters
        ----------
        index : mapping
            As ``MDAEvent.index``, with "p" for the position. Keys that the volume does not have must be 0.

        Raises
        ------
        StoreError
            When a key is missing, names no axis of this volume, or lies outside a known size.
        """
        n_positions = max(len(self.positions), 1)
        names = {axis.name for axis in self.index_axes}
        for key, value in index.items():
            if key not in names and key != POSITION and value != 0:
                raise StoreError(f"{shown(index)}: this volume has no axis {key!r}, only {self._keys()}")
        p = index.get(POSITION, 0)
        if POSITION not in index and n_positions > 1:
            raise StoreError(f"{shown(index)} says no position: this volume has {n_positions}, add 'p'")
        if not 0 <= p < n_positions:
            raise StoreError(f"position {p} is not among the {n_positions} of this volume")
        where = []
        for axis in self.index_axes:
            if axis.name not in index:
                raise StoreError(f"{shown(index)} lacks {axis.name!r}: this volume needs {self._keys()}")
            value = index[axis.name]
            if value < 0 or (axis.size is not None and value >= axis.size):
                limit = "no end" if axis.size is None else axis.size
                raise StoreError(
                    f"{axis.name} = {value} is outside this volume: it begins at 0 and has {limit}"
                )
            where.append(value)
        return p, tuple(where)

    def index_of(self, p: int, where: Sequence[int]) -> dict[str, int]:
        """Inverse of :meth:`locate`; "p" comes first, and only where there are position groups."""
        index = {POSITION: p} if self.positions else {}
        return index | {axis.name: int(i) for axis, i in zip(self.index_axes, where, strict=True)}

    def mismatch(self, other: VolumeLayout) -> str | None:
        """First difference that keeps frames of `other` out of this volume; None when they fit.

        An axis without a known end fits any size.
        """
        if self.dtype != other.dtype:
            return f"dtype {self.dtype}, not {other.dtype}"
        mine, theirs = ([axis.name for axis in layout.axes] for layout in (self, other))
        if mine != theirs:
            return f"axes {mine}, not {theirs}"
        for a, b in zip(self.axes, other.axes, strict=True):
            if None not in (a.size, b.size) and a.size != b.size:
                return f"{a.size} along {a.name}, not {b.size}"
        if [p.path for p in self.positions] != [p.path for p in other.positions]:
            return f"positions {[p.path for p in self.positions]}, not {[p.path for p in other.positions]}"
        return None

    def _keys(self) -> list[str]:
        return ([POSITION] if self.positions else []) + [axis.name for axis in self.index_axes]


def from_dimensions(dims: Sequence[Dimension], dtype: str, *, plate: Plate | None = None) -> VolumeLayout:
    """The layout that ome-writers gives a volume of these dimensions on disk.

    Parameters
    ----------
    dims : sequence of ome_writers.Dimension
        In the order of acquisition, as ``useq_to_acquisition_settings`` returns them; at most one position
        dimension, whose elements become groups.
    plate : ome_writers.Plate, optional
        Rows and columns of the plate. Without it they are taken from the wells of the positions.

    Raises
    ------
    InputError
        When ome-writers does not accept the dimensions.
    """
    try:
        # The path only selects the format; nothing is made on disk.
        settings = AcquisitionSettings(
            root_path="layout.ome.zarr", dimensions=tuple(dims), dtype=dtype, plate=plate
        )
        stored = settings.array_storage_dimensions
    except ValueError as error:
        raise InputError(f"ome-writers cannot store these dimensions: {error}") from error
    axes = tuple(
        Axis(
            name=dim.name,
            size=dim.count,
            type=_axis_type(dim.type),
            scale=_known(dim.scale),
            unit=dim.unit,
            translation=dim.translation or 0.0,
        )
        for dim in stored
    )
    names: tuple[str, ...] = ()
    for dim in stored:
        if dim.type == "channel" and dim.coords:
            names = tuple(str(getattr(coord, "name", coord)) for coord in dim.coords)
    places = settings.positions
    geometry = None
    on_plate = all(pos.plate_row is not None for pos in places)
    if plate is not None:
        geometry = PlateGeometry(tuple(plate.row_names), tuple(plate.column_names), plate.name)
    elif on_plate:
        rows, columns = (
            tuple(dict.fromkeys(str(getattr(pos, key)) for pos in places))
            for key in ("plate_row", "plate_column")
        )
        geometry = PlateGeometry(rows, columns)
    positions: tuple[Position, ...] = ()
    if geometry is not None:
        positions = tuple(
            Position(
                pos.name, f"{pos.plate_row}/{pos.plate_column}/{pos.name}", pos.plate_row, pos.plate_column
            )
            for pos in places
        )
    elif len(places) > 1:  # ome-writers stores a single position in the root group, without its name
        positions = tuple(
            Position(name, name)
            for name in (
                pos.name if pos.grid_row is None else f"{pos.name}_{pos.grid_row}_{pos.grid_column}"
                for pos in places
            )
        )
    return VolumeLayout(axes, settings.dtype, positions, names, geometry)


def read_layout(path: Path | str) -> VolumeLayout:
    """Describe an OME-Zarr 0.5 volume on disk, as it is now.

    Of a pyramid the full resolution is taken. Positions of one volume may have grown to different lengths:
    each axis then has the largest size. The positions of a plate come well by well.

    Raises
    ------
    StoreError
        When there is no OME-Zarr 0.5 image, or its positions differ in axes, frame size or dtype.
    """
    root = Path(path)
    ome = _ome(root)
    geometry = None
    positions: tuple[Position, ...] = ()
    if ome.plate is not None:
        geometry = PlateGeometry(
            tuple(r.name for r in ome.plate.rows), tuple(c.name for c in ome.plate.columns), ome.plate.name
        )
        positions = tuple(_fields(root, ome.plate))
    elif ome.multiscales is None:
        series = _ome(root / "OME").series if (root / "OME" / "zarr.json").exists() else None
        if series is None:
            raise StoreError(f"{root} holds no OME-Zarr image: point to a group with 'multiscales'")
        positions = tuple(Position(name, _inside(root, name)) for name in series)
    if not positions and ome.multiscales is None:
        raise StoreError(f"{root} lists no positions")
    layouts = [_read_image(root / pos.path) for pos in positions] or [_read_image(root)]
    first = layouts[0]
    for pos, layout in zip(positions, layouts, strict=False):
        alike = replace(layout, axes=_with_sizes(layout.axes[:-2], None) + layout.axes[-2:])
        if difference := first.mismatch(alike):
            raise StoreError(f"position {pos.path} of {root} has {difference} as the first position has")
    sizes = [max(cast("int", layout.axes[i].size) for layout in layouts) for i in range(len(first.axes))]
    axes = tuple(replace(axis, size=size) for axis, size in zip(first.axes, sizes, strict=True))
    return replace(first, axes=axes, positions=positions, plate=geometry)


class VolumeReader:
    """Frames of a volume, as they are on disk now.

    Parameters
    ----------
    path : Path
        An OME-Zarr 0.5 volume; it may still be growing, in this process or another.
    layout : VolumeLayout, optional
        Its planned layout. Only the order of the positions is taken from it, which on a plate the disk does
        not tell when the stage came back to a well.

    Raises
    ------
    StoreError
        When there is no volume at `path`, or `layout` names other positions.
    """

    def __init__(self, path: Path | str, layout: VolumeLayout | None = None) -> None:
        self.path = Path(path)
        found = read_layout(self.path)
        if layout is not None:
            if {p.path for p in layout.positions} != {p.path for p in found.positions}:
                raise StoreError(f"{self.path} has other positions than planned")
            found = replace(found, positions=layout.positions)
        self._layout = found
        self._groups = [self.path / pos.path for pos in found.positions] or [self.path]
        # Sizes grow, so an index is checked against the array itself, not against what was read at opening.
        self._open_ended = replace(found, axes=_with_sizes(found.index_axes, None) + found.frame_axes)
        self._arrays: dict[int, Any] = {}

    @property
    def layout(self) -> VolumeLayout:
        """The volume as it was when the reader was made."""
        return self._layout

    def shape(self, p: int = 0) -> tuple[int, ...]:
        """Present shape of position `p`, axes as in :attr:`layout`."""
        return tuple(int(n) for n in self._fresh(p).shape)

    def present(self, index: Mapping[str, int]) -> bool:
        """Whether every chunk of the frame at `index` is on disk.

        Writers may leave out chunks that hold only the fill value, 0: tensorstore as ome-writers uses it does.
        There an all-black frame is not "present", and ``read(index, absent_ok=True)`` returns it.

        Raises
        ------
        StoreError
            When the index fits no frame of this volume, or the disk cannot be asked.
        """
        array, where = self._at(index)
        try:
            return array is not None and _stored(array[where])
        except (ValueError, OSError, RuntimeError) as error:
            raise StoreError(f"frame {shown(index)} of {self.path} cannot be found: {error}") from error

    def read(
        self, index: Mapping[str, int], *, window: Window | None = None, absent_ok: bool = False
    ) -> NDArray[Any]:
        """Read one frame, (Y, X), or a window of it.

        Parameters
        ----------
        index : mapping
            As ``MDAEvent.index``; see :meth:`VolumeLayout.locate`.
        window : (slice, slice), optional
            Only the chunks that hold it are read.
        absent_ok : bool
            Read chunks that are not on disk as the fill value instead of raising.

        Raises
        ------
        StoreError
            When the frame is not on disk (yet), lies outside the volume, or cannot be read or decoded.
        """
        array, where = self._at(index)
        if array is None:
            raise StoreError(f"frame {shown(index)} lies outside {self.path} as it is now")
        return read_frame(
            array, where + (window or ()), f"frame {shown(index)} of {self.path}", absent_ok=absent_ok
        )

    def chunk(self, index: Mapping[str, int]) -> tuple[object, int]:
        """Which chunk holds the frame at `index`, and how many frames of the volume as it is now lie in it.

        Raises
        ------
        StoreError
            When the index lies outside the volume as it is now.
        """
        array, where = self._at(index)
        if array is None:
            raise StoreError(f"frame {shown(index)} lies outside {self.path} as it is now")
        n = len(where)
        steps, sizes = array.chunk_layout.read_chunk.shape[:n], array.shape[:n]
        starts = tuple(i // step * step for i, step in zip(where, steps, strict=True))
        frames = math.prod(min(a, b - c) for a, b, c in zip(steps, sizes, starts, strict=True))
        return (index.get(POSITION, 0), starts), int(frames)

    def stored_at(self, index: Mapping[str, int]) -> float | None:
        """When the file of the frame's first chunk was last written, ``time.time()``; None where there is none.

        Raises
        ------
        StoreError
            When the index fits no frame of this volume.
        """
        array, where = self._at(index)
        if array is None:
            return None
        steps = array.chunk_layout.write_chunk.shape
        chunk = [i // step for i, step in zip((*where, 0, 0), steps, strict=True)]
        file = Path(array.kvstore.path, "c", *map(str, chunk))  # the default keys of zarr v3
        try:
            return file.stat().st_mtime
        except OSError:
            return None

    def cuts(self) -> bool:
        """Whether a frame of the first position is stored in several chunks along y or x."""
        array = self._fresh(0)
        chunk = array.chunk_layout.read_chunk.shape
        return any(a < b for a, b in zip(chunk[-2:], array.shape[-2:], strict=True))

    @property
    def mixed(self) -> bool:
        """Whether frames lie in the order of arrival: see :func:`mixed_up`."""
        written = _decode(self._groups[0] / "zarr.json", _Group).attributes.pymmcore_plus
        return written is not None and mixed_up(self._layout, written)

    def indices(self) -> Iterator[dict[str, int]]:
        """Index of every frame the volume has room for now, in the order of storage, position by position."""
        for p in range(len(self._groups)):
            for where in itertools.product(*(range(n) for n in self.shape(p)[:-2])):
                yield self._layout.index_of(p, where)

    def close(self) -> None:
        """Let go of the arrays."""
        self._arrays.clear()

    def __enter__(self) -> VolumeReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _at(self, index: Mapping[str, int]) -> tuple[Any, tuple[int, ...]]:
        """The array and the index within it; no array when the index lies beyond its present bounds."""
        p, where = self._open_ended.locate(index)
        array = self._arrays.get(p)
        if array is None or not _within(where, array):
            array = self._fresh(p)
        return (array if _within(where, array) else None), where

    def _fresh(self, p: int) -> Any:
        """The array of position `p` with its present bounds."""
        try:
            array = self._arrays.get(p)
            if array is None:
                group = self._groups[p]
                array = open_array(group / _image(group).datasets[0].path)
            else:
                array = array.resolve(fix_resizable_bounds=False).result()
        except (ValueError, OSError) as error:
            raise StoreError(f"{self._groups[p]} cannot be opened: {error}") from error
        self._arrays[p] = array
        return array


def mixed_up(layout: VolumeLayout, summary: Any, *, one_position: bool = False) -> bool:
    """Whether what lies beside a frame may be of another channel or position: nobody can tell afterwards.

    pymmcore-plus numbers the frames of generators and ragged sequences in the order of arrival, in a volume
    that has no other axis than t (and cam), and does not note what each of them was.

    Parameters
    ----------
    layout : VolumeLayout
        Of the raw volume; axes of length 1 may be missing.
    summary : Any
        What pymmcore-plus wrote into its metadata, plain JSON; the sequence is in
        ``{"summary_metadata": {"mda_sequence": ...}}``.
    one_position : bool
        The volume is one of several, each in a file of its own.
    """
    try:
        sequence = msgspec.convert(summary, _Written).summary_metadata.mda_sequence
    except msgspec.ValidationError:
        sequence = _Sequence()
    positions = sequence.stage_positions
    places = positions if isinstance(positions, list) else []
    if any(isinstance(place, dict) and place.get("sequence") for place in places):
        return True  # a grid of its own comes innermost, and the sink does not know
    if {axis.name for axis in layout.index_axes} - {"cam"} != {"t"} or layout.positions:
        return False
    several = not one_position and bool(isinstance(positions, dict) or len(places) > 1 or sequence.grid_plan)
    skipped = any(isinstance(c, dict) and c.get("acquire_every", 1) != 1 for c in sequence.channels)
    return not sequence.time_plan or bool(sequence.z_plan) or several or skipped or len(sequence.channels) > 1


def open_array(path: Path, *, write: bool = False, sync: bool = True, **options: Any) -> Any:
    """Open one zarr v3 array with tensorstore, without any cache; `sync` every chunk written to the disk.

    Raises
    ------
    ValueError
        When tensorstore cannot; the caller knows what the array is for.
    """
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path), "file_io_sync": sync},
        "recheck_cached_data": True,
        "recheck_cached_metadata": True,
        **options,
    }
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    return ts.open(spec, context=context, open=True, read=True, write=write).result()


def read_frame(
    array: Any, where: tuple[int | slice, ...], what: str, *, absent_ok: bool = False
) -> NDArray[Any]:
    """Read one (Y, X) frame of an open array, or a window of one; `what` names it in errors.

    Raises
    ------
    StoreError
        When it is not on disk, unless `absent_ok`, or cannot be read or decoded.
    """
    frame = array[where]
    try:
        if not absent_ok and not _stored(frame):
            raise StoreError(f"{what} is not on disk")
        return np.asarray(frame.read().result())
    except (ValueError, OSError, RuntimeError) as error:
        raise StoreError(f"{what} cannot be read: {error}") from error


def shown(index: Mapping[str, int]) -> dict[str, int]:
    """An index with plain text keys; useq's are of an enumeration."""
    return {str.__str__(key): int(value) for key, value in index.items()}


def _within(where: tuple[int, ...], array: Any) -> bool:
    return all(i < n for i, n in zip(where, array.shape, strict=False))


def _stored(frame: Any) -> bool:
    return bool(frame.storage_statistics(query_fully_stored=True).result().fully_stored)


def _known(scale: float | None) -> float | None:
    return float(scale) if scale and math.isfinite(scale) and scale > 0 else None


def _axis_type(name: str | None) -> AxisType:
    return cast("AxisType", name) if name in ("time", "channel", "space") else "other"


def _with_sizes(axes: tuple[Axis, ...], size: int | None) -> tuple[Axis, ...]:
    return tuple(replace(axis, size=size) for axis in axes)


def _scaled_axis(axis: Axis, scale: int) -> Axis:
    assert axis.size is not None
    pixel = axis.scale or 1.0
    return replace(
        axis,
        size=axis.size * scale,
        scale=pixel / scale,
        unit=axis.unit if axis.scale is not None else None,
        translation=axis.translation - (1 - 1 / scale) / 2 * pixel,
    )


# -------------------------------------------------------------------- zarr.json, as far as we read it


class _Named(msgspec.Struct):
    name: str


class _Path(msgspec.Struct):
    path: str


class _Plate(msgspec.Struct):
    rows: list[_Named]
    columns: list[_Named]
    wells: list[_Path]
    name: str | None = None


class _Well(msgspec.Struct):
    images: list[_Path]


class _Transform(msgspec.Struct):
    type: str
    scale: list[float] = []
    translation: list[float] = []


class _Dataset(msgspec.Struct):
    path: str
    coordinateTransformations: list[_Transform] = []


class _AxisMeta(msgspec.Struct):
    name: str
    type: str | None = None
    unit: str | None = None


class _Multiscale(msgspec.Struct):
    axes: list[_AxisMeta]
    datasets: list[_Dataset]
    coordinateTransformations: list[_Transform] = []


class _Channel(msgspec.Struct):
    label: str = ""


class _Omero(msgspec.Struct):
    channels: list[_Channel] = []


class _Ome(msgspec.Struct):
    version: str
    multiscales: list[_Multiscale] | None = None
    omero: _Omero | None = None
    plate: _Plate | None = None
    well: _Well | None = None
    series: list[str] | None = None


class _Attributes(msgspec.Struct):
    ome: _Ome
    pymmcore_plus: Any = None


class _Sequence(msgspec.Struct):
    """useq's ``MDASequence`` as JSON, as far as it tells in which order frames came."""

    time_plan: Any = None
    z_plan: Any = None
    grid_plan: Any = None
    stage_positions: Any = None
    channels: list[Any] = []


class _Summary(msgspec.Struct):
    mda_sequence: _Sequence = msgspec.field(default_factory=_Sequence)


class _Written(msgspec.Struct):
    summary_metadata: _Summary = msgspec.field(default_factory=_Summary)


class _Group(msgspec.Struct):
    attributes: _Attributes


class _Array(msgspec.Struct):
    shape: list[int]
    data_type: str


T = TypeVar("T")


def _decode(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{file} is not the metadata of an OME-Zarr 0.5 volume: {error}") from error
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from error


def _ome(group: Path) -> _Ome:
    if not (group / "zarr.json").exists():
        if (group / ".zattrs").exists() or (group / ".zgroup").exists():
            raise StoreError(f"{group} is OME-Zarr 0.4 (zarr v2): convert it to 0.5 first")
        raise StoreError(f"there is no OME-Zarr volume at {group}")
    return _decode(group / "zarr.json", _Group).attributes.ome


def _image(group: Path) -> _Multiscale:
    images = _ome(group).multiscales
    if not images or not images[0].datasets:
        raise StoreError(f"{group} holds no OME-Zarr image")
    _inside(group, images[0].datasets[0].path)
    return images[0]


def _fields(root: Path, plate: _Plate) -> Iterator[Position]:
    for well in plate.wells:
        row, _, column = _inside(root, well.path).partition("/")
        meta = _ome(root / well.path).well
        if meta is None:
            raise StoreError(f"well {well.path} of {root} lists no images")
        for image in meta.images:
            yield Position(image.path, _inside(root, f"{well.path}/{image.path}"), row, column)


def _inside(root: Path, path: str) -> str:
    """Refuse metadata that point out of the volume: a copy of it would be written there."""
    parts = PurePosixPath(path.replace("\\", "/"))
    if not path or parts.is_absolute() or ".." in parts.parts or ":" in path:
        raise StoreError(f"{root} names the group {path!r}, which is not inside the volume")
    return path


def _read_image(group: Path) -> VolumeLayout:
    image = _image(group)
    array = _decode(group / image.datasets[0].path / "zarr.json", _Array)
    n = len(image.axes)
    if n != len(array.shape) or n < 2:
        raise StoreError(f"{group} has {n} axes but an array of shape {array.shape}")
    scale, translation = [1.0] * n, [0.0] * n
    for transform in (*image.datasets[0].coordinateTransformations, *image.coordinateTransformations):
        factors = transform.scale or [1.0] * n
        shifts = transform.translation or [0.0] * n
        if len(factors) != n or len(shifts) != n:
            raise StoreError(f"{group} has a {transform.type} that does not fit its {n} axes")
        scale = [a * b for a, b in zip(scale, factors, strict=True)]
        translation = [a * b + c for a, b, c in zip(translation, factors, shifts, strict=True)]
    axes = tuple(
        Axis(meta.name, size, _axis_type(meta.type), _known(s), meta.unit, t)
        for meta, size, s, t in zip(image.axes, array.shape, scale, translation, strict=True)
    )
    omero = _ome(group).omero
    names = tuple(channel.label for channel in omero.channels) if omero else ()
    return VolumeLayout(axes, array.data_type, channel_names=names)
