"""What can be known before the first exposure: room on the disks, names that are taken, doubts about models."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from live_sr.acquire.plan import Plan
from live_sr.client.journal import journal_path
from live_sr.client.link import LinkStatus
from live_sr.errors import InputError, StoreError
from live_sr.frame import DTYPES
from live_sr.neighbours import axis_of
from live_sr.upscaler import pixel_size_doubt
from live_sr.wire.messages import ModelInfo

OME_TIFF = (".ome.tiff", ".ome.tif")
LATE_S = 1.0  # results that come later than that are missed by somebody who watches


def refuse_existing(path: Path) -> None:
    """Nothing is ever overwritten.

    Raises
    ------
    StoreError
        When `path` is taken.
    """
    if path.exists():
        raise StoreError(f"{path} exists: choose another name, nothing is ever overwritten")


def refuse_existing_volume(path: Path) -> None:
    """As :func:`refuse_existing`, for a super-resolved volume and the journal beside it."""
    refuse_existing(path)
    refuse_existing(journal_path(path))


def save_as(path: Path) -> tuple[Path, str]:
    """The volume that is written for ``save=path``, and the ending of the OME-TIFF that it becomes, or "".

    Raises
    ------
    InputError
        When `path` has another ending.
    StoreError
        When it, the volume or its journal exists.
    """
    name = path.name.lower()
    if name.endswith(".zarr"):
        refuse_existing_volume(path)
        return path, ""
    suffix = next((s for s in OME_TIFF if name.endswith(s)), None)
    if suffix is None:
        raise InputError(
            f"save={str(path)!r} must end in .ome.zarr or .ome.tiff: super-resolved frames go to OME-Zarr, or "
            "to OME-TIFF by way of it"
        )
    cut = len(name) - len(suffix)
    volume, suffix = path.with_name(f"{path.name[:cut]}.ome.zarr"), path.name[cut:]
    refuse_existing(path)
    refuse_existing_volume(volume)
    return volume, suffix


def numbered(path: Path, number: int, tiff: str = "") -> Path:
    """`path` for the first run, ``NAME-2`` and so on after that; further on while a name is taken.

    With `tiff` the OME-TIFF of that ending must be free as well.
    """
    stem, dot, suffixes = path.name.partition(".")
    while True:
        found = path if number == 1 else path.with_name(f"{stem}-{number}{dot}{suffixes}")
        names = [found, journal_path(found), *([tiff_of(found, tiff)] if tiff else [])]
        if not any(name.exists() for name in names):
            return found
        number += 1


def tiff_of(volume: Path, suffix: str) -> Path:
    """The OME-TIFF that `volume` becomes: x.ome.tiff for x.ome.zarr."""
    return volume.with_name(volume.name.removesuffix(".ome.zarr") + suffix)


def raw_has_no_room(plan: Plan, raw: Path | None) -> str | None:
    """Why a disk cannot hold the raw data; None when it can, or their length is not known."""
    if plan.n_frames is None or raw is None:
        return None
    return _no_room([(raw, plan.n_frames * plan.frame_bytes)])


def all_has_no_room(plan: Plan, raw: Path | None, sr: Path | None, scale: int) -> str | None:
    """Why the disks may not hold raw and super-resolved data together, if those do not compress at all."""
    if plan.n_frames is None or sr is None:
        return None
    nbytes = plan.n_frames * plan.frame_bytes
    return _no_room([(sr, nbytes * scale**2), *([(raw, nbytes)] if raw is not None else [])])


def cannot_restore(plan: Plan) -> str | None:
    """Why frames of this camera setting cannot be restored; None when they can."""
    if plan.dtype in DTYPES and plan.colors == 1:
        return None
    kind = plan.dtype if plan.colors == 1 else f"{plan.dtype} in {plan.colors} colours"
    return f"the camera delivers {kind}, live-sr restores grey {' and '.join(DTYPES)}: change its pixel type"


def doubts(plan: Plan, models: Sequence[ModelInfo], servers: Sequence[LinkStatus]) -> list[str]:
    """Nothing to stop for, but the operator should know."""
    found = []
    if problem := cannot_restore(plan):
        found.append(problem)
    if plan.in_order and plan.regular:
        found.append(
            "pymmcore-plus stores this sequence's frames in the order of arrival, which is not the order of "
            "its axes (a position's own grid comes innermost): positions and channels are mixed up in raw, and "
            "so in super-resolved data; the journal has each frame's true index"
        )
    if not any(s.state == "ready" for s in servers):
        where = ", ".join(f"{s.address} ({s.detail})" for s in servers)
        found.append(f"no server is ready yet: {where}. Raw is stored; frames are finished when one is")
    for model in models:
        if doubt := pixel_size_doubt(model.id, model.pixel_size_um, plan.pixel_size_um):
            found.append(doubt)
        if model.look_ahead:
            found += _look_ahead(plan, model)
    return found


def _look_ahead(plan: Plan, model: ModelInfo) -> list[str]:
    """What a multi-frame model means for this sequence."""
    axis = None if plan.mixed else axis_of(model.neighbours, dict(plan.order))
    if axis is None:
        why = (
            "pymmcore-plus stores this sequence's frames in the order of arrival, which does not tell them"
            if plan.mixed
            else "this sequence has none"
        )
        return [
            f"{model.id} sees a frame with its neighbours along {model.neighbours}: {why}, so each frame is "
            "restored from itself alone"
        ]
    interval_s = next((a.scale or 0.0 for a in plan.layout.axes if a.name == axis and a.unit == "second"), 0.0)
    if (late_s := model.look_ahead * interval_s) >= LATE_S:
        return [
            f"{model.id} looks {model.look_ahead} time points ahead: with {interval_s:g} s between them each "
            f"frame comes out {late_s:g} s late"
        ]
    return []


def _no_room(needs: Iterable[tuple[Path, int]]) -> str | None:
    by_disk: dict[int, tuple[Path, int]] = {}
    for path, nbytes in needs:
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        disk = folder.stat().st_dev
        by_disk[disk] = (folder, nbytes + by_disk.get(disk, (folder, 0))[1])
    for folder, nbytes in by_disk.values():
        free = shutil.disk_usage(folder).free
        if free < nbytes:
            return (
                f"the disk of {folder} has {free / 1e6:.1f} MB left, the sequence takes up to "
                f"{nbytes / 1e6:.1f} MB: free some space, or save elsewhere"
            )
    return None
