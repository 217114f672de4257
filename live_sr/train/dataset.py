"""Turns folders of good images into random training crops. Knows the files, not the noise and not the network.

Images are held in memory as they were stored (uint8 or uint16) and scaled by their type's range when cropped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from skimage.io import imread
from torch import Tensor

from live_sr.config import Settings
from live_sr.errors import InputError
from live_sr.frame import DTYPES, Pixels
from live_sr.sim.specimen import Neuropil
from live_sr.sim.variety import random_image

log = logging.getLogger(__name__)

SUFFIXES = (".tif", ".tiff", ".png")
Float = NDArray[np.float32]
COLOUR_PLANES = 3  # a PNG or TIFF with a last axis of 3 or 4 is RGB(A)


class Source(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Image files that are drawn from together.

    Attributes
    ----------
    name : str
    files : str
        Pattern for the path below the data folder, for example ``*/train_*.tif``; ``*`` also spans folders.
    share : float
        Relative share of the training crops.
    attribution, licence : str
        Whose images they are, as the model file and its card must say.
    """

    name: str
    files: str
    share: float = 1.0
    attribution: str = ""
    licence: str = ""


class Procedural(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Renderings of specimens that do not exist, drawn once before training starts.

    Attributes
    ----------
    images : int
    size : int
        Edge of each image in pixels.
    pixel_size_um : (float, float)
        Pixel size of the truth, drawn log-uniformly; of neuropil only.
    share : float
        Relative share of the training crops.
    variety : float
        Fraction of the images from :func:`live_sr.sim.variety.random_image`; the others are
        :class:`live_sr.sim.specimen.Neuropil`.
    """

    images: int = 0
    size: int = 640
    pixel_size_um: tuple[float, float] = (0.003, 0.012)
    share: float = 0.0
    variety: float = 0.0


class Augment(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a crop is varied before it is degraded.

    Attributes
    ----------
    zoom_share, zoom_max : float
        Fraction of the crops that are zoomed out (area mean), by a log-uniform factor from 1 to `zoom_max`.
    window_share : float
        Fraction of the crops with another contrast and brightness.
    gain : (float, float)
        Contrast factor about the crop's mean, drawn log-uniformly.
    offset : float
        Largest change of brightness, as a fraction of full scale.
    invert_share : float
        Fraction of the crops whose contrast is inverted.
    """

    zoom_share: float = 0.4
    zoom_max: float = 4.0
    window_share: float = 0.5
    gain: tuple[float, float] = (0.5, 1.7)
    offset: float = 0.15
    invert_share: float = 0.15


@dataclass(frozen=True)
class File:
    """One image file as it was used."""

    path: Path
    name: str  # below the data folder
    sha256: str
    images: tuple[Pixels, ...] = field(repr=False)


@dataclass
class Pool:
    """Images with the share of the crops that comes from them."""

    name: str
    share: float
    images: list[Pixels]


class Crops:
    """Random, augmented crops of pools of images.

    Parameters
    ----------
    pools : sequence of Pool
    size : int
        Edge of a crop in pixels of the truth.

    Raises
    ------
    InputError
        When there is no image with at least `size` pixels along both axes.
    """

    def __init__(self, pools: Sequence[Pool], size: int, augment: Augment) -> None:
        self.size, self.augment = size, augment
        self.pools = [
            Pool(p.name, p.share, [i for i in p.images if min(i.shape) >= size]) for p in pools if p.share > 0
        ]
        self.pools = [p for p in self.pools if p.images]
        if not self.pools:
            raise InputError(
                f"no training image has {size} x {size} pixels: add larger images, or make the patch smaller"
            )
        self._shares = torch.tensor([p.share for p in self.pools], dtype=torch.float64).cumsum(0)

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, size, size) float32 in [0, 1]; `generator` is the only source of randomness."""
        return torch.stack([self._crop(generator) for _ in range(n)])

    def _crop(self, generator: torch.Generator) -> Tensor:
        u = iter(torch.rand(16, dtype=torch.float64, generator=generator).tolist())
        pool = self.pools[int(torch.searchsorted(self._shares, next(u) * self._shares[-1], right=True))]
        image = pool.images[int(next(u) * len(pool.images))]
        a = self.augment

        zoom = _log_uniform(next(u), (1.0, a.zoom_max)) if next(u) < a.zoom_share else 1.0
        edge = min(round(self.size * zoom), *image.shape)
        y, x = (int(next(u) * (n - edge + 1)) for n in image.shape)
        crop = torch.from_numpy(to_unit(image[y : y + edge, x : x + edge]))[None, None]  # (1, 1, edge, edge)
        if edge != self.size:
            crop = F.interpolate(crop, size=(self.size, self.size), mode="area")
        crop = torch.rot90(crop[0], int(next(u) * 4), dims=(-2, -1))
        if next(u) < 0.5:
            crop = crop.flip(-1)

        gain, offset = _log_uniform(next(u), a.gain), (2 * next(u) - 1) * a.offset
        if next(u) < a.window_share:
            mean = crop.mean()
            crop = (mean + offset + gain * (crop - mean)).clamp(0, 1)
        return 1 - crop if next(u) < a.invert_share else crop


def find_files(folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """All TIFF and PNG files below `folders`, sorted, with their names below the folder.

    Raises
    ------
    InputError
        When a folder does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no data folder {folder}: give --data a folder that holds TIFF or PNG files")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path, path.relative_to(folder).as_posix()


