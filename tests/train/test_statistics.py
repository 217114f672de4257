"""Each statistic is what theory says of frames made for it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from live_sr.train.statistics import LAGS, cut, grey_levels, measure


def textured(rng: np.random.Generator, tiles: int = 24, edge: int = 64) -> NDArray[np.float64]:
    """Smooth random structure, periodic along x, without noise: (T, E, E) around 0."""
    f = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.rfftfreq(edge)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((tiles, edge, edge))) * np.exp(-((f / 0.15) ** 2))
    texture = np.fft.irfft2(spectrum, s=(edge, edge))
    return np.asarray(texture / texture.std())


def test_photon_transfer_has_the_slope_of_the_electrons_and_the_read_noise_below() -> None:
    rng, electrons, read_noise = np.random.default_rng(0), 150.0, 0.05
    steps = np.repeat(np.linspace(0.2, 0.8, 48), 64 * 64).reshape(48, 64, 64)  # one grey value for each tile
    frames = rng.poisson(steps * electrons) / electrons + read_noise * rng.standard_normal(steps.shape)
    tiles = frames.astype(np.float32)
    curves = measure(tiles, grey_levels(tiles)).pool()
    slope, at_half = np.polyfit(curves.level - 0.5, curves.variance, 1, w=np.sqrt(curves.count))
    assert slope == pytest.approx(1 / electrons, rel=0.08)
    assert at_half == pytest.approx(0.5 / electrons + read_noise**2, rel=0.03)
    assert curves.mean == pytest.approx(0.5, abs=0.002)


def test_sharp_edges_do_not_count_as_noise() -> None:
    rng, sd = np.random.default_rng(1), 0.02
    blocks = np.kron(rng.uniform(0.2, 0.8, (24, 4, 4)), np.ones((16, 16)))
    tiles = (blocks + sd * rng.standard_normal(blocks.shape)).astype(np.float32)
    assert measure(tiles, grey_levels(tiles)).pool().noise == pytest.approx(sd**2, rel=0.1)


def test_white_noise_has_a_flat_spectrum_of_its_variance_and_no_correlation() -> None:
    tiles = np.random.default_rng(2).normal(0.5, 0.1, (48, 64, 64)).astype(np.float32)
    curves = measure(tiles, grey_levels(tiles)).pool()
    np.testing.assert_allclose(curves.along[2:-1], 0.01, rtol=0.1)
    np.testing.assert_allclose(curves.power[1:], 0.01, rtol=0.1)
    np.testing.assert_allclose(curves.across, 0, atol=0.0006)
    assert np.abs(np.r_[curves.along_lines, curves.across_lines]).max() < 0.01


def test_line_jitter_leaves_the_spectrum_along_the_lines_and_damps_that_from_line_to_line() -> None:
    rng, sd = np.random.default_rng(3), 0.8
    still = textured(rng, 64)
    f = np.fft.rfftfreq(64)
    shift = np.exp(-2j * np.pi * f * rng.normal(0, sd, (64, 64, 1)))
    moved = np.fft.irfft(np.fft.rfft(still) * shift, n=64)
    levels = np.linspace(-3.0, 3.0, 25)
    before, after = (measure(x.astype(np.float32), levels).pool() for x in (still, moved))
    seen = slice(2, 14)  # the texture ends there
    np.testing.assert_allclose(after.along[seen] / before.along[seen], 1, rtol=0.08)
    expected = np.exp(-((2 * np.pi * sd * f[seen]) ** 2))  # two lines, each with a variance of sd squared
    np.testing.assert_allclose(after.across[seen] / before.across[seen], expected, atol=0.1)


def test_histograms_are_those_of_numpy() -> None:
    tiles = np.random.default_rng(4).beta(2, 5, (8, 64, 64)).astype(np.float32)
    curves = measure(tiles, grey_levels(tiles)).pool()
    for grey in (0.1, 0.3, 0.6):
        assert np.interp(grey, curves.grey, curves.cumulative) == pytest.approx((tiles < grey).mean(), abs=1e-3)
    middle = curves.quantiles(np.array([0.5]))[0]
    assert middle == pytest.approx(tiles.mean(), abs=0.01)  # smoothing made the skewed noise even


def test_correlation_is_that_of_numpy() -> None:
    tiles = textured(np.random.default_rng(5)).astype(np.float32)
    curves = measure(tiles, np.linspace(-3.0, 3.0, 25)).pool()
    centred = tiles - tiles.mean((1, 2), keepdims=True)
    for lag in (1, 4, LAGS):
        for got, moved in (
            (curves.along_lines, centred[:, :, :-lag] * centred[:, :, lag:]),
            (curves.across_lines, centred[:, :-lag] * centred[:, lag:]),
        ):
            assert got[lag - 1] == pytest.approx(moved.mean() / (centred**2).mean(), abs=1e-3)


def test_leaving_out_every_group_once_comes_back_to_the_whole() -> None:
    tiles = np.random.default_rng(6).normal(0.5, 0.1, (12, 64, 64)).astype(np.float32)
    measured = measure(tiles, grey_levels(tiles))
    parts = [measured.without(group, 4) for group in range(4)]
    assert [len(part) for part in parts] == [9] * 4
    assert np.mean([part.pool().mean for part in parts]) == pytest.approx(measured.pool().mean)
    alone = measure(tiles[3:], grey_levels(tiles)).pool()
    np.testing.assert_allclose(parts[0].pool().power, alone.power)


def test_tiles_are_cut_from_the_middle_and_share_the_memory() -> None:
    frame = np.arange(70 * 140, dtype=np.uint16).reshape(70, 140)
    tiles = cut([frame, frame[:40]], 64)
    assert [tile.shape for tile in tiles] == [(64, 64)] * 2
    assert int(tiles[0][0, 0]) == frame[3, 6]
    assert int(tiles[1][0, 0]) == frame[3, 70]
    assert np.shares_memory(tiles[0], frame)
