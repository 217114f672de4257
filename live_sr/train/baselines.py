"""The classical ways to enlarge a noisy frame, against which a model has to show its worth. Loads no model.

Every baseline takes one raw frame, (Y, X) uint8 or uint16, and returns (scale * Y, scale * X) of the same type.
None is told the dose: what a method needs to know of the noise it estimates from the frame, as a user would
have to.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from scipy.signal import convolve
from skimage.restoration import denoise_nl_means, richardson_lucy

from live_sr.errors import InputError
from live_sr.frame import Pixels
from live_sr.upscaler import bilinear

Array = NDArray[np.float64]
Denoiser = Callable[[Array, float], Array]

MAD_OF_NORMAL = 0.6745  # median absolute deviation of a normal distribution with sigma 1
NOISE_BINS = 12  # of equal pixel counts: the noise is fitted as a line through them
LEAST_PIXELS = 2000  # below, a frame is too small to tell how its noise depends on its signal
SECOND_DIFFERENCE = np.outer((1, -2, 1), (1, -2, 1)).astype(np.float64)  # blind to planes and straight steps
NORM = 6.0  # root of the sum of its squares
LEVEL_PX = 2.0  # sigma: wide enough not to follow a pixel's own noise
EVEN_SHARE = 0.5  # of the pixels of a bin, those with the least slope: edges are not noise
BM3D_EDGE = 64  # pixels: on frames smaller than its search window of 39 the package ends the process
FLAT = 0.05  # of a grey level: a frame with less noise is not changed by a denoiser

# Of three or four settings each, these did best on tissue at 10, 40 and 160 electrons: the contest is fair.
PSF_SIGMA_PX = 0.7  # raw pixels: somewhat wider than the area of a pixel, whose sigma is 0.29
PSF_REACH = 3  # pixels: more than four sigma
PSF_MARGIN = 16  # pixels around the frame: over all iterations no trace of the border reaches further
MOST_ITERATIONS = 50  # of Richardson-Lucy; skimage's default, seldom reached at low dose
ITERATIONS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 34, MOST_ITERATIONS)

NLM_PATCH, NLM_REACH = (
    3,
    7,
)  # pixels of the raw frame, where features are small: patch, and how far others may lie
NLM_STRENGTH = 0.5  # of sigma, with the noise taken off the patch distances


def nearest(raw: Pixels, scale: int) -> Pixels:
    """Repeat each pixel: (Y, X) to (scale * Y, scale * X), same dtype."""
    return np.repeat(np.repeat(raw, scale, axis=0), scale, axis=1)


def bicubic(raw: Pixels, scale: int) -> Pixels:
    """Bicubic convolution (Keys, a = -0.75, as in torch) on half-pixel centres, clipped to the type's range."""
    return _as(_bicubic(raw.astype(np.float32), scale), raw)


def lanczos(raw: Pixels, scale: int) -> Pixels:
    """Lanczos interpolation with three lobes, as in Pillow, clipped to the type's range."""
    y, x = raw.shape
    large = Image.fromarray(raw.astype(np.float32)).resize((x * scale, y * scale), Image.Resampling.LANCZOS)
    return _as(np.asarray(large), raw)


def deconvolved(raw: Pixels, scale: int) -> Pixels:
    """Richardson-Lucy deconvolution of the raw frame, then bicubic.

    The point spread function is a Gaussian of sigma 0.7 raw pixels. Iteration stops when what is left differs
    from the frame by no more than the noise estimated from the frame (the discrepancy principle, Morozov 1966),
    because further iterations only sharpen the noise. Richardson, J. Opt. Soc. Am. 62, 55 (1972); Lucy, Astron.
    J. 79, 745 (1974).
    """
    noise = estimate_noise(raw)
    full = np.iinfo(raw.dtype).max
    frame = raw / np.float64(full)
    at = np.arange(-PSF_REACH, PSF_REACH + 1)
    profile = np.exp(-0.5 * (at / PSF_SIGMA_PX) ** 2)
    psf = np.outer(profile, profile) / profile.sum() ** 2
    tolerated = noise.sigma(float(raw.mean())) / full
    padded = np.pad(frame, PSF_MARGIN, mode="symmetric")  # skimage takes what is outside as black
    inner = (slice(PSF_MARGIN, -PSF_MARGIN),) * 2
    sharp = padded
    for iterations in ITERATIONS:
        sharp = richardson_lucy(  # type: ignore[no-untyped-call]
            padded, psf, num_iter=iterations, clip=False, filter_epsilon=1e-6
        )
        seen = convolve(sharp, psf, mode="same")
        if float(np.sqrt(np.mean((seen[inner] - frame) ** 2))) <= tolerated:
            break
    return _as(_bicubic(np.asarray(sharp[inner] * full, np.float32), scale), raw)


