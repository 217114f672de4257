"""Makes low-dose, undersampled frames out of good ones, so that a network can learn the way back.

A crappifier is a list of physical steps in the order of the acquisition, each with ranges that every image
draws its own values from. Works on batches in [0, 1], on the CPU or a GPU, and returns the raw frames in the
same units. Lengths are in pixels of what a step is given: of the truth before the undersampling, raw pixels
after it. A line is always a line of the raw frame. Reads TOML and no images, knows no network.
"""

from __future__ import annotations

import functools
import json
import math
import re
import tomllib
import typing
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import tomli_w
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from live_sr.config import Settings
from live_sr.errors import ConfigError, InputError
from live_sr.frame import Pixels
from live_sr.train.sheet import Row, draw_sheet

PRESETS = Path(__file__).parent / "presets"
BLUR_REACH = 3  # Gaussian kernels end at three sigma: 0.3 % of the weight is beyond
VARIANCE_REACH = 4  # four where the published recipe ends there (scikit-image's default)
DISTORTION_KNOTS = 5  # along each axis: the scan bends two or three times within a frame
EDGE_FLOOR = 1e-3  # weight of a flat pixel beside that of an edge, squared step: streaks also start nowhere
NUMBERS = re.compile(r"\[\n((?:    [-+.\w]+,\n)+)\]")  # as the library writes them, one a line
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PREVIEW_EDGE = 256  # pixels of the truth: whole raw pixels stay visible beside it

Range = tuple[float, float]
"""Smallest and largest value; each image draws its own in between."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """How a range is drawn from, and which values make sense.

    Attributes
    ----------
    neutral : float
        The value that changes nothing: the milder, the nearer to it.
    lowest, highest : float
        Limits of what is accepted.
    log : bool
        Drawn log-uniformly instead of uniformly.
    """

    neutral: float = 0.0
    lowest: float = 0.0
    highest: float = math.inf
    log: bool = False

    def at(self, between: Range, strength: float) -> float:
        """The value between the mildest (0) and the harshest (1) of a range."""
        low, high = between
        mild = min(max(self.neutral, low), high)
        harsh = low if self.neutral - low > high - self.neutral else high
        if self.log:
            return float(mild * (harsh / mild) ** strength)
        return mild + (harsh - mild) * strength


Amount = Annotated[Range, Drawn()]
Fraction = Annotated[Range, Drawn(highest=1.0)]
Signed = Annotated[Range, Drawn(lowest=-1.0, highest=1.0)]
Factor = Annotated[Range, Drawn(neutral=1.0)]
Ratio = Annotated[Range, Drawn(neutral=1.0, lowest=1.0)]
Counts = Annotated[Range, Drawn(neutral=math.inf, lowest=1e-3, log=True)]


class Step(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="step"):
    """One thing that happens to a frame; as a string, in plain words.

    Attributes
    ----------
    share : float
        Fraction of the images that it happens to; each image draws for itself.

    Raises
    ------
    ConfigError
        When a range is empty or beyond what makes sense.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        self._check("share", (self.share, self.share), Drawn(highest=1.0))
        for field, how in drawn_fields(type(self)).items():
            self._check(field, getattr(self, field), how)

    def __call__(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Apply the step to its share of a batch (B, C, Y, X); the images of the rest stay as they are."""
        if self.share >= 1:
            return self.apply(x, pitch, generator)
        lucky = torch.rand(len(x), generator=generator, device=x.device) < self.share
        chosen = lucky.nonzero()[:, 0]
        if not len(chosen):
            return x
        return x.index_copy(0, chosen, self.apply(x[chosen], pitch, generator))

    @abstractmethod
    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Apply the step to all of (B, C, Y, X); `pitch` pixels of it, along y and x, are one raw pixel."""

    @property
    def name(self) -> str:
        """As in a TOML file."""
        return str(self.__struct_config__.tag)

    def draw(self, field: str, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 1, 1, 1) float32: one value of a range for each image of `x`."""
        between: Range = getattr(self, field)
        low, high = between
        u = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device)
        if drawn_fields(type(self))[field].log:
            return low * torch.exp(math.log(high / low) * u)
        return u * (high - low) + low

    def _check(self, field: str, between: Range, how: Drawn) -> None:
        low, high = between
        if not (math.isfinite(low) and math.isfinite(high)):
            problem = "must be finite"
        elif low > high:
            problem = f"must rise: write [{high:g}, {low:g}]"
        elif low < how.lowest or high > how.highest:
            upper = f" and at most {how.highest:g}" if how.highest < math.inf else ""
            problem = f"must be at least {how.lowest:g}{upper}"
        else:
            return
        shown = f"[{low:g}, {high:g}]" if isinstance(getattr(self, field), tuple) else f"{low:g}"
        raise ConfigError(f"{field} = {shown} of step {self.name!r} {problem}")


@functools.cache
def drawn_fields(kind: type[Step]) -> dict[str, Drawn]:
    """The ranges of a kind of step by field, and how each is drawn."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        field: how
        for field in kind.__struct_fields__
        for how in getattr(hints[field], "__metadata__", ())
        if isinstance(how, Drawn)
    }


