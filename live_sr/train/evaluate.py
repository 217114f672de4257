"""Says what a model is worth: degrades good images, restores them, and measures against the known truth.

Every number in a model card comes from here. Runs any :class:`live_sr.upscaler.Upscaler` beside the classical
baselines, at several doses. Trains nothing, loads no model, draws nothing (see :mod:`live_sr.train.report`).
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from live_sr.client.images import open_source
from live_sr.errors import InputError
from live_sr.frame import Pixels, stacked
from live_sr.sim.specimen import Neuropil
from live_sr.train.baselines import BASELINES, available_baselines, bicubic
from live_sr.train.dataset import neighbours
from live_sr.train.files import READABLE, File, Float, Range, read_file, to_unit
from live_sr.train.metrics import (
    NYQUIST_PX,
    TRUTH_THRESHOLD,
    TWO_IMAGE_THRESHOLD,
    IntensityError,
    RingCorrelation,
    error_by_intensity,
    fit_pssr,
    frc_two,
    ms_ssim,
    pooled,
    psnr,
    resolution_one_px,
    ssim,
)
from live_sr.train.pools import Pool
from live_sr.upscaler import Upscaler, UpscalerInfo, pixel_size_doubt

log = logging.getLogger(__name__)

DOSE = 40.0  # electrons per raw pixel at full scale: low, but the tissue is still recognised by eye
READ_NOISE = 4 / 255  # of full scale: four grey levels of an 8-bit detector
MOST_DOSE = 1e12  # electrons: no detector counts so many, and numpy's Poisson numbers end at 9e18
EDGE = 512  # pixels of a procedural truth: some thirty neurites
EVALUATION_SEED = 20_000  # apart from the seeds of training runs, which are small numbers
MODEL = "live-sr"  # what the model is called among the methods
QUICK = ("nearest", "bilinear", "bicubic")
LEAST_TRUTH = 32  # pixels: what one-image Fourier ring correlation needs
RINGS = np.linspace(0, 0.5, 129)[1:]  # cycles per pixel: where curves of images of all sizes are averaged
LEAST_ERROR = 1e-12  # mean square: an empty tile may be restored without any
TILE = 128  # pixels of truth: large enough for a structure, small enough to see its pixels
WORST = 6  # tiles per dose

Advance = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Quality:
    """How close an image, or the mean of several, is to its truth.

    Attributes
    ----------
    psnr : float
        Peak signal-to-noise ratio, dB, data range 1.
    ssim : float
        Structural similarity, data range 1, uniform 7 x 7 window.
    ms_ssim : float or None
        The same on five scales, Gaussian window 11 x 11; None where an edge is shorter than 176 pixels.
    psnr_pssr, ssim_pssr, ms_ssim_pssr : float or None
        The three after PSSR's affine fit of grey levels (:func:`live_sr.train.metrics.fit_pssr`). To be
        compared with numbers published that way, and with no others.
    frc_px, frc_nm : float or None
        Resolution, as a period, by Fourier ring correlation of two restorations of independently noisy frames
        of the same place, at 1/7; never below two raw pixels. Beyond, replicas of the spectrum and whatever
        else a method adds to both frames agree, without having been seen.
    frc_truth_px, frc_truth_nm : float or None
        The same by correlation of one restoration with the truth, at the square root of 1/7: how fine it is
        right. A noisy truth makes it coarser than it is.
    intensity : IntensityError
        Bias and RMSE against the grey level of the truth.
    frc, frc_truth : tuple of float
        The curves, at the frequencies of :data:`RINGS`.
    """

    psnr: float
    ssim: float
    ms_ssim: float | None
    psnr_pssr: float
    ssim_pssr: float
    ms_ssim_pssr: float | None
    frc_px: float | None
    frc_nm: float | None
    frc_truth_px: float | None
    frc_truth_nm: float | None
    intensity: IntensityError = field(repr=False)
    frc: tuple[float, ...] = field(repr=False)
    frc_truth: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Row:
    """Results by method at one dose, each the mean over `images` images.

    Attributes
    ----------
    name : str
        Of the file or tissue; ``mean`` over all of them.
    dose : float
        Electrons per raw pixel at full scale.
    pixel_size_nm : float or None
        Of the truth, where it is known and the same for all images.
    truth_frc_px : float or None
        Resolution of the truth itself, in its pixels, by one-image Fourier ring correlation; see the limits of
        :func:`live_sr.train.metrics.resolution_one_px`.
    feature_ratio : float or None
        `truth_frc_px` in raw pixels. Below 2, the truth shows periods that the raw frame cannot hold at any
        dose: nothing restores them, and what looks like them is invented or averaged away.
    """

    name: str
    dose: float
    images: int
    pixel_size_nm: float | None
    truth_frc_px: float | None
    feature_ratio: float | None
    methods: dict[str, Quality]


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A piece of one image, with what each method made of it.

    Attributes
    ----------
    name : str
        Of the file or tissue.
    plane : int
    dose : float
    y, x : int
        First row and column, in pixels of the truth.
    gain_db : float
        PSNR of the model minus that of bicubic, within the tile; negative where the model is worse.
    pictures : dict
        (Y, X) float32 in [0, 1] by method, and ``raw`` and ``truth``.
    """

    name: str
    plane: int
    dose: float
    y: int
    x: int
    gain_db: float
    pictures: dict[str, Float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rows per file and dose, one mean per dose, some tiles to look at, and what was simulated.

    Attributes
    ----------
    rows : list of Row
        By dose, then by file.
    means : list of Row
        One per dose, over all images.
    examples : list of Tile
        The centre of the first image of each row: not chosen by result.
    worst : list of Tile
        Per dose, the tiles where the model gains least over bicubic, worst first.
    """

    model: str
    model_sha256: str
    scale: int
    doses: tuple[float, ...]
    read_noise: float
    seed: int
    rows: list[Row]
    means: list[Row]
    examples: list[Tile] = field(compare=False, repr=False)
    worst: list[Tile] = field(compare=False, repr=False)

    @property
    def mean(self) -> Row:
        """Over all images, at the first dose."""
        return self.means[0]

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it; without pictures."""

        def listed(tiles: list[Tile]) -> list[dict[str, Any]]:
            return [{k: getattr(t, k) for k in ("name", "plane", "dose", "y", "x", "gain_db")} for t in tiles]

        tiles = {"examples": listed(self.examples), "worst": listed(self.worst)}
        numbers = asdict(replace(self, examples=[], worst=[]))
        return {**numbers, **tiles, "frc_frequency": RINGS.tolist()}


def evaluate(
    upscaler: Upscaler,
    files: Sequence[Path],
    *,
    doses: Sequence[float] = (DOSE,),
    read_noise: float = READ_NOISE,
    seed: int = 0,
    baselines: Sequence[str] = QUICK,
    planes: int | None = None,
    pixel_size_nm: float | None = None,
    channel: int | None = None,
    value_range: Range | None = None,
    progress: Advance | None = None,
) -> Evaluation:
    """Degrade good images, restore them with `upscaler` and the baselines, and compare with the truth.

    Parameters
    ----------
    upscaler : Upscaler
        ``info`` names the scale. One that sees several frames is given each plane of a stack with its
        neighbours along the axis that it was trained for, every one degraded once; at the ends, and of single
        images, planes that there are stand in, as in a live run.
    files : sequence of Path
        TIFF, OME-TIFF, PNG or OME-Zarr; every plane of a stack counts as one image.
    doses : sequence of float
        Electrons per raw pixel at full scale.
    read_noise : float
        Standard deviation, as a fraction of full scale.
    seed : int
        Of the noise: the same seed gives the same numbers. The noise of a plane depends on nothing but the
        seed, the position of its file in `files`, the plane and the dose.
    baselines : sequence of str
        Names of :data:`live_sr.train.baselines.BASELINES`.
    planes : int, optional
        Of each file, use this many, evenly spread; all by default.
    pixel_size_nm : float, optional
        Of the truth, for files whose OME metadata do not say.
    channel, value_range
        See :func:`live_sr.train.files.load_file`. Doses, noise and errors are fractions of full scale: give the
        range of 12-bit data, as in training.
    progress : callable, optional
        Called as ``progress(done, total)`` after each image at each dose.

    Returns
    -------
    Evaluation
        With the methods asked for and ``live-sr``. Pixel sizes and stacks that the model is not for are told in
        a warning.

    Raises
    ------
    InputError
        When there is no file, one cannot be read or is too small to compare, a baseline is not known or not
        installed, or a dose is not positive.
    """
    if not files:
        raise InputError("nothing to evaluate on: name at least one high-resolution image")
    if planes is not None and planes < 1:
        raise InputError(f"nothing to evaluate on: asked for {planes} planes of each file")
    info = upscaler.info
    truths = []
    for n, path in enumerate(files):
        file = read_file(path, channel=channel, value_range=value_range, neighbours=info.neighbours)
        images = [cast("Pixels", image) for image in file.images]
        used = len(images) if planes is None else min(planes, len(images))
        # of as many equal parts, the middle: at the ends of a stack a model of several frames lacks neighbours
        spread = ((np.arange(used) + 0.5) * len(images) / used).astype(int).tolist()
        size = _pixel_size_nm(path) or pixel_size_nm
        near = neighbours(Pool(path.name, 1.0, list(file.images), True, list(file.places)), info.frames // 2)
        truths += [
            _Truth(path.name, n, plane, images[plane], size, tuple((i, images[i]) for i in near[plane]))
            for plane in spread
        ]
        for doubt in _doubts(info, file, size):
            log.warning("%s: %s", path, doubt)
    return _evaluate(upscaler, truths, doses, read_noise, seed, baselines, progress)


def evaluate_procedural(
    upscaler: Upscaler,
    images: int = 8,
    *,
    pixel_size_um: float = 0.016,
    doses: Sequence[float] = (DOSE,),
    read_noise: float = READ_NOISE,
    seed: int = 0,
    baselines: Sequence[str] = QUICK,
    progress: Advance | None = None,
) -> Evaluation:
    """The same on noise-free renderings of tissues that training has not seen, 512 x 512 pixels of truth each.

    A model of several frames sees the sections around, a pixel of the truth apart as in FIB-SEM; one of time
    points sees the same section again.

    Parameters
    ----------
    images : int
        How many different tissues.
    pixel_size_um : float
        Of the raw frame.

    Raises
    ------
    InputError
        When `images` is less than 1, a baseline is not known or not installed, or a dose is not positive.
    """
    if images < 1:
        raise InputError(f"nothing to evaluate on: asked for {images} procedural images")
    info = upscaler.info
    fine_um = pixel_size_um / info.scale
    step_um = 0.0 if info.neighbours == "t" else fine_um
    truths = []
    for n in range(images):
        tissue = Neuropil.random(np.random.default_rng([EVALUATION_SEED, n]))
        around = []
        for offset in range(-(info.frames // 2), info.frames // 2 + 1):
            section = tissue.render((EDGE, EDGE), pixel_size_um=fine_um, z_um=offset * step_um)
            seed_of = 2 * abs(offset) - (offset < 0)  # 0 of the middle, whatever else is seen
            around.append((seed_of, np.rint(section * 65535).astype(np.uint16)))
        middle = around[info.frames // 2][1]
        truths.append(_Truth(f"neuropil {n}", n, 0, middle, fine_um * 1000, tuple(around)))
    return _evaluate(upscaler, truths, doses, read_noise, seed, baselines, progress)


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
        When less than 32 pixels are left along an edge.
    """
    y, x = (n // scale * scale for n in image.shape)
    if min(y, x) < LEAST_TRUTH:
        raise InputError(
            f"an image of {image.shape} pixels is too small to compare: "
            f"need {LEAST_TRUTH} or more along each edge"
        )
    return to_unit(image[:y, :x])


def _doubts(info: UpscalerInfo, file: File, pixel_size_nm: float | None) -> Iterator[str]:
    """Why the model's results on this file say little of what it was made for; sizes are of the truth."""
    raw_um = pixel_size_nm * info.scale / 1000 if pixel_size_nm else None
    if doubt := pixel_size_doubt(info.id, info.pixel_size_um, raw_um):
        yield doubt
    if info.frames > 1 and len({place.stack for place in file.places}) == len(file.places):
        yield f"{info.id} sees a plane with its neighbours along {info.neighbours}, here there are none"


class _Truth(NamedTuple):
    name: str
    file: int  # position among the files: seeds the noise
    plane: int
    pixels: Pixels
    pixel_size_nm: float | None
    around: tuple[tuple[int, Pixels], ...]  # number and pixels of each frame that the model sees, in order


class _Seen(NamedTuple):
    """What one image at one dose came to."""

    truth: _Truth
    truth_frc_px: float | None
    methods: dict[str, Quality]


def _evaluate(
    upscaler: Upscaler,
    truths: Sequence[_Truth],
    doses: Sequence[float],
    read_noise: float,
    seed: int,
    baselines: Sequence[str],
    progress: Advance | None,
) -> Evaluation:
    info = upscaler.info
    _check(doses, read_noise, baselines, seed)
    rows, means, examples, worst = [], [], [], []
    for k, dose in enumerate(doses):
        everything: list[_Seen] = []
        tiles: list[Tile] = []
        for n, truth in enumerate(truths):
            image = crop_to_scale(truth.pixels, info.scale)
            pairs = [
                _low_dose(pixels, info.scale, dose, read_noise, (seed, truth.file, plane))
                for plane, pixels in truth.around
            ]
            pair = pairs[len(pairs) // 2]
            restored = _restore(upscaler, pairs, baselines)
            methods = {
                name: score(first, image, second, info.scale, truth.pixel_size_nm)
                for name, (first, second) in restored.items()
            }
            cut = list(_tiles(truth, dose, pair[0], restored, image, info.scale))
            if not any(seen.truth.file == truth.file for seen in everything):
                examples.append(min(cut, key=lambda t: _off_centre(t, image.shape)))
            tiles = heapq.nsmallest(WORST, [*tiles, *cut], key=lambda t: t.gain_db)
            everything.append(_Seen(truth, resolution_one_px(image), methods))
            if progress is not None:
                progress(k * len(truths) + n + 1, len(doses) * len(truths))
        for file in dict.fromkeys(seen.truth.file for seen in everything):
            of_file = [seen for seen in everything if seen.truth.file == file]
            rows.append(_row(of_file[0].truth.name, dose, info.scale, of_file))
        means.append(_row("mean", dose, info.scale, everything))
        worst += tiles
    return Evaluation(
        model=info.id,
        model_sha256=info.sha256,
        scale=info.scale,
        doses=tuple(float(d) for d in doses),
        read_noise=read_noise,
        seed=seed,
        rows=rows,
        means=means,
        examples=examples,
        worst=worst,
    )


def _low_dose(
    pixels: Pixels, scale: int, dose: float, read_noise: float, place: tuple[int, int, int]
) -> list[Pixels]:
    """Two frames of one plane with independent noise: the same ones whenever this plane is looked at.

    Parameters
    ----------
    place : (int, int, int)
        Seed, file and plane.
    """
    rng = np.random.default_rng([*place, round(dose * 1000)])
    image, dtype = crop_to_scale(pixels, scale), pixels.dtype.name
    return [simulate(image, scale, dose=dose, read_noise=read_noise, dtype=dtype, rng=rng) for _ in range(2)]


def _check(doses: Sequence[float], read_noise: float, baselines: Sequence[str], seed: int) -> None:
    if not doses or not all(0 < dose <= MOST_DOSE for dose in doses):
        raise InputError(
            f"doses {list(doses)}: give one or more, each above 0 and at most {MOST_DOSE:g} electrons per raw "
            "pixel"
        )
    if seed < 0:
        raise InputError(f"seed {seed}: give 0 or more")
    if not 0 <= read_noise < float("inf"):
        raise InputError(f"read noise {read_noise}: give a fraction of full scale, 0 or more")
    for name in baselines:
        if name not in BASELINES:
            raise InputError(f"no baseline {name!r}: choose from {', '.join(BASELINES)}")
        if name not in available_baselines():
            raise InputError(f"the package of baseline {name!r} is not installed: leave it out, or install it")


def _restore(
    upscaler: Upscaler, pairs: Sequence[Sequence[Pixels]], baselines: Sequence[str]
) -> dict[str, tuple[Float, Float]]:
    """The middle one of `pairs`, twice; the model is shown the others as well."""
    scale, pair = upscaler.info.scale, pairs[len(pairs) // 2]
    restored = {name: [BASELINES[name](raw, scale) for raw in pair] for name in dict.fromkeys(baselines)}
    given = [stacked(frames) for frames in zip(*pairs, strict=True)] if len(pairs) > 1 else list(pair)
    restored[MODEL] = upscaler.upscale(given)
    return {name: (to_unit(first), to_unit(second)) for name, (first, second) in restored.items()}


def score(image: Float, truth: Float, second: Float, scale: int, pixel_size_nm: float | None = None) -> Quality:
    """All measures of one restored image.

    Parameters
    ----------
    image, truth : (Y, X) float32 in [0, 1]
    second : (Y, X) float32 in [0, 1]
        The same place restored from another frame with independent noise: for the two-image resolution only.
    pixel_size_nm : float, optional
        Of the truth.
    """
    fitted, target = fit_pssr(image, truth)
    frc, frc_truth = _curve(image, second), _curve(image, truth)
    frc_px, frc_truth_px = _repeated_px(frc, scale), _resolution_px(frc_truth, TRUTH_THRESHOLD)
    return Quality(
        psnr=psnr(image, truth),
        ssim=ssim(image, truth),
        ms_ssim=ms_ssim(image, truth),
        psnr_pssr=psnr(fitted, target),
        ssim_pssr=ssim(fitted, target),
        ms_ssim_pssr=ms_ssim(fitted, target),
        frc_px=frc_px,
        frc_nm=_times(frc_px, pixel_size_nm),
        frc_truth_px=frc_truth_px,
        frc_truth_nm=_times(frc_truth_px, pixel_size_nm),
        intensity=error_by_intensity(image, truth),
        frc=frc,
        frc_truth=frc_truth,
    )


def _curve(a: Float, b: Float) -> tuple[float, ...]:
    native = frc_two(a, b)
    on_grid = np.interp(RINGS, native.frequency, native.correlation)
    return tuple(round(float(c), 4) for c in on_grid)


def _repeated_px(curve: Sequence[float], scale: int) -> float | None:
    period = _resolution_px(curve, TWO_IMAGE_THRESHOLD)
    return max(period, NYQUIST_PX * scale) if period is not None else None


def _resolution_px(curve: Sequence[float], threshold: float) -> float | None:
    return RingCorrelation(RINGS, np.asarray(curve)).resolution_px(threshold)


def _row(name: str, dose: float, scale: int, seen: Sequence[_Seen]) -> Row:
    sizes = {s.truth.pixel_size_nm for s in seen}
    size = sizes.pop() if len(sizes) == 1 else None
    truth_frc = _mean([s.truth_frc_px for s in seen])
    methods = {m: _mean_quality([s.methods[m] for s in seen], scale, size) for m in seen[0].methods}
    return Row(name, dose, len(seen), size, truth_frc, _times(truth_frc, 1 / scale), methods)


def _mean_quality(some: Sequence[Quality], scale: int, pixel_size_nm: float | None) -> Quality:
    """Means of the numbers; resolutions are read from the mean curves, which one image's are too noisy for."""
    frc = tuple(float(c) for c in np.mean([q.frc for q in some], axis=0))
    frc_truth = tuple(float(c) for c in np.mean([q.frc_truth for q in some], axis=0))
    frc_px, frc_truth_px = _repeated_px(frc, scale), _resolution_px(frc_truth, TRUTH_THRESHOLD)
    return Quality(
        psnr=float(np.mean([q.psnr for q in some])),
        ssim=float(np.mean([q.ssim for q in some])),
        ms_ssim=_mean([q.ms_ssim for q in some]),
        psnr_pssr=float(np.mean([q.psnr_pssr for q in some])),
        ssim_pssr=float(np.mean([q.ssim_pssr for q in some])),
        ms_ssim_pssr=_mean([q.ms_ssim_pssr for q in some]),
        frc_px=frc_px,
        frc_nm=_times(frc_px, pixel_size_nm),
        frc_truth_px=frc_truth_px,
        frc_truth_nm=_times(frc_truth_px, pixel_size_nm),
        intensity=pooled([q.intensity for q in some]),
        frc=frc,
        frc_truth=frc_truth,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _times(value: float | None, factor: float | None) -> float | None:
    return value * factor if value is not None and factor is not None else None


def _tiles(
    truth: _Truth,
    dose: float,
    raw: Pixels,
    restored: Mapping[str, tuple[Float, Float]],
    image: Float,
    scale: int,
) -> Iterator[Tile]:
    """Whole tiles of the image, or the whole image where it is smaller than one."""
    reference = restored["bicubic"][0] if "bicubic" in restored else to_unit(bicubic(raw, scale))
    edge = TILE // scale * scale
    height, width = (min(edge, n) for n in image.shape)
    for y in range(0, image.shape[0] - height + 1, height):
        for x in range(0, image.shape[1] - width + 1, width):
            at = (slice(y, y + height), slice(x, x + width))
            coarse = tuple(slice(s.start // scale, s.stop // scale) for s in at)
            off = [float(np.square(r[at] - image[at]).mean()) for r in (reference, restored[MODEL][0])]
            gain = 10 * math.log10((off[0] + LEAST_ERROR) / (off[1] + LEAST_ERROR))
            pictures = {
                method: first[at].copy() for method, (first, _) in restored.items()
            }  # not a view: it would
            pictures |= {
                "raw": to_unit(raw[coarse]),
                "truth": image[at].copy(),
            }  # keep the whole image in memory
            yield Tile(truth.name, truth.plane, dose, y, x, gain, pictures)


def _off_centre(tile: Tile, shape: tuple[int, ...]) -> float:
    height, width = tile.pictures["truth"].shape
    return float(abs(2 * tile.y + height - shape[0]) + abs(2 * tile.x + width - shape[1]))


def _pixel_size_nm(path: Path) -> float | None:
    source = open_source(path, dtypes=READABLE)
    try:
        size_um = source.layout.pixel_size_um
    finally:
        source.close()
    return 1000 * size_um if size_um else None
