"""One sequence: its plan, its raw data, its super-resolved volume. Owns no thread of its own.

The volume is made when the first result arrives, because only then the scale is known; without a server there
is none, and raw is all that a later ``live-sr enhance`` needs.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from live_sr import __version__
from live_sr.acquire.custody import LOW_FRAMES, Custody, RawReport
from live_sr.acquire.gather import Gatherer
from live_sr.acquire.listeners import Events, Turn
from live_sr.acquire.mda_view import SeenFrames
from live_sr.acquire.plan import Place, Plan
from live_sr.client.convert import ConvertedVolume, convert
from live_sr.client.store import SRStore
from live_sr.errors import LiveSRError, StoreError
from live_sr.frame import Counts, Pixels, Restored
from live_sr.wire.messages import ModelInfo

if TYPE_CHECKING:
    from useq import MDASequence

    from live_sr.acquire.records import Record

RESERVED_FRAMES = 100  # of raw that keep their room in a run without a known end: seconds to minutes
BLOCK_BYTES = 4096  # in which file systems give room
log = logging.getLogger("live_sr")
VERSIONS = ("live-sr", "pymmcore-plus", "useq-schema", "ome-writers", "tensorstore", "numpy", "pyzmq")


@dataclass(eq=False)
class Run:
    """State of one sequence; changed by the session's intake and delivery threads only.

    Attributes
    ----------
    sequence : MDASequence or None
        None where its events were all that was known.
    target : Path or None
        The super-resolved volume to make; None when the session saves nothing.
    tiff : Path or None
        The OME-TIFF that it becomes when it is complete.
    summary : dict
        Of the raw stream, as the engine gave it.
    seen : SeenFrames or None
        What :meth:`LiveSR.mda_view` looks at; None before the model is known.
    """

    number: int
    session: str
    sequence: MDASequence | None
    plan: Plan
    custody: Custody
    gatherer: Gatherer
    raw_path: Path | None
    target: Path | None
    tiff: Path | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    acquired: int = 0
    settled: int = 0  # returned or failed
    failed: int = 0
    deferred: int = 0  # frames that went through the deferred lane
    reasons: list[str] = field(default_factory=list)  # why frames failed, each once
    ended: bool = False  # the sequence has ended
    finished: bool = False  # and all its frames have been handed to delivery
    closing: bool = False
    reason: str = ""  # how it ended
    store: SRStore | None = None
    no_store: LiveSRError | None = None  # why the volume could not be made; it is not tried again
    last_seq: int = -1  # of its frames
    seen: SeenFrames | None = None
    _converted: ConvertedVolume | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)
    _turn: Turn | None = None
    _begin_lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, events: Events, model: ModelInfo | None) -> None:
        """Tell listeners of the super-resolved stream that it starts; again does nothing. Any thread."""
        with self._begin_lock:
            if self._turn is not None:
                return
            if model is not None:
                self.seen = SeenFrames(self.plan, model.scale, self._read if self.target is not None else None)
            self._turn = events.begin(self.sequence, scaled_summary(self.summary, model))

    def end(self, events: Events, model: ModelInfo | None) -> None:
        """Tell them that the last frame has been emitted."""
        self.begin(events, model)
        assert self._turn is not None
        events.end(self.sequence, self._turn, canceled=self.reason == "canceled")

    def save(self, seq: int, record: Record, result: Restored, latency_ms: float) -> None:
        """Write one result at its place.

        Raises
        ------
        LiveSRError
            When the volume cannot be made or written.
        """
        if self.no_store is not None:
            raise self.no_store
        if self._raw_needs_the_room(result.pixels.nbytes):
            raise StoreError(
                f"the disk of {self.target} is nearly full: what is left of it is kept for raw data"
            )
        if self.store is None:
            assert self.target is not None
            try:
                self.store = self._create(self.target, result)
            except LiveSRError as e:
                self.no_store = e
                raise
        self.store.write(
            seq,
            record.place,
            result.pixels,
            {
                "n": record.n,
                "index": dict(record.event.index),
                "deferred": record.deferred,
                "model": result.model,
                "model_sha256": result.model_sha256,
                "latency_ms": round(latency_ms, 3),
                "raw_crc32": record.crc,
                "used": result.used,
            },
        )

    def read_back(self, record: Record) -> Pixels:
        """A super-resolved frame that was saved."""
        return self._read(record.place)

    def note_failure(self, seq: int, record: Record, reason: str) -> None:
        """Enter a frame that will not be in the volume into the journal."""
        if self.store is not None:
            self.store.note_failure(
                seq, record.place, reason, {"n": record.n, "index": dict(record.event.index)}
            )

    def close(self, raw: RawReport) -> None:
        """Write the run's counters and what is known of raw, close the volume, and convert it if it is to be.

        Raises
        ------
        StoreError
            When that cannot be written.
        """
        if self.store is None:
            return
        counts = Counts(
            acquired=self.acquired,
            returned=self.acquired - self.failed,
            failed=self.failed,
            saved=self.acquired - self.failed,
            deferred_total=self.deferred,
        )
        self.store.close(
            {**counts.as_dict(), "raw_verified": raw.verified, "raw_missing": raw.missing},
            status="complete" if self.failed == 0 else "incomplete",
        )
        if self.tiff is not None:
            self._convert(self.tiff)

    @property
    def saved_as(self) -> Path | None:
        """Where the super-resolved frames are now."""
        return self.tiff if self._converted is not None else self.target

    def _read(self, place: Place) -> Pixels:
        with self._reading:  # the volume may be about to go
            if self._converted is not None:
                return self._converted.read(place)
            assert self.store is not None
            return self.store.read(place)

    def _convert(self, target: Path) -> None:
        """Write the OME-TIFF; the volume goes when that was read back, its journal stays.

        Raises
        ------
        StoreError
            When it cannot be written, or frames are missing: the volume stays.
        """
        assert self.store is not None
        volume = self.store.path
        how = f"live-sr enhance {volume} {target}"
        if self.failed:
            raise StoreError(
                f"{target} is not written, since {self.failed} frames are missing: the others are in {volume}. "
                f"Finish it, then: {how}"
            )
        try:
            convert(volume, target)
            converted = ConvertedVolume(target)
        except LiveSRError as e:
            raise StoreError(f"{e}. Everything is in {volume}; convert it with: {how}") from e
        with self._reading:
            self._converted = converted
        shutil.rmtree(volume, ignore_errors=True)  # on some systems not while a viewer has it open

    def _raw_needs_the_room(self, nbytes: int) -> bool:
        """Raw comes first: on a disk of both, the frames still to be acquired keep their room."""
        if self.ended or self.raw_path is None or self.target is None:
            return False
        try:
            disks = [path.absolute().parent.stat().st_dev for path in (self.raw_path, self.target)]
            free = shutil.disk_usage(self.raw_path.absolute().parent).free
        except OSError:  # no such folder yet, or a disk that is gone: writing will tell
            return False
        n_frames = self.plan.n_frames
        to_come = n_frames - self.acquired if n_frames is not None else RESERVED_FRAMES
        blocks = -(-self.plan.frame_bytes // BLOCK_BYTES)
        return disks[0] == disks[1] and free - nbytes < (to_come + LOW_FRAMES) * blocks * BLOCK_BYTES

    def _create(self, target: Path, result: Restored) -> SRStore:
        return SRStore.create(
            target,
            self.plan.layout.scaled(result.scale),
            provenance={
                "session": self.session,
                "run": self.number,
                "model": {"id": result.model, "sha256": result.model_sha256, "scale": result.scale},
                "raw": str(self.raw_path) if self.raw_path is not None else None,
                "regular": self.plan.regular,
                "pixel_size_um": self.plan.pixel_size_um,
                "started": self.started.isoformat(),
                "versions": _versions(),
            },
        )


def scaled_summary(summary: dict[str, Any], model: ModelInfo | None) -> dict[str, Any]:
    """The summary metadata of the super-resolved stream: sizes and pixel sizes of the frames to come.

    Without a model, which is told when a run ends that no server was there for, they are those of raw.
    """
    if model is None:
        return {**summary, "live_sr": {"computed": True, "model": None}}
    told = {"computed": True, "scale": model.scale, "model": model.id, "model_sha256": model.sha256}
    images = [_scaled_image(info, model.scale) for info in summary.get("image_infos") or ()]
    return {**summary, "image_infos": tuple(images), "live_sr": told}


def _scaled_image(info: dict[str, Any], scale: int) -> dict[str, Any]:
    scaled = dict(info)
    for key in ("height", "width"):
        if key in info:
            scaled[key] = info[key] * scale
    if "plane_shape" in info:
        y, x, *colors = info["plane_shape"]
        scaled["plane_shape"] = (y * scale, x * scale, *colors)
    if info.get("pixel_size_um"):
        scaled["pixel_size_um"] = info["pixel_size_um"] / scale
    if info.get("pixel_size_affine"):
        a, b, tx, c, d, ty = info["pixel_size_affine"]
        scaled["pixel_size_affine"] = (a / scale, b / scale, tx, c / scale, d / scale, ty)
    return scaled


def _versions() -> dict[str, str]:
    found = {"live-sr": __version__}
    for name in VERSIONS[1:]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
