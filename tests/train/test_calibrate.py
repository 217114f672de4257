"""What was planted with the simulated microscope comes back from its frames and images of other places."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from scipy.ndimage import gaussian_filter

from live_sr.errors import InputError
from live_sr.frame import Pixels
from live_sr.sim.scope import ScopeSettings, build_scope
from live_sr.sim.specimen import Neuropil
from live_sr.train.calibrate import Fit, fit_crappifier, run_fit
from live_sr.train.crappify import Quantise, load_crappifier

SCALE = 2
PIXEL_UM = 0.016  # of the raw frame
PLACES = 6
BLACK, WHITE = 8000, 48000
Float = NDArray[np.float32]


class RememberedTissue:
    """Neuropil that is rendered once, however many microscopes look at it."""

    def __init__(self) -> None:
        self._tissue, self._seen = Neuropil(5), {}

    def render(self, shape: tuple[int, int], **where: Any) -> Float:
        key = (shape, *sorted(where.items()))
        if key not in self._seen:
            self._seen[key] = self._tissue.render(shape, **where)
        return self._seen[key]


@pytest.fixture(scope="module")
def tissue() -> RememberedTissue:
    return RememberedTissue()


@pytest.fixture(scope="module")
def good(tissue: RememberedTissue) -> list[Pixels]:
    """Noise-free images, away from all frames."""
    return [
        np.rint(
            tissue.render((512, 512), pixel_size_um=PIXEL_UM / SCALE, center_um=(-40.0 - 15 * k, 25.0 * k))
            * 65535
        ).astype(np.uint16)
        for k in range(PLACES)
    ]


def scan(tissue: RememberedTissue, **scope: Any) -> list[Pixels]:
    """Low-dose frames of other places."""
    settings = ScopeSettings(
        size=256,
        pixel_size_um=PIXEL_UM,
        scale=SCALE,
        realtime=False,
        **{"offset": BLACK, "full_scale": WHITE, "seed": 1, **scope},
    )
    frames = []
    with build_scope(tissue, settings) as microscope:
        for k in range(PLACES):
            microscope.core.setXYPosition(30.0 * k, -12.0 * k)
            microscope.core.snapImage()
            frames.append(microscope.core.getImage().copy())
    return frames


@pytest.fixture(scope="module")
def frames(tissue: RememberedTissue) -> list[Pixels]:
    """Of 40 electrons per pixel."""
    return scan(tissue, electrons_per_us=40.0)


@pytest.fixture(scope="module")
def fit(frames: list[Pixels], good: list[Pixels]) -> Fit:
    return fit_crappifier(frames, good, scale=SCALE, id="planted")


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param({"electrons_per_us": 80.0, "dwell_us": 1.5, "read_noise": 0.08}, id="read-noise"),
        pytest.param({"electrons_per_us": 80.0, "beam_blur_px": 0.8}, id="blur"),
        pytest.param({"electrons_per_us": 80.0, "line_jitter_px": 0.6}, id="line-jitter"),
        pytest.param(
            {"electrons_per_us": 80.0, "beam_blur_px": 0.6, "line_jitter_px": 0.6, "read_noise": 0.08},
            id="all-together",
        ),
        pytest.param({"electrons_per_us": 40.0, "offset": 20000, "full_scale": 44000}, id="pale"),
    ],
)
def test_planted_settings_come_back_within_15_per_cent(
    tissue: RememberedTissue, good: list[Pixels], planted: dict[str, Any]
) -> None:
    fitted = fit_crappifier(scan(tissue, **planted), good, scale=SCALE)
    black, white = planted.get("offset", BLACK), planted.get("full_scale", WHITE)
    gain = (white - black) / 65535
    expected = {
        "electrons_per_pixel": planted["electrons_per_us"] * planted.get("dwell_us", 1.0),
        "detector_gain": gain,
        "detector_offset": black / 65535,
    }
    if "read_noise" in planted:  # the scope's own 0.015 is buried under the shot noise
        expected["read_noise"] = planted["read_noise"] * gain
    if "beam_blur_px" in planted:
        expected["blur_px"] = planted["beam_blur_px"] * SCALE
    if "line_jitter_px" in planted:
        expected["line_jitter_px"] = planted["line_jitter_px"] * SCALE
    found = {name: fitted.parameters[name].value for name in expected}
    assert found == pytest.approx(expected, rel=0.15)
    assert fitted.quality.overall < 1, str(fitted)
    assert not fitted.warnings


def test_what_was_not_planted_is_small_against_a_raw_pixel(fit: Fit) -> None:
    for name in ("blur_px", "line_jitter_px"):
        parameter = fit.parameters[name]
        assert parameter.value < 0.4 * SCALE
        assert parameter.uncertainty < 0.5 * SCALE
    assert fit.parameters["read_noise"].value < 0.02


def test_8_bit_images_give_the_same_microscope(fit: Fit, frames: list[Pixels], good: list[Pixels]) -> None:
    low, high = ([(image >> 8).astype(np.uint8) for image in images] for images in (frames, good))
    eight = fit_crappifier(low, high, scale=SCALE)
    for name in ("electrons_per_pixel", "detector_gain"):
        assert eight.parameters[name].value == pytest.approx(fit.parameters[name].value, rel=0.08)
    assert eight.crappifier.steps[-1] == Quantise(bits=8)


def test_a_pedestal_of_the_good_images_is_taken_off(frames: list[Pixels], good: list[Pixels]) -> None:
    raised = [np.rint(0.7 * image + 0.3 * 65535).astype(np.uint16) for image in good]
    fitted = fit_crappifier(frames, raised, scale=SCALE)
    assert fitted.parameters["pedestal"].value == pytest.approx(0.3, rel=0.15)
    assert fitted.parameters["detector_offset"].value == pytest.approx(BLACK / 65535, rel=0.15)
    assert "pedestal" in " ".join(fitted.warnings)
    assert "contrast" in [step.name for step in fitted.crappifier.steps]


def test_the_fitted_crappifier_degrades_as_the_microscope_does(
    fit: Fit, tissue: RememberedTissue, frames: list[Pixels]
) -> None:
    """On a frame's own place, which the fit did not know: what is left beside the clean signal is as strong."""
    where = {"pixel_size_um": PIXEL_UM / SCALE, "center_um": (0.0, 0.0)}
    truth = tissue.render((512, 512), **where)
    signal = truth.reshape(256, 2, 256, 2).mean((1, 3)) * (WHITE - BLACK) / 65535
    real = frames[0] / np.float32(65535)
    batch = torch.from_numpy(truth).expand(12, 1, 512, 512)  # draws of the ranges
    degraded = fit.crappifier(batch, SCALE, torch.Generator().manual_seed(0))[:, 0].numpy()
    assert (degraded - signal).std((1, 2)).mean() == pytest.approx((real - signal).std(), rel=0.05)
    assert degraded.mean() == pytest.approx(real.mean(), rel=0.03)


