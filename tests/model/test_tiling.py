"""The tile rule by itself, and with the real network: tiles must give what the whole frame gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from live_sr.model.tiling import tiles
from live_sr.model.unet import NetworkSettings, SuperResolver, measure_halo
from tiny import one_thread  # noqa: F401  a fixture

SHAPES = [(1, 1), (64, 64), (65, 64), (97, 131), (1, 5000), (5000, 3), (200, 33), (130, 400)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("core", "halo", "multiple"), [(32, 12, 4), (32, 13, 8), (37, 5, 4), (32, 0, 1)])
def test_cores_cover_every_pixel_once(shape: tuple[int, int], core: int, halo: int, multiple: int) -> None:
    covered = np.zeros(shape, int)
    for tile in tiles(shape, core=core, halo=halo, multiple=multiple):
        covered[tile.core] += 1
        assert covered[tile.window][tile.inner].shape == covered[tile.core].shape
        for window, kept, inner, size in zip(tile.window, tile.core, tile.inner, shape, strict=True):
            assert window.start % multiple == kept.start % multiple == 0
            assert window.start + inner.start == kept.start
            assert kept.start - window.start >= halo or window.start == 0
            assert window.stop - kept.stop >= halo or window.stop == size
    assert (covered == 1).all()


@pytest.mark.parametrize(
    ("shape", "pieces"),
    [((1024, 1024), 1), ((2048, 512), 1), ((1, 1024 * 1024), 1), ((1025, 1024), 6), ((2048, 2048), 16)],
    ids=str,
)
def test_frames_up_to_a_million_pixels_stay_whole(shape: tuple[int, int], pieces: int) -> None:
    assert len(list(tiles(shape, core=512, halo=40, multiple=4))) == pieces


def test_tiles_of_one_frame_are_of_equal_size_up_to_the_multiple() -> None:
    rows = {t.core[0].stop - t.core[0].start for t in tiles((1030, 2000), core=512, halo=40, multiple=4)}
    assert rows == {344, 342}  # not 512, 512 and 6


def restore_by_tiles(network: SuperResolver, x: torch.Tensor, *, core: int, halo: int) -> torch.Tensor:
    s = network.scale
    out = torch.full((1, 1, s * x.shape[2], s * x.shape[3]), float("nan"))
    for tile in tiles((x.shape[2], x.shape[3]), core=core, halo=halo, multiple=network.multiple):
        piece = network(x[..., tile.window[0], tile.window[1]])
        kept, inner = (
            [slice(s * part.start, s * part.stop) for part in region] for region in (tile.core, tile.inner)
        )
        out[..., kept[0], kept[1]] = piece[..., inner[0], inner[1]]
    return out


@pytest.fixture(scope="module")
def network() -> SuperResolver:
    torch.manual_seed(7)
    network = SuperResolver(NetworkSettings(scale=2, widths=(4, 6, 8))).eval()
    torch.nn.init.normal_(network.body.head.weight, std=0.3)  # untrained, it is zero
    return network


@pytest.mark.parametrize("shape", [(180, 180), (97, 131), (131, 71), (3, 1500), (257, 33)], ids=str)
def test_tiles_give_what_the_whole_frame_gives(network: SuperResolver, shape: tuple[int, int]) -> None:
    halo = measure_halo(NetworkSettings(scale=2, widths=(4, 6, 8)))
    x = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = network(x)
        tiled = restore_by_tiles(network, x, core=32, halo=halo)
        too_little = restore_by_tiles(network, x, core=32, halo=halo // 4)
    assert (tiled - whole).abs().max() < 2e-6 * whole.abs().max()
    assert (too_little - whole).abs().max() > 1e-4 * whole.abs().max()
