"""`enhance` fills what a mask marks and what a volume lacks, says so, and marks every pixel of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from test_enhance import attributes, entries, raw_volume, stored

from live_sr.archive import enhance as module
from live_sr.archive.enhance import enhance, mark_path
from live_sr.client.link import RemoteUpscaler
from live_sr.client.volume import read_layout
from live_sr.config import ServerSettings
from live_sr.errors import InputError, LiveSRError, StoreError
from live_sr.model import artifact
from live_sr.model.engine import Engine, load_engine
from live_sr.model.unet import NetworkSettings, SuperResolver
from live_sr.serve.loop import Server
from live_sr.upscaler import Bilinear
from series import seen
from tiny import record_of

Z, Y, X = 6, 16, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of three frames that takes a mask, with random weights."""
    settings = NetworkSettings(scale=2, widths=(4, 6), frames=3, holes=True)
    torch.manual_seed(5)
    net = SuperResolver(settings).eval()
    torch.nn.init.normal_(net.body.head.weight, std=0.2)
    record = record_of(net, settings, id="holes-x2")
    path = tmp_path_factory.mktemp("model") / "holes-x2.pt"
    artifact.save(net, record, path)
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    before = torch.get_num_threads()
    yield load_engine(str(model), device="cpu", precision="float32", threads=1)
    torch.set_num_threads(before)


def sections(n: int = Z) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(20_000, 24_000, (n, Y, X)).astype(np.uint16)


def holes() -> NDArray[np.bool_]:
    mask = np.zeros((Z, Y, X), bool)
    mask[1, 2:6, 4:15] = True
    mask[3, 8:] = True
    mask[4, 10:12] = True  # so that section 3 is filled from 2 alone there, and 4 from 5
    mask[:, 0, 0] = True  # nowhere
    return mask


