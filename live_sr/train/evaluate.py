"""Says what a model is worth: PSNR and SSIM against a known truth, beside the classical interpolations.

Every number in a model card comes from here. Degrades good images to the frames a camera would have delivered,
and runs any :class:`live_sr.upscaler.Upscaler` on them. Trains nothing, loads no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from live_sr.errors import InputError
from live_sr.frame import Pixels
from live_sr.sim.specimen import Neuropil
from live_sr.train.files import Float, read_images, to_unit
from live_sr.upscaler import Upscaler, bilinear

DOSE = 40.0  # electrons per raw pixel at full scale: low, but the tissue is still recognised by eye
READ_NOISE = 4 / 255  # of full scale: four grey levels of an 8-bit detector
SSIM_WINDOW = 7  # pixels, scikit-image's default
EDGE = 512  # pixels of a procedural truth: some thirty neurites
EVALUATION_SEED = 20_000  # apart from the seeds of training runs, which are small numbers


@dataclass(frozen=True, slots=True)
class Quality:
    """How close an image is to its truth.

    Attributes
    ----------
    psnr : float
        Peak signal-to-noise ratio, dB, data range 1.
    ssim : float
        Structural similarity, data range 1, uniform 7 x 7 window (Wang et al. 2004, as in scikit-image).
    """

    psnr: float
    ssim: float


@dataclass(frozen=True, slots=True)
class Row:
    """Results by method, each the mean over `images` images."""

    name: str
    images: int
    methods: dict[str, Quality]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One row per file, the mean over all their images, and what was simulated."""

    model: str
    model_sha256: str
    scale: int
    dose: float
    read_noise: float
    seed: int
    rows: list[Row]
    mean: Row

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def evaluate(
    upscaler: Upscaler,
    files: Sequence[Path],
    *,
    dose: float = DOSE,
    read_noise: float = READ_NOISE,
    seed: int = 0,
    progress: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Evaluation:
    """Degrade good images, restore them with `upscaler` and by interpolation, and compare with the truth.

    Parameters
    ----------
    upscaler : Upscaler
        ``info`` names the scale.
    files : sequence of Path
        TIFF, OME-TIFF or PNG, uint8 or uint16; every plane of a stack counts as one image.
    dose : float
        Electrons per raw pixel at full scale.
    read_noise : float
        Standard deviation, as a fraction of full scale.
    seed : int
        Of the noise: the same seed gives the same numbers.
    progress : callable, optional
        Wraps the files while they are worked through, for example ``rich.progress.track``.

    Returns
    -------
    Evaluation
        With the methods ``nearest``, ``bilinear``, ``bicubic`` and ``live-sr``.

    Raises
    ------
    InputError
        When there is no file, or one cannot be read or is too small to compare.
    """
    if not files:
        raise InputError("nothing to evaluate on: name at least one high-resolution image")
    return _evaluate(upscaler, (_read(path) for path in progress(files)), dose, read_noise, seed)


def evaluate_procedural(
    upscaler: Upscaler,
    images: int = 8,
    *,
    pixel_size_um: float = 0.016,
    dose: float = DOSE,
    read_noise: float = READ_NOISE,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Evaluation:
    """The same on noise-free renderings of tissues that training has not seen, 512 x 512 pixels of truth each.

    Parameters
    ----------
    images : int
        How many different tissues.
    pixel_size_um : float
        Of the raw frame.

    Raises
    ------
    InputError
        When `images` is less than 1.
    """
    if images < 1:
        raise InputError(f"nothing to evaluate on: asked for {images} procedural images")
    scale = upscaler.info.scale

    def render(n: int) -> tuple[str, list[Pixels]]:
        rng = np.random.default_rng([EVALUATION_SEED, n])
        truth = Neuropil.random(rng).render((EDGE, EDGE), pixel_size_um=pixel_size_um / scale)
        return f"neuropil {n}", [np.rint(truth * 65535).astype(np.uint16)]

    return _evaluate(upscaler, (render(n) for n in progress(range(images))), dose, read_noise, seed)


def _read(path: Path) -> tuple[str, list[Pixels]]:
    return path.name, read_images(path)


def _evaluate(
    upscaler: Upscaler,
    named: Iterable[tuple[str, list[Pixels]]],
    dose: float,
    read_noise: float,
    seed: int,
) -> Evaluation:
    info = upscaler.info
    rng = np.random.default_rng(seed)
    rows, everything = [], []
    for name, images in named:
        results = []
        for image in images:
            truth = crop_to_scale(image, info.scale)
            raw = simulate(truth, info.scale, dose=dose, read_noise=read_noise, dtype=image.dtype.name, rng=rng)
            results.append(compare(upscaler, raw, truth))
        rows.append(_mean_row(name, results))
        everything += results
    return Evaluation(
        model=info.id,
        model_sha256=info.sha256,
        scale=info.scale,
        dose=dose,
        read_noise=read_noise,
        seed=seed,
        rows=rows,
        mean=_mean_row("mean", everything),
    )


def compare(upscaler: Upscaler, raw: Pixels, truth: Float) -> dict[str, Quality]:
    """Score the interpolations and `upscaler` on one frame.

    Parameters
    ----------
    raw : (Y, X) uint8 or uint16
        Full scale is the range of its type.
    truth : (scale * Y, scale * X) float32 in [0, 1]
    """
    scale = upscaler.info.scale
    (restored,) = upscaler.upscale([raw])
    images = {
        "nearest": nearest(raw, scale),
        "bilinear": bilinear(raw, scale),
        "bicubic": bicubic(raw, scale),
        "live-sr": restored,
    }
    units = {name: to_unit(image) for name, image in images.items()}
    return {name: Quality(psnr(image, truth), ssim(image, truth)) for name, image in units.items()}


def simulate(
    truth: Float, scale: int, *, dose: float, read_noise: float, dtype: str, rng: np.random.Generator
) -> Pixels:
    """One low-dose frame of `truth`: area mean, Poisson, Gaussian, clipped and quantised as a camera would.

    Parameters
    ----------
    truth : (scale * Y, scale * X) float32 in [0, 1]
    dtype : ``"uint8"`` or ``"uint16"``
        Whose range is full scale.

    Returns
    -------
    (Y, X) of `dtype`
    """
    y, x = (n // scale for n in truth.shape)
    signal = truth.reshape(y, scale, x, scale).mean(axis=(1, 3), dtype=np.float64)
    seen = rng.poisson(signal * dose) / dose + rng.normal(0.0, read_noise, signal.shape)
    full = np.iinfo(dtype).max
    pixels: Pixels = np.rint(np.clip(seen, 0, 1) * full).astype(dtype)
    return pixels


def crop_to_scale(image: Pixels, scale: int) -> Float:
    """Scale to [0, 1] by the type's range, and cut the last rows and columns that fill no raw pixel.

    Raises
    ------
    InputError
        When the image is smaller than the window of the SSIM.
    """
    y, x = (n // scale * scale for n in image.shape)
    if min(y, x) < SSIM_WINDOW:
        raise InputError(
            f"an image of {image.shape} pixels is too small to compare: need {SSIM_WINDOW} or more"
        )
    return to_unit(image[:y, :x])


def psnr(image: Float, truth: Float) -> float:
    """Peak signal-to-noise ratio in dB of two (Y, X) images in [0, 1]."""
    return float(peak_signal_noise_ratio(truth, image, data_range=1.0))  # type: ignore[no-untyped-call]


def ssim(image: Float, truth: Float) -> float:
    """Structural similarity of two (Y, X) images in [0, 1]: data range 1, uniform 7 x 7 window."""
    similarity = structural_similarity(  # type: ignore[no-untyped-call]
        truth, image, data_range=1.0, win_size=SSIM_WINDOW
    )
    return float(similarity)


def nearest(raw: Pixels, scale: int) -> Pixels:
    """Repeat each pixel: (Y, X) to (scale * Y, scale * X), same dtype."""
    return np.repeat(np.repeat(raw, scale, axis=0), scale, axis=1)


def bicubic(raw: Pixels, scale: int) -> Pixels:
    """Bicubic convolution (Keys, a = -0.75, as in torch) on half-pixel centres, clipped to the type's range."""
    x = torch.from_numpy(raw.astype(np.float32))[None, None]
    y = F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)[0, 0].numpy()
    pixels: Pixels = np.clip(np.rint(y), 0, np.iinfo(raw.dtype).max).astype(raw.dtype)
    return pixels


def _mean_row(name: str, results: Sequence[dict[str, Quality]]) -> Row:
    methods = {
        method: Quality(
            float(np.mean([r[method].psnr for r in results])), float(np.mean([r[method].ssim for r in results]))
        )
        for method in results[0]
    }
    return Row(name, len(results), methods)
