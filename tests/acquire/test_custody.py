"""Custody of pixels, against raw data that ome-writers, pymmcore-plus' own writer, really writes."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from ome_writers import AcquisitionSettings, OMEStream, create_stream, useq_to_acquisition_settings
from useq import MDASequence

from live_sr.acquire.custody import Custody
from live_sr.acquire.plan import Plan, plan_run
from live_sr.acquire.raw import checksum, open_raw
from live_sr.acquire.spool import Spool
from live_sr.frame import Pixels

WAIT_S = 10
SHAPE = (16, 24)
FRAME_BYTES = 16 * 24 * 2
BLOCK = 4096  # what the smallest file takes on the small disk


def pixels(n: int) -> Pixels:
    return np.random.default_rng(n).integers(1, 65536, SHAPE).astype(np.uint16)


SPOOLS: list[Spool] = []


def new_spool(folder: Path) -> Spool:
    SPOOLS.append(Spool(folder))
    return SPOOLS[-1]


@pytest.fixture(autouse=True)
def _close_spools() -> Iterator[None]:
    yield
    while SPOOLS:
        SPOOLS.pop().close()


class Rig:
    """A raw data set of `n` frames, its writer, and the custody of what is written to it."""

    def __init__(
        self, folder: Path, n: int, suffix: str = ".ome.zarr", t: dict[str, int] | None = None, **options: Any
    ):
        self.path = folder / f"raw{suffix}"
        sequence = MDASequence(time_plan={"interval": 1, "loops": n})
        info = {"height": SHAPE[0], "width": SHAPE[1], "dtype": "uint16", "pixel_size_um": 0.5}
        self.plan: Plan = plan_run(sequence, {"image_infos": (info,)})
        made = useq_to_acquisition_settings(sequence, image_height=SHAPE[0], image_width=SHAPE[1])
        dims = [d.model_copy(update=t) if d.name == "t" and t else d for d in made["dimensions"]]
        settings = AcquisitionSettings(root_path=str(self.path), dimensions=tuple(dims), dtype="uint16")
        self.writer: OMEStream = create_stream(settings)
        self.alarms: queue.Queue[str] = queue.Queue()
        self.warnings: queue.Queue[str] = queue.Queue()
        self.spool = new_spool(folder)
        self.rescue = folder / "rescued"
        self.custody = Custody(
            open_raw(self.path, self.plan),
            self.spool,
            **{
                "rescue_to": [self.rescue],
                "alarm": self.alarms.put,
                "warn": self.warnings.put,
                "frame_bytes": FRAME_BYTES,
                "n_frames": n,
                "settle_s": 0.1,
                **options,
            },
        )
        self.crc: dict[int, int | None] = {}

    def hold(self, n: int, *, write: bool = True, frame: Pixels | None = None) -> None:
        frame = pixels(n) if frame is None else frame
        if write:
            self.writer.append(frame)
        self.crc[n] = self.custody.hold(n, {"t": n}, frame)

    def fetch(self, n: int) -> Pixels | None:
        return self.custody.fetch(n, {"t": n}, self.crc[n])

    def end(self) -> Any:
        self.writer.close()
        self.custody.sink_closed()
        return self.custody.finish()


def test_frames_seen_in_raw_are_released_and_can_still_be_fetched(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 5)
    for n in range(5):
        rig.hold(n)
    report = rig.end()
    assert (report.verified, report.missing, report.complete) == (5, 0, True)
    assert not rig.custody._held
    np.testing.assert_array_equal(rig.fetch(3), pixels(3))
    assert rig.alarms.empty()
    assert not rig.rescue.exists()


def test_an_all_black_frame_counts_as_stored(tmp_path: Path) -> None:
    """tensorstore leaves chunks of zeros out; a blanked beam is no fault of the disk."""
    rig = Rig(tmp_path, 3)
    for n in range(3):
        rig.hold(n, frame=np.zeros(SHAPE, np.uint16))
    report = rig.end()
    assert report.complete
    assert rig.alarms.empty()


def test_past_the_memory_bound_pixels_go_to_the_scratch_file_and_come_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 20, memory_bytes=3 * FRAME_BYTES)
    for n in range(20):
        rig.hold(n, write=False)
    assert rig.custody._in_memory <= 3 * FRAME_BYTES
    assert rig.spool.nbytes == 17 * FRAME_BYTES
    for n in range(20):
        np.testing.assert_array_equal(rig.fetch(n), pixels(n))
        rig.writer.append(pixels(n))
    assert rig.end().complete
    assert rig.spool.nbytes == 0, "the scratch file is emptied when nothing in it is needed"


def test_what_raw_lacks_after_its_close_is_rescued_with_equal_pixels(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 6, memory_bytes=FRAME_BYTES)
    for n in range(6):
        rig.hold(n, write=n < 4)
    report = rig.end()
    assert (report.verified, report.missing, report.rescued) == (4, 2, 2)
    assert not report.complete
    assert report.rescued_to == (str(rig.rescue),)
    assert "INCOMPLETE" in rig.alarms.get_nowait()
    files = sorted(rig.rescue.iterdir())
    assert [f.name for f in files] == ["frame000004_t4.tif", "frame000005_t5.tif"]
    for n, file in zip((4, 5), files, strict=True):
        np.testing.assert_array_equal(tifffile.imread(file), pixels(n))


def test_a_frame_that_raw_lacks_can_be_fetched_from_our_copy(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2)
    rig.hold(0, write=False)
    rig.writer.close()
    rig.custody.sink_closed()
    np.testing.assert_array_equal(rig.fetch(0), pixels(0))
    rig.custody.finish()


def test_raw_that_differs_from_what_was_acquired_is_missing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2)
    rig.hold(0)
    rig.writer.append(pixels(99))
    rig.hold(1, write=False)
    assert rig.end().missing == 1
    np.testing.assert_array_equal(tifffile.imread(rig.rescue / "frame000001_t1.tif"), pixels(1))


def test_a_frame_without_pixels_is_believed_only_when_raw_is_closed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2)
    rig.writer.append(pixels(0))
    assert rig.custody.hold(0, {"t": 0}, None) is None
    rig.crc[0] = None
    assert rig.fetch(0) is None
    rig.hold(1)
    assert rig.end().verified == 2
    np.testing.assert_array_equal(rig.fetch(0), pixels(0))


def test_a_frame_without_pixels_that_raw_lacks_is_gone(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 1)
    rig.custody.hold(0, {"t": 0}, None)
    rig.crc[0] = None
    report = rig.end()
    assert (report.missing, report.rescued, report.rescued_to) == (1, 0, ())
    with pytest.raises(LookupError, match="not in the raw data set"):
        rig.fetch(0)


def test_frames_that_do_not_reach_the_disk_raise_one_alarm_while_the_run_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 4, late_s=0.2)
    for n in range(3):
        rig.hold(n, write=False)
    assert "not being written" in rig.alarms.get(timeout=WAIT_S)
    for n in range(3):
        rig.writer.append(pixels(n))
    report = rig.end()
    assert report.verified == 3
    assert rig.alarms.empty()


def test_frames_that_share_a_chunk_are_not_late_before_it_is_full(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 8, t={"chunk_size": 4}, late_s=0.2)
    for n in range(6):
        rig.hold(n)
    while rig.custody.verified < 4:  # the chunk that is full; two frames wait for theirs
        assert rig.alarms.empty()
    with pytest.raises(queue.Empty):
        rig.alarms.get(timeout=0.6)
    rig.hold(6)
    rig.hold(7, write=False)  # full as far as we know, and never written
    assert "not being written" in rig.alarms.get(timeout=WAIT_S)
    rig.writer.append(pixels(7))
    assert rig.end().complete


def test_the_last_chunk_of_a_cancelled_run_is_found_though_it_is_written_after_the_close(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, 8, t={"chunk_size": 4}, settle_s=2)
    for n in range(6):
        rig.hold(n)
    report = rig.end()
    assert (report.verified, report.frames) == (6, 6)
    assert rig.alarms.empty()


def test_ome_tiff_is_verified_after_its_close_without_a_false_alarm(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 5, suffix=".ome.tiff", late_s=0.0)
    for n in range(5):
        rig.hold(n)
    assert rig.end().complete
    assert rig.alarms.empty()


def test_ome_tiff_that_lacks_a_page_is_not_complete(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 5, suffix=".ome.tiff")
    for n in range(5):
        rig.hold(n, write=n < 3)
    report = rig.end()
    assert (report.verified, report.rescued) == (3, 2)


def test_skipped_events_shift_frames_that_lie_in_order_of_arrival(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 8, in_order=True, late_s=0.2)
    for n in range(6):
        if n == 3:
            rig.writer.skip(frames=2)
        rig.hold(n)
    assert rig.end().complete
    np.testing.assert_array_equal(rig.fetch(1), pixels(1))
    np.testing.assert_array_equal(rig.fetch(5), pixels(5))
    assert rig.alarms.empty()


def test_without_raw_pixels_are_kept_until_released_and_the_rest_is_rescued(tmp_path: Path) -> None:
    custody = Custody(
        None,
        new_spool(tmp_path),
        rescue_to=[tmp_path / "rescued"],
        alarm=lambda text: pytest.fail(text),
        frame_bytes=FRAME_BYTES,
        memory_bytes=FRAME_BYTES,
    )
    crc = [custody.hold(n, {"t": n}, pixels(n)) for n in range(4)]
    assert crc == [checksum(pixels(n)) for n in range(4)]
    for n in range(3):
        fetched = custody.fetch(n, {"t": n}, crc[n])
        assert fetched is not None
        np.testing.assert_array_equal(fetched, pixels(n))
        custody.release(n)
    report = custody.finish()
    assert (report.path, report.missing, report.rescued) == (None, 0, 1)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "rescued" / "frame000003_t3.tif"), pixels(3))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One megabyte of disk, to be filled."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a scratch file may still be open


def test_a_nearly_full_disk_raises_the_alarm_before_anything_is_lost(tmp_path: Path, small_disk: Path) -> None:
    rig = Rig(small_disk, 50, frame_bytes=BLOCK)
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - 4 * BLOCK))
    rig.hold(0)
    assert "is full" in rig.alarms.get(timeout=WAIT_S)
    assert rig.end().verified == 1


def test_the_last_frames_of_a_run_may_take_the_last_of_a_disk(tmp_path: Path, small_disk: Path) -> None:
    rig = Rig(small_disk, 3, frame_bytes=BLOCK)
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - 7 * BLOCK))
    for n in range(3):
        rig.hold(n)
    assert rig.end().complete
    assert rig.alarms.empty()


def test_where_scratch_is_full_too_memory_stays_bounded(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    rig = Rig(tmp_path, 20, memory_bytes=FRAME_BYTES)
    rig.custody._spool = new_spool(small_disk)
    for n in range(20):
        rig.hold(n)
    assert rig.custody._in_memory <= 5 * FRAME_BYTES
    assert "scratch" in rig.warnings.get(timeout=WAIT_S)
    assert rig.end().complete
    assert rig.alarms.empty(), "raw is sound"


def test_a_rescue_goes_to_the_next_folder_when_the_first_disk_is_full(tmp_path: Path, small_disk: Path) -> None:
    full = small_disk / "rescued"
    rig = Rig(tmp_path, 3, rescue_to=[full, tmp_path / "second"])
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    for n in range(3):
        rig.hold(n, write=False)
    report = rig.end()
    assert report.rescued == 3
    assert report.rescued_to == (str(tmp_path / "second"),)
    assert len(list((tmp_path / "second").iterdir())) == 3
