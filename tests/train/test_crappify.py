"""Degraded images have the statistics they claim; checked with numpy, scipy and Pillow, not with themselves."""

from __future__ import annotations

import io
import math
import typing
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor
from typer.testing import CliRunner

from live_sr.cli import app
from live_sr.client.images import open_source
from live_sr.errors import ConfigError, InputError
from live_sr.train import crappify as c
from live_sr.train.crappify import (
    AnyStep,
    Blur,
    Charging,
    Contrast,
    Crappifier,
    Detector,
    Distortion,
    Dose,
    Drift,
    Gaussian,
    LineDropout,
    LineJitter,
    Quantise,
    SaltPepper,
    SignalGaussian,
    Undersample,
    beam_blur,
    describe,
    from_toml,
    load_crappifier,
    point_sample,
    presets,
    preview,
    to_toml,
)

STEPS: list[type[c.Step]] = list(typing.get_args(AnyStep))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alone(step: AnyStep) -> Crappifier:
    """That step on raw pixels (use scale 1)."""
    return Crappifier(id="alone", steps=(Undersample(method="point"), step))


def plain(dose: float, read_noise: float) -> Crappifier:
    """No ranges: one dose, one noise, area mean, no blur."""
    steps = (Undersample(), Dose(counts=(dose, dose)), Detector(read_noise=(read_noise, read_noise)))
    return Crappifier(id="plain", steps=steps)


