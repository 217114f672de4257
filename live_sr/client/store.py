"""Writes the super-resolved volume: each frame at its index, in any order, then its line in the journal.

ome-writers lays the volume out; its stream can only append and skip, which fits neither newest-first nor late
results, so frames are written with tensorstore. Knows no microscope, no socket and no model beyond its name.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray
from ome_writers import AcquisitionSettings, Channel, Dimension, Plate, create_stream
from ome_writers import Position as OMEPosition

from live_sr import __version__
from live_sr.client import journal as journals
from live_sr.client.journal import Entry, Journal, JournalContents, journal_path
from live_sr.client.volume import POSITION, VolumeLayout, open_array, read_frame, read_layout, shown
from live_sr.errors import InputError, StoreError
from live_sr.frame import DTYPES

ATTRIBUTES = "live_sr"  # our key among the attributes of the volume's root group
FORMAT = 1
STATEMENT = (
    "Computed image: a neural network estimated the pixels of this volume from low-dose raw images. "
    "Detail that is not in the raw data may have been invented; check findings against raw."
)
# Measured with 1024 x 1024 uint16 frames: 0.6 of the size, as fast as no compression, 4 times as fast as zstd.
COMPRESSION: Literal["blosc-lz4"] = "blosc-lz4"
GROW_BY = 32  # frames; each change of size rewrites zarr.json, about 1 ms, which this makes rare
MAX_FRAME_ATTRIBUTES = 10_000  # frames, about 60 bytes each; every viewer parses zarr.json on opening
# Nothing is synced per frame. A power cut costs what the system had not written, about 30 s: at 100 frames/s
# these many of the latest frames have to be looked at when a volume is resumed that was not closed.
RECHECK = 3000
_Place = tuple[int, tuple[int, ...]]  # number of the position, index within its array
_By = tuple[str, str]  # id and sha256 of the model that computed a frame
VERSIONS = ("numpy", "tensorstore", "ome-writers")


class SRStore:
    """A super-resolved volume that is being written; made by :meth:`create` or :meth:`resume`.

    Every frame is one chunk, and is on disk (handed to the operating system) when :meth:`write` returns: a
    process that is killed loses nothing that was written. Thread-safe.

    Attributes
    ----------
    path : Path
    layout : VolumeLayout
        Of this volume; axes without a known end stay None while it is written.
    provenance : dict
        What stands under "live_sr" in the attributes of the root group.
    journal : JournalContents
        As found when the volume was resumed; empty for a new volume.
    """

    def __init__(
        self,
        path: Path,
        layout: VolumeLayout,
        provenance: dict[str, Any],
        journal: Journal,
        found: JournalContents,
    ) -> None:
        self.path = path
        self.layout = layout
        self.provenance = provenance
        self.journal = found
        self._journal = journal
        self._lock = threading.Lock()
        self._closed = False
        self._arrays: dict[int, Any] = {}
        # Model of each frame, None where it is not in the volume. By place, because a session that finishes
        # the work of another may number the frames differently.
        self._frames: dict[_Place, _By | None] = {}
        self._written = 0
        self._extent: dict[int, list[int]] = {}  # by position: size that holds every frame we know of
        for entry in found.frames.values():
            self._remember(layout.locate(entry.place), entry)

    @classmethod
    def create(cls, path: Path | str, layout: VolumeLayout, *, provenance: Mapping[str, Any]) -> SRStore:
        """Make a new volume and its journal.

        Parameters
        ----------
        path : Path
            Ends with ".ome.zarr" (or ".zarr").
        layout : VolumeLayout
            Of the volume to make, that is ``raw_layout.scaled(scale)``.
        provenance : mapping
            Plain JSON values (paths become text), stored as they are. Needs ``model``: ``{"id", "sha256",
            "scale"}``; ``session``, ``raw``, ``started`` (ISO 8601) and ``regular`` (False when frames lie in
            order of arrival) also go into the journal. Versions, the source pixel size and the statement that
            this is a computed image are added; a `statement` of the caller's own takes the place of that one.

        Raises
        ------
        InputError
            When `path`, `layout` or `provenance` cannot be used.
        StoreError
            When something lies at `path` already, or it cannot be written.
        """
        path = Path(path).expanduser()
        layout = _storable(layout)
        stored = _provenance(provenance, layout)
        settings = _settings(path, layout)
        if path.exists():
            raise StoreError(f"{path} exists: choose another name")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path.parent} cannot be made: {error.strerror}") from error
        journal = Journal(journal_path(path), create=True)
        try:
            journal.append(_header(stored))
            with create_stream(settings) as stream:
                if layout.positions:  # a viewer may open one position alone
                    label = {key: stored[key] for key in ("computed", "statement", "model")}
                    groups = stream.get_metadata()
                    stream.update_metadata({g: {**a, ATTRIBUTES: label} for g, a in groups.items()})
                stream.set_global_metadata(ATTRIBUTES, stored)
        except BaseException as error:
            journal.discard()
            if isinstance(error, FileExistsError):
                raise StoreError(f"{path} exists: choose another name") from error
            if isinstance(error, OSError | ValueError | RuntimeError):
                raise StoreError(f"{path} cannot be made: {error}") from error
            raise
        return cls(path, layout, stored, journal, JournalContents())

    @classmethod
    def resume(
        cls,
        path: Path | str,
        *,
        layout: VolumeLayout | None = None,
        model_sha256: str | None = None,
        session: str | None = None,
        statement: str | None = None,
    ) -> SRStore:
        """Continue a volume that was made earlier; ``.journal`` says what is in it.

        When it was not closed in order, the latest frames are read back first; one that a power cut destroyed
        is entered as failed.

        Parameters
        ----------
        layout : VolumeLayout, optional
            What the volume is expected to be, ``raw_layout.scaled(scale)``.
        model_sha256 : str, optional
            The model that is going to be used.
        statement : str, optional
            Takes the place of the statement that stands in its attributes.

        Raises
        ------
        StoreError
            When it is no volume of live-sr, its journal is missing or damaged beyond use, another process is
            writing it, or it does not fit `layout` or `model_sha256`.
        """
        path = Path(path).expanduser()
        attributes, made = _read_attributes(path)
        found_layout = _as_made(read_layout(path), made)
        if model_sha256 not in (None, made.model.sha256):
            raise StoreError(
                f"{path} was made with model {made.model.id} ({made.model.sha256[:12]}), not with "
                f"{str(model_sha256)[:12]}: use that model or choose another name"
            )
        if layout is not None and (difference := found_layout.mismatch(_storable(layout))):
            raise StoreError(f"{path} does not fit the raw volume, it has {difference}: choose another name")
        journal = Journal(journal_path(path))
        try:
            found = journals.read(journal.path)
            misplaced = _misplaced(found, found_layout)
            if misplaced is not None:
                raise StoreError(f"journal {journal.path} is not of this volume: {misplaced}")
            provenance = {**attributes, "session": session or uuid.uuid4().hex, "status": "running"}
            provenance |= {"statement": statement} if statement is not None else {}
            store = cls(path, found_layout, provenance, journal, found)
            if found.end is None:
                store._recheck()
            journal.append(_header({**provenance, "started": _now()}))
            _write_attributes(path, provenance)
        except BaseException:
            journal.close()
            raise
        return store

    @property
    def written(self) -> int:
        """Number of different frames in the volume."""
        with self._lock:
            return self._written

    def has(self, index: Mapping[str, int]) -> bool:
        """Whether the frame at `index` is in the volume."""
        with self._lock:
            return self._frames.get(self.layout.locate(index)) is not None

    def write(
        self, seq: int, index: Mapping[str, int], pixels: NDArray[Any], entry: Mapping[str, Any] | None = None
    ) -> None:
        """Write one frame at its index, then its line in the journal.

        Parameters
        ----------
        seq : int
            The frame's running number; writing it again replaces it.
        index : mapping
            Where it lies in the volume; see :meth:`VolumeLayout.locate`.
        pixels : (Y, X), dtype of the layout
        entry : mapping, optional
            Further fields of its :class:`~live_sr.client.journal.Entry`: ``index`` (the event's own, where it
            differs), ``n``, ``deferred``, ``latency_ms``, ``raw_crc32``, ``used``, ``filled``; ``model`` and
            ``model_sha256`` where another model than the volume's own computed it.

        Raises
        ------
        StoreError
            When the frame does not fit the volume, or frame or line could not be stored, for example on a full
            disk; the frame does not count as written then. Others may be written afterwards.
        """
        fields = {**(entry or {})}
        if "model_sha256" not in fields:
            own = self.provenance["model"]
            fields |= {"model": own["id"], "model_sha256": own["sha256"]}
        line = _entry(seq, index, "saved", fields)
        place = p, where = self.layout.locate(index)
        if pixels.shape != self.layout.frame_shape or pixels.dtype.name != self.layout.dtype:
            raise StoreError(
                f"frame {seq} is {pixels.shape} {pixels.dtype}, {self.path} holds {self.layout.frame_shape} "
                f"{self.layout.dtype} frames: the camera's settings have changed, start a new sequence"
            )
        with self._lock:
            self._check_open()
            try:
                array = self._grown(p, where)
                array[where].write(pixels).result()
            except (ValueError, OSError, RuntimeError) as error:
                raise StoreError(f"frame {seq} cannot be written to {self.path}: {error}") from error
            self._journal.append(line)
            self._remember(place, line)

    def note_failure(
        self,
        seq: int,
        index: Mapping[str, int],
        reason: str,
        entry: Mapping[str, Any] | None = None,
        *,
        status: Literal["failed", "skipped", "superseded"] = "failed",
    ) -> None:
        """Enter a frame that is not in the volume into the journal; it reads as zeros.

        Raises
        ------
        StoreError
            When it lies outside the volume or the line cannot be stored.
        """
        line = _entry(seq, index, status, {**(entry or {}), "reason": reason})
        place = self.layout.locate(index)
        with self._lock:
            self._check_open()
            self._journal.append(line)
            self._remember(place, line)

    def read(self, index: Mapping[str, int]) -> NDArray[Any]:
        """Read one frame back from the disk, (Y, X).

        Raises
        ------
        StoreError
            When it has not been written or cannot be read.
        """
        p, where = self.layout.locate(index)
        try:
            with self._lock:
                array = self._array(p)
        except ValueError as error:
            raise StoreError(f"{self._group(p)} cannot be opened: {error}") from error
        what = f"frame {shown(index)} of {self.path}"
        if any(i >= n for i, n in zip(where, array.shape, strict=False)):
            raise StoreError(f"{what} has not been written")
        return read_frame(array, where, what)

    def close(self, counts: Mapping[str, int], status: str, **extra: Any) -> None:
        """Cut the volume to its true size and store counters and per-frame attributes; again does nothing.

        Parameters
        ----------
        counts : mapping
            The run's counters by name.
        status : str
            "complete", "incomplete", "cancelled".
        **extra
            Further JSON values for the "live_sr" attributes.

        Raises
        ------
        StoreError
            When any of it could not be stored; frames and journal lines already written are not affected.
        InputError
            When `extra` is not JSON; the volume stays open then.
        """
        more = _plain(extra)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            problems: list[StoreError] = []
            steps: list[Callable[[], None]] = [
                lambda: self._journal.append(journals.End(status, dict(counts))),
                self._shrink,
                lambda: self._store_attributes(counts, status, more),
                self._journal.close,
            ]
            for step in steps:
                try:
                    step()
                except StoreError as error:
                    problems.append(error)
            self._arrays.clear()
        if problems:
            raise problems[0]

    # ------------------------------------------------------------------------------------ under the lock

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} has been closed")

    def _remember(self, place: _Place, line: Entry) -> None:
        p, where = place
        model = self._model_of(line)
        self._written += (model is not None) - (self._frames.get(place) is not None)
        self._frames[place] = model
        extent = self._extent.setdefault(p, [1] * len(where))
        extent[:] = [max(n, i + 1) for n, i in zip(extent, where, strict=True)]

    def _model_of(self, line: Entry) -> _By | None:
        """Of a frame that is in the volume; older journals name the volume's own model by its hash alone."""
        if line.status != "saved":
            return None
        own, sha256 = self.provenance["model"], line.model_sha256 or "unknown"
        return line.model or (own["id"] if sha256 == own["sha256"] else "unknown"), sha256

    def _array(self, p: int) -> Any:
        if p not in self._arrays:
            # A frame of zeros is a frame: it gets its chunk. No sync per frame: see RECHECK.
            self._arrays[p] = open_array(
                self._group(p) / "0", write=True, sync=False, store_data_equal_to_fill_value=True
            )
        return self._arrays[p]

    def _group(self, p: int) -> Path:
        return self.path / self.layout.positions[p].path if self.layout.positions else self.path

    def _grown(self, p: int, where: tuple[int, ...]) -> Any:
        array = self._array(p)
        if all(i < n for i, n in zip(where, array.shape, strict=False)):
            return array
        # Sizes that are known were made at once, and `where` is checked against them.
        size = [max(n, i + GROW_BY) if i >= n else n for i, n in zip(where, array.shape, strict=False)]
        array = array.resize(exclusive_max=(*size, None, None), expand_only=True).result()
        self._arrays[p] = array
        return array

    def _shrink(self) -> None:
        open_ended = [axis.size is None for axis in self.layout.index_axes]
        if not any(open_ended):
            return
        for p in range(max(len(self.layout.positions), 1)):
            extent = self._extent.get(p, [1] * len(open_ended))
            size = [n if grows else None for n, grows in zip(extent, open_ended, strict=True)]
            try:
                self._array(p).resize(exclusive_max=(*size, None, None)).result()
            except (ValueError, OSError) as error:
                raise StoreError(f"{self._group(p)} cannot be cut to its size: {error}") from error

    def _store_attributes(self, counts: Mapping[str, int], status: str, more: dict[str, Any]) -> None:
        models = Counter(model for model in self._frames.values() if model is not None)
        few = len(self._frames) <= MAX_FRAME_ATTRIBUTES
        self.provenance = {
            **self.provenance,
            **more,
            "status": status,
            "counts": dict(counts),
            "finished": _now(),
            "written": self._written,
            "models": [{"id": m[0], "sha256": m[1], "frames": n} for m, n in models.items()],
            "journal": self._journal.path.name,
            "frames": self._frame_columns(list(models)) if few else None,
        }
        _write_attributes(self.path, self.provenance)

    def _frame_columns(self, models: list[_By]) -> dict[str, Any]:
        """Per-frame attributes as columns, in the order of storage; the journal has them in full.

        "model" counts in the list of `models`.
        """
        latest = {self.layout.locate(e.place): e for e in journals.read(self._journal.path).frames.values()}
        rows = sorted(latest.items(), key=lambda row: row[0])
        entries = [entry for _, entry in rows]
        prefix = [POSITION] if self.layout.positions else []
        return {
            "axes": prefix + [axis.name for axis in self.layout.index_axes],
            "where": [[*([p] if prefix else []), *where] for (p, where), _ in rows],
            "index": [e.index for e in entries] if any(e.where for e in entries) else None,
            "seq": [e.seq for e in entries],
            "status": [e.status for e in entries],
            "deferred": [e.deferred for e in entries],
            "latency_ms": [e.latency_ms for e in entries],
            "model": [models.index(m) if (m := self._model_of(e)) is not None else None for e in entries],
        }

    def _recheck(self) -> None:
        latest = [e for e in self.journal.frames.values() if e.status == "saved"][-RECHECK:]
        for entry in latest:
            try:
                self.read(entry.place)
            except StoreError as error:
                reason = f"lost before the volume was resumed: {error}"
                lost = msgspec.structs.replace(entry, status="failed", reason=reason)
                self._journal.append(lost)
                self._remember(self.layout.locate(entry.place), lost)
                self.journal.frames[entry.seq] = lost