def test_the_ranges_hold_what_was_planted_and_are_narrow(fit: Fit) -> None:
    steps = {step.name: step for step in fit.crappifier.steps}
    low, high = steps["dose"].counts
    assert low < 40.0 < high < 1.5 * low
    low, high = steps["detector"].offset
    assert low < BLACK / 65535 < high


@pytest.mark.parametrize("what", ["filtered frames", "another specimen"])
def test_a_bad_fit_says_so(frames: list[Pixels], good: list[Pixels], what: str) -> None:
    low, high = list(frames), list(good)
    if what == "filtered frames":
        low = [gaussian_filter(frame, 1.0) for frame in frames]
    else:
        rng = np.random.default_rng(0)
        high = [(np.kron(rng.random((16, 16)), np.ones((32, 32))) * 65535).astype(np.uint16) for _ in good]
    fitted = fit_crappifier(low, high, scale=SCALE)
    assert fitted.quality.overall > 1
    assert "differ from the real ones" in fitted.warnings[0]
    assert "do not trust" in str(fitted)


def test_noise_that_does_not_follow_the_signal_is_named(good: list[Pixels]) -> None:
    rng = np.random.default_rng(0)
    low = []
    for image in good:
        clean = image.reshape(256, 2, 256, 2).mean((1, 3))
        low.append(np.clip(clean + rng.normal(0, 5000, clean.shape), 0, 65535).astype(np.uint16))
    fitted = fit_crappifier(low, good, scale=SCALE)
    assert "does not rise with the signal" in " ".join(fitted.warnings)
    assert fitted.parameters["read_noise"].value == pytest.approx(5000 / 65535, rel=0.1)


