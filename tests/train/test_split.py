"""Validation is apart from training: other files, or other regions with a guard between."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from live_sr.errors import ConfigError, InputError
from live_sr.train.files import Place, Shelf
from live_sr.train.pools import Pool, Source, load_pools
from live_sr.train.split import Split, split_pools


def write(folder: Path, names: str, shape: tuple[int, ...] = (24, 24)) -> None:
    """Files whose pixels are all different, within a file and between files."""
    for n, name in enumerate(names.split()):
        pixels = (np.arange(np.prod(shape)) + 10_000 * n).astype(np.uint16).reshape(shape)
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="minisblack")


def files_of(pools: list[Pool]) -> set[str]:
    return {place.file for pool in pools for place in pool.places}


def test_whole_files_are_set_apart_and_always_the_same_ones(tmp_path: Path) -> None:
    write(tmp_path, "a b c d e f g h i j k l", (2, 24, 24))
    pools, _ = load_pools([Source(name="all", files="*")], [tmp_path])
    train, validation = split_pools(pools, Split(by="file", fraction=0.25))
    assert len(files_of(validation)) == 3
    assert files_of(train) | files_of(validation) == files_of(pools)
    assert not files_of(train) & files_of(validation)
    assert (len(train[0].images), len(validation[0].images)) == (18, 6)
    again = tmp_path / "moved"
    again.mkdir()
    for path in tmp_path.glob("*.tif"):
        path.rename(again / path.name)
    moved, _ = load_pools([Source(name="all", files="*")], [again])
    assert files_of(split_pools(moved, Split(fraction=0.25))[1]) == files_of(validation)


def test_what_one_source_validates_on_no_other_trains_on(tmp_path: Path) -> None:
    write(tmp_path, "a b c d e f g h")
    (tmp_path / "copy_of_a.tif").write_bytes((tmp_path / "a.tif").read_bytes())
    patterns = ["[abcdef].tif", "[defgh].tif", "[abc]*.tif"]
    pools, _ = load_pools([Source(name=p, files=p) for p in patterns], [tmp_path])
    train, validation = split_pools(pools, Split(fraction=0.3))
    seen, held = ({place.sha256 for pool in side for place in pool.places} for side in (train, validation))
    assert held
    assert not seen & held


def test_a_single_file_cannot_be_split_by_file(tmp_path: Path) -> None:
    write(tmp_path, "a")
    pools, _ = load_pools([Source(name="all", files="*")], [tmp_path])
    with pytest.raises(InputError, match='split by = "region"'):
        split_pools(pools, Split(by="file"))


@pytest.mark.parametrize("shape", [(400, 100), (100, 400)], ids=str)
@pytest.mark.parametrize("held", [True, False], ids=["held", "lazy"])
def test_a_guard_lies_between_the_regions_of_an_image(
    tmp_path: Path, shape: tuple[int, int], held: bool
) -> None:
    write(tmp_path, "a", (2, *shape))
    pools, _ = load_pools([Source(name="all", files="*")], [tmp_path], shelf=Shelf() if held else Shelf(0))
    (train,), (validation,) = split_pools(pools, Split(by="region", fraction=0.2, guard_px=50))
    for whole, a, b in zip(pools[0].images, train.images, validation.images, strict=True):
        y, x = shape
        pixels = whole[0:y, 0:x]
        first = a[0 : a.shape[0], 0 : a.shape[1]]
        last = b[0 : b.shape[0], 0 : b.shape[1]]
        if y > x:
            np.testing.assert_array_equal(first, pixels[:270])
            np.testing.assert_array_equal(last, pixels[320:])
        else:
            np.testing.assert_array_equal(first, pixels[:, :270])
            np.testing.assert_array_equal(last, pixels[:, 320:])


def test_a_stack_is_cut_between_planes_with_guard_planes(tmp_path: Path) -> None:
    write(tmp_path, "a b", (20, 30, 30))
    pools, _ = load_pools([Source(name="all", files="*", stack=True)], [tmp_path])
    (train,), (validation,) = split_pools(pools, Split(by="region", fraction=0.1, guard_planes=3))
    for name in ("a.tif", "b.tif"):
        seen, held = ([p.at for p in side.places if p.file == name] for side in (train, validation))
        assert (seen, held) == ([*range(15)], [18, 19])
    assert all(image.shape == (30, 30) for image in (*train.images, *validation.images))


def test_of_a_short_stack_two_neighbours_are_set_apart() -> None:
    plane = np.zeros((30, 30), np.uint8)
    places = [Place("s.tif", "s", 0, n) for n in range(12)]
    pool = Pool("short", 1.0, [plane] * 12, stack=True, places=places)
    _, (validation,) = split_pools([pool], Split(by="region", fraction=0.05))
    assert [place.at for place in validation.places] == [10, 11]
    shorter = pool.take(range(10))
    with pytest.raises(InputError, match="no stack for 2 planes, a guard of 4 and its own half"):
        split_pools([shorter], Split(by="region"))


def test_small_images_and_short_stacks_stay_in_training() -> None:
    small, large = np.zeros((200, 200), np.uint8), np.zeros((600, 600), np.uint8)
    stack = [Place("s.tif", "s", 0, n) for n in range(5)]
    pools = [Pool("images", 1.0, [small, large]), Pool("short", 1.0, [large] * 5, stack=True, places=stack)]
    train, validation = split_pools(pools, Split(by="region"))
    assert [(pool.name, [i.shape for i in pool.images]) for pool in train] == [
        ("images", [(200, 200), (472, 600)]),
        ("short", [(600, 600)] * 5),
    ]
    assert [(pool.name, [i.shape for i in pool.images]) for pool in validation] == [("images", [(64, 600)])]
    with pytest.raises(InputError, match="no image has room for a strip of 64 px, a guard of 64 px"):
        split_pools([Pool("small", 1.0, [small])], Split(by="region"))


def test_one_file_is_not_cut_in_two_ways(tmp_path: Path) -> None:
    write(tmp_path, "a", (20, 300, 30))
    sources = [Source(name="one", files="*", stack=True), Source(name="other", files="a*")]
    pools, _ = load_pools(sources, [tmp_path])
    with pytest.raises(ConfigError, match=r"a\.tif is in the sources 'one' and 'other'"):
        split_pools(pools, Split(by="region"))


def test_a_source_that_only_validates_is_named(caplog: pytest.LogCaptureFixture) -> None:
    images = [np.zeros((8, 8), np.uint8)] * 2
    places = [Place(name, name, 0, 0) for name in "ab"]
    pools = [Pool("two", 1.0, images, places=places), Pool("first", 1.0, images[:1], places=places[:1])]
    with caplog.at_level(logging.WARNING):
        train, _ = split_pools(pools, Split(fraction=0.5))
    assert [pool.name for pool in train] == ["two"]
    assert "first: all its files are validated on" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"fraction": 0.0}, {"fraction": 1.0}, {"guard_px": -1}, {"guard_planes": -1}]
)
def test_settings_that_set_nothing_apart_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = {next(iter(wrong.values()))}"):
        split_pools([], Split(**wrong))  # type: ignore[arg-type]