def ramps(rows: int, cols: int) -> Tensor:
    """(1, 2, rows, cols) in [0, 1]: y and x, each in pixels / 1000."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.stack([y, x])[None].float() / 1000


# noise


@pytest.mark.parametrize("level", [0.3, 0.5])
@pytest.mark.parametrize(("dose", "read_noise"), [(200.0, 0.0), (200.0, 0.03), (100.0, 0.04)])
def test_noise_has_poisson_and_gaussian_variance(level: float, dose: float, read_noise: float) -> None:
    raw = plain(dose, read_noise)(torch.full((4, 1, 512, 512), level), 2, seeded()).numpy()
    n = raw.size
    variance = level / dose + read_noise**2
    assert raw.mean() == pytest.approx(level, abs=5 * np.sqrt(variance / n))
    assert raw.var(ddof=1) == pytest.approx(variance, rel=5 * np.sqrt(2.2 / n) + 0.002)


def test_counts_are_whole_electrons() -> None:
    raw = plain(20.0, 0.0)(torch.full((1, 1, 64, 64), 0.4), 2, seeded()).numpy() * 20.0
    np.testing.assert_allclose(raw, np.rint(raw), atol=1e-4)
    assert len(np.unique(np.rint(raw))) > 5


def test_every_image_draws_its_own_dose_log_uniformly() -> None:
    """Half of the doses lie below the geometric middle of the range."""
    crappifier = Crappifier(id="doses", steps=(Undersample(), Dose(counts=(10.0, 1000.0))))
    raw = crappifier(torch.full((1000, 1, 32, 32), 0.5), 2, seeded()).numpy()
    dose = 0.5 / raw.var(axis=(1, 2, 3))
    assert 0.45 < np.mean(dose < 100.0) < 0.55
    assert dose.min() < 15.0
    assert dose.max() > 600.0


def test_read_out_is_clipped_to_full_scale() -> None:
    raw = plain(20.0, 0.1)(torch.ones(1, 1, 64, 64), 1, seeded())
    assert float(raw.max()) == 1.0
    assert float(raw.min()) >= 0.0


def test_a_detector_amplifies_and_adds_its_pedestal() -> None:
    raw = alone(Detector(gain=(1.5, 1.5), offset=(0.1, 0.1)))(ramps(4, 900), 1, seeded())
    np.testing.assert_allclose(raw, np.clip(1.5 * ramps(4, 900).numpy() + 0.1, 0, 1), atol=1e-6)


def test_gaussian_noise_does_not_depend_on_the_signal() -> None:
    truth = torch.tensor([0.3, 0.7]).view(2, 1, 1, 1).expand(2, 1, 300, 300)
    raw = alone(Gaussian(sigma=(0.05, 0.05)))(truth, 1, seeded()).numpy()
    np.testing.assert_allclose(raw.std(axis=(1, 2, 3)), 0.05, rtol=0.02)
    np.testing.assert_allclose(raw.mean(axis=(1, 2, 3)), [0.3, 0.7], atol=1e-3)


def test_salt_and_pepper_replace_the_fractions_they_claim() -> None:
    raw = alone(SaltPepper(salt=(0.02, 0.02), pepper=(0.05, 0.05)))(
        torch.full((4, 1, 200, 200), 0.5), 1, seeded()
    )
    assert (raw == 1).float().mean() == pytest.approx(0.02, rel=0.1)
    assert (raw == 0).float().mean() == pytest.approx(0.05, rel=0.1)
    assert set(raw.unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_quantised_levels_are_those_of_the_converter(bits: int) -> None:
    truth = torch.linspace(0, 1, 100_000).view(1, 1, 100, 1000)
    grey, exact = (
        x.numpy().astype(np.float64) * (2**bits - 1)
        for x in (alone(Quantise(bits=bits))(truth, 1, seeded()), truth)
    )
    np.testing.assert_allclose(
        grey, np.rint(grey), atol=0.01
    )  # float32 holds 16 bits to a hundredth of a level
    np.testing.assert_allclose(grey, exact, atol=0.51)
    assert grey.max() == 2**bits - 1


# optics and undersampling


def test_blur_is_gaussian_with_each_images_own_width() -> None:
    x = torch.rand(3, 2, 40, 40)
    sigma = torch.tensor([0.0, 0.6, 1.2])
    blurred = beam_blur(x, sigma).numpy()
    np.testing.assert_allclose(blurred[0], x[0].numpy(), atol=1e-6)
    for i in (1, 2):
        for frame in (0, 1):
            expected = gaussian_filter(x[i, frame].numpy().astype(np.float64), float(sigma[i]), truncate=6)
            np.testing.assert_allclose(blurred[i, frame, 8:-8, 8:-8], expected[8:-8, 8:-8], atol=3e-3)


def spread(step: Blur) -> np.ndarray:
    """(N, 2) variances of the image of a point along its short and its long axis, pixels squared."""
    point = torch.zeros(20, 1, 41, 41)
    point[..., 20, 20] = 1
    image = alone(step)(point, 1, seeded()).numpy().astype(np.float64)[:, 0]
    np.testing.assert_allclose(image.sum(axis=(1, 2)), 1, atol=1e-5)
    y, x = np.mgrid[-20:21, -20:21]
    moments = [[(image * a * b).sum(axis=(1, 2)) for a in (y, x)] for b in (y, x)]
    return np.linalg.eigvalsh(np.array(moments).transpose(2, 0, 1))


def test_astigmatism_stretches_the_blur_at_random_angles() -> None:
    variances = spread(Blur(sigma_px=(2.0, 2.0), astigmatism=(2.0, 2.0)))
    np.testing.assert_allclose(np.sqrt(variances[:, 1] / variances[:, 0]), 2.0, rtol=0.05)
    np.testing.assert_allclose(np.sqrt(np.sqrt(variances.prod(axis=1))), 2.0, rtol=0.03)


def test_defocus_is_a_disc() -> None:
    """The variance of a disc of radius r is r^2 / 4 along each axis."""
    np.testing.assert_allclose(spread(Blur(defocus_px=(6.0, 6.0))), 6.0**2 / 4, rtol=0.05)


@pytest.mark.parametrize("method", ["area", "binning"])
def test_without_noise_it_is_the_area_mean(method: c.Method) -> None:
    truth = torch.rand(2, 1, 24, 36)
    raw = Crappifier(id="mean", steps=(Undersample(method=method),))(truth, 4, seeded()).numpy()
    np.testing.assert_allclose(raw, truth.numpy().reshape(2, 1, 6, 4, 9, 4).mean(axis=(3, 5)), atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_point_samples_are_centred(scale: int) -> None:
    """A ramp sampled at the centres of the raw pixels, as its area mean would be."""
    ramp = torch.arange(scale * 6, dtype=torch.float32).repeat(1, 1, scale * 4, 1)
    centres = np.arange(6) * scale + (scale - 1) / 2
    np.testing.assert_allclose(point_sample(ramp, scale)[0, 0].numpy(), np.tile(centres, (4, 1)), rtol=1e-6)


def test_methods_are_shared_out_by_their_weights() -> None:
    truth = torch.rand(1000, 1, 8, 8)
    raw = Crappifier(id="mix", steps=(Undersample(method={"area": 3.0, "point": 1.0}),))(truth, 4, seeded())
    area = truth.view(1000, 1, 2, 4, 2, 4).mean((3, 5))
    is_area = (raw - area).abs().amax((1, 2, 3)) < 1e-6
    assert 0.7 < is_area.float().mean() < 0.8
    torch.testing.assert_close(raw[~is_area], point_sample(truth[~is_area], 4))


def test_contrast_changes_about_the_mean() -> None:
    truth = 0.4 + 0.1 * torch.rand(3, 2, 30, 30)
    raw = alone(Contrast(gain=(0.5, 0.5), offset=(0.2, 0.2)))(truth, 1, seeded()).numpy()
    mean = truth.numpy().mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(raw, mean + 0.5 * (truth.numpy() - mean) + 0.2, atol=1e-6)


# the scan


def test_lines_are_shifted_sideways_by_fractions_of_a_pixel() -> None:
    """On a ramp along x the change of grey is the shift; all truth rows of one raw line share it."""
    step = LineJitter(sd_px=(0.7, 0.7))
    jittered = step(ramps(4000, 40), 4, seeded())[0, :, :, 20] * 1000
    np.testing.assert_allclose(jittered[0], np.arange(4000), rtol=1e-6)  # lines stay where they are along y
    shift = 20 - jittered[1].numpy().reshape(1000, 4)
    np.testing.assert_allclose(shift, shift[:, :1].repeat(4, axis=1), atol=1e-4)
    assert shift[:, 0].std() == pytest.approx(0.7, rel=0.1)
    assert abs(np.corrcoef(shift[1:, 0], shift[:-1, 0])[0, 1]) < 0.1


def test_lost_lines_are_black_or_repeat_the_last_good_one() -> None:
    truth = (torch.arange(1, 2001) / 2001).view(1, 1, 2000, 1).expand(1, 1, 2000, 3)
    got = (alone(LineDropout(lost=(0.5, 0.5), repeat=0.6))(truth, 1, seeded()) * 2001).round()[0, 0]
    assert bool((got == got[:, :1]).all())  # whole lines
    line = got[:, 0].numpy()
    expected = np.arange(1, 2001)
    black, repeats = line == 0, (line > 0) & (line != expected)
    assert (black | repeats).mean() == pytest.approx(0.5, abs=0.03)
    assert repeats.mean() == pytest.approx(0.3, abs=0.03), "also where the line before is a black one"
    last_good = np.maximum.accumulate(np.where(line == expected, expected, 1))
    np.testing.assert_array_equal(line[repeats], last_good[repeats])


def test_lost_lines_are_raw_lines_before_the_undersampling() -> None:
    got = LineDropout(lost=(0.3, 0.3), repeat=0.0)(torch.ones(1, 1, 400, 8), 4, seeded())
    lost = (got[0, 0, :, 0] == 0).view(100, 4)
    assert bool((lost == lost[:, :1]).all())
    assert 10 < int(lost[:, 0].sum()) < 50


def test_distortion_has_the_amplitude_it_claims_and_is_smooth() -> None:
    truth = ramps(200, 200).expand(6, 2, 200, 200) * 4 + 0.1
    warped = alone(Distortion(amplitude_px=(1.5, 1.5)))(truth, 1, seeded())
    field = ((warped - truth) * 250).numpy()[:, :, 6:-6, 6:-6]  # pixels; away from the replicated edge
    np.testing.assert_allclose(np.sqrt((field**2).sum(axis=1).mean(axis=(1, 2))), 1.5, rtol=0.15)
    assert np.abs(np.diff(field, axis=2)).max() < 0.3
    assert np.abs(field.mean(axis=(2, 3))).max() < 0.3


def test_drift_shears_by_what_it_claims_and_leaves_the_middle_line() -> None:
    truth = ramps(201, 201).expand(5, 2, 201, 201) * 4 + 0.1
    drifted = alone(Drift(px_per_frame=(6.0, 6.0)))(truth, 1, seeded())
    field = ((drifted - truth) * 250).numpy()[:, :, 10:-10, 100]
    np.testing.assert_allclose(field[:, :, 90], 0, atol=2e-3)
    rate = np.diff(field, axis=2)
    np.testing.assert_allclose(rate, rate[:, :, :1].repeat(rate.shape[2], axis=2), atol=2e-3)
    np.testing.assert_allclose(200 * np.hypot(*rate.mean(axis=2).T), 6.0, rtol=0.01)


def test_charging_starts_at_bright_edges_and_decays_along_the_line() -> None:
    truth = torch.zeros(1, 1, 400, 120)
    truth[..., 30:] = 0.2
    streaks = (
        alone(Charging(lines=(0.5, 0.5), amplitude=(0.4, 0.4), decay_px=(10, 10)))(truth, 1, seeded()) - truth
    )
    streaks = streaks[0, 0].numpy()
    charged = streaks.max(axis=1) > 1e-4
    assert charged.mean() == pytest.approx(0.5, abs=0.08)
    at_edge = charged & (streaks.argmax(axis=1) == 30)
    assert at_edge.sum() > 0.2 * charged.sum()  # one column of 120: 0.8 % by chance
    expected = np.r_[np.zeros(30), 0.4 * np.exp(-np.arange(90) / 10)]
    np.testing.assert_allclose(streaks[at_edge], np.tile(expected, (at_edge.sum(), 1)), atol=1e-5)


# shares, frames, randomness


def test_a_step_touches_its_share_of_the_images_and_leaves_the_rest() -> None:
    truth = torch.rand(1000, 1, 4, 4)
    raw = alone(Gaussian(sigma=(0.1, 0.1), share=0.3))(truth, 1, seeded())
    touched = (raw != truth).flatten(1).any(1)
    assert 0.25 < touched.float().mean() < 0.35


def test_frames_of_one_image_share_geometry_and_dose_but_not_noise() -> None:
    steps = (
        Blur(sigma_px=(0.0, 2.0), defocus_px=(0.0, 2.0)),
        Distortion(amplitude_px=(0.0, 2.0)),
        Drift(px_per_frame=(0.0, 3.0)),
        Undersample(),
    )
    truth = torch.rand(4, 1, 64, 64).expand(4, 3, 64, 64)
    raw = Crappifier(id="geometry", steps=steps)(truth, 2, seeded())
    assert torch.equal(raw[:, 0], raw[:, 2])
    assert not torch.allclose(raw[0], Crappifier(id="geometry", steps=steps)(truth, 2, seeded(1))[0])
    noisy = Crappifier(id="dose", steps=(Undersample(), Dose(counts=(10, 1000))))
    counted = noisy(torch.full((20, 3, 64, 64), 0.5), 1, seeded())
    variance = counted.var((2, 3))
    assert float((variance[:, 0] / variance[:, 2] - 1).abs().max()) < 0.3
    assert not torch.equal(counted[:, 0], counted[:, 2])


@pytest.mark.parametrize("name", presets())
def test_the_same_generator_gives_the_same_frames(name: str) -> None:
    truth, crappifier = torch.rand(3, 3, 32, 48), load_crappifier(name)
    kept = truth.clone()
    first, again, other = (crappifier(truth, 4, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(truth, kept)
    assert (first.shape, first.dtype) == ((3, 3, 8, 12), torch.float32)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", presets())
def test_presets_have_the_same_statistics_on_the_gpu(name: str) -> None:
    truth, crappifier = torch.rand(64, 1, 64, 64), load_crappifier(name).at(0.5)
    here = crappifier(truth, 4, seeded())
    there = crappifier(truth.cuda(), 4, torch.Generator("cuda").manual_seed(0)).cpu()
    assert float(here.mean()) == pytest.approx(float(there.mean()), abs=0.02)
    assert float(here.std()) == pytest.approx(float(there.std()), rel=0.1)


def test_sizes_that_are_no_whole_raw_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 4"):
        plain(40, 0)(torch.rand(1, 1, 30, 32), 4, seeded())


# PSSR and PSSR2, written again in numpy


def smooth_scene(rows: int, cols: int) -> np.ndarray:
    """(rows, cols) float64 in 0.15 to 0.85."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(rows, cols)), 3)
    return 0.5 + 0.35 * noise / np.abs(noise).max()


