"""Finds earlier frames of the run: in its volumes on disk, else among those that this process has seen.

The acquisition must not notice: files are only read, one frame at a time, and what is not asked for by somebody
waiting (thumbnails, movies) takes at most half of the time while a sequence runs. Knows no browser.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from live_sr.client.feed import MAX_SIDE_SHOWN, FeedFrame, FeedStatus, Plane, SequenceStatus, Shown
from live_sr.client.images import TiffSource
from live_sr.client.journal import Entry, Header, Lookup, journal_path
from live_sr.client.volume import VolumeLayout, VolumeReader
from live_sr.errors import LiveSRError, StoreError
from live_sr.frame import DTYPES, Pixels
from live_sr.view.contrast import grey_range, grey_window
from live_sr.view.watcher import OnShow, Picture, Watcher

log = logging.getLogger(__name__)

Side = Literal["raw", "sr"]
Index = Mapping[str, int]

MEMORY_BYTES = (
    256 * 2**20
)  # frames seen, where nothing is saved: a minute of 1024 x 1024 at two frames a second
RETRY_S = 1.0  # between two attempts to open a volume that is not there yet
LIVE_AXIS = "frame"  # of live mode and snaps, whose frames have no index: their running number
NOT_YET = "not on disk yet"
SIDES: dict[Side, str] = {"raw": "left", "sr": "right"}


class Extent(msgspec.Struct, frozen=True):
    """How far one can look back along an axis: from `first` to `last`; `size` is planned, if that is known."""

    first: int
    last: int
    size: int | None = None


class Run(msgspec.Struct, frozen=True):
    """What can be looked back at now.

    Attributes
    ----------
    key : str
        Another for every run.
    number : int
        Of the session's sequence; 0 in live mode.
    axes : dict
        Extent of each axis, slowest first.
    labels : dict
        Names along an axis, where it has any.
    notes : tuple of str
        What cannot be looked back at, and why.
    """

    key: str = ""
    number: int = 0
    axes: dict[str, Extent] = {}
    labels: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """One frame, as far as it can be had now.

    Attributes
    ----------
    run : str
        :attr:`Run.key`.
    frame : FeedFrame
        What is known of it; its planes describe `raw` and `sr` as they are here, every pixel.
    raw, sr : (Y, X) or None
    missing : dict
        By side why there are no pixels.
    model_sha256 : str
        Empty when unknown.
    stored_at : float or None
        ``time.time()`` when it was written, for frames from the disk.
    """

    run: str
    frame: FeedFrame
    raw: Pixels | None
    sr: Pixels | None
    missing: Mapping[Side, str] = field(default_factory=dict)
    model_sha256: str = ""
    stored_at: float | None = None

    @property
    def place(self) -> dict[str, int]:
        """Where it lies in the run."""
        return self.frame.place


class History:
    """Earlier frames of the run that a watcher watches. Thread-safe; reading blocks.

    Parameters
    ----------
    watcher : Watcher
        Its `on_frame` is taken.
    memory_bytes : int
        Most pixels of seen frames that are kept, where they are not saved.
    """

    def __init__(self, watcher: Watcher, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._watcher = watcher
        self._memory = Memory(memory_bytes)
        self._lock = threading.Lock()  # of the volumes, which one thread reads at a time
        self._volumes: Volumes | None = None
        self._ended = threading.Event()
        watcher.on_frame = self._see

    def close(self) -> None:
        """Let go of the files."""
        self._ended.set()
        with self._lock:
            if self._volumes is not None:
                self._volumes.close()
                self._volumes = None

    def run(self) -> Run:
        """What can be looked back at now."""
        status, newest = self._watcher.status, self._newest()
        if status is None or newest is None or newest.session != status.session:
            return Run()  # of a session that has just begun the status is still to come
        if newest.kind != "sequence":
            first, last = self._memory.live_range(status.session)
            return Run(
                key=f"{status.session}/live",
                axes={LIVE_AXIS: Extent(first, last)} if last >= 0 else {},
                notes=("live mode is not saved: only the latest frames that were seen can be looked at",),
            )
        sequence = status.sequence
        if sequence.number == 0:
            return Run()
        reach = self._memory.reach(status.session, sequence.number)
        labels = {"c": sequence.channels} if len(sequence.channels) > 1 else {}
        with self._at(status) as volumes:
            if volumes.positions:
                labels["p"] = volumes.positions
        return Run(_key(status), sequence.number, _extents(sequence, reach), labels, _notes(sequence))

    def strip(self, axis: str, index: Index, most: int) -> list[int]:
        """Positions along `axis`, at most about `most` and the newest among them, that show the run.

        Every second, fourth, eighth ... one is left out as it grows, so that those shown stay the same.
        """
        run = self.run()
        if axis not in run.axes:
            return []
        extent = run.axes[axis]
        status = self._watcher.status
        if axis == LIVE_AXIS or (status is not None and not _on_disk(status.sequence)):
            there = self._memory.along(status.session if status else "", run.number, axis, index)
        else:
            there = list(range(extent.first, extent.last + 1))
        step = 1
        while len(there) > most * step:
            step *= 2
        return sorted({*(i for n, i in enumerate(there) if n % step == 0), *there[-1:]})

    def show(self, index: Index) -> OnShow | None:
        """See :class:`~live_sr.view.watcher.Past`."""
        found = self.find(index)
        planes = [pixels for pixels in (found.raw, found.sr) if pixels is not None] if found is not None else []
        if found is None or not planes:
            return None
        window = grey_window(planes)
        left, right = (grey_window([p]) if p is not None else window for p in (found.raw, found.sr))
        shown = OnShow(
            number=-1,  # none that the feed's pictures have
            left=_picture(found, "raw"),
            right=_picture(found, "sr"),
            window=window,
            apart=(left, right),
            range=grey_range(planes),
            notes={SIDES[side]: why for side, why in found.missing.items()},
        )
        return replace(shown, channels={found.frame.channel: shown})

    def find(
        self, index: Index, *, sides: tuple[Side, ...] = ("raw", "sr"), gently: bool = False
    ) -> Found | None:
        """The frame at `index`; None when nobody has it and nothing is known of it.

        Parameters
        ----------
        index : mapping
            By the axes of :attr:`Run.axes`; those that are missing count as 0.
        gently : bool
            Nobody is waiting for it: leave the disk alone for as long as reading took, while a sequence runs.
        """
        status = self._watcher.status
        if status is None:
            return None
        if LIVE_AXIS in index:
            return self._memory.live(status.session, index[LIVE_AXIS])
        place = {axis: int(index.get(axis, 0)) for axis in status.sequence.axes} or dict(index)
        seen = self._memory.get(status.session, status.sequence.number, place)
        if not _on_disk(status.sequence):
            return seen
        began = time.monotonic()
        with self._at(status) as volumes:
            found = volumes.find(place, sides)
        if gently and status.sequence.state == "running":
            self._ended.wait(time.monotonic() - began)
        return found if seen is None else _completed(found, seen)

    # ---------------------------------------------------------------- ours

    @contextmanager
    def _at(self, status: FeedStatus) -> Iterator[Volumes]:
        """The volumes of the status' sequence, for this thread alone."""
        with self._lock:
            if self._volumes is None or self._volumes.key != _key(status):
                if self._volumes is not None:
                    self._volumes.close()
                self._volumes = Volumes(status)
            self._volumes.ended = status.sequence.state == "idle"
            self._volumes.settled = self._volumes.ended and status.state != "draining"
            yield self._volumes

    def _newest(self) -> FeedFrame | None:
        on_show = self._watcher.on_show
        picture = on_show.left or on_show.right
        return picture.frame if picture is not None else None

    def _see(self, shown: Shown) -> None:
        """On the watcher's thread."""
        status = self._watcher.status
        saved = status is not None and shown.frame.kind == "sequence" and _all_on_disk(status.sequence)
        self._memory.see(shown, keep=not saved)


