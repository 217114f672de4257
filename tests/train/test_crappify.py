"""The simulated microscope has the statistics it claims; checked with numpy and scipy, not with itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from live_sr.train.crappify import CrappifySettings, beam_blur, crappify, expose, point_sample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(dose: float, read_noise: float) -> CrappifySettings:
    """No ranges: one dose, one noise, area mean, no blur."""
    return CrappifySettings(
        dose=(dose, dose), read_noise=(read_noise, read_noise), blur_share=0.0, point_share=0.0
    )


@pytest.mark.parametrize("level", [0.3, 0.5])
@pytest.mark.parametrize(("dose", "read_noise"), [(200.0, 0.0), (200.0, 0.03), (100.0, 0.04)])
def test_noise_has_poisson_and_gaussian_variance(level: float, dose: float, read_noise: float) -> None:
    truth = torch.full((4, 1, 512, 512), level)
    raw = crappify(truth, 2, plain(dose, read_noise), seeded()).numpy()
    n = raw.size
    variance = level / dose + read_noise**2
    assert raw.mean() == pytest.approx(level, abs=5 * np.sqrt(variance / n))
    assert raw.var(ddof=1) == pytest.approx(variance, rel=5 * np.sqrt(2.2 / n) + 0.002)


def test_counts_are_whole_electrons() -> None:
    raw = crappify(torch.full((1, 1, 64, 64), 0.4), 2, plain(20.0, 0.0), seeded()).numpy() * 20.0
    np.testing.assert_allclose(raw, np.rint(raw), atol=1e-4)
    assert len(np.unique(np.rint(raw))) > 5


def test_every_image_draws_its_own_dose_log_uniformly() -> None:
    """Half of the doses lie below the geometric middle of the range."""
    settings = CrappifySettings(dose=(10.0, 1000.0), read_noise=(0.0, 0.0), blur_share=0.0, point_share=0.0)
    raw = crappify(torch.full((1000, 1, 32, 32), 0.5), 2, settings, seeded()).numpy()
    dose = 0.5 / raw.var(axis=(1, 2, 3))
    assert 0.45 < np.mean(dose < 100.0) < 0.55
    assert dose.min() < 15.0
    assert dose.max() > 600.0


def test_without_noise_it_is_the_area_mean() -> None:
    truth = torch.rand(2, 1, 24, 36)
    raw = crappify(truth, 4, plain(1e9, 0.0), seeded()).numpy()
    expected = truth.numpy().reshape(2, 1, 6, 4, 9, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(raw, expected, atol=1e-3)


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_point_samples_are_centred(scale: int) -> None:
    """A ramp sampled at the centres of the raw pixels, as its area mean would be."""
    ramp = torch.arange(scale * 6, dtype=torch.float32).repeat(1, 1, scale * 4, 1)
    centres = np.arange(6) * scale + (scale - 1) / 2
    np.testing.assert_allclose(point_sample(ramp, scale)[0, 0].numpy(), np.tile(centres, (4, 1)), rtol=1e-6)


def test_blur_is_gaussian_with_each_images_own_width() -> None:
    x = torch.rand(3, 1, 40, 40)
    sigma = torch.tensor([0.0, 0.6, 1.2])
    blurred = beam_blur(x, sigma).numpy()
    np.testing.assert_allclose(blurred[0], x[0].numpy(), atol=1e-6)
    for i in (1, 2):
        expected = gaussian_filter(x[i, 0].numpy().astype(np.float64), float(sigma[i]), truncate=6)
        np.testing.assert_allclose(blurred[i, 0, 8:-8, 8:-8], expected[8:-8, 8:-8], atol=3e-3)


def test_output_is_clipped_to_full_scale() -> None:
    raw = expose(torch.ones(1, 1, 64, 64), torch.tensor([20.0]), torch.tensor([0.1]), seeded())
    assert float(raw.max()) == 1.0
    assert float(raw.min()) >= 0.0


def test_the_same_generator_gives_the_same_frames() -> None:
    truth = torch.rand(3, 1, 32, 32)
    first, again, other = (crappify(truth, 2, CrappifySettings(), seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
