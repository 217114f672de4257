"""Restores files and whole volumes, plane by plane: what ``live-sr enhance IN OUT`` does.

A volume is continued where it was left, frame by frame, so that this also completes a live run that was cut
short. Knows no format by itself and imports no torch: the upscaler may be the engine here or a server. Where
pixels were filled from neighbours, a mark beside the result says which.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from live_sr import __version__
from live_sr.client.convert import Noted, annotation
from live_sr.client.images import SUFFIXES, check_target, format_of, open_source, write_image
from live_sr.client.masks import Masks
from live_sr.client.stacks import Stacks
from live_sr.client.store import STATEMENT, SRStore
from live_sr.client.volume import VolumeLayout, shown
from live_sr.errors import InputError, RemoteError, StoreError
from live_sr.frame import Pixels
from live_sr.holes import Missing, enlarged, fillable
from live_sr.upscaler import HoleFiller, Upscaler, pixel_size_doubt

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
    filled : int
        Frames, of those written, of which pixels were missing and filled from neighbours.
    filled_pixels : int
        Raw pixels that were filled.
    black_pixels : int
        Raw pixels of the frames written that are missing in all the neighbours too, and stay black.
    problems : list of str
        The first of them, at most :data:`MAX_PROBLEMS`.
    """

    frames: int
    written: int = 0
    already: int = 0
    missing: int = 0
    failed: int = 0
    filled: int = 0
    filled_pixels: int = 0
    black_pixels: int = 0
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
        return {name: value for name, value in vars(self).items() if name != "problems"}


MAX_PROBLEMS = 20  # enough to see what is wrong; the journal of a volume has them all


MARKED = 255  # in the mark, where a pixel was filled; 0 elsewhere


