"""The view of the super-resolved stream, next to pymmcore-plus' own view of the raw one."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymmcore_plus import CMMCorePlus
from useq import MDAEvent, MDASequence

from live_sr import LiveSR
from live_sr.acquire.mda_view import MDAView, SeenFrames
from live_sr.acquire.plan import plan_run
from live_sr.errors import StoreError
from live_sr.frame import Pixels
from live_sr.upscaler import bilinear
from rig import RUNS, SCALE, SHAPE, WAIT_S, Gated, events_of, mmc, serving  # noqa: F401  mmc is a fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning"),
]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "one position with its own grid"])
def test_it_has_axes_labels_and_frames_of_the_view_of_raw(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    events = events_of(name, mmc)
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.zarr") as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(events, output=tmp_path / "raw.ome.zarr", block=True)
    raw: Any = mmc.mda.get_view()
    view = sr.mda_view()
    assert raw is not None
    assert view is not None
    assert view.dims == raw.dims
    assert view.dtype == raw.dtype
    n = raw.ndim - 2
    assert view.shape == (*raw.shape[:n], *(SCALE * edge for edge in SHAPE))
    for d in view.dims[:n]:  # a grid point of ours has its row and column in its name
        both = zip(view.coords[d], raw.coords[d], strict=True)
        assert all(str(mine).startswith(str(theirs)) for mine, theirs in both)
    for at in np.ndindex(raw.shape[:n]):
        np.testing.assert_array_equal(view[at], bilinear(raw[at], SCALE), err_msg=str(at))


def test_it_grows_with_the_frames_that_are_there(mmc: CMMCorePlus, tmp_path: Path) -> None:
    gate, came = Gated(), queue.Queue[None]()
    with serving(gate) as server, LiveSR(server.address, save=tmp_path / "sr.ome.zarr") as sr:
        assert sr.mda_view() is None
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda: came.put(None))
        sequence = MDASequence(channels=["DAPI", "FITC"], time_plan={"interval": 0, "loops": 3})
        mmc.run_mda(sequence, output=tmp_path / "raw.ome.zarr", block=True)
        view = sr.mda_view()
        assert view is not None
        edges = tuple(SCALE * edge for edge in SHAPE)
        assert view.shape == (0, 0, *edges)
        grown: queue.Queue[tuple[int, ...]] = queue.Queue()
        view.coords_changed.connect(lambda: grown.put(view.shape))
        assert not view[2, 1].any(), "within the sequence, and not there yet"
        gate.permit()
        came.get(timeout=WAIT_S)
        assert grown.get(timeout=WAIT_S) == view.shape
        assert 0 not in view.shape
        assert np.asarray(view).shape == view.shape
        gate.open()
    assert view.shape == (3, 2, *edges)
    assert view[0, 0].any()


def test_without_saving_the_newest_frames_are_kept_in_memory(mmc: CMMCorePlus) -> None:
    got: dict[int, Pixels] = {}
    with serving() as server, LiveSR(server.address) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda img, event: got.update({event.index["t"]: img}))
        mmc.run_mda(MDASequence(time_plan={"interval": 0, "loops": 4}), block=True)
    view = sr.mda_view()
    assert view is not None
    assert view.sizes == {"t": 4, "y": SCALE * SHAPE[0], "x": SCALE * SHAPE[1]}
    np.testing.assert_array_equal(view[:], np.stack([got[t] for t in range(4)]))


# ------------------------------------------------------------------------------- indexing, without a microscope


def seen(max_bytes: int = 1 << 20) -> SeenFrames:
    """(t, c) of 2 x 2 frames whose pixels say where they belong; the last two of six are not there."""
    sequence = MDASequence(axis_order="tc", channels=["A", "B"], time_plan={"interval": 0, "loops": 3})
    info = {"height": 1, "width": 1, "dtype": "uint16", "pixel_size_um": 0.0}
    frames = SeenFrames(plan_run(sequence, {"image_infos": [info]}), 2, None, max_bytes)
    for t, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
        frames.add({"t": t, "c": c}, np.full((2, 2), 10 * t + c + 1, np.uint16))
    return frames


WHOLE = np.array([[1, 2], [11, 12]], np.uint16)[:, :, None, None] * np.ones((2, 2), np.uint16)


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        (1, 0),
        (slice(None), 1),
        (0, slice(None, None, -1)),
        (slice(1, None), slice(0, 1), 1),
        (1, 1, slice(0, 1), -1),
        slice(0, 0),
        np.int64(1),
    ],
    ids=str,
)
def test_it_is_indexed_as_an_array_is(key: Any) -> None:
    view = MDAView(seen())
    found, expected = view[key], WHOLE[key]
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert (len(view), view.ndim) == (2, 4)


def test_what_is_not_there_yet_reads_as_zeros_and_what_never_can_be_is_an_error() -> None:
    view = MDAView(seen())
    np.testing.assert_array_equal(view[2, 1], np.zeros((2, 2)))
    for key in (3, (0, 2), -3):
        with pytest.raises(IndexError, match="out of bounds"):
            view[key]
    with pytest.raises(IndexError, match="too many"):
        view[0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="copy"):
        np.asarray(view, copy=False)
    assert np.asarray(view, dtype=np.float32).dtype == np.float32


def test_frames_past_the_bound_of_memory_are_an_error_that_says_what_to_do() -> None:
    view = MDAView(seen(max_bytes=2 * 8))
    np.testing.assert_array_equal(view[1], WHOLE[1])
    with pytest.raises(StoreError, match="save="):
        view[0, 1]


def test_a_frame_larger_than_the_bound_can_be_looked_at() -> None:
    view = MDAView(seen(max_bytes=1))
    assert view[1, 1].any()


def test_a_later_run_releases_the_memory_of_an_earlier_one(mmc: CMMCorePlus) -> None:
    sequence = MDASequence(time_plan={"interval": 0, "loops": 2})
    with serving() as server, LiveSR(server.address) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(sequence, block=True)
        mmc.run_mda(iter([MDAEvent(index={"t": 0})]), block=True)
    first = sr._runs[0].seen
    assert first is not None
    assert first.sizes == (2,)
    with pytest.raises(StoreError, match="latest run"):
        MDAView(first)[1]