def many(crappifier: Crappifier, scene: np.ndarray, n: int) -> np.ndarray:
    """(n, Y, X) float64: that often degraded."""
    truth = torch.from_numpy(scene.astype(np.float32)).expand(n, 1, *scene.shape)
    return crappifier(truth, 4, seeded()).numpy()[:, 0].astype(np.float64)


def without(crappifier: Crappifier, *kinds: type[c.Step]) -> Crappifier:
    steps = tuple(step for step in crappifier.steps if not isinstance(step, kinds))
    return msgspec.structs.replace(crappifier, steps=steps)


def test_pssr_undersampling_is_scipys_zoom() -> None:
    scene = smooth_scene(64, 80)
    got = many(without(load_crappifier("pssr-em"), SignalGaussian), scene, 1)[0]
    np.testing.assert_allclose(got, zoom(scene, 1 / 4, order=1), atol=1e-6)


def test_pssr_noise_is_that_of_the_published_recipe() -> None:
    rng, scene = np.random.default_rng(1), smooth_scene(48, 64)
    got = many(load_crappifier("pssr-em"), scene, 3000)
    sd = np.sqrt(0.05 * gaussian_filter(scene, 3, mode="nearest", truncate=4))
    noisy = (np.clip(scene + rng.normal(size=scene.shape) * sd, 0, 1) for _ in range(3000))
    expected = np.array([zoom(image, 1 / 4, order=1) for image in noisy])
    error = np.sqrt(2 / 3000) * expected.std(axis=0)
    assert np.abs((got.mean(axis=0) - expected.mean(axis=0)) / error).max() < 5
    np.testing.assert_allclose(got.var(axis=0), expected.var(axis=0), rtol=0.2)
    assert got.var(axis=0).mean() == pytest.approx(expected.var(axis=0).mean(), rel=0.01)


