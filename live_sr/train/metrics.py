"""Measures how far an image is from its truth, and how fine it resolves. Knows no file, model or baseline.

Three families that must not be confused: the plain measures (``psnr``, ``ssim``, ``ms_ssim``), the same after
the affine fit with which PSSR reports its numbers (of :func:`fit_pssr`'s two images), and resolution by Fourier
ring correlation, which compares no grey levels at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal.windows import hann
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from live_sr.errors import InputError
from live_sr.train import losses

Float = NDArray[np.float32]
Array = NDArray[np.float32] | NDArray[np.float64]

SSIM_WINDOW = 7  # pixels, scikit-image's default
MS_SSIM_EDGE = losses.MS_SSIM_WINDOW * 2 ** (len(losses.MS_SSIM_BETAS) - 1)
"""Pixels: one window at the coarsest of five scales, each half the one before. Below it a number would be of
fewer scales, and not comparable with published ones."""
PSSR_PERCENTILES = (0.1, 99.9)  # of the truth, as in PSSR's metric_gen.py

TWO_IMAGE_THRESHOLD = 1 / 7  # Rosenthal & Henderson, J. Mol. Biol. 333, 721 (2003)
TRUTH_THRESHOLD = math.sqrt(
    1 / 7
)  # where two frames correlate by 1/7, one of them correlates so with a clean truth
NYQUIST_PX = 2.0  # pixels a period: nothing finer can be in an image
SMOOTHED_RINGS = 5  # a single ring of few Fourier pixels is too noisy to be compared with a threshold
LEAST_EDGE = 16  # pixels: fewer than eight rings are no curve
INTENSITY_BINS = 16  # of [0, 1]


def psnr(image: Array, truth: Array) -> float:
    """Peak signal-to-noise ratio in dB of two (Y, X) images, data range 1."""
    return float(peak_signal_noise_ratio(truth, image, data_range=1.0))  # type: ignore[no-untyped-call]


def ssim(image: Array, truth: Array) -> float:
    """Structural similarity of two (Y, X) images: data range 1, uniform 7 x 7 window.

    Wang et al., IEEE Trans. Image Process. 13, 600 (2004), as in scikit-image.
    """
    similarity = structural_similarity(  # type: ignore[no-untyped-call]
        truth, image, data_range=1.0, win_size=SSIM_WINDOW
    )
    return float(similarity)


def ms_ssim(image: Array, truth: Array) -> float | None:
    """Multi-scale structural similarity of two (Y, X) images, :func:`live_sr.train.losses.ms_ssim`.

    Wang et al., Proc. 37th Asilomar Conf. Signals, Systems and Computers, 1398 (2003), at all five scales.

    Returns
    -------
    float or None
        None where an edge is shorter than 176 pixels, of which the coarsest scale needs its one window.
    """
    if min(image.shape) < MS_SSIM_EDGE:
        return None
    a, b = (torch.from_numpy(np.asarray(x, np.float32))[None, None] for x in (image, truth))
    return float(losses.ms_ssim(a, b))


def fit_pssr(image: Array, truth: Array) -> tuple[Float, Float]:
    """Bring an image and its truth to the grey levels on which PSSR measures.

    The truth is stretched so that its percentiles 0.1 and 99.9 become 0 and 1; both lose their mean; the image
    is multiplied by the factor of least squared error. Measures of the two say nothing about brightness and
    contrast, and a low-contrast truth is stretched: they are **not** comparable with plain ones. As in PSSR's
    ``metric_gen.py`` (Fang et al., Nat. Methods 18, 406 (2021)), which took it from CSBDeep.

    Parameters
    ----------
    image, truth : (Y, X) float

    Returns
    -------
    image, truth : (Y, X) float32, mean 0
        The fitted image first. A flat image stays flat; a flat truth is not stretched.
    """
    low, high = np.percentile(truth, PSSR_PERCENTILES)
    target = (truth - low) / (high - low) if high > low else truth.astype(np.float64)
    target = target - target.mean()
    centred = image - np.mean(image, dtype=np.float64)
    power = float(np.mean(centred**2))
    factor = float(np.mean(centred * target)) / power if power > 0 else 0.0
    return np.asarray(factor * centred, np.float32), np.asarray(target, np.float32)


@dataclass(frozen=True, slots=True)
class IntensityError:
    """Error against the grey level of the truth, in 16 equal bins from 0 to 1.

    Against a truth that is itself noisy, the bias of *any* denoiser falls from positive in the dark to negative
    in the bright: a pixel is in the brightest bin partly because its noise was positive.

    Attributes
    ----------
    count : tuple of int
        Pixels in each bin.
    bias : tuple of float or None
        Mean of image minus truth; None in an empty bin.
    rmse : tuple of float or None
        Root of the mean squared difference.
    """

    count: tuple[int, ...]
    bias: tuple[float | None, ...]
    rmse: tuple[float | None, ...]


def error_by_intensity(image: Array, truth: Array, bins: int = INTENSITY_BINS) -> IntensityError:
    """Bias and RMSE in equal bins of the truth's grey level; (Y, X) both, truth in [0, 1]."""
    place = np.clip((truth * bins).astype(np.intp), 0, bins - 1).ravel()
    error = (image.astype(np.float64) - truth).ravel()
    return _intensity_error(
        np.bincount(place, minlength=bins),
        np.bincount(place, error, minlength=bins).astype(np.float64),
        np.bincount(place, error**2, minlength=bins).astype(np.float64),
    )


