"""Makes low-dose, undersampled frames out of good ones, so that a network can learn the way back.

Works on batches in [0, 1] and returns the truth's raw frame in the same units. The order is the microscope's:
beam blur, undersampling, electrons, detector. Reads no file and knows no network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from live_sr.config import Settings

BLUR_REACH = 3  # Gaussian kernels end at three sigma: 0.3 % of the weight is beyond


class CrappifySettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ranges from which each image draws its own degradation.

    Attributes
    ----------
    dose : (float, float)
        Electrons per raw pixel at full scale, drawn log-uniformly.
    read_noise : (float, float)
        Standard deviation of the detector's Gaussian noise, as a fraction of full scale, drawn uniformly.
    blur_px : (float, float)
        Sigma of the beam, in pixels of the truth, drawn uniformly.
    blur_share : float
        Fraction of the images that are blurred.
    point_share : float
        Fraction of the images scanned with a fine beam: only the middle of each raw pixel is seen, the rest of
        its area is skipped (aliasing). The others average over the whole raw pixel.
    """

    dose: tuple[float, float] = (10.0, 300.0)
    read_noise: tuple[float, float] = (0.0, 0.04)
    blur_px: tuple[float, float] = (0.3, 1.0)
    blur_share: float = 0.3
    point_share: float = 0.2


def crappify(truth: Tensor, scale: int, settings: CrappifySettings, generator: torch.Generator) -> Tensor:
    """Degrade each image of a batch with its own draw from the ranges.

    Parameters
    ----------
    truth : (B, 1, scale * Y, scale * X) float32 in [0, 1]
    generator : torch.Generator
        The only source of randomness.

    Returns
    -------
    (B, 1, Y, X) float32 in [0, 1]
    """
    n = truth.shape[0]
    low, high = (math.log(d) for d in settings.dose)
    dose = torch.exp(_uniform(n, (low, high), generator))
    read_noise = _uniform(n, settings.read_noise, generator)
    sigma = _uniform(n, settings.blur_px, generator)
    sigma *= torch.rand(n, generator=generator) < settings.blur_share
    point = torch.rand(n, generator=generator) < settings.point_share

    seen = beam_blur(truth, sigma)
    signal = torch.where(point[:, None, None, None], point_sample(seen, scale), F.avg_pool2d(seen, scale))
    return expose(signal, dose, read_noise, generator)


def expose(signal: Tensor, dose: Tensor, read_noise: Tensor, generator: torch.Generator) -> Tensor:
    """Count electrons and read them out: Poisson, then Gaussian, then clipped to the detector's range.

    Parameters
    ----------
    signal : (B, 1, Y, X) float32 in [0, 1]
    dose : (B,) float32
        Electrons per pixel at full scale.
    read_noise : (B,) float32
        Standard deviation as a fraction of full scale.
    """
    per_image = (-1, 1, 1, 1)
    electrons = torch.poisson(signal.clamp(0, 1) * dose.view(per_image), generator=generator)
    noise = torch.randn(signal.shape, generator=generator) * read_noise.view(per_image)
    return (electrons / dose.view(per_image) + noise).clamp(0, 1)


def beam_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma (B,) of its own for each image of (B, 1, Y, X); 0 leaves it as it is."""
    if not bool((sigma > 0).any()):
        return x
    reach = max(1, math.ceil(BLUR_REACH * float(sigma.max())))
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (B, 2 reach + 1)
    kernel = kernel / kernel.sum(1, keepdim=True)
    n = x.shape[0]
    side_by_side = F.pad(x.transpose(0, 1), [reach] * 4, mode="replicate")  # (1, B, ...): one group per image
    rows = F.conv2d(side_by_side, kernel[:, None, :, None], groups=n)
    return F.conv2d(rows, kernel[:, None, None, :], groups=n).transpose(0, 1)


def point_sample(x: Tensor, scale: int) -> Tensor:
    """Only the middle of each raw pixel: its central pixel, or the central 2 x 2 where `scale` is even.

    (B, 1, scale * Y, scale * X) to (B, 1, Y, X), on the same centres as the mean over the area.
    """
    if scale % 2:
        return x[..., scale // 2 :: scale, scale // 2 :: scale]
    margin = scale // 2 - 1
    b, c, y, x_ = x.shape
    cells = x.view(b, c, y // scale, scale, x_ // scale, scale)
    return cells[:, :, :, margin : margin + 2, :, margin : margin + 2].mean(dim=(3, 5))


def _uniform(n: int, between: tuple[float, float], generator: torch.Generator) -> Tensor:
    low, high = between
    return low + (high - low) * torch.rand(n, generator=generator)