def test_pssr2_undersampling_is_pillows() -> None:
    scene = smooth_scene(64, 96)
    noiseless = without(load_crappifier("pssr2"), Dose, Quantise)
    small = Image.fromarray(scene.astype(np.float32)).resize((24, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(many(noiseless, scene, 1)[0], np.asarray(small), atol=1e-6)

    grey = np.rint(scene * 255).astype(np.uint8)
    small = Image.fromarray(grey).resize((24, 16), Image.Resampling.BILINEAR)  # rounds between its two passes
    got = many(without(load_crappifier("pssr2"), Dose), grey / 255, 1)[0] * 255
    np.testing.assert_allclose(got, np.asarray(small, np.float64), atol=1.001)


def test_pssr2_noise_is_that_of_its_default() -> None:
    rng, grey = np.random.default_rng(1), np.rint(smooth_scene(48, 64) * 255).astype(np.uint8)
    got = many(load_crappifier("pssr2"), grey / 255, 3000) * 255
    np.testing.assert_allclose(got, np.rint(got), atol=1e-3)  # grey levels
    small = np.asarray(Image.fromarray(grey).resize((16, 12), Image.Resampling.BILINEAR), np.float64)
    expected = np.clip(np.rint(rng.poisson(small, (3000, *small.shape))), 0, 255)
    error = np.sqrt(2 / 3000) * expected.std(axis=0)
    assert (np.abs(got.mean(axis=0) - expected.mean(axis=0)) < 5 * error + 1).all()  # 1: Pillow's rounding
    assert np.abs(got.mean() - expected.mean()) < 0.3
    np.testing.assert_allclose(got.var(axis=0), expected.var(axis=0), rtol=0.2)
    assert got.var(axis=0).mean() == pytest.approx(expected.var(axis=0).mean(), rel=0.01)


# strengths and doses


def test_strengths_run_from_the_mildest_to_the_harshest_end() -> None:
    steps = (
        Blur(sigma_px=(0.5, 1.5), astigmatism=(1.0, 2.0), share=0.5),
        Undersample(),
        Contrast(gain=(0.5, 1.2), offset=(-0.1, 0.3)),
        Dose(counts=(10.0, 1000.0)),
    )
    crappifier = Crappifier(id="x", steps=steps)
    assert crappifier.at(0.0).steps == (
        Blur(sigma_px=(0.5, 0.5), share=0.5),
        Undersample(),
        Contrast(),
        Dose(counts=(1000.0, 1000.0)),
    )
    assert crappifier.at(1.0).steps == (
        Blur(sigma_px=(1.5, 1.5), astigmatism=(2.0, 2.0), share=0.5),
        Undersample(),
        Contrast(gain=(0.5, 0.5), offset=(0.3, 0.3)),
        Dose(counts=(10.0, 10.0)),
    )
    (middle,) = (step for step in crappifier.at(0.5).steps if isinstance(step, Dose))
    np.testing.assert_allclose(middle.counts, 100.0)


# TOML and words


@pytest.mark.parametrize("name", presets())
def test_presets_come_back_from_their_own_toml(name: str, tmp_path: Path) -> None:
    crappifier = load_crappifier(name)
    assert crappifier.id == name
    (tmp_path / "copy.toml").write_text(to_toml(crappifier), encoding="utf-8")
    assert load_crappifier(tmp_path / "copy.toml") == crappifier


def test_a_range_stays_on_one_line_of_the_toml() -> None:
    text = to_toml(Crappifier(id="a", steps=(Undersample(), Dose(counts=(10.0, 300.0)))))
    assert "counts = [10.0, 300.0]" in text.splitlines()


def test_every_step_comes_back_from_toml() -> None:
    rest = tuple(kind(share=0.1) for kind in STEPS if kind is not Undersample)
    mix = Undersample(method={"area": 0.25, "point": 0.75})
    crappifier = Crappifier(id='a "b"\n', description="µ \\ \x7f", steps=(*rest, mix))  # type: ignore[arg-type]
    assert from_toml(to_toml(crappifier)) == crappifier


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ('step = "blurr"', ["step 1", "blurr", "line_jitter"]),
        ('step = "blur"\nsigma = [1, 2]', ["step 1", "`sigma`", "sigma_px"]),
        ('step = "blur"\nsigma_px = [2.0, 1.0]', ["sigma_px = [2, 1]", "write [1, 2]"]),
        ('step = "blur"\nsigma_px = [0.5, "b"]', ["step 1", "`sigma_px[1]`", '"b"']),
        ('step = "blur"\nsigma_px = 1.0', ["step 1", "`sigma_px`", "1.0"]),
        ('step = "blur"\nsigma_px = [0.0, inf]', ["sigma_px", "finite"]),
        ('step = "dose"\ncounts = [0, 10]', ["counts = [0, 10]", "at least 0.001"]),
        ('step = "detector"\nshare = 1.5', ["share = 1.5", "at most 1"]),
        ('step = "line_dropout"\nrepeat = -1', ["repeat = -1"]),
        ('step = "quantise"\nbits = 24', ["bits", "24", "16"]),
        ('step = "undersample"\nmethod = "mean"', ["method", "mean"]),
        ('step = "undersample"\nmethod = { area = 0.0 }', ["weights"]),
        ('step = "undersample"\nshare = 0.5', ["share = 0.5"]),
        ("sigma_px = [0, 1]", ["step 1", "the steps are"]),
        ('step = "undersample"\n[[steps]]\nstep = "undersample"', ["2 steps 'undersample'"]),
        ('step = "dose"', ["0 steps 'undersample'"]),
        ("step =", ["TOML"]),
    ],
)
def test_a_wrong_file_says_which_step_key_and_value(steps: str, says: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'id = "mine"\n[[steps]]\n{steps}\n')
    with pytest.raises(ConfigError) as refusal:
        load_crappifier(path)
    for words in says:
        assert words in str(refusal.value)


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ConfigError) as refusal:
        load_crappifier("em-high-dose")
    assert all(name in str(refusal.value) for name in presets())


