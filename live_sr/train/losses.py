"""What training minimises. Works in [0, 1] grey values; knows no network but the optional adversary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from live_sr.config import Settings

WINDOW = 7  # pixels; the window of skimage.metrics.structural_similarity, by which results are compared
STRIDE = 4  # pixels from window to window: every pixel is still seen, at a sixteenth of the windows
C1, C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for a data range of 1
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli & Bovik 2003
MS_SSIM_WINDOW = 11  # pixels, same source
ADVERSARY_WIDTH = 32  # channels of its first layer


class LossSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Weights of the terms; a term of weight 0 is not computed.

    Attributes
    ----------
    l1, mse : float
        Mean absolute and mean squared difference.
    ssim : float
        Of 1 - SSIM, uniform 7 x 7 window. L1 alone over-smooths sharp, high-contrast sections; a small
        structural share costs no PSNR.
    ms_ssim : float
        Of 1 - multi-scale SSIM (PSSR2 trains on 0.8 of it with 0.2 of L1).
    gradient : float
        Mean absolute difference of the first differences along y and x: sharper edges.
    adversarial : float
        Of a patch critic that is trained along (hinge loss). PSSR first tried one: it invents texture, so it is
        off unless asked for.
    """

    l1: float = 1.0
    mse: float = 0.0
    ssim: float = 0.05
    ms_ssim: float = 0.0
    gradient: float = 0.0
    adversarial: float = 0.0


def restoration_loss(
    restored: Tensor, truth: Tensor, settings: LossSettings, where: Tensor | None = None
) -> Tensor:
    """The weighted terms that compare with the truth, both (B, 1, Y, X) in [0, 1] units; a scalar.

    Parameters
    ----------
    where : (B, 1, Y, X) float32, optional
        1 where pixels count. Only L1 and MSE are then used: the others look at neighbourhoods.
    """
    if where is not None:
        off = (restored - truth)[where > 0]
        return settings.l1 * off.abs().mean() + settings.mse * off.square().mean()
    loss = restored.new_zeros(())
    if settings.l1:
        loss = loss + settings.l1 * F.l1_loss(restored, truth)
    if settings.mse:
        loss = loss + settings.mse * F.mse_loss(restored, truth)
    if settings.ssim:
        loss = loss + settings.ssim * (1 - ssim(restored, truth, STRIDE))
    if settings.ms_ssim:
        loss = loss + settings.ms_ssim * (1 - ms_ssim(restored.clamp(0, 1), truth))
    if settings.gradient:
        steps = [(x.diff(dim=-2), x.diff(dim=-1)) for x in (restored, truth)]
        loss = loss + settings.gradient * sum(F.l1_loss(a, b) for a, b in zip(*steps, strict=True))
    return loss


def ssim(a: Tensor, b: Tensor, stride: int = 1) -> Tensor:
    """Mean structural similarity of two batches (B, 1, Y, X) with data range 1 and a uniform 7 x 7 window.

    Wang et al., IEEE Trans. Image Process. 13, 600 (2004), with the sample covariance as scikit-image takes it.
    """
    n = WINDOW**2
    mean_a, mean_b = (F.avg_pool2d(x, WINDOW, stride) for x in (a, b))
    to_sample = n / (n - 1)
    var_a, var_b, cov = (
        to_sample * (F.avg_pool2d(x * y, WINDOW, stride) - mx * my)
        for x, y, mx, my in ((a, a, mean_a, mean_a), (b, b, mean_b, mean_b), (a, b, mean_a, mean_b))
    )
    similarity = (2 * mean_a * mean_b + C1) * (2 * cov + C2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    return similarity.mean()


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of two batches (B, 1, Y, X): data range 1, Gaussian 11 x 11 window.

    Wang, Simoncelli & Bovik, Asilomar 2003, as in torchmetrics: sigma 1.5, negative contrast terms count as
    zero. A crop too small for five scales is compared at as many as fit, whose weights then take the place of
    all five.
    """
    scales = len(MS_SSIM_BETAS)
    # what the library asks for; a window must fit at every scale
    while scales > 1 and min(a.shape[-2:]) // (scales - 1) ** 2 < MS_SSIM_WINDOW:
        scales -= 1
    missing = sum(MS_SSIM_BETAS) / sum(MS_SSIM_BETAS[:scales])
    similarity = multiscale_structural_similarity_index_measure(
        a,
        b,
        data_range=1.0,
        kernel_size=MS_SSIM_WINDOW,
        betas=tuple(beta * missing for beta in MS_SSIM_BETAS[:scales]),
        normalize="relu",
    )
    assert isinstance(similarity, Tensor)
    return similarity


class Adversary(nn.Sequential):
    """A patch critic (Isola et al. 2017): (B, 1, Y, X) in [0, 1] to one score for each 16 x 16 patch or so."""

    def __init__(self) -> None:
        widths = [ADVERSARY_WIDTH * 2**i for i in range(3)]
        layers: list[nn.Module] = []
        for before, width in zip([1, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))


def critic_loss(critic: nn.Module, restored: Tensor, truth: Tensor) -> Tensor:
    """Hinge loss of the critic itself: truth above 1, restored below -1."""
    real: Tensor = critic(truth)
    made: Tensor = critic(restored.detach())
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def fooling_loss(critic: nn.Module, restored: Tensor) -> Tensor:
    """What the restoring network gets for looking unlike the truth to the critic."""
    score: Tensor = critic(restored)
    return -score.mean()


def masked_psnr(restored: Tensor, truth: Tensor, where: Tensor | None) -> float:
    """PSNR in dB, data range 1, of the pixels that count."""
    off = (restored.clamp(0, 1) - truth).square()
    mse = off.mean() if where is None else off[where > 0].mean()
    return float(-10 * torch.log10(mse + 1e-12))
