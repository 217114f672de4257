"""Puts together what a run learns from and what it is judged on. Knows no network's weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from live_sr.errors import InputError
from live_sr.train.batches import (
    AS_THEY_ARE,
    Batch,
    Batches,
    BlindSpot,
    Degraded,
    Mixed,
    NoiseToNoise,
    Paired,
    degraded,
)
from live_sr.train.crappify import Crappifier, Detector, Dose, Undersample
from live_sr.train.dataset import Crops, neighbours
from live_sr.train.files import File, Shelf, load_files, to_unit
from live_sr.train.pairs import Pair, PairCrops, load_pairs, split_pairs
from live_sr.train.pools import Pool, load_pools
from live_sr.train.procedural import render_pool
from live_sr.train.settings import TrainSettings
from live_sr.train.split import Split, split_pools

log = logging.getLogger(__name__)

VALIDATION_EDGE = 512  # pixels of the truth: the middle of each validation image
VALIDATION_MOST = 16  # images from each file or source
VALIDATION_PROCEDURAL = 4  # images, where nothing else is there to be judged on
"""A validation must stay short beside the steps between two of them."""


@dataclass(frozen=True)
class Example:
    """One image that the run is judged on.

    Attributes
    ----------
    name : str
        Of the file or source.
    batch : Batch
        Of one example; the same at every validation.
    drawn : bool
        Whether it belongs on the sheet: the first of each name.
    """

    name: str
    batch: Batch
    drawn: bool


@dataclass(frozen=True)
class Examples:
    """What to learn from, what to be judged on, and the files that both come from.

    Attributes
    ----------
    files : list of File
        Learnt from; with a split, parts of them are judged on.
    judged : list of File
        Judged on alone.
    against : str
        What the validation compares with, as a card says it.
    """

    draw: Batches
    validation: list[Example]
    files: list[File]
    judged: list[File]
    against: str


def gather(settings: TrainSettings, data: Sequence[Path], *, cache: Path) -> Examples:
    """Read the images of a run.

    Parameters
    ----------
    data : sequence of Path
        Folders that the patterns of the settings are looked up in.
    cache : Path
        Folder for procedural images, so that a resumed run starts at once.

    Raises
    ------
    InputError
        When there are no usable images to learn from or to be judged on.
    """
    shelf = Shelf()
    # A pattern such as *.tif also finds the files of pairs. Their raw frames are no good images, and of the
    # others some are judged on.
    paired = [pattern for pair in settings.pairs for pattern in (pair.low, pair.high)]
    pools, files = load_pools(
        settings.sources, data, (*settings.validation, *paired), shelf, neighbours=settings.neighbours
    )
    held_out: list[Pool] = []
    judged: list[File] = []
    if settings.validation:
        first = settings.sources[0] if settings.sources else None
        channel, value_range = (first.channel, first.range) if first is not None else (None, None)
        judged = load_files(
            data,
            settings.validation,
            paired,
            channel=channel,
            value_range=value_range,
            neighbours=settings.neighbours,
            shelf=shelf,
        )
        # planes of a file are taken as neighbours, as far as the network asks for any
        held_out = [Pool(f.name, 1.0, list(f.images), True, list(f.places)) for f in judged]
        pools, files = _without_copies(pools, files, judged, "is validated on")
    elif settings.split is not None and pools:
        pools, held_out = split_pools(pools, settings.split)
    if settings.task == "restore":
        return _restoring(settings, data, cache, shelf, pools, held_out, files, judged)
    return _denoising(settings, pools, held_out, files, judged)


def evaluation_crappifier(dose: float, read_noise: float) -> Crappifier:
    """What runs and models are judged by: area mean, counted electrons, Gaussian read noise."""
    steps = (Undersample(), Dose(counts=(dose, dose)), Detector(read_noise=(read_noise, read_noise)))
    return Crappifier(id="evaluation", steps=steps)


def _restoring(
    settings: TrainSettings,
    data: Sequence[Path],
    cache: Path,
    shelf: Shelf,
    pools: list[Pool],
    held_out: list[Pool],
    files: list[File],
    judged: list[File],
) -> Examples:
    network = settings.network
    size = settings.patch * network.scale
    if settings.procedural.share > 0:
        pools = [*pools, render_pool(settings.procedural, settings.seed, cache)]
    pairs: list[Pair] = []
    judged_pairs: list[Pair] = []
    if settings.pairs:
        pairs, pair_files = load_pairs(settings.pairs, data, network.scale, settings.validation, shelf)
        several = len({pair.place.sha256 for pair in pairs}) > 1
        pairs, judged_pairs = split_pairs(pairs, settings.split or Split(by="file" if several else "region"))
        pools, files = _without_copies(pools, files, pair_files, "belongs to a pair")
        held_out, _ = _without_copies(held_out, [], pair_files, "belongs to a pair")
        files = [*files, *pair_files]
    if not held_out and not judged_pairs:
        if settings.procedural.share <= 0:
            raise InputError("nothing to validate on: name validation files, or give a [split]")
        few = msgspec.structs.replace(settings.procedural, images=VALIDATION_PROCEDURAL)
        held_out = [render_pool(few, settings.seed + 1)]

    draw: Batches | None = None
    if pools:
        crops = Crops(pools, size, settings.augment, network.frames)
        draw = Degraded(crops, settings.crappifier, network.scale, settings.holes)
    if pairs:
        paired = Paired(PairCrops(pairs, settings.patch, network.scale, settings.augment))
        draw = Mixed(paired, draw, settings.pairs_share) if draw is not None else paired
    if draw is None:
        raise InputError("nothing to learn from: every image is validated on, add others")

    judge = evaluation_crappifier(settings.validation_dose, settings.validation_read_noise)
    generator = torch.Generator().manual_seed(settings.seed)
    holes = msgspec.structs.replace(settings.holes, share=1.0) if settings.holes is not None else None
    validation = [
        Example(pool.name, degraded(frames, judge, network.scale, holes, generator), drawn=i == 0)
        for pool in held_out
        for i, frames in enumerate(_middles(pool, network.scale, network.frames))
    ]
    validation += [
        Example("pairs", _paired(pair, network.scale), drawn=i == 0)
        for i, pair in enumerate(judged_pairs[:VALIDATION_MOST])
    ]
    dose = f"at {settings.validation_dose:g} electrons and read noise {settings.validation_read_noise:.4f}"
    kinds = [kind for kind, images in ((dose, held_out), ("on real pairs", judged_pairs)) if images]
    return Examples(draw, validation, files, judged, " and ".join(kinds))


def _denoising(
    settings: TrainSettings,
    pools: list[Pool],
    held_out: list[Pool],
    files: list[File],
    judged: list[File],
) -> Examples:
    if not held_out:
        raise InputError(
            'nothing to validate on: name validation files, or give a [split], for example by = "region"'
        )
    frames = 3 if settings.task == "noise2noise" else 1
    kind = NoiseToNoise if settings.task == "noise2noise" else BlindSpot
    size = settings.patch
    draw = kind(Crops(pools, size, AS_THEY_ARE, frames))
    examples = kind(Crops(held_out, size, AS_THEY_ARE, frames))
    generator = torch.Generator().manual_seed(settings.seed)
    validation = [
        Example("held out", examples(1, generator), drawn=i < VALIDATION_PROCEDURAL)
        for i in range(VALIDATION_MOST)
    ]
    noisy = "neighbouring frames, noisy alike" if frames > 1 else "hidden pixels, themselves noisy"
    return Examples(draw, validation, files, judged, f"against {noisy}")


def _without_copies(
    pools: list[Pool], files: list[File], others: Sequence[File], why: str
) -> tuple[list[Pool], list[File]]:
    """Pools and files without what `others` hold, whatever it is called: no image is on both sides."""
    known = {file.sha256 for file in others}
    copies = [file.name for file in files if file.sha256 in known]
    if copies:
        log.warning("left out, because its content %s under another name: %s", why, ", ".join(copies))
    kept = [pool.take([i for i, p in enumerate(pool.places) if p.sha256 not in known]) for pool in pools]
    return [pool for pool in kept if pool.images], [file for file in files if file.sha256 not in known]


def _middles(pool: Pool, scale: int, frames: int) -> list[Tensor]:
    """The middle of each image of a pool with its neighbours: (1, frames, Y, X) in [0, 1]."""
    near = neighbours(pool, frames // 2)
    step = -(-len(pool.images) // VALIDATION_MOST)
    found = []
    for around in near[::step]:
        shape = pool.images[around[frames // 2]].shape
        edges = [min(n, VALIDATION_EDGE) // scale * scale for n in shape]
        y, x = ((n - edge) // 2 for n, edge in zip(shape, edges, strict=True))
        window = slice(y, y + edges[0]), slice(x, x + edges[1])
        planes = [torch.from_numpy(to_unit(pool.images[i][window])) for i in around]
        found.append(torch.stack(planes)[None])
    return found


def _paired(pair: Pair, scale: int) -> Batch:
    """The middle of a pair."""
    edges = [min(n, VALIDATION_EDGE // scale) for n in pair.low.shape]
    low = [slice((n - e) // 2, (n - e) // 2 + e) for n, e in zip(pair.low.shape, edges, strict=True)]
    high = [slice(scale * s.start, scale * s.stop) for s in low]
    raw, truth = (
        torch.from_numpy(to_unit(plane[y, x]))[None, None]
        for plane, (y, x) in ((pair.low, low), (pair.high, high))
    )
    return Batch(raw, truth)