@pytest.mark.parametrize("name", presets())
def test_a_description_has_a_line_for_each_step(name: str) -> None:
    crappifier = load_crappifier(name)
    lines = describe(crappifier).splitlines()
    assert name in lines[0]
    assert len(lines) == 1 + len(crappifier.steps)


def test_a_preview_has_a_row_for_each_strength_and_each_occasional_step() -> None:
    crappifier = load_crappifier("em-low-dose")
    images = [np.full((260, 300), 0.5, np.float32), np.full((100, 90), 0.5, np.float32)]
    sheets = [Image.open(io.BytesIO(preview(images, x, 4, seed=0))) for x in (crappifier, plain(40, 0.02))]
    occasional = sum(step.share < 1 for step in crappifier.steps)
    rows = [round((sheet.height - 27) / 283) for sheet in sheets]
    assert rows == [5 + occasional, 5]
    pixels = np.asarray(sheets[1], np.float64)[48:304, 268:524]  # first row, second cell
    assert pixels.std() / 255 == pytest.approx(math.sqrt(0.5 / 40 + 0.02**2), rel=0.05)


# the command


def crappify(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["crappify", *map(str, args)])
    return done.exit_code, done.output


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "good.tif"
    pixels = np.random.default_rng(0).integers(20_000, 40_000, (3, 66, 83)).astype(np.uint16)
    tifffile.imwrite(path, pixels, photometric="minisblack")
    return path


