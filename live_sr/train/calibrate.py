"""Fits a crappifier to a real microscope: from low-dose frames, and good images that may show other places.

Compares statistics only (:mod:`live_sr.train.statistics`): the good images are degraded, measured as the real
frames were, and every difference is turned into a correction of the parameter that it speaks of, until the two
agree (indirect inference, Gourieroux, Monfort and Renault 1993). Whatever distorts the measurement then
distorts both sides alike.

What each number comes from, and what it cannot be told apart from:

- *Detector gain and offset* map the grey values of the good images to those of the frames: quantiles of the
  smoothed frames, which noise hardly changes.
- *Electrons per pixel* follow from how fast the noise variance rises with the grey value, *read noise* from
  what is left of it where the good images are black. Black there is taken as no electrons. Where it is some (a
  stretched contrast), their noise counts as read noise; the frames look the same. Where the noise vanishes at a
  brighter grey than black, the good images have a pedestal: a step ``contrast`` takes it off.
- *Blur* is what the spectrum along the lines lacks, beyond the mean over the raw pixel's area.
- *Line jitter* leaves each line's own spectrum alone and loosens it from the next line.
- A wrong pixel size or another specimen may pass as blur and jitter: the fit trusts `scale`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import least_squares

from live_sr.errors import InputError
from live_sr.frame import Pixels, check_pixels
from live_sr.train.crappify import (
    AnyStep,
    Blur,
    Contrast,
    Crappifier,
    Detector,
    Dose,
    LineJitter,
    Quantise,
    Undersample,
    to_toml,
)
from live_sr.train.files import Range, load_files, to_unit
from live_sr.train.sheet import Row, draw_sheet
from live_sr.train.statistics import Curves, Float, Measured, Tiles, cut, grey_levels, measure

EDGE = 64  # raw pixels of a tile: long enough for a spectrum, short enough for many tiles
MIN_TILES = 4  # of frames and of good images: fewer say nothing about how sure a number is
MAX_TILES = 256  # of each; 1 million raw pixels pin every parameter to a few per cent
SIMULATED_PIXELS = 2**18  # raw, at least, each round; all rounds together outnumber a few frames
BATCH = 16  # tiles degraded at once: bounds memory
ROUNDS = 9  # simulations, each with its own noise
BURN_IN = 3  # of them, until only scatter is left; the estimates of the others are averaged
DAMPING = 0.8  # of each correction: that of the blur overshoots, because blur acts along y too
GROUPS = 12  # for the jackknife
DETECTED = 3.0  # standard errors from zero, the usual limit
SURE = 2.0  # standard errors to each side of a value: holds the true one in 19 of 20 fits
NARROW = 0.05  # least half-width of a range, as a share of the value: networks should not learn one exact dose
SHARES = np.linspace(0.04, 0.96, 24)  # quantiles that map grey values; rarer ones are specks
SKIP = 2  # lowest frequencies of a tile: their power is that of the place, not of the microscope
MOST_GAIN = 100.0  # of full scale: good images with less contrast than 1 % show nothing
MOST_ELECTRONS = 1e6  # per pixel: beyond it no noise is seen in 16 bits
SATURATED = 0.01  # share of the pixels at black or white that spoils variances
PICTURES, PICTURE_EDGE = 4, 256
LOW, HIGH = "low-dose frame", "high-resolution image"
LIMITS = {"photon_transfer": 0.1, "power_spectrum": 0.15, "histogram": 0.15, "line_correlation": 0.05}
"""Misfit of each statistic beyond which the fit is not to be trusted: two sets of frames of one specimen and
microscope, from places apart, stay below half of it."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number about the microscope.

    Attributes
    ----------
    value : float
        0 where nothing was detected.
    uncertainty : float
        One standard error, from leaving out parts of the frames and of the good images (jackknife). Where
        nothing was detected, the value that it is most likely below.
    unit : str
    """

    value: float
    uncertainty: float
    unit: str


@dataclass(frozen=True, slots=True)
class Quality:
    """How far the fitted frames are from the real ones; 0 is perfect, for limits see :data:`LIMITS`.

    Attributes
    ----------
    photon_transfer : float
        Relative difference of the noise (standard deviation), root mean square over grey levels.
    power_spectrum : float
        Difference of the amplitude's natural logarithm, root mean square over frequencies.
    histogram : float
        Mean distance that grey values must be moved by, in standard deviations of the real frames.
    line_correlation : float
        Difference of the correlation coefficients along and across the lines, root mean square over lags.
    """

    photon_transfer: float
    power_spectrum: float
    histogram: float
    line_correlation: float

    @property
    def overall(self) -> float:
        """The worst misfit as a multiple of its limit: above 1, do not trust the fit."""
        return max(float(getattr(self, name)) / limit for name, limit in LIMITS.items())


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A microscope as the frames show it.

    Attributes
    ----------
    crappifier : Crappifier
        Ready to train with: each range is the fitted value plus and minus two standard errors, at least 5 %.
    scale : int
        Truth pixels for each raw pixel.
    parameters : dict of str to Parameter
        ``electrons_per_pixel`` (at full scale of the good images), ``detector_gain``, ``detector_offset`` and
        ``read_noise`` (fractions of full scale), ``blur_px`` and ``line_jitter_px`` (truth pixels, standard
        deviations), ``pedestal`` (of the good images, fraction of full scale).
    quality : Quality
    warnings : tuple of str
        Reasons not to trust the fit, each a sentence; empty where there is none.
    real, fitted : Curves
        Statistics of the real frames, and of the good images degraded with the fitted values.
    real_frames, fitted_frames : (N, Y, X) float32 in [0, 1]
        A few, to look at.
    """

    crappifier: Crappifier
    scale: int
    parameters: dict[str, Parameter]
    quality: Quality
    warnings: tuple[str, ...]
    real: Curves
    fitted: Curves
    real_frames: Tiles
    fitted_frames: Tiles

    def __str__(self) -> str:
        """A table of the parameters and of the fit's quality."""
        lines = [f"crappifier {self.crappifier.id}, x{self.scale}", ""]
        for name, p in self.parameters.items():
            value = f"{p.value:.4g} ± {p.uncertainty:.2g}" if p.value else f"- (below {p.uncertainty:.2g})"
            lines.append(f"  {name:<22}{value:<20}{p.unit}")
        lines += ["", f"  {'misfit':<22}{'':<10}limit"]
        for name, limit in LIMITS.items():
            lines.append(f"  {name:<22}{getattr(self.quality, name):<10.3f}{limit:g}")
        verdict = "do not trust this fit" if self.quality.overall > 1 else "within its limits"
        lines.append(f"  {'overall':<22}{self.quality.overall:<10.2f}1: {verdict}")
        return "\n".join([*lines, *(f"\nwarning: {text}" for text in self.warnings)])

    def as_dict(self) -> dict[str, Any]:
        """Parameters, quality and warnings, as JSON can hold them."""
        return {
            "id": self.crappifier.id,
            "scale": self.scale,
            "parameters": {name: asdict(p) for name, p in self.parameters.items()},
            "quality": {**asdict(self.quality), "overall": self.quality.overall},
            "warnings": list(self.warnings),
            "crappifier": to_toml(self.crappifier),
        }

    def picture(self) -> bytes:
        """A PNG: frames, real above fitted, in the same window of grey values; below them the four curves."""
        low, high = np.quantile(self.real_frames, (0.002, 0.998))
        rows = [
            Row(title, [np.asarray((f - low) / max(high - low, 1e-6), np.float32) for f in frames])
            for title, frames in (
                ("real low-dose frames", self.real_frames),
                ("good images of other places, degraded by the fit", self.fitted_frames),
            )
        ]
        cell = self.real_frames.shape[1]
        sheet = Image.open(io.BytesIO(draw_sheet([], rows, cell=cell))).convert("RGB")
        curves = Image.open(io.BytesIO(_draw_curves(self.real, self.fitted))).convert("RGB")
        page = Image.new("RGB", (max(sheet.width, curves.width), sheet.height + curves.height), "white")
        page.paste(sheet, ((page.width - sheet.width) // 2, 0))
        page.paste(curves, ((page.width - curves.width) // 2, sheet.height))
        out = io.BytesIO()
        page.save(out, "PNG")
        return out.getvalue()


def fit_crappifier(
    low: Sequence[Pixels],
    high: Sequence[Pixels],
    *,
    scale: int,
    id: str = "fitted",
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Fit:
    """Find the crappifier that makes good images look, statistically, like real low-dose frames.

    Parameters
    ----------
    low : sequence of (Y, X) uint8 or uint16
        Low-dose frames, all from one setting of the microscope.
    high : sequence of (Y, X) uint8 or uint16
        Good images of the same kind of specimen, of any place; their pixels are `scale` times smaller.
    id : str
        Of the crappifier.
    seed : int
        Of the simulated noise: the same seed gives the same fit.
    progress : callable, optional
        Wraps the rounds while they are worked through, for example ``rich.progress.track``.

    Raises
    ------
    InputError
        When there is no image, one is not a grey plane of uint8 or uint16, they are too small or empty of
        structure, or the low-dose frames differ in type.
    """
    if scale < 1:
        raise InputError(f"scale {scale} must be 1 or more: truth pixels for each raw pixel")
    _check(low, LOW, EDGE)
    _check(high, HIGH, EDGE * scale)
    bits = low[0].dtype.itemsize * 8
    rng = np.random.default_rng(seed)
    frames = _some(cut(low, EDGE), rng)
    truth = torch.from_numpy(_some(cut(high, EDGE * scale), rng))[:, None]
    levels = grey_levels(frames)
    measured = measure(frames, levels)

    def simulate(at: _Microscope, round_: int) -> Measured:
        return measure(_degrade(truth, at.crappifier(id, bits), scale, seed + round_), levels)

    guess = _first_guess(measured.pool(), truth, scale)
    known = _search(guess, measured, simulate, scale, float(levels[0]), progress)
    parameters = known.parameters()
    real, fitted = measured.pool(), simulate(known.settled, ROUNDS).pool()
    quality = _compare(real, fitted)
    edge = min(PICTURE_EDGE, *(min(i.shape) for i in low), *(min(i.shape) // scale for i in high))
    good = torch.from_numpy(_crops(high, edge * scale))[:, None]
    return Fit(
        crappifier=known.settled.crappifier(id, bits, parameters),
        scale=scale,
        parameters=parameters,
        quality=quality,
        warnings=tuple(_warnings(known, quality, frames)),
        real=real,
        fitted=fitted,
        real_frames=_crops(low, edge),
        fitted_frames=_degrade(good, known.settled.crappifier(id, bits), scale, seed, repeat=False),
    )


def run_fit(
    low: Path,
    high: Path,
    *,
    scale: int,
    out: Path,
    picture: Path | None,
    console: Console,
    channel: int | None = None,
    value_range: Range | None = None,
) -> Fit:
    """Fit to the images of two folders, print the table, and write the crappifier.

    Parameters
    ----------
    low, high : Path
        Folders with TIFF or PNG files: low-dose frames, and good images of other places.
    out : Path
        TOML file to write; its name becomes the crappifier's id.
    picture : Path or None
        PNG file to write.
    channel, value_range
        Of both folders, see :func:`live_sr.train.files.load_file`. Electrons and noise are fractions of full
        scale: give the range that the training will be given.

    Raises
    ------
    InputError
        When a folder has no usable image, and as :func:`fit_crappifier`.
    """
    frames, images = (
        [
            image[0 : image.shape[0], 0 : image.shape[1]]
            for file in load_files([folder], ["*"], channel=channel, value_range=value_range)
            for image in file.images
        ]
        for folder in (low, high)
    )
    console.print(f"{len(frames)} low-dose frames, {len(images)} good images")
    fit = fit_crappifier(
        frames,
        images,
        scale=scale,
        id=out.stem,
        progress=lambda rounds: track(rounds, description="fitting", console=console, transient=True),
    )
    console.print(str(fit), markup=False, highlight=False, soft_wrap=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_toml(fit.crappifier), encoding="utf-8")
    console.print(f"wrote {out}", highlight=False)
    if picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(fit.picture())
        console.print(f"wrote {picture}", highlight=False)
    return fit


class _Microscope(NamedTuple):
    """What the statistics speak of; lengths in truth pixels, the rest in fractions of full scale."""

    gain: float  # grey values of the frame per grey value of the good images
    black: float  # grey value of the frame where the good images are black
    per_electron: float  # rise of the noise variance with the grey value
    floor: float  # noise variance at `black`; below 0 where the noise vanishes at a brighter grey
    blur: float  # variance, truth pixels squared
    jitter: float  # variance, truth pixels squared

    def possible(self, darkest: float) -> _Microscope:
        """The nearest that can be simulated; noise must not vanish above the `darkest` grey of the frames."""
        gain = min(max(self.gain, 1e-4), MOST_GAIN)
        black = min(max(self.black, -1.0), 1.0)
        per_electron = max(self.per_electron, gain / MOST_ELECTRONS)
        return self._replace(
            gain=gain,
            black=black,
            per_electron=per_electron,
            floor=max(self.floor, -per_electron * max(darkest - black, 0.0)),
            blur=max(self.blur, 0.0),
            jitter=max(self.jitter, 0.0),
        )

    @property
    def electrons(self) -> float:
        """Per raw pixel, where the good images are at full scale."""
        return self.gain / self.per_electron

    @property
    def pedestal(self) -> float:
        """Grey value of the good images where the noise vanishes, if that is above their black."""
        return max(-self.floor, 0.0) / (self.per_electron * self.gain)

    @property
    def offset(self) -> float:
        """Grey value of the frame without electrons."""
        return self.black + self.pedestal * self.gain

    def crappifier(self, id: str, bits: int, known: dict[str, Parameter] | None = None) -> Crappifier:
        """Steps with these values; ranges where it is `known` how sure they are."""

        def around(name: str, value: float) -> tuple[float, float]:
            if not known:
                return value, value
            if value == 0:  # not detected
                return 0.0, known[name].uncertainty
            half = max(SURE * known[name].uncertainty, NARROW * abs(value))
            return value - half if value < 0 else max(value - half, NARROW * value), value + half

        steps: list[AnyStep] = []
        if self.blur > 0:
            steps.append(Blur(sigma_px=around("blur_px", math.sqrt(self.blur))))
        if self.jitter > 0:
            steps.append(LineJitter(sd_px=around("line_jitter_px", math.sqrt(self.jitter))))
        steps.append(Undersample(method="area"))
        if self.pedestal > 0:
            low, high = around("pedestal", self.pedestal)
            steps.append(Contrast(offset=(-min(high, 1.0), -low)))
        steps.append(Dose(counts=around("electrons_per_pixel", self.electrons)))
        steps.append(
            Detector(
                gain=around("detector_gain", self.gain),
                offset=around("detector_offset", self.offset),
                read_noise=around("read_noise", math.sqrt(max(self.floor, 0.0))),
            )
        )
        steps.append(Quantise(bits=bits))
        return Crappifier(id=id, description="fitted to real low-dose frames", steps=tuple(steps))


def _search(
    at: _Microscope,
    measured: Measured,
    simulate: Callable[[_Microscope, int], Measured],
    scale: int,
    darkest: float,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> _Known:
    """Simulate, compare, correct, and again; then once more without each part of the data."""
    real = measured.pool()
    estimates: list[_Microscope] = []
    for round_ in progress(range(ROUNDS)):
        if estimates:
            at = _Microscope(*np.add(at, DAMPING * np.subtract(estimates[-1], at)))
        at = at.possible(darkest)
        simulated = simulate(at, round_)
        estimates.append(_correct(at, real, simulated.pool(), scale))
    best = _Microscope(*np.mean(estimates[BURN_IN:], axis=0).tolist())
    parts = (
        [_correct(at, part.pool(), simulated.pool(), scale) for part in _leave_out(measured)],
        [_correct(at, real, part.pool(), scale) for part in _leave_out(simulated)],
    )
    return _Known(best, parts, real.mean, darkest)


class _Known:
    """The estimate with what leaving out parts of the data does to it.

    Parameters
    ----------
    best : _Microscope
        From all data.
    parts : sequence of sequence of _Microscope
        Of each kind of data (frames, good images), with one part left out at a time.
    mean, darkest : float
        Grey values of the real frames.
    """

    def __init__(
        self, best: _Microscope, parts: Sequence[Sequence[_Microscope]], mean: float, darkest: float
    ) -> None:
        self.best, self._parts, self._mean, self._darkest = best, parts, mean, darkest
        error = _Microscope(*_jackknife(parts).tolist())
        self.error = error
        self._no_floor = abs(best.floor) < DETECTED * error.floor
        self._no_blur = best.blur < DETECTED * error.blur
        self._no_jitter = best.jitter < DETECTED * error.jitter
        self.settled = self._settle(best)

    def parameters(self) -> dict[str, Parameter]:
        """All numbers, with units."""
        at = self.settled
        parts = [[self._settle(p) for p in kind] for kind in self._parts]
        electrons, offset, pedestal = _jackknife(
            [[(p.electrons, p.offset, p.pedestal) for p in kind] for kind in parts]
        ).tolist()
        full = "of full scale"
        found = {
            "electrons_per_pixel": Parameter(at.electrons, electrons, "electrons per raw pixel at full scale"),
            "detector_gain": Parameter(at.gain, self.error.gain, f"{full} per full scale of the good images"),
            "detector_offset": Parameter(at.offset, offset, full),
            "read_noise": _root(at.floor, self.best.floor, self.error.floor, full),
            "blur_px": _root(at.blur, self.best.blur, self.error.blur, "truth pixels, sigma"),
            "line_jitter_px": _root(
                at.jitter, self.best.jitter, self.error.jitter, "truth pixels, standard deviation"
            ),
        }
        if at.pedestal:
            found["pedestal"] = Parameter(at.pedestal, pedestal, f"{full} of the good images")
        return found

    def _settle(self, at: _Microscope) -> _Microscope:
        """Without what was not detected; all noise is the electrons' where no read noise was."""
        at = at.possible(self._darkest)
        if self._no_floor:
            variance = at.floor + at.per_electron * (self._mean - at.black)
            at = at._replace(floor=0.0, per_electron=variance / max(self._mean - at.black, 1e-6))
        if self._no_blur:
            at = at._replace(blur=0.0)
        if self._no_jitter:
            at = at._replace(jitter=0.0)
        return at.possible(self._darkest)


def _root(settled: float, best: float, error: float, unit: str) -> Parameter:
    """A standard deviation from a variance and its standard error."""
    if settled > 0:
        return Parameter(math.sqrt(settled), error / (2 * math.sqrt(settled)), unit)
    return Parameter(0.0, math.sqrt(max(best, 0.0) + SURE * error), unit)


def _first_guess(real: Curves, truth: torch.Tensor, scale: int) -> _Microscope:
    """From the frames alone, and the mean over each raw pixel of the good images; no blur, no jitter."""
    clean = torch.nn.functional.avg_pool2d(truth, scale)[:, 0].numpy()
    seen = measure(clean, grey_levels(clean)).pool()
    gain, black = np.polyfit(seen.quantiles(SHARES), real.quantiles(SHARES), 1)
    at, slope = _noise_line(real, real.mean)
    floor = at - slope * (real.mean - black)
    return _Microscope(float(gain), float(black), slope, floor, 0.0, 0.0)


def _correct(at: _Microscope, real: Curves, simulated: Curves, scale: int) -> _Microscope:
    """What the microscope must be for `simulated`, made with `at`, to become `real`; to first order."""
    stretch, shift = np.polyfit(simulated.quantiles(SHARES), real.quantiles(SHARES), 1)
    gain, black = at.gain * float(stretch), at.black * float(stretch) + float(shift)

    noise, slope = _noise_line(real, real.mean)
    noise_then, slope_then = _noise_line(simulated, real.mean)
    per_electron = at.per_electron + slope - slope_then
    variance = at.floor + at.per_electron * (real.mean - at.black) + noise - noise_then
    floor = variance - per_electron * (real.mean - black)

    white = at.floor + at.per_electron * (simulated.mean - at.black)
    power = simulated.along - white
    wanted = real.along - white * real.noise / simulated.noise
    blur = _narrowing(real.frequency, wanted / power, power / real.along_error)
    both = _narrowing(real.frequency, real.across / simulated.across, simulated.across / real.across_error)
    raw_px2 = scale**2
    return _Microscope(
        gain, black, per_electron, floor, at.blur + blur * raw_px2, at.jitter + (both - blur) * raw_px2
    )


def _noise_line(curves: Curves, level: float) -> tuple[float, float]:
    """Variance at a grey level and its slope, by weighted least squares over the photon-transfer curve."""
    use = (curves.count > 0) & (curves.variance > 0)
    if use.sum() < 2:
        return curves.noise, 0.0
    weight = np.sqrt(curves.count[use]) / curves.variance[use]
    slope, at = np.polyfit(curves.level[use] - level, curves.variance[use], 1, w=weight)
    return float(at), float(slope)


def _narrowing(frequency: Float, ratio: Float, certainty: Float) -> float:
    """Variance (pixels squared) of the Gaussian whose transfer turns one power spectrum into another.

    Parameters
    ----------
    frequency, ratio : (F,)
        Cycles per pixel, and the power spectrum over that of the other.
    certainty : (F,)
        Power over its standard error: the weights.
    """
    use = (np.arange(len(frequency)) >= SKIP) & (certainty > 0) & np.isfinite(ratio)
    if use.sum() < 3:  # two numbers are fitted
        return 0.0
    f2, ratio, weight = (2 * math.pi * frequency[use]) ** 2, ratio[use], certainty[use]

    def misfit(p: Float) -> Float:
        return np.asarray(weight * (np.exp(p[0] - p[1] * f2) - ratio))

    weight = weight / weight.max()
    found = least_squares(misfit, (0.0, 0.0), bounds=((-3.0, -2.0), (3.0, 4.0)))
    return float(found.x[1])


def _degrade(truth: torch.Tensor, crappifier: Crappifier, scale: int, seed: int, repeat: bool = True) -> Tiles:
    """(T, 1, scale * Y, scale * X) to (T', Y, X), more than once where there are few; always the same noise."""
    generator = torch.Generator().manual_seed(seed)
    raw_pixels = truth.numel() // scale**2
    times = -(-SIMULATED_PIXELS // raw_pixels) if repeat else 1
    # copies of a tile follow each other, so that the jackknife leaves out all of them
    tiles = truth.repeat_interleave(times, 0)
    parts = [crappifier(tiles[i : i + BATCH], scale, generator) for i in range(0, len(tiles), BATCH)]
    return torch.cat(parts)[:, 0].numpy()


def _leave_out(measured: Measured) -> list[Measured]:
    groups = min(GROUPS, len(measured))
    return [measured.without(group, groups) for group in range(groups)]


def _jackknife(kinds: Sequence[Sequence[Sequence[float]]]) -> Float:
    """Standard errors of each number: of all kinds of data together."""
    variance = 0.0
    for kind in kinds:
        values = np.asarray(kind, np.float64)  # (groups, numbers)
        variance = variance + (len(values) - 1) * values.var(0)
    return np.asarray(np.sqrt(variance))


def _compare(real: Curves, fitted: Curves) -> Quality:
    count = np.minimum(real.count, fitted.count)
    use = (count > 0) & (real.variance > 0) & (fitted.variance > 0)
    noise = np.sqrt(real.variance[use] / fitted.variance[use]) - 1
    amplitude = np.log(real.power[1:] / fitted.power[1:]) / 2
    share = np.diff(real.cumulative, prepend=0.0)
    spread = math.sqrt(float((share * real.grey**2).sum() - (share * real.grey).sum() ** 2))
    moved = float(np.abs(real.cumulative - fitted.cumulative).mean())
    correlation = np.concatenate(
        [real.along_lines - fitted.along_lines, real.across_lines - fitted.across_lines]
    )
    return Quality(
        photon_transfer=float(np.sqrt(np.average(noise**2, weights=count[use]))) if use.any() else math.inf,
        power_spectrum=float(np.sqrt((amplitude**2).mean())),
        histogram=moved / spread,
        line_correlation=float(np.sqrt((correlation**2).mean())),
    )


def _warnings(known: _Known, quality: Quality, frames: Tiles) -> Iterable[str]:
    beyond = [
        f"{name.replace('_', ' ')} ({getattr(quality, name):.2f}, limit {limit:g})"
        for name, limit in LIMITS.items()
        if getattr(quality, name) > limit
    ]
    if beyond:
        yield (
            f"the fitted frames differ from the real ones in {', '.join(beyond)}: the good images may show "
            "another kind of specimen or have another pixel size, or the microscope does something that the "
            "fit does not know; compare the curves in the picture"
        )
    for name, limit_grey in (("black", 0.0), ("white", 1.0)):
        if (share := float((frames == limit_grey).mean())) > SATURATED:
            yield (
                f"{share:.0%} of the low-dose pixels are {name}: noise is cut off there and measured too "
                "small; take the frames with another brightness or contrast"
            )
    best, error = known.best, known.error
    if best.per_electron < DETECTED * error.per_electron:
        yield (
            "the noise does not rise with the signal, so the number of electrons is a guess: "
            "frames that were filtered or averaged cannot be fitted, use them as they left the detector"
        )
    if known.settled.pedestal:
        yield (
            f"the noise vanishes at a grey value of {known.settled.pedestal:.2f} of the good images, not at "
            "their black: they have a pedestal, or the two differ in contrast and brightness; a step "
            "'contrast' takes it off"
        )
    if best.blur < -DETECTED * error.blur:
        yield (
            "the low-dose frames are sharper than the mean over each raw pixel: if the beam is finer than the "
            "raw pixel, set the method of the step 'undersample' to 'point'; otherwise check --scale"
        )


def _check(images: Sequence[Pixels], what: str, edge: int) -> None:
    if not images:
        raise InputError(f"no {what} to fit to: give at least one (Y, X) image, uint8 or uint16")
    for number, image in enumerate(images, start=1):
        try:
            check_pixels(image)
        except InputError as e:
            raise InputError(f"{what} {number} of {len(images)}: {e}") from e
    if what == LOW and len({image.dtype for image in images}) > 1:
        raise InputError(
            "the low-dose frames mix uint8 and uint16: they come from two settings, fit each by itself"
        )
    if len(cut(images, edge)) < MIN_TILES:
        largest = max((image.shape for image in images), key=math.prod)
        raise InputError(
            f"the {what}s are too small, the largest {largest}: the fit needs {MIN_TILES} areas of "
            f"{edge} x {edge} pixels, for example one image of {2 * edge} x {2 * edge}"
        )
    if all(int(image.max()) == int(image.min()) for image in images):
        raise InputError(
            f"every {what} is one even grey: there is nothing to compare, use images of a specimen"
        )


def _some(tiles: Sequence[Pixels], rng: np.random.Generator) -> Tiles:
    """At most MAX_TILES of them, in their order."""
    chosen = rng.choice(len(tiles), min(len(tiles), MAX_TILES), replace=False)
    return np.stack([to_unit(tiles[i]) for i in np.sort(chosen)])


def _crops(images: Sequence[Pixels], edge: int) -> Tiles:
    """The middle of a few images."""
    chosen = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, PICTURES).astype(int))]
    corners = [((image.shape[0] - edge) // 2, (image.shape[1] - edge) // 2) for image in chosen]
    return np.stack(
        [to_unit(image[y : y + edge, x : x + edge]) for image, (y, x) in zip(chosen, corners, strict=True)]
    )


def _draw_curves(real: Curves, fitted: Curves) -> bytes:
    figure = Figure(figsize=(10.5, 7.0), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    noise, spectrum, histogram, lines = figure.subplots(2, 2).ravel()
    looks: tuple[tuple[Curves, str, dict[str, Any], dict[str, Any]], ...] = (
        (
            real,
            "real",
            {"color": "black", "linestyle": "", "marker": "o", "markersize": 3.5},
            {"fillstyle": "none"},
        ),
        (fitted, "fitted", {"color": "tab:red", "linewidth": 1.4}, {"linestyle": "--"}),
    )
    for curves, name, look, other in looks:
        use = curves.count > 0
        noise.plot(curves.level[use], curves.variance[use], label=name, **look)
        spectrum.plot(curves.radius[1:], curves.power[1:], label=name, **look)
        histogram.plot(*_density(curves), label=name, **look)
        lines.plot(curves.lag, curves.along_lines, label=f"{name}, along a line", **look)
        lines.plot(curves.lag, curves.across_lines, label=f"{name}, from line to line", **(look | other))
    noise.set(title="photon transfer", xlabel="mean grey value / full scale", ylabel="noise variance")
    noise.set_ylim(bottom=0)
    spectrum.set(title="power spectrum", xlabel="cycles per raw pixel", ylabel="power", yscale="log")
    histogram.set(title="histogram", xlabel="grey value / full scale", ylabel="density")
    lines.set(title="line correlation", xlabel="distance / raw pixels", ylabel="correlation coefficient")
    for axes in (noise, spectrum, histogram, lines):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _density(curves: Curves) -> tuple[Float, Float]:
    """Histogram over the grey values that occur, smoothed: single electrons and grey levels make combs."""
    low, high = np.interp((0.001, 0.999), curves.cumulative, curves.grey)
    bounds = np.linspace(low, high, 65)
    share = np.diff(np.interp(bounds, curves.grey, curves.cumulative))
    density = gaussian_filter1d(share / (bounds[1] - bounds[0]), 2.5)
    return (bounds[1:] + bounds[:-1]) / 2, density
