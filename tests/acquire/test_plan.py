"""Plans against what pymmcore-plus' own sink really writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import useq
from pymmcore_plus import CMMCorePlus

from live_sr.acquire.plan import Plan, plan_frame, plan_run
from live_sr.acquire.raw import open_raw
from live_sr.client.volume import read_layout
from live_sr.frame import Pixels
from rig import SEQUENCES, SHAPE, mmc, use_two_cameras  # noqa: F401  mmc is a fixture

Acquired = tuple[Plan, list[tuple[Pixels, useq.MDAEvent]]]


def acquire(core: CMMCorePlus, events: Iterable[useq.MDAEvent], path: Path) -> Acquired:
    """Run `events` into `path`; the plan made at the start, and each frame as it was delivered."""
    plans: list[Plan] = []
    frames: list[tuple[Pixels, useq.MDAEvent]] = []

    def start(sequence: useq.MDASequence, meta: dict[str, Any]) -> None:
        plans.append(plan_run(sequence, meta))

    def take(img: Pixels, event: useq.MDAEvent) -> None:
        frames.append((img.copy(), event))

    core.mda.events.sequenceStarted.connect(start)
    core.mda.events.frameReady.connect(take)
    core.run_mda(events, output=path, block=True)
    return plans[0], frames


def assert_as_planned(acquired: Acquired, path: Path) -> None:
    plan, frames = acquired
    raw = open_raw(path, plan)
    places = set()
    for n, (pixels, event) in enumerate(frames):
        place = plan.place(event, n)
        found = raw.read(place)
        assert found is not None, f"frame {n} is not at {place}"
        np.testing.assert_array_equal(found, pixels, err_msg=f"frame {n} at {place}")
        places.add(tuple(sorted(place.items())))
    raw.close()
    assert len(places) == len(frames) > 1
    assert plan.n_frames in (None, len(frames))


def assert_layout(plan: Plan, path: Path) -> None:
    found = read_layout(path)
    assert plan.layout.mismatch(found) is None
    assert [a.scale or 1.0 for a in plan.layout.axes] == [a.scale or 1.0 for a in found.axes]  # 1 where unknown
    assert [a.unit for a in plan.layout.axes[-2:]] == [a.unit for a in found.axes[-2:]]


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_frame_lies_where_the_plan_says(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    path = tmp_path / "raw.ome.zarr"
    plan, frames = acquire(mmc, SEQUENCES[name], path)
    assert_as_planned((plan, frames), path)
    assert_layout(plan, path)
    assert plan.frame_shape == SHAPE
    assert plan.regular == (not name.startswith("not at every"))
    assert plan.in_order == name.startswith(("not at every", "one position with its own grid"))


@pytest.mark.parametrize("name", ["t c z", "z fastest but c", "positions", "well plate"])
def test_pages_of_ome_tiff_lie_in_the_order_of_acquisition(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    acquired = acquire(mmc, SEQUENCES[name], tmp_path / "raw.ome.tiff")
    single = tmp_path / "raw.ome.tiff"
    assert_as_planned(acquired, single if single.exists() else tmp_path / "raw")


def test_a_generator_is_stored_in_the_order_of_arrival(mmc: CMMCorePlus, tmp_path: Path) -> None:
    path = tmp_path / "raw.ome.zarr"
    plan, frames = acquire(mmc, iter(list(SEQUENCES["t c z"])), path)
    assert not plan.regular
    assert plan.n_frames is None
    assert_as_planned((plan, frames), path)
    assert_layout(plan, path)


@pytest.mark.filterwarnings(
    "ignore:Multi-camera acquisition combined:UserWarning"
)  # pymmcore-plus, about OME names
@pytest.mark.parametrize("name", ["t", "t c", "positions", "generator"])
def test_two_cameras_make_an_axis_of_their_own(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    use_two_cameras(mmc)
    path = tmp_path / "raw.ome.zarr"
    events = iter(list(SEQUENCES["t"])) if name == "generator" else SEQUENCES[name]
    plan, frames = acquire(mmc, events, path)
    assert [a.name for a in plan.layout.axes][-3:] == ["cam", "y", "x"]
    assert_as_planned((plan, frames), path)
    assert_layout(plan, path)


def test_a_run_of_which_only_a_frame_is_known_is_planned_as_endless() -> None:
    plan = plan_frame(np.zeros((5, 7), np.uint8), {"pixel_size_um": 0.5})
    assert [(a.name, a.size) for a in plan.layout.axes] == [("t", None), ("y", 5), ("x", 7)]
    assert (plan.n_frames, plan.dtype, plan.pixel_size_um) == (None, "uint8", 0.5)
    assert plan.place(useq.MDAEvent(), 3) == {"t": 3}
