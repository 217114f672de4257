"""Whole runs: Micro-Manager's demo camera, pymmcore-plus, a real server, real files.

Where a server is killed it is a process of its own; otherwise it lives in this one.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import useq
import zarr
from pymmcore_plus import CMMCorePlus

from conftest import ServerProcess
from live_sr import LiveSR
from live_sr.acquire.session import SessionReport
from live_sr.client import journal
from live_sr.client.journal import journal_path
from live_sr.client.volume import VolumeReader
from live_sr.frame import Counts
from live_sr.upscaler import bilinear
from rig import (  # noqa: F401  mmc is a fixture
    SCALE,
    SEQUENCES,
    SHAPE,
    WAIT_S,
    Gated,
    assert_restored,
    mmc,
    serving,
    use_two_cameras,
)

pytestmark = [
    # pymmcore-plus says so of every run with channels and two cameras; our volume has both axes.
    pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning"),
]


def frames(n: int) -> useq.MDASequence:
    return useq.MDASequence(time_plan={"interval": 0, "loops": n})


def paths(folder: Path) -> tuple[Path, Path]:
    return folder / "raw.ome.zarr", folder / "sr.ome.zarr"


def nobody() -> str:
    """An address at which no server is."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def assert_clean(report: SessionReport, n: int) -> None:
    assert report.alarms == []
    assert (report.counts.acquired, report.counts.returned, report.counts.saved) == (n, n, n)
    assert report.raw_complete
    assert report.sr_complete
    assert all(run.raw.verified == run.acquired for run in report.runs)


# --------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("name", [*SEQUENCES, "generator", "two cameras", "two cameras and positions"])
def test_the_volume_has_raws_axes_and_every_frame_at_its_place(
    mmc: CMMCorePlus, tmp_path: Path, name: str
) -> None:
    raw, sr_path = paths(tmp_path)
    events: Any = SEQUENCES.get(name, SEQUENCES["t c z"])
    if name == "generator":
        events = iter(list(events))
    if name.startswith("two cameras"):
        use_two_cameras(mmc)
        events = SEQUENCES["positions"] if name.endswith("positions") else SEQUENCES["t c z"]
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(events, output=raw, block=True)
        acquired = sr.counts.acquired
        report = sr.close()
    assert_clean(report, acquired)
    assert report.warnings == []
    assert_restored(raw, sr_path, frames=acquired)
    assert not list(tmp_path.glob("*rescued*"))


def test_the_volume_opens_in_zarr_and_tensorstore(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
    y, x = SHAPE
    opened = zarr.open_group(sr_path, mode="r")
    assert opened.attrs["ome"]["version"] == "0.5"
    assert opened["0"].shape == (2, 2, 3, SCALE * y, SCALE * x)
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(sr_path / "0")}}
    ).result()
    low = zarr.open_group(raw, mode="r")["0"]
    expected = bilinear(np.asarray(low[1, 0, 2]), SCALE)
    np.testing.assert_array_equal(np.asarray(opened["0"][1, 0, 2]), expected)
    np.testing.assert_array_equal(store[1, 0, 2].read().result(), expected)
    attributes = json.loads((sr_path / "zarr.json").read_bytes())["attributes"]["live_sr"]
    assert attributes["status"] == "complete"
    assert attributes["counts"]["raw_verified"] == 12
    lines = journal.read(journal_path(sr_path))
    assert sorted(lines.frames) == list(range(12))
    assert lines.end is not None


