"""OME-TIFF of super-resolved frames: written by whole runs, opened by other programs' readers."""

from __future__ import annotations

import json
import logging
import queue
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import useq
from bioio import BioImage
from ome_types import from_tiff
from pymmcore_plus import CMMCorePlus

from live_sr import LiveSR, __version__
from live_sr.archive.enhance import enhance
from live_sr.client import convert as converting
from live_sr.client import images, journal
from live_sr.client.convert import convert, is_computed
from live_sr.client.journal import journal_path
from live_sr.client.volume import VolumeReader, read_layout
from live_sr.errors import InputError, StoreError
from live_sr.frame import Pixels
from live_sr.upscaler import Bilinear, bilinear
from rig import (  # noqa: F401  mmc is a fixture
    RUNS,
    SCALE,
    SEQUENCES,
    SHAPE,
    WAIT_S,
    Failing,
    events_of,
    mmc,
    serving,
)
from test_cli import live_sr
from test_end_to_end import assert_clean

pytestmark = [
    pytest.mark.filterwarnings("ignore:Multi-camera acquisition combined:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:As of version 0.4.0, the parser argument:DeprecationWarning"
    ),  # of bioio
]
Y, X = SHAPE
PIXEL_UM = 0.5  # of raw


def frames(n: int) -> useq.MDASequence:
    return useq.MDASequence(time_plan={"interval": 0, "loops": n})


def acquire(mmc: CMMCorePlus, folder: Path, name: str) -> LiveSR:
    mmc.setPixelSizeUm("Res40x", PIXEL_UM)
    mmc.setPixelSizeUm("Res10x", PIXEL_UM)
    mmc.setPixelSizeUm("Res20x", PIXEL_UM)
    with serving() as server, LiveSR(server.address, save=folder / "sr.ome.tiff") as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(events_of(name, mmc), output=folder / "raw.ome.zarr", block=True)
        sr.close()
    return sr