def test_the_command_degrades_a_stack_and_repeats_itself(stack: Path, tmp_path: Path) -> None:
    code, said = crappify(stack, tmp_path / "a.tif", "--seed", 5, "--preview", tmp_path / "sheet.png")
    assert code == 0, said
    assert describe(load_crappifier("em-low-dose")) in said
    a = tifffile.imread(tmp_path / "a.tif")
    assert (a.shape, a.dtype) == ((3, 16, 20), np.uint16)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 256  # first, middle and last image, each beside its truth
    crappify("apply", stack, tmp_path / "b.tif", "--seed", 5)
    crappify(stack, tmp_path / "c.tif", "--seed", 6)
    assert np.array_equal(a, tifffile.imread(tmp_path / "b.tif"))
    assert not np.array_equal(a, tifffile.imread(tmp_path / "c.tif"))


@pytest.mark.parametrize("name", ["raw.tif", "raw.ome.tif"])
def test_raw_frames_have_the_pixel_size_of_the_truth_times_the_scale(tmp_path: Path, name: str) -> None:
    pixels = np.full((3, 2, 40, 48), 90, np.uint8)
    described = {f"PhysicalSize{axis}{key}": value for axis in "XY" for key, value in (("", 4), ("Unit", "nm"))}
    tifffile.imwrite(tmp_path / "good.ome.tif", pixels, metadata={"axes": "ZCYX", **described})
    code, said = crappify(tmp_path / "good.ome.tif", tmp_path / name, "--channel", 1)
    assert code == 0, said
    raw = open_source(tmp_path / name)
    layout = raw.layout
    raw.close()
    assert layout.pixel_size_um == pytest.approx(0.016)
    assert [(axis.name, axis.size) for axis in layout.axes] == [("z", 3), ("y", 10), ("x", 12)]