def test_listeners_of_raw_frames_work_on_restored_ones(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw: dict[tuple[tuple[str, int], ...], tuple[Any, float]] = {}
    restored: dict[tuple[tuple[str, int], ...], tuple[Any, dict[str, Any]]] = {}

    def key(event: useq.MDAEvent) -> tuple[tuple[str, int], ...]:
        return tuple(sorted((str(k), v) for k, v in event.index.items()))

    def on_raw(img: Any, event: useq.MDAEvent, meta: dict[str, Any]) -> None:
        raw[key(event)] = img.copy(), meta["pixel_size_um"]

    with serving() as server, LiveSR(server.address) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(on_raw)
        sr.events.frameReady.connect(lambda img, event, meta: restored.update({key(event): (img, meta)}))
        mmc.run_mda(SEQUENCES["t c z"], block=True)
    assert sorted(restored) == sorted(raw)
    for at, (img, meta) in restored.items():
        np.testing.assert_array_equal(img, bilinear(raw[at][0], SCALE))
        assert meta["pixel_size_um"] == raw[at][1] / SCALE
        assert meta["live_sr"]["computed"] is True
        assert meta["live_sr"]["scale"] == SCALE
        assert meta["live_sr"]["latency_ms"] > 0


# --------------------------------------------------------------------------------- ways in


def test_attached_and_given_as_output_each_frame_comes_once(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(6), output=[raw, sr], block=True)
    assert sr.report is not None
    assert_clean(sr.report, 6)
    assert_restored(raw, sr_path)


def test_given_as_output_of_the_instance_raw_is_found(tmp_path: Path, mmc: CMMCorePlus) -> None:
    assert CMMCorePlus.instance() is mmc
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        mmc.run_mda(frames(6), output=[raw, sr], block=True)
    assert sr.report is not None
    assert_clean(sr.report, 6)
    assert sr.report.runs[0].raw.path == str(raw)
    assert sr.report.runs[0].reason == "completed"
    assert_restored(raw, sr_path)


def test_given_as_output_of_an_unknown_core_pixels_are_kept_here(mmc: CMMCorePlus, tmp_path: Path) -> None:
    assert CMMCorePlus.instance() is mmc
    other = CMMCorePlus()
    other.loadSystemConfiguration()
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        other.setROI(0, 0, SHAPE[1], SHAPE[0])
        other.run_mda(frames(4), output=[raw, sr], block=True)
    other.unloadAllDevices()
    assert sr.report is not None
    assert sr.report.counts.saved == 4
    assert sr.report.runs[0].raw.path is None
    assert_restored(raw, sr_path)


@pytest.mark.parametrize("output", [None, "memory"])
def test_without_raw_on_disk_pixels_are_kept_until_they_are_restored(
    mmc: CMMCorePlus,
    tmp_path: Path,
    output: str | None,
) -> None:
    _, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=output, block=True)
    assert sr.report is not None
    assert sr.report.counts.saved == 5
    assert sr.report.alarms == []
    assert sr.report.runs[0].raw.path is None


@pytest.mark.parametrize("name", ["t c z", "positions"])
def test_ome_tiff_is_verified_after_its_close(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.zarr") as sr:
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES[name], output=tmp_path / "raw.ome.tiff", block=True)
    assert sr.report is not None
    assert_clean(sr.report, 12)


@pytest.mark.parametrize(
    "t", [{"chunk_size": 4}, {"chunk_size": 1, "shard_size_chunks": 4}], ids=["chunks", "shards"]
)
def test_raw_in_larger_chunks_is_verified_without_a_false_alarm(
    mmc: CMMCorePlus,
    tmp_path: Path,
    t: Any,
) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(10), output=raw, dimension_overrides={"t": t}, block=True)
    assert sr.report is not None
    assert_clean(sr.report, 10)
    assert_restored(raw, sr_path)


def test_two_runs_of_a_session_make_two_volumes(mmc: CMMCorePlus, tmp_path: Path) -> None:
    sequence = frames(3)
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.zarr") as sr:
        sr.attach(mmc)
        mmc.run_mda(sequence, output=tmp_path / "raw1.ome.zarr", block=True)
        mmc.run_mda(sequence, output=tmp_path / "raw2.ome.zarr", block=True)
    assert sr.report is not None
    assert_clean(sr.report, 6)
    assert [run.number for run in sr.report.runs] == [1, 2]
    assert_restored(tmp_path / "raw1.ome.zarr", tmp_path / "sr.ome.zarr")
    assert_restored(tmp_path / "raw2.ome.zarr", tmp_path / "sr-2.ome.zarr")


def test_a_run_that_nobody_joined_is_waited_for(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=raw)
    assert sr.report is not None
    assert_clean(sr.report, 5)


# --------------------------------------------------------------------------------- accounting