@pytest.mark.parametrize("name", [name for name in RUNS if name != "one position with its own grid"])
def test_every_kind_of_run_opens_in_tifffile_and_bioio(mmc: CMMCorePlus, tmp_path: Path, name: str) -> None:
    sr = acquire(mmc, tmp_path, name)
    assert sr.report is not None
    assert_clean(sr.report, sr.report.counts.acquired)
    target = tmp_path / "sr.ome.tiff"
    assert sr.report.runs[0].sr_path == str(target)
    assert not (tmp_path / "sr.ome.zarr").exists(), "it went when the OME-TIFF was read back"
    assert len(journal.read(journal_path(tmp_path / "sr.ome.zarr")).frames) == sr.report.counts.acquired
    image = BioImage(target)
    with VolumeReader(tmp_path / "raw.ome.zarr") as raw, tifffile.TiffFile(target) as file:
        layout = raw.layout
        sizes = {axis.name: axis.size or 1 for axis in layout.index_axes}
        cameras = sizes.get("cam", 1)
        assert len(file.series) == len(image.scenes) == (len(layout.positions) or 1)
        for p, series in enumerate(file.series):
            image.set_scene(p)
            assert image.shape == (
                sizes.get("t", 1),
                sizes.get("c", 1) * cameras,
                sizes.get("z", 1),
                SCALE * Y,
                SCALE * X,
            )
            found = image.data
            np.testing.assert_array_equal(series.asarray().reshape(found.shape), found)
            for t, c, z in np.ndindex(found.shape[:3]):
                place = {"p": p, "t": t, "c": c // cameras, "z": z, "cam": c % cameras}
                expected = bilinear(raw.read({k: i for k, i in place.items() if k in sizes or k == "p"}), SCALE)
                np.testing.assert_array_equal(found[t, c, z], expected, err_msg=str(place))
        pixel = image.physical_pixel_sizes
        assert (pixel.Y, pixel.X) == (PIXEL_UM / SCALE, PIXEL_UM / SCALE)
        step = next((axis.scale for axis in layout.axes if axis.name == "z"), None)
        assert step == pixel.Z
        if layout.channel_names and cameras == 1:
            assert image.channel_names == list(layout.channel_names)


def test_it_is_valid_ome_xml_that_says_that_it_is_computed_and_by_what(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    sequence = useq.MDASequence(
        channels=["DAPI", "FITC"],
        z_plan={"range": 2, "step": 0.25},
        time_plan={"interval": 0.05, "loops": 2},
    )
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.tiff") as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        mmc.run_mda(sequence, output=tmp_path / "raw.ome.zarr", block=True)
        report = sr.close()
    assert report.model is not None
    ome = from_tiff(tmp_path / "sr.ome.tiff")
    (image,) = ome.images
    pixels = image.pixels
    assert [c.name for c in pixels.channels] == ["DAPI", "FITC"]
    assert (pixels.size_t, pixels.size_c, pixels.size_z) == (2, 2, 9)
    assert pixels.physical_size_z == 0.25
    assert pixels.physical_size_x == mmc.getPixelSizeUm() / SCALE
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (0.05, "s")
    assert image.description is not None
    for said in ("Computed image", report.model.id, report.model.sha256, f"live-sr {__version__}"):
        assert said in image.description
    assert ome.structured_annotations is not None
    (note,) = ome.structured_annotations.map_annotations
    noted = {m.k: m.value for m in note.value.ms}
    assert note.namespace == "live-sr"
    assert noted["computed"] == "true"
    assert noted["model"] == report.model.id
    assert noted["model_sha256"] == report.model.sha256
    assert (noted["scale"], noted["software"]) == (str(SCALE), f"live-sr {__version__}")
    assert json.loads(noted["volume"])["provenance"]["raw"] == str(tmp_path / "raw.ome.zarr")


def test_two_runs_make_two_files_and_nothing_is_overwritten(mmc: CMMCorePlus, tmp_path: Path) -> None:
    (tmp_path / "sr-2.ome.tif").touch()
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.tif") as sr:
        sr.attach(mmc)
        for n in (2, 3):
            mmc.run_mda(frames(n), output=tmp_path / f"raw{n}.ome.zarr", block=True)
        report = sr.close()
    assert [run.sr_path for run in report.runs] == [str(tmp_path / f"sr{n}.ome.tif") for n in ("", "-3")]
    assert tifffile.imread(tmp_path / "sr-3.ome.tif").shape == (3, SCALE * Y, SCALE * X)
    with pytest.raises(StoreError, match="exists"):
        LiveSR("tcp://127.0.0.1:9", save=tmp_path / "sr.ome.tif")
    with pytest.raises(StoreError, match=r"journal.*exists"):
        LiveSR("tcp://127.0.0.1:9", save=tmp_path / "sr.ome.tiff")


def test_the_risk_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "live_sr"),
        LiveSR("tcp://127.0.0.1:9", save=tmp_path / "sr.ome.tiff", give_up_s=0.1),
    ):
        pass
    assert "a process that is killed leaves the former, `live-sr enhance` converts it" in caplog.text


def test_view_and_slow_listeners_read_from_the_file_when_the_volume_has_gone(
    mmc: CMMCorePlus, tmp_path: Path
) -> None:
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.tiff") as sr:
        assert sr.wait_ready(WAIT_S)
        sr.attach(mmc)
        finished: queue.Queue[Any] = queue.Queue()
        sr.events.sequenceFinished.connect(lambda: finished.put(sr.mda_view()))
        mmc.run_mda(SEQUENCES["positions"], output=tmp_path / "raw.ome.zarr", block=True)
        view = finished.get(timeout=WAIT_S)
        assert not (tmp_path / "sr.ome.zarr").exists()
        raw = mmc.mda.get_view()
        assert raw is not None
        for at in np.ndindex(raw.shape[:-2]):
            np.testing.assert_array_equal(view[at], bilinear(raw[at], SCALE))


# ------------------------------------------------------------------------------------ when it is not whole


def test_a_cancelled_run_ends_with_its_last_frame(mmc: CMMCorePlus, tmp_path: Path) -> None:
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.tiff") as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(lambda img, event: event.index["t"] == 2 and mmc.mda.cancel())
        mmc.run_mda(frames(50), output=tmp_path / "raw.ome.zarr", block=True)
    assert tifffile.imread(tmp_path / "sr.ome.tiff").shape == (3, SCALE * Y, SCALE * X)


