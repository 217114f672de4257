"""Restores files and whole volumes, plane by plane: what ``live-sr enhance IN OUT`` does.

A volume is continued where it was left, frame by frame, so that this also completes a live run that was cut
short. Knows no format by itself and imports no torch: the upscaler may be the engine here or a server.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from live_sr import __version__
from live_sr.archive.stacks import Stacks
from live_sr.client.images import check_target, format_of, open_source, write_image
from live_sr.client.store import STATEMENT, SRStore
from live_sr.client.volume import VolumeLayout
from live_sr.errors import InputError, RemoteError, StoreError
from live_sr.frame import Pixels
from live_sr.upscaler import Upscaler, UpscalerInfo, pixel_size_doubt

log = logging.getLogger("live_sr")
Progress = Callable[[int, int], None]
"""Called after each frame with the number of frames dealt with, and of all."""


@dataclass
class EnhanceReport:
    """What became of the frames; ``frames = written + already + missing + failed``.

    Attributes
    ----------
    frames : int
        Frames that the source has room for.
    written : int
        Computed and stored now.
    already : int
        In the target before.
    missing : int
        Not in the source: skipped, lost, or never acquired. In a file they are black.
    failed : int
        Could not be read, computed or stored; `problems` says why.
    problems : list of str
        The first of them, at most :data:`MAX_PROBLEMS`.
    """

    frames: int
    written: int = 0
    already: int = 0
    missing: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every frame of the source is in the target."""
        return self.frames == self.written + self.already

    @property
    def done(self) -> int:
        """Frames dealt with."""
        return self.written + self.already + self.missing + self.failed

    def as_counts(self) -> dict[str, int]:
        """By name, as the volume's journal and attributes hold them."""
        return {name: getattr(self, name) for name in ("frames", "written", "already", "missing", "failed")}


MAX_PROBLEMS = 20  # enough to see what is wrong; the journal of a volume has them all