def load_files(folders: Sequence[Path], patterns: Sequence[str], exclude: Sequence[str] = ()) -> list[File]:
    """Read every file whose name matches one of `patterns` and none of `exclude`.

    Files that cannot be read are named in a warning, counted, and skipped.

    Raises
    ------
    InputError
        When nothing is left.
    """
    files: list[File] = []
    skipped: list[str] = []
    for path, name in find_files(folders):
        if not _matches(name, patterns) or _matches(name, exclude):
            continue
        try:
            images = tuple(read_images(path))
        except InputError as e:
            log.warning("skipped: %s", e)
            skipped.append(name)
            continue
        files.append(File(path, name, hashlib.sha256(path.read_bytes()).hexdigest(), images))
    if skipped:
        log.warning("%d of %d image files could not be used", len(skipped), len(skipped) + len(files))
    if not files:
        where = ", ".join(map(str, folders)) or "no folder"
        raise InputError(
            f"no usable image matches {', '.join(patterns)} below {where} ({len(skipped)} could not be read): "
            "check --data and the patterns in the settings file"
        )
    return files


def read_images(path: Path) -> list[Pixels]:
    """Every (Y, X) plane of a TIFF, OME-TIFF or PNG file, uint8 or uint16.

    Raises
    ------
    InputError
        When the file cannot be read, is colour, or has another pixel type.
    """
    try:
        stack: NDArray[Any] = tifffile.imread(path) if path.suffix.lower() != ".png" else imread(path)
    except (OSError, ValueError, SyntaxError, KeyError, IndexError, RuntimeError, tifffile.TiffFileError) as e:
        raise InputError(f"{path} cannot be read as an image ({type(e).__name__}: {e})") from e
    if stack.dtype.name not in DTYPES:
        raise InputError(f"{path} holds {stack.dtype} pixels: convert it to uint8 or uint16")
    if stack.ndim < 2 or 0 in stack.shape:
        raise InputError(f"{path} has shape {stack.shape}: an image needs (Y, X), a stack (Z, Y, X)")
    if stack.ndim > 2 and stack.shape[-1] in (COLOUR_PLANES, COLOUR_PLANES + 1):
        raise InputError(f"{path} is a colour image of shape {stack.shape}: save it as one grey channel")
    return [np.ascontiguousarray(plane) for plane in stack.reshape(-1, *stack.shape[-2:])]


def render_pool(settings: Procedural, seed: int, cache: Path | None = None) -> Pool:
    """Render the procedural images, showing progress; the same settings and seed give the same images.

    With a `cache` folder they are kept there as a TIFF stack, so that a resumed run starts at once.
    """
    key = hashlib.sha256(msgspec.json.encode((settings, seed))).hexdigest()[:12]
    kept = cache / f"procedural-{key}.tif" if cache else None
    if kept and kept.exists():
        return Pool("procedural", settings.share, read_images(kept))
    images = [
        render_one(settings, (seed, n))
        for n in track(range(settings.images), description="rendering specimens")
    ]
    if kept:
        partial = kept.with_name(kept.name + ".part")
        tifffile.imwrite(partial, np.stack(images))
        partial.replace(kept)
    return Pool("procedural", settings.share, images)


def render_one(settings: Procedural, seed: tuple[int, int]) -> Pixels:
    """(size, size) uint16: a random specimen, or a random tissue at a random place, depth and pixel size."""
    # a generator of its own, so that the tissues that stay are the same whatever the variety
    lots = np.random.default_rng((*seed, 1))
    if lots.random() < settings.variety:
        return np.rint(random_image(lots, (settings.size, settings.size)) * 65535).astype(np.uint16)
    rng = np.random.default_rng(seed)
    tissue = Neuropil.random(rng)
    y, x, z = rng.uniform(-500, 500, 3)  # micrometres: anywhere in an endless tissue
    pixel_size_um = float(np.exp(rng.uniform(*np.log(settings.pixel_size_um))))
    shape = (settings.size, settings.size)
    image = tissue.render(shape, pixel_size_um=pixel_size_um, center_um=(y, x), z_um=z)
    return np.rint(image * 65535).astype(np.uint16)


def to_unit(pixels: Pixels) -> Float:
    """(Y, X) uint8 or uint16 to float32 in [0, 1] by the range of its type."""
    return np.asarray(pixels / np.float32(np.iinfo(pixels.dtype).max), np.float32)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _log_uniform(u: float, between: tuple[float, float]) -> float:
    low, high = between
    return float(low * (high / low) ** u)
