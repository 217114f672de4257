"""Image files become grey planes; what cannot be used is named."""

from __future__ import annotations

import hashlib
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ome_writers as omew
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from live_sr.errors import ConfigError, InputError
from live_sr.train.files import (
    OPEN_FILES,
    Part,
    Shelf,
    StoredPlane,
    find_files,
    hash_file,
    load_files,
    part_of,
    read_images,
)


def image(dtype: str = "uint8", shape: tuple[int, ...] = (40, 50), seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def write_tiff(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, pixels, photometric="minisblack", **options)
    return path


def write_zarr(path: Path, pixels: NDArray[Any], axes: str = "zyx", *, skip: tuple[int, ...] = ()) -> Path:
    kinds = {"t": "time", "c": "channel"}
    dims = [
        omew.Dimension(name=a, count=n, type=kinds.get(a, "space"), chunk_size=16 if a in "yx" else 1)
        for a, n in zip(axes, pixels.shape, strict=True)
    ]
    settings = omew.AcquisitionSettings(root_path=str(path), dimensions=tuple(dims), dtype=pixels.dtype.name)
    with omew.create_stream(settings) as stream:
        for n, plane in enumerate(pixels.reshape(-1, *pixels.shape[-2:])):
            stream.skip(frames=1) if n in skip else stream.append(plane)
    return path


# ------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.png", "a.ome.zarr"])
def test_formats_come_back_unchanged(tmp_path: Path, dtype: str, name: str) -> None:
    pixels = image(dtype)
    if name.endswith("png"):
        Image.fromarray(pixels).save(tmp_path / name)
    elif name.endswith("zarr"):
        write_zarr(tmp_path / name, pixels[None])
    else:
        tifffile.imwrite(tmp_path / name, pixels, ome=".ome." in name)
    (back,) = read_images(tmp_path / name)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, pixels)


def test_every_plane_of_a_stack_is_an_image_and_knows_its_place(tmp_path: Path) -> None:
    stack = image(shape=(2, 3, 20, 30))
    tifffile.imwrite(tmp_path / "s.ome.tif", stack, ome=True, metadata={"axes": "TZYX"})
    (file,) = load_files([tmp_path], ["*"])
    np.testing.assert_array_equal(np.stack(file.images), stack.reshape(-1, 20, 30))
    assert [(place.stack, place.at) for place in file.places] == [(t, z) for t in range(2) for z in range(3)]


def test_time_points_are_neighbours_where_there_are_no_sections(tmp_path: Path) -> None:
    stack = image(shape=(4, 2, 20, 30))
    tifffile.imwrite(tmp_path / "s.ome.tif", stack, ome=True, metadata={"axes": "TCYX"})
    (file,) = load_files([tmp_path], ["*"], channel=1)
    np.testing.assert_array_equal(np.stack(file.images), stack[:, 1])
    assert [(place.stack, place.at) for place in file.places] == [(0, t) for t in range(4)]


def test_frames_that_were_never_written_leave_a_gap(tmp_path: Path) -> None:
    stack = image("uint16", (4, 32, 32))
    write_zarr(tmp_path / "s.ome.zarr", stack, skip=(1,))
    (file,) = load_files([tmp_path], ["*"])
    np.testing.assert_array_equal(np.stack(file.images), stack[[0, 2, 3]])
    assert [place.at for place in file.places] == [0, 2, 3]


