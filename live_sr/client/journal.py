"""The journal beside a super-resolved volume: one JSON line per frame, with what became of it.

It is the durable record of a run. A line is handed to the operating system before the frame counts as saved,
so it survives the death of our process (a power cut may cost the last seconds; closing syncs the file).
Knows no pixels and no layout: where a frame lies is a mapping of names to numbers.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from live_sr.errors import StoreError

FORMAT = 1
MAX_LINE_BYTES = (
    1 << 20
)  # our lines have some hundred bytes; a longer one is damage, and is not read into memory

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]  # of a frame; anything else in a line is damage
Status = Literal["saved", "failed", "skipped", "superseded"]


class Header(msgspec.Struct, frozen=True, tag_field="type", tag="header", omit_defaults=True):
    """First line: what the volume is.

    Attributes
    ----------
    format : int
        Version of this file format.
    session : str
        Id of the session that made it; every resumed session adds a header of its own.
    model, model_sha256 : str
    scale : int
    raw : str or None
        Where the raw data are, if known.
    layout : {"regular", "by_order"}
        "by_order": generator and ragged sequences, stored as ``(t, y, x)`` in order of arrival; the true index
        is in each frame's line.
    started : str
        ISO 8601, UTC.
    """

    format: int
    session: str
    model: str
    model_sha256: str
    scale: int
    started: str
    raw: str | None = None
    layout: Literal["regular", "by_order"] = "regular"


class Entry(msgspec.Struct, frozen=True, tag_field="type", tag="frame", omit_defaults=True):
    """What became of one frame; a later line for the same `seq` replaces an earlier one.

    Attributes
    ----------
    seq : int
        Running number within the session.
    index : dict
        The event's own index.
    status : {"saved", "failed", "skipped", "superseded"}
    where : dict or None
        Index within the volume where it differs from `index`.
    n : int or None
        Running number within the run.
    deferred : bool
        Sent after the live moment had passed.
    model, model_sha256 : str or None
        Id and hash of the model that computed it: it may differ by channel, and change during the run.
    latency_ms : float or None
        From capture to return.
    raw_crc32 : int or None
        CRC-32 of the raw pixels in C order.
    used : dict or None
        Of a multi-frame model: positions along an axis of the frames that it was computed from, for example
        ``{"t": [3, 4, 5]}``; None when from itself alone.
    filled : int
        Raw pixels that were missing, and were filled from neighbours.
    reason : str or None
        Why it is not in the volume.
    """

    seq: Number
    index: dict[str, Number]
    status: Status
    where: dict[str, Number] | None = None
    n: Number | None = None
    deferred: bool = False
    model: str | None = None
    model_sha256: str | None = None
    latency_ms: float | None = None
    raw_crc32: int | None = None
    used: dict[str, tuple[Number, ...]] | None = None
    filled: Number = 0
    reason: str | None = None

    @property
    def place(self) -> dict[str, int]:
        """Index within the volume."""
        return self.index if self.where is None else self.where


class End(msgspec.Struct, frozen=True, tag_field="type", tag="end"):
    """Last line of a run that ended in order: its status and counters."""

    status: str
    counts: dict[str, int]


@dataclass
class JournalContents:
    """All that a journal says.

    Attributes
    ----------
    header : Header or None
        Of the session that made the volume; None when that line is damaged.
    frames : dict of int to Entry
        Latest line of each frame, by sequence number, in the order of these lines.
    end : End or None
        None when the last session did not end in order.
    damaged_lines : int
        Lines that could not be read, for example one torn by a full disk.
    """

    header: Header | None = None
    frames: dict[int, Entry] = field(default_factory=dict)
    end: End | None = None
    damaged_lines: int = 0


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Header | Entry | End] = msgspec.json.Decoder(Header | Entry | End)


def journal_path(volume: Path | str) -> Path:
    """Where the journal of `volume` lies: beside it, "run1.sr.ome.zarr" has "run1.sr.journal.jsonl"."""
    volume = Path(volume)
    name = volume.name.removesuffix(".zarr").removesuffix(".ome")
    return volume.with_name(f"{name}.journal.jsonl")


class Journal:
    """Appends lines to a journal. One thread at a time.

    Parameters
    ----------
    path : Path
    create : bool
        Make a new file, which must not exist yet; otherwise continue an existing one.

    Raises
    ------
    StoreError
        When the file exists (`create`), does not exist (otherwise) or cannot be opened.
    """

    def __init__(self, path: Path | str, *, create: bool = False) -> None:
        self.path = Path(path)
        flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._fd: int | None = os.open(self.path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)
        except FileExistsError as error:
            raise StoreError(f"{self.path} exists: choose another name") from error
        except OSError as error:
            raise StoreError(f"journal {self.path} cannot be opened: {error.strerror}") from error
        _lock(self._fd, self.path)
        # A process that was killed, or a full disk, may have left half a line.
        size = os.lseek(self._fd, 0, os.SEEK_END)
        self._torn = False
        if size:
            os.lseek(self._fd, size - 1, os.SEEK_SET)
            self._torn = os.read(self._fd, 1) != b"\n"

    def append(self, line: Header | Entry | End) -> None:
        """Add one line and hand it to the operating system.

        Raises
        ------
        StoreError
            When it could not be written in full, for example on a full disk; lines added later are not harmed.
        """
        if self._fd is None:
            raise StoreError(f"journal {self.path} is closed")
        # One write, so that a kill cannot come between a line and its end.
        data = (b"\n" if self._torn else b"") + _encoder.encode(line) + b"\n"
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                self._torn = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise StoreError(f"journal {self.path} cannot be written: {error.strerror}") from error
        self._torn = False

    def discard(self) -> None:
        """Close and remove the file: the volume it was made for could not be made."""
        assert self._fd is not None
        os.close(self._fd)
        self._fd = None
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Sync to the disk and close; again does nothing.

        Raises
        ------
        StoreError
            When the disk reports an error only now.
        """
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.fsync(fd)
        except OSError as error:
            raise StoreError(f"journal {self.path} cannot be synced: {error.strerror}") from error
        finally:
            os.close(fd)