def enhance(
    source: Path | str, target: Path | str, upscaler: Upscaler, *, progress: Progress | None = None
) -> EnhanceReport:
    """Restore every plane of `source` into `target`.

    Parameters
    ----------
    source : Path
        TIFF, OME-TIFF or PNG file, or OME-Zarr 0.5 volume, of uint8 or uint16 grey levels; any number of
        planes, of which one is in memory at a time, or as many as the model sees at once.
    target : Path
        Its ending selects the format: ``.ome.zarr``, ``.ome.tif``, ``.tif``, ``.png``. An existing file is
        never overwritten. An existing volume is continued if the same model made it.
    upscaler : Upscaler
        The engine, or a server.

    Returns
    -------
    EnhanceReport

    Raises
    ------
    InputError
        When `source` is not what can be restored, `target` cannot take it, or a frame is too large.
    StoreError
        When `target` exists, belongs to another model, or cannot be written.
    LiveSRError
        When the upscaler fails for good. A volume then keeps what it has, and can be continued.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    format_of(target)
    planes = open_source(source)
    try:
        y, x = planes.layout.frame_shape
        if y * x > upscaler.info.max_pixels:
            raise InputError(
                f"{source} has planes of {y} x {x} pixels, this upscaler accepts {upscaler.info.max_pixels} "
                "pixels: raise max_pixels, or crop them"
            )
        report = EnhanceReport(sum(1 for _ in planes.indices()))
        stacks = Stacks(planes, upscaler.info)
        if upscaler.info.frames > 1 and stacks.axis is None and report.frames > 1:
            log.warning("%s; each frame is restored from itself alone", stacks.why_alone)
        info = upscaler.info
        if doubt := pixel_size_doubt(info.id, info.pixel_size_um, planes.layout.pixel_size_um):
            log.warning("%s: %s", source, doubt)
        tell = progress or (lambda done, frames: None)
        if format_of(target) == "zarr":
            _into_volume(stacks, source, target, upscaler, report, tell)
        else:
            _into_file(stacks, source, target, upscaler, report, tell)
    finally:
        planes.close()
    return report


# ---------------------------------------------------------------------------------------------- files


def _into_file(
    stacks: Stacks, source: Path, target: Path, upscaler: Upscaler, report: EnhanceReport, tell: Progress
) -> None:
    layout = stacks.source.layout.scaled(upscaler.info.scale)
    check_target(target, layout)
    if report.frames != layout.n_frames:
        raise InputError(f"the positions of {source} have different lengths: choose an .ome.zarr target")
    restored = _restored(stacks, upscaler, report, tell)
    write_image(target, layout, restored, statement=_statement(upscaler.info, source))


def _restored(stacks: Stacks, upscaler: Upscaler, report: EnhanceReport, tell: Progress) -> Iterator[Pixels]:
    """Planes for the writer, which does not come back after the last: each is counted before it is given."""
    planes = stacks.source
    y, x = planes.layout.scaled(upscaler.info.scale).frame_shape
    for index in planes.indices():
        raw = planes.read(index)
        if raw is None:  # a file has a fixed number of pages
            restored: Pixels = np.zeros((y, x), planes.layout.dtype)
            report.missing += 1
        else:
            (restored,) = upscaler.upscale([stacks.of(index, raw)[0]])
            report.written += 1
        tell(report.done, report.frames)
        yield restored


def _statement(info: UpscalerInfo, source: Path) -> str:
    return (
        f"{STATEMENT} Source: {source.name}. Model: {info.id}, sha256 {info.sha256}, x{info.scale}, "
        f"{info.precision}. Software: live-sr {__version__}."
    )


# -------------------------------------------------------------------------------------------- volumes


def _into_volume(
    stacks: Stacks, source: Path, target: Path, upscaler: Upscaler, report: EnhanceReport, tell: Progress
) -> None:
    planes = stacks.source
    store = _open_volume(target, planes.layout, source, upscaler.info)
    try:
        known = {store.layout.locate(entry.place): entry for entry in store.journal.frames.values()}
        saved = {store.layout.locate(e.place) for e in store.journal.frames.values() if e.status == "saved"}
        unused = itertools.count(max(store.journal.frames, default=-1) + 1)
        for index in planes.indices():
            place = store.layout.locate(index)
            if place in saved:
                report.already += 1
            else:
                seq = known[place].seq if place in known else next(unused)
                _restore_one(stacks, index, seq, store, upscaler, report)
            tell(report.done, report.frames)
    finally:
        store.close(report.as_counts(), "complete" if report.complete else "incomplete")


def _restore_one(
    stacks: Stacks, index: dict[str, int], seq: int, store: SRStore, upscaler: Upscaler, report: EnhanceReport
) -> None:
    """One frame into the volume, or why not into its journal; a full disk or a lost server ends the work."""
    used = restored = None
    try:
        raw = stacks.source.read(index)
        if raw is not None:
            pixels, used = stacks.of(index, raw)
            (restored,) = upscaler.upscale([pixels])
    except (StoreError, RemoteError) as e:
        store.note_failure(seq, index, str(e))
        report.failed += 1
        report.problems += [str(e)] if len(report.problems) < MAX_PROBLEMS else []
        return
    if raw is None or restored is None:
        store.note_failure(seq, index, "not in the raw volume", status="skipped")
        report.missing += 1
        return
    store.write(seq, index, restored, {"raw_crc32": zlib.crc32(raw.tobytes()), "used": used})
    report.written += 1


def _open_volume(target: Path, raw: VolumeLayout, source: Path, info: UpscalerInfo) -> SRStore:
    layout = raw.scaled(info.scale)
    if target.exists():
        return SRStore.resume(target, layout=layout, model_sha256=info.sha256)
    model = {"id": info.id, "sha256": info.sha256, "scale": info.scale, "precision": info.precision}
    return SRStore.create(target, layout, provenance={"model": model, "raw": str(source)})
