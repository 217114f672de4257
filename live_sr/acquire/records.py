"""What is remembered of every frame that has not come back yet. Knows no server and no lane.

A long run without a server defers every frame; so past a bound the records of deferred frames are shelved in a
scratch file, and memory does not grow with the length of the run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from pymmcore_plus.metadata.serialize import to_builtins
from useq import MDAEvent

from live_sr.acquire.plan import Place
from live_sr.acquire.spool import Slip, Spool
from live_sr.frame import FrameKind

if TYPE_CHECKING:
    from live_sr.acquire.run import Run

log = logging.getLogger("live_sr")
IN_MEMORY = 2000  # records of deferred frames, about 5 kB each: 10 MB


@dataclass(slots=True, eq=False)
class Record:
    """One frame on its way.

    Attributes
    ----------
    n : int
        Number within its run, from 0: its place in the order of arrival.
    place : dict
        Where it lies in the raw and super-resolved volumes.
    crc : int or None
        Checksum of the raw pixels; None when there was no memory to keep them.
    """

    run: Run
    n: int
    place: Place
    event: MDAEvent
    meta: Mapping[str, Any]
    crc: int | None
    captured_ns: int
    deferred: bool = False
    kind: ClassVar[FrameKind] = "sequence"


class _Shelved(msgspec.Struct, frozen=True):
    run: int
    n: int
    place: Place
    event: dict[str, Any]
    meta: dict[str, Any]
    crc: int | None
    captured_ns: int


@dataclass
class Records:
    """The records of a session, by sequence number. Thread-safe."""

    spool: Spool
    in_memory: int = IN_MEMORY
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: dict[int, Record] = field(default_factory=dict)
    _shelved: dict[int, Slip] = field(default_factory=dict)
    _runs: dict[int, Run] = field(default_factory=dict)
    _n_deferred: int = 0
    _said: bool = False

    def put(self, seq: int, record: Record) -> None:
        """Remember a frame."""
        with self._lock:
            self._open[seq] = record
            self._runs[record.run.number] = record.run

    def defer(self, seq: int) -> None:
        """A frame moved to the deferred lane: its record may go to the scratch file."""
        with self._lock:
            record = self._open.get(seq)
            if record is None:
                return  # shelved already: it was deferred, sent, and given back
            if not record.deferred:
                record.deferred = True
                self._n_deferred += 1
            if self._n_deferred <= self.in_memory:
                return
            try:
                self._shelved[seq] = self.spool.put(msgspec.msgpack.encode(_shelve(record)))
            except Exception:  # a full scratch disk, or metadata of a custom engine that cannot be written down
                if not self._said:
                    self._said = True
                    log.exception("records of deferred frames stay in memory")
                return
            del self._open[seq]
            self._n_deferred -= 1

    def get(self, seq: int) -> Record:
        """The record of a frame that has not come back yet.

        Raises
        ------
        StoreError
            When it cannot be read from the scratch file.
        """
        with self._lock:
            record = self._open.get(seq)
            return record if record is not None else self._from_shelf(seq)

    def pop(self, seq: int) -> Record:
        """Forget a frame, and return what was remembered.

        Raises
        ------
        StoreError
            When it cannot be read from the scratch file.
        """
        with self._lock:
            record = self._open.pop(seq, None)
            if record is None:
                record = self._from_shelf(seq)
                self.spool.discard(self._shelved.pop(seq))
            elif record.deferred:
                self._n_deferred -= 1
            return record

    def _from_shelf(self, seq: int) -> Record:
        kept = msgspec.msgpack.decode(self.spool.get(self._shelved[seq]), type=_Shelved)
        run = self._runs[kept.run]
        event = MDAEvent(**kept.event, sequence=run.sequence)
        meta = {**kept.meta, "mda_event": event}
        return Record(run, kept.n, kept.place, event, meta, kept.crc, kept.captured_ns, deferred=True)


def _shelve(record: Record) -> _Shelved:
    event = record.event.model_dump(mode="json", exclude={"sequence"}, exclude_unset=True)
    meta = to_builtins({k: v for k, v in record.meta.items() if k != "mda_event"})
    return _Shelved(record.run.number, record.n, record.place, event, meta, record.crc, record.captured_ns)
