"""The variants that ``explore.py`` trains: each differs from ``base`` in one thing. Trains nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from live_sr.model.unet import Block, SuperResolver
from live_sr.train.losses import LossSettings
from live_sr.train.procedural import Procedural
from live_sr.train.settings import TrainSettings

Change = Callable[[SuperResolver], None]


@dataclass(frozen=True)
class Variant:
    """One change to the base.

    Attributes
    ----------
    widths : tuple of int or None
        Channels per level; those of the settings file by default.
    change : callable
        Done to the network before it is trained.
    loss : LossSettings
    settings : callable
        Another set of examples.
    taught : float
        Share of the loss that is the mean absolute difference from what a teacher makes of the same frame.
    afterwards : mapping
        Changes of the trained network that are judged as variants of their own, without more training.
    """

    widths: tuple[int, ...] | None = None
    change: Change = lambda network: None
    loss: LossSettings = LossSettings()  # noqa: RUF009  frozen
    settings: Callable[[TrainSettings], TrainSettings] = lambda settings: settings
    taught: float = 0.0
    afterwards: Mapping[str, Change] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- blocks


class Gated(nn.Module):
    """Two gated halves without an activation, depthwise 3x3 (Chen et al. 2022, NAFNet)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.wide, self.back = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.wide2, self.back2 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.deep(self.wide(self.norm(x))).chunk(2, 1)
        x = x + self.back(a * b)
        a, b = self.wide2(self.norm2(x)).chunk(2, 1)
        return x + self.back2(a * b)


class LargeKernel(nn.Module):
    """Depthwise 7x7 and two 1x1 (Liu et al. 2022, ConvNeXt)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.wide, self.back = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.wide(self.deep(x))))


class Branched(nn.Module):
    """3x3, 1x1 and identity side by side, which fold into one 3x3 afterwards (Ding et al. 2021, RepVGG)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.point = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.second, self.point2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first(x) + self.point(x) + x)
        return x + self.second(inner) + self.point2(inner) + inner


class Attentive(nn.Module):
    """A residual block, then attention among all pixels of the coarsest level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block, self.norm = Block(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class AntiAliasedDown(nn.Module):
    """A convolution, then a small blur before every other pixel is dropped (Zhang 2019)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 3, stride=2, padding=1, count_include_pad=False)


# ------------------------------------------------------------------------------------------------ changes


def blocks(kind: Callable[[int], nn.Module]) -> Change:
    """Exchange every block."""

    def change(network: SuperResolver) -> None:
        body = network.body
        for blocks_ in (body.encode, body.decode):
            for i, block in enumerate(blocks_):
                blocks_[i] = kind(block.first.out_channels)
        body.bottom = kind(body.bottom.first.out_channels)

    return change


def attention(network: SuperResolver) -> None:
    """Attention at the coarsest level."""
    network.body.bottom = Attentive(network.body.bottom.first.out_channels)


def anti_aliased(network: SuperResolver) -> None:
    """Blur before dropping pixels."""
    for i, down in enumerate(network.body.down):
        network.body.down[i] = AntiAliasedDown(down.in_channels, down.out_channels)


def icnr(network: SuperResolver) -> None:
    """The head starts as nearest-neighbour enlargement of random features (Aitken et al. 2017), not as zero."""
    head = network.body.head
    kernel = torch.empty(1, head.in_channels, 3, 3)
    nn.init.kaiming_normal_(kernel)
    with torch.no_grad():
        head.weight.copy_(0.1 * kernel.expand_as(head.weight))


def coarse(network: SuperResolver) -> None:
    """No block on the raw grid before the first halving; two on the next level."""
    body = network.body
    body.encode[0] = nn.Identity()
    width = body.encode[1].first.out_channels
    body.encode[1] = nn.Sequential(Block(width), Block(width))


def plain_data(settings: TrainSettings) -> TrainSettings:
    """The real images alone, as they are."""
    augment = msgspec.structs.replace(settings.augment, zoom_share=0.0, window_share=0.0, invert_share=0.0)
    return msgspec.structs.replace(settings, augment=augment, procedural=Procedural())


# --------------------------------------------------------------------------------------- eight-bit integers


class Int8Weights(nn.Module):
    """Weights as an int8 convolution holds them: 127 steps to either side, in each output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        step = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-8) / 127
        return straight_through(weight, (weight / step).round() * step)


def int8_input(module: nn.Module, given: tuple[Tensor]) -> Tensor:
    """What a convolution is given, in 255 steps from the smallest to the largest value of the whole tensor.

    The range is that of the tensor at hand; one that is fixed beforehand, as most int8 engines have it, is not
    better than this.
    """
    (x,) = given
    low, high = x.detach().float().aminmax()
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # zero, which pads the edges, stays itself
    step = (high - low).clamp(min=1e-8) / 255
    zero = (-low / step).round()
    levels = ((x.float() / step).round() + zero).clamp(0, 255) - zero
    return straight_through(x, (levels * step).to(x.dtype))


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """The rounded value, with the gradient of the exact one (Jacob et al. 2018)."""
    return exact + (rounded - exact).detach()


def int8(network: SuperResolver) -> None:
    """Every convolution as in int8 arithmetic; the head, whose output is the picture, is left alone."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module is not network.body.head:
            parametrize.register_parametrization(module, "weight", Int8Weights())
            module.register_forward_pre_hook(int8_input)


# ----------------------------------------------------------------------------------------------- the list

VARIANTS = {
    "base": Variant(afterwards={"base, int8 after training": int8}),
    "narrow, one level more": Variant((16, 48, 64, 128)),
    "wide": Variant((64, 96, 128)),
    "nano": Variant((16, 32, 64)),
    "nano, taught": Variant((16, 32, 64), taught=0.5),
    "coarse": Variant(change=coarse),
    "gated": Variant(change=blocks(Gated)),
    "large kernels": Variant(change=blocks(LargeKernel)),
    "branched": Variant(change=blocks(Branched)),
    "attention": Variant(change=attention),
    "anti-aliased": Variant(change=anti_aliased),
    "icnr": Variant(change=icnr),
    "int8-aware": Variant(change=int8),
    "L1 alone": Variant(loss=LossSettings(ssim=0.0)),
    "MSE": Variant(loss=LossSettings(l1=0.0, mse=1.0, ssim=0.0)),
    "gradient term": Variant(loss=LossSettings(gradient=0.5)),
    "MS-SSIM mix": Variant(loss=LossSettings(l1=0.2, ssim=0.0, ms_ssim=0.8)),
    "no variety": Variant(settings=plain_data),
}
NAMES = [name for key, variant in VARIANTS.items() for name in (key, *variant.afterwards)]
"""In the order of the table."""