def non_local_means(raw: Pixels, scale: int) -> Pixels:
    """Non-local means on the variance-stabilised raw frame, then bicubic.

    Patches of 3 x 3 pixels, compared within 7 pixels; strength 0.5 sigma. Buades et al., Multiscale Model.
    Simul. 4, 490 (2005), in scikit-image's fast version (Darbon et al. 2008).
    """

    def denoise(image: Array, sigma: float) -> Array:
        denoised: Array = denoise_nl_means(
            image,
            patch_size=NLM_PATCH,
            patch_distance=NLM_REACH,
            h=NLM_STRENGTH * sigma,
            sigma=sigma,
            fast_mode=True,
            preserve_range=True,
        )
        return denoised

    return _denoised(raw, scale, denoise)


def bm3d(raw: Pixels, scale: int) -> Pixels:
    """BM3D on the variance-stabilised raw frame, then bicubic.

    Dabov et al., IEEE Trans. Image Process. 16, 2080 (2007), in the version of Mäkinen et al., IEEE Trans.
    Image Process. 29, 8339 (2020). Its authors' package ``bm3d`` is for non-commercial use only, so that it is
    not installed with live-sr.

    Raises
    ------
    InputError
        When the package is not installed.
    """
    if importlib.util.find_spec("bm3d") is None:
        raise InputError(
            "the baseline bm3d needs the package of that name, whose licence allows non-commercial use only: "
            "pip install bm3d, or leave the baseline out"
        )
    package = importlib.import_module("bm3d")

    def denoise(image: Array, sigma: float) -> Array:
        more = [(0, max(0, BM3D_EDGE - n)) for n in image.shape]
        denoised = package.bm3d(np.pad(image, more, mode="symmetric"), sigma_psd=sigma)
        return np.asarray(denoised, np.float64)[: image.shape[0], : image.shape[1]]

    return _denoised(raw, scale, denoise)


BASELINES: dict[str, Callable[[Pixels, int], Pixels]] = {
    "nearest": nearest,
    "bilinear": bilinear,
    "bicubic": bicubic,
    "lanczos": lanczos,
    "richardson-lucy": deconvolved,
    "nl-means": non_local_means,
    "bm3d": bm3d,
}
"""By name, cheapest first."""

SLOW = ("bm3d",)
"""Names of those that take more than a second for a frame of 256 x 256 pixels on one core."""