def read(path: Path | str) -> JournalContents:
    """Read a journal, also a damaged one or one that is being written.

    Raises
    ------
    StoreError
        When there is no such file, no line of it can be read, or a newer live-sr wrote it.
    """
    path = Path(path)
    contents = JournalContents()
    good = 0
    try:
        with path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES):
                line = _parse(raw) if raw.strip() else None
                if line is not None:
                    _take(contents, line, path)
                    good += 1
                elif raw.strip():
                    contents.damaged_lines += 1
    except OSError as error:
        raise StoreError(f"journal {path} cannot be read: {error.strerror}") from error
    if not good and contents.damaged_lines:
        raise StoreError(f"{path} is not a journal of live-sr: none of its lines can be read")
    return contents


class Lookup:
    """Finds what a journal says of single frames, also while it is being written. One thread at a time.

    It remembers where lines begin, not the lines: about 200 bytes for each frame.

    Attributes
    ----------
    header : Header or None
        Of the session that made the volume; None until that line has been read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.header: Header | None = None
        self._begins: dict[tuple[tuple[str, int], ...], int] = {}
        self._read_to = 0

    def find(self, place: Mapping[str, int]) -> Entry | None:
        """Latest line of the frame that lies at `place` in the volume; None while there is none.

        Raises
        ------
        StoreError
            When the journal cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                while (raw := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                    self._note(_parse(raw))
                    self._read_to += len(raw)
                begin = self._begins.get(_key(place))
                if begin is None:
                    return None
                file.seek(begin)
                line = _parse(file.readline(MAX_LINE_BYTES))
        except OSError as error:
            raise StoreError(f"journal {self.path} cannot be read: {error.strerror}") from error
        return line if isinstance(line, Entry) else None

    def _note(self, line: Header | Entry | End | None) -> None:
        if isinstance(line, Entry):
            self._begins[_key(line.place)] = self._read_to
        elif isinstance(line, Header) and self.header is None:
            self.header = line


def _key(place: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(place.items()))


def _lock(fd: int, path: Path) -> None:
    """Keep a second writer out until `fd` is closed; also by a kill. Only where the system has such locks."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreError(f"{path} is being written already: wait until that ends") from error
    except OSError:
        return  # a network drive without locks


def _parse(raw: bytes) -> Header | Entry | End | None:
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _take(contents: JournalContents, line: Header | Entry | End, path: Path) -> None:
    if isinstance(line, Header):
        if line.format > FORMAT:
            raise StoreError(
                f"journal {path} has format {line.format}, this live-sr reads {FORMAT}: update live-sr"
            )
        contents.header = contents.header or line
    elif isinstance(line, Entry):
        contents.frames.pop(line.seq, None)  # so that they stay in the order of their latest lines
        contents.frames[line.seq] = line
    contents.end = line if isinstance(line, End) else None
