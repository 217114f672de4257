"""Pools of images become crops: where from, how often, and with which neighbours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray

from live_sr.errors import ConfigError, InputError
from live_sr.train.content import FLOOR, content_map
from live_sr.train.dataset import Augment, Crops
from live_sr.train.files import Place, Shelf, to_unit
from live_sr.train.pools import Pool, Source, load_pools

AS_IT_IS = Augment(zoom_share=0.0, window_share=0.0, invert_share=0.0, ends_share=0.0)


def image(dtype: str = "uint8", shape: tuple[int, ...] = (40, 50), seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_are_pieces_of_the_image_in_one_of_eight_orientations() -> None:
    pixels = image("uint16", (24, 30))
    crops = Crops([Pool("one", 1.0, [pixels])], 16, AS_IT_IS).batch(20, seeded())
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
    crops = Crops([Pool("one", 1.0, [pixels])], 16, zoomed).batch(50, seeded())
    unit = to_unit(pixels)
    assert float(crops.mean()) == pytest.approx(float(unit.mean()), abs=0.01)
    assert float(crops.std()) < 0.8 * float(unit.std())


def test_windows_and_inversion_stay_in_range_and_vary_contrast() -> None:
    pixels = (image(shape=(64, 64)) // 4 + 96).astype(np.uint8)
    varied = Augment(zoom_share=0.0, window_share=1.0, gain=(0.5, 2.0), invert_share=0.5)
    crops = Crops([Pool("one", 1.0, [pixels])], 32, varied).batch(100, seeded())
    assert float(crops.min()) >= 0.0
    assert float(crops.max()) <= 1.0
    stds = crops.std(dim=(1, 2, 3)) / float(to_unit(pixels).std())
    assert float(stds.min()) < 0.6
    assert float(stds.max()) > 1.7


def test_shares_decide_how_often_each_pool_is_drawn() -> None:
    black, white = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    pools = [Pool("black", 3.0, [black]), Pool("white", 1.0, [white])]
    crops = Crops(pools, 16, AS_IT_IS).batch(2000, seeded())
    assert float(crops.mean()) == pytest.approx(0.25, abs=0.04)


def test_images_smaller_than_a_crop_are_an_error_when_nothing_else_is_there() -> None:
    with pytest.raises(InputError, match="no training image has 64 x 64 pixels"):
        Crops([Pool("small", 1.0, [image()])], 64, AS_IT_IS)


def test_the_same_generator_gives_the_same_crops_from_memory_and_from_the_disk(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", image(shape=(3, 64, 64)), photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", image(shape=(90, 64)), tile=(16, 16), compression="zlib")
    batches = []
    for shelf in (Shelf(), Shelf(0)):
        pools, files = load_pools([Source(name="all", files="*")], [tmp_path], shelf=shelf)
        assert [f.name for f in files] == ["a.tif", "b.tif"]
        batches.append(Crops(pools, 16, Augment()).batch(40, seeded(3)))
    assert torch.equal(*batches)
    assert not torch.equal(batches[0], Crops(pools, 16, Augment()).batch(40, seeded(4)))


# ------------------------------------------------------------------------------------------------ content


def half_empty(edge: int = 256) -> NDArray[np.uint8]:
    """Structure on the left, noise on the right."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(40, 215, (edge // 8, edge // 8)), np.ones((8, 8)))
    coarse[:, edge // 2 :] = 128
    return np.clip(coarse + rng.normal(0, 12, (edge, edge)), 0, 255).astype(np.uint8)


def test_content_is_found_under_noise() -> None:
    content = content_map(half_empty())
    assert (content.weights.shape, content.cell) == ((8, 8), 32)
    assert content.weights[:, :4].min() > 0.5
    assert content.weights[:, 4:].max() <= 2 * FLOOR


def test_crops_without_content_are_rarer_but_not_absent() -> None:
    crops = Crops([Pool("one", 1.0, [half_empty()])], 48, AS_IT_IS).batch(600, seeded())
    empty = float((crops.std(dim=(1, 2, 3)) < 0.07).float().mean())
    assert 0.03 < empty < 0.2  # of all places, 0.35 are


def test_images_without_content_are_rarer_but_not_absent() -> None:
    rng = np.random.default_rng(1)
    faint = np.rint(70 + (half_empty() - 128.0) / 5).astype(np.uint8)
    empty = np.clip(rng.normal(20, 3, (256, 256)), 0, 255).astype(np.uint8)
    pool = Pool("four", 1.0, [half_empty(), faint, half_empty(), empty])
    level = Crops([pool], 48, AS_IT_IS).batch(1200, seeded()).mean(dim=(1, 2, 3)) * 255
    assert float((level < 40).float().mean()) == pytest.approx(1 / 16, abs=0.02), "where it is drawn twice"
    faint_share = float(((level > 40) & (level < 95)).float().mean())
    assert faint_share == pytest.approx(5 / 16, abs=0.04), "a fifth of the contrast is content"


def test_a_pool_of_empty_images_is_drawn_from_evenly() -> None:
    flat = [np.full((64, 64), level, np.uint8) for level in (0, 100, 200)]
    crops = Crops([Pool("flat", 1.0, flat)], 48, AS_IT_IS).batch(600, seeded())
    for level in (0, 100, 200):
        share = float(((crops * 255).round().flatten(1)[:, 0] == level).float().mean())
        assert share == pytest.approx(1 / 3, abs=0.07)


def test_places_are_even_where_content_is() -> None:
    marked = np.add.outer(np.arange(100) * 200, np.arange(100)).astype(np.uint16)
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 2, marked.shape)  # as much to see everywhere
    crops = Crops([Pool("one", 1.0, [(marked * 2 + noisy).astype(np.uint16)])], 60, AS_IT_IS)
    corners = (crops.batch(800, seeded()).amin(dim=(1, 2, 3)) * 65535 / 2).round().int()
    rows, columns = corners // 200, corners % 200
    for starts in (rows, columns):
        counts = torch.histc(starts.float(), bins=4, min=0, max=41)
        assert int(starts.max()) <= 40
        assert float(counts.min()) > 800 / 4 * 0.75