@pytest.mark.parametrize("kind", ["ome-tiff", "imagej", "zarr"])
def test_one_channel_is_taken_and_none_is_guessed(tmp_path: Path, kind: str) -> None:
    pixels = image("uint16", (2, 40, 48))
    if kind == "zarr":
        write_zarr(tmp_path / "c.ome.zarr", pixels, "cyx")
    elif kind == "imagej":
        tifffile.imwrite(tmp_path / "c.tif", pixels, imagej=True, metadata={"axes": "CYX"})
    else:
        tifffile.imwrite(
            tmp_path / "c.ome.tif", pixels, metadata={"axes": "CYX", "Channel": {"Name": ["SE", "ESB"]}}
        )
    ((path, _),) = find_files([tmp_path])
    for channel in (0, 1):
        np.testing.assert_array_equal(read_images(path, channel=channel), pixels[channel][None])
    with pytest.raises(InputError, match=r"has 2 channels.*: choose one, channel = 0"):
        read_images(path)
    with pytest.raises(InputError, match="has no channel 2, only 2"):
        read_images(path, channel=2)


# --------------------------------------------------------------------------------------------- grey values


def test_a_given_range_becomes_black_and_white(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.array([[-3.0, -2.0, 0.0, 2.0, 7.0]], np.float32))
    (back,) = read_images(tmp_path / "a.tif", value_range=(-2.0, 2.0))
    assert back.tolist() == [[0, 0, 32768, 65535, 65535]]
    write_tiff(tmp_path / "b.tif", np.array([[0, 1365, 4095, 5000]], np.uint16))
    (back,) = read_images(tmp_path / "b.tif", value_range=(0, 4095))
    assert back.tolist() == [[0, 21845, 65535, 65535]]


def test_a_hot_pixel_does_not_decide_what_is_white(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).uniform(200, 300, (100, 100)).astype(np.float32)
    pixels[3, 4] = 1e6
    write_tiff(tmp_path / "a.tif", pixels)
    (file,) = load_files([tmp_path], ["*"])
    assert file.range == pytest.approx((200, 300), abs=1)
    (back,) = file.images
    assert back.dtype == np.uint16
    unit = ((pixels - file.range[0]) / (file.range[1] - file.range[0])).clip(0, 1)
    np.testing.assert_allclose(back[0:100, 0:100] / 65535, unit, atol=1e-5)


