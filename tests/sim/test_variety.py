from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from live_sr.sim.specimen import Neuropil
from live_sr.sim.variety import KINDS, Kind, _bars, _Bodies, _divide, _Sites, _stamp, random_image
from live_sr.train.procedural import Procedural, render_one

SHAPE = (96, 112)


def spectral_slope(image: np.ndarray) -> float:
    """Exponent a of the amplitude spectrum f**-a between 1/40 and 1/3 cycles per pixel."""
    n = min(image.shape)
    window = np.hanning(n)[:, None] * np.hanning(n)
    amplitude = np.abs(np.fft.rfft2((image[:n, :n] - image.mean()) * window))
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    some = (f > 1 / 40) & (f < 1 / 3)
    return -float(np.polyfit(np.log(f[some]), np.log(amplitude[some] + 1e-6), 1)[0])


def skew(image: np.ndarray) -> float:
    return float(np.mean(((image - image.mean()) / image.std()) ** 3))


@pytest.mark.parametrize("shape", [(37, 211), (211, 37), (96, 96), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_float32_within_0_and_1_at_any_shape(kind: Kind, shape: tuple[int, int]) -> None:
    for seed in range(4):
        image = random_image(np.random.default_rng(seed), shape, kinds=[kind])
        assert image.shape == shape
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert 0 <= image.min() <= image.max() <= 1


def test_equal_generators_give_equal_pixels_in_another_process() -> None:
    code = (
        "import numpy as np;"
        "from live_sr.sim.variety import random_image;"
        "rng = np.random.default_rng(7);"
        "print(b''.join(random_image(rng, (40, 50)).tobytes() for _ in range(6)).hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rng = np.random.default_rng(7)
    here = b"".join(random_image(rng, (40, 50)).tobytes() for _ in range(6))
    assert here.hex() == other.strip()


def test_another_seed_gives_another_image() -> None:
    a, b = (random_image(np.random.default_rng(seed), SHAPE) for seed in (0, 1))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.3


def test_each_kind_is_another_picture() -> None:
    images = [random_image(np.random.default_rng(3), SHAPE, kinds=[kind]) for kind in KINDS]
    assert len({image.tobytes() for image in images}) == len(KINDS)


@pytest.fixture(scope="module")
def forty() -> list[np.ndarray]:
    return [random_image(np.random.default_rng([40, i]), (128, 128)) for i in range(40)]


def test_contrast_brightness_and_sharpness_vary_widely(forty: list[np.ndarray]) -> None:
    assert np.std([image.std() for image in forty]) > 0.05
    assert np.std([image.mean() for image in forty]) > 0.12
    assert np.std([spectral_slope(image) for image in forty]) > 0.7


def test_no_image_is_blank(forty: list[np.ndarray]) -> None:
    assert min(image.std() for image in forty) > 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_bright_on_dark_and_dark_on_bright(kind: Kind) -> None:
    images = [random_image(np.random.default_rng([1, i]), SHAPE, kinds=[kind]) for i in range(16)]
    skews = [skew(image) for image in images]
    assert min(skews) < -0.1
    assert max(skews) > 0.1


def test_cells_are_those_of_the_power_diagram() -> None:
    rng = np.random.default_rng(2)
    at = rng.uniform(-10, 70, (60, 2)).astype(np.float32)
    at = at[at[:, 0].argsort()]
    sites = _Sites(at, rng.uniform(3, 9, 60).astype(np.float32))
    y, x = np.meshgrid(np.arange(50.0), np.arange(60.0), indexing="ij")
    cells = _divide(sites, np.stack([y, x]).astype(np.float32), 10.0, 12.0, 0.0)

    pixels = np.stack([y, x], -1)[:, :, None]
    powers = ((pixels - at) ** 2).sum(-1) - sites.radius**2  # (Y, X, sites)
    nearest = powers.argmin(-1)
    apart = np.linalg.norm(at[nearest][:, :, None] - at, axis=-1)
    apart[apart == 0] = 1e-9  # from itself: a plane infinitely far away
    planes = (powers - powers.min(-1, keepdims=True)) / (2 * apart)
    planes[apart < 1e-6] = np.inf
    assert np.mean(cells.near == nearest) > 0.999  # the rest lie on a boundary, to rounding
    np.testing.assert_allclose(cells.depth, np.minimum(planes.min(-1), 12), atol=0.01)
    np.testing.assert_allclose(cells.away, np.linalg.norm(pixels[:, :, 0] - at[nearest], axis=-1), atol=0.05)


def test_bodies_are_as_far_as_the_closest_capsule() -> None:
    rng = np.random.default_rng(4)
    n = 12
    at, angle = rng.uniform(0, 60, (n, 2)), rng.uniform(0, np.pi, n)
    half, radius = rng.uniform(0, 12, n), rng.uniform(0.5, 6, n)
    bodies = _Bodies(*(a.astype(np.float32) for a in (at, angle, half, radius, np.zeros(n))))
    stamped = _stamp((60, 60), bodies)

    y, x = (a[..., None] for a in np.meshgrid(np.arange(60.0), np.arange(60.0), indexing="ij"))
    along = (x - at[:, 1]) * np.cos(angle) + (y - at[:, 0]) * np.sin(angle)
    reached = np.clip(along, -half, half)  # the closest point of the middle line
    away = np.hypot(x - at[:, 1] - reached * np.cos(angle), y - at[:, 0] - reached * np.sin(angle))
    inside = radius - away
    near = inside.max(-1) > -1.4  # further out nothing is promised
    np.testing.assert_allclose(stamped.fit[near], inside.max(-1)[near], atol=1e-3)
    assert np.mean(stamped.key[near] == inside.argmax(-1)[near]) > 0.999


@pytest.mark.parametrize("sharp", [True, False])
def test_bars_finer_than_two_pixels_fade_to_grey(sharp: bool) -> None:
    x = np.tile(np.arange(64, dtype=np.float32), (8, 1))
    assert np.ptp(_bars(x / 8, 0.5, sharp=sharp)) > 0.9
    assert np.ptp(_bars(x / 1.7, 0.5, sharp=sharp)) < 0.02


def test_without_variety_training_images_are_neuropil_as_ever() -> None:
    settings = Procedural(images=1, size=48, share=1.0)
    rng = np.random.default_rng((3, 5))
    tissue = Neuropil.random(rng)
    y, x, z = rng.uniform(-500, 500, 3)
    pixel_size_um = float(np.exp(rng.uniform(*np.log(settings.pixel_size_um))))
    image = tissue.render((48, 48), pixel_size_um=pixel_size_um, center_um=(y, x), z_um=z)
    assert np.array_equal(render_one(settings, (3, 5)), np.rint(image * 65535).astype(np.uint16))


def test_variety_replaces_its_fraction_of_the_training_images_and_leaves_the_rest() -> None:
    plain, half, full = (Procedural(images=1, size=16, variety=v) for v in (0.0, 0.5, 1.0))
    images = [[render_one(s, (0, n)).tobytes() for n in range(20)] for s in (plain, half, full)]
    same = [a == b for a, b in zip(images[0], images[1], strict=True)]
    assert 4 <= sum(same) <= 16
    assert all(h == (p if kept else f) for p, h, f, kept in zip(*images, same, strict=True))
    assert not set(images[0]) & set(images[2])