def test_strength_and_file_are_obeyed(tmp_path: Path) -> None:
    Image.fromarray(np.full((400, 400), 128, np.uint8)).save(tmp_path / "good.png")
    recipe = Crappifier(id="mine", steps=(Undersample(), Dose(counts=(20.0, 200.0))))
    (tmp_path / "mine.toml").write_text(to_toml(recipe))
    for strength, dose in ((0, 200), (1, 20)):
        options = ("--preset", tmp_path / "mine.toml", "--scale", 2, "--strength", strength)
        target = tmp_path / f"raw{strength}.png"
        code, said = crappify(tmp_path / "good.png", target, *options)
        assert code == 0, said
        with Image.open(target) as image:
            raw = np.asarray(image)
        assert raw.dtype == np.uint8
        assert np.var(raw / 255) == pytest.approx(0.5 / dose, rel=0.05)


def test_the_presets_are_listed() -> None:
    code, said = crappify("presets")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == presets()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("{in}", "{dir}/out.jpg"), ".png"),
        (("{in}", "{dir}/out.png"), "3 images"),
        (("{in}", "{dir}/none/out.tif"), "a folder that exists"),
        (("{in}", "{in}"), "good.tif exists"),
        (("{in}", "{dir}/out.tif", "--preview", "{in}"), "good.tif exists"),
        (("{in}", "{dir}/out.tif", "--range", "5", "1"), "range"),
        (("{dir}/none.tif", "{dir}/out.tif"), "none.tif"),
        (("{in}", "{dir}/out.tif", "--preset", "nope"), "em-low-dose"),
        (("{in}", "{dir}/out.tif", "--preview", "{dir}/none/sheet.png"), "sheet.png"),
    ],
)
def test_a_mistake_gives_one_sentence(args: tuple[str, ...], says: str, stack: Path, tmp_path: Path) -> None:
    code, said = crappify(*(arg.format_map({"in": stack, "dir": tmp_path}) for arg in args))
    assert code == 1
    assert says in said
    assert "Traceback" not in said


def test_an_image_smaller_than_a_raw_pixel_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 9), np.uint8)).save(tmp_path / "tiny.png")
    code, said = crappify(tmp_path / "tiny.png", tmp_path / "out.png")
    assert code == 1
    assert "(3, 9)" in said
