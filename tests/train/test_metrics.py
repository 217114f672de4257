"""The measures: each against a calculation of its own, and resolution against a known band limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from live_sr.errors import InputError
from live_sr.train.metrics import (
    MS_SSIM_EDGE,
    TRUTH_THRESHOLD,
    RingCorrelation,
    error_by_intensity,
    fit_pssr,
    frc_one,
    frc_two,
    ms_ssim,
    pooled,
    psnr,
    resolution_one_px,
    ssim,
)

Float = NDArray[np.float32]


def scene(edge: int = 64) -> Float:
    y, x = np.mgrid[:edge, :edge]
    return np.asarray(0.5 + 0.3 * np.sin(x / 5) * np.cos(y / 7), np.float32)


def noisy(image: Float, sigma: float, seed: int = 0) -> Float:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.asarray(image + noise, np.float32)


def limited(edge: int, cutoff: float, *, smooth: bool, seed: int = 0) -> Float:
    """Noise of unit variance that ends at `cutoff`, or falls off as a Gaussian, in cycles per pixel."""
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=(edge, edge)))
    frequency = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.fftfreq(edge))
    spectrum *= np.exp(-1.5 * (frequency / cutoff) ** 2) if smooth else frequency <= cutoff
    image = np.fft.ifft2(spectrum).real
    return np.asarray(image / image.std(), np.float32)


def test_psnr_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((30, 40)).astype(np.float32) for _ in range(2))
    mse = sum((float(p) - float(q)) ** 2 for p, q in zip(a.ravel(), b.ravel(), strict=True)) / a.size
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / mse), abs=1e-4)


def test_ssim_is_one_only_for_equal_images() -> None:
    assert ssim(scene(), scene()) == pytest.approx(1.0)
    assert ssim(noisy(scene(), 0.1), scene()) < 0.9


def test_ms_ssim_is_the_published_product_over_five_scales() -> None:
    """Wang et al. 2003, written out with plain convolutions."""
    a, b = noisy(scene(192), 0.05), scene(192)
    at = np.arange(-5, 6)
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = torch.from_numpy(np.outer(line, line) / line.sum() ** 2)[None, None]

    def mean(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, window)

    x, y = (torch.from_numpy(i.astype(np.float64))[None, None] for i in (a, b))
    expected = 1.0
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for n, weight in enumerate(weights):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        contrast = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
        luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        last = n == len(weights) - 1
        expected *= float((luminance * contrast if last else contrast).mean()) ** weight
        x, y = (torch.nn.functional.avg_pool2d(i, 2) for i in (x, y))
    assert ms_ssim(a, b) == pytest.approx(expected, abs=2e-3)


def test_ms_ssim_is_not_given_where_the_coarsest_window_does_not_fit() -> None:
    assert ms_ssim(scene(MS_SSIM_EDGE - 1), scene(MS_SSIM_EDGE - 1)) is None
    assert ms_ssim(scene(MS_SSIM_EDGE), scene(MS_SSIM_EDGE)) == pytest.approx(1.0)


def test_the_pssr_fit_forgives_brightness_and_contrast_only() -> None:
    truth = scene()
    fitted, target = fit_pssr(0.2 * truth + 0.7, truth)
    np.testing.assert_allclose(fitted, target, atol=1e-5)
    assert psnr(0.2 * truth + 0.7, truth) < 15
    assert abs(float(target.mean())) < 1e-6
    low, high = np.percentile(target, (0.1, 99.9))
    assert high - low == pytest.approx(1.0, abs=1e-5)


def test_no_other_affine_fit_has_a_smaller_error() -> None:
    fitted, target = fit_pssr(noisy(scene(), 0.2), scene())
    rng = np.random.default_rng(1)
    for gain, offset in zip(rng.uniform(0.8, 1.2, 50), rng.uniform(-0.1, 0.1, 50), strict=True):
        assert psnr(gain * fitted + offset, target) <= psnr(fitted, target)


def test_flat_images_are_fitted_without_division_by_zero() -> None:
    flat = np.full((32, 32), 0.5, np.float32)
    assert not fit_pssr(flat, scene(32))[0].any()
    assert not fit_pssr(scene(32), flat)[1].any()


def test_error_by_intensity_is_that_of_each_bins_pixels() -> None:
    truth = np.repeat(np.array([[0.1], [0.9]], np.float32), 200, axis=1)
    image = truth + np.array([[0.05], [-0.2]], np.float32)
    image[:, ::2] += 0.1
    errors = error_by_intensity(image, truth, bins=4)
    assert errors.count == (200, 0, 0, 200)
    assert errors.bias == (pytest.approx(0.1), None, None, pytest.approx(-0.15))
    assert errors.rmse[0] == pytest.approx(math.sqrt((0.05**2 + 0.15**2) / 2))


def test_pooled_errors_are_those_of_all_pixels_together() -> None:
    rng = np.random.default_rng(0)
    truth, image = (rng.random((40, 50)).astype(np.float32) for _ in range(2))
    parts = [error_by_intensity(image[s], truth[s]) for s in (slice(0, 7), slice(7, 40))]
    together, whole = pooled(parts), error_by_intensity(image, truth)
    assert together.count == whole.count
    assert together.bias == pytest.approx(whole.bias)
    assert together.rmse == pytest.approx(whole.rmse)


@pytest.mark.parametrize("cutoff", [0.15, 0.25, 0.4])
def test_two_image_resolution_finds_the_band_limit(cutoff: float) -> None:
    image = limited(400, cutoff, smooth=False)
    period = frc_two(noisy(image, 1, 1), noisy(image, 1, 2)).resolution_px()
    assert period == pytest.approx(1 / cutoff, rel=0.1)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_two_image_resolution_is_where_the_noise_takes_over(sigma: float) -> None:
    """Where signal is a sixth of the noise: known, as both spectra are."""
    edge, cutoff = 400, 0.15
    image = limited(edge, cutoff, smooth=True)
    frequency = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.fftfreq(edge))
    power = np.exp(-3 * (frequency / cutoff) ** 2)
    power /= power.mean()  # unit variance, as the image
    crossing = cutoff * math.sqrt(math.log(6 * power.max() / sigma**2) / 3)
    period = frc_two(noisy(image, sigma, 1), noisy(image, sigma, 2)).resolution_px()
    assert period == pytest.approx(1 / crossing, rel=0.1)


def test_a_frame_against_its_truth_crosses_where_two_frames_cross() -> None:
    """The square root of 1/7 with a clean truth says the same as 1/7 with a second frame."""
    image = limited(400, 0.15, smooth=True)
    frames = [noisy(image, 1, seed) for seed in (1, 2)]
    pair = frc_two(*frames).resolution_px()
    assert frc_two(frames[0], image).resolution_px(TRUTH_THRESHOLD) == pytest.approx(pair, rel=0.1)


@pytest.mark.parametrize(("cutoff", "sigma"), [(0.05, 0.3), (0.05, 1.0), (0.1, 0.3), (0.1, 1.0)])
def test_one_image_resolution_agrees_with_two_images(cutoff: float, sigma: float) -> None:
    """On average over four images; that of a single one scatters."""
    ratios = []
    for seed in range(4):
        image = limited(400, cutoff, smooth=True, seed=seed)
        a, b = noisy(image, sigma, 100 + seed), noisy(image, sigma, 200 + seed)
        one, two = resolution_one_px(a), frc_two(a, b).resolution_px()
        assert one is not None
        assert two is not None
        ratios.append(one / two)
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_one_image_resolution_is_fooled_by_noise_that_neighbours_share() -> None:
    """The limit that its documentation states."""
    noise = np.random.default_rng(0).normal(size=(256, 256))
    smeared = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))
    assert resolution_one_px(noise) is None
    claimed = resolution_one_px(smeared)
    assert claimed is not None
    assert claimed < 5


def test_noise_alone_correlates_nowhere_and_an_image_with_itself_everywhere() -> None:
    a, b = (noisy(np.zeros((128, 128), np.float32), 1, seed) for seed in (1, 2))
    assert frc_two(a, b).resolution_px() is None
    same = frc_two(a, a)
    np.testing.assert_allclose(same.correlation, 1)
    assert same.resolution_px() == 2.0


def test_ring_correlation_is_the_sum_over_a_ring() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 32, 48))
    curve = frc_two(a, b)
    window = 0.25 * np.outer(*((1 - np.cos(2 * np.pi * np.arange(n) / n)) for n in a.shape))
    fa, fb = (np.fft.fft2((i - i.mean()) * window) for i in (a, b))
    over = under_a = under_b = 0.0
    for y in range(32):
        for x in range(48):
            fy, fx = (min(k, n - k) / n for k, n in ((y, 32), (x, 48)))
            if round(math.hypot(fy, fx) * 32) == 5:
                over += (fa[y, x] * fb[y, x].conjugate()).real
                under_a += abs(fa[y, x]) ** 2
                under_b += abs(fb[y, x]) ** 2
    assert curve.frequency[4] == pytest.approx(5 / 32)
    assert curve.frequency[-1] == 0.5
    assert curve.correlation[4] == pytest.approx(over / math.sqrt(under_a * under_b))


def test_resolution_is_interpolated_between_rings() -> None:
    frequency = np.arange(1, 101) / 200
    curve = RingCorrelation(frequency, 1 - 2 * frequency)  # 1/7 at 3/7 cycles per pixel
    assert curve.resolution_px() == pytest.approx(7 / 3, rel=1e-6)


def test_images_that_cannot_be_correlated_are_refused() -> None:
    with pytest.raises(InputError, match="must be equal"):
        frc_two(scene(32), scene(33))
    with pytest.raises(InputError, match="16 pixels"):
        frc_two(scene(15), scene(15))
    with pytest.raises(InputError, match="32 pixels"):
        frc_one(scene(31))