def available_baselines() -> tuple[str, ...]:
    """Names of all baselines whose packages are installed."""
    return tuple(n for n in BASELINES if n != "bm3d" or importlib.util.find_spec("bm3d") is not None)


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of a detector that counts: variance = gain * (level - black) + read noise squared.

    Attributes
    ----------
    gain : float
        Grey levels per count: the slope of the variance over the level; 0 where none was found.
    at_zero : float
        Variance at grey level 0, grey levels squared; negative when the black level is above 0.
    """

    gain: float
    at_zero: float

    def sigma(self, level: float) -> float:
        """Standard deviation at a grey level."""
        return math.sqrt(max(self.gain * level + self.at_zero, 0.0))

    def stabilise(self, image: Array) -> Array:
        """Grey levels to units in which the noise is 1 everywhere.

        The generalised Anscombe transform: Starck, Murtagh & Bijaoui, Image Processing and Data Analysis
        (1998).
        """
        if self.gain <= 0:
            return image / self.sigma(0)
        inside = self.gain * image + 3 / 8 * self.gain**2 + self.at_zero
        stabilised: Array = 2 / self.gain * np.sqrt(np.maximum(inside, 0))
        return stabilised

    def restore(self, stabilised: Array) -> Array:
        """Back to grey levels, without the bias of the plain algebraic inverse.

        The closed form of Mäkitalo & Foi, IEEE Trans. Image Process. 22, 91 (2013).
        """
        if self.gain <= 0:
            return stabilised * self.sigma(0)
        d = np.maximum(
            stabilised, 2 * math.sqrt(3 / 8)
        )  # what no counts at all become; below, the form diverges
        counts = d**2 / 4 + math.sqrt(1.5) / 4 / d - 11 / 8 / d**2 + 5 / 8 * math.sqrt(1.5) / d**3 - 1 / 8
        restored: Array = self.gain * counts - self.at_zero / self.gain
        return restored


def estimate_noise(raw: Pixels) -> Noise:
    """How the noise of a frame depends on its grey level, from the frame alone.

    A second difference along both axes holds noise and little structure (Immerkær, Comput. Vis. Image Underst.
    64, 300 (1996)). Pixels are sorted by their local mean into bins of equal counts; in each, those where the
    smoothed frame is least steep give sigma, by the median absolute deviation (Donoho & Johnstone, Biometrika
    81, 425 (1994)), and a line is fitted through the variances. Structure as fine as a pixel still counts as
    noise.

    Parameters
    ----------
    raw : (Y, X) uint8 or uint16

    Returns
    -------
    Noise
        With gain 0, the same noise everywhere, when the frame has fewer than 2000 pixels or the line falls.
    """
    if min(raw.shape) < len(SECOND_DIFFERENCE):
        return Noise(0.0, 0.0)
    image = raw.astype(np.float64)
    detail = convolve(image, SECOND_DIFFERENCE, mode="valid") / NORM
    flat = Noise(0.0, _mad_sigma(detail) ** 2)
    if detail.size < LEAST_PIXELS:
        return flat
    level = gaussian_filter(image, LEVEL_PX)[1:-1, 1:-1].ravel()
    slope = gaussian_gradient_magnitude(image, LEVEL_PX)[1:-1, 1:-1].ravel()
    detail = detail.ravel()
    levels, variances = [], []
    for pixels in np.array_split(np.argsort(level), NOISE_BINS):
        even = pixels[slope[pixels] <= np.quantile(slope[pixels], EVEN_SHARE)]
        levels.append(float(level[even].mean()))
        variances.append(_mad_sigma(detail[even]) ** 2)
    used = [(a, v) for a, v in zip(levels, variances, strict=True) if v > 0]  # saturated bins have no noise
    if len(used) < NOISE_BINS // 2 or used[-1][0] - used[0][0] < 1:
        return flat
    at, variance = np.array(used, np.float64).T
    gain, at_zero = (float(c) for c in np.polyfit(at, variance, 1))
    return Noise(gain, at_zero) if gain > 0 else flat


def _mad_sigma(detail: Array) -> float:
    return float(np.median(np.abs(detail)) / MAD_OF_NORMAL) if detail.size else 0.0


def _denoised(raw: Pixels, scale: int, denoise: Denoiser) -> Pixels:
    noise = estimate_noise(raw)
    if noise.sigma(float(raw.mean())) < FLAT:
        return bicubic(raw, scale)
    stabilised = noise.stabilise(raw.astype(np.float64))
    clean = noise.restore(denoise(stabilised, 1.0))
    return _as(_bicubic(clean.astype(np.float32), scale), raw)


def _bicubic(image: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    x = torch.from_numpy(image)[None, None]
    large: NDArray[np.float32] = F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)[
        0, 0
    ].numpy()
    return large


def _as(image: NDArray[np.float32], raw: Pixels) -> Pixels:
    """Rounded and clipped to the type of `raw`."""
    grey = np.clip(np.rint(image), 0, np.iinfo(raw.dtype).max)
    return grey.astype(np.uint8) if raw.dtype.itemsize == 1 else grey.astype(np.uint16)