class Blur(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="blur"):
    """The beam or the point spread function: a Gaussian, and a disc where it is out of focus.

    Attributes
    ----------
    sigma_px : (float, float)
        Standard deviation of the Gaussian; geometric mean of both axes where it is astigmatic.
    astigmatism : (float, float)
        Ratio of the long axis to the short one, at a random angle.
    defocus_px : (float, float)
        Radius of the disc.
    """

    sigma_px: Amount = (0.0, 0.0)
    astigmatism: Ratio = (1.0, 1.0)
    defocus_px: Amount = (0.0, 0.0)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Blur each image with its own kernel."""
        sigma = self.draw("sigma_px", x, generator)
        if self.astigmatism == (1.0, 1.0):
            x = beam_blur(x, sigma.flatten())
        else:
            stretch = self.draw("astigmatism", x, generator).sqrt()
            angle = math.pi * torch.rand(sigma.shape, generator=generator, device=x.device)
            x = _convolve(x, _ellipse(sigma * stretch, sigma / stretch, angle))
        if self.defocus_px == (0.0, 0.0):
            return x
        return _convolve(x, _disc(self.draw("defocus_px", x, generator)))

    def __str__(self) -> str:
        parts = []
        if self.sigma_px != (0.0, 0.0):
            parts.append(f"Gaussian blur, sigma {_span(self.sigma_px)} px")
            if self.astigmatism != (1.0, 1.0):
                parts[0] += f", astigmatic {_span(self.astigmatism)} : 1"
        if self.defocus_px != (0.0, 0.0):
            parts.append(f"defocus, a disc of radius {_span(self.defocus_px)} px")
        return " and ".join(parts) or "no blur"


Method = Literal["area", "point", "binning", "linear", "antialiased"]


class Undersample(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="undersample"):
    """From the pixels of the truth to raw pixels: the step that every crappifier has exactly once.

    Attributes
    ----------
    method : str, or dict of str to float
        One method, or several with the weights that images are shared out by:

        - ``area``: the beam covers the raw pixel evenly during the dwell.
        - ``point``: a fine beam sees the middle of each raw pixel and skips the rest, which aliases.
        - ``binning``: neighbouring camera pixels are summed; full scale is that of the sum, so the numbers
          are those of ``area``.
        - ``linear``: linear interpolation without an anti-aliasing filter, outermost pixels on outermost
          pixels, as ``scipy.ndimage.zoom(image, 1 / scale, order=1)`` does. Away from the middle it is
          displaced, by up to (scale - 1) / 2 pixels of the truth at the edges.
        - ``antialiased``: linear interpolation with a kernel that is as wide as two raw pixels, as Pillow does.
    """

    method: Method | dict[Method, float] = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share != 1:
            raise ConfigError(f"share = {self.share:g} of step 'undersample' must be 1: leave it out")
        weights = list(self.weights.values())
        if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
            raise ConfigError(
                f"method = {self.method} of step 'undersample' needs weights of 0 or more, one of them above 0"
            )

    @property
    def weights(self) -> dict[Method, float]:
        """Method to weight."""
        return self.method if isinstance(self.method, dict) else {self.method: 1.0}

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """(B, C, pitch * Y, pitch * X) to (B, C, Y, X)."""
        if len(self.weights) == 1:
            return undersample(x, pitch, next(iter(self.weights)))
        weights = torch.tensor(list(self.weights.values()), device=x.device)
        drawn = torch.multinomial(weights, len(x), replacement=True, generator=generator)
        b, c, rows, cols = x.shape
        out = x.new_empty((b, c, rows // pitch, cols // pitch))
        for i, method in enumerate(self.weights):
            chosen = (drawn == i).nonzero()[:, 0]
            if len(chosen):
                out[chosen] = undersample(x[chosen], pitch, method)
        return out

    def __str__(self) -> str:
        words = {
            "area": "the mean over each raw pixel",
            "point": "the middle of each raw pixel",
            "binning": "camera binning",
            "linear": "linear interpolation without anti-aliasing",
            "antialiased": "anti-aliased linear interpolation",
        }
        total = sum(self.weights.values())
        parts = [
            words[m] + (f" ({100 * w / total:.3g} %)" if len(self.weights) > 1 else "")
            for m, w in self.weights.items()
        ]
        return f"undersampling: {', '.join(parts)}"


class Contrast(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="contrast"):
    """Other contrast and brightness than the truth has.

    Attributes
    ----------
    gain : (float, float)
        Factor about the image's own mean.
    offset : (float, float)
        Added afterwards, as a fraction of full scale.
    """

    gain: Factor = (1.0, 1.0)
    offset: Signed = (0.0, 0.0)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Stretch about the mean over all frames of an image, then shift."""
        gain, offset = self.draw("gain", x, generator), self.draw("offset", x, generator)
        return x * gain + (x.mean((1, 2, 3), keepdim=True) * (1 - gain) + offset)

    def __str__(self) -> str:
        return f"contrast times {_span(self.gain)} about the mean, brightness plus {_span(self.offset)}"