def _key(status: FeedStatus) -> str:
    return f"{status.session}/{status.sequence.number}"


def _readable_while_written(path: str) -> bool:
    return path.lower().endswith(".zarr")


def _on_disk(sequence: SequenceStatus) -> bool:
    return bool(sequence.raw_path or sequence.sr_path)


def _all_on_disk(sequence: SequenceStatus) -> bool:
    return _readable_while_written(sequence.raw_path) and _readable_while_written(sequence.sr_path)


def _extents(sequence: SequenceStatus, reach: Mapping[str, int]) -> dict[str, Extent]:
    """Of each axis as far as frames have come: the slower ones grow, the faster ones are gone through again."""
    axes = sequence.axes or {axis: i + 1 for axis, i in reach.items()}
    extents: dict[str, Extent] = {}
    turned = not reach and sequence.state == "idle"  # nothing of it was seen: offer all, and let the disk say
    for axis, size in axes.items():
        end = max(size - 1, 0)
        last = end if turned else min(reach.get(axis, 0), end)
        extents[axis] = Extent(0, last, size)
        turned = turned or last > 0
    return extents


def _notes(sequence: SequenceStatus) -> tuple[str, ...]:
    if not _on_disk(sequence):
        return ("nothing is saved: only the latest frames that were seen can be looked at",)
    notes = []
    for path, what in ((sequence.raw_path, "raw"), (sequence.sr_path, "super-resolved")):
        if not path:
            notes.append(f"{what} frames are not saved: only the latest that were seen can be looked at")
        elif not _readable_while_written(path) and sequence.state != "idle":
            notes.append(f"{what} frames go to TIFF, which can be read when the sequence has ended")
    return tuple(notes)