def read_provenance(path: Path | str) -> dict[str, Any]:
    """What stands under "live_sr" in the attributes of a volume; also while it is being written.

    Raises
    ------
    StoreError
        When it is no volume of live-sr.
    """
    return _read_attributes(Path(path))[0]


# ------------------------------------------------------------------------------------------------- layout


def _storable(layout: VolumeLayout) -> VolumeLayout:
    """As ome-writers stores it: one position that is not on a plate lies in the root group."""
    return replace(layout, positions=()) if len(layout.positions) == 1 and layout.plate is None else layout


def _settings(path: Path, layout: VolumeLayout) -> AcquisitionSettings:
    if not path.name.endswith(".zarr"):
        raise InputError(f"{path}: the name of a volume must end with .ome.zarr")
    if layout.dtype not in DTYPES:
        raise InputError(f"a super-resolved volume is uint8 or uint16, not {layout.dtype}")
    # The order of acquisition, which says here only that the axis without an end comes first, as it must.
    index_axes = sorted(layout.index_axes, key=lambda axis: axis.size is not None)
    dims = [_dimension(layout, axis.name) for axis in index_axes]
    if layout.positions:
        dims.append(
            Dimension(
                name=POSITION,
                type="position",
                coords=[
                    OMEPosition(name=pos.path)
                    if layout.plate is None
                    else OMEPosition(name=pos.name, plate_row=pos.row, plate_column=pos.column)
                    for pos in layout.positions
                ],
            )
        )
    dims += [_dimension(layout, axis.name) for axis in layout.frame_axes]
    prefix = [POSITION] if layout.positions else []
    plate = None
    if layout.plate is not None:
        rows, columns = list(layout.plate.rows), list(layout.plate.columns)
        plate = Plate(row_names=rows, column_names=columns, name=layout.plate.name)
    try:
        settings = AcquisitionSettings.model_validate(
            {
                "root_path": str(path),
                "dimensions": tuple(dims),
                "dtype": layout.dtype,
                "format": "tensorstore",
                "compression": COMPRESSION,
                "storage_order": [*prefix, *(axis.name for axis in layout.axes)],
                "plate": plate,
            }
        )
    except ValueError as error:
        raise InputError(f"ome-writers cannot store this volume: {error}") from error
    assert settings.output_path == str(path)
    return settings