class Dose(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="dose"):
    """Electrons or photons are counted: Poisson noise.

    Attributes
    ----------
    counts : (float, float)
        Electrons or photons per pixel at full scale, drawn log-uniformly.
    """

    counts: Counts = (10.0, 300.0)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Count; brighter than full scale is possible and left to the detector."""
        counts = self.draw("counts", x, generator)
        return torch.poisson(x.clamp(min=0) * counts, generator=generator) / counts

    def __str__(self) -> str:
        return f"Poisson noise of {_span(self.counts)} electrons or photons per pixel at full scale"


class Detector(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="detector"):
    """Amplifies, adds its pedestal and its own noise, and saturates.

    Attributes
    ----------
    gain : (float, float)
    offset : (float, float)
        As a fraction of full scale.
    read_noise : (float, float)
        Standard deviation of the Gaussian noise, as a fraction of full scale.
    """

    gain: Factor = (1.0, 1.0)
    offset: Signed = (0.0, 0.0)
    read_noise: Amount = (0.0, 0.0)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Read out; clipped to full scale."""
        gain, offset = self.draw("gain", x, generator), self.draw("offset", x, generator)
        noise = _normal(x, generator) * self.draw("read_noise", x, generator)
        return (x * gain + offset + noise).clamp(0, 1)

    def __str__(self) -> str:
        pedestal = "" if self.offset == (0.0, 0.0) else f", offset {_span(self.offset)} of full scale"
        gain = "" if self.gain == (1.0, 1.0) else f", gain {_span(self.gain)}"
        return f"detector, read noise {_span(self.read_noise)} of full scale{gain}{pedestal}"