def _completed(found: Found, seen: Found) -> Found:
    """With the sides that were seen and are not on disk."""
    raw = found.raw if found.raw is not None else seen.raw
    sr = found.sr if found.sr is not None else seen.sr
    missing = {s: why for s, why in found.missing.items() if (raw if s == "raw" else sr) is None}
    if found.raw is None and found.sr is None:
        return replace(seen, missing=missing)
    shape = (raw.shape[0], raw.shape[1]) if raw is not None else found.frame.shape
    frame = msgspec.structs.replace(
        found.frame, shape=shape, scale=seen.frame.scale, model=found.frame.model or seen.frame.model
    )
    return replace(found, frame=frame, raw=raw, sr=sr, missing=missing)


def _picture(found: Found, side: Side) -> Picture | None:
    """As the page draws it: every nth pixel where it is larger than a browser draws."""
    pixels = found.raw if side == "raw" else found.sr
    if pixels is None:
        return None
    step = -(-max(pixels.shape) // MAX_SIDE_SHOWN)
    thin = pixels[::step, ::step].copy() if step > 1 else pixels
    plane = Plane((thin.shape[0], thin.shape[1]), "uint8" if thin.dtype.itemsize == 1 else "uint16", step)
    key = (side, found.run, tuple(found.place.items()), found.model_sha256 if side == "sr" else "")
    return Picture(key, thin, plane, found.frame, time.monotonic())


# -------------------------------------------------------------------- what was seen


class Memory:
    """Frames that came through the feed: where the newest is, and the latest ones while they are not on disk.

    The oldest are forgotten first. Thread-safe.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._session = ""
        self._reach: dict[int, dict[str, int]] = {}  # by run
        self._kept: dict[int, tuple[Shown, float]] = {}  # by sequence number: in the order of coming
        self._bytes = 0

    def see(self, shown: Shown, *, keep: bool) -> None:
        """Take note of a frame, and its pixels if they are to be kept."""
        frame = shown.frame
        with self._lock:
            if frame.session != self._session:
                self._session, self._reach, self._kept, self._bytes = frame.session, {}, {}, 0
            if frame.kind == "sequence":
                reach = self._reach.setdefault(frame.run, {})
                for axis, i in (frame.place or frame.index).items():
                    reach[axis] = max(reach.get(axis, 0), i)
            before = self._kept.get(frame.seq)
            known = before is not None and (before[0].sr is not None or shown.sr is None)
            if not keep or known:
                return
            if before is not None:
                self._bytes -= _nbytes(before[0])
            self._kept[frame.seq] = shown, time.monotonic()
            self._bytes += _nbytes(shown)
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                self._bytes -= _nbytes(self._kept.pop(next(iter(self._kept)))[0])

    def reach(self, session: str, run: int) -> dict[str, int]:
        """Highest place along each axis."""
        with self._lock:
            return dict(self._reach.get(run, {})) if session == self._session else {}

    def get(self, session: str, run: int, place: Index) -> Found | None:
        """The frame at `place`, while it is kept."""
        with self._lock:
            for shown, at in reversed(self._of(session, run)):
                if (shown.frame.place or shown.frame.index) == place:
                    return _seen(f"{session}/{run}", shown, at, place)
        return None

    def along(self, session: str, run: int, axis: str, index: Index) -> list[int]:
        """Positions along `axis` of the frames kept that are like `index` along the others."""
        with self._lock:
            if axis == LIVE_AXIS:
                return sorted(s.frame.seq for s, _ in self._kept.values() if s.frame.kind != "sequence")
            places = [shown.frame.place or shown.frame.index for shown, _ in self._of(session, run)]
        others = {key: i for key, i in index.items() if key != axis}
        return sorted(
            {p[axis] for p in places if axis in p and all(p.get(k, 0) == i for k, i in others.items())}
        )

    def live_range(self, session: str) -> tuple[int, int]:
        """First and last running number kept of live mode; (0, -1) for none."""
        numbers = self.along(session, 0, LIVE_AXIS, {}) if session == self._session else []
        return (numbers[0], numbers[-1]) if numbers else (0, -1)

    def live(self, session: str, number: int) -> Found | None:
        """The frame of live mode with this running number, else the one kept before it, else the first."""
        numbers = self.along(session, 0, LIVE_AXIS, {}) if session == self._session else []
        if not numbers:
            return None
        nearest = max((n for n in numbers if n <= number), default=numbers[0])
        with self._lock:
            if nearest not in self._kept:
                return None
            shown, at = self._kept[nearest]
        return _seen(f"{session}/live", shown, at, {LIVE_AXIS: nearest})

    def _of(self, session: str, run: int) -> list[tuple[Shown, float]]:
        if session != self._session:
            return []
        return [k for k in self._kept.values() if k[0].frame.kind == "sequence" and k[0].frame.run == run]


def _nbytes(shown: Shown) -> int:
    return shown.raw.nbytes + (shown.sr.nbytes if shown.sr is not None else 0)


def _seen(run: str, shown: Shown, at: float, place: Index) -> Found:
    frame = msgspec.structs.replace(
        shown.frame, place=dict(place), age_ms=shown.frame.age_ms + (time.monotonic() - at) * 1000
    )
    missing: dict[Side, str] = {} if shown.sr is not None else {"sr": "not super-resolved when it was seen"}
    return Found(run, frame, shown.raw, shown.sr, missing)


# -------------------------------------------------------------------- what is on disk


class Volumes:
    """The raw and the super-resolved volume of one sequence. One thread at a time.

    Attributes
    ----------
    ended, settled : bool
        Its last frame was acquired; its last frame came back.
    """

    def __init__(self, status: FeedStatus) -> None:
        self.key = _key(status)
        self.ended = self.settled = False
        self._session = status.session
        self._sequence = status.sequence
        self._journal = Lookup(journal_path(status.sequence.sr_path)) if status.sequence.sr_path else None
        self._files: dict[Side, _File] = {
            "raw": _File(status.sequence.raw_path),
            "sr": _File(status.sequence.sr_path),
        }

    @property
    def positions(self) -> tuple[str, ...]:
        """Names of the stage positions."""
        for file in self._files.values():
            file.try_open(self.ended)
        layout = self._layout()
        return tuple(position.name for position in layout.positions) if layout is not None else ()

    def find(self, place: Index, sides: tuple[Side, ...]) -> Found:
        """Read one frame, or why it cannot be read."""
        entry = self._entry(place)
        self._agree_on_positions()
        missing: dict[Side, str] = {}
        planes: dict[Side, Pixels | None] = {"raw": None, "sr": None}
        for side in sides:
            pixels, why = self._read(side, place, entry)
            planes[side] = pixels
            if pixels is None:
                missing[side] = why
        raw, sr = planes["raw"], planes["sr"]
        header = self._journal.header if self._journal is not None else None
        sha256 = (entry.model_sha256 if entry else None) or (header.model_sha256 if header else "")
        stored_at = self._files["raw"].stored_at(place) or self._files["sr"].stored_at(place)
        frame = self._describe(place, entry, header, raw, sr)
        if stored_at is not None:
            frame = msgspec.structs.replace(frame, age_ms=max(0.0, time.time() - stored_at) * 1000)
        return Found(self.key, frame, raw, sr, missing, sha256, stored_at)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()

    def _agree_on_positions(self) -> None:
        """On a plate whose wells were visited again, only the super-resolved volume tells their order."""
        raw, sr = self._files["raw"], self._files["sr"]
        if sr.try_open(self.ended) and raw.try_open(self.ended):
            raw.put_in_order(sr.order)

    def _entry(self, place: Index) -> Entry | None:
        if self._journal is None:
            return None
        try:
            return self._journal.find(place)
        except StoreError:  # none yet, or not made by us
            return None

    def _read(self, side: Side, place: Index, entry: Entry | None) -> tuple[Pixels | None, str]:
        file = self._files[side]
        if not file.path:
            return None, "not saved"
        if side == "sr" and entry is not None and entry.status != "saved":
            return None, f"{entry.status}: {entry.reason}" if entry.reason else entry.status
        try:
            pixels = file.read(place, self.ended)
        except LiveSRError as error:
            return None, str(error)
        if side == "sr":
            return pixels, "" if pixels is not None else self._why_no_sr()
        # The raw writer is asynchronous: what it has not written yet may read as zeros, without an error.
        crc = entry.raw_crc32 if entry is not None else None
        if pixels is None or (not pixels.any() if crc is None else zlib.crc32(pixels.data) != crc):
            return None, "not on disk" if self.ended else NOT_YET
        return pixels, ""

    def _why_no_sr(self) -> str:
        if self.settled:
            return "never super-resolved: `live-sr enhance` finishes it"
        return "not super-resolved yet"

    def _describe(
        self, place: Index, entry: Entry | None, header: Header | None, raw: Pixels | None, sr: Pixels | None
    ) -> FeedFrame:
        scale = header.scale if header is not None else 1
        if raw is not None and sr is not None:
            scale = max(1, sr.shape[0] // raw.shape[0])
        model = header.model if header is not None else ""
        if entry is not None and header is not None and entry.model_sha256 not in (None, header.model_sha256):
            model = f"model {str(entry.model_sha256)[:12]}"  # swapped during the run: the journal has no name
        names = self._sequence.channels
        c = place.get("c", 0)
        shape = (
            raw.shape if raw is not None else tuple(n // scale for n in sr.shape) if sr is not None else (1, 1)
        )
        return FeedFrame(
            session=self._session,
            seq=entry.seq if entry is not None else self._ordinal(place),
            index=dict(entry.index if entry is not None else place),
            shape=(shape[0], shape[1]),
            raw=Plane((shape[0], shape[1]), _dtype(raw if raw is not None else sr)),
            sr=Plane((sr.shape[0], sr.shape[1]), _dtype(sr)) if sr is not None else None,
            scale=scale,
            pixel_size_um=self._pixel_size_um(scale),
            channel=names[c] if c < len(names) else "",
            model=model,
            deferred=entry.deferred if entry is not None else False,
            age_ms=0.0,
            latency_ms=entry.latency_ms if entry is not None else None,
            run=self._sequence.number,
            place=dict(place),
        )

    def _pixel_size_um(self, scale: int) -> float | None:
        raw, sr = self._files["raw"].layout, self._files["sr"].layout
        if raw is not None and raw.pixel_size_um:
            return raw.pixel_size_um
        return sr.pixel_size_um * scale if sr is not None and sr.pixel_size_um else None

    def _ordinal(self, place: Index) -> int:
        """Where a frame without a line in the journal comes in the sequence."""
        n = 0
        for axis, size in self._sequence.axes.items():
            n = n * size + place.get(axis, 0)
        return n

    def _layout(self) -> VolumeLayout | None:
        return self._files["sr"].layout or self._files["raw"].layout


def _dtype(pixels: Pixels | None) -> Literal["uint8", "uint16"]:
    return "uint8" if pixels is not None and pixels.dtype.itemsize == 1 else "uint16"


class _File:
    """A volume that may not be there yet: OME-Zarr, or TIFF once it is complete."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._zarr: VolumeReader | None = None
        self._tiff: TiffSource | None = None
        self._retry_at = 0.0
        self._why = NOT_YET

    @property
    def layout(self) -> VolumeLayout | None:
        """None while it cannot be read."""
        opened = self._zarr or self._tiff
        return opened.layout if opened is not None else None

    def read(self, place: Index, ended: bool) -> Pixels | None:
        """(Y, X), or None where nothing was written (yet).

        Raises
        ------
        LiveSRError
            When the file cannot be read, or has no such place.
        """
        if not self.try_open(ended):
            raise StoreError(self._why)
        pixels: Any = None
        if self._zarr is not None and self._zarr.present(place):
            pixels = self._zarr.read(place)
        elif self._tiff is not None:
            pixels = self._tiff.read(place)
        if pixels is not None and pixels.dtype.name not in DTYPES:
            raise StoreError(f"{self.path} is {pixels.dtype}, which is not shown")
        return None if pixels is None else np.ascontiguousarray(pixels)

    def stored_at(self, place: Index) -> float | None:
        """When the frame was written; None when unknown."""
        try:
            return self._zarr.stored_at(place) if self._zarr is not None else None
        except StoreError:
            return None

    def close(self) -> None:
        """Let go of the file."""
        for opened in (self._zarr, self._tiff):
            if opened is not None:
                opened.close()
        self._zarr = self._tiff = None

    @property
    def order(self) -> tuple[str, ...]:
        """Paths of the positions, as numbered."""
        return tuple(position.path for position in self.layout.positions) if self.layout is not None else ()

    def put_in_order(self, order: tuple[str, ...]) -> None:
        """Number the positions so, if they are the same ones."""
        if self._zarr is not None and order != self.order and sorted(order) == sorted(self.order):
            self._zarr = _in_order(self._zarr, order)

    def try_open(self, ended: bool) -> bool:
        """Open it if that is possible now; not more often than every RETRY_S."""
        if self._zarr is not None or self._tiff is not None:
            return True
        if not self.path or time.monotonic() < self._retry_at:
            return False
        self._retry_at = time.monotonic() + RETRY_S
        path = Path(self.path)
        try:
            if not path.exists():
                raise StoreError(NOT_YET)
            if _readable_while_written(self.path):
                reader = VolumeReader(path)
                self._zarr = _in_order(reader, _order_made(path))
            elif path.is_dir():
                raise StoreError("one TIFF file a position: only a single file is read")
            elif not ended:
                raise StoreError("TIFF can be read when the sequence has ended")
            else:
                self._tiff = TiffSource(path)
        except LiveSRError as error:
            self._why = str(error)
            return False
        return True


def _in_order(reader: VolumeReader, order: tuple[str, ...]) -> VolumeReader:
    """The same volume, its positions numbered in another order."""
    by_path = {position.path: position for position in reader.layout.positions}
    if not order or sorted(order) != sorted(by_path) or order == tuple(by_path):
        return reader
    reader.close()
    return VolumeReader(reader.path, replace(reader.layout, positions=tuple(by_path[path] for path in order)))


class _Made(msgspec.Struct):
    positions: tuple[str, ...] = ()


class _Attributes(msgspec.Struct):
    live_sr: _Made = msgspec.field(default_factory=_Made)


class _Root(msgspec.Struct):
    attributes: _Attributes


def _order_made(path: Path) -> tuple[str, ...]:
    """In which order the positions of a super-resolved volume are numbered; empty for a raw one."""
    try:
        return msgspec.json.decode((path / "zarr.json").read_bytes(), type=_Root).attributes.live_sr.positions
    except (OSError, msgspec.DecodeError):
        return ()