def test_the_ledger_closes_at_every_sample(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    gate = Gated()
    samples: list[Counts] = []
    stop = threading.Event()
    with serving(gate) as server, LiveSR(server.address, save=sr_path) as sr:

        def sample() -> None:
            while not stop.is_set():
                samples.append(sr.counts)

        sampler = threading.Thread(target=sample)
        sampler.start()
        sr.attach(mmc)
        for _ in range(2):
            mmc.run_mda(frames(10), output=raw if not raw.exists() else tmp_path / "raw2.ome.zarr", block=True)
            gate.permit(3)
        gate.open()
        report = sr.close()
        stop.set()
        sampler.join()
    assert len({(c.queued, c.in_flight, c.deferred, c.returned) for c in samples}) > 5
    for c in samples:
        assert c.acquired == c.queued + c.in_flight + c.deferred + c.returned + c.failed
        assert c.saved <= c.acquired
    assert_clean(report, 20)


def test_in_order_frames_come_in_the_order_of_acquisition(mmc: CMMCorePlus, tmp_path: Path) -> None:
    gate, got = Gated(), []
    with serving(gate) as server, LiveSR(server.address, ordered=True) as sr:
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda img, event, meta: got.append(meta["live_sr"]["seq"]))
        mmc.run_mda(frames(8), block=True)
        gate.open()
    assert got == list(range(8))


# --------------------------------------------------------------------------------- listeners and other outputs


def test_a_listener_that_raises_or_blocks_harms_nothing(
    mmc: CMMCorePlus,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw, sr_path = paths(tmp_path)
    good: queue.Queue[int] = queue.Queue()
    let = threading.Event()
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)

        @sr.events.frameReady.connect
        def bad(img: Any) -> None:
            raise RuntimeError("a listener's own mistake")

        sr.events.frameReady.connect(lambda img: let.wait(WAIT_S))
        sr.events.frameReady.connect(lambda img: good.put(1))
        mmc.run_mda(frames(5), output=raw, block=True)
        for _ in range(5):
            good.get(timeout=WAIT_S)
        let.set()
    assert sr.report is not None
    assert_clean(sr.report, 5)
    assert any("raised on 5 frames" in text for text in sr.report.warnings)


class Raising:
    """An output handler of somebody else's that raises at its third frame."""

    def __init__(self) -> None:
        self.n = 0
        self.raised = threading.Event()

    def frameReady(self, img: Any) -> None:
        self.n += 1
        if self.n == 3:
            self.raised.set()
            raise RuntimeError("somebody else's mistake")


