"""The network takes any size, tiles exactly, and keeps the regional mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from live_sr.model.artifact import torchscript
from live_sr.model.unet import NetworkSettings, SuperResolver, blur, count_kmac, measure_halo
from live_sr.neighbours import FrameCount

SMALL = NetworkSettings(scale=2, widths=(4, 6, 8))


def network(settings: NetworkSettings = SMALL, seed: int = 0, strength: float = 1.0) -> SuperResolver:
    """Random weights everywhere, the head included."""
    torch.manual_seed(seed)
    net = SuperResolver(settings)
    nn.init.normal_(net.body.head.weight, std=0.1 * strength)
    assert net.body.head.bias is not None
    nn.init.constant_(net.body.head.bias, 0.5 * strength)
    return net.eval()


def run(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = net(x)
    return out


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (4, 4), (17, 33), (40, 24)], ids=str)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_any_size_comes_back_scaled(shape: tuple[int, int], scale: int) -> None:
    net = network(NetworkSettings(scale=scale, widths=(4, 6, 8)))
    out = run(net, torch.randn(2, 1, *shape))
    assert out.shape == (2, 1, scale * shape[0], scale * shape[1])
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all())


def test_scripted_equals_eager() -> None:
    net = network()
    x = torch.randn(1, 1, 19, 26)
    with torchscript():
        scripted = torch.jit.script(net)
    torch.testing.assert_close(run(scripted, x), run(net, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("widths", "frames"), [((4,), 1), ((4, 6), 1), ((4, 6, 8), 1), ((4, 6), 3), ((4,), 5)], ids=str
)
def test_a_tile_with_the_measured_halo_equals_the_whole(widths: tuple[int, ...], frames: FrameCount) -> None:
    settings = NetworkSettings(scale=2, widths=widths, frames=frames)
    net, halo = network(settings), measure_halo(settings)
    multiple = net.multiple
    assert halo % multiple == 0
    core = 2 * multiple
    edge = 2 * halo + core + 4 * multiple + 1  # odd: the frame's last rows are padded inside
    x = torch.randn(1, frames, edge, edge)
    whole = run(net, x)
    for start in (multiple, 2 * multiple):  # the tile's origin; its core begins a halo further in
        tile = run(net, x[..., start : start + 2 * halo + core, start : start + 2 * halo + core])
        inner = slice(2 * halo, 2 * (halo + core))
        there = slice(2 * (start + halo), 2 * (start + halo + core))
        torch.testing.assert_close(tile[..., inner, inner], whole[..., there, there], rtol=0, atol=1e-5)


def test_the_measured_halo_is_not_larger_than_needed() -> None:
    """A pixel `multiple` nearer than the halo does change the block: measured by changing it."""
    settings = NetworkSettings(scale=2, widths=(4, 6))
    net, halo = network(settings, strength=20.0).double(), measure_halo(settings)
    net.body.float()
    block = net.multiple
    edge = 2 * halo + block
    x = torch.randn(1, 1, edge, edge, dtype=torch.float64)
    other = x.clone()
    other[..., :block, :] += 10.0  # the outermost `multiple` rows of the halo
    inner = slice(2 * halo, 2 * (halo + block))
    changed = (run(net, x) - run(net, other))[..., inner, inner].abs().max()
    assert float(changed) > 0


@pytest.mark.parametrize("offset", [0.0, 2.0, -2.0])
def test_regional_means_are_the_raw_ones(offset: float) -> None:
    """A body that adds a strong bias and pattern of its own cannot move the mean of a 32 x 32 region."""
    torch.manual_seed(1)
    x = torch.randn(1, 1, 128, 96) + offset
    net = network(strength=3.0)
    with torch.inference_mode():
        biased = nn.functional.avg_pool2d(net.enlarge(x) + net.detail(x), 2) - x
    assert float(biased.mean().abs()) > 0.5  # or the correction would have nothing to do
    raw = nn.functional.avg_pool2d(x, 32)
    restored = nn.functional.avg_pool2d(run(net, x), 64)
    assert float((restored - raw).abs().max()) < 0.05


@pytest.mark.parametrize("frames", [3, 5])
def test_of_several_frames_the_middle_one_is_restored(frames: FrameCount) -> None:
    settings = NetworkSettings(scale=2, widths=(4, 6), frames=frames)
    torch.manual_seed(2)
    x = torch.randn(2, frames, 40, 33) + torch.arange(frames)[None, :, None, None]  # a brightness of its own
    middle = x[:, frames // 2 : frames // 2 + 1]
    untrained = run(SuperResolver(settings), x)
    alone = run(SuperResolver(NetworkSettings(scale=2, widths=(4, 6))), middle)
    torch.testing.assert_close(untrained, alone)  # bilinear with the regional mean of the middle one
    net = network(settings, strength=3.0)
    out = run(net, x)
    assert out.shape == (2, 1, 80, 66)
    error = nn.functional.avg_pool2d(out, 64) - nn.functional.avg_pool2d(middle, 32)
    assert float(error.abs().max()) < 0.05
    for i in range(frames):  # each neighbour counts, and its place does
        other = x.clone()
        other[:, i] += torch.randn(40, 33)
        assert float((run(net, other) - out).abs().max()) > 0.01
    assert float((run(net, x.flip(1)) - out).abs().max()) > 0.01


@pytest.mark.parametrize("frames", [3, 5])
def test_several_frames_script_as_one_does(frames: FrameCount) -> None:
    net = network(NetworkSettings(scale=2, widths=(4, 6), frames=frames))
    x = torch.randn(1, frames, 19, 26)
    with torchscript():
        scripted = torch.jit.script(net)
    torch.testing.assert_close(run(scripted, x), run(net, x), rtol=0, atol=1e-6)


def test_blur_is_the_mean_of_the_pixels_that_exist() -> None:
    x = torch.randn(1, 1, 20, 9, dtype=torch.float64)
    expected = torch.stack(
        [
            torch.stack([x[0, 0, max(0, i - 7) : i + 8, max(0, j - 7) : j + 8].mean() for j in range(9)])
            for i in range(20)
        ]
    )
    torch.testing.assert_close(blur(x)[0, 0], expected)


def test_untrained_network_is_bilinear_interpolation_with_the_raw_mean() -> None:
    x = torch.full((1, 1, 12, 12), 0.7)
    torch.testing.assert_close(run(SuperResolver(SMALL), x), torch.full((1, 1, 24, 24), 0.7))


def test_operations_are_counted_as_by_hand() -> None:
    """One level: stem 1 -> 4, one block of 4, head 4 -> 4, all 3 x 3, per raw pixel; 4 output pixels each."""
    by_hand = 9 * (1 * 4 + 2 * 4 * 4 + 4 * 4) / 4 / 1e3
    assert count_kmac(NetworkSettings(scale=2, widths=(4,))) == pytest.approx(by_hand)
    more = 9 * (4 * 4) / 4 / 1e3  # four more channels into the stem
    assert count_kmac(NetworkSettings(scale=2, widths=(4,), frames=5)) == pytest.approx(by_hand + more)
