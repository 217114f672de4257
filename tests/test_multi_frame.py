"""Whole runs with a model that sees several frames at once: live, late and from files the same pixels.

As in ``test_end_to_end``: Micro-Manager's demo camera, pymmcore-plus, a real server, real files.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import useq
from numpy.typing import NDArray
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.mda import SkipEvent

from conftest import ServerProcess
from live_sr import LiveSR
from live_sr.archive.enhance import enhance
from live_sr.client import journal
from live_sr.client.journal import journal_path
from live_sr.client.link import RemoteUpscaler
from live_sr.client.volume import VolumeReader
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.model.unet import NetworkSettings, SuperResolver
from live_sr.upscaler import Bilinear, Upscaler, bilinear
from rig import (  # noqa: F401  mmc is a fixture
    SCALE,
    SEQUENCES,
    SHAPE,
    WAIT_S,
    Gated,
    events_of,
    mmc,
    sampled,
    serving,
)
from series import seen
from test_end_to_end import Faulty, assert_clean, frames, nobody, paths
from tiny import record_of

pytestmark = [pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning")]


# Along which axis the neighbours lie; None where nobody knows what lies beside a frame, or there is no axis.
AXES: dict[str, str | None] = {
    **dict.fromkeys(SEQUENCES, "t"),
    "t c z": "z",
    "z fastest but c": "z",
    "positions with grid": None,
    "one position with its own grid": None,
    "well plate": None,
    "not at every time": None,
    "not at every z": None,
    "generator": None,
    "two cameras": "t",
    "two cameras and positions": "t",
}


def expected(raw: Path, axis: str | None, frames: int) -> dict[tuple[tuple[str, int], ...], NDArray[Any]]:
    """What the stand-in makes of each frame on disk, by the definition; no frame is missing."""
    with VolumeReader(raw) as reader:
        indices = list(reader.indices())
        low = {tuple(index.items()): reader.read(index) for index in indices}
    made = {}
    for index in indices:
        around = [index] * frames
        if axis is not None:
            n = 1 + max(other[axis] for other in indices)
            around = [{**index, axis: i} for i in seen(index[axis], frames, range(n))]
        stack = np.stack([low[tuple(beside.items())] for beside in around])
        made[tuple(index.items())] = bilinear(stack, SCALE)
    return made


def assert_restored(raw: Path, sr: Path, axis: str | None, frames: int) -> None:
    wanted = expected(raw, axis, frames)
    with VolumeReader(sr) as high:
        for at, pixels in wanted.items():
            np.testing.assert_array_equal(high.read(dict(at)), pixels, err_msg=str(at))


def assert_same_offline(raw: Path, sr: Path, upscaler: Upscaler) -> None:
    """`live-sr enhance` into a new volume gives the same pixels, and notes the same neighbours."""
    offline = sr.with_name("offline.ome.zarr")
    report = enhance(raw, offline, upscaler)
    with VolumeReader(sr) as live, VolumeReader(offline) as later:
        present = [i for i in live.indices() if live.present(i)]
        assert len(present) == report.written > 1
        for index in present:
            np.testing.assert_array_equal(live.read(index), later.read(index), err_msg=str(index))
    a, b = (
        {
            tuple(sorted(e.place.items())): e.used
            for e in journal.read(journal_path(v)).frames.values()
            if e.used
        }
        for v in (sr, offline)
    )
    assert a == b


# --------------------------------------------------------------------------------- live


@pytest.mark.parametrize("name", AXES)
def test_each_frame_is_restored_with_its_neighbours_and_no_others(
    mmc: CMMCorePlus, tmp_path: Path, name: str
) -> None:
    raw, sr_path = paths(tmp_path)
    events = events_of(name, mmc)
    model = Bilinear(SCALE, frames=3)
    with serving(model) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(events, output=raw, block=True)
        acquired = sr.counts.acquired
        report = sr.close()
    assert_clean(report, acquired)
    with VolumeReader(raw) as reader:
        assert reader.mixed == sr._runs[0].plan.mixed
    assert any("restored from itself alone" in text for text in report.warnings) == (AXES[name] is None)
    assert_restored(raw, sr_path, AXES[name], 3)
    assert_same_offline(raw, sr_path, model)


def test_a_model_of_time_points_looks_along_time_in_a_stack_too(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    model = Bilinear(SCALE, frames=5, neighbours="t")
    with serving(model) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
    assert sr.report is not None
    assert_clean(sr.report, 12)
    assert_restored(raw, sr_path, "t", 5)
    assert_same_offline(raw, sr_path, model)


def test_a_frame_comes_out_when_its_look_ahead_is_in_and_says_so(mmc: CMMCorePlus, tmp_path: Path) -> None:
    """Each frame is acquired only when all came back that can: none waits for more than its look-ahead."""
    raw, sr_path = paths(tmp_path)
    got: list[tuple[int, dict[str, Any]]] = []
    came = threading.Condition()
    acquired = 0

    def take(img: Any, event: useq.MDAEvent, meta: dict[str, Any]) -> None:
        with came:
            got.append((event.index["t"], meta["live_sr"]))
            came.notify_all()

    def wait_for_due(img: Any, event: useq.MDAEvent) -> None:
        nonlocal acquired
        acquired += 1
        due = acquired - 1 if acquired < 6 else 6
        with came:
            assert came.wait_for(lambda: len(got) == due, WAIT_S)
        assert sr.counts.queued == acquired - due

    with serving(Bilinear(SCALE, frames=3)) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.frameReady.connect(take)
        mmc.mda.events.frameReady.connect(wait_for_due)
        mmc.run_mda(frames(6), output=raw, block=True)
        report = sr.close()
    assert_clean(report, 6)
    assert [t for t, _ in got[:4]] == [0, 1, 2, 3]
    for t, said in got:
        assert said["used"] == {"t": tuple(seen(t, 3, range(6)))}
        assert (said["frames"], said["look_ahead"], said["deferred"]) == (3, 1, False)
    assert 0 < report.look_ahead_ms.p50 <= report.latency_ms.p50
    lines = journal.read(journal_path(sr_path)).frames
    assert {n: e.used for n, e in lines.items()} == {t: {"t": tuple(seen(t, 3, range(6)))} for t in range(6)}


def test_what_the_look_ahead_costs_is_said_before_anything_is_exposed(mmc: CMMCorePlus, tmp_path: Path) -> None:
    slow = useq.MDASequence(time_plan={"interval": 10, "loops": 5})
    with serving(Bilinear(SCALE, frames=5)) as server, LiveSR(server.address) as sr:
        assert sr.wait_ready(WAIT_S)
        assert "2 frames after each are awaited" in sr._links[0].status.detail
        (doubt,) = sr.preflight(slow, mmc, raw=tmp_path / "raw.ome.zarr")
        assert "each frame comes out 20 s late" in doubt
        (doubt,) = sr.preflight(useq.MDASequence(channels=["DAPI"]), mmc, raw=tmp_path / "raw.ome.zarr")
        assert "from itself alone" in doubt
        assert sr.preflight(frames(5), mmc, raw=tmp_path / "raw.ome.zarr") == []


@pytest.mark.parametrize("skipped", [2, 3], ids=["in the middle", "at the end"])
def test_skipped_frames_are_bridged_as_offline(mmc: CMMCorePlus, tmp_path: Path, skipped: int) -> None:
    raw, sr_path = paths(tmp_path)
    mmc.register_mda_engine(Faulty(mmc, {skipped: SkipEvent()}))
    model = Bilinear(SCALE, frames=3)
    with serving(model) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(frames(4), output=raw, block=True)
    assert sr.report is not None
    assert_clean(sr.report, 3)
    used = {e.index["t"]: (e.used or {})["t"] for e in journal.read(journal_path(sr_path)).frames.values()}
    if skipped == 2:
        assert used == {0: (1, 0, 1), 1: (0, 1, 0), 3: (3, 3, 3)}
    else:
        assert used == {0: (1, 0, 1), 1: (0, 1, 2), 2: (1, 2, 1)}
    assert_same_offline(raw, sr_path, model)


def test_a_cancelled_run_ends_with_the_frames_that_are_there(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    model = Bilinear(SCALE, frames=5)
    with serving(model) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 3 and mmc.mda.cancel())
        mmc.run_mda(frames(10), output=raw, block=True)
    assert sr.report is not None
    assert_clean(sr.report, 4)
    assert_same_offline(raw, sr_path, model)


def test_a_skipped_page_of_an_ome_tiff_is_bridged_as_live(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = tmp_path / "raw.ome.tiff", tmp_path / "sr.ome.zarr"
    mmc.register_mda_engine(Faulty(mmc, {2: SkipEvent()}))
    model = Bilinear(SCALE, frames=3)
    with serving(model) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=raw, block=True)
    enhance(raw, tmp_path / "offline.ome.zarr", model)
    with VolumeReader(sr_path) as live, VolumeReader(tmp_path / "offline.ome.zarr") as later:
        for t in (0, 1, 3, 4):
            np.testing.assert_array_equal(live.read({"t": t}), later.read({"t": t}), err_msg=str(t))


# --------------------------------------------------------------------------------- late


def test_the_ledger_closes_at_every_sample(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    gate = Gated(frames=3)
    with serving(gate) as server, LiveSR(server.address, save=sr_path) as sr, sampled(sr) as samples:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
        gate.permit(3)
        mmc.run_mda(frames(10), output=tmp_path / "raw2.ome.zarr", block=True)
        gate.open()
        report = sr.close()
    assert len({(c.queued, c.in_flight, c.deferred, c.returned) for c in samples}) > 5
    for c in samples:
        assert c.saved <= c.acquired
    assert_clean(report, 22)
    assert_restored(raw, sr_path, "z", 3)
    assert_restored(tmp_path / "raw2.ome.zarr", tmp_path / "sr-2.ome.zarr", "t", 3)


@pytest.mark.parametrize("with_raw", [True, False], ids=["raw", "no raw"])
def test_deferred_frames_get_the_neighbours_they_would_have_had(
    mmc: CMMCorePlus, tmp_path: Path, with_raw: bool
) -> None:
    """Memory holds nothing: every frame and its neighbours are fetched from raw, or from our own copy."""
    raw, sr_path = paths(tmp_path)
    kept: dict[tuple[int, int], NDArray[Any]] = {}
    mmc.mda.events.frameReady.connect(
        lambda img, event: kept.update({(event.index["t"], event.index["c"]): img.copy()})
    )
    with serving(Bilinear(SCALE, frames=3)) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr._outbox._max_bytes = 1
        sr.attach(mmc)
        sequence = SEQUENCES["t c"].replace(time_plan={"interval": 0, "loops": 5})
        mmc.run_mda(sequence, output=raw if with_raw else None, block=True)
        report = sr.close()
    assert (report.counts.saved, report.counts.acquired, report.counts.deferred_total) == (10, 10, 10)
    assert report.alarms == []
    assert report.runs[0].raw.rescued == 0
    with VolumeReader(sr_path) as high:
        for t, c in kept:
            stack = np.stack([kept[i, c] for i in seen(t, 3, range(5))])
            np.testing.assert_array_equal(high.read({"t": t, "c": c}), bilinear(stack, SCALE))


def test_a_server_killed_in_mid_run_and_restarted_loses_nothing(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    came = threading.Semaphore(0)
    with ServerProcess(model="bilinear-x2-f3") as first, LiveSR(first.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda: came.release())
        sequence = SEQUENCES["t c"].replace(time_plan={"interval": 0, "loops": 30})
        run = mmc.run_mda(sequence, output=raw)
        assert came.acquire(timeout=WAIT_S)
        first.kill()
        run.join()
        with ServerProcess(first.address, model="bilinear-x2-f3"):
            report = sr.close()
    assert_clean(report, 60)
    assert_restored(raw, sr_path, "t", 3)
    assert_same_offline(raw, sr_path, Bilinear(SCALE, frames=3))


def test_a_server_that_comes_late_finishes_everything(mmc: CMMCorePlus, tmp_path: Path) -> None:
    """The model becomes known in mid-run: frames from before and after it are each other's neighbours."""
    raw, sr_path = paths(tmp_path)
    address = nobody()
    half = threading.Event()
    mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 8 and half.set())
    mmc.setExposure(30)
    model = Bilinear(SCALE, frames=5)
    with LiveSR(address, save=sr_path) as sr:
        sr.attach(mmc)
        run = mmc.run_mda(frames(40), output=raw)
        assert half.wait(WAIT_S)
        with serving(model, address=address):
            assert sr.wait_ready(WAIT_S)
            in_time = run.is_alive()
            run.join()
            report = sr.close()
    assert in_time, "the server came too late for this test"
    assert_clean(report, 40)
    assert 0 < report.counts.deferred_total < 40
    assert_restored(raw, sr_path, "t", 5)
    assert_same_offline(raw, sr_path, model)