def pooled(errors: Sequence[IntensityError]) -> IntensityError:
    """The same over the pixels of several images."""
    count = np.array([e.count for e in errors])
    bias = np.array([[b or 0.0 for b in e.bias] for e in errors])
    rmse = np.array([[r or 0.0 for r in e.rmse] for e in errors])
    return _intensity_error(count.sum(0), (count * bias).sum(0), (count * rmse**2).sum(0))


def _intensity_error(
    count: NDArray[np.intp], total: NDArray[np.float64], squares: NDArray[np.float64]
) -> IntensityError:
    return IntensityError(
        tuple(int(n) for n in count),
        tuple(float(s / n) if n else None for s, n in zip(total, count, strict=True)),
        tuple(math.sqrt(s / n) if n else None for s, n in zip(squares, count, strict=True)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class RingCorrelation:
    """A Fourier ring correlation curve.

    Attributes
    ----------
    frequency : (R,) float64
        Middle of each ring, cycles per pixel, ascending to 0.5.
    correlation : (R,) float64
        -1 to 1.
    """

    frequency: NDArray[np.float64]
    correlation: NDArray[np.float64]

    def resolution_px(self, threshold: float = TWO_IMAGE_THRESHOLD) -> float | None:
        """Period, in pixels, at which the curve first falls below `threshold`.

        The curve is averaged over five rings first and interpolated linearly between rings.

        Returns
        -------
        float or None
            2.0, the finest period that pixels can hold, when it never falls below; None when it is below from
            the first ring on, so that nothing is resolved.
        """
        curve = uniform_filter1d(self.correlation, SMOOTHED_RINGS, mode="nearest")
        below = np.flatnonzero(curve < threshold)
        if not below.size:
            return NYQUIST_PX
        at = int(below[0])
        if at == 0:
            return None
        part = (curve[at - 1] - threshold) / (curve[at - 1] - curve[at])
        frequency = self.frequency[at - 1] + part * (self.frequency[at] - self.frequency[at - 1])
        return float(1 / frequency)


def frc_two(a: Array, b: Array) -> RingCorrelation:
    """Fourier ring correlation of two images of the same place.

    Of two frames with independent noise it tells at which spatial frequency the noise takes over; read it with
    :data:`TWO_IMAGE_THRESHOLD`. Of an image and its truth it tells how fine the image is *right*; read it with
    :data:`TRUTH_THRESHOLD`. Saxton & Baumeister, J. Microsc. 127, 127 (1982); Nieuwenhuizen et al., Nat.
    Methods 10, 557 (2013); Banterle et al., J. Struct. Biol. 183, 363 (2013).

    Two restored frames agree on whatever the method adds to both: replicas of the spectrum above the raw
    frame's Nyquist frequency (nearest neighbour), or invented detail. There the two-image curve is optimistic,
    and only the comparison with a truth shows it.

    Parameters
    ----------
    a, b : (Y, X) float
        Means are taken off and a Hann window is applied; rings are ``1 / min(Y, X)`` cycles per pixel wide.

    Raises
    ------
    InputError
        When the shapes differ, or an edge is shorter than 16 pixels.
    """
    if a.shape != b.shape or min(a.shape) < LEAST_EDGE:
        raise InputError(
            f"Fourier ring correlation of images of shapes {a.shape} and {b.shape}: they must be equal, "
            f"with {LEAST_EDGE} pixels or more along each edge"
        )
    return _correlate(_windowed(a), _windowed(b))


def frc_one(image: Array) -> RingCorrelation:
    """Fourier ring correlation of one image with itself: pixels of one checkerboard colour against each other.

    The image is split into its four quarter-images of every second pixel; the two pairs on the diagonals are
    correlated, and their curves averaged (Koho et al., Nat. Commun. 10, 3103 (2019)).

    Returns
    -------
    RingCorrelation
        In cycles per pixel *of the quarter-images*. :func:`resolution_one_px` reads it.
    """
    if min(image.shape) < 2 * LEAST_EDGE:
        raise InputError(
            f"one-image Fourier ring correlation of shape {image.shape}: needs {2 * LEAST_EDGE} pixels or more "
            "along each edge"
        )
    y, x = (n // 2 * 2 for n in image.shape)
    whole = _windowed(image[:y, :x])
    first = _correlate(whole[0::2, 0::2], whole[1::2, 1::2])
    second = _correlate(whole[0::2, 1::2], whole[1::2, 0::2])
    return RingCorrelation(first.frequency, (first.correlation + second.correlation) / 2)


def resolution_one_px(image: Array) -> float | None:
    """Resolution of a single image by Fourier ring correlation, as a period in pixels.

    :func:`frc_one` at 1/7, with the published correction that makes it agree with the two-image measure on
    microscope images: neighbouring pixels are a pixel apart, so the quarter-images correlate less the higher
    the frequency, and they have half the frequency range. Form and constants: Koho et al., Nat. Commun. 10,
    3103 (2019), and the authors' code, github.com/sakoho81/miplib.

    Limits
    ------
    * The noise of neighbouring pixels must be independent. Noise that a restoration, an interpolation or a
      detector has spread over several pixels counts as signal: for **restored images the result is too
      optimistic**, often the finest period there is. Use two frames there (:func:`frc_two`).
    * The image must be sampled finely: below about five pixels a period the quarter-images alias. Against the
      two-image measure, on smooth spectra of 400 x 400 pixels, it is within 10 % on average at five pixels and
      more, single images scattering by another 6 %; below it is off by up to 40 %.
    * The correction was calibrated on spectra that fall off smoothly. One that ends abruptly comes out 10 to
      30 % too fine.

    Returns
    -------
    float or None
        Never below 2.0 pixels; None when nothing is resolved.
    """
    period = frc_one(image).resolution_px(TWO_IMAGE_THRESHOLD)
    if period is None:
        return None
    of_nyquist = NYQUIST_PX / period
    correction = 0.95988146 * math.exp(13.90441896 * (of_nyquist - 0.97979108)) + 0.55146136
    return max(NYQUIST_PX, period / correction)


def _windowed(image: Array) -> NDArray[np.float64]:
    y, x = (hann(n, sym=False) for n in image.shape)
    windowed: NDArray[np.float64] = (image - np.mean(image, dtype=np.float64)) * y[:, None] * x
    return windowed


def _correlate(a: NDArray[np.float64], b: NDArray[np.float64]) -> RingCorrelation:
    edge = min(a.shape)
    fy, fx = (scipy.fft.fftfreq(n) for n in a.shape)
    ring = np.rint(np.hypot(fy[:, None], fx) * edge).astype(np.intp).ravel()
    rings = edge // 2 + 1
    fa, fb = scipy.fft.fft2(a), scipy.fft.fft2(b)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        summed = np.bincount(ring, values.ravel(), minlength=rings).astype(np.float64)
        return summed[1:rings]  # without the mean, and without the corners beyond 0.5

    cross = total((fa * fb.conj()).real)
    power = np.asarray(np.sqrt(total(np.abs(fa) ** 2) * total(np.abs(fb) ** 2)), np.float64)
    correlation = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    return RingCorrelation(np.arange(1, rings) / edge, correlation)
