"""What a sequence will look like on disk, found the way pymmcore-plus' own sink finds it. Writes nothing.

Raw and super-resolved volumes overlay only when both have the same axes; so this follows the sink, including
its fall-back to an unbounded ``(t, y, x)`` for generators and ragged sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ome_writers import Dimension, Plate, useq_to_acquisition_settings
from useq import HardwareAutofocus, MDAEvent, MDASequence

from live_sr.client.volume import VolumeLayout, from_dimensions, mixed_up
from live_sr.errors import InputError

Place = dict[str, int]
Order = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The raw volume of one run.

    Attributes
    ----------
    layout : VolumeLayout
        Axes, sizes, pixel size and dtype of the raw volume.
    colors : int
        Values of each pixel; only 1 can be restored.
    n_frames : int or None
        Frames of the whole sequence; None when it has no known end.
    regular : bool
        False for generators and ragged sequences, stored as ``(t, y, x)`` in order of arrival.
    in_order : bool
        Frames lie in the order of arrival, whatever their events say.
    place : callable
        ``(event, n) -> place``: where the run's `n`-th frame lies in the volume.
    order : tuple of (axis, size)
        The axes that number frames, in the order of acquisition, slowest first.
    mixed : bool
        What lies beside a frame may be of another channel or position, and raw will not tell.
    """

    layout: VolumeLayout
    n_frames: int | None
    frame_shape: tuple[int, int]
    colors: int
    dtype: str
    pixel_size_um: float
    regular: bool
    in_order: bool
    place: Callable[[MDAEvent, int], Place]
    order: Order
    mixed: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one raw frame."""
        y, x = self.frame_shape
        return y * x * np.dtype(self.dtype).itemsize


def plan_run(sequence: MDASequence, meta: dict[str, Any]) -> Plan:
    """Plan the volume of `sequence`, given the summary metadata of ``sequenceStarted``.

    Raises
    ------
    InputError
        When the metadata name no image.
    """
    infos = meta.get("image_infos") or ()
    if not infos:
        raise InputError(
            "the engine's summary metadata name no image: its setup_sequence must return image_infos"
        )
    info = infos[0]
    shape = (int(info["height"]), int(info["width"]))
    pixel_size_um = float(info.get("pixel_size_um") or 0.0)
    dims: list[Dimension] | None = None
    plate: Plate | None = None
    # GeneratorMDASequence, pymmcore-plus' placeholder for events of unknown number, has no axes at all.
    if sequence.axis_order:
        try:
            settings = useq_to_acquisition_settings(
                sequence, image_width=shape[1], image_height=shape[0], pixel_size_um=pixel_size_um
            )
            dims, plate = list(settings["dimensions"]), settings["plate"]
        except NotImplementedError:  # ragged: the sink falls back, and warns
            dims = None
    regular = dims is not None
    if dims is None:
        dims = _unbounded(shape, pixel_size_um)
    n_cameras = int(info.get("num_camera_adapter_channels", 1))
    if n_cameras > 1:
        dims.insert(len(dims) - 2, Dimension(name="cam", count=n_cameras, type="other"))
    layout = from_dimensions(dims, str(np.dtype(info["dtype"])), plate=plate)
    counts = [d.count for d in dims[:-2]]
    n_frames = None if any(c is None for c in counts) else math.prod(c for c in counts if c is not None)
    order = tuple((d.name, d.count) for d in dims[:-2])
    by_index = _place_by_index(sequence, order) if regular else None
    return Plan(
        layout=layout,
        n_frames=n_frames,
        frame_shape=shape,
        colors=math.prod(info.get("plane_shape", shape)[2:]),
        dtype=str(np.dtype(info["dtype"])),
        pixel_size_um=pixel_size_um,
        regular=regular,
        in_order=by_index is None,
        place=by_index or _place_by_order(order),
        order=order,
        mixed=by_index is None or mixed_up(layout, _as_written(meta)),
    )


def plan_frame(pixels: NDArray[np.generic], meta: dict[str, Any]) -> Plan:
    """Plan an endless ``(t, y, x)`` volume from a run's first frame, where nothing else is known."""
    info = {
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "dtype": pixels.dtype.name,
        "pixel_size_um": meta.get("pixel_size_um"),
    }
    return plan_run(MDASequence(axis_order=()), {"image_infos": [info]})


def _as_written(meta: dict[str, Any]) -> dict[str, Any]:
    """The part of the summary metadata that says what the sequence is, as the sink stores it."""
    sequence = meta.get("mda_sequence")
    if isinstance(sequence, MDASequence):
        sequence = sequence.model_dump(mode="json", exclude_unset=True)
    return {"summary_metadata": {"mda_sequence": sequence}}


def _unbounded(shape: tuple[int, int], pixel_size_um: float) -> list[Dimension]:
    """The sink's fall-back: an endless t axis."""
    y, x = shape
    scale = pixel_size_um or None
    return [
        Dimension(name="t", count=None, chunk_size=1, type="time"),
        Dimension(name="y", count=y, chunk_size=y, type="space", scale=scale, unit="micrometer"),
        Dimension(name="x", count=x, chunk_size=x, type="space", scale=scale, unit="micrometer"),
    ]


def _place_by_order(order: Order) -> Callable[[MDAEvent, int], Place]:
    def place(event: MDAEvent, n: int) -> Place:
        found: Place = {}
        for axis, size in reversed(order):
            n, found[axis] = divmod(n, size) if size is not None else (0, n)
        return found

    return place


def _place_by_index(sequence: MDASequence, order: Order) -> Callable[[MDAEvent, int], Place] | None:
    """None where the sink, which goes by order alone, puts frames elsewhere than their index says."""
    names = [name for name, _ in order]
    if "p" not in names:
        return lambda event, n: {name: int(event.index.get(name, 0)) for name in names}
    # Positions and their grid points share one position axis, numbered in the order of their first visit.
    visits = sequence.replace(time_plan=None, channels=[], z_plan=None)
    numbers: dict[tuple[int, int], int] = {}
    for visit in visits:
        numbers.setdefault((visit.index.get("p", 0), visit.index.get("g", 0)), len(numbers))

    def place(event: MDAEvent, n: int) -> Place:
        found = {name: int(event.index.get(name, 0)) for name in names}
        found["p"] = numbers[event.index.get("p", 0), event.index.get("g", 0)]
        return found

    return place if _visited_in_order(sequence, order, place) else None


def _visited_in_order(sequence: MDASequence, order: Order, place: Callable[[MDAEvent, int], Place]) -> bool:
    """A position's own grid comes innermost, within channels and z; the sink expects it beside positions."""
    if not any(getattr(p, "sequence", None) for p in sequence.stage_positions):
        return True  # the axes are gone through one within the other
    axes = [name for name, _ in order if name not in ("t", "cam")]
    events = (e for e in sequence.replace(time_plan=None) if not isinstance(e.action, HardwareAutofocus))
    found = [tuple(place(event, 0)[name] for name in axes) for event in events]
    return found == sorted(found)