def test_an_incomplete_volume_stays_is_finished_and_then_converted(mmc: CMMCorePlus, tmp_path: Path) -> None:
    raw, volume, target = (tmp_path / name for name in ("raw.ome.zarr", "sr.ome.zarr", "sr.ome.tiff"))
    with serving(Failing(3)) as server, LiveSR(server.address, save=target) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=raw, block=True)
        report = sr.close()
    assert not target.exists()
    assert report.runs[0].sr_path == str(volume)
    assert not report.sr_complete
    told = next(text for text in report.alarms if "1 frames are missing" in text)
    assert f"live-sr enhance {volume} {target}" in told
    assert enhance(raw, volume, Bilinear(SCALE)).written == 1
    assert convert(volume, target).missing == 0
    assert tifffile.imread(target).shape == (5, SCALE * Y, SCALE * X)


def test_where_the_file_cannot_be_written_the_volume_stays(mmc: CMMCorePlus, tmp_path: Path) -> None:
    volume, target = tmp_path / "sr.ome.zarr", tmp_path / "sr.ome.tiff"
    with serving() as server, LiveSR(server.address, save=target) as sr:
        sr.attach(mmc)
        mmc.mda.events.frameReady.connect(lambda: target.touch())  # somebody else's
        mmc.run_mda(frames(3), output=tmp_path / "raw.ome.zarr", block=True)
        report = sr.close()
    assert (report.runs[0].sr_path, report.runs[0].sr_complete) == (str(volume), False)
    assert any("convert it with: live-sr enhance" in text for text in report.alarms)
    assert target.stat().st_size == 0
    target.unlink()
    assert convert(volume, target).planes == 3


def test_a_damaged_file_is_noticed_before_it_gets_its_name(
    mmc: CMMCorePlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = images.write_image

    def bit_rot(path: Path, *args: Any, check: Any, **options: Any) -> None:
        def damaged(partial: Path) -> None:
            with partial.open("r+b") as file:
                file.seek(SCALE * Y * SCALE * X * 2 + 500)  # within the first planes
                file.write(b"\xff\xfe")
            check(partial)

        written(path, *args, check=damaged, **options)

    monkeypatch.setattr(converting, "write_image", bit_rot)
    with serving() as server, LiveSR(server.address, save=tmp_path / "sr.ome.tiff") as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(3), output=tmp_path / "raw.ome.zarr", block=True)
        report = sr.close()
    assert any("differs from what was written" in text for text in report.alarms)
    assert (tmp_path / "sr.ome.zarr").is_dir()
    assert not list(tmp_path.glob("*.tiff*"))