# The relay thread dies of it, which pytest reports as an unhandled exception of a thread.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_another_output_that_raises_is_noticed_and_nothing_hangs(mmc: CMMCorePlus, tmp_path: Path) -> None:
    assert CMMCorePlus.instance() is mmc
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        mmc.run_mda(frames(30), output=[raw, Raising(), sr], block=True)
        report = sr.close()
    assert 0 < report.counts.acquired < 30
    assert any("stopped delivering frames" in alarm for alarm in report.alarms)
    assert report.runs[0].reason == "interrupted"
    assert report.runs[0].raw.verified == report.counts.acquired == report.counts.saved


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_attached_another_output_that_raises_costs_nothing(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with serving() as server, LiveSR(server.address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(10), output=[raw, Raising(), sr], block=True)
    assert sr.report is not None
    assert_clean(sr.report, 10)


# --------------------------------------------------------------------------------- servers come and go


def test_a_server_killed_in_mid_run_and_restarted_loses_nothing(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    came = threading.Semaphore(0)
    with ServerProcess() as first, LiveSR(first.address, save=sr_path) as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        sr.events.frameReady.connect(lambda: came.release())
        run = mmc.run_mda(frames(60), output=raw)
        assert came.acquire(timeout=WAIT_S)
        first.kill()
        run.join()
        with ServerProcess(first.address):
            report = sr.close()
    assert_clean(report, 60)
    assert_restored(raw, sr_path)


def test_without_any_server_raw_is_complete_and_the_report_says_why(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    with LiveSR(nobody(), save=sr_path, give_up_s=0.2) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(10), output=raw, block=True)
        report = sr.close()
    assert (report.counts.failed, report.counts.acquired) == (10, 10)
    assert report.raw_complete
    assert report.runs[0].raw.verified == 10
    assert not report.sr_complete
    assert any("no server" in reason for reason in report.runs[0].failures)
    assert any("no server is ready" in text for text in report.warnings)
    assert not sr_path.exists()
    assert sr.close() is report


def test_without_server_and_raw_what_was_to_be_saved_is_rescued(mmc: CMMCorePlus, tmp_path: Path) -> None:
    with LiveSR(nobody(), save=tmp_path / "sr.ome.zarr", give_up_s=0.2) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(3), block=True)
    assert sr.report is not None
    assert sr.report.runs[0].raw.rescued == len(list((tmp_path / "sr.rescued").iterdir())) == 3


def test_a_server_that_comes_after_the_sequence_finishes_everything(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    address = nobody()
    with LiveSR(address, save=sr_path) as sr:
        sr.attach(mmc)
        mmc.run_mda(SEQUENCES["t c z"], output=raw, block=True)
        with serving(address=address):
            report = sr.close()
    assert_clean(report, 12)
    assert_restored(raw, sr_path)


def test_a_server_restarted_with_another_model_is_refused(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    gate = Gated(permits=3)
    with LiveSR(address := nobody(), save=sr_path, give_up_s=0.2) as sr:
        came = threading.Semaphore(0)
        sr.events.frameReady.connect(lambda: came.release())
        sr.attach(mmc)
        with serving(gate, address):
            assert sr.wait_ready(WAIT_S)
            mmc.run_mda(frames(8), output=raw, block=True)
            for _ in range(3):
                assert came.acquire(timeout=WAIT_S)
            gate.permit(2)  # the engine must get out of its computation
        with serving(Gated(4, permits=100), address):
            report = sr.close()
    assert 3 <= report.counts.returned <= 5
    assert report.counts.failed == 8 - report.counts.returned
    assert any("never mixed" in alarm for alarm in report.alarms)
    assert not report.sr_complete
    assert report.raw_complete
    with VolumeReader(sr_path) as high, VolumeReader(raw) as low:
        assert high.layout.frame_shape == (SCALE * SHAPE[0], SCALE * SHAPE[1])
        present = [i for i in high.indices() if high.present(i)]
        assert len(present) == report.counts.returned
        for index in present:
            np.testing.assert_array_equal(high.read(index), bilinear(low.read(index), SCALE))


def test_frames_of_a_server_that_went_for_good_are_given_to_the_other(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, sr_path = paths(tmp_path)
    stuck, good = Gated(), Gated()
    came = threading.Semaphore(0)
    with serving(good) as b:
        with serving(stuck) as a:
            sr = LiveSR([a.address, b.address], save=sr_path, give_up_s=0.5)
            assert sr.wait_ready(WAIT_S)
            sr.attach(mmc)
            sr.events.frameReady.connect(lambda: came.release())
            mmc.run_mda(frames(12), output=raw, block=True)
            good.open()
            for _ in range(10):
                assert came.acquire(timeout=WAIT_S)
            left = sr.counts
            stuck_in_a = left.acquired - left.returned
            stuck.permit(0)
            threading.Thread(target=stuck.open, daemon=True).start() if stuck_in_a == 0 else None
            a.close() if hasattr(a, "close") else None
        report = sr.close()
    assert_clean(report, 12)
    assert_restored(raw, sr_path)


def test_without_a_server_memory_does_not_grow_with_the_run(
    mmc: CMMCorePlus,
    tmp_path: Path,
) -> None:
    raw, sr_path = paths(tmp_path)
    address = nobody()
    with LiveSR(address, save=sr_path) as sr:
        sr._records.in_memory = 10
        sr._outbox._max_bytes = 10 * SHAPE[0] * SHAPE[1] * 2
        sr.attach(mmc)
        mmc.run_mda(frames(100), output=raw, block=True)
        counts = sr.counts
        assert counts.deferred >= 90
        assert len(sr._records._open) <= 20
        with serving(address=address):
            report = sr.close()
    assert_clean(report, 100)
    assert_restored(raw, sr_path)
    lines = journal.read(journal_path(sr_path)).frames.values()
    assert all(line.raw_crc32 is not None for line in lines)
    assert sum(line.deferred for line in lines) >= 90
