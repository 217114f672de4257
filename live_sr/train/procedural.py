"""Renders specimens as training images, once, before training starts. Knows the tissue, not the crops."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import tifffile
from rich.progress import track

from live_sr.config import Settings
from live_sr.frame import Pixels
from live_sr.sim.specimen import Neuropil
from live_sr.sim.variety import random_image
from live_sr.train.files import Plane, read_images
from live_sr.train.pools import Pool


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


def render_pool(settings: Procedural, seed: int, cache: Path | None = None) -> Pool:
    """Render the procedural images, showing progress; the same settings and seed give the same images.

    With a `cache` folder they are kept there as a TIFF stack, so that a resumed run starts at once.
    """
    key = hashlib.sha256(msgspec.json.encode((settings, seed))).hexdigest()[:12]
    kept = cache / f"procedural-{key}.tif" if cache else None
    if kept and kept.exists():
        return Pool("procedural", settings.share, list[Plane](read_images(kept)))
    images: list[Plane] = [
        render_one(settings, (seed, n))
        for n in track(range(settings.images), description="rendering specimens")
    ]
    if kept:
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.part")  # under torchrun each process renders
        tifffile.imwrite(partial, np.stack(cast("list[Pixels]", images)), photometric="minisblack")
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
