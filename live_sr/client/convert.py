"""Turns a computed volume into OME-TIFF, and back. Computes nothing: every pixel stays what it was.

OME-TIFF is a file for other programs. Its pages have an order and its description lies at its end, so that it
is written when a volume is complete, plane by plane, read back, and given its name only then. Several positions
are several images of one file, which is how tifffile, bioio and Bio-Formats tell them apart.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from live_sr import __version__
from live_sr.client.images import PAGES, TiffSource, check_target, format_of, write_image
from live_sr.client.journal import journal_path
from live_sr.client.store import SRStore, read_provenance
from live_sr.client.volume import POSITION, Axis, VolumeLayout, VolumeReader, read_layout, shown
from live_sr.errors import InputError, StoreError
from live_sr.frame import Pixels

log = logging.getLogger("live_sr")
CAMERA = "cam"  # pymmcore-plus' axis of several cameras, for which OME-TIFF has no place
Progress = Callable[[int, int], None]
"""Called after each plane with the number of planes dealt with, and of all."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written.

    Attributes
    ----------
    planes : int
    missing : int
        Of them, those that the volume does not hold: they are black in OME-TIFF, and left out of a volume.
    """

    planes: int
    missing: int


class Noted(msgspec.Struct, frozen=True):
    """What stands in the annotation of an OME-TIFF, to make the same volume of it again.

    Attributes
    ----------
    layout : VolumeLayout
        Of that volume.
    missing : list of dict
        Index of every plane that it does not hold.
    provenance : dict
        As :meth:`live_sr.client.store.SRStore.create` takes it.
    """

    layout: VolumeLayout
    missing: list[dict[str, int]]
    provenance: dict[str, Any]


def is_computed(path: Path) -> bool:
    """Whether `path` is a volume or an OME-TIFF that live-sr computed."""
    if path.is_dir():
        return journal_path(path).exists()
    if not path.is_file() or format_of(path) != "ome-tiff":
        return False
    source = TiffSource(path)
    source.close()
    return source.annotation is not None


def convert(source: Path, target: Path, *, progress: Progress | None = None) -> Converted:
    """Write a computed volume as OME-TIFF, or a computed OME-TIFF as volume; `source` stays.

    What never came back is black in an OME-TIFF, and noted there; times after the last frame are left out.
    Cameras become channels.

    Raises
    ------
    InputError
        When `source` was not computed by live-sr, or `target` is not of the other format.
    StoreError
        When `target` exists, cannot be written, or does not read back as it should.
    """
    tell = progress or (lambda done, planes: None)
    kinds = format_of(source), format_of(target)
    if kinds == ("zarr", "ome-tiff"):
        return _to_tiff(source, target, tell)
    if kinds == ("ome-tiff", "zarr"):
        return _to_volume(source, target, tell)
    raise InputError(
        f"{source} is computed already, and is not computed again: take the raw data it was made from. To "
        "convert it, name an .ome.tiff target for an .ome.zarr, or the other way round"
    )


class ConvertedVolume:
    """Frames of an OME-TIFF that was made of a volume, by their place in that volume. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._source = TiffSource(path)
        self._layout = _noted(self._source, path).layout
        self._lock = threading.Lock()
        weakref.finalize(self, self._source.close)  # whoever looks last lets go of it

    def read(self, place: Mapping[str, int]) -> Pixels:
        """(Y, X)."""
        with self._lock:
            pixels = self._source.read(_page(self._layout, place))
        assert pixels is not None, "every plane was written"
        return pixels


def annotation(noted: Noted) -> dict[str, str]:
    """For programs to read, in OME-XML."""
    model = noted.provenance["model"]
    kept = {key: value for key, value in noted.provenance.items() if key != "frames"}  # the journal has them
    return {
        "computed": "true",
        "model": str(model["id"]),
        "model_sha256": str(model["sha256"]),
        "scale": str(model["scale"]),
        "software": f"live-sr {__version__}",
        "volume": msgspec.json.encode(msgspec.structs.replace(noted, provenance=kept)).decode(),
    }


# ---------------------------------------------------------------------------------------- to OME-TIFF


def _to_tiff(volume: Path, target: Path, tell: Progress) -> Converted:
    provenance = read_provenance(volume)
    found = read_layout(volume)
    order = {path: i for i, path in enumerate(provenance.get("positions") or ())}
    planned = replace(found, positions=tuple(sorted(found.positions, key=lambda p: order.get(p.path, 0))))
    with VolumeReader(volume, planned) as reader:
        there = {planned.locate(index) for index in reader.indices() if reader.present(index)}
        layout = _cut(planned, there)
        check_target(target, _of_tiff(layout))
        planes = list(_planes(layout))
        missing = [shown(index) for index in planes if layout.locate(index) not in there]
        crcs: list[int] = []

        def pixels() -> Iterator[Pixels]:
            for done, index in enumerate(planes, start=1):
                plane: Pixels = (
                    reader.read(index)
                    if layout.locate(index) in there
                    else np.zeros(layout.frame_shape, layout.dtype)
                )
                crcs.append(zlib.crc32(plane.data))
                tell(done, 2 * len(planes))
                yield plane

        def check(path: Path) -> None:
            _check(path, layout, planes, crcs, lambda done: tell(len(planes) + done, 2 * len(planes)))

        write_image(
            target,
            _of_tiff(layout),
            pixels(),
            statement=_statement(provenance),
            annotation=annotation(Noted(layout, missing, provenance)),
            check=check,
        )
    return Converted(len(planes), len(missing))


