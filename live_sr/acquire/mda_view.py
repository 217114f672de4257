"""An array-like view of a run's super-resolved frames, as ``core.mda.get_view()`` is one of the raw frames.

It reads what is saved where something is saved; otherwise it looks at the newest frames, kept in memory up to a
bound in bytes. Knows neither how frames come back nor who looks.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from live_sr.acquire.listeners import Signal
from live_sr.acquire.plan import Place, Plan
from live_sr.client.volume import shown
from live_sr.errors import StoreError
from live_sr.frame import Pixels

KEPT_BYTES = 512 * 2**20  # of frames that are saved nowhere: 64 of 2048²
At = tuple[int, ...]
"""Where a frame lies, in the order of acquisition."""


class SeenFrames:
    """The frames of one run that have come back. Thread-safe.

    Parameters
    ----------
    read_back : callable or None
        ``(place) -> pixels``: reads a frame that was saved; None where nothing is, and frames are kept here.
    max_bytes : int
        For those; past it the oldest are forgotten.
    """

    def __init__(
        self,
        plan: Plan,
        scale: int,
        read_back: Callable[[Place], Pixels] | None,
        max_bytes: int = KEPT_BYTES,
    ) -> None:
        self.plan = plan
        y, x = plan.frame_shape
        self.frame_shape = (y * scale, x * scale)
        self.grown = Signal(0)
        self._axes = [axis for axis, _ in plan.order]
        self._read_back = read_back
        self._max_bytes = max_bytes
        self._keeping = read_back is None
        self._lock = threading.Lock()
        self._sizes = [0] * len(self._axes)
        self._there: set[At] = set()
        self._kept: OrderedDict[At, Pixels] = OrderedDict()
        self._bytes = 0

    def add(self, place: Place, pixels: Pixels) -> None:
        """A frame came back, and was saved where frames are."""
        at = tuple(place.get(axis, 0) for axis in self._axes)
        with self._lock:
            before = list(self._sizes)
            self._there.add(at)
            self._sizes = [max(n, i + 1) for n, i in zip(before, at, strict=True)]
            if self._keeping:
                self._keep(at, pixels)
            grown = self._sizes != before
        if grown:
            self.grown.emit()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Along each axis that numbers frames: up to the last that is there."""
        return tuple(self._sizes)

    def get(self, at: At) -> Pixels | None:
        """The frame there; None where it has not come back (yet).

        Raises
        ------
        StoreError
            When it came back, and is neither saved nor in memory any more; or it cannot be read.
        """
        with self._lock:
            if at not in self._there:
                return None
            kept = self._kept.get(at)
        place = dict(zip(self._axes, at, strict=True))
        if kept is None and self._read_back is None:
            raise StoreError(
                f"frame {shown(place)} is no longer in memory, only the newest {KEPT_BYTES >> 20} MB of the "
                "latest run are: give LiveSR a save= target to look back further"
            )
        return kept if kept is not None else cast("Callable[[Place], Pixels]", self._read_back)(place)

    def release(self) -> None:
        """Forget what is kept in memory: another run begins."""
        with self._lock:
            self._keeping = False  # frames of it may still come
            self._kept.clear()

    def _keep(self, at: At, pixels: Pixels) -> None:
        self._kept[at] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


class MDAView:
    """Read only; the interface of ``ome_writers.StreamView``, which ``core.mda.get_view()`` returns.

    Axes are in the order of acquisition, positions among them. The shape grows with the frames that are there;
    those in between that are not there (yet) read as zeros, and so does an integer index past the shape but
    within the sequence. Negative indices and slices go by the present shape, so that ``view[-1]`` is the newest
    along the first axis and ``numpy.asarray(view).shape == view.shape``.

    It is meant for looking at frames one by one. ``numpy.asarray(view)`` brings all of them into memory.
    """

    def __init__(self, frames: SeenFrames) -> None:
        self._frames = frames
        self._order = frames.plan.order

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return (*(axis for axis, _ in self._order), "y", "x")

    @property
    def shape(self) -> tuple[int, ...]:
        """As far as frames are there."""
        return (*self._frames.sizes, *self._frames.frame_shape)

    @property
    def sizes(self) -> dict[str, int]:
        """Shape by name of the axis."""
        return dict(zip(self.dims, self.shape, strict=True))

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the raw frames."""
        return np.dtype(self._frames.plan.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._order) + 2

    @property
    def coords(self) -> Mapping[Hashable, Sequence[Any]]:
        """Labels along each axis: names of channels and positions, otherwise numbers."""
        layout = self._frames.plan.layout
        names = {"c": layout.channel_names, "p": tuple(position.name for position in layout.positions)}
        return {axis: list(names[axis][:n]) if names.get(axis) else range(n) for axis, n in self.sizes.items()}

    @property
    def coords_changed(self) -> Signal:
        """``connect(callback)``: called, without arguments and on a thread of its own, when the shape grows."""
        return self._frames.grown

    def __getitem__(self, key: SupportsIndex | slice | tuple[SupportsIndex | slice, ...]) -> NDArray[Any]:
        """Frames, or parts of them, by integers and slices.

        Raises
        ------
        IndexError
            When there are too many indices, or one lies outside the sequence.
        TypeError
            For other kinds of index.
        StoreError
            When a frame that came back is no longer in memory, or cannot be read.
        """
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > self.ndim:
            raise IndexError(f"too many indices: the view has {self.ndim} axes {self.dims}, got {len(keys)}")
        keys += (slice(None),) * (self.ndim - len(keys))
        sizes = self._frames.sizes
        n = len(sizes)
        wanted = [
            self._positions(k, size, *axis) for k, size, axis in zip(keys[:n], sizes, self._order, strict=True)
        ]
        window = keys[n:]
        inside: NDArray[Any] = np.zeros(self._frames.frame_shape, self.dtype)[window]
        found = np.zeros((*(len(w) for w in wanted), *inside.shape), self.dtype)
        for to in itertools.product(*(range(len(w)) for w in wanted)):
            frame = self._frames.get(tuple(w[i] for w, i in zip(wanted, to, strict=True)))
            if frame is not None:
                found[to] = frame[window]
        one: NDArray[Any] = found[tuple(slice(None) if isinstance(k, slice) else 0 for k in keys[:n])]
        return one

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the view has no array to share: leave copy=False out")
        array: NDArray[Any] = self[:]
        return array.astype(dtype) if dtype is not None else array

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis}: {n}" for axis, n in self.sizes.items())
        return f"MDAView({axes}; {self.dtype})"

    @staticmethod
    def _positions(key: SupportsIndex | slice, size: int, axis: str, planned: int | None) -> Sequence[int]:
        if isinstance(key, slice):
            return range(*key.indices(size))
        i = key.__index__()
        if i < 0:
            i += size
        if i < 0 or i >= (size if planned is None else max(size, planned)):
            raise IndexError(f"index {key} is out of bounds for axis {axis!r} with size {size}")
        return (i,)
