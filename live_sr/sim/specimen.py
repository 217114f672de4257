"""What lies under the beam: endless procedural neuropil, or any image the user names.

Everything is a pure function of position and seed, in micrometres, so that any window at any pixel size shows the same
tissue. Knows no microscope: no noise, no dose, no drift, no pymmcore-plus (see `live_sr.sim.scope`).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from live_sr.errors import InputError

Float = NDArray[np.float32]
Index = NDArray[np.int32]

DEFAULT_PIXEL_SIZE_UM = 0.004  # 4 nm: a usual FIB-SEM / SBF-SEM pixel, for images that do not say


class Specimen(Protocol):
    """Anything that can be imaged."""

    def render(
        self,
        shape: tuple[int, int],
        *,
        pixel_size_um: float,
        center_um: tuple[float, float] = (0.0, 0.0),
        z_um: float = 0.0,
        detector: int = 0,
    ) -> Float:
        """Return the noise-free image of one window.

        Parameters
        ----------
        shape
            (Y, X) of the image, pixels.
        pixel_size_um
            Pixel size, micrometres.
        center_um
            (y, x) of the image centre, micrometres.
        z_um
            Depth of the section, micrometres.
        detector
            0 for the usual detector, 1 for a second one with another contrast of the same structure.

        Returns
        -------
        (Y, X) float32 in [0, 1]; 0 is the darkest stain, 1 the brightest.
        """
        ...


@dataclass(frozen=True)
class Neuropil:
    """Packed, stained neurites as a backscatter detector shows them, without end in y, x and z.

    Neurites are the cells of a power diagram of hashed sites in three sizes, seen through a smooth domain warp;
    membranes, mitochondria, vesicles, microtubules, myelin and synaptic densities are drawn from the distance to the
    cell boundary. Features narrower than a pixel fade instead of aliasing.

    Parameters
    ----------
    seed
        Which tissue. Equal seeds and options give equal pixels on every machine.
    cell_um
        Typical diameter of the thin neurites, micrometres; the thick ones are two to five times larger.
    elongation
        How much longer than wide the neurites are.
    thick
        Fraction (0 to 1) of the volume's sites that grow into thick neurites.
    membrane_nm
        Width of one stained membrane, nanometres.
    contrast
        Stain contrast: 1 is well stained, 0 is blank.
    brightness
        Grey value (0 to 1) of ordinary cytoplasm.
    grain
        Strength of the granular cytoplasm texture, 1 as in a typical FIB-SEM volume.
    organelles
        Density of mitochondria, vesicles and microtubules, 1 as in a typical cortex.
    myelin
        Fraction (0 to 1) of the thick neurites that wear a myelin sheath.
    """

    seed: int = 0
    _: KW_ONLY
    cell_um: float = 0.26
    elongation: float = 1.6
    thick: float = 0.5
    membrane_nm: float = 9.0
    contrast: float = 1.0
    brightness: float = 0.68
    grain: float = 1.0
    organelles: float = 1.0
    myelin: float = 0.06

    @classmethod
    def random(cls, rng: np.random.Generator) -> Neuropil:
        """Draw a varied tissue, for training sets."""
        return cls(
            int(rng.integers(2**31)),
            cell_um=float(np.exp(rng.uniform(np.log(0.16), np.log(0.45)))),
            elongation=float(rng.uniform(1.0, 3.0)),
            thick=float(rng.uniform(0.15, 0.8)),
            membrane_nm=float(rng.uniform(6.5, 14.0)),
            contrast=float(rng.uniform(0.55, 1.15)),
            brightness=float(rng.uniform(0.58, 0.76)),
            grain=float(rng.uniform(0.4, 1.8)),
            organelles=float(rng.uniform(0.3, 1.6)),
            myelin=float(rng.choice([0.0, 0.05, 0.3])),
        )

    def render(
        self,
        shape: tuple[int, int],
        *,
        pixel_size_um: float,
        center_um: tuple[float, float] = (0.0, 0.0),
        z_um: float = 0.0,
        detector: int = 0,
    ) -> Float:
        """Return the noise-free image of one window; see `Specimen.render`."""
        margin = math.ceil(MARGIN_NM / (1e3 * pixel_size_um)) + 1
        window = _Window((shape[0] + 2 * margin, shape[1] + 2 * margin), pixel_size_um, center_um, z_um)
        section = _cut(self, window)
        image = _paint(self, window, section, detector)
        return np.ascontiguousarray(image[margin:-margin, margin:-margin])


# ---------------------------------------------------------------------------------------------------------------------
# Hashing and noise: everything endless comes from here.

MARGIN_NM = 90.0  # the largest thing drawn from its centre (a multivesicular body) reaches this far
DEPTH_NM = 60.0  # distances to a membrane are exact up to here; the thickest myelin ends before
NOISE_STD = 0.1915  # of uniform [-1, 1] lattice values under a cubic B-spline in three dimensions, averaged over phase


class _Window(NamedTuple):
    shape: tuple[int, int]
    pixel_um: float
    center_um: tuple[float, float]
    z_um: float

    def axis_um(self, axis: int) -> NDArray[np.float64]:
        n = self.shape[axis]
        return self.center_um[axis] + (np.arange(n) - (n - 1) / 2) * self.pixel_um

    @property
    def pixel_nm(self) -> float:
        return 1e3 * self.pixel_um


def _mix(h: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Scramble 32-bit integers (the `lowbias32` mixer, https://nullprogram.com/blog/2018/07/31/)."""
    h = h ^ (h >> np.uint32(16))
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def _hash(seed: int, salt: int, *coords: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Hash integer lattice coordinates (broadcast together) to 32 bits."""
    start = np.array([(seed * 0x9E3779B1 + salt * 0x85EBCA77) & 0xFFFFFFFF], np.uint32)
    h = _mix(start)
    for c in coords:
        h = _mix(h ^ (c.astype(np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        h = h * np.uint32(0x9E3779B1) + np.uint32(0x7F4A7C15)
    return _mix(h)


def _unit(h: NDArray[np.uint32], salt: int = 0) -> Float:
    """Turn hashes into uniform numbers in [0, 1); `salt` draws several from one hash."""
    if salt:
        h = _mix(h ^ np.uint32((salt * 0x9E3779B1) & 0xFFFFFFFF))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _spline(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic B-spline."""
    a = np.abs(t)
    return np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.clip(2 - a, 0, None) ** 3 / 6)