class Gaussian(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="gaussian"):
    """Noise that does not depend on the signal.

    Attributes
    ----------
    sigma : (float, float)
        Standard deviation, as a fraction of full scale.
    """

    sigma: Amount = (0.0, 0.05)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Add noise; not clipped."""
        return x + _normal(x, generator) * self.draw("sigma", x, generator)

    def __str__(self) -> str:
        return f"Gaussian noise, sigma {_span(self.sigma)} of full scale"


class SignalGaussian(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="signal_gaussian"):
    """Gaussian noise whose variance follows the blurred signal, as in PSSR (Fang et al. 2021).

    Attributes
    ----------
    sigma_px : (float, float)
        Of the Gaussian that smooths the signal.
    strength : (float, float)
        Variance where the smoothed signal is at full scale.
    """

    sigma_px: Amount = (3.0, 3.0)
    strength: Amount = (0.05, 0.05)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Add noise; clipped to full scale."""
        smooth = beam_blur(x, self.draw("sigma_px", x, generator).flatten(), VARIANCE_REACH)
        variance = smooth.clamp(min=0) * self.draw("strength", x, generator)
        return (x + _normal(x, generator) * variance.sqrt()).clamp(0, 1)

    def __str__(self) -> str:
        return (
            f"Gaussian noise with a variance of {_span(self.strength)} times the signal "
            f"smoothed by {_span(self.sigma_px)} px"
        )