def _check(
    path: Path,
    layout: VolumeLayout,
    planes: list[dict[str, int]],
    crcs: list[int],
    tell: Callable[[int], None],
) -> None:
    """Read an OME-TIFF back, and compare it with what was to be written."""
    source = TiffSource(path)
    try:
        if sum(1 for _ in source.indices()) != len(planes):
            raise StoreError(f"{path} has other planes than were written: is the disk in order?")
        if _noted(source, path).layout != layout:
            raise StoreError(f"{path} has another description than was written: is the disk in order?")
        for done, (index, crc) in enumerate(zip(planes, crcs, strict=True), start=1):
            plane = source.read(_page(layout, index))
            if plane is None or zlib.crc32(plane.data) != crc:
                raise StoreError(
                    f"plane {index} of {path} differs from what was written: is the disk in order?"
                )
            tell(done)
    finally:
        source.close()


def _cut(layout: VolumeLayout, there: set[tuple[int, tuple[int, ...]]]) -> VolumeLayout:
    """Without the times after the last frame: a run that was cancelled has no black end."""
    names = [axis.name for axis in layout.index_axes]
    if "t" not in names or not there:
        return layout
    i = names.index("t")
    last = max(where[i] for _, where in there)
    return replace(layout, axes=tuple(replace(a, size=last + 1) if a.name == "t" else a for a in layout.axes))


def _page_axes(layout: VolumeLayout) -> list[Axis]:
    """The axes that number planes, in the order of the pages: cameras go beside channels."""
    axes = [axis for axis in layout.index_axes if axis.name != CAMERA]
    cameras = [axis for axis in layout.index_axes if axis.name == CAMERA]
    names = [axis.name for axis in axes]
    at = names.index("c") + 1 if "c" in names else names.index("t") + 1 if "t" in names else 0
    return axes[:at] + cameras + axes[at:]


def _planes(layout: VolumeLayout) -> Iterator[dict[str, int]]:
    """The volume's index of every page, in the order of the pages."""
    axes = _page_axes(layout)
    for p in range(max(len(layout.positions), 1)):
        prefix = {POSITION: p} if layout.positions else {}
        for at in itertools.product(*(range(axis.size or 0) for axis in axes)):
            yield prefix | dict(zip((axis.name for axis in axes), at, strict=True))


def _of_tiff(layout: VolumeLayout) -> VolumeLayout:
    """With cameras as channels, and a mere sequence of pages as time."""
    axes: list[Axis] = []
    names = layout.channel_names
    for axis in (_named(axis) for axis in _page_axes(layout)):
        if axis.name != CAMERA:
            axes.append(axis)
            continue
        n = axis.size or 1
        if axes and axes[-1].name == "c":
            axes[-1] = replace(axes[-1], size=(axes[-1].size or 1) * n)
            names = tuple(f"{name} {CAMERA}{i}" for name in names for i in range(n))
        else:
            axes.append(replace(axis, name="c", type="channel"))
            names = tuple(f"{CAMERA}{i}" for i in range(n))
    return replace(layout, axes=(*axes, *layout.frame_axes), channel_names=names)


def _named(axis: Axis) -> Axis:
    return replace(axis, name="t", type="time") if axis.name in PAGES else axis


def _page(layout: VolumeLayout, place: Mapping[str, int]) -> dict[str, int]:
    """Where the frame of the volume at `place` lies in the OME-TIFF."""
    index = {"t" if name in PAGES else str.__str__(name): i for name, i in place.items()}
    if any(axis.name == CAMERA for axis in layout.index_axes):
        n = next(axis.size or 1 for axis in layout.index_axes if axis.name == CAMERA)
        index["c"] = index.get("c", 0) * n + index.pop(CAMERA)
    return index


# ---------------------------------------------------------------------------------------- to a volume


def _to_volume(file: Path, target: Path, tell: Progress) -> Converted:
    source = TiffSource(file)
    try:
        noted = _noted(source, file)
        planes = list(_planes(noted.layout))
        left_out = {noted.layout.locate(index) for index in noted.missing}
        store = SRStore.create(target, noted.layout, provenance=noted.provenance)
        try:
            for seq, index in enumerate(planes):
                pixels = source.read(_page(noted.layout, index))
                if pixels is None or noted.layout.locate(index) in left_out:
                    store.note_failure(seq, index, f"not in {file.name}", status="skipped")
                else:
                    store.write(seq, index, pixels)
                    if not np.array_equal(store.read(index), pixels):
                        raise StoreError(f"frame {index} of {target} differs from what was written")
                tell(seq + 1, len(planes))
        finally:
            counts = {"frames": len(planes), "written": store.written, "missing": len(left_out)}
            whole = store.written + len(left_out) == len(planes)
            store.close(counts, str(noted.provenance.get("status", "complete")) if whole else "incomplete")
    finally:
        source.close()
    return Converted(len(planes), len(left_out))


def _statement(provenance: Mapping[str, Any]) -> str:
    model = provenance["model"]
    return (
        f"{provenance.get('statement', '')} Source: {provenance.get('raw') or 'not stored'}. Model: "
        f"{model['id']}, sha256 {model['sha256']}, x{model['scale']}. Software: live-sr {__version__}."
    )


def _noted(source: TiffSource, path: Path) -> Noted:
    try:
        return msgspec.json.decode((source.annotation or {})["volume"], type=Noted)
    except (KeyError, msgspec.DecodeError) as e:
        raise InputError(
            f"{path} has no description of the volume it was made of, and cannot become one again: take the "
            "raw data"
        ) from e