def _taps(at: NDArray[np.float64], width: float) -> tuple[NDArray[np.int64], Float]:
    """Return the lattice nodes under `at` and the weights (len(at), nodes) of pixels `width` nodes wide."""
    first = np.floor(at - width / 2).astype(np.int64) - 1
    nodes = np.arange(first[0], first[-1] + 4 + math.ceil(width), dtype=np.int64)
    parts = 1 if width < 0.3 else 3
    shifts = ((np.arange(parts) + 0.5) / parts - 0.5) * width
    weights = np.zeros((len(at), len(nodes)), np.float32)
    rows = np.arange(len(at))
    for k in range(4 + math.ceil(width)):  # the spline is four nodes wide: a band, not the whole matrix
        offset = at - (first + k)
        weights[rows, first - first[0] + k] = sum(_spline(offset + s) for s in shifts) / parts
    return nodes, weights


def _noise(seed: int, salt: int, window: _Window, lattice_um: float) -> Float:
    """Smooth noise over the window, mean 0 and standard deviation 1, correlated over about one lattice step."""
    step = window.pixel_um / lattice_um
    y, wy = _taps(window.axis_um(0) / lattice_um, step)
    x, wx = _taps(window.axis_um(1) / lattice_um, step)
    z, wz = _taps(np.array([window.z_um / lattice_um]), 0.0)
    values = _unit(_hash(seed, salt, z[:, None, None], y[None, :, None], x[None, None, :])) * 2 - 1
    plane = np.tensordot(wz[0], values, 1) / np.float32(NOISE_STD)
    return np.asarray(wy @ plane @ wx.T, np.float32)


