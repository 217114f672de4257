"""Files and volumes through `enhance` and back from the disk, read by other libraries than those that wrote."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ome_writers as omew
import pytest
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image

from live_sr.archive.enhance import enhance
from live_sr.client import images
from live_sr.client import journal as journals
from live_sr.client.journal import journal_path
from live_sr.client.link import RemoteUpscaler
from live_sr.client.store import SRStore
from live_sr.client.volume import read_layout
from live_sr.config import ServerSettings
from live_sr.errors import InputError, LiveSRError, RemoteError, StoreError
from live_sr.frame import Pixels
from live_sr.model import artifact
from live_sr.model.engine import load_engine
from live_sr.serve.loop import Server
from live_sr.upscaler import Bilinear, UpscalerInfo, bilinear

SCALE = 4


def scan(*shape: int, dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    frames: NDArray[Any] = np.random.default_rng(seed).integers(1, np.iinfo(dtype).max, shape).astype(dtype)
    return frames


def restored(raw: NDArray[Any], scale: int = SCALE) -> NDArray[Any]:
    planes = raw.reshape(-1, *raw.shape[-2:])
    stack = np.stack([bilinear(plane, scale) for plane in planes])
    return stack.reshape(*raw.shape[:-2], *stack.shape[-2:])


def stored(image: Path) -> NDArray[Any]:
    return np.asarray(zarr.open_array(image / "0", mode="r")[:])


class Counting(Bilinear):
    """Bilinear that counts its frames, and does as told at some of them."""

    def __init__(self, at: dict[int, Exception] | None = None, sha256: str = "0" * 64) -> None:
        super().__init__(SCALE)
        self.calls = 0
        self._at = at or {}
        self._sha256 = sha256

    @property
    def info(self) -> UpscalerInfo:
        return replace(super().info, sha256=self._sha256)

    def upscale(self, frames: Sequence[Pixels]) -> list[Pixels]:
        self.calls += 1
        if self.calls - 1 in self._at:
            raise self._at[self.calls - 1]
        return super().upscale(frames)


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(7, 9), (5, 16, 12), (1, 40)], ids=str)
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".ome.tiff"])
def test_tiff_to_tiff(tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: str) -> None:
    raw = scan(*shape, dtype=dtype)
    tifffile.imwrite(tmp_path / "in.tif", raw, photometric="minisblack")
    target = tmp_path / f"out{suffix}"
    report = enhance(tmp_path / "in.tif", target, Bilinear(SCALE))
    frames = raw.size // (shape[-1] * shape[-2])
    assert (report.frames, report.written, report.complete) == (frames, frames, True)
    found = tifffile.imread(target)
    assert found.dtype == raw.dtype
    np.testing.assert_array_equal(found, restored(raw))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in.tif", target.name])


def test_ome_tiff_keeps_axes_scales_and_channels(tmp_path: Path) -> None:
    raw = scan(3, 2, 10, 14)
    source, target = tmp_path / "in.ome.tif", tmp_path / "out.ome.tif"
    metadata: dict[str, Any] = {
        "axes": "TCYX",
        "PhysicalSizeX": 8.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 6.0,
        "PhysicalSizeYUnit": "nm",
        "TimeIncrement": 0.25,
        "TimeIncrementUnit": "s",
        "Channel": {"Name": ["InLens", "ESB"]},
    }
    tifffile.imwrite(source, raw, photometric="minisblack", metadata=metadata)
    upscaler = Counting(sha256="ab" * 32)
    enhance(source, target, upscaler)
    with tifffile.TiffFile(target) as file:
        assert file.series[0].axes == "TCYX"
        np.testing.assert_array_equal(file.asarray(), restored(raw))
        image = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]
        pixels = image["Pixels"]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (2.0, "nm")
        assert (pixels["PhysicalSizeY"], pixels["PhysicalSizeYUnit"]) == (1.5, "nm")
        assert (pixels["TimeIncrement"], pixels["TimeIncrementUnit"]) == (0.25, "s")
        assert [channel["Name"] for channel in pixels["Channel"]] == ["InLens", "ESB"]
        for part in ("Computed image", "bilinear-x4", "ab" * 32, "in.ome.tif"):
            assert part in image["Description"]
        assert file.pages.first.get_resolution("micrometer") == pytest.approx((500, 1e3 / 1.5))


def test_plain_tiff_says_that_it_is_computed_and_keeps_the_pixel_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scan(8, 8), resolution=(1e6, 2e6), resolutionunit="CENTIMETER")
    enhance(tmp_path / "in.tif", tmp_path / "out.tif", Bilinear(SCALE))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert "Computed image" in file.pages.first.description
        assert "bilinear-x4" in file.pages.first.description
        assert file.pages.first.get_resolution("centimeter") == pytest.approx((4e6, 8e6))


def test_a_printers_resolution_is_not_taken_for_a_pixel_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scan(8, 8), resolution=(72, 72), resolutionunit="INCH")
    enhance(tmp_path / "in.tif", tmp_path / "out.ome.tif", Bilinear(SCALE))
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        assert "PhysicalSize" not in (file.ome_metadata or "")


@pytest.mark.parametrize(
    ("nm", "says"),
    [
        (16.0, None),
        (500.0, r"pixel size is 0\.5 µm, bilinear-x4 was trained for 0\.012 to 0\.16 µm"),
        (None, "is unknown"),
    ],
    ids=["inside", "outside", "unknown"],
)
def test_pixel_sizes_that_the_model_was_not_trained_for_give_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, nm: float | None, says: str | None
) -> None:
    described = {"PhysicalSizeX": nm, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": nm, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "in.ome.tif", scan(8, 8), metadata=described if nm else {})
    model = Bilinear(SCALE)
    model._info = replace(model.info, pixel_size_um=(0.012, 0.16))
    enhance(tmp_path / "in.ome.tif", tmp_path / "out.tif", model)
    if says is None:
        assert caplog.text == ""
    else:
        assert re.search(says, caplog.text)


def test_imagej_stack_keeps_pixel_size_and_interval(tmp_path: Path) -> None:
    raw = scan(3, 2, 8, 6)
    tifffile.imwrite(
        tmp_path / "in.tif",
        raw,
        imagej=True,
        resolution=(100.0, 50.0),
        metadata={"axes": "TCYX", "unit": "um", "finterval": 0.5},
    )
    enhance(tmp_path / "in.tif", tmp_path / "out.ome.zarr", Bilinear(SCALE))
    t, _, y, x = read_layout(tmp_path / "out.ome.zarr").axes
    assert (t.scale, t.unit) == (0.5, "second")
    assert [y.scale, x.scale] == pytest.approx([0.005, 0.0025])
    assert (y.unit, x.unit) == ("micrometer", "micrometer")


def test_several_images_of_an_ome_tiff_become_positions(tmp_path: Path) -> None:
    raw = [scan(2, 6, 8, seed=seed) for seed in range(3)]
    with tifffile.TiffWriter(tmp_path / "in.ome.tif", ome=True) as file:
        for image in raw:
            file.write(image, photometric="minisblack", metadata={"axes": "ZYX"})
    report = enhance(tmp_path / "in.ome.tif", tmp_path / "out.ome.zarr", Bilinear(SCALE))
    assert report.written == 6
    for position, image in zip(read_layout(tmp_path / "out.ome.zarr").positions, raw, strict=True):
        found = stored(tmp_path / "out.ome.zarr" / position.path)
        np.testing.assert_array_equal(found, restored(image))
    enhance(tmp_path / "in.ome.tif", tmp_path / "out.ome.tif", Bilinear(SCALE))
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as written:
        for series, image in zip(written.series, raw, strict=True):
            np.testing.assert_array_equal(series.asarray(), restored(image))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_to_png(tmp_path: Path, dtype: str) -> None:
    raw = scan(9, 7, dtype=dtype)
    Image.fromarray(raw).save(tmp_path / "in.png")
    enhance(tmp_path / "in.png", tmp_path / "out.PNG", Bilinear(SCALE))
    with Image.open(tmp_path / "out.PNG") as image:
        np.testing.assert_array_equal(np.asarray(image), restored(raw))
        assert "bilinear-x4" in str(image.info["Description"])


def test_large_files_are_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CLASSIC_TIFF_BYTES", 3 * 32 * 32 * 2 - 1)
    raw = scan(3, 8, 8)
    tifffile.imwrite(tmp_path / "in.tif", raw, photometric="minisblack")
    enhance(tmp_path / "in.tif", tmp_path / "out.ome.tif", Bilinear(SCALE))
    enhance(tmp_path / "in.tif", tmp_path / "small.png.tif", Bilinear(2))
    with (
        tifffile.TiffFile(tmp_path / "out.ome.tif") as big,
        tifffile.TiffFile(tmp_path / "small.png.tif") as small,
    ):
        assert (big.is_bigtiff, small.is_bigtiff) == (True, False)


def test_planes_are_read_one_by_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scan(6, 8, 8), photometric="minisblack")
    source = images.open_source(tmp_path / "in.tif")
    reads: list[int] = []
    read = source.read

    def planes() -> Iterator[Pixels]:
        for index in source.indices():
            reads.append(index["q"])
            plane = read(index)
            assert plane is not None
            yield bilinear(plane, 2)
            assert len(reads) == index["q"] + 1  # the writer had this plane before it asked for the next

    images.write_image(tmp_path / "out.tif", source.layout.scaled(2), planes(), statement="")
    source.close()
    assert reads == [0, 1, 2, 3, 4, 5]


def test_progress_is_told_for_each_frame(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scan(3, 8, 8), photometric="minisblack")
    told: list[tuple[int, int]] = []
    enhance(tmp_path / "in.tif", tmp_path / "o.tif", Bilinear(2), progress=lambda *n: told.append(n))
    assert told == [(1, 3), (2, 3), (3, 3)]


# ------------------------------------------------------------------------------------------- refusals


def _rgb_tiff(path: Path) -> Path:
    tifffile.imwrite(path / "in.tif", scan(8, 8, 3, dtype="uint8"), photometric="rgb")
    return path / "in.tif"


def _float_tiff(path: Path) -> Path:
    tifffile.imwrite(path / "in.tif", np.zeros((8, 8), np.float32))
    return path / "in.tif"


def _complex_tiff(path: Path) -> Path:
    tifffile.imwrite(path / "in.tif", np.zeros((8, 8), np.complex64))
    return path / "in.tif"


def _inverted_tiff(path: Path) -> Path:
    tifffile.imwrite(path / "in.tif", scan(8, 8), photometric="miniswhite")
    return path / "in.tif"


def _mixed_tiff(path: Path) -> Path:
    with tifffile.TiffWriter(path / "in.tif") as file:
        file.write(scan(8, 8), metadata=None)
        file.write(scan(6, 8), metadata=None)
    return path / "in.tif"


def _not_a_tiff(path: Path) -> Path:
    (path / "in.tif").write_bytes(b"II*\x00nothing")
    return path / "in.tif"


def _rgb_png(path: Path) -> Path:
    Image.fromarray(scan(8, 8, 3, dtype="uint8")).save(path / "in.png")
    return path / "in.png"


def _palette_png(path: Path) -> Path:
    Image.fromarray(scan(8, 8, dtype="uint8")).convert("P").save(path / "in.png")
    return path / "in.png"


def _not_a_png(path: Path) -> Path:
    (path / "in.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return path / "in.png"


def _jpeg(path: Path) -> Path:
    Image.fromarray(scan(8, 8, dtype="uint8")).save(path / "in.jpg")
    return path / "in.jpg"


def _too_large(path: Path) -> Path:
    tifffile.imwrite(path / "in.tif", scan(300, 8))
    return path / "in.tif"


def _nothing(path: Path) -> Path:
    return path / "in.tif"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_rgb_tiff, "not grey levels.*RGB"),
        (_float_tiff, "is float32.*convert it without rescaling"),
        (_complex_tiff, "is complex64"),
        (_inverted_tiff, "not grey levels.*MINISWHITE"),
        (_mixed_tiff, "different kinds"),
        (_not_a_tiff, "not a TIFF|holds no image"),
        (_rgb_png, "mode 'RGB'"),
        (_palette_png, "mode 'P'"),
        (_not_a_png, "not a PNG"),
        (_jpeg, "must end with one of"),
        (_too_large, "300 x 8 pixels.*accepts 1000"),
        (_nothing, "there is no"),
    ],
)
def test_what_cannot_be_restored_is_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        enhance(source, tmp_path / "out.tif", Bilinear(SCALE, max_pixels=1000))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["out.tif", "out.ome.tif", "out.png"])
def test_an_existing_file_is_never_overwritten(tmp_path: Path, name: str) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scan(8, 8))
    (tmp_path / name).write_text("mine")
    with pytest.raises(StoreError, match="not overwritten"):
        enhance(tmp_path / "in.tif", tmp_path / name, Bilinear(SCALE))
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scan(2, 8, 8), photometric="minisblack")
    target = tmp_path / "out.tif"

    def another_program(done: int, frames: int) -> None:
        target.write_text("mine")

    with pytest.raises(StoreError, match="meanwhile"):
        enhance(tmp_path / "in.tif", target, Bilinear(SCALE), progress=another_program)
    assert target.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scan(3, 8, 8), photometric="minisblack")
    with pytest.raises(LiveSRError, match="gone"):
        enhance(tmp_path / "in.tif", tmp_path / "out.tif", Counting({1: LiveSRError("server gone")}))
    assert [p.name for p in tmp_path.iterdir()] == ["in.tif"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out.png", "takes one plane, not 3"),
        ("out.ome.tif", "has no axis 'h'"),
        ("out.jpg", "must end with"),
        ("no/out.tif", "no folder"),
    ],
)
def test_targets_that_cannot_take_the_source_are_refused_before_computing(
    tmp_path: Path, target: str, message: str
) -> None:
    raw = scan(3, 8, 8)
    tifffile.imwrite(tmp_path / "in.tif", raw, photometric="minisblack", metadata={"axes": "HYX"})
    upscaler = Counting()
    with pytest.raises((InputError, StoreError), match=message):
        enhance(tmp_path / "in.tif", tmp_path / target, upscaler)
    assert upscaler.calls == 0


# -------------------------------------------------------------------------------------------- volumes

POSITIONS = ["Pos0", "Pos1"]


def raw_volume(path: Path, frames: NDArray[Any], *, positions: bool = False, skip: Sequence[int] = ()) -> Path:
    """As pymmcore-plus stores it: `frames` is (p, t, c, y, x), or (t, c, y, x)."""
    t, c, y, x = frames.shape[-4:]
    dims = [
        omew.Dimension(name="t", count=t, type="time", chunk_size=1, scale=2.0, unit="second"),
        omew.Dimension(name="c", type="channel", chunk_size=1, coords=[*["InLens", "ESB"][:c]]),
        omew.Dimension(name="y", count=y, type="space", chunk_size=y, scale=0.008, unit="micrometer"),
        omew.Dimension(name="x", count=x, type="space", chunk_size=x, scale=0.008, unit="micrometer"),
    ]
    if positions:
        dims.insert(0, omew.Dimension(name="p", type="position", coords=[*POSITIONS]))
    settings = omew.AcquisitionSettings(
        root_path=str(path),
        dimensions=tuple(dims),
        dtype=frames.dtype.name,
        format=omew.OmeZarrFormat(backend="tensorstore"),
    )
    with omew.create_stream(settings) as stream:
        for i, frame in enumerate(frames.reshape(-1, y, x)):
            if i in skip:
                stream.skip(frames=1)
            else:
                stream.append(frame)
    return path


def entries(volume: Path) -> dict[int, journals.Entry]:
    return journals.read(journal_path(volume)).frames


def attributes(volume: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((volume / "zarr.json").read_text())["attributes"]
    return found


def test_volume_to_volume_keeps_axes_and_overlays_raw(tmp_path: Path) -> None:
    frames = scan(3, 2, 8, 12)
    source, target = raw_volume(tmp_path / "raw.ome.zarr", frames), tmp_path / "sr.ome.zarr"
    report = enhance(source, target, Bilinear(SCALE))
    assert (report.written, report.complete) == (6, True)
    np.testing.assert_array_equal(stored(target), restored(frames))
    t, c, y, x = read_layout(target).axes
    assert [a.name for a in (t, c, y, x)] == ["t", "c", "y", "x"]
    assert (t.scale, t.unit) == (2.0, "second")
    assert read_layout(target).channel_names == ("InLens", "ESB")
    for axis in (y, x):
        assert axis.scale == pytest.approx(0.002)
        assert axis.unit == "micrometer"
        assert axis.translation == pytest.approx(-(1 - 1 / 4) / 2 * 0.008)
    ours = attributes(target)["live_sr"]
    assert (ours["status"], ours["counts"]["written"]) == ("complete", 6)
    assert ours["model"]["sha256"] == Bilinear(4).info.sha256
    assert {e.status for e in entries(target).values()} == {"saved"}


def test_position_groups_are_kept(tmp_path: Path) -> None:
    frames = scan(2, 2, 1, 8, 12)
    source = raw_volume(tmp_path / "raw.ome.zarr", frames, positions=True)
    target = tmp_path / "sr.ome.zarr"
    assert enhance(source, target, Bilinear(SCALE)).written == 4
    for name, frame in zip(POSITIONS, frames, strict=True):
        found = stored(target / name)
        np.testing.assert_array_equal(found, restored(frame))


def test_volume_to_ome_tiff(tmp_path: Path) -> None:
    frames = scan(3, 2, 8, 12)
    source = raw_volume(tmp_path / "raw.ome.zarr", frames, skip=[3])
    report = enhance(source, tmp_path / "out.ome.tif", Bilinear(SCALE))
    assert (report.written, report.missing, report.complete) == (5, 1, False)
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as file:
        assert file.series[0].axes == "TCYX"
        expected = restored(frames)
        expected[1, 1] = 0
        np.testing.assert_array_equal(file.asarray(), expected)
        pixels = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]["Pixels"]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (pytest.approx(0.002), "µm")


def test_frames_that_were_never_acquired_are_named_and_filled_in_later(tmp_path: Path) -> None:
    frames = scan(4, 1, 8, 8)
    source = raw_volume(tmp_path / "raw.ome.zarr", frames, skip=[1, 3])
    target = tmp_path / "sr.ome.zarr"
    report = enhance(source, target, Bilinear(SCALE))
    assert (report.written, report.missing, report.complete) == (2, 2, False)
    assert [e.status for e in entries(target).values()] == ["saved", "skipped", "saved", "skipped"]
    assert attributes(target)["live_sr"]["status"] == "incomplete"
    shutil.rmtree(source)
    raw_volume(source, frames)
    report = enhance(source, target, Bilinear(SCALE))
    assert (report.written, report.already, report.complete) == (2, 2, True)
    np.testing.assert_array_equal(stored(target), restored(frames))


def test_a_cut_short_live_run_is_completed(tmp_path: Path) -> None:
    frames = scan(5, 2, 8, 8)
    source = raw_volume(tmp_path / "raw.ome.zarr", frames)
    target = tmp_path / "sr.ome.zarr"
    layout = read_layout(source).scaled(SCALE)
    layout = replace(layout, axes=(replace(layout.axes[0], size=None), *layout.axes[1:]))  # ended by hand
    live = SRStore.create(
        target, layout, provenance={"model": {"id": "bilinear-x4", "sha256": "0" * 64, "scale": SCALE}}
    )
    for n in (7, 0, 1, 4):  # newest first, then older ones
        index = {"t": n // 2, "c": n % 2}
        live.write(n, index, np.full((32, 32), n, np.uint16))
    live.note_failure(5, {"t": 2, "c": 1}, "the server refused it")
    live.close({}, "incomplete")

    upscaler = Counting()
    report = enhance(source, target, upscaler)
    assert (report.frames, report.already, report.written, upscaler.calls) == (10, 4, 6, 6)
    found = stored(target).reshape(10, 32, 32)
    expected = restored(frames).reshape(10, 32, 32)
    for n in range(10):
        wanted = np.full((32, 32), n) if n in (7, 0, 1, 4) else expected[n]
        np.testing.assert_array_equal(found[n], wanted)
    assert entries(target)[5].status == "saved"  # the line of the failed frame was replaced
    assert len(entries(target)) == 10
    assert enhance(source, target, upscaler).already == 10
    assert upscaler.calls == 6


def test_a_run_that_broke_off_can_be_continued(tmp_path: Path) -> None:
    frames = scan(4, 1, 8, 8)
    source = raw_volume(tmp_path / "raw.ome.zarr", frames)
    target = tmp_path / "sr.ome.zarr"
    with pytest.raises(LiveSRError, match="gone"):
        enhance(source, target, Counting({2: LiveSRError("server gone")}))
    assert attributes(target)["live_sr"]["status"] == "incomplete"
    report = enhance(source, target, Counting())
    assert (report.already, report.written, report.complete) == (2, 2, True)
    np.testing.assert_array_equal(stored(target), restored(frames))


def test_one_bad_frame_does_not_stop_the_others(tmp_path: Path) -> None:
    frames = scan(4, 1, 8, 8)
    source = raw_volume(tmp_path / "raw.ome.zarr", frames)
    (chunk,) = [p for p in (source / "0").rglob("*") if p.is_file() and p.parts[-4:] == ("3", "0", "0", "0")]
    chunk.write_bytes(b"damage")
    target = tmp_path / "sr.ome.zarr"
    report = enhance(source, target, Counting({1: RemoteError("failed", "out of memory")}))
    assert (report.written, report.failed, report.complete) == (2, 2, False)
    assert "out of memory" in report.problems[0]
    assert [e.status for e in entries(target).values()] == ["saved", "failed", "saved", "failed"]
    assert enhance(source, target, Counting()).written == 1  # the refused one; the damaged one stays failed


def test_another_model_is_refused_naming_both(tmp_path: Path) -> None:
    source = raw_volume(tmp_path / "raw.ome.zarr", scan(2, 1, 8, 8))
    target = tmp_path / "sr.ome.zarr"
    enhance(source, target, Counting(sha256="a" * 64))
    with pytest.raises(StoreError, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        enhance(source, target, Counting(sha256="b" * 64))


def test_a_volume_of_other_shape_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "sr.ome.zarr"
    enhance(raw_volume(tmp_path / "a.ome.zarr", scan(2, 1, 8, 8)), target, Bilinear(SCALE))
    with pytest.raises(StoreError, match="does not fit"):
        enhance(raw_volume(tmp_path / "b.ome.zarr", scan(2, 1, 8, 12)), target, Bilinear(SCALE))


def test_a_raw_volume_is_never_continued_and_a_computed_one_never_restored(tmp_path: Path) -> None:
    source = raw_volume(tmp_path / "raw.ome.zarr", scan(2, 1, 8, 8))
    with pytest.raises(StoreError, match="live-sr"):
        enhance(source, source, Bilinear(SCALE))
    enhance(source, tmp_path / "sr.ome.zarr", Bilinear(SCALE))
    with pytest.raises(InputError, match="computed"):
        enhance(tmp_path / "sr.ome.zarr", tmp_path / "srsr.ome.zarr", Bilinear(SCALE))


@pytest.mark.parametrize("shape", [(8, 12), (3, 8, 12)], ids=str)
def test_a_tiff_becomes_a_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    raw = scan(*shape)
    tifffile.imwrite(tmp_path / "in.tif", raw, photometric="minisblack")
    enhance(tmp_path / "in.tif", tmp_path / "out.ome.zarr", Bilinear(SCALE))
    np.testing.assert_array_equal(stored(tmp_path / "out.ome.zarr"), restored(raw))


def test_a_server_restores_files_as_well(tmp_path: Path) -> None:
    raw = scan(3, 16, 24)
    tifffile.imwrite(tmp_path / "in.tif", raw, photometric="minisblack")
    settings = ServerSettings(bind="tcp://127.0.0.1:*", max_pixels=10_000, warm_shapes=())
    with (
        Server(Bilinear(SCALE), settings) as server,
        RemoteUpscaler(server.address, session="files") as upscaler,
    ):
        report = enhance(tmp_path / "in.tif", tmp_path / "out.ome.zarr", upscaler)
    assert report.complete
    np.testing.assert_array_equal(stored(tmp_path / "out.ome.zarr"), restored(raw))


def test_real_stack_with_the_engine_gives_what_live_gives(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "em-x4" not in artifact.shipped():
        pytest.skip("no shipped weights in this checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    threads = torch.get_num_threads()
    engine, live = (load_engine("em-x4", device="cpu", threads=1) for _ in range(2))
    stack = tifffile.imread(shared_data / "fibsem_medulla" / "val_520px_adjacent.ome.tif")[:2, :96, :128]
    tifffile.imwrite(tmp_path / "in.ome.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    enhance(tmp_path / "in.ome.tif", tmp_path / "out.ome.tif", engine)
    computed = tifffile.imread(tmp_path / "out.ome.tif")
    np.testing.assert_array_equal(computed, np.stack(live.upscale(list(stack))))
    torch.set_num_threads(threads)