class SaltPepper(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="salt_pepper"):
    """Single white and black pixels.

    Attributes
    ----------
    salt, pepper : (float, float)
        Fractions of the pixels that turn white and black.
    """

    salt: Fraction = (0.0, 0.005)
    pepper: Fraction = (0.0, 0.005)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Replace pixels."""
        salt, pepper = self.draw("salt", x, generator), self.draw("pepper", x, generator)
        u = torch.rand(x.shape, generator=generator, device=x.device)
        return torch.where(u < salt, 1.0, torch.where(u < salt + pepper, 0.0, x))

    def __str__(self) -> str:
        return f"white pixels, {_span(self.salt)} of all, and black ones, {_span(self.pepper)}"


class LineJitter(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="line_jitter"):
    """Scan lines that start too early or too late.

    Attributes
    ----------
    sd_px : (float, float)
        Standard deviation of the sideways error of each line.
    """

    sd_px: Amount = (0.0, 0.5)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Shift each raw line sideways, interpolated linearly."""
        b, c, rows, _ = x.shape
        errors = torch.randn((b, c, rows // pitch, 1), generator=generator, device=x.device)
        return _shift_lines(x, (errors * self.draw("sd_px", x, generator)).repeat_interleave(pitch, 2))

    def __str__(self) -> str:
        return f"each line shifted sideways, standard deviation {_span(self.sd_px)} px"


class LineDropout(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="line_dropout"):
    """Scan lines that are lost.

    Attributes
    ----------
    lost : (float, float)
        Fraction of the lines.
    repeat : float
        Fraction of the lost lines that show the last good line again; the others are black.
    """

    lost: Fraction = (0.0, 0.02)
    repeat: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("repeat", (self.repeat, self.repeat), Drawn(highest=1.0))

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Replace lines."""
        b, c, rows, cols = x.shape
        u = torch.rand((b, c, rows // pitch, 1), generator=generator, device=x.device)
        lost = self.draw("lost", x, generator)
        black = u < lost * (1 - self.repeat)
        line = torch.arange(rows // pitch, device=x.device).view(1, 1, -1, 1)
        source = torch.where(u < lost, 0, line).cummax(2).values  # of the good ones, the last
        within = torch.arange(rows, device=x.device).view(1, 1, -1, 1) % pitch
        source = source.repeat_interleave(pitch, 2) * pitch + within
        x = x.gather(2, source.expand(b, c, rows, cols))
        return x.masked_fill(black.repeat_interleave(pitch, 2), 0.0)

    def __str__(self) -> str:
        return (
            f"lines lost, {_span(self.lost)} of all: {100 * self.repeat:g} % repeat the last, others are black"
        )


class Distortion(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="distortion"):
    """A scan that bends slowly and smoothly.

    Attributes
    ----------
    amplitude_px : (float, float)
        Root mean square displacement over the frame, along y and x together. The mean displacement is 0.
    """

    amplitude_px: Amount = (0.0, 1.0)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Resample along a smooth random field, interpolated linearly; all frames of an image alike."""
        amplitude = self.draw("amplitude_px", x, generator)
        knots = (len(x), 2, DISTORTION_KNOTS, DISTORTION_KNOTS)
        field = torch.randn(knots, generator=generator, device=x.device)
        field = F.interpolate(field, size=x.shape[-2:], mode="bicubic", align_corners=True)
        field = field - field.mean((2, 3), keepdim=True)
        rms = field.square().sum(1, keepdim=True).mean((2, 3), keepdim=True).sqrt()
        return _warp(x, field * (amplitude / rms.clamp(min=1e-6)))

    def __str__(self) -> str:
        return f"smooth scan distortion, root mean square {_span(self.amplitude_px)} px"


class Drift(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="drift"):
    """The specimen moves evenly while it is scanned: the frame is sheared and stretched.

    Attributes
    ----------
    px_per_frame : (float, float)
        From the first line to the last, in a random direction. The middle line stays.
    """

    px_per_frame: Amount = (0.0, 2.0)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Resample line by line, interpolated linearly; all frames of an image alike."""
        angle = 2 * math.pi * torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device)
        total = self.draw("px_per_frame", x, generator) * torch.cat([angle.sin(), angle.cos()], 1)
        rows, cols = x.shape[-2:]
        time = torch.linspace(-0.5, 0.5, rows, device=x.device).view(1, 1, rows, 1)
        return _warp(x, (total * time).expand(-1, -1, rows, cols))

    def __str__(self) -> str:
        return f"drift of {_span(self.px_per_frame)} px per frame"


class Charging(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="charging"):
    """Bright streaks that begin where the scan meets a bright edge and decay along the line.

    Attributes
    ----------
    lines : (float, float)
        Fraction of the lines with a streak.
    amplitude : (float, float)
        Brightness where a streak begins, as a fraction of full scale.
    decay_px : (float, float)
        Length over which it falls to 1/e.
    """

    lines: Fraction = (0.0, 0.1)
    amplitude: Amount = (0.1, 0.5)
    decay_px: Amount = (5.0, 30.0)

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Add at most one streak to each raw line; not clipped."""
        b, c, rows, cols = x.shape
        n = rows // pitch
        line = x.view(b, c, n, pitch, cols).mean(3)
        rise = F.pad(line.diff(dim=3), (1, 0)).clamp(min=0).square() + EDGE_FLOOR
        start = torch.multinomial(rise.reshape(-1, cols), 1, generator=generator).view(b, c, n, 1)
        u = torch.rand((b, c, n, 1), generator=generator, device=x.device)
        height = self.draw("amplitude", x, generator) * (u < self.draw("lines", x, generator))
        since = torch.arange(cols, device=x.device) - start
        decay = torch.exp(-since.clamp(min=0) / self.draw("decay_px", x, generator).clamp(min=1e-3))
        streaks = torch.where(since >= 0, height * decay, 0.0)
        return x + streaks.repeat_interleave(pitch, 2)

    def __str__(self) -> str:
        return (
            f"charging, bright streaks on {_span(self.lines)} of the lines: {_span(self.amplitude)} of full "
            f"scale, decaying over {_span(self.decay_px)} px"
        )


class Quantise(Step, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="quantise"):
    """The converter: whole grey levels, and nothing beyond black and white.

    Attributes
    ----------
    bits : int
        1 to 16.
    """

    bits: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8

    def apply(self, x: Tensor, pitch: int, generator: torch.Generator) -> Tensor:
        """Saturate and round."""
        levels = (1 << self.bits) - 1
        return (x.clamp(0, 1) * levels).round() / levels

    def __str__(self) -> str:
        return f"{self.bits}-bit grey levels, saturated at black and white"


AnyStep = (
    Blur
    | Undersample
    | Contrast
    | Dose
    | Detector
    | Gaussian
    | SignalGaussian
    | SaltPepper
    | LineJitter
    | LineDropout
    | Distortion
    | Drift
    | Charging
    | Quantise
)


class Crappifier(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Steps in the order of the acquisition.

    Attributes
    ----------
    id : str
    description : str
    steps : tuple of AnyStep
        Exactly one of them is :class:`Undersample`.

    Raises
    ------
    ConfigError
        When the undersampling is missing or there twice.
    """

    id: str
    description: str = ""
    steps: tuple[AnyStep, ...]

    def __post_init__(self) -> None:
        found = sum(isinstance(step, Undersample) for step in self.steps)
        if found != 1:
            raise ConfigError(f"crappifier {self.id!r} has {found} steps 'undersample': it needs exactly one")

    def __call__(self, truth: Tensor, scale: int, generator: torch.Generator) -> Tensor:
        """Degrade each image of a batch with its own draw from the ranges.

        Parameters
        ----------
        truth : (B, C, scale * Y, scale * X) float32 in [0, 1]
            C frames of one field of view. They share what belongs to the microscope (blur, dose, distortion)
            and differ in what is noise (counts, read noise, the error of each line).
        generator : torch.Generator
            The only source of randomness, on the device of `truth`.

        Returns
        -------
        (B, C, Y, X) float32 in [0, 1]

        Raises
        ------
        InputError
            When the size is not a multiple of `scale`.
        """
        if truth.ndim != 4 or truth.shape[-2] % scale or truth.shape[-1] % scale:
            raise InputError(
                f"cannot undersample images of shape {tuple(truth.shape)} by {scale}: "
                f"give (B, C, Y, X) with Y and X multiples of {scale}"
            )
        x, pitch = truth, scale
        for step in self.steps:
            x = step(x, pitch, generator)
            if isinstance(step, Undersample):
                pitch = 1
        return x.clamp(0, 1)

    def at(self, strength: float) -> Crappifier:
        """The same steps with every range pinned between its mildest value (0) and its harshest (1).

        Milder is nearer to what changes nothing: no blur, many electrons, gain 1. Shares stay.
        """
        return msgspec.structs.replace(self, steps=tuple(_pinned(step, strength) for step in self.steps))


def presets() -> list[str]:
    """Names that :func:`load_crappifier` knows."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_crappifier(name_or_path: str | Path) -> Crappifier:
    """Read a preset by its name, or a TOML file.

    Raises
    ------
    ConfigError
        When there is no such preset or file, or when something in it is wrong.
    """
    name = str(name_or_path)
    path = PRESETS / f"{name}.toml" if name in presets() else Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise ConfigError(
            f"cannot read crappifier {name!r} ({e.strerror}): give a TOML file or one of {', '.join(presets())}"
        ) from e
    return from_toml(text, name)


def from_toml(text: str, source: str = "crappifier") -> Crappifier:
    """Read what :func:`to_toml` wrote; `source` names it in errors.

    Raises
    ------
    ConfigError
        When something is wrong: it says which step, key and value.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"crappifier {source} is not valid TOML: {e}") from e
    steps = content.get("steps", [])
    for i, step in enumerate(steps if isinstance(steps, list) else [], start=1):
        try:
            msgspec.convert(step, AnyStep)
        except (msgspec.ValidationError, ConfigError) as e:
            what = str(e).replace("`$.", "`")
            raise ConfigError(f"crappifier {source}, step {i}, {_shown(step)}: {what}; {_choices(step)}") from e
    try:
        return msgspec.convert(content, Crappifier)
    except msgspec.ValidationError as e:
        raise ConfigError(f"crappifier {source}: {e}") from e


def to_toml(crappifier: Crappifier) -> str:
    """Everything about a crappifier, defaults included, as TOML that :func:`from_toml` reads."""
    return write_toml(msgspec.to_builtins(crappifier))


def write_toml(content: dict[str, Any]) -> str:
    """TOML for people to edit: numbers that belong together stay on one line."""
    return NUMBERS.sub(
        lambda found: f"[{', '.join(found[1].replace(',', '').split())}]", tomli_w.dumps(content)
    )


def describe(crappifier: Crappifier) -> str:
    """In plain language, one line for each step."""
    lines = [f"{crappifier.id}: {crappifier.description}".rstrip(": ")]
    for i, step in enumerate(crappifier.steps, start=1):
        share = "" if step.share >= 1 else f", in {100 * step.share:g} % of the images"
        lines.append(f"{i:2}. {step}{share}")
    return "\n".join(lines)


def degrade(pixels: Pixels, crappifier: Crappifier, scale: int, generator: torch.Generator) -> Pixels:
    """One stored image as the microscope would have stored it, in the same grey levels.

    Parameters
    ----------
    pixels : (H, W) uint8 or uint16
        Cropped at the bottom and the right to whole raw pixels.

    Returns
    -------
    (H // scale, W // scale), dtype of `pixels`

    Raises
    ------
    InputError
        When it is smaller than a raw pixel.
    """
    rows, cols = _whole(pixels.shape, scale)
    full = np.iinfo(pixels.dtype).max
    truth = torch.from_numpy(np.asarray(pixels[:rows, :cols] / np.float32(full), np.float32))[None, None]
    raw = crappifier(truth, scale, generator)[0, 0].numpy()
    grey: Pixels = np.rint(raw * full).astype(pixels.dtype)
    return grey


def preview(images: Sequence[NDArray[np.float32]], crappifier: Crappifier, scale: int, seed: int) -> bytes:
    """A PNG of what a crappifier does: raw frames beside their truth, one row for each strength.

    Below them, one row for each step that not every image gets: its harshest, and the mildest of the rest.

    Parameters
    ----------
    images : sequence of (Y, X) float32 in [0, 1]
        The middle of each is drawn.

    Raises
    ------
    InputError
        When there is no image, or one is smaller than a raw pixel.
    """
    shown = [(f"strength {strength:g}", crappifier.at(strength)) for strength in STRENGTHS]
    for i, step in enumerate(crappifier.steps):
        if step.share < 1:
            harsh = msgspec.structs.replace(_pinned(step, 1.0), share=1.0)
            steps = [harsh if j == i else _pinned(s, 0.0) for j, s in enumerate(crappifier.steps)]
            alone = tuple(s for s in steps if s.share == 1)
            title = f"strength 0, with the harshest {step.name} ({100 * step.share:g} % of the images have it)"
            shown.append((title, msgspec.structs.replace(crappifier, steps=alone)))
    truths = [_middle(image, scale) for image in images]
    rows = []
    for title, pinned in shown:
        generator = torch.Generator().manual_seed(seed)
        raws = [pinned(torch.from_numpy(t)[None, None], scale, generator)[0, 0].numpy() for t in truths]
        rows.append(Row(title, [p for pair in zip(truths, raws, strict=True) for p in pair]))
    return draw_sheet(["truth", crappifier.id] * len(truths), rows, cell=PREVIEW_EDGE)


# building blocks


def beam_blur(x: Tensor, sigma: Tensor, reach_sigmas: int = BLUR_REACH) -> Tensor:
    """Gaussian blur with a sigma (B,) of its own for each image of (B, C, Y, X); 0 leaves it as it is."""
    if not bool((sigma > 0).any()):
        return x
    reach = max(1, math.ceil(reach_sigmas * float(sigma.max())))
    at = torch.arange(-reach, reach + 1, dtype=torch.float32, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (B, 2 reach + 1)
    kernel = kernel / kernel.sum(1, keepdim=True)
    n = x.shape[0]
    side_by_side = F.pad(x.transpose(0, 1), [reach] * 4, mode="replicate")  # (C, B, ...): one group per image
    rows = F.conv2d(side_by_side, kernel[:, None, :, None], groups=n)
    return F.conv2d(rows, kernel[:, None, None, :], groups=n).transpose(0, 1)


def undersample(x: Tensor, scale: int, method: Method) -> Tensor:
    """(B, C, scale * Y, scale * X) to (B, C, Y, X); the methods are those of :class:`Undersample`."""
    if method in ("area", "binning"):
        return F.avg_pool2d(x, scale)
    if method == "point":
        return point_sample(x, scale)
    size = (x.shape[-2] // scale, x.shape[-1] // scale)
    if method == "linear":
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def point_sample(x: Tensor, scale: int) -> Tensor:
    """Only the middle of each raw pixel: its central pixel, or the central 2 x 2 where `scale` is even.

    (B, C, scale * Y, scale * X) to (B, C, Y, X), on the same centres as the mean over the area.
    """
    if scale % 2:
        return x[..., scale // 2 :: scale, scale // 2 :: scale]
    margin = scale // 2 - 1
    b, c, y, x_ = x.shape
    cells = x.view(b, c, y // scale, scale, x_ // scale, scale)
    return cells[:, :, :, margin : margin + 2, :, margin : margin + 2].mean(dim=(3, 5))


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device)


def _grid(reach: int, like: Tensor) -> tuple[Tensor, Tensor]:
    at = torch.arange(-reach, reach + 1, dtype=torch.float32, device=like.device)
    return at.view(1, 1, -1, 1), at.view(1, 1, 1, -1)


def _ellipse(long: Tensor, short: Tensor, angle: Tensor) -> Tensor:
    """(B, 1, K, K) Gaussian kernels of these sigmas (B, 1, 1, 1), the long axis at an angle to x."""
    y, x = _grid(max(1, math.ceil(BLUR_REACH * float(long.max()))), long)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    kernel = torch.exp(-0.5 * ((along / long.clamp(min=1e-3)) ** 2 + (across / short.clamp(min=1e-3)) ** 2))
    return kernel / kernel.sum((2, 3), keepdim=True)


def _disc(radius: Tensor) -> Tensor:
    """(B, 1, K, K) kernels: discs of these radii (B, 1, 1, 1) with an edge one pixel wide."""
    y, x = _grid(max(1, math.ceil(float(radius.max()))), radius)
    kernel = (radius + 0.5 - torch.sqrt(x**2 + y**2)).clamp(0, 1)
    return kernel / kernel.sum((2, 3), keepdim=True)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """(B, C, Y, X) with a kernel (B, 1, K, K) for each image."""
    reach = kernel.shape[-1] // 2
    side_by_side = F.pad(x.transpose(0, 1), [reach] * 4, mode="replicate")
    return F.conv2d(side_by_side, kernel, groups=len(x)).transpose(0, 1)


def _shift_lines(x: Tensor, shift: Tensor) -> Tensor:
    """Move the rows of (B, C, Y, X) sideways by (B, C, Y, 1) pixels, interpolated linearly."""
    last = x.shape[-1] - 1
    at = (torch.arange(last + 1, device=x.device) - shift).clamp(0, last)
    left = at.floor()
    index = left.long()
    return torch.lerp(x.gather(3, index), x.gather(3, (index + 1).clamp(max=last)), at - left)


def _warp(x: Tensor, shift: Tensor) -> Tensor:
    """Look up (B, C, Y, X) at a distance of (B, 2, Y, X) pixels along y and x, interpolated linearly."""
    rows, cols = x.shape[-2:]
    y = torch.arange(rows, device=x.device).view(1, -1, 1) + shift[:, 0]
    x_ = torch.arange(cols, device=x.device).view(1, 1, -1) + shift[:, 1]
    grid = torch.stack([x_ * (2 / max(cols - 1, 1)) - 1, y * (2 / max(rows - 1, 1)) - 1], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _pinned(step: AnyStep, strength: float) -> AnyStep:
    values = {field: how.at(getattr(step, field), strength) for field, how in drawn_fields(type(step)).items()}
    return msgspec.structs.replace(step, **{field: (v, v) for field, v in values.items()})


def _whole(shape: tuple[int, ...], scale: int) -> tuple[int, int]:
    rows, cols = (n // scale * scale for n in shape)
    if min(rows, cols) == 0:
        raise InputError(f"an image of shape {shape} is smaller than one raw pixel at scale {scale}")
    return rows, cols


def _middle(image: NDArray[np.float32], scale: int) -> NDArray[np.float32]:
    rows, cols = _whole(tuple(min(n, PREVIEW_EDGE) for n in image.shape), scale)
    y, x = (image.shape[0] - rows) // 2, (image.shape[1] - cols) // 2
    return np.array(image[y : y + rows, x : x + cols], np.float32)


def _span(between: Range) -> str:
    low, high = between
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _choices(step: object) -> str:
    """What could have been written instead of this part of a TOML file."""
    kinds = {str(kind.__struct_config__.tag): kind for kind in typing.get_args(AnyStep)}
    name = step.get("step") if isinstance(step, dict) else None
    if name in kinds:
        return f"the keys of {name!r} are {', '.join(kinds[name].__struct_fields__)}"
    return f"the steps are {', '.join(kinds)}"


def _shown(step: object) -> str:
    """A step as it was written, on one line."""
    if not isinstance(step, dict):
        return json.dumps(step, default=str)
    return ", ".join(f"{key} = {json.dumps(value, default=str)}" for key, value in step.items())
