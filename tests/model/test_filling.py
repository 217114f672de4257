"""What lies in a hole never matters, and far from it nothing changes: in the network and in the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from live_sr.errors import InputError
from live_sr.frame import Pixels
from live_sr.model import artifact
from live_sr.model.artifact import Artifact, torchscript
from live_sr.model.engine import Engine
from live_sr.model.unet import NetworkSettings, SuperResolver, blur, count_kmac, measure_halo
from live_sr.upscaler import Bilinear, HoleFiller
from tiny import record_of

HOLED = NetworkSettings(scale=2, widths=(4, 6), frames=5, holes=True)
MIDDLE = 2
EDGE = 72


@pytest.fixture(autouse=True)
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No precision is remembered from elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))


def network(settings: NetworkSettings = HOLED) -> SuperResolver:
    torch.manual_seed(4)
    net = SuperResolver(settings)
    nn.init.normal_(net.body.head.weight, std=0.2)
    return net.eval()


def run(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = net(x)
    return out


def shown(hole: Tensor | None = None, seed: int = 0) -> Tensor:
    """Five frames of noise, each with a brightness of its own, and the mask."""
    torch.manual_seed(seed)
    x = torch.randn(1, 6, EDGE, EDGE) + torch.arange(6)[None, :, None, None] / 4
    x[:, 5] = 0 if hole is None else hole
    return x


def square(edge: int = 20) -> Tensor:
    hole = torch.zeros(EDGE, EDGE)
    hole[8 : 8 + edge, 8 : 8 + edge] = 1
    return hole


# ----------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
def test_the_content_of_a_hole_never_reaches_the_output(garbage: float) -> None:
    x = shown(square())
    expected = run(network(), x)
    x[:, MIDDLE][square()[None] > 0] = garbage
    assert torch.equal(run(network(), x), expected)


def test_far_from_a_hole_the_result_is_that_without_a_mask() -> None:
    halo = measure_halo(HOLED)
    assert 8 + 4 + halo < EDGE - 4, "or nothing would be far"
    with_hole, without = run(network(), shown(square(4))), run(network(), shown())
    far = 2 * (8 + 4 + halo)
    torch.testing.assert_close(with_hole[..., far:, :], without[..., far:, :], rtol=0, atol=1e-6)
    assert float((with_hole - without)[..., 16:24, 16:24].abs().max()) > 0.1


def test_an_untrained_network_interpolates_between_the_sections_around() -> None:
    everywhere = torch.ones(EDGE, EDGE)
    x = shown(everywhere)
    between = (x[:, 1:2] + x[:, 3:4]) / 2
    expected = nn.functional.interpolate(between, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(run(SuperResolver(HOLED), x), expected)


def test_the_regional_mean_is_that_of_the_measured_pixels() -> None:
    x = shown(square())
    x[:, [0, 1, 3, 4]] += 3.0  # sections around that are much brighter
    out = nn.functional.avg_pool2d(run(network(), x), 2)[0, 0]
    valid = 1 - square()
    error = blur((valid * (out - x[0, MIDDLE]))[None, None]) / blur(valid[None, None]).clamp(min=0.5)
    assert float(error.abs().max()) < 0.3
    assert float((out - x[0, MIDDLE])[40:, 40:].mean().abs()) < 0.02


def test_without_a_mask_it_is_the_network_of_the_frames_alone() -> None:
    plain = NetworkSettings(scale=2, widths=(4, 6), frames=5)
    alone, holed = network(plain), network()
    weights = {k: v for k, v in holed.state_dict().items() if k != "body.stem.weight"}
    alone.load_state_dict(weights | {"body.stem.weight": holed.body.stem.weight[:, :5].clone()})
    torch.testing.assert_close(run(alone, shown()[:, :5]), run(holed, shown()), rtol=0, atol=1e-5)


def test_without_holes_the_arithmetic_is_what_it_always_was() -> None:
    net = network(NetworkSettings(scale=2, widths=(4, 6), frames=3))
    x = torch.randn(1, 3, 21, 30)
    with torch.inference_mode():
        out = net.enlarge(x[:, 1:2]) + net.detail(x)
        for _ in range(2):
            out = out + net.enlarge(blur(blur(x[:, 1:2] - nn.functional.avg_pool2d(out, 2))))
    assert torch.equal(run(net, x), out)


def test_it_scripts() -> None:
    with torchscript():
        scripted = torch.jit.script(network())
    x = shown(square())
    torch.testing.assert_close(run(scripted, x), run(network(), x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_tile_with_the_measured_halo_equals_the_whole(share: float) -> None:
    net, halo = network(), measure_halo(HOLED)
    core, start = 4, 4
    edge = 2 * (halo + core) + 5
    torch.manual_seed(1)
    x = torch.randn(1, 6, edge, edge)
    x[:, 5] = (
        (torch.rand(edge // 5 + 1, edge // 5 + 1) < share)
        .repeat_interleave(5, 0)
        .repeat_interleave(5, 1)[:edge, :edge]
    )
    tile = x[..., start : start + 2 * halo + core, start : start + 2 * halo + core]
    inner = slice(2 * halo, 2 * (halo + core))
    there = slice(2 * (start + halo), 2 * (start + halo + core))
    torch.testing.assert_close(
        run(net, tile)[..., inner, inner], run(net, x)[..., there, there], rtol=0, atol=1e-5
    )


def test_the_mask_costs_one_channel_of_the_stem() -> None:
    plain, holed = (NetworkSettings(scale=2, widths=(4,), frames=3, holes=holes) for holes in (False, True))
    assert count_kmac(holed) - count_kmac(plain) == pytest.approx(9 * 4 / 4 / 1e3)


# ------------------------------------------------------------------------------------------ the engine


def save(path: Path, settings: NetworkSettings = HOLED) -> Path:
    net = network(settings)
    record = record_of(net, settings, id=path.stem, neighbours="z")
    artifact.save(net, record, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact.load(save(tmp_path_factory.mktemp("model") / "holes-x2.pt"))


@pytest.fixture(scope="module")
def engine(model: Artifact) -> Engine:
    return Engine(model, device="cpu", precision="float32", threads=1)


def sections(shape: tuple[int, int] = (40, 50), dtype: str = "uint16") -> Pixels:
    base, top = (100, 130) if dtype == "uint8" else (20_000, 22_000)  # far from where grey levels end
    stack: Pixels = np.random.default_rng(0).integers(base, top, (5, *shape)).astype(dtype)
    return stack


def holes(shape: tuple[int, int] = (40, 50)) -> NDArray[np.bool_]:
    """Of the middle frame and of two neighbours; one pixel is nowhere."""
    missing = np.zeros((5, *shape), bool)
    missing[2, 5:25, 10:40] = True
    missing[1, 10:30, 20:50] = True
    missing[4, :, :5] = True
    missing[:, 12, 30] = True
    return missing


def test_the_engine_says_that_it_fills_holes(engine: Engine) -> None:
    assert engine.info.holes
    assert isinstance(engine, HoleFiller)
    assert not isinstance(Bilinear(2), HoleFiller)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2"])
def test_garbage_in_holes_never_shows(engine: Engine, dtype: str) -> None:
    stack, missing = sections(dtype="uint16" if dtype == ">u2" else dtype).astype(dtype), holes()
    (expected,) = engine.fill([stack], [missing])
    other = stack.copy()
    other[missing] = np.random.default_rng(1).integers(0, 255, int(missing.sum()))
    (restored,) = engine.fill([other], [missing])
    np.testing.assert_array_equal(restored, expected)
    assert restored.shape == (80, 100)


def test_pixels_that_no_frame_has_are_black(engine: Engine) -> None:
    (restored,) = engine.fill([sections()], [holes()])
    assert (restored[24:26, 60:62] == 0).all()
    assert (restored == 0).sum() == 4


def test_a_frame_without_holes_is_the_same_with_and_without_a_mask(engine: Engine) -> None:
    stack = sections()
    (masked,) = engine.fill([stack], [np.zeros(stack.shape, bool)])
    np.testing.assert_array_equal(masked, engine.upscale([stack])[0])


@pytest.mark.parametrize(
    ("first_row", "of_neighbours"), [(15, False), (4, True), (0, True)], ids=["half", "most", "all"]
)
def test_the_level_is_that_of_the_measured_pixels_or_of_the_neighbours(
    engine: Engine, first_row: int, of_neighbours: bool
) -> None:
    """Computed again by the definition, in float64."""
    stack, missing = sections(), np.zeros((5, 40, 50), bool)
    stack[[0, 1, 3, 4]] += 3000
    missing[2, first_row:] = True
    there = (stack[[1, 3]] if of_neighbours else stack[2][~missing[2]]).astype(np.float64)
    x = torch.from_numpy((stack.astype(np.float64) - there.mean()) / there.std())
    x = torch.cat([x, torch.from_numpy(missing[2:3].astype(np.float64))])[None]
    expected = run(network().double(), x)[0, 0].numpy() * there.std() + there.mean()
    (restored,) = engine.fill([stack], [missing])
    assert np.abs(restored - expected).max() < 0.6


def test_where_there_is_nothing_to_fill_from_a_frame_is_black(engine: Engine) -> None:
    (restored,) = engine.fill([sections()], [np.ones((5, 40, 50), bool)])
    assert restored.shape == (80, 100)
    assert not restored.any()


def test_a_rest_without_contrast_does_not_make_a_filled_frame_flat(engine: Engine) -> None:
    stack, missing = sections(), np.zeros((5, 40, 50), bool)
    missing[2, 20:] = True
    stack[2, :20] = 20_500
    (restored,) = engine.fill([stack], [missing])
    assert restored[60:].std() > 100


def test_frames_with_holes_are_tiled_as_others_are(model: Artifact) -> None:
    stack, missing = sections((131, 47)), holes((131, 47))
    whole, tiled = (
        Engine(model, device="cpu", precision="float32", tile=tile).fill([stack], [missing])[0].astype(int)
        for tile in (512, 24)
    )
    assert np.abs(tiled - whole).max() <= 1


def test_a_reduced_precision_is_checked_with_a_mask(model: Artifact) -> None:
    engine = Engine(model, device="cpu", precision="bfloat16")
    exact = Engine(model, device="cpu", precision="float32")
    (a,), (b,) = (e.fill([sections()], [holes()]) for e in (engine, exact))
    assert 0 < np.abs(a.astype(int) - b.astype(int)).max() < 100


def test_masks_that_do_not_fit_are_refused(engine: Engine, tmp_path: Path) -> None:
    stack = sections()
    for wrong in ([holes()[2]], [holes().astype(np.uint8)], [holes((40, 49))], []):
        with pytest.raises(InputError, match="the masks are"):
            engine.fill([stack], wrong)
    plain = NetworkSettings(scale=2, widths=(4, 6), frames=5)
    other = Engine(artifact.load(save(tmp_path / "plain-x2.pt", plain)), device="cpu", precision="float32")
    with pytest.raises(InputError, match="plain-x2 fills no holes"):
        other.fill([stack], [holes()])