def enhance(
    source: Path | str,
    target: Path | str,
    upscaler: Upscaler,
    *,
    missing: Path | str | None = None,
    fill: bool = False,
    progress: Progress | None = None,
) -> EnhanceReport:
    """Restore every plane of `source` into `target`.

    With `missing` or `fill`, pixels are filled from neighbouring frames by a model that was trained to, and
    :func:`mark_path` is written beside `target`: its shape and pixel size, uint8, 255 where a pixel was filled.
    Pixels that no neighbour has are black, and not marked. A frame of a volume that was filled once stays as it
    is, also when the raw frame turns up later.

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
    missing : Path, optional
        Mask of the pixels that are missing, see :class:`live_sr.client.masks.Masks`: those are filled.
    fill : bool
        Fill the frames that are not in `source` at all: skipped, lost, or never acquired.

    Returns
    -------
    EnhanceReport

    Raises
    ------
    InputError
        When `source` is not what can be restored, `target` cannot take it, or a frame is too large; when
        something is to be filled and the model cannot, the mask does not fit, or there are no neighbours.
    StoreError
        When `target` exists, belongs to another model, or cannot be written.
    LiveSRError
        When the upscaler fails for good. A volume then keeps what it has, and can be continued.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    format_of(target)
    info = upscaler.info
    filling = fill or missing is not None
    if filling and not (info.holes and isinstance(upscaler, HoleFiller)):
        raise InputError(
            f"{info.id} fills no holes: choose a model that was trained to, and compute here, not on a server"
        )
    with contextlib.ExitStack() as stack:
        planes = open_source(source)
        stack.callback(planes.close)
        y, x = planes.layout.frame_shape
        if y * x > info.max_pixels:
            raise InputError(
                f"{source} has planes of {y} x {x} pixels, this upscaler accepts {info.max_pixels} "
                "pixels: raise max_pixels, or crop them"
            )
        masks = None
        if missing is not None:
            masks = Masks(Path(missing).expanduser(), planes)
            stack.callback(masks.close)
        stacks = Stacks(planes, info, masks)
        report = EnhanceReport(sum(1 for _ in planes.indices()))
        if filling and stacks.axis is None:
            raise InputError(f"nothing can be filled in {source}: {stacks.why_alone}")
        if info.frames > 1 and stacks.axis is None and report.frames > 1:
            log.warning("%s; each frame is restored from itself alone", stacks.why_alone)
        if doubt := pixel_size_doubt(info.id, info.pixel_size_um, planes.layout.pixel_size_um):
            log.warning("%s: %s", source, doubt)
        mark, tell = mark_path(target) if filling else None, progress or (lambda done, frames: None)
        job = _Job(stacks, source, target, upscaler, mark, fill, report, tell)
        if format_of(target) == "zarr":
            _into_volume(job)
        else:
            _into_file(job)
    return report


def mark_path(target: Path) -> Path:
    """Where the mark of what was filled in `target` lies: ``a.ome.tif`` has ``a.filled.ome.tif``."""
    name = target.name.lower()
    suffix = next(s for s in (".ome.zarr", *sorted(SUFFIXES, key=len, reverse=True)) if name.endswith(s))
    cut = len(name) - len(suffix)
    return target.with_name(f"{target.name[:cut]}.filled{target.name[cut:]}")


@dataclass(frozen=True)
class _Job:
    stacks: Stacks
    source: Path
    target: Path
    upscaler: Upscaler
    mark: Path | None  # None when nothing is filled
    fill: bool
    report: EnhanceReport
    tell: Progress

    @property
    def layout(self) -> VolumeLayout:
        """Of the target."""
        return self.stacks.source.layout.scaled(self.upscaler.info.scale)

    @property
    def statement(self) -> str:
        """That the target is computed, and that pixels of it were filled."""
        if self.mark is None:
            return STATEMENT
        return (
            f"{STATEMENT} Pixels that were missing were filled from neighbouring {self._neighbours}: "
            f"see {self.mark.name}."
        )

    @property
    def mark_statement(self) -> str:
        """What the mark is."""
        return (
            f"Mark: {MARKED} where a pixel of {self.target.name} was missing in the raw image and was filled "
            f"from neighbouring {self._neighbours}."
        )

    @property
    def _neighbours(self) -> str:
        return {"z": "sections", "t": "time points", "t or z": "frames"}[self.upscaler.info.neighbours]


class _Computed(NamedTuple):
    """A frame, as it is stored.

    Attributes
    ----------
    raw_crc32 : int or None
        None where there was no raw frame.
    filled : (Y, X) bool or None
        Raw pixels that were filled; None where there were none.
    """

    restored: Pixels
    raw_crc32: int | None
    used: dict[str, tuple[int, ...]] | None
    filled: Missing | None


def _compute(job: _Job, index: Mapping[str, int]) -> _Computed | None:
    """Restore one frame; None when it is missing, and is not or cannot be filled."""
    raw = job.stacks.source.read(index)
    if raw is None and not job.fill:
        return None
    seen = job.stacks.of(index, raw)
    crc = zlib.crc32(raw.tobytes()) if raw is not None else None
    if seen.missing is None:
        (restored,) = job.upscaler.upscale([seen.pixels])
        return _Computed(restored, crc, seen.used, None)
    if seen.missing.all():
        return None
    assert isinstance(job.upscaler, HoleFiller)
    (restored,) = job.upscaler.fill([seen.pixels], [seen.missing])
    filled = fillable(seen.missing)
    n = int(filled.sum())
    job.report.filled += n > 0
    job.report.filled_pixels += n
    job.report.black_pixels += int(seen.missing.all(axis=0).sum())
    return _Computed(restored, crc, seen.used, filled if n else None)


# ---------------------------------------------------------------------------------------------- files


def _into_file(job: _Job) -> None:
    check_target(job.target, job.layout)
    marks: list[bytes | None] = []
    if job.mark is not None:
        check_target(job.mark, job.layout)
    if job.report.frames != job.layout.n_frames:
        raise InputError(f"the positions of {job.source} have different lengths: choose an .ome.zarr target")
    statement = _provenance(job, job.statement)
    write_image(job.target, job.layout, _restored(job, marks), statement=statement, annotation=_annotation(job))
    if job.mark is not None:
        try:
            layout = replace(job.layout, dtype="uint8")
            write_image(job.mark, layout, _unpacked(job, marks), statement=_provenance(job, job.mark_statement))
        except BaseException:
            job.target.unlink(missing_ok=True)  # what was filled must not lie about unmarked
            raise


def _restored(job: _Job, marks: list[bytes | None]) -> Iterator[Pixels]:
    """Planes for the writer, which does not come back after the last: each is counted before it is given.

    Their `marks` are collected, small because compressed: 1 bit a raw pixel, and most of a kind.
    """
    report = job.report
    for index in job.stacks.source.indices():
        computed = _compute(job, index)
        if computed is None:  # a file has a fixed number of pages
            restored: Pixels = np.zeros(job.layout.frame_shape, job.layout.dtype)
            report.missing += 1
        else:
            restored = computed.restored
            report.written += 1
        filled = computed.filled if computed is not None else None
        marks.append(zlib.compress(np.packbits(filled).tobytes()) if filled is not None else None)
        job.tell(report.done, report.frames)
        yield restored


def _unpacked(job: _Job, marks: list[bytes | None]) -> Iterator[Pixels]:
    y, x = job.stacks.source.layout.frame_shape
    for packed in marks:
        filled = None
        if packed is not None:
            bits = np.frombuffer(zlib.decompress(packed), np.uint8)
            filled = np.unpackbits(bits, count=y * x).reshape(y, x) > 0
        yield _mark(job, filled)


def _mark(job: _Job, filled: Missing | None) -> Pixels:
    """(scale * Y, scale * X) of the mark."""
    if filled is None:
        return np.zeros(job.layout.frame_shape, np.uint8)
    mark: Pixels = enlarged(filled, job.upscaler.info.scale).astype(np.uint8) * np.uint8(MARKED)
    return mark


def _provenance(job: _Job, statement: str) -> str:
    info = job.upscaler.info
    return (
        f"{statement} Source: {job.source.name}. Model: {info.id}, sha256 {info.sha256}, x{info.scale}, "
        f"{info.precision}. Software: live-sr {__version__}."
    )


def _annotation(job: _Job) -> dict[str, str]:
    source = job.stacks.source
    lacking = [] if job.fill else [shown(i) for i in source.indices() if not source.present(i)]
    provenance = {"model": _model(job), "raw": str(job.source), "statement": job.statement}
    return annotation(Noted(job.layout, lacking, provenance))


def _model(job: _Job) -> dict[str, Any]:
    info = job.upscaler.info
    return {"id": info.id, "sha256": info.sha256, "scale": info.scale, "precision": info.precision}


# -------------------------------------------------------------------------------------------- volumes


def _into_volume(job: _Job) -> None:
    report = job.report
    with contextlib.ExitStack() as stack:
        store = _open_volume(job.target, job.layout, job, job.statement)
        stack.callback(_close, store, report)
        marks: SRStore | None = None
        if job.mark is not None:
            marks = _open_volume(job.mark, replace(store.layout, dtype="uint8"), job, job.mark_statement)
            stack.callback(_close, marks, report)
        known = {store.layout.locate(entry.place): entry for entry in store.journal.frames.values()}
        saved = {store.layout.locate(e.place) for e in store.journal.frames.values() if e.status == "saved"}
        unused = itertools.count(max(store.journal.frames, default=-1) + 1)
        for index in job.stacks.source.indices():
            place = store.layout.locate(index)
            seq = known[place].seq if place in known else next(unused)
            if place not in saved:
                _restore_one(job, index, seq, store, marks)
            else:
                report.already += 1
                if marks is not None and not marks.has(index):
                    marks.write(seq, index, _mark(job, None))
            job.tell(report.done, report.frames)


def _restore_one(job: _Job, index: dict[str, int], seq: int, store: SRStore, marks: SRStore | None) -> None:
    """One frame into the volume, or why not into its journal; a full disk or a lost server ends the work."""
    report = job.report
    both = [store, marks] if marks is not None else [store]
    try:
        computed = _compute(job, index)
    except (StoreError, RemoteError) as e:
        for each in both:
            each.note_failure(seq, index, str(e))
        report.failed += 1
        report.problems += [str(e)] if len(report.problems) < MAX_PROBLEMS else []
        return
    if computed is None:
        why = "not in the raw volume" if marks is None else "missing in the raw volume, and not to be filled"
        for each in both:
            each.note_failure(seq, index, why, status="skipped")
        report.missing += 1
        return
    if marks is not None:  # first: no frame is ever there without its mark
        marks.write(seq, index, _mark(job, computed.filled))
    filled = int(computed.filled.sum()) if computed.filled is not None else 0
    entry = {"raw_crc32": computed.raw_crc32, "used": computed.used, "filled": filled}
    store.write(seq, index, computed.restored, entry)
    report.written += 1


def _close(store: SRStore, report: EnhanceReport) -> None:
    store.close(report.as_counts(), "complete" if report.complete else "incomplete")


def _open_volume(path: Path, layout: VolumeLayout, job: _Job, statement: str) -> SRStore:
    info = job.upscaler.info
    if path.exists():
        return SRStore.resume(
            path,
            layout=layout,
            model_sha256=info.sha256,
            statement=statement if job.mark is not None else None,
        )
    return SRStore.create(
        path, layout, provenance={"model": _model(job), "raw": str(job.source), "statement": statement}
    )