def test_large_planes_are_judged_by_a_bounded_number_of_cells() -> None:
    content = content_map(np.zeros((3, 10_000), np.uint8))
    assert (content.weights.shape, content.cell) == ((1, 62), 160)
    assert (content.weights == 1).all()


# --------------------------------------------------------------------------------------------- neighbours


def numbered(n: int, first: int = 0) -> list[NDArray[np.uint8]]:
    return [np.full((16, 16), first + i, np.uint8) for i in range(n)]


def stack_pool(n: int, *, missing: tuple[int, ...] = ()) -> Pool:
    kept = [i for i in range(n) if i not in missing]
    places = [Place("s.tif", "s", 0, i) for i in kept]
    return Pool("stack", 1.0, [numbered(n)[i] for i in kept], stack=True, places=places)


def drawn(crops: Crops, n: int = 60) -> set[tuple[int, ...]]:
    batch = (crops.batch(n, seeded())[:, :, 0, 0] * 255).round().int()
    return {tuple(row) for row in batch.tolist()}


def test_neighbours_surround_the_middle_and_ends_are_mirrored() -> None:
    crops = Crops([stack_pool(4)], 8, AS_IT_IS, frames=3)
    assert crops.batch(2, seeded()).shape == (2, 3, 8, 8)
    assert drawn(crops) == {(1, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 2)}
    assert drawn(Crops([stack_pool(4)], 8, AS_IT_IS, frames=5)) == {
        (2, 1, 0, 1, 2),
        (3, 0, 1, 2, 3),
        (0, 1, 2, 3, 0),
        (1, 2, 3, 2, 1),
    }


def test_some_crops_are_shown_as_at_an_end_of_their_series() -> None:
    ends = Augment(zoom_share=0.0, window_share=0.0, invert_share=0.0, ends_share=1.0)
    assert drawn(Crops([stack_pool(1 + 4 + 4)], 8, ends, frames=5), 600) >= {
        *((6, 5, 4, 5, 6), (2, 3, 4, 3, 2), (4, 4, 4, 4, 4)),
        *((6, 3, 4, 5, 6), (2, 3, 4, 5, 2), (3, 3, 4, 5, 5)),
    }
    some = Augment(zoom_share=0.0, window_share=0.0, invert_share=0.0, ends_share=0.1)
    crops = Crops([stack_pool(100)], 8, some, frames=3).batch(1000, seeded())
    repeats = (crops[:, 0] == crops[:, 2]).flatten(1).all(1)
    assert float(repeats.float().mean()) == pytest.approx(0.1 + 0.02, abs=0.03), "two of a hundred are ends"