def _dimension(layout: VolumeLayout, name: str) -> Dimension:
    axis = next(axis for axis in layout.axes if axis.name == name)
    in_frame = axis in layout.frame_axes
    names = layout.channel_names
    named = axis.type == "channel" and len(names) == axis.size == len(set(names)) and all(names)
    return Dimension(
        name=axis.name,
        count=axis.size,
        type=axis.type,
        scale=axis.scale if axis.scale is not None else 1.0,
        unit=axis.unit,
        translation=axis.translation or None,
        chunk_size=axis.size if in_frame else 1,
        coords=[Channel(name=channel) for channel in names] if named else None,
    )


def _as_made(found: VolumeLayout, made: _Made) -> VolumeLayout:
    """The layout on disk with what it does not tell: axes without an end, and the order of positions."""
    axes = tuple(replace(a, size=None) if a.name in made.open_ended else a for a in found.axes)
    positions = {pos.path: pos for pos in found.positions}
    if sorted(positions) != sorted(made.positions):
        raise StoreError(f"the volume has positions {list(positions)}, but was made with {made.positions}")
    return replace(found, axes=axes, positions=tuple(positions[path] for path in made.positions))


# --------------------------------------------------------------------------------------------- provenance


class _Model(msgspec.Struct):
    id: str
    sha256: str
    scale: int


