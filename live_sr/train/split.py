"""Sets images apart for validation: whole files, or a region of each, never random patches.

Patches of one image share its structure, so that a network which has seen one half knows the other. Between
what is trained on and what is validated on lies a guard that belongs to neither. Reads no pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from live_sr.client.volume import Window
from live_sr.config import Settings
from live_sr.errors import ConfigError, InputError
from live_sr.train.files import Place, Plane, part_of
from live_sr.train.pools import Pool

log = logging.getLogger(__name__)

MIN_STRIP_PX = 64  # fewer rows say little, and the metrics' windows must fit
MIN_PLANES = 2  # a plane and its neighbour, which some networks need, and noise2noise learns from


class Split(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How images are set apart for validation.

    Attributes
    ----------
    by : "file" or "region"
        Whole files; or of each image a strip along its longer axis, of each stack its last planes.
    fraction : float
        Of the files, or of each image, that is validated on.
    guard_px : int
        Pixels between training and validation that belong to neither.
    guard_planes : int
        Likewise between the planes of a stack.
    """

    by: Literal["file", "region"] = "file"
    fraction: float = 0.1
    guard_px: int = 64
    guard_planes: int = 4


def split_pools(pools: Sequence[Pool], split: Split) -> tuple[list[Pool], list[Pool]]:
    """(training, validation) pools, always the same ones for the same files; an empty pool is left out.

    By file, each pool with two files or more gives one or more, chosen by their content's hash; what one pool
    validates on, no other trains on. By region, an image that is too small for a strip, a guard and at least
    its own half stays in training.

    Raises
    ------
    InputError
        When nothing is left for validation.
    ConfigError
        When the settings contradict each other, or the sources do.
    """
    check_split(split)
    if split.by == "file":
        apart: set[str] = set()
        for pool in pools:
            apart |= choose_files((place.sha256 for place in pool.places), split.fraction, apart)
        groups = [_by_file(pool, apart) for pool in pools]
    else:
        _check_stacks(pools)
        groups = [_by_region(pool, split) for pool in pools]
    train = [kept for kept, _ in groups if kept.images]
    validation = [held for _, held in groups if held.images]
    if not validation:
        raise InputError(nothing_apart(split))
    for pool in pools:
        if pool.images and pool.name not in {kept.name for kept in train}:
            log.warning("%s: all its files are validated on, none is trained on", pool.name)
    return train, validation


def check_split(split: Split) -> None:
    """Refuse settings that set nothing apart.

    Raises
    ------
    ConfigError
    """
    if not 0 < split.fraction < 1 or split.guard_px < 0 or split.guard_planes < 0:
        raise ConfigError(
            f"split: fraction = {split.fraction}, guard_px = {split.guard_px}, guard_planes = "
            f"{split.guard_planes}: need a fraction between 0 and 1, and guards of 0 or more"
        )


def choose_files(keys: Iterable[str], fraction: float, apart: Iterable[str] = ()) -> set[str]:
    """Those of the files' hashes that are validated on, where `apart` already are; one file stays."""
    files = sorted(set(keys))
    chosen = set(apart) & set(files)
    n = min(max(1, round(fraction * len(files))), len(files) - 1)
    others = [key for key in files if key not in chosen]
    return chosen | set(others[: max(0, n - len(chosen))])


def strips(shape: tuple[int, ...], split: Split) -> tuple[Window, Window] | None:
    """(training, validation) windows of an image of `shape`, pixels; None when it is too small."""
    axis = 0 if shape[0] >= shape[1] else 1
    n = shape[axis]
    first = n - max(round(split.fraction * n), MIN_STRIP_PX)
    end = first - split.guard_px
    if end < n / 2:
        return None
    train, validation = ([slice(0, shape[0]), slice(0, shape[1])] for _ in range(2))
    train[axis], validation[axis] = slice(0, end), slice(first, n)
    return (train[0], train[1]), (validation[0], validation[1])


def nothing_apart(split: Split) -> str:
    """Why nothing could be set apart, and what to do."""
    if split.by == "file":
        return 'no source has two files to split: split by = "region", or name validation patterns'
    return (
        f"no image has room for a strip of {MIN_STRIP_PX} px, a guard of {split.guard_px} px and its own half, "
        f"and no stack for {MIN_PLANES} planes, a guard of {split.guard_planes} and its own half: "
        'split by = "file", or make the guard smaller'
    )


def _by_file(pool: Pool, apart: set[str]) -> tuple[Pool, Pool]:
    inside = [place.sha256 in apart for place in pool.places]
    return (
        pool.take([i for i, held in enumerate(inside) if not held]),
        pool.take([i for i, held in enumerate(inside) if held]),
    )


def _by_region(pool: Pool, split: Split) -> tuple[Pool, Pool]:
    """Along the stack where planes are neighbours, otherwise across the images."""
    lengths: dict[tuple[str, int], int] = {}
    for place in pool.places:
        lengths[place.sha256, place.stack] = max(lengths.get((place.sha256, place.stack), 0), place.at + 1)
    train: list[tuple[Plane, Place]] = []
    validation: list[tuple[Plane, Place]] = []
    for image, place in zip(pool.images, pool.places, strict=True):
        n = lengths[place.sha256, place.stack]
        if pool.stack and n > 1:
            first = n - max(MIN_PLANES, round(split.fraction * n))
            end = first - split.guard_planes
            if place.at < end or end < n / 2:
                train.append((image, place))
            elif place.at >= first:
                validation.append((image, place))
        elif (windows := strips(image.shape, split)) is None:
            train.append((image, place))
        else:
            train.append((part_of(image, windows[0]), place))
            validation.append((part_of(image, windows[1]), place))
    return _pool_of(pool, train), _pool_of(pool, validation)


def _pool_of(pool: Pool, members: Sequence[tuple[Plane, Place]]) -> Pool:
    images, places = [image for image, _ in members], [place for _, place in members]
    return replace(pool, images=images, places=places)


def _check_stacks(pools: Sequence[Pool]) -> None:
    """A file that one source cuts along the stack and another across its planes would be on both sides."""
    cut: dict[str, Pool] = {}
    for pool in pools:
        for place in pool.places:
            other = cut.setdefault(place.sha256, pool)
            if other.stack != pool.stack:
                raise ConfigError(
                    f"{place.file} is in the sources {other.name!r} and {pool.name!r}, of which one has "
                    'stack = true: give both the same, or split by = "file"'
                )
