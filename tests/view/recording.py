"""A run as an acquisition leaves it: a raw volume by ome-writers, ours beside it, and both told on a feed."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ome_writers import AcquisitionSettings, Channel, Dimension, create_stream

from live_sr.client.feed import Feed, FeedStatus, FrameInfo, SequenceStatus, ServerStatus
from live_sr.client.store import SRStore
from live_sr.client.volume import read_layout

SHAPE = (24, 32)
SCALE = 4
PIXEL_UM = 0.016
SHA256 = "c0ffee" * 10 + "beef"
CHANNELS = ("BSE", "SE")


def planes(
    place: dict[str, int], shape: tuple[int, int] = SHAPE
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Raw and super-resolved pixels of a place: no two alike, and the one is the other enlarged."""
    t, c = place.get("t", 0), place.get("c", 0)
    raw = np.full(shape, 1000 + 100 * t + 10 * c, np.uint16)
    raw[4:8, 20:28] = 5000  # off centre, so that position and orientation show
    raw[0, 0] = t
    return raw, np.repeat(np.repeat(raw, SCALE, 0), SCALE, 1)


class Recording:
    """Writes frames in order of t, then c, and shows them.

    Parameters
    ----------
    t : int or None
        Planned times; None for no known end.
    raw, sr : bool or Path
        Whether it is told that this is saved, and where, if not where it is.
    """

    def __init__(
        self,
        folder: Path,
        feed: Feed,
        *,
        session: str = "recording",
        t: int | None = 8,
        channels: tuple[str, ...] = CHANNELS,
        raw: bool | Path = True,
        sr: bool = True,
        shape: tuple[int, int] = SHAPE,
    ) -> None:
        self.feed = feed
        self.session = session
        self.channels = channels
        self.shape = shape
        self.raw_path, self.sr_path = folder / f"{session}.raw.ome.zarr", folder / f"{session}.sr.ome.zarr"
        self.t = t
        self.n = 0
        self.number = 1
        y, x = shape
        space = {"type": "space", "scale": PIXEL_UM, "unit": "micrometer"}
        named = [Channel(name=name) for name in channels]
        self._stream = create_stream(
            AcquisitionSettings(
                root_path=str(self.raw_path),
                dimensions=(
                    Dimension(name="t", count=t, type="time", chunk_size=1, scale=2.0, unit="second"),
                    Dimension(name="c", type="channel", chunk_size=1, count=len(named), coords=named),
                    Dimension(name="y", count=y, chunk_size=y, **space),
                    Dimension(name="x", count=x, chunk_size=x, **space),
                ),
                dtype="uint16",
                format="tensorstore",
            )
        )
        self._raw_told = str(raw if isinstance(raw, Path) else self.raw_path) if raw else ""
        self._sr_told = str(self.sr_path) if sr else ""
        layout = read_layout(self.raw_path)
        if t is None:
            layout = replace(layout, axes=(replace(layout.axes[0], size=None), *layout.axes[1:]))
        self.store = SRStore.create(
            self.sr_path,
            layout.scaled(SCALE),
            provenance={"session": session, "model": {"id": "em-x4", "sha256": SHA256, "scale": SCALE}},
        )

    def place(self, n: int) -> dict[str, int]:
        t, c = divmod(n, len(self.channels))
        return {"t": t, "c": c}

    def acquire(self, *, returned: bool = True) -> dict[str, int]:
        """The next frame, shown with its super-resolved image, or raw alone when it has not `returned`."""
        place = self.place(self.n)
        raw, sr = planes(place, self.shape)
        self._stream.append(raw)
        if returned:
            self.store.write(self.n, place, sr, {"raw_crc32": zlib.crc32(raw.data), "latency_ms": 12.0})
            self.feed.show_pair(self.info(self.n, place), raw, sr)
        else:
            self.feed.show_raw(self.info(self.n, place), raw)
        self.n += 1
        return place

    def restore(self, n: int) -> None:
        """A deferred frame comes back."""
        raw, sr = planes(self.place(n), self.shape)
        self.store.write(n, self.place(n), sr, {"raw_crc32": zlib.crc32(raw.data), "deferred": True})

    def info(self, seq: int, place: dict[str, int], **changes: Any) -> FrameInfo:
        given: dict[str, Any] = {
            "session": self.session,
            "seq": seq,
            "captured_ns": time.monotonic_ns() - 10**9,  # old enough never to hold a raw frame back
            "index": place,
            "place": place,
            "run": self.number,
            "channel": self.channels[place.get("c", 0)],
            "pixel_size_um": PIXEL_UM,
            "model": "em-x4",
            "scale": SCALE,
            **changes,
        }
        return FrameInfo(**given)

    def status(self, state: str = "running", **changes: Any) -> None:
        given: dict[str, Any] = {
            "session": self.session,
            "state": "acquiring" if state == "running" else "finished",
            "server": ServerStatus("ready", model="em-x4", device="cpu", precision="float32"),
            "sequence": SequenceStatus(
                number=self.number,
                axes={"t": self.t or max(1, -(-self.n // len(self.channels))), "c": len(self.channels)},
                channels=self.channels,
                raw_path=self._raw_told,
                sr_path=self._sr_told,
                state=state,  # type: ignore[arg-type]
            ),
            **changes,
        }
        self.feed.status(FeedStatus(**given))

    def close(self) -> None:
        self._stream.close()
        self.store.close({"saved": self.n}, "complete")

    def __enter__(self) -> Recording:
        self.status()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
