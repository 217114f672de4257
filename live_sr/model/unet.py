"""The network: a U-Net in the raw frame's own pixel grid, enlarged once, at the very end.

Maps normalised frames to normalised frames. Knows neither grey levels, precision policy nor tiles: whoever
calls it normalises (:mod:`live_sr.model.engine`), chooses the precision of ``body`` and cuts tiles.

::

    c ──────────────────────── bilinear ×s ──(+)── out ──(+)──> (B, 1, sY, sX)
    x ─ stem ─ block ─────(+)─ block ─ head ──┘     │     │
              down │       │ up                     │   bilinear ×s
                 block ──(+)─ block                 │     │
              down │       │ up                     └─ c − area mean ─ blur ─┘
                   └ block ┘                            (regional mean)

x is the frame, or the frame with its neighbours as channels; c is the frame alone. With holes, x ends with the
mask of the frame's missing pixels: there c is the mean of the two nearest neighbours, without a say in the
regional mean.
"""

from __future__ import annotations

import math

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from live_sr.neighbours import FrameCount

MEAN_RADIUS = 7
"""Raw pixels; the box blur is 15 wide and applied twice. Wide enough that the raw noise it lets through is a
twentieth of a pixel's, narrow enough that the mean of any 32 x 32 region is the raw one."""

LEAST_WEIGHT = 0.25
"""Share of a region's pixels from which its mean is corrected in full. At the straight edge of a hole it is a
half; further in, where ever fewer and noisier pixels are left to go by, the correction fades."""


class NetworkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything needed to build the network again.

    Attributes
    ----------
    scale : int
        Output pixels per raw pixel along y and x.
    widths : tuple of int
        Channels of each level, finest first; each further level halves the resolution.
    frames : {1, 3, 5}
        Frames of a series that it sees at once, of which it restores the middle one.
    holes : bool
        Whether it takes the mask of the middle frame's missing pixels as one more channel, and fills them from
        the neighbours: for 3 frames or more.
    """

    scale: int = 4
    widths: tuple[int, ...] = (16, 48, 64, 128)
    frames: FrameCount = 1
    holes: bool = False

    @property
    def channels(self) -> int:
        """Of the input: the frames, and the mask where there is one."""
        return self.frames + int(self.holes)


class Block(nn.Module):
    """Two 3x3 convolutions around a ReLU, with a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) to the same shape."""
        added: Tensor = self.second(F.relu(self.first(x)))
        return x + added


class Body(nn.Module):
    """The learned part: U-Net trunk and PixelShuffle head. May be cast to bfloat16 or float16 as a whole."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        widths = settings.widths
        finer, coarser = widths[:-1], widths[1:]
        self.stem = nn.Conv2d(settings.channels, widths[0], 3, padding=1)
        self.encode = nn.ModuleList(Block(w) for w in finer)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(finer, coarser, strict=True))
        self.bottom = Block(widths[-1])
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(list(zip(finer, coarser, strict=True))))
        self.decode = nn.ModuleList(Block(w) for w in reversed(finer))
        self.head = nn.Conv2d(widths[0], settings.scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(settings.scale)
        nn.init.zeros_(self.head.weight)  # training starts from bilinear interpolation
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, Y, X) with Y and X multiples of the pooling, to (B, 1, sY, sX)."""
        x = self.stem(x)  # (B, C0, Y, X)
        skips: list[Tensor] = []
        for encode, down in zip(self.encode, self.down):  # noqa: B905  TorchScript's zip has no strict
            x = encode(x)
            skips.append(x)
            x = down(x)  # (B, Ci+1, Y/2, X/2)
        x = self.bottom(x)
        for up, decode in zip(self.up, self.decode):  # noqa: B905
            x = F.interpolate(up(x), scale_factor=2.0, mode="nearest") + skips.pop()
            x = decode(x)
        out: Tensor = self.shuffle(self.head(x))  # (B, s*s, Y, X) -> (B, 1, sY, sX)
        return out


class SuperResolver(nn.Module):
    """Super-resolves normalised frames of any size; ``torch.jit.script`` takes it as it is.

    The output is the bilinear enlargement plus what ``body`` adds, corrected in float32 so that its regional
    mean is the raw one: a restored frame shows no brightness that was not measured, and does not flicker. Of
    several frames the middle one is enlarged and gives the mean; the others only inform the body, except where
    the middle one has a hole: what it holds there does not matter.

    Attributes
    ----------
    body : Body
        May be cast on its own: ``module.body.to(torch.bfloat16)``; everything else stays float32.
    scale, multiple : int
        Enlargement, and the raw pixels of the coarsest level's pixel: tiles must start at multiples of it.
    middle : int
        Channel of the frame that is restored.
    holes : bool
        Whether the last channel is the mask of its missing pixels.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.scale = settings.scale
        self.multiple = 2 ** (len(settings.widths) - 1)
        self.middle = settings.frames // 2
        self.holes = settings.holes
        self.least_weight = LEAST_WEIGHT
        self.body = Body(settings)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, Y, X) float32, normalised, to (B, 1, scale * Y, scale * X) float32; any Y, X >= 1.

        A mask is 1 where a pixel of the middle frame is missing, and 0 elsewhere.
        """
        if self.holes:
            x = self.bridge(x)
        frame = x[:, self.middle : self.middle + 1]  # (B, 1, Y, X)
        out = self.enlarge(frame) + self.detail(x)
        for _ in range(2):  # twice: what the first pass leaves of a region's error, the second squares away
            error = frame - F.avg_pool2d(out, self.scale)  # (B, 1, Y, X)
            out = out + self.enlarge(self.regional(error, x))
        return out

    def bridge(self, x: Tensor) -> Tensor:
        """Put the mean of the two nearest neighbours into the middle frame's holes; same shape."""
        before, after = x[:, self.middle - 1 : self.middle], x[:, self.middle + 1 : self.middle + 2]
        frame = torch.where(x[:, -1:] > 0.5, (before + after) / 2, x[:, self.middle : self.middle + 1])
        return torch.cat([x[:, : self.middle], frame, x[:, self.middle + 1 :]], 1)

    def regional(self, error: Tensor, x: Tensor) -> Tensor:
        """Mean over a region of the errors at pixels that were measured: (B, 1, Y, X) to the same shape."""
        if not self.holes:
            return blur(blur(error))
        valid = 1 - x[:, -1:]
        weight = blur(blur(valid)).clamp(min=self.least_weight)
        return blur(blur(error * valid)) / weight

    def detail(self, x: Tensor) -> Tensor:
        """What the trunk adds to the interpolation: (B, channels, Y, X) to (B, 1, scale * Y, scale * X)."""
        y, x_ = x.shape[-2], x.shape[-1]
        below, right = -y % self.multiple, -x_ % self.multiple
        padded = F.pad(x, [0, right, 0, below], mode="replicate")
        added: Tensor = self.body(padded.to(self.body.stem.weight.dtype)).float()
        return added[..., : self.scale * y, : self.scale * x_]

    def enlarge(self, x: Tensor) -> Tensor:
        """Bilinear between pixel centres: (B, 1, Y, X) to (B, 1, scale * Y, scale * X)."""
        size = [self.scale * x.shape[-2], self.scale * x.shape[-1]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def blur(x: Tensor) -> Tensor:
    """Box blur over :data:`MEAN_RADIUS`; at an edge, the mean of the pixels that exist."""
    wide = 15  # 2 * MEAN_RADIUS + 1, spelt out: TorchScript reads no module constant
    x = F.avg_pool2d(x, [wide, 1], stride=1, padding=[wide // 2, 0], count_include_pad=False)
    return F.avg_pool2d(x, [1, wide], stride=1, padding=[0, wide // 2], count_include_pad=False)


def measure_halo(settings: NetworkSettings) -> int:
    """How many raw pixels around a tile its result depends on, rounded up to the network's multiple.

    Measured, not derived: the gradient of one aligned block of output pixels with respect to the frame, in a
    network whose weights are all positive, so that every ReLU passes and every path counts.
    """
    network = SuperResolver(settings)
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(1 / weight[0].numel())
    block, scale = int(network.multiple), int(network.scale)
    margin = 4 * block
    while True:
        edge = margin + block + margin
        x = torch.ones(1, settings.channels, edge, edge)
        if settings.holes:
            x[:, -1:] = 0  # the mean is corrected everywhere, which reaches furthest
        x.requires_grad_()
        inner = slice(scale * margin, scale * (margin + block))
        (gradient,) = torch.autograd.grad(network(x)[..., inner, inner].sum(), x)
        touched = gradient[0].ne(0).any(0).any(0).nonzero()  # columns, in any channel
        first, last = int(touched.min()), int(touched.max())
        if first > 0 and last < edge - 1:
            reach = max(margin - first, last - (margin + block - 1))
            return math.ceil(reach / block) * block
        margin *= 2


def count_kmac(settings: NetworkSettings) -> float:
    """Thousand multiply-accumulates of the convolutions per output pixel."""
    network = SuperResolver(settings)
    edge = 8 * int(network.multiple)
    return kmac_on(network, torch.zeros(1, settings.channels, edge, edge))


def kmac_on(network: nn.Module, x: Tensor) -> float:
    """The same of any network, as counted on one input (1, C, Y, X)."""
    total = 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += out.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        out: Tensor = network(x)
    for hook in hooks:
        hook.remove()
    return total / out.numel() / 1e3