def test_a_fit_goes_into_json_and_a_picture(fit: Fit) -> None:
    content = json.loads(json.dumps(fit.as_dict()))
    assert content["parameters"]["electrons_per_pixel"]["value"] == fit.parameters["electrons_per_pixel"].value
    with Image.open(io.BytesIO(fit.picture())) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 1000
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 80)
    assert red.sum() > 500, "the fitted curves are red"


def test_two_folders_become_a_file_to_train_with_and_the_same_fit_again(
    tmp_path: Path, fit: Fit, frames: list[Pixels], good: list[Pixels]
) -> None:
    for name, images in (("low", frames), ("high", good)):
        (tmp_path / name).mkdir()
        for k, image in enumerate(images):
            tifffile.imwrite(tmp_path / name / f"{k}.tif", image)
    out, picture, said = tmp_path / "out" / "our-sem.toml", tmp_path / "out" / "fit.png", io.StringIO()
    fitted = run_fit(
        tmp_path / "low",
        tmp_path / "high",
        scale=SCALE,
        out=out,
        picture=picture,
        console=Console(file=said, width=100),
    )
    assert load_crappifier(out) == fitted.crappifier
    assert fitted.crappifier.id == "our-sem"
    assert fitted.parameters == fit.parameters
    assert fitted.quality == fit.quality
    assert "electrons_per_pixel" in said.getvalue()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_saturated_frames_are_named(frames: list[Pixels], good: list[Pixels]) -> None:
    bright = [np.clip(frame.astype(np.float32) * 2, 0, 65535).astype(np.uint16) for frame in frames[:2]]
    assert "low-dose pixels are white" in " ".join(fit_crappifier(bright, good[:2], scale=SCALE).warnings)


@pytest.mark.parametrize(
    ("low", "high", "scale", "says"),
    [
        pytest.param([], [(256, 256)], 2, "no low-dose frame", id="no-frames"),
        pytest.param([(256, 256)], [], 2, "no high-resolution image", id="no-images"),
        pytest.param([(128, 128, 3)], [(256, 256)], 2, "low-dose frame 1 of 1", id="colour"),
        pytest.param([(100, 100)], [(512, 512)], 2, r"too small, the largest \(100, 100\)", id="small-frames"),
        pytest.param([(128, 128)], [(200, 200)], 2, "4 areas of 128 x 128", id="small-images"),
        pytest.param([(128, 128)], [(256, 256)], 0, "scale 0 must be", id="scale"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    low: list[tuple[int, ...]], high: list[tuple[int, ...]], scale: int, says: str
) -> None:
    rng = np.random.default_rng(0)
    frames, images = ([rng.integers(0, 255, s).astype(np.uint8) for s in shapes] for shapes in (low, high))
    with pytest.raises(InputError, match=says):
        fit_crappifier(frames, images, scale=scale)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda x: x / np.float32(255), "float32", id="float"),
        pytest.param(lambda x: np.where(x > 99, np.nan, x), "float64", id="nan"),
        pytest.param(lambda x: np.full_like(x, 7), "one even grey", id="even"),
    ],
)
def test_unusable_pixels_are_refused(spoil: Any, says: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 256)).astype(np.uint8)
    with pytest.raises(InputError, match=says):
        fit_crappifier([spoil(image)], [image], scale=2)
    with pytest.raises(InputError, match=says):
        fit_crappifier([image], [spoil(image)], scale=2)


def test_frames_of_two_types_are_refused() -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 256)).astype(np.uint8)
    with pytest.raises(InputError, match="mix uint8 and uint16"):
        fit_crappifier([image, image.astype(np.uint16)], [image], scale=2)


def test_real_images_at_a_known_dose_come_back(shared_data: Path) -> None:
    """Low-dose frames simulated from one real FIB-SEM block, good images from another: 40 electrons."""
    real = shared_data / "fibsem_medulla"
    truth = tifffile.imread(real / "val_520px_every6th.ome.tif")[::3]
    rng = np.random.default_rng(0)
    clean = truth.reshape(len(truth), 260, 2, 260, 2).mean((2, 4)) / 255
    low = np.rint(np.clip(rng.poisson(clean * 40) / 40, 0, 1) * 255).astype(np.uint8)
    high = tifffile.imread(real / "train_520px_every4th.ome.tif")[::10]
    fitted = fit_crappifier(list(low), list(high), scale=2)
    assert fitted.parameters["electrons_per_pixel"].value == pytest.approx(40, rel=0.15)
    assert fitted.parameters["detector_gain"].value == pytest.approx(1, rel=0.15)
    assert fitted.quality.overall < 1
