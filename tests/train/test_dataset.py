"""Folders of images become crops; files that cannot be used are named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from skimage.io import imsave

from live_sr.errors import InputError
from live_sr.train.dataset import Augment, Crops
from live_sr.train.files import load_files, read_images, to_unit
from live_sr.train.pools import Pool
from live_sr.train.procedural import Procedural, render_pool

AS_IT_IS = Augment(zoom_share=0.0, window_share=0.0, invert_share=0.0)


def image(dtype: str = "uint8", shape: tuple[int, ...] = (40, 50), seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.png"])
def test_formats_come_back_unchanged(tmp_path: Path, dtype: str, name: str) -> None:
    pixels = image(dtype)
    if name.endswith("png"):
        imsave(tmp_path / name, pixels, check_contrast=False)
    else:
        tifffile.imwrite(tmp_path / name, pixels, ome=".ome." in name)
    (back,) = read_images(tmp_path / name)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, pixels)


def test_every_plane_of_a_stack_is_an_image(tmp_path: Path) -> None:
    stack = image(shape=(3, 20, 30))
    tifffile.imwrite(tmp_path / "s.ome.tif", stack, ome=True, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(read_images(tmp_path / "s.ome.tif"), stack)


def garbage(path: Path) -> None:
    path.write_bytes(b"II*\0 this is no TIFF file")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    tifffile.imwrite(path, image(), compression="zlib")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def floats(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((20, 20), np.float32))


def colour(path: Path) -> None:
    tifffile.imwrite(path, image(shape=(20, 20, 3)), photometric="rgb")


@pytest.mark.parametrize("spoil", [garbage, empty, truncated, floats, colour], ids=lambda f: f.__name__)
def test_a_bad_file_is_named_skipped_and_counted(
    tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    tifffile.imwrite(tmp_path / "good.tif", image())
    spoil(tmp_path / "bad.tif")
    with caplog.at_level(logging.WARNING):
        files = load_files([tmp_path], ["*"])
    assert [f.name for f in files] == ["good.tif"]
    assert "bad.tif" in caplog.text
    assert "1 of 2 image files could not be used" in caplog.text


def test_a_png_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(InputError, match=r"bad\.png cannot be read"):
        read_images(tmp_path / "bad.png")


def test_patterns_choose_and_exclude(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/train_a.tif", "sub/val_a.tif", "other.tif"):
        tifffile.imwrite(tmp_path / name, image())
    (tmp_path / "notes.txt").write_text("no image")
    assert [f.name for f in load_files([tmp_path], ["*train_*"])] == ["sub/train_a.tif"]
    assert [f.name for f in load_files([tmp_path], ["*"], ["*val_*"])] == ["other.tif", "sub/train_a.tif"]


def test_no_files_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable image"):
        load_files([tmp_path], ["*"])
    with pytest.raises(InputError, match="no data folder"):
        load_files([tmp_path / "absent"], ["*"])


def test_crops_are_pieces_of_the_image_in_one_of_eight_orientations() -> None:
    pixels = image("uint16", (24, 30))
    crops = Crops([Pool("one", 1.0, [pixels])], 16, AS_IT_IS).batch(20, torch.Generator().manual_seed(0))
    assert crops.shape == (20, 1, 16, 16)
    unit = to_unit(pixels)
    pieces = {unit[y : y + 16, x : x + 16].tobytes() for y in range(9) for x in range(15)}
    orientations = set()
    for crop in crops[:, 0].numpy():
        turned = {(k, f): np.rot90(crop[:, ::-1] if f else crop, k) for k in range(4) for f in (0, 1)}
        found = [key for key, t in turned.items() if np.ascontiguousarray(t).tobytes() in pieces]
        assert len(found) == 1
        orientations.update(found)
    assert len(orientations) > 4


def test_zooming_out_keeps_the_mean_and_removes_detail() -> None:
    pixels = image(shape=(64, 64))
    zoomed = Augment(zoom_share=1.0, zoom_max=4.0, window_share=0.0, invert_share=0.0)
    crops = Crops([Pool("one", 1.0, [pixels])], 16, zoomed).batch(50, torch.Generator().manual_seed(0))
    unit = to_unit(pixels)
    assert float(crops.mean()) == pytest.approx(float(unit.mean()), abs=0.01)
    assert float(crops.std()) < 0.8 * float(unit.std())


def test_windows_and_inversion_stay_in_range_and_vary_contrast() -> None:
    pixels = (image(shape=(64, 64)) // 4 + 96).astype(np.uint8)
    varied = Augment(zoom_share=0.0, window_share=1.0, gain=(0.5, 2.0), invert_share=0.5)
    crops = Crops([Pool("one", 1.0, [pixels])], 32, varied).batch(100, torch.Generator().manual_seed(0))
    assert float(crops.min()) >= 0.0
    assert float(crops.max()) <= 1.0
    stds = crops.std(dim=(1, 2, 3)) / float(to_unit(pixels).std())
    assert float(stds.min()) < 0.6
    assert float(stds.max()) > 1.7


def test_shares_decide_how_often_each_pool_is_drawn() -> None:
    black, white = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    pools = [Pool("black", 3.0, [black]), Pool("white", 1.0, [white])]
    crops = Crops(pools, 16, AS_IT_IS).batch(2000, torch.Generator().manual_seed(0))
    assert float(crops.mean()) == pytest.approx(0.25, abs=0.04)


def test_images_smaller_than_a_crop_are_an_error_when_nothing_else_is_there() -> None:
    with pytest.raises(InputError, match="no training image has 64 x 64 pixels"):
        Crops([Pool("small", 1.0, [image()])], 64, AS_IT_IS)


def test_rendered_images_are_reproducible_and_kept(tmp_path: Path) -> None:
    settings = Procedural(images=2, size=48, share=1.0)
    first = render_pool(settings, seed=3, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    again, fresh = render_pool(settings, seed=3, cache=tmp_path), render_pool(settings, seed=3)
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images, fresh.images)
    assert not np.array_equal(first.images[0], first.images[1])
    other = render_pool(settings, seed=4, cache=tmp_path)
    assert not np.array_equal(first.images[0], other.images[0])
