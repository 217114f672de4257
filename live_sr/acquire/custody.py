"""Keeps each frame's pixels until the raw data set is seen to hold them. Knows no server.

Raw is stored by pymmcore-plus before we see a frame, but asynchronously: a full disk shows up at close, as a
log line, in a run that ends "completed". So every frame is read back from the disk and compared by checksum.
Until then its pixels are kept here: in memory up to a bound, then in a scratch file. When raw falls behind
or the disk runs full an alarm is raised at once, and at the end whatever raw does not hold is written out as
TIFF files.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from live_sr.acquire.plan import Place
from live_sr.acquire.raw import RawStore, checksum
from live_sr.acquire.spool import Slip, Spool
from live_sr.errors import StoreError

log = logging.getLogger("live_sr")
MEMORY_BYTES = 256 * 2**20  # pixels kept in memory until raw holds them
FIRST_LOOK_S = 0.1  # the writer needs some milliseconds; looking earlier only costs
LOOK_AGAIN_S = 0.05
LATE_S = 5.0  # a frame not on disk by then: the disk is full, gone or far too slow
DISK_CHECK_S = 0.5
LOW_FRAMES = 8  # frames' worth of free space under which the alarm is raised before anything is lost


@dataclass(slots=True, eq=False)
class _Held:
    place: Place
    since: float
    pixels: NDArray[Any] | None  # None: in the spool, or never had (then `crc` is None too)
    crc: int | None
    shape: tuple[int, int] = (0, 0)
    dtype: str = ""
    slip: Slip | None = None

    @property
    def ours(self) -> bool:
        return self.pixels is not None or self.slip is not None


@dataclass(frozen=True, slots=True)
class RawReport:
    """What is known of the raw data at the end of a run.

    Attributes
    ----------
    path : str or None
        The raw data set, where known.
    verified, missing : int
        Frames read back with the right checksum; frames that raw does not hold.
    rescued : str or None
        Folder of TIFF files with our copy of the missing frames.
    """

    path: str | None
    frames: int
    verified: int
    missing: int
    rescued: str | None

    @property
    def complete(self) -> bool:
        """Whether every frame was read back from the raw data set with the right checksum."""
        return self.path is not None and self.verified == self.frames


class Custody:
    """The pixels of one run. Thread-safe; owns the thread that reads raw back.

    Parameters
    ----------
    raw : RawStore or None
        None when there is no raw data set that can be read: pixels are then kept until they are released.
    rescue_to : Path
        Folder for the pixels that raw does not hold; made only when needed.
    alarm : callable
        ``(text)``: raw cannot be trusted. Called once per kind of trouble, on any thread.
    """

    def __init__(
        self,
        raw: RawStore | None,
        spool: Spool,
        *,
        rescue_to: Path,
        alarm: Callable[[str], None],
        frame_bytes: int,
        memory_bytes: int = MEMORY_BYTES,
        late_s: float = LATE_S,
    ) -> None:
        self._raw = raw
        self._spool = spool
        self._rescue_to = rescue_to
        self._alarm = alarm
        self._frame_bytes = frame_bytes
        self._memory_bytes = memory_bytes
        self._late_s = late_s
        self._raw_lock = threading.Lock()  # the store is read by two threads
        self._changed = threading.Condition()
        self._held: OrderedDict[int, _Held] = OrderedDict()  # oldest first
        self._in_memory = 0
        self._frames = 0
        self._verified = 0
        self._missing: list[int] = []
        self._said: set[str] = set()
        self._sink_closed = raw is None
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="live-sr custody", daemon=True)
        if raw is not None:
            self._thread.start()

    # ---------------------------------------------------------------- intake thread

    def hold(self, n: int, place: Place, pixels: NDArray[Any] | None) -> int | None:
        """Keep the run's `n`-th frame and return its checksum; a frame without pixels only waits for raw."""
        held = _Held(place, time.monotonic(), None, None)
        if pixels is not None:
            held = _Held(place, held.since, pixels, checksum(pixels), pixels.shape, pixels.dtype.name)
        with self._changed:
            self._frames += 1
            self._held[n] = held
            if pixels is not None:
                self._in_memory += pixels.nbytes
                if self._in_memory > self._memory_bytes:
                    self._spool_oldest()
            self._changed.notify_all()
        return held.crc

    # ---------------------------------------------------------------- outbox's thread

    def fetch(self, n: int, place: Place, crc: int | None) -> NDArray[Any] | None:
        """Pixels of a frame that was held once; None when raw does not hold it yet.

        Raises
        ------
        LookupError
            When raw has been closed and does not hold it either.
        """
        with self._changed:
            held = self._held.get(n)
            closed = self._sink_closed
        if held is not None and held.ours:
            return self._pixels(held)
        pixels = self._read_raw(place, n)
        # Without a checksum (there was no memory for the pixels) only a closed raw data set can be believed.
        if pixels is not None and (closed if crc is None else checksum(pixels) == crc):
            return pixels
        if not closed:
            return None
        found = "is missing from" if pixels is None else "differs from what was acquired in"
        raise LookupError(f"frame {n} {found} the raw data set, which has been closed")

    def release(self, n: int) -> None:
        """A frame has been restored: without a raw data set nothing else needs its pixels."""
        if self._raw is None:
            with self._changed:
                self._drop(n)

    # ---------------------------------------------------------------- end of the run

    def sink_closed(self) -> None:
        """The raw writer has closed its files: what is not there now never will be."""
        with self._changed:
            self._sink_closed = True
            self._changed.notify_all()

    def finish(self) -> RawReport:
        """Read back what is left, write out what raw does not hold, and report.

        Call after :meth:`sink_closed`, and after the last :meth:`fetch`.
        """
        assert self._sink_closed, "raw can be judged only after its writer has closed it"
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._raw is not None:
            self._thread.join()
        rescued = self._rescue() if self._missing else None
        if self._raw is not None:
            self._raw.close()
        return RawReport(
            path=str(self._raw.path) if self._raw is not None else None,
            frames=self._frames,
            verified=self._verified,
            missing=len(self._missing),
            rescued=str(rescued) if rescued is not None else None,
        )

    @property
    def verified(self) -> int:
        """Frames read back so far."""
        return self._verified

    # ---------------------------------------------------------------- own thread

    def _watch(self) -> None:
        disk_at = 0.0
        while True:
            with self._changed:
                while not self._held and not self._stopping:
                    self._changed.wait(DISK_CHECK_S)
                n, held = next(iter(self._held.items()), (None, None))
                closed, stopping = self._sink_closed, self._stopping
            now = time.monotonic()
            if now - disk_at > DISK_CHECK_S and not closed:
                disk_at = now
                self._check_disk()
            if n is None or held is None:
                if stopping:
                    return
                continue
            if not closed and (early := held.since + FIRST_LOOK_S - now) > 0:
                self._wait(early)
                continue
            assert self._raw is not None
            if (self._raw.live or closed) and self._is_on_disk(n, held):
                with self._changed:
                    self._verified += 1
                    self._drop(n)
            elif closed:
                self._say(
                    "missing",
                    f"raw data set {self._raw.path} is INCOMPLETE: frame {n} was acquired but is not in it",
                )
                with self._changed:
                    self._missing.append(n)
                    self._held.move_to_end(n)
                    if len(self._missing) == len(self._held):
                        return
            else:
                if self._raw.live and now - held.since > self._late_s:
                    self._say(
                        "late",
                        f"raw data are not being written: frame {n} is not in {self._raw.path} "
                        f"{self._late_s:g} s after it was acquired. Its pixels are kept here",
                    )
                self._wait(LOOK_AGAIN_S)

    def _is_on_disk(self, n: int, held: _Held) -> bool:
        pixels = self._read_raw(held.place, n)
        if pixels is None:
            return False
        return self._sink_closed if held.crc is None else checksum(pixels) == held.crc

    def _read_raw(self, place: Place, n: int) -> NDArray[Any] | None:
        if self._raw is None:
            return None
        with self._raw_lock:
            return self._raw.read(place, n)

    def _check_disk(self) -> None:
        assert self._raw is not None
        try:
            free = shutil.disk_usage(self._raw.path.parent).free
        except OSError as e:
            self._say("disk", f"the disk of the raw data {self._raw.path} cannot be reached: {e.strerror}")
            return
        if free < LOW_FRAMES * self._frame_bytes:
            self._say(
                "disk",
                f"the disk of the raw data {self._raw.path} is full: {free / 1e6:.1f} MB left, "
                f"a frame takes {self._frame_bytes / 1e6:.1f} MB",
            )

    def _wait(self, seconds: float) -> None:
        with self._changed:
            if not self._sink_closed:
                self._changed.wait_for(lambda: self._sink_closed, seconds)

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._alarm(text)

    # ---------------------------------------------------------------- pixels

    def _pixels(self, held: _Held) -> NDArray[Any]:
        if held.pixels is not None:
            return held.pixels
        assert held.slip is not None
        pixels: NDArray[Any] = np.frombuffer(self._spool.get(held.slip), dtype=held.dtype).reshape(held.shape)
        return pixels

    def _drop(self, n: int) -> None:
        held = self._held.pop(n, None)
        if held is not None and held.pixels is not None:
            self._in_memory -= held.pixels.nbytes

    def _spool_oldest(self) -> None:
        for held in self._held.values():
            if held.pixels is None:
                continue
            try:
                held.slip = self._spool.put(np.ascontiguousarray(held.pixels).data.cast("B"))
            except StoreError as e:
                self._say("spool", f"{e}; pixels that raw does not hold yet stay in memory")
                return
            self._in_memory -= held.pixels.nbytes
            held.pixels = None
            if self._in_memory <= self._memory_bytes:
                return

    def _rescue(self) -> Path | None:
        """Write every frame that raw does not hold to a TIFF file of its own."""
        try:
            self._rescue_to.mkdir(parents=True, exist_ok=True)
            for n in self._missing:
                held = self._held[n]
                if not held.ours:
                    continue
                where = "_".join(f"{axis}{i}" for axis, i in held.place.items())
                tifffile.imwrite(
                    self._rescue_to / f"frame{n:06d}_{where}.tif",
                    self._pixels(held),
                    description=f"frame {n} at {held.place}, missing from {self._raw and self._raw.path}",
                )
        except (OSError, StoreError) as e:
            self._say("rescue", f"cannot write the pixels that raw lacks to {self._rescue_to}: {e}")
            return None
        return self._rescue_to