class _Made(msgspec.Struct):
    model: _Model
    open_ended: list[str] = []
    positions: list[str] = []


def _provenance(given: Mapping[str, Any], layout: VolumeLayout) -> dict[str, Any]:
    plain = _plain(given)
    try:
        model = msgspec.convert(plain.get("model"), _Model)
    except msgspec.ValidationError as error:
        raise InputError(f"provenance needs model = {{id, sha256, scale}}: {error}") from error
    y, x = layout.frame_axes
    known = y.scale is not None and x.scale is not None and y.unit is not None
    return {
        "session": uuid.uuid4().hex,
        "started": _now(),
        "raw": None,
        "statement": STATEMENT,
        **plain,
        "format": FORMAT,
        "computed": True,
        "status": "running",
        "source_pixel_size": [a.scale * model.scale for a in (y, x) if a.scale] if known else None,
        "source_pixel_unit": y.unit if known else None,
        "positions": [pos.path for pos in layout.positions],
        "open_ended": [axis.name for axis in layout.axes if axis.size is None],
        "versions": {
            "live-sr": __version__,
            **{name: importlib.metadata.version(name) for name in VERSIONS},
            **plain.get("versions", {}),
        },
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = msgspec.to_builtins(dict(values), enc_hook=os.fspath, str_keys=True)
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"attributes must be plain JSON values: {error}") from error
    return plain