def _smooth(x: Float, low: float, high: float) -> Float:
    t = np.clip((x - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _line(distance: Float, width: float, blur: Float | float) -> Float:
    """Return how much of a pixel `blur` wide a line `width` wide covers, its middle `distance` away (all nm)."""
    cover = (np.float32(width / 2) + blur * np.float32(0.5) - np.abs(distance)) / blur
    return np.asarray(np.clip(cover, 0, np.minimum(1, np.float32(width) / blur)), np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The section: which neurite each pixel lies in, and how far its membrane is.

SPACING = (1.0, 2.0, 4.5)  # of the thin, middle and thick sites, in units of cell_um
RADIUS = ((0.1, 0.75), (0.75, 1.3), (1.4, 2.9))  # of their spheres, same unit
ROUNDING = np.float32(0.24)  # cells; nearer than this to a third neurite the boundary gives way: round corners
LAST_FACET = 1.1  # cells; a thin neurite is not bounded by planes further from its site
OUT_OF_RACE = np.float32(1e3)  # further than any distance that matters
BLOCK_NM = 96.0  # small enough that few sites compete in a block, large enough to feed the matrix product


class _Sites(NamedTuple):
    """Sites of the power diagram, n of them, in warped units of cell_um."""

    at: Float  # (n, 3), relative to the section's origin
    radius: Float  # (n,)
    level: Index  # (n,) index into SPACING
    key: NDArray[np.uint32]  # (n,) hash that names the neurite


class _Section(NamedTuple):
    sites: _Sites
    metric: Float  # (3, 3) world to warped space, per cell_um
    origin: NDArray[np.int64]  # (3,) whole-number warped coordinates of the section's origin
    u: Float  # (3, Y, X) warped coordinates, z y x, relative to the origin
    near: Index  # (Y, X) site each pixel belongs to
    far: Index  # (Y, X) the closest site of another neurite
    depth: Float  # (Y, X) distance to the boundary between the two, nm, at most DEPTH_NM; below 0 between neurites
    tilt: Float  # (Y, X) 1 where the boundary stands upright on the section, 0 where it lies in it
    block: int  # edge of a block of pixels
    low: Float  # (by, bx, 3) bounds of u in each block
    high: Float


def _cut(tissue: Neuropil, window: _Window) -> _Section:
    metric, u, origin = _warp(tissue, window)
    pixel = window.pixel_um / tissue.cell_um
    # du/dz, du/dy, du/dx; z is not sampled, so that there the warp is left out
    slopes = (np.broadcast_to(metric[:, 0, None, None], u.shape), *np.gradient(u, pixel, axis=(1, 2)))
    gram = np.stack([sum(d[a] * d[b] for d in slopes) for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))])
    block = min(max(round(BLOCK_NM / window.pixel_nm), 12), 32)
    tiles = _tiles(u, block)
    rows, cols = tiles.shape[1], tiles.shape[3]
    low, high = (np.moveaxis(f(tiles, axis=(2, 4)), 0, -1) for f in (np.min, np.max))
    sites = _sow(tissue, low.min((0, 1)), high.max((0, 1)), origin)

    near = np.zeros(window.shape, np.int32)
    far = np.zeros(window.shape, np.int32)
    gap = np.zeros(window.shape, np.float32)
    a, b, c = np.abs(gram[3:])
    steep = np.maximum(np.maximum(gram[0] + a + b, gram[1] + a + c), gram[2] + b + c)  # Gershgorin: above |du/dx|^2
    steep = np.sqrt(_tiles(steep[None], block).max((2, 4))[0])  # (rows, cols)
    reach = np.float32(DEPTH_NM / (1e3 * tissue.cell_um)) * steep
    for i in range(rows):
        strip = slice(i * block, (i + 1) * block)
        some = _around(sites, low[i].min(0), high[i].max(0))
        for j in range(cols):
            box = strip, slice(j * block, (j + 1) * block)
            inside = (slice(None), *box)
            near[box], far[box], gap[box] = _divide(
                sites, some, u[inside], gram[inside], low[i, j], high[i, j], reach[i, j]
            )

    apart = [sites.at[:, k][near] - sites.at[:, k][far] for k in range(3)]
    rise, *flat = (sum(apart[k] * slope[k] for k in range(3)) ** 2 for slope in slopes)
    tilt = np.sqrt((flat[0] + flat[1]) / (rise + flat[0] + flat[1] + np.float32(1e-6)))
    depth = np.minimum(gap * np.float32(1e3 * tissue.cell_um), np.float32(DEPTH_NM))
    return _Section(sites, metric, origin, u, near, far, depth, tilt, block, low, high)


def _tiles(field: Float, block: int) -> Float:
    """Cut (C, Y, X) into (C, rows, block, columns, block), padded with copies of the edge."""
    rows, cols = (math.ceil(n / block) for n in field.shape[1:])
    rest = (0, rows * block - field.shape[1]), (0, cols * block - field.shape[2])
    return np.pad(field, ((0, 0), *rest), "edge").reshape(len(field), rows, block, cols, block)


def _warp(tissue: Neuropil, window: _Window) -> tuple[Float, Float, NDArray[np.int64]]:
    """Return the stretch, the warped coordinates (3, Y, X) of every pixel, and their whole-number origin."""
    a, b = (float(_unit(_hash(tissue.seed, 1, np.array([k])))[0]) for k in (0, 1))
    up, turn = 2 * a - 1, 2 * math.pi * b
    flat = math.sqrt(1 - up * up)
    axis = np.array([up, flat * math.cos(turn), flat * math.sin(turn)])
    metric = np.eye(3) - (1 - 1 / tissue.elongation) * np.outer(axis, axis)
    metric *= tissue.elongation ** (1 / 3)  # volume stays

    middle = np.array([window.z_um, *window.center_um]) / tissue.cell_um
    origin = np.floor(metric @ middle).astype(np.int64)
    z = window.z_um / tissue.cell_um
    y = window.axis_um(0)[:, None] / tissue.cell_um
    x = window.axis_um(1)[None, :] / tissue.cell_um
    u = np.empty((3, *window.shape), np.float32)
    for k in range(3):
        u[k] = metric[k, 0] * z + metric[k, 1] * y + metric[k, 2] * x - origin[k]
        u[k] += np.float32(0.6) * _noise(tissue.seed, 10 + k, window, 3.1 * tissue.cell_um)
        u[k] += np.float32(0.22) * _noise(tissue.seed, 20 + k, window, 0.9 * tissue.cell_um)
        u[k] += np.float32(0.045) * _noise(tissue.seed, 30 + k, window, 0.31 * tissue.cell_um)
    return metric.astype(np.float32), u, origin


def _sow(tissue: Neuropil, low: Float, high: Float, origin: NDArray[np.int64]) -> _Sites:
    """Return every site that can matter between `low` and `high`."""
    found: list[_Sites] = []
    for level, spacing in enumerate(SPACING):
        reach = 2.0 + RADIUS[level][1]
        axes = [
            np.arange(
                math.floor((low[k] + origin[k] - reach) / spacing),
                math.floor((high[k] + origin[k] + reach) / spacing) + 1,
            )
            for k in range(3)
        ]
        cells = np.stack([c.ravel() for c in np.meshgrid(*axes, indexing="ij")], 1)
        at, radius, own, real = _site(tissue, level, cells, origin)
        real &= ((at > low - reach) & (at < high + reach)).all(1)
        at, radius, own, cells = at[real], radius[real], own[real], cells[real]
        free = np.ones(len(at), bool)
        for above in range(level + 1, len(SPACING)):
            home = np.floor((at + origin) / SPACING[above]).astype(np.int64)
            for step in np.ndindex(3, 3, 3):
                c, r, _, there = _site(tissue, above, home + np.array(step) - 1, origin)
                free &= ~(there & (((at - c) ** 2).sum(1) < (0.9 * r) ** 2))
        at, radius, own = at[free], radius[free], own[free]
        found.append(_Sites(at, radius, np.full(len(at), level, np.int32), own))
    return _Sites(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _site(
    tissue: Neuropil, level: int, cells: NDArray[np.int64], origin: NDArray[np.int64]
) -> tuple[Float, Float, NDArray[np.uint32], NDArray[np.bool_]]:
    """Return position, radius, hash and existence of the site in each lattice cell."""
    h = _hash(tissue.seed, 40 + level, *cells.T)
    jitter = np.stack([_unit(h, k) for k in (1, 2, 3)], 1)
    at = ((cells + 0.5 + 0.9 * (jitter - 0.5)) * SPACING[level] - origin).astype(np.float32)
    small, large = RADIUS[level]
    radius = np.float32(small) + np.float32(large - small) * _unit(h, 4) ** 2
    chance = (1.0, 0.6 * tissue.thick, 0.9 * tissue.thick)[level]
    return at, np.asarray(radius, np.float32), h, _unit(h, 5) < chance


def _around(sites: _Sites, low: Float, high: Float) -> Index:
    reach = 2.0 + np.maximum(sites.radius, RADIUS[0][1])[:, None]
    return np.flatnonzero(((sites.at > low - reach) & (sites.at < high + reach)).all(1)).astype(np.int32)


def _divide(
    sites: _Sites, some: Index, u: Float, gram: Float, low: Float, high: Float, reach: np.float32
) -> tuple[Index, Index, Float]:
    """Return, over one block, the nearest site, its closest neighbour, and the distance to between the two, in cells.

    The plane between sites a and b is |p_b - p_a| / 2|b - a| away in warped space. A site whose plane with the leader
    at the block's centre is further than the block's radius wins nowhere in the block.
    """
    center, radius = (low + high) / 2, np.sqrt(((high - low) ** 2).sum()) / 2
    points, gram = u.reshape(3, -1) - center[:, None], gram.reshape(6, -1)
    some = some[np.sqrt(((sites.at[some] - center) ** 2).sum(1)) < radius + 2.75 + sites.radius[some]]
    at, weight = sites.at[some] - center, sites.radius[some] ** 2
    power = (at**2).sum(1) - weight
    leader = power.argmin()
    apart = np.sqrt(((at - at[leader]) ** 2).sum(1))
    winners = np.flatnonzero(power - power[leader] <= 2 * apart * radius)
    powers = power[winners, None] - 2 * at[winners] @ points
    near = winners[powers.argmin(0)]
    far = near.copy()
    gap = np.full(len(near), OUT_OF_RACE, np.float32)
    owners = np.unique(near)
    for owner in owners:
        mine = np.flatnonzero(near == owner) if len(owners) > 1 else slice(None)
        neighbours = at - at[owner]
        squared = (neighbours**2).sum(1)
        length = np.sqrt(squared)
        bounds = power - power[owner] <= 2 * length * (radius + reach)
        bounds &= squared + weight[owner] - weight <= 2 * length * max(LAST_FACET, np.sqrt(weight[owner]) + 0.6)
        bounds[owner] = False
        who = np.flatnonzero(bounds)
        if len(who):
            step = neighbours[who]
            lead = (power[who] - power[owner])[:, None] - 2 * step @ points[:, mine]
            distance = _to_planes(lead, step, gram[:, mine])
            far[mine] = who[distance.argmin(0)]
            gap[mine] = _rounded(distance)
    return some[near].reshape(u.shape[1:]), some[far].reshape(u.shape[1:]), gap.reshape(u.shape[1:])


def _to_planes(lead: Float, step: Float, gram: Float) -> Float:
    """Return the distance (n, pixels) to the planes towards n neighbours `step` away, from their lead in power.

    A lead grows by 2 |step . du/dx| along the steepest way, and the square of that is a quadratic form in `step`.
    """
    z, y, x = step.T
    steep = np.stack([z * z, y * y, x * x, 2 * z * y, 2 * z * x, 2 * y * x], 1) @ gram
    return np.asarray(lead * np.float32(0.5) / np.sqrt(np.maximum(steep, np.float32(1e-4))), np.float32)


def _rounded(distance: Float) -> Float:
    """Return the smallest distance (pixels,), less where a second one comes close: corners are round."""
    if len(distance) == 1:
        return distance[0]
    first, second = np.partition(distance, 1, axis=0)[:2]
    crowd = np.maximum(ROUNDING - (second - first), 0) ** 2 / (4 * ROUNDING)
    return np.asarray(first - crowd * np.clip(1 - first / ROUNDING, 0, 1), np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The paint: grey values from the geometry.


def _paint(tissue: Neuropil, window: _Window, cut: _Section, detector: int) -> Float:
    seed, px = tissue.seed, window.pixel_nm
    depth = cut.depth
    blur = np.sqrt((px * cut.tilt) ** 2 + np.float32(3.0**2))  # 3 nm: membranes are never perfectly sharp
    inside = np.clip(
        np.float32(0.5) + depth / np.float32(px), np.float32(0.5), 1
    )  # share of the pixel on this side

    key = cut.sites.key
    mood = _unit(key, 11)
    tone = tissue.brightness + 0.10 * (_unit(key, 12) - 0.5) - np.where(mood < 0.12, 0.17, 0)
    tone = tone.astype(np.float32)
    image = tone[cut.near] * inside + tone[cut.far] * (1 - inside)
    image += np.float32(0.015) * _noise(seed, 50, window, 1.7)
    rough = (0.6 + 0.8 * _unit(key, 13)).astype(np.float32)[cut.near]
    for salt, lattice_um, strength in ((51, 0.034, 0.022), (52, 0.013, 0.022)):
        fade = float(np.clip(2.4 - 2 * px / (1e3 * lattice_um), 0, 1))
        if fade > 0:
            image += (
                rough * _noise(seed, salt, window, lattice_um) * np.float32(strength * fade * tissue.grain)
            )

    cluster = _noise(seed, 53, window, 0.24)
    bouton = (_unit(key, 14) < 0.30 * min(tissue.organelles, 2.0)) & (mood >= 0.12)
    _tubules(tissue, window, cut, image)
    _vesicles(tissue, window, cut, bouton, cluster, image)
    _mitochondria(tissue, window, cut, image)
    sheath = _myelin(tissue, window, cut, blur, image)

    width, gap = tissue.membrane_nm, 0.4 * tissue.membrane_nm
    middle = np.float32((gap + width) / 2)
    dark = np.minimum(_line(depth - middle, width, blur) + _line(depth + middle, width, blur), 1)
    dark = np.maximum(dark, np.float32(0.75) * _line(depth, gap, blur)) * (
        np.float32(0.8) + np.float32(0.06) * cluster
    )
    dark = np.maximum(dark, np.float32(0.75) * _smooth(-depth, 0, 6))  # matter fills the corners between neurites
    synapse = _smooth(cluster, 1.1, 1.5) * (bouton[cut.near] != bouton[cut.far])
    dark = np.maximum(
        dark, synapse * _line(depth - np.float32(16), 22.0, blur) * np.where(bouton[cut.near], 0.25, 0.8)
    )
    stain = np.float32(tissue.brightness - 0.46)
    image += (stain - image) * dark.astype(np.float32)

    image = np.float32(tissue.brightness) + np.float32(tissue.contrast) * (
        image - np.float32(tissue.brightness)
    )
    if detector == 1:
        edge = _line(depth - np.float32(2.2 * width), 1.6 * width, blur) + _line(depth, gap, blur) * 2
        image = (
            np.float32(0.5)
            + np.float32(0.45) * (image - np.float32(tissue.brightness))
            + np.float32(0.1) * edge
        )
        image += np.float32(0.04) * _noise(seed, 60, window, 0.6) + np.float32(0.05) * sheath
    return np.clip(image, 0, 1, dtype=np.float32)


def _tubules(tissue: Neuropil, window: _Window, cut: _Section, image: Float) -> None:
    """Microtubules: dark tubes 24 nm wide, side by side along the neurite, about 90 nm apart."""
    fade = float(np.clip(2 - window.pixel_nm / 10, 0, 1))
    key = cut.sites.key
    chosen = (_unit(key, 15) < 0.35 * min(tissue.organelles, 2.0)) & (cut.sites.level > 0)
    at = np.flatnonzero(chosen[cut.near] & (cut.depth > 25))
    if fade <= 0 or not len(at):
        return
    along = np.stack([_unit(key, 16) - 0.5, _unit(key, 17) - 0.5, _unit(key, 18) - 0.5], 1) + 0.05
    side = np.stack([along[:, 1], -along[:, 0], np.zeros(len(key), np.float32)], 1)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    other = np.cross(along, side)
    who = cut.near.ravel()[at]
    place = [
        (u.ravel()[at] + o) * (1e3 * tissue.cell_um / 90) for u, o in zip(cut.u, cut.origin, strict=True)
    ]
    squared = np.zeros(len(at), np.float32)
    cell = []
    pair = [sum(place[k] * axes[:, k].astype(np.float32)[who] for k in range(3)) for axes in (side, other)]
    cell = [np.floor(p).astype(np.int64) for p in pair]
    h = _hash(tissue.seed, 55, cell[0], cell[1], key[who].astype(np.int64))
    for k in range(2):
        middle = 0.3 + 0.4 * _unit(h, 1 + k)
        squared += (pair[k] - cell[k] - middle).astype(np.float32) ** 2
    radius = np.sqrt(squared) * np.float32(90)
    tube = np.maximum(_line(radius - 9, 7.0, max(window.pixel_nm, 4.0)), 0.4 * (radius < 9)) * (
        _unit(h, 3) < 0.6
    )
    flat = image.reshape(-1)
    flat[at] -= (0.22 * fade * tube * _smooth(cut.depth.ravel()[at], 25, 40)).astype(np.float32)


def _vesicles(
    tissue: Neuropil, window: _Window, cut: _Section, bouton: NDArray[np.bool_], cluster: Float, image: Float
) -> None:
    """Synaptic vesicles in dense clusters, and larger clear or dark bodies strewn thinly."""
    crowded = _smooth(cluster, -0.5, 0.2) * bouton[cut.near]
    kinds = (
        (70, 52.0, 17.0, 22.0, 0.85 * tissue.organelles, crowded),
        (71, 260.0, 35.0, 75.0, 0.3 * tissue.organelles, None),
    )
    for salt, spacing, small, large, chance, where in kinds:
        fade = float(np.clip(2 - window.pixel_nm / small, 0, 1))
        if fade > 0:
            _spheres(tissue, window, cut, image, salt, spacing, (small, large), chance, where, fade)


def _spheres(
    tissue: Neuropil,
    window: _Window,
    cut: _Section,
    image: Float,
    salt: int,
    spacing_nm: float,
    radius_nm: tuple[float, float],
    chance: float,
    where: Float | None,
    fade: float,
) -> None:
    px = window.pixel_nm
    y, x = (1e3 * window.axis_um(k) / spacing_nm for k in (0, 1))
    z_nm = 1e3 * window.z_um
    depth = radius_nm[1] / spacing_nm
    axes = [
        np.arange(math.floor(z_nm / spacing_nm - depth), math.floor(z_nm / spacing_nm + depth) + 1),
        np.arange(math.floor(y[0]), math.floor(y[-1]) + 1),
        np.arange(math.floor(x[0]), math.floor(x[-1]) + 1),
    ]
    cells = [c.ravel() for c in np.meshgrid(*axes, indexing="ij")]
    h = _hash(tissue.seed, salt, *cells)
    radius = radius_nm[0] + (radius_nm[1] - radius_nm[0]) * _unit(h, 4) ** 2
    at = [(c + 0.5 + 0.7 * (_unit(h, k + 1) - 0.5)) * spacing_nm for k, c in enumerate(cells)]
    rise = at[0] - z_nm
    row = (at[1] - y[0] * spacing_nm) / px
    col = (at[2] - x[0] * spacing_nm) / px
    height, width = window.shape
    near_row, near_col = np.rint(row).astype(np.int64), np.rint(col).astype(np.int64)
    keep = (_unit(h, 5) < chance) & (np.abs(rise) < radius + 4)
    keep &= (near_row >= 0) & (near_row < height) & (near_col >= 0) & (near_col < width)
    pick = np.flatnonzero(keep)
    home = near_row[pick] * width + near_col[pick]
    strength = _smooth((cut.depth.ravel()[home] - np.minimum(radius[pick], 42)).astype(np.float32), 2, 14) * fade
    if where is not None:
        strength = strength * where.ravel()[home]
    pick, home, strength = pick[strength > 0.01], home[strength > 0.01], strength[strength > 0.01]
    if not len(pick):
        return
    half = math.ceil((radius_nm[1] + 4) / px) + 1
    step = np.arange(-half, half + 1)
    rows = near_row[pick][:, None, None] + step[None, :, None]
    cols = near_col[pick][:, None, None] + step[None, None, :]
    away = np.sqrt(
        ((rows - row[pick][:, None, None]) * px) ** 2
        + ((cols - col[pick][:, None, None]) * px) ** 2
        + rise[pick][:, None, None] ** 2
    ).astype(np.float32)
    size = radius[pick][:, None, None].astype(np.float32)
    blur = math.hypot(px, 4.0)
    solid = (_unit(h, 6)[pick] < 0.2)[:, None, None]
    shell = _line(away - size + 4, 8.0, blur)
    core = np.clip((size - away) / np.float32(blur) + 0.5, 0, 1)
    valid = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    target = (rows * width + cols)[valid]
    dark = (
        np.where(solid, np.maximum(shell, 0.7 * core), shell) * strength[:, None, None] * np.float32(0.28)
    )[valid]
    light = (np.where(solid, 0, core - shell) * strength[:, None, None] * np.float32(0.05))[valid]
    marks = np.zeros((2, height * width), np.float32)
    np.maximum.at(marks[0], target, dark.astype(np.float32))
    np.maximum.at(marks[1], target, light.astype(np.float32))
    image += (marks[1] - marks[0]).reshape(window.shape)


def _mitochondria(tissue: Neuropil, window: _Window, cut: _Section, image: Float) -> None:
    """Long dark bodies with cristae, kept clear of the neurite's own membrane."""
    sites = cut.sites
    body = _Bodies(*(np.full(window.shape, value, np.float32) for value in (-1e3, 0, 0, 0)))
    for n in range(len(SPACING)):  # a thick neurite may hold as many
        hosts = np.flatnonzero((sites.level >= n) & ((sites.level > 0) | (sites.radius > 0.6)))
        hosts = hosts[_unit(sites.key[hosts], 100 + n) < 0.5 * tissue.organelles]
        size = sites.radius[hosts]
        draw = np.stack([_unit(sites.key[hosts], 110 + 20 * n + k) for k in range(12)], 1)
        axes = np.array([0.28, 0.28, 0.5]) + np.array([0.25, 0.25, 0.6]) * draw[:, 1:4]
        axes = axes * np.maximum(size, 0.7)[:, None]
        axes = np.minimum(
            axes, np.array([0.4, 0.4, 1.5]) / tissue.cell_um
        )  # they are under a micrometre wide
        center = sites.at[hosts] + (draw[:, 4:7] - 0.5) * size[:, None] * (0.0 if n == 0 else 1.6)
        reach = axes.max(1, keepdims=True)
        seen = ((center + reach > cut.low.min((0, 1))) & (center - reach < cut.high.max((0, 1)))).all(1)
        for k in np.flatnonzero(seen):
            _place(body, cut, sites.key[hosts[k]], center[k], axes[k], draw[k], 1e3 * tissue.cell_um)

    blur = math.hypot(window.pixel_nm, 4.0)
    cover = np.clip(body.fit / np.float32(blur) + np.float32(0.5), 0, 1)
    if not cover.any():
        return
    folds = _noise(tissue.seed, 80, window, 0.07)
    wave = np.cos(np.float32(2 * np.pi) * (body.along / np.float32(CRISTA_NM) + np.float32(0.3) * folds))
    crista = wave * np.float32(np.sinc(window.pixel_nm / CRISTA_NM)) * _smooth(body.fit, 10, 24)
    crista *= body.cristae * _smooth(folds, -1.5, 1.0)
    grey = np.float32(tissue.brightness - 0.3) + body.shade
    grey -= np.float32(0.1) * crista + np.float32(0.1) * _line(body.fit - 5, 9.0, blur)
    grey += np.float32(0.35) * (image - np.float32(tissue.brightness))  # the grain shows through
    image += (grey - image) * cover


CRISTA_NM = 42.0  # from one crista to the next


class _Bodies(NamedTuple):
    """What each pixel (Y, X) knows about the mitochondrion around it."""

    fit: Float  # distance to its surface, nm, positive inside
    along: Float  # distance along its long axis, nm
    shade: Float
    cristae: Float


def _place(
    body: _Bodies,
    cut: _Section,
    host: np.uint32,
    center: Float,
    axes: NDArray[np.float64],
    draw: Float,
    unit_nm: float,
) -> None:
    box = _pixels_near(cut, center, float(axes.max() + 30 / unit_nm))
    if box is None:
        return
    turn = _rotation(*(float(d) for d in draw[7:10])) / axes[:, None]
    q = np.tensordot(
        turn.astype(np.float32), cut.u[(slice(None), *box)] - center[:, None, None].astype(np.float32), 1
    )
    ball = (1 - np.sqrt((q**2).sum(0))) * np.float32(axes.min() * unit_nm)
    room = np.where(cut.sites.key[cut.near[box]] == host, cut.depth[box], 0) - np.float32(18)
    fit = np.minimum(ball, room) - np.maximum(30 - np.abs(ball - room), 0) ** 2 / np.float32(
        120
    )  # a round minimum
    better = fit > body.fit[box]
    along = q[2] * np.float32(axes[2] * unit_nm)
    for canvas, value in zip(body, (fit, along, 0.06 * (draw[10] - 0.5), draw[11]), strict=True):
        np.copyto(canvas[box], value, where=better, casting="same_kind")


def _pixels_near(cut: _Section, center: NDArray[Any], radius: float) -> tuple[slice, slice] | None:
    hit = ((cut.low < center + radius) & (cut.high > center - radius)).all(-1)
    rows, cols = np.flatnonzero(hit.any(1)), np.flatnonzero(hit.any(0))
    if not len(rows):
        return None
    rows, cols = (np.array([at[0], at[-1] + 1]) * cut.block for at in (rows, cols))
    return slice(*rows), slice(*cols)


def _rotation(a: float, b: float, c: float) -> NDArray[np.float64]:
    """Uniform random rotation from three uniform numbers (Shoemake 1992)."""
    r, s = math.sqrt(1 - a), math.sqrt(a)
    w, x = r * math.sin(2 * math.pi * b), r * math.cos(2 * math.pi * b)
    y, z = s * math.sin(2 * math.pi * c), s * math.cos(2 * math.pi * c)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _myelin(tissue: Neuropil, window: _Window, cut: _Section, blur: Float, image: Float) -> Float:
    """Dark lamellae, one turn every 13 nm, around some thick neurites. Returns the sheath's coverage."""
    key = cut.sites.key
    wrapped = (cut.sites.level == 2) & (_unit(key, 19) < tissue.myelin)
    thickness = np.where(wrapped, 25 + 33 * _unit(key, 20), 0).astype(np.float32)[cut.near]
    cover = np.clip((thickness - cut.depth) / blur + np.float32(0.5), 0, 1) * (thickness > 0)
    if cover.any():
        turns = np.cos(cut.depth * np.float32(2 * np.pi / 13)) * np.sinc(blur / 13)
        image += (np.float32(tissue.brightness - 0.42) + np.float32(0.16) * turns - image) * cover
    return np.asarray(cover, np.float32)