def test_without_any_server_enhance_makes_what_live_would_have_made(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with LiveSR(nobody(), save=sr_path, give_up_s=0.2) as sr:
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["z fastest but c"], output=raw, block=True)
    assert sr.report is not None
    assert sr.report.counts.failed == 12
    assert sr.report.raw_complete
    assert enhance(raw, sr_path, Bilinear(SCALE, frames=3)).complete
    assert_restored(raw, sr_path, "z", 3)


def test_enhance_finishes_what_a_run_left(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    gate = Gated(frames=3, permits=3)
    came = threading.Semaphore(0)
    address = nobody()
    with LiveSR(address, save=sr_path, give_up_s=0.2) as sr:
        sr.events.frameReady.connect(lambda: came.release())
        sr.attach(mmc)
        with serving(gate, address):
            assert sr.wait_ready(WAIT_S)
            mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
            for _ in range(3):
                assert came.acquire(timeout=WAIT_S)
            gate.permit(2)  # the engine must get out of its computation
    assert sr.report is not None
    assert 0 < sr.report.counts.failed < 12
    report = enhance(raw, sr_path, Bilinear(SCALE, frames=3))
    assert report.complete
    assert report.already == sr.report.counts.saved
    assert_restored(raw, sr_path, "z", 3)


# --------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["t c z", "t", "not at every z"])
def test_ome_tiff_gives_the_same_as_live(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    raw, sr_path = tmp_path / "raw.ome.tiff", tmp_path / "sr.ome.zarr"
    model = Bilinear(SCALE, frames=3)
    with serving(model) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES[name], output=raw, block=True)
        report = sr.close()
    assert_clean(report, report.counts.acquired)
    assert_same_offline(raw, sr_path, model)


@pytest.mark.parametrize("remote", [False, True], ids=["here", "on a server"])
@pytest.mark.parametrize("neighbours", ["t", "z"])
def test_a_stack_of_pages_is_of_what_the_model_was_trained_on(
    tmp_path: Path, neighbours: Any, remote: bool
) -> None:
    raw = np.random.default_rng(0).integers(1, 4096, (4, 6, 7), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", raw, photometric="minisblack")
    model = Bilinear(SCALE, frames=3, neighbours=neighbours)
    if remote:
        with serving(model) as server, RemoteUpscaler(server.address, session="files") as upscaler:
            enhance(tmp_path / "in.tif", tmp_path / "out.tif", upscaler)
    else:
        enhance(tmp_path / "in.tif", tmp_path / "out.tif", model)
    for i, pixels in enumerate(tifffile.imread(tmp_path / "out.tif")):
        stack = raw[seen(i, 3, range(4))]
        np.testing.assert_array_equal(pixels, bilinear(stack, SCALE), err_msg=str(i))


def test_black_and_damaged_pages_are_nobodys_neighbours(tmp_path: Path) -> None:
    """Writers leave black frames out, and fill with black what was skipped: neither is what lies beside."""
    raw = np.random.default_rng(0).integers(1, 4096, (6, 16, 16), dtype=np.uint16)
    raw[1] = 0
    path, sr_path = tmp_path / "in.tif", tmp_path / "out.ome.zarr"
    tifffile.imwrite(path, raw, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as file:
        at = file.pages[4].dataoffsets[0]  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    report = enhance(path, sr_path, Bilinear(SCALE, frames=3))
    assert (report.written, report.failed) == (5, 1)
    used = {e.index["q"]: (e.used or {}).get("q") for e in journal.read(journal_path(sr_path)).frames.values()}
    assert used == {0: (0, 0, 0), 1: (0, 1, 2), 2: (3, 2, 3), 3: (2, 3, 2), 4: None, 5: (5, 5, 5)}


def test_a_single_image_stands_for_its_neighbours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = np.random.default_rng(0).integers(1, 4096, (6, 7), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", raw)
    enhance(tmp_path / "in.tif", tmp_path / "out.tif", Bilinear(SCALE, frames=5))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), bilinear(raw, SCALE))
    assert caplog.records == []
    tifffile.imwrite(
        tmp_path / "c.ome.tif", np.stack([raw, raw]), photometric="minisblack", metadata={"axes": "CYX"}
    )
    enhance(tmp_path / "c.ome.tif", tmp_path / "c_out.tif", Bilinear(SCALE, frames=5))
    assert "from itself alone" in caplog.text


# --------------------------------------------------------------------------------- a real network


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file of three frames, with random weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = NetworkSettings(scale=2, widths=(4, 6), frames=3)
    torch.manual_seed(5)
    net = SuperResolver(settings).eval()
    torch.nn.init.normal_(net.body.head.weight, std=0.2)
    record = record_of(net, settings, id="tiny-x2-f3", neighbours="z")
    path = tmp_path / "tiny-x2-f3.pt"
    artifact.save(net, record, path)
    return path


def test_a_real_network_gives_live_what_it_gives_offline(
    mmc: CMMCorePlus, tmp_path: Path, network: Path
) -> None:
    raw, sr_path = paths(tmp_path)
    engine: Any = load_engine(str(network), device="cpu", precision="float32", threads=1)
    with serving(engine) as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
        report = sr.close()
    assert_clean(report, 12)
    assert_same_offline(raw, sr_path, load_engine(str(network), device="cpu", precision="float32"))
    with VolumeReader(raw) as low, VolumeReader(sr_path) as high:
        stack = np.stack([low.read({"t": 1, "c": 1, "z": z}) for z in (0, 1, 2)])
        np.testing.assert_array_equal(high.read({"t": 1, "c": 1, "z": 1}), engine.upscale([stack])[0])
        other = stack.copy()
        other[2] = stack[0]
        assert not np.array_equal(engine.upscale([stack])[0], engine.upscale([other])[0])
