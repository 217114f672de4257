"""The classical methods: the right size and type, honest about noise, and better than enlarging it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from live_sr.errors import InputError
from live_sr.frame import Pixels
from live_sr.sim.specimen import Neuropil
from live_sr.train import baselines
from live_sr.train.baselines import (
    BASELINES,
    Noise,
    available_baselines,
    bicubic,
    estimate_noise,
    lanczos,
    nearest,
)
from live_sr.train.evaluate import simulate
from live_sr.train.files import to_unit
from live_sr.train.metrics import psnr

HAS_BM3D = importlib.util.find_spec("bm3d") is not None
needs_bm3d = pytest.mark.skipif(not HAS_BM3D, reason="the package bm3d, non-commercial, is not installed")
EACH = [pytest.param(name, marks=needs_bm3d if name == "bm3d" else ()) for name in BASELINES]
DENOISERS = [p for p in EACH if p.values[0] in ("richardson-lucy", "nl-means", "bm3d")]


def flat_frame(level: float, gain: float, read: float, shape: tuple[int, int] = (200, 200)) -> Pixels:
    """`level`, `gain` (grey levels per count) and `read` noise in grey levels of 16 bit."""
    rng = np.random.default_rng(0)
    seen = gain * rng.poisson(level / gain, shape) + rng.normal(0, read, shape)
    return np.clip(np.rint(seen), 0, 65535).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", EACH)
def test_every_baseline_keeps_type_and_multiplies_size(name: str, dtype: str) -> None:
    raw = np.random.default_rng(0).integers(40, 200, (33, 40)).astype(dtype)
    kept = raw.copy()
    out = BASELINES[name](raw, 2)
    assert (out.shape, out.dtype) == ((66, 80), np.dtype(dtype))
    np.testing.assert_array_equal(raw, kept)


@pytest.mark.parametrize("name", EACH)
def test_every_baseline_keeps_a_flat_frame_flat(name: str) -> None:
    out = BASELINES[name](np.full((24, 25), 40000, np.uint16), 3)
    assert abs(out.astype(int) - 40000).max() <= 1


@pytest.mark.parametrize("name", EACH)
def test_every_baseline_takes_the_smallest_frames(name: str) -> None:
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (9, 31)):
        assert BASELINES[name](rng.integers(0, 255, shape).astype(np.uint8), 2).shape == (
            2 * shape[0],
            2 * shape[1],
        )


@pytest.mark.parametrize("name", EACH)
def test_every_baseline_keeps_the_brightness(name: str) -> None:
    truth = Neuropil(3).render((256, 256), pixel_size_um=0.004)
    raw = simulate(truth, 2, dose=100, read_noise=0.01, dtype="uint16", rng=np.random.default_rng(0))
    assert float(BASELINES[name](raw, 2).mean()) == pytest.approx(float(raw.mean()), rel=0.01)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_beat_interpolation_at_low_dose(name: str) -> None:
    truth = Neuropil(3).render((256, 256), pixel_size_um=0.004)
    raw = simulate(truth, 2, dose=20, read_noise=4 / 255, dtype="uint8", rng=np.random.default_rng(0))
    known = {n: psnr(to_unit(BASELINES[n](raw, 2)), truth) for n in ("bicubic", "bilinear", name)}
    assert known[name] > known["bilinear"] + 1 > known["bicubic"] + 1


def test_nearest_repeats_pixels() -> None:
    np.testing.assert_array_equal(nearest(np.array([[1, 2]], np.uint8), 2), [[1, 1, 2, 2], [1, 1, 2, 2]])


@pytest.mark.parametrize("method", [bicubic, lanczos])
def test_overshoot_stays_within_the_range_of_the_type(
    method: baselines.Callable[[Pixels, int], Pixels],
) -> None:
    raw = np.zeros((8, 8), np.uint8)
    raw[3:5, 3:5] = 255
    out = method(raw, 4)
    assert (out.min(), out.max()) == (0, 255)
    assert out[8:10, 12:20].max() < 64  # beside the edge, where an undershoot that wraps around would be white


def test_lanczos_keeps_all_16_bits() -> None:
    raw = np.random.default_rng(0).integers(20000, 40000, (20, 20)).astype(np.uint16)
    coarse = Image.fromarray((raw // 256).astype(np.uint8)).resize((40, 40), Image.Resampling.LANCZOS)
    out = lanczos(raw, 2)
    assert np.abs(out / 256 - np.asarray(coarse, np.float64)).max() < 2
    assert np.unique(out % 256).size > 100


@pytest.mark.parametrize(("gain", "read"), [(50.0, 100.0), (200.0, 0.0), (1.0, 300.0)])
def test_the_noise_of_a_frame_is_found_without_being_told(gain: float, read: float) -> None:
    """A ramp over most of the range, so that gain and read noise show apart."""
    rng = np.random.default_rng(0)
    level = np.linspace(2000, 50000, 300)[None, :].repeat(300, 0)
    seen = gain * rng.poisson(level / gain) + rng.normal(0, read, level.shape)
    noise = estimate_noise(np.clip(np.rint(seen), 0, 65535).astype(np.uint16))
    for at in (10000, 40000):
        assert noise.sigma(at) == pytest.approx((gain * at + read**2) ** 0.5, rel=0.1)


def test_structure_counts_little_as_noise() -> None:
    clean = Neuropil(3).render((256, 256), pixel_size_um=0.004)
    raw = simulate(clean, 1, dose=200, read_noise=0.0, dtype="uint16", rng=np.random.default_rng(0))
    level = float(raw.mean())
    assert estimate_noise(raw).sigma(level) == pytest.approx((65535 / 200 * level) ** 0.5, rel=0.1)


def test_stabilised_noise_is_one_at_every_level_and_comes_back_unbiased() -> None:
    gain, read = 400.0, 600.0
    noise = Noise(gain, read**2)
    for level in (2000, 10000, 50000):
        stable = noise.stabilise(flat_frame(level, gain, read).astype(np.float64))
        assert stable.std() == pytest.approx(1, abs=0.06)
        mean: NDArray[np.float64] = np.full((1, 1), stable.mean())
        assert float(noise.restore(mean)[0, 0]) == pytest.approx(level, rel=0.02)


def test_a_missing_package_is_said_and_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bm3d" else found(name, *rest)
    )
    assert "bm3d" not in available_baselines()
    with pytest.raises(InputError, match="non-commercial"):
        BASELINES["bm3d"](np.zeros((16, 16), np.uint8), 2)


@needs_bm3d
def test_bm3d_is_offered_where_it_is_installed() -> None:
    assert available_baselines() == tuple(BASELINES)