def expected(engine: Engine, raw: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Section by section from the engine itself."""
    out = []
    for z in range(len(raw)):
        around = seen(z, 3, range(len(raw)))
        out += engine.fill([raw[around]], [mask[around]])
    return np.stack(out)


def marked(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """255 where a raw pixel was filled, twice as large."""
    filled = mask.copy()
    filled[:, 0, 0] = False  # the pixel that is nowhere
    return (255 * filled.repeat(2, 1).repeat(2, 2)).astype(np.uint8)


def live_sr(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "live_sr", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)


def write(path: Path, planes: NDArray[Any], **metadata: Any) -> Path:
    if planes.dtype == bool:
        planes = planes.astype(np.uint8)
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=metadata or {"axes": "ZYX"})
    return path


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_masked_pixels_of_a_file_are_filled_and_marked(tmp_path: Path, engine: Engine, suffix: str) -> None:
    raw, mask = sections(), holes()
    size = {"PhysicalSizeX": 8.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 8.0, "PhysicalSizeYUnit": "nm"}
    source = write(tmp_path / "in.ome.tif", np.where(mask, 0, raw), axes="ZYX", **size)
    target = tmp_path / f"out{suffix}"
    report = enhance(source, target, engine, missing=write(tmp_path / "mask.tif", mask))
    np.testing.assert_array_equal(tifffile.imread(target), expected(engine, raw, mask))
    mark = tmp_path / f"out.filled{suffix}"
    found = tifffile.imread(mark)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, marked(mask))
    filled = int(mask.sum()) - Z
    assert (report.filled, report.filled_pixels, report.black_pixels) == (3, filled, Z)
    assert (report.written, report.complete) == (Z, True)
    with tifffile.TiffFile(target) as result, tifffile.TiffFile(mark) as of_it:
        texts = [f.ome_metadata or f.pages.first.description for f in (result, of_it)]
        sizes = [f.pages.first.get_resolution("centimeter") for f in (result, of_it)]
    assert "filled from neighbouring frames: see out.filled" in texts[0]
    assert f"Mark: 255 where a pixel of out{suffix} was missing" in texts[1]
    assert sizes[0] == sizes[1] == pytest.approx((2.5e6, 2.5e6))


def test_what_lies_in_a_hole_does_not_matter(tmp_path: Path, engine: Engine) -> None:
    raw, mask = sections(), holes()
    write(tmp_path / "mask.tif", mask)
    for n, garbage in enumerate((0, 65535)):
        write(tmp_path / f"in{n}.tif", np.where(mask, garbage, raw).astype(np.uint16))
        enhance(tmp_path / f"in{n}.tif", tmp_path / f"out{n}.tif", engine, missing=tmp_path / "mask.tif")
    first, second = (tifffile.imread(tmp_path / f"out{n}.tif") for n in range(2))
    np.testing.assert_array_equal(first, second)


def test_without_a_mask_nothing_is_filled_and_nothing_marked(tmp_path: Path, engine: Engine) -> None:
    raw = sections()
    report = enhance(write(tmp_path / "in.tif", raw), tmp_path / "out.tif", engine)
    assert (report.filled, report.filled_pixels) == (0, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif", "out.tif"]
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "out.tif"), expected(engine, raw, np.zeros(raw.shape, bool))
    )


@pytest.mark.parametrize("kind", ["bool", "uint16", "zarr"])
def test_masks_of_every_kind_say_the_same(tmp_path: Path, engine: Engine, kind: str) -> None:
    mask = holes()
    source = write(tmp_path / "in.tif", sections(), axes="TYX")
    path = tmp_path / ("mask.ome.zarr" if kind == "zarr" else "mask.tif")
    if kind == "bool":
        tifffile.imwrite(path, mask, photometric="minisblack")
    elif kind == "uint16":
        write(path, mask.astype(np.uint16) * 700, axes="TYX")
    else:
        raw_volume(path, mask[:, None].astype(np.uint8))
        source = raw_volume(tmp_path / "in.ome.zarr", sections()[:, None])
    report = enhance(source, tmp_path / "out.tif", engine, missing=path)
    found = tifffile.imread(tmp_path / "out.filled.tif").reshape(Z, 2 * Y, 2 * X)
    np.testing.assert_array_equal(found, marked(mask))
    assert report.filled == 3


def test_a_mark_is_never_left_out(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mark cannot be written there is no result either; an old one is not overwritten."""
    source, mask = write(tmp_path / "in.tif", sections()), write(tmp_path / "mask.tif", holes())
    (tmp_path / "out.filled.tif").write_text("mine")
    with pytest.raises(StoreError, match=r"out.filled.tif exists and is not overwritten"):
        enhance(source, tmp_path / "out.tif", engine, missing=mask)
    assert (tmp_path / "out.filled.tif").read_text() == "mine"
    assert not (tmp_path / "out.tif").exists()

    def full(*args: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(module, "_mark", full)
    with pytest.raises(StoreError, match="the disk is full"):
        enhance(source, tmp_path / "new.tif", engine, missing=mask)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif", "mask.tif", "out.filled.tif"]


@pytest.mark.parametrize(
    ("target", "mark"),
    [
        ("a.tif", "a.filled.tif"),
        ("a.b.OME.TIFF", "a.b.filled.OME.TIFF"),
        ("run1.sr.ome.zarr", "run1.sr.filled.ome.zarr"),
        ("a.zarr", "a.filled.zarr"),
        ("a.png", "a.filled.png"),
    ],
)
def test_the_mark_lies_beside_the_result(target: str, mark: str) -> None:
    assert mark_path(Path("x") / target) == Path("x") / mark


# -------------------------------------------------------------------------------------------- volumes


def test_masked_pixels_of_a_volume_are_filled_and_marked(tmp_path: Path, engine: Engine) -> None:
    raw, mask = sections(), holes()
    source = raw_volume(tmp_path / "raw.ome.zarr", np.where(mask, 0, raw).astype(np.uint16)[:, None])
    target, mark = tmp_path / "sr.ome.zarr", tmp_path / "sr.filled.ome.zarr"
    write(tmp_path / "mask.ome.tif", mask[:, None], axes="TCYX")
    report = enhance(source, target, engine, missing=tmp_path / "mask.ome.tif")
    np.testing.assert_array_equal(stored(target)[:, 0], expected(engine, raw, mask))
    np.testing.assert_array_equal(stored(mark)[:, 0], marked(mask))
    assert stored(mark).dtype == np.uint8
    assert read_layout(mark).axes == read_layout(target).axes
    ours, its = attributes(target)["live_sr"], attributes(mark)["live_sr"]
    assert "see sr.filled.ome.zarr" in ours["statement"]
    assert ours["counts"]["filled_pixels"] == report.filled_pixels == int(mask.sum()) - Z
    assert its["statement"].startswith("Mark: 255")
    assert [e.filled for e in entries(target).values()] == [0, 44, 0, 8 * X, 2 * X, 0]


def test_frames_that_a_volume_lacks_are_filled_when_asked_for(tmp_path: Path, engine: Engine) -> None:
    raw = sections()
    source = raw_volume(tmp_path / "raw.ome.zarr", raw[:, None], skip=[0, 2])
    target, mark = tmp_path / "sr.ome.zarr", tmp_path / "sr.filled.ome.zarr"
    assert enhance(source, target, engine).missing == 2
    assert not mark.exists()
    report = enhance(source, target, engine, fill=True)
    assert (report.already, report.written, report.missing, report.complete) == (4, 2, 0, True)
    assert (report.filled, report.filled_pixels) == (2, 2 * Y * X)
    lost = np.zeros(raw.shape, bool)
    lost[[0, 2]] = True
    np.testing.assert_array_equal(stored(mark)[:, 0], 255 * lost.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(stored(target)[[0, 2], 0], expected(engine, raw, lost)[[0, 2]])
    found = entries(target)
    assert (found[2].filled, found[2].raw_crc32, found[2].used) == (Y * X, None, {"t": (1, 3)})
    assert found[0].used == {"t": (1, 1)}
    assert "were filled" in attributes(target)["live_sr"]["statement"]


def test_a_section_that_is_masked_whole_is_nobodys_neighbour_as_one_that_was_lost(
    tmp_path: Path, engine: Engine
) -> None:
    raw, mask = sections(), np.zeros((Z, Y, X), bool)
    mask[2] = True
    lost, masked = tmp_path / "lost.ome.zarr", tmp_path / "masked.ome.zarr"
    enhance(raw_volume(tmp_path / "raw1.ome.zarr", raw[:, None], skip=[2]), lost, engine, fill=True)
    given = write(tmp_path / "mask.tif", mask, axes="TYX")
    enhance(raw_volume(tmp_path / "raw2.ome.zarr", raw[:, None]), masked, engine, missing=given)
    used = [{n: (entry.used or {})["t"] for n, entry in entries(path).items()} for path in (lost, masked)]
    expected = {0: (1, 0, 1), 1: (0, 1, 0), 2: (1, 3), 3: (4, 3, 4), 4: (3, 4, 5), 5: (4, 5, 4)}
    assert used == [expected, expected]
    np.testing.assert_array_equal(stored(masked), stored(lost))


def test_a_frame_whose_neighbours_are_missing_too_stays_missing(tmp_path: Path, engine: Engine) -> None:
    source = raw_volume(tmp_path / "raw.ome.zarr", sections()[:, None], skip=[2, 3, 4])
    report = enhance(source, tmp_path / "sr.ome.zarr", engine, fill=True)
    assert (report.filled, report.missing, report.complete) == (2, 1, False)
    line = entries(tmp_path / "sr.ome.zarr")[3]
    assert (line.status, line.reason) == ("skipped", "missing in the raw volume, and not to be filled")
    report = enhance(source, tmp_path / "sr.ome.tif", engine, fill=True)
    assert report.missing == 1
    found = tifffile.imread(tmp_path / "sr.ome.tif")
    assert not found[3].any()
    assert found[[2, 4]].all()
    assert not tifffile.imread(tmp_path / "sr.filled.ome.tif")[3].any()


def test_filling_that_broke_off_goes_on_where_it_was_left(tmp_path: Path, engine: Engine) -> None:
    raw, mask = sections(), holes()
    source = raw_volume(tmp_path / "raw.ome.zarr", raw[:, None])
    write(tmp_path / "mask.tif", mask, axes="TYX")

    def stop(done: int, frames: int) -> None:
        if done == 4:
            raise LiveSRError("power cut")

    target, given = tmp_path / "sr.ome.zarr", tmp_path / "mask.tif"
    with pytest.raises(LiveSRError, match="power cut"):
        enhance(source, target, engine, missing=given, progress=stop)
    report = enhance(source, target, engine, missing=given)
    assert (report.already, report.written, report.complete) == (4, 2, True)
    np.testing.assert_array_equal(stored(tmp_path / "sr.ome.zarr")[:, 0], expected(engine, raw, mask))
    np.testing.assert_array_equal(stored(tmp_path / "sr.filled.ome.zarr")[:, 0], marked(mask))


def test_the_command_fills_and_says_how_much(tmp_path: Path, model: Path) -> None:
    source, mask = write(tmp_path / "in.tif", sections()), write(tmp_path / "mask.tif", holes())
    options = ("--missing", mask, "--precision", "float32", "--threads", 1)
    done = live_sr("enhance", source, tmp_path / "out.tif", "--model", model, *options)
    assert done.returncode == 0, done.stderr
    assert f"out.filled.tif: {int(holes().sum()) - Z} raw pixels of 3 frames filled" in done.stdout
    assert f"; {Z} that the neighbours lack as well stay black" in done.stdout
    refused = live_sr("enhance", source, tmp_path / "new.tif", "--model", "bilinear-x2-f3", *options)
    assert refused.returncode == 1
    assert "bilinear-x2-f3 fills no holes" in refused.stderr
    assert "Traceback" not in refused.stderr


# ------------------------------------------------------------------------------------------- refusals


def _float(path: Path) -> Path:
    tifffile.imwrite(path / "mask.tif", np.zeros((Z, Y, X), np.float32), photometric="minisblack")
    return path / "mask.tif"


def _colour(path: Path) -> Path:
    Image.fromarray(np.zeros((Y, X, 3), np.uint8)).save(path / "mask.png")
    return path / "mask.png"


def _zeros(path: Path, shape: tuple[int, ...], axes: str) -> Path:
    return write(path / "mask.ome.tif", np.zeros(shape, np.uint8), axes=axes)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: _zeros(p, (Z, Y, X - 1), "ZYX"), "planes of 16 x 19 pixels, not 16 x 20"),
        (lambda p: _zeros(p, (Z - 1, Y, X), "ZYX"), r"5 planes along \['z'\], not 6 along \['z'\]"),
        (lambda p: _zeros(p, (Y, X), "YX"), r"1 planes along \[\].* plane for each plane"),
        (lambda p: _zeros(p, (Z, Y, X), "CYX"), r"along \['c'\], not 6 along \['z'\]"),
        (_float, "is float32, not bool or uint8 or uint16"),
        (_colour, "mode 'RGB'"),
        (lambda p: p / "none.tif", "there is no"),
    ],
    ids=["size", "count", "one plane", "axis", "float", "colour", "nothing"],
)
def test_a_mask_that_does_not_fit_is_refused_before_computing(
    tmp_path: Path, engine: Engine, make: Any, says: str
) -> None:
    source, mask = write(tmp_path / "in.ome.tif", sections()), make(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        enhance(source, tmp_path / "out.tif", engine, missing=mask)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_a_model_without_holes_fills_nothing(tmp_path: Path, engine: Engine) -> None:
    source, mask = write(tmp_path / "in.tif", sections()), write(tmp_path / "mask.tif", holes())
    for wanted in ({"missing": mask}, {"fill": True}):
        with pytest.raises(
            InputError, match=r"bilinear-x2-f3 fills no holes: choose a model that was trained to"
        ):
            enhance(source, tmp_path / "out.tif", Bilinear(2, frames=3), **wanted)
    settings = ServerSettings(bind="tcp://127.0.0.1:*", max_pixels=10_000, warm_shapes=())
    with (
        Server(engine, settings) as server,
        RemoteUpscaler(server.address, session="files") as remote,
    ):
        with pytest.raises(InputError, match=r"holes-x2 fills no holes: .* not on a server"):
            enhance(source, tmp_path / "out.tif", remote, missing=mask)
        enhance(source, tmp_path / "live.tif", remote)
    enhance(source, tmp_path / "here.tif", engine)
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "live.tif"), tifffile.imread(tmp_path / "here.tif")
    )


def test_where_there_are_no_neighbours_nothing_can_be_filled(tmp_path: Path, engine: Engine) -> None:
    source = write(tmp_path / "in.tif", sections()[0], axes="YX")
    mask = write(tmp_path / "mask.tif", holes()[1], axes="YX")
    with pytest.raises(InputError, match=r"nothing can be filled in .*in.tif: holes-x2 sees"):
        enhance(source, tmp_path / "out.tif", engine, missing=mask)
