from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from live_sr.errors import InputError
from live_sr.sim.specimen import DEFAULT_PIXEL_SIZE_UM, ImageSpecimen, Neuropil


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("detector", [0, 1])
@pytest.mark.parametrize("pixel_size_um", [0.002, 0.004, 0.016, 0.05])
def test_neuropil_is_float32_within_0_and_1(pixel_size_um: float, detector: int) -> None:
    image = Neuropil(3).render((90, 130), pixel_size_um=pixel_size_um, detector=detector)
    assert image.shape == (90, 130)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.02


def test_equal_seeds_give_equal_pixels_in_another_process() -> None:
    code = (
        "from live_sr.sim.specimen import Neuropil;"
        "print(Neuropil(7).render((40, 50), pixel_size_um=0.008, z_um=0.3).tobytes().hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    image = Neuropil(7).render((40, 50), pixel_size_um=0.008, z_um=0.3)
    assert np.array_equal(image, np.frombuffer(bytes.fromhex(other), np.float32).reshape(40, 50))


def test_another_seed_gives_another_tissue() -> None:
    a, b = (Neuropil(seed).render((120, 120), pixel_size_um=0.008) for seed in (0, 1))
    assert abs(correlation(a, b)) < 0.3


@pytest.mark.parametrize("pixel_size_um", [0.004, 0.008, 0.016])
@pytest.mark.parametrize("draw", [None, 1, 2])
def test_overlapping_windows_agree(pixel_size_um: float, draw: int | None) -> None:
    tissue = Neuropil() if draw is None else Neuropil.random(np.random.default_rng(draw))
    y, x = 100.0, -3.0  # far out, where float32 coordinates would show
    whole = tissue.render((150, 160), pixel_size_um=pixel_size_um, center_um=(y, x), z_um=0.5)
    center = (y + (30 + 50 - 75) * pixel_size_um, x + (40 + 45 - 80) * pixel_size_um)
    part = tissue.render((100, 90), pixel_size_um=pixel_size_um, center_um=center, z_um=0.5)
    assert np.abs(whole[30:130, 40:130] - part).max() < 1e-4


def test_a_window_larger_than_a_tile_has_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Neuropil(2).render((140, 150), pixel_size_um=0.008)
    monkeypatch.setattr("live_sr.sim.specimen.TILE", 64)
    assert np.abs(Neuropil(2).render((140, 150), pixel_size_um=0.008) - whole).max() < 1e-4


def test_neighbouring_sections_resemble_each_other() -> None:
    at = {z: Neuropil(1).render((250, 250), pixel_size_um=0.008, z_um=z) for z in (0.0, 0.01, 0.2)}
    assert correlation(at[0.0], at[0.01]) > 0.8
    assert correlation(at[0.0], at[0.2]) < 0.4


def test_features_finer_than_a_pixel_fade_into_its_mean() -> None:
    fine = Neuropil(1).render((512, 512), pixel_size_um=0.004)
    coarse = Neuropil(1).render((128, 128), pixel_size_um=0.016)
    averaged = fine.reshape(128, 4, 128, 4).mean((1, 3))
    assert correlation(averaged, coarse) > 0.9
    assert abs(averaged.mean() - coarse.mean()) < 0.02
    assert 0.8 < averaged.std() / coarse.std() < 1.25  # aliasing would make the coarse one rougher


def test_the_second_detector_shows_the_same_structure_with_less_stain() -> None:
    a, b = (Neuropil(1).render((200, 200), pixel_size_um=0.006, detector=d) for d in (0, 1))
    assert correlation(a, b) > 0.5
    assert b.std() < a.std()


def test_random_tissues_differ_and_repeat() -> None:
    first, second = (Neuropil.random(np.random.default_rng(seed)) for seed in (0, 1))
    assert first != second
    assert first == Neuropil.random(np.random.default_rng(0))


GRADIENT = np.add.outer(np.arange(40), 3 * np.arange(60)).astype(np.uint8)  # (Y, X)


def test_an_image_shown_at_its_own_pixel_size_is_unchanged() -> None:
    image = ImageSpecimen(GRADIENT, pixel_size_um=0.01).render((40, 60), pixel_size_um=0.01)
    np.testing.assert_allclose(image, GRADIENT / 255, atol=1e-6)


def test_a_coarser_pixel_is_the_mean_of_those_it_covers() -> None:
    image = ImageSpecimen(GRADIENT, pixel_size_um=0.01).render((10, 15), pixel_size_um=0.04)
    np.testing.assert_allclose(image, (GRADIENT / 255).reshape(10, 4, 15, 4).mean((1, 3)), atol=1e-6)


def test_an_image_goes_on_as_its_mirror() -> None:
    specimen = ImageSpecimen(GRADIENT, pixel_size_um=0.01)
    image = specimen.render((40, 60), pixel_size_um=0.01, center_um=(0.4, -0.6))
    np.testing.assert_allclose(image, GRADIENT[::-1, ::-1] / 255, atol=1e-6)


def test_sections_between_planes_are_interpolated() -> None:
    stack = np.stack([GRADIENT, GRADIENT // 2])
    image = ImageSpecimen(stack, pixel_size_um=0.01, z_step_um=0.03).render(
        (40, 60), pixel_size_um=0.01, z_um=0.01
    )
    np.testing.assert_allclose(image, (stack[0] * 2.0 + stack[1]) / 3 / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        pytest.param(np.array([[0, 255]], np.uint8), [0, 1], id="uint8"),
        pytest.param(np.array([[0, 65535]], np.uint16), [0, 1], id="uint16"),
        pytest.param(np.array([[0, 300]], np.uint16), [0, 300 / 65535], id="uint16-dark"),
        pytest.param(np.array([[-5.0, 15.0]], np.float32), [0, 1], id="float-by-its-own-range"),
        pytest.param(np.array([[2.0, 2.0]], np.float32), [0, 0], id="float-without-contrast"),
    ],
)
def test_pixels_are_scaled_by_their_type(pixels: np.ndarray, expected: list[float], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", pixels)
    image = ImageSpecimen.from_file(tmp_path / "image.tif").render((1, 2), pixel_size_um=DEFAULT_PIXEL_SIZE_UM)
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_is_read_with_its_own_bit_depth(depth: int, tmp_path: Path) -> None:
    pixels = GRADIENT if depth == 8 else GRADIENT.astype(np.uint16) * 256
    Image.fromarray(pixels).save(tmp_path / "image.png")
    specimen = ImageSpecimen.from_file(tmp_path / "image.png", pixel_size_um=0.02)
    image = specimen.render((40, 60), pixel_size_um=0.02)
    np.testing.assert_allclose(image, pixels / (2**depth - 1), atol=1e-6)


@pytest.mark.parametrize(
    ("unit", "size", "pixel_size_um", "z_step_um"),
    [("µm", (0.03, 0.01), 0.01, 0.03), ("nm", (30.0, 10.0), 0.01, 0.03)],
)
def test_ome_metadata_give_pixel_size_and_z_step(
    unit: str, size: tuple[float, float], pixel_size_um: float, z_step_um: float, tmp_path: Path
) -> None:
    metadata = {"axes": "ZYX", "PhysicalSizeZ": size[0], "PhysicalSizeX": size[1], "PhysicalSizeY": size[1]}
    metadata |= {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    tifffile.imwrite(tmp_path / "s.ome.tif", np.stack([GRADIENT, GRADIENT]), metadata=metadata)
    specimen = ImageSpecimen.from_file(tmp_path / "s.ome.tif")
    assert specimen.pixel_size_um == pytest.approx(pixel_size_um)
    assert specimen.z_step_um == pytest.approx(z_step_um)


def test_of_several_channels_the_first_is_shown(tmp_path: Path) -> None:
    stack = np.stack([np.stack([GRADIENT, GRADIENT // 2])] * 3)  # (Z, C, Y, X)
    tifffile.imwrite(tmp_path / "s.ome.tif", stack, metadata={"axes": "ZCYX"}, photometric="minisblack")
    specimen = ImageSpecimen.from_file(tmp_path / "s.ome.tif", pixel_size_um=0.01)
    np.testing.assert_allclose(
        specimen.render((40, 60), pixel_size_um=0.01, z_um=0.02), GRADIENT / 255, atol=1e-6
    )


@pytest.mark.parametrize("name", ["colour.png", "colour.tif"])
def test_a_colour_image_is_refused(name: str, tmp_path: Path) -> None:
    pixels = np.zeros((8, 9, 3), np.uint8)
    if name.endswith("png"):
        Image.fromarray(pixels).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb")
    with pytest.raises(InputError, match="one grey channel"):
        ImageSpecimen.from_file(tmp_path / name)


@pytest.mark.parametrize("name", ["broken.png", "broken.tif"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(InputError, match=name):
        ImageSpecimen.from_file(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        ImageSpecimen.from_file(tmp_path / "none.tif")


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((2, 2, 2, 2)), id="four-axes"),
        pytest.param(np.zeros((0, 5)), id="empty"),
        pytest.param(np.array([[0.0, np.nan]]), id="nan"),
        pytest.param(np.zeros((2, 2), complex), id="complex"),
    ],
)
def test_an_array_that_is_no_grey_stack_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError):
        ImageSpecimen(pixels)