def test_a_killed_process_leaves_a_volume_that_enhance_converts(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import useq
        from pymmcore_plus import CMMCorePlus
        from live_sr import LiveSR
        from rig import serving
        core = CMMCorePlus(); core.loadSystemConfiguration(); core.setROI(0, 0, 64, 48)
        with serving() as server, LiveSR(server.address, save={str(tmp_path / "sr.ome.tiff")!r}) as sr:
            sr.attach(core)
            def kill(img, event, meta):
                if meta["live_sr"]["seq"] == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            sr.events.frameReady.connect(kill)
            sequence = useq.MDASequence(time_plan={{"interval": 0, "loops": 500}})
            core.run_mda(sequence, output={str(tmp_path / "raw.ome.zarr")!r}, block=True)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    volume, target = tmp_path / "sr.ome.zarr", tmp_path / "sr.ome.tiff"
    assert not target.exists()
    command = live_sr("enhance", volume, target)
    assert command.returncode in (0, 3), command.stderr
    planes = tifffile.imread(target)
    assert f"{len(planes)} planes as they are in {volume}" in command.stdout
    assert len(planes) >= 1
    with VolumeReader(volume) as reader:
        for t, plane in enumerate(planes):
            np.testing.assert_array_equal(plane, reader.read({"t": t}, absent_ok=True))


# ------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", ["t c z", "positions", "well plate", "two cameras", "generator"])
def test_a_volume_that_became_a_file_becomes_the_same_volume_again(
    mmc: CMMCorePlus, tmp_path: Path, name: str
) -> None:
    first, file, second = (tmp_path / n for n in ("a.ome.zarr", "b.ome.tiff", "c.ome.zarr"))
    with serving() as server, LiveSR(server.address, save=first) as sr:
        sr.attach(mmc)
        mmc.run_mda(events_of(name, mmc), output=tmp_path / "raw.ome.zarr", block=True)
    assert convert(first, file) == convert(file, second)
    assert is_computed(first)
    assert is_computed(file)
    assert read_layout(second) == read_layout(first)
    with VolumeReader(first) as a, VolumeReader(second) as b:
        assert [*a.indices()] == [*b.indices()]
        for index in a.indices():
            np.testing.assert_array_equal(a.read(index), b.read(index))
    told = [json.loads((v / "zarr.json").read_bytes())["attributes"]["live_sr"] for v in (first, second)]
    for key in ("model", "statement", "raw", "session", "started", "source_pixel_size", "computed", "status"):
        assert told[0][key] == told[1][key]


@pytest.mark.parametrize("name", ["t c z", "positions", "well plate"])
def test_raw_ome_tiff_of_any_number_of_axes_becomes_a_volume_and_a_file(
    mmc: CMMCorePlus, tmp_path: Path, name: str
) -> None:
    """What pymmcore-plus writes: one file for each position."""
    got: list[Pixels] = []
    mmc.mda.events.frameReady.connect(lambda img: got.append(img.copy()))
    mmc.run_mda(SEQUENCES[name], output=tmp_path / "raw.ome.tiff", block=True)
    raw = tmp_path / "raw.ome.tiff" if name == "t c z" else tmp_path / "raw"
    report = enhance(raw, tmp_path / "sr.ome.zarr", Bilinear(SCALE))
    assert (report.written, report.complete) == (len(got), True)
    enhance(raw, tmp_path / "sr.ome.tiff", Bilinear(SCALE))
    convert(tmp_path / "sr.ome.tiff", tmp_path / "back.ome.zarr")
    with VolumeReader(tmp_path / "sr.ome.zarr") as volume, VolumeReader(tmp_path / "back.ome.zarr") as back:
        stored = [volume.read(index) for index in volume.indices()]
        assert [back.read(i).tobytes() for i in back.indices()] == [s.tobytes() for s in stored]
    expected = [bilinear(pixels, SCALE) for pixels in got]
    assert sorted(p.tobytes() for p in stored) == sorted(p.tobytes() for p in expected)
    assert len({p.tobytes() for p in expected}) > 1


def test_a_frame_that_is_missing_is_black_noted_and_missing_again(mmc: CMMCorePlus, tmp_path: Path) -> None:
    first, file, second = (tmp_path / n for n in ("a.ome.zarr", "b.ome.tiff", "c.ome.zarr"))
    with serving(Failing(3)) as server, LiveSR(server.address, save=first) as sr:
        sr.attach(mmc)
        mmc.run_mda(frames(5), output=tmp_path / "raw.ome.zarr", block=True)
    told: list[tuple[int, int]] = []
    converted = convert(first, file, progress=lambda done, n: told.append((done, n)))
    assert (converted.planes, converted.missing) == (5, 1)
    assert told == [(i, 10) for i in range(1, 11)]
    with VolumeReader(first) as reader:
        there = [reader.present({"t": t}) for t in range(5)]
    assert [bool(plane.any()) for plane in tifffile.imread(file)] == there
    assert convert(file, second).missing == 1
    with VolumeReader(second) as reader:
        assert [reader.present({"t": t}) for t in range(5)] == there


def test_large_files_are_bigtiff(mmc: CMMCorePlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CLASSIC_TIFF_BYTES", 1)
    acquire(mmc, tmp_path, "t c z")
    with tifffile.TiffFile(tmp_path / "sr.ome.tiff") as file:
        assert file.is_bigtiff
        assert file.series[0].shape == (2, 2, 3, SCALE * Y, SCALE * X)


def test_what_is_computed_is_not_computed_again_and_raw_is_not_converted(tmp_path: Path) -> None:
    raw = tmp_path / "raw.tif"
    tifffile.imwrite(raw, np.full((2, 8, 8), 7, np.uint16), photometric="minisblack")
    file = tmp_path / "sr.ome.tif"
    enhance(raw, file, Bilinear(SCALE))
    assert is_computed(file)
    assert not is_computed(raw)
    with pytest.raises(InputError, match="computed image itself"):
        enhance(file, tmp_path / "srsr.ome.tif", Bilinear(SCALE))
    with pytest.raises(InputError, match="other way round"):
        convert(file, tmp_path / "again.ome.tif")
    shutil.copy(raw, tmp_path / "raw.ome.tif")
    with pytest.raises(InputError, match="no description"):
        convert(tmp_path / "raw.ome.tif", tmp_path / "sr.ome.zarr")
    assert not (tmp_path / "sr.ome.zarr").exists()