def _header(provenance: Mapping[str, Any]) -> journals.Header:
    model = provenance["model"]
    return journals.Header(
        format=journals.FORMAT,
        session=str(provenance["session"]),
        model=str(model["id"]),
        model_sha256=str(model["sha256"]),
        scale=int(model["scale"]),
        started=str(provenance["started"]),
        raw=provenance.get("raw"),
        layout="regular" if provenance.get("regular", True) else "by_order",
    )


def _entry(
    seq: int, index: Mapping[str, int], status: journals.Status, extra: Mapping[str, Any] | None
) -> Entry:
    place = shown(index)
    fields: dict[str, Any] = {**(extra or {})}
    fields["index"] = shown(fields.get("index", place))
    if fields["index"] != place:
        fields["where"] = place
    try:
        return msgspec.convert({"type": "frame", "seq": seq, "status": status, **fields}, Entry)
    except msgspec.ValidationError as error:
        raise InputError(f"journal entry of frame {seq}: {error}") from error


def _misplaced(found: JournalContents, layout: VolumeLayout) -> StoreError | None:
    for entry in found.frames.values():
        try:
            layout.locate(entry.place)
        except StoreError as error:
            return error
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_document(root: Path) -> dict[str, Any]:
    try:
        document = json.loads((root / "zarr.json").read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"there is no volume at {root}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{root / 'zarr.json'} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise StoreError(f"{root / 'zarr.json'} is not the metadata of a volume")
    return document


def _read_attributes(root: Path) -> tuple[dict[str, Any], _Made]:
    try:
        ours = _read_document(root).get("attributes", {}).get(ATTRIBUTES)
        return ours, msgspec.convert(ours, _Made)
    except (AttributeError, msgspec.ValidationError) as error:
        raise StoreError(f"{root} was not made by live-sr, choose another name: {error}") from error


def _write_attributes(root: Path, ours: Mapping[str, Any]) -> None:
    """Replace our attributes in one step: a reader, or a full disk, never meets half a file."""
    document = _read_document(root)
    document.setdefault("attributes", {})[ATTRIBUTES] = dict(ours)
    temporary = root / f"zarr.json.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(document).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(root / "zarr.json")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"attributes of {root} cannot be written: {error.strerror}") from error