def test_a_gap_is_an_end() -> None:
    crops = Crops([stack_pool(6, missing=(2,))], 8, AS_IT_IS, frames=3)
    assert drawn(crops) == {(1, 0, 1), (0, 1, 0), (4, 3, 4), (3, 4, 5), (4, 5, 4)}


def test_planes_of_another_stack_are_no_neighbours(tmp_path: Path) -> None:
    stacks = np.stack(numbered(6)).reshape(2, 3, 16, 16)
    for name in "ab":
        data = stacks + (100 if name == "b" else 0)
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", data.astype(np.uint8), metadata={"axes": "TZYX"})
    pools, _ = load_pools([Source(name="s", files="*", stack=True)], [tmp_path])
    one = {(1, 0, 1), (0, 1, 2), (1, 2, 1), (4, 3, 4), (3, 4, 5), (4, 5, 4)}
    expected = one | {tuple(100 + i for i in row) for row in one}
    assert drawn(Crops(pools, 8, AS_IT_IS, frames=3), 200) == expected


def test_neighbours_are_time_points_for_a_network_of_time_points(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", np.stack(numbered(6)).reshape(3, 2, 16, 16), metadata={"axes": "TZYX"}
    )
    pools, _ = load_pools([Source(name="s", files="*", stack=True)], [tmp_path], neighbours="t")
    expected = {(2, 0, 2), (0, 2, 4), (2, 4, 2), (3, 1, 3), (1, 3, 5), (3, 5, 3)}
    assert drawn(Crops(pools, 8, AS_IT_IS, frames=3), 200) == expected


def test_images_without_neighbours_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    single = Pool("single", 9.0, [*numbered(3, 100)])
    lonely = Pool("lonely", 9.0, [*numbered(1, 200)], stack=True)
    with caplog.at_level(logging.WARNING):
        crops = Crops([stack_pool(3), single, lonely], 8, AS_IT_IS, frames=3)
    assert drawn(crops) == {(1, 0, 1), (0, 1, 2), (1, 2, 1)}
    assert "single: 3 of 3 images have no neighbour, which 3 frames need" in caplog.text
    assert "lonely: 1 of 1 images have no neighbour" in caplog.text
    assert {row[0] for row in drawn(Crops([single, lonely], 8, AS_IT_IS))} == {100, 101, 102, 200}
    with pytest.raises(InputError, match=r"and a neighbour: set stack = true"):
        Crops([single], 8, AS_IT_IS, frames=3)


def test_all_frames_are_varied_alike() -> None:
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(60, 180, (16, 16)), np.ones((8, 8))).astype(np.uint8)
    places = [Place("s.tif", "s", 0, i) for i in range(3)]
    pool = Pool("stack", 1.0, [base, base, base], stack=True, places=places)
    crops = Crops([pool], 32, Augment(window_share=1.0, invert_share=0.5), frames=3).batch(20, seeded())
    assert torch.equal(crops[:, 0], crops[:, 1])
    assert torch.equal(crops[:, 2], crops[:, 1])


@pytest.mark.parametrize("frames", [0, 2, -1])
def test_an_even_number_of_frames_has_no_middle(frames: int) -> None:
    with pytest.raises(ConfigError, match=f"frames = {frames}"):
        Crops([stack_pool(3)], 8, AS_IT_IS, frames=frames)


def test_small_images_are_named_when_larger_ones_are_there(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool("mixed", 1.0, [image(), image(shape=(64, 64))])
    with caplog.at_level(logging.WARNING):
        Crops([pool], 64, AS_IT_IS)
    assert "mixed: 1 of 2 images have fewer than 64 x 64 pixels and are left out: mixed 0" in caplog.text