def test_the_range_of_a_stack_is_one_for_all_planes(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    write_tiff(tmp_path / "a.tif", np.stack([ramp, ramp * 0.5]))
    bright, dim = read_images(tmp_path / "a.tif")
    assert dim.max() == pytest.approx(bright.max() / 2, rel=0.01)


def test_a_range_that_is_none_stops_the_run(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", image())
    with pytest.raises(ConfigError, match=r"range = \[5, 5\]"):
        load_files([tmp_path], ["*"], value_range=(5, 5))


# ------------------------------------------------------------------------------------------------ bad files


def garbage(path: Path) -> None:
    path.write_bytes(b"II*\0 this is no TIFF file")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    write_tiff(path, image(), compression="zlib")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(path: Path) -> None:
    write_tiff(path, image(), compression="zlib")
    content = bytearray(path.read_bytes())
    content[-100:-50] = bytes(50)
    path.write_bytes(content)


def colour(path: Path) -> None:
    tifffile.imwrite(path, image(shape=(20, 20, 3)), photometric="rgb")


def channels(path: Path) -> None:
    tifffile.imwrite(path, image(shape=(3, 20, 20)), imagej=True, metadata={"axes": "CYX"})


def not_a_number(path: Path) -> None:
    pixels = np.ones((20, 20), np.float32)
    pixels[3, 4] = np.nan
    write_tiff(path, pixels)


def infinite(path: Path) -> None:
    pixels = np.ones((2, 20, 20), np.float32)
    pixels[1, 3, 4] = -np.inf
    write_tiff(path, pixels)


def flat(path: Path) -> None:
    write_tiff(path, np.full((20, 20), 3.5, np.float32))


def signed(path: Path) -> None:
    write_tiff(path, np.zeros((20, 20), np.int16))


BAD = {
    garbage: "not a TIFF|no image",
    empty: "not a TIFF",
    truncated: "cannot be decoded|not a TIFF",
    damaged: "cannot be decoded",
    colour: r"not grey levels \(RGB",
    channels: "has 3 channels",
    not_a_number: "holds NaN or infinite values",
    infinite: r"holds NaN or infinite values \(plane {'q': 1}\)",
    flat: "one grey value only, 3.5",
    signed: "is int16, not uint8 or uint16 or float32",
}


@pytest.mark.parametrize("held", [True, False], ids=["held", "lazy"])
@pytest.mark.parametrize(("spoil", "why"), BAD.items(), ids=[f.__name__ for f in BAD])
def test_a_bad_file_is_named_skipped_and_counted(
    tmp_path: Path, spoil: Callable[[Path], None], why: str, held: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiff(tmp_path / "good.tif", image())
    spoil(tmp_path / "bad.tif")
    with caplog.at_level(logging.WARNING, "live_sr"):
        files = load_files([tmp_path], ["*"], shelf=Shelf() if held else Shelf(0))
    assert [f.name for f in files] == ["good.tif"]
    said, count = [r.getMessage() for r in caplog.records if r.name.startswith("live_sr")]
    assert count == "1 of 2 image files could not be used"
    assert said.startswith(f"skipped: {'page' if 'page' in said[:14] else tmp_path / 'bad.tif'}")
    assert "bad.tif" in said
    assert "\n" not in said
    with pytest.raises(InputError, match=why):
        read_images(tmp_path / "bad.tif")


@pytest.mark.parametrize(
    ("pixels", "why"),
    [(None, "not a PNG file"), (image(shape=(8, 8, 3)), "mode 'RGB'")],
    ids=["none", "colour"],
)
def test_a_bad_png_is_refused(tmp_path: Path, pixels: NDArray[Any] | None, why: str) -> None:
    if pixels is None:
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    else:
        Image.fromarray(pixels).save(tmp_path / "bad.png")
    with pytest.raises(InputError, match=rf"bad\.png is .*{why}"):
        read_images(tmp_path / "bad.png")


def test_bytes_that_are_wrong_anywhere_never_crash(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", image(shape=(2, 9, 9)), metadata={"axes": "ZYX"})
    good, rng = path.read_bytes(), np.random.default_rng(0)
    refused, read = 0, 0
    for _ in range(200):
        content = bytearray(good)
        for at in rng.integers(0, len(good), 3):
            content[at] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, len(good))] if rng.random() < 0.3 else content)
        try:
            read_images(path)
        except InputError as e:
            refused += "a.tif" in str(e) and "\n" not in str(e)
        else:
            read += 1
    assert refused + read == 200
    assert refused > 50


def test_patterns_choose_and_exclude(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/train_a.tif", "sub/val_a.tif", "other.tif"):
        write_tiff(tmp_path / name, image())
    (tmp_path / "notes.txt").write_text("no image")
    assert [f.name for f in load_files([tmp_path], ["*train_*"])] == ["sub/train_a.tif"]
    assert [f.name for f in load_files([tmp_path], ["*"], ["*val_*"])] == ["other.tif", "sub/train_a.tif"]


def test_a_volume_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_zarr(tmp_path / "sub" / "v.ome.zarr", image("uint16", (2, 32, 32)))
    (tmp_path / "sub" / "v.ome.zarr" / "thumbnail.png").write_bytes(b"")
    assert [name for _, name in find_files([tmp_path])] == ["sub/v.ome.zarr"]


def test_no_files_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable image"):
        load_files([tmp_path], ["*"])
    with pytest.raises(InputError, match="no data folder"):
        load_files([tmp_path / "absent"], ["*"])


# -------------------------------------------------------------------------------------------- large files


@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [
        ("a.tif", {}, "uint16"),
        ("a.tif", {"tile": (16, 16), "compression": "zlib"}, "uint8"),
        ("a.tif", {"compression": "zlib"}, "float32"),
        ("a.png", {}, "uint8"),
        ("a.ome.zarr", {}, "uint16"),
    ],
    ids=["plain", "tiled", "float", "png", "zarr"],
)
def test_planes_read_from_the_disk_are_those_in_memory(
    tmp_path: Path, name: str, options: dict[str, Any], dtype: str
) -> None:
    pixels = image("uint16", (3, 48, 64)).astype(dtype)
    if name.endswith("png"):
        Image.fromarray(pixels[0]).save(tmp_path / name)
    elif name.endswith("zarr"):
        write_zarr(tmp_path / name, pixels)
    else:
        write_tiff(tmp_path / name, pixels, **options)
    held, lazy = (load_files([tmp_path], ["*"], shelf=shelf)[0] for shelf in (Shelf(), Shelf(0)))
    assert (held.sha256, held.places, held.range) == (lazy.sha256, lazy.places, lazy.range)
    for a, b in zip(held.images, lazy.images, strict=True):
        assert isinstance(a, np.ndarray)
        assert isinstance(b, StoredPlane)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        for window in ((slice(0, 48), slice(0, 64)), (slice(5, 40), slice(17, 18))):
            np.testing.assert_array_equal(a[window], b[window])
            part = part_of(b, window)
            assert isinstance(part, Part)
            np.testing.assert_array_equal(part[0:1, 0:1], a[window][0:1, 0:1])


def test_memory_is_given_once_to_all_files(tmp_path: Path) -> None:
    for n in range(3):
        write_tiff(tmp_path / f"{n}.tif", image("uint16", (10, 10), seed=n))
    shelf = Shelf(400)
    files = load_files([tmp_path], ["*"], shelf=shelf)
    assert [isinstance(f.images[0], np.ndarray) for f in files] == [True, True, False]


def test_a_large_stack_is_opened_and_cropped_without_being_loaded(tmp_path: Path) -> None:
    stack = tifffile.memmap(tmp_path / "a.tif", shape=(16, 2048, 2048), dtype="uint8", photometric="minisblack")
    stack[9, 1000:1010, 1000:1010] = 7
    stack.flush()
    del stack
    tracemalloc.start()
    (file,) = load_files([tmp_path], ["*"], shelf=Shelf(1000))
    crop = file.images[9][1000:1010, 1000:1010]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (crop == 7).all()
    assert peak < 6 * 2**20  # the last plane is read to see that it can be: 4 MB of 64 MB


def test_a_file_that_is_decoded_as_a_whole_for_each_crop_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiff(tmp_path / "whole.tif", image(), compression="zlib")
    write_tiff(tmp_path / "tiles.tif", image(), compression="zlib", tile=(16, 16))
    with caplog.at_level(logging.WARNING, "live_sr"):
        load_files([tmp_path], ["*"], shelf=Shelf(0))
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("live_sr")]
    assert said.startswith("whole.tif is too large to be held in memory")


def test_no_more_files_are_open_than_a_system_allows(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "0.tif", image(shape=(4, 4)))
    for n in range(1, OPEN_FILES + 9):
        (tmp_path / f"{n}.tif").hardlink_to(path)
    shelf = Shelf(0)
    files = load_files([tmp_path], ["*"], shelf=shelf)
    assert len(files) == OPEN_FILES + 9
    assert len(shelf._open) == OPEN_FILES
    for file in files:
        np.testing.assert_array_equal(file.images[0][0:4, 0:4], image(shape=(4, 4)))
    shelf.close()
    np.testing.assert_array_equal(files[0].images[0][0:4, 0:4], image(shape=(4, 4)))


def test_hashes_are_those_of_other_programs_and_of_whole_volumes(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", image())
    assert hash_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    a, b = (write_zarr(tmp_path / f"{n}.ome.zarr", image("uint16", (2, 32, 32))) for n in "ab")
    assert hash_file(a / "0") == hash_file(b / "0")
    chunk = next(p for p in sorted((b / "0").rglob("*")) if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes() + b"\0")
    assert hash_file(a / "0") != hash_file(b / "0")
